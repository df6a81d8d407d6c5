"""The sweeps by component: rows equal the model's own costs, parts add up, figures are drawn."""

import csv

import pytest

from modelmeter import cli
from modelmeter.programs.cost import COUNTS
from modelmeter.sweep.table import COST_COLUMNS, TOTAL

CURVES = ("flops_tflops", "io_tb", "arithmetic_intensity", "activations_gb", "kv_gb")
SUMS = [name for name in COST_COLUMNS if name in COUNTS and name != "peak_activation_bytes"] + ["io_bytes"]


@pytest.fixture(scope="module", params=["e2e_vision_prefill", "e2e_decode"])
def swept(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("e2e")
    assert cli.main(["sweep", request.param, f"out={out}", "largest=7", "image_size=1700x2200", "decode_steps=30"]) == 0
    with (out / request.param / f"{request.param}.csv").open(newline="") as file:
        return request.param, out / request.param, list(csv.DictReader(file))


def points(rows):
    """The rows of each grid and attention kind, by component."""
    found = {}
    for row in rows:
        key = (row["grid_h"], row["grid_w"], row["attention"])
        found.setdefault(key, {})[row["component"]] = row
    return found


def test_every_row_is_the_models_own_cost(swept, model):
    name, _, rows = swept
    assert len(points(rows)) == 2 * (len(model.planner.grids(7)) + 1)
    for (h, w, kind), parts in points(rows).items():
        work = model.workload(grid=f"{h}x{w}", runtime=kind, decode_steps=30)
        if name == "e2e_decode":
            exact = {**model.breakdown("decode", work), TOTAL: model.cost("decode", work)}
            assert all(row["decode_steps"] == "30" for row in parts.values())
        else:
            vision, prefill = model.cost("vision", work), model.cost("prefill", work)
            exact = {"vision": vision, **model.breakdown("prefill", work), TOTAL: vision + prefill}
        assert parts.keys() == exact.keys()
        for part, row in parts.items():
            assert int(row["context_tokens"]) == work.context_tokens and row["logits"] == "all"
            for column, value in exact[part].as_dict().items():
                if column in COST_COLUMNS:
                    assert float(row[column]) == pytest.approx(value, rel=1e-15), (part, column)
            assert row["tensor_core_flops"] == str(exact[part].tensor_core_flops)


def test_components_add_up_to_the_total(swept):
    for parts in points(swept[2]).values():
        total = parts.pop(TOTAL)
        for column in SUMS:
            assert sum(float(row[column]) for row in parts.values()) == pytest.approx(float(total[column]), rel=1e-14)
        assert max(int(row["peak_activation_bytes"]) for row in parts.values()) == int(total["peak_activation_bytes"])


def test_figures_carry_the_sweeps_name(swept):
    name, folder, _ = swept
    drawn = {path.name for path in folder.glob("*.svg")}
    target = "tpot" if name == "e2e_decode" else "ttft"
    responsive = {f"responsive_{what}_by_{target}.svg" for what in ("tflops", "gb")}
    assert drawn == responsive | {
        f"{name}.svg",
        f"{name}_flops_split_log.svg",
        *(f"{name}_stagecost_{c}.svg" for c in CURVES),
    }
    for path in folder.glob("*.svg"):
        assert "this page: 3x2, 903 tokens" in path.read_text()


def test_tokens_share_the_steps_evenly(swept):
    name, _, rows = swept
    if name == "e2e_decode":
        for row in rows:
            for count in ("tensor_core_flops", "cuda_core_flops", "io_bytes"):
                assert float(row[f"{count}_per_token"]) * 30 == pytest.approx(float(row[count]), rel=1e-12)


def test_decode_moves_a_byte_for_each_flop(swept):
    """The published report asks decode for TFLOP/s alone; its arithmetic intensity says what it waits for."""
    name, _, rows = swept
    for row in rows:
        if row["component"] == TOTAL and row["attention"] == "flash":
            intensity = float(row["arithmetic_intensity_flop_per_byte"])
            assert intensity < 1.1 if name == "e2e_decode" else intensity > 90
