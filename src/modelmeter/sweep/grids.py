"""What all sweeps over pages share: the points of the planner, the user's own page, one evaluation, the rows.

A sweep says which parts it shows (`GridSweep`); `run_grids` makes its Table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.models.model import Model
from modelmeter.models.planner import Points
from modelmeter.settings import COUNTING, PAGE, SIZES, SWEPT, Setting, joined, kind_columns, options_of, whole
from modelmeter.sweep.table import TOTAL, Chart, Table, part_columns, point_columns
from modelmeter.workload import Workload

PLACES = ("image", "image_size", "grid")
MODE = next(setting for setting in PAGE if setting.name == "mode")
SETTINGS = joined(Setting("largest", whole(2), "crops of the largest grid"), *PAGE, *COUNTING, *SWEPT)
"""The settings of every sweep over pages."""


@dataclass(frozen=True)
class GridSweep:
    """`parts` gives the costs of a workload by component ("" alone: no components), `columns` further
    columns of its rows from part and costs, `charts` the figures where this execution is spoken of."""

    name: str
    subject: Callable[[Workload], str]
    parts: Callable[[Model, Workload], Mapping[str, StageCost]]
    charts: Callable[[str], Sequence[Chart]]
    columns: Callable[[Model, Workload, str, Mapping[str, Any]], Mapping[str, Any]] = lambda *place: {}


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
    """Sweep all points up to `settings["largest"]` crops; the user's own page is marked.

    `settings` are values of SETTINGS, `reference` a function of a model and a workload that gives further
    columns. Raises InputError for settings that make no sense.
    """
    place = {key: settings[key] for key in PLACES if settings[key] is not None}
    main = main_kind(settings)
    own = model.workload(**place, **options_of(settings, main, *SIZES, MODE)) if place else None
    planner, mode = model.planner, settings["mode"]
    points = planner.points(mode, settings["largest"], own.image if own else None)
    mine = planner.columns(own.image) if own else None
    rows: list[dict[str, Any]] = []
    measured = _once(model, reference)
    for kind in settings["runtime"]:
        options = options_of(settings, kind, *SIZES, MODE)
        works = [model.workload(**point, **options) for point in points.places]
        columns = _evaluate(sweep, model, works, model.workload(**points.together, **options))
        apart = mine is not None and all(mine != planner.columns(work.image) for work in works)
        if apart:
            works.append(model.workload(**place, **options))
            columns.append({part: point_columns(c) for part, c in sweep.parts(model, works[-1]).items()})
        for work, parts in zip(works, columns, strict=True):
            marks = {"marked": planner.columns(work.image) == mine} | measured(work)
            rows += [_row(sweep, model, work, kind, part, costs) | marks for part, costs in parts.items()]
    page = " and this page" if apart else ""
    return _table(sweep, works[0], model, rows, dict(settings), points, main, page)


def _table(
    sweep: GridSweep, work: Workload, model: Model, rows: list[dict[str, Any]], settings: dict[str, Any],
    points: Points, main: str, page: str,
) -> Table:  # fmt: skip
    count = f"{len(points.places) if len(points.places) > 1 else 'one'} {points.noun}{page}"
    title = f"{model.name}: {sweep.subject(work)} over {count}, mode {work.image.mode}, batch {work.batch}"
    digest = [row for row in rows if row.get("component", TOTAL) == TOTAL]
    charts = [replace(chart, axis=points.axis) for chart in sweep.charts(main)]
    return Table(sweep.name, title, counted(work), rows, settings, charts, digest, main, points)


def _once(model: Model, reference: Any) -> Callable[[Workload], dict[str, Any]]:
    """What the reference modules count, once for the same views; they do not see how crops are arranged."""
    seen: dict[Any, dict[str, Any]] = {}

    def measured(work: Workload) -> dict[str, Any]:
        views = tuple((view.count, view.width, view.height) for view in work.image.views)
        if views not in seen:
            seen[views] = {} if reference is None else reference(model, work)
        return seen[views]

    return measured


def counted(work: Workload) -> str:
    """By which options a table is counted, but for the execution, which is a column."""
    return work.basis.partition(", ")[2]


def _evaluate(
    sweep: GridSweep, model: Model, works: list[Workload], together: Workload
) -> list[dict[str, dict[str, Any]]]:
    """Costs of all points at once: {component: columns} a point."""
    return part_columns(sweep.parts(model, together), len(works), lambda i: sweep.parts(model, works[i]))


def main_kind(settings: Mapping[str, Any]) -> str:
    """The execution that figures by component and sentences speak of: flash if it is there, else the last."""
    kinds: list[str] = settings["runtime"]
    return "flash" if "flash" in kinds else kinds[-1]


def place_of(model: Model, work: Workload) -> dict[str, Any]:
    """The columns of a page: what the planner says of it, and its tokens."""
    return {**model.planner.columns(work.image), "image_tokens": work.image.tokens}


def _row(
    sweep: GridSweep, model: Model, work: Workload, kind: str, part: str, costs: Mapping[str, Any]
) -> dict[str, Any]:
    further = dict(sweep.columns(model, work, part, costs))
    before = {key: further.pop(key) for key in ("context_tokens", "decode_steps", "logits") if key in further}
    head = place_of(model, work) | before | ({"component": part} if part else {}) | kind_columns(kind)
    return head | dict(costs) | further | {"extrapolated": not work.image.produced}
