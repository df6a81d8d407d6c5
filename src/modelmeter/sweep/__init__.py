"""Sweeps: a grid of workloads becomes arrays, one evaluation and a tidy table.

`run(name, model, settings)` gives a Table; writing files and drawing is done by `report/`. Each sweep
is a module here with a `run` function and a YAML of the same name in configs/sweep/.
"""

from modelmeter.sweep.table import Table

__all__ = ["Table"]
