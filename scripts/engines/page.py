"""Writes what an engine was asked into a page of the docs, below its mark."""

from collections.abc import Sequence
from pathlib import Path


def write(page: str, summary: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> None:
    """Put a summary and a table below the mark of `docs/PAGE`; the last `numbers` columns but one are numbers."""
    path = Path("docs") / page
    mark = f"<!-- below: written by scripts/engines, {path.stem} -->"
    above, found, _ = path.read_text(encoding="utf-8").partition(mark)
    if not found:
        raise SystemExit(f"{path} has no line {mark!r}")
    texts = len(heads) - numbers - 1
    lines = [summary, "", _line(heads), _line(["---"] * texts + ["--:"] * numbers + ["---"]), *map(_line, rows)]
    path.write_text("\n".join([above + mark, "", *lines, ""]), encoding="utf-8")


def both(theirs: str, ours: str) -> str:
    """One figure where the engine's and ours are equal, else both, the engine's first."""
    return theirs if theirs == ours else f"{theirs} / {ours}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
