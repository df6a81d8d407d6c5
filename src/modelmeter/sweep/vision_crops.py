"""The vision stage over every crop grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.models.model import Model
from modelmeter.sweep.grids import GridSweep, run_grids
from modelmeter.sweep.table import Table

SWEEP = GridSweep(
    "vision_crops", lambda work: "vision stage", lambda model, work: {"": model.cost("vision", work)}, comparable=True
)


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> Table:
    """The Table of the sweep; see `run_grids`."""
    return run_grids(SWEEP, model, settings, reference)
