"""How a result is counted: runtime, pairs of causal attention, logits, precision. Each result says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from modelmeter.errors import choose
from modelmeter.graph.place import CAUSAL
from modelmeter.programs.precision import Precision
from modelmeter.runtimes.runtime import Runtime

LOGITS = ("all", "last")


@dataclass(frozen=True)
class Counting:
    """The options of every count; `basis` are these in words.

    `runtime` is a Runtime or the name of one; `causal`: pairs counted full or exact; `logits`: of all positions or
    the last; `precision`: a dtype, bits or a Precision. Raises InputError for unknown choices.

    >>> Counting(causal="exact", precision="int4").basis
    'flash, causal exact, logits all, int4'
    """

    runtime: Any = "flash"
    causal: str = "full"
    logits: str = "all"
    precision: Any = field(default_factory=Precision)

    def __post_init__(self) -> None:
        object.__setattr__(self, "runtime", Runtime.of(self.runtime))
        choose("causal", self.causal, CAUSAL)
        choose("logits", self.logits, LOGITS)
        object.__setattr__(self, "precision", Precision.of(self.precision))

    @cached_property
    def basis(self) -> str:
        """The options as words."""
        return f"{self.runtime}, causal {self.causal}, logits {self.logits}, {self.precision}"

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.runtime, self.causal, self.logits, self.precision))
