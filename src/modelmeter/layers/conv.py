"""Convolutions: patch embedding and the plain convolutions of a neck."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.graph.ops import Op, conv2d
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, require_divisible
from modelmeter.sizes import Size, ceil_div


@final
@dataclass(frozen=True)
class PatchEmbed(BaseLayer):
    """Image to patch features: a convolution whose stride is its kernel.

    y[u v] = W * x[patch u v] + B. Vendor: PatchEmbed in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2010.11929 (ViT).
    Axes: b images, c input channels, d width, p patch side (pixels), u x v patch grid.

    >>> PatchEmbed(c=3, d=8, p=2).forward_tensor_core_flops(b=1, u=4, v=5) == 2 * 4 * 5 * 3 * 2 * 2 * 8
    True
    """

    c: Size
    d: Size
    p: Size
    bias: bool = True
    sizes = "b u v"

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(i=n.u * n.p, j=n.v * n.p, q=n.p)
        bias = " + W_bias[d]" if self.bias else ""
        yield conv2d(f"y[b u v d] = x[b i j c] * W_proj[p q c d]{bias}", n)


@final
@dataclass(frozen=True)
class Conv2d(BaseLayer):
    """A convolution without bias, padded so that stride 1 keeps the grid.

    y[u v] = sum over p, q, c of W[p q c] x[stride u + p, stride v + q, c]. Axes: b images, i x j input
    grid, c input and o output channels, p kernel side, stride. Vendor: torch.nn.Conv2d, padding (p - 1) / 2.

    >>> Conv2d(c=4, o=8, p=3, stride=2).forward_tensor_core_flops(b=1, i=6, j=6) == 2 * 3 * 3 * 9 * 4 * 8
    True
    """

    c: Size
    o: Size
    p: Size
    stride: Size = 1
    sizes = "b i j"

    def check(self) -> None:
        require_divisible("Conv2d", "padding, kernel side less 1,", self.p - 1, "its two sides,", 2)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(u=ceil_div(n.i, n.stride), v=ceil_div(n.j, n.stride), q=n.p)
        yield conv2d("y[b u v o] = x[b i j c] * W_kernel[p q c o]", n)
