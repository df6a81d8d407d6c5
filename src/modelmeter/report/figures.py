"""Figures of sweeps as SVG text: readable in print and in grey, units on the axes, no time stamps."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modelmeter.sweep.table import TOTAL, Table

_STYLE: Any = {"svg.hashsalt": "modelmeter", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
_KINDS = {"eager": ("#b04a00", "--", "s"), "flash": ("#00508c", "-", "o")}
_LOOKS = (
    ("#00508c", "-", "o"), ("#b04a00", "--", "s"), ("#2f7d32", "-.", "^"), ("#7a3e9d", ":", "D"), ("#222222", "-", "v"),
)  # fmt: skip

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
_KV: tuple[str, Measure] = ("KV cache at the end (GB = 1e9 bytes)", lambda r: r["kv_cache_bytes"] / 1e9)
_ENGINES: dict[str, Measure] = {
    "tensor cores": lambda r: r["tensor_core_flops"] / 1e12,
    "CUDA cores": lambda r: r["cuda_core_flops"] / 1e12,
}
_SPLIT = "FLOPs by engine (TFLOP = 1e12, log scale)"


@dataclass(frozen=True)
class _Line:
    """One curve: its legend, its rows, what of them is drawn, and how."""

    label: str
    rows: Sequence[Row]
    measure: Measure
    look: tuple[str, str, str]

    @property
    def points(self) -> list[tuple[int, float, bool]]:
        return sorted((r["image_tokens"], self.measure(r), r["extrapolated"]) for r in self.rows)


def figures(table: Table) -> dict[str, str]:
    """Every figure of a grid sweep, as SVG text by file name."""
    with matplotlib.rc_context(_STYLE):
        drawn = _by_component(table) if "component" in table.columns else _by_attention(table)
    return {f"{name}.svg": text for name, text in drawn.items()}


def _by_attention(table: Table) -> dict[str, str]:
    """The figures of a sweep of one stage: a curve an attention kind."""
    drawn = {
        name: _draw(table, label, _kinds(table.rows, measure), name == "stagecost_flops_tflops")
        for name, (label, measure) in STAGECOST.items()
    }
    split = [line for part, measure in _ENGINES.items() for line in _kinds(table.rows, measure, f"{part}, ")]
    split = [replace(line, look=_LOOKS[line.label.startswith("CUDA")]) for line in split]
    return drawn | {"vision_flops_split_log": _draw(table, _SPLIT, split, True, log=True)}


def _by_component(table: Table) -> dict[str, str]:
    """The figures of a sweep with components: the whole by attention kind, then a curve a component."""
    whole = table.select(component=TOTAL)
    kind = whole[-1]["attention"]
    names = list(dict.fromkeys(row["component"] for row in table.rows))
    drawn = {table.name: _draw(table, STAGECOST["stagecost_flops_tflops"][0], _kinds(whole, _flops))}
    for name, (label, measure) in (STAGECOST | {"stagecost_kv_gb": _KV}).items():
        curves = [
            _Line(part, table.select(component=part, attention=kind), measure, look)
            for part, look in zip(names, _LOOKS, strict=False)
        ]
        drawable = [line for line in curves if any(map(measure, line.rows))]
        lines = list({tuple(line.points): line for line in reversed(drawable)}.values())[::-1]
        drawn[f"{table.name}_{name}"] = _draw(table, f"{label}, {kind} attention", lines)
    engines = zip(_ENGINES.items(), _LOOKS, strict=False)
    split = [_Line(part, table.select(component=TOTAL, attention=kind), m, look) for (part, m), look in engines]
    return drawn | {f"{table.name}_flops_split_log": _draw(table, _SPLIT, split, log=True)}


def _flops(row: Row) -> float:
    return float(row["tensor_core_flops"] + row["cuda_core_flops"]) / 1e12


def _kinds(rows: Sequence[Row], measure: Measure, prefix: str = "") -> list[_Line]:
    """A curve an attention kind, or a single one where they coincide."""
    kinds = list(dict.fromkeys(row["attention"] for row in rows))
    lines = [
        _Line(f"{prefix}{kind} attention", [r for r in rows if r["attention"] == kind], measure, _KINDS[kind])
        for kind in kinds
    ]
    if len({tuple(line.points) for line in lines}) == 1:
        lines = [replace(lines[-1], label=f"{prefix}{' and '.join(kinds)} attention")]
    return lines


def _draw(table: Table, label: str, lines: Sequence[_Line], reference: bool = False, log: bool = False) -> str:
    figure, axes = pyplot.subplots(figsize=(11, 6), layout="constrained")
    for line in lines:
        _curve(axes, line)
    top = max(point[1] for line in lines for point in line.points)
    if log:
        axes.set_yscale("log")
        axes.set_ylim(top=2 * top)
    else:
        axes.set_ylim(0, 1.12 * top)
    if reference:
        _reference(axes, table)
    _labels(axes, max(lines, key=lambda line: max(point[1] for point in line.points)))
    _mark(axes, table, lines)
    axes.set_xlabel("image tokens (grid of crops written rows x columns)")
    axes.set_ylabel(label)
    axes.set_title(f"{table.title}\n{table.basis}", fontsize=10)
    axes.plot([], [], color="k", marker="o", linestyle="", markersize=4, label="filled: a grid of the preprocessor")
    axes.plot([], [], color="k", marker="o", linestyle="", markersize=4, fillstyle="none", label="hollow: extrapolated")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return _svg(figure)


def _curve(axes: Axes, line: _Line) -> None:
    color, style, marker = line.look
    points = line.points
    axes.plot(
        [p[0] for p in points], [p[1] for p in points], color=color, linestyle=style, linewidth=1, label=line.label
    )
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


def _labels(axes: Axes, line: _Line) -> None:
    """One label above each number of crops of the uppermost curve, its grids stacked."""
    groups: dict[int, list[Row]] = {}
    for row in line.rows:
        groups.setdefault(row["crops"], []).append(row)
    for crops, rows in groups.items():
        grids = list(dict.fromkeys(f"{r['grid_h']}x{r['grid_w']}" for r in rows)) if crops else ["no crops"]
        x = sum(r["image_tokens"] for r in rows) / len(rows)
        axes.annotate(
            "\n".join(reversed(grids)), (x, max(map(line.measure, rows))), xytext=(0, 5), textcoords="offset points",
            ha="center", va="bottom", fontsize=5.5,
        )  # fmt: skip


def _mark(axes: Axes, table: Table, lines: Iterable[_Line]) -> None:
    """The page's own points ringed, with a note on the side where there is room."""
    marked = [row for row in table.rows if row["marked"]]
    if not marked:
        return
    x = marked[0]["image_tokens"]
    grid = f"{marked[0]['grid_h']}x{marked[0]['grid_w']}" if marked[0]["crops"] else "no crops"
    own = [line.measure(row) for line in lines for row in line.rows if row["marked"]]
    axes.plot([x] * len(own), own, "o", color="k", markersize=11, fillstyle="none")
    tokens = [row["image_tokens"] for row in table.rows]
    left = x < (min(tokens) + max(tokens)) / 2
    axes.axvline(x, color="k", linewidth=0.8, linestyle="-.", alpha=0.5, zorder=0)
    axes.annotate(
        f"this page: {grid}, {x} tokens", (x, 0.02), xycoords=("data", "axes fraction"),
        xytext=(4 if left else -4, 0), textcoords="offset points", ha="left" if left else "right", fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return text.getvalue()
