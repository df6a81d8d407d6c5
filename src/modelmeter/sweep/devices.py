"""All devices of the catalogue side by side, at one request: memory, TTFT, TPOT, seconds a page, what binds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from modelmeter.fits import request_of
from modelmeter.models.model import BaseModel
from modelmeter.settings import COUNTING, ON_ALL, PAGE, SWEPT, joined, options_of
from modelmeter.sweep.answers import device_rows
from modelmeter.sweep.columns import Row, significant
from modelmeter.sweep.findings import Finding, rows_of, spoken
from modelmeter.sweep.table import Table, table_of
from modelmeter.workload import Workload

SETTINGS = joined(ON_ALL, *PAGE, *COUNTING, *SWEPT)


def run(model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """One row a device and runtime, the fastest first. `settings["device"]` are Device objects."""
    rows: list[Row] = []
    for kind in settings["runtime"]:
        work = request_of(model, **options_of(settings, kind, *PAGE))
        found = device_rows(model, work, settings["device"], settings["host"], settings["overhead"])
        rows += sorted(found, key=lambda row: (not row["fits"], row.get("page_s", float("inf"))))
    title = f"{model.name} on {len(settings['device'])} devices: {asked_of(work)}"
    return [replace(table_of("devices", title, work, rows, settings), printed=True)]


def asked_of(work: Workload) -> str:
    """A request in words."""
    return f"{work.image.describe()}, {work.prompt_tokens} prompt tokens, {work.decode_steps} steps, batch {work.batch}"


def binds(rows: list[Row], what: str) -> tuple[str, ...]:
    """On how many devices what binds, the most frequent first."""
    return tuple(f"{word} on {many}" for word, many in Counter(row[what] for row in rows).most_common())


def _findings(table: Table) -> Iterator[Finding]:
    rows = rows_of(table)
    known = [row for row in rows if "page_s" in row]
    fitting = [row for row in known if row["fits"]]
    yield from spoken(table)
    yield "devices_fit", {"fit": sum(row["fits"] for row in rows), "devices": len(rows)}
    for end, row in (("fastest", min), ("slowest", max)):
        if fitting:
            yield f"devices_{end}", _told(row(fitting, key=lambda one: one["page_s"]))
    if known:
        words = {what: ", ".join(binds(known, f"{what}_binds")) for what in ("ttft", "tpot")}
        yield "devices_binds", words
    for note in dict.fromkeys(row["note"] for row in rows if "page_s" not in row):
        yield "devices_note", {"note": note}


def _told(row: Row) -> dict[str, Any]:
    """A device in words: milliseconds."""
    told = {"device": row["device"], "rate": significant(row["tokens_per_s"])}
    for what in ("page", "ttft", "tpot"):
        told[what] = significant(1e3 * row[f"{what}_s"])
        told[f"{what}_range"] = (significant(1e3 * row[f"{what}_low_s"]), significant(1e3 * row[f"{what}_high_s"]))
    return told


FINDINGS = {"devices": _findings}
