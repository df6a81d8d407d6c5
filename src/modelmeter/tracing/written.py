"""A run as data: the content of a traced model's JSON, which `models/traced.py` reads.

Sizes stand once, in a table; tensors, modules and operators name them by their place in it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from modelmeter.sizes import Expr, Size
from modelmeter.tracing.records import Operand, Record, Run, Storage


def expression(size: Size) -> Any:
    """A size as nested lists: a number, a name, ["+", terms], ["*", factors], ["/", n, d] or [function, arguments]."""
    if not isinstance(size, Expr):
        return ["/", size.numerator, size.denominator] if isinstance(size, Fraction) else int(size)
    terms = []
    for monomial, coefficient in size.terms:
        atoms = [[a.name, *map(expression, a.arguments)] if a.arguments else a.name for a in monomial]
        factors = atoms if coefficient == 1 and atoms else [expression(coefficient), *atoms]
        terms.append(factors[0] if len(factors) == 1 else ["*", *factors])
    return terms[0] if len(terms) == 1 else ["+", *terms]


def piece(run: Run) -> dict[str, Any]:
    """One run as data."""
    return _Written(run).content()


class _Written:
    """Tables of sizes, modules and tensors of a run, filled as operators name them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sizes: dict[Any, int] = {}
        self.modules: dict[tuple[str, int, str], int] = {}
        self.tensors: dict[int, int] = {}
        self.entries: list[list[Any]] = []
        self.reads = self._last_reads()
        self.numbers = [record.number for record in run.records]
        self.places: dict[int, list[int]] = {}
        for index, record in enumerate(run.records):
            for storage in dict.fromkeys(o.storage for o in record.writes):
                self.places.setdefault(storage, []).append(index)
        self.held: dict[int, list[int]] = {}
        self.frames = [self._frame(index) for index in range(len(run.storages))]

    def content(self) -> dict[str, Any]:
        """The tables and the operators."""
        run, read = self.run, {o.storage for r in self.run.records for o in (*r.reads, *r.writes)}
        ops = [self._op(index, record) for index, record in enumerate(run.records)]
        written = {o.storage for r in run.records for o in r.writes}
        constant = {s for s in read - written if run.storages[s].role == "activation" and not run.storages[s].input}
        kept = sorted(read)
        unread = [index for index in run.weights.values() if index not in read]
        ops += [self._unused(index) for index in unread]
        named = {"inputs": [self._tensor(s) for s in kept if run.storages[s].input],
                 "buffers": [self._tensor(s) for s in kept if s in constant]}  # fmt: skip
        domain = [[c.text, self._size(c.size)] for c in dict.fromkeys(run.conditions)]
        loops = {path: pair and [self._tensor(s) if s >= 0 else None for s in pair] for path, pair in run.loops.items()}
        modules = [
            [path, run.classes.get(path, ""), times, loop, loops.get(loop)] for path, times, loop in self.modules
        ]
        return {"sizes": [expression(s) for s in self.sizes], "domain": domain, "modules": modules,
                "tensors": self.entries, **named, "ops": ops}  # fmt: skip

    def _last_reads(self) -> dict[int, int]:
        """The last record that reads a storage, by its index."""
        return {o.storage: index for index, r in enumerate(self.run.records) for o in r.reads}

    def _frame(self, index: int) -> tuple[str, bool]:
        """The module whose return frees a storage, and whether its last read does so instead.

        One that is freed between two operators of one module, as a name is bound anew, is held by a read of nothing.
        """
        s, records = self.run.storages[index], self.run.records
        if s.role != "activation" or s.born < 0 or s.dies is None:
            return ("", False)
        places = self.places.get(index, [])
        end = bisect_right(self.numbers, s.dies) - 1
        last = self.reads.get(index, places[-1] if places else -1)
        if not places or end <= last:
            return ("", True)
        frame = _common(r.path for r in records[places[0] : end + 1])
        following = records[end + 1].path if end + 1 < len(records) else None
        if following is None or not f"{following}.".startswith(f"{frame}." if frame else ""):
            return (frame, False)
        holding = next((i for i in range(end, last, -1) if records[i].kind != "constant"), None)
        if holding is not None:
            self.held.setdefault(holding, []).append(index)
        return ("", True)

    def _size(self, size: Size) -> int:
        return self.sizes.setdefault(size, len(self.sizes))

    def _module(self, path: str, times: int, loop: str) -> int:
        return self.modules.setdefault((path, times, loop), len(self.modules))

    def _tensor(self, index: int) -> int:
        if index not in self.tensors:
            s, (frame, temporary) = self.run.storages[index], self.frames[index]
            self.tensors[index] = len(self.entries)
            self.entries.append([s.name, s.role, s.bits, self._size(s.elements), frame, temporary])
        return self.tensors[index]

    def _op(self, index: int, record: Record) -> dict[str, Any]:
        out = [self._text(o) for o in record.writes]
        given = [self._text(o) for o in record.reads]
        right = " * ".join(given[: record.factors]) or " ".join(out[:1])
        right += "".join(f" + {text}" for text in given[record.factors :])
        found: dict[str, Any] = {
            "kind": record.kind, "module": self._module(record.path, record.times, record.loop),
            "equation": f"{' '.join(out)} = {right}", "axes": {a: self._size(s) for a, s in record.axes.items()},
            "reads": [self._ref(o) for o in record.reads], "writes": [self._ref(o) for o in record.writes],
        }  # fmt: skip
        found["reads"] += [[self._tensor(s), self._size(0)] for s in self.held.get(index, ())]
        more = {"tensor": record.tensor, "cuda": record.cuda}
        found |= {key: self._size(size) for key, size in more.items() if not isinstance(size, int) or size}
        found |= {"over": record.over} if record.over else {}
        found |= {"composite": record.label} if record.label else {}
        return found | ({} if record.grad else {"grad": False})

    def _unused(self, index: int) -> dict[str, Any]:
        """A weight that no operator reads."""
        s = self.run.storages[index]
        times = {record.loop: record.times for record in self.run.records if record.loop}
        loop = max((path for path in times if s.name.startswith(f"{path}.")), key=len, default="")
        module = self._module(s.name.rpartition(".")[0], times.get(loop, 1), loop)
        reads, axes = [[self._tensor(index), self._size(0)]], {"n": self._size(s.elements)}
        equation = f"none[n] = {_local(s)}[n]"
        return {"kind": "unused", "module": module, "equation": equation, "axes": axes, "reads": reads, "writes": []}

    def _ref(self, operand: Operand) -> list[int]:
        return [self._tensor(operand.storage), self._size(operand.touched)]

    def _text(self, operand: Operand) -> str:
        s = self.run.storages[operand.storage]
        return f"{_local(s)}{f':{s.bits}' if s.bits else ''}[{operand.axes}]"


def _local(storage: Storage) -> str:
    return re.sub(r"\W", "_", storage.name.rpartition(".")[2])


def _common(paths: Iterable[str]) -> str:
    """The innermost module that all of these are in."""
    first, *others = (path.split(".") for path in paths)
    for other in others:
        first = [a for a, b in zip(first, other, strict=False)][: _alike(first, other)]
    return ".".join(first)


def _alike(one: list[str], other: list[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
