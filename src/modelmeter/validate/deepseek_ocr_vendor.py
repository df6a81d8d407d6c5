"""How to construct the vendor's classes of DeepSeek-OCR, each beside our layer for it.

Vendor: deepencoder/*.py (GitHub) or deepencoder.py (Hugging Face), modeling_deepseekv2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from modelmeter import layers as mm
from modelmeter.validate.deepseek_ocr import Dims, attention, sam
from modelmeter.validate.vendor import AttributeDict, Recipe


def _clip(d: Dims) -> Any:
    return AttributeDict(
        num_layers=d.clip_layers, hidden_size=d.clip_hidden, num_heads=d.clip_heads, num_attention_heads=d.clip_heads,
        ffn_hidden_size=d.clip_mlp, seq_length=256, max_position_embeddings=256, use_flash_attn=False,
        attention_dropout=0.0, hidden_dropout=0.0, layernorm_epsilon=1e-5, pre_layernorm_epsilon=1e-5,
        image_size=d.clip_patch * d.clip_grid, patch_size=d.clip_patch,
    )  # fmt: skip


def _decoder(d: Dims) -> Any:
    return SimpleNamespace(
        hidden_size=d.hidden, intermediate_size=d.mlp, moe_intermediate_size=d.expert_mlp, hidden_act="silu",
        num_attention_heads=d.heads, num_key_value_heads=d.kv_heads, n_routed_experts=d.experts,
        num_experts_per_tok=d.active, n_shared_experts=d.shared, routed_scaling_factor=1.0, scoring_func="softmax",
        topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, aux_loss_alpha=0.001, seq_aux=True,
        rms_norm_eps=1e-6, ep_size=1, pretraining_tp=1,
    )  # fmt: skip


def vendor_recipes(d: Dims = Dims()) -> Iterator[Recipe]:
    """How to construct each vendor class, and our layer for it."""
    ours, hidden, side, line = sam(d), d.sam_hidden, d.grid, {"b": d.b, "s": 257}
    windowed, full = (r.layer for r in ours.blocks)  # type: ignore[attr-defined]
    grid, image = {"b": d.b, "u": side, "v": side}, side * d.patch
    square, width = (d.b, side, side, hidden), d.clip_hidden
    clip_attention = mm.NoTPAttention(width, d.clip_heads, d.clip_head)
    block = mm.NoTPTransformerBlock(clip_attention, mm.NoTPFeedForward(width, d.clip_mlp), mm.LayerNorm(width))
    transformer = mm.NoTPTransformer(block, d.clip_layers)
    patch = mm.PatchEmbed(3, width, d.clip_patch, bias=False)
    embeddings = mm.CLIPVisionEmbeddings(patch, d.clip_grid**2 + 1)
    relative = dict(num_heads=d.sam_heads, use_rel_pos=True, qkv_bias=True, input_size=(side, side))
    yield Recipe(
        "PatchEmbed",
        lambda c: c((d.patch, d.patch), (d.patch, d.patch), in_chans=3, embed_dim=hidden),
        ours.patch,
        grid,
        (d.b, 3, image, image),
    )
    yield Recipe("Attention", lambda c: c(hidden, **relative), full.attention, grid, square)
    yield Recipe(
        "MLPBlock", lambda c: c(hidden, d.sam_mlp), full.mlp, {"b": d.b, "s": side * side}, (d.b, side * side, hidden)
    )
    yield Recipe("Block", lambda c: c(hidden, **relative, window_size=d.window), windowed, grid, square)
    yield Recipe("LayerNorm2d", lambda c: c(d.neck), ours.neck_norm, grid, (d.b, d.neck, side, side), unseen=True)
    vit = dict(
        depth=d.windowed + d.global_, embed_dim=hidden, img_size=image, num_heads=d.sam_heads, patch_size=d.patch,
        qkv_bias=True, use_rel_pos=True, global_attn_indexes=tuple(range(d.windowed, d.windowed + d.global_)),
        window_size=d.window, out_chans=d.neck,
    )  # fmt: skip
    yield Recipe("ImageEncoderViT", lambda c: c(**vit), ours, grid, (d.b, 3, image, image))
    clip = _clip(d)

    def twice(module: Any, x: torch.Tensor) -> Any:
        return module(x, x)  # pixels, of which only the batch is read, and features

    features = (d.b, width, d.clip_grid, d.clip_grid)
    small = {"b": d.b, "u": d.clip_grid, "v": d.clip_grid}
    yield Recipe(
        "CLIPVisionEmbeddings",
        lambda c: c(width, clip.image_size, d.clip_patch),
        embeddings,
        small,
        features,
        twice,
        unseen=True,
    )
    tokens = (d.b, 257, width)
    yield Recipe("NoTPAttention", lambda c: c(clip), clip_attention, line, tokens)
    yield Recipe("NoTPFeedForward", lambda c: c(clip, dim=width, hidden_dim=d.clip_mlp), block.mlp, line, tokens)
    yield Recipe("NoTPTransformerBlock", lambda c: c(clip, 1), block, line, tokens)
    yield Recipe("NoTPTransformer", lambda c: c(clip), transformer, line, tokens)
    yield Recipe(
        "VitModel", lambda c: c(clip), mm.VitModel(embeddings, mm.LayerNorm(width), transformer), small, features, twice
    )
    inputs = d.downsample[1] + width
    linear = AttributeDict(projector_type="linear", input_dim=inputs, n_embed=d.hidden)
    yield Recipe(
        "MlpProjector",
        lambda c: c(linear),
        mm.MlpProjector("linear", inputs, d.hidden),
        {"b": d.b, "s": 256},
        (d.b, 256, inputs),
    )
    config, text, wide = _decoder(d), {"b": d.b, "s": d.s}, (d.b, d.s, d.hidden)
    yield Recipe("DeepseekV2MLP", lambda c: c(config), mm.DeepseekV2MLP(d.hidden, d.mlp), text, wide)
    yield Recipe("MoEGate", lambda c: c(config), mm.MoEGate(d.hidden, d.experts, d.active), text, wide)
    yield Recipe("DeepseekV2RMSNorm", lambda c: c(d.hidden), mm.DeepseekV2RMSNorm(d.hidden), text, wide, unseen=True)
    yield _mixture()
    mlp = mm.DeepseekV2MLP(d.hidden, d.mlp)
    decoder = mm.DeepseekV2DecoderLayer(attention(d), mlp, mm.DeepseekV2RMSNorm(d.hidden))
    yield Recipe("DeepseekV2DecoderLayer", lambda c: c(config, 0), decoder, text | {"t": d.s}, wide)


def _mixture() -> Recipe:
    """The vendor's mixture routes by the values of its tokens, so it runs on the CPU, at a small size."""
    d = Dims(heads=2, head=16, experts=8, active=3, expert_mlp=24, shared=2, s=11)
    gate, shared = mm.MoEGate(d.hidden, d.experts, d.active), mm.DeepseekV2MLP(d.hidden, d.shared * d.expert_mlp)
    ours = mm.DeepseekV2MoE(gate, d.expert_mlp, shared)
    skip = {
        "cuda_core_flops": "the vendor's mixture sorts tokens by expert",
        "kernel_io_bytes": "experts read depend on the tokens",
    }
    config, sizes = _decoder(d), {"b": d.b, "s": d.s}
    shape = (d.b, d.s, d.hidden)
    return Recipe("DeepseekV2MoE", lambda c: c(config), ours, sizes, shape, device="cpu", skip=skip)
