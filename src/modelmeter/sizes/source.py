"""Expressions as a short list of instructions: run by Python on ints or arrays, or written as JSON.

Products and functions that several expressions share are computed once. Ints stay exact: a sum with fractions is
computed over its common denominator. The JSON is what any other language needs to evaluate the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

from modelmeter.sizes.expressions import ONE, Atom, Expr, Monomial
from modelmeter.sizes.functions import FUNCTIONS, Size, whole

CHUNK = 8192
"""Points evaluated at once, so that the intermediate arrays stay in cache."""
Instruction = tuple[Any, ...]


class Code:
    """Instructions for some expressions: ("name", n), ("array", k), ("times", i, j), ("call", f, operands) and
    ("sum", ((coefficient, i), ...), denominator), where i is an earlier instruction and None stands for 1.
    """

    def __init__(self, names: Sequence[str], outputs: Sequence[Size]) -> None:
        self.names = tuple(names)
        self.lines: list[Instruction] = []
        self.arrays: list[Any] = []
        self._atoms: dict[Atom, int] = {}
        self._products: dict[tuple[int, ...], int] = {}
        self._sums: dict[Any, int] = {}
        self.outputs = [self._operand(o) for o in outputs]

    def _line(self, *instruction: Any) -> int:
        self.lines.append(instruction)
        return len(self.lines) - 1

    def _operand(self, value: Any) -> Any:
        """The index of the instruction that computes an expression; (number,) for a plain number."""
        if not isinstance(value, Expr):
            return (value,)
        found = self._sums.get(value)
        if found is None:
            found = self._sums[value] = self._sum(value)
        return found

    def _sum(self, value: Expr) -> int:
        if len(value.terms) == 1 and value.terms[0][1] == 1:
            return self._monomial(value.terms[0][0])
        denominator = lcm(*(Fraction(c).denominator for _, c in value.terms))
        terms = tuple((int(c * denominator), None if m is ONE else self._monomial(m)) for m, c in value.terms)
        return self._line("sum", terms, denominator)

    def _monomial(self, monomial: Monomial) -> int:
        factors = [self._atom(atom) for atom, power in monomial.powers for _ in range(power)]
        for length in range(2, len(factors) + 1):
            key = tuple(factors[:length])
            if key not in self._products:
                before = self._products.get(key[:-1], key[0])
                self._products[key] = self._line("times", before, key[-1])
        return self._products.get(tuple(factors), factors[0])

    def _atom(self, atom: Atom) -> int:
        found = self._atoms.get(atom)
        if found is None:
            found = self._atoms[atom] = self._new_atom(atom)
        return found

    def _new_atom(self, atom: Atom) -> int:
        if atom.array is not None:
            self.arrays.append(atom.array)
            return self._line("array", len(self.arrays) - 1)
        if not atom.arguments:
            return self._line("name", atom.name)
        return self._line("call", atom.name, tuple(self._operand(a) for a in atom.arguments))

    def source(self) -> str:
        """A Python function `evaluate` of the names, in their order."""
        lines = [f"def evaluate({', '.join(self.names)}):"]
        for index, line in enumerate(self.lines):
            if line[0] != "name":
                lines.append(f"    v{index} = {self._python(line)}")
        lines.append(f"    return ({''.join(f'{self._text(o)}, ' for o in self.outputs)})")
        return "\n".join(lines) + "\n"

    def _python(self, line: Instruction) -> str:
        if line[0] == "array":
            return f"arrays[{line[1]}]"
        if line[0] == "times":
            return f"{self._text(line[1])} * {self._text(line[2])}"
        if line[0] == "call":
            return f"{line[1]}({', '.join(map(self._text, line[2]))})"
        terms = " + ".join(
            str(c) if i is None else self._text(i) if c == 1 else f"{c} * {self._text(i)}" for c, i in line[1]
        )
        return terms if line[2] == 1 else f"ratio({terms}, {line[2]})"

    def _text(self, operand: Any) -> str:
        if isinstance(operand, tuple):
            return repr(operand[0])
        line = self.lines[operand]
        return str(line[1]) if line[0] == "name" else f"v{operand}"

    def function(self, *, exact: bool) -> Callable[..., tuple[Size, ...]]:
        """The function itself, for ints (`exact`) or with arrays among its arguments."""
        scope: dict[str, Any] = {"Fraction": Fraction, "arrays": self.arrays, **FUNCTIONS}
        if exact and not self.arrays:
            scope |= {"minimum": min, "maximum": max}
        exec(compile(self.source(), "<program>", "exec"), scope)
        found: Callable[..., tuple[Size, ...]] = scope["evaluate"]
        return found

    def as_json(self) -> dict[str, Any]:
        """Names, instructions and outputs as plain data; fractions are [numerator, denominator]."""

        def plain(value: Any) -> Any:
            if isinstance(value, Fraction):
                return [value.numerator, value.denominator]
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        if self.arrays:
            raise TypeError("a program over arrays of hyper-parameters is no JSON; make one for each value")
        return {"names": list(self.names), "lines": plain(tuple(self.lines)), "outputs": plain(tuple(self.outputs))}


class Evaluator:
    """Evaluates some expressions at values of their names, exactly for ints, in chunks for arrays."""

    def __init__(self, names: Sequence[str], outputs: Sequence[Size]) -> None:
        self.names, self.expressions = tuple(names), tuple(outputs)
        self._code: Code | None = None
        self._functions: dict[bool, Callable[..., tuple[Size, ...]]] = {}

    @property
    def code(self) -> Code:
        """The instructions, made when first asked for."""
        if self._code is None:
            self._code = Code(self.names, self.expressions)
        return self._code

    def __call__(self, values: Mapping[str, Size] | Sequence[Size]) -> tuple[Size, ...]:
        given = tuple(values[n] for n in self.names) if isinstance(values, Mapping) else tuple(values)
        plain = not any(hasattr(v, "dtype") for v in given)
        function = self._functions.get(plain)
        if function is None:
            function = self._functions[plain] = self.code.function(exact=plain)
        if plain:
            return tuple([v if type(v) is int else whole(v) for v in function(*given)])
        return _in_chunks(function, given, whole_arrays=bool(self.code.arrays))


def _in_chunks(
    function: Callable[..., tuple[Size, ...]], values: tuple[Size, ...], whole_arrays: bool
) -> tuple[Size, ...]:
    """Long one-dimensional arrays piece by piece; anything else (and arrays inside the code) at once."""
    import numpy as np

    shapes = {v.shape for v in values if hasattr(v, "dtype")}
    (points, *more) = max(shapes, key=len)
    if whole_arrays or more or len(shapes) > 1 or points <= CHUNK:
        return tuple(map(whole, function(*values)))
    results: list[Size] = []
    for start in range(0, points, CHUNK):
        piece = function(*(v[start : start + CHUNK] if hasattr(v, "dtype") else v for v in values))
        if not results:
            results = [np.empty(points) if hasattr(p, "dtype") else whole(p) for p in piece]
        for result, part in zip(results, piece, strict=True):
            if hasattr(part, "dtype"):
                result[start : start + CHUNK] = part
    return tuple(results)


def evaluated(expressions: Sequence[Size], values: Mapping[str, Size]) -> tuple[Size, ...]:
    """Some expressions at some values, once."""
    return Evaluator(tuple(values), expressions)(values)
