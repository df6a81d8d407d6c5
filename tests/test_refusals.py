"""What would give a wrong number without a word is refused in one sentence that names it."""

import re
from dataclasses import dataclass

import numpy as np
import pytest

from modelmeter import Precision, Repeat, symbol
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.graph.ops import matmul
from modelmeter.layers.base import Sequence
from modelmeter.models.model import Model, Stage


def block(d):
    return mm.ResidualBlock(mm.SelfAttention(d, 2, d // 2), mm.MLP(d, 8), mm.LayerNorm(d))


def refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        make()
    assert "\n" not in str(error.value)


def test_stages_do_not_share_a_weight_of_two_sizes():
    sizes = lambda work: {"b": 1, "s": 3}
    stages = (
        Stage("encode", mm.Transformer(block(32), 6), sizes),
        Stage("rerank", mm.Transformer(block(16), 2), sizes),
    )
    refused(Model("two", stages).storage, "two: two stages have a weight 'layers.norm1.W_weight'")


@pytest.mark.parametrize("runtime", ["eager", "flash", "fused", "compulsory"])
def test_arrays_of_rounds_are_the_ints_or_refused(runtime):
    def cost(rounds):
        return Sequence((mm.MLP(8, 16), Repeat(block(8), rounds))).cost(b=2, s=5, runtime=runtime)

    many = cost(np.array([2, 3]))
    for index, one in enumerate(map(cost, (2, 3))):
        for count in ("io_bytes", "peak_activation_bytes", "parameters", "flops"):
            assert np.broadcast_to(getattr(many, count), 2)[index] == getattr(one, count), count
    refused(lambda: cost(np.array([1, 2])), "an array of rounds needs two or more everywhere")


def test_a_mapping_of_overrides_that_changes_later_changes_nothing_that_is_kept():
    overrides, layer = {"*W_1": 4}, mm.MLP(4, 8)
    one = layer.cost(b=1, s=2, precision=Precision(overrides=overrides))
    overrides["*W_2"] = 4
    two = layer.cost(b=1, s=2, precision=Precision(overrides=overrides))
    assert one.weight_bytes - two.weight_bytes == 4 * 8 * 3 / 2  # W_2 from 16 to 4 bits


def test_what_cannot_be_repeated_is_refused():
    refused(lambda: Repeat(mm.MlpProjector("linear", 4, 8), 3).cost(b=1, s=5), "MlpProjector cannot be repeated")
    assert Repeat(mm.MlpProjector("linear", 4, 4), 3).cost(b=1, s=5).parameters == 3 * (4 * 4 + 4)
    assert Repeat(mm.MlpProjector("linear", 4, 8), 1).cost(b=1, s=5).parameters == 4 * 8 + 8  # no second round


def test_a_weight_that_a_layer_lacks_cannot_be_named():
    @dataclass(frozen=True)
    class Tied(mm.BaseLayer):
        head: mm.LMHead
        name: str
        sizes = "b s"

        def ops(self, n):
            yield from self.head.at(n, "head", x="x", y="y", **{self.name: "W_tok"})

    assert Tied(mm.LMHead(11, 4), "W_head").cost(b=1, s=2).parameters == 11 * 4
    refused(lambda: Tied(mm.LMHead(11, 4), "W_heda").cost(b=1, s=2), "LMHead has no weight 'W_heda' to be named")


def test_a_field_is_no_size_of_the_call():
    @dataclass(frozen=True)
    class Both(mm.BaseLayer):
        s: int
        sizes = "b s"

        def ops(self, n):
            yield matmul("y[b s] = x[b s] * W_1[s]", n)

    refused(lambda: Both(9), "Both: 's' cannot be both a field and a size of the call")
    refused(lambda: mm.LMHead(10, symbol("s")).cost(b=1, s=5), "LMHead: a field is s, which is a size of the call")
    assert str(mm.LMHead(10, symbol("width")).cost(b=1, s=5).tensor_core_flops) == "100*width"
