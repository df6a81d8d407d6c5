"""Vision transformers with layer scale, and their tower: a class token, patches of one size, features without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import final

from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD, MUL
from modelmeter.graph.ops import Op, copy, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, width_of
from modelmeter.layers.norm import Norm
from modelmeter.layers.tower import CLIPVisionEmbeddings
from modelmeter.sizes import Size


@final
@dataclass(frozen=True)
class ScaledBlock(BaseLayer):
    """A pre-norm block whose parts are scaled channel by channel before they are added.

    h = x + W_1 * attention(norm1(x)); y = h + W_2 * mlp(norm2(h)). Vendor: InternVLVisionLayer in transformers.
    Paper: arXiv 2103.17239 (LayerScale). Axes: b images, s patches, d width.

    >>> ScaledBlock.sizes
    'b s'
    """

    attention: BaseLayer
    mlp: BaseLayer
    norm: Norm
    sizes = "b s"
    d = property(attrgetter("norm.d"))

    def check(self) -> None:
        self.require_equal(attention=width_of(self.attention), mlp=width_of(self.mlp), norm=self.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.norm.axes["d"])
        yield from self.norm.at(n, "norm1", x="x", y="a")
        yield from self.attention.at(n, "attn", x="a", y="a")
        yield pointwise("a[b s d] = a[b s d] * W_scale1[d]", MUL, n)
        yield pointwise("h[b s d] = a[b s d] + x[b s d]", ADD, n)
        yield from self.norm.at(n, "norm2", x="h", y="m")
        yield from self.mlp.at(n, "mlp", x="m", y="m")
        yield pointwise("m[b s d] = m[b s d] * W_scale2[d]", MUL, n)
        yield pointwise("y[b s d] = m[b s d] + h[b s d]", ADD, n)


@final
@dataclass(frozen=True)
class ClassTower(BaseLayer):
    """A vision transformer with a class token and no norm around its blocks. y = blocks(embeddings(x))[1:].

    Vendor: InternVLVisionModel in transformers (use_mean_pooling), without the token. Paper: arXiv 2312.14238.
    Omits: the interpolation of the position table. Axes: b images, u x v patches.

    >>> ClassTower.sizes
    'b u v'
    """

    embeddings: CLIPVisionEmbeddings
    transformer: BaseLayer
    sizes = "b u v"
    d = property(attrgetter("embeddings.d"))
    patch = property(attrgetter("embeddings.patch.p"))

    def check(self) -> None:
        self.require_equal(embeddings=self.d, transformer=width_of(self.transformer))
        if not self.embeddings.own_patches:
            raise InputError("ClassTower: its embeddings must make their patches from pixels (own_patches)")

    def features(self, u: Size, v: Size) -> Size:
        """Features of one image of u x v patches."""
        return u * v

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=n.u * n.v, S=n.u * n.v + 1, d=self.embeddings.patch.axes["d"])
        yield from self.embeddings.at(n, "vit.embeddings", x="x", y="embedded")
        yield from self.transformer.at(n, "vit.transformer", s=n.S, x="embedded", y="h")
        yield copy("y[b s d] = h[b S:s d]", n)
