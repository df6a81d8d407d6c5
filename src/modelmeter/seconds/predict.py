"""Seconds of kernels: point, interval, roofline and what binds. Kernels of one law are computed in one call.

Which law is a kernel's: `asked.py`. Kernels that are asked again and again, at ever new sizes: `timer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.asked import Asked, Kind, asked_of, work_of
from modelmeter.seconds.constants import RANGES, known_of
from modelmeter.seconds.laws import Array, Parts, Work


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run of a kernel: the point, the interval that 90 % of its like were in, what binds.

    `roofline` is the bound by the datasheet; `derived` says what of it was not measured ("" for nothing).
    """

    law: str
    variant: str
    seconds: Array
    low: Array
    high: Array
    roofline: Array
    binds: Array
    derived: str


_BOUNDS = np.array(RANGES)


class Lasting(NamedTuple):
    """Seconds of kernels that ask the same kind: by the law's parts, the ends of the interval, the roofline."""

    variant: str
    parts: Parts
    low: Array
    high: Array
    roofline: Array
    derived: str


def lasting(law: str, variant: str, work: Work, device: Device) -> Lasting:
    """Seconds of the work of a law (`shapes.py` makes it), for arrays of any shape. Raises InputError."""
    known = known_of(law, device, variant)
    parts = known.law.parts(known.constants, device, work)
    roofline = work["roofline"] if "roofline" in work else np.maximum(parts.compute, parts.memory)
    size = _BOUNDS.searchsorted(roofline, side="right")
    low, high = (parts.seconds * factors[size] for factors in known.spread)
    return Lasting(variant, parts, low, high, roofline, known.derived)


def seconds_of(kernels: Sequence[Kernel], device: Device, *, warm: bool = False) -> list[Estimate]:
    """Seconds of one run of each kernel on a device, the kernels alone: neither the host nor gaps between them.

    `warm` finds operands in the L2 again, as a benchmark's loop does. Raises InputError for a device without a figure
    that is needed, and for a kernel that is a whole stage: that is a bound, and nothing that runs.
    """
    groups: dict[Kind, list[int]] = {}
    asked = [asked_of(kernel) for kernel in kernels]
    for index, one in enumerate(asked):
        groups.setdefault(one.kind, []).append(index)
    found: dict[int, Estimate] = {}
    for kind, indices in groups.items():
        variant, work = work_of(kind, _stacked([asked[i] for i in indices]), device, warm)
        found |= zip(indices, rows(seconds_of_work(kind.law, variant, work, device)), strict=True)
    return [found[index] for index in range(len(kernels))]


def seconds_of_work(law: str, variant: str, work: Work, device: Device) -> Estimate:
    """Seconds of the work of a law (`shapes.py` makes it), for arrays of any shape. Raises InputError."""
    return estimate(law, lasting(law, variant, work, device))


def estimate(law: str, found: Lasting) -> Estimate:
    """The same with what binds, in words."""
    parts = found.parts
    return Estimate(
        law, found.variant, parts.seconds, found.low, found.high, found.roofline, parts.binds, found.derived
    )


def _stacked(asked: Sequence[Asked]) -> dict[str, Any]:
    """Sizes of kernels of one kind as arrays that have a first axis more, that of the kernels."""
    depth = max(np.ndim(value) for one in asked for value in one.sizes.values())
    stacked = {}
    for name in asked[0].sizes:
        rows: Sequence[Any] = [one.sizes[name] for one in asked]
        if depth:
            deep = (np.asarray(row, float) for row in rows)
            rows = np.broadcast_arrays(*(row.reshape((1,) * (depth - row.ndim) + row.shape) for row in deep))
        stacked[name] = np.array(rows, float)
    return stacked


def rows(found: Estimate) -> Iterator[Estimate]:
    """The estimates of the kernels along the first axis; numbers where there is no further one."""
    names = ("seconds", "low", "high", "roofline", "binds")
    arrays = np.broadcast_arrays(*(getattr(found, name) for name in names))
    columns = (array.tolist() if array.ndim == 1 else array for array in arrays)
    for seconds, low, high, roofline, binds in zip(*columns, strict=True):
        yield Estimate(found.law, found.variant, seconds, low, high, roofline, binds, found.derived)
