"""Constants of the laws as they ship: `laws.yaml` has those that all NVIDIA devices share, a device's YAML its own.

Both are written by `scripts/fit_laws.py` from measured kernels, with source, date and the error of the fit. What it
does not fit, llama.cpp's kernels and devices of other vendors, is in `families.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import choose
from modelmeter.folders import read_once
from modelmeter.seconds.attention import PREFILL, VISION
from modelmeter.seconds.blocks import BLOCKS
from modelmeter.seconds.decode import DECODE
from modelmeter.seconds.families import content, family_of
from modelmeter.seconds.laws import QUEUED, Array, Law
from modelmeter.seconds.links import ALLREDUCE, TRANSFER
from modelmeter.seconds.mixture import GROUPED, MIXTURE
from modelmeter.seconds.product import PRODUCT
from modelmeter.seconds.shapes import NVIDIA, nearest
from modelmeter.seconds.stream import STREAM

ALL = (PRODUCT, MIXTURE, GROUPED, PREFILL, VISION, DECODE, STREAM, ALLREDUCE, TRANSFER, BLOCKS)
LAWS = {law.name: law for law in ALL}
FILE = Path(__file__).with_name("laws.yaml")
BORROWED = {"stream": "product", "grouped": "mixture"}
"""Laws without constants of their own, and whose they take, but where a device was measured for them."""
RANGES = (2e-6, 2e-5, 2e-4)
"""Bounds of the ranges of size, by what a plain roofline says, in seconds."""
_BOUNDS = np.array(RANGES)
WIDE = (0.5, 2.0)
"""The interval of what nothing was measured for: half to twice."""
NEAR = {"blocks": (0.7, 1.4)}
"""The interval of laws whose constants come from public figures of like devices, by what these differ in."""


class Found(NamedTuple):
    """Constants of a law on a device, what was left out like it when errors were told, what was not measured.

    `like` is shapes, devices or formats; vendors where a device of another vendor stands for it, or none.
    """

    constants: dict[str, float]
    like: str
    derived: str


def shipped() -> Mapping[str, Any]:
    """The content of `laws.yaml`."""
    found: Mapping[str, Any] = read_once(FILE)
    return found


def constants_of(law: Law, device: Device, variant: str) -> Found:
    """The constants of a law on a device in a variant: its own where it was measured, else those of a measured device
    of the same architecture, else what is known of its family, else the shared ones.

    A variant that was measured nowhere is the plain one at the peak of its format; NVIDIA's devices quantise its
    activations as those of fp8. Raises InputError for a device that lacks a figure that the law needs.
    """
    for figure in law.needs:
        device.need(figure)
    name = BORROWED.get(law.name, law.name)
    shared = shipped()["laws"].get(name) or {"constants": content().get(name, {c.name: c.start for c in law.constants})}
    own, like, told = device.laws.get(law.name) or device.laws.get(name, {}), "shapes", []
    plain, seen = {**shared["constants"], **queued(device, name), **_numbers(own)}, dict[str, float]()
    if not own:
        own, like, of = _of_kin(shared, device, name)
        told.append(f"{device.name} was not measured: {of}")
        plain = {**shared["constants"], **_numbers(own)}
        seen = streamed(device, plain)
    if variant in shared.get("plain", ("bf16",)):
        return Found({**plain, **seen}, like, "; ".join(told))
    extras, foreign = own.get("variants", {}).get(variant), like == "vendors"
    if extras is None:
        extras, like = shared.get("variants", {}).get(variant), "vendors" if foreign else "devices"
        told += [f"{variant} was not measured on {device.name}: as on other devices"] if extras and not told else []
    if extras is None:
        extras, like = {}, "vendors" if foreign else "formats"
        if device.architecture in NVIDIA:
            extras = shared.get("variants", {}).get(nearest(variant), {})
        told.append(f"{variant} was not measured: as bf16 at the peak of its format")
    return Found({**plain, **extras, **seen}, like, "; ".join(told))


class Known(NamedTuple):
    """A law in a variant on a device: its constants, the factors of the interval by range of size, low and high.

    Factors that are the same for all sizes are two numbers.
    """

    law: Law
    constants: dict[str, float]
    spread: tuple[Array, Array]
    derived: str

    def factors(self, roofline: Array) -> tuple[Array, Array]:
        """Those of the interval, by what a plain roofline says."""
        low, high = self.spread
        if not np.ndim(low):
            return low, high
        size = _BOUNDS.searchsorted(roofline, side="right")
        return low.take(size), high.take(size)


@lru_cache(maxsize=4096)
def known_of(name: str, device: Device, variant: str) -> Known:
    """All that no size changes of a law, by name, looked up once. Raises InputError as `constants_of` does."""
    law = law_of(name)
    found = constants_of(law, device, variant)
    sizes = [spread_of(law, size, found.like) for size in range(len(RANGES) + 1)]
    low, high = sizes[0] if len(set(sizes)) == 1 else np.array(sizes).T
    return Known(law, found.constants, (low, high), found.derived)


def _of_kin(shared: Mapping[str, Any], device: Device, law: str) -> tuple[Mapping[str, Any], str, str]:
    """Constants of devices that are like one: of its architecture, or of its family; how like, and which they are."""
    kin = shared.get("kin", {}).get(device.architecture, {})
    if kin:
        return kin, "devices", f"those of {kin['device']}, of its architecture"
    family = family_of(device.architecture, law)
    if family is None:
        return {}, "devices", "what NVIDIA devices share"
    return family.constants, "devices" if device.architecture in NVIDIA else "vendors", family.told


def queued(device: Device, law: str) -> dict[str, float]:
    """What a launch costs in a model's stream on a measured device, where its family knows it beside its loop."""
    family = family_of(device.architecture, law)
    return {QUEUED: family.constants[QUEUED]} if family and QUEUED in family.constants else {}


def streamed(device: Device, constants: Mapping[str, float]) -> dict[str, float]:
    """The share of its bandwidth that a device was seen to stream, for a law that has one."""
    if "memory" not in device.reached:
        return {}
    share = min(device.reached["memory"] / device.memory_bytes_per_s, 1.0)
    return {name: share for name in ("stream", "wide") if name in constants}


def _numbers(own: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in own.items() if isinstance(value, (int, float)) and key != "error"}


def spread_of(law: Law, size: int, like: str) -> tuple[float, float]:
    """Factors on predicted seconds between which 90 % of the measured ones are, by range of size; 1 is among them.

    They come from what was left out of a fit and is like it: shapes, devices or formats.
    """
    found = shipped()["laws"].get(law.name, {}).get("spread")
    if law.name in NEAR and like == "devices":
        return NEAR[law.name]
    if found is None or like == "vendors":
        return WIDE
    low, high = found[like][size]
    return min(float(low), 1.0), max(float(high), 1.0)


def law_of(name: str) -> Law:
    """A law by name. Raises InputError for an unknown one."""
    return LAWS[choose("law of time", name, LAWS)]
