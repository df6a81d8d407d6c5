"""What all sweeps over crop grids share: the grids, the page's own grid, one evaluation, the rows.

A sweep says which parts it shows (`GridSweep`); `run_grids` makes its Table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmeter.cost import StageCost
from modelmeter.errors import InputError, choose, one_or_more
from modelmeter.memory import COMPILED
from modelmeter.models.model import Model
from modelmeter.sizes import as_size
from modelmeter.sweep.table import TOTAL, Chart, Table, part_columns, point_columns
from modelmeter.workload import ATTENTION, Workload

COUNTING = ("logits", "causal", "rotary", "precision")
"""Settings of every sweep that are options of a Workload as they are."""
WORK = ("batch", "prompt_tokens", "decode_steps", "mode", "execution", *COUNTING)


@dataclass(frozen=True)
class GridSweep:
    """`parts` gives the costs of a workload by component ("" alone: no components), `columns` further
    columns of its rows from part and costs, `charts` the figures where this execution is spoken of;
    `comparable` says that reference modules can be counted beside it."""

    name: str
    subject: Callable[[Workload], str]
    parts: Callable[[Model, Workload], Mapping[str, StageCost]]
    charts: Callable[[str], Sequence[Chart]]
    columns: Callable[[Model, Workload, str, Mapping[str, Any]], Mapping[str, Any]] = lambda *place: {}
    comparable: bool = False


STAGECOST = ("flops_tflops", "io_tb", "arithmetic_intensity", "activations_gb", "kv_gb")
"""The curves of every published sweep: the fields of a StageCost in the units of its readers."""


def component_charts(name: str, kind: str) -> list[Chart]:
    """The figures of a sweep with components: the whole by execution, then a curve a component."""
    whole, one = {"component": TOTAL}, {"execution": kind}
    charts = [Chart(name, ("flops_tflops",), where=whole)]
    charts += [Chart(f"{name}_stagecost_{m}", (m,), by="component", where=one) for m in STAGECOST]
    engines = ("tensor_tflops", "cuda_tflops")
    return [*charts, Chart(f"{name}_flops_split_log", engines, by="", where=whole | one, log="y")]


def with_total(parts: Mapping[str, StageCost]) -> dict[str, StageCost]:
    """Components and their whole: parts add up to it, its peak is their largest."""
    return {**parts, TOTAL: sum(parts.values(), start=StageCost())}


def run_grids(sweep: GridSweep, model: Model, settings: Mapping[str, Any], reference: Any = None) -> Table:
    """Sweep all grids up to `settings["largest"]` crops; the page's own grid is marked.

    `settings` are the keys of the sweep's YAML, `reference` a function of a model and a workload that
    gives further columns. Raises InputError for settings that make no sense.
    """
    if not sweep.comparable:
        refuse_reference(sweep.name, reference)
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
    for kind in kinds(settings):
        options = page | kind
        works = [model.workload(grid=f"{h}x{w}", **options) for h, w in grids]
        columns = _evaluate(sweep, model, grids, works, options)
        marks = [own is not None and own.image.grid == grid for grid in grids]
        if own is not None and own.image.grid is None:
            works.append(model.workload(**place, **options))
            columns.append({part: point_columns(c) for part, c in sweep.parts(model, works[-1]).items()})
            marks.append(True)
        for work, parts, marked in zip(works, columns, marks, strict=True):
            rows += [_row(sweep, model, work, part, costs, marked) for part, costs in parts.items()]
    if reference is not None:
        _add_reference(model, rows, page, own, reference)
    count = f"{len(grids)} crop grids" if len(grids) > 1 else "one crop grid"
    count += " and this page" if own is not None and own.image.grid is None else ""
    title = f"{model.name}: {sweep.subject(works[0])} over {count}, mode {works[0].image.mode}, batch {works[0].batch}"
    digest = [row for row in rows if row.get("component", TOTAL) == TOTAL]
    spoken = main_kind(settings)
    return Table(
        sweep.name, title, counted(works[0]), rows, dict(settings), sweep.charts(spoken), digest=digest, kind=spoken
    )


def counted(work: Workload) -> str:
    """By which options a table is counted, but for the execution, which is a column."""
    return work.basis.partition(", ")[2]


def _evaluate(
    sweep: GridSweep, model: Model, grids: list[tuple[int, int]], works: list[Workload], page: dict[str, Any]
) -> list[dict[str, dict[str, Any]]]:
    """Costs of all grids at once: {component: columns} a grid."""
    h, w = (np.array(side, dtype=np.float64) for side in zip(*grids, strict=True))
    together = sweep.parts(model, model.workload(grid=(h, w), **page))
    return part_columns(together, len(grids), lambda i: sweep.parts(model, works[i]))


def kinds(settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Attention and execution of the rows: each attention kind, and each of `executions` with flash.

    Raises InputError for what is none, twice or contradictory.
    """
    found = []
    for attention in several("attention", settings["attention"], ATTENTION):
        found.append({"attention": attention, "execution": str(settings["execution"] or attention)})
    if settings.get("executions"):
        if settings["execution"] is not None:
            raise InputError("give executions or execution, not both; executions=null leaves the further ones out")
        further = several("executions", settings["executions"], COMPILED)
        found += [{"attention": "flash", "execution": execution} for execution in further]
    return found


def main_kind(settings: Mapping[str, Any]) -> str:
    """The execution that figures by component and sentences speak of: that of the last attention kind."""
    attention = several("attention", settings["attention"], ATTENTION)[-1]
    return str(settings["execution"] or attention)


def several(key: str, value: Any, valid: Iterable[str]) -> list[str]:
    """One or more choices, each once; raises InputError for anything else."""
    valid = list(valid)
    return one_or_more(key, value, f"of {', '.join(valid)}", str, lambda choice: choose(key, choice, valid))


def whole_numbers(key: str, value: Any) -> list[int]:
    """One or more whole numbers of at least 1, each once; raises InputError for anything else."""
    return one_or_more(key, value, "whole numbers", (int, float, str), lambda number: as_size(key, number))


def refuse_reference(name: str, reference: Any) -> None:
    """Raise InputError if a sweep that no reference modules can count beside is asked for them."""
    if reference is not None:
        raise InputError(f"reference=true is not available for {name}; it is for vision_crops")


def _row(
    sweep: GridSweep, model: Model, work: Workload, part: str, costs: Mapping[str, Any], marked: bool
) -> dict[str, Any]:
    image = work.image
    h, w = image.grid or (0, 0)
    head = {"crops": h * w, "grid_h": h, "grid_w": w, "image_tokens": image.tokens}
    further = dict(sweep.columns(model, work, part, costs))
    before = {key: further.pop(key) for key in ("context_tokens", "decode_steps", "logits") if key in further}
    component = {"component": part} if part else {}
    marks = {"extrapolated": not image.produced, "marked": marked}
    return head | before | component | {
        "attention": work.attention, "execution": work.execution, **costs, **further, **marks,
    }  # fmt: skip


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
