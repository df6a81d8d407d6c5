"""Work of the laws from shapes: which format is multiplied at which peak, how many bytes an element takes.

A format that a device has no units for is stored as it is and multiplied in bf16 (weights alone are quantised then).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import choose
from modelmeter.seconds.laws import Array, Work, either, real
from modelmeter.seconds.mixture import Loads

NVIDIA = frozenset({"Ampere", "Ada", "Hopper", "Blackwell", "Blackwell datacenter"})
"""Architectures whose devices share constants."""
FLASH3 = frozenset({"Hopper"})
"""Architectures that run FlashAttention 3; others run FlashAttention 2, and FlashInfer on a cache of 8 bits."""


def cache_variant(device: Device, narrow: bool) -> str:
    """The variant of attention that an engine runs on a cache of 16 bits, or of 8."""
    return ("fp8.fa3" if device.architecture in FLASH3 else "fp8.flashinfer") if narrow else "bf16"


Tiles = tuple[tuple[Array, ...], tuple[Array, ...]]
"""Rows that a tile may have, and columns."""


class Multiplied(NamedTuple):
    """A format of products: bytes an element of activations and of weights, the format of the engine's units."""

    left: float
    right: float
    units: str


FORMATS = {
    "fp32": Multiplied(4, 4, "fp32"),
    "tf32": Multiplied(4, 4, "tf32"),
    "bf16": Multiplied(2, 2, "bf16"),
    "fp16": Multiplied(2, 2, "bf16"),
    "fp8": Multiplied(1, 1, "fp8"),
    "fp8_block": Multiplied(1 + 4 / 128, 1 + 4 / 128**2, "fp8"),
    "int8": Multiplied(1, 1, "int8"),
    "fp4": Multiplied(0.5, 0.5, "fp4"),
    "nvfp4": Multiplied(0.5625, 0.5625, "fp4"),
    "fp8_wo": Multiplied(2, 1, "bf16"),
    "int8_wo": Multiplied(2, 1, "bf16"),
    "int4_wo": Multiplied(2, 0.5 + 2 / 128, "bf16"),
    "mxfp4_wo": Multiplied(2, 0.5 + 1 / 32, "bf16"),
}
"""Formats of products; `_wo`: of the weights only."""
MARLIN = (8.0, 16.0, 32.0, 48.0, 64.0)
"""Rows of Marlin's tiles: the first that holds 1.1 times the mean rows of an expert."""
EARLIER = {"Hopper": 0.63}
"""Share of the peak that the instructions of Ampere reach, by architecture: recalled from published microbenchmarks."""
FEW = 64.0
"""Rows up to which a vector kernel is asked: with more it would multiply what CUDA cores have no operands for."""
LARGE = 128.0
"""The side of the tiles of CUTLASS kernels (quantised activations); fp8 and int8 halve it for few rows."""
QUANTISED = frozenset({"fp8", "fp8_block", "int8", "fp4", "nvfp4"})
"""Formats whose activations a kernel quantises first."""


def multiplied(device: Device, variant: str) -> Multiplied:
    """How a device multiplies in a format (before a dot: the engine's kernel is behind it)."""
    name = variant.partition(".")[0]
    form = FORMATS[choose("format of products", name, FORMATS)]
    units = units_of(device, name)
    return form if units == form.units else form._replace(left=2.0, units=units)


def units_of(device: Device, form: str) -> str:
    """The units that multiply a format on a device: bf16 where it has none of them, or where several are mixed."""
    name = FORMATS[form].units if form in FORMATS else "bf16"
    return name if name in device.peaks or name in ("bf16", "fp32") else "bf16"


def plain_seconds(flops: Mapping[str, Array], device: Device) -> Array:
    """Seconds of FLOPs by format at the peaks of their units."""
    first, *others = [work / device.peak(units_of(device, form)) for form, work in flops.items()] or [0.0]
    return sum(others, start=first)


def nearest(variant: str) -> str:
    """The format whose extras stand for those of a variant that was measured nowhere: of activations quantised, fp8."""
    form = variant.partition(".")[0]
    return "fp8" if form in QUANTISED else form


def product_work(
    device: Device, variant: str, m: Array, n: Array, k: Array, batch: Array = 1.0, warm: bool = False
) -> Work:
    """The work of products of m x k with k x n."""
    form = multiplied(device, variant)
    sizes = {name: real(size) for name, size in (("m", m), ("n", n), ("k", k), ("batch", batch))}
    vectors = form.units in ("bf16", "fp32") and form.left == form.right and sizes["m"] <= FEW
    least: Array = LARGE if form.units == "fp4" else 1.0
    if form.units in ("fp8", "int8"):
        least = either(sizes["m"] <= (LARGE if device.architecture in FLASH3 else 2 * LARGE), LARGE / 2, LARGE)
    known = {"left": form.left, "right": form.right, "peak": device.peak(form.units), "least": least}
    return {**sizes, **known, "vectors": vectors, "warm": warm}


def attention_work(
    device: Device, law: str, variant: str, batch: Array, heads: Array, kv_heads: Array, width: Array, s: Array,
    t: Array, window: Array = 0.0, warm: bool = False,
) -> Work:  # fmt: skip
    """The work of attention of s queries over t keys; `variant` begins with the format of the cache.

    The query heads of one KV head share a block (`grouped`) but in FlashAttention 2, which does so for one query and no
    window, and splits a sequence only then; with several sequences and KV heads, two kernels copy queries and outputs.
    """
    names = ("batch", "heads", "kv_heads", "width", "s", "t", "window")
    known = dict(zip(names, map(real, (batch, heads, kv_heads, width, s, t, window)), strict=True))
    each = FORMATS[choose("format of the cache", variant.partition(".")[0], FORMATS)].right
    three = device.architecture in FLASH3
    two = not three and each >= 2
    swapped = two and (known["s"] == 1) & (known["heads"] > known["kv_heads"]) & (known["window"] == 0)
    copies = swapped & (known["batch"] > 1) & (known["kv_heads"] > 1) if two else False
    return {
        **known,
        "kv_bytes": each,
        "peak": device.peak("bf16"),
        "causal": law != "vision",
        "writes": law == "prefill",
        "grouped": swapped if two else True,
        "passes": either(copies, 3.0, 1.0),
        "kernels": 2.0 + (three or (law == "decode" and not two)) + 2.0 * copies,
        "line": _line(known["width"]) if two else LARGE,
        "together": 1.0 if three else 2.0,
        "overlaps": three and law != "vision",
        "warm": warm,
    }


def _line(width: Array) -> Array:
    """Keys that FlashAttention 2 takes at a time, by the width of a head."""
    return either(width <= 64, 256.0, either(width <= 128, LARGE, LARGE / 2))


def mixture_variant(device: Device, variant: str) -> str:
    """The variant of a mixture that was measured: fp8 on Hopper ran kernels of its own (TMA) that nobody had tuned."""
    return "fp8.tma" if variant == "fp8" and device.architecture in FLASH3 else variant


def mixture_kernel(device: Device, variant: str) -> str:
    """The kernel of mixtures that vLLM runs: Triton, Marlin for quantised weights, CUTLASS for quantised activations
    and, on Blackwell, for 16 bits; a variant may tell it behind its dot.
    """
    form, _, told = variant.partition(".")
    if told == "triton":
        return told
    if form.endswith("_wo"):
        return "marlin"
    return "cutlass" if form in QUANTISED or device.architecture.startswith("Blackwell") else "triton"


def mixture_tiles(kernel: str, variant: str, tokens: Array, mean: Array) -> Tiles:
    """Rows and columns of the tiles that a kernel may have.

    Triton's by the tokens (vLLM's default), Marlin's rows by the mean rows of an expert, few or many of CUTLASS.
    """
    if kernel == "triton" and variant.startswith("fp8_block"):
        return (either(tokens <= 64, 16.0, 64.0),), (LARGE,)
    if kernel == "triton":
        rows = np.select([tokens <= 32, tokens <= 96, tokens <= 512], [16.0, 32.0, 64.0], LARGE)
        return (rows,), (either(tokens <= 64, LARGE / 2, LARGE),)
    sizes: tuple[Array, ...] = (LARGE,) if variant.endswith(".tma") else (LARGE / 4, LARGE)
    if kernel == "marlin":
        sizes = (np.select([mean < 0.9 * size for size in MARLIN[:-1]], MARLIN[:-1], MARLIN[-1]),)
    return sizes, (LARGE / 2, LARGE, 2 * LARGE)


def mixture_work(
    device: Device, variant: str, hidden: Array, inner: Array, tokens: Array, active: Array, found: Loads,
    gates: Array = 2.0, warm: bool = False,
) -> Work:  # fmt: skip
    """The work of the experts of a layer: each token picks `active` ones; `gates` products into the inner width.

    vLLM's Triton and Marlin write, activate and add up the rows of all picks, those of experts on other devices too.
    """
    form, kernel = multiplied(device, variant), mixture_kernel(device, variant)
    tokens = real(tokens)
    picks = tokens * active
    sizes = {"hidden": real(hidden), "inner": real(inner), "tokens": tokens}
    share = EARLIER.get(device.architecture, 1.0) if kernel == "marlin" else 1.0
    known = {"left": form.left, "right": form.right, "peak": device.peak(form.units) * share, "warm": warm}
    tiles = mixture_tiles(kernel, variant, tokens, picks / found.experts)
    written = found.total if kernel == "cutlass" or variant.startswith("mxfp4_wo.") else picks
    return {**sizes, **known, "gates": gates, "loads": found, "tiles": tiles, "written": written}
