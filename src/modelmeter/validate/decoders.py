"""Decoders of a config.json beside transformers' own modules: one harness for every model_type."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modelmeter.errors import InputError
from modelmeter.validate.case import MIXTURE_IO, Case, LayerAt, like

WRITTEN_OUT = ("gemma2", "gpt_oss")
"""Types whose scores are capped or have sinks, which torch's attention kernel has not: they run written out."""
_MASKS = ("create_causal_mask", "create_sliding_window_causal_mask")


def module_of(fields: Mapping[str, Any], attention: str | None = None) -> Any:
    """transformers' module of a config.json's fields on torch's default device, in bf16, without masks.

    Experts run as one batched product, so that every token's work is seen.
    """
    kind = str(fields["model_type"])
    try:
        return _module_of(kind, fields, attention)
    except Exception as error:  # whatever transformers refuses, and with however many lines
        raise InputError(f"transformers cannot make a {kind} of these fields: {' '.join(str(error).split())}") from None


def _module_of(kind: str, fields: Mapping[str, Any], attention: str | None) -> Any:
    config = CONFIG_MAPPING[kind](**{key: value for key, value in fields.items() if key != "model_type"})
    config._attn_implementation = attention or ("eager" if kind in WRITTEN_OUT else "sdpa")
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16) if known else TextPart(config)
    module.eval()
    if "experts" in " ".join(name for name, _ in module.named_modules()):
        module.set_experts_implementation("batched_mm")
    code = sys.modules[type(module if known else module.model).__module__]
    for mask in (mask for mask in _MASKS if hasattr(code, mask)):
        setattr(code, mask, lambda *_, **__: None)  # a mask is a constant of the shape
    return module


class TextPart(nn.Module):
    """The text model of a model of several parts, with the head that stands there beside all of them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        kind = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model")
        self.config, self.model = config, kind(config).to(torch.bfloat16)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=torch.bfloat16)
        if getattr(config, "tie_word_embeddings", False):
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, **given: Any) -> Any:
        return self.lm_head(self.model(**given).last_hidden_state)


def cache_of(module: Any) -> Any:
    """An empty cache as the module's layers want it, windows included."""
    return DynamicCache(config=module.config)


def cached_bytes(cache: Any) -> int:
    """Bytes that a cache holds."""
    held = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def forward(module: Any, batch: int, tokens: int, cache: Any = None) -> Any:
    """A call of the module on so many tokens of each sequence; their values decide nothing."""
    ids, positions = (torch.zeros(batch, tokens, dtype=torch.long) for _ in range(2))
    return module(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=cache is not None)


def layer_cases(model: Any) -> Iterator[Case]:
    """Calls on an empty cache at two sizes, and a step after each, parameters included."""
    for batch, tokens in ((1, 9), (2, 33)):
        yield call_case(model, batch, tokens)
        yield call_case(model, batch, 1, past=tokens)


def call_case(model: Any, batch: int, tokens: int, past: int = 0) -> Case:
    """A call of the whole decoder on `tokens` more of each sequence."""
    fields, decoder = model.config, model.stages[0].layer
    options = {"runtime": "eager" if fields["model_type"] in WRITTEN_OUT else "flash"}
    ours = LayerAt(decoder, {"b": batch, "s": tokens, "t": past + tokens}, options)

    def make() -> Any:
        module = module_of(fields)
        module.held = cache_of(module)
        if past:
            with torch.no_grad():
                forward(module, batch, past, module.held)
        return module

    def run(module: Any, ids: torch.Tensor, positions: torch.Tensor) -> None:
        cache = deepcopy(module.held)
        module(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)

    whole = like(batch, tokens, dtype=torch.long)
    mixed = any("experts" in kernel.path for kernel in ours.kernels())
    label = f"{'step' if past else 'prefill'}, batch {batch}, {past + tokens} tokens"
    kind = CONFIG_MAPPING[fields["model_type"]].__name__.removesuffix("Config") + "ForCausalLM"
    return Case("decoder", label, ours, make, (whole, whole), kind, run, skip=MIXTURE_IO if mixed else {})
