"""The layers of a model as a table: which classes run in each stage, what they cost, whom they mirror.

Each op knows the layers that it stands in, so a layer's cost is that of its ops: none is typed here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from modelmeter import layers
from modelmeter.cost import StageCost, measure
from modelmeter.models.model import STAGES, Model
from modelmeter.report.formulas import FORMULAS, formula, latex, variants
from modelmeter.workload import Workload


@dataclass(frozen=True)
class LayerCost:
    """One layer class in one stage; `share` is that of the stage's FLOPs, inner layers included."""

    stage: str
    layer: str
    cost: StageCost
    share: float


def inventory(model: Model, work: Workload) -> list[LayerCost]:
    """Every layer class of every stage, in order of first use; decode is its first step."""
    found = []
    for stage in STAGES:
        ops = model.ops(stage, work)
        whole = measure(ops, str(work.execution)).flops
        names = dict.fromkeys(name for op in ops for name in op.n.layers if name in layers.__all__)
        for name in names:
            cost = measure([op for op in ops if name in op.n.layers], str(work.execution))
            found.append(LayerCost(stage, name, cost, cost.flops / whole if whole else 0.0))
    return found


def summary_of(layer: str) -> str:
    """The first line of a layer's docstring."""
    return (inspect.getdoc(getattr(layers, layer)) or "").splitlines()[0]


def vendor_of(layer: str) -> str:
    """The vendor's class and file, from the layer's docstring."""
    text = " ".join((inspect.getdoc(getattr(layers, layer)) or "").split())
    found = re.search(r"Vendor: ((?:[^(;]|\([^)]*\))+?)(?:;|\. |\.$| Paper:| Omits:)", text)
    return found[1] if found else ""


@cache
def formulas_of(layer: str) -> tuple[tuple[str, str, str], ...]:
    """(key of the text catalogue, form, LaTeX) of a layer's work and parameters; nothing for a stack of layers."""
    return tuple(_formulas(layer)) if layer in FORMULAS else ()


def _formulas(layer: str) -> Iterator[tuple[str, str, str]]:
    for form, chosen in variants(layer).items():
        cost: Any = formula(getattr(layers, layer), chosen=chosen)
        for key, field in (
            ("flops_formula", "tensor_core_flops"),
            ("cuda_formula", "cuda_core_flops"),
            ("parameters_formula", "parameters"),
        ):
            if getattr(cost, field) != 0:
                yield key, form.removeprefix("with "), latex(getattr(cost, field))
