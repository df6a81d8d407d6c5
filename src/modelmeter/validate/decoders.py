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

from modelmeter.config import as_it_stands, load_model
from modelmeter.errors import InputError
from modelmeter.layers.base import BaseLayer
from modelmeter.models.config_json import read_config
from modelmeter.validate.case import MIXTURE_IO, Case, LayerAt, like

WRITTEN_OUT = ("gemma2", "gpt_oss", "gptj")
"""Types whose scores are capped or have sinks, which torch's attention kernel has not, or that have no other code: they
run written out."""
transformers.logging.set_verbosity_error()  # it warns of fields that its own classes write
MASKS = ("create_causal_mask", "create_sliding_window_causal_mask")
"""What makes masks in the code of a type."""


_LLAMA = {
    "hidden": "hidden_size", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_width": "head_dim",
    "mlp": "intermediate_size", "layers": "num_hidden_layers", "vocabulary": "vocab_size",
    "positions": "max_position_embeddings", "tied": "tie_word_embeddings", "window": "",
}  # fmt: skip
"""The numbers of the family llama by the names of a config.json."""


def fields_of(name: str) -> Mapping[str, Any] | None:
    """The fields of a config.json that a model's decoder is made of, or would be; None where there are none."""
    model: Any = load_model(name)
    if getattr(model, "config", None) is not None:
        return dict(model.config)
    numbers = as_it_stands(name).get("decoder", {})
    family, numbers = numbers.get("family"), {key: value for key, value in numbers.items() if key != "family"}
    if family == "config_json":
        return numbers["config"] if isinstance(numbers["config"], Mapping) else read_config(str(numbers["config"]))
    if family != "llama" or numbers["window"] is not None:
        return None
    return {"model_type": "llama", "hidden_act": "silu"} | {
        _LLAMA[key]: value for key, value in numbers.items() if _LLAMA[key]
    }


def runtime_of(fields: Mapping[str, Any]) -> str:
    """The runtime of the attention that transformers' module of these fields has here."""
    return "eager" if fields["model_type"] in WRITTEN_OUT else "flash"


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
    config._attn_implementation = attention or {"eager": "eager", "flash": "sdpa"}[runtime_of(fields)]
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16) if known else TextPart(config)
    module.eval()
    if "experts" in " ".join(name for name, _ in module.named_modules()):
        module.set_experts_implementation("batched_mm")
    code = sys.modules[type(module if known else module.model).__module__]
    for mask in (mask for mask in MASKS if hasattr(code, mask)):
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

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


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
    """The cases of a decoder alone."""
    yield from decoder_cases(model.config, model.stages[0].layer)


def decoder_cases(fields: Mapping[str, Any], decoder: BaseLayer) -> Iterator[Case]:
    """Calls on an empty cache at two sizes, and a step after each, parameters included."""
    for batch, tokens in ((1, 9), (2, 33)):
        yield call_case(fields, decoder, batch, tokens)
        yield call_case(fields, decoder, batch, 1, past=tokens)


def call_case(fields: Mapping[str, Any], decoder: BaseLayer, batch: int, tokens: int, past: int = 0) -> Case:
    """A call of the whole decoder on `tokens` more of each sequence."""
    ours = LayerAt(decoder, {"b": batch, "s": tokens, "t": past + tokens}, {"runtime": runtime_of(fields)})

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
    known = KNOWN[fields["model_type"]](fields, batch, tokens, past + tokens) if fields["model_type"] in KNOWN else {}
    skip = MIXTURE_IO if mixed else {}
    return Case("decoder", label, ours, make, (whole, whole), kind, run, skip=skip, known=known)


def _of_gptj(fields: Mapping[str, Any], batch: int, tokens: int, context: int) -> dict[str, tuple[int, str]]:
    hidden, heads, layers = (
        fields.get(short, fields.get(long))
        for short, long in (
            ("n_embd", "hidden_size"),
            ("n_head", "num_attention_heads"),
            ("n_layer", "num_hidden_layers"),
        )
    )
    tables = batch * tokens * fields["rotary_dim"] * 9 // 2
    wide = batch * heads * (hidden // heads * (tokens + context) + tokens * context)
    return {
        "cuda_core_flops": (-tables, "its tables of cos and sin are made once, for all positions"),
        "kernel_io_bytes": (2 * layers * wide, "queries, keys and their scores are in 32 bits"),
    }


def _of_falcon(fields: Mapping[str, Any], batch: int, tokens: int, context: int) -> dict[str, tuple[int, str]]:
    heads, layers = fields["num_attention_heads"], fields["num_hidden_layers"]
    width, more = fields["hidden_size"] // heads, heads - fields["num_kv_heads"]
    why = "keys and values are written out for every query head before they are rotated and kept"
    return {
        "cuda_core_flops": (layers * batch * tokens * more * width * 7 // 2, why),
        "kernel_io_bytes": (layers * batch * context * more * width * 2 * 2, why),
    }


def _of_phimoe(fields: Mapping[str, Any], batch: int, tokens: int, context: int) -> dict[str, tuple[int, str]]:
    each = 13 * fields["num_local_experts"] - 4
    why = "two experts are chosen one after the other, each behind a mask of its own; the last position is asked for"
    return {"cuda_core_flops": (batch * tokens * (fields["num_hidden_layers"] * each + 1), why)}


KNOWN = {"gptj": _of_gptj, "falcon": _of_falcon, "phimoe": _of_phimoe}
"""By how much the code of a type differs, and why."""
