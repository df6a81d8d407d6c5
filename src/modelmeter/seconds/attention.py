"""Attention of a prefill or a vision tower: blocks of queries that walk over their keys, in a fused kernel.

Blocks of unequal length (a causal mask, a window) finish as a list of jobs does: the work shared by all
multiprocessors, and a part of the longest at the end.
"""

from __future__ import annotations

import numpy as np

from modelmeter.device import Device
from modelmeter.seconds.laws import (
    Array,
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

BLOCKS = (64.0, 128.0)
"""Rows of a block of queries: the better one is taken."""
KEYS = 64.0
"""Keys that a block takes at a time."""

_CONSTANTS = (
    Constant("launch", 5.5e3, 500, 1e5, "cycles of the launch of one kernel"),
    Constant("fill", 2.5e-6, 1e-8, 5e-5, "s of a block before and after its loop, which waits for the memory"),
    Constant("speed", 0.85, 0.3, 1.4, "share of the peak in the loop"),
    Constant("head", 15, 0.5, 200, "head width that halves it"),
    Constant("exp", 16, 14, 18, "exponentials a cycle of a multiprocessor"),
    Constant("tail", 0.5, 0.05, 1.5, "share of the longest block that runs when the others are done"),
    Constant("stream", 0.85, 0.4, 1.0, "share of the bandwidth of the memory"),
    Constant("sharp", 1.4, 1.0, 12.0, "how well compute and memory overlap"),
    Constant("cached", 1.0, 0.05, 4.0, "share of the L2 that holds operands from one run to the next"),
    Constant("near", 10, 1, 100, "bytes a cycle of a multiprocessor from the L2"),
)


def seen(s: Array, t: Array, window: Array, block: Array, causal: bool) -> tuple[Array, Array]:
    """Keys that a block of queries walks over: the most, and the mean over the blocks.

    The queries are the last s of t positions; a block spans so many of them.
    """
    if not causal:
        return t, t
    reach = np.minimum(np.where(window > 0, window, np.inf) + block, t)
    first = np.minimum(t - s + np.minimum(block, s), t)
    flat = np.minimum((t - reach) / np.maximum(t - first, 1e-9), 1)
    return reach, flat * reach + (1 - flat) * (np.minimum(first, reach) + reach) / 2


def attention_parts(c: Constants, device: Device, w: Work) -> Parts:
    """Seconds of attention of s queries over t keys; see `PREFILL`.

    FlashAttention 3 overlaps the exponentials of a step with products (`overlaps`), others do one after the other. Of a
    cache of 8 bits it turns the values around on chip (`turned`); others convert keys and values (`converted`).
    """
    names = ("batch", "heads", "kv_heads", "width", "s", "t", "window", "kv_bytes", "peak")
    b, h, g, e, s, t, window, each, peak = sizes = [w[name] for name in names]
    of, heads = either(w["grouped"], h / g, 1.0), either(w["grouped"], g, h)
    inner = max(map(np.ndim, sizes))
    rows = np.asarray(w["block"])[None] if "block" in w else np.array(BLOCKS).reshape(-1, *(1,) * inner)
    count = whole(of * s, rows)
    longest, mean = (whole(x, KEYS) for x in seen(s, t, window, rows / of, w["causal"]))
    clock, units = cycles_per_s(device), device.need("multiprocessors")
    products = 4 * (w["padded"] + c["head"]) * units / (peak * c["speed"] * c.get("rate", 1.0))
    powers = 1 / (c["exp"] * clock)
    step = rows * KEYS * (soft(products, powers, 2.0) if w["overlaps"] else products + powers)
    step = np.maximum(step + 2 * KEYS * w["padded"] * w["converted"] / clock, KEYS * e * c.get("turned", 0.0) / clock)
    blocks = b * heads * count / units
    walked = np.maximum(longest, blocks * mean + c["tail"] * longest) * step
    compute = (walked + np.maximum(blocks, 1) * c["fill"]).min(axis=0)
    busy = (4 * e * rows * KEYS * b * heads * count * mean / peak).min(axis=0)
    moved = 4 * b * s * h * e + 2 * b * t * g * e * each
    written = 2 * b * s * g * e * (2 + each) if w["writes"] else 0.0
    memory, kept = memory_seconds(c, device, moved + written, w["warm"], 2), 0.0
    if w["writes"]:
        share = written / (moved + written)
        memory, kept = memory * (1 - share), memory * share * c.get("keep", 0.0)
    floor = w["kernels"] * c["launch"] * c.get("start", 1.0) / clock
    seconds = floor + soft(compute, memory, c["sharp"]) + kept
    return Parts(timed(c, w["warm"], seconds), compute, memory + kept, floor, busy)


_WORK = (
    "batch", "heads", "kv_heads", "width", "s", "t", "window", "kv_bytes", "peak", "causal", "grouped", "writes",
    "kernels", "overlaps", "padded", "converted",
)  # fmt: skip
_VISION = {
    "speed": Constant("speed", 0.85, 0.3, 1.0, "share of the peak in the loop, which no mask cuts short"),
    "cached": Constant("cached", 0.1, 0.05, 4.0, "share of the L2 that holds operands from one run to the next"),
}
_EXTRAS = {"rate": 1.0, "start": 1.0, "turned": 0.0, "host": 0.0}
_OMITS = "masks other than causal and a window, scores that are capped or biased, the order in which blocks start"

PREFILL = Law(
    "prefill",
    "causal attention of a prompt, with the kernel that writes its keys and values to the cache",
    (*_CONSTANTS, Constant("keep", 2.0, 0.5, 5.0, "passes over keys and values that the write to the cache takes")),
    ("multiprocessors", "clock_hz", "l2_bytes"),
    _WORK,
    attention_parts,
    _EXTRAS,
    _OMITS,
    len(BLOCKS),
)
VISION = Law(
    "vision",
    "attention of a vision tower: no mask, no cache",
    tuple(_VISION.get(c.name, c) for c in _CONSTANTS),
    ("multiprocessors", "clock_hz", "l2_bytes"),
    _WORK,
    attention_parts,
    _EXTRAS,
    _OMITS,
    len(BLOCKS),
)
