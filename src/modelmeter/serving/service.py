"""A service: replicas of one engine with its policy and limits, or separate stations for vision, prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from modelmeter.errors import InputError, choose
from modelmeter.serving.numbers import Array, above, at_least, whole
from modelmeter.serving.steps import StepTimes

POLICIES = ("chunked", "prefill_first", "static")
"""How an engine fills its steps; `Engine` says what each does."""
KEEPING = ("grow", "reserve")
ROUTING = ("random", "round_robin")


@final
@dataclass(frozen=True)
class Engine:
    """One replica: its step times, how it fills its steps, and what it can hold.

    Policies: `chunked` (vLLM V1): a step has one token of each running decode, then prompt tokens up to
    `max_batched_tokens`, prompts being cut where they exceed it; `prefill_first` (vLLM V0): while prompts wait and
    there is room, steps of whole prompts up to `max_batched_tokens`, else steps of decodes; `static` (a loop over
    `generate`): a batch of `max_num_seqs` waits until it is full, and ends with its longest answer.

    `kv_bytes` is the room for KV in bytes (infinite by default), of which each token takes `kv_bytes_per_token` in
    blocks of `block_tokens`, and each request `kv_bytes_per_request` besides (states, keys of cross attention).
    `keeping`: with `grow` a request is admitted when its prompt fits, and when a decode finds no block the request that
    was admitted last gives its own up and is prefilled anew; with `reserve` it is admitted when prompt and answer fit.
    `host_threads` preprocess images on the CPU, first come first served. Raises InputError for values that are none.
    """

    times: StepTimes
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    policy: str = "chunked"
    kv_bytes: float = float("inf")
    kv_bytes_per_token: float = 0.0
    kv_bytes_per_request: float = 0.0
    block_tokens: int = 16
    keeping: str = "grow"
    host_threads: int = 1

    def __post_init__(self) -> None:
        for key in ("max_num_seqs", "max_batched_tokens", "block_tokens", "host_threads"):
            whole(key, getattr(self, key))
        above("kv_bytes", self.kv_bytes, infinite=True)
        at_least("kv_bytes_per_token", self.kv_bytes_per_token)
        at_least("kv_bytes_per_request", self.kv_bytes_per_request)
        choose("policy", self.policy, POLICIES)
        choose("keeping", self.keeping, KEEPING)
        if self.max_batched_tokens <= self.max_num_seqs and self.policy == "chunked":
            told = (
                f"{self.max_batched_tokens} leaves no room for prompts beside max_num_seqs={self.max_num_seqs} decodes"
            )
            raise InputError(f"max_batched_tokens must be larger: {told}")

    def kv_bytes_of(self, tokens: Array) -> Array:
        """Bytes of KV of requests that hold `tokens` each, in whole blocks."""
        blocks = np.ceil(np.asarray(tokens, np.float64) / self.block_tokens)
        return np.asarray(self.kv_bytes_per_request + self.kv_bytes_per_token * self.block_tokens * blocks)


@final
@dataclass(frozen=True)
class Apart:
    """Separate stations: how many devices do vision, prefill and decode, and the links between.

    Vision and prefill serve one request after another, whole, each queue shared by its devices; `vision=0` leaves
    vision with the prefill. Each of the `links` to the prefill and of those to the decode carries one request at a
    time, `link_bytes_per_s` after `link_s`: the embeddings of an image (`embedding_bytes_per_token`), the KV cache of a
    prompt.
    """

    prefill: int
    decode: int
    vision: int = 0
    link_bytes_per_s: float = float("inf")
    link_s: float = 0.0
    embedding_bytes_per_token: float = 0.0
    links: int = 1

    def __post_init__(self) -> None:
        whole("links", self.links)
        whole("prefill", self.prefill), whole("decode", self.decode), whole("vision", self.vision, 0)
        above("link_bytes_per_s", self.link_bytes_per_s, infinite=True)
        at_least("link_s", self.link_s), at_least("embedding_bytes_per_token", self.embedding_bytes_per_token)


@final
@dataclass(frozen=True)
class Service:
    """`replicas` of an engine, each with its own queue, or one engine's stations `apart`.

    `routing` sends requests to replicas at random or in turn. `devices_a_replica` (of tensor or pipeline parallelism)
    counts for money alone: the step times are those of the whole replica.
    """

    engine: Engine
    replicas: int = 1
    routing: str = "random"
    devices_a_replica: int = 1
    apart: Apart | None = None

    def __post_init__(self) -> None:
        whole("replicas", self.replicas), whole("devices_a_replica", self.devices_a_replica)
        choose("routing", self.routing, ROUTING)
        if self.apart and (self.engine.policy == "static" or self.replicas > 1):
            raise InputError("stations apart need a policy other than static, and replicas=1: count devices by station")

    @property
    def devices(self) -> int:
        """Devices that are paid for."""
        stations = self.apart.vision + self.apart.prefill + self.apart.decode if self.apart else self.replicas
        return stations * self.devices_a_replica
