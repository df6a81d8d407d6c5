"""Writing results: CSV, JSON and Markdown, all or nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import modelmeter
from modelmeter.errors import InputError
from modelmeter.sweep.table import Table

SCHEMA_VERSION = 1


def writable(folder: Path) -> None:
    """Make a folder; raises InputError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"out={str(folder)!r} cannot be written: {reason}; give a writable folder") from None


def write_all(folder: Path, contents: Mapping[str, str]) -> None:
    """Write files into a folder; either all of them appear or the folder stays as it was.

    Raises InputError if the folder cannot be written.
    """
    writable(folder)
    staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        for name, text in contents.items():
            (staging / name).write_text(text, encoding="utf-8")
        for name in contents:
            os.replace(staging / name, folder / name)
    except OSError as error:
        raise InputError(f"out={str(folder)!r} cannot be written: {error.strerror}; give a writable folder") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def table_files(table: Table, command: str) -> dict[str, str]:
    """The CSV, JSON and Markdown of a sweep, by file name."""
    return {
        f"{table.name}.csv": _csv(table),
        f"{table.name}.json": _json(table, command),
        f"{table.name}.md": _markdown(table, command),
    }


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, table.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: str(v).lower() if isinstance(v, bool) else v for k, v in row.items()} for row in table.rows)
    return text.getvalue()


def _json(table: Table, command: str) -> str:
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "modelmeter_version": modelmeter.__version__,
        "command": command,
        "title": table.title,
        "basis": table.basis,
        "config": table.settings,
        "rows": list(table.rows),
    }
    return json.dumps(content, indent=1, default=str) + "\n"


_READABLE = {
    "crops": "crops",
    "grid": "grid",
    "image_tokens": "image tokens",
    "component": "component",
    "attention": "attention",
    "tensor_core_flops": "tensor-core TFLOP",
    "cuda_core_flops": "CUDA-core TFLOP",
    "io_bytes": "I/O GB",
    "arithmetic_intensity_flop_per_byte": "FLOP/byte",
    "peak_activation_bytes": "peak activations GB",
    "kv_cache_bytes": "KV cache GB",
}


def _cell(column: str, row: Mapping[str, Any]) -> str:
    if column == "grid":
        return f"{row['grid_h']}x{row['grid_w']}" if row["crops"] else "none"
    value = row[column]
    if column.endswith("_flops"):
        return f"{value / 1e12:.6f}"
    if column.endswith("_bytes"):
        return f"{float(value) / 1e9:.4f}"
    return f"{value:.1f}" if column.startswith("arithmetic") else str(value)


def _note(row: Mapping[str, Any]) -> str:
    notes = ["**this page**"] if row["marked"] else []
    notes += ["extrapolated"] if row["extrapolated"] else []
    measured = row.get("reference_tensor_core_flops")
    if measured is not None:
        notes.append(f"reference {measured - row['tensor_core_flops']:+d} FLOPs")
    return ", ".join(notes)


def _markdown(table: Table, command: str) -> str:
    stored = {"kv_cache_bytes"} if not any(row["kv_cache_bytes"] for row in table.rows) else set()
    columns = [c for c in _READABLE if (c in table.columns or c == "grid") and c not in stored]
    lines = [
        f"# {table.title}",
        "",
        f"`{command}` with modelmeter {modelmeter.__version__}.",
        f"Counted: {table.basis}; TFLOP = 1e12 FLOPs, GB = 1e9 bytes.",
        "",
        "| " + " | ".join(_READABLE[c] for c in columns) + " | |",
        "|" + " ---: |" * len(columns) + " --- |",
    ]
    lines += ["| " + " | ".join(_cell(c, row) for c in columns) + f" | {_note(row)} |" for row in table.rows]
    return "\n".join([*lines, "", "Extrapolated: a grid that the model's preprocessor never produces.", ""])
