"""A case of the proof: one of our layers or stages beside the real module that it models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map_only

from modelmeter.layers.base import BaseLayer
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.programs.kernels import Kernel
from modelmeter.sizes import Size, added, evaluated
from modelmeter.tracing.api import Input
from modelmeter.validate.counters import ScalarOperations, tensor_core_flops
from modelmeter.workload import Workload

MIXTURE_IO = {"kernel_io_bytes": "batched_mm gathers one copy of an expert's weights for each token"}
"""What a case skips of a mixture, and why."""


class LayerAt(NamedTuple):
    """A layer at sizes, counted by options.

    `given` are the sizes of the layer: numbers, or expressions of the named sizes that have the values `at`.
    """

    layer: BaseLayer
    given: Mapping[str, Size]
    options: Mapping[str, Any] = {}
    at: Mapping[str, int] = {}

    @property
    def sizes(self) -> dict[str, Size]:
        """The sizes of the layer; an expression where names have no value."""
        return dict(zip(self.given, evaluated(list(self.given.values()), self.at), strict=True))

    def cost(self) -> StageCost:
        return self.layer.cost(**self.sizes, **self.options)

    def kernels(self) -> list[Kernel]:
        return self.layer.program(**self.options).kernels(**self.sizes)


class StageAt(NamedTuple):
    """A stage of a model at a workload."""

    model: BaseModel
    stage: str
    work: Workload
    at: Mapping[str, int] = {}

    def cost(self) -> StageCost:
        return self.model.cost(self.stage, self.work)

    def kernels(self) -> list[Kernel]:
        return self.model.kernels(self.stage, self.work)


def counts(ours: LayerAt | StageAt) -> dict[str, Size]:
    """What is counted of a layer or stage, and the bytes of its matmuls, convolutions and attention kernels."""
    products = (k for k in ours.kernels() if k.loops)
    return ours.cost().as_dict() | {"kernel_io_bytes": added(k.io_bytes * k.runs for k in products)}


def like(*shape: Size, dtype: torch.dtype | None = None) -> Input:
    """What an input is like, by numbers or by expressions of named sizes; without a format it is that of the module."""
    return Input("x", shape, dtype)


@dataclass(frozen=True)
class Case:
    """`make` makes the module (None where a function is compared), `inputs` are like what `run` gives it: the statement
    of points and of symbols alike.

    `unseen` says that torch's counter sees no FLOPs by nature (norms, lookups): then the scalar
    operations are what is compared. `known` is by how much the reference differs for a stated reason;
    `skip` names quantities that the reference computes otherwise, with the reason: without scalar operations
    (`cuda_core_flops`) no operator is watched. `device` is where its operators are counted. `steps` are those of sizes
    that code looks at, such as the side of squares that it merges; 0 where it turns a size into a number. `traced` is
    why quantities of the traced module are not ours for all sizes.
    """

    group: str
    layer: str
    ours: LayerAt | StageAt
    make: Callable[..., torch.nn.Module | None]
    inputs: tuple[Any, ...]
    reference: str = ""
    run: Callable[..., Any] = lambda module, *inputs: module(*inputs)
    unseen: bool = False
    known: Mapping[str, tuple[Size, str]] = field(default_factory=dict)
    skip: Mapping[str, str] = field(default_factory=dict)
    device: str = "meta"
    steps: Mapping[str, int] = field(default_factory=dict)
    traced: Mapping[str, str] = field(default_factory=dict)

    def build(self, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.nn.Module | None, tuple[Any, ...]]:
        """The module and its inputs on torch's default device; whole numbers are zeros."""

        def made(given: Input) -> torch.Tensor:
            shape = given.shape(self.ours.at)
            return torch.randn(shape, dtype=dtype) if given.dtype is None else torch.zeros(shape, dtype=given.dtype)

        module = self.make()
        inputs = tree_map_only(Input, made, self.inputs)
        return module if module is None else module.to(dtype).eval(), inputs


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


def known(case: Case) -> dict[str, Size]:
    """By how much the reference of a case is known to differ, at the values of its named sizes."""
    return dict(zip(case.known, evaluated([amount for amount, _ in case.known.values()], case.ours.at), strict=True))


def compare(case: Case) -> Comparison:
    """Run the real module under each counter and our counts beside it."""
    with torch.device(case.device):
        module, inputs = case.build()

    def run() -> None:
        with torch.no_grad():
            case.run(module, *inputs)

    theoretical = counts(case.ours)
    if "cuda_core_flops" in case.skip:
        measured = {"tensor_core_flops": tensor_core_flops(run)}
    else:
        seen = ScalarOperations(inputs, counted=True)
        measured = {"tensor_core_flops": tensor_core_flops(lambda: seen.during(run))}
        measured |= {"cuda_core_flops": seen.flops, "kernel_io_bytes": seen.bytes}
    measured = {quantity: count for quantity, count in measured.items() if quantity not in case.skip}
    if module is not None and isinstance(case.ours, LayerAt):
        measured["parameters"] = sum(p.numel() for p in module.parameters())
    for quantity, amount in known(case).items():
        theoretical[quantity] += amount
    return Comparison(case, measured, theoretical)
