"""Unknowns: what kernels, device and engine leave open beside the errors of the laws, as factors on seconds.

`unknowns.yaml` tells each with its source. They are independent of one another, and each is one for all kernels of a
step, or for those of a law.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.folders import read_once
from modelmeter.seconds.power import pace_of

FILE = Path(__file__).with_name("unknowns.yaml")


class Factor(NamedTuple):
    """Factors on seconds between which nine in ten lie; 1 is between them."""

    low: Any
    high: Any


def known() -> Mapping[str, Any]:
    """The content of `unknowns.yaml`."""
    found: Mapping[str, Any] = read_once(FILE)
    return found


def together(factors: Iterable[Factor]) -> Factor:
    """Independent factors as one: their logarithms add up as errors do.

    >>> found = together([Factor(0.5, 2.0), Factor(1.0, 1.0)])
    >>> round(float(found.low), 6), round(float(found.high), 6)
    (0.5, 2.0)
    """
    lows, highs = (sum(np.log(end) ** 2 for end in ends) ** 0.5 for ends in zip(*factors, strict=True))
    return Factor(np.exp(-lows), np.exp(highs))


def of_device(device: Device, heated: bool = True) -> list[Factor]:
    """What is open about a device beside what its laws leave open: its clock under load, by how that is known; not
    `heated`, as by steps that wait for memory, any device holds its clock; a processor was measured."""
    return [] if device.is_host else [Factor(*known()["clock"][pace_of(device).how if heated else "measured"])]


def of_engine(engine: str) -> dict[str, Factor]:
    """What is open about an engine's kernels, by law: nothing where they were measured."""
    if engine in known()["measured"]:
        return {}
    return {law: Factor(*factor) for law, factor in known()["engine"].items()}
