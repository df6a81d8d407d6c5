"""The reference modules of DeepSeek-OCR: transformers' `unlimited_ocr`, configured as DeepSeek-OCR v1.

It is the same network layer for layer; what differs is named in each case. Sizes are read from our model,
so the same list serves the table at full size and tests at random shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, DynamicCache
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings as ClipEmbeddings
from transformers.models.unlimited_ocr import modeling_unlimited_ocr as ocr
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.vitdet.modeling_vitdet import VitDetLayerNorm

from modelmeter.layers import LlamaFlashAttention2, LlamaRotaryEmbedding, RotaryEmbedding, Sequence
from modelmeter.validate.case import MIXTURE_IO, Case, LayerAt, like
from modelmeter.validate.sam import sam_numbers, two_norms

OVERRIDES = ("tower.clip.projections=split", "decoder.gate_up=merged", "decoder.rotary=model")
"""Overrides under which our model has transformers' kernels."""
UNSEEN = {"unseen": True}


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
    vision_config = {"sam_config": sam_numbers(tower.sam), "encoder_config": clip_numbers(tower.clip)}
    made = UnlimitedOcrConfig(text_config=text_numbers(decoder), vision_config=vision_config)
    vision = made.vision_config
    for part in (made, made.text_config, vision, vision.sam_config, vision.encoder_config):
        part._attn_implementation, part._experts_implementation = attention, experts
    return made


def inner(repeats: Any) -> tuple[Any, Any]:
    """The two layers that are repeated: SAM's windowed and global block, the decoder's dense layer and mixture."""
    first, second = (repeat.layer for repeat in repeats)
    return first, second


def text_numbers(decoder: Any) -> dict[str, Any]:
    """The decoder's sizes by the names of its configuration, which are the vendor's too."""
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


def clip_numbers(clip: Any) -> dict[str, Any]:
    """CLIP's sizes by the names of its configuration."""
    block, patch = clip.transformer.block, clip.embeddings.patch.p
    return dict(
        hidden_size=clip.d, num_attention_heads=block.attention.h, intermediate_size=block.mlp.f,
        num_hidden_layers=clip.transformer.l, patch_size=patch, image_size=patch * _side(clip),
    )  # fmt: skip


def _side(clip: Any) -> int:
    """Patches of one side of CLIP's stored positions, the class token apart."""
    return round((clip.embeddings.n - 1) ** 0.5)


def experts_here(tower: Any, decoder: Any) -> Any:
    """The configuration for torch's default device: real experts run grouped, without copies of weights for each
    token; on meta the counter would not see them so."""
    return config(tower, decoder, "sdpa", "batched_mm" if torch.get_default_device().type == "meta" else "grouped_mm")


class LayerNormWrittenOut(nn.Module):
    """Layer normalisation as its paper writes it, operator by operator, so that each can be counted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight + self.bias


def cached(k: torch.Tensor, v: torch.Tensor, layers: int) -> DynamicCache:
    """A cache that holds these keys and values in each layer."""
    cache = DynamicCache()
    for layer in range(layers) if k.numel() else ():
        cache.update(k, v, layer)
    return cache


def layer_cases(model: Any, at: At = At()) -> Iterator[Case]:
    """One case for every layer class."""
    c = config(model.tower, model.decoder)
    yield from _sam_cases(model, at, c.vision_config.sam_config)
    yield from _clip_cases(model.tower.clip, at, c.vision_config.encoder_config)
    yield from _projector_cases(model.projector, at)
    yield from _text_cases(model, at, c.text_config)
    yield from _cached_cases(model, at, c.text_config)
    yield from _rotary_cases(model.decoder, at, c.text_config)


def _cases(group: str, *rows: tuple[Any, ...]) -> Iterator[Case]:
    """Cases from rows: layer, module, ours, its sizes, what the module is given, and further fields where needed.

    The reference is named as its class where it is not named otherwise.
    """
    for layer, make, ours, sizes, inputs, *more in rows:
        named = {"group": group, "reference": make.func.__name__.removeprefix("UnlimitedOcr")}
        yield Case(layer=layer, ours=LayerAt(ours, sizes), make=make, inputs=inputs, **named | dict(*more))


def _sam_cases(model: Any, at: At, cfg: Any) -> Iterator[Case]:
    sam, (windowed, full) = model.tower.sam, inner(model.tower.sam.blocks)
    d, w, p, neck, down = full.d, windowed.w, sam.patch.p, sam.neck_norm, sam.downsample[0]
    grid, tokens, edges = dict(b=at.b, u=at.u, v=at.v), dict(b=at.b, s=at.u * at.v), dict(b=at.b, i=at.u, j=at.v)
    windows = dict(b=at.b * -(-at.u // w) * -(-at.v // w), u=w, v=w)
    pixels, channels = (like(at.b, 3, at.u * p, at.v * p),), (like(at.b, neck.c, at.u, at.v),)
    features, line, inside = (like(*grid.values(), d),), (like(*tokens.values(), d),), (like(*windows.values(), d),)
    vit, sdpa = ocr.UnlimitedOcrSamVisionLayer, ocr.UnlimitedOcrSamVisionSdpaAttention
    yield from _cases(
        "vision",
        ("PatchEmbed", partial(ocr.UnlimitedOcrSamPatchEmbeddings, cfg), sam.patch, grid, pixels),
        ("Attention (global)", partial(sdpa, cfg, 0), full.attention, grid, features),
        ("Attention (window)", partial(sdpa, cfg, w), windowed.attention, windows, inside),
        ("MLPBlock", partial(ocr.UnlimitedOcrSamMLPBlock, cfg), full.mlp, tokens, line),
        ("Block (global)", partial(vit, cfg, 0), full, grid, features),
        ("Block (window)", partial(vit, cfg, w), windowed, grid, features),
        ("LayerNorm", partial(LayerNormWrittenOut, d), full.norm, tokens, line,
         UNSEEN | {"reference": "LayerNorm written out"}),
        ("LayerNorm2d", partial(VitDetLayerNorm, neck.c), neck, grid, channels, UNSEEN),
        ("Conv2d", partial(nn.Conv2d, down.c, down.o, 3, 2, 1, bias=False), down, edges, channels,
         {"reference": "torch.nn.Conv2d"}),
        ("ImageEncoderViT", partial(ocr.UnlimitedOcrSamVisionEncoder, cfg), sam, grid, pixels,
         {"known": two_norms(model, at.b * at.u * at.v)}),
    )  # fmt: skip


def _clip_cases(clip: Any, at: At, cfg: Any) -> Iterator[Case]:
    block, table, d, side = clip.transformer.block, clip.embeddings, clip.d, _side(clip)
    own, u, v = partial(ClipEmbeddings, CLIPVisionConfig(**clip_numbers(clip))), -(-at.u // 4), -(-at.v // 4)
    convolved, patches = replace(table, own_patches=True), dict(b=at.b, u=side, v=side)
    grid, line, tokens = dict(b=at.b, u=u, v=v), dict(b=at.b, s=u * v + 1), (like(at.b, u * v + 1, d),)
    pixels, features = (like(at.b, 3, *2 * (table.patch.p * side,)),), (like(at.b, d, u, v),)
    stored = table.patch.cost(b=1, u=1, v=1).parameters  # which the checkpoint has and transformers has not
    known = {"known": {"parameters": (-stored, "transformers drops CLIP's unused patch convolution")}}
    yield from _cases(
        "vision",
        ("CLIPVisionEmbeddings (conv)", own, convolved, patches, pixels),
        ("CLIPVisionEmbeddings", partial(ocr.UnlimitedOcrVisionEmbeddings, cfg), table, grid, features, known | UNSEEN),
        ("NoTPAttention", partial(ocr.UnlimitedOcrAttention, cfg), block.attention, line, tokens),
        ("NoTPFeedForward", partial(ocr.UnlimitedOcrMLP, cfg), block.mlp, line, tokens),
        ("NoTPTransformerBlock", partial(ocr.UnlimitedOcrEncoderLayer, cfg), block, line, tokens,
         {"run": lambda module, x: module(x, None)}),
        ("NoTPTransformer", partial(ocr.UnlimitedOcrEncoder, cfg), clip.transformer, line, tokens),
        ("VitModel", partial(ocr.UnlimitedOcrVisionEncoder, cfg), clip, grid, features, known),
    )  # fmt: skip


def _projector_cases(linear: Any, at: At, depth: int = 3) -> Iterator[Case]:
    place = dict(b=at.b, s=-(-at.u // 4) * -(-at.v // 4))
    given, first = (like(*place.values(), linear.c),), partial(nn.Linear, linear.c, linear.d)

    def stacked() -> nn.Module:
        others = (part for _ in range(depth - 1) for part in (nn.GELU(), nn.Linear(linear.d, linear.d)))
        return nn.Sequential(first(), *others)

    yield from _cases(
        "vision",
        ("MlpProjector (linear)", first, linear, place, given, {"reference": "multi_modal_projector"}),
        ("MlpProjector (mlp_gelu)", partial(stacked), replace(linear, kind="mlp_gelu", depth=depth), place, given,
         {"reference": "torch.nn.Sequential"}),
    )  # fmt: skip


def _text_cases(model: Any, at: At, cfg: Any) -> Iterator[Case]:
    decoder, (dense, moe) = model.decoder, inner(model.decoder.layers)
    d, shared, place = decoder.d, moe.mlp.shared, dict(b=at.b, s=at.s)
    given, ids = (like(at.b, at.s, d),), (like(at.b, at.s, dtype=torch.long),)
    head = partial(nn.Linear, d, decoder.head.V, bias=False)
    both = Sequence((decoder.embedding, decoder.head))  # a lookup alone has nothing that a counter could see
    yield from _cases(
        "decoder",
        ("DeepseekV2MLP", partial(ocr.UnlimitedOcrTextMLP, cfg, intermediate_size=shared.f), shared, place, given),
        ("MoEGate", partial(ocr.UnlimitedOcrTextTopkRouter, cfg), moe.mlp.gate, place, given),
        ("DeepseekV2MoE", partial(_with_experts, ocr.UnlimitedOcrTextMoe, model), moe.mlp, place, given,
         {"reference": "TextMoe", "skip": MIXTURE_IO}),
        ("DeepseekV2RMSNorm", partial(ocr.UnlimitedOcrTextRMSNorm, d), dense.norm, place, given, UNSEEN),
        ("TokenEmbedding", partial(lambda: nn.Sequential(nn.Embedding(decoder.head.V, d), head())), both, place, ids,
         {"reference": "torch.nn.Linear after torch.nn.Embedding"}),
        ("LMHead", head, decoder.head, place, given, {"reference": "lm_head"}),
    )  # fmt: skip


def _with_experts(kind: Any, model: Any, *arguments: Any) -> nn.Module:
    """A module with a mixture, for torch's default device."""
    made: nn.Module = kind(experts_here(model.tower, model.decoder).text_config, *arguments)
    return made


def _cached_cases(model: Any, at: At, cfg: Any) -> Iterator[Case]:
    """Attention and decoder layers, with `past` tokens in the cache."""
    dense, moe = inner(model.decoder.layers)
    attention, t, layer = dense.attention, at.past + at.s, ocr.UnlimitedOcrTextDecoderLayer
    chunked = at.past > 0 and at.s > 1  # transformers then needs a mask, or it drops the cache from the product
    masked = {"kernel_io_bytes": "with a mask transformers reads it and copies grouped KV heads"} if chunked else {}

    def run(module: Any, x: Any, table: Any, k: Any, v: Any) -> Any:
        mask = torch.ones(1, 1, at.s, t, dtype=torch.bool, device=x.device) if chunked else None
        return module(x, position_embeddings=table, past_key_values=cached(k, v, 2), attention_mask=mask)

    angles, keys = like(at.b, at.s, attention.e), like(at.b, attention.g, at.past, attention.e)
    sizes, given = dict(b=at.b, s=at.s, t=t), (like(at.b, at.s, attention.d), (angles, angles), keys, keys)
    flash = LlamaFlashAttention2(attention.d, attention.g, attention.r, attention.e)
    theirs, more = partial(ocr.UnlimitedOcrTextAttention, cfg, 0), {"run": run, "skip": masked}
    mixture = partial(_with_experts, layer, model, model.decoder.layers[0].l)
    yield from _cases(
        "decoder",
        ("LlamaAttention", theirs, attention, sizes, given, more | {"group": "llama"}),
        ("LlamaFlashAttention2", theirs, flash, sizes, given, more | {"group": "llama"}),
        ("DeepseekV2DecoderLayer (dense)", partial(layer, cfg, 0), dense, sizes, given, more),
        ("DeepseekV2DecoderLayer (moe)", mixture, moe, sizes, given,
         {"reference": "TextDecoderLayer", "run": run, "skip": MIXTURE_IO}),
    )  # fmt: skip


def _rotary_cases(decoder: Any, at: At, cfg: Any) -> Iterator[Case]:
    e, text, positions = inner(decoder.layers)[0].attention.e, dict(b=at.b, s=at.s), like(at.b, at.s, dtype=torch.long)
    theirs, given = partial(ocr.UnlimitedOcrTextRotaryEmbedding, cfg), (like(at.b, at.s, decoder.d), positions)
    yield from _cases(
        "llama",
        ("LlamaRotaryEmbedding (transformers)", theirs, RotaryEmbedding(e), text, given, UNSEEN),
        ("LlamaRotaryEmbedding (vendor)", partial(lambda: None), LlamaRotaryEmbedding(e), text, (like(e // 2), positions),
         {"reference": "inv_freq @ positions", "run": _vendor_rotary}),
    )  # fmt: skip


def _vendor_rotary(_: None, inv_freq: torch.Tensor, positions: torch.Tensor) -> Any:
    """The published form: frequencies x positions as a batched matmul, then cos, sin and scaling."""
    left = inv_freq[None, :, None].float().expand(positions.shape[0], -1, 1)
    angles = (left @ positions[:, None, :].float()).transpose(1, 2)
    table = torch.cat((angles, angles), dim=-1)
    return (table.cos() * 1.0).bfloat16(), (table.sin() * 1.0).bfloat16()
