"""Identities: our layers less their traced reference modules are zero for all sizes, or a term whose origin is named."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import modelmeter  # noqa: E402
from modelmeter import cli  # noqa: E402
from modelmeter import layers as mm  # noqa: E402
from modelmeter.layers.base import walk  # noqa: E402
from modelmeter.sizes import ceil_div, floor_div, rounded_down, symbol  # noqa: E402
from modelmeter.validate import registry, symbolic  # noqa: E402
from modelmeter.validate.case import Case, LayerAt, compare, like  # noqa: E402
from modelmeter.validate.deepseek_ocr import OVERRIDES, identity_cases  # noqa: E402
from modelmeter.validate.identity import PEAK, identity, zero  # noqa: E402
from modelmeter.validate.towers import CASES  # noqa: E402

transformers.logging.set_verbosity_error()
SHALLOW = (*OVERRIDES, "tower.clip.layers=2", "tower.sam.window_blocks=1", "tower.sam.global_blocks=1")
"""As many layers as there are kinds; what repeats does so by one law."""
NAMED = {"ImageEncoderViT": ["cuda_core_flops"], "CLIPVisionEmbeddings": ["parameters"], "VitModel": ["parameters"],
         "LlamaRotaryEmbedding (vendor)": ["kernel_io_bytes"]}  # fmt: skip
"""What of the layers of DeepSeek-OCR is not zero beside peaks."""
B, S = map(symbol, "bs")


@pytest.fixture(scope="module")
def shallow():
    return modelmeter.load_model("deepseek_ocr", SHALLOW)


def test_each_layer_of_deepseek_ocr_is_its_module_for_all_sizes(shallow, model):
    proven = [identity(case) for case in identity_cases(shallow)]
    for one in proven:
        assert one.proven and not one.refused and one.where, (one.layer, one.residuals, one.refused)
        others = [q for q, residual in one.residuals.items() if not zero(residual) and q != PEAK]
        assert others == NAMED.get(one.layer, []), one.layer
    named = {type(layer).__name__ for part in (model.tower, model.projector, model.decoder) for layer in walk(part)}
    assert named - {"CausalLM", "DeepEncoder", "Repeat"} <= {one.layer.split(" (")[0] for one in proven}
    everywhere = {one.layer for one in proven if one.where in ("b, s", "b, u, v", "b, past")}
    assert {"PatchEmbed", "NoTPTransformer", "DeepseekV2MoE", "LlamaAttention, a step"} <= everywhere


@pytest.mark.parametrize(("name", "overrides", "sizes"), [
    ("paddleocr_vl", ["tower.layers=2"], ["u, v", "u = 2*n_u, v = 2*n_v"]),
    ("qwen2_vl_7b", ["tower.layers=2"], ["u = 2*n_u, v = 2*n_v"]),
    ("minimind2_v", ["tower.layers=2"], ["b; u = 14, v = 14"]),
])  # fmt: skip
def test_towers_and_projectors_are_their_modules_for_all_sizes(name, overrides, sizes):
    found = [identity(case) for case in CASES[name](modelmeter.load_model(name, overrides), 14, 14)]
    assert [one.where for one in found] == sizes
    for one in found:
        assert one.proven and {q for q in one.residuals if one.unequal} == set()
        assert zero(one.residuals["tensor_core_flops"]) and zero(one.residuals["kernel_io_bytes"])


def case(ours, module, **more):
    sizes = LayerAt(ours, {"b": B, "s": S}, at={"b": 2, "s": 3})
    return Case("x", "layer", sizes, module, (like(B, S, 8),), "Module", **more)


def perceptron():
    return torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.GELU(), torch.nn.Linear(5, 8))


def test_a_layer_that_is_wrong_by_one_term_shows_this_term(monkeypatch, capsys):
    right, wide, bare = (mm.MLP(8, 5), mm.MLP(8, 6), mm.MLP(8, 5, bias=False))
    assert identity(case(right, perceptron)).proven
    found = identity(case(wide, perceptron))
    assert found.residuals["tensor_core_flops"] == B * S * 2 * (8 + 8)
    assert {"tensor_core_flops", "cuda_core_flops", "parameters", "kernel_io_bytes"} <= set(found.unequal)
    assert identity(case(bare, perceptron)).residuals["parameters"] == -13
    symbolic.identities.cache_clear()
    here = replace(registry.REFERENCES["deepseek_ocr"], symbolic=lambda model: [case(wide, perceptron)])
    monkeypatch.setitem(registry.REFERENCES, "deepseek_ocr", here)
    assert cli.main(["validate", "deepseek_ocr", "--symbolic"]) == 1
    out = capsys.readouterr().out
    assert "FLOPs: ours - traced = 32*b*s: NOT EQUAL" in out and "1 NOT EQUAL" in out
    symbolic.identities.cache_clear()


def test_a_reason_is_no_proof_of_what_is_said_to_be_exact():
    def of(amount):
        known = {"parameters": (amount, "a head of its own")}
        return case(mm.MLP(8, 5, bias=False), perceptron, known=known, traced={"cuda_core_flops": "biases", PEAK: "none"},
                    skip={"kernel_io_bytes": "biases"})  # fmt: skip

    assert identity(of(13)).proven and identity(of(13)).residuals["parameters"] == -13
    assert identity(of(12)).unequal == ["parameters"]


class Picky(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Sided(torch.nn.Linear):
    """Makes a number of a size."""

    def forward(self, x):
        return super().forward(x) if int(x.shape[1]) else x


def test_what_is_not_traced_is_told_and_never_zero():
    refused = identity(case(mm.MLP(8, 8), Picky))
    assert not refused.residuals and not refused.proven and "depends on the values" in refused.refused
    numbers = LayerAt(mm.MlpProjector("linear", 8, 8), {"b": 2, "s": 3})
    told = identity(Case("x", "y", numbers, lambda: torch.nn.Linear(8, 8), (like(2, 3, 8),)))
    assert told.refused == "its inputs are stated by numbers alone"
    assert "makes numbers of all" in identity(case(mm.MLP(8, 8), Picky, steps={"b": 0, "s": 0})).refused


def test_a_size_that_code_makes_a_number_of_is_that_of_the_case():
    linear = mm.MlpProjector("linear", 8, 8)
    found = identity(case(linear, lambda: Sided(8, 8)))
    assert found.proven and found.where == "b; s = 3"


def test_what_is_counted_at_a_point_is_the_identity_there():
    one = case(mm.MLP(8, 5), perceptron)
    assert compare(one).equal
    assert one.ours._replace(at={"b": B, "s": S}).cost().tensor_core_flops == B * S * 2 * 2 * 8 * 5


def test_rounded_quotients_have_one_form():
    u = symbol("u")
    assert rounded_down(ceil_div(u, 2) - floor_div(u + 1, 2)) == 0
    assert rounded_down(floor_div(u * 14 + 8, 14) - u) == 0
    assert rounded_down(ceil_div(u, 2) - floor_div(u, 2)) != 0


def test_adding_a_model_is_one_entry(monkeypatch):
    """Each model whose tower has cases is compared, its decoder by its config.json or by the numbers of a llama."""
    assert set(CASES) & set(modelmeter.folders.config_names("model")) < set(registry.REFERENCES)
    model = modelmeter.load_model("minimind2_v")
    groups = [case.group for case in registry.reference("minimind2_v").layers(model)]
    assert groups == ["vision", *["decoder"] * 4]
    assert "not compared" in registry.reference("minimind2_v").missing(model)[0]
