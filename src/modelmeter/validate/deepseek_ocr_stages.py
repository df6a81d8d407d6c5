"""The stages of DeepSeek-OCR at full size beside transformers' whole model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from transformers.models.unlimited_ocr import modeling_unlimited_ocr as ocr

from modelmeter.validate.case import MIXTURE_IO, Case, StageAt, like
from modelmeter.validate.deepseek_ocr import cached, experts_here, inner
from modelmeter.validate.sam import two_norms
from modelmeter.workload import Workload


@lru_cache(maxsize=1)
def _whole(tower: Any, decoder: Any, device: str) -> Any:
    with torch.device(device):
        return ocr.UnlimitedOcrForConditionalGeneration(experts_here(tower, decoder)).to(torch.bfloat16)


def _here(model: Any) -> Any:
    """The whole model on torch's default device."""
    return _whole(model.tower, model.decoder, str(torch.get_default_device()))


def vision_case(model: Any, work: Workload, label: str = "") -> Case:
    """The vision stage of a workload beside the vision tower and projector of the whole model."""
    views, patch = [(work.batch * v.count, 3, v.height, v.width) for v in work.image.views], model.tower.patch

    def run(whole: Any, *pixels: torch.Tensor) -> None:
        for view in pixels:
            whole.model.multi_modal_projector(whole.model.vision_tower(view).last_hidden_state)

    known = two_norms(model, sum(many * (height // patch) * (width // patch) for many, _, height, width in views))
    ours, pixels = StageAt(model, "vision", work), tuple(like(*view) for view in views)
    return Case("stage", f"vision {label or work.image.mode}", ours, partial(_here, model), pixels, "UnlimitedOcrModel",
                run, known=known)  # fmt: skip


def language_case(model: Any, work: Workload, step: int = 0) -> Case:
    """Prefill (step 0), or that decode step after it with a cache, beside the whole decoder."""
    s, attention = work.context_tokens, inner(model.decoder.layers)[0].attention
    layers, rows = sum(repeat.l for repeat in model.decoder.layers), 1 if work.logits == "last" else 0

    def run(lm: Any, embedded: torch.Tensor, positions: torch.Tensor, past: torch.Tensor) -> None:
        cache = cached(past, past, layers)
        lm(inputs_embeds=embedded, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=rows)

    ours, label, tokens, held = StageAt(model, "prefill", work), f"prefill {s}, logits {work.logits}", s, 0
    if step:
        later = replace(work, prompt_tokens=work.prompt_tokens + step - 1, decode_steps=1)
        ours, label, tokens, held = StageAt(model, "decode", later), f"decode step {step} after {s}", 1, s + step - 1
    label += f", batch {work.batch}" if work.batch != 1 else ""
    positions = like(work.batch, tokens, dtype=torch.long)
    given = like(work.batch, tokens, model.decoder.d), positions, like(work.batch, attention.g, held, attention.e)
    return Case("stage", label, ours, partial(_here, model), given, "UnlimitedOcrForConditionalGeneration", run,
                skip=MIXTURE_IO)  # fmt: skip


def stage_cases(model: Any) -> Iterator[Case]:
    """The vision stage at every mode and at batches of crops, prefill, and decode with a cache."""
    for mode, options in (
        ("tiny", {}), ("small", {}), ("base", {}), ("large", {}),
        ("gundam", {"grid": "1x2"}), ("gundam", {"grid": "2x3"}), ("gundam", {"grid": "2x3", "batch": 2}),
        ("gundam_m", {"grid": "1x2"}),
    ):  # fmt: skip
        label = " ".join([mode, *(f"{k} {v}" for k, v in options.items())])
        yield vision_case(model, model.workload(mode=mode, **options), label)
    page = model.workload(grid="1x2")
    for work, step in (
        (page, 0),
        (replace(page, logits="last"), 0),
        (page, 1),
        (page, 100),
        (replace(page, batch=3), 7),
    ):
        yield language_case(model, work, step)
