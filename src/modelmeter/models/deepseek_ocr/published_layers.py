"""The published table of layers: "measured" beside "theoretical" FLOPs, and how its rows were made.

Measured are the tensor-core FLOPs of the real layers, which FlopCounterMode counts exactly; theoretical
are those of the same layers as the chosen departures count them. Without departures the two are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from modelmeter.cost import measure
from modelmeter.layer import BaseLayer, walk
from modelmeter.layers import (
    Block,
    DeepseekV2DecoderLayer,
    DeepseekV2MLP,
    DeepseekV2MoE,
    LlamaFlashAttention2,
    MlpProjector,
)
from modelmeter.models.deepseek_ocr.published import PublishedDeepSeekOCR
from modelmeter.ops import Op, Options, Sizes
from modelmeter.sizes import Size, ceil_div, ratio

DECODER_TOKENS = 512  # of the published rows of decoder and llama
CLIP_SIDE = 16  # a CLIP image of 224 pixels has 16 patches of 14 a side
PROJECTOR_TOKENS = 577  # of the published row: 24 x 24 patches and a class token, of no view of the model
STACKED = 2  # blocks of the published rows that stand for CLIP's 24
VENDOR = Options()
WITHOUT_ROTARY = Options(rotary="transformers")  # the rotary table is then made outside the layers
MODULES = {
    "vision": "deepencoder",
    "decoder": "modeling_deepseekv2",
    "llama": "transformers.models.llama.modeling_llama",
}
"""Where the report found the reference class of a layer, by group."""


@dataclass(frozen=True)
class LayerRow:
    """A row of the table, in FLOPs."""

    group: str
    layer: str
    implementation_class: str
    measured_flops: Size
    theoretical_flops: Size

    @property
    def difference(self) -> Size:
        """|measured - theoretical| / measured; 0 where nothing is measured, as published."""
        if not self.measured_flops:
            return 0
        return ratio(abs(self.measured_flops - self.theoretical_flops), self.measured_flops)


@dataclass(frozen=True)
class _Row:
    """A layer, its path in the model (`place`) and workload sizes.

    `measured` stands in for it on the measured side, which ran under `options`; without `core` both
    sides leave out what attention fuses: scores, softmax and weighted sum.
    """

    group: str
    name: str
    place: str
    layer: BaseLayer
    sizes: dict[str, Size]
    measured: BaseLayer | None = None
    options: Options = VENDOR
    core: bool = True


def layer_table(model: PublishedDeepSeekOCR) -> list[LayerRow]:
    """The 21 published rows, in FLOPs; which departures they show are those of the model.

    Of these, `layer_table` cuts layers as the report did and adds CUDA-core FLOPs to the theory.
    """
    as_published = "layer_table" in model.departures
    rows = []
    for row in [*_vision(model, as_published), *_decoder(model, as_published)]:
        measured = measure(_trace(row, row.measured or row.layer, row.options)).tensor_core_flops
        counted = measure(model.published(_trace(row, row.layer, VENDOR)))
        theoretical = counted.flops if as_published else counted.tensor_core_flops
        implementation = f"{MODULES[row.group]}.{type(row.layer).__name__}"
        rows.append(LayerRow(row.group, row.name, implementation, measured, theoretical))
    return rows


def _trace(row: _Row, layer: BaseLayer, options: Options) -> list[Op]:
    ops = layer.ops(Sizes(row.sizes | layer.axes, options, path=row.place))
    return [op for op in ops if row.core or not op.group]


def _vision(model: PublishedDeepSeekOCR, as_published: bool) -> Iterator[_Row]:
    sam, clip, projector = model.sam, model.clip, model.projector
    blocks = [block for block in walk(sam) if isinstance(block, Block)]
    window = next(block for block in blocks if block.w is not None)
    full = next(block for block in blocks if block.w is None)
    attention, block, stack = window.attention, clip.transformer.block, clip.transformer
    if as_published:
        stack = replace(stack, l=STACKED)
        projector = MlpProjector("mlp_gelu", projector.c, projector.d, depth=2)
    unbiased = replace(attention, relative=False) if as_published else None
    windows = {"b": ceil_div(sam.U, window.w) * ceil_div(sam.U, window.w), "u": window.w, "v": window.w}
    page, pixels = {"b": 1, "u": sam.U, "v": sam.U}, {"b": 1, "s": sam.U * sam.U}
    image, tokens = {"b": 1, "u": CLIP_SIDE, "v": CLIP_SIDE}, {"b": 1, "s": clip.embeddings.n}
    own = replace(clip.embeddings, own_patches=True)
    yield _Row("vision", "Attention", "sam.attn", attention, windows, measured=unbiased)
    yield _Row("vision", "MLPBlock", "sam.mlp", full.mlp, pixels)
    yield _Row("vision", "PatchEmbed", "sam.patch", sam.patch, page)
    yield _Row("vision", "Block", "sam", full, page)
    yield _Row("vision", "CLIPVisionEmbeddings_conv", "clip.embeddings", own, image)
    yield _Row("vision", "LayerNorm2d", "sam.neck.norm", sam.neck_norm, page)
    yield _Row("vision", "ImageEncoderViT", "sam", sam, page)
    yield _Row("vision", "NoTPAttention", "clip.attn", block.attention, tokens)
    yield _Row("vision", "NoTPFeedForward", "clip.mlp", block.mlp, tokens)
    yield _Row("vision", "NoTPTransformerBlock", "clip.layers", block, tokens)
    yield _Row("vision", "NoTPTransformer", "clip.transformer", stack, tokens)
    yield _Row("vision", "VitModel", "clip", replace(clip, transformer=stack), image)
    yield _Row("vision", "MlpProjector", "projector", projector, {"b": 1, "s": PROJECTOR_TOKENS})


def _decoder(model: PublishedDeepSeekOCR, as_published: bool) -> Iterator[_Row]:
    layers = [layer for layer in walk(model.decoder) if isinstance(layer, DeepseekV2DecoderLayer)]
    dense = next(layer for layer in layers if isinstance(layer.mlp, DeepseekV2MLP))
    moe, mixture = next((layer, layer.mlp) for layer in layers if isinstance(layer.mlp, DeepseekV2MoE))
    sizes = {"b": 1, "s": DECODER_TOKENS, "t": DECODER_TOKENS}
    run = WITHOUT_ROTARY if as_published else VENDOR
    a = dense.attention
    flash = LlamaFlashAttention2(a.d, a.g, a.r, a.e, a.rotary, a.fused_qkv)
    yield _Row("decoder", "DeepseekV2MLP", "decoder.layers.mlp", dense.mlp, sizes)
    yield _Row("decoder", "MoEGate", "decoder.layers.mlp.gate", mixture.gate, sizes)
    yield _Row("decoder", "DeepseekV2MoE", "decoder.layers.mlp", mixture, sizes)
    yield _Row("decoder", "DeepseekV2RMSNorm", "decoder.layers.norm1", dense.norm, sizes)
    yield _Row("decoder", "DeepseekV2DecoderLayer_dense", "decoder.layers", dense, sizes, options=run)
    yield _Row("decoder", "DeepseekV2DecoderLayer_moe", "decoder.layers", moe, sizes, options=run)
    yield _Row("llama", "LlamaFlashAttention2", "decoder.layers.attn", flash, sizes, core=not as_published)
    yield _Row("llama", "LlamaRotaryEmbedding", "rotary", a.rotary, sizes)
