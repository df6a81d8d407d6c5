"""Vision and prefill over every point of the planner, by component: what the first token waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.models.model import Model
from modelmeter.sweep import grids
from modelmeter.sweep.columns import flops_of
from modelmeter.sweep.findings import Finding, eager, engines, intensity, over_grids, ranges, rows_of, spoken, trends
from modelmeter.sweep.grids import GridSweep, component_charts, run_grids, with_total
from modelmeter.sweep.requirements import TTFT, requirements
from modelmeter.sweep.table import TOTAL, Table
from modelmeter.workload import Workload

SETTINGS = (*grids.SETTINGS, TTFT.setting)


def _parts(model: Model, work: Workload) -> Mapping[str, StageCost]:
    return with_total({"vision": model.cost("vision", work), **model.breakdown("prefill", work)})


def _columns(model: Model, work: Workload, part: str, costs: Mapping[str, Any]) -> Mapping[str, Any]:
    context = work.context_tokens
    beyond = part != "vision" and model.is_beyond(context)
    return {"context_tokens": context, "logits": work.logits, "beyond_positions": beyond}


def _findings(table: Table) -> Iterator[Finding]:
    rows, vision = rows_of(table, component=TOTAL), rows_of(table, component="vision")
    tiled = [row for row in rows if row.get("crops")]
    points = {row["image_tokens"]: flops_of(row) for row in tiled}
    yield from spoken(table)
    if len(points) > 1:
        yield from over_grids("prefill_range", tiled)
    yield from trends("prefill_trend", points)
    yield from ranges("vision_share", [100 * flops_of(a) / flops_of(b) for a, b in zip(vision, rows, strict=True)])
    yield from engines(rows)
    yield from eager(table, component=TOTAL)
    yield from intensity(rows)
    batch = table.settings.get("batch", 1)
    each = rows[0]["kv_cache_bytes"] / rows[0]["context_tokens"] / batch
    yield from ranges("kv", [row["kv_cache_bytes"] for row in rows], 1e6, each=f"{each:,.0f}", batch=batch)


FINDINGS = {"e2e_vision_prefill": _findings}
SWEEP = GridSweep(
    "e2e_vision_prefill",
    lambda work: "vision and prefill",
    _parts,
    lambda kind: component_charts("e2e_vision_prefill", kind),
    _columns,
)


def run(model: Model, settings: Mapping[str, Any]) -> list[Table]:
    """The Table of the sweep (see `run_grids`) and what TTFT budgets require."""
    table = run_grids(SWEEP, model, settings)
    return [table, requirements(TTFT, table)]
