"""Equality, as integers, with what torch counts on the real modules (meta device)."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from operators import LiveStorages, live_at_peak  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import modelmeter  # noqa: E402
from modelmeter import layers as mm  # noqa: E402
from modelmeter.models.families import deepencoder, deepseek  # noqa: E402
from modelmeter.validate import registry  # noqa: E402
from modelmeter.validate.case import Case, Comparison, LayerAt, compare, like  # noqa: E402
from modelmeter.validate.counters import OperandBytes, ScalarOperations  # noqa: E402
from modelmeter.validate.deepseek_ocr import OVERRIDES, At, cached, config, layer_cases  # noqa: E402
from modelmeter.validate.deepseek_ocr import ocr as reference  # noqa: E402


@dataclass(frozen=True)
class Parts:
    """The components that the cases of layers read."""

    tower: Any
    projector: Any
    decoder: Any


def parts(sam, clip, decoder):
    (h, e), (clip_h, clip_e), (g, r, head) = sam.pop("heads"), clip.pop("heads"), decoder.pop("heads")
    made = dict(hidden=clip_h * clip_e, heads=clip_h, projections="split", positions=clip.pop("side") ** 2 + 1)
    first = dict(hidden=h * e, heads=h, downsample=[sam.pop("between"), clip_h * clip_e])
    tower = deepencoder(sam=first | sam, clip=made | clip)
    text = dict(
        hidden=g * r * head, heads=g * r, kv_heads=g, dense_layers=1, moe_layers=11, gate_up="merged", rotary="model",
        positions=8192, tied=False, shared_mlp=decoder.pop("shared") * decoder["expert_mlp"],
    )  # fmt: skip
    decoder = deepseek(**text, **decoder)
    return Parts(tower, mm.MlpProjector("linear", tower.d, decoder.d), decoder)


def few(most, least=1):
    return st.integers(least, most)


# A SAM head of width 1 is left out: torch then multiplies instead of calling a matmul, which is not counted.
PARTS = st.builds(
    parts,
    st.fixed_dictionaries(dict(
        heads=st.tuples(few(3), few(8, 2)), mlp=few(12), patch=few(5), grid=few(12, 4), window=few(6, 2),
        window_blocks=few(3), global_blocks=few(2), neck=few(7), between=few(6),
    )),
    st.fixed_dictionaries(dict(heads=st.tuples(few(3), few(8)), mlp=few(12), layers=few(3), patch=few(5), side=few(6, 2))),
    st.fixed_dictionaries(dict(
        heads=st.tuples(few(2), few(3), st.sampled_from([2, 4, 6, 16])), dense_mlp=few(12), experts=few(9, 2), active=few(2),
        expert_mlp=few(9), shared=few(3), vocabulary=few(40, 2),
    )),
)  # fmt: skip
PLACES = st.builds(At, b=few(3), u=few(12, 4), v=few(12, 4), s=few(9), past=few(9, 0))


@pytest.fixture(scope="module")
def split_model():
    """DeepSeek-OCR with transformers' kernels."""
    return modelmeter.load_model("deepseek_ocr", OVERRIDES)


def check(case):
    result = compare(case)
    assert result.equal, (result.case.layer, result.measured, result.theoretical)


@settings(max_examples=6)
@given(PARTS, PLACES)
def test_every_layer_equals_its_module_at_random_shapes(parts, at):
    for case in layer_cases(parts, at):
        check(case)


def test_the_vendors_rotary_form_adds_one_matmul_a_layer(model):
    page = model.workload(grid="1x2")
    once = modelmeter.load_model("deepseek_ocr", ["decoder.rotary=model"])
    extra = model.cost("prefill", page).tensor_core_flops - once.cost("prefill", page).tensor_core_flops
    layer = mm.LlamaRotaryEmbedding(e=128)
    assert extra == 12 * layer.forward_tensor_core_flops(b=1, s=493) == 12 * 2 * 64 * 493


@settings(max_examples=3)
@given(PARTS, PLACES)
def test_backward_flops_equal_autograds(parts, at):
    for case in layer_cases(parts, replace(at, past=0)):
        if case.layer.startswith(("LlamaRotary", "RotaryEmbedding", "TokenEmbedding")) or case.unseen:
            continue  # no gradients flow into positions and ids
        with torch.device("meta"):
            module, inputs = case.build(torch.float32)
        inputs = tuple(t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in inputs)
        out = case.run(module, *inputs)
        out = getattr(out, "last_hidden_state", out)
        out = out[1] if isinstance(out, tuple) and case.layer == "MoEGate" else out
        out = out[0] if isinstance(out, tuple) else out
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        ours = case.ours.layer.backward_cost(**case.ours.sizes)
        assert counter.get_total_flops() == ours.tensor_core_flops, case.layer


def test_experts_read_by_real_routing_are_the_ones_counted():
    """On the CPU the eager mixture runs each hit expert once: operand bytes with the real number of experts."""
    d, experts, active, f = 16, 7, 2, 5
    ours = mm.MergedExpertsMoE(mm.MoEGate(d, experts, active), f, mm.DeepseekV2MLP(d, f))
    made = reference.UnlimitedOcrConfig(text_config=dict(
        hidden_size=d, num_attention_heads=2, num_key_value_heads=2, moe_intermediate_size=f, n_routed_experts=experts, num_experts_per_tok=active, n_shared_experts=1,
    )).text_config  # fmt: skip
    made._experts_implementation = "eager"
    module = reference.UnlimitedOcrTextMoe(made).to(torch.float32)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    for tokens in (1, 5):
        x = torch.randn(1, tokens, d, generator=torch.Generator().manual_seed(tokens))
        with torch.no_grad():
            hit = len(set(module.gate(x)[2].flatten().tolist()))
            with OperandBytes() as seen:
                module(x)
        kernels = [k for k in ours.program(precision="fp32").kernels(b=1, s=tokens) if k.loops]
        activations = sum(k.read_bytes["activation"] + k.written_bytes["activation"] for k in kernels)
        router, both = d * experts, 3 * f * d
        weights = 4 * (hit * both + both)  # each hit expert and the shared one
        assert seen.bytes == activations + weights  # the router's are cast, so activations there
        assert 4 * router == seen.bytes - weights - (activations - 4 * router)
        if tokens == 1:
            assert hit == active == sum(k.read_bytes.get("weight", 0) for k in kernels) // 4 // both - 1


def test_a_comparison_with_nothing_counted_fails():
    """Where the counter goes blind, 0 must not pass as equal."""
    norm = LayerAt(mm.LayerNorm(8), {"b": 1, "s": 2})
    blind = Case("x", "norm", norm, lambda: torch.nn.LayerNorm(8), (like(1, 2, 8),))
    assert not compare(blind).equal
    assert compare(blind).difference["tensor_core_flops"] == 0
    nothing = Comparison(blind, {"tensor_core_flops": 0}, {"tensor_core_flops": 0})
    assert not nothing.equal


def test_an_operator_without_a_counting_rule_is_an_error():
    x = torch.zeros(3, device="meta")
    with pytest.raises(NotImplementedError, match="erfinv"), ScalarOperations((x,)):
        torch.erfinv(x)


def test_validate_fails_when_a_single_flop_is_off(monkeypatch, split_model):
    case = next(iter(layer_cases(split_model, At(u=4, v=4))))
    wrong = replace(case, known={"tensor_core_flops": (1, "test")})
    found = replace(registry.reference("deepseek_ocr"), layers=lambda model: [wrong])
    monkeypatch.setitem(registry.REFERENCES, "deepseek_ocr", found)
    text, equal = registry.run("deepseek_ocr", layers_only=True)
    assert not equal and "NOT EQUAL" in text and " -1" in text


# Peak activations: live storages tracked on the modules.


@pytest.fixture(scope="module")
def whole(split_model):
    """DeepSeek-OCR on the meta device, its experts in the grouped form that allocates no weights."""
    with torch.device("meta"):
        made = config(split_model.tower, split_model.decoder, experts="grouped_mm")
        return reference.UnlimitedOcrForConditionalGeneration(made).to(torch.bfloat16).eval()


def tracked(module, *inputs, **arguments):
    weights = [*module.parameters(), *module.buffers()]
    return live_at_peak(lambda: module(*inputs, **arguments), (inputs, arguments), weights).peak


@pytest.mark.parametrize("logits", ["all", "last"])
@pytest.mark.parametrize("tokens", [493, 903])
def test_prefill_peak_is_within_5_percent_of_live_storages(whole, split_model, tokens, logits):
    embedded = torch.empty(1, tokens, 1280, dtype=torch.bfloat16, device="meta")
    peak = tracked(whole, inputs_embeds=embedded, use_cache=True, logits_to_keep=0 if logits == "all" else 1)
    page = split_model.workload(mode="base", prompt_tokens=tokens - 273, logits=logits)
    cost = split_model.cost("prefill", page)
    assert cost.peak_activation_bytes + cost.kv_cache_bytes == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("past", [1, 300, 1500])
def test_decode_peak_is_within_5_percent_of_live_storages(whole, split_model, past):
    """With one token in the cache the activations decide alone; with many, transformers' cache does, which
    concatenates: one layer's old keys are alive beside the new ones."""
    cache = cached(*(torch.empty(1, 10, past, 128, dtype=torch.bfloat16, device="meta") for _ in "kv"), 12)
    embedded = torch.empty(1, 1, 1280, dtype=torch.bfloat16, device="meta")
    held = [(c.keys, c.values) for c in cache.layers]
    weights = [*whole.parameters(), *whole.buffers()]
    with torch.no_grad(), LiveStorages((embedded, held), weights) as live:
        del held
        whole(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
    step = split_model.cost("decode", split_model.text(past, decode_steps=1))
    assert step.kv_cache_bytes == 61_440 * (past + 1)
    beside_the_cache = live.peak - step.kv_cache_bytes
    old_keys = past * 10 * 128 * 2
    assert beside_the_cache == pytest.approx(max(step.peak_activation_bytes, old_keys), rel=0.05)


VENDOR = {
    (1024, 1): 465_567_744,
    (640, 1): 84_172_800,
    (640, 2): 2 * 91_545_600,
    (640, 5): 5 * 91_545_600,
    (1280, 1): 1_086_259_200,
}


@pytest.mark.parametrize(("pixels", "count"), VENDOR)
def test_vision_peak_equals_the_vendors_to_the_byte(model, pixels, count):
    side = pixels // 16
    assert model.tower.sam.forward_memory_activation_bytes(b=count, u=side, v=side) == VENDOR[pixels, count]


@pytest.mark.parametrize(("pixels", "count"), VENDOR)
def test_a_second_copy_of_the_bias_is_what_transformers_needs_more(whole, pixels, count):
    """Each holds pixels, shortcut, norm, q, k, v (twice for a batch); then the vendor's code has one bias,
    its two halves, the result and its layout copy; transformers' peaks earlier, at a copy of the bias."""
    side = pixels // 16
    patches = count * side * side
    bias, unit, half = 2 * 12 * patches * side * side, 2 * 768 * patches, 2 * 12 * patches * side
    held = (3 + 3 * (2 if count > 1 else 1)) * unit
    view = torch.empty(count, 3, pixels, pixels, dtype=torch.bfloat16, device="meta")
    assert tracked(whole.model.vision_tower.sam_encoder, view) == held + 2 * bias
    assert VENDOR[pixels, count] == held + bias + 2 * half + 2 * unit


@pytest.mark.parametrize("mode", ["tiny", "small", "base", "large"])
def test_the_whole_vision_stage_peaks_in_sam(model, mode):
    page = model.workload(mode=mode)
    side = page.image.views[0].height // 16
    peaks = {name: part.peak_activation_bytes for name, part in model.breakdown("vision", page).items()}
    assert max(peaks.values()) == peaks["sam"] == model.tower.sam.forward_memory_activation_bytes(b=1, u=side, v=side)
