"""OpenVINO says what it runs and stores, in an environment of its own (constraints-openvino.txt); the rest is skipped."""

import pytest

pytest.importorskip("openvino", reason="needs the environment of constraints-openvino.txt")
pytest.importorskip("optimum.intel", reason="needs the environment of constraints-openvino.txt")
import openvino_engine as engine
from openvino_models import TOWERS, cached, launched, made, weights

from modelmeter.checkpoints.openvino import held

DECODERS = ("llama", "qwen3_moe", "llama, wide")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The files of the decoders, their cache in ports."""
    folder = tmp_path_factory.mktemp("openvino")
    return {name: engine.export(folder, name) for name in DECODERS}


@pytest.mark.parametrize("name", DECODERS)
def test_primitives_are_those_of_the_executed_graph(exported, name):
    for runtime, model in (
        ("openvino_stateful", engine.stateful(exported[name], name)),
        ("openvino_stateless", engine.CORE.read_model(exported[name])),
    ):
        found, _ = engine.primitives(model)
        assert found == launched(made(name), runtime)
        work = made(name).text(8, decode_steps=1, runtime=runtime)
        assert [made(name).launches(stage, work) for stage in ("prefill", "decode")] == [found.total()] * 2


@pytest.mark.parametrize("name", DECODERS[:2])
def test_files_hold_our_weights_the_frequencies_of_rotary_positions_and_small_constants(exported, name):
    files = {"fp32": exported[name], "fp16": engine.halved(exported[name])}
    files |= {policy: engine.compressed(exported[name], policy) for policy in engine.policies()}
    for policy, path in files.items():
        found = engine.read(path)
        if policy == "fp16":
            assert found.weights == 2 * made(name).cost("prefill", made(name).text(5)).parameters
            continue
        assert found.weights == weights(name, policy)
        assert found.frequencies == 4 * 64 // 2
        assert found.rest < 512  # shapes, axes and scalars, each once however many layers there are


@pytest.mark.parametrize("name", DECODERS)
def test_the_cache_goes_in_and_out_or_lies_inside(exported, name):
    carried, came, went = engine.ports(exported[name])
    layers = made(name).cost("prefill", made(name).text(5)).kv_cache_bytes and engine.config(name)["num_hidden_layers"]
    assert (carried, came, went) == (cached(name, "openvino_stateless", "fp32"), 2 * layers, 2 * layers)
    kept, positions = engine.state(engine.stateful(exported[name], name))
    assert kept == cached(name, "openvino_stateful", "fp16")
    assert positions == 8  # of a prompt of eight: logits of all


@pytest.mark.parametrize("name", TOWERS)
def test_towers_run_our_primitives_and_hold_our_weights(tmp_path, name):
    layer, sizes = TOWERS[name]
    path = engine.tower(tmp_path, name)
    assert engine.primitives(engine.CORE.read_model(path))[0] == launched(layer, "openvino_stateful")
    assert engine.read(path).weights == layer.forward_memory_weight_bytes(**sizes, precision="fp32")


def test_a_process_holds_what_we_say_within_five_percent(exported, tmp_path):
    paths = [tmp_path / "small.xml", tmp_path / "large.xml"]
    for name, path in zip(("llama", "llama, wide"), paths, strict=True):
        engine.openvino.save_model(engine.stateful(exported[name], name), path, compress_to_fp16=False)
    for tokens in (1, 1024):
        ours = sum(held(made("llama, wide"), tokens))
        assert abs(engine.memory(*paths, tokens) - ours) < 0.05 * ours
