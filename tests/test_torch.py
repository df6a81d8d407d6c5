"""Equality, as integers, with what torch counts on the real modules (meta device)."""

from copy import deepcopy
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import modelmeter  # noqa: E402
from modelmeter import layers as mm  # noqa: E402
from modelmeter.cost import measure  # noqa: E402
from modelmeter.ops import backward  # noqa: E402
from modelmeter.validate import run as table  # noqa: E402
from modelmeter.validate.case import Case, Comparison, compare, layer_ops  # noqa: E402
from modelmeter.validate.counters import LiveStorages, OperandBytes, ScalarOperations  # noqa: E402
from modelmeter.validate.deepseek_ocr import REFERENCE, Dims, config, layer_cases  # noqa: E402
from modelmeter.validate.deepseek_ocr import ocr as reference  # noqa: E402
from modelmeter.validate.deepseek_ocr_stages import stage_cases  # noqa: E402

# A SAM head of width 1 is left out: torch then multiplies instead of calling a matmul, which is not counted.
SMALL = st.builds(
    Dims,
    b=st.integers(1, 3), u=st.integers(4, 12), v=st.integers(4, 12),
    sam_heads=st.integers(1, 3), sam_head=st.integers(2, 8), sam_mlp=st.integers(1, 12),
    patch=st.integers(1, 5), grid=st.integers(4, 12), window=st.integers(2, 6),
    windowed=st.integers(1, 3), global_=st.integers(1, 2), neck=st.integers(1, 7),
    downsample=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    clip_heads=st.integers(1, 3), clip_head=st.integers(1, 8), clip_mlp=st.integers(1, 12),
    clip_layers=st.integers(1, 3), clip_patch=st.integers(1, 5), clip_grid=st.integers(2, 6),
    kv_heads=st.sampled_from([1, 2]), heads=st.sampled_from([2, 4, 6]), head=st.sampled_from([2, 4, 6, 16]),
    mlp=st.integers(1, 12), experts=st.integers(2, 9), active=st.integers(1, 2), expert_mlp=st.integers(1, 9),
    shared=st.integers(1, 3), vocabulary=st.integers(2, 40), s=st.integers(1, 9), past=st.integers(0, 9),
    depth=st.integers(2, 4),
)  # fmt: skip


def check(case):
    result = compare(case)
    assert result.equal, (case.layer, result.measured, result.theoretical)
    return result


@settings(max_examples=8)
@given(SMALL)
def test_every_layer_equals_its_module_at_random_shapes(dims):
    for case in layer_cases(dims):
        check(case)


def test_every_layer_equals_its_module_at_full_size():
    tested = {case.layer.split(" (")[0] for case in (check(c).case for c in layer_cases())}
    wanted = set(mm.__all__) - {"CausalLM"}  # the stages test it
    assert wanted <= tested


@pytest.fixture(scope="module")
def split_model():
    return modelmeter.load_model("deepseek_ocr", REFERENCE)


def test_every_stage_equals_the_whole_model_at_full_size(split_model):
    labels = [check(case).case.layer for case in stage_cases(split_model)]
    assert sum(label.startswith("vision") for label in labels) >= 8
    assert sum(label.startswith("prefill") for label in labels) == 2
    assert sum(label.startswith("decode") for label in labels) >= 3


def test_the_vendors_rotary_form_adds_one_matmul_a_layer(model):
    page = model.workload(grid="1x2")
    extra = (
        model.cost("prefill", page).tensor_core_flops
        - model.cost("prefill", replace(page, rotary="transformers")).tensor_core_flops
    )
    layer = modelmeter.layers.LlamaRotaryEmbedding(e=128)
    assert extra == 12 * layer.forward_tensor_core_flops(b=1, s=493) == 12 * 2 * 64 * 493


@settings(max_examples=4)
@given(SMALL)
def test_backward_flops_equal_autograds(dims):
    for case in layer_cases(replace(dims, past=0), dtype=torch.float32):
        if case.layer.startswith(("LlamaRotary", "TokenEmbedding")) or case.unseen:
            continue  # no gradients flow into positions and ids
        with torch.device("meta"):
            module, inputs = case.build()
        inputs = tuple(t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in inputs)
        out = case.run(module, *inputs)
        out = getattr(out, "last_hidden_state", out)
        out = out[1] if isinstance(out, tuple) and case.layer == "MoEGate" else out
        out = out[0] if isinstance(out, tuple) else out
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        assert counter.get_total_flops() == measure(backward(case.ops()), "flash").tensor_core_flops, case.layer


def test_experts_read_by_real_routing_are_the_ones_counted():
    """On the CPU the eager mixture runs each hit expert once: operand bytes with the real number of experts."""
    dims = Dims(heads=2, head=8, experts=7, active=2, expert_mlp=5, shared=1, s=1, b=1)
    made = deepcopy(config(dims).text_config)
    made._experts_implementation = "eager"
    module = reference.UnlimitedOcrTextMoe(made).to(torch.float32)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    for tokens in (1, 5):
        x = torch.randn(1, tokens, dims.hidden, generator=torch.Generator().manual_seed(tokens))
        with torch.no_grad():
            hit = len(set(module.gate(x)[2].flatten().tolist()))
            with OperandBytes() as seen:
                module(x)
        gate = mm.MoEGate(dims.hidden, 7, 2)
        shared = mm.DeepseekV2MLP(dims.hidden, 5)
        ours = mm.DeepseekV2MoE(gate, 5, shared, fused_gate_up=True)
        parts = {op.equation: op for op in ours.trace(b=1, s=tokens) if op.kind == "matmul"}
        activations = sum(
            r.elements.value() for op in parts.values() for r in op.reads + op.writes if r.role != "weight"
        )
        router, both = dims.hidden * 7, 3 * 5 * dims.hidden
        assert router == next(o for o in parts.values() if "_w:32" in o.equation).reads[1].elements.value()
        weights = hit * both + both  # each hit expert and the shared one
        assert seen.bytes == 4 * (activations + weights)
        if tokens == 1:
            assert hit == 2 == ours.cost(b=1, s=1, precision="fp32").weight_io_bytes // 4 // both - 1


def test_a_comparison_with_nothing_counted_fails():
    """Where the counter goes blind, 0 must not pass as equal."""
    norm = mm.LayerNorm(8)
    blind = Case(
        "x", "norm", "LayerNorm", layer_ops(norm, b=1, s=2), lambda: (torch.nn.LayerNorm(8), (torch.zeros(1, 2, 8),))
    )
    assert not compare(blind).equal
    assert compare(blind).difference["tensor_core_flops"] == 0
    nothing = Comparison(blind, {"tensor_core_flops": 0}, {"tensor_core_flops": 0})
    assert not nothing.equal


def test_an_operator_without_a_counting_rule_is_an_error():
    x = torch.zeros(3, device="meta")
    with pytest.raises(NotImplementedError, match="erfinv"), ScalarOperations((x,)):
        torch.erfinv(x)


def test_validate_fails_when_a_single_flop_is_off(monkeypatch):
    case = next(iter(layer_cases(Dims(u=4, v=4, grid=4))))
    wrong = replace(case, known={"tensor_core_flops": (1, "test")})
    fake = type("reference", (), {"REFERENCE": (), "layer_cases": staticmethod(lambda: [wrong])})
    monkeypatch.setattr(table, "import_module", lambda name: fake)
    text, equal = table.run("deepseek_ocr", layers_only=True)
    assert not equal and "NOT EQUAL" in text and " -1" in text


# Peak activations: live storages tracked on the modules.


@pytest.fixture(scope="module")
def whole():
    """DeepSeek-OCR on the meta device, its experts in the grouped form that allocates no weights."""
    made = deepcopy(config(Dims()))
    made._experts_implementation = made.text_config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        return reference.UnlimitedOcrForConditionalGeneration(made).to(torch.bfloat16).eval()


def tracked(module, *inputs, **arguments):
    weights = [*module.parameters(), *module.buffers()]
    with torch.no_grad(), LiveStorages(inputs, weights) as live:
        module(*inputs, **arguments)
    return live.peak


@pytest.mark.parametrize("logits", ["all", "last"])
@pytest.mark.parametrize("tokens", [493, 903])
def test_prefill_peak_is_within_5_percent_of_live_storages(whole, model, tokens, logits):
    embedded = torch.empty(1, tokens, 1280, dtype=torch.bfloat16, device="meta")
    weights = [*whole.parameters(), *whole.buffers()]
    with torch.no_grad(), LiveStorages((embedded,), weights) as live:
        whole(inputs_embeds=embedded, use_cache=True, logits_to_keep=0 if logits == "all" else 1)
    page = model.workload(mode="base", prompt_tokens=tokens - 273, logits=logits, rotary="transformers")
    cost = model.cost("prefill", page)
    assert cost.peak_activation_bytes + cost.kv_cache_bytes == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("past", [1, 300, 1500])
def test_decode_peak_is_within_5_percent_of_live_storages(whole, model, past):
    """With one token in the cache the activations decide alone; with many, transformers' cache does, which
    concatenates: one layer's old keys are alive beside the new ones."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(12):
        cache.update(*(torch.empty(1, 10, past, 128, dtype=torch.bfloat16, device="meta") for _ in "kv"), layer)
    embedded = torch.empty(1, 1, 1280, dtype=torch.bfloat16, device="meta")
    cached = [(c.keys, c.values) for c in cache.layers]
    weights = [*whole.parameters(), *whole.buffers()]
    with torch.no_grad(), LiveStorages((embedded, cached), weights) as live:
        del cached
        whole(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
    page = model.workload(mode="base", rotary="transformers")
    step = measure(model.ops("decode", page, past + 1), "flash")
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
    assert model.sam.forward_memory_activation_bytes(b=count, u=side, v=side) == VENDOR[pixels, count]


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
    assert max(peaks.values()) == peaks["sam"] == model.sam.forward_memory_activation_bytes(b=1, u=side, v=side)
