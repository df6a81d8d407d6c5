"""What torch tells of a GPU, which device of the catalogue it is, and where its figures come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from modelmeter.calibrate.fits import digits
from modelmeter.device import Device
from modelmeter.errors import InputError

NVIDIA = {(7, 0): "Volta", (7, 5): "Turing", (8, 9): "Ada", (9, 0): "Hopper", (8,): "Ampere",
          (10,): "Blackwell datacenter", (12,): "Blackwell"}  # fmt: skip
"""Architectures by compute capability, else by its first number."""
AMD = {"gfx90a": "CDNA2", "gfx94": "CDNA3", "gfx95": "CDNA4", "gfx103": "RDNA2", "gfx115": "RDNA3.5",
       "gfx11": "RDNA3", "gfx12": "RDNA4"}  # fmt: skip
"""Architectures by how the name of the instruction set begins."""
LANES = {(7, 0): 64, (7, 5): 64, (8, 0): 64}
"""Units for fp32 of a multiprocessor by compute capability; of all newer ones 128."""
NEAR = 0.15
"""How far the memory of a device of the catalogue may be from what torch tells: some of it is the driver's."""


OWN = ("name", "title", "source", "confidence", "laws", "host")
"""What a device of the catalogue does not lend."""
TOLD = ("multiprocessors", "memory_bytes", "l2_bytes", "clock_hz", "memory_bytes_per_s")
"""Figures that torch may tell."""


class Facts(NamedTuple):
    """What torch tells of a GPU; None for what it does not."""

    title: str
    architecture: str
    multiprocessors: float
    memory_bytes: float
    l2_bytes: float
    clock_hz: float | None
    memory_bytes_per_s: float | None
    lanes: float | None


def facts_of(properties: Any) -> Facts:
    """Those of `torch.cuda.get_device_properties`, which has more of them with every version; clocks are in kHz."""
    told = {  # 0 for what this version does not have
        name: float(getattr(properties, name, 0) or 0)
        for name in ("L2_cache_size", "clock_rate", "memory_clock_rate", "memory_bus_width")
    }
    instructions = str(getattr(properties, "gcnArchName", "") or "")
    foreign = next((name for start, name in AMD.items() if instructions.startswith(start)), None)
    if not told["L2_cache_size"]:
        raise InputError(f"torch does not tell the L2 of {properties.name}: update it to 2.5 or later")
    of = (int(properties.major), int(properties.minor))
    moved = 2 * told["memory_clock_rate"] * 1e3 * told["memory_bus_width"] / 8  # both edges of the clock
    return Facts(
        str(properties.name),
        foreign or NVIDIA.get(of) or NVIDIA.get(of[:1]) or f"compute capability {of[0]}.{of[1]}",
        float(properties.multi_processor_count),
        float(properties.total_memory),
        told["L2_cache_size"],
        told["clock_rate"] * 1e3 or None,
        moved or None,
        None if foreign else LANES.get(of, 128),
    )


def known_of(facts: Facts, devices: Iterable[Device]) -> Device | None:
    """The device of the catalogue that it is: as many multiprocessors, as much memory, the most words in common.

    >>> one = Device("h100", "NVIDIA H100 SXM", 1, 1, 1, 80e9, "a sheet", multiprocessors=132)
    >>> found = Facts("NVIDIA H100 80GB HBM3", "Hopper", 132, 84.9e9, 50e6, None, None, 128)
    >>> known_of(found, [one]).name, known_of(found._replace(multiprocessors=114), [one])
    ('h100', None)
    """
    own = _words(facts.title)
    alike = [
        device for device in devices
        if device.multiprocessors == facts.multiprocessors and own & _words(device.title) & _models(device.title)
        and abs(facts.memory_bytes / device.memory_bytes - 1) < NEAR
    ]  # fmt: skip
    return max(alike, key=lambda device: _likeness(facts, own, device), default=None)


def _words(title: str) -> set[str]:
    return set(re.split(r"[\s(),-]+", title.lower())) - {""}


def _models(title: str) -> set[str]:
    """Words that name a model: those with a number in them that is no amount of memory."""
    return {word for word in _words(title) if re.search(r"\d", word) and not re.fullmatch(r"\d+gb|\d{1,3}", word)}


def _likeness(facts: Facts, own: set[str], device: Device) -> tuple[int, float]:
    """How many words two titles share (SXM4 is SXM), then how near the memory is."""
    shared = sum(any(a.startswith(b) or b.startswith(a) for a in own) for b in _words(device.title))
    return shared, -abs(facts.memory_bytes / device.memory_bytes - 1)


def figures(facts: Facts, known: Device | None, measured: Mapping[str, float]) -> tuple[dict[str, Any], str]:
    """The figures of a datasheet, and where they come from: the catalogue, else what torch tells, else measurements.

    `measured` has the best rates by format, and those of `memory` and the `link` to the host.
    """
    link = {"host_link_bytes_per_s": digits(measured["link"])} if "link" in measured else {}
    if known is None:
        values, where = _unlisted(facts, measured)
        return values | link, where
    own = {f.name: getattr(known, f.name) for f in fields(Device) if f.name not in OWN}
    kept = {name: dict(value) if isinstance(value, Mapping) else value for name, value in own.items() if value}
    where = f"datasheet as of {known.name} in the catalogue ({known.source}); memory_bytes as torch tells"
    return {**kept, **link, "memory_bytes": facts.memory_bytes}, where


def _unlisted(facts: Facts, measured: Mapping[str, float]) -> tuple[dict[str, Any], str]:
    """Those of a device that the catalogue does not have."""
    told = {name: value for name, value in facts._asdict().items() if value and name in TOLD}
    best = max(measured.get(form, 0.0) for form in ("bf16", "fp16", "fp32"))
    fp32 = measured.get("fp32", best)
    clock = told.get("clock_hz") or fp32 / (2 * (facts.lanes or 128) * facts.multiprocessors)
    lanes = 2 * facts.lanes * facts.multiprocessors * clock if facts.lanes else 0.0
    derived = {
        "tensor_flops_per_s": best,
        "cuda_flops_per_s": max(fp32, lanes),
        "memory_bytes_per_s": measured["memory"],
        "clock_hz": clock,
    }
    if told.get("memory_bytes_per_s", 0.0) < measured["memory"]:
        told.pop("memory_bytes_per_s", None)
    peaks = {form: digits(measured[form]) for form in ("tf32", "fp8", "int8") if form in measured}
    names = [*(name for name in derived if name not in told), *(f"peaks.{form}" for form in peaks)]
    where = f"the best that was measured, or derived from it: {', '.join(names)}; as torch tells: {', '.join(told)}"
    numbers: dict[str, Any] = {name: digits(value) for name, value in (derived | told).items()}
    return {**numbers, "architecture": facts.architecture, **({"peaks": peaks} if peaks else {})}, where
