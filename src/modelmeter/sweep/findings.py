"""What findings of several sweeps share: ranges, trends, eager beside the runtime that is spoken of.

A finding is a key of the sentences in `text/` with its values; every number and every word of a trend is computed from
the rows. A sweep's module says what is found in its tables (FINDINGS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from modelmeter.sweep.columns import Row, flops_of, grid_of, significant
from modelmeter.sweep.table import Table

Finding = tuple[str, dict[str, Any]]
Reader = Callable[[Table], Iterator[Finding]]
SHAPE = 3
"""Points from which on there is a shape to speak of."""
SAME, STRAIGHT, NEARLY = 1e-12, 1e-9, 0.02
"""What is off a shape by this share of the largest value still has it: constant, linear, nearly linear."""
TIMES = 1.1
"""From this ratio on a difference is told in times, below in percent."""


def grouped(rows: Iterable[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by what they have in some columns, in the order of the first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def trend(points: Iterable[tuple[float, float]]) -> str:
    """How y grows with x: constant, linear, nearly_linear, superlinear or sublinear, or falling.

    >>> trend([(1, 3), (2, 5), (4, 9)]), trend([(1, 1), (2, 4), (4, 16)]), trend([(1, 2), (9, 2)])
    ('linear', 'superlinear', 'constant')
    """
    points = sorted(points)
    (x0, y0), (x1, y1) = points[0], points[-1]
    top = max(abs(y) for _, y in points)
    if max(abs(y - y0) for _, y in points) <= SAME * top:
        return "constant"
    if y1 < y0:
        return "falling"
    worst = max((y - (y0 + (y1 - y0) * (x - x0) / (x1 - x0)) for x, y in points), key=abs)
    if abs(worst) <= NEARLY * top:
        return "linear" if abs(worst) <= STRAIGHT * top else "nearly_linear"
    return "superlinear" if worst < 0 else "sublinear"


def trends(key: str, points: Mapping[float, float]) -> Iterator[Finding]:
    """The trend of y by x, if there are enough points for one."""
    if len(points) >= SHAPE:
        yield key, {"trend": trend(points.items())}


def span(values: Sequence[float], unit: float = 1.0) -> tuple[str, str]:
    """The least and the largest value; a language writes one number where they are the same."""
    return significant(min(values) / unit), significant(max(values) / unit)


def ranges(key: str, values: Sequence[float], unit: float = 1.0, **further: Any) -> Iterator[Finding]:
    """A sentence about a range."""
    yield key, {"range": span(values, unit), **further}


def over_grids(key: str, rows: Iterable[Row]) -> Iterator[Finding]:
    """The FLOPs from the smallest to the largest grid of crops."""
    rows = sorted(rows, key=lambda r: (r["crops"], r["image_tokens"]))
    yield from ranges(key, [flops_of(row) for row in rows], 1e12, grids=(grid_of(rows[0]), grid_of(rows[-1])))


def spoken(table: Table) -> Iterator[Finding]:
    """Which execution the sentences speak of, where there are several."""
    if len({row["execution"] for row in table.rows}) > 1:
        yield "spoken", {"kind": table.kind}


def rows_of(table: Table, **where: Any) -> list[Row]:
    """The rows of the execution that is spoken of."""
    return table.select(execution=table.kind, **where)


def eager(table: Table, **where: Any) -> Iterator[Finding]:
    """How much more eager execution moves, if it stands beside the one that is spoken of."""
    others = table.select(execution="eager", **where)
    if others and table.kind != "eager":
        times = [a["io_bytes"] / b["io_bytes"] for a, b in zip(others, rows_of(table, **where), strict=True)]
        if max(times) >= TIMES:
            yield from ranges("eager_traffic", times, kind=table.kind)
        else:
            yield from ranges("eager_percent", [100 * (t - 1) for t in times], kind=table.kind)


def intensity(rows: Sequence[Row]) -> Iterator[Finding]:
    """FLOPs per byte."""
    yield from ranges("intensity", [row["arithmetic_intensity_flop_per_byte"] for row in rows])


def execution(table: Table, **where: Any) -> Iterator[Finding]:
    """The share of CUDA cores, what eager execution moves, FLOPs per byte."""
    rows = rows_of(table, **where)
    yield from ranges("cuda_share", [100 * row["cuda_core_flops"] / flops_of(row) for row in rows])
    yield from eager(table, **where)
    yield from intensity(rows)
