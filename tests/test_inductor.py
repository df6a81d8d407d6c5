"""The runtime `compile` beside inductor itself, which writes its code for the CPU; nothing of it is compiled or run."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from inductor_checks import Part, answered, functions, theirs  # noqa: E402

import modelmeter  # noqa: E402
from modelmeter import InputError  # noqa: E402
from modelmeter import layers as mm  # noqa: E402
from modelmeter.runtimes.runtime import Runtime  # noqa: E402

EQUAL = [Part("NoTPTransformerBlock", dtype="fp32"), Part("MLPBlock"), Part("DeepseekV2MLP"), Part("TokenEmbedding")]


@pytest.mark.parametrize("part", EQUAL, ids=str)
def test_kernels_calls_and_peak_are_those_of_inductor(part):
    report, ours = answered(part)
    assert theirs(report) == ours.kernels()
    assert (len(report.calls), report.peak) == (functions(ours.kernels()), ours.peak())


def test_a_residual_is_computed_again_until_it_is_the_sum_of_more_than_four_tensors():
    block = mm.ResidualBlock(mm.SelfAttention(4, 2, 2), mm.MLP(4, 8), mm.LayerNorm(4))
    graph = Runtime.of("compile").lowered(mm.Transformer(block, 6).graph())
    sums = [op for op in graph.ops if op.equation.text == "y[b s d] = h[b s d] + m[b s d]"]
    stored = [op for op in sums if {r.name for r in op.writes} & _read_elsewhere(graph, op)]
    assert len(stored) == 2  # of x and two parts a round: behind the second and the fourth


def _read_elsewhere(graph, op):
    return {r.name for other in graph.ops if other.kernel != op.kernel for r in other.reads}


def test_work_weights_and_cache_are_those_of_other_runtimes():
    model = modelmeter.load_model("deepseek_ocr")
    costs = [model.cost("prefill", model.workload(grid="1x2", runtime=name)) for name in ("flash", "compile")]
    for count in ("tensor_core_flops", "cuda_core_flops", "parameters", "weight_bytes", "kv_cache_bytes"):
        assert getattr(costs[0], count) == getattr(costs[1], count), count


def test_what_is_not_known_is_refused():
    with pytest.raises(InputError, match="backward pass is not known"):
        mm.MLP(4, 8).backward_cuda_core_flops(b=1, s=3, runtime="compile")
