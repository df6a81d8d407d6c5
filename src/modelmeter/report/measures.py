"""What tables and figures show of a row: all that the sweeps declare, and what only a report draws."""

from __future__ import annotations

from modelmeter.sweep.columns import Column, Measure, Row, declared, flops_of, grid_of, notes_of, significant

__all__ = [
    "COLUMNS", "CURVES", "MEASURES", "X_LABELS", "Measure", "Row", "flops_of", "grid_of", "notes_of", "significant",
]  # fmt: skip

MEASURES: dict[str, Measure] = {
    **declared("MEASURES"),
    "error_percent": Measure("error_percent", "published less real (%)", ("error_percent",)),
}
COLUMNS: dict[str, Column] = declared("COLUMNS")
X_LABELS = {name: column.axis for name, column in COLUMNS.items() if column.axis}
CURVES = {"engine": "{} cores"} | {name: column.curve for name, column in COLUMNS.items() if column.curve}
"""How the value of a column reads in a legend, where it is not the value alone."""
