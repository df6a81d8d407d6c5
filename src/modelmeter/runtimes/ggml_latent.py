"""Latent attention as llama.cpp runs it, before `ggml.py` takes the graph op by op: order, views, copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from modelmeter.errors import InputError
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, build
from modelmeter.runtimes.ggml_ops import in_cells, last, views

_TURNS = ("_low", "q", "_u", "_pe", "u", "l", "c", "k", "C_l", "core", "o", "y")
"""What latent attention makes, in ggml's order: queries first, then the latent, then what is seen."""
_BITS = 16
"""Of the cache of latents, whose copies are in the same format."""


def latent(graph: Graph) -> Graph:
    """Latent attention, which the engine runs absorbed: one key for all heads, which is the value too.

    Rotated parts are tensors of their own, put beside the others. Raises InputError for a decoder that expands it; a
    layer by itself may.
    """
    expanded = {op.node.serial for op in graph.ops if last(op) == "kv"}
    if expanded and graph.root.vendor:
        raise InputError(
            f"llama.cpp runs latent attention of {graph.root.vendor} absorbed; count it so: latent=absorbed"
        )
    serials = {op.node.serial for op in graph.ops if last(op) == "C_l"} - expanded
    ops: list[Op] = []
    for within, group in groupby(graph.ops, lambda op: op.node.serial in serials and op.kind != "unused"):
        given = list(group)
        ops += _absorbed(given) if within else given
    return graph.with_ops(ops)


def _absorbed(ops: list[Op]) -> Iterator[Op]:
    core = [op for op in ops if op.composite]
    for op in sorted(ops, key=_turn):
        yield from _CHANGES.get(_named(op), _unchanged)(op, core)


def _named(op: Op) -> str:
    """What an op of latent attention makes."""
    if op.composite:
        return "core"
    return "_pe" if op.kind == "pointwise" and last(op) == "q" else last(op)


def _turn(op: Op) -> int:
    return _TURNS.index(_named(op)) if _named(op) in _TURNS else len(_TURNS)


def _unchanged(op: Op, core: list[Op]) -> Iterator[Op]:
    yield op


def _queries(op: Op, core: list[Op]) -> Iterator[Op]:
    yield op
    yield from views(op, op.writes[0], 2)


def _multiplied(op: Op, core: list[Op]) -> Iterator[Op]:
    yield op
    yield from (*views(op, op.writes[0]), *views(op, op.reads[0]))


def _rotated(op: Op, core: list[Op]) -> Iterator[Op]:
    tables = " * ".join(map(str, op.equation.factors[1:]))
    made = build("pointwise", f"_pe[b s h T] = q[b s h qk:T] * {tables}", op.n, op.form, over=op.over)
    yield made._replace(reads=op.reads)


def _beside(op: Op, core: list[Op]) -> Iterator[Op]:
    yield build("copy", "u[b s h z] = _u[b s h c] * _pe[b s h T]", op.n)


def _made(op: Op, core: list[Op]) -> Iterator[Op]:
    yield op
    yield from views(op, op.writes[0])


def _normed(op: Op, core: list[Op]) -> Iterator[Op]:
    yield op
    yield from (*views(op, op.writes[0]), *views(op, op.reads[0]))


def _kept(op: Op, core: list[Op]) -> Iterator[Op]:
    both = build("copy", "_kept[b s z] = c[b s c] * k[b s T]", op.n)
    yield both
    yield build("copy", "C_l[b t:s z] = _kept[b s z]", op.n)._replace(reads=both.writes, writes=op.writes)


def _seen(op: Op, core: list[Op]) -> Iterator[Op]:
    """Without flash attention values are copied, as they lie the other way round."""
    values = f"_values:{_BITS}[b t c]"
    kept = next(r for r in core[0].reads if r.role == "kv")
    if op is core[0] and not op.kernel:
        yield from views(op, kept)
        copied = build("copy", f"{values} = C_l[b t z:c]", in_cells(op.n, 0))
        yield copied._replace(reads=(copied.reads[0]._replace(name=kept.name),))
    if op is core[-1] and not op.kernel:
        text = f"{op.output} = {op.equation.factors[0]} * {values}"
        made = build("matmul", text, op.n, over=op.over)
        op = made._replace(reads=(op.reads[0], made.reads[1]), composite=op.composite)
    yield op


def _given(op: Op, core: list[Op]) -> Iterator[Op]:
    yield op
    yield from views(op, op.writes[0])
    yield build("copy", f"{op.output} = {op.output}", op.n)
    yield from views(op, op.writes[0]) if core[0].kernel else ()


_CHANGES: dict[str, Callable[[Op, list[Op]], Iterator[Op]]] = {
    "q": _queries, "_u": _multiplied, "_pe": _rotated, "u": _beside, "l": _made, "c": _normed, "C_l": _kept,
    "core": _seen, "o": _given,
}  # fmt: skip
