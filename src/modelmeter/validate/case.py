"""A case of the proof: one of our layers or stages beside the real module that it models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from modelmeter.cost import StageCost, measure, measure_parts
from modelmeter.layer import BaseLayer
from modelmeter.ops import Op, Options
from modelmeter.validate.counters import OperandBytes, ScalarOperations, tensor_core_flops


@dataclass(frozen=True)
class Case:
    """`ops` are ours; `build` makes the module and its inputs; `run` calls it.

    `unseen` says that torch's counter sees no FLOPs by nature (norms, lookups): then the scalar
    operations are what is compared. `known` is by how much the reference differs for a stated reason;
    `skip` names quantities that the reference computes otherwise, with the reason. `device` is where
    its operators are counted.
    """

    group: str
    layer: str
    reference: str
    ops: Callable[[], list[Op]]
    build: Callable[[], tuple[torch.nn.Module | None, tuple[Any, ...]]]
    run: Callable[..., Any] = lambda module, *inputs: module(*inputs)
    unseen: bool = False
    known: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    skip: Mapping[str, str] = field(default_factory=dict)
    device: str = "meta"


def layer_ops(layer: BaseLayer, **sizes: Any) -> Callable[[], list[Op]]:
    """The ops of a layer at a workload, with transformers' form of rotary positions."""
    return lambda: layer.trace(options=Options(rotary="transformers"), **sizes)


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


def kernel_io_bytes(ops: list[Op]) -> Any:
    """Traffic of the matmul, convolution and (flash) attention kernels alone."""
    parts = measure_parts(ops, "flash", lambda op: "kernel" if op.group or op.kind in ("matmul", "conv2d") else "other")
    return parts.get("kernel", StageCost()).io_bytes


def compare(case: Case) -> Comparison:
    """Run the real module under each counter and our ops beside it."""
    with torch.device(case.device):
        module, inputs = case.build()

    def run() -> None:
        with torch.no_grad():
            case.run(module, *inputs)

    ops = case.ops()
    ours = measure(ops, "flash")
    measured, theoretical = {"tensor_core_flops": tensor_core_flops(run)}, ours.as_dict()
    if "cuda_core_flops" not in case.skip:
        with ScalarOperations(inputs) as scalars:
            run()
        measured["cuda_core_flops"] = scalars.flops
    if "kernel_io_bytes" not in case.skip:
        with OperandBytes() as kernels:
            run()
        measured["kernel_io_bytes"], theoretical["kernel_io_bytes"] = kernels.bytes, kernel_io_bytes(ops)
    if module is not None:
        measured["parameters"] = sum(p.numel() for p in module.parameters())
    for quantity, (amount, _) in case.known.items():
        theoretical[quantity] += amount
    return Comparison(case, measured, theoretical)
