"""A traced formula beside runs at numbers: where a size is one, of which torch says nothing, and at sizes of no trace.

A symbolic run takes every size for two or more. Where runs with a size of one do the work that the formula says, the
formula holds there too; else its domain begins at two. Where a run at other sizes differs, there is no formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from modelmeter.errors import InputError
from modelmeter.sizes import Expr, Size, added, evaluated, never_negative, substituted, symbol
from modelmeter.tracing.records import Run
from modelmeter.tracing.symbols import Condition

Point = Mapping[str, int]


class Make(Protocol):
    """Runs a module at values of its axes, as hints of symbols or as they are."""

    def __call__(self, values: Point, *, concrete: bool = False) -> Run: ...


def proven(name: str, make: Make, hints: Point, sizes: Callable[[Point], Point] = dict) -> Run:
    """The symbolic run, with the domain in which it was found true; `sizes` are those of the formula at some values.

    Raises InputError where a run at other sizes differs from the formula.
    """
    run = make(hints)
    holds = [axis for axis in hints if _agrees(run, make, dict(hints) | {axis: 1}, sizes, without=axis)]
    if len(holds) > 1 and not _agrees(run, make, dict(hints) | dict.fromkeys(holds, 1), sizes, without=None):
        holds = []
    other = {axis: 2 * value + 1 for axis, value in hints.items()}
    if _inside(run, sizes(other), "") and not _agrees(run, make, other, sizes):
        at = ", ".join(f"{axis}={value}" for axis, value in sizes(other).items())
        raise InputError(f"{name}: its work at {at} is not what its formula says, so it cannot be traced")
    return replace(run, conditions=_simplified([_from_one(c) if c.least in holds else c for c in run.conditions]))


def _simplified(conditions: list[Condition]) -> list[Condition]:
    """The conditions without those that follow from the least sizes."""
    least: dict[str, int] = {}
    for (name,), bound in ((tuple(c.size.names), c.size) for c in conditions if c.least and isinstance(c.size, Expr)):
        least[name] = max(int(symbol(name) - bound), least.get(name, 1))

    def follows(size: Size) -> bool:
        for name, value in least.items():
            size = substituted(size, name, symbol(name) + value - 1)
        return never_negative(size)

    told = [c for c in conditions if not c.least and not follows(c.size)]
    return told + [c for c in conditions if c.least]


def _from_one(condition: Any) -> Any:
    """The condition that a size is one at least."""
    return condition._replace(text=condition.text.replace(">= 2", ">= 1"), size=condition.size + 1)


def _inside(run: Run, at: Point, without: str | None) -> bool:
    """Whether a point is in the domain; `without` is a size whose least does not matter (None: that of none does)."""
    asked = [c.size for c in run.conditions if not c.least or (without is not None and c.least != without)]
    try:
        return all(size >= 0 for size in evaluated(asked, at))
    except ZeroDivisionError:
        return False


def work(run: Run) -> tuple[Size, Size]:
    """FLOPs of tensor cores and CUDA cores of a run."""
    return added(r.tensor * r.times for r in run.records), added(r.cuda * r.times for r in run.records)


def _agrees(run: Run, make: Make, at: Point, sizes: Callable[[Point], Point], without: str | None = "") -> bool:
    """Whether a run at some values does the work that the formula says; not, if they are outside the domain."""
    if not _inside(run, sizes(at), without):
        return False
    try:
        real = make(at, concrete=True)
    except InputError:
        return False
    return tuple(evaluated(work(run), sizes(at))) == work(real)
