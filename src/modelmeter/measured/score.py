"""The score: what the model says beside what was measured, row by row, and how far the two are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.host import Span
from modelmeter.measured.predict import predicted
from modelmeter.measured.rows import SHIPPED, Question, names, question, read
from modelmeter.report.tables import align

WORST = 10


class Scored(NamedTuple):
    """A row with what was said of it, or why nothing was."""

    row: Mapping[str, str]
    asked: Question | None
    said: Span | None
    reason: str

    @property
    def error(self) -> float:
        """What was said over what was measured, less one."""
        assert self.asked is not None and self.said is not None
        return self.said.seconds / self.asked.value - 1

    @property
    def inside(self) -> bool:
        """Whether the interval holds what was measured."""
        assert self.asked is not None and self.said is not None
        return self.said.low <= self.asked.value <= self.said.high


def scored(path: str | Path = SHIPPED) -> list[Scored]:
    """Every row of a file of measurements. Raises InputError for a file that is none."""
    return [_scored(row) for row in read(path)]


def _scored(row: Mapping[str, str]) -> Scored:
    asked = None
    try:
        asked = question(row, names()["devices"])
        return Scored(row, asked, predicted(asked), "")
    except InputError as error:
        return Scored(row, asked, None, str(error))


def score_text(found: Sequence[Scored]) -> str:
    """The answer, errors by quantity and engine, the worst rows, and what could not be said."""
    told = [one for one in found if one.said is not None]
    if not told:
        raise InputError("none of the rows can be expressed: " + "; ".join(dict.fromkeys(one.reason for one in found)))
    inside = sum(one.inside for one in told)
    head = (
        f"{len(told)} of {len(found)} rows are expressed ({100 * len(told) / len(found):.0f} %); median error "
        f"{_percent(median(abs(one.error) for one in told))}; {100 * inside / len(told):.0f} % of the measured values "
        "are inside the interval"
    )
    keys: Mapping[str, Callable[[Question, Mapping[str, str]], str]] = {
        "quantity": lambda asked, row: asked.quantity,
        "engine": lambda asked, row: row["engine"].split()[0],
        "device": lambda asked, row: asked.device,
        "load": lambda asked, row: asked.load.kind,
    }
    groups = [
        _groups(told, title, [key(one.asked, one.row) for one in told if one.asked]) for title, key in keys.items()
    ]
    worst = sorted(told, key=lambda one: -abs(one.error))[:WORST]
    return "\n\n".join([head, *groups, _rows("the worst", worst), _rows("all rows", told), _reasons(found)])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _groups(told: Sequence[Scored], title: str, keys: Sequence[str]) -> str:
    rows = [[title, "rows", "median error", "median of signed", "within 15 %", "inside"]]
    for key in sorted(set(keys)):
        own = [one for one, own in zip(told, keys, strict=True) if own == key]
        near = sum(abs(one.error) <= 0.15 for one in own) / len(own)
        middle = (median(abs(one.error) for one in own), median(one.error for one in own), near)
        rows.append([key, str(len(own)), *map(_percent, middle), _percent(sum(o.inside for o in own) / len(own))])
    return align(rows)


def _rows(title: str, told: Sequence[Scored]) -> str:
    rows = [[title, "model", "engine", "hardware", "metric", "measured", "said", "low", "high", "error", "assumed"]]
    for one in told:
        assert one.said is not None and one.asked is not None
        cells = [f"{value:.4g}" for value in (one.asked.value, one.said.seconds, one.said.low, one.said.high)]
        row = one.row
        named = [row["id"], row["model"][:24], row["engine"][:16], row["hardware"][:18], row["metric"]]
        rows.append([*named, *cells, f"{100 * one.error:+.0f} %", "; ".join(one.asked.assumed)])
    return align(rows)


def _reasons(found: Sequence[Scored]) -> str:
    rows = [["not expressed", "why"], *([one.row["id"], one.reason] for one in found if one.said is None)]
    return align(rows) if len(rows) > 1 else "every row is expressed"
