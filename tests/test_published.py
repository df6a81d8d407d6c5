"""The published report from the real model and eight departures: to the printed digit, and one by one."""

import csv
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelmeter
from modelmeter import cli, load_model
from modelmeter.config import config_dir
from modelmeter.errors import InputError
from modelmeter.models.deepseek_ocr.departures import DEPARTURES
from modelmeter.models.deepseek_ocr.published import LayerRow
from modelmeter.programs.cost import COUNTS
from modelmeter.runtimes.passes import on_chip
from modelmeter.sizes import evaluated

STAGES = ("vision", "prefill", "decode")
NAMES = tuple(departure.name for departure in DEPARTURES)
GRIDS = ("1x2", "2x2", "3x1", "2x3", "1x29")
STEPS = 100  # decode steps of the report
TTFT_SECONDS, TPOT_SECONDS = 1.0, 0.05  # budgets of the report's two target tables
EINSUM_WINDOW, EINSUM_GLOBAL, EINSUM_CROP = (2 * 2 * 12 * 64 * side**3 for side in (14, 64, 40))
"""FLOPs of both relative-position einsums: 12 heads of 64, side^2 queries, side keys each way."""


def published_table(name):
    with (config_dir() / "published" / "deepseek_ocr" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def published():
    return modelmeter.load_model("deepseek_ocr_published")


def only(published, *names):
    return replace(published, departures=names)


def swept(published, *stages):
    """Tensor-core and CUDA-core FLOPs of every grid of the report, all in one evaluation."""
    grids = published.planner.grids(29)
    h, w = (np.array(side, dtype=float) for side in zip(*grids, strict=True))
    cost = sum(published.cost(stage, published.workload(grid=(h, w), decode_steps=STEPS)) for stage in stages)
    tensor, cuda = (np.broadcast_to(f, h.shape) for f in (cost.tensor_core_flops, cost.cuda_core_flops))
    return grids, tensor, cuda


def image_tokens(h, w):
    return 273 + 10 * h * (10 * w + 1)


TABLES = {"vision_crops": ("vision",), "e2e_vision_prefill": ("vision", "prefill"), "e2e_decode": ("decode",)}


def equal_cells(name, published):
    rows = published_table(name)
    grids, tensor, cuda = swept(published, *TABLES[name])
    cells = 0
    for row, (h, w), t, c in zip(rows, grids, tensor, cuda, strict=True):
        ours = {
            "crops": f"{h * w}",
            "grid_h_x_w": f"{h}x{w}",
            "image_tokens": f"{published.workload(grid=f'{h}x{w}').image.tokens}",
            "tensor_core_tflops": f"{t / 1e12:.6e}",
            "cuda_core_tflops": f"{c / 1e12:.6e}",
            "tensor_to_cuda_ratio": f"{t / c:.3f}",
        }
        assert row == ours
        cells += sum(key.endswith(("tflops", "ratio")) for key in row)
    return cells


def test_every_cell_of_the_sweep_tables_is_the_published_one(published):
    assert sum(equal_cells(name, published) for name in TABLES) == 3 * 3 * 53 == 477


def test_every_time_target_is_the_published_one(published):
    for name, stages, seconds in (
        ("ttft", ("vision", "prefill"), TTFT_SECONDS),
        ("tpot", ("decode",), STEPS * TPOT_SECONDS),
    ):
        rows = published_table(name)
        grids, tensor, cuda = swept(published, *stages)
        required = [f"{f / seconds / 1e12:.3f}" for f in tensor + cuda]
        assert [row["required_tflops_per_s"] for row in rows] == required and len(rows) == 53
        assert [row["grid_h_x_w"] for row in rows] == [f"{h}x{w}" for h, w in grids]
        assert [int(row["image_tokens"]) for row in rows] == [image_tokens(h, w) for h, w in grids]
        assert {row.get("decode_steps", f"{STEPS}") for row in rows} == {f"{STEPS}"}


def test_every_row_of_the_layer_table_is_the_published_one(published):
    rows = published.layer_table()
    classes = [(row["group"], row["layer"], row["implementation_class"]) for row in published_table("layer_classes")]
    assert [(row.group, row.layer, row.implementation_class) for row in rows] == classes
    for row, printed in zip(rows, published_table("per_layer"), strict=True):
        assert printed == {
            "group": row.group,
            "layer": row.layer,
            "measured_gflops": f"{row.measured_flops / 1e9:.4e}",
            "theoretical_gflops": f"{row.theoretical_flops / 1e9:.4e}",
            "rel_diff_percent": f"{float(100 * row.difference):.4f}%",
            "status": "✓",
        }
    assert len(rows) == 21


def test_the_published_weights_are_gib(published):
    d, expert = 1280, 3 * 1280 * 896
    layer = 4 * d * d + 64 * d + expert + 2 * expert + 2 * d  # attention, router, one expert, the shared two, norms
    towers, head = 95_569_152 + 302_575_616, 165_478_400  # SAM, CLIP less its unused convolution
    stored = published.storage()
    assert stored.parameters == 12 * layer + d + head + 2 * towers
    assert f"{stored.weight_bytes / 2**30:.2f}" == "2.17"  # the report's "2.17 GB"
    for stage, parameters in (("vision", 2 * towers), ("prefill", 12 * layer + d + head)):
        cost = published.cost(stage, published.workload(grid="1x2"))
        assert cost.parameters == parameters and cost.weight_bytes == 2 * parameters


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_counts_are_the_closed_forms(published, h, w):
    n, crop_tokens = h * w, 10 * h * (10 * w + 1)
    s = 273 + crop_tokens + 10
    work = published.workload(grid=(h, w), decode_steps=STEPS)
    vision, prefill, decode = (published.cost(stage, work) for stage in STAGES)
    assert vision.tensor_core_flops == 1_136_648_462_336 + 386_406_359_040 * n + 8_519_680 * n * crop_tokens
    assert vision.cuda_core_flops == 744_887_296 + 290_186_240 * n + 10_240 * n * crop_tokens
    assert prefill.tensor_core_flops == 1_150_812_160 * s + 61_440 * s**2
    assert prefill.cuda_core_flops == 440_832 * s
    assert decode.tensor_core_flops == sum(1_150_812_160 + 61_440 * (s + t) for t in range(STEPS))
    assert decode.cuda_core_flops == 440_832 * STEPS


@pytest.mark.parametrize("work", [{"grid": grid} for grid in GRIDS] + [
    {"mode": "tiny"}, {"grid": "2x2", "batch": 3, "runtime": "eager", "logits": "last", "causal": "exact"},
    {"grid": "1x2", "runtime": "fused", "precision": "fp8"},
    {"grid": "1x2", "runtime": "compulsory"},
], ids=str)  # fmt: skip
def test_without_departures_it_is_the_real_model(published, model, work):
    real = only(published)
    for stage in STAGES:
        assert real.cost(stage, real.workload(**work)) == model.cost(stage, model.workload(**work))
    assert real.storage() == model.storage()


@pytest.mark.parametrize("runtime", ["eager", "fused", "compulsory"])
@pytest.mark.parametrize("stage", STAGES)
def test_published_flops_and_weights_are_those_of_any_runtime(published, stage, runtime):
    ours, flash = (published.cost(stage, published.workload(grid="1x2", runtime=name)) for name in (runtime, "flash"))
    for count in ("tensor_core_flops", "cuda_core_flops", "parameters", "weight_bytes", "weight_io_bytes"):
        assert getattr(ours, count) == getattr(flash, count), count


def test_without_departures_every_layer_measures_its_theory(published):
    assert all(row.measured_flops == row.theoretical_flops for row in only(published).layer_table())
    assert LayerRow("", "", "", 8, 6).difference == Fraction(1, 4)


CHANGES = {
    "relative_positions": {"vision_tensor_core_flops"},
    "projector": {
        "vision_tensor_core_flops",
        "vision_cuda_core_flops",
        "weight_bytes",
        "io_bytes",
        "peak_activation_bytes",
    },
    "layer_table": set(),
    "mixtures": {f"{stage}_{e}_core_flops" for stage in ("prefill", "decode") for e in ("tensor", "cuda")}
    | {"weight_bytes", "io_bytes", "decode_io_bytes"},
    "decode_context": {"decode_tensor_core_flops", "decode_cuda_core_flops", "decode_io_bytes"},
    "scalar_operations": {f"{stage}_{e}_core_flops" for stage in STAGES for e in ("tensor", "cuda")}
    - {"vision_tensor_core_flops"},
    "weights": {"weight_bytes"},
    "traffic_and_peak": {"io_bytes", "decode_io_bytes", "peak_activation_bytes"},
}
"""Which of the report's counts each departure changes, alone."""


@pytest.mark.parametrize("name", NAMES)
def test_each_departure_changes_its_own_counts(published, model, name):
    work = published.workload(grid="1x2")
    one, real = only(published, name).counts(work), only(published).counts(work)
    assert {count for count in real if one[count] != real[count]} == CHANGES[name]


def test_the_layer_table_departure_is_the_layer_table(published):
    cut, whole = only(published, "layer_table").layer_table(), only(published).layer_table()
    assert [row.layer for row in cut] == [row.layer for row in whole] and cut != whole
    rest = replace(published, departures=[name for name in NAMES if name != "layer_table"]).layer_table()
    assert rest != published.layer_table()


def difference(published, model, name, stage, count, **work):
    page = model.workload(**work)
    return getattr(only(published, name).cost(stage, page), count) - getattr(model.cost(stage, page), count)


@pytest.mark.parametrize(("h", "w"), [(1, 2), (2, 3), (5, 5)])
def test_each_departure_is_its_formula(published, model, h, w):
    n, crop_tokens = h * w, 10 * h * (10 * w + 1)
    s = 273 + crop_tokens + 10

    def tensor(name, stage):
        return difference(published, model, name, stage, "tensor_core_flops", grid=(h, w), decode_steps=STEPS)

    page, crop = 8 * 25 * EINSUM_WINDOW + 4 * EINSUM_GLOBAL, 8 * 9 * EINSUM_WINDOW + 4 * EINSUM_CROP
    assert tensor("relative_positions", "vision") == -Fraction(7, 8) * (page + n * crop)
    one, two = 2 * 2048 * 1280, 2 * (2048 * 1280 + 1280 * 1280)
    assert tensor("projector", "vision") == two * (272 + n * crop_tokens) - one * (256 + 100 * n)
    dense, mixture = 3 * 6848, 64 + 3 * (6 * 896 + 1792)
    assert tensor("mixtures", "prefill") == s * 2 * 1280 * (mixture - dense)
    assert tensor("mixtures", "decode") == STEPS * 2 * 1280 * (mixture - dense)
    assert tensor("decode_context", "decode") == -STEPS * 12 * 4 * 1280
    assert tensor("decode_context", "prefill") == 0
    assert tensor("scalar_operations", "prefill") == -12 * 2 * 64 * s
    assert tensor("scalar_operations", "decode") == -12 * 2 * 64 * STEPS


@pytest.mark.parametrize("runtime", ["flash", "eager"])
@pytest.mark.parametrize("stage", STAGES)
def test_published_traffic_is_activations_and_the_peak_all_that_is_written(published, model, stage, runtime):
    work = model.workload(grid="1x2", runtime=runtime, batch=2, decode_steps=1)
    cost, real = only(published, "traffic_and_peak").cost(stage, work), model.cost(stage, work)
    assert cost.io_bytes == cost.activation_io_bytes == real.activation_io_bytes
    graph = model.program(stage, work).graph  # the real one, as the runtime has it
    hidden, seen, inputs, written = on_chip(graph), set(), {}, []
    for index, op in enumerate(graph.ops):
        new = [r for r in op.reads if r.role == "activation" and r.name not in seen]
        inputs |= {r.name: r.stored * (r.bits or 16) / 8 for r in new}
        seen |= {w.name for w in op.writes}
        kept = [w for w in op.writes if w.role == "activation" and (w.name, index) not in hidden]
        written += [w.stored * op.times * (w.bits or 16) / 8 for w in kept]
    sizes = model.stage(stage).sizes(work)
    assert cost.peak_activation_bytes == sum(evaluated([*inputs.values(), *written], sizes))
    assert (cost.kv_cache_bytes, cost.weight_bytes) == (real.kv_cache_bytes, real.weight_bytes)


@pytest.mark.parametrize("names", [NAMES, *((name,) for name in NAMES)], ids=lambda names: "+".join(names)[:20])
def test_arrays_equal_ints(published, names):
    model, h, w = only(published, *names), (1, 1, 2, 29), (2, 29, 3, 1)
    arrays = model.workload(grid=(np.array(h, dtype=float), np.array(w, dtype=float)))
    for stage in STAGES:
        together = model.cost(stage, arrays)
        for i, grid in enumerate(zip(h, w, strict=True)):
            one = model.cost(stage, model.workload(grid=grid))
            for count in COUNTS:
                value = np.broadcast_to(getattr(together, count), len(h))[i]
                assert value == getattr(one, count), (stage, count, grid)


@pytest.mark.parametrize("stage", STAGES)
def test_one_published_program_serves_every_grid(published, stage):
    one, other = only(published, *NAMES), only(published, *NAMES)
    small, large = one.workload(grid="1x2"), one.workload(grid="2x3", batch=2, prompt_tokens=7, decode_steps=9)
    one.cost(stage, small)
    assert one.program(stage, small) is one.program(stage, large)
    assert one.cost(stage, large) == other.cost(stage, large)


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]], ids=["forward", "backward"])
@pytest.mark.parametrize("grid", ["1x2", "1x29"])
def test_effects_add_up_to_published_less_real(published, model, grid, names):
    work = published.workload(grid=grid)
    found = replace(published, departures=names).effects(work)
    assert tuple(found) == names
    shown, real = published.counts(work), only(published).counts(work)
    for count in real:
        assert sum(effect[count] for effect in found.values()) == shown[count] - real[count], count


def test_the_published_projector_grows_with_the_square_of_the_crops(published, model):
    def bend(which):
        """The second difference of vision's tensor-core FLOPs over the crops of one row."""
        a, b, c = (which.cost("vision", which.workload(grid=(1, w))).tensor_core_flops for w in (7, 8, 9))
        return a - 2 * b + c

    assert bend(model) == 0
    layers = 2 * (2048 * 1280 + 1280 * 1280)
    assert bend(published) == bend(only(published, "projector")) == layers * 2 * 100  # n T = 100 n^2 + 10 n


def test_the_published_vision_of_29_crops_is_5_percent_too_much(published, model):
    shown, real = (m.cost("vision", m.workload(grid="1x29")).tensor_core_flops for m in (published, model))
    assert f"{shown / real - 1:+.1%}" == "+5.4%"


@pytest.mark.parametrize("causal", ["full", "exact"])
def test_a_published_decode_is_the_real_one_of_a_context_shorter_by_one(published, model, causal):
    ours = only(published, "decode_context")
    work, shorter = (model.text(tokens, decode_steps=7, causal=causal) for tokens in (494, 493))
    assert ours.cost("decode", work) == model.cost("decode", shorter)
    assert ours.cost("prefill", work) == model.cost("prefill", work)


def test_departures_are_said_in_two_sentences():
    assert len(NAMES) == len(set(NAMES)) == 8
    for departure in DEPARTURES:
        for text in (departure.what, departure.evidence):
            assert text.endswith(".") and ". " not in text and "  " not in text


def test_departures_are_chosen_in_the_configuration(model):
    work = model.workload(grid="1x2")
    real = modelmeter.load_model("deepseek_ocr_published", ["model.departures=[]"])
    assert real.cost("vision", work) == model.cost("vision", work)
    some = modelmeter.load_model("deepseek_ocr_published", ["model.departures=[weights,mixtures,weights]"])
    assert some.departures == ("weights", "mixtures")
    for value, message in (
        ("[mixture]", "unknown departure 'mixture', did you mean 'mixtures'? Valid: " + ", ".join(sorted(NAMES))),
        ("mixtures", "departures must be a list of names, not 'mixtures'"),
    ):
        with pytest.raises(InputError) as error:
            modelmeter.load_model("deepseek_ocr_published", [f"model.departures={value}"])
        assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_line_sweeps_the_published_model(tmp_path, capsys):
    page = ["model=deepseek_ocr_published", "runtime=flash", "figures=false", f"out={tmp_path}"]
    assert cli.main(["sweep", "vision_crops", *page]) == 0
    with (tmp_path / "vision_crops" / "vision_crops.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, printed in zip(rows, published_table("vision_crops"), strict=True):
        assert f"{int(row['tensor_core_flops']) / 1e12:.6e}" == printed["tensor_core_tflops"]
        assert f"{int(row['cuda_core_flops']) / 1e12:.6e}" == printed["cuda_core_tflops"]
    assert cli.main(["cost", "deepseek_ocr_published", "grid=1x2"]) == 0
    assert "vision" in capsys.readouterr().out


def test_validate_takes_the_models_that_have_reference_modules(monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from modelmeter.validate import registry

    validated = []
    monkeypatch.setattr(registry, "run", lambda name, **options: (validated.append(name) or "", True))
    assert cli.main(["validate"]) == 0 and validated == list(registry.REFERENCES)
    monkeypatch.undo()
    assert cli.main(["validate", "deepseek_ocr_published"]) == 2
    assert "has no reference modules to compare with" in capsys.readouterr().err


@pytest.fixture(scope="module")
def reconciliation():
    from dataclasses import replace as changed

    from modelmeter import publish
    from modelmeter.report import reconciliation as page

    made = []
    original = page.Reconciliation.page
    page.Reconciliation.page = lambda self: made.append(self) or original(self)
    try:
        publish._reconciled(load_model("deepseek_ocr"), "deepseek_ocr_published", "test", ("svg",))
    finally:
        page.Reconciliation.page = original
    return made[0], changed


def test_one_altered_cell_is_one_cell_that_is_not_reproduced(reconciliation):
    found, changed = reconciliation
    assert found.cells() == (742, 742) and found.layer_cells() == (84, 84)
    for table, column in (
        ("vision_crops", "tensor_core_tflops"),
        ("tpot", "required_tflops_per_s"),
        ("e2e_decode", "image_tokens"),
    ):
        rows = [dict(row) for row in found.printed[table]]
        rows[7][column] = "9" + rows[7][column]
        assert changed(found, printed={**found.printed, table: rows}).cells() == (741, 742)
    rows = [dict(row) for row in found.printed["per_layer"]]
    rows[0]["measured_gflops"] = "1"
    assert changed(found, printed={**found.printed, "per_layer": rows}).layer_cells() == (83, 84)


def test_the_page_tells_published_from_real(reconciliation, published, model):
    """TTFT at 1x29: the published table says 17.374 TFLOP/s; the real model needs what its own stages cost."""
    found, _ = reconciliation
    work = model.workload(grid="1x29")
    real = sum(model.cost(stage, work).flops for stage in ("vision", "prefill")) / 1e12
    (row,) = [line for line in found.page().splitlines() if line.startswith("| TTFT 1 s | 1x29 |")]
    assert row.split("|")[3:5] == [" 17.374 ", f" {real:.3f} "]


def test_a_layer_row_changes_without_its_departure(reconciliation):
    found, _ = reconciliation
    by_table = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in found.by_table().splitlines()[2:]}
    assert by_table["relative_positions"] == "3 of 21"  # Attention, Block and ImageEncoderViT
    assert by_table["decode_context"] == by_table["weights"] == "0 of 21"
