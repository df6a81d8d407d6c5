"""The reference modules of DeepSeek-OCR: transformers' `unlimited_ocr`, configured as DeepSeek-OCR v1.

It is the same network layer for layer; what differs is named in each case. Sizes are read from our model,
so the same list serves the table at full size and tests at random shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, DynamicCache
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings as ClipEmbeddings
from transformers.models.unlimited_ocr import modeling_unlimited_ocr as ocr
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.vitdet.modeling_vitdet import VitDetLayerNorm

from modelmeter.layers import LlamaFlashAttention2, LlamaRotaryEmbedding, RotaryEmbedding, Sequence
from modelmeter.sizes import Size, ceil_div, symbol
from modelmeter.validate.case import MIXTURE_IO, Case, LayerAt, like
from modelmeter.validate.sam import sam_numbers, two_norms

OVERRIDES = ("tower.clip.projections=split", "decoder.gate_up=merged", "decoder.rotary=model")
"""Overrides under which our model has transformers' kernels."""
UNSEEN = {"unseen": True}
PEAK = "peak_activation_bytes"
INTERPOLATED = {"traced": {PEAK: "positions that are resampled are a constant of the shape"}}
GROUPED = {PEAK: "ours runs the experts grouped, the trace as one batch of products"}
B, U, V, S = map(symbol, "buvs")
"""Images or sequences, rows and columns of a grid, tokens: the named sizes of the cases."""


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


def second_bias(attention: Any, windows: Size, rows: Size, columns: Size) -> dict[str, tuple[Size, str]]:
    """The vendor's peak has one bias, its halves, the result and its layout copy; transformers' a copy of the bias."""
    pixels, h, d = rows * columns, attention.h, attention.d
    more = pixels * pixels * h - pixels * (rows + columns) * h - pixels * 2 * d
    return {"peak_activation_bytes": (windows * more * 2, "transformers copies the bias of the scores")}


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


def identity_cases(model: Any) -> Iterator[Case]:
    """The cases of layers, those with a cache at a prompt and at a step after it."""
    yield from layer_cases(model)
    yield from _cached_cases(model, At(s=1, past=At.s), config(model.tower, model.decoder).text_config, ", a step")


def _cases(group: str, at: Mapping[str, int], *rows: tuple[Any, ...]) -> Iterator[Case]:
    """Cases from rows: layer, module, ours, its sizes, what the module is given, and further fields where needed.

    The sizes of all that is given are expressions of the names in `at`. The reference is named as its class where it is
    not named otherwise.
    """
    for layer, make, ours, sizes, inputs, *more in rows:
        named = {"group": group, "reference": make.func.__name__.removeprefix("UnlimitedOcr")}
        there = {name: at[name] for given in tree_leaves(inputs) for name in given.names}
        yield Case(layer=layer, ours=LayerAt(ours, sizes, at=there), make=make, inputs=inputs, **named | dict(*more))


def _sam_cases(model: Any, at: At, cfg: Any) -> Iterator[Case]:
    sam, (windowed, full) = model.tower.sam, inner(model.tower.sam.blocks)
    d, w, p, neck, down = full.d, windowed.w, sam.patch.p, sam.neck_norm, sam.downsample[0]
    grid, tokens, windows = dict(b=B, u=U, v=V), dict(b=B, s=S), dict(b=B, u=w, v=w)
    pixels, channels = (like(B, 3, U * p, V * p),), (like(B, neck.c, U, V),)
    features, line, inside = (like(B, U, V, d),), (like(B, S, d),), (like(B, w, w, d),)
    vit, sdpa = ocr.UnlimitedOcrSamVisionLayer, ocr.UnlimitedOcrSamVisionSdpaAttention
    place, many = dict(b=at.b, u=at.u, v=at.v, s=at.u * at.v), at.b * -(-at.u // w) * -(-at.v // w)
    numbers = {"steps": {"u": 0, "v": 0}}  # of the rows and columns of relative positions
    bias, biases = second_bias(full.attention, B, U, V), ceil_div(U, w) * ceil_div(V, w) * B
    whole, by_window = (numbers | {"known": k} for k in (bias, second_bias(windowed.attention, biases, w, w)))
    yield from _cases(
        "vision", place,
        ("PatchEmbed", partial(ocr.UnlimitedOcrSamPatchEmbeddings, cfg), sam.patch, grid, pixels),
        ("Attention (global)", partial(sdpa, cfg, 0), full.attention, grid, features, whole),
        ("MLPBlock", partial(ocr.UnlimitedOcrSamMLPBlock, cfg), full.mlp, tokens, line),
        ("Block (global)", partial(vit, cfg, 0), full, grid, features, whole),
        ("Block (window)", partial(vit, cfg, w), windowed, grid, features, by_window),
        ("LayerNorm", partial(LayerNormWrittenOut, d), full.norm, tokens, line,
         UNSEEN | {"reference": "LayerNorm written out", "traced": {PEAK: "one kernel is written out, to be counted"}}),
        ("LayerNorm2d", partial(VitDetLayerNorm, neck.c), neck, grid, channels, UNSEEN),
        ("Conv2d", partial(nn.Conv2d, down.c, down.o, 3, 2, 1, bias=False), down, dict(b=B, i=U, j=V), channels,
         {"reference": "torch.nn.Conv2d"}),
        ("ImageEncoderViT", partial(ocr.UnlimitedOcrSamVisionEncoder, cfg), sam, grid, pixels,
         whole | {"known": bias | two_norms(model, B * U * V)}),
    )  # fmt: skip
    apart = {"known": second_bias(windowed.attention, B, w, w)}
    yield from _cases("vision", {"b": many}, ("Attention (window)", partial(sdpa, cfg, w), windowed.attention, windows,
                                              inside, apart))  # fmt: skip


def _clip_cases(clip: Any, at: At, cfg: Any) -> Iterator[Case]:
    block, table, d, side = clip.transformer.block, clip.embeddings, clip.d, _side(clip)
    own, u, v = partial(ClipEmbeddings, CLIPVisionConfig(**clip_numbers(clip))), -(-at.u // 4), -(-at.v // 4)
    convolved, patches = replace(table, own_patches=True), dict(b=B, u=side, v=side)
    grid, line, tokens = dict(b=B, u=U, v=V), dict(b=B, s=S), (like(B, S, d),)
    pixels, features = (like(B, 3, *2 * (table.patch.p * side,)),), (like(B, d, U, V),)
    stored = table.patch.cost(b=1, u=1, v=1).parameters  # which the checkpoint has and transformers has not
    known = {"known": {"parameters": (-stored, "transformers drops CLIP's unused patch convolution")}} | INTERPOLATED
    held = 2 * table.n * d + B * side * side * 2 * d
    looked_up = {"known": {PEAK: (held, "positions are looked up, and the patches are still held")}}
    yield from _cases(
        "vision", dict(b=at.b, u=u, v=v, s=u * v + 1),
        ("CLIPVisionEmbeddings (conv)", own, convolved, patches, pixels, looked_up),
        ("CLIPVisionEmbeddings", partial(ocr.UnlimitedOcrVisionEmbeddings, cfg), table, grid, features, known | UNSEEN),
        ("NoTPAttention", partial(ocr.UnlimitedOcrAttention, cfg), block.attention, line, tokens),
        ("NoTPFeedForward", partial(ocr.UnlimitedOcrMLP, cfg), block.mlp, line, tokens),
        ("NoTPTransformerBlock", partial(ocr.UnlimitedOcrEncoderLayer, cfg), block, line, tokens,
         {"run": lambda module, x: module(x, None)}),
        ("NoTPTransformer", partial(ocr.UnlimitedOcrEncoder, cfg), clip.transformer, line, tokens),
        ("VitModel", partial(ocr.UnlimitedOcrVisionEncoder, cfg), clip, grid, features, known),
    )  # fmt: skip


def _projector_cases(linear: Any, at: At, depth: int = 3) -> Iterator[Case]:
    place, given, first = dict(b=B, s=S), (like(B, S, linear.c),), partial(nn.Linear, linear.c, linear.d)

    def stacked() -> nn.Module:
        others = (part for _ in range(depth - 1) for part in (nn.GELU(), nn.Linear(linear.d, linear.d)))
        return nn.Sequential(first(), *others)

    yield from _cases(
        "vision", dict(b=at.b, s=-(-at.u // 4) * -(-at.v // 4)),
        ("MlpProjector (linear)", first, linear, place, given, {"reference": "multi_modal_projector"}),
        ("MlpProjector (mlp_gelu)", partial(stacked), replace(linear, kind="mlp_gelu", depth=depth), place, given,
         {"reference": "torch.nn.Sequential"}),
    )  # fmt: skip


def _text_cases(model: Any, at: At, cfg: Any) -> Iterator[Case]:
    decoder, (dense, moe) = model.decoder, inner(model.decoder.layers)
    d, shared, place = decoder.d, moe.mlp.shared, dict(b=B, s=S)
    given, ids = (like(B, S, d),), (like(B, S, dtype=torch.long),)
    head = partial(nn.Linear, d, decoder.head.V, bias=False)
    both = Sequence((decoder.embedding, decoder.head))  # a lookup alone has nothing that a counter could see
    yield from _cases(
        "decoder", dict(b=at.b, s=at.s),
        ("DeepseekV2MLP", partial(ocr.UnlimitedOcrTextMLP, cfg, intermediate_size=shared.f), shared, place, given),
        ("MoEGate", partial(ocr.UnlimitedOcrTextTopkRouter, cfg), moe.mlp.gate, place, given),
        ("DeepseekV2MoE", partial(_with_experts, ocr.UnlimitedOcrTextMoe, model), moe.mlp, place, given,
         {"reference": "TextMoe", "skip": MIXTURE_IO, "traced": GROUPED}),
        ("DeepseekV2RMSNorm", partial(ocr.UnlimitedOcrTextRMSNorm, d), dense.norm, place, given, UNSEEN),
        ("TokenEmbedding", partial(lambda: nn.Sequential(nn.Embedding(decoder.head.V, d), head())), both, place, ids,
         {"reference": "torch.nn.Linear after torch.nn.Embedding", 
          "known": {PEAK: (B * S * 8, "ids are held, 8 bytes each")}}),
        ("LMHead", head, decoder.head, place, given, {"reference": "lm_head"}),
    )  # fmt: skip


def _with_experts(kind: Any, model: Any, *arguments: Any) -> nn.Module:
    """A module with a mixture, for torch's default device."""
    made: nn.Module = kind(experts_here(model.tower, model.decoder).text_config, *arguments)
    return made


def _cached_cases(model: Any, at: At, cfg: Any, told: str = "") -> Iterator[Case]:
    """Attention and decoder layers, with `past` tokens in the cache; `told` is said behind their names."""
    dense, moe = inner(model.decoder.layers)
    s, past = S if at.s > 1 else 1, symbol("past") if at.past else 0
    attention, layer = dense.attention, ocr.UnlimitedOcrTextDecoderLayer
    chunked = at.past > 0 and at.s > 1  # transformers then needs a mask, or it drops the cache from the product
    masked = {"kernel_io_bytes": "with a mask transformers reads it and copies grouped KV heads"} if chunked else {}

    def run(module: Any, x: Any, table: Any, k: Any, v: Any) -> Any:
        rows, keys = x.shape[1], k.shape[2] + x.shape[1]
        mask = torch.ones(1, 1, rows, keys, dtype=torch.bool, device=x.device) if chunked else None
        return module(x, position_embeddings=table, past_key_values=cached(k, v, 2), attention_mask=mask)

    angles, keys = like(B, s, attention.e), like(B, attention.g, past, attention.e)
    sizes, given = dict(b=B, s=s, t=past + s), (like(B, s, attention.d), (angles, angles), keys, keys)
    flash = LlamaFlashAttention2(attention.d, attention.g, attention.r, attention.e)
    held = {"traced": {PEAK: "keys and values of the cache are activations of the trace"}}
    theirs, more = partial(ocr.UnlimitedOcrTextAttention, cfg, 0), held | {"run": run, "skip": masked}
    mixture = partial(_with_experts, layer, model, model.decoder.layers[0].l)
    yield from _cases(
        "decoder", dict(b=at.b, s=at.s, past=at.past),
        (f"LlamaAttention{told}", theirs, attention, sizes, given, more | {"group": "llama"}),
        (f"LlamaFlashAttention2{told}", theirs, flash, sizes, given, more | {"group": "llama"}),
        (f"DeepseekV2DecoderLayer (dense){told}", partial(layer, cfg, 0), dense, sizes, given, more),
        (f"DeepseekV2DecoderLayer (moe){told}", mixture, moe, sizes, given,
         more | {"reference": "TextDecoderLayer", "skip": MIXTURE_IO, "traced": GROUPED}),
    )  # fmt: skip


def _rotary_cases(decoder: Any, at: At, cfg: Any) -> Iterator[Case]:
    e, text, positions = inner(decoder.layers)[0].attention.e, dict(b=B, s=S), like(B, S, dtype=torch.long)
    theirs, given = partial(ocr.UnlimitedOcrTextRotaryEmbedding, cfg), (like(B, S, decoder.d), positions)
    frequencies, each = -(e // 2 * 4), "ours reads the frequencies for each sequence, a view is one row in memory"
    cast = f"{each}; ours has both tables in fp32 before it casts them"
    yield from _cases(
        "llama", dict(b=at.b, s=at.s),
        ("LlamaRotaryEmbedding (transformers)", theirs, RotaryEmbedding(e), text, given,
         UNSEEN | {"known": {PEAK: (frequencies, "frequencies are an input of ours, a buffer of theirs")}}),
        ("LlamaRotaryEmbedding (vendor)", partial(lambda: None), LlamaRotaryEmbedding(e), text, (like(e // 2), positions),
         {"reference": "inv_freq @ positions", "run": _vendor_rotary,
          "traced": {"kernel_io_bytes": each, PEAK: cast}}),
    )  # fmt: skip


def _vendor_rotary(_: None, inv_freq: torch.Tensor, positions: torch.Tensor) -> Any:
    """The published form: frequencies x positions as a batched matmul, then cos, sin and scaling."""
    left = inv_freq[None, :, None].float().expand(positions.shape[0], -1, 1)
    angles = (left @ positions[:, None, :].float()).transpose(1, 2)
    table = torch.cat((angles, angles), dim=-1)
    return (table.cos() * 1.0).bfloat16(), (table.sin() * 1.0).bfloat16()
