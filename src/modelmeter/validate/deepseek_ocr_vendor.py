"""How to construct the vendor's classes of DeepSeek-OCR.

Vendor: deepencoder/*.py (GitHub) or deepencoder.py (Hugging Face), modeling_deepseekv2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from modelmeter.layers import DeepseekV2MLP, DeepseekV2MoE, MoEGate
from modelmeter.validate.case import Case, LayerAt, like
from modelmeter.validate.deepseek_ocr import At, inner, layer_cases
from modelmeter.validate.vendor import AttributeDict

TWICE = ("CLIPVisionEmbeddings", "VitModel")
"""Modules that take pixels, of which only the batch is read, and features."""


def vendor_cases(model: Any) -> Iterator[Case]:
    """The cases of our layers, each with a `make` that takes the vendor's class, at the sizes of one page."""
    side, linear = model.tower.sam.U, model.projector
    projector = AttributeDict(projector_type="linear", input_dim=linear.c, n_embed=linear.d)
    makes = _sam(model.tower.sam) | _clip(model.tower.clip) | {"MlpProjector (linear)": lambda c: c(projector)}
    makes |= _decoder(*inner(model.decoder.layers))
    ours = {case.layer: case for case in layer_cases(model, At(u=side, v=side))}
    for name, make in makes.items():
        case = ours[name]
        given = case.inputs[:1] * (2 if name in TWICE else 1)
        yield Case("vendor", name.partition(" (")[0], case.ours, make, given, unseen=case.unseen)
    yield _mixture()


def _sam(sam: Any) -> dict[str, Any]:
    (windowed, full), side, p = inner(sam.blocks), sam.U, sam.patch.p
    hidden, heads, many = full.d, full.attention.h, [repeat.l for repeat in sam.blocks]
    relative = dict(num_heads=heads, use_rel_pos=True, qkv_bias=True, input_size=(side, side))
    vit = dict(
        depth=sum(many), embed_dim=hidden, img_size=side * p, num_heads=heads, patch_size=p, qkv_bias=True,
        use_rel_pos=True, global_attn_indexes=tuple(range(many[0], sum(many))), window_size=windowed.w,
        out_chans=sam.neck_norm.c,
    )  # fmt: skip
    return {
        "PatchEmbed": lambda c: c((p, p), (p, p), in_chans=3, embed_dim=hidden),
        "Attention (global)": lambda c: c(hidden, **relative),
        "MLPBlock": lambda c: c(hidden, full.mlp.f),
        "Block (window)": lambda c: c(hidden, **relative, window_size=windowed.w),
        "LayerNorm2d": lambda c: c(sam.neck_norm.c),
        "ImageEncoderViT": lambda c: c(**vit),
    }


def _clip(clip: Any) -> dict[str, Any]:
    d, block, tokens, p = clip.d, clip.transformer.block, clip.embeddings.n, clip.embeddings.patch.p
    pixels = p * round((tokens - 1) ** 0.5)
    cfg = AttributeDict(
        num_layers=clip.transformer.l, hidden_size=d, num_heads=block.attention.h, num_attention_heads=block.attention.h,
        ffn_hidden_size=block.mlp.f, seq_length=tokens - 1, max_position_embeddings=tokens - 1, use_flash_attn=False,
        attention_dropout=0.0, hidden_dropout=0.0, layernorm_epsilon=1e-5, pre_layernorm_epsilon=1e-5,
        image_size=pixels, patch_size=p,
    )  # fmt: skip
    return {
        "CLIPVisionEmbeddings": lambda c: c(d, pixels, p),
        "NoTPAttention": lambda c: c(cfg),
        "NoTPFeedForward": lambda c: c(cfg, dim=d, hidden_dim=block.mlp.f),
        "NoTPTransformerBlock": lambda c: c(cfg, 1),
        "NoTPTransformer": lambda c: c(cfg),
        "VitModel": lambda c: c(cfg),
    }


def _config(mixture: Any, heads: int, kv_heads: int, intermediate: int) -> Any:
    return SimpleNamespace(
        hidden_size=mixture.d, intermediate_size=intermediate, moe_intermediate_size=mixture.f, hidden_act="silu",
        num_attention_heads=heads, num_key_value_heads=kv_heads, n_routed_experts=mixture.gate.E,
        num_experts_per_tok=mixture.gate.k, n_shared_experts=mixture.shared.f // mixture.f, routed_scaling_factor=1.0,
        scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False,
        aux_loss_alpha=0.001, seq_aux=True, rms_norm_eps=1e-6, ep_size=1, pretraining_tp=1,
    )  # fmt: skip


def _decoder(dense: Any, moe: Any) -> dict[str, Any]:
    attention, mixture = dense.attention, moe.mlp
    cfg = _config(mixture, attention.g * attention.r, attention.g, dense.mlp.f)
    return {
        "DeepseekV2MLP": lambda c: c(cfg, intermediate_size=mixture.shared.f),
        "MoEGate": lambda c: c(cfg),
        "DeepseekV2RMSNorm": lambda c: c(dense.d),
        "DeepseekV2DecoderLayer (dense)": lambda c: c(cfg, 0),
    }


def _mixture(tokens: int = 11) -> Case:
    """The vendor's mixture routes by the values of its tokens, so it runs on the CPU, at a small size."""
    ours = DeepseekV2MoE(MoEGate(32, 8, 3), 24, DeepseekV2MLP(32, 48))
    cfg, at = _config(ours, 2, 2, 48), LayerAt(ours, {"b": 1, "s": tokens})
    skip = {
        "cuda_core_flops": "the vendor's mixture sorts tokens by expert",
        "kernel_io_bytes": "experts read depend on the tokens",
    }
    return Case("vendor", "DeepseekV2MoE", at, lambda c: c(cfg), (like(1, tokens, 32),), skip=skip, device="cpu")
