"""Sizes: the only code that knows that an int, an array and a symbol differ.

A `Size` is a Python int (exact), a NumPy float64 array (a sweep in one call, exact to 2**53) or
a sympy expression (a formula). Layers only add and multiply sizes and call the functions here.
`product` and `Tally` keep sums of products as exact coefficients over the few factors that are
not plain numbers, so a sweep over arrays touches each array a handful of times. Next: `ops.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

from modelmeter.errors import InputError

Size: TypeAlias = Any
"""A Python int, a NumPy float64 array or a sympy expression; one code serves all three."""

_NUMBERS = (int, float, Fraction)


def is_symbol(value: Size) -> bool:
    """Whether the size is a sympy expression."""
    return hasattr(value, "free_symbols")


def as_size(name: str, value: Any, *, least: int = 1) -> Size:
    """Check a size that a user gave; integer arrays become float64, NumPy scalars Python ints.

    Raises InputError if it is not a whole number (or an array of them) of at least `least`.
    """
    if (type(value) is int and value >= least) or is_symbol(value):
        return value
    wanted = f"{name} must be a whole number of at least {least}"
    if isinstance(value, (bool, str)) or value is None:
        raise InputError(f"{wanted}, not {value!r}")
    if isinstance(value, (list, tuple)) or hasattr(value, "dtype"):
        import numpy as np

        try:
            given = np.asarray(value)
            array = given.astype(np.float64) if given.dtype.kind in "iuf" else None
        except ValueError:
            array = None
        if array is None:
            raise InputError(f"{wanted}, or an array of them, not {value!r}")
        if not given.ndim:
            return as_size(name, given.item(), least=least)
        if array.size and np.abs(array).max() >= 2**53:
            raise InputError(f"{name} must be below 2**53 in an array; give single points as Python ints")
        if not array.size or not np.all(np.isfinite(array)) or np.any(array != np.floor(array)):
            raise InputError(f"{wanted} in every element of the array")
        if array.min() < least:
            raise InputError(f"{wanted}, not {array.min():g}")
        return array
    if isinstance(value, _NUMBERS) and value == value // 1 and value >= least:
        return int(value)
    raise InputError(f"{wanted}, not {value!r}")


def _symbolic(*values: Size) -> bool:
    return any(is_symbol(v) for v in values)


def anywhere(condition: Any) -> bool:
    """Whether a condition holds, for an array in any element; for symbols it is taken not to."""
    if is_symbol(condition):
        return False
    return bool(condition.any()) if hasattr(condition, "any") else bool(condition)


def ceil_div(a: Size, b: Size) -> Size:
    """The quotient rounded up.

    >>> ceil_div(64, 14)
    5
    """
    if _symbolic(a, b):
        return _function("ceil_div", a, b)
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    import numpy as np

    return np.ceil(a / b)


def minimum(a: Size, b: Size) -> Size:
    """The smaller of two sizes, element by element."""
    if _symbolic(a, b):
        return _function("minimum", a, b)
    if isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS):
        return min(a, b)
    import numpy as np

    return np.minimum(a, b)


def maximum(a: Size, b: Size) -> Size:
    """The larger of two sizes, element by element."""
    if _symbolic(a, b):
        return _function("maximum", a, b)
    if isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS):
        return max(a, b)
    import numpy as np

    return np.maximum(a, b)


def ratio(a: Size, b: Size) -> Size:
    """The quotient without rounding: ints give an int where it divides, else a Fraction.

    >>> ratio(7, 2) * 2
    Fraction(7, 1)
    """
    if _symbolic(a, b):
        return _function("ratio", a, b)
    if isinstance(a, (int, Fraction)) and isinstance(b, (int, Fraction)):
        return whole(Fraction(a) / b)
    return a / b


def whole(value: Size) -> Size:
    """A Fraction or a float that is a whole number as an int; anything else as it is."""
    if isinstance(value, Fraction) and value.denominator == 1:
        return value.numerator
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def expected_distinct(experts: Size, active: Size, tokens: Size) -> Size:
    """Experts that `tokens` tokens reach when each takes `active` of `experts` uniformly at random.

    E (1 - (1 - k/E)**n), written so that one token gives exactly k. An expectation under uniform
    routing, so not an integer in general.

    >>> expected_distinct(64, 6, 1), expected_distinct(64, 64, 9)
    (6, 64)
    """
    if _symbolic(experts, active, tokens):
        return _function("expected_distinct", experts, active, tokens)
    missed = experts - active
    return whole(experts - missed * (missed / experts) ** (tokens - 1))


def _function(name: str, *arguments: Size) -> Size:
    """An undefined sympy function with the name of one of ours, so that a formula prints as code."""
    import sympy

    return sympy.Function(name, positive=True)(*arguments)


FUNCTIONS = {f.__name__: f for f in (ceil_div, minimum, maximum, ratio, expected_distinct)}
"""What a formula may call, by the name under which it prints."""


class Term(NamedTuple):
    """An exact number times sizes that are not plain numbers; `key` identifies those sizes."""

    number: Any
    key: tuple[int, ...]
    factors: tuple[Size, ...]

    def times(self, other: Size) -> Term:
        """This term multiplied by one more size."""
        if isinstance(other, _NUMBERS):
            return Term(self.number * other, self.key, self.factors)
        return product((self.number, *self.factors, other))

    def value(self) -> Size:
        """The product itself, as a Size."""
        value = self.number
        for factor in self.factors:
            value = value * factor
        return whole(value)


def product(sizes: Iterable[Size]) -> Term:
    """The product of sizes: the plain numbers multiplied out, the others kept side by side."""
    number: Any = 1
    factors = []
    for size in sizes:
        if isinstance(size, _NUMBERS):
            number = number * size
        else:
            factors.append(size)
    if len(factors) > 1:
        factors.sort(key=id)
    return Term(number, tuple(map(id, factors)), tuple(factors))


class Tally:
    """A sum of terms with exact coefficients; `value` multiplies it out once, at the end.

    >>> t = Tally(); t.add(product((2, 3))); t.add(product((5, 7))); t.value()
    41
    """

    __slots__ = ("sums",)

    def __init__(self, sums: dict[tuple[int, ...], Term] | None = None) -> None:
        self.sums: dict[tuple[int, ...], Term] = dict(sums or {})

    def add(self, term: Term) -> None:
        """Add one term."""
        old = self.sums.get(term.key)
        if old is not None:
            term = Term(old.number + term.number, term.key, old.factors)
        self.sums[term.key] = term

    def subtract(self, term: Term) -> None:
        """Take one term away again."""
        self.add(term.times(-1))

    def at_most(self, other: Tally) -> bool:
        """Whether no coefficient exceeds the other's: for sizes >= 0 the sum then does not either."""
        theirs = other.sums
        zero = _ZERO
        return all(t.number <= theirs.get(key, zero).number for key, t in self.sums.items())

    def value(self, products: dict[tuple[int, ...], Size] | None = None) -> Size:
        """The sum as a Size; `products` shares the multiplied-out factors between tallies."""
        total: Size = 0
        for number, key, factors in self.sums.values():
            if not factors:
                total = total + number
                continue
            cached = None if products is None else products.get(key)
            if cached is None:
                cached = Term(1, key, factors).value()
                if products is not None:
                    products[key] = cached
            if hasattr(cached, "dtype"):
                part = float(number) * cached
                if hasattr(total, "dtype") and total.shape == part.shape:
                    total += part  # ours alone: made in this loop
                    continue
            elif isinstance(number, Fraction):
                part = number.numerator * cached / number.denominator
            else:
                part = number * cached
            total = total + part
        return whole(total)


_ZERO = Term(0, (), ())


def largest(candidates: Iterable[Tally], products: dict[tuple[int, ...], Size] | None = None) -> Size:
    """The maximum of several sums (0 if there are none)."""
    best: Size = 0
    for tally in candidates:
        value = tally.value(products)
        best = value if isinstance(best, int) and best == 0 else maximum(best, value)
    return best
