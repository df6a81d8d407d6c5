"""What all sweeps over pages share: the points of the planner, the user's own page, the charts by component."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelmeter.errors import InputError
from modelmeter.models.model import BaseModel
from modelmeter.models.planner import Planner, Points
from modelmeter.programs.cost import StageCost
from modelmeter.settings import COUNTING, PAGE, SIZES, SWEPT, Setting, joined, options_of, whole
from modelmeter.sweep.columns import Row
from modelmeter.sweep.table import TOTAL, Chart, Table, cost_columns, table_of
from modelmeter.workload import ImagePlan, Workload

SETTINGS = joined(Setting("largest", whole(2), "crops of the largest grid"), *PAGE, *COUNTING, *SWEPT)
"""The settings of every sweep over pages."""
STAGECOST = ("flops_tflops", "io_tb", "arithmetic_intensity", "activations_gb", "kv_gb")
"""The curves of every published sweep: the fields of a StageCost in the units of its readers."""


def component_charts(name: str) -> Callable[[str], list[Chart]]:
    """The figures of a sweep with components: the whole by execution, then of one execution a curve a component."""
    whole, engines = {"component": TOTAL}, ("tensor_tflops", "cuda_tflops")

    def charts(kind: str) -> list[Chart]:
        one = {"execution": kind}
        parts = [Chart(f"{name}_stagecost_{m}", (m,), by=("component",), where=one) for m in STAGECOST]
        split = Chart(f"{name}_flops_split_log", engines, by=(), where=whole | one, log="y")
        return [Chart(name, ("flops_tflops",), where=whole), *parts, split]

    return charts


def component_rows(work: Workload, parts: Mapping[str, StageCost]) -> list[dict[str, Any]]:
    """A row a component, and one of their whole: parts add up to it, its peak is their largest."""
    everything = {**parts, TOTAL: sum(parts.values(), start=StageCost())}
    return [{"component": part} | cost_columns(work, cost) for part, cost in everything.items()]


def require_images(model: BaseModel) -> Planner:
    """The planner of a model. Raises InputError if it reads no images."""
    if model.planner is None:
        raise InputError(f"{model.name} takes no image, which this sweep is about; e2e_decode and sequence need none")
    return model.planner


def page_columns(model: BaseModel, image: ImagePlan) -> dict[str, Any]:
    """What the planner says of a page; nothing of text alone."""
    return model.planner.columns(image) if model.planner else {}


def run_pages(
    name: str, model: BaseModel, settings: Mapping[str, Any], subject: Callable[[Workload], str],
    rows_of: Callable[[Workload], Iterable[Row]], charts: Callable[[str], Sequence[Chart]], reference: Any = None,
) -> Table:  # fmt: skip
    """Sweep all points up to `settings["largest"]` crops; the user's own page is marked.

    `settings` are values of SETTINGS, `rows_of` makes the rows of a page but for its place, `reference` is a function
    of a model and a workload that gives further columns. Raises InputError for settings that make no sense.
    """
    images, points, mine = _pages(model, settings)
    measured: dict[Any, Any] = {}  # once for the same views: reference modules do not see how crops are arranged
    rows: list[dict[str, Any]] = []
    for kind in settings["runtime"]:
        for image in images:
            work = Workload(image, **options_of(settings, kind, *SIZES))
            views = tuple((view.count, view.width, view.height) for view in image.views)
            if reference is not None and views not in measured:
                measured[views] = reference(model, work)
            place = page_columns(model, image)
            marks = {"extrapolated": not image.produced, "marked": mine is not None and place == mine}
            head, marks = place | {"image_tokens": image.tokens}, marks | measured.get(views, {})
            rows += [{**head, **row, **marks} for row in rows_of(work)]
    many = f"{len(points.places) if len(points.places) > 1 else 'one'} {points.noun}"
    count = f"{many} and this page" if len(images) > len(points.places) else many
    title = f"{model.name}: {subject(work)} over {count}, mode {images[0].mode}, batch {work.batch}"
    digest = [row for row in rows if row.get("component", TOTAL) == TOTAL]
    placed = lambda kind: [replace(chart, axis=points.axis) for chart in charts(kind)]
    return table_of(name, title, work, rows, settings, placed, digest=digest, points=points)


def _pages(model: BaseModel, settings: Mapping[str, Any]) -> tuple[list[ImagePlan], Points, dict[str, Any] | None]:
    """The pages of a sweep, the points that they stand for, the columns of the user's own."""
    mode = settings["mode"]
    given = {key: settings[key] for key in ("image", "image_size", "grid") if settings[key] is not None}
    own = model.workload(mode=mode, **given).image if given else None
    planner = model.planner
    points = planner.points(mode, settings["largest"], own) if planner else Points("prompt", "image tokens", (), [{}])
    images = [model.workload(mode=mode, **place).image for place in points.places]
    mine = page_columns(model, own) if own else None
    if own is not None and mine not in [page_columns(model, image) for image in images]:
        images.append(own)
    return images, points, mine
