"""One engine of the simulation: it plans a step, waits for as long as it takes, and hands out tokens.

All decodes of a step grow alike, so that one counter of decode steps tells their tokens, ends and blocks: a step costs
the same whatever the batch. `service.Engine` tells what the policies are.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np

from modelmeter.errors import InputError
from modelmeter.serving.service import Engine


def environment() -> Any:
    """A world of SimPy. Raises InputError where SimPy is not installed."""
    try:
        import simpy
    except ImportError:
        raise InputError("a simulation needs SimPy: pip install 'modelmeter[simulation]'") from None
    return simpy.Environment()


class Asked:
    """One request of a simulation: what it needs, and when what happened (seconds)."""

    def __init__(self, image: int, prefill: int, output: int, pages: float, host: float, vision: float) -> None:
        self.image, self.prefill, self.output, self.pages = image, prefill, output, pages
        self.host, self.vision = host, vision
        self.arrival = self.queued = self.admitted = self.first = self.end = math.nan
        self.prefilled = False  # elsewhere
        self.length = self.todo = prefill  # what its prefill has, and how much of it is left
        self.seen = self.preempted = self.order = self.base = 0
        self.blocks = 0.0
        self.event: Any = None


Chunks = list[tuple[Asked, int]]
"""The prompts of a step, with how many tokens of each."""


class EngineProcess:
    """The scheduler of one replica, as a process of SimPy."""

    def __init__(self, world: Any, engine: Engine) -> None:
        self.world, self.engine, self.times = world, engine, engine.times
        self.waiting: deque[Asked] = deque()
        self.running: dict[int, Asked] = {}  # by order of admission, as all dicts here
        self.decoding: dict[int, Asked] = {}
        self.chunked: Asked | None = None  # the one whose prompt is cut
        self.pending: deque[Asked] = deque()  # the prompts of a static batch
        self.ends: list[tuple[int, int]] = []  # the decode step after which each is done, and its order
        self.orders, self.step, self.base, self.began = itertools.count(), 0, 0, 0
        self.crossing = [0] * engine.block_tokens  # how many need a block, by the step's remainder
        per_block = engine.kv_bytes_per_token * engine.block_tokens
        self.besides = engine.kv_bytes_per_request / (per_block or 1.0)
        self.capacity = self.free = engine.kv_bytes / (per_block or 1.0)
        self.counted = 1.0 if per_block else 0.0
        self.log: list[tuple[float, float, int]] = []
        self.wake = world.event()
        world.process(self._run())

    def submit(self, one: Asked) -> Any:
        """Queue a request; the event that is returned comes with its last token."""
        if self._blocks(one.prefill + one.output - 1) > self.capacity:
            raise InputError("a request of the mix needs more KV than an engine has: raise kv_bytes")
        one.event, one.queued = self.world.event(), self.world.now
        self.waiting.append(one)
        if not self.wake.triggered:
            self.wake.succeed()
        return one.event

    def _run(self) -> Generator[Any, Any, None]:
        plan = {"chunked": self._chunked, "prefill_first": self._prefill_first, "static": self._static}
        while True:
            prompts, decodes = plan[self.engine.policy]()
            if not prompts and not decodes:
                self.wake = self.world.event()
                yield self.wake
                yield self.world.timeout(0)  # let all that happens now happen first
                continue
            begin, there = self.world.now, len(self.decoding)
            yield self.world.timeout(self._seconds(prompts, decodes))
            self.log.append((begin, self.world.now, there))
            self._hand_out(prompts, decodes)

    # Plans: the prompts of a step, and how many decodes it has.

    def _chunked(self) -> tuple[Chunks, int]:
        halted = self._grow()
        left = self.engine.max_batched_tokens - len(self.decoding)
        prompts: Chunks = []
        if self.chunked:
            prompts.append((self.chunked, min(left, self.chunked.todo)))
            left -= prompts[-1][1]
        decodes = len(self.decoding)
        while left > 0 and self.waiting and not halted and self._admit(self.waiting[0]):
            one = self.waiting.popleft()
            if one.prefilled:
                self._decode(one)  # from the next step on
            else:
                prompts.append((one, min(left, one.todo)))
                left -= prompts[-1][1]
        return prompts, decodes or (len(self.decoding) if not prompts else 0)

    def _prefill_first(self) -> tuple[Chunks, int]:
        prompts: Chunks = []
        left = self.engine.max_batched_tokens
        while self.waiting and (not prompts or self.waiting[0].todo <= left) and self._admit(self.waiting[0]):
            one = self.waiting.popleft()
            if one.prefilled:
                self._decode(one)
            else:
                prompts.append((one, one.todo))
                left -= one.todo
        if prompts:
            return prompts, 0
        self._grow()
        return [], len(self.decoding)

    def _static(self) -> tuple[Chunks, int]:
        if not self.running and len(self.waiting) >= self.engine.max_num_seqs:
            while len(self.running) < self.engine.max_num_seqs:
                one = self.waiting.popleft()
                one.admitted, one.order = self.world.now, next(self.orders)
                self.running[one.order] = one
                self.pending.append(one)
            self.began = self.step
        prompts: Chunks = []
        left = self.engine.max_batched_tokens
        while self.pending and (not prompts or self.pending[0].todo <= left):
            one = self.pending.popleft()
            prompts.append((one, one.todo))
            left -= one.todo
        return prompts, 0 if prompts else len(self.running)

    # What a step costs, and what it yields.

    def _seconds(self, prompts: Chunks, decodes: int) -> float:
        context = self.base / decodes + self.step + 1 if decodes else 0.0
        if self.engine.policy == "static" and decodes:  # rows that are done grow on
            context = sum(one.length for one in self.running.values()) / decodes + self.step - self.began + 1
        if not prompts:
            return float(self.times.decode(np.float64(decodes), np.float64(context)))
        new = sum(tokens for _, tokens in prompts)
        pairs = sum(n * (one.length - one.todo + (n + 1) / 2) for one, n in prompts)
        vision = sum(one.vision for one, _ in prompts if one.todo == one.length and not one.preempted)
        return vision + float(self.times.step(new, pairs, decodes, context))

    def _hand_out(self, prompts: Chunks, decodes: int) -> None:
        if decodes:
            self.step += 1
            while self.ends and self.ends[0][0] <= self.step:
                _, order = heapq.heappop(self.ends)
                if order in self.decoding:
                    self._finish(self._leave(order))
        self.chunked = None
        for one, tokens in prompts:
            one.todo -= tokens
            if one.todo:
                self.chunked = one
            else:
                one.seen += 1
                self._decode(one)

    def _decode(self, one: Asked) -> None:
        """From now on it decodes, unless its first token is its last."""
        if math.isnan(one.first):
            one.first = self.world.now
        one.base = one.length - self.step
        self.base += one.base
        self.crossing[-one.base % len(self.crossing)] += 1
        self.decoding[one.order] = one
        if one.seen >= one.output:
            self._finish(self._leave(one.order))
        else:
            heapq.heappush(self.ends, (self.step + one.output - one.seen, one.order))

    def _leave(self, order: int) -> Asked:
        """It decodes no more; its blocks are free."""
        one = self.decoding.pop(order)
        self.base -= one.base
        self.crossing[-one.base % len(self.crossing)] -= 1
        if self.engine.policy != "static":
            del self.running[order]
            kept = self.engine.keeping == "reserve"
            self.free += one.blocks if kept else self._blocks(one.base + self.step)
        elif not self.decoding and not self.pending:
            self.running.clear()
        return one

    def _finish(self, one: Asked) -> None:
        one.end = self.world.now
        one.event.succeed()

    # Blocks of KV.

    def _blocks(self, tokens: int) -> float:
        return self.counted * (math.ceil(tokens / self.engine.block_tokens) + self.besides)

    def _admit(self, one: Asked) -> bool:
        """Give a request its place and blocks if there are any."""
        kept = self.engine.keeping == "reserve"
        need = self._blocks(one.prefill + one.output - 1 if kept else one.length)
        if len(self.running) >= self.engine.max_num_seqs or need > self.free:
            return False
        self.free -= need
        one.blocks, one.order = need, next(self.orders)
        self.running[one.order] = one
        if math.isnan(one.admitted):
            one.admitted = self.world.now
        return True

    def _grow(self) -> bool:
        """Give the decodes the blocks of their next token; whether any request had to give its own up for that."""
        halted = False
        if self.engine.keeping == "reserve" or not self.counted:
            return halted
        while (need := self.crossing[self.step % len(self.crossing)]) > self.free:
            self._preempt(self.running[next(reversed(self.running))])
            halted = True
        if self.decoding:
            self.free -= need
        return halted

    def _preempt(self, one: Asked) -> None:
        """The last one that was admitted goes back, and starts anew with the tokens that it had."""
        if one.order in self.decoding:
            tokens = one.base + self.step
            self._leave(one.order)
            one.seen += tokens - one.length
            one.length = one.prefill + one.seen
        else:
            del self.running[one.order]
            self.free += one.blocks
            self.chunked = None
        one.todo, one.prefilled = one.length, False
        one.preempted += 1
        self.waiting.appendleft(one)

    # What is measured.

    def busy(self, start: float, stop: float) -> float:
        """Seconds of a window in which it runs a step."""
        return sum(max(0.0, min(end, stop) - max(begin, start)) for begin, end, _ in self.log)

    def mean_batch(self, start: float, stop: float) -> float:
        """The mean number of decodes over a window, in time."""
        held = sum(max(0.0, min(end, stop) - max(begin, start)) * n for begin, end, n in self.log)
        return held / max(stop - start, 1e-12)
