"""Published tables beside the real counts: which cells are reproduced, and what each departure does.

A published model is the real one with named departures. Everything is computed from both models and from
the published tables as printed; nothing here knows which model it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import modelmeter
from modelmeter.models.model import Model
from modelmeter.report.document import grid, render
from modelmeter.report.measures import grid_of, significant
from modelmeter.sweep.table import Chart, Table
from modelmeter.workload import Workload

Effects = Callable[[Any, Workload], Mapping[str, Mapping[str, Any]]]
Counts = Callable[[Model, Workload], Mapping[str, Any]]
SWEEPS = ("vision_crops", "e2e_vision_prefill", "e2e_decode")
_QUANTITIES = {
    "vision_tensor_core_flops": ("vision, tensor cores, GFLOP", 1e9),
    "vision_cuda_core_flops": ("vision, CUDA cores, GFLOP", 1e9),
    "prefill_tensor_core_flops": ("prefill, tensor cores, GFLOP", 1e9),
    "prefill_cuda_core_flops": ("prefill, CUDA cores, GFLOP", 1e9),
    "decode_tensor_core_flops": ("decode, tensor cores, GFLOP", 1e9),
    "decode_cuda_core_flops": ("decode, CUDA cores, GFLOP", 1e9),
    "weight_bytes": ("weights, GB", 1e9),
    "io_bytes": ("I/O of vision and prefill, GB", 1e9),
    "decode_io_bytes": ("I/O of decode, GB", 1e9),
    "peak_activation_bytes": ("peak activations, GB", 1e9),
}


def _flops(*stages: str, engines: Sequence[str] = ("tensor", "cuda")) -> tuple[str, ...]:
    return tuple(f"{stage}_{engine}_core_flops" for stage in stages for engine in engines)


_TABLES = {
    "vision_crops, tensor cores, %": _flops("vision", engines=("tensor",)),
    "vision_crops, CUDA cores, %": _flops("vision", engines=("cuda",)),
    "e2e_vision_prefill, tensor cores, %": _flops("vision", "prefill", engines=("tensor",)),
    "e2e_vision_prefill, CUDA cores, %": _flops("vision", "prefill", engines=("cuda",)),
    "e2e_decode, tensor cores, %": _flops("decode", engines=("tensor",)),
    "e2e_decode, CUDA cores, %": _flops("decode", engines=("cuda",)),
    "ttft, %": _flops("vision", "prefill"),
    "tpot, %": _flops("decode"),
}
"""The columns of the published tables, and the counts that each is the sum of."""


@dataclass(frozen=True)
class Reconciliation:
    """The real and the published model with the tables of both and the published ones as printed.

    `tables` and `real_tables` have the sweeps by name (flash attention), `printed` the published rows by
    table. `effects`, `counts` and `layer_table` are those of the published model.
    """

    real: Model
    published: Any
    command: str
    tables: Mapping[str, Table]
    real_tables: Mapping[str, Table]
    printed: Mapping[str, Sequence[Mapping[str, str]]]
    effects: Effects
    counts: Counts
    layer_table: Callable[[Any], Sequence[Any]]

    @cached_property
    def layers(self) -> Sequence[Any]:
        """The layer table with all departures."""
        return self.layer_table(self.published)

    def page(self) -> str:
        """The page as Markdown; its figures are those of `error_table`."""
        return render(
            "reconciliation.md.j2",
            {
                "command": self.command,
                "version": modelmeter.__version__,
                "basis": next(iter(self.tables.values())).basis,
                "cells": dict(zip(("equal", "all"), self.cells(), strict=True)),
                "layer_cells": dict(zip(("equal", "all"), self.layer_cells(), strict=True)),
                "departures": self.published.chosen,
                "by_table": self._by_table(),
                "largest": self._places()[-1],
                "effects": [(place, self._effects(place)) for place in self._places()],
                "errors": self._errors(),
                "layers": self._layer_table(),
                "targets": self._targets(),
                "weights": self._weights(),
                "charts": [chart.name for chart in self.error_table.charts],
                "extremes": self._extremes(),
            },
        )

    @cached_property
    def error_table(self) -> Table:
        """By how much the published FLOPs differ from the real ones, in percent, by grid and table."""
        rows = []
        for name in SWEEPS:
            pairs = zip(self.tables[name].shown, self.real_tables[name].shown, strict=True)
            for ours, real in pairs:
                place = {k: real[k] for k in ("crops", "grid_h", "grid_w", "image_tokens")}
                for engine in ("tensor", "cuda"):
                    error = 100 * (ours[f"{engine}_core_flops"] / real[f"{engine}_core_flops"] - 1)
                    rows.append({**place, "sweep": name, "engine": engine, "error_percent": error})
        title = f"{self.real.name}: error of the published FLOPs"
        basis = next(iter(self.tables.values())).basis
        charts = [
            Chart(
                f"reconciliation_{engine}",
                ("error_percent",),
                "crops",
                "sweep",
                {"engine": engine},
                note=f"{label} FLOPs",
            )
            for engine, label in (("tensor", "tensor-core"), ("cuda", "CUDA-core"))
        ]
        return Table("reconciliation", title, basis, rows, charts=charts)

    def cells(self) -> tuple[int, int]:
        """(cells reproduced to the printed digit, all cells) of the sweep and target tables."""
        pairs = list(self._pairs())
        return sum(ours == printed for ours, printed in pairs), len(pairs)

    def layer_cells(self) -> tuple[int, int]:
        """The same for the layer table."""
        pairs = list(self._layer_pairs())
        return sum(ours == printed for ours, printed in pairs), len(pairs)

    def _pairs(self) -> Iterator[tuple[str, str]]:
        rows = {name: {grid_of(row): row for row in table.shown} for name, table in self.tables.items()}
        for name in SWEEPS:
            for printed in self.printed[name]:
                row = rows[name][printed["grid_h_x_w"]]
                tensor, cuda = row["tensor_core_flops"], row["cuda_core_flops"]
                yield str(row["image_tokens"]), printed["image_tokens"]
                yield f"{tensor / 1e12:.6e}", printed["tensor_core_tflops"]
                yield f"{cuda / 1e12:.6e}", printed["cuda_core_tflops"]
                yield f"{tensor / cuda:.3f}", printed["tensor_to_cuda_ratio"]
        for target, sweep in (("ttft", "responsive_by_ttft"), ("tpot", "responsive_by_tpot")):
            for printed in self.printed[target]:
                rate = rows[sweep][printed["grid_h_x_w"]]["required_flops_per_s"]
                yield f"{rate / 1e12:.3f}", printed["required_tflops_per_s"]

    def _layer_pairs(self) -> Iterator[tuple[str, str]]:
        for row, printed in zip(self.layers, self.printed["per_layer"], strict=True):
            yield row.layer, printed["layer"]
            yield f"{float(row.measured_flops) / 1e9:.4e}", printed["measured_gflops"]
            yield f"{float(row.theoretical_flops) / 1e9:.4e}", printed["theoretical_gflops"]
            yield f"{100 * float(row.difference):.4f}%", printed["rel_diff_percent"]

    def _places(self) -> list[str]:
        """The smallest, a middle and the largest grid of the published tables."""
        grids = [row["grid_h_x_w"] for row in self.printed[SWEEPS[0]]]
        return [grids[0], grids[len(grids) // 2], grids[-1]]

    @cached_property
    def _changes(self) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]]:
        """By place the real counts and what each departure changes of them."""
        works = {place: self.real.workload(grid=place) for place in self._places()}
        return {p: (self.counts(self.real, work), self.effects(self.published, work)) for p, work in works.items()}

    def _effects(self, place: str) -> str:
        real, found = self._changes[place]
        published = self.counts(self.published, self.real.workload(grid=place))
        heads = ["", *(label for label, _ in _QUANTITIES.values())]
        rows = [["real", *_row(real)], *([name, *_row(change, "+")] for name, change in found.items())]
        rows.append(["published", *_row(published)])
        errors = (100 * float(published[key] / real[key] - 1) for key in _QUANTITIES)
        return grid(heads, [*rows, ["published less real, %", *(f"{error:+.2f}" for error in errors)]])

    def _by_table(self) -> str:
        """The share of each table's FLOPs that each departure adds at the largest grid, and the layers it changes."""
        real, found = self._changes[self._places()[-1]]
        rows = []
        for name, change in found.items():
            shares = (_share(change, real, keys) for keys in _TABLES.values())
            others = tuple(d for d in self.published.departures if d != name)
            without = self.layer_table(replace(self.published, departures=others))
            layers = sum(a != b for a, b in zip(self.layers, without, strict=True))
            rows.append([name, *(signed(share) for share in shares), f"{layers} of {len(without)}"])
        return grid(["departure", *_TABLES, "layers changed in the layer table"], rows)

    def _errors(self) -> str:
        rows = self.error_table.rows
        found = []
        for name in SWEEPS:
            for engine in ("tensor", "cuda"):
                some = [r for r in rows if r["sweep"] == name and r["engine"] == engine]
                first, last = (f(some, key=lambda r: (r["crops"], r["image_tokens"])) for f in (min, max))
                cells = [f"{row['error_percent']:+.2f}" for row in (first, last)]
                found.append([name, engine, *cells])
        smallest, *_, largest = self._places()
        return grid(["table", "engine", f"error at {smallest}, %", f"error at {largest}, %"], found)

    def _extremes(self) -> dict[str, Any]:
        rows = [r for r in self.error_table.rows if r["sweep"] == SWEEPS[0] and r["engine"] == "tensor"]
        least, most = (f(rows, key=lambda r: r["error_percent"]) for f in (min, max))
        ends = {"least": f"{least['error_percent']:+.2f}", "most": f"{most['error_percent']:+.2f}"}
        return ends | {"least_grid": grid_of(least), "most_grid": grid_of(most), "sweep": SWEEPS[0]}

    def _layer_table(self) -> str:
        heads = ["group", "layer", "measured GFLOP", "published theory GFLOP", "difference, %", "implementation class"]
        rows = [
            [
                row.group,
                row.layer,
                f"{float(row.measured_flops) / 1e9:.4e}",
                f"{float(row.theoretical_flops) / 1e9:.4e}",
                f"{100 * float(row.difference):.4f}",
                f"`{row.implementation_class}`",
            ]
            for row in self.layers
        ]
        return grid(heads, rows)

    def _targets(self) -> str:
        heads = ["target", "grid", "published TFLOP/s", "real TFLOP/s", "real GB/s", "FLOPs per byte"]
        rows = []
        for target, name in (("TTFT", "responsive_by_ttft"), ("TPOT", "responsive_by_tpot")):
            ours, real = (
                {grid_of(row): row for row in tables[name].rows} for tables in (self.tables, self.real_tables)
            )
            for place in self._places():
                rate, moved = real[place]["required_flops_per_s"], real[place]["required_bytes_per_s"]
                cells = [f"{r / 1e12:.3f}" for r in (ours[place]["required_flops_per_s"], rate)]
                rows.append(
                    [
                        f"{target} {real[place]['budget_s']:g} s",
                        place,
                        *cells,
                        f"{moved / 1e9:.1f}",
                        f"{rate / moved:.1f}",
                    ]
                )
        return grid(heads, rows)

    def _weights(self) -> dict[str, str]:
        real, published = (model.storage().weight_bytes for model in (self.real, self.published))
        return {
            "published_gib": f"{float(published) / 2**30:.2f}",
            "real": f"{real:,}",
            "real_gib": f"{real / 2**30:.2f}",
        }


def signed(value: float, digits: int = 3) -> str:
    """A change with its sign; 0 where there is none."""
    return ("+" if value > 0 else "") + significant(value, digits)


def _share(change: Mapping[str, Any], real: Mapping[str, Any], keys: Sequence[str]) -> float:
    return float(100 * sum(change[key] for key in keys) / sum(real[key] for key in keys))


def _row(counts: Mapping[str, Any], sign: str = "") -> list[str]:
    cells = ((float(counts[key]), unit) for key, (_, unit) in _QUANTITIES.items())
    return [(signed if sign else significant)(value / unit, 5) for value, unit in cells]
