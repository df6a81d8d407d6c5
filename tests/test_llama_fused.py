"""llama.cpp's GPU backends: which of ggml's ops are one kernel, beside lists written by hand from its source.

The lists are what `ggml_cuda_try_fuse` of ggml-cuda.cu, `ggml_vk_can_fuse` of ggml-vulkan.cpp and the table of
ggml-metal-fusion.cpp make of the nodes of one layer, in order, for one token.
"""

import re

import numpy as np
import pytest
from kinds import ONE_OF_EACH

from modelmeter import InputError, load_model
from modelmeter.catalogue import load_devices, load_host
from modelmeter.programs.cost import COUNTS
from modelmeter.times import Times

BACKENDS = ("llama_cpp_cuda", "llama_cpp_vulkan", "llama_cpp_metal")
ENDS = "embedding norm*weight head"
LAYERS = {
    ("llama_3_1_8b", "llama_cpp"): "norm weight q rope v k rope store-k store-v attention o add norm weight gate up glu down add",
    ("llama_3_1_8b", "llama_cpp_cuda"): "norm*weight q rope v k rope>store-k store-v attention o+add norm*weight gate*up>glu down+add",
    ("llama_3_1_8b", "llama_cpp_vulkan"): "norm*weight q rope v k rope>store-k store-v attention o+add norm*weight gate up glu down+add",
    ("llama_3_1_8b", "llama_cpp_metal"): "norm*weight q rope v k rope store-k store-v attention o add norm*weight gate up glu down add",
    ("qwen3_8b", "llama_cpp_cuda"): "norm*weight q norm*weight>rope v k norm*weight>rope>store-k store-v attention o+add norm*weight gate*up>glu down+add",
    ("qwen3_8b", "llama_cpp_metal"): "norm*weight q norm*weight rope v k norm*weight rope store-k store-v attention o add norm*weight gate up glu down add",
    ("qwen2_5_7b", "llama_cpp_cuda"): "norm*weight q+bias rope v+bias k+bias rope>store-k store-v attention o+add norm*weight gate*up>glu down+add",
    ("gemma_2_2b", "llama_cpp_cuda"): "norm*weight q rope scale k rope v store-k store-v attention o norm*weight+add norm*weight gate*up>glu down norm*weight+add",
    ("qwen3_30b_a3b", "llama_cpp_cuda"): "norm*weight q norm*weight>rope v k norm*weight>rope>store-k store-v attention o+add norm*weight router route gate*up>glu down weigh+sum add",
    ("qwen3_30b_a3b", "llama_cpp_vulkan"): "norm*weight q norm*weight>rope v k norm*weight>rope>store-k store-v attention o+add norm*weight router route gate up glu down*weigh sum+add",
    ("qwen3_30b_a3b", "llama_cpp_metal"): "norm*weight q norm*weight rope v k norm*weight rope store-k store-v attention o add norm*weight router route gate up glu down weigh+sum add",
    ("gpt_oss_20b", "llama_cpp_cuda"): "norm*weight q+bias rope k+bias rope v+bias store-k store-v attention o+bias add norm*weight router+bias route gate+bias*up+bias>glu down+bias weigh+sum add",
}  # fmt: skip
BEHIND = {"llama_3_1_8b": 1, "qwen3_8b": 1, "qwen2_5_7b": 1, "qwen3_30b_a3b": 1, "gemma_2_2b": 1}
"""Copies of the last position stand before the residual of attention in the last layer, which no kernel joins then."""
LAST = 2
"""Those copies."""
MORE = {"gemma_2_2b": 2}
"""The cap of the logits, three ops that CUDA runs as one, and the scale of the embeddings."""


def work(model, runtime, batch=1, **options):
    return model.text(
        40, decode_steps=3, runtime=runtime, precision="q4_k_m", latent="absorbed", batch=batch, **options
    )


@pytest.mark.parametrize(("name", "runtime"), LAYERS, ids=" ".join)
def test_a_step_of_one_token_runs_the_kernels_that_the_source_says(name, runtime):
    model = load_model(name)
    kernels = model.kernels("decode", work(model, runtime))
    layers = model.config["num_hidden_layers"]
    joined = runtime in ("llama_cpp_cuda", "llama_cpp_vulkan")
    others = len(ENDS.split()) + (runtime == "llama_cpp") + LAST + joined * BEHIND.get(name, 0) + MORE.get(name, 0)
    assert sum(kernel.runs for kernel in kernels) == layers * len(LAYERS[name, runtime].split()) + others


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_fusing_changes_no_work_and_no_memory_but_saves_launches_and_traffic(name):
    model = load_model(name)
    try:
        plain = model.program("decode", work(model, "llama_cpp"))
    except InputError as refused:
        with pytest.raises(InputError, match=re.escape(str(refused).partition("runtime")[0])):
            model.program("decode", work(model, "llama_cpp_cuda"))
        return
    for runtime in BACKENDS:
        fused = model.program("decode", work(model, runtime))
        for batch in (1, 2, 9):
            sizes = model.stage("decode").values(work(model, runtime, batch), fused.names)
            before, after = plain.at(sizes)[""].as_dict(), fused.at(sizes)[""].as_dict()
            for count in (count for count in COUNTS if count != "activation_io_bytes"):
                assert float(after[count]) == pytest.approx(float(before[count]), rel=1e-12), (runtime, count)
            assert after["activation_io_bytes"] < before["activation_io_bytes"]
            assert fused.launches_at(sizes) < plain.launches_at(sizes)


def test_a_prefill_does_the_same_work_with_fewer_kernels():
    model = load_model("qwen3_30b_a3b")
    for runtime in BACKENDS:
        plain, fused = (work(model, one) for one in ("llama_cpp", runtime))
        before, after = (model.cost("prefill", asked).as_dict() for asked in (plain, fused))
        for count in (count for count in COUNTS if count != "activation_io_bytes"):
            assert float(after[count]) == pytest.approx(float(before[count]), rel=1e-12), (runtime, count)
        assert after["activation_io_bytes"] < before["activation_io_bytes"]
        assert model.launches("prefill", fused) < model.launches("prefill", plain)


@pytest.mark.parametrize("runtime", BACKENDS)
def test_several_batches_at_once_are_as_each_by_itself(runtime):
    model = load_model("gpt_oss_20b")
    many = model.cost("decode", work(model, runtime, np.array([1.0, 2.0, 8.0, 9.0]))).as_dict()
    for place, batch in enumerate((1, 2, 8, 9)):
        for count, exact in model.cost("decode", work(model, runtime, batch)).as_dict().items():
            assert np.broadcast_to(many[count], 4)[place] == pytest.approx(float(exact), rel=1e-12), count


def runs(name, runtime, batch, text):
    model = load_model(name)
    found = [
        kernel for kernel in model.kernels("decode", work(model, runtime, batch)) if kernel.ops[0].startswith(text)
    ]
    return sum(kernel.runs for kernel in found)


def test_what_joins_a_product_runs_apart_for_several_tokens():
    for batch, apart in ((1, 0), (2, 32), (9, 32)):
        assert runs("llama_3_1_8b", "llama_cpp_cuda", batch, "_u[b s f]") == apart
        assert runs("llama_3_1_8b", "llama_cpp_cuda", batch, "_h[b s f]") == apart
        assert runs("llama_3_1_8b", "llama_cpp_vulkan", batch, "_u[b s f]") == 32
        assert runs("llama_3_1_8b", "llama_cpp_cuda", batch, "_g[b s f]") == 32
    for batch, apart in ((1, 0), (8, 0), (9, 48)):  # experts have the vector kernel for up to 8
        assert runs("qwen3_30b_a3b", "llama_cpp_cuda", batch, "_u[b s k f]") == apart


def test_gate_and_up_of_one_token_are_one_product_of_both_matrices():
    model = load_model("llama_3_1_8b")
    for batch, many in ((1, 2), (2, 1)):
        [first, *_] = [
            kernel for kernel in model.kernels("decode", work(model, "llama_cpp_cuda", batch))
            if kernel.ops[0].startswith("_g")
        ]  # fmt: skip
        assert sum(first.tensor_flops.values()) == many * 2 * batch * 4096 * 14336
        matrix = 4096 * 14336 * 144 // 256  # q4_k: 144 bytes for 256 weights
        assert first.read_bytes == {"activation": 4 * batch * 4096, "weight": many * matrix}
        assert first.written_bytes == {"activation": 4 * batch * 14336}


def test_a_product_reads_the_residual_of_one_token_itself():
    model = load_model("llama_3_1_8b")
    for batch, more in ((1, 4096), (2, 0)):
        kernels = model.kernels("decode", work(model, "llama_cpp_cuda", batch))
        down = next(kernel for kernel in kernels if "W_down" in kernel.ops[0])
        assert down.read_bytes["activation"] == 4 * (batch * 14336 + more)


def test_keys_of_a_layer_go_to_the_cache_in_the_kernel_that_gives_them_their_positions():
    model = load_model("qwen3_8b")
    kernels = model.kernels("decode", work(model, "llama_cpp_cuda"))
    [keys] = [kernel for kernel in kernels if kernel.runs > 1 and any(op.startswith("C_k") for op in kernel.ops)]
    assert [op.partition("[")[0] for op in keys.ops] == ["y", "y", "k", "C_k", "C_k"]  # the view of keys too
    assert keys.written_bytes == {"kv": 8 * 128 * 2}
    assert keys.read_bytes == {"activation": 8 * 128 * 4 + 4 + 8, "weight": 128 * 4}  # keys, a position, a place


def test_routing_is_one_kernel_on_cuda_where_experts_are_a_power_of_two():
    for name, runtime, one in (
        ("glm_4_5_air", "llama_cpp_cuda", True),  # 128 experts, sigmoid with a correction
        ("kimi_k2", "llama_cpp_cuda", False),  # 384
        ("kimi_k2", "llama_cpp_vulkan", True),
    ):
        model = load_model(name)
        kernels = model.kernels("decode", work(model, runtime))
        sorts = [kernel for kernel in kernels if any(op.startswith("_sorted") for op in kernel.ops)]
        assert sorts and all((len(kernel.ops) > 1) == one for kernel in sorts)


def test_a_fast_device_waits_for_fewer_launches():
    model, [device], host = load_model("qwen3_8b"), load_devices(["rtx_5090"]), load_host()
    plain, fused = (Times(model, work(model, runtime), device, host) for runtime in ("llama_cpp", "llama_cpp_cuda"))
    saved = plain.tpot.seconds - fused.tpot.seconds
    launches = plain.stages["decode"].runs - fused.stages["decode"].runs
    assert 1e-6 < saved / launches < 4e-6
    assert fused.tpot.seconds > fused.stages["decode"].bound
