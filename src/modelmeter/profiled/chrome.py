"""Reads what torch.profiler writes as Chrome JSON (`export_chrome_trace`), as it is or compressed by gzip.

On a CPU what ran are operators: the outermost that writes memory itself, not what it is called from nor what it calls.
On a GPU they are kernels; those that one operator launched are one, with its shapes.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelmeter.errors import InputError
from modelmeter.profiled.kinds import Sizes, kind_of_kernel, kind_of_operator, sizes_of_operator
from modelmeter.profiled.recorded import Ran, Range, Recorded
from modelmeter.progress import watched

MICRO = 1e-6
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
GRAPH = "GraphLaunch"
"""How a launch of a captured graph is called, whose kernels are no operator's."""
Event = Mapping[str, Any]


class Called(NamedTuple):
    """An operator that was called, in microseconds."""

    name: str
    kind: str
    sizes: Sizes
    start: float
    end: float


def read(path: Path) -> Recorded:
    """A trace of torch.profiler. Raises InputError for what is none."""
    events = _events(path)
    called: dict[Any, list[Called]] = {}
    for thread, found in _threads(e for e in events if e.get("cat") == "cpu_op").items():
        called[thread] = list(_operators(found))
    notes = (e for e in events if e.get("cat") == "user_annotation")
    ranges = tuple(Range(str(e["name"]), e["ts"] * MICRO, (e["ts"] + e["dur"]) * MICRO) for e in notes)
    kernels = sorted((e for e in events if e.get("cat") in DEVICE), key=lambda e: e["ts"])
    if kernels:
        launches = [e for e in events if e.get("cat") in LAUNCHES]
        first = min(map(_device, kernels), key=str)
        ran = tuple(_launched([k for k in kernels if _device(k) == first], launches, called))
        return Recorded(ran, ranges, "torch.profiler, of a GPU", True)
    every = sorted((c for found in called.values() for c in found), key=lambda c: c.start)
    if not every:
        raise InputError(
            f"trace {str(path)!r} has no operators and no kernels: record it with "
            "torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True)"
        )
    alone = (Ran(c.name, c.kind, c.sizes, c.start * MICRO, (c.end - c.start) * MICRO, c.start * MICRO) for c in every)
    return Recorded(tuple(alone), ranges, "torch.profiler, of a CPU", False)


def _events(path: Path) -> list[Event]:
    """The complete events of a file."""
    try:
        content = path.read_bytes()
        data = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    except OSError as error:
        raise InputError(f"trace {str(path)!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError):
        raise InputError(f"trace {str(path)!r} is not whole JSON; export it again") from None
    events = data.get("traceEvents") if isinstance(data, dict) else data
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise InputError(
            f"{str(path)!r} is no trace of torch.profiler: it has no list of traceEvents; write one with "
            "export_chrome_trace"
        )
    numbers = ("ts", "dur")
    return [
        e for e in events
        if e.get("ph") == "X" and all(isinstance(e.get(key), (int, float)) for key in numbers) and "name" in e
    ]  # fmt: skip


def _threads(events: Iterable[Event]) -> dict[Any, list[Event]]:
    """Events by the thread that they ran in, each in order, an outer one before what it calls."""
    found: dict[Any, list[Event]] = {}
    for event in events:
        found.setdefault((event.get("pid"), event.get("tid")), []).append(event)
    return {thread: sorted(own, key=lambda e: (e["ts"], -e["dur"])) for thread, own in found.items()}


def _operators(events: Sequence[Event]) -> Iterator[Called]:
    """The operators of one thread: the outermost of a known kind, and innermost ones that nobody knows."""
    end = float("-inf")
    for place, event in enumerate(watched(events, "operators read", len(events))):
        kind, over = kind_of_operator(event["name"]), event["ts"] + event["dur"]
        if event["ts"] < end or kind == "":
            continue
        leaf = place + 1 == len(events) or events[place + 1]["ts"] >= over
        if kind is None and not (leaf and "::" in event["name"]):
            continue
        end = over
        shapes = event.get("args", {}).get("Input Dims") or []
        yield Called(
            event["name"], kind or "other", sizes_of_operator(event["name"], kind or "", shapes), event["ts"], over
        )


def _device(kernel: Event) -> Any:
    """The device that a kernel ran on."""
    return kernel.get("args", {}).get("device", kernel.get("pid"))


def _launched(
    kernels: Sequence[Event], launches: Iterable[Event], called: Mapping[Any, Sequence[Called]]
) -> Iterator[Ran]:
    """Kernels in order, each with the operator during which it was launched; those of one operator as one."""
    by = {e.get("args", {}).get("correlation"): e for e in launches}
    starts = {thread: [c.start for c in own] for thread, own in called.items()}
    last: tuple[Called | None, list[Event]] = (None, [])
    for kernel in watched(kernels, "kernels read", len(kernels)):
        launch = by.get(kernel.get("args", {}).get("correlation"))
        thread = (launch.get("pid"), launch.get("tid")) if launch else None
        at = bisect_right(starts.get(thread, []), launch["ts"]) - 1 if launch else -1
        own = called[thread][at] if launch and at >= 0 and not launch["name"].endswith(GRAPH) else None
        operator = own if own and launch and launch["ts"] < own.end else None
        if operator is not None and operator is last[0]:
            last[1].append(kernel)
            continue
        yield from _one(*last, by)
        last = (operator, [kernel])
    yield from _one(*last, by)


def _one(operator: Called | None, kernels: Sequence[Event], by: Mapping[Any, Event]) -> Iterator[Ran]:
    """What kernels of one operator ran, by the name of the longest."""
    if not kernels:
        return
    longest = max(kernels, key=lambda e: e["dur"])
    launch = by.get(kernels[0].get("args", {}).get("correlation"), kernels[0])
    kind = operator.kind if operator and operator.kind != "other" else kind_of_kernel(longest["name"])
    name = f"{operator.name}: {longest['name']}" if operator else longest["name"]
    seconds = sum(e["dur"] for e in kernels) * MICRO
    sizes = operator.sizes if operator else ()
    yield Ran(name, kind, sizes, kernels[0]["ts"] * MICRO, seconds, launch["ts"] * MICRO)
