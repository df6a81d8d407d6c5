"""The stages of DeepSeek-OCR at full size beside transformers' whole model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache
from transformers.models.unlimited_ocr import modeling_unlimited_ocr as ocr

from modelmeter.config import load_model
from modelmeter.errors import InputError
from modelmeter.models.model import Model
from modelmeter.ops import Op
from modelmeter.validate.case import Case
from modelmeter.validate.counters import tensor_core_flops
from modelmeter.validate.deepseek_ocr import MIXTURE_IO, Dims, config, experts_here, two_norms
from modelmeter.workload import Workload


@lru_cache(maxsize=1)
def _whole(device: str) -> Any:
    """The whole model; real experts run grouped, which on meta would hide them from the counter."""
    with torch.device(device):
        made = experts_here(config(Dims()))
        return ocr.UnlimitedOcrForConditionalGeneration(made).to(torch.bfloat16).eval()


def _here() -> Any:
    """The whole model on torch's default device."""
    return _whole(str(torch.get_default_device()))


def reference_counts(model: Model, work: Workload) -> dict[str, int]:
    """What FlopCounterMode counts on the real modules for the vision stage of a workload."""
    shipped = load_model(model.name)
    if any(getattr(model, part) != getattr(shipped, part) for part in ("sam", "clip", "projector", "decoder")):
        raise InputError("reference=true counts the model as shipped; leave out overrides of model dimensions")
    case = vision_case(model, work)
    with torch.no_grad(), torch.device("meta"):
        module, inputs = case.build()
        return {"reference_tensor_core_flops": tensor_core_flops(lambda: case.run(module, *inputs))}


def vision_case(model: Model, work: Workload, label: str = "") -> Case:
    """The vision stage of a workload beside the vision tower and projector of the whole model."""

    def build() -> tuple[None, tuple[Any, ...]]:
        views = [(work.batch * v.count, 3, v.height, v.width) for v in work.image.views]
        return None, (_here().model, *(torch.zeros(*view, dtype=torch.bfloat16) for view in views))

    def run(_: None, whole: Any, *views: torch.Tensor) -> None:
        for pixels in views:
            whole.multi_modal_projector(whole.vision_tower(pixels).last_hidden_state)

    pixels = sum(work.batch * v.count * (v.height // 16) * (v.width // 16) for v in work.image.views)
    return Case("stage", f"vision {label or work.image.mode}", "UnlimitedOcrModel", lambda: model.ops("vision", work),
                build, run, known=two_norms(Dims(), pixels))  # fmt: skip


def language_case(model: Model, work: Workload, steps: int = 0) -> Case:
    """Prefill (steps 0), or that decode step after it with a cache, beside the whole decoder."""
    s, d = work.context_tokens, Dims()

    def build() -> tuple[None, tuple[Any, ...]]:
        shape = (work.batch, 1 if steps else s, d.hidden)
        return None, (_here(), torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape[:2], dtype=torch.long))

    def run(_: None, lm: Any, embedded: torch.Tensor, positions: torch.Tensor) -> None:
        cache = DynamicCache()
        if steps:
            shape = (work.batch, d.kv_heads, s + steps - 1, d.head)
            past = torch.zeros(shape, dtype=torch.bfloat16, device=embedded.device)
            for layer in range(12):
                cache.update(past, past, layer)
        rows = 1 if work.logits == "last" else 0
        lm(inputs_embeds=embedded, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=rows)

    def ops() -> list[Op]:
        return model.ops("decode", work, s + steps) if steps else model.ops("prefill", work)

    label = f"decode step {steps} after {s}" if steps else f"prefill {s}, logits {work.logits}"
    label += f", batch {work.batch}" if work.batch != 1 else ""
    return Case("stage", label, "UnlimitedOcrForConditionalGeneration", ops, build, run, skip=MIXTURE_IO)


def stage_cases(model: Model) -> Iterator[Case]:
    """The vision stage at every mode and at batches of crops, prefill, and decode with a cache."""
    for mode, options in (
        ("tiny", {}), ("small", {}), ("base", {}), ("large", {}),
        ("gundam", {"grid": "1x2"}), ("gundam", {"grid": "2x3"}), ("gundam", {"grid": "2x3", "batch": 2}),
        ("gundam_m", {"grid": "1x2"}),
    ):  # fmt: skip
        label = " ".join([mode, *(f"{k} {v}" for k, v in options.items())])
        yield vision_case(model, model.workload(mode=mode, rotary="transformers", **options), label)
    page = model.workload(grid="1x2", rotary="transformers")
    yield language_case(model, page)
    yield language_case(model, replace(page, logits="last"))
    yield language_case(model, page, steps=1)
    yield language_case(model, page, steps=100)
    yield language_case(model, replace(page, batch=3), steps=7)
