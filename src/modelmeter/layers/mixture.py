"""Mixtures of experts: the router and the experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

from modelmeter.errors import InputError, choose
from modelmeter.graph.forms import ACTIVATIONS, ADD, COMBINES, GATHERS, MUL, SCATTER, SIGMOID, TOP_K
from modelmeter.graph.ops import Op, copy, matmul, pointwise, softmax
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, require_divisible
from modelmeter.layers.mlp import GatedMLP, gated
from modelmeter.sizes import Size, below, expected_distinct, ratio


@dataclass(frozen=True)
class Router(BaseLayer):
    """The router of a mixture: softmax, the k largest, scaled. y = scale * top_k(softmax(W x)).

    `scores` are the softmax or sigmoid of all logits, or the softmax of those chosen. Logits are made in fp32 (`wide`)
    or in the format of activations, with a `bias`. Experts are chosen by scores plus a `correction` (a parameter, or a
    buffer that is none), from the `kept` best of G groups, each judged by the sum of its `best` scores, or by its
    largest. Chosen scores are divided by their sum (`renormalised`, the sum kept from 0 by a tiny addend or a clamp:
    `guarded`), then scaled; they are fp32, or in the end cast to the format of activations (`narrow`).
    Paper: arXiv 2401.06066 (DeepSeekMoE), 2412.19437 (DeepSeek-V3). Vendor: MoEGate in modeling_deepseekv2.py;
    DeepseekV3TopkRouter, Ernie4_5_MoeTopKRouter, Qwen2MoeTopKRouter and GptOssTopKRouter in transformers.
    Omits: the expert indices. Axes: b sequences, s tokens, d width, E routed experts, k active ones, G groups.

    >>> Router(d=4, E=8, k=2).forward_tensor_core_flops(b=1, s=3) == 2 * 3 * 4 * 8
    True
    """

    d: Size
    E: Size
    k: Size
    scores: str = "softmax"
    wide: bool = True
    bias: bool = False
    correction: str = "none"
    G: Size | None = None
    kept: Size | None = None
    best: Size | None = None
    renormalised: bool = False
    guarded: bool = False
    scaled: bool = True
    narrow: bool = False
    sizes = "b s"
    buffers = property(lambda self: "correction" if self.correction == "buffer" else "")

    def check(self) -> None:
        choose("scores", self.scores, ("softmax", "sigmoid", "chosen"))
        choose("correction", self.correction, ("none", "parameter", "buffer"))
        kind, groups = type(self).__name__, (self.G, self.kept)
        if (self.G is None) != (self.kept is None):
            raise InputError(f"{kind}: groups G and the groups kept go together, not {self.G} and {self.kept}")
        if below(self.E, self.k):
            sentence = f"active experts k={self.k} cannot exceed routed experts E={self.E}"
            raise InputError(f"{kind}: {sentence}")
        if None not in groups:
            require_divisible(kind, "routed experts", self.E, "groups", self.G)
            if self.best is not None and below(ratio(self.E, self.G), self.best):
                raise InputError(f"{kind}: a group of {ratio(self.E, self.G)} experts has no best {self.best}")
            if below(self.G, self.kept):
                raise InputError(f"{kind}: groups kept, {self.kept}, cannot exceed groups G={self.G}")

    def ops(self, n: Sizes) -> Iterator[Op]:
        x, weights, wide = "x[b s d]", "W_router[E d]", ":32" if self.wide else ""
        if self.wide:
            yield copy(f"_x:32[b s d] = {x}", n)
            yield copy(f"_w:32[E d] = {weights}", n)
            x, weights = "_x:32[b s d]", "_w:32[E d]"
        yield matmul(f"_l{wide}[b s E] = {x} * {weights}" + " + W_brouter[E]" * self.bias, n)
        if self.scores == "chosen":
            yield pointwise("y:32[b s k] = _l" + wide + "[b s E]", TOP_K, n, over="b s k E")
            yield softmax("y:32[b s k] = y:32[b s k]", n, row="k")
            return
        scores = f"_p:32[b s E] = _l{wide}[b s E]"
        yield softmax(scores, n, row="E") if self.scores == "softmax" else pointwise(scores, SIGMOID, n)
        y = "top:32[b s k]" if self.narrow else "y:32[b s k]"
        yield from self._chosen(n, y)
        if self.renormalised:
            yield pointwise(f"_sum:32[b s] = {y}", ADD, n.bind(K=n.k - 1), over="b s K")
            if self.guarded:
                yield pointwise("_sum:32[b s] = _sum:32[b s]", ADD, n)
            yield pointwise(f"{y} = {y} * _sum:32[b s]", MUL, n)
        if self.scaled:
            yield pointwise(f"{y} = {y}", MUL, n)
        if self.narrow:
            yield copy(f"y[b s k] = {y}", n)

    def _chosen(self, n: Sizes, y: str) -> Iterator[Op]:
        """The k largest: y from the scores _p."""
        by = "_p:32[b s E]"
        if self.correction != "none":
            name = "correction:32[E]" if self.correction == "buffer" else "W_correction:32[E]"
            yield pointwise(f"_c:32[b s E] = {by} * {name}", ADD, n)
            by = "_c:32[b s E]"
        if self.G is not None:
            n = n.bind(each=ratio(n.E, n.G))
            if self.best is not None:
                n = n.bind(more=n.best - 1)
                yield pointwise(f"_b:32[b s G best] = {by}", TOP_K, n, over="b s G best each")
                yield pointwise("_g:32[b s G] = _b:32[b s G best]", ADD, n, over="b s G more")
            else:
                yield pointwise(f"_g:32[b s G] = {by}", TOP_K, n.bind(more=n.each - 1), over="b s G more")
            yield pointwise("_k:32[b s kept] = _g:32[b s G]", TOP_K, n, over="b s kept G")
            yield copy(f"_m:32[b s E] = {by} * _k:32[b s kept]", n)
            by = "_m:32[b s E]"
        yield pointwise(f"{y} = {by}", TOP_K, n, over="b s k E")


@dataclass(frozen=True)
class Experts(BaseLayer):
    """The routed experts of a mixture: y = sum over the chosen of w_i W_down (silu(W_gate x) * W_up x).

    Weights w, and what they multiply, are fp32, or in the format of activations (`narrow`).
    Vendor: DeepseekV2MoE.moe_infer in modeling_deepseekv2.py. Paper: arXiv 2401.06066 (DeepSeekMoE).
    Axes: b sequences, s tokens, d hidden width, E experts, k active ones, f width of one, D distinct ones.

    >>> Experts(d=4, E=3, f=5).cost(b=1, s=1, k=2).weight_io_bytes == 2 * (2 * 3 * 4 * 5)
    True
    """

    d: Size
    E: Size
    f: Size
    activation: str = "silu"
    bias: bool = False
    narrow: bool = False
    sizes = "b s k"
    inputs = "x w"
    one_matrix: ClassVar[bool] = False
    """Whether gate and up of all experts are one matrix of the checkpoint."""

    def check(self) -> None:
        choose("activation", self.activation, (*ACTIVATIONS, "clamped"))

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(D=expected_distinct(n.E, n.k, n.b * n.s), K=n.k - 1)
        bias = [f" + W_b{to}" if self.bias else "" for to in ("gate[E:D f]", "up[E:D f]", "down[E:D d]")]
        wide = "" if self.narrow else ":32"
        yield copy("xs[b s k d] = x[b s d]", n, GATHERS[self.narrow])
        gate = matmul(f"_g[b s k f] = xs[b s k d] * W_gate[E:D d f]{bias[0]}", n, over="b s k d f")
        up = matmul(f"_u[b s k f] = xs[b s k d] * W_up[E:D d f]{bias[1]}", n, over="b s k d f")
        yield from gated(gate, up, n, "b s k f", one_matrix=self.one_matrix, activation=self.activation)
        yield matmul(f"o[b s k d] = _h[b s k f] * W_down[E:D f d]{bias[2]}", n, over="b s k d f")
        yield pointwise(f"wo{wide}[b s k d] = o[b s k d] * w{wide}[b s k]", MUL, n)
        yield copy(f"_r{wide}[b s k d] = wo{wide}[b s k d]", n, SCATTER)
        yield pointwise(f"y[b s d] = _r{wide}[b s k d]", COMBINES[self.narrow], n, over="b s K d")


@dataclass(frozen=True)
class Mixture(BaseLayer):
    """A mixture of gated MLPs: k of E routed experts a token, and shared ones.

    y = sum over the k chosen of w_i expert_i(x) + shared(x). Stored are E experts, read the distinct ones that the
    call's tokens reach: D = E (1 - (1 - k/E)^(b s)), expected under uniform routing. Tokens are copied to experts;
    results are weighted and put back in order in fp32. `activation` and `bias` are those of the routed experts; where
    `weighted` the shared ones are weighted by a sigmoid of a product. Omits: finding the order of tokens by expert.
    Paper: arXiv 2401.06066 (DeepSeekMoE). Vendor: DeepseekV2MoE in modeling_deepseekv2.py.
    Axes: b sequences, s tokens, d hidden width, f width of one expert, E experts, k active ones.

    >>> moe = Mixture(Router(d=4, E=1, k=1), f=3, shared=None)
    >>> moe.forward_tensor_core_flops(b=1, s=5) == 3 * 2 * 5 * 4 * 3 + 2 * 5 * 4
    True
    """

    gate: Router
    f: Size
    shared: GatedMLP | None
    activation: str = "silu"
    bias: bool = False
    weighted: bool = False
    sizes = "b s"
    experts: ClassVar[type[Experts]] = Experts

    d = property(attrgetter("gate.d"))

    def check(self) -> None:
        self.require_equal(router=self.gate.d, shared_experts=self.shared and self.shared.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from self.gate.at(n, "gate", x="x", y="w")
        experts = self.experts(self.gate.d, self.gate.E, self.f, self.activation, self.bias, self.gate.narrow)
        yield from experts.at(n, "experts", k=self.gate.axes["k"], x="x", w="w", y="e" if self.shared else "y")
        if self.shared is not None:
            n = n.bind(d=self.gate.axes["d"])
            yield from self.shared.at(n, "shared", x="x", y="m")
            if self.weighted:
                yield matmul("_s[b s] = x[b s d] * W_share[d]", n)
                yield pointwise("_s[b s] = _s[b s]", SIGMOID, n)
                yield pointwise("m[b s d] = _s[b s] * m[b s d]", MUL, n)
            yield pointwise("y[b s d] = e[b s d] + m[b s d]", ADD, n)
