"""Seconds of a request are made of those of kernels and the host, and say what binds."""

from dataclasses import replace

import numpy as np
import pytest

import modelmeter
from modelmeter import cli
from modelmeter.catalogue import load_devices
from modelmeter.config import read_yaml
from modelmeter.errors import InputError
from modelmeter.folders import config_dir
from modelmeter.host import NONE, Host, Span
from modelmeter.seconds import seconds_of
from modelmeter.seconds.unknowns import Factor, of_device, of_engine
from modelmeter.times import Times, busy

VALUES = read_yaml(config_dir() / "host.yaml")["host"]
HOST = Host.of(VALUES)
NO_HOST = Host(NONE, NONE, NONE, NONE, NONE)


def times(name="llama_3_2_1b", device="h100_sxm", host=HOST, **options):
    model = modelmeter.load_model(name)
    work = model.workload(grid="2x3", **options) if model.planner else model.text(500, **options)
    return Times(model, work, load_devices([device])[0], host)


def test_without_a_host_a_stage_is_the_sum_of_its_kernels_one_by_one():
    found = times(host=NO_HOST, runtime="flash", decode_steps=1)
    for name in ("prefill", "decode"):
        kernels = found.model.kernels(name, found.work)
        alone = sum(kernel.runs * seconds_of([kernel], found.on)[0].seconds for kernel in kernels)
        assert found.stages[name].span.seconds == pytest.approx(alone, rel=1e-12)
    assert found.request.seconds == pytest.approx(found.ttft.seconds + found.tpot.seconds, rel=1e-12)


def test_tpot_is_near_the_mean_of_every_step():
    found = times(runtime="vllm", decode_steps=300, batch=64)
    steps = range(1, 301)
    every = [
        sum(k.runs * e.seconds for k, e in zip(kernels, seconds_of(kernels, found.on), strict=True))
        for kernels in (found.model.kernels("decode", found.work, step) for step in steps[::20])
    ]
    assert found.stages["decode"].device.seconds == pytest.approx(np.mean(every), rel=0.02)


def test_a_host_that_is_slower_than_the_device_binds_and_one_that_is_faster_does_not():
    slow = times(host=replace(HOST, eager=Span(1e-3, 1e-3, 1e-3)), runtime="flash", decode_steps=5).stages["decode"]
    launches = times(runtime="flash", decode_steps=5).model.launches(
        "decode", times(runtime="flash", decode_steps=5).work
    )
    assert slow.binds == "host-bound" and slow.span.seconds == pytest.approx(1e-3 * launches / 5 + HOST.step.seconds)
    assert times(host=NO_HOST, runtime="flash").stages["decode"].binds in ("memory-bound", "launch-bound")
    assert times(host=NO_HOST, runtime="flash", batch=32).stages["prefill"].binds == "compute-bound"


def test_a_graph_starts_the_kernels_of_a_step_and_compiled_code_those_of_a_prefill():
    found = times(runtime="vllm", decode_steps=1)
    many = {name: found.model.launches(name, found.work) for name in ("prefill", "decode")}
    assert found.stages["decode"].launches == HOST.graph * many["decode"]
    assert found.stages["prefill"].launches == HOST.compiled * many["prefill"]


@pytest.mark.parametrize("name", ["deepseek_ocr", "paddleocr_vl", "llama_3_2_1b", "qwen3_30b_a3b"])
@pytest.mark.parametrize("device", ["a100_80gb", "rtx_4090", "mi300x"])
@pytest.mark.parametrize("runtime", ["sdpa", "vllm", "llama_cpp"])
def test_bound_low_point_and_high_are_in_order(name, device, runtime):
    found = times(name, device, runtime=runtime) if name != "paddleocr_vl" else None
    if found is None:
        model = modelmeter.load_model(name)
        work = model.workload(image_size="640x480", runtime=runtime)
        found = Times(model, work, load_devices([device])[0], HOST)
    for stage in found.stages.values():
        assert 0 < stage.bound < stage.span.high and stage.span.low <= stage.span.seconds <= stage.span.high
    assert found.bound < found.request.seconds and found.ttft.seconds < found.request.seconds


def test_more_devices_are_faster_but_not_that_much_faster_and_sums_over_them_take_time():
    one, four = (times("llama_3_1_70b", runtime="vllm", parallel={"tensor": many}) for many in (1, 4))
    assert one.tpot.seconds / 4 < four.tpot.seconds < one.tpot.seconds
    laws = {estimate.law for _, estimate in four.stages["decode"].kernels}
    assert "allreduce" in laws and "transfer" in laws


def test_errors_of_one_law_are_one_and_those_of_two_are_independent():
    stage = times(runtime="vllm", decode_steps=1).stages["prefill"]
    laws = {estimate.law for _, estimate in stage.kernels}
    parts = [busy(pair for pair in stage.kernels if pair[1].law == law) for law in laws]
    assert len(laws) > 2 and stage.device.seconds == pytest.approx(sum(part.seconds for part in parts))
    widest = sum(part.high - part.seconds for part in parts)
    assert max(part.high - part.seconds for part in parts) < stage.device.high - stage.device.seconds < widest


@pytest.mark.parametrize(
    "change, told",
    [
        ({"step": 3}, "host.step must be [low, point, high] in seconds, rising, not 3"),
        ({"step": [3, 2, 1]}, "rising, not [3, 2, 1]"),
        ({"eager": "fast"}, "not 'fast'"),
        ({"launch": [0, 0, 0]}, "unknown key 'launch' of host; valid: eager, compiled, graph, step, pixel"),
    ],
)
def test_a_host_that_is_none_is_refused(change, told):
    with pytest.raises(InputError) as error:
        Host.of(VALUES | change)
    assert told in str(error.value)


def test_a_bound_has_no_time():
    with pytest.raises(InputError, match="'compulsory' is a bound"):
        times(runtime="compulsory")


def test_blocks_of_llama_cpp_take_the_rate_of_bf16_and_a_vector_kernel_for_a_row():
    found = {
        weights: times("llama_3_2_3b", "rtx_4090", NO_HOST, runtime="llama_cpp", precision={"weights": weights})
        for weights in ("bf16", "q4_k_m")
    }
    plain, blocks = (one.stages for one in found.values())
    assert blocks["prefill"].span.seconds == pytest.approx(plain["prefill"].span.seconds, rel=0.25)
    assert 2 < plain["decode"].span.seconds / blocks["decode"].span.seconds < 16 / 4.5


def test_unknown_factors_widen_and_keep_the_point():
    span = Span(0.8, 1.0, 1.25)
    wide = span.widened([Factor(0.8, 1.25)])
    assert wide.seconds == 1.0 and wide.low == pytest.approx(0.8**2**0.5) and wide.high == pytest.approx(1.25**2**0.5)
    assert span.widened([]) == pytest.approx(span)
    assert span.along(span) == pytest.approx(span * 2) and (span + span).high < span.along(span).high


def test_what_is_not_known_of_a_device_and_an_engine_is_named():
    [measured], [foreign], [processor] = (load_devices([name]) for name in ("h100_sxm", "mi300x", "xeon_8480"))
    assert len(of_device(measured)) == len(of_device(foreign)) == 1 and not of_device(processor)
    assert not of_engine("vllm") and not of_engine("flash") and of_engine("tensorrt_llm")["decode"].high > 2
    for factor in (*of_device(foreign), *of_engine("llama_cpp").values()):
        assert factor.low <= 1 <= factor.high


def test_an_engine_that_overlaps_hides_the_step_behind_the_device():
    serial = times(runtime="vllm", decode_steps=10, batch=64)
    beside = replace(serial, overlaps=True)
    hidden = serial.tpot.seconds - beside.tpot.seconds
    assert hidden == pytest.approx(HOST.step.seconds) and serial.ttft == beside.ttft


def test_a_model_that_does_not_fit_is_told_so_and_what_would_fix_it(capsys):
    asked = ["time", "llama_3_1_70b", "runtime=vllm", "prompt_tokens=1000"]
    assert cli.main([*asked, "device=rtx_4090"]) == 2
    error = capsys.readouterr().err
    assert "does not fit NVIDIA GeForce RTX 4090 (24 GB): it lacks 119 GB" in error and "what would fix it:" in error
    assert cli.main([*asked, "device=rtx_4090,mi300x"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first in error and second.startswith("llama_3_1_70b on AMD Instinct MI300X, vllm: TTFT")


@pytest.mark.parametrize(("name", "device", "low", "high"), [
    ("qwen3_14b", "a100_80gb", 2, 5), ("llama_2_7b", "a100_80gb", 1, 1.5),
    ("qwen3_14b", "h100_sxm", 1, 1), ("deepseek_v2_lite", "a100_80gb", 1, 1),
])  # fmt: skip
def test_heads_that_share_keys_do_so_beside_prompts_where_the_kernel_packs_them(name, device, low, high):
    """FlashAttention 2 packs none beside prompts: groups of five heads are dearer, a KV head for each hardly is."""
    from modelmeter.stations import unshared

    model, [on] = modelmeter.load_model(name), load_devices([device])
    times = Times(model, model.text(1000, decode_steps=100, runtime="vllm"), on, HOST, "vllm")
    assert low <= unshared(times, 64.0) <= high
    assert unshared(replace(times, engine="tensorrt_llm"), 64.0) == 1


@pytest.mark.parametrize(
    ("runtime", "runs", "refused"),
    [
        ("llama_cpp_metal", "apple_m3_max", "rtx_4090"),
        ("llama_cpp_cuda", "rx_7900_xtx", "apple_m3_max"),
        ("llama_cpp_sycl", "arc_140v", "h100_sxm"),
    ],
)
def test_a_backend_has_no_time_on_devices_that_it_does_not_run_on(runtime, runs, refused):
    given = {"runtime": runtime, "precision": {"weights": "q8_0"}}
    assert times(device=runs, **given).tpot.seconds > 0
    with pytest.raises(InputError, match=rf"runtime '{runtime}' does not run on {refused} \("):
        times(device=refused, **given)
