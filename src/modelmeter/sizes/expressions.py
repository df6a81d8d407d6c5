"""Expressions: polynomials over named sizes with exact coefficients, interned, in one fixed order.

Equal expressions are one object and their terms stand in the order of their names, so no result depends on memory
addresses. What is no polynomial (`ceil_div`, `minimum`...) is an atom: a function of expressions. Arrays that a user
gives as hyper-parameters are atoms too, told apart by their content. Next: `functions.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import cached_property, reduce
from operator import mul
from typing import Any, final
from weakref import WeakValueDictionary

NUMBERS = (int, float, Fraction)


@final
class Atom(str):
    """What a polynomial is one of: a named size, a function of expressions or a user's array, by `name`.

    It is its own text, and equal where that is equal.
    """

    name: str
    arguments: tuple[Any, ...]
    array: Any

    @classmethod
    def of(cls, text: str, name: str, arguments: tuple[Any, ...] = (), array: Any = None) -> Expr:
        """The expression that is an atom alone."""
        made = cls(text)
        made.name, made.arguments, made.array = name, arguments, array
        found: Expr = Expr.of({(made,): 1})
        return found

    @cached_property
    def names(self) -> dict[str, None]:
        """The named sizes that it depends on, in order."""
        if self == self.name:
            return {self.name: None}
        return {name: None for a in self.arguments if isinstance(a, Expr) for name in a.names}


Monomial = tuple[Atom, ...]
"""A product of atoms in the order of their texts; a power repeats its atom."""
Terms = tuple[tuple[Monomial, Any], ...]


def exact(value: Any) -> Any:
    """A number as an int where it is whole, else as the Fraction that it is."""
    if type(value) is int:
        return value
    value = value if type(value) is Fraction else Fraction(value)
    return value.numerator if value.denominator == 1 else value


@final
class Expr:
    """A sum of terms, never a plain number: those stay Python numbers. `terms` are (monomial, coefficient)."""

    __slots__ = ("__weakref__", "terms")
    __array_ufunc__ = None
    known: WeakValueDictionary[Terms, Expr] = WeakValueDictionary()
    terms: Terms

    @classmethod
    def of(cls, coefficients: Mapping[Monomial, Any]) -> Any:
        """The expression (or plain number) with these coefficients."""
        terms = tuple(sorted([(m, exact(c)) for m, c in coefficients.items() if c]))
        return cls.interned(terms) if terms and terms[-1][0] else terms[0][1] if terms else 0

    @classmethod
    def interned(cls, terms: Terms) -> Expr:
        """The one expression with these terms, in their order."""
        found = cls.known.get(terms)
        if found is None:
            found = cls.known[terms] = object.__new__(cls)
            found.terms = terms
        return found

    def __mul__(self, other: Any) -> Any:
        if type(other) is int and other:  # the commonest factor
            return self if other == 1 else Expr.interned(tuple([(m, exact(c * other)) for m, c in self.terms]))
        theirs = terms_of(other)
        if theirs is None:
            return NotImplemented
        found: dict[Monomial, Any] = {}
        for a, x in self.terms:
            for b, y in theirs:
                product = tuple(sorted(a + b)) if a and b else a or b
                found[product] = found.get(product, 0) + x * y
        return Expr.of(found)

    def __add__(self, other: Any) -> Any:
        return NotImplemented if terms_of(other) is None else added((self, other))

    def __sub__(self, other: Any) -> Any:
        return NotImplemented if terms_of(other) is None else added((self,), minus=(other,))

    __rmul__, __radd__ = __mul__, __add__

    __neg__ = lambda self: self * -1
    __rsub__ = lambda self, other: self * -1 + other
    __pow__ = lambda self, power: self ** (power - 1) * self if power else 1
    __truediv__ = lambda self, other: divided(self, other)
    __rtruediv__ = lambda self, other: divided(other, self)

    def __bool__(self) -> bool:
        raise TypeError(f"whether {self} is true depends on its sizes; sizes must not decide what a layer does")

    def __repr__(self) -> str:
        """It as Python source: `3*b*s**2 + b*minimum(t, 128)`."""
        parts = []
        for monomial, coefficient in self.terms:
            powers = {atom: monomial.count(atom) for atom in monomial}
            texts = [atom if power == 1 else f"{atom}**{power}" for atom, power in powers.items()]
            number = f"({coefficient})" if isinstance(coefficient, Fraction) else str(coefficient)
            parts.append("*".join(([number] if coefficient != 1 or not texts else []) + texts))
        return " + ".join(parts).replace("+ -", "- ")

    @property
    def atoms(self) -> dict[Atom, None]:
        """All atoms, in order."""
        return {atom: None for monomial, _ in self.terms for atom in monomial}

    @property
    def names(self) -> dict[str, None]:
        """The named sizes that it depends on, those inside functions included, in order."""
        return {name: None for atom in self.atoms for name in atom.names}


def added(values: Iterable[Any], minus: Iterable[Any] = ()) -> Any:
    """The sum of expressions and numbers less that of others, made term by term."""
    found: dict[Monomial, Any] = {}
    for value in values:
        for m, c in terms_of(value) or ():
            found[m] = found.get(m, 0) + c
    for value in minus:
        for m, c in terms_of(value) or ():
            found[m] = found.get(m, 0) - c
    return Expr.of(found)


def divided(a: Any, b: Any) -> Any:
    """The quotient of two sizes without rounding, a polynomial where it is one."""
    above, below = terms_of(a) or (), terms_of(b) or ()
    if len(below) == 1:
        (monomial, number) = below[0]
        divisor = Counter(monomial)
        if all(Counter(m) >= divisor for m, _ in above):
            return Expr.of({tuple((Counter(m) - divisor).elements()): Fraction(c) / number for m, c in above})
    return call("ratio", a, b)


def symbol(name: str) -> Expr:
    """A size without a value.

    >>> b, s = symbol("b"), symbol("s")
    >>> (b + s) * (b - s) + s * s is b * b
    True
    """
    return Atom.of(name, name)


def call(function: str, *arguments: Any) -> Expr:
    """A function of sizes that is no polynomial, as an atom."""
    given = tuple(as_term(a) for a in arguments)
    return Atom.of(f"{function}({', '.join(map(str, given))})", function, given)


def as_term(value: Any) -> Any:
    """A number or expression as it is, an array as an expression that stands for it."""
    if isinstance(value, (*NUMBERS, Expr)):
        return value
    return Atom.of(f"array{value.shape}:{value.tobytes().hex()}", "array", array=value) if value.ndim else value.item()


def terms_of(value: Any) -> Terms | None:
    """The terms of an expression, a number or an array; None for anything else."""
    if isinstance(value, Expr):
        return value.terms
    if isinstance(value, NUMBERS):
        return (((), exact(value)),) if value else ()
    return terms_of(as_term(value)) if hasattr(value, "tobytes") else None


def rewritten(expression: Any, change: Callable[[Atom], Any]) -> Any:
    """The expression with each of its atoms replaced by `change(atom)`; None leaves an atom as it is."""
    if not isinstance(expression, Expr):
        return expression
    changes = {atom: new for atom in expression.atoms if (new := change(atom)) is not None}
    return added(
        reduce(mul, (changes[a] for a in m if a in changes), Expr.of({tuple(a for a in m if a not in changes): c}))
        for m, c in expression.terms
    )
