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
    memory_seconds,
    rounded,
    soft,
    timed,
    whole,
)

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


def tile_seconds(c: Constants, device: Device, peak: Array, tile: tuple[Array, Array], k: Array, moved: Array) -> Array:
    """Seconds of one tile, rows x columns, with an inner loop of k and so many bytes of operands."""
    area, clock = tile[0] * tile[1], cycles_per_s(device)
    multiplied = 2 * k * (area + c["half"]) * device.need("multiprocessors") / (peak * c["speed"])
    return c["fill"] / clock + np.maximum(multiplied, moved / (c["load"] * clock))


def quantise_seconds(c: Constants, device: Device, w: Work) -> Array:
    """Seconds of the kernel that quantises the activations first, where a variant has one.

    Where a scale belongs to a row, blocks of threads look through it before they write (`by_row`); an element of 8 bits
    takes its cycles (`eight`); what is neither streams.
    """
    if "quantise" not in c:
        return 0.0
    rows, k, left = w["batch"] * w["m"], w["k"], w["left"]
    clock, units = cycles_per_s(device), device.need("multiprocessors")
    row = np.where(w["by_row"], c.get("quantised_row", 0.0), 0.0)
    element = np.where(w["eight"], c.get("element", 0.0), 0.0)
    shared = (row + element * k) * rows / units / clock
    moved = memory_seconds(c, device, (2 + left) * rows * k, w["warm"], 2.0)
    found = c["quantise"] / clock + np.maximum(shared, moved)
    return np.where(w.get("quantised", False) | (left >= PACKED), 0.0, found)


def _tiled(c: Constants, device: Device, w: Work) -> tuple[Array, Array]:
    """Seconds of the tiles in the best shape: with the inner loop whole, and split.

    Shapes and splits are the first two axes, so that kernels, of which there are more, are the inner loop. Kernels
    whose shapes a rule of the engine tells (`tiles`; CUTLASS, for quantised activations) do not split, and no
    wave is shared.
    """
    names = ("m", "n", "k", "batch", "left", "right", "peak")
    m, n, k, batch, left, right, peak = (np.asarray(w[name], float) for name in names)
    inner = (1,) * max(np.ndim(x) for x in (m, n, k, batch, left, right, peak))
    tiles, splits = (w["tiles"], (1,)) if "tiles" in w else (TILES, SPLITS)
    rows, columns = (_stacked([shape[i] for shape in tiles], inner) for i in (0, 1))
    parts = np.array(splits, float).reshape(-1, *inner)
    loop = whole(k / parts, LINE) * LINE
    moved = (np.minimum(m, rows) * left + columns * right) * loop
    each = tile_seconds(c, device, peak * c.get("rate", 1.0), (rows, columns), loop, moved)
    waves = (batch * whole(m, rows) * whole(n, columns) / device.need("multiprocessors")) * parts
    ragged = 1.0 if "tiles" in w else c["ragged"]
    best = (rounded(waves, ragged) * each).min(axis=0)
    return best[0], best[1:].min(axis=0, initial=np.inf)


def _stacked(sides: Sequence[Array], inner: tuple[int, ...]) -> Array:
    """Sides of tiles, numbers or one a kernel, along a first axis, with room for the splits behind it."""
    each = (np.asarray(side, float) for side in sides)
    deep = (side.reshape(inner[: len(inner) - side.ndim] + side.shape) for side in each)
    return np.array(np.broadcast_arrays(*deep))[:, None]


def product_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of products of m x k with k x n, `batch` of them; see `PRODUCT`."""
    m, n, k, batch, left, right = (np.asarray(w[x], float) for x in ("m", "n", "k", "batch", "left", "right"))
    once, split = _tiled(c, device, w)
    moved = w["moved"] if "moved" in w else batch * (m * k * left + n * k * right + 2 * m * n)
    memory = memory_seconds(c, device, moved, w["warm"], 2.0)
    clock = cycles_per_s(device)
    tiles = np.minimum(soft(once, memory, c["sharp"]), soft(split, memory, c["sharp"]) + c["split"] / clock)
    lanes = np.minimum(device.cuda_flops_per_s * np.where(left > PACKED, 1, PACKED), w["peak"])
    vector = 2 * batch * m * n * k / lanes
    vectors = c["vector"] / clock + soft(vector, memory, c["sharp"])
    best = np.where(w["vectors"], np.minimum(tiles, vectors), tiles)
    floor = c["launch"] * c.get("start", 1.0) / clock
    seconds = floor + best + quantise_seconds(c, device, w)
    compute = np.where(w["vectors"], np.minimum(np.minimum(once, split), vector), np.minimum(once, split))
    busy = 2 * batch * m * n * k / w["peak"]
    return Parts(timed(c, w["warm"], seconds), compute, memory, floor + 0 * memory, busy)


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
)
