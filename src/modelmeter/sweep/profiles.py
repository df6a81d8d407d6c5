"""Named OCR workloads, each through its stages: a receipt, a page, a newspaper, or a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelmeter.errors import InputError, choose
from modelmeter.models.model import BaseModel
from modelmeter.settings import BATCH, COUNTING, IMAGE_SIZE, SWEPT, Setting, entry, joined, options_of
from modelmeter.sizes import as_size
from modelmeter.sweep.columns import Column, flops_of, significant
from modelmeter.sweep.findings import Finding, spoken
from modelmeter.sweep.pages import counted, main_kind, page_columns, require_images
from modelmeter.sweep.table import Chart, Table, cost_columns
from modelmeter.workload import Workload

SETTINGS = joined(
    Setting("profiles", entry("profile"), "of configs/profile or YAML files; null: all of them", True, True),
    BATCH, *COUNTING, *SWEPT,
)  # fmt: skip
COLUMNS = (Column("title", "document", axis="document"), Column("pages"))


@dataclass(frozen=True)
class Profile:
    """A workload of a document: pixel size of a page, prompt and output tokens of a page, number of pages.

    `mode` is a resolution mode of the model, or modes by model name (others use their default).
    Raises InputError for values that make no sense.
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
    rows: list[dict[str, Any]] = []
    for profile in settings["profiles"]:
        for kind in settings["runtime"]:
            work = profile.workload(model, **options_of(settings, kind, BATCH))
            rows += _rows(model, profile, work)
    count = len(settings["profiles"])
    title = f"{model.name}: {count} documents, batch {work.batch}" if count > 1 else f"{model.name}: {profile.title}"
    main = main_kind(settings)
    charts = _charts(main, tuple(stage.name for stage in model.stages))
    return [Table("profiles", title, counted(work), rows, dict(settings), charts, kind=main)]


def _rows(model: BaseModel, profile: Profile, work: Workload) -> Iterator[dict[str, Any]]:
    page = model.request(work)
    stored = {key: getattr(page, key) for key in ("parameters", "weight_bytes", "kv_cache_bytes")}
    costs = model.costs(work) | {"page": page, "all pages": replace(page * profile.pages, **stored)}
    for stage, cost in costs.items():
        reach = work.context_tokens + (0 if stage == "prefill" else work.decode_steps)
        yield {
            "profile": profile.name,
            "title": profile.title,
            "image_size": profile.image_size,
            "mode": work.image.mode,
            **page_columns(model, work.image),
            "image_tokens": work.image.tokens,
            "context_tokens": work.context_tokens,
            "decode_steps": work.decode_steps,
            "pages": profile.pages,
            "stage": stage,
            **cost_columns(work, cost),
            "beyond_positions": stage != "vision" and model.is_beyond(reach),
        }


def _charts(kind: str, stages: tuple[str, ...]) -> list[Chart]:
    drawn = (("flops", "flops_tflops", stages), ("io", "io_gb", stages), ("kv", "kv_gb", ("page",)))
    return [
        Chart(f"profiles_{name}", (measure,), "title", ("stage",), {"execution": kind, "stage": some}, bars=True)
        for name, measure, some in drawn
    ]


def _findings(table: Table) -> Iterator[Finding]:
    yield from spoken(table)
    for page in table.select(stage="page", execution=table.kind):
        stages = {r["stage"]: r for r in table.select(profile=page["profile"], execution=table.kind)}
        yield "profile", {
            "title": page["title"],
            "flops": significant(flops_of(page) / 1e12),
            "vision": significant(100 * flops_of(stages["vision"]) / flops_of(page)),
            "decode": significant(100 * stages["decode"]["io_bytes"] / page["io_bytes"]),
            "io": significant(page["io_bytes"] / 1e9),
        }  # fmt: skip


FINDINGS = {"profiles": _findings}
