"""Equations over named axes as text: `y[b s f] = x[b s d] * W_up[d f] + W_bias[f]`.

`W[E:D d f]` stores E and touches D; `x:32[...]` is held in 32 bits. Only reading is done here; what an
equation costs is told in `ops.py`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from modelmeter.errors import InputError


class Tensor(NamedTuple):
    """A tensor of an equation: name, role, declared bits (0: as its role), axes stored and touched."""

    name: str
    role: str
    bits: int
    stored: tuple[str, ...]
    touched: tuple[str, ...]

    def __str__(self) -> str:
        axes = " ".join(s if s == t else f"{s}:{t}" for s, t in zip(self.stored, self.touched, strict=True))
        return f"{self.name}{f':{self.bits}' if self.bits else ''}[{axes}]"


class Equation(NamedTuple):
    """A parsed equation; `loops` are the distinct axes of the multiplied tensors."""

    text: str
    outputs: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    addends: tuple[Tensor, ...]
    loops: tuple[str, ...]

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """Factors and addends."""
        return self.factors + self.addends


_ROLES = {"W_": "weight", "C_": "kv"}
_TENSOR = re.compile(r"(\w+)(?::(\d+))?\[([^\]]*)\]")


@cache
def parse(equation: str) -> Equation:
    """Parse `out[axes] = a[axes] * b[axes] + bias[axes]`; several outputs stand side by side.

    Raises InputError for what cannot be read.

    >>> parse("y[b f] = x[b d] * W[d f]").loops
    ('b', 'd', 'f')
    """
    left, equals, right = equation.partition("=")
    product_part, _, sum_part = right.partition("+")

    if "*" in sum_part:
        raise InputError(f"write the product before what is added to it, not {equation!r}")
    if not equals:
        raise InputError(f"an equation needs an equals sign: {equation!r}")
    factors = _tensors(product_part, equation)
    loops = tuple(dict.fromkeys(a for t in factors for a in t.touched))
    addends = _tensors(sum_part, equation) if sum_part else ()
    return Equation(equation, _tensors(left, equation), factors, addends, loops)


def _tensors(text: str, equation: str) -> tuple[Tensor, ...]:
    found = []
    for name, bits, axes in _TENSOR.findall(text):
        pairs = [axis.partition(":") for axis in axes.split()]
        stored, touched = tuple(p[0] for p in pairs), tuple(p[2] or p[0] for p in pairs)
        found.append(Tensor(name, _ROLES.get(name[:2], "activation"), int(bits or 0), stored, touched))
    if _TENSOR.sub("", text).strip(" *+") or not found:
        raise InputError(f"cannot read {text.strip()!r} in equation {equation!r}; write name[axes]")
    return tuple(found)
