"""The published table of layers: "measured" beside "theoretical" FLOPs, and how its rows were made.

Measured are the tensor-core FLOPs of the real layers, which FlopCounterMode counts exactly; theoretical those of the
same layers as the chosen departures count them. Without departures the two are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from modelmeter import layers as nn
from modelmeter.graph.graph import Graph
from modelmeter.graph.place import Node, Root, Sizes
from modelmeter.layers.base import walk
from modelmeter.models.vlm import VLM
from modelmeter.sizes import Size, ceil_div, ratio

DECODER_TOKENS = 512  # of the published rows of decoder and llama
CLIP_SIDE = 16  # a CLIP image of 224 pixels has 16 patches of 14 a side
PROJECTOR_TOKENS = 577  # of the published row: 24 x 24 patches and a class token, of no view of the model
STACKED = 2  # blocks of the published rows that stand for CLIP's 24
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

    `measured` stands in for it on the measured side; without `core` both sides leave out what an attention kernel
    does: scores, softmax and weighted sum.
    """

    group: str
    name: str
    place: str
    layer: nn.BaseLayer
    sizes: dict[str, Size]
    measured: nn.BaseLayer | None = None
    core: bool = True

    def graph(self, layer: nn.BaseLayer) -> Graph:
        """The ops of a layer at the place."""
        n = Sizes(self.sizes | layer.axes, Node(self.place, self.name), Root(), bound=frozenset(self.sizes))
        kept = (op for op in layer.ops(n) if self.core or not op.composite or op.composite.kind != "attention")
        return Graph(tuple(kept), frozenset())


def layer_table(real: VLM, changed: Callable[[Graph], Graph], *, as_published: bool) -> list[LayerRow]:
    """The 21 published rows, in FLOPs, of a model whose graphs are `changed` for the theory.

    `as_published` cuts layers as the report did and adds CUDA-core FLOPs to the theory.
    """
    rows = []
    for row in [*_vision(real, as_published), *_decoder(real, as_published)]:
        measured = sum(op.tensor * op.times for op in row.graph(row.measured or row.layer).ops)
        counted = changed(row.graph(row.layer)).ops
        theoretical = sum((op.tensor + (op.cuda if as_published else 0)) * op.times for op in counted)
        implementation = f"{MODULES[row.group]}.{type(row.layer).__name__}"
        rows.append(LayerRow(row.group, row.name, implementation, measured, theoretical))
    return rows


def _vision(model: VLM, as_published: bool) -> Iterator[_Row]:
    tower, projector = model.tower, model.projector
    assert isinstance(tower, nn.DeepEncoder)
    sam, clip = tower.sam, tower.clip
    blocks = {block.w is None: block for block in walk(sam) if isinstance(block, nn.Block)}
    full, window, stack = blocks[True], blocks[False], clip.transformer
    assert isinstance(stack, nn.NoTPTransformer)
    block, attention = stack.block, window.attention
    if as_published:
        stack = replace(stack, l=STACKED)
        projector = nn.MlpProjector("mlp_gelu", projector.c, projector.d, depth=2)
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


def _decoder(model: VLM, as_published: bool) -> Iterator[_Row]:
    layers = {type(layer.mlp): layer for layer in walk(model.decoder) if isinstance(layer, nn.DeepseekV2DecoderLayer)}
    dense, moe = layers[nn.DeepseekV2MLP], layers[nn.DeepseekV2MoE]
    sizes = {"b": 1, "s": DECODER_TOKENS, "t": DECODER_TOKENS}
    a, mixture = dense.attention, moe.mlp
    assert isinstance(a, nn.LlamaAttention) and isinstance(mixture, nn.DeepseekV2MoE)
    given = replace(a, rotary=None) if as_published else a  # the rotary table is made outside the measured layers
    rotary = a.rotary or nn.LlamaRotaryEmbedding(a.e)
    flash = nn.LlamaFlashAttention2(a.d, a.g, a.r, a.e, rotary)
    yield _Row("decoder", "DeepseekV2MLP", "decoder.layers.mlp", dense.mlp, sizes)
    yield _Row("decoder", "MoEGate", "decoder.layers.mlp.gate", mixture.gate, sizes)
    yield _Row("decoder", "DeepseekV2MoE", "decoder.layers.mlp", mixture, sizes)
    yield _Row("decoder", "DeepseekV2RMSNorm", "decoder.layers.norm1", dense.norm, sizes)
    for name, layer in (("dense", dense), ("moe", moe)):
        measured = replace(layer, attention=given)
        yield _Row("decoder", f"DeepseekV2DecoderLayer_{name}", "decoder.layers", layer, sizes, measured)
    yield _Row("llama", "LlamaFlashAttention2", "decoder.layers.attn", flash, sizes, core=not as_published)
    yield _Row("llama", "LlamaRotaryEmbedding", "rotary", rotary, sizes)
