"""A model in one parallel form: its kernels at a grid of steps, which no device is in, and from these its engines.

Kernels are evaluated once for all devices, each device's laws once for all batch limits; tables tell the rest. A prompt
behind cached tokens takes what the whole takes less what these took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, final

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.fits import Fits
from modelmeter.host import NONE, Host, Span
from modelmeter.models.model import BaseModel
from modelmeter.models.parts import decoder_of, layers_of
from modelmeter.plans.asked import Asked
from modelmeter.plans.forms import Form
from modelmeter.programs.kernels import Kernel
from modelmeter.seconds.predict import seconds_of, seconds_of_work
from modelmeter.seconds.shapes import FORMATS
from modelmeter.serving import Engine, StepTimes
from modelmeter.serving.numbers import Array
from modelmeter.serving.steps import Table
from modelmeter.splits import Split, split
from modelmeter.stations import DEEPEST, SHARE, behind
from modelmeter.workload import Workload

TOKENS, BATCHES, CONTEXTS = 48, 18, 8
"""Points of the tables: tokens of a prefill, batches and contexts of a decode."""
ENDS = ("low", "point", "high")


def _grid(most: float, points: int) -> Array:
    """Whole sizes from 1 in equal ratios."""
    return np.unique(np.rint(np.geomspace(1, max(most, 2.0), points)))


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
        return self._split_of(self.work)

    def _split_of(self, work: Workload) -> Split:
        model, many = self.asked.model, self.form.pipeline
        layers = layers_of(decoder_of(model))
        if layers < many:
            raise InputError(f"form {self.form}: {model.name} has {layers} layers, too few for a pipeline of {many}")
        counts = (str(layers // many + (i < layers % many)) for i in range(many))
        return split(model, work, f"layers:{'+'.join(counts)}")

    @cached_property
    def _sent(self) -> float:
        """Bytes of a token that one device of a pipeline sends to the next."""
        if self.form.pipeline == 1:
            return 0.0
        plain = self._split_of(replace(self.work, runtime="flash"))  # where no pass renames what crosses
        passed = [float(c.bytes) for c in plain.crossings if c.stage == "decode" and c.tensor != "next token"]
        return max(passed, default=0.0) / float(self.work.decode_steps)

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
        longest = max(1.5 * self.asked.longest, 1.0)
        tokens = _grid(max(2 * longest, 1.5 * self.max_batched_tokens + DEEPEST), TOKENS)
        return tokens, _grid(DEEPEST, BATCHES), _grid(longest, CONTEXTS)

    @cached_property
    def kernels(self) -> dict[str, list[list[Kernel]]]:
        """The kernels of prefills and decodes at the grid, and of the vision of each image, by part."""
        tokens, batch, context = self._sizes
        groups, way = self.form.data, self.form.pipeline
        shape = np.broadcast_to(np.ceil(batch / way)[:, None], (len(batch), len(context)))
        depth = np.broadcast_to(context, shape.shape)
        prompts = np.concatenate([np.ceil(tokens / groups), np.ceil(tokens / groups / way)])
        found = {
            "prefill": [_at(*part, "prefill", np.full(len(prompts), float(groups)), prompts) for part in self.parts],
            "decode": [_at(*part, "decode", shape.ravel(), depth.ravel()) for part in self.parts],
        }
        images = (replace(work, parallel=self.form.parallel) for work in self.asked.images if work.image.views)
        return found | {"vision": [self.asked.model.kernels("vision", work) for work in images]}

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
        self._require_formats(device)
        room = min(self.rooms, key=lambda one: one.left(device.memory_bytes) / max(one.each, 1e-9))
        if room.left(device.memory_bytes) <= 0:
            needed = room.weights + room.activations
            raise InputError(
                f"{self.asked.model.name} as {self.form} does not fit {device.name}: weights and activations are "
                f"{needed / 1e9:.1f} GB of {device.memory_bytes * SHARE / 1e9:.1f} GB; spread it (forms), store "
                f"weights smaller (weights=fp8) or take a larger device"
            )
        return room

    def _require_formats(self, device: Device) -> None:
        """Raise InputError for products in a format that a device has no units for."""
        for kernel in (kernel for stage in self.kernels.values() for part in stage for kernel in part):
            for form in kernel.tensor_flops:
                units = FORMATS[form].units if form in FORMATS else "bf16"
                if units not in device.peaks and units not in ("bf16", "fp32"):
                    raise InputError(
                        f"{device.name} multiplies no {units} (it has bf16, {', '.join(device.peaks)}); store "
                        "weights alone so (precision.activations=bf16) or take a device that has it"
                    )

    def _times(self, device: Device) -> list[StepTimes]:
        """Step times at the three ends."""
        tokens, batch, context = self._sizes
        way, many = self.form.pipeline, len(tokens)
        prefill = self._slowest("prefill", device, np.concatenate([tokens, tokens / way]))
        whole = np.maximum(prefill[:, :many], way * prefill[:, many:])
        decode = self._slowest("decode", device, np.repeat(np.ceil(batch / way), len(context)))
        decode = way * decode.reshape(3, len(batch), len(context))
        vision = self._vision(device)
        images = [self.host.images(work) for work in self.asked.images]
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
            found = [_ends(one, device, self._launch("vision"), NONE)[:, 0] for one in self.kernels["vision"]]
            self.known[key] = np.array(found)
        return np.asarray(self.known[key])

    def _slowest(self, stage: str, device: Device, tokens: Array) -> Array:
        """Seconds of the part that takes longest, and of sending on so many tokens."""
        launch, step = self._launch(stage), self.host.step
        parts = [_ends(one, device, launch, step) for one in self.kernels[stage]]
        if len(parts) == 1:
            return parts[0]
        work = {"bytes": self._sent * tokens, "peer": True}
        sent = seconds_of_work("transfer", "bf16", work, device)
        return _stacked(Span(*np.max(parts, axis=0)) + Span(sent.low, sent.seconds, sent.high))

    def _launch(self, stage: str) -> Span:
        return self.host.launches(self.work, stage, 1.0)

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


def _at(model: BaseModel, work: Workload, stage: str, batch: Array, size: Array) -> list[Kernel]:
    """The kernels of a stage at batches and tokens or contexts. Raises InputError for a stage of other sizes."""
    program, axis = model.program(stage, work), model.stage(stage).grows or "s"
    try:
        return program.kernels(b=batch, **{axis: size})
    except InputError as error:
        raise InputError(
            f"{model.name}: steps of {stage} depend on more than batch and tokens ({error}), which a "
            "plan does not know; plan a model whose image tokens enter the decoder's sequence"
        ) from None


def _ends(kernels: Sequence[Kernel], device: Device, launch: Span, step: Span) -> Array:
    """Seconds (3, N) of steps at their low, likely and high end: the busier of device and host, and the step.

    Errors of one law are one, those of several laws and of the host are independent, as in `times.Span`.
    """
    laws: dict[str, Span] = {}
    for kernel, one in zip(kernels, seconds_of(kernels, device), strict=True):
        own: Span = Span(one.low, one.seconds, one.high) * np.atleast_1d(np.asarray(kernel.runs, float))
        laws[one.law] = laws.get(one.law, NONE).along(own)
    many = sum(np.atleast_1d(np.asarray(kernel.runs, float)) for kernel in kernels)
    return _stacked(sum(laws.values(), start=NONE).beside(launch * many) + step)


def _stacked(span: Span) -> Array:
    return np.stack(np.broadcast_arrays(*span))


def _prefill(tokens: Array, whole: Array) -> Any:
    """A law of new tokens behind cached ones, from the seconds of whole prompts."""
    slope = (whole[-1] - whole[-2]) / (tokens[-1] - tokens[-2])

    def of(many: Array) -> Array:
        beyond = np.maximum(many - tokens[-1], 0.0) * slope
        return np.asarray(np.interp(many, tokens, whole) + beyond)

    return partial(behind, of)
