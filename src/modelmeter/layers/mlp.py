"""Feed-forward layers: two linear layers with an activation, the gated form, the projector before a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.errors import choose
from modelmeter.graph.forms import ACTIVATIONS, CLAMPED, GELU, MUL
from modelmeter.graph.ops import Op, composite, copy, matmul, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.sizes import Size


@dataclass(frozen=True)
class MLP(BaseLayer):
    """Two linear layers with an activation between, GELU if nothing else is said. y = W2 gelu(W1 x + B1) + B2.

    `activation` is one of ACTIVATIONS by its name in transformers, `bias` says whether the layers have one.

    Vendor: torch.nn.Sequential(Linear, GELU, Linear). Paper: arXiv 2010.11929 (ViT).
    Axes: b images, s tokens, d width, f intermediate width.

    >>> MLP(d=2, f=8).forward_tensor_core_flops(b=1, s=3) == 2 * 2 * 3 * 2 * 8
    True
    """

    d: Size
    f: Size
    activation: str = "gelu"
    bias: bool = True
    sizes = "b s"

    def check(self) -> None:
        choose("activation", self.activation, ACTIVATIONS)

    def ops(self, n: Sizes) -> Iterator[Op]:
        inner, outer = (" + W_b1[f]", " + W_b2[d]") if self.bias else ("", "")
        yield matmul(f"h[b s f] = x[b s d] * W_1[d f]{inner}", n)
        yield pointwise("h[b s f] = h[b s f]", ACTIVATIONS[self.activation], n)
        yield matmul(f"y[b s d] = h[b s f] * W_2[f d]{outer}", n)


@dataclass(frozen=True)
class GatedMLP(BaseLayer):
    """A gated MLP, SwiGLU if nothing else is said. y = W_down (silu(W_gate x) * W_up x).

    `activation` is one of ACTIVATIONS, `bias` says whether the layers have one, `one_matrix` whether gate and up are
    one of the checkpoint. Vendor: LlamaMLP in transformers. Paper: arXiv 2002.05202 (GLU variants). Axes: b sequences,
    s tokens, d hidden width, f intermediate width.

    >>> GatedMLP(d=2, f=3).forward_tensor_core_flops(b=1, s=5) == 3 * 2 * 5 * 2 * 3
    True
    """

    d: Size
    f: Size
    activation: str = "silu"
    bias: bool = False
    one_matrix: bool = False
    sizes = "b s"

    def check(self) -> None:
        choose("activation", self.activation, ACTIVATIONS)

    def ops(self, n: Sizes) -> Iterator[Op]:
        bias = [f" + W_b{to}" if self.bias else "" for to in ("gate[f]", "up[f]", "down[d]")]
        gate = matmul(f"_g[b s f] = x[b s d] * W_gate[d f]{bias[0]}", n)
        up = matmul(f"_u[b s f] = x[b s d] * W_up[d f]{bias[1]}", n)
        yield from gated(gate, up, n, "b s f", one_matrix=self.one_matrix, activation=self.activation)
        yield matmul(f"y[b s d] = _h[b s f] * W_down[f d]{bias[2]}", n)


def gated(gate: Op, up: Op, n: Sizes, axes: str, *, one_matrix: bool, activation: str = "silu") -> Iterator[Op]:
    """_h = act(_g) * _u, in the order in which Python evaluates it.

    `clamped`: min(g, c) sigmoid(a g) (u + 1), u from -c to c, as GptOssExperts in transformers.
    """
    left, right, h = f"_g[{axes}]", f"_u[{axes}]", f"_h[{axes}]"
    made = composite("projections", gate, up, always=True) if one_matrix else iter((gate, up))
    if activation == "clamped":
        yield from (*made, pointwise(f"{h} = {left} * {right}", CLAMPED, n))
        return
    activated = pointwise(f"{left} = {left}", ACTIVATIONS[activation], n)
    yield from (*made, activated) if one_matrix else (gate, activated, up)
    yield pointwise(f"{h} = {left} * {right}", MUL, n)


@final
@dataclass(frozen=True)
class MlpProjector(BaseLayer):
    """Vision features to decoder width: `identity`, `linear` or `mlp_gelu` of any depth.

    linear: y = W x + B; mlp_gelu: a linear layer, then depth - 1 times gelu and a linear layer.
    Vendor: MlpProjector in deepencoder/build_linear.py. Paper: arXiv 2510.18234.
    Axes: b images, s tokens, c input and d output width, depth (linear layers of mlp_gelu).

    >>> MlpProjector("mlp_gelu", c=4, d=2, depth=2).forward_tensor_core_flops(b=1, s=3) == 2 * 3 * (8 + 4)
    True
    """

    kind: str
    c: Size
    d: Size
    depth: Size = 1
    sizes = "b s"

    leaving = property(lambda self: self.c if self.kind == "identity" else self.d)
    """The width of its output."""

    def check(self) -> None:
        choose("projector kind", self.kind, ("identity", "linear", "mlp_gelu"))

    def ops(self, n: Sizes) -> Iterator[Op]:
        if self.kind == "identity":
            yield copy("y[b s c] = x[b s c]", n)
            return
        yield matmul("y[b s d] = x[b s c] * W_0[c d] + W_b0[d]", n)
        if self.kind == "mlp_gelu":
            yield from _Activated(n.d).at(n, "mlp", times=n.depth - 1, x="y", y="y")


@final
@dataclass(frozen=True)
class _Activated(BaseLayer):
    d: Size
    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield pointwise("x[b s d] = x[b s d]", GELU, n)
        yield matmul("y[b s d] = x[b s o] * W_1[o d] + W_b1[d]", n.bind(o=n.d))
