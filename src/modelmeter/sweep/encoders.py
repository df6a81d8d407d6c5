"""Vision encoders side by side: what each makes of the same image by its own rule, and what the whole page then costs.

The claims of a paper on its encoder are judged by the rows: few tokens, few FLOPs, low activation memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from modelmeter.folders import config_names
from modelmeter.models.model import BaseModel
from modelmeter.models.planner import Planner
from modelmeter.programs.cost import StageCost
from modelmeter.progress import watched
from modelmeter.settings import COUNTING, SIZES, SWEPT, Setting, joined, one_of, options_of, pair
from modelmeter.sweep.columns import Row, significant
from modelmeter.sweep.findings import Finding, grouped, rows_of, spoken
from modelmeter.sweep.pages import require_images
from modelmeter.sweep.table import Table, cost_columns, number, table_of
from modelmeter.sweep.timed import Asked, Clock, of_request, of_stage
from modelmeter.workload import ImagePlan, Workload

if TYPE_CHECKING:
    from modelmeter.times import Times

SETTINGS = joined(
    Setting("compared", one_of(partial(config_names, "model")), "models beside the one that is judged", several=True),
    Setting("image_sizes", pair("WIDTHxHEIGHT in pixels"), "of the pages", several=True),
    *SIZES, *COUNTING, *SWEPT,
)  # fmt: skip
MEASURES = {"vision_tokens": 1, "tensor_core_flops": 1e12, "peak_activation_bytes": 2**20}
"""What the claims are about, with the units in which they are told: tokens, TFLOP, MiB."""
TOLD = 6
"""Image sizes up to which each has its verdicts and rows to read; of more the first, the middle and the last."""


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """One row a model, image size and runtime. `settings["compared"]` are models."""
    require_images(model)
    models = {one.name: one for one in (model, *settings["compared"])}
    plans = {name: [_plan(one, size) for size in settings["image_sizes"]] for name, one in models.items()}
    rows, clock = list[Row](), Clock.of(settings)
    for kind in settings["runtime"]:
        options = options_of(settings, kind, *SIZES)
        for name, one in watched(models.items(), f"models, {kind}", len(models)):
            works = {plan: Workload(plan, **options) for plan in dict.fromkeys(plans[name])}
            costs = {plan: _costs(one, work) | {"judged": one is model} | clock.columns(one, work, _asked)
                     for plan, work in works.items()}  # fmt: skip
            images = zip(settings["image_sizes"], plans[name], strict=True)
            rows += ({"model": name} | _image(*size) | costs[plan] for size, plan in images)
    work = next(reversed(works.values()))
    many = f"{len(settings['image_sizes'])} image sizes" if len(settings["image_sizes"]) > 1 else "one image size"
    answer = f"{work.prompt_tokens} prompt tokens, {work.decode_steps} decode steps, batch {work.batch}"
    title = f"{model.name}: its vision encoder and {len(models) - 1} others at {many}, {answer}"
    named = dict(settings) | {"compared": list(models)[1:]}
    some = {f"{width}x{height}" for width, height in _told(settings["image_sizes"])}
    digest = [row for row in rows if row["pixels"] in some]
    return [table_of("encoders", title, work, rows, named, digest=digest)]


def _told(sizes: Sequence[Any]) -> Sequence[Any]:
    """The sizes that are spoken of one by one."""
    return sizes if len(sizes) <= TOLD else [sizes[0], sizes[len(sizes) // 2], sizes[-1]]


def _plan(model: BaseModel, size: tuple[int, int]) -> ImagePlan:
    """An image as the model reads it: in the mode whose one view it is, if there is one, else in the default mode."""
    planner = require_images(model)
    mode = next((mode for mode in planner.modes if _is_view(planner, mode, size)), None)
    return model.workload(image_size=size, mode=mode).image


def _is_view(planner: Planner, mode: str, size: tuple[int, int]) -> bool:
    if planner.has_crops(mode):
        return False
    views = planner.plan(mode, size, None).views
    return [(view.width, view.height) for view in views] == [size]


def _asked(found: Times) -> Asked:
    """Seconds of the encoder alone, and of the whole page."""
    return of_stage("vision")(found) | {"request": of_request(found)["request"]}


VERDICTS = ("holds", "partly", "fails")


def _image(width: int, height: int) -> dict[str, Any]:
    return {"pixels": f"{width}x{height}", "megapixels": width * height / 1e6}


def _costs(model: BaseModel, work: Workload) -> dict[str, Any]:
    """What a row says of an image that became these views; images that become the same ones share it."""
    costs = model.costs(work)
    vision, page = costs["vision"], sum(costs.values(), start=StageCost())
    views = {"mode": work.image.mode, "vision_tokens": work.image.valid_tokens, "vision_parameters": vision.parameters}
    planner = require_images(model)
    follows = planner.varies or any(map(planner.has_crops, planner.modes))
    whole = {f"{stage}_flops": cost.tensor_core_flops for stage, cost in costs.items()}
    whole |= {"page_flops": page.tensor_core_flops, "page_io_bytes": number(page.io_bytes)}
    whole |= {"kv_cache_bytes": costs["decode"].kv_cache_bytes, "follows_image": follows}
    beyond = {"beyond_positions": model.is_beyond(work.context_tokens + work.decode_steps)}
    return views | cost_columns(work, vision) | whole | beyond


def _findings(table: Table) -> Iterator[Finding]:
    """The claims, each over all sizes, then at single ones."""
    yield from spoken(table)
    told = [("", rows_of(table)), ("eager_", table.select(execution="eager") if table.kind != "eager" else [])]
    each = [finding for prefix, rows in told for finding in _judged(prefix, rows)]
    for key in dict.fromkeys(key for key, _ in each):
        verdicts = Counter(values["verdict"] for other, values in each if other == key)
        yield f"{key}_in_all", {name: verdicts[name] for name in VERDICTS} | {"sizes": verdicts.total()}
    some = _told(list(dict.fromkeys(values["pixels"] for _, values in each)))
    yield from (finding for finding in each if finding[1]["pixels"] in some)


def _judged(prefix: str, found: Sequence[Row]) -> Iterator[Finding]:
    """The verdicts of each size, one for each measure; of a named runtime on memory alone."""
    for (pixels,), rows in grouped(found, "pixels"):
        judged = next(row for row in rows if row["judged"])
        others = [row for row in rows if not row["judged"] and row["follows_image"]]
        for measure, unit in MEASURES.items() if others else ():
            if not prefix or measure == "peak_activation_bytes":
                yield _verdict(f"encoders_{prefix}{measure}", pixels, judged, others, measure, unit)


def _verdict(key: str, pixels: str, judged: Row, others: list[Row], measure: str, unit: float) -> Finding:
    """Whether the judged encoder has the least, with how many times as much the others have."""
    times = [row[measure] / judged[measure] for row in others]
    least = sum(ratio >= 1 for ratio in times)
    verdict = VERDICTS[0 if least == len(times) else 1 if least else 2]
    return key, {
        "model": judged["model"], "pixels": pixels, "value": significant(judged[measure] / unit), "verdict": verdict,
        "least": least, "others": len(others), "range": (significant(min(times)), significant(max(times))),
    }  # fmt: skip


FINDINGS = {"encoders": _findings}
