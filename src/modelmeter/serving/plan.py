"""Plans: which device, how many, in which parallel form and with which batch limit, bears a load within targets.

A candidate is a replica with its step times; who makes it knows devices and parallel forms, nothing here does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

from modelmeter.errors import InputError, choose
from modelmeter.serving.closed_form import ClosedForm
from modelmeter.serving.numbers import above, at_least, whole
from modelmeter.serving.requests import Mix, Requests
from modelmeter.serving.served import Served
from modelmeter.serving.service import Service
from modelmeter.serving.targets import TIMES, Targets, greatest_load

BY = ("devices", "money")
SAMPLE = 256
"""Requests that stand for a mix while plans are compared."""


def cost_a_million_pages(price_an_hour: float, devices: int, pages_per_s: float) -> float:
    """Money for 1,000,000 pages: a device's price an hour, and how many of them make so many pages a second.

    >>> round(cost_a_million_pages(2.0, 4, 100.0), 2)
    22.22
    """
    above("pages_per_s", pages_per_s)
    return at_least("price_an_hour", price_an_hour) * whole("devices", devices) / 3600 / pages_per_s * 1e6


@final
@dataclass(frozen=True)
class Candidate:
    """A replica of a device in a parallel form, and what a device costs an hour, if that is known."""

    device: str
    form: str
    service: Service
    price_an_hour: float | None = None

    def __post_init__(self) -> None:
        if self.price_an_hour is not None:
            above(f"price_an_hour of {self.device}", self.price_an_hour)
        if self.service.replicas != 1:
            raise InputError(f"the candidate {self.device} must be one replica: a plan finds how many are needed")


@final
@dataclass(frozen=True)
class Plan:
    """A candidate with a batch limit: `replicas` that bear the load within the targets, or none and the reason why.

    `served` is what all of them do together at the load.
    """

    candidate: Candidate
    batch_limit: int
    replicas: int
    served: Served | None
    reason: str

    @property
    def devices(self) -> int:
        """Devices needed; 0 where no number of them will do."""
        return self.replicas * self.candidate.service.devices

    @property
    def money_an_hour(self) -> float | None:
        """What all devices cost an hour; None where no price is known or nothing will do."""
        price = self.candidate.price_an_hour
        return price * self.devices if price is not None and self.devices else None

    @property
    def cost_a_million_pages(self) -> float | None:
        """What 1,000,000 pages cost at the load; None as above."""
        price = self.candidate.price_an_hour
        if price is None or not self.devices or not self.served:
            return None
        return cost_a_million_pages(price, self.devices, self.served.pages_per_s)


def plan(candidates: Iterable[Candidate], asked: Mix | Requests, pages_per_day: float, targets: Targets,
         batch_limits: Sequence[int] = (), by: str = "devices") -> list[Plan]:  # fmt: skip
    """All candidates with each batch limit (their own by default), the best first.

    The best needs the fewest devices or the least money, then has the most room to its targets; what will not do comes
    last, with the reason. Raises InputError for a load that is none, no candidate, or money without a price.
    """
    above("pages_per_day", pages_per_day), choose("by", by, BY)
    candidates = list(candidates)
    if not candidates:
        raise InputError("a plan needs at least one candidate")
    unpriced = [one.device for one in candidates if one.price_an_hour is None]
    if by == "money" and unpriced:
        raise InputError(f"by=money needs a price_an_hour of each device; {unpriced[0]} has none")
    requests = asked.requests(SAMPLE) if isinstance(asked, Mix) else asked
    rate = pages_per_day / 86400 / above("pages a request", float(requests.pages.mean()))
    limits = [(one, limit) for one in candidates for limit in batch_limits or (one.service.engine.max_num_seqs,)]
    return ranked([planned(one, limit, requests, rate, targets) for one, limit in limits], targets, by)


def ranked(found: Sequence[Plan], targets: Targets, by: str = "devices") -> list[Plan]:
    """Plans for one load, the best first, which says so."""

    def dear(one: Plan) -> float:
        return (one.money_an_hour if by == "money" else one.devices) or 0.0

    best = sorted(found, key=lambda one: (not one.devices, dear(one), _taken(one, targets)))
    if best and best[0].devices:
        unit = "least money" if by == "money" else "fewest devices"
        best[0] = replace(best[0], reason=f"{unit}; {best[0].reason}")
    return best


def _taken(one: Plan, targets: Targets) -> float:
    """The greatest share of a target that a plan takes."""
    return max(targets.shares(one.served).values(), default=0.0) if one.served else math.inf


def planned(candidate: Candidate, limit: int, requests: Requests, rate: float, targets: Targets) -> Plan:
    """The fewest replicas of a candidate that will do: the least that bear the load, and more until targets are met."""
    try:
        if candidate.service.apart:
            return _of_stations(candidate, limit, requests, rate, targets)
        replicas, served, reason = _replicas(answer_of(candidate, limit, requests), rate, targets)
    except InputError as error:
        return Plan(candidate, limit, 0, None, str(error))
    return Plan(candidate, limit, replicas, served, reason)


def loaded(candidate: Candidate, limit: int, requests: Requests, targets: Targets, replicas: int = 1) -> Plan:
    """The most that so many replicas bear within the targets."""
    try:
        answer = answer_of(candidate, limit, requests)
        rate, reason = greatest_load(answer, targets)
    except InputError as error:
        return Plan(candidate, limit, 0, None, str(error))
    if not rate:
        return Plan(candidate, limit, 0, None, reason)
    served = answer.at(rate)
    return Plan(candidate, limit, replicas, _all_of(served, replicas), _told(served, targets, 0, f"beyond: {reason}"))


def answer_of(candidate: Candidate, limit: int, requests: Requests) -> ClosedForm:
    """A candidate with a batch limit under the requests."""
    engine = replace(candidate.service.engine, max_num_seqs=limit)
    return ClosedForm(replace(candidate.service, engine=engine), requests)


def _of_stations(candidate: Candidate, limit: int, requests: Requests, rate: float, targets: Targets) -> Plan:
    """The fewest devices of stations apart: those that bear the load, and more where a target is missed."""
    shared = candidate.service.apart
    assert shared

    def at(counts: dict[str, int]) -> ClosedForm:
        front = counts.get("vision", counts["prefill"])
        apart = replace(shared, **counts, links=counts["prefill"])
        engine = replace(candidate.service.engine, max_num_seqs=limit)
        engine = replace(engine, host_threads=engine.host_threads * front)
        return ClosedForm(replace(candidate.service, engine=engine, apart=apart), requests)

    names = ["prefill", "decode", *(["vision"] if shared.vision else [])]
    one = at(dict.fromkeys(names, 1))
    counts = {name: math.floor(rate / one.most[name]) + 1 for name in names}
    lone = one.at(1e-3 * one.greatest)
    if why := targets.missed(lone):
        return Plan(candidate, limit, 0, None, f"{why}, even with nobody else there")
    fewer = ""
    while why := targets.missed(served := (answer := at(counts)).at(rate)):
        fewer, late = why, why.startswith(TIMES["tpot_s"])
        before = [name for name in names if name != "decode"]
        busy = max(names if not served.steady else before, key=lambda name: rate / one.most[name] / counts[name])
        busy = "decode" if late else busy
        counts[busy] += max(1, counts[busy] // 16)
    parts = ", ".join(f"{counts[name]} {name}" for name in sorted(names, reverse=True))
    found = replace(candidate, service=answer.service)
    return Plan(found, limit, 1, served, f"{parts}; {_told(served, targets, 0, fewer and f'with fewer: {fewer}')}")


def _replicas(answer: ClosedForm, rate: float, targets: Targets) -> tuple[int, Served | None, str]:
    """How many, what they do together, and what binds; 0 and why where no number will do."""

    def at(count: int) -> Served:
        return answer.at(rate / count)

    low = math.floor(rate / answer.greatest)  # too few
    few, count, missed = low, low + 1, ""
    while missed := targets.missed(served := at(count)):
        lone = "" if count <= 2 * low + 8 else targets.missed(answer.at(1e-3 * answer.greatest))
        if lone or served.requests_per_s < 1e-3 * answer.greatest:
            return 0, None, f"{lone or missed}, even with nobody else there"
        few, count = count, count + max(1, (count - low) // 2, count // 8)
    while count - few > 1:
        middle = (few + count) // 2
        found = at(middle)
        if why := targets.missed(found):
            few, missed = middle, why
        else:
            count, served = middle, found
    why = targets.missed(at(few)) if few else ""
    return count, _all_of(served, count), _told(served, targets, few, why)


def _all_of(served: Served, count: int) -> Served:
    """What so many replicas do together."""
    return replace(
        served,
        requests_per_s=served.requests_per_s * count,
        output_tokens_per_s=served.output_tokens_per_s * count,
        pages_per_s=served.pages_per_s * count,
    )


def _told(served: Served, targets: Targets, fewer: int, why: str) -> str:
    shares = ", ".join(f"{TIMES[name]} at {share:.0%} of its target" for name, share in targets.shares(served).items())
    load = f"a batch of {served.batch:.3g}, the {served.binds} binds"
    less = f"with {fewer} {'replica' if fewer == 1 else 'replicas'}: {why}" if why and fewer else why
    return "; ".join(part for part in (load, shares, less) if part)
