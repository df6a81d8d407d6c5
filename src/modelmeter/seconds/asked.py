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
from modelmeter.programs.formats import format_of
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.laws import Array, Work
from modelmeter.seconds.shapes import (
    FORMATS,
    QUANTISED,
    attention_work,
    cache_variant,
    plain_seconds,
    product_work,
)
from modelmeter.sizes import Expr, Size, anywhere, below, maximum, ratio


class Kind(NamedTuple):
    """What no size changes: the law, the format of a product, those of the FLOPs, whether weights are llama.cpp's
    blocks, whether a cache is narrower than 16 bits."""

    law: str
    format: str = "bf16"
    forms: tuple[str, ...] = ()
    blocks: bool = False
    narrow: bool = False


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
    flops = {f"flops {form}": work for form, work in kernel.tensor_flops.items()}
    return Asked(kind._replace(forms=tuple(kernel.tensor_flops)), {**sizes, "moved": kernel.io_bytes, **flops})


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
    stored = ratio(kernel.read_bytes.get("weight", 0), batch * n * k)
    kind = Kind("grouped" if kernel.grouped else "product", _format(kernel), blocks=_in_blocks(kernel))
    return kind, {"m": m, "n": n, "k": k, "batch": batch, "stored": stored}


def _format(kernel: Kernel) -> str:
    """The format that a product runs in: that of its units; of weights alone where these are narrower."""
    form = next(iter(kernel.tensor_flops), "bf16")
    if form not in FORMATS:
        return "bf16"
    unpacked = next(iter(kernel.unpack_flops), "")
    if _in_blocks(kernel):
        return "int8_wo"
    if form in QUANTISED or not unpacked:
        return form
    stored = f"{unpacked.partition('_')[0]}_wo"
    return stored if stored in FORMATS else form


def _in_blocks(kernel: Kernel) -> bool:
    """Whether weights are llama.cpp's blocks, multiplied in int8: each 32 of a sum are scaled by themselves.

    So products take what bf16 takes, and those of a few rows are vector kernels.
    """
    stored = next(iter(kernel.unpack_flops), "")
    return "int8" in kernel.tensor_flops and bool(stored) and format_of("weights", stored).ggml is not None


def _attention(kernel: Kernel) -> tuple[Kind, dict[str, Size]]:
    shape = dict(kernel.attention)
    causal, values = shape.pop("causal"), shape.pop("values")
    b, g, s, t, width = (shape[x] for x in ("batch", "kv_heads", "s", "t", "width"))
    alone = not isinstance(s, Expr) and bool(np.all(np.equal(s, 1)))
    law = ("decode" if alone else "prefill") if causal else "vision"
    cached = ratio(kernel.read_bytes.get("kv", 0), b * g * t * (width + values))
    narrow = anywhere(cached > 0) and below(cached, 2) if not isinstance(cached, Expr) else False
    return Kind(law, narrow=narrow), shape | {"width": ratio(width + values, 2)}


def work_of(kind: Kind, sizes: Mapping[str, Array], device: Device, warm: bool = False) -> tuple[str, Work]:
    """The variant of a law and its work, from arrays of sizes by the names of `asked_of`."""
    if kind.law == "allreduce":
        return kind.format, {**sizes, "warm": warm}
    if kind.law == "transfer":
        return kind.format, {**sizes, "peer": True}
    variant, work = kind.format, _work(kind, sizes, device, warm)
    if kind.law in ("prefill", "decode", "vision"):
        variant = cache_variant(device, kind.narrow)
    tensor = plain_seconds({form: sizes[f"flops {form}"] for form in kind.forms}, device)
    return variant, {**work, "roofline": np.maximum(tensor, sizes["moved"] / device.memory_bytes_per_s)}


def _work(kind: Kind, sizes: Mapping[str, Array], device: Device, warm: bool) -> dict[str, Any]:
    if kind.law == "stream":
        return {"bytes": sizes["moved"], "operations": sizes["operations"], "warm": warm}
    if kind.law in ("product", "grouped"):
        m, n, k, batch = (sizes[x] for x in ("m", "n", "k", "batch"))
        known = product_work(device, kind.format, m, np.round(n, 6), k, batch, warm)  # a quotient's rounding is no tile
        right = np.where(sizes["stored"] > 0, sizes["stored"], known["right"])
        vectors = known["vectors"] or kind.blocks
        return {**known, "right": right, "moved": sizes["moved"], "vectors": vectors}
    names = ("batch", "heads", "kv_heads", "width", "s", "t", "window")
    shape = {name: sizes[name] for name in names}
    known = attention_work(device, kind.law, cache_variant(device, kind.narrow), **shape, warm=warm)
    return {**known, "kernels": known["kernels"] - 1, "writes": False}
