"""The vision encoders of other models: transformers' modules, published counts, their preprocessors, and the sweep."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import live_at_peak
from test_paddleocr_vl import NUMBERS, vendor_function

import modelmeter
from modelmeter import config
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.layers.navit import NavitBlock, NavitTower, VisionAttention
from modelmeter.layers.rotary import AxialRotary
from modelmeter.models.config_json import model_of
from modelmeter.models.planner import FixedSize
from modelmeter.models.resize import SmartResize
from modelmeter.models.tiles import Tiles
from modelmeter.models.towers import conv_merge, navit
from modelmeter.publish import sweep_tables
from modelmeter.report.language import LANGUAGES, Language
from modelmeter.sweep.registry import findings
from modelmeter.validate.case import LayerAt, compare, like
from modelmeter.validate.decoders import layer_cases, module_of
from modelmeter.validate.towers import CASES

SHALLOW = {
    "qwen2_vl_7b": (["tower.layers=3"], 14, 22),
    "qwen2_5_vl_7b": (["tower.layers=4", "tower.global_layers=1"], 14, 22),
    "internvl2_8b": (["tower.layers=3"], 32, 32),
    "internvl2_76b": (["tower.layers=3"], 32, 32),
    "got_ocr2": (["tower.sam.window_blocks=2", "tower.sam.global_blocks=1"], 64, 64),
    "minimind2_v": (["tower.layers=3"], 14, 14),
    "glm_ocr": (["tower.layers=3"], 14, 22),
}
"""Fewer layers than released, and a grid of patches whose windows do not divide it."""
PARAMETERS = {
    "got_ocr2": 560_528_640, "internvl2_8b": 8_075_365_376, "internvl2_76b": 76_262_358_400,
    "qwen2_vl_7b": 8_291_375_616, "qwen2_5_vl_7b": 8_292_166_656,
}  # fmt: skip
"""The parameters that the models' public pages tell."""
SIZES = ("640x640", "1024x1024", "1280x1280", "1792x2560")
TABLE = {  # tokens, TFLOP, peak MiB with attention as one kernel and eager; a fixed view is the same at every size
    "nougat_base": [(588, 0.310, 164, 164)] * 4,
    "vary_7b": [(256, 1.141, 444, 2340)] * 4,
    "got_ocr2": [(256, 0.977, 444, 2340)] * 4,
    "internvl2_8b": [(1280, 3.704, 136, None), (2560, 7.408, 272, None), (2560, 7.408, 272, None), (1792, 5.185, 190, None)],
    "internvl2_76b": [(1280, 60.164, 412, None), (2560, 120.327, 825, None), (2560, 120.327, 825, None),
                      (1792, 84.229, 577, None)],
    "qwen2_vl_7b": [(529, 3.450, 94, 725), (1369, 11.942, 243, 4685), (2116, 22.602, 376, 11100),
                    (5824, 118.819, 1034, 83275)],
    "qwen2_5_vl_7b": [(529, 2.829, 94, 725), (1369, 7.700, 243, 4685), (2116, 12.420, 376, 11100),
                      (5824, 41.267, 1034, 83275)],
    "paddleocr_vl": [(529, 2.327, 87, 715), (1369, 8.311, 226, 4657), (2116, 15.993, 349, 11057),
                     (3550, 36.965, 586, 30979)],
}  # fmt: skip
PAGES = {  # TFLOP of vision, prefill and 1,000 steps after 20 prompt tokens at 1024x1024 and 1792x2560; KV MB of the first
    "got_ocr2": ("2.16", "2.16", 125), "vary_7b": ("19.3", "19.3", 669), "qwen2_vl_7b": ("45.4", "219", 137),
    "qwen2_5_vl_7b": ("41.1", "141", 137), "paddleocr_vl": ("10.2", "41", 44),
}  # fmt: skip


@pytest.mark.parametrize("name", SHALLOW)
def test_towers_and_projectors_are_transformers_to_the_last_count(name):
    overrides, u, v = SHALLOW[name]
    for case in CASES[name](modelmeter.load_model(name, overrides), u, v):
        found = compare(case)
        assert found.equal and {"tensor_core_flops", "cuda_core_flops", "parameters"} <= set(found.measured)


@pytest.mark.parametrize(("name", "attention"), [
    ("qwen2_vl_7b", "sdpa"), ("qwen2_vl_7b", "eager"), ("qwen2_5_vl_7b", "sdpa"), ("qwen2_5_vl_7b", "eager"),
    ("internvl2_8b", "sdpa"), ("internvl2_76b", "sdpa"), ("internvl2_8b", "eager"), ("internvl2_76b", "eager"),
    ("got_ocr2", "eager"),
    ("glm_ocr", "sdpa"), ("glm_ocr", "eager"),
])  # fmt: skip
def test_peaks_are_live_storages_but_for_constants_of_the_shape(name, attention):
    overrides, u, v = SHALLOW[name]
    case, *_ = CASES[name](modelmeter.load_model(name, overrides), u, v, attention)
    with torch.device("meta"):
        module, inputs = case.build()
    weights = [*module.parameters(), *module.buffers()]
    live = live_at_peak(lambda: case.run(module, *inputs), inputs, weights).peak
    ours = case.ours.layer.cost(runtime="flash" if attention == "sdpa" else "eager", **case.ours.sizes)
    constants = u * v // 4 * 8 + 2048  # the order of windows, their ends; frequencies, ends, the grid
    known = 0 if "internvl" in name or name == "got_ocr2" else constants
    assert abs(live - ours.peak_activation_bytes) <= known


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_counts(name):
    assert modelmeter.load_model(name).storage().parameters == PARAMETERS[name]


def test_glm_ocr_is_its_checkpoint_but_for_the_layer_that_predicts_a_second_token():
    """transformers ignores layer 16; with an embedding and a head of its own it makes up the published count."""
    model = modelmeter.load_model("glm_ocr")
    d, f, vocabulary = model.decoder.d, 4608, model.decoder.head.V
    layer = model.decoder.layers[0].layer.cost(b=1, s=1, t=1).parameters
    assert layer == d * 128 * (2 * 16 + 2 * 8) + 3 * d * f + 4 * d
    second = {
        "layer": layer, "eh_proj": 2 * d * d, "enorm, hnorm": 2 * d, "shared_head.norm": d,
        "shared_head.head": vocabulary * d, "embed_tokens": vocabulary * d,
    }  # fmt: skip
    assert model.storage().parameters + sum(second.values()) == 1_325_258_240


def test_the_closed_form_of_glm_ocrs_vision_stage():
    model = modelmeter.load_model("glm_ocr")
    for size in SIZES:
        work = model.workload(image_size=size)
        n, c, f, d, colours = work.image.tokens * 4, 1024, 4096, 1536, 2 * 3 * 14 * 14
        tower = 2 * n * colours * c + 24 * (2 * n * (4 * c * c + 3 * c * f) + 4 * n * n * c)
        merger = n // 4 * 2 * (4 * c * d + d * d + 3 * d * (3 * d))
        assert model.cost("vision", work).tensor_core_flops == tower + merger


@settings(max_examples=6)
@given(*[st.integers(1, 3)] * 3, st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
def test_random_shapes_of_glm_ocr_are_transformers(heads, layers, out, mlp, rows, columns):
    d = 8 * heads
    own = dict(frames=2, norm="rms", activation="silu", gated=True, projections="merged", qk_norm=True)
    tower = navit(hidden=d, heads=heads, mlp=mlp, layers=layers, patch=2, grid=None, **NUMBERS | own)
    projector = conv_merge(c=d, d=out, side=2, mlp=3 * out, activation="silu")
    for case in CASES["glm_ocr"](SimpleNamespace(tower=tower, projector=projector), 2 * rows, 2 * columns):
        assert compare(case).equal, compare(case).difference


DECODERS = {
    "paddleocr_vl": "paddleocr_vl_text", "qwen2_vl_7b": "qwen2_vl_text", "qwen2_5_vl_7b": "qwen2_5_vl_text",
    "glm_ocr": "glm_ocr_text",
}  # fmt: skip
"""Models with tables of three positions, and the model_type of their text part."""


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_with_three_positions_are_transformers_text_models_and_heads(name):
    fields = config.as_it_stands(name)["decoder"]["config"] | {"model_type": DECODERS[name]}
    model = model_of(fields, name)
    assert model.stages[0].layer == replace(modelmeter.load_model(name).decoder, vendor=DECODERS[name])
    with torch.device("meta"):
        assert sum(p.numel() for p in module_of(fields).parameters()) == model.storage().parameters
    for case in layer_cases(model_of(fields | {"num_hidden_layers": 2}, name)):  # the others are the same again
        found = compare(case)
        assert found.equal and set(found.measured) == {
            "tensor_core_flops", "cuda_core_flops", "kernel_io_bytes", "parameters",
        }, found.difference  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_tables_of_three_positions_take_three_times_the_cosines_of_one(name):
    table = modelmeter.load_model(name).decoder.rotary
    assert table.form == "sections"
    b, s, pairs = 2, 5, table.e // 2
    assert table.cost(b=b, s=s).cuda_core_flops == 3 * b * s * pairs * (1 + 2 + 2)  # angles; cos and sin, both scaled


@pytest.mark.parametrize("name", TABLE)
def test_tokens_flops_and_peaks_of_the_encoders(name):
    model = modelmeter.load_model(name)
    for size, (tokens, tflop, flash, eager) in zip(SIZES, TABLE[name], strict=True):
        work = model.workload(image_size=size)
        cost = model.cost("vision", work)
        assert (work.image.tokens, f"{cost.tensor_core_flops / 1e12:.3f}") == (tokens, f"{tflop:.3f}")
        assert round(cost.peak_activation_bytes / 2**20) == flash
        if eager:
            eagerly = model.cost("vision", model.workload(image_size=size, runtime="eager"))
            assert round(eagerly.peak_activation_bytes / 2**20) == eager


def test_varys_encoder_is_the_sum_of_its_parts():
    tower = modelmeter.load_model("vary_7b").tower
    linear = mm.MlpProjector("linear", 1024, 2048)
    whole = tower.cost(b=1, u=64, v=64)
    parts = [tower.sam.cost(b=1, u=64, v=64), tower.clip.cost(b=1, u=16, v=16), *[linear.cost(b=1, s=256)] * 2]
    for count in ("tensor_core_flops", "cuda_core_flops", "parameters"):
        assert getattr(whole, count) == sum(getattr(part, count) for part in parts)
    with pytest.raises(InputError, match="CLIP has fewer features than SAM has at 80 x 80 patches"):
        tower.cost(b=1, u=80, v=80)


@pytest.fixture(scope="module")
def nougat():
    parts = ["tower=nougat_swin", "planner=nougat", "decoder=qwen2_0_5b_got"]
    return modelmeter.load_model("vlm", parts)


def test_nougats_encoder_is_transformers_to_the_last_count(nougat):
    work = nougat.workload(image_size="1700x2200")
    (view,) = work.image.views
    (case,) = CASES["nougat_base"](nougat, view.height // 4, view.width // 4)
    found = compare(case)
    assert found.equal and found.measured["parameters"] == 74_120_824
    assert (work.image.tokens, nougat.tower.d, f"{found.measured['tensor_core_flops'] / 1e12:.3f}") == (
        588,
        1024,
        "0.310",
    )


def test_nougats_peak_is_its_live_storages_and_the_masks_of_later_stages(nougat):
    u, v, w = 224, 168, 7
    (case,) = CASES["nougat_base"](nougat, u, v)
    with torch.device("meta"):
        module, inputs = case.build()
    weights = [*module.parameters(), *module.buffers()]
    live = live_at_peak(lambda: case.run(module, *inputs), inputs, weights).peak
    masks = sum(u * v // (w * w * 4**stage) * w**4 * 2 for stage in (1, 2, 3))
    assert nougat.tower.cost(b=1, u=u, v=v, runtime="eager").peak_activation_bytes == live + masks
    assert round(live / 2**20) == 163


@pytest.mark.parametrize(("layers", "heads", "message"), [
    ("[2,2]", "[4,8,16,32]", "heads and layers must name as many stages, not 4 and 2"),
    ("[2,3,2,2]", "[4,8,16,32]", "layers of stage 1 3 is not divisible by a plain and a shifted one, 2"),
])  # fmt: skip
def test_stages_that_do_not_fit_are_one_sentence(layers, heads, message):
    parts = ["tower=nougat_swin", "planner=nougat", f"tower.layers={layers}", f"tower.heads={heads}"]
    with pytest.raises(InputError) as error:
        modelmeter.load_model("vlm", parts)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_window_as_large_as_the_image_is_attention_to_all_of_it():
    rotary, norm, mlp = AxialRotary(4), mm.LayerNorm(8), mm.MLP(8, 5)

    def tower(window):
        block = NavitBlock(VisionAttention(8, 2, 4, turned=True, window=window), mlp, norm)
        return NavitTower(mm.PatchEmbed(3, 8, 2), rotary, (mm.Repeat(block, 2),), norm)

    for u, v in ((5, 7), (7, 7), (1, 3)):
        ours, full = (tower(window).cost(images=2, u=u, v=v) for window in (7, None))
        assert ours == full


def test_windows_are_those_that_their_loop_visits():
    layer, (u, v, w) = VisionAttention(8, 2, 4, turned=True, window=4), (10, 7, 4)
    pairs = 0
    for row in range(0, u, w):
        for column in range(0, v, w):
            pairs += (min(w, u - row) * min(w, v - column)) ** 2
    projections = 4 * 2 * u * v * 8 * 8
    assert layer.forward_tensor_core_flops(images=1, u=u, v=v) == projections + 2 * 2 * pairs * 8


def test_images_are_resized_as_glm_resizes_them():
    """An image is two frames, whose pixels are bounded together."""
    smart_resize = vendor_function("glm46v/image_processing_glm46v.py", "smart_resize")
    planner = modelmeter.load_model("glm_ocr").planner
    limits = {"num_frames": 2, "temporal_factor": 2, "factor": 28, "min_pixels": 12544, "max_pixels": 9633792}
    sides = [1, 3, 13, 23, 27, 28, 42, 97, 112, 399, 1000, 1313, 2195, 2600, 9000, 40_000]
    for width in sides:
        for height in sides:
            try:
                theirs = smart_resize(height=height, width=width, **limits)[::-1]
            except ValueError:
                with pytest.raises(InputError, match="one side is more than 200 times the other"):
                    planner.resized(width, height)
            else:
                assert planner.resized(width, height) == theirs


def test_images_are_resized_as_qwen_resizes_them():
    smart_resize = vendor_function("qwen2_vl/image_processing_qwen2_vl.py", "smart_resize")
    planner = modelmeter.load_model("qwen2_vl_7b").planner
    limits = {"factor": 28, "min_pixels": planner.min_pixels, "max_pixels": planner.max_pixels}
    sides = [3, 28, 42, 97, 399, 1000, 1313, 2600, 9000]
    for width in sides:
        for height in (side for side in sides if max(side, width) <= 200 * min(side, width)):
            assert planner.resized(width, height) == smart_resize(height, width, **limits)[::-1]


@pytest.mark.parametrize(("size", "grid", "tokens"), [
    ("448x448", (1, 1), 256), ("640x640", (2, 2), 1280), ("1024x1024", (3, 3), 2560), ("1792x2560", (3, 2), 1792),
    ("900x450", (1, 2), 768), ("100x3000", (12, 1), 3328),
])  # fmt: skip
def test_tiles_are_the_closest_grid_and_a_thumbnail(size, grid, tokens):
    model = modelmeter.load_model("internvl2_8b")
    work = model.workload(image_size=size)
    assert (work.image.grid, work.image.tokens) == (grid, tokens)
    one = model.tower.cost(b=1, u=32, v=32).tensor_core_flops
    projector = model.breakdown("vision", work)["projector"].tensor_core_flops
    assert model.cost("vision", work).tensor_core_flops - projector == one * tokens // 256


def test_the_deepseek_preprocessor_still_chooses_the_grids_of_the_closest_aspect(model):
    assert [model.planner.choose_grid(w, h, 640) for w, h in ((1700, 2200), (3000, 700), (600, 600))] == [
        (3, 2), (1, 4), None,
    ]  # fmt: skip


def test_minimind_and_the_mixture_with_shared_experts():
    found = {}
    for name in ("minimind2_small_v", "minimind2_v", "minimind2_moe", "zero2llmv_moe"):
        decoder = modelmeter.load_model("text", [f"decoder={name}"])
        cache = decoder.cost("prefill", decoder.text(7)).kv_cache_bytes // 7
        found[name] = decoder.storage().parameters, cache
    assert found == {
        "minimind2_small_v": (25_829_888, 4096), "minimind2_v": (104_030_976, 12_288),
        "minimind2_moe": (145_029_760, 5120), "zero2llmv_moe": (633_035_520, 36_864),
    }  # fmt: skip
    model = modelmeter.load_model("minimind2_v", ["decoder=zero2llmv_moe"])
    step = model.kernels("decode", model.workload())
    experts = sum(kernel.runs for kernel in step if "W_down" in " ".join(kernel.ops))
    assert model.workload().image.tokens == 196 and experts == 2 * 12  # routed and shared ones, in each layer
    assert round(model.breakdown("vision", model.workload())["vit"].tensor_core_flops / 1e9, 2) == 35.13


def test_a_prompt_with_several_images_costs_that_many():
    one, three = (modelmeter.load_model("minimind2_v", [f"+planner.images={n}"]) for n in (1, 3))
    first, all_of_them = (m.cost("vision", m.workload()).tensor_core_flops for m in (one, three))
    assert all_of_them == 3 * first and three.workload().image.tokens == 3 * 196


@pytest.mark.parametrize("name", ["deepseek_ocr", "internvl2_8b", "qwen2_5_vl_7b", "minimind2_v"])
def test_images_of_one_prompt_are_the_sum_of_images(name):
    model, sizes = modelmeter.load_model(name), ["640x640", "1240x1754", "640x640"]
    whole, parts = model.workload(image_size=sizes, batch=2), [model.workload(image_size=s, batch=2) for s in sizes]
    costs = [model.cost("vision", part) for part in parts]
    cost = model.cost("vision", whole)
    assert whole.image.tokens == sum(part.image.tokens for part in parts)
    for count in ("tensor_core_flops", "cuda_core_flops"):
        assert getattr(cost, count) == sum(getattr(part, count) for part in costs)
    each = sum(part.weight_io_bytes for part in costs)
    if name == "deepseek_ocr":  # image by image, the separator of rows once
        assert 0 <= each - cost.weight_io_bytes <= 2 * 2 * 2 * 1280
    else:
        assert cost.weight_io_bytes == each / 3 or name == "qwen2_5_vl_7b"
    with pytest.raises(InputError, match="image_size must be WIDTHxHEIGHT in pixels"):
        model.workload(image_size=["640x640", "12"])


@pytest.mark.parametrize(("make", "message"), [
    (lambda: SmartResize(14, 2, 9, 700), "max_pixels must be at least min_pixels 9 and one token, 28x28 pixels, not 700"),
    (lambda: SmartResize(14, 2, 9, 7000, "big"), "unknown small 'big'; valid: kept, sides, whole"),
    (lambda: Tiles(450, 14, 2, 12, 0.5), "side 450 must be a multiple of a token's, 28 pixels"),
    (lambda: FixedSize(1024, 16, merge=3), "side 1024 must be a multiple of a token's, 48 pixels"),
    (lambda: modelmeter.load_model("qwen2_5_vl_7b", ["tower.global_layers=40"]), "global_layers must be from 0 to all 32"),
    (lambda: modelmeter.load_model("qwen2_5_vl_7b", ["tower.heads=17"]), "hidden size 1280 is not divisible by heads 17"),
    (lambda: modelmeter.load_model("vlm", ["projector=merge_gelu", "projector.family=x"]), "unknown family of projector: 'x'"),
    (lambda: modelmeter.load_model("vlm", ["projector=merge_gelu", "projector.inner=x"]), "unknown inner 'x'; valid: merged"),
])  # fmt: skip
def test_numbers_that_contradict_each_other_are_one_sentence(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def encoders(model):
    (table,) = sweep_tables("encoders", model, config.compose("run_sweep", ["sweep@_global_=encoders"]))
    return table


def test_a_row_of_the_sweep_is_what_the_model_says(encoders):
    assert len(encoders.rows) == 12 * 4 * 4
    model = modelmeter.load_model("qwen2_5_vl_7b")
    options = {"causal": "exact", "logits": "last", "prompt_tokens": 20, "decode_steps": 1000}
    for runtime in ("eager", "compulsory"):
        (row,) = encoders.select(model=model.name, pixels="1280x1280", execution=runtime)
        work = model.workload(image_size="1280x1280", runtime=runtime, **options)
        vision, page = model.cost("vision", work), model.request(work)
        assert (row["tensor_core_flops"], row["peak_activation_bytes"]) == (
            vision.tensor_core_flops, vision.peak_activation_bytes,
        )  # fmt: skip
        assert (row["page_flops"], row["kv_cache_bytes"]) == (page.tensor_core_flops, page.kv_cache_bytes)
        assert row["page_io_bytes"] == page.io_bytes and row["vision_tokens"] == 2116


@pytest.mark.parametrize("name", PAGES)
def test_a_whole_page_costs_what_the_tables_of_the_models_say(encoders, name):
    small, large, cache = PAGES[name]
    for size, wanted in (("1024x1024", small), ("1792x2560", large)):
        (row,) = encoders.select(model=name, pixels=size, execution="flash")
        assert f"{row['page_flops'] / 1e12:.3g}" == wanted
    (row,) = encoders.select(model=name, pixels="1024x1024", execution="flash")
    assert round(row["kv_cache_bytes"] / 1e6) == cache


def test_the_papers_claims_are_judged_by_the_rows(encoders):
    told = {(key, values["pixels"]): values for key, values in findings(encoders) if "pixels" in values}
    verdicts = {key: [told[f"encoders_{key}", size]["verdict"] for size in SIZES] for key in (
        "vision_tokens", "tensor_core_flops", "peak_activation_bytes", "eager_peak_activation_bytes",
    )}  # fmt: skip
    assert verdicts["vision_tokens"] == verdicts["tensor_core_flops"] == ["holds"] * 4
    assert verdicts["peak_activation_bytes"] == ["holds", "partly", "fails", "partly"]
    assert verdicts["eager_peak_activation_bytes"] == ["holds", "partly", "partly", "partly"]
    peaks = {
        row["model"]: row["peak_activation_bytes"] for row in encoders.select(pixels="1024x1024", execution="flash")
    }
    fixed = ("got_ocr2", "minimind2_v", "nougat_base")
    others = [peaks[name] / peaks["deepseek_ocr"] for name in CASES if name in peaks and name not in fixed]
    given = told["encoders_peak_activation_bytes", "1024x1024"]["range"]
    assert given == tuple(f"{ratio:.3g}" for ratio in (min(others), max(others)))
    for code in LANGUAGES:
        text = " ".join(Language(code).finding(finding) for finding in findings(encoders))
        assert "None" not in text and "{" not in text


def test_a_sweep_over_many_sizes_tells_of_three(model):
    settings = config.compose("run_sweep", ["sweep@_global_=encoders"])
    few = {"image_sizes": [f"{side}x{side}" for side in np.arange(8) * 112 + 448], "compared": ["paddleocr_vl"]}
    (table,) = sweep_tables("encoders", model, settings | few | {"runtime": ["flash"]})
    assert {values["pixels"] for _, values in findings(table) if "pixels" in values} == {
        "448x448",
        "896x896",
        "1232x1232",
    }


RAGGED = [(30, 38), (30, 38), (26, 22)]
"""Rows and columns of patches of the images of one call."""


def ragged_case(name, attention):
    """The first case of a model on RAGGED."""
    model = modelmeter.load_model(name, SHALLOW[name][0] if name in SHALLOW else ["tower.layers=3"])
    case, *_ = CASES[name](model, *RAGGED[0], attention)
    side, patches = model.tower.patch, sum(u * v for u, v in RAGGED)
    packed = (
        (1, patches, 3, side, side) if name == "paddleocr_vl" else (patches, model.tower.patch_embedding.c * side**2)
    )
    inputs = like(*packed), like(patches, 2, dtype=torch.long)
    grid = torch.tensor([[1, u, v] for u, v in RAGGED], device="cpu")

    def run(module, pixels, positions):
        given, place = {"position_ids": positions}, {"device": pixels.device}
        if name == "paddleocr_vl":
            taps = torch.zeros(patches, 4, dtype=torch.long, **place), torch.zeros(patches, 4, **place)
            given |= dict(zip(("interp_indices", "interp_weights"), taps, strict=True))
        return module(pixels, grid_thw=grid, **given).last_hidden_state

    layer = case.ours.layer
    of_kinds = layer.of_kinds(2) if isinstance(layer, NavitTower) else replace(layer, tower=layer.tower.of_kinds(2))
    sizes = {"images": 2, "u": 30, "v": 38, "images_2": 1, "u_2": 26, "v_2": 22}
    options = {"runtime": "flash" if attention == "sdpa" else "eager"}
    return replace(case, ours=LayerAt(of_kinds, sizes, options), inputs=inputs, run=run)


@pytest.mark.parametrize("name", ["paddleocr_vl", "qwen2_vl_7b", "qwen2_5_vl_7b"])
def test_images_of_several_sizes_in_one_call_are_transformers_to_the_last_count(name):
    found = compare(ragged_case(name, "sdpa"))
    assert found.equal, found.difference
    assert {"tensor_core_flops", "cuda_core_flops", "kernel_io_bytes"} <= set(found.measured)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["paddleocr_vl", "qwen2_vl_7b", "qwen2_5_vl_7b"])
def test_the_peak_of_images_of_several_sizes_is_that_of_the_largest(name, attention):
    case = ragged_case(name, attention)
    with torch.device("meta"):
        module, inputs = case.build()
    weights = [*module.parameters(), *module.buffers()]
    live = live_at_peak(lambda: case.run(module, *inputs), inputs, weights).peak
    ours = case.ours.cost().peak_activation_bytes
    patches = sum(u * v for u, v in RAGGED)
    taps = patches * 4 * (8 + 4) if name == "paddleocr_vl" else 0  # indices and weights of the resampled positions
    assert 0 <= live - ours - taps <= patches // 4 * 8 + 256  # the order of windows, their ends; the grid
