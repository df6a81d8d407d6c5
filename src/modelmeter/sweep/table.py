"""Table: the tidy result of a sweep, one row a point and runtime, counts as exact integers.

A Chart says which figure is drawn of a table, declared in the YAML of its sweep; `report/` writes and draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modelmeter.models.planner import Points
from modelmeter.programs.cost import StageCost
from modelmeter.sizes import whole
from modelmeter.sweep.columns import COLUMNS, MEASURES, TEXTS, Column, Measure, Row
from modelmeter.sweep.timed import own_of
from modelmeter.workload import Workload

TOTAL = "total"
"""The component that is the whole: sums of the others, its peak their largest."""
COST_COLUMNS = (
    "tensor_core_flops", "cuda_core_flops", "weight_io_bytes", "activation_io_bytes", "kv_io_bytes", "io_bytes",
    "arithmetic_intensity_flop_per_byte", "weight_bytes", "peak_activation_bytes", "kv_cache_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A figure: `measures` (by name) over column `x`, a curve for each value of `by`, of the rows that are as `where`.

    `log` names the logarithmic axes ("", "y", "xy"). `bars` stacks the values of `by` above each value of `x` instead.
    `note` is added to the label of the y axis; `axis` is that of the x axis where the column's own does not do.
    One that is `ranked` has a bar a row instead, the shortest above, with lines at what the column `limit` has.
    """

    name: str
    measures: tuple[str, ...]
    x: str = "image_tokens"
    by: tuple[str, ...] = ("execution",)
    where: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""
    bars: bool = False
    note: str = ""
    axis: str = ""
    ranked: bool = False
    limit: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by column name; `title` says what was swept and `basis` how it was counted.

    `digest` are the rows that a person reads (None: all of them), `kind` the execution that is spoken of where there
    are several, `points` what a planner offered to sweep over. `headline` is a finding about the user's own page that
    a report begins with. One that is `printed` is so short that the terminal shows it. `own_columns` and `own_measures`
    are those that no YAML declares, as their names depend on the settings.
    """

    name: str
    title: str
    basis: str
    rows: Sequence[Row]
    settings: Mapping[str, Any] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    digest: Sequence[Row] | None = None
    kind: str = ""
    points: Points | None = None
    headline: tuple[str, dict[str, Any]] | None = None
    printed: bool = False
    own_columns: Mapping[str, Column] = field(default_factory=dict)
    own_measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def readable(self) -> Mapping[str, Column]:
        """The columns that a person reads, by name."""
        return {**COLUMNS, **self.own_columns}

    @property
    def measures(self) -> Mapping[str, Measure]:
        """The quantities that its charts may draw, by name."""
        return {**MEASURES, **self.own_measures}

    @property
    def shown(self) -> Sequence[Row]:
        """The rows that a person reads: the digest, or all."""
        return self.rows if self.digest is None else self.digest

    @property
    def columns(self) -> list[str]:
        """All columns, in order of first appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def select(self, **where: Any) -> list[Row]:
        """The rows with these values; a tuple means one of them."""
        wanted = {key: value if isinstance(value, tuple) else (value,) for key, value in where.items()}
        return [row for row in self.rows if all(row.get(key) in values for key, values in wanted.items())]

    def title_of(self, subject: str) -> str:
        """The title of a table about something else at the same points: "model: subject over points"."""
        model, _, rest = self.title.partition(": ")
        return f"{model}: {subject} over {rest.partition(' over ')[2]}"


def table_of(
    name: str, title: str, work: Workload, rows: Sequence[Row], settings: Mapping[str, Any], held: Row | None = None,
    points: Points | None = None, digest: Sequence[Row] | None = None,
) -> Table:  # fmt: skip
    """The table of a sweep whose workloads are counted like `work`, but for the execution, which is a column.

    Figures by component and sentences speak of flash if it is there, else of the last execution. `held` is what charts
    hold fixed beside it.
    """
    kinds: list[str] = settings["runtime"]
    basis, kind = work.basis.partition(", ")[2], "flash" if "flash" in kinds else kinds[-1]
    columns, measures = own_of(settings.get("device", ()), rows)
    basis += "; predicted seconds: the point, and what nine of ten are expected between" if columns else ""
    fixed = {**(held or {}), "execution": kind}
    timed = [row["execution"] for row in rows if "execution" in row and measures.keys() & row.keys()]
    ran = fixed | {"execution": timed[-1] if timed and kind not in timed else kind}  # a bound has no time
    charts = charts_of(name, fixed, points) + _timed(charts_of(name, ran, points, _TIMED), measures)
    return Table(name, title, basis, rows, dict(settings), charts, digest, kind, points, None, False, columns, measures)


def _timed(charts: Sequence[Chart], measures: Mapping[str, Measure]) -> list[Chart]:
    """Charts of predicted seconds: each measure is one a device that has it."""
    found: list[Chart] = []
    for chart in charts:
        names = tuple(name for what in chart.measures for name in measures if name.endswith(f"_{what}"))
        found += [replace(chart, measures=names)] * bool(names)
    return found


_CHARTS, _TIMED = (
    {table: charts for text in TEXTS for table, charts in text.get(part, {}).items()} for part in ("charts", "timed")
)


def charts_of(
    table: str, held: Row, points: Points | None = None, declared_in: Mapping[str, Any] = _CHARTS
) -> list[Chart]:
    """The charts that YAML declares of a table; a column that `where` has without a value is `held` at its own."""
    axis = points.axis if points else ""
    charts = [Chart(name, axis=axis, **_tupled(declared)) for name, declared in declared_in.get(table, {}).items()]
    given = ({key: held[key] if value is None else value for key, value in chart.where.items()} for chart in charts)
    return [replace(chart, where=where) for chart, where in zip(charts, given, strict=True)]


def _tupled(declared: Any) -> Any:
    """What YAML declares, its lists as tuples."""
    if isinstance(declared, dict):
        return {key: _tupled(value) for key, value in declared.items()}
    return tuple(declared) if isinstance(declared, list) else declared


def runtime_columns(work: Workload) -> dict[str, Any]:
    """The columns that name a runtime: its kind of attention, and itself."""
    return {"attention": work.attention, "execution": work.execution}


def cost_columns(work: Workload, cost: StageCost) -> dict[str, Any]:
    """The runtime and the columns of a StageCost, whole numbers as ints."""
    counts = cost.as_dict()
    return runtime_columns(work) | {k: counts[k] if "intensity" in k else number(counts[k]) for k in COST_COLUMNS}


def number(value: Any) -> int | float:
    """A size as a table has it: an int where it is whole, else a float."""
    value = whole(value)
    return value if isinstance(value, int) else float(value)
