"""What all laws of time share: constants with bounds, the parts of a time, how compute and memory overlap.

A law tells the seconds of one kind of kernel from its shape, a device and a few constants, for arrays of shapes in one
call. The laws stand in modules by kind; `fit.py` finds the constants, `constants.py` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.sizes import anywhere

Array = Any
"""A NumPy array of floats, one element a kernel; or a float, where it is one for all."""
Constants = Mapping[str, float]
Work = Mapping[str, Array]
LINE = 64.0
"""Elements of the inner loop that a tile takes at a time: loops are rounded up to whole ones."""


class Constant(NamedTuple):
    """A constant of a law: where a fit starts, its bounds, what it means. All are above 0."""

    name: str
    start: float
    low: float
    high: float
    what: str


class Parts(NamedTuple):
    """Seconds of kernels, and of what they are made: compute alone, memory alone, what a launch costs at least; and
    `busy`, those that draw power: of matrix units for the FLOPs at their peak, of CUDA cores at llama.cpp's tiles."""

    seconds: Array
    compute: Array
    memory: Array
    floor: Array
    busy: Array = 0.0

    @property
    def binds(self) -> Array:
        """What the most of the time goes to: "compute", "memory" or "launch"."""
        largest = np.argmax(np.broadcast_arrays(self.compute, self.memory, self.floor), axis=0)
        return np.array(("compute", "memory", "launch"))[largest]


class Law(NamedTuple):
    """A law by name: its constants, the fields of a device and the arrays of work that it needs, the law itself.

    `extras` are constants of a variant (another format, another kernel of the engine) beside those of the plain one,
    by the value that leaves the law as it is. Of each kernel so many shapes are `tried` at once; the best one counts.
    """

    name: str
    what: str
    constants: tuple[Constant, ...]
    needs: tuple[str, ...]
    work: tuple[str, ...]
    parts: Callable[[Constants, Device, Work], Parts]
    extras: Mapping[str, float] = {}
    omits: str = ""
    tried: int = 1


EXTRAS = (
    Constant("rate", 1.0, 0.1, 4.0, "multiplies the speed of the products"),
    Constant("start", 1.0, 0.2, 8.0, "multiplies what a launch costs"),
    Constant("quantise", 2e3, 1.0, 1e5, "cycles of a kernel that quantises the activations"),
    Constant(
        "quantised_row", 500.0, 1.0, 1e5, "cycles that a row of it takes on a multiprocessor, where a scale is its own"
    ),
    Constant("element", 0.7, 0.01, 10.0, "cycles that an element of it takes, of 8 bits"),
    Constant("turned", 0.15, 0.01, 1.0, "cycles that turning an element of the values around takes"),
    Constant("host", 3e-5, 1e-6, 5e-4, "s: what the benchmark's loop waits for the host, however small the kernel"),
)
"""Constants of variants. `host` belongs to the loop that was measured, not to the kernel: only `warm` work has it."""


QUEUED = "queued"
"""The cycles of a launch behind others, of families that were measured in a loop that launches one at a time."""
FEW = 2048
"""Numbers that are so few take less time than to choose among them."""
LITTLE = 1e-300
"""What stands for 0 in a logarithm or below a fraction."""


def real(size: Any) -> Array:
    """A size in floats."""
    return np.asarray(size, float) if np.ndim(size) else float(size)


def either(condition: Array, a: Array, b: Array) -> Array:
    """One where a condition holds, else the other; without an array where it is one for all."""
    return np.where(condition, a, b) if np.ndim(condition) else a if condition else b


def where(condition: Array, made: Callable[..., Array], first: Array, *others: Array) -> Array:
    """The first of some arrays, but where a condition holds what is made of these there.

    Of many it is made of no others; of few all are less work than to choose.
    """
    holds, size = np.count_nonzero(condition), np.size(condition)
    if not holds:
        return first
    if holds == size:
        return made(first, *others)
    if size < FEW:
        return np.where(condition, made(first, *others), first)
    here, *arrays = np.broadcast_arrays(condition, first, *others)
    found: Array = arrays[0].copy()
    found[here] = made(*(array[here] for array in arrays))
    return found


def soft(a: Array, b: Array, sharp: float) -> Array:
    """The larger of two that overlap: their sum for `sharp` = 1, their maximum for a large one.

    It is (a^sharp + b^sharp)^(1/sharp), in logarithms, as exponentials take far less time than powers.
    """
    larger = np.maximum(a, b)
    share = np.maximum(np.minimum(a, b) / np.maximum(larger, LITTLE), LITTLE)
    return larger * np.exp(np.log(1 + np.exp(sharp * np.log(share))) / sharp)


def rounded(waves: Array, ragged: float) -> Array:
    """Rounds over the multiprocessors: whole ones, or (ragged = 0) as if the last were shared by all."""
    rounds = np.ceil(waves)
    return rounds if ragged == 1 else ragged * rounds + (1 - ragged) * np.maximum(waves, 1)


def whole(size: Array, tile: Array) -> Array:
    """The number of tiles that hold a size."""
    return np.ceil(size / tile)


def memory_seconds(c: Constants, device: Device, moved: Array, warm: Array, steep: int) -> Array:
    """Seconds to move bytes: from DRAM, or from the L2 where a benchmark's loop (`warm`) finds them again.

    `cached` is the share of the L2 that holds them, `near` the bytes a cycle of one multiprocessor from it. A kernel in
    a model (not warm) reads DRAM, and small operands no faster than the L2 would give them. The share that is found
    falls as a power of the bytes, `steep`, itself a power of two.
    """
    streamed = 1 / (device.memory_bytes_per_s * c["stream"])
    near = 1 / (c["near"] * cycles_per_s(device) * device.need("multiprocessors"))
    if not anywhere(warm) and near <= streamed:
        return moved * streamed
    full = moved / (c["cached"] * device.need("l2_bytes"))
    for _ in range(steep.bit_length() - 1):
        full = full * full
    return moved * (streamed + either(warm, near - streamed, max(near - streamed, 0.0)) / (1 + full))


def cycles_per_s(device: Device) -> float:
    """The clock."""
    return device.need("clock_hz")


def launch_seconds(c: Constants, device: Device, w: Work) -> Array:
    """Seconds of a launch: as a loop on the host has it (`warm`), or a host that submits each kernel by itself
    (`alone`); or behind others (`queued`)."""
    by_itself = True if w.get("alone", False) else w.get("warm", False)
    cycles = either(by_itself, c["launch"], c.get(QUEUED, c["launch"]))
    return cycles * c.get("start", 1.0) / cycles_per_s(device)


def timed(c: Constants, warm: Array, seconds: Array) -> Array:
    """Seconds as a loop on the host sees them: no less than it takes to launch."""
    return either(warm, np.maximum(seconds, c.get("host", 0.0)), seconds) if anywhere(warm) else seconds
