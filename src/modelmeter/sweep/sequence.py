"""The decoder alone: prefill length x decode length x batch x heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

from modelmeter.errors import InputError
from modelmeter.layers.attention import heads_of, with_heads
from modelmeter.models.model import BaseModel
from modelmeter.progress import watched
from modelmeter.settings import COUNTING, SWEPT, Setting, joined, options_of, pair, whole
from modelmeter.sweep.columns import Row, flops_of, significant
from modelmeter.sweep.e2e_decode import PER_TOKEN, per_token
from modelmeter.sweep.findings import Finding, ranges, rows_of, spoken, trends
from modelmeter.sweep.table import Table, cost_columns, table_of
from modelmeter.sweep.timed import Clock, columns, of_stage

SETTINGS = joined(
    Setting("prefill_tokens", whole(), "beyond the model's positions is allowed and marked", several=True),
    Setting("decode_tokens", whole(), "tokens generated after the prefill", several=True),
    Setting("batch", whole(), "sequences at once", several=True),
    Setting(
        "heads", pair("HEADSxKV_HEADS"), "HEADSxKV_HEADS at the same hidden width; null: the model's own", True, True,
    ),
    *COUNTING, *SWEPT,
)  # fmt: skip
MOST_POINTS = 1_000_000
SIZES = ("prefill_tokens", "decode_steps", "batch", "heads", "kv_heads")


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """One row a point, stage and runtime; contexts beyond the model's positions are marked.

    Raises InputError for heads that do not divide the hidden width.
    """
    lists = [settings[key] for key in ("batch", "decode_tokens", "prefill_tokens")]
    pairs = settings["heads"] or [heads_of(model)]
    count = prod(map(len, (pairs, *lists)))
    if count > MOST_POINTS:
        raise InputError(f"prefill_tokens, decode_tokens, batch and heads make {count} points; at most {MOST_POINTS}")
    models = [(heads, _with_heads(model, heads) if settings["heads"] else model) for heads in pairs]
    rows, clock = list[Row](), Clock.of(settings)
    for kind in settings["runtime"]:
        options = options_of(settings, kind)
        for (heads, changed), batch, steps, prefill in watched(product(models, *lists), f"points, {kind}", count):
            work = changed.text(prefill, batch=batch, decode_steps=steps, **options)
            point = dict(zip(SIZES, (prefill, steps, batch, *heads), strict=True))
            timed = clock.times(changed, work)
            for stage, reach in (("prefill", prefill), ("decode", prefill + steps)):
                costs = cost_columns(work, changed.cost(stage, work))
                means = per_token(work, costs) if stage == "decode" else dict.fromkeys(PER_TOKEN, "")
                seconds = columns((one, of_stage(stage)(one)) for one in timed)
                beyond = {"beyond_positions": model.is_beyond(reach)}
                rows.append(point | {"stage": stage} | costs | means | seconds | beyond)
    title = f"{model.name}: the decoder alone, {count} combinations of lengths, batch and heads"
    table = table_of("sequence", title, work, rows, settings, rows[0])
    return [replace(table, digest=rows_of(table, decode_steps=rows[0]["decode_steps"]))]


def _with_heads(model: BaseModel, heads: tuple[int, int]) -> BaseModel:
    """A model with other heads, if they fit."""
    try:
        changed: BaseModel = with_heads(model, *heads)
        return changed
    except InputError as error:
        raise InputError(f"{error}; heads=null keeps those of {model.name}") from None


def _findings(table: Table) -> Iterator[Finding]:
    """At the first of every size that a sentence does not speak of."""
    first = {key: table.rows[0][key] for key in SIZES}

    def along(stage: str, free: str) -> dict[Any, Row]:
        fixed = {key: value for key, value in first.items() if key != free}
        return {row[free]: row for row in table.select(execution=table.kind, stage=stage, **fixed)}

    yield from spoken(table)
    lengths = {length: flops_of(row) for length, row in along("prefill", "prefill_tokens").items()}
    if len(lengths) > 1:
        ends = (str(min(lengths)), str(max(lengths)))
        yield from ranges("sequence_prefill", list(lengths.values()), 1e12, **first, lengths=ends)
    yield from trends("sequence_trend", lengths)
    batches = along("decode", "batch")
    if len(batches) > 1:
        few, many = min(batches), max(batches)
        values = first | {"first": few, "last": many, "prefill": first["prefill_tokens"]}
        for end, row in (("low", batches[many]), ("high", batches[few])):
            values[end] = significant(row["io_bytes_per_token"] / 1e9)
            values[f"{end}_weights"] = significant(row["weight_io_bytes"] / row["decode_steps"] / 1e9)
        yield "sequence_batch", values
        if batches[few]["weight_io_bytes"]:
            yield "sequence_weights", values
    caches = {kv_heads: row["kv_cache_bytes"] for kv_heads, row in along("decode", "kv_heads").items()}
    if len(caches) > 1:
        low, high = min(caches), max(caches)
        yield "sequence_kv", first | {"low": low, "high": high, "times": significant(caches[high] / caches[low])}


FINDINGS = {"sequence": _findings}
