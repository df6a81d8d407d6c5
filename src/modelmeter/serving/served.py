"""What a service does at a load: the same figures from the closed form and from the simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np

from modelmeter.serving.numbers import Array


@final
@dataclass(frozen=True)
class Spread:
    """Mean and percentiles over requests."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Array) -> Spread:
        """Those of values that were seen; nan where none was."""
        if not len(values):
            return cls(*[float("nan")] * 4)
        ranked, places = np.sort(values), np.array((0.5, 0.9, 0.99)) * (len(values) - 1)
        below = places.astype(int)
        above = np.minimum(below + 1, len(values) - 1)
        found = ranked[below] + (places - below) * (ranked[above] - ranked[below])
        return cls(float(values.mean()), *(float(one) for one in found))

    def at(self, level: str) -> float:
        """The figure by its name: mean, p50, p90 or p99."""
        return float(getattr(self, level))


@final
@dataclass(frozen=True)
class Served:
    """A service at a load, over all its replicas, in the steady state.

    `ttft_s` from arrival to the first token, all queues and the host included; `tpot_s` seconds a further token, a
    request's mean, over requests with two tokens or more; `e2e_s` to the last token. `batch` is the mean number of
    decodes of a replica, in time; `waiting` that of its requests that wait for admission. `utilisation` is the share
    of the time that a station is busy, by station; `binds` the station that limits, `steady` whether the load is borne:
    where not, the figures are those of the greatest load and the times infinite.
    """

    requests_per_s: float
    output_tokens_per_s: float
    pages_per_s: float
    ttft_s: Spread
    tpot_s: Spread
    e2e_s: Spread
    batch: float
    waiting: float
    utilisation: dict[str, float] = field(default_factory=dict)
    binds: str = ""
    steady: bool = True
    preempted: float = 0.0
    """How many times a request gives its blocks up, on average."""

    @property
    def pages_per_day(self) -> float:
        """Pages in 24 hours."""
        return self.pages_per_s * 86400
