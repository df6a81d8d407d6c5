"""StageCost: what a stage, a layer or any part of a model costs, and in whose units.

Units are FLOPs and bytes; the properties in other units are there for readers of published reports. What each
quantity means is told in docs/counting.md. How the counts come about: `program.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from modelmeter.sizes import Size, as_size, maximum, whole


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
