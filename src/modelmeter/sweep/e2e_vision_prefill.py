"""Vision and prefill over every point of the planner, by component: what the first token waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.sweep import pages
from modelmeter.sweep.columns import flops_of
from modelmeter.sweep.findings import Finding, eager, engines, intensity, over_grids, ranges, rows_of, spoken, trends
from modelmeter.sweep.pages import PageSweep, component_charts, run_pages, with_total
from modelmeter.sweep.requirements import TTFT, requirements
from modelmeter.sweep.table import TOTAL, Table
from modelmeter.workload import Workload

SETTINGS = (*pages.SETTINGS, TTFT.setting)


def _parts(model: BaseModel, work: Workload) -> Mapping[str, StageCost]:
    """The stages before the first step: the last by component, those before it whole."""
    *before, last = (stage.name for stage in model.stages if stage.steps is None)
    return with_total({name: model.cost(name, work) for name in before} | model.breakdown(last, work))


def _after(model: BaseModel, work: Workload, part: str, costs: Mapping[str, Any]) -> dict[str, Any]:
    return {"beyond_positions": part != "vision" and model.is_beyond(work.context_tokens)}


def _findings(table: Table) -> Iterator[Finding]:
    rows, vision = rows_of(table, component=TOTAL), rows_of(table, component="vision")
    tiled = [row for row in rows if row.get("crops")]
    points = {row["image_tokens"]: flops_of(row) for row in tiled}
    yield from spoken(table)
    if len(points) > 1:
        yield from over_grids("prefill_range", tiled)
    yield from trends("prefill_trend", points)
    if vision:
        yield from ranges("vision_share", [100 * flops_of(a) / flops_of(b) for a, b in zip(vision, rows, strict=True)])
    yield from engines(rows)
    yield from eager(table, component=TOTAL)
    yield from intensity(rows)
    batch = table.settings.get("batch", 1)
    each = rows[0]["kv_cache_bytes"] / rows[0]["context_tokens"] / batch
    yield from ranges("kv", [row["kv_cache_bytes"] for row in rows], 1e6, each=f"{each:,.0f}", batch=batch)


NAME = "e2e_vision_prefill"
FINDINGS = {NAME: _findings}
SWEEP = PageSweep(
    NAME, lambda work: "vision and prefill" if work.image.views else "prefill", _parts, partial(component_charts, NAME),
    lambda work: {"context_tokens": work.context_tokens, "logits": work.logits}, _after,
)  # fmt: skip


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """The Table of the sweep (see `run_pages`) and what TTFT budgets require."""
    table = run_pages(SWEEP, model, settings)
    return [table, requirements(TTFT, table)]
