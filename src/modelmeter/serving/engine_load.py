"""One engine under load, in closed form: its greatest rate, a fixed number of users, and arrivals at random.

Decodes share the engine as customers of a processor-sharing queue whose speed depends on how many there are; prompts go
before them and slow them down. So the number of decodes is a chain of states (`queues.Chain`), whose rates come from
the mean length of a step in each state (`filling.Filling`). docs/serving.md tells what is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np

from modelmeter.serving.demand import Demand
from modelmeter.serving.filling import Filling
from modelmeter.serving.numbers import Array
from modelmeter.serving.prompts import States, states_of
from modelmeter.serving.queues import Chain

POINTS = 32


@final
@dataclass(frozen=True)
class Users:
    """An engine that always has so many requests (arrays): their `count`, the rate, how many decode, and the seconds
    from admission to the first token and a further token."""

    count: Array
    rate: Array
    batch: Array
    first_s: Array
    token_s: Array


@final
@dataclass(frozen=True)
class Arrivals:
    """An engine with random arrivals: the chain of its decodes, and what a request meets in each of its states.

    `crowd` is the chain of who waits for admission: wider where requests take unlike room of a KV cache that limits.
    `waiting` requests wait for it, `wait_s` each on average. `busy` is the share of the time with a step, `prefilling`
    that with a prompt in it.
    """

    chain: Chain
    crowd: Chain
    states: States
    waiting: float
    wait_s: float
    busy: float
    prefilling: float

    def mean(self, column: Array) -> float:
        """Over time, and so over arrivals."""
        return float(column @ self.chain.shares)

    def met(self, column: Array) -> float:
        """Over tokens: the more decode, the more of them meet it."""
        weight = self.chain.shares * np.arange(len(self.chain.shares))
        return float(column @ weight / weight.sum()) if weight.any() else 0.0


@final
@dataclass(frozen=True, eq=False)
class EngineLoad:
    """An engine and what is asked of it."""

    demand: Demand

    @cached_property
    def lockstep(self) -> bool:
        """Whether all answers have one length: requests that began together then stay together."""
        return bool(np.ptp(self.demand.requests.steps) < 1)

    @cached_property
    def _seats(self) -> float:
        """How many decodes there can be at once, prompts taking nothing."""
        of, engine = self.demand, self.demand.engine
        seats = min(float(engine.max_num_seqs), (engine.kv_bytes - of.unfilled) / of.held[1] if of.held[1] else np.inf)
        return max(1.0, min(seats, self._brought))

    @property
    def _brought(self) -> float:
        """How many decodes steps full of prompts bring."""
        of = self.demand
        return of.steps * of.engine.max_batched_tokens / (of.tokens + of.steps) if of.chunked else np.inf

    @cached_property
    def filling(self) -> Filling:
        """The steps beside no decode, one, and so on to the most, in equal ratios."""
        return Filling(self.demand, np.unique(np.concatenate(([0.0], np.geomspace(1, self._seats, POINTS)))))

    @cached_property
    def _table(self) -> Users:
        """The engine over the batches of `filling`, from one on, when another request follows each that ends."""
        of, filling = self.demand, self.filling
        others = np.maximum(filling.batch - 1, 0) / max(of.steps, 1e-9)  # prompts that come in a step
        together = filling.batch * of.tokens if self.lockstep else filling.alone * _gathered(others * filling.chunks)
        steps = filling.of_tokens(others, np.maximum(filling.alone, together))
        token = steps.mean_s
        if not of.chunked:
            tokens = np.minimum(np.maximum(filling.alone, together), filling.room)
            token = filling.decode_s + others * of.tokens / tokens * steps.mixed_s
        first = filling.chunks * steps.mixed_s
        cycle = first + of.steps * token
        decoding = np.maximum(of.steps * token, 1e-12)
        count = 1 + (filling.batch - 1) * cycle / decoding
        return _rows(Users(count, count / cycle, filling.batch * 1.0, first, token), slice(1, None))

    @cached_property
    def at_limit(self) -> Users:
        """The engine when its seats or its KV are just full and nobody waits (one row)."""
        of, engine, table = self.demand, self.demand.engine, self._table
        if not of.steps:
            return self._prefills()
        prefilling = table.rate * table.first_s
        full = table.count / engine.max_num_seqs
        if np.isfinite(engine.kv_bytes):
            held = prefilling * of.held[0] + np.maximum(table.count - prefilling, 0) * of.held[1]
            full = np.maximum(full, held / max(engine.kv_bytes - of.unfilled, 1e-9))
        return _between(table, np.maximum.accumulate(full), np.ones(1))

    @cached_property
    def _held(self) -> bool:
        """Whether the room for KV is what limits: neither the seats nor the tokens of a step."""
        of, limit = self.demand, self.at_limit
        seated = limit.count[0] >= 0.98 * of.engine.max_num_seqs or limit.batch[0] >= 0.98 * self._brought
        return bool(of.steps and not seated and np.isfinite(of.engine.kv_bytes))

    @cached_property
    def most(self) -> Users:
        """The engine when requests always wait: the greatest rate (one row).

        Where KV may grow, each block that is free goes to the next prompt, and each token that a decode grows by is
        taken from a request that is prefilled anew: so many tokens more are prefilled a request as it decodes.
        """
        of, limit = self.demand, self.at_limit
        if not (self._held and of.engine.keeping == "grow"):
            return limit
        again = np.interp(limit.batch, self.filling.batch, self.filling.another_s) * of.steps / of.tokens
        rate = 1 / (1 / limit.rate + again)
        return Users(limit.count, rate, limit.batch, limit.first_s, limit.batch / rate / of.steps)

    def _prefills(self, count: Array | None = None) -> Users:
        """An engine without decodes: steps full of prompts, or of half of the users, who take turns."""
        of = self.demand
        filling = Filling(of, np.zeros(1 if count is None else len(count)))
        some = of.engine.max_num_seqs if count is None else np.maximum(count / 2, 1.0)
        tokens = np.minimum(some * of.tokens, filling.room)
        time = filling.of_tokens(np.full(len(tokens), np.inf), np.maximum(tokens, filling.alone)).mixed_s
        together = np.maximum(tokens, filling.alone) / of.tokens
        return Users(together, together / time, np.zeros(len(tokens)), time, np.zeros(len(tokens)))

    def users(self, count: Array) -> Users:
        """The engine with `count` users (N) who ask again as soon as they are answered; `first_s` counts all waits."""
        of, most = self.demand, self.most
        if not of.steps:
            found = self._prefills(count)
        elif self.lockstep:
            found = self._in_lockstep(np.minimum(count, most.count))
        else:
            table = self._table
            missed = table.token_s * (1 - 1 / np.maximum(table.count, 1))  # the step that runs when they ask
            cycle = table.first_s + missed + of.steps * table.token_s
            asking = 1 + (table.batch - 1) * cycle / np.maximum(of.steps * table.token_s, 1e-12)
            found = _between(Users(asking, asking / cycle, table.batch, table.first_s, table.token_s), asking, count)
        rate = np.minimum(found.rate, most.rate)
        batch = np.minimum(found.batch, most.batch)
        token = np.minimum(found.token_s, most.token_s)
        return Users(count, rate, batch, count / rate - of.steps * token, token)

    def _in_lockstep(self, count: Array) -> Users:
        """Users whose answers have one length: the prompts of all come together, in as many steps as they fill."""
        of = self.demand
        filling = Filling(of, count)
        tokens = np.minimum(np.maximum(filling.alone, count * of.tokens), filling.room)
        mixed_s = filling.of_tokens(np.ones(len(count)), tokens).mixed_s
        groups = np.maximum(count * of.tokens / tokens, 1.0)
        several = np.minimum(groups - 1, 1.0)  # then they wait for the step that runs
        if of.chunked:
            cycle = groups * mixed_s + np.maximum(of.steps + 1 + several - groups, 0) * filling.decode_s
            first = several * ((groups - 1) * mixed_s + filling.decode_s) / groups + mixed_s
        else:
            cycle = groups * mixed_s + of.steps * filling.decode_s
            first = mixed_s * (groups + 1) / 2
        token = (cycle - first) / of.steps
        return Users(count, count / cycle, count * of.steps * token / cycle, first, token)

    def arrivals(self, rate: float, burstiness: float = 1.0) -> Arrivals:
        """The engine at a rate below the greatest."""
        of, batch = self.demand, self.filling.batch
        count = np.arange(max(1, round(float(self.at_limit.batch[0]))) + 1, dtype=np.float64)
        states = states_of(self.filling, rate, burstiness).at(batch, count)
        leaving = count[1:] / (max(of.steps, 1e-9) * states.token_s[1:])
        most, clusters = float(self.most.rate[0]), self._clusters(rate, leaving)
        chain = Chain.of(rate, leaving, most, clusters)
        crowd = Chain.of(rate, leaving, most, clusters + of.held_variation) if self._held else chain
        admits = of.steps > 0 and self.at_limit.batch[0] < 0.98 * self._brought
        heavy = (burstiness + of.work_variation) / 2
        waiting = crowd.waiting * heavy if admits else 0.0  # else prompts wait for full steps, which `queue_s` tells
        idle = float(chain.share[0]) * max(0.0, 1 - rate * float(states.first_s[0]))
        prefilling = rate * float(np.interp(chain.served, count, states.first_s))
        return Arrivals(chain, crowd, states, waiting, waiting / rate, 1 - idle, min(prefilling, 1.0))

    def _clusters(self, rate: float, leaving: Array) -> float:
        """How much more the number of decodes varies than if each came alone.

        A prompt halts the decodes while others come: seen by the decodes, requests come in clusters.
        """
        of, filling = self.demand, self.filling
        usual = float(np.searchsorted(leaving, rate)) + 1
        mean, square = (float(np.interp(usual, filling.batch, column)) for column in filling.added)
        load = min(rate * mean, 0.95)
        cluster = 1 + 2 * load / (1 - load) + rate**2 * square / (1 - load) ** 2
        return min(1 + (cluster - 1) * of.overlap, 1 + usual / 8)  # else many a share below none is cut off


def _rows(users: Users, which: slice) -> Users:
    return Users(*(getattr(users, name)[which] for name in Users.__dataclass_fields__))


def _between(users: Users, rising: Array, at: Array) -> Users:
    """The users where a column that rises has given values."""
    return Users(*(np.interp(at, rising, getattr(users, name)) for name in Users.__dataclass_fields__))


def _gathered(prompts: Array) -> Array:
    """How many come during a step in which any do."""
    prompts = np.maximum(prompts, 1e-9)
    return np.asarray(prompts / -np.expm1(-prompts))
