"""What a layer must not say: each malformed one is refused in a sentence with layer, equation and axis or tensor."""

import pytest

from examples import RUNTIMES, every_example, layer
from modelmeter import InputError, Runtime, symbol
from modelmeter import layers as mm
from modelmeter.graph.forms import RMS_NORM
from modelmeter.graph.ops import build, composite, conv2d, copy, lookup, matmul, norm, pointwise, softmax, unused

WIDEN = "h[b s f] = x[b s d] * W_1[d f]"


def refused(body, *words, widths=(3, 4), **given):
    """Checks that a layer of this body is refused in one sentence with these words, whatever its widths are."""
    kind = layer(body, **given)
    for sizes in (widths, tuple(symbol(f"width{i}") for i in range(len(widths)))):
        with pytest.raises(InputError) as error:
            kind(*sizes).graph()
        text = str(error.value)
        assert "\n" not in text and all(word in text for word in ("Bad", *words)), text


def test_a_read_of_what_nothing_wrote_is_no_input():
    equation = "y[b s d] = hh[b s f] * W_2[f d]"
    refused(lambda n: [matmul(WIDEN, n), matmul(equation, n)], "'hh'", equation, "inputs: x")


@pytest.mark.parametrize("widths", [(3, 4), (4, 4)])
def test_a_tensor_is_read_with_the_axes_that_it_was_written_with(widths):
    equation = "y[b s d] = h[b s d] * W_2[d d]"
    refused(lambda n: [matmul(WIDEN, n), matmul(equation, n)], "'h' as [b s d]", "[b s f]", equation, widths=widths)
    equation = "y[b s d] = x[b s f] * W_2[f d]"
    refused(lambda n: [matmul(WIDEN, n), matmul(equation, n)], "'x' as [b s f]", "[b s d]", equation, widths=widths)


def test_axes_may_change_their_order_and_a_name_that_the_layer_binds():
    def body(n):
        yield matmul(WIDEN, n)
        yield matmul("a[b s t] = h[b s f] * h[b t f]", n.bind(t=n.s))
        yield matmul("y[b s f] = a[b s t] * h[b f t]", n.bind(t=n.s))

    assert layer(body)(3, 4).cost(b=2, s=5).tensor_core_flops == 2 * 2 * 5 * (3 * 4 + 5 * 4 + 5 * 4)


def test_what_one_layer_writes_another_reads_in_its_size():
    narrow = layer(lambda n: [matmul("y[b s f] = x[b s f] * W_2[f f]", n)], "f", name="Narrow")

    def body(width):
        def ops(n):
            yield matmul(WIDEN, n)
            yield from narrow(width).at(n, "narrow", x="h", y="y")

        return ops

    assert layer(body(4))(3, 4).cost(b=1, s=1).parameters == 3 * 4 + 4 * 4
    with pytest.raises(
        InputError, match=r"Narrow: equation .* has 'x' as \[b s f\] of .* elements, but it is \[b s f\] of"
    ):
        layer(body(5))(3, 4).graph()


@pytest.mark.parametrize("make", [
    lambda text, n: matmul(text + " * W_2[d d]", n), lambda text, n: pointwise(text, 1, n),
    lambda text, n: norm(text + " * W_2[d]", RMS_NORM, n), lambda text, n: softmax(text, n, row="d"), copy,
    lambda text, n: conv2d(text + " * W_2[d d]", n), lookup,
])  # fmt: skip
def test_an_axis_of_an_output_is_on_the_right(make):
    refused(lambda n: [make("y[b s f d] = x[b s d]", n)], "axis 'f'", "output of equation 'y[b s f d] = x[b s d]")


def test_what_moves_elements_may_bind_the_axes_that_it_moves_them_to():
    moved = layer(lambda n: [copy("y[b s q] = x[b s d]", n.bind(q=2 * n.d))], "d")(3)
    assert moved.cost(b=1, s=2).io_bytes == 2 * (2 * 3 + 2 * 6)
    for make, words in (
        (copy, "to its right, nor bound by the layer"),
        (lambda text, n: pointwise(text, 1, n), "its right"),
    ):
        with pytest.raises(InputError) as error:
            layer(lambda n: [make("y[b s f] = x[b s d]", n)])(3, 4).graph()
        assert str(error.value).endswith(words)


def test_a_weight_that_nobody_reads_is_stored_and_nothing_else_of_its_op_is_there():
    def ops(n):
        yield from unused([matmul("h[b s f] = x[b s d] * W_1[d f] + W_b[f]", n)])
        yield matmul("y[b s f] = x[b s d] * W_1[d f]", n)

    example = layer(ops)(3, 4)
    dead = example.graph().ops[0]
    assert {r.role for r in dead.reads} == {"weight"} and not dead.writes
    cost = example.cost(b=1, s=2)
    assert (cost.parameters, cost.weight_io_bytes) == (3 * 4 + 4, 2 * 3 * 4)
    assert (cost.flops, cost.peak_activation_bytes) == (2 * 2 * 3 * 4, 2 * (2 * 3 + 2 * 4))


def test_an_axis_of_a_product_is_on_the_right_even_if_it_is_bound():
    refused(lambda n: [matmul("y[b s q] = x[b s d] * W_2[d f]", n.bind(q=n.f))], "axis 'q'", "y[b s q]")


@pytest.mark.parametrize("widths", [(3, 4), (4, 4)])
def test_a_weight_has_one_shape(widths):
    equation = "y[b s f] = h[b s f] * W_1[f f]"
    refused(lambda n: [matmul(WIDEN, n), matmul(equation, n)], "'W_1' as [f f]", "[d f]", equation, widths=widths)


def test_a_shared_weight_has_one_shape_in_both_layers():
    head = mm.LMHead(V=9, d=4)

    def tied(vocabulary):
        def ops(n):
            yield from mm.TokenEmbedding(vocabulary, 4).at(n, "embedding", y="h", W_tok="W_tok")
            yield from head.at(n, "head", x="h", y="y", W_head="W_tok")

        return layer(ops, "", inputs="")()

    assert tied(9).cost(b=1, s=1).parameters == 9 * 4
    with pytest.raises(
        InputError, match=r"LMHead: equation .* has 'W_head' as \[V d\] of 36 elements, but it is \[V d\] of 32"
    ):
        tied(8).graph()


def test_a_cache_has_one_shape():
    write, wide = "C_k[b t:s d] = x[b s d]", "C_k[b t:s f] = h[b s f]"
    refused(
        lambda n: [matmul(WIDEN, n), copy(write, n), copy(wide, n), copy("y[b s d] = x[b s d]", n)],
        "'C_k' as [b t f]",
        wide,
        sizes="b s t",
    )
    read = "y[b s d] = x[b s d] * C_k[b s d]"
    refused(lambda n: [copy(write, n), matmul(read, n)], "'C_k' as [b s d]", "[b t d]", read, sizes="b s t")


def test_an_axis_of_a_layer_around_is_out_of_sight():
    inner = layer(lambda n: [pointwise("y[b s d] = x[b s d]", 1, n)], "", name="Bad")
    outer = layer(lambda n: inner().at(n, "inner", x="x", y="y"), "d", name="Outer")
    with pytest.raises(InputError, match=r"Bad: axis 'd' \(hidden width\) of equation 'y\[b s d\] = x\[b s d\]'"):
        outer(3).graph()


@pytest.mark.parametrize("make", [
    lambda n: matmul("y[b s f] = x[b s d] * W_1[d f]", n, over="b s d nowhere"),
    lambda n: pointwise("y[b s d] = x[b s d]", 1, n, over="b nowhere"),
    lambda n: softmax("y[b s d] = x[b s d]", n, row="d", over="nowhere"),
])  # fmt: skip
def test_the_axes_of_over_are_known(make):
    refused(lambda n: [make(n)], "axis 'nowhere'", "of equation 'y[b s")


def test_the_row_of_a_norm_or_softmax_is_on_its_output():
    refused(lambda n: [softmax("y[b s d] = x[b s d]", n, row="f")], "axis 'f'", "'y[b s d] = x[b s d]'")
    refused(lambda n: [norm("y[b s f] = x[b s f] * W_2[f]", RMS_NORM, n)], "axis 'd'", "'y[b s f] = x[b s f] * W_2[f]'")


def test_a_layer_writes_its_output():
    refused(lambda n: [matmul(WIDEN, n)], "output 'y'")
    refused(lambda n: [], "output 'y'")


@pytest.mark.parametrize("name", ["bind", "pairs", "elements", "require", "resolve", "inside", "node", "root", "bound"])
def test_a_field_or_size_has_no_name_that_the_place_has(name):
    body = lambda n: [pointwise("y[b s d] = x[b s d]", 1, n)]
    field, size = layer(body, f"d {name}")(3, 4), layer(body, "d", f"b s {name}")(3)
    for bad in (field, size, layer(lambda n: body(n.bind(**{name: 3})), "d")(3)):
        with pytest.raises(
            InputError, match=f"Bad: an axis cannot be called '{name}', as `n.{name}` is something else"
        ):
            bad.graph()


@pytest.mark.parametrize("name", ["axes", "at", "cost", "program", "graph", "check", "buffers"])
def test_a_field_has_no_name_that_every_layer_has(name):
    with pytest.raises(InputError, match=f"Bad: a field cannot be called '{name}', as every layer has that"):
        layer(lambda n: [], f"d {name}")(3, 4)


def test_a_field_called_times_is_an_axis_like_any_other():
    kind = layer(lambda n: [matmul("y[b s times] = x[b s d] * W_1[d times]", n.bind(twice=n.times * 2))], "d times")
    assert kind(3, 5).cost(b=1, s=2).tensor_core_flops == 2 * 2 * 3 * 5


def test_a_placed_layer_is_given_its_inputs_and_sizes():
    inner = mm.GatedMLP(3, 4)
    for bound, message in (
        ({"y": "y"}, "GatedMLP under 'Bad' needs its input 'x' to be named"),
        ({"x": "x", "y": "y", "t": 3}, "GatedMLP under 'Bad' has no size 't'; its sizes: b s"),
    ):
        with pytest.raises(InputError, match=message):
            layer(lambda n: inner.at(n, "mlp", **bound))(3, 4).graph()
    with pytest.raises(InputError, match="GatedMLP under 'Bad' needs size 's'; its sizes: b s"):
        layer(lambda n: inner.at(n, "mlp", x="x", y="y"), sizes="b")(3, 4).graph()


@pytest.mark.parametrize(("text", "message"), [
    ("y[b s d] x[b s d]", "needs an equals sign"), ("y[b s d] = x", "cannot read 'x'"), ("y = x[b s d]", "cannot read 'y'"),
    ("y[b s d] = x[b s d] + x[b s d] * x[b s d]", "write the product before what is added to it"),
])  # fmt: skip
def test_an_equation_that_cannot_be_read_is_quoted(text, message):
    with pytest.raises(InputError, match=message) as error:
        layer(lambda n: [pointwise(text, 1, n)])(3, 4).graph()
    assert text in str(error.value)


def test_the_kernel_of_a_convolution_is_a_weight():
    with pytest.raises(InputError, match="kernel of a convolution must be named W_"):
        layer(lambda n: [conv2d("y[b s f] = x[b s d] * k[d f]", n)])(3, 4).graph()


def test_a_pass_reads_only_what_is_there():
    def spilling(graph):
        last = graph.ops[-1]
        return graph.with_ops([*graph.ops, build("copy", "spilled[b s d] = hidden[b s d]", last.n)])

    with pytest.raises(InputError, match=r"'spilling'.*GatedMLP.*'spilled.*reads 'hidden'"):
        mm.GatedMLP(3, 4).cost(b=1, s=2, runtime=Runtime("spills", (spilling,)))


def test_what_attention_adds_to_its_scores_has_known_axes():
    def ops(n):
        yield from composite("attention", matmul("a[b s f] = x[b s d] * W_q[d f]", n), mask="mask[b nowhere]")
        yield copy("y[b s f] = a[b s f]", n)

    with pytest.raises(InputError, match="Bad: axis 'nowhere'"):
        layer(ops)(3, 4).cost(b=1, s=2, runtime="eager")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_layer_of_the_package_keeps_the_rules_in_every_runtime(runtime):
    for name, example, sizes in every_example():
        assert example.cost(runtime=runtime, **sizes).io_bytes > 0, name


def test_a_graphs_reads_have_writers_or_are_inputs():
    for name, example, _ in every_example():
        graph = example.graph()
        for op, reads in zip(graph.ops, graph.reads, strict=True):
            for r, writer in reads:
                if r.role == "activation" and op.kind != "unused":
                    assert writer >= 0 or r.name in graph.inputs, (name, op.equation.text)
