"""TTFT and TPOT budgets over every crop grid: the rates they require, and what binds on each device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from modelmeter.device import RESOURCES, Device
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.settings import ON_ALL, SIZES, Setting, entry, joined, options_of
from modelmeter.sweep import e2e_decode, e2e_vision_prefill
from modelmeter.sweep.answers import VERDICTS, answered, device_rows
from modelmeter.sweep.columns import Row, significant
from modelmeter.sweep.devices import asked_of
from modelmeter.sweep.findings import Finding, grouped, rows_of, span
from modelmeter.sweep.pages import largest_page
from modelmeter.sweep.requirements import MARKS, budgeted
from modelmeter.sweep.table import TOTAL, Table, charts_of, table_of
from modelmeter.workload import Workload

SETTINGS = joined(
    ON_ALL, *e2e_vision_prefill.SETTINGS, *e2e_decode.SETTINGS,
    Setting("devices", entry("device"), "of configs/device or YAML files; null: all of them", True, True),
)  # fmt: skip
SHARES = ("tensor_core_share", "cuda_core_share", "memory_bandwidth_share")
"""Columns of the shares of a device's peaks, in the order of `device.RESOURCES`."""
_WORK = ("tensor_core_flops", "cuda_core_flops", "weight_io_bytes", "activation_io_bytes", "kv_io_bytes")


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """Which devices meet the targets, where there are some to predict; the rates by target and budget; the shares of
    each device's peaks that they take.

    `settings["devices"]` and `settings["device"]` are Device objects. Raises InputError for budgets that are none.
    """
    counted = {key: value for key, value in settings.items() if key not in ("device", "host", "overhead")}
    (first, by_ttft), (steps, by_tpot) = (sweep.run(model, counted) for sweep in (e2e_vision_prefill, e2e_decode))
    answer = [answer_table(model, settings)] if settings.get("device") else []
    return [*answer, by_ttft, by_tpot, device_table(settings["devices"], first, steps)]


def answer_table(model: BaseModel, settings: Mapping[str, Any]) -> Table:
    """Each device against each pair of targets at the user's page, or else at the largest: predicted, ranked."""
    image, rows = largest_page(model, settings), list[Row]()
    for kind in settings["runtime"]:
        work = Workload(image, **options_of(settings, kind, *SIZES))
        if not work.runtime.is_bound or len(settings["runtime"]) == 1:
            found = device_rows(model, work, settings["device"], settings["host"], settings["overhead"])
            rows += answered(found, settings["ttft"], settings["tpot"])
    title = f"{model.name}: which of {len(settings['device'])} devices meet the targets; {asked_of(work)}"
    return replace(table_of("device_answers", title, work, rows, _of_runs(settings, rows)), printed=True)


def _of_runs(settings: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Settings with the runtimes that rows have."""
    return dict(settings) | {"runtime": list(dict.fromkeys(row["execution"] for row in rows))}


def device_table(devices: Sequence[Device], first: Table, steps: Table) -> Table:
    """Each budget on each device: the shares of its peaks, which of them binds, whether it can be met.

    `first` and `steps` are the tables of the sweeps that TTFT and TPOT wait for.
    """
    needed = [  # bytes of a page: all weights, the larger peak, the KV cache after the last step
        int(a["weight_bytes"] + max(a["peak_activation_bytes"], b["peak_activation_bytes"]) + b["kv_cache_bytes"])
        for a, b in zip(*(table.select(component=TOTAL) for table in (first, steps)), strict=True)
    ]
    rows = [
        {"device": device.title} | place | _verdict(device, row, seconds, memory)
        for target, table in (("ttft", first), ("tpot", steps))
        for (row, seconds, place), memory in zip(budgeted(target, table), cycle(needed), strict=False)
        for device in devices
    ]
    declared = charts_of("device_shares", {})
    charts = [replace(chart, where=_shown(first, rows, chart.where["target"])) for chart in declared]
    title, digest = first.title_of("what binds on each device"), list(_digest(devices, rows))
    found = replace(first, name="device_shares", title=title, rows=rows, charts=charts, digest=digest)
    return replace(found, headline=_headline(first.kind, rows))


def _verdict(device: Device, row: Row, seconds: float, needed: int) -> dict[str, Any]:
    """What the cost of a row takes of a device if it is to be done in so many seconds."""
    shares = device.shares(StageCost(**{name: row[name] for name in _WORK}), seconds)
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
    bound = {target: len(_bound(some)) for (target,), some in grouped(own, "target")}
    return ("answer_binds", {"kind": kind, "devices": _many(own)} | bound) if own else None


def _bound(rows: Sequence[Row]) -> set[str]:
    """The devices on which bandwidth alone binds in some of the rows."""
    return {row["device"] for row in rows if row["binds"] == RESOURCES[-1]}


def _many(rows: Sequence[Row]) -> int:
    return len({row["device"] for row in rows})


def _digest(devices: Sequence[Device], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """One row a target, budget, execution and device: the range of shares over the grids."""
    sources = {device.title: f"{device.source} ({device.confidence})" for device in devices}
    keys, (tensor, cuda, memory) = ("target", "budget_s", "execution", "device"), SHARES
    for values, group in grouped(rows, *keys):
        ends = {share: [row[share] for row in group] for share in SHARES}
        ends["ratio"] = [row[memory] / row[tensor] for row in group]
        found: dict[str, Any] = dict(zip(keys, values, strict=True))
        for name, some in ends.items():
            found |= {f"least_{name}": min(some), f"largest_{name}": max(some)}
        yield found | {
            "least_margin": min(row[memory] / max(row[tensor], row[cuda]) for row in group),
            "binds": " or ".join(dict.fromkeys(row["binds"] for row in group)),
            **{key: f"{sum(row[key] for row in group)}/{len(group)}" for key in ("within_peaks", "fits_memory")},
            "source": sources[found["device"]],
        }


def _shown(table: Table, rows: Sequence[Row], target: str) -> dict[str, Any]:
    """Where a figure shows a target: its tightest budget, at the user's page or else at the largest grid."""
    some = [row for row in rows if row["target"] == target and row["execution"] == table.kind]
    row = max(some, key=lambda r: (-r["budget_s"], r["marked"], r["image_tokens"]))
    return {key: row[key] for key in ("target", "budget_s", "execution", *(table.points.keys if table.points else ()))}


def _findings(table: Table) -> Iterator[Finding]:
    digest, (tensor, _, memory) = table.digest or (), SHARES
    for (target, budget, kind), some in grouped(digest, "target", "budget_s", "execution"):
        if kind == table.kind:
            ends = {"tensor": _span(some, tensor, 0.01), "memory": _span(some, memory, 0.01)}
            yield "shares", {"target": target, "budget": f"{budget:g}", "kind": kind, **ends}
    for (target,), some in grouped(digest, "target"):  # what binds does not depend on the budget
        rows = [row for row in some if row["budget_s"] == some[0]["budget_s"]]
        several = {"target": target, "devices": _many(rows)}
        executions = dict(grouped(rows, "execution"))
        for (kind,), group in executions.items():
            yield "binds", several | {"kind": kind, "bound": len(_bound(group)), "range": _span(group, "ratio")}
        if ("compulsory",) in executions and all(row["binds"] == RESOURCES[-1] for row in rows):
            yield "bandwidth_bound", several | {"low": significant(min(row["least_margin"] for row in rows))}


def _span(rows: Sequence[Row], name: str, unit: float = 1.0) -> tuple[str, str]:
    """The ends of a range that rows of the digest have."""
    return span([row[f"{end}_{name}"] for row in rows for end in ("least", "largest")], unit)


def _answers(table: Table) -> Iterator[Finding]:
    """For each pair of targets how many devices meet them, which ones most certainly."""
    for (ttft, tpot), rows in grouped(rows_of(table), "ttft_target_s", "tpot_target_s"):
        words = Counter(row["meets"] for row in rows)
        told = {"ttft": f"{ttft:g}", "tpot": f"{tpot:g}", "kind": table.kind, "devices": len(rows)}
        yield "answered", told | {word: words[word] for word in VERDICTS}
        best = [row for row in rows if row["meets"] in VERDICTS[:2]][:3]
        if best:
            named = [f"{row['device']} ({row['meets']}, {significant(row['margin'])} times)" for row in best]
            yield "answered_best", {"ttft": f"{ttft:g}", "tpot": f"{tpot:g}", "named": ", ".join(named)}
    for note in dict.fromkeys(row["note"] for row in rows_of(table) if row["note"]):
        yield "devices_note", {"note": note}


FINDINGS = {"device_shares": _findings, "device_answers": _answers}
