"""Sizes: ints, float64 arrays and expressions, and the functions that layers call on them.

A `Size` is a Python int (exact), a NumPy float64 array (a sweep in one call, exact to 2**53) or an expression.
Layers only add and multiply sizes and call the functions here. Next: `sums.py`, `source.py`.

>>> ratio(7, 2), ceil_div(64, 14), [place_in(n, 3) for n in range(1, 6)], expected_distinct(64, 6, 1)
(Fraction(7, 2), 5, [1, 2, 3, 1, 2], 6)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, TypeAlias

from modelmeter.errors import InputError
from modelmeter.sizes.expressions import NUMBERS, Atom, Expr, call, divided, terms_of

__all__ = [
    "BUILDERS", "FUNCTIONS", "Size", "anywhere", "as_size", "below", "ceil_div", "differ", "expected_distinct",
    "floor_div", "maximum", "minimum", "never_falls", "never_negative", "place_in", "ratio", "rivals", "whole",
]  # fmt: skip

Size: TypeAlias = Any
"""A Python int, a NumPy float64 array or an expression; one code serves all three."""
Function = Callable[..., Size]
FUNCTIONS: dict[str, Function] = {}
"""What an expression may call, on numbers and arrays."""
BUILDERS: dict[str, Function] = {}
"""The same functions on all sizes, as layers call them."""


def as_size(name: str, value: Any, *, least: int = 1) -> Size:
    """A size that a user gave, arrays as float64; raises InputError if it is no whole number(s) of at least `least`."""
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
    except ValueError:  # rows of several lengths
        given = np.asarray(None)
    if given.dtype.kind not in "iuf":
        raise InputError(f"{wanted}, or an array of them, not {value!r}")
    if not given.ndim:
        return as_size(name, given.item(), least=least)
    array = given.astype(np.float64)
    if (abs(array) >= 2**53).any():
        raise InputError(f"{name} must be below 2**53 in an array; give single points as Python ints")
    if not array.size or (array != array // 1).any():
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


def whole(value: Size) -> Size:
    """A Fraction or a float that is a whole number as an int; anything else as it is."""
    if type(value) is Fraction:
        return value.numerator if value.denominator == 1 else value
    return int(value) if isinstance(value, float) and value % 1 == 0 else value


def never_negative(value: Size) -> bool:
    """Whether a size is at least 0 whatever its named sizes are, each at least 1; False if that is not certain."""
    if not isinstance(value, Expr):
        return not anywhere(value < 0)
    rises = all(c >= 0 and not any(atom[0] == "~" for atom in monomial) for monomial, c in value.terms if monomial)
    least = sum(c for monomial, c in value.terms if not any(atom.arguments for atom in monomial))  # a function may be 0
    return rises and least >= 0


def never_falls(value: Size) -> bool:
    """Whether a size never falls where one of its named sizes grows, none of its atoms negative; False if that is not
    certain."""
    return not isinstance(value, Expr) or all(
        c >= 0 and all(map(_never_falls, monomial)) for monomial, c in value.terms if monomial
    )


def _never_falls(atom: Atom) -> bool:
    """Named sizes, extremes and quotients by numbers, of what never falls."""
    divides = atom.name in ("ratio", "floor_div", "ceil_div") and not isinstance(atom.arguments[1], Expr)
    grows = not atom.arguments or divides or atom.name in ("minimum", "maximum")
    return grows and all(map(never_falls, atom.arguments))


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


def _sized(name: str, plain: Function, simpler: Function = lambda *sizes: None) -> Function:
    """A function of all sizes: of expressions it is what `simpler` gives, or else an atom."""

    def of_sizes(*sizes: Size) -> Size:
        for size in sizes:
            if isinstance(size, Expr):
                found = simpler(*sizes)
                return call(name, *sizes) if found is None else found
        return plain(*sizes)

    FUNCTIONS[name], BUILDERS[name] = plain, of_sizes
    return of_sizes


def _extreme(name: str, plain: Function) -> Function:
    """The smaller or larger of two sizes; where one is certain to be, without an atom."""

    def of_numbers(a: Any, b: Any) -> Any:
        if isinstance(a, NUMBERS) and isinstance(b, NUMBERS):
            return plain(a, b)
        import numpy as np

        return getattr(np, name)(a, b)

    def of_expressions(a: Size, b: Size) -> Size:
        for one, other in ((a, b), (b, a)):
            if never_negative(one - other):
                return other if plain is min else one
        return call(name, *sorted((a, b), key=str))

    return _sized(name, of_numbers, of_expressions)


def _evenly(a: Size, b: Size) -> Size | None:
    """The quotient where a number divides an expression whatever its sizes."""
    even = isinstance(a, Expr) and isinstance(b, int) and all(isinstance(c, int) and c % b == 0 for _, c in a.terms)
    return a * Fraction(1, b) if even else None


def _rounded_up_once(a: Size, b: Size) -> Size | None:
    """The quotient where it is even or of what was rounded up before."""
    if isinstance(a, Expr) and isinstance(b, int) and len(a.terms) == 1:
        ((first, *more), coefficient) = a.terms[0]
        if coefficient == 1 and not more and first.name == "ceil_div" and isinstance(first.arguments[1], int):
            return ceil_div(first.arguments[0], first.arguments[1] * b)
    return _evenly(a, b)


def _ratio(a: Any, b: Any) -> Any:
    if type(a) is int and type(b) is int:
        return Fraction(a, b) if a % b else a // b
    exact = isinstance(a, (int, Fraction)) and isinstance(b, (int, Fraction))
    return whole(Fraction(a) / b) if exact else a / b


def _expected_distinct(experts: Any, active: Any, tokens: Any) -> Any:
    missed = experts - active
    return whole(experts - missed * (missed / experts) ** (tokens - 1))


ratio = _sized("ratio", _ratio, divided)
"""The quotient without rounding: ints give an int where it divides, else a Fraction."""
floor_div = _sized("floor_div", lambda a, b: a // b, _evenly)
"""The quotient rounded down."""
ceil_div = _sized("ceil_div", lambda a, b: -(-a // b), _rounded_up_once)
"""The quotient rounded up."""
place_in = _sized("place_in", lambda n, chunk: n - chunk * ((n - 1) // chunk))
"""The place of the n-th of many things in its chunk, 1 to `chunk`: a sawtooth."""
minimum = _extreme("minimum", min)
"""The smaller of two sizes, element by element."""
maximum = _extreme("maximum", max)
"""The larger of two sizes, element by element."""
expected_distinct = _sized(
    "expected_distinct", _expected_distinct, lambda E, k, n: k if isinstance(n, int) and n == 1 else None
)
"""Experts that n tokens reach when each takes k of E uniformly at random: an expectation, so no integer in general.

E (1 - (1 - k/E)**n), written so that one token gives exactly k.
"""
