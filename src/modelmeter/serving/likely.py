"""Percentiles of a closed form: what a spread sample of requests meets, from the means of the queues.

A wait is none with some share and exponential else; the rest of a step is uniform; a request's seconds a token vary
with the batch that it meets and with the prompts that come between. Approximate, the more so towards p99.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np

from modelmeter.serving.demand import Demand
from modelmeter.serving.engine_load import Arrivals
from modelmeter.serving.numbers import Array
from modelmeter.serving.served import Spread


@cache
def _normal(count: int) -> Array:
    """Normal quantiles that are spread evenly."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])


class Likely:
    """A sample of requests, and levels between 0 and 1 that are spread evenly and independent of each other."""

    def __init__(self, count: int) -> None:
        self.count, self._random = count, np.random.default_rng(0)

    def level(self) -> Array:
        """Another column of levels."""
        return (self._random.permutation(self.count) + 0.5) / self.count

    def wait(self, mean: float, share: float) -> Array:
        """Waits of a mean, which a share of the requests have."""
        if mean <= 0 or share <= 1e-9:
            return np.zeros(self.count)
        level = self.level()
        waits = np.where(level < share, -np.log(np.clip(level / share, 1e-12, 1.0)), 0.0)
        return np.asarray(waits * mean / max(waits.mean(), 1e-300))

    def first_s(self, of: Demand, there: Arrivals) -> Array:
        """Seconds from the engine's door to the first token."""
        own = of.unshared_s * there.mean(there.states.first_s) / of.unshared_s.mean()
        queue = there.mean(there.states.queue_s)
        rest = min(queue, there.mean(there.states.token_s) / 2 * there.busy)
        among = self.wait(queue - rest, there.prefilling) + 2 * rest * self.level()
        return np.asarray(own + among + self.wait(there.wait_s, there.crowd.queues))

    def token_s(self, of: Demand, there: Arrivals, mean: float) -> Array:
        """Seconds a further token, of each request: what all have, and what it loses to prompts after its own.

        Each step of prompts brings as many as come during it, and so on: the longer a request decodes, the more.
        """
        states, steps = there.states, np.maximum(of.requests.steps, 1)
        if not mean:
            return np.zeros(self.count)
        slow = there.met((states.token_s - there.met(states.token_s)) ** 2)
        spread = np.sqrt(np.log1p((slow + there.met(states.jitter) / steps) / mean**2))
        found = np.exp(spread * self._random.permutation(_normal(self.count)) - spread**2 / 2)
        stall = there.met(states.stall_s)
        lost = np.minimum(stall * (1 - there.met(states.slowed) ** steps) / steps, there.met(states.mixed_s))
        return np.asarray(max(mean - stall / of.steps, 0.0) * found / found.mean() + lost)


def spread_of(values: Array, mean: float | None = None) -> Spread:
    """Mean and percentiles of a sample, with the exact mean where it is known."""
    found = Spread.of(values)
    return found if mean is None else Spread(mean, found.p50, found.p90, found.p99)
