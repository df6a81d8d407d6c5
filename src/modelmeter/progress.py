"""Progress: how far a long loop is, told on standard error while it runs, and never before two seconds are over.

On a terminal it is one line that is written over and removed in the end; elsewhere a plain line now and then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TextIO, TypeVar

T = TypeVar("T")

SILENT, OVER, APART = 2.0, 0.2, 10.0
"""Seconds before the first word, between two of them on a terminal, and between two lines elsewhere."""


def watched(
    items: Iterable[T], what: str, many: int, to: TextIO | None = None, now: Callable[[], float] = monotonic
) -> Iterator[T]:
    """The items one by one, `many` of them, while a person is told how many are done.

    >>> import io
    >>> told, clock = io.StringIO(), iter([0.0, 1.0, 11.0, 12.0])
    >>> list(watched("abc", "letters", 3, told, lambda: next(clock))), told.getvalue()
    (['a', 'b', 'c'], '2 of 3 letters\\n')
    """
    to = to or sys.stderr
    live = to.isatty()
    width, due = 0, now() + (SILENT if live else APART)
    try:
        for done, item in enumerate(items, 1):
            yield item
            if (at := now()) >= due and done < many:
                line = f"{done} of {many} {what}"
                to.write(f"\r{line:{width}}" if live else f"{line}\n")
                to.flush()
                width, due = len(line), at + (OVER if live else APART)
    finally:
        if live and width:
            to.write(f"\r{'':{width}}\r")
            to.flush()
