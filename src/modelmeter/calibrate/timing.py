"""Timing on a machine that others use too: every question is asked in turn, again and again, until the time is up.

So noise that comes and goes falls on all of them, and the median of a question's calls is what a model's calls take.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np

CALLS = 3
"""Calls of a question each time that it is asked."""
LONGEST = 0.004
"""Share of all seconds that one call may take; what takes longer is asked once and left out after that."""

ALONE = 0.9
"""Share of a call's seconds that its process must have had a core for: less, and another one had it in between."""


class Question(NamedTuple):
    """A kernel to time: its law and variant, its sizes as a law takes them; `ready(i)` prepares the i-th call of it."""

    law: str
    variant: str
    work: dict[str, float]
    ready: Callable[[int], Callable[[], Any]]


class Call(NamedTuple):
    """Seconds of a call, and for what share of them its process had a core."""

    seconds: float
    share: float


class Answer(NamedTuple):
    """A question, the median of its seconds, how many calls, and the quarter and three quarters of them."""

    question: Question
    seconds: float
    calls: int
    quarter: float
    three_quarters: float


def asked(questions: Sequence[Question], seconds: float, threads: int, told: Callable[[str], None]) -> list[Answer]:
    """The answers to all questions, each asked at least once, in so many seconds in which the threads have a core."""
    order, shuffled = list(range(len(questions))), random.Random(0)
    first: list[list[Call]] = [[] for _ in questions]
    found = first
    end, rounds = process_time() + seconds * threads, 0
    while order and (rounds == 0 or process_time() < end):
        shuffled.shuffle(order)
        for index in order:
            if rounds and process_time() > end:
                break
            _ask(questions[index], found[index], 1 if rounds == 0 else CALLS)
        if rounds == 0:
            found = [[] for _ in questions]
            order = [i for i in order if first[i][0].seconds * min(first[i][0].share, 1.0) < LONGEST * seconds]
            told(f"{len(order)} of {len(questions)} kernels again; the others are too dear")
        rounds += 1
        if rounds % 5 == 1:
            told(f"round {rounds}, {max(end - process_time(), 0) / threads:.0f} s left")
    return [_answer(question, *calls) for question, *calls in zip(questions, first, found, strict=True)]


def _ask(question: Question, into: list[Call], calls: int) -> None:
    into.extend(timed(question.ready(len(into) + i)) for i in range(calls))


def timed(run: Callable[[], Any]) -> Call:
    """A call, timed."""
    busy, start = process_time(), perf_counter()
    run()
    seconds = perf_counter() - start
    return Call(seconds, (process_time() - busy) / seconds)


def undisturbed(calls: Sequence[Call]) -> list[float]:
    """Seconds of the calls that had a core for themselves; where none had, what all of them had of one."""
    alone = [call.seconds for call in calls if call.share > ALONE]
    return alone or [call.seconds * min(call.share, 1.0) for call in calls]


def _answer(question: Question, first: Sequence[Call], calls: Sequence[Call]) -> Answer:
    """What came of a question: its first call, which waits for more than others do, only if there was no other."""
    kept = undisturbed(calls or first)
    quarter, median, three = np.quantile(kept, (0.25, 0.5, 0.75)).tolist()
    return Answer(question, median, len(kept), quarter, three)
