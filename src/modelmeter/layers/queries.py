"""A tower whose tokens are learnt queries behind the features of another encoder, and its attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import final

from modelmeter.graph.forms import MUL, SOFTMAX_IN_FP32
from modelmeter.graph.ops import Op, composite, copy, matmul, pointwise, softmax
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, width_of
from modelmeter.layers.block import Transformer
from modelmeter.layers.norm import Norm
from modelmeter.layers.rotary import RotaryEmbedding, rotation
from modelmeter.layers.tower import ImageEncoderViT
from modelmeter.sizes import Size, maximum, minimum


@final
@dataclass(frozen=True)
class PrefixAttention(BaseLayer):
    """Attention without a cache: the first tokens see each other, each one behind them all that stand before it.

    y = W_o softmax(scale rope(q) rope(k) + mask) v, with grouped KV heads and biases of q, k and v. The mask is a
    tensor: all s x s pairs are computed, however causal pairs are counted elsewhere.
    Vendor: DeepseekOcr2VisionAttention in transformers. Paper: arXiv 2601.20552 (DeepSeek-OCR 2), GQA 2305.13245.
    Omits: reading the mask and repeating the KV heads where attention is one kernel.
    Axes: b images, s tokens (t of them as keys), d hidden width, g KV heads, r queries per KV head, e head width.

    >>> layer = PrefixAttention(d=8, g=1, r=2, e=4)
    >>> layer.forward_tensor_core_flops(b=1, s=3) == 2 * (3 * 8 * (2 * 8 + 2 * 4) + 2 * 3 * 3 * 8)
    True
    """

    d: Size
    g: Size
    r: Size
    e: Size
    sizes = "b s"
    inputs = "x cos sin"

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(t=n.s)
        for to, heads in (("q", "g r e"), ("k", "g e"), ("v", "g e")):
            yield matmul(f"{to}[b s {heads}] = x[b s d] * W_{to}[d {heads}] + W_b{to}[{heads}]", n)
        yield from rotation(n, tables="s")
        yield from composite(
            "attention",
            matmul("a[b g r s t] = q[b s g r e] * k[b t g e]", n),
            pointwise("a[b g r s t] = a[b g r s t]", MUL, n),
            softmax("p[b g r s t] = a[b g r s t]", n, row="t", form=SOFTMAX_IN_FP32),
            matmul("o[b s g r e] = p[b g r s t] * v[b t g e]", n),
            mask="mask[b s t]",
        )
        yield matmul("y[b s d] = o[b s g r e] * W_o[g r e d]", n)


@final
@dataclass(frozen=True)
class QueryTower(BaseLayer):
    """SAM, then a transformer over its features and learnt queries, whose outputs are the tokens.

    y = norm(blocks([sam(x), queries]))[queries]. There are two tables of queries: the one of `few` for as many features
    or fewer, the one of `many` for more. Rotary tables are one for all images.
    Vendor: DeepseekOcr2VisionModel in transformers. Paper: arXiv 2601.20552 (DeepSeek-OCR 2).
    Axes: b images, u x v patches of SAM, s features, few and many queries, n of both, those
    that are asked, the whole of features and queries.

    >>> QueryTower.sizes
    'b u v'
    """

    sam: ImageEncoderViT
    rotary: RotaryEmbedding
    blocks: Transformer
    norm: Norm
    few: Size
    many: Size
    sizes = "b u v"
    buffers = "pos"
    d = property(attrgetter("sam.d"))
    patch = property(attrgetter("sam.patch.p"))

    def check(self) -> None:
        self.require_equal(sam_features=self.d, encoder=width_of(self.blocks), norm=self.norm.d)

    def features(self, u: Size, v: Size) -> Size:
        """Queries of one image of u x v patches."""
        above = minimum(maximum(self.sam.features(u, v) - self.few, 0), 1)
        return self.few + (self.many - self.few) * above

    def ops(self, n: Sizes) -> Iterator[Op]:
        s, asked = self.sam.features(n.u, n.v), self.features(n.u, n.v)
        n = n.bind(d=self.norm.axes["d"], s=s, asked=asked, whole=s + asked, n=n.few + n.many)
        yield from self.sam.at(n, "sam", x="x", y="sam")
        yield copy("combined[b whole d] = sam[b s d] * W_queries[n:asked d]", n)
        yield from self.rotary.at(n, "encoder.rotary", b=1, s=n.whole, pos="pos", y="cos", sin="sin")
        yield from self.blocks.at(n, "encoder", s=n.whole, x="combined", y="h", cos="cos", sin="sin")
        yield from self.norm.at(n, "encoder.norm", s=n.whole, x="h", y="h")
        yield copy("y[b asked d] = h[b whole:asked d]", n)
