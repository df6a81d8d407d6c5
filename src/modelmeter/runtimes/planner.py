"""Where the tensors of a graph lie in one buffer, as ggml's allocator plans it before anything runs.

The plan needs numbers: which gap fits best depends on them. What is alive at once, a lower bound that is an expression,
is told by `lifetimes.py`. Every round of a repeated layer is planned, as gaps that earlier ones leave are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref
from modelmeter.runtimes.lifetimes import Hidden, reused

ALIGNMENT = 32
"""Bytes to which ggml's CPU buffers align a tensor."""


class _Buffer:
    """Gaps of a buffer by where they begin; the last has no end. `bytes` is the most that was in use."""

    def __init__(self) -> None:
        self.gaps: list[tuple[int, int]] = [(0, 1 << 62)]
        self.bytes = 0

    def take(self, size: int) -> tuple[int, int]:
        """A place: the smallest gap that fits, the later of equal ones, else the end."""
        fits = [(end - start, -start) for start, end in self.gaps[:-1] if end - start >= size]
        start = -min(fits)[1] if fits else self.gaps[-1][0]
        self.gaps = [(a + size * (a == start), b) for a, b in self.gaps if a != start or b - a > size]
        self.bytes = max(self.bytes, start + size)
        return start, start + size

    def free(self, place: tuple[int, int]) -> None:
        """Give a place back; gaps side by side are one."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self.gaps, place]):
            if merged and merged[-1][1] == start:
                start, _ = merged.pop()
            merged.append((start, end))
        self.gaps = merged


def planned_bytes(graph: Graph, hidden: Hidden, size: Callable[[Ref], int], rounds: Callable[[Op], int]) -> int:
    """The bytes of the buffer that holds a graph's activations; `rounds`: how often an op's layer runs.

    `hidden` are tensors that never are in memory (name and writer).
    """
    ops = list(unrolled(graph, rounds))
    whole = graph.with_ops(op for _, op in ops)
    users = whole.users(range(len(ops)))
    last = {made: max(indices) for made, indices in users.items()}
    buffer, places = _Buffer(), dict[tuple[str, int], tuple[int, int]]()
    for index, ((origin, op), reads) in enumerate(zip(ops, whole.reads, strict=True)):
        again = reused(whole, index, users)
        for r in (r for r in op.writes if r.role == "activation" and (r.name, origin) not in hidden):
            need = -(-size(r) // ALIGNMENT) * ALIGNMENT
            kept = places.pop((again.ref.name, again.writer), None) if again else None
            if need:
                places[r.name, index] = kept or buffer.take(need)
        for made in dict.fromkeys((r.name, writer) for r, writer in reads):
            if last[made] == index and made in places:
                buffer.free(places.pop(made))
    return buffer.bytes


def unrolled(graph: Graph, rounds: Callable[[Op], int]) -> Iterator[tuple[int, Op]]:
    """The ops of every round, each with its index in the graph: what a round leaves enters the next one."""
    for loop, group in groupby(enumerate(graph.ops), lambda pair: pair[1].node.loop):
        ops = list(group)
        entering, leaving = ops[0][1].node.held
        yield from ops
        later = [(i, _renamed(op, entering, leaving)) for i, op in ops] if loop else []
        for _ in range(1, rounds(ops[0][1]) if loop else 1):
            yield from later


def _renamed(op: Op, entering: str, leaving: str) -> Op:
    return op._replace(reads=tuple(r._replace(name=leaving) if r.name == entering else r for r in op.reads))
