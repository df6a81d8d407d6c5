"""Optical compression: text tokens per vision token by mode, and what the decoder is spared by it.

The same page is fed once as a picture and once as its own text. What the decoder saves stands beside
what the vision tower costs. Published compression and precision stand beside ours where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.errors import InputError
from modelmeter.models.model import Model
from modelmeter.sizes import as_size
from modelmeter.sweep.grids import COUNTING, counted, kinds, main_kind, refuse_reference, several, whole_numbers
from modelmeter.sweep.table import Chart, Table
from modelmeter.workload import Workload


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """One row a page length, mode and attention kind.

    `settings["text_tokens"]` are page lengths in text tokens, `modes` resolution modes (None: those without
    crops), `published` rows with text_tokens, mode, compression and precision of a paper.
    """
    refuse_reference("compression", reference)
    lengths = whole_numbers("text_tokens", settings["text_tokens"])
    modes = _modes(model, settings)
    prompt = int(as_size("prompt_tokens", settings["prompt_tokens"], least=0))
    known = {(row["mode"], row["text_tokens"]): row for row in settings["published"] or ()}
    rows = []
    for kind in kinds(settings):
        options = {key: settings[key] for key in ("batch", "decode_steps", *COUNTING)} | kind
        texts = {length: _decoder(model, model.text(length + prompt, **options)) for length in lengths}
        for mode in modes:
            grid = settings["grid"] if model.has_crops(mode) else None
            page = model.workload(mode=mode, grid=grid, prompt_tokens=prompt, **options)
            read, vision = _decoder(model, page), model.cost("vision", page)
            rows += [_row(model, page, n, vision, read, texts[n], known.get((mode, n))) for n in lengths]
    size = f"{lengths[0]}" if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}"
    answer = f"{page.prompt_tokens} prompt tokens, {page.decode_steps} decode steps, batch {page.batch}"
    grid = f", grid {settings['grid']}" if settings["grid"] is not None else ""
    title = f"{model.name}: pages of {size} text tokens as pictures, {answer}{grid}"
    spoken = main_kind(settings)
    return [Table("compression", title, counted(page), rows, dict(settings), _charts(spoken), kind=spoken)]


def _modes(model: Model, settings: Mapping[str, Any]) -> list[str]:
    given = settings["modes"]
    if given is None:
        return [mode for mode in model.modes if settings["grid"] is not None or not model.has_crops(mode)]
    modes = several("modes", given, model.modes)
    if settings["grid"] is None and any(map(model.has_crops, modes)):
        tiled = ", ".join(mode for mode in modes if model.has_crops(mode))
        raise InputError(f"modes with crops need grid=ROWSxCOLUMNS: {tiled}")
    if settings["grid"] is not None and not any(map(model.has_crops, modes)):
        raise InputError(f"grid is of no use to modes without crops: {', '.join(modes)}")
    return modes


def _decoder(model: Model, work: Workload) -> tuple[StageCost, StageCost]:
    return model.cost("prefill", work), model.cost("decode", work)


def _row(
    model: Model, page: Workload, text_tokens: int, vision: StageCost,
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
        "attention": page.attention,
        "execution": page.execution,
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
