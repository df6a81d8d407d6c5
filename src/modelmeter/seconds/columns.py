"""Columns: kernels whose sizes depend on the same variables, as columns of sizes that laws take at many points.

Next: `timer.py`; the same at one point: `rows.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.asked import Kind
from modelmeter.seconds.constants import law_of
from modelmeter.seconds.laws import Array
from modelmeter.seconds.predict import lasting_of
from modelmeter.sizes import Evaluator, Expr, Size, substituted

RUNS = "runs"


Product = tuple[str, ...]
"""Names of sizes that are multiplied."""


class Entry(NamedTuple):
    """What a kernel asks, and how often it runs."""

    kind: Kind
    sizes: Mapping[str, Size]
    runs: Size

    @property
    def names(self) -> frozenset[str]:
        """The named sizes that its own depend on."""
        every = (*self.sizes.values(), self.runs)
        return frozenset(name for size in every if isinstance(size, Expr) for name in size.names)

    @property
    def variables(self) -> tuple[Product, ...]:
        """What its own sizes depend on: one product of named sizes, as tokens are, where that is all; else each."""
        found = set[Product]().union(*map(_products, (*self.sizes.values(), self.runs)))
        if len(found) == 1 and all(len(set(product)) == len(product) for product in found):
            return tuple(found)
        return tuple((name,) for name in sorted(self.names))

    def of_variables(self) -> Entry:
        """The same where each variable is its first name: the others of a product are 1."""
        ones = [name for product in self.variables for name in product[1:]]

        def alone(size: Size) -> Size:
            return reduce(lambda one, name: substituted(one, name, 1), ones, size)

        return Entry(self.kind, {name: alone(size) for name, size in self.sizes.items()}, alone(self.runs))


def _products(size: Size) -> set[Product]:
    """The products of named sizes in a size, those inside functions too."""
    terms = [monomial for monomial, _ in size.terms] if isinstance(size, Expr) else []
    named = (tuple(name for atom in m if not atom.arguments for name in atom.names) for m in terms)
    inside = (_products(argument) for m in terms for atom in m for argument in atom.arguments)
    return {product for product in named if product}.union(*inside)


def by_kind(entries: Mapping[Any, Entry]) -> Iterator[tuple[Kind, tuple[str, ...], list[Any]]]:
    """Kernels that ask the same sizes of the same kind: the kind, the names of the sizes, the keys of the kernels."""
    kinds: dict[tuple[Any, ...], list[Any]] = {}
    for key, entry in entries.items():
        kinds.setdefault((entry.kind, *entry.sizes), []).append(key)
    for (kind, *names), keys in kinds.items():
        yield kind, tuple(names), keys


class Part(NamedTuple):
    """Kernels of a block that ask the same kind at some points: sizes and runs, (kernels, points).

    There is one point where these do not differ.
    """

    kind: Kind
    sizes: dict[str, Array]
    runs: Array

    def totals(self, device: Device) -> list[Array]:
        """The low end, the point and the high end of what its kernels take together, and their runs, by points."""
        lasts = lasting_of(self.kind, self.sizes, device)
        ends = (lasts.low, lasts.parts.seconds, lasts.high)
        return [*(np.einsum("kp,kp->p", self.runs, end) for end in ends), self.runs.sum(axis=0)]


class Block:
    """Kernels whose sizes depend on the same `variables`; those that ask the same kind of a law are a part.

    `width` is how many numbers a point is of the largest array that a law makes on the way.
    """

    def __init__(self, kernels: Mapping[int, Entry]) -> None:
        self.variables = next(iter(kernels.values())).variables
        kernels, self.width = {index: entry.of_variables() for index, entry in kernels.items()}, 1
        outputs: list[Size] = []
        self._parts: list[tuple[Kind, dict[str, Array | slice]]] = []
        for kind, names, indices in by_kind(kernels):
            self.width = max(self.width, len(indices) * law_of(kind.law).tried)
            columns: dict[str, Array | slice] = {}
            for name in (*names, RUNS):
                values = [kernels[i].runs if name == RUNS else kernels[i].sizes[name] for i in indices]
                if any(isinstance(value, Expr) for value in values):
                    columns[name] = slice(len(outputs), len(outputs) + len(values))
                    outputs += values
                else:
                    columns[name] = np.array(values, float)[:, None]
            self._parts.append((kind, columns))
        self._evaluate, self._many = Evaluator([first for first, *_ in self.variables], outputs).rounded, len(outputs)

    def parts(self, values: Sequence[Any]) -> Iterator[Part]:
        """Its parts at values of its variables, numbers or arrays of points."""
        found = np.empty((self._many, max((len(value) for value in values if np.ndim(value)), default=1)))
        for row, value in zip(found, self._evaluate(*values), strict=True):
            row[:] = value
        for kind, columns in self._parts:
            sizes = {name: found[of] if isinstance(of, slice) else of for name, of in columns.items()}
            yield Part(kind, sizes, sizes.pop(RUNS))
