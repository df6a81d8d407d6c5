"""Seconds of kernels: point, interval, roofline and what binds. Kernels of one law are computed in one call.

Which law is a kernel's: `asked.py`. Kernels that are asked again and again, at ever new sizes: `timer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds import processor
from modelmeter.seconds.asked import Asked, Kind, asked_of, roofline_of, work_of
from modelmeter.seconds.blocks import UBATCH, VECTOR
from modelmeter.seconds.constants import known_of
from modelmeter.seconds.laws import Array, Parts, Work, whole
from modelmeter.seconds.power import pace_of, paced


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


class Lasting(NamedTuple):
    """Seconds of kernels that ask the same kind: by the law's parts, the ends of the interval, the roofline."""

    variant: str
    parts: Parts
    low: Array
    high: Array
    roofline: Array
    derived: str


def lasting(law: str, variant: str, work: Work, device: Device) -> Lasting:
    """Seconds of the work of a law (`shapes.py` makes it), for arrays of any shape. Raises InputError.

    A model's kernel, which has a roofline of its own, is no faster than that: it may read what its law leaves out.
    """
    known = known_of(law, device, variant)
    parts = known.law.parts(known.constants, device, work)
    roofline = work["roofline"] if "roofline" in work else np.maximum(parts.compute, parts.memory)
    if "sharp" in known.constants:
        parts = paced(law, device, known.constants["sharp"], parts)
    if "roofline" in work:
        parts = parts if work["warm"] else parts._replace(seconds=np.maximum(parts.seconds, roofline))
    low, high = (parts.seconds * factor for factor in known.factors(roofline))
    derived = "; ".join(filter(None, (known.derived, pace_of(device).told)))
    return Lasting(variant, parts, low, high, roofline, derived)


def seconds_of(kernels: Sequence[Kernel], device: Device, *, warm: bool = False) -> list[Estimate]:
    """Seconds of one run of each kernel on a device, the kernels alone: neither the host nor gaps between them.

    `warm` finds operands in the L2 again, as a benchmark's loop does. Raises InputError for a device without a figure
    that is needed, and for a kernel that is a whole stage: that is a bound, and nothing that runs.
    """
    if processor.calibrated(device):
        return [_timed(kernel, device) for kernel in kernels]
    groups: dict[Kind, list[int]] = {}
    asked = [asked_of(kernel) for kernel in kernels]
    for index, one in enumerate(asked):
        groups.setdefault(one.kind, []).append(index)
    found: dict[int, Estimate] = {}
    for kind, indices in groups.items():
        told = lasting_of(kind, _stacked([asked[i] for i in indices]), device, warm)
        found |= zip(indices, rows(estimate(kind.law, told)), strict=True)
    return [found[index] for index in range(len(kernels))]


def _timed(kernel: Kernel, device: Device) -> Estimate:
    """A kernel on a processor, whose laws are its own."""
    kind, sizes = asked_of(kernel)
    law, variant, seconds, low, high, binds, derived = processor.timed(kernel, device)
    return Estimate(law, variant, seconds, low, high, roofline_of(kind, sizes, device), binds, derived)


def lasting_of(kind: Kind, sizes: Mapping[str, Array], device: Device, warm: bool = False) -> Lasting:
    """Seconds of kernels that ask a kind, by the names of `asked_of`; of few rows and of many, by their own."""
    if not (kind.few or kind.apart):
        variant, work = work_of(kind, sizes, device, warm)
        return lasting(kind.law, variant, work, device)
    known = known_of("blocks", device, "bf16").constants if kind.apart else {}
    through_memory = kind.apart and max(known["expanded"], known["written"]) > 0
    few = np.asarray(sizes["m"]) <= (VECTOR if kind.few or through_memory else np.inf)
    one = kind._replace(law="blocks", few=False, apart=False)
    if few.all():
        return lasting_of(one, sizes, device, warm)
    rest = _dequantised(one, sizes, device) if kind.apart else lasting_of(kind._replace(few=False), sizes, device, warm)
    return rest if not few.any() else _either(few, lasting_of(one, sizes, device, warm), rest)


def _dequantised(kind: Kind, sizes: Mapping[str, Array], device: Device) -> Lasting:
    """What builds before June 2024 ran for many rows: weights are written as fp16, then multiplied by the library.

    Once for each batch that is computed at once; https://github.com/ggml-org/llama.cpp/pull/8075 ended it.
    """
    m, weights = np.asarray(sizes["m"], float), sizes["batch"] * sizes["n"] * sizes["k"]
    rounds = np.maximum(whole(np.asarray(sizes.get("tokens", m), float), UBATCH), 1.0)
    work, stored = sum(sizes[f"flops {form}"] for form in kind.forms), sizes["stored"] * weights
    writing = {
        **sizes,
        "m": np.ones_like(m),
        "tokens": np.ones_like(m),
        "moved": stored + 2 * weights,
        "flops int8": 0 * m,
    }
    rows = {"m": m / rounds, "moved": (sizes["moved"] - stored) / rounds + 2 * weights, "flops bf16": work / rounds}
    first = lasting_of(kind._replace(forms=("int8",)), writing, device)
    reading = {**sizes, **rows, "stored": 2 + 0 * sizes["stored"]}
    then = lasting_of(Kind("product", forms=("bf16",)), reading, device)
    both = (rounds * (a + b) for a, b in zip(_numbers(first), _numbers(then), strict=True))
    return _lasting(first, both)


def _either(few: Array, first: Lasting, rest: Lasting) -> Lasting:
    return _lasting(rest, (np.where(few, a, b) for a, b in zip(_numbers(first), _numbers(rest), strict=True)))


def _numbers(found: Lasting) -> tuple[Array, ...]:
    return (*found.parts, found.low, found.high, found.roofline)


def _lasting(like: Lasting, numbers: Iterable[Array]) -> Lasting:
    *parts, low, high, roofline = numbers
    return Lasting(like.variant, Parts(*parts), low, high, roofline, like.derived)


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
