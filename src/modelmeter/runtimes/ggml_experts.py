"""How llama.cpp chooses experts: all are sorted by their scores, of groups first the best, and the first are taken.

The logits before it and the experts behind it are products like others: `ggml.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD, MUL, TOP_K
from modelmeter.graph.ops import Op, Ref, build
from modelmeter.runtimes.ggml_ops import idle, unread, views

_SCORES = "_p:32"
"""Of experts, as a router makes them."""


def routes(op: Op) -> bool:
    """Whether an op is a router's, behind its logits; a softmax is, where it is that of the chosen ones alone."""
    kinds = ("pointwise", "copy", "softmax" if op.writes and op.output.name == "y" else "")
    return {"E", "k"} <= op.n.axes.keys() and "f" not in op.n.axes and op.kind in kinds


@dataclass
class Routing:
    """A router's ops, rewritten one by one; `other` are the tensors that stand for others, by name.

    `sorted` are the experts of each token, by their scores.
    """

    other: dict[str, Ref]
    sorted: list[Ref] = field(default_factory=list)

    def ops(self, op: Op) -> Iterator[Op]:
        """What runs in the place of an op. The scale of routed experts is taken as 1, which is none."""
        made, given = op.output.name, op.reads[0]
        alone = given.name == op.writes[0].name and len(op.reads) == 1
        if op.kind == "softmax":
            yield from (*views(op, given), op, *views(op, op.writes[0]))
        elif "each" in op.n.axes and made != "y":
            yield from self._grouped(op)
        elif made == "_c":
            yield from (*views(op, given), op)
        elif op.form is TOP_K:
            yield from self._chosen(op)
        elif made == "_sum" and not alone:
            yield from (*views(op, given), op._replace(kind="apart"))
            yield build("pointwise", f"{op.output} = {op.output}", op.n, ADD)
        elif made != "_sum" and not (op.form is MUL and alone):
            yield op
            yield from views(op, op.writes[0]) if op.form is MUL else ()

    def _chosen(self, op: Op) -> Iterator[Op]:
        """The experts of each token; of their scores those without correction."""
        by, given = op.reads[0], op.equation.factors[0]
        axes = " ".join(given.stored)
        scores = str(given) if given.name == "_l" else f"{_SCORES}[{axes}]"  # logits where their softmax comes after
        taken = build("copy", f"{op.output} = {scores}", op.n)
        if by.name == taken.reads[0].name:
            yield from views(op, by)
        yield from self._ordered(op, f"_sorted:32[{axes}] = {scores}")
        yield taken._replace(reads=(taken.reads[0]._replace(touched=taken.writes[0].stored), *self.sorted))
        yield from views(op, taken.reads[0])

    def _ordered(self, op: Op, text: str) -> Iterator[Op]:
        """All are sorted; a view of the first."""
        order = build("copy", text, op.n)
        self.sorted = [idle(order.writes[0])]
        yield order._replace(reads=(op.reads[0],), cuda=op.cuda)
        yield from views(op, order.writes[0])

    def _grouped(self, op: Op) -> Iterator[Op]:
        """Groups by the sum of their two best scores; the scores of the best groups, of others none."""
        made, by = op.output.name, op.reads[0]
        if op.n.axes["G"] == 1:
            self.other |= {op.writes[0].name: by} if made == "_m" else {}
        elif op.n.axes.get("best") != 2 and not op.n.root.vendor:
            yield op  # a layer by itself
        elif op.n.axes.get("best") != 2:
            raise InputError(f"{op.node.layer}: llama.cpp judges a group of experts by its two best, no other number")
        elif made == "_b":
            yield from views(op, by, 2)
            yield from self._ordered(op, "_each:32[b s E] = _l:32[b s E]")
            yield op._replace(kind="copy", reads=(by, *self.sorted), cuda=0)
            yield from views(op, op.writes[0])
        elif made == "_g":
            yield op._replace(kind="apart")
            yield from views(op, op.writes[0])
        elif made == "_k":
            yield from self._ordered(op, "_best:32[b s G] = _g:32[b s G]")
        else:
            kept, all_of_them = (build("copy", f"{text} = _c:32[b s E]", op.n) for text in (
                "_rows:32[b s kept each]", "_filled:32[b s E]"))  # fmt: skip
            yield kept._replace(reads=(by, *self.sorted))
            yield all_of_them._replace(reads=(unread(by),))
            self.other[op.writes[0].name] = all_of_them.writes[0]
            yield op._replace(reads=(*kept.writes, *self.sorted, idle(all_of_them.writes[0])), writes=())
            yield from views(op, all_of_them.writes[0])
