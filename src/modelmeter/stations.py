"""Stations: the step times and the room for KV of a model on a device, as serving takes them.

Steps are asked of the kernels at a grid of tokens, batches and contexts once, and read from tables after that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.fits import Fits
from modelmeter.seconds.shapes import FLASH3, NVIDIA, TENSOR
from modelmeter.seconds.timer import Timer
from modelmeter.serving import Engine, StepTimes
from modelmeter.serving.numbers import Array
from modelmeter.serving.requests import Requests
from modelmeter.times import Times

SHARE = 0.9
"""Of a device's memory, what an engine takes for weights, activations and KV: gpu_memory_utilization of vLLM."""
DEEPEST = 4096
"""Requests that are asked at once, where memory does not allow fewer."""
TYPICAL, CONTEXT = 64.0, 1000.0
"""Decodes of a step and tokens of each, where a quotient hardly depends on them."""


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
    policy: str = "chunked"
    keeping: str = "grow"
    share: float = SHARE
    free: bool = False
    """Whether `share` is that of what weights and activations leave free, not of the whole memory."""
    request: float = 0.0
    """Seconds of the server's process for each request, one after the other, before the engine has it."""

    def engine(self) -> Engine:
        """A replica with its policy. Raises InputError for a model that leaves no room for KV."""
        work = self.times.work
        fits = Fits(self.times.model, replace(work, batch=1))
        device = self.times.on.memory_bytes * (1.0 if self.free else self.share)
        last = fits.rooms[-1]
        room = device - float(last.weights) - max(float(one.activations) for one in fits.rooms)
        room *= self.share if self.free else 1.0
        if room <= 0:
            raise InputError(
                f"{self.times.model.name} leaves no room for a KV cache on {self.times.on.title}: weights and "
                f"activations are {(device - room) / 1e9:.1f} GB of {device / 1e9:.1f} GB"
            )
        held = float(work.kept_tokens + work.decode_steps)
        each = float(last.kv_cache) / held
        longest = max(2 * held, 2.0 * self.max_batched_tokens)
        deepest = float(min(self.max_num_seqs, max(room / max(each * held / 2, 1.0), 1.0), DEEPEST))
        steps = replace(self.step_times(), unshared=unshared(self.times, min(deepest, TYPICAL)))
        return Engine(
            steps.tabulated(longest, deepest, longest), self.max_num_seqs, self.max_batched_tokens,
            policy=self.policy, kv_bytes=room, kv_bytes_per_token=each, keeping=self.keeping,
            host_threads=self.host_threads,
        )  # fmt: skip

    def step_times(self) -> StepTimes:
        """Seconds of prefills, steps of decode, vision and images, each a function of arrays."""
        vision = self.times.stages["vision"].span.seconds if "vision" in self.times.stages else 0.0
        images = self.times.images.seconds
        return StepTimes(
            self._prefill, self._decode, lambda asked: _each(asked, vision),
            lambda asked: _each(asked, images) + self.request,
        )  # fmt: skip

    def _prefill(self, new: Array, cached: Array) -> Array:
        return behind(self._whole, new, cached)

    def _whole(self, tokens: Array) -> Array:
        return self._seconds("prefill", np.ones_like(np.asarray(tokens, float)), np.asarray(tokens, float))

    def _decode(self, batch: Array, context: Array) -> Array:
        return self._seconds("decode", np.asarray(batch, float), np.maximum(np.asarray(context, float), 1))

    def _seconds(self, name: str, batch: Array, size: Array) -> Array:
        """Seconds of a step, the host's with them, at arrays of batches and of tokens or contexts."""
        batch, size = np.broadcast_arrays(np.round(batch), np.round(size))
        grows = self.times.model.stage(name).grows or "s"
        return np.asarray(self.times.run(name, **{"b": batch, grows: size}).seconds)


def unshared(times: Times, batch: float) -> float:
    """How much longer attention of decodes takes in a step with prompts than by itself.

    vLLM asks one kernel for all sequences of a step. FlashAttention 2 lets the query heads of a KV head share tiles,
    and splits a sequence, only where all sequences have one query (`seqlenq_ngroups_swapped` in flash_api.cpp); else
    each head of a decode takes a tile of its own, as one of a prefill does. FlashAttention 3 packs heads always.
    """
    device, work = times.on, times.work
    if (times.engine or work.runtime.name) != "vllm" or device.architecture not in NVIDIA - FLASH3 - TENSOR:
        return 1.0
    key = ("unshared", work.key, device, batch)
    return float(times.model.once(key, lambda: _unshared(times, batch)))


def _unshared(times: Times, batch: float) -> float:
    stage, program = times.model.stage("decode"), times.model.program("decode", times.work)
    alone = [kernel for kernel in program.formal_kernels if kernel.attention and "shared" not in kernel.attention]
    beside = [replace(kernel, attention={**kernel.attention, "s": 2}) for kernel in alone]  # a tile's rows
    sizes = {**stage.sizes(times.work), "b": batch, stage.grows: np.array([CONTEXT])}
    found = [Timer(kernels, stage.grows).estimates(times.on, sizes) for kernels in (alone, beside)]
    if not alone or any((one.law, one.variant) != ("decode", "bf16") for one in found[0]):
        return 1.0
    runs = [float(kernel.runs) for kernel in alone]
    taken, longer = (sum(r * float(np.mean(one.seconds)) for r, one in zip(runs, of, strict=True)) for of in found)
    return max(longer / taken, 1.0)


def behind(whole: Callable[[Array], Array], new: Array, cached: Array) -> Array:
    """Seconds of a chunk behind others: what the whole takes less what these took, no less than the chunk alone."""
    new, cached = np.broadcast_arrays(np.asarray(new, float), np.asarray(cached, float))
    alone = whole(np.maximum(new, 1))
    if not (cached > 0).any():
        return alone
    return np.where(cached > 0, np.maximum(whole(new + cached) - whole(np.maximum(cached, 1)), alone), alone)


def _each(asked: Requests, seconds: float) -> Array:
    """The same for every request that has an image."""
    return np.where(asked.image_tokens > 0, seconds, 0.0)
