"""Fewer tokens of more features before a decoder: squares of features side by side, then two linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, final

from modelmeter.errors import InputError, choose
from modelmeter.graph.forms import ACTIVATIONS, GELU
from modelmeter.graph.ops import Op, conv2d, copy, matmul, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.layers.mlp import GatedMLP
from modelmeter.layers.norm import Norm
from modelmeter.sizes import Size, differ, ratio


class Merger(BaseLayer):
    """Squares of `side` x `side` features of width `c` to one token each, of width `d`."""

    c: Size
    side: Size
    sizes = "b s"
    leaving = property(attrgetter("d"))
    """The width of its output."""
    square = property(lambda self: self.side * self.side)
    """Features that become one token."""


@final
@dataclass(frozen=True)
class MergeProjector(Merger):
    """Squares of `side` x `side` features to one token. y = W_2 gelu(W_1 merge(norm(x)) + B_1) + B_2.

    A norm of the merged width runs behind the merge instead (pixel shuffle). `copies`: how many the merge makes; where
    the patches of a square already lie side by side, none.
    Vendor: PaddleOCRProjector, PatchMerger of Qwen2-VL, InternVLMultiModalProjector in transformers.
    Paper: arXiv 2409.12191 (Qwen2-VL), 2404.16821 (InternVL 1.5: pixel shuffle).
    Axes: b images, s tokens, c width of a feature, f inner width, d output width, side of a square of features.

    >>> from modelmeter.layers import LayerNorm
    >>> MergeProjector(c=2, f=3, d=5, norm=LayerNorm(2)).forward_tensor_core_flops(b=1, s=2) == 2 * 2 * (8 * 3 + 3 * 5)
    True
    """

    c: Size
    f: Size
    d: Size
    norm: Norm
    side: Size = 2
    activation: str = "gelu"
    copies: int = 1

    def check(self) -> None:
        choose("activation", self.activation, ACTIVATIONS)
        if differ(self.norm.d, self.c) and differ(self.norm.d, self.c * self.square):
            fits = f"{self.c} or, of merged features, {self.c * self.square}"
            raise InputError(f"MergeProjector: the norm must have the width {fits}, not {self.norm.d}")

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(many=n.s * self.square, wide=n.c * self.square)
        before, made = not differ(self.norm.d, self.c), "x"
        if before:
            yield from self.norm.at(n, "norm", s=n.many, x="x", y="h")
            made = "h"
        for _ in range(self.copies):
            yield copy(f"h[b many c] = {made}[b many c]", n)
            made = "h"
        if not before:
            yield from self.norm.at(n, "norm", x=made, y="h")
        yield matmul("i[b s f] = h[b s wide] * W_1[wide f] + W_b1[f]", n)
        yield pointwise("i[b s f] = i[b s f]", ACTIVATIONS[self.activation], n)
        yield matmul("y[b s d] = i[b s f] * W_2[f d] + W_b2[d]", n)


@final
@dataclass(frozen=True)
class ConvProjector(Merger):
    """Squares of features to one token by a convolution, then a gated MLP. y = mlp(gelu(norm(W_1 (W_conv x + B)))).

    The patches of a square already lie side by side. Vendor: downsample of GlmOcrVisionModel and
    GlmOcrVisionPatchMerger in transformers. Paper: arXiv 2507.01006 (GLM-4.1V).
    Axes: b images, s tokens, c width of a feature, d output width, p x q square of features.

    >>> from modelmeter.layers import LayerNorm
    >>> layer = ConvProjector(c=2, norm=LayerNorm(5), mlp=GatedMLP(5, 7))
    >>> layer.forward_tensor_core_flops(b=1, s=3) == 2 * 3 * (2 * 2 * 2 * 5 + 5 * 5 + 3 * 5 * 7)
    True
    """

    c: Size
    norm: Norm
    mlp: GatedMLP
    side: Size = 2
    d = property(attrgetter("norm.d"))

    def check(self) -> None:
        self.require_equal(norm=self.norm.d, mlp=self.mlp.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.norm.axes["d"], o=self.norm.axes["d"], p=n.side, q=n.side)
        yield conv2d("h[b s d] = x[b s p q c] * W_conv[p q c d] + W_bconv[d]", n)
        yield matmul("m[b s o] = h[b s d] * W_1[d o]", n)
        yield from self.norm.at(n, "norm", x="m", y="normed")
        yield pointwise("m[b s d] = normed[b s d]", GELU, n)
        yield from self.mlp.at(n, "mlp", x="m", y="y")


def tokens_of(projector: Any, features: Size) -> Size:
    """The tokens that a projector makes of so many features."""
    return ratio(features, projector.square) if isinstance(projector, Merger) else features
