"""A service event by event: the same requests, step times and policies as the closed form, and none of its formulas.

It needs SimPy (the extra `simulation`). Engines are processes that plan a step, wait for as long as it takes and hand
out tokens (`engine_process.py`); this module makes the requests arrive, routes them and measures. It answers what the
closed form only approximates: percentiles near saturation, bursts of a trace, requests in lockstep.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.serving.engine_process import Asked, EngineProcess, environment
from modelmeter.serving.numbers import Array, above, seconds, whole
from modelmeter.serving.requests import Mix, Requests
from modelmeter.serving.served import Served, Spread
from modelmeter.serving.service import Service


@final
@dataclass(frozen=True)
class Simulation:
    """A run of `count` requests, of which the first `warm` share and those after the last arrival are not measured.

    The load is one of `rate` (requests a second, Poisson), `concurrency` (users who ask again at once) or neither: the
    arrivals of a trace, or all at once for a mix. Raises InputError for a load that is none.
    """

    service: Service
    asked: Mix | Requests
    rate: float | None = None
    concurrency: int | None = None
    count: int = 4000
    warm: float = 0.2
    seed: int = 1
    done: list[Asked] = field(default_factory=list, init=False, repr=False)

    def run(self) -> Served:
        """Simulate, and measure."""
        if self.rate is not None and self.concurrency is not None:
            raise InputError("give a rate or a concurrency, not both")
        random = np.random.default_rng(self.seed)
        asked, arrivals = self._requests(random)
        world = environment()
        stations = _Stations(world, self.service, random)
        if self.concurrency is None:
            world.process(_arrive(world, stations, asked, arrivals))
        else:
            queue = iter(asked)
            for _ in range(whole("concurrency", self.concurrency)):
                world.process(_user(world, stations, queue))
        world.run()
        return self._measure(asked, stations)

    def _requests(self, random: np.random.Generator) -> tuple[list[Asked], Array]:
        """What is asked, drawn from the mix or in the order of the trace, and when."""
        count = whole("count", self.count, 2)
        if isinstance(self.asked, Mix):
            rows = self.asked.requests(count, self.seed)
        else:
            traced = self.rate is None and self.concurrency is None and self.asked.arrival_s is not None
            rows = self.asked if traced else self.asked.take(random.integers(len(self.asked), size=count))
        times = self.service.engine.times
        host = seconds("host", times.host(rows), rows.output_tokens)
        vision = seconds("vision", times.vision(rows), rows.output_tokens)
        asked = [
            Asked(int(i), int(p), int(o), float(g), float(h), float(v))
            for i, p, o, g, h, v in zip(
                rows.image_tokens, rows.prefill_tokens, rows.output_tokens, rows.pages, host, vision, strict=True
            )
        ]
        if rows.arrival_s is not None:
            return asked, rows.arrival_s - rows.arrival_s[0]
        span = 0.0 if self.rate is None else len(asked) / above("rate", self.rate)
        return asked, np.sort(random.random(len(asked))) * span

    def _measure(self, asked: list[Asked], stations: _Stations) -> Served:
        """Figures of the requests in the middle, and of the time in which these arrive or, all at once, are done."""
        asked = [one for one in asked if one.end == one.end]  # a static batch that is never full is not served
        start, stop = self._window(asked)
        inside = [one for one in asked if start <= one.end < stop]
        came = [one for one in asked if start <= one.arrival < stop] or asked
        span = max(stop - start, 1e-12)
        answered = [one for one in came if one.output > 1]
        return Served(
            requests_per_s=len(inside) / span,
            output_tokens_per_s=sum(one.output for one in inside) / span,
            pages_per_s=sum(one.pages for one in inside) / span,
            ttft_s=Spread.of(np.array([one.first - one.arrival for one in came])),
            tpot_s=Spread.of(np.array([(one.end - one.first) / (one.output - 1) for one in answered])),
            e2e_s=Spread.of(np.array([one.end - one.arrival for one in came])),
            batch=float(np.mean([engine.mean_batch(start, stop) for engine in stations.engines])),
            waiting=sum(_held(one.queued, one.admitted, start, stop) for one in asked) / span / len(stations.engines),
            utilisation=stations.utilisation(start, stop),
            preempted=sum(one.preempted for one in came) / len(came),
        )

    def _window(self, asked: list[Asked]) -> tuple[float, float]:
        """The time that is measured: to the last answer, as benchmarks tell it, where nothing is to be warm."""
        ends, arrivals = np.sort([one.end for one in asked]), np.sort([one.arrival for one in asked])
        if not self.warm:
            return float(arrivals[0]), float(np.nextafter(ends[-1], np.inf))
        if self.rate is None and self.concurrency is None and arrivals[0] == arrivals[-1]:
            return float(ends[int(self.warm * len(ends))]), float(ends[int((1 - self.warm) * len(ends))])
        return float(arrivals[int(self.warm * len(arrivals))]), float(arrivals[-1])


def _held(begin: float, end: float, start: float, stop: float) -> float:
    """Seconds of an interval inside a window."""
    return max(0.0, min(end, stop) - max(begin, start))


def _arrive(world: Any, stations: _Stations, asked: list[Asked], arrivals: Array) -> Generator[Any, Any, None]:
    for one, when in zip(asked, arrivals, strict=True):
        if when > world.now:
            yield world.timeout(when - world.now)
        world.process(stations.serve(one))


def _user(world: Any, stations: _Stations, queue: Iterator[Asked]) -> Generator[Any, Any, None]:
    """One who asks again as soon as the answer is there."""
    for one in queue:
        yield world.process(stations.serve(one))


class _Stations:
    """The stations of a service, and the way of a request through them."""

    def __init__(self, world: Any, service: Service, random: np.random.Generator) -> None:
        from simpy import Resource

        self.world, self.service, self.random, self.turn = world, service, random, -1
        self.busy: dict[str, list[tuple[float, float]]] = {}
        apart, engine = service.apart, service.engine
        self.engines = [EngineProcess(world, engine) for _ in range(apart.decode if apart else service.replicas)]
        self.hosts = [Resource(world, engine.host_threads) for _ in range(1 if apart else service.replicas)]
        if apart:
            links = dict.fromkeys(("to prefill", "to decode"), apart.links)
            sizes = {"vision": apart.vision, "prefill": apart.prefill} | links
            self.shared = {name: Resource(world, size) for name, size in sizes.items() if size}

    def serve(self, one: Asked) -> Generator[Any, Any, None]:
        """The whole way of a request."""
        one.arrival = self.world.now
        which = self._route()
        yield from self._stay("host", self.hosts[which if not self.service.apart else 0], one.host)
        if self.service.apart:
            yield from self._apart(one)
        if not self.service.apart or one.output > 1:
            yield self.engines[which].submit(one)
        else:
            one.queued = one.admitted = one.end = self.world.now

    def _route(self) -> int:
        if self.service.routing == "random":
            return int(self.random.integers(len(self.engines)))
        self.turn = (self.turn + 1) % len(self.engines)
        return self.turn

    def _apart(self, one: Asked) -> Generator[Any, Any, None]:
        """Vision, link and prefill up to the first token, and the link to the decode."""
        apart, engine = self.service.apart, self.service.engine
        assert apart is not None
        if apart.vision:
            yield from self._stay("vision", self.shared["vision"], one.vision)
            sent = one.image * apart.embedding_bytes_per_token / apart.link_bytes_per_s
            yield from self._stay("to prefill", self.shared["to prefill"], sent + apart.link_s)
        alone = 0.0 if apart.vision else one.vision
        yield from self._stay("prefill", self.shared["prefill"], alone + self._whole_prefill(one.prefill))
        one.first, one.prefilled, one.seen = self.world.now, True, 1
        if one.output > 1:
            kept = float(engine.kv_bytes_of(np.array(one.prefill)))
            yield from self._stay("to decode", self.shared["to decode"], kept / apart.link_bytes_per_s + apart.link_s)

    def _whole_prefill(self, tokens: int) -> float:
        """Seconds of a prompt, in chunks where it is longer than a step."""
        most, done, total = self.service.engine.max_batched_tokens, 0, 0.0
        while done < tokens:
            new = min(most, tokens - done)
            total += float(self.service.engine.times.prefill(np.float64(new), np.float64(done)))
            done += new
        return total

    def _stay(self, name: str, station: Any, time: float) -> Generator[Any, Any, None]:
        if time <= 0:
            return
        with station.request() as turn:
            yield turn
            begin = self.world.now
            yield self.world.timeout(time)
            self.busy.setdefault(name, []).append((begin, self.world.now))

    def utilisation(self, start: float, stop: float) -> dict[str, float]:
        """The share of the time that each kind of station is busy."""
        span, count = max(stop - start, 1e-12), len(self.engines)
        many = {"host": sum(host.capacity for host in self.hosts)}
        if self.service.apart:
            many |= {name: station.capacity for name, station in self.shared.items()}
        shares = {
            name: sum(_held(*one, start, stop) for one in spans) / span / many[name]
            for name, spans in self.busy.items()
        }
        engine = sum(one.busy(start, stop) for one in self.engines) / span / count
        return shares | {"decode" if self.service.apart else "engine": engine}
