"""Spans of seconds, and the host: what launching, a step and the pixels of an image take on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.seconds.unknowns import Factor, together
from modelmeter.sizes import maximum
from modelmeter.workload import Workload


class Span(NamedTuple):
    """Seconds between which nine of ten are expected, and the most likely ones.

    In a sum the distances to the ends add up as those of independent errors do.

    >>> Span(1.0, 2.0, 3.0) + Span(1.0, 2.0, 3.0)
    Span(low=2.585786437626905, seconds=4.0, high=5.414213562373095)
    """

    low: float
    seconds: float
    high: float

    def __add__(self, other: Any) -> Span:
        """One after the other."""
        seconds = self.seconds + other.seconds
        low, high = (
            ((own - end) ** 2 + (theirs - its) ** 2) ** 0.5
            for own, end, theirs, its in (
                (self.seconds, self.low, other.seconds, other.low),
                (self.seconds, self.high, other.seconds, other.high),
            )
        )
        return Span(seconds - low, seconds, seconds + high)

    def along(self, other: Span) -> Span:
        """One after the other, whose errors are one, as those of stages on one device."""
        return Span(*map(sum, zip(self, other, strict=True)))

    def __mul__(self, times: Any) -> Span:
        """So many of them, whose errors are one."""
        return Span(*(part * times for part in self))

    def beside(self, other: Span) -> Span:
        """Both at once: the longer one."""
        return Span(*map(maximum, self, other))

    def widened(self, factors: Sequence[Factor]) -> Span:
        """With factors that are not known, independent of this and of one another."""
        if not factors:
            return self
        low, seconds, high = (np.maximum(end, LITTLE) for end in self)
        least, most = together([Factor(low / seconds, high / seconds), *factors])
        return Span(plain(self.seconds * least), self.seconds, plain(self.seconds * most))


LITTLE = 1e-30
"""Seconds that stand for none."""
NONE = Span(0.0, 0.0, 0.0)


@final
@dataclass(frozen=True)
class Host:
    """Seconds of the host: a launch by how a runtime starts kernels, a step, that of an engine in C++ for one user,
    a pixel of a view (configs/host.yaml).
    """

    eager: Span
    compiled: Span
    graph: Span
    step: Span
    pixel: Span
    native: Span = NONE
    shaped: Span = NONE

    given: frozenset[str] = frozenset()
    """Names of those that stand before what was measured on a device."""

    @classmethod
    def of(cls, values: Mapping[str, Sequence[float]], given: Iterable[str] = ()) -> Host:
        """From `[low, point, high]` by name. Raises InputError for what is none."""
        for key in values:
            if key not in SECONDS:
                raise InputError(f"unknown key {key!r} of host; valid: {', '.join(SECONDS)}")
        found = {key: _three(key, values.get(key)) for key in SECONDS}
        return cls(**found, given=frozenset(given))

    def on(self, device: Device) -> Host:
        """That of a device: what was measured there stands before this, but not before what is `given`."""
        own = {key: _three(key, value) for key, value in device.host.items() if key not in self.given}
        for key in own:
            if key not in SECONDS:
                raise InputError(f"device {device.name}: unknown key {key!r} of host; valid: {', '.join(SECONDS)}")
        found: Host = replace(self, **own) if own else self  # type: ignore[arg-type]
        return replace(found, shaped=found.compiled) if device.is_host else found  # a processor calls its kernels

    def images(self, work: Workload) -> Span:
        """What preparing the images of a batch takes one core; decoding a file is left out."""
        pixels = sum(view.count * view.height * view.width for view in work.image.views)
        taken: Span = self.pixel * (work.batch * pixels)
        return taken

    def beside(self, work: Workload) -> Span:
        """What stands beside a step: sampling, scheduling."""
        return self.native if work.runtime.native else self.step

    def launches(self, work: Workload, stage: str, many: Any) -> Span:
        """What starting so many kernels takes; a graph is that of a step of decode, other stages run compiled."""
        launch = str(work.runtime.launch)
        each: Span = getattr(self, "compiled" if launch == "graph" and stage != "decode" else launch)
        taken: Span = each * many
        return taken


SECONDS = tuple(name for name in Host.__dataclass_fields__ if name != "given")
"""What a host has seconds of."""


def _three(key: str, one: Any) -> Span:
    given = one if isinstance(one, Sequence) and not isinstance(one, str) else [one]
    known = [float(v) for v in given if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(known) != 3 or len(given) != 3 or not 0 <= known[0] <= known[1] <= known[2]:
        raise InputError(f"host.{key} must be [low, point, high] in seconds, rising, not {one!r}")
    return Span(*known)


def plain(values: Any) -> Any:
    """An array, or a plain number."""
    return values if np.ndim(values) else float(values)
