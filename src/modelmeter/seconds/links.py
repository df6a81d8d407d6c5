"""Links: the all-reduce of devices in one host, transfers to a host or another device.

A small all-reduce is one round (each reads all the others), a large one two rounds or a ring; the faster one counts.
"""

from __future__ import annotations

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.laws import Constant, Constants, Law, Parts, Work, timed


def allreduce_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds to add up `bytes` over `devices`; see `ALLREDUCE`."""
    count, moved = (np.asarray(w[x], float) for x in ("devices", "bytes"))
    link = device.need("link_bytes_per_s")
    one = c["launch"] + c["peer"] * (count - 2) + moved * (count - 1) / (link * c["once"])
    ring = c["launch"] + c["round"] + c["peer"] * (count - 2) + 2 * (count - 1) / count * moved / (link * c["ring"])
    seconds = np.minimum(one, ring)
    floor = c["launch"] + c["peer"] * (count - 2)
    return Parts(timed(c, w["warm"], seconds), 0 * seconds, seconds - floor, floor)


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
        Constant("once", 0.5, 0.02, 2.0, "share of the link in one round"),
        Constant("round", 5e-6, 1e-7, 1e-4, "s of the second round"),
        Constant("ring", 0.7, 0.05, 1.5, "share of the link in a ring"),
    ),
    ("link_bytes_per_s",),
    ("devices", "bytes"),
    allreduce_parts,
    {"host": 0.0},
    "links shared with other traffic, switches that add up on the way (NVLS), devices on several sockets or hosts",
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
