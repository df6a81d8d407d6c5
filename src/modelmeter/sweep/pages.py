"""What all sweeps over pages share: the points of the planner, the user's own page, the rows.

A sweep says which parts it shows (`PageSweep`); `run_pages` makes its Table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelmeter.errors import InputError
from modelmeter.models.model import BaseModel
from modelmeter.models.planner import Planner, Points
from modelmeter.programs.cost import StageCost
from modelmeter.settings import COUNTING, PAGE, SIZES, SWEPT, Setting, joined, options_of, whole
from modelmeter.sweep.table import TOTAL, Chart, Table, cost_columns
from modelmeter.workload import ImagePlan, Workload

PLACES = ("image", "image_size", "grid")
SETTINGS = joined(Setting("largest", whole(2), "crops of the largest grid"), *PAGE, *COUNTING, *SWEPT)
"""The settings of every sweep over pages."""


@dataclass(frozen=True)
class PageSweep:
    """`parts` gives the costs of a workload by component ("" alone: no components), `charts` the figures where this
    execution is spoken of. `before` gives further columns of a workload, `after` those of a part from its costs."""

    name: str
    subject: Callable[[Workload], str]
    parts: Callable[[BaseModel, Workload], Mapping[str, StageCost]]
    charts: Callable[[str], Sequence[Chart]]
    before: Callable[[Workload], dict[str, Any]] = lambda work: {}
    after: Callable[[BaseModel, Workload, str, Mapping[str, Any]], dict[str, Any]] = lambda *place: {}

    def rows(self, model: BaseModel, work: Workload) -> Iterator[dict[str, Any]]:
        """A row a part of one page."""
        head = page_columns(model, work.image) | {"image_tokens": work.image.tokens} | self.before(work)
        for part, cost in self.parts(model, work).items():
            own, costs = {"component": part} if part else {}, cost_columns(work, cost)
            further = self.after(model, work, part, costs) | {"extrapolated": not work.image.produced}
            yield head | own | costs | further


STAGECOST = ("flops_tflops", "io_tb", "arithmetic_intensity", "activations_gb", "kv_gb")
"""The curves of every published sweep: the fields of a StageCost in the units of its readers."""


def component_charts(name: str, kind: str) -> list[Chart]:
    """The figures of a sweep with components: the whole by execution, then a curve a component."""
    whole, one = {"component": TOTAL}, {"execution": kind}
    charts = [Chart(name, ("flops_tflops",), where=whole)]
    charts += [Chart(f"{name}_stagecost_{m}", (m,), by=("component",), where=one) for m in STAGECOST]
    engines = ("tensor_tflops", "cuda_tflops")
    return [*charts, Chart(f"{name}_flops_split_log", engines, by=(), where=whole | one, log="y")]


def with_total(parts: Mapping[str, StageCost]) -> dict[str, StageCost]:
    """Components and their whole: parts add up to it, its peak is their largest."""
    return {**parts, TOTAL: sum(parts.values(), start=StageCost())}


def require_images(model: BaseModel) -> Planner:
    """The planner of a model. Raises InputError if it reads no images."""
    if model.planner is None:
        raise InputError(f"{model.name} takes no image, which this sweep is about; e2e_decode and sequence need none")
    return model.planner


def page_columns(model: BaseModel, image: ImagePlan) -> dict[str, Any]:
    """What the planner says of a page; nothing of text alone."""
    return model.planner.columns(image) if model.planner else {}


def run_pages(sweep: PageSweep, model: BaseModel, settings: Mapping[str, Any], reference: Any = None) -> Table:
    """Sweep all points up to `settings["largest"]` crops; the user's own page is marked.

    `settings` are values of SETTINGS, `reference` a function of a model and a workload that gives further
    columns. Raises InputError for settings that make no sense.
    """
    given = {key: settings[key] for key in PLACES if settings[key] is not None}
    images, points, mine = _pages(model, settings, given)
    measured: dict[Any, Any] = {}  # once for the same views: reference modules do not see how crops are arranged
    rows: list[dict[str, Any]] = []
    for kind in settings["runtime"]:
        for image in images:
            work = Workload(image, **options_of(settings, kind, *SIZES))
            views = tuple((view.count, view.width, view.height) for view in image.views)
            if reference is not None and views not in measured:
                measured[views] = reference(model, work)
            marks = {"marked": mine is not None and page_columns(model, image) == mine} | measured.get(views, {})
            rows += [row | marks for row in sweep.rows(model, work)]
    many = f"{len(points.places) if len(points.places) > 1 else 'one'} {points.noun}"
    count = f"{many} and this page" if len(images) > len(points.places) else many
    title = f"{model.name}: {sweep.subject(work)} over {count}, mode {images[0].mode}, batch {work.batch}"
    digest, main = [row for row in rows if row.get("component", TOTAL) == TOTAL], main_kind(settings)
    charts = [replace(chart, axis=points.axis) for chart in sweep.charts(main)]
    return Table(sweep.name, title, counted(work), rows, dict(settings), charts, digest, main, points)


def _pages(
    model: BaseModel, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[list[ImagePlan], Points, dict[str, Any] | None]:
    """The pages of a sweep, the points that they stand for, the columns of the user's own."""
    mode = settings["mode"]
    own = model.workload(mode=mode, **given).image if given else None
    if model.planner is None:
        points = Points("prompt", "image tokens", (), [{}])
    else:
        points = model.planner.points(mode, settings["largest"], own)
    images = [model.workload(mode=mode, **place).image for place in points.places]
    mine = page_columns(model, own) if own else None
    if own is not None and mine not in [page_columns(model, image) for image in images]:
        images.append(own)
    return images, points, mine


def counted(work: Workload) -> str:
    """By which options a table is counted, but for the execution, which is a column."""
    return work.basis.partition(", ")[2]


def main_kind(settings: Mapping[str, Any]) -> str:
    """The execution that figures by component and sentences speak of: flash if it is there, else the last."""
    kinds: list[str] = settings["runtime"]
    return "flash" if "flash" in kinds else kinds[-1]
