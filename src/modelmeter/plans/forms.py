"""Forms: how one replica of a model is spread over devices. Replicas beside each other are what a plan finds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

from modelmeter.errors import InputError
from modelmeter.runtimes.parallel import Parallel

PARTS = {"tp": "tensor", "ep": "expert", "dp": "data", "pp": "pipeline"}
TOGETHER, DECODE, ALL = "together", "decode", "vision"
APART = {
    TOGETHER: "one engine does all",
    DECODE: "prefill (with vision) and decode on devices of their own",
    ALL: "vision, prefill and decode on devices of their own",
}
"""Which stations a service has."""


@final
@dataclass(frozen=True)
class Form:
    """Devices of a replica: `tensor` share each matrix, `expert` the experts, `data` groups share these experts, and
    `pipeline` have a part of the layers each.

    >>> Form.of("tp2+ep2"), str(Form.of("dp4+ep4")), Form.of("tp2+pp3").devices
    (Form(tensor=2, expert=2, data=1, pipeline=1), 'ep4+dp4', 6)
    """

    tensor: int = 1
    expert: int = 1
    data: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        if self.data > 1 and self.expert != self.data * self.tensor:
            raise InputError(
                f"form {self}: groups that share no experts are replicas, which a plan counts itself; valid with "
                f"dp{self.data}: ep{self.data * self.tensor}"
            )
        if self.pipeline > 1 and self.data * self.expert > 1:
            raise InputError(f"form {self}: a pipeline goes with tp alone")
        Parallel(self.tensor, self.expert, self.data)

    @classmethod
    def of(cls, text: str) -> Form:
        """From parts such as tp2+ep2, each once. Raises InputError for anything else."""
        found = [re.fullmatch(r"(tp|ep|dp|pp)([1-9]\d{0,3})", part) for part in str(text).split("+")]
        names = [match[1] for match in found if match]
        if len(names) < len(found) or len(set(names)) < len(names):
            raise InputError(
                f"forms must be parts such as tp2, tp4+ep4, dp8+ep8 or pp2 (tensor, expert, data, pipeline), "
                f"not {text!r}"
            )
        return cls(**{PARTS[match[1]]: int(match[2]) for match in found if match})

    @property
    def parallel(self) -> Parallel:
        """As a workload takes it; a pipeline is no part of it."""
        return Parallel(self.tensor, self.expert, self.data)

    @property
    def devices(self) -> int:
        """Devices of a replica."""
        return self.tensor * self.data * self.pipeline

    def __str__(self) -> str:
        parts = [f"{short}{getattr(self, name)}" for short, name in PARTS.items() if getattr(self, name) > 1]
        return "+".join(parts) or "tp1"
