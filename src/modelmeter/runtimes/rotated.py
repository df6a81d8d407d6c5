"""A quantised cache of llama.cpp, which holds rotated heads. Not rotary positions; the graph itself is in `ggml.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, build
from modelmeter.runtimes.ggml import PROVIDED, idle, near, provided, views, wide_op
from modelmeter.sizes import differ, floor_div

_PART = 64
"""Elements of a head that are rotated together, before it is put into a quantised cache."""


def rotated_cache(graph: Graph, which: str) -> Graph:
    """A cache of keys (`which`: k), values (v) or both in quantised blocks, which holds them rotated.

    A product with an orthogonal matrix spreads outliers: of the queries too, where keys are rotated, and back again of
    what attention gives, where values are. Heads of keys are rotated in parts as wide as the largest power of two that
    divides them, of values in parts of 64; heads that 64 does not divide are not.
    """
    made = {"k": ("q", "k"), "v": ("v", "o")}
    sides = {name: letter for letter in which for name in made[letter]}
    first, *ops = (new for at, op in enumerate(graph.ops) for new in (op, *_rotated(graph, at, sides)))
    turns = {r.name: idle(r) for op in ops for r in op.reads if r.name.startswith(f"{PROVIDED}turn")}
    return graph.with_ops([first._replace(writes=(*first.writes, *turns.values())), *ops])


def _rotated(graph: Graph, at: int, sides: Mapping[str, str]) -> Iterator[Op]:
    """What follows an op that rotates positions of queries or keys, or the view of new values or of a result."""
    op = graph.ops[at]
    placed = _placed(op) and not (at + 1 < len(graph.ops) and _scaled(graph.ops[at + 1])) or _scaled(op)
    seen = op.kind == "view" and graph.ops[at - 1].kind == "matmul"
    tensor = op.output if placed else graph.ops[at - 1].output
    if tensor.name not in sides or not (placed or seen) or placed != (tensor.name in "qk"):
        return
    side, e, r = sides[tensor.name], op.n.e, op.writes[0] if placed else op.reads[0]
    width = _PART
    while side == "k" and not differ(e, 2 * width * floor_div(e, 2 * width)):
        width *= 2
    if differ(e, width * floor_div(e, width)):
        return
    yield from views(op, r)
    n, axes = op.n.bind(i=width, j=width, parts=floor_div(e, width)), " ".join(tensor.stored[:-1])
    product = build("matmul", f"{tensor.name}[{axes} parts j] = {tensor.name}[{axes} parts i] * _turn:32[i j]", n)
    yield wide_op(product._replace(reads=(product.reads[0], provided(f"turn.{side}{near(op.n)}", 32, width * width))))
    yield from views(op, r)


def _placed(op: Op) -> bool:
    """Whether an op rotates positions."""
    return any(r.name == f"{PROVIDED}positions" for r in op.reads)


def _scaled(op: Op) -> bool:
    """Whether an op scales queries, which comes after their positions."""
    return op.kind == "pointwise" and [t.name for t in op.equation.operands] == ["q"] == [op.output.name]
