"""A case of the proof: one of our layers or stages beside the real module that it models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from modelmeter.layers.base import BaseLayer
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.programs.kernels import Kernel
from modelmeter.validate.counters import ScalarOperations, tensor_core_flops
from modelmeter.workload import Workload


@dataclass(frozen=True)
class LayerAt:
    """A layer at sizes."""

    layer: BaseLayer
    sizes: Mapping[str, int]

    def cost(self) -> StageCost:
        return self.layer.cost(**self.sizes)

    def kernels(self) -> list[Kernel]:
        return self.layer.program().kernels(**self.sizes)


@dataclass(frozen=True)
class StageAt:
    """A stage of a model at a workload; of decode that step."""

    model: BaseModel
    stage: str
    work: Workload
    step: int = 1

    def cost(self) -> StageCost:
        later = replace(self.work, prompt_tokens=self.work.prompt_tokens + self.step - 1, decode_steps=1)
        return self.model.cost(self.stage, later)

    def kernels(self) -> list[Kernel]:
        return self.model.kernels(self.stage, self.work, self.step)


@dataclass(frozen=True)
class Case:
    """`build` makes the module and its inputs; `run` calls it.

    `unseen` says that torch's counter sees no FLOPs by nature (norms, lookups): then the scalar
    operations are what is compared. `known` is by how much the reference differs for a stated reason;
    `skip` names quantities that the reference computes otherwise, with the reason: without scalar operations
    (`cuda_core_flops`) no operator is watched. `device` is where its operators are counted.
    """

    group: str
    layer: str
    reference: str
    ours: LayerAt | StageAt
    build: Callable[[], tuple[torch.nn.Module | None, tuple[Any, ...]]]
    run: Callable[..., Any] = lambda module, *inputs: module(*inputs)
    unseen: bool = False
    known: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    skip: Mapping[str, str] = field(default_factory=dict)
    device: str = "meta"


UNSEEN = {"unseen": True}
"""`more` of a layer without tensor-core FLOPs."""


class Row(NamedTuple):
    """A layer at `sizes` beside the module that `make` makes, which is given a random tensor of `shape`, then `others`.

    `more` are further fields of its Case.
    """

    layer: str
    make: Callable[..., torch.nn.Module]
    ours: BaseLayer
    sizes: Mapping[str, int]
    shape: tuple[int, ...]
    reference: str = ""
    others: Callable[[torch.dtype], tuple[Any, ...]] = lambda dtype: ()
    more: Mapping[str, Any] = MappingProxyType({})

    def case(self, group: str, dtype: torch.dtype = torch.bfloat16) -> Case:
        """The case in a group of the table."""

        def build() -> tuple[torch.nn.Module, tuple[Any, ...]]:
            return self.make().to(dtype).eval(), (torch.randn(*self.shape, dtype=dtype), *self.others(dtype))

        return Case(group, self.layer, self.reference, LayerAt(self.ours, self.sizes), build, **self.more)


@dataclass(frozen=True)
class Comparison:
    """Measured and theoretical counts of one case by quantity; equal or not, never nearly."""

    case: Case
    measured: dict[str, int]
    theoretical: dict[str, int]

    @property
    def difference(self) -> dict[str, int]:
        """Measured minus theoretical, by quantity."""
        return {k: v - self.theoretical[k] for k, v in self.measured.items()}

    @property
    def equal(self) -> bool:
        """Whether every quantity is equal, and the main one is not an empty 0 = 0."""
        return not any(self.difference.values()) and self.measured[self.main] != 0

    @property
    def main(self) -> str:
        """The quantity of the table: tensor-core FLOPs, or scalar operations where there are none."""
        return "cuda_core_flops" if self.case.unseen else "tensor_core_flops"


def compare(case: Case) -> Comparison:
    """Run the real module under each counter and our counts beside it."""
    with torch.device(case.device):
        module, inputs = case.build()

    def run() -> None:
        with torch.no_grad():
            case.run(module, *inputs)

    products = (k for k in case.ours.kernels() if k.loops)  # matmuls, convolutions and flash attention
    theoretical = case.ours.cost().as_dict() | {"kernel_io_bytes": sum(k.io_bytes * k.runs for k in products)}
    measured = {"tensor_core_flops": tensor_core_flops(run)}
    if "cuda_core_flops" not in case.skip:
        with ScalarOperations(inputs) as seen:
            run()
        measured |= {"cuda_core_flops": seen.flops, "kernel_io_bytes": seen.bytes}
    measured = {quantity: count for quantity, count in measured.items() if quantity not in case.skip}
    if module is not None:
        measured["parameters"] = sum(p.numel() for p in module.parameters())
    for quantity, (amount, _) in case.known.items():
        theoretical[quantity] += amount
    return Comparison(case, measured, theoretical)
