"""Pictures of one page: its stages as boxes with what flows between them, and what it takes, as bars."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.report.figures import COLOURS, SMALL, WIDTH, bar_look, picture
from modelmeter.report.tables import page_parts, si, split, stage_title
from modelmeter.workload import Workload

_WIDTH, _HEIGHT, _GAP, _APART = 2.6, 0.72, 0.22, 1.3


def page_pictures(model: BaseModel, work: Workload, formats: Sequence[str]) -> dict[str, str | bytes]:
    """What a page takes, each as one bar of its parts, and its stages by component, as `page` and `stages`."""
    drawn: dict[str, str | bytes] = {}
    title = f"{textwrap.fill(f'{model.name}, {work.image.describe()}', 80)}\n{work.basis}"
    for name, draw in (("page", _overview), ("stages", _stages)):
        with picture(drawn, name, formats, title, **{"axes.grid": False}) as (figure, axes):
            axes.set_axis_off()
            draw(figure, axes, model, work)
    return drawn


def _overview(figure: Figure, axes: Axes, model: BaseModel, work: Workload) -> None:
    figure.set_size_inches(WIDTH, 2.2)
    axes.set_xlim(0, 1)
    looks: dict[str, int] = {}
    for row, (name, values) in enumerate(page_parts(model, work).items()):
        left = 0.0
        for part, value in values.items():
            label = part if part not in looks else None
            share = value / sum(values.values())
            axes.barh(-row, share, 0.45, left, label=label, **bar_look(looks.setdefault(part, len(looks))))
            left += share
        axes.annotate(f"{name} {split(name, values)}", (0, 0.27 - row), va="bottom", fontsize=SMALL)
    figure.legend(loc="outside lower center", ncols=len(looks), frameon=False, handlelength=1.2)


def _stages(figure: Figure, axes: Axes, model: BaseModel, work: Workload) -> None:
    found = {stage.name: model.breakdown(stage.name, work) for stage in model.stages}
    parts = {stage: components for stage, components in found.items() if components}
    whole = sum(float(cost.flops) for stage in parts.values() for cost in stage.values())
    tallest, step = max(map(len, parts.values())), _WIDTH + _APART
    figure.set_size_inches(WIDTH, 0.8 + 0.4 * tallest)
    for column, (stage, components) in enumerate(parts.items()):
        _column(axes, column * step, stage_title(model, stage, work), components, whole, COLOURS[column])
    flows = [f"{work.image.tokens}\nimage\ntokens", f"{work.kept_tokens}\ntokens of\nKV cache"][1 - len(parts) :]
    for column, text in enumerate(flows):
        x, arrow = column * step + _WIDTH, {"arrowstyle": "->", "linewidth": 1.2}
        axes.annotate("", (x + _APART - 0.05, -0.3), (x + 0.05, -0.3), arrowprops=arrow)
        axes.annotate(text, (x + _APART / 2, -0.36), ha="center", va="top", fontsize=SMALL)
    axes.set_xlim(-0.1, len(parts) * step - _APART + 0.1)
    axes.set_ylim(-tallest * (_HEIGHT + _GAP) - 0.1, 0.75)


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
