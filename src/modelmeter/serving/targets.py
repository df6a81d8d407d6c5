"""Targets of a service, and the greatest load at which it meets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from modelmeter.errors import InputError, choose
from modelmeter.serving.closed_form import ClosedForm
from modelmeter.serving.numbers import above
from modelmeter.serving.served import Served

LEVELS = ("mean", "p50", "p90", "p99")
TIMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "end to end"}
CLOSE = 0.01
"""The greatest load is found to this share."""


@final
@dataclass(frozen=True)
class Targets:
    """Seconds that must not be exceeded, at a level over requests: the mean or a percentile. None: no target.

    >>> Targets(ttft_s=2, level="p9")
    Traceback (most recent call last):
    modelmeter.errors.InputError: unknown level 'p9', did you mean 'p99'? Valid: mean, p50, p90, p99
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    level: str = "p90"

    def __post_init__(self) -> None:
        for name in TIMES:
            if getattr(self, name) is not None:
                above(name, getattr(self, name))
        choose("level", self.level, LEVELS)

    def shares(self, served: Served) -> dict[str, float]:
        """Which share of each target is taken; above 1 it is missed."""
        told = {name: getattr(self, name) for name in TIMES if getattr(self, name) is not None}
        return {name: getattr(served, name).at(self.level) / most for name, most in told.items()}

    def missed(self, served: Served) -> str:
        """Which target is missed most, in words; empty where all are met and the load is borne."""
        if not served.steady:
            return f"the load is beyond what the {served.binds} bears"
        worst = max(self.shares(served).items(), key=lambda pair: pair[1], default=("", 0.0))
        if worst[1] <= 1:
            return ""
        value = getattr(served, worst[0]).at(self.level)
        return f"{TIMES[worst[0]]} is {value:.3g} s ({self.level}) where {getattr(self, worst[0]):g} s is asked"


def greatest_load(answer: ClosedForm, targets: Targets) -> tuple[float, str]:
    """The greatest rate (requests a second) that meets all targets, and what is missed beyond it, in words.

    A rate of 0 says that a request alone misses them. The times grow with the load, so that bisection finds it.
    """
    if answer.service.engine.policy == "static":
        raise InputError("a static batch has no load in requests a second: choose another policy")
    most = answer.greatest
    if most == float("inf"):
        raise InputError("a service whose step times are 0 bears any load: give step times")
    low, high, reason = 0.0, most, targets.missed(answer.at(most))
    lone = targets.missed(answer.at(most * 1e-3))
    if lone:
        return 0.0, f"{lone}, even with nobody else there"
    while high - low > CLOSE * high:
        middle = (low + high) / 2 if low else high * 0.7
        missed = targets.missed(answer.at(middle))
        low, high, reason = (low, middle, missed) if missed else (middle, high, reason)
    return low, reason
