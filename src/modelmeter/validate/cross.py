"""Decoders with cross attention beside transformers' MBartForCausalLM: the first call on features, and a step after it.

Its configuration is read from our decoder, so that the same cases serve full size and small ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from transformers import DynamicCache, EncoderDecoderCache, MBartConfig, MBartForCausalLM
from transformers.models.mbart import modeling_mbart as code

from modelmeter.layers.decoder import in_steps
from modelmeter.models.families import OFFSET
from modelmeter.validate.case import Case, LayerAt, like


def config_of(decoder: Any, attention: str = "sdpa") -> MBartConfig:
    """The configuration of a decoder of the family mbart."""
    (stack,) = decoder.layers
    block = stack.layer
    config = MBartConfig(
        d_model=decoder.d, decoder_layers=stack.l, decoder_attention_heads=block.cross.h, decoder_ffn_dim=block.mlp.f,
        vocab_size=decoder.head.V, max_position_embeddings=decoder.learned.n - OFFSET, scale_embedding=True,
        activation_function=block.mlp.activation, tie_word_embeddings=decoder.tied, add_cross_attention=True,
        pad_token_id=None, bos_token_id=None, eos_token_id=None, forced_eos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = attention
    return config


def module_of(decoder: Any, attention: str = "sdpa") -> Any:
    """transformers' module of a decoder on torch's default device, in bf16."""
    return MBartForCausalLM(config_of(decoder, attention)).to(torch.bfloat16).eval()


def empty_cache() -> EncoderDecoderCache:
    """A cache of what the decoder attends to in itself, and one of what it reads of an encoder."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def unmasked(causal: Any = None) -> Any:
    """A context in which the module makes no masks, which are constants of the shape, or the `causal` one alone."""
    made: dict[str, Any] = {
        "create_causal_mask": lambda *_, **__: causal,
        "create_bidirectional_mask": lambda *_, **__: None,
    }
    return patch.multiple(code, **made)


def called(module: Any, features: torch.Tensor, ids: torch.Tensor, cache: Any, causal: Any = None) -> Any:
    """A call on some tokens of each sequence."""
    with unmasked(causal):
        return module(input_ids=ids, encoder_hidden_states=features, past_key_values=cache, use_cache=True)


def call_case(decoder: Any, batch: int, tokens: int, source: int, past: int = 0, attention: str = "sdpa") -> Case:
    """A call on `tokens` more of each sequence: the first one (`past` 0), or a step on the caches of `past`."""
    layer = in_steps(decoder) if past else decoder
    options = {"runtime": "flash" if attention == "sdpa" else "eager"}
    ours = LayerAt(layer, {"b": batch, "s": tokens, "t": past + tokens, "source": source}, options)
    features, ids = (batch, source, decoder.d), like(batch, tokens, dtype=torch.long)

    def make() -> Any:
        module = module_of(decoder, attention)
        module.held = empty_cache()
        if past:
            given = torch.zeros(features, dtype=torch.bfloat16), torch.zeros(batch, past, dtype=torch.long)
            with torch.no_grad():
                called(module, *given, module.held)
        return module

    label = f"{'step' if past else 'prefill'}, batch {batch}, {past + tokens} tokens, {source} features"
    run = lambda module, features, ids: called(module, features, ids, deepcopy(module.held))
    return Case("decoder", label, ours, make, (like(*features), ids), "MBartForCausalLM", run)


def mbart_cases(decoder: Any, *sizes: tuple[int, int, int], attention: str = "sdpa") -> Iterator[Case]:
    """The first call at each of some sizes (batch, tokens, source), and a step after it."""
    for batch, tokens, source in sizes:
        first = partial(call_case, decoder, batch, source=source, attention=attention)
        yield first(tokens)
        yield first(1, past=tokens)
