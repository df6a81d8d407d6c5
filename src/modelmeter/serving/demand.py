"""What requests ask of one engine: the seconds of its steps as functions of the batch, averaged over the requests.

Everything a closed form needs of requests and step times is asked here, in whole arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.serving.numbers import Array, seconds
from modelmeter.serving.requests import Requests
from modelmeter.serving.service import Engine

STRATA = 48
"""Prompts are put together into so many groups of like length, each with as much of all tokens."""


@final
@dataclass(frozen=True, eq=False)
class Demand:
    """Requests at an engine. Raises InputError for requests that it can never hold."""

    engine: Engine
    requests: Requests

    def __post_init__(self) -> None:
        need = self.engine.kv_bytes_of(self.requests.prefill_tokens + self.requests.steps)
        if np.any(need > self.engine.kv_bytes):
            told = f"{need.max():.4g} bytes, and kv_bytes is {self.engine.kv_bytes:.4g}"
            raise InputError(f"the longest request needs more KV than there is room for: {told}")

    @cached_property
    def vision(self) -> Array:
        """Seconds of the vision stage of each request."""
        return seconds("vision", self.engine.times.vision(self.requests), self.requests.output_tokens)

    @cached_property
    def steps(self) -> float:
        """Decode steps a request."""
        return float(self.requests.steps.mean())

    @cached_property
    def tokens(self) -> float:
        """Tokens of the prefill a request."""
        return float(self.requests.prefill_tokens.mean())

    @cached_property
    def pairs_a_token(self) -> float:
        """Pairs of query and key a token of the prefill: the same however prompts are cut."""
        tokens = self.requests.prefill_tokens
        return float((tokens * (tokens + 1) / 2).sum() / tokens.sum())

    @cached_property
    def _strata(self) -> tuple[Array, Array, Array]:
        """Shares, tokens and vision seconds of the groups of like prompts."""
        tokens = self.requests.prefill_tokens
        order = np.argsort(tokens, kind="stable")
        sums = np.cumsum(tokens[order])
        group = np.minimum((STRATA * (sums - tokens[order] / 2) / sums[-1]).astype(int), STRATA - 1)
        _, group, count = np.unique(group, return_inverse=True, return_counts=True)
        mean = [np.bincount(group, column[order]) / count for column in (tokens, self.vision)]
        return count / len(tokens), mean[0], mean[1]

    @property
    def chunked(self) -> bool:
        """Whether prompts share their steps with decodes."""
        return self.engine.policy == "chunked"

    def room(self, batch: Array) -> Array:
        """Tokens of prompts that a step takes beside a batch."""
        left = self.engine.max_batched_tokens - (batch if self.chunked else 0 * batch)
        return np.asarray(np.maximum(left, 1.0 if self.chunked else self.tokens))

    def decode_s(self, batch: Array) -> Array:
        """Seconds of a step of decodes alone."""
        return self.engine.times.step(0.0, 0.0, batch, self.requests.decode_context)

    def prompt_s(self, batch: Array) -> tuple[Array, Array]:
        """Seconds of all steps of a prompt that shares them with no other, mean and mean square, beside batches (N)."""
        share, tokens, vision = self._strata
        times = self.alone_s(batch[:, None], tokens, vision)
        return times @ share, (times**2) @ share

    def alone_s(self, batch: Array, tokens: Array, vision: Array) -> Array:
        """Seconds of all steps of prompts that share them with no other, beside batches: their shapes' broadcast."""
        beside = batch if self.chunked else 0 * batch
        tokens = np.broadcast_to(tokens, np.broadcast_shapes(beside.shape, tokens.shape))
        room = np.maximum(self.engine.max_batched_tokens - beside + 0 * tokens, 1.0) if self.chunked else tokens
        full = np.floor(tokens / room)
        rest = tokens - full * room
        step = self.engine.times.beside(beside, self.requests.decode_context)
        last = np.where(rest > 0, step(np.maximum(rest, 1.0), rest * (full * room + (rest + 1) / 2)), 0.0)
        if not full.any():
            return np.asarray(vision + last)
        whole = step(room, room * (room * (np.maximum(full, 1) - 1) / 2 + (room + 1) / 2))
        return np.asarray(vision + full * whole + last)

    @cached_property
    def unshared_s(self) -> Array:
        """Seconds of the vision and the prefill of each request, where nothing else runs."""
        return self.alone_s(np.array(0.0), self.requests.prefill_tokens, self.vision)

    def chunks(self, batch: Array) -> Array:
        """Steps that a prompt needs beside batches, on average."""
        share, tokens, _ = self._strata
        return np.ceil(tokens / self.room(batch)[:, None]) @ share if self.chunked else np.ones(len(batch))

    @cached_property
    def held(self) -> tuple[float, float]:
        """Bytes of KV of a request while it is prefilled, and while it decodes, on average."""
        all_of = self.requests
        if self.engine.keeping == "reserve":
            bytes_of = self.engine.kv_bytes_of(all_of.prefill_tokens + all_of.steps)
            during = bytes_of
        else:
            bytes_of = self.engine.kv_bytes_of(all_of.prefill_tokens)
            middle = all_of.prefill_tokens + all_of.steps / 2  # blocks are half full at the end, on average
            slack = self.engine.kv_bytes_per_token * self.engine.block_tokens / 2
            during = self.engine.kv_bytes_per_request + self.engine.kv_bytes_per_token * middle + slack
        weight = all_of.steps.sum()
        return float(bytes_of.mean()), float((during * all_of.steps).sum() / weight) if weight else 0.0

    @cached_property
    def unfilled(self) -> float:
        """Bytes of KV that are free and too few for the next request, on average: half of what one asks for."""
        tokens = self.requests.prefill_tokens + (self.requests.steps if self.engine.keeping == "reserve" else 0.0)
        need = self.engine.kv_bytes_of(tokens)
        return float((need**2).mean() / need.mean() / 2) if need.any() else 0.0

    @cached_property
    def held_variation(self) -> float:
        """The squared variation of the KV that decodes hold, in time; 0 where KV is without limit."""
        all_of = self.requests
        if not np.isfinite(self.engine.kv_bytes) or not self.held[1]:
            return 0.0
        least = all_of.prefill_tokens + (all_of.steps if self.engine.keeping == "reserve" else 0.0)
        grown = 0.0 if self.engine.keeping == "reserve" else all_of.steps
        square = least**2 + least * grown + grown**2 / 3
        mean = (all_of.steps * (least + grown / 2)).sum() / all_of.steps.sum()
        return float((all_of.steps * square).sum() / all_of.steps.sum() / mean**2 - 1)

    @cached_property
    def overlap(self) -> float:
        """How much of their steps two requests that come together decode together: 1 where all are alike, 1/2 where
        they are exponential."""
        steps = np.sort(self.requests.steps)
        fewer = 2 * np.arange(len(steps) - 1, -1, -1) + 1
        return float((steps * fewer).sum() / len(steps) / steps.sum()) if self.steps else 1.0

    @cached_property
    def work_variation(self) -> float:
        """The squared variation of the work of a request, in steps and tokens of the prefill that fill one."""
        work = (
            self.requests.steps / self.engine.max_num_seqs
            + self.requests.prefill_tokens / self.engine.max_batched_tokens
        )
        return float(work.var() / work.mean() ** 2)

    @cached_property
    def filled(self) -> float:
        """Which share of a step the chunk of a prompt fills, where a token of it is met."""
        tokens, room = self.requests.prefill_tokens, float(self.engine.max_batched_tokens)
        return float((tokens * np.minimum(tokens, room)).sum() / tokens.sum() / room)
