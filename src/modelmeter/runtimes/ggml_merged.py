"""Projections that are one matrix of the checkpoint: one op of llama.cpp, of whose result others see parts.

Rewritten before `ggml.py` takes the graph op by op.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from modelmeter.graph.forms import ADD
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref, build
from modelmeter.runtimes.ggml_ops import last, views
from modelmeter.sizes import Size

WHOLE = "_whole"
"""What such a matrix gives."""


def one_matrix(graph: Graph) -> Graph:
    """Queries, keys and values of one matrix are parts of one tensor, and so are gate and up.

    Experts have a matrix each for gate and up in the engine's files, whatever the checkpoint has.
    """
    ops: list[Op] = []
    wholes: dict[str, Ref] = {}
    saved: dict[str, Size] = {}
    for name, group in groupby(graph.ops, _projections):
        given = list(group)
        if name and any(t.stored[:1] == ("E",) for t in given[0].equation.factors):
            ops += (op._replace(composite=None, kernel="") for op in given)
        elif name:
            made = list(_merged(given))
            ops += made
            wholes |= {op.writes[0].name: made[0].writes[0] for op in given}
        else:
            ops += (new for op in given for new in _seen(op, wholes, saved))
    return graph.with_ops(ops)


def _projections(op: Op) -> str:
    made = op.composite is not None and op.composite.kind == "projections" and op.kind == "matmul"
    return op.composite.name if op.composite and made else ""


def _merged(ops: list[Op]) -> Iterator[Op]:
    """The product, its bias, a view of each of queries, keys and values."""
    x, n = ops[0].equation.factors[0], ops[0].n
    lead = " ".join(ops[0].output.stored[:2])
    n = n.bind(N=sum(n.elements(op.output.stored[2:]) for op in ops))
    made = build("matmul", f"{WHOLE}[{lead} N] = {x} * W_{WHOLE}[{x.stored[-1]} N]", n)
    yield made._replace(reads=(ops[0].reads[0], *(op.reads[1] for op in ops)))
    biases = [r for op in ops for r in op.reads[2:]]
    if biases:
        added = build("pointwise", f"{WHOLE}[{lead} N] = {WHOLE}[{lead} N]", n, ADD)
        yield added._replace(reads=(*added.reads, *biases))
    if last(ops[0]) == "q":
        yield from views(made, made.writes[0], len(ops))


def _seen(op: Op, wholes: dict[str, Ref], saved: dict[str, Size]) -> Iterator[Op]:
    """An op that sees parts; the activation of a gate runs with the product that follows it."""
    names = [r.name for r in op.reads if r.name in wholes]
    if names and last(op) == "_g":
        saved[wholes[names[0]].name] = op.cuda
        return
    reads = [wholes[r.name]._replace(touched=r.touched) if r.name in wholes else r for r in op.reads]
    for w in op.writes:
        wholes.pop(w.name, None)
    activated = saved.pop(reads[0].name, None) if names else None
    made = op if activated is None else op._replace(kind="apart", cuda=op.cuda + activated)
    yield made._replace(reads=tuple(reads))
