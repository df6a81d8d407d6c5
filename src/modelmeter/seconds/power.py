"""Power: what a limit leaves of a device's peaks in large products, and clocks above the datasheet's.

A device that is given few watts a multiprocessor lowers its clock in large products until it meets its limit. Among
boards of one architecture, and on one board at several limits, the rate that is left is in proportion to the watts: so
many joules an operation. So matrix units take no less than their FLOPs at that rate, whatever else a kernel does; one
that multiplies little, as in a decode step, never meets it. The rate is a figure of the device (`reached`), else its
watts by the joules of its architecture (`power.yaml`). Bandwidth stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.folders import read_once
from modelmeter.seconds.constants import known_of
from modelmeter.seconds.laws import Parts, soft, where
from modelmeter.seconds.product import PRODUCT
from modelmeter.seconds.shapes import product_work

FILE = Path(__file__).with_name("power.yaml")
LARGE = 8192
"""Rows, columns and inner length of a product that is large: those that the public figures are of."""
INFINITE = float("inf")
TOLD = {
    "alike": "its clock under load is that of like devices at its watts",
    "shared": "its clock under load is not known, as it has no link to a host and so shares its watts",
    "unknown": "its clock under load is not known",
}


class Pace(NamedTuple):
    """What a device's clock under load does to seconds of compute, and `how` that is known.

    `product` multiplies those of products, `clock` those of other kernels; matrix units take `least` times their
    seconds at the peak, or more, CUDA cores at the tiles of llama.cpp's blocks `cores` times theirs.
    """

    product: float
    clock: float
    least: float
    cores: float
    how: str

    @property
    def told(self) -> str:
        """What is to be said of it: nothing where it was measured."""
        return TOLD.get(self.how, "")


STILL = Pace(1.0, 1.0, 0.0, 0.0, "measured")
"""A device that laws were measured on: their constants hold its clock."""


@lru_cache(maxsize=4096)
def pace_of(device: Device) -> Pace:
    """A device's pace: from figures of its own, else from its watts, else as its datasheet says."""
    if device.laws or device.is_host:
        return STILL
    peak, large = device.tensor_flops_per_s, large_rate(device)
    (rate, how), (cores, _) = (rate_of(device, form) for form in ("bf16", "fp32"))
    rate, usual = rate / _content()["against"], _content()["cores"] * device.cuda_flops_per_s
    return Pace(
        product=large / max(large, rate) if rate < INFINITE else 1.0,
        clock=1 / device.above,
        least=peak / rate if rate < large else 0.0,
        cores=usual / cores,
        how=how,
    )


def rate_of(device: Device, form: str) -> tuple[float, str]:
    """FLOPs a second that large products reach in bf16 or fp32 (infinite: not known), and how that is known.

    What has no link to a host is part of a processor, whose watts it shares: these tell nothing.

    >>> card = Device("x", "X", 90e12, 22e12, 1e12, 1e9, "a sheet", architecture="Ada", multiprocessors=40,
    ...               clock_hz=2.2e9, watts=63.5, host_link_bytes_per_s=3e10)
    >>> rate_of(card, "bf16")
    (50000000000000.0, 'alike')
    """
    if form in device.reached:
        return float(device.reached[form]), "reached"
    chip = _chip(device)
    joules = chip.get("joules", {}).get(form)
    if device.host_link_bytes_per_s is None:
        return INFINITE, "shared"
    if device.watts is None or joules is None:
        return INFINITE, "unknown"
    allowed = device.watts / float(joules)
    if form != "bf16":
        return allowed, "alike"
    share = chip.get("share")
    free = share * device.tensor_flops_per_s if share else large_rate(device) * _content()["against"]
    return min(allowed, float(free)), "alike"


def large_rate(device: Device) -> float:
    """FLOPs a second of a large product in bf16 by the law of products; the peak where the device lacks a figure."""
    if any(getattr(device, figure) is None for figure in PRODUCT.needs):
        return device.tensor_flops_per_s
    known = known_of("product", device, "bf16")
    parts = known.law.parts(known.constants, device, product_work(device, "bf16", LARGE, LARGE, LARGE))
    return float(2 * LARGE**3 / parts.seconds)


def paced(law: str, device: Device, sharp: float, parts: Parts) -> Parts:
    """The parts of a law at the clock that a device holds."""
    pace = pace_of(device)
    if pace is STILL:
        return parts
    factor = {"product": pace.product, "blocks": 1.0}.get(law, pace.clock)
    compute = np.maximum(parts.compute * factor, parts.busy * (pace.cores if law == "blocks" else pace.least))
    seconds = where(
        compute != parts.compute,
        lambda seconds, now, still, memory: seconds + (soft(now, memory, sharp) - soft(still, memory, sharp)),
        parts.seconds, compute, parts.compute, parts.memory,
    )  # fmt: skip
    return parts._replace(seconds=seconds, compute=compute)


def _chip(device: Device) -> Mapping[str, Any]:
    """What is known of the chips of a device's architecture that do about as many FLOPs a cycle."""
    if device.multiprocessors is None or device.clock_hz is None:
        return {}
    rate = device.tensor_flops_per_s / (device.multiprocessors * device.clock_hz)
    chips: Mapping[int, Mapping[str, Any]] = _content()["chips"].get(device.architecture, {})
    return next((found for known, found in chips.items() if abs(log2(rate / known)) < 0.5), {})


def _content() -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_once(FILE)
    return found
