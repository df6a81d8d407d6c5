"""Sizes: ints, float64 arrays and expressions, and the functions that layers call on them.

A `Size` is a Python int (exact), a NumPy float64 array (a sweep in one call, exact to 2**53) or an expression.
Layers only add and multiply sizes and call the functions here. Next: `sums.py`, `source.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from operator import floordiv
from typing import Any, TypeAlias

from modelmeter.errors import InputError
from modelmeter.sizes.expressions import NUMBERS, Expr, call, divided, terms_of

__all__ = [
    "BUILDERS", "FUNCTIONS", "Size", "anywhere", "as_size", "below", "ceil_div", "differ", "expected_distinct",
    "floor_div", "maximum", "minimum", "never_negative", "place_in", "ratio", "rivals", "whole",
]  # fmt: skip

Size: TypeAlias = Any
"""A Python int, a NumPy float64 array or an expression; one code serves all three."""


def as_size(name: str, value: Any, *, least: int = 1) -> Size:
    """Check a size that a user gave; integer arrays become float64, NumPy scalars Python ints.

    Raises InputError if it is not a whole number (or an array of them) of at least `least`.
    """
    if (type(value) is int and value >= least) or isinstance(value, Expr):
        return value
    wanted = f"{name} must be a whole number of at least {least}"
    if isinstance(value, (list, tuple)) or hasattr(value, "dtype"):
        return _as_array(name, value, wanted, least)
    if isinstance(value, NUMBERS) and not isinstance(value, bool) and value == value // 1 and value >= least:
        return int(value)
    raise InputError(f"{wanted}, not {value!r}")


def _as_array(name: str, value: Any, wanted: str, least: int) -> Size:
    import numpy as np

    try:
        given = np.asarray(value)
    except ValueError:
        given = np.asarray(None)
    if given.dtype.kind not in "iuf":
        raise InputError(f"{wanted}, or an array of them, not {value!r}")
    if not given.ndim:
        return as_size(name, given.item(), least=least)
    array = given.astype(np.float64)
    if array.size and np.abs(array).max() >= 2**53:
        raise InputError(f"{name} must be below 2**53 in an array; give single points as Python ints")
    if not array.size or not np.all(np.isfinite(array)) or np.any(array != np.floor(array)):
        raise InputError(f"{wanted} in every element of the array")
    if array.min() < least:
        raise InputError(f"{wanted}, not {array.min():g}")
    return array


def anywhere(condition: Any) -> bool:
    """Whether a condition holds, for an array in any element."""
    return bool(condition.any()) if hasattr(condition, "any") else bool(condition)


def differ(a: Size, b: Size) -> bool:
    """Whether two sizes are unequal for certain; an expression may be equal to anything but a number off it."""
    return not isinstance(a, Expr) and not isinstance(b, Expr) and anywhere(a != b)


def below(a: Size, b: Size) -> bool:
    """Whether a size is smaller than another for certain, for an array in any element."""
    return not isinstance(a, Expr) and not isinstance(b, Expr) and anywhere(a < b)


def _either(plain: Callable[[Any, Any], Any], numpys: str) -> Callable[[Any, Any], Any]:
    """A function of two numbers or arrays."""

    def of(a: Any, b: Any) -> Any:
        if isinstance(a, NUMBERS) and isinstance(b, NUMBERS):
            return plain(a, b)
        import numpy as np

        return getattr(np, numpys)(a, b)

    return of


def _ratio(a: Any, b: Any) -> Any:
    exact = isinstance(a, (int, Fraction)) and isinstance(b, (int, Fraction))
    return whole(Fraction(a) / b) if exact else a / b


def _expected_distinct(experts: Any, active: Any, tokens: Any) -> Any:
    missed = experts - active
    return whole(experts - missed * (missed / experts) ** (tokens - 1))


_floor_div = _either(floordiv, "floor_divide")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "ratio": _ratio,
    "floor_div": _floor_div,
    "ceil_div": lambda a, b: -_floor_div(-a, b),
    "place_in": lambda n, c: n - c * _floor_div(n - 1, c),
    "minimum": _either(min, "minimum"),
    "maximum": _either(max, "maximum"),
    "expected_distinct": _expected_distinct,
}
"""What an expression may call, on numbers and arrays."""


def applied(function: str, *arguments: Size) -> Size:
    """A function of sizes, an expression if one of them is."""
    known = not any(isinstance(a, Expr) for a in arguments)
    return FUNCTIONS[function](*arguments) if known else call(function, *arguments)


def floor_div(a: Size, b: Size) -> Size:
    """The quotient rounded down."""
    return a * Fraction(1, b) if _divides(b, a) else applied("floor_div", a, b)


def ceil_div(a: Size, b: Size) -> Size:
    """The quotient rounded up.

    >>> ceil_div(64, 14)
    5
    """
    if _divides(b, a):
        return a * Fraction(1, b)
    if isinstance(a, Expr) and isinstance(b, int) and a.terms[0][1] == 1 and len(a.terms) == 1 == len(a.terms[0][0]):
        (atom,) = a.terms[0][0]
        if atom.name == "ceil_div" and isinstance(atom.arguments[1], int):  # rounded up twice
            return ceil_div(atom.arguments[0], atom.arguments[1] * b)
    return applied("ceil_div", a, b)


def _divides(b: Size, a: Size) -> bool:
    """Whether a number divides an expression whatever its sizes."""
    return isinstance(a, Expr) and isinstance(b, int) and all(isinstance(c, int) and c % b == 0 for _, c in a.terms)


def place_in(n: Size, chunk: Size) -> Size:
    """The place of the n-th of many things in its chunk, 1 to `chunk`: a sawtooth.

    >>> [place_in(n, 3) for n in range(1, 8)]
    [1, 2, 3, 1, 2, 3, 1]
    """
    return applied("place_in", n, chunk)


def never_negative(value: Size) -> bool:
    """Whether a size is at least 0 whatever its named sizes are, each at least 1; False if that is not certain."""
    if not isinstance(value, Expr):
        return not anywhere(value < 0)
    least = 0
    for monomial, coefficient in value.terms:
        if monomial and (coefficient < 0 or any(atom[0] == "~" for atom in monomial)):
            return False
        named = all(not atom.arguments for atom in monomial)  # a function may be 0
        least += coefficient if named or coefficient < 0 else 0
    return least >= 0


def _extreme(function: str, a: Size, b: Size, lower: bool) -> Size:
    """The smaller or larger of two sizes; where one is certain to be, without a function."""
    if not isinstance(a, Expr) and not isinstance(b, Expr):
        return FUNCTIONS[function](a, b)
    gap = a - b
    if never_negative(gap) or never_negative(gap * -1):
        return b if never_negative(gap) == lower else a
    return call(function, *sorted((a, b), key=str))


def minimum(a: Size, b: Size) -> Size:
    """The smaller of two sizes, element by element."""
    return _extreme("minimum", a, b, lower=True)


def maximum(a: Size, b: Size) -> Size:
    """The larger of two sizes, element by element."""
    return _extreme("maximum", a, b, lower=False)


def ratio(a: Size, b: Size) -> Size:
    """The quotient without rounding: ints give an int where it divides, else a Fraction.

    >>> ratio(7, 2) * 2
    Fraction(7, 1)
    """
    return divided(a, b) if isinstance(a, Expr) or isinstance(b, Expr) else _ratio(a, b)


def whole(value: Size) -> Size:
    """A Fraction or a float that is a whole number as an int; anything else as it is."""
    return int(value) if isinstance(value, (Fraction, float)) and value % 1 == 0 else value


def expected_distinct(experts: Size, active: Size, tokens: Size) -> Size:
    """Experts that `tokens` tokens reach when each takes `active` of `experts` uniformly at random.

    E (1 - (1 - k/E)**n), written so that one token gives exactly k. An expectation under uniform
    routing, so not an integer in general.

    >>> expected_distinct(64, 6, 1), expected_distinct(64, 64, 9)
    (6, 64)
    """
    return active if type(tokens) is int and tokens == 1 else applied("expected_distinct", experts, active, tokens)


def rivals(values: Iterable[Size]) -> list[Size]:
    """The sizes that may be the largest: without those that another is at least as large as, whatever the sizes."""
    kept: list[Size] = []
    for value in dict.fromkeys(values):
        if not any(_at_most(value, other) for other in kept):
            kept = [other for other in kept if not _at_most(other, value)] + [value]
    return kept


def _at_most(a: Size, b: Size) -> bool:
    """Whether no coefficient exceeds the other's: as sizes are never negative, neither does the sum."""
    known = dict(terms_of(b) or ())
    return all(c <= known.pop(m, 0) for m, c in terms_of(a) or ()) and all(c >= 0 for c in known.values())


BUILDERS: dict[str, Callable[..., Size]] = {
    f.__name__: f for f in (ratio, floor_div, ceil_div, place_in, minimum, maximum, expected_distinct)
}
"""The functions that layers call, by the name of the atom that they make."""
