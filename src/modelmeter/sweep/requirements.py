"""What a latency budget requires: the FLOPs and the bytes a second that a stage must be served with.

TTFT is vision and prefill in one budget, TPOT one decode step (the mean of the K steps). Both rates must be met at
once. The bytes are those of the execution: unfused code for eager and flash, the least that any fusion could reach
for compulsory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from modelmeter.errors import InputError
from modelmeter.settings import Kind, Setting
from modelmeter.sweep.columns import Row, flops_of
from modelmeter.sweep.findings import Finding, grouped, rows_of, span
from modelmeter.sweep.table import COST_COLUMNS, TOTAL, Table, charts_of

LEAST = 1e-9
"""The least budget in seconds that makes sense; the largest is its inverse."""


def _seconds(key: str, budget: Any) -> float:
    wanted = f"each above 0 (from {LEAST:g} to {1 / LEAST:g})"
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not LEAST <= budget <= 1 / LEAST:
        raise InputError(f"{key} must be one or more budgets in seconds, {wanted}, not {budget!r}")
    return float(budget)


_BUDGET = Kind(_seconds, lambda: "budgets in seconds")
WAITS = {"ttft": "vision and prefill", "tpot": "one decode step"}
"""The latency targets, each with what it waits for."""
BUDGETS = {t: Setting(t, _BUDGET, f"budgets for {what}, seconds, each above 0", True) for t, what in WAITS.items()}
"""The settings of their budgets, in seconds."""
MARKS = ("beyond_positions", "extrapolated", "marked")


def budgeted(target: str, table: Table) -> Iterator[tuple[Row, float, dict[str, Any]]]:
    """Each whole of a sweep with each budget: its row, the seconds that its cost may take, the columns of its place."""
    left = (*COST_COLUMNS, "component", *MARKS)
    timed = tuple(f"{device.name}_" for device in table.settings.get("device", ()))
    for budget in table.settings[target]:
        for row in table.select(component=TOTAL):
            others = (k for k in row if k not in left and not k.endswith("_per_token") and not k.startswith(timed))
            place = {k: row[k] for k in others}
            seconds = budget * (row["decode_steps"] if target == "tpot" else 1)
            yield row, seconds, {"target": target.upper(), "budget_s": budget} | place


def requirements(target: str, table: Table) -> Table:
    """The rates that the budgets of a sweep's settings require at each of its points (its totals are used)."""
    rows = []
    for row, seconds, place in budgeted(target, table):
        work = {"tensor_flops": row["tensor_core_flops"], "cuda_flops": row["cuda_core_flops"], "flops": flops_of(row)}
        rates = {f"required_{k}_per_s": amount / seconds for k, amount in (work | {"bytes": row["io_bytes"]}).items()}
        rows.append(place | rates | {mark: row[mark] for mark in MARKS})
    name, subject = f"responsive_by_{target}", f"what a {target.upper()} budget requires ({WAITS[target]})"
    charts, digest = charts_of(name, {}, table.points), [row for row in rows if row["execution"] == table.kind]
    return replace(table, name=name, title=table.title_of(subject), rows=rows, charts=charts, digest=digest)


def _findings(table: Table) -> Iterator[Finding]:
    for (target, budget), rows in grouped(rows_of(table), "target", "budget_s"):
        flops, moved = ([row[f"required_{what}_per_s"] for row in rows] for what in ("flops", "bytes"))
        rates = {"range": span(flops, 1e12), "range_gb": span(moved, 1e9)}
        yield "required", {"target": target, "budget": f"{budget:g}", "kind": table.kind} | rates


FINDINGS = {f"responsive_by_{target}": _findings for target in WAITS}
