"""TTFT and TPOT budgets over every crop grid: the rates they require, and what binds on each device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from modelmeter.device import RESOURCES, Device
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.settings import Setting, entry, joined
from modelmeter.sweep import e2e_decode, e2e_vision_prefill
from modelmeter.sweep.columns import Row, significant
from modelmeter.sweep.findings import Finding, grouped, span
from modelmeter.sweep.requirements import MARKS, budgeted
from modelmeter.sweep.table import TOTAL, Chart, Table

SETTINGS = joined(
    *e2e_vision_prefill.SETTINGS, *e2e_decode.SETTINGS,
    Setting("devices", entry("device"), "of configs/device or YAML files; null: all of them", True, True),
)  # fmt: skip
SHARES = ("tensor_core_share", "cuda_core_share", "memory_bandwidth_share")
"""Columns of the shares of a device's peaks, in the order of `device.RESOURCES`."""
_TENSOR, _, _MEMORY = SHARES


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """The rates by target and budget, then the shares of each device's peaks that they take.

    `settings["devices"]` are Device objects. Raises InputError for budgets that are none.
    """
    (first, by_ttft), (steps, by_tpot) = (sweep.run(model, settings) for sweep in (e2e_vision_prefill, e2e_decode))
    return [by_ttft, by_tpot, device_table(settings["devices"], {"ttft": first, "tpot": steps})]


def device_table(devices: Sequence[Device], swept: Mapping[str, Table]) -> Table:
    """Each budget on each device: the shares of its peaks, which of them binds, whether it can be met."""
    first = swept["ttft"]
    needed = [_memory(*rows) for rows in zip(*(table.select(component=TOTAL) for table in swept.values()), strict=True)]
    rows = [
        {"device": device.title} | place | _verdict(device, row, seconds, memory)
        for target, table in swept.items()
        for (row, seconds, place), memory in zip(budgeted(target, table), cycle(needed), strict=False)
        for device in devices
    ]
    charts = [
        Chart(f"device_shares_{target}", SHARES, "device", (), _shown(first, rows, target.upper()), "y", True)
        for target in swept
    ]
    title, digest = first.title_of("what binds on each device"), list(_digest(devices, rows))
    found = replace(first, name="device_shares", title=title, rows=rows, charts=charts, digest=digest)
    return replace(found, headline=_headline(first.kind, rows))


def _memory(first: Row, steps: Row) -> int:
    """Bytes that a page needs: all weights, the larger peak, the KV cache after the last step."""
    peak = max(first["peak_activation_bytes"], steps["peak_activation_bytes"])
    return int(first["weight_bytes"] + peak + steps["kv_cache_bytes"])


def _verdict(device: Device, row: Row, seconds: float, needed: int) -> dict[str, Any]:
    """What the cost of a row takes of a device if it is to be done in so many seconds."""
    work = ("tensor_core_flops", "cuda_core_flops", "weight_io_bytes", "activation_io_bytes", "kv_io_bytes")
    shares = device.shares(StageCost(**{name: row[name] for name in work}), seconds)
    beyond, *others = MARKS
    return {
        beyond: row[beyond],
        **dict(zip(SHARES, shares.values(), strict=True)),
        "binds": max(shares, key=lambda name: shares[name]),
        "within_peaks": max(shares.values()) <= 1,
        "needed_memory_bytes": needed,
        "fits_memory": needed <= device.memory_bytes,
        **{mark: row[mark] for mark in others},
    }


def _headline(kind: str, rows: Sequence[Row]) -> Finding | None:
    """On how many devices bandwidth binds the page itself, by target; a budget does not change it."""
    own = [row for row in rows if row["marked"] and row["execution"] == kind]
    found: dict[str, Any] = {"kind": kind, "devices": len({row["device"] for row in own})}
    for (target,), some in grouped(own, "target"):
        found[target] = len({row["device"] for row in some if row["binds"] == RESOURCES[-1]})
    return ("answer_binds", found) if own else None


def _digest(devices: Sequence[Device], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One row a target, budget, execution and device: the range of shares over the grids."""
    known = {device.title: device for device in devices}
    keys = ("target", "budget_s", "execution", "device")
    for values, group in grouped(rows, *keys):
        found: dict[str, Any] = dict(zip(keys, values, strict=True))
        for share in SHARES:
            found |= {f"least_{share}": min(r[share] for r in group), f"largest_{share}": max(r[share] for r in group)}
        ratios = [row[_MEMORY] / row[_TENSOR] for row in group]
        margins = [row[_MEMORY] / max(row[share] for share in SHARES[:2]) for row in group]
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
    return {key: row[key] for key in ("target", "budget_s", "execution", *(table.points.keys if table.points else ()))}


def _findings(table: Table) -> Iterator[Finding]:
    digest = table.digest or ()
    for (target, budget, kind), some in grouped(digest, "target", "budget_s", "execution"):
        if kind == table.kind:
            ends = {"tensor": _span(some, _TENSOR, 0.01), "memory": _span(some, _MEMORY, 0.01)}
            yield "shares", {"target": target, "budget": f"{budget:g}", "kind": kind, **ends}
    for (target,), some in grouped(digest, "target"):
        yield from _binding(target, [row for row in some if row["budget_s"] == some[0]["budget_s"]])


def _span(rows: Sequence[Row], name: str, unit: float = 1.0) -> tuple[str, str]:
    """The ends of a range that rows of the digest have."""
    return span([row[f"{end}_{name}"] for row in rows for end in ("least", "largest")], unit)


def _binding(target: str, rows: Sequence[Row]) -> Iterator[Finding]:
    """What binds does not depend on the budget: on how many devices it is bandwidth, by execution."""
    several = {"target": target, "devices": len({row["device"] for row in rows})}
    for (execution,), some in grouped(rows, "execution"):
        bound = sum(row["binds"] == RESOURCES[-1] for row in some)
        yield "binds", several | {"kind": execution, "bound": bound, "range": _span(some, "ratio")}
    least = any(row["execution"] == "compulsory" for row in rows)
    if least and all(row["binds"] == RESOURCES[-1] for row in rows):
        yield "bandwidth_bound", several | {"low": significant(min(row["least_margin"] for row in rows))}


FINDINGS = {"device_shares": _findings}
