"""Rotary positions: the tables of cos and sin, and the rotation of queries and keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.errors import choose
from modelmeter.graph.forms import (
    ALL_ANGLES,
    ANGLES,
    POLAR_TABLE,
    ROTARY_TABLE,
    ROTATE,
    ROTATE_DIRECT,
    ROTATE_PART,
    SECTIONED_TABLE,
)
from modelmeter.graph.ops import Op, matmul, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, require_divisible
from modelmeter.sizes import Size, ratio

COORDINATES = 3  # time, row and column of a token


@dataclass(frozen=True)
class RotaryTable(BaseLayer):
    """The tables of cos and sin of a head width: `full`, or of half of it, `narrow` or as complex numbers (`polar`).

    `sections`: full ones of positions that are time, row and column of a token (M-RoPE). All three have tables, and
    each pair of a head keeps one, by its section; how wide the sections are changes no count.
    """

    e: Size
    form: str = "full"
    sizes = "b s"
    inputs = "pos"
    buffers = "freq"

    def check(self) -> None:
        choose("form of the tables", self.form, TABLES)
        require_divisible(type(self).__name__, "head width", self.e, "a pair's width", 2)

    @abstractmethod
    def angles(self, n: Sizes, lead: str) -> Op:
        """f[lead b s H], position times frequency."""

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(H=ratio(n.e, 2), coordinates=COORDINATES)
        lead, width, form = TABLES[self.form]
        yield self.angles(n, lead)
        equation = f"y[b s {width}] sin[b s {width}] = f:32[{lead}b s H]"
        yield pointwise(equation, form, n, over=f"b s {width}", grad=False)


@final
class RotaryEmbedding(RotaryTable):
    """The cos (y) and sin tables of rotary positions, in fp32, made once a model.

    f = position * inv_freq element by element, cos(f), sin(f), both scaled. Axes: b sequences, s tokens, e head width.
    Vendor: LlamaRotaryEmbedding in transformers 5; of `sections` Qwen2VLRotaryEmbedding, PaddleOCRRotaryEmbedding,
    GlmOcrTextRotaryEmbedding. Paper: arXiv 2104.09864 (RoFormer), 2409.12191 (Qwen2-VL: M-RoPE).

    >>> RotaryEmbedding(e=4).forward_cuda_core_flops(b=1, s=3) == 3 * (2 + 4 * 4)
    True
    >>> RotaryEmbedding(4, "sections").forward_cuda_core_flops(b=1, s=5) == 5 * 3 * (2 + 4 * 2)
    True
    """

    def angles(self, n: Sizes, lead: str) -> Op:
        form = ALL_ANGLES if lead else ANGLES
        return pointwise(f"f:32[{lead}b s H] = freq:32[H] * pos:32[{lead}b s]", form, n, grad=False)


@final
class LlamaRotaryEmbedding(RotaryTable):
    """The cos (y) and sin tables of rotary positions, in fp32, by a batched matmul in every layer.

    f = inv_freq @ position, cos(f), sin(f), both scaled. Axes: b sequences, s tokens, e head width.
    Vendor: LlamaRotaryEmbedding in transformers 4.46. Paper: arXiv 2104.09864 (RoFormer).

    >>> LlamaRotaryEmbedding(e=128).forward_tensor_core_flops(b=1, s=512)
    65536
    """

    def angles(self, n: Sizes, lead: str) -> Op:
        equation = f"f:32[{lead}b s H] = freq:32[{lead}b H] * pos:32[{lead}b s]"
        return matmul(equation, n, over=f"{lead}b s H", grad=False)


TABLES = {
    "full": ("", "e", ROTARY_TABLE),
    "narrow": ("", "H", ROTARY_TABLE),
    "polar": ("", "H", POLAR_TABLE),
    "sections": ("coordinates ", "e", SECTIONED_TABLE),
}
"""The axes before those of a position, the width of a table and its form."""
ROTATIONS = {
    "half": ("e", ROTATE),
    "part": ("e", ROTATE_PART),
    "direct": ("e:H", ROTATE_DIRECT),
    "narrow": ("H", ROTATE_DIRECT),
}
"""x cos + turned(x) sin, where turning negates, of whole heads or a part of each; or the products of each pair, where
it does not, on full tables or narrow ones. Each with the axis of the tables."""


def inputs_of(rotation: str, rotary: BaseLayer | None = None) -> str:
    """What attention is given: the tables, the positions of which it makes them itself, or neither."""
    return "x pos" if rotary is not None else "x" if rotation == "none" else "x cos sin"


def rotated(x: str, source: str, over: str, n: Sizes, kind: str, tables: str = "b s") -> Op:
    """A tensor with the pairs `over` rotated by cos and sin; n has b, s, e (the width of full tables) and H."""
    width, form = ROTATIONS[kind]
    return pointwise(f"{x} = {source} * cos[{tables} {width}] * sin[{tables} {width}]", form, n, over=over)


def rotation(n: Sizes, kind: str = "half", turned: Size | None = None, tables: str = "b s") -> Iterator[Op]:
    """q and k rotated, of each head the first `turned` elements (None: all); n has b, s, g, r, e.

    `tables` are the axes of cos and sin beside their width: "s" where all sequences share them.
    """
    for x, heads in (("q", "g r"), ("k", "g")):
        head, at = f"{x}[b s {heads} e]", n.bind(H=ratio(n.e, 2))
        if turned is not None:
            at = n.bind(H=ratio(turned, 2), w=n.e, e=turned, passed=n.e - turned)
            head, kind = f"{x}[b s {heads} w]", "part" if kind == "half" else kind
        yield rotated(head, head, f"b s {heads} H", at, kind, tables)
