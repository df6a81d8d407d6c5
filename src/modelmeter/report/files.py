"""Writing results: CSV, JSON, Markdown and Parquet, all or nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import modelmeter
from modelmeter.errors import InputError
from modelmeter.report.language import Language
from modelmeter.report.tables import markdown, render
from modelmeter.sweep.columns import COLUMNS, Column, notes_of
from modelmeter.sweep.registry import findings
from modelmeter.sweep.table import Table

SCHEMA_VERSION = 1
ENGLISH = Language("en")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise InputError where the block cannot write into a folder."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"out={str(folder)!r} cannot be written: {reason}; give a writable folder") from None


def writable(folder: Path) -> None:
    """Make a folder; raises InputError if it cannot be written."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write_all(folder: Path, contents: Mapping[str, str | bytes], obsolete: Iterable[str] = ()) -> None:
    """Write files into a folder and remove `obsolete` ones; either all of it happens or none.

    Names may lead into folders below. Ctrl-C waits while the finished files are put in place.
    Raises InputError if the folder cannot be written.
    """
    writable(folder)
    with (
        _writing(folder),
        tempfile.TemporaryDirectory(prefix=".partial-", dir=folder, ignore_cleanup_errors=True) as made,
    ):
        for name, content in contents.items():
            (Path(made) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(made) / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with _uninterrupted():
            for name in contents:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(made) / name, folder / name)
            for name in obsolete:
                (folder / name).unlink(missing_ok=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[tuple[Any, ...]] = []
    previous = signal.signal(signal.SIGINT, lambda *event: pressed.append(event))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def obsolete_files(folder: Path, table: str, contents: Mapping[str, Any]) -> list[str]:
    """The files that an earlier run of a sweep wrote there, by its own list, and this one does not."""
    try:
        earlier = json.loads((folder / f"{table}.json").read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in earlier if name not in contents and Path(name).name == name]


def table_files(table: Table, command: str, figures: Sequence[str] = ()) -> dict[str, str | bytes]:
    """The CSV, JSON and Markdown of a table by file name, and Parquet where pyarrow is installed.

    The JSON names the `figures` of the run, so that a later run can remove those that it does not draw.
    """
    version = modelmeter.__version__
    described = {
        "schema_version": SCHEMA_VERSION, "modelmeter_version": version, "command": command, "title": table.title,
        "basis": table.basis, "config": table.settings, "figures": list(figures),
    }  # fmt: skip
    told = {"table": table, "command": command, "version": version, "t": ENGLISH}
    told |= {"findings": findings(table), "rows": markdown_table(table.shown, columns=table.readable)}
    rows = [json.dumps(row, default=_described) for row in table.rows]
    head = json.dumps(described, indent=1, default=_described).removesuffix("\n}")
    contents: dict[str, str | bytes] = {
        "csv": _csv(table),
        "json": "\n".join([f'{head},\n "rows": [', ",\n".join(rows), "]}\n"]),
        "md": render("table", told),
    }
    contents |= _parquet(table)
    return {f"{table.name}.{kind}": content for kind, content in contents.items()}


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, table.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: str(v).lower() if isinstance(v, bool) else v for k, v in row.items()} for row in table.rows)
    return text.getvalue()


def _described(value: Any) -> Any:
    """A device or profile as its fields, anything else as words."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def markdown_table(
    rows: Sequence[Mapping[str, Any]], language: Language = ENGLISH, columns: Mapping[str, Column] = COLUMNS
) -> str:
    """Rows as a Markdown table: the declared columns that have a value, in their order; what is notable stands last."""
    filled = {c for row in rows for c, value in row.items() if value not in ("", 0) or c in ("crops", "grid_h")}
    shown = [columns[c] for c in dict.fromkeys(c for row in rows for c in row) if c in columns and c in filled]
    cells = [{c.heading or c.name: language.word(c.text(row)) for c in shown} for row in rows]
    notes = [", ".join(map(language.word, notes_of(row))) for row in rows]
    if any(notes):
        cells = [{**row, "": note} for row, note in zip(cells, notes, strict=True)]
    return markdown(cells, [""], language.word)


def _parquet(table: Table) -> dict[str, str | bytes]:
    """The rows as Parquet where pyarrow is installed; integers above 2**63 become exact decimals.

    They enter pyarrow as JSON with a schema, as its arrays of Python values would import pandas.
    """
    try:
        import pyarrow
        from pyarrow import json as reader
        from pyarrow import parquet
    except ModuleNotFoundError:
        return {}
    filled = [{name: value for name, value in row.items() if value not in ("", None)} for row in table.rows]
    schema = pyarrow.schema([(name, _arrow_type(pyarrow, [row.get(name) for row in filled])) for name in table.columns])
    lines = "\n".join(json.dumps(row, default=str) for row in filled).encode()
    options = reader.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(reader.read_json(io.BytesIO(lines), parse_options=options), sink)
    return {"parquet": bytes(sink.getvalue().to_pybytes())}


def _arrow_type(pyarrow: Any, values: Sequence[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        return pyarrow.int64() if max(abs(v) for v in values if v is not None) < 2**63 else pyarrow.decimal128(38)
    plain = pyarrow.bool_() if kinds == {bool} else pyarrow.float64() if kinds and kinds <= {int, float} else None
    return plain or pyarrow.string()
