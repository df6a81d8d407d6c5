"""The CLIP vision transformer without tensor parallelism (NoTP), as the vendor names it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.constants import ADD, MUL, QUICK_GELU
from modelmeter.layer import BaseLayer, repeat
from modelmeter.layers.conv import PatchEmbed
from modelmeter.layers.norm import LayerNorm
from modelmeter.layers.sam import require_head_width
from modelmeter.ops import Op, Sizes, copy, fuse, matmul, pointwise, softmax, unused
from modelmeter.sizes import Size


@final
@dataclass(frozen=True)
class CLIPVisionEmbeddings(BaseLayer):
    """Class token + patch features + positions.

    y = [cls, x] + positions. With `own_patches` the layer convolves pixels itself; without, it is
    given features and its convolution is stored and unused.
    Vendor: CLIPVisionEmbeddings in deepencoder/clip_sdpa.py. Paper: arXiv 2103.00020 (CLIP).
    Omits: the interpolation of the position table.
    Axes: b images, u x v patches, n stored positions.

    >>> CLIPVisionEmbeddings(PatchEmbed(3, 8, 2, bias=False), n=5).forward_memory_weight_bytes(b=1, u=2, v=2)
    288
    """

    patch: PatchEmbed
    n: Size
    own_patches: bool = False
    sizes = "b u v"

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=n.u * n.v + 1, d=self.patch.d)
        if self.own_patches:
            yield from self.patch.at(n, "patch", x="x", y="e")
        else:
            yield from unused(self.patch.at(n, "patch"))
        features = "e" if self.own_patches else "x"
        yield copy(f"e[b s d] = {features}[b u v d] * W_class[d]", n)
        yield pointwise("y[b s d] = e[b s d] + W_pos[n:s d]", ADD, n)


@final
@dataclass(frozen=True)
class NoTPAttention(BaseLayer):
    """Bidirectional multi-head attention with biases.

    y = W_out softmax(scale q k) v.
    Vendor: NoTPAttention in deepencoder/clip_sdpa.py (q, k, v fused; transformers splits them).
    Paper: arXiv 1706.03762. Axes: b images, s tokens (t of them as keys), h heads, e head width.

    >>> NoTPAttention(d=4, h=2, e=2).forward_tensor_core_flops(b=1, s=3) == 2 * (4 * 3 * 16 + 2 * 9 * 4)
    True
    """

    d: Size
    h: Size
    e: Size
    fused_qkv: bool = True
    sizes = "b s"

    def check(self) -> None:
        require_head_width("NoTPAttention", self.d, self.h, self.e)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(t=n.s, Q=3 * n.h * n.e)
        if self.fused_qkv:
            yield matmul("q[b s h e] k[b t h e] v[b t h e] = x[b s d] * W_qkv[d Q] + W_bqkv[Q]", n)
        else:
            yield matmul("q[b s h e] = x[b s d] * W_q[d h e] + W_bq[h e]", n)
            yield matmul("k[b t h e] = x[b t d] * W_k[d h e] + W_bk[h e]", n)
            yield matmul("v[b t h e] = x[b t d] * W_v[d h e] + W_bv[h e]", n)
        yield from fuse(
            matmul("a[b h s t] = q[b s h e] * k[b t h e]", n),
            pointwise("a[b h s t] = a[b h s t]", MUL, n),
            softmax("p[b h s t] = a[b h s t]", n, row="t"),
            matmul("o[b s h e] = p[b h s t] * v[b t h e]", n),
            keep="a p",
        )
        yield copy("o[b s h e] = o[b s h e]", n)
        yield matmul("y[b s d] = o[b s h e] * W_out[h e d] + W_bout[d]", n)


@final
@dataclass(frozen=True)
class NoTPFeedForward(BaseLayer):
    """Two linear layers with quick-gelu between. y = W2 quick_gelu(W1 x + B1) + B2.

    Vendor: NoTPFeedForward in deepencoder/clip_sdpa.py. Paper: arXiv 2103.00020 (CLIP).
    Axes: b images, s tokens, d width, f intermediate width.

    >>> NoTPFeedForward(d=2, f=8).forward_cuda_core_flops(b=1, s=3) == 3 * (8 + 6 * 8 + 2)
    True
    """

    d: Size
    f: Size
    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield matmul("h[b s f] = x[b s d] * W_1[d f] + W_b1[f]", n)
        yield pointwise("h[b s f] = h[b s f]", QUICK_GELU, n)
        yield matmul("y[b s d] = h[b s f] * W_2[f d] + W_b2[d]", n)


@final
@dataclass(frozen=True)
class NoTPTransformerBlock(BaseLayer):
    """A pre-norm block. h = x + attn(norm1(x)); y = h + mlp(norm2(h)).

    Vendor: NoTPTransformerBlock in deepencoder/clip_sdpa.py. Paper: arXiv 2103.00020 (CLIP).
    Axes: b images, s tokens.

    >>> NoTPTransformerBlock.sizes
    'b s'
    """

    attention: NoTPAttention
    mlp: NoTPFeedForward
    norm: LayerNorm
    sizes = "b s"

    def check(self) -> None:
        self.require_equal(attention=self.attention.d, mlp=self.mlp.d, norm=self.norm.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.attention.d)
        yield from self.norm.at(n, "norm1", x="x", y="h")
        yield from self.attention.at(n, "attn", x="h", y="h")
        yield pointwise("h[b s d] = x[b s d] + h[b s d]", ADD, n)
        yield from self.norm.at(n, "norm2", x="h", y="m")
        yield from self.mlp.at(n, "mlp", x="m", y="m")
        yield pointwise("y[b s d] = h[b s d] + m[b s d]", ADD, n)


@final
@dataclass(frozen=True)
class NoTPTransformer(BaseLayer):
    """`l` transformer blocks. y = block(...block(x)).

    Vendor: NoTPTransformer in deepencoder/clip_sdpa.py. Axes: b images, s tokens, l blocks.

    >>> NoTPTransformer.sizes
    'b s'
    """

    block: NoTPTransformerBlock
    l: Size
    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from repeat(self.block, n, "layers", self.l)


@final
@dataclass(frozen=True)
class VitModel(BaseLayer):
    """CLIP's vision tower on features of another encoder. y = transformer(norm(embeddings(x))).

    Vendor: VitModel in deepencoder/clip_sdpa.py; no final LayerNorm. Paper: arXiv 2103.00020.
    Axes: b images, u x v feature grid; the output has a class token more.

    >>> VitModel.sizes
    'b u v'
    """

    embeddings: CLIPVisionEmbeddings
    norm: LayerNorm
    transformer: NoTPTransformer
    sizes = "b u v"

    def check(self) -> None:
        width = self.transformer.block.attention.d
        self.require_equal(embeddings=self.embeddings.patch.d, norm=self.norm.d, transformer=width)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=n.u * n.v + 1)
        yield from self.embeddings.at(n, "embeddings", x="x", y="h")
        yield from self.norm.at(n, "norm", x="h", y="h")
        yield from self.transformer.at(n, "transformer", x="h", y="y")
