"""The decoder alone: prefill length x decode length x batch x heads, all in one vectorised evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.errors import InputError
from modelmeter.layers.llama import attention_layers, with_heads
from modelmeter.models.model import Model
from modelmeter.settings import COUNTING, SWEPT, Setting, joined, kind_columns, options_of, pair, whole
from modelmeter.sweep.columns import Column, Measure, Row, flops_of, significant
from modelmeter.sweep.e2e_decode import PER_TOKEN, per_token
from modelmeter.sweep.findings import Finding, ranges, spoken, trends
from modelmeter.sweep.grids import counted, main_kind
from modelmeter.sweep.table import Chart, Table, part_columns
from modelmeter.workload import Workload

SETTINGS = joined(
    Setting("prefill_tokens", whole(), "beyond the model's positions is allowed and marked", several=True),
    Setting("decode_tokens", whole(), "tokens generated after the prefill", several=True),
    Setting("batch", whole(), "sequences at once", several=True),
    Setting(
        "heads", pair("HEADSxKV_HEADS"), "HEADSxKV_HEADS at the same hidden width; null: the model's own", True, True,
    ),
    *COUNTING, *SWEPT,
)  # fmt: skip
COLUMNS = (
    Column("prefill_tokens", "prefill tokens", axis="tokens of the prefill"),
    Column("heads", curve="heads {}"),
    Column("kv_heads", "KV heads", curve="KV heads {}"),
)
MEASURES = (Measure("io_gb_per_token", "traffic an output token (GB = 1e9 bytes)", ("io_bytes_per_token",), 1e9),)
MOST_POINTS = 1_000_000


@dataclass(frozen=True)
class _Point:
    prefill: int
    steps: int
    batch: int
    heads: tuple[int, int]


def run(model: Model, settings: Mapping[str, Any]) -> list[Table]:
    """One row a point, stage and attention kind; contexts beyond the model's positions are marked.

    Raises InputError for heads that do not divide the hidden width.
    """
    points = _points(model, settings)
    rows: list[dict[str, Any]] = []
    for kind in settings["runtime"]:
        options = options_of(settings, kind)
        together = _parts(model, points, options)
        columns = part_columns(together, len(points), partial(_one, model, points, options))
        rows += [_row(model, p, kind, part, c) for p, cs in zip(points, columns, strict=True) for part, c in cs.items()]
    work, first, main = _work(model, [points[0]], options), points[0], main_kind(settings)
    title = f"{model.name}: the decoder alone, {len(points)} combinations of lengths, batch and heads"
    digest = [r for r in rows if r["execution"] == main and r["decode_steps"] == first.steps]
    charts = _charts(first, main)
    return [Table("sequence", title, counted(work), rows, dict(settings), charts, digest=digest, kind=main)]


def _points(model: Model, settings: Mapping[str, Any]) -> list[_Point]:
    lists = [settings[key] for key in ("prefill_tokens", "decode_tokens", "batch")]
    own = attention_layers(model)[0]
    pairs = [(own.g * own.r, own.g)] if settings["heads"] is None else settings["heads"]
    for heads, kv_heads in pairs:
        with_heads(model, heads, kv_heads)  # raises what is wrong with one pair before they become arrays
    count = len(pairs) * len(lists[0]) * len(lists[1]) * len(lists[2])
    if count > MOST_POINTS:
        raise InputError(f"prefill_tokens, decode_tokens, batch and heads make {count} points; at most {MOST_POINTS}")
    return [_Point(s, k, b, h) for h, b, k, s in product(pairs, lists[2], lists[1], lists[0])]


def _sizes(values: Sequence[int]) -> Any:
    import numpy as np

    return values[0] if len(values) == 1 else np.array(values, dtype=np.float64)


def _work(model: Model, points: Sequence[_Point], options: Mapping[str, Any]) -> Workload:
    batch, steps = _sizes([p.batch for p in points]), _sizes([p.steps for p in points])
    return model.text(_sizes([p.prefill for p in points]), batch=batch, decode_steps=steps, **options)


def _parts(model: Model, points: Sequence[_Point], options: Mapping[str, Any]) -> dict[str, StageCost]:
    changed = with_heads(model, *(_sizes([p.heads[i] for p in points]) for i in (0, 1)))
    work = _work(model, points, options)
    return {stage: changed.cost(stage, work) for stage in ("prefill", "decode")}


def _one(model: Model, points: Sequence[_Point], options: Mapping[str, Any], index: int) -> dict[str, StageCost]:
    return _parts(model, [points[index]], options)


def _row(model: Model, point: _Point, kind: str, stage: str, costs: Mapping[str, Any]) -> dict[str, Any]:
    means = per_token(point.steps * point.batch, costs) if stage == "decode" else dict.fromkeys(PER_TOKEN, "")
    last = point.prefill + point.steps
    return {
        "prefill_tokens": point.prefill,
        "decode_steps": point.steps,
        "batch": point.batch,
        "heads": point.heads[0],
        "kv_heads": point.heads[1],
        "stage": stage,
        **kind_columns(kind),
        **costs,
        **means,
        "beyond_positions": model.is_beyond(point.prefill if stage == "prefill" else last),
    }


def _charts(first: _Point, kind: str) -> list[Chart]:
    """Against the prefill length; whatever is no curve is held at its first value."""
    fixed = {"execution": kind, "decode_steps": first.steps}
    own = {"heads": first.heads[0], "kv_heads": first.heads[1]}
    decode = fixed | own | {"stage": "decode"}
    x, batch, heads = "prefill_tokens", ("batch",), ("heads", "kv_heads")
    one = fixed | {"stage": "decode", "batch": first.batch}
    return [
        Chart("sequence_prefill_flops", ("flops_tflops",), x, batch, fixed | own | {"stage": "prefill"}, "xy"),
        Chart("sequence_kv_cache", ("kv_gb",), x, heads, one, "xy"),
        Chart("sequence_decode_io", ("io_gb_per_token",), x, batch, decode, "xy"),
        Chart("sequence_decode_intensity", ("arithmetic_intensity",), x, batch, decode, "xy"),
    ]


def _findings(table: Table) -> Iterator[Finding]:
    """At the first of every size that a sentence does not speak of."""
    sizes = ("prefill_tokens", "decode_steps", "batch", "heads", "kv_heads")
    first = {key: table.rows[0][key] for key in sizes}

    def along(stage: str, *free: str) -> list[Row]:
        fixed = {key: value for key, value in first.items() if key not in free}
        return table.select(execution=table.kind, stage=stage, **fixed)

    yield from spoken(table)
    lengths = {row["prefill_tokens"]: flops_of(row) for row in along("prefill", "prefill_tokens")}
    if len(lengths) > 1:
        ends = (str(min(lengths)), str(max(lengths)))
        yield from ranges("sequence_prefill", list(lengths.values()), 1e12, **first, lengths=ends)
    yield from trends("sequence_trend", lengths)
    batches = {row["batch"]: row for row in along("decode", "batch")}
    if len(batches) > 1:
        yield from _batches(batches, first)
    caches = {row["kv_heads"]: row["kv_cache_bytes"] for row in along("decode", "kv_heads")}
    if len(caches) > 1:
        low, high = min(caches), max(caches)
        yield "sequence_kv", first | {"low": low, "high": high, "times": significant(caches[high] / caches[low])}


def _batches(batches: Mapping[int, Row], first: Mapping[str, Any]) -> Iterator[Finding]:
    least, most = batches[min(batches)], batches[max(batches)]
    values = {**first, "first": min(batches), "last": max(batches), "prefill": first["prefill_tokens"]}
    for end, row in (("low", most), ("high", least)):
        values[end] = significant(row["io_bytes_per_token"] / 1e9)
        values[f"{end}_weights"] = significant(row["weight_io_bytes"] / row["decode_steps"] / 1e9)
    yield "sequence_batch", values
    if least["weight_io_bytes"]:
        yield "sequence_weights", values


FINDINGS = {"sequence": _findings}
