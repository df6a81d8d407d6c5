"""Swin: attention in windows that every second block shifts, and grids that are halved between stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import final

from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD, MUL, SOFTMAX
from modelmeter.graph.ops import Op, composite, copy, matmul, pointwise, softmax
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, width_of
from modelmeter.layers.conv import PatchEmbed
from modelmeter.layers.norm import LayerNorm, Norm
from modelmeter.sizes import Size, ceil_div, differ


@final
@dataclass(frozen=True)
class WindowAttention(BaseLayer):
    """Attention inside one window, with a learnt bias for each offset; `shifted` windows mask what is no neighbour.

    y = W_out softmax(scale q k + bias[offset] + mask) v. The bias is read from a table of (2 w - 1)^2 offsets.
    Vendor: DonutSwinAttention in transformers. Paper: arXiv 2103.14030 (Swin).
    Axes: b windows, s patches of one (t as keys), h heads, e head width, w window side, R offsets; W windows of one
    image, of which each has its mask.

    >>> WindowAttention(4, 2, 2, 3).forward_tensor_core_flops(b=1, s=9, W=1) == 2 * (4 * 9 * 16 + 2 * 81 * 4)
    True
    """

    d: Size
    h: Size
    e: Size
    w: Size
    shifted: bool = False
    sizes = "b s W"
    buffers = property(lambda self: "mask" if self.shifted else "")

    def check(self) -> None:
        if differ(self.d, self.h * self.e):
            raise InputError(f"WindowAttention: {self.h} heads of {self.e} are no hidden width of {self.d}")

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(t=n.s, R=(2 * n.w - 1) * (2 * n.w - 1))
        for to in "qkv":
            yield matmul(f"{to}[b s h e] = x[b s d] * W_{to}[d h e] + W_b{to}[h e]", n)
        yield copy("_rows[s t h] = W_offsets[R h]", n)
        yield copy("bias[h s t] = _rows[s t h]", n)
        parts = [
            matmul("a[b h s t] = q[b s h e] * k[b t h e]", n),
            pointwise("a[b h s t] = a[b h s t]", MUL, n),
            pointwise("a[b h s t] = a[b h s t] + bias[h s t]", ADD, n),
        ]
        if self.shifted:
            parts.append(pointwise("a[b h s t] = a[b h s t] + mask[W s t]", ADD, n))
        parts.append(softmax("_p[b h s t] = a[b h s t]", n, row="t", form=SOFTMAX))  # no caller is given it
        yield from composite("attention", *parts, matmul("o[b s h e] = _p[b h s t] * v[b t h e]", n))
        yield matmul("y[b s d] = o[b s h e] * W_out[h e d] + W_bout[d]", n)


@final
@dataclass(frozen=True)
class SwinBlock(BaseLayer):
    """A pre-norm block whose attention runs in windows, shifted by half a window or not.

    h = x + merge(attention(partition(norm1(x)))); y = h + mlp(norm2(h)). Padded positions are computed.
    Vendor: DonutSwinLayer in transformers. Paper: arXiv 2103.14030 (Swin).
    Omits: padding and cropping as copies of their own. Axes: b images, u x v patches, w window side.

    >>> SwinBlock.sizes
    'b u v'
    """

    attention: WindowAttention
    mlp: BaseLayer
    norm: Norm
    sizes = "b u v"
    d = property(attrgetter("norm.d"))

    def check(self) -> None:
        self.require_equal(attention=self.attention.d, mlp=width_of(self.mlp), norm=self.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        w = self.attention.axes["w"]
        many = ceil_div(n.u, w) * ceil_div(n.v, w)
        n = n.bind(d=self.norm.axes["d"], s=n.u * n.v, w=w, W=many)
        shifted = self.attention.shifted
        yield from self.norm.at(n, "norm1", x="x", y="h" if shifted else "given")
        if shifted:
            yield copy("given[b s d] = h[b s d]", n)
        yield copy("windows[b W w w d] = given[b s d]", n)
        yield from self.attention.at(n, "attn", b=n.b * many, s=n.w * n.w, x="windows", y="seen")
        yield copy("merged[b s d] = seen[b W w w d]", n)
        if shifted:
            yield copy("back[b s d] = merged[b s d]", n)
        yield pointwise(f"h[b s d] = x[b s d] + {'back' if shifted else 'merged'}[b s d]", ADD, n)
        yield from self.norm.at(n, "norm2", x="h", y="m")
        yield from self.mlp.at(n, "mlp", x="m", y="m")
        yield pointwise("y[b s d] = h[b s d] + m[b s d]", ADD, n)


@final
@dataclass(frozen=True)
class GridMerge(BaseLayer):
    """Four neighbours to one patch of twice the width. y = W norm([four of x]).

    Vendor: DonutSwinPatchMerging in transformers. Paper: arXiv 2103.14030 (Swin).
    Axes: b images, u x v patches, d width, wide four of them, o = 2 d.

    >>> GridMerge(d=2).forward_tensor_core_flops(b=1, u=4, v=3) == 2 * (2 * 2) * 8 * 4
    True
    """

    d: Size
    sizes = "b u v"

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=ceil_div(n.u, 2) * ceil_div(n.v, 2), wide=n.d * 4, o=n.d * 2)
        yield copy("h[b s wide] = x[b u v d]", n)
        yield from LayerNorm(n.wide).at(n, "norm", x="h", y="h")
        yield matmul("y[b s o] = h[b s wide] * W_reduce[wide o]", n)


@final
@dataclass(frozen=True)
class SwinTower(BaseLayer):
    """Swin: stages of blocks, between them grids that are halved each way. y = stages(norm(patch(x))).

    Vendor: DonutSwinModel in transformers (Donut, Nougat). Paper: arXiv 2103.14030 (Swin), 2308.13418 (Nougat).
    Axes: b images, u x v patches.

    >>> SwinTower.sizes
    'b u v'
    """

    patch_embedding: PatchEmbed
    norm: LayerNorm
    stages: tuple[BaseLayer, ...]
    merges: tuple[BaseLayer, ...]
    sizes = "b u v"
    d = property(lambda self: self.norm.d * 2 ** len(self.merges))
    patch = property(attrgetter("patch_embedding.p"))

    def check(self) -> None:
        if len(self.merges) != len(self.stages) - 1:
            raise InputError(f"SwinTower: {len(self.stages)} stages have one merge less, not {len(self.merges)}")

    def features(self, u: Size, v: Size) -> Size:
        """Features of one image of u x v patches."""
        many = 2 ** len(self.merges)
        return ceil_div(u, many) * ceil_div(v, many)

    def ops(self, n: Sizes) -> Iterator[Op]:
        u, v, last = n.u, n.v, len(self.stages) - 1
        yield from self.patch_embedding.at(n, "swin.patch", x="x", y="h")
        yield from self.norm.at(n, "swin.norm", s=u * v, x="h", y="h")  # which the caller of the stages holds
        for index, stage in enumerate(self.stages):
            given, made = "made" if index else "h", "y" if index == last else "made"
            yield from stage.at(n, f"swin.stage{index}", u=u, v=v, x=given, y=made)
            if index < last:
                yield from self.merges[index].at(n, f"swin.merge{index}", u=u, v=v, x="made", y="made")
                u, v = ceil_div(u, 2), ceil_div(v, 2)
