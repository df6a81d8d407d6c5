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
    """A latency target: its `name` and what it waits for, one decode step of many or all that a row counts."""

    name: str
    waits_for: str
    a_step: bool = False

    @property
    def setting(self) -> Setting:
        """The setting of its budgets in seconds."""
        help = f"budgets for {self.waits_for}, seconds, each above 0"
        return Setting(self.name.lower(), Kind(_seconds, lambda: "budgets in seconds"), help, several=True)

    def pages(self, table: Table) -> Iterator[tuple[float, Row]]:
        """Each budget with the totals of each point of a sweep."""
        budgets = self.setting.check(table.settings[self.setting.name])
        yield from ((budget, row) for budget in budgets for row in table.select(component=TOTAL))

    def place(self, row: Row, budget: float) -> dict[str, Any]:
        """The columns of a target at a point: all but its costs and marks."""
        others = (*COST_COLUMNS, "component", *MARKS)
        place = {k: v for k, v in row.items() if k not in others and not k.endswith("_per_token")}
        return {"target": self.name, "budget_s": budget} | place

    def seconds(self, row: Row, budget: float) -> float:
        """The time that the costs of a row are given."""
        return budget * (row["decode_steps"] if self.a_step else 1)


TTFT = Target("TTFT", "vision and prefill")
TPOT = Target("TPOT", "one decode step", a_step=True)
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
MARKS = ("beyond_positions", "extrapolated", "marked")


def requirements(target: Target, table: Table) -> Table:
    """The rates that the budgets of a sweep's settings require at each of its points (its totals are used)."""
    key = target.setting.name
    rows = [_required(target, row, budget) for budget, row in target.pages(table)]
    by, axis = ("budget_s", "execution"), table.points.axis if table.points else ""
    charts = [
        Chart(f"responsive_tflops_by_{key}", ("required_tflops_per_s",), by=by, axis=axis),
        Chart(f"responsive_gb_by_{key}", ("required_gb_per_s",), by=by, axis=axis),
    ]
    title = table.title_of(f"what a {target.name} budget requires ({target.waits_for})")
    digest = [row for row in rows if row["execution"] == table.kind]
    name, kind = f"responsive_by_{key}", table.kind
    return Table(name, title, table.basis, rows, table.settings, charts, digest, kind, table.points)


def _required(target: Target, row: Row, budget: float) -> dict[str, Any]:
    seconds = target.seconds(row, budget)
    tensor, cuda, moved = (row[k] for k in ("tensor_core_flops", "cuda_core_flops", "io_bytes"))
    rates = {"tensor_flops": tensor, "cuda_flops": cuda, "flops": tensor + cuda, "bytes": moved}
    required = {f"required_{what}_per_s": amount / seconds for what, amount in rates.items()}
    return target.place(row, budget) | required | {mark: row[mark] for mark in MARKS}


def _findings(table: Table) -> Iterator[Finding]:
    rows = rows_of(table)
    for budget in dict.fromkeys(row["budget_s"] for row in rows):
        some = [row for row in rows if row["budget_s"] == budget]
        rate, moved = ([row[f"required_{what}_per_s"] for row in some] for what in ("flops", "bytes"))
        yield "required", {
            "target": some[0]["target"], "budget": f"{budget:g}", "kind": table.kind,
            "range": span(rate, 1e12), "range_gb": span(moved, 1e9),
        }  # fmt: skip


FINDINGS = {f"responsive_by_{target.setting.name}": _findings for target in (TTFT, TPOT)}
