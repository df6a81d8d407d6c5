"""What llama.cpp runs: its graph of ggml's ops, views among them, all in 32 bits but for weights and cache.

The reference is llama.cpp as of October 2026, of decoders with causal attention and gated MLPs, dense or routed; what
each check of the engine found is told in docs/engines.md. Next: `planner.py`, where its tensors lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.equations import parse
from modelmeter.graph.forms import ADD, CAP, CLAMPED, COMBINES, GATHERS, MUL, SCATTER, SILU
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import COLLECTIVES, Op, Ref, build, resized
from modelmeter.runtimes.ggml_experts import Routing, routes
from modelmeter.runtimes.ggml_latent import latent
from modelmeter.runtimes.ggml_merged import WHOLE, one_matrix
from modelmeter.runtimes.ggml_ops import (
    EMBEDDINGS,
    MIXED,
    PROVIDED,
    all_pairs,
    capped,
    combined,
    embedding,
    idle,
    in_cells,
    last,
    near,
    norm,
    provided,
    unread,
    views,
    wide_op,
)  # fmt: skip
from modelmeter.sizes import Size

_VIEWS = 6
"""Views before attention: queries, keys and values, each cut out of its tensor and permuted."""
UBATCH = 512
"""Tokens that are computed at once, as the engine has it if nothing is said."""
_ORDER = {"q": 0, "v": 1, "k": 2}
"""Queries, values and keys are made in this order; where some layers have windows, values last."""


def ggml(graph: Graph, ubatch: Size = UBATCH) -> Graph:
    """The graph that llama.cpp makes of a decoder. Attention is one kernel if it was one before.

    Positions are read by the rotations, which make their angles themselves; masks and the places of new tokens in the
    cache are inputs. Attention is computed over whole cells, masked or not: `causal: exact` saves nothing. Beside the
    embeddings of tokens are those of a batch that has embeddings too, which are reserved and not computed.
    """
    if any(op.kind in COLLECTIVES for op in graph.ops):
        raise InputError("llama.cpp's way to several devices is not modelled; parallel.tensor needs another runtime")
    ops = list(_Writer(one_matrix(latent(graph)), ubatch).ops())
    if not ops:
        return graph
    given = {r.name: idle(r) for op in ops for r in op.reads if r.name.startswith(PROVIDED)}
    start = ops[0]._replace(kind="constant", reads=(), writes=tuple(given.values()), tensor=0, cuda=0)
    known = {r.name: r for op in ops for r in (*op.reads, *op.writes)}
    held = (unread(known[name]) for name in (EMBEDDINGS, MIXED) if name in known)
    ops[-1] = ops[-1]._replace(reads=(*ops[-1].reads, *held))
    return graph.with_ops(map(wide_op, [start] * bool(given) + ops))


class _Habits(NamedTuple):
    """What llama.cpp's code of an architecture does its own way.

    `queries` are scaled, not scores; embeddings are scaled by `rows`, which are given; it has attention in `windows`.
    """

    queries: bool = False
    rows: bool = False
    windows: bool = False


_HABITS = {
    "gemma": _Habits(queries=True), "gemma2": _Habits(queries=True, windows=True),
    "gemma3_text": _Habits(queries=True, rows=True, windows=True), "phi3": _Habits(queries=True),
    "gpt_oss": _Habits(windows=True),
}  # fmt: skip
"""By the model_type of transformers; all others have none."""
_PARALLEL = ("phi", "gpt_neox", "cohere")
"""Whose parts are side by side, in an order of the engine that is not known here."""


def _habits(graph: Graph) -> _Habits:
    """Those of a graph's decoder; a layer by itself has none. Raises InputError where the engine's way is not known."""
    vendor = graph.root.vendor
    found = _HABITS.get(vendor, _Habits())
    if vendor and any(near(op.n) for op in graph.ops) and not found.windows:
        valid = ", ".join(name for name, habits in _HABITS.items() if habits.windows)
        raise InputError(f"attention in windows is known here in llama.cpp of {valid} alone, not of {vendor}")
    if vendor in _PARALLEL:
        raise InputError(
            f"the order in which llama.cpp runs attention and MLP of {vendor} side by side is not known here"
        )
    return found


@dataclass
class _Writer:
    """The ops of a graph, rewritten one by one; `other` are the tensors that stand for others, by name."""

    graph: Graph
    ubatch: Size
    other: dict[str, Ref] = field(default_factory=dict)
    saved: dict[str, Size] = field(default_factory=dict)
    """FLOPs that a later op does, by the tensor that it reads."""

    def __post_init__(self) -> None:
        self.habits, self.routing = _habits(self.graph), Routing(self.other)
        near_some = any(near(op.n) for op in self.graph.ops)
        self.order = dict(zip("qkv", range(3), strict=True)) if near_some else _ORDER
        cores = [op for op in self.graph.ops if op.composite and op.composite.kind == "attention"]
        self.flash = {op.node.serial: bool(op.kernel) for op in cores}
        self.end = {op.composite: op for op in cores}
        self.begin = {op.composite: op for op in reversed(cores)}
        users = self.graph.users(range(len(self.graph.ops)))
        reads = zip(self.graph.ops, self.graph.reads, strict=True)
        self.shared = {(id(op), r.name) for op, found in reads for r, at in found if len(users[r.name, at]) > 1}

    def ops(self) -> Iterator[Op]:
        """The ops in ggml's order."""
        apart = {r.name for op in self.graph.ops if not places(op) for r in op.reads}
        read = {r.name for op in self.graph.ops if places(op) for r in op.reads} - apart
        made = (op for op in self.graph.ops if op.equation.outputs[-1].name == "sin" and op.writes[-1].name in read)
        tables = {op.node.serial: op.writes[-1].name for op in made}
        for serial, name in tables.items():  # the last round's are those of the others
            self.saved[name] = sum((op.cuda for op in self.graph.ops if op.node.serial == serial), start=0)
        rest = (op for op in self.graph.ops if op.node.serial not in tables)
        for projecting, group in groupby(rest, self._projects):
            for op in sorted(group, key=lambda o: self.order[last(o)]) if projecting else group:
                known = op._replace(reads=tuple(self.other.get(r.name, r) for r in op.reads))
                yield from self._op(op, known)

    def _projects(self, op: Op) -> bool:
        """Whether an op makes queries, keys or values, or works on them before attention."""
        return bool(self.flash) and last(op) in _ORDER and op.writes[0].role == "activation"

    def _op(self, was: Op, op: Op) -> Iterator[Op]:
        names = [r.name.rpartition(".")[2] for r in op.reads]
        if op.kind in ("unused", "view"):
            yield op
        elif op.kind == "lookup" and names[0] == "W_tok":
            yield from embedding(op)
        elif op.kind == "norm":
            yield from norm(op)
        elif places(op):
            at = provided("positions", 32, op.n.elements(op.equation.factors[-1].stored[:-1]))
            angles = self.saved.get(op.reads[-1].name, 0)
            yield op._replace(kind="pointwise", reads=(op.reads[0], at), cuda=op.cuda + angles)
            if self.habits.queries and op.output.name == "q":
                yield build("pointwise", f"{op.output} = {op.output}", op.n, MUL)
        elif op.writes and op.writes[0].role == "kv":
            yield from self._cached(op)
        elif op.composite and op.composite.kind == "attention":
            yield from self._attention(was, op)
        elif op.kind == "copy" and (op.form in (*GATHERS, SCATTER) or casts(op)):
            self.other[op.writes[0].name] = op.reads[0]
        elif op.kind == "copy" and "l" in op.output.stored:
            yield op._replace(reads=(*op.reads, provided("wanted", 32, op.n.elements(("b", "l")))))
        elif op.kind == "matmul" and op.output.name != WHOLE:
            yield from self._matmul(op)
        elif routes(op):
            yield from self.routing.ops(op)
        elif op.kind == "pointwise":
            yield from self._pointwise(was, op)
        else:
            yield op

    def _matmul(self, op: Op) -> Iterator[Op]:
        factors, out = op.equation.factors, op.output
        experts = any(t.role == "weight" and t.stored[0] == "E" != t.touched[0] for t in factors)
        plain = parse(f"{out} = {' * '.join(map(str, factors))}")
        reads = (*op.reads[: len(factors)], *(self.routing.sorted if experts else ()))
        yield op._replace(equation=plain, reads=reads, cuda=0)
        for addend in op.equation.addends:
            yield build("pointwise", f"{out} = {out} + {addend}", op.n, ADD)
        if op.node.serial in self.flash and out.name in _ORDER:
            yield from views(op, op.writes[0])

    def _pointwise(self, was: Op, op: Op) -> Iterator[Op]:
        alone = len(op.reads) == 1 and op.reads[0].name == op.writes[0].name
        if alone and op.output.name == "_g":  # the activation of a gate runs with the product
            self.saved[op.writes[0].name] = op.cuda
        elif op.reads[0].name in self.saved:
            yield op._replace(kind="apart", cuda=op.cuda + self.saved.pop(op.reads[0].name))
        elif op.form is CLAMPED:
            yield op._replace(kind="apart")
        elif op.form in COMBINES:
            yield from combined(op)
        elif op.form is CAP:
            yield from capped(op)
        elif alone and op.output.name == "_s":  # the weight of shared experts: a sigmoid as silu(x) / x
            yield build("pointwise", "_silu[b s] = _s[b s]", op.n, SILU)
            yield build("pointwise", "_s[b s] = _silu[b s] * _s[b s]", op.n, MUL)
        elif alone and self.habits.rows and op.node.layer == "TokenEmbedding":
            yield op._replace(reads=(*op.reads, provided("scales", 32, op.n.elements(("b", "s")))))
        else:
            parts = sorted(op.reads, key=lambda r: (id(was), r.name) in self.shared)
            yield op._replace(reads=tuple(parts)) if op.form is ADD else op

    def _cached(self, op: Op) -> Iterator[Op]:
        """New keys or values are put into the cache, in the format of which it is; their places are given."""
        n, flash = in_cells(op.n, self.ubatch), self.flash.get(op.node.serial, True)
        values = not flash and last(op) == "C_v"  # lie transposed, so that each element has a place
        made = resized(op, n)._replace(reads=op.reads)
        if values and last(op) == "C_v" and op.reads[0].name.endswith(WHOLE):
            alone = build("copy", f"{op.equation.factors[0]} = {op.equation.factors[0]}", n)
            yield alone._replace(reads=op.reads)
            made = made._replace(reads=alone.writes)
        yield from views(op, made.reads[0], 3 if values and made.reads == op.reads else 2 if values else 1)
        new = made.reads[0]
        where = ("values", new.stored) if values else (last(op), n.elements(("b", "s")))
        yield made._replace(reads=(*made.reads, provided(where[0] + near(n), 64, where[1])))

    def _attention(self, was: Op, op: Op) -> Iterator[Op]:
        """Scores over whole cells, scaled and masked with the softmax."""
        assert op.composite is not None
        flash, n = self.flash[op.node.serial], in_cells(op.n, self.ubatch)
        cached = n is not op.n
        if was is self.begin[op.composite]:
            yield from (view for r in op.reads[:2] for view in views(op, r, _VIEWS // 2))
        if op.kind == "pointwise" and op.form is MUL:
            self.saved[op.composite.name] = 0 if self.habits.queries else resized(op, n, all_pairs(op.over)).cuda
            return
        made = resized(op, n, all_pairs(op.over))
        if op.kind == "softmax":
            made = made._replace(cuda=made.cuda + self.saved.pop(op.composite.name, 0))
        if op.kind == "softmax" and cached:
            mask = provided(f"mask{near(n)}", 16 if flash else 32, n.elements(("b", "s", "t")))
            made = made._replace(reads=(*made.reads, mask), cuda=made.cuda + n.elements(made.output.stored))
        if was is not self.end[op.composite]:
            yield from capped(made) if op.form is CAP and not flash else (made,)
            return
        first = self.begin[op.composite].reads[0]
        query = unread(self.other.get(first.name, first))
        yield made._replace(reads=(*made.reads, query)) if flash else made
        if "z" in n.axes:  # of latents values are made first
            yield from views(op, op.writes[0]) if flash else ()
            return
        yield from views(op, op.writes[0])
        if not flash:
            yield build("copy", f"{op.output} = {op.output}", op.n)


def places(op: Op) -> bool:
    """Whether an op rotates positions: x cos + turned(x) sin."""
    return op.kind == "pointwise" and [t.name for t in op.equation.factors[1:]] == ["cos", "sin"]


def casts(op: Op) -> bool:
    """Whether a copy changes nothing but the format."""
    given, made = op.equation.operands[0], op.output
    return len(op.reads) == 1 and given.stored == made.stored and made.bits != given.bits


def nodes(graph: Graph) -> Size:
    """The nodes of a graph as the engine counts them: kernels, views and what is reserved, each as often as it runs."""
    kernels = {
        label: op for label, op in zip(graph.labels, graph.ops, strict=True) if op.kind not in ("constant", "unused")
    }
    return sum((op.times for op in kernels.values()), start=0)
