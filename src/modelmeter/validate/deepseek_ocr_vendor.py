"""How to construct the vendor's classes of DeepSeek-OCR, each beside our layer for it.

Vendor: deepencoder/*.py (GitHub) or deepencoder.py (Hugging Face), modeling_deepseekv2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from modelmeter.layers import DeepseekV2MLP, DeepseekV2MoE, MoEGate
from modelmeter.validate.case import UNSEEN, Row
from modelmeter.validate.deepseek_ocr import inner
from modelmeter.validate.vendor import AttributeDict

BATCH, TOKENS = 1, 512
"""Images or sequences, and tokens of the decoder."""


def vendor_rows(model: Any) -> Iterator[Row]:
    """How to construct each vendor class, and our layer for it."""
    yield from _sam_rows(model.tower.sam)
    yield from _clip_rows(model.tower.clip)
    yield _projector_row(model.projector)
    yield from _decoder_rows(*inner(model.decoder.layers))
    yield _mixture_row()


def _sam_rows(sam: Any) -> Iterator[Row]:
    (windowed, full), side, p = inner(sam.blocks), sam.U, sam.patch.p
    hidden, heads, many = full.d, full.attention.h, [repeat.l for repeat in sam.blocks]
    relative = dict(num_heads=heads, use_rel_pos=True, qkv_bias=True, input_size=(side, side))
    vit = dict(
        depth=sum(many), embed_dim=hidden, img_size=side * p, num_heads=heads, patch_size=p, qkv_bias=True,
        use_rel_pos=True, global_attn_indexes=tuple(range(many[0], sum(many))), window_size=windowed.w,
        out_chans=sam.neck_norm.c,
    )  # fmt: skip
    grid, line = {"b": BATCH, "u": side, "v": side}, {"b": BATCH, "s": side * side}
    square, image, channels = (
        (BATCH, side, side, hidden),
        (BATCH, 3, *2 * (side * p,)),
        (BATCH, sam.neck_norm.c, side, side),
    )
    yield from (
        Row("PatchEmbed", lambda c: c((p, p), (p, p), in_chans=3, embed_dim=hidden), sam.patch, grid, image),
        Row("Attention", lambda c: c(hidden, **relative), full.attention, grid, square),
        Row("MLPBlock", lambda c: c(hidden, full.mlp.f), full.mlp, line, (BATCH, side * side, hidden)),
        Row("Block", lambda c: c(hidden, **relative, window_size=windowed.w), windowed, grid, square),
        Row("LayerNorm2d", lambda c: c(sam.neck_norm.c), sam.neck_norm, grid, channels, more=UNSEEN),
        Row("ImageEncoderViT", lambda c: c(**vit), sam, grid, image),
    )  # fmt: skip


def _clip_rows(clip: Any) -> Iterator[Row]:
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
    twice = {"run": lambda module, x: module(x, x)}  # pixels, of which only the batch is read, and features
    embeddings = ("CLIPVisionEmbeddings", lambda c: c(d, p * side, p), table, grid, features)
    yield from (
        Row(*embeddings, more=UNSEEN | twice),
        Row("NoTPAttention", lambda c: c(cfg), block.attention, line, wide),
        Row("NoTPFeedForward", lambda c: c(cfg, dim=d, hidden_dim=block.mlp.f), block.mlp, line, wide),
        Row("NoTPTransformerBlock", lambda c: c(cfg, 1), block, line, wide),
        Row("NoTPTransformer", lambda c: c(cfg), clip.transformer, line, wide),
        Row("VitModel", lambda c: c(cfg), clip, grid, features, more=twice),
    )  # fmt: skip


def _projector_row(linear: Any, tokens: int = 256) -> Row:
    cfg = AttributeDict(projector_type="linear", input_dim=linear.c, n_embed=linear.d)
    return Row("MlpProjector", lambda c: c(cfg), linear, {"b": BATCH, "s": tokens}, (BATCH, tokens, linear.c))


def _decoder_config(mixture: Any, heads: int, kv_heads: int, intermediate: int) -> Any:
    return SimpleNamespace(
        hidden_size=mixture.d, intermediate_size=intermediate, moe_intermediate_size=mixture.f, hidden_act="silu",
        num_attention_heads=heads, num_key_value_heads=kv_heads, n_routed_experts=mixture.gate.E,
        num_experts_per_tok=mixture.gate.k, n_shared_experts=mixture.shared.f // mixture.f, routed_scaling_factor=1.0,
        scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False,
        aux_loss_alpha=0.001, seq_aux=True, rms_norm_eps=1e-6, ep_size=1, pretraining_tp=1,
    )  # fmt: skip


def _decoder_rows(dense: Any, moe: Any) -> Iterator[Row]:
    attention, d = dense.attention, dense.d
    cfg = _decoder_config(moe.mlp, attention.g * attention.r, attention.g, dense.mlp.f)
    text, wide = {"b": BATCH, "s": TOKENS}, (BATCH, TOKENS, d)
    yield from (
        Row("DeepseekV2MLP", lambda c: c(cfg), dense.mlp, text, wide),
        Row("MoEGate", lambda c: c(cfg), moe.mlp.gate, text, wide),
        Row("DeepseekV2RMSNorm", lambda c: c(d), dense.norm, text, wide, more=UNSEEN),
        Row("DeepseekV2DecoderLayer", lambda c: c(cfg, 0), dense, text | {"t": TOKENS}, wide),
    )  # fmt: skip


def _mixture_row(tokens: int = 11) -> Row:
    """The vendor's mixture routes by the values of its tokens, so it runs on the CPU, at a small size."""
    ours = DeepseekV2MoE(MoEGate(32, 8, 3), 24, DeepseekV2MLP(32, 48))
    skip = {
        "cuda_core_flops": "the vendor's mixture sorts tokens by expert",
        "kernel_io_bytes": "experts read depend on the tokens",
    }
    cfg, sizes, shape = _decoder_config(ours, 2, 2, 48), {"b": BATCH, "s": tokens}, (BATCH, tokens, ours.d)
    return Row("DeepseekV2MoE", lambda c: c(cfg), ours, sizes, shape, more={"device": "cpu", "skip": skip})
