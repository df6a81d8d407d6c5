"""Rows of measurements become questions, every one is answered or refused with a reason."""

import csv
import re

import pytest

from modelmeter import cli
from modelmeter.catalogue import load_devices
from modelmeter.config import load_model
from modelmeter.errors import InputError
from modelmeter.folders import config_names
from modelmeter.measured.predict import host, predicted
from modelmeter.measured.rows import SHIPPED, Load, names, question, read
from modelmeter.measured.score import score_text, scored
from modelmeter.times import Times

ROWS = {row["id"]: row for row in read()}
ASKED = dict.fromkeys(("id", "category", "model", "quant", "engine", "hardware", "n_gpu", "batch_or_conc", "input_tok", "output_tok", "image_mode", "metric", "value", "unit", "source"), "") | {"model": "Llama-3.1-8B-Instruct", "quant": "BF16", "engine": "vLLM 0.9", "hardware": "NVIDIA H100 80GB HBM3",
     "input_tok": "1,024", "output_tok": "128", "metric": "ttft_p50", "value": "25", "unit": "ms", "category": "LLM"}  # fmt: skip


def asked(**changes):
    return question(ASKED | changes, names()["devices"])


def test_names_stand_for_what_is_there():
    for kind, group in (("models", "model"), ("engines", "runtime"), ("devices", "device")):
        assert set(names()[kind].values()) <= set(config_names(group)), kind
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
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_reason(changes, told):
    with pytest.raises(InputError) as error:
        asked(**changes)
    assert told in str(error.value)


def test_one_request_is_its_times():
    found = asked(batch_or_conc="1")
    model = load_model(found.model)
    work = model.text(1024, decode_steps=128, runtime="vllm")
    times = Times(model, work, load_devices(["h100_sxm"])[0], host())
    assert predicted(found) == times.ttft
    assert predicted(asked(batch_or_conc="1", metric="tpot", unit="ms")) == times.tpot
    rate = predicted(asked(batch_or_conc="1", metric="decode_tok_s", unit="tok/s"))
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
