"""The score as Markdown: what the reader came for first, then every row, each range of size beside a roofline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from modelmeter.errors import InputError
from modelmeter.seconds.score import NAMES, Score, Unseen
from modelmeter.seconds.train import PLAIN, TRAINED

MARK = "<!-- below: written by modelmeter score -->"
AIMS = {"shapes": 0.08, "device": 0.12}
"""Median errors to reach for products and attention, by what was left out."""
WORST = 0.25
"""No range of size is to be worse."""
KINDS = {
    "plain": "in bf16",
    "others": "in other formats, or by further kernels of the engine",
    "launched": "launched one by one from the host, whose times tell of the loop",
}
"""Kinds of variants that are told apart, and what they are called."""
AIMED = ("product", "prefill", "decode", "vision")
TITLES = {"shapes": "Shapes left out", "device": "Devices left out"}


def text_of(
    found: Sequence[Score], nvidia: Iterable[str], never: Sequence[Unseen] = (), left: Sequence[str] = ()
) -> str:
    """Summary, the pooled table, devices that were `never` fitted on, both tables of all rows, what is `left`."""
    own = set(nvidia)
    lines = [*_answer(found, own), "", *_pooled(found, own)]
    if never:
        lines[:0] = [*_never(never), ""]
        lines += ["", "## Devices that no constant was fitted on, by those that ship", "", *_unseen(never)]
    for left_out, title in TITLES.items():
        lines += ["", f"## {title}", "", *_table([s for s in found if s.left_out == left_out])]
    if left:
        lines += ["", "## Rows without a prediction", "", *(f"- {line}" for line in left)]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put a text below the mark of a page. Raises InputError for a page without one."""
    above, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise InputError(f"{path} has no line {MARK!r}")
    path.write_text(f"{above}{MARK}\n\n{text}\n", encoding="utf-8")


def _answer(found: Sequence[Score], nvidia: set[str]) -> Iterator[str]:
    """How many groups of products and attention reach the aims, by kind."""
    for left_out, aim in AIMS.items():
        for kind, called in KINDS.items():
            rows = [s for s in found if s.left_out == left_out and s.law in AIMED and s.device in nvidia]
            if not (rows := [s for s in rows if _kind(s) == kind]):
                continue
            met = [s for s in rows if s.quantile(0.5) <= aim]
            over = [s for s in rows if any((s.median(i) or 0) > WORST for i in range(len(NAMES)))]
            medians = [s.quantile(0.5) for s in rows]
            yield (
                f"- {TITLES[left_out]}, products and attention on NVIDIA devices {called}: medians of "
                f"{_share(min(medians))} to {_share(max(medians))}; {len(met)} of {len(rows)} groups reach "
                f"{_share(aim)}, {len(rows) - len(over)} have no range of size above {_share(WORST)}."
            )


def _never(never: Sequence[Unseen]) -> Iterator[str]:
    """The answer for devices that were never fitted on: all their rows by law."""
    for law in dict.fromkeys(one.score.law for one in never):
        rows = [one for one in never if one.score.law == law]
        errors = np.abs(np.expm1(np.concatenate([one.score.errors for one in rows])))
        many = [len(one.score.errors) for one in rows]
        inside = sum(one.inside * n for one, n in zip(rows, many, strict=True)) / sum(many)
        devices = ", ".join(dict.fromkeys(one.score.device for one in rows))
        yield (
            f"- {law} on devices that no constant was fitted on ({devices}): "
            f"median {_share(float(np.median(errors)))}, 90th percentile "
            f"{_share(float(np.quantile(errors, 0.9)))}, {_share(inside)} inside the interval."
        )


def _pooled(found: Sequence[Score], nvidia: set[str]) -> Iterator[str]:
    yield from _head(("kernels", "format", "left out", "rows"), ("median", "90th percentile", "roofline"))
    for law in TRAINED:
        for left_out in TITLES:
            for kind in KINDS:
                rows = [
                    s for s in found
                    if (s.law, s.left_out, _kind(s)) == (law, left_out, kind) and s.device in nvidia
                ]  # fmt: skip
                if rows:
                    errors, roof = (
                        np.abs(np.expm1(np.concatenate([getattr(s, x) for s in rows]))) for x in ("errors", "roofline")
                    )
                    of = (np.median(errors), np.quantile(errors, 0.9), np.median(roof))
                    cells = (law, kind, left_out, f"{errors.size:,}", *map(_share, of))
                    yield f"| {' | '.join(cells)} |"


def _kind(score: Score) -> str:
    if score.variant in PLAIN:
        return "plain"
    return "launched" if score.launched else "others"


def _table(rows: Sequence[Score]) -> Iterator[str]:
    """Every law, format and device: all rows, then by range of size, error and number of rows."""
    yield from _head(("kernels", "format", "device", "rows"), ("median", "90th", "roofline", *NAMES))
    for s in rows:
        sizes = (s.median(i) for i in range(len(NAMES)))
        told = ("" if of is None else f"{_share(of)} ({s.rows(i):,})" for i, of in enumerate(sizes))
        cells = (s.law, s.variant if s.known else f"{s.variant} (of no other device)", s.device, f"{len(s.errors):,}")
        yield f"| {' | '.join((*cells, _share(s.quantile(0.5)), _share(s.quantile(0.9)), _share(s.plain), *told))} |"


def _unseen(never: Sequence[Unseen]) -> Iterator[str]:
    """As `_table`, with the share of rows inside the interval of 90 % and whose constants these are."""
    yield from _head(("kernels", "format", "device", "rows"), ("median", "90th", "roofline", "inside", *NAMES))
    for s, inside in ((one.score, one.inside) for one in never):
        sizes = (s.median(i) for i in range(len(NAMES)))
        told = ("" if of is None else _share(of) for of in sizes)
        of = (s.quantile(0.5), s.quantile(0.9), s.plain, inside)
        yield f"| {' | '.join((s.law, s.variant, s.device, f'{len(s.errors):,}', *map(_share, of), *told))} |"
    yield ""
    for one in dict.fromkeys(one.derived for one in never if one.derived):
        yield f"- {one}"


def _head(words: Sequence[str], numbers: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join((*words, *numbers))} |"
    yield f"|{'---|' * len(words)}{'--:|' * len(numbers)}"


def _share(error: float) -> str:
    return f"{100 * error:.1f} %"
