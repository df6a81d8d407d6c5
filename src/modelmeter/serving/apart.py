"""Vision, prefill and decode on devices of their own, with links between: stations in series, in closed form.

Each station is taken alone, with arrivals at random: what leaves one is smoother than that where it is busy, so that
the waits behind a busy station are somewhat too long.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from modelmeter.serving.demand import Demand
from modelmeter.serving.numbers import Array
from modelmeter.serving.queues import Chain, Station
from modelmeter.serving.service import Apart


@final
@dataclass(frozen=True, eq=False)
class ApartLoad:
    """The stations of a service and what is asked of them."""

    demand: Demand
    apart: Apart

    @cached_property
    def times(self) -> dict[str, Array]:
        """Seconds of each request at each station before the decode, in order."""
        of, apart, tokens = self.demand, self.apart, self.demand.requests.prefill_tokens
        sent = of.requests.image_tokens * apart.embedding_bytes_per_token / apart.link_bytes_per_s + apart.link_s
        kept = of.engine.kv_bytes_of(tokens) / apart.link_bytes_per_s + apart.link_s
        kept = np.where(of.requests.steps > 0, kept, 0.0)
        if not apart.vision:
            return {"prefill": of.unshared_s, "to decode": kept}
        return {"vision": of.vision, "to prefill": sent, "prefill": of.unshared_s - of.vision, "to decode": kept}

    @cached_property
    def stations(self) -> dict[str, Station]:
        """The stations before the decode, in order."""
        servers = {"vision": self.apart.vision, "prefill": self.apart.prefill}
        return {name: Station.of(times, servers.get(name, self.apart.links)) for name, times in self.times.items()}

    @cached_property
    def seats(self) -> int:
        """How many a decode device serves at once."""
        of, engine = self.demand, self.demand.engine
        kv = (engine.kv_bytes - of.unfilled) / of.held[1] if of.held[1] else np.inf
        return max(1, int(min(float(engine.max_num_seqs), kv)))

    @cached_property
    def token_s(self) -> Array:
        """Seconds of a decode step of 1, 2, ... `seats`."""
        return self.demand.decode_s(np.arange(1.0, self.seats + 1))

    @cached_property
    def decode_rates(self) -> Array:
        """The rate of a decode device with 1, 2, ... `seats` requests; infinite where none decodes."""
        if not self.demand.steps:
            return np.full(self.seats, np.inf)
        return np.arange(1, self.seats + 1) / (self.demand.steps * self.token_s)

    @cached_property
    def most(self) -> dict[str, float]:
        """The greatest rate of each station."""
        before = {name: station.most for name, station in self.stations.items()}
        return before | {"decode": float(self.decode_rates[-1]) * self.apart.decode}

    def chain(self, rate: float, burstiness: float) -> tuple[Chain, float, float]:
        """The decodes of one device, the share of the time with somebody waiting for it, and how many do."""
        of, most = self.demand, float(self.decode_rates[-1])
        held = of.held_variation if self.seats < of.engine.max_num_seqs else 0.0
        crowd = Chain.of(rate, self.decode_rates, most, 1 + held)
        waiting = crowd.waiting * (burstiness + of.work_variation) / 2
        return Chain.of(rate, self.decode_rates, most), crowd.queues, waiting
