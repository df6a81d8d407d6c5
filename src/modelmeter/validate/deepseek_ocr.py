"""The reference modules of DeepSeek-OCR: transformers' `unlimited_ocr`, configured as DeepSeek-OCR v1.

It is the same network layer for layer; what differs is named in each case. Sizes are read from our model,
so the same list serves the table at full size and tests at random shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, DynamicCache
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings as ClipEmbeddings
from transformers.models.unlimited_ocr import modeling_unlimited_ocr as ocr
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.vitdet.modeling_vitdet import VitDetLayerNorm

from modelmeter.layers import LlamaFlashAttention2, LlamaRotaryEmbedding, RotaryEmbedding, Sequence
from modelmeter.validate.case import UNSEEN, Case, Row

OVERRIDES = ("tower.clip.projections=split", "decoder.gate_up=merged", "decoder.rotary=model")
"""Overrides under which our model has transformers' kernels."""
MIXTURE_IO = {"kernel_io_bytes": "batched_mm gathers one copy of an expert's weights for each token"}


@dataclass(frozen=True)
class At:
    """Workload of the layers: b images of u x v patches, b sequences of s tokens, `past` more in the cache."""

    b: int = 1
    u: int = 64
    v: int = 64
    s: int = 512
    past: int = 0


@lru_cache(maxsize=8)
def config(tower: Any, decoder: Any, attention: str = "sdpa", experts: str = "batched_mm") -> Any:
    """The configuration under which unlimited_ocr has our tower and decoder (no sliding window)."""
    vision_config = {"sam_config": _sam(tower.sam), "encoder_config": _clip(tower.clip)}
    made = UnlimitedOcrConfig(text_config=_text(decoder), vision_config=vision_config)
    vision = made.vision_config
    for part in (made, made.text_config, vision, vision.sam_config, vision.encoder_config):
        part._attn_implementation, part._experts_implementation = attention, experts
    return made


def inner(repeats: Any) -> tuple[Any, Any]:
    """The two layers that are repeated: SAM's windowed and global block, the decoder's dense layer and mixture."""
    first, second = (repeat.layer for repeat in repeats)
    return first, second


def _text(decoder: Any) -> dict[str, Any]:
    dense, moe = inner(decoder.layers)
    attention, mixture = dense.attention, moe.mlp
    many = sum(repeat.l for repeat in decoder.layers)
    return dict(
        num_hidden_layers=many, layer_types=["full_attention"] * many, max_position_embeddings=decoder.positions,
        first_k_dense_replace=decoder.layers[0].l, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        hidden_size=attention.d, num_attention_heads=attention.g * attention.r, num_key_value_heads=attention.g,
        intermediate_size=dense.mlp.f, n_routed_experts=mixture.gate.E, num_experts_per_tok=mixture.gate.k,
        moe_intermediate_size=mixture.f, n_shared_experts=mixture.shared.f // mixture.f,
        vocab_size=decoder.embedding.V,
    )  # fmt: skip


def _sam(sam: Any) -> dict[str, Any]:
    windowed, full = inner(sam.blocks)
    first, others = (repeat.l for repeat in sam.blocks)
    return dict(
        hidden_size=full.d, num_attention_heads=full.attention.h, mlp_dim=full.mlp.f, patch_size=sam.patch.p,
        image_size=sam.patch.p * sam.U, window_size=windowed.w, num_hidden_layers=first + others,
        global_attn_indexes=list(range(first, first + others)), output_channels=sam.neck_norm.c,
        downsample_channels=[conv.o for conv in sam.downsample],
    )  # fmt: skip


def _clip(clip: Any) -> dict[str, Any]:
    block, patch = clip.transformer.block, clip.embeddings.patch.p
    return dict(
        hidden_size=clip.d, num_attention_heads=block.attention.h, intermediate_size=block.mlp.f,
        num_hidden_layers=clip.transformer.l, patch_size=patch, image_size=patch * _side(clip),
    )  # fmt: skip


def _side(clip: Any) -> int:
    """Patches of one side of CLIP's stored positions, the class token apart."""
    return round((clip.embeddings.n - 1) ** 0.5)


def experts_here(tower: Any, decoder: Any) -> Any:
    """The configuration for torch's default device: real experts run grouped, without copies of weights
    for each token; on meta the counter would not see them so."""
    experts = "batched_mm" if torch.get_default_device().type == "meta" else "grouped_mm"
    return config(tower, decoder, experts=experts)


class LayerNormWrittenOut(nn.Module):
    """Layer normalisation as its paper writes it, operator by operator, so that each can be counted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight + self.bias


def no_patch(model: Any) -> dict[str, tuple[int, str]]:
    """Parameters that the checkpoint has and transformers has not."""
    stored = model.tower.clip.embeddings.patch.cost(b=1, u=1, v=1).parameters
    return {"parameters": (-stored, "transformers drops CLIP's unused patch convolution")}


def two_norms(model: Any, pixels: int) -> dict[str, tuple[int, str]]:
    """The neck's two norms subtract the mean once in transformers, twice in the vendor's code."""
    fewer = -2 * model.tower.sam.neck_norm.c * pixels
    return {"cuda_core_flops": (fewer, "transformers' LayerNorm2d subtracts the mean once")}


def layer_cases(model: Any, at: At = At(), dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    """One case for every layer class."""
    c = config(model.tower, model.decoder)
    for group, rows in (
        ("vision", _sam_rows(model, at, c.vision_config.sam_config)),
        ("vision", _clip_rows(model, at, c.vision_config.encoder_config)),
        ("vision", _projector_rows(model.projector, at)),
        ("decoder", _text_rows(model, at, c.text_config)),
        ("llama", _attention_rows(model.decoder, at, c.text_config)),
        ("decoder", _decoder_rows(model, at, c.text_config)),
        ("llama", _rotary_rows(model.decoder, at, c.text_config)),
    ):
        yield from (row.case(group, dtype) for row in rows)


def _sam_rows(model: Any, at: At, cfg: Any) -> Iterator[Row]:
    sam, (windowed, full) = model.tower.sam, inner(model.tower.sam.blocks)
    d, w, neck, down = full.d, windowed.w, sam.neck_norm, sam.downsample[0]
    grid, tokens, edges = (
        {"b": at.b, "u": at.u, "v": at.v},
        {"b": at.b, "s": at.u * at.v},
        {"b": at.b, "i": at.u, "j": at.v},
    )
    many, known = at.b * -(-at.u // w) * -(-at.v // w), {"known": two_norms(model, at.b * at.u * at.v)}
    windows, features, line = {"b": many, "u": w, "v": w}, (at.b, at.u, at.v, d), (at.b, at.u * at.v, d)
    pixels, channels = (at.b, 3, at.u * sam.patch.p, at.v * sam.patch.p), (at.b, neck.c, at.u, at.v)
    vit = ocr.UnlimitedOcrSamVisionLayer, "SamVisionLayer"
    sdpa = ocr.UnlimitedOcrSamVisionSdpaAttention, "SamVisionSdpaAttention"
    yield from (
        Row("PatchEmbed", lambda: ocr.UnlimitedOcrSamPatchEmbeddings(cfg), sam.patch, grid, pixels, "SamPatchEmbeddings"),
        Row("Attention (global)", lambda: sdpa[0](cfg, 0), full.attention, grid, features, sdpa[1]),
        Row("Attention (window)", lambda: sdpa[0](cfg, w), windowed.attention, windows, (many, w, w, d), sdpa[1]),
        Row("MLPBlock", lambda: ocr.UnlimitedOcrSamMLPBlock(cfg), full.mlp, tokens, line, "SamMLPBlock"),
        Row("Block (global)", lambda: vit[0](cfg, 0), full, grid, features, vit[1]),
        Row("Block (window)", lambda: vit[0](cfg, w), windowed, grid, features, vit[1]),
        Row("LayerNorm", lambda: LayerNormWrittenOut(d), full.norm, tokens, line, "LayerNorm written out", more=UNSEEN),
        Row("LayerNorm2d", lambda: VitDetLayerNorm(neck.c), neck, grid, channels, "VitDetLayerNorm", more=UNSEEN),
        Row("Conv2d", lambda: nn.Conv2d(down.c, down.o, 3, 2, 1, bias=False), down, edges, channels, "torch.nn.Conv2d"),
        Row("ImageEncoderViT", lambda: ocr.UnlimitedOcrSamVisionEncoder(cfg), sam, grid, pixels, "SamVisionEncoder", more=known),
    )  # fmt: skip


def _clip_rows(model: Any, at: At, cfg: Any) -> Iterator[Row]:
    clip, side = model.tower.clip, _side(model.tower.clip)
    block, table, d, known = clip.transformer.block, clip.embeddings, clip.d, {"known": no_patch(model)}
    own, convolved = CLIPVisionConfig(**_clip(clip)), replace(table, own_patches=True)
    patches, pixels = {"b": at.b, "u": side, "v": side}, (at.b, 3, *2 * (table.patch.p * side,))
    u, v = -(-at.u // 4), -(-at.v // 4)
    grid, features = {"b": at.b, "u": u, "v": v}, (at.b, d, u, v)
    line, tokens, alone = {"b": at.b, "s": u * v + 1}, (at.b, u * v + 1, d), {"run": lambda module, x: module(x, None)}
    yield from (
        Row("CLIPVisionEmbeddings (conv)", lambda: ClipEmbeddings(own), convolved, patches, pixels, "CLIPVisionEmbeddings"),
        Row("CLIPVisionEmbeddings", lambda: ocr.UnlimitedOcrVisionEmbeddings(cfg), table, grid, features,
            "VisionEmbeddings", more=known | UNSEEN),
        Row("NoTPAttention", lambda: ocr.UnlimitedOcrAttention(cfg), block.attention, line, tokens, "Attention"),
        Row("NoTPFeedForward", lambda: ocr.UnlimitedOcrMLP(cfg), block.mlp, line, tokens, "MLP"),
        Row("NoTPTransformerBlock", lambda: ocr.UnlimitedOcrEncoderLayer(cfg), block, line, tokens, "EncoderLayer", more=alone),
        Row("NoTPTransformer", lambda: ocr.UnlimitedOcrEncoder(cfg), clip.transformer, line, tokens, "Encoder"),
        Row("VitModel", lambda: ocr.UnlimitedOcrVisionEncoder(cfg), clip, grid, features, "VisionEncoder", more=known),
    )  # fmt: skip


def _projector_rows(linear: Any, at: At, depth: int = 3) -> Iterator[Row]:
    s, deep = -(-at.u // 4) * -(-at.v // 4), replace(linear, kind="mlp_gelu", depth=depth)
    place, shape = {"b": at.b, "s": s}, (at.b, s, linear.c)

    def stacked() -> nn.Module:
        others = (part for _ in range(depth - 1) for part in (nn.GELU(), nn.Linear(linear.d, linear.d)))
        return nn.Sequential(nn.Linear(linear.c, linear.d), *others)

    yield from (
        Row("MlpProjector (linear)", lambda: nn.Linear(linear.c, linear.d), linear, place, shape, "multi_modal_projector"),
        Row("MlpProjector (mlp_gelu)", stacked, deep, place, shape, "torch.nn.Sequential"),
    )  # fmt: skip


def _text_rows(model: Any, at: At, cfg: Any) -> Iterator[Row]:
    decoder, (dense, moe) = model.decoder, inner(model.decoder.layers)
    d, shared, vocabulary = decoder.d, moe.mlp.shared, decoder.head.V
    place = ({"b": at.b, "s": at.s}, (at.b, at.s, d))
    both = Sequence((decoder.embedding, decoder.head))  # a lookup alone has nothing that a counter could see

    def head() -> nn.Module:
        return nn.Linear(d, vocabulary, bias=False)

    yield from (
        Row("DeepseekV2MLP", lambda: ocr.UnlimitedOcrTextMLP(cfg, intermediate_size=shared.f), shared, *place, "TextMLP"),
        Row("MoEGate", lambda: ocr.UnlimitedOcrTextTopkRouter(cfg), moe.mlp.gate, *place, "TextTopkRouter"),
        Row("DeepseekV2MoE", lambda: ocr.UnlimitedOcrTextMoe(experts_here(model.tower, model.decoder).text_config), moe.mlp, *place, "TextMoe",
            more={"skip": MIXTURE_IO}),
        Row("DeepseekV2RMSNorm", lambda: ocr.UnlimitedOcrTextRMSNorm(d), dense.norm, *place, "TextRMSNorm", more=UNSEEN),
        Row("TokenEmbedding", lambda: nn.Sequential(nn.Embedding(vocabulary, d), head()), both, *place,
            "torch.nn.Linear after torch.nn.Embedding", _positions(at), {"run": lambda m, x, ids: m(ids)}),
        Row("LMHead", head, decoder.head, *place, "lm_head"),
    )  # fmt: skip


def _cached_rows(
    decoder: Any, at: At, *rows: tuple[str, str, Callable[[], nn.Module], Any, dict[str, str]]
) -> Iterator[Row]:
    """Attention or decoder layers (name, reference, module, ours, what is not compared), with `past` tokens in the cache."""
    attention, t = inner(decoder.layers)[0].attention, at.past + at.s
    chunked = at.past > 0 and at.s > 1  # transformers then needs a mask, or it drops the cache from the product
    masked = {"kernel_io_bytes": "with a mask transformers reads it and copies grouped KV heads"} if chunked else {}

    def others(dtype: torch.dtype) -> tuple[Any, ...]:
        cos, sin = (torch.randn(at.b, at.s, attention.e, dtype=dtype) for _ in "cs")
        return (cos, sin), *(torch.randn(at.b, attention.g, at.past, attention.e, dtype=dtype) for _ in "kv")

    def run(module: Any, x: Any, table: Any, k: Any, v: Any) -> Any:
        mask = torch.ones(1, 1, at.s, t, dtype=torch.bool, device=x.device) if chunked else None
        return module(x, position_embeddings=table, past_key_values=cached(k, v, 2), attention_mask=mask)

    for name, reference, make, ours, skip in rows:
        more = {"run": run, "skip": masked | skip}
        yield Row(name, make, ours, {"b": at.b, "s": at.s, "t": t}, (at.b, at.s, decoder.d), reference, others, more)


def _attention_rows(decoder: Any, at: At, cfg: Any) -> Iterator[Row]:
    attention = inner(decoder.layers)[0].attention
    flash = LlamaFlashAttention2(attention.d, attention.g, attention.r, attention.e)
    theirs = "TextAttention", lambda: ocr.UnlimitedOcrTextAttention(cfg, 0)
    return _cached_rows(
        decoder, at, ("LlamaAttention", *theirs, attention, {}), ("LlamaFlashAttention2", *theirs, flash, {})
    )


def _decoder_rows(model: Any, at: At, cfg: Any) -> Iterator[Row]:
    (dense, moe), first = inner(model.decoder.layers), model.decoder.layers[0].l
    layer, name = ocr.UnlimitedOcrTextDecoderLayer, "DeepseekV2DecoderLayer"
    return _cached_rows(
        model.decoder, at,
        (f"{name} (dense)", "TextDecoderLayer", lambda: layer(cfg, 0), dense, {}),
        (f"{name} (moe)", "TextDecoderLayer", lambda: layer(experts_here(model.tower, model.decoder).text_config, first), moe, MIXTURE_IO),
    )  # fmt: skip


def cached(k: torch.Tensor, v: torch.Tensor, layers: int) -> DynamicCache:
    """A cache that holds these keys and values in each layer."""
    cache = DynamicCache()
    for layer in range(layers) if k.numel() else ():
        cache.update(k, v, layer)
    return cache


def _rotary_rows(decoder: Any, at: At, cfg: Any) -> Iterator[Row]:
    e, text, shape = inner(decoder.layers)[0].attention.e, {"b": at.b, "s": at.s}, (at.b, at.s, decoder.d)
    name, positions = "LlamaRotaryEmbedding", _positions(at)
    yield from (
        Row(f"{name} (transformers)", lambda: ocr.UnlimitedOcrTextRotaryEmbedding(cfg), RotaryEmbedding(e), text, shape,
            "TextRotaryEmbedding", positions, UNSEEN),
        Row(f"{name} (vendor)", nn.Identity, LlamaRotaryEmbedding(e), text, (e // 2,), "inv_freq @ positions", positions,
            {"run": _vendor_rotary}),
    )  # fmt: skip


def _positions(at: At) -> Callable[[torch.dtype], tuple[torch.Tensor]]:
    """Further inputs of a row: positions, or ids."""
    return lambda dtype: (torch.zeros(at.b, at.s, dtype=torch.long),)


def _vendor_rotary(module: nn.Module, inv_freq: torch.Tensor, positions: torch.Tensor) -> Any:
    """The published form: frequencies x positions as a batched matmul, then cos, sin and scaling."""
    left = inv_freq[None, :, None].float().expand(positions.shape[0], -1, 1)
    angles = (left @ positions[:, None, :].float()).transpose(1, 2)
    table = torch.cat((angles, angles), dim=-1)
    return (table.cos() * 1.0).bfloat16(), (table.sin() * 1.0).bfloat16()
