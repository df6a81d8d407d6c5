"""Fits: what a request takes of a device's memory, and the largest batch and context that still fit, exactly.

The room of a stage is all weights, the KV cache at its end, the largest set of activations alive at once and what is
held besides; a request takes that of its largest stage. In one size that is left open it is a closed form: whether
that never falls is read off it, and the largest size that fits is found by bisection over whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce
from typing import Any, final

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.models.model import BaseModel
from modelmeter.sizes import Evaluator, Size, maximum, never_falls, symbol
from modelmeter.workload import Workload

MOST = 2**62
"""A size up to here that fits is told as one without limit."""
CHANGES: Mapping[str, Callable[[Workload], Workload]] = {
    "weights=q8_0": lambda work: _stored(work, weights="q8_0"),
    "weights=q4_k_m": lambda work: _stored(work, weights="q4_k_m"),
    "precision.kv=fp8": lambda work: _stored(work, kv="fp8"),
    "logits=last": lambda work: replace(work, logits="last"),
    "runtime=flash": lambda work: replace(work, runtime="flash"),
}
"""What may make a request smaller, by what a user types, the most usual first."""


def _stored(work: Workload, **formats: str) -> Workload:
    return replace(work, precision=replace(work.precision, **formats))


@final
@dataclass(frozen=True)
class Room:
    """What takes the room while a stage runs, in bytes."""

    stage: str
    weights: Size
    kv_cache: Size
    activations: Size
    overhead: Size = 0

    @property
    def total(self) -> Size:
        """All of it."""
        return self.weights + self.kv_cache + self.activations + self.overhead


def rooms(model: BaseModel, work: Workload, overhead: Size = 0) -> list[Room]:
    """The room of each stage that a workload has; the weights are those of the whole model, whatever the workload."""
    weights = model.storage(work, whole=True).weight_bytes
    costs = {stage.name: model.cost(stage.name, work) for stage in model.stages if stage.structure(work) != ()}
    return [
        Room(stage, weights, cost.kv_cache_bytes, cost.peak_activation_bytes, overhead) for stage, cost in costs.items()
    ]


def request_of(model: BaseModel, context: int | None = None, **options: Any) -> Workload:
    """A workload whose image, prompt and answer are `context` tokens: the prompt is what the others leave.

    None keeps the prompt of the options, keywords of `model.workload`. Without any image it is that of a model whose
    images are all alike, and text alone for other models. Raises InputError for a context that is too short.
    """
    planner = model.planner
    given = any(options.get(key) is not None for key in ("image", "image_size", "grid", "mode"))
    if planner and not given and (planner.varies or planner.has_crops(None)):
        of_text = {k: v for k, v in options.items() if k not in ("image", "image_size", "grid", "mode")}
        work = model.text(of_text.pop("prompt_tokens"), **of_text)
    else:
        work = model.workload(**options)
    if context is None:
        return work
    image, least = work.context_tokens - work.prompt_tokens, least_prompt(work)
    if context < image + work.decode_steps + least:
        told = f"{image} image tokens, a prompt of at least {least} and an answer of {work.decode_steps} (decode_steps)"
        raise InputError(f"context must be at least {image + work.decode_steps + least}, not {context}: {told}")
    return replace(work, prompt_tokens=context - image - work.decode_steps)


def least_prompt(work: Workload) -> int:
    """The fewest tokens of a prompt: some token must enter the decoder."""
    return 0 if work.context_tokens - work.prompt_tokens else 1


@final
@dataclass(frozen=True)
class Fits:
    """What a model takes at a workload, with `overhead` bytes held besides.

    >>> from modelmeter.config import load_model
    >>> model = load_model("llama_3_2_1b")
    >>> fits = Fits(model, model.text(1000, decode_steps=24))
    >>> fits.needed == max(room.total for room in rooms(model, fits.work)), fits.batch_at_most(fits.needed)
    (True, 1)
    """

    model: BaseModel
    work: Workload
    overhead: int = 0

    @cached_property
    def rooms(self) -> list[Room]:
        """What takes the room, by stage."""
        return rooms(self.model, self.work, self.overhead)

    @property
    def largest(self) -> Room:
        """The room of the stage that takes the most."""
        return max(self.rooms, key=lambda room: room.total)

    @property
    def needed(self) -> Size:
        """Bytes that the request takes."""
        return self.largest.total

    def short(self, devices: Iterable[Device]) -> list[Device]:
        """Those of some devices that the request does not fit."""
        needed = self.needed
        return [device for device in devices if needed > device.memory_bytes]

    @property
    def context(self) -> int:
        """Tokens of the decoder's sequence at the end: image, prompt and answer."""
        return int(self.work.context_tokens + self.work.decode_steps)

    def batch_at_most(self, memory: float) -> int | None:
        """The largest batch at this context, 0 if none fits, None if all do."""
        return largest(lambda batch: bool(self._by_batch(batch) <= memory), 1)

    def context_at_most(self, memory: float) -> int | None:
        """The longest context at this batch, the prompt the longer; 0 if none fits, None if all do."""
        prompt = largest(lambda tokens: bool(self._by_prompt(tokens) <= memory), least := least_prompt(self.work))
        return prompt if prompt is None else 0 if prompt < least else prompt + self.context - self.work.prompt_tokens

    def changes(self, memory: float) -> list[str]:
        """The changes that make it fit, each alone; or, where none does, all of those that help, if these do."""
        alone = [text for text, needed in self._helping.items() if needed <= memory]
        if alone or not self._helping:
            return alone
        text, needed = self._together
        return [text] * (needed <= memory)

    @cached_property
    def _helping(self) -> Mapping[str, Size]:
        """What it takes with each change alone, of those that help."""
        needs = {text: self._needed(change(self.work)) for text, change in CHANGES.items()}
        return {text: needed for text, needed in needs.items() if needed < self.needed}

    @cached_property
    def _together(self) -> tuple[str, Size]:
        """The changes that help, of one key the best, and what it takes with all of them."""
        needs = self._helping
        names = {text.partition("=")[0]: text for text in sorted(needs, key=lambda text: -needs[text])}  # the best last
        work = reduce(lambda work, text: CHANGES[text](work), names.values(), self.work)
        return " ".join(names.values()), self._needed(work)

    def _needed(self, work: Workload) -> Size:
        """What another workload takes, or a precision that the model's shapes forbid: as much as this one."""
        try:
            return replace(self, work=work).needed
        except InputError:
            return self.needed

    @cached_property
    def _by_batch(self) -> Callable[[int], Size]:
        return self._growing("batch")

    @cached_property
    def _by_prompt(self) -> Callable[[int], Size]:
        return self._growing("prompt_tokens")

    def _growing(self, key: str) -> Callable[[int], Size]:
        """What it takes as a function of one size. Raises InputError unless that certainly never falls."""
        size: Size = symbol(key)
        open_at = replace(self.work, **{key: size})
        needed = reduce(maximum, (room.total for room in rooms(self.model, open_at, self.overhead)))
        if not never_falls(needed):
            raise InputError(
                f"{self.model.name}: it is not certain that what it takes grows with {key}, so none is told"
            )
        evaluator = Evaluator((key,), [needed])
        return cache(lambda size: evaluator([size])[0])  # devices ask for the same sizes


def largest(fits: Callable[[int], bool], least: int) -> int | None:
    """The largest whole number from `least` on that fits, if smaller ones do; `least` - 1 if none does, None if all do.

    >>> largest(lambda n: n * n <= 50, 1), largest(lambda n: False, 1), largest(lambda n: True, 1)
    (7, 0, None)
    """
    low, high = least - 1, least
    while high <= MOST and fits(high):
        low, high = high, 2 * high + 1
    if high > MOST:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
