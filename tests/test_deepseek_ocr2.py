"""DeepSeek-OCR 2 beside transformers' modules, the published count and the image processor."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import live_at_peak
from test_eager import assert_same_kernels
from transformers.image_utils import SizeDict
from transformers.models.deepseek_ocr2 import modeling_deepseek_ocr2 as theirs
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2Config
from transformers.models.deepseek_ocr2.image_processing_pil_deepseek_ocr2 import DeepseekOcr2ImageProcessorPil
from transformers.models.deepseek_ocr2.processing_deepseek_ocr2 import DeepseekOcr2Processor

import modelmeter
from modelmeter import cli
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.layers.queries import PrefixAttention, QueryTower
from modelmeter.models.families import query_tower
from modelmeter.models.vlm import VLM, SeparatedJoin
from modelmeter.validate.case import MIXTURE_IO, Case, LayerAt, StageAt, compare, like
from modelmeter.validate.deepseek_ocr import cached, text_numbers
from modelmeter.validate.sam import two_norms
from modelmeter.validate.towers import masked_bytes, query_cases, query_config

KERNELS = ["decoder.gate_up=merged", "decoder.rotary=model"]
SHALLOW = ["tower.sam.window_blocks=2", "tower.sam.global_blocks=1", "tower.encoder.layers=3"]
SIDES = {48: 144, 64: 256}
"""Patches of one side of a crop and of the global view, and the queries of each."""


def whole_config(model, attention="sdpa"):
    numbers, (dense, sparse) = text_numbers(model.decoder), model.decoder.layers
    for other in ("layer_types", "first_k_dense_replace"):
        del numbers[other]
    kinds = ["dense"] * dense.l + ["sparse"] * sparse.l
    config = DeepseekOcr2Config(
        text_config=numbers | {"mlp_layer_types": kinds}, vision_config=query_config(model.tower, attention)
    )
    for part in (config, config.text_config):
        part._attn_implementation = attention
    return config


def whole_module(model):
    module = theirs.DeepseekOcr2ForConditionalGeneration(whole_config(model))
    module.set_experts_implementation("batched_mm")
    return module


@pytest.fixture(scope="module")
def released():
    return modelmeter.load_model("deepseek_ocr2", KERNELS)


@pytest.fixture(scope="module")
def shallow():
    return modelmeter.load_model("deepseek_ocr2", KERNELS + SHALLOW)


@pytest.mark.parametrize("side", SIDES)
def test_tower_and_projector_are_transformers_to_the_last_count(shallow, side):
    for case in query_cases(shallow, side, side):
        found = compare(case)
        assert found.equal and len(found.measured) == 4, found.difference


def small(heads, groups, width, layers, mlp, sam_heads):
    kv = dict(hidden=heads * groups * width, heads=heads * groups, kv_heads=heads, mlp=mlp, layers=layers)
    sam = dict(hidden=4 * sam_heads, heads=sam_heads, mlp=5, patch=2, grid=8, window=3, neck=3)
    sam |= dict(window_blocks=1, global_blocks=1, downsample=[4, kv["hidden"]])
    return query_tower(sam=sam, encoder=kv, few=144, many=256)


few = partial(st.integers, 1)


@settings(max_examples=4)
@given(st.builds(small, few(2), few(3), st.sampled_from([2, 4, 8]), few(3), few(9), few(2)), st.sampled_from([48, 64]))
def test_random_shapes_are_transformers(tower, side):
    for case in query_cases(FewParts(tower), side, side):
        assert compare(case).equal, compare(case).difference


class FewParts:
    """What the cases read of a model."""

    def __init__(self, tower):
        self.tower, self.projector = tower, mm.MlpProjector("linear", tower.d, 6)


def test_the_queries_are_those_of_the_smaller_table_up_to_its_size(released):
    tower = released.tower
    given = [16, 44, 48, 52, 64, 80]
    assert [tower.features(side, side) for side in given] == [144, 144, 144, 256, 256, 256]
    assert tower.features(np.array(given), np.array(given)).tolist() == [144, 144, 144, 256, 256, 256]


@pytest.mark.parametrize("grid", ["1x2", "2x3"])
def test_the_vision_stage_is_get_image_features_but_for_tables_of_the_shape(shallow, grid):
    """Crops as one batch, the global view as another, the separator behind both. Its positions are no input: the rotary
    tables of both views are constants there. The queries of several crops are no whole tensor, so that their projector
    adds its bias behind the product."""
    work = shallow.workload(grid=grid)
    crops, views = work.image.views[0].count, work.image.views
    e = shallow.tower.rotary.e
    tables = sum(2 * SIDES[view.height // 16] * (e // 2 + 4 * e) for view in views)
    pixels = sum(view.count * (view.height // 16) ** 2 for view in views)
    norms, reason = two_norms(shallow, pixels)["cuda_core_flops"]
    masked = masked_bytes(shallow.tower, 288, crops) + masked_bytes(shallow.tower, 512)
    apart = shallow.projector.d * 2
    case = Case(
        "stage", "vision", StageAt(shallow, "vision", work), partial(whole_module, shallow),
        (like(1, 3, 1024, 1024), like(crops, 3, 768, 768)), "DeepseekOcr2Model",
        lambda m, whole, parts: m.model.get_image_features(whole, parts, [crops]),
        known={"cuda_core_flops": (norms - tables, reason), "kernel_io_bytes": (masked - apart, "masks, repeated heads, a bias")},
    )  # fmt: skip
    found = compare(case)
    assert found.equal and len(found.measured) == 3, found.difference
    with torch.device("meta"), torch.no_grad():
        module, (whole, parts) = case.build()
        (tokens,) = module.model.get_image_features(whole, parts, [crops]).pooler_output
    assert tokens.shape == (work.image.tokens, 1280) and work.image.tokens == crops * 144 + 256 + 1


@pytest.mark.parametrize("step", [0, 1, 9])
def test_the_decoder_is_transformers(released, step):
    """A prefill (0), and a step of decode with a cache."""
    work = released.workload(grid="1x2", prompt_tokens=max(step, 1), decode_steps=1)
    layers, context = sum(stack.l for stack in released.decoder.layers), work.context_tokens
    s, past, stage = (1, context, "decode") if step else (context, 0, "prefill")
    attention = released.decoder.layers[0].layer.attention

    def run(module, embedded, positions, kept):
        cache = cached(kept, kept, layers)
        module(inputs_embeds=embedded, position_ids=positions, past_key_values=cache, use_cache=True)

    given = like(1, s, 1280), like(1, s, dtype=torch.long), like(1, attention.g, past, attention.e)
    ours = StageAt(released, stage, work)
    found = compare(Case("stage", stage, ours, partial(whole_module, released), given, run=run, skip=MIXTURE_IO))
    assert found.equal and set(found.measured) == {"tensor_core_flops", "cuda_core_flops"}, found.difference


def test_parameters_are_those_of_the_whole_model_and_the_published_count(released):
    with torch.device("meta"):
        module = theirs.DeepseekOcr2ForConditionalGeneration(whole_config(released))
    stored = released.storage().parameters
    assert stored == sum(p.numel() for p in module.parameters()) == 3_389_119_360
    vision = sum(p.numel() for p in module.model.vision_tower.parameters())
    assert vision == released.tower.cost(b=1, u=64, v=64).parameters
    assert modelmeter.load_model("deepseek_ocr2").storage().parameters == stored


@pytest.mark.parametrize(("side", "batch"), [(48, 1), (48, 2), (64, 1)])
def test_peaks_are_live_storages_but_for_positions_and_a_mask(shallow, side, batch):
    """With eager attention the tower's to the byte: its frequencies are a buffer there. The encoder alone holds which
    tokens are of the image and the positions, and the mask where attention is one kernel."""
    tower, queries = shallow.tower, SIDES[side]
    tokens, frequencies = 2 * queries, tower.rotary.e // 2 * 4
    positions = like(1, tokens, dtype=torch.long)
    pixels = like(batch, 3, 16 * side, 16 * side)
    config = query_config(tower, "eager")
    live = peak(theirs.DeepseekOcr2VisionModel, config, lambda m, x, p: m(x, position_ids=p), pixels, positions)
    assert tower.cost(b=batch, u=side, v=side, runtime="eager").peak_activation_bytes - frequencies == live
    held, mask = 8 * tokens + 8 * batch * tokens, batch * tokens**2
    for attention, runtime, more in (("eager", "eager", 0), ("sdpa", "flash", mask)):
        config, given = query_config(tower, attention).encoder_config, like(batch, tokens, tower.d)
        run = lambda m, x, p: m(x, num_patches=queries, position_ids=p)
        live = peak(theirs.DeepseekOcr2VisionEncoder, config, run, given, positions)
        assert tower.blocks.cost(b=batch, s=tokens, runtime=runtime).peak_activation_bytes + held + more == live


@pytest.mark.parametrize(("batch", "tokens"), [(1, 288), (2, 512)])
def test_a_layer_of_the_encoder_kernel_by_kernel(shallow, batch, tokens):
    """With eager attention: heads that are repeated, a mask that is added, tables that all images share."""
    layer, e = shallow.tower.blocks.layer, shallow.tower.rotary.e
    config = query_config(shallow.tower, "eager").encoder_config
    with torch.device("meta"), torch.no_grad():
        module = theirs.DeepseekOcr2VisionEncoderLayer(config, 0).to(torch.bfloat16)
        shapes = (batch, tokens, layer.d), (batch, 1, tokens, tokens), (1, tokens, e), (1, tokens, e)
        x, mask, *tables = (torch.empty(shape, dtype=torch.bfloat16) for shape in shapes)
        run = lambda: module(x, attention_mask=mask, position_embeddings=tables)
        assert_same_kernels(layer, {"b": batch, "s": tokens}, module, x, mask, tables, run=run)


def peak(kind, config, run, *given):
    case = Case("vision", "", LayerAt(mm.LayerNorm(1), {}), partial(kind, config), given)
    with torch.device("meta"):
        module, inputs = case.build()
    weights = [*module.parameters(), *module.buffers()]
    return live_at_peak(lambda: run(module, *inputs).last_hidden_state, inputs, weights).peak


class Quick(DeepseekOcr2ImageProcessorPil):
    """The image processor on images without content."""

    def resize(self, image, size, **options):
        return picture(size.width, size.height)


def picture(width, height):
    return np.broadcast_to(np.uint8(0), (3, height, width))


@pytest.fixture(scope="module")
def processor():
    return Quick()


def processed(processor, width, height, tile=768, crops=True):
    """Sides of the views and the tokens as transformers' processors have them."""
    options = dict(crop_to_patches=crops, min_patches=2, max_patches=6, tile_size=tile)
    fixed = dict(size=SizeDict(height=1024, width=1024), resample=None, do_rescale=False, rescale_factor=1,
                 do_normalize=False, image_mean=None, image_std=None, return_tensors=None)  # fmt: skip
    made = processor._preprocess([picture(width, height)], **fixed, **options)
    whole = DeepseekOcr2Processor.__new__(DeepseekOcr2Processor)
    whole.image_processor, whole.patch_size, whole.downsample_ratio, whole.image_token = processor, 16, 4, "."
    views = [image.shape[1:] for image in [*made.get("pixel_values_local", ()), *made["pixel_values"]]]
    return views, len(whole.replace_image_token(made, 0, tile_size=tile))


def planned(model, width, height, mode="dynamic"):
    plan = model.workload(image_size=(width, height), mode=mode).image
    return [(view.height, view.width) for view in plan.views for _ in range(view.count)], plan.tokens


def test_views_and_tokens_are_the_image_processors(released, processor):
    sides = [1, 9, 300, 767, 768, 769, 1000, 1024, 1240, 1536, 1754, 2304, 4000]
    for width in sides:
        for height in (side for side in sides if max(side, width) <= 300 * min(side, width)):
            assert planned(released, width, height) == processed(processor, width, height), (width, height)
    for size in ((1024, 1024), (300, 2000), (640, 480)):
        assert planned(released, *size, mode="base") == processed(processor, *size, tile=1024, crops=False)


@settings(max_examples=60)
@given(st.integers(20, 3000), st.integers(20, 3000))
def test_any_page_has_the_tokens_of_the_image_processor(width, height):
    assert planned(modelmeter.load_model("deepseek_ocr2"), width, height) == processed(Quick(), width, height)


def test_all_tokens_are_valid_and_no_row_ends_in_a_newline(released):
    image = released.workload(image_size="1000x3000").image
    crops = image.views[0]
    assert crops.tokens == 144 * crops.count
    assert image.valid_tokens == crops.tokens + 256 == image.tokens - 1
    assert released.workload(image_size="500x700").image.valid_tokens == 256
    most = max(released.workload(image_size=(w, 1500)).image.valid_tokens for w in range(100, 9000, 100))
    assert most == 1120  # of 256 to 1120, as the paper has it


def test_a_page_from_its_file(capsys):
    assert cli.main(["cost", "deepseek_ocr2", "image=examples/page.png"]) == 0
    out = capsys.readouterr().out
    assert "6 x 768x768 crops + 1 x 1024x1024 global, grid 3x2, 1121 tokens (1120 valid)" in out


def test_pairs_are_counted_full_however_the_decoders_are(released):
    page = {"grid": "1x2"}
    full, exact = (released.cost("vision", released.workload(causal=c, **page)) for c in ("full", "exact"))
    assert full.as_dict() == exact.as_dict() and full.kv_cache_bytes == 0


def test_one_key_head_for_each_query_head_is_attention_with_biases():
    d, h, e, s = 24, 3, 8, 5
    grouped, plain = PrefixAttention(d, h, 1, e).cost(b=2, s=s), mm.SelfAttention(d, h, e).cost(b=2, s=s)
    assert grouped.tensor_core_flops == plain.tensor_core_flops
    assert grouped.parameters == plain.parameters - d  # no bias behind


@pytest.mark.parametrize(("overrides", "message"), [
    (["tower.encoder.heads=10"], "encoder hidden size 896 is not divisible by heads 10"),
    (["tower.encoder.kv_heads=4"], "heads 14 is not divisible by KV heads 4"),
    (["tower.encoder.hidden=448"], "sam features is 896 and encoder is 448; they must be equal"),
    (["model.join=row"], "unknown model.join 'row', did you mean 'rows'"),
])  # fmt: skip
def test_numbers_that_contradict_each_other_are_one_sentence(overrides, message):
    with pytest.raises(InputError) as error:
        modelmeter.load_model("deepseek_ocr2", overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("side", "than"), [(640, "more tokens of view 'global' than the 100"),
                                            (1280, "fewer tokens of view 'global' than the 400")])  # fmt: skip
def test_a_view_that_has_no_queries_of_its_own_is_refused(side, than):
    model = modelmeter.load_model("deepseek_ocr2", [f"planner.modes.base.base={side}"])
    with pytest.raises(InputError, match=f"the tower makes {than} that the planner counts"):
        model.cost("vision", model.workload(mode="base"))


def test_the_parts_are_those_of_the_catalogue(released):
    assert type(released) is VLM and type(released.join) is SeparatedJoin and type(released.tower) is QueryTower
