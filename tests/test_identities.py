"""Laws that hold between costs, whatever the numbers."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import CASES, IDS, RUNTIMES
from modelmeter import Precision, Runtime
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.layers import Repeat, Sequence
from modelmeter.programs.cost import COUNTS, StageCost
from modelmeter.runtimes.passes import attention_kernel, merge_projections
from modelmeter.sizes import evaluated

FLOWS = COUNTS[:5]
in_every_runtime = pytest.mark.parametrize("runtime", RUNTIMES)
each_layer = pytest.mark.parametrize(("name", "layer", "sizes"), CASES, ids=IDS)


def causal_layers(window=None):
    attention = mm.CausalAttention(8, 2, 2, 4, mm.LlamaRotaryEmbedding(4), window)
    without = mm.CausalAttention(8, 2, 2, 4, window=window)
    return [attention, without, mm.ResidualBlock(attention, mm.GatedMLP(8, 5), mm.RMSNorm(8))]


@pytest.mark.parametrize("layer", [layer for window in (None, 1, 4) for layer in causal_layers(window)])
@in_every_runtime
def test_exact_prefill_equals_the_sum_of_decodes(layer, runtime):
    options = {"causal": "exact", "runtime": runtime, "b": 3}
    whole = layer.cost(s=9, t=9, **options)
    steps = [layer.cost(s=1, t=t, **options) for t in range(1, 10)]
    assert whole.flops == sum(step.flops for step in steps)
    assert whole.kv_cache_bytes == steps[-1].kv_cache_bytes


@pytest.mark.parametrize("option", [{}, {"batch": 3}, {"causal": "exact"}, {"logits": "last"}])
@in_every_runtime
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_decode_of_k_steps_is_the_sum_of_its_steps(model, steps, runtime, option):
    page = model.workload(grid="1x2", decode_steps=steps, runtime=runtime, **option)
    total = model.cost("decode", page)
    options = {"runtime": page.runtime, "causal": page.causal, "logits": page.logits}
    first = page.context_tokens + 1
    layer = model.stage("decode").layer_of(None)
    single = [layer.cost(b=page.batch, s=1, t=first + k, **options) for k in range(page.decode_steps)]
    for count in FLOWS:
        assert getattr(total, count) == pytest.approx(sum(getattr(step, count) for step in single), rel=1e-15), count
    assert total.flops == sum(step.flops for step in single)
    assert total.peak_activation_bytes == max(step.peak_activation_bytes for step in single)
    for count in ("parameters", "weight_bytes", "kv_cache_bytes"):
        assert getattr(total, count) == getattr(single[-1], count), count


def test_crops_batched_equal_crops_one_by_one(model):
    one, six = (model.workload(grid=g) for g in ("1x2", "2x6"))
    base = model.cost("vision", model.workload(mode="base"))
    two, twelve = (model.cost("vision", w) for w in (one, six))
    assert (two.tensor_core_flops - base.tensor_core_flops) * 6 == twelve.tensor_core_flops - base.tensor_core_flops
    assert (two.cuda_core_flops - base.cuda_core_flops) * 6 == twelve.cuda_core_flops - base.cuda_core_flops
    assert two.weight_bytes == twelve.weight_bytes == base.weight_bytes


def test_pages_in_a_batch_cost_their_number_of_pages(model):
    one, four = (model.workload(grid="2x3", batch=b) for b in (1, 4))
    for stage in ("vision", "prefill", "decode"):
        a, b = model.cost(stage, one), model.cost(stage, four)
        assert (b.tensor_core_flops, b.kv_cache_bytes) == (4 * a.tensor_core_flops, 4 * a.kv_cache_bytes)
        assert b.weight_bytes == a.weight_bytes


def test_a_mixture_of_one_expert_is_a_dense_mlp_and_a_router():
    dense = mm.DeepseekV2MLP(6, 7)
    gate = mm.MoEGate(6, 1, 1)
    moe = mm.DeepseekV2MoE(gate, 7, None)
    sizes = {"b": 2, "s": 5}
    assert moe.forward_tensor_core_flops(**sizes) == dense.forward_tensor_core_flops(
        **sizes
    ) + gate.forward_tensor_core_flops(**sizes)
    assert moe.cost(**sizes).parameters == dense.cost(**sizes).parameters + gate.cost(**sizes).parameters
    weighted = 2 * 5 * 6  # one multiplication an output by the router's weight
    both = dense.forward_cuda_core_flops(**sizes) + gate.forward_cuda_core_flops(**sizes)
    assert moe.forward_cuda_core_flops(**sizes) == both + weighted


@given(st.integers(1, 9), st.integers(0, 4))
def test_a_window_at_least_as_large_as_the_grid_is_global_attention(side, more):
    attention, mlp, norm = mm.Attention(6, 2, 3, 4), mm.MLPBlock(6, 7), mm.LayerNorm(6)
    windowed, full = (mm.Block(attention, mlp, norm, w) for w in (side, None))
    assert windowed.cost(b=2, u=side, v=side).flops == full.cost(b=2, u=side, v=side).flops
    padded = mm.Block(attention, mlp, norm, side + more).attention.cost(b=2, u=side + more, v=side + more)
    grown = mm.Block(attention, mlp, norm, side + more).cost(b=2, u=side, v=side)
    assert grown.tensor_core_flops == padded.tensor_core_flops + mlp.forward_tensor_core_flops(b=2, s=side * side)


IN_FP32 = (2 + 4) + (4 + 4) + (4 + 2)  # bytes a score: read in bf16 and written in fp32, softmax there, and back
PASSES = 2 + (2 + 2) + IN_FP32 + 2  # a product writes them, the scale, the softmax, a product reads them


@pytest.mark.parametrize(("layer", "sizes", "passes"), [
    (mm.SelfAttention(6, 2, 3), {"b": 2, "s": 5}, PASSES * 2 * 2 * 25),
    (mm.GridAttention(6, 2, 3, 4), {"b": 2, "u": 3, "v": 4},
     PASSES * 2 * 2 * 144),  # the bias is added to the scores (read, write); the scale is on q (read, write, below)
    (causal_layers()[0], {"b": 2, "s": 3, "t": 5}, (PASSES + 2 + 2) * 2 * 4 * 15),  # the mask is added
])  # fmt: skip
def test_what_eager_moves_beyond_one_attention_kernel_is_its_passes_over_the_scores(layer, sizes, passes):
    """The same written-out code with its attention in one kernel moves less by these passes, and nothing else."""
    eager = Runtime.of("eager")
    one = replace(eager, name="eager with one attention kernel", passes=(*eager.passes, attention_kernel))
    apart, together = (layer.cost(runtime=runtime, **sizes) for runtime in (eager, one))
    on_queries = (2 + 2) * 2 * 12 * 6 if isinstance(layer, mm.GridAttention) else 0
    assert apart.activation_io_bytes - together.activation_io_bytes == passes + on_queries
    assert apart.flops == together.flops
    assert (apart.weight_io_bytes, apart.kv_io_bytes) == (together.weight_io_bytes, together.kv_io_bytes)


def test_eager_minus_flash_is_the_passes_over_the_scores_and_the_copies_that_separate_batch_and_heads():
    layer = mm.SelfAttention(6, 2, 3)
    for batch in (1, 2):
        eager, flash = (layer.cost(runtime=runtime, b=batch, s=5) for runtime in ("eager", "flash"))
        copies = 3 * (2 + 2) * batch * 5 * 6 if batch > 1 else 0  # q, k and v: one image's heads are a view
        assert eager.activation_io_bytes - flash.activation_io_bytes == PASSES * batch * 2 * 25 + copies
        assert (eager.flops, eager.weight_io_bytes) == (flash.flops, flash.weight_io_bytes)


def test_flash_attention_still_reads_the_bias():
    with_bias, without = (mm.Attention(6, 2, 3, 4, relative=r) for r in (True, False))
    sizes = {"b": 2, "u": 3, "v": 4}
    bias, halves, tables = 2 * 2 * 144 * 2, (2 * 2 * 12 * 3 + 2 * 2 * 12 * 4) * 2, (3 * 3 + 4 * 4) * 3 * 2
    q = 2 * 12 * 6 * 2
    more = with_bias.cost(**sizes).activation_io_bytes - without.cost(**sizes).activation_io_bytes
    assert (
        more == 2 * bias + 2 * halves + 2 * tables + 2 * q
    )  # each written once and read once; q read by both products


@each_layer
def test_runtimes_move_ever_less_and_compute_the_same(name, layer, sizes):
    eager, flash, fused, least = (layer.cost(runtime=runtime, **sizes) for runtime in RUNTIMES)
    assert eager.io_bytes >= flash.io_bytes >= fused.io_bytes >= least.io_bytes > 0
    assert len({(c.flops, c.parameters, c.weight_bytes, c.kv_cache_bytes) for c in (eager, flash, fused, least)}) == 1
    assert least.weight_io_bytes <= eager.weight_io_bytes
    if name != "CrossAttention":  # whose keys, not yet in the cache, are more than the scores of so few queries
        assert eager.peak_activation_bytes >= flash.peak_activation_bytes
    assert flash.peak_activation_bytes >= fused.peak_activation_bytes > 0


@each_layer
def test_compulsory_traffic_is_inputs_and_outputs_and_touched_weights_once(name, layer, sizes):
    cost, ops = layer.cost(runtime="compulsory", **sizes), layer.graph().ops
    entering, leaving, weights, known = {}, {}, {}, set()
    for op in ops:
        for r in op.reads:
            moved, times = evaluated([r.touched * (r.bits or 16) / 8, op.times], sizes)
            if r.role == "weight":
                weights[r.name] = max(weights.get(r.name, 0), moved * times)
            elif r.role == "activation" and r.name not in known:
                entering[r.name] = max(entering.get(r.name, 0), moved)
        known |= {w.name for w in op.writes}
        leaving |= {w.name: evaluated([w.touched * (w.bits or 16) / 8], sizes)[0] for w in op.writes}
    tables = ("LlamaRotaryEmbedding", "RotaryEmbedding", "AxialRotary")
    several = {"AxialRotation": ("y", "z"), "ImageAttention": ("seen",)} | dict.fromkeys(tables, ("y", "sin"))
    outputs = several.get(name, ("y",))
    assert cost.activation_io_bytes == sum(entering.values()) + sum(leaving[name] for name in outputs)
    assert cost.weight_io_bytes == pytest.approx(sum(weights.values()), rel=1e-15)


@pytest.mark.parametrize("runtime", ["eager", "flash"])
def test_repeating_a_layer_multiplies_it(runtime):
    layer, sizes = mm.DeepseekV2MLP(6, 7), {"b": 2, "s": 5, "runtime": runtime}
    one, five = layer.cost(**sizes), Repeat(layer, 5).cost(**sizes)
    assert five == replace(5 * one, peak_activation_bytes=five.peak_activation_bytes)
    entering = 2 * 5 * 6 * 2  # from the second copy on, the caller still holds what entered the first
    assert five.peak_activation_bytes == one.peak_activation_bytes + entering


@in_every_runtime
@pytest.mark.parametrize("layer", [mm.DeepseekV2MLP(6, 7), mm.NoTPTransformerBlock(
    mm.NoTPAttention(6, 2, 3), mm.NoTPFeedForward(6, 7), mm.LayerNorm(6))])  # fmt: skip
def test_repeating_a_layer_is_a_sequence_of_it(layer, runtime):
    sizes = {"b": 2, "s": 5, "runtime": runtime}
    for times in (1, 2, 3):
        repeated, unrolled = Repeat(layer, times).cost(**sizes), Sequence((layer,) * times).cost(**sizes)
        if runtime == "fused" and times > 1:  # kernels of neighbouring layers merge where they are unrolled
            assert repeated.io_bytes >= unrolled.io_bytes
            unrolled = replace(unrolled, activation_io_bytes=repeated.activation_io_bytes)
        assert repeated == unrolled


def test_an_mlp_of_one_layer_is_linear():
    sizes = {"b": 2, "s": 3}
    assert mm.MlpProjector("mlp_gelu", 4, 2, 1).cost(**sizes) == mm.MlpProjector("linear", 4, 2).cost(**sizes)


def test_a_tied_head_stores_nothing():
    embedding, head, rms = mm.TokenEmbedding(11, 8), mm.LMHead(11, 8), mm.DeepseekV2RMSNorm(8)
    layer, rotary = causal_layers()[1], mm.LlamaRotaryEmbedding(4)
    tied, untied = (mm.CausalLM(embedding, (layer,), rms, head, rotary, tied=t) for t in (True, False))
    sizes = {"b": 1, "s": 2, "t": 2}
    assert untied.cost(**sizes).parameters - tied.cost(**sizes).parameters == 11 * 8
    assert untied.cost(**sizes).flops == tied.cost(**sizes).flops


def test_last_logits_save_all_but_one_row_of_the_head(model):
    every, last = (model.workload(grid="1x2", logits=l) for l in ("all", "last"))
    saved = model.cost("prefill", every).tensor_core_flops - model.cost("prefill", last).tensor_core_flops
    assert saved == 2 * (every.context_tokens - 1) * 1280 * 129280


def test_parts_add_up_to_their_stage(model):
    page = model.workload(grid="2x3", batch=2)
    for stage in ("vision", "prefill", "decode"):
        whole = model.cost(stage, page)
        for depth in (1, 2):
            parts = model.breakdown(stage, page, depth)
            assert whole == replace(sum(parts.values()), basis=whole.basis)


def test_grouped_kv_heads_shrink_the_cache_and_leave_the_scores():
    rotary = mm.LlamaRotaryEmbedding(4)
    many, few = mm.LlamaAttention(8, 6, 1, 4, rotary), mm.LlamaAttention(8, 2, 3, 4, rotary)
    sizes = {"b": 1, "s": 1, "t": 10}
    assert many.forward_memory_kvcache_bytes(**sizes) == 3 * few.forward_memory_kvcache_bytes(**sizes)
    projections = 2 * 2 * 8 * 4 * 4  # k and v of four KV heads
    assert many.forward_tensor_core_flops(**sizes) - few.forward_tensor_core_flops(**sizes) == projections


def test_one_matrix_for_qkv_saves_two_reads_of_the_input():
    fused, split = mm.NoTPAttention(6, 2, 3), mm.SelfAttention(6, 2, 3)
    for runtime in ("eager", "flash"):
        a, b = (layer.cost(runtime=runtime, b=2, s=5) for layer in (fused, split))
        assert b.activation_io_bytes - a.activation_io_bytes == 2 * (2 * 5 * 6 * 2)
        assert (a.flops, a.parameters) == (b.flops, b.parameters)


def test_one_matrix_for_gate_and_up_of_experts_saves_a_read_of_their_rows():
    gate = mm.MoEGate(6, 5, 2)
    split, fused = (kind(gate, 7, None).cost(b=2, s=5) for kind in (mm.DeepseekV2MoE, mm.MergedExpertsMoE))
    assert split.activation_io_bytes - fused.activation_io_bytes == 2 * 5 * 2 * 6 * 2  # b s k d in bf16
    assert (split.flops, split.parameters, split.weight_io_bytes) == (
        fused.flops,
        fused.parameters,
        fused.weight_io_bytes,
    )


def test_a_runtime_that_merges_projections_does_what_one_matrix_does():
    flash = Runtime.of("flash")
    merging = replace(flash, name="merging", passes=(merge_projections, *flash.passes))
    sizes = {"b": 2, "s": 5}
    pairs = [
        (mm.SelfAttention(6, 2, 3), mm.NoTPAttention(6, 2, 3)),
        (mm.Experts(6, 5, 7), mm.MergedExperts(6, 5, 7)),
    ]
    for split, fused in pairs:
        more = {"k": 2} if isinstance(split, mm.Experts) else {}
        merged, one = split.cost(runtime=merging, **sizes, **more), fused.cost(runtime=flash, **sizes, **more)
        assert replace(merged, basis="", peak_activation_bytes=0) == replace(one, basis="", peak_activation_bytes=0)


@in_every_runtime
def test_the_vendors_attention_kernel_keeps_its_scores_on_chip(runtime):
    """Traffic of scores or masks would grow with s times t: it would not be a sum of one of s and one of t."""
    layer = mm.LlamaFlashAttention2(8, 2, 2, 4, mm.LlamaRotaryEmbedding(4))

    def moved(s, t):
        return layer.cost(b=2, s=s, t=t, runtime=runtime).io_bytes

    assert moved(4, 9) - moved(4, 8) == moved(3, 9) - moved(3, 8)
    if runtime != "eager":
        plain = mm.LlamaAttention(8, 2, 2, 4, mm.LlamaRotaryEmbedding(4))
        assert layer.cost(b=2, s=3, t=5, runtime=runtime) == plain.cost(b=2, s=3, t=5, runtime=runtime)


def test_a_window_holds_no_more_than_its_positions_and_is_none_where_the_context_fits():
    plain, sliding = (mm.CausalAttention(8, 2, 2, 4, None, window) for window in (None, 6))
    for causal in ("full", "exact"):
        short = {"b": 3, "s": 2, "t": 5, "causal": causal}
        assert sliding.cost(**short) == plain.cost(**short)
    step = {"b": 3, "s": 1}
    at_window, kept = plain.cost(t=6, **step), plain.cost(t=5, **step).kv_cache_bytes
    for t in (6, 7, 50):  # a query sees 6 positions, the next one 5 of them
        assert sliding.cost(t=t, **step) == replace(at_window, kv_cache_bytes=kept)


def test_costs_add_scale_and_show_themselves():
    a, b = mm.LayerNorm(6).cost(b=1, s=2), mm.MLPBlock(6, 7).cost(b=1, s=2)
    both = a + b
    assert both.flops == a.flops + b.flops and both.parameters == a.parameters + b.parameters
    assert both.peak_activation_bytes == max(a.peak_activation_bytes, b.peak_activation_bytes)
    assert (3 * a).flops == 3 * a.flops == (a + a + a).flops == sum([a, a, a]).flops
    assert (
        both.io_tb == both.io_bytes * 8 / 1e12
        and both.flops_tflops == both.flops_tensor_tflops + both.flops_cuda_tflops
    )
    assert both.arithmetic_intensity == both.flops / both.io_bytes
    assert both.to_series()["tensor_core_flops"] == both.tensor_core_flops
    assert f"{both.tensor_core_flops:,}" in both._repr_html_()
    with pytest.raises(TypeError):
        a + 1
    assert StageCost() + a == a


def test_compulsory_weights_are_what_is_touched_of_each_once(model):
    page = model.workload(grid="1x2", runtime="compulsory")
    stored = model.cost("vision", page).weight_bytes
    unused = 2 * 3 * 14 * 14 * 1024  # the patch convolution of CLIP that never runs
    assert model.cost("vision", page).weight_io_bytes == stored - unused


def test_backward_keeps_no_second_cache():
    layer = causal_layers()[1]
    sizes = {"b": 1, "s": 3, "t": 3}
    assert layer.backward_cost(**sizes).kv_cache_bytes == layer.cost(**sizes).kv_cache_bytes
    assert layer.backward_tensor_core_flops(**sizes) == 2 * layer.forward_tensor_core_flops(**sizes)
    assert layer.backward_cuda_core_flops(**sizes) == 2 * layer.forward_cuda_core_flops(**sizes)
    intensity = layer.backward_arithmetic_intensity(**sizes)
    assert intensity == layer.backward_cost(**sizes).flops / layer.backward_io_bytes(**sizes)


def test_precision_scales_bytes_and_no_flops(model):
    page = model.workload(grid="1x2")
    quantised = replace(page, precision=Precision("fp8", "bf16", "fp8", {"*.experts.W_*": 4.5}))
    a, b = model.cost("decode", page), model.cost("decode", quantised)
    assert a.flops == b.flops and b.kv_cache_bytes * 2 == a.kv_cache_bytes
    experts = 11 * 64 * 3 * 1280 * 896
    assert b.weight_bytes == (a.parameters - experts) + experts * 4.5 / 8


@pytest.mark.parametrize(("make", "message"), [
    (lambda: mm.Attention(7, 2, 3, 4), "hidden size 7 is not divisible by heads 2"),
    (lambda: mm.NoTPAttention(8, 2, 3), "head width 4, not 3"),
    (lambda: mm.MoEGate(4, 3, 5), "k=5 cannot exceed routed experts E=3"),
    (lambda: mm.MlpProjector("mlp", 3, 4), "unknown projector kind 'mlp', did you mean 'mlp_gelu'"),
    (lambda: mm.LlamaRotaryEmbedding(3), "head width 3 is not divisible"),
    (lambda: mm.DeepseekV2MLP(0, 4), "DeepseekV2MLP.d must be a whole number of at least 1, not 0"),
    (lambda: mm.Conv2d(3, 4, p=2), "Conv2d: padding, kernel side less 1, 1 is not divisible by its two sides, 2"),
    (lambda: mm.DeepseekV2MLP("4", 4), "DeepseekV2MLP.d must be a whole number of at least 1, not '4'"),
    (lambda: mm.Attention(6, 2, 3, 4, "no"), "Attention.relative must be true or false, not 'no'"),
    (lambda: mm.CausalAttention(8, 2, 2, 4, window=0), "CausalAttention.window must be a whole number of at least 1"),
    (lambda: mm.CausalAttention(8, 2, 2, 4, mm.RotaryEmbedding(6)), "rotated width is 4 and rotary width is 6"),
    (lambda: mm.PatchTower(mm.LayerNorm(4)), "PatchTower.vit must be VitModel"),
    (lambda: Repeat("mlp", 2), "Repeat.layer must be BaseLayer, not 'mlp'"),
    (lambda: Sequence(mm.LayerNorm(4)), "Sequence.layers must be tuple"),
    (lambda: causal_layers()[0].cost(b=1, s=9, t=3), "context t=3 must hold the call's own tokens, s=9"),
    (lambda: mm.DeepseekV2DecoderLayer(causal_layers()[0], mm.DeepseekV2MLP(9, 5), mm.DeepseekV2RMSNorm(8)),
     "attention is 8 and mlp is 9; they must be equal"),
    (lambda: mm.LayerNorm(4).cost(b=1, s=2) * -1, "number of parts must be a whole number"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=np.array([True, False])), "s must be a whole number"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=np.array([2**53 + 2])), "s must be below 2**53 in an array"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1), "DeepseekV2MLP needs size 's'"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=2, q=3), "DeepseekV2MLP has no size 'q'"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=-2), "s must be a whole number"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=2, runtime="fast"), "unknown runtime 'fast'"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=2, runtime=3), "runtime must be a name or a Runtime, not 3"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=2, logits="one"), "unknown logits 'one'"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=2, precision="bf61"), "did you mean 'bf16'"),
    (lambda: mm.DeepseekV2MLP(4, 4).cost(b=1, s=2, causal="half"), "unknown causal 'half'"),
])  # fmt: skip
def test_bad_hyper_parameters_and_sizes_are_named(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_arrays_of_shapes_cost_what_their_points_cost(model):
    h, w = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])
    many = model.workload(
        grid=(h, w), prompt_tokens=np.array([3, 0, 9]), decode_steps=np.array([1, 50, 7]), batch=np.array([1, 2, 5])
    )
    for stage in ("vision", "prefill", "decode"):
        whole = model.cost(stage, many).as_dict()
        for i in range(3):
            one = model.workload(
                grid=f"{int(h[i])}x{int(w[i])}",
                prompt_tokens=[3, 0, 9][i],
                decode_steps=[1, 50, 7][i],
                batch=[1, 2, 5][i],
            )
            for count, exact in model.cost(stage, one).as_dict().items():
                assert np.broadcast_to(whole[count], 3)[i] == pytest.approx(exact, rel=1e-15), (stage, count)
