"""The decoder alone: prefill length x decode length x batch x heads, all in one vectorised evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from modelmeter.cost import StageCost
from modelmeter.errors import InputError, one_or_more
from modelmeter.layers.llama import attention_layers, with_heads
from modelmeter.models.model import Model
from modelmeter.sweep.e2e_decode import PER_TOKEN, per_token
from modelmeter.sweep.grids import COUNTING, counted, kinds, main_kind, refuse_reference, whole_numbers
from modelmeter.sweep.table import Chart, Table, part_columns
from modelmeter.workload import Workload, parse_pair

MOST_POINTS = 1_000_000


@dataclass(frozen=True)
class _Point:
    prefill: int
    steps: int
    batch: int
    heads: tuple[int, int]


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """One row a point, stage and attention kind; contexts beyond the model's positions are marked.

    `settings` names the lengths as lists: prefill_tokens, decode_tokens, batch, and heads ("10x2": 10 heads,
    2 KV heads; None: the model's own). Raises InputError for values that make no sense.
    """
    refuse_reference("sequence", reference)
    points = _points(model, settings)
    rows: list[dict[str, Any]] = []
    for kind in kinds(settings):
        options = {key: settings[key] for key in COUNTING} | kind
        together = _parts(model, points, options)
        columns = part_columns(together, len(points), partial(_one, model, points, options))
        rows += [_row(model, p, kind, part, c) for p, cs in zip(points, columns, strict=True) for part, c in cs.items()]
    work, first, spoken = _work(model, [points[0]], options), points[0], main_kind(settings)
    title = f"{model.name}: the decoder alone, {len(points)} combinations of lengths, batch and heads"
    digest = [r for r in rows if r["execution"] == spoken and r["decode_steps"] == first.steps]
    charts = _charts(first, spoken)
    return [Table("sequence", title, counted(work), rows, dict(settings), charts, digest=digest, kind=spoken)]


def _heads(model: Model, value: Any) -> list[tuple[int, int]]:
    own = attention_layers(model)[0]
    if value is None:
        return [(own.g * own.r, own.g)]
    return one_or_more("heads", value, "HEADSxKV_HEADS", check=lambda pair: parse_pair("heads", pair, "HEADSxKV_HEADS"))


def _points(model: Model, settings: Mapping[str, Any]) -> list[_Point]:
    lists = [whole_numbers(key, settings[key]) for key in ("prefill_tokens", "decode_tokens", "batch")]
    pairs = _heads(model, settings["heads"])
    for heads, kv_heads in pairs:
        with_heads(model, heads, kv_heads)  # raises what is wrong with one pair before they become arrays
    count = len(pairs) * len(lists[0]) * len(lists[1]) * len(lists[2])
    if count > MOST_POINTS:
        raise InputError(f"prefill_tokens, decode_tokens, batch and heads make {count} points; at most {MOST_POINTS}")
    return [_Point(s, k, b, h) for h, b, k, s in product(pairs, lists[2], lists[1], lists[0])]


def _sizes(values: Sequence[int]) -> Any:
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


def _row(model: Model, point: _Point, kind: Mapping[str, str], stage: str, costs: Mapping[str, Any]) -> dict[str, Any]:
    means = per_token(point.steps * point.batch, costs) if stage == "decode" else dict.fromkeys(PER_TOKEN, "")
    last = point.prefill + point.steps
    return {
        "prefill_tokens": point.prefill,
        "decode_steps": point.steps,
        "batch": point.batch,
        "heads": point.heads[0],
        "kv_heads": point.heads[1],
        "stage": stage,
        **kind,
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
