"""TTFT and TPOT budgets over every crop grid: the rates they require, and what binds on each device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelmeter.device import RESOURCES, Device
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.settings import Setting, entry
from modelmeter.sweep import e2e_decode, e2e_vision_prefill, pages
from modelmeter.sweep.columns import Column, Measure, Row, significant
from modelmeter.sweep.findings import Finding, grouped, span
from modelmeter.sweep.pages import run_pages
from modelmeter.sweep.requirements import MARKS, TPOT, TTFT, Target, budgeted, requirements
from modelmeter.sweep.table import TOTAL, Chart, Table

SETTINGS = (
    *pages.SETTINGS, TTFT.setting, TPOT.setting,
    Setting("devices", entry("device"), "of configs/device or YAML files; null: all of them", True, True),
)  # fmt: skip
BANDWIDTH = RESOURCES[-1]
SHARES = ("tensor_core_share", "cuda_core_share", "memory_bandwidth_share")
"""Columns of the shares of a device's peaks, in the order of `device.RESOURCES`."""


def _range(share: str, heading: str) -> Column:
    def shows(row: Row) -> str:
        low, high = (significant(100 * row[f"{end}_{share}"]) for end in ("least", "largest"))
        return low if low == high else f"{low} - {high}"

    return Column(f"largest_{share}", heading, shows=shows)


COLUMNS = (
    Column("device", axis="device"),
    _range("tensor_core_share", "% of bf16 tensor-core peak"),
    _range("cuda_core_share", "% of fp32 CUDA-core peak"),
    _range("memory_bandwidth_share", "% of bandwidth"),
    Column("binds"),
    Column("within_peaks", "grids within the peaks"),
    Column("fits_memory", "grids that fit the memory"),
    Column("source", "source (confidence)"),
)
_SHORT = ("tensor-core peak, dense bf16", "CUDA-core peak, fp32", "memory bandwidth")
MEASURES = tuple(
    Measure(name, "share of the datasheet's figure (%)", (name,), 0.01, short)
    for name, short in zip(SHARES, _SHORT, strict=True)
)


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """The rates by target and budget, then the shares of each device's peaks that they take.

    `settings["devices"]` are Device objects. Raises InputError for budgets that are none.
    """
    swept = {
        TTFT: run_pages(e2e_vision_prefill.SWEEP, model, settings),
        TPOT: run_pages(e2e_decode.SWEEP, model, settings),
    }
    return [*(requirements(target, table) for target, table in swept.items()), device_table(settings["devices"], swept)]


def device_table(devices: Sequence[Device], swept: Mapping[Target, Table]) -> Table:
    """Each budget on each device: the shares of its peaks, which of them binds, whether it can be met."""
    first = swept[TTFT]
    needed = _memory(_keys(first), *(table.select(component=TOTAL) for table in swept.values()))
    rows = [
        {"device": device.title} | place | _verdict(device, row, seconds, needed[tuple(row[k] for k in _keys(first))])
        for target, table in swept.items()
        for row, seconds, place in budgeted(target, table)
        for device in devices
    ]
    charts = [
        Chart(f"device_shares_{target.key}", SHARES, "device", (), _shown(first, rows, target.name), log="y", bars=True)
        for target in swept
    ]
    title = first.title_of("what binds on each device")
    digest, headline = list(_digest(devices, rows)), _headline(first.kind, rows)
    return replace(first, name="device_shares", title=title, rows=rows, charts=charts, digest=digest, headline=headline)


def _keys(table: Table) -> tuple[str, ...]:
    """The columns that tell the points of a table apart, and the execution."""
    return (*(table.points.keys if table.points else ()), "execution")


def _memory(keys: Sequence[str], first: Sequence[Row], steps: Sequence[Row]) -> dict[Any, int]:
    """Bytes that a page needs by point: all weights, the larger peak, the KV cache after the last step."""
    return {
        tuple(a[k] for k in keys): a["weight_bytes"]
        + max(a["peak_activation_bytes"], b["peak_activation_bytes"])
        + b["kv_cache_bytes"]
        for a, b in zip(first, steps, strict=True)
    }


def _verdict(device: Device, row: Row, seconds: float, needed: int) -> dict[str, Any]:
    """What the cost of a row takes of a device if it is to be done in so many seconds."""
    work = ("tensor_core_flops", "cuda_core_flops", "weight_io_bytes", "activation_io_bytes", "kv_io_bytes")
    shares = device.shares(StageCost(**{name: row[name] for name in work}), seconds)
    return {
        "beyond_positions": row["beyond_positions"],
        **dict(zip(SHARES, shares.values(), strict=True)),
        "binds": max(shares, key=lambda name: shares[name]),
        "within_peaks": max(shares.values()) <= 1,
        "needed_memory_bytes": needed,
        "fits_memory": needed <= device.memory_bytes,
        **{key: row[key] for key in MARKS},
    }


def _headline(kind: str, rows: Sequence[Row]) -> Finding | None:
    """On how many devices bandwidth binds the page itself, by target; a budget does not change it."""
    own = [row for row in rows if row["marked"] and row["execution"] == kind]
    bound = {t: len({r["device"] for r in some if r["binds"] == BANDWIDTH}) for (t,), some in grouped(own, "target")}
    devices = len({row["device"] for row in own})
    return ("answer_binds", {"kind": kind, "devices": devices} | bound) if own else None


def _digest(devices: Sequence[Device], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One row a target, budget, execution and device: the range of shares over the grids."""
    known = {device.title: device for device in devices}
    keys = ("target", "budget_s", "execution", "device")
    for values, group in grouped(rows, *keys):
        found: dict[str, Any] = dict(zip(keys, values, strict=True))
        for share in SHARES:
            found |= {f"least_{share}": min(r[share] for r in group), f"largest_{share}": max(r[share] for r in group)}
        ratios = [row["memory_bandwidth_share"] / row["tensor_core_share"] for row in group]
        margins = [row["memory_bandwidth_share"] / max(row[s] for s in SHARES[:2]) for row in group]
        found |= {"least_ratio": min(ratios), "largest_ratio": max(ratios), "least_margin": min(margins)}
        device = known[found["device"]]
        yield found | {
            "binds": " or ".join(dict.fromkeys(row["binds"] for row in group)),
            **{key: f"{sum(row[key] for row in group)}/{len(group)}" for key in ("within_peaks", "fits_memory")},
            "source": f"{device.source} ({device.confidence})",
        }


def _shown(table: Table, rows: Sequence[Row], target: str) -> dict[str, Any]:
    """Where a figure shows a target: its tightest budget, at the user's page or else at the largest grid."""
    some = [row for row in rows if row["target"] == target and row["execution"] == table.kind]
    row = max(some, key=lambda r: (-r["budget_s"], r["marked"], r["image_tokens"]))
    return {key: row[key] for key in ("target", "budget_s", "execution", *_keys(table)[:-1])}


def _findings(table: Table) -> Iterator[Finding]:
    digest = table.digest or ()
    for (target, budget, kind), some in grouped(digest, "target", "budget_s", "execution"):
        if kind == table.kind:
            ends = {
                name: span([row[f"{end}_{share}"] for row in some for end in ("least", "largest")], 0.01)
                for name, share in (("tensor", "tensor_core_share"), ("memory", "memory_bandwidth_share"))
            }
            yield "shares", {"target": target, "budget": f"{budget:g}", "kind": kind, **ends}
    for (target,), some in grouped(digest, "target"):
        yield from _binding(target, [row for row in some if row["budget_s"] == some[0]["budget_s"]])


def _binding(target: str, rows: Sequence[Row]) -> Iterator[Finding]:
    """What binds does not depend on the budget: on how many devices it is bandwidth, by execution."""
    devices = len({row["device"] for row in rows})
    for (execution,), some in grouped(rows, "execution"):
        bound = sum(row["binds"] == BANDWIDTH for row in some)
        ratios = span([row[f"{end}_ratio"] for row in some for end in ("least", "largest")])
        yield "binds", {"target": target, "kind": execution, "bound": bound, "devices": devices, "range": ratios}
    least = any(row["execution"] == "compulsory" for row in rows)
    if least and all(row["binds"] == BANDWIDTH for row in rows):
        low = significant(min(row["least_margin"] for row in rows))
        yield "bandwidth_bound", {"target": target, "low": low, "devices": devices}


FINDINGS = {"device_shares": _findings}
