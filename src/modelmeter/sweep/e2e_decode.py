"""K decode steps after the prefill over every point of the planner, by component: totals, and one output token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from modelmeter.models.model import BaseModel
from modelmeter.sweep import pages
from modelmeter.sweep.columns import Column, flops_of, significant
from modelmeter.sweep.findings import Finding, eager, intensity, ranges, rows_of, spoken, trends
from modelmeter.sweep.pages import PageSweep, component_charts, run_pages, with_total
from modelmeter.sweep.requirements import TPOT, requirements
from modelmeter.sweep.table import TOTAL, Table
from modelmeter.workload import Workload

SETTINGS = (*pages.SETTINGS, TPOT.setting)
COLUMNS = (
    Column("tensor_core_flops_per_token", "tensor-core GFLOP a token", 1e9, 5),
    Column("io_bytes_per_token", "I/O GB a token", 1e9, 5),
)
PER_TOKEN = {f"{name}_per_token": name for name in ("tensor_core_flops", "cuda_core_flops", "io_bytes")}


def per_token(tokens: int, costs: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over all output tokens: one a step and page."""
    means = {column: Fraction(costs[name]) / tokens for column, name in PER_TOKEN.items()}
    return {column: int(mean) if mean.denominator == 1 else float(mean) for column, mean in means.items()}


def _before(work: Workload) -> dict[str, Any]:
    return {"context_tokens": work.context_tokens, "decode_steps": work.decode_steps, "logits": work.logits}


def _after(model: BaseModel, work: Workload, part: str, costs: Mapping[str, Any]) -> dict[str, Any]:
    beyond = model.is_beyond(work.context_tokens + work.decode_steps)
    return per_token(work.decode_steps * work.batch, costs) | {"beyond_positions": beyond}


def _findings(table: Table) -> Iterator[Finding]:
    rows = rows_of(table, component=TOTAL)
    flops = [row["tensor_core_flops_per_token"] + row["cuda_core_flops_per_token"] for row in rows]
    yield from spoken(table)
    yield from ranges("decode_token", flops, 1e9, steps=rows[0]["decode_steps"])
    yield from trends("decode_trend", {row["context_tokens"]: flops_of(row) for row in rows})
    yield from ranges("decode_io", [row["io_bytes_per_token"] for row in rows], 1e9)
    weights = min(row["weight_io_bytes"] / row["io_bytes"] for row in rows)
    if weights:
        yield "decode_weights", {"weights": significant(100 * weights)}
    yield from intensity(rows)
    yield from eager(table, component=TOTAL)


FINDINGS = {"e2e_decode": _findings}
SWEEP = PageSweep(
    "e2e_decode",
    lambda work: f"{work.decode_steps} decode steps",
    lambda model, work: with_total(model.breakdown("decode", work)),
    lambda kind: component_charts("e2e_decode", kind),
    _before,
    _after,
)


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """The Table of the sweep (see `run_pages`) and what TPOT budgets require."""
    table = run_pages(SWEEP, model, settings)
    return [table, requirements(TPOT, table)]
