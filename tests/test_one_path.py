"""time, profile, sweeps and plan say the same of the same: one law of a step, one host, the same refusals."""

import pytest

import modelmeter
from modelmeter import cli, config, publish
from modelmeter.catalogue import load_devices, load_host
from modelmeter.errors import InputError
from modelmeter.folders import config_dir
from modelmeter.planned import planned
from modelmeter.plans.asked import Asked, Page
from modelmeter.plans.search import Search
from modelmeter.serving.targets import Targets
from modelmeter.sweep.answers import device_rows
from modelmeter.times import Times

HOST = load_host()
ENDS = ("low", "point", "high")
ASKED = {"prompt_tokens": 300, "decode_steps": 100, "runtime": "vllm"}


def request(name, **options):
    model = modelmeter.load_model(name)
    if model.planner is None:
        return model, model.text(700, decode_steps=200, **options)
    return model, model.workload(image_size="1000x700", prompt_tokens=10, decode_steps=200, **options)


@pytest.mark.parametrize(
    ("name", "device", "runtime"),
    [
        ("llama_3_1_8b", "h100_sxm", "vllm"),
        ("llama_3_1_8b", "mi300x", "eager"),
        ("llama_3_1_8b", "xeon_8480", "llama_cpp"),
        ("llama_3_1_8b", "xeon_8480", "openvino_stateful"),
        ("qwen3_30b_a3b", "h100_sxm", "llama_cpp"),
        ("paddleocr_vl", "h100_sxm", "vllm"),
        ("deepseek_ocr", "mi300x", "vllm"),
        ("deepseek_ocr", "rtx_4090", "eager"),
        ("deepseek_ocr", "xeon_8480", "openvino_stateful"),
    ],
)
def test_a_request_alone_takes_in_a_plan_what_time_says(name, device, runtime):
    """The point and both ends; steps of a plan are read from tables, in which TTFT is a point and TPOT lies between."""
    (model, work), [on] = request(name, runtime=runtime), load_devices([device])
    found = Times(model, work, on, HOST)
    asked = Asked.of_pages(model, [Page(work)])
    search = Search(asked, HOST, Targets(level="mean"), 1e-4, limits=(64,), host_threads=1)
    [offer] = search.run([on]).offers
    assert [offer.times("ttft_s", end).mean for end in ENDS] == pytest.approx(list(found.ttft), rel=2e-3)
    assert [offer.times("tpot_s", end).mean for end in ENDS] == pytest.approx(list(found.tpot), rel=0.015)


@pytest.fixture
def measured(tmp_path):
    """A device whose host was measured: a step of it takes a second."""
    path = tmp_path / "mine.yaml"
    path.write_text((config_dir() / "device" / "h100_sxm.yaml").read_text() + "host: {step: [1, 1, 1]}\n")
    return str(path)


def by_time(device, host):
    values = config.compose("time", ["model=llama_3_1_8b", *host])
    model, work = request("llama_3_1_8b", runtime="vllm")
    return Times(model, work, load_devices([device])[0], load_host(values["host"])).tpot.seconds


def by_profile(device, host, monkeypatch):
    seen = []

    def laid(recorded, times, stage):
        seen.append(times.tpot.seconds)
        raise InputError("seen")

    monkeypatch.setattr("modelmeter.profiled.read.read", lambda file: None)
    monkeypatch.setattr("modelmeter.profiled.beside.laid", laid)
    with pytest.raises(InputError, match="seen"):
        publish.profile_page("a.json", "llama_3_1_8b", [f"device={device}", "prompt_tokens=700", *host])
    return seen[0]


def by_sweep(device, host):
    fixed = ["sweep@_global_=devices", "model=llama_3_1_8b", *host]
    settings = publish._with_clock(config.compose("run_sweep", fixed) | {"device": [device]})
    model, work = request("llama_3_1_8b", runtime="vllm")
    [row] = device_rows(model, work, settings["device"], settings["host"], 0)
    return row["tpot_s"]


def by_plan(device, host):
    given = [f"devices=[{device}]", "prompt_tokens=700", "decode_steps=200", "load=0.001", "forms=[tp1]", *host]
    offer = planned(config.compose("plan", ["model=llama_3_1_8b", *given])).found.offers[0]
    return offer.times("tpot_s").mean


@pytest.mark.parametrize("command", ["time", "profile", "sweep", "plan"])
def test_a_host_that_is_given_stands_before_a_measured_one_in_every_command(command, measured, monkeypatch):
    def tpot(*host):
        if command == "profile":
            return by_profile(measured, host, monkeypatch)
        return {"time": by_time, "sweep": by_sweep, "plan": by_plan}[command](measured, host)

    assert tpot() > 1 and tpot("host.eager=[0,0,0]") > 1 > tpot("host.step=[0,0,0]")
    usual = "host.step=[0.2e-3,0.5e-3,1.2e-3]"  # said, though it is what configs/host.yaml says
    assert tpot(usual) < 1


@pytest.mark.parametrize("runtime", ["fused", "compulsory"])
def test_a_bound_has_no_time_wherever_it_is_asked_for(runtime, capsys):
    model, work = request("llama_3_1_8b", runtime=runtime)
    with pytest.raises(InputError, match=f"runtime '{runtime}' is a bound, and nothing that runs; it has no time"):
        Times(model, work, load_devices(["h100_sxm"])[0], HOST)
    given = ["llama_3_1_8b", "prompt_tokens=9", "decode_steps=9", f"runtime={runtime}"]
    for command in (["time", *given], ["plan", *given, "forms=[tp1]"]):
        assert cli.main(command) == 2 and f"runtime '{runtime}' is a bound" in capsys.readouterr().err


def test_activations_in_a_format_without_units_are_refused_and_weights_alone_are_told(capsys):
    given = ["llama_3_1_8b", "prompt_tokens=300", "decode_steps=50", "runtime=vllm"]
    eight = ["precision.weights=fp8", "precision.activations=fp8"]
    for command in (["time", "device=a100_40gb"], ["plan", "devices=[a100_40gb]", "forms=[tp1]"]):
        assert cli.main([command[0], *given, *command[1:], *eight]) == 2
        assert "a100_40gb multiplies no fp8 (it has bf16, tf32, int8); store weights alone" in capsys.readouterr().err
        assert cli.main([command[0], *given, *command[1:], "weights=fp8_channel"]) == 0
        assert "weights alone are stored so, products are in bf16" in capsys.readouterr().out


def test_a_pipeline_sends_the_residual_and_what_is_added_to_it_under_vllm():
    from modelmeter.splits import split

    model = modelmeter.load_model("llama_3_2_1b")
    crossed = {
        runtime: split(model, model.text(1000, decode_steps=24, runtime=runtime), "layers:8+8").crossings
        for runtime in ("flash", "vllm", "compile", "openvino_stateful")
    }
    told = {runtime: [(c.tensor, c.bytes) for c in found if c.stage == "prefill"] for runtime, found in crossed.items()}
    each = 1000 * 2048 * 2
    assert told["vllm"] == [("h[b s d]", each), ("normed[b s d]", each)]  # hidden states and residual, as vLLM sends
    assert told["compile"] == [("h[b s d]", each), ("cos[b s e]", 128_000), ("sin[b s e]", 128_000)]
    assert sorted(told["compile"]) == sorted(told["flash"])
    assert ("h[b s d]", 2 * each) in told["openvino_stateful"]
