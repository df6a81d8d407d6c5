"""DeepSeek-V2 decoder layers: gated MLP, router, mixture of experts, decoder layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.constants import ADD, MUL, SILU, TOP_K
from modelmeter.errors import InputError
from modelmeter.layer import BaseLayer
from modelmeter.layers.llama import LlamaAttention, LlamaFlashAttention2
from modelmeter.layers.norm import DeepseekV2RMSNorm
from modelmeter.ops import Op, Sizes, copy, matmul, pointwise, softmax
from modelmeter.sizes import Size, anywhere, expected_distinct


@final
@dataclass(frozen=True)
class DeepseekV2MLP(BaseLayer):
    """A gated MLP (SwiGLU). y = W_down (silu(W_gate x) * W_up x).

    Vendor: DeepseekV2MLP in modeling_deepseekv2.py. Paper: arXiv 2002.05202 (GLU variants).
    Axes: b sequences, s tokens, d hidden width, f intermediate width.

    >>> DeepseekV2MLP(d=2, f=3).forward_tensor_core_flops(b=1, s=5) == 3 * 2 * 5 * 2 * 3
    True
    """

    d: Size
    f: Size
    fused_gate_up: bool = False
    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        if self.fused_gate_up:
            yield matmul("_g[b s f] _u[b s f] = x[b s d] * W_gate_up[d F]", n.bind(F=2 * n.f))
        else:
            yield matmul("_g[b s f] = x[b s d] * W_gate[d f]", n)
        yield pointwise("_g[b s f] = _g[b s f]", SILU, n)
        if not self.fused_gate_up:
            yield matmul("_u[b s f] = x[b s d] * W_up[d f]", n)
        yield pointwise("_h[b s f] = _g[b s f] * _u[b s f]", MUL, n)
        yield matmul("y[b s d] = _h[b s f] * W_down[f d]", n)


@final
@dataclass(frozen=True)
class MoEGate(BaseLayer):
    """The router of a mixture, in fp32. y = scale * top_k(softmax(W x)).

    Vendor: MoEGate in modeling_deepseekv2.py (softmax, greedy). Paper: arXiv 2401.06066 (DeepSeekMoE).
    Omits: the expert indices; group-limited routing and normalised weights, which DeepSeek-V2-Lite
    style models do not use.
    Axes: b sequences, s tokens, d hidden width, E routed experts, k active ones.

    >>> MoEGate(d=4, E=8, k=2).forward_tensor_core_flops(b=1, s=3) == 2 * 3 * 4 * 8
    True
    """

    d: Size
    E: Size
    k: Size
    sizes = "b s"

    def check(self) -> None:
        if anywhere(self.k > self.E):
            raise InputError(f"MoEGate: active experts k={self.k} cannot exceed routed experts E={self.E}")

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield copy("_x:32[b s d] = x[b s d]", n)
        yield copy("_w:32[E d] = W_router[E d]", n)
        yield matmul("_l:32[b s E] = _x:32[b s d] * _w:32[E d]", n)
        yield softmax("_p:32[b s E] = _l:32[b s E]", n, row="E")
        yield pointwise("y:32[b s k] = _p:32[b s E]", TOP_K, n, over="b s k E")
        yield pointwise("y:32[b s k] = y:32[b s k]", MUL, n)


@final
@dataclass(frozen=True)
class DeepseekV2MoE(BaseLayer):
    """A mixture of gated MLPs: k of E routed experts a token, and shared ones.

    y = sum over the k chosen of w_i expert_i(x) + shared(x). Stored are E experts, read the distinct
    ones that the call's tokens reach: D = E (1 - (1 - k/E)^(b s)), expected under uniform routing.
    Vendor: DeepseekV2MoE in modeling_deepseekv2.py. Paper: arXiv 2401.06066 (DeepSeekMoE).
    Tokens are copied to their experts; results are weighted and put back in order in fp32.
    Omits: finding the order of tokens by expert.
    Axes: b sequences, s tokens, d hidden width, f width of one expert, E experts, k active ones.

    >>> moe = DeepseekV2MoE(MoEGate(d=4, E=1, k=1), f=3, shared=None)
    >>> moe.forward_tensor_core_flops(b=1, s=5) == 3 * 2 * 5 * 4 * 3 + 2 * 5 * 4
    True
    """

    gate: MoEGate
    f: Size
    shared: DeepseekV2MLP | None
    fused_gate_up: bool = False
    sizes = "b s"

    def check(self) -> None:
        if self.shared is not None:
            self.require_equal(router=self.gate.d, shared_experts=self.shared.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.gate.d, E=self.gate.E, k=self.gate.k, F=2 * n.f, K=self.gate.k - 1)
        n = n.bind(D=expected_distinct(n.E, n.k, n.b * n.s))
        yield from self.gate.at(n, "gate", x="x", y="w")
        m = n.inside("experts", {}, {"x": "x", "w": "w", "y": "e"})
        yield copy("xs[b s k d] = x[b s d]", m)
        if self.fused_gate_up:
            yield matmul("_g[b s k f] _u[b s k f] = xs[b s k d] * W_gate_up[E:D d F]", m, over="b s k d F")
        else:
            yield matmul("_g[b s k f] = xs[b s k d] * W_gate[E:D d f]", m, over="b s k d f")
        yield pointwise("_g[b s k f] = _g[b s k f]", SILU, m)
        if not self.fused_gate_up:
            yield matmul("_u[b s k f] = xs[b s k d] * W_up[E:D d f]", m, over="b s k d f")
        yield pointwise("_h[b s k f] = _g[b s k f] * _u[b s k f]", MUL, m)
        yield matmul("o[b s k d] = _h[b s k f] * W_down[E:D f d]", m, over="b s k d f")
        yield pointwise("wo:32[b s k d] = o[b s k d] * w:32[b s k]", MUL, m)
        yield copy("_r:32[b s k d] = wo:32[b s k d]", m)
        yield pointwise("y[b s d] = _r:32[b s k d]", ADD, m, over="b s K d")
        if self.shared is None:
            yield copy("y[b s d] = e[b s d]", n)
            return
        yield from self.shared.at(n, "shared", x="x", y="m")
        yield pointwise("y[b s d] = e[b s d] + m[b s d]", ADD, n)


@final
@dataclass(frozen=True)
class DeepseekV2DecoderLayer(BaseLayer):
    """A pre-norm decoder layer with a dense MLP or a mixture.

    h = x + attention(norm(x)); y = h + mlp(norm(h)).
    Vendor: DeepseekV2DecoderLayer in modeling_deepseekv2.py. Paper: arXiv 2405.04434 (DeepSeek-V2).
    Axes: b sequences, s tokens, t context.

    >>> DeepseekV2DecoderLayer.sizes
    'b s t'
    """

    attention: LlamaAttention | LlamaFlashAttention2
    mlp: DeepseekV2MLP | DeepseekV2MoE
    norm: DeepseekV2RMSNorm
    sizes = "b s t"

    def check(self) -> None:
        mlp = self.mlp.d if isinstance(self.mlp, DeepseekV2MLP) else self.mlp.gate.d
        self.require_equal(attention=self.attention.d, mlp=mlp, norm=self.norm.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.attention.d)
        yield from self.norm.at(n, "norm1", x="x", y="h")
        shared = {name: name for name in ("pos", "cos", "sin") if name in n.names}
        yield from self.attention.at(n, "attn", x="h", y="h", **shared)
        yield pointwise("h[b s d] = x[b s d] + h[b s d]", ADD, n)
        yield from self.norm.at(n, "norm2", x="h", y="m")
        yield from self.mlp.at(n, "mlp", x="m", y="m")
        yield pointwise("y[b s d] = h[b s d] + m[b s d]", ADD, n)
