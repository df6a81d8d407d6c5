"""Expressions: polynomials over named sizes with exact coefficients, interned, in one fixed order.

Equal expressions are one object, and their terms stand in the order of their names, so no result depends on
memory addresses. What is no polynomial (`ceil_div`, `minimum`...) is an atom: a function of expressions. Arrays
that a user gives as hyper-parameters are atoms too, told apart by their content. Next: `functions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, final
from weakref import WeakValueDictionary

Number = int | float | Fraction
NUMBERS = (int, float, Fraction)


@final
class Atom:
    """What a polynomial is a polynomial of: a named size, a function of expressions or an array of a user's."""

    __slots__ = ("__weakref__", "arguments", "array", "key", "name")
    known: WeakValueDictionary[str, Atom] = WeakValueDictionary()

    def __init__(self, key: str, name: str, arguments: tuple[Any, ...] = (), array: Any = None) -> None:
        self.key, self.name, self.arguments, self.array = key, name, arguments, array

    @classmethod
    def of(cls, key: str, name: str, arguments: tuple[Any, ...] = (), array: Any = None) -> Atom:
        """The one atom with this key."""
        found = cls.known.get(key)
        if found is None:
            found = cls.known[key] = cls(key, name, arguments, array)
        return found


@final
class Monomial:
    """A product of powers of atoms, in the order of their keys."""

    __slots__ = ("__weakref__", "key", "powers", "products")
    known: WeakValueDictionary[tuple[tuple[Atom, int], ...], Monomial] = WeakValueDictionary()

    def __init__(self, powers: tuple[tuple[Atom, int], ...]) -> None:
        self.powers = powers
        self.key = tuple((atom.key, power) for atom, power in powers)
        self.products: dict[Monomial, Monomial] = {}

    @classmethod
    def of(cls, powers: Iterable[tuple[Atom, int]]) -> Monomial:
        """The one monomial with these powers, in any order."""
        sorted_powers = tuple(sorted(((a, p) for a, p in powers if p), key=lambda pair: pair[0].key))
        found = cls.known.get(sorted_powers)
        if found is None:
            found = cls.known[sorted_powers] = cls(sorted_powers)
        return found

    def times(self, other: Monomial) -> Monomial:
        """The product of two monomials."""
        if not other.powers or not self.powers:
            return other if other.powers else self
        found = self.products.get(other)
        if found is None:
            powers = dict(self.powers)
            for atom, power in other.powers:
                powers[atom] = powers.get(atom, 0) + power
            found = self.products[other] = Monomial.of(powers.items())
        return found


ONE = Monomial.of(())
Terms = tuple[tuple[Monomial, Any], ...]


def exact(value: Any) -> Any:
    """A number as an int where it is whole, else as the Fraction that it is."""
    if type(value) is int:
        return value
    value = Fraction(value)
    return value.numerator if value.denominator == 1 else value


@final
class Expr:
    """A sum of terms, never a plain number: those stay Python numbers. `terms` are (monomial, coefficient)."""

    __slots__ = ("__weakref__", "_compiled", "terms")
    __array_ufunc__ = None
    known: WeakValueDictionary[Terms, Expr] = WeakValueDictionary()
    terms: Terms

    @classmethod
    def of(cls, coefficients: Mapping[Monomial, Any]) -> Any:
        """The expression (or plain number) with these coefficients."""
        terms = tuple(sorted(((m, c) for m, c in coefficients.items() if c), key=lambda term: term[0].key))
        if not terms:
            return 0
        if len(terms) == 1 and terms[0][0] is ONE:
            return terms[0][1]
        return cls._interned(terms)

    @classmethod
    def _interned(cls, terms: Terms) -> Expr:
        found = cls.known.get(terms)
        if found is None:
            found = object.__new__(cls)
            found.terms = terms
            cls.known[terms] = found
        return found

    @classmethod
    def atom(cls, atom: Atom) -> Expr:
        """The expression that is this atom alone."""
        return cls._interned(((Monomial.of(((atom, 1),)), 1),))

    def __mul__(self, other: Any) -> Any:
        if type(other) is int:
            if other == 1:
                return self
            return self._interned(tuple((m, c * other) for m, c in self.terms)) if other else 0
        if isinstance(other, NUMBERS):
            factor = exact(other)
            return self._interned(tuple((m, exact(c * factor)) for m, c in self.terms)) if factor else 0
        theirs = terms_of(other)
        if theirs is None:
            return NotImplemented
        if len(self.terms) == 1 == len(theirs):
            (a, x), (b, y) = self.terms[0], theirs[0]
            return self._interned(((a.times(b), exact(x * y)),))
        found: dict[Monomial, Any] = {}
        for a, x in self.terms:
            for b, y in theirs:
                product = a.times(b)
                found[product] = exact(found.get(product, 0) + x * y)
        return Expr.of(found)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        theirs = terms_of(other)
        if theirs is None:
            return NotImplemented
        found = dict(self.terms)
        for m, c in theirs:
            found[m] = exact(found.get(m, 0) + c)
        return Expr.of(found)

    __radd__ = __add__

    def __neg__(self) -> Any:
        return self * -1

    def __sub__(self, other: Any) -> Any:
        return self + other * -1

    def __rsub__(self, other: Any) -> Any:
        return self * -1 + other

    def __pow__(self, power: int) -> Any:
        value: Any = 1
        for _ in range(power):
            value = value * self
        return value

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, NUMBERS):
            return self * (1 / Fraction(other))
        return divided(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return divided(other, self)

    def __bool__(self) -> bool:
        raise TypeError(f"whether {self} is true depends on its sizes; sizes must not decide what a layer does")

    def __repr__(self) -> str:
        return written(self)

    @property
    def atoms(self) -> dict[Atom, None]:
        """All atoms, in order."""
        return {atom: None for monomial, _ in self.terms for atom, _ in monomial.powers}

    @property
    def names(self) -> dict[str, None]:
        """The named sizes that it depends on, those inside functions included, in order."""
        found: dict[str, None] = {}
        for atom in self.atoms:
            if atom.arguments:
                for argument in atom.arguments:
                    found |= argument.names if isinstance(argument, Expr) else {}
            elif atom.array is None:
                found[atom.name] = None
        return found

    def at_most(self, other: Any) -> bool:
        """Whether no coefficient exceeds the other's: as sizes are never negative, neither does the sum."""
        theirs = dict(terms_of(other) or ())
        return all(c <= theirs.pop(m, 0) for m, c in self.terms) and all(c >= 0 for c in theirs.values())


def divided(a: Any, b: Any) -> Any:
    """The quotient of two sizes without rounding, a polynomial where it is one."""
    denominators = terms_of(b)
    if denominators is not None and len(denominators) == 1:
        (divisor, number), found = denominators[0], {}
        for m, c in terms_of(a) or ():
            powers = dict(m.powers)
            for atom, power in divisor.powers:
                powers[atom] = powers.get(atom, 0) - power
            if any(power < 0 for power in powers.values()):
                break
            found[Monomial.of(powers.items())] = exact(Fraction(c) / number)
        else:
            return Expr.of(found)
    return call("ratio", a, b)


def symbol(name: str) -> Expr:
    """A size without a value.

    >>> b, s = symbol("b"), symbol("s")
    >>> (b + s) * (b - s) + s * s is b * b
    True
    """
    return Expr.atom(Atom.of(name, name))


def call(function: str, *arguments: Any) -> Expr:
    """A function of sizes that is no polynomial, as an atom."""
    given = tuple(a if isinstance(a, Expr) else as_term(a) for a in arguments)
    return Expr.atom(Atom.of(f"{function}({', '.join(map(str, given))})", function, given))


def as_term(value: Any) -> Any:
    """A number as it is, an array as an expression that stands for it."""
    if isinstance(value, (*NUMBERS, Expr)):
        return value
    key = f"array{value.shape}:{value.tobytes().hex()}"
    return Expr.atom(Atom.of(key, "array", array=value))


def terms_of(value: Any) -> Terms | None:
    """The terms of an expression, a number or an array; None for anything else."""
    if isinstance(value, Expr):
        return value.terms
    if isinstance(value, NUMBERS):
        return ((ONE, exact(value)),) if value else ()
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return terms_of(value.item()) if not value.ndim else terms_of(as_term(value))
    return None


def rewritten(expression: Any, change: Callable[[Atom], Any]) -> Any:
    """The expression with each of its atoms replaced by `change(atom)`; None leaves an atom as it is."""
    if not isinstance(expression, Expr):
        return expression
    changes = {atom: change(atom) for atom in expression.atoms}
    if all(new is None for new in changes.values()):
        return expression
    total: Any = 0
    for monomial, coefficient in expression.terms:
        product: Any = Expr.of({Monomial.of((a, p) for a, p in monomial.powers if changes[a] is None): coefficient})
        for atom, power in monomial.powers:
            new = changes[atom]
            if new is not None:
                for _ in range(power):
                    product = product * new
        total = total + product
    return total


def written(expression: Any) -> str:
    """An expression as Python source: `3*b*s**2 + b*minimum(t, 128)`."""
    if not isinstance(expression, Expr):
        return str(expression)
    parts = []
    for monomial, coefficient in expression.terms:
        texts = [a.key if p == 1 else f"{a.key}**{p}" for a, p in monomial.powers]
        number = f"({coefficient})" if isinstance(coefficient, Fraction) else str(coefficient)
        parts.append("*".join(([number] if coefficient != 1 or not texts else []) + texts))
    return " + ".join(parts).replace("+ -", "- ")
