"""Equations over named axes as text: `y[b s f] = x[b s d] * W_up[d f] + W_bias[f]`.

`W[E:D d f]` stores E and touches D; `x:32[...]` is held in 32 bits. What an equation costs is told in `ops.py`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from modelmeter.errors import InputError

_ROLES = {"W_": "weight", "C_": "kv"}
_TENSOR = re.compile(r"(\w+)(?::(\d+))?\[([^\]]*)\]")


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
    """A parsed equation; `loops` are the distinct axes of the factors, `new` those of outputs that no operand has."""

    text: str
    outputs: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    addends: tuple[Tensor, ...]
    operands: tuple[Tensor, ...]
    loops: tuple[str, ...]
    new: tuple[str, ...]


@cache
def parse(equation: str) -> Equation:
    """Parse `out[axes] = a[axes] * b[axes] + bias[axes]`; several outputs stand side by side.

    Raises InputError for what cannot be read.

    >>> parse("y[b f] = x[b d] * W[d f]").loops
    ('b', 'd', 'f')
    """
    left, equals, right = equation.partition("=")
    product, _, rest = right.partition("+")
    if "*" in rest:
        raise InputError(f"write the product before what is added to it, not {equation!r}")
    if not equals:
        raise InputError(f"an equation needs an equals sign: {equation!r}")
    factors, outputs = _tensors(product, equation, "*"), _tensors(left, equation, "")
    addends = _tensors(rest, equation, "+") if rest else ()
    loops = tuple(dict.fromkeys(axis for t in factors for axis in t.touched))
    known = {axis for t in factors + addends for axis in t.stored + t.touched}
    new = tuple(axis for t in outputs for axis in t.touched if axis not in known)
    return Equation(equation, outputs, factors, addends, factors + addends, loops, new)


def _tensors(text: str, equation: str, between: str) -> tuple[Tensor, ...]:
    found = []
    for name, bits, axes in _TENSOR.findall(text):
        pairs = [axis.partition(":") for axis in axes.split()]
        stored, touched = tuple(p[0] for p in pairs), tuple(p[2] or p[0] for p in pairs)
        found.append(Tensor(name, _ROLES.get(name[:2], "activation"), int(bits or 0), stored, touched))
    if _TENSOR.sub("", text).replace(" ", "") != between * (len(found) - 1) or not found:
        raise InputError(f"cannot read {text.strip()!r} in equation {equation!r}; write name[axes]")
    return tuple(found)
