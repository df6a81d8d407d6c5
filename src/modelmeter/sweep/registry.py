"""The sweeps by name, and what their modules declare. A new sweep is one more line here."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from modelmeter.sweep import (
    columns,
    compression,
    e2e_decode,
    e2e_vision_prefill,
    profiles,
    requirements,
    sequence,
    targets,
    vision_crops,
)  # fmt: skip
from modelmeter.sweep.findings import Finding, Reader
from modelmeter.sweep.table import Table

SWEEPS: dict[str, ModuleType] = {
    "compression": compression,
    "e2e_decode": e2e_decode,
    "e2e_vision_prefill": e2e_vision_prefill,
    "profiles": profiles,
    "sequence": sequence,
    "targets": targets,
    "vision_crops": vision_crops,
}


def _declared(what: str) -> Iterator[Any]:
    """What the sweeps declare under a name, and what they share."""
    for module in (columns, requirements, *SWEEPS.values()):
        yield getattr(module, what, ())


COLUMNS: dict[str, columns.Column] = {column.name: column for some in _declared("COLUMNS") for column in some}
MEASURES: dict[str, columns.Measure] = {measure.name: measure for some in _declared("MEASURES") for measure in some}
_READERS: dict[str, Reader] = {table: read for some in _declared("FINDINGS") for table, read in dict(some).items()}


def findings(table: Table) -> list[Finding]:
    """What the rows of a table say: the findings that its sweep declares; none for another table."""
    return list(_READERS[table.name](table)) if table.name in _READERS else []
