"""The stages of DeepSeek-OCR at full size beside transformers' whole model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from transformers.models.unlimited_ocr import modeling_unlimited_ocr as ocr

from modelmeter.validate.case import Case, StageAt
from modelmeter.validate.deepseek_ocr import MIXTURE_IO, cached, experts_here, inner, two_norms
from modelmeter.workload import Workload


@lru_cache(maxsize=1)
def _whole(tower: Any, decoder: Any, device: str) -> Any:
    """The whole model; real experts run grouped, which on meta would hide them from the counter."""
    with torch.device(device):
        return ocr.UnlimitedOcrForConditionalGeneration(experts_here(tower, decoder)).to(torch.bfloat16).eval()


def _here(model: Any) -> Any:
    """The whole model on torch's default device."""
    return _whole(model.tower, model.decoder, str(torch.get_default_device()))


def vision_case(model: Any, work: Workload, label: str = "") -> Case:
    """The vision stage of a workload beside the vision tower and projector of the whole model."""
    views = [(work.batch * v.count, 3, v.height, v.width) for v in work.image.views]

    def build() -> tuple[None, tuple[Any, ...]]:
        return None, (_here(model).model, *(torch.zeros(*view, dtype=torch.bfloat16) for view in views))

    def run(_: None, whole: Any, *pixels: torch.Tensor) -> None:
        for view in pixels:
            whole.multi_modal_projector(whole.vision_tower(view).last_hidden_state)

    patches = sum(
        many * (height // model.tower.patch) * (width // model.tower.patch) for many, _, height, width in views
    )
    return Case("stage", f"vision {label or work.image.mode}", "UnlimitedOcrModel", StageAt(model, "vision", work),
                build, run, known=two_norms(model, patches))  # fmt: skip


def language_case(model: Any, work: Workload, steps: int = 0) -> Case:
    """Prefill (steps 0), or that decode step after it with a cache, beside the whole decoder."""
    s, attention = work.context_tokens, inner(model.decoder.layers)[0].attention
    layers = sum(repeat.l for repeat in model.decoder.layers)

    def build() -> tuple[None, tuple[Any, ...]]:
        shape = (work.batch, 1 if steps else s, model.decoder.d)
        positions = torch.zeros(shape[:2], dtype=torch.long)
        return None, (_here(model), torch.zeros(shape, dtype=torch.bfloat16), positions)

    def run(_: None, lm: Any, embedded: torch.Tensor, positions: torch.Tensor) -> None:
        shape = (work.batch, attention.g, s + steps - 1 if steps else 0, attention.e)
        past = torch.zeros(shape, dtype=torch.bfloat16, device=embedded.device)
        cache, rows = cached(past, past, layers), 1 if work.logits == "last" else 0
        lm(inputs_embeds=embedded, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=rows)

    ours = StageAt(model, "decode", work, steps) if steps else StageAt(model, "prefill", work)
    label = f"decode step {steps} after {s}" if steps else f"prefill {s}, logits {work.logits}"
    label += f", batch {work.batch}" if work.batch != 1 else ""
    return Case("stage", label, "UnlimitedOcrForConditionalGeneration", ours, build, run, skip=MIXTURE_IO)


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
    yield language_case(model, page)
    yield language_case(model, replace(page, logits="last"))
    yield language_case(model, page, steps=1)
    yield language_case(model, page, steps=100)
    yield language_case(model, replace(page, batch=3), steps=7)
