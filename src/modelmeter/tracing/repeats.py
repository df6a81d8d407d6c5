"""Identical consecutive modules of a list as one, times their number.

Two are identical if their operators are: kinds, axes, work, and operands by where they come from: made in the module
itself, made at the same place of the one before it, the same tensor outside, a weight or cache of the same name.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from modelmeter.tracing.records import Operand, Record, Run

Block = tuple[int, int]
"""The records of one module: from, to (exclusive)."""


def folded(run: Run) -> Run:
    """The run with what repeats as one, inner lists first."""
    for path in sorted(run.lists, key=lambda p: (-p.count("."), p)):
        for blocks in _consecutive(run.records, path):
            run = _Fold(run, path, blocks).run
    return run


def _child(record: Record, path: str) -> int | None:
    """The number of the module of a list that a record is in."""
    head = f"{path}." if path else ""
    if not record.path.startswith(head):
        return None
    number = record.path[len(head) :].partition(".")[0]
    return int(number) if number.isdigit() else None


def _consecutive(records: Sequence[Record], path: str) -> Iterator[list[Block]]:
    """Runs of neighbouring modules of a list, each module once, the last run first."""
    blocks: list[tuple[int, int, int]] = []
    for index, record in enumerate(records):
        child = _child(record, path)
        if child is None:
            continue
        if blocks and blocks[-1][0] == child and blocks[-1][2] == index:
            blocks[-1] = (child, blocks[-1][1], index + 1)
        else:
            blocks.append((child, index, index + 1))
    found: list[list[tuple[int, int, int]]] = []
    for block in blocks:
        last = found[-1][-1] if found else None
        if last and (last[0] + 1, last[2]) == block[:2]:
            found[-1].append(block)
        else:
            found.append([block])
    for several in reversed(found):
        yield [(start, end) for _, start, end in several]


class _Fold:
    """Blocks of one run of neighbours, folded; `run` is the result."""

    def __init__(self, run: Run, path: str, blocks: Sequence[Block]) -> None:
        self.run, self.path, self.blocks = run, f"{path}." if path else "", list(blocks)
        self.names = {start: self._name(start) for start, _ in blocks}
        self.made = [self._positions(block) for block in blocks]
        groups = self._groups()
        for first, last in reversed(groups):
            self._merge(first, last)

    def _name(self, start: int) -> str:
        return self.path + self.run.records[start].path[len(self.path) :].partition(".")[0]

    def _positions(self, block: Block) -> dict[int, tuple[int, int]]:
        """Where a block makes a storage that was not there before: record and place among its results."""
        found: dict[int, tuple[int, int]] = {}
        start, end = block
        given = {o.storage for r in self.run.records[:start] for o in (*r.reads, *r.writes)}
        for index in range(start, end):
            record = self.run.records[index]
            for place, o in enumerate(record.writes):
                if self.run.storages[o.storage].role == "activation" and o.storage not in given:
                    found.setdefault(o.storage, (index - start, place))
        return found

    def _source(self, storage: int, block: int) -> tuple[Any, ...]:
        """Where an operand comes from."""
        kept, own = self.run.storages[storage], self.names[self.blocks[block][0]]
        if storage in self.made[block]:
            return ("own", *self.made[block][storage])
        if kept.role in ("weight", "kv") and kept.name.startswith(f"{own}."):
            return ("named", kept.name[len(own) :], kept.role, kept.bits, kept.elements)
        if block and storage in self.made[block - 1]:
            return ("before", *self.made[block - 1][storage])
        return ("outside", storage)

    def _signature(self, block: int) -> list[Hashable]:
        """A block as what makes it what it is."""
        start, end = self.blocks[block]
        own, found = self.names[start], list[Hashable]()
        for record in self.run.records[start:end]:
            operands = tuple(
                (self._source(o.storage, block), o.axes, o.touched) for o in (*record.reads, *record.writes)
            )
            kind, _, number = record.label.partition(":")
            label = (kind, int(number) - start) if number else ()
            what = (record.name, record.kind, record.factors, record.tensor, record.cuda, record.over, record.grad)
            where = (record.path[len(own) :], record.times, record.loop[len(own) :], label)
            found.append((*what, *where, tuple(record.axes.items()), operands))
        return found

    def _groups(self) -> list[tuple[int, int]]:
        """First and last block of each run of identical ones, of two or more."""
        signatures = [self._signature(block) for block in range(len(self.blocks))]
        found, first = [], 0
        for block in range(1, len(self.blocks) + 1):
            alike = block < len(self.blocks) and self._alike(signatures, first, block)
            if not alike:
                if block - first > 1:
                    found.append((first, block - 1))
                first = block
        return found

    def _alike(self, signatures: list[list[Any]], first: int, block: int) -> bool:
        """Whether a block is as those from `first` on; what enters the first comes from elsewhere."""
        if block > first + 1:
            return signatures[block] == signatures[block - 1]
        one, other = signatures[first], signatures[block]
        if len(one) != len(other):
            return False
        entering: dict[Any, Any] = {}
        for a, b in zip(one, other, strict=True):
            if a[:-1] != b[:-1] or len(a[-1]) != len(b[-1]):
                return False
            for (source, *rest), (theirs, *their_rest) in zip(a[-1], b[-1], strict=True):
                moved = theirs[0] == "before" and source[0] in ("before", "outside")
                if rest != their_rest or (source != theirs and not moved):
                    return False
                if moved and entering.setdefault(theirs, source) != source:
                    return False
        return True

    def _merge(self, first: int, last: int) -> None:
        """Keep the first of identical blocks, which then runs as often as there are blocks."""
        run, (start, end), (_, stop) = self.run, self.blocks[first], self.blocks[last]
        own, final, times = self.names[start], self.names[self.blocks[last][0]], last - first + 1
        name, carried = f"{own}-{final[len(self.path) :]}", self._carried(first)
        places = {place: storage for storage, place in self.made[first].items()}
        renamed = {storage: places[place] for storage, place in self.made[last].items()}
        records = [self._repeated(r, own, name, times) for r in run.records[start:end]]
        records = [*run.records[:start], *records, *(_renamed(r, renamed) for r in run.records[stop:])]
        storages = list(run.storages)
        for index, s in enumerate(storages):
            if s.name.startswith(f"{own}.") and s.role in ("weight", "kv"):
                storages[index] = replace(s, name=name + s.name[len(own) :])
        folded_away = {s for block in range(first + 1, last + 1) for s in self._named(block)}
        weights = {n: i for n, i in run.weights.items() if i not in folded_away}
        inner = [path for path in run.classes if f"{path}.".startswith(f"{own}.")]
        classes = run.classes | {name + path[len(own) :]: run.classes[path] for path in inner}
        lives = self._lives(first, last, renamed)
        for index, dies in lives.items():
            storages[index] = replace(storages[index], dies=dies)
        self.run = replace(run, records=records, storages=storages, weights=weights, classes=classes)
        self.run.loops[name] = carried

    def _named(self, block: int) -> set[int]:
        """The weights of a block's own."""
        head = f"{self.names[self.blocks[block][0]]}."
        return {i for i, s in enumerate(self.run.storages) if s.role == "weight" and s.name.startswith(head)}

    def _repeated(self, record: Record, own: str, name: str, times: int) -> Record:
        loop = name + record.loop[len(own) :] if record.loop else name
        return replace(record, path=name + record.path[len(own) :], times=record.times * times, loop=loop)

    def _carried(self, first: int) -> tuple[int, int] | None:
        """What enters the first block and is held in the next, and what enters that: storages, if there is one pair.

        What is gone by then has a name that the caller binds anew in each round.
        """
        places = {place: storage for storage, place in self.made[first].items()}
        pairs = set()
        for one, other in zip(self._signature(first), self._signature(first + 1), strict=True):
            for (source, *_), (theirs, *_) in zip(one[-1], other[-1], strict=True):  # type: ignore[index]
                if theirs[0] == "before":
                    entering = source[1] if source[0] == "outside" else -1
                    pairs.add((entering, places[theirs[1:]]))
        entering, leaving = pairs.pop() if len(pairs) == 1 else (-1, -1)
        dies = self.run.storages[entering].dies if entering >= 0 else None
        gone = dies is not None and dies <= self.run.records[self.blocks[first][1] - 1].number
        return None if leaving < 0 or gone else (entering, leaving)

    def _lives(self, first: int, last: int, renamed: dict[int, int]) -> dict[int, int | None]:
        """When storages end, by the records that stay: those of later blocks end where the first one's do."""
        numbers = [r.number for r in self.run.records]
        start, end = self.blocks[first]
        found: dict[int, int | None] = {}
        dropped = {}
        for block in range(first + 1, last + 1):
            begin, finish = self.blocks[block]
            for offset in range(finish - begin):
                dropped[numbers[begin + offset]] = numbers[start + offset]
        for index, s in enumerate(self.run.storages):
            if s.dies in dropped:
                found[index] = dropped[s.dies]
        for storage, kept in renamed.items():
            one, final = self.run.storages[kept], self.run.storages[storage]
            inside = one.dies is not None and one.dies <= numbers[end - 1]
            if not inside:
                found[kept] = final.dies
        return found


def _renamed(record: Record, renamed: dict[int, int]) -> Record:
    """A record that reads what is left of folded blocks."""

    def moved(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
        return tuple(o._replace(storage=renamed.get(o.storage, o.storage)) for o in operands)

    return replace(record, reads=moved(record.reads), writes=moved(record.writes))
