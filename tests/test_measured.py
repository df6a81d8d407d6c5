"""Rows of measurements become questions, every one is answered or refused with a reason."""

import csv
import re

import pytest

from modelmeter import cli
from modelmeter.catalogue import load_devices, load_host
from modelmeter.config import load_model
from modelmeter.errors import InputError
from modelmeter.folders import config_names
from modelmeter.host import Span
from modelmeter.measured.engines import NEWEST, engines, policy_of, version_of
from modelmeter.measured.predict import predicted
from modelmeter.measured.rows import SHIPPED, names, question, read
from modelmeter.measured.score import score_text, scored
from modelmeter.measured.texts import Load
from modelmeter.times import Times

ROWS = {row["id"]: row for row in read()}
ASKED = dict.fromkeys(("id", "category", "model", "quant", "engine", "hardware", "n_gpu", "batch_or_conc", "input_tok", "output_tok", "image_mode", "metric", "value", "unit", "source"), "") | {"model": "Llama-3.1-8B-Instruct", "quant": "BF16", "engine": "vLLM 0.9", "hardware": "NVIDIA H100 80GB HBM3",
     "input_tok": "1,024", "output_tok": "128", "metric": "ttft_p50", "value": "25", "unit": "ms", "category": "LLM"}  # fmt: skip


def asked(**changes):
    return question(ASKED | changes, names()["devices"])


def test_names_stand_for_what_is_there():
    for kind, group in (("models", "model"), ("engines", "runtime"), ("devices", "device")):
        assert set(names()[kind].values()) - {None} <= set(config_names(group)), kind
        assert all(re.compile(pattern) for pattern in names()[kind])


@pytest.mark.parametrize("name", [n for n in config_names("device") if n != "gb200"])
def test_a_device_is_found_by_its_own_title_or_by_none_of_the_patterns(name):
    [device] = load_devices([name])
    found = [known for pattern, known in names()["devices"].items() if re.search(pattern, device.title, re.IGNORECASE)]
    assert not found or found[0] == name, (device.title, found)


def test_a_row_becomes_a_question():
    found = asked()
    assert (found.model, found.runtime, found.device, found.devices) == ("llama_3_1_8b", "vllm", "h100_sxm", 1)
    assert (found.prompt_tokens, found.decode_steps, found.statistic) == (1024, 128, "p50")
    assert (found.quantity, found.value) == ("ttft", 0.025)
    assert asked(metric="out_tok_s_per_gpu", unit="tok/s/GPU", value="100", n_gpu="4").value == 400
    assert asked(hardware="A100 40GB PCIe").device == "a100_40gb_pcie"
    assert asked(quant="Q4_K_M", engine="Ollama 0.5").precision == {"weights": "q4_k_m"}
    assert asked(image_mode="1700x2200 scan").image_size == "1700x2200"
    assert [asked(batch_or_conc=text).load for text in ("64", "max load", "Poisson 2.5 req/s", "")] == [
        Load("closed", 64), Load("most"), Load("open", 2.5), Load("batch", 1)
    ]  # fmt: skip


LOADS = {
    "64": ("closed", 64), "1": ("batch", 1), "concurrency=64": ("closed", 64), "max-concurrency 16": ("closed", 16),
    "c=8": ("closed", 8), "32 users": ("closed", 32), "64 concurrent requests": ("closed", 64), "1 stream": ("batch", 1),
    "QPS 4": ("open", 4), "4 qps": ("open", 4), "rate=2.5": ("open", 2.5), "Poisson 10 req/s": ("open", 10),
    "request rate 8": ("open", 8), "rps=0.5": ("open", 0.5), "bs=8": ("batch", 8), "batch size 16": ("batch", 16),
    "static batch 4": ("batch", 4), "batch": ("most", 1), "offline": ("most", 1), "inf": ("most", 1),
    "request rate inf": ("most", 1), "max load": ("most", 1), "peak": ("most", 1), "sequential": ("batch", 1),
    "single stream": ("batch", 1), "": ("batch", 1),
}  # fmt: skip


@pytest.mark.parametrize("text", LOADS)
def test_a_load_is_understood(text):
    assert asked(batch_or_conc=text).load == Load(*LOADS[text])


LENGTHS = {
    ("128/2048", ""): (128, 2048), ("128, 128", ""): (128, 128), ("1k", "8K"): (1024, 8192), ("2.5k", "1"): (2500, 1),
    ("1,024", "1,000"): (1024, 1000), ("random 1024-2048", "512"): (1536, 512), ("1k-2k", "10"): (1536, 10),
    ("~500", "avg 300"): (500, 300), ("pp512", "tg128"): (512, 128), ("ISL 1024", "OSL=256"): (1024, 256),
    ("1024 tokens", "max 100"): (1024, 100), ("short", ">1100"): (16, 1100), ("10k", "1"): (10000, 1),
}  # fmt: skip


@pytest.mark.parametrize("texts", LENGTHS)
def test_lengths_are_understood(texts):
    found = asked(input_tok=texts[0], output_tok=texts[1])
    assert (found.prompt_tokens, found.decode_steps) == LENGTHS[texts]


def test_drawn_lengths_have_a_spread():
    assert asked(input_tok="random 1024-2048").lengths["prompt"] == 512
    assert (
        asked(input_tok="610", output_tok="422", engine="SGLang", source="sgl-cookbook x.md").lengths["output"] == 421
    )
    assert asked(input_tok="1024", output_tok="512", engine="SGLang", source="sgl-cookbook x.md").lengths["output"] == 0


VALUES = {
    ("out_tok_s", "5", "k tok/s"): ("decode_tokens", 5000), ("out_tok_s", "5", "tokens/s"): ("decode_tokens", 5),
    ("tpot", "8", "ms/token"): ("tpot", 0.008), ("ttft", "900", "us"): ("ttft", 9e-4), ("ttft", "900", "µs"): ("ttft", 9e-4),
    ("tok_s_per_user", "50", "tok/s/user"): ("tpot", 0.02), ("decode_tok_s", "50", "tok/s/user"): ("tpot", 0.02),
    ("total_tok_s", "9", "tok/s"): ("all_tokens", 9), ("input_tok_s", "9", "tok/s"): ("prompt_tokens", 9),
    ("total_out_tok_s", "9", "tok/s"): ("decode_tokens", 9), ("latency_mean", "2", "s"): ("e2e", 2),
    ("images_s", "3", "images/s"): ("pages", 3), ("pages_min", "30", "pages/min"): ("pages", 0.5),
    ("pages", "2", "s/page"): ("pages", 0.5), ("tpot", "100", "tok/s/user"): ("tpot", 0.01),
    ("vram", "2", "GiB"): ("memory", 2**31), ("req_s", "120", "req/min"): ("requests", 2),
    ("first_token_latency", "5", "ms"): ("ttft", 0.005), ("itl_mean", "5", "ms"): ("tpot", 0.005),
    ("decode_s", "5", "s"): ("decode", 5),
}  # fmt: skip


@pytest.mark.parametrize("texts", VALUES)
def test_values_are_in_units_of_what_they_measure(texts):
    metric, value, unit = texts
    found = asked(metric=metric, value=value, unit=unit)
    assert (found.quantity, found.value) == (VALUES[texts][0], pytest.approx(VALUES[texts][1], rel=1e-6))


IMAGES = {
    "896x896": "896x896", "1024×768": "1024x768", "A4 200 dpi": "1654x2338", "A4 @ 300dpi": "2481x3507",
    "1080p page": "1920x1080", "720p": "1280x720", "4K scan": "3840x2160", "448px tile": "448x448", "": None,
}  # fmt: skip


@pytest.mark.parametrize("text", IMAGES)
def test_sizes_of_images_are_understood(text):
    assert asked(image_mode=text).image_size == IMAGES[text]


SPLIT = {
    ("8xH100", "", "vLLM"): (8, 1), ("2x H100 SXM", "2", "vLLM"): (2, 1), ("H100 x4", "", "vLLM"): (4, 1),
    ("H100", "8", "vLLM TP8"): (8, 1), ("H100", "", "vLLM tp=2"): (2, 1), ("H100", "1", "vLLM"): (1, 1),
    ("H100", "4", "vLLM DP2"): (2, 2), ("4×H100", "4", "SGLang TP4"): (4, 1), ("MI300X", "1", "vLLM"): (1, 1),
}  # fmt: skip


@pytest.mark.parametrize("texts", SPLIT)
def test_devices_are_counted(texts):
    found = asked(hardware=texts[0], n_gpu=texts[1], engine=texts[2])
    assert (found.devices, found.copies) == SPLIT[texts]


def test_what_a_source_tells_of_its_benchmark_is_known():
    found = asked(source="casys-kaist/LLMServingSim@5d bench/examples/RTXPRO6000/x", input_tok="ShareGPT x300",
                  output_tok="ShareGPT", batch_or_conc="Poisson 10 req/s", note="max_num_seqs 256, max_batched 2048")  # fmt: skip
    assert (found.count, found.limits) == (300, {"seats": 128, "tokens": 2048})
    assert found.prompt_tokens == 924 and "LLMServingSim" in found.assumed[0]
    other = asked(input_tok="ShareGPT", output_tok="ShareGPT", note="max_num_seqs=64")
    assert (other.prompt_tokens, other.decode_steps, other.limits) == (220, 200, {"seats": 64})


def test_policies_are_those_of_the_version_and_the_device():
    [large], [small], [a100] = (load_devices([name]) for name in ("h100_sxm", "a10", "a100_80gb"))
    newest = policy_of("vLLM 0.19.0", large, version_of("vLLM 0.19.0"), offline=False)
    assert (newest.seats, newest.tokens, newest.overlaps, newest.age) == (1024, 8192, True, (1, 1))
    assert policy_of("vLLM", large, NEWEST, offline=True).tokens == 16384
    assert [policy_of("vLLM 0.9", one, (0, 9), offline=False).tokens for one in (small, a100)] == [2048, 2048]
    assert policy_of("vLLM 0.5.3", large, (0, 5), offline=False).policy == "prefill_first"
    assert policy_of("TensorRT-LLM", large, (1, 0), offline=True).keeping == "reserve"
    assert policy_of("llama.cpp", large, NEWEST, offline=False).kernels == ""
    for own in engines().values():
        oldest = [tuple(map(int, known.split("."))) for known in own["versions"]]
        assert oldest == sorted(oldest, reverse=True) and oldest[-1] == (0,)


def test_a_server_decodes_hashes_and_hands_over_what_a_library_only_prepares():
    def page(engine, metric, unit="ms", **more):
        given = {"model": "PaddleOCR-VL", "hardware": "H200", "batch_or_conc": "1", "input_tok": "", "output_tok": ""}
        return predicted(asked(**given, engine=engine, metric=metric, unit=unit, image_mode="1080p page", **more))

    prepared = page("SGLang", "cpu_preprocess_ms")
    assert prepared.seconds == pytest.approx(0.087, rel=0.15)
    ttft = {engine: page(engine, "ttft").seconds for engine in ("SGLang", "vLLM")}
    assert ttft["SGLang"] - ttft["vLLM"] == pytest.approx((32e-9 - 14e-9) / 45e-9 * prepared.seconds, rel=0.05)
    assert page("SGLang", "req_s_max", "req/s").seconds < 1 / (1.5 * prepared.seconds)


def test_an_old_engine_and_an_unknown_one_are_less_certain():
    def width(**changes):
        span = predicted(asked(batch_or_conc="1", metric="tpot", unit="ms", **changes))
        return span.high / span.low

    assert width(engine="vLLM 0.19") < width(engine="vLLM 0.5.3")
    assert width(engine="vLLM 0.19") < width(engine="TensorRT-LLM", source="(v1.0)")
    assert width(engine="vLLM 0.19") < width(engine="vLLM 0.19", hardware="MI300X")


def test_a_rate_beyond_saturation_needs_the_number_of_requests():
    beyond = {"batch_or_conc": "500 req/s", "metric": "ttft_mean"}
    with pytest.raises(InputError, match="500 requests a second are beyond saturation"):
        predicted(asked(**beyond))
    short, long = (predicted(asked(**beyond, note=f"{many} requests")).seconds for many in (100, 400))
    assert 0 < short < long


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"model": "Foo-9B"}, "no model of this project is called 'Foo-9B'"),
        ({"engine": "MyEngine"}, "no engine of this project is called 'MyEngine'"),
        ({"hardware": "Abacus"}, "no device of the catalogue is called 'Abacus'"),
        ({"unit": "furlongs"}, "unit 'furlongs' is none of ms, s,"),
        ({"value": "fast"}, "value 'fast' is no number"),
        ({"batch_or_conc": "lots"}, "how requests come is not understood from 'lots'"),
        ({"metric": "joy"}, "no metric of this project is called 'joy'"),
        ({"input_tok": "some"}, "tokens of the prompt are not understood from 'some'"),
        ({"output_tok": "many"}, "tokens of the answer are not understood from 'many'"),
        ({"metric": "goodput"}, "no metric of this project is called 'goodput'"),
        ({"metric": "itl_p99"}, "percentiles of the gaps between tokens are not told"),
        ({"metric": "ttft", "unit": "tok/s"}, "'ttft' is no tokens, which 'tok/s' is a unit of"),
        ({"hardware": "8xH100", "engine": "vLLM TP4"}, "the number of devices is told twice: 4, 8"),
        ({"image_mode": "4 images"}, "several images a request (4 images) are not told"),
        (
            {"metric": "out_tok_s", "unit": "tok/s", "output_tok": "", "batch_or_conc": "64"},
            "tokens of the answer are not",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(changes, told):
    with pytest.raises(InputError) as error:
        asked(**changes)
    assert told in str(error.value)


def test_one_request_is_its_times():
    newest = {"engine": "vLLM 0.19", "batch_or_conc": "1"}
    found = asked(**newest)
    model = load_model(found.model)
    work = model.text(1024, decode_steps=128, runtime="vllm")
    times = Times(model, work, load_devices(["h100_sxm"])[0], load_host(), overlaps=True)
    assert predicted(found) == times.ttft + Span(*engines()["vllm"]["request"])
    assert predicted(asked(**newest, metric="tpot", unit="ms")) == times.tpot
    rate = predicted(asked(**newest, metric="decode_tok_s", unit="tok/s"))
    assert rate.seconds == pytest.approx(1 / times.tpot.seconds) and rate.low == pytest.approx(1 / times.tpot.high)


def test_more_in_flight_are_more_tokens_a_second_and_each_is_slower():
    speeds = [predicted(asked(batch_or_conc=f"{n}", metric="out_tok_s", unit="tok/s")).seconds for n in (2, 16, 64)]
    waits = [predicted(asked(batch_or_conc=f"{n}", metric="tpot_mean", unit="ms")).seconds for n in (2, 16, 64)]
    assert speeds == sorted(speeds) and waits == sorted(waits)
    assert speeds[-1] <= predicted(asked(batch_or_conc="max load", metric="out_tok_s", unit="tok/s")).seconds * 1.02


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="llama_3_1_405b leaves no room for a KV cache on NVIDIA H100 SXM"):
        predicted(asked(model="Llama-3.1-405B", batch_or_conc="max load", metric="out_tok_s", unit="tok/s"))


def test_a_file_of_rows_is_scored_and_its_faults_are_told(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ASKED)
        writer.writeheader()
        writer.writerows([ASKED | {"id": "a"}, ASKED | {"id": "b", "hardware": "Abacus"}])
    told = score_text(scored(path))
    assert told.startswith("1 of 2 rows are expressed (50 %); median error") and "'Abacus'" in told
    assert cli.main(["score", str(path)]) == 0 and capsys.readouterr().out.strip() == told.strip()
    path.write_text("id,model\n1,2\n")
    assert cli.main(["score", str(path)]) == 2
    assert "it lacks the columns category, quant, engine" in capsys.readouterr().err
    assert cli.main(["score", "none.csv"]) == 2 and "'none.csv' cannot be read" in capsys.readouterr().err
    assert cli.main(["score", "kernels"]) == 2 and "give `kernels FOLDER`" in capsys.readouterr().err


def test_every_shipped_row_is_a_row_and_most_are_expressed():
    assert len(ROWS) == len(read(SHIPPED)) == 96
    found = 0
    for row in ROWS.values():
        try:
            found += question(row, names()["devices"]).value > 0
        except InputError as error:
            assert "is called" in str(error)
    assert found >= 85


def test_towers_of_quantised_models_stay_in_16_bits():
    row = asked(model="Qwen2-VL-2B", quant="AWQ", engine="LMDeploy", hardware="A10", input_tok="100", output_tok="20",
                image_mode="448x448 image", metric="e2e_latency_ms", value="300", category="OCR")  # fmt: skip
    assert 0 < predicted(row).seconds < 1


def test_an_infinite_rate_is_a_servers_and_what_is_largest_is_offline():
    texts = ("request rate inf, 1000 prompts", "max concurrency 64", "offline, 200 prompts", "max throughput")
    assert [asked(batch_or_conc=text, metric="out_tok_s", unit="tok/s").offline for text in texts] == [0, 0, 1, 1]
    a800 = load_devices(["a100_80gb"])[0]
    told = [policy_of("vLLM 0.11", a800, (0, 11), offline=False, hardware=text).seats for text in ("A100", "A800")]
    assert told == [256, 1024]
    assert asked(model="Qwen3Guard-Gen-8B").model == "qwen3_8b"
    inference = asked(source="SemiAnalysisAI/InferenceX issue 870", input_tok="1024", output_tok="1024")
    assert (inference.prompt_tokens, round(inference.lengths["prompt"])) == (922, 102)
    assert "kv" not in asked(engine="TensorRT-LLM", model="gpt-oss-20b", quant="MXFP4").precision
