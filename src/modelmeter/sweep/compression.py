"""Optical compression: text tokens per vision token by mode, and what the decoder is spared by it.

The same page is fed once as a picture and once as its own text. What the decoder saves stands beside
what the vision tower costs. Published compression and precision stand beside ours where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelmeter.errors import InputError, choose
from modelmeter.models.model import BaseModel
from modelmeter.models.planner import Planner
from modelmeter.programs.cost import StageCost
from modelmeter.progress import watched
from modelmeter.settings import COUNTING, GRID, SIZES, SWEPT, WORD, Setting, joined, options_of, whole
from modelmeter.sweep.columns import Row
from modelmeter.sweep.findings import Finding, grouped, ranges, rows_of, span, spoken
from modelmeter.sweep.pages import require_images
from modelmeter.sweep.table import Table, number, runtime_columns, table_of
from modelmeter.sweep.timed import Asked, Clock, of_request
from modelmeter.workload import Workload

if TYPE_CHECKING:
    from modelmeter.times import Times

SETTINGS = joined(
    Setting("text_tokens", whole(), "page lengths", several=True),
    Setting("modes", WORD, "as [tiny,small]; null: those without crops, or all if a grid is given", True, True),
    replace(GRID, help="ROWSxCOLUMNS of crops, for the modes that have crops"),
    *SIZES, *COUNTING, *SWEPT,
)  # fmt: skip


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """One row a page length, mode and runtime.

    `settings["published"]` are rows with text_tokens, mode, compression and precision of a paper.
    """
    planner, lengths, given = require_images(model), settings["text_tokens"], settings["grid"]
    known = {(row["mode"], row["text_tokens"]): row for row in settings["published"] or ()}
    rows, clock = list[Row](), Clock.of(settings)
    for kind in settings["runtime"]:
        options = options_of(settings, kind, *SIZES)
        prompt = options.pop("prompt_tokens")
        pages = {n: model.text(n + prompt, **options) for n in lengths}
        texts = {n: model.costs(page) for n, page in pages.items()}
        spoken = {n: clock.columns(model, page, _as_text) for n, page in watched(pages.items(), "texts", len(pages))}
        for mode in _modes(planner, settings):
            grid = given if planner.has_crops(mode) else None
            page = model.workload(mode=mode, grid=grid, prompt_tokens=prompt, **options)
            read, seconds = model.costs(page), clock.columns(model, page, _as_picture)
            for n in lengths:
                beyond = model.is_beyond(prompt + max(n, page.image.tokens) + page.decode_steps)
                marks = {"beyond_positions": beyond, "extrapolated": not page.image.produced}
                rows.append(_head(page, n, known.get((mode, n))) | _saved(read, texts[n]) | seconds | spoken[n] | marks)
    size = f"{lengths[0]}" if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}"
    answer = f"{page.prompt_tokens} prompt tokens, {page.decode_steps} decode steps, batch {page.batch}"
    title = f"{model.name}: pages of {size} text tokens as pictures, {answer}"
    return [table_of("compression", title + (f", grid {given[0]}x{given[1]}" if given else ""), page, rows, settings)]


def _as_picture(found: Times) -> Asked:
    return {"request": of_request(found)["request"]}


def _as_text(found: Times) -> Asked:
    return {"text": of_request(found)["request"]}


def _modes(planner: Planner, settings: Mapping[str, Any]) -> list[str]:
    modes, grid = settings["modes"], settings["grid"]
    if modes is None:
        return [mode for mode in planner.modes if grid is not None or not planner.has_crops(mode)]
    tiled = [mode for mode in modes if planner.has_crops(choose("modes", mode, planner.modes))]
    if grid is None and tiled:
        raise InputError(f"modes with crops need grid=ROWSxCOLUMNS: {', '.join(tiled)}")
    if grid is not None and not tiled:
        raise InputError(f"grid is of no use to modes without crops: {', '.join(modes)}")
    return list(modes)


def _head(page: Workload, text_tokens: int, paper: Row | None) -> dict[str, Any]:
    image = page.image
    return {
        "text_tokens": text_tokens, "mode": image.mode, "vision_tokens": image.valid_tokens,
        "image_tokens": image.tokens, "prompt_tokens": page.prompt_tokens, "decode_steps": page.decode_steps,
        **runtime_columns(page),
        "compression": text_tokens / image.valid_tokens, "compression_in_decoder": text_tokens / image.tokens,
        **{f"published_{key}": paper[key] if paper else "" for key in ("compression", "precision_percent")},
    }  # fmt: skip


def _saved(read: Mapping[str, StageCost], text: Mapping[str, StageCost]) -> dict[str, Any]:
    """What the decoder does for the text beside what it does for the picture."""
    (vision, prefill, decode), (text_prefill, text_decode) = read.values(), (text["prefill"], text["decode"])
    saved = text_prefill.flops - prefill.flops
    return {
        "text_prefill_flops": text_prefill.flops, "image_prefill_flops": prefill.flops, "vision_flops": vision.flops,
        "saved_prefill_flops": saved, "saved_flops_less_vision": saved - vision.flops,
        "saved_decode_flops": text_decode.flops - decode.flops,
        "saved_decode_io_bytes": number(text_decode.io_bytes - decode.io_bytes),
        "text_kv_cache_bytes": text_decode.kv_cache_bytes, "image_kv_cache_bytes": decode.kv_cache_bytes,
        "saved_kv_cache_bytes": text_decode.kv_cache_bytes - decode.kv_cache_bytes,
    }  # fmt: skip


def _findings(table: Table) -> Iterator[Finding]:
    rows = rows_of(table)
    spared, ahead = (sum(row[f"saved_{what}"] > 0 for row in rows) for what in ("prefill_flops", "flops_less_vision"))
    yield from spoken(table)
    yield "compression_saved", {"spared": spared, "ahead": ahead, "rows": len(rows)}
    for (mode, tokens), some in grouped(rows, "mode", "vision_tokens"):
        text = span([row["text_tokens"] for row in some])
        yield from ranges("compression_mode", [r["compression"] for r in some], mode=mode, tokens=tokens, text=text)
    known = [row for row in rows if row["published_compression"] != ""]
    lengths, modes = ({row[key] for row in known} for key in ("text_tokens", "mode"))
    off = {r["text_tokens"] for r in known if f"{r['compression']:.1f}" != f"{r['published_compression']:.1f}"}
    if known:
        yield "compression_published", {"same": len(lengths - off), "known": len(lengths), "modes": len(modes)}


FINDINGS = {"compression": _findings}
