"""Token embedding and language-model head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.graph.ops import Op, composite, lookup, matmul
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.sizes import Size


@final
@dataclass(frozen=True)
class TokenEmbedding(BaseLayer):
    """Rows of a table by token id. y = W_tok[ids]; V rows stored, one a token read, no FLOPs.

    Vendor: torch.nn.Embedding. Omits: reading the ids.
    Axes: b sequences, s tokens, V vocabulary, d hidden width.

    >>> TokenEmbedding(V=100, d=4).cost(b=1, s=3).weight_io_bytes
    24
    """

    V: Size
    d: Size
    sizes = "b s"
    inputs = ""

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield lookup("y[b s d] = W_tok[V d]", n)


@final
@dataclass(frozen=True)
class LMHead(BaseLayer):
    """Logits over the vocabulary. y = W_head x, for as many tokens as it is given.

    A head that is tied to the embedding is placed with W_head="W_tok": it then stores nothing.
    Vendor: lm_head. Omits: the cast of the logits to fp32, sampling.
    Axes: b sequences, s tokens, V vocabulary, d hidden width.

    >>> LMHead(V=100, d=4).forward_tensor_core_flops(b=1, s=3) == 2 * 3 * 100 * 4
    True
    """

    V: Size
    d: Size
    sizes = "b s"

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from composite("logits", matmul("y[b s V] = x[b s d] * W_head[V d]", n))
