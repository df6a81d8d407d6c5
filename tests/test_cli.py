"""The command line as a user meets it: files, help, errors, imports."""

import csv
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest

import modelmeter
from modelmeter import cli
from modelmeter.errors import InputError
from modelmeter.report.files import write_all

FIGURES = [
    "stagecost_flops_tflops.svg", "stagecost_io_tb.svg", "stagecost_arithmetic_intensity.svg",
    "stagecost_activations_gb.svg", "vision_flops_split_log.svg",
]  # fmt: skip
RUNTIMES = ", ".join(sorted(path.stem for path in Path("configs/runtime").glob("*.yaml")))
COLUMNS = (
    "crops grid_h grid_w image_tokens attention tensor_core_flops cuda_core_flops weight_io_bytes "
    "activation_io_bytes kv_io_bytes io_bytes arithmetic_intensity_flop_per_byte weight_bytes "
    "peak_activation_bytes kv_cache_bytes extrapolated"
).split()


def run(*arguments):
    return cli.main(list(arguments))


def shell(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


def read(folder):
    with (folder / "vision_crops" / "vision_crops.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    assert run("sweep", "vision_crops", f"out={out}", "image=examples/page.png") == 0
    return out


def test_the_main_job_writes_tables_and_figures(swept):
    folder = swept / "vision_crops"
    parquet = ["vision_crops.parquet"] if find_spec("pyarrow") else []
    tables = ["vision_crops.csv", "vision_crops.json", "vision_crops.md"]
    assert {p.name for p in folder.iterdir()} == {*tables, *parquet, *FIGURES}
    for name in FIGURES:
        root = ET.fromstring((folder / name).read_text())
        assert root.tag.endswith("svg")


def test_the_csv_is_tidy_and_exact(swept, model):
    rows = read(swept)
    assert set(COLUMNS) <= set(rows[0])
    grids = model.planner.grids(29)
    assert len(grids) == 53 and all(h <= w and 2 <= h * w <= 29 for h, w in grids)
    assert len(rows) == 2 * (53 + 1)  # the page's own grid, 3x2, is one more
    for row in rows:
        page = model.workload(grid=f"{row['grid_h']}x{row['grid_w']}", runtime=row["execution"])
        exact = model.cost("vision", page).as_dict()
        for name in COLUMNS[5:15]:
            assert float(row[name]) == exact[name], (row["crops"], name)
            assert name.startswith("arithmetic") or row[name] == str(exact[name])
        assert row["extrapolated"] == str(not page.image.produced).lower()
        assert int(row["image_tokens"]) == page.image.tokens
    marked = [row for row in rows if row["marked"] == "true"]
    assert [(r["grid_h"], r["grid_w"], r["attention"]) for r in marked] == [("3", "2", "eager"), ("3", "2", "flash")]


def test_the_json_says_how_it_was_made(swept):
    content = json.loads((swept / "vision_crops" / "vision_crops.json").read_text())
    assert content["schema_version"] == 1 and content["modelmeter_version"] == modelmeter.__version__
    assert (
        content["command"].startswith("modelmeter sweep vision_crops")
        and content["config"]["image"] == "examples/page.png"
    )
    assert [str(row["tensor_core_flops"]) for row in content["rows"]] == [
        row["tensor_core_flops"] for row in read(swept)
    ]


def test_the_image_is_marked_in_table_and_figures_and_its_costs_printed(swept, capsys, tmp_path):
    text = (swept / "vision_crops" / "vision_crops.md").read_text()
    assert text.count("**this page**") == 2
    for name in FIGURES:
        assert "this page: 3x2, 903 tokens" in (swept / "vision_crops" / name).read_text()
    assert run("sweep", "vision_crops", f"out={tmp_path}", "image_size=1700x2200", "figures=false") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("At grids 1x2 to 1x29 the vision stage costs")
    assert "grid 3x2, 903 tokens" in printed and "prefill" in printed and "decode (100 steps)" in printed


def test_an_image_without_crops_is_a_row_of_its_own(tmp_path):
    assert run("sweep", "vision_crops", f"out={tmp_path}", "image_size=600x400", "figures=false") == 0
    marked = [row for row in read(tmp_path) if row["marked"] == "true"]
    assert [(row["crops"], row["image_tokens"]) for row in marked] == [("0", "273"), ("0", "273")]


def test_counts_beyond_float64_stay_exact(tmp_path, model):
    batch = 10**6
    assert run("sweep", "vision_crops", f"out={tmp_path}", f"batch={batch}", "largest=3", "figures=false") == 0
    row = read(tmp_path)[0]
    exact = model.cost("vision", model.workload(grid="1x2", batch=batch, runtime=row["execution"]))
    assert exact.tensor_core_flops > 2**53 and row["tensor_core_flops"] == str(exact.tensor_core_flops)


def test_keys_override_and_multirun_works(tmp_path):
    assert run("sweep", "vision_crops", f"out={tmp_path}", "runtime=flash", "largest=2", "figures=false") == 0
    assert [row["attention"] for row in read(tmp_path)] == ["flash"]
    done = shell(
        "-m",
        "modelmeter.sweep",
        "vision_crops",
        "batch=1,2",
        "--multirun",
        "largest=2",
        "figures=false",
        f"out={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    one, two = (read(tmp_path / f"job{i}")[0] for i in range(2))
    assert 2 * int(one["tensor_core_flops"]) == int(two["tensor_core_flops"])


def test_jobs_of_a_multirun_say_what_was_theirs(tmp_path):
    arguments = ["--multirun", "tower.clip.layers=12,24", "largest=2", "figures=false", f"out={tmp_path}"]
    assert shell("-m", "modelmeter.sweep", "vision_crops", *arguments).returncode == 0
    for job, layers in enumerate((12, 24)):
        content = json.loads((tmp_path / f"job{job}" / "vision_crops" / "vision_crops.json").read_text())
        assert f"tower.clip.layers={layers}" in content["command"]
        assert content["config"]["tower"]["clip"]["layers"] == layers


def test_paths_with_spaces_signs_and_letters_of_all_kinds_work(tmp_path):
    out = tmp_path / "ünï code, a=b 'c'"
    assert run("sweep", "vision_crops", f"out={out}", "largest=2", "figures=false") == 0
    assert len(read(out)) == 2


def test_formats_with_fractions_of_bits_print(capsys, tmp_path):
    assert run("cost", "deepseek_ocr", "grid=1x2", "precision.weights=4.1", "precision.kv=3.3") == 0
    assert "4.1/bf16/3.3" in capsys.readouterr().out
    assert (
        run(
            "sweep",
            "vision_crops",
            f"out={tmp_path}",
            "image_size=600x400",
            "precision=fp8",
            "batch=1000000",
            "largest=2",
        )
        == 0
    )
    assert run("cost", "deepseek_ocr", "grid=1x2", "+precision.overrides={*.experts.W_*:4.5}") == 0


def test_reference_refuses_another_model_than_the_shipped_one(tmp_path, capsys):
    pytest.importorskip("torch")
    assert run("sweep", "vision_crops", f"out={tmp_path}", "reference=true", "tower.clip.layers=12") == 2
    assert "counts the model as shipped" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_reference_adds_what_torch_counts(tmp_path):
    pytest.importorskip("torch")
    assert run("sweep", "vision_crops", f"out={tmp_path}", "reference=true", "largest=3", "image_size=600x400") == 0
    for row in read(tmp_path):
        assert row["reference_tensor_core_flops"] == row["tensor_core_flops"]
    assert "FlopCounterMode" in (tmp_path / "vision_crops" / FIGURES[0]).read_text()


def test_a_context_beyond_the_positions_is_counted_and_said(capsys):
    assert run("cost", "deepseek_ocr", "grid=1x2", "prompt_tokens=7609") == 0  # 483 + 7609 + 100 = 8192
    assert "beyond" not in capsys.readouterr().out
    assert run("cost", "deepseek_ocr", "grid=1x2", "prompt_tokens=7610") == 0
    assert "context of 8193 tokens, beyond the model's 8192 positions" in capsys.readouterr().out


def test_cost_prints_stages_components_and_layers(capsys):
    assert run("cost", "deepseek_ocr", "image=examples/page.png", "depth=2") == 0
    text = capsys.readouterr().out
    for word in ("vision", "prefill", "decode (100 steps)", "sam.blocks1 x4", "decoder.layers1 x11", "head", "page"):
        assert word in text


def test_any_tower_stands_before_any_decoder(capsys):
    assert run("cost", "vlm", "tower=clip_l14", "projector=linear", "decoder=deepseek_3b") == 0
    text = capsys.readouterr().out
    assert "fixed: 1 x 224x224 global, 256 tokens" in text and "\n  projector" in text
    first, *_ = [line.split() for line in text.splitlines() if line.startswith("  projector")]
    assert first[1:3] == [f"{2 * 256 * 1024 * 1280 / 1e6:.1f}", "MFLOP"]


def test_a_decoder_alone_costs_text_and_shows_no_image(capsys):
    assert run("cost", "text", "decoder=minimind2_v", "prompt_tokens=1000") == 0
    text = capsys.readouterr().out
    assert "1000 prompt tokens" in text and "prefill" in text
    assert not any(word in text for word in ("vision", "1000x1000", "global", "projector"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["swep"], "unknown command 'swep', did you mean 'sweep'"),
    (["sweep", "vision_crop"], "unknown sweep 'vision_crop', did you mean 'vision_crops'"),
    (["sweep", "vision_crops", "bacth=2"], "unknown key 'bacth', did you mean 'batch'"),
    (["sweep", "vision_crops", "--multirun", "bacth=1,2"], "unknown key 'bacth', did you mean 'batch'"),
    (["sweep", "vision_crops", "largest=0"], "largest must be a whole number of at least 2, not 0"),
    (["sweep", "vision_crops", "runtime=fast"], f"unknown runtime 'fast', did you mean 'flash'? Valid: {RUNTIMES}"),
    (["sweep", "vision_crops", "mode=base"], "mode 'base' has no crops"),
    (["sweep", "vision_crops", "model=deepseek"], "unknown model 'deepseek', did you mean 'deepseek"),
    (["sweep", "vision_crops", "image=none.png"], "'none.png' does not exist"),
    (["sweep", "vision_crops", "image_size=0x5"], "image_size must be WIDTHxHEIGHT"),
    (["sweep", "vision_crops", "grid=0x5"], "grid must be ROWSxCOLUMNS"),
    (["sweep", "vision_crops", "precision.weights=bf61"], "unknown dtype for precision.weights 'bf61', did you mean 'bf16'"),
    (["sweep", "vision_crops", "out=/proc/nowhere", "figures=false"], "out='/proc/nowhere/vision_crops' cannot be written"),
    (["sweep", "vision_crops", "precision.overrides={a:4}"], "precision.overrides takes new entries with a leading plus sign"),
    (["cost", "deepseek"], "unknown model 'deepseek'"),
    (["cost", "deepseek_ocr"], "mode 'gundam' needs image=FILE"),
    (["cost", "deepseek_ocr", "page.png"], "'page.png' is not key=value"),
    (["cost", "deepseek_ocr", "grid=1x2", "depth=9"], "unknown depth '9'; valid: 1, 2, 3, 4"),
    (["cost", "deepseek_ocr", "grid=1x2", "precision=bf61"], "unknown dtype for precision.weights 'bf61', did you mean 'bf16'"),
    (["cost", "deepseek_ocr", "grid=1x2", "precision.overrides=5"], "precision.overrides must map tensor names"),
    (["cost", "deepseek_ocr", "grid=1x2", "+precision.foo=3"], "unknown precision key 'foo'"),
    (["cost", "deepseek_ocr", "grid=1x2", "batch=[1,2]"], "batch must be one value, not [1, 2]"),
    (["cost", "deepseek_ocr", "grid=1x2", "batch=abc"], "batch must be a whole number of at least 1, not 'abc'"),
    (["cost", "deepseek_ocr", "grid=1x2", "batch=1.5"], "batch must be a whole number of at least 1, not 1.5"),
    (["cost", "deepseek_ocr", "grid=1x2", "~batch"], "'~batch' is not key=value"),
    (["cost", "deepseek_ocr", "grid=1x2", "~batch=1"], "key 'batch' is missing"),
    (["cost", "deepseek_ocr", "grid=1x2", "execution=flash"], "unknown key 'execution'"),
    (["cost", "deepseek_ocr", "grid=1x2", "runtime=[eager,flash]"], "runtime must be one value, not ['eager', 'flash']"),
    (["cost", "deepseek_ocr", "grid=1x2", "logits=lst"], "unknown logits 'lst', did you mean 'last'? Valid: all, last"),
    (["cost", "deepseek_ocr", "image=5"], "image must be the path of a picture file, not 5"),
    (["cost", "deepseek_ocr", "image=tests"], "image 'tests' cannot be read: it is a folder"),
    (["cost", "deepseek_ocr", "image=日本 é=.png"], "image '日本 é=.png' does not exist"),
    (["cost", "deepseek_ocr", "grid=1x2", "decoder.tied=no"], "CausalLM.tied must be true or false, not 'no'"),
    (["sweep", "vision_crops", "largest=2", "model=null"], "unknown model 'None'; valid: baichuan2_7b"),
    (["cost", "deepseek_ocr", "grid=1x2", "+tower.sam.partial=5"], "unknown key of tower.sam: 'partial'"),
    (["cost", "deepseek_ocr", "grid=1x2", "tower.sam=5"], "tower has not the shape of its YAML file"),
    (["cost", "deepseek_ocr", "grid=1x2", "decoder=minimind"], "unknown decoder 'minimind', did you mean 'minimind2_v'"),
    (["cost", "deepseek_ocr", "grid=1x2", "runtime=eager,flash"], "only a sweep with --multirun takes several values"),
    (["cost", "deepseek_ocr", "grid=1x2", "+runtime=eager"], "runtime=eager goes without the plus sign"),
    (["cost", "deepseek_ocr", "grid=1x2", "batch={"], "'batch={' is not KEY=VALUE"),
    (["cost", "vlm", "projector.inputs=5"], "projector inputs and the tower's features must be equal, not 5 and 1024"),
    (["cost", "text", "grid=1x2"], "text takes no image, so no grid"),
    (["cost", "text", "prompt_tokens=0"], "prompt_tokens must be at least 1 where there is no image"),
    (["sweep", "vision_crops", "--multirun", "decoder=deepseek_3b,minimind"], "unknown decoder 'minimind'"),
    (["sweep", "vision_crops", "--multirun", "tower=clip_l14,deepencoder", "tower.layers=3"], "unknown key 'tower.layers', did you mean 'tower.clip.layers'"),
    (["sweep", "vision_crops", "--multirun", "runtime=eager,fast"], "unknown runtime 'fast', did you mean 'flash'"),
    (["cost", "deepseek_ocr", "mode="], "unknown mode ''; valid: base"),
    (["cost", "deepseek_ocr", "image_size=5x99999999999"], "two whole numbers from 1 to 10**9"),
    (["sweep", "batch=2"], "unknown sweep ''; valid: compare, compression, devices, e2e_decode, e2e_vision_prefill, encoders, profiles, sequence, targets, vision_crops"),
    (["sweep", "e2e_decode", "decode_steps=0"], "decode_steps must be a whole number of at least 1, not 0"),
    (["sweep", "e2e_decode", "reference=true"], "reference=true is not available for e2e_decode"),
    (["sweep", "vision_crops", "runtime=[]"], f"runtime must be one or more of {RUNTIMES}, each once, not []"),
    (["sweep", "vision_crops", "runtime=[eager,eager]"], "each once"),
    (["sweep", "vision_crops", "runtime=5"], f"runtime must be one or more of {RUNTIMES}"),
    (["sweep", "vision_crops", "runtime=fusd"], "unknown runtime 'fusd', did you mean 'fused'"),
    (["sweep", "vision_crops", "--multirun", "largest=2,1"], "largest must be a whole number of at least 2, not 1"),
    (["sweep", "vision_crops", "largest=[2]"], "largest must be one value, not [2]"),
    (["sweep", "vision_crops", "largest=1000000000"], "largest must be at most 4096 crops"),
    (["sweep", "vision_crops", "figures=maybe"], "figures must be true or false, not 'maybe'"),
    (["sweep", "vision_crops", "out=[a]"], "out must be a folder, not ['a']"),
    (["sweep", "vision_crops", "--frob"], "unknown option '--frob'"),
    (["sweep", "vision_crops", "--multirun", "batch=1,2", "out=/proc/zzz"], "out='/proc/zzz' cannot be written"),
    (["sweep", "targets", "devices=[rtx_4095]"], "unknown device 'rtx_4095', did you mean 'rtx_4090'"),
    (["sweep", "targets", "devises=l40s"], "unknown key 'devises', did you mean 'devices'"),
    (["sweep", "targets", "devices=[]"], "devices must be one or more of a10, a100_40gb"),
    (["sweep", "targets", "devices=[l40s,l40s]"], "each once"),
    (["sweep", "targets", "devices=[none.yaml]"], "'none.yaml' cannot be read as YAML: No such file"),
    (["sweep", "targets", "ttft=0"], "ttft must be one or more budgets in seconds, each above 0 (from 1e-09 to 1e+09), not 0"),
    (["sweep", "targets", "ttft=[1.0,-1]"], "each above 0 (from 1e-09 to 1e+09), not -1"),
    (["sweep", "targets", "tpot=[]"], "tpot must be one or more budgets in seconds, each once, not []"),
    (["sweep", "targets", "tpot=soon"], "each above 0 (from 1e-09 to 1e+09), not 'soon'"),
    (["sweep", "targets", "tpot=null"], "each above 0 (from 1e-09 to 1e+09), not None"),
    (["sweep", "e2e_decode", "tpot=.inf"], "each above 0 (from 1e-09 to 1e+09), not '.inf'"),
    (["sweep", "e2e_vision_prefill", "ttft=[1,1]"], "each once, not [1, 1]"),
    (["sweep", "targets", "reference=true"], "reference=true is not available for targets"),
    (["sweep", "profiles", "profiles=[recipt]"], "unknown profile 'recipt', did you mean 'receipt'"),
    (["sweep", "profiles", "profiles=[]"], "profiles must be one or more of"),
    (["sweep", "profiles", "image=examples/page.png"], "unknown key 'image'"),
    (["sweep", "sequence", "prefill_tokens=[0]"], "prefill_tokens must be a whole number of at least 1, not 0"),
    (["sweep", "sequence", "decode_tokens=0"], "decode_tokens must be a whole number of at least 1, not 0"),
    (["sweep", "sequence", "batch=[]"], "batch must be one or more whole numbers, each once, not []"),
    (["sweep", "sequence", "heads=[10]"], "heads must be HEADSxKV_HEADS"),
    (["sweep", "sequence", "heads=[7x7]"], "hidden size 1280 is not divisible by heads 7"),
    (["sweep", "sequence", "heads=[10x3]"], "heads 10 is not divisible by KV heads 3"),
    (["sweep", "sequence", "heads=[1280x1]"], "head width 1 is not divisible by a pair's width 2"),
    (["sweep", "sequence", "grid=1x2"], "unknown key 'grid'"),
    (["sweep", "compression", "text_tokens=[]"], "text_tokens must be one or more whole numbers, each once, not []"),
    (["sweep", "compression", "text_tokens=-3"], "text_tokens must be a whole number of at least 1, not -3"),
    (["sweep", "compression", "modes=[tinny]"], "unknown modes 'tinny', did you mean 'tiny'"),
    (["sweep", "compression", "modes=gundam"], "modes with crops need grid=ROWSxCOLUMNS: gundam"),
    (["sweep", "vision_crops", "png=5"], "png must be true or false, not 5"),
    (["sweep", "vision_crops", "--multirun", "hydra/launcher=nothing", "batch=1,2"], "unknown hydra/launcher 'nothing'; valid: basic"),
    (["cost", "deepseek_ocr_published", "grid=1x2", "model.departures=[nothing]"], "unknown departure 'nothing'"),
    (["sweep", "vision_crops", "batch=[1,2]", "largest=3"], "batch must be one value, not [1, 2]"),
    (["sweep", "e2e_decode", "decode_steps=[1,2]"], "decode_steps must be one value"),
    (["sweep", "profiles", "batch=[1,2]"], "batch must be one value"),
    (["sweep", "compression", "prompt_tokens=[1,2]"], "prompt_tokens must be one value"),
    (["sweep", "compression", "text_tokens=[5,5]"], "each once, not [5, 5]"),
    (["sweep", "targets", "devices={a:1}"], "devices must be one or more of"),
    (["sweep", "targets", "executions=[flash]"], "unknown key 'executions'"),
    (["sweep", "sequence", "runtime=[flash,flash]"], "each once, not ['flash', 'flash']"),
    (["sweep", "targets", "ttft=1e-320"], "(from 1e-09 to 1e+09), not 1e-320"),
    (["sweep", "sequence", "batch=[[1]]"], "batch must be one or more whole numbers, each once, not [[1]]"),
    (["sweep", "compression", "modes=[base]", "grid=1x2"], "grid is of no use to modes without crops: base"),
    (["sweep", "profiles", "png=true", "figures=false"], "png=true contradicts figures=false"),
    (["sweep", "vision_crops", "+precision.overrides={*.expert.W_*:4.5}"], "precision override '*.expert.W_*' matches no tensor"),
    (["cost", "deepseek_ocr", "grid=1x2", "+precision.overrides={nothing:4}"], "precision override 'nothing' matches no tensor; a name is '"),
    (["cost", "deepseek_ocr", "model=deepseek_ocr_published", "grid=1x2"], "give the model once"),
    (["validate", "--foo"], "unrecognized arguments: --foo"),
    (["validate", "--device", "tpu"], "--device 'tpu' is not available; valid: meta, cpu, cuda"),
    (["cost", "deepseek_ocr", "grid=1x2", "image_size=5x5"], "only one of image, image_size and grid"),
    (["validate", "deepseek"], "unknown model 'deepseek'"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_status_2(arguments, message, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_failed_run_leaves_earlier_results_as_they_were(tmp_path, monkeypatch):
    earlier = {"a.txt": "one", "b.txt": "two"}
    write_all(tmp_path, earlier)
    original = Path.write_bytes

    def full_disk(self, content):
        if self.name == "b.txt":
            raise OSError(28, "No space left on device")
        return original(self, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_all(tmp_path, {"a.txt": "new", "b.txt": "new"})
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == earlier


def test_figures_of_an_earlier_run_do_not_stay_beside_new_tables(tmp_path):
    folder = tmp_path / "profiles"
    assert run("sweep", "profiles", f"out={tmp_path}", "profiles=receipt", "png=true") == 0
    (folder / "notes.md").write_text("a user's own")
    assert {p.suffix for p in folder.iterdir()} >= {".svg", ".png"}
    assert run("sweep", "profiles", f"out={tmp_path}", "profiles=receipt", "batch=2", "figures=false") == 0
    assert not {p.suffix for p in folder.iterdir()} & {".svg", ".png"} and (folder / "notes.md").is_file()


def test_output_that_cannot_be_written_is_one_sentence():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "modelmeter", "cost", "deepseek_ocr", "grid=1x2"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_help_lists_sweeps_and_keys(capsys):
    assert run("sweep", "--help") == 0
    text = capsys.readouterr().out
    assert "vision_crops" in text and "reference=false" in text and "precision.weights=bf16" in text
    for key in ("logits", "causal", "runtime", "out", "png"):
        assert f"\n  {key}=" in text
    own = {
        "vision_crops": ("image", "mode", "runtime", "largest"), "targets": ("ttft", "tpot", "devices", "grid"),
        "sequence": ("prefill_tokens", "heads"), "profiles": ("profiles",), "compression": ("text_tokens", "modes"),
    }  # fmt: skip
    for name, keys in own.items():
        assert run("sweep", name, "--help") == 0
        text = capsys.readouterr().out
        assert all(f"\n  {key}=" in text for key in keys), name
        assert ("\n  image=" in text) == (name in ("vision_crops", "targets"))
    assert run("cost", "deepseek_ocr", "--help") == 0
    text = capsys.readouterr().out
    assert "\n  decoder.experts=64             [json] n_routed_experts\n" in text
    assert "\n  tower=deepencoder " in text and "\n  runtime=flash " in text and "1x2" not in text
    assert run("--help") == 0 and run("cost", "--help") == 0 and run("report", "--help") == 0
    assert run() == 2 and run("sweep") == 2 and run("report") == 2


def imported(*commands):
    """The heavy packages that a process has imported after each of these commands."""
    code = (
        "import json, sys\nfrom modelmeter.cli import main\n"
        "heavy = {'hydra', 'omegaconf', 'numpy', 'pandas', 'matplotlib', 'torch', 'sympy', 'PIL'}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    try: main(command)\n"
        "    except SystemExit: pass\n"  # argparse's --help
        "    print('\\nIMPORTED', *sorted(heavy & {m.partition('.')[0] for m in sys.modules}))"
    )
    lines = shell("-c", code, json.dumps(commands)).stdout.splitlines()
    return [set(line.split()[1:]) for line in lines if line.startswith("IMPORTED")]


def test_help_and_wrong_names_import_nothing_heavy():
    commands = [
        ["--help"], ["sweep", "--help"], ["cost", "--help"], ["report", "--help"], ["report", "nothing"], ["--version"],
        ["sweep", "targets", "--help"], ["cost", "deepseek_ocr", "--help"], ["sweep", "sequence", "--help"],
        ["sweep", "compression", "--help"], ["sweep", "vision_crop"], ["cost", "nothing"], ["nonsense"],
        ["validate", "--help"],
    ]  # fmt: skip
    assert dict(zip(map(str, commands), imported(*commands), strict=True)) == {str(c): set() for c in commands}


def test_a_sweep_never_imports_torch_and_only_draws_when_asked(tmp_path):
    sweep = ["sweep", "vision_crops", f"out={tmp_path}", "largest=2"]
    plain, drawn = imported([*sweep, "figures=false"], [*sweep, "image=examples/page.png"])
    assert plain == {"hydra", "omegaconf", "numpy"}
    assert "matplotlib" in drawn and not drawn & {"torch", "pandas", "sympy"}


def test_two_runs_write_the_same_bytes(swept, tmp_path):
    assert run("sweep", "vision_crops", f"out={tmp_path}", "image=examples/page.png") == 0
    for path in (swept / "vision_crops").iterdir():
        again = (tmp_path / "vision_crops" / path.name).read_bytes()
        assert again.replace(str(tmp_path).encode(), str(swept).encode()) == path.read_bytes(), path.name


def test_both_doors_lead_to_the_same_sweep(tmp_path):
    environment = os.environ | {"COLUMNS": "80"}
    for index, door in enumerate((["-m", "modelmeter.sweep"], ["-m", "modelmeter", "sweep"])):
        out = tmp_path / str(index)
        done = shell(*door, "vision_crops", f"out={out}", "largest=4", "figures=false", env=environment)
        assert done.returncode == 0, done.stderr
    assert read(tmp_path / "0") == read(tmp_path / "1")
