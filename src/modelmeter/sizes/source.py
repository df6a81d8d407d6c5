"""Expressions as a short list of instructions: run by Python on ints or arrays, or written as JSON.

Products and functions that several expressions share are computed once. Ints stay exact: a sum with fractions is
computed over its common denominator. The JSON is what any other language needs to evaluate the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Any

from modelmeter.sizes.expressions import Atom, Expr, symbol
from modelmeter.sizes.functions import BUILDERS, FUNCTIONS, Size, whole

CHUNK = 8192
"""Points evaluated at once, so that the intermediate arrays stay in cache."""
Function = Callable[..., tuple[Size, ...]]


class Code:
    """Instructions for some expressions: ("name", n), ("array", k), ("times", i, j), ("call", f, operands) and
    ("sum", ((coefficient, i), ...), denominator), where i is an earlier instruction and None stands for 1. An operand
    is the index of an instruction, or (number,).
    """

    def __init__(self, names: Sequence[str], outputs: Sequence[Size]) -> None:
        self.names = tuple(names)
        self.lines: list[tuple[Any, ...]] = []
        self.arrays: list[Any] = []
        self._known: dict[Any, int] = {}
        self.outputs = [self._operand(o) for o in outputs]

    def _line(self, key: Any, make: Callable[[], tuple[Any, ...]]) -> int:
        """The instruction for a key, made when first asked for."""
        if key not in self._known:
            made = make()
            self.lines.append(made)
            self._known[key] = len(self.lines) - 1
        return self._known[key]

    def _operand(self, value: Any) -> Any:
        if not isinstance(value, Expr):
            return (value,)
        if len(value.terms) == 1 and value.terms[0][1] == 1:
            return self._product(value.terms[0][0])
        return self._line(value, lambda: self._sum(value))

    def _sum(self, value: Expr) -> tuple[Any, ...]:
        denominator = lcm(*(Fraction(c).denominator for _, c in value.terms))
        terms = tuple((int(c * denominator), self._product(m) if m else None) for m, c in value.terms)
        return ("sum", terms, denominator)

    def _product(self, atoms: tuple[Atom, ...]) -> int:
        if len(atoms) == 1:
            return self._line(atoms, lambda: self._atom(atoms[0]))
        return self._line(atoms, lambda: ("times", self._product(atoms[:-1]), self._product(atoms[-1:])))

    def _atom(self, atom: Atom) -> tuple[Any, ...]:
        if atom.array is not None:
            self.arrays.append(atom.array)
            return ("array", len(self.arrays) - 1)
        return ("call", atom.name, tuple(map(self._operand, atom.arguments))) if atom.arguments else ("name", atom.name)

    @property
    def free(self) -> list[str]:
        """The sizes of the expressions that are not among the names."""
        return [line[1] for line in self.lines if line[0] == "name" and line[1] not in self.names]

    def source(self) -> str:
        """A Python function `evaluate` of the names, in their order."""
        lines = [f"    v{i} = {self._python(*line)}\n" for i, line in enumerate(self.lines) if line[0] != "name"]
        results = "".join(f"{self._text(o)}, " for o in self.outputs)
        return f"def evaluate({', '.join(self.names)}):\n{''.join(lines)}    return ({results})\n"

    def _python(self, kind: str, first: Any, second: Any = None) -> str:
        if kind == "array":
            return f"arrays[{first}]"
        if kind == "times":
            return f"{self._text(first)} * {self._text(second)}"
        if kind == "call":
            return f"{first}({', '.join(map(self._text, second))})"
        texts = [str(c) if i is None else self._text(i) if c == 1 else f"{c} * {self._text(i)}" for c, i in first]
        return " + ".join(texts) if second == 1 else f"ratio({' + '.join(texts)}, {second})"

    def _text(self, operand: Any) -> str:
        if isinstance(operand, tuple):
            return repr(operand[0])
        line = self.lines[operand]
        return str(line[1]) if line[0] == "name" else f"v{operand}"

    def function(self, functions: Mapping[str, Any]) -> Function:
        """The function itself, by what it calls; sizes that are not among its names stay symbols."""
        free = {name: symbol(name) for name in self.free}
        scope: dict[str, Any] = {"Fraction": Fraction, "arrays": self.arrays, **functions, **free}
        exec(compile(self.source(), "<program>", "exec"), scope)
        found: Function = scope["evaluate"]
        return found

    def as_json(self) -> dict[str, Any]:
        """Names, instructions and outputs as plain data; fractions are [numerator, denominator]."""

        def plain(value: Any) -> Any:
            if isinstance(value, Fraction):
                return [value.numerator, value.denominator]
            return list(map(plain, value)) if isinstance(value, (tuple, list)) else value

        if self.arrays:
            raise TypeError("a program over arrays of hyper-parameters is no JSON; make one for each value")
        return {"names": list(self.names), "lines": plain(self.lines), "outputs": plain(self.outputs)}


class Evaluator:
    """Evaluates expressions at values of their names: ints exactly, arrays in chunks, expressions as expressions."""

    def __init__(self, names: Sequence[str], outputs: Sequence[Size]) -> None:
        self.names, self.expressions = tuple(names), tuple(outputs)

    @cached_property
    def code(self) -> Code:
        """The instructions, made when first asked for."""
        return Code(self.names, self.expressions)

    @cached_property
    def _exact(self) -> Function:
        if self.code.arrays or self.code.free:
            return self.code.function(BUILDERS if self.code.free else FUNCTIONS)
        return self.code.function(FUNCTIONS | {"minimum": min, "maximum": max})

    @cached_property
    def _arrays(self) -> Function:
        return self.code.function(FUNCTIONS)

    @cached_property
    def _expressions(self) -> Function:
        return self.code.function(BUILDERS)

    def __call__(self, values: Mapping[str, Size] | Sequence[Size]) -> tuple[Size, ...]:
        given = [values[n] for n in self.names] if isinstance(values, Mapping) else values
        for value in given:
            if type(value) is not int and isinstance(value, Expr):
                return self._expressions(*given)
        if any(hasattr(v, "dtype") for v in given):
            return self._in_chunks(given)
        return tuple([v if type(v) is int else whole(v) for v in self._exact(*given)])

    def _in_chunks(self, values: Sequence[Size]) -> tuple[Size, ...]:
        """Long one-dimensional arrays piece by piece; anything else (and arrays inside the code) at once."""
        import numpy as np

        shapes = {v.shape for v in values if hasattr(v, "dtype")}
        (points, *more) = max(shapes, key=len)
        if self.code.arrays or more or len(shapes) > 1 or points <= CHUNK:
            return tuple(map(whole, self._arrays(*values)))
        results: list[Size] = []
        for start in range(0, points, CHUNK):
            place = slice(start, start + CHUNK)
            piece = self._arrays(*(v[place] if hasattr(v, "dtype") else v for v in values))
            results = results or [np.empty(points) if hasattr(p, "dtype") else whole(p) for p in piece]
            for result, part in zip(results, piece, strict=True):
                if hasattr(part, "dtype"):
                    result[place] = part
        return tuple(results)


def evaluated(expressions: Sequence[Size], values: Mapping[str, Size]) -> tuple[Size, ...]:
    """Some expressions at some values, once."""
    return Evaluator(tuple(values), expressions)(values)
