"""Ranked figures: a bar a device with its interval, the shortest above, and lines at what is asked for."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modelmeter.report.figures import COLOURS, SMALL, picture
from modelmeter.sweep.columns import Measure, Row, significant
from modelmeter.sweep.table import Chart, Table

WIDTH, ROW, MOST = 6.0, 0.15, 40
"""Inches of a figure and of a bar; how many times the shortest bar the axis begins to be logarithmic at."""


def ranked_figures(table: Table, formats: Sequence[str] = ("svg",)) -> dict[str, str | bytes]:
    """The ranked figures of a table by file name: SVG as text, PNG as bytes."""
    drawn: dict[str, str | bytes] = {}
    for chart in (chart for chart in table.charts if chart.ranked):
        measure = table.measures[chart.measures[0]]
        best: dict[str, Row] = {}
        for row in (row for row in table.select(**chart.where) if measure.value(row) is not None):
            best.setdefault(row[chart.x], row)
        rows = sorted(best.values(), key=lambda row: measure.value(row) or 0.0)
        if rows:
            title = "\n".join(textwrap.fill(line, 96) for line in (table.title, _basis(table, chart)))
            with picture(drawn, chart.name, formats, title) as (figure, axes):
                figure.set_size_inches(WIDTH, 1.3 + ROW * len(rows))
                _draw(axes, chart, measure, rows)
                _legend(figure, chart, rows)
                axes.set_xlabel(measure.label)
    return drawn


def _basis(table: Table, chart: Chart) -> str:
    return ", ".join(filter(None, (str(chart.where.get("execution", "")), table.basis)))


def _draw(axes: Axes, chart: Chart, measure: Measure, rows: Sequence[Row]) -> None:
    values = [measure.value(row) or 0.0 for row in rows]
    spans = [measure.interval(row) or [value, value] for row, value in zip(rows, values, strict=True)]
    left = 0.5 * min(low for low, _ in spans) if max(values) > MOST * min(values) else 0.0
    if left:
        axes.set_xscale("log")
    for place, (row, value, (low, high)) in enumerate(zip(rows, values, spans, strict=True)):
        fill: dict[str, Any] = {"facecolor": COLOURS[0]} if row["fits"] else {"facecolor": "white", "hatch": "/////"}
        axes.barh(place, value - left, 0.7, left, edgecolor=COLOURS[0], linewidth=0.6, **fill)
        whisker(axes, place, value, value - low, high - value)
        beside(axes, significant(value, 3), (high, place))
    limits = sorted({row[chart.limit] / measure.unit for row in rows}) if chart.limit else []
    for limit in limits:
        axes.axvline(limit, color=COLOURS[1], linestyle="--", linewidth=1)
    longest = max(*(high for _, high in spans), *limits, 0.0)
    axes.set_xlim(left, longest * (1.15 if not left else (longest / left) ** 0.12))
    axes.set_yticks(range(len(rows)), [str(row[chart.x]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def whisker(axes: Axes, row: float, at: float, left: float, right: float) -> None:
    """The interval of a bar that lies, so far to both sides of its end."""
    axes.errorbar(at, row, xerr=[[left], [right]], fmt="none", ecolor="black", elinewidth=0.8, capsize=1.8,
                  capthick=0.8)  # fmt: skip


def beside(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """A word to the right of a place, over lines that cross it."""
    looks: Any = {"textcoords": "offset points", "va": "center", "fontsize": SMALL}
    axes.annotate(text, place, (4, 0), bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4}, **looks)


def _legend(figure: Figure, chart: Chart, rows: Sequence[Row]) -> None:
    marks = [Line2D([], [], color=COLOURS[1], linestyle="--", label="asked for")] if chart.limit else []
    if not all(row["fits"] for row in rows):
        marks.append(Line2D([], [], marker="s", linestyle="", markerfacecolor="white", markeredgecolor=COLOURS[0],
                            label="hatched: does not fit into its memory"))  # fmt: skip
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False)
