"""The vision stage over every point of the planner; FLOPs of reference modules stand beside it if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmeter.models.model import BaseModel
from modelmeter.sweep import findings as found
from modelmeter.sweep.columns import flops_of, significant
from modelmeter.sweep.pages import SETTINGS as SETTINGS
from modelmeter.sweep.pages import STAGECOST, PageSweep, require_images, run_pages
from modelmeter.sweep.table import Chart, Table


def _charts(kind: str) -> list[Chart]:
    charts = [Chart(f"stagecost_{m}", (m,)) for m in STAGECOST if m != "kv_gb"]  # vision has no KV cache
    return [*charts, Chart("vision_flops_split_log", ("tensor_tflops", "cuda_tflops"), log="y")]


def _findings(table: Table) -> Iterator[found.Finding]:
    rows = found.rows_of(table)
    tiled = {row["crops"]: row for row in rows if row.get("crops")}
    yield from found.spoken(table)
    if len(tiled) > 1:
        yield from found.over_grids("vision_range", list(tiled.values()))
        few, many = min(tiled), max(tiled)
        each = significant((flops_of(tiled[many]) - flops_of(tiled[few])) / (many - few) / 1e12, 4)
        flops = {crops: flops_of(row) for crops, row in tiled.items()}
        same = found.trend(list(flops.items())) == "linear"
        yield "vision_per_crop" if same else "vision_per_crop_mean", {"each": each}
        yield from found.trends("vision_trend", flops)
    yield from found.engines(rows)
    yield from found.eager(table)
    yield from found.intensity(rows)
    yield from found.ranges("peak", [row["peak_activation_bytes"] for row in rows], 1e9)
    if len(tiled) > 1:
        fewer, many = sorted(tiled)[-2:]
        more = tiled[many]["peak_activation_bytes"] - tiled[fewer]["peak_activation_bytes"]
        yield "peak_per_crop", {"each": significant(more / (many - fewer) / 1e6, 4)}


FINDINGS = {"vision_crops": _findings}
COMPARABLE = True
SWEEP = PageSweep(
    "vision_crops", lambda work: "vision stage", lambda model, work: {"": model.cost("vision", work)}, _charts
)


def run(model: BaseModel, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """The Table of the sweep; see `run_pages`."""
    require_images(model)
    return [run_pages(SWEEP, model, settings, reference)]
