"""LLaMA-style causal attention with rotary positions, grouped KV heads and a KV cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

from modelmeter.constants import MUL, ROTARY_TABLE, ROTATE_PAIR
from modelmeter.errors import InputError
from modelmeter.layer import BaseLayer, rebuild, require_divisible, walk
from modelmeter.ops import Op, Sizes, copy, fuse, matmul, pointwise, softmax
from modelmeter.sizes import Size, anywhere, as_size, ratio


@final
@dataclass(frozen=True)
class LlamaRotaryEmbedding(BaseLayer):
    """The cos and sin tables of rotary positions, in fp32.

    f = position * inv_freq, cos(f), sin(f). With `rotary: vendor` the products are a batched matmul,
    done in every layer; with `rotary: transformers` they are elementwise, done once a model.
    Vendor: LlamaRotaryEmbedding in transformers 4.46. Paper: arXiv 2104.09864 (RoFormer).
    Axes: b sequences, s tokens, e head width.

    >>> LlamaRotaryEmbedding(e=128).forward_tensor_core_flops(b=1, s=512)
    65536
    """

    e: Size
    sizes = "b s"

    def check(self) -> None:
        require_divisible("LlamaRotaryEmbedding", "head width", self.e, "a pair's width", 2)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(H=ratio(n.e, 2))
        if n.options.rotary == "vendor":
            yield matmul("_f:32[b s H] = freq:32[b H] * pos:32[b s]", n, over="b s H", grad=False)
        else:
            yield pointwise("_f:32[b s H] = freq:32[H] * pos:32[b s]", MUL, n)._replace(grad=False)
        yield pointwise("cos[b s e] sin[b s e] = _f:32[b s H]", ROTARY_TABLE, n)._replace(grad=False)


@dataclass(frozen=True)
class _CausalAttention(BaseLayer):
    d: Size
    g: Size
    r: Size
    e: Size
    rotary: LlamaRotaryEmbedding
    fused_qkv: bool = False
    sizes = "b s t"

    def check(self) -> None:
        self.require_equal(head_width=self.e, rotary_width=self.rotary.e)

    @property
    @abstractmethod
    def flash_only(self) -> bool:
        """Whether the scores never leave the chip, whatever the execution."""

    def ops(self, n: Sizes) -> Iterator[Op]:
        if anywhere(n.s > n.t):
            raise InputError(f"context t={n.t} must hold the call's own tokens, s={n.s}, so t >= s")
        pairs = n.s * n.t if n.options.causal == "full" else ratio(n.s * (2 * n.t - n.s + 1), 2)
        n = n.bind(P=pairs, Q=n.g * n.e * (n.r + 2), H=ratio(n.e, 2))
        if self.fused_qkv:
            yield matmul("q[b s g r e] k[b s g e] v[b s g e] = x[b s d] * W_qkv[d Q]", n)
        else:
            yield matmul("q[b s g r e] = x[b s d] * W_q[d g r e]", n)
            yield matmul("k[b s g e] = x[b s d] * W_k[d g e]", n)
            yield matmul("v[b s g e] = x[b s d] * W_v[d g e]", n)
        if n.options.rotary == "vendor":
            yield from self.rotary.at(n, "rotary", cos="cos", sin="sin", pos="pos", freq="freq")
        yield pointwise("q[b s g r e] = q[b s g r e] * cos[b s e] * sin[b s e]", ROTATE_PAIR, n, over="b s g r H")
        yield pointwise("k[b s g e] = k[b s g e] * cos[b s e] * sin[b s e]", ROTATE_PAIR, n, over="b s g H")
        yield copy("C_k[b s g e] = k[b s g e]", n)
        yield copy("C_v[b s g e] = v[b s g e]", n)
        yield from fuse(
            matmul("a[b g r s t] = q[b s g r e] * C_k[b t g e]", n, over="b g r P e"),
            pointwise("a[b g r s t] = a[b g r s t]", MUL, n, over="b g r P"),
            softmax("p[b g r s t] = a[b g r s t]", n, row="t", over="b g r P"),
            matmul("o[b s g r e] = p[b g r s t] * C_v[b t g e]", n, over="b g r P e"),
            keep="a p",
            always=self.flash_only,
        )
        yield copy("o[b s g r e] = o[b s g r e]", n)
        yield matmul("y[b s d] = o[b s g r e] * W_o[g r e d]", n)


def attention_layers(node: Any) -> list[_CausalAttention]:
    """The causal attention layers in a model or layer, each counted once however often it is repeated."""
    return [layer for layer in walk(node) if isinstance(layer, _CausalAttention)]


def with_heads(node: Any, heads: Size, kv_heads: Size) -> Any:
    """A model or layer whose causal attention has other heads at the same hidden width, ints or arrays.

    The head width becomes hidden width / heads, as the vendors' codes have it. Raises InputError where
    heads do not divide the hidden width, or KV heads not the heads.
    """
    heads, kv_heads = as_size("heads", heads), as_size("KV heads", kv_heads)
    hidden = attention_layers(node)[0].d
    require_divisible("attention", "hidden size", hidden, "heads", heads)
    require_divisible("attention", "heads", heads, "KV heads", kv_heads)
    r, e = ratio(heads, kv_heads), ratio(hidden, heads)
    rotary = LlamaRotaryEmbedding(e)

    def change(layer: BaseLayer) -> BaseLayer:
        if isinstance(layer, _CausalAttention):
            return replace(layer, g=kv_heads, r=r, e=e, rotary=rotary)
        return rotary if isinstance(layer, LlamaRotaryEmbedding) else layer

    return rebuild(node, change)


@final
@dataclass(frozen=True)
class LlamaAttention(_CausalAttention):
    """Causal attention of s queries on a cache of t keys, their own included.

    y = W_o softmax(scale rope(q) rope(k)) v. New keys and values are written to the cache, all of
    it is read. Counted full (s t pairs) or exact, s (2t - s + 1) / 2. Masks are selects, not sums.
    Vendor: LlamaAttention in transformers 4.46. Paper: arXiv 2302.13971, GQA 2305.13245.
    Omits: the temporaries of rotating, the copy of the old cache by a concatenating cache.
    Axes: b sequences, s tokens, t context, d hidden width, g KV heads, r queries per KV head, e head width.

    >>> layer = LlamaAttention(8, 1, 2, 4, LlamaRotaryEmbedding(4))
    >>> layer.forward_memory_kvcache_bytes(b=1, s=1, t=5) == 2 * 5 * 4 * 2
    True
    """

    @property
    def flash_only(self) -> bool:
        return False


@final
@dataclass(frozen=True)
class LlamaFlashAttention2(_CausalAttention):
    """LlamaAttention on the FlashAttention-2 kernel: its scores stay on chip in any execution.

    The same equations. Vendor: LlamaFlashAttention2 in transformers 4.46. Paper: arXiv 2307.08691.
    Axes: as LlamaAttention.

    >>> flash, plain = (c(8, 1, 2, 4, LlamaRotaryEmbedding(4)) for c in (LlamaFlashAttention2, LlamaAttention))
    >>> flash.forward_io_bytes(b=1, s=3, t=3, execution="eager") == plain.forward_io_bytes(b=1, s=3, t=3)
    True
    """

    @property
    def flash_only(self) -> bool:
        return True
