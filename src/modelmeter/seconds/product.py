"""Products: a matrix multiplication as tiles in waves over the multiprocessors, or a vector kernel for a few rows.

The least over tile shapes, with and without a split inner loop, of launch + the softened maximum of waves x tile and
bytes / bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.laws import (
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
    whole,
)
from modelmeter.sizes import anywhere

TILES = ((16, 64), (32, 64), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
SPLITS = (1, 2, 4, 8, 16)
FEW = 2048
"""Tiles of kernels that are so few are asked with all splits at once."""
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


def _shapes(w: Work, inner: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Rows and columns of the tiles that are tried, along a first axis, and the splits, along one before it.

    Kernels whose shapes a rule of the engine tells (`tiles`; CUTLASS, for quantised activations) do not split.
    """
    rows, columns = w.get("tiles", (_ROWS, _COLUMNS))
    parts = _PARTS[:1] if "tiles" in w else _PARTS
    return choices(rows, len(inner)), choices(columns, len(inner)), parts.reshape(-1, 1, *inner)


def choices(sizes: Sequence[Array], inner: int) -> Array:
    """What a side of a tile may be, numbers or one a kernel, as an axis before those of the kernels."""
    if isinstance(sizes, np.ndarray):
        return sizes.reshape(-1, *(1,) * inner)
    return np.array([np.reshape(size, (1,) * (inner - np.ndim(size)) + np.shape(size)) for size in sizes])


def _tiled(c: Constants, device: Device, w: Work) -> Array:
    """Seconds of the tiles in the best shape: with the inner loop whole, and split where kernels are, on a first axis.

    Splits and shapes are the first two axes, so that kernels, of which there are more, are the inner loop; all splits
    are taken at once where kernels are few. No wave is shared where a rule of the engine tells the shapes.
    """
    m, n, k, batch, left, right, peak = sizes = [w[x] for x in _TILED_BY]
    inner = (1,) * max(map(np.ndim, sizes))
    rows, columns, parts = _shapes(w, inner)
    moved = np.minimum(m, rows) * left + columns * right
    each = loop_seconds(c, device, peak * c.get("rate", 1.0), rows * columns, moved)
    waves = batch * whole(m, rows) * whole(n, columns) / device.need("multiprocessors")
    fill, ragged = c["fill"] / cycles_per_s(device), 1.0 if "tiles" in w else c["ragged"]
    few, best = waves.size < FEW, list[Array]()
    for split in [parts] if few else parts:
        found = rounded(waves * split, ragged) * (fill + whole(k / split, LINE) * LINE * each)
        best.append(found.min(axis=-1 - len(inner)))
    return np.minimum.reduceat(best[0] if few else best, (0, 1)[: len(parts)], axis=0)


def product_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of products of m x k with k x n, `batch` of them; see `PRODUCT`."""
    m, n, k, batch, left, right = (w[x] for x in ("m", "n", "k", "batch", "left", "right"))
    compute = _tiled(c, device, w)
    moved = w["moved"] if "moved" in w else batch * (m * k * left + n * k * right + 2 * m * n)
    memory = memory_seconds(c, device, moved, w["warm"], 2)
    clock = cycles_per_s(device)
    once, *split = soft(compute, memory, c["sharp"])
    best, compute = np.minimum(once, split[0] + c["split"] / clock) if split else once, compute.min(axis=0)
    if anywhere(w["vectors"]):
        lanes = np.minimum(device.cuda_flops_per_s * either(left > PACKED, 1.0, PACKED), w["peak"])
        vector = 2 * batch * m * n * k / lanes
        vectors = c["vector"] / clock + soft(vector, memory, c["sharp"])
        best = either(w["vectors"], np.minimum(best, vectors), best)
        compute = either(w["vectors"], np.minimum(compute, vector), compute)
    floor = launch_seconds(c, device, w["warm"])
    seconds = floor + best + quantise_seconds(c, device, w)
    busy = 2 * batch * m * n * k / w["peak"]
    return Parts(timed(c, w["warm"], seconds), compute, memory, floor, busy)


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
