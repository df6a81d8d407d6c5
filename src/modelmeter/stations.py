"""Stations: the step times and the room for KV of a model on a device, as serving takes them.

Steps are asked of the kernels at a grid of tokens, batches and contexts once, and read from tables after that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.fits import Fits
from modelmeter.serving import Engine, StepTimes
from modelmeter.serving.numbers import Array
from modelmeter.serving.requests import Requests
from modelmeter.times import Times

SHARE = 0.9
"""Of a device's memory, what an engine takes for weights, activations and KV: gpu_memory_utilization of vLLM."""
DEEPEST = 512
"""Requests that are asked at once, where memory does not allow fewer."""


@final
@dataclass(frozen=True)
class Stations:
    """A model on a device, whose `times` are those of one typical request.

    Prompts of several requests in a step cost what one as long costs, but for attention, which the pairs tell.
    """

    times: Times
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    host_threads: int = 1

    def engine(self) -> Engine:
        """A replica with vLLM's policy. Raises InputError for a model that leaves no room for KV."""
        work = self.times.work
        fits = Fits(self.times.model, replace(work, batch=1))
        device = self.times.on.memory_bytes * SHARE
        last = fits.rooms[-1]
        room = device - float(last.weights) - max(float(one.activations) for one in fits.rooms)
        if room <= 0:
            raise InputError(
                f"{self.times.model.name} leaves no room for a KV cache on {self.times.on.title}: weights and "
                f"activations are {(device - room) / 1e9:.1f} GB of {device / 1e9:.1f} GB"
            )
        held = float(work.kept_tokens + work.decode_steps)
        each = float(last.kv_cache) / held
        longest = max(2 * held, 2.0 * self.max_batched_tokens)
        deepest = float(min(self.max_num_seqs, DEEPEST))
        return Engine(
            self.step_times().tabulated(longest, deepest, longest), self.max_num_seqs, self.max_batched_tokens,
            kv_bytes=room, kv_bytes_per_token=each, host_threads=self.host_threads,
        )  # fmt: skip

    def step_times(self) -> StepTimes:
        """Seconds of prefills, steps of decode, vision and images, each a function of arrays."""
        vision = self.times.stages["vision"].span.seconds if "vision" in self.times.stages else 0.0
        images = self.times.images.seconds
        return StepTimes(
            self._prefill, self._decode, lambda asked: _each(asked, vision), lambda asked: _each(asked, images)
        )

    def _prefill(self, new: Array, cached: Array) -> Array:
        """Of a chunk behind others: what the whole takes less what these took, no less than the chunk alone."""
        alone, before = self._whole(np.maximum(new, 1)), self._whole(np.maximum(cached, 1))
        return np.where(np.asarray(cached) > 0, np.maximum(self._whole(new + cached) - before, alone), alone)

    def _whole(self, tokens: Array) -> Array:
        return self._seconds("prefill", np.ones_like(np.asarray(tokens, float)), np.asarray(tokens, float))

    def _decode(self, batch: Array, context: Array) -> Array:
        return self._seconds("decode", np.asarray(batch, float), np.maximum(np.asarray(context, float), 1))

    def _seconds(self, name: str, batch: Array, size: Array) -> Array:
        """Seconds of a step, the host's with them, at arrays of batches and of tokens or contexts."""
        times, work = self.times, self.times.work
        batch, size = np.broadcast_arrays(np.round(batch), np.round(size))
        device, many = times.busy(name, {"b": batch, times.model.stage(name).grows or "s": size})
        host = times.host.launches(work, name, many)
        both = device.seconds + host.seconds if times.on.is_host else np.maximum(device.seconds, host.seconds)
        return np.asarray(both + times.host.beside(work).seconds)


def _each(asked: Requests, seconds: float) -> Array:
    """The same for every request that has an image."""
    return np.where(asked.image_tokens > 0, seconds, 0.0)
