"""The projector between a vision tower and a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.constants import GELU
from modelmeter.errors import choose
from modelmeter.layer import BaseLayer
from modelmeter.ops import Op, Sizes, copy, matmul, pointwise
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
            more = n.inside("mlp", {"o": n.d}, {"y": "y"}, times=self.depth - 1)
            yield pointwise("y[b s d] = y[b s d]", GELU, more)
            yield matmul("y[b s d] = y[b s o] * W_1[o d] + W_b1[d]", more)
