"""The strongest proof: walk the iteration space and count what it does and what it touches."""

import re
from collections import defaultdict
from itertools import product

import pytest

from examples import CASES, IDS, RUNTIMES
from modelmeter import layers as mm
from modelmeter.graph.graph import checked
from modelmeter.graph.ops import conv2d, matmul
from modelmeter.graph.place import Root, Sizes
from modelmeter.programs.kernels import kernels_of
from modelmeter.programs.precision import Precision
from modelmeter.programs.storage import Storage
from modelmeter.sizes import evaluated

TENSOR = re.compile(r"(\w+)(?::(\d+))?\[([^\]]*)\]")
EXPERTS = "E:D"
SHARED = "[b g r s t]"  # scores of queries that share a key
SMALL = [(name, layer, {axis: min(v, 3) for axis, v in sizes.items()}) for name, layer, sizes in CASES]
each_layer = pytest.mark.parametrize(("name", "layer", "sizes"), SMALL, ids=IDS)


def tensors(text):
    """(name, axes touched) of each tensor in a part of an equation."""
    return [(name, [axis.rpartition(":")[2] for axis in axes.split()]) for name, _, axes in TENSOR.findall(text)]


def walked(op, axes, sizes):
    """How many points the space over axes of an op has."""
    extents = evaluated([getattr(op.n, axis) for axis in axes], sizes)
    return sum(1 for _ in product(*map(range, extents)))


def at(value, sizes):
    return evaluated([value], sizes)[0]


@each_layer
def test_each_matmul_costs_two_flops_a_point_of_its_loop_nest(name, layer, sizes):
    ops = [op for op in layer.graph().ops if op.kind == "matmul"]
    for op in ops:
        if EXPERTS in op.equation.text:
            continue  # routed experts: test_a_mixture_walks_its_tokens_and_reads_the_experts_they_reach
        factors = tensors(op.equation.text.partition("=")[2].partition("+")[0])
        loops = list(dict.fromkeys(axis for _, axes in factors for axis in axes))
        assert at(op.tensor, sizes) == 2 * walked(op, loops, sizes), op.equation.text
    convolves = name in ("PatchEmbed", "Conv2d", "CLIPVisionEmbeddings")
    assert ops or convolves or not layer.cost(**sizes).tensor_core_flops


@each_layer
def test_each_tensor_of_an_equation_is_the_elements_that_it_touches(name, layer, sizes):
    for op in layer.graph().ops:
        if op.kind in ("lookup", "unused") or EXPERTS in op.equation.text:
            continue  # proven in their own tests
        left, _, right = op.equation.text.partition("=")
        for refs, text in ((op.reads, right), (op.writes, left)):
            for ref, (tensor, axes) in zip(refs, tensors(text), strict=True):
                assert at(ref.touched, sizes) == walked(op, axes, sizes), (op.equation.text, tensor)


@each_layer
def test_each_kernel_of_code_that_is_written_out_touches_its_own_elements(name, layer, sizes):
    """But for the cache and heads that are repeated, which have tests of their own."""
    for op in layer.program(runtime="eager").graph.ops:
        if op.kind in ("lookup", "unused", "constant") or "C_" in op.equation.text or EXPERTS in op.equation.text:
            continue
        if op.kind == "matmul" and SHARED in op.equation.text:
            continue
        left, _, right = op.equation.text.partition("=")
        for refs, text in ((op.reads, right), (op.writes, left)):
            for ref, (tensor, axes) in zip(refs, tensors(text), strict=False):
                assert at(ref.touched, sizes) == walked(op, axes, sizes), (op.equation.text, tensor)


def bits_of(ref):
    return ref.bits or 16


def by_kernel(ops):
    """Indices of ops by the kernel that a runtime put them in."""
    found = defaultdict(list)
    for index, op in enumerate(ops):
        found[op.kernel or index].append(index)
    return found


def walked_traffic(ops, sizes):
    """Bytes by role that kernels move, element by element.

    A kernel loads each element that it did not make, stores each that another kernel loads, that nobody loads (it
    leaves the stage) or that is in the cache. One that spans repetitions runs them all: their weights are distinct.
    """
    writer, sources = {}, []
    for index, op in enumerate(ops):
        sources.append([(r, writer.get(r.name)) for r in op.reads])
        writer |= {w.name: index for w in op.writes}
    kernels = by_kernel(ops)
    home = {index: label for label, members in kernels.items() for index in members}
    loads = defaultdict(set)
    for index, reads in enumerate(sources):
        for r, source in reads:
            loads[r.name, source].add(home[index])
    total = defaultdict(int)
    for label, members in kernels.items():
        spans = label == "whole stage"
        loaded, stored = {}, {}
        for index in members:
            op = ops[index]
            times = at(op.times, sizes)
            for r, source in sources[index]:
                if source is None or home[source] != label or r.role == "kv":
                    copies = times if spans and r.role != "activation" else 1
                    touched = at(r.touched, sizes)
                    elements = {(r.name, source, c, i): 1 for c in range(copies) for i in range(int(touched))}
                    if touched % 1:  # expected experts: no whole number
                        elements[r.name, source] = touched % 1 * copies
                    loaded.setdefault((r.role, bits_of(r)), {}).update(elements)
            for w in op.writes:
                if w.role == "kv" or loads[w.name, index] != {label}:
                    copies = times if spans and w.role != "activation" else 1
                    stored.setdefault((w.role, bits_of(w)), []).append(copies * at(w.touched, sizes))
        runs = 1 if spans else at(ops[members[0]].times, sizes)
        for (role, width), elements in loaded.items():
            total[role] += runs * sum(elements.values()) * width / 8
        for (role, width), counts in stored.items():
            total[role] += runs * sum(counts) * width / 8
    return total


@pytest.mark.parametrize("runtime", RUNTIMES)
@each_layer
def test_traffic_is_the_elements_that_each_kernel_loads_and_stores(name, layer, sizes, runtime):
    found = walked_traffic(layer.program(runtime=runtime).graph.ops, sizes)
    cost = layer.cost(runtime=runtime, **sizes)
    for role, moved in (
        ("weight", cost.weight_io_bytes),
        ("activation", cost.activation_io_bytes),
        ("kv", cost.kv_io_bytes),
    ):
        assert found[role] == pytest.approx(moved, rel=1e-12), role


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
    for image, _, u, v, channel, p, q in product(
        range(b), range(o), range(outputs), range(outputs), range(c), range(kernel), range(kernel)
    ):
        points += 1
        i, j = u * stride + p - padding, v * stride + q - padding
        if 0 <= i < size and 0 <= j < size:
            touched.add((image, i, j, channel))
    n = Sizes({"b": b, "c": c, "o": o, "i": size, "j": size, "p": kernel, "q": kernel}).bind(u=outputs, v=outputs)
    op = conv2d("y[b u v o] = x[b i j c] * W_kernel[p q c o]", n)
    assert op.tensor == 2 * points
    assert op.reads[0].touched == len(touched)
    if stride in (1, 2) and kernel == 3:
        layer = mm.Conv2d(c=c, o=o, p=kernel, stride=stride)
        assert layer.forward_tensor_core_flops(b=b, i=size, j=size) == 2 * points


@pytest.mark.parametrize("window", [None, 1, 2, 4, 9])
@pytest.mark.parametrize(("s", "t"), [(1, 1), (1, 6), (3, 3), (4, 7), (6, 6)])
def test_causal_attention_walks_the_pairs_that_are_seen(s, t, window):
    """Exact: each query its own keys; full: each query every key that any query sees, as a dense product has it."""
    layer = mm.CausalAttention(8, 2, 2, 4, mm.LlamaRotaryEmbedding(4), window)
    seen = [
        (i, j) for i, j in product(range(s), range(t)) if j <= t - s + i and (window is None or j > t - s + i - window)
    ]
    keys = t if window is None else len({j for _, j in seen})
    full, exact = (layer.cost(b=3, s=s, t=t, causal=c) for c in ("full", "exact"))
    width = 3 * 2 * 2 * 4  # b g r e
    assert full.tensor_core_flops - exact.tensor_core_flops == 2 * 2 * width * (s * keys - len(seen))
    heads = 3 * 2 * 2
    assert full.cuda_core_flops - exact.cuda_core_flops == heads * (1 + 5) * (s * keys - len(seen))
    entries = len({j for j in range(t) if window is None or j > t - window})  # what the next query sees beside its own
    assert full.kv_cache_bytes == exact.kv_cache_bytes == 2 * entries * 3 * 2 * 4 * 2  # k and v: b g e in bf16


def test_a_mixture_walks_its_tokens_and_reads_the_experts_they_reach():
    layer = mm.DeepseekV2MoE(mm.MoEGate(d=4, E=5, k=2), f=3, shared=None)
    b, s = 2, 3
    points = sum(1 for _ in product(range(b), range(s), range(2), range(4), range(3)))
    routed = [op for op in layer.graph().ops if EXPERTS in op.equation.text]
    assert [at(op.tensor, {"b": b, "s": s}) for op in routed] == [2 * points] * 3
    one = layer.cost(b=1, s=1)  # one token reaches exactly k experts
    assert one.weight_io_bytes == 2 * (2 * 3 * 4 * 3) + 2 * 4 * 5


def test_eager_code_copies_the_whole_cache_at_every_call():
    """torch.cat reads what there was and what is new, and writes both; attention then reads it all."""
    layer, sizes = mm.LlamaAttention(8, 2, 1, 4), {"b": 3, "s": 2, "t": 7}
    row = 3 * 2 * 4 * 2  # a position of k or v: b g e in bf16
    eager, flash = (layer.cost(runtime=r, **sizes) for r in ("eager", "flash"))
    assert flash.kv_io_bytes == 2 * (2 * row + 7 * row)
    assert eager.kv_io_bytes == 2 * (5 * row + 7 * row + 7 * row)


def test_bits_are_declared_by_role_and_by_tensor_name():
    n = Sizes({"b": 3, "d": 4, "f": 5})
    op = matmul("y[b f] = x[b d] * W_up[d f]", n)
    graph = checked([op], ["x"], Root())
    (kernel,) = kernels_of(graph, Storage(graph, Precision("fp8", "fp32", overrides={"*W_*": 4.5})))
    assert kernel.read_bytes == {"activation": 3 * 4 * 4, "weight": 4 * 5 * 4.5 / 8}
    assert kernel.written_bytes == {"activation": 3 * 5 * 4}
