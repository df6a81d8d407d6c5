"""llama.cpp's products and devices of other vendors: what holds whatever the constants, and where these come from."""

import re
from functools import cache

import numpy as np
import pytest

from modelmeter import load_model
from modelmeter.catalogue import load_devices, load_host
from modelmeter.errors import InputError
from modelmeter.fits import Fits
from modelmeter.folders import config_names
from modelmeter.measured.process import memory_of
from modelmeter.measured.rows import names, question
from modelmeter.runtimes.runtime import Runtime
from modelmeter.seconds import seconds_of
from modelmeter.seconds.asked import Kind, asked_of
from modelmeter.seconds.blocks import BLOCKS, UBATCH
from modelmeter.seconds.constants import LAWS, WIDE, constants_of, spread_of
from modelmeter.seconds.families import FILE, content, family_of
from modelmeter.seconds.laws import QUEUED
from modelmeter.seconds.predict import lasting_of, seconds_of_work
from modelmeter.seconds.shapes import attention_work, decode_rows
from modelmeter.times import Times

DEVICES = {device.name: device for device in load_devices() if device.clock_hz and device.l2_bytes}
HOST = load_host()
ROW = dict.fromkeys(("id", "category", "n_gpu", "batch_or_conc", "image_mode", "source"), "") | {
    "model": "Llama-3-8B", "quant": "Q4_K_M", "engine": "llama.cpp", "hardware": "RTX 3090", "input_tok": "512",
    "output_tok": "128", "metric": "prefill_tok_s", "value": "1", "unit": "tok/s",
}  # fmt: skip


@cache
def products(stage="prefill", weights="q4_k_m", prompt=512):
    """The products of a stage of a small model."""
    model = load_model("llama_3_2_1b")
    work = model.text(prompt, decode_steps=2, runtime="llama_cpp", precision={"weights": weights})
    return [kernel for kernel in model.kernels(stage, work) if kernel.loops and not kernel.attention]


def of_many_rows(found):
    return [kernel for kernel in found if kernel.loops["m"] > 8]


@pytest.mark.parametrize("weights", ["q4_k_m", "q8_0", "f16"])
@pytest.mark.parametrize("name", {device.architecture: name for name, device in DEVICES.items()}.values())
def test_no_product_is_faster_than_units_or_memory_allow(name, weights):
    for stage in ("prefill", "decode"):
        found = products(stage, weights)
        for estimate in seconds_of(found, DEVICES[name]):
            assert estimate.seconds > estimate.roofline, (estimate.law, estimate.variant)


@pytest.mark.parametrize("name", ["rtx_3090", "h100_pcie", "apple_m1_max", "radeon_8060s", "arc_140v", "v100_pcie"])
def test_more_rows_take_no_less_and_a_row_of_many_takes_less(name):
    taken = [
        sum(kernel.runs * one.seconds for kernel, one in zip(found, seconds_of(found, DEVICES[name]), strict=True))
        for found in (products(prompt=rows) for rows in (9, 64, 128, 512, 1024, 4096))
    ]
    assert taken == sorted(taken)
    assert taken[-1] / 4096 < taken[0] / 9


def test_cuda_cores_are_the_limit_where_units_for_integers_grow():
    """Twice the int8 peak, all else equal, gains less than a fifth."""
    from dataclasses import replace

    [device] = load_devices(["h100_pcie"])
    slow = replace(device, peaks={**device.peaks, "int8": device.peak("int8") / 2})
    found = products()
    one, two = (
        sum(e.seconds * k.runs for k, e in zip(found, seconds_of(found, d), strict=True)) for d in (device, slow)
    )
    assert one < two < 1.2 * one


def asked(*arguments, **words):
    return [asked_of(kernel) for kernel in of_many_rows(products(*arguments, **words))]


def test_dequantised_products_are_the_same_for_each_batch_and_slower_than_those_of_16_bits():
    for one, three in zip(asked(prompt=int(UBATCH)), asked(prompt=3 * int(UBATCH)), strict=True):
        kind = one.kind._replace(apart=True)
        taken = [lasting_of(kind, of.sizes, DEVICES["rtx_4090"]).parts.seconds for of in (one, three)]
        assert taken[1] == pytest.approx(3 * taken[0])
        sizes = {**one.sizes, "stored": 2.0, "flops bf16": sum(one.sizes[f"flops {form}"] for form in kind.forms)}
        alone = lasting_of(Kind("product", forms=("bf16",)), sizes, DEVICES["rtx_4090"])
        assert taken[0] > alone.parts.seconds
    for kernel in products("decode"):
        kind, sizes = asked_of(kernel)
        ways = (lasting_of(k, sizes, DEVICES["rtx_4090"]) for k in (kind, kind._replace(apart=True)))
        assert len({float(np.max(way.parts.seconds)) for way in ways}) == 1


def test_weights_are_taken_apart_through_memory_by_cuda_and_sycl_alone():
    for name, through in (("rtx_3090", True), ("apple_m1_max", False), ("arc_140v", True)):
        for kind, sizes in asked():
            ways = (lasting_of(k, sizes, DEVICES[name]) for k in (kind, kind._replace(apart=True)))
            assert len({float(np.max(way.parts.seconds)) for way in ways}) == 1 + through
    old, new = (
        Times(model, model.text(1024, runtime=runtime, precision={"weights": "q4_0"}), DEVICES["rtx_4090"], HOST)
        for model in [load_model("llama_3_2_1b")]
        for runtime in ("llama_cpp_2024", "llama_cpp")
    )
    assert old.stages["prefill"].device.seconds > new.stages["prefill"].device.seconds
    with pytest.raises(InputError, match="unknown products of runtime 'x'"):
        Runtime("x", (), products="twice")


def test_a_row_of_16_bits_is_a_vector_kernel_and_many_are_a_product_of_bf16():
    for stage, few in (("decode", True), ("prefill", False)):
        found = [kernel for kernel in products(stage, "f16") if np.all(kernel.loops["m"] != 1) != few]
        known = [asked_of(kernel) for kernel in found]
        assert found and all(kind.few and not kind.stored for kind, _ in known)
        for (kind, sizes), one in zip(known, seconds_of(found, DEVICES["rtx_3090"]), strict=True):
            law = lasting_of(kind._replace(few=False, law="blocks" if few else "product"), sizes, DEVICES["rtx_3090"])
            assert one.variant == "bf16" and np.all(one.seconds == law.parts.seconds)


def test_every_constant_of_a_family_is_one_of_its_law_and_has_a_source_on_its_line():
    of = {"blocks": BLOCKS, **LAWS}
    for name, family in content()["families"].items():
        for law, constants in family["laws"].items():
            assert set(constants) <= {QUEUED, *(c.name for c in of[law].constants)}, (name, law)
    assert set(content()["blocks"]) == {c.name for c in BLOCKS.constants}
    for line in FILE.read_text().splitlines():
        if re.match(r" +\w+: (\d|\{.*\d)", line):
            assert re.search(r"# .{5}|# likewise", line), line


def test_a_family_stands_for_its_devices_and_their_intervals_are_wide():
    product = LAWS["product"]
    measured, like = (constants_of(product, DEVICES[name], "bf16") for name in ("arc_pro_b60", "arc_b580"))
    assert measured.constants == like.constants and "those of arc_pro_b60" in like.derived
    assert (measured.like, like.like) == ("shapes", "vendors")
    assert all(spread_of(product, size, "vendors") == WIDE for size in range(4))
    apple = constants_of(product, DEVICES["apple_m1_max"], "bf16")
    assert apple.constants["speed"] == content()["families"]["Apple"]["laws"]["product"]["speed"]
    assert "public figures of Apple devices" in apple.derived
    assert constants_of(product, DEVICES["rtx_3090"], "bf16").like == "devices"
    assert family_of("Ada", "product") is None


@pytest.mark.parametrize(
    ("device", "law", "measured"),
    [
        ("mi300x", "prefill", {4096: 467.8, 8192: 522.7}),
        ("mi300x", "vision", {1024: 338.1, 4096: 527.7, 8192: 558.2}),
        ("mi355x", "prefill", {4096: 949.3, 8192: 1247.7}),
        ("mi355x", "vision", {1024: 613.5, 4096: 1177.1, 8192: 1396.0}),
        ("radeon_8060s", "prefill", {2048: 20.9, 4096: 25.0, 8192: 27.3}),
    ],
)
def test_attention_of_amds_devices_is_as_public_kernels(device, law, measured):
    """TFLOP/s of 32 heads of 128 over 8 KV heads: ROCm/aiter op_tests/cpp/mha/README.md, ROCm/aiter/pull/3560."""
    for length, rate in measured.items():
        work = attention_work(DEVICES[device], law, "bf16", 1, 32, 8, 128, length, length)
        work = {**work, "kernels": 1.0, "writes": False}
        found = float(seconds_of_work(law, "bf16", work, DEVICES[device]).seconds)
        pairs = length**2 / (2 if law == "prefill" else 1)
        assert 4 * 32 * 128 * pairs / found / 1e12 == pytest.approx(rate, rel=0.17)


def test_a_memory_that_was_seen_to_reach_less_is_streamed_so():
    seen = DEVICES["arc_140v"]
    share = seen.reached["memory"] / seen.memory_bytes_per_s
    for law in ("product", "mixture", "decode", "stream", "blocks"):
        assert constants_of(LAWS[law], seen, "bf16").constants["stream"] == share < 1
    assert constants_of(LAWS["blocks"], seen, "bf16").constants["wide"] == share


def test_a_launch_behind_others_takes_less_than_one_by_itself():
    device = DEVICES["arc_pro_b60"]
    asked = [Kind("product", forms=("bf16",)), {"m": 1.0, "n": 64.0, "k": 64.0, "batch": 1.0, "stored": 2.0, "moved": 1e4,
                                                "flops bf16": 8192.0}]  # fmt: skip
    alone, behind = (float(lasting_of(*asked, device, warm).parts.floor) for warm in (True, False))
    assert 0 < behind < alone / 3
    [other] = load_devices(["rtx_3090"])
    assert len({float(lasting_of(*asked, other, warm).parts.floor) for warm in (True, False)}) == 1


def test_tiles_of_experts_are_as_wide_as_all_tokens_of_a_batch():
    """64 rows of an expert in tiles of 128 take as long as 32, and twice what 64 tokens of one matrix take."""
    sizes = {"n": 2880.0, "k": 2880.0, "batch": 32.0, "stored": 0.53, "moved": 1.0, "flops int8": 1.0}
    kind = Kind("blocks", forms=("int8",), stored="q4_0")
    taken = [
        float(lasting_of(kind, {**sizes, "m": m, "tokens": tokens}, DEVICES["rtx_3090"]).parts.compute)
        for m, tokens in ((64.0, 512.0), (32.0, 512.0), (64.0, 64.0))
    ]
    assert taken[0] == taken[1] == pytest.approx(2 * taken[2])


def test_experts_tell_the_tokens_that_they_are_of():
    model = load_model("gpt_oss_20b")
    work = model.text(512, decode_steps=2, runtime="llama_cpp", precision={"weights": "mxfp4_moe"})
    found = [asked_of(kernel) for kernel in model.kernels("prefill", work) if kernel.grouped]
    assert found and {float(one.sizes["tokens"]) for one in found} <= {1.0, 512.0}


def test_rows_of_queries_are_not_padded_without_matrix_units():
    known = {name: decode_rows(DEVICES[name], ggml=True) for name in ("apple_m2_ultra", "p40", "rtx_3090", "arc_155h")}
    assert known == {"apple_m2_ultra": 1, "p40": 1, "rtx_3090": 8, "arc_155h": 1}
    assert decode_rows(DEVICES["rtx_3090"], ggml=False) is None


def test_every_device_has_what_a_request_needs():
    assert {name for name in config_names("device") if name not in DEVICES} == {"gaudi3"}
    for device in DEVICES.values():
        for found in (seconds_of(products(stage), device) for stage in ("prefill", "decode")):
            assert all(one.low < one.seconds < one.high for one in found), device.name


def test_rows_tell_the_build_of_llama_cpp_and_the_format_of_its_files():
    asked = lambda **more: question(ROW | more, names()["devices"])
    assert asked().runtime == "llama_cpp_cuda"
    for source, runtime in (
        ("a table (llama.cpp, May 2024)", "llama_cpp_2024"),
        ("a thread (b3100)", "llama_cpp_2024"),
        ("a thread (build: 1c5eba6f (3266))", "llama_cpp"),  # as llama-bench prints it
        ("a thread (build 3266)", "llama_cpp"),
        ("a thread (b6844)", "llama_cpp"),
        ("a thread (build 6845, 2025-10-26)", "llama_cpp_cuda"),
        ("a thread of August 2025", "llama_cpp"),
        ("a thread, 2024-12-01", "llama_cpp"),
        ("a thread, 2025-11-02", "llama_cpp_cuda"),
        ("a thread (b10809)", "llama_cpp_cuda"),
    ):
        assert asked(source=source).runtime == runtime, source
    for engine, hardware, runtime in (
        ("llama.cpp", "Apple M3 Max (40c)", "llama_cpp_metal"),
        ("llama.cpp", "RX 7900 XTX", "llama_cpp_cuda"),
        ("llama.cpp Vulkan", "RX 7900 XTX", "llama_cpp_vulkan"),
        ("llama.cpp Vulkan", "RTX 4090", "llama_cpp_vulkan"),
        ("Ollama", "Arc B580", "llama_cpp_vulkan"),
    ):
        assert asked(engine=engine, hardware=hardware).runtime == runtime
    assert asked(source="an issue of vLLM, May 2024", engine="vLLM", quant="BF16").runtime == "vllm"
    assert asked(quant="MXFP4", model="gpt-oss-20B").precision == {"weights": "mxfp4_moe"}
    for quant, weights in (
        ("F16", "f16"),
        ("Q8_0", "q8_0"),
        ("IQ4_XS", "iq4_xs"),
        ("Q5_K_M", "q5_k_m"),
        ("q4_K", "q4_k_m"),
    ):
        assert asked(quant=quant).precision == {"weights": weights}
    assert asked(quant="AWQ 4bit", engine="LMDeploy").precision["weights"] == "int4_g128_zp"


def test_what_a_process_holds_is_its_room_and_more():
    model = load_model("llama_3_2_1b")
    for runtime in ("openvino_stateful", "llama_cpp", "flash"):
        fits = Fits(model, model.text(1024, decode_steps=2, runtime=runtime))
        found = memory_of(fits)
        assert fits.needed < found.low < found.seconds < found.high
