"""Engines: how a serving engine of a version runs on a device, where a row does not tell (`engines.yaml`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmeter.device import Device
from modelmeter.folders import read_once
from modelmeter.host import NONE, Span
from modelmeter.seconds.unknowns import Factor

LARGE = 70 * 2**30
"""Bytes of memory from which vLLM's defaults are larger."""
NEWEST = (10**6,)
SAME = Factor(1.0, 1.0)


@dataclass(frozen=True)
class Policy:
    """How an engine fills its steps, what it may hold, whose kernels it has, and how slow an old version may be."""

    kernels: str = ""
    policy: str = "chunked"
    keeping: str = "grow"
    seats: int = 256
    tokens: int = 8192
    share: float = 0.9
    free: bool = False
    overlaps: bool = False
    age: Factor = SAME
    request: Span = NONE
    """Seconds that a server spends on a request before its first token is sent: [low, point, high]."""
    pixel: Span = NONE
    """Seconds that it spends on a pixel of a view beside what prepares it."""


def engines() -> Mapping[str, Any]:
    """The content of `engines.yaml`."""
    found: Mapping[str, Any] = read_once(Path(__file__).with_name("engines.yaml"))
    return found


def found(engine: str) -> Mapping[str, Any]:
    """What is known of an engine by what a row calls it; nothing of one without policies (llama.cpp, a library)."""
    return next((own for name, own in engines().items() if re.search(name, engine, re.IGNORECASE)), {})


def version_of(engine: str, source: str = "") -> tuple[int, ...]:
    """The version that an engine's name tells, or the source with a v before it; the newest where none does.

    >>> version_of("vLLM 0.19.0"), version_of("TensorRT-LLM", "overview.md (v1.0)"), version_of("vLLM tuned") == NEWEST
    ((0, 19), (1, 0), True)
    """
    match = re.search(r"[\sv=(-]v?(\d{1,2})\.(\d{1,3})", engine) or re.search(r"\bv(\d{1,2})\.(\d{1,3})", source)
    return (int(match.group(1)), int(match.group(2))) if match else NEWEST


def policy_of(engine: str, device: Device, version: tuple[int, ...], offline: bool, hardware: str = "") -> Policy:
    """The policy of an engine in a version on a device, as a server or offline; vLLM knows an A100, but not an A800."""
    own = found(engine)
    if not own:
        return Policy()
    versions: Mapping[str, Any] = own["versions"]
    line = next(line for known, line in versions.items() if tuple(map(int, known.split("."))) <= version)
    large = device.memory_bytes >= LARGE and not (device.name.startswith("a100") and "a800" not in hardware.lower())
    line = {**line, **(line.get("large", {}) if large else {})}
    return Policy(
        own["kernels"], line["policy"], line["keeping"], line["seats"],
        line.get("offline", line["tokens"]) if offline else line["tokens"],
        line["share"], line["of"] == "free", line["overlaps"], Factor(*line.get("age", SAME)),
        *(NONE if offline else Span(*own.get(key, NONE)) for key in ("request", "pixel")),
    )  # fmt: skip
