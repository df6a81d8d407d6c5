"""The vision stage over every crop grid: one vectorised evaluation an attention kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelmeter.errors import InputError, choose
from modelmeter.models.model import Model
from modelmeter.sizes import as_size
from modelmeter.sweep.table import Table, cost_columns, point_columns
from modelmeter.workload import ATTENTION, Workload

WORK = ("batch", "prompt_tokens", "decode_steps", "logits", "causal", "rotary", "execution", "mode", "precision")


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> Table:
    """Sweep all grids up to `settings["largest"]` crops; the image's own grid is marked.

    `settings` are the keys of configs/sweep/vision_crops.yaml, `reference` a function of a model and a
    workload that gives further columns. Raises InputError for settings that make no sense.
    """
    largest = settings["largest"]
    if not isinstance(largest, int):
        raise InputError(f"largest must be a whole number of at least 2, not {largest!r}")
    grids = model.grids(as_size("largest", largest, least=2))
    page = {key: settings[key] for key in WORK}
    place = {key: settings[key] for key in ("image", "image_size", "grid") if settings[key] is not None}
    own = model.workload(**place, **page) if place else None
    if own is not None and own.image.grid is not None and own.image.grid not in grids:
        grids = [*grids, own.image.grid]
    rows: list[dict[str, Any]] = []
    for kind in _kinds(settings["attention"]):
        options = page | {"attention": kind}
        for (h, w), costs in zip(grids, _evaluate(model, grids, options), strict=True):
            work = model.workload(grid=f"{h}x{w}", **options)
            rows.append(_row(work, costs, own is not None and own.image.grid == (h, w)))
        if own is not None and own.image.grid is None:
            work = model.workload(**place, **options)
            rows.append(_row(work, point_columns(model.cost("vision", work)), True))
    if reference is not None:
        _add_reference(model, rows, page, own, reference)
    basis = work.basis.partition(", ")[2]
    count = f"{len(grids)} crop grids" if len(grids) > 1 else "one crop grid"
    title = f"{model.name}: vision stage over {count}, mode {work.image.mode}, batch {work.batch}"
    return Table("vision_crops", title, basis, rows, dict(settings))


def _kinds(attention: Any) -> list[str]:
    """The attention kinds of the rows."""
    kinds = [attention] if isinstance(attention, str) else attention
    if not isinstance(kinds, list) or not kinds or len(set(map(str, kinds))) < len(kinds):
        raise InputError(f"attention must be one or more of {', '.join(ATTENTION)}, each once, not {attention!r}")
    return [choose("attention", str(kind), ATTENTION) for kind in kinds]


def _row(work: Workload, costs: Mapping[str, Any], marked: bool) -> dict[str, Any]:
    image = work.image
    h, w = image.grid or (0, 0)
    head = {"crops": h * w, "grid_h": h, "grid_w": w, "image_tokens": image.tokens, "attention": work.attention}
    return head | dict(costs) | {"extrapolated": not image.produced, "marked": marked}


def _evaluate(model: Model, grids: list[tuple[int, int]], page: dict[str, Any]) -> list[dict[str, Any]]:
    """Costs of all grids at once, or one by one where float64 would round."""
    h, w = (np.array(side, dtype=np.float64) for side in zip(*grids, strict=True))
    columns = cost_columns(model.cost("vision", model.workload(grid=(h, w), **page)), len(grids))
    if columns is not None:
        return columns
    return [point_columns(model.cost("vision", model.workload(grid=f"{a}x{b}", **page))) for a, b in grids]


def _add_reference(
    model: Model, rows: list[dict[str, Any]], page: dict[str, Any], own: Workload | None, reference: Any
) -> None:
    """What the reference modules count; they see the number of crops, not their arrangement."""
    counted: dict[int, dict[str, int]] = {}
    for row in rows:
        crops = row["crops"]
        if crops not in counted:
            grid = f"{row['grid_h']}x{row['grid_w']}"
            counted[crops] = reference(model, model.workload(grid=grid, **page) if crops else own)
        row.update(counted[crops])
