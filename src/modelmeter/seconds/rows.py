"""Rows: the kernels of several stages at one point, each a row of what the laws are asked, in one call a kind.

A kernel that depends on the step is a row for each step. Next: `timer.py`; many points: `columns.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.asked import Kind
from modelmeter.seconds.columns import Entry, by_kind
from modelmeter.seconds.laws import Array
from modelmeter.seconds.predict import Lasting, lasting_of
from modelmeter.sizes import Evaluator, Expr, Size


class Stepped(NamedTuple):
    """Kernels of a stage by index, the size that grows with its steps, and how many steps are asked."""

    entries: Mapping[int, Entry]
    step: str
    steps: int

    def steps_of(self, entry: Entry) -> Sequence[int | None]:
        """The steps that a kernel is a row for; None where it does not depend on them."""
        return range(self.steps) if self.step in entry.names else [None]


class Row(NamedTuple):
    """A kernel of a stage at a step."""

    stage: int
    step: int | None
    kernel: int
    entry: Entry


class Call(NamedTuple):
    """One call of a law: `names` of columns, whose numbers are those of all calls from `first` on; its rows."""

    kind: Kind
    names: tuple[str, ...]
    first: int
    rows: Sequence[Row]


class Rows:
    """The kernels of stages at one point, looked at once and asked at any sizes ever after.

    `cells` are numbers that are expressions, by stage and step: their places among all numbers, and what they are.
    """

    def __init__(self, stages: Sequence[Stepped]) -> None:
        self._stages = stages
        self._numbers: list[float] = []
        self._cells: dict[tuple[int, int | None], list[tuple[int, Expr]]] = {}
        entries = {(i, index): entry for i, one in enumerate(stages) for index, entry in one.entries.items()}
        self._calls = [
            self._call(kind, names, [
                Row(i, step, index, entries[i, index])
                for i, index in keys for step in stages[i].steps_of(entries[i, index])
            ])
            for kind, names, keys in by_kind(entries)
        ]  # fmt: skip
        rows = [(call, row) for call in self._calls for row in call.rows]
        self._runs = len(self._numbers)
        for _, row in rows:
            self._number(row, row.entry.runs)
        before = np.cumsum([1, *(stage.steps for stage in stages)]).tolist()
        self._weights = np.array([0 if row.step is None else before[row.stage] + row.step for _, row in rows], int)
        sums = [(row.stage, call.kind.law) for call, row in rows]
        self._starts = [i for i, one in enumerate(sums) if not i or one != sums[i - 1]]
        self._sums = [sums[i] for i in self._starts]
        self._evaluators = [(*key, *_evaluator([size for _, size in found])) for key, found in self._cells.items()]
        self._places = np.array([place for found in self._cells.values() for place, _ in found], int)
        self._template = np.array(self._numbers)

    def _call(self, kind: Kind, names: tuple[str, ...], rows: Sequence[Row]) -> Call:
        first = len(self._numbers)
        for name in names:
            for row in rows:
                self._number(row, row.entry.sizes[name])
        return Call(kind, names, first, rows)

    def _number(self, row: Row, size: Size) -> None:
        if isinstance(size, Expr):
            self._cells.setdefault((row.stage, row.step), []).append((len(self._numbers), size))
        self._numbers.append(0.0 if isinstance(size, Expr) else float(size))

    def _values(self, sizes: Sequence[Mapping[str, Any]]) -> Array:
        """All numbers at sizes of the stages, of one that grows a list of all steps."""
        found: list[Any] = []
        for stage, step, names, evaluate in self._evaluators:
            own = sizes[stage]
            if step is not None:
                grows = self._stages[stage].step
                own = {**own, grows: own[grows][step]}
            found += evaluate(*[own[name] for name in names])
        values = self._template.copy()
        values[self._places] = found
        return values

    def lasting(self, sizes: Sequence[Mapping[str, Any]], device: Device) -> Iterator[tuple[Call, Lasting]]:
        """Seconds of one run of each row, by calls."""
        return self._lasting(self._values(sizes), device)

    def _lasting(self, values: Array, device: Device) -> Iterator[tuple[Call, Lasting]]:
        for call in self._calls:
            many = len(call.names) * len(call.rows)
            columns = values[call.first : call.first + many].reshape(len(call.names), -1)
            yield call, lasting_of(call.kind, dict(zip(call.names, columns, strict=True)), device)

    def totals(
        self, sizes: Sequence[Mapping[str, Any]], weights: Sequence[Sequence[float]], device: Device
    ) -> Iterator[tuple[int, str, list[float]]]:  # fmt: skip
        """By stage and law the low end, the point, the high end and the runs of its kernels, of steps as they weigh."""
        values = self._values(sizes)
        ends, first = np.ones((4, len(self._weights))), 0
        for call, found in self._lasting(values, device):
            own = ends[:, first : first + len(call.rows)]
            own[0], own[1], own[2] = found.low, found.parts.seconds, found.high
            first += len(call.rows)
        ends *= values[self._runs :] * np.array([1.0, *(weight for own in weights for weight in own)])[self._weights]
        sums = np.add.reduceat(ends, self._starts, axis=1).T.tolist() if first else []
        for (stage, law), total in zip(self._sums, sums, strict=True):
            yield stage, law, total


def _evaluator(sizes: Sequence[Expr]) -> tuple[tuple[str, ...], Callable[..., tuple[Any, ...]]]:
    """The names that sizes depend on, and what they are at values of these."""
    names = tuple(sorted({name for size in sizes for name in size.names}))
    return names, Evaluator(names, sizes).rounded
