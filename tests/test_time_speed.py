"""Many workloads are timed at once: what comes out is that of each alone, in far less time. Times are compared in one run."""

from dataclasses import replace
from time import process_time

import numpy as np
import pytest

import modelmeter
from modelmeter.catalogue import load_devices, load_host
from modelmeter.errors import InputError
from modelmeter.seconds import seconds_of
from modelmeter.seconds.timer import Timer
from modelmeter.stations import Stations
from modelmeter.times import Times, mean

HOST = load_host()
POINTS = 12
SUBJECTS = [
    ("deepseek_ocr", "h100_sxm", {"runtime": "vllm"}),
    ("deepseek_ocr", "a100_40gb", {"runtime": "eager", "precision": {"weights": "int8"}}),
    ("llama_3_1_8b", "rtx_4090", {"runtime": "vllm", "parallel": {"tensor": 2}, "precision": {"kv": "fp8"}}),
    ("qwen3_30b_a3b", "h100_sxm", {"runtime": "vllm", "parallel": {"tensor": 2, "data": 2, "expert": 4}}),
    ("gpt_oss_20b", "mi300x", {"runtime": "vllm"}),
    ("gemma_2_2b", "l4", {"runtime": "llama_cpp", "precision": {"weights": "q4_k_m"}}),
    ("deepseek_v2_lite", "rtx_pro_6000_server", {"runtime": "sdpa"}),
    ("nougat_base", "l40s", {"runtime": "compile"}),
]


def workloads(name, points, seed=0, **options):
    """A model, one workload of arrays, and those of its points."""
    rng, model = np.random.default_rng(seed), modelmeter.load_model(name)
    sizes = {"batch": rng.integers(1, 40, points), "decode_steps": rng.choice([1, 2, 5, 9, 10, 37, 400], points)}
    sizes["prompt_tokens"] = rng.integers(1, 5000, points)
    if name == "deepseek_ocr":
        sizes |= {"rows": rng.integers(2, 4, points), "columns": rng.integers(1, 4, points)}

    def of(values):
        values = dict(values)
        if "rows" in values:
            return model.workload(grid=(values.pop("rows"), values.pop("columns")), **values, **options)
        if model.planner:
            return model.workload(**values, **options)
        return model.text(values.pop("prompt_tokens"), **values, **options)

    each = [of({key: int(values[i]) for key, values in sizes.items()}) for i in range(points)]
    return model, of(sizes), each


def seconds_taken(call, repeats=3):
    """The least seconds of the CPU of some calls."""
    taken = []
    for _ in range(repeats):
        start = process_time()
        call()
        taken.append(process_time() - start)
    return min(taken)


@pytest.mark.parametrize("name, device, options", SUBJECTS)
def test_many_workloads_at_once_take_what_each_takes_alone(name, device, options):
    model, many, each = workloads(name, POINTS, **options)
    [on] = load_devices([device])
    together, alone = Times(model, many, on, HOST), [Times(model, one, on, HOST) for one in each]
    for quantity in ("ttft", "tpot", "request", "images"):
        for end in ("low", "seconds", "high"):
            found = getattr(getattr(together, quantity), end) * np.ones(POINTS)
            expected = [getattr(getattr(one, quantity), end) for one in alone]
            np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=f"{quantity} {end}")
    np.testing.assert_allclose(together.bound * np.ones(POINTS), [one.bound for one in alone], rtol=1e-12)


@pytest.mark.parametrize("varying", [("batch",), ("prompt_tokens",), ("decode_steps",), ("batch", "decode_steps")])
def test_any_of_the_sizes_may_be_an_array(varying):
    model, [on] = modelmeter.load_model("llama_3_2_1b"), load_devices(["l40s"])
    sizes = {"batch": [1, 3, 17], "prompt_tokens": [10, 999, 4000], "decode_steps": [1, 30, 700]}

    def times(choose):
        told = {key: choose(np.array(values)) if key in varying else values[1] for key, values in sizes.items()}
        return Times(model, model.text(told.pop("prompt_tokens"), runtime="vllm", **told), on, HOST)

    together = times(lambda values: values)
    for i in range(3):
        alone = times(lambda values: int(values[i]))
        for quantity in ("ttft", "tpot", "request"):
            found = np.broadcast_to(getattr(together, quantity).seconds, 3)[i]
            assert found == pytest.approx(getattr(alone, quantity).seconds, rel=1e-12)


@pytest.mark.parametrize("name, device, options", SUBJECTS)
def test_a_stage_takes_what_its_kernels_take_one_by_one(name, device, options):
    model, _, [one] = workloads(name, 1, **options)
    found = Times(model, one, load_devices([device])[0], HOST)
    for stage in found.stages.values():
        kernels = [kernel for kernel, _ in stage.kernels]
        told = sum(mean(kernel.runs * np.asarray(estimate.seconds)) for kernel, estimate in stage.kernels)
        again = zip(kernels, seconds_of(kernels, found.on), strict=True)
        alone = sum(mean(kernel.runs * np.asarray(estimate.seconds)) for kernel, estimate in again)
        assert stage.device.seconds == pytest.approx(told, rel=1e-12) and told == pytest.approx(alone, rel=1e-9)
        assert stage.runs == pytest.approx(sum(mean(kernel.runs) for kernel in kernels))


def test_steps_of_stations_take_what_times_tell():
    model, _, each = workloads("llama_3_1_8b", 6, runtime="vllm")
    [device] = load_devices(["h100_sxm"])
    steps = Stations(Times(model, each[0], device, HOST)).step_times()
    for one in (replace(work, decode_steps=1) for work in each):
        decode = steps.decode(np.array([one.batch]), np.array([one.prompt_tokens + 1]))
        assert decode == pytest.approx(Times(model, one, device, HOST).tpot.seconds)
        prefill = steps.prefill(np.array([one.prompt_tokens]), np.array([0]))
        assert prefill == pytest.approx(Times(model, replace(one, batch=1), device, HOST).ttft.seconds)


def test_a_new_workload_is_asked_without_looking_at_kernels_again():
    _, _, each = workloads("deepseek_ocr", 8, runtime="vllm")
    [device], model = load_devices(["h100_sxm"]), replace(modelmeter.load_model("deepseek_ocr"))
    asked = iter([replace(each[0], prompt_tokens=each[0].prompt_tokens + i) for i in range(20)])
    first = seconds_taken(lambda: Times(model, next(asked), device, HOST).request, repeats=1)
    assert seconds_taken(lambda: Times(model, next(asked), device, HOST).request, repeats=9) < first / 8


def test_a_thousand_workloads_take_no_longer_than_sixty_alone():
    model, many, each = workloads("deepseek_ocr", 1000, runtime="vllm")
    [device] = load_devices(["h100_sxm"])
    asked = iter(each)
    alone = seconds_taken(lambda: Times(model, next(asked), device, HOST).request, repeats=15)
    assert seconds_taken(lambda: Times(model, many, device, HOST).request) < 60 * alone


def test_kernels_are_asked_once_for_each_number_of_tokens():
    model, _, [one] = workloads("llama_3_2_1b", 1, runtime="vllm")
    kernels = Timer(model.program("prefill", one).formal_kernels)
    tokens, attention, head = (("b", "s"),), (("b",), ("s",)), (("b",),)
    assert {block.variables for block in kernels.blocks} == {tokens, attention, head}
    [of_tokens] = (block for block in kernels.blocks if block.variables == tokens)
    assert len(kernels.entries) - 2 > sum(len(part.runs) for part in of_tokens.parts([64])) > len(kernels.entries) / 2


def test_a_grid_costs_less_than_as_many_workloads_at_random():
    model, many, _ = workloads("llama_3_2_1b", 4000, runtime="vllm")
    [device] = load_devices(["h100_sxm"])
    batch, prompt, steps = (x.reshape(-1) for x in np.meshgrid(np.arange(1, 11), np.arange(1, 21), np.arange(1, 21)))
    grid = model.text(100 * prompt, batch=batch, decode_steps=50 * steps, runtime="vllm")
    taken = [seconds_taken(lambda work=work: Times(model, work, device, HOST).request) for work in (grid, many)]
    assert taken[0] < taken[1] / 1.5


def test_what_is_told_of_one_workload_alone_is_refused_for_many():
    model, many, _ = workloads("llama_3_2_1b", 3, runtime="vllm")
    [device] = load_devices(["h100_sxm"])
    with pytest.raises(InputError, match="kernels are told of one workload"):
        _ = Times(model, many, device, HOST).stages["decode"].kernels
    with pytest.raises(InputError, match=r"must have one shape, not \(2,\) and \(3,\)"):
        Times(model, replace(many, batch=np.array([1, 2])), device, HOST)
