"""Named OCR workloads, each through its stages: a receipt, a page, a newspaper, or a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from modelmeter.errors import InputError, choose
from modelmeter.models.model import BaseModel
from modelmeter.progress import watched
from modelmeter.settings import BATCH, COUNTING, IMAGE_SIZE, SWEPT, Setting, entry, joined, options_of
from modelmeter.sizes import as_size
from modelmeter.sweep.columns import Row, flops_of, significant
from modelmeter.sweep.findings import Finding, grouped, rows_of, spoken
from modelmeter.sweep.pages import page_columns, require_images
from modelmeter.sweep.table import Table, cost_columns, table_of
from modelmeter.sweep.timed import Asked, Clock, columns, of_request, of_stage
from modelmeter.workload import Workload

if TYPE_CHECKING:
    from modelmeter.times import Times

SETTINGS = joined(
    Setting("profiles", entry("profile"), "of configs/profile or YAML files; null: all of them", True, True),
    BATCH, *COUNTING, *SWEPT,
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """A workload of a document: pixel size of a page, prompt and output tokens of a page, number of pages.

    `mode` is a resolution mode of the model, or modes by model name (others use their default). Raises InputError for
    values that make no sense.
    """

    name: str
    title: str
    image_size: Any
    prompt_tokens: int
    output_tokens: int
    pages: int = 1
    mode: Any = None

    def __post_init__(self) -> None:
        place = f"profile {self.name}: "
        if not isinstance(self.title, str) or not self.title.strip():
            raise InputError(f"{place}title must be words, not {self.title!r}")
        size = IMAGE_SIZE.kind.check(f"{place}image_size", self.image_size)
        object.__setattr__(self, "image_size", f"{size[0]}x{size[1]}")
        for key, least in (("prompt_tokens", 0), ("output_tokens", 1), ("pages", 1)):
            object.__setattr__(self, key, as_size(place + key, getattr(self, key), least=least))
        if not (self.mode is None or isinstance(self.mode, (str, Mapping))):
            raise InputError(f"{place}mode must be a mode of the model or modes by model name, not {self.mode!r}")

    def workload(self, model: BaseModel, **options: Any) -> Workload:
        """One page of it; other keywords are those of Workload."""
        mode = self.mode.get(model.name) if isinstance(self.mode, Mapping) else self.mode
        if mode is not None:
            choose(f"mode of profile {self.name}", str(mode), require_images(model).modes)
        options |= {"prompt_tokens": self.prompt_tokens, "decode_steps": self.output_tokens}
        return model.workload(image_size=self.image_size, mode=mode, **options)


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """One row a profile, stage and runtime; `page` is all stages, `all pages` as many requests.

    `settings["profiles"]` are Profile objects.
    """
    profiles, rows, clock = settings["profiles"], list[Row](), Clock.of(settings)
    for profile in watched(profiles, "documents", len(profiles)):
        for kind in settings["runtime"]:
            work = profile.workload(model, **options_of(settings, kind, BATCH))
            rows += _rows(model, profile, work, clock.times(model, work))
    several = f"{len(profiles)} documents, batch {work.batch}"
    title = f"{model.name}: {several if len(profiles) > 1 else profile.title}"
    return [table_of("profiles", title, work, rows, settings)]


def _rows(model: BaseModel, profile: Profile, work: Workload, timed: Sequence[Times]) -> Iterator[Row]:
    page, image = model.request(work), work.image
    stored = {key: getattr(page, key) for key in ("parameters", "weight_bytes", "kv_cache_bytes")}
    costs = model.costs(work) | {"page": page, "all pages": replace(page * profile.pages, **stored)}
    head = {"profile": profile.name, "title": profile.title, "image_size": profile.image_size, "mode": image.mode}
    head |= page_columns(model, image) | {"image_tokens": image.tokens, "context_tokens": work.context_tokens}
    head |= {"decode_steps": work.decode_steps, "pages": profile.pages}
    for stage, cost in costs.items():
        beyond = stage != "vision" and model.is_beyond(work.context_tokens + work.decode_steps * (stage != "prefill"))
        seconds = columns((one, _asked(one, stage, profile.pages)) for one in timed)
        yield head | {"stage": stage} | cost_columns(work, cost) | seconds | {"beyond_positions": beyond}


def _asked(found: Times, stage: str, pages: int) -> Asked:
    """Seconds of a stage; of a page from its image to its last token; of all pages, one after the other."""
    if stage in found.stages:
        return of_stage(stage)(found)
    asked = of_request(found)
    span, binds = asked["request"]
    return {"stage": (span * float(pages), binds)} if stage == "all pages" else asked | {"stage": (span, binds)}


def _findings(table: Table) -> Iterator[Finding]:
    yield from spoken(table)
    for (_,), rows in grouped(rows_of(table), "profile"):
        stages = {row["stage"]: row for row in rows}
        page, (flops, moved) = stages["page"], (flops_of(stages["page"]), stages["page"]["io_bytes"])
        shares = {"vision": flops_of(stages["vision"]) / flops, "decode": stages["decode"]["io_bytes"] / moved}
        values = {"title": page["title"], "flops": significant(flops / 1e12), "io": significant(moved / 1e9)}
        yield "profile", values | {stage: significant(100 * share) for stage, share in shares.items()}


FINDINGS = {"profiles": _findings}
