"""Columns and measures: what tables and figures show of a row, in readable units.

A sweep's YAML declares them under `text`, `shared.yaml` those of several sweeps. TFLOP = 1e12 FLOPs, GB = 1e9 bytes,
Tb = 1e12 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelmeter.folders import config_dir

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column that a person reads: the value over `unit`, with so many significant `digits` (0: as it is).

    `heading` stands over it in Markdown ("": the name), `axis` is its label on an x axis, `curve` how a value reads in
    a legend; `least` is the column of a range's other end, `ends` are those of the interval that a value lies in.
    """

    name: str
    heading: str = ""
    unit: float = 1
    digits: int = 0
    axis: str = ""
    curve: str = ""
    least: str = ""
    ends: Sequence[str] = ()

    def text(self, row: Row) -> str:
        """What a table says of it."""
        value = row.get(self.name, "")
        if self.name == "grid_h":
            return grid_of(row)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if not self.digits or value == "":
            return str(value)
        if self.ends:
            value, *ends = (significant(float(row[name]) / self.unit, self.digits) for name in (self.name, *self.ends))
            return f"{value} ({' to '.join(ends)})"
        ends = [row[name] for name in (self.least, self.name) if name]
        return " - ".join(dict.fromkeys(significant(float(end) / self.unit, self.digits) for end in ends))


@dataclass(frozen=True)
class Measure:
    """A quantity of a figure: the columns of `of` added up, over `unit`. `label` names it on an axis, `short` in a
    legend; `points` are drawn without a line: published figures; `ends` are the columns of an interval's ends."""

    name: str
    label: str
    of: Sequence[str]
    unit: float = 1
    short: str = ""
    points: bool = False
    ends: Sequence[str] = ()

    def interval(self, row: Row) -> list[float]:
        """The ends of its interval in a row; none where it has none."""
        return [row[column] / self.unit for column in self.ends if row.get(column, "") != ""]

    def value(self, row: Row) -> float | None:
        """Its number in a row, None where it has none."""
        values = [row.get(column, "") for column in self.of]
        return None if "" in values else sum(values) / self.unit


_SHARED, _SWEEPS = Path(__file__).with_name("shared.yaml"), sorted(config_dir().glob("sweep/*.yaml"))
TEXTS: list[dict[str, Any]] = [yaml.safe_load(_SHARED.read_bytes())]
TEXTS += [yaml.safe_load(file.read_bytes())["text"] for file in _SWEEPS]
"""What tables are read by: columns, measures, charts by table, and the sentences and words of each language."""
COLUMNS = {name: Column(name, **given) for text in TEXTS for name, given in text.get("columns", {}).items()}
MEASURES = {name: Measure(name, **given) for text in TEXTS for name, given in text.get("measures", {}).items()}


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, thousands apart, never with an exponent.

    >>> significant(1155.4), significant(2.1), significant(0.0000404), significant(-0.5, 2), significant(9.9996)
    ('1,155', '2.10', '0.0000404', '-0.50', '10.0')
    """
    value = float(value)
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded number
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def flops_of(row: Row) -> int:
    """Those of both engines."""
    return int(row["tensor_core_flops"] + row["cuda_core_flops"])


def grid_of(row: Row) -> str:
    """The crop grid of a row as rows x columns."""
    return f"{row['grid_h']}x{row['grid_w']}" if row.get("crops") else "none"


_NOTES = {
    "marked": "**this page**", "extrapolated": "extrapolated", "beyond_positions": "beyond the model's positions",
}  # fmt: skip


def notes_of(row: Row) -> list[str]:
    """What marks a row out: the user's own page, extrapolation, a context beyond the model's positions."""
    notes = [note for mark, note in _NOTES.items() if row.get(mark)]
    measured = row.get("reference_tensor_core_flops")
    return notes if measured is None else [*notes, f"reference {measured - row['tensor_core_flops']:+d} FLOPs"]
