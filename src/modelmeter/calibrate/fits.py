"""Constants of the laws of a processor from answers: robust least squares on the logarithms of what is off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from modelmeter.calibrate.timing import FEWEST, Answer
from modelmeter.seconds.fit import fitted
from modelmeter.seconds.processor import SUMS, Sum, ramp

NINE_OF_TEN = (0.05, 0.95)


def levels_of(answers: Sequence[Answer]) -> dict[float, float]:
    """Bytes a second by bytes moved, from additions of rising size, less what the smallest takes to launch."""
    found = sorted((a.question.work["moved"], a.seconds) for a in answers if a.question.law == "levels")
    launch = found[0][1]
    return {moved: moved / max(seconds - launch, seconds / 5) for moved, seconds in found[1:]}


def laws_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """The constants of each law in each format, with the error of the fit and its interval."""
    found: dict[str, Any] = {}
    for form in dict.fromkeys(a.question.variant for a in answers):
        own = [a for a in answers if a.question.variant == form]
        levels = levels_of(own)
        for law in SUMS.values():
            of = [a for a in own if a.question.law == law.name]
            if len(of) >= FEWEST:
                found.setdefault(law.name, {})[form] = _constants(law, of, levels)
    return found


def _constants(law: Sum, answers: Sequence[Answer], levels: Mapping[float, float]) -> dict[str, Any]:
    names = list(answers[0].question.work)
    work = {name: np.array([a.question.work[name] for a in answers]) for name in names}
    streams = "near" in work
    if streams:
        work["near"] = work["near"] / ramp(levels, work["near"])
    seconds = np.array([a.seconds for a in answers])
    found = constants_of(law, law.amounts(work), seconds)
    return found | (
        {"levels": {float(f"{size:.3g}"): digits(rate) for size, rate in levels.items()}} if streams else {}
    )


def constants_of(law: Sum, amounts: Mapping[str, Any], seconds: Any) -> dict[str, Any]:
    """Constants that make predicted seconds nearest to these; what 90 % of the measured ones are between."""

    def predicted(constants: Mapping[str, float]) -> Any:
        return sum(law.seconds(constants, dict(amounts)).values())

    start = {term.name: term.start for term in law.terms}
    found = fitted(lambda c: np.log(predicted(c) / seconds), law.constants, start)
    factors = seconds / predicted(found)
    low, high = np.quantile(factors, NINE_OF_TEN).tolist()
    error = median(abs(1 / factors - 1).tolist())
    told = {"error": round(error, 3), "low": round(min(low, 1.0), 3), "high": round(max(high, 1.0), 3)}
    return {name: digits(value) for name, value in found.items()} | told


def digits(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
