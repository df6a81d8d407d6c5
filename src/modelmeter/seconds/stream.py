"""Kernels that only stream: norms, pointwise work, copies, look-ups. Bandwidth with a floor; work on CUDA cores.

Nothing was measured for them: the constants are those of products, which stream the same memory. A kernel of one short
tile costs 4,900 to 5,700 cycles on each of the measured NVIDIA devices, and so does one of these.
"""

from __future__ import annotations

from modelmeter.device import Device
from modelmeter.seconds.laws import (
    Constants,
    Law,
    Parts,
    Work,
    cycles_per_s,
    launch_seconds,
    memory_seconds,
    soft,
    where,
)
from modelmeter.seconds.product import PRODUCT


def stream_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds to move `bytes` and to do `operations` on CUDA cores, which overlap."""
    memory = memory_seconds(c, device, w["bytes"], w["warm"], 2)
    compute = w["operations"] / device.cuda_flops_per_s
    floor = launch_seconds(c, device, w) + c["fill"] / cycles_per_s(device)
    both = where(compute > 0, lambda memory, compute: soft(compute, memory, c["sharp"]), memory, compute)
    return Parts(floor + both, compute, memory, floor)


STREAM = Law(
    "stream",
    "norms, pointwise work, copies and look-ups",
    (),
    PRODUCT.needs,
    ("bytes", "operations"),
    stream_parts,
    omits="how well an access pattern coalesces, reductions over long rows; not measured: the constants of products",
)
