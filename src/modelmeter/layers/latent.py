"""Latent attention: keys and values are products of a cached latent, made again at every call or never made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.errors import choose
from modelmeter.graph.forms import MUL, RMS_NORM, SOFTMAX_IN_FP32
from modelmeter.graph.ops import Op, composite, copy, matmul, norm, pointwise, softmax
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.layers.rotary import ROTATIONS, rotated
from modelmeter.sizes import Size, ratio


@final
@dataclass(frozen=True)
class LatentAttention(BaseLayer):
    """Causal attention whose cache holds a latent and one rotated key for all heads.

    c = norm(W_a x), k = W_b c, v = W_b c, y = W_o softmax(scale q k) v. `latent: expanded` (as transformers does it)
    makes keys and values of the whole context at every call; `latent: absorbed` (as serving engines do) multiplies
    queries by W_b, attends to latents and multiplies the result by W_b: the same products in another order.
    With `low` queries are made in two products with a norm between. Masks are selects, not sums.
    Vendor: DeepseekV3Attention in transformers. Paper: arXiv 2405.04434 (DeepSeek-V2).
    Axes: b sequences, s tokens, t context, d hidden width, h heads, e width of a head's own part, T of its rotated
    part, o width of a value, c width of the latent, low that of the queries' latent.

    >>> LatentAttention(8, 2, e=4, T=2, o=4, c=6).forward_memory_kvcache_bytes(b=1, s=1, t=5) == 5 * (6 + 2) * 2
    True
    """

    d: Size
    h: Size
    e: Size
    T: Size
    o: Size
    c: Size
    low: Size | None = None
    bias: bool = False
    rotation: str = "half"
    sizes = "b s t"
    inputs = "x cos sin"

    def check(self) -> None:
        choose("rotation", self.rotation, ROTATIONS)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n.require(n.t - n.s, "context t={t} must hold the call's own tokens, s={s}, so t >= s")
        n = n.bind(P=n.pairs(n.s, n.t), H=ratio(n.T, 2), z=n.c + n.T, qk=n.e + n.T, kv=n.e + n.o)
        yield from self._queries(n)
        yield matmul("l[b s z] = x[b s d] * W_a[d z]" + " + W_ba[z]" * self.bias, n)
        yield norm("c[b s c] = l[b s z:c] * W_latent_norm[c]", RMS_NORM, n, row="c")
        turned = n.bind(e=n.T)
        yield rotated("q[b s h qk]", "q[b s h qk]", "b s h H", turned, self.rotation)
        yield rotated("k[b s T]", "l[b s z:T]", "b s H", turned, self.rotation)
        yield copy("C_l[b t:s z] = c[b s c] * k[b s T]", n)
        yield from self._absorbed(n) if n.root.choice("latent") == "absorbed" else self._expanded(n)
        yield matmul("y[b s d] = o[b s h o] * W_o[h o d]" + " + W_bo[d]" * self.bias, n)

    def _queries(self, n: Sizes) -> Iterator[Op]:
        if self.low is None:
            yield matmul("q[b s h qk] = x[b s d] * W_q[d h qk]", n)
            return
        yield matmul("_low[b s low] = x[b s d] * W_qa[d low]" + " + W_bqa[low]" * self.bias, n)
        yield norm("_low[b s low] = _low[b s low] * W_query_norm[low]", RMS_NORM, n, row="low")
        yield matmul("q[b s h qk] = _low[b s low] * W_qb[low h qk]", n)

    def _expanded(self, n: Sizes) -> Iterator[Op]:
        yield matmul("kv[b t h kv] = C_l[b t z:c] * W_b[c h kv]", n)
        yield copy("k[b t h qk] = kv[b t h kv:e] * C_l[b t z:T]", n)
        yield from self._attended("q[b s h qk]", "k[b t h qk]", "o[b s h o]", "kv[b t h kv:o]", "qk", "o", n)

    def _absorbed(self, n: Sizes) -> Iterator[Op]:
        yield matmul("_u[b s h c] = q[b s h qk:e] * W_b[c h kv:e]", n)
        yield copy("u[b s h z] = _u[b s h c] * q[b s h qk:T]", n)
        yield from self._attended("u[b s h z]", "C_l[b t z]", "_o[b s h c]", "C_l[b t z:c]", "z", "c", n)
        yield matmul("o[b s h o] = _o[b s h c] * W_b[c h kv:o]", n)

    def _attended(self, q: str, k: str, o: str, v: str, inner: str, outer: str, n: Sizes) -> Iterator[Op]:
        a, p = "a[b h s t]", "p[b h s t]"
        return composite(
            "attention",
            matmul(f"{a} = {q} * {k}", n, over=f"b h P {inner}"),
            pointwise(f"{a} = {a}", MUL, n, over="b h P"),
            softmax(f"{p} = {a}", n, row="t", over="b h P", form=SOFTMAX_IN_FP32),
            matmul(f"{o} = {p} * {v}", n, over=f"b h P {outer}"),
            mask="mask[b s t]",
        )
