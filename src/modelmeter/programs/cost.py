"""StageCost: what a stage, a layer or any part of a model costs, and in whose units.

Units are FLOPs and bytes; the properties in other units are there for readers of published reports. What each
quantity means is told in docs/counting.md. How the counts come about: `program.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from modelmeter.sizes import Size, as_size, maximum, whole


def _in(count: str, unit: float) -> Any:
    """A property: a count in another unit."""
    return property(lambda cost: getattr(cost, count) / unit)


@dataclass(frozen=True)
class StageCost:
    """What a stage, a layer or any part of a model costs. Sizes may be ints or arrays.

    `a + b` is one part after the other: work, traffic, weights and KV add up, the peak is the larger one. `n * a` is
    n such parts. `basis` says by which options it was counted. `link_bytes` are what a device sends to others: no
    traffic of its memory.
    """

    tensor_core_flops: Size = 0
    cuda_core_flops: Size = 0
    weight_io_bytes: Size = 0
    activation_io_bytes: Size = 0
    kv_io_bytes: Size = 0
    link_bytes: Size = 0
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

    flops_tflops = _in("flops", 1e12)
    """All FLOPs in TFLOP (1e12)."""
    flops_tensor_tflops = _in("tensor_core_flops", 1e12)
    """Tensor-core FLOPs in TFLOP (1e12)."""
    flops_cuda_tflops = _in("cuda_core_flops", 1e12)
    """CUDA-core FLOPs in TFLOP (1e12)."""
    io_tb = _in("io_bytes", 1e12 / 8)
    """Traffic in terabits (1e12 bits), the unit of the published reports."""
    weights_gb = _in("weight_bytes", 1e9)
    """Stored weights in GB (1e9 bytes)."""
    activations_gb = _in("peak_activation_bytes", 1e9)
    """Peak activations in GB (1e9 bytes)."""
    kv_gb = _in("kv_cache_bytes", 1e9)
    """KV cache at the end of the stage in GB (1e9 bytes)."""

    def __add__(self, other: StageCost) -> StageCost:
        if not isinstance(other, StageCost):
            return NotImplemented
        sums = {f: getattr(self, f) + getattr(other, f) for f in COUNTS}
        sums["peak_activation_bytes"] = maximum(self.peak_activation_bytes, other.peak_activation_bytes)
        return StageCost(**sums, basis=" + ".join(dict.fromkeys(b for b in (self.basis, other.basis) if b)))

    def __radd__(self, other: object) -> StageCost:
        return self if other == 0 else NotImplemented

    __array_ufunc__ = None  # array * cost is a cost of arrays, not an array of costs

    def __mul__(self, times: Size) -> StageCost:
        if isinstance(times, StageCost):
            return NotImplemented
        times = as_size("the number of parts", times, least=0)
        return replace(self, **{f: whole(times * getattr(self, f)) for f in COUNTS if f != "peak_activation_bytes"})

    __rmul__ = __mul__

    def as_dict(self) -> dict[str, Size]:
        """Every count and the derived totals by name, in FLOPs and bytes; fractions of a byte (4.1 bits) as floats."""
        counts = {f: getattr(self, f) for f in (*COUNTS, "io_bytes")}
        plain = {f: float(value) if isinstance(value, Fraction) else value for f, value in counts.items()}
        return plain | {"arithmetic_intensity_flop_per_byte": self.arithmetic_intensity}

    def to_series(self) -> Any:
        """The same as a pandas Series (a row of a table)."""
        import pandas

        return pandas.Series(self.as_dict(), dtype=object)

    def _repr_html_(self) -> str:
        cell = "<tr><th>{}</th><td style='text-align:right'>{}</td></tr>"
        forms = {int: "{:,}", float: "{:,.1f}"}
        rows = "".join(cell.format(k, forms.get(type(v), "{}").format(v)) for k, v in self.as_dict().items())
        return f"<table><caption>{self.basis}</caption>{rows}</table>"


COUNTS = tuple(f.name for f in fields(StageCost) if f.name != "basis")
