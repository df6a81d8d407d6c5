"""StageCost: what a list of ops costs. The only place where ops are summed.

`measure(ops, execution)` adds up work, traffic, storage and the liveness peak; `measure_parts` does
so for each part of the model. Units are FLOPs and bytes; the properties in other units are there
for readers of published reports. What each quantity means is told in docs/counting.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from modelmeter.errors import choose
from modelmeter.memory import COMPILED, EXECUTIONS, live_sets, traffic, without_dead_copies
from modelmeter.ops import Op, Ref
from modelmeter.sizes import Size, Tally, Term, as_size, largest, maximum, whole

_ROLES = ("weight", "activation", "kv")


@dataclass(frozen=True)
class StageCost:
    """What a stage, a layer or any part of a model costs. Sizes may be ints or arrays.

    `a + b` is one part after the other: work, traffic, weights and KV add up, the peak is the
    larger one. `n * a` is n such parts. `basis` says by which options it was counted.
    """

    tensor_core_flops: Size = 0
    cuda_core_flops: Size = 0
    weight_io_bytes: Size = 0
    activation_io_bytes: Size = 0
    kv_io_bytes: Size = 0
    parameters: Size = 0
    weight_bytes: Size = 0
    peak_activation_bytes: Size = 0
    kv_cache_bytes: Size = 0
    basis: str = ""

    @property
    def flops(self) -> Size:
        """Tensor-core and CUDA-core FLOPs."""
        return self.tensor_core_flops + self.cuda_core_flops

    @property
    def io_bytes(self) -> Size:
        """Bytes between memory and chip: weights, activations and KV."""
        return self.weight_io_bytes + self.activation_io_bytes + self.kv_io_bytes

    @property
    def arithmetic_intensity(self) -> Size:
        """FLOPs per byte of traffic."""
        return self.flops / maximum(self.io_bytes, 1)

    @property
    def flops_tflops(self) -> Size:
        """All FLOPs in TFLOP (1e12)."""
        return self.flops / 1e12

    @property
    def flops_tensor_tflops(self) -> Size:
        """Tensor-core FLOPs in TFLOP (1e12)."""
        return self.tensor_core_flops / 1e12

    @property
    def flops_cuda_tflops(self) -> Size:
        """CUDA-core FLOPs in TFLOP (1e12)."""
        return self.cuda_core_flops / 1e12

    @property
    def io_tb(self) -> Size:
        """Traffic in terabits (1e12 bits), the unit of the published reports."""
        return self.io_bytes * 8 / 1e12

    @property
    def weights_gb(self) -> Size:
        """Stored weights in GB (1e9 bytes)."""
        return self.weight_bytes / 1e9

    @property
    def activations_gb(self) -> Size:
        """Peak activations in GB (1e9 bytes)."""
        return self.peak_activation_bytes / 1e9

    @property
    def kv_gb(self) -> Size:
        """KV cache at the end of the stage in GB (1e9 bytes)."""
        return self.kv_cache_bytes / 1e9

    def __add__(self, other: StageCost) -> StageCost:
        if not isinstance(other, StageCost):
            return NotImplemented
        sums = {f: getattr(self, f) + getattr(other, f) for f in COUNTS if f != "peak_activation_bytes"}
        peak = maximum(self.peak_activation_bytes, other.peak_activation_bytes)
        basis = " + ".join(dict.fromkeys(b for b in (self.basis, other.basis) if b))
        return StageCost(**sums, peak_activation_bytes=peak, basis=basis)

    def __radd__(self, other: object) -> StageCost:
        return self if other == 0 else NotImplemented

    __array_ufunc__ = None  # array * cost is a cost of arrays, not an array of costs

    def __mul__(self, times: Size) -> StageCost:
        if isinstance(times, StageCost):
            return NotImplemented
        times = as_size("the number of parts", times, least=0)
        scaled = {f: whole(times * getattr(self, f)) for f in COUNTS if f != "peak_activation_bytes"}
        return replace(self, **scaled)

    __rmul__ = __mul__

    def over_steps(self, steps: Size, last: StageCost) -> StageCost:
        """The work and traffic of `steps` such steps, with the storage of the last one."""
        flows = {f: whole(steps * getattr(self, f)) for f in COUNTS[:5]}
        return replace(last, **flows, basis=self.basis)

    def as_dict(self) -> dict[str, Size]:
        """Every count and the derived totals by name, in FLOPs and bytes."""
        counts = {f: _plain(getattr(self, f)) for f in COUNTS}
        return counts | {
            "io_bytes": _plain(self.io_bytes),
            "arithmetic_intensity_flop_per_byte": self.arithmetic_intensity,
        }

    def to_series(self) -> Any:
        """The same as a pandas Series (a row of a table)."""
        import pandas

        return pandas.Series(self.as_dict(), dtype=object)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td style='text-align:right'>{_show(value)}</td></tr>"
            for name, value in self.as_dict().items()
        )
        return f"<table><caption>{self.basis}</caption>{rows}</table>"


def _plain(value: Size) -> Size:
    """A fraction of a byte (from formats such as 4.1 bits) as a float; whole numbers stay exact."""
    return float(value) if isinstance(value, Fraction) else value


def _show(value: Size) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


COUNTS = tuple(f.name for f in fields(StageCost) if f.name != "basis")


class _Ledger:
    """Running sums of one part."""

    def __init__(self) -> None:
        self.tensor, self.cuda = Tally(), Tally()
        self.io = {role: Tally() for role in _ROLES}
        self.weights: dict[str, tuple[Term, Term]] = {}
        self.kv: dict[str, Term] = {}
        self.peaks: list[Tally] = []

    def work(self, op: Op) -> None:
        times = op.times
        if op.tensor is not None:
            self.tensor.add(op.tensor.times(times))
        for term in op.cuda:
            self.cuda.add(term.times(times))

    def store(self, refs: Iterable[Ref], times: Size) -> None:
        for ref in refs:
            if ref.role == "weight" and ref.name not in self.weights:
                self.weights[ref.name] = (ref.elements.times(times), ref.stored.times(times))
            elif ref.role == "kv":
                self.kv[ref.name] = ref.stored.times(times)

    def peak(self, live: Tally) -> None:
        if not any(live.at_most(kept) for kept in self.peaks):
            self.peaks = [kept for kept in self.peaks if not kept.at_most(live)] + [live]

    def total(self, basis: str) -> StageCost:
        products: dict[tuple[int, ...], Size] = {}
        stores = [Tally(), Tally(), Tally()]
        for elements, stored in self.weights.values():
            stores[0].add(elements)
            stores[1].add(stored)
        for term in self.kv.values():
            stores[2].add(term)
        parameters, weights, kv = (tally.value(products) for tally in stores)
        return StageCost(
            tensor_core_flops=self.tensor.value(products),
            cuda_core_flops=self.cuda.value(products),
            weight_io_bytes=self.io["weight"].value(products),
            activation_io_bytes=self.io["activation"].value(products),
            kv_io_bytes=self.io["kv"].value(products),
            parameters=parameters,
            weight_bytes=weights,
            peak_activation_bytes=largest(self.peaks, products),
            kv_cache_bytes=kv,
            basis=basis,
        )


def measure(ops: Iterable[Op], execution: str = "flash", basis: str = "") -> StageCost:
    """The cost of a list of ops under one execution (eager, flash, fused, compulsory)."""
    return measure_parts(ops, execution, lambda op: "", basis).get("", StageCost(basis=basis))


def measure_parts(
    ops: Iterable[Op],
    execution: str,
    part: Callable[[Op], str],
    basis: str = "",
    *,
    flows: bool = True,
    storage: bool = True,
) -> dict[str, StageCost]:
    """The cost of each part; `part(op)` names the part an op belongs to.

    A part's peak is the largest live set of the whole list while one of its ops runs. A weight
    that several parts read is stored in the first. `flows` (work and traffic) and `storage`
    (weights, peak, KV) can be left out and are then 0.
    """
    choose("execution", execution, EXECUTIONS)
    ops = [op for op in ops if not (isinstance(op.times, int) and op.times == 0)]
    if execution in COMPILED:
        ops = without_dead_copies(ops)
    labels = [part(op) for op in ops]
    ledgers = {label: _Ledger() for label in labels}
    owner: dict[str, str] = {}
    if flows:
        for op, label in zip(ops, labels, strict=True):
            ledgers[label].work(op)
        for index, role, moved in traffic(ops, execution):
            ledgers[labels[index]].io[role].add(moved)
    if storage:
        for op, label, live in zip(ops, labels, live_sets(ops, execution), strict=True):
            ledgers[label].store((r for r in op.reads if owner.setdefault(r.name, label) == label), op.times)
            ledgers[label].peak(live)
    return {label: ledger.total(basis or execution) for label, ledger in ledgers.items()}
