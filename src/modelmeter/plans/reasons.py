"""Why choices of a plan will not do: what could not be asked and what misses the targets, alike ones together.

Reasons that differ in devices and numbers alone are one: the devices are counted, a number is told from least to most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, final

from modelmeter.plans.forms import TOGETHER

NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
NAMED = 4
"""So many devices are named, others counted."""


@final
class Refused(NamedTuple):
    """A choice that will not do, and why; without a device, form, stations or limit ("", 0): all of them."""

    reason: str
    device: str = ""
    form: str = ""
    apart: str = ""
    limit: int = 0


def alike(refused: Iterable[Refused]) -> list[str]:
    """Each reason once, with whom it holds for.

    >>> why = "TTFT is {} s (p90) where 0.1 s is asked"
    >>> alike([Refused(why.format(3), "t4", "tp1"), Refused(why.format(2), "l4", "tp1"), Refused("no link", "", "tp2")])
    ['t4, l4: TTFT is 2 to 3 s (p90) where 0.1 s is asked', 'tp2: no link']
    """
    groups: dict[str, list[Refused]] = {}
    for one in refused:
        groups.setdefault(NUMBER.sub("#", _without(one.reason, one.device)), []).append(one)
    return [f"{_whom(group)}: {_reason(group)}" for group in groups.values()]


def _without(reason: str, device: str) -> str:
    return re.sub(rf"\b(device )?{re.escape(device)}(?!\w)", "the device", reason) if device else reason


def _reason(group: Sequence[Refused]) -> str:
    """The reason of all; a number in which they differ is told from least to most."""
    if len({one.device for one in group}) == 1:
        texts = [one.reason for one in group]
    else:
        texts = [_without(one.reason, one.device) for one in group]
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    spans = iter([_span(column) for column in columns])
    return NUMBER.sub(lambda _: next(spans), texts[0])


def _span(numbers: Iterable[str]) -> str:
    ordered = sorted(set(numbers), key=lambda number: float(number.replace(",", "")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _whom(group: Sequence[Refused]) -> str:
    """Devices, and of which forms and stations, where it is not all that were tried of them."""
    devices = [name for name in dict.fromkeys(one.device for one in group) if name]
    more = f" and {len(devices) - NAMED} more devices" if len(devices) > NAMED else ""
    forms = [form for form in dict.fromkeys(one.form for one in group) if form]
    apart = [way for way in dict.fromkeys(one.apart for one in group) if way]
    parts = [", ".join(devices[:NAMED]) + more if devices else ""]
    parts += [" and ".join(forms)] if forms != ["tp1"] or not devices else []
    parts += [f"{' and '.join(apart)} apart"] if apart and TOGETHER not in apart else []
    return "; ".join(filter(None, parts))
