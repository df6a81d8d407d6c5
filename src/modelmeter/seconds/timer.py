"""Timers: the kernels of a stage, looked at once, asked for their seconds on any device at any sizes ever after.

One point is asked in few calls of the laws, for all stages together (`sums_of`). Of many points kernels are asked once
for each distinct value of the sizes that they depend on, so that a sweep over a grid costs little more than its sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np

from modelmeter.device import Device
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.asked import asked_of
from modelmeter.seconds.columns import Block, Entry, totals
from modelmeter.seconds.laws import Array
from modelmeter.seconds.predict import Estimate, estimate, rows
from modelmeter.sizes import added

DENSE = 8
"""Whole numbers that are among so many times as many are told apart by a table, others by sorting."""
ELEMENTS = 8192
"""Kernels x points of a block that are asked at once, so that what laws compute on the way stays in cache."""
ARRAYS = ("seconds", "low", "high", "roofline", "binds")
"""The fields of an estimate that are arrays."""


class Sums(NamedTuple):
    """Seconds of all kernels by law: low end, point, high end; and how many kernels run."""

    laws: dict[str, list[Array]]
    runs: Array


@final
class Timer:
    """The kernels of a stage, sizes of which are expressions. Raises InputError as `seconds_of` does.

    With `dequantised` products with llama.cpp's blocks are those of copies in 16 bits.
    """

    def __init__(self, kernels: Sequence[Kernel], step: str = "", dequantised: bool = False) -> None:
        self.step = step
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, (kind, sizes) in enumerate(map(asked_of, kernels)):
            key = kind._replace(apart=dequantised and bool(kind.stored))
            alike.setdefault((key, *sizes.items()), []).append(index)
        self._alike = list(alike.values())
        """Kernels that ask the same, by index: they are asked once."""
        self._entries = {
            i: Entry(kind, dict(sizes), added(kernels[index].runs for index in self._alike[i]))
            for i, (kind, *sizes) in enumerate(alike)
        }

    @cached_property
    def apart(self) -> list[Block]:
        """The kernels by the names that they depend on, each asked no more often than these vary."""
        return self._blocks(lambda names: names)

    @cached_property
    def together(self) -> list[Block]:
        """The kernels by whether they depend on the step: for one point, in few calls."""
        return self._blocks(lambda names: names & {self.step})

    def _blocks(self, key: Callable[[frozenset[str]], frozenset[str]]) -> list[Block]:
        found: dict[frozenset[str], dict[int, Entry]] = {}
        for index, entry in self._entries.items():
            found.setdefault(key(entry.names), {})[index] = entry
        return [*map(Block, found.values())]

    def estimates(self, device: Device, sizes: Mapping[str, Any]) -> list[Estimate]:
        """The estimate of each kernel at one point, an array over the steps for one that depends on them."""
        found: dict[int, Estimate] = {}
        for block in self.together:
            for part in block.parts([sizes[name] for name in block.names]):
                told = estimate(part.kind.law, part.lasting(device))
                flat = (
                    told if self.step in block.names else replace(told, **{f: getattr(told, f)[:, 0] for f in ARRAYS})
                )
                found |= zip(part.indices, rows(flat), strict=True)
        places = {index: i for i, indices in enumerate(self._alike) for index in indices}
        return [found[places[index]] for index in sorted(places)]


class AtSizes(NamedTuple):
    """A timer's kernels on a device at sizes by name, numbers or arrays of points.

    With `weights` it is their mean over steps: sizes of the timer's step have an axis of steps before that of points.
    """

    timer: Timer
    device: Device
    sizes: Mapping[str, Any]
    weights: Array | None = None

    @property
    def several(self) -> bool:
        """Whether it is asked at several points."""
        varying = (size for name, size in self.sizes.items() if self.weights is None or name != self.timer.step)
        return any(isinstance(size, np.ndarray) for size in varying)

    def values(self, block: Block) -> list[Any]:
        """The sizes of a block in the order of its names."""
        return [self.sizes[name] for name in block.names]

    def summed(self, found: Sequence[tuple[Block, str, list[Array]]]) -> Sums:
        """The sums of totals of blocks, by law."""
        laws: dict[str, list[Array]] = {}
        for block, law, own in found:
            if self.weights is not None and self.timer.step in block.names:
                own = [_mean(total, self.weights) if np.ndim(total) else total for total in own]
            laws[law] = [a + b for a, b in zip(laws.get(law, [0.0] * 4), own, strict=True)]
        return Sums({law: own[:3] for law, own in laws.items()}, sum(own[3] for own in laws.values()))


def _mean(total: Array, weights: Array) -> Array:
    """A weighted mean over the first axis; a plain number of one point."""
    found = (total * weights).sum(axis=0)
    return found if found.ndim else float(found)


def sums_of(asked: Sequence[AtSizes]) -> list[Sums]:
    """The sums of several stages on one device."""
    if any(one.several for one in asked):
        return [one.summed([*_at_points(one)]) for one in asked]
    blocks = [(i, block) for i, one in enumerate(asked) for block in one.timer.together]
    parts = [(i, block, part) for i, block in blocks for part in block.parts(asked[i].values(block))]
    found: list[list[tuple[Block, str, list[Array]]]] = [[] for _ in asked]
    every = totals([part for *_, part in parts], asked[0].device) if parts else []
    for (i, block, part), own in zip(parts, every, strict=True):
        found[i].append((block, part.kind.law, [float(total[0]) if len(total) == 1 else total for total in own]))
    return [one.summed(own) for one, own in zip(asked, found, strict=True)]


def _at_points(asked: AtSizes) -> Iterator[tuple[Block, str, list[Array]]]:
    """The totals of each block's parts at many points, each distinct one asked once."""
    for block in asked.timer.apart:
        given = asked.values(block)
        shape = np.broadcast_shapes(*map(np.shape, given))
        columns, places = distinct([size for size in given if np.ndim(size)], shape)
        step, points, rest = max(1, ELEMENTS // block.many), len(columns[0]) if columns else 1, iter(columns)
        values = [next(rest) if np.ndim(size) else size for size in given]
        pieces = []
        for i in range(0, points, step):
            parts = [*block.parts([v[i : i + step] if np.ndim(v) else v for v in values])]
            pieces.append([*zip(parts, totals(parts, asked.device), strict=True)])
        for same in zip(*pieces, strict=True):
            own = zip(*(found for _, found in same), strict=True)
            yield block, same[0][0].kind.law, [_spread(total, points, step, places, shape) for total in own]


def _spread(pieces: Sequence[Array], points: int, step: int, places: Array, shape: tuple[int, ...]) -> Array:
    """Pieces of `step` distinct points at the places of all; a number where these do not differ."""
    if all(len(piece) == 1 for piece in pieces) and (points > 1 or not shape):
        return pieces[0][0]
    wide = [np.broadcast_to(piece, (min(step, points - i * step),)) for i, piece in enumerate(pieces)]
    return np.concatenate(wide).take(places).reshape(shape)


def distinct(columns: Sequence[Array], shape: tuple[int, ...]) -> tuple[list[Array], Array]:
    """The distinct points of arrays of whole numbers that have a common shape, and the place of each point among them.

    >>> columns, places = distinct([np.array([3.0, 3.0, 5.0]), np.array([1.0])], (3,))
    >>> [column.tolist() for column in columns], places.tolist()
    ([[3.0, 5.0], [1.0, 1.0]], [0, 0, 1])
    """
    flat = [np.broadcast_to(column, shape).reshape(-1) for column in columns]
    key, room = np.zeros(shape).reshape(-1), 1.0
    for column in flat:
        low = column.min()
        width = column.max() - low + 1
        key, room = key * width + (column - low), room * width
    if room >= 2**53 or any((column % 1).any() for column in columns):
        return flat, np.arange(key.size)
    if room > DENSE * key.size:
        _, first, places = np.unique(key, return_index=True, return_inverse=True)
    else:
        whole = key.astype(np.intp)
        last = np.full(int(room), -1)
        last[whole] = np.arange(whole.size)
        there = last >= 0
        first, places = last[there], (np.cumsum(there) - 1).take(whole)
    return [column.take(first) for column in flat], places
