"""Products: a matrix multiplication as tiles in waves over the multiprocessors, or a vector kernel for a few rows.

The least over tile shapes, with and without a split inner loop, of launch + the softened maximum of waves x tile and
bytes / bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial, reduce

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.laws import (
    FEW,
    LINE,
    Array,
    Constant,
    Constants,
    Law,
    Parts,
    Work,
    cycles_per_s,
    either,
    launch_seconds,
    memory_seconds,
    rounded,
    soft,
    timed,
    where,
    whole,
)
from modelmeter.sizes import anywhere

TILES = ((16, 64), (32, 64), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
SPLITS = (1, 2, 4, 8, 16)
PACKED = 2.0
"""A vector kernel multiplies numbers of up to so many bytes in pairs: twice the fp32 peak of the CUDA cores.
Activations of as many are not quantised."""

TILED = (
    Constant("launch", 2e3, 200, 6e4, "cycles of a launch"),
    Constant("fill", 3e3, 100, 5e4, "cycles of a tile before and after its loop"),
    Constant("speed", 0.95, 0.3, 1.4, "share of the peak in the loop of a large tile"),
    Constant("half", 2e3, 50, 8e3, "area of a tile that halves it"),
    Constant("load", 60, 5, 400, "bytes a cycle that a multiprocessor loads its operands with"),
    Constant("stream", 0.85, 0.4, 1.0, "share of the bandwidth of the memory"),
    Constant("sharp", 2.5, 1.0, 12.0, "how well compute and memory overlap"),
    Constant("ragged", 0.7, 0.05, 1.0, "how much of a last wave's idle time is lost"),
    Constant("cached", 0.19, 0.01, 2.0, "share of the L2 that holds operands from one run to the next"),
    Constant("near", 6.5, 1.0, 100.0, "bytes a cycle of a multiprocessor from the L2"),
)
"""Constants of kernels made of tiles."""


def loop_seconds(c: Constants, device: Device, peak: Array, area: Array, moved: Array) -> Array:
    """Seconds of an element of the inner loop of one tile, of so many outputs, with so many bytes of operands."""
    multiplied = 2 * (area + c["half"]) * device.need("multiprocessors") / (peak * c["speed"])
    return np.maximum(multiplied, moved / (c["load"] * cycles_per_s(device)))


def quantise_seconds(c: Constants, device: Device, w: Work) -> Array:
    """Seconds of the kernel that quantises the activations first, where a variant has one.

    Where a scale belongs to a row, blocks of threads look through it before they write (`by_row`); an element of 8 bits
    takes its cycles (`eight`); what is neither streams.
    """
    if "quantise" not in c:
        return 0.0
    rows, k, left = w["batch"] * w["m"], w["k"], w["left"]
    clock, units = cycles_per_s(device), device.need("multiprocessors")
    row = either(w["by_row"], c.get("quantised_row", 0.0), 0.0)
    element = either(w["eight"], c.get("element", 0.0), 0.0)
    shared = (row + element * k) * rows / units / clock
    moved = memory_seconds(c, device, (2 + left) * rows * k, w["warm"], 2)
    found = c["quantise"] / clock + np.maximum(shared, moved)
    return either(w.get("quantised", False) | (left >= PACKED), 0.0, found)


_TILED_BY = ("m", "n", "k", "batch", "left", "right", "peak")
_ROWS, _COLUMNS = np.array(TILES, float).T
_PARTS = np.array(SPLITS, float)
_SIDES = sorted({float(side) for tile in TILES for side in tile})


@cache
def _tiles(rows: float, columns: float) -> tuple[Array, Array]:
    """Tiles without those that are never better: larger ones where a smaller one holds so many rows, so many columns.

    >>> [side.tolist() for side in _tiles(1.0, 4096.0)]
    [[16.0, 64.0, 128.0], [64.0, 128.0, 256.0]]
    """
    kept: list[tuple[int, int]] = []
    for tile in TILES:  # the smaller ones come first
        sides = [zip(tile, other, (rows, columns), strict=True) for other in kept]
        if not any(all(own == side or own > side >= most for own, side, most in of) for of in sides):
            kept.append(tile)
    own, others = np.array(kept, float).T
    return own, others


def choices(sizes: Sequence[Array], inner: int) -> Array:
    """What a side of a tile may be, numbers or one a kernel, as an axis before those of the kernels."""
    if isinstance(sizes, np.ndarray):
        return sizes.reshape(-1, *(1,) * inner)
    return np.array([np.reshape(size, (1,) * (inner - np.ndim(size)) + np.shape(size)) for size in sizes])


def _tiled(c: Constants, device: Device, w: Work) -> list[Array]:
    """Seconds of the tiles in the best shape: with the inner loop whole; and split, if any (infinite where no better).

    Shapes are a first axis, so that kernels, of which there are more, are the inner loop; all splits are taken at once
    where kernels are few, else only of those that may be better split. Kernels whose shapes a rule of the engine tells
    (`tiles`; CUTLASS, for quantised activations) do not split, and share no wave; two multiprocessors may share the
    columns of one (`pair`).
    """
    m, n, k, batch, left, right, peak = sizes = [w[x] for x in _TILED_BY]
    inner, ruled = max(map(np.ndim, sizes)), "tiles" in w
    many = not ruled and max(map(np.size, sizes)) * len(TILES) >= FEW
    sides = w["tiles"] if ruled else _tiles(_side(m), _side(n)) if many else (_ROWS, _COLUMNS)
    rows, columns = (choices(side, inner) for side in sides)
    moved = np.minimum(m, rows) * left + columns * right * w.get("pair", 1.0)
    each = loop_seconds(c, device, peak * c.get("rate", 1.0), rows * columns, moved)
    waves = batch * whole(m, rows) * whole(n, columns) / device.need("multiprocessors")
    fill = c["fill"] / cycles_per_s(device)
    asked = partial(_loops, fill, 1.0 if ruled else c["ragged"])
    if not (ruled or many):
        once, *several = np.minimum.reduce(asked(k, waves, each, _PARTS.reshape(-1, 1, *(1,) * inner)), axis=1)
        return [once, np.minimum.reduce(several)]
    once = np.minimum.reduce(asked(k, waves, each))
    may = many and np.minimum.reduce(waves * (SPLITS[1] * fill + whole(k, LINE) * LINE * each)) < once
    if not anywhere(may):
        return [once]
    waves, each = (np.broadcast_to(x, (len(x), *once.shape))[:, may] for x in (waves, each))
    k, several = np.broadcast_to(k, once.shape)[may], np.full_like(once, np.inf)
    several[may] = reduce(np.minimum, (np.minimum.reduce(asked(k, waves, each, split)) for split in SPLITS[1:]))
    return [once, several]


def _loops(fill: float, ragged: float, k: Array, waves: Array, each: Array, split: Array = 1) -> Array:
    """Seconds of waves of tiles whose loop of k is split."""
    return rounded(waves * split, ragged) * (fill + whole(k, LINE * split) * LINE * each)


def _side(sizes: Array) -> float:
    """The most of some sizes, as far as tiles differ by it."""
    most = np.max(sizes)
    return min((side for side in _SIDES if side >= most), default=np.inf)


def product_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of products of m x k with k x n, `batch` of them; see `PRODUCT`."""
    m, n, k, batch, left, right = (w[x] for x in ("m", "n", "k", "batch", "left", "right"))
    tiled = _tiled(c, device, w)
    moved = w["moved"] if "moved" in w else batch * (m * k * left + n * k * right + 2 * m * n)
    memory = memory_seconds(c, device, moved, w["warm"], 2)
    clock = cycles_per_s(device)
    kernels = [*zip(tiled, (0.0, c["split"] / clock), strict=False)]
    if anywhere(w["vectors"]):
        lanes = np.minimum(device.cuda_flops_per_s * either(left > PACKED, 1.0, PACKED), w["peak"])
        vector = either(w["vectors"], 2 * batch * m * n * k / lanes, np.inf)
        kernels.insert(0, (vector, c["vector"] / clock))  # the best of few rows, so that others are asked seldom
    best, compute = _soonest(kernels, memory, c["sharp"])
    floor = launch_seconds(c, device, w)
    seconds = floor + best + quantise_seconds(c, device, w)
    busy = 2 * batch * m * n * k / w["peak"]
    return Parts(timed(c, w["warm"], seconds), compute, memory, floor, busy)


def _soonest(kernels: Sequence[tuple[Array, float]], memory: Array, sharp: float) -> tuple[Array, Array]:
    """The least seconds of kernels that move the same, each of its compute and what it takes beside, and least compute.

    Of many one is asked only where it may be better than those before, were its compute and memory to overlap wholly.
    """
    own, beside = zip(*kernels, strict=True)
    if np.size(memory) < FEW:
        computes = np.array(np.broadcast_arrays(*own))
        found = soft(computes, memory, sharp) + np.reshape(beside, (-1, *(1,) * (computes.ndim - 1)))
        return np.minimum.reduce(found), np.minimum.reduce(computes)
    best: Array = np.full_like(memory, np.inf)
    for compute, more in kernels:
        best = where(
            np.maximum(compute, memory) + more < best,
            lambda best, compute, memory, more=more: np.minimum(best, soft(compute, memory, sharp) + more),
            best, compute, memory,
        )  # fmt: skip
    return best, reduce(np.minimum, own)


PRODUCT = Law(
    "product",
    "products of weights with activations, and of convolutions",
    (
        *TILED,
        Constant("split", 4e3, 200, 1e5, "cycles to add up a split inner loop"),
        Constant("vector", 7e3, 200, 5e4, "cycles of a vector kernel before and after its loop"),
    ),
    ("multiprocessors", "clock_hz", "l2_bytes"),
    ("m", "n", "k", "batch", "left", "right", "peak", "vectors", "by_row", "eight"),
    product_parts,
    {"rate": 1.0, "start": 1.0, "quantise": 0.0, "quantised_row": 0.0, "element": 0.0, "host": 0.0},
    "which tile the library takes (the best is assumed), sizes that are no multiple of 8",
    len(TILES),
)
