"""The score as Markdown: what the reader came for first, then every row, each range of size beside a roofline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from modelmeter.errors import InputError
from modelmeter.seconds.score import NAMES, Score
from modelmeter.seconds.train import TRAINED

MARK = "<!-- below: written by modelmeter score -->"
AIMS = {"shapes": 0.08, "device": 0.12}
"""Median errors to reach for products and attention, by what was left out."""
WORST = 0.25
"""No range of size is to be worse."""
AIMED = ("product", "prefill", "decode", "vision")
TITLES = {"shapes": "Shapes left out", "device": "Devices left out"}


def text_of(found: Sequence[Score], nvidia: Iterable[str]) -> str:
    """Summary, the pooled table and both tables of all rows."""
    own = set(nvidia)
    lines = [*_answer(found, own), "", *_pooled(found, own)]
    for left_out, title in TITLES.items():
        lines += ["", f"## {title}", "", *_table([s for s in found if s.left_out == left_out])]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put a text below the mark of a page. Raises InputError for a page without one."""
    above, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise InputError(f"{path} has no line {MARK!r}")
    path.write_text(f"{above}{MARK}\n\n{text}\n", encoding="utf-8")


def _answer(found: Sequence[Score], nvidia: set[str]) -> Iterator[str]:
    """How many groups of products and attention reach the aims, plain ones and others apart."""
    for left_out, aim in AIMS.items():
        for plain, called in ((True, "in bf16"), (False, "in other formats, or by further kernels of the engine")):
            rows = [s for s in found if s.left_out == left_out and s.law in AIMED and s.device in nvidia]
            rows = [s for s in rows if _plain(s) == plain]
            met = [s for s in rows if s.quantile(0.5) <= aim]
            over = [s for s in rows if any((s.median(i) or 0) > WORST for i in range(len(NAMES)))]
            medians = [s.quantile(0.5) for s in rows] or [0.0]
            yield (
                f"- {TITLES[left_out]}, products and attention on NVIDIA devices {called}: medians of "
                f"{_share(min(medians))} to {_share(max(medians))}; {len(met)} of {len(rows)} groups reach "
                f"{_share(aim)}, {len(rows) - len(over)} have no range of size above {_share(WORST)}."
            )


def _pooled(found: Sequence[Score], nvidia: set[str]) -> Iterator[str]:
    yield from _head(("kernels", "format", "left out", "rows"), ("median", "90th percentile", "roofline"))
    for law in TRAINED:
        for left_out in TITLES:
            for plain in (True, False):
                rows = [
                    s for s in found
                    if (s.law, s.left_out) == (law, left_out) and s.device in nvidia and _plain(s) == plain
                ]  # fmt: skip
                if rows:
                    errors, roof = (
                        np.abs(np.expm1(np.concatenate([getattr(s, x) for s in rows]))) for x in ("errors", "roofline")
                    )
                    of = (np.median(errors), np.quantile(errors, 0.9), np.median(roof))
                    cells = (law, "plain" if plain else "others", left_out, f"{errors.size:,}", *map(_share, of))
                    yield f"| {' | '.join(cells)} |"


def _plain(score: Score) -> bool:
    return score.variant in ("bf16", "graph")


def _table(rows: Sequence[Score]) -> Iterator[str]:
    """Every law, format and device: all rows, then by range of size, error and number of rows."""
    yield from _head(("kernels", "format", "device", "rows"), ("median", "90th", "roofline", *NAMES))
    for s in rows:
        sizes = (s.median(i) for i in range(len(NAMES)))
        told = ("" if of is None else f"{_share(of)} ({s.rows(i):,})" for i, of in enumerate(sizes))
        cells = (s.law, s.variant if s.known else f"{s.variant} (of no other device)", s.device, f"{len(s.errors):,}")
        yield f"| {' | '.join((*cells, _share(s.quantile(0.5)), _share(s.quantile(0.9)), _share(s.plain), *told))} |"


def _head(words: Sequence[str], numbers: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join((*words, *numbers))} |"
    yield f"|{'---|' * len(words)}{'--:|' * len(numbers)}"


def _share(error: float) -> str:
    return f"{100 * error:.1f} %"
