"""Sizes of torch as sizes of this library: symbolic integers as expressions, guards as sizes that are not negative.

What torch writes as a function (`FloorDiv`, `Mod`, `Max`...) is told by its name, so that nothing here imports torch.
What no expression of ours can say is refused: a formula that leaves it out would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import reduce
from operator import add, mul
from typing import Any, NamedTuple

from modelmeter.errors import InputError
from modelmeter.sizes import Size, ceil_div, floor_div, maximum, minimum, ratio


class Condition(NamedTuple):
    """What must hold for a formula to be true: as text, and as a size that is then not negative.

    `least` is the name of the size where this is but the least that torch takes for any: two.
    """

    text: str
    size: Size
    least: str = ""


_WRAPPERS = frozenset({"ToFloat", "Identity", "TruncToFloat"})
_ROUNDED: dict[str, Callable[[Size, Size], Size]] = {
    "FloorToInt": floor_div, "TruncToInt": floor_div, "CeilToInt": ceil_div,
}  # fmt: skip
_DIVIDED = frozenset({"IntTrueDiv", "FloatTrueDiv"})


def _remainder(a: Size, b: Size) -> Size:
    return a - b * floor_div(a, b)


_FUNCTIONS: dict[str, Callable[..., Size]] = {
    "Add": lambda *a: reduce(add, a), "Mul": lambda *a: reduce(mul, a),
    "Max": lambda *a: reduce(maximum, a), "Min": lambda *a: reduce(minimum, a),
    "FloorDiv": floor_div, "CleanDiv": floor_div, "CeilDiv": ceil_div, "IntTrueDiv": ratio, "FloatTrueDiv": ratio,
    "Mod": _remainder, "PythonMod": _remainder,
    "ModularIndexing": lambda a, b, c: _remainder(floor_div(a, b), c),
}  # fmt: skip


class Reader:
    """Reads torch's expressions; `names` are our sizes by the names of torch's symbols."""

    def __init__(self, names: Mapping[str, Size]) -> None:
        self.names = names
        self._known: dict[Any, Size] = {}
        self._nodes: dict[int, tuple[Size, Any]] = {}

    def size(self, value: Any) -> Size:
        """A size of torch: an int, a symbolic integer or the sympy expression that it stands for.

        Raises InputError for what has no counterpart here.
        """
        if isinstance(value, int):
            return int(value)
        if not hasattr(value, "node"):
            return self._of(value)
        node = value.node
        known = self._nodes.get(id(node))
        if known is None:
            known = self._nodes[id(node)] = (self._of(node.expr), node)  # kept, so that its id stays its own
        return known[0]

    def _of(self, expr: Any) -> Size:
        if expr not in self._known:
            self._known[expr] = self._read(expr)
        return self._known[expr]

    def _read(self, expr: Any) -> Size:
        kind, arguments = type(expr).__name__, expr.args
        if expr.is_Symbol:
            if expr.name not in self.names:
                raise InputError(f"a size ({expr.name}) depends on what the module computes, not on its inputs alone")
            return self.names[expr.name]
        if expr.is_Integer:
            return int(expr)
        if expr.is_Rational or expr.is_Float:
            return Fraction(str(expr))
        if kind == "Pow" or kind == "PowByNatural":
            return self._power(*arguments)
        if kind in _WRAPPERS:
            return self._of(arguments[0])
        if kind in _ROUNDED:
            return self._rounded(_ROUNDED[kind], arguments[0])
        if kind in _FUNCTIONS:
            return _FUNCTIONS[kind](*map(self._of, arguments))
        raise InputError(f"a size is {expr}, and {kind} is no function that sizes have here")

    def _power(self, base: Any, exponent: Any) -> Size:
        if not exponent.is_Integer:
            raise InputError(f"a size has the power {base}**{exponent}, which is no whole number")
        made = reduce(mul, [self._of(base)] * abs(int(exponent)), 1)
        return made if exponent > 0 else ratio(1, made)

    def _rounded(self, rounded: Callable[[Size, Size], Size], inner: Any) -> Size:
        """A rounded number: of a quotient, or of a product with a fraction."""
        if type(inner).__name__ in _DIVIDED:
            return rounded(*map(self._of, inner.args))
        of = self._of(inner)
        return of if isinstance(of, int) else rounded(of, 1)

    def conditions(self, guard: Any) -> Iterator[Condition]:
        """What a guard of torch asks for. Raises InputError for one that cannot be said in sizes."""
        kind = type(guard).__name__
        if kind == "BooleanTrue":
            return
        if kind == "And":
            for part in guard.args:
                yield from self.conditions(part)
        elif kind == "Or":
            sides = [self._all(part) for part in guard.args]
            yield Condition(" or ".join(side.text for side in sides), reduce(maximum, (side.size for side in sides)))
        elif kind in _RELATIONS:
            sign, of = _RELATIONS[kind]
            left, right = map(self._of, guard.args)
            size = of(left - right)
            if not isinstance(size, int) or size < 0:
                yield Condition(f"{left} {sign} {right}", size)
        else:
            raise InputError(f"the trace holds only where {guard}, which cannot be said in sizes")

    def _all(self, guard: Any) -> Condition:
        parts = list(self.conditions(guard)) or [Condition("always", 0)]
        return Condition(" and ".join(p.text for p in parts), reduce(minimum, (p.size for p in parts)))


_RELATIONS: dict[str, tuple[str, Callable[[Size], Size]]] = {
    "Equality": ("==", lambda gap: gap * gap * -1), "Unequality": ("!=", lambda gap: gap * gap - 1),
    "GreaterThan": (">=", lambda gap: gap), "StrictGreaterThan": (">", lambda gap: gap - 1),
    "LessThan": ("<=", lambda gap: gap * -1), "StrictLessThan": ("<", lambda gap: gap * -1 - 1),
}  # fmt: skip
"""Relations by sympy's names: their sign, and of the left side less the right one a size that is then not negative."""
