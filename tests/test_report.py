"""The reports: regenerating leaves no diff, both languages say the same, numbers come from the data."""

import os
import re
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelmeter import cli
from modelmeter.report.findings import findings, trend
from modelmeter.report.inventory import inventory, vendor_of
from modelmeter.report.language import LANGUAGES, Language, catalogue
from modelmeter.report.measures import COLUMNS, MEASURES
from modelmeter.sweep.table import Table

REPORTS = Path("reports")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("reports")
    assert cli.main(["report", "deepseek_ocr", f"out={out}"]) == 0
    return out


def files(folder):
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and "sweep" not in p.relative_to(folder).parts
    }


def test_regenerating_the_reports_leaves_no_diff(written):
    assert files(written) == files(REPORTS), "run modelmeter report deepseek_ocr; remove what it no longer writes"
    for name in sorted(files(written)):
        assert (written / name).read_bytes() == (REPORTS / name).read_bytes(), (
            f"{name}: run modelmeter report deepseek_ocr"
        )


@pytest.mark.parametrize("page", ["architecture", "performance"])
def test_both_languages_have_the_same_numbers_pictures_and_headings(page):
    def marks(text):
        body = re.sub(r"^\[.*\]\(.*\)$", "", text, flags=re.MULTILINE)
        tables = [re.findall(r"\d[\d.,]*", line) for line in body.splitlines() if line.startswith("|")]
        return (
            re.findall(r"\]\((figures/\S+)\)", body),
            [len(h) for h in re.findall(r"^(#+) ", body, re.MULTILINE)],
            tables,
        )

    english, chinese = (Path(REPORTS / "deepseek_ocr" / f"{page}{suffix}.md").read_text() for suffix in ("", ".zh"))
    assert marks(english) == marks(chinese)
    assert re.search(r"[\u4e00-\u9fff]", chinese) and not re.search(r"[\u4e00-\u9fff]", english.replace("简体中文", ""))


def test_every_picture_and_link_of_a_report_exists():
    for path in REPORTS.rglob("*.md"):
        if "sweep" not in path.parts:
            for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
                assert (path.parent / target).is_file(), (path, target)


def test_a_report_names_no_time_and_no_machine():
    for path in REPORTS.rglob("*.md"):
        assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d|/home/|/tmp/", path.read_text()), path


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_languages_have_the_same_sentences_and_placeholders():
    english, chinese = (catalogue(code)["sentences"] for code in LANGUAGES)
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert fields(text) == fields(chinese[key]), key


def test_every_sentence_is_used():
    used = "".join(p.read_text() for p in Path("src/modelmeter/report").rglob("*") if p.suffix in (".py", ".j2"))
    for key in catalogue("en")["sentences"]:
        assert f'"{key}"' in used or key.startswith("h_"), key


def test_every_heading_trend_and_caption_has_a_chinese_word():
    chinese = catalogue("zh")["words"]
    missing = (
        {heading for heading, _ in COLUMNS.values()}
        | {m.label for m in MEASURES.values()}
        | catalogue("en")["words"].keys()
    )
    assert not missing - chinese.keys()


def test_every_layer_of_the_inventory_has_a_chinese_summary_and_a_vendor(model):
    for item in inventory(model, model.workload(grid="1x2")):
        assert item.layer in catalogue("zh")["layers"] and vendor_of(item.layer), item.layer


def test_the_inventory_adds_up(model):
    """The outermost layers of a stage are the stage, but for copies between them; inner layers are parts of outer ones."""
    work = model.workload(grid="2x3")
    costs = {(item.stage, item.layer): item for item in inventory(model, work)}
    outer = ("ImageEncoderViT", "VitModel", "MlpProjector")
    for count in ("tensor_core_flops", "cuda_core_flops"):
        assert sum(getattr(costs["vision", n].cost, count) for n in outer) == getattr(model.cost("vision", work), count)
    assert costs["prefill", "CausalLM"].cost == model.cost("prefill", work).__class__(
        **{**vars(model.cost("prefill", work)), "basis": "flash"}
    )
    block = costs["vision", "Block"].cost.tensor_core_flops
    assert block == sum(costs["vision", n].cost.tensor_core_flops for n in ("Attention", "MLPBlock"))
    assert costs["prefill", "CausalLM"].share == 1


def test_trends_are_words_for_shapes():
    xs = [1, 2, 3, 5, 8]
    shapes = {"linear": [3 * x + 1 for x in xs], "superlinear": [x**2 for x in xs], "sublinear": [x**0.5 for x in xs], "constant": [7] * 5, "falling": [-x for x in xs], "nearly_linear": [x + 0.004 * x**2 for x in xs]}  # fmt: skip
    for word, ys in shapes.items():
        assert trend(list(zip(xs, ys, strict=True))) == word


def test_a_finding_changes_with_the_data():
    rows = [{"crops": c, "grid_h": 1, "grid_w": c, "image_tokens": 100 * c, "attention": "flash", "tensor_core_flops": c**2 * 10**12, "cuda_core_flops": 0, "io_bytes": 10**9, "arithmetic_intensity_flop_per_byte": 1.0, "peak_activation_bytes": c} for c in (1, 2, 4, 8)]  # fmt: skip
    said = {
        code: [Language(code).finding(f) for f in findings(Table("vision_crops", "t", "b", rows))] for code in LANGUAGES
    }
    assert "more than linear" in " ".join(said["en"]) and "1.00 to 64.0 TFLOP" in said["en"][0].replace(
        "64 ", "64.0 "
    ).replace("1 to", "1.00 to")
    assert len(said["en"]) == len(said["zh"]) and "超线性增长" in " ".join(said["zh"])


def test_an_interrupted_report_leaves_the_previous_one_whole(tmp_path):
    out = tmp_path / "reports"
    (out / "deepseek_ocr").mkdir(parents=True)
    (out / "deepseek_ocr" / "architecture.md").write_text("previous")
    command = [sys.executable, "-m", "modelmeter", "report", "deepseek_ocr", f"out={out}", "validation=false"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
    assert {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()} == {
        "deepseek_ocr/architecture.md": "previous"
    }


def test_ctrl_c_waits_while_finished_files_are_put_in_place(tmp_path, monkeypatch):
    from modelmeter.report import files as writing

    replace, seen = os.replace, []

    def pressed_in_between(source, target):
        if not seen:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(target)
        replace(source, target)

    monkeypatch.setattr(writing.os, "replace", pressed_in_between)
    with pytest.raises(KeyboardInterrupt):
        writing.write_all(tmp_path, {"a.txt": "new", "b/c.txt": b"new"})
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b" / "c.txt").read_text() == "new"
    assert not list(tmp_path.glob(".partial*"))


def test_figures_also_come_as_pictures(tmp_path):
    from PIL import Image

    assert cli.main(["sweep", "profiles", f"out={tmp_path}", "png=true", "profiles=receipt"]) == 0
    for svg in (tmp_path / "profiles").glob("*.svg"):
        with Image.open(svg.with_suffix(".png")) as picture:
            assert picture.width > 1000


@pytest.mark.parametrize(("arguments", "message"), [
    (["deepseek"], "unknown model with a report 'deepseek', did you mean 'deepseek_ocr'"),
    (["deepseek_ocr", "outt=x"], "unknown key 'outt'"), (["deepseek_ocr", "png=maybe"], "unknown png 'maybe'; valid: false, true"),
    (["deepseek_ocr", "fast"], "'fast' is not key=value"), (["deepseek_ocr", "out=/proc/nowhere"], "cannot be written"),
])  # fmt: skip
def test_bad_input_of_a_report_is_one_sentence(arguments, message, capsys):
    assert cli.main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
