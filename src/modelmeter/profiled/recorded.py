"""What a profiler recorded, whichever it was: what ran, in order, and the ranges that were annotated."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from modelmeter.profiled.kinds import Sizes

STAGES = ("vision", "prefill", "decode")


class Ran(NamedTuple):
    """An operator of a CPU, or a kernel of a GPU with the operator that launched it, in seconds.

    `sizes` are () where no shapes were recorded. It was `launched` by the host then, and began at `start`.
    """

    name: str
    kind: str
    sizes: Sizes
    start: float
    seconds: float
    launched: float


class Range(NamedTuple):
    """An annotated range, by the host's clock."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Recorded:
    """What ran on one device; `source` says of what kind the file is, `on_gpu` whether kernels were recorded."""

    ran: tuple[Ran, ...]
    ranges: tuple[Range, ...]
    source: str
    on_gpu: bool

    @property
    def has_sizes(self) -> bool:
        """Whether shapes were recorded."""
        return any(one.sizes for one in self.ran)

    @property
    def stages(self) -> dict[str, list[Range]]:
        """Annotated ranges by the stage that their names tell, as a word of its own: the outermost ones."""
        found: dict[str, list[Range]] = {}
        for one in sorted(self.ranges, key=lambda r: (r.start, -r.end)):
            words = re.split(r"[\W_\d]+", one.name.lower())
            for stage in (stage for stage in STAGES if stage in words):
                known = found.setdefault(stage, [])
                if not known or one.start >= known[-1].end:
                    known.append(one)
        return found

    def within(self, ranges: Sequence[Range]) -> Iterator[Recorded]:
        """What was launched in each of these ranges."""
        order = sorted(range(len(self.ran)), key=lambda place: self.ran[place].launched)
        launched = [self.ran[place].launched for place in order]
        for one in ranges:
            own = order[bisect_left(launched, one.start) : bisect_left(launched, one.end)]
            yield replace(self, ran=tuple(self.ran[place] for place in sorted(own)))

    @property
    def wall(self) -> float:
        """Seconds from the first start to the last end."""
        return max(r.start + r.seconds for r in self.ran) - min(r.start for r in self.ran) if self.ran else 0.0

    @property
    def busy(self) -> float:
        """Seconds in which something ran, overlaps once."""
        total, end = 0.0, float("-inf")
        for one in sorted(self.ran, key=lambda r: r.start):
            over = one.start + one.seconds
            total += max(0.0, over - max(one.start, end))
            end = max(end, over)
        return total
