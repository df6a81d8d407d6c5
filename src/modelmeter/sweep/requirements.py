"""What a latency budget requires: the FLOPs and the bytes a second that a stage must be served with.

TTFT is vision and prefill in one budget, TPOT one decode step (the mean of the K steps). Both rates must
be met at once. The bytes are those of the execution: unfused code for eager and flash, the least that any
fusion could reach for compulsory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modelmeter.errors import InputError
from modelmeter.settings import Kind, Setting
from modelmeter.sweep.columns import Column, Measure, Row
from modelmeter.sweep.findings import Finding, rows_of, span
from modelmeter.sweep.table import COST_COLUMNS, TOTAL, Chart, Table

LEAST = 1e-9
"""The least budget in seconds that makes sense; the largest is its inverse."""


def _seconds(key: str, budget: Any) -> float:
    wanted = f"each above 0 (from {LEAST:g} to {1 / LEAST:g})"
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not LEAST <= budget <= 1 / LEAST:
        raise InputError(f"{key} must be one or more budgets in seconds, {wanted}, not {budget!r}")
    return float(budget)


@dataclass(frozen=True)
class Target:
    """A latency target: its `name` and what it waits for."""

    name: str
    waits_for: str

    @property
    def key(self) -> str:
        """The name of the setting of its budgets."""
        return self.name.lower()

    @property
    def setting(self) -> Setting:
        """Its budgets in seconds."""
        kind = Kind(_seconds, lambda: "budgets in seconds")
        return Setting(self.key, kind, f"budgets for {self.waits_for}, seconds, each above 0", several=True)


TTFT, TPOT = Target("TTFT", "vision and prefill"), Target("TPOT", "one decode step")
COLUMNS = (
    Column("target"),
    Column("budget_s", "budget s", curve="{} s"),
    Column("required_flops_per_s", "required TFLOP/s", 1e12, 4),
    Column("required_bytes_per_s", "required GB/s", 1e9, 4),
)
MEASURES = (
    Measure("required_tflops_per_s", "required rate (TFLOP/s)", ("required_flops_per_s",), 1e12),
    Measure("required_gb_per_s", "required bandwidth (GB/s)", ("required_bytes_per_s",), 1e9),
)
MARKS = ("extrapolated", "marked")


def budgeted(target: Target, table: Table) -> Iterator[tuple[Row, float, dict[str, Any]]]:
    """Each whole of a sweep with each budget: its row, the seconds that its cost may take, the columns of its place."""
    left = (*COST_COLUMNS, "component", "beyond_positions", *MARKS)
    for budget in target.setting.check(table.settings[target.key]):
        for row in table.select(component=TOTAL):
            place = {k: v for k, v in row.items() if k not in left and not k.endswith("_per_token")}
            seconds = budget * (row["decode_steps"] if target is TPOT else 1)
            yield row, seconds, {"target": target.name, "budget_s": budget} | place


def requirements(target: Target, table: Table) -> Table:
    """The rates that the budgets of a sweep's settings require at each of its points (its totals are used)."""
    rows = []
    for row, seconds, place in budgeted(target, table):
        tensor, cuda, moved = (row[k] for k in ("tensor_core_flops", "cuda_core_flops", "io_bytes"))
        work = {"tensor_flops": tensor, "cuda_flops": cuda, "flops": tensor + cuda, "bytes": moved}
        rates = {f"required_{what}_per_s": value / seconds for what, value in work.items()}
        rows.append(place | rates | {k: row[k] for k in ("beyond_positions", *MARKS)})
    axis = table.points.axis if table.points else ""
    charts = [
        Chart(
            f"responsive_{unit}_by_{target.key}", (f"required_{unit}_per_s",), by=("budget_s", "execution"), axis=axis
        )
        for unit in ("tflops", "gb")
    ]
    title = table.title_of(f"what a {target.name} budget requires ({target.waits_for})")
    digest = [row for row in rows if row["execution"] == table.kind]
    name = f"responsive_by_{target.key}"
    return Table(name, title, table.basis, rows, table.settings, charts, digest, table.kind, table.points)


def _findings(table: Table) -> Iterator[Finding]:
    rows = rows_of(table)
    for budget in dict.fromkeys(row["budget_s"] for row in rows):
        some = [row for row in rows if row["budget_s"] == budget]
        rate, moved = ([row[f"required_{what}_per_s"] for row in some] for what in ("flops", "bytes"))
        yield "required", {
            "target": some[0]["target"], "budget": f"{budget:g}", "kind": table.kind,
            "range": span(rate, 1e12), "range_gb": span(moved, 1e9),
        }  # fmt: skip


FINDINGS = {f"responsive_by_{target.key}": _findings for target in (TTFT, TPOT)}
