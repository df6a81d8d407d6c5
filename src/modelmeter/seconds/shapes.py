"""Work of the laws from shapes: which format is multiplied at which peak, how many bytes an element takes.

A format that a device has no units for is stored as it is and multiplied in bf16 (weights alone are quantised then).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import choose
from modelmeter.seconds.laws import Array, Work
from modelmeter.seconds.mixture import Loads

FLASH3 = frozenset({"Hopper"})
"""Architectures that run FlashAttention 3; others run FlashAttention 2, and FlashInfer on a cache of 8 bits."""


def cache_variant(device: Device, narrow: bool) -> str:
    """The variant of attention that an engine runs on a cache of 16 bits, or of 8."""
    return ("fp8.fa3" if device.architecture in FLASH3 else "fp8.flashinfer") if narrow else "bf16"


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
    if form.units in device.peaks or form.units in ("bf16", "fp32"):
        return form
    return form._replace(left=2.0, units="bf16")


def product_work(
    device: Device, variant: str, m: Array, n: Array, k: Array, batch: Array = 1.0, warm: bool = False
) -> Work:
    """The work of products of m x k with k x n."""
    form = multiplied(device, variant)
    sizes = {name: np.asarray(size, float) for name, size in (("m", m), ("n", n), ("k", k), ("batch", batch))}
    vectors = (form.units in ("bf16", "fp32") and form.left == form.right) & (sizes["m"] <= FEW)
    few = np.where(sizes["m"] <= (LARGE if device.architecture in FLASH3 else 2 * LARGE), LARGE / 2, LARGE)
    least = {"fp8": few, "int8": few, "fp4": LARGE}.get(form.units, 1.0)
    known = {"left": form.left, "right": form.right, "peak": device.peak(form.units), "least": least}
    return {**sizes, **known, "vectors": vectors, "warm": warm}


def attention_work(
    device: Device, law: str, variant: str, batch: Array, heads: Array, kv_heads: Array, width: Array, s: Array,
    t: Array, window: Array = 0.0, warm: bool = False,
) -> Work:  # fmt: skip
    """The work of attention of s queries over t keys; `variant` begins with the format of the cache.

    The query heads of one KV head share a block (`grouped`) but in FlashAttention 2, which does so for one query and no
    window, by copying queries and outputs (`passes` over them), and splits a sequence only then.
    """
    names = ("batch", "heads", "kv_heads", "width", "s", "t", "window")
    sizes = (np.asarray(size, float) for size in (batch, heads, kv_heads, width, s, t, window))
    known = dict(zip(names, sizes, strict=True))
    each = FORMATS[choose("format of the cache", variant.partition(".")[0], FORMATS)].right
    three = device.architecture in FLASH3
    swapped = (known["s"] == 1) & (known["heads"] > known["kv_heads"]) & (known["window"] == 0)
    two = (not three) & (each >= 2)
    return {
        **known,
        "kv_bytes": each,
        "peak": device.peak("bf16"),
        "causal": law != "vision",
        "writes": law == "prefill",
        "grouped": swapped | (not two),
        "passes": np.where(two & swapped, 3.0, 1.0),
        "kernels": 2.0 + (three | ((law == "decode") & (swapped | (not two)))),
        "warm": warm,
    }


def mixture_work(
    device: Device, variant: str, hidden: Array, inner: Array, tokens: Array, active: Array, found: Loads,
    gates: float = 2.0, warm: bool = False,
) -> Work:  # fmt: skip
    """The work of the experts of a layer: each token picks `active` ones; `gates` products into the inner width."""
    form = multiplied(device, variant)
    tokens = np.asarray(tokens, float)
    sizes = {"hidden": np.asarray(hidden, float), "inner": np.asarray(inner, float), "tokens": tokens}
    known = {"left": form.left, "right": form.right, "peak": device.peak(form.units), "warm": warm}
    return {**sizes, **known, "picks": tokens * active, "gates": gates, "loads": found}
