"""GGUF files of small decoders for llama.cpp to run: every tensor as a policy stores it, all zeros, and a vocabulary.

What a file holds does not change how long it takes. It needs the package gguf.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from modelmeter.checkpoints.layout import layout_of
from modelmeter.models.config_json import model_of
from modelmeter.models.model import BaseModel

NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size")  # fmt: skip
POSITIONS = 4096
SPECIAL = 3 + 256
"""Tokens that a vocabulary begins with: three that mark, and the bytes."""
PLAIN = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def decoder(sizes: Sequence[int]) -> BaseModel:
    """Ours of such a decoder: hidden, intermediate, layers, heads, KV heads, vocabulary."""
    own = dict(zip(NAMES, sizes, strict=True))
    return model_of({"model_type": "llama", "max_position_embeddings": POSITIONS, "tie_word_embeddings": False, **own})


def write(path: Path, sizes: Sequence[int], policy: str) -> Path:
    """The file of a decoder under a policy."""
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, dict(zip(NAMES, sizes, strict=True)))
    for tensor in layout_of(decoder(sizes), policy).tensors:
        name = tensor.format.name
        kind = gguf.GGMLQuantizationType[PLAIN.get(name, name.upper())]
        shape = tuple(reversed(tensor.shape))
        content = np.zeros(gguf.quant_shape_to_byte_shape(shape, kind), np.uint8)
        writer.add_tensor(tensor.name, content, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: Any, sizes: dict[str, int]) -> None:
    """What the engine reads before the tensors."""
    count = sizes["vocab_size"]
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(count)
    writer.add_tokenizer_model("llama")
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *(f"▁t{i}" for i in range(count - SPECIAL))])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (count - SPECIAL)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
