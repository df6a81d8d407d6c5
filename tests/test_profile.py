"""A profiler's record beside the prediction: real modules on the CPU, what lacks, what is more, what is none of ours."""

import gzip
import json
import sqlite3

import pytest

import modelmeter
from modelmeter.catalogue import load_devices
from modelmeter.cli import main
from modelmeter.config import read_yaml
from modelmeter.errors import InputError
from modelmeter.folders import config_dir
from modelmeter.models.config_json import model_of
from modelmeter.profiled.align import matched
from modelmeter.profiled.beside import laid
from modelmeter.profiled.expected import program_of
from modelmeter.profiled.read import read
from modelmeter.times import Host, Times

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from profiled_subjects import is_right, modules_of, recorded  # noqa: E402
from torch_subjects import cache_of, tower  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

HOST = Host.of(read_yaml(config_dir() / "time.yaml")["host"])
TOKENS, STEPS = 128, 3
FIELDS = {
    "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False, "hidden_act": "silu",
    "sliding_window": None, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def times(model, device="xeon_8480", **options):
    work = model.workload(**options) if model.planner else model.text(**options)
    return Times(model, work, load_devices([device])[0], HOST)


def decoder(kind, attention, **changes):
    """A decoder with random weights, our model of it, and what runs a prefill and steps of decode."""
    fields = FIELDS | {"model_type": kind} | changes
    made = CONFIG_MAPPING[kind](**{key: value for key, value in fields.items() if key != "model_type"})
    made._attn_implementation = attention
    module = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16).eval()
    width = getattr(made, "head_dim", None) or fields["hidden_size"] // fields["num_attention_heads"]

    def call(tokens, past):
        ids, positions = torch.zeros(1, tokens, dtype=torch.long), torch.arange(past, past + tokens)[None]
        return lambda: (ids, positions, cache_of(made, 1, fields["num_key_value_heads"], past, width))

    def run(ids, positions, cache):
        module(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)

    calls = [("prefill", call(TOKENS, 0)), *(("decode", call(1, TOKENS + step)) for step in range(STEPS))]
    runs = [(stage, make, run) for stage, make in calls]
    ours = times(model_of(fields | {"head_dim": width} if kind == "qwen3" else fields, kind), tokens=TOKENS, decode_steps=STEPS, runtime=attention)
    return module, ours, runs


@pytest.mark.parametrize("shapes", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_time_of_a_decoder_is_that_of_the_right_ops(tmp_path, kind, attention, shapes):
    module, ours, runs = decoder(kind, attention)
    trace = read(recorded(tmp_path / "trace.json", runs, module, shapes))
    right = told = 0.0
    for stage, ranges in trace.stages.items():
        program, parts = program_of(ours, stage), list(trace.within(ranges))
        ran = [one for part in parts for one in part.ran]
        places, passes = matched(ran, program)
        assert passes == len(ranges) == (1 if stage == "prefill" else STEPS)
        names = [name for part in parts for name in modules_of(part)]
        for one, place, name in zip(ran, places, names, strict=True):
            said = is_right(name, program.kernels[place]) if place >= 0 else False
            right, told = right + one.seconds * bool(said), told + one.seconds
            assert said is not None, (name, one.name)
    assert right > (0.97 if attention == "sdpa" else 0.95) * told
