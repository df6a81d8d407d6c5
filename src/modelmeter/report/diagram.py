"""The diagram of a model's stages: components as boxes, what flows between them, shares of the FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from modelmeter.cost import StageCost
from modelmeter.models.model import STAGES, Model
from modelmeter.report.figures import COLOURS, STYLE, saved
from modelmeter.report.tables import si
from modelmeter.workload import Workload

_WIDTH, _HEIGHT, _GAP = 2.6, 0.72, 0.22


def stages_diagram(model: Model, work: Workload, formats: tuple[str, ...] = ("svg",)) -> dict[str, str | bytes]:
    """The stages of a workload by component, as `stages.svg`."""
    parts = {stage: model.breakdown(stage, work) for stage in STAGES}
    whole = sum(float(cost.flops) for stage in parts.values() for cost in stage.values())
    tallest = max(map(len, parts.values()))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = pyplot.subplots(figsize=(11, 1.6 + tallest * (_HEIGHT + _GAP)), layout="constrained")
        axes.set_axis_off()
        for column, stage in enumerate(STAGES):
            steps = f" ({work.decode_steps} steps)" if stage == "decode" else ""
            _column(axes, column * (_WIDTH + 1.2), f"{stage}{steps}", parts[stage], whole, COLOURS[column])
        flows = (f"{work.image.tokens} image\ntokens", f"{work.context_tokens} tokens\nof KV cache")
        for column, text in enumerate(flows):
            x = column * (_WIDTH + 1.2) + _WIDTH
            axes.annotate("", (x + 1.15, -0.3), (x + 0.05, -0.3), arrowprops={"arrowstyle": "->", "linewidth": 1.2})
            axes.annotate(text, (x + 0.6, -0.36), ha="center", va="top", fontsize=8)
        axes.set_xlim(-0.1, 3 * _WIDTH + 2 * 1.2 + 0.1)
        axes.set_ylim(-tallest * (_HEIGHT + _GAP) - 0.1, 0.75)
        axes.set_title(f"{model.name}: {work.image.describe()}\n{work.basis}", fontsize=10)
        drawn = {f"stages.{kind}": saved(figure, kind) for kind in formats}
        pyplot.close(figure)
    return drawn


def _column(axes: Axes, x: float, title: str, parts: Mapping[str, StageCost], whole: float, color: str) -> None:
    total = sum(float(cost.flops) for cost in parts.values())
    axes.annotate(f"{title}\n{si(total, 'FLOP')}", (x + _WIDTH / 2, 0.12), ha="center", va="bottom", fontsize=10)
    for index, (name, cost) in enumerate(parts.items()):
        y = -(index + 1) * (_HEIGHT + _GAP) + _GAP
        box: dict[str, Any] = {"boxstyle": "round,pad=0.02", "facecolor": "white", "edgecolor": color, "linewidth": 1.2}
        axes.add_patch(FancyBboxPatch((x, y), _WIDTH, _HEIGHT, **box))
        share = float(cost.flops) / whole
        axes.add_patch(Rectangle((x, y), _WIDTH * share, 0.1, facecolor=color, edgecolor="none"))
        text = f"{name}\n{si(cost.flops, 'FLOP')}, {si(cost.io_bytes, 'B')}, {100 * share:.1f} %"
        axes.annotate(text, (x + _WIDTH / 2, y + 0.14), ha="center", va="bottom", fontsize=8)
