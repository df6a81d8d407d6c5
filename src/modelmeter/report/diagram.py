"""Pictures of one page: its stages as boxes with what flows between them, and what it takes, as bars."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from modelmeter.cost import StageCost
from modelmeter.models.model import STAGES, Model
from modelmeter.report.figures import COLOURS, SMALL, STYLE, WIDTH, bar_look, saved
from modelmeter.report.tables import page_parts, si, split
from modelmeter.workload import Workload

_WIDTH, _HEIGHT, _GAP, _APART = 2.6, 0.72, 0.22, 1.3


def stages_diagram(model: Model, work: Workload, formats: tuple[str, ...] = ("svg",)) -> dict[str, str | bytes]:
    """The stages of a workload by component, as `stages.svg`."""
    parts = {stage: model.breakdown(stage, work) for stage in STAGES}
    whole = sum(float(cost.flops) for stage in parts.values() for cost in stage.values())
    tallest = max(map(len, parts.values()))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = pyplot.subplots(figsize=(WIDTH, 0.8 + 0.4 * tallest), layout="constrained")
        axes.set_axis_off()
        for column, stage in enumerate(STAGES):
            steps = f" ({work.decode_steps} steps)" if stage == "decode" else ""
            _column(axes, column * (_WIDTH + _APART), f"{stage}{steps}", parts[stage], whole, COLOURS[column])
        flows = (f"{work.image.tokens}\nimage\ntokens", f"{work.context_tokens}\ntokens of\nKV cache")
        for column, text in enumerate(flows):
            x = column * (_WIDTH + _APART) + _WIDTH
            axes.annotate(
                "", (x + _APART - 0.05, -0.3), (x + 0.05, -0.3), arrowprops={"arrowstyle": "->", "linewidth": 1.2}
            )
            axes.annotate(text, (x + _APART / 2, -0.36), ha="center", va="top", fontsize=SMALL)
        axes.set_xlim(-0.1, 3 * _WIDTH + 2 * _APART + 0.1)
        axes.set_ylim(-tallest * (_HEIGHT + _GAP) - 0.1, 0.75)
        figure.suptitle(_title(model, work), fontsize=SMALL + 0.5)
        drawn = {f"stages.{kind}": saved(figure, kind) for kind in formats}
        pyplot.close(figure)
    return drawn


def page_overview(model: Model, work: Workload, formats: tuple[str, ...] = ("svg",)) -> dict[str, str | bytes]:
    """What a page takes, each as one bar of its parts, as `page.svg`."""
    parts = page_parts(model, work)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = pyplot.subplots(figsize=(WIDTH, 2.2), layout="constrained")
        axes.set_axis_off()
        axes.set_xlim(0, 1)
        looks: dict[str, int] = {}
        for row, (name, values) in enumerate(parts.items()):
            left = 0.0
            for part, value in values.items():
                label = part if part not in looks else None
                share = value / sum(values.values())
                axes.barh(-row, share, 0.45, left, label=label, **bar_look(looks.setdefault(part, len(looks))))
                left += share
            text = f"{name} {split(values, 'FLOP' if name == 'work' else 'B')}"
            axes.annotate(text, (0, 0.27 - row), va="bottom", fontsize=SMALL)
        figure.suptitle(_title(model, work), fontsize=SMALL + 0.5)
        figure.legend(loc="outside lower center", ncols=len(looks), frameon=False, handlelength=1.2)
        drawn = {f"page.{kind}": saved(figure, kind) for kind in formats}
        pyplot.close(figure)
    return drawn


def _title(model: Model, work: Workload) -> str:
    return "\n".join([*textwrap.wrap(f"{model.name}, {work.image.describe()}", 80), work.basis])


def _column(axes: Axes, x: float, title: str, parts: Mapping[str, StageCost], whole: float, color: str) -> None:
    total = sum(float(cost.flops) for cost in parts.values())
    axes.annotate(f"{title}\n{si(total, 'FLOP')}", (x + _WIDTH / 2, 0.12), ha="center", va="bottom")
    for index, (name, cost) in enumerate(parts.items()):
        y = -(index + 1) * (_HEIGHT + _GAP) + _GAP
        box: dict[str, Any] = {"boxstyle": "round,pad=0.02", "facecolor": "white", "edgecolor": color, "linewidth": 1.2}
        axes.add_patch(FancyBboxPatch((x, y), _WIDTH, _HEIGHT, **box))
        share = float(cost.flops) / whole
        axes.add_patch(Rectangle((x, y), _WIDTH * share, 0.1, facecolor=color, edgecolor="none"))
        text = f"{name}, {100 * share:.1f} %\n{si(cost.flops, 'FLOP')}, {si(cost.io_bytes, 'B')}"
        axes.annotate(text, (x + _WIDTH / 2, y + 0.14), ha="center", va="bottom", fontsize=SMALL)
