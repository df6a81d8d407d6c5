"""Runtimes: one of a user's own, the laws of passes and lifetimes, gradients beside torch's own kernels."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from test_graph import layer

from examples import CASES, IDS, RUNTIMES
from modelmeter import InputError, Repeat, Runtime, Sequence
from modelmeter import layers as mm
from modelmeter.graph import forms
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Ref, composite, matmul, pointwise
from modelmeter.programs.cost import COUNTS
from modelmeter.runtimes.lifetimes import last_read
from modelmeter.runtimes.passes import attention_kernel, last_logits, merge_projections
from modelmeter.sizes import ceil_div, evaluated

BARE = Runtime("bare", ())
PAGE = 16


def paged(graph):
    """The cache lies in blocks of 16 tokens, which attention finds by a table of 32 bits a block."""

    def in_blocks(r, tensor, n):
        if r.role != "kv":
            return r
        batch, positions, *heads = tensor.stored
        return r._replace(stored=ceil_div(n.elements((positions,)), PAGE) * PAGE * n.elements((batch, *heads)))

    ops = []
    for op in graph.ops:
        reads = [in_blocks(r, t, op.n) for r, t in zip(op.reads, op.equation.operands, strict=False)]
        writes = [in_blocks(r, t, op.n) for r, t in zip(op.writes, op.equation.outputs, strict=False)]
        if op.kernel and any(r.role == "kv" for r in reads):
            blocks = op.n.b * ceil_div(op.n.t, PAGE)
            reads.append(Ref("blocks", "", False, "activation", 32, blocks, blocks))
        ops.append(op._replace(reads=tuple(reads), writes=tuple(writes)))
    return Graph(tuple(ops), graph.inputs | {"blocks"}, graph.root)


SERVED = Runtime("served", (attention_kernel, merge_projections, last_logits, paged), last_read)
PLAIN = Runtime("plain", (attention_kernel,), last_read)
TABLE = 4


@pytest.mark.parametrize(("prompt", "steps"), [(0, 1), (10, 100), (700, 3)])
def test_a_runtime_of_a_users_own_serves_a_model(model, prompt, steps):
    page = {"grid": "1x2", "prompt_tokens": prompt, "decode_steps": steps, "batch": 3}
    served, plain = (model.workload(runtime=r, **page) for r in (SERVED, PLAIN))
    assert served.basis == "served, causal full, logits last, bf16"
    context, layers, token = served.context_tokens, 12, 61440
    decode, before = model.cost("decode", served), model.cost("decode", plain)
    assert decode.kv_cache_bytes == 3 * token * PAGE * -(-(context + steps) // PAGE)
    assert (decode.flops, decode.weight_io_bytes, decode.kv_io_bytes) == (
        before.flops, before.weight_io_bytes, before.kv_io_bytes,
    )  # fmt: skip
    hidden = 3 * 1280 * 2  # of one token in each sequence; q, k and v read it once, and so do gate and up
    looked_up = layers * 3 * TABLE * sum(-(-(context + k) // PAGE) for k in range(1, steps + 1))
    shared = 12 * 2 + 12  # experts are no linear layers of the input, the shared ones and the first MLP are
    again = 11 * 6 * hidden * steps  # the tokens of the experts are gathered once, and read by gate and by up
    head = 2 * hidden * steps  # the copy of the last position, which is the only one
    assert before.activation_io_bytes - decode.activation_io_bytes == shared * hidden * steps + again - looked_up - head
    prefill = model.cost("prefill", served).tensor_core_flops
    assert model.cost("prefill", plain).tensor_core_flops - prefill == 3 * 2 * (context - 1) * 1280 * 129280


def test_a_runtime_of_a_users_own_gives_arrays_parts_kernels_and_gradients(model):
    work = model.workload(grid="1x2", prompt_tokens=np.array([3.0, 40.0]), decode_steps=20, runtime=SERVED)
    many = model.cost("decode", work).as_dict()
    for i, prompt in enumerate((3, 40)):
        one = model.workload(grid="1x2", prompt_tokens=prompt, decode_steps=20, runtime=SERVED)
        for count, exact in model.cost("decode", one).as_dict().items():
            assert np.broadcast_to(many[count], 2)[i] == pytest.approx(exact, rel=1e-15), count
    assert list(model.breakdown("decode", one)) == ["embedding", "decoder", "head"]
    kernels = model.kernels("decode", one)
    assert sum(k.runs for k in kernels if len(k.ops) == 3 and all("W_" in op for op in k.ops)) == 12  # q, k and v
    assert mm.GatedMLP(4, 8).backward_cost(b=1, s=2, runtime=SERVED).flops > 0


def test_merged_projections_read_their_input_once():
    attention, mlp, sizes = mm.LlamaAttention(8, 2, 3, 4), mm.GatedMLP(8, 5), {"b": 2, "s": 3}
    merged, apart = (Runtime(name, passes) for name, passes in (("merged", (merge_projections,)), ("apart", ())))
    for example, given, saved in (
        (attention, sizes | {"t": 5}, 2),
        (mlp, sizes, 1),
        (mm.SelfAttention(8, 2, 4), sizes, 2),
    ):
        a, b = (example.cost(runtime=r, **given) for r in (apart, merged))
        assert a.activation_io_bytes - b.activation_io_bytes == saved * 2 * 3 * 8 * 2
        assert replace(a, activation_io_bytes=0, peak_activation_bytes=0, basis="") == replace(
            b, activation_io_bytes=0, peak_activation_bytes=0, basis=""
        )


def test_only_linear_layers_of_the_same_tensor_are_merged():
    def body(n):
        yield matmul("q[b s f] = x[b s d] * W_1[d f]", n)
        yield matmul("a[b s t] = x[b s d] * x[b t d]", n.bind(t=n.s))  # no weight
        yield pointwise("g[b s d] = x[b s d] * W_2[d]", 1, n)  # no product
        yield matmul("k[b s f] = x[b s d] * W_3[d f]", n)
        yield pointwise("x[b s d] = g[b s d]", 1, n)
        yield matmul("y[b s f] = x[b s d] * W_4[d f]", n)  # of another x
        yield from composite("own", matmul("z[b s f] = x[b s d] * W_5[d f]", n), always=True)  # a kernel already

    kernels = layer(body)(4, 5).program(runtime=Runtime("merged", (merge_projections,))).kernels(b=1, s=2)
    assert [[text.split("[")[0] for text in kernel.ops] for kernel in kernels] == [
        ["q", "k"], ["a"], ["g"], ["x"], ["y"], ["z"],
    ]  # fmt: skip


@pytest.mark.parametrize("times", [1, 3])
def test_an_operand_that_a_kernel_reads_twice_crosses_once(times):
    square = layer(lambda n: [pointwise("y[b s d] = x[b s d] * x[b s d]", 1, n)], "d")(4)
    assert Repeat(square, times).cost(b=2, s=3, runtime=BARE).activation_io_bytes == times * 2 * (2 * 3 * 4) * 2

    def twice(n):
        yield pointwise("h[b s d] = x[b s d]", 1, n)
        yield pointwise("y[b s d] = h[b s d] * x[b s d]", 1, n)

    one_kernel = Runtime("one", (lambda graph: graph.with_ops(op._replace(kernel="all") for op in graph.ops),))
    for runtime, crossings in ((BARE, 5), (one_kernel, 2)):  # x y; x h, h x y
        assert layer(twice, "d")(4).cost(b=2, s=3, runtime=runtime).activation_io_bytes == crossings * 2 * 3 * 4 * 2


def test_a_kernel_that_makes_the_cache_writes_it_all_the_same():
    attention, sizes = mm.LlamaAttention(8, 2, 3, 4), {"b": 2, "s": 3, "t": 5}
    written, read = 2 * (2 * 3 * 2 * 4) * 2, 2 * (2 * 5 * 2 * 4) * 2
    for runtime in ("flash", "fused", "compulsory"):
        assert attention.cost(runtime=runtime, **sizes).kv_io_bytes == written + read
        kernels = attention.program(runtime=runtime).kernels(**sizes)
        assert sum(k.written_bytes.get("kv", 0) for k in kernels) == written


@pytest.mark.parametrize("runtime", ["flash", "fused"])
@pytest.mark.parametrize(("name", "example", "sizes"), CASES, ids=IDS)
def test_no_kernel_spans_repetitions(name, example, sizes, runtime):
    """A repeated layer moves what so many of it move alone: each writes what the next one reads."""
    graph = example.program(runtime=runtime).graph
    loops = {}
    for op in graph.ops:
        assert loops.setdefault(op.kernel, op.node.loop) == op.node.loop or not op.kernel
    if example.inputs.split() == ["x"] and name not in ("Repeat", "Sequence"):
        x, y = (next(r for op in example.graph().ops for r in side(op) if r.name == end) for side, end in (
            (lambda op: op.reads, "x"), (lambda op: op.writes, "y"),
        ))  # fmt: skip
        if x.stored is y.stored:
            one, five = example.cost(runtime=runtime, **sizes), Repeat(example, 5).cost(runtime=runtime, **sizes)
            assert five.io_bytes == pytest.approx(5 * one.io_bytes, rel=1e-15)


def test_a_pointwise_op_rides_with_the_kernel_of_its_latest_operand():
    def body(n):
        yield pointwise("a[b s d] = x[b s d]", 1, n)
        yield pointwise("c[b s d] = x[b s d]", 1, n)
        yield pointwise("y[b s d] = a[b s d] * c[b s d]", 1, n)

    kernels = layer(body, "d")(4).program(runtime="fused").kernels(b=1, s=1)
    assert [len(kernel.ops) for kernel in kernels] == [1, 2]
    linear = mm.MLP(4, 8).program(runtime="fused").kernels(b=1, s=1)
    assert [len(kernel.ops) for kernel in linear] == [2, 1]  # GELU with the first product


def unrolled(ops, sizes, inside=""):
    """The ops that run, in order, with two rounds of what is repeated: op, names that are other ones by now, what has returned."""
    flat, start = [], 0
    while start < len(ops):
        loop, end = ops[start].node.loop, start + 1
        if loop == inside:
            flat.append((ops[start], {}, ""))
        else:
            while end < len(ops) and f"{ops[end].node.loop}.".startswith(f"{loop}."):
                end += 1
            body = unrolled(ops[start:end], sizes, loop)
            flat += body
            if evaluated([ops[start].node.again], sizes)[0]:
                entering, leaving = ops[start].node.held
                again = enumerate(body)
                flat += [(op, other | {entering: leaving}, gone if i else loop) for i, (op, other, gone) in again]
        start = end
    return flat


def collected(op, w):
    """Whether what is around a loop keeps this of every round."""
    return (
        op.node.loop
        and op.kind != "constant"
        and w.stored != w.touched
        and not f"{w.frame}.".startswith(f"{op.node.loop}.")
    )


def simulated_peak(graph, sizes, *, python):
    """The peak of a run that holds every tensor as an object under its name, one op after the other."""
    steps = unrolled([op for op in graph.ops if evaluated([op.again], sizes)[0]], sizes)
    width = lambda r, share=False: evaluated([r.touched if share else r.stored], sizes)[0] * (r.bits or 16) / 8
    sources, versions = [], {}
    for index, (op, other, _) in enumerate(steps):
        sources.append([(r, versions.get(other.get(r.name, r.name), -1)) for r in op.reads if r.role == "activation"])
        versions |= {w.name: index for w in op.writes}
    readers = {}
    for index, found in enumerate(sources):
        for r, source in found:
            readers.setdefault((steps[index][1].get(r.name, r.name), source), []).append(index)
    given = {}
    for found in sources:
        given |= {r.name: width(r) for r, source in found if source < 0}

    def in_registers(index, w):
        op, users = steps[index][0], readers.get((w.name, index), [])
        return users and all(
            op.composite and steps[u][0].kernel and steps[u][0].composite == op.composite for u in users
        )

    names, peak = {}, sum(given.values())
    for index, (op, _, returned) in enumerate(steps):
        for name, (frame, _, _) in list(names.items()):
            again = returned and f"{frame}.".startswith(f"{returned}.")
            if again or (frame and not f"{op.path}.".startswith(f"{frame}.")):
                del names[name]
        made = [w for w in op.writes if w.role == "activation" and not in_registers(index, w)]
        alive = sum(size for _, _, size in names.values()) + sum(width(w, collected(op, w)) for w in made)
        peak = max(peak, sum(given.values()) + alive)
        for (name, source), users in readers.items():
            dying = source >= 0 and users[-1] == index and name in names
            if dying and (not python or names[name][1]):
                del names[name]
        for w in made:
            _, _, before = names.pop(w.name, ("", False, 0))
            if (w.name, index) in readers or not w.temporary:
                size = before + width(w, share=True) if collected(op, w) else width(w)
                names[w.name] = (w.frame, w.temporary, size)
    return peak


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("name", "example", "sizes"), CASES, ids=IDS)
def test_the_peak_is_that_of_a_run_that_holds_every_tensor(name, example, sizes, runtime):
    graph = example.program(runtime=runtime).graph
    python = Runtime.of(runtime).lifetimes is not last_read
    assert example.cost(runtime=runtime, **sizes).peak_activation_bytes == simulated_peak(graph, sizes, python=python)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_repeating_is_a_sequence_of_copies_in_every_runtime_but_the_least(runtime):
    block = mm.ResidualBlock(mm.SelfAttention(6, 2, 3), mm.MLP(6, 7), mm.LayerNorm(6))
    repeated, copies = (kind.cost(b=2, s=5, runtime=runtime) for kind in (Repeat(block, 3), Sequence((block,) * 3)))
    same = COUNTS if runtime in ("eager", "flash") else (*COUNTS[:3], *COUNTS[5:7])
    for count in (c for c in same if runtime != "fused" or c != "activation_io_bytes"):
        assert getattr(repeated, count) == getattr(copies, count), count


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_attention_costs_the_scale_and_the_softmax_of_each_row_in_every_runtime(runtime):
    b, s, t, d, g, r, e = 2, 3, 5, 6, 2, 3, 4
    rotated = 7 * b * s * (g * r + g) * e // 2
    rows = b * g * r * s
    causal = mm.LlamaAttention(d, g, r, e).cost(b=b, s=s, t=t, runtime=runtime)
    assert causal.cuda_core_flops == rotated + rows * (t + 5 * t - 2)
    biases, rows = 4 * b * s * d, b * 2 * s
    both = mm.SelfAttention(d, 2, 3).cost(b=b, s=s, runtime=runtime)
    assert both.cuda_core_flops == biases + rows * (s + 5 * s - 2)


def written_out():
    return {name: form for name, form in vars(forms).items() if isinstance(form, forms.Form) and form.steps}


@pytest.mark.parametrize("name", written_out())
def test_the_steps_of_a_form_cost_what_the_form_costs(name):
    """Each step runs over all elements or over the rows; rotation counts pairs of them, of which one is turned round."""
    form = written_out()[name]
    pair = 2 if any("[half]" in step.equation for step in form.steps) else 1
    over_rows = [all("[rest]" in t for t in re.findall(r"\w+[:\d]*(?:\[.*?\])?", s.equation)) for s in form.steps]
    row = sum(s.flops for s, rows in zip(form.steps, over_rows, strict=True) if rows)
    share = lambda text: 1.5 if "[coordinates b s H] =" in text else 1 if "[half] =" in text else pair  # 3 of each pair
    every = sum(s.flops * share(s.equation) for s in form.steps)
    element = every - row * pair
    assert element == form.element
    assert row == form.row or name in (
        "SOFTMAX_IN_FP32",
        "NARROW_SOFTMAX",
        "LAYER_NORM",
    )  # one kernel each, rows included


@pytest.mark.parametrize(("value", "message"), [
    ("fast", "unknown runtime 'fast'"), ("flahs", "did you mean 'flash'"), (3, "runtime must be a name or a Runtime, not 3"),
])  # fmt: skip
def test_an_unknown_runtime_names_what_is_there(value, message):
    with pytest.raises(InputError, match=message) as error:
        mm.RMSNorm(4).cost(b=1, s=1, runtime=value)
    assert all(name in str(error.value) for name in RUNTIMES)


@pytest.mark.parametrize(("text", "message"), [
    ("passes: [attention_kernle]\nlifetimes: names", "unknown pass of runtime 'mine': 'attention_kernle', did you mean"),
    ("passes: []\nlifetimes: nmes", "unknown lifetimes of runtime 'mine': 'nmes', did you mean 'names'"),
    ("passes: []\nlifetime: names", "unknown key of runtime 'mine': 'lifetime', did you mean 'lifetimes'"),
])  # fmt: skip
def test_a_runtimes_file_names_passes_and_lifetimes_that_are_there(tmp_path, monkeypatch, text, message):
    from modelmeter.runtimes import runtime

    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "mine.yaml").write_text(text)
    monkeypatch.setattr(runtime, "config_dir", lambda: tmp_path)
    monkeypatch.setattr(runtime, "config_names", lambda group: ["mine"])
    with pytest.raises(InputError, match=message):
        runtime._named.__wrapped__("mine")


def torch_backward(run, *shapes):
    """Kernels of torch's backward pass of a function of bf16 tensors, and of nothing else."""
    torch = pytest.importorskip("torch")
    from operators import Operators

    inputs = [torch.ones(shape, dtype=torch.bfloat16, device="meta", requires_grad=True) for shape in shapes]
    result = run(torch, *inputs)
    incoming = torch.ones_like(result)
    with Operators((incoming,)) as operators:
        torch.autograd.grad(result, inputs, incoming)
    return [kernel for kernel in operators.seen if kernel.name not in ("detach", "ones_like")]


B, S, D, F = 2, 3, 4, 5


def test_the_backward_pass_of_a_linear_layer_is_torchs_with_the_sum_of_the_bias():
    linear = layer(lambda n: [matmul("y[b s f] = x[b s d] * W_1[d f] + W_b[f]", n)])(D, F)
    kernels = torch_backward(lambda torch, x, w, b: torch.addmm(b, x, w), (B * S, D), (D, F), (F,))
    assert Counter(k.name for k in kernels) == {"mm": 2, "sum": 1}
    cost = linear.backward_cost(b=B, s=S, runtime=BARE)
    assert cost.io_bytes == sum(k.bytes for k in kernels)
    assert cost.cuda_core_flops == B * S * F  # the sum over all rows
    assert cost.tensor_core_flops == 2 * 2 * B * S * D * F
    ours = linear.program(runtime=BARE, gradients=True).kernels(b=B, s=S)
    assert sorted(k.io_bytes for k in ours) == sorted(k.bytes for k in kernels)


ELEMENTS = B * S * D * 2
NORMED = B * S * 4
"""Bytes of a tensor in bf16; of a statistic of each row in fp32."""


@pytest.mark.parametrize(("body", "run", "shapes", "more"), [
    (lambda n: [mm.mlp.pointwise("y[b s d] = x[b s d]", forms.SILU, n)],
     lambda torch, x: torch.nn.functional.silu(x), [(B, S, D)], 0),
    (lambda n: [mm.mlp.pointwise("y[b s d] = x[b s d]", mm.mlp.GELU, n)],
     lambda torch, x: torch.nn.functional.gelu(x), [(B, S, D)], 0),
    (lambda n: [mm.attention.softmax("y[b s d] = x[b s d]", n, row="d")],
     lambda torch, x: x.softmax(-1), [(B, S, D)], 0),  # torch reads the result in the place of the input
    (lambda n: [pointwise("y[b s d] = x[b s d] * x2[b s d]", 1, n)],
     lambda torch, x, z: x * z, [(B, S, D)] * 2, ELEMENTS),  # two kernels: each reads the gradient
    (lambda n: [mm.norm.norm("y[b s d] = x[b s d] * W_w[d] + W_b[d]", mm.norm.LAYER_NORM, n)],
     lambda torch, x, w, b: torch.nn.functional.layer_norm(x, (D,), w, b), [(B, S, D), (D,), (D,)], 2 * NORMED),
], ids=["silu", "gelu", "softmax", "product", "layer norm"])  # fmt: skip
def test_the_backward_pass_of_other_ops_reads_what_torch_reads(body, run, shapes, more):
    example = layer(body, "d", inputs="x x2")(D)
    cost = example.backward_cost(b=B, s=S, runtime=BARE)
    assert cost.io_bytes + more == sum(k.bytes for k in torch_backward(run, *shapes))
    assert cost.cuda_core_flops == 2 * example.forward_cuda_core_flops(b=B, s=S, runtime=BARE)


def test_the_backward_pass_of_attentions_products_is_torchs():
    h, e = 2, 3
    products = layer(lambda n: [
        mm.attention.matmul("a[b h s t] = x[b s h e] * k[b t h e]", n.bind(t=n.s)),
        mm.attention.softmax("p[b h s t] = a[b h s t]", n.bind(t=n.s), row="t"),
        mm.attention.matmul("y[b s h e] = p[b h s t] * v[b t h e]", n.bind(t=n.s)),
    ], "h e", inputs="x k v")(h, e)  # fmt: skip

    def run(torch, q, k, v):
        return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)

    kernels = torch_backward(run, *[(B * h, S, e)] * 3)
    cost = products.backward_cost(b=B, s=S, runtime=BARE)
    assert Counter(k.name for k in kernels) == {"bmm": 4, "_softmax_backward_data": 1}
    assert cost.io_bytes == sum(k.bytes for k in kernels)
    assert cost.tensor_core_flops == 4 * 2 * B * h * S * S * e


def test_the_gradients_of_one_kernel_keep_on_chip_what_it_kept():
    attention, sizes = mm.SelfAttention(6, 2, 3), {"b": 2, "s": 5}
    bare, one = (attention.backward_cost(runtime=r, **sizes) for r in (BARE, PLAIN))
    scores = 2 * 2 * 5 * 5 * 2
    # v's gradient reads p; p's is written and read with p and scaled scores by softmax, read twice by q's and k's...
    assert bare.flops == one.flops and bare.activation_io_bytes - one.activation_io_bytes > 6 * scores
    kernels = attention.program(runtime=PLAIN, gradients=True).kernels(**sizes)
    (fused,) = [k for k in kernels if len(k.ops) > 1]
    heads = 2 * 5 * 6 * 2
    assert fused.read_bytes == {"activation": 4 * heads}  # q, k, v and the gradient of the result
    assert fused.written_bytes == {"activation": 3 * heads}


def test_rotary_tables_have_no_gradient():
    table = mm.RotaryEmbedding(4)
    assert table.backward_cost(b=1, s=3, runtime=BARE).flops == 0
