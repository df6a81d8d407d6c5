"""What kernels ask of the laws: which law is a kernel's, the sizes that it has there, and the law's work from them.

`asked_of` takes any sizes, expressions too, so that a stage's kernels are looked at once (`timer.py`); `work_of` takes
arrays of many kernels that ask the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.blocks import blocks_work, stored_in_blocks
from modelmeter.seconds.laws import Array, Work, either, real
from modelmeter.seconds.shapes import (
    FORMATS,
    QUANTISED,
    attention_work,
    cache_variant,
    decode_rows,
    plain_seconds,
    product_work,
)
from modelmeter.sizes import Expr, Size, anywhere, evaluated, maximum, ratio

TYPICAL = 256
"""A value of every size, where a quotient is asked that does not depend on them but for padding."""
EXACT = 1e6
"""Parts of a column that a quotient is rounded to."""


class Kind(NamedTuple):
    """What no size changes: the law, the format of a product, those of the FLOPs; in which blocks of llama.cpp weights
    are `stored`, and whether these are taken `apart` before; whether a `few` rows of 32 bits meet weights of 16;
    whether attention is `ggml`'s, and a cache narrower than 16 bits; whether activations were quantised by kernels
    before (`static`); whether the host submits each kernel by itself (`alone`)."""

    law: str
    format: str = "bf16"
    forms: tuple[str, ...] = ()
    stored: str = ""
    apart: bool = False
    few: bool = False
    ggml: bool = False
    narrow: bool = False
    static: bool = False
    alone: bool = False


class Asked(NamedTuple):
    """What a kernel asks of its law: its kind and its sizes by name."""

    kind: Kind
    sizes: Mapping[str, Size]


def asked_of(kernel: Kernel) -> Asked:
    """What a kernel asks. Raises InputError for one that is a whole stage: that is a bound, and nothing that runs."""
    if kernel.products > 1 and not kernel.attention:
        raise InputError(f"{kernel.path or 'the stage'}: a kernel of several products is a bound, not one that runs")
    if kernel.collective:
        return _collective(kernel)
    kind, sizes = _attention(kernel) if kernel.attention else _product(kernel) if kernel.loops else _stream(kernel)
    flops: dict[str, Size] = {}
    for form, work in kernel.tensor_flops.items():
        flops[_multiplied(kernel, form)] = flops.get(_multiplied(kernel, form), 0) + work
    own = {f"flops {form}": work for form, work in flops.items()}
    return Asked(kind._replace(forms=tuple(flops)), {**sizes, "moved": kernel.io_bytes, **own})


def _collective(kernel: Kernel) -> Asked:
    """A sum over devices has a law; what is gathered or exchanged is a copy over the link of what a device sends."""
    if kernel.collective == "all_reduce":
        sizes = {"bytes": sum(kernel.read_bytes.values()), "devices": kernel.devices}
        return Asked(Kind("allreduce", "graph"), sizes)
    return Asked(Kind("transfer"), {"bytes": kernel.link_bytes})


def _stream(kernel: Kernel) -> tuple[Kind, dict[str, Size]]:
    return Kind("stream"), {"operations": sum(kernel.cuda_flops.values())}


def _product(kernel: Kernel) -> tuple[Kind, dict[str, Size]]:
    m, n, k, batch = (kernel.loops[x] for x in ("m", "n", "k", "batch"))
    flops = sum(kernel.tensor_flops.values())
    n = maximum(n, ratio(flops, 2 * m * k * batch))  # projections that are merged have the columns of all
    each = ratio(kernel.read_bytes.get("weight", 0), batch * n * k)
    blocks, law = stored_in_blocks(kernel), "grouped" if kernel.grouped else "product"
    few = not blocks and "fp32" in kernel.tensor_flops and not kernel.unpack_flops and _within(each, 2)
    kind = Kind("blocks" if blocks else law, _format(kernel), stored=blocks, few=few,
                static="fp8_tensor" in kernel.unpack_flops)  # fmt: skip
    tokens = {"tokens": ratio(m * batch, kernel.picks) if kernel.grouped else m} if blocks else {}
    return kind, {"m": m, "n": n, "k": k, "batch": batch, "stored": each, **tokens}


def _within(each: Size, most: float) -> bool:
    """Whether bytes an element are above 0 and no more than these, which no size changes: asked at one value of all."""
    if isinstance(each, Expr):
        [each] = evaluated([each], dict.fromkeys(each.names, TYPICAL))
    return anywhere(each > 0) and not anywhere(each > most)


def _multiplied(kernel: Kernel, form: str) -> str:
    """The format that a product is computed in: 16 bits where activations of 32 meet weights or a cache of fewer."""
    if form != "fp32" or not kernel.loops:
        return form
    held = kernel.read_bytes.get("weight", 0) + ratio(kernel.read_bytes.get("kv", 0), 2 if kernel.attention else 1)
    each = ratio(held, kernel.loops["batch"] * kernel.loops["n"] * kernel.loops["k"])
    return "bf16" if _within(each, 2.5) else form


def _format(kernel: Kernel) -> str:
    """The format that a product runs in: that of its units; of weights alone where these are narrower."""
    form = _multiplied(kernel, next(iter(kernel.tensor_flops), "bf16"))
    if form not in FORMATS:
        return "bf16"
    unpacked = next(iter(kernel.unpack_flops), "")
    if form in QUANTISED or not unpacked:
        return form
    stored = f"{unpacked.partition('_')[0]}_wo"
    return stored if stored in FORMATS else form


def _attention(kernel: Kernel) -> tuple[Kind, dict[str, Size]]:
    shape = dict(kernel.attention)
    causal, values, shared = shape.pop("causal"), shape.pop("values"), shape.pop("shared", 0)
    b, g, s, t, width = (shape[x] for x in ("batch", "kv_heads", "s", "t", "width"))
    alone = not isinstance(s, Expr) and bool(np.all(np.equal(s, 1)))
    law = "decode" if alone else "prefill" if causal else "vision"  # one query sees all keys, masked or not
    held = width if shared else width + values
    cached = ratio(kernel.read_bytes.get("kv", 0), b * g * t * held)
    sizes = {"width": ratio(width + values, 2), "held": ratio(held, width + values)}
    return Kind(law, ggml="fp32" in kernel.tensor_flops, narrow=_within(cached, 1.99)), shape | sizes


def work_of(kind: Kind, sizes: Mapping[str, Array], device: Device, warm: bool = False) -> tuple[str, Work]:
    """The variant of a law and its work, from arrays of sizes by the names of `asked_of`."""
    if kind.law == "allreduce":
        return kind.format, {**sizes, "warm": warm}
    if kind.law == "transfer":
        return kind.format, {**sizes, "peer": True}
    variant, work = "bf16" if kind.law == "blocks" else kind.format, _work(kind, sizes, device, warm)
    if kind.law in ("prefill", "decode", "vision"):
        variant = cache_variant(device, kind.law, kind.narrow)
    return variant, {**work, "roofline": roofline_of(kind, sizes, device), "alone": kind.alone}


def roofline_of(kind: Kind, sizes: Mapping[str, Array], device: Device) -> Array:
    """Seconds by the datasheet: the units of each format one after the other, or the memory."""
    work = {form: real(sizes[f"flops {form}"]) for form in kind.forms}
    if kind.law == "prefill":  # however pairs are counted, a kernel skips what the mask hides
        seen = 4 * sizes["batch"] * sizes["heads"] * sizes["width"] * _pairs(*(sizes[x] for x in ("s", "t", "window")))
        work = {form: np.minimum(flops, seen) for form, flops in work.items()}
    return np.maximum(plain_seconds(work, device), real(sizes["moved"]) / device.memory_bytes_per_s)


def _pairs(s: Array, t: Array, window: Array) -> Array:
    """Pairs that a causal mask leaves of s queries, the last of t positions, with a window (0: none).

    >>> float(_pairs(3, 5, 0)), float(_pairs(3, 5, 2))
    (12.0, 6.0)
    """
    most = np.where(window > 0, window, np.inf)
    first, last = np.minimum(most, t - s), np.minimum(most, t)
    return (last * (last + 1) - first * (first + 1)) / 2 + (s - (last - first)) * window


def _work(kind: Kind, sizes: Mapping[str, Array], device: Device, warm: bool) -> dict[str, Any]:
    if kind.law == "stream":
        return {"bytes": real(sizes["moved"]), "operations": real(sizes["operations"]), "warm": warm}
    if kind.law in ("product", "grouped"):
        m, n, k, batch = (sizes[x] for x in ("m", "n", "k", "batch"))
        n = np.rint(n * EXACT) / EXACT  # a quotient's rounding is no tile
        known = product_work(device, kind.format, m, n, k, batch, warm)
        stored = real(sizes["stored"])
        right = either(stored > 0, stored, known["right"])
        return {**known, "right": right, "moved": real(sizes["moved"]), "quantised": kind.static}
    if kind.law == "blocks":
        return {**blocks_work(kind.stored, sizes), "warm": warm}
    names = ("batch", "heads", "kv_heads", "width", "s", "t", "window")
    shape = {name: sizes[name] for name in names}
    known = attention_work(device, kind.law, cache_variant(device, kind.law, kind.narrow), **shape, warm=warm)
    if kind.law == "decode" and (each := decode_rows(device, kind.ggml)):
        shared = np.ceil(real(sizes["heads"]) / real(sizes["kv_heads"]) / each)
        known = {**known, "rows": either(known["grouped"], shared * each, each)}
    held = known["kv_bytes"] * sizes.get("held", 1.0)  # of keys and values, what is read
    return {**known, "kernels": known["kernels"] - 1, "writes": False, "kv_bytes": held}
