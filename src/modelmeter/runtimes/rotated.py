"""A quantised cache of llama.cpp, which holds rotated heads. Not rotary positions; the graph itself is in `ggml.py`."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from modelmeter.errors import InputError
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, build
from modelmeter.runtimes.ggml_merged import WHOLE
from modelmeter.runtimes.ggml_ops import PROVIDED, idle, last, near, provided, views, wide_op
from modelmeter.sizes import differ, floor_div

_PART = 64
"""Elements of a head that are rotated together, before it is put into a quantised cache."""
ROTATED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")
"""Formats of a cache that holds rotated keys or values."""
_MADE = {"C_k": ("q", "k"), "C_v": ("v", "o")}
"""What is rotated for each half of the cache."""


def rotated_cache(graph: Graph) -> Graph:
    """A cache of keys, values or both in quantised blocks, which holds them rotated. After `ggml`.

    A product with an orthogonal matrix spreads outliers: of the queries too, where keys are rotated, and back again of
    what attention gives, where values are. Heads of keys are rotated in parts as wide as the largest power of two that
    divides them, of values in parts of 64; heads that 64 does not divide are not. Raises InputError for values in
    blocks without flash attention.
    """
    caches = {last(op): op for op in graph.ops if last(op) in _MADE}
    sides = {made: name[-1] for name, op in caches.items() if _blocks(graph, op) for made in _MADE[name]}
    if not sides:
        return graph
    if "v" in sides and not any(op.kernel for op in graph.ops if op.composite and op.composite.kind == "attention"):
        raise InputError(
            f"llama.cpp needs flash attention for values in {graph.root.cached(caches['C_v'].writes[0].name)}"
        )
    if "v" in sides and any(op.output.name == WHOLE for op in graph.ops):
        raise InputError(
            "how llama.cpp rotates values that are a part of one matrix with queries and keys is not known here"
        )
    placed = {(op.node.serial, op.output.name) for op in graph.ops if _placed(op)}
    first, *ops = (new for at, op in enumerate(graph.ops) for new in (op, *_rotated(graph, at, sides, placed)))
    turns = {r.name: idle(r) for op in ops for r in op.reads if r.name.startswith(f"{PROVIDED}turn")}
    return graph.with_ops([first._replace(writes=(*first.writes, *turns.values())), *ops])


def _blocks(graph: Graph, op: Op) -> bool:
    return graph.root.cached(op.writes[0].name) in ROTATED


def _rotated(graph: Graph, at: int, sides: Mapping[str, str], placed: Container[tuple[int, str]]) -> Iterator[Op]:
    """What follows the op that makes queries, keys, values or a result last, or the view of it."""
    op, before = graph.ops[at], graph.ops[at - 1]
    made = op.output.name if op.kind == "pointwise" else before.output.name
    if made not in sides or not _ends(graph, at, (op.node.serial, made) in placed):
        return
    side, e, r = sides[made], op.n.e, op.writes[0] if op.kind == "pointwise" else op.reads[0]
    width = _PART
    while side == "k" and not differ(e, 2 * width * floor_div(e, 2 * width)):
        width *= 2
    if differ(e, width * floor_div(e, width)):
        return
    yield from views(op, r)
    tensor = op.output if op.kind == "pointwise" else before.output
    n, axes = op.n.bind(i=width, j=width, parts=floor_div(e, width)), " ".join(tensor.stored[:-1])
    product = build("matmul", f"{made}[{axes} parts j] = {made}[{axes} parts i] * _turn:32[i j]", n)
    given = provided(f"turn.{side}{near(op.n)}", 32, width * width)
    yield wide_op(product._replace(reads=(product.reads[0], given)))
    yield from views(op, r)


def _ends(graph: Graph, at: int, placed: bool) -> bool:
    """Whether it is complete: scaled, or else with its positions, or else where it has none seen as heads."""
    op, before = graph.ops[at], graph.ops[at - 1]
    if placed:
        return _scaled(op) or (_placed(op) and not (at + 1 < len(graph.ops) and _scaled(graph.ops[at + 1])))
    return op.kind == "view" and before.kind in ("matmul", "pointwise")


def _placed(op: Op) -> bool:
    """Whether an op rotates positions."""
    return any(r.name == f"{PROVIDED}positions" for r in op.reads)


def _scaled(op: Op) -> bool:
    """Whether an op scales queries, which comes after their positions."""
    return op.kind == "pointwise" and [t.name for t in op.equation.operands] == ["q"] == [op.output.name]
