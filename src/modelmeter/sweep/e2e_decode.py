"""K decode steps after the prefill over every crop grid, by component; divide by decode_steps for one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.models.model import Model
from modelmeter.sweep.grids import GridSweep, run_grids, with_total
from modelmeter.sweep.table import Table
from modelmeter.workload import Workload


def _parts(model: Model, work: Workload) -> Mapping[str, StageCost]:
    return with_total(model.breakdown("decode", work))


def _columns(work: Workload) -> Mapping[str, Any]:
    return {"context_tokens": work.context_tokens, "decode_steps": work.decode_steps, "logits": work.logits}


SWEEP = GridSweep("e2e_decode", lambda work: f"{work.decode_steps} decode steps", _parts, _columns)


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> Table:
    """The Table of the sweep; see `run_grids`."""
    return run_grids(SWEEP, model, settings, reference)
