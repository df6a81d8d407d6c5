"""Figures of sweeps: readable in print and in grey, units on the axes, no time stamps.

A Chart of a table becomes curves or bars; which quantities there are is declared by the sweeps. A figure is so
narrow that two stand side by side in a report, its letters so large that they are read there.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import ceil, floor, log10
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from modelmeter.sweep.columns import COLUMNS, Measure, Row, grid_of, significant
from modelmeter.sweep.findings import grouped
from modelmeter.sweep.table import Chart, Table

WIDTH, SMALL = 4.6, 6.5
"""Width in inches (442 pixels at 96 an inch), and the smallest letters in points: 8.7 pixels there."""
STYLE: Any = {
    "svg.hashsalt": "modelmeter", "font.size": 7.5, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "legend.fontsize": SMALL, "hatch.linewidth": 0.6,
    "legend.handlelength": 2.5, "legend.columnspacing": 1.2, "legend.labelspacing": 0.3,
}  # fmt: skip
COLOURS = ("#00508c", "#b04a00", "#2f7d32", "#7a3e9d", "#222222", "#a01050", "#008b8b", "#8b6d00")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">")
HATCHES = ("", "//", "..", "xx", "--", "++", "oo", "**")
FILLS = ("full", "none")
_AWAY = {"extrapolated": "extrapolated", "beyond_positions": "beyond the model's positions"}
_LETTERS, _HANDLE, _HIGH = 84, 5, 36
"""Letters that fit into the width of a figure, how many a sample in its legend takes, those beside an axis."""
_BAR = 0.16
"""Inches that a bar beside others needs for the number above it."""
_GRID_LABELS, _MARKS, _FEW, DOTS_PER_INCH = 8, 150, 40, 240
"""Labels of grids that a curve has at most; points up to which each has its mark, and how many have one of more."""


def look(index: int) -> tuple[str, str, str, str]:
    """Colour, dash, marker and hatch of a curve; dash and marker tell any 32 of them apart in grey too."""
    place = index % len(COLOURS)
    return COLOURS[place], DASHES[(index + index // len(COLOURS)) % len(DASHES)], MARKERS[place], HATCHES[place]


@dataclass(frozen=True)
class _Line:
    """One curve: what of its rows is drawn, its look, the values that it stands for; `same` of all that coincide."""

    rows: Sequence[Row]
    measure: Measure
    x: str
    look: tuple[str, str, str, str]
    same: tuple[Mapping[str, str], ...]

    @cached_property
    def points(self) -> list[tuple[Any, float, bool]]:
        """x, y and whether the mark is hollow."""
        found = [(row[self.x], self.measure.value(row), any(row.get(mark) for mark in _AWAY)) for row in self.rows]
        return sorted((x, y, away) for x, y, away in found if y is not None)

    @cached_property
    def spans(self) -> dict[Any, list[float]]:
        """The ends of the interval at each x that has one."""
        return {row[self.x]: ends for row in self.rows if (ends := self.measure.interval(row))}

    @property
    def reached(self) -> list[float]:
        """What is drawn of it along the y axis."""
        return [*(y for _, y, _ in self.points), *(end for ends in self.spans.values() for end in ends)]

    @property
    def label(self) -> str:
        joined = {c: list(dict.fromkeys(values[c] for values in self.same)) for c in self.same[0]}
        if sum(len(values) > 1 for values in joined.values()) > 1:
            words = [" and ".join(", ".join(_words(values)) for values in self.same)]
        else:
            words = _words({column: " and ".join(values) for column, values in joined.items()})
        return ", ".join([self.measure.short, *words] if self.measure.short else words)


def _words(values: Mapping[str, Any]) -> list[str]:
    """How values of columns read in a legend."""
    return [((c in COLUMNS and COLUMNS[c].curve) or "{}").format(value) for c, value in values.items()]


def figures(table: Table, formats: Sequence[str] = ("svg",)) -> dict[str, str | bytes]:
    """Every figure of a table by file name: SVG as text, PNG as bytes."""
    drawn: dict[str, str | bytes] = {}
    for chart in (chart for chart in table.charts if not chart.ranked):
        lines = _lines(table, chart)
        with picture(drawn, chart.name, formats, _title(table, chart)) as (figure, axes):
            width = (_bars if chart.bars else _curves)(axes, table, chart, lines)
            axes.set_xlabel(chart.axis or COLUMNS[chart.x].axis)
            axes.set_ylabel(_label(table, chart))
            if lines:
                _legend(figure, axes, width)
    return drawn


def _title(table: Table, chart: Chart) -> str:
    left, held = ("component", "grid_h", "grid_w", *chart.by), [table.basis]
    held += _words({k: v for k, v in chart.where.items() if k not in left and not isinstance(v, tuple)})
    if "grid_h" in chart.where:
        held.append("grid {grid_h}x{grid_w}".format(**chart.where) if chart.where["grid_h"] else "no crops")
    return "\n".join(textwrap.fill(line, _LETTERS) for line in (table.title, ", ".join(held)))


def _label(table: Table, chart: Chart) -> str:
    """That of the y axis, in lines that fit; a unit in brackets is not torn apart."""
    parts = (table.measures[chart.measures[0]].label, "log scale" if "y" in chart.log else "", chart.note)
    label = ", ".join(filter(None, parts))
    words, _, unit = label.partition(" (")
    return label if len(label) <= _HIGH else textwrap.fill(words, _HIGH) + (unit and f"\n({unit}")


@contextmanager
def picture(
    drawn: dict[str, str | bytes], name: str, formats: Iterable[str], title: str, **style: Any
) -> Iterator[tuple[Figure, Axes]]:
    """A figure with this title to draw into; as SVG text or PNG bytes it joins those `drawn`, the same in every run."""
    with matplotlib.rc_context(STYLE | style):
        figure, axes = pyplot.subplots(layout="constrained")
        figure.suptitle(title, fontsize=SMALL + 0.5)
        yield figure, axes
        for kind in formats:
            sink, metadata = io.BytesIO(), {"Date" if kind == "svg" else "Software": None}
            figure.savefig(sink, format=kind, metadata=metadata, dpi=DOTS_PER_INCH)
            drawn[f"{name}.{kind}"] = _numbered(sink.getvalue().decode()) if kind == "svg" else sink.getvalue()
        pyplot.close(figure)


def _numbered(svg: str) -> str:
    """An SVG whose clips are numbered: matplotlib calls them by a hash of floats, which processors round otherwise."""
    for number, name in enumerate(dict.fromkeys(re.findall(r'<clipPath id="(p[0-9a-f]{10})"', svg))):
        svg = svg.replace(name, f"clip{number}")
    return svg


def _lines(table: Table, chart: Chart) -> list[_Line]:
    """The curves of a chart; those that coincide are one, with both names, and those of zeros are left out."""
    found: dict[Any, _Line] = {}
    groups = grouped(table.select(**chart.where), *chart.by)
    for index, (name, (values, rows)) in enumerate(product(chart.measures, groups)):
        shown = (f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        line = _Line(rows, table.measures[name], chart.x, look(index), (dict(zip(chart.by, shown, strict=True)),))
        key = (name, *line.points)
        if key in found:
            found[key] = replace(found[key], same=found[key].same + line.same)
        elif any(y for _, y, _ in line.points):
            found[key] = line
    return list(found.values())


def _curves(axes: Axes, table: Table, chart: Chart, lines: Sequence[_Line]) -> float:
    """Curves over x; gives the width of the figure."""
    for line in lines:
        _curve(axes, line)
    _scale(axes, chart, [y for line in lines for y in line.reached] or [0.0])
    if chart.measures[0] in ("flops_tflops", "tensor_tflops"):
        _reference(axes, table)
    if chart.x == "image_tokens" and lines:
        if "crops" in lines[0].rows[0]:
            _grid_labels(axes, max(lines, key=lambda line: max(y for _, y, _ in line.points)))
        _mark(axes, table, lines)
    fills = {hollow for line in lines for _, _, hollow in line.points}
    away = " or ".join(w for mark, w in _AWAY.items() if any(row.get(mark) for line in lines for row in line.rows))
    for hollow in sorted(fills) if True in fills else ():
        meaning = f"hollow: {away}" if hollow else "filled: within the model's own range"
        axes.plot([], [], "ko", markersize=4, fillstyle=FILLS[hollow], label=meaning)
    return WIDTH


def _legend(figure: Figure, axes: Axes, width: float) -> None:
    """Below the axes, in as many columns as fit, and a figure that is higher by its lines."""
    labels = axes.get_legend_handles_labels()[1]
    columns = max(1, min(4, _LETTERS // (max(map(len, labels)) + _HANDLE)))
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    figure.set_size_inches(width, 3.1 + 0.13 * ceil(len(labels) / columns))


def _scale(axes: Axes, chart: Chart, values: Sequence[float]) -> None:
    if "x" in chart.log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    if "y" in chart.log:
        _log_scale(axes, values)
    elif min(values) >= 0:
        axes.set_ylim(0, 1.12 * max(values) or 1)
    else:
        axes.axhline(0, color="k", linewidth=0.8)


def _log_scale(axes: Axes, values: Sequence[float]) -> None:
    """Whole decades below, room above, numbers without exponents where they are short."""
    axes.set_yscale("log")
    low = 10 ** floor(log10(min(v for v in values if v > 0)))
    axes.set_ylim(low, 1.6 * max(values) * (max(values) / low) ** 0.2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: significant(value, 1)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _step(points: int) -> int:
    """Every how many points of a curve have marks."""
    return 1 if points <= _MARKS else points // _FEW


def _curve(axes: Axes, line: _Line) -> None:
    color, dash, marker, _ = line.look
    style, marker, size = ("", "x", 6) if line.measure.points else (dash, marker, 3)
    looks: dict[str, Any] = {"color": color, "marker": marker, "markersize": size}
    axes.plot([x for x, _, _ in line.points], [y for _, y, _ in line.points], color=color, linestyle=style, linewidth=1)
    for hollow, fill in enumerate(FILLS):
        chosen = [(x, y) for x, y, away in line.points[:: _step(len(line.points))] if away == hollow]
        axes.plot([x for x, _ in chosen], [y for _, y in chosen], linestyle="", fillstyle=fill, **looks)
    if line.spans:
        low, high = zip(*(line.spans[x] for x in sorted(line.spans)), strict=True)
        axes.fill_between(sorted(line.spans), low, high, color=color, alpha=0.12, linewidth=0)
    axes.plot([], [], linestyle=style, linewidth=1, label=line.label, **looks)


def _reference(axes: Axes, table: Table) -> None:
    rows = [row for row in table.rows if "reference_tensor_core_flops" in row]
    if rows:
        label = "FlopCounterMode on the reference modules (tensor cores)"
        x, y = [r["image_tokens"] for r in rows], [r["reference_tensor_core_flops"] / 1e12 for r in rows]
        axes.plot(x, y, color="k", marker="x", linestyle="", markersize=5, label=label)


def _grid_labels(axes: Axes, line: _Line) -> None:
    """The grid above points of the uppermost curve, the last and those before it that stand far enough apart."""
    points = {row["image_tokens"]: row for row in line.rows if line.measure.value(row) is not None}
    gap = (max(points) - min(points)) / _GRID_LABELS
    free = max(points) + gap
    for x in sorted(points, reverse=True):
        if x <= free - gap:
            _over(axes, _grid(points[x]), (x, line.measure.value(points[x])), 5)
            free = x


def _grid(row: Row) -> str:
    return grid_of(row).replace("none", "no crops")


def _over(axes: Axes, text: str, place: Any, points: float, rotation: int = 0) -> None:
    """A word so many points above a place."""
    looks: Any = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": SMALL}
    axes.annotate(text, place, (0, points), rotation=rotation, **looks)


def _mark(axes: Axes, table: Table, lines: Sequence[_Line]) -> None:
    """The page's own points ringed, and named in the legend."""
    for row in [row for row in table.rows if row["marked"]][:1]:
        x = row["image_tokens"]
        own: Any = [line.measure.value(r) for line in lines for r in line.rows if r["marked"]]
        axes.axvline(x, color="k", linewidth=0.8, linestyle="-.", alpha=0.5, zorder=0)
        label = f"this page: {_grid(row)}, {x} tokens"
        axes.plot([x] * len(own), own, "o", color="k", markersize=8, fillstyle="none", label=label)


def _bars(axes: Axes, table: Table, chart: Chart, lines: Sequence[_Line]) -> float:
    """Bars over the values of x: the values of `by` stacked, or the measures side by side; gives the figure's width."""
    names = list(dict.fromkeys(row[chart.x] for line in lines for row in line.rows))
    heights = [{x: y for x, y, _ in line.points} for line in lines]
    if "y" in chart.log:
        _log_scale(axes, [y for line in lines for y in line.reached])
    tops = foot = np.full(len(names), axes.get_ylim()[0] if "y" in chart.log else 0.0)  # no bar leaves the picture
    beside, width = len(chart.measures) > 1, 0.8 / len(chart.measures)
    for index, (line, found) in enumerate(zip(lines, heights, strict=True)):
        below = foot if beside else tops
        places = np.arange(len(names)) + (index * width - 0.4 + width / 2 if beside else 0)
        values = np.array([found.get(name, 0.0) for name in names]) - (foot if beside else 0)
        axes.bar(places, values, width, below, label=line.label, **bar_look(index))
        tops = below + values
        for place in zip(places, tops, strict=True) if beside or line is lines[-1] else ():
            top = max(place[1], *line.spans.get(names[round(place[0])], ()), 0)
            _over(axes, significant(place[1]), (place[0], top), 1.5, 90 if beside else 0)
        for at, name in zip(places, names, strict=True):
            for low, high in [line.spans[name]] if name in line.spans else ():
                axes.plot([at, at], [low, high], color="black", linewidth=0.8, marker="_", markersize=3)
    axes.margins(y=0.1)
    room = 62 // len(names)
    wrapped = (textwrap.fill(_parted(str(name), room), room, break_long_words=False) for name in names)
    labels = [label.replace("_ ", "_") for label in wrapped]
    axes.set_xticks(range(len(names)), labels)
    axes.grid(visible=False, axis="x")
    return max(WIDTH, _BAR * len(names) * len(lines)) if beside else WIDTH


def _parted(name: str, room: int) -> str:
    """A label whose long words may be broken behind their underscores."""
    return " ".join(word.replace("_", "_ ") if len(word) > max(room, 15) else word for word in name.split())


def bar_look(index: int) -> dict[str, Any]:
    """How the bars of a series are filled. Opaque: some viewers fade see-through hatched bars one after the other."""
    color, _, _, hatch = look(index)
    return {"facecolor": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}
