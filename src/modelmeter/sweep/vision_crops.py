"""The vision stage over every point of the planner; FLOPs of reference modules stand beside it if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmeter.models.model import BaseModel
from modelmeter.sweep.columns import flops_of, significant
from modelmeter.sweep.findings import Finding, execution, over_grids, ranges, rows_of, spoken, trend, trends
from modelmeter.sweep.pages import SETTINGS as SETTINGS
from modelmeter.sweep.pages import require_images, run_pages
from modelmeter.sweep.table import Table, cost_columns
from modelmeter.sweep.timed import Clock, of_stage

COMPARABLE = True


def run(model: BaseModel, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """The Table of the sweep; see `run_pages`."""
    require_images(model)
    clock, stage = Clock.of(settings), of_stage("vision")
    rows = lambda work: [cost_columns(work, model.cost("vision", work)) | clock.columns(model, work, stage)]
    return [run_pages("vision_crops", model, settings, lambda work: "vision stage", rows, reference)]


def _findings(table: Table) -> Iterator[Finding]:
    rows = rows_of(table)
    tiled = {row["crops"]: row for row in rows if row.get("crops")}
    flops = {crops: flops_of(row) for crops, row in tiled.items()}
    yield from spoken(table)
    if len(tiled) > 1:
        yield from over_grids("vision_range", tiled.values())
        same = trend(flops.items()) == "linear"
        each = significant(_per_crop(flops, min(tiled), max(tiled)) / 1e12, 4)
        yield "vision_per_crop" if same else "vision_per_crop_mean", {"each": each}
        yield from trends("vision_trend", flops)
    yield from execution(table)
    yield from ranges("peak", [row["peak_activation_bytes"] for row in rows], 1e9)
    if len(tiled) > 1:
        peaks = {crops: row["peak_activation_bytes"] for crops, row in tiled.items()}
        yield "peak_per_crop", {"each": significant(_per_crop(peaks, *sorted(tiled)[-2:]) / 1e6, 4)}


def _per_crop(values: Mapping[int, int], few: int, many: int) -> float:
    return (values[many] - values[few]) / (many - few)


FINDINGS = {"vision_crops": _findings}
