"""The laws of a placed model: sums over places are the whole, a cut that moves takes a layer with it, bad placements."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import ONE_OF_EACH

import modelmeter
from modelmeter import cli
from modelmeter.checkpoints.layout import layout_of
from modelmeter.errors import InputError
from modelmeter.fits import Fits, request_of
from modelmeter.models.parts import cut, decoder_of, layers_of
from modelmeter.placement import Place, Placement
from modelmeter.report.split import split_text
from modelmeter.splits import split

SUMS = ("tensor_core_flops", "cuda_core_flops", "weight_io_bytes", "kv_io_bytes", "kv_cache_bytes")
MODELS = (
    "deepseek_ocr",
    "paddleocr_vl",
    "gemma_3_1b",
    "qwen2_5_1_5b",
    "gpt_oss_20b",
    "deepseek_v2_lite",
    "nougat_base",
)
RUNTIMES = ("eager", "flash", "fused", "compulsory", "llama_cpp", "llama_cpp_scores")


def request(model, **options):
    cuts = model.planner and (model.planner.varies or model.planner.has_crops(None))
    size = {"image_size": "1240x1754"} if cuts else {}
    return request_of(model, **{"prompt_tokens": 300, "decode_steps": 7, "batch": 2} | size | options)


def total(found, stage, count):
    return sum(getattr(part.cost(stage, found.works[name]), count) for name, part in found.parts.items())


def halves(model):
    many = layers_of(decoder_of(model))
    return f"layers:{many // 3}+{many - many // 3}"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_sums_over_places_are_the_whole(name, runtime):
    model = modelmeter.load_model(name)
    work = request(model, runtime=runtime, latent="absorbed" if runtime.startswith("llama_cpp") else "expanded")
    found = split(model, work, halves(model))
    for stage in (stage.name for stage in model.stages if stage.structure(work) != ()):
        whole = model.cost(stage, work)
        for count in SUMS:
            if (runtime, count) != ("compulsory", "weight_io_bytes"):  # of a tied table, which one kernel reads once
                assert total(found, stage, count) == getattr(whole, count), count
        if runtime not in ("compulsory", "fused"):  # there what crosses would have stayed on chip
            assert total(found, stage, "activation_io_bytes") == whole.activation_io_bytes
        assert sum(part.launches(stage, found.works[at]) for at, part in found.parts.items()) == (
            model.launches(stage, work) + (runtime == "compulsory" and stage != "vision") * (
                work.decode_steps if stage == "decode" else 1
            )
        )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_at_one_place_but_for_a_tied_table_which_is_at_both(name):
    model = modelmeter.load_model(name)
    decoder, found = decoder_of(model), split(model, request(model), halves(model))
    both = sum(part.storage(whole=True).parameters for part in found.parts.values())
    table = decoder.embedding.V * decoder.embedding.d
    assert both - model.storage(whole=True).parameters == (table if decoder.tied else 0)


@pytest.mark.parametrize("name", ["deepseek_ocr", "paddleocr_vl", "qwen2_5_1_5b"])
@pytest.mark.parametrize("weights", ["q4_k_m", "q5_k_m", "bf16", "int8_channel"])
def test_bytes_of_weights_are_those_of_their_own_layers(name, weights):
    """A policy stores layers differently, so a range has what its own layers take."""
    model = modelmeter.load_model(name)
    work, table = request(model, precision={"weights": weights}), 0
    found = split(model, work, halves(model))
    if decoder_of(model).tied:
        table = model._weights(work.counting)["W_tok"][1]
    held = sum(part.storage(found.works[at], whole=True).weight_bytes for at, part in found.parts.items())
    assert held - table == model.storage(work, whole=True).weight_bytes


@settings(max_examples=20)
@given(st.integers(1, 11), st.sampled_from(["flash", "eager", "llama_cpp"]), st.integers(1, 600))
def test_moving_the_cut_moves_one_layer(at, runtime, prompt):
    model = modelmeter.load_model("qwen2_5_1_5b")
    work = model.text(prompt, runtime=runtime, decode_steps=3)
    first, second = (split(model, work, f"layers:{at + more}+{28 - at - more}") for more in (0, 1))
    layer = model.storage().parameters - cut(model, (27,)).storage().parameters
    for stage in ("prefill", "decode"):
        costs = [[part.cost(stage, found.works[p]) for p, part in found.parts.items()] for found in (first, second)]
        for count in ("tensor_core_flops", "kv_cache_bytes", "parameters"):
            moved = [getattr(b, count) - getattr(a, count) for a, b in zip(*costs, strict=True)]
            assert moved[0] == -moved[1] > 0
        assert costs[1][0].parameters - costs[0][0].parameters == layer
    assert first.crossings == second.crossings


def test_a_cut_changes_no_count_of_the_whole(model):
    work = model.workload(grid="1x2")
    for counts in ((1, 11), (6, 6), (4, 4, 4), (12,)):
        for stage, cost in cut(model, counts).costs(work).items():
            known = model.cost(stage, work)  # but for the frequencies of each stack, which are inputs
            assert replace(cost, peak_activation_bytes=0) == replace(known, peak_activation_bytes=0)


@pytest.mark.parametrize(("wire", "width"), [(None, 2), ("fp32", 4), ("bf16", 2), ("fp8", 1), (12, 1.5)])
def test_image_tokens_cross_in_the_format_of_the_wire(model, wire, width):
    work = model.workload(image_size="1240x1754", batch=3)
    (crossing,) = split(model, work, "vision+decoder", wire=wire).crossings
    assert crossing[:5] == ("prefill", "image tokens y[b image d]", "vision", "decoder", 1)
    assert crossing.bytes == 3 * work.image.tokens * 1280 * width


def test_the_hybrid_is_llama_cpps_file_and_the_tower_as_torch_holds_it(model):
    for activations, width in (("bf16", 2), ("fp32", 4)):
        precision = {"weights": "q4_k_m", "activations": activations}
        work = model.workload(image_size="1240x1754", precision=precision)
        found = split(model, work, "hybrid")
        torchs, llamas = (found.fits(place).largest for place in ("pytorch", "llama_cpp"))
        assert llamas.weights == sum(tensor.bytes for tensor in layout_of(model, "q4_k_m").tensors)
        vision = model.storage(whole=True).parameters - decoder_of(model).cost(b=1, s=1, t=1).parameters
        assert torchs.weights == width * vision
        assert [c.bytes for c in found.crossings] == [work.image.tokens * 1280 * 4]
        alone = replace(work, runtime="llama_cpp")
        assert found.parts["llama_cpp"].cost("prefill", found.works["llama_cpp"]) == model.cost("prefill", alone)


def test_each_place_is_a_model_that_fits_or_not_to_the_byte(model):
    work = model.workload(image_size="1240x1754")
    found = split(model, work, "layers:6+6", overhead=10**9)
    for place in found.parts:
        most = found.fits(place).batch_at_most(24e9)
        for batch, inside in ((most, True), (most + 1, False)):
            again = split(model, replace(work, batch=batch), "layers:6+6", overhead=10**9)
            assert (again.fits(place).needed <= 24e9) is inside
    assert Fits(model, work, 10**9).needed > max(found.fits(place).needed for place in found.parts)


def test_features_cross_to_every_device_with_cross_attention():
    model = modelmeter.load_model("nougat_base")
    work = request(model)
    found = split(model, work, "vision+layers:4+6")
    given = [c for c in found.crossings if "image tokens" in c.tensor]
    assert [(c.stage, c.origin, c.to) for c in given] == [("prefill", "device 0", f"device {i}") for i in (1, 2)]
    assert {c.bytes for c in given} == {2 * work.image.tokens * 1024 * 2}


def test_tables_of_all_devices_and_tokens_on_their_way_back():
    model = modelmeter.load_model("qwen2_5_1_5b")
    found = split(model, model.text(100, batch=2, decode_steps=9), "layers:10+10+8")
    ways = [(c.stage, c.tensor, c.origin[-1:], c.to[-1:], c.bytes) for c in found.crossings]
    tables = [(stage, f"{t}[b s e]", "0", to, runs * 2 * s * 128 * 2)
              for stage, s, runs in (("prefill", 100, 1), ("decode", 1, 9)) for to in "12" for t in ("cos", "sin")]  # fmt: skip
    hidden = [(stage, "h[b s d]", str(int(to) - 1), to, runs * 2 * s * 1536 * 2)
              for stage, s, runs in (("prefill", 100, 1), ("decode", 1, 9)) for to in "12"]  # fmt: skip
    assert sorted(ways) == sorted([*tables, *hidden, ("decode", "next token", "2", "0", 2 * 9 * 8)])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_head_beside_the_embedding_shares_its_table_and_the_stream_comes_back(runtime):
    model = modelmeter.load_model("qwen2_5_1_5b")
    work = model.text(100, decode_steps=9, runtime=runtime)
    places = Place("near", "embedding layers:10 head"), Place("far", "layers")
    found = split(model, work, Placement("there and back", places))
    streams = [(c.stage, c.origin, c.to, c.runs) for c in found.crossings if c.tensor[:2] == "h["]
    both = ("near", "far"), ("far", "near")
    assert sorted(streams) == sorted((s, *ends, runs) for s, runs in (("prefill", 1), ("decode", 9)) for ends in both)
    assert not [c for c in found.crossings if c.tensor == "next token"]
    held = [part.storage(whole=True).parameters for part in found.parts.values()]
    assert sum(held) == model.storage().parameters
    for stage in ("prefill", "decode"):
        assert total(found, stage, "tensor_core_flops") == model.cost(stage, work).tensor_core_flops
        assert total(found, stage, "cuda_core_flops") == model.cost(stage, work).cuda_core_flops


def test_llama_cpp_makes_its_own_tables_and_keeps_the_table_of_tokens_at_the_host():
    model = modelmeter.load_model("qwen2_5_1_5b")
    found = split(model, model.text(100, decode_steps=9, precision="q4_k_m"), "offload")
    assert [(c.tensor, c.origin, c.to, c.bytes // c.runs) for c in found.crossings] == [
        ("x[b s d]", "host", "device", 100 * 1536 * 4),
        ("x[b s d]", "host", "device", 1536 * 4),
        ("next token", "device", "host", 4),
    ]
    assert found.holds == {"host": "embedding", "device": "layers 0 to 27, head"}


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("layers:6/12", "unknown placement 'layers:6/12'; valid: hybrid, offload, vision+decoder, layers:A+B"),
        ("hybird", "unknown placement 'hybird'; valid: hybrid"),
        ("layers:6+7", "placement 'layers:6+7' has 6 and 7 decoder layers, and deepseek_ocr has 12; for two devices: layers:6+6"),
        ("layers:12+0", "place 'device 1': layers:0 is no number of layers, such as layers:6"),
        ("nowhere.yaml", "placement 'nowhere.yaml' cannot be read: No such file or directory"),
        (Placement("mine", (Place("a", "vision decoder"), Place("b", "head"))), "has the head of deepseek_ocr at 'a' and 'b'"),
        (Placement("mine", (Place("a", "decoder"),)), "has the vision of deepseek_ocr at no place; it must be at one"),
        (Placement("mine", (Place("a", "vision embedding layers:3"), Place("b", "layers head", "eager"))), "one runtime runs a decoder, not flash at 'a' and eager at 'b'"),
        (Placement("mine", (Place("a", "vision embedding layers"), Place("b", "layers head"))), "has the rest and the rest decoder layers"),
    ],
)  # fmt: skip
def test_a_bad_placement_is_one_sentence(model, placement, message):
    with pytest.raises(InputError) as error:
        split(model, model.workload(grid="1x1"), placement)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Place("a", ""), "place 'a' must hold some of vision, embedding, layers, head or decoder"),
        (lambda: Place("a", "visoin"), "unknown part of place 'a': 'visoin', did you mean 'vision'?"),
        (lambda: Place("a", "head:3"), "place 'a': head:3 is no number of layers"),
        (lambda: Place("a", "head", "fast"), "unknown runtime 'fast', did you mean 'flash'?"),
        (lambda: Place("a", "head", precision={"weigths": "bf16"}), "unknown precision key 'weigths'"),
        (lambda: Placement("a", (), "fp33"), "unknown dtype for wire 'fp33', did you mean 'fp32'?"),
        (lambda: Placement("a", (Place("b", "head"),) * 2), "placement 'a' must have places of different names, not b, b"),
        (lambda: Placement("a", ()), "placement 'a' must have places of different names"),
        (lambda: Placement("a", (), "q8_0"), "wire must be a format without blocks or scales"),
    ],
)  # fmt: skip
def test_a_bad_place_is_one_sentence(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("places: {a: {holds: decoder, runtimes: flash}}", "unknown key of place 'a': 'runtimes', did you mean 'runtime'?"),
        ("place: {}", "must have `places`, each with what it `holds`"),
        ("places: [a]", "must have `places`"),
        ("places: {a: {holds: decoder}}\nwires: fp32", "unknown key of placement 'mine': 'wires', did you mean 'wire'?"),
        ("places: {a: {runtime: flash}}", "place 'a' must hold some of"),
        ("a: [", "cannot be read: while parsing"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_sentence(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        Placement.of(str(file))
    assert message in str(error.value)


def test_a_users_own_placement_is_a_file(tmp_path, capsys):
    file = tmp_path / "mine here.yaml"
    file.write_text("places: {near: {holds: 'vision embedding layers:2'}, far: {holds: layers head}}\nwire: fp8\n")
    assert cli.main(["split", "deepseek_ocr", "grid=1x1", f"placement={file}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("deepseek_ocr, mine here: near ") and "near: vision, embedding, layers 0 to 1 " in out


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_model_can_be_split(name):
    model = modelmeter.load_model(name)
    found = split(model, request(model), halves(model))
    assert len(found.crossings) >= 3 and split_text(found).startswith(f"{model.name}, layers:")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["placement=hybrid", "device=rtx_4091"], "unknown device 'rtx_4091', did you mean 'rtx_4090'?"),
        (["placement=hybrid", "device=rtx_4090,l40s,l40s"], "device must be one, or one for each of pytorch, llama_cpp, not 3"),
        (["placement=hybird"], "unknown placement 'hybird'"),
        (["placment=hybrid"], "unknown key 'placment', did you mean 'placement'?"),
        (["placed=hybrid"], "unknown key 'placed', did you mean 'placement'?"),
        (["wire=fp33"], "unknown dtype for wire 'fp33'"),
        (["context=9", "prompt_tokens=3"], "give only one of context and prompt_tokens"),
        (["overhead=-1"], "overhead must be a whole number of at least 0, not -1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(keys, message, capsys):
    assert cli.main(["split", "deepseek_ocr", *keys]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_the_first_line_is_the_answer(capsys):
    keys = ("image=examples/page.png", "placement=vision+decoder", "device=h100_sxm,a100_40gb", "batch=200")
    assert cli.main(["split", "deepseek_ocr", *keys]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("deepseek_ocr, vision+decoder does not fit, vision lacks ") and "batch at most 114" in first
    (crossing,) = (line for line in others if line.startswith("prefill: image tokens"))
    model = modelmeter.load_model("deepseek_ocr")
    tokens = model.workload(image="examples/page.png").image.tokens
    assert crossing.endswith(f"{200 * tokens * 1280 * 2 / 300e9 * 1e6:.4g} us")  # the slower link
