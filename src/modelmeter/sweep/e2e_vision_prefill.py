"""Vision and prefill over every crop grid, by component: what the first token waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.models.model import Model
from modelmeter.sweep.grids import GridSweep, component_charts, run_grids, with_total
from modelmeter.sweep.requirements import TTFT, requirements
from modelmeter.sweep.table import Table
from modelmeter.workload import Workload


def _parts(model: Model, work: Workload) -> Mapping[str, StageCost]:
    return with_total({"vision": model.cost("vision", work), **model.breakdown("prefill", work)})


def _columns(model: Model, work: Workload, part: str, costs: Mapping[str, Any]) -> Mapping[str, Any]:
    context = work.context_tokens
    beyond = part != "vision" and model.is_beyond(context)
    return {"context_tokens": context, "logits": work.logits, "beyond_positions": beyond}


SWEEP = GridSweep(
    "e2e_vision_prefill",
    lambda work: "vision and prefill",
    _parts,
    lambda kind: component_charts("e2e_vision_prefill", kind),
    _columns,
)


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """The Table of the sweep (see `run_grids`) and what TTFT budgets require."""
    table = run_grids(SWEEP, model, settings, reference)
    return [table, requirements(TTFT, table)]
