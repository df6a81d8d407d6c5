"""DeepSeek-OCR as the published ModelMeter report counts it, departure by departure.

With no departure the counts are those of the real model, with all of them the published ones. What each is: see
`departures.py`. Here is the report's table of layers too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import pairwise
from operator import attrgetter
from typing import Any, final

from modelmeter import layers as nn
from modelmeter.errors import InputError, choose
from modelmeter.graph.graph import Graph
from modelmeter.graph.place import Node, Root, Sizes
from modelmeter.layers.base import rebuild, walk
from modelmeter.models.deepseek_ocr.departures import DEPARTURES, TOLD, Departure
from modelmeter.models.model import BaseModel, Stage
from modelmeter.models.vlm import VLM
from modelmeter.programs.counting import Counting
from modelmeter.sizes import Size, ratio
from modelmeter.workload import Workload

STACKED = 2  # blocks of the published rows that stand for CLIP's 24


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
        Raises InputError for a model without a layer of the class of a row.
        """
        table, cut, layers = TOLD["layer_table"], "layer_table" in self.departures, _layers(self.real)
        rows = []
        for group, name, row in ((group, *item) for group, some in table["rows"].items() for item in some.items()):
            found = [layer for layer in layers if isinstance(layer, getattr(nn, name.partition("_")[0]))]
            if len(found) < row.get("nth", 1):
                raise InputError(f"{self.name} has no layer for the published row {name}")
            layer = rebuild(found[row.get("nth", 1) - 1], _cut if cut else lambda layer: layer)
            place = row["place"], table["sizes"][row["sizes"]], not (cut and group == "llama")
            measured = _graph(_cut_measured(layer) if cut else layer, *place).ops
            theory = self.changed(_graph(layer, *place)).ops
            flops = sum(op.tensor * op.times for op in measured)
            counted = sum((op.tensor + op.cuda * cut) * op.times for op in theory)
            rows.append(LayerRow(group, name, f"{table['modules'][group]}.{type(layer).__name__}", flops, counted))
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
        gap = abs(self.measured_flops - self.theoretical_flops)
        return ratio(gap, self.measured_flops) if self.measured_flops else 0


def _layers(model: VLM) -> list[Any]:
    """The layers of a model, before them those that the report counts and the model does not have as they are."""
    found: list[Any] = list(walk(model))
    embeddings = next(layer for layer in found if isinstance(layer, nn.CLIPVisionEmbeddings))
    a = next(layer for layer in found if isinstance(layer, nn.LlamaAttention))
    rotary = a.rotary or nn.LlamaRotaryEmbedding(a.e)
    return [replace(embeddings, own_patches=True), nn.LlamaFlashAttention2(a.d, a.g, a.r, a.e, rotary), rotary, *found]


def _cut(layer: Any) -> Any:
    """A layer as the table counts it on both sides."""
    if isinstance(layer, nn.MlpProjector):
        return nn.MlpProjector("mlp_gelu", layer.c, layer.d, depth=2)
    return replace(layer, l=STACKED) if isinstance(layer, nn.NoTPTransformer) else layer


def _cut_measured(layer: Any) -> Any:
    """What the table measures in a layer's stead: the rotary table is made outside the measured layers."""
    if isinstance(layer, nn.DeepseekV2DecoderLayer):
        attention: Any = layer.attention
        return replace(layer, attention=replace(attention, rotary=None))
    return replace(layer, relative=False) if isinstance(layer, nn.Attention) else layer


def _graph(layer: nn.BaseLayer, place: str, sizes: dict[str, Size], core: bool) -> Graph:
    """The ops of a layer at a path; without `core` not what an attention kernel does: scores, softmax, weighted sum."""
    n = Sizes(sizes | layer.axes, Node(place, ""), Root(), bound=frozenset(sizes))
    kept = (op for op in layer.ops(n) if core or not op.composite or op.composite.kind != "attention")
    return Graph(tuple(kept), frozenset())
