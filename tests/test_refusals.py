"""What would give a wrong number without a word is refused in one sentence that names it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from examples import layer
from modelmeter import Precision, Repeat, Runtime, load_model, symbol
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.graph.ops import composite, copy, matmul, pointwise, softmax
from modelmeter.layers.base import Sequence
from modelmeter.models.model import Model, Stage
from modelmeter.runtimes.passes import merge_projections


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
    stage = Stage("head", mm.LMHead(10, symbol("s")), lambda work: {"b": 1, "s": 5})
    refused(Model("named", (stage,)).storage, "LMHead: a field is s, which is a size of the call")
    assert str(mm.LMHead(10, symbol("width")).cost(b=1, s=5).tensor_core_flops) == "100*width"


def made(*equations, **attributes):
    """A layer of these ops, each a function of the place."""

    def body(n):
        for equation in equations:
            ops = equation(n)
            yield from ops if isinstance(ops, Iterator) else (ops,)

    return layer(body, name="Made", **attributes)(4, 6)


def test_equations_are_read_strictly():
    for text, part in (
        ("y[b s d] += x[b s d] * W_1[d]", "y[b s d] +"),
        ("y[b s d] = x[b s d] * W_1[d] *", "x[b s d] * W_1[d] *"),
        ("y[b s d] = x[b s d] W_1[d]", "x[b s d] W_1[d]"),
        ("y[b s d] = x[b s d] + z[b s d] +", "z[b s d] +"),
    ):
        refused(lambda text=text: made(lambda n: matmul(text, n)).cost(b=1, s=2), f"cannot read {part!r}")


def test_a_tensor_has_one_format_and_weights_are_read():
    wide, narrow = (lambda n: copy("h:32[b s d] = x[b s d]", n)), (lambda n: copy("y[b s d] = h[b s d]", n))
    refused(lambda: made(wide, narrow).cost(b=1, s=2), "has 'h' in two formats: 32 and its role's bits")
    writing = lambda n: copy("W_1[d] = x[b s d]", n)
    refused(lambda: made(writing, outputs="").cost(b=1, s=2), "writes the weight 'W_1'; weights are only read")


HEAD = lambda n: composite("logits", matmul("z[b s f] = x[b s d] * W_h[d f]", n))


def test_logits_that_are_read_on_are_not_cut_in_silence():
    apart = made(HEAD, lambda n: softmax("y[b s f] = z[b s f]", n, row="f"))
    assert apart.cost(b=1, s=5).tensor_core_flops == 2 * 5 * 4 * 6
    refused(lambda: apart.cost(b=1, s=5, logits="last"), "reads the logits 'z' of Made")
    both = made(
        lambda n: composite(
            "logits", matmul("z[b s f] = x[b s d] * W_h[d f]", n), softmax("y[b s f] = z[b s f]", n, row="f")
        )
    )
    every, last, one = (both.cost(b=1, s=s, logits=l) for s, l in ((5, "all"), (5, "last"), (1, "all")))
    assert last.flops == one.flops and every.flops == 5 * one.flops


MERGING = Runtime("merging", (merge_projections,))


def test_projections_are_merged_only_where_nothing_waits_for_another():
    """y = h + x W_2 silu(x W_1), where h is written anew by W_3 after silu has read and written it."""
    rebinding = made(
        lambda n: matmul("a[b s f] = x[b s d] * W_1[d f]", n),
        lambda n: pointwise("h[b s f] = a[b s f]", 1, n),
        lambda n: pointwise("g[b s f] = h[b s f]", 1, n),
        lambda n: matmul("h[b s f] = x[b s d] * W_3[d f]", n),
        lambda n: pointwise("y[b s f] = h[b s f] * g[b s f]", 1, n),
    )
    assert rebinding.cost(b=1, s=5, runtime=MERGING).io_bytes == rebinding.cost(b=1, s=5, runtime="flash").io_bytes
    waiting = made(
        lambda n: matmul("a[b s d] = x[b s d] * W_1[d d]", n),
        lambda n: matmul("y[b s d] = x[b s d] * W_2[d d] * a[b s d]", n),
    )
    assert [len(k.ops) for k in waiting.program(runtime=MERGING).kernels(b=1, s=5)] == [1, 1]
    free = made(
        lambda n: matmul("a[b s f] = x[b s d] * W_1[d f]", n),
        lambda n: matmul("c[b s f] = x[b s d] * W_2[d f]", n),
        lambda n: pointwise("y[b s f] = a[b s f] * c[b s f]", 1, n),
    )
    assert [len(k.ops) for k in free.program(runtime=MERGING).kernels(b=1, s=5)] == [2, 1]


def test_kernels_do_not_wait_for_each_other():
    def around(graph):
        return graph.with_ops(op._replace(kernel="outer" if i != 1 else "") for i, op in enumerate(graph.ops))

    refused(lambda: mm.MLP(4, 8).cost(b=1, s=2, runtime=Runtime("ring", (around,))), "kernels wait for each other")


def test_a_runtime_is_made_of_passes():
    refused(lambda: Runtime("x", ("flash",)), "passes of runtime 'x' must be functions of a graph, not 'flash'")
    nothing = Runtime("x", (lambda graph: None,))
    refused(lambda: mm.MLP(4, 8).cost(b=1, s=2, runtime=nothing), "must give a graph, not None")
    refused(
        lambda: mm.MLP(4, 8).cost(b=1, s=2, runtime=["flash"]), "runtime must be a name or a Runtime, not ['flash']"
    )


def test_arrays_of_sizes_have_one_length():
    refused(lambda: mm.MLP(4, 8).cost(b=np.ones(2), s=np.ones(3)), "arrays of sizes must have one length, not 2, 3")


def test_an_override_matches_a_tensor(model):
    refused(lambda: mm.MLP(4, 8).cost(b=1, s=2, precision={"overrides": {"typo*": 4}}), "'typo*' matches no tensor")
    work = model.workload(grid="1x2", precision={"overrides": {"typo*": 4}})
    refused(lambda: model.cost("vision", work), "'typo*' matches no tensor; a name is")
    one = model.workload(grid="1x2", precision={"overrides": {"sam.*": 8}})  # of another stage
    assert model.cost("decode", one).io_bytes == model.cost("decode", model.workload(grid="1x2")).io_bytes


def test_a_workload_is_one_of_the_model(model):
    page = model.workload(grid="2x3")
    refused(lambda: load_model("vlm").cost("vision", page), "640x640 pixels has no whole patches of 14")
    refused(lambda: load_model("text").cost("prefill", page), "text takes no image, and the workload has one")


def test_a_step_is_one_of_the_workloads(model):
    page = model.workload(grid="1x2", decode_steps=3)
    assert len(model.kernels("decode", page, step=3)) == len(model.kernels("decode", page))
    for step in (0, 4, -800):
        refused(lambda step=step: model.kernels("decode", page, step=step), "step must be")
    refused(lambda: mm.LlamaAttention(8, 1, 2, 4).program().kernels(b=1, s=5, t=3), "must hold the call's own tokens")


def test_eager_attention_in_an_order_that_torch_has_not_is_refused():
    def attention(k):
        return made(
            lambda n: matmul("q[b s d f] = x[b s d] * W_q[d f]", n),
            lambda n: composite(
                "attention",
                matmul(f"a[b d s t] = q[b s d f] * {k}", n.bind(t=n.s, i=1)),
                softmax("p[b d s t] = a[b d s t]", n.bind(t=n.s, i=1), row="t"),
                matmul(f"y[b s d f] = p[b d s t] * {k.replace('k', 'v', 1)}", n.bind(t=n.s, i=1)),
            ),
            inputs="x k v",
        )

    assert attention("k[b t d f]").cost(b=2, s=3, runtime="eager").flops > 0
    refused(lambda: attention("k[b d t f]").cost(b=2, s=3, runtime="eager"), "eager attention needs queries, keys")
    assert attention("k[b d t f]").cost(b=2, s=3, runtime="flash").flops > 0
