"""DeepSeek-OCR as the published ModelMeter report counts it, departure by departure.

With no departure the counts are those of the real model, with all of them the published ones. What each is, and why the
real count is right, is told in `departures.py`. Here is the report's table of layers too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import pairwise
from operator import attrgetter
from typing import Any, final

from modelmeter import layers as nn
from modelmeter.errors import InputError, choose
from modelmeter.graph.graph import Graph
from modelmeter.graph.place import Node, Root, Sizes
from modelmeter.layers.base import walk
from modelmeter.models.deepseek_ocr.departures import DEPARTURES, Departure
from modelmeter.models.model import BaseModel, Stage
from modelmeter.models.vlm import VLM
from modelmeter.programs.counting import Counting
from modelmeter.sizes import Size, ceil_div, ratio
from modelmeter.workload import Workload

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


@final
@dataclass(frozen=True)
class PublishedDeepSeekOCR(BaseModel):
    """The real model with the departures of these names; raises InputError for one that is not in DEPARTURES."""

    real: VLM
    departures: tuple[str, ...]
    name = property(attrgetter("real.name"))
    planner = property(attrgetter("real.planner"))
    positions = property(attrgetter("real.positions"))

    def __post_init__(self) -> None:
        if not isinstance(self.departures, (list, tuple)):
            raise InputError(f"departures must be a list of names, not {self.departures!r}")
        for name in self.departures:
            choose("departure", name, [departure.name for departure in DEPARTURES])
        object.__setattr__(self, "departures", tuple(dict.fromkeys(self.departures)))

    @property
    def chosen(self) -> tuple[Departure, ...]:
        """The departures by name, in the order in which they are applied."""
        return tuple(departure for departure in DEPARTURES if departure.name in self.departures)

    def _departed(self, of: str, real: Any) -> Any:
        return reduce(lambda thing, d: d.change(thing) if d.of == of else thing, self.chosen, real)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:  # type: ignore[override]
        return tuple(self._departed("stage", real) for real in self.real.stages)

    def changed(self, graph: Graph) -> Graph:
        return graph.with_ops(self._departed("ops", graph.ops))

    def counted(self, counting: Counting) -> Counting:
        return replace(counting, runtime=self._departed("runtime", counting.runtime))

    def counts(self, work: Workload) -> dict[str, Size]:
        """What the report tells of a page: FLOPs by stage and engine; bytes of weights, I/O and peak.

        I/O is that of vision and prefill together and that of decode, the peak the larger of the first two.
        """
        costs = self.costs(work)
        engines = ("tensor_core_flops", "cuda_core_flops")
        flops = {f"{stage}_{engine}": getattr(cost, engine) for stage, cost in costs.items() for engine in engines}
        both = costs["vision"] + costs["prefill"]
        return flops | {
            "weight_bytes": self.storage(work).weight_bytes,
            "io_bytes": both.io_bytes,
            "decode_io_bytes": costs["decode"].io_bytes,
            "peak_activation_bytes": both.peak_activation_bytes,
        }

    def effects(self, work: Workload) -> dict[str, dict[str, Size]]:
        """What each departure adds to each of the `counts` (FLOPs, bytes) when it joins those before it.

        In the order of `departures`; the sums over departures are published less real, exactly.
        """
        names = self.departures
        steps = [replace(self, departures=names[:many]).counts(work) for many in range(len(names) + 1)]
        return {
            name: {count: after[count] - before[count] for count in after}
            for name, (before, after) in zip(names, pairwise(steps), strict=True)
        }

    def layer_table(self) -> list[LayerRow]:
        """The 21 published rows of layers: "measured" beside "theoretical" FLOPs.

        Measured are the tensor-core FLOPs of real layers, which FlopCounterMode counts exactly; theoretical those of
        the same layers as the departures count them, with CUDA-core FLOPs where the departure `layer_table` is chosen.
        """
        rows, cut = [], "layer_table" in self.departures
        for row in [*_vision(self.real, cut), *_decoder(self.real, cut)]:
            measured = sum(op.tensor * op.times for op in row.graph(row.measured or row.layer).ops)
            counted = self.changed(row.graph(row.layer)).ops
            theoretical = sum((op.tensor + op.cuda * cut) * op.times for op in counted)
            implementation = f"{MODULES[row.group]}.{type(row.layer).__name__}"
            rows.append(LayerRow(row.group, row.name, implementation, measured, theoretical))
        return rows


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


def _vision(model: VLM, as_published: bool) -> Iterator[_Row]:
    tower: Any = model.tower
    sam, clip, projector = tower.sam, tower.clip, model.projector
    blocks = {block.w is None: block for block in walk(sam) if isinstance(block, nn.Block)}
    full, window, stack, block = blocks[True], blocks[False], clip.transformer, clip.transformer.block
    if as_published:
        stack = replace(stack, l=STACKED)
        projector = nn.MlpProjector("mlp_gelu", projector.c, projector.d, depth=2)
    unbiased = replace(window.attention, relative=False) if as_published else None
    windows = {"b": ceil_div(sam.U, window.w) * ceil_div(sam.U, window.w), "u": window.w, "v": window.w}
    page, pixels = {"b": 1, "u": sam.U, "v": sam.U}, {"b": 1, "s": sam.U * sam.U}
    image, tokens = {"b": 1, "u": CLIP_SIDE, "v": CLIP_SIDE}, {"b": 1, "s": clip.embeddings.n}
    own = replace(clip.embeddings, own_patches=True)
    yield _Row("vision", "Attention", "sam.attn", window.attention, windows, measured=unbiased)
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
    layers: list[Any] = [layer for layer in walk(model.decoder) if isinstance(layer, nn.DeepseekV2DecoderLayer)]
    dense, moe = (next(x for x in layers if isinstance(x.mlp, k)) for k in (nn.DeepseekV2MLP, nn.DeepseekV2MoE))
    sizes = {"b": 1, "s": DECODER_TOKENS, "t": DECODER_TOKENS}
    a, mixture = dense.attention, moe.mlp
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
