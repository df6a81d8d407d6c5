"""llama.cpp itself beside what is said of it: files are written, the engine loads them and reports what it allocates.

Needs the extra `engines`. Sizes are equal to the last digit that the engine writes, 0.01 MiB.
"""

import pytest
from llama_engine import load

from modelmeter import InputError
from modelmeter.checkpoints.llama_cpp import buffers, graph_of
from modelmeter.models.config_json import model_of
from modelmeter.runtimes.planner import unrolled

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")

from gguf_files import OTHERS, SMALL
from llama_files import DECODERS, LARGE, QUESTIONS, caches, made, mib, words, write

KINDS = {
    "matmul": "MUL_MAT MUL_MAT_ID", "lookup": "GET_ROWS", "copy": "GET_ROWS SET_ROWS CONT CONCAT ARGSORT FILL", "norm": "RMS_NORM",
    "reserved": "GET_ROWS DUP SET_ROWS", "pointwise": "MUL ADD ADD_ID ROPE SCALE TANH GELU SILU SIGMOID CLAMP DIV", "softmax": "SOFT_MAX", "apart": "SWIGLU SWIGLU_OAI GEGLU NORM SUM_ROWS",
}  # fmt: skip
"""What the engine calls ops of a kind."""


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """A file of a model under a policy, written once."""
    folder, known = tmp_path_factory.mktemp("gguf"), {}
    return lambda *key: known.get(key) or known.setdefault(key, write(folder, *key))


@pytest.mark.parametrize(("name", "question"), [given for given in QUESTIONS if given not in LARGE], ids=str)
def test_buffers_and_nodes_are_those_that_the_engine_reports(file_of, name, question):
    policy, context, ubatch, options = question
    report = load(file_of(name, policy), n_ctx=context, n_batch=4096, n_ubatch=ubatch, **words(options))
    ours = buffers(made(name), policy, context, ubatch, **options)
    weights = {
        "CPU_Mapped" if options.get("mapped", True) else "CPU": mib(ours.model),
        "CPU_REPACK": mib(ours.repacked),
    }
    assert {"CPU_REPACK": "0.00"} | report.model == weights
    assert (report.kv, report.compute, report.splits) == (caches(ours), mib(ours.compute), 1)
    assert report.nodes == ours.nodes


@pytest.mark.parametrize(("name", "question"), DECODERS, ids=str)
def test_the_engine_runs_these_ops_in_this_order(file_of, name, question):
    policy, context, ubatch, options = question
    report = load(file_of(name, policy), n_ctx=context, n_batch=4096, n_ubatch=ubatch, **words(options))
    ours, labels = [], [""]
    for _, op in unrolled(graph_of(made(name), **options), lambda op: op.node.times):
        if op.kind in ("view", "constant", "unused") or (op.kernel and op.kernel == labels[-1]):
            continue
        labels.append(op.kernel)
        ours.append("FLASH_ATTN" if op.kernel else KINDS[op.kind])
    assert len(ours) == len(report.ops)
    assert all(node.kind in kinds.split() for node, kinds in zip(report.ops, ours, strict=True))


def test_what_is_not_known_is_refused():
    windows = model_of({**SMALL, "model_type": "mistral", "sliding_window": 16})
    for refused in (
        lambda: buffers(windows, "f16", 512),
        lambda: windows.cost("prefill", windows.text(9, runtime="llama_cpp")),
    ):
        with pytest.raises(
            InputError, match=r"attention in windows is known here in llama.cpp of gemma2, gemma3_text, gpt_oss alone"
        ):
            refused()
    with pytest.raises(InputError, match=r"llama.cpp runs latent attention of deepseek_v3 absorbed"):
        made("deepseek2").cost("prefill", made("deepseek2").text(9, runtime="llama_cpp"))
    with pytest.raises(InputError, match=r"llama.cpp keeps latents in one format"):
        buffers(made("deepseek2"), "f16", 512, keys="q8_0")
    parallel = model_of({**OTHERS["phi"], "model_type": "phi"})
    with pytest.raises(InputError, match="side by side"):
        buffers(parallel, "f16", 512)
    with pytest.raises(InputError, match="needs flash attention"):
        buffers(made("llama"), "f16", 512, flash=False, values="q8_0")
    with pytest.raises(InputError, match="context must be a whole number"):
        buffers(made("llama"), "f16", 0)
