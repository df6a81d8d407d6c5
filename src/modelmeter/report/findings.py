"""What the rows of a table say: the reader that its sweep declares. Next: `language.py` says it in words."""

from __future__ import annotations

from modelmeter.sweep.columns import declared
from modelmeter.sweep.findings import Finding, trend
from modelmeter.sweep.table import Table

__all__ = ["Finding", "findings", "trend"]


def findings(table: Table) -> list[Finding]:
    """The findings of a table by its name; none for a table that has no reader yet."""
    reader = declared("FINDINGS").get(table.name)
    return list(reader(table)) if reader else []
