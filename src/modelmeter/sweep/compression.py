"""Optical compression: text tokens per vision token by mode, and what the decoder is spared by it.

The same page is fed once as a picture and once as its own text. What the decoder saves stands beside
what the vision tower costs. Published compression and precision stand beside ours where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from modelmeter.programs.cost import StageCost
from modelmeter.errors import InputError, choose
from modelmeter.models.model import BaseModel
from modelmeter.settings import (
    BATCH,
    COUNTING,
    DECODE_STEPS,
    GRID,
    PROMPT_TOKENS,
    SWEPT,
    WORD,
    Setting,
    joined,
    kind_columns,
    options_of,
    whole,
)  # fmt: skip
from modelmeter.sweep.columns import Column, Measure
from modelmeter.sweep.findings import Finding, ranges, rows_of, span, spoken
from modelmeter.sweep.pages import counted, main_kind
from modelmeter.sweep.table import Chart, Table
from modelmeter.workload import Workload

SETTINGS = joined(
    Setting("text_tokens", whole(), "page lengths", several=True),
    Setting("modes", WORD, "as [tiny,small]; null: those without crops, or all if a grid is given", True, True),
    replace(GRID, help="ROWSxCOLUMNS of crops, for the modes that have crops"),
    BATCH, DECODE_STEPS, replace(PROMPT_TOKENS, help="text tokens beside the page's"), *COUNTING, *SWEPT,
)  # fmt: skip
COLUMNS = (
    Column("text_tokens", "text tokens", axis="text tokens of the page"),
    Column("vision_tokens", "vision tokens"),
    Column("compression", "text per vision token", 1, 3),
    Column("published_compression", "published"),
    Column("published_precision_percent", "published precision %"),
    Column("compression_in_decoder", "text per image token", 1, 3),
    Column("text_prefill_flops", "prefill of the text, TFLOP", 1e12, 4),
    Column("image_prefill_flops", "prefill of the picture, TFLOP", 1e12, 4),
    Column("saved_prefill_flops", "saved, TFLOP", 1e12, 4),
    Column("vision_flops", "vision tower, TFLOP", 1e12, 4),
    Column("saved_flops_less_vision", "saved in all, TFLOP", 1e12, 4),
    Column("saved_decode_io_bytes", "decode I/O saved, GB", 1e9, 4),
    Column("saved_kv_cache_bytes", "KV cache saved, GB", 1e9, 4),
)
_RATIO = "text tokens per vision token"
MEASURES = (
    Measure("compression", _RATIO, ("compression",), short="computed"),
    Measure("published_compression", _RATIO, ("published_compression",), short="published", points=True),
    Measure("saved_prefill_tflops", "prefill FLOPs saved (TFLOP = 1e12)", ("saved_prefill_flops",), 1e12),
    Measure("net_saved_tflops", "FLOPs saved in all (TFLOP = 1e12)", ("saved_flops_less_vision",), 1e12),
    Measure("saved_kv_gb", "KV cache saved at the end (GB = 1e9 bytes)", ("saved_kv_cache_bytes",), 1e9),
)


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """One row a page length, mode and runtime.

    `settings["published"]` are rows with text_tokens, mode, compression and precision of a paper.
    """
    lengths, prompt, modes = settings["text_tokens"], settings["prompt_tokens"], _modes(model, settings)
    known = {(row["mode"], row["text_tokens"]): row for row in settings["published"] or ()}
    rows = []
    for kind in settings["runtime"]:
        options = options_of(settings, kind, BATCH, DECODE_STEPS)
        texts = {n: _decoder(model, model.text(n + prompt, **options)) for n in lengths}
        for mode in modes:
            grid = settings["grid"] if model.planner.has_crops(mode) else None
            page = model.workload(mode=mode, grid=grid, prompt_tokens=prompt, **options)
            read, vision = _decoder(model, page), model.cost("vision", page)
            rows += [_row(model, page, kind, n, vision, read, texts[n], known.get((mode, n))) for n in lengths]
    size = f"{lengths[0]}" if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}"
    answer = f"{page.prompt_tokens} prompt tokens, {page.decode_steps} decode steps, batch {page.batch}"
    grid = "" if settings["grid"] is None else f", grid {'x'.join(map(str, settings['grid']))}"
    title = f"{model.name}: pages of {size} text tokens as pictures, {answer}{grid}"
    main = main_kind(settings)
    return [Table("compression", title, counted(page), rows, dict(settings), _charts(main), kind=main)]


def _modes(model: BaseModel, settings: Mapping[str, Any]) -> list[str]:
    planner, modes, grid = model.planner, settings["modes"], settings["grid"]
    if planner is None:
        raise InputError(f"{model.name} takes no image, so compression has nothing to compare")
    if modes is None:
        return [mode for mode in planner.modes if grid is not None or not planner.has_crops(mode)]
    modes = [choose("modes", mode, planner.modes) for mode in modes]
    tiled = [mode for mode in modes if planner.has_crops(mode)]
    if grid is None and tiled:
        raise InputError(f"modes with crops need grid=ROWSxCOLUMNS: {', '.join(tiled)}")
    if grid is not None and not tiled:
        raise InputError(f"grid is of no use to modes without crops: {', '.join(modes)}")
    return modes


def _decoder(model: BaseModel, work: Workload) -> tuple[StageCost, StageCost]:
    return model.cost("prefill", work), model.cost("decode", work)


def _row(
    model: BaseModel, page: Workload, kind: str, text_tokens: int, vision: StageCost,
    read: tuple[StageCost, StageCost], text: tuple[StageCost, StageCost],
    paper: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    image = page.image
    (prefill, decode), (text_prefill, text_decode) = read, text
    longest = page.prompt_tokens + max(text_tokens, image.tokens)
    saved = text_prefill.flops - prefill.flops
    return {
        "text_tokens": text_tokens,
        "mode": image.mode,
        "vision_tokens": image.valid_tokens,
        "image_tokens": image.tokens,
        "prompt_tokens": page.prompt_tokens,
        "decode_steps": page.decode_steps,
        **kind_columns(kind),
        "compression": text_tokens / image.valid_tokens,
        "compression_in_decoder": text_tokens / image.tokens,
        "published_compression": paper["compression"] if paper else "",
        "published_precision_percent": paper["precision_percent"] if paper else "",
        "text_prefill_flops": text_prefill.flops,
        "image_prefill_flops": prefill.flops,
        "vision_flops": vision.flops,
        "saved_prefill_flops": saved,
        "saved_flops_less_vision": saved - vision.flops,
        "saved_decode_flops": text_decode.flops - decode.flops,
        "saved_decode_io_bytes": text_decode.io_bytes - decode.io_bytes,
        "text_kv_cache_bytes": text_decode.kv_cache_bytes,
        "image_kv_cache_bytes": decode.kv_cache_bytes,
        "saved_kv_cache_bytes": text_decode.kv_cache_bytes - decode.kv_cache_bytes,
        "beyond_positions": model.is_beyond(longest + page.decode_steps),
        "extrapolated": not image.produced,
    }


def _charts(kind: str) -> list[Chart]:
    where, x, by = {"execution": kind}, "text_tokens", "mode"
    return [
        Chart("compression_ratio", ("compression", "published_compression"), x, by, where),
        Chart("compression_saved_prefill", ("saved_prefill_tflops",), x, by, where, note="decoder alone"),
        Chart("compression_net", ("net_saved_tflops",), x, by, where, note="vision tower included"),
        Chart("compression_kv", ("saved_kv_gb",), x, by, where),
    ]


def _findings(table: Table) -> Iterator[Finding]:
    rows = rows_of(table)
    spared = [row for row in rows if row["saved_prefill_flops"] > 0]
    ahead = [row for row in rows if row["saved_flops_less_vision"] > 0]
    yield from spoken(table)
    yield "compression_saved", {"spared": len(spared), "ahead": len(ahead), "rows": len(rows)}
    for mode in dict.fromkeys(row["mode"] for row in rows):
        some = [row for row in rows if row["mode"] == mode]
        tokens, text = some[0]["vision_tokens"], span([row["text_tokens"] for row in some])
        ratios = [row["compression"] for row in some]
        yield from ranges("compression_mode", ratios, mode=mode, tokens=tokens, text=text)
    known = [row for row in rows if row["published_compression"] != ""]
    lengths = {row["text_tokens"] for row in known}
    off = {r["text_tokens"] for r in known if f"{r['compression']:.1f}" != f"{r['published_compression']:.1f}"}
    if known:
        modes = len({row["mode"] for row in known})
        yield "compression_published", {"same": len(lengths - off), "known": len(lengths), "modes": modes}


FINDINGS = {"compression": _findings}
