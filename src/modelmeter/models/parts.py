"""Models cut and placed: decoder layers in ranges, where each op is at home, and what of a model is at one place.

What goes to which place is told by `placement.py`; how a graph is taken apart: `runtimes/places.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any, final

from modelmeter.errors import InputError
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op
from modelmeter.layers.base import BaseLayer, Repeat, rebuild, walk
from modelmeter.layers.decoder import CausalLM
from modelmeter.models.model import BaseModel
from modelmeter.programs.counting import Counting
from modelmeter.runtimes.places import Here


def decoder_of(model: BaseModel) -> CausalLM:
    """The decoder of a model. Raises InputError if it has none with layers that can be placed."""
    whole = (stage.layer_of(stage.whole) for stage in model.stages)
    found = next((part for layer in whole for part in walk(layer) if isinstance(part, CausalLM)), None)
    if found is None or not isinstance(layers_of(found), int):
        raise InputError(f"{model.name} has no decoder whose layers are known one by one, so none can be placed")
    return found


def vision_of(model: BaseModel) -> list[str]:
    """The stages of a model that are not its decoder's."""
    layers = ((stage.name, stage.layer_of(stage.whole)) for stage in model.stages)
    return [name for name, layer in layers if not any(isinstance(part, CausalLM) for part in walk(layer))]


def layers_of(decoder: CausalLM) -> int:
    """How many layers a decoder has."""
    many: int = sum(layer.l if isinstance(layer, Repeat) else 1 for layer in decoder.layers)
    return many


def in_ranges(layers: Iterable[BaseLayer], counts: Sequence[int]) -> Iterator[tuple[int, BaseLayer]]:
    """Layers cut into ranges of so many layers: each stack with the number of its range, range by range.

    >>> from modelmeter.layers import RMSNorm
    >>> [(number, stack.l) for number, stack in in_ranges([Repeat(RMSNorm(4), 1), Repeat(RMSNorm(4), 11)], (6, 6))]
    [(0, 1), (0, 5), (1, 6)]
    """
    stacks: list[tuple[BaseLayer, Sequence[int]]] = []
    for layer in layers:
        first = sum(len(places) for _, places in stacks)
        many: Any = layer.l if isinstance(layer, Repeat) else 1
        stacks.append((layer, getattr(layer, "places", range(first, first + many))))
    for number, (start, end) in enumerate(pairwise(accumulate(counts, initial=0))):
        for layer, places in stacks:
            inside = tuple(place for place in places if start <= place < end)
            if inside:
                apart: dict[str, Any] = {"places": inside} if hasattr(layer, "places") else {}
                yield number, replace(layer, l=len(inside), **apart) if isinstance(layer, Repeat) else layer


def cut(model: BaseModel, counts: Sequence[int]) -> Any:
    """The same model with the layers of its decoder cut into ranges."""

    def change(layer: BaseLayer) -> BaseLayer:
        if not isinstance(layer, CausalLM):
            return layer
        return replace(layer, layers=tuple(stack for _, stack in in_ranges(layer.layers, counts)))

    return rebuild(model, change)


@final
@dataclass(frozen=True)
class Homes:
    """The place of each op: by stage (where it is at one place), by part of a decoder and by stack of its layers."""

    stages: tuple[tuple[str, str], ...]
    embedding: str
    stacks: tuple[str, ...]
    head: str

    def __call__(self, op: Op) -> str:
        stage, (part, _, inside) = op.node.around[0], op.path.partition(".")
        apart: Mapping[str, str] = dict(self.stages)
        if stage in apart:
            return apart[stage]
        if part == "decoder" and inside.startswith("layers"):
            return self.stacks[int(inside.partition(".")[0].removeprefix("layers"))]
        return self.head if part == "head" or inside.partition(".")[0] == "norm" else self.embedding


@final
@dataclass(frozen=True)
class Part(BaseModel):
    """What of a model is at one place, a model of its own: its weights, its kernels, its share of every count."""

    whole: BaseModel
    homes: Homes
    place: str
    name = property(attrgetter("whole.name"))
    stages = property(attrgetter("whole.stages"))
    planner = property(attrgetter("whole.planner"))
    positions = property(attrgetter("whole.positions"))
    beside = property(attrgetter("whole.beside"))
    notes = property(attrgetter("whole.notes"))

    def changed(self, graph: Graph) -> Graph:
        return self.whole.changed(graph)

    def counted(self, counting: Counting) -> Counting:
        counting, here = self.whole.counted(counting), Here(self.homes, self.place)
        runtime = counting.runtime
        return replace(counting, runtime=replace(runtime, passes=(*runtime.passes, here)))

    def holds(self, op: Op) -> bool:
        return self.homes(op) == self.place
