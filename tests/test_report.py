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


def test_vendor_classes_are_whole(model):
    for item in inventory(model, model.workload(grid="1x2")):
        text = vendor_of(item.layer)
        assert text.count("(") == text.count(")") and not text.endswith((",", ";")), text


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
    tables = {t.name for some in swept_tables().values() for t in some}
    for key in catalogue("en")["sentences"]:
        heading = key.startswith("h_") and (key[2:] in tables or f'"{key}"' in used)
        assert heading or f'"{key}"' in used, key


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


def grid_rows(*crops, growth=2, execution="flash", **changes):
    """Rows of a sweep over grids 1xn whose FLOPs are n ** growth TFLOP."""
    return [
        {"crops": n, "grid_h": min(n, 1), "grid_w": n, "image_tokens": 100 * n + 1, "context_tokens": 100 * n + 11,
         "attention": "flash", "execution": execution, "tensor_core_flops": (n or 1) ** growth * 10**12, "cuda_core_flops": 0,
         "io_bytes": 10**9, "arithmetic_intensity_flop_per_byte": 1.0, "peak_activation_bytes": n * 10**9,
         "kv_cache_bytes": (100 * n + 11) * 60} | changes
        for n in crops
    ]  # fmt: skip


def said(name, rows, language="en", **options):
    table = Table(name, "t", "b", rows, kind="flash", **options)
    return [Language(language).finding(finding) for finding in findings(table)]


def test_findings_follow_the_data():
    english, chinese = (said("vision_crops", grid_rows(1, 2, 4, 8), code) for code in LANGUAGES)
    assert "At grids 1x1 to 1x8 the vision stage costs 1.00 to 64.0 TFLOP." in english
    assert "Every crop adds 9.000 TFLOP; against the number of crops the cost is more than linear." in english
    assert len(english) == len(chinese) and "超线性增长" in " ".join(chinese)
    straight = said("vision_crops", grid_rows(1, 2, 4, 8, growth=1))
    assert "Every crop adds 1.000 TFLOP; against the number of crops the cost is exactly linear." in straight
    assert "Peak activations are 1.00 to 8.00 GB; at the largest grids every crop adds 1,000 MB." in straight


def test_findings_compare_eager_with_the_execution_spoken_of():
    rows = grid_rows(1, 2) + grid_rows(1, 2, execution="eager", io_bytes=3 * 10**9)
    assert "Eager execution moves 3.00 times the bytes of flash execution." in said("vision_crops", rows)
    slightly = grid_rows(1, 2) + grid_rows(1, 2, execution="eager", io_bytes=10**9 + 10**7)
    assert "Eager execution moves 1.00 % more bytes than flash execution." in said("vision_crops", slightly)


def test_findings_speak_of_grids_only_where_there_are_several():
    parts = [row | {"component": part} for row in grid_rows(0, 2) for part in ("vision", "total")]
    text = " ".join(said("e2e_vision_prefill", parts, settings={"batch": 1}))
    assert "0x0" not in text and "At grids" not in text and "60 bytes a token of a context" in text
    twice = [row | {"kv_cache_bytes": 2 * row["kv_cache_bytes"]} for row in parts]
    assert "60 bytes a token of a context" in " ".join(said("e2e_vision_prefill", twice, settings={"batch": 2}))


def swept_tables(**options):
    from modelmeter import config, publish

    found = {}
    for path in sorted(Path("configs/sweep").glob("*.yaml")):
        settings = config.compose("run_sweep", [f"sweep@_global_={path.stem}"])
        settings |= {k: v for k, v in options.items() if k in settings}
        found[path.stem] = publish.sweep_tables(path.stem, config.build_model(settings), settings)
    return found


@pytest.mark.parametrize("options", [
    {}, {"largest": 2, "batch": 1}, {"attention": "eager", "executions": None}, {"image_size": "500x400", "largest": 3},
    {"attention": "flash", "execution": "fused", "executions": None, "largest": 3, "prefill_tokens": 9, "decode_tokens": 1, "heads": None},
])  # fmt: skip
def test_every_sweep_has_findings_in_both_languages(options):
    for name, tables in swept_tables(**options).items():
        for table in tables:
            spoken = [[Language(code).finding(f) for f in findings(table)] for code in LANGUAGES]
            assert spoken[0] and len(spoken[0]) == len(spoken[1]), name
            assert not re.search(r"\{|nan|None|e-\d\d", " ".join(spoken[0])), spoken[0]


def test_the_binding_resource_is_told_by_execution(model):
    """The ratio of the shares is that of FLOPs per byte to the ridge of the device, at every grid."""
    from modelmeter.catalogue import load_devices

    *_, table = swept_tables(largest=4)["targets"]
    intensities = [
        (model.cost("vision", w).tensor_core_flops + model.cost("prefill", w).tensor_core_flops)
        / float((model.cost("vision", w) + model.cost("prefill", w)).io_bytes)
        for w in (model.workload(grid=f"{h}x{w}", execution="compulsory") for h, w in model.grids(4))
    ]
    ridges = [device.ridge_flops_per_byte for device in load_devices()]
    low, high = min(ridges) / max(intensities), max(ridges) / min(intensities)
    (sentence,) = [s for s in said_of(table) if s.startswith("TTFT, compulsory")]
    from modelmeter.report.measures import significant

    assert f"its share is {significant(low)} to {significant(high)} times" in sentence


def said_of(table):
    return [Language("en").finding(finding) for finding in findings(table)]


def test_an_interrupted_report_leaves_the_previous_one_whole(tmp_path):
    out = tmp_path / "reports"
    (out / "deepseek_ocr").mkdir(parents=True)
    (out / "deepseek_ocr" / "architecture.md").write_text("previous")
    command = [sys.executable, "-m", "modelmeter", "report", "deepseek_ocr", f"out={out}", "validation=false"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 60
    while "matplotlib" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)  # until it has begun to compute
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
