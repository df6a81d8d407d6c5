"""A profiler's record beside its prediction, as text: the answer first, then components, kernels, what is alone.

`rows` has all of it as rows of one table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from modelmeter.profiled.beside import Laid, Pair, by_component
from modelmeter.profiled.recorded import Recorded
from modelmeter.report.files import write_all
from modelmeter.report.tables import align
from modelmeter.report.times import duration, span_text
from modelmeter.times import Times

UNUSUAL = "in runs beyond the median of their kernel: first calls, or other programs on the device"
FIRST = 3
"""What is told first of what there is to gain."""
MOST = 15
"""Kernels of each table."""
IDLE = {True: "idle: no kernel ran", False: "idle: between operators, in Python"}
HEADS = ("measured", "predicted", "bound", "measured/predicted", "to gain", "% of busy")
TOLD = (
    "seconds of one pass on average; least: the datasheet at the least traffic of any fusion; bound: a plain roofline "
    "of each kernel as it is; to gain: measured less the bound"
)


def profile_text(found: Sequence[Laid], times: Times, recorded: Recorded, told: Sequence[str]) -> str:
    """The answer for each stage, what was assumed, and the tables of each stage."""
    shapes = "with shapes" if recorded.has_sizes else "without shapes: kinds and order alone decide"
    work = times.work
    request = f"{work.prompt_tokens:,} prompt tokens and an answer of {work.decode_steps:,}; batch {work.batch:,}"
    image = work.image.describe() if work.image.views else "text alone"
    passes = ", ".join(f"{one.stage} {one.passes}" for one in found)
    source = f"{recorded.source}, {shapes}; passes: {passes}"
    head = [*(_answer(one, times) for one in found), "", source, *told, f"{image}; {request}", times.model.basis(work)]
    derived = sorted({estimate.derived for one in found for _, estimate in one.time.kernels} - {""})
    tables = [part for one in found for part in _tables(one, recorded) if part]
    return "\n".join([*head, TOLD, *derived, *(line for table in tables for line in ("", table)), *times.model.notes])


def _answer(one: Laid, times: Times) -> str:
    """Where the time of a stage goes, in a few lines: against what is predicted, what is idle, what is left over."""
    where = f"{times.model.name} on {times.on.title}, {times.work.execution}"
    idle = f"{duration(one.idle)} idle ({100 * one.idle / max(one.wall, 1e-30):.1f} %)"
    rest = _rest(one)
    share = f"{100 * one.matched:.1f} % of the busy time has a counterpart"
    lines = [
        f"{one.stage} of {where}: {duration(one.wall)} measured, {span_text(one.predicted)} predicted, "
        f"{duration(one.time.bound)} at the least",
        f"  {duration(one.busy)} busy, where {span_text(one.time.device)} is predicted, and {idle}; {share}"
        + (f", {duration(rest)} has none" if rest else ""),
        f"  most to gain: {'; '.join(_gaps(one))}",
    ]
    return "\n".join(lines)


def _rest(one: Laid) -> float:
    """Seconds of what ran and is not predicted."""
    return sum(alone.seconds for alone in one.alone) + sum(pair.surplus for pair in one.pairs)


def _gaps(one: Laid) -> list[str]:
    """What takes time beyond the bound, most first: what is idle, unusual or left over, and each kernel as usual."""
    gaps = [(one.idle, "idle"), (one.unusual, UNUSUAL), (_rest(one), "what has no counterpart")]
    gaps += [(pair.usual_gain, f"{pair.expected.what} in {pair.expected.path}") for pair in one.pairs]
    return [
        f"{duration(seconds)} {what}" for seconds, what in sorted(gaps, key=lambda gap: -gap[0])[:FIRST] if seconds > 0
    ]


def _tables(one: Laid, recorded: Recorded) -> Iterator[str]:
    yield _components(one, recorded)
    yield _kernels(one)
    yield _alone(one)
    yield _lacking(one)


def _components(one: Laid, recorded: Recorded) -> str:
    found = sorted(by_component(one).items(), key=lambda item: -sum(pair.gain for pair in item[1]))
    rows = [[f"{one.stage}: component", *HEADS]]
    rows += [[name, *_figures(pairs, one.busy)] for name, pairs in found]
    rest = _rest(one)
    share = f"{100 * rest / max(one.busy, 1e-30):.1f}"
    rows.append(["no counterpart", duration(rest), "-", "-", "-", duration(rest), share])
    expected = max(one.predicted.seconds - one.time.device.seconds, 0.0)
    ratio = f"{one.idle / expected:.2f}" if expected else "-"
    rows.append([IDLE[recorded.on_gpu], duration(one.idle), duration(expected), "-", ratio, duration(one.idle), "-"])
    return align(rows)


def _figures(pairs: Iterable[Pair], busy: float) -> list[str]:
    pairs = list(pairs)
    measured = sum(pair.seconds - pair.surplus for pair in pairs)
    predicted, bound, gain = (sum(getattr(p, key) for p in pairs) for key in ("predicted", "bound", "gain"))
    ratio = f"{measured / predicted:.2f}" if predicted else "-"
    share = f"{100 * measured / max(busy, 1e-30):.1f}"
    return [duration(measured), duration(predicted), duration(bound), ratio, duration(gain), share]


def _kernels(one: Laid) -> str:
    rows = [[f"{one.stage}: kernel", "in", "runs", "of", *HEADS, "binds"]]
    dearest = sorted((p for p in one.pairs if p.times), key=lambda p: -p.gain)
    for pair in dearest[:MOST]:
        known = pair.expected
        many = [f"{pair.times:g}", f"{known.runs:g}"]
        rows.append([known.what, known.path, *many, *_figures([pair], one.busy), known.binds])
    return align(rows) if dearest else ""


def _alone(one: Laid) -> str:
    """What ran and is not predicted, the dearest first."""
    rows = [["ran and is not predicted", "kind", "runs", "measured", "% of busy"]]
    surplus = [(p.expected.what, p.expected.kind, p.times - p.expected.runs, p.surplus) for p in one.pairs if p.surplus]
    every = sorted([*surplus, *one.alone], key=lambda row: -row[3])
    for name, kind, runs, seconds in every[:MOST]:
        rows.append([_short(name), kind, f"{runs:g}", duration(seconds), f"{100 * seconds / max(one.busy, 1e-30):.1f}"])
    return align(rows) if every else ""


def _lacking(one: Laid) -> str:
    """What is predicted and did not run, the dearest first."""
    lacking = sorted((p for p in one.pairs if p.lacking > 1e-9), key=lambda p: -p.lacking * p.expected.span.seconds)
    rows = [["predicted and did not run", "in", "runs", "predicted"]]
    for pair in lacking[:MOST]:
        seconds = pair.lacking * pair.expected.span.seconds
        rows.append([pair.expected.what, pair.expected.path, f"{pair.lacking:g}", duration(seconds)])
    return align(rows) if lacking else ""


def _short(name: str) -> str:
    return name if len(name) <= 70 else f"{name[:67]}..."


COLUMNS = (
    "stage", "path", "what", "kind", "runs", "expected_runs", "measured_s", "predicted_s", "low_s", "high_s", "bound_s",
    "surplus_s", "binds", "law",
)  # fmt: skip


def rows(found: Iterable[Laid]) -> Iterator[dict[str, object]]:
    """Each kernel, each that has no counterpart, and what is idle, in seconds of one pass."""
    for one in found:
        for pair in one.pairs:
            known, runs = pair.expected, pair.expected.runs
            low, seconds, high = (runs * end for end in known.span)
            values = (one.stage, known.path, known.what, known.kind, pair.times, runs, pair.seconds, seconds, low, high)
            yield dict(zip(COLUMNS, (*values, runs * known.bound, pair.surplus, known.binds, known.law), strict=True))
        for alone in one.alone:
            yield {"stage": one.stage, "what": alone.name, "kind": alone.kind, "runs": alone.times,
                   "expected_runs": 0, "measured_s": alone.seconds}  # fmt: skip
        yield {"stage": one.stage, "what": "idle", "kind": "idle", "measured_s": one.idle}


def written(found: Sequence[Laid], out: str) -> str:
    """Write the rows and a figure into a folder, and say so. Raises InputError where it cannot be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(found))
    files: dict[str, str | bytes] = {"profile.csv": text.getvalue()}
    _draw(found, files)
    write_all(Path(out), files)
    return f"\n\n{', '.join(files)}\nin {out}"


def _draw(found: Sequence[Laid], files: dict[str, str | bytes]) -> None:
    """Milliseconds by component, as recorded, as predicted and at the least."""
    from modelmeter.report.figures import COLOURS, HATCHES, picture

    parts = [(f"{one.stage}: {name}", pairs) for one in found for name, pairs in by_component(one).items()]
    bars = {
        "measured": [sum(pair.seconds for pair in pairs) for _, pairs in parts] + [one.idle for one in found],
        "predicted": [sum(pair.predicted for pair in pairs) for _, pairs in parts],
        "bound": [sum(pair.bound for pair in pairs) for _, pairs in parts],
    }
    labels = [name for name, _ in parts] + [f"{one.stage}: idle" for one in found]
    with picture(files, "profile", ("svg",), "Where time goes, one pass of each stage") as (_, axes):
        for place, (name, seconds) in enumerate(bars.items()):
            heights = [row + 0.27 * (place - 1) for row in range(len(seconds))]
            look: Any = {"color": COLOURS[place], "hatch": HATCHES[place], "label": name}
            axes.barh(heights, [1e3 * value for value in seconds], 0.25, **look)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds")
        axes.legend()
