"""Weights as they are stored: formats, policies, files predicted to the byte, read and compared, damaged ones refused.

The real quantiser of llama.cpp is asked where llama-cpp-python is installed (its library is enough).
"""

import ctypes
import json
import os
import random
import re
import tracemalloc
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

import modelmeter
from modelmeter import Precision, cli
from modelmeter.checkpoints.gguf import metadata_bytes, read_gguf
from modelmeter.checkpoints.inspect import compare, model_in, read_header
from modelmeter.checkpoints.layout import decoder_of, layout_of
from modelmeter.checkpoints.split import parts_bytes
from modelmeter.errors import InputError
from modelmeter.models.config_json import model_of
from modelmeter.models.families import component
from modelmeter.models.vlm import text_model
from modelmeter.programs.formats import FORMATS, GGML
from modelmeter.programs.policies import LAYERS, POLICIES, tensors_of

gguf = pytest.importorskip("gguf")
safetensors = pytest.importorskip("safetensors.numpy")
files = pytest.importorskip("gguf_files")

MODELS = (*files.CONFIGS, *files.MIXTURES)
QUANTISED = [name for name in POLICIES if POLICIES[name]["file_type"] > 1 and name != "mostly_bf16"]


MATRIX = [name for name in POLICIES if POLICIES[name].get("matrix")]
"""Policies that need an importance matrix."""


@cache
def made(name):
    """A small model, its fields, and the tensors that its file has."""
    if mixture := files.MIXTURES.get(name):
        return text_model(name, component("decoder", mixture)), mixture, list(files.mixture_tensors(mixture))
    config = (files.CONFIGS | files.LARGE).get(name) or files.OTHERS[name] | {"model_type": name}
    return model_of(config, name), config, list(files.tensors(config))


def by_name(tensors):
    return {t.name: (t.shape, t.format.name.upper(), t.bytes) for t in tensors}


# Formats


def test_blocks_are_those_of_the_package_gguf():
    sizes = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    for number, form in GGML.items():
        assert sizes[number] == (form.block, form.bytes), form.name
    named = {kind.name.lower() for kind in gguf.GGMLQuantizationType} - {"q8_1"}  # its size there is none of any file
    assert named <= FORMATS.keys()


def test_the_name_of_a_plain_format_says_its_bits():
    plain = [f for name, f in FORMATS.items() if name == f.name and not f.shaped]
    assert {"fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"} <= {f.name for f in plain}
    for form in plain:  # tf32 is stored in 32 bits
        assert form.bits == (32 if form.name == "tf32" else int("".join(c for c in form.name if c.isdigit()))), (
            form.name
        )


@pytest.mark.parametrize(("name", "bits"), [
    ("q4_0", Fraction(32 * 4 + 16, 32)), ("q4_1", Fraction(32 * 4 + 32, 32)), ("q8_0", Fraction(32 * 8 + 16, 32)),
    ("q4_k", Fraction(256 * 4 + 8 * 12 + 32, 256)), ("q5_k", Fraction(256 * 5 + 8 * 12 + 32, 256)),
    ("q6_k", Fraction(256 * 6 + 16 * 8 + 16, 256)), ("q3_k", Fraction(256 * 3 + 16 * 6 + 16, 256)),
    ("q2_k", Fraction(256 * 2 + 16 * 8 + 32, 256)), ("mxfp4", Fraction(32 * 4 + 8, 32)), ("nvfp4", Fraction(16 * 4 + 8, 16)),
    ("int4_g128", Fraction(128 * 4 + 16, 128)), ("int4_g64_zp", Fraction(64 * 4 + 16 + 4, 64)),
])  # fmt: skip
def test_bits_are_elements_and_scales(name, bits):
    assert FORMATS[name].bits == bits


def test_a_scale_a_row_depends_on_the_columns():
    layer = modelmeter.layers.GatedMLP(100, 40)
    wide, narrow = (3 * 100 * 40, 2 * 40 + 100)  # gate and up have rows of 100, down of 40
    precision = {"weights": "int8_channel"}
    assert layer.cost(b=1, s=1, precision=precision).weight_bytes == wide + 2 * narrow
    precision = {"weights": "int8_channel_zp"}
    assert layer.cost(b=1, s=1, precision=precision).weight_bytes == wide + 3 * narrow
    precision = {"weights": "nvfp4", "overrides": {"W_down": "bf16"}}
    with pytest.raises(InputError, match="W_gate has 100 columns, no multiple of 16, the block of nvfp4"):
        layer.cost(b=1, s=1, precision=precision)
    assert modelmeter.layers.GatedMLP(96, 40).cost(b=1, s=1, precision=precision).weight_bytes == (
        2 * (96 * 40 * 9 // 16 + 4) + 96 * 40 * 2
    )


def test_a_kernel_says_what_taking_its_weights_apart_costs_and_what_it_multiplies_in():
    layer = modelmeter.layers.GatedMLP(256, 512)
    program = layer.program(precision={"weights": "bf16", "overrides": {"W_down": "q4_k", "W_up": "fp8"}})
    gate, up, *_, down = (k for k in program.kernels(b=1, s=3) if k.loops)
    assert (gate.unpack_flops, up.unpack_flops) == ({}, {})
    assert down.unpack_flops == {"q4_k": 512 * 256 * (2 + Fraction(2, 32))}
    assert (*gate.tensor_flops, *up.tensor_flops, *down.tensor_flops) == ("bf16", "bf16", "int8")


@pytest.mark.parametrize(("precision", "sentence"), [
    ({"weights": "q4_k_x"}, "unknown dtype for precision.weights 'q4_k_x', did you mean 'q4_k"),
    ({"activations": "q4_k_m"}, "unknown dtype for precision.activations 'q4_k_m'"),
    ({"overrides": {"W_up": "q4_k_m"}}, "unknown dtype for precision override W_up 'q4_k_m'"),
    ({"weights": "q4_k_m"}, "q4_k_m is how llama.cpp stores a decoder, and there is none here"),
    ({"activations": "int8_channel"}, "int8_channel has a scale a row or a matrix: it is for weights, and"),
])  # fmt: skip
def test_what_cannot_be_stored_so_is_refused(precision, sentence):
    with pytest.raises(InputError, match=sentence):
        modelmeter.layers.GatedMLP(256, 512).cost(b=1, s=1, precision=precision)


# Policies


def test_layers_with_more_bits_are_those_of_the_facts():
    assert [i for i in range(18) if LAYERS["more"](i, 18)] == [0, 1, 4, 7, 10, 13, 15, 16, 17]


def test_names_are_those_that_llama_cpp_knows_of_an_architecture():
    for name in MODELS:
        model, config, _ = made(name)
        kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == files.metadata(config)[0])
        known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[kind]}
        for tensor in layout_of(model, "f16").tensors:
            number = tensor.name.split(".")[1]
            assert tensor.name.replace(f"blk.{number}.", "blk.{bid}.").rpartition(".")[0] in known, tensor.name


@pytest.mark.parametrize("name", [*MODELS, *files.OTHERS])
def test_names_and_shapes_are_those_of_a_converted_module(name):
    model, _, given = made(name)
    assert {t.name: t.shape for t in layout_of(model, "f16").tensors} == dict(given)


@pytest.mark.parametrize("policy", ["f16", "q8_0", "q4_k_m", "q5_k_m", "iq4_nl"])
@pytest.mark.parametrize("name", MODELS)
def test_weight_bytes_of_a_model_are_those_of_its_file(name, policy):
    model, *_ = made(name)
    tensors = layout_of(model, policy).tensors
    work = model.text(5, precision={"weights": policy})
    assert model.storage(work).weight_bytes == sum(t.bytes for t in tensors)
    assert (
        model.cost("prefill", work).weight_bytes
        == model.cost("decode", work).weight_bytes
        == model.storage(work).weight_bytes
    )


def test_traffic_of_weights_follows_the_formats_of_their_layers():
    model, config, _ = made("llama")
    work = model.text(5, decode_steps=7, precision={"weights": "q4_k_m"})
    table, *others = layout_of(model, "q4_k_m").tensors
    assert table.name == "token_embd.weight"
    a_row = Fraction(table.bytes, config["vocab_size"])
    assert model.cost("decode", work).weight_io_bytes == 7 * (a_row + sum(t.bytes for t in others))


def test_a_tower_stays_as_activations_are_under_a_policy_of_the_decoder():
    model = modelmeter.load_model("paddleocr_vl")
    plain, quantised = (
        model.workload(image_size="640x640", precision=p) for p in ("fp16", Precision("q4_k_m", "fp16", "fp16"))
    )
    assert model.cost("vision", plain) == model.cost("vision", quantised) or (
        model.cost("vision", plain).weight_bytes
        == model.cost("vision", quantised).weight_bytes
        == 2 * (412_987_248 + 25_960_192)
    )
    assert model.cost("prefill", quantised).weight_bytes == sum(t.bytes for t in layout_of(model, "q4_k_m").tensors)


def test_experts_of_896_columns_fall_back():
    kinds = {t.name: t.format.name for t in layout_of(modelmeter.load_model("deepseek_ocr"), "q4_k_m").tensors}
    assert {kinds[f"blk.{i}.ffn_down_exps.weight"] for i in range(1, 12)} == {"q8_0", "q5_0"}  # of q6_k and q4_k
    assert {kinds[f"blk.{i}.ffn_up_exps.weight"] for i in range(1, 12)} == {"q4_k"}


def test_interleaved_layers_are_stored_by_their_number():
    model, *_ = made("gemma2")  # windows in every other layer
    kinds = {t.name: t.format.name for t in layout_of(model, "q4_k_m").tensors}
    assert [i for i in range(10) if kinds[f"blk.{i}.attn_v.weight"] == "q6_k"] == [0, 3, 6, 8, 9]


def test_a_shape_that_a_policy_cannot_store_is_refused():
    model = model_of(files.CONFIGS["llama"] | {"intermediate_size": 500})
    with pytest.raises(
        InputError, match=r"q8_0 cannot store blk.0.ffn_down.weight: its 500 columns are no multiple of 32"
    ):
        layout_of(model, "q8_0")
    formats = {t.format.name for t in layout_of(model, "q4_k_m").tensors if "ffn_down" in t.name}
    assert formats == {"fp16"}  # neither 256 nor 32


# Files


@pytest.mark.parametrize("policy", ["f16", *QUANTISED])
@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_predicted_to_the_byte(name, policy, tmp_path):
    model, config, given = made(name)
    try:
        layout = layout_of(model, policy)
    except InputError as error:
        assert "no multiple of 32" in str(error) or policy == "mxfp4_moe"
        return
    forms = {t.name: {"fp32": "F32", "fp16": "F16"}.get(t.format.name, t.format.name.upper()) for t in layout.tensors}
    more = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "béc"] * 50,
        "tokenizer.ggml.scores": [0.5] * 100,
    }
    written = [(n, shape, forms[n]) for n, shape in given]
    kind = POLICIES[policy]["file_type"]
    path = files.write(tmp_path / f"{name}.gguf", config, written, kind, more)
    architecture, pairs = files.metadata(config)
    known = metadata_bytes(
        [("general.architecture", architecture), *pairs.items(), ("general.file_type", kind), *more.items()]
    )
    header = read_header(str(path))
    assert header.metadata_bytes == known
    assert layout.file(known)[1] == path.stat().st_size
    assert layout.file(known)[0] == gguf.GGUFReader(path).data_offset
    assert by_name(layout.tensors) == by_name(header.tensors.values())
    assert compare(header, model) == [] == compare(header, model_in(header))
    path.unlink()


def test_a_whole_file_of_the_facts():
    """The sizes of the files of an ERNIE-4.5-0.3B that a converter wrote, the tokenizer a made-up one."""
    fields = modelmeter.load_model("ernie_4_5_0_3b").config
    model = model_of({**fields, "tie_word_embeddings": True})
    sizes = {"f16": 721_582_240, "q4_k_m": 238_272_704, "q8_0": 383_416_512, "q4_0": 230_365_376, "q5_k_m": 266_289_344}
    for policy, size in sizes.items():
        header = 10_400 if policy == "f16" else 10_432
        found, whole = layout_of(model, policy).file(0)
        assert whole - found == size - header, policy


def library():
    """llama.cpp's library as llama-cpp-python has it."""
    return pytest.importorskip("llama_cpp")


@pytest.mark.parametrize("name", [*MODELS, *files.OTHERS, *files.LARGE])
def test_formats_are_those_of_llama_cpps_own_quantiser(name, tmp_path):
    llama = library()
    model, config, given = made(name)
    source, to = tmp_path / "f16.gguf", tmp_path / "quantised.gguf"
    files.write(source, config, files.formats(given))
    stored = 0
    without = [policy for policy in QUANTISED if policy not in MATRIX]
    for policy in without:
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.nthread = POLICIES[policy]["file_type"], 1
        if llama.llama_model_quantize(os.fsencode(source), os.fsencode(to), ctypes.byref(params)):
            with pytest.raises(InputError, match="has no other format for it"):
                layout_of(model, policy)
            continue
        stored += 1
        layout, header = layout_of(model, policy), read_header(str(to))
        assert by_name(layout.tensors) == by_name(header.tensors.values()), policy
        assert layout.file(header.metadata_bytes)[1] == to.stat().st_size, policy
    assert stored == len(without)


def planned(llama, source, policy):
    """The format that the quantiser plans for each tensor, with an importance matrix; it stores nothing."""
    kind, spoken = llama.llama_model_quantize_params._fields_[10][1]._type_, []
    one = ctypes.cast((ctypes.c_float * 1)(1.0), ctypes.POINTER(ctypes.c_float))
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.dry_run = POLICIES[policy]["file_type"], 1, True
    params.imatrix = (kind * 2)(kind(b"none", one, 1), kind(None, None, 0))
    log = llama.llama_log_callback(lambda level, text, _: spoken.append(text.decode()))
    llama.llama_log_set(log, None)
    failed = llama.llama_model_quantize(os.fsencode(source), os.fsencode(f"{source}.none"), ctypes.byref(params))
    llama.llama_log_set(llama._logger.llama_log_callback, None)
    lines = re.findall(r"\] +(\S+) +- \[.*?type = +(\w+), size = .*?(?:\((\w+)\))?\n", "".join(spoken))
    return None if failed else {name: FORMATS[(new or old).lower()].name for name, old, new in lines}


@pytest.mark.parametrize("name", [*MODELS, *files.OTHERS, *files.LARGE])
def test_formats_with_an_importance_matrix_are_those_that_the_quantiser_plans(name, tmp_path):
    llama = library()
    model, config, given = made(name)
    source = tmp_path / "f16.gguf"
    files.write(source, config, files.formats(given))
    assert len(MATRIX) == 9
    for policy in MATRIX:
        its = planned(llama, source, policy)
        assert its, policy
        assert {t.name: t.format.name for t in layout_of(model, policy).tensors} == its, policy


# Seed 000's table


def test_the_memory_table_of_paddleocr_vl_is_that_of_the_facts():
    """facts/other-models.md, section 1; MB = 1e6 bytes."""
    layout = layout_of(modelmeter.load_model("paddleocr_vl"), "q4_k_m")
    facts = """
        attention Q, K   | 42,467,328  | 169.87 | 84.93  | 23.89  | 4.500  | 85.9
        attention V      | 4,718,592   | 18.87  | 9.44   | 3.26   | 5.531  | 82.7
        attention output | 37,748,736  | 150.99 | 75.50  | 21.23  | 4.500  | 85.9
        MLP gate, up     | 113,246,208 | 452.98 | 226.49 | 63.70  | 4.500  | 85.9
        MLP down         | 56,623,104  | 226.49 | 113.25 | 39.15  | 5.531  | 82.7
        norms, biases    | 37,888      | 0.15   | 0.08   | 0.15   | 32     | 0
        token embedding  | 105,906,176 | 423.62 | 211.81 | 59.57  | 4.500  | 85.9
        LM head          | 105,906,176 | 423.62 | 211.81 | 86.88  | 6.5625 | 79.5
        decoder          | 466,654,208 | 1866.6 | 933.3  | 297.8  | 5.106  | 84.0"""
    rows = {row.part: row for row in layout.rows()}
    lines = [[cell.strip() for cell in line.split("|")] for line in facts.strip().splitlines()]
    assert {line[0] for line in lines} == rows.keys()
    for part, elements, fp32, fp16, stored, bits, saved in lines:
        row = rows[part]
        assert row.elements == int(elements.replace(",", ""))
        for text, value in (
            (fp32, row.elements * 4 / 1e6), (fp16, row.elements * 2 / 1e6), (stored, row.bytes / 1e6), (bits, row.bits),
            (saved, 100 * row.saved["fp32"]),
        ):  # fmt: skip
            assert abs(value - float(text)) <= 0.5001 * 10 ** -len(text.partition(".")[2]), (part, text, value)
    assert {row.part: row.elements for row in layout.others} == {"vision tower": 412_987_248, "projector": 25_960_192}
    hybrid = layout.hybrid()
    assert (
        f"{hybrid.bytes / 1e6:.1f}" == "1175.7"
        and f"{hybrid.saved['fp32']:.3f} {hybrid.saved['fp16']:.3f}" == "0.675 0.351"
    )
    wide = layout_of(modelmeter.load_model("paddleocr_vl"), "q4_k_m", "fp32").hybrid()
    assert f"{wide.bytes / 1e6:.1f} {wide.saved['fp32']:.3f}" == "2053.6 0.433"


def test_the_tied_decoder_of_paddleocr_vl_is_that_of_the_facts():
    model = modelmeter.load_model("paddleocr_vl", ["decoder.config.tie_word_embeddings=true"])
    decoder = layout_of(model, "q4_k_m").rows()[-1]
    assert (decoder.elements, f"{decoder.bytes / 1e6:.1f}", f"{decoder.bits:.3f}") == (360_748_032, "238.3", "5.284")


# Inspect


def small_gguf(tmp_path):
    config = files.CONFIGS["llama"] | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 40,
    }
    more = {
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(40)],
        "tokenizer.ggml.scores": [0.0] * 40,
        "general.name": "small",
    }
    return config, files.write(tmp_path / "small.gguf", config, files.formats(files.tensors(config)), more=more)


def test_inspect_names_what_differs(tmp_path, capsys):
    config, path = small_gguf(tmp_path)
    for change, told in (
        ({"num_hidden_layers": 3}, "9 missing"), ({"num_hidden_layers": 1}, "9 extra"),
        ({"intermediate_size": 96}, "6 shape"), ({"tie_word_embeddings": True}, "1 extra"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        assert cli.main(["inspect", str(path), str(tmp_path / "config.json")]) == 1
        assert told in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["inspect", str(path), str(tmp_path / "config.json")]) == 0
    assert cli.main(["inspect", str(path)]) == 0
    assert "every tensor of the decoder is as in the model" in capsys.readouterr().out


def in_parts(tmp_path, most=2500):
    """A small file in parts, as the package gguf writes them, and its fields."""
    config, whole = small_gguf(tmp_path)
    given = list(files.formats(files.tensors(config)))
    files.write(tmp_path / "small.gguf", config, given, most=most)
    return config, whole, sorted(tmp_path.glob("small-*.gguf"))


def test_parts_are_one_file_read_from_any_of_them(tmp_path):
    config, _, parts = in_parts(tmp_path)
    assert len(parts) > 3
    model = model_of(config)
    for part in parts:
        header = read_header(str(part))
        assert compare(header, model) == [] == compare(header, model_in(header))
        assert header.file_bytes == sum(p.stat().st_size for p in parts)
        assert header.path == str(parts[0])


def test_parts_are_predicted_to_the_byte(tmp_path):
    _config, _, parts = in_parts(tmp_path, 4096)
    written = list(read_header(str(parts[0])).tensors.values())
    known = read_gguf(parts[0]).metadata_bytes - read_gguf(parts[1]).metadata_bytes
    assert [size for _, size in parts_bytes(written, known, 4096)] == [p.stat().st_size for p in parts]


def test_a_part_that_is_missing_doubled_or_lies_is_said(tmp_path):
    _config, _, parts = in_parts(tmp_path)
    kept, many = [part.read_bytes() for part in parts], len(parts)

    def said(sentence):
        with pytest.raises(InputError, match=sentence):
            read_header(str(parts[0]))
        for part, data in zip(parts, kept, strict=True):
            part.write_bytes(data)

    parts[1].unlink()
    said(f"part 2 of {many} is missing, 'small-00002-of-{many:05}.gguf'$")
    parts[1].unlink(), parts[2].unlink()
    said("part 2 .* and so are 1 more")
    parts[1].write_bytes(kept[2])
    said("key 'split.no' is 2, but of this part it must be 1")
    parts[1].write_bytes(kept[1].replace(b"split.count", b"split.coumt"))
    said("00002.*key 'split.count' is None")
    at = kept[2].index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    parts[2].write_bytes(kept[2][:at] + b"\x07" + kept[2][at + 1 :])
    said("00003.*key 'split.tensors.count' is 7")
    for part, data in zip(parts, kept, strict=True):
        at = data.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
        part.write_bytes(data[:at] + b"\x07" + data[at + 1 :])
    said("its parts have 21 tensors, but 'split.tensors.count' is 7")
    (tmp_path / "alone.gguf").write_bytes(kept[0])
    with pytest.raises(InputError, match=f"is one of {many} parts, so its name must end in -00001-of-{many:05}.gguf"):
        read_header(str(tmp_path / "alone.gguf"))


def test_a_tensor_in_two_parts_is_said(tmp_path):
    config, _, _ = in_parts(tmp_path)
    given = list(files.formats(files.tensors(config)))
    for i in range(2):
        more = {"split.no": i, "split.count": 2, "split.tensors.count": 2 * len(given)}
        files.write(tmp_path / f"twice-0000{i + 1}-of-00002.gguf", config, given, more=more)
    with pytest.raises(InputError, match=r"twice-00002.*tensor '.*' is in another part too"):
        read_header(str(tmp_path / "twice-00001-of-00002.gguf"))


def test_500_damaged_parts_are_read_or_refused_with_a_sentence(tmp_path):
    rng, refused = random.Random("parts"), 0
    config, _, parts = in_parts(tmp_path)
    model, kept = model_of(config), [part.read_bytes() for part in parts]
    for i in range(500):
        at = rng.randrange(len(parts))
        parts[at].write_bytes(mutated(kept[at], rng))
        if rng.random() < 0.1:
            parts[rng.randrange(len(parts))].unlink()
        watched = i % 5 == 0  # which takes ten times as long
        if watched:
            tracemalloc.start()
        try:
            header = read_header(str(next(part for part in parts if part.is_file())))
            compare(header, model)
            compare(header, model_in(header))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000 and "small-" in str(error), error
        finally:
            peak = tracemalloc.get_traced_memory()[1] if watched else 0
            tracemalloc.stop()
            for part, data in zip(parts, kept, strict=True):
                part.write_bytes(data)
        assert peak < 20 * sum(map(len, kept)) + 2_000_000
    assert refused > 250


def test_inspect_names_a_tensor_of_another_format(tmp_path):
    model, config, given = made("llama")
    forms = {
        t.name: {"fp32": "F32"}.get(t.format.name, t.format.name.upper()) for t in layout_of(model, "q4_k_m").tensors
    }
    forms["blk.3.attn_v.weight"] = "Q8_0"
    path = files.write(tmp_path / "x.gguf", config, [(n, s, forms[n]) for n, s in given], 15)
    (found,) = compare(read_header(str(path)), model)
    assert found == ("format", "blk.3.attn_v.weight", "q4_k" if not LAYERS["more"](3, 10) else "q6_k", "q8_0")


def written_safetensors(tmp_path, config, parts=1):
    names = {n: np.zeros(tuple(t.shape), np.float16) for n, t in files.module(config).state_dict().items()}
    names = {n: t for n, t in names.items() if not (config["tie_word_embeddings"] and n.startswith("lm_head"))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if parts == 1:
        safetensors.save_file(names, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path / "model.safetensors"
    where = {n: f"model-{i % parts}.safetensors" for i, n in enumerate(names)}
    for file in set(where.values()):
        safetensors.save_file({n: t for n, t in names.items() if where[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


@pytest.mark.parametrize("name", ["ernie", "ernie_tied", "llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_a_checkpoint_of_transformers_is_the_model_of_its_config(name, tmp_path):
    config = {"tie_word_embeddings": True} | files.CONFIGS[name]
    header = read_header(str(written_safetensors(tmp_path, config)))
    model = model_in(header)
    assert compare(header, model) == []
    assert sum(t.elements for t in header.tensors.values()) == model.storage().parameters
    changed = compare(header, model_of(config | {"num_hidden_layers": 9}))
    assert changed and {d.kind for d in changed} == {"extra"}


def test_shards_are_one_file_and_a_lying_index_is_refused(tmp_path):
    config = {"tie_word_embeddings": True} | files.CONFIGS["qwen2"]
    index = written_safetensors(tmp_path, config, 3)
    assert compare(read_header(str(index)), model_of(config)) == []
    assert read_header(str(tmp_path)).path == str(index)
    told = json.loads(index.read_text())
    for change, sentence in (
        ({"x": "model-0.safetensors"}, "'x' is not where the index says"),
        ({"model.norm.weight": "../model-0.safetensors"}, "is no file beside the index"),
        ({"model.norm.weight": "model-7.safetensors"}, "cannot read .*model-7"),
    ):
        index.write_text(json.dumps({"weight_map": told["weight_map"] | change}))
        with pytest.raises(InputError, match=sentence):
            read_header(str(index))


# Damaged files


def mutated(data, rng):
    """Bytes that are damaged in one of the ways of files."""
    data = bytearray(data)
    head = min(len(data), 4000)
    way = rng.randrange(5)
    if way == 0:
        return bytes(data[: rng.randrange(len(data))])
    if way == 1:
        at = rng.randrange(head - 8)
        data[at : at + 8] = rng.choice((2**64 - 1, 2**63, 2**40, 2**32, 0, 7)).to_bytes(8, "little")
    elif way == 2:
        at = rng.randrange(head)
        data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40)))
    elif way == 3:
        at = rng.randrange(head)
        del data[at : at + rng.randrange(1, 40)]
    else:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(head)] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_500_damaged_files_are_read_or_refused_with_a_sentence(kind, tmp_path):
    rng = random.Random(kind)
    config, path = small_gguf(tmp_path)
    if kind == "safetensors":
        path = written_safetensors(tmp_path, config)
    data, damaged, refused = path.read_bytes(), tmp_path / f"damaged.{kind}", 0
    model = model_of(config)
    for i in range(500):
        damaged.write_bytes(mutated(data, rng))
        watched = i % 5 == 0  # which takes ten times as long
        if watched:
            tracemalloc.start()
        try:
            header = read_header(str(damaged))
            compare(header, model)
            if kind == "gguf":
                compare(header, model_in(header))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, error
            assert "damaged" in str(error) or "general.architecture" in str(error) or "config" in str(error), error
        finally:
            peak = tracemalloc.get_traced_memory()[1] if watched else 0
            tracemalloc.stop()
        assert peak < 20 * len(data) + 2_000_000
    assert refused > 250


@pytest.mark.parametrize(("file", "data", "sentence"), [
    ("x.gguf", b"", "the magic number needs 4 bytes at 0, and 0 are left"),
    ("x.gguf", b"GGML" + bytes(30), "does not begin with GGUF"),
    ("x.gguf", b"GGUF" + bytes([0, 0, 0, 3]) + bytes(30), "GGUF version 50331648 is not supported"),
    ("x.gguf", b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 16, "a list of 18446744073709551615 tensors"),
    ("x.safetensors", b"\xff" * 20, "longer than the 100000000 that are allowed"),
    ("x.safetensors", (2).to_bytes(8, "little") + b"[]", "must hold tensors by name, not a list"),
    ("x.safetensors", (8).to_bytes(8, "little") + b'{"a": 1}', "tensor 'a' must have data_offsets"),
    ("x.bin", b"", "must be a .gguf, a .safetensors"),
])  # fmt: skip
def test_what_is_no_such_file_is_said(file, data, sentence, tmp_path, capsys):
    (tmp_path / file).write_bytes(data)
    assert cli.main(["inspect", str(tmp_path / file)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and str(tmp_path / file) in error


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["gguf", "paddleocr_vl", "--quant", "Q4_K"], "unknown quant 'q4_k', did you mean 'q4_k_"),
    (["gguf", "paddleocr_vl", "--others", "q4_k"], "unknown format 'q4_k'"),
    (["gguf", "paddleocr_vl", "--metadata-bytes", "-3"], "--metadata-bytes"),
    (["gguf", "nothere"], "unknown model 'nothere'"),
    (["gguf", "paddleocr_vl", "--split-max-size", "2T"], "--split-max-size must be a whole number with M or G"),
    (["inspect", "nothere.gguf"], "cannot read 'nothere.gguf'"),
    (["inspect"], "file"),
])  # fmt: skip
def test_commands_refuse_with_a_sentence(arguments, sentence, capsys):
    assert cli.main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_tells_the_table_and_what_it_does_not_predict(capsys):
    assert cli.main(["gguf", "paddleocr_vl", "--quant", "Q4_K_M"]) == 0
    out = capsys.readouterr().out
    assert "297.8 MB" in out and "without metadata" in out and "1.176 GB" in out
    assert cli.main(["gguf", "paddleocr_vl", "--metadata-bytes", "1000", "--tensors"]) == 0
    assert "blk.17.ffn_down.weight" in capsys.readouterr().out
    assert cli.main(["gguf", "paddleocr_vl", "--split-max-size", "100M"]) == 0
    assert "in 3 parts of at most 100 MB of tensors:" in capsys.readouterr().out


def test_every_tensor_of_a_policy_is_of_the_graph():
    graph = decoder_of(modelmeter.load_model("deepseek_v2_lite"))
    stored = tensors_of(graph, "q4_k_m")
    assert sum(t.slot.elements for t in stored) == modelmeter.load_model("deepseek_v2_lite").storage().parameters
