"""Rotary positions: the tables of cos and sin, and the rotation of queries and keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.errors import choose
from modelmeter.graph.forms import (
    ADD,
    ALL_ANGLES,
    ANGLES,
    MUL,
    POLAR_TABLE,
    ROTARY_TABLE,
    ROTATE,
    ROTATE_DIRECT,
    ROTATE_PART,
    ROTATE_WIDE,
    SECTIONED_TABLE,
    SPREAD_AND_ROTATE,
    WIDE_TABLE,
)
from modelmeter.graph.ops import Op, copy, matmul, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, require_divisible
from modelmeter.sizes import Size, ratio

COORDINATES = 3  # time, row and column of a token
SIDES = 2  # row and column of a patch


@dataclass(frozen=True)
class RotaryTable(BaseLayer):
    """The tables of cos and sin of a head width: `full`, or in fp32 to the end (`wide`), or of half of it, `narrow` or
    as complex numbers (`polar`).

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
        bits = ":32" if self.form == "wide" else ""
        equation = f"y{bits}[b s {width}] sin{bits}[b s {width}] = f:32[{lead}b s H]"
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
    "wide": ("", "e", WIDE_TABLE),
    "narrow": ("", "H", ROTARY_TABLE),
    "polar": ("", "H", POLAR_TABLE),
    "sections": ("coordinates ", "e", SECTIONED_TABLE),
}
"""The axes before those of a position, the width of a table and its form."""
ROTATIONS = {
    "half": ("e", ROTATE),
    "spread": ("e", SPREAD_AND_ROTATE),
    "part": ("e", ROTATE_PART),
    "direct": ("e:H", ROTATE_DIRECT),
    "narrow": ("H", ROTATE_DIRECT),
}
"""x cos + turned(x) sin, where turning negates, of whole heads or a part of each; or the products of each pair, where
it does not, on full tables or narrow ones. `spread` is in fp32, on tables that are put together anew for each layer, by
the rotation of its queries. Each with the axis of the tables."""


def inputs_of(rotation: str, rotary: BaseLayer | None = None) -> str:
    """What attention is given: the tables, the positions of which it makes them itself, or neither."""
    return "x pos" if rotary is not None else "x" if rotation == "none" else "x cos sin"


def rotated(x: str, source: str, over: str, n: Sizes, kind: str, tables: str = "b s") -> Op:
    """A tensor with the pairs `over` rotated by cos and sin; n has b, s, e (the width of full tables) and H."""
    width, form = ROTATIONS[kind]
    if kind == "spread" and x.startswith("k"):
        form = ROTATE_WIDE
    cos, sin = (f"{table}{':32' if kind == 'spread' else ''}[{tables} {width}]" for table in ("cos", "sin"))
    return pointwise(f"{x} = {source} * {cos} * {sin}", form, n, over=over)


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


@final
@dataclass(frozen=True)
class AxialRotary(BaseLayer):
    """The cos (y) and sin tables of rotary positions in two dimensions, in fp32.

    Half of the pairs of a head turn by the row, half by the column: f = position * inv_freq, cos(f), sin(f), both
    scaled, each written twice. Vendor: PaddleOCRVisionRotaryEmbedding, Qwen2VLVisionRotaryEmbedding in transformers.
    Paper: arXiv 2409.12191 (Qwen2-VL). Axes: b images, s patches, e head width, coordinates of a patch (2), quarter of
    a head width.

    >>> AxialRotary(e=4).forward_cuda_core_flops(b=1, s=3) == 3 * 2 * (1 + 4)
    True
    """

    e: Size
    sizes = "b s"
    inputs = "pos"
    buffers = "freq"
    outputs = "y sin"

    def check(self) -> None:
        require_divisible("AxialRotary", "head width", self.e, "pairs by rows and by columns,", 4)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(e=n.e, H=ratio(n.e, 2), coordinates=SIDES, quarter=ratio(n.e, 4))
        yield copy("_pos:32[b s coordinates] = pos:64[b s coordinates]", n)
        angles = "f:32[b s coordinates quarter] = freq:32[quarter] * _pos:32[b s coordinates]"
        yield pointwise(angles, MUL, n, grad=False)
        for to in ("narrow_cos", "narrow_sin"):
            yield pointwise(f"_{to}:32[b s H] = f:32[b s coordinates quarter]", 1, n, over="b s H", grad=False)
            yield pointwise(f"{to}:32[b s H] = _{to}:32[b s H]", MUL, n, grad=False)
        for to in ("cos", "sin"):
            yield copy(f"_both_{to}:32[b s H] = narrow_{to}:32[b s H]", n)
            yield copy(f"{'y' if to == 'cos' else to}:32[b s e] = _both_{to}:32[b s H]", n)


@final
@dataclass(frozen=True)
class AxialRotation(BaseLayer):
    """Queries (y) and keys (z) turned by the tables, in fp32. y = x cos + half(x) sin, as vision towers write it out.

    Seven FLOPs a pair: 4 mul, 2 add, 1 neg. Vendor: apply_rotary_pos_emb_vision in transformers.
    Paper: arXiv 2104.09864 (RoFormer). Axes: b images, s patches, h heads, e head width.

    >>> AxialRotation(h=1, e=4).forward_cuda_core_flops(b=1, s=3) == 2 * 3 * 2 * 7
    True
    """

    h: Size
    e: Size
    sizes = "b s"
    inputs = "x keys cos sin"
    outputs = "y z"

    def ops(self, n: Sizes) -> Iterator[Op]:
        n, given = n.bind(H=ratio(n.e, 2)), (("q", "x", "y"), ("k", "keys", "z"))
        for x, source, _ in given:
            yield copy(f"{x}:32[b s h e] = {source}[b s h e]", n)
        for x, _, _ in given:
            yield pointwise(f"_{x}_cos:32[b s h e] = {x}:32[b s h e] * cos:32[b s e]", MUL, n)
            yield pointwise(f"_{x}_neg:32[b s h H] = {x}:32[b s h e:H]", 1, n)
            yield copy(f"_{x}_half:32[b s h e] = {x}:32[b s h e:H] * _{x}_neg:32[b s h H]", n)
            yield pointwise(f"_{x}_sin:32[b s h e] = _{x}_half:32[b s h e] * sin:32[b s e]", MUL, n)
            yield pointwise(f"_{x}_turned:32[b s h e] = _{x}_cos:32[b s h e] + _{x}_sin:32[b s h e]", ADD, n)
        for x, _, to in given:
            yield copy(f"{to}[b s h e] = _{x}_turned:32[b s h e]", n)
