"""Table: the tidy result of a sweep, one row a point and attention kind, counts as exact integers.

A Chart says which figure is drawn of a table; `report/` writes tables and draws charts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.models.planner import Points
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
class Chart:
    """A figure: `measures` (by name) over column `x`, a curve for each value of `by`.

    `where` selects rows by column. `log` names the logarithmic axes ("", "y", "xy"). `bars` stacks the
    values of `by` above each value of `x` instead. `note` is added to the label of the y axis; `axis` is
    that of the x axis where the column's own does not do.
    """

    name: str
    measures: tuple[str, ...]
    x: str = "image_tokens"
    by: str | tuple[str, ...] = "execution"
    where: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""
    bars: bool = False
    note: str = ""
    axis: str = ""

    @property
    def curves(self) -> tuple[str, ...]:
        """The columns of `by`."""
        return (self.by,) if isinstance(self.by, str) and self.by else tuple(self.by)


@dataclass(frozen=True)
class Table:
    """Rows by column name; `title` says what was swept and `basis` how it was counted.

    `digest` are the rows that a person reads (None: all of them), `kind` the execution that is spoken of
    where there are several, `points` what a planner offered to sweep over.
    """

    name: str
    title: str
    basis: str
    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    digest: Sequence[Mapping[str, Any]] | None = None
    kind: str = ""
    points: Points | None = None

    @property
    def shown(self) -> Sequence[Mapping[str, Any]]:
        """The rows that a person reads: the digest, or all."""
        return self.rows if self.digest is None else self.digest

    @property
    def columns(self) -> list[str]:
        """All columns, in order of first appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def select(self, **where: Any) -> list[Mapping[str, Any]]:
        """The rows with these values; a tuple means one of them."""

        def wanted(row: Mapping[str, Any]) -> bool:
            return all(row.get(k) in v if isinstance(v, tuple) else row.get(k) == v for k, v in where.items())

        return [row for row in self.rows if wanted(row)]

    def title_of(self, subject: str) -> str:
        """The title of a table about something else at the same points: "model: subject over points"."""
        model, _, rest = self.title.partition(": ")
        return f"{model}: {subject} over {rest.partition(' over ')[2]}"


Parts = Mapping[str, StageCost]
Columns = dict[str, dict[str, Any]]


def part_columns(together: Parts, points: int, one: Callable[[int], Parts]) -> list[Columns]:
    """The cost columns of each part at each point of a vectorised evaluation, whole numbers as ints.

    Where a count is too large for float64 to hold exactly, `one(i)` evaluates point by point instead.
    """
    columns = {part: _columns(cost, points) for part, cost in together.items()}
    exact = {part: found for part, found in columns.items() if found is not None}
    if len(exact) == len(columns):
        return [{part: found[i] for part, found in exact.items()} for i in range(points)]
    return [{part: point_columns(cost) for part, cost in one(i).items()} for i in range(points)]


def _columns(cost: StageCost, points: int) -> list[dict[str, Any]] | None:
    """The cost columns by point; None if one is too large for float64 to hold exactly."""
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
