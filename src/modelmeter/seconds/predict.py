"""Seconds of kernels: which law is a kernel's, the shape that it has there, the seconds and what binds them.

Kernels of one law are computed in one call, at one workload or many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.programs.formats import format_of
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.constants import constants_of, law_of, spread_of
from modelmeter.seconds.laws import Array, Work
from modelmeter.seconds.shapes import FORMATS, QUANTISED, attention_work, cache_variant, product_work

RANGES = (2e-6, 2e-5, 2e-4)
"""Bounds of the ranges of size, by what a plain roofline says, in seconds."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run of a kernel: the point, the interval that 90 % of its like were in, what binds.

    `roofline` is the bound by the datasheet; `derived` says what of it was not measured ("" for nothing).
    """

    law: str
    variant: str
    seconds: Array
    low: Array
    high: Array
    roofline: Array
    binds: Array
    derived: str


def seconds_of(kernels: Sequence[Kernel], device: Device, *, warm: bool = False) -> list[Estimate]:
    """Seconds of one run of each kernel on a device, the kernels alone: neither the host nor gaps between them.

    `warm` finds operands in the L2 again, as a benchmark's loop does. Raises InputError for a device without a figure
    that is needed, and for a kernel that is a whole stage: that is a bound, and nothing that runs.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    works: list[Work] = []
    for index, kernel in enumerate(kernels):
        law, variant, work = _work(kernel, device, warm)
        works.append(work)
        groups.setdefault((law, variant), []).append(index)
    found: dict[int, Estimate] = {}
    for (law, variant), indices in groups.items():
        estimate = seconds_of_work(law, variant, _stacked([works[i] for i in indices]), device)
        found |= zip(indices, _rows(estimate), strict=True)
    return [found[index] for index in range(len(kernels))]


def seconds_of_work(law: str, variant: str, work: Work, device: Device) -> Estimate:
    """Seconds of the work of a law (`shapes.py` makes it), for arrays of any shape. Raises InputError."""
    rule = law_of(law)
    known = constants_of(rule, device, variant)
    parts = rule.parts(known.constants, device, work)
    roofline = work["roofline"] if "roofline" in work else np.maximum(parts.compute, parts.memory)
    factors = np.array([spread_of(rule, size, known.like) for size in range(len(RANGES) + 1)])
    size = np.digitize(roofline, RANGES)
    low, high = (parts.seconds * factors[size, side] for side in (0, 1))
    return Estimate(law, variant, parts.seconds, low, high, roofline, parts.binds, known.derived)


def _stacked(works: Sequence[Work]) -> dict[str, Any]:
    """Works as one whose arrays have a first axis more, that of the kernels."""
    depth = max(np.ndim(value) for work in works for value in work.values())
    stacked = {}
    for name in works[0]:
        rows: Sequence[Any] = [work[name] for work in works]
        if depth:
            deep = (np.asarray(row) for row in rows)
            rows = np.broadcast_arrays(*(row.reshape((1,) * (depth - row.ndim) + row.shape) for row in deep))
        stacked[name] = np.array(rows)
    return stacked


def _rows(found: Estimate) -> Iterator[Estimate]:
    """The estimates of the kernels along the first axis; numbers where there is no further one."""
    names = ("seconds", "low", "high", "roofline", "binds")
    arrays = np.broadcast_arrays(*(getattr(found, name) for name in names))
    columns = (array.tolist() if array.ndim == 1 else array for array in arrays)
    for seconds, low, high, roofline, binds in zip(*columns, strict=True):
        yield Estimate(found.law, found.variant, seconds, low, high, roofline, binds, found.derived)


def _work(kernel: Kernel, device: Device, warm: bool) -> tuple[str, str, Work]:
    """The law of a kernel, its variant and its work."""
    if kernel.products > 1 and not kernel.attention:
        raise InputError(f"{kernel.path or 'the stage'}: a kernel of several products is a bound, not one that runs")
    moved = np.asarray(kernel.io_bytes, float)
    roofline = np.maximum(sum(_peaked(kernel, device)), moved / device.memory_bytes_per_s)
    if kernel.collective:
        return _collective(kernel, warm)
    if kernel.attention:
        law, variant, work = _attention(kernel, device, warm)
    elif kernel.loops:
        law, variant, work = _product(kernel, device, warm)
    else:
        operations = np.asarray(sum(kernel.cuda_flops.values()), float)
        law, variant, work = "stream", "bf16", {"bytes": moved, "operations": operations, "warm": warm}
    return law, variant, {**work, "roofline": roofline}


def _collective(kernel: Kernel, warm: bool) -> tuple[str, str, Work]:
    """A sum over devices has a law; what is gathered or exchanged is a copy over the link of what a device sends."""
    if kernel.collective == "all_reduce":
        moved = np.asarray(sum(kernel.read_bytes.values()), float)
        return "allreduce", "graph", {"bytes": moved, "devices": float(kernel.devices), "warm": warm}
    return "transfer", "bf16", {"bytes": np.asarray(kernel.link_bytes, float), "peer": True}


def _peaked(kernel: Kernel, device: Device) -> list[Array]:
    units = [(form, np.asarray(work, float)) for form, work in kernel.tensor_flops.items()]
    return [work / device.peak(_units(form, device)) for form, work in units] or [0.0]


def _units(form: str, device: Device) -> str:
    """The format that a device multiplies in: bf16 where it has none of the units, or where several are mixed."""
    name = FORMATS[form].units if form in FORMATS else "bf16"
    return name if name in device.peaks or name in ("bf16", "fp32") else "bf16"


def _product(kernel: Kernel, device: Device, warm: bool) -> tuple[str, str, Work]:
    m, n, k, batch = (np.asarray(kernel.loops[x], float) for x in ("m", "n", "k", "batch"))
    flops = sum(np.asarray(work, float) for work in kernel.tensor_flops.values())
    n = np.maximum(n, flops / (2 * m * k * batch))  # projections that are merged have the columns of all
    variant = _variant(kernel)
    work = product_work(device, variant, m, n, k, batch, warm)
    weights = kernel.read_bytes.get("weight", 0)
    each = np.asarray(weights, float) / (batch * n * k)
    known = {**work, "right": np.where(each > 0, each, work["right"]), "moved": np.asarray(kernel.io_bytes, float)}
    known["vectors"] = known["vectors"] or _in_blocks(kernel)
    known["quantised"] = "fp8_tensor" in kernel.unpack_flops  # by the kernels before
    return ("grouped" if kernel.grouped else "product"), variant, known


def _variant(kernel: Kernel) -> str:
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


def _attention(kernel: Kernel, device: Device, warm: bool) -> tuple[str, str, Work]:
    shape = {name: np.asarray(size, float) for name, size in kernel.attention.items()}
    causal = bool(np.all(shape["causal"]))
    law = "decode" if causal and bool(np.all(shape["s"] == 1)) else "prefill" if causal else "vision"
    b, g, t = shape["batch"], shape["kv_heads"], shape["t"]
    cached = np.asarray(kernel.read_bytes.get("kv", 0), float) / (b * g * t * (shape["width"] + shape["values"]))
    variant = cache_variant(device, 0 < float(np.max(cached)) < 2)
    width = (shape["width"] + shape["values"]) / 2
    work = attention_work(
        device, law, variant, b, shape["heads"], g, width, shape["s"], t, window=shape["window"], warm=warm
    )
    return law, variant, {**work, "kernels": work["kernels"] - 1, "writes": False}
