"""Mixtures of experts: two grouped products over the experts that the tokens reach, and the work around them.

Tokens are spread by a distribution: balanced, or by a power law (`loads`), whose heaviest device is the one that
counts. A grouped product has the tiles of every expert's rows, in waves over the multiprocessors; which shape a tile
has is a rule of the engine (`shapes.py`).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.seconds.laws import (
    Array,
    Constant,
    Constants,
    Law,
    Parts,
    Work,
    cycles_per_s,
    launch_seconds,
    soft,
    timed,
    whole,
)
from modelmeter.seconds.product import TILED, choices

TILES = np.array((16.0, 32.0, 64.0, 128.0)), np.array((64.0, 128.0, 256.0))
"""Rows and columns that a tile may have where no engine's rule tells them: the best ones are taken."""
PLACES = 6.0
"""Kernels that a measured mixture is: sorting (two), two products, the activation between them, the sum."""
STEPS = 64
"""Experts stand for at most so many quantiles of the distribution of their loads."""
DEALS = 5
"""Deals of the experts to devices that the heaviest device is the mean of."""


class Loads:
    """Rows of the experts of one device, `weights` experts for each of the quantiles `rows`, which are the first axis.

    Where experts have equal loads there is one quantile.
    """

    def __init__(self, rows: Array, weights: Array) -> None:
        self.rows, self.weights = rows, weights
        self.some = np.minimum(rows, 1.0)

    def where(self, kept: Array) -> Loads:
        """The loads of the kernels that a mask keeps."""
        return Loads(self.rows[:, kept], self.weights[:, kept])

    @property
    def total(self) -> Array:
        """Rows of all experts."""
        return _summed(self.rows * self.weights)

    @property
    def reached(self) -> Array:
        """Experts that have rows, expected."""
        return _summed(self.some * self.weights)

    @property
    def experts(self) -> Array:
        """Experts that the device has."""
        return _summed(self.weights)

    def tiles(self, rows: Array) -> Array:
        """Tiles of so many rows, expected; rows may have axes before those of the kernels."""
        further = (1,) * (np.ndim(rows) - np.ndim(self.rows) + 1)
        own, some, weights = (x.reshape(len(x), *further, *x.shape[1:]) for x in (self.rows, self.some, self.weights))
        return _summed(np.maximum(some, np.ceil(own / rows) * (own >= 1)) * weights)


def _summed(quantiles: Array) -> Array:
    return quantiles.sum(axis=0) if len(quantiles) > 1 else quantiles[0]


def loads(tokens: Array, active: Array, experts: Array, devices: Array, alpha: Array) -> Loads:
    """The loads of the heaviest of `devices` that share the experts, of which each token picks `active` ones.

    `alpha` is the exponent of a power law, 0 balanced. It is what NVIDIA's collector of kernels does, with quantiles in
    place of random numbers.

    >>> found = loads(np.array([16.0]), np.array([2.0]), np.array([8.0]), np.array([2.0]), np.array([0.0]))
    >>> found.total.tolist(), found.reached.tolist()
    ([16.0], [4.0])
    """
    shapes = np.stack(np.broadcast_arrays(tokens, active, experts, devices, alpha), axis=-1).astype(float)
    different, index = np.unique(shapes.reshape(-1, 5), axis=0, return_inverse=True)
    known = np.array([_quantiles(*shape) for shape in different.tolist()])[index.reshape(-1)]
    return Loads(*(known[:, i].T.reshape(STEPS, *shapes.shape[:-1]) for i in (0, 1)))


def _heaviest(tokens: float, active: float, experts: float, devices: float, alpha: float) -> Array:
    """Rows of each expert of the heaviest device, sorted: the mean of a few deals, the same ones each time."""
    count = int(min(devices, experts))
    own = int(experts // count)
    if alpha == 0:
        return np.full(own, max(tokens * active / experts, 1 / own))
    rows = np.minimum(np.round(_power_law(tokens, active, experts, alpha)), tokens)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DEALS):
        dealt = _completed(rng.permutation(rows)[: count * own].reshape(count, own), tokens * active - rows.sum())
        dealt = np.clip(dealt, 0, tokens)
        found.append(-np.sort(-dealt[dealt.sum(axis=1).argmax()]))
    return np.mean(found, axis=0)


def _power_law(tokens: float, active: float, experts: float, alpha: float) -> Array:
    """Rows of the experts: their density falls as rows^-alpha between 1 and 0.8 of the tokens (few: 0.01 and 2)."""
    low, high = (1.0, 0.8 * tokens) if tokens * active > experts else (0.01, 2.0)
    power, u = 1 - alpha, (np.arange(experts) + 0.5) / experts
    rows = ((high**power - low**power) * u + low**power) ** (1 / power)
    return rows * (tokens * active / rows.sum())


def _completed(dealt: Array, missing: float) -> Array:
    """Rows that rounding lost go to the devices in turn, each time to the least loaded expert; surplus likewise."""
    count, own = dealt.shape
    sign = np.sign(missing)
    share = (abs(missing) // count + (np.arange(count) < abs(missing) % count))[:, None]
    place = np.argsort(np.argsort(sign * dealt, axis=1, kind="stable"), axis=1, kind="stable")
    return dealt + sign * (share // own + (place < share % own))


@cache
def _quantiles(*shape: float) -> Array:
    """Rows and weights of `STEPS` quantiles of the experts; those beyond the number of experts weigh nothing."""
    rows = _heaviest(*shape)
    step = np.arange(rows.size) * STEPS // max(rows.size, STEPS)
    weights = np.bincount(step, minlength=STEPS).astype(float)
    return np.stack([np.bincount(step, rows, STEPS) / np.maximum(weights, 1), weights])


def _grouped(c: Constants, device: Device, found: Loads, n: Array, k: Array, w: Work) -> tuple[Array, Array]:
    """Seconds of the tiles of one grouped product in the best of the shapes that they may have, and of its memory.

    The loop of a tile takes no less than its loads take to arrive (`wait`), however few multiprocessors are busy.
    Marlin deals the loops of all tiles to the multiprocessors in equal shares (`striped`): its waves are not whole.
    """
    peak, left, right = (w[x] for x in ("peak", "left", "right"))
    units, clock, total = device.need("multiprocessors"), cycles_per_s(device), found.total
    each = units / (peak * c["speed"] * c.get("rate", 1.0))
    rows, columns = (choices(of, np.ndim(total)) for of in w.get("tiles", TILES))
    rows = rows[:, None]
    shared = found.tiles(rows) * whole(n, columns) / units
    waves = shared if w.get("striped", False) else np.ceil(shared)
    multiplied = waves * (2 * k * (rows * columns + c["half"]) * each)
    times = np.maximum(waves, 1) * (c["fill"] / clock) + np.maximum(multiplied, c["wait"] * k / clock)
    moved = found.reached * n * k * right + total * k * left + 2 * w.get("written", total) * n
    return times.min(axis=(0, 1)), moved / (device.memory_bytes_per_s * c["stream"])


def mixture_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of the experts of a layer; see `MIXTURE`."""
    d, f, tokens, gates, written = (w[x] for x in ("hidden", "inner", "tokens", "gates", "written"))
    found = w["loads"]
    if not isinstance(found, Loads):
        raise InputError("the loads of a mixture are made by `loads`")
    products = [_grouped(c, device, found, n, k, w) for n, k in ((gates * f, d), (f * 0 + d, f))]
    compute, memory = (sum(part[i] for part in products) for i in (0, 1))
    around = 2 * (written * ((gates + 1) * f + d) + tokens * d) + w.get("copied", 0.0) * found.total * d
    beside = c["around"] * around / (device.memory_bytes_per_s * c["stream"])
    floor = launch_seconds(c, device, w)
    time = sum(soft(*part, c["sharp"]) for part in products)
    busy = 2 * found.total * (gates + 1) * f * d / w.get("units", w["peak"])
    return Parts(timed(c, w["warm"], floor + time + beside), compute, memory + beside, floor, busy)


def grouped_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of one grouped product alone, m rows for each of `batch` experts; see `GROUPED`."""
    m, n, k, batch = (w[x] for x in ("m", "n", "k", "batch"))
    compute, memory = _grouped(c, device, Loads(np.asarray(m)[None], np.asarray(batch)[None]), n, k, w)
    floor = launch_seconds(c, device, w) / PLACES
    busy = 2 * m * n * k * batch / w["peak"]
    return Parts(floor + soft(compute, memory, c["sharp"]), compute, memory, floor, busy)


_TILED = {c.name: c for c in TILED}
MIXTURE = Law(
    "mixture",
    "the experts of a mixture: two grouped products, the activation between them, sorting and adding up",
    (
        Constant("launch", 5e4, 1e3, 4e5, "cycles of the launches: sorting, products, activation, sum"),
        _TILED["fill"],
        _TILED["speed"]._replace(low=0.1),
        _TILED["half"]._replace(start=4e3, low=3e3),
        Constant("wait", 10.0, 0.1, 40.0, "cycles an element of k that the loop of a tile takes at least"),
        _TILED["stream"],
        _TILED["sharp"],
        Constant("around", 1.5, 0.1, 8.0, "passes over the rows beside the products, 1 for each reading and writing"),
    ),
    ("multiprocessors", "clock_hz"),
    ("hidden", "inner", "tokens", "gates", "loads", "tiles", "written", "left", "right", "peak"),
    mixture_parts,
    {"rate": 1.0, "start": 1.0, "host": 0.0},
    "configurations that an engine was tuned to, the order of experts, loads other than the expected ones",
)
GROUPED = Law(
    "grouped",
    "one grouped product of a mixture, where a runtime runs it as a kernel of its own",
    (),
    MIXTURE.needs,
    ("m", "n", "k", "batch", "left", "right", "peak"),
    grouped_parts,
    omits="loads other than equal ones; measured was the mixture as a whole, and of its launches this has a sixth",
    tried=len(TILES[0]) * len(TILES[1]),
)
