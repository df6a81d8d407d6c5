"""The vision stage over every point of the planner; FLOPs of reference modules stand beside it if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmeter.models.model import BaseModel
from modelmeter.sweep import findings as found
from modelmeter.sweep.columns import flops_of, significant
from modelmeter.sweep.pages import SETTINGS as SETTINGS
from modelmeter.sweep.pages import STAGECOST, require_images, run_pages
from modelmeter.sweep.table import Chart, Table, cost_columns

COMPARABLE = True


def run(model: BaseModel, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """The Table of the sweep; see `run_pages`."""
    require_images(model)
    rows = lambda work: [cost_columns(work, model.cost("vision", work))]
    return [run_pages("vision_crops", model, settings, lambda work: "vision stage", rows, _charts, reference)]


def _charts(kind: str) -> list[Chart]:
    charts = [Chart(f"stagecost_{m}", (m,)) for m in STAGECOST if m != "kv_gb"]  # vision has no KV cache
    return [*charts, Chart("vision_flops_split_log", ("tensor_tflops", "cuda_tflops"), log="y")]


def _findings(table: Table) -> Iterator[found.Finding]:
    rows = found.rows_of(table)
    tiled = {row["crops"]: row for row in rows if row.get("crops")}
    yield from found.spoken(table)
    if len(tiled) > 1:
        yield from found.over_grids("vision_range", list(tiled.values()))
        flops = {crops: flops_of(row) for crops, row in tiled.items()}
        few, many = min(tiled), max(tiled)
        each = significant((flops[many] - flops[few]) / (many - few) / 1e12, 4)
        same = found.trend(flops.items()) == "linear"
        yield "vision_per_crop" if same else "vision_per_crop_mean", {"each": each}
        yield from found.trends("vision_trend", flops)
    yield from found.execution(table)
    yield from found.ranges("peak", [row["peak_activation_bytes"] for row in rows], 1e9)
    if len(tiled) > 1:
        fewer, many = sorted(tiled)[-2:]
        more = tiled[many]["peak_activation_bytes"] - tiled[fewer]["peak_activation_bytes"]
        yield "peak_per_crop", {"each": significant(more / (many - fewer) / 1e6, 4)}


FINDINGS = {"vision_crops": _findings}
