"""llama.cpp itself beside what is said of it: files are written, the engine loads them and reports what it allocates.

Needs the extra `engines`. Sizes are equal to the last digit that the engine writes, 0.01 MiB.
"""

import pytest
from llama_engine import load

from modelmeter.checkpoints.layout import layout_of
from modelmeter.checkpoints.llama_cpp import buffers
from modelmeter.models.config_json import model_of
from modelmeter.models.families import component
from modelmeter.models.vlm import text_model

pytest.importorskip("xllamacpp")
gguf_files = pytest.importorskip("gguf_files")

WIDE = {**gguf_files.SMALL, "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
MIXTURE = {**gguf_files.MIXTURE, "moe_layers": 3, "dense_mlp": 512, "expert_mlp": 256, "shared_mlp": 512, "vocabulary": 512}
CONFIGS = {
    "llama": {**WIDE, "model_type": "llama", "tie_word_embeddings": False},
    "llama_tied": {**WIDE, "model_type": "llama", "tie_word_embeddings": True},
    "llama_deep": {**WIDE, "model_type": "llama", "num_hidden_layers": 9, "intermediate_size": 1536},
    "qwen2": {**WIDE, "model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {**WIDE, "model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": False},
    "ernie": {**WIDE, "model_type": "ernie4_5", "head_dim": 128, "use_bias": False, "tie_word_embeddings": True},
    "mixture": MIXTURE,
    "mixture_of_16": {**MIXTURE, "experts": 16, "active": 6},
}


def made(name):
    config = CONFIGS[name]
    return text_model(name, component("decoder", config)) if "family" in config else model_of(config)


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """A file of a model under a policy, written once."""
    folder, known = tmp_path_factory.mktemp("gguf"), {}

    def write(name, policy):
        if (name, policy) not in known:
            config, forms = CONFIGS[name], {"fp32": "F32", "fp16": "F16"}
            given = [(t.name, t.shape, forms.get(t.format.name, t.format.name.upper())) for t in layout_of(made(name), policy).tensors]
            architecture, _ = gguf_files.metadata(config)
            more = {"tokenizer.ggml.model": "none", f"{architecture}.context_length": 8192}
            if "head_dim" in config:
                more |= {f"{architecture}.attention.value_length": config["head_dim"], f"{architecture}.rope.dimension_count": config["head_dim"]}
            known[name, policy] = gguf_files.write(folder / f"{name}.{policy}.gguf", config, given, more=more.items())
        return known[name, policy]

    return write


def mib(size):
    return f"{size / 2**20:.2f}"


def words(options):
    return {key: {True: "on", False: "off"}.get(value, value) for key, value in options.items()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("flash", (True, False))
def test_buffers_and_nodes_are_those_that_the_engine_reports(file_of, name, flash):
    report, ours = load(file_of(name, "f16"), flash=words({"f": flash})["f"]), buffers(made(name), "f16", 512, flash=flash)
    assert report.model == {"CPU_Mapped": mib(ours.model)}
    assert (report.kv, report.compute, report.nodes) == (mib(ours.kv), mib(ours.compute), ours.nodes)
    assert report.splits == 1  # one backend


@pytest.mark.parametrize(("context", "ubatch"), ((100, 512), (300, 64), (1000, 512), (4096, 7)))
@pytest.mark.parametrize(("flash", "keys", "values"), (
    (True, "fp16", "fp16"), (False, "fp16", "fp16"), (False, "q8_0", "fp16"), (True, "q8_0", "q8_0"), (True, "fp16", "q4_0"),
))  # fmt: skip
def test_contexts_batches_and_caches(file_of, context, ubatch, flash, keys, values):
    k, v = (name.replace("fp", "f") for name in (keys, values))
    report = load(file_of("llama", "f16"), n_ctx=context, n_ubatch=ubatch, n_batch=4096, flash="on" if flash else "off", k=k, v=v)
    ours = buffers(made("llama"), "f16", context, ubatch, flash=flash, keys=keys, values=values)
    assert (report.kv, report.compute, report.nodes) == (mib(ours.kv), mib(ours.compute), ours.nodes)


@pytest.mark.parametrize("policy", ("q8_0", "q4_0", "q4_k_m", "q5_k_m", "iq4_nl", "q2_k"))
@pytest.mark.parametrize(("mapped", "repack"), ((True, True), (False, True), (True, False), (False, False)))
def test_weights_are_mapped_repacked_or_read(file_of, policy, mapped, repack):
    report = load(file_of("llama_tied", policy), mmap="on" if mapped else "off", repack="on" if repack else "off")
    ours = buffers(made("llama_tied"), policy, 512, mapped=mapped, repack=repack)
    assert report.model.pop("CPU_Mapped" if mapped else "CPU") == mib(ours.model)
    assert report.model.pop("CPU_REPACK", "0.00") == mib(ours.repacked) and not report.model
