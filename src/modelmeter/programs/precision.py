"""Precision: bits per element of weights, activations and KV cache, declared and never assumed.

Every tensor has a name such as `decoder.moe.mlp.experts.W_down`; an override that matches it
(shell wildcards, first match wins) sets its bits, so a quantised format needs no change in a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cached_property
from typing import Any

from modelmeter.errors import InputError, choose
from modelmeter.sizes import whole

DTYPES = {
    "fp64": 64, "fp32": 32, "tf32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4,
}  # fmt: skip
"""Bits an element of the formats that need no block scales; for others give bits as a number."""
ROLES = {"weight": "weights", "activation": "activations", "kv": "kv"}
"""The field of a tensor's role."""


def bits_of(key: str, value: Any) -> Fraction:
    """Bits per element from a dtype name ("bf16") or a positive number (4.5); raises InputError for anything else."""
    if isinstance(value, str):
        return Fraction(DTYPES[choose(f"dtype for {key}", value, DTYPES)])
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)) or not 0 < value <= 64:
        raise InputError(f"{key} must be a dtype name or bits per element between 0 and 64, not {value!r}")
    return Fraction(str(value)) if isinstance(value, float) else Fraction(value)


@dataclass(frozen=True)
class Precision:
    """Bits per element by role, with overrides by tensor name.

    >>> Precision(weights="int8", overrides={"*.W_norm": "fp32"}).bytes("head.W_out", "weight")
    1
    """

    weights: str | float = "bf16"
    activations: str | float = "bf16"
    kv: str | float = "bf16"
    overrides: Mapping[str, str | float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise InputError(f"precision.overrides must map tensor names to a dtype or bits, not {self.overrides!r}")
        object.__setattr__(self, "overrides", dict(self.overrides))  # a program is kept for what is asked now
        overrides = {f"precision override {key}": value for key, value in self.overrides.items()}
        for key, value in (overrides | {f"precision.{name}": getattr(self, name) for name in ROLES.values()}).items():
            bits_of(key, value)

    @classmethod
    def of(cls, value: Any) -> Precision:
        """A Precision from one, from a dtype or bits for all roles, or from a mapping of its fields."""
        if isinstance(value, Precision):
            return value
        if isinstance(value, Mapping):
            for key in value:
                choose("precision key", str(key), cls.__dataclass_fields__)
            return cls(**value)
        return cls(weights=value, activations=value, kv=value)

    def require(self, names: Iterable[str]) -> None:
        """Raise InputError for an override that matches none of these tensors."""
        known = list(names) if self.overrides else []
        for pattern in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in known):
                weight = next((name for name in reversed(known) if "W_" in name), known[-1])
                raise InputError(f"precision override {pattern!r} matches no tensor; a name is {weight!r}")

    def __str__(self) -> str:
        names = [str(getattr(self, name)) for name in ROLES.values()]
        one = names[0] if len(set(names)) == 1 else "/".join(names)
        return one + "".join(f", {pattern} {bits}" for pattern, bits in self.overrides.items())

    @cached_property
    def _memo(self) -> dict[tuple[str, str], Any]:
        return {}

    def bytes(self, name: str, role: str) -> Any:
        """Bytes per element, an int or a Fraction, of the tensor with this full name and role (see ROLES)."""
        found = self._memo.get((name, role))
        if found is None:
            overrides = (value for pattern, value in self.overrides.items() if fnmatchcase(name, pattern))
            found = whole(bits_of(name, next(overrides, getattr(self, ROLES[role]))) / 8)
            self._memo[name, role] = found
        return found
