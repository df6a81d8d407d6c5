"""The reference modules of DeepSeek-OCR: transformers' `unlimited_ocr`, configured as DeepSeek-OCR v1.

It is the same network layer for layer; what differs is named in each case. Every case takes its
sizes from `Dims`, so the same list serves the table at full size and tests at random shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, DynamicCache
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings as ClipEmbeddings
from transformers.models.unlimited_ocr import modeling_unlimited_ocr as ocr
from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig
from transformers.models.vitdet.modeling_vitdet import VitDetLayerNorm

from modelmeter import layers as mm
from modelmeter.layer import BaseLayer, Repeat, Sequence
from modelmeter.validate.case import Case, layer_ops


@dataclass(frozen=True)
class Dims:
    """Sizes of the cases; the defaults are DeepSeek-OCR's. `past` tokens are in the cache already."""

    b: int = 1
    u: int = 64
    v: int = 64
    sam_heads: int = 12
    sam_head: int = 64
    sam_mlp: int = 3072
    patch: int = 16
    grid: int = 64
    window: int = 14
    windowed: int = 8
    global_: int = 4
    neck: int = 256
    downsample: tuple[int, int] = (512, 1024)
    clip_heads: int = 16
    clip_head: int = 64
    clip_mlp: int = 4096
    clip_layers: int = 24
    clip_patch: int = 14
    clip_grid: int = 16
    heads: int = 10
    kv_heads: int = 10
    head: int = 128
    mlp: int = 6848
    experts: int = 64
    active: int = 6
    expert_mlp: int = 896
    shared: int = 2
    vocabulary: int = 129280
    s: int = 512
    past: int = 0
    depth: int = 3

    @property
    def sam_hidden(self) -> int:
        return self.sam_heads * self.sam_head

    @property
    def clip_hidden(self) -> int:
        return self.clip_heads * self.clip_head

    @property
    def hidden(self) -> int:
        return self.heads * self.head

    @property
    def rows(self) -> int:
        return -(-self.u // 4)

    @property
    def columns(self) -> int:
        return -(-self.v // 4)


@lru_cache(maxsize=8)
def config(d: Dims) -> Any:
    """The configuration under which unlimited_ocr is DeepSeek-OCR v1 (no sliding window, SDPA)."""
    depth = d.windowed + d.global_
    made = UnlimitedOcrConfig(
        text_config=dict(
            num_hidden_layers=12, layer_types=["full_attention"] * 12, max_position_embeddings=8192,
            first_k_dense_replace=1, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            hidden_size=d.hidden, num_attention_heads=d.heads, num_key_value_heads=d.kv_heads,
            intermediate_size=d.mlp, n_routed_experts=d.experts, num_experts_per_tok=d.active,
            moe_intermediate_size=d.expert_mlp, n_shared_experts=d.shared, vocab_size=d.vocabulary,
        ),
        vision_config=dict(
            sam_config=dict(
                hidden_size=d.sam_hidden, num_attention_heads=d.sam_heads, mlp_dim=d.sam_mlp,
                patch_size=d.patch, image_size=d.patch * d.grid, window_size=d.window,
                num_hidden_layers=depth, global_attn_indexes=list(range(d.windowed, depth)),
                output_channels=d.neck, downsample_channels=list(d.downsample),
            ),
            encoder_config=dict(
                hidden_size=d.clip_hidden, num_attention_heads=d.clip_heads, intermediate_size=d.clip_mlp,
                num_hidden_layers=d.clip_layers, patch_size=d.clip_patch, image_size=d.clip_patch * d.clip_grid,
            ),
        ),
    )  # fmt: skip
    vision = made.vision_config
    for part in (made, made.text_config, vision, vision.sam_config, vision.encoder_config):
        part._attn_implementation = "sdpa"
        part._experts_implementation = "batched_mm"
    return made


def experts_here(made: Any) -> Any:
    """The configuration for torch's default device: real experts run grouped, without copies of weights
    for each token; on meta the counter would not see them so."""
    if torch.get_default_device().type == "meta":
        return made
    made = deepcopy(made)
    made._experts_implementation = made.text_config._experts_implementation = "grouped_mm"
    return made


def attention(d: Dims, kind: Any = mm.LlamaAttention) -> Any:
    """Our decoder attention at these sizes."""
    group = d.heads // d.kv_heads
    return kind(d.hidden, d.kv_heads, group, d.head, mm.LlamaRotaryEmbedding(d.head))


def mixture(d: Dims) -> mm.DeepseekV2MoE:
    """Our mixture; transformers fuses gate and up in the routed experts, not in the shared ones."""
    gate = mm.MoEGate(d.hidden, d.experts, d.active)
    shared = mm.DeepseekV2MLP(d.hidden, d.shared * d.expert_mlp)
    return mm.DeepseekV2MoE(gate, d.expert_mlp, shared, fused_gate_up=True)


def sam(d: Dims) -> mm.ImageEncoderViT:
    """Our SAM encoder at these sizes."""
    hidden = d.sam_hidden
    mlp, norm = mm.MLPBlock(hidden, d.sam_mlp), mm.LayerNorm(hidden)
    windowed = mm.Block(mm.Attention(hidden, d.sam_heads, d.sam_head, d.window), mlp, norm, d.window)
    full = mm.Block(mm.Attention(hidden, d.sam_heads, d.sam_head, d.grid), mlp, norm, None)
    first, second = d.downsample
    return mm.ImageEncoderViT(
        mm.PatchEmbed(3, hidden, d.patch),
        (Repeat(windowed, d.windowed), Repeat(full, d.global_)),
        (mm.Conv2d(hidden, d.neck, 1), mm.Conv2d(d.neck, d.neck, 3)),
        mm.LayerNorm2d(d.neck),
        (mm.Conv2d(d.neck, first, 3, 2), mm.Conv2d(first, second, 3, 2)),
        d.grid,
    )


def clip_block(d: Dims) -> mm.NoTPTransformerBlock:
    """Our CLIP block with q, k and v split, as transformers has them."""
    return mm.NoTPTransformerBlock(
        mm.NoTPAttention(d.clip_hidden, d.clip_heads, d.clip_head, fused_qkv=False),
        mm.NoTPFeedForward(d.clip_hidden, d.clip_mlp),
        mm.LayerNorm(d.clip_hidden),
    )


class LayerNormWrittenOut(nn.Module):
    """Layer normalisation as its paper writes it, operator by operator, so that each can be counted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight + self.bias


MIXTURE_IO = {"kernel_io_bytes": "batched_mm gathers one copy of an expert's weights for each token"}
REFERENCE = ("dims.clip.fused_qkv=false", "dims.decoder.fused_gate_up=true")
"""Overrides under which our model has transformers' kernels: CLIP's q, k, v split, experts' gate and up fused."""


def no_patch(d: Dims) -> dict[str, tuple[int, str]]:
    """Parameters that the checkpoint has and transformers has not."""
    return {"parameters": (-3 * d.clip_patch**2 * d.clip_hidden, "transformers drops CLIP's unused patch convolution")}


def two_norms(d: Dims, pixels: int) -> dict[str, tuple[int, str]]:
    """The neck's two norms subtract the mean once in transformers, twice in the vendor's code."""
    return {"cuda_core_flops": (-2 * d.neck * pixels, "transformers' LayerNorm2d subtracts the mean once")}


def layer_cases(d: Dims = Dims(), dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    """One case for every layer class."""
    c = config(d)
    s_cfg, e_cfg, t_cfg = c.vision_config.sam_config, c.vision_config.encoder_config, c.text_config
    n, rows, cols, context = d.u * d.v, d.rows, d.columns, d.past + d.s
    clip_tokens = rows * cols + 1
    ours_sam, block = sam(d), clip_block(d)

    def x(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype)

    def case(
        group: str,
        layer: str,
        module: tuple[str, Any],
        ours: BaseLayer,
        sizes: dict[str, int],
        *shape: int,
        **more: Any,
    ) -> Case:
        reference, make = module  # make is None where `build` is given

        def build() -> tuple[nn.Module, tuple[Any, ...]]:
            return make().to(dtype).eval(), (x(*shape),)

        return Case(group, layer, reference, layer_ops(ours, **sizes), more.pop("build", build), **more)

    grid, tokens = {"b": d.b, "u": d.u, "v": d.v}, {"b": d.b, "s": n}
    hidden = d.sam_hidden
    windowed, full = (r.layer for r in ours_sam.blocks)  # type: ignore[attr-defined]
    windows = d.b * -(-d.u // d.window) * -(-d.v // d.window)
    yield case("vision", "PatchEmbed", ("SamPatchEmbeddings", lambda: ocr.UnlimitedOcrSamPatchEmbeddings(s_cfg)),
               ours_sam.patch, grid, d.b, 3, d.u * d.patch, d.v * d.patch)  # fmt: skip
    for name, w, ours, sizes in (
        ("Attention (global)", 0, full.attention, grid),
        ("Attention (window)", d.window, windowed.attention, {"b": windows, "u": d.window, "v": d.window}),
    ):
        yield case("vision", name, ("SamVisionSdpaAttention", lambda w=w: ocr.UnlimitedOcrSamVisionSdpaAttention(s_cfg, w)),
                   ours, sizes, sizes["b"], sizes["u"], sizes["v"], hidden)  # fmt: skip
    yield case("vision", "MLPBlock", ("SamMLPBlock", lambda: ocr.UnlimitedOcrSamMLPBlock(s_cfg)),
               windowed.mlp, tokens, d.b, n, hidden)  # fmt: skip
    for name, w, ours in (("Block (global)", 0, full), ("Block (window)", d.window, windowed)):
        yield case("vision", name, ("SamVisionLayer", lambda w=w: ocr.UnlimitedOcrSamVisionLayer(s_cfg, w)),
                   ours, grid, d.b, d.u, d.v, hidden)  # fmt: skip
    yield case("vision", "LayerNorm", ("LayerNorm written out", lambda: LayerNormWrittenOut(hidden)),
               windowed.norm, tokens, d.b, n, hidden, unseen=True)  # fmt: skip
    yield case("vision", "LayerNorm2d", ("VitDetLayerNorm", lambda: VitDetLayerNorm(d.neck)),
               ours_sam.neck_norm, grid, d.b, d.neck, d.u, d.v, unseen=True)  # fmt: skip
    yield case("vision", "Conv2d", ("torch.nn.Conv2d", lambda: nn.Conv2d(d.neck, d.downsample[0], 3, 2, 1, bias=False)),
               ours_sam.downsample[0], {"b": d.b, "i": d.u, "j": d.v}, d.b, d.neck, d.u, d.v)  # fmt: skip
    yield case("vision", "ImageEncoderViT", ("SamVisionEncoder", lambda: ocr.UnlimitedOcrSamVisionEncoder(s_cfg)),
               ours_sam, grid, d.b, 3, d.u * d.patch, d.v * d.patch, known=two_norms(d, d.b * n))  # fmt: skip

    side, positions = d.clip_grid, d.clip_grid**2 + 1
    clip_cfg = CLIPVisionConfig(
        hidden_size=d.clip_hidden,
        num_attention_heads=d.clip_heads,
        patch_size=d.clip_patch,
        image_size=d.clip_patch * side,
    )
    patch = mm.PatchEmbed(3, d.clip_hidden, d.clip_patch, bias=False)
    pixels = side * d.clip_patch
    yield case("vision", "CLIPVisionEmbeddings (conv)", ("CLIPVisionEmbeddings", lambda: ClipEmbeddings(clip_cfg)),
               mm.CLIPVisionEmbeddings(patch, positions, own_patches=True), {"b": d.b, "u": side, "v": side},
               d.b, 3, pixels, pixels)  # fmt: skip
    square = {"b": d.b, "u": rows, "v": cols}
    yield case("vision", "CLIPVisionEmbeddings", ("VisionEmbeddings", lambda: ocr.UnlimitedOcrVisionEmbeddings(e_cfg)),
               mm.CLIPVisionEmbeddings(patch, positions), square, d.b, d.clip_hidden, rows, cols,
               unseen=True, known=no_patch(d))  # fmt: skip
    line = {"b": d.b, "s": clip_tokens}
    for name, reference, make, ours in (
        ("NoTPAttention", "Attention", lambda: ocr.UnlimitedOcrAttention(e_cfg), block.attention),
        ("NoTPFeedForward", "MLP", lambda: ocr.UnlimitedOcrMLP(e_cfg), block.mlp),
        ("NoTPTransformerBlock", "EncoderLayer", lambda: ocr.UnlimitedOcrEncoderLayer(e_cfg), block),
        ("NoTPTransformer", "Encoder", lambda: ocr.UnlimitedOcrEncoder(e_cfg), mm.NoTPTransformer(block, d.clip_layers)),
    ):  # fmt: skip
        run = (lambda m, t: m(t, None)) if reference in ("EncoderLayer",) else (lambda m, t: m(t))
        yield case("vision", name, (reference, make), ours, line, d.b, clip_tokens, d.clip_hidden, run=run)
    vit = mm.VitModel(
        mm.CLIPVisionEmbeddings(patch, positions), mm.LayerNorm(d.clip_hidden), mm.NoTPTransformer(block, d.clip_layers)
    )
    yield case("vision", "VitModel", ("VisionEncoder", lambda: ocr.UnlimitedOcrVisionEncoder(e_cfg)),
               vit, square, d.b, d.clip_hidden, rows, cols, known=no_patch(d))  # fmt: skip
    inputs = d.downsample[1] + d.clip_hidden
    token_line = {"b": d.b, "s": rows * cols}
    yield case("vision", "MlpProjector (linear)", ("multi_modal_projector", lambda: nn.Linear(inputs, d.hidden)),
               mm.MlpProjector("linear", inputs, d.hidden), token_line, d.b, rows * cols, inputs)  # fmt: skip
    deep = [part for _ in range(d.depth - 1) for part in (nn.GELU, nn.Linear)]
    yield case("vision", "MlpProjector (mlp_gelu)", ("torch.nn.Sequential", lambda: nn.Sequential(
        nn.Linear(inputs, d.hidden), *(p() if p is nn.GELU else p(d.hidden, d.hidden) for p in deep))),
        mm.MlpProjector("mlp_gelu", inputs, d.hidden, d.depth), token_line, d.b, rows * cols, inputs)  # fmt: skip

    text = {"b": d.b, "s": d.s}
    wide = (d.b, d.s, d.hidden)
    shared = d.shared * d.expert_mlp
    yield case("decoder", "DeepseekV2MLP", ("TextMLP", lambda: ocr.UnlimitedOcrTextMLP(t_cfg, intermediate_size=shared)),
               mm.DeepseekV2MLP(d.hidden, shared), text, *wide)  # fmt: skip
    yield case("decoder", "MoEGate", ("TextTopkRouter", lambda: ocr.UnlimitedOcrTextTopkRouter(t_cfg)),
               mixture(d).gate, text, *wide)  # fmt: skip
    yield case("decoder", "DeepseekV2MoE", ("TextMoe", lambda: ocr.UnlimitedOcrTextMoe(experts_here(c).text_config)),
               mixture(d), text, *wide, skip=MIXTURE_IO)  # fmt: skip
    yield case("decoder", "DeepseekV2RMSNorm", ("TextRMSNorm", lambda: ocr.UnlimitedOcrTextRMSNorm(d.hidden)),
               mm.DeepseekV2RMSNorm(d.hidden), text, *wide, unseen=True)  # fmt: skip
    yield case("decoder", "TokenEmbedding", ("torch.nn.Linear after torch.nn.Embedding", None),
        # a lookup alone has nothing that a counter could see
        Sequence((mm.TokenEmbedding(d.vocabulary, d.hidden), mm.LMHead(d.vocabulary, d.hidden))), text,
        build=lambda: (nn.Sequential(nn.Embedding(d.vocabulary, d.hidden, dtype=dtype),
                                     nn.Linear(d.hidden, d.vocabulary, bias=False, dtype=dtype)),
                       (torch.zeros(d.b, d.s, dtype=torch.long),)))  # fmt: skip
    yield case("decoder", "LMHead", ("lm_head", lambda: nn.Linear(d.hidden, d.vocabulary, bias=False)),
               mm.LMHead(d.vocabulary, d.hidden), text, *wide)  # fmt: skip

    attended = {"b": d.b, "s": d.s, "t": context}

    def with_cache(make: Any) -> Any:
        def build() -> tuple[nn.Module, tuple[Any, ...]]:
            table = (x(d.b, d.s, d.head), x(d.b, d.s, d.head))
            return make().to(dtype).eval(), (x(*wide), table, _cache(d, dtype))

        return build

    chunked = d.past > 0 and d.s > 1  # transformers then needs a mask, or it drops the cache from the product

    def decode(module: Any, hidden: Any, table: Any, cache: Any) -> Any:
        mask = torch.ones(1, 1, d.s, context, dtype=torch.bool, device=hidden.device) if chunked else None
        return module(hidden, position_embeddings=table, past_key_values=_fresh(cache, d), attention_mask=mask)

    masked = {"kernel_io_bytes": "with a mask transformers reads it and copies grouped KV heads"} if chunked else {}

    for kind in (mm.LlamaAttention, mm.LlamaFlashAttention2):
        yield case("llama", kind.__name__, ("TextAttention", None), attention(d, kind), attended, run=decode, skip=masked,
                   build=with_cache(lambda: ocr.UnlimitedOcrTextAttention(t_cfg, 0)))  # fmt: skip
    for index, name, mlp in ((0, "dense", mm.DeepseekV2MLP(d.hidden, d.mlp)), (1, "moe", mixture(d))):
        ours = mm.DeepseekV2DecoderLayer(attention(d), mlp, mm.DeepseekV2RMSNorm(d.hidden))
        yield case("decoder", f"DeepseekV2DecoderLayer ({name})", ("TextDecoderLayer", None), ours, attended,
                   run=decode, build=with_cache(lambda i=index: ocr.UnlimitedOcrTextDecoderLayer(experts_here(c).text_config, i)),
                   skip=MIXTURE_IO if index else masked)  # fmt: skip
    rotary = mm.LlamaRotaryEmbedding(d.head)
    yield case("llama", "LlamaRotaryEmbedding (transformers)", ("TextRotaryEmbedding", None), rotary, text,
               build=lambda: (ocr.UnlimitedOcrTextRotaryEmbedding(t_cfg), (x(*wide), _positions(d))), unseen=True)  # fmt: skip
    yield Case("llama", "LlamaRotaryEmbedding (vendor)", "inv_freq @ positions", lambda: rotary.trace(b=d.b, s=d.s),
               lambda: (None, (torch.randn(d.head // 2), _positions(d))), _vendor_rotary)  # fmt: skip


def _positions(d: Dims) -> torch.Tensor:
    return torch.zeros(d.b, d.s, dtype=torch.long)


def _vendor_rotary(module: None, inv_freq: torch.Tensor, positions: torch.Tensor) -> Any:
    """The published form: frequencies x positions as a batched matmul, then cos, sin and scaling."""
    left = inv_freq[None, :, None].float().expand(positions.shape[0], -1, 1)
    angles = (left @ positions[:, None, :].float()).transpose(1, 2)
    table = torch.cat((angles, angles), dim=-1)
    return (table.cos() * 1.0).bfloat16(), (table.sin() * 1.0).bfloat16()


def _cache(d: Dims, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The keys and values that are in the cache before the call."""
    shape = (d.b, d.kv_heads, d.past, d.head)
    return (torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)) if d.past else None


def _fresh(past: Any, d: Dims) -> DynamicCache:
    """A cache that holds `past` (for layer 0 and 1), new for each call."""
    cache = DynamicCache()
    for layer in range(2):
        if past is not None:
            cache.update(*past, layer)
    return cache
