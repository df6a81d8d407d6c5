"""Columns: kernels whose sizes depend on the same names, as columns of sizes that laws take. Next: `timer.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.asked import Kind
from modelmeter.seconds.laws import Array
from modelmeter.seconds.predict import Lasting, lasting_of
from modelmeter.sizes import Evaluator, Expr, Size

RUNS = "runs"


class Entry(NamedTuple):
    """What a kernel asks, and how often it runs."""

    kind: Kind
    sizes: Mapping[str, Size]
    runs: Size

    @property
    def names(self) -> frozenset[str]:
        """The named sizes that its own depend on."""
        every = (*self.sizes.values(), self.runs)
        return frozenset(name for size in every if isinstance(size, Expr) for name in size.names)


class Part(NamedTuple):
    """Kernels of a block that ask the same kind, by index, at some points: sizes and runs, (kernels, points).

    There is one point where these do not differ.
    """

    kind: Kind
    indices: tuple[int, ...]
    sizes: dict[str, Array]
    runs: Array

    def lasting(self, device: Device) -> Lasting:
        """Seconds of one run of each."""
        return lasting_of(self.kind, self.sizes, device)


class Block:
    """Kernels whose sizes depend on the same `names`; those that ask the same kind of a law are a part."""

    def __init__(self, kernels: Mapping[int, Entry]) -> None:
        self.names = tuple(sorted(frozenset().union(*(entry.names for entry in kernels.values()))))
        self.many = len(kernels)
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for index, entry in kernels.items():
            kinds.setdefault((entry.kind, *entry.sizes), []).append(index)
        outputs: list[Size] = []
        self._parts: list[tuple[Kind, tuple[int, ...], dict[str, Array | slice]]] = []
        for (kind, *names), indices in kinds.items():
            columns: dict[str, Array | slice] = {}
            for name in (*names, RUNS):
                values = [kernels[i].runs if name == RUNS else kernels[i].sizes[name] for i in indices]
                columns[name] = np.array(values, float)[:, None] if not _varies(values) else slice(
                    len(outputs), len(outputs) + len(values)
                )  # fmt: skip
                outputs += values if _varies(values) else []
            self._parts.append((kind, tuple(indices), columns))
        self._evaluate = Evaluator(self.names, outputs).rounded

    def parts(self, values: Sequence[Any]) -> Iterator[Part]:
        """Its parts at values of its names, numbers or arrays of points."""
        found = self._evaluate(*values)
        for kind, indices, columns in self._parts:
            sizes = {k: _column(found[v]) if isinstance(v, slice) else v for k, v in columns.items()}
            runs = sizes.pop(RUNS)
            yield Part(kind, indices, sizes, runs)


def _varies(values: Sequence[Size]) -> bool:
    return any(isinstance(value, Expr) for value in values)


def _column(values: Sequence[Any]) -> Array:
    points = max((len(value) for value in values if isinstance(value, np.ndarray)), default=0)
    if not points:
        return np.array(values, float)[:, None]
    found = np.empty((len(values), points))
    for row, value in zip(found, values, strict=True):
        row[:] = value
    return found


def totals(parts: Sequence[Part], device: Device) -> list[list[Array]]:
    """Of each part the low end, the point and the high end of what its kernels take, and their runs, by points.

    Parts of one kind and one point, of whatever stages, are computed in one call.
    """
    calls: dict[tuple[Any, ...], list[int]] = {}
    for index, part in enumerate(parts):
        one = all(size.shape[1] == 1 for size in part.sizes.values())
        calls.setdefault((part.kind, *part.sizes, -1 if one else index), []).append(index)
    found: dict[int, list[Array]] = {}
    for indices in calls.values():
        own = [parts[i] for i in indices]
        joined = own[0]
        if len(own) > 1:
            joined = own[0]._replace(sizes={n: np.concatenate([part.sizes[n] for part in own]) for n in own[0].sizes})
        lasts, start = joined.lasting(device), 0
        for index, part in zip(indices, own, strict=True):
            rows = slice(start, start + len(part.indices))
            ends = [(part.runs * end[rows]).sum(axis=0) for end in (lasts.low, lasts.parts.seconds, lasts.high)]
            found[index], start = [*ends, part.runs.sum(axis=0)], rows.stop
    return [found[index] for index in range(len(parts))]
