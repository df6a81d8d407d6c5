"""Timing on a machine that others use too: every question is asked in turn, again and again, until the time is up.

So noise that comes and goes falls on all of them, and the median of a question's calls is what a model's calls take.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

CALLS = 3
"""Calls of a question each time that it is asked."""
LONGEST = 0.004
"""Share of all seconds that one call may take; what takes longer is asked once and left out after that."""


class Question(NamedTuple):
    """A kernel to time: its law and variant, its sizes as a law takes them; `ready(i)` prepares the i-th call of it."""

    law: str
    variant: str
    work: dict[str, float]
    ready: Callable[[int], Callable[[], Any]]


class Answer(NamedTuple):
    """A question, the median of its seconds, how many calls, and the quarter and three quarters of them."""

    question: Question
    seconds: float
    calls: int
    quarter: float
    three_quarters: float


def asked(questions: Sequence[Question], seconds: float, told: Callable[[str], None]) -> list[Answer]:
    """The answers to all questions in so many seconds; each is asked at least once."""
    order, shuffled = list(range(len(questions))), random.Random(0)
    found: list[list[float]] = [[] for _ in questions]
    end, rounds = perf_counter() + seconds, 0
    while order and (rounds == 0 or perf_counter() < end):
        shuffled.shuffle(order)
        for index in order:
            if rounds and perf_counter() > end:
                break
            _ask(questions[index], found[index], 1 if rounds == 0 else CALLS)
        if rounds == 0:
            found, first = [[] for _ in questions], found
            order = [i for i in order if min(first[i]) < LONGEST * seconds]
            told(f"{len(order)} kernels of {len(questions)}; the others take longer than {LONGEST * seconds:.2g} s a call")
        rounds += 1
        if rounds % 5 == 1:
            told(f"round {rounds}, {max(end - perf_counter(), 0):.0f} s left")
    return [_answer(questions[i], times) for i, times in enumerate(found) if times]


def _ask(question: Question, into: list[float], calls: int) -> None:
    for _ in range(calls):
        call = question.ready(len(into))
        start = perf_counter()
        call()
        into.append(perf_counter() - start)


def _answer(question: Question, times: Sequence[float]) -> Answer:
    quarter, median, three = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    return Answer(question, median, len(times), quarter, three)
