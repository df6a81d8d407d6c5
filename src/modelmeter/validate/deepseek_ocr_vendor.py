"""How to construct the vendor's classes of DeepSeek-OCR, each beside our layer for it.

Vendor: deepencoder/*.py (GitHub) or deepencoder.py (Hugging Face), modeling_deepseekv2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from modelmeter.layers import DeepseekV2MLP, DeepseekV2MoE, MoEGate
from modelmeter.validate.deepseek_ocr import inner
from modelmeter.validate.vendor import AttributeDict, Recipe

BATCH, TOKENS = 1, 512
"""Images or sequences, and tokens of the decoder."""


def recipes(model: Any) -> Iterator[Recipe]:
    """How to construct each vendor class, and our layer for it."""
    yield from _sam_recipes(model.tower.sam)
    yield from _clip_recipes(model.tower.clip)
    yield _projector_recipe(model.projector)
    yield from _decoder_recipes(*inner(model.decoder.layers))
    yield _mixture_recipe()


def _sam_recipes(sam: Any) -> Iterator[Recipe]:
    (windowed, full), side, p = inner(sam.blocks), sam.U, sam.patch.p
    hidden, heads, many = full.d, full.attention.h, [repeat.l for repeat in sam.blocks]
    relative = dict(num_heads=heads, use_rel_pos=True, qkv_bias=True, input_size=(side, side))
    vit = dict(
        depth=sum(many), embed_dim=hidden, img_size=side * p, num_heads=heads, patch_size=p, qkv_bias=True,
        use_rel_pos=True, global_attn_indexes=tuple(range(many[0], sum(many))), window_size=windowed.w,
        out_chans=sam.neck_norm.c,
    )  # fmt: skip
    grid, square, image = (
        {"b": BATCH, "u": side, "v": side},
        (BATCH, side, side, hidden),
        (BATCH, 3, side * p, side * p),
    )
    line, channels = {"b": BATCH, "s": side * side}, (BATCH, sam.neck_norm.c, side, side)
    yield Recipe("PatchEmbed", lambda c: c((p, p), (p, p), in_chans=3, embed_dim=hidden), sam.patch, grid, image)
    yield Recipe("Attention", lambda c: c(hidden, **relative), full.attention, grid, square)
    yield Recipe("MLPBlock", lambda c: c(hidden, full.mlp.f), full.mlp, line, (BATCH, side * side, hidden))
    yield Recipe("Block", lambda c: c(hidden, **relative, window_size=windowed.w), windowed, grid, square)
    yield Recipe("LayerNorm2d", lambda c: c(sam.neck_norm.c), sam.neck_norm, grid, channels, unseen=True)
    yield Recipe("ImageEncoderViT", lambda c: c(**vit), sam, grid, image)


def _twice(module: Any, x: torch.Tensor) -> Any:
    """A module that takes pixels, of which only the batch is read, and features."""
    return module(x, x)


def _clip_recipes(clip: Any) -> Iterator[Recipe]:
    d, table, block = clip.d, clip.embeddings, clip.transformer.block
    tokens, side, p = table.n, round((table.n - 1) ** 0.5), table.patch.p
    cfg = AttributeDict(
        num_layers=clip.transformer.l, hidden_size=d, num_heads=block.attention.h, num_attention_heads=block.attention.h,
        ffn_hidden_size=block.mlp.f, seq_length=tokens - 1, max_position_embeddings=tokens - 1, use_flash_attn=False,
        attention_dropout=0.0, hidden_dropout=0.0, layernorm_epsilon=1e-5, pre_layernorm_epsilon=1e-5,
        image_size=p * side, patch_size=p,
    )  # fmt: skip
    grid, features = {"b": BATCH, "u": side, "v": side}, (BATCH, d, side, side)
    line, wide = {"b": BATCH, "s": tokens}, (BATCH, tokens, d)
    embeddings = ("CLIPVisionEmbeddings", lambda c: c(d, p * side, p), table, grid, features)
    yield Recipe(*embeddings, call=_twice, unseen=True)
    yield Recipe("NoTPAttention", lambda c: c(cfg), block.attention, line, wide)
    yield Recipe("NoTPFeedForward", lambda c: c(cfg, dim=d, hidden_dim=block.mlp.f), block.mlp, line, wide)
    yield Recipe("NoTPTransformerBlock", lambda c: c(cfg, 1), block, line, wide)
    yield Recipe("NoTPTransformer", lambda c: c(cfg), clip.transformer, line, wide)
    yield Recipe("VitModel", lambda c: c(cfg), clip, grid, features, call=_twice)


def _projector_recipe(linear: Any, tokens: int = 256) -> Recipe:
    cfg = AttributeDict(projector_type="linear", input_dim=linear.c, n_embed=linear.d)
    return Recipe("MlpProjector", lambda c: c(cfg), linear, {"b": BATCH, "s": tokens}, (BATCH, tokens, linear.c))


def _decoder_config(mixture: Any, heads: int, kv_heads: int, intermediate: int) -> Any:
    return SimpleNamespace(
        hidden_size=mixture.d, intermediate_size=intermediate, moe_intermediate_size=mixture.f, hidden_act="silu",
        num_attention_heads=heads, num_key_value_heads=kv_heads, n_routed_experts=mixture.gate.E,
        num_experts_per_tok=mixture.gate.k, n_shared_experts=mixture.shared.f // mixture.f, routed_scaling_factor=1.0,
        scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False,
        aux_loss_alpha=0.001, seq_aux=True, rms_norm_eps=1e-6, ep_size=1, pretraining_tp=1,
    )  # fmt: skip


def _decoder_recipes(dense: Any, moe: Any) -> Iterator[Recipe]:
    attention, d = dense.attention, dense.d
    cfg = _decoder_config(moe.mlp, attention.g * attention.r, attention.g, dense.mlp.f)
    text, wide = {"b": BATCH, "s": TOKENS}, (BATCH, TOKENS, d)
    yield Recipe("DeepseekV2MLP", lambda c: c(cfg), dense.mlp, text, wide)
    yield Recipe("MoEGate", lambda c: c(cfg), moe.mlp.gate, text, wide)
    yield Recipe("DeepseekV2RMSNorm", lambda c: c(d), dense.norm, text, wide, unseen=True)
    yield Recipe("DeepseekV2DecoderLayer", lambda c: c(cfg, 0), dense, text | {"t": TOKENS}, wide)


def _mixture_recipe(tokens: int = 11) -> Recipe:
    """The vendor's mixture routes by the values of its tokens, so it runs on the CPU, at a small size."""
    ours = DeepseekV2MoE(MoEGate(32, 8, 3), 24, DeepseekV2MLP(32, 48))
    skip = {
        "cuda_core_flops": "the vendor's mixture sorts tokens by expert",
        "kernel_io_bytes": "experts read depend on the tokens",
    }
    cfg, sizes, shape = _decoder_config(ours, 2, 2, 48), {"b": BATCH, "s": tokens}, (BATCH, tokens, ours.d)
    return Recipe("DeepseekV2MoE", lambda c: c(cfg), ours, sizes, shape, device="cpu", skip=skip)
