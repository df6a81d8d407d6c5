"""Times: what a request takes on a device, from the seconds of a runtime's kernels and of the host that starts them.

A stage is the busier of two that overlap, the device and the host that launches its kernels, and then what does not:
sampling and scheduling. Images are prepared on the host before. Every figure is an interval with the point inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce
from typing import Any, cast, final

import numpy as np

from modelmeter.device import ENGINES, Device
from modelmeter.errors import InputError
from modelmeter.folders import config_names
from modelmeter.host import NONE, Host, Span, plain
from modelmeter.models.model import BaseModel, Stage
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.laws import real
from modelmeter.seconds.predict import Estimate, seconds_of
from modelmeter.seconds.processor import calibrated
from modelmeter.seconds.shapes import plain_seconds, require_units
from modelmeter.seconds.timer import AtSizes, Sums, Timer, sums_of
from modelmeter.seconds.unknowns import of_device, of_engine
from modelmeter.sizes import Evaluator, Size, maximum, minimum
from modelmeter.workload import Workload

Timed = tuple[tuple[Kernel, Estimate], ...]
"""Kernels, each with its estimate of one run."""
POINTS = 9
"""Steps of decode that are asked, the first and the last among them; between two of them seconds grow evenly."""


@final
@dataclass(frozen=True)
class StageTime:
    """Seconds of one run of a stage (of decode: of a step, on average): device and host, which overlap, and the step.

    `runs` is how many kernels run. `kernels` are those of one run, each with its estimate, and `bound` is what the
    datasheet allows at the least traffic of any fusion; both are made when they are asked for.
    """

    stage: str
    device: Span
    launches: Span
    step: Span
    runs: Any
    of: Times

    @property
    def span(self) -> Span:
        """Seconds of the stage; some engines prepare the next step beside it."""
        if self.of.overlaps and self.stage == "decode" and not self.of.on.is_host:
            return self.device.beside(self.launches + self.step)
        return self.busy + self.step

    @property
    def busy(self) -> Span:
        """Seconds of its kernels and of launching them; a processor launches and computes in turn."""
        return self.device + self.launches if self.of.on.is_host else self.device.beside(self.launches)

    @cached_property
    def kernels(self) -> Timed:
        """The kernels of one run, each with its estimate."""
        return self.of.kernels(self.stage)

    @cached_property
    def bound(self) -> Any:
        """Seconds by the datasheet."""
        return self.of.bound_of(self.stage)

    @property
    def binds(self) -> str:
        """What the stage waits for: "host-bound", "launch-bound", "memory-bound" or "compute-bound"."""
        busiest = binds(self.kernels)
        return "host-bound" if self.launches.seconds > self.device.seconds else busiest


def binds(kernels: Timed) -> str:
    """What most of the seconds of kernels go to: "launch-bound", "memory-bound" or "compute-bound"."""
    shares: dict[str, float] = {}
    for kernel, estimate in kernels:
        what = str(np.asarray(estimate.binds).flat[-1])
        shares[what] = shares.get(what, 0.0) + mean(kernel.runs * estimate.seconds)
    return f"{max(shares, key=lambda what: shares[what])}-bound"


def mean(values: Any) -> float:
    """The mean over steps of what grows evenly between those that are asked, which stand at equal distances."""
    array = np.asarray(values, float).reshape(-1)
    return float((array * trapezoid(np.arange(array.size), array.size)).sum())


def trapezoid(places: Any, points: Any) -> Any:
    """The weights of points at equal distances in the mean of what grows evenly between them; beyond the last: none.

    >>> trapezoid(np.arange(4), 3).tolist(), trapezoid(np.arange(2), 1).tolist()
    ([0.25, 0.5, 0.25, 0.0], [1.0, 0.0])
    """
    inner = (places > 0) & (places < points - 1)
    return np.where(places < points, np.where(inner | (points == 1), 1.0, 0.5), 0.0) / np.maximum(points - 1, 1)


@cache
def _trapezoid(points: int) -> Any:
    return trapezoid(np.arange(points), points)


@final
class Looked:
    """A stage as a runtime runs it, looked at once for all workloads of a structure: its program, kernels, least work.

    The least are bytes and FLOPs by format (`forms`) of sizes by `names`: of pairs that a mask leaves and logits that
    the runtime computes.
    """

    def __init__(self, model: BaseModel, stage: Stage, work: Workload) -> None:
        self.stage, self.program, self._runtime = stage, model.program(stage.name, work), work.runtime
        logits = work.runtime.fixed.get("logits", work.logits)
        least = model.program(stage.name, replace(work, runtime="compulsory", causal="exact", logits=logits))
        moved: list[Size] = [0]  # of a part of a model that a stage has nothing in
        self.forms, self.names = tuple[str, ...](), least.kernel_names
        for kernel in least.formal_kernels:
            self.forms, moved = tuple(kernel.tensor_flops), [kernel.io_bytes, *kernel.tensor_flops.values()]
        self.least = Evaluator(self.names, moved).rounded

    @cached_property
    def timer(self) -> Timer:
        """Its kernels."""
        dequantised, alone = self._runtime.products == "dequantised", self._runtime.launch == "shaped"
        return Timer(self.program.formal_kernels, self.stage.grows, dequantised, alone)


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
        if self.work.runtime.is_bound:
            raise InputError(f"runtime {self.work.execution!r} is a bound, and nothing that runs; it has no time")
        require_units(self.on, str(self.work.precision.activations))
        self._require_backend()
        measured = str(self.on.laws.get("runtimes", ""))
        if measured and self.work.runtime.name not in measured.split():
            raise InputError(
                f"device {self.on.name} was measured with {self.on.laws['engine']}, for runtime {measured}, not "
                f"{self.work.runtime.name!r}; calibrate it with another engine, or ask for one of these"
            )
        object.__setattr__(self, "host", self.host.on(self.on))
        if self.engine in ENGINES:
            object.__setattr__(self, "on", replace(self.on, engine=self.engine))
        views = (size for view in self.work.image.views for size in (view.count, view.height, view.width, view.tokens))
        sizes = (self.work.batch, self.work.prompt_tokens, self.work.decode_steps, self.work.image.tokens, *views)
        if len(shapes := {size.shape for size in sizes if isinstance(size, np.ndarray)}) > 1:
            raise InputError(f"arrays of a workload must have one shape, not {' and '.join(map(str, sorted(shapes)))}")

    def _require_backend(self) -> None:
        only, architecture = self.work.runtime.only, self.on.architecture
        if only and architecture and not architecture.startswith(only):
            raise InputError(
                f"runtime {self.work.runtime.name!r} does not run on {self.on.name} ({architecture}), but on "
                f"{', '.join(only)}; choose another of {', '.join(config_names('runtime'))}"
            )

    @cached_property
    def stages(self) -> dict[str, StageTime]:
        """The stages of the workload, by name."""
        asked = [(name, *self._sizes(name)) for name in self._looked]
        found = zip(asked, self._sums(asked), strict=True)
        return {one[0]: self._stage(one[0], sums, self._least(*one)) for one, sums in found}

    @cached_property
    def _looked(self) -> dict[str, Looked]:
        """What is known of the stages that the workload has."""
        found = [(stage, structure) for stage in self.model.stages if (structure := stage.structure(self.work)) != ()]

        def made() -> dict[str, Looked]:
            return {stage.name: Looked(self.model, stage, self.work) for stage, _ in found}

        key = ("times", self.work.key, *(structure for _, structure in found))
        return cast("dict[str, Looked]", self.model.once(key, made))

    def _stage(self, name: str, sums: Sums, least: Any) -> StageTime:
        device, launches = self._busy(name, sums, least), self.host.launches(self.work, name, sums.runs)
        beside = NONE if name == "vision" else self.host.beside(self.work)
        return StageTime(name, device, launches, beside, sums.runs, self)

    def run(self, name: str, **sizes: Any) -> Span:
        """Seconds of one run of a stage, the host's with them, at its sizes, or arrays of them.

        Sizes that are not given are those of the workload; of a stage in steps it is one step.
        """
        asked = (name, {**self.model.stage(name).sizes(self.work), **sizes}, None)
        [found] = self._sums([asked])
        return self._stage(name, found, self._least(*asked)).span

    def _busy(self, name: str, sums: Sums, least: Any) -> Span:
        """The kernels of all laws, with what engine and device leave open, no less than the datasheet allows."""
        open_about = of_device(self.on, heated=self.model.stage(name).steps is None)
        known = of_engine(self.engine or self.work.runtime.name)
        spans = (Span(*ends).widened([known[law]] if law in known else []) for law, ends in sums.laws.items())
        low, seconds, high = sum(spans, start=NONE).widened(open_about)
        return Span(maximum(low, minimum(seconds, least)), seconds, high)

    def _sums(self, asked: Sequence[tuple[str, Mapping[str, Any], Any]]) -> list[Sums]:
        """The sums of stages at sizes; with weights, their means over steps. Processors' laws take kernel by kernel."""
        for name, sizes, _ in asked:
            self._looked[name].program.require(sizes)
        if not calibrated(self.on):
            return sums_of([AtSizes(self._looked[name].timer, self.on, *of) for name, *of in asked])
        return [self._one_by_one(*one) for one in asked]

    def _one_by_one(self, name: str, sizes: Mapping[str, Any], weights: Any) -> Sums:
        kernels = self._kernels(name, self.work, sizes)
        laws, runs = dict[str, list[Any]](), 0.0

        def over(values: Any) -> Any:
            array = np.asarray(values, float)
            return array if weights is None else (array * weights).sum(axis=0)

        for kernel, one in zip(kernels, seconds_of(kernels, self.on), strict=True):
            own = [over(kernel.runs * np.asarray(end, float)) for end in (one.low, one.seconds, one.high)]
            laws[one.law] = [a + b for a, b in zip(laws.get(one.law, NONE), own, strict=True)]
            runs = runs + over(kernel.runs)
        return Sums({law: [plain(end) for end in ends] for law, ends in laws.items()}, plain(runs))

    def _sizes(self, name: str) -> tuple[dict[str, Any], Any]:
        """The sizes of a stage; where it runs in steps, of several of these, with their weights in a mean."""
        stage = self.model.stage(name)
        sizes = dict(stage.sizes(self.work))
        if stage.steps is None:
            return sizes, None
        first, many = sizes[stage.grows], stage.steps(self.work)
        points = minimum(POINTS, many)
        places = np.arange(float(POINTS if isinstance(points, np.ndarray) else points))
        places = places.reshape(-1, *(1,) * max(np.ndim(many), *map(np.ndim, sizes.values())))
        between = np.rint(places * ((many - 1) / maximum(points - 1, 1)) + first)
        sizes[stage.grows] = np.minimum(between, first + many - 1)
        return sizes, trapezoid(places, points) if np.ndim(points) else _trapezoid(points).reshape(places.shape)

    def kernels(self, name: str) -> Timed:
        """The kernels of one run of a stage, each with its estimate. Raises InputError for several workloads."""
        sizes, _ = self._sizes(name)
        step = self.model.stage(name).grows
        if any(np.ndim(size) for axis, size in sizes.items() if axis != step):
            raise InputError("kernels are told of one workload, not of arrays of them")
        kernels = self._kernels(name, self.work, sizes)
        if calibrated(self.on):
            return tuple(zip(kernels, seconds_of(kernels, self.on), strict=True))
        return tuple(zip(kernels, self._looked[name].timer.estimates(self.on, sizes), strict=True))

    def ends(self, name: str) -> list[dict[str, Size]]:
        """The sizes of a stage's kernels at its first and at its last step; one for a stage without steps."""
        program, grows = self.model.program(name, self.work), self.model.stage(name).grows
        sizes: dict[str, Size] = {a: size for a, size in self._sizes(name)[0].items() if a in program.kernel_names}
        if self.model.stage(name).steps is None or grows not in sizes:
            return [sizes]
        steps = np.reshape(sizes[grows], -1).tolist()
        return [sizes | {grows: int(step)} for step in dict.fromkeys((steps[0], steps[-1]))]

    def _kernels(self, name: str, work: Workload, sizes: Mapping[str, Any]) -> list[Kernel]:
        program = self.model.program(name, work)
        return program.kernels(**{axis: size for axis, size in sizes.items() if axis in program.kernel_names})

    def bound_of(self, name: str) -> Any:
        """Seconds of a stage by the datasheet: the busiest of its units at the least traffic of any fusion."""
        return self._least(name, *self._sizes(name))

    def _least(self, name: str, sizes: Mapping[str, Any], weights: Any) -> Any:
        """The same at sizes; a mean with weights."""
        looked = self._looked[name]
        moved, *flops = map(real, looked.least(*[sizes[axis] for axis in looked.names]))
        memory = moved / self.on.memory_bytes_per_s
        least = maximum(plain_seconds(dict(zip(looked.forms, flops, strict=True)), self.on), memory)
        return plain((least * weights).sum(axis=0) if weights is not None else least)

    @cached_property
    def images(self) -> Span:
        """Seconds to prepare the images of a batch on one core of the host; decoding a file is left out."""
        return self.host.images(self.work)

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
        steps: Span = self.tpot * self.work.decode_steps
        return self.images + self._first.along(steps)

    @property
    def _first(self) -> Span:
        """Seconds of the stages before the first token."""
        return reduce(Span.along, (stage.span for name, stage in self.stages.items() if name != "decode"), NONE)

    @property
    def bound(self) -> Any:
        """Seconds of the request that the datasheet allows."""
        once = sum(stage.bound for name, stage in self.stages.items() if name != "decode")
        return once + self.stages["decode"].bound * self.work.decode_steps


def busy(kernels: Iterable[tuple[Kernel, Estimate]]) -> Span:
    """Seconds that kernels keep a device busy: errors of one law are one, those of several independent."""
    laws: dict[str, list[float]] = {}
    for kernel, estimate in kernels:
        ends = (estimate.low, estimate.seconds, estimate.high)
        own = [mean(kernel.runs * np.asarray(end, float)) for end in ends]
        laws[estimate.law] = [a + b for a, b in zip(laws.get(estimate.law, NONE), own, strict=True)]
    return sum((Span(*ends) for ends in laws.values()), start=NONE)
