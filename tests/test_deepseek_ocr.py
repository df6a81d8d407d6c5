"""DeepSeek-OCR against published figures and the vendor's preprocessing rule."""

import math

import pytest
from PIL import Image

import modelmeter
from modelmeter.errors import InputError


def test_parameters_equal_the_published_checkpoint(model):
    stored = model.storage()
    assert (stored.parameters, stored.weight_bytes) == (3_336_106_240, 6_672_212_480)
    page = model.workload(grid="1x2")
    parts = {k: v.parameters for s in ("vision", "prefill") for k, v in model.breakdown(s, page).items()}
    assert parts["sam"] == 95_569_152
    assert parts["clip"] == 303_177_728
    assert parts["projector"] == 2_622_720
    assert parts["join"] == 2 * 1280
    assert parts["embedding"] == parts["head"] == 165_478_400
    layers = model.breakdown("prefill", page, depth=2)
    assert layers["decoder.layers0"].parameters == 32_852_480
    assert layers["decoder.layers1 x11"].parameters == 11 * 233_720_320
    assert layers["decoder.norm"].parameters == 1280


def test_one_decoded_token_reads_the_published_active_parameters(model):
    page = model.workload(mode="base", decode_steps=1)
    parts = model.breakdown("decode", page)
    read = sum(part.weight_io_bytes for name, part in parts.items() if name != "embedding")
    assert read == 2 * 574_127_360


def test_kv_cache_is_61440_bytes_a_token(model):
    page = model.workload(mode="base", decode_steps=7)
    assert model.cost("prefill", page).kv_cache_bytes == 61_440 * page.context_tokens
    assert model.cost("decode", page).kv_cache_bytes == 61_440 * (page.context_tokens + 7)


@pytest.mark.parametrize(("mode", "tokens", "paper"), [
    ("tiny", 73, 64), ("small", 111, 100), ("base", 273, 256), ("large", 421, 400),
])  # fmt: skip
def test_modes_have_the_published_tokens(model, mode, tokens, paper):
    image = model.workload(mode=mode).image
    assert (image.tokens, image.valid_tokens, image.crops) == (tokens, paper, 0)


@pytest.mark.parametrize(("mode", "grid", "tokens"), [
    ("gundam", "1x2", 483), ("gundam", "2x2", 693), ("gundam", "1x4", 683), ("gundam", "4x1", 713),
    ("gundam", "2x3", 893), ("gundam_m", "1x2", 421 + 16 * (16 * 2 + 1)), ("gundam_m", "2x3", 421 + 32 * 49),
])  # fmt: skip
def test_grids_have_the_published_tokens(model, mode, grid, tokens):
    assert model.workload(mode=mode, grid=grid).image.tokens == tokens


def test_paper_counts_n_times_100_plus_256_without_newlines(model):
    for h, w in model.planner.grids(9):
        image = model.workload(grid=f"{h}x{w}").image
        assert image.valid_tokens == h * w * 100 + 256


def brute_force_grid(width, height, largest, tile=640):
    """The vendor's rule, straight from its description."""
    if width <= 640 and height <= 640:
        return None
    found = sorted(
        {(i, j) for i in range(1, largest + 1) for j in range(1, largest + 1) if 2 <= i * j <= largest},
        key=lambda g: g[0] * g[1],
    )
    gap = min(abs(width / height - i / j) for i, j in found)
    ties = [g for g in found if abs(width / height - g[0] / g[1]) == gap]
    best = ties[0]
    for i, j in ties[1:]:
        if width * height > 0.5 * tile * tile * i * j:
            best = (i, j)
    return best[1], best[0]


@pytest.mark.parametrize("largest", [6, 9])
def test_the_crop_grid_of_an_image_is_the_vendors(largest):
    model = modelmeter.load_model("deepseek_ocr", [f"planner.max_crops={largest}"])
    reached = set()
    for width in (100, 500, 640, 641, 700, 900, 1240, 1700, 2480, 4000, 9000):
        for height in (100, 500, 640, 641, 700, 900, 1280, 1754, 2200, 3508, 9000):
            grid = model.workload(image_size=(width, height)).image.grid
            assert grid == brute_force_grid(width, height, largest), (width, height)
            reached.add(grid)
    for h, w in {(h, w) for h in range(1, 10) for w in range(1, 10) if 2 <= h * w <= largest}:
        grid = model.workload(image_size=(w * 620, h * 620) if h == w == 2 else (w * 700, h * 700)).image.grid
        assert grid == (h, w), "every grid up to the largest is produced by some image"
    assert None in reached


def test_grids_beyond_the_preprocessor_are_marked(model):
    assert model.workload(grid="2x3").image.produced
    assert not model.workload(grid="1x7").image.produced
    nine = modelmeter.load_model("deepseek_ocr", ["planner.max_crops=9"])
    assert nine.workload(grid="1x7").image.produced and not nine.workload(grid="2x5").image.produced


@pytest.mark.parametrize(("width", "height"), [(1240, 1754), (1754, 1240), (1000, 1000), (2000, 200)])
def test_valid_tokens_follow_the_papers_equation_up_to_rounding(model, width, height):
    image = model.workload(mode="base", image_size=(width, height)).image
    ratio = 1 - (max(width, height) - min(width, height)) / max(width, height)
    assert image.valid_tokens == int(256 * ratio)
    assert math.ceil(256 * ratio) - image.valid_tokens in (0, 1)
    assert model.workload(mode="small", image_size=(width, height)).image.valid_tokens == 100


def test_a_real_image_file_is_read_upright(model, tmp_path):
    upright, sideways = tmp_path / "a.png", tmp_path / "b.jpg"
    Image.new("RGB", (700, 1400)).save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1400, 700)).save(sideways, exif=exif)
    assert model.workload(image=upright).image == model.workload(image=sideways).image
    assert model.workload(image=upright).image.grid == (2, 1)
    assert model.workload(image="examples/page.png").image.grid == (3, 2)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"image": "nowhere.png"}, "'nowhere.png' does not exist"),
    ({"image": "pyproject.toml"}, "not a picture that Pillow can read"),
    ({"image_size": "0x10"}, "image_size must be WIDTHxHEIGHT"),
    ({"image_size": "-5x10"}, "image_size must be WIDTHxHEIGHT"),
    ({"image_size": "10"}, "image_size must be WIDTHxHEIGHT"),
    ({"grid": "0x2"}, "grid must be ROWSxCOLUMNS"),
    ({"grid": "2x3", "image_size": "9x9"}, "only one of image, image_size and grid, not image_size and grid"),
    ({"grid": "2x3", "mode": "base"}, "mode 'base' has no crops, so no grid; modes with crops: gundam, gundam_m"),
    ({"mode": "bsae"}, "unknown mode 'bsae', did you mean 'base'"),
    ({}, "mode 'gundam' needs image=FILE"),
    ({"grid": "1x2", "batch": 0}, "batch must be a whole number of at least 1, not 0"),
    ({"grid": "1x2", "decode_steps": 0}, "decode_steps must be a whole number of at least 1"),
    ({"grid": "1x2", "prompt_tokens": -1}, "prompt_tokens must be a whole number of at least 0"),
    ({"grid": "1x2", "logits": "some"}, "unknown logits 'some'; valid: all, last"),
    ({"grid": "1x2", "runtime": "flsh"}, "unknown runtime 'flsh', did you mean 'flash'"),
    ({"grid": "1x2", "causal": "no"}, "unknown causal 'no'; valid: exact, full"),
    ({"grid": "1x2", "precision": "bf61"}, "did you mean 'bf16'"),
    ({"grid": "1x2", "batches": 2}, "unknown workload key 'batches', did you mean 'batch'"),
])  # fmt: skip
def test_bad_workloads_are_one_sentence(model, arguments, message):
    with pytest.raises(InputError) as error:
        model.workload(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_broken_image_files_are_one_sentence(model, tmp_path):
    empty, cut = tmp_path / "empty.png", tmp_path / "cut.png"
    empty.write_bytes(b"")
    whole = tmp_path / "whole.png"
    Image.effect_noise((200, 200), 50).save(whole)
    cut.write_bytes(whole.read_bytes()[:3000])
    for path in (empty, cut, tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            model.workload(image=path)
