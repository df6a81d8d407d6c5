"""A causal language model: token embedding, decoder layers, final norm, head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import final

from modelmeter.graph.forms import CAP, MUL
from modelmeter.graph.ops import Op, composite, lookup, matmul, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.attention import attention_layers
from modelmeter.layers.base import BaseLayer, width_of
from modelmeter.layers.norm import Norm
from modelmeter.sizes import Size


@final
@dataclass(frozen=True)
class TokenEmbedding(BaseLayer):
    """Rows of a table by token id, `scaled` or not. y = W_tok[ids]; V rows stored, one a token read.

    Vendor: torch.nn.Embedding. Omits: reading the ids. Axes: b sequences, s tokens, V vocabulary, d hidden width.

    >>> TokenEmbedding(V=100, d=4).cost(b=1, s=3).weight_io_bytes
    24
    """

    V: Size
    d: Size
    scaled: bool = False
    sizes = "b s"
    inputs = ""

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield lookup("y[b s d] = W_tok[V d]", n)
        if self.scaled:
            yield pointwise("y[b s d] = y[b s d]", MUL, n)


@final
@dataclass(frozen=True)
class LMHead(BaseLayer):
    """Logits over the vocabulary. y = W_head x, for as many tokens as it is given.

    Logits may have a `bias`, be `scaled` or `capped`: c tanh(x / c). A head that is tied to the embedding is placed
    with W_head="W_tok": it then stores nothing. Vendor: lm_head. Omits: the cast of the logits to fp32, sampling. Axes:
    b sequences, s tokens, V vocabulary, d hidden width.

    >>> LMHead(V=100, d=4).forward_tensor_core_flops(b=1, s=3) == 2 * 3 * 100 * 4
    True
    """

    V: Size
    d: Size
    bias: bool = False
    scaled: bool = False
    capped: bool = False
    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        parts = [matmul("y[b s V] = x[b s d] * W_head[V d]" + " + W_bhead[V]" * self.bias, n)]
        changes = ([MUL] if self.scaled else []) + ([CAP] if self.capped else [])
        yield from composite("logits", *parts, *(pointwise("y[b s V] = y[b s V]", form, n) for form in changes))


@final
@dataclass(frozen=True)
class CausalLM(BaseLayer):
    """Token embedding, decoder layers, final norm and head, on s tokens of a context of t.

    y = head(norm(layers(embedding(ids)))). With `rotary` the tables of cos and sin are made here once; without, the
    layers make their own; with `local_rotary` layers with a window have tables of their own. `positions` is the longest
    context that it was made for; longer ones are counted too. Vendor: DeepseekV2ForCausalLM in modeling_deepseekv2.py.
    Axes: b sequences, s tokens, t context. Omits: putting image features in the place of embeddings (every position is
    looked up), sampling.

    >>> CausalLM.sizes
    'b s t'
    """

    embedding: TokenEmbedding
    layers: tuple[BaseLayer, ...]
    norm: Norm
    head: LMHead
    rotary: BaseLayer | None = None
    tied: bool = False
    positions: Size | None = None
    local_rotary: BaseLayer | None = None
    sizes = "b s t"
    inputs = "pos"
    d = property(attrgetter("embedding.d"))

    def check(self) -> None:
        self.require_equal(embedding=self.d, norm=self.norm.d, head=self.head.d)
        self.require_equal(vocabulary_of_embedding=self.embedding.V, vocabulary_of_head=self.head.V)
        for layer in self.layers:
            self.require_equal(embedding=self.d, decoder_layer=width_of(layer))

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from self.embedding.at(n, "embedding", y="x", W_tok="W_tok")
        if self.rotary is not None:
            yield from self.rotary.at(n, "decoder.rotary", pos="pos", y="cos", sin="sin")
        if self.local_rotary is not None:
            yield from self.local_rotary.at(n, "decoder.local_rotary", pos="pos", y="local_cos", sin="local_sin")
        for index, layer in enumerate(self.layers):
            near = self.local_rotary and any(attention.window is not None for attention in attention_layers(layer))
            tables = {"cos": "local_cos", "sin": "local_sin"} if near else {}
            shared = {name: tables.get(name, name) for name in layer.inputs.split() if name != "x"}
            yield from layer.at(n, f"decoder.layers{index}", x="h" if index else "x", y="h", **shared)
        yield from self.norm.at(n, "decoder.norm", x="h", y="h")
        names = {"W_head": "W_tok"} if self.tied else {}
        yield from self.head.at(n, "head", x="h", y="y", **names)
