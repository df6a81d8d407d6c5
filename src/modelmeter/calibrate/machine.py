"""What a machine is: its name, memory, cores, and how much its last cache holds as the ramp shows it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """The processor as the system calls it."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def memory_bytes() -> float:
    """Bytes of memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def last_cache(levels: Mapping[float, float]) -> float:
    """The largest size of a ramp that moves at least half as fast again as the memory does.

    >>> last_cache({1e5: 50e9, 1e6: 30e9, 1e8: 10e9})
    1000000.0
    """
    memory = levels[max(levels)]
    return max((size for size, rate in levels.items() if rate > 1.5 * memory), default=min(levels))
