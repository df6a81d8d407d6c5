"""The strongest proof: walk the iteration space and count what it does and what it touches."""

import re
from itertools import product

import pytest

from examples import every_example
from modelmeter import layers as mm
from modelmeter.cost import measure
from modelmeter.memory import traffic
from modelmeter.ops import Options, Sizes, conv2d, matmul
from modelmeter.precision import Precision

TENSOR = re.compile(r"(\w+)(?::(\d+))?\[([^\]]*)\]")
CASES = every_example()


def tensors(text):
    return [(name, int(bits or 16), axes.split()) for name, bits, axes in TENSOR.findall(text)]


def space(n, axes):
    """All index tuples over axes."""
    return product(*(range(int(getattr(n, axis))) for axis in axes))


@pytest.mark.parametrize(("name", "layer", "sizes"), CASES, ids=[f"{c[0]}{i}" for i, c in enumerate(CASES)])
def test_each_matmul_costs_two_flops_a_point_of_its_loop_nest(name, layer, sizes):
    matmuls = [op for op in layer.trace(**{axis: min(v, 3) for axis, v in sizes.items()}) if op.kind == "matmul"]
    for op in matmuls:
        factors = tensors(op.equation.partition("=")[2].partition("+")[0])
        if "E:D" in op.equation:
            continue  # routed experts: test_a_mixture_walks_its_tokens_and_reads_the_experts_they_reach
        loops = list(dict.fromkeys(axis for _, _, axes in factors for axis in axes))
        points = sum(1 for _ in space(op.n, loops))
        assert op.tensor.value() == 2 * points, op.equation
    assert (
        matmuls or not layer.cost(**sizes).tensor_core_flops or name in ("PatchEmbed", "Conv2d", "CLIPVisionEmbeddings")
    )


@pytest.mark.parametrize(("name", "layer", "sizes"), CASES, ids=[f"{c[0]}{i}" for i, c in enumerate(CASES)])
def test_eager_traffic_is_the_elements_that_each_kernel_touches(name, layer, sizes):
    ops = layer.trace(**{axis: min(v, 3) for axis, v in sizes.items()})
    moved = dict.fromkeys(range(len(ops)), 0)
    for index, _, term in traffic(ops, "eager"):
        moved[index] += term.value()
    for index, op in enumerate(ops):
        if op.kind in ("lookup", "unused") or "E:D" in op.equation:
            continue  # proven in their own tests
        hidden = {r.name.rpartition(".")[2] for r in op.reads + op.writes if r.on_chip == "always"}
        left, _, right = op.equation.partition("=")
        total = 0
        for operands in ({t[0]: t for t in tensors(right)}.values(), tensors(left)):
            for tensor, bits, axes in operands:
                if tensor not in hidden:
                    elements = sum(1 for _ in space(op.n, [axis.rpartition(":")[2] for axis in axes]))
                    total += elements * bits // 8
        assert moved[index] == total * op.times, op.equation


def test_a_lookup_reads_a_row_a_token_and_stores_the_table():
    layer = mm.TokenEmbedding(V=11, d=4)
    ids = [(b, s) for b, s in product(range(2), range(3))]
    cost = layer.cost(b=2, s=3)
    assert cost.weight_io_bytes == 2 * len(ids) * 4
    assert (cost.parameters, cost.weight_bytes, cost.flops) == (11 * 4, 11 * 4 * 2, 0)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(6, 3, 1), (6, 3, 2), (5, 3, 2), (4, 1, 1), (8, 2, 2), (9, 3, 3)]
)
def test_a_convolution_walks_outputs_times_kernel_and_touches_its_whole_input(size, kernel, stride):
    padding = (kernel - 1) // 2 if stride < kernel or stride == 1 else 0
    outputs = (size + 2 * padding - kernel) // stride + 1
    b, c, o = 2, 3, 4
    points, touched = 0, set()
    for image, out, u, v, channel, p, q in product(
        range(b), range(o), range(outputs), range(outputs), range(c), range(kernel), range(kernel)
    ):
        points += 1
        i, j = u * stride + p - padding, v * stride + q - padding
        if 0 <= i < size and 0 <= j < size:
            touched.add((image, i, j, channel))
        del out
    n = Sizes({"b": b, "c": c, "o": o, "u": outputs, "v": outputs, "i": size, "j": size, "p": kernel, "q": kernel})
    op = conv2d("y[b u v o] = x[b i j c] * W_kernel[p q c o]", n)
    assert op.tensor.value() == 2 * points
    assert op.reads[0].touched.value() == 2 * len(touched)
    if stride in (1, 2) and kernel == 3:
        layer = mm.Conv2d(c=c, o=o, p=kernel, stride=stride)
        assert layer.forward_tensor_core_flops(b=b, i=size, j=size) == 2 * points


@pytest.mark.parametrize(("s", "t"), [(1, 1), (1, 6), (3, 3), (4, 7), (6, 6)])
def test_exact_causal_attention_walks_only_the_visible_pairs(s, t):
    layer = mm.LlamaAttention(8, 2, 2, 4, mm.LlamaRotaryEmbedding(4))
    visible = sum(1 for i, j in product(range(s), range(t)) if j <= t - s + i)
    full, exact = (layer.cost(b=3, s=s, t=t, causal=c) for c in ("full", "exact"))
    width = 3 * 2 * 2 * 4  # b g r e
    assert full.tensor_core_flops - exact.tensor_core_flops == 2 * 2 * width * (s * t - visible)
    heads = 3 * 2 * 2
    assert full.cuda_core_flops - exact.cuda_core_flops == heads * (1 + 5) * (s * t - visible)


def test_a_mixture_walks_its_tokens_and_reads_the_experts_they_reach():
    gate = mm.MoEGate(d=4, E=5, k=2)
    layer = mm.DeepseekV2MoE(gate, f=3, shared=None)
    b, s = 2, 3
    points = sum(1 for _ in product(range(b), range(s), range(2), range(4), range(3)))
    routed = [op for op in layer.trace(b=b, s=s) if "[E:D" in op.equation]
    assert [op.tensor.value() for op in routed] == [2 * points] * 3
    one = layer.cost(b=1, s=1)  # one token reaches exactly k experts
    assert one.weight_io_bytes == 2 * (2 * 3 * 4 * 3) + 2 * 4 * 5


def test_bits_are_declared_by_role_and_by_tensor_name():
    n = Sizes({"b": 3, "d": 4, "f": 5}, Options(precision=Precision("fp8", "fp32", overrides={"*W_*": 4.5})))
    op = matmul("y[b f] = x[b d] * W_up[d f]", n)
    assert [ref.touched.value() for ref in op.reads] == [3 * 4 * 4, 4 * 5 * 4.5 / 8]
    assert measure([op], "eager").activation_io_bytes == 4 * (3 * 4 + 3 * 5)
