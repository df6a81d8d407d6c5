"""The reports: both languages say the same, numbers come from the data. test_regenerated.py writes them anew."""

import os
import re
import signal
import string
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import yaml

import modelmeter
from modelmeter import cli
from modelmeter.report.claims import Claim, claims
from modelmeter.report.document import inventory
from modelmeter.report.formulas import told_of
from modelmeter.report.language import LANGUAGES, Language, catalogue
from modelmeter.sweep.columns import COLUMNS, MEASURES, significant
from modelmeter.sweep.findings import trend
from modelmeter.sweep.registry import SWEEPS, findings
from modelmeter.sweep.table import Table

REPORTS = Path("reports")
REPORTED = ("deepseek_ocr", "paddleocr_vl", "encoders")


@pytest.mark.parametrize("page", [
    *(f"{model}/{page}" for model in REPORTED for page in ("performance", "performance-tables")),
    "deepseek_ocr/architecture", "paddleocr_vl/architecture", "paddleocr_vl/claims",
])  # fmt: skip
def test_both_languages_have_the_same_numbers_pictures_and_headings(page):
    def marks(text):
        body = re.sub(r"^\[.*\]\(.*\)$", "", text, flags=re.MULTILINE)
        tables = [re.findall(r"\d[\d.,]*", line) for line in body.splitlines() if line.startswith("|")]
        return (
            re.findall(r"\]\((figures/\S+)\)", body),
            [len(h) for h in re.findall(r"^(#+) ", body, re.MULTILINE)],
            tables,
        )

    english, chinese = ((REPORTS / f"{page}{suffix}.md").read_text() for suffix in ("", ".zh"))
    assert marks(english) == marks(chinese)
    assert re.search(r"[\u4e00-\u9fff]", chinese) and not re.search(r"[\u4e00-\u9fff]", english.replace("简体中文", ""))


def test_the_first_screen_is_the_answer_and_the_tables_stand_on_their_own_page():
    for suffix in ("", ".zh"):
        text, tables = ((REPORTS / "deepseek_ocr" / f"{p}{suffix}.md").read_text() for p in ("performance", "performance-tables"))  # fmt: skip
        screen = text.partition("\n## ")[0]
        assert screen.count("\n- ") == 5 and screen.count("![") == 1 and f"performance-tables{suffix}.md" in screen
        assert not re.search(r"^\|", text, re.MULTILINE) and f"performance{suffix}.md" in tables
        for section in text.split("\n## ")[1:]:
            assert section.count("\n- ") <= 5, section.partition("\n")[0]


def test_the_first_screen_says_the_same_in_both_languages():
    english, chinese = ((REPORTS / "deepseek_ocr" / f"performance{s}.md").read_text().split("\n## ")[0] for s in ("", ".zh"))  # fmt: skip
    numbers = [
        [sorted(re.findall(r"\d[\d.]*\d|\d", line)) for line in text.splitlines() if line.startswith("- ")]
        for text in (english, chinese)
    ]
    assert [set(some) for some in numbers[0]] == [set(some) for some in numbers[1]]


def test_every_picture_and_link_of_a_report_exists():
    for path in REPORTS.rglob("*.md"):
        if "sweep" not in path.parts:
            for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
                assert (path.parent / target).is_file(), (path, target)


def test_vendor_classes_are_whole(model):
    for item in inventory(model, model.workload(grid="1x2")):
        text = told_of(item.layer)["vendor"]
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


def test_every_sentence_is_used(model):
    folders = [Path("src/modelmeter") / name for name in ("report", "sweep")]
    used = "".join(p.read_text() for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".j2"))
    swept = [table for some in swept_tables(model, largest=2).values() for table in some]
    tables, told = {table.name for table in swept}, {key for table in swept for key, _ in findings(table)}
    named = told | {f"h_{table}" for table in tables} | {f"{sweep}_intro" for sweep in SWEEPS}
    named |= {f"answer_{part}" for part in ("work", "traffic", "memory")}
    for key in catalogue("en")["sentences"]:
        assert key in named or f'"{key}"' in used, key


def test_every_heading_trend_and_caption_has_a_chinese_word():
    chinese = catalogue("zh")["words"]
    missing = (
        {column.heading or name for name, column in COLUMNS.items()}
        | {m.label for m in MEASURES.values()}
        | catalogue("en")["words"].keys()
    )
    assert not missing - chinese.keys()


def test_every_layer_of_the_inventory_has_a_chinese_summary_and_a_vendor(model):
    for item in inventory(model, model.workload(grid="1x2")):
        assert item.layer in catalogue("zh")["layers"] and told_of(item.layer)["vendor"], item.layer


def test_the_inventory_adds_up(model):
    """The outermost layers of a stage are the stage; inner layers are parts of outer ones."""
    work = model.workload(grid="2x3")
    costs = {(item.stage, item.layer): item for item in inventory(model, work)}
    for count in ("tensor_core_flops", "cuda_core_flops"):
        for outer in (("ImageEncoderViT", "VitModel", "MlpProjector"), ("DeepEncoder", "MlpProjector")):
            parts = (getattr(costs["vision", name].cost, count) for name in outer)
            assert sum(parts) == getattr(model.cost("vision", work), count)
    assert costs["prefill", "CausalLM"].cost == model.cost("prefill", work)
    first = model.workload(grid="2x3", decode_steps=1)
    assert costs["decode", "CausalLM"].cost == model.cost("decode", first)
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
    assert english[:3] == [
        "At grids 1x1 to 1x8 the vision stage costs 1.00 to 64.0 TFLOP.",
        "On average a crop adds 9.000 TFLOP.",
        "Against the number of crops the cost is more than linear.",
    ]
    assert len(english) == len(chinese) and "超线性增长" in chinese[2]
    straight = said("vision_crops", grid_rows(1, 2, 4, 8, growth=1))
    assert {"Every crop adds 1.000 TFLOP.", "Against the number of crops the cost is exactly linear."} <= set(straight)
    assert {
        "Peak activations are 1.00 to 8.00 GB.",
        "At the largest grids every crop adds 1,000 MB to the peak.",
    } <= set(straight)
    assert not any(
        "Against" in sentence for sentence in said("vision_crops", grid_rows(1, 2))
    )  # two points have no shape


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


def test_a_page_without_crops_is_part_of_what_is_said():
    text = said("vision_crops", grid_rows(0, 2, 4))
    assert "Peak activations are 0 to 4.00 GB." in text and "At grids 1x2 to 1x4" in text[0]


def test_the_share_of_vision_is_vision_over_all():
    parts = [row | {"component": "total"} for row in grid_rows(1, 2, growth=0)]
    parts += [row | {"component": "vision", "tensor_core_flops": 25 * 10**10} for row in grid_rows(1, 2)]
    assert "The vision stage is 25.0 % of the FLOPs of vision and prefill." in said(
        "e2e_vision_prefill", parts, settings={"batch": 1}
    )


def device_rows(target, binds, execution="flash", **changes):
    """A digest of one budget: `binds` by device, bandwidth at 3 times the tensor cores' share."""
    return [
        {"target": target, "budget_s": 1.0, "execution": execution, "device": str(i), "binds": word, "least_ratio": 3.0,
         "largest_ratio": 3.0, "least_margin": 2.0, **{f"{end}_{share}": value for end in ("least", "largest")
         for share, value in (("tensor_core_share", 0.1), ("memory_bandwidth_share", 0.3))}} | changes
        for i, word in enumerate(binds)
    ]  # fmt: skip


def test_a_device_is_counted_as_bound_only_where_it_is_at_every_grid():
    digest = device_rows("TTFT", ["memory bandwidth", "memory bandwidth or tensor cores", "tensor cores"])
    text = said("device_shares", digest, digest=digest)
    assert (
        "A TTFT of 1 s takes 10.0 % of the tensor-core peak and 30.0 % of the bandwidth, over all grids and devices (flash execution)."
        in text
    )
    assert (
        "TTFT, flash execution: memory bandwidth binds at every grid on 1 of 3 devices; its share is 3.00 times that of the tensor cores."
        in text
    )
    assert "张量核心峰值的 10.0 %，占带宽的 30.0 %" in " ".join(said("device_shares", digest, "zh", digest=digest))


def test_bandwidth_bound_is_said_only_of_what_was_counted():
    eager = device_rows("TPOT", ["memory bandwidth"] * 2)
    assert not any("is bound by" in sentence for sentence in said("device_shares", eager, digest=eager))
    least = eager + device_rows("TPOT", ["memory bandwidth"] * 2, "compulsory", least_margin=1.5)
    assert any(
        "on all 2 devices, by a factor of 1.50 or more" in sentence
        for sentence in said("device_shares", least, digest=least)
    )


def test_profiles_and_compression_are_told_by_their_own_columns():
    row = {"profile": "x", "title": "Receipt", "execution": "flash", "cuda_core_flops": 0}
    stages = {"vision": (3, 1), "prefill": (1, 1), "decode": (1, 8), "page": (5, 10)}
    rows = [row | {"stage": s, "tensor_core_flops": f * 10**12, "io_bytes": b * 10**9} for s, (f, b) in stages.items()]
    assert said("profiles", rows) == [
        "Receipt: 5.00 TFLOP a page, 60.0 % of them in the vision stage; 10.0 GB of traffic, 80.0 % of it in decode."
    ]
    saved = {"execution": "flash", "mode": "m", "vision_tokens": 10, "compression": 5.04, "published_compression": 5.0}
    rows = [
        saved | {"text_tokens": t, "saved_prefill_flops": a, "saved_flops_less_vision": b}
        for t, a, b in ((50, 1, -1), (60, 1, 1), (70, -1, -2))
    ]
    rows[2]["compression"] = 5.1
    text = said("compression", rows)
    assert "cheaper from the picture than from the text in 2 of 3 rows" in text[0] and "fewer in 1 of 3" in text[0]
    assert "For 2 of 3 bins" in text[-1]


def test_columns_and_measures_have_the_units_that_they_name():
    """One made-up row through every column: the number is the value over the unit of its heading."""
    units = {"TFLOP": 1e12, "GFLOP": 1e9, "GB": 1e9, "TFLOP/s": 1e12, "GB/s": 1e9}
    for column, (heading, text) in ((name, (c.heading, c.text)) for name, c in COLUMNS.items()):
        unit = next((u for u in units if re.search(rf"(^| ){u}( |$|,)", heading.replace(" a token", ""))), None)
        if unit and column != "grid_h":
            assert float(text({column: 2 * units[unit]})) == 2, (column, heading)
    factors = {
        "TFLOP =": 1e12,
        "GB =": 1e9,
        "Tb =": 1e12 / 8,
        "TFLOP/s": 1e12,
        "(GB/s)": 1e9,
        "(%)": 0.01,
        "thousands": 1e3,
        "(ms)": 1e-3,
    }
    for name, measure in MEASURES.items():
        unit = next((factors[u] for u in factors if u in measure.label), 1)
        unit = 1 if name == "error_percent" else unit
        row = dict.fromkeys(
            "io_bytes io_bytes_per_token peak_activation_bytes kv_cache_bytes required_flops_per_s required_bytes_per_s compression "
            "published_compression saved_prefill_flops saved_flops_less_vision saved_kv_cache_bytes error_percent tensor_core_share "
            "cuda_core_share memory_bandwidth_share arithmetic_intensity_flop_per_byte tensor_core_flops vision_tokens "
            "page_flops peak_memory_bytes stored_bytes kernels_launched ttft_s tpot_s page_s".split(), 3 * unit,
        ) | {"cuda_core_flops": 3 * unit if name == "cuda_tflops" else 0}  # fmt: skip
        assert measure.value(row) == pytest.approx(3), name


def test_a_stacked_bar_is_the_sum_of_the_stages(model):
    (table,) = swept_tables(model, "profiles")["profiles"]
    for chart in table.charts:
        stages = chart.where["stage"]
        assert stages == ("page",) or ("page" not in stages and len(stages) == 3)


def test_bars_of_a_series_look_alike_in_every_viewer():
    """Some viewers fade hatched see-through bars one after the other, and clip late what reaches far out."""
    from modelmeter.report.figures import figures
    from modelmeter.sweep.table import Chart

    shares = dict.fromkeys(("tensor_core_share", "cuda_core_share", "memory_bandwidth_share"), 0.004)
    rows = [{"device": name, "stage": s, "io_bytes": 10**9, **shares} for name in "abc" for s in ("x", "y")]
    charts = [
        Chart("beside", tuple(shares), "device", (), {"stage": "x"}, log="y", bars=True),
        Chart("stacked", ("io_gb",), "device", ("stage",), bars=True),
    ]
    for name, text in figures(Table("t", "t", "b", rows, charts=charts)).items():
        height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', text)[1])
        bars = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="(fill: (?!none)[^"]*)"', text)
        looks = [style for _, style in bars]
        assert len(bars) == 3 * len(set(looks)) and not any("opacity" in style for style in looks), name
        assert all(0 <= float(y) <= height for path, _ in bars for y in re.findall(r"[ML] \S+ (\S+)", path)), name


def test_letters_are_read_where_two_figures_stand_side_by_side():
    """At 450 pixels a figure no letter is smaller than 8.5 pixels."""
    for path in REPORTS.rglob("figures/*.svg"):
        text = path.read_text()
        width = float(re.search(r'viewBox="0 0 (\S+) ', text)[1])
        sizes = [100 * float(scale) for scale in re.findall(r"scale\((0\.\d+) -0\.\d+\)", text)]
        assert sizes and min(sizes) * 450 / width > 8.5, path


def test_a_sweep_is_told_in_five_sentences_conclusions_first(model):
    from modelmeter.report.tables import answer

    for name, tables in swept_tables(model, largest=3).items():
        told = [Language("en").finding(finding) for finding in answer(tables)]
        assert 0 < len(told) <= 5 and len(set(told)) == len(told)
        if name == "targets":
            assert told[0].startswith("TTFT of 1 s") and told[1].startswith("Most certain")
            assert all("binds" in sentence or "is bound by" in sentence for sentence in told[2:])


def test_a_stage_is_bound_by_memory_below_the_ridge(model):
    from modelmeter.catalogue import load_devices
    from modelmeter.report.tables import memory_bound, page_answer, page_parts

    devices, work = load_devices(), model.workload(grid="2x3")
    lines = page_answer(model, work, devices).splitlines()
    assert len(lines) == 5
    for stage in ("vision", "prefill", "decode"):
        cost = model.cost(stage, work)
        below = sum(cost.tensor_core_flops / cost.io_bytes < device.ridge_flops_per_byte for device in devices)
        assert memory_bound(cost, devices) == below and f"{stage} on {below} of {len(devices)} devices" in lines[4]
    page, parts = model.request(work), page_parts(model, work)
    assert sum(parts["work"].values()) == page.flops and sum(parts["traffic"].values()) == page.io_bytes
    assert sum(parts["memory"].values()) == page.weight_bytes + page.peak_activation_bytes + page.kv_cache_bytes


def test_curves_of_one_picture_differ_in_dash_or_marker():
    from modelmeter.report.figures import look

    assert len({look(i)[1:3] for i in range(32)}) == 32


def test_coinciding_curves_name_no_combination_that_is_not_there():
    from modelmeter.report.figures import figures
    from modelmeter.sweep.table import Chart

    pairs = ((20, 20, 1), (10, 10, 1), (20, 10, 2))
    rows = [
        {"prefill_tokens": x, "heads": h, "kv_heads": k, "kv_cache_bytes": v * x * 10**9}
        for h, k, v in pairs
        for x in (1, 2)
    ]
    chart = Chart("c", ("kv_gb",), "prefill_tokens", ("heads", "kv_heads"))
    text = figures(Table("t", "t", "b", rows, charts=[chart]))["c.svg"]
    assert "heads 20, KV heads 20 and heads 10, KV heads 10" in text and "heads 20, KV heads 10 -->" in text


@cache
def composed(name):
    from modelmeter import config

    return config.compose("run_sweep", [f"sweep@_global_={name}"])


def swept_tables(model, *names, **options):
    """The tables of sweeps, all of them if none is named, with those of the options that they take."""
    from modelmeter import publish

    found = {}
    for name in names or SWEEPS:
        settings = composed(name)
        if settings["device"]:  # predicted for two, of which one lacks a figure, not for the whole catalogue
            settings = settings | {"device": ["h100_sxm", "gaudi3"]}
        settings = settings | {key: value for key, value in options.items() if key in settings}
        found[name] = publish.sweep_tables(name, model, settings)
    return found


@pytest.mark.parametrize("options", [
    {}, {"largest": 2, "batch": 1}, {"runtime": "eager"}, {"image_size": "500x400", "largest": 3},
    {"runtime": "fused", "largest": 3, "prefill_tokens": 9, "decode_tokens": 1, "heads": None},
])  # fmt: skip
def test_every_sweep_has_findings_in_both_languages(model, options):
    for name, tables in swept_tables(model, **options).items():
        for table in tables:
            spoken = [[Language(code).finding(f) for f in findings(table)] for code in LANGUAGES]
            assert spoken[0] and len(spoken[0]) == len(spoken[1]), name
            assert not re.search(r"\{|nan|None|e-\d\d", " ".join(spoken[0])), spoken[0]


def test_the_binding_resource_is_told_by_execution(model):
    """The ratio of the shares is that of FLOPs per byte to the ridge of the device, at every grid."""
    from modelmeter.catalogue import FEATURED, load_devices

    *_, table = swept_tables(model, "targets", largest=4)["targets"]
    intensities = [
        (model.cost("vision", w).tensor_core_flops + model.cost("prefill", w).tensor_core_flops)
        / float((model.cost("vision", w) + model.cost("prefill", w)).io_bytes)
        for w in (model.workload(grid=grid, runtime="compulsory") for grid in model.planner.grids(4))
    ]
    ridges = [device.ridge_flops_per_byte for device in load_devices(FEATURED)]
    low, high = min(ridges) / max(intensities), max(ridges) / min(intensities)
    (sentence,) = [s for s in said_of(table) if s.startswith("TTFT, compulsory")]
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
    while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)  # until it has begun to compute
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
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
    (["deepseek_ocr", "outt=x"], "unknown key 'outt'"), (["deepseek_ocr", "png=maybe"], "png must be true or false, not 'maybe'"),
    (["deepseek_ocr", "fast"], "'fast' is not key=value"), (["deepseek_ocr", "out=/proc/nowhere"], "cannot be written"),
])  # fmt: skip
def test_bad_input_of_a_report_is_one_sentence(arguments, message, capsys):
    assert cli.main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_claims_are_judged_by_how_far_they_are_from_the_computed_numbers():
    def verdict(number, least, most, enough=False):
        return Claim({}, number, least, most, "", enough).verdict

    assert [verdict(n, 100, 100) for n in (100, 104, 96, 129, 71, 131, 69)] == ["right"] * 3 + ["nearly"] * 2 + [
        "wrong"
    ] * 2
    assert [verdict(n, 10, 20) for n in (10, 15, 20, 20.9, 25, 30)] == ["right"] * 4 + ["nearly"] + ["wrong"]
    assert [verdict(n, 10, 20, enough=True) for n in (21, 20, 15, 9)] == ["right", "right", "nearly", "wrong"]


def test_the_claims_about_paddleocr_vl_are_beside_the_public_counts():
    given = yaml.safe_load(Path("configs/report/paddleocr_vl.yaml").read_text())["claims"]
    found = {claim.said["en"]: claim for claim in claims(modelmeter.load_model("paddleocr_vl"), given)}
    numbers = {
        "The tower has 12 layers.": (27, "wrong"), "Its features are 768 wide.": (1152, "wrong"),
        "The tower has about 200 M parameters.": (412_987_248, "wrong"),
        "The projector has about 20 M parameters.": (25_960_192, "nearly"),
        "The language model has about 900 M parameters.": (360_748_032, "wrong"),
        "Its head has about 900 M parameters.": (105_906_176, "wrong"),
        "All of it has 0.9 B parameters, as its name says.": (905_601_648, "right"),
    }  # fmt: skip
    assert {said: (found[said].least, found[said].verdict) for said in numbers} == numbers
    tokens = found["Pooling leaves one vector for an image."]
    assert (tokens.least, tokens.most, tokens.verdict) == (196, 3600, "wrong")
