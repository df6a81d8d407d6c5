"""The SAM image encoder: windowed and global attention with decomposed relative positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.constants import ADD, GELU, MUL
from modelmeter.errors import InputError
from modelmeter.layer import BaseLayer, Repeat, require_divisible
from modelmeter.layers.conv import Conv2d, PatchEmbed
from modelmeter.layers.norm import LayerNorm, LayerNorm2d
from modelmeter.ops import Op, Sizes, copy, fuse, matmul, pointwise, softmax
from modelmeter.sizes import Size, anywhere, ceil_div, is_symbol, minimum


def require_head_width(layer: str, d: Size, h: Size, e: Size) -> None:
    """Raise InputError unless the hidden width is heads x head width (symbols pass)."""
    require_divisible(layer, "hidden size", d, "heads", h)
    if not any(map(is_symbol, (d, h, e))) and anywhere(d != h * e):
        raise InputError(f"{layer}: hidden size {d} must be heads {h} x head width, so head width {d // h}, not {e}")


@final
@dataclass(frozen=True)
class Attention(BaseLayer):
    """Attention over a grid of patches, with decomposed relative positions as an additive bias.

    a = scale q k + q Rh + q Rw, y = W_proj softmax(a) v. The bias is a tensor of its own that eager
    and flash kernels both read; where windows or crops share the batch axis, torch copies q, k, v.
    Vendor: Attention in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2112.01526 (MViTv2).
    Omits: the interpolation of the tables to other grids, the layout copies of the bias halves.
    Axes: b windows or images, u x v their patches, h heads, e head width, `side` of the trained grid.

    >>> Attention(d=4, h=2, e=2, side=3).forward_tensor_core_flops(b=1, u=3, v=3) == 2 * 9 * 4 * (4 * 4 + 2 * 9 + 2 * 3)
    True
    """

    d: Size
    h: Size
    e: Size
    side: Size
    relative: bool = True
    fused_qkv: bool = True
    sizes = "b u v"

    def check(self) -> None:
        require_head_width("Attention", self.d, self.h, self.e)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(i=n.u, j=n.v, Q=3 * n.h * n.e, R=2 * n.side - 1, z=minimum(n.b - 1, 1))
        if self.fused_qkv:
            yield matmul("q[b u v h e] k[b i j h e] v[b i j h e] = x[b u v d] * W_qkv[d Q] + W_bqkv[Q]", n)
            yield copy("_qkv[z b u v Q] = q[z b u v h e] * k[z b i j h e] * v[z b i j h e]", n)
        else:
            yield matmul("q[b u v h e] = x[b u v d] * W_q[d h e] + W_bq[h e]", n)
            yield matmul("k[b i j h e] = x[b u v d] * W_k[d h e] + W_bk[h e]", n)
            yield matmul("v[b i j h e] = x[b u v d] * W_v[d h e] + W_bv[h e]", n)
        if self.relative:
            yield copy("_Rh[u i e] = W_rel_h[R e]", n)
            yield matmul("bh[b h u v i] = q[b u v h e] * _Rh[u i e]", n)
            yield copy("_Rw[v j e] = W_rel_w[R e]", n)
            yield matmul("bw[b h u v j] = q[b u v h e] * _Rw[v j e]", n)
            yield pointwise("bias[b h u v i j] = bh[b h u v i] + bw[b h u v j]", ADD, n)
        add_bias = [pointwise("a[b h u v i j] = a[b h u v i j] + bias[b h u v i j]", ADD, n)] if self.relative else []
        yield from fuse(
            matmul("a[b h u v i j] = q[b u v h e] * k[b i j h e]", n),
            pointwise("a[b h u v i j] = a[b h u v i j]", MUL, n),
            *add_bias,
            softmax("p[b h u v i j] = a[b h u v i j]", n, row="i j"),
            matmul("o[b u v h e] = p[b h u v i j] * v[b i j h e]", n),
            keep="a p",
        )
        yield copy("o[b u v h e] = o[b u v h e]", n)
        yield matmul("y[b u v d] = o[b u v h e] * W_proj[h e d] + W_bproj[d]", n)


@final
@dataclass(frozen=True)
class MLPBlock(BaseLayer):
    """Two linear layers with GELU between. y = W2 gelu(W1 x + B1) + B2.

    Vendor: MLPBlock in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2010.11929 (ViT).
    Axes: b images, s patches, d width, f intermediate width.

    >>> MLPBlock(d=2, f=8).forward_tensor_core_flops(b=1, s=3) == 2 * 2 * 3 * 2 * 8
    True
    """

    d: Size
    f: Size
    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield matmul("h[b s f] = x[b s d] * W_1[d f] + W_b1[f]", n)
        yield pointwise("h[b s f] = h[b s f]", GELU, n)
        yield matmul("y[b s d] = h[b s f] * W_2[f d] + W_b2[d]", n)


@final
@dataclass(frozen=True)
class Block(BaseLayer):
    """A pre-norm block; with `w` its attention runs in w x w windows of the padded grid.

    x = x + attn(norm1(x)); y = x + mlp(norm2(x)). Padded positions are computed; the MLP sees none.
    Vendor: Block in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2304.02643 (SAM).
    Omits: padding and permuting are one copy each way.
    Axes: b images, u x v patches, w window side (None: global attention).

    >>> make = lambda w: Block(Attention(4, 2, 2, 3), MLPBlock(4, 8), LayerNorm(4), w)
    >>> make(3).forward_tensor_core_flops(b=1, u=3, v=3) == make(None).forward_tensor_core_flops(b=1, u=3, v=3)
    True
    """

    attention: Attention
    mlp: MLPBlock
    norm: LayerNorm
    w: Size | None = None
    sizes = "b u v"

    def check(self) -> None:
        self.require_equal(attention=self.attention.d, mlp=self.mlp.d, norm=self.norm.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=n.u * n.v, d=self.attention.d)
        yield from self.norm.at(n, "norm1", x="x", y="h")
        if self.w is None:
            yield from self.attention.at(n, "attn", x="h", y="h")
        else:
            m = n.bind(W=ceil_div(n.u, n.w) * ceil_div(n.v, n.w))
            yield copy("h[b W w w d] = h[b u v d]", m)
            yield from self.attention.at(n, "attn", b=n.b * m.W, u=n.w, v=n.w, x="h", y="h")
            yield copy("h[b u v d] = h[b W w w d]", m)
        yield pointwise("h[b s d] = x[b s d] + h[b s d]", ADD, n)
        yield from self.norm.at(n, "norm2", x="h", y="m")
        yield from self.mlp.at(n, "mlp", x="m", y="m")
        yield pointwise("y[b s d] = h[b s d] + m[b s d]", ADD, n)


@final
@dataclass(frozen=True)
class ImageEncoderViT(BaseLayer):
    """SAM's encoder with a convolutional neck that shrinks the grid and widens the channels.

    y = downsample(neck(blocks(patch(x) + positions))). Blocks are counted, their order is not.
    Vendor: ImageEncoderViT in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2304.02643, 2510.18234.
    Omits: the interpolation of the position table at other than its own grid.
    Axes: b images, u x v patches, U side of the stored position grid.

    >>> ImageEncoderViT.sizes
    'b u v'
    """

    patch: PatchEmbed
    blocks: tuple[BaseLayer, ...]
    neck: tuple[Conv2d, ...]
    neck_norm: LayerNorm2d
    downsample: tuple[Conv2d, ...]
    U: Size
    sizes = "b u v"

    def check(self) -> None:
        convolutions = (*self.neck, *self.downsample)
        if not self.neck or not self.downsample:
            raise InputError("ImageEncoderViT: neck and downsample must name at least one convolution each")
        width = self.patch.d
        for index, conv in enumerate(convolutions):
            self.require_equal(**{"channels_there": width, f"convolution_{index}_input": conv.c})
            width = conv.o
        self.require_equal(neck_output=self.neck[-1].o, neck_norm=self.neck_norm.c)
        for block in self.blocks:
            inner = block.layer if isinstance(block, Repeat) else block
            if isinstance(inner, Block):
                self.require_equal(patch_width=self.patch.d, block_width=inner.attention.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.patch.d)
        yield from self.patch.at(n, "patch", x="x", y="h")
        yield pointwise("h[b u v d] = h[b u v d] + W_pos[U:u U:v d]", ADD, n)
        for index, block in enumerate(self.blocks):
            yield from block.at(n, f"blocks{index}", x="h", y="h")
        for index, conv in enumerate(self.neck):
            yield from conv.at(n, f"neck{index}", i=n.u, j=n.v, x="h", y="h")
            yield from self.neck_norm.at(n, f"neck{index}.norm", x="h", y="h")
        u, v, last = n.u, n.v, len(self.downsample) - 1
        for index, conv in enumerate(self.downsample):
            yield from conv.at(n, f"downsample{index}", i=u, j=v, x="h", y="y" if index == last else "h")
            u, v = ceil_div(u, conv.stride), ceil_div(v, conv.stride)
