"""The decoder alone: prefill length x decode length x batch x heads, all in one vectorised evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from modelmeter.cost import StageCost
from modelmeter.errors import InputError
from modelmeter.layers.llama import attention_layers, with_heads
from modelmeter.models.model import Model
from modelmeter.sizes import as_size
from modelmeter.sweep.e2e_decode import per_token
from modelmeter.sweep.grids import attention_kinds, counted
from modelmeter.sweep.table import Chart, Table, part_columns
from modelmeter.workload import Workload, parse_pair

OPTIONS = ("logits", "causal", "rotary", "execution", "precision")
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
    if reference is not None:
        raise InputError("reference=true is not available for sequence; it is for vision_crops")
    points = _points(model, settings)
    rows: list[dict[str, Any]] = []
    kinds = attention_kinds(settings["attention"])
    for kind in kinds:
        options = {key: settings[key] for key in OPTIONS} | {"attention": kind}
        together = _parts(model, points, options)
        columns = part_columns(together, len(points), partial(_one, model, points, options))
        rows += [_row(model, p, kind, part, c) for p, cs in zip(points, columns, strict=True) for part, c in cs.items()]
    work = _work(model, [points[0]], options)
    title = f"{model.name}: the decoder alone, {len(points)} combinations of lengths, batch and heads"
    first = points[0]
    digest = [r for r in rows if r["attention"] == kinds[-1] and r["decode_steps"] == first.steps]
    return [Table("sequence", title, counted(work), rows, dict(settings), _charts(points, kinds[-1]), digest)]


def _numbers(key: str, value: Any) -> list[int]:
    given = value if isinstance(value, list) else [value]
    found = [as_size(key, number) for number in given]
    if not found or len(set(found)) < len(found):
        raise InputError(f"{key} must be one or more whole numbers, each once, not {value!r}")
    return found


def _heads(model: Model, value: Any) -> list[tuple[int, int]]:
    own = attention_layers(model)[0]
    if value is None:
        return [(own.g * own.r, own.g)]
    given = value if isinstance(value, list) else [value]
    found = [parse_pair("heads", pair, "HEADSxKV_HEADS") for pair in given]
    if not found or len(set(found)) < len(found):
        raise InputError(f"heads must be one or more HEADSxKV_HEADS, each once, not {value!r}")
    return found


def _points(model: Model, settings: Mapping[str, Any]) -> list[_Point]:
    lists = [_numbers(key, settings[key]) for key in ("prefill_tokens", "decode_tokens", "batch")]
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


def _row(model: Model, point: _Point, kind: str, stage: str, costs: Mapping[str, Any]) -> dict[str, Any]:
    work = model.text(point.prefill, batch=point.batch, decode_steps=point.steps)
    means = per_token(work, costs) if stage == "decode" else dict.fromkeys(per_token(work, costs), "")
    last = point.prefill + point.steps
    return {
        "prefill_tokens": point.prefill,
        "decode_steps": point.steps,
        "batch": point.batch,
        "heads": point.heads[0],
        "kv_heads": point.heads[1],
        "stage": stage,
        "attention": kind,
        **costs,
        **means,
        "beyond_positions": model.is_beyond(point.prefill if stage == "prefill" else last),
    }


def _charts(points: Sequence[_Point], kind: str) -> list[Chart]:
    """Against the prefill length; whatever is no curve is held at its first value."""
    first = points[0]
    fixed = {"attention": kind, "decode_steps": first.steps}
    own = {"heads": first.heads[0], "kv_heads": first.heads[1]}
    prefill = fixed | {"stage": "prefill", "batch": first.batch}
    decode = fixed | own | {"stage": "decode"}
    x, heads = "prefill_tokens", ("heads", "kv_heads")
    return [
        Chart("sequence_prefill_flops", ("flops_tflops",), x, heads, prefill, "xy", note="prefill"),
        Chart("sequence_kv_cache", ("kv_gb",), x, heads, prefill | {"stage": "decode"}, "xy", note="after decode"),
        Chart("sequence_decode_io", ("io_gb_per_token",), x, ("batch",), decode, "xy", note="decode"),
        Chart("sequence_decode_intensity", ("arithmetic_intensity",), x, ("batch",), decode, "xy", note="decode"),
    ]
