"""Claims that somebody made of a model, one by one, each beside the computed number, with a verdict.

A claim is data of configs/report: what was said, the number in it, and what it is a number of. Next: `document.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelmeter.errors import InputError, choose
from modelmeter.layers.base import Repeat, walk
from modelmeter.models.model import BaseModel
from modelmeter.programs.counting import Counting
from modelmeter.report.tables import si

RIGHT, NEARLY = 0.05, 0.3
"""By how much a number may be off that is right, and one that is about right."""


@dataclass(frozen=True)
class Claim:
    """What was said (by language), the number that was said, the computed one (least and most, where it varies)."""

    said: Mapping[str, str]
    number: float
    least: float
    most: float
    unit: str
    enough: bool = False
    """Whether the number is room that is said to suffice."""

    @property
    def verdict(self) -> str:
        """`right`, `nearly` or `wrong`: how far it is from the computed ones; of room, whether it suffices."""
        if self.enough:
            return "right" if self.number >= self.most else "nearly" if self.number >= self.least else "wrong"
        if self.least <= self.number <= self.most:
            return "right"
        nearest = self.least if self.number < self.least else self.most
        off = abs(self.number / nearest - 1) if nearest else float("inf")
        return "right" if off <= RIGHT else "nearly" if off <= NEARLY else "wrong"

    @property
    def factor(self) -> str:
        """How many times the said number is of the computed one."""
        nearest = self.least if self.number < self.least and not self.enough else self.most
        return f"{self.number / nearest:.2g}" if nearest else "-"

    @property
    def computed(self) -> str:
        """The computed number with its unit."""
        ends = (self.least, self.most) if self.least != self.most else (self.least,)
        return " - ".join(si(end, self.unit) if end >= 1e4 else f"{end:g} {self.unit}".rstrip() for end in ends)


def claims(model: BaseModel, given: list[Mapping[str, Any]]) -> list[Claim]:
    """The claims of a report's YAML. Raises InputError for one that is of nothing known."""
    found = []
    for claim in given:
        ((kind, of),) = claim["is"].items()
        values = list(_QUANTITIES[choose("quantity of a claim", kind, _QUANTITIES)](model, of))
        ends, unit = (float(min(values)), float(max(values))), str(claim.get("unit", ""))
        found.append(Claim(claim["claim"], float(claim["said"]), *ends, unit, bool(claim.get("enough"))))
    return found


def _weights(model: BaseModel, parts: str) -> dict[str, int]:
    """The weights whose names begin with one of these."""
    named = model._weights(Counting())
    prefixes = tuple(parts.split())
    found = {name: int(elements) for name, (elements, _) in named.items() if name.startswith(prefixes)}
    if not found:
        raise InputError(f"no weight of {model.name} begins with {parts!r}")
    return found


def _parameters(model: BaseModel, of: str) -> list[int]:
    return [sum(_weights(model, of).values())]


def _bytes(model: BaseModel, of: Mapping[str, Any]) -> list[float]:
    return [sum(_weights(model, of["parts"]).values()) * of["bits"] / 8]


def _layers(model: Any, of: str) -> list[int]:
    repeated = [part.l for part in walk(getattr(model, of)) if isinstance(part, Repeat)]
    return [sum(repeated)]


def _width(model: Any, of: str) -> list[int]:
    return [int(getattr(model, of).d)]


def _tokens(model: BaseModel, of: list[str]) -> list[int]:
    return [int(model.workload(image_size=size).image.tokens) for size in of]


def _peak(model: BaseModel, of: Mapping[str, Any]) -> list[int]:
    """Weights and peak activations of a stage at an image, in each of some runtimes."""
    stage, size, runtimes = of["stage"], of["image_size"], of["runtimes"]
    costs = [model.cost(stage, model.workload(image_size=size, runtime=kind)) for kind in runtimes]
    return [int(cost.weight_bytes + cost.peak_activation_bytes) for cost in costs]


_QUANTITIES: dict[str, Callable[[Any, Any], list[Any]]] = {
    "parameters": _parameters, "bytes": _bytes, "layers": _layers, "width": _width, "tokens": _tokens, "peak": _peak,
}  # fmt: skip
"""What a claim may be a number of."""
