"""Vision transformers at native resolution: attention with rotary positions of rows and columns, and their tower.

The images of a call, of one size or of several, lie behind each other. What merges their tokens: `merge.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, cast, final

from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD, MUL, NARROW_SOFTMAX, SOFTMAX_IN_FP32
from modelmeter.graph.ops import Op, composite, copy, matmul, pointwise, softmax
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, rebuild, width_of
from modelmeter.layers.block import ResidualBlock
from modelmeter.layers.conv import PatchEmbed
from modelmeter.layers.merge import tokens_of
from modelmeter.layers.norm import Norm
from modelmeter.layers.rotary import AxialRotary, AxialRotation
from modelmeter.sizes import Size, differ, floor_div, ratio


@final
@dataclass(frozen=True)
class ImageAttention(BaseLayer):
    """Bidirectional attention of one image among S patches of a call. seen = softmax(scale queries keys) values.

    `window`: each patch sees those of its square window alone, the last of a row or column smaller. `wide`: the softmax
    runs in fp32. `kept`: who attends holds the weights of all images.
    Vendor: eager_attention_forward in transformers. Axes: b images in one, u x v patches of each, s (t of them as keys;
    of windows their mean), S of the call, `same` of all its images of this size, h heads, e head width.

    >>> layer = ImageAttention(h=1, e=4, window=2)
    >>> layer.forward_tensor_core_flops(b=1, u=3, v=2, S=6, same=6) == 2 * 2 * 4 * (4 * 4 + 2 * 2)
    True
    """

    h: Size
    e: Size
    window: Size | None = None
    wide: bool = True
    kept: bool = True
    sizes = "b u v S same"
    inputs = "queries keys values"
    outputs = "seen"

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=n.u * n.v, t=n.u * n.v)
        if self.window is not None:
            n = n.bind(t=ratio(_squares(n.u, n.window) * _squares(n.v, n.window), n.s))
        n = n.bind(rounds=n.b * ratio(n.same, n.s))
        weights = "p[rounds:b h s t]" if self.kept else "p[b h s t]"
        scores = matmul("a[b h s t] = queries[b S:s h e] * keys[b S:t h e]", n)
        scaled = pointwise("a[b h s t] = a[b h s t]", MUL, n)
        shares = softmax(f"{weights} = a[b h s t]", n, row="t", form=SOFTMAX_IN_FP32 if self.wide else NARROW_SOFTMAX)
        seen = matmul(f"seen[b same:s h e] = {weights} * values[b S:t h e]", n)
        patches = scores.reads[0].touched  # all of the image, of which each query sees t
        read = (_reading(scores, patches), scaled, shares, _reading(seen, patches))
        yield from composite("attention", *read, returned=self.kept)


def _reading(op: Op, touched: Size) -> Op:
    """A product with keys or values, so many elements of which are read."""
    left, right = op.reads
    return op._replace(reads=(left, right._replace(touched=touched)))


@final
@dataclass(frozen=True)
class VisionAttention(BaseLayer):
    """Bidirectional attention of images. y = W_out softmax(scale turn(q) turn(k)) v.

    `turned`: rotary positions of rows and columns, and the images of a call, of `kinds` sizes, behind each other and
    attended one by one, in windows if there are any (see ImageAttention); else images of one size as one batch.
    `one_matrix`: q, k and v are one of the checkpoint; `bias`: they have one; `out_bias`: the last matrix has;
    `q_norm`, `k_norm` normalise heads, or all heads as one; `wide`: the softmax runs in fp32; `kept`: the weights of
    all images are held (eager).
    Vendor: PaddleOCRVisionAttention, Qwen2_5_VLVisionAttention, InternVLVisionAttention, GlmOcrVisionAttention in
    transformers. Paper: arXiv 2307.06304 (NaViT), 2502.13923 (Qwen2.5-VL).
    Axes: b images, s patches, u x v grid, h heads, e head width, window side in patches.

    >>> layer = VisionAttention(d=4, h=1, e=4, turned=True, window=2)
    >>> layer.forward_tensor_core_flops(images=1, u=3, v=2) == 2 * (4 * 6 * 16 + 2 * 4 * (4 * 4 + 2 * 2))
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
    kept: bool = True
    kinds: int = 1
    out_bias: bool = True
    sizes = property(lambda self: kinds_of(self.kinds) if self.turned else "b s")
    inputs = property(lambda self: "x cos sin" if self.turned else "x")

    def check(self) -> None:
        if differ(self.d, self.h * self.e):
            raise InputError(f"VisionAttention: {self.h} heads of {self.e} are no hidden width of {self.d}")
        if not self.turned and (self.window is not None or self.kinds != 1):
            raise InputError("VisionAttention: windows and images of several sizes need rotary positions (turned)")
        for norm in (norm for norm in (self.q_norm, self.k_norm) if norm is not None):
            if differ(norm.d, self.e):
                self.require_equal(norm=norm.d, hidden_width=self.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = packed(n, self.kinds) if self.turned else n
        bias, out_bias = " + W_b{to}[h e]" if self.bias else "", " + W_bout[d]" if self.out_bias else ""
        kept = "qk" if self.turned and self.one_matrix else ""  # views of one tensor, which v holds
        names = {x: f"given_{x}" if x in kept else x for x in "qkv"}
        made = [matmul(f"{names[x]}[b s h e] = x[b s d] * W_{x}[d h e]{bias.format(to=x)}", n) for x in "qkv"]
        yield from composite("projections", *made, always=True) if self.one_matrix else made
        for x, norm in (("q", self.q_norm), ("k", self.k_norm)):
            if norm is not None:
                yield from norm.at(n, f"{x}_norm", s=n.s * ratio(n.d, norm.axes["d"]), x=names[x], y=x)
                names[x] = x
        core = ImageAttention(n.h, n.e, self.window, self.wide, self.kept)
        given = {"queries": "q", "keys": "k", "values": "v"}
        if not self.turned:
            yield from core.at(n, "", u=n.s, v=1, S=n.s, same=n.s, seen="o", **given)
            yield matmul("y[b s d] = o[b s h e] * W_out[h e d]" + out_bias, n)
            return
        turning = {"x": names["q"], "keys": names["k"], "cos": "cos", "sin": "sin"}
        yield from AxialRotation(n.h, n.e).at(n, "turn", y="q", z="k", **turning)
        seen = list[str]()
        for place, (many, u, v) in enumerate(map(n.__getattr__, kind) for kind in kind_names(self.kinds)):
            of = _numbered(place + 1)
            seen.append(f"o{of}[b same{of} h e]")
            n = n.bind(**{f"same{of}": many * u * v})
            of_kind = {"u": u, "v": v, "S": n.s, "same": many * u * v}
            to = {"seen": f"o{of}"} | ({"p": f"p{of}"} if self.kept else {})
            yield from core.at(n, f"image{of}", times=many, b=1, **of_kind, **given, **to)
        yield copy(f"seen[b s h e] = {' * '.join(seen)}", n)  # the images of a call behind each other
        yield matmul("y[b s d] = seen[b s h e] * W_out[h e d]" + out_bias, n)


def _numbered(kind: int) -> str:
    """What the names of a kind of images end with."""
    return f"_{kind}" if kind > 1 else ""


def kind_names(kinds: int) -> list[tuple[str, str, str]]:
    """What the sizes of a call are called: of each kind of image how many there are, their rows and columns."""
    ends = map(_numbered, range(1, kinds + 1))
    return [(f"images{end}", f"u{end}", f"v{end}") for end in ends]


def kinds_of(kinds: int) -> str:
    return " ".join(" ".join(names) for names in kind_names(kinds))


def packed(n: Sizes, kinds: int) -> Sizes:
    """The patches of all images of a call behind each other: b = 1."""
    each = (map(n.__getattr__, names) for names in kind_names(kinds))
    return n.bind(b=1, s=sum(many * u * v for many, u, v in each))


def _squares(side: Size, window: Size) -> Size:
    """The sum of squares of the sides of windows along an axis, whole ones and what is left over."""
    many = floor_div(side, window)
    rest = side - many * window
    return many * window * window + rest * rest


@final
class NavitBlock(ResidualBlock):
    """A pre-norm block over the patches of images. h = x + attention(norm1(x)); y = h + mlp(norm2(h)).

    Vendor: PaddleOCRVisionEncoderLayer, Qwen2VLVisionBlock in transformers. Paper: arXiv 2307.06304 (NaViT).
    Axes: images of one size, u x v patches; likewise for each further size.

    >>> from modelmeter.layers import MLP, LayerNorm
    >>> NavitBlock(VisionAttention(4, 1, 4, turned=True), MLP(4, 5), LayerNorm(4)).sizes
    'images u v'
    """

    sizes = property(attrgetter("attention.sizes"))

    def over(self, n: Sizes) -> Sizes:
        attention: Any = self.attention
        return packed(n, attention.kinds)


@final
@dataclass(frozen=True)
class NavitTower(BaseLayer):
    """A vision transformer at native resolution. y = norm(blocks(patch(x) + positions)), images behind each other.

    `U`: side of a stored grid of positions that is resampled to the image's; None: rotary positions alone. `first`,
    `norm`: the ones before and behind all blocks, if any. Blocks are counted, their order is not. With windows the
    patches are brought in their order once, and the tables with them. `kinds`: how many sizes the images have.
    Vendor: PaddleOCRVisionModel, Qwen2VisionTransformerPretrainedModel, GlmOcrVisionModel in transformers; the patches
    of the latter two come as two equal frames: six colours. Paper: arXiv 2307.06304 (NaViT). Omits: resampling the
    positions, bringing the merged tokens back. Axes: images of one size, u x v patches, U side of the stored grid.

    >>> NavitTower.__name__
    'NavitTower'
    """

    patch_embedding: PatchEmbed
    rotary: AxialRotary
    blocks: tuple[BaseLayer, ...]
    norm: Norm | None = None
    U: Size | None = None
    windows: bool = False
    kinds: int = 1
    first: Norm | None = None
    sizes = property(lambda self: kinds_of(self.kinds))
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

    def of_kinds(self, kinds: int) -> NavitTower:
        """The same for images of so many sizes."""
        change = lambda part: replace(part, kinds=kinds) if isinstance(part, (NavitTower, VisionAttention)) else part
        return cast(NavitTower, rebuild(self, change))

    def ops(self, n: Sizes) -> Iterator[Op]:
        given = n
        n = packed(n, self.kinds).bind(d=self.patch_embedding.axes["d"], e=self.rotary.axes["e"], one=1)
        entering = "y" if self.norm is None else "h"
        yield from self.patch_embedding.at(n, "vit.patch", u=n.s, v=1, x="x", y=entering)
        if self.first is not None:
            yield from self.first.at(n, "vit.first", x=entering, y=entering)
        if self.U is not None:
            yield pointwise(f"{entering}[b s d] = {entering}[b s d] + W_pos[U:s U:one d]", ADD, n)
        if self.windows:
            yield copy(f"{entering}[b s d] = {entering}[b s d]", n)
        yield from self.rotary.at(n, "vit.rotary", pos="pos", y="cos", sin="sin")
        if self.windows:
            yield copy("cos:32[b s e] = cos:32[b s e]", n)
            yield copy("sin:32[b s e] = sin:32[b s e]", n)
        hidden = entering if self.U is None else "hidden"  # who adds positions holds what they were added to
        for index, block in enumerate(self.blocks):
            x = hidden if index else entering
            yield from block.at(given, f"vit.blocks{index}", x=x, y=hidden, cos="cos", sin="sin")
        if self.norm is not None:
            yield from self.norm.at(n, "vit.norm", x=hidden, y="y")


@final
@dataclass(frozen=True)
class Projected(BaseLayer):
    """A tower and the projector behind it. y = projector(tower(x)).

    Vendor: Qwen2VisionTransformerPretrainedModel in transformers, merger included. Axes: those of the tower.

    >>> Projected.__name__
    'Projected'
    """

    tower: BaseLayer
    projector: BaseLayer
    sizes = property(attrgetter("tower.sizes"))

    def ops(self, n: Sizes) -> Iterator[Op]:
        tower: Any = self.tower
        held = {name: name for name in tower.keeps.split()}
        yield from tower.at(n, "", x="x", y="features", **held)
        whole = packed(n, tower.kinds) if isinstance(tower, NavitTower) else n.bind(s=tower.features(n.u, n.v))
        s = tokens_of(self.projector, whole.s)
        yield from self.projector.at(n, "projector", b=whole.b, s=s, x="features", y="y")
