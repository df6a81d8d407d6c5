"""Distributions of sizes: each is its quantile function, so that a mix can be spread evenly or drawn at random."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.serving.numbers import Array, above, at_least

WIDEST = 3.0
"""Spread of a log-normal beyond which its mean hangs on sizes that fewer than one in a hundred have."""


class Distribution(ABC):
    """A distribution of sizes of at least 0."""

    @abstractmethod
    def quantile(self, level: Array) -> Array:
        """The sizes that are not exceeded with probabilities `level`, from 0 to 1 (same shape)."""


@final
@dataclass(frozen=True)
class Fixed(Distribution):
    """Always the same."""

    value: float

    def __post_init__(self) -> None:
        at_least("value of Fixed", self.value)

    def quantile(self, level: Array) -> Array:
        """The value itself."""
        return np.full(np.shape(level), float(self.value))


@final
@dataclass(frozen=True)
class Uniform(Distribution):
    """From `low` to `high`, all equally likely.

    >>> Uniform(100, 300).quantile(np.array([0, 0.25, 1])).tolist()
    [100.0, 150.0, 300.0]
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        at_least("high of Uniform", self.high, at_least("low of Uniform", self.low))

    def quantile(self, level: Array) -> Array:
        """Linear between the ends."""
        return np.asarray(self.low + level * (self.high - self.low))


@final
@dataclass(frozen=True)
class LogNormal(Distribution):
    """exp(location + spread * normal): a long tail to the right. `LogNormal.of` takes what reports tell.

    >>> told = LogNormal.of(mean=200, p99=1000)
    >>> round(told.mean), round(told.quantile(np.array([0.99]))[0])
    (200, 1000)
    """

    location: float
    spread: float

    def __post_init__(self) -> None:
        at_least("spread of LogNormal", self.spread)

    @property
    def mean(self) -> float:
        """The mean: exp(location + spread^2 / 2)."""
        return math.exp(self.location + self.spread**2 / 2)

    @classmethod
    def of(cls, mean: float | None = None, **percentiles: float) -> LogNormal:
        """That of a mean and one percentile, or of two percentiles (`p50=300, p90=900`).

        With a mean, ln(p / mean) = z s - s^2 / 2 has two roots; the smaller spread is taken. Raises InputError for
        figures that no such distribution has.
        """
        told = {_level(name): math.log(above(name, value)) for name, value in percentiles.items()}
        if len(told) + (mean is not None) != 2:
            raise InputError("LogNormal.of takes two of mean, p50, p90, p99 and the like")
        normal = NormalDist()
        (z, high), *rest = ((normal.inv_cdf(level), value) for level, value in told.items())
        if mean is None:
            spread = (high - rest[0][1]) / (z - rest[0][0])
        else:
            gap = high - math.log(above("mean", mean))
            if gap > z * z / 2 or (z <= 0 and gap > 0):
                raise InputError(f"no log-normal has a mean of {mean:g} and {percentiles}: the percentile is too high")
            root = math.sqrt(max(z * z - 2 * gap, 0.0))
            spread = z - root if z - root >= 0 else z + root
            if spread > WIDEST:
                raise InputError(f"no usual sizes have a mean of {mean:g} and {percentiles}: the percentile is too low")
        if not spread >= 0:
            raise InputError(f"no log-normal has {percentiles}: the higher percentile must be the larger")
        return cls(high - z * spread, spread)

    def quantile(self, level: Array) -> Array:
        """exp(location + spread z) with z the normal quantile."""
        normal = NormalDist()
        inside = np.clip(level, 1e-12, 1 - 1e-12)
        z = np.array([normal.inv_cdf(one) for one in inside.ravel()], np.float64).reshape(np.shape(level))
        return np.asarray(np.exp(self.location + self.spread * z))


def _level(name: str) -> float:
    """The level of a name such as p99. Raises InputError for another name."""
    digits = name[1:].replace("_", ".")
    if name[:1] != "p" or not digits.replace(".", "", 1).isdigit() or not 0 < float(digits) < 100:
        raise InputError(f"{name} is no percentile; say p50, p90, p99 or the like")
    return float(digits) / 100


@final
@dataclass(frozen=True)
class Empirical(Distribution):
    """Values that were seen, each with its share (all alike by default).

    >>> Empirical([10, 20, 30], [1, 2, 1]).quantile(np.array([0.1, 0.3, 0.7, 0.9])).tolist()
    [10.0, 20.0, 20.0, 30.0]
    """

    values: Sequence[float]
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        shares = [1.0] * len(self.values) if self.shares is None else self.shares
        for value in self.values:
            at_least("value of Empirical", value)
        if len(shares) != len(self.values) or not sum(at_least("share of Empirical", one) for one in shares):
            raise InputError("Empirical needs one share of at least 0 for each value, and one above 0")

    def quantile(self, level: Array) -> Array:
        """The value at which the shares, in order of the values, reach the level."""
        values = np.asarray(self.values, np.float64)
        shares = np.ones(len(values)) if self.shares is None else np.asarray(self.shares, np.float64)
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(shares[order]) / shares.sum()
        return values[order][np.minimum(np.searchsorted(reached, level, side="left"), len(values) - 1)]
