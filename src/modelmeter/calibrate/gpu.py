"""A GPU measured with torch, and the laws of time fitted to it: those of all GPUs, with constants of its own.

A minute tells less than a database of kernels. So every constant is held to what is known of the device, or of its
like, as a measurement of it would: what the answers say nothing of stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from modelmeter.calibrate import kernels
from modelmeter.calibrate.facts import Facts, figures, known_of
from modelmeter.calibrate.fits import digits
from modelmeter.calibrate.timing import FEWEST, Answer, Bench, Question, asked
from modelmeter.device import Device
from modelmeter.seconds.attention import PREFILL, VISION
from modelmeter.seconds.constants import constants_of
from modelmeter.seconds.decode import DECODE
from modelmeter.seconds.laws import EXTRAS, Constant, Law, Work
from modelmeter.seconds.product import PRODUCT
from modelmeter.seconds.shapes import attention_work, product_work
from modelmeter.seconds.stream import STREAM
from modelmeter.seconds.train import OTHERS, best

LAWS = {"vector": PRODUCT, "matrix": PRODUCT, "batched": PRODUCT, "attention": PREFILL, "vision": VISION,
        "step": DECODE, "stream": STREAM, "levels": STREAM}  # fmt: skip
"""The law of a GPU that a question is of."""
PULL = 0.05
"""How much a constant that is e times what is known counts, in errors of one answer."""
STREAMED = frozenset({"launch", "fill", "stream", "sharp", "cached", "near"})
"""Constants of products that streams have too; those of a GPU that was measured are their own."""
Known = Mapping[str, float]


def questions(wanted: Mapping[str, Any], place: str) -> Iterator[Question]:
    """All that is asked of a GPU: kernels of every law in the first format, products in the others."""
    first, *others = wanted["formats"]
    yield from kernels.levels(wanted, first, place)
    yield from kernels.questions(wanted, first, place)
    products = {key: wanted[key] for key in ("pool", "rows", "shapes")}
    for form in others:
        yield from kernels.questions(products, form, place)
    yield from kernels.links(wanted, place)


class Group(NamedTuple):
    """Answers of a law in a variant: the work of the law, the seconds."""

    law: Law
    variant: str
    work: Work
    seconds: Any

    def errors(self, constants: Known, device: Device) -> Any:
        """Logarithms of predicted over measured."""
        return np.log(self.law.parts(constants, device, self.work).seconds / self.seconds)


def groups_of(answers: Sequence[Answer], device: Device) -> list[Group]:
    """The answers that laws explain, those of a law and variant together."""
    found: dict[tuple[str, str], list[Answer]] = {}
    for answer in (answer for answer in answers if answer.question.law in LAWS):
        found.setdefault((LAWS[answer.question.law].name, answer.question.variant), []).append(answer)
    return [
        Group(LAWS[own[0].question.law], form, _work(own, device), np.array([a.seconds for a in own]))
        for (_, form), own in found.items()
        if len(own) >= FEWEST
    ]


def _work(answers: Sequence[Answer], device: Device) -> Work:
    """The work of a law; operands are not where the last run left them."""
    law, form = LAWS[answers[0].question.law], answers[0].question.variant
    sizes = lambda name: np.array([a.question.work.get(name, 0.0) for a in answers])
    if law is STREAM:
        moved = sizes("near") + sizes("far") + sizes("moved")
        return {"bytes": moved, "operations": sizes("operations"), "warm": False}
    if law is PRODUCT:
        m, n, k, batch = map(sizes, ("m", "n", "k", "batch"))
        return {**product_work(device, form, m, n, k, batch), "quantised": True}
    batch, heads, kv_heads, width, s, t = map(sizes, ("batch", "heads", "kv_heads", "width", "s", "t"))
    known = attention_work(device, law.name, "bf16", batch, heads, kv_heads, width, s, t)
    return {**known, "kernels": known["kernels"] - 1, "writes": False}


def laws_of(groups: Sequence[Group], device: Device, plain: str) -> dict[str, Any]:
    """The constants of each law that was measured, `plain` the format of its plain variant, and their errors."""
    found: dict[str, Any] = {}
    for group in (group for group in groups if group.variant == plain):
        known = constants_of(group.law, device, "bf16").constants
        values, error = _fitted(group, device, _searched(group.law), known)
        others = [other for other in groups if other.law is group.law and other.variant != plain]
        own = {other.variant: _variant(other, device, values) for other in others}
        before = device.laws.get(group.law.name, {}).get("variants", {})
        variants = {**before, **{form: extras for form, (extras, _) in own.items()}}
        found[group.law.name] = {
            **{c.name: digits(values[c.name]) for c in _searched(group.law)},
            **({"variants": variants} if variants else {}),
            "error": {plain: error, **{form: error for form, (_, error) in own.items()}},
        }
    return found


def _searched(law: Law) -> list[Constant]:
    """The constants that a fit of a law searches: streams have some of those of products."""
    return [c for c in PRODUCT.constants if c.name in STREAMED] if law is STREAM else list(law.constants)


def _variant(group: Group, device: Device, plain: Known) -> tuple[dict[str, float], float]:
    """Extras of a variant beside the plain constants, and their error; what quantises activations was not measured."""
    known = constants_of(group.law, device, group.variant).constants
    extras = {name: known.get(name, default) for name, default in group.law.extras.items() if name != "host"}
    names = {"rate", "start"} | OTHERS[group.law.name]
    searched = [c for c in (*EXTRAS, *group.law.constants) if c.name in names]
    values, error = _fitted(group, device, searched, {**plain, **extras})
    return {name: digits(values[name]) for name in (*extras, *sorted(names - extras.keys())) if values[name]}, error


def _fitted(
    group: Group, device: Device, constants: Sequence[Constant], known: Known
) -> tuple[dict[str, float], float]:
    """The constants that explain answers best, held to what is known of them; the median error."""

    def errors(c: Known) -> Any:
        return np.append(group.errors(c, device), [PULL * np.log(c[one.name] / known[one.name]) for one in constants])

    found = best(errors, constants, dict(known))
    return found, round(float(np.median(np.abs(np.expm1(group.errors(found, device))))), 3)


def rates_of(answers: Sequence[Answer]) -> dict[str, float]:
    """The best that was measured: FLOPs a second by format, bytes a second of the `memory` and of the `link`."""
    found: dict[str, float] = {}
    largest = max(a.question.work["moved"] for a in answers if a.question.law == "levels")
    for question, seconds, *_ in answers:
        work, law = question.work, question.law
        rate = {
            "matrix": (question.variant, 2 * work.get("m", 0) * work.get("n", 0) * work.get("k", 0)),
            "vector": ("memory", work.get("weights", 0)),
            "step": ("memory", work.get("cached", 0)),
            "levels": ("memory", work.get("moved", 0) if work.get("moved") == largest else 0),
            "link": ("link", work.get("moved", 0)),
        }.get(law)
        if rate:
            found[rate[0]] = max(found.get(rate[0], 0.0), rate[1] / seconds)
    return found


def measured(
    wanted: Mapping[str, Any], facts: Facts, catalogue: Iterable[Device], place: str, bench: Bench, seconds: float,
    told: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """What a device's YAML says of a GPU but for its date: figures, laws, what a node of a graph takes.

    `place` is where torch puts tensors ("cuda"); `seconds` are those of the bench.
    """
    answers = asked(questions(wanted, place), seconds, bench, told)
    known = known_of(facts, catalogue)
    values, where = figures(facts, known, rates_of(answers))
    described = {"title": facts.title, "source": where, "confidence": "A", **values}
    base = Device(name="calibrated", **described, laws=known.laws if known else {})
    laws = laws_of(groups_of(answers, base), base, wanted["formats"][0])
    kept = {name: law for name, law in base.laws.items() if name not in (*laws, "source", "date")}
    if kept:
        where += f"; laws of {', '.join(kept)}: {base.laws.get('source', 'the catalogue')}"
    least = min(answer.seconds for answer in answers if answer.question.law == "levels")
    host = {"graph": [digits(least * factor) for factor in (0.8, 1.0, 1.25)]}
    return {**described, "source": where, "laws": {"measured": " ".join(laws), **laws, **kept}, "host": host}
