"""A causal language model: embedding, decoder layers, final norm, head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.layer import BaseLayer, Repeat
from modelmeter.layers.deepseek import DeepseekV2DecoderLayer
from modelmeter.layers.embedding import LMHead, TokenEmbedding
from modelmeter.layers.llama import LlamaRotaryEmbedding
from modelmeter.layers.norm import DeepseekV2RMSNorm
from modelmeter.ops import Op, Sizes, copy
from modelmeter.sizes import Size


@final
@dataclass(frozen=True)
class CausalLM(BaseLayer):
    """Token embedding, decoder layers, final norm and head, on s tokens of a context of t.

    y = head(norm(layers(embedding(ids)))). Logits for all s tokens or the last one. The rotary
    table is made here once with `rotary: transformers`, in every layer with `rotary: vendor`.
    Vendor: DeepseekV2ForCausalLM in modeling_deepseekv2.py.
    `positions` is the longest context that it was made for; longer ones are counted all the same.
    Omits: putting image features in the place of embeddings (every position is looked up), sampling.
    Axes: b sequences, s tokens, t context.

    >>> CausalLM.sizes
    'b s t'
    """

    embedding: TokenEmbedding
    layers: tuple[BaseLayer, ...]
    norm: DeepseekV2RMSNorm
    head: LMHead
    rotary: LlamaRotaryEmbedding
    tied: bool = False
    positions: Size | None = None
    sizes = "b s t"

    def check(self) -> None:
        self.require_equal(embedding=self.embedding.d, norm=self.norm.d, head=self.head.d)
        self.require_equal(vocabulary_of_embedding=self.embedding.V, vocabulary_of_head=self.head.V)
        for layer in self.layers:
            inner = layer.layer if isinstance(layer, Repeat) else layer
            if isinstance(inner, DeepseekV2DecoderLayer):
                self.require_equal(embedding=self.embedding.d, decoder_layer=inner.attention.d)

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from self.embedding.at(n, "embedding", y="x", W_tok="W_tok")
        shared = {"pos": "pos"}
        if n.options.rotary == "transformers":
            shared |= {"cos": "cos", "sin": "sin"}
            yield from self.rotary.at(n, "decoder.rotary", **shared)
        for index, layer in enumerate(self.layers):
            yield from layer.at(n, f"decoder.layers{index}", x="h" if index else "x", y="h", **shared)
        yield from self.norm.at(n, "decoder.norm", x="h", y="h")
        rows: Size = n.s
        if n.options.logits == "last":
            rows = 1
            yield copy("h[b l d] = h[b l d]", n.inside("head", {"l": 1, "d": self.head.d}, {"h": "h"}))
        names = {"W_head": "W_tok"} if self.tied else {}
        yield from self.head.at(n, "head", s=rows, x="h", y="y", **names)
