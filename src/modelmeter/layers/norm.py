"""Normalisations. Rows are normalised along the width; everything runs on CUDA cores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.graph.forms import CENTERED_NORM, LAYER_NORM, LAYER_NORM_2D, RMS_NORM, WIDE_RMS_NORM
from modelmeter.graph.ops import Op, norm
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, require_divisible
from modelmeter.sizes import Size, ratio


@dataclass(frozen=True)
class Norm(BaseLayer):
    """A normalisation of rows of d elements."""

    d: Size
    sizes = "b s"


@final
class LayerNorm(Norm):
    """Layer normalisation with weight and bias.

    y = (x - mean(x)) / sqrt(var(x) + eps) * W + B; 7 d + 2 FLOPs a row.
    Vendor: torch.nn.LayerNorm. Paper: arXiv 1607.06450. Axes: b batch, s rows of a sample, d width (elements).

    >>> LayerNorm(d=8).forward_cuda_core_flops(b=1, s=3)
    174
    """

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield norm("y[b s d] = x[b s d] * W_weight[d] + W_bias[d]", LAYER_NORM, n)


@final
@dataclass(frozen=True)
class CenteredNorm(Norm):
    """Layer normalisation without bias, of `heads` parts of a row each for itself.

    y = (x - mean(x)) / sqrt(var(x) + eps) * W; 7 FLOPs an element and 2 a part, as the code subtracts the mean twice.
    Vendor: CohereLayerNorm in transformers. Paper: arXiv 1607.06450.
    Axes: b batch, s rows of a sample, d width (elements), heads parts of it.

    >>> CenteredNorm(d=8, heads=2).forward_cuda_core_flops(b=1, s=3) == 3 * (7 * 8 + 2 * 2)
    True
    """

    heads: Size | None = None

    def check(self) -> None:
        require_divisible("CenteredNorm", "width", self.d, "heads", 1 if self.heads is None else self.heads)

    def ops(self, n: Sizes) -> Iterator[Op]:
        heads = self.axes.get("heads", 1)
        n = n.bind(h=heads, e=ratio(n.d, heads))
        yield norm("y[b s h e] = x[b s h e] * W_weight[h e]", CENTERED_NORM, n, row="e")


@final
class WideRMSNorm(Norm):
    """Root-mean-square normalisation in fp32 to the end.

    y = x / sqrt(mean(x^2) + eps) * W; 4 d + 2 FLOPs a row. Paper: arXiv 1910.07467.
    Vendor: Olmo2RMSNorm, GptOssRMSNorm, and GemmaRMSNorm in transformers, whose weights are 1 + W: constants.
    Axes: b batch, s tokens, d width.

    >>> WideRMSNorm(d=8).forward_cuda_core_flops(b=1, s=3)
    102
    """

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield norm("y[b s d] = x[b s d] * W_weight[d]", WIDE_RMS_NORM, n)


class RMSNorm(Norm):
    """Root-mean-square normalisation.

    y = x / sqrt(mean(x^2) + eps) * W; 4 d + 2 FLOPs a row, in fp32 but for the weight.
    Vendor: torch.nn.RMSNorm, LlamaRMSNorm in transformers. Paper: arXiv 1910.07467. Axes: b batch, s tokens, d width.

    >>> RMSNorm(d=8).forward_cuda_core_flops(b=1, s=3)
    102
    """

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield norm("y[b s d] = x[b s d] * W_weight[d]", RMS_NORM, n)


@final
@dataclass(frozen=True)
class LayerNorm2d(BaseLayer):
    """Layer normalisation over the channels of each pixel.

    y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * W + B; 8 c + 2 FLOPs a pixel: the vendor's code subtracts the
    mean twice. transformers permutes and calls LayerNorm, 7 c + 2. Axes: b batch, u x v pixels, c channels.
    Vendor: LayerNorm2d in deepencoder/sam_vary_sdpa.py. Paper: arXiv 2304.02643 (SAM).

    >>> LayerNorm2d(c=8).forward_cuda_core_flops(b=1, u=2, v=3)
    396
    """

    c: Size
    sizes = "b u v"

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield norm("y[b u v c] = x[b u v c] * W_weight[c] + W_bias[c]", LAYER_NORM_2D, n, row="c")
