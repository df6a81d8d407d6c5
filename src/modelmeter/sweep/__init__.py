"""Sweeps: a grid of workloads becomes a tidy table. Each is a module here with a `run` function that gives Tables,
words beside it in `text/` and a YAML of the same name in configs/sweep/; `report/` writes and draws them."""

from modelmeter.sweep.table import Table

__all__ = ["Table"]
