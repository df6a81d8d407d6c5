"""The vision stage over every crop grid: one vectorised evaluation an attention kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelmeter.models.model import Model
from modelmeter.precision import Precision
from modelmeter.sizes import as_size
from modelmeter.sweep.table import Table, cost_columns

WORK = ("batch", "prompt_tokens", "decode_steps", "logits", "causal", "rotary", "execution", "mode")


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> Table:
    """Sweep all grids up to `settings["largest"]` crops; the image's own grid is marked.

    `settings` are the keys of configs/sweep/vision_crops.yaml, `reference` a function of a workload
    that gives further columns. Raises InputError for settings that make no sense.
    """
    grids = model.grids(as_size("largest", settings["largest"], least=2))
    page = {key: settings[key] for key in WORK} | {"precision": Precision(**settings["precision"])}
    own = None
    if settings["image"] is not None or settings["image_size"] is not None or settings["grid"] is not None:
        own = model.workload(**{k: settings[k] for k in ("image", "image_size", "grid")}, **page)
        if own.image.grid is not None and own.image.grid not in grids:
            grids = [*grids, own.image.grid]
    kinds = settings["attention"]
    rows: list[dict[str, Any]] = []
    basis = ""
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        columns, basis = _evaluate(model, grids, page | {"attention": kind})
        for (h, w), costs in zip(grids, columns, strict=True):
            image = model.workload(grid=f"{h}x{w}", **page).image
            rows.append(
                {"crops": h * w, "grid_h": h, "grid_w": w, "image_tokens": image.tokens, "attention": kind}
                | costs
                | {"extrapolated": not image.produced, "marked": own is not None and own.image.grid == (h, w)}
            )
        if own is not None and own.image.grid is None:
            work = model.workload(**{k: settings[k] for k in ("image", "image_size")}, **page, attention=kind)
            point = cost_columns(model.cost("vision", work), 1)
            head = {"crops": 0, "grid_h": 0, "grid_w": 0, "image_tokens": own.image.tokens, "attention": kind}
            rows.append(head | (point or [{}])[0] | {"extrapolated": False, "marked": True})
    if reference is not None:
        _add_reference(model, rows, page, reference)
    title = f"{model.name}: vision stage over {len(grids)} crop grids"
    return Table("vision_crops", title, basis.replace(f"{kind}, ", "", 1), rows, dict(settings))


def _evaluate(model: Model, grids: list[tuple[int, int]], page: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Costs of all grids at once, or one by one where float64 would round."""
    h, w = (np.array(side, dtype=np.float64) for side in zip(*grids, strict=True))
    work = model.workload(grid=(h, w), **page)
    columns = cost_columns(model.cost("vision", work), len(grids))
    if columns is None:
        works = [model.workload(grid=f"{a}x{b}", **page) for a, b in grids]
        columns = [{k: v for k, v in model.cost("vision", one).as_dict().items() if k != "parameters"} for one in works]
    return columns, work.basis


def _add_reference(model: Model, rows: list[dict[str, Any]], page: dict[str, Any], reference: Any) -> None:
    """What the reference modules count; they see the number of crops, not their arrangement."""
    counted: dict[int, dict[str, int]] = {}
    for row in rows:
        crops = row["crops"]
        if crops and crops not in counted:
            counted[crops] = reference(model, model.workload(grid=f"{row['grid_h']}x{row['grid_w']}", **page))
        row.update(counted.get(crops, {}))
