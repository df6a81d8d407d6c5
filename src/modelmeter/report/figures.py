"""Figures of sweeps as SVG text: readable in print and in grey, units on the axes, no time stamps."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modelmeter.sweep.table import Table

_STYLE: Any = {"svg.hashsalt": "modelmeter", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
_LINES = {"eager": ("#b04a00", "--", "s"), "flash": ("#00508c", "-", "o")}
_OTHER = ("#00508c", "-", "o")

Row = Mapping[str, Any]
Measure = Callable[[Row], float]

STAGECOST: dict[str, tuple[str, Measure]] = {
    "stagecost_flops_tflops": (
        "FLOPs, tensor and CUDA cores (TFLOP = 1e12)",
        lambda r: (r["tensor_core_flops"] + r["cuda_core_flops"]) / 1e12,
    ),
    "stagecost_io_tb": ("traffic to and from memory (Tb = 1e12 bits)", lambda r: r["io_bytes"] * 8 / 1e12),
    "stagecost_arithmetic_intensity": (
        "arithmetic intensity (FLOP per byte)",
        lambda r: r["arithmetic_intensity_flop_per_byte"],
    ),
    "stagecost_activations_gb": ("peak activations (GB = 1e9 bytes)", lambda r: r["peak_activation_bytes"] / 1e9),
}


def figures(table: Table) -> dict[str, str]:
    """Every figure of a grid sweep, as SVG text by file name."""
    drawn = {}
    with matplotlib.rc_context(_STYLE):
        for name, (label, measure) in STAGECOST.items():
            drawn[f"{name}.svg"] = _draw(table, label, {"": measure})
        split: dict[str, Measure] = {
            "tensor cores": lambda r: r["tensor_core_flops"] / 1e12,
            "CUDA cores": lambda r: r["cuda_core_flops"] / 1e12,
        }
        drawn["vision_flops_split_log.svg"] = _draw(table, "FLOPs by engine (TFLOP = 1e12, log scale)", split, log=True)
    return drawn


def _draw(table: Table, label: str, measures: Mapping[str, Measure], log: bool = False) -> str:
    figure, axes = pyplot.subplots(figsize=(11, 6), layout="constrained")
    kinds = list(dict.fromkeys(row["attention"] for row in table.rows))
    for part, measure in measures.items():
        series = {kind: sorted(_points(table, kind, measure)) for kind in kinds}
        if len(kinds) > 1 and len({tuple(points) for points in series.values()}) == 1:
            series = {" and ".join(kinds): series[kinds[0]]}
        for kind, points in series.items():
            _line(axes, points, ", ".join(filter(None, (part, f"{kind} attention"))), _look(kind, part, measures))
    if log:
        axes.set_yscale("log")
        axes.set_ylim(top=2 * max(measure(row) for measure in measures.values() for row in table.rows))
    else:
        axes.set_ylim(0, 1.12 * max(measure(row) for measure in measures.values() for row in table.rows))
    if "FLOPs" in label:
        _reference(axes, table)
    _labels(axes, table, next(iter(measures.values())))
    _mark(axes, table, measures.values())
    axes.set_xlabel("image tokens (grid of crops written rows x columns)")
    axes.set_ylabel(label)
    axes.set_title(f"{table.title}\n{table.basis}", fontsize=10)
    axes.plot([], [], color="k", marker="o", linestyle="", markersize=4, label="filled: a grid of the preprocessor")
    axes.plot([], [], color="k", marker="o", linestyle="", markersize=4, fillstyle="none", label="hollow: extrapolated")
    axes.legend(loc="lower right" if not log else "center right", framealpha=0.9)
    return _svg(figure)


def _points(table: Table, kind: str, measure: Measure) -> list[tuple[int, float, bool]]:
    return [(r["image_tokens"], measure(r), r["extrapolated"]) for r in table.select(attention=kind)]


def _look(kind: str, part: str, measures: Mapping[str, Measure]) -> tuple[str, str, str]:
    if len(measures) > 1:
        return [("#00508c", "-", "o"), ("#b04a00", "--", "s")][list(measures).index(part)]
    return _LINES.get(kind, _OTHER)


def _line(axes: Axes, points: list[tuple[int, float, bool]], label: str, look: tuple[str, str, str]) -> None:
    color, style, marker = look
    axes.plot([p[0] for p in points], [p[1] for p in points], color=color, linestyle=style, linewidth=1, label=label)
    for extrapolated, fill in ((False, "full"), (True, "none")):
        chosen = [p for p in points if p[2] == extrapolated]
        axes.plot(
            [p[0] for p in chosen], [p[1] for p in chosen], color=color, linestyle="", marker=marker, markersize=4,
            fillstyle=fill,
        )  # fmt: skip


def _reference(axes: Axes, table: Table) -> None:
    rows = [row for row in table.rows if "reference_tensor_core_flops" in row]
    if rows:
        label = "FlopCounterMode on the reference modules (tensor cores)"
        x, y = [r["image_tokens"] for r in rows], [r["reference_tensor_core_flops"] / 1e12 for r in rows]
        axes.plot(x, y, color="k", marker="x", linestyle="", markersize=5, label=label)


def _labels(axes: Axes, table: Table, measure: Measure) -> None:
    """One label above each number of crops, its grids stacked."""
    groups: dict[int, list[Row]] = {}
    for row in table.rows:
        groups.setdefault(row["crops"], []).append(row)
    for crops, rows in groups.items():
        grids = list(dict.fromkeys(f"{r['grid_h']}x{r['grid_w']}" for r in rows)) if crops else ["no crops"]
        x = sum(r["image_tokens"] for r in rows) / len(rows)
        axes.annotate(
            "\n".join(reversed(grids)), (x, max(map(measure, rows))), xytext=(0, 5), textcoords="offset points",
            ha="center", va="bottom", fontsize=5.5,
        )  # fmt: skip


def _mark(axes: Axes, table: Table, measures: Iterable[Measure]) -> None:
    """The page's own points ringed, with a note on the side where there is room."""
    marked = [row for row in table.rows if row["marked"]]
    if not marked:
        return
    x = marked[0]["image_tokens"]
    grid = f"{marked[0]['grid_h']}x{marked[0]['grid_w']}" if marked[0]["crops"] else "no crops"
    for measure in measures:
        axes.plot([x] * len(marked), list(map(measure, marked)), "o", color="k", markersize=11, fillstyle="none")
    tokens = [row["image_tokens"] for row in table.rows]
    left = x < (min(tokens) + max(tokens)) / 2
    axes.axvline(x, color="k", linewidth=0.8, linestyle="-.", alpha=0.5, zorder=0)
    axes.annotate(
        f"this page: {grid}, {x} tokens", (x, 0.02), xycoords=("data", "axes fraction"),
        xytext=(4 if left else -4, 0), textcoords="offset points", ha="left" if left else "right", fontsize=8,
    )  # fmt: skip


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return text.getvalue()
