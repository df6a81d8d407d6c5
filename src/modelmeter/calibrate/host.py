"""What the host takes beside its kernels: small decoders of transformers timed, less what their kernels are predicted.

Decoders that stay in a cache tell what a launch takes at least, and a step; those that do not what it takes when
weights have driven the code out of the caches, as those of real models do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from time import process_time
from typing import Any

import torch
import transformers

from modelmeter.calibrate.fits import digits
from modelmeter.calibrate.graphics import finished
from modelmeter.calibrate.kernels import DTYPES
from modelmeter.calibrate.timing import Call, timed, undisturbed
from modelmeter.device import Device
from modelmeter.host import SECONDS, Host
from modelmeter.models.config_json import model_of
from modelmeter.models.model import BaseModel
from modelmeter.programs.precision import Precision
from modelmeter.times import Times

RUNTIME = "sdpa"
FREE = {name: [0, 0, 0] for name in SECONDS}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size")  # fmt: skip
CONFIG = {"model_type": "llama", "max_position_embeddings": 4096, "tie_word_embeddings": False}
WARM = 2
"""Steps that are not counted."""
LEAST = 6
"""Steps that are taken, however little time there is."""


Step = Callable[[Sequence[int]], float]
"""Seconds of a step of a decoder of these sizes."""


def decoder(sizes: Sequence[int], form: str = "fp32", place: str = "cpu") -> tuple[torch.nn.Module, BaseModel]:
    """A decoder with random weights where torch puts it, and ours of the same sizes."""
    config = {**CONFIG, **dict(zip(NAMES, sizes, strict=True))}
    made = transformers.AutoConfig.for_model(**config)
    found = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="sdpa", dtype=DTYPES[form])
    return found.eval().to(place), model_of(config)


def step_seconds(module: Any, tokens: int, steps: int, until: float = float("inf")) -> list[float]:
    """Seconds of each step of a greedy answer, the choice of the next token among them; fewer where time is up."""
    place = module.device
    ids, found = torch.arange(tokens, device=place)[None] % module.config.vocab_size, list[Call]()
    whole = finished if place.type == "cuda" else lambda run: run
    kept: list[Any] = []
    with torch.inference_mode():
        out = module(ids, use_cache=True)
        for step in range(steps):
            if step >= LEAST and process_time() > until:
                break
            held = out
            found.append(timed(whole(lambda: kept.append(_next(module, held)))))
            out = kept.pop()
    return undisturbed(found[WARM:])


def _next(module: Any, out: Any) -> Any:
    """One step of a greedy answer."""
    return module(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)


def stepping(asked: Mapping[str, Any], form: str, place: str = "cpu", until: float = float("inf")) -> Step:
    """What a step of a decoder of transformers takes; until this process has run for so long, but for a few of each."""
    tokens, steps = asked["host_calls"]
    return lambda sizes: median(step_seconds(decoder(sizes, form, place)[0], tokens, steps, until))


def host_of(device: Device, asked: Mapping[str, Any], form: str, step: Step) -> dict[str, list[float]]:
    """`eager` and `step` as [low, point, high]: seconds of a launch and of a step beside the kernels.

    A GPU runs its kernels while the next ones are launched, so they are not taken off there.
    """
    tokens, steps = asked["host_calls"]
    rows: list[tuple[float, float]] = []
    for sizes in asked["hosts"]:
        model = model_of({**CONFIG, **dict(zip(NAMES, sizes, strict=True))})
        work = model.text(tokens, decode_steps=steps, runtime=RUNTIME, precision=Precision.of(form))
        stage = Times(model, work, device, Host.of(FREE)).stages["decode"]
        many = sum(float(kernel.runs) for kernel, _ in stage.kernels)
        rows.append((many, step(sizes) - (stage.device.seconds if device.is_host else 0.0)))
    (few, short), (more, long), *cold = rows
    hot = max((long - short) / (more - few), 1e-7)
    beside = max(short - hot * few, 1e-6)
    each = max(mean((left - beside) / many for many, left in cold), hot)
    return {
        "eager": [digits(hot), digits(each), digits(1.5 * each)],
        "step": [digits(beside / 2), digits(beside), digits(2 * beside)],
    }
