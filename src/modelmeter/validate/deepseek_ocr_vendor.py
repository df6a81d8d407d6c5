"""How to construct the vendor's classes of DeepSeek-OCR.

Vendor: deepencoder/*.py (GitHub) or deepencoder.py (Hugging Face), modeling_deepseekv2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from modelmeter.layers import DeepseekV2MLP, DeepseekV2MoE, MoEGate
from modelmeter.validate.case import Case, LayerAt, like
from modelmeter.validate.deepseek_ocr import At, clip_numbers, inner, layer_cases, text_numbers
from modelmeter.validate.sam import sam_numbers
from modelmeter.validate.vendor import AttributeDict

TWICE = ("CLIPVisionEmbeddings", "VitModel")
"""Modules that take pixels, of which only the batch is read, and features."""


def vendor_cases(model: Any) -> Iterator[Case]:
    """The cases of our layers, each with a `make` that takes the vendor's class, at the sizes of one page."""
    side, linear = model.tower.sam.U, model.projector
    projector = AttributeDict(projector_type="linear", input_dim=linear.c, n_embed=linear.d)
    makes = _sam(model.tower.sam) | _clip(model.tower.clip) | {"MlpProjector (linear)": lambda c: c(projector)}
    ours = {case.layer: case for case in layer_cases(model, At(u=side, v=side))}
    for name, make in (makes | _decoder(model.decoder)).items():
        case = ours[name]
        given = case.inputs[:1] * (2 if name in TWICE else 1)
        yield Case("vendor", name.partition(" (")[0], case.ours, make, given, unseen=case.unseen)
    yield _mixture(model.decoder)


def _sam(sam: Any) -> dict[str, Any]:
    known, mlp, p = sam_numbers(sam), inner(sam.blocks)[1].mlp.f, sam.patch.p
    d, side, window = known["hidden_size"], sam.U, known["window_size"]
    shared = dict(num_heads=known["num_attention_heads"], use_rel_pos=True, qkv_bias=True)
    relative = dict(shared, input_size=(side, side))
    vit = dict(
        shared, depth=known["num_hidden_layers"], embed_dim=d, img_size=known["image_size"], patch_size=p,
        global_attn_indexes=tuple(known["global_attn_indexes"]), window_size=window, out_chans=known["output_channels"],
    )  # fmt: skip
    return {
        "PatchEmbed": lambda c: c((p, p), (p, p), in_chans=3, embed_dim=d),
        "Attention (global)": lambda c: c(d, **relative),
        "MLPBlock": lambda c: c(d, mlp),
        "Block (window)": lambda c: c(d, **relative, window_size=window),
        "LayerNorm2d": lambda c: c(sam.neck_norm.c),
        "ImageEncoderViT": lambda c: c(**vit),
    }


def _clip(clip: Any) -> dict[str, Any]:
    known, patches = clip_numbers(clip), clip.embeddings.n - 1
    d, heads, mlp = known["hidden_size"], known["num_attention_heads"], known["intermediate_size"]
    cfg = AttributeDict(
        known, num_layers=known["num_hidden_layers"], num_heads=heads, ffn_hidden_size=mlp, seq_length=patches,
        max_position_embeddings=patches, use_flash_attn=False, attention_dropout=0.0, hidden_dropout=0.0,
        layernorm_epsilon=1e-5, pre_layernorm_epsilon=1e-5,
    )  # fmt: skip
    return {
        "CLIPVisionEmbeddings": lambda c: c(d, known["image_size"], known["patch_size"]),
        "NoTPAttention": lambda c: c(cfg),
        "NoTPFeedForward": lambda c: c(cfg, dim=d, hidden_dim=mlp),
        "NoTPTransformerBlock": lambda c: c(cfg, 1),
        "NoTPTransformer": lambda c: c(cfg),
        "VitModel": lambda c: c(cfg),
    }


def _config(decoder: Any, **others: int) -> Any:
    return SimpleNamespace(**text_numbers(decoder) | others | dict(
        hidden_act="silu", routed_scaling_factor=1.0, scoring_func="softmax", topk_method="greedy", n_group=1,
        topk_group=1, norm_topk_prob=False, aux_loss_alpha=0.001, seq_aux=True, rms_norm_eps=1e-6, ep_size=1,
        pretraining_tp=1,
    ))  # fmt: skip


def _decoder(decoder: Any) -> dict[str, Any]:
    (dense, moe), cfg = inner(decoder.layers), _config(decoder)
    return {
        "DeepseekV2MLP": lambda c: c(cfg, intermediate_size=moe.mlp.shared.f),
        "MoEGate": lambda c: c(cfg),
        "DeepseekV2RMSNorm": lambda c: c(dense.d),
        "DeepseekV2DecoderLayer (dense)": lambda c: c(cfg, 0),
    }


def _mixture(decoder: Any, tokens: int = 11) -> Case:
    """The vendor's mixture routes by the values of its tokens, so it runs on the CPU, at a small size."""
    small = dict(
        hidden_size=32, moe_intermediate_size=24, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2
    )
    ours, cfg = DeepseekV2MoE(MoEGate(32, 8, 3), 24, DeepseekV2MLP(32, 48)), _config(decoder, **small)
    skip = {
        "cuda_core_flops": "the vendor's mixture sorts tokens by expert",
        "kernel_io_bytes": "experts read depend on the tokens",
    }
    given = (like(1, tokens, 32),)
    at = LayerAt(ours, {"b": 1, "s": tokens})
    return Case("vendor", "DeepseekV2MoE", at, lambda c: c(cfg), given, skip=skip, device="cpu")
