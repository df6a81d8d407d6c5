"""What the rows of a sweep say, as data: each finding is a key of the text catalogue with its values.

Every number and every word of a trend is computed here from the rows; the sentences in each language are
in `text/`. Next: `language.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modelmeter.report.measures import Row, percent
from modelmeter.sweep.table import TOTAL, Table

Finding = tuple[str, dict[str, Any]]


def findings(table: Table) -> list[Finding]:
    """The findings of a table by its name; none for a table that has no reader yet."""
    found = _READERS.get(table.name)
    return list(found(table)) if found else []


def trend(points: Sequence[tuple[float, float]]) -> str:
    """How y grows with x: constant, linear, nearly_linear, superlinear or sublinear, or falling.

    >>> trend([(1, 3), (2, 5), (4, 9)]), trend([(1, 1), (2, 4), (4, 16)]), trend([(1, 2), (9, 2)])
    ('linear', 'superlinear', 'constant')
    """
    points = sorted(points)
    (x0, y0), (x1, y1) = points[0], points[-1]
    top = max(abs(y) for _, y in points)
    if max(abs(y - y0) for _, y in points) <= 1e-12 * top:
        return "constant"
    if y1 < y0:
        return "falling"
    off = [y - (y0 + (y1 - y0) * (x - x0) / (x1 - x0)) for x, y in points]
    worst = max(off, key=abs)
    if abs(worst) <= 1e-9 * top:
        return "linear"
    if abs(worst) <= 0.02 * top:
        return "nearly_linear"
    return "superlinear" if worst < 0 else "sublinear"


def _show(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent."""
    value = float(value)
    if abs(value) >= 10 ** (digits - 1) or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 1e-4 else f"{value:.{digits - 1}e}"


def _extremes(values: Sequence[float], unit: float = 1.0) -> dict[str, str]:
    return {"low": _show(min(values) / unit), "high": _show(max(values) / unit)}


def _flops(row: Row) -> int:
    return int(row["tensor_core_flops"] + row["cuda_core_flops"])


def _ends(rows: Sequence[Row]) -> dict[str, Any]:
    first, last = (f(rows, key=lambda r: (r["crops"], r["image_tokens"])) for f in (min, max))
    return {
        "first": f"{first['grid_h']}x{first['grid_w']}",
        "last": f"{last['grid_h']}x{last['grid_w']}",
        "low": _show(_flops(first) / 1e12),
        "high": _show(_flops(last) / 1e12),
    }


def _kinds(table: Table, **where: Any) -> tuple[list[Row], list[Row]]:
    """The rows with the last attention kind, and those with eager attention beside it (or none)."""
    rows = table.select(**where)
    kinds = list(dict.fromkeys(row["attention"] for row in rows))
    last = [row for row in rows if row["attention"] == kinds[-1]]
    return last, [row for row in rows if row["attention"] == "eager"] if kinds[-1] != "eager" else []


def _eager(rows: Sequence[Row], eager: Sequence[Row]) -> Iterator[Finding]:
    if eager:
        times = [a["io_bytes"] / b["io_bytes"] for a, b in zip(eager, rows, strict=True)]
        key = "eager_traffic" if max(times) >= 1.1 else "eager_percent"
        shown = times if max(times) >= 1.1 else [100 * (t - 1) for t in times]
        yield key, _extremes(shown) | {"kind": rows[0]["attention"]}


def _engines(rows: Sequence[Row]) -> Iterator[Finding]:
    shares = [100 * row["cuda_core_flops"] / _flops(row) for row in rows]
    yield "cuda_share", _extremes(shares)


def _vision_crops(table: Table) -> Iterator[Finding]:
    rows, eager = _kinds(table)
    tiled = [row for row in rows if row["crops"]]
    yield "vision_range", _ends(tiled)
    by_crops = {row["crops"]: _flops(row) for row in tiled}
    if len(by_crops) > 1:
        a, b = min(by_crops), max(by_crops)
        each = (by_crops[b] - by_crops[a]) / (b - a) / 1e12
        shape = trend(list(by_crops.items()))
        yield "vision_per_crop", {"each": _show(each, 4), "trend": shape}
    yield from _engines(rows)
    yield from _eager(rows, eager)
    yield "intensity", _extremes([row["arithmetic_intensity_flop_per_byte"] for row in rows])
    peaks = {row["crops"]: row["peak_activation_bytes"] for row in tiled}
    ordered = sorted(peaks)
    if len(ordered) > 1:
        (a, b) = ordered[-2:]
        yield "peak", _extremes(list(peaks.values()), 1e9) | {"each": _show((peaks[b] - peaks[a]) / (b - a) / 1e6, 4)}


def _e2e_vision_prefill(table: Table) -> Iterator[Finding]:
    rows, eager = _kinds(table, component=TOTAL)
    vision, _ = _kinds(table, component="vision")
    yield "prefill_range", _ends(rows) | {"trend": trend([(r["image_tokens"], _flops(r)) for r in rows])}
    yield "vision_share", _extremes([100 * _flops(a) / _flops(b) for a, b in zip(vision, rows, strict=True)])
    yield from _engines(rows)
    yield from _eager(rows, eager)
    yield "intensity", _extremes([row["arithmetic_intensity_flop_per_byte"] for row in rows])
    yield "kv", _extremes([row["kv_cache_bytes"] for row in rows], 1e6) | {"each": _kv_each(rows)}


def _kv_each(rows: Sequence[Row]) -> str:
    return f"{rows[0]['kv_cache_bytes'] / rows[0]['context_tokens']:,.0f}"


def _e2e_decode(table: Table) -> Iterator[Finding]:
    rows, eager = _kinds(table, component=TOTAL)
    steps = rows[0]["decode_steps"]
    per_token = [row["tensor_core_flops_per_token"] + row["cuda_core_flops_per_token"] for row in rows]
    shape = trend([(r["context_tokens"], _flops(r)) for r in rows])
    yield "decode_token", _extremes(per_token, 1e9) | {"steps": steps, "trend": shape}
    yield (
        "decode_io",
        _extremes([row["io_bytes_per_token"] for row in rows], 1e9)
        | {"weights": _show(100 * min(r["weight_io_bytes"] / r["io_bytes"] for r in rows))},
    )
    yield "intensity", _extremes([row["arithmetic_intensity_flop_per_byte"] for row in rows])
    yield from _eager(rows, eager)


def _required(table: Table) -> Iterator[Finding]:
    rows, _ = _kinds(table)
    for budget in dict.fromkeys(row["budget_s"] for row in rows):
        some = [row for row in rows if row["budget_s"] == budget]
        rate = _extremes([row["required_flops_per_s"] for row in some], 1e12)
        moved = _extremes([row["required_bytes_per_s"] for row in some], 1e9)
        yield "required", {
            "target": some[0]["target"], "budget": f"{budget:g}", **rate,
            "low_gb": moved["low"], "high_gb": moved["high"], "kind": some[0]["attention"],
        }  # fmt: skip


def _device_shares(table: Table) -> Iterator[Finding]:
    digest = table.digest or ()
    kind = list(dict.fromkeys(row["attention"] for row in digest))[-1]
    for target in dict.fromkeys(row["target"] for row in digest):
        some = [r for r in digest if r["target"] == target and r["attention"] == kind]
        some = [r for r in some if r["budget_s"] == some[0]["budget_s"]]
        bound = [r for r in some if r["binds"] == "memory bandwidth"]
        ratios = [r["largest_memory_bandwidth_share"] / r["largest_tensor_core_share"] for r in some]
        tensor = [r["largest_tensor_core_share"] for r in some]
        memory = [r["largest_memory_bandwidth_share"] for r in some]
        yield "binds", {
            "target": target, "budget": f"{some[0]['budget_s']:g}", "bound": len(bound), "devices": len(some),
            "kind": kind, **_extremes(ratios), "tensor_low": percent(min(tensor)), "tensor_high": percent(max(tensor)),
            "memory_low": percent(min(memory)), "memory_high": percent(max(memory)),
        }  # fmt: skip
        if len(bound) == len(some) and min(ratios) > 10:
            yield "bandwidth_bound", {"target": target, **_extremes(ratios)}


def _sequence(table: Table) -> Iterator[Finding]:
    kind = list(dict.fromkeys(row["attention"] for row in table.rows))[-1]
    first = table.rows[0]
    own = {key: first[key] for key in ("heads", "kv_heads")}
    decode = [
        r for r in table.select(attention=kind, stage="decode", **own) if r["decode_steps"] == first["decode_steps"]
    ]
    batches = sorted({row["batch"] for row in decode})
    prefill = table.select(attention=kind, stage="prefill", batch=first["batch"], **own)
    lengths = {row["prefill_tokens"]: _flops(row) for row in prefill}
    if len(lengths) > 1:
        yield "sequence_prefill", {
            "first": min(lengths), "last": max(lengths), "trend": trend(list(lengths.items())),
            "low": _show(min(lengths.values()) / 1e12), "high": _show(max(lengths.values()) / 1e12),
        }  # fmt: skip
    if len(batches) > 1:
        at = min(row["prefill_tokens"] for row in decode)
        moved = {r["batch"]: r["io_bytes_per_token"] for r in decode if r["prefill_tokens"] == at}
        yield "sequence_batch", {
            "first": batches[0], "last": batches[-1], "prefill": at,
            "low": _show(moved[batches[-1]] / 1e9), "high": _show(moved[batches[0]] / 1e9),
        }  # fmt: skip
    caches = {r["kv_heads"]: r["kv_cache_bytes"] for r in _same_place(table, kind)}
    if len(caches) > 1:
        low, high = min(caches), max(caches)
        yield "sequence_kv", {"low": low, "high": high, "times": _show(caches[high] / caches[low])}


def _same_place(table: Table, kind: str) -> list[Row]:
    """The rows that differ from the first decode row in KV heads alone."""
    first = table.select(attention=kind, stage="decode")[0]
    place = {key: first[key] for key in ("prefill_tokens", "decode_steps", "batch", "heads", "attention", "stage")}
    return table.select(**place)


def _profiles(table: Table) -> Iterator[Finding]:
    kind = table.rows[-1]["attention"]
    pages = table.select(stage="page", attention=kind)
    for page in pages:
        stages = {r["stage"]: r for r in table.select(profile=page["profile"], attention=kind)}
        yield (
            "profile",
            {
                "title": page["title"],
                "flops": _show(_flops(page) / 1e12),
                "vision": _show(100 * _flops(stages["vision"]) / _flops(page)),
                "decode": _show(100 * stages["decode"]["io_bytes"] / page["io_bytes"]),
                "io": _show(page["io_bytes"] / 1e9),
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
            "text_low": min(row["text_tokens"] for row in some), "text_high": max(row["text_tokens"] for row in some),
        }  # fmt: skip
    known = [row for row in rows if row["published_compression"] != ""]
    if known:
        same = [row for row in known if f"{row['compression']:.1f}" == f"{row['published_compression']:.1f}"]
        yield "compression_published", {"same": len(same), "known": len(known)}


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
