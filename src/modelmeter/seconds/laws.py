"""What all laws of time share: constants with bounds, the parts of a time, how compute and memory overlap.

A law tells the seconds of one kind of kernel from its shape, a device and a few constants, for arrays of shapes in one
call. The laws stand in modules by kind; `fit.py` finds the constants, `constants.py` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device

Array = Any
"""A NumPy array of floats, one element a kernel; or a number."""
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
    by the value that leaves the law as it is.
    """

    name: str
    what: str
    constants: tuple[Constant, ...]
    needs: tuple[str, ...]
    work: tuple[str, ...]
    parts: Callable[[Constants, Device, Work], Parts]
    extras: Mapping[str, float] = {}
    omits: str = ""


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


def soft(a: Array, b: Array, sharp: float) -> Array:
    """The larger of two that overlap: their sum for `sharp` = 1, their maximum for a large one."""
    return (a**sharp + b**sharp) ** (1 / sharp)


def rounded(waves: Array, ragged: float) -> Array:
    """Rounds over the multiprocessors: whole ones, or (ragged = 0) as if the last were shared by all."""
    return ragged * np.ceil(waves) + (1 - ragged) * np.maximum(waves, 1)


def whole(size: Array, tile: Array) -> Array:
    """The number of tiles that hold a size."""
    return np.ceil(size / tile)


def memory_seconds(c: Constants, device: Device, moved: Array, warm: Array, steep: float) -> Array:
    """Seconds to move bytes: from DRAM, or from the L2 where a benchmark's loop (`warm`) finds them again.

    `cached` is the share of the L2 that holds them, `near` the bytes a cycle of one multiprocessor from it. A kernel in
    a model (not warm) reads DRAM, and small operands no faster than the L2 would give them.
    """
    streamed = moved / (device.memory_bytes_per_s * c["stream"])
    near = moved / (c["near"] * cycles_per_s(device) * device.need("multiprocessors"))
    hit = 1 / (1 + (moved / (c["cached"] * device.need("l2_bytes"))) ** steep)
    again = streamed + hit * (near - streamed)
    return np.where(warm, again, np.maximum(again, streamed))


def cycles_per_s(device: Device) -> float:
    """The clock."""
    return device.need("clock_hz")


def timed(c: Constants, warm: Array, seconds: Array) -> Array:
    """Seconds as a loop on the host sees them: no less than it takes to launch."""
    return np.where(warm, np.maximum(seconds, c.get("host", 0.0)), seconds)
