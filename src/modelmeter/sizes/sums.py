"""Exact sums over a range of contexts: what K decode steps cost, in closed form.

A step's cost is a polynomial in its context and in functions of it. Powers are summed by Faulhaber's polynomials;
`minimum` and `maximum` (a sliding window) cut the range where they change sides; rounded quotients (a sawtooth,
pages) are summed over whole blocks and the rest. What has no such law is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import comb
from typing import Any

from modelmeter.errors import InputError
from modelmeter.sizes.expressions import Atom, Expr, Monomial, added, rewritten, symbol, terms_of
from modelmeter.sizes.functions import BUILDERS, Size, floor_div, maximum, minimum, ratio


def substituted(expression: Size, name: str, value: Size) -> Size:
    """The expression with a named size (or a function, by its text) replaced, inside functions too."""

    def change(atom: Atom) -> Any:
        if atom == name:
            return value
        new = [substituted(a, name, value) for a in atom.arguments]
        same = all(a is b for a, b in zip(new, atom.arguments, strict=True))
        return None if same else BUILDERS[atom.name](*new)

    return rewritten(expression, change)


def faulhaber(power: int, n: Size) -> Size:
    """1**power + 2**power + ... + n**power, from the telescoping sum of (k + 1)**(power + 1) - k**(power + 1).

    >>> faulhaber(3, 4) == 1 + 8 + 27 + 64
    True
    """
    lower = (comb(power + 1, k) * faulhaber(k, n) for k in range(power))
    return ratio((n + 1) ** (power + 1) - 1 - sum(lower, start=0), power + 1)


def summed(expression: Size, name: str, first: Size, last: Size) -> Size:
    """The sum of the expression over name = first, first + 1, ..., last, exactly.

    Raises InputError where the expression has no closed sum here.

    >>> t = symbol("t")
    >>> summed(minimum(t, 3) + t * t, "t", 1, 5) == 1 + 2 + 3 + 3 + 3 + 1 + 4 + 9 + 16 + 25
    True
    """
    inner: dict[Monomial, dict[Monomial, Any]] = {}
    for monomial, coefficient in terms_of(rewritten(expression, _as_quotient)) or ():
        factors = tuple(a for a in monomial if name in a.names)
        inner.setdefault(factors, {})[tuple(a for a in monomial if a not in factors)] = coefficient
    return added(_product(factors, name, first, last) * Expr.of(rest) for factors, rest in inner.items())


def _as_quotient(atom: Atom) -> Any:
    """Rounding up and sawteeth by rounding down."""
    if atom.name not in ("ceil_div", "place_in"):
        return None
    n, c = atom.arguments
    return floor_div(n + c - 1, c) if atom.name == "ceil_div" else n - c * floor_div(n - 1, c)


def rounded_down(expression: Size) -> Size:
    """The same with one form for all that is rounded: down, whole parts apart.

    >>> from modelmeter.sizes import ceil_div
    >>> u = symbol("u")
    >>> rounded_down(ceil_div(u, 2) - floor_div(u - 1, 2))
    1
    """
    return rewritten(rewritten(expression, _as_quotient), _apart)


def _apart(atom: Atom) -> Any:
    """A quotient rounded down with the terms outside that are whole by themselves."""
    if atom.name != "floor_div" or not isinstance(atom.arguments[1], int):
        return None
    n, c = atom.arguments
    whole = Expr.of({m: k // c for m, k in terms_of(n) or () if isinstance(k, int) and (k % c == 0 or not m)})
    return whole + floor_div(n - whole * c, c)


def _product(factors: Monomial, name: str, first: Size, last: Size) -> Size:
    """The sum of one product: cut where an extreme changes sides, the innermost first."""
    functions = {a for a in factors if a.arguments}
    if not functions:
        return faulhaber(len(factors), last) - faulhaber(len(factors), first - 1)
    product = Expr.of({factors: 1})
    extreme = _innermost(factors, name)
    if extreme is not None:
        a, b = extreme.arguments
        slope = next((c for monomial, c in terms_of(a - b) or () if monomial == (name,)), 0)
        offset = a - b - slope * symbol(name)
        if not slope or not isinstance(slope, int) or _varies(offset, name):
            raise _refusal(extreme)
        cut = floor_div(offset * -1, slope) if slope > 0 else floor_div(offset, -slope)
        cut = minimum(maximum(cut, first - 1), last)
        a_first = (slope > 0) == (extreme.name == "minimum")  # up to the cut a is below b
        up_to, beyond = (substituted(product, extreme, side) for side in ((a, b) if a_first else (b, a)))
        return summed(up_to, name, first, cut) + summed(beyond, name, cut + 1, last)
    if len(functions) == 1 and (atom := functions.pop()).name == "floor_div":
        return _blocks(factors, atom, name, first, last)
    raise _refusal(product)


def _innermost(atoms: Iterable[Atom], name: str) -> Atom | None:
    """A minimum or maximum of a named size that has none in its arguments."""
    for atom in (a for a in atoms if name in a.names):
        found = _innermost((b for a in atom.arguments if isinstance(a, Expr) for b in a.atoms), name)
        if found is not None or atom.name in ("minimum", "maximum"):
            return found or atom
    return None


def _varies(value: Size, name: str) -> bool:
    return isinstance(value, Expr) and name in value.names


def _blocks(factors: Monomial, atom: Atom, name: str, first: Size, last: Size) -> Size:
    """Powers of name and of floor_div(name + k, c): whole blocks of c, then the rest, up to each end."""
    shift, c = atom.arguments[0] - symbol(name), atom.arguments[1]
    if _varies(shift, name) or _varies(c, name):
        raise _refusal(atom)
    q, r = symbol("~quotient"), symbol("~rest")
    step = (c * q + r - shift) ** (len(factors) - factors.count(atom)) * q ** factors.count(atom)

    def up_to(n: Size) -> Size:
        """The sum over name + k = 0 to n."""
        blocks = floor_div(n + 1, c)
        whole = summed(summed(step, "~rest", 0, c - 1), "~quotient", 0, blocks - 1)
        return whole + substituted(summed(step, "~rest", 0, n - c * blocks), "~quotient", blocks)

    return up_to(last + shift) - up_to(first + shift - 1)


def _refusal(expression: Any) -> InputError:
    return InputError(f"a step's cost has {expression}, whose sum over steps has no closed form here")


def largest(expression: Size, name: str, first: Size, last: Size) -> Size:
    """The largest value of an expression over name = first to last, for one that never falls but at chunk ends.

    Raises InputError for one that may fall elsewhere.
    """
    if not _varies(expression, name):
        return expression
    saws = [a for a in expression.atoms if a.name == "place_in" and name in a.names]
    if len(saws) > 1 or not _rises(expression, name):
        raise InputError(f"a step's peak has {expression}, which may fall from one step to the next")
    at_last = substituted(expression, name, last)
    for saw in saws:
        shift = saw.arguments[0] - symbol(name)
        chunk_end = saw.arguments[1] * floor_div(last + shift, saw.arguments[1]) - shift
        at_last = maximum(at_last, substituted(expression, name, maximum(first, chunk_end)))
    return at_last


_RISING = {"minimum": (0, 1), "maximum": (0, 1), "floor_div": (0,), "ceil_div": (0,), "ratio": (0,), "place_in": (0,),
           "expected_distinct": (2,)}  # fmt: skip
"""The arguments with which a function of sizes rises, `place_in` but where a chunk ends."""


def _rises(expression: Any, name: str, inside: bool = False) -> bool:
    """Whether an expression never falls as a named size grows, but where a chunk ends (not `inside` a function)."""
    for monomial, coefficient in terms_of(expression) or ():
        for atom in (a for a in monomial if name in a.names):
            saw = atom.name == "place_in"
            if coefficient < 0 or (saw and (inside or _varies(atom.arguments[0] - symbol(name), name))):
                return False
            inner = [p for p, a in enumerate(atom.arguments) if _varies(a, name)]
            if not all(p in _RISING[atom.name] and _rises(atom.arguments[p], name, True) for p in inner):
                return False
    return True
