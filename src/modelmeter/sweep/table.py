"""Table: the tidy result of a sweep, one row a point and attention kind, counts as exact integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.sizes import Size

EXACT = 2**53
"""Up to here a float64 holds every integer."""

TOTAL = "total"
"""The component that is the whole: sums of the others, its peak their largest."""

COST_COLUMNS = (
    "tensor_core_flops",
    "cuda_core_flops",
    "weight_io_bytes",
    "activation_io_bytes",
    "kv_io_bytes",
    "io_bytes",
    "arithmetic_intensity_flop_per_byte",
    "weight_bytes",
    "peak_activation_bytes",
    "kv_cache_bytes",
)


@dataclass(frozen=True)
class Table:
    """Rows by column name; `title` says what was swept and `basis` how it was counted."""

    name: str
    title: str
    basis: str
    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """All columns, in order of first appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def select(self, **where: Any) -> list[Mapping[str, Any]]:
        """The rows with these values."""
        return [row for row in self.rows if all(row[k] == v for k, v in where.items())]


def cost_columns(cost: StageCost, points: int) -> list[dict[str, Any]] | None:
    """The cost columns of each point of a vectorised StageCost, whole numbers as Python ints.

    None if a count is too large for float64 to hold exactly: then evaluate point by point.
    """
    values = {name: _column(value, points) for name, value in point_columns(cost).items()}
    if any(abs(v) >= EXACT for column in values.values() for v in column):
        return None
    return [{name: _number(name, column[i]) for name, column in values.items()} for i in range(points)]


def _column(value: Size, points: int) -> list[Any]:
    return list(value.tolist()) if hasattr(value, "tolist") else [value] * points


def point_columns(cost: StageCost) -> dict[str, Any]:
    """The cost columns of one StageCost as they are."""
    counts = cost.as_dict()
    return {name: counts[name] for name in COST_COLUMNS}


def _number(name: str, value: Any) -> Any:
    whole = isinstance(value, float) and value.is_integer() and not name.startswith("arithmetic")
    return int(value) if whole else value
