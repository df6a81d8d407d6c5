"""Timers: the kernels of a stage, looked at once, asked for their seconds on any device at any sizes ever after.

One point is asked in few calls of the laws, for all stages together (`sums_of`). Of many points kernels are asked once
for each distinct value of what they depend on, most of them on a product of sizes (the tokens of all sequences), so
that a sweep over a grid costs little more than its sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, final

import numpy as np

from modelmeter.device import Device
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.asked import asked_of
from modelmeter.seconds.columns import Block, Entry, Product
from modelmeter.seconds.laws import Array
from modelmeter.seconds.predict import Estimate, estimate
from modelmeter.seconds.rows import Rows, Stepped
from modelmeter.sizes import added

DENSE = 8
"""Whole numbers that are among so many times as many are told apart by a table, others by sorting."""
ROOM = 131072
"""Numbers of the largest array that laws make on the way: it stays in cache, and its memory in the process."""
ARRAYS = ("seconds", "low", "high", "roofline", "binds")
"""The fields of an estimate that are arrays."""


class Sums(NamedTuple):
    """Seconds of all kernels by law: low end, point, high end; and how many kernels run."""

    laws: dict[str, list[Array]]
    runs: Array


def by_law(found: Iterable[tuple[str, Sequence[Array]]]) -> dict[str, list[Array]]:
    """Sums of seconds and runs of kernels by law."""
    laws: dict[str, list[Array]] = {}
    for law, own in found:
        laws[law] = [a + b for a, b in zip(laws[law], own, strict=True)] if law in laws else [*own]
    return laws


@final
class Timer:
    """The kernels of a stage, sizes of which are expressions. Raises InputError as `seconds_of` does.

    With `dequantised` products with llama.cpp's blocks are those of copies in 16 bits; `alone` says that the host
    submits each kernel by itself.
    """

    def __init__(
        self, kernels: Sequence[Kernel], step: str = "", dequantised: bool = False, alone: bool = False
    ) -> None:
        self.step = step
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, (kind, sizes) in enumerate(map(asked_of, kernels)):
            key = kind._replace(apart=dequantised and bool(kind.stored), alone=alone)
            alike.setdefault((key, *sizes.items()), []).append(index)
        self._alike = list(alike.values())
        """Kernels that ask the same, by index: they are asked once."""
        self.entries = {
            i: Entry(kind, dict(sizes), added(kernels[index].runs for index in self._alike[i]))
            for i, (kind, *sizes) in enumerate(alike)
        }
        self._rows: dict[tuple[tuple[Timer, int], ...], Rows] = {}

    @cached_property
    def blocks(self) -> list[Block]:
        """The kernels by the variables that they depend on, each asked no more often than these vary."""
        found: dict[tuple[Product, ...], dict[int, Entry]] = {}
        for index, entry in self.entries.items():
            found.setdefault(entry.variables, {})[index] = entry
        return [*map(Block, found.values())]

    def rows(self, *stages: tuple[Timer, int]) -> Rows:
        """The kernels of stages at one point, this among them, each with so many steps; made once."""
        if stages not in self._rows:
            self._rows[stages] = Rows([Stepped(timer.entries, timer.step, steps) for timer, steps in stages])
        return self._rows[stages]

    def estimates(self, device: Device, sizes: Mapping[str, Any]) -> list[Estimate]:
        """The estimate of each kernel at one point, an array over the steps for one that depends on them."""
        found: dict[int, Estimate] = {}
        rows = self.rows((self, np.size(sizes.get(self.step, 0))))
        for call, lasts in rows.lasting([sizes], device):
            told = estimate(call.kind.law, lasts)
            arrays = dict(zip(ARRAYS, np.broadcast_arrays(*(getattr(told, name) for name in ARRAYS)), strict=True))
            for place, row in enumerate(call.rows):
                if row.step is None:
                    own: Any = {name: array[place].item() for name, array in arrays.items()}
                elif row.step == 0:
                    own = {name: array[place : place + np.size(sizes[self.step])] for name, array in arrays.items()}
                if not row.step:
                    found[row.kernel] = replace(told, **own)
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
        steps = 0 if self.weights is None else self.weights.ndim
        return any(np.ndim(size) > (steps and name == self.timer.step) for name, size in self.sizes.items())

    @property
    def at_steps(self) -> tuple[Mapping[str, Any], list[float]]:
        """Its sizes at one point, that of the step a list, and what each step weighs."""
        step = self.timer.step
        sizes = {**self.sizes, step: np.reshape(self.sizes[step], -1).tolist()} if step in self.sizes else self.sizes
        return sizes, [1.0] if self.weights is None else self.weights.tolist()

    def at_points(self) -> Iterator[tuple[str, list[Array]]]:
        """By law the totals of kernels that depend on the same variables."""
        for block in self.timer.blocks:
            in_steps = self.weights is not None and any(self.timer.step in names for names in block.variables)
            values = [prod(self.sizes[name] for name in names) for names in block.variables]
            for law, own in _at_points(block, values, self.device):
                yield law, [self._mean(total) if in_steps and np.ndim(total) else total for total in own]

    def _mean(self, total: Array) -> Array:
        found = np.einsum("s...,s...->...", total, np.asarray(self.weights))
        return found if found.ndim else float(found)


def sums_of(asked: Sequence[AtSizes]) -> list[Sums]:
    """The sums of several stages on one device."""
    found: list[list[tuple[str, Sequence[Array]]]] = [[] for _ in asked]
    if any(one.several for one in asked):
        found = [[*one.at_points()] for one in asked]
    elif asked:
        sizes, weights = zip(*(one.at_steps for one in asked), strict=True)
        stages = [(one.timer, len(own)) for one, own in zip(asked, weights, strict=True)]
        for stage, law, own in asked[0].timer.rows(*stages).totals(sizes, weights, asked[0].device):
            found[stage].append((law, own))
    laws = [*map(by_law, found)]
    return [Sums({law: own[:3] for law, own in of.items()}, sum(own[3] for own in of.values())) for of in laws]


def _at_points(block: Block, given: Sequence[Any], device: Device) -> Iterator[tuple[str, list[Array]]]:
    """By law the totals of a block's kernels at many points, each distinct one asked once."""
    shape = np.broadcast_shapes(*map(np.shape, given))
    columns, places = distinct([size for size in given if np.ndim(size)], shape)
    step, points, rest = max(1, ROOM // block.width), len(columns[0]) if columns else 1, iter(columns)
    values = [next(rest) if np.ndim(size) else size for size in given]
    pieces: dict[str, list[list[Array]]] = {}
    for i in range(0, points, step):
        parts = block.parts([v[i : i + step] if np.ndim(v) else v for v in values])
        for law, own in by_law((part.kind.law, part.totals(device)) for part in parts).items():
            pieces.setdefault(law, []).append(own)
    for law, found in pieces.items():
        yield law, [_spread(total, points, step, places, shape) for total in zip(*found, strict=True)]


def _spread(pieces: Sequence[Array], points: int, step: int, places: Array, shape: tuple[int, ...]) -> Array:
    """Pieces of `step` distinct points at the places of all; a number where these do not differ."""
    if all(len(piece) == 1 for piece in pieces) and (points > 1 or not shape):
        return pieces[0][0]
    wide = [x if len(x) > 1 else np.full(min(step, points - i * step), x) for i, x in enumerate(pieces)]
    return np.concatenate(wide).take(places).reshape(shape)


def distinct(columns: Sequence[Array], shape: tuple[int, ...]) -> tuple[list[Array], Array]:
    """The distinct points of arrays of whole numbers that have a common shape, and the place of each point among them.

    >>> columns, places = distinct([np.array([3.0, 3.0, 5.0]), np.array([1.0])], (3,))
    >>> [column.tolist() for column in columns], places.tolist()
    ([[3.0, 5.0], [1.0, 1.0]], [0, 0, 1])
    """
    lows: list[Array] = [column.min() for column in columns]
    widths = [int(column.max() - low) + 1 for column, low in zip(columns, lows, strict=True)]
    room = prod(widths)
    if room >= 2**53 or any((column != np.floor(column)).any() for column in columns):
        return [np.broadcast_to(column, shape).reshape(-1) for column in columns], np.arange(prod(shape))
    key: Array = np.zeros((), np.intp)
    for column, low, width in zip(columns, lows, widths, strict=True):
        key = key * width + (column - low).astype(np.intp)
    key = np.broadcast_to(key, shape).reshape(-1)
    if room > DENSE * key.size:
        found, places = np.unique(key, return_inverse=True)
    else:
        there = np.zeros(room, bool)
        there[key] = True
        found, place = np.flatnonzero(there), np.empty(room, np.intp)
        place[found] = np.arange(found.size)
        places = place[key]
    parts = np.unravel_index(found, widths) if columns else ()
    return [low + part for low, part in zip(lows, parts, strict=True)], places
