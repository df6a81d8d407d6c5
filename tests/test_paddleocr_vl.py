"""PaddleOCR-VL beside transformers' modules, the published counts and the vendor's preprocessor."""

import ast
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import live_at_peak

import modelmeter
from modelmeter import cli
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.layers.merge import MergeProjector
from modelmeter.models.towers import merge, navit
from modelmeter.validate.case import compare
from modelmeter.validate.towers import paddleocr_cases
from modelmeter.workload import Workload

TOKENS = {"640x640": (644, 644, 529), "1024x1024": (1036, 1036, 1369), "1280x1280": (1288, 1288, 2116),
          "1792x2560": (1400, 1988, 3550)}  # fmt: skip
NUMBERS = dict(frames=1, patch_bias=True, norm="layer", activation="gelu_pytorch_tanh", gated=False, projections="split",
               window=None, global_layers=0, final_norm=True, weights_kept=True, qk_norm=False)  # fmt: skip


def vendor_function(file, name):
    """A function of a file of transformers, whose other imports (torchvision) this machine may lack."""
    tree = ast.parse((Path(transformers.__file__).parent / "models" / file).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    scope = {"math": math}
    exec(compile(ast.Module([found], []), file, "exec"), scope)
    return scope[name]


@pytest.fixture(scope="module")
def paddle():
    return modelmeter.load_model("paddleocr_vl")


@pytest.mark.parametrize(("u", "v"), [(30, 62)])
def test_tower_and_projector_are_transformers_to_the_last_count(paddle, u, v):
    for case in paddleocr_cases(paddle, u, v):
        found = compare(case)
        assert found.equal and set(found.measured) == {
            "tensor_core_flops", "cuda_core_flops", "kernel_io_bytes", "parameters",
        }, found.difference  # fmt: skip


@settings(max_examples=6)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
def test_random_shapes_are_transformers(heads, layers, mlp, rows, columns):
    d = 8 * heads
    tower = navit(hidden=d, heads=heads, mlp=mlp, layers=layers, patch=2, grid=3, **NUMBERS)
    projector = merge(c=d, d=6, side=2, inner="merged", norm="layer", behind=False, activation="gelu", copies=1)
    model = SimpleNamespace(tower=tower, projector=projector)
    for case in paddleocr_cases(model, 2 * rows, 2 * columns):
        assert compare(case).equal, compare(case).difference


@pytest.mark.parametrize(("attention", "runtime"), [("sdpa", "flash"), ("eager", "eager")])
def test_the_towers_peak_is_its_live_storages_but_for_constants_of_the_shape(paddle, attention, runtime):
    u, v, tower = 46, 46, paddle.tower
    (case, _) = paddleocr_cases(paddle, u, v, attention)
    with torch.device("meta"):
        module, inputs = case.build()
    weights = [*module.parameters(), *module.buffers()]
    live = live_at_peak(lambda: case.run(module, *inputs), inputs, weights).peak
    taps = u * v * 4 * (8 + 4)  # indices and weights of the resampled positions
    constants = 2 * 4 + 3 * 8  # ends of sequences, the grid
    frequencies = tower.rotary.e // 4 * 4  # ours is an input, theirs a buffer
    ours = tower.cost(images=1, u=u, v=v, runtime=runtime).peak_activation_bytes
    assert abs(ours + taps + constants - frequencies - live) <= 4 * 8


def test_parameters_are_the_published_counts(paddle):
    page = paddle.workload(image_size="640x640")
    vision = paddle.breakdown("vision", page)
    projector = vision.pop("projector").parameters
    assert (sum(part.parameters for part in vision.values()), projector) == (412_987_248, 25_960_192)
    tied = modelmeter.load_model("paddleocr_vl", ["decoder.config.tie_word_embeddings=true"])
    assert (tied.storage().parameters, paddle.storage().parameters) == (799_695_472, 905_601_648)
    d, f, positions = 1152, 4304, 2**15
    attention, mlp, norm = 4 * (d * d + d), 2 * d * f + f + d, 2 * d
    head = d + attention + mlp + norm  # a probe that attends, a norm, an MLP
    dead = {"packing_position_embedding": positions * d, "the pooling head of SigLIP": head}
    assert paddle.storage().parameters + sum(dead.values()) == 958_588_736


def test_the_closed_form_of_the_vision_stage(paddle):
    for size in TOKENS:
        work = paddle.workload(image_size=size)
        n, d, f = work.image.tokens * 4, 1152, 4304
        patches, blocks = 2 * n * 588 * d, 27 * (2 * n * (4 * d * d + 2 * d * f) + 4 * n * n * d)
        projector = n // 4 * 2 * (4608**2 + 4608 * 1024)
        assert paddle.cost("vision", work).tensor_core_flops == patches + blocks + projector


def test_images_are_resized_as_the_vendor_resizes_them(paddle):
    smart_resize = vendor_function("paddleocr_vl/image_processing_paddleocr_vl.py", "smart_resize")
    planner = paddle.planner
    limits = {"factor": 28, "min_pixels": planner.min_pixels, "max_pixels": planner.max_pixels}
    for size, (width, height, tokens) in TOKENS.items():
        plan = paddle.workload(image_size=size).image
        assert (plan.views[0].width, plan.views[0].height, plan.tokens) == (width, height, tokens)
    sides = [1, 13, 27, 28, 97, 399, 400, 1000, 1313, 1701, 2600, 5000]
    for width in sides:
        for height in (side for side in sides if max(side, width) <= 150 * min(side, width)):
            assert planner.resized(width, height) == smart_resize(height, width, **limits)[::-1]
    assert min(planner.resized(1, 1)) ** 2 // 784 >= 188 and planner.plan(None, (99999, 99999), None).tokens == 3600


def test_arrays_of_image_sizes_cost_what_each_image_costs(paddle):
    sizes = np.array([[640, 640], [1024, 1024], [1700, 2200], [3000, 900]]).T
    many = Workload(paddle.planner.plan(None, tuple(sizes), None))
    for stage in ("vision", "prefill", "decode"):
        whole = paddle.cost(stage, many)
        for index, size in enumerate(zip(*sizes.tolist(), strict=True)):
            one = paddle.cost(stage, paddle.workload(image_size=size))
            for count, value in one.as_dict().items():
                found = np.broadcast_to(getattr(whole, count, value), 4)[index]
                assert found == pytest.approx(value, rel=1e-12), (stage, count)


def test_one_program_serves_every_image_size(paddle):
    first, second = (paddle.workload(image_size=size) for size in ("640x640", "1024x1280"))
    assert paddle.program("vision", first) is paddle.program("vision", second)


def test_a_page_from_its_file(capsys):
    assert cli.main(["cost", "paddleocr_vl", "image=examples/page.png"]) == 0
    out = capsys.readouterr().out
    assert "1232x1764" in out and "2772 tokens" in out and "projector" in out


@pytest.mark.parametrize(("options", "message"), [
    ({}, "mode 'native' takes image=FILE or image_size=WIDTHxHEIGHT"),
    ({"grid": "1x2"}, "mode 'native' takes image=FILE or image_size=WIDTHxHEIGHT, no grid"),
    ({"image_size": "100x90000"}, "one side is more than 200 times the other"),
    ({"image_size": "100x200", "mode": "tiny"}, "unknown mode 'tiny'; valid: native"),
])  # fmt: skip
def test_what_it_cannot_read_is_one_sentence(paddle, options, message):
    with pytest.raises(InputError) as error:
        paddle.workload(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_projector_whose_norm_fits_nowhere_is_refused():
    with pytest.raises(InputError, match="the norm must have the width 4 or, of merged features, 16, not 5"):
        MergeProjector(4, 3, 2, mm.LayerNorm(5))
