"""Plans as text: the answer first, then the plans side by side, why each and why not, what is assumed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import isfinite

from modelmeter.device import Device
from modelmeter.plans.forms import APART, TOGETHER
from modelmeter.plans.search import Found, Offer, Search, nearest
from modelmeter.report.tables import align
from modelmeter.report.times import duration
from modelmeter.serving.plan import cost_a_million_pages
from modelmeter.serving.targets import TIMES
from modelmeter.stations import SHARE

HEADS = (
    "device", "form", "stations", "devices", "if fast, slow", "replicas", "limit", "batch", "TTFT", "if fast, slow",
    "TPOT", "if fast, slow", "pages/s a device", "pages a day", "load", "kW", "a million pages",
)  # fmt: skip


def plans_text(search: Search, found: Found, devices: Sequence[Device], rows: int) -> str:
    """The whole page."""
    name, asked = search.asked.model.name, _asked(search)
    if not found.offers:
        return "\n".join([f"{name}: {_unmet(search, found)}", "", *_why_not(found), "", *_assumed(search)])
    shown = _shown(found, rows)
    more = [f"{len(found.offers) - len(shown)} more plans are not shown"] * (len(found.offers) > len(shown))
    if found.pruned:
        more.append(f"{found.pruned} choices bear too little to be better than the best of their device")
    best = [next(one for one in found.offers if one.choice.device.name == device) for device in _names(found)]
    why = [f"{_named(one)}: {one.plan.reason}" for one in best[:rows]]
    head = [f"{name}, {asked}: {_answer(found.offers[0])}", ""]
    return "\n".join(
        [*head, align([HEADS, *map(_row, shown)]), *more, "", "why:", *why, *_why_not(found), "", *_assumed(search)]
    )


def _names(found: Found) -> list[str]:
    return list(dict.fromkeys(one.choice.device.name for one in found.offers))


def _shown(found: Found, rows: int) -> list[Offer]:
    """The best plans, and the best of each device."""
    firsts = {name: next(one for one in found.offers if one.choice.device.name == name) for name in _names(found)}
    own = {id(one) for one in (*found.offers[:rows], *list(firsts.values())[:rows])}
    return [one for one in found.offers if id(one) in own]


def _asked(search: Search) -> str:
    """The load and the targets in words."""
    pages = float(search.asked.requests.pages.mean())
    load = "the most" if search.rate is None else f"{search.rate * pages * 86400:,.0f} pages a day"
    targets = [f"{word} {duration(value)}" for name, word in TIMES.items() if (value := getattr(search.targets, name))]
    return f"{load} within {' and '.join(targets)} ({search.targets.level})" if targets else f"{load}, without targets"


def _named(one: Offer) -> str:
    return f"{one.choice.device.name} {one.choice.form} {one.choice.apart} {one.choice.limit}"


def _answer(one: Offer) -> str:
    """The best plan: a sentence, then a line for each thing a reader asks."""
    plan, choice = one.plan, one.choice
    assert plan.served
    rate, cost = plan.served.pages_per_s / plan.devices, _money(one)
    each = "1 device" if choice.form.devices == 1 else f"{choice.form.devices} devices"
    lines = {
        "devices": _needed(one),
        "a replica": f"{each} ({choice.form}); {APART[choice.apart]}; at most {choice.limit} requests at once",
        "first token": _wait(one, "ttft_s"),
        "each further token": _wait(one, "tpot_s"),
        "load": f"{plan.served.pages_per_day:,.0f} pages a day, {rate:.3g} pages/s a device; {one.load:.0%} of the "
        f"most that these devices bear; what limits them: the {plan.served.binds or 'requests, nothing is full'}",
    } | ({"money": f"a million pages cost {cost}"} if cost != "-" else {})
    return "\n".join([f"{plan.devices} x {choice.device.title}", *(f"  {key:20}{text}" for key, text in lines.items())])


def _needed(one: Offer) -> str:
    """How many devices, and how many where the steps are at the ends of their intervals."""
    if one.search.rate is None:
        return f"{one.plan.devices}, as asked"
    low, high = (f"{count} if" if count != "-" else "no number if" for count in _fleet(one))
    return f"{one.plan.devices}; {low} all steps are as fast as their intervals allow, {high} as slow"


def _wait(one: Offer, name: str) -> str:
    """TTFT or TPOT, and what they are at the ends."""
    level = one.search.targets.level
    of = "on average" if level == "mean" else f"for {level[1:]} % of requests, at most"
    ends = "; ".join(f"if {word}: {_end(one, name, end)}" for word, end in (("fast", "low"), ("slow", "high")))
    target = getattr(one.search.targets, name)
    asked = f" (asked: {duration(target)})" if target is not None else ""
    told = ends.replace("not borne", "so many devices do not bear the load")
    return f"{TIMES[name]} {duration(one.times(name).at(level))} {of}{asked}; {told}"


def _fleet(one: Offer) -> tuple[str, str]:
    """Devices that it takes where all step times are at their ends; "-": no number will do."""
    if one.search.rate is None:
        return "", ""
    low, high = (one.devices(end) for end in ("low", "high"))
    return str(low or "-"), str(high or "-")


def _end(one: Offer, name: str, end: str) -> str:
    value = one.times(name, end).at(one.search.targets.level)
    return duration(value) if isfinite(value) else "not borne"


def _money(one: Offer) -> str:
    price, served = one.plan.candidate.price_an_hour, one.plan.served
    if price is None or served is None:
        return "-"
    return f"{cost_a_million_pages(price, one.plan.devices, served.pages_per_s):,.2f}"


def _row(one: Offer) -> list[str]:
    plan, choice, level = one.plan, one.choice, one.search.targets.level
    served = plan.served
    assert served
    watts = choice.device.watts
    times = [
        cell
        for key in ("ttft_s", "tpot_s")
        for cell in (duration(one.times(key).at(level)), f"{_end(one, key, 'low')}, {_end(one, key, 'high')}")
    ]
    return [
        choice.device.name, str(choice.form), choice.apart, str(plan.devices),
        ", ".join(_fleet(one)) if one.search.rate is not None else "-",
        str(plan.replicas) if choice.apart == TOGETHER else _stations(one), str(choice.limit), f"{served.batch:.3g}",
        *times, f"{served.pages_per_s / plan.devices:.3g}", f"{served.pages_per_day:,.0f}",
        f"{one.load:.0%}",
        f"{watts * plan.devices / 1e3:.3g}" if watts else "-", _money(one),
    ]  # fmt: skip


def _stations(one: Offer) -> str:
    apart = one.plan.candidate.service.apart
    assert apart
    return "+".join(str(part) for part in (apart.vision, apart.prefill, apart.decode) if part)


def _unmet(search: Search, found: Found) -> str:
    """That nothing will do, what comes nearest and what would help."""
    asked, near = _asked(search), nearest(found.missed, search.targets)
    if near is None or max(near[1].values()) <= 1:
        return f"nothing here bears {asked}: {found.missed[0].plan.reason}"
    one, shares = near
    over = {name: share for name, share in shares.items() if share > 1}
    by = " and ".join(f"{TIMES[name]} by {share - 1:.0%}" for name, share in over.items())
    ways = [f"{name[:-2]}={getattr(search.targets, name) * share * 1.05:.3g}" for name, share in over.items()]
    return (
        f"nothing here bears {asked}; the nearest is {_named(one)}, which even with nobody else there misses {by}; "
        f"what would help: {' '.join(ways)}, a faster device or a wider form"
    )


def _why_not(found: Found) -> list[str]:
    """What will not do and what could not be asked, each reason once."""
    told: dict[str, list[str]] = {}
    for one in found.missed:
        told.setdefault(one.plan.reason, []).append(_named(one))
    for refused in found.refused:
        told.setdefault(refused.reason, []).append(refused.what)
    return ["", "will not do:", *(f"{', '.join(what)}: {reason}" for reason, what in told.items())] if told else []


def _assumed(search: Search) -> list[str]:
    """What the answer stands on."""
    asked, work, host = search.asked, search.asked.typical, search.host
    requests = asked.requests
    means = ", ".join(f"{getattr(requests, f'{n}_tokens').mean():,.0f} {n}" for n in ("image", "prompt", "output"))
    threads = f"{search.host_threads} cores a replica prepare images, {host.pixel.seconds * 1e9:.3g} ns a pixel"
    bursts = f", burstiness {requests.burstiness:.3g}" if requests.arrival_s is not None else " at random"
    return [
        "assumed:",
        f"requests: {asked.told}; {means} tokens on average; they come{bursts}",
        f"{asked.model.basis(work)}; {', '.join(map(str, search.batched))} tokens a step; {threads}",
        f"{SHARE:.0%} of a device's memory is the engine's; replicas are routed to at random; TTFT and TPOT are those "
        f"of {search.targets.level}, queues included",
        "if fast, slow: all step times of the host and the device at the low or at the high end of their intervals at "
        "once; not borne: the same devices would not bear the load then",
        "left out: the network, reading files, tokenising, prefix caches, failures, spare devices",
        *asked.model.notes,
    ]


def plans_csv(offers: Sequence[Offer]) -> str:
    """All plans as CSV, the best first."""
    heads = ("device", "form", "stations", "max_num_seqs", "max_batched_tokens", "devices", "replicas", "batch",
             "ttft_s", "tpot_s", "pages_per_s", "pages_per_day", "price_an_hour", "reason")  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for one in offers:
        plan, choice, level, served = one.plan, one.choice, one.search.targets.level, one.plan.served
        assert served
        times = (one.times(key).at(level) for key in ("ttft_s", "tpot_s"))
        writer.writerow(
            [choice.device.name, choice.form, choice.apart, choice.limit, choice.batched, plan.devices, plan.replicas,
             *(f"{value:.6g}" for value in (served.batch, *times, served.pages_per_s, served.pages_per_day)),
             plan.candidate.price_an_hour or "", plan.reason]
        )  # fmt: skip
    return out.getvalue()
