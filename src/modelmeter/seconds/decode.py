"""Attention of a decode step: each sequence's keys and values are read once, split over the multiprocessors.

The least over splits of launch + the softened maximum of rounds x part and bytes / bandwidth, + adding up the parts.
"""

from __future__ import annotations

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.laws import (
    Constant,
    Constants,
    Law,
    Parts,
    Work,
    cycles_per_s,
    either,
    memory_seconds,
    soft,
    timed,
    whole,
)

SPLITS = (1, 2, 4, 8, 16, 32, 64, 128)


def decode_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of attention of one query a sequence over t keys; see `DECODE`.

    Keys are taken in blocks of `line` by tiles of so many `rows`, query heads of one KV head; the starts of parts that
    share a multiprocessor (`together`) overlap. Elements of a cache of 8 bits are `converted` before.
    """
    names = ("batch", "heads", "kv_heads", "width", "t", "window", "kv_bytes", "peak")
    b, h, g, e, t, window, each, peak = sizes = [w[name] for name in names]
    clock, units = cycles_per_s(device), device.need("multiprocessors")
    t, grouped, rows = np.minimum(t, np.where(window > 0, window, np.inf)), w["grouped"], w["rows"]
    tiles = whole(either(grouped, h / g, 1.0), rows)
    parts = np.array(SPLITS, float).reshape(-1, *(1,) * max(map(np.ndim, sizes)))
    keys = whole(t / parts, w["line"]) * w["line"]
    loaded = 2 * keys * e * each / (c["load"] * clock)
    multiplied = 4 * rows * keys * w["padded"] * units / (peak * c["speed"] * c.get("rate", 1.0))
    multiplied = multiplied + 2 * keys * w["padded"] * w["converted"] / clock
    rounds = np.maximum(b * either(grouped, g, h) * tiles * parts / units, 1)
    compute = rounds * np.maximum(loaded, multiplied) + np.maximum(rounds / w["together"], 1) * c["fill"]
    memory = memory_seconds(c, device, 2 * b * g * t * e * each, w["warm"], 8)
    queries = 4 * b * h * e * w["passes"] / (device.memory_bytes_per_s * c["stream"])
    added = either(grouped, c["combine"] + parts * (8 * b * h * e / device.memory_bytes_per_s), np.inf)
    found = soft(compute, memory, c["sharp"]) + np.where(parts > 1, added, 0)
    floor = w["kernels"] * c["launch"] * c.get("start", 1.0) / clock
    seconds = floor + found.min(axis=0) + queries + c["sequence"] * b
    return Parts(timed(c, w["warm"], seconds), compute.min(axis=0), memory + queries, floor)


DECODE = Law(
    "decode",
    "attention of one token a sequence over its cache, with the kernel that writes its keys and values",
    (
        Constant("launch", 5.5e3, 500, 1e5, "cycles of the launch of one kernel"),
        Constant("fill", 3.5e-6, 1e-8, 5e-5, "s of a part before and after its loop, which waits for the memory"),
        Constant("load", 50, 5, 400, "bytes a cycle that a multiprocessor loads keys and values with"),
        Constant("speed", 0.8, 0.05, 1.5, "share of the peak in the products"),
        Constant("stream", 0.9, 0.4, 1.0, "share of the bandwidth of the memory"),
        Constant("sharp", 2.0, 1.0, 12.0, "how well compute and memory overlap"),
        Constant("combine", 3.5e-6, 1e-8, 5e-5, "s to add up the parts of a split sequence"),
        Constant("sequence", 5e-9, 5e-11, 1e-7, "s a sequence: its entry in the tables of pages"),
        Constant("cached", 1.2, 0.05, 4.0, "share of the L2 that holds keys and values from one run to the next"),
        Constant("near", 10, 1, 100, "bytes a cycle of a multiprocessor from the L2"),
    ),
    ("multiprocessors", "clock_hz", "l2_bytes"),
    (
        "batch",
        "heads",
        "kv_heads",
        "width",
        "t",
        "window",
        "kv_bytes",
        "peak",
        "grouped",
        "kernels",
        "passes",
        "line",
        "together",
        "rows",
        "padded",
        "converted",
    ),
    decode_parts,
    {"rate": 1.0, "start": 1.0, "host": 0.0},
    "how many parts the engine takes (the best is assumed), the layout of pages, sequences of unequal length",
    len(SPLITS),
)
