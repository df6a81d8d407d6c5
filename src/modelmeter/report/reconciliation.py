"""Published tables beside the real counts: which cells are reproduced, and what each departure does.

A published model is the real one with named departures. Everything is computed from both models and from the
published tables as printed; nothing here knows which model it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import modelmeter
from modelmeter.models.model import BaseModel
from modelmeter.report.tables import markdown, render
from modelmeter.sweep.columns import Row, grid_of, significant
from modelmeter.sweep.findings import grouped
from modelmeter.sweep.table import Chart, Table

SWEEPS = {"vision_crops": ("vision",), "e2e_vision_prefill": ("vision", "prefill"), "e2e_decode": ("decode",)}
"""The published sweeps, and the stages that each sums."""
_TARGETS = {"ttft": "e2e_vision_prefill", "tpot": "e2e_decode"}
"""The published targets, each with the sweep of its work."""
_ENGINES = {"tensor": "tensor cores", "cuda": "CUDA cores"}
_GIGA = 1e9  # FLOP in a GFLOP, bytes in a GB
_QUANTITIES = {
    f"{stage}_{engine}_core_flops": f"{stage}, {label}, GFLOP"
    for stage in ("vision", "prefill", "decode")
    for engine, label in _ENGINES.items()
} | {
    "weight_bytes": "weights, GB", "io_bytes": "I/O of vision and prefill, GB",
    "decode_io_bytes": "I/O of decode, GB", "peak_activation_bytes": "peak activations, GB",
}  # fmt: skip
_TABLES: dict[str, tuple[str, tuple[str, ...]]]
_TABLES = {f"{sweep}, {label}, %": (sweep, (engine,)) for sweep in SWEEPS for engine, label in _ENGINES.items()}
_TABLES |= {f"{target}, %": (sweep, tuple(_ENGINES)) for target, sweep in _TARGETS.items()}
"""The columns of the published tables: the sweep and the engines that each is the sum of."""
_Cells = Mapping[str, Callable[[Any], str]]
_SWEEP_CELLS: _Cells = {
    "image_tokens": lambda row: str(row["image_tokens"]),
    "tensor_core_tflops": lambda row: f"{row['tensor_core_flops'] / 1e12:.6e}",
    "cuda_core_tflops": lambda row: f"{row['cuda_core_flops'] / 1e12:.6e}",
    "tensor_to_cuda_ratio": lambda row: f"{row['tensor_core_flops'] / row['cuda_core_flops']:.3f}",
}
_TARGET_CELLS: _Cells = {"required_tflops_per_s": lambda row: f"{row['required_flops_per_s'] / 1e12:.3f}"}
LAYER_CELLS: _Cells = {
    "layer": lambda row: str(row.layer),
    "measured_gflops": lambda row: f"{float(row.measured_flops) / _GIGA:.4e}",
    "theoretical_gflops": lambda row: f"{float(row.theoretical_flops) / _GIGA:.4e}",
    "rel_diff_percent": lambda row: f"{100 * float(row.difference):.4f}%",
}
"""How the columns of the published tables are printed."""


@dataclass(frozen=True)
class Reconciliation:
    """The real and the published model with the tables of both and the published ones as printed.

    `tables` and `real_tables` have the sweeps by name, `printed` the published rows by table. The published model has
    `departures`, `counts` and `effects` of a workload and a `layer_table`. The template reads what stands below.
    """

    real: BaseModel
    published: Any
    command: str
    tables: Mapping[str, Table]
    real_tables: Mapping[str, Table]
    printed: Mapping[str, Sequence[Mapping[str, str]]]

    def page(self) -> str:
        """The page as Markdown; its figures are those of `error_table`."""
        told = {"r": self, "version": modelmeter.__version__, "cells": LAYER_CELLS, "grid_of": grid_of}
        return render("reconciliation", told)

    @cached_property
    def error_table(self) -> Table:
        """By how much the published FLOPs differ from the real ones, in percent, by grid and table."""
        rows = []
        for name in SWEEPS:
            for ours, real in zip(self.tables[name].shown, self.real_tables[name].shown, strict=True):
                place = {k: real[k] for k in ("crops", "grid_h", "grid_w", "image_tokens")}
                for engine in _ENGINES:
                    error = 100 * (ours[f"{engine}_core_flops"] / real[f"{engine}_core_flops"] - 1)
                    rows.append({**place, "sweep": name, "engine": engine, "error_percent": error})
        drawn: dict[str, Any] = {"measures": ("error_percent",), "x": "crops", "by": ("sweep",)}
        notes = {"tensor": "tensor-core FLOPs", "cuda": "CUDA-core FLOPs"}
        charts = [Chart(f"reconciliation_{e}", **drawn, where={"engine": e}, note=note) for e, note in notes.items()]
        title = f"{self.real.name}: error of the published FLOPs"
        return Table("reconciliation", title, next(iter(self.tables.values())).basis, rows, charts=charts)

    def cells(self) -> tuple[int, int]:
        """(cells reproduced to the printed digit, all cells) of the sweep and target tables."""
        cells = {sweep: (sweep, _SWEEP_CELLS) for sweep in SWEEPS}
        cells |= {target: (f"responsive_by_{target}", _TARGET_CELLS) for target in _TARGETS}
        found = []
        for name, (table, columns) in cells.items():
            rows, printed = _by_grid(self.tables[table]), self.printed[name]
            found += [cell(rows[row["grid_h_x_w"]]) == row[c] for row in printed for c, cell in columns.items()]
        return sum(found), len(found)

    def layer_cells(self) -> tuple[int, int]:
        """The same for the layer table."""
        rows = zip(self.published.layer_table(), self.printed["per_layer"], strict=True)
        found = [cell(row) == printed[column] for row, printed in rows for column, cell in LAYER_CELLS.items()]
        return sum(found), len(found)

    @cached_property
    def places(self) -> list[str]:
        """The smallest, a middle and the largest grid of the published tables."""
        grids = [row["grid_h_x_w"] for row in self.printed["vision_crops"]]
        return [grids[0], grids[len(grids) // 2], grids[-1]]

    @cached_property
    def _changes(self) -> dict[str, dict[str, Row]]:
        """By place the `real` counts, what each departure changes of them, and the `published` ones."""
        works = {place: self.real.workload(grid=place) for place in self.places}
        real, shown = replace(self.published, departures=()), self.published
        return {p: {"real": real.counts(w), **shown.effects(w), "published": shown.counts(w)} for p, w in works.items()}

    def effects(self, place: str) -> str:
        """The real counts at a place, what each departure adds, the published ones."""
        found, rows = self._changes[place], []
        for name, counts in found.items():
            show = significant if name in ("real", "published") else signed
            rows.append({"": name} | {q: show(float(counts[key]) / _GIGA, 5) for key, q in _QUANTITIES.items()})
        ratios = {q: found["published"][key] / found["real"][key] for key, q in _QUANTITIES.items()}
        errors = {q: f"{100 * float(ratio - 1):+.2f}" for q, ratio in ratios.items()}
        return markdown([*rows, {"": "published less real, %"} | errors], [""])

    def by_table(self) -> str:
        """The share of each table's FLOPs that each departure adds at the largest grid, and the layers it changes."""
        rows, changes, layers = [], self._changes[self.places[-1]], self.published.layer_table()
        for name in self.published.departures:
            row = {"departure": name}
            for column, (sweep, engines) in _TABLES.items():
                keys = [f"{stage}_{engine}_core_flops" for stage in SWEEPS[sweep] for engine in engines]
                added, real = (sum(changes[what][key] for key in keys) for what in (name, "real"))
                row[column] = signed(float(100 * (added / real)))
            others = tuple(other for other in self.published.departures if other != name)
            without = replace(self.published, departures=others).layer_table()
            changed = sum(a != b for a, b in zip(layers, without, strict=True))
            rows.append(row | {"layers changed in the layer table": f"{changed} of {len(without)}"})
        return markdown(rows, ["departure", "layers changed in the layer table"])

    @property
    def errors(self) -> list[tuple[tuple[Any, ...], list[Row]]]:
        """The rows of the error table by (table, engine), from the smallest to the largest grid."""
        rows = sorted(self.error_table.rows, key=lambda row: (row["crops"], row["image_tokens"]))
        return grouped(rows, "sweep", "engine")

    @property
    def targets(self) -> Iterator[tuple[str, str, Row, Row]]:
        """What the targets require: (target, grid, published row, real row)."""
        for target in _TARGETS:
            ours, real = (_by_grid(t[f"responsive_by_{target}"]) for t in (self.tables, self.real_tables))
            yield from ((target, place, ours[place], real[place]) for place in self.places)


def signed(value: float, digits: int = 3) -> str:
    """A change with its sign; 0 where there is none."""
    return ("+" if value > 0 else "") + significant(value, digits)


def _by_grid(table: Table) -> dict[str, Row]:
    return {grid_of(row): row for row in table.shown}
