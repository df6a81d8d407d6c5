"""What holds of every prediction, whatever the model, the device and the runtime: of cases drawn at random."""

import math
import random

import numpy as np
import pytest

import modelmeter
from modelmeter.catalogue import load_devices, load_host
from modelmeter.times import Times

HOST = load_host()
MODELS = ("gemma_3_1b", "gpt_oss_20b", "llama_3_2_1b", "nougat_small", "paddleocr_vl", "qwen3_30b_a3b")
DEVICES = ("apple_m1_max", "arc_140v", "h100_sxm", "l40s", "mi300x", "p40", "radeon_890m", "rtx_4090", "xeon_6980p")
RUNTIMES = ("eager", "sdpa", "flash", "compile", "vllm")


def drawn(seed):
    """A case: model, device, runtime, formats and sizes."""
    rng = random.Random(seed)
    kv, weights = rng.choice([None, "fp8"]), rng.choice([None, None, "int8", "fp8"])
    precision = {role: form for role, form in (("weights", weights), ("kv", kv)) if form}
    sizes = {"batch": rng.choice([1, 4, 33, 64]), "prompt_tokens": rng.choice([1, 9, 513, 6000])}
    steps = rng.choice([1, 10, 300])
    return MODELS[seed % len(MODELS)], rng.choice(DEVICES), rng.choice(RUNTIMES), precision, sizes, steps


@pytest.mark.parametrize("seed", range(24))
def test_bounds_intervals_and_growth(seed):
    name, device, runtime, precision, sizes, steps = drawn(seed)
    model, [on] = modelmeter.load_model(name), load_devices([device])

    def timed(**changed):
        asked = {**sizes, **changed, "decode_steps": steps, "runtime": runtime, "precision": precision}
        image = {"image_size": "1000x1400"} if model.planner else {}
        return Times(model, model.workload(**image, **asked), on, HOST)

    found = timed()
    for stage in found.stages.values():
        assert 0 < stage.bound <= stage.device.low * (1 + 1e-9)
        assert stage.device.low <= stage.device.seconds <= stage.device.high < math.inf
        for kernel, one in stage.kernels:
            assert np.all(np.asarray(one.seconds) >= np.asarray(one.roofline) * (1 - 1e-9)), kernel.path
    for more in (timed(batch=sizes["batch"] * 2), timed(prompt_tokens=sizes["prompt_tokens"] + 1000)):
        for end in ("low", "seconds", "high"):
            assert getattr(more.tpot, end) >= getattr(found.tpot, end) * (1 - 1e-3)
            assert getattr(more.ttft, end) >= getattr(found.ttft, end) * (1 - 1e-3)


def test_the_bound_counts_what_a_mask_and_the_runtime_leave():
    model, [device] = modelmeter.load_model("llama_3_2_1b"), load_devices(["h100_sxm"])
    bounds = [
        Times(model, model.text(100_000, runtime=runtime, **options), device, HOST).bound_of("prefill")
        for runtime, options in (("vllm", {}), ("vllm", {"causal": "exact", "logits": "last"}), ("flash", {}))
    ]
    assert bounds[0] == bounds[1] < bounds[2]
