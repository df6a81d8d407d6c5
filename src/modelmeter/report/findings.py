"""What the rows of a sweep say, as data: each finding is a key of the text catalogue with its values.

Every number and every word of a trend is computed here from the rows; the sentences in each language are
in `text/`. Next: `language.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modelmeter.report.measures import Row, flops_of, grid_of, significant
from modelmeter.sweep.table import TOTAL, Table

Finding = tuple[str, dict[str, Any]]
SHAPE = 3
"""Points from which on there is a shape to speak of."""
SAME, STRAIGHT, NEARLY = 1e-12, 1e-9, 0.02
"""What is off a shape by this share of the largest value still has it: constant, linear, nearly linear."""
TIMES = 1.1
"""From this ratio on a difference is told in times, below in percent."""


def findings(table: Table) -> list[Finding]:
    """The findings of a table by its name; none for a table that has no reader yet."""
    found = _READERS.get(table.name)
    if found is None:
        return []
    several = len({row["execution"] for row in table.rows}) > 1
    unnamed = several and found not in (_required, _device_shares)  # these name it in each sentence
    spoken: list[Finding] = [("spoken", {"kind": table.kind})] if unnamed else []
    return [*spoken, *found(table)]


def trend(points: Sequence[tuple[float, float]]) -> str:
    """How y grows with x: constant, linear, nearly_linear, superlinear or sublinear, or falling.

    >>> trend([(1, 3), (2, 5), (4, 9)]), trend([(1, 1), (2, 4), (4, 16)]), trend([(1, 2), (9, 2)])
    ('linear', 'superlinear', 'constant')
    """
    points = sorted(points)
    (x0, y0), (x1, y1) = points[0], points[-1]
    top = max(abs(y) for _, y in points)
    if max(abs(y - y0) for _, y in points) <= SAME * top:
        return "constant"
    if y1 < y0:
        return "falling"
    off = [y - (y0 + (y1 - y0) * (x - x0) / (x1 - x0)) for x, y in points]
    worst = max(off, key=abs)
    if abs(worst) <= STRAIGHT * top:
        return "linear"
    if abs(worst) <= NEARLY * top:
        return "nearly_linear"
    return "superlinear" if worst < 0 else "sublinear"


def _range(values: Sequence[float], unit: float = 1.0) -> tuple[str, str]:
    """The least and the largest value; a language writes one number where they are the same."""
    return significant(min(values) / unit), significant(max(values) / unit)


def _extremes(values: Sequence[float], unit: float = 1.0) -> dict[str, tuple[str, str]]:
    return {"range": _range(values, unit)}


def _ends(rows: Sequence[Row]) -> dict[str, Any]:
    first, last = (f(rows, key=lambda r: (r["crops"], r["image_tokens"])) for f in (min, max))
    return {"grids": (grid_of(first), grid_of(last)), "range": _range([flops_of(row) for row in rows], 1e12)}


def _kinds(table: Table, **where: Any) -> tuple[list[Row], list[Row]]:
    """The rows of the execution that is spoken of, and those with eager execution beside it (or none)."""
    rows = table.select(**where)
    eager = [row for row in rows if row["execution"] == "eager"] if table.kind != "eager" else []
    return [row for row in rows if row["execution"] == table.kind], eager


def _eager(rows: Sequence[Row], eager: Sequence[Row]) -> Iterator[Finding]:
    if eager:
        times = [a["io_bytes"] / b["io_bytes"] for a, b in zip(eager, rows, strict=True)]
        key = "eager_traffic" if max(times) >= TIMES else "eager_percent"
        shown = times if max(times) >= TIMES else [100 * (t - 1) for t in times]
        yield key, _extremes(shown) | {"kind": rows[0]["execution"]}


def _engines(rows: Sequence[Row]) -> Iterator[Finding]:
    shares = [100 * row["cuda_core_flops"] / flops_of(row) for row in rows]
    yield "cuda_share", _extremes(shares)


def _vision_crops(table: Table) -> Iterator[Finding]:
    rows, eager = _kinds(table)
    tiled = {row["crops"]: row for row in rows if row["crops"]}
    if len(tiled) > 1:
        yield "vision_range", _ends(list(tiled.values()))
        few, many = min(tiled), max(tiled)
        each = significant((flops_of(tiled[many]) - flops_of(tiled[few])) / (many - few) / 1e12, 4)
        shape = trend([(crops, flops_of(row)) for crops, row in tiled.items()])
        yield "vision_per_crop" if shape == "linear" else "vision_per_crop_mean", {"each": each}
        if len(tiled) >= SHAPE:
            yield "vision_trend", {"trend": shape}
    yield from _engines(rows)
    yield from _eager(rows, eager)
    yield "intensity", _extremes([row["arithmetic_intensity_flop_per_byte"] for row in rows])
    yield "peak", _extremes([row["peak_activation_bytes"] for row in rows], 1e9)
    if len(tiled) > 1:
        fewer, many = sorted(tiled)[-2:]
        more = tiled[many]["peak_activation_bytes"] - tiled[fewer]["peak_activation_bytes"]
        yield "peak_per_crop", {"each": significant(more / (many - fewer) / 1e6, 4)}


def _e2e_vision_prefill(table: Table) -> Iterator[Finding]:
    rows, eager = _kinds(table, component=TOTAL)
    vision, _ = _kinds(table, component="vision")
    tiled = [row for row in rows if row["crops"]]
    points = {row["image_tokens"]: flops_of(row) for row in tiled}
    if len(points) > 1:
        yield "prefill_range", _ends(tiled)
    if len(points) >= SHAPE:
        yield "prefill_trend", {"trend": trend(list(points.items()))}
    yield "vision_share", _extremes([100 * flops_of(a) / flops_of(b) for a, b in zip(vision, rows, strict=True)])
    yield from _engines(rows)
    yield from _eager(rows, eager)
    yield "intensity", _extremes([row["arithmetic_intensity_flop_per_byte"] for row in rows])
    batch = table.settings.get("batch", 1)
    each = rows[0]["kv_cache_bytes"] / rows[0]["context_tokens"] / batch
    yield "kv", _extremes([row["kv_cache_bytes"] for row in rows], 1e6) | {"each": f"{each:,.0f}", "batch": batch}


def _e2e_decode(table: Table) -> Iterator[Finding]:
    rows, eager = _kinds(table, component=TOTAL)
    per_token = [row["tensor_core_flops_per_token"] + row["cuda_core_flops_per_token"] for row in rows]
    yield "decode_token", _extremes(per_token, 1e9) | {"steps": rows[0]["decode_steps"]}
    points = {row["context_tokens"]: flops_of(row) for row in rows}
    if len(points) >= SHAPE:
        yield "decode_trend", {"trend": trend(list(points.items()))}
    yield "decode_io", _extremes([row["io_bytes_per_token"] for row in rows], 1e9)
    weights = min(row["weight_io_bytes"] / row["io_bytes"] for row in rows)
    if weights:
        yield "decode_weights", {"weights": significant(100 * weights)}
    yield "intensity", _extremes([row["arithmetic_intensity_flop_per_byte"] for row in rows])
    yield from _eager(rows, eager)


def _required(table: Table) -> Iterator[Finding]:
    rows, _ = _kinds(table)
    for budget in dict.fromkeys(row["budget_s"] for row in rows):
        some = [row for row in rows if row["budget_s"] == budget]
        rate, moved = ([row[f"required_{what}_per_s"] for row in some] for what in ("flops", "bytes"))
        yield "required", {
            "target": some[0]["target"], "budget": f"{budget:g}", "kind": table.kind,
            "range": _range(rate, 1e12), "range_gb": _range(moved, 1e9),
        }  # fmt: skip


def _device_shares(table: Table) -> Iterator[Finding]:
    digest = table.digest or ()
    budgets = dict.fromkeys((row["target"], row["budget_s"]) for row in digest)
    for target, budget in budgets:
        some = [r for r in digest if (r["target"], r["budget_s"], r["execution"]) == (target, budget, table.kind)]
        ends = {
            name: _range([row[f"{end}_{share}"] for row in some for end in ("least", "largest")], 0.01)
            for name, share in (("tensor", "tensor_core_share"), ("memory", "memory_bandwidth_share"))
        }
        yield "shares", {"target": target, "budget": f"{budget:g}", "kind": table.kind, **ends}
    for target in dict.fromkeys(target for target, _ in budgets):
        yield from _binding(digest, target)


def _binding(digest: Sequence[Row], target: str) -> Iterator[Finding]:
    """What binds does not depend on the budget: on how many devices it is bandwidth, by execution."""
    rows = [row for row in digest if row["target"] == target]
    rows = [row for row in rows if row["budget_s"] == rows[0]["budget_s"]]
    executions = list(dict.fromkeys(row["execution"] for row in rows))
    devices = len({row["device"] for row in rows})
    for execution in executions:
        some = [row for row in rows if row["execution"] == execution]
        bound = sum(row["binds"] == "memory bandwidth" for row in some)
        ratios = _range([row[f"{end}_ratio"] for row in some for end in ("least", "largest")])
        yield "binds", {"target": target, "kind": execution, "bound": bound, "devices": devices, "range": ratios}
    if "compulsory" in executions and all(row["binds"] == "memory bandwidth" for row in rows):
        least = min(row["least_margin"] for row in rows)
        yield "bandwidth_bound", {"target": target, "low": significant(least), "devices": devices}


def _sequence(table: Table) -> Iterator[Finding]:
    """At the first of every size that a sentence does not speak of."""
    sizes = ("prefill_tokens", "decode_steps", "batch", "heads", "kv_heads")
    first = {key: table.rows[0][key] for key in sizes}

    def along(stage: str, *free: str) -> list[Row]:
        fixed = {key: value for key, value in first.items() if key not in free}
        return table.select(execution=table.kind, stage=stage, **fixed)

    lengths = {row["prefill_tokens"]: flops_of(row) for row in along("prefill", "prefill_tokens")}
    if len(lengths) > 1:
        shown = _extremes(list(lengths.values()), 1e12)
        yield "sequence_prefill", first | shown | {"lengths": (str(min(lengths)), str(max(lengths)))}
    if len(lengths) >= SHAPE:
        yield "sequence_trend", {"trend": trend(list(lengths.items()))}
    batches = {row["batch"]: row for row in along("decode", "batch")}
    if len(batches) > 1:
        least, most = batches[min(batches)], batches[max(batches)]
        values = {"first": min(batches), "last": max(batches), "prefill": first["prefill_tokens"]}
        for end, row in (("low", most), ("high", least)):
            values[end] = significant(row["io_bytes_per_token"] / 1e9)
            values[f"{end}_weights"] = significant(row["weight_io_bytes"] / row["decode_steps"] / 1e9)
        yield "sequence_batch", first | values
        if least["weight_io_bytes"]:
            yield "sequence_weights", values
    caches = {row["kv_heads"]: row["kv_cache_bytes"] for row in along("decode", "kv_heads")}
    if len(caches) > 1:
        low, high = min(caches), max(caches)
        yield "sequence_kv", first | {"low": low, "high": high, "times": significant(caches[high] / caches[low])}


def _profiles(table: Table) -> Iterator[Finding]:
    for page in table.select(stage="page", execution=table.kind):
        stages = {r["stage"]: r for r in table.select(profile=page["profile"], execution=table.kind)}
        yield (
            "profile",
            {
                "title": page["title"],
                "flops": significant(flops_of(page) / 1e12),
                "vision": significant(100 * flops_of(stages["vision"]) / flops_of(page)),
                "decode": significant(100 * stages["decode"]["io_bytes"] / page["io_bytes"]),
                "io": significant(page["io_bytes"] / 1e9),
            },
        )


def _compression(table: Table) -> Iterator[Finding]:
    rows, _ = _kinds(table)
    spared = [row for row in rows if row["saved_prefill_flops"] > 0]
    ahead = [row for row in rows if row["saved_flops_less_vision"] > 0]
    yield "compression_saved", {"spared": len(spared), "ahead": len(ahead), "rows": len(rows)}
    for mode in dict.fromkeys(row["mode"] for row in rows):
        some = [row for row in rows if row["mode"] == mode]
        yield "compression_mode", {
            "mode": mode, "tokens": some[0]["vision_tokens"], **_extremes([row["compression"] for row in some]),
            "text": _range([row["text_tokens"] for row in some]),
        }  # fmt: skip
    known = [row for row in rows if row["published_compression"] != ""]
    lengths = {row["text_tokens"] for row in known}
    off = {r["text_tokens"] for r in known if f"{r['compression']:.1f}" != f"{r['published_compression']:.1f}"}
    if known:
        modes = len({row["mode"] for row in known})
        yield "compression_published", {"same": len(lengths - off), "known": len(lengths), "modes": modes}


_READERS: Mapping[str, Callable[[Table], Iterator[Finding]]] = {
    "vision_crops": _vision_crops,
    "e2e_vision_prefill": _e2e_vision_prefill,
    "e2e_decode": _e2e_decode,
    "responsive_by_ttft": _required,
    "responsive_by_tpot": _required,
    "device_shares": _device_shares,
    "sequence": _sequence,
    "profiles": _profiles,
    "compression": _compression,
}
