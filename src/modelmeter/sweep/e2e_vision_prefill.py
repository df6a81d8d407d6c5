"""Vision and prefill over every point of the planner, by component: what the first token waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmeter.models.model import BaseModel
from modelmeter.sweep import pages
from modelmeter.sweep.columns import flops_of
from modelmeter.sweep.findings import Finding, execution, over_grids, ranges, rows_of, spoken, trends
from modelmeter.sweep.requirements import BUDGETS
from modelmeter.sweep.table import TOTAL, Table

SETTINGS = (*pages.SETTINGS, BUDGETS["ttft"])


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """The Table of the sweep (see `run_parts`) and what TTFT budgets require."""
    *before, last = (stage.name for stage in model.stages if stage.steps is None)  # the last by component
    parts = lambda work: {name: model.cost(name, work) for name in before} | model.breakdown(last, work)
    subject = lambda work: "vision and prefill" if work.image.views else "prefill"
    return pages.run_parts("e2e_vision_prefill", model, settings, "ttft", subject, parts)


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
    yield from execution(table, component=TOTAL)
    batch = table.settings.get("batch", 1)
    both = rows[0]["image_tokens"] + table.settings.get("prompt_tokens", 0)  # kept, where cross attention reads one
    kept = max(rows[0]["context_tokens"], both)
    each = rows[0]["kv_cache_bytes"] / kept / batch
    yield from ranges("kv", [row["kv_cache_bytes"] for row in rows], 1e6, each=f"{each:,.0f}", batch=batch)


FINDINGS = {"e2e_vision_prefill": _findings}
