"""Programs: made once, evaluated as points, arrays, formulas and JSON; their kernels add up to their totals."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import CASES, ENGINES, IDS, RUNTIMES
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.programs.cost import COUNTS

STAGES = ("vision", "prefill", "decode")
VARIANTS = [
    {}, {"runtime": "eager"}, {"runtime": "fused"}, {"runtime": "compulsory"},
    {"causal": "exact", "logits": "last"}, {"mode": "gundam_m"}, {"precision": {"weights": 4.5, "kv": "fp8"}},
]  # fmt: skip
ROLES = {"weight": "weight_io_bytes", "activation": "activation_io_bytes", "kv": "kv_io_bytes"}
points = st.tuples(*(st.integers(1, 40) for _ in range(5)))
in_every_runtime = pytest.mark.parametrize("runtime", (*RUNTIMES, *ENGINES))


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: ",".join(map(str, v.values())) or "default")
def variant(request):
    return request.param


def page_of(model, point, **options):
    batch, h, w, prompt, steps = point
    return model.workload(grid=(h, w), batch=batch, prompt_tokens=prompt, decode_steps=steps, **options)


def values_of(model, stage, work):
    """The sizes of a stage's program, in its own order."""
    found = model.stage(stage)
    sizes = dict(found.sizes(work))
    if found.steps:
        sizes |= {"first": sizes[found.grows], "steps": found.steps(work)}
    return [sizes[name] for name in model.program(stage, work).names]


@settings(max_examples=10)
@given(points)
def test_a_point_is_exact(model, variant, point):
    page = page_of(model, point, **variant)
    for stage in STAGES:
        cost = model.cost(stage, page)
        for count in COUNTS:
            if count != "weight_io_bytes":  # expected distinct experts are no integer
                assert isinstance(getattr(cost, count), (int, Fraction)), (stage, count)
        assert isinstance(cost.flops, int) and cost.basis == page.basis


def test_arrays_across_chunks_equal_their_points(model, variant):
    rng = np.random.default_rng(0)
    many = 20_000  # more than two chunks
    sizes = [rng.integers(1, 9, many).astype(float) for _ in range(5)]
    page = page_of(model, sizes, **variant)
    for stage in STAGES:
        whole = model.cost(stage, page).as_dict()
        for place in (0, 8191, 8192, 16_383, 16_384, many - 1, *rng.integers(0, many, 20)):
            one = page_of(model, [int(size[place]) for size in sizes], **variant)
            for count, exact in model.cost(stage, one).as_dict().items():
                found = np.broadcast_to(whole[count], many)[place]
                assert found == pytest.approx(exact, rel=1e-15), (stage, count)


def evaluate(program, values):
    """What any other language does with the JSON of a program: a list of instructions."""
    functions = {
        "ratio": lambda a, b: a / b if isinstance(a, float) else Fraction(a) / Fraction(b),
        "floor_div": lambda a, b: Fraction(a) // Fraction(b),
        "ceil_div": lambda a, b: -(-Fraction(a) // Fraction(b)),
        "place_in": lambda n, c: (n - 1) % c + 1,
        "minimum": min,
        "maximum": max,
        "expected_distinct": lambda e, k, n: float(e) * (1 - (1 - float(k) / float(e)) ** n),
    }
    sizes, found = dict(zip(program["names"], values, strict=True)), []

    def operand(given):
        if given is None:
            return 1
        if isinstance(given, list):
            (number,) = given
            return Fraction(*number) if isinstance(number, list) else number
        return found[given]

    for kind, *rest in program["lines"]:
        if kind == "name":
            found.append(sizes[rest[0]])
        elif kind == "times":
            found.append(operand(rest[0]) * operand(rest[1]))
        elif kind == "call":
            found.append(functions[rest[0]](*map(operand, rest[1])))
        else:
            assert kind == "sum"
            found.append(functions["ratio"](sum(c * operand(place) for c, place in rest[0]), rest[1]))
    return {tuple(key): operand(output) for key, output in zip(program["counts"], program["outputs"], strict=True)}


@settings(max_examples=10)
@given(points)
def test_its_json_evaluated_elsewhere_is_the_program(model, variant, point):
    page = page_of(model, point, **variant)
    for stage in STAGES:
        program, values = model.program(stage, page, 1), values_of(model, stage, page)
        elsewhere = evaluate(json.loads(json.dumps(program.as_json())), values)
        for part, cost in program.at(values).items():
            for count in COUNTS:
                exact, other = getattr(cost, count), elsewhere[part, count]
                assert (
                    other == exact
                    if isinstance(exact, (int, Fraction))
                    else float(other) == pytest.approx(exact, rel=1e-12)
                )


@in_every_runtime
@pytest.mark.parametrize(("name", "layer", "sizes"), CASES, ids=IDS)
def test_the_json_of_every_layer_is_its_cost(name, layer, sizes, runtime):
    program = layer.program(runtime=runtime)
    elsewhere = evaluate(json.loads(json.dumps(program.as_json())), [sizes[axis] for axis in program.names])
    cost = layer.cost(runtime=runtime, **sizes)
    for count in COUNTS:
        assert float(elsewhere["", count]) == pytest.approx(getattr(cost, count), rel=1e-15), count


def test_a_program_is_made_once_for_a_model_a_counting_and_a_structure(model):
    one, other = (page_of(model, point) for point in ((1, 1, 2, 3, 4), (7, 2, 5, 1, 9)))
    arrays = page_of(model, [np.array([1.0, 2.0])] * 5)
    for stage in STAGES:
        program = model.program(stage, one)
        assert all(model.program(stage, page) is program for page in (other, arrays))
        assert model.program(stage, replace(one, runtime="flash")) is program
        for change in ({"runtime": "fused"}, {"causal": "exact"}, {"logits": "last"}, {"precision": "fp8"}):
            changed = replace(one, **change)
            assert model.program(stage, changed) is not program
            assert model.program(stage, changed) is model.program(stage, replace(other, **change))
    base, plain = model.workload(mode="base"), model.workload(mode="large")
    assert model.program("vision", base) is not model.program("vision", one)  # another set of views
    assert model.program("vision", base) is not model.program("vision", plain)
    assert model.program("decode", base) is model.program("decode", one)


def test_the_program_of_a_layer_is_made_once():
    layer = mm.MLP(4, 5)
    assert layer.program() is layer.program(runtime="flash")
    assert layer.program() is not layer.program(runtime="fused")
    assert layer.program(gradients=True) is not layer.program()


def assert_kernels_are_the_total(kernels, cost):
    """Runs times work and bytes by role, over all kernels, is the total: exact where it is whole."""

    def total(of):
        return sum((kernel.runs * of(kernel) for kernel in kernels), start=0)

    assert total(lambda k: sum(k.tensor_flops.values())) == cost.tensor_core_flops
    assert total(lambda k: sum(k.cuda_flops.values())) == cost.cuda_core_flops
    for role, count in ROLES.items():
        moved = total(lambda k, r=role: k.read_bytes.get(r, 0) + k.written_bytes.get(r, 0))
        exact = getattr(cost, count)
        assert moved == exact if isinstance(exact, int) else moved == pytest.approx(exact, rel=1e-14), role
    assert total(lambda k: k.io_bytes) == pytest.approx(cost.io_bytes, rel=1e-14)


@in_every_runtime
@pytest.mark.parametrize(("name", "layer", "sizes"), CASES, ids=IDS)
def test_kernels_of_every_layer_add_up_to_its_cost(name, layer, sizes, runtime):
    for causal in ("full", "exact"):
        kernels = layer.program(runtime=runtime, causal=causal).kernels(**sizes)
        assert_kernels_are_the_total(kernels, layer.cost(runtime=runtime, causal=causal, **sizes))


@in_every_runtime
@pytest.mark.parametrize("mode", [{"grid": "2x3"}, {"mode": "base"}])
def test_kernels_of_every_stage_add_up_to_its_cost(model, runtime, mode):
    page = model.workload(**mode, batch=3, decode_steps=4, runtime=runtime)
    for stage in STAGES[:2]:
        assert_kernels_are_the_total(model.kernels(stage, page), model.cost(stage, page))
    steps = [model.kernels("decode", page, step) for step in (1, 2, 3, 4)]
    assert_kernels_are_the_total([kernel for step in steps for kernel in step], model.cost("decode", page))


@in_every_runtime
@pytest.mark.parametrize(("name", "layer", "sizes"), CASES, ids=IDS)
def test_the_loops_of_a_product_are_its_flops(name, layer, sizes, runtime):
    """2 m n k batch, attention counted full, where a kernel has one product."""
    program = layer.program(runtime=runtime)
    known = {op.equation.text for op in program.graph.ops if op.kind in ("matmul", "conv2d")}
    for kernel in program.kernels(**sizes):
        many = sum(text in known for text in kernel.ops)
        assert bool(kernel.loops) == bool(many)
        if many == 1 and runtime != "compulsory":
            m, n, k, batch = (kernel.loops[loop] for loop in ("m", "n", "k", "batch"))
            flops = sum(kernel.tensor_flops.values())
            whole = isinstance(batch, int)
            assert 2 * m * n * k * batch == (flops if whole else pytest.approx(flops, rel=1e-14)), kernel.ops


def test_the_loops_of_known_products():
    (kernel,) = (k for k in mm.MLP(6, 7).program().kernels(b=2, s=5) if "W_1" in k.ops[0])
    assert kernel.loops == {"m": 10, "n": 7, "k": 6, "batch": 1}
    (kernel,) = (k for k in mm.CausalAttention(6, 2, 3, 4).program().kernels(b=2, s=5, t=8) if len(k.ops) == 4)
    assert kernel.loops == {"m": 3 * 5, "n": 8, "k": 4, "batch": 2 * 2}  # the queries of a KV head share its keys
    (kernel,) = mm.Conv2d(3, 4, 3, 2).program().kernels(b=2, i=6, j=8)
    assert kernel.loops == {"m": 2 * 3 * 4, "n": 4, "k": 3 * 3 * 3, "batch": 1}
    routed = [k for k in mm.Experts(6, 5, 7).program().kernels(b=1, s=1, k=2) if k.loops]
    assert routed[0].loops == {"m": 1, "n": 7, "k": 6, "batch": 2}  # one token goes to two experts


def test_a_kernel_tells_format_and_runs():
    layer = mm.Repeat(mm.DeepseekV2MoE(mm.MoEGate(6, 5, 2), 7, None), 3)
    kernels = layer.program(precision="fp8").kernels(b=2, s=5)
    assert {kernel.runs for kernel in kernels} == {3}
    (router,) = (k for k in kernels if any("_l:32" in text and "_w:32" in text for text in k.ops))
    assert router.tensor_flops == {"fp32": 2 * 2 * 5 * 6 * 5}
    down = next(k for k in kernels if "W_down" in k.ops[0])
    assert down.tensor_flops == {"fp8": 2 * 2 * 5 * 2 * 7 * 6}


def test_bad_sizes_of_a_program_are_named(model):
    program = model.program("decode", model.workload(mode="base"))
    good = {"b": 1, "first": 2, "steps": 3}
    assert set(program.names) == set(good)
    for change, message in (
        ({"b": 0}, "b must be a whole number of at least 1"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"step": 1}, "unknown size 'step', did you mean 'steps'"),
    ):
        with pytest.raises(InputError, match=message):
            program(**good | change)
    with pytest.raises(InputError, match="size 'steps' is not given"):
        program(b=1, first=2)
    with pytest.raises(InputError, match="size 't' is not given"):
        program.kernels(b=1)
