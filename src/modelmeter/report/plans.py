"""Plans as text: the answer first, then the plans side by side, why each and why not, what is assumed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import isfinite

from modelmeter.device import Device
from modelmeter.plans.forms import APART, TOGETHER
from modelmeter.plans.reasons import Refused, alike
from modelmeter.plans.search import Found, Offer, Search, nearest
from modelmeter.report.tables import align
from modelmeter.report.times import duration
from modelmeter.serving.targets import TIMES
from modelmeter.stations import SHARE

OWN = 2
"""So many plans of a device are shown, the best ones, where not all are."""
_ALONE = "no units for {}: weights alone are stored so, products are in bf16"
WHY = 5
"""Of so many devices it is told why they have as many as they do."""


def plans_text(search: Search, found: Found, devices: Sequence[Device], rows: int) -> str:
    """The whole page."""
    name, asked = search.asked.model.name, _asked(search)
    if not found.offers:
        return "\n".join([f"{name}: {_unmet(search, found)}", *_why_not(found, rows), "", *_assumed(search, found)])
    best = [next(one for one in found.offers if one.choice.device.name == device) for device in _names(found)]
    others = [one for one in best[:1] if search.prices and one is not _fewest(found)]
    head = [f"{name}, {asked}: {_answer(found.offers[0])}", *(_other(_fewest(found)) for _ in others), ""]
    why = [f"{_named(one)}: {one.plan.reason}" for one in best[: min(rows, WHY)]]
    table = [align(_table(_shown(found, rows))), *_more(found, rows, len(devices))]
    return "\n".join([*head, *table, "", "why:", *why, *_why_not(found, rows), "", *_assumed(search, found)])


def _names(found: Found) -> list[str]:
    return list(dict.fromkeys(one.choice.device.name for one in found.offers))


def _fewest(found: Found) -> Offer:
    return min(found.offers, key=lambda one: one.plan.devices)


def _shown(found: Found, rows: int) -> list[Offer]:
    """All plans, if they are no more than `rows`, else the best of each device."""
    if len(found.offers) <= rows:
        return found.offers
    seen: dict[str, int] = {}
    shown = []
    for one in found.offers:
        seen[one.choice.device.name] = seen.get(one.choice.device.name, 0) + 1
        if seen[one.choice.device.name] <= OWN:
            shown.append(one)
    return shown[:rows]


def _more(found: Found, rows: int, devices: int) -> list[str]:
    """What the table leaves out."""
    left, able = len(found.offers) - len(_shown(found, rows)), len(_names(found))
    told = [f"{able} of {devices} devices will do"] if devices > 1 else []
    told += [f"{left} more plans: rows={len(found.offers)} shows them, out=FOLDER writes all as plans.csv"] * bool(left)
    pruned = f"{found.pruned} choices bear too little to be better than the best of their device"
    return ["; ".join([*told, *[pruned] * bool(found.pruned)])] if told or found.pruned else []


def _asked(search: Search) -> str:
    """The load and the targets in words."""
    load, targets = _load(search), _targets(search)
    return f"{load} within {targets}" if targets else f"{load}, without targets"


def _load(search: Search) -> str:
    pages = float(search.asked.requests.pages.mean())
    return "the most" if search.rate is None else f"{search.rate * pages * 86400:,.0f} {search.asked.unit} a day"


def _targets(search: Search) -> str:
    targets = [f"{word} {duration(value)}" for name, word in TIMES.items() if (value := getattr(search.targets, name))]
    return f"{' and '.join(targets)} ({search.targets.level})" if targets else ""


def _named(one: Offer) -> str:
    return f"{one.choice.device.name} {one.choice.form} {one.choice.apart} {one.choice.limit}"


def _answer(one: Offer) -> str:
    """The best plan: a sentence, then a line for each thing a reader asks."""
    plan, choice, unit = one.plan, one.choice, one.search.asked.unit
    assert plan.served
    rate = plan.served.pages_per_s / plan.devices
    each = "1 device" if choice.form.devices == 1 else f"{choice.form.devices} devices"
    lines = {
        "devices": _needed(one),
        "a replica": f"{each} ({choice.form}); {APART[choice.apart]}; at most {choice.limit} requests at once",
        "first token": _wait(one, "ttft_s"),
        "each further token": _wait(one, "tpot_s"),
        "load": f"{plan.served.pages_per_day:,.0f} {unit} a day, {rate:.3g} {unit}/s a device; {one.load:.0%} of the "
        f"most that these devices bear; what limits them: the {plan.served.binds or 'requests, nothing is full'}",
    } | ({"money": _money(one)} if plan.money_an_hour else {})
    return "\n".join([f"{plan.devices} x {choice.device.title}", *(f"  {key:20}{text}" for key, text in lines.items())])


def _money(one: Offer) -> str:
    """What all devices cost an hour, and a million pages."""
    return f"{one.plan.money_an_hour:,.2f} an hour; a million {one.search.asked.unit} cost {_million(one)}"


def _other(one: Offer) -> str:
    """The plan of the fewest devices, where the cheapest is another."""
    text = f"{one.plan.devices} x {one.choice.device.title} ({one.choice.form}); {_money(one)}"
    return f"  {'fewest devices':20}{text}"


def _needed(one: Offer) -> str:
    """How many devices, and how many where the steps are at the ends of their intervals."""
    if one.search.rate is None:
        return f"{one.plan.devices}, as asked"
    if {one.devices(end) for end in ("low", "high")} == {one.plan.devices}:
        return f"{one.plan.devices}, however fast or slow the steps are within their intervals"
    low, high = (f"{count} if" if count else "no number if" for count in map(one.devices, ("low", "high")))
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


def _fleet(one: Offer) -> str:
    """Devices that it takes where all step times are at their ends; "-": no number will do."""
    if one.search.rate is None:
        return ""
    return f" ({one.devices('low') or '-'}, {one.devices('high') or '-'})"


def _end(one: Offer, name: str, end: str) -> str:
    value = one.times(name, end).at(one.search.targets.level)
    return duration(value) if isfinite(value) else "not borne"


def _million(one: Offer) -> str:
    cost = one.plan.cost_a_million_pages
    return "-" if cost is None else f"{cost:,.2f}"


def _table(offers: Sequence[Offer]) -> list[list[str]]:
    """Plans side by side, without columns that none has a figure for."""
    rows = [_row(one) for one in offers]
    heads = [head for head in rows[0] if any(row[head] != "-" for row in rows)]
    return [heads, *([row[head] for head in heads] for row in rows)]


def _row(one: Offer) -> dict[str, str]:
    """A plan by heading: likely values, in brackets those where the steps are fast and where they are slow."""
    plan, choice, unit, served = one.plan, one.choice, one.search.asked.unit, one.plan.served
    assert served
    watts = choice.device.watts
    together = choice.apart == TOGETHER
    return {
        "device": choice.device.name, "form": str(choice.form), "stations": choice.apart,
        "devices (fast, slow)": f"{plan.devices}{_fleet(one)}",
        "replicas": str(plan.replicas) if together else _stations(one), "limit": str(choice.limit),
        "batch": f"{served.batch:.3g}", "TTFT (fast, slow)": _both(one, "ttft_s"),
        "TPOT (fast, slow)": _both(one, "tpot_s"), f"{unit}/s a device": f"{served.pages_per_s / plan.devices:.3g}",
        f"{unit} a day": f"{served.pages_per_day:,.0f}", "load": f"{one.load:.0%}",
        "kW": f"{watts * plan.devices / 1e3:.3g}" if watts else "-", f"a million {unit}": _million(one),
    }  # fmt: skip


def _both(one: Offer, name: str) -> str:
    likely = duration(one.times(name).at(one.search.targets.level))
    return f"{likely} ({_end(one, name, 'low')}, {_end(one, name, 'high')})"


def _stations(one: Offer) -> str:
    apart = one.plan.candidate.service.apart
    assert apart
    return "+".join(str(part) for part in (apart.vision, apart.prefill, apart.decode) if part)


def _unmet(search: Search, found: Found) -> str:
    """That nothing will do, what comes nearest and what would help."""
    targets, near = _targets(search), nearest(found.missed, search.targets)
    none = f"no plan meets {targets}" if search.rate is None else f"no plan bears {_asked(search)}"
    if near is None or max(near[1].values()) <= 1:
        return f"{none}: {min(found.missed, key=lambda one: one.choice.bound).plan.reason}"
    one, shares = near
    over = {name: share for name, share in shares.items() if share > 1}
    most = {name: getattr(search.targets, name) for name in over}
    told = " and ".join(f"{TIMES[name]} is {duration(most[name] * share)}" for name, share in over.items())
    ways = [f"{name[:-2]}={most[name] * share * 1.05:.3g}" for name, share in over.items()]
    images = search.host.on(one.choice.device).images(search.asked.typical).seconds
    late = "ttft_s" in over and images >= most["ttft_s"]
    other = f"no device: one core takes {duration(images)} for the images" if late else "a faster device, a wider form"
    return (
        f"{none}; the nearest is {_named(one)}, and even with nobody else there {told}; "
        f"what would help: {' '.join(ways)}; {other}"
    )


def _why_not(found: Found, rows: int) -> list[str]:
    """What will not do and what could not be asked, each reason once."""
    told = found.reasons
    more = [f"{len(told) - rows} more reasons: rows={len(told)} shows them"] if len(told) > rows else []
    return ["", "will not do:", *told[:rows], *more] if told else []


def _assumed(search: Search, found: Found) -> list[str]:
    """What the answer stands on."""
    asked, work = search.asked, search.asked.typical
    requests = asked.requests
    means = {name: float(getattr(requests, f"{name}_tokens").mean()) for name in ("image", "prompt", "output")}
    lengths = ", ".join(f"{mean:,.0f} {name}" for name, mean in means.items() if mean)
    pixel = f"{search.host.pixel.seconds * 1e9:.3g} ns a pixel"
    images = f"; {search.host_threads} cores a replica prepare images, {pixel}" if means["image"] else ""
    bursts = f", burstiness {requests.burstiness:.3g}" if requests.arrival_s is not None else " at random"
    return [
        "assumed:",
        f"requests: {asked.told}; {lengths} tokens on average; they come{bursts}",
        f"{asked.model.basis(work)}; {', '.join(map(str, search.batched))} tokens a step{images}",
        f"{SHARE:.0%} of a device's memory is the engine's; replicas are routed to at random; TTFT and TPOT are those "
        f"of {search.targets.level}, queues included",
        "fast, slow: all steps of the device are at the low or at the high end of their interval, images of the host "
        "likewise and independent of them; not borne: the same devices would not bear the load then",
        "left out: the network, reading files, tokenising, prefix caches, failures, spare devices",
        *alike(
            Refused(_ALONE.format(units), one.choice.device.name) for one in found.offers for units in one.choice.alone
        ),
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
