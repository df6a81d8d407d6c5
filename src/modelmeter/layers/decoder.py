"""A causal language model: embedding, decoder layers, final norm, head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.graph.ops import Op
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, Repeat
from modelmeter.layers.block import width_of
from modelmeter.layers.embedding import LMHead, TokenEmbedding
from modelmeter.layers.norm import Norm
from modelmeter.sizes import Size


@final
@dataclass(frozen=True)
class CausalLM(BaseLayer):
    """Token embedding, decoder layers, final norm and head, on s tokens of a context of t.

    y = head(norm(layers(embedding(ids)))). With `rotary` the tables of cos and sin are made here once; without, the
    layers make their own.
    Vendor: DeepseekV2ForCausalLM in modeling_deepseekv2.py.
    `positions` is the longest context that it was made for; longer ones are counted all the same.
    Omits: putting image features in the place of embeddings (every position is looked up), sampling.
    Axes: b sequences, s tokens, t context.

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
    sizes = "b s t"
    inputs = "pos"

    @property
    def d(self) -> Size:
        """Hidden width."""
        return self.embedding.d

    def check(self) -> None:
        self.require_equal(embedding=self.embedding.d, norm=self.norm.d, head=self.head.d)
        self.require_equal(vocabulary_of_embedding=self.embedding.V, vocabulary_of_head=self.head.V)
        for layer in self.layers:
            width = width_of(layer.layer if isinstance(layer, Repeat) else layer)
            if width is not None:
                self.require_equal(embedding=self.embedding.d, decoder_layer=width)

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from self.embedding.at(n, "embedding", y="x", W_tok="W_tok")
        if self.rotary is not None:
            yield from self.rotary.at(n, "decoder.rotary", pos="pos", y="cos", sin="sin")
        for index, layer in enumerate(self.layers):
            shared = {name: name for name in layer.inputs.split() if name != "x"}
            yield from layer.at(n, f"decoder.layers{index}", x="h" if index else "x", y="h", **shared)
        yield from self.norm.at(n, "decoder.norm", x="h", y="h")
        names = {"W_head": "W_tok"} if self.tied else {}
        yield from self.head.at(n, "head", x="h", y="y", **names)
