"""Targets, sequence, profiles and compression: rows against the models' own costs by another way."""

import csv
import json
import re

import pytest

import modelmeter
from modelmeter import catalogue, cli
from modelmeter.device import RESOURCES, Device
from modelmeter.errors import InputError
from modelmeter.layers.attention import attention_layers, with_heads
from modelmeter.sweep.profiles import Profile
from modelmeter.sweep.targets import SHARES


def swept(folder, name, *arguments, figures="false"):
    assert cli.main(["sweep", name, f"out={folder}", f"figures={figures}", *arguments]) == 0
    return {path.stem: list(csv.DictReader(path.open(newline=""))) for path in (folder / name).glob("*.csv")}


def whole(row, *columns):
    return [int(row[column]) for column in columns]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    out = tmp_path_factory.mktemp("targets")
    rows = swept(
        out,
        "targets",
        "largest=6",
        "ttft=[1.0,0.25]",
        "tpot=[0.05,0.02]",
        "image_size=1700x2200",
        "decode_steps=40",
        "device=h100_sxm",
        figures="true",
    )
    return out / "targets", rows


def test_required_rate_times_budget_is_the_cost_of_the_stage(targets, model):
    _, tables = targets
    for name, budgets in (("responsive_by_ttft", {1.0, 0.25}), ("responsive_by_tpot", {0.05, 0.02})):
        rows = tables[name]
        assert {float(row["budget_s"]) for row in rows} == budgets
        assert len(rows) == 2 * 4 * (len(model.planner.grids(6)) + 1)
        for row in rows:
            work = model.workload(
                grid=f"{row['grid_h']}x{row['grid_w']}",
                runtime=row["execution"],
                decode_steps=40,
            )
            if name.endswith("ttft"):
                cost, steps = model.cost("vision", work) + model.cost("prefill", work), 1
            else:
                cost, steps = model.cost("decode", work), 40
            seconds = float(row["budget_s"]) * steps
            assert float(row["required_flops_per_s"]) * seconds == pytest.approx(cost.flops, rel=1e-12)
            assert float(row["required_bytes_per_s"]) * seconds == pytest.approx(float(cost.io_bytes), rel=1e-12)


def test_what_binds_is_the_resource_whose_time_is_longest(targets, model):
    _, tables = targets
    devices = {device.title: device for device in catalogue.load_devices(catalogue.FEATURED)}
    assert len(devices) == 8
    for row in tables["device_shares"][::7]:
        device, work = (
            devices[row["device"]],
            model.workload(
                grid=f"{row['grid_h']}x{row['grid_w']}",
                runtime=row["execution"],
                decode_steps=40,
            ),
        )
        stages = ("vision", "prefill") if row["target"] == "TTFT" else ("decode",)
        costs = [model.cost(stage, work) for stage in stages]
        times = [
            sum(c.tensor_core_flops for c in costs) / device.tensor_flops_per_s,
            sum(c.cuda_core_flops for c in costs) / device.cuda_flops_per_s,
            float(sum(c.io_bytes for c in costs)) / device.memory_bytes_per_s,
        ]
        assert row["binds"] == RESOURCES[times.index(max(times))]
        seconds = float(row["budget_s"]) * (40 if row["target"] == "TPOT" else 1)
        assert [float(row[s]) for s in SHARES] == pytest.approx([t / seconds for t in times], rel=1e-12)
        assert row["within_peaks"] == str(max(times) <= seconds).lower()
        need = model.request(work)
        needed = need.weight_bytes + need.peak_activation_bytes + need.kv_cache_bytes
        assert (
            int(row["needed_memory_bytes"]) == needed
            and row["fits_memory"] == str(needed <= device.memory_bytes).lower()
        )


def test_decode_is_bound_by_bandwidth_on_every_device_and_the_table_says_so(targets):
    folder, tables = targets
    decode = [row for row in tables["device_shares"] if row["target"] == "TPOT"]
    assert decode and all(row["binds"] == "memory bandwidth" for row in decode)
    assert all(float(row["memory_bandwidth_share"]) > 50 * float(row["tensor_core_share"]) for row in decode)
    text = (folder / "device_shares.md").read_text()
    assert "TPOT is bound by memory bandwidth at every grid, in every execution and on all 8 devices" in text
    assert "TTFT is bound" not in text


def test_targets_draw_their_figures(targets):
    names = {path.name for path in targets[0].glob("*.svg")}
    assert {"responsive_tflops_by_ttft.svg", "responsive_tflops_by_tpot.svg", "device_shares_tpot.svg"} <= names


def test_the_catalogue_is_dense_peaks_with_fp32_accumulation():
    """GeForce at its rate with fp32 accumulation, data-centre parts at half of the sparse figure of their sheets."""
    devices = {device.name: device for device in catalogue.load_devices()}
    assert devices["rtx_4090"].tensor_flops_per_s == 165.2e12 and devices["rtx_5090"].tensor_flops_per_s == 209.5e12
    for name, sparse in (("a100_40gb", 624e12), ("a100_80gb", 624e12), ("h100_sxm", 1979e12), ("h200_sxm", 1979e12)):
        assert devices[name].tensor_flops_per_s == pytest.approx(sparse / 2, rel=1e-3)
    assert devices["a100_80gb"].memory_bytes_per_s == 2039e9 and devices["h200_sxm"].memory_bytes == 141e9
    featured = [devices[name] for name in catalogue.FEATURED]
    assert all("sheet" in device.source.lower() or "white paper" in device.source for device in featured)
    assert len(devices) > 40 and all(device.confidence != "C" or device.source for device in devices.values())


def test_a_users_device_is_a_file_anywhere(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    lines = "title: Mine\ntensor_flops_per_s: 1e15\ncuda_flops_per_s: 1e14\nmemory_bytes_per_s: 1e12\nmemory_bytes: 8e9\nsource: a guess\n"
    mine.write_text(lines)
    rows = swept(tmp_path, "targets", "largest=2", f"devices=[{mine},l40s]")["device_shares"]
    assert {row["device"] for row in rows} == {"Mine", "NVIDIA L40S"}
    for text, message in (
        (lines.replace("1e15", "0"), "tensor_flops_per_s must be a number above 0, at most 1e+30, not 0"),
        (lines.replace("title", "tittle"), "unknown key of device"),
        (lines.partition("\n")[2], "lacks title"),
        ("a: [", "cannot be read as YAML"),
        ("- 1", "must hold KEY: VALUE lines"),
        ("", "must hold KEY: VALUE lines"),
        (lines.replace("1e15", "9" * 400), "tensor_flops_per_s must be a number above 0"),
        (lines.replace("Mine", "NVIDIA L40S"), "two entries with the title 'NVIDIA L40S'"),
    ):
        mine.write_text(text)
        assert cli.main(["sweep", "targets", f"devices=[{mine},l40s]", f"out={tmp_path}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_device_shares_above_one_cannot_be_met():
    device = Device("x", "X", 100.0, 10.0, 10.0, 50.0, "a sheet")
    shares = device.shares(modelmeter.StageCost(tensor_core_flops=50, cuda_core_flops=1, kv_io_bytes=40), 2.0)
    assert shares == {"tensor cores": 0.25, "CUDA cores": 0.05, "memory bandwidth": 2.0}
    assert device.ridge_flops_per_byte == 10
    for seconds in (0, -1, float("inf"), "a"):
        with pytest.raises(InputError, match="seconds must be a number above 0"):
            device.shares(modelmeter.StageCost(), seconds)


SEQUENCE = ("prefill_tokens=[7,300,9000]", "decode_tokens=[3,50]", "batch=[1,5]", "heads=[10x10,20x4,5x1]")


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("sequence"), "sequence", *SEQUENCE)["sequence"]


def test_a_sequence_row_is_the_cost_of_the_model_built_with_those_heads(sequence):
    assert len(sequence) == 3 * 2 * 2 * 3 * 2 * 2
    pairs = {(row["heads"], row["kv_heads"]) for row in sequence}
    models = {
        (heads, kv): modelmeter.load_model("deepseek_ocr", [f"decoder.heads={heads}", f"decoder.kv_heads={kv}"])
        for heads, kv in pairs
    }
    for row in sequence:
        other = models[row["heads"], row["kv_heads"]]
        work = other.text(
            int(row["prefill_tokens"]),
            batch=int(row["batch"]),
            decode_steps=int(row["decode_steps"]),
            runtime=row["execution"],
        )
        exact = other.cost(row["stage"], work)
        assert whole(row, "tensor_core_flops", "cuda_core_flops", "peak_activation_bytes", "kv_cache_bytes") == [
            exact.tensor_core_flops, exact.cuda_core_flops, exact.peak_activation_bytes, exact.kv_cache_bytes,
        ]  # fmt: skip
        assert float(row["io_bytes"]) == pytest.approx(float(exact.io_bytes), rel=1e-12)
        if row["stage"] == "decode":
            tokens = work.decode_steps * work.batch
            assert float(row["tensor_core_flops_per_token"]) == pytest.approx(exact.tensor_core_flops / tokens)


def test_contexts_beyond_the_positions_are_counted_and_marked(sequence, model):
    assert model.positions == 8192
    for row in sequence:
        reach = int(row["prefill_tokens"]) + (int(row["decode_steps"]) if row["stage"] == "decode" else 0)
        assert row["beyond_positions"] == str(reach > 8192).lower()
    assert {row["beyond_positions"] for row in sequence} == {"true", "false"}


def test_fewer_kv_heads_shrink_the_cache_alone(sequence):
    """GQA with g of h heads keeps the scores' FLOPs and has g/h of the cache."""
    place = {"prefill_tokens": "300", "decode_steps": "50", "batch": "1", "attention": "flash", "stage": "decode"}
    rows = {r["kv_heads"]: r for r in sequence if all(r[k] == v for k, v in place.items())}
    sizes = {kv: int(row["kv_cache_bytes"]) for kv, row in rows.items()}
    assert sizes["10"] == 350 * 61440 and sizes["4"] == 350 * 61440 * 4 // 20 and sizes["1"] == 350 * 61440 // 5


def test_heads_as_arrays_are_the_heads_one_by_one(model):
    import numpy as np

    pairs = [(10, 10), (20, 4), (5, 1)]
    heads, kv = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    together = with_heads(model, heads, kv).cost("prefill", model.text(300))
    for i, pair in enumerate(pairs):
        one = with_heads(model, *pair).cost("prefill", model.text(300))
        assert (
            together.tensor_core_flops[i] == one.tensor_core_flops and together.kv_cache_bytes[i] == one.kv_cache_bytes
        )
    assert attention_layers(model)[0].r == 1 and with_heads(model, 10, 10) == model


def test_heads_and_texts_that_make_no_sense_are_refused(model):
    for heads, kv_heads in ((0, 0), ("a", 1), (10, 0)):
        with pytest.raises(InputError, match="must be a whole number of at least 1"):
            with_heads(model, heads, kv_heads)
    with pytest.raises(InputError, match="unknown workload key 'grid'"):
        model.text(10, grid="3x2")


def test_text_alone_has_no_vision_stage(model):
    work = model.text(100)
    assert (
        model.cost("vision", work).flops == 0
        and model.request(work).parameters == model.cost("prefill", work).parameters
    )


def test_a_page_of_text_costs_as_much_as_a_picture_of_as_many_tokens(model):
    page = model.workload(mode="tiny", prompt_tokens=5)
    assert model.cost("prefill", model.text(page.context_tokens)) == model.cost("prefill", page)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("profiles"), "profiles")["profiles"]


def test_every_named_document_goes_through_its_stages(profiles, model):
    found = {profile.name: profile for profile in catalogue.load_profiles()}
    assert {"receipt", "a4_200dpi", "newspaper", "slides", "dense_table"} == set(found)
    assert len(profiles) == len(found) * 2 * 5
    for row in profiles:
        profile = found[row["profile"]]
        mode = "gundam_m" if row["profile"] == "newspaper" else None
        work = model.workload(
            image_size=profile.image_size, mode=mode, prompt_tokens=profile.prompt_tokens,
            decode_steps=profile.output_tokens, runtime=row["execution"],
        )  # fmt: skip
        cost = model.request(work) if "page" in row["stage"] else model.cost(row["stage"], work)
        times = profile.pages if row["stage"] == "all pages" else 1
        assert whole(row, "tensor_core_flops", "weight_bytes", "kv_cache_bytes", "image_tokens") == [
            times * cost.tensor_core_flops, cost.weight_bytes, cost.kv_cache_bytes, work.image.tokens,
        ]  # fmt: skip


def test_a_newspaper_is_read_in_gundam_m_and_a_deck_is_many_requests(profiles):
    modes = {row["profile"]: row["mode"] for row in profiles}
    assert modes["newspaper"] == "gundam_m" and modes["a4_200dpi"] == "gundam"
    page, deck = (
        next(r for r in profiles if r["profile"] == "slides" and r["stage"] == s) for s in ("page", "all pages")
    )
    assert int(deck["tensor_core_flops"]) == 20 * int(page["tensor_core_flops"])
    assert deck["weight_bytes"] == page["weight_bytes"]


def test_a_users_profile_is_a_file_anywhere(tmp_path, capsys):
    mine = tmp_path / "my page.yaml"
    mine.write_text("title: Mine\nimage_size: 500x400\nprompt_tokens: 3\noutput_tokens: 7\nmode: tiny\n")
    rows = swept(tmp_path, "profiles", f"profiles=['{mine}',receipt]")["profiles"]
    assert {(row["title"], row["mode"]) for row in rows} == {("Mine", "tiny"), ("Receipt", "gundam")}
    content = json.loads((tmp_path / "profiles" / "profiles.json").read_text())
    assert content["config"]["profiles"][0]["output_tokens"] == 7
    mine.write_text("title: Mine\nimage_size: 500x400\nprompt_tokens: 3\noutput_tokens: 7\nmode: tinny\n")
    assert cli.main(["sweep", "profiles", f"profiles=['{mine}']", f"out={tmp_path}"]) == 2
    assert "unknown mode of profile my page 'tinny', did you mean 'tiny'" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "message"), [
    ({"image_size": "5"}, "image_size must be WIDTHxHEIGHT"), ({"output_tokens": 0}, "output_tokens must be a whole number of at least 1"),
    ({"pages": 0}, "pages must be"), ({"prompt_tokens": -1}, "prompt_tokens must be"), ({"title": ""}, "title must be words"), ({"mode": 5}, "mode must be a mode"),
])  # fmt: skip
def test_a_profile_that_makes_no_sense_is_refused(change, message):
    good = {"name": "x", "title": "X", "image_size": "5x5", "prompt_tokens": 1, "output_tokens": 1}
    with pytest.raises(InputError, match=message):
        Profile(**good | change)


@pytest.fixture(scope="module")
def compression(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("compression"), "compression", "decode_steps=20")["compression"]


def test_compression_is_the_papers_to_the_printed_digit(compression):
    """arXiv 2510.18234, table 2: one page length satisfies both printed compressions of each bin."""
    paper = {
        "tiny": ["10.5", "11.8", "13.2", "15.1", "16.5", "17.7", "19.7"],
        "small": ["6.7", "7.5", "8.5", "9.7", "10.6", "11.3", "12.6"],
    }
    for mode, printed in paper.items():
        rows = [row for row in compression if row["mode"] == mode]
        assert [f"{float(row['compression']):.1f}" for row in rows] == printed
        assert [row["published_compression"] for row in rows] == printed
    assert {row["vision_tokens"] for row in compression} == {"64", "100", "256", "400"}


def test_what_compression_saves_is_the_text_less_the_picture(compression, model):
    for row in compression:
        page = model.workload(mode=row["mode"], decode_steps=20)
        text = model.text(int(row["text_tokens"]) + 10, decode_steps=20)
        saved = model.cost("prefill", text).flops - model.cost("prefill", page).flops
        assert int(row["saved_prefill_flops"]) == saved
        assert int(row["saved_flops_less_vision"]) == saved - model.cost("vision", page).flops
        fewer = text.context_tokens - page.context_tokens
        assert int(row["saved_kv_cache_bytes"]) == fewer * 61440
        # each of the 20 steps reads the keys and values of `fewer` tokens less
        assert float(row["saved_decode_io_bytes"]) == pytest.approx(20 * fewer * 61440, rel=1e-6)


def test_modes_with_crops_join_in_when_a_grid_is_given(tmp_path):
    rows = swept(tmp_path, "compression", "grid=2x3", "text_tokens=5000")["compression"]
    tokens = {row["mode"]: row["vision_tokens"] for row in rows}
    assert tokens["gundam"] == str(6 * 100 + 256) and tokens["gundam_m"] == str(6 * 256 + 400) and "tiny" in tokens


def test_every_sweep_marks_contexts_beyond_the_positions(tmp_path):
    rows = swept(tmp_path, "compression", "grid=6x6", "text_tokens=100", "modes=[gundam_m,tiny]")["compression"]
    marks = {row["mode"]: (row["beyond_positions"], row["extrapolated"]) for row in rows}
    assert marks == {"gundam_m": ("true", "true"), "tiny": ("false", "false")}  # 421 + 96 * 97 image tokens
    mine = tmp_path / "long.yaml"
    mine.write_text(
        "title: Long\nimage_size: 500x400\nprompt_tokens: 10\noutput_tokens: 8000\n"
    )  # 283 before the answer
    rows = swept(tmp_path, "profiles", f"profiles={mine}")["profiles"]
    assert {row["stage"]: row["beyond_positions"] for row in rows} == {
        "vision": "false", "prefill": "false", "decode": "true", "page": "true", "all pages": "true",
    }  # fmt: skip
    rows = swept(tmp_path, "e2e_decode", "largest=2", "decode_steps=7699")["e2e_decode"]  # 493 + 7699 = 8192
    assert {row["beyond_positions"] for row in rows} == {"false"}
    rows = swept(tmp_path, "e2e_decode", "largest=2", "decode_steps=7700")["e2e_decode"]
    assert {row["beyond_positions"] for row in rows} == {"true"}
    rows = swept(tmp_path, "e2e_vision_prefill", "largest=2", "prompt_tokens=7710")["e2e_vision_prefill"]
    assert {row["component"] for row in rows if row["beyond_positions"] == "false"} == {"vision"}


def test_verdicts_of_the_digest_are_those_of_its_rows(targets):
    """53 grids in one line: how many stay within the peaks, how many fit the memory."""
    folder, tables = targets
    text = (folder / "device_shares.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| T")]
    assert lines
    for line in lines:
        target, budget, execution, device, *_, within, fits, _source = (
            cell.strip() for cell in line.strip("|").split("|")
        )
        key = {"target": target, "execution": execution, "device": device}
        rows = [
            r
            for r in tables["device_shares"]
            if all(r[k] == v for k, v in key.items()) and float(r["budget_s"]) == float(budget)
        ]
        assert within == f"{sum(r['within_peaks'] == 'true' for r in rows)}/{len(rows)}"
        assert fits == f"{sum(r['fits_memory'] == 'true' for r in rows)}/{len(rows)}"


def test_a_small_memory_and_a_tight_budget_are_told_apart(tmp_path):
    mine = tmp_path / "mine.yaml"
    sheet = "title: {}\ntensor_flops_per_s: {}\ncuda_flops_per_s: 1e15\nmemory_bytes_per_s: 1e13\nmemory_bytes: {}\nsource: a guess\n"
    for title, flops, memory, verdict in (
        ("Small", "1e15", "1e9", ("true", "false")),
        ("Slow", "1e11", "1e12", ("false", "true")),
    ):
        mine.write_text(sheet.format(title, flops, memory))
        rows = swept(tmp_path, "targets", "largest=2", f"devices={mine}", "runtime=flash")["device_shares"]
        assert {(r["within_peaks"], r["fits_memory"]) for r in rows if r["target"] == "TTFT"} == {verdict}
        text = (tmp_path / "targets" / "device_shares.md").read_text()
        assert re.search(r"\| 1/1 \| 0/1 \|" if title == "Small" else r"\| TTFT .*\| 0/1 \| 1/1 \|", text)


def test_parquet_holds_the_rows_of_the_csv_exactly(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = swept(tmp_path, "vision_crops", "largest=3", "batch=100000000")["vision_crops"]
    table = parquet.read_table(tmp_path / "vision_crops" / "vision_crops.parquet")
    for name in ("tensor_core_flops", "io_bytes"):
        assert [str(value) for value in table[name].to_pylist()] == [row[name] for row in rows]
    assert max(int(row["tensor_core_flops"]) for row in rows) > 2**63


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_jobs_of_every_launcher_write_the_same_rows(launcher, tmp_path):
    import subprocess
    import sys

    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = [
        "--multirun",
        f"hydra/launcher={launcher}",
        "decode_steps=5,9",
        "largest=3",
        "figures=false",
        f"out={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "modelmeter.sweep", "e2e_decode", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for job, steps in enumerate((5, 9)):
        alone = swept(tmp_path / f"alone{job}", "e2e_decode", "largest=3", f"decode_steps={steps}")
        with (tmp_path / f"job{job}" / "e2e_decode" / "e2e_decode.csv").open(newline="") as file:
            assert list(csv.DictReader(file)) == alone["e2e_decode"]


def test_options_of_counting_are_selectable_in_every_sweep(tmp_path, model):
    shapes = {"sequence": ("prefill_tokens=50", "decode_tokens=3", "batch=1", "heads=null"), "profiles": ("profiles=receipt",), "compression": ("text_tokens=600", "modes=tiny"), "targets": ("largest=2", "device=h100_sxm"), "e2e_decode": ("largest=2",), "e2e_vision_prefill": ("largest=2",), "vision_crops": ("largest=2",)}  # fmt: skip
    for name, arguments in shapes.items():
        for kind in ("eager", "flash"):
            tables = swept(tmp_path / kind, name, *arguments, f"runtime={kind}", "causal=exact", "logits=last")
            assert {row["attention"] for rows in tables.values() for row in rows if row["execution"] == kind} == {kind}
            text = (tmp_path / kind / name / f"{next(iter(tables))}.md").read_text()
            assert "causal exact, logits last" in text, name
            assert not re.search(r"^\| .*(nan|None)", text, re.MULTILINE)


def test_a_curve_of_zeros_can_be_drawn(tmp_path):
    """A page of as many text tokens as the picture has image tokens saves nothing."""
    tables = swept(tmp_path, "compression", "modes=tiny", "text_tokens=73", figures="true")
    assert tables["compression"][0]["saved_prefill_flops"] == "0"
    assert (tmp_path / "compression" / "compression_saved_prefill.svg").is_file()


def test_the_execution_is_in_every_row_and_picture(tmp_path):
    rows = swept(tmp_path, "vision_crops", "runtime=fused", "largest=2", figures="true")["vision_crops"]
    assert {(row["attention"], row["execution"]) for row in rows} == {("flash", "fused")}
    text = (tmp_path / "vision_crops" / "vision_crops.md").read_text()
    assert "| fused |" in text and "fused execution" in (tmp_path / "vision_crops" / "stagecost_io_tb.svg").read_text()
