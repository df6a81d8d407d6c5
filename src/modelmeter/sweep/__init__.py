"""Sweeps: a grid of workloads becomes arrays, one evaluation and a tidy table.

`run(model, settings, reference)` of a sweep's module gives a Table; `report/` writes and draws it. Each sweep
is a module here with a `run` function and a YAML of the same name in configs/sweep/.
"""

from modelmeter.sweep.table import Table

__all__ = ["Table"]
