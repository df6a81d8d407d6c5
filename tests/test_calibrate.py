"""A user's own machine: its laws, what they refuse, and models that it runs beside what is predicted for them.

Times are compared as ratios and never by themselves; a machine that others use is asked twice.
"""

from dataclasses import replace
from statistics import median

import numpy as np
import pytest

pytest.importorskip("gguf")

from calibrated import LLAMA_CPP, TRANSFORMERS, llama_cpp, transformers

from modelmeter import InputError, load_model
from modelmeter.calibrate import fits, machine, run
from modelmeter.calibrate.llama_cpp import Row, _amounts, fitted_rows
from modelmeter.calibrate.llama_files import decoder
from modelmeter.calibrate.timing import Call, Processor, Question, asked, undisturbed
from modelmeter.catalogue import load_devices
from modelmeter.cli import main
from modelmeter.config import read_yaml
from modelmeter.device import Device
from modelmeter.folders import config_dir
from modelmeter.host import Host
from modelmeter.programs.precision import Precision
from modelmeter.seconds import seconds_of
from modelmeter.seconds.processor import SUMS, amounts_of, ramp
from modelmeter.times import Times

LOOSE = 0.35
"""Median error that no machine may exceed; docs/calibrate.md tells what a quiet one has."""
LEVELS = {1e4: 2e10, 1e6: 1e10}
LAWS = {
    name: {"fp32": {term.name: term.start for term in law.terms} | {"error": 0.1, "low": 0.9, "high": 1.2}}
    for name, law in SUMS.items()
}
LAWS["stream"]["fp32"] |= {"levels": LEVELS}
DEVICE = Device(
    "mine", "Mine", 1e11, 1e11, 1e10, 1e10, "a test", architecture="CPU",
    laws={"engine": "torch", "runtimes": "eager sdpa flash", **LAWS}, host={"eager": [1e-6, 2e-6, 3e-6]},
)  # fmt: skip
HOST = read_yaml(config_dir() / "host.yaml")["host"]


def work(model, precision="fp32", runtime="sdpa", **more):
    return model.text(100, decode_steps=10, runtime=runtime, precision=Precision.of(precision), **more)


@pytest.fixture(scope="module")
def small():
    return decoder((256, 512, 2, 4, 2, 512))


@pytest.mark.parametrize("name", SUMS)
def test_a_fit_finds_the_constants_that_made_the_seconds(name):
    law, random = SUMS[name], np.random.default_rng(0)
    amounts = {term.name: random.uniform(0.1, 10, 60) * 1e-5 / term.start for term in law.terms}
    truth = {term.name: term.start * random.uniform(0.3, 3) for term in law.terms}
    found = fits.constants_of(law, amounts, sum(law.seconds(truth, amounts).values()))
    assert found["error"] == 0 and {term.name for term in law.terms} < found.keys()
    assert all(found[key] == pytest.approx(value, rel=0.02) for key, value in truth.items())


def test_terms_add_up_and_the_interval_holds_the_point(small):
    for stage in ("prefill", "decode"):
        kernels = small.kernels(stage, work(small))
        for kernel, found in zip(kernels, seconds_of(kernels, DEVICE), strict=True):
            [(law, variant, share, amounts)] = amounts_of(kernel, LEVELS if found.law == "stream" else {})
            assert (law.name, share) == (found.law, 1.0) and variant in ("fp32", "")
            told = sum(law.seconds({term.name: term.start for term in law.terms}, amounts).values())
            assert found.seconds == pytest.approx(float(told)) and found.low < found.seconds < found.high


def test_one_row_has_another_law_than_several(small):
    laws = {
        stage: {e.law for e in seconds_of(small.kernels(stage, work(small)), DEVICE)} for stage in ("prefill", "decode")
    }
    assert laws == {"prefill": {"matrix", "attention", "stream"}, "decode": {"vector", "step", "stream"}}
    assert {e.law for e in seconds_of(small.kernels("prefill", work(small, runtime="eager")), DEVICE)} == {
        "matrix",
        "batched",
        "stream",
    }


def test_sizes_of_several_batches_are_those_of_each(small):
    program = small.program("decode", work(small))
    kernels = program.kernels(b=np.array([1.0, 4.0]), t=np.array([50.0, 90.0]))
    alone = [program.kernels(b=b, t=t) for b, t in ((1, 50), (4, 90))]
    for i, found in enumerate(seconds_of(kernels, DEVICE)):
        for at in (0, 1):
            one = seconds_of(alone[at], DEVICE)[i]
            assert np.broadcast_to(found.seconds, 2)[at] == pytest.approx(one.seconds)


def test_a_ramp_is_even_between_its_sizes_and_flat_beyond():
    assert ramp(LEVELS, 1e5) == pytest.approx((2e10 * 1e10) ** 0.5)
    assert [float(ramp(LEVELS, moved)) for moved in (1.0, 1e9)] == pytest.approx([2e10, 1e10])


def test_a_processor_launches_and_computes_in_turn(small):
    stage = Times(small, work(small), DEVICE, Host.of(HOST).on(DEVICE)).stages["decode"]
    assert stage.span.seconds == pytest.approx(stage.device.seconds + stage.launches.seconds + stage.step.seconds)
    assert stage.launches.seconds == pytest.approx(2e-6 * sum(float(kernel.runs) for kernel, _ in stage.kernels))


def test_the_host_of_a_device_stands_before_the_configured_one_and_behind_what_is_given():
    assert Host.of(HOST).on(DEVICE).eager.seconds == 2e-6
    assert list(Host.of(HOST).on(DEVICE).step) == HOST["step"]
    assert list(Host.of(HOST, ["eager"]).on(DEVICE).eager) == HOST["eager"]


def test_what_was_not_measured_is_refused(small):
    with pytest.raises(
        InputError, match="was not measured for norms, pointwise work, copies and look-ups in bf16; it was in fp32"
    ):
        seconds_of(small.kernels("prefill", work(small, "bf16")), DEVICE)
    with pytest.raises(InputError, match="was measured with torch, for runtime eager sdpa flash, not 'llama_cpp'"):
        Times(small, work(small, "q8_0", "llama_cpp"), DEVICE, Host.of(HOST).on(DEVICE))
    few = replace(DEVICE, laws={key: law for key, law in DEVICE.laws.items() if key != "batched"})
    with pytest.raises(
        InputError, match="products of activations with each other, many at once in fp32; it was in none"
    ):
        seconds_of(small.kernels("prefill", work(small, runtime="eager")), few)


def test_calls_that_another_program_disturbed_are_left_out():
    assert undisturbed([Call(1.0, 0.99), Call(3.0, 0.4), Call(1.2, 0.95)]) == [1.0, 1.2]
    assert undisturbed([Call(2.0, 0.5), Call(4.0, 0.25)]) == [1.0, 1.0]


def test_every_question_is_asked_and_dear_ones_once():
    asks = []
    short = Question("vector", "fp32", {}, lambda i: lambda: asks.append("short"))
    long = Question("matrix", "fp32", {}, lambda i: lambda: (asks.append("long"), sum(range(1_000_000))))
    found = asked([short, long], 0.5, Processor(1), lambda text: None)
    assert [answer.question for answer in found] == [short, long] and asks.count("long") == 1 < asks.count("short")


def test_the_last_cache_is_where_a_ramp_falls_to_what_the_memory_moves():
    assert machine.last_cache({1e5: 5e10, 1e6: 3e10, 1e7: 1.1e10, 1e8: 1e10}) == 1e6


def test_stages_that_an_engine_ran_tell_the_constants_of_all_laws():
    truth = {"vector": 8e-11, "columns": 1e-8, "cached": 2e-10, "near": 3e-11, "operations": 2e-10, "attention": 4e-11}
    rows = []
    for policy, wide in (("q8_0", 1.0), ("f16", 2.0)):
        for sizes in ((256, 512, 4, 4, 2, 512), (768, 2048, 3, 12, 4, 4096), (512, 4096, 2, 8, 8, 2048)):
            model = decoder(sizes)
            for tokens in (32, 128, 400):
                asks = model.text(tokens, decode_steps=24, runtime="llama_cpp", precision=Precision.of(policy))
                for stage in ("prefill", "decode"):
                    kernels = model.kernels(stage, asks)
                    amounts, many = _amounts(kernels), sum(float(k.runs) for k in kernels)
                    value = lambda key: {"vector": wide * 8e-11, "matrix": wide * 2e-11}.get(
                        key.split("/")[0], truth.get(key.split("/")[0], 0.0)
                    )
                    of = lambda key: truth.get(key.split("/")[2], value(key))
                    rows.append(
                        Row(stage, amounts, many, sum(of(k) * a for k, a in amounts.items()) + 1e-6 * many + 2e-4)
                    )
    laws, host = fitted_rows(rows)
    assert laws["vector"].keys() == laws["matrix"].keys() == {"q8_0", "fp16"}
    assert all(one["error"] < 0.01 for law in laws.values() for one in law.values())
    assert host.keys() == {"compiled", "graph", "native"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-o", "mine.txt"], "must be a .yaml file in a folder that is there"),
        (["-o", "mine.yaml", "--device", "tpu"], "unknown device 'tpu'"),
        (["-o", "mine.yaml", "--engine", "onnx"], "unknown engine 'onnx'; valid: llama_cpp, torch"),
        (["-o", "mine.yaml", "--formats", "fp33"], "unknown format 'fp33'"),
        (["-o", "mine.yaml", "--threads", "0"], "--threads must be 1 to 1024"),
        ([], "-o/--out"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence(arguments, told, capsys):
    assert main(["calibrate", *arguments]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


@pytest.fixture
def mine(tmp_path):
    """What a short calibration of this machine writes, as any command takes it."""

    def made(**options):
        path = tmp_path / "mine.yaml"
        content = run.calibrated(**options)
        path.write_text(run.text_of(content, "modelmeter calibrate"), encoding="utf-8")
        return path

    return made


def near(predictions):
    """Whether predictions are near enough, on the first attempt or the second."""
    for attempt in (1, 2):
        pairs = predictions()
        error = median(pair.error for pair in pairs)
        if error < LOOSE or attempt == 2:
            assert error < LOOSE, [pair for pair in pairs if pair.error > LOOSE]
            return pairs


def test_transformers_on_this_processor_are_predicted(mine, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    paths = []
    try:

        def predictions():
            paths.append(mine(seconds=20, formats=["fp32"]))
            [device] = load_devices([str(paths[-1])])
            return list(transformers(device, {name: TRANSFORMERS[name] for name in ("30M", "deep and narrow", "110M")}))

        pairs = near(predictions)
    finally:
        torch.set_num_threads(before)
    assert {(pair.stage, pair.tokens) for pair in pairs} == {(s, t) for s in ("prefill", "decode") for t in (48, 200)}
    keys = [
        f"device={paths[-1]}",
        "runtime=sdpa",
        "prompt_tokens=100",
        "decode_steps=10",
        "precision.weights=fp32",
        "precision.activations=fp32",
        "precision.kv=fp32",
    ]
    assert main(["time", "qwen2_0_5b", *keys]) == 0
    assert "1 thread, torch" in capsys.readouterr().out


def test_llama_cpp_on_this_processor_is_predicted(mine):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    shipped = read_yaml(config_dir() / "calibrate.yaml")["llama_cpp"]
    shorter = {**shipped, "decoders": {"q8_0": shipped["decoders"]["q8_0"]}, "prompts": [32, 200]}

    def predictions():
        [device] = load_devices([str(mine(engine="llama_cpp", seconds=20, settings={"llama_cpp": shorter}))])
        return list(llama_cpp(device, {"100M": LLAMA_CPP["100M"]}, ["q8_0"]))

    near(predictions)


def test_a_processor_of_the_catalogue_has_no_laws_of_its_own():
    assert all(
        seconds_of(
            load_model("qwen2_0_5b").kernels("decode", work(load_model("qwen2_0_5b"))), *load_devices(["xeon_8480"])
        )
    )
