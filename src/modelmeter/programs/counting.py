"""How a result is counted: runtime, pairs of causal attention, logits, precision, devices. Each result says it.

An option is one field of `Counting`: its default, its help and what it takes: one of the `valid` names (None: judged by
`of` alone), made its value by `of`. One that `some` layers alone have is told by results with such a layer. The command
line, the configuration and Python calls all follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from modelmeter.errors import choose
from modelmeter.folders import config_names
from modelmeter.graph.place import CAUSAL, LATENT, Root
from modelmeter.programs.precision import Precision
from modelmeter.runtimes.parallel import Parallel
from modelmeter.runtimes.runtime import Runtime

LOGITS = ("all", "last")


@dataclass(frozen=True, kw_only=True)
class Counting:
    """The options of every count; `basis` are these in words.

    `runtime` is a Runtime or the name of one; `causal`: pairs counted full or exact; `logits`: of all positions or the
    last; `precision`: a dtype, bits or a Precision; `parallel`: one of how many devices; `latent`: latent attention
    expanded or absorbed. Raises InputError for unknown choices.

    >>> Counting(causal="exact", precision="int4").basis
    'flash, causal exact, logits all, int4'
    """

    # fmt: off
    runtime: Any = field(default="flash", metadata={
        "help": "what is one kernel; docs/counting.md says how", "valid": lambda: config_names("runtime"),
        "of": Runtime.of})
    causal: Any = field(default="full", metadata={
        "help": "full (every query sees every key) or exact (s(2t-s+1)/2 pairs)", "valid": lambda: CAUSAL})
    logits: Any = field(default="all", metadata={
        "help": "all (as the Hugging Face code) or last (as serving engines)", "valid": lambda: LOGITS})
    precision: Any = field(default=Precision(), metadata={
        "help": "a dtype or bits per element, for all or by role", "valid": None, "of": Precision.of})
    parallel: Any = field(default=Parallel(), metadata={
        "help": "one of several devices that share tensors, experts or the batch", "valid": None, "of": Parallel.of})
    latent: Any = field(default="expanded", metadata={
        "help": "latent attention: expanded (as transformers does it) or absorbed (as serving engines do in decode)",
        "valid": lambda: LATENT, "some": True})
    # fmt: on

    def __post_init__(self) -> None:
        for name, of, valid in OPTIONS:
            value = getattr(self, name)
            object.__setattr__(self, name, of(value) if of else choose(name, value, valid()))

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """The options as what tells programs apart."""
        return tuple(getattr(self, name) for name, *_ in OPTIONS)

    @cached_property
    def basis(self) -> str:
        """The options as words, those that the runtime fixes as it has them."""
        fixed: dict[str, Any] = dict(self.runtime.fixed)
        if activations := fixed.pop("activations", None):
            fixed["precision"] = replace(self.precision, activations=activations)
        told = {name: getattr(self, name) for name, *_ in OPTIONS if name not in self.choices} | fixed
        words = (f"{name} {value}" if isinstance(value, str) else str(value) for name, value in told.items())
        return ", ".join(filter(None, words))

    @cached_property
    def choices(self) -> dict[str, str]:
        """The options that some layers alone have."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("some")}

    def root(self, steps: bool = False) -> Root:
        """What the layers of a graph counted so share; in `steps` of decode, latents as the runtime has them there."""
        own = {"latent": self.runtime.latent_steps} if steps and self.runtime.latent_steps else {}
        return Root(self.causal, self.choices | own)


OPTIONS: list[tuple[str, Any, Any]] = [(f.name, f.metadata.get("of"), f.metadata["valid"]) for f in fields(Counting)]
