"""K decode steps after the prefill over every crop grid, by component: totals, and one output token."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.models.model import Model
from modelmeter.sweep.grids import GridSweep, component_charts, run_grids, with_total
from modelmeter.sweep.requirements import TPOT, requirements
from modelmeter.sweep.table import Table
from modelmeter.workload import Workload

PER_TOKEN = {f"{name}_per_token": name for name in ("tensor_core_flops", "cuda_core_flops", "io_bytes")}


def _parts(model: Model, work: Workload) -> Mapping[str, StageCost]:
    return with_total(model.breakdown("decode", work))


def per_token(tokens: int, costs: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over all output tokens: one a step and page."""
    return {column: _mean(costs[name], tokens) for column, name in PER_TOKEN.items()}


def _mean(value: Any, tokens: int) -> Any:
    mean = Fraction(value) / tokens
    return mean.numerator if mean.denominator == 1 else float(mean)


def _columns(model: Model, work: Workload, part: str, costs: Mapping[str, Any]) -> Mapping[str, Any]:
    last = work.context_tokens + work.decode_steps
    head = {"context_tokens": work.context_tokens, "decode_steps": work.decode_steps, "logits": work.logits}
    return head | per_token(work.decode_steps * work.batch, costs) | {"beyond_positions": model.is_beyond(last)}


SWEEP = GridSweep(
    "e2e_decode",
    lambda work: f"{work.decode_steps} decode steps",
    _parts,
    lambda kind: component_charts("e2e_decode", kind),
    _columns,
)


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """The Table of the sweep (see `run_grids`) and what TPOT budgets require."""
    table = run_grids(SWEEP, model, settings, reference)
    return [table, requirements(TPOT, table)]
