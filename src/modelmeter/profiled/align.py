"""Lays what ran beside what is expected: the cheapest way through a program with loops.

Each that ran is either the next kernel, or has no counterpart; each kernel that is passed by lacks. Behind a repeated
layer the same one may come again, or a neighbour that is repeated too, and behind the last kernel the first. Nothing
is counted here: how often a kernel should have run is asked afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from modelmeter.profiled.expected import Expected, Extent, Loop, Program
from modelmeter.profiled.kinds import Sizes
from modelmeter.profiled.recorded import Ran
from modelmeter.progress import watched

Costs = NDArray[np.int64]
EXTRA, LACKING = 1000, 1000
"""What it costs that one that ran has no counterpart, that a kernel is passed by."""
ALIKE = {"compute", "copy", "lookup"}
OTHER_KIND = 500
"""What it costs that a copy stands for arithmetic or the reverse: some code casts on the way, some does not."""
AFTER = 1
"""What it costs to begin again, so that what fits twice goes on."""
NOWHERE = 10**12
"""More than any way costs."""
NEAR = 30
"""How many kernels away one of another order may be."""


def matched(ran: Sequence[Ran], program: Program) -> tuple[list[int], int]:
    """For each that ran the place of its kernel in the program, -1 for none; and how often the stage ran.

    What is left over by `aligned` may be of another order than the program: it is the kernel nearby, of its kind and
    sizes, that lacks most often, of equals the first.
    """
    places = aligned(ran, program)
    passes = passes_of(places, program)
    lacks = [kernel.runs * passes for kernel in program.kernels]
    for place in (place for place in places if place >= 0):
        lacks[place] -= 1
    near = 0
    for index, one in enumerate(ran):
        near = places[index] if places[index] >= 0 else near
        told = (one.sizes and None not in one.sizes) or one.kind in ("product", "attention")
        if places[index] < 0 and told:
            fits = [i for i, k in enumerate(program.kernels) if lacks[i] > 0.5 and fit(one.kind, one.sizes, k) == 0]
            fits = [i for i in fits if abs(i - near) <= NEAR]
            if fits:
                places[index] = max(fits, key=lambda i: (lacks[i], -i))
                lacks[places[index]] -= 1
    return places, passes


def passes_of(places: Sequence[int], program: Program) -> int:
    """How often a stage ran: each way back that is not one to a repeated layer begins it anew."""
    chains = [(chain[0].first, chain[-1].last) for chain in chains_of(program.loops)]
    found = [place for place in places if place >= 0]
    back = [(i, j) for i, j in pairwise(found) if j <= i]
    anew = [(i, j) for i, j in back if not any(first <= j and i <= last for first, last in chains)]
    return len(anew) + 1


def aligned(ran: Sequence[Ran], program: Program) -> list[int]:
    """The places as far as the order of the program goes."""
    if not ran or not program.kernels:
        return [-1] * len(ran)
    fits = _Fits(program.kernels)
    edges = list(_edges(program))
    state = np.full(len(program.kernels), NOWHERE, np.int64)
    enter, source = _entries(state, edges, begins=0)
    came = np.empty((len(ran), len(program.kernels)), np.int16)
    none = 0
    for index, one in enumerate(watched(ran, f"events laid beside {program.stage}", len(ran))):
        matched, stays = enter + fits(one), state + EXTRA
        came[index] = np.where(matched <= stays, source, _STAYS)
        state, none = np.minimum(matched, stays), none + EXTRA
        enter, source = _entries(state, edges, begins=none)
    return _path(came, state, none)


_STAYS = -2


def _path(came: NDArray[np.int16], state: Costs, none: int) -> list[int]:
    """The way back from the cheapest end."""
    at = int(np.argmin(state)) if state.min() <= none else -1
    found = [-1] * len(came)
    for index in range(len(came) - 1, -1, -1):
        if at < 0:
            break
        if came[index, at] != _STAYS:
            found[index], at = at, int(came[index, at])
    return found


def _edges(program: Program) -> list[tuple[int, int]]:
    """From which kernel which earlier (or later) one may follow without one lacking."""
    again = [(one.last, other.first) for chain in chains_of(program.loops) for one in chain for other in chain]
    return [*dict.fromkeys(again), (len(program.kernels) - 1, 0)]


def chains_of(loops: Iterable[Loop]) -> list[list[Loop]]:
    """Repeated layers, those that follow one another together: a model may take them in turn."""
    chains: list[list[Loop]] = []
    for loop in sorted(set(loops)):
        behind = next((chain for chain in chains if chain[-1].last + 1 == loop.first), None)
        if behind is None:
            chains.append([loop])
        else:
            behind.append(loop)
    return chains


def _entries(state: Costs, edges: Sequence[tuple[int, int]], begins: int) -> tuple[Costs, NDArray[np.int32]]:
    """What it costs to be about to run each kernel, and the kernel that ran before it (-1: none)."""
    base = np.concatenate([[begins], state[:-1]])
    before = np.arange(-1, len(state) - 1, dtype=np.int32)
    enter, source = _passing(base, before)
    for last, first in edges:
        passed = enter[last] + LACKING
        leaves, by = (state[last], last) if state[last] <= passed else (passed, source[last])
        if leaves + AFTER < enter[first]:
            base[first], before[first] = leaves + AFTER, by
            enter, source = _passing(base, before)
    return enter, source


def _passing(base: Costs, source: NDArray[np.int32]) -> tuple[Costs, NDArray[np.int32]]:
    """The same where kernels may be passed by: the cheapest of those before, at LACKING each."""
    places = np.arange(len(base))
    least = np.minimum.accumulate(base - places * LACKING)
    stale = np.zeros(len(base), bool)
    np.equal(least[1:], least[:-1], out=stale[1:])  # of equals the first, so that what lacks does so at the end
    where = np.maximum.accumulate(np.where(stale, 0, places))
    return least + places * LACKING, source[where]


class _Fits:
    """What it costs to take each kernel for one that ran; those that are alike are asked once."""

    def __init__(self, kernels: Sequence[Expected]) -> None:
        self._kernels = kernels
        self._known: dict[tuple[str, Sizes], Costs] = {}

    def __call__(self, ran: Ran) -> Costs:
        key = (ran.kind, ran.sizes)
        if key not in self._known:
            self._known[key] = np.array([fit(ran.kind, ran.sizes, kernel) for kernel in self._kernels])
        return self._known[key]


def fit(kind: str, sizes: Sizes, kernel: Expected) -> int:
    """What it costs to take a kernel for one of this kind and these sizes."""
    if kind != kernel.kind and not {kind, kernel.kind} <= ALIKE:
        return NOWHERE
    if sizes and not all(map(_within, sizes, kernel.sizes)):
        return NOWHERE
    return 0 if kind == kernel.kind else OTHER_KIND


def _within(size: float | None, extent: Extent) -> bool:
    return size is None or extent[0] <= size <= extent[1]
