"""A trace of requests: a CSV file with one request a row, checked cell by cell."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from modelmeter.errors import InputError, unknown
from modelmeter.serving.requests import Requests, TokensOfSize

NEEDED = {"arrival_s": 0.0, "prompt_tokens": 0.0, "output_tokens": 1.0}
ALLOWED = {"image_tokens": 0.0, "width": 1.0, "height": 1.0, "pages": 0.0}
"""Columns with the least that each may hold; all but `arrival_s` and `pages` are whole numbers."""


def read_trace(path: str | Path, tokens_of_size: TokensOfSize | None = None) -> Requests:
    """The requests of a CSV file whose first row names the columns.

    `arrival_s` (seconds, never falling), `prompt_tokens` and `output_tokens` are needed; `image_tokens`, or `width` and
    `height` with `tokens_of_size`, tell the image (none: text alone), and `pages` what a row counts for (1). Raises
    InputError in a sentence that names the row, as an editor counts lines, and the column.
    """
    names, lines = _rows(path)
    columns = {name: np.array([_number(path, line, name, cells[i]) for line, cells in lines], np.float64)
               for i, name in enumerate(names)}  # fmt: skip
    arrival = columns["arrival_s"]
    if len(back := np.flatnonzero(np.diff(arrival) < 0)):
        line = lines[int(back[0]) + 1][0]
        raise InputError(
            f"{path}, row {line}: arrival_s is earlier than in the row before; sort the trace by arrival_s"
        )
    size = np.zeros(len(arrival))
    width, height = columns.get("width", size), columns.get("height", size)
    image = columns.get("image_tokens", size)
    if "width" in columns:
        if tokens_of_size is None:
            raise InputError(f"{path} has image sizes: tokens_of_size must tell the tokens of a width and a height")
        image = np.array([tokens_of_size(int(w), int(h)) for w, h in zip(width, height, strict=True)], np.float64)
    if len(empty := np.flatnonzero(image + columns["prompt_tokens"] < 1)):
        raise InputError(f"{path}, row {lines[int(empty[0])][0]}: prompt_tokens must be at least 1 without an image")
    pages = columns.get("pages", size + 1)
    return Requests(image, columns["prompt_tokens"], columns["output_tokens"], pages, width, height, arrival)


def _rows(path: str | Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and each row with its line. Raises InputError for what is no such table."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            names = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"trace {str(path)!r} cannot be read: {error}") from None
    for name in names:
        if name not in NEEDED | ALLOWED:
            raise unknown(f"column of trace {path}", name, NEEDED | ALLOWED)
    missing = [name for name in NEEDED if name not in names]
    if missing or len(set(names)) < len(names) or ("width" in names) != ("height" in names):
        raise InputError(f"trace {path} needs each of {', '.join(NEEDED)} once, and width with height, not {names}")
    if "width" in names and "image_tokens" in names:
        raise InputError(f"trace {path} must have image_tokens or width and height, not both")
    if not lines:
        raise InputError(f"trace {path} has no request: rows must follow the names of the columns")
    for line, cells in lines:
        if len(cells) != len(names):
            raise InputError(f"{path}, row {line}: {len(cells)} cells for {len(names)} columns")
    return names, lines


def _number(path: str | Path, line: int, name: str, cell: str) -> float:
    """The number of a cell. Raises InputError for one that the column does not allow."""
    least, whole = (NEEDED | ALLOWED)[name], name not in ("arrival_s", "pages")
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not least <= value <= 1e12 or (whole and value != int(value)):
        kind = "whole number" if whole else "number"
        raise InputError(f"{path}, row {line}: {name} must be a {kind} of at least {least:g}, not {cell!r}")
    return value
