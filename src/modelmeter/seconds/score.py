"""The score of the laws: errors by kind, format, device and range of size, beside those of a plain roofline.

Two kinds of rows that no fit has seen: shapes left out (one in five, by a hash of the shape, on every device), and
devices left out (all rows of a device, with constants of the others). Both are fitted here, anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelmeter.seconds.constants import RANGES
from modelmeter.seconds.measured import Measured
from modelmeter.seconds.predict import seconds_of_work
from modelmeter.seconds.shapes import NVIDIA
from modelmeter.seconds.train import PLAIN, TRAINED, Trained, extra_names, residuals, train

NAMES = ("below 2 us", "2 to 20 us", "20 to 200 us", "above 200 us")
"""The ranges of size, by what a plain roofline says."""
LEAST = 10
"""A range with fewer rows tells nothing."""


@dataclass(frozen=True)
class Score:
    """Errors of one law, variant and device on rows left out: logarithms of predicted over measured, a roofline's too.

    `known` says whether the variant was measured on a device that took part in the fit.
    """

    law: str
    variant: str
    device: str
    left_out: str
    errors: Any
    roofline: Any
    size: Any
    known: bool

    @property
    def launched(self) -> bool:
        """Whether the host launched its kernels one by one: such times tell of the loop, not of the kernel."""
        return "host" in extra_names(TRAINED[self.law], self.variant)

    def quantile(self, share: float) -> float:
        """The error that a share of the rows is below."""
        return _quantile(self.errors, share)

    @property
    def plain(self) -> float:
        """The median error of a roofline."""
        return _quantile(self.roofline, 0.5)

    def median(self, size: int) -> float | None:
        """The median error in a range of size; None where too few rows are in it."""
        chosen = self.size == size
        return _quantile(self.errors[chosen], 0.5) if chosen.sum() >= LEAST else None

    def rows(self, size: int) -> int:
        """How many rows are in a range of size."""
        return int((self.size == size).sum())


def _quantile(errors: Any, share: float) -> float:
    return float(np.quantile(np.abs(np.expm1(errors)), share))


Told = Callable[[str], None]


def scores(groups: Sequence[Measured], told: Told = lambda _: None) -> Iterator[tuple[Trained, list[Score]]]:
    """For each law its constants from the shapes that are not left out, and all scores; `told` hears what is done."""
    for name in (name for name in TRAINED if any(g.law == name for g in groups)):
        own = [g for g in groups if g.law == name]
        told(f"{name}: {sum(map(len, own)):,} rows, shapes left out")
        trained = train(own, TRAINED[name])
        found = [_score(trained, g.where(g.held), "shapes") for g in own if g.held.any()]
        for device in dict.fromkeys(g.device.name for g in own):
            if not any(g.device.name != device and g.device.architecture in NVIDIA for g in own):
                told(f"{name}: {device} cannot be left out, as no other NVIDIA device is there to fit")
                continue
            told(f"{name}: {device} left out")
            others = train(own, TRAINED[name], own=False, leave=device)
            found += [_score(others, g, "device") for g in own if g.device.name == device]
        yield trained, found


@dataclass(frozen=True)
class Unseen:
    """A score on a device that no constant was fitted on, by the constants that ship: what a prediction would say.

    `inside` is the share of rows that were in the interval of 90 %; `derived` says whose constants these are.
    """

    score: Score
    inside: float
    derived: str


def unseen(groups: Iterable[Measured]) -> Iterator[Unseen]:
    """Scores by the constants that ship, of devices that have none of their own for a law."""
    for group in (g for g in groups if g.law not in g.device.laws):
        said = seconds_of_work(group.law, group.variant, {**group.work, "roofline": group.roofline}, group.device)
        errors, roofline = (np.log(np.maximum(x, 1e-12) / group.seconds) for x in (said.seconds, group.roofline))
        inside = float(np.mean((said.low <= group.seconds) & (group.seconds <= said.high)))
        size = np.digitize(group.roofline, RANGES)
        row = Score(group.law, group.variant, group.device.name, "device", errors, roofline, size, True)
        yield Unseen(row, inside, said.derived)


def _score(trained: Trained, group: Measured, left_out: str) -> Score:
    errors = residuals(trained.law, trained.constants(group.device.name, group.variant), group)
    roofline = np.log(np.maximum(group.roofline, 1e-12) / group.seconds)
    size = np.digitize(group.roofline, RANGES)
    known = group.variant in (*PLAIN, *trained.extras, *trained.own_extras.get(group.device.name, ()))
    return Score(group.law, group.variant, group.device.name, left_out, errors, roofline, size, known)


def spread(found: Iterable[Score], nvidia: Iterable[str]) -> dict[str, list[list[float]]]:
    """Factors on predicted seconds that 90 % of the measured ones are between, by range of size.

    By what was left out: shapes, devices, and formats, which no other device was measured in.
    """
    names = set(nvidia)
    own = [s for s in found if s.device in names and not s.launched]
    devices = [s for s in own if s.left_out == "device"]
    kinds = {
        "shapes": [s for s in own if s.left_out == "shapes"],
        "devices": [s for s in devices if s.known],
        "formats": [s for s in devices if not s.known],
    }
    return {kind: _factors(rows or kinds["devices"]) for kind, rows in kinds.items()}


def _factors(kept: Sequence[Score]) -> list[list[float]]:
    errors, size = (np.concatenate([getattr(s, name) for s in kept]) for name in ("errors", "size"))
    rows = [errors[size == i] if (size == i).sum() >= LEAST else errors for i in range(len(NAMES))]
    return [[float(np.exp(-np.quantile(row, share))) for share in (0.95, 0.05)] for row in rows]


def of_nvidia(groups: Iterable[Measured]) -> set[str]:
    """The names of the devices that share constants."""
    return {g.device.name for g in groups if g.device.architecture in NVIDIA}
