"""The sweeps by name, and what their tables say. A new sweep is one more name here."""

from __future__ import annotations

from modelmeter.sweep import compression, e2e_decode, e2e_vision_prefill, profiles, sequence, targets, vision_crops
from modelmeter.sweep import requirements as required
from modelmeter.sweep.findings import Finding, Reader
from modelmeter.sweep.table import Table

_MODULES = (compression, e2e_decode, e2e_vision_prefill, profiles, sequence, targets, vision_crops)
SWEEPS = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
_READERS: dict[str, Reader] = {}
for _module in (required, *_MODULES):
    _READERS |= _module.FINDINGS


def findings(table: Table) -> list[Finding]:
    """What the rows of a table say: the findings that its sweep declares; none for another table."""
    return list(_READERS[table.name](table)) if table.name in _READERS else []
