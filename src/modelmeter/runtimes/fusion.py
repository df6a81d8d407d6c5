"""Which loops inductor's scheduler makes one kernel. What is stored before that is told in `inductor.py`.

Two loops become one if one reads what the other stores, or both read the same tensor, they run over the same elements,
and no other kernel has to run between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from modelmeter.graph.ops import Composite, Op
from modelmeter.runtimes.passes import STORED
from modelmeter.sizes import Size


class Loop(NamedTuple):
    """Ops that end in one that is stored; its kind (`loop`, `library`, `silent`) and what it loads."""

    ops: tuple[Op, ...]
    kind: str
    loads: frozenset[tuple[str, object]]

    @property
    def writes(self) -> list[str]:
        """The tensors that it stores."""
        ops = self.ops if self.kind != "loop" else self.ops[-1:]
        return [w.name for op in ops for w in op.writes]

    @property
    def reads(self) -> set[str]:
        """The tensors that it reads."""
        made = {w.name for op in self.ops for w in op.writes}
        return {r.name for op in self.ops for r in op.reads} - made

    @property
    def elements(self) -> Size:
        """How many points it runs over."""
        last = self.ops[-1]
        if last.kind == "copy":  # of several tensors side by side
            return sum((w.touched for w in last.writes), start=0)
        return last.n.elements(last.equation.factors[0].touched) if sums(last) else last.writes[0].touched


def sums(op: Op) -> bool:
    """Whether an op sums over axes."""
    return op.kind == "pointwise" and set(op.output.touched) < set(op.equation.factors[0].touched)


def fused(loops: Sequence[Loop]) -> Iterator[Op]:
    """The ops of all kernels, each with the label of its kernel."""
    groups = _Groups(loops)
    for at in range(len(loops)):
        for other in groups.near(at):
            groups.join(other, at)
    yield from _written(loops, groups.ordered())


class _Groups:
    """Loops that are one kernel, by the place of the first of them."""

    def __init__(self, loops: Sequence[Loop]) -> None:
        self.loops = loops
        maker = {name: at for at, loop in enumerate(loops) for name in loop.writes}
        self.needs = [{maker[name] for name in loop.reads if name in maker} - {at} for at, loop in enumerate(loops)]
        self.needs = [{one for one in needs if one < at} for at, needs in enumerate(self.needs)]
        self.first = list(range(len(loops)))
        self.members = {at: [at] for at in self.first}
        self.readers: dict[tuple[str, object], list[int]] = {}

    def near(self, at: int) -> list[int]:
        """Loops before one that it may join: those that it reads, and those that read what it reads."""
        loop = self.loops[at]
        if loop.kind != "loop":
            return []
        beside = {other for load in loop.loads for other in self.readers.get(load, ())[-8:]}
        for load in loop.loads:
            self.readers.setdefault(load, []).append(at)
        alike = (i for i in self.needs[at] | beside if self.loops[i].kind == "loop")
        return sorted((i for i in alike if self.loops[i].elements == loop.elements), reverse=True)

    def join(self, one: int, at: int) -> None:
        """Make two loops one kernel unless another has to run between them."""
        a, b = self.first[one], self.first[at]
        if a == b or self._between(a, b):
            return
        a, b = min(a, b), max(a, b)
        self.members[a] = sorted(self.members[a] + self.members.pop(b))
        for i in self.members[a]:
            self.first[i] = a

    def _between(self, a: int, b: int) -> bool:
        """Whether one of two kernels waits for the other by way of a third."""
        return self._waits(a, b) or self._waits(b, a)

    def _waits(self, a: int, b: int) -> bool:
        """Whether b waits for a by way of a third."""
        least = min(self.members[a])
        seen, todo = {b}, [self.first[i] for m in self.members[b] for i in self.needs[m] if self.first[i] not in (a, b)]
        while todo:
            group = todo.pop()
            if group == a:
                return True
            if group in seen or max(self.members[group]) < least:
                continue
            seen.add(group)
            todo += [self.first[i] for m in self.members[group] for i in self.needs[m]]
        return False

    def ordered(self) -> Iterator[list[int]]:
        """The kernels in order, each behind those that it needs."""
        done: set[int] = set()

        def visit(group: int) -> Iterator[list[int]]:
            if group in done:
                return
            done.add(group)
            for i in sorted({self.first[i] for m in self.members[group] for i in self.needs[m]}):
                yield from visit(i)
            yield self.members[group]

        for group in sorted(self.members):
            yield from visit(group)


def _written(loops: Sequence[Loop], groups: Iterator[list[int]]) -> Iterator[Op]:
    """The ops of each kernel; what several kernels compute has a name in each, and counts as work once."""
    known: set[str] = set()
    for number, members in enumerate(groups):
        here: dict[str, str] = {}
        made: set[str] = set()
        label = f"loop {number}"
        for at in members:
            loop = loops[at]
            if loop.kind != "loop":
                yield from loop.ops
                continue
            for op in loop.ops:
                name = op.writes[0].name
                if name in made:
                    continue
                made.add(name)
                stored = op is loop.ops[-1]
                again = name in known and not stored and op.writes[0].role != "kv"
                here |= {w.name: f"{w.name}^{number}" if again else w.name for w in op.writes}
                known.add(name)
                yield op._replace(
                    reads=tuple(r._replace(name=here.get(r.name, r.name)) for r in op.reads),
                    writes=tuple(w._replace(name=here.get(w.name, w.name)) for w in op.writes),
                    cuda=0 if again else op.cuda, kernel=label,
                    composite=Composite(STORED if stored and sums(op) else "loop", label),
                )  # fmt: skip
