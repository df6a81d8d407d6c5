"""TTFT and TPOT budgets over every crop grid: the rates they require, and what binds on each device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelmeter.programs.cost import COUNTS, StageCost
from modelmeter.device import RESOURCES, Device
from modelmeter.models.model import BaseModel
from modelmeter.settings import Setting, entry
from modelmeter.sweep import e2e_decode, e2e_vision_prefill, pages
from modelmeter.sweep.columns import Column, Measure, Row, significant
from modelmeter.sweep.findings import Finding, span
from modelmeter.sweep.pages import run_pages
from modelmeter.sweep.requirements import MARKS, TPOT, TTFT, Target, requirements
from modelmeter.sweep.table import TOTAL, Chart, Table

SETTINGS = (
    *pages.SETTINGS, TTFT.setting, TPOT.setting,
    Setting("devices", entry("device"), "of configs/device or YAML files; null: all of them", True, True),
)  # fmt: skip
BANDWIDTH, BEYOND = RESOURCES[-1], "beyond_positions"
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
_SHARE = "share of the datasheet's figure (%)"
_SHORT = ("tensor-core peak, dense bf16", "CUDA-core peak, fp32", "memory bandwidth")
MEASURES = tuple(Measure(name, _SHARE, (name,), 0.01, short) for name, short in zip(SHARES, _SHORT, strict=True))


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """The rates by target and budget, then the shares of each device's peaks that they take.

    `settings["devices"]` are Device objects. Raises InputError for budgets that are none.
    """
    sweeps = ((TTFT, e2e_vision_prefill.SWEEP), (TPOT, e2e_decode.SWEEP))
    swept = [(target, run_pages(sweep, model, settings)) for target, sweep in sweeps]
    return [*(requirements(target, table) for target, table in swept), device_table(settings["devices"], swept)]


def device_table(devices: Sequence[Device], swept: Sequence[tuple[Target, Table]]) -> Table:
    """Each target on each device: shares of its peaks, which of them binds, whether it can be met."""
    (_, first), *_ = swept
    needed = _needed_memory([table for _, table in swept])
    rows = [
        _device_row(device, target, row, budget, needed[_at(first, row)])
        for target, table in swept
        for budget, row in target.pages(table)
        for device in devices
    ]
    charts = [
        Chart(f"device_shares_{target.lower()}", SHARES, x="device", by="", where=where, log="y", bars=True)
        for target, where in _shown_points(first, rows)
    ]
    return replace(
        first, name="device_shares", title=first.title_of("what binds on each device"), rows=rows, charts=charts,
        digest=list(_digest(devices, rows)), headline=_headline(first.kind, rows),
    )  # fmt: skip


def _place(table: Table, row: Row) -> dict[str, Any]:
    """What tells the points of a table apart."""
    return {key: row[key] for key in (table.points.keys if table.points else ())}


def _at(table: Table, row: Row) -> tuple[Any, ...]:
    return (*_place(table, row).values(), row["execution"])


def _needed_memory(tables: Sequence[Table]) -> dict[tuple[Any, ...], int]:
    """Bytes that a page needs by point: all weights, the largest peak, the KV cache after the last step."""
    points: dict[tuple[Any, ...], list[Row]] = {}
    for table in tables:
        for row in table.select(component=TOTAL):
            points.setdefault(_at(table, row), []).append(row)
    return {
        at: rows[0]["weight_bytes"] + max(row["peak_activation_bytes"] for row in rows) + rows[-1]["kv_cache_bytes"]
        for at, rows in points.items()
    }


def _device_row(device: Device, target: Target, row: Row, budget: float, needed: int) -> dict[str, Any]:
    cost = StageCost(**{count: row[count] for count in COUNTS if count in row})
    shares = device.shares(cost, target.seconds(row, budget))
    verdict = {
        "binds": max(shares, key=lambda name: shares[name]),
        "within_peaks": max(shares.values()) <= 1,
        "needed_memory_bytes": needed,
        "fits_memory": needed <= device.memory_bytes,
    }
    columns = dict(zip(SHARES, shares.values(), strict=True))
    marks = {mark: row[mark] for mark in MARKS if mark != BEYOND}
    place = target.place(row, budget) | {BEYOND: row[BEYOND]}
    return {"device": device.title} | place | columns | verdict | marks


def _headline(kind: str, rows: Sequence[Row]) -> Finding | None:
    """On how many devices bandwidth binds the page itself, by target; a budget does not change it."""
    own = [row for row in rows if row["marked"] and row["execution"] == kind]
    bound: dict[str, set[str]] = {row["target"]: set() for row in own}
    for row in own:
        bound[row["target"]] |= {row["device"]} if row["binds"] == BANDWIDTH else set()
    devices = len({row["device"] for row in own})
    counts = {target: len(some) for target, some in bound.items()}
    return ("answer_binds", {"kind": kind, "devices": devices} | counts) if own else None


def _digest(devices: Sequence[Device], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One row a target, budget, runtime and device: the range of shares over the grids."""
    known, keys = {device.title: device for device in devices}, ("target", "budget_s", "execution", "device")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for place, group in groups.items():
        found: dict[str, Any] = dict(zip(keys, place, strict=True))
        for share in SHARES:
            found |= {f"least_{share}": min(r[share] for r in group), f"largest_{share}": max(r[share] for r in group)}
        ratios = [row["memory_bandwidth_share"] / row["tensor_core_share"] for row in group]
        margins = [row["memory_bandwidth_share"] / max(row[s] for s in SHARES[:2]) for row in group]
        found |= {"least_ratio": min(ratios), "largest_ratio": max(ratios), "least_margin": min(margins)}
        binding = list(dict.fromkeys(row["binds"] for row in group))
        met, fits = (sum(row[key] for row in group) for key in ("within_peaks", "fits_memory"))
        yield found | {
            "binds": " or ".join(binding),
            "within_peaks": f"{met}/{len(group)}",
            "fits_memory": f"{fits}/{len(group)}",
            "source": f"{known[place[-1]].source} ({known[place[-1]].confidence})",
        }


def _shown_points(table: Table, rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each target its tightest budget, at the user's page or else at the largest grid."""
    for target in dict.fromkeys(row["target"] for row in rows):
        some = [row for row in rows if row["target"] == target and row["execution"] == table.kind]
        tightest = min(row["budget_s"] for row in some)
        row = max((r for r in some if r["budget_s"] == tightest), key=lambda r: (r["marked"], r["image_tokens"]))
        yield target, {"target": target, "budget_s": tightest, "execution": table.kind, **_place(table, row)}


def _findings(table: Table) -> Iterator[Finding]:
    digest = table.digest or ()
    budgets = dict.fromkeys((row["target"], row["budget_s"]) for row in digest)
    for target, budget in budgets:
        some = [r for r in digest if (r["target"], r["budget_s"], r["execution"]) == (target, budget, table.kind)]
        ends = {
            name: span([row[f"{end}_{share}"] for row in some for end in ("least", "largest")], 0.01)
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
        bound = sum(row["binds"] == BANDWIDTH for row in some)
        ratios = span([row[f"{end}_ratio"] for row in some for end in ("least", "largest")])
        yield "binds", {"target": target, "kind": execution, "bound": bound, "devices": devices, "range": ratios}
    if "compulsory" in executions and all(row["binds"] == BANDWIDTH for row in rows):
        least = min(row["least_margin"] for row in rows)
        yield "bandwidth_bound", {"target": target, "low": significant(least), "devices": devices}


FINDINGS = {"device_shares": _findings}
