"""Products with llama.cpp's weights: a vector kernel for a few rows, tiles of int8 products for many.

Weights are blocks of 32 that have a scale each, so whatever multiplies the integers, CUDA cores convert, scale and add
up each sum of 32: that work does not shrink where matrix units grow. Constants: `families.yaml`, with their sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelmeter.device import Device
from modelmeter.programs.formats import format_of
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.laws import Array, Constant, Constants, Law, Parts, Work, either, real, soft, whole
from modelmeter.seconds.shapes import FRAGMENT, matrix_units

BLOCK = 32.0
"""Products that share a scale."""
VECTOR = 8.0
"""Rows up to which the vector kernel is taken (MMVQ_MAX_BATCH_SIZE of llama.cpp)."""
UBATCH = 512.0
"""Rows that are computed at once, the engine's own choice."""
WIDE = 1.2e12
"""Bytes a second from which a memory is HBM or GDDR7, of which a vector kernel keeps a smaller share busy."""


def stored_in_blocks(kernel: Kernel) -> str:
    """The format of a kernel's weights where they are llama.cpp's blocks, else "".

    They are multiplied in int8, with activations of 32 bits that are made blocks too; other engines' are of 16.
    """
    stored = next(iter(kernel.unpack_flops), "")
    known = bool(stored) and format_of("weights", stored).ggml is not None
    return stored if known and kernel.tensor_flops.keys() & {"int8", "fp32"} else ""


def blocks_work(stored: str, sizes: Mapping[str, Array]) -> dict[str, Any]:
    """The work of a product with weights in blocks of a format, or of a few rows with weights of 16 bits ("")."""
    return {
        **{x: real(sizes[x]) for x in ("m", "n", "k", "batch")},
        "quantised": float(bool(stored)),
        "fine": float(bool(stored) and format_of("weights", stored).block > BLOCK),
        "tokens": np.rint(real(sizes.get("tokens", sizes["m"]))),
        "stored": real(sizes["stored"]) * sizes["batch"] * sizes["n"] * sizes["k"],
        "moved": real(sizes["moved"]),
    }


def blocks_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of products of m rows with n x k weights, `batch` of them; see `BLOCKS`."""
    m, n, k, batch, fine, tokens = (w[x] for x in ("m", "n", "k", "batch", "fine", "tokens"))
    weights, lanes = batch * n * k, device.cuda_flops_per_s / 2
    bandwidth = device.memory_bytes_per_s * (c["stream"] if device.memory_bytes_per_s < WIDE else c["wide"])
    once = w["moved"] / bandwidth
    apart = either(fine, c["apart_fine"], c["apart"])
    dots = weights * (apart + c["dot"] * m) / lanes
    rounds = np.maximum(whole(tokens, UBATCH), 1.0)
    rows = rounds * _padded(m / rounds, tokens / rounds, c["tile"] / (1 if matrix_units(device) else 2))
    tiles, again = _tiles(c, device, w, rows, weights)
    few = tokens <= VECTOR
    memory = np.where(few, once, once + (rounds - 1) * w["stored"] / bandwidth + rounds * again / bandwidth)
    compute = np.where(few, dots, tiles)
    floor = np.where(few, 1.0, rounds) * (1 + w["quantised"] * c["before"]) * c["launch"]
    busy = np.where(few, 0.0, compute)
    return Parts(floor + soft(compute, memory, c["sharp"]), compute, memory, floor, busy)


def _padded(m: Array, tokens: Array, most: float) -> Array:
    """The m rows of an expert in whole tiles, which are as many as the tokens of a batch have, up to `most`.

    Rows are padded to the matrix units' fragment. All experts have tiles of one size, and half of one more is empty on
    average, as rows of experts differ.
    """
    tile = np.minimum(whole(tokens, FRAGMENT) * FRAGMENT, most)
    return np.where(m < tokens, np.maximum(m / tile + 0.5, 1.0), whole(m, tile)) * tile


def _tiles(c: Constants, device: Device, w: Work, rows: Array, weights: Array) -> tuple[Array, Array]:
    """Seconds of tiles that all multiprocessors share evenly, and bytes that taking weights apart moves beside.

    With units for int8: these, then the CUDA cores for each block. Without: weights are taken apart to 16 bits, on
    chip or (`expanded`) through memory.
    """
    scaled = either(w["fine"], c["scale_fine"], c["scale"]) / BLOCK / (device.cuda_flops_per_s / 2)
    if "int8" in device.peaks and c["integers"] >= 1:
        return rows * weights * (2 / (device.peak("int8") * c["speed"]) + scaled), 0 * weights
    apart = either(w["fine"], c["slower_fine"], c["slower"])
    peak = device.peak("bf16") if c["matrix"] >= 1 else device.cuda_flops_per_s
    return 2 * rows * weights * apart / (peak * c["speed"]), c["expanded"] * weights


BLOCKS = Law(
    "blocks",
    "products with llama.cpp's blocks of weights, and of a few rows with weights of 16 bits",
    (
        Constant("launch", 2e-6, 1e-7, 1e-4, "s of a kernel, however small"),
        Constant("before", 1.0, 0.0, 2.0, "kernels before one with weights in blocks: activations become blocks"),
        Constant("stream", 0.93, 0.4, 1.0, "share of the bandwidth of the memory"),
        Constant("wide", 0.82, 0.4, 1.0, "the same of memories above 1.2 TB/s"),
        Constant("apart", 1.0, 0.1, 20.0, "instructions of CUDA cores to take a weight apart, in the vector kernel"),
        Constant("apart_fine", 4.0, 0.1, 20.0, "the same of blocks of 256, whose scales are packed too"),
        Constant("dot", 3.0, 0.25, 20.0, "instructions a weight and row there"),
        Constant("speed", 0.9, 0.1, 1.0, "share of the peak of the matrix units"),
        Constant("scale", 9.0, 1.0, 60.0, "instructions of CUDA cores an output and block, in tiles"),
        Constant("scale_fine", 12.5, 1.0, 60.0, "the same of blocks of 256"),
        Constant("slower", 1.0, 1.0, 4.0, "how much longer tiles of 16 bits take than with weights of 16 bits"),
        Constant("slower_fine", 1.0, 1.0, 4.0, "the same of blocks of 256"),
        Constant("expanded", 4.0, 0.0, 8.0, "bytes a weight that goes through memory in 16 bits, to it and back"),
        Constant("tile", 128.0, 16.0, 256.0, "rows of a tile at most; half without matrix units"),
        Constant(
            "written", 0.0, 0.0, 1.0, "1 where builds that take weights apart before write them, though tiles do not"
        ),
        Constant("matrix", 1.0, 0.0, 1.0, "1 where the engine's tiles of 16 bits run on matrix units"),
        Constant("integers", 1.0, 0.0, 1.0, "1 where the engine's tiles multiply in int8"),
        Constant("sharp", 2.5, 1.0, 12.0, "how well compute and memory overlap"),
    ),
    (),
    ("m", "n", "k", "batch", "tokens", "quantised", "fine", "stored", "moved"),
    blocks_parts,
    omits="which tile the engine takes, a last wave that is not full",
)
