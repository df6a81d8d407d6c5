"""Kernels on a processor that `modelmeter calibrate` has measured: each law is a sum of few terms.

One core does one thing after another, so terms add up. Their constants stand in the device's YAML, by law and format;
nothing is shared between processors, and what was not measured is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.programs.formats import FORMATS
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.laws import Array, Constant

Amounts = dict[str, Array]
LEAST, MOST = 1e-6, 1e6
"""How far a constant may be from where its fit starts."""


class Term(NamedTuple):
    """A term of a law: its constant's name, what it binds a kernel by, where a fit starts, seconds of what."""

    name: str
    binds: str
    start: float
    what: str


class Sum(NamedTuple):
    """A law that is a sum of terms, and how much of each a kernel has."""

    name: str
    what: str
    terms: tuple[Term, ...]
    amounts: Callable[[Mapping[str, Array]], Amounts]

    @property
    def constants(self) -> tuple[Constant, ...]:
        """What a fit searches."""
        return tuple(Constant(t.name, t.start, t.start * LEAST, t.start * MOST, t.what) for t in self.terms)

    def seconds(self, constants: Mapping[str, float], amounts: Amounts) -> dict[str, Array]:
        """Seconds by what they go to."""
        found: dict[str, Array] = {}
        for term in self.terms:
            found[term.binds] = found.get(term.binds, 0.0) + constants[term.name] * amounts[term.name]
        return found


def _vector(w: Mapping[str, Array]) -> Amounts:
    return {"launch": w["batch"], "weights": w["weights"], "columns": w["batch"] * w["n"]}


def _matrix(w: Mapping[str, Array]) -> Amounts:
    batch, m, n, k = (w[x] for x in ("batch", "m", "n", "k"))
    rows = {"left": batch * m * k, "out": batch * m * n}
    return {"launch": batch, "products": 2 * batch * m * n * k, "weights": w["weights"], **rows}


def _batched(w: Mapping[str, Array]) -> Amounts:
    products = 2 * w["batch"] * w["m"] * w["n"] * w["k"]
    return {"launch": 1.0 + 0 * products, "each": w["batch"], "products": products, "moved": w["moved"]}


def _attention(w: Mapping[str, Array]) -> Amounts:
    """Pairs of a causal mask are those that it leaves, in the prompt's own part half a square."""
    s, t = w["s"], w["t"]
    reach = np.where(w["window"] > 0, np.minimum(w["window"], t), t)
    seen = np.where(w["causal"] > 0, np.maximum(s * (2 * t - s + 1) / 2 - np.maximum(t - reach, 0) ** 2 / 2, s), s * t)
    pairs = w["batch"] * w["heads"] * seen
    moved = w["batch"] * s * w["heads"] * (w["width"] + w["values"])
    return {
        "launch": 1.0 + 0 * pairs,
        "products": 2 * pairs * (w["width"] + w["values"]),
        "scores": pairs,
        "moved": moved,
    }


def _step(w: Mapping[str, Array]) -> Amounts:
    t = np.where(w["window"] > 0, np.minimum(w["window"], w["t"]), w["t"])
    pairs = w["batch"] * w["heads"] * t
    return {"launch": 1.0 + 0 * pairs, "products": 2 * pairs * (w["width"] + w["values"]), "cached": w["cached"]}


def _stream(w: Mapping[str, Array]) -> Amounts:
    return {"launch": 1.0, "near": w["near"], "far": w["far"], "operations": w["operations"]}


_LAUNCH = Term("launch", "launch", 3e-6, "s of one call")
VECTOR = Sum("vector", "products of one row with weights from memory", (
    _LAUNCH,
    Term("weights", "memory", 1e-10, "s a byte of the weights"),
    Term("columns", "memory", 3e-8, "s a column: where a row of the stored weights begins"),
), _vector)  # fmt: skip
MATRIX = Sum("matrix", "products of several rows with weights from memory", (
    _LAUNCH,
    Term("products", "compute", 1.5e-11, "s a FLOP"),
    Term("weights", "memory", 1e-10, "s a byte of the weights, read and packed"),
    Term("left", "memory", 1e-10, "s an element of the rows, read and packed"),
    Term("out", "memory", 1e-10, "s an element of the result"),
), _matrix)  # fmt: skip
BATCHED = Sum("batched", "products of activations with each other, many at once", (
    _LAUNCH,
    Term("each", "launch", 3e-7, "s of each product"),
    Term("products", "compute", 3e-11, "s a FLOP"),
    Term("moved", "memory", 1e-10, "s a byte"),
), _batched)  # fmt: skip
ATTENTION = Sum("attention", "fused attention of several queries a sequence", (
    _LAUNCH,
    Term("products", "compute", 2e-11, "s a FLOP"),
    Term("scores", "compute", 5e-10, "s a score: its exponential"),
    Term("moved", "memory", 1e-10, "s an element of queries and results"),
), _attention)  # fmt: skip
STEP = Sum("step", "fused attention of one query a sequence over its cache", (
    _LAUNCH,
    Term("products", "compute", 1e-10, "s a FLOP"),
    Term("cached", "memory", 1e-10, "s a byte of keys and values from memory"),
), _step)  # fmt: skip
STREAM = Sum("stream", "norms, pointwise work, copies and look-ups", (
    _LAUNCH,
    Term("near", "memory", 1.0, "times what the ramp of `levels` says of the kernel's activations"),
    Term("far", "memory", 1e-10, "s a byte of weights and cache, from memory"),
    Term("operations", "compute", 1e-10, "s an operation"),
), _stream)  # fmt: skip
SUMS = {law.name: law for law in (VECTOR, MATRIX, BATCHED, ATTENTION, STEP, STREAM)}


class Timed(NamedTuple):
    """What is known of a kernel: its law, variant, seconds with their interval, what binds, what was not measured."""

    law: str
    variant: str
    seconds: Array
    low: Array
    high: Array
    binds: Array
    derived: str


def calibrated(device: Device) -> bool:
    """Whether a device is a processor whose laws were measured."""
    return device.is_host and "engine" in device.laws


def timed(kernel: Kernel, device: Device) -> Timed:
    """Seconds of one run of a kernel on a calibrated processor. Raises InputError for what was not measured there."""
    shares = list(_variants(kernel))
    found = [_one(kernel, device, variant) for variant, _ in shares]
    sums = {name: sum(share * one[name] for one, (_, share) in zip(found, shares, strict=True)) for name in found[0]}
    low, high = (sums.pop(side) for side in ("low", "high"))
    names = list(sums)
    parts = np.broadcast_arrays(*(np.asarray(sums[name], float) for name in names))
    seconds, binds = np.sum(parts, axis=0), np.array(names)[np.argmax(parts, axis=0)]
    told = f"mixtures were not measured on {device.name}: as products one by one" if kernel.grouped else ""
    return Timed(_law(kernel), "+".join(v for v, _ in shares), seconds, low, high, binds, told)


def amounts_of(kernel: Kernel, levels: Mapping[Any, float]) -> Iterator[tuple[Sum, str, float, Amounts]]:
    """The laws of a kernel at one workload, with variant, share and how much of each term it has."""
    laws, few = _choices(kernel)
    law = laws[0] if np.all(few) else laws[-1]
    for variant, share in _variants(kernel):
        yield law, variant, share, law.amounts(work_of(kernel, levels))


def work_of(kernel: Kernel, levels: Mapping[Any, float]) -> dict[str, Array]:
    """The sizes of a kernel that the laws take."""
    sized = {name: np.asarray(size, float) for name, size in {**kernel.loops, **kernel.attention}.items()}
    if kernel.loops and kernel.attention:
        sized["batch"] = np.asarray(kernel.attention["batch"], float)
    read, written = kernel.read_bytes, kernel.written_bytes
    near = np.asarray(read.get("activation", 0) + sum(written.values()), float)
    return {
        **sized,
        "weights": np.asarray(read.get("weight", 0), float),
        "cached": np.asarray(read.get("kv", 0), float),
        "far": np.asarray(read.get("weight", 0) + read.get("kv", 0), float),
        "near": near / ramp(levels, near) if levels else near,
        "moved": np.asarray(kernel.io_bytes, float),
        "operations": np.asarray(sum(kernel.cuda_flops.values()), float),
    }


def ramp(levels: Mapping[Any, float], moved: Array) -> Array:
    """Bytes a second at which so many bytes move, between the measured sizes evenly on a logarithmic scale."""
    sizes = np.log([float(size) for size in levels])
    rates: Array = np.exp(np.interp(np.log(np.maximum(moved, 1.0)), sizes, np.log(list(levels.values()))))
    return rates


def _one(kernel: Kernel, device: Device, variant: str) -> dict[str, Array]:
    """Seconds by what they go to, and the ends of their interval, as if all of a kernel were of one variant."""
    laws, few = _choices(kernel)
    known = [_constants(device, law, variant) for law in laws]
    work = work_of(kernel, known[0].get("levels", {}))
    found = [law.seconds(constants, law.amounts(work)) for law, constants in zip(laws, known, strict=True)]
    for parts, constants in zip(found, known, strict=True):
        total = sum(parts.values())
        parts["low"], parts["high"] = (total * constants[side] for side in ("low", "high"))
    if len(found) == 1:
        return found[0]
    return {name: np.where(few, *(parts.get(name, 0.0) for parts in found)) for name in {**found[0], **found[1]}}


def _choices(kernel: Kernel) -> tuple[list[Sum], Any]:
    """The law of a kernel, or two of them and where the first is the one: for a single row."""
    if kernel.attention:
        few, laws = np.asarray(kernel.attention["s"]) <= 1, [STEP, ATTENTION]
    elif kernel.loops and kernel.read_bytes.get("weight"):
        few, laws = np.asarray(kernel.loops["m"]) <= 1, [VECTOR, MATRIX]
    else:
        return [BATCHED if kernel.loops else STREAM], True
    return (laws, few) if few.any() and not few.all() else ([laws[0 if few.all() else 1]], True)


def _law(kernel: Kernel) -> str:
    return _choices(kernel)[0][-1].name


def _variants(kernel: Kernel) -> Iterator[tuple[str, float]]:
    """Formats that a kernel is of, with their shares: of its weights where these are stored in blocks."""
    if kernel.loops and kernel.unpack_flops and not kernel.attention:
        work = {name: float(np.max(np.asarray(flops, float))) / float(FORMATS[name].work)
                for name, flops in kernel.unpack_flops.items()}  # fmt: skip
        yield from ((name, part / sum(work.values())) for name, part in work.items())
    else:
        form = next(iter(kernel.tensor_flops or kernel.cuda_flops), "")
        yield ("fp16" if form == "fp32" and _half(kernel) else form), 1.0


def _half(kernel: Kernel) -> bool:
    """Whether a product in 32 bits reads weights of 16."""
    if not kernel.loops or kernel.attention:
        return False
    n, k, batch, weights = (
        np.max(np.asarray(x, float))
        for x in (kernel.loops["n"], kernel.loops["k"], kernel.loops["batch"], kernel.read_bytes.get("weight", 0))
    )
    return bool(weights == 2 * n * k * batch)


def _constants(device: Device, law: Sum, variant: str) -> Mapping[str, Any]:
    """The constants of a law in a variant; a kernel that computes nothing has those of any."""
    known: Mapping[str, Any] = device.laws.get(law.name, {})
    found: Mapping[str, Any] | None = known.get(variant) or (next(iter(known.values()), None) if not variant else None)
    if found is None:
        raise InputError(
            f"device {device.name} was not measured for {law.what} in {variant or 'any format'}; it was in "
            f"{', '.join(known) or 'none'}: ask for one of these, or calibrate it with --formats"
        )
    return found
