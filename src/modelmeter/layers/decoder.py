"""A causal language model: token embedding, decoder layers, final norm, head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, final

from modelmeter.graph.forms import ADD, CAP, MUL
from modelmeter.graph.ops import Op, composite, lookup, matmul, pointwise
from modelmeter.graph.place import Sizes
from modelmeter.layers.attention import CrossAttention, attention_layers
from modelmeter.layers.base import BaseLayer, rebuild, union, width_of
from modelmeter.layers.norm import Norm
from modelmeter.layers.scan import GatedDeltaNet
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
class LearnedPositions(BaseLayer):
    """A learnt vector for each position, added to the embeddings, and a norm. y = norm(x + W_pos[position]).

    Vendor: MBartLearnedPositionalEmbedding and layernorm_embedding of MBartDecoder in transformers.
    Paper: arXiv 2001.08210 (mBART). Omits: counting the positions. Axes: b sequences, s tokens, n rows of the table.

    >>> from modelmeter.layers import LayerNorm
    >>> LearnedPositions(n=100, norm=LayerNorm(4)).cost(b=2, s=3).parameters == 100 * 4 + 2 * 4
    True
    """

    n: Size
    norm: Norm
    sizes = "b s"
    keeps = "positions"
    d = property(attrgetter("norm.d"))

    def ops(self, n: Sizes) -> Iterator[Op]:
        n = n.bind(d=self.norm.axes["d"])
        yield lookup("positions[s d] = W_pos[n d]", n)
        yield pointwise("y[b s d] = x[b s d] + positions[s d]", ADD, n)
        yield from self.norm.at(n, "norm", x="y", y="y")


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
    layers make their own; with `local_rotary` layers with a window have tables of their own. `learned` positions are
    added to the embeddings. `positions` is the longest context that it was made for; longer ones are counted too.
    Layers with cross attention read the `features` of an encoder. `vendor` is its model_type in a config.json, by which
    an engine chooses its code; no count of the layers depends on it.
    Vendor: DeepseekV2ForCausalLM in modeling_deepseekv2.py, MBartForCausalLM in transformers.
    Axes: b sequences, s tokens, t context, source features.
    Omits: putting image features in the place of embeddings (every position is looked up), sampling.

    >>> from modelmeter.layers import RMSNorm
    >>> CausalLM(TokenEmbedding(9, 4), (), RMSNorm(4), LMHead(9, 4)).sizes
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
    learned: LearnedPositions | None = None
    vendor: str = ""
    sizes = property(lambda self: union(("b s t", *(layer.sizes for layer in self.layers))))
    inputs = property(lambda self: "pos features" if _reads(self.layers) else "pos")
    d = property(attrgetter("embedding.d"))

    def check(self) -> None:
        self.require_equal(embedding=self.d, norm=self.norm.d, head=self.head.d)
        self.require_equal(vocabulary_of_embedding=self.embedding.V, vocabulary_of_head=self.head.V)
        self.require_equal(embedding=self.d, learned_positions=self.learned and self.learned.d)
        for layer in self.layers:
            self.require_equal(embedding=self.d, decoder_layer=width_of(layer))

    def ops(self, n: Sizes) -> Iterator[Op]:
        n.root.vendor = self.vendor
        yield from self.embedding.at(n, "embedding", y="x", W_tok="W_tok")
        if self.rotary is not None:
            yield from self.rotary.at(n, "decoder.rotary", pos="pos", y="cos", sin="sin")
        if self.local_rotary is not None:
            yield from self.local_rotary.at(n, "decoder.local_rotary", pos="pos", y="local_cos", sin="local_sin")
        if self.learned is not None:
            yield from self.learned.at(n, "embedding.learned", x="x", y="h", positions="positions")
        first = "x" if self.learned is None else "h"
        for index, layer in enumerate(self.layers):
            near = self.local_rotary and any(attention.window is not None for attention in attention_layers(layer))
            tables = {"cos": "local_cos", "sin": "local_sin"} if near else {}
            shared = {name: tables.get(name, name) for name in layer.inputs.split() if name != "x"}
            yield from layer.at(n, f"decoder.layers{index}", x="h" if index else first, y="h", **shared)
        yield from self.norm.at(n, "decoder.norm", x="h", y="h")
        names = {"W_head": "W_tok"} if self.tied else {}
        yield from self.head.at(n, "head", x="h", y="y", **names)


def _reads(layers: tuple[BaseLayer, ...]) -> bool:
    """Whether layers read the features of an encoder in this call."""
    return any("features" in layer.inputs.split() for layer in layers)


def crosses(decoder: BaseLayer) -> bool:
    """Whether a decoder has cross attention to the features of an encoder."""
    return "source" in decoder.sizes.split()


def in_steps(node: Any) -> Any:
    """A model or layer as a decode stage runs it: scans go step by step, the cache of cross attention is filled."""

    def change(layer: BaseLayer) -> BaseLayer:
        if isinstance(layer, CrossAttention):
            return replace(layer, filled=True)
        return replace(layer, form="step") if isinstance(layer, GatedDeltaNet) else layer

    return rebuild(node, change)
