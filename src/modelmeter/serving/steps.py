"""Step times: the seconds that a service is built on, as functions that somebody else gives.

Nothing here knows a kernel, a device or a model. A law is asked with whole arrays and answers with seconds of the same
shape; a `Table` is such a law from measured or computed points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.serving.numbers import Array, seconds
from modelmeter.serving.requests import Requests

Law = Callable[[Any, Any], Any]
"""Seconds of two sizes, element by element: arrays, or numbers where a simulation asks."""
OfRequests = Callable[[Requests], Any]
"""Seconds of each request."""


def no_time(requests: Requests) -> Array:
    """A stage that takes no time."""
    return np.zeros(len(requests))


@final
@dataclass(frozen=True)
class StepTimes:
    """Seconds of the stages of one replica.

    `prefill(new, cached)` is one step that prefills `new` tokens of a request with `cached` tokens in its cache, the
    whole prompt or a chunk; `decode(batch, context)` is one step of `batch` requests that have `context` tokens each on
    average. `vision(requests)` is what each request's images take on the device, `host(requests)` what they take on one
    thread of the CPU (decode, resize, crops); both default to none. Host time of a step (launches, sampling) belongs
    into `prefill` and `decode`.

    `mixed(new, cached, batch, context)` is one step that does both. By default it is put together from the two: the
    products see new + batch tokens, as in a prefill, and the attention of the decodes adds what a context adds to a
    decode step: prefill(new + batch, cached) + decode(batch, context) - decode(batch, 0). Of a kernel that decodes by
    themselves have better of, that attention takes `unshared` times as long beside prompts.
    """

    prefill: Law
    decode: Law
    vision: OfRequests = no_time
    host: OfRequests = no_time
    mixed: Callable[[Array, Array, Array, Array], Any] | None = None
    unshared: float = 1.0

    def step(self, new: Any, pairs: Any, batch: Any, context: Any) -> Array:
        """Seconds of steps that prefill `new` tokens, maybe of several requests, beside `batch` decodes.

        `pairs` are the pairs of query and key of the prefill: n * m + n * (n + 1) / 2 for n tokens after m in the
        cache, added up over the requests. The cache of one request with as many pairs is asked of the law; where
        several short prompts have fewer than one of that length, its line is prolonged below 0.
        """
        new, pairs, batch, context = (
            np.asarray(a, np.float64) for a in np.broadcast_arrays(new, pairs, batch, context)
        )
        decode = np.where(batch > 0, seconds("decode", self.decode(np.maximum(batch, 1.0), context), new), 0.0)
        return np.where(new > 0, self.beside(batch, context)(np.maximum(new, 1.0), pairs), decode)

    def beside(self, batch: Array, context: Any) -> Callable[[Array, Array], Array]:
        """`step` beside decodes that stay the same, as a function of `new`, 1 or more, and `pairs`."""
        some, context = np.maximum(batch, 1.0), np.broadcast_to(np.asarray(context, np.float64), np.shape(batch))
        attention = seconds("decode", self.decode(some, context), batch) - seconds(
            "decode", self.decode(some, np.zeros_like(some)), batch
        )
        attention = np.where(batch > 0, attention * self.unshared, 0.0)

        def one(new: Array, cached: Array) -> Array:
            """With a prefill of one request."""
            if self.mixed is not None:
                return seconds("mixed", self.mixed(new, cached, batch, context), new)
            return attention + seconds("prefill", self.prefill(new + batch, cached), new)

        def several(new: Array, pairs: Array) -> Array:
            cached = pairs / new - (new + 1) / 2
            if not np.any(cached < 0):
                return one(new, cached)
            bare, there = one(new, np.zeros_like(new)), one(new, np.abs(cached))
            return np.where(cached < 0, np.maximum(2 * bare - there, bare / 2), there)

        return several

    def tabulated(self, max_tokens: float, max_batch: float, max_context: float, points: int = 48) -> StepTimes:
        """The same times from tables over `points` sizes each way: for laws that are dear to ask.

        A law with kinks (waves of tiles) is smoothed between the points. `mixed` is left as it is.
        """
        tokens, batch = _grid(1, max_tokens + max_batch, points), _grid(1, max_batch, points)
        context = np.concatenate(([0.0], _grid(1, max_context, points)))
        return replace(
            self, prefill=Table.of(self.prefill, tokens, context), decode=Table.of(self.decode, batch, context)
        )


def _grid(low: float, high: float, points: int) -> Array:
    """Sizes from low to high in equal ratios, whole ones where they are small."""
    return np.unique(np.rint(np.geomspace(low, max(high, low + 1), points)))


@final
@dataclass(frozen=True, eq=False)
class Table:
    """A law of two sizes from points: linear between them, prolonged along the last two beyond.

    `first` (N) and `second` (M) rise strictly; `table` is N x M seconds. Raises InputError for another shape.

    >>> table = Table([1, 3], [0, 10], [[1, 2], [5, 6]])
    >>> table(np.array([2.0, 5.0]), np.array([5.0, 0.0])).tolist()
    [3.5, 9.0]
    """

    first: Sequence[float] | Array
    second: Sequence[float] | Array
    table: Sequence[Sequence[float]] | Array

    def __post_init__(self) -> None:
        for name in ("first", "second", "table"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        first, second, table = np.asarray(self.first), np.asarray(self.second), np.asarray(self.table)
        for name, axis in (("first", first), ("second", second)):
            if axis.ndim != 1 or len(axis) < 2 or not np.all(np.diff(axis) > 0):
                raise InputError(f"{name} of a table of step times must be two or more sizes that rise")
        if table.shape != (len(first), len(second)) or not np.all(np.isfinite(table) & (table >= 0)):
            raise InputError(f"a table of step times must be {len(first)} x {len(second)} seconds of at least 0")

    @classmethod
    def of(cls, law: Law, first: Array, second: Array) -> Table:
        """The table of a law, asked once."""
        one, two = np.meshgrid(first, second, indexing="ij")
        return cls(first, second, seconds("the law", law(one.ravel(), two.ravel()), one.ravel()).reshape(one.shape))

    def __call__(self, first: Any, second: Any) -> Array:
        """Seconds at sizes of any shape."""
        i, x = _between(np.asarray(self.first), first)
        j, y = _between(np.asarray(self.second), second)
        t = np.asarray(self.table)
        low = t[i, j] * (1 - x) + t[i + 1, j] * x
        high = t[i, j + 1] * (1 - x) + t[i + 1, j + 1] * x
        return np.asarray(np.maximum(low * (1 - y) + high * y, 0.0))


def _between(axis: Array, sizes: Any) -> tuple[Any, Any]:
    """The point below each size, and how far it is towards the next, above 1 beyond the last."""
    sizes = np.maximum(sizes, axis[0])
    index = axis[1:-1].searchsorted(sizes, side="right")
    return index, (sizes - axis[index]) / (axis[index + 1] - axis[index])
