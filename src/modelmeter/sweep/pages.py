"""What all sweeps over pages share: the points of the planner, the user's own page, the rows of components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from modelmeter.errors import InputError
from modelmeter.models.model import BaseModel
from modelmeter.models.planner import Planner, Points
from modelmeter.programs.cost import StageCost
from modelmeter.progress import watched
from modelmeter.settings import COUNTING, PAGE, SIZES, SWEPT, Setting, joined, options_of, whole
from modelmeter.sweep.columns import Row
from modelmeter.sweep.requirements import requirements
from modelmeter.sweep.table import TOTAL, Table, cost_columns, table_of
from modelmeter.sweep.timed import Clock, columns, of_parts
from modelmeter.workload import ImagePlan, Workload

SETTINGS = joined(Setting("largest", whole(2), "crops of the largest grid"), *PAGE, *COUNTING, *SWEPT)
"""The settings of every sweep over pages."""


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
    rows_of: Callable[[Workload], Iterable[Row]], reference: Callable[[BaseModel, Workload], Row] | None = None,
) -> Table:  # fmt: skip
    """Sweep all points up to `settings["largest"]` crops; the user's own page is marked.

    `settings` are values of SETTINGS, `rows_of` makes the rows of a page but for its place, `reference` gives further
    columns. Raises InputError for settings that make no sense.
    """
    images, points, mine = _pages(model, settings)
    rows: list[Row] = []
    for kind in settings["runtime"]:
        for image in watched(images, f"pages, {kind}", len(images)):
            work = Workload(image, **options_of(settings, kind, *SIZES))
            place = page_columns(model, image)
            marks = {"extrapolated": not image.produced, "marked": mine is not None and place == mine}
            further = reference(model, work) if reference else {}
            rows += [{**place, "image_tokens": image.tokens, **row, **marks, **further} for row in rows_of(work)]
    many = f"{len(points.places) if len(points.places) > 1 else 'one'} {points.noun}"
    count = f"{many} and this page" if len(images) > len(points.places) else many
    title = f"{model.name}: {subject(work)} over {count}, mode {images[0].mode}, batch {work.batch}"
    digest = [row for row in rows if row.get("component", TOTAL) == TOTAL]
    return table_of(name, title, work, rows, settings, points=points, digest=digest)


def _pages(model: BaseModel, settings: Mapping[str, Any]) -> tuple[list[ImagePlan], Points, dict[str, Any] | None]:
    """The pages of a sweep, the points that they stand for, the columns of the user's own."""
    mode, own, planner = settings["mode"], _own_page(model, settings), model.planner
    points = planner.points(mode, settings["largest"], own) if planner else Points("prompt", "image tokens", (), [{}])
    images = [model.workload(mode=mode, **place).image for place in points.places]
    mine = page_columns(model, own) if own else None
    if own is not None and mine not in [page_columns(model, image) for image in images]:
        images.append(own)
    return images, points, mine


def largest_page(model: BaseModel, settings: Mapping[str, Any]) -> ImagePlan:
    """The user's own page, or else the one of the sweep that has the most tokens."""
    return _own_page(model, settings) or max(_pages(model, settings)[0], key=lambda image: int(image.tokens))


def _own_page(model: BaseModel, settings: Mapping[str, Any]) -> ImagePlan | None:
    given = {key: settings[key] for key in ("image", "image_size", "grid") if settings[key] is not None}
    return model.workload(mode=settings["mode"], **given).image if given else None


def run_parts(
    name: str, model: BaseModel, settings: Mapping[str, Any], target: str, subject: Callable[[Workload], str],
    parts_of: Callable[[Workload], dict[str, StageCost]], further: Callable[[Workload, Row], Row] = lambda *_: {},
) -> list[Table]:  # fmt: skip
    """A row a component, and one of their whole, whose peak is their largest; then what budgets of `target` require.

    `parts_of` gives the costs by component, `further` columns of a row. Otherwise as `run_pages`.
    """

    clock = Clock.of(settings)

    def rows_of(work: Workload) -> Iterator[Row]:
        parts = parts_of(work)
        timed = [(one, of_parts(one, target, list(parts))) for one in clock.times(model, work)]
        steps = {"decode_steps": work.decode_steps} if target == "tpot" else {}
        reach = work.context_tokens + sum(steps.values())
        for part, cost in (*parts.items(), (TOTAL, sum(parts.values(), start=StageCost()))):
            head = {"context_tokens": work.context_tokens, **steps, "logits": work.logits, "component": part}
            costs = cost_columns(work, cost)
            beyond = {"beyond_positions": part != "vision" and model.is_beyond(reach)}
            seconds = columns((one, asked.get("" if part == TOTAL else part, {})) for one, asked in timed)
            yield {**head, **costs, **further(work, costs), **seconds, **beyond}

    table = run_pages(name, model, settings, subject, rows_of)
    return [table, requirements(target, table)]
