"""Layers that scan: a state of fixed size takes the place of keys and values, whatever the context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.errors import choose
from modelmeter.graph.forms import ADD, EXP, L2_NORM, LOG_DECAY, MASKED_SUB_EXP, MUL, RMS_NORM, SIGMOID, SILU, SUB_EXP
from modelmeter.graph.ops import Op, composite, conv2d, copy, matmul, norm, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.sizes import Size, ceil_div, maximum, minimum

FORMS = ("chunked", "step")


@final
@dataclass(frozen=True)
class GatedDeltaNet(BaseLayer):
    """Linear attention by the gated delta rule: a state a head that decays and corrects what it holds under a key.

    S = a S + k beta (v - (a S) k), o = S q, y = W_out(norm(o) silu(z)), with q, k, v = silu(conv(W_qkv x)), q and k of
    length 1, beta = sigmoid(W_b x), log a = -exp(A) softplus(W_a x + dt). `form: chunked` (prefill, from an empty
    state) solves a triangular system for the C tokens of each chunk, C (C - 1) FLOPs a column of the right-hand side,
    then goes from chunk to chunk. `form: step` (decode) goes token by token, without a matmul on the state. Both have
    the same weights and leave the same cache: the state in fp32 and the last p positions of what is convolved.
    Vendor: Qwen3NextGatedDeltaNet in transformers. Paper: arXiv 2412.06464 (Gated Delta Networks).
    Omits: a state that the chunked form starts from, the exponential of A (no input is in it), layout copies; written
    out, the chunked form holds the states of all chunks.
    Axes: b sequences, s tokens, d hidden width, g key heads, r value heads per key head (h = g r), e width of a key,
    o of a value, p positions of the convolution, c = 2 g e + h o its channels, C tokens of a chunk, N chunks.

    >>> layer = GatedDeltaNet(d=8, g=1, r=2, e=4, o=3, p=4)
    >>> [layer.forward_memory_kvcache_bytes(b=1, s=s) == 4 * (2 * 4 * 3) + 2 * 4 * (2 * 4 + 2 * 3) for s in (1, 500)]
    [True, True]
    """

    d: Size
    g: Size
    r: Size
    e: Size
    o: Size
    p: Size = 4
    C: Size = 64
    form: str = "chunked"
    sizes = "b s"

    def check(self) -> None:
        choose("form", self.form, FORMS)

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(h=n.g * n.r, e=n.e, o=n.o, p=n.p, more=n.e - 1, l=1)
        n = n.bind(c=2 * n.g * n.e + n.h * n.o)
        qkv, z = matmul("m[b s c] = x[b s d] * W_qkv[d c]", n), matmul("z[b s h o] = x[b s d] * W_z[d h o]", n)
        yield from composite("projections", qkv, z, always=True)  # of one matrix each
        beta, a = (matmul(f"{to}[b s h] = x[b s d] * W_{to}[d h]", n) for to in ("beta", "a"))
        yield from composite("projections", beta, a, always=True)
        yield from self._convolved(n) if self.form == "chunked" else self._convolved_step(n)
        yield pointwise("_beta[b s h] = beta[b s h]", SIGMOID, n)
        yield pointwise("_a:32[b s h] = a[b s h] * W_dt[h] * W_A[h]", LOG_DECAY, n)
        yield copy("beta:32[b h s] a:32[b h s] = _beta[b s h] * _a:32[b s h]", n)
        yield norm("q:32[b h s e] = q:32[b h s e]", L2_NORM, n, row="e")
        yield norm("k:32[b h s e] = k:32[b h s e]", L2_NORM, n, row="e")
        yield pointwise("q:32[b h s e] = q:32[b h s e]", MUL, n)
        yield from self._chunked(n) if self.form == "chunked" else self._step(n)
        yield pointwise("_z:32[b s h o] = z[b s h o]", SILU, n)
        yield norm("_o[b s h o] = _o[b s h o] * W_norm[o]", RMS_NORM, n, row="o")
        yield pointwise("_o[b s h o] = _o[b s h o] * _z:32[b s h o]", MUL, n)
        yield matmul("y[b s d] = _o[b s h o] * W_out[h o d]", n)

    def _convolved(self, n: Sizes) -> Iterator[Op]:
        """Padded by the kernel on both sides; a sequence shorter than the cached positions is padded to these."""
        n = n.bind(i=maximum(n.s, n.p), m=minimum(n.s, n.p))
        n = n.bind(u=n.i + n.p - 1)
        yield conv2d("_m[b u c] = m[b s c] * W_conv[c p]", n)
        yield copy("C_conv[b p c] = m[b s:m c]", n)
        yield pointwise("_c[b i c] = _m[b u:i c]", SILU, n)
        yield copy("q:32[b h s e] k:32[b h s e] v:32[b h s o] = _c[b i:s c]", n)

    def _convolved_step(self, n: Sizes) -> Iterator[Op]:
        """Behind the cached positions, without padding: one position more than there are tokens."""
        n = n.bind(i=n.p + n.s, u=n.s + 1)
        yield copy("m[b i c] = C_conv[b p c] * m[b s c]", n)
        yield conv2d("_m[b u c] = m[b i c] * W_conv[c p]", n)
        yield copy("C_conv[b p c] = m[b i:p c]", n)
        yield pointwise("_c[b s c] = _m[b u:s c]", SILU, n)
        yield copy("q:32[b h s e] k:32[b h s e] v:32[b h s o] = _c[b s c]", n)

    def _chunked(self, n: Sizes) -> Iterator[Op]:
        """Within each chunk, by itself: decays of pairs, the triangular system `ut` and what it is solved for."""
        n = n.bind(N=ceil_div(n.s, n.C), C=n.C, K=n.C - 1, t=n.C)
        n = n.bind(padded=n.N * n.C)
        keys, values, pairs = (f":32[b h N C {axis}]" for axis in "eot")
        heads = "q:32[b h s e] * k:32[b h s e] * v:32[b h s o]"
        yield copy(f"q{keys} k{keys} v{values} = {heads}", n)
        yield copy("beta:32[b h N C] a:32[b h N C] = beta:32[b h s] * a:32[b h s]", n)
        yield pointwise(f"kb{keys} = k{keys} * beta:32[b h N C]", MUL, n)
        yield pointwise(f"vb{values} = v{values} * beta:32[b h N C]", MUL, n)
        yield pointwise("sum:32[b h N C] = a:32[b h N C]", ADD, n)
        yield pointwise(f"decay{pairs} = sum:32[b h N C]", MASKED_SUB_EXP, n, over="b h N C t")
        for to, left in (("ut", "kb"), ("seen", "q")):
            yield matmul(f"_p{pairs} = {left}{keys} * k:32[b h N t e]", n)
            yield pointwise(f"{to}{pairs} = _p{pairs} * decay{pairs}", MUL, n)
        yield pointwise("_a:32[b h N C] = sum:32[b h N C]", EXP, n)
        yield pointwise(f"kb{keys} = kb{keys} * _a:32[b h N C]", MUL, n)
        for solved in (
            pointwise(f"new{values} = ut{pairs} * vb{values}", ADD, n, over="b h N C K o"),
            pointwise(f"old{keys} = ut{pairs} * kb{keys}", ADD, n, over="b h N C K e"),
        ):
            yield from composite("solve", solved, always=True)
        yield pointwise("_a:32[b h N C] = sum:32[b h N C]", EXP, n)
        yield pointwise(f"q{keys} = q{keys} * _a:32[b h N C]", MUL, n)
        yield pointwise("_a:32[b h N C] = sum:32[b h N C]", SUB_EXP, n)
        yield pointwise(f"k{keys} = k{keys} * _a:32[b h N C]", MUL, n)
        yield pointwise("fade:32[b h N] = sum:32[b h N C:l]", EXP, n)
        yield from self._from_chunk_to_chunk(keys, values, n)
        yield copy("_o[b s h o] = o:32[b h padded:s o]", n)

    def _from_chunk_to_chunk(self, keys: str, values: str, n: Sizes) -> Iterator[Op]:
        """What the chunk before leaves, then what this one reads of it; S are the states in order."""
        S = ":32[b h N e o]"
        return composite(
            "scan",
            matmul(f"_more{S} = k{keys} * new{values}", n),
            pointwise(f"_kept{S} = _more{S} * fade:32[b h N]", MUL, n),
            pointwise(f"S{S} = _kept{S} * _more{S}", ADD, n),
            matmul(f"_held{values} = old{keys} * S{S}", n),
            pointwise(f"new{values} = new{values} * _held{values}", ADD, n),
            matmul(f"_before{values} = q{keys} * S{S}", n),
            matmul(f"_within{values} = seen:32[b h N C t] * new:32[b h N t o]", n),
            pointwise(f"o{values} = _before{values} * _within{values}", ADD, n),
            copy("C_state:32[b h e o] = S:32[b h N:l e o]", n),
        )

    def _step(self, n: Sizes) -> Iterator[Op]:
        """Token by token, the state in the place of the last one."""
        S, each, rows = ":32[b h e o]", "b s h e o", "b s h more o"
        yield from composite(
            "scan",
            pointwise("_a:32[b h s] = a:32[b h s]", EXP, n),
            pointwise(f"S{S} = C_state{S} * _a:32[b h s]", MUL, n, over=each),
            pointwise(f"_p{S} = S{S} * k:32[b h s e]", MUL, n, over=each),
            pointwise(f"_held:32[b h s o] = _p{S}", ADD, n, over=rows),
            pointwise("_new:32[b h s o] = v:32[b h s o] * _held:32[b h s o]", ADD, n),
            pointwise("new:32[b h s o] = _new:32[b h s o] * beta:32[b h s]", MUL, n),
            pointwise(f"_p{S} = k:32[b h s e] * new:32[b h s o]", MUL, n, over=each),
            pointwise(f"S{S} = S{S} * _p{S}", ADD, n, over=each),
            pointwise(f"_p{S} = S{S} * q:32[b h s e]", MUL, n, over=each),
            pointwise(f"o:32[b h s o] = _p{S}", ADD, n, over=rows),
            copy(f"C_state{S} = S{S}", n),
        )
        yield copy("_o[b s h o] = o:32[b h s o]", n)
