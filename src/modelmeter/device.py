"""Devices: datasheet figures of accelerators (YAML of configs/device/), and what share of them a required rate takes.

A share of 1 is the whole datasheet, which no kernel reaches; what kernels do reach is predicted in `seconds/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from modelmeter.errors import InputError, choose, unknown
from modelmeter.programs.cost import StageCost
from modelmeter.sizes import Size

CONFIDENCE = ("A", "B", "C")
MOST = 1e30
RESOURCES = ("tensor cores", "CUDA cores", "memory bandwidth")
PEAKS = ("fp32", "tf32", "bf16", "fp8", "fp4", "int8")
"""Formats that an engine multiplies in; fp16 runs as bf16 does."""
REACHED = ("bf16", "fp32", "memory")
"""Formats in which it is told what large products reach, on matrix units and on CUDA cores; what reads of memory do."""
LINKS = ("nvlink", "xgmi", "pcie", "roce", "none")
ENGINES = ("tensorrt_llm",)
"""Engines whose kernels of attention are not those that vLLM has on a device."""
REQUIRED = ("tensor_flops_per_s", "cuda_flops_per_s", "memory_bytes_per_s", "memory_bytes")
FIGURES = {
    "multiprocessors": "SMs, compute units or Xe cores",
    "clock_hz": "the boost clock that the peaks are stated at",
    "l2_bytes": "the last cache before the memory",
    "watts": "the board's power",
    "link_bytes_per_s": "the link to other devices, one direction",
    "host_link_bytes_per_s": "the link to the host, one direction",
}
"""Figures that some laws of time need, and that a device may lack."""


@final
@dataclass(frozen=True)
class Device:
    """One accelerator: peaks in FLOPs a second, bandwidth in bytes a second, memory in bytes.

    `tensor_flops_per_s` is dense bf16 with fp32 accumulation, `cuda_flops_per_s` fp32 on the vector units, `peaks` the
    dense peaks by format (PEAKS). `source` names the datasheet; `confidence` is A (figures quoted from the vendor's
    datasheet, or measured), B (secondary) or C (recalled or derived). Figures that a device may lack are None (FIGURES,
    `need`).
    `reached` is what large products were measured to reach under its power limit, by format, in bf16 and fp32, and
    `memory` the bytes a second that a kernel was seen to stream.
    `architecture`, `link` and `engine` (ENGINES) choose kernels; `link_bytes_per_s` is what all its links to others of
    its kind move one way. `laws` are constants of laws of time that were measured on it, by law; `host` seconds of the
    host, as those of configs/host.yaml, which they stand before.
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
    peaks: Mapping[str, float] = field(default_factory=dict, hash=False)
    reached: Mapping[str, float] = field(default_factory=dict, hash=False)
    architecture: str = ""
    link: str = "none"
    engine: str = ""
    multiprocessors: float | None = None
    clock_hz: float | None = None
    l2_bytes: float | None = None
    watts: float | None = None
    link_bytes_per_s: float | None = None
    host_link_bytes_per_s: float | None = None
    laws: Mapping[str, Any] = field(default_factory=dict, hash=False)
    host: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for key in REQUIRED:
            self._require_number(key, getattr(self, key))
        for key in (key for key in FIGURES if getattr(self, key) is not None):
            self._require_number(key, getattr(self, key))
        for form, peak in self._mapping("peaks").items():
            choose(f"format of the peaks of device {self.name}", form, PEAKS)
            self._require_number(f"peaks.{form}", peak)
        for form, rate in self._mapping("reached").items():
            choose(f"format of what device {self.name} reached", form, REACHED)
            self._require_number(f"reached.{form}", rate)
        for law, constants in self._mapping("laws").items():
            for key, value in constants.items() if isinstance(constants, Mapping) else ((law, constants),):
                if not isinstance(value, (Mapping, str)):
                    self._require_number(f"laws.{law}.{key}", value)
        self._mapping("host")
        for key in ("title", "source"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key).strip():
                raise InputError(f"device {self.name}: {key} must be words, not {getattr(self, key)!r}")
        choose(f"confidence of device {self.name}", self.confidence, CONFIDENCE)
        choose(f"link of device {self.name}", self.link, LINKS)
        if self.engine:
            choose(f"engine of device {self.name}", self.engine, ENGINES)

    def _require_number(self, key: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MOST:
            raise InputError(f"device {self.name}: {key} must be a number above 0, at most {MOST:g}, not {value!r}")

    def _mapping(self, key: str) -> Mapping[str, Any]:
        found = getattr(self, key)
        if not isinstance(found, Mapping):
            raise InputError(f"device {self.name}: {key} must be names with values, not {found!r}")
        return found

    def need(self, figure: str) -> float:
        """A figure that a law needs. Raises InputError where the device lacks it.

        >>> Device("x", "X", 100, 10, 10, 1, "a sheet", clock_hz=1e9).need("clock_hz")
        1000000000.0
        """
        value = getattr(self, figure)
        if value is None:
            raise InputError(f"device {self.name} has no {figure} ({FIGURES[figure]}); add it to the device's YAML")
        return float(value)

    def peak(self, form: str) -> float:
        """The peak of products in a format, FLOPs a second. Raises InputError for one that the device lacks.

        >>> Device("x", "X", 100, 10, 10, 1, "a sheet", peaks={"fp8": 200}).peak("fp8")
        200.0
        """
        known = {"bf16": self.tensor_flops_per_s, "fp32": self.cuda_flops_per_s} | dict(self.peaks)
        known["fp16"] = known["bf16"]
        if form not in known:
            raise unknown(f"format of products on device {self.name}", form, known)
        return float(known[form])

    @property
    def above(self) -> float:
        """The clock in large products over the datasheet's, where it must be higher: they exceed the peak; else 1.

        >>> Device("x", "X", 100, 10, 10, 1, "a sheet", reached={"bf16": 108}).above
        1.08
        """
        return max(1.0, self.reached.get("bf16", 0.0) / self.tensor_flops_per_s)

    @property
    def is_host(self) -> bool:
        """Whether it launches its kernels itself: a processor, which does one after the other."""
        return self.architecture == "CPU"

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
