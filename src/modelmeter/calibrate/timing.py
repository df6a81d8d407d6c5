"""Timing on a machine that others use too: every question is asked in turn, again and again, until the time is up.

So noise that comes and goes falls on all of them, and the median of a question's calls is what a model's calls take.
The order is such that whatever was asked until then serves: each law in turn, its sizes spread ever finer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from time import perf_counter, process_time
from typing import Any, NamedTuple, Protocol

import numpy as np

CALLS = 3
"""Calls of a question each time that it is asked."""
LONGEST = 0.004
"""Share of all seconds that one call may take; what takes longer is asked once and left out after that."""
FEWEST = 4
"""Answers that a law needs: so many of each are asked, however little time there is."""
ALONE = 0.9
"""Share of a call's seconds that its process must have had a core for: less, and another one had it in between."""
SILENT = 5.0
"""Seconds between two words about how far it is."""


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


class Bench(Protocol):
    """Where kernels are timed: a processor, a GPU, or what stands for one."""

    def calls(self, question: Question, first: int, many: int) -> list[Call]:
        """So many calls of a question, the first of which is its `first`-th."""

    def clock(self) -> float:
        """Seconds that count for the time given."""


class Processor:
    """This machine's processor; its clock runs while the threads have a core."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def calls(self, question: Question, first: int, many: int) -> list[Call]:
        return [timed(question.ready(first + i)) for i in range(many)]

    def clock(self) -> float:
        return process_time() / self._threads


def asked(questions: Iterable[Question], seconds: float, bench: Bench, told: Callable[[str], None]) -> list[Answer]:
    """The answers to as many questions as seconds of the bench allow, FEWEST of each law and variant at least."""
    every, end = in_order(questions), bench.clock() + seconds
    first = _once(every, end, bench, told)
    again = _again(every, first, (seconds, end), bench, told)
    return [_answer(every[index], calls, again[index]) for index, calls in first.items()]


def _once(every: Sequence[Question], end: float, bench: Bench, told: Callable[[str], None]) -> dict[int, list[Call]]:
    """A call of each until the time is up. One that cannot be asked here (RuntimeError: no such kernel, no memory) is
    left out, and told."""
    least, due = FEWEST * len({(question.law, question.variant) for question in every}), bench.clock() + SILENT
    found: dict[int, list[Call]] = {}
    lacking: dict[str, None] = {}
    for index, question in enumerate(every):
        if index >= least and bench.clock() > end:
            break
        try:
            found[index] = bench.calls(question, 0, 1)
        except RuntimeError as error:
            lacking[f"{question.law} in {question.variant} cannot be asked: {f'{error}'.splitlines()[0]}"] = None
        if bench.clock() > due:
            told(f"{len(found)} of {len(every)} kernels asked; {max(end - bench.clock(), 0):.0f} s left")
            due = bench.clock() + SILENT
    for why in lacking:
        told(why)
    return found


def _again(
    every: Sequence[Question], first: dict[int, list[Call]], until: tuple[float, float], bench: Bench,
    told: Callable[[str], None],
) -> dict[int, list[Call]]:  # fmt: skip
    """Further calls of all that is not too dear, in rounds, until the time is up (its seconds, its end)."""
    (seconds, end), shuffled, due = until, random.Random(0), bench.clock() + SILENT
    found: dict[int, list[Call]] = {index: [] for index in first}
    order = [i for i, [call] in first.items() if call.seconds * min(call.share, 1.0) < LONGEST * seconds]
    told(f"{len(first)} of {len(every)} kernels asked, {len(order)} of them are asked again and again")
    while order and bench.clock() < end:
        shuffled.shuffle(order)
        for index in order:
            if bench.clock() > end:
                break
            found[index] += bench.calls(every[index], 1 + len(found[index]), CALLS)
        if bench.clock() > due:
            told(f"{sum(map(len, found.values())):,} calls more; {max(end - bench.clock(), 0):.0f} s left")
            due = bench.clock() + SILENT
    return found


def in_order(questions: Iterable[Question]) -> list[Question]:
    """Each law and variant in turn, and of each first the ends of its list, then what is between, ever finer.

    >>> questions = [Question("law", "fp32", {"m": m}, lambda i: lambda: None) for m in range(5)]
    >>> [question.work["m"] for question in in_order(questions)]
    [0, 4, 2, 1, 3]
    """
    kinds: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        kinds.setdefault((question.law, question.variant), []).append(question)
    columns = ([own[i] for i in _finer(len(own))] for own in kinds.values())
    return [question for row in zip_longest(*columns) for question in row if question is not None]


def _finer(count: int) -> list[int]:
    """The places of a list: its ends, its middle, the middles of what is between."""
    found, steps = dict.fromkeys((0, count - 1)), 2
    while len(found) < count:
        found |= dict.fromkeys(round(i * (count - 1) / steps) for i in range(1, steps, 2))
        steps *= 2
    return list(found)


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
