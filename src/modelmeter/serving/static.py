"""A static batch: prompts in as few steps as they fill, then decodes until the longest answer is done."""

from __future__ import annotations

import numpy as np

from modelmeter.errors import InputError
from modelmeter.serving.demand import Demand

POINTS = 64


def static_rate(of: Demand) -> tuple[float, float]:
    """Requests a second when batches are always full, and the mean number of answers that are not done.

    A batch lasts for the longest of `max_num_seqs` answers, whose distribution is that of one answer to that power; its
    decode steps cost as many rows as it has requests, done or not. Raises InputError where a batch does not fit.
    """
    engine, requests = of.engine, of.requests
    batch, steps = engine.max_num_seqs, np.sort(requests.steps)
    need = engine.kv_bytes_of(requests.prefill_tokens + requests.steps).mean() * batch
    if need > engine.kv_bytes:
        raise InputError(
            f"a static batch of {batch} needs {need:.4g} bytes of KV, more than kv_bytes={engine.kv_bytes:.4g}"
        )
    below = (np.arange(len(steps) + 1) / len(steps)) ** batch
    longest = float(steps @ np.diff(below))
    tokens = min(batch * of.tokens, max(engine.max_batched_tokens // of.tokens, 1) * of.tokens)
    prefill = float(engine.times.step(tokens, tokens * of.pairs_a_token, 0.0, 0.0)) * batch * of.tokens / tokens
    context = of.tokens + np.linspace(1, max(longest, 1), POINTS)
    decode = float(engine.times.step(0.0, 0.0, float(batch), context).mean()) * longest
    total = prefill + decode + batch * float(of.vision.mean())
    return batch / total, batch * of.steps * (decode / max(longest, 1e-12)) / total
