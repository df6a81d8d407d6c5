"""The timeline of a request as a figure: a panel a device, a row a part, the host beside the device, with intervals.

A bar is all runs of a part, from when the first begins; its whisker ends where nine of ten are expected to.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from modelmeter.host import Span
from modelmeter.report.figures import COLOURS, SMALL, picture
from modelmeter.report.ranked import beside, whisker
from modelmeter.report.times import duration, request_line, span_text
from modelmeter.timeline import Part, timeline
from modelmeter.times import Times

LEAST = (0.01, 0.08)
"""Parts of a stage below this share of it stand together in one row; where there are more than two devices."""
WIDTH, ROW, HEAD, LETTERS, MOST = 7.2, 0.145, 0.62, 100, 6
"""Inches of the figure, of a row and of a panel's title; letters that fit into a line; panels of one figure."""
STAGES = ("images", "vision", "prefill", "decode")
ALIKE = 8
"""Devices whose slowest takes up to so many times as long as the fastest share an axis."""


def timeline_figures(found: Sequence[Times], formats: Sequence[str] = ("svg", "png")) -> dict[str, str | bytes]:
    """The timelines of a request on devices by file name, at most six in a figure."""
    drawn: dict[str, str | bytes] = {}
    for first in range(0, len(found), MOST):
        some, name = found[first : first + MOST], "time" if not first else f"time_{first // MOST + 1}"
        one = some[0]
        lines = (f"{one.model.name}, {one.work.execution}: {request_line(one)}", one.model.basis(one.work))
        title = "\n".join(textwrap.fill(line, LETTERS) for line in lines)
        with picture(drawn, name, formats, title, **{"hatch.linewidth": 0.5}) as (figure, axes):
            axes.remove()
            _panels(figure, some)
    return drawn


def _panels(figure: Figure, found: Sequence[Times]) -> None:
    rows = [_rows(one, LEAST[len(found) > 2]) for one in found]
    ends = [max(part.start + part.all.high for part in some) for some in rows]
    shared = max(ends) <= ALIKE * min(ends)
    figure.set_size_inches(WIDTH, 0.9 + sum(HEAD + ROW * len(some) for some in rows))
    grid = figure.add_gridspec(len(found), 1, height_ratios=[HEAD / 2 + ROW * len(some) for some in rows])
    for index, (one, some, end) in enumerate(zip(found, rows, ends, strict=True)):
        axes = figure.add_subplot(grid[index])
        _panel(axes, one, some, max(ends) if shared else end)
        if index == len(found) - 1:
            axes.set_xlabel("milliseconds" + ("" if shared or len(found) == 1 else ", another scale for each device"))
    figure.legend(handles=_legend(), loc="outside lower center", ncols=6, frameon=False, handlelength=1.4)


def _rows(found: Times, least: float) -> list[Part]:
    """The parts that are shown: those of a stage that are least of it are one."""
    kept: list[Part] = []
    parts = list(timeline(found))
    for stage in dict.fromkeys(part.stage for part in parts):
        own = [part for part in parts if part.stage == stage]
        busy = [part for part in own if not part.host]
        small = [part for part in busy if part.each.seconds < least * sum(one.each.seconds for one in busy)]
        if len(small) > 1:
            each = sum((part.each for part in small), start=Span(0.0, 0.0, 0.0))
            together = replace(small[0], name=f"{len(small)} others", each=each)
            own = [together if part is small[0] else part for part in own if part is small[0] or part not in small]
        kept += own
    return kept


def _panel(axes: Axes, found: Times, rows: Sequence[Part], end: float) -> None:
    for row, part in enumerate(rows):
        _bar(axes, row, part)
    axes.axvline(1e3 * found.ttft.seconds, color="black", linestyle=":", linewidth=0.9, zorder=0)
    axes.set_yticks(range(len(rows)), [_label(part) for part in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.22e3 * end)
    axes.grid(visible=False, axis="y")
    head = f"{found.on.title} (confidence {found.on.confidence}): the request {span_text(found.request)}"
    title = f"{head}\nTTFT {span_text(found.ttft)}, TPOT {span_text(found.tpot)}"
    axes.set_title(title, fontsize=SMALL, loc="left")


def _bar(axes: Axes, row: int, part: Part) -> None:
    """A part with its whisker, and what one run of it takes behind that."""
    color = COLOURS[STAGES.index(part.stage) if part.stage in STAGES else len(STAGES)]
    fill: dict[str, Any] = {"facecolor": "white", "hatch": "/////"} if part.host else {"facecolor": color}
    low, seconds, high = (1e3 * end for end in part.all)
    axes.barh(row, seconds, 0.7, 1e3 * part.start, linewidth=0.6, edgecolor=color, **fill)
    whisker(axes, row, 1e3 * part.start + seconds, seconds - low, high - seconds)
    text = duration(part.each.seconds) + (f" x {part.runs:,.0f}" if part.runs > 1 else "")
    beside(axes, text, (1e3 * part.start + high, row))


def _label(part: Part) -> str:
    if part.stage == "images":
        return "host: images"
    return f"{part.stage}{', host' * part.host}: {part.name}"


def _legend() -> list[Patch]:
    plain = [Patch(color=COLOURS[index], label=name) for index, name in enumerate(STAGES) if index]
    host = Patch(facecolor="white", hatch="/////", edgecolor="black", label="host, beside the device")
    line = Patch(facecolor="none", edgecolor="black", linestyle=":", label="first token")
    whisker = Patch(facecolor="none", edgecolor="none", label="whisker: nine of ten")
    return [*plain, host, line, whisker]
