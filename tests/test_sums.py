"""What many steps cost is exactly what the loop over single steps gives; what has no such law is refused."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import RUNTIMES
from modelmeter import BaseLayer, InputError, Repeat, symbol
from modelmeter import layers as mm
from modelmeter.graph.ops import composite, copy, matmul, pointwise, softmax
from modelmeter.models.model import Model
from modelmeter.models.vlm import language_stages, text_model
from modelmeter.programs.cost import COUNTS
from modelmeter.sizes import (
    Size,
    as_size,
    ceil_div,
    evaluated,
    expected_distinct,
    floor_div,
    largest,
    maximum,
    minimum,
    place_in,
    ratio,
    summed,
)

FLOWS = COUNTS[:5]


@dataclass(frozen=True)
class ChunkedAttention(BaseLayer):
    """Attention to the positions of the query's own chunk."""

    g: Size
    r: Size
    e: Size
    chunk: Size
    sizes = "b s t"

    def ops(self, n):
        n = n.bind(m=n.t, t=place_in(n.t, n.chunk))
        yield matmul("k[b s g e] = x[b s g r e] * W_k[r]", n)
        yield copy("C_k[b m:s g e] = k[b s g e]", n)
        yield from composite(
            "attention",
            matmul("a[b g r s t] = x[b s g r e] * C_k[b m:t g e]", n),
            softmax("p[b g r s t] = a[b g r s t]", n, row="t"),
            matmul("y[b s g r e] = p[b g r s t] * C_k[b m:t g e]", n),
        )


def decoder(*windows, mixture=False):
    """A decoder with one layer a window (None: global attention)."""
    norm, mlp = mm.RMSNorm(32), mm.GatedMLP(32, 48)
    mlp = mm.Mixture(mm.Router(32, 8, 2), 24, mlp) if mixture else mlp
    blocks = (mm.ResidualBlock(mm.CausalAttention(32, 1, 4, 8, mm.RotaryEmbedding(8), w), mlp, norm) for w in windows)
    layers = tuple(Repeat(block, 3) for block in blocks)
    return mm.CausalLM(mm.TokenEmbedding(100, 32), layers, norm, mm.LMHead(100, 32))


def assert_decode_is_the_loop(model, **given):
    """All counts of K steps beside those of the steps one by one."""
    work = model.text(**given)
    steps = [
        model.cost("decode", replace(work, prompt_tokens=work.prompt_tokens + k, decode_steps=1))
        for k in range(work.decode_steps)
    ]
    total = model.cost("decode", work)
    for count in FLOWS:
        assert getattr(total, count) == sum(getattr(step, count) for step in steps), count
    assert total.peak_activation_bytes == max(step.peak_activation_bytes for step in steps)
    for count in ("parameters", "weight_bytes", "kv_cache_bytes"):
        assert getattr(total, count) == getattr(steps[-1], count), count


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("prompt", "steps"), [(10, 5), (60, 9), (63, 3), (64, 3), (65, 4), (10, 200), (200, 7)])
def test_a_sliding_windows_decode_is_the_loop_below_at_and_above_the_window(prompt, steps, runtime):
    assert_decode_is_the_loop(text_model("w", decoder(64)), tokens=prompt, decode_steps=steps, runtime=runtime)


@pytest.mark.parametrize("causal", ["full", "exact"])
def test_several_windows_in_one_model_cut_the_steps_at_each(causal):
    model = text_model("many", decoder(16, None, 30, 64))
    assert_decode_is_the_loop(model, tokens=9, decode_steps=70, batch=3, causal=causal)


def test_a_window_of_512_after_a_prompt_of_100():
    """By hand: scores and weighted sum, two products of 2 FLOPs for each head, its width and each position seen."""
    heads, width, layers, prompt, steps = 4, 8, 3, 100, 1000
    model = text_model("gemma", decoder(512))
    work = model.text(prompt, decode_steps=steps)
    seen = sum(min(prompt + k, 512) for k in range(1, steps + 1))
    attention = layers * 2 * 2 * heads * width * seen
    fixed = model.cost("decode", replace(work, prompt_tokens=0, decode_steps=1)).tensor_core_flops
    fixed -= layers * 2 * 2 * heads * width  # the one position that a first token sees
    assert model.cost("decode", work).tensor_core_flops == attention + steps * fixed
    kept = 512 - 1  # what the next token sees beside itself
    assert model.cost("decode", work).kv_cache_bytes == 2 * layers * kept * width * 2
    middle = replace(work, prompt_tokens=prompt + steps // 2, decode_steps=1)
    assert steps * model.cost("decode", middle).flops > model.cost("decode", work).flops


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 5])
def test_the_distinct_experts_of_each_step_add_up(batch, runtime):
    model = text_model("moe", decoder(16, mixture=True))
    work = model.text(9, decode_steps=12, batch=batch, runtime=runtime)
    single = [model.cost("decode", replace(work, prompt_tokens=9 + k, decode_steps=1)) for k in range(12)]
    for count in FLOWS:
        expected = sum(getattr(step, count) for step in single)
        assert getattr(model.cost("decode", work), count) == pytest.approx(expected, rel=1e-14), count


@pytest.mark.parametrize("runtime", RUNTIMES)
@given(prompt=st.integers(0, 20), steps=st.integers(1, 30), chunk=st.integers(1, 9))
@settings(max_examples=15)
def test_chunked_attentions_decode_is_the_loop(runtime, prompt, steps, chunk):
    model = Model("chunked", language_stages(Repeat(ChunkedAttention(2, 3, 4, chunk), 2)))
    assert_decode_is_the_loop(model, tokens=prompt, decode_steps=steps, runtime=runtime)


@pytest.mark.parametrize("windows", [(64,), (16, None, 30)])
def test_arrays_of_prompts_and_steps_cost_what_their_points_cost(windows):
    model = text_model("w", decoder(*windows))
    prompts, steps = np.array([10, 63, 64, 200, 1]), np.array([5, 1, 40, 7, 300])
    many = model.cost("decode", model.text(prompts, decode_steps=steps))
    for i, (prompt, k) in enumerate(zip(prompts.tolist(), steps.tolist(), strict=True)):
        one = model.cost("decode", model.text(prompt, decode_steps=k))
        for count in COUNTS:
            assert np.broadcast_to(getattr(many, count), 5)[i] == getattr(one, count), count


@pytest.mark.parametrize("windows", [(64,), (16, None, 30)])
def test_formulas_of_prompts_and_steps_give_the_same_numbers(windows):
    model = text_model("w", decoder(*windows))
    formula = model.cost("decode", model.text(symbol("prompt"), decode_steps=symbol("k"), batch=symbol("batch")))
    for prompt, k, batch in ((10, 5, 1), (63, 1, 2), (10, 200, 3), (300, 9, 1)):
        exact = model.cost("decode", model.text(prompt, decode_steps=k, batch=batch))
        values = {"prompt": prompt, "k": k, "batch": batch}
        assert evaluated([getattr(formula, c) for c in COUNTS], values) == tuple(getattr(exact, c) for c in COUNTS)


T, W, C = symbol("t"), symbol("w"), symbol("c")
STEPS = {
    "powers": lambda t, w, c: 3 * t**3 - w * t + 5,
    "window": lambda t, w, c: minimum(t, w) * (t + c),
    "two windows": lambda t, w, c: minimum(t, w) * minimum(t, c) * t,
    "window of a window": lambda t, w, c: minimum(minimum(t, w) + 3, c),
    "far end": lambda t, w, c: maximum(3 * t - w, 0) + maximum(w, 2 * t - c),
    "falling": lambda t, w, c: minimum(w - 2 * t, c) + maximum(50 - t, w),
    "pages": lambda t, w, c: ceil_div(t, c) * c + floor_div(t, c),
    "pages, cubed": lambda t, w, c: ceil_div(t + w, c) ** 3 * t,
    "sawtooth": lambda t, w, c: place_in(t, c) ** 2 + t * place_in(t + w, c),
    "pages of a window": lambda t, w, c: ceil_div(minimum(t, w), c),
    "halves": lambda t, w, c: ratio(t * (t + 1), 2) + ratio(t, w),
    "experts of the batch": lambda t, w, c: t * ceil_div(w, c),
}
"""Steps of every law that a layer's cost may follow in its context t, with a window and a chunk."""
PLAIN = {
    "minimum": min, "maximum": max, "ceil_div": lambda a, b: -(-a // b), "floor_div": lambda a, b: a // b,
    "place_in": lambda n, c: (n - 1) % c + 1, "ratio": lambda a, b: a / b,
}  # fmt: skip


@pytest.mark.parametrize("law", [k for k in STEPS if k != "halves"])
@given(first=st.integers(1, 40), more=st.integers(-1, 40), w=st.integers(1, 50), c=st.integers(1, 9))
@settings(max_examples=60)
def test_a_closed_sum_is_the_loop_with_python_integers(law, first, more, w, c):
    """The loop runs on Python's own min, max and //; the sums are of numbers, of arrays and of symbols."""
    last, step = first + more, STEPS[law]
    function = type(step)(step.__code__, PLAIN)
    loop = sum(function(t, w, c) for t in range(first, last + 1))
    names = {"w": w, "c": c, "first": first, "last": last}
    assert evaluated([summed(step(T, w, c), "t", first, last)], {}) == (loop,)
    formula = summed(step(T, W, C), "t", symbol("first"), symbol("last"))
    assert evaluated([formula], names) == (loop,)
    arrays = {key: np.array([float(value), 3.0]) for key, value in names.items()}
    assert evaluated([formula], arrays)[0][0] == loop


@pytest.mark.parametrize("law", ["powers", "window", "two windows", "pages", "sawtooth", "pages of a window"])
@given(first=st.integers(1, 40), more=st.integers(0, 40), w=st.integers(41, 90), c=st.integers(1, 9))
@settings(max_examples=60)
def test_the_largest_step_is_the_loops_maximum(law, first, more, w, c):
    rising = {
        "powers": lambda t, w, c: t**2 * w + 3 * t, "window": STEPS["window"], "two windows": STEPS["two windows"],
        "pages": STEPS["pages"], "sawtooth": lambda t, w, c: place_in(t, c) * 5 + place_in(t, c) ** 2,
        "pages of a window": STEPS["pages of a window"],
    }[law]  # fmt: skip
    last = first + more
    loop = max(type(rising)(rising.__code__, PLAIN)(t, w, c) for t in range(first, last + 1))
    peak = largest(rising(T, W, C), "t", symbol("first"), symbol("last"))
    assert evaluated([peak], {"w": w, "c": c, "first": first, "last": last}) == (loop,)


@given(first=st.integers(1, 30), more=st.integers(0, 30), c=st.integers(1, 9), rise=st.integers(1, 3))
@settings(max_examples=60)
def test_the_largest_step_of_what_rises_beside_a_sawtooth(first, more, c, rise):
    def step(t, c):
        return place_in(t, c) * 4 + t * rise

    loop = max(
        type(step)(step.__code__, PLAIN, None, None, step.__closure__)(t, c) for t in range(first, first + more + 1)
    )
    peak = largest(step(T, C), "t", symbol("first"), symbol("last"))
    assert evaluated([peak], {"c": c, "first": first, "last": first + more}) == (loop,)


def test_an_extreme_of_sizes_that_are_a_number_apart_is_one_of_them():
    for gap in (0, 1, 2):
        assert minimum(T, T - gap) is minimum(T - gap, T) is T - gap
        assert maximum(T, T + gap) is maximum(T + gap, T) is T + gap
    assert minimum(T, 1) == maximum(1 - T, 1) == 1  # a named size is at least 1
    assert minimum(T, 2) is not T and minimum(T * W, T + W) is not T * W


def test_whole_floats_are_sizes():
    assert as_size("d", 1.0) == 1 and type(as_size("d", np.float64(7))) is int
    assert type(as_size("d", np.int64(7))) is int and as_size("d", 0, least=0) == 0.0


@pytest.mark.parametrize("step", [
    expected_distinct(64, 6, T), ratio(W, T), floor_div(T, 3) * floor_div(T, 5), place_in(T, C) * place_in(T, W),
    minimum(ratio(T, 2), W), minimum(T * T, W), maximum(T * W, C), floor_div(2 * T, C), ceil_div(W, T),
    minimum(place_in(T, C), W), minimum(T + W, T + C),
], ids=str)  # fmt: skip
def test_what_cannot_be_summed_is_refused_in_a_sentence(step):
    with pytest.raises(
        InputError, match=r"^a step's cost has .*\bt\b.*, whose sum over steps has no closed form here$"
    ):
        summed(3 * step + T, "t", 1, symbol("last"))


@pytest.mark.parametrize("step", [
    W - T, ratio(W, T), expected_distinct(W, T, 3), minimum(W - T, C), place_in(2 * T, C), place_in(T * T, C),
], ids=str)  # fmt: skip
def test_a_peak_that_may_fall_is_refused_in_a_sentence(step):
    with pytest.raises(InputError, match=r"^a step's peak has .*, which may fall from one step to the next$"):
        largest(step, "t", 1, symbol("last"))


def test_a_model_whose_steps_have_no_law_is_refused_and_its_prefill_is_not():
    @dataclass(frozen=True)
    class Growing(BaseLayer):
        d: Size
        sizes = "b s t"

        def ops(self, n):
            yield pointwise("y[b s d] = x[b s d]", 1, n.bind(D=expected_distinct(8, 2, n.t)), over="b s d D")

    model = Model("growing", language_stages(Growing(4)))
    with pytest.raises(InputError, match=r"expected_distinct\(8, 2, t\), whose sum over steps has no closed form here"):
        model.cost("decode", model.text(9, decode_steps=5))
    assert model.cost("prefill", model.text(1)).cuda_core_flops == 4 * 2
