"""Rotary positions: the tables of cos and sin, and the rotation of queries and keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.graph.forms import ANGLES, ROTARY_TABLE, ROTATE
from modelmeter.graph.ops import Op, matmul, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, require_divisible
from modelmeter.sizes import Size, ratio


@dataclass(frozen=True)
class RotaryTable(BaseLayer):
    """The tables of cos and sin of a head width."""

    e: Size
    sizes = "b s"
    inputs = "pos"
    buffers = "freq"

    def check(self) -> None:
        require_divisible(type(self).__name__, "head width", self.e, "a pair's width", 2)

    @abstractmethod
    def angles(self, n: Sizes) -> Op:
        """f[b s H], position times frequency."""

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(H=ratio(n.e, 2))
        yield self.angles(n)
        yield pointwise("y[b s e] sin[b s e] = _f:32[b s H]", ROTARY_TABLE, n, over="b s e", grad=False)


@final
class RotaryEmbedding(RotaryTable):
    """The cos (y) and sin tables of rotary positions, in fp32, made once a model.

    f = position * inv_freq element by element, cos(f), sin(f), both scaled. Axes: b sequences, s tokens, e head width.
    Vendor: LlamaRotaryEmbedding in transformers 5. Paper: arXiv 2104.09864 (RoFormer).

    >>> RotaryEmbedding(e=4).forward_cuda_core_flops(b=1, s=3) == 3 * (2 + 4 * 4)
    True
    """

    def angles(self, n: Sizes) -> Op:
        return pointwise("_f:32[b s H] = freq:32[H] * pos:32[b s]", ANGLES, n, grad=False)


@final
class LlamaRotaryEmbedding(RotaryTable):
    """The cos (y) and sin tables of rotary positions, in fp32, by a batched matmul in every layer.

    f = inv_freq @ position, cos(f), sin(f), both scaled. Axes: b sequences, s tokens, e head width.
    Vendor: LlamaRotaryEmbedding in transformers 4.46. Paper: arXiv 2104.09864 (RoFormer).

    >>> LlamaRotaryEmbedding(e=128).forward_tensor_core_flops(b=1, s=512)
    65536
    """

    def angles(self, n: Sizes) -> Op:
        return matmul("_f:32[b s H] = freq:32[b H] * pos:32[b s]", n, over="b s H", grad=False)


def rotation(n: Sizes) -> Iterator[Op]:
    """q and k rotated by cos and sin; n has b, s, g, r, e."""
    n = n.bind(H=ratio(n.e, 2))
    yield pointwise("q[b s g r e] = q[b s g r e] * cos[b s e] * sin[b s e]", ROTATE, n, over="b s g r H")
    yield pointwise("k[b s g e] = k[b s g e] * cos[b s e] * sin[b s e]", ROTATE, n, over="b s g H")
