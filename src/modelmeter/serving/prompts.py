"""Prompts that come at random to an engine that decodes: how long each waits, and what it costs the decodes.

All of it is told for each number of decodes (arrays), as the chain of `engine_load.py` needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import final

import numpy as np

from modelmeter.serving.filling import Filling, Steps
from modelmeter.serving.numbers import Array

TINY = 1e-12


@final
@dataclass(frozen=True)
class States:
    """What a request meets where so many decode, in seconds.

    `queue_s` is the wait for the prompt's own steps and `first_s` the mean of these; `token_s` is what a further token
    takes, `stall_s` what a request loses in all to prompts that its own left behind, `mixed_s` a step with prompts,
    `slowed` the share of the time that prompts take, and `jitter` the variance of one step.
    """

    queue_s: Array
    first_s: Array
    token_s: Array
    stall_s: Array
    mixed_s: Array
    slowed: Array
    jitter: Array

    def at(self, batch: Array, states: Array) -> States:
        """Between the batches of a grid."""
        return States(*(np.interp(states, batch, getattr(self, one.name)) for one in fields(self)))


def states_of(filling: Filling, rate: float, burstiness: float) -> States:
    """The states of an engine beside the batches of a filling, with prompts at a rate.

    A prompt leaves those behind that came while it was served; they slow the decodes of its request, and so do those
    that come meanwhile, as many as at any time.
    """
    of, steps = filling.demand, filling.at_rate(rate)
    jitter = burstiness * _jitter(filling, steps.mean_s, rate)
    queue, rest, alike = _queue(filling, steps, jitter, rate, burstiness)
    met = alike * np.minimum(steps.mixed / np.maximum(rate * filling.full_s, TINY), 1.0)  # at any step anyway
    behind = np.maximum(queue - rest + filling.prompt_s - steps.mean_s, 0.0) * rate * (1 - met)
    longer = np.where(filling.decode_s > 0, steps.mean_s / np.maximum(filling.decode_s, TINY), 0.0)
    decodes = np.maximum(steps.decodes, 1e-9)
    stall = np.minimum(behind, of.steps) * filling.added[0] * longer / decodes
    token = steps.mean_s / decodes + stall / max(of.steps, 1e-9)
    slowed = 1 - np.minimum(filling.decode_s / np.maximum(steps.mean_s, TINY), 1.0)
    return States(queue, filling.prompt_s, token, stall, steps.mixed_s, slowed, jitter)


def _jitter(filling: Filling, step: Array, rate: float) -> Array:
    """The variance of a step whose prompts are those that came during the step before.

    With k prompts it takes base + k * another - saved, the last where k > 0; k is Poisson of the step before, so that
    the variance is that at the mean step over 1 - slope^2.
    """
    (added, added2), another = filling.added, filling.another_s
    wide = np.where(added > 0, added2 / np.maximum(added, TINY) ** 2, 1.0)
    come = rate * step
    none, saved = np.exp(-come), another - added
    slope = np.clip(rate * (another - saved * none), 0, 0.98)
    square = another**2 * come - 2 * another * saved * come * none + saved**2 * none * (1 - none)
    return np.asarray(np.maximum(wide * square, 0.0) / (1 - slope**2))


def _queue(filling: Filling, steps: Steps, jitter: Array, rate: float, burstiness: float) -> tuple[Array, Array, Array]:
    """The wait of a prompt for its own steps, the part of it for the step that runs, and how much prompts queue singly.

    Prompts that come during a step share the next: each waits for the rest of the step, and for the others of its own.
    Where they fill whole steps they queue singly (M/G/1 with the steps of decodes as vacations).
    """
    of, base, another, square = filling.demand, filling.decode_s, filling.another_s, filling.prompt_s2
    biased = steps.mean_s + jitter / np.maximum(steps.mean_s, TINY)  # the step that an arrival meets
    load = np.minimum(rate * another, 0.98)
    empty = burstiness * rate * square / (1 - load**2) * (0.5 + load)  # the same without decodes
    shared = np.where(base > 0, biased / 2 + burstiness * rate * another * biased, empty)
    full = np.minimum(rate * filling.full_s, 1 - 1e-3)
    squeezed = square * (filling.full_s / filling.prompt_s) ** 2
    singly = burstiness * rate * squeezed / (2 * (1 - full)) + base / 2
    tokens = rate * np.where(base > 0, biased, empty) * of.tokens
    alike = np.maximum(of.filled, 1 - filling.room / np.maximum(tokens, filling.room))
    return (1 - alike) * shared + alike * singly, (1 - alike) * biased / 2, alike
