"""DeepSeek-OCR as the published ModelMeter report counts it, departure by departure.

With no departure the counts are those of the real model, with all of them the published ones. What each is, and why the
real count is right, is told in `departures.py`; the report's table of layers is made in `published_layers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import pairwise
from operator import attrgetter
from typing import final

from modelmeter.errors import InputError, choose
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op
from modelmeter.models.deepseek_ocr.departures import DEPARTURES, Departure
from modelmeter.models.deepseek_ocr.published_layers import LayerRow, layer_table
from modelmeter.models.model import BaseModel, Stage
from modelmeter.models.vlm import VLM
from modelmeter.programs.counting import Counting
from modelmeter.sizes import Size
from modelmeter.workload import Workload


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

    @cached_property
    def stages(self) -> tuple[Stage, ...]:  # type: ignore[override]
        return tuple(reduce(lambda stage, d: d.stage(stage), self.chosen, real) for real in self.real.stages)

    def changed(self, graph: Graph) -> Graph:
        ops: Iterable[Op] = graph.ops
        return graph.with_ops(reduce(lambda ops, d: d.ops(ops), self.chosen, ops))

    def counted(self, counting: Counting) -> Counting:
        return replace(counting, runtime=reduce(lambda runtime, d: d.runtime(runtime), self.chosen, counting.runtime))

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
        """The published rows of layers, in FLOPs."""
        return layer_table(self.real, self.changed, as_published="layer_table" in self.departures)
