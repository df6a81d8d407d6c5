"""The pre-norm residual block, over a sequence or over a grid of patches, and a stack of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import final

from modelmeter.errors import InputError, choose
from modelmeter.graph.forms import ADD, MERGE, MUL, PARTITION
from modelmeter.graph.ops import Op, copy, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.attention import CrossAttention, GridAttention
from modelmeter.layers.base import BaseLayer, Repeat, union, width_of
from modelmeter.layers.norm import Norm
from modelmeter.sizes import Size, ceil_div, maximum, minimum


@dataclass(frozen=True)
class ResidualBlock(BaseLayer):
    """A residual block, pre-norm if nothing else is said. h = x + attention(norm1(x)); y = h + mlp(norm2(h)).

    `norms`: before each part, after it, or both; `parallel`: y = x + attention(norm1(x)) + mlp(norm2(x)), the norms
    two or one and the same; `scaled`: each part is multiplied before it is added.
    Any attention and any MLP of one width. Vendor: LlamaDecoderLayer, CLIPEncoderLayer in transformers.
    Paper: arXiv 2002.04745. Axes: those of its parts.

    >>> from modelmeter.layers import GatedMLP, RMSNorm, SelfAttention
    >>> ResidualBlock(SelfAttention(4, 2, 2), GatedMLP(4, 5), RMSNorm(4)).sizes
    'b s'
    """

    attention: BaseLayer
    mlp: BaseLayer
    norm: Norm
    norms: str = field(default="before", kw_only=True)
    parallel: str = field(default="none", kw_only=True)
    scaled: bool = field(default=False, kw_only=True)
    d = property(attrgetter("norm.d"))
    inputs = property(attrgetter("attention.inputs"))
    sizes = property(lambda self: union((self.attention.sizes, self.mlp.sizes)))

    def check(self) -> None:
        choose("norms", self.norms, ("before", "after", "both"))
        choose("parallel", self.parallel, ("none", "one", "two"))
        self.require_equal(attention=width_of(self.attention), mlp=width_of(self.mlp), norm=self.d)
        if self.parallel != "none" and (self.norms != "before" or self.scaled):
            raise InputError(f"{type(self).__name__}: parallel parts have norms before them and are not scaled")

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = self.over(n.bind(d=self.norm.axes["d"]))
        if self.parallel != "none":
            yield from self._side_by_side(n)
            return
        before, after = self.norms != "after", self.norms != "before"
        if before:
            yield from self.norm.at(n, "norm1", x="x", y="h")
        yield from self.mix(n) if before else self.attended(n, "x")
        if after:
            yield from self.norm.at(n, "norm1.after", x="h", y="h")
        yield from self._added("h", "x", "h", n)
        if before:
            yield from self.norm.at(n, "norm2", x="h", y="m")
        yield from self.mlp.at(n, "mlp", x="m" if before else "h", y="m")
        if after:
            yield from self.norm.at(n, "norm2.after", x="m", y="m")
        yield from self._added("y", "h", "m", n)

    def _side_by_side(self, n: Sizes) -> Iterator[Op]:
        yield from self.norm.at(n, "norm1", x="x", y="h")
        if self.parallel == "one":
            yield from self.mlp.at(n, "mlp", x="h", y="m")
        yield from self.mix(n)
        if self.parallel == "two":
            yield from self.norm.at(n, "norm2", x="x", y="m")
            yield from self.mlp.at(n, "mlp", x="m", y="m")
        yield pointwise("h[b s d] = h[b s d] + m[b s d]", ADD, n)
        yield pointwise("y[b s d] = h[b s d] + x[b s d]", ADD, n)

    def _added(self, to: str, x: str, part: str, n: Sizes) -> Iterator[Op]:
        if self.scaled:
            yield pointwise(f"{part}[b s d] = {part}[b s d]", MUL, n)
        yield pointwise(f"{to}[b s d] = {x}[b s d] + {part}[b s d]", ADD, n)

    def over(self, n: Sizes) -> Sizes:
        """The place with b and s."""
        return n

    def mix(self, n: Sizes) -> Iterator[Op]:
        """Attention from h to h."""
        return self.attended(n, "h")

    def attended(self, n: Sizes, x: str) -> Iterator[Op]:
        """Attention from x to h."""
        others = {name: name for name in self.inputs.split() if name != "x"}
        return self.attention.at(n, "attn", x=x, y="h", **others)


@final
@dataclass(frozen=True)
class CrossBlock(BaseLayer):
    """A pre-norm block of a decoder that attends to itself, then to the features of an encoder.

    h = x + attention(norm1(x)); h = h + cross(norm2(h), features); y = h + mlp(norm3(h)).
    Vendor: MBartDecoderLayer in transformers. Paper: arXiv 1706.03762, 2001.08210 (mBART).
    Omits: that eager code gives up the scores of its own attention for those of cross attention.
    Axes: those of its parts.

    >>> from modelmeter.layers import MLP, CausalAttention, CrossAttention, LayerNorm
    >>> CrossBlock(CausalAttention(4, 2, 1, 2), CrossAttention(4, 2, 2), MLP(4, 5), LayerNorm(4)).sizes
    'b s t source'
    """

    attention: BaseLayer
    cross: CrossAttention
    mlp: BaseLayer
    norm: Norm
    d = property(attrgetter("norm.d"))
    inputs = property(lambda self: union((self.attention.inputs, self.cross.inputs)))
    sizes = property(lambda self: union((self.attention.sizes, self.cross.sizes, self.mlp.sizes)))

    def check(self) -> None:
        widths = {name: width_of(getattr(self, name)) for name in ("attention", "cross", "mlp", "norm")}
        self.require_equal(**widths)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.norm.axes["d"])
        own, read = ({x: x for x in part.inputs.split() if x != "x"} for part in (self.attention, self.cross))
        yield from self.norm.at(n, "norm1", x="x", y="h")
        yield from self.attention.at(n, "attn", x="h", y="h", **own)
        yield pointwise("h[b s d] = x[b s d] + h[b s d]", ADD, n)
        yield from self.norm.at(n, "norm2", x="h", y="m")
        yield from self.cross.at(n, "cross", x="m", y="m", **read)
        yield pointwise("h[b s d] = h[b s d] + m[b s d]", ADD, n)
        yield from self.norm.at(n, "norm3", x="h", y="m")
        yield from self.mlp.at(n, "mlp", x="m", y="m")
        yield pointwise("y[b s d] = h[b s d] + m[b s d]", ADD, n)


@dataclass(frozen=True)
class GridBlock(ResidualBlock):
    """A residual block over patches; with `w` its attention runs in w x w windows of the padded grid.

    Padded positions are computed; the MLP sees none. Paper: arXiv 2304.02643 (SAM). Vendor: SamVisionLayer in
    transformers. Omits: padding and permuting are one copy each way.
    Axes: b images, u x v patches, w window side (None: global attention).

    >>> from modelmeter.layers import MLP, GridAttention, LayerNorm
    >>> make = lambda w: GridBlock(GridAttention(4, 2, 2, 3), MLP(4, 8), LayerNorm(4), w)
    >>> make(3).forward_tensor_core_flops(b=1, u=3, v=3) == make(None).forward_tensor_core_flops(b=1, u=3, v=3)
    True
    """

    attention: GridAttention
    w: Size | None = None
    sizes = "b u v"

    def over(self, n: Sizes) -> Sizes:
        return n.bind(s=n.u * n.v)

    def mix(self, n: Sizes) -> Iterator[Op]:
        if self.w is None:
            yield from super().mix(n)
            return
        rows, columns = (ceil_div(side, n.w) for side in (n.u, n.v))
        higher, wider = (minimum(many * n.w - side, 1) for many, side in ((rows, n.u), (columns, n.v)))
        n = n.bind(w=self.axes["w"], W=rows * columns, split=minimum(columns - 1, 1))
        n = n.bind(cropped=maximum(wider, higher * minimum(n.b - 1, 1)))
        yield copy("h[b W w w d] = h[b u v d]", n, PARTITION)
        yield from self.attention.at(n, "attn", b=n.b * n.W, u=n.w, v=n.w, x="h", y="h")
        yield copy("h[b u v d] = h[b W w w d]", n, MERGE)


class Transformer(Repeat):
    """`l` transformer blocks. y = block(...block(x)).

    Vendor: CLIPEncoder in transformers. Axes: b images, s tokens, l blocks.

    >>> Transformer.sizes
    'b s'
    """

    sizes = "b s"
    scope = "layers"
    block = property(attrgetter("layer"))
