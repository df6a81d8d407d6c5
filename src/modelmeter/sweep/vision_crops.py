"""The vision stage over every crop grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.models.model import Model
from modelmeter.sweep.grids import STAGECOST, GridSweep, run_grids
from modelmeter.sweep.table import Chart, Table


def _charts(kind: str) -> list[Chart]:
    charts = [Chart(f"stagecost_{m}", (m,)) for m in STAGECOST if m != "kv_gb"]  # vision has no KV cache
    return [*charts, Chart("vision_flops_split_log", ("tensor_tflops", "cuda_tflops"), log="y")]


SWEEP = GridSweep(
    "vision_crops",
    lambda work: "vision stage",
    lambda model, work: {"": model.cost("vision", work)},
    _charts,
    comparable=True,
)


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """The Table of the sweep; see `run_grids`."""
    return [run_grids(SWEEP, model, settings, reference)]
