"""A service under load, in closed form: the way of a request through all stations.

`ClosedForm(service, mix)` answers `at(rate)`, `users(concurrency)` and `most_load()` in milliseconds. What it assumes
and how far it is from a simulation: docs/serving.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.serving.apart import ApartLoad
from modelmeter.serving.demand import Demand
from modelmeter.serving.engine_load import EngineLoad
from modelmeter.serving.likely import Likely, spread_of
from modelmeter.serving.numbers import Array, above, seconds, whole
from modelmeter.serving.queues import Station, closed_rates
from modelmeter.serving.requests import Mix, Requests
from modelmeter.serving.served import Served, Spread
from modelmeter.serving.service import Service
from modelmeter.serving.static import static_rate

SAMPLE = 2048
"""Requests that stand for a mix or a long trace."""
UNKNOWN, NEVER = float("nan"), float("inf")


@final
@dataclass(frozen=True, eq=False)
class ClosedForm:
    """A service and what is asked of it: a mix, or the requests of a trace, whose bursts count.

    >>> from modelmeter.serving import Engine, Fixed, Mix, Service, StepTimes
    >>> times = StepTimes(prefill=lambda new, cached: 2e-5 * new, decode=lambda batch, context: 0.01 + 1e-4 * batch)
    >>> answer = ClosedForm(Service(Engine(times)), Mix(prompt=Fixed(500), output=Fixed(101)))
    >>> served = answer.at(2.0)
    >>> served.steady, served.output_tokens_per_s, round(served.tpot_s.mean, 4)
    (True, 202.0, 0.0103)
    """

    service: Service
    asked: Mix | Requests

    @cached_property
    def requests(self) -> Requests:
        """The requests that stand for all."""
        if isinstance(self.asked, Mix):
            return self.asked.requests(SAMPLE)
        if len(self.asked) <= SAMPLE:
            return self.asked.take(slice(None))
        order = np.argsort(self.asked.prefill_tokens, kind="stable")
        return self.asked.take(order[np.linspace(0, len(order) - 1, SAMPLE).astype(int)])

    @cached_property
    def demand(self) -> Demand:
        """What the requests ask of an engine."""
        return Demand(self.service.engine, self.requests)

    @cached_property
    def load(self) -> EngineLoad:
        """One engine under load."""
        return EngineLoad(self.demand)

    @cached_property
    def apart(self) -> ApartLoad | None:
        """The stations of their own, if there are any."""
        return ApartLoad(self.demand, self.service.apart) if self.service.apart else None

    @cached_property
    def host_s(self) -> Array:
        """Seconds of each request on one thread of the CPU."""
        return seconds("host", self.service.engine.times.host(self.requests), self.requests.output_tokens)

    @cached_property
    def host(self) -> Station:
        """The CPU of one replica."""
        return Station.of(self.host_s, self.service.engine.host_threads)

    @cached_property
    def most(self) -> dict[str, float]:
        """The greatest rate of each station, all replicas together, in requests a second."""
        if self.apart:
            return {"host": self.host.most} | self.apart.most
        static = self.service.engine.policy == "static"
        engine = static_rate(self.demand)[0] if static else float(self.load.most.rate[0])
        return {"host": self.host.most * self.service.replicas, "engine": engine * self.service.replicas}

    @property
    def greatest(self) -> float:
        """The greatest rate that the service bears, in requests a second."""
        return min(self.most.values())

    def at(self, rate: float) -> Served:
        """The service with random arrivals at `rate` requests a second, over all replicas.

        Raises InputError for a rate that is none, and for static batches, which are for work offline.
        """
        rate = above("rate", rate)
        if self.service.engine.policy == "static":
            raise InputError(
                "a static batch waits until it is full: ask for users or most_load, or choose another policy"
            )
        if rate >= self.greatest:
            return self._overloaded()
        return self._apart_at(rate) if self.apart else self._together_at(rate)

    def _served(self, rate: float, times: tuple[Spread, Spread, Spread], batch: float, waiting: float = 0.0,
                utilisation: dict[str, float] | None = None, steady: bool = True) -> Served:  # fmt: skip
        load = {name: rate / most for name, most in self.most.items() if most < NEVER}
        binds = max(load, key=lambda name: load[name]) if load else ""
        tokens, pages = float(self.requests.output_tokens.mean()), float(self.requests.pages.mean())
        return Served(rate, rate * tokens, rate * pages, *times, batch, waiting, utilisation or load, binds, steady)

    def _overloaded(self) -> Served:
        never = Spread(NEVER, NEVER, NEVER, NEVER)
        batch = float(self.apart.seats) if self.apart else float(self.load.most.batch[0])
        return self._served(self.greatest, (never, never, never), batch, NEVER, steady=False)

    def _burstiness(self, stations: int) -> float:
        """That of the arrivals at one of several stations: in turn they come more evenly than at random."""
        of_all = self.asked.burstiness if isinstance(self.asked, Requests) else 1.0
        return of_all / stations if self.service.routing == "round_robin" else 1 + (of_all - 1) / stations

    def _together_at(self, rate: float) -> Served:
        """One engine for all stages, `replicas` times."""
        own, burstiness = rate / self.service.replicas, self._burstiness(self.service.replicas)
        there = self.load.arrivals(own, self.host.leaving(own, burstiness))
        of, steps = self.demand, self.demand.steps
        likely, batch = Likely(len(self.requests)), there.chain.served
        host = self.host.wait(own, burstiness)
        mean = there.mean(there.states.queue_s + there.states.first_s) + there.wait_s + host + self.host.service_s
        token = batch / own / steps if steps else 0.0
        first = likely.first_s(of, there) + likely.wait(host, self.host.waits(own)) + self.host_s
        tokens = likely.token_s(of, there, token)
        times = self._times(first, mean, tokens, token)
        utilisation = {"host": own / self.host.most, "engine": there.busy}
        return self._served(rate, times, batch, there.waiting, utilisation)

    def _times(self, first: Array, mean: float, tokens: Array, token: float) -> tuple[Spread, Spread, Spread]:
        """The spreads of TTFT, TPOT and end to end."""
        answers = self.requests.steps > 0
        tpot = Spread.of(tokens[answers])
        steps = self.requests.steps
        return spread_of(first, mean), tpot, spread_of(first + steps * tokens, mean + self.demand.steps * token)

    def _apart_at(self, rate: float) -> Served:
        """Stations of their own, one after another."""
        assert self.apart and self.service.apart
        likely, steps = Likely(len(self.requests)), self.requests.steps
        stations = {"host": self.host} | self.apart.stations
        own = {"host": self.host_s} | self.apart.times
        reached, burstiness = {}, self._burstiness(1)
        for name, station in stations.items():
            reached[name] = own[name] + likely.wait(station.wait(rate, burstiness), station.waits(rate))
            burstiness = station.leaving(rate, burstiness)
        first = np.sum([times for name, times in reached.items() if name != "to decode"], axis=0)
        decoding = rate / self.service.apart.decode * float((steps > 0).mean())
        if not decoding:
            return self._served(rate, self._times(first, float(first.mean()), 0 * first, 0.0), 0.0)
        chain, queues, waiting = self.apart.chain(decoding, burstiness)
        token = chain.served / (rate / self.service.apart.decode) / self.demand.steps
        step = float(np.interp(chain.served, np.arange(1, self.apart.seats + 1), self.apart.token_s))
        begins = (
            reached["to decode"]
            + likely.wait(waiting / decoding, queues)
            + step * likely.level() * (1 - chain.share[0])
        )
        some = steps > 0
        tpot = token + np.where(some, begins / np.maximum(steps, 1), 0.0)
        times = (spread_of(first), spread_of(tpot[some]), spread_of(first + steps * tpot))
        utilisation = {name: rate / station.most for name, station in stations.items()}
        return self._served(rate, times, chain.served, waiting, utilisation | {"decode": 1 - float(chain.share[0])})

    def users(self, concurrency: int) -> Served:
        """The service with so many users who ask again as soon as they are answered; percentiles are not told (nan).

        Users are spread evenly over the replicas. Raises InputError for a number that is none.
        """
        count = whole("concurrency", concurrency)
        if self.service.engine.policy == "static":
            return self.most_load()
        if self.apart:
            return self._users_apart(count)
        own = max(count / self.service.replicas, 1.0)
        engine = self.load.users(np.array([own]))
        rate, token = float(engine.rate[0]), float(engine.token_s[0])
        if self.host.service_s:
            every = np.arange(1.0, np.ceil(own) + 1)
            alone = self.load.users(every)
            threads = np.minimum(every, self.host.servers) / self.host.service_s
            rate = float(np.interp(own, every, closed_rates([alone.rate, threads])))
            there = float(np.interp(rate, np.maximum.accumulate(alone.rate), every))
            token = float(self.load.users(np.array([there])).token_s[0])
        return self._steady(
            rate * min(count, self.service.replicas), own / rate, token, rate * token * self.demand.steps
        )

    def _users_apart(self, count: int) -> Served:
        assert self.apart and self.service.apart
        every, parts = np.arange(1, count + 1), self.service.apart.decode
        rates = [np.minimum(every, s.servers) / s.service_s
                 for s in (self.host, *self.apart.stations.values()) if s.service_s]  # fmt: skip
        if self.demand.steps:
            each = np.interp(every / parts, np.arange(1, self.apart.seats + 1), self.apart.decode_rates)
            rates.append(each * np.minimum(every, parts))
        rate = float(closed_rates(rates)[-1]) if rates else NEVER
        inside = float(np.interp(rate / parts, self.apart.decode_rates, np.arange(1, self.apart.seats + 1)))
        token = float(np.interp(inside, np.arange(1, self.apart.seats + 1), self.apart.token_s))
        return self._steady(rate, count / rate, token, rate / parts * token * self.demand.steps)

    def _steady(self, rate: float, whole_s: float, token: float, batch: float) -> Served:
        told = (whole_s - self.demand.steps * token, token, whole_s)
        return self._served(rate, tuple(Spread(mean, *[UNKNOWN] * 3) for mean in told), batch)  # type: ignore[arg-type]

    def most_load(self) -> Served:
        """The service when more requests wait than it can begin ("max load", offline): the times from admission on."""
        rate, stations = self.greatest, self.service.replicas
        if self.apart:
            return self._steady(rate, NEVER, float(self.apart.token_s[-1]), float(self.apart.seats))
        if self.service.engine.policy == "static":
            return self._steady(rate, NEVER, UNKNOWN, static_rate(self.demand)[1])
        engine = self.load.most
        if self.most["host"] < self.most["engine"]:
            count = np.geomspace(1, float(engine.count[0]) + 1, SAMPLE // 16)
            table = self.load.users(count)
            there = float(np.interp(rate / stations, np.maximum.accumulate(table.rate), count))
            engine = self.load.users(np.array([there]))
        first, token = float(engine.first_s[0]), float(engine.token_s[0])
        return self._steady(rate, first + self.demand.steps * token, token, float(engine.batch[0]))
