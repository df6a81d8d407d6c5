"""Fitting: Levenberg-Marquardt on the logarithms of constants, with a loss that outliers pull at but little.

Every constant is above 0 and has bounds, so its logarithm is what is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelmeter.seconds.laws import Constant

Residuals = Callable[[dict[str, float]], Any]
SOFT = 0.1
"""Errors above this share count by their size, below it by its square."""


def fitted(
    residuals: Residuals, constants: Sequence[Constant], start: dict[str, float], rounds: int = 60
) -> dict[str, float]:
    """The constants that make the logarithms of predicted over measured (`residuals`) least; others stay as in `start`.

    >>> slope = Constant("slope", 1.0, 0.1, 10.0, "")
    >>> round(fitted(lambda c: np.log(c["slope"] * np.ones(4) / 3.0), [slope], {})["slope"], 3)
    3.0
    """
    low, high = (np.log([getattr(c, side) for c in constants]) for side in ("low", "high"))
    names = [c.name for c in constants]

    def at(point: Any) -> Any:
        return residuals({**start, **dict(zip(names, np.exp(point).tolist(), strict=True))})

    point = np.clip(np.log([start.get(c.name) or c.start for c in constants]), low, high)
    errors, damping = at(point), 1e-2
    for _ in range(rounds):
        step, found, damping = _step(at, point, errors, (low, high), damping)
        if step is None or found is None:
            break
        gained = loss(errors) - loss(found)
        point, errors, damping = step, found, max(damping / 5, 1e-7)
        if gained < 5e-5 * loss(errors):
            break
    return {**start, **dict(zip(names, np.exp(point).tolist(), strict=True))}


def _step(at: Any, point: Any, errors: Any, bounds: tuple[Any, Any], damping: float) -> tuple[Any, Any, float]:
    """The next point that is better, its errors, and the damping that it took; None if there is none."""
    slopes = np.stack([_slope(at, point, errors, i, bounds[1]) for i in range(point.size)], axis=1)
    weighted = slopes / np.sqrt(1 + (errors / SOFT) ** 2)[:, None]
    curve, pull = weighted.T @ slopes, weighted.T @ errors
    ridge = np.diag(curve) + 1e-9 * np.trace(curve) + 1e-12
    for _ in range(8):
        change = np.clip(np.linalg.solve(curve + damping * np.diag(ridge), -pull), -0.7, 0.7)
        step = np.clip(point + change, *bounds)
        found = at(step)
        if loss(found) < loss(errors):
            return step, found, damping
        damping *= 4
    return None, None, damping


def _slope(at: Any, point: Any, errors: Any, i: int, high: Any) -> Any:
    beside = point.copy()
    beside[i] += -1e-3 if point[i] + 1e-3 > high[i] else 1e-3
    return (at(beside) - errors) / (beside[i] - point[i])


def loss(errors: Any) -> float:
    """What a fit makes least: the square of small errors, the size of large ones."""
    return float(np.sum(np.sqrt(1 + (errors / SOFT) ** 2) - 1))
