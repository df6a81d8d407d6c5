"""Attention: causal with a KV cache, bidirectional over a sequence, over a grid of patches, across sequences.

The core is the same equations everywhere; whether it is one kernel is a runtime's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from modelmeter.errors import InputError, choose
from modelmeter.graph.forms import ADD, CAP, MUL, NARROW_SOFTMAX, SINK_SOFTMAX, SOFTMAX_IN_FP32, Form
from modelmeter.graph.ops import Op, composite, copy, matmul, pointwise, softmax, unused
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, rebuild, require_divisible, walk
from modelmeter.layers.latent import LatentAttention
from modelmeter.layers.norm import Norm
from modelmeter.layers.rotary import ROTATIONS, RotaryTable, inputs_of, rotation
from modelmeter.sizes import Size, as_size, differ, minimum, ratio


@dataclass(frozen=True)
class CausalAttention(BaseLayer):
    """Causal attention of s queries on a cache of t keys, their own included, with grouped KV heads.

    y = W_o softmax(scale rope(q) rope(k)) v. New keys and values are written to the cache, all that a query can see is
    read. Counted full (s t pairs) or exact, s (2t - s + 1) / 2. Masks are selects, not sums. With a `window` a query
    sees that many positions, its own included, and the cache holds what the next query sees of them: one less.
    `rotary` makes the tables of cos and sin in the layer; without it the layer is given them.
    `turned` elements of a head are rotated (None: all), by the `rotation` (ROTATIONS; none: no rotary positions).
    `bias` are the projections (of q, k, v, o) that have one; `one_matrix` says that q, k and v are one of the
    checkpoint; `q_norm` and `k_norm` normalise heads, or all heads as one, before they are rotated; `capped` scores are
    c tanh(x / c); `sinks` are one more learnt score a head that no value belongs to; `wide`: the softmax runs in fp32.
    Vendor: LlamaAttention in transformers 5. Paper: arXiv 2302.13971, GQA 2305.13245.
    Axes: b sequences, s tokens, t context, d hidden width, g KV heads, r queries per KV head, e head width.

    >>> layer = CausalAttention(8, 1, 2, 4, window=3)
    >>> [layer.forward_memory_kvcache_bytes(b=1, s=1, t=t) // (2 * 4 * 2) for t in (1, 2, 9)]
    [1, 2, 2]
    """

    d: Size
    g: Size
    r: Size
    e: Size
    rotary: BaseLayer | None = None
    window: Size | None = None
    turned: Size | None = None
    rotation: str = "half"
    bias: str = ""
    one_matrix: bool = False
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    capped: bool = False
    sinks: bool = False
    wide: bool = True
    sizes = "b s t"
    one_kernel: ClassVar[bool] = False
    """Whether the scores never leave the chip, whatever the runtime."""
    inputs = property(lambda self: inputs_of(self.rotation, self.rotary))

    def check(self) -> None:
        choose("rotation", self.rotation, (*ROTATIONS, "none"))
        if isinstance(self.rotary, RotaryTable):
            self.require_equal(rotated_width=self.e if self.turned is None else self.turned, rotary_width=self.rotary.e)
        for name, norm, heads in (("q_norm", self.q_norm, self.g * self.r), ("k_norm", self.k_norm, self.g)):
            if norm is not None and differ(norm.d, self.e) and differ(norm.d, heads * self.e):
                fits = f"a head, {self.e}, or of all heads, {heads * self.e}"
                raise InputError(f"{type(self).__name__}.{name} must have the width of {fits}, not {norm.d}")

    def ops(self, n: Sizes) -> Iterator[Op]:
        n.require(n.t - n.s, "context t={t} must hold the call's own tokens, s={s}, so t >= s")
        window = None if self.window is None else n.window
        n = n.bind(P=n.pairs(n.s, n.t, window), m=n.t if window is None else minimum(n.t, window - 1))
        if window is not None:
            n = n.bind(t=minimum(n.t, window + n.s - 1), context=n.t)
        made = [self._projected("q", "g r e", n), self._projected("k", "g e", n), self._projected("v", "g e", n)]
        yield from composite("projections", *made, always=True) if self.one_matrix else made
        for x, norm, width in (("q", self.q_norm, n.g * n.r * n.e), ("k", self.k_norm, n.g * n.e)):
            if norm is not None:
                yield from norm.at(n, f"{x}_norm", s=n.s * ratio(width, norm.axes["d"]), x=x, y=x)
        if self.rotary is not None:
            yield from self.rotary.at(n, "rotary", y="cos", sin="sin", pos="pos")
        if self.rotation != "none":
            yield from rotation(n, self.rotation, self.axes.get("turned"))
        n = n.bind(w=n.s if window is None else minimum(n.s, window - 1))
        yield copy("C_k[b m:w g e] = k[b s:w g e]", n)
        yield copy("C_v[b m:w g e] = v[b s:w g e]", n)
        yield from self._attended(n)
        yield matmul("y[b s d] = o[b s g r e] * W_o[g r e d]" + " + W_bo[d]" * ("o" in self.bias), n)

    def _projected(self, to: str, axes: str, n: Sizes) -> Op:
        bias = f" + W_b{to}[{axes}]" if to in self.bias else ""
        return matmul(f"{to}[b s {axes}] = x[b s d] * W_{to}[d {axes}]{bias}", n)

    def _attended(self, n: Sizes) -> Iterator[Op]:
        shares = "p[b g r s t] = a[b g r s t]"
        parts = [
            matmul("a[b g r s t] = q[b s g r e] * C_k[b m:t g e]", n, over="b g r P e"),
            pointwise("a[b g r s t] = a[b g r s t]", MUL, n, over="b g r P"),
        ]
        if self.capped:
            parts.append(pointwise("a[b g r s t] = a[b g r s t]", CAP, n, over="b g r P"))
        plain = SOFTMAX_IN_FP32 if self.wide else NARROW_SOFTMAX
        sinks, form = (" * W_sinks[g r]", SINK_SOFTMAX) if self.sinks else ("", plain)
        parts.append(softmax(shares + sinks, n, row="t", over="b g r P", form=form))
        parts.append(matmul("o[b s g r e] = p[b g r s t] * C_v[b m:t g e]", n, over="b g r P e"))
        return composite("attention", *parts, always=self.one_kernel, mask="mask[b s t]")


@dataclass(frozen=True)
class _MultiHead(BaseLayer):
    d: Size
    h: Size
    e: Size
    one_matrix: ClassVar[bool] = False
    """Whether q, k and v are one matrix of the checkpoint: one kernel everywhere."""

    def check(self) -> None:
        kind = type(self).__name__
        require_divisible(kind, "hidden size", self.d, "heads", self.h)
        if differ(self.d, self.h * self.e):
            heads = f"heads {self.h} x head width, so head width {self.d // self.h}, not {self.e}"
            raise InputError(f"{kind}: hidden size {self.d} must be {heads}")

    def projected(self, n: Sizes, axes: str) -> Iterator[Op]:
        """q, k and v of x over these axes."""
        ops = [matmul(f"{to}[{axes} h e] = x[{axes} d] * W_{to}[d h e] + W_b{to}[h e]", n) for to in "qkv"]
        return composite("projections", *ops, always=True) if self.one_matrix else iter(ops)

    def attended(
        self, n: Sizes, at: str, to: str, *bias: Op, merged: str = "", kept: str = "", form: Form = SOFTMAX_IN_FP32
    ) -> Iterator[Op]:
        """What the queries over the axes `at` see of the keys and values over `to`, `kept` in a cache (C_) or not."""
        a, p = f"a[b h {at} {to}]", f"p[b h {at} {to}]"
        scores = matmul(f"{a} = q[b {at} h e] * {kept}k[b {to} h e]", n)
        shares = softmax(f"{p} = {a}", n, row=to, form=form)
        seen = matmul(f"o[b {at} h e] = {p} * {kept}v[b {to} h e]", n)
        return composite("attention", scores, pointwise(f"{a} = {a}", MUL, n), *bias, shares, seen, merged=merged)


@dataclass(frozen=True)
class SelfAttention(_MultiHead):
    """Bidirectional multi-head attention with biases.

    y = W_out softmax(scale q k) v. Vendor: CLIPAttention in transformers. Paper: arXiv 1706.03762.
    Axes: b images, s tokens (t of them as keys), h heads, e head width.

    >>> SelfAttention(d=4, h=2, e=2).forward_tensor_core_flops(b=1, s=3) == 2 * (4 * 3 * 16 + 2 * 9 * 4)
    True
    """

    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(t=n.s)
        yield from self.projected(n, "b s")
        yield from self.attended(n, "s", "t")
        yield matmul("y[b s d] = o[b s h e] * W_out[h e d] + W_bout[d]", n)


@final
@dataclass(frozen=True)
class CrossAttention(_MultiHead):
    """Attention of a decoder's tokens to the features of an encoder, with biases and a cache that does not grow.

    y = W_out softmax(scale q k) v; k and v are made of `features`, once, and kept. Where the cache is `filled`, it is
    read alone: what makes keys and values is stored and unused. No mask: every token sees every feature.
    Vendor: MBartAttention with key_value_states and an EncoderDecoderCache in transformers. Paper: arXiv 1706.03762.
    Axes: b sequences, s tokens, source features, h heads, e head width.

    >>> first, later = (CrossAttention(d=4, h=2, e=2, filled=filled) for filled in (False, True))
    >>> [layer.forward_tensor_core_flops(b=1, s=1, source=5) for layer in (first, later)]
    [464, 144]
    >>> {layer.forward_memory_kvcache_bytes(b=1, s=1, source=5) for layer in (first, later)} == {2 * 5 * 4 * 2}
    True
    """

    filled: bool = False
    sizes = "b s source"
    inputs = property(lambda self: "x" if self.filled else "x features")

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield matmul("q[b s h e] = x[b s d] * W_q[d h e] + W_bq[h e]", n)
        keys = "[b source h e]"
        made = [matmul(f"{to}{keys} = features[b source d] * W_{to}[d h e] + W_b{to}[h e]", n) for to in "kv"]
        yield from unused(made) if self.filled else made
        if not self.filled:
            yield from (copy(f"C_{to}{keys} = {to}{keys}", n) for to in "kv")
        yield from self.attended(n, "s", "source", kept="C_", form=NARROW_SOFTMAX)
        yield matmul("y[b s d] = o[b s h e] * W_out[h e d] + W_bout[d]", n)


@dataclass(frozen=True)
class GridAttention(_MultiHead):
    """Attention over a grid of patches, with decomposed relative positions as an additive bias.

    a = scale q k + q Rh + q Rw, y = W_proj softmax(a) v. The bias is a tensor of its own that attention kernels read.
    The checkpoint has one matrix for q, k and v; code merges the batch axis with the heads.
    Vendor: SamVisionAttention in transformers. Paper: arXiv 2112.01526 (MViTv2).
    Omits: the interpolation of the tables to other grids, the layout copies of the bias halves.
    Axes: b windows or images, u x v their patches, h heads, e head width, `side` of the trained grid.

    >>> layer = GridAttention(d=4, h=2, e=2, side=3)
    >>> layer.forward_tensor_core_flops(b=1, u=3, v=3) == 2 * 9 * 4 * (4 * 4 + 2 * 9 + 2 * 3)
    True
    """

    side: Size
    relative: bool = True
    sizes = "b u v"
    one_matrix = True

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(i=n.u, j=n.v, R=2 * n.side - 1)
        yield from self.projected(n, "b u v")
        bias = []
        if self.relative:
            yield copy("_Rh[u i e] = W_rel_h[R e]", n)
            yield matmul("bh[b h u v i] = q[b u v h e] * _Rh[u i e]", n)
            yield copy("_Rw[v j e] = W_rel_w[R e]", n)
            yield matmul("bw[b h u v j] = q[b u v h e] * _Rw[v j e]", n)
            yield pointwise("bias[b h u v i j] = bh[b h u v i] + bw[b h u v j]", ADD, n)
            bias = [pointwise("a[b h u v i j] = a[b h u v i j] + bias[b h u v i j]", ADD, n)]
        yield from self.attended(n, "u v", "i j", *bias, merged="b")
        yield matmul("y[b u v d] = o[b u v h e] * W_proj[h e d] + W_bproj[d]", n)


def attention_layers(node: Any) -> list[CausalAttention]:
    """The causal attention layers in a model or layer, each counted once however often it is repeated."""
    return [layer for layer in walk(node) if isinstance(layer, CausalAttention)]


def heads_of(node: Any) -> tuple[Size, Size]:
    """Heads and KV heads of a model's attention; of latent attention its heads, of which all share one key."""
    for layer in walk(node):
        if isinstance(layer, CausalAttention):
            return layer.g * layer.r, layer.g
        if isinstance(layer, LatentAttention):
            return layer.h, 1
    raise InputError("there is no causal attention")


def with_heads(node: Any, heads: Size, kv_heads: Size) -> Any:
    """A model or layer whose causal attention has other heads at the same hidden width, ints or arrays.

    The head width becomes hidden width / heads. Raises InputError where heads do not divide the hidden width, or KV
    heads not the heads.
    """
    heads, kv_heads = as_size("heads", heads), as_size("KV heads", kv_heads)
    if not attention_layers(node):
        raise InputError("attention: there are no KV heads that could be changed")
    hidden = attention_layers(node)[0].d
    require_divisible("attention", "hidden size", hidden, "heads", heads)
    require_divisible("attention", "heads", heads, "KV heads", kv_heads)
    r, e = ratio(heads, kv_heads), ratio(hidden, heads)

    def change(layer: BaseLayer) -> BaseLayer:
        if isinstance(layer, CausalAttention):
            if layer.turned is not None or layer.q_norm or layer.k_norm:
                raise InputError("attention: heads that are normalised or rotated in part cannot be given other widths")
            return replace(layer, g=kv_heads, r=r, e=e, rotary=layer.rotary and change(layer.rotary))
        if isinstance(layer, CrossAttention):
            raise InputError("attention: a decoder with cross attention cannot be given other heads")
        return replace(layer, e=e) if isinstance(layer, RotaryTable) else layer

    return rebuild(node, change)
