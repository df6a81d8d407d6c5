"""Published tables beside the real counts: which cells are reproduced, and what each departure does.

A published model is the real one with named departures. Everything is computed from both models and from the
published tables as printed; nothing here knows which model it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import modelmeter
from modelmeter.models.model import BaseModel
from modelmeter.report.document import grid, render
from modelmeter.sweep.columns import Row, grid_of, significant
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


def _flops(sweep: str, engines: Iterable[str] = _ENGINES) -> list[str]:
    return [f"{stage}_{engine}_core_flops" for stage in SWEEPS[sweep] for engine in engines]


_TABLES = {
    f"{sweep}, {label}, %": _flops(sweep, [engine]) for sweep in SWEEPS for engine, label in _ENGINES.items()
} | {f"{target}, %": _flops(sweep) for target, sweep in _TARGETS.items()}
"""The columns of the published tables, and the counts that each is the sum of."""


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

    @cached_property
    def layers(self) -> Any:
        """The layer table with all departures."""
        return self.published.layer_table()

    def page(self) -> str:
        """The page as Markdown; its figures are those of `error_table`."""
        return render("reconciliation.md.j2", {"r": self, "version": modelmeter.__version__})

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
        return _equal(self._pairs())

    def layer_cells(self) -> tuple[int, int]:
        """The same for the layer table."""
        columns = ("layer", "measured_gflops", "theoretical_gflops", "rel_diff_percent")
        ours = ((row.layer, *_layer_cells(row)) for row in self.layers)
        rows = zip(ours, self.printed["per_layer"], strict=True)
        return _equal((cell, printed[c]) for cells, printed in rows for cell, c in zip(cells, columns, strict=True))

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for name in SWEEPS:
            rows = _by_grid(self.tables[name])
            for printed in self.printed[name]:
                row = rows[printed["grid_h_x_w"]]
                tensor, cuda = row["tensor_core_flops"], row["cuda_core_flops"]
                yield str(row["image_tokens"]), printed["image_tokens"]
                yield f"{tensor / 1e12:.6e}", printed["tensor_core_tflops"]
                yield f"{cuda / 1e12:.6e}", printed["cuda_core_tflops"]
                yield f"{tensor / cuda:.3f}", printed["tensor_to_cuda_ratio"]
        for target in _TARGETS:
            rows = _by_grid(self.tables[f"responsive_by_{target}"])
            for printed in self.printed[target]:
                rate = rows[printed["grid_h_x_w"]]["required_flops_per_s"]
                yield f"{rate / 1e12:.3f}", printed["required_tflops_per_s"]

    @cached_property
    def places(self) -> list[str]:
        """The smallest, a middle and the largest grid of the published tables."""
        grids = [row["grid_h_x_w"] for row in self.printed["vision_crops"]]
        return [grids[0], grids[len(grids) // 2], grids[-1]]

    @cached_property
    def _changes(self) -> dict[str, tuple[Row, Mapping[str, Row], Row]]:
        """By place the real counts, what each departure changes of them, and the published ones."""
        works = {place: self.real.workload(grid=place) for place in self.places}
        real, published = replace(self.published, departures=()), self.published
        return {p: (real.counts(w), published.effects(w), published.counts(w)) for p, w in works.items()}

    def effects(self, place: str) -> str:
        """The real counts at a place, what each departure adds, the published ones."""
        real, found, published = self._changes[place]
        rows = [["real", *_row(real)], *([name, *_row(change, "+")] for name, change in found.items())]
        errors = (f"{100 * float(published[key] / real[key] - 1):+.2f}" for key in _QUANTITIES)
        rows += [["published", *_row(published)], ["published less real, %", *errors]]
        return grid(["", *_QUANTITIES.values()], rows)

    def by_table(self) -> str:
        """The share of each table's FLOPs that each departure adds at the largest grid, and the layers it changes."""
        real, found, _ = self._changes[self.places[-1]]
        rows = []
        for name, change in found.items():
            added = (sum(change[key] for key in keys) / sum(real[key] for key in keys) for keys in _TABLES.values())
            others = tuple(d for d in self.published.departures if d != name)
            without = replace(self.published, departures=others).layer_table()
            layers = sum(a != b for a, b in zip(self.layers, without, strict=True))
            rows.append([name, *(signed(float(100 * share)) for share in added), f"{layers} of {len(without)}"])
        return grid(["departure", *_TABLES, "layers changed in the layer table"], rows)

    def errors(self) -> str:
        """The error at the smallest and the largest grid, by table and engine."""
        found = []
        for name in SWEEPS:
            for engine in _ENGINES:
                rows = self.error_table.select(sweep=name, engine=engine)
                first, *_, last = sorted(rows, key=lambda row: (row["crops"], row["image_tokens"]))
                found.append([name, engine, f"{_error(first):+.2f}", f"{_error(last):+.2f}"])
        smallest, *_, largest = self.places
        return grid(["table", "engine", f"error at {smallest}, %", f"error at {largest}, %"], found)

    def extremes(self) -> dict[str, Any]:
        """The least and the largest error of tensor-core FLOPs in the first sweep, and where they are."""
        rows = self.error_table.select(sweep=next(iter(SWEEPS)), engine="tensor")
        found = {"least": min(rows, key=_error), "most": max(rows, key=_error)}
        ends = {end: f"{_error(row):+.2f}" for end, row in found.items()}
        return ends | {f"{end}_grid": grid_of(row) for end, row in found.items()} | {"sweep": rows[0]["sweep"]}

    def layer_table(self) -> str:
        """The published layer table, difference in percent."""
        heads = ["group", "layer", "measured GFLOP", "published theory GFLOP", "difference, %", "implementation class"]
        cells = ((row, [cell.rstrip("%") for cell in _layer_cells(row)]) for row in self.layers)
        return grid(heads, [[row.group, row.layer, *found, f"`{row.implementation_class}`"] for row, found in cells])

    def targets(self) -> str:
        """The published and the real rates that the targets require."""
        heads = ["target", "grid", "published TFLOP/s", "real TFLOP/s", "real GB/s", "FLOPs per byte"]
        rows = []
        for target in _TARGETS:
            ours, real = (_by_grid(t[f"responsive_by_{target}"]) for t in (self.tables, self.real_tables))
            for place in self.places:
                rate, moved = real[place]["required_flops_per_s"], real[place]["required_bytes_per_s"]
                rates = [f"{r / 1e12:.3f}" for r in (ours[place]["required_flops_per_s"], rate)]
                needs = [*rates, f"{moved / _GIGA:.1f}", f"{rate / moved:.1f}"]
                rows.append([f"{target.upper()} {real[place]['budget_s']:g} s", place, *needs])
        return grid(heads, rows)


def signed(value: float, digits: int = 3) -> str:
    """A change with its sign; 0 where there is none."""
    return ("+" if value > 0 else "") + significant(value, digits)


def _error(row: Row) -> float:
    return float(row["error_percent"])


def _by_grid(table: Table) -> dict[str, Row]:
    return {grid_of(row): row for row in table.shown}


def _equal(pairs: Iterable[tuple[str, str]]) -> tuple[int, int]:
    found = [ours == printed for ours, printed in pairs]
    return sum(found), len(found)


def _layer_cells(row: Any) -> tuple[str, str, str]:
    """GFLOP measured and in theory, and their difference, as printed."""
    measured, theory = (f"{float(flops) / _GIGA:.4e}" for flops in (row.measured_flops, row.theoretical_flops))
    return measured, theory, f"{100 * float(row.difference):.4f}%"


def _row(counts: Row, sign: str = "") -> list[str]:
    return [(signed if sign else significant)(float(counts[key]) / _GIGA, 5) for key in _QUANTITIES]
