"""Queues in closed form: stations with several servers, a chain of states, closed networks. No engine, no requests.

Sources: Little 1961 (L = rate * time); Erlang 1917 and Allen & Cunneen (waits of M/G/c); Whitt 1983 (stations in
series); Cohen 1979 (processor sharing whose speed depends on the number is insensitive to all but the mean of the
work); Buzen 1973 (convolution).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from modelmeter.serving.numbers import Array


def waits_at_all(offered: float, servers: int) -> float:
    """Erlang's C: the share of arrivals that find all servers busy, for `offered` = rate * mean service < servers.

    >>> waits_at_all(0.5, 1), round(waits_at_all(1.0, 2), 4)
    (0.5, 0.3333)
    """
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = offered * blocked / (server + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


@final
@dataclass(frozen=True)
class Station:
    """Servers that share one queue, first come first served: seconds of service, mean and squared variation.

    >>> Station(1.0, 0.0).wait(0.5), Station(1.0, 1.0).wait(0.5)  # M/D/1 and M/M/1
    (0.5, 1.0)
    """

    service_s: float
    variation: float = 0.0
    servers: int = 1

    @classmethod
    def of(cls, times: Array, servers: int = 1) -> Station:
        """That of the service times of equally likely requests."""
        mean = float(times.mean())
        return cls(mean, float(times.var() / mean**2) if mean else 0.0, servers)

    @property
    def most(self) -> float:
        """The greatest rate, in requests a second."""
        return self.servers / self.service_s if self.service_s else float("inf")

    def wait(self, rate: float, burstiness: float = 1.0) -> float:
        """The mean wait before service: Erlang's C, scaled by the variations of arrivals and service; inf if too much.

        Arrivals that are smoother than random wait less still (Kraemer and Langenbach-Belz).
        """
        if not self.service_s:
            return 0.0
        if rate >= self.most:
            return float("inf")
        load, both = rate / self.most, burstiness + self.variation
        smooth = 2 * (1 - load) / (3 * load) * max(0.0, 1 - burstiness) ** 2 / max(both, 1e-9)
        return waits_at_all(rate * self.service_s, self.servers) / (self.most - rate) * both / 2 * math.exp(-smooth)

    def leaving(self, rate: float, burstiness: float) -> float:
        """The burstiness of what leaves it (Whitt 1983, the queueing network analyzer)."""
        load = min(rate / self.most, 1.0)
        served = load**2 * (max(self.variation, 0.2) - 1) / math.sqrt(self.servers)
        return max(1 + (1 - load**2) * (burstiness - 1) + served, 0.0)

    def waits(self, rate: float) -> float:
        """The share of requests that wait."""
        return waits_at_all(rate * self.service_s, self.servers) if self.service_s and rate < self.most else 0.0


@final
@dataclass(frozen=True)
class Chain:
    """How many are in the system: `share` of the time with 0, 1, ..., N inside, and a geometric tail that waits.

    `share` are the shares of 0 ... N with N the most that are served at once; `ratio` is that of neighbours beyond.
    """

    share: Array
    ratio: float

    @classmethod
    def of(cls, rate: float, leaving: Array, most: float, clusters: float = 1.0) -> Chain:
        """The balance of arrivals at `rate` with departures at `leaving[n - 1]` from n = 1 ... N, `most` beyond N.

        With `clusters` above 1 the number varies so many times more, as where arrivals come in clusters: the drift
        stays and the noise grows, as in a diffusion, so that each step of the logarithm of the share is so many times
        smaller.

        >>> chain = Chain.of(1.0, np.arange(1.0, 40.0) / 9, 100.0)  # M/M/infinity: a Poisson distribution
        >>> round(chain.served, 6), round(chain.waiting, 6)
        (9.0, 0.0)
        """
        at = np.arange(1, len(leaving) + 1)
        moved = np.interp(at + (clusters - 1) / 2, at, leaving) if clusters > 1 else leaving
        steps = (np.log(max(rate, 1e-300)) - np.log(np.maximum(moved, 1e-300))) / clusters
        logs = np.concatenate(([0.0], np.cumsum(steps)))
        weights = np.exp(logs - logs.max())
        ratio = min(rate / most, 1 - 1e-9)
        total = weights.sum() + weights[-1] * ratio / (1 - ratio)
        return cls(weights / total, ratio)

    @property
    def served(self) -> float:
        """How many are served, on average."""
        inside = np.arange(len(self.share)) @ self.share
        return float(inside + (len(self.share) - 1) * self.queues)

    @property
    def queues(self) -> float:
        """The share of the time with somebody waiting."""
        return float(self.share[-1] * self.ratio / (1 - self.ratio))

    @property
    def waiting(self) -> float:
        """How many wait, on average."""
        return self.queues / (1 - self.ratio)

    @property
    def shares(self) -> Array:
        """The shares of 0 ... N being served; all of the tail is N."""
        shares = self.share.copy()
        shares[-1] += self.queues
        return shares


def closed_rates(stations: list[Array]) -> Array:
    """The rates of a closed network with 1 ... N users, by convolution (Buzen).

    Each station is the rate at which it serves when 1 ... N are there.

    >>> closed_rates([np.array([1.0, 1.0]), np.array([1.0, 1.0])]).round(4).tolist()
    [0.5, 0.6667]
    """
    scale = min(float(rates.max()) for rates in stations)  # the slowest: what others add then falls with their number
    total = np.ones(1)
    for rates in stations:
        factors = np.concatenate(
            ([1.0], np.exp(-np.cumsum(np.log(np.maximum(rates / scale, 1e-300)), dtype=np.longdouble)))
        )
        total = factors if len(total) == 1 else np.convolve(total, factors)[: len(factors)]
    return np.asarray(scale * total[:-1] / total[1:], np.float64)
