"""DeepSeek-OCR as the published ModelMeter report counts it, departure by departure.

With no departure the counts are those of the real model, with all of them the published ones. What
each departure is, and why the real count is right, is told in `departures.py`; the report's table of
layers is made in `published_layers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

from modelmeter.errors import InputError, choose
from modelmeter.layers import CausalLM, ImageEncoderViT, MlpProjector, VitModel
from modelmeter.models.deepseek_ocr.departures import DEPARTURES, Departure
from modelmeter.models.deepseek_ocr.model import DeepSeekOCR
from modelmeter.models.deepseek_ocr.preprocess import CropRule
from modelmeter.models.model import STAGES, Model
from modelmeter.ops import Op, Sizes
from modelmeter.sizes import Size
from modelmeter.workload import ImagePlan, Workload


@final
@dataclass(frozen=True)
class PublishedDeepSeekOCR(Model):
    """DeepSeek-OCR with the departures that `departures` names; its other fields are those of DeepSeekOCR.

    Raises InputError for a name that is not in DEPARTURES.
    """

    name: str
    preprocess: CropRule
    sam: ImageEncoderViT
    clip: VitModel
    projector: MlpProjector
    decoder: CausalLM
    departures: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.departures, (list, tuple)):
            raise InputError(f"departures must be a list of names, not {self.departures!r}")
        for name in self.departures:
            choose("departure", name, [departure.name for departure in DEPARTURES])
        object.__setattr__(self, "departures", tuple(dict.fromkeys(self.departures)))
        _ = self.base

    @property
    def chosen(self) -> tuple[Departure, ...]:
        """The departures by name, in the order in which they are applied."""
        return tuple(departure for departure in DEPARTURES if departure.name in self.departures)

    @cached_property
    def base(self) -> DeepSeekOCR:
        """The real model, but for the departures that change its layers."""
        model = DeepSeekOCR(self.name, self.preprocess, self.sam, self.clip, self.projector, self.decoder)
        for departure in self.chosen:
            model = departure.model(model)
        return model

    def plan(
        self, *, mode: str | None, image_size: tuple[int, int] | None, grid: tuple[Size, Size] | None
    ) -> ImagePlan:
        return self.base.plan(mode=mode, image_size=image_size, grid=grid)

    def grids(self, largest: int) -> list[tuple[int, int]]:
        return self.base.grids(largest)

    @property
    def modes(self) -> tuple[str, ...]:
        return self.base.modes

    @property
    def positions(self) -> Size | None:
        return self.base.positions

    def has_crops(self, mode: str | None) -> bool:
        return self.base.has_crops(mode)

    def vision(self, n: Sizes, image: ImagePlan) -> Iterator[Op]:
        return self.published(self.base.vision(n, image))

    def language(self, n: Sizes) -> Iterator[Op]:
        for departure in self.chosen:
            n = departure.sizes(n)
        return self.published(self.base.language(n))

    def published(self, ops: Iterable[Op]) -> Iterator[Op]:
        """The ops as the chosen departures count them."""
        for departure in self.chosen:
            ops = departure.ops(ops)
        return iter(ops)


def report_counts(model: Model, work: Workload) -> dict[str, Size]:
    """What the report tells of a page: FLOPs by stage and engine; bytes of weights, I/O and peak.

    I/O is that of vision and prefill together and that of decode, the peak the larger of the first two.
    """
    costs = {stage: model.cost(stage, work) for stage in STAGES}
    flops = {
        f"{stage}_{engine}_core_flops": getattr(cost, f"{engine}_core_flops")
        for stage, cost in costs.items()
        for engine in ("tensor", "cuda")
    }
    both = costs["vision"] + costs["prefill"]
    return flops | {
        "weight_bytes": model.storage(work).weight_bytes,
        "io_bytes": both.io_bytes,
        "decode_io_bytes": costs["decode"].io_bytes,
        "peak_activation_bytes": both.peak_activation_bytes,
    }


def effects(model: PublishedDeepSeekOCR, work: Workload) -> dict[str, dict[str, Size]]:
    """What each departure adds to each of the `report_counts` (FLOPs, bytes) when it joins those before it.

    In the order of `model.departures`; the sums over departures are published less real, exactly.
    """
    names = model.departures
    steps = [report_counts(replace(model, departures=names[:many]), work) for many in range(len(names) + 1)]
    return {
        name: {count: after[count] - before[count] for count in after}
        for name, before, after in zip(names, steps, steps[1:], strict=False)
    }
