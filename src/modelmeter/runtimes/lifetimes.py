"""How long tensors live: what is alive while each op runs. A runtime names one of these rules.

`names`: as Python holds them. `last_read`: as a compiler frees them. `arena`: one buffer for all, planned ahead.
`in_place`: such a buffer, where pointwise work takes the place of an operand that it reads for the last time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce
from itertools import repeat

from modelmeter.graph.graph import Graph, Read
from modelmeter.graph.ops import Ref
from modelmeter.sizes import Size, maximum, rivals

Hidden = frozenset[tuple[str, int]]
Bytes = Callable[[Ref], Size]
Rule = Callable[[Graph, Hidden, Bytes], Iterator[Size]]
"""Graph, tensors that never are in memory (name and writer), bytes of a tensor -> bytes alive while each op runs."""
_IN_PLACE = frozenset({"pointwise", "norm", "softmax"})
"""Kinds of ops whose result may take the place of an operand."""


def _alive(graph: Graph, hidden: Hidden, size: Bytes, *, last_read: bool, in_place: bool = False) -> Iterator[Size]:
    """The stage's inputs are held to the end by whoever calls it."""
    users = graph.users(range(len(graph.ops)))
    given = (r for reads in graph.reads for r, writer in reads if writer < 0 and r.role == "activation")
    inputs = {r.name: size(r) for r in given}
    total: Size = sum(inputs.values(), start=0)
    dying, live = _last_reads(users), dict[str, tuple[str, bool, Size]]()
    collected = _collected(graph, hidden)
    collecting = {w.name for found in collected.values() for w in found}
    loop, rounds = "", dict[str, str]()  # what entered the first round -> what enters the next ones
    for index, op in enumerate(graph.ops):
        place = f"{op.path}."
        for name in [n for n, (frame, _, _) in live.items() if not place.startswith(frame)]:
            total = total - live.pop(name)[2]
        if op.node.loop != loop:
            loop, (entering, leaving) = op.node.loop, op.node.held
            for w in collected.get(loop, ()):
                before = size(w._replace(stored=w.stored - w.touched))
                total, live[w.name] = total + before, (f"{w.frame}." if w.frame else "", False, before)
            held = live.get(entering, ("", False, inputs.get(entering, 0)))[2] * op.node.again
            if leaving != entering and (not last_read or entering in inputs):
                rounds[entering] = leaving
                total = total + held - live.get(leaving, ("", False, 0))[2]
                live[leaving] = (leaving[: leaving.rfind(".") + 1], False, held)
        writes = [r for r in op.writes if r.role == "activation" and (r.name, index) not in hidden]
        made = (r._replace(stored=r.touched) if r.name in collecting else r for r in writes)
        taken = reused(graph, index, users) if in_place else None
        before = live.get(rounds.get(taken.ref.name, taken.ref.name)) if taken else None
        yield total + sum((size(r) * op.again for r in made), start=-before[2] if before else 0)
        for name in (rounds.get(name, name) for name in dying.get(index, ())):
            if name in live and (last_read or live[name][1]):
                total = total - live.pop(name)[2]
        for r in writes:
            known = live.pop(r.name, None)
            total = total - known[2] if known else total
            if not r.temporary or (r.name, index) in users:
                room = size(r) if known else size(r) * op.again
                total, live[r.name] = total + room, (f"{r.frame}." if r.frame else "", r.temporary, room)


def _collected(graph: Graph, hidden: Hidden) -> dict[str, list[Ref]]:
    """What the layers around a loop keep of each of its rounds, by loop: a round writes its share of it."""
    found: dict[str, list[Ref]] = {}
    for index, op in enumerate(graph.ops):
        for w in op.writes if op.node.loop and op.kind != "constant" else ():
            outside = w.role == "activation" and not f"{w.frame}.".startswith(f"{op.node.loop}.")
            if outside and w.stored != w.touched and (w.name, index) not in hidden:
                found.setdefault(op.node.loop, []).append(w)
    return found


def _last_reads(users: Mapping[tuple[str, int], set[int]]) -> dict[int, list[str]]:
    """The names that are read for the last time, by op."""
    found: dict[int, list[str]] = {}
    for (name, _), indices in users.items():
        found.setdefault(max(indices), []).append(name)
    return found


def reused(graph: Graph, index: int, users: Mapping[tuple[str, int], set[int]]) -> Read | None:
    """The operand whose place the result of an op takes: the first as large that it, and no view, reads last."""
    op = graph.ops[index]
    if op.kind not in _IN_PLACE or len(op.writes) != 1:
        return None
    for read in (read for read in graph.reads[index] if read.writer >= 0 and read.ref.role == "activation"):
        readers = users[read.ref.name, read.writer]
        alike = (read.ref.bits, read.ref.stored) == (op.writes[0].bits, op.writes[0].stored)
        if alike and max(readers) == index and all(graph.ops[i].kind != "view" for i in readers):
            return read
    return None


def _arena(graph: Graph, hidden: Hidden, size: Bytes, *, alive: Rule) -> Iterator[Size]:
    """One buffer is planned before the stage and held to its end, as large as the most that is alive at once."""
    planned = reduce(maximum, rivals(alive(graph, hidden, size)), 0)
    return repeat(planned, len(graph.ops))


names: Rule = partial(_alive, last_read=False)
"""A name holds its tensor until it is rebound or its layer returns; a temporary goes at its last read.

The caller of a repeated layer holds what entered the first round while the next ones run.
"""
last_read: Rule = partial(_alive, last_read=True)
"""A tensor goes at its last read."""
arena: Rule = partial(_arena, alive=last_read)
"""One buffer, as large as the most that `last_read` has alive at once."""
in_place: Rule = partial(_arena, alive=partial(_alive, last_read=True, in_place=True))
"""The same, where results take the place of operands; gaps between tensors are left out (`planner.py` has them)."""
LIFETIMES: Mapping[str, Rule] = {"names": names, "last_read": last_read, "arena": arena, "in_place": in_place}
