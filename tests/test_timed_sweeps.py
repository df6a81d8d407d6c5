"""Seconds beside counts, answers for devices and timelines are those of Times, put where a reader looks for them."""

import csv
import io
import json

import pytest

import modelmeter
from modelmeter import cli, config, publish
from modelmeter.catalogue import FEATURED, load_devices, load_host
from modelmeter.errors import InputError
from modelmeter.folders import config_names
from modelmeter.progress import watched
from modelmeter.report.ranked import ranked_figures
from modelmeter.report.timeline import timeline_figures
from modelmeter.sweep.answers import answered, verdict
from modelmeter.timeline import by_component, timeline, top
from modelmeter.times import Times

HOST = load_host()
MINE = """title: Mine
tensor_flops_per_s: 1e14
cuda_flops_per_s: 2e13
memory_bytes_per_s: 1e12
memory_bytes: {memory}
source: a guess
{rest}"""
COMPLETE = "multiprocessors: 80\nclock_hz: 1.5e9\nl2_bytes: 40e6\n"


def tables(name, model="deepseek_ocr", *overrides):
    keys = [f"sweep@_global_={name}", f"model={model}", *config.listed(overrides, "device", "devices")]
    settings = config.compose("run_sweep", keys, publish.settings_of(name))
    return publish.sweep_tables(name, config.build_model(settings), settings)


def times(model, device, **options):
    return Times(model, model.workload(**options), load_devices([device])[0], HOST)


def span(row, stem):
    return tuple(row[f"{stem}_{end}s"] for end in ("low_", "", "high_"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "mine.yaml"
    path.write_text(MINE.format(memory="8e9", rest=COMPLETE))
    return path


def test_a_row_of_vision_has_the_seconds_of_its_stage_on_each_device(model):
    (table,) = tables("vision_crops", "deepseek_ocr", "device=h100_sxm,l40s", "runtime=vllm", "largest=2")
    for row in table.rows:
        for device in ("h100_sxm", "l40s"):
            grid = f"{row['grid_h']}x{row['grid_w']}"
            stage = times(model, device, grid=grid, runtime="vllm").stages["vision"]
            assert span(row, f"{device}_stage") == stage.span and row[f"{device}_stage_binds"] == stage.binds
    assert [chart.name for chart in table.charts][-1] == "vision_seconds"
    assert "NVIDIA L40S: the stage, ms" in {column.heading for column in table.readable.values()}


def test_components_keep_the_device_busy_and_their_whole_is_what_the_target_waits_for(model):
    for name, target in (("e2e_vision_prefill", "ttft"), ("e2e_decode", "tpot")):
        first, required = tables(name, "deepseek_ocr", "device=h100_sxm", "runtime=vllm", "largest=2")
        assert not any(column.startswith("h100_sxm") for column in required.columns)
        parts = {row["component"]: row for row in first.select(grid_w=2)}
        total = parts.pop("total")
        assert sum(row["h100_sxm_busy_s"] for row in parts.values()) == pytest.approx(total["h100_sxm_busy_s"])
        found = times(model, "h100_sxm", grid="1x2", runtime="vllm")
        assert span(total, f"h100_sxm_{target}") == getattr(found, target)
        assert all(f"h100_sxm_{target}_s" not in row for row in parts.values())


def test_every_counting_sweep_takes_devices_and_is_as_it_was_without_them(model):
    small = {
        "compare": ("weights=[bf16]",), "profiles": ("profiles=[receipt]",), "compression": ("text_tokens=[700]", "modes=[tiny]"),
        "sequence": ("prefill_tokens=[64]", "decode_tokens=[3]", "batch=[1]", "heads=[10x10]"),
        "encoders": ("compared=[got_ocr2]", "image_sizes=[640x640]"),
    }  # fmt: skip
    for name, overrides in small.items():
        plain, asked = (
            tables(name, "deepseek_ocr", "runtime=[flash]", *overrides, *further) for further in ((), ("device=a10",))
        )
        (before,), (after,) = plain, asked
        assert "device" not in before.settings and "host" not in before.settings
        assert not any(column.startswith("a10_") for column in before.columns)
        counted = [{k: v for k, v in row.items() if not k.startswith("a10_")} for row in after.rows]
        assert counted == list(before.rows) and before.charts == [c for c in after.charts if c in before.charts]
        stems = {column.removesuffix("_binds") for column in after.columns if column.endswith("_binds")}
        assert stems and len(after.charts) > len(before.charts)
        for row in after.rows:
            for stem in (stem for stem in stems if f"{stem}_s" in row):
                low, seconds, high = span(row, stem)
                assert 0 < low <= seconds <= high


def test_a_request_of_compare_is_that_of_the_command_time(model):
    (table,) = tables("compare", "deepseek_ocr", "device=h100_sxm", "runtime=[vllm]", "weights=[q8_0]", "grid=1x2",
                      "host.step=[0,0,0]")  # fmt: skip
    work = model.workload(grid="1x2", runtime="vllm", precision="q8_0")
    free = load_host({"step": [0, 0, 0]})
    found = Times(model, work, load_devices(["h100_sxm"])[0], free)
    (row,) = table.rows
    assert (span(row, "h100_sxm_ttft"), span(row, "h100_sxm_tpot")) == (found.ttft, found.tpot)


def test_a_bound_has_no_time(model):
    (table,) = tables(
        "vision_crops", "deepseek_ocr", "device=h100_sxm", "runtime=[flash,compulsory,fused]", "largest=2"
    )
    timed_rows = {row["execution"] for row in table.rows if "h100_sxm_stage_s" in row}
    assert timed_rows == {"flash"}
    with pytest.raises(InputError, match="runtimes fused, compulsory are bounds, and nothing that runs"):
        tables("vision_crops", "deepseek_ocr", "device=h100_sxm", "runtime=[fused,compulsory]")
    with pytest.raises(InputError, match="'fused' is a bound"):
        Times(model, model.workload(grid="1x2", runtime="fused"), load_devices(["a10"])[0], HOST)


def test_a_device_that_lacks_a_figure_is_refused_alone_and_told_in_its_row(capsys, tmp_path):
    assert cli.main(["sweep", "vision_crops", "device=gaudi3", "runtime=vllm", f"out={tmp_path}"]) == 2
    assert "device gaudi3 has no multiprocessors" in capsys.readouterr().err
    (table,) = tables("devices", "llama_3_2_1b", "device=gaudi3,h100_sxm")
    assert [row["name"] for row in table.rows] == ["h100_sxm", "gaudi3"]
    assert "has no multiprocessors" in table.rows[1]["note"] and "ttft_s" not in table.rows[1]


def test_all_devices_stand_side_by_side_the_fastest_first():
    (table,) = tables("devices", "llama_3_2_1b", "batch=4")
    assert {row["name"] for row in table.rows} == set(config_names("device")) and table.printed
    known = [row for row in table.rows if row["note"] == ""]
    assert len(known) > 30 and [row["page_s"] for row in known] == sorted(row["page_s"] for row in known)
    model = modelmeter.load_model("llama_3_2_1b")
    found = Times(model, model.text(10, batch=4, runtime="vllm"), load_devices(["l40s"])[0], HOST)
    (row,) = table.select(name="l40s")
    assert span(row, "ttft") == found.ttft and row["page_s"] == pytest.approx(found.request.seconds / 4)
    assert row["tokens_per_s"] == pytest.approx(4 / found.tpot.seconds) and row["page_bound_s"] < row["page_low_s"]
    assert row["tokens_per_s_low"] < row["tokens_per_s"] < row["tokens_per_s_high"] and row["confidence"] == "A"
    drawn = ranked_figures(table)
    assert list(drawn) == ["devices_page.svg", "devices_ttft.svg", "devices_tpot.svg"]
    assert all(row["device"] in drawn["devices_tpot.svg"] for row in known)


def test_a_verdict_is_where_the_target_lies_in_the_interval():
    head = {"device": "X", "fits": True, "needed_memory_bytes": 1, "memory_bytes": 2, "note": ""}
    seconds = {
        "ttft_low_s": 1.0,
        "ttft_s": 2.0,
        "ttft_high_s": 3.0,
        "tpot_low_s": 0.1,
        "tpot_s": 0.2,
        "tpot_high_s": 0.3,
    }
    assert [verdict(at, seconds, "ttft") for at in (3, 2.9, 2, 1.9, 1, 0.9)] == [
        "yes", "likely", "likely", "unlikely", "unlikely", "no",
    ]  # fmt: skip
    large = head | {"fits": False, "needed_memory_bytes": 3e9, "memory_bytes": 1e9, "device": "Y"}
    slow = {key: 2 * value for key, value in seconds.items()}
    rows = [large | seconds, head | {"note": "lacks"}, head | slow, head | seconds]
    ranked = answered(rows, [3.5], [0.3])
    assert [(row["rank"], row["meets"]) for row in ranked] == [(1, "yes"), (2, "unlikely"), (3, "no"), (4, "unknown")]
    assert ranked[0]["margin"] == min(3.5 / 2, 0.3 / 0.2) and ranked[1]["margin"] == 0.3 / 0.4
    assert ranked[2]["note"] == "Y lacks 2 GB of memory" and ranked[3]["margin"] == ""


def test_targets_answer_first_for_the_devices_that_are_asked(model):
    answer, *others = tables("targets", "deepseek_ocr", "devices=h100_sxm,apple_m1", "runtime=[flash,compulsory]",
                             "ttft=[0.5,1e-6]", "image_size=1240x1754", "largest=2")  # fmt: skip
    assert [table.name for table in others] == ["responsive_by_ttft", "responsive_by_tpot", "device_shares"]
    assert len(answer.rows) == 2 * 2 and {row["name"] for row in answer.rows} == {"h100_sxm", "apple_m1"}
    found = times(model, "h100_sxm", image_size="1240x1754", runtime="flash")
    (row,) = answer.select(name="h100_sxm", ttft_target_s=0.5)
    assert span(row, "ttft") == found.ttft and row["rank"] == 1 and row["meets"] == "yes"
    assert row["margin"] == min(0.5 / found.ttft.seconds, 0.05 / found.tpot.seconds)
    assert {row["meets"] for row in answer.select(ttft_target_s=1e-6)} == {"no"}
    assert not any("device" in table.settings for table in others)


def test_targets_without_devices_are_as_they_were():
    found = tables("targets", "deepseek_ocr", "device=null", "largest=2")
    assert [table.name for table in found] == ["responsive_by_ttft", "responsive_by_tpot", "device_shares"]
    assert "overhead" not in found[0].settings
    (answer, *_) = tables("targets", "llama_3_2_1b", "device=a10", "runtime=fused", "largest=2")
    assert answer.rows[0]["meets"] == "unknown" and "'fused' is a bound" in answer.rows[0]["note"]


def test_targets_of_a_text_model_are_answered_for_the_whole_catalogue():
    (answer, *_) = tables("targets", "llama_3_2_1b", "runtime=vllm")
    assert len(answer.rows) == len(config_names("device")) > len(FEATURED)
    order = ["yes", "likely", "unlikely", "no", "unknown"]
    places = [order.index(row["meets"]) for row in answer.rows]
    assert places == sorted(places)


@pytest.mark.parametrize("command", [
    ["time", "llama_3_2_1b"], ["fits", "llama_3_2_1b"], ["sweep", "sequence", "heads=null", "prefill_tokens=9", "runtime=flash"],
    ["sweep", "devices"], ["sweep", "targets", "largest=2", "runtime=flash"],
])  # fmt: skip
def test_a_users_own_device_is_one_file_at_every_door(command, page, tmp_path, capsys):
    out = [] if command[0] == "fits" else [f"out={tmp_path}"]
    model = ["model=llama_3_2_1b"] * (command[0] == "sweep")
    figures = ["figures=false"] * (command[0] == "sweep")
    assert cli.main([*command, *model, f"device={page}", *out, *figures]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out + "".join(path.read_text() for path in tmp_path.rglob("*.md"))
    assert "Mine" in told


def test_what_does_not_fit_meets_no_target(tmp_path):
    small = tmp_path / "small.yaml"
    small.write_text(MINE.format(memory="1e9", rest=COMPLETE))
    (answer, *_) = tables("targets", "llama_3_2_1b", f"device={small}", "runtime=vllm")
    (row,) = answer.rows
    assert row["meets"] == "no" and not row["fits"] and "lacks" in row["note"] and row["ttft_meets"] == "yes"


@pytest.mark.parametrize("model_name, options", [
    ("deepseek_ocr", {"grid": "2x3", "runtime": "vllm"}), ("paddleocr_vl", {"image_size": "640x480", "runtime": "flash"}),
    ("llama_3_2_1b", {"runtime": "eager", "batch": 2}), ("nougat_base", {"runtime": "flash"}),
])  # fmt: skip
def test_a_timeline_is_the_request_part_by_part(model_name, options):
    found = times(modelmeter.load_model(model_name), "l40s", **options)
    parts = list(timeline(found))
    for name, stage in found.stages.items():
        own = [part for part in parts if part.stage == name]
        busy = sum(part.each.seconds for part in own if not part.host)
        assert busy == pytest.approx(stage.device.seconds)
        assert [part.each for part in own if part.name == "launches"] == [stage.launches]
        tops = by_component(stage, top)
        assert sum(one.device.seconds for one in tops.values()) == pytest.approx(busy)
    last = parts[-1]
    assert last.start + last.all.seconds == pytest.approx(found.request.seconds)
    first = min(part.start for part in parts if part.stage == "decode")
    assert first == pytest.approx(found.ttft.seconds)


def test_the_timeline_is_drawn_for_one_to_many_devices_each_text_beside_no_other(model):
    work = model.workload(grid="2x3", runtime="vllm")
    found = [Times(model, work, device, HOST) for device in load_devices(["h100_sxm", "l40s", "apple_m1"])]
    for some in (found[:1], found):
        drawn = timeline_figures(some, ("svg",))["time.svg"]
        for one in some:
            assert one.on.title in drawn and "whisker" in drawn
        for word in ("vision: sam", "vision: clip", "decode: experts", "decode: attention", "host: images", "x 100"):
            assert word in drawn, word
    assert list(timeline_figures(found * 3, ("svg",))) == ["time.svg", "time_2.svg"]


def test_the_command_time_writes_its_figure_where_it_is_told(tmp_path, capsys):
    command = ["time", "llama_3_2_1b", "device=l40s,h100_sxm", "runtime=vllm"]
    assert cli.main(command) == 0
    plain = capsys.readouterr().out
    assert cli.main([*command, f"out={tmp_path / 'here'}"]) == 0
    assert capsys.readouterr().out == f"{plain.rstrip()}\n\ntime.svg, time.png\nin {tmp_path / 'here'}\n"
    assert (tmp_path / "here" / "time.png").read_bytes().startswith(b"\x89PNG")


def test_tables_on_disk_have_the_columns_and_say_how(tmp_path):
    assert cli.main(["sweep", "compare", "device=h100_sxm,a10", "runtime=vllm", "weights=bf16", f"out={tmp_path}"]) == 0
    folder = tmp_path / "compare"
    (row,) = csv.DictReader((folder / "compare.csv").open(newline=""))
    said = json.loads((folder / "compare.json").read_text())
    assert float(row["a10_ttft_s"]) == said["rows"][0]["a10_ttft_s"] and row["runtime"] == "vllm"
    assert [device["name"] for device in said["config"]["device"]] == ["h100_sxm", "a10"]
    assert "NVIDIA A10: TTFT, ms" in (folder / "compare.md").read_text()
    assert (folder / "compare_ttft.svg").is_file()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_silent_for_two_seconds_and_leaves_no_trace_on_a_terminal():
    quick, slow = Terminal(), Terminal()
    assert list(watched(range(3), "pages", 3, quick, iter([0, 0.5, 1, 1.9]).__next__)) == [0, 1, 2]
    assert quick.getvalue() == ""
    list(watched(range(4), "pages", 4, slow, iter([0, 1, 2.5, 2.6, 3]).__next__))
    assert slow.getvalue() == "\r2 of 4 pages\r            \r"
