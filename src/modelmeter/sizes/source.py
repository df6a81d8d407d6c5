"""Expressions as a short list of instructions: run by Python on ints or arrays, or written as JSON.

Products and functions that several expressions share are computed once. Ints stay exact: a sum with fractions is
computed over its common denominator. The JSON is what any other language needs to evaluate the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from math import lcm
from operator import truediv
from typing import Any

from modelmeter.errors import InputError
from modelmeter.sizes.expressions import Expr, Monomial, symbol
from modelmeter.sizes.functions import BUILDERS, FUNCTIONS, Function, Size, whole

CHUNK = 8192
"""Points evaluated at once, so that the intermediate arrays stay in cache."""


class Evaluator:
    """Evaluates expressions at values of their names: ints exactly, arrays in chunks, expressions as expressions.

    Its lines are ("name", n), ("array", k), ("times", i, j), ("call", f, operands) and ("sum", ((coefficient, i), ...),
    denominator), where i is an earlier line and None stands for 1. An operand is the index of a line, or (number,).
    """

    def __init__(self, names: Sequence[str], outputs: Sequence[Size]) -> None:
        self.names = tuple(names)
        self.lines: list[tuple[Any, ...]] = []
        self.arrays: list[Any] = []
        self._known: dict[Expr | Monomial, int] = {}
        self.outputs = [self._operand(o) for o in outputs]
        self._closed = not self.arrays and all(line[1] in self.names for line in self.lines if line[0] == "name")

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Expr) and len(value.terms) == 1 and value.terms[0][1] == 1:
            value = value.terms[0][0]
        if not isinstance(value, (Expr, tuple)):
            return (value,)
        if value not in self._known:
            self.lines.append(self._line(value))
            self._known[value] = len(self.lines) - 1
        return self._known[value]

    def _line(self, value: Expr | Monomial) -> tuple[Any, ...]:
        if isinstance(value, Expr):
            denominator = lcm(*(Fraction(c).denominator for _, c in value.terms))
            terms = tuple((int(c * denominator), self._operand(m) if m else None) for m, c in value.terms)
            return ("sum", terms, denominator)
        *others, atom = value
        if others:
            return ("times", self._operand(value[:-1]), self._operand(value[-1:]))
        if atom.array is not None:
            self.arrays.append(atom.array)
            return ("array", len(self.arrays) - 1)
        return ("call", atom.name, tuple(map(self._operand, atom.arguments))) if atom.arguments else ("name", atom.name)

    def source(self) -> str:
        """A Python function `evaluate` of the names, in their order."""

        def text(operand: Any) -> str:
            if isinstance(operand, tuple):
                return repr(operand[0])
            kind, first, *_ = self.lines[operand]
            return str(first) if kind == "name" else f"v{operand}"

        def python(kind: str, first: Any, second: Any = None) -> str:
            if kind == "array":
                return f"arrays[{first}]"
            if kind == "times":
                return f"{text(first)} * {text(second)}"
            if kind == "call":
                return f"{first}({', '.join(map(text, second))})"
            total = " + ".join(str(c) if i is None else text(i) if c == 1 else f"{c} * {text(i)}" for c, i in first)
            return total if second == 1 else f"ratio({total}, {second})"

        lines = [f"    v{i} = {python(*line)}\n" for i, line in enumerate(self.lines) if line[0] != "name"]
        results = "".join(f"{text(o)}, " for o in self.outputs)
        return f"def evaluate({', '.join(self.names)}):\n{''.join(lines)}    return ({results})\n"

    def _function(self, functions: Mapping[str, Function]) -> Any:
        """The function itself, by what it calls; sizes that are not among its names stay symbols."""
        free = {line[1]: symbol(line[1]) for line in self.lines if line[0] == "name"}
        scope = {"Fraction": Fraction, "arrays": self.arrays, **free, **functions}
        exec(self.source(), scope)
        return scope["evaluate"]

    _exact = cached_property(lambda self: self._function(FUNCTIONS | {"minimum": min, "maximum": max}))
    _general = cached_property(lambda self: self._function(BUILDERS))

    @cached_property
    def rounded(self) -> Callable[..., tuple[Any, ...]]:
        """The function itself, of the names in their order, on numbers or arrays: quotients are floats, not exact."""
        rounded: Callable[..., tuple[Any, ...]] = self._function(FUNCTIONS | {"ratio": truediv})
        return rounded

    def as_json(self) -> dict[str, Any]:
        """Names, instructions and outputs as plain data; fractions are [numerator, denominator]."""
        if self.arrays:
            raise InputError("a program over arrays of hyper-parameters is no JSON; make one for each value")
        content = {"names": self.names, "lines": self.lines, "outputs": self.outputs}
        found: dict[str, Any] = json.loads(json.dumps(content, default=Fraction.as_integer_ratio))
        return found

    def __call__(self, values: Mapping[str, Size] | Sequence[Size]) -> tuple[Size, ...]:
        given = [values[n] for n in self.names] if isinstance(values, Mapping) else values
        if self._closed and all(type(v) is int for v in given):
            return tuple([v if type(v) is int else whole(v) for v in self._exact(*given)])
        lengths = {v.shape[0] if v.ndim == 1 else 0 for v in given if hasattr(v, "dtype")}
        if len(lengths - {0, 1}) > 1:
            raise InputError(f"arrays of sizes must have one length, not {', '.join(map(str, sorted(lengths)))}")
        points = lengths.pop() if self._closed and len(lengths) == 1 else 0
        if points <= CHUNK or any(isinstance(v, Expr) for v in given):
            return tuple(map(whole, self._general(*given)))
        return self._in_chunks(given, points)

    def _in_chunks(self, values: Sequence[Size], points: int) -> tuple[Size, ...]:
        """Long arrays piece by piece; what depends on none of them is one number."""
        import numpy as np

        results: list[Size] = []
        for start in range(0, points, CHUNK):
            place = slice(start, start + CHUNK)
            piece = self._general(*(v[place] if hasattr(v, "dtype") else v for v in values))
            results = results or [np.empty(points) if hasattr(p, "dtype") else whole(p) for p in piece]
            for result, part in zip(results, piece, strict=True):
                if hasattr(part, "dtype"):
                    result[place] = part
        return tuple(results)


def evaluated(expressions: Sequence[Size], values: Mapping[str, Size]) -> tuple[Size, ...]:
    """Some expressions at some values, once."""
    return Evaluator(tuple(values), expressions)(values)
