"""A profiler's record of a stage beside its prediction: what each kernel took, what is idle, what has no counterpart.

All seconds are those of one pass through the stage, on average over the passes that were recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

from modelmeter.errors import InputError, choose
from modelmeter.host import Span
from modelmeter.profiled.align import matched
from modelmeter.profiled.expected import Expected, Program, program_of
from modelmeter.profiled.recorded import STAGES, Recorded
from modelmeter.times import StageTime, Times

LEAST = 0.2
"""The share of the busy time that must have a counterpart; with less a record is one of something else."""


class Pair(NamedTuple):
    """A kernel and what was recorded for it: how often it ran and for how long; `surplus` are seconds of runs more
    than expected, `usual` those of all runs if each were the median one."""

    expected: Expected
    times: float
    seconds: float
    surplus: float
    usual: float

    @property
    def predicted(self) -> float:
        """Seconds of all runs that are expected."""
        return self.expected.runs * self.expected.span.seconds

    @property
    def bound(self) -> float:
        """What the datasheet allows for as many runs as there were, at most those that are expected."""
        return min(self.times, self.expected.runs) * self.expected.bound

    @property
    def gain(self) -> float:
        """Seconds beyond that bound."""
        return self.seconds - self.surplus - self.bound

    @property
    def usual_gain(self) -> float:
        """The same if each run were the median one."""
        return self.gain - (self.seconds - self.usual)

    @property
    def lacking(self) -> float:
        """Runs that are expected and were not recorded."""
        return max(0.0, self.expected.runs - self.times)


class Alone(NamedTuple):
    """What ran and has no counterpart, by name."""

    name: str
    kind: str
    times: float
    seconds: float


@dataclass(frozen=True)
class Laid:
    """A stage as it was recorded beside what is expected; `wall` is from the first start to the last end."""

    stage: str
    passes: int
    wall: float
    busy: float
    pairs: tuple[Pair, ...]
    alone: tuple[Alone, ...]
    time: StageTime

    @property
    def idle(self) -> float:
        """Seconds in which nothing ran: between operators, or kernels."""
        return self.wall - self.busy

    @cached_property
    def total(self) -> float:
        """Seconds of all that ran; more than `busy` where some of it overlapped."""
        return sum(pair.seconds for pair in self.pairs) + sum(one.seconds for one in self.alone)

    @property
    def unusual(self) -> float:
        """Seconds by which runs were longer than the median ones of their kernels, less those by which some were
        shorter."""
        return sum(pair.seconds - pair.usual for pair in self.pairs)

    @property
    def matched(self) -> float:
        """The share of these seconds that has a counterpart."""
        found = sum(pair.seconds - pair.surplus for pair in self.pairs)
        return found / self.total if self.total else 0.0

    @property
    def predicted(self) -> Span:
        """Seconds that are predicted, without sampling and scheduling, which no kernel is."""
        return self.time.busy


def laid(recorded: Recorded, times: Times, stage: str | None = None) -> tuple[list[Laid], list[str]]:
    """The stages of a record beside their prediction, and what was assumed about them.

    Raises InputError where it cannot be told which stage was recorded, and for a record of something else.
    """
    parts, told = _parts(recorded, times, stage)
    found = [_laid(ran, program_of(times, name), times) for name, ran in parts.items()]
    seconds = sum(one.total * one.passes for one in found)
    matched = sum(one.matched * one.total * one.passes for one in found)
    if matched < LEAST * seconds:
        why = "; ".join(filter(None, (_rows(ran, program_of(times, name)) for name, ran in parts.items())))
        raise InputError(
            f"{100 * (1 - matched / max(seconds, 1e-30)):.0f} % of the time of this trace has no counterpart in "
            f"{' and '.join(parts)} of {times.model.name} under {times.work.execution}: "
            + (why or "it is of another model, runtime or stage; name the one that ran")
        )
    if recorded.on_gpu == (times.on.architecture == "CPU"):
        told = [*told, f"a trace of a {'GPU' if recorded.on_gpu else 'CPU'} beside a prediction for {times.on.title}"]
    return found, told


def _parts(recorded: Recorded, times: Times, stage: str | None) -> tuple[dict[str, list[Recorded]], list[str]]:
    """What was recorded of each stage, and how that is known."""
    present = [name for name in STAGES if name in times.stages]
    if stage is not None:
        choose("stage", stage, present)
    annotated = {name: list(recorded.within(ranges)) for name, ranges in recorded.stages.items() if name in present}
    annotated = {name: found for name, found in annotated.items() if any(one.ran for one in found)}
    wanted = annotated if stage is None else {name: found for name, found in annotated.items() if name == stage}
    if wanted:
        ranges = ", ".join(f"{len(found)} of {name}" for name, found in wanted.items())
        return wanted, [f"stages as the trace is annotated: {ranges}"]
    if annotated:
        raise InputError(
            f"the trace has ranges of {', '.join(annotated)} and none of {stage}; give stage= one of these"
        )
    if stage is None and len(present) == 1:
        stage = present[0]
    if stage is not None:
        return {stage: [recorded]}, [f"no range of the trace is called {stage}: all of it is taken for {stage}"]
    raise InputError(
        f"no range of this trace is called {', '.join(present[:-1])} or {present[-1]}: give stage= for a trace of one, "
        "or record each under torch.profiler.record_function (or an NVTX range) of that name"
    )


def _laid(parts: Sequence[Recorded], program: Program, times: Times) -> Laid:
    ran = [one for part in parts for one in part.ran]
    places, passes = matched(ran, program)
    seconds: dict[int, list[float]] = {}
    names: dict[tuple[str, str], list[float]] = {}
    for one, place in zip(ran, places, strict=True):
        if place >= 0:
            seconds.setdefault(place, []).append(one.seconds / passes)
        else:
            names.setdefault((one.name, one.kind), []).append(one.seconds / passes)
    pairs = (_pair(kernel, seconds.get(i, []), passes) for i, kernel in enumerate(program.kernels))
    alone = (Alone(*key, len(found) / passes, sum(found)) for key, found in names.items())
    wall, busy = (sum(values) / passes for values in zip(*((p.wall, p.busy) for p in parts), strict=True))
    ordered = sorted(alone, key=lambda one: -one.seconds)
    return Laid(program.stage, passes, wall, busy, tuple(pairs), tuple(ordered), times.stages[program.stage])


def _pair(kernel: Expected, runs: Sequence[float], passes: int) -> Pair:
    times, seconds = len(runs) / passes, sum(runs)
    surplus = seconds * max(0.0, 1 - kernel.runs / times) if times else 0.0
    return Pair(kernel, times, seconds, surplus, median(runs) * len(runs) if runs else 0.0)


def _rows(parts: Sequence[Recorded], program: Program) -> str:
    """What tells that another request was recorded: products that fit but for their rows."""
    expected = {kernel.sizes[1:]: kernel.sizes[0] for kernel in program.kernels if kernel.kind == "product"}
    rows: Counter[tuple[float, float]] = Counter()
    for one in (one for part in parts for one in part.ran if one.kind == "product" and len(one.sizes) == 3):
        m, *others = one.sizes
        own = expected.get(tuple((x, x) for x in others if x is not None))
        if own and m is not None and not own[0] <= m <= own[1]:
            rows[m, own[1]] += 1
    if not rows:
        return ""
    (theirs, ours), _ = rows.most_common(1)[0]
    return (
        f"products of {program.stage} have {theirs:,.0f} rows where the request has {ours:,.0f}; give the batch, "
        "prompt_tokens or image that was recorded"
    )


def by_component(found: Laid) -> Mapping[str, list[Pair]]:
    """Pairs by the component of the model that they belong to."""
    parts: dict[str, list[Pair]] = {}
    for pair in found.pairs:
        parts.setdefault(pair.expected.path.partition(".")[0] or found.stage, []).append(pair)
    return parts
