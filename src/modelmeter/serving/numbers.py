"""What a number that a user gives may be: the sentences that refuse one that is none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelmeter.errors import InputError

Array = NDArray[np.float64]
"""One value a request, a batch or a point, as float64."""
MOST = 1e18


def at_least(key: str, value: Any, least: float = 0.0, *, infinite: bool = False) -> float:
    """The value if it is a number of at least `least`; raises InputError if it is not.

    >>> at_least("rate", 2), at_least("kv_bytes", float("inf"), infinite=True)
    (2.0, inf)
    """
    ok = not isinstance(value, bool) and isinstance(value, (int, float, np.integer, np.floating))
    if not ok or not (least <= value <= MOST or (infinite and value == math.inf)):
        raise InputError(f"{key} must be a number of at least {least:g}, not {value!r}")
    return float(value)


def above(key: str, value: Any, *, infinite: bool = False) -> float:
    """The value if it is a number above 0; raises InputError if it is not."""
    ok = not isinstance(value, bool) and isinstance(value, (int, float, np.integer, np.floating))
    if not ok or not (0 < value <= MOST or (infinite and value == math.inf)):
        raise InputError(f"{key} must be a number above 0, not {value!r}")
    return float(value)


def whole(key: str, value: Any, least: int = 1) -> int:
    """The value if it is a whole number of at least `least`; raises InputError if it is not."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= MOST:
        raise InputError(f"{key} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def seconds(what: str, values: Any, like: Array) -> Array:
    """The answer of a law of step times as an array; raises InputError for one that is no time."""
    found = np.asarray(values, dtype=np.float64)
    if not (found.size and found.min() >= 0 and found.max() < np.inf):  # nan is neither
        raise InputError(f"{what} must give finite seconds of at least 0, not {values!r}")
    return found if found.shape == like.shape else np.broadcast_to(found, like.shape).copy()
