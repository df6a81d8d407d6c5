"""Layers that scan: equality with the real module, and loops that are walked where torch counts nothing."""

from dataclasses import replace
from itertools import product

import pytest

from modelmeter import InputError, Repeat
from modelmeter import layers as mm
from modelmeter.layers.decoder import in_steps
from modelmeter.models.vlm import text_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from operators import Operators  # noqa: E402
from transformers import DynamicCache, Qwen3NextConfig  # noqa: E402
from transformers.models.qwen3_next import modeling_qwen3_next as reference  # noqa: E402

from modelmeter.validate.counters import ScalarOperations, tensor_core_flops, tensors_in  # noqa: E402

RULES = {
    "cumsum": lambda args, out: out.numel(),
    "softplus": lambda args, out: 3 * out.numel(),
    "linalg_solve_triangular": lambda args, out: out.numel() * (out.shape[-2] - 1),
}
"""A running sum adds each element; log(1 + exp(x)); a column of C unknowns takes C (C - 1), which is walked below."""


class Scalars(ScalarOperations):
    """The convention of docs/counting.md with the operators of a scan."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        rule = RULES.get(func.overloadpacket.__name__)
        if rule is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        result = func(*args, **(kwargs or {}))
        if any(t.untyped_storage()._cdata in self._tainted for t in tensors_in((args, kwargs))):
            self._taint(result)
            self.flops += rule(args, result)
        return result


LAYERS = {
    "grouped": mm.GatedDeltaNet(d=24, g=2, r=3, e=8, o=5),
    "heads alike": mm.GatedDeltaNet(d=16, g=3, r=1, e=4, o=4, p=2),
    "a long kernel": mm.GatedDeltaNet(d=10, g=1, r=2, e=3, o=7, p=9),
    "full size": mm.GatedDeltaNet(d=2048, g=16, r=2, e=128, o=128),
}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
each_place = pytest.mark.parametrize(("b", "s"), [(1, 1), (2, 3), (1, 64), (3, 65), (2, 200), (1, 128)])


def module_of(layer):
    """The real module on the meta device, and a cache for it."""
    config = Qwen3NextConfig(
        hidden_size=layer.d, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_key_heads=layer.g,
        linear_num_value_heads=layer.g * layer.r, linear_key_head_dim=layer.e, linear_value_head_dim=layer.o,
        linear_conv_kernel_dim=layer.p,
    )  # fmt: skip
    with torch.device("meta"):
        module = reference.Qwen3NextGatedDeltaNet(config, 0).to(torch.bfloat16).eval()
    return module, lambda: DynamicCache(config=config)


def tokens(layer, b, s):
    return torch.empty(b, s, layer.d, dtype=torch.bfloat16, device="meta")


def prefilled(layer, b, s):
    """The module and a cache that has seen s tokens."""
    module, cache = module_of(layer)
    held = cache()
    with torch.no_grad():
        module(tokens(layer, b, s), cache_params=held)
    return module, held


def states(cache):
    return cache.layers[0].conv_states[0], cache.layers[0].recurrent_states[0]


def products(layer, **sizes):
    """Bytes of the operands of matmuls and convolutions, each a kernel."""
    kernels = layer.program(runtime="eager").kernels(**sizes)
    return sum(k.io_bytes for k in kernels if k.loops)


def measured(run, inputs):
    """Tensor-core FLOPs, CUDA-core FLOPs and bytes of the operands of products."""
    with torch.no_grad():
        tensor = tensor_core_flops(run)
        with Scalars(inputs) as seen:
            run()
    return tensor, seen.flops, seen.bytes


@each_layer
@each_place
def test_the_chunked_form_is_what_the_module_runs_for_a_prompt(layer, b, s):
    module, cache = module_of(layer)
    x = tokens(layer, b, s)
    tensor, scalar, moved = measured(lambda: module(x, cache_params=cache()), x)
    cost = layer.cost(b=b, s=s)
    assert cost.parameters == sum(p.numel() for p in module.parameters())
    assert (cost.tensor_core_flops, cost.cuda_core_flops) == (tensor, scalar)
    padding = 2 * b * (max(s, layer.p) - s) * (2 * layer.g * layer.e + layer.g * layer.r * layer.o)
    assert products(layer, b=b, s=s) == moved - padding  # of a sequence shorter than the cached positions


@each_layer
@pytest.mark.parametrize("b", [1, 3])
def test_the_step_form_is_what_the_module_runs_for_a_token(layer, b):
    module, cache = prefilled(layer, b, 70)
    x, step = tokens(layer, b, 1), replace(layer, form="step")
    tensor, scalar, moved = measured(lambda: module(x, cache_params=cache), (x, *states(cache)))
    cost = step.cost(b=b, s=1)
    assert cost.parameters == sum(p.numel() for p in module.parameters())
    assert (cost.tensor_core_flops, cost.cuda_core_flops) == (tensor, scalar)
    assert products(step, b=b, s=1) == moved


@each_layer
@each_place
def test_the_cache_is_the_state_of_transformers_and_does_not_grow(layer, b, s):
    module, cache = prefilled(layer, b, s)
    held = sum(t.numel() * t.element_size() for t in states(cache))
    assert layer.forward_memory_kvcache_bytes(b=b, s=s) == held
    with torch.no_grad():
        module(tokens(layer, b, 1), cache_params=cache)
    assert sum(t.numel() * t.element_size() for t in states(cache)) == held
    step = replace(layer, form="step")
    assert step.forward_memory_kvcache_bytes(b=b, s=1) == held
    assert layer.cost(b=b, s=s).kv_io_bytes == held  # written
    assert step.cost(b=b, s=1).kv_io_bytes == 2 * held  # read and written


@each_layer
def test_both_forms_have_the_same_weights_and_cache(layer):
    chunked, step = (form.cost(b=2, s=1) for form in (layer, replace(layer, form="step")))
    for count in ("parameters", "weight_bytes", "kv_cache_bytes", "weight_io_bytes"):
        assert getattr(chunked, count) == getattr(step, count), count
    weights = [{(r.name, r.stored) for op in form.graph().ops for r in op.reads if r.role == "weight"}
               for form in (layer, replace(layer, form="step"))]  # fmt: skip
    assert weights[0] == weights[1]
    with pytest.raises(InputError, match="did you mean 'chunked'"):
        replace(layer, form="chunk")


class Number:
    """A number that counts the arithmetic done with it."""

    done = 0

    def __init__(self, value):
        self.value = value

    def _made(self, value):
        Number.done += 1
        return Number(value)

    def __add__(self, other):
        return self._made(self.value + other.value)

    def __sub__(self, other):
        return self._made(self.value - other.value)

    def __mul__(self, other):
        return self._made(self.value * other.value)

    def exp(self):
        return self._made(self.value.exp())


def numbers(tensor):
    """Elements by index."""
    return {i: Number(tensor[i]) for i in product(*map(range, tensor.shape))}


def added(values):
    first, *others = values
    for other in others:
        first = first + other
    return first


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def scan_of(layer, **sizes):
    """The kernel that scans."""
    (kernel,) = [k for k in layer.program().kernels(**sizes) if any(op.startswith("C_state") for op in k.ops)]
    return kernel


@pytest.mark.parametrize("s", [1, 3])
def test_a_step_walked_number_by_number_gives_the_modules_result_at_the_counted_cost(s):
    torch.manual_seed(0)
    b, h, e, o = 2, 3, 4, 5
    q, k, v, state = (random(b, h, *shape) for shape in ((s, e), (s, e), (s, o), (e, o)))
    beta, g = random(b, h, s), -random(b, h, s).abs()
    given = (x.transpose(1, 2).float() for x in (q, k, v, g, beta))
    wanted, left = reference.torch_recurrent_gated_delta_rule(*given, initial_state=state, output_final_state=True)
    Number.done = 0
    S, Q, K, V, B, G = map(numbers, (state, q, k, v, beta, g))
    keys, result = list(range(e)), {}
    for i, j, t in product(range(b), range(h), range(s)):
        fade = G[i, j, t].exp()
        for x, y in product(keys, range(o)):
            S[i, j, x, y] = S[i, j, x, y] * fade
        for y in range(o):
            held = added([S[i, j, x, y] * K[i, j, t, x] for x in keys])
            new = (V[i, j, t, y] - held) * B[i, j, t]
            for x in keys:
                S[i, j, x, y] = S[i, j, x, y] + K[i, j, t, x] * new
            result[i, t, j, y] = added([S[i, j, x, y] * Q[i, j, t, x] for x in keys])
    layer = mm.GatedDeltaNet(d=7, g=h, r=1, e=e, o=o, form="step")
    assert sum(scan_of(layer, b=b, s=s).cuda_flops.values()) == Number.done == b * h * s * (7 * e * o + 1)
    for index, number in result.items():
        assert float(wanted[index]) == pytest.approx(float(number.value) / e**0.5, rel=1e-4, abs=1e-5)
    for index, number in S.items():
        assert float(left[index]) == pytest.approx(float(number.value), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("C", [1, 2, 5, 8])
def test_a_triangular_system_is_solved_by_as_many_operations_as_counted(C):
    """By substitution, its diagonal 1; the layer solves for the values and the keys of each chunk."""
    torch.manual_seed(0)
    columns = 3
    system, right = random(C, C), random(C, columns)
    wanted = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    Number.done = 0
    L, x = numbers(system), numbers(right)
    for column, i in product(range(columns), range(C)):
        for j in range(i):
            x[i, column] = x[i, column] - L[i, j] * x[j, column]
    assert Number.done == columns * C * (C - 1) == RULES["linalg_solve_triangular"]((), wanted)
    for index, number in x.items():
        assert float(number.value) == pytest.approx(float(wanted[index]), rel=1e-9)
    b, s, h, e, o = 2, 17, 6, 4, 5
    layer = mm.GatedDeltaNet(d=7, g=2, r=3, e=e, o=o, C=C)
    solves = [k for k in layer.program().kernels(b=b, s=s) if "= ut" in k.ops[0]]
    assert len(solves) == 2 or C == 1
    assert sum(sum(k.cuda_flops.values()) for k in solves) == b * h * -(-s // C) * (e + o) * C * (C - 1)


@pytest.mark.parametrize("s", [1, 5, 12, 13])
def test_chunks_cost_what_their_function_costs_at_any_length_of_a_chunk(s):
    """At C = 6 beside torch's own function, and its result is that of as many steps."""
    b, g, r, e, o, C = 2, 2, 3, 4, 5, 6
    torch.manual_seed(0)
    q, k = (torch.randn(b, s, g, e) for _ in "qk")
    v, beta, a = torch.randn(b, s, g * r, o), torch.rand(b, s, g * r), -torch.rand(b, s, g * r)
    given, options = (q, k, v, a, beta), dict(output_final_state=True, use_qk_l2norm_in_kernel=True)
    run = lambda: reference.torch_chunk_gated_delta_rule(*given, chunk_size=C, **options)
    tensor, scalar, _ = measured(run, given)
    layer = mm.GatedDeltaNet(d=7, g=g, r=r, e=e, o=o, C=C)
    outside = "_c[", "_beta[", "_z:", "_o["
    kernels = layer.program().kernels(b=b, s=s)
    inside = [k for k in kernels if not any("W_" in op or op.startswith(outside) for op in k.ops)]
    assert sum(sum(k.tensor_flops.values()) for k in inside) == tensor
    assert sum(sum(k.cuda_flops.values()) for k in inside) == scalar
    steps = reference.torch_recurrent_gated_delta_rule(*given, **options)
    for ours, theirs in zip(run(), steps, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_decode_goes_in_steps_and_its_cache_does_not_grow():
    scan, norm, mlp = mm.GatedDeltaNet(d=12, g=2, r=2, e=4, o=3), mm.RMSNorm(12), mm.GatedMLP(12, 5)
    attention = mm.CausalAttention(12, 1, 2, 4, mm.LlamaRotaryEmbedding(4))
    scans = Repeat(mm.ResidualBlock(scan, mlp, norm), 3)
    decoder = mm.CausalLM(
        mm.TokenEmbedding(11, 12), (scans, mm.ResidualBlock(attention, mlp, norm)), norm, mm.LMHead(11, 12)
    )
    model = text_model("hybrid", decoder)
    state = 3 * scan.forward_memory_kvcache_bytes(b=2, s=1)
    prefill = model.cost("prefill", model.text(100, batch=2))
    decode = model.cost("decode", model.text(100, batch=2, decode_steps=20))
    token = 2 * 2 * 4 * 2  # keys and values of the one layer with attention
    assert prefill.kv_cache_bytes == state + 100 * token and decode.kv_cache_bytes == state + 120 * token
    assert prefill.parameters == decode.parameters
    plain, step = (model.cost("decode", model.text(n, batch=2, decode_steps=1)) for n in (1, 2))
    steps = [model.cost("decode", model.text(100 + i, batch=2, decode_steps=1)) for i in range(20)]
    assert sum(s.flops for s in steps) == decode.flops and sum(s.kv_io_bytes for s in steps) == decode.kv_io_bytes
    assert step.kv_io_bytes - plain.kv_io_bytes == token  # attention reads one more, the scans as much as before
    ours = in_steps(decoder).cost(b=2, s=1, t=101)
    assert steps[0].flops == ours.flops < decoder.cost(b=2, s=1, t=101).flops
    assert in_steps(attention) is attention


@each_layer
@pytest.mark.parametrize(("form", "b", "s"), [("chunked", 2, 200), ("step", 2, 1)])
def test_written_out_it_moves_what_the_modules_kernels_move_but_for_layout_copies(layer, form, b, s):
    module, cache = module_of(layer)
    x, held, inputs = tokens(layer, b, s), cache(), ()
    if form == "step":
        module, held = prefilled(layer, b, 70)
        inputs = states(held)
    with torch.no_grad(), Operators((x, *inputs)) as operators:
        module(x, cache_params=held)
    moved = replace(layer, form=form).forward_io_bytes(b=b, s=s, runtime="eager")
    assert 0.85 * operators.bytes < moved < operators.bytes
