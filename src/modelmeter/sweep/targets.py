"""TTFT and TPOT budgets over every crop grid: the rates they require, and what binds on each device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelmeter.cost import StageCost
from modelmeter.device import Device
from modelmeter.models.model import Model
from modelmeter.sweep import e2e_decode, e2e_vision_prefill
from modelmeter.sweep.grids import refuse_reference, run_grids
from modelmeter.sweep.requirements import TPOT, TTFT, requirements
from modelmeter.sweep.table import TOTAL, Chart, Table

SHARES = ("tensor_core_share", "cuda_core_share", "memory_bandwidth_share")
"""Columns of the shares of a device's peaks, in the order of `device.RESOURCES`."""


def run(model: Model, settings: Mapping[str, Any], reference: Any = None) -> list[Table]:
    """The rates by target and budget, then the shares of each device's peaks that they take.

    `settings["devices"]` are Device objects. Raises InputError for budgets that are none.
    """
    refuse_reference("targets", reference)
    first = run_grids(e2e_vision_prefill.SWEEP, model, settings)
    steps = run_grids(e2e_decode.SWEEP, model, settings)
    tables = [requirements(TTFT, first), requirements(TPOT, steps)]
    return [*tables, device_table(settings["devices"], tables, _memory(first, steps))]


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["grid_h"], row["grid_w"], row["execution"]


def _memory(first: Table, steps: Table) -> dict[tuple[Any, ...], int]:
    """Bytes that a page needs by grid: all weights, the larger peak, the KV cache after the last step."""
    after = {_place(row): row for row in steps.select(component=TOTAL)}
    return {
        _place(row): row["weight_bytes"]
        + max(row["peak_activation_bytes"], after[_place(row)]["peak_activation_bytes"])
        + after[_place(row)]["kv_cache_bytes"]
        for row in first.select(component=TOTAL)
    }


def device_table(devices: Sequence[Device], required: Sequence[Table], memory: Mapping[Any, int]) -> Table:
    """Each requirement on each device: shares of its peaks, which of them binds, whether it can be met."""
    rows = [
        _device_row(device, row, memory[_place(row)]) for table in required for row in table.rows for device in devices
    ]
    title = required[0].title_of("what binds on each device")
    kind, basis, settings = required[0].kind, required[0].basis, required[0].settings
    charts = [
        Chart(f"device_shares_{target.lower()}", SHARES, x="device", by="", where=where, log="y", bars=True)
        for target, where in _shown_points(rows, kind)
    ]
    return Table("device_shares", title, basis, rows, settings, charts, list(_digest(devices, rows)), kind)


def _device_row(device: Device, row: Mapping[str, Any], needed: int) -> dict[str, Any]:
    rates = StageCost(
        tensor_core_flops=row["required_tensor_flops_per_s"],
        cuda_core_flops=row["required_cuda_flops_per_s"],
        weight_io_bytes=row["required_bytes_per_s"],
    )
    shares = device.shares(rates, 1.0)
    head = {k: v for k, v in row.items() if not k.startswith("required") and k not in ("extrapolated", "marked")}
    verdict = {
        "binds": max(shares, key=lambda name: shares[name]),
        "within_peaks": max(shares.values()) <= 1,
        "needed_memory_bytes": needed,
        "fits_memory": needed <= device.memory_bytes,
    }
    columns = dict(zip(SHARES, shares.values(), strict=True))
    marks = {k: row[k] for k in ("extrapolated", "marked")}
    return {"device": device.title, **head, **columns, **verdict, **marks}


def _groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["budget_s"], row["execution"], row["device"]), []).append(row)
    yield from groups.items()


def _digest(devices: Sequence[Device], rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row a target, budget, attention kind and device: the range of shares over the grids."""
    known = {device.title: device for device in devices}
    for (target, budget, execution, title), group in _groups(rows):
        found: dict[str, Any] = {"target": target, "budget_s": budget, "execution": execution, "device": title}
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
            "source": f"{known[title].source} ({known[title].confidence})",
        }


def _shown_points(rows: Sequence[Mapping[str, Any]], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each target its tightest budget, at the user's page or else at the largest grid."""
    for target in dict.fromkeys(row["target"] for row in rows):
        some = [row for row in rows if row["target"] == target and row["execution"] == kind]
        tightest = min(row["budget_s"] for row in some)
        row = max((r for r in some if r["budget_s"] == tightest), key=lambda r: (r["marked"], r["image_tokens"]))
        place = {k: row[k] for k in ("grid_h", "grid_w")}
        yield target, {"target": target, "budget_s": tightest, "execution": kind, **place}
