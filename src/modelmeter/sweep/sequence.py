"""The decoder alone: prefill length x decode length x batch x heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

from modelmeter.errors import InputError
from modelmeter.layers.attention import attention_layers, with_heads
from modelmeter.models.model import BaseModel
from modelmeter.settings import COUNTING, SWEPT, Setting, joined, kind_columns, options_of, pair, whole
from modelmeter.sweep.columns import Column, Measure, Row, flops_of, significant
from modelmeter.sweep.e2e_decode import PER_TOKEN, per_token
from modelmeter.sweep.findings import Finding, ranges, spoken, trends
from modelmeter.sweep.pages import counted, main_kind
from modelmeter.sweep.table import Chart, Table, cost_columns
from modelmeter.workload import Workload

LISTS = ("prefill_tokens", "decode_tokens", "batch")
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


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """One row a point, stage and runtime; contexts beyond the model's positions are marked.

    Raises InputError for heads that do not divide the hidden width.
    """
    (own, *_), lists = attention_layers(model), [settings[key] for key in LISTS]
    pairs = [(own.g * own.r, own.g)] if settings["heads"] is None else settings["heads"]
    models = {pair: with_heads(model, *pair) for pair in pairs}
    count = len(pairs) * prod(map(len, lists))
    if count > MOST_POINTS:
        raise InputError(f"{', '.join(LISTS)} and heads make {count} points; at most {MOST_POINTS}")
    rows: list[dict[str, Any]] = []
    for kind in settings["runtime"]:
        options = options_of(settings, kind)
        for heads, batch, steps, prefill in product(pairs, *reversed(lists)):
            work = model.text(prefill, batch=batch, decode_steps=steps, **options)
            rows += [_row(models[heads], work, heads, stage) for stage in ("prefill", "decode")]
    main = main_kind(settings)
    title = f"{model.name}: the decoder alone, {count} combinations of lengths, batch and heads"
    digest = [row for row in rows if row["execution"] == main and row["decode_steps"] == rows[0]["decode_steps"]]
    return [Table("sequence", title, counted(work), rows, dict(settings), _charts(rows[0], main), digest, main)]


def _row(model: BaseModel, work: Workload, heads: tuple[int, int], stage: str) -> dict[str, Any]:
    costs, decodes = cost_columns(model.cost(stage, work)), stage == "decode"
    return {
        "prefill_tokens": work.prompt_tokens,
        "decode_steps": work.decode_steps,
        "batch": work.batch,
        "heads": heads[0],
        "kv_heads": heads[1],
        "stage": stage,
        **kind_columns(work.execution),
        **costs,
        **(per_token(work.decode_steps * work.batch, costs) if decodes else dict.fromkeys(PER_TOKEN, "")),
        "beyond_positions": model.is_beyond(work.prompt_tokens + decodes * work.decode_steps),
    }


def _charts(first: Row, kind: str) -> list[Chart]:
    """Against the prefill length; whatever is no curve is held at its first value."""
    x, batch, heads = "prefill_tokens", ("batch",), ("heads", "kv_heads")
    fixed = {"execution": kind, "decode_steps": first["decode_steps"]}
    own = {column: first[column] for column in heads}
    decode, one = fixed | own | {"stage": "decode"}, fixed | {"stage": "decode", "batch": first["batch"]}
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
