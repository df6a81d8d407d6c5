"""Towers whose tokens are the features of SAM's last convolution, alone or with CLIP beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import final

from modelmeter.graph.ops import Op
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.layers.mlp import MlpProjector
from modelmeter.layers.tower import ImageEncoderViT, PatchTower, SideBySide
from modelmeter.sizes import Size


@final
@dataclass(frozen=True)
class SamTower(BaseLayer):
    """SAM's encoder alone, each feature of its last convolution a token. y = sam(x).

    Vendor: GotOcr2VisionEncoder and the convolutions of GotOcr2MultiModalProjector in transformers.
    Paper: arXiv 2409.01704 (GOT). Axes: b images, u x v patches.

    >>> SamTower.sizes
    'b u v'
    """

    sam: ImageEncoderViT
    sizes = "b u v"
    keeps = "sam"
    d = property(attrgetter("sam.d"))
    patch = property(attrgetter("sam.patch.p"))

    def features(self, u: Size, v: Size) -> Size:
        """Features of one image of u x v patches."""
        return self.sam.features(u, v)

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from self.sam.at(n, "sam", x="x", y="y")


@final
@dataclass(frozen=True)
class TwinTower(BaseLayer):
    """SAM on the image and CLIP on a small copy of it, each through a linear layer, side by side.

    y = [W_1 clip(small) + B_1, W_2 sam(x) + B_2]. Vendor: VaryQwenModel in vary_qwen_vary.py of Vary.
    Paper: arXiv 2312.06109 (Vary). Axes: b images, u x v patches of SAM, side of CLIP's grid in patches, o width of
    each half; each half has as many features as the other.

    >>> TwinTower.sizes
    'b u v'
    """

    sam: ImageEncoderViT
    clip: PatchTower
    side: Size
    o: Size
    sizes = "b u v"
    buffers = "small"
    keeps = "sam clip"
    d = property(lambda self: self.o + self.o)
    patch = property(attrgetter("sam.patch.p"))

    def features(self, u: Size, v: Size) -> Size:
        """Features of one image of u x v patches."""
        return self.sam.features(u, v)

    def ops(self, n: Sizes) -> Iterator[Op]:
        s = self.features(n.u, n.v)
        n.require(n.side * n.side - s, "CLIP has fewer features than SAM has at {u} x {v} patches")
        n.require(s - n.side * n.side, "SAM has fewer features at {u} x {v} patches than CLIP has")
        yield from self.sam.at(n, "sam", x="x", y="sam")
        yield from self.clip.at(n, "clip", u=n.side, v=n.side, x="small", y="clip")
        many = n.side * n.side
        for name, part, given in (("clip", self.clip, many), ("sam", self.sam, s)):
            linear = MlpProjector("linear", part.d, self.o)
            yield from linear.at(n, f"{name}_linear", s=given, x=name, y=f"{name}_half")
        yield from SideBySide(self.o, self.o).at(n, "both", s=s, S=many, x="clip_half", z="sam_half", y="y")
