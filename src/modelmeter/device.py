"""Devices: datasheet peaks of accelerators (YAML of configs/device/), and what share of them a required rate takes.

Nothing here predicts time: a share of 1 is the whole datasheet, which no kernel reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from modelmeter.errors import InputError, choose
from modelmeter.programs.cost import StageCost
from modelmeter.sizes import Size

CONFIDENCE = ("A", "B")
MOST = 1e30
RESOURCES = ("tensor cores", "CUDA cores", "memory bandwidth")


@final
@dataclass(frozen=True)
class Device:
    """One accelerator: peaks in FLOPs a second, bandwidth in bytes a second, memory in bytes.

    `tensor_flops_per_s` is dense bf16 with fp32 accumulation, `cuda_flops_per_s` fp32 on the vector units.
    `link_bytes_per_s` is what its links to other devices of its kind move in one direction (None: not known here).
    `source` names the datasheet; `confidence` is A (figures quoted from the vendor's datasheet) or B (secondary).
    Raises InputError for a number that is none.
    """

    name: str
    title: str
    tensor_flops_per_s: float
    cuda_flops_per_s: float
    memory_bytes_per_s: float
    memory_bytes: float
    source: str
    confidence: str = "B"
    link_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        linked = ("link_bytes_per_s",) if self.link_bytes_per_s is not None else ()
        for key in ("tensor_flops_per_s", "cuda_flops_per_s", "memory_bytes_per_s", "memory_bytes", *linked):
            value: Any = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MOST:
                raise InputError(f"device {self.name}: {key} must be a number above 0, at most {MOST:g}, not {value!r}")
        for key in ("title", "source"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key).strip():
                raise InputError(f"device {self.name}: {key} must be words, not {getattr(self, key)!r}")
        choose(f"confidence of device {self.name}", self.confidence, CONFIDENCE)

    @property
    def ridge_flops_per_byte(self) -> float:
        """The arithmetic intensity from which tensor cores, not memory, are the limit (FLOPs per byte)."""
        return self.tensor_flops_per_s / self.memory_bytes_per_s

    def shares(self, cost: StageCost, seconds: float) -> dict[str, Size]:
        """What share of each peak `cost` takes if it is to be done in `seconds`; above 1 it cannot be.

        Raises InputError for seconds that are no number above 0.

        >>> device = Device("x", "X", 100, 10, 10, 1, "a sheet")
        >>> device.shares(StageCost(tensor_core_flops=50, weight_io_bytes=40), 2.0)
        {'tensor cores': 0.25, 'CUDA cores': 0.0, 'memory bandwidth': 2.0}
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
            raise InputError(f"seconds must be a number above 0, not {seconds!r}")
        taken = (cost.tensor_core_flops, cost.cuda_core_flops, cost.io_bytes)
        peaks = (self.tensor_flops_per_s, self.cuda_flops_per_s, self.memory_bytes_per_s)
        return {name: of / (seconds * peak) for name, of, peak in zip(RESOURCES, taken, peaks, strict=True)}
