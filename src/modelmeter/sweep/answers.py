"""What devices make of a request: whether it fits, TTFT, TPOT, seconds a page, what binds; one row a device.

A device that lacks a figure has a row that says so, and so has a runtime that is a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.fits import Fits
from modelmeter.models.model import BaseModel
from modelmeter.progress import watched
from modelmeter.sweep.table import number, runtime_columns
from modelmeter.sweep.timed import of_request, span_columns
from modelmeter.workload import Workload

if TYPE_CHECKING:
    from modelmeter.host import Host

VERDICTS = ("yes", "likely", "unlikely", "no", "unknown")
"""Whether a target is met: at the upper end of the interval; at the point; at the lower end; nowhere; not predicted."""


def device_rows(
    model: BaseModel, work: Workload, devices: Sequence[Device], host: Host, overhead: int
) -> list[dict[str, Any]]:
    """The rows of a request on devices, in their order; `overhead` are bytes that are held beside the model."""
    needed, many = number(Fits(model, work, overhead).needed), f"devices, {work.execution}"
    return [
        {
            "device": device.title, "name": device.name, **runtime_columns(work),
            "fits": needed <= device.memory_bytes, "needed_memory_bytes": needed,
            "memory_bytes": number(device.memory_bytes), "confidence": device.confidence,
            **_predicted(model, work, device, host),
        }
        for device in watched(devices, many, len(devices))
    ]  # fmt: skip


def _predicted(model: BaseModel, work: Workload, device: Device, host: Host) -> dict[str, Any]:
    """What is predicted, or the sentence why nothing is."""
    from modelmeter.times import Times

    try:
        found = Times(model, work, device, host)
        asked = of_request(found)
    except InputError as error:
        return {"note": str(error)}
    batch = float(work.batch)
    (ttft, ttft_binds), (tpot, tpot_binds), (request, binds) = asked.values()
    page, rate = request * (1 / batch), (batch / tpot.high, batch / tpot.seconds, batch / tpot.low)
    return {
        **span_columns("ttft", ttft), **span_columns("tpot", tpot), **span_columns("page", page),
        **dict(zip(("tokens_per_s_low", "tokens_per_s", "tokens_per_s_high"), rate, strict=True)),
        "ttft_binds": ttft_binds, "tpot_binds": tpot_binds, "page_binds": binds,
        "page_bound_s": found.bound / batch, "note": "",
    }  # fmt: skip


def verdict(target: float, row: Mapping[str, Any], what: str) -> str:
    """Whether a row meets a target of seconds: "yes", "likely", "unlikely", "no", or "unknown".

    >>> row = {"ttft_s": 2.0, "ttft_low_s": 1.0, "ttft_high_s": 4.0}
    >>> [verdict(target, row, "ttft") for target in (5, 3, 1.5, 0.5)], verdict(1, row, "tpot")
    (['yes', 'likely', 'unlikely', 'no'], 'unknown')
    """
    ends = (f"{what}_high_s", f"{what}_s", f"{what}_low_s")
    if ends[0] not in row:
        return VERDICTS[4]
    return next((word for word, end in zip(VERDICTS, ends, strict=False) if row[end] <= target), VERDICTS[3])


def answered(rows: Sequence[Mapping[str, Any]], ttft: Sequence[float], tpot: Sequence[float]) -> list[dict[str, Any]]:
    """The rows of each pair of targets, ranked: who meets both most certainly, with the most margin, first.

    A margin is target / predicted, that of both the lesser one. What does not fit into the memory meets none.
    """
    found: list[dict[str, Any]] = []
    for first, every in product(ttft, tpot):
        judged = [_judged(row, {"ttft": first, "tpot": every}) for row in rows]
        judged.sort(key=lambda row: (VERDICTS.index(row["meets"]), not row["fits"], -(row["margin"] or 0.0)))
        found += ({"rank": rank} | row for rank, row in enumerate(judged, 1))
    return found


def _judged(row: Mapping[str, Any], targets: Mapping[str, float]) -> dict[str, Any]:
    words = {f"{what}_meets": verdict(target, row, what) for what, target in targets.items()}
    known = VERDICTS[4] not in words.values()
    margins = {f"{what}_margin": target / row[f"{what}_s"] if known else "" for what, target in targets.items()}
    worst = max(words.values(), key=VERDICTS.index)
    meets = worst if row["fits"] else "no"
    head = {"meets": meets, "margin": min(margins.values()) if known else ""}
    head |= {f"{what}_target_s": target for what, target in targets.items()}
    lacks = (row["needed_memory_bytes"] - row["memory_bytes"]) / 1e9
    note = "" if row["fits"] else f"{row['device']} lacks {lacks:.3g} GB of memory"
    return head | {**row, **words, **margins, "note": ". ".join(filter(None, (note, row["note"])))}
