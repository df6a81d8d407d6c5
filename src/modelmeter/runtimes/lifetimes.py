"""How long tensors live: what is alive while each op runs. A runtime names one of these rules.

`names`: as Python holds them. `last_read`: as a compiler frees them. `arena`: one buffer for all, planned ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from itertools import repeat

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Ref
from modelmeter.sizes import Size, maximum, rivals

Hidden = frozenset[tuple[str, int]]
Bytes = Callable[[Ref], Size]
Rule = Callable[[Graph, Hidden, Bytes], Iterator[Size]]
"""Graph, tensors that never are in memory (name and writer), bytes of a tensor -> bytes alive while each op runs."""


def names(graph: Graph, hidden: Hidden, size: Bytes) -> Iterator[Size]:
    """A name holds its tensor until it is rebound or its layer returns; a temporary goes at its last read.

    The caller of a repeated layer holds what entered the first round while the next ones run.
    """
    return _alive(graph, hidden, size, last_read=False)


def last_read(graph: Graph, hidden: Hidden, size: Bytes) -> Iterator[Size]:
    """A tensor goes at its last read."""
    return _alive(graph, hidden, size, last_read=True)


def arena(graph: Graph, hidden: Hidden, size: Bytes) -> Iterator[Size]:
    """One buffer is planned before the stage and held to its end, as large as the most that is alive at once."""
    planned = reduce(maximum, rivals(last_read(graph, hidden, size)), 0)
    return repeat(planned, len(graph.ops))


LIFETIMES: Mapping[str, Rule] = {"names": names, "last_read": last_read, "arena": arena}


def _alive(graph: Graph, hidden: Hidden, size: Bytes, *, last_read: bool) -> Iterator[Size]:
    """The stage's inputs are held to the end by whoever calls it."""
    inputs, dead = _ends(graph, size)
    read = {(r.name, writer) for reads in graph.reads() for r, writer in reads}
    total: Size = sum(inputs.values(), start=0)
    live: dict[str, tuple[str, bool, Size]] = {}
    path = loop = ""
    rounds: dict[str, str] = {}  # what entered the first round -> what enters the next ones
    for index, op in enumerate(graph.ops):
        if op.path != path:
            path = op.path
            for name in [n for n, (frame, _, _) in live.items() if not _within(path, frame)]:
                total = total - live.pop(name)[2]
        if op.node.loop != loop:
            loop, (entering, leaving) = op.node.loop, op.node.held
            held = live.get(entering, ("", False, inputs.get(entering, 0)))[2] * op.node.again
            if leaving != entering and (not last_read or entering in inputs):
                rounds[entering] = leaving
                total = total + held - live.get(leaving, ("", False, 0))[2]
                live[leaving] = (_frame(leaving), False, held)
        writes = [r for r in op.writes if r.role == "activation" and (r.name, index) not in hidden]
        yield total + sum((size(r) * op.again for r in writes), start=0)
        for name in (rounds.get(name, name) for name in dead.get(index, ())):
            if name in live and (last_read or live[name][1]):
                total = total - live.pop(name)[2]
        for r in writes:
            known = live.pop(r.name, None)
            total = total - known[2] if known else total
            if not r.temporary or (r.name, index) in read:
                room = size(r) if known else size(r) * op.again
                total, live[r.name] = total + room, (r.frame, r.temporary, room)


def _ends(graph: Graph, size: Bytes) -> tuple[dict[str, Size], dict[int, list[str]]]:
    """The bytes of the stage's inputs, and the names that are read for the last time, by op."""
    inputs: dict[str, Size] = {}
    last: dict[tuple[str, int], int] = {}
    for index, reads in enumerate(graph.reads()):
        for r, writer in reads:
            if r.role == "activation":
                last[r.name, writer] = index
                if writer < 0:
                    inputs[r.name] = size(r)
    dead: dict[int, list[str]] = {}
    for (name, _), index in last.items():
        dead.setdefault(index, []).append(name)
    return inputs, dead


def _frame(name: str) -> str:
    return name.rpartition(".")[0]


def _within(path: str, frame: str) -> bool:
    return not frame or path == frame or path.startswith(f"{frame}.")
