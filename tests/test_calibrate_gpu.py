"""A GPU measured: the constants that a simulated one was made with are found again; the same code runs here on tensors.

What is simulated is the clock alone: sizes, order, time limit, fits and the device that comes of it are the real ones.
"""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from simulated_gpu import Simulated, properties

from modelmeter import InputError, load_model
from modelmeter.calibrate import facts, gpu, graphics, host, kernels, run
from modelmeter.calibrate.timing import FEWEST, Processor, Question, in_order
from modelmeter.catalogue import load_devices
from modelmeter.cli import main
from modelmeter.config import read_yaml
from modelmeter.device import Device
from modelmeter.folders import config_dir
from modelmeter.host import Host
from modelmeter.programs.precision import Precision
from modelmeter.seconds import seconds_of
from modelmeter.seconds.predict import lasting
from modelmeter.times import Times

WANTED = read_yaml(config_dir() / "calibrate.yaml")["cuda"]
CATALOGUE = load_devices()
SILENT = lambda text: None


def device(name):
    return next(one for one in CATALOGUE if one.name == name)


def calibrated(name, title=None, seconds=45.0, told=SILENT, **changes):
    """The device that comes of a simulated one, and the bench that it was measured on."""
    bench = Simulated(device(name), launch=2.0, stream=0.8, **changes)
    found = facts.facts_of(properties(device(name), title))
    return Device(name="mine", **gpu.measured(WANTED, found, CATALOGUE, "meta", bench, seconds, told)), bench


def unseen(form="bf16"):
    """Sizes that no calibration asks, as questions: products, attention, streams."""
    sizes = {"rows": [1, 3, 24, 100, 700, 3000], "shapes": [[2560, 2560], [6144, 2048], [3584, 18944], [32000, 4096]]}
    others = {
        "prompts": [[28, 4, 128, 700], [16, 8, 128, 3000]], "towers": [[2, 16, 72, 729]],
        "steps": [[28, 4, 128, 3000, 4], [32, 8, 128, 700]], "pointwise": [[300, 3584], [4000, 2560]],
    }  # fmt: skip
    return list(kernels.questions({"pool": 1e9, **sizes, **(others if form == "bf16" else {})}, form, "meta"))


def errors(mine, bench, form="bf16"):
    """Of predictions on the calibrated device beside what the simulated one takes."""
    for question in unseen(form):
        law, truth = gpu.LAWS[question.law], bench.seconds(question)
        answer = SimpleNamespace(question=question)
        found = lasting(law.name, form, gpu._work([answer], mine), mine)
        yield abs(float(found.parts.seconds[0]) / truth - 1)


@pytest.mark.parametrize(
    ("name", "title"), [("h100_sxm", "NVIDIA H100 80GB HBM3"), ("l40s", "NVIDIA L40S"), ("l40s", "NVIDIA X99")]
)
def test_changes_of_a_device_are_found_again(name, title):
    mine, bench = calibrated(name, title)
    every = [*errors(mine, bench), *errors(mine, bench, "fp8"), *errors(mine, bench, "fp32")]
    assert np.median(every) < 0.015 and np.quantile(every, 0.95) < 0.06
    moved = mine.memory_bytes_per_s * mine.laws["stream"]["stream"]
    assert moved == pytest.approx(0.8 * device(name).memory_bytes_per_s * known(name, "product")["stream"], rel=0.03)
    before, after = (one["launch"] + one["fill"] for one in (known(name, "product"), mine.laws["stream"]))
    cycles = mine.clock_hz / device(name).clock_hz
    assert after == pytest.approx((before + known(name, "product")["launch"]) * cycles, rel=0.05)


def test_a_device_unlike_all_that_is_known_is_found():
    truth = replace(device("a100_80gb"), architecture="Ada")
    bench, found = Simulated(truth), facts.facts_of(properties(truth, "NVIDIA X99"))
    content = gpu.measured(WANTED, found, CATALOGUE, "meta", bench, 20.0, SILENT)
    mine, bare = Device(name="mine", **content), Device(name="bare", **content | {"laws": {}})
    assert np.median(list(errors(mine, bench))) < 0.02 and np.median(list(errors(bare, bench))) > 0.15


def known(name, law):
    return gpu.constants_of({"product": gpu.PRODUCT}[law], device(name), "bf16").constants


def test_little_time_leaves_a_usable_device():
    mine, bench = calibrated("l40s", seconds=2.0)
    assert bench.now < 2.5 and bench.many < 400
    assert {"product", "stream", "prefill", "vision", "decode"} == set(mine.laws["measured"].split())
    assert np.median(list(errors(mine, bench))) < 0.05


def test_the_time_is_kept_and_progress_told():
    told = []
    _, bench = calibrated("l40s", seconds=30.0, told=told.append)
    assert 30 <= bench.now < 31 and len(told) >= 3 and any("s left" in text for text in told)


def test_what_a_gpu_lacks_is_left_out_and_told_once():
    told = []
    mine, _ = calibrated("l40s", seconds=10.0, told=told.append, fails=("fp8",))
    assert "fp8" not in mine.laws["product"]["variants"] and "fp16" in mine.laws["product"]["variants"]
    assert [text for text in told if "fp8" in text] == [
        f"{law} in fp8 cannot be asked: no kernel for fp8" for law in ("vector", "matrix")
    ]


def test_each_law_comes_early():
    every = in_order(gpu.questions(WANTED, "meta"))
    kinds = {(question.law, question.variant) for question in every}
    assert {(question.law, question.variant) for question in every[: FEWEST * len(kinds)]} == kinds
    rows = [question.work["m"] for question in every if (question.law, question.variant) == ("matrix", "bf16")]
    assert (rows[0], rows[1]) == (WANTED["rows"][1], WANTED["rows"][-1])


@pytest.mark.parametrize(
    ("title", "multiprocessors", "memory", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 132, 85.0e9, "h100_sxm"),
        ("NVIDIA H100 PCIe", 114, 85.0e9, "h100_pcie"),
        ("NVIDIA H100 NVL", 132, 100.0e9, "h100_nvl"),
        ("NVIDIA A100-SXM4-40GB", 108, 42.4e9, "a100_40gb"),
        ("NVIDIA A100-PCIE-40GB", 108, 42.4e9, "a100_40gb_pcie"),
        ("NVIDIA A100 80GB PCIe", 108, 85.0e9, "a100_80gb_pcie"),
        ("NVIDIA GeForce RTX 4090", 128, 25.4e9, "rtx_4090"),
        ("Tesla T4", 40, 15.8e9, "t4"),
        ("NVIDIA RTX 6000 Ada Generation", 142, 51.0e9, "rtx_6000_ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 188, 102.0e9, "rtx_pro_6000_workstation"),
        ("AMD Instinct MI300X", 304, 206.0e9, "mi300x"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, 17.2e9, None),
        ("NVIDIA X99", 128, 25.4e9, None),
    ],
)
def test_a_device_is_found_by_what_torch_tells(title, multiprocessors, memory, name):
    told = SimpleNamespace(
        name=title, major=9, minor=0, multi_processor_count=multiprocessors, total_memory=memory, L2_cache_size=1
    )
    found = facts.known_of(facts.facts_of(told), CATALOGUE)
    assert (found.name if found else None) == name


def test_where_a_figure_comes_from_is_said():
    clocks = {"clock_rate": 2520000, "memory_clock_rate": 9001000, "memory_bus_width": 384}
    found = facts.facts_of(properties(device("l40s"), "NVIDIA X99", **clocks))
    assert found.memory_bytes_per_s == pytest.approx(864e9, rel=1e-3) and found.clock_hz == 2.52e9
    values, where = facts.figures(found, None, {"bf16": 3e14, "fp32": 6e13, "memory": 7e11, "link": 2e10})
    assert values["memory_bytes_per_s"] == pytest.approx(found.memory_bytes_per_s, rel=1e-3)
    assert values["tensor_flops_per_s"] == 3e14
    assert values["cuda_flops_per_s"] == pytest.approx(2 * 128 * 142 * 2.52e9, rel=1e-3)
    measured, told = where.split("; ")
    assert values["host_link_bytes_per_s"] == 2e10
    assert "tensor_flops_per_s" in measured and "clock_hz" in told and "memory_bytes_per_s" in told
    values, where = facts.figures(found, device("l40s"), {"bf16": 3e14, "memory": 7e11, "link": 2e10})
    assert values["tensor_flops_per_s"] == device("l40s").tensor_flops_per_s and "as of l40s" in where
    assert values["host_link_bytes_per_s"] == 2e10


def test_a_device_predicts_models_and_survives_its_yaml(tmp_path):
    mine, _ = calibrated("h100_sxm", "NVIDIA H100 80GB HBM3", seconds=10.0)
    content = {key: value for key, value in vars(mine).items() if key != "name" and value is not None}
    path = tmp_path / "mine.yaml"
    path.write_text(run.text_of(content, "modelmeter calibrate --device cuda"), encoding="utf-8")
    [read] = load_devices([str(path)])
    assert read.laws == mine.laws and read.host == mine.host
    model = load_model("qwen2_0_5b")
    work = model.text(200, decode_steps=10, runtime="sdpa")
    slower, catalogue = (
        Times(model, work, one, Host.of(HOST).on(one)).stages["decode"] for one in (read, device("h100_sxm"))
    )
    assert slower.device.seconds > catalogue.device.seconds


HOST = read_yaml(config_dir() / "host.yaml")["host"]


def test_launches_of_a_gpu_are_those_that_made_the_steps():
    mine, _ = calibrated("l40s", seconds=5.0)

    def step(sizes):
        model = host.model_of({**host.CONFIG, **dict(zip(host.NAMES, sizes, strict=True))})
        tokens, steps = SETTINGS["host_calls"]
        work = model.text(tokens, decode_steps=steps, runtime="sdpa", precision=Precision.of("bf16"))
        many = sum(float(k.runs) for k, _ in Times(model, work, mine, Host.of(host.FREE)).stages["decode"].kernels)
        return 4e-4 + 6e-6 * many

    found = host.host_of(mine, SETTINGS, "bf16", step)
    assert found["eager"][:2] == pytest.approx([6e-6, 6e-6], rel=0.01) and found["step"][1] == pytest.approx(
        4e-4, rel=0.01
    )


SETTINGS = {**read_yaml(config_dir() / "calibrate.yaml"), **WANTED}


def test_the_same_code_runs_on_tensors():
    small = {
        "formats": ["fp32", "bf16"], "pool": 4e6, "levels": [3e4, 1e6], "rows": [1, 8, 32, 64], "links": [1e5],
        "shapes": [[64, 64], [128, 64]], "prompts": [[4, 2, 32, 16], [2, 2, 32, 64], [4, 4, 32, 8], [4, 2, 32, 40]],
        "steps": [[4, 2, 32, 16], [4, 2, 32, 64, 4]], "towers": [[1, 2, 32, 16]], "pointwise": [[16, 64]], "scores": [],
    }  # fmt: skip
    found = facts.facts_of(properties(device("l40s"), "a processor"))
    content = gpu.measured(small, found, CATALOGUE, "cpu", Processor(1), 1.0, SILENT)
    mine = Device(name="mine", **content)
    assert set(mine.laws["measured"].split()) == {"product", "stream", "prefill"}
    model = load_model("qwen2_0_5b")
    work = model.text(20, decode_steps=2, runtime="sdpa")
    assert all(one.seconds > 0 for one in seconds_of(model.kernels("decode", work), mine))


class Pretended:
    """torch.cuda as far as a bench needs it: an event is a look at a clock, a graph what was run under it."""

    def __init__(self, each):
        self.now, self.each, self.graphs = 0.0, each, []

    def ran(self):
        self.now += self.each

    def Event(self, enable_timing):
        event = SimpleNamespace(at=0.0, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event

    def CUDAGraph(self):
        graph = SimpleNamespace(nodes=0)
        graph.replay = lambda: setattr(self, "now", self.now + graph.nodes * self.each)
        self.graphs.append(graph)
        return graph

    @contextmanager
    def graph(self, graph):
        before = self.now
        yield
        graph.nodes, self.now = round((self.now - before) / self.each), before

    synchronize = staticmethod(lambda: None)


@pytest.mark.parametrize(("each", "nodes"), [(1e-6, 500), (1e-4, 20), (5e-3, 1)])
def test_a_bench_times_nodes_of_a_graph(each, nodes, monkeypatch):
    cuda, ready = Pretended(each), []
    monkeypatch.setattr(graphics.torch, "cuda", cuda)
    question = Question("levels", "bf16", {}, lambda i: ready.append(i) or cuda.ran)
    calls = graphics.Graphics().calls(question, 7, 3)
    assert [call.seconds for call in calls] == pytest.approx([each] * 3, rel=1e-6)
    assert [graph.nodes for graph in cuda.graphs] == [nodes] and ready == [7, *range(7, 7 + nodes)]


def test_without_a_gpu_there_is_a_sentence(tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["calibrate", "--device", "cuda", "-o", str(tmp_path / "mine.yaml")]) == 1
    err = capsys.readouterr().err
    assert "torch finds no GPU here" in err and err.count("\n") == 1
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        run.calibrated(device="tpu")
    with pytest.raises(InputError, match="unknown engine 'llama_cpp'"):
        run.calibrated("llama_cpp", device="cuda")
