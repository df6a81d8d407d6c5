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

from modelmeter.layers import (
    BaseLayer,
    LlamaFlashAttention2,
    LlamaRotaryEmbedding,
    RotaryEmbedding,
    Sequence,
)
from modelmeter.validate.case import Case, LayerAt

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


@dataclass(frozen=True)
class _Rows:
    """Makes the cases of a group; `at` a layer's sizes it is given a tensor of `shape`."""

    group: str
    dtype: torch.dtype

    def __call__(
        self, layer: str, reference: str, make: Callable[[], nn.Module], ours: BaseLayer, at: dict[str, int],
        *shape: int, **more: Any,
    ) -> Case:  # fmt: skip
        others = more.pop("others", lambda: ())

        def build() -> tuple[nn.Module, tuple[Any, ...]]:
            return make().to(self.dtype).eval(), (torch.randn(*shape, dtype=self.dtype), *others())

        return Case(self.group, layer, reference, LayerAt(ours, at), more.pop("build", build), **more)


def layer_cases(model: Any, at: At = At(), dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    """One case for every layer class."""
    yield from _sam_cases(model, at, _Rows("vision", dtype))
    yield from _clip_cases(model, at, _Rows("vision", dtype))
    yield from _projector_cases(model, at, _Rows("vision", dtype))
    yield from _text_cases(model, at, _Rows("decoder", dtype))
    yield from _cached_cases(model, at, dtype)
    yield from _rotary_cases(model, at, dtype)


def _sam_cases(model: Any, at: At, case: _Rows) -> Iterator[Case]:
    sam, (windowed, full) = model.tower.sam, inner(model.tower.sam.blocks)
    cfg = config(model.tower, model.decoder).vision_config.sam_config
    d, w, neck, down = full.d, windowed.w, sam.neck_norm, sam.downsample[0]
    grid, tokens = {"b": at.b, "u": at.u, "v": at.v}, {"b": at.b, "s": at.u * at.v}
    many = at.b * -(-at.u // w) * -(-at.v // w)
    features, line = (at.b, at.u, at.v, d), (at.b, at.u * at.v, d)
    pixels, channels = (at.b, 3, at.u * sam.patch.p, at.v * sam.patch.p), (at.b, neck.c, at.u, at.v)
    for name, reference, make, ours, sizes, shape, more in (
        ("PatchEmbed", "SamPatchEmbeddings", lambda: ocr.UnlimitedOcrSamPatchEmbeddings(cfg), sam.patch, grid, pixels, {}),
        ("Attention (global)", "SamVisionSdpaAttention", lambda: ocr.UnlimitedOcrSamVisionSdpaAttention(cfg, 0),
         full.attention, grid, features, {}),
        ("Attention (window)", "SamVisionSdpaAttention", lambda: ocr.UnlimitedOcrSamVisionSdpaAttention(cfg, w),
         windowed.attention, {"b": many, "u": w, "v": w}, (many, w, w, d), {}),
        ("MLPBlock", "SamMLPBlock", lambda: ocr.UnlimitedOcrSamMLPBlock(cfg), full.mlp, tokens, line, {}),
        ("Block (global)", "SamVisionLayer", lambda: ocr.UnlimitedOcrSamVisionLayer(cfg, 0), full, grid, features, {}),
        ("Block (window)", "SamVisionLayer", lambda: ocr.UnlimitedOcrSamVisionLayer(cfg, w), windowed, grid, features, {}),
        ("LayerNorm", "LayerNorm written out", lambda: LayerNormWrittenOut(d), full.norm, tokens, line, {"unseen": True}),
        ("LayerNorm2d", "VitDetLayerNorm", lambda: VitDetLayerNorm(neck.c), neck, grid, channels, {"unseen": True}),
        ("Conv2d", "torch.nn.Conv2d", lambda: nn.Conv2d(down.c, down.o, 3, 2, 1, bias=False), down,
         {"b": at.b, "i": at.u, "j": at.v}, channels, {}),
        ("ImageEncoderViT", "SamVisionEncoder", lambda: ocr.UnlimitedOcrSamVisionEncoder(cfg), sam, grid, pixels,
         {"known": two_norms(model, at.b * at.u * at.v)}),
    ):  # fmt: skip
        yield case(name, reference, make, ours, sizes, *shape, **more)


def _clip_cases(model: Any, at: At, case: _Rows) -> Iterator[Case]:
    clip, side = model.tower.clip, _side(model.tower.clip)
    cfg = config(model.tower, model.decoder).vision_config.encoder_config
    block, table, d = clip.transformer.block, clip.embeddings, clip.d
    own, patches = CLIPVisionConfig(**_clip(clip)), {"b": at.b, "u": side, "v": side}
    u, v = -(-at.u // 4), -(-at.v // 4)
    grid, line, tokens = {"b": at.b, "u": u, "v": v}, {"b": at.b, "s": u * v + 1}, (at.b, u * v + 1, d)
    pixels, features, known = (at.b, 3, *2 * (table.patch.p * side,)), (at.b, d, u, v), {"known": no_patch(model)}
    for name, reference, make, ours, sizes, shape, more in (
        ("CLIPVisionEmbeddings (conv)", "CLIPVisionEmbeddings", lambda: ClipEmbeddings(own),
         replace(table, own_patches=True), patches, pixels, {}),
        ("CLIPVisionEmbeddings", "VisionEmbeddings", lambda: ocr.UnlimitedOcrVisionEmbeddings(cfg), table, grid, features,
         known | {"unseen": True}),
        ("NoTPAttention", "Attention", lambda: ocr.UnlimitedOcrAttention(cfg), block.attention, line, tokens, {}),
        ("NoTPFeedForward", "MLP", lambda: ocr.UnlimitedOcrMLP(cfg), block.mlp, line, tokens, {}),
        ("NoTPTransformerBlock", "EncoderLayer", lambda: ocr.UnlimitedOcrEncoderLayer(cfg), block, line, tokens,
         {"run": lambda module, x: module(x, None)}),
        ("NoTPTransformer", "Encoder", lambda: ocr.UnlimitedOcrEncoder(cfg), clip.transformer, line, tokens, {}),
        ("VitModel", "VisionEncoder", lambda: ocr.UnlimitedOcrVisionEncoder(cfg), clip, grid, features, known),
    ):  # fmt: skip
        yield case(name, reference, make, ours, sizes, *shape, **more)


def _projector_cases(model: Any, at: At, case: _Rows, depth: int = 3) -> Iterator[Case]:
    linear, s = model.projector, -(-at.u // 4) * -(-at.v // 4)
    place, shape = {"b": at.b, "s": s}, (at.b, s, linear.c)
    deep = replace(linear, kind="mlp_gelu", depth=depth)

    def stacked() -> nn.Module:
        others = [part for _ in range(depth - 1) for part in (nn.GELU(), nn.Linear(linear.d, linear.d))]
        return nn.Sequential(nn.Linear(linear.c, linear.d), *others)

    yield case(
        "MlpProjector (linear)", "multi_modal_projector", lambda: nn.Linear(linear.c, linear.d), linear, place, *shape
    )
    yield case("MlpProjector (mlp_gelu)", "torch.nn.Sequential", stacked, deep, place, *shape)


def _text_cases(model: Any, at: At, case: _Rows) -> Iterator[Case]:
    decoder, (dense, moe) = model.decoder, inner(model.decoder.layers)
    cfg = config(model.tower, decoder).text_config
    d, shared, vocabulary, text = decoder.d, moe.mlp.shared, decoder.head.V, {"b": at.b, "s": at.s}
    both = Sequence((decoder.embedding, decoder.head))

    def embedded() -> tuple[nn.Module, tuple[Any, ...]]:
        table, head = nn.Embedding(vocabulary, d), nn.Linear(d, vocabulary, bias=False)
        return nn.Sequential(table, head).to(case.dtype), (torch.zeros(at.b, at.s, dtype=torch.long),)

    for name, reference, make, ours, more in (
        ("DeepseekV2MLP", "TextMLP", lambda: ocr.UnlimitedOcrTextMLP(cfg, intermediate_size=shared.f), shared, {}),
        ("MoEGate", "TextTopkRouter", lambda: ocr.UnlimitedOcrTextTopkRouter(cfg), moe.mlp.gate, {}),
        ("DeepseekV2MoE", "TextMoe", lambda: ocr.UnlimitedOcrTextMoe(experts_here(model.tower, model.decoder).text_config), moe.mlp,
         {"skip": MIXTURE_IO}),
        ("DeepseekV2RMSNorm", "TextRMSNorm", lambda: ocr.UnlimitedOcrTextRMSNorm(d), dense.norm, {"unseen": True}),
        # a lookup alone has nothing that a counter could see
        ("TokenEmbedding", "torch.nn.Linear after torch.nn.Embedding", nn.Identity, both, {"build": embedded}),
        ("LMHead", "lm_head", lambda: nn.Linear(d, vocabulary, bias=False), decoder.head, {}),
    ):  # fmt: skip
        yield case(name, reference, make, ours, text, at.b, at.s, d, **more)


def _cached_cases(model: Any, at: At, dtype: torch.dtype) -> Iterator[Case]:
    """Attention and decoder layers, with `past` tokens in the cache."""
    dense, moe = inner(model.decoder.layers)
    attention, t = dense.attention, at.past + at.s
    cfg, sizes = config(model.tower, model.decoder).text_config, {"b": at.b, "s": at.s, "t": t}
    chunked = at.past > 0 and at.s > 1  # transformers then needs a mask, or it drops the cache from the product

    def others() -> tuple[Any, ...]:
        cos, sin = (torch.randn(at.b, at.s, attention.e, dtype=dtype) for _ in "cs")
        return (cos, sin), *(torch.randn(at.b, attention.g, at.past, attention.e, dtype=dtype) for _ in "kv")

    def run(module: Any, x: Any, table: Any, k: Any, v: Any) -> Any:
        mask = torch.ones(1, 1, at.s, t, dtype=torch.bool, device=x.device) if chunked else None
        return module(x, position_embeddings=table, past_key_values=cached(k, v, 2), attention_mask=mask)

    masked = {"kernel_io_bytes": "with a mask transformers reads it and copies grouped KV heads"} if chunked else {}
    llama, layers = _Rows("llama", dtype), _Rows("decoder", dtype)
    flash = LlamaFlashAttention2(attention.d, attention.g, attention.r, attention.e)
    for rows, name, reference, make, ours, skip in (
        (llama, "LlamaAttention", "TextAttention", lambda: ocr.UnlimitedOcrTextAttention(cfg, 0), attention, masked),
        (llama, "LlamaFlashAttention2", "TextAttention", lambda: ocr.UnlimitedOcrTextAttention(cfg, 0), flash, masked),
        (layers, "DeepseekV2DecoderLayer (dense)", "TextDecoderLayer",
         lambda: ocr.UnlimitedOcrTextDecoderLayer(cfg, 0), dense, masked),
        (layers, "DeepseekV2DecoderLayer (moe)", "TextDecoderLayer",
         lambda: ocr.UnlimitedOcrTextDecoderLayer(experts_here(model.tower, model.decoder).text_config, model.decoder.layers[0].l), moe, MIXTURE_IO),
    ):  # fmt: skip
        yield rows(name, reference, make, ours, sizes, at.b, at.s, attention.d, others=others, run=run, skip=skip)


def cached(k: torch.Tensor, v: torch.Tensor, layers: int) -> DynamicCache:
    """A cache that holds these keys and values in each layer."""
    cache = DynamicCache()
    for layer in range(layers) if k.numel() else ():
        cache.update(k, v, layer)
    return cache


def _rotary_cases(model: Any, at: At, dtype: torch.dtype) -> Iterator[Case]:
    e, text = inner(model.decoder.layers)[0].attention.e, {"b": at.b, "s": at.s}
    cfg = config(model.tower, model.decoder).text_config

    def positions() -> torch.Tensor:
        return torch.zeros(at.b, at.s, dtype=torch.long)

    def build() -> tuple[nn.Module, tuple[Any, ...]]:
        return ocr.UnlimitedOcrTextRotaryEmbedding(cfg), (
            torch.randn(at.b, at.s, model.decoder.d, dtype=dtype),
            positions(),
        )

    yield Case("llama", "LlamaRotaryEmbedding (transformers)", "TextRotaryEmbedding", LayerAt(RotaryEmbedding(e), text),
               build, unseen=True)  # fmt: skip
    yield Case("llama", "LlamaRotaryEmbedding (vendor)", "inv_freq @ positions", LayerAt(LlamaRotaryEmbedding(e), text),
               lambda: (None, (torch.randn(e // 2), positions())), _vendor_rotary)  # fmt: skip


def _vendor_rotary(module: None, inv_freq: torch.Tensor, positions: torch.Tensor) -> Any:
    """The published form: frequencies x positions as a batched matmul, then cos, sin and scaling."""
    left = inv_freq[None, :, None].float().expand(positions.shape[0], -1, 1)
    angles = (left @ positions[:, None, :].float()).transpose(1, 2)
    table = torch.cat((angles, angles), dim=-1)
    return (table.cos() * 1.0).bfloat16(), (table.sin() * 1.0).bfloat16()
