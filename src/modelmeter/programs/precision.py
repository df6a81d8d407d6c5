"""Precision: bits per element of weights, activations and KV cache, declared and never assumed.

Every tensor has a name such as `decoder.moe.mlp.experts.W_down`; an override that matches it
(shell wildcards, first match wins) sets its bits, so a quantised format needs no change in a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cached_property
from typing import Any

from modelmeter.errors import InputError, choose, unknown

DTYPES = {
    "fp64": 64, "fp32": 32, "tf32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4,
}  # fmt: skip
"""Bits an element of the formats that need no block scales; for others give bits as a number."""


def bits_of(key: str, value: Any) -> Fraction:
    """Bits per element from a dtype name ("bf16") or a positive number (4.5).

    Raises InputError for anything else.
    """
    if isinstance(value, str):
        if value not in DTYPES:
            raise unknown(f"dtype for {key}", value, DTYPES)
        return Fraction(DTYPES[value])
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
    overrides: Mapping[str, str | float] = field(default_factory=dict)

    @cached_property
    def _bits(self) -> dict[str, Fraction]:
        return {
            "weight": bits_of("precision.weights", self.weights),
            "activation": bits_of("precision.activations", self.activations),
            "kv": bits_of("precision.kv", self.kv),
        }

    @cached_property
    def _memo(self) -> dict[tuple[str, str], int | Fraction]:
        return {}

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

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.weights, self.activations, self.kv, tuple(self.overrides.items())))

    def format(self, role: str, bits: int) -> str:
        """The name of the format of a tensor that is declared in so many bits (0: as its role)."""
        if bits:
            return f"fp{bits}"
        return str({"weight": self.weights, "activation": self.activations, "kv": self.kv}[role])

    def __str__(self) -> str:
        names = dict.fromkeys(map(str, (self.weights, self.activations, self.kv)))
        one = next(iter(names)) if len(names) == 1 else f"{self.weights}/{self.activations}/{self.kv}"
        return one + "".join(f", {pattern} {bits}" for pattern, bits in self.overrides.items())

    def __post_init__(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise InputError(f"precision.overrides must map tensor names to a dtype or bits, not {self.overrides!r}")
        for key, value in self.overrides.items():
            bits_of(f"precision override {key}", value)
        _ = self._bits

    def bytes(self, name: str, role: str) -> int | Fraction:
        """Bytes per element of the tensor with this full name and role (weight, activation, kv)."""
        found = self._memo.get((name, role))
        if found is None:
            bits = self._bits[role]
            for pattern, value in self.overrides.items():
                if fnmatchcase(name, pattern):
                    bits = bits_of(pattern, value)
                    break
            exact = bits / 8
            found = exact.numerator if exact.denominator == 1 else exact
            self._memo[name, role] = found
        return found
