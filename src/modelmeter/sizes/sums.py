"""Exact sums over a range of contexts: what K decode steps cost, in closed form.

A step's cost is a polynomial in its context and in functions of it. Powers are summed by Faulhaber's polynomials;
`minimum` and `maximum` (a sliding window) cut the range where they change sides; rounded quotients (a sawtooth,
pages) are summed over whole blocks and the rest. What has no such law is refused.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import comb
from typing import Any

from modelmeter.errors import InputError
from modelmeter.sizes.expressions import ONE, Atom, Expr, Monomial, rewritten, symbol
from modelmeter.sizes.functions import Size, floor_div, maximum, minimum


@cache
def faulhaber(power: int) -> tuple[Fraction, ...]:
    """The coefficients of 1**p + 2**p + ... + n**p as a polynomial in n, from n**0 on.

    >>> faulhaber(1) == (0, Fraction(1, 2), Fraction(1, 2))
    True
    """
    found = [Fraction(0)] * (power + 2)
    found[power + 1] = Fraction(1, power + 1)
    for k in range(1, power + 1):
        bernoulli = _bernoulli(k)
        found[power + 1 - k] = comb(power + 1, k) * bernoulli / (power + 1)
    return tuple(found)


@cache
def _bernoulli(k: int) -> Fraction:
    """Bernoulli numbers with B(1) = 1/2."""
    if k == 0:
        return Fraction(1)
    return 1 - sum((comb(k, j) * _bernoulli(j) / (k - j + 1) for j in range(k)), start=Fraction(0))


def substituted(expression: Size, name: str, value: Size) -> Size:
    """The expression with a named size replaced, inside functions too."""
    from modelmeter.sizes.functions import _call

    def change(atom: Atom) -> Any:
        if atom.name == name and not atom.arguments:
            return value
        if name in Expr.atom(atom).names:
            arguments = [substituted(a, name, value) for a in atom.arguments]
            simple = {"minimum": minimum, "maximum": maximum}.get(atom.name)
            return simple(*arguments) if simple else _call(atom.name, *arguments)
        return None

    return rewritten(expression, change)


def summed(expression: Size, name: str, first: Size, last: Size) -> Size:
    """The sum of the expression over name = first, first + 1, ..., last, exactly.

    Raises InputError where the expression has no closed sum here.

    >>> t = symbol("t")
    >>> summed(minimum(t, 3) + t * t, "t", 1, 5) == 1 + 2 + 3 + 3 + 3 + 1 + 4 + 9 + 16 + 25
    True
    """
    if not isinstance(expression, Expr) or name not in expression.names:
        return expression * (last - first + 1)
    expression = rewritten(expression, _as_quotient)
    total: Size = 0
    constant: dict[Monomial, Any] = {}
    for monomial, coefficient in expression.terms:
        inner = [(a, p) for a, p in monomial.powers if name in Expr.atom(a).names]
        if not inner:
            constant[monomial] = coefficient
            continue
        rest = Expr.of({Monomial.of(pair for pair in monomial.powers if pair not in inner): coefficient})
        total = total + rest * _product(inner, name, first, last)
    return total + Expr.of(constant) * (last - first + 1)


def _as_quotient(atom: Atom) -> Any:
    """Rounding up and sawteeth by rounding down."""
    if atom.name == "ceil_div":
        n, c = atom.arguments
        return floor_div(n + c - 1, c)
    if atom.name == "place_in":
        n, c = atom.arguments
        return n - c * floor_div(n - 1, c)
    return None


def _product(factors: list[tuple[Atom, int]], name: str, first: Size, last: Size) -> Size:
    """The sum of one product of powers."""
    variable, functions = symbol(name), [a for a, _ in factors if a.arguments]
    if not functions:
        return _powers(factors[0][1], first, last)
    atom = functions[0]
    if atom.name in ("minimum", "maximum"):
        left, right, cut = _sides(atom, variable, name)
        before = minimum(maximum(cut, first - 1), last)
        pieces = ((left, first, before), (right, before + 1, last))
        whole = Expr.of({Monomial.of(factors): 1})
        return sum(
            (summed(rewritten(whole, lambda a, s=side: s if a is atom else None), name, a, b) for side, a, b in pieces),
            start=0,
        )
    if atom.name == "floor_div" and len(functions) == 1:
        return _blocks(factors, atom, name, first, last)
    raise _refusal(Expr.of({Monomial.of(factors): 1}))


def _sides(atom: Atom, variable: Expr, name: str) -> tuple[Size, Size, Size]:
    """The side that holds up to a cut, the one that holds from there on, and the last value before the cut."""
    a, b = atom.arguments
    slope, offset = _linear(a - b, name, atom)
    cut = offset * -1 if slope == 1 else floor_div(offset * -1, slope) if slope > 0 else floor_div(offset, -slope)
    rising = (slope > 0) == (atom.name == "minimum")  # up to the cut a is below b
    return (a, b, cut) if rising else (b, a, cut)


def _linear(expression: Any, name: str, atom: Atom) -> tuple[int, Any]:
    """Slope and offset of what is linear in a named size with a slope that is a whole number, not 0."""
    slope, offset = 0, {}
    for monomial, coefficient in terms_by_name(expression):
        named = [a for a, _ in monomial.powers if name in Expr.atom(a).names]
        if not named:
            offset[monomial] = coefficient
        elif len(monomial.powers) == 1 and monomial.powers[0] == (named[0], 1) and not named[0].arguments:
            slope = coefficient
        else:
            raise _refusal(Expr.atom(atom))
    if not isinstance(slope, int) or not slope:
        raise _refusal(Expr.atom(atom))
    return slope, Expr.of(offset)


def terms_by_name(expression: Any) -> Any:
    """The terms of an expression or number."""
    return expression.terms if isinstance(expression, Expr) else ((ONE, expression),)


def _powers(power: int, first: Size, last: Size) -> Size:
    return _polynomial(faulhaber(power), last) - _polynomial(faulhaber(power), first - 1)


def _polynomial(coefficients: tuple[Fraction, ...], at: Size) -> Size:
    value: Size = 0
    for coefficient in reversed(coefficients):
        value = value * at + coefficient
    return value


def _blocks(factors: list[tuple[Atom, int]], atom: Atom, name: str, first: Size, last: Size) -> Size:
    """Powers of name and of floor_div(name + k, c): whole blocks of c, then the rest, up to each end."""
    numerator, c = atom.arguments
    slope, shift = _linear(numerator, name, atom)
    if slope != 1 or (isinstance(c, Expr) and name in c.names):
        raise _refusal(Expr.atom(atom))
    q, r = symbol("~quotient"), symbol("~rest")
    powers = {a.name: p for a, p in factors}
    step = (c * q + r - shift) ** powers.get(name, 0) * q ** powers["floor_div"]
    step = step if isinstance(step, Expr) else Expr.of({ONE: step})

    def up_to(n: Size) -> Size:
        """The sum over name + k = 0 to n."""
        blocks = floor_div(n + 1, c)
        rest = n + 1 - c * blocks
        whole = summed(summed(step, "~rest", 0, c - 1), "~quotient", 0, blocks - 1)
        return whole + substituted(summed(step, "~rest", 0, rest - 1), "~quotient", blocks)

    return up_to(last + shift) - up_to(first + shift - 1)


def _refusal(expression: Any) -> InputError:
    return InputError(f"a step's cost has {expression}, whose sum over steps has no closed form here")


def largest(expression: Size, name: str, first: Size, last: Size) -> Size:
    """The largest value of an expression over name = first to last, for one that never falls but at chunk ends.

    Raises InputError for one that may fall elsewhere.
    """
    if not isinstance(expression, Expr) or name not in expression.names:
        return expression
    if not _rises(expression, name):
        raise InputError(f"a step's peak has {expression}, which may fall from one step to the next")
    at_last = substituted(expression, name, last)
    for saw in expression.atoms:
        if saw.name == "place_in" and name in Expr.atom(saw).names:
            slope, shift = _linear(saw.arguments[0], name, saw)
            chunk_end = saw.arguments[1] * floor_div(last + shift, saw.arguments[1]) - shift
            at_last = maximum(at_last, substituted(expression, name, maximum(first, chunk_end)))
    return at_last


_RISING = {"minimum": (0, 1), "maximum": (0, 1), "floor_div": (0,), "ceil_div": (0,), "place_in": (0,), "ratio": (0,),
           "expected_distinct": (2,)}  # fmt: skip
"""The arguments with which a function of sizes rises (place_in: within a chunk)."""


def _rises(expression: Any, name: str) -> bool:
    """Whether an expression never falls as a named size grows, but where a chunk ends."""
    for monomial, coefficient in terms_by_name(expression):
        named = [a for a, _ in monomial.powers if name in Expr.atom(a).names]
        if named and coefficient < 0:
            return False
        for atom in named:
            for place, argument in enumerate(atom.arguments):
                depends = isinstance(argument, Expr) and name in argument.names
                if depends and (place not in _RISING[atom.name] or not _rises(argument, name)):
                    return False
    return True
