"""Seconds beside counts: what a sweep predicts of its rows on each device that is asked for (`device=`).

A row gets four columns a device and quantity: seconds, the ends of the interval, what binds. Without devices it gets
none, and a runtime that is a bound has none: nothing runs like that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.models.model import BaseModel
from modelmeter.programs.kernels import Kernel
from modelmeter.sweep.columns import Column, Measure, Row
from modelmeter.workload import Workload

if TYPE_CHECKING:  # with NumPy, which no help needs
    from modelmeter.host import Host, Span
    from modelmeter.times import Times

Asked = dict[str, "tuple[Span, str]"]
"""Seconds by quantity (WORDS), each with what binds it."""
WORDS = {
    "stage": "the stage", "busy": "device busy", "ttft": "TTFT", "tpot": "TPOT", "request": "the request",
    "text": "the request as text",
}  # fmt: skip
"""Quantities: what headings call them."""


@final
@dataclass(frozen=True)
class Clock:
    """The devices of a sweep, and the host that all of them have."""

    devices: Sequence[Device] = ()
    host: Host | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Clock:
        """That of the settings of a sweep. Raises InputError where none of its runtimes is one that runs."""
        if not settings.get("device"):
            return cls()
        from modelmeter.runtimes.runtime import Runtime

        kinds = settings["runtime"]
        if all(Runtime.of(kind).is_bound for kind in kinds):
            several = f"runtimes {', '.join(kinds)} are bounds" if len(kinds) > 1 else f"runtime {kinds[0]} is a bound"
            raise InputError(f"{several}, and nothing that runs, so device= has no time to predict; vllm, flash have")
        return cls(settings["device"], settings["host"])

    def times(self, model: BaseModel, work: Workload) -> list[Times]:
        """A workload on each device; on none where the runtime is a bound. Raises InputError as laws do."""
        if self.host is None or work.runtime.is_bound:
            return []
        from modelmeter.times import Times

        return [Times(model, work, device, self.host) for device in self.devices]

    def columns(self, model: BaseModel, work: Workload, asked: Callable[[Times], Asked]) -> dict[str, Any]:
        """The columns of a row at a workload."""
        return columns((one, asked(one)) for one in self.times(model, work))


def columns(found: Iterable[tuple[Times, Asked]]) -> dict[str, Any]:
    """The columns of what was asked of each device."""
    row: dict[str, Any] = {}
    for one, asked in found:
        for what, (span, binds) in asked.items():
            name = f"{one.on.name}_{what}"
            row |= span_columns(name, span)
            row[f"{name}_binds"] = binds
    return row


def span_columns(name: str, span: Span) -> dict[str, float]:
    """The columns of a span: the point, and the ends of the interval."""
    return {f"{name}_s": span.seconds, f"{name}_low_s": span.low, f"{name}_high_s": span.high}


def own_of(devices: Sequence[Device], rows: Sequence[Row]) -> tuple[dict[str, Column], dict[str, Measure]]:
    """How the columns of devices are read and drawn: those that rows have."""
    there = {column for row in rows for column in row}
    read, drawn = dict[str, Column](), dict[str, Measure]()
    for what, word in WORDS.items():
        for device in devices:
            stem = f"{device.name}_{what}"
            name, ends = f"{stem}_s", (f"{stem}_low_s", f"{stem}_high_s")
            if name in there:
                read[name] = Column(name, f"{device.title}: {word}, ms", 1e-3, 4, ends=ends)
                read[f"{stem}_binds"] = Column(f"{stem}_binds", f"{device.title}: {word}, what binds")
                drawn[name] = Measure(name, f"predicted seconds of {word} (ms)", [name], 1e-3, device.title, ends=ends)
    return read, drawn


def of_stage(name: str) -> Callable[[Times], Asked]:
    """Seconds of a stage, all its steps together, and of one step where it has steps."""

    def asked(found: Times) -> Asked:
        stage = found.stages[name]
        if name != "decode":
            return {"stage": (stage.span, stage.binds)}
        return {"stage": (stage.span * float(found.work.decode_steps), stage.binds), "tpot": (stage.span, stage.binds)}

    return asked


def of_request(found: Times) -> Asked:
    """The first token, every further one, and all of it."""
    from modelmeter.timeline import before_decode, binding
    from modelmeter.timeline import of_request as parts_of

    parts = parts_of(found)
    return {
        "ttft": (found.ttft, binding(before_decode(found))), "tpot": (found.tpot, parts[-1][1]),
        "request": (found.request, binding(parts)),
    }  # fmt: skip


def of_parts(found: Times, target: str, names: Sequence[str]) -> dict[str, Asked]:
    """How long each component of what a target waits for keeps the device busy, in all its runs; then the target.

    `names` are the components; a stage by its own name is one, and kernels of a stage's own layer are those of the
    component that has no others.
    """
    from modelmeter.host import NONE
    from modelmeter.timeline import Busy, before_decode, binding, by_component, top
    from modelmeter.times import binds

    stages = {name: stage for name, stage in found.stages.items() if (name == "decode") == (target == "tpot")}
    all_of = {name: Busy(stage.device, binds(stage.kernels)) for name, stage in stages.items()}  # whatever hosts do
    runs = float(found.work.decode_steps) if target == "tpot" else 1.0
    parts = {name: one for name, one in all_of.items() if name in names}
    for stage in (stage for name, stage in stages.items() if name not in names):
        heads = {top(kernel) for kernel, _ in stage.kernels}
        own = next((name for name in names if name not in heads and name not in stages), "")

        def called(kernel: Kernel) -> str:
            return top(kernel) or own

        parts |= by_component(stage, called)
    asked: dict[str, Asked] = {name: {"busy": (one.device * runs, one.binds)} for name, one in parts.items()}
    busy = [(one.device * runs, one.binds) for one in all_of.values()]
    whole = found.tpot if target == "tpot" else found.ttft
    waits = found.stages["decode"].binds if target == "tpot" else binding(before_decode(found))
    total = sum((span for span, _ in busy), start=NONE)
    return asked | {"": {"busy": (total, binding(busy)), target: (whole, waits)}}
