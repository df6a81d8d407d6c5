"""A model in one parallel form: its steps at a grid of sizes, and from these its engines on a device.

Seconds are those of `Times`, asked at the grid once for each device and all batch limits; tables tell the rest. A
prompt behind cached tokens takes what the whole takes less what these took.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from typing import Any, final

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.fits import Fits
from modelmeter.host import Host, Span
from modelmeter.models.model import BaseModel
from modelmeter.models.parts import decoder_of, layers_of
from modelmeter.plans.asked import Asked
from modelmeter.plans.forms import Form
from modelmeter.seconds.predict import seconds_of_work
from modelmeter.seconds.shapes import require_units
from modelmeter.serving import Engine, StepTimes
from modelmeter.serving.numbers import Array
from modelmeter.serving.steps import Table
from modelmeter.splits import Split, split
from modelmeter.stations import DEEPEST, SHARE, behind
from modelmeter.times import Times
from modelmeter.workload import Workload

TOKENS, BATCHES, CONTEXTS = 48, 18, 8
"""Points of the tables: tokens of a prefill, batches and contexts of a decode."""
ENDS = ("low", "point", "high")


def _grid(most: float, points: int, *own: int) -> Array:
    """Whole sizes from 1 in equal ratios, and those of a typical request."""
    return np.unique(np.rint([*np.geomspace(1, max(most, 2.0), points), *own]))


@final
@dataclass(frozen=True)
class Room:
    """Bytes of a device beside its KV cache, and those of its cache a token."""

    weights: float
    activations: float
    each: float

    def left(self, memory: float) -> float:
        """What is left for KV of the share of a memory that an engine takes."""
        return memory * SHARE - self.weights - self.activations


@final
@dataclass(frozen=True, eq=False)
class Spread:
    """A model whose requests are `asked`, in a form. Raises InputError for a form that the model does not allow.

    `known` is shared by the forms of a search: seconds of vision by device, which most forms run whole.
    """

    asked: Asked
    form: Form
    host: Host
    max_batched_tokens: int = 8192
    known: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def work(self) -> Workload:
        """A typical request in this form."""
        return replace(self.asked.typical, parallel=self.form.parallel)

    @cached_property
    def parts(self) -> list[tuple[BaseModel, Workload]]:
        """What each device of a pipeline has; the model itself where there is none."""
        model, many = self.asked.model, self.form.pipeline
        if many == 1:
            return [(model, self.work)]
        return list(zip(self._split.parts.values(), self._split.works.values(), strict=True))

    @cached_property
    def _split(self) -> Split:
        """The layers of a pipeline, shared evenly."""
        model, many = self.asked.model, self.form.pipeline
        layers = layers_of(decoder_of(model))
        if layers < many:
            raise InputError(f"form {self.form}: {model.name} has {layers} layers, too few for a pipeline of {many}")
        counts = (str(layers // many + (i < layers % many)) for i in range(many))
        return split(model, self.work, f"layers:{'+'.join(counts)}")

    @cached_property
    def _sent(self) -> float:
        """Bytes of a token that one device of a pipeline sends to the next."""
        if self.form.pipeline == 1:
            return 0.0
        passed: dict[str, float] = {}
        for c in (c for c in self._split.crossings if c.stage == "decode" and c.tensor != "next token"):
            passed[c.to] = passed.get(c.to, 0.0) + float(c.bytes)
        return max(passed.values(), default=0.0) / float(self.work.decode_steps)

    @cached_property
    def rooms(self) -> list[Room]:
        """The room of each part; activations are those of the largest step."""
        held = float(self.work.kept_tokens + self.work.decode_steps)
        image = int(self.work.image.tokens)
        step = replace(self.work, prompt_tokens=max(self.max_batched_tokens - image, 1), batch=self.form.data)
        found = []
        for model, work in self.parts:
            usual = Fits(model, work).rooms
            busiest = Fits(model, replace(step, runtime=work.runtime, precision=work.precision)).rooms
            peak = max(float(room.activations) for room in (*usual, *busiest) if room.stage != "decode")
            found.append(Room(float(usual[-1].weights), peak, float(usual[-1].kv_cache) / held))
        return found

    @cached_property
    def _sizes(self) -> tuple[Array, Array, Array]:
        """Tokens of prefills, batches and contexts of decodes that the kernels are asked at."""
        longest, work = max(1.5 * self.asked.longest, 1.0), self.work
        tokens = _grid(max(2 * longest, 1.5 * self.max_batched_tokens + DEEPEST), TOKENS, int(work.context_tokens))
        middle = int(work.kept_tokens) + int(work.decode_steps) // 2
        return tokens, _grid(DEEPEST, BATCHES), _grid(longest, CONTEXTS, middle)

    def require(self) -> None:
        """Raise InputError for a form or steps that cannot be planned on any device."""
        for name in ("prefill", "decode"):
            for model, work in self.parts:
                known = {"b", _grows(model, name)}
                for size in (size for size in model.program(name, work).kernel_names if size not in known):
                    raise InputError(
                        f"{model.name}: steps of {name} depend on more than batch and tokens (on {size}), which a "
                        "plan does not know; plan a model whose image tokens enter the decoder's sequence"
                    )
        _ = self.rooms, self.formats

    @cached_property
    def formats(self) -> set[str]:
        """Formats of all products."""
        images = ((self.asked.model, "vision", work) for work in self._images[:1])
        steps = ((*part, name) for name in ("prefill", "decode") for part in self.parts)
        asked = [*images, *((model, name, work) for model, work, name in steps)]
        programs = (model.program(name, work) for model, name, work in asked)
        return {form for program in programs for kernel in program.formal_kernels for form in kernel.tensor_flops}

    @cached_property
    def _images(self) -> list[Workload]:
        """A request with each image in this form."""
        return [replace(work, parallel=self.form.parallel) for work in self.asked.images if work.image.views]

    def ends(self, device: Device) -> dict[str, Engine]:
        """Engines of a device at the low, the likely and the high end of all step times.

        Raises InputError for a device that has no room, lacks a format or a figure.
        """
        room = self._room(device)
        times = self._times(device)
        each = room.each or 0.0
        return {
            end: Engine(
                one, 1, self.max_batched_tokens, kv_bytes=room.left(device.memory_bytes) * self.form.data,
                kv_bytes_per_token=each,
            )
            for end, one in zip(ENDS, times, strict=True)
        }  # fmt: skip

    def _room(self, device: Device) -> Room:
        """That of the part with the least room for tokens."""
        require_units(device, str(self.work.precision.activations))
        room = min(self.rooms, key=lambda one: one.left(device.memory_bytes) / max(one.each, 1e-9))
        if room.left(device.memory_bytes) <= 0:
            needed = room.weights + room.activations
            raise InputError(
                f"{self.asked.model.name} as {self.form} does not fit {device.name}: weights and activations are "
                f"{needed / 1e9:.1f} GB of {device.memory_bytes * SHARE / 1e9:.1f} GB; spread it (forms), store "
                f"weights smaller (weights=fp8) or take a larger device"
            )
        return room

    def _times(self, device: Device) -> list[StepTimes]:
        """Step times at the three ends."""
        tokens, batch, context = self._sizes
        way, groups = self.form.pipeline, float(self.form.data)
        prefill = self._slowest("prefill", device, groups, np.concatenate([tokens, tokens / way]))
        whole = np.maximum(prefill[:, : len(tokens)], way * prefill[:, len(tokens) :])
        several, deep = (side.ravel() for side in np.meshgrid(np.ceil(batch / way), context, indexing="ij"))
        decode = way * self._slowest("decode", device, several, deep).reshape(3, len(batch), len(context))
        vision = self._vision(device)
        images = [self.host.on(device).images(work) for work in self.asked.images]
        return [
            StepTimes(
                _prefill(tokens, whole[end]), Table(batch, context, decode[end]),
                self.asked.by_image(vision[:, end] if len(vision) else np.zeros(len(images))),
                self.asked.by_image(np.array([one[end] for one in images])),
            )
            for end in range(3)
        ]  # fmt: skip

    def _vision(self, device: Device) -> Array:
        """Seconds (N, 3) of the vision of each image."""
        whole = any(stage.name == "vision" and stage.replicated for stage in self.asked.model.stages)
        key = device, self.form.data if whole else self.form.parallel
        if key not in self.known:
            times = (Times(self.asked.model, work, device, self.host) for work in self._images)
            self.known[key] = np.array([one.run("vision") for one in times])
        return np.asarray(self.known[key])

    def _slowest(self, stage: str, device: Device, batch: Any, sizes: Array) -> Array:
        """Seconds (3, N) of the part that takes longest, and of sending on what it makes; in a prefill `sizes` are
        tokens of all groups."""
        asked = {"b": batch, _grows(self.asked.model, stage): np.ceil(sizes / batch) if stage == "prefill" else sizes}
        parts = [Times(*part, device, self.host).run(stage, **asked) for part in self.parts]
        if len(parts) == 1:
            return _stacked(parts[0], sizes)
        work = {"bytes": self._sent * (sizes if stage == "prefill" else batch), "peer": True}
        sent = seconds_of_work("transfer", "bf16", work, device)
        return _stacked(reduce(Span.beside, parts) + Span(sent.low, sent.seconds, sent.high), sizes)

    @cached_property
    def embedding_bytes(self) -> float:
        """Bytes of an image token on its way from vision to the decoder."""
        image = next((work for work in self.asked.images if work.image.views), None)
        if image is None:
            return 0.0
        found = split(self.asked.model, replace(image, parallel=self.form.parallel), "vision+decoder").crossings
        sent = sum(float(c.bytes) for c in found if c.tensor.startswith("image tokens"))
        return sent / float(image.image.tokens)

    def fill_s(self, engine: Engine) -> float:
        """Seconds that a prompt takes through a pipeline beyond what its busiest device works on it."""
        if self.form.pipeline == 1:
            return 0.0
        tokens = np.array([float(self.work.context_tokens)])
        return float(engine.times.prefill(tokens, 0 * tokens)[0]) * (self.form.pipeline - 1)


def _grows(model: BaseModel, stage: str) -> str:
    """The axis of a stage's tokens, or of the context of its steps."""
    return model.stage(stage).grows or "s"


def _stacked(span: Span, like: Array) -> Array:
    return np.stack([np.broadcast_to(end, like.shape) for end in span])


def _prefill(tokens: Array, whole: Array) -> Any:
    """A law of new tokens behind cached ones, from the seconds of whole prompts."""
    slope = (whole[-1] - whole[-2]) / (tokens[-1] - tokens[-2])

    def of(many: Array) -> Array:
        beyond = np.maximum(many - tokens[-1], 0.0) * slope
        return np.asarray(np.interp(many, tokens, whole) + beyond)

    return partial(behind, of)
