"""What code that is written out holds: a cache that is concatenated, results that are seen through views.

Next: `eager.py`, what it runs.
"""

from __future__ import annotations

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Composite, Op, Ref


def concatenated_cache(graph: Graph) -> Graph:
    """New keys and values are concatenated to a copy of the old ones, which are alive beside it.

    The code that made them holds them until it is given all caches of its layer back.
    """
    ops, after = [], (*graph.ops[1:], None)
    held: tuple[Ref, ...] = ()
    for op, following in zip(graph.ops, after, strict=True):
        if not _caches(op):
            ops.append(op)
            continue
        held += (op.reads[0]._replace(stored=0, touched=0),)  # the name then holds the cache
        last = following is None or not _caches(following)
        ops.append(_cached(op, held if last else ()))
        held = () if last else held
    return graph.with_ops(ops)


def views_of_one(graph: Graph) -> Graph:
    """What one matrix makes are views of its result, which lives as long as any of them: queries, keys and values with
    a cache are views of a tensor that has a name, gate and up of one that has none."""
    caching = {op.node.serial for op in graph.ops if _caches(op)}
    parts: dict[Composite, list[Op]] = {}
    for op in graph.ops:
        named = op.node.serial in caching or (op.writes and op.writes[0].temporary)
        if op.composite and op.composite.kind == "projections" and named:
            parts.setdefault(op.composite, []).append(op)
    return graph.with_ops(_viewed(op, parts[op.composite]) if op.composite in parts else op for op in graph.ops)


def _viewed(op: Op, parts: list[Op]) -> Op:
    """An op of one matrix: its last one holds the whole."""
    whole = op.writes[0]._replace(stored=sum((part.writes[0].stored for part in parts), start=0))
    view = op.writes[0]._replace(stored=0)
    if op is not parts[-1]:
        return op._replace(writes=(view,))
    if whole.temporary:
        return op._replace(writes=(whole,))
    frame, name = op.n.resolve("qkv")
    return op._replace(writes=(view, whole._replace(name=name, frame=frame, touched=0)))


def _caches(op: Op) -> bool:
    return bool(op.writes) and op.writes[0].role == "kv"


def _cached(op: Op, freed: tuple[Ref, ...]) -> Op:
    new, cache = op.reads[0], op.writes[0]
    old = cache._replace(touched=cache.stored - cache.touched)
    room = old._replace(name=f"{cache.name}.old", role="activation", temporary=True, stored=old.touched, touched=0)
    whole = cache._replace(touched=cache.stored)
    return op._replace(reads=(new, old), writes=(whole, room, *freed))
