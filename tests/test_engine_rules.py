"""Laws of what engines do beside torch: the last layer's last position, ggml's ops, results in place of operands."""

from dataclasses import replace

import pytest

from modelmeter import InputError, Runtime
from modelmeter.checkpoints.llama_cpp import buffers, graph_of
from modelmeter.models.config_json import model_of
from modelmeter.models.families import component
from modelmeter.models.vlm import text_model
from modelmeter.runtimes.lifetimes import LIFETIMES
from modelmeter.runtimes.passes import attention_kernel, last_layer, last_logits

D, F, V, S = 64, 96, 128, 256


def llama(layers, **fields):
    given = {
        "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": layers, "model_type": "llama",
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
    }  # fmt: skip
    return model_of({**given, **fields})


def mixture(experts, active):
    fields = {
        "family": "deepseek", "hidden": D, "heads": 4, "kv_heads": 4, "dense_mlp": F, "dense_layers": 1, "moe_layers": 2,
        "experts": experts, "active": active, "expert_mlp": F, "shared_mlp": F, "gate_up": "split", "rotary": "model",
        "vocabulary": V, "positions": 512, "tied": False,
    }  # fmt: skip
    return text_model("mixture", component("decoder", fields))


LAST = Runtime("last", (last_logits, attention_kernel))
LAYER = Runtime("layer", (last_logits, last_layer, attention_kernel))


@pytest.mark.parametrize("layers", (1, 2, 3, 7))
def test_the_last_layers_mlp_runs_for_one_position(layers):
    model = llama(layers)
    every, one = (model.cost("prefill", model.text(S, runtime=runtime)) for runtime in (LAST, LAYER))
    assert every.tensor_core_flops - one.tensor_core_flops == (S - 1) * 2 * 3 * D * F
    for count in ("parameters", "weight_bytes", "kv_cache_bytes", "kv_io_bytes", "weight_io_bytes"):
        assert getattr(every, count) == getattr(one, count)


def test_a_decode_step_has_no_other_position():
    model = mixture(4, 2)
    every, one = (model.cost("decode", model.text(S, decode_steps=9, runtime=runtime)) for runtime in (LAST, LAYER))
    for count in (
        "tensor_core_flops",
        "cuda_core_flops",
        "weight_io_bytes",
        "kv_io_bytes",
        "parameters",
        "kv_cache_bytes",
    ):
        assert getattr(every, count) == getattr(one, count)


@pytest.mark.parametrize(
    "model", (llama(3), llama(2, model_type="qwen2"), mixture(4, 2), mixture(4, 1)), ids=lambda m: m.name
)
@pytest.mark.parametrize("runtime", ("llama_cpp", "llama_cpp_scores"))
def test_ggmls_ops_multiply_and_store_what_the_layers_do(model, runtime):
    ours, plain = (model.cost("prefill", model.text(S, runtime=given)) for given in (runtime, LAYER))
    for count in ("tensor_core_flops", "parameters", "weight_bytes", "kv_cache_bytes", "kv_io_bytes"):
        assert getattr(ours, count) == getattr(plain, count)
    more = model.cost("prefill", model.text(S + 1, runtime=runtime))
    assert more.kv_cache_bytes == 2 * ours.kv_cache_bytes  # another 256 cells


def test_the_ops_of_one_layer_by_hand():
    run = llama(1).kernels("prefill", llama(1).text(S, runtime="llama_cpp_scores"))
    made = [kernel.ops[0].partition("[")[0].partition(":")[0] for kernel in run]
    assert made == [
        "y",  # row of the table
        "y", "y", "q", "q", "v", "k", "k", "C_k", "C_v",  # norm, weight, projections, rotations, cache
        "a", "p", "o", "o", "y",  # scores, softmax, shares, heads in order, projection
        "h", "x", "h", "y", "y",  # last positions of it and of x, sum, norm, weight
        "_g", "_u", "_h", "y", "y", "y", "y", "y",  # MLP, sum, norm, weight, head
    ]  # fmt: skip


@pytest.mark.parametrize("flash", (True, False))
@pytest.mark.parametrize("model", (llama(1), llama(4), mixture(6, 3)), ids=lambda m: m.name)
def test_a_plan_holds_what_is_alive_at_once(model, flash):
    work = model.text(S, runtime="llama_cpp" if flash else "llama_cpp_scores")
    alive = model.cost("prefill", work).peak_activation_bytes
    planned = buffers(model, "f16", S, S, flash=flash).compute
    assert alive <= planned <= alive * 3 // 2
    lifetimes = Runtime.of(work.counting.runtime)
    apart = replace(lifetimes, name="apart", lifetimes=LIFETIMES["arena"])
    assert alive <= model.cost("prefill", model.text(S, runtime=apart)).peak_activation_bytes


def test_a_quantised_cache_is_rotated_in_the_cost_too():
    model = llama(3, hidden_size=512, num_attention_heads=4)  # heads of 128
    plain, keys, both = (
        model.cost("prefill", model.text(S, runtime="llama_cpp", precision=precision))
        for precision in ({"kv": "fp16"}, {"kv": "fp16", "overrides": {"*C_k": "q8_0"}}, {"kv": "q8_0"})
    )
    layers, heads, kv_heads, width = 3, 4, 2, 128
    assert keys.tensor_core_flops - plain.tensor_core_flops == 2 * layers * S * (heads + kv_heads) * width * 128
    assert both.tensor_core_flops - keys.tensor_core_flops == 2 * layers * S * (heads + kv_heads) * width * 64
    with pytest.raises(InputError, match="needs flash attention for values in q8_0"):
        model.cost("prefill", model.text(S, runtime="llama_cpp_scores", precision={"kv": "q8_0"}))


def test_a_basis_says_what_a_runtime_counts():
    model = llama(2)
    for precision, told in (("bf16", "bf16/fp32/bf16"), ({"kv": "q8_0"}, "bf16/fp32/q8_0"), ("fp32", "fp32")):
        work = model.text(S, runtime="llama_cpp", causal="exact", precision=precision)
        assert model.cost("prefill", work).basis == f"llama_cpp, causal full, logits last, {told}"
    full, exact = (
        model.cost("prefill", model.text(S, runtime="llama_cpp", causal=causal)) for causal in ("full", "exact")
    )
    assert full == exact


@pytest.mark.parametrize("context", (300, 2000, 8000))
def test_a_cache_of_windows_holds_the_window_and_what_is_computed_at_once(context):
    model = llama(
        12,
        model_type="gemma3_text",
        head_dim=32,
        sliding_window=100,
        sliding_window_pattern=6,
        tie_word_embeddings=True,
    )
    ours = buffers(model, "f16", context, 64)
    a_cell, cells = 2 * 2 * 32 * 2, -(-context // 256) * 256  # K and V, heads, width, bytes
    assert ours.near == 10 * a_cell * min(256, cells)
    assert ours.kv - ours.near == 2 * a_cell * cells
    cost = model.cost("decode", model.text(context - 1, decode_steps=1, runtime="llama_cpp", precision={"kv": "fp16"}))
    assert cost.kv_cache_bytes == 2 * a_cell * cells + 10 * a_cell * min(768, cells)  # 100 + 512, whole cells


def test_layers_of_two_kinds_run_in_their_own_order():
    fields = {"head_dim": 32, "sliding_window": 100, "model_type": "gemma2", "tie_word_embeddings": True}
    graph = graph_of(llama(5, **fields))
    caches = [op.n for op in graph.ops if op.writes and op.writes[0].name.endswith("C_k")]
    assert ["window" in n.axes for n in caches] == [True, False, True, False, True]
