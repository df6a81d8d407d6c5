"""Many requests at once: the closed form of serving, or the simulation where a run is finite or lengths are drawn."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from math import exp, hypot, log
from typing import Any

from modelmeter.errors import InputError
from modelmeter.host import Span
from modelmeter.measured.engines import Policy
from modelmeter.measured.rows import Question
from modelmeter.seconds.unknowns import Factor
from modelmeter.serving import ClosedForm, Fixed, Mix, Service, Simulation
from modelmeter.serving.distributions import Distribution, Empirical, Uniform
from modelmeter.serving.served import Served, Spread
from modelmeter.stations import Stations
from modelmeter.times import Times

SERVING = {"ttft": Factor(0.7, 1.5), "": Factor(0.9, 1.1)}
"""How far serving is from what it stands for: docs/serving.md, percentiles of TTFT and all else, held out."""
LEAST = 8
"""Seats that are asked at least."""
ROUNDS = 10
"""Requests of each user of a loop, where a run does not tell how many it has; benchmarks measure the first ones too."""
LONGEST = 5000
"""Requests of a run that is simulated as a whole; a longer one is as good as endless."""


def shared(found: Times, asked: Question, policy: Policy) -> Span:
    """A quantity of many requests; as unsure as their steps are, and as serving is. Raises InputError."""
    served = _served(found, asked, policy)
    value = _told(served, asked)
    if value is None:
        raise InputError(f"{asked.quantity} of many requests at once is not told")
    slow, there = SERVING.get(asked.quantity, SERVING[""]), _at_load(found, served)
    low, high = _steps(found, asked, there)
    if policy.overlaps and asked.quantity in ("ttft", "e2e"):  # the step behind the one that runs is planned already
        value += there.tpot.seconds * served.utilisation.get("engine", 1.0)
    if asked.quantity in ("ttft", "tpot", "e2e"):
        return Span(value * _joined(low, slow.low), value, value * _joined(high, slow.high))
    return Span(value / _joined(high, slow.high), value, value / _joined(low, slow.low))


def _joined(*factors: float) -> float:
    """Independent factors, all above 1 or all below."""
    together = hypot(*map(log, factors))
    return exp(together if factors[0] >= 1 else -together)


def _at_load(found: Times, served: Served) -> Times:
    """What a batch takes that is as large as that of the load."""
    batch = max(round(served.batch), 1) if served.batch == served.batch else 1
    return Times(found.model, replace(found.work, batch=batch), found.on, found.host, found.engine, found.overlaps)


def _steps(found: Times, asked: Question, there: Times) -> tuple[float, float]:
    """How much shorter and longer what a request takes of the steps may be, at the batch of the load.

    It takes its share of the steps of its decodes, its own prefill and vision; of TTFT and TPOT, these or those alone.
    """
    decodes = there.tpot * (float(found.work.decode_steps) / float(there.work.batch))
    one = {"ttft": found.ttft, "tpot": decodes}.get(asked.quantity, found.ttft.along(decodes))
    return one.low / one.seconds, one.high / one.seconds


def _told(served: Served, asked: Question) -> float | None:
    level = {"median": "p50", "": "mean"}.get(asked.statistic, asked.statistic)
    spreads = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    if asked.quantity in spreads:
        return _at(spreads[asked.quantity], level)
    text = asked.prompt_tokens * served.requests_per_s
    rates = {
        "decode_tokens": served.output_tokens_per_s,
        "prompt_tokens": text,
        "all_tokens": text + served.output_tokens_per_s,
        "requests": served.requests_per_s,
        "pages": served.pages_per_s,
    }
    return rates.get(asked.quantity)


def _at(spread: Spread, level: str) -> float:
    """A figure by its name; p95 is between p90 and p99 as of an exponential tail."""
    if level == "p95":
        return spread.p90 + (spread.p99 - spread.p90) * log(2) / log(10)
    if level not in ("mean", "p50", "p90", "p99"):
        raise InputError(f"{level} of many requests is not told; mean, p50, p90, p95 and p99 are")
    value = spread.at(level)
    if value != value and level not in ("mean", "p50"):
        raise InputError(
            f"{level} of users in a circle is told by the simulation: pip install 'modelmeter[simulation]'"
        )
    return spread.mean if value != value else value


def _served(found: Times, asked: Question, policy: Policy) -> Served:
    """The service at the load; a run of so many requests, or one with drawn lengths, is simulated."""
    mix = _mix(found, asked)
    service = Service(_stations(found, asked, policy).engine(), replicas=asked.copies, routing="round_robin")
    load = asked.load
    drawn = any(not isinstance(one, Fixed) for one in (mix.prompt, mix.output))
    finite = load.kind in ("open", "most") and 1 < (asked.count or 0) <= LONGEST
    if (finite or (load.kind == "closed" and (drawn or asked.statistic))) and importlib.util.find_spec("simpy"):
        if finite:
            rate = load.size if load.kind == "open" else None  # all at once
            return Simulation(service, mix, rate=rate, count=asked.count or 0, warm=0.0).run()
        count = asked.count or max(int(load.size) * ROUNDS, 64)
        return Simulation(service, mix, concurrency=int(load.size), count=count, warm=0.0).run()
    form = ClosedForm(service, mix)
    if load.kind == "closed":
        return form.users(int(load.size))
    if load.kind == "most":
        return form.most_load()
    served = form.at(load.size)
    if not served.steady:
        raise InputError(
            f"{load.size:g} requests a second are beyond saturation, {form.greatest:.3g}: what is measured hangs on "
            "how many requests the run has, which is not told"
        )
    return served


def _stations(found: Times, asked: Question, policy: Policy) -> Stations:
    seats = asked.limits.get("seats", policy.seats)
    if asked.load.kind == "closed":
        seats = int(max(min(seats, asked.load.size), LEAST))
    tokens = max(asked.limits.get("tokens", policy.tokens), seats + 1)
    return Stations(
        found, seats, tokens, policy=policy.policy, keeping=policy.keeping, share=policy.share, free=policy.free,
        request=policy.request.seconds,
    )  # fmt: skip


def _mix(found: Times, asked: Question) -> Mix:
    prompt = _drawn(float(found.work.prompt_tokens), asked.lengths.get("prompt"))
    output = _drawn(float(max(asked.decode_steps, 1)), asked.lengths.get("output"))
    return Mix(image=Fixed(float(found.work.image.tokens)), prompt=prompt, output=output)


def _drawn(mean: float, spread: Any) -> Distribution:
    """Lengths as a benchmark draws them: those that were seen, evenly about the mean, or all alike."""
    if not spread:
        return Fixed(mean)
    return Uniform(mean - spread, mean + spread) if isinstance(spread, (int, float)) else Empirical(spread)
