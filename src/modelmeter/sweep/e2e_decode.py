"""K decode steps after the prefill over every point of the planner, by component: totals, and one output token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from modelmeter.models.model import BaseModel
from modelmeter.sweep import pages
from modelmeter.sweep.columns import Row, flops_of, significant
from modelmeter.sweep.findings import Finding, eager, intensity, ranges, rows_of, spoken, trends
from modelmeter.sweep.requirements import BUDGETS
from modelmeter.sweep.table import TOTAL, Table, number
from modelmeter.workload import Workload

SETTINGS = (*pages.SETTINGS, BUDGETS["tpot"])
PER_TOKEN = {f"{name}_per_token": name for name in ("tensor_core_flops", "cuda_core_flops", "io_bytes")}


def per_token(work: Workload, costs: Row) -> dict[str, Any]:
    """The mean over all output tokens: one a step and page."""
    tokens = work.decode_steps * work.batch
    return {column: number(Fraction(costs[name]) / tokens) for column, name in PER_TOKEN.items()}


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """The Table of the sweep (see `run_parts`) and what TPOT budgets require."""
    subject, parts = lambda work: f"{work.decode_steps} decode steps", lambda work: model.breakdown("decode", work)
    return pages.run_parts("e2e_decode", model, settings, "tpot", subject, parts, per_token)


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
