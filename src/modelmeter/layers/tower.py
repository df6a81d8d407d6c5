"""Vision towers: from pixels, or from the features of another tower, to features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import final

from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD
from modelmeter.graph.ops import Op, copy, pointwise, unused
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, width_of
from modelmeter.layers.conv import Conv2d
from modelmeter.layers.norm import Norm
from modelmeter.sizes import Size, ceil_div


@final
@dataclass(frozen=True)
class CLIPVisionEmbeddings(BaseLayer):
    """Class token + patch features + positions.

    y = [cls, x] + positions. With `own_patches` the layer convolves pixels itself; without, it is given features and
    its convolution is stored and unused.
    Vendor: CLIPVisionEmbeddings in deepencoder/clip_sdpa.py. Paper: arXiv 2103.00020 (CLIP).
    Omits: the interpolation of the position table. Axes: b images, u x v patches, n stored positions.

    >>> from modelmeter.layers import PatchEmbed
    >>> CLIPVisionEmbeddings(PatchEmbed(3, 8, 2, bias=False), n=5).forward_memory_weight_bytes(b=1, u=2, v=2)
    288
    """

    patch: BaseLayer
    n: Size
    own_patches: bool = False
    sizes = "b u v"
    d = property(attrgetter("patch.d"))

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=n.u * n.v + 1, d=self.patch.axes["d"])
        patches, features = self.patch.at(n, "patch", x="x", y="e"), "e" if self.own_patches else "x"
        yield from patches if self.own_patches else unused(patches)
        yield copy(f"e[b s d] = {features}[b u v d] * W_class[d]", n)
        yield pointwise("y[b s d] = e[b s d] + W_pos[n:s d]", ADD, n)


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
    norm: Norm
    transformer: BaseLayer
    sizes = "b u v"
    d = property(attrgetter("norm.d"))

    def check(self) -> None:
        self.require_equal(embeddings=self.embeddings.d, norm=self.d, transformer=width_of(self.transformer))

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=n.u * n.v + 1)
        yield from self.embeddings.at(n, "embeddings", x="x", y="h")
        yield from self.norm.at(n, "norm", x="h", y="h")
        yield from self.transformer.at(n, "transformer", x="h", y="y")


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

    patch: BaseLayer
    blocks: tuple[BaseLayer, ...]
    neck: tuple[Conv2d, ...]
    neck_norm: BaseLayer
    downsample: tuple[Conv2d, ...]
    U: Size
    sizes = "b u v"
    d = property(lambda self: self.downsample[-1].o)
    strides = property(lambda self: prod(conv.stride for conv in self.downsample))
    """Patches of one side that become one feature."""

    def features(self, u: Size, v: Size) -> Size:
        """Features of one image of u x v patches."""
        return ceil_div(u, self.strides) * ceil_div(v, self.strides)

    def check(self) -> None:
        if not self.neck or not self.downsample:
            raise InputError("ImageEncoderViT: neck and downsample must name at least one convolution each")
        width = patch_width = width_of(self.patch)
        for index, conv in enumerate((*self.neck, *self.downsample)):
            self.require_equal(**{"channels_there": width, f"convolution_{index}_input": conv.c})
            width = conv.o
        self.require_equal(neck_output=self.neck[-1].o, neck_norm=self.neck_norm.axes["c"])
        for block in self.blocks:
            self.require_equal(patch_width=patch_width, block_width=width_of(block))

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.patch.axes["d"])
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


@final
@dataclass(frozen=True)
class DeepEncoder(BaseLayer):
    """SAM, then CLIP on its features; the features of both side by side. y = [clip(sam(x)), sam(x)].

    CLIP's class token is left out. Vendor: DeepseekOCRForCausalLM._pixel_values_to_embedding in deepseek_ocr.py.
    Paper: arXiv 2510.18234. Axes: b images, u x v patches.

    >>> DeepEncoder.sizes
    'b u v'
    """

    sam: ImageEncoderViT
    clip: VitModel
    sizes = "b u v"
    keeps = "sam clip"
    d = property(lambda self: self.sam.d + self.clip.d)
    patch = property(attrgetter("sam.patch.p"))

    def check(self) -> None:
        if self.sam.d != self.clip.d:
            raise InputError(f"SAM features and CLIP hidden size must be equal, not {self.sam.d} and {self.clip.d}")

    def features(self, u: Size, v: Size) -> Size:
        """Features of one image of u x v patches."""
        return self.sam.features(u, v)

    def ops(self, n: Sizes) -> Iterator[Op]:
        u, v = ceil_div(n.u, self.sam.strides), ceil_div(n.v, self.sam.strides)
        yield from self.sam.at(n, "sam", x="x", y="sam")
        yield from self.clip.at(n, "clip", u=u, v=v, x="sam", y="clip")
        sides = SideBySide(self.clip.d, self.sam.d)
        yield from sides.at(n, "projector", s=u * v, S=u * v + 1, x="clip", z="sam", y="y")


@final
@dataclass(frozen=True)
class SideBySide(BaseLayer):
    """Two features of each position side by side, without the class token of the first. y = [x, z].

    Vendor: torch.cat in DeepseekOCRForCausalLM._pixel_values_to_embedding.
    Axes: b images, s positions, S with the class token, d and o channels.

    >>> SideBySide(d=2, o=3).forward_io_bytes(b=1, s=4, S=5)
    80
    """

    d: Size
    o: Size
    sizes = "b s S"
    inputs = "x z"

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield copy("y[b s c] = x[b S:s d] * z[b s o]", n.bind(c=n.d + n.o))


@final
@dataclass(frozen=True)
class PatchTower(BaseLayer):
    """CLIP on pixels, the features of its patches without the class token. y = vit(x)[1:].

    Vendor: LlavaModel.get_image_features in transformers, vision_feature_select_strategy "default".
    Omits: that LLaVA takes the features of the last layer but one. Axes: b images, u x v patches.

    >>> PatchTower.sizes
    'b u v'
    """

    vit: VitModel
    sizes = "b u v"
    d = property(attrgetter("vit.d"))
    patch = property(attrgetter("vit.embeddings.patch.p"))

    def check(self) -> None:
        if not self.vit.embeddings.own_patches:
            raise InputError("PatchTower: its ViT must make its patches from pixels (own_patches)")

    def features(self, u: Size, v: Size) -> Size:
        """Features of one image of u x v patches."""
        return u * v

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(s=n.u * n.v, S=n.u * n.v + 1, d=self.d)
        yield from self.vit.at(n, "vit", x="x", y="h")
        yield copy("y[b s d] = h[b S:s d]", n)
