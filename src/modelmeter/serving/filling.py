"""How the steps of an engine fill: prompts that come during one step are prefilled in the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from modelmeter.serving.demand import Demand
from modelmeter.serving.numbers import Array

ROUNDS = 7
TOKENS = 64


@final
@dataclass(frozen=True)
class Steps:
    """Mean steps at some batches (arrays): `mean_s` of all, `mixed_s` of those with prompts, which are a share `mixed`;
    in a share `decodes` of all steps the decodes get a token."""

    mean_s: Array
    mixed_s: Array
    mixed: Array
    decodes: Array


@final
class Filling:
    """The steps of an engine beside batches (N), which are asked of the laws once."""

    def __init__(self, demand: Demand, batch: Array) -> None:
        self.demand, self.batch = demand, np.asarray(batch, np.float64)
        times, context = demand.engine.times, demand.requests.decode_context
        self.decode_s = demand.decode_s(self.batch)
        self.room = demand.room(self.batch)
        self.prompt_s, self.prompt_s2 = demand.prompt_s(self.batch)
        self.chunks = demand.chunks(self.batch)
        self.alone = demand.tokens / self.chunks  # tokens of a step with one prompt alone
        step = times.beside((self.batch if demand.chunked else 0 * self.batch)[:, None], context)
        most = float(max(self.room.max(), 1.5 * self.alone.max(), demand.tokens))
        tokens = np.geomspace(min(1.0, 0.5 * self.alone.min()), most, TOKENS)
        every = np.broadcast_to(tokens, (len(self.batch), TOKENS))
        self._tokens, self._each, self._least = tokens, np.arange(len(self.batch)), np.log(tokens[0])
        self._seconds = step(every, every * demand.pairs_a_token) + demand.vision.mean() * every / demand.tokens
        self._scale = (TOKENS - 1) / (np.log(tokens[-1]) - self._least)

    def _mixed_s(self, tokens: Array) -> Array:
        """Seconds of a step that prefills so many tokens (N), linear between those that the laws were asked for."""
        index = np.minimum(((np.log(tokens) - self._least) * self._scale).astype(np.intp), TOKENS - 2)
        low, high = self._tokens[index], self._tokens[index + 1]
        below, above = self._seconds[self._each, index], self._seconds[self._each, index + 1]
        return np.asarray(below + (above - below) * (tokens - low) / (high - low))

    @cached_property
    def _uneven(self) -> Array:
        """What prompts of unlike lengths take beyond steps of their mean length, a step."""
        return self.prompt_s / self.chunks - self._mixed_s(self.alone)

    @cached_property
    def another_s(self) -> Array:
        """What another prompt adds to steps that prefill already."""
        return np.maximum(self._mixed_s(1.5 * self.alone) - self._mixed_s(0.5 * self.alone), 0.0) * self.chunks

    @cached_property
    def added(self) -> tuple[Array, Array]:
        """What a prompt adds to a step of decodes, mean and mean square."""
        mean = np.maximum(self.prompt_s - self.decode_s, 0.0)
        square = self.prompt_s2 - 2 * self.decode_s * self.prompt_s + self.decode_s**2
        return mean, np.maximum(square, mean**2)

    @cached_property
    def full_s(self) -> Array:
        """Seconds a prompt in steps that are full of prompts."""
        return self._mixed_s(self.room) * self.demand.tokens / self.room

    def of_prompts(self, prompts: Array) -> Steps:
        """Steps during which so many prompts come, on average, at random moments."""
        chunks = np.maximum(prompts * self.chunks, 1e-9)
        return self.of_tokens(prompts, self.alone * chunks / -np.expm1(-chunks))

    def of_tokens(self, prompts: Array, tokens: Array) -> Steps:
        """Steps during which so many prompts come, where those that prefill take `tokens`, if there is room."""
        tokens = np.minimum(tokens, self.room)
        mixed_s = self._mixed_s(tokens) + self._uneven * np.minimum(self.alone / tokens, 1.0)
        mixed = np.minimum(prompts * self.demand.tokens / tokens, 1.0)
        mean = (1 - mixed) * self.decode_s + mixed * mixed_s
        return Steps(mean, mixed_s, mixed, np.ones_like(mean) if self.demand.chunked else 1 - mixed)

    def at_rate(self, rate: float) -> Steps:
        """The steps at an arrival rate: as long as the prompts that come during one make the next.

        The length is found by false position (Illinois) between a step of decodes and one that is full.
        """

        def excess(length: Array) -> Array:
            return self.of_prompts(rate * length).mean_s - length

        low, high = self.decode_s, self.full_s * self.room / self.demand.tokens + self.decode_s + self.prompt_s
        at_low, at_high = excess(low), excess(high)
        middle = low
        for _ in range(ROUNDS):
            gap = np.where(at_low > at_high, at_low - at_high, 1.0)
            middle = np.clip(low + (high - low) * np.clip(at_low, 0, None) / gap, low, high)
            at = excess(middle)
            up = at > 0
            at_high, at_low = np.where(up, at_high / 2, at), np.where(up, at, at_low / 2)
            low, high = np.where(up, middle, low), np.where(up, high, middle)
        return self.of_prompts(rate * middle)
