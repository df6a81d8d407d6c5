"""What a latency budget requires: the FLOPs and the bytes a second that a stage must be served with.

TTFT is vision and prefill in one budget, TPOT one decode step (the mean of the K steps). Both rates must
be met at once. The bytes are those of the execution: unfused code for eager and flash, the least that any
fusion could reach for compulsory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelmeter.errors import InputError, one_or_more
from modelmeter.sweep.table import TOTAL, Chart, Table


@dataclass(frozen=True)
class Target:
    """A latency target: its `name`, the settings `key` of its budgets in seconds, and what it waits for."""

    name: str
    key: str
    waits_for: str


TTFT = Target("TTFT", "ttft", "vision and prefill")
TPOT = Target("TPOT", "tpot", "one decode step")

LEAST = 1e-9
"""The least budget in seconds that makes sense; the largest is its inverse."""

_PLACE = (
    "crops", "grid_h", "grid_w", "image_tokens", "context_tokens", "decode_steps", "logits", "attention",
    "execution",
)  # fmt: skip
_MARKS = ("beyond_positions", "extrapolated", "marked")


def budgets_of(key: str, value: Any) -> list[float]:
    """One or more budgets in seconds; raises InputError unless all are numbers above 0, each once."""
    wanted = f"each above 0 (from {LEAST:g} to {1 / LEAST:g})"

    def check(budget: Any) -> float:
        if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not LEAST <= budget <= 1 / LEAST:
            raise InputError(f"{key} must be one or more budgets in seconds, {wanted}, not {budget!r}")
        return float(budget)

    return one_or_more(key, value, "budgets in seconds", check=check)


def requirements(target: Target, table: Table) -> Table:
    """The rates that the budgets of a sweep's settings require at each of its points (its totals are used)."""
    rows = [
        _required(target, row, budget)
        for budget in budgets_of(target.key, table.settings[target.key])
        for row in table.select(component=TOTAL)
    ]
    name = f"responsive_by_{target.key}"
    by = ("budget_s", "execution")
    charts = [
        Chart(f"responsive_tflops_by_{target.key}", ("required_tflops_per_s",), by=by),
        Chart(f"responsive_gb_by_{target.key}", ("required_gb_per_s",), by=by),
    ]
    title = table.title_of(f"what a {target.name} budget requires ({target.waits_for})")
    digest = [row for row in rows if row["execution"] == table.kind]
    return Table(name, title, table.basis, rows, table.settings, charts, digest=digest, kind=table.kind)


def _required(target: Target, row: Mapping[str, Any], budget: float) -> dict[str, Any]:
    seconds = budget * (row["decode_steps"] if target is TPOT else 1)
    tensor, cuda, moved = (row[k] for k in ("tensor_core_flops", "cuda_core_flops", "io_bytes"))
    rates = {
        "required_tensor_flops_per_s": tensor / seconds,
        "required_cuda_flops_per_s": cuda / seconds,
        "required_flops_per_s": (tensor + cuda) / seconds,
        "required_bytes_per_s": moved / seconds,
    }
    head = {"target": target.name, "budget_s": budget} | {k: row[k] for k in _PLACE if k in row}
    return head | rates | {k: row[k] for k in _MARKS}
