"""Reads what Nsight Systems exports of a GPU: SQLite (`nsys export --type sqlite`), or the CSV of `cuda_gpu_trace`.

Both have kernels by name alone, without shapes. NVTX ranges, which SQLite has, are by the host's clock; a kernel
belongs to the one that it was launched in.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from modelmeter.errors import InputError
from modelmeter.profiled.kinds import kind_of_kernel
from modelmeter.profiled.recorded import Ran, Range, Recorded

NANO = 1e-9
UNITS = {"ns": 1e-9, "nsec": 1e-9, "us": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3, "s": 1.0, "sec": 1.0}
COPIES = {1: "Memcpy HtoD", 2: "Memcpy DtoH", 8: "Memcpy DtoD", 10: "Memcpy PtoP"}
"""Kinds of copies, as CUPTI numbers them."""
KERNELS, RUNTIME, COPY = (f"CUPTI_ACTIVITY_KIND_{name}" for name in ("KERNEL", "RUNTIME", "MEMCPY"))
EXPORT = "export it with nsys export --type sqlite, or nsys stats --report cuda_gpu_trace --format csv"


def read_sqlite(path: Path) -> Recorded:
    """An export to SQLite. Raises InputError for another database, and for one without kernels."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {KERNELS, "StringIds"} <= tables:
                raise InputError(f"{str(path)!r} has no table {KERNELS} of kernels of a GPU: {EXPORT}")
            ran = list(_kernels(base, tables))
            ranges = tuple(_ranges(base, tables))
    except sqlite3.Error as error:
        raise InputError(f"{str(path)!r} cannot be read as an export of Nsight Systems ({error}): {EXPORT}") from None
    return _recorded(path, ran, ranges, "Nsight Systems, SQLite")


def _kernels(base: sqlite3.Connection, tables: set[str]) -> Iterator[Ran]:
    """Kernels, and copies between host and device, of the first device."""
    launched: dict[int, int] = {}
    if RUNTIME in tables:
        launched = dict(base.execute(f"SELECT correlationId, MIN(start) FROM {RUNTIME} GROUP BY correlationId"))
    rows = base.execute(
        f"SELECT k.start, k.end, n.value, k.correlationId FROM {KERNELS} k JOIN StringIds n ON n.id = k.demangledName "
        f"WHERE k.deviceId = (SELECT MIN(deviceId) FROM {KERNELS})"
    )
    for start, end, name, launch in rows:
        yield _ran(name, start * NANO, (end - start) * NANO, launched.get(launch, start) * NANO)
    if COPY in tables:
        for start, end, kind, launch in base.execute(f"SELECT start, end, copyKind, correlationId FROM {COPY}"):
            name = COPIES.get(kind, "Memcpy")
            yield _ran(name, start * NANO, (end - start) * NANO, launched.get(launch, start) * NANO)


def _ranges(base: sqlite3.Connection, tables: set[str]) -> Iterator[Range]:
    """NVTX ranges that ended."""
    if "NVTX_EVENTS" not in tables:
        return
    columns = {row[1] for row in base.execute("PRAGMA table_info(NVTX_EVENTS)")}
    name = "COALESCE(e.text, n.value)" if "textId" in columns else "e.text"
    join = "LEFT JOIN StringIds n ON n.id = e.textId" if "textId" in columns else ""
    for text, start, end in base.execute(f"SELECT {name}, e.start, e.end FROM NVTX_EVENTS e {join}"):
        if text and end:
            yield Range(str(text), start * NANO, end * NANO)


def read_csv(path: Path) -> Recorded:
    """The CSV of `cuda_gpu_trace`. Raises InputError for another table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}") from None
    head = next((i for i, row in enumerate(rows) if _columns(row)), None)
    if head is None:
        raise InputError(
            f"{str(path)!r} is no trace that is known here: give Chrome JSON of torch.profiler (export_chrome_trace), "
            f"or of Nsight Systems: {EXPORT}"
        )
    return _recorded(path, list(_rows(path, rows[head], rows[head + 1 :])), (), "Nsight Systems, CSV")


def _columns(row: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Where start, duration, name and device stand, with the unit of the first two; {} for what is no head."""
    found = {}
    for place, cell in enumerate(row):
        name, _, unit = cell.partition("(")
        found[name.strip().lower()] = (place, UNITS.get(unit.strip(" )"), NANO))
    return found if {"start", "duration", "name"} <= found.keys() else {}


def _rows(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Ran]:
    columns = _columns(head)
    (start, unit), (duration, each), (name, _) = (columns[key] for key in ("start", "duration", "name"))
    device = columns.get("device", (None, 0.0))[0]
    first = None
    for row in rows:
        if len(row) != len(head):
            raise InputError(f"{path}: a row has {len(row)} cells for {len(head)} columns: {','.join(row)[:60]!r}")
        first = row[device] if device is not None and first is None else first
        if device is not None and row[device] != first:
            continue
        try:
            begins, lasts = float(row[start]) * unit, float(row[duration]) * each
        except ValueError:
            raise InputError(
                f"{path}: {head[start]} and {head[duration]} must be numbers in {','.join(row)[:60]!r}"
            ) from None
        yield _ran(row[name], begins, lasts, begins)


def _ran(name: str, start: float, seconds: float, launched: float) -> Ran:
    return Ran(name, kind_of_kernel(name), (), start, seconds, launched)


def _recorded(path: Path, ran: list[Ran], ranges: tuple[Range, ...], source: str) -> Recorded:
    if not ran:
        raise InputError(f"{str(path)!r} has no kernels of a GPU; record with nsys profile --trace=cuda,nvtx")
    return Recorded(tuple(sorted(ran, key=lambda one: one.start)), ranges, source, True)
