"""What fits into a device's memory, against brute force; runtimes and formats side by side, against the costs."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinds import ONE_OF_EACH

import modelmeter
from modelmeter import catalogue, cli, config
from modelmeter.errors import InputError
from modelmeter.fits import CHANGES, Fits, largest, request_of, rooms
from modelmeter.folders import config_names
from modelmeter.programs.precision import Precision
from modelmeter.runtimes.runtime import Runtime
from modelmeter.settings import COUNTING
from modelmeter.sizes import ceil_div, maximum, minimum, never_falls, place_in, ratio, symbol
from modelmeter.sweep.columns import significant

PAGE = {"prompt_tokens": 10, "decode_steps": 100}
CASES = [
    ("deepseek_ocr", {"image_size": "1240x1754", "runtime": "flash"}, 24e9),
    ("deepseek_ocr", {"image_size": "1240x1754", "runtime": "eager", "precision": {"weights": "q4_k_m"}}, 16e9),
    ("qwen2_5_vl_7b", {"image_size": "640x480", "precision": {"weights": "q8_0", "kv": "fp8"}}, 24e9),
    ("nougat_base", {"runtime": "eager"}, 8e9),  # cross attention
    ("gemma_2_2b", {"runtime": "eager"}, 24e9),  # windows
    ("gemma_2_2b", {"runtime": "fused", "logits": "last", "causal": "exact"}, 24e9),
    ("deepseek_v2_lite", {"precision": {"weights": "int4_g64"}, "latent": "absorbed"}, 24e9),
    ("gpt_oss_20b", {"precision": {"weights": "mxfp4_moe"}}, 48e9),
]


def needed(model, work, overhead=0):
    """The most of any stage: all weights, the KV cache after it, its peak."""
    weights = sum(bytes_ for _, bytes_ in model._weights(work.counting).values())
    return (
        max(weights + cost.kv_cache_bytes + cost.peak_activation_bytes for cost in model.costs(work).values())
        + overhead
    )


def said(capsys, *arguments):
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name, options, memory", CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_one_more_does_not_fit(name, options, memory):
    model = modelmeter.load_model(name)
    fits = Fits(model, request_of(model, **PAGE | options), overhead=10**9)
    assert fits.needed == needed(model, fits.work, 10**9)
    batch, context = fits.batch_at_most(memory), fits.context_at_most(memory)
    assert batch >= 1 and context > fits.context
    for many, inside in ((batch, True), (batch + 1, False)):
        assert (needed(model, replace(fits.work, batch=many), 10**9) <= memory) is inside
    for reach, inside in ((context, True), (context + 1, False)):
        work = request_of(model, reach, **PAGE | options)
        assert work.context_tokens + work.decode_steps == reach
        assert (needed(model, work, 10**9) <= memory) is inside


@pytest.mark.parametrize("name, options", [(name, options) for name, options, _ in CASES[::2]], ids=str)
def test_the_closed_form_is_the_cost_at_every_size(name, options):
    model = modelmeter.load_model(name)
    fits = Fits(model, request_of(model, **PAGE | options), overhead=7)
    for size in (1, 2, 3, 5, 64, 4095, 4096, 4097, 70_001):
        assert fits._by_batch(size) == needed(model, replace(fits.work, batch=size), 7)
        assert fits._by_prompt(size) == needed(model, replace(fits.work, prompt_tokens=size), 7)


REFUSED = {
    ("nougat_base", "openvino"): "on a cache of another sequence, is not modelled",
    ("nougat_small", "openvino"): "on a cache of another sequence, is not modelled",
    ("got_ocr2", "compile"): "it is not certain that what it takes grows with batch",  # copies of one page alone
    **{(name, "llama"): "side by side is not known here" for name in ("command_r_35b", "dolly_v2_3b", "phi_2")},
    **{
        (name, "llama"): "attention in windows is known here in llama.cpp of"
        for name in ("phi_3_5_mini", "phi_3_5_moe", "starcoder2_15b")
    },
    ("deepseek_v2", "llama"): "llama.cpp judges a group of experts by its two best",
    ("command_r_35b", "openvino"): "how OpenVINO runs this norm, as several primitives, is not modelled",
    ("vary_7b", "compile"): "it is not certain that what it takes grows with batch",
}
"""What runtimes do not run, by model and engine."""


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_a_request_takes_is_certain_to_grow_with_every_model_and_runtime(name):
    model = modelmeter.load_model(name)
    cut = model.planner and (model.planner.varies or model.planner.has_crops(None))
    for runtime in config_names("runtime")[ONE_OF_EACH.index(name) % 3 :: 3]:  # each with a third of them
        options = {"image_size": "1240x1754"} if cut else {}
        if runtime.startswith("llama_cpp"):
            options["latent"] = "absorbed"  # as it runs
        reason = next((why for (named, of), why in REFUSED.items() if (named, of) == (name, runtime.split("_")[0])), "")
        if reason:
            with pytest.raises(InputError, match=reason):
                assert Fits(model, request_of(model, runtime=runtime, **PAGE, **options)).batch_at_most(200e9)
            continue
        fits = Fits(model, request_of(model, runtime=runtime, **PAGE, **options))
        for memory in (fits.needed, 200e9):  # refused where it is not certain
            assert (fits.batch_at_most(memory) >= 1) == (fits.needed <= memory)
            assert fits.context_at_most(memory) >= (fits.context if fits.needed <= memory else 0)
        assert not fits.batch_at_most(fits.needed - 1) and fits.context_at_most(fits.needed - 1) < fits.context


@given(st.integers(0, 10**9), st.integers(0, 1))
def test_bisection_finds_the_edge(edge, least):
    assert largest(lambda n: n <= edge, least) == max(edge, least - 1)


def test_what_may_fall_is_not_certain_to_grow():
    n, m = symbol("n"), symbol("m")
    for grows in (
        5,
        n,
        n * n + 3 * m,
        n * minimum(n - 1, 5),
        maximum(2 * n, m - 7),
        ceil_div(n, 4) * m,
        n * ratio(m, 3),
    ):
        assert never_falls(grows)
    for falls in (5 - n, n * n - n, place_in(n, 4), ratio(5, n), maximum(n, 5 - m), minimum(n, 3) - n):
        assert not never_falls(falls)


def test_where_it_is_not_certain_none_is_told(monkeypatch):
    model = modelmeter.load_model("text")
    monkeypatch.setattr("modelmeter.fits.never_falls", lambda value: False)
    with pytest.raises(InputError, match=r"^text: it is not certain that what it takes grows with batch"):
        Fits(model, request_of(model, **PAGE)).batch_at_most(1e9)


def test_all_weights_are_there_though_no_image_is(model):
    text = request_of(model, 2000, **PAGE)
    assert not text.image.views and text.prompt_tokens == 1900
    page = request_of(model, 2000, **PAGE, image_size="1240x1754")
    assert page.image.tokens + page.prompt_tokens == 1900
    (weights,) = {room.weights for work in (text, page) for room in rooms(model, work)}
    assert (
        weights == model.storage().weight_bytes == model.storage(page).weight_bytes > model.storage(text).weight_bytes
    )
    assert [room.stage for room in rooms(model, text)] == ["prefill", "decode"]


def test_the_answer_comes_first_and_says_what_it_rests_on(capsys):
    keys = ("image=examples/page.png", "context=8192", "overhead=1e9")
    text = said(capsys, "fits", "deepseek_ocr", "device=rtx_4090", "weights=q4_k_m", *keys)
    model = modelmeter.load_model("deepseek_ocr")
    options = PAGE | {"image": "examples/page.png", "precision": Precision(weights="q4_k_m")}
    fits = Fits(model, request_of(model, 8192, **options), 10**9)
    first, *others = text.splitlines()
    assert first == (
        f"deepseek_ocr fits NVIDIA GeForce RTX 4090: {float(fits.needed) / 1e9:.4g} GB of 24 GB at batch 1 and a context of 8,192 "
        f"tokens; batch at most {fits.batch_at_most(24e9)}; context at most {fits.context_at_most(24e9):,}, beyond the "
        f"model's 8,192 positions"
    )
    assert "flash, causal full, logits all, q4_k_m/bf16/bf16" in others and "overhead: as given" in others
    rows = {line.split("  ")[0]: line for line in others}
    assert "2.748 GB" in rows["prefill"] and rows["prefill"].endswith("most") and "1 GB" in rows["vision"]


def test_the_overhead_has_a_source_and_none_is_said_too(capsys):
    assert config.compose("fits")["overhead"] == 1343 * 2**20
    text = said(capsys, "fits", "llama_3_2_1b", "device=l40s")
    assert "overhead: 1343 x 2**20 bytes: the CUDA context and kernels of PyTorch" in text and "1.408 GB" in text
    assert "fragmentation not counted" in said(capsys, "fits", "llama_3_2_1b", "device=l40s", "overhead=0")


def test_all_devices_at_once(capsys):
    text = said(capsys, "fits", "llama_3_1_70b", "weights=q4_k_m", "overhead=0", "context=4000")
    model = modelmeter.load_model("llama_3_1_70b")
    fits = Fits(model, request_of(model, 4000, **PAGE, precision={"weights": "q4_k_m"}))
    devices = catalogue.load_devices()
    for device in devices:
        (row,) = (line for line in text.splitlines() if line.startswith(f"{device.title}  "))
        inside = fits.needed <= device.memory_bytes
        batch, context = fits.batch_at_most(device.memory_bytes), fits.context_at_most(device.memory_bytes)
        most = [f"{size:,}" if size else "none" for size in (batch, context)]
        assert row.split()[-3:] == ["yes" if inside else "no", *most]
    short = [device for device in devices if fits.needed > device.memory_bytes]
    assert text.startswith(
        f"llama_3_1_70b fits {len(devices) - len(short)} of {len(devices)} devices, the smallest NVIDIA A40: "
    )
    assert text.count("does not fit") == len(short) > 0
    assert text == said(capsys, "fits", "llama_3_1_70b", "weights=q4_k_m", "overhead=0", "context=4000", "device=all")
    two = said(capsys, "fits", "llama_3_1_70b", "weights=q4_k_m", "overhead=0", "device=l40s,mi300x")
    assert two.startswith("llama_3_1_70b fits 2 of 2 devices, the smallest NVIDIA L40S")


def test_a_users_own_device_is_a_file(tmp_path, capsys):
    mine = tmp_path / "my device.yaml"
    mine.write_text(
        "title: Mine\ntensor_flops_per_s: 1e15\ncuda_flops_per_s: 1e14\nmemory_bytes_per_s: 1e12\nmemory_bytes: 8e9\nsource: a guess\n"
    )
    assert said(capsys, "fits", "llama_3_2_1b", f"device={mine}").startswith("llama_3_2_1b fits Mine: ")


@pytest.mark.parametrize(
    "model, keys",
    [
        ("llama_3_1_70b", ["device=h100_sxm", "context=8000"]),
        ("llama_3_2_1b", ["device=rtx_4090", "context=20000", "runtime=eager", "batch=4", "overhead=0"]),
        ("deepseek_ocr", ["device=l40s", "context=8192", "batch=30", "image_size=1240x1754"]),
        ("qwen2_5_7b", ["device=rtx_4090", "context=30000", "overhead=0"]),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_told_what_would_fix_it_and_it_does(model, keys, capsys):
    first = said(capsys, "fits", model, *keys).splitlines()[0]
    assert re.search(r"does not fit .*: it lacks \S+ [GM]B of the \S+ GB needed", first)
    ways = first.partition("what would fix it: ")[2].split(", or ")
    assert len(ways) > 1
    for way in ways:
        changed = {key.partition("=")[0]: key for key in (*keys, *way.split())}
        assert said(capsys, "fits", model, *changed.values()).startswith(f"{model} fits "), way
        for key in (key for key in way.split() if key.startswith(("batch=", "context="))):  # the most that fits
            more = f"{key.partition('=')[0]}={int(key.partition('=')[2]) + 1}"
            changed[key.partition("=")[0]] = more
            assert "does not fit" in said(capsys, "fits", model, *changed.values())


def test_changes_are_told_together_where_none_is_enough():
    model = modelmeter.load_model("llama_3_2_1b")
    fits = Fits(model, request_of(model, 30_000, **PAGE))
    (together,) = fits.changes(memory := 3.5e9)
    assert together.count("=") > 1 and "weights=q8_0" not in together
    work = fits.work
    for change in together.split():
        work = CHANGES[change](work)
    assert needed(model, work) <= memory < min(needed(model, change(fits.work)) for change in CHANGES.values())
    assert fits.changes(1e6) == []


def test_nothing_helps_a_model_that_is_too_large(capsys, monkeypatch):
    text = said(capsys, "fits", "deepseek_v3", "device=rtx_4090")
    assert "it lacks 1,3" in text or "it lacks 1.3" in text
    assert text.splitlines()[0].endswith("no change that is tried here would fix it")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["fits", "llama_3_2_1b", "device=rtx_4091"], "unknown device 'rtx_4091', did you mean 'rtx_4090'?"),
        (["fits", "llama_3_2_1b", "devices=l40s"], "unknown key 'devices', did you mean 'device'?"),
        (["fits", "llama_3_2_1b", "context=100"], "context must be at least 101, not 100: 0 image tokens"),
        (["fits", "deepseek_ocr", "context=900", "grid=3x2"], "context must be at least 1003, not 900: 903 image tokens"),
        (["fits", "llama_3_2_1b", "context=9", "prompt_tokens=3"], "give only one of context and prompt_tokens"),
        (["fits", "llama_3_2_1b", "overhead=-1"], "overhead must be a whole number of at least 0, not -1"),
        (["fits", "llama_3_2_1b", "context=many"], "context must be a whole number of at least 1, not 'many'"),
        (["fits", "llama_3_2_1b", "batch=0"], "batch must be a whole number of at least 1, not 0"),
        (["fits", "llama_3_2_1b", "weights=q4_k_n"], "unknown dtype for precision.weights 'q4_k_n', did you mean 'q4_k_s'?"),
        (["fits", "llama_3_2_1b", "runtime=fast"], "unknown runtime 'fast', did you mean 'flash'?"),
        (["fits", "llama_3_2_1b", "image=examples/page.png"], "llama_3_2_1b takes no image"),
        (["fits", "llama_3_2_1b", "model=text"], "give the model once, not llama_3_2_1b and model=text"),
        (["fits", "llama_3_2_1b", "l40s"], "'l40s' is not key=value"),
        (["fits", "llama"], "unknown model 'llama', did you mean"),
        (["compare", "llama_3_2_1b", "runtime=eager,fast"], "unknown runtime 'fast', did you mean 'flash'?"),
        (["compare", "llama_3_2_1b", "weights=bf16,q9"], "unknown dtype for precision.weights 'q9'"),
        (["compare", "llama_3_2_1b", "weights=bf16,bf16"], "weights must be one or more formats, bits or policies, each once"),
        (["compare", "llama_3_2_1b", "precision.weights=q8_0"], "give the formats of weights as weights=A,B"),
        (["compare", "llama_3_2_1b", "devise=l40s"], "unknown key 'devise'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_weights_is_short_for_the_precision_of_weights(capsys):
    texts = [said(capsys, "cost", "llama_3_2_1b", f"{key}=q8_0") for key in ("weights", "precision.weights")]
    assert texts[0] == texts[1] and "q8_0/bf16/bf16" in texts[0]
    assert config.compose("cost", ["weights=4.5"], COUNTING)["precision"]["weights"] == 4.5
    assert config.compose("run_sweep", ["sweep@_global_=compare", "weights=[int8]"], [*_compare_settings()])[
        "weights"
    ] == ["int8"]


def _compare_settings():
    from modelmeter.publish import settings_of

    return settings_of("compare")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    keys = ("image=examples/page.png", "decode_steps=4", "runtime=eager,flash,fused", "weights=bf16,q8_0,q4_k_m")
    assert cli.main(["compare", "deepseek_ocr", *keys, f"out={out}"]) == 0
    with (out / "compare" / "compare.csv").open(newline="") as file:
        return out / "compare", list(csv.DictReader(file))


def test_the_table_has_the_costs_of_the_model(compared, model):
    _, rows = compared
    pairs = [(runtime, weights) for runtime in ("eager", "flash", "fused") for weights in ("bf16", "q8_0", "q4_k_m")]
    assert [(row["runtime"], row["weights"]) for row in rows] == pairs
    for row in rows:
        precision = Precision(weights=row["weights"])
        work = model.workload(image="examples/page.png", runtime=row["runtime"], precision=precision, decode_steps=4)
        costs = model.costs(work).values()
        assert float(row["io_bytes"]) == float(sum(cost.io_bytes for cost in costs))
        assert float(row["peak_activation_bytes"]) == max(cost.peak_activation_bytes for cost in costs)
        assert int(row["stored_bytes"]) == model.storage(work).weight_bytes
        assert int(row["peak_memory_bytes"]) == needed(model, work)
        assert int(row["kv_cache_bytes"]) == model.cost("decode", work).kv_cache_bytes
        steps = [("vision", 1), ("prefill", 1), *(("decode", step) for step in (1, 2, 3, 4))]
        launched = [kernel.runs for stage, step in steps for kernel in model.kernels(stage, work, step)]
        assert int(row["kernels_launched"]) == sum(launched)


def test_the_answer_tells_the_least_and_the_most(compared):
    folder, rows = compared
    text = (folder / "compare.md").read_text()
    found = {column: [float(row[column]) for row in rows] for column in ("io_bytes", "kernels_launched")}
    low, high = (end(found["io_bytes"]) / 1e9 for end in (min, max))
    times = f"{high / low:.3g} times as much"
    assert (
        f"Traffic: least with fused q4_k_m, {significant(low, 4)} GB; most with eager bf16, {significant(high, 4)} GB, {times}."
        in text
    )
    few, many = (int(end(found["kernels_launched"])) for end in (min, max))
    assert (
        f"Kernels launched: least with fused, {few:,}; most with eager, {many:,}, {many / few:.3g} times as much."
        in text
    )


def test_the_figure_has_the_numbers_of_the_table(compared):
    folder, rows = compared
    drawn = re.findall(r"<!-- (.*?) -->", (folder / "compare.svg").read_text())
    for row in rows:
        assert row["runtime"] in " ".join(drawn) and row["weights"] in " ".join(drawn)
        gigabytes = [float(row[c]) / 1e9 for c in ("io_bytes", "peak_memory_bytes", "stored_bytes", "kv_cache_bytes")]
        for value in (*gigabytes, int(row["kernels_launched"]) / 1e3):
            assert any(
                re.fullmatch(r"[\d.,]+", word) and float(word.replace(",", "")) == float(f"{value:.3g}")
                for word in drawn
            )


@pytest.mark.parametrize("name", config_names("runtime"))
def test_launches_are_the_runs_of_all_kernels_and_steps(name):
    for of in ("gemma_2_2b", "deepseek_v2_lite", "nougat_small"):
        if (of, name.split("_")[0]) in REFUSED:
            continue
        model = modelmeter.load_model(of)
        latent = "absorbed" if name.startswith("llama_cpp") else "expanded"  # as it runs
        work = request_of(model, prompt_tokens=7, decode_steps=3, runtime=Runtime.of(name), latent=latent)
        for stage in model.stages:
            steps = (1, 2, 3) if stage.steps else (1,)
            runs = sum(kernel.runs for step in steps for kernel in model.kernels(stage.name, work, step))
            assert model.launches(stage.name, work) == runs > 0


def test_compare_prints_its_table_and_one_of_all_is_said_so(tmp_path, capsys):
    text = said(
        capsys, "compare", "llama_3_2_1b", "weights=int8", "runtime=flash,fused", "figures=false", f"out={tmp_path}"
    )
    assert text.startswith("Traffic: least with fused, ") and "| flash int8 |" in text and "Kernels launched: " in text
    text = said(
        capsys, "sweep", "compare", "model=text", "weights=int8", "runtime=flash", "figures=false", f"out={tmp_path}"
    )
    assert re.match(r"Traffic: [\d.,]+ GB with all of them\.", text)


@pytest.mark.parametrize(
    "command", re.findall(r"^\$ modelmeter (.*)$", Path("docs/fits-and-compare.md").read_text(), re.MULTILINE)
)
def test_the_page_shows_what_the_commands_print(command, tmp_path, capsys):
    page = Path("docs/fits-and-compare.md").read_text()
    shown = page.partition(f"$ modelmeter {command}\n")[2].partition("\n```")[0]
    out = [f"out={tmp_path}"] if command.startswith("compare") else []
    assert said(capsys, *command.split(), *out).startswith(f"{shown}\n\n")
