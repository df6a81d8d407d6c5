"""Vision and prefill over every crop grid, by component: what the first token waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.models.model import Model
from modelmeter.sweep.grids import GridSweep, run_grids, with_total
from modelmeter.sweep.table import Table
from modelmeter.workload import Workload


def _parts(model: Model, work: Workload) -> Mapping[str, StageCost]:
    return with_total({"vision": model.cost("vision", work), **model.breakdown("prefill", work)})


def _columns(work: Workload) -> Mapping[str, Any]:
    return {"context_tokens": work.context_tokens, "logits": work.logits}


SWEEP = GridSweep("e2e_vision_prefill", lambda work: "vision and prefill", _parts, _columns)


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> Table:
    """The Table of the sweep; see `run_grids`."""
    return run_grids(SWEEP, model, settings, reference)
