"""How long tensors live: what is alive while each op runs. A runtime names one of these rules.

`names`: as Python holds them. `last_read`: as a compiler frees them. `arena`: one buffer for all, planned ahead.
`in_place`: such a buffer, where pointwise work takes the place of an operand that it reads for the last time.
`launched`: as generated code frees them, kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce
from itertools import groupby, repeat
from typing import Any

from modelmeter.graph.graph import Graph, Read
from modelmeter.graph.ops import Ref
from modelmeter.sizes import Size, maximum, rivals

Hidden = frozenset[tuple[str, int]]
Bytes = Callable[[Ref], Size]
Rule = Callable[[Graph, Hidden, Bytes], Iterator[Size]]
"""Graph, tensors that never are in memory (name and writer), bytes of a tensor -> bytes alive while each op runs."""
_IN_PLACE = frozenset({"pointwise", "norm", "softmax"})
"""Kinds of ops whose result may take the place of an operand."""


class _Live:
    """What is alive, by name: the frame that ends it, whether it is temporary, its bytes; and the sum of them all."""

    def __init__(self, total: Size) -> None:
        self.total, self.held = total, dict[str, tuple[str, bool, Size]]()

    def room(self, name: str) -> Size:
        return self.held[name][2] if name in self.held else 0

    def drop(self, name: str) -> None:
        self.total = self.total - self.room(name)
        self.held.pop(name, None)

    def hold(self, name: str, frame: str, room: Size, temporary: bool = False) -> None:
        """This in place of what the name held before."""
        self.drop(name)
        self.total, self.held[name] = self.total + room, (f"{frame}." if frame else "", temporary, room)

    def leave(self, path: str) -> None:
        """End what belongs to frames that a path is not in."""
        for name in [name for name, (frame, _, _) in self.held.items() if not f"{path}.".startswith(frame)]:
            self.drop(name)


def _alive(graph: Graph, hidden: Hidden, size: Bytes, *, last_read: bool, in_place: bool = False) -> Iterator[Size]:
    """The stage's inputs are held to the end by whoever calls it."""
    users = graph.users(range(len(graph.ops)))
    given = (r for reads in graph.reads for r, writer in reads if writer < 0 and r.role == "activation")
    inputs = {r.name: size(r) for r in given}
    live, dying, collected = _Live(sum(inputs.values(), start=0)), _last_reads(users), _collected(graph, hidden)
    collecting = {w.name for found in collected.values() for w in found}
    loop, rounds = "", dict[str, str]()  # what entered the first round -> what enters the next ones
    for index, op in enumerate(graph.ops):
        live.leave(op.path)
        if op.node.loop != loop:
            loop, (entering, leaving) = op.node.loop, op.node.held
            for w in collected.get(loop, ()):
                live.hold(w.name, w.frame, size(w._replace(stored=w.stored - w.touched)))
            if leaving != entering and (not last_read or entering in inputs):
                rounds[entering] = leaving
                entered = live.room(entering) if entering in live.held else inputs.get(entering, 0)
                live.hold(leaving, leaving.rpartition(".")[0], entered * op.node.again)
        writes = [r for r in op.writes if r.role == "activation" and (r.name, index) not in hidden]
        made = (r._replace(stored=r.touched) if r.name in collecting else r for r in writes)
        taken = reused(graph, index, users) if in_place else None
        place = live.room(rounds.get(taken.ref.name, taken.ref.name)) if taken else 0
        yield live.total + sum((size(r) * op.again for r in made), start=0 - place)
        for name in (rounds.get(name, name) for name in dying.get(index, ())):
            if name in live.held and (last_read or live.held[name][1]):
                live.drop(name)
        for r in writes:
            again = 1 if r.name in live.held else op.again
            live.drop(r.name)
            if not r.temporary or (r.name, index) in users:
                live.hold(r.name, r.frame, size(r) * again, r.temporary)


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


def launched(graph: Graph, hidden: Hidden, size: Bytes) -> Iterator[Size]:
    """What a kernel makes is there when it starts, what it reads last goes when it is done; results that nobody reads
    stay. A result of a loop takes the place of an operand as large that no later one reads.
    """
    labels = graph.labels
    users = graph.users(range(len(labels)))
    given = {r.name: size(r) for found in graph.reads for r, at in found if at < 0 and r.role == "activation"}
    held, total = dict[tuple[str, int], Size](), sum(given.values(), start=0)
    for _, group in groupby(range(len(labels)), lambda index: labels[index]):
        indices = list(group)
        writes = ((w, i) for i in indices for w in graph.ops[i].writes if w.role == "activation")
        made = {(w.name, i): size(w) * graph.ops[i].again for w, i in writes if (w.name, i) not in hidden}
        read = dict.fromkeys((r.name, at) for i in indices for r, at in graph.reads[i])
        dying = [one for one in read if (one in held or one in made) and max(users[one]) <= indices[-1]]
        sources = _sources(graph, indices, made)
        final = {one: result for result, found in sources.items() for one in found}
        total, taken = total + sum(made.values(), start=0), dict[tuple[str, int], Size]()
        for result in sources:
            moved = graph.reads[result[1]] if graph.ops[result[1]].kind == "copy" else ()  # to other places
            fits = (one for one in dying if final.get(one) == result and one in held and one not in taken)
            fits = (one for one in fits if one not in [(r.name, at) for r, at in moved])
            place = next((one for one in fits if held[one] == made.get(result)), None)
            if place:
                taken[place] = held[place]
        yield from repeat(total - sum(taken.values(), start=0), len(indices))
        held |= made
        total = total - sum((held.pop(one) for one in dying), start=0)


def _sources(graph: Graph, indices: list[int], made: Mapping[tuple[str, int], Size]) -> dict[tuple[str, int], set[Any]]:
    """What each result of a generated kernel is computed from, by result; of a library's kernel nothing is told."""
    found: dict[int, set[Any]] = {}
    if any(graph.ops[i].kind in ("matmul", "conv2d") for i in indices):
        return {}
    for i in indices:
        found[i] = set()
        for r, at in graph.reads[i]:
            found[i] |= found[at] if at in found and (r.name, at) not in made else {(r.name, at)}
    return {result: found[result[1]] for result in made}


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
_RULES = {"names": names, "last_read": last_read, "arena": arena, "in_place": in_place}
LIFETIMES: Mapping[str, Rule] = _RULES | {"launched": launched}
