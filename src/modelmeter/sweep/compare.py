"""Runtimes and formats of weights side by side, at one request: traffic, memory, kernels launched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from modelmeter.errors import InputError
from modelmeter.fits import request_of, rooms
from modelmeter.models.model import BaseModel
from modelmeter.programs.precision import Precision
from modelmeter.progress import watched
from modelmeter.runtimes.runtime import Runtime
from modelmeter.settings import COUNTING, PAGE, SWEPT, Kind, Setting, joined, options_of
from modelmeter.sweep.columns import Row, significant
from modelmeter.sweep.findings import Finding
from modelmeter.sweep.table import Table, number, table_of
from modelmeter.sweep.timed import Clock, of_request
from modelmeter.workload import Workload

_FORMAT = Kind(
    lambda key, value: Precision(weights=value).weights, lambda: "formats, bits or policies", (str, int, float)
)
SETTINGS = joined(
    Setting("weights", _FORMAT, "one row a format, bits or policy of the weights", several=True),
    *PAGE, *COUNTING, *SWEPT,
)  # fmt: skip
TOLD = {"io_bytes": ("Traffic", 1e9, " GB"), "peak_memory_bytes": ("Peak memory", 1e9, " GB"),
        "kernels_launched": ("Kernels launched", 1, "")}  # fmt: skip
"""What sentences are about: their words, and the unit."""


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """One row a runtime and format of weights. Raises InputError where the formats are given twice."""
    others = Precision.of(settings["precision"])
    if others.weights != Precision().weights:
        raise InputError("give the formats of weights as weights=A,B; precision.weights is of one")
    rows, clock = list[Row](), Clock.of(settings)
    pairs = list(product(settings["runtime"], settings["weights"]))
    for kind, weights in watched(pairs, "combinations", len(pairs)):
        precision = replace(others, weights=weights)
        work = request_of(model, **options_of(settings, kind, *PAGE) | {"precision": precision})
        head = {"combination": f"{kind} {weights}", "runtime": kind, "weights": str(weights)}
        rows.append(head | _row(model, work) | clock.columns(model, work, of_request))
    image = work.image.describe()
    title = f"{model.name}: {image}, {work.prompt_tokens} prompt tokens, {work.decode_steps} steps, batch {work.batch}"
    table = table_of("compare", title, work, rows, settings)
    overrides = str(others).partition(", ")[2]
    told = (f"causal {work.causal}", f"logits {work.logits}", f"activations {others.activations}", f"KV {others.kv}")
    own = (
        f"but {kind} has {', '.join(f'{name} {value}' for name, value in fixed.items())}"
        for kind in settings["runtime"]
        if (fixed := {k: v for k, v in Runtime.of(kind).fixed.items() if v != getattr(work, k, None)})
    )
    return [replace(table, basis=", ".join(filter(None, (*told, overrides, *own))), printed=True)]


def _row(model: BaseModel, work: Workload) -> dict[str, Any]:
    """What a request takes, all its stages together."""
    page, largest = model.request(work), max(rooms(model, work), key=lambda room: room.total)
    launched = {stage.name: model.launches(stage.name, work) for stage in model.stages}
    traffic = ("weight_io_bytes", "activation_io_bytes", "kv_io_bytes", "io_bytes")
    return {
        **{name: number(getattr(page, name)) for name in traffic},
        "stored_bytes": number(largest.weights),
        "peak_activation_bytes": number(page.peak_activation_bytes),
        "peak_memory_bytes": number(largest.total),
        "peak_stage": largest.stage,
        "kv_cache_bytes": number(page.kv_cache_bytes),
        "kernels_launched": number(sum(launched.values())),
        **{f"{stage}_kernels": number(many) for stage, many in launched.items()},
    }


def _findings(table: Table) -> Iterator[Finding]:
    """What has the least and the most of each, and how far they are apart."""
    for column, (title, unit, word) in TOLD.items():
        low, high = (end(row[column] for row in table.rows) for end in (min, max))
        values = {"title": title, "low": f"{significant(low / unit, 4 if word else len(str(low)))}{word}"}
        if low == high:
            yield "compare_same", values
            continue
        values |= {"high": f"{significant(high / unit, 4 if word else len(str(high)))}{word}"}
        values |= {name: _named(table, column, end) for name, end in (("least", low), ("most", high))}
        yield "compare_least", values | {"times": significant(high / low)}


def _named(table: Table, column: str, value: float) -> str:
    """The combinations that have a value: a runtime alone where it is all of its, weights alone likewise."""
    found = table.select(**{column: value})
    for key in ("runtime", "weights"):
        names = list(dict.fromkeys(row[key] for row in found))
        if len(table.select(**{key: tuple(names)})) == len(found):
            return _joined(names)
    return _joined([row["combination"] for row in found])


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names)


FINDINGS = {"compare": _findings}
