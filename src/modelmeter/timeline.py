"""Timeline: what a request is made of on a device, part by part, from when on: images, stages by component, the host.

All runs of a component stand together, in the order of their first kernels. `report/timeline.py` draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

from modelmeter.host import Span
from modelmeter.programs.kernels import Kernel
from modelmeter.times import StageTime, Times, binds, busy

DECODER, REST = "decoder", "norms and sums"
COMPONENTS = {
    "attn": "attention", "cross": "cross attention", "mlp.experts": "experts", "mlp.shared": "shared experts",
    "mlp.gate": "router", "mlp": "MLP",
}  # fmt: skip
"""Parts of a decoder's layers by their paths, the longer ones first."""


@final
@dataclass(frozen=True)
class Part:
    """One part of a request: seconds of one run of its stage, how many `runs` that has, when the first begins.

    What the `host` does stands beside what its device does in the same stage, but for the step, which follows.
    """

    stage: str
    name: str
    host: bool
    each: Span
    runs: float
    start: float
    binds: str

    @property
    def all(self) -> Span:
        """Seconds of all runs."""
        return self.each * self.runs


def top(kernel: Kernel) -> str:
    """The component of a kernel as `breakdown` names it; "" for one of the stage's own layer."""
    return kernel.path.partition(".")[0]


def component(kernel: Kernel) -> str:
    """What a kernel belongs to: a component of a tower, or what a decoder's layers are made of.

    >>> from modelmeter import load_model
    >>> model = load_model("qwen3_30b_a3b")
    >>> sorted({component(kernel) for kernel in model.kernels("decode", model.text(9, runtime="vllm"))})
    ['attention', 'embedding', 'experts', 'head', 'norms and sums', 'router']
    """
    first, _, below = kernel.path.partition(".")
    if first != DECODER:
        return first or REST
    words = f".{below}."
    return next((name for part, name in COMPONENTS.items() if f".{part}." in words), REST)


class Busy(NamedTuple):
    """How long some kernels keep a device busy, and what binds most of that."""

    device: Span
    binds: str


def by_component(stage: StageTime, name_of: Callable[[Kernel], str] = component) -> dict[str, Busy]:
    """A stage by component: how long each keeps the device busy, and what binds it."""
    groups: dict[str, list[int]] = {}
    for index, (kernel, _) in enumerate(stage.kernels):
        groups.setdefault(name_of(kernel), []).append(index)
    chosen = {name: tuple(stage.kernels[i] for i in indices) for name, indices in groups.items()}
    return {name: Busy(busy(some), binds(some)) for name, some in chosen.items()}


def binding(parts: Iterable[tuple[Span, str]]) -> str:
    """What binds the longest of some parts that follow one another."""
    return max(parts, key=lambda part: part[0].seconds)[1]


def before_decode(found: Times) -> list[tuple[Span, str]]:
    """What the first token waits for, with what binds it: images and stages, one after the other."""
    stages = [(stage.span, stage.binds) for name, stage in found.stages.items() if name != "decode"]
    return [(found.images, "host-bound"), *stages] if found.images.seconds else stages


def of_request(found: Times) -> list[tuple[Span, str]]:
    """The same of the whole request, all steps of decode at its end."""
    steps = float(found.work.decode_steps)
    return [*before_decode(found), (found.tpot * steps, found.stages["decode"].binds)]


def timeline(found: Times) -> Iterator[Part]:
    """The parts of a request, in their order."""
    start = found.images.seconds
    if start:
        yield Part("images", "resize, scale, copy", True, found.images, 1.0, 0.0, "host-bound")
    for name, stage in found.stages.items():
        runs, at = float(found.work.decode_steps) if name == "decode" else 1.0, start
        for part, own in by_component(stage).items():
            yield Part(name, part, False, own.device, runs, at, own.binds)
            at += own.device.seconds * runs
        yield Part(name, "launches", True, stage.launches, runs, start, "host-bound")
        end = start + stage.device.beside(stage.launches).seconds * runs
        if stage.step.seconds:
            yield Part(name, "sampling, scheduling", True, stage.step, runs, end, "host-bound")
        start = end + stage.step.seconds * runs
