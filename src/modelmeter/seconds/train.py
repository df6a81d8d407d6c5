"""Training: constants of every law from measured kernels, shared ones first, then those of each device.

Order: what all NVIDIA devices share in their plain variant; extras of other variants; then the same for each device
alone, starting there. A device of another vendor has no part in what is shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelmeter.seconds.attention import PREFILL, VISION
from modelmeter.seconds.decode import DECODE
from modelmeter.seconds.fit import Residuals, fitted, loss
from modelmeter.seconds.laws import EXTRAS, Constant, Law
from modelmeter.seconds.links import ALLREDUCE
from modelmeter.seconds.measured import Measured
from modelmeter.seconds.mixture import MIXTURE
from modelmeter.seconds.product import PRODUCT
from modelmeter.seconds.shapes import BY_ROW, EIGHT, NVIDIA, QUANTISED, nearest

TRAINED = {law.name: law for law in (PRODUCT, MIXTURE, PREFILL, VISION, DECODE, ALLREDUCE)}
PLAIN = ("bf16", "graph")
"""Variants that the constants of a law stand for; others have extras."""
OTHERS = {
    "product": {"fill", "half", "load"},
    "mixture": {"fill", "half", "wait", "stream", "sharp", "around"},
    "prefill": {"fill", "head", "tail", "sharp", "keep"},
    "decode": {"fill", "load", "speed", "near", "combine", "sharp"},
}
"""Constants of a law that a variant has values of its own for: another kernel of the engine runs it."""
CARRIED: dict[str, set[str]] = {"product": {"fill", "half", "quantise", "quantised_row", "element"}, "mixture": set()}
"""Extras of a law that hold on devices that were not measured in a variant; of other laws all do. The rest of what a
variant does elsewhere is told by rules of the engine (`shapes.py`): a device's constants say nothing of another's."""
ROWS = {"mixture": 1000, "product": 1000}
"""Rows of a group that a fit takes at most, the same ones each time; of other laws MOST."""
MOST = 2000
Values = dict[str, float]


@dataclass
class Trained:
    """Constants of one law: shared ones, extras by variant, and both by device."""

    law: Law
    shared: Values
    extras: dict[str, Values] = field(default_factory=dict)
    own: dict[str, Values] = field(default_factory=dict)
    own_extras: dict[str, dict[str, Values]] = field(default_factory=dict)

    def constants(self, device: str, variant: str) -> Values:
        """Those of a device and variant: its own where it was measured, else the shared ones."""
        extras = self.own_extras.get(device, {}).get(variant) or self.extras.get(variant)
        extras = extras or self.extras.get(nearest(variant)) or {}
        return {**self.own.get(device, self.shared), **extras}


def train(groups: Iterable[Measured], law: Law, own: bool = True, leave: str = "") -> Trained:
    """The constants of a law from those rows that are not held back; the device `leave` has no part."""
    kept = [g for g in map(_sample, groups) if g.law == law.name and g.device.name != leave and len(g)]
    if not kept:
        return Trained(law, {c.name: c.start for c in law.constants})
    common = [g for g in kept if g.device.architecture in NVIDIA]
    found = Trained(law, _plain(law, common or kept, law.constants, {}))
    for variant in dict.fromkeys(g.variant for g in common if g.variant not in PLAIN):
        of, names = [g for g in common if g.variant == variant], carried_names(law, variant)
        if names:
            base = {g.device.name: found.shared for g in of}
            found.extras[variant] = _extras(law, names, of, base, {})
    for name in dict.fromkeys(g.device.name for g in kept if own):
        _own(found, [g for g in kept if g.device.name == name])
    return found


def _own(found: Trained, groups: Sequence[Measured]) -> None:
    law, name = found.law, groups[0].device.name
    plain = [g for g in groups if g.variant in PLAIN]
    foreign = groups[0].device.architecture not in NVIDIA
    host = {"host"} if foreign else set()
    if plain:
        further = [c for c in EXTRAS if c.name in host]
        found.own[name] = _plain(law, plain, [*law.constants, *further], found.shared)
    base = found.own.get(name, found.shared)
    found.own_extras[name] = {
        g.variant: _extras(law, extra_names(law, g.variant) | host, [g], {name: base}, found.extras.get(g.variant, {}))
        for g in groups
        if g.variant not in PLAIN
    }


def _sample(group: Measured) -> Measured:
    """Rows of a group that a fit may see."""
    step = max(1, round(0.8 * len(group) / ROWS.get(group.law, MOST)))
    return group.where(~group.held & (group.shape // 7 % step == 0))


def _plain(law: Law, groups: Sequence[Measured], constants: Sequence[Constant], start: Values) -> Values:
    plain = [g for g in groups if g.variant in PLAIN] or list(groups)
    return best(lambda c: np.concatenate([residuals(law, c, g) for g in plain]), constants, start)


def _extras(
    law: Law, names: set[str], groups: Sequence[Measured], base: Mapping[str, Values], known: Values
) -> Values:  # fmt: skip
    """Extras by name that fit groups, each on the constants of its device, from what is known of them."""
    fit = [c for c in (*EXTRAS, *law.constants) if c.name in names]

    def errors(c: Values) -> Any:
        return np.concatenate([residuals(law, {**base[g.device.name], **c}, g) for g in groups])

    first = base[groups[0].device.name]
    kept = {name: value for name, value in known.items() if name in law.extras or name in names}
    return best(errors, fit, {**{c.name: first[c.name] for c in fit if c.name in first}, **kept})


def best(errors: Residuals, constants: Sequence[Constant], start: Values) -> Values:
    """The better of two fits, from a start and from that of each constant: either may end in a valley of its own."""
    others = {name: value for name, value in start.items() if name not in {c.name for c in constants}}
    return min((fitted(errors, constants, first) for first in (start, others)), key=lambda c: loss(errors(c)))


def carried_names(law: Law, variant: str) -> set[str]:
    """The extras of a variant that hold on other devices; all of them where the host is what was measured."""
    names = extra_names(law, variant)
    return names if "host" in names else names & CARRIED.get(law.name, names)


def extra_names(law: Law, variant: str) -> set[str]:
    """The extras that a variant of a law has. fp8_block and eager were measured launched one by one from the host."""
    form = variant.partition(".")[0]
    names = {"host"} if variant == "eager" or (law is PRODUCT and form == "fp8_block") else {"rate", "start"}
    names -= {"rate"} if law is DECODE else set()
    if form in QUANTISED and law in (PRODUCT, MIXTURE):
        names |= (
            {"rate", "quantise"}
            | ({"element"} if form in EIGHT else set())
            | ({"quantised_row"} if form in BY_ROW else set())
        )
    names |= {"turned"} if variant == "fp8.fa3" else set()
    return (names & law.extras.keys()) | (OTHERS.get(law.name, set()) if variant != "eager" else set())


def residuals(law: Law, c: Mapping[str, float], group: Measured) -> Any:
    """Logarithms of predicted over measured."""
    return np.log(law.parts(c, group.device, group.work).seconds / group.seconds)
