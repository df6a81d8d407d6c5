"""The projector between a vision tower and a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.errors import choose
from modelmeter.graph.forms import GELU
from modelmeter.graph.ops import Op, copy, matmul, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.sizes import Size


@final
@dataclass(frozen=True)
class MlpProjector(BaseLayer):
    """Vision features to decoder width: `identity`, `linear` or `mlp_gelu` of any depth.

    linear: y = W x + B; mlp_gelu: a linear layer, then depth - 1 times gelu and a linear layer.
    Vendor: MlpProjector in deepencoder/build_linear.py. Paper: arXiv 2510.18234.
    Axes: b images, s tokens, c input and d output width, depth (linear layers of mlp_gelu).

    >>> MlpProjector("mlp_gelu", c=4, d=2, depth=2).forward_tensor_core_flops(b=1, s=3) == 2 * 3 * (8 + 4)
    True
    """

    kind: str
    c: Size
    d: Size
    depth: Size = 1
    sizes = "b s"

    def check(self) -> None:
        choose("projector kind", self.kind, ("identity", "linear", "mlp_gelu"))

    def ops(self, n: Sizes) -> Iterator[Op]:
        if self.kind == "identity":
            yield copy("y[b s c] = x[b s c]", n)
            return
        yield matmul("y[b s d] = x[b s c] * W_0[c d] + W_b0[d]", n)
        if self.kind == "mlp_gelu":
            yield from _Activated(n.d).at(n, "mlp", times=n.depth - 1, x="y", y="y")


@final
@dataclass(frozen=True)
class _Activated(BaseLayer):
    d: Size
    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(o=n.d)
        yield pointwise("x[b s d] = x[b s d]", GELU, n)
        yield matmul("y[b s d] = x[b s o] * W_1[o d] + W_b1[d]", n)
