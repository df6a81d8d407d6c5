"""Times: what a request takes on a device, from the seconds of a runtime's kernels and of the host that starts them.

A stage is the busier of two that overlap, the device and the host that launches its kernels, and then what does not:
sampling and scheduling. Images are prepared on the host before. Every figure is an interval with the point inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import hypot
from typing import Any, NamedTuple, final

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.models.model import BaseModel
from modelmeter.programs.kernels import Kernel
from modelmeter.runtimes.passes import whole_stage
from modelmeter.seconds.predict import Estimate, seconds_of
from modelmeter.seconds.unknowns import Factor, of_device, of_engine, together
from modelmeter.workload import Workload

POINTS = 9
"""Steps of decode that are asked, the first and the last among them; between two of them seconds grow evenly."""


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
        return Span(
            seconds - hypot(self.seconds - self.low, other.seconds - other.low),
            seconds,
            seconds + hypot(self.high - self.seconds, other.high - other.seconds),
        )

    def along(self, other: Span) -> Span:
        """One after the other, whose errors are one, as those of stages on one device."""
        return Span(*map(sum, zip(self, other, strict=True)))

    def __mul__(self, times: Any) -> Span:
        """So many of them, whose errors are one."""
        return Span(*(part * times for part in self))

    def beside(self, other: Span) -> Span:
        """Both at once: the longer one."""
        return Span(*map(max, self, other))

    def widened(self, factors: Iterable[Factor]) -> Span:
        """With factors that are not known, independent of this and of one another."""
        if not self.low:
            return self
        low, high = together([Factor(self.low / self.seconds, self.high / self.seconds), *factors])
        return Span(self.seconds * low, self.seconds, self.seconds * high)


NONE = Span(0.0, 0.0, 0.0)


@final
@dataclass(frozen=True)
class Host:
    """Seconds of the host: a launch by how a runtime starts kernels, a step, a pixel of a view (configs/time.yaml)."""

    eager: Span
    compiled: Span
    graph: Span
    step: Span
    pixel: Span

    @classmethod
    def of(cls, values: Mapping[str, Sequence[float]]) -> Host:
        """From `[low, point, high]` by name. Raises InputError for what is none."""
        fields = cls.__dataclass_fields__
        for key in values:
            if key not in fields:
                raise InputError(f"unknown key {key!r} of host; valid: {', '.join(fields)}")
        found = {}
        for key in fields:
            one: Any = values.get(key)
            given = one if isinstance(one, Sequence) and not isinstance(one, str) else [one]
            known = [float(v) for v in given if isinstance(v, (int, float)) and not isinstance(v, bool)]
            if len(known) != 3 or len(given) != 3 or not 0 <= known[0] <= known[1] <= known[2]:
                raise InputError(f"host.{key} must be [low, point, high] in seconds, rising, not {one!r}")
            found[key] = Span(*known)
        return cls(**found)

    def launches(self, work: Workload, stage: str, many: float) -> Span:
        """What starting so many kernels takes; a graph is that of a step of decode, other stages run compiled."""
        launch = str(work.runtime.launch)
        each: Span = getattr(self, "compiled" if launch == "graph" and stage != "decode" else launch)
        return each * many


@final
@dataclass(frozen=True)
class StageTime:
    """Seconds of one run of a stage (of decode: of a step, on average): device and host, which overlap, and the step.

    `kernels` are those of one run, each with its estimate, as often as it `runs`; `bound` is what the datasheet allows
    at the least traffic of any fusion.
    """

    stage: str
    device: Span
    launches: Span
    step: Span
    bound: float
    kernels: tuple[tuple[Kernel, Estimate], ...]
    overlaps: bool = False
    """Whether the engine prepares the next step while the device runs this one."""

    @property
    def span(self) -> Span:
        """Seconds of the stage."""
        if self.overlaps:
            return self.device.beside(self.launches + self.step)
        return self.device.beside(self.launches) + self.step

    @property
    def binds(self) -> str:
        """What the stage waits for: "host-bound", "launch-bound", "memory-bound" or "compute-bound"."""
        if self.launches.seconds > self.device.seconds:
            return "host-bound"
        shares: dict[str, float] = {}
        for kernel, estimate in self.kernels:
            what = str(np.asarray(estimate.binds).flat[-1])
            shares[what] = shares.get(what, 0.0) + _mean(kernel.runs * estimate.seconds)
        return f"{max(shares, key=lambda what: shares[what])}-bound"


def _mean(values: Any) -> float:
    """The mean of what grows evenly between points that stand at equal distances."""
    array = np.asarray(values, float)
    if array.ndim == 0 or array.size == 1:
        return float(array.reshape(-1)[0])
    return float((array[:-1] + array[1:]).sum() / 2 / (array.size - 1))


@final
@dataclass(frozen=True)
class Times:
    """What a workload takes on a device: its stages, TTFT, TPOT, seconds a page. Raises InputError as laws do.

    `engine` says whose kernels run ("": those of the runtime); one that `overlaps` prepares the next step of decode
    while the device runs.
    """

    model: BaseModel
    work: Workload
    on: Device
    host: Host
    engine: str = ""
    overlaps: bool = False

    def __post_init__(self) -> None:
        if whole_stage in self.work.runtime.passes:
            raise InputError(f"runtime {self.work.runtime.name!r} is a bound, and nothing that runs; it has no time")

    @cached_property
    def stages(self) -> dict[str, StageTime]:
        """The stages of the workload, by name."""
        present = (stage.name for stage in self.model.stages if stage.structure(self.work) != ())
        return {name: self._stage(name) for name in present}

    def _stage(self, name: str) -> StageTime:
        kernels = self._kernels(name, self.work)
        found = tuple(zip(kernels, seconds_of(kernels, self.on), strict=True))
        many = sum(_mean(kernel.runs) for kernel in kernels)
        step = NONE if name == "vision" else self.host.step
        launches = self.host.launches(self.work, name, many)
        device = busy(found, of_engine(self.engine or self.work.runtime.name)).widened(of_device(self.on))
        return StageTime(name, device, launches, step, self._bound(name), found, self.overlaps and name == "decode")

    def _kernels(self, name: str, work: Workload) -> list[Kernel]:
        """The kernels of one run of a stage; where it runs in steps, each at several of these."""
        stage, program = self.model.stage(name), self.model.program(name, work)
        if stage.steps is None:
            return self.model.kernels(name, work)
        sizes = dict(stage.sizes(work))
        first, many = int(sizes[stage.grows]), int(stage.steps(work))
        asked = np.linspace(first, first + many - 1, min(POINTS, many))
        sizes[stage.grows] = np.round(asked) if many > 1 else first
        return program.kernels(**{axis: s for axis, s in sizes.items() if axis in (*program.names, stage.grows)})

    def _bound(self, name: str) -> float:
        """Seconds by the datasheet: the busiest of its units at the least traffic of any fusion."""
        least = replace(self.work, runtime="compulsory")
        [kernel] = self._kernels(name, least)
        plain = [
            work / self.on.peak(form if form in self.on.peaks else "bf16") for form, work in kernel.tensor_flops.items()
        ]
        return _mean(np.maximum(sum(plain, start=0.0), np.asarray(kernel.io_bytes, float) / self.on.memory_bytes_per_s))

    @cached_property
    def images(self) -> Span:
        """Seconds to prepare the images of a batch on one core of the host; decoding a file is left out."""
        pixels = sum(view.count * view.height * view.width for view in self.work.image.views)
        return self.host.pixel * float(self.work.batch * pixels)

    @property
    def ttft(self) -> Span:
        """Seconds to the first token of all requests of the batch: images, vision and prefill, one after the other."""
        return self.images + self._first

    @property
    def tpot(self) -> Span:
        """Seconds a token of each request, on average over the answer."""
        return self.stages["decode"].span

    @property
    def request(self) -> Span:
        """Seconds from the images to the last token: as many steps as the answer has tokens follow the prefill."""
        return self.images + self._first.along(self.tpot * float(self.work.decode_steps))

    @property
    def _first(self) -> Span:
        """Seconds of the stages before the first token."""
        return reduce(Span.along, (stage.span for name, stage in self.stages.items() if name != "decode"), NONE)

    @property
    def bound(self) -> float:
        """Seconds of the request that the datasheet allows."""
        once = sum(stage.bound for name, stage in self.stages.items() if name != "decode")
        return once + self.stages["decode"].bound * float(self.work.decode_steps)


def busy(kernels: Iterable[tuple[Kernel, Estimate]], engine: Mapping[str, Factor] | None = None) -> Span:
    """Seconds that kernels keep a device busy: errors of one law are one, those of several independent.

    `engine` has factors that are not known by law.
    """
    laws: dict[str, tuple[float, float, float]] = {}
    for kernel, estimate in kernels:
        ends = (estimate.low, estimate.seconds, estimate.high)
        own = (_mean(kernel.runs * np.asarray(end, float)) for end in ends)
        laws[estimate.law] = tuple(map(sum, zip(laws.get(estimate.law, NONE), own, strict=True)))  # type: ignore[assignment]
    known = engine or {}
    spans = (Span(*ends).widened([known[law]] if law in known else []) for law, ends in laws.items())
    return sum(spans, start=NONE)
