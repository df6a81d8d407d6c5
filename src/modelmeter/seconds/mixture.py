"""Mixtures of experts: two grouped products over the experts that the tokens reach, and the work around them.

Tokens are spread by a distribution: balanced, uniform at random, or by a power law (`loads`), whose heaviest device is
the one that counts. A grouped product has the tiles of every expert's rows, in waves over the multiprocessors.
"""

from __future__ import annotations

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
    rounded,
    soft,
    timed,
    whole,
)
from modelmeter.seconds.product import TILED, quantise_seconds, tile_seconds

ROWS = (16, 32, 64, 128)
COLUMNS = (64, 128, 256)
PLACES = 6.0
"""Kernels that a measured mixture is: sorting (two), two products, the activation between them, the sum."""
STEPS = 64
"""Experts stand for at most so many quantiles of the distribution of their loads."""


class Loads:
    """Rows of the experts of one device, `weights` experts for each of the quantiles `rows`."""

    def __init__(self, rows: Array, weights: Array) -> None:
        self.rows, self.weights = rows, weights
        self.some = np.where(rows < 1, -np.expm1(-rows), 1.0)

    def where(self, kept: Array) -> Loads:
        """The loads of the kernels that a mask keeps."""
        return Loads(self.rows[kept], np.broadcast_to(self.weights, self.rows.shape)[kept])

    @property
    def total(self) -> Array:
        """Rows of all experts."""
        return (self.rows * self.weights).sum(axis=-1)

    @property
    def reached(self) -> Array:
        """Experts that have rows, expected."""
        return (self.some * self.weights).sum(axis=-1)

    def tiles(self, rows: float) -> Array:
        """Tiles of so many rows, expected."""
        return (np.maximum(self.some, np.ceil(self.rows / rows) * (self.rows >= 1)) * self.weights).sum(axis=-1)


def loads(picks: Array, experts: Array, devices: Array, alpha: Array) -> Loads:
    """The loads of the heaviest of `devices` that share the experts, `picks` being tokens x active experts.

    `alpha` is the exponent of a power law, 0 balanced. Experts are dealt so that no order of them matters: the
    heaviest device has every `devices`-th of the sorted experts, from the first.

    >>> found = loads(np.array([32.0]), np.array([8.0]), np.array([2.0]), np.array([0.0]))
    >>> found.total.tolist(), found.reached.tolist()
    ([16.0], [4.0])
    """
    picks, experts, devices, alpha = (np.asarray(x, float)[..., None] for x in (picks, experts, devices, alpha))
    own = np.maximum(experts / devices, 1)
    steps = np.minimum(own, STEPS)
    index = np.arange(STEPS, dtype=float)
    weights = np.where(index < steps, own / steps, 0)
    rank = (index * own / steps * devices + 0.5) / experts
    whole_rank = np.clip((index[None] * 1.0 + 0.5) / STEPS, 0, 1)
    share = _power_law(np.clip(1 - rank, 1e-6, 1), picks, experts, alpha)
    mean = _power_law(1 - whole_rank, picks, experts, alpha).mean(axis=-1, keepdims=True)
    rows = picks / experts * np.where(alpha > 0, share / mean, 1.0)
    return Loads(np.where(weights > 0, rows, 0), weights)


def _power_law(u: Array, picks: Array, experts: Array, alpha: Array) -> Array:
    """The quantile u of loads whose density falls as load^-alpha between 1 and 0.8 of the tokens (few: 0.01 and 2)."""
    many = picks > experts
    low, high = np.where(many, 1.0, 0.01), np.where(many, 0.8 * picks, 2.0)
    power = 1 - np.where(alpha > 0, alpha, 2.0)
    return ((high**power - low**power) * u + low**power) ** (1 / power)


def _grouped(c: Constants, device: Device, found: Loads, n: Array, k: Array, w: Work) -> tuple[Array, Array]:
    """Seconds of the tiles of one grouped product in the best shape, and of its memory."""
    peak, left, right = (np.asarray(w[x], float) for x in ("peak", "left", "right"))
    units, each = device.need("multiprocessors"), peak * c.get("rate", 1.0)
    mean = found.total / np.maximum(found.reached, 1e-9)
    times = []
    for rows in ROWS:
        tiles = found.tiles(rows)
        for columns in COLUMNS:
            moved = (np.minimum(mean, rows) * left + columns * right) * k
            tile = tile_seconds(c, device, each, (np.float64(rows), np.float64(columns)), k, moved)
            times.append(rounded(tiles * whole(n, columns) / units, c["ragged"]) * tile)
    moved = found.reached * n * k * right + found.total * (k * left + 2 * n)
    return np.min(times, axis=0), moved / (device.memory_bytes_per_s * c["stream"])


def mixture_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of the experts of a layer; see `MIXTURE`."""
    d, f, tokens, picks, gates = (np.asarray(w[x], float) for x in ("hidden", "inner", "tokens", "picks", "gates"))
    found = w["loads"]
    if not isinstance(found, Loads):
        raise InputError("the loads of a mixture are made by `loads`")
    products = [_grouped(c, device, found, n, k, w) for n, k in ((gates * f, d), (f * 0 + d, f))]
    compute, memory = (sum(part[i] for part in products) for i in (0, 1))
    rows = found.total
    counted = rows * c["around"] + np.maximum(picks - rows, 0) * c["elsewhere"]
    around = counted * (4 * d + 2 * (gates + 1) * f) + 4 * tokens * d
    beside = around / (device.memory_bytes_per_s * c["stream"])
    floor = c["launch"] * c.get("start", 1.0)
    time = sum(soft(*part, c["sharp"]) for part in products)
    seconds = floor + time + beside + quantise_seconds(c, device, rows, d)
    return Parts(timed(c, w["warm"], seconds), compute, memory + beside, floor + 0 * memory)


def grouped_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of one grouped product alone, m rows for each of `batch` experts; see `GROUPED`."""
    m, n, k, batch = (np.asarray(w[x], float) for x in ("m", "n", "k", "batch"))
    m, batch = np.broadcast_arrays(m, batch)
    compute, memory = _grouped(c, device, Loads(m[..., None], batch[..., None]), n, k, w)
    floor = c["launch"] * c.get("start", 1.0) / PLACES + 0 * memory
    return Parts(floor + soft(compute, memory, c["sharp"]), compute, memory, floor)


MIXTURE = Law(
    "mixture",
    "the experts of a mixture: two grouped products, the activation between them, sorting and adding up",
    (
        Constant("launch", 2.2e-5, 2e-6, 3e-4, "s of the launches: sorting, products, activation, sum"),
        *(c for c in TILED if c.name not in ("launch", "cached", "near")),
        Constant("around", 1.0, 0.1, 6.0, "passes over the rows beside the products"),
        Constant("elsewhere", 0.5, 0.01, 6.0, "passes over the rows of experts on other devices"),
    ),
    ("multiprocessors", "clock_hz"),
    ("hidden", "inner", "tokens", "picks", "gates", "loads", "left", "right", "peak"),
    mixture_parts,
    {"rate": 1.0, "start": 1.0, "quantise": 0.0, "quantised_row": 0.0, "passes": 0.0, "host": 0.0},
    "which tile the engine takes (the best is assumed), the order of experts, loads other than the expected ones",
)
GROUPED = Law(
    "grouped",
    "one grouped product of a mixture, where a runtime runs it as a kernel of its own",
    (),
    MIXTURE.needs,
    ("m", "n", "k", "batch", "left", "right", "peak"),
    grouped_parts,
    omits="loads other than equal ones; measured was the mixture as a whole, and of its launches this has a sixth",
)
