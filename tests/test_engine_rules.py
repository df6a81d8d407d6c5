"""Laws of what engines do beside torch: the last layer's last position, ggml's ops, results in place of operands."""

from dataclasses import replace

import pytest

from modelmeter import Runtime
from modelmeter.checkpoints.llama_cpp import buffers
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
