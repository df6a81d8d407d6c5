"""The sweeps by name, each a module here with a YAML of its name in configs/sweep/, and what their tables say."""

from __future__ import annotations

from importlib import import_module

from modelmeter.folders import config_names
from modelmeter.sweep import requirements
from modelmeter.sweep.findings import Finding, Reader
from modelmeter.sweep.table import Table

SWEEPS = {name: import_module(f"modelmeter.sweep.{name}") for name in config_names("sweep")}
_READERS: dict[str, Reader] = dict(requirements.FINDINGS)
for _module in SWEEPS.values():
    _READERS |= _module.FINDINGS


def findings(table: Table) -> list[Finding]:
    """What the rows of a table say: the findings that its sweep declares; none for another table."""
    return list(_READERS[table.name](table)) if table.name in _READERS else []
