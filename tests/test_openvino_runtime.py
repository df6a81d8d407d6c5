"""Laws of the runtimes of OpenVINO and of the weights that nncf compresses, without the engine (test_openvino.py has it)."""

import pytest

from modelmeter import InputError, load_model
from modelmeter import layers as mm
from modelmeter.checkpoints.openvino import held
from modelmeter.models.config_json import model_of
from modelmeter.programs.compressed import COMPRESSED

LLAMA = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "hidden_act": "silu",
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
KV = 3 * 2 * 2 * 64  # layers, K and V, heads, width


def decode(runtime, past=20, **fields):
    model = model_of({**LLAMA, **fields})
    work = model.text(past, decode_steps=1, runtime=runtime, precision={"kv": "bf16"})
    return model.cost("decode", work)


def test_a_cache_in_ports_is_read_and_written_whole_and_twice_in_memory():
    inside, ports = decode("openvino_stateful"), decode("openvino_stateless")
    assert inside.kv_cache_bytes == 21 * KV * 2
    assert inside.kv_io_bytes == (21 + 1) * KV * 2  # all read, one position written
    assert ports.kv_cache_bytes == (20 + 21) * KV * 4
    past, present = 20 * KV * 4, 21 * KV * 4
    assert ports.kv_io_bytes == past + present + present  # copied, then read by what repeats heads


def test_without_grouped_heads_nothing_is_repeated():
    grouped, plain = (decode("openvino_stateless", num_key_value_heads=g).activation_io_bytes for g in (2, 4))
    assert grouped > plain


def test_both_count_the_work_of_the_layers():
    costs = [decode(runtime) for runtime in ("flash", "openvino_stateful", "openvino_stateless")]
    assert len({cost.tensor_core_flops for cost in costs}) == 1
    assert len({cost.cuda_core_flops for cost in costs}) == 1
    assert len({cost.parameters for cost in costs}) == 1


def test_a_prompt_and_its_answer_run_one_graph():
    model = model_of(LLAMA)
    for runtime in ("openvino_stateful", "openvino_stateless"):
        work = model.text(9, decode_steps=4, runtime=runtime)
        assert model.launches("decode", work) == 4 * model.launches("prefill", work)


@pytest.mark.parametrize("policy", COMPRESSED)
def test_matrices_are_compressed_and_nothing_else(policy):
    model = model_of(LLAMA)
    work = model.text(5, precision={"weights": policy, "activations": "fp32"})
    found = model.cost("prefill", work).weight_bytes
    rows = {"layers": [(256, 256 * 2 + 128 * 2 + 512 * 2), (512, 256)], "ends": [(256, 512 * 2)]}

    def stored(kind, columns, many):
        group = {"g64": 64, "channel": columns}.get(policy.rpartition("_")[2], 128)
        if "int8" in policy or (kind == "ends" and "all" not in policy):
            return many * (columns + 3)
        zero_points = 0 if "sym" in policy else columns // group / 2
        return many * (columns // 2 + columns // group * 2 + zero_points)

    matrices = sum(stored(kind, *each) * (3 if kind == "layers" else 1) for kind in rows for each in rows[kind])
    assert found == matrices + 7 * 256 * 4


@pytest.mark.parametrize(("columns", "bytes_a_row"), [(128, 66.5), (192, 3 * 34.5), (96, 3 * 18.5), (100, 103)])
def test_columns_that_are_no_whole_groups_have_smaller_ones_or_eight_bits(columns, bytes_a_row):
    model = model_of({**LLAMA, "intermediate_size": columns, "num_hidden_layers": 1})
    work = model.text(5, precision={"weights": "openvino_int4"})
    kernels = [k for k in model.kernels("prefill", work) if "W_down" in "".join(k.ops)]
    assert [k.read_bytes["weight"] for k in kernels] == [256 * bytes_a_row]


def test_a_tower_has_eight_bits_a_row():
    model = load_model("paddleocr_vl")
    work = model.workload(image_size="640x640", precision={"weights": "openvino_int4"})
    vision = model.cost("vision", work)
    assert vision.parameters < vision.weight_bytes < 1.01 * vision.parameters


def test_what_a_process_holds_has_four_parts():
    model = model_of(LLAMA)
    found = held(model, 7)
    assert found.file == model.cost("prefill", model.text(7, precision="fp32")).weight_bytes
    assert found.cache == 7 * KV * 2
    assert found.repacked == found.file - 512 * 256 * 4
    assert found.blocks > 3 * 7 * 512 * 4


def test_a_norm_that_the_engine_takes_apart_is_refused():
    with pytest.raises(InputError, match="CenteredNorm: how OpenVINO runs this norm"):
        mm.CenteredNorm(8).cost(b=1, s=1, runtime="openvino_stateful")
