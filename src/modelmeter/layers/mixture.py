"""Mixtures of experts: the router and the experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD, COMBINE, GATHER, MUL, SCATTER, TOP_K
from modelmeter.graph.ops import Op, copy, matmul, pointwise, softmax
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.layers.mlp import GatedMLP, gated
from modelmeter.sizes import Size, below, expected_distinct


@dataclass(frozen=True)
class Router(BaseLayer):
    """The router of a mixture, in fp32: softmax, the k largest, scaled. y = scale * top_k(softmax(W x)).

    Paper: arXiv 2401.06066 (DeepSeekMoE). Vendor: MoEGate in modeling_deepseekv2.py. Omits: the expert indices;
    group-limited routing and normalised weights. Axes: b sequences, s tokens, d width, E routed experts, k active ones.

    >>> Router(d=4, E=8, k=2).forward_tensor_core_flops(b=1, s=3) == 2 * 3 * 4 * 8
    True
    """

    d: Size
    E: Size
    k: Size
    sizes = "b s"

    def check(self) -> None:
        if below(self.E, self.k):
            sentence = f"active experts k={self.k} cannot exceed routed experts E={self.E}"
            raise InputError(f"{type(self).__name__}: {sentence}")

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield copy("_x:32[b s d] = x[b s d]", n)
        yield copy("_w:32[E d] = W_router[E d]", n)
        yield matmul("_l:32[b s E] = _x:32[b s d] * _w:32[E d]", n)
        yield softmax("_p:32[b s E] = _l:32[b s E]", n, row="E")
        yield pointwise("y:32[b s k] = _p:32[b s E]", TOP_K, n, over="b s k E")
        yield pointwise("y:32[b s k] = y:32[b s k]", MUL, n)


@dataclass(frozen=True)
class Experts(BaseLayer):
    """The routed experts of a mixture: y = sum over the chosen of w_i W_down (silu(W_gate x) * W_up x).

    Vendor: DeepseekV2MoE.moe_infer in modeling_deepseekv2.py. Paper: arXiv 2401.06066 (DeepSeekMoE).
    Axes: b sequences, s tokens, d hidden width, E experts, k active ones, f width of one, D distinct ones.

    >>> Experts(d=4, E=3, f=5).cost(b=1, s=1, k=2).weight_io_bytes == 2 * (2 * 3 * 4 * 5)
    True
    """

    d: Size
    E: Size
    f: Size
    sizes = "b s k"
    inputs = "x w"
    one_matrix: ClassVar[bool] = False
    """Whether gate and up of all experts are one matrix of the checkpoint."""

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(D=expected_distinct(n.E, n.k, n.b * n.s), K=n.k - 1)
        yield copy("xs[b s k d] = x[b s d]", n, GATHER)
        gate = matmul("_g[b s k f] = xs[b s k d] * W_gate[E:D d f]", n, over="b s k d f")
        up = matmul("_u[b s k f] = xs[b s k d] * W_up[E:D d f]", n, over="b s k d f")
        yield from gated(gate, up, n, "b s k f", one_matrix=self.one_matrix)
        yield matmul("o[b s k d] = _h[b s k f] * W_down[E:D f d]", n, over="b s k d f")
        yield pointwise("wo:32[b s k d] = o[b s k d] * w:32[b s k]", MUL, n)
        yield copy("_r:32[b s k d] = wo:32[b s k d]", n, SCATTER)
        yield pointwise("y[b s d] = _r:32[b s k d]", COMBINE, n, over="b s K d")


@dataclass(frozen=True)
class Mixture(BaseLayer):
    """A mixture of gated MLPs: k of E routed experts a token, and shared ones.

    y = sum over the k chosen of w_i expert_i(x) + shared(x). Stored are E experts, read the distinct ones that the
    call's tokens reach: D = E (1 - (1 - k/E)^(b s)), expected under uniform routing. Tokens are copied to experts;
    results are weighted and put back in order in fp32. Omits: finding the order of tokens by expert.
    Paper: arXiv 2401.06066 (DeepSeekMoE). Vendor: DeepseekV2MoE in modeling_deepseekv2.py.
    Axes: b sequences, s tokens, d hidden width, f width of one expert, E experts, k active ones.

    >>> moe = Mixture(Router(d=4, E=1, k=1), f=3, shared=None)
    >>> moe.forward_tensor_core_flops(b=1, s=5) == 3 * 2 * 5 * 4 * 3 + 2 * 5 * 4
    True
    """

    gate: Router
    f: Size
    shared: GatedMLP | None
    sizes = "b s"
    experts: ClassVar[type[Experts]] = Experts

    d = property(attrgetter("gate.d"))

    def check(self) -> None:
        self.require_equal(router=self.gate.d, shared_experts=self.shared and self.shared.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from self.gate.at(n, "gate", x="x", y="w")
        experts = self.experts(self.gate.d, self.gate.E, self.f)
        yield from experts.at(n, "experts", k=self.gate.axes["k"], x="x", w="w", y="e" if self.shared else "y")
        if self.shared is not None:
            yield from self.shared.at(n, "shared", x="x", y="m")
            yield pointwise("y[b s d] = e[b s d] + m[b s d]", ADD, n.bind(d=self.gate.d))
