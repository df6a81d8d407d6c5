"""Columns and measures: what tables and figures show of a row, in readable units.

Here are those that several sweeps share; a sweep declares its own in its module, `registry.py` has all of
them. TFLOP = 1e12 FLOPs, GB = 1e9 bytes, Tb = 1e12 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column that a person reads: the value over `unit`, with so many significant `digits` (0: as it is).

    `heading` stands over it in Markdown ("": the name), `axis` is its label on an x axis, `curve` how a
    value reads in a legend; `shows` makes the text from the row where that is more than one value.
    """

    name: str
    heading: str = ""
    unit: float = 1
    digits: int = 0
    axis: str = ""
    curve: str = ""
    shows: Callable[[Row], str] | None = None

    def text(self, row: Row) -> str:
        """What a table says of it."""
        value = row.get(self.name, "")
        if self.shows is not None:
            return self.shows(row)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return significant(float(value) / self.unit, self.digits) if self.digits and value != "" else str(value)


@dataclass(frozen=True)
class Measure:
    """A quantity of a figure: the columns of `of` added up, over `unit`; `label` names it on an axis.

    `short` stands in a legend; `points` are drawn without a line: published figures.
    """

    name: str
    label: str
    of: tuple[str, ...]
    unit: float = 1
    short: str = ""
    points: bool = False

    def value(self, row: Row) -> float | None:
        """Its number in a row, None where it has none."""
        values = [row.get(column, "") for column in self.of]
        return None if "" in values else sum(values) / self.unit


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
    """The FLOPs of both engines."""
    return int(row["tensor_core_flops"] + row["cuda_core_flops"])


def grid_of(row: Row) -> str:
    """The crop grid of a row as rows x columns."""
    return f"{row['grid_h']}x{row['grid_w']}" if row.get("crops") else "none"


def notes_of(row: Row) -> list[str]:
    """What marks a row out: the user's own page, extrapolation, a context beyond the model's positions."""
    notes = ["**this page**"] if row.get("marked") else []
    notes += ["extrapolated"] if row.get("extrapolated") else []
    notes += ["beyond the model's positions"] if row.get("beyond_positions") else []
    measured = row.get("reference_tensor_core_flops")
    if measured is not None:
        notes.append(f"reference {measured - row['tensor_core_flops']:+d} FLOPs")
    return notes


COLUMNS = (
    Column("crops", axis="crops"),
    Column("grid_h", "grid", shows=grid_of),
    Column("image_size", "pixels"),
    Column("image_tokens", "image tokens", axis="image tokens"),
    Column("mode"),
    Column("decode_steps", "decode steps", curve="{} decode steps"),
    Column("batch", curve="batch {}"),
    Column("stage", curve="{}"),
    Column("component"),
    Column("execution", curve="{} execution"),
    Column("engine", curve="{} cores"),
    Column("tensor_core_flops", "tensor-core TFLOP", 1e12, 7),
    Column("cuda_core_flops", "CUDA-core TFLOP", 1e12, 7),
    Column("io_bytes", "I/O GB", 1e9, 5),
    Column("arithmetic_intensity_flop_per_byte", "FLOP/byte", 1, 4),
    Column("peak_activation_bytes", "peak activations GB", 1e9, 5),
    Column("kv_cache_bytes", "KV cache GB", 1e9, 5),
)

_BY_ENGINE = "FLOPs by engine (TFLOP = 1e12)"
_FLOPS = ("tensor_core_flops", "cuda_core_flops")
MEASURES = (
    Measure("flops_tflops", "FLOPs, tensor and CUDA cores (TFLOP = 1e12)", _FLOPS, 1e12),
    Measure("tensor_tflops", _BY_ENGINE, _FLOPS[:1], 1e12, "tensor cores"),
    Measure("cuda_tflops", _BY_ENGINE, _FLOPS[1:], 1e12, "CUDA cores"),
    Measure("io_tb", "traffic to and from memory (Tb = 1e12 bits)", ("io_bytes",), 1e12 / 8),
    Measure("io_gb", "traffic to and from memory (GB = 1e9 bytes)", ("io_bytes",), 1e9),
    Measure("arithmetic_intensity", "arithmetic intensity (FLOP per byte)", ("arithmetic_intensity_flop_per_byte",)),
    Measure("activations_gb", "peak activations (GB = 1e9 bytes)", ("peak_activation_bytes",), 1e9),
    Measure("kv_gb", "KV cache at the end (GB = 1e9 bytes)", ("kv_cache_bytes",), 1e9),
    Measure("error_percent", "published less real (%)", ("error_percent",)),
)
