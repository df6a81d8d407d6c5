"""Public tables of kernels that no constant was fitted to, on devices and of engines that were not measured here."""

from dataclasses import replace

import numpy as np
import pytest

from modelmeter.catalogue import load_devices
from modelmeter.seconds import seconds_of_work
from modelmeter.seconds.mixture import loads
from modelmeter.seconds.shapes import attention_work, cache_variant, mixture_work, product_work

DEVICES = {device.name: device for device in load_devices()}
H100, B200 = DEVICES["h100_sxm"], DEVICES["b200_sxm"]

# TFLOP/s by rows, of vLLM's benchmarks/kernels (activations quantised before), columns and inner size beside the format;
# rows whose operands the benchmark finds in the L2 are left out. https://github.com/vllm-project/vllm/pull/N
PRODUCTS = [
    (20646, "b200_sxm", "bf16", 6144, 4096, {1024: 1325.6, 2048: 1354.9, 4096: 1365.3, 8192: 1421.0, 16384: 1360.1}),
    (19566, "b200_sxm", "bf16", 4096, 4096, {1024: 1362.7, 2048: 1444.4}),
    (20646, "b200_sxm", "nvfp4", 6144, 4096, {512: 2188.0, 1024: 2895.0, 2048: 3411.5, 4096: 3645.6, 8192: 3778.8,
                                              16384: 3904.3}),
    (19566, "b200_sxm", "fp8", 6144, 4096, {512: 1838.7, 1024: 2341.4}),
    (19566, "b200_sxm", "fp8", 4096, 4096, {512: 1832.0, 1024: 2076.7}),
    (34424, "rtx_5090", "fp8", 6144, 4096, {128: 227.3, 256: 319.7, 512: 260.8, 1024: 346.6, 2048: 423.9}),
    (23280, "h100_sxm", "bf16", 2112, 7168, {256: 401.9, 512: 566.3, 1024: 619.8, 2048: 648.2, 4096: 715.8, 8192: 666.4}),
]  # fmt: skip


# Microseconds by tokens of vLLM's benchmark_moe.py (its default tiles) beside hidden and inner width, experts and picks; it
# draws the picks, so that only so many tokens are compared as reach nearly all experts. https://github.com/vllm-project/vllm/pull/N
MIXTURES = [
    (44818, "h200_sxm", "bf16", 2816, 704, 128, 8, {48: 382.8, 64: 391.8, 96: 405.6, 128: 409.1, 256: 419.8, 512: 442.2,
                                                    1024: 536.5, 1536: 585.4, 2048: 742.9, 3072: 992.9, 4096: 1249.5}),
    (19049, "a100_40gb_pcie", "bf16", 2048, 768, 128, 8, {48: 885.97, 64: 917.45, 96: 943.14}),
    (53710, "l40s", "fp8", 2048, 768, 128, 8, {64: 902.75, 128: 947.23, 256: 978.59, 512: 1034.18, 1024: 1126.08,
                                               2048: 1375.4, 4096: 1916.23, 8192: 3195.68}),
    (31448, "b200_sxm", "bf16", 2048, 768, 128, 8, {1: 39.61, 2: 51.87, 4: 73.18}),
    (24700, "h100_sxm", "bf16", 4096, 7168, 8, 2, {16: 471.49, 32: 487.35, 64: 483.14, 128: 491.39, 256: 536.77,
                                                   512: 662.33, 1024: 833.72, 1536: 1122.93}),
]  # fmt: skip


def attention(device, law, variant, *sizes):
    """Seconds of attention without the kernel that writes keys and values, which these tables do not have."""
    work = attention_work(device, law, variant, *sizes)
    written = {**work, "kernels": work["kernels"] - 1, "writes": False}
    return float(seconds_of_work(law, variant, written, device).seconds)


@pytest.mark.parametrize(("pull", "name", "form", "n", "k", "rates"), PRODUCTS)
def test_products(pull, name, form, n, k, rates):
    device, rows = DEVICES[name], np.array(list(rates), float)
    work = {**product_work(device, form, rows, n, k), "quantised": True}
    said = 2 * rows * n * k / seconds_of_work("product", form, work, device).seconds / 1e12
    errors = np.abs(np.log(said / list(rates.values())))
    assert np.median(errors) < 0.14 and np.max(errors) < 0.25


@pytest.mark.parametrize(("pull", "name", "form", "hidden", "inner", "experts", "active", "times"), MIXTURES)
def test_mixtures(pull, name, form, hidden, inner, experts, active, times):
    device, tokens = DEVICES[name], np.array(list(times), float)
    work = mixture_work(device, form, hidden, inner, tokens, active, loads(tokens, active, experts, 1, 0))
    said = 1e6 * seconds_of_work("mixture", form, work, device).seconds
    errors = np.abs(np.log(said / list(times.values())))
    assert np.median(errors) < 0.15 and np.max(errors) < 0.3


def test_two_multiprocessors_share_a_tile_beyond_128_rows_on_datacenter_blackwell_alone():
    pairs = [np.asarray(product_work(B200, "fp8", np.array([64.0, 128, 129, 4096]), 4096, 4096)["pair"]).tolist()]
    assert pairs == [[1.0, 1.0, 0.5, 0.5]]
    assert "pair" not in product_work(H100, "fp8", 4096, 4096, 4096)


# Microseconds of TensorRT-LLM's kernel on a B200 by sequences and keys: 64 query heads on 8 of width 64, bf16.
# https://github.com/flashinfer-ai/flashinfer/pull/1415
DECODE = {(4, 1024): 8.246, (4, 4096): 11.434, (4, 8192): 15.437, (4, 16384): 30.592, (128, 1024): 52.285,
          (128, 4096): 175.79}  # fmt: skip
# TFLOP/s of FlashAttention on a B200, 16 heads of width 128, 8192 keys, 4 sequences: another run than the one which the
# overlap of families.yaml comes from. https://github.com/Dao-AILab/flash-attention/pull/2280
PREFILL, FULL = 1418.1, 1534.8


def test_attention_on_datacenter_blackwell():
    errors = [np.log(1e6 * attention(B200, "decode", "bf16", b, 64, 8, 64, 1, t) / us) for (b, t), us in DECODE.items()]
    assert np.median(np.abs(errors)) < 0.2 and np.max(np.abs(errors)) < 0.45
    for law, rate, masked in (("prefill", PREFILL, 0.5), ("vision", FULL, 1.0)):
        flops = 4 * 4 * 16 * 8192**2 * 128 * masked
        assert flops / attention(B200, law, "bf16", 4, 16, 16, 128, 8192, 8192) / 1e12 == pytest.approx(rate, rel=0.25)


def test_marlin_has_the_instructions_of_ampere_on_datacenter_blackwell():
    balanced = loads(4096, 8, 128, 1, 0)
    marlin, own = (
        float(seconds_of_work("mixture", form, mixture_work(B200, form, 2048, 768, 4096, 8, balanced), B200).seconds)
        for form in ("int4_wo", "bf16")
    )
    assert marlin > 1.5 * own  # fewer bytes, but the products are most of it


# Microseconds of vLLM's FlashAttention 3 and of TensorRT-LLM's XQA by sequences and keys, on a cache in fp8, 32 query heads
# on 8 of width 128, on Hopper. https://github.com/vllm-project/vllm/pull/43232
XQA = {
    (1, 1024): (11.17, 7.616), (1, 2048): (12.53, 8.123), (1, 4096): (13.82, 10.454), (1, 8192): (17.08, 14.55),
    (1, 16384): (23.04, 21.32), (1, 32768): (34.51, 35.12), (8, 1024): (16.07, 11.44),
}  # fmt: skip


def test_tensorrt_llm_decodes_with_a_kernel_of_its_own_on_hopper():
    engine, errors = replace(H100, engine="tensorrt_llm"), []
    for (batch, keys), measured in XQA.items():
        said = [
            1e6 * attention(device, "decode", cache_variant(device, "decode", True), batch, 32, 8, 128, 1, keys)
            for device in (H100, engine)
        ]
        errors.append(np.log(said) - np.log(measured))
    assert np.all(np.median(np.abs(errors), axis=0) < 0.25) and np.max(np.abs(errors)) < 0.4
    assert cache_variant(engine, "prefill", True) == cache_variant(H100, "prefill", True)
    a100 = DEVICES["a100_80gb"]
    assert cache_variant(replace(a100, engine="tensorrt_llm"), "decode", True) == cache_variant(a100, "decode", True)
