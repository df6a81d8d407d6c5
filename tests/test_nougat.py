"""Nougat: a decoder with cross attention beside transformers' MBartForCausalLM, the whole model, its caches, its page."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import Operators, live_at_peak
from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.models.donut.configuration_donut_swin import DonutSwinConfig

import modelmeter
from examples import RUNTIMES
from modelmeter import config
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.layers.attention import with_heads
from modelmeter.layers.decoder import in_steps
from modelmeter.models.families import mbart
from modelmeter.models.planner import FixedSize
from modelmeter.models.vlm import VLM, Join
from modelmeter.publish import sweep_tables
from modelmeter.sweep.registry import findings
from modelmeter.validate.case import compare
from modelmeter.validate.counters import tensor_core_flops
from modelmeter.validate.cross import call_case, called, config_of, empty_cache, mbart_cases, module_of, unmasked
from modelmeter.validate.decoders import cached_bytes
from modelmeter.workload import Workload

NUMBERS = {
    "hidden": 24, "heads": 3, "mlp": 20, "activation": "gelu", "layers": 2, "vocabulary": 50, "positions": 40,
    "tied": False,
}  # fmt: skip
PUBLISHED = {"nougat_base": ("349M", "350M"), "nougat_small": ("247M", "250M")}
"""Parameters: of the checkpoint, and as arXiv 2308.13418 rounds them."""
EVERYTHING = {"tensor_core_flops", "cuda_core_flops", "kernel_io_bytes", "parameters"}


@pytest.fixture(scope="module", params=PUBLISHED)
def nougat(request):
    return modelmeter.load_model(request.param)


@pytest.fixture(scope="module")
def base():
    return modelmeter.load_model("nougat_base")


def whole(model):
    """transformers' whole model on the meta device."""
    encoder = DonutSwinConfig(
        image_size=[896, 672],
        patch_size=4,
        embed_dim=128,
        depths=[2, 2, 14, 2],
        num_heads=[4, 8, 16, 32],
        window_size=7,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, config_of(model.decoder))
    with torch.device("meta"):
        return VisionEncoderDecoderModel(config).to(torch.bfloat16).eval()


def test_parameters_are_the_published_count_and_those_of_the_whole_model(nougat):
    counted = nougat.storage().parameters
    assert counted == sum(p.numel() for p in whole(nougat).parameters())
    checkpoint, paper = PUBLISHED[nougat.name]
    assert f"{counted / 1e6:.0f}M" == checkpoint and f"{round(counted / 1e7) * 10}M" == paper
    assert (
        nougat.cost("decode", nougat.workload()).parameters == nougat.decoder.cost(b=1, s=1, t=1, source=1).parameters
    )


def test_the_decoder_is_transformers_to_the_last_count(nougat):
    for case in mbart_cases(nougat.decoder, (1, 1, 588), (2, 33, 588)):
        found = compare(case)
        assert found.equal and set(found.measured) == EVERYTHING, (case.layer, found.difference)


@settings(max_examples=6, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 30), st.integers(1, 3), st.sampled_from(("gelu", "relu")),
    st.booleans(), st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 20)),
)  # fmt: skip
def test_decoders_of_other_numbers_are_too(heads, width, mlp, layers, activation, tied, sizes):
    numbers = {"hidden": heads * width, "heads": heads, "mlp": mlp, "layers": layers}
    decoder = mbart(**NUMBERS | numbers | {"activation": activation, "tied": tied})
    for case in mbart_cases(decoder, sizes):
        found = compare(case)
        assert found.equal, (case.layer, found.difference)


def test_vision_and_prefill_are_a_forward_of_the_whole_model(base):
    model, (batch, tokens) = whole(base), (2, 3)
    work = base.workload(batch=batch, prompt_tokens=tokens)
    with torch.device("meta"):
        pixels, ids = (
            torch.empty(batch, 3, 896, 672, dtype=torch.bfloat16),
            torch.zeros(batch, tokens, dtype=torch.long),
        )
    with torch.no_grad(), unmasked():
        seen = tensor_core_flops(lambda: model(pixel_values=pixels, decoder_input_ids=ids))
        features = model(pixel_values=pixels, decoder_input_ids=ids).encoder_last_hidden_state
    assert seen == sum(base.cost(stage, work).tensor_core_flops for stage in ("vision", "prefill"))
    assert tuple(features.shape) == (batch, work.image.tokens, base.decoder.d)


def test_features_of_another_width_are_projected_as_the_whole_model_does():
    model = modelmeter.load_model("nougat_small", ["projector=linear", "decoder.hidden=512", "decoder.layers=1"])
    assert model.storage().parameters == sum(p.numel() for p in whole(model).parameters())
    with pytest.raises(InputError, match="outputs and decoder hidden size must be equal, not 1024 and 512"):
        modelmeter.load_model("nougat_small", ["decoder.hidden=512"])


@pytest.mark.parametrize(("batch", "tokens", "source"), [(2, 3, 7), (1, 9, 4)])
def test_the_caches_are_those_of_transformers_and_that_of_the_features_does_not_grow(batch, tokens, source):
    decoder = mbart(**NUMBERS)
    with torch.device("meta"), torch.no_grad():
        module = module_of(decoder)
        cache, features = empty_cache(), torch.zeros(batch, source, decoder.d, dtype=torch.bfloat16)
        for s, t in ((tokens, tokens), (1, tokens + 1), (1, tokens + 2)):
            called(module, features, torch.zeros(batch, s, dtype=torch.long), cache)
            layer = decoder if s == t else in_steps(decoder)
            ours = layer.cost(b=batch, s=s, t=t, source=source)
            own, read = map(cached_bytes, (cache.self_attention_cache, cache.cross_attention_cache))
            assert ours.kv_cache_bytes == own + read and read == 2 * 2 * batch * source * decoder.d * 2
    assert layer.cost(b=batch, s=1, t=t, source=source + 1).kv_cache_bytes - ours.kv_cache_bytes == read // source


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_keys_and_values_of_the_features_are_written_once_and_read_in_each_step(base, runtime):
    steps, position, source = 9, 2 * 10 * 1024 * 2, 588  # keys and values, layers, width, bf16
    work = base.workload(prompt_tokens=1, decode_steps=steps, runtime=runtime)
    prefill, decode = (base.cost(stage, work) for stage in ("prefill", "decode"))
    assert prefill.kv_cache_bytes == (source + 1) * position and source * position == 24_084_480
    assert decode.kv_cache_bytes == (source + 1 + steps) * position == base.request(work).kv_cache_bytes
    own = sum(range(2, steps + 2)) + steps  # read in each step, and one position written
    grown = sum(range(1, steps + 1)) + sum(range(2, steps + 2)) - steps  # a copy of it: read, and written but for one
    assert decode.kv_io_bytes == (steps * source + own + grown * (runtime == "eager")) * position
    each = [base.cost("decode", replace(work, prompt_tokens=1 + k, decode_steps=1)) for k in range(steps)]
    assert decode.flops == sum(step.flops for step in each) and decode.io_bytes == sum(step.io_bytes for step in each)


@pytest.mark.parametrize(("batch", "tokens", "past"), [(2, 7, 0), (1, 40, 0), (2, 1, 7), (1, 1, 3)])
def test_what_is_written_out_moves_and_holds_what_its_operators_do(batch, tokens, past):
    decoder, source = mbart(**NUMBERS | {"mlp": 400}), 11
    case = call_case(decoder, batch, tokens, source, past, attention="eager")
    with torch.device("meta"):
        module, inputs = case.build()
        causal = torch.empty(batch, 1, tokens, past + tokens, dtype=torch.bfloat16)
    ours, cache, ids = case.ours.cost(), module.held, batch * tokens * 8
    constant = 2 * tokens * decoder.d * 2  # positions are looked up whatever the inputs
    with torch.no_grad(), Operators(inputs) as seen:
        called(module, *inputs, cache, causal)
    assert ours.io_bytes == seen.bytes + constant - ids
    if not past:  # a cache that is there is not seen before it is read
        cache = empty_cache()
        live = live_at_peak(lambda: called(module, *inputs, cache, causal), inputs, [*module.parameters()]).peak
        kept = sum(map(cached_bytes, (cache.self_attention_cache, cache.cross_attention_cache)))
        given = ids + batch * tokens * 4 - causal.nbytes  # a mask of ones for padding; our causal one was made before
        scores = batch * NUMBERS["heads"] * tokens * tokens * 2  # of its own attention, given up when the others come
        assert live - kept == ours.peak_activation_bytes + given - scores


@pytest.mark.parametrize("prompt", [1, 20])
def test_a_page_of_a_thousand_tokens(base, prompt):
    options = {"prompt_tokens": prompt, "decode_steps": 1000, "causal": "exact", "logits": "last"}
    work = base.workload(image_size="1700x2200", **options)
    assert (work.image.tokens, work.context_tokens, work.kept_tokens) == (588, prompt, 588 + prompt)
    assert f"{base.request(work).tensor_core_flops / 1e12:.2f}" == "0.78" and "cross attention" in work.image.describe()


def test_a_sweep_tells_of_the_cache_of_each_token_that_is_kept(base):
    table, *_ = sweep_tables(
        "e2e_vision_prefill", base, config.compose("run_sweep", ["sweep@_global_=e2e_vision_prefill"])
    )
    told = dict(findings(table))["kv"]
    assert told["each"] == f"{2 * 10 * 1024 * 2:,}"
    assert {row["context_tokens"] for row in table.rows} == {10} and {row["image_tokens"] for row in table.rows} == {
        588
    }


def test_positions_are_those_of_the_decoders_sequence_alone(base):
    assert not base.is_beyond(base.workload(prompt_tokens=4096).context_tokens)
    assert base.is_beyond(base.workload(prompt_tokens=4097).context_tokens)
    assert base.decoder.learned.n == 4096 + 2


def small(**changes):
    norm = mm.LayerNorm(32)
    vit = mm.VitModel(
        mm.CLIPVisionEmbeddings(mm.PatchEmbed(3, 32, 8), 17, True), norm,
        mm.Transformer(mm.ResidualBlock(mm.SelfAttention(32, 4, 8), mm.MLP(32, 64), norm), 2),
    )  # fmt: skip
    parts = {"planner": FixedSize(32, 8), "tower": mm.PatchTower(vit), "projector": None}
    return VLM(
        **{"name": "small", **parts, "join": None, "decoder": mbart(**NUMBERS | {"hidden": 32, "heads": 4})} | changes
    )


def test_any_tower_may_be_read():
    model, work = small(), small().workload(prompt_tokens=2, decode_steps=3)
    prefill = model.decoder.cost(b=1, s=2, t=2, source=16)
    assert model.cost("prefill", work).as_dict() == prefill.as_dict()
    linear = small(projector=mm.MlpProjector("linear", 32, 32)).breakdown("vision", work)
    assert set(linear) - set(model.breakdown("vision", work)) == {"projector"}


def page():
    return modelmeter.load_model("nougat_base").workload()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: small(join=Join(32)), "a decoder with cross attention, and no other, goes without a join"),
    (lambda: modelmeter.load_model("text", ["decoder=nougat_base"]), "a decoder with cross attention reads images"),
    (lambda: modelmeter.load_model("vlm", ["decoder=nougat_base", "model.join=rows"]), "model.join rows adds tokens"),
    (lambda: (model := modelmeter.load_model("nougat_base", ["planner.merge=4"])).cost("vision", model.workload()),
     "cross attention reads 588 features of a view, and the planner tells of 2352 tokens"),
    (lambda: small().cost("prefill", small().workload(prompt_tokens=0)), "at least 1 where no image token enters the decoder's sequence"),
    (lambda: small().cost("decode", small().text(3)), "the workload has no image for its cross attention"),
    (lambda: small().cost("prefill", Workload(small().planner.plan(None, None, None))), "has no image for its cross"),
    (lambda: modelmeter.load_model("minimind2_v").cost("prefill", page()), "its decoder has no cross attention"),
    (lambda: with_heads(mbart(**NUMBERS), 2, 2), "a decoder with cross attention cannot be given other heads"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_features_at_native_resolution_are_read_by_cross_attention():
    parts = ["tower=qwen2_vl", "planner=qwen_vl", "decoder=nougat_base", "projector=merge_gelu", "model.join=null"]
    model = modelmeter.load_model("vlm", parts)
    work = model.workload(image_size="640x640")
    assert work.image.beside and work.context_tokens == work.prompt_tokens
    assert model.cost("vision", work).tensor_core_flops > model.cost("prefill", work).tensor_core_flops > 0
