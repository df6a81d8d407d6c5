"""Precision: the formats of weights, activations and KV cache, declared and never assumed.

Every tensor has a name such as `decoder.moe.mlp.experts.W_down`; an override that matches it
(shell wildcards, first match wins) sets its format, so a quantised one needs no change in a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from modelmeter.errors import InputError, choose
from modelmeter.programs.compressed import COMPRESSED
from modelmeter.programs.formats import FORMATS, Format, format_of
from modelmeter.programs.policies import POLICIES, of_decoder

ROLES = {"weight": "weights", "activation": "activations", "kv": "kv"}
"""The field of a tensor's role."""


@dataclass(frozen=True)
class Precision:
    """Formats or bits per element by role, with overrides by tensor name.

    `weights` may be a policy of llama.cpp (q4_k_m): a format for each tensor of a decoder; or of OpenVINO
    (openvino_int4): one for each matrix. All that is none of its is stored as activations are.

    >>> Precision(weights="int8", overrides={"*.W_norm": "fp32"}).override("head.W_norm").bits
    Fraction(32, 1)
    """

    weights: str | float = "bf16"
    activations: str | float = "bf16"
    kv: str | float = "bf16"
    overrides: Mapping[str, str | float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise InputError(f"precision.overrides must map tensor names to a dtype or bits, not {self.overrides!r}")
        object.__setattr__(self, "overrides", dict(self.overrides))  # a program is kept for what is asked now
        if isinstance(self.weights, str):
            choose("dtype for precision.weights", self.weights, dict.fromkeys((*FORMATS, *POLICIES, *COMPRESSED)))
        for role in ROLES:
            self.format(role)
        for key, value in self.overrides.items():
            format_of(f"precision override {key}", value)

    @classmethod
    def of(cls, value: Any) -> Precision:
        """A Precision from one, from a dtype or bits for all roles, from a policy or from a mapping of its fields."""
        if isinstance(value, Precision):
            return value
        if isinstance(value, Mapping):
            for key in value:
                choose("precision key", str(key), cls.__dataclass_fields__)
            return cls(**value)
        if isinstance(value, str) and value in {*POLICIES, *COMPRESSED}:
            return cls(weights=value)
        return cls(weights=value, activations=value, kv=value)

    @property
    def policy(self) -> str:
        """The policy of weights ("": none)."""
        return self.weights if isinstance(self.weights, str) and self.weights in {*POLICIES, *COMPRESSED} else ""

    @property
    def names_tensors(self) -> bool:
        """Whether it says more of some tensors than of others."""
        return bool(self.overrides or self.policy)

    def require(self, names: Iterable[str]) -> None:
        """Raise InputError for an override that matches none of these tensors, or a policy that is of none."""
        known = list(names) if self.names_tensors else []
        if self.policy in POLICIES and not of_decoder(known):
            how = "an override of '*W_*' gives all weights one format"
            raise InputError(f"{self.policy} is how llama.cpp stores a decoder, and there is none here; {how}")
        for pattern in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in known):
                weight = next((name for name in reversed(known) if "W_" in name), known[-1])
                raise InputError(f"precision override {pattern!r} matches no tensor; a name is {weight!r}")

    def __str__(self) -> str:
        names = [str(getattr(self, name)) for name in ROLES.values()]
        one = names[0] if len(set(names)) == 1 else "/".join(names)
        return one + "".join(f", {pattern} {bits}" for pattern, bits in self.overrides.items())

    @cached_property
    def _formats(self) -> dict[str, Format]:
        return {}

    def format(self, role: str) -> Format:
        """The format of a role; of weights that a policy does not name, that of activations."""
        key = "activations" if role == "weight" and self.policy else ROLES[role]
        if key not in self._formats:
            self._formats[key] = format_of(f"precision.{key}", getattr(self, key))
        return self._formats[key]

    def cached(self, name: str) -> str:
        """The name of the format of a tensor of the cache."""
        return (self.override(name) or self.format("kv")).name

    def override(self, name: str) -> Format | None:
        """The format that an override sets for a tensor."""
        matching = (value for pattern, value in self.overrides.items() if fnmatchcase(name, pattern))
        value = next(matching, None)
        return None if value is None else format_of(name, value)
