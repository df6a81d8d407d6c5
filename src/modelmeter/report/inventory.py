"""The layers of a model as a table: which classes run in each stage, what they cost, whom they mirror.

Each op knows the layers that it stands in, so a layer's cost is that of its ops: none is typed here.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import cache

from modelmeter import layers
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.programs.program import program_of
from modelmeter.report.formulas import formulas, latex
from modelmeter.workload import Workload

KNOWN = set(layers.__all__) - {"Repeat", "Sequence"}
WORK = {
    "flops_formula": "tensor_core_flops", "cuda_formula": "cuda_core_flops", "parameters_formula": "parameters",
}  # fmt: skip
"""The counts whose formulas are told with a layer, by the key of their name."""


@dataclass(frozen=True)
class LayerCost:
    """One layer class in one stage; `share` is that of the stage's FLOPs, inner layers included."""

    stage: str
    layer: str
    cost: StageCost
    share: float


def inventory(model: BaseModel, work: Workload) -> list[LayerCost]:
    """Every layer class of every stage, in order of first use; decode is its first step."""
    found = []
    for stage in model.stages:
        graph, names = stage.graph(stage.structure(work), work.causal)
        program = program_of(
            model.changed(graph), names, work.counting, lambda op: " ".join((*op.node.around, op.node.layer))
        )
        sizes = stage.sizes(work)
        parts = {tuple(part.split()): cost for part, cost in program.at([sizes[name] for name in names]).items()}
        whole = sum(cost.flops for cost in parts.values())
        for name in dict.fromkeys(name for part in parts for name in part if name in KNOWN):
            cost = sum((cost for part, cost in parts.items() if name in part), start=StageCost())
            found.append(LayerCost(stage.name, name, cost, cost.flops / whole if whole else 0.0))
    return found


def vendor_of(layer: str) -> str:
    """The vendor's class and file, from the layer's docstring."""
    text = " ".join((inspect.getdoc(getattr(layers, layer)) or "").split())
    found = re.search(r"Vendor: ((?:[^(;]|\([^)]*\))+?)(?:;|\. |\.$| Paper:| Omits:)", text)
    return found[1] if found else ""


@cache
def formulas_of(layer: str) -> list[tuple[str, str, str]]:
    """(key of the text catalogue, form, LaTeX) of a layer's work and parameters; nothing for a stack of layers."""
    named = [(title.partition(" with "), cost) for title, cost in formulas().items()]
    counts = ((key, form, getattr(cost, WORK[key])) for (name, _, form), cost in named if name == layer for key in WORK)
    return [(key, form, latex(value)) for key, form, value in counts if value != 0]
