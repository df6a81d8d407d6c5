"""Vision transformers at native resolution: attention with rotary positions of rows and columns, and their tower.

One sequence is one image, however large; images of one size share the batch axis. What merges its tokens: `merge.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import final

from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD, MUL, SOFTMAX, SOFTMAX_IN_FP32
from modelmeter.graph.ops import Op, composite, copy, matmul, pointwise, softmax
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, require_divisible, width_of
from modelmeter.layers.block import ResidualBlock
from modelmeter.layers.conv import PatchEmbed
from modelmeter.layers.norm import Norm
from modelmeter.sizes import Size, differ, floor_div, ratio

COORDINATES = 2  # the row and the column of a patch


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
        n = n.bind(e=n.e, H=ratio(n.e, 2), coordinates=COORDINATES, quarter=ratio(n.e, 4))
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


@final
@dataclass(frozen=True)
class VisionAttention(BaseLayer):
    """Bidirectional attention of one image. y = W_out softmax(scale turn(q) turn(k)) v.

    `turned`: rotary positions of rows and columns, and the images of a call one by one; `window`: each patch sees those
    of its square window alone, the last of a row or column smaller; `one_matrix`: q, k and v are one of the checkpoint;
    `bias`: they have one; `q_norm`, `k_norm` normalise heads, or all heads as one; `wide`: the softmax runs in fp32.
    Vendor: PaddleOCRVisionAttention, Qwen2_5_VLVisionAttention, InternVLVisionAttention, GlmOcrVisionAttention in
    transformers.
    Paper: arXiv 2307.06304 (NaViT), 2502.13923 (Qwen2.5-VL). Omits: copies that several images of a call make in eager.
    Axes: b images, s patches (t of them as keys; of windows their mean), u x v grid, h heads, e head width, window
    side in patches.

    >>> layer = VisionAttention(d=4, h=1, e=4, window=2)
    >>> layer.forward_tensor_core_flops(b=1, u=3, v=2) == 2 * (4 * 6 * 16 + 2 * 4 * (4 * 4 + 2 * 2))
    True
    """

    d: Size
    h: Size
    e: Size
    turned: bool = False
    window: Size | None = None
    one_matrix: bool = False
    bias: bool = True
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    wide: bool = True
    sizes = property(lambda self: "b s" if self.window is None else "b u v")
    inputs = property(lambda self: "x cos sin" if self.turned else "x")

    def check(self) -> None:
        if differ(self.d, self.h * self.e):
            raise InputError(f"VisionAttention: {self.h} heads of {self.e} are no hidden width of {self.d}")
        for norm in (norm for norm in (self.q_norm, self.k_norm) if norm is not None):
            if differ(norm.d, self.e):
                self.require_equal(norm=norm.d, hidden_width=self.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        if self.window is None:
            n = n.bind(t=n.s)
        else:
            seen = _squares(n.u, n.window) * _squares(n.v, n.window)
            n = n.bind(s=n.u * n.v, t=ratio(seen, n.u * n.v))
        bias = " + W_b{to}[h e]" if self.bias else ""
        kept = "qk" if self.turned and self.one_matrix else ""  # views of one tensor, which v holds
        names = {x: f"given_{x}" if x in kept else x for x in "qkv"}
        made = [matmul(f"{names[x]}[b s h e] = x[b s d] * W_{x}[d h e]{bias.format(to=x)}", n) for x in "qkv"]
        yield from composite("projections", *made, always=True) if self.one_matrix else made
        for x, norm in (("q", self.q_norm), ("k", self.k_norm)):
            if norm is not None:
                yield from norm.at(n, f"{x}_norm", s=n.s * ratio(n.d, norm.axes["d"]), x=names[x], y=x)
                names[x] = x
        if self.turned:
            given = {"x": names["q"], "keys": names["k"], "cos": "cos", "sin": "sin"}
            yield from AxialRotation(n.h, n.e).at(n, "turn", y="q", z="k", **given)
        yield from self._attended(n, "t" if self.window is None else "s:t")
        if self.turned:
            yield copy("seen[b s h e] = o[b s h e]", n)  # the images of a call behind each other
        yield matmul(f"y[b s d] = {'seen' if self.turned else 'o'}[b s h e] * W_out[h e d] + W_bout[d]", n)

    def _attended(self, n: Sizes, keys: str) -> Iterator[Op]:
        scores = matmul(f"a[b h s t] = q[b s h e] * k[b {keys} h e]", n)
        scaled = pointwise("a[b h s t] = a[b h s t]", MUL, n)
        shares = softmax("p[b h s t] = a[b h s t]", n, row="t", form=SOFTMAX_IN_FP32 if self.wide else SOFTMAX)
        seen = matmul(f"o[b s h e] = p[b h s t] * v[b {keys} h e]", n)
        yield from composite("attention", _all_keys(scores), scaled, shares, _all_keys(seen))


def _squares(side: Size, window: Size) -> Size:
    """The sum of squares of the sides of windows along an axis, whole ones and what is left over."""
    many = floor_div(side, window)
    rest = side - many * window
    return many * window * window + rest * rest


def _all_keys(op: Op) -> Op:
    """A product with the keys of each window, all of which are read once."""
    query, keys = op.reads
    return op._replace(reads=(query, keys._replace(touched=keys.stored)))


@final
class NavitBlock(ResidualBlock):
    """A pre-norm block over the patches of one image. h = x + attention(norm1(x)); y = h + mlp(norm2(h)).

    Vendor: PaddleOCRVisionEncoderLayer, Qwen2VLVisionBlock in transformers. Paper: arXiv 2307.06304 (NaViT).
    Axes: b images, u x v patches.

    >>> NavitBlock.sizes
    'b u v'
    """

    sizes = "b u v"

    def over(self, n: Sizes) -> Sizes:
        return n.bind(s=n.u * n.v)


@final
@dataclass(frozen=True)
class NavitTower(BaseLayer):
    """A vision transformer at native resolution. y = norm(blocks(patch(x) + positions)).

    `U`: side of a stored grid of positions that is resampled to the image's; None: rotary positions alone. `norm`: the
    one after all blocks, if any. Blocks are counted, their order is not. With windows the patches are brought in their
    order once, and the tables with them.
    Vendor: PaddleOCRVisionModel, Qwen2VisionTransformerPretrainedModel, GlmOcrVisionModel in transformers; the patches
    of the latter two come as two equal frames: six colours. Paper: arXiv 2307.06304 (NaViT). Omits: resampling the
    positions, bringing the merged tokens back. Axes: b images, u x v patches, U side of the stored grid.

    >>> NavitTower.sizes
    'b u v'
    """

    patch_embedding: PatchEmbed
    rotary: AxialRotary
    blocks: tuple[BaseLayer, ...]
    norm: Norm | None = None
    U: Size | None = None
    windows: bool = False
    sizes = "b u v"
    buffers = "pos"
    d = property(attrgetter("patch_embedding.d"))
    patch = property(attrgetter("patch_embedding.p"))

    def check(self) -> None:
        if not self.blocks or (self.norm is None and self.U is not None):
            raise InputError("NavitTower: it needs blocks, and a norm behind them where positions are added")
        for block in self.blocks:
            self.require_equal(patch_width=self.d, block_width=width_of(block))

    def features(self, u: Size, v: Size) -> Size:
        """Features of one image of u x v patches."""
        return u * v

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.patch_embedding.axes["d"], s=n.u * n.v, e=self.rotary.axes["e"])
        entering = "y" if self.norm is None else "h"
        yield from self.patch_embedding.at(n, "vit.patch", x="x", y=entering)
        if self.U is not None:
            yield pointwise(f"{entering}[b u v d] = {entering}[b u v d] + W_pos[U:u U:v d]", ADD, n)
        if self.windows:
            yield copy(f"{entering}[b u v d] = {entering}[b u v d]", n)
        yield from self.rotary.at(n, "vit.rotary", pos="pos", y="cos", sin="sin")
        if self.windows:
            yield copy("cos:32[b s e] = cos:32[b s e]", n)
            yield copy("sin:32[b s e] = sin:32[b s e]", n)
        hidden = entering if self.U is None else "hidden"  # who adds positions holds what they were added to
        for index, block in enumerate(self.blocks):
            given = hidden if index else entering
            yield from block.at(n, f"vit.blocks{index}", x=given, y=hidden, cos="cos", sin="sin")
        if self.norm is not None:
            yield from self.norm.at(n, "vit.norm", x=hidden, y="y")
