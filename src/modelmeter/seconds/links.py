"""Links: the all-reduce of devices in one host, transfers to a host or another device.

vLLM adds up small tensors itself, in one round (each reads all the others) or two; all others go through NCCL.
"""

from __future__ import annotations

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.laws import Array, Constant, Constants, Law, Parts, Work, timed

OWN = 8 * 2**20
"""Bytes from which vLLM leaves a sum to NCCL; without NVLink it adds up two devices alone."""
ONE_ROUND = 2**19, 2**18
"""Bytes from which vLLM takes two rounds, for up to four devices and for more; two always take one round."""
SIMPLE = 8.4e-6, {"pcie": 5.7e-6}, 3.4e-6
"""NCCL's ring: s before it, s a step by the link, of other links. This and the next: its tuning table, recalled."""
SHORT = 6.6e-6, {"pcie": 1.0e-6}, 0.6e-6
"""The same of its protocol for short messages (LL), of whose bytes half are flags."""
SWITCH = {"Hopper": 0.85, "Blackwell datacenter": 0.74}
"""NCCL's share of the ring's bandwidth where switches add up (NVLS), by architecture: its tuning table, recalled."""


def allreduce_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds to add up `bytes` over `devices`; see `ALLREDUCE`."""
    count, moved = (np.asarray(w[x], float) for x in ("devices", "bytes"))
    peers = device.link != "pcie"
    link, floor = device.need("link_bytes_per_s"), c["launch"] + c["peer"] * (count - 2)
    once = floor + moved * (count - 1) / (link * c["once"])
    twice = floor + c["round"] + 2 * (count - 1) / count * moved / (link * c["once"])
    few = (count == 2) | (moved < np.where(count <= 4, *ONE_ROUND))
    alone = (moved < OWN) & ((count == 2) | peers)
    seconds = np.where(alone, np.where(few, once, twice), _ring(c, device, count, moved))
    return Parts(timed(c, w["warm"], seconds), 0 * seconds, np.maximum(seconds - floor, 0), floor)


def _ring(c: Constants, device: Device, count: Array, moved: Array) -> Array:
    """Seconds of NCCL: the fastest of its protocols, and of a sum in the switches."""
    share = device.need("link_bytes_per_s") * c["ring"]
    found = []
    for (start, steps, step), flags in ((SIMPLE, 1.0), (SHORT, 2.0)):
        latency = start + 2 * (count - 1) * steps.get(device.link, step)
        found.append(latency + 2 * (count - 1) / count * flags * moved / share)
    if device.link == "nvlink" and device.architecture in SWITCH:
        found.append(SIMPLE[0] + SIMPLE[2] * 2 + (count + 1) / count * moved / (share * SWITCH[device.architecture]))
    return np.min(found, axis=0)


def transfer_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of a copy over the link to the host, or to another device (`peer`)."""
    links = ("link_bytes_per_s", "host_link_bytes_per_s")
    used = [
        device.need(name) if np.any(w["peer"] == first) else 1.0
        for name, first in zip(links, (True, False), strict=True)
    ]
    memory = np.asarray(w["bytes"], float) / (np.where(w["peer"], *used) * c["share"])
    return Parts(c["launch"] + memory, 0 * memory, memory, c["launch"] + 0 * memory)


ALLREDUCE = Law(
    "allreduce",
    "the sum of a tensor over the devices of one host",
    (
        Constant("launch", 4.5e-6, 5e-7, 1e-4, "s of two devices, however few bytes"),
        Constant("peer", 1e-7, 1e-8, 1e-5, "s for each further device"),
        Constant("once", 0.5, 0.02, 2.0, "share of the link in one round, and in two"),
        Constant("round", 5e-6, 1e-7, 1e-4, "s of the second round"),
        Constant("ring", 0.7, 0.05, 1.5, "share of the link in NCCL's ring"),
    ),
    ("link_bytes_per_s",),
    ("devices", "bytes"),
    allreduce_parts,
    {"host": 0.0},
    "links shared with other traffic, devices on several sockets or hosts, engines that leave all sums to NCCL",
)
TRANSFER = Law(
    "transfer",
    "a copy to the host or to another device",
    (
        Constant("launch", 1e-5, 1e-6, 1e-4, "s, however few bytes"),
        Constant("share", 0.85, 0.1, 1.0, "share of the link"),
    ),
    (),
    ("bytes", "peer"),
    transfer_parts,
)
