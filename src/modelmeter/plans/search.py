"""The search: devices, forms, stations and limits of batches, each with the fewest devices that bear the load.

What a choice bears at most is asked first: one that by this alone is dearer than the best plan of its device is not
planned. Where the room for KV is short, fewer requests at once bear more, so that smaller limits are asked as long as
they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, hypot
from typing import Any, final

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.host import Host
from modelmeter.plans.asked import Asked
from modelmeter.plans.forms import ALL, TOGETHER, Form
from modelmeter.plans.reasons import Refused, alike
from modelmeter.plans.spread import ENDS, Spread
from modelmeter.progress import watched
from modelmeter.seconds.shapes import weights_alone
from modelmeter.serving import Apart, Engine, Service
from modelmeter.serving.plan import Candidate, Plan, answer_of, loaded, planned
from modelmeter.serving.served import Served
from modelmeter.serving.served import Spread as Times
from modelmeter.serving.targets import Targets

LINK_S = 1e-5
"""Of a transfer between devices, however few bytes: where the law of transfers starts."""
LOOKED_AT = 2
"""Choices of each device that are planned in any case."""


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """A device in a form with its stations and limits, its engines at the ends of all step times, seconds to fill its
    pipeline at these, and its bound: devices, or their money, that the load takes at least (without a load: a page a
    second). `alone` are units that the device lacks: formats of weights alone."""

    device: Device
    form: Form
    apart: str
    batched: int
    limit: int
    candidate: Candidate
    ends: Mapping[str, Engine]
    fills: Mapping[str, float]
    bound: float
    alone: Sequence[str] = ()

    @property
    def fill_s(self) -> float:
        """Seconds to fill the pipeline."""
        return self.fills["point"]

    def at(self, end: str) -> list[Choice]:
        """The choice with the steps of the device at an end, and with the images of the host there: their errors are
        independent, as in `Times`."""
        usual, there, one = self.ends["point"].times, self.ends[end].times, self.candidate
        steps, images = replace(there, host=usual.host), replace(usual, host=there.host)
        engines = (replace(one.service.engine, times=times) for times in (steps, images))
        found = [replace(one, service=replace(one.service, engine=engine)) for engine in engines]
        filled = {**self.fills, "point": self.fills[end]}
        return [replace(self, candidate=found[0], fills=filled), replace(self, candidate=found[1])]

    def time(self, served: Served, name: str) -> Times:
        """TTFT or TPOT (ttft_s, tpot_s), what a pipeline takes to fill included."""
        found: Times = getattr(served, name)
        fill = self.fill_s if name == "ttft_s" else 0.0
        return Times(*(getattr(found, level) + fill for level in ("mean", "p50", "p90", "p99")))


@final
@dataclass(frozen=True, eq=False)
class Offer:
    """A choice and the plan that came of it."""

    choice: Choice
    plan: Plan
    value: float
    search: Search

    @cached_property
    def ends(self) -> dict[str, list[tuple[Choice, Served]]]:
        """What the same devices do at the same load where the steps, or the images, are at their low or high end."""
        assert self.plan.served
        rate, apart = self.plan.served.requests_per_s / self.plan.replicas, self.plan.candidate.service.apart
        found: dict[str, list[tuple[Choice, Served]]] = {}
        for end in ENDS[::2]:
            for one in self.choice.at(end):
                candidate = replace(one.candidate, service=replace(one.candidate.service, apart=apart))
                answer = answer_of(candidate, self.plan.batch_limit, self.search.asked.requests)
                found.setdefault(end, []).append((one, answer.at(rate)))
        return found

    @cached_property
    def load(self) -> float:
        """The load as a share of the greatest that the station which binds bears, targets aside."""
        assert self.plan.served
        answer = answer_of(self.plan.candidate, self.plan.batch_limit, self.search.asked.requests)
        return self.plan.served.requests_per_s / self.plan.replicas / answer.greatest

    def devices(self, end: str) -> int:
        """How many devices it would take at an end; 0 where no number will do."""
        counts = [self.search.plan(one).devices for one in self.choice.at(end)]
        if not all(counts):
            return 0
        each = 1 if self.choice.candidate.service.apart else self.choice.form.devices
        return each * ceil(_combined(self.plan.devices, counts, end) / each)

    def times(self, name: str, end: str = "point") -> Times:
        """TTFT or TPOT (ttft_s, tpot_s), what a pipeline takes to fill included, at an end of the interval."""
        assert self.plan.served
        point = self.choice.time(self.plan.served, name)
        if end == "point":
            return point
        found = [one.time(served, name) for one, served in self.ends[end]]
        levels = ("mean", "p50", "p90", "p99")
        return Times(*(_combined(getattr(point, at), [getattr(one, at) for one in found], end) for at in levels))


def _combined(point: float, found: Sequence[float], end: str) -> float:
    """An end where independent causes, each alone, make a point these: their distances add up by squares.

    >>> _combined(5.0, [8.0, 9.0], "high"), _combined(5.0, [2.0, 5.0], "low")
    (10.0, 2.0)
    """
    sign = 1 if end == "high" else -1
    return point + sign * hypot(*(max(sign * (one - point), 0.0) for one in found))


@final
@dataclass(frozen=True, eq=False)
class Found:
    """The offers, the best first; those that will not do; what could not be asked; how many were not looked at."""

    offers: list[Offer]
    missed: list[Offer]
    refused: list[Refused]
    pruned: int

    @property
    def reasons(self) -> list[str]:
        """Why those that miss, and those that could not be asked, will not do: each reason once."""
        missed = (
            Refused(one.plan.reason, one.choice.device.name, str(one.choice.form), one.choice.apart, one.choice.limit)
            for one in self.missed
        )
        return alike([*missed, *self.refused])


@final
@dataclass(frozen=True, eq=False)
class Search:
    """What is asked, within which targets, and what is tried. `rate` is requests a second; None: the most.

    `prices` are money for an hour of a device, by its name; with them, plans are ranked by money. `count` is how many
    devices there are; None: as many as it takes, or one replica where the most is asked.
    """

    asked: Asked
    host: Host
    targets: Targets
    rate: float | None
    forms: Sequence[str] = ("tp1",)
    apart: Sequence[str] = (TOGETHER,)
    limits: Sequence[int] = (256,)
    batched: Sequence[int] = (8192,)
    host_threads: int = 1
    prices: Mapping[str, float] | None = None
    count: int | None = None

    def run(self, devices: Sequence[Device]) -> Found:
        """All choices, planned or refused."""
        refused = list[Refused]()
        spreads = list(self._spreads(refused))
        offers, tried = list[Offer](), 0
        for device in watched(devices, "devices", len(devices)):
            families = list(self._families(device, spreads, refused))
            tried += len(families) * len(self.limits)
            offers += self._looked_at(sorted(families, key=lambda one: one.bound), refused)
        good = sorted((one for one in offers if one.plan.devices), key=lambda one: (one.value, round(one.load, 2)))
        return Found(good, [one for one in offers if not one.plan.devices], refused, tried - len(offers))

    def _spreads(self, refused: list[Refused]) -> Iterator[Spread]:
        known: dict[Any, Any] = {}
        for text in self.forms:
            form = Form.of(text)
            for batched in self.batched:
                spread = Spread(self.asked, form, self.host, batched, known)
                try:
                    spread.require()
                except InputError as error:
                    refused.append(Refused(str(error), form=str(form)))
                    break
                yield spread

    def _families(self, device: Device, spreads: Sequence[Spread], refused: list[Refused]) -> Iterator[Choice]:
        """Each form with its stations, with the largest limit."""
        for spread in spreads:
            try:
                ends = spread.ends(device)
            except InputError as error:
                refused.append(Refused(str(error), device.name, str(spread.form)))
                continue
            for apart in self.apart:
                try:
                    yield self._choice(device, spread, ends, apart, max(self.limits))
                except InputError as error:
                    refused.append(Refused(str(error), device.name, str(spread.form), apart, max(self.limits)))

    def _choice(self, device: Device, spread: Spread, ends: Mapping[str, Engine], apart: str, limit: int) -> Choice:
        engine = replace(ends["point"], max_num_seqs=limit, host_threads=self.host_threads)
        stations = self._stations(apart, device, spread)
        service = Service(engine, devices_a_replica=spread.form.devices, apart=stations)
        price = None if self.prices is None else self.prices.get(device.name)
        candidate = Candidate(device.name, str(spread.form), service, price)
        fills, bound = {end: spread.fill_s(one) for end, one in ends.items()}, self._bound(candidate, limit)
        alone, tokens = weights_alone(device, spread.formats), spread.max_batched_tokens
        return Choice(device, spread.form, apart, tokens, limit, candidate, ends, fills, bound, alone)

    def _bound(self, candidate: Candidate, limit: int) -> float:
        """Devices that the load takes at least, or their money; without a load, for a page a second."""
        answer, service = answer_of(candidate, limit, self.asked.requests), candidate.service
        if self.rate is None:
            least = service.devices / (answer.greatest * self._pages)
        elif service.apart:
            most = {name: answer.most[name] for name in ("vision", "prefill", "decode") if name in answer.most}
            least = sum(self.rate // each + 1 for each in most.values()) * service.devices_a_replica
        else:
            least = (self.rate // answer.greatest + 1) * service.devices_a_replica
        return least * (candidate.price_an_hour or 1.0)

    def _stations(self, apart: str, device: Device, spread: Spread) -> Apart | None:
        """One device of each station, and the links between them. Raises InputError where there is none to count."""
        if apart == TOGETHER:
            return None
        if self.rate is None:
            raise InputError("stations apart are counted for a load: give pages_per_day or load")
        if apart == ALL and not self.asked.requests.image_tokens.any():
            raise InputError("no request has an image, so that there is no vision to set apart")
        link = device.link_bytes_per_s or device.need("host_link_bytes_per_s")
        width = spread.embedding_bytes
        return Apart(1, 1, int(apart == ALL), link * spread.form.devices, LINK_S, width)

    @property
    def _pages(self) -> float:
        """Pages a request."""
        return float(self.asked.requests.pages.mean())

    def _looked_at(self, families: Sequence[Choice], refused: list[Refused]) -> Iterator[Offer]:
        """The choices of one device, by their bound, as long as they may be better than the best."""
        best, good = float("inf"), 0
        for family in families:
            larger = float("inf")
            for limit in sorted(self.limits, reverse=True):
                try:
                    bound = family.bound if limit == family.limit else self._bound(family.candidate, limit)
                except InputError as error:
                    refused.append(Refused(str(error), family.device.name, str(family.form), family.apart, limit))
                    continue
                dear = good >= LOOKED_AT and bound > best
                if dear and bound > larger:
                    break  # fewer at once bear less still
                larger = bound
                if dear:
                    continue
                choice = replace(family, limit=limit, bound=bound)
                plan = self.plan(choice)
                offer = Offer(choice, plan, self._value(plan), self)
                best, good = min(best, offer.value), good + bool(plan.devices)
                yield offer

    def plan(self, choice: Choice) -> Plan:
        """The plan of a choice."""
        ttft, requests = self.targets.ttft_s, self.asked.requests
        if ttft is not None and choice.fill_s >= ttft:
            return Plan(choice.candidate, choice.limit, 0, None, f"the pipeline takes {choice.fill_s:.3g} s to fill")
        targets = replace(self.targets, ttft_s=None if ttft is None else ttft - choice.fill_s)
        if self.rate is not None:
            found = planned(choice.candidate, choice.limit, requests, self.rate, targets)
            if self.count is not None and found.devices > self.count:
                told = f"it takes {found.devices} devices, and count is {self.count}: raise it, or ask for less"
                return replace(found, replicas=0, served=None, reason=told)
            return found
        replicas = 1 if self.count is None else self.count // choice.form.devices
        if not replicas:
            told = f"count is {self.count}, and a replica takes {choice.form.devices} devices"
            return Plan(choice.candidate, choice.limit, 0, None, told)
        return loaded(choice.candidate, choice.limit, requests, targets, replicas)

    def _value(self, plan: Plan) -> float:
        """What a plan is ranked by: devices or their money, without a load for a page a second."""
        if not plan.devices or not plan.served:
            return float("inf")
        price = plan.candidate.price_an_hour or 1.0
        return plan.devices * price / (1.0 if self.rate is not None else plan.served.pages_per_s)


def nearest(missed: Sequence[Offer], targets: Targets) -> tuple[Offer, dict[str, float]] | None:
    """The offer that misses the targets by the least even alone, and the shares of each that it takes."""
    found: list[tuple[float, Offer, dict[str, float]]] = []
    for one in missed:
        choice, requests = one.choice, one.search.asked.requests
        answer: Any = answer_of(choice.candidate, choice.limit, requests)
        shares = targets.shares(answer.at(1e-3 * answer.greatest))
        if shares:
            found.append((max(shares.values()), one, shares))
    return min(found, key=lambda one: one[0])[1:] if found else None
