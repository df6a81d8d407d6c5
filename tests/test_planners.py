"""Planners: two rules, one protocol; sweeps go over whatever they offer."""

import pytest

import modelmeter
from modelmeter import config
from modelmeter.errors import InputError
from modelmeter.models.planner import FixedSize
from modelmeter.publish import sweep_tables
from modelmeter.report.figures import figures
from modelmeter.report.language import LANGUAGES, Language
from modelmeter.sweep.registry import findings


@pytest.fixture(scope="module")
def one_view():
    """A tower behind a planner without crops: 16 x 16 patches of 14 pixels."""
    return modelmeter.load_model("vlm", ["planner=fixed_224"])


@pytest.fixture(scope="module")
def text():
    return modelmeter.load_model("text")


@pytest.mark.parametrize(("side", "patch", "class_token"), [(224, 14, True), (336, 14, False), (224, 32, False)])
def test_one_view_has_a_token_for_each_patch(side, patch, class_token):
    plan = FixedSize(side, patch, class_token).plan(None, (1700, 2200), None)
    assert plan.tokens == (side // patch) ** 2 + class_token and plan.grid is None and plan.produced


def test_one_view_refuses_what_it_has_not():
    planner = FixedSize(224, 14)
    for given, message in (
        ({"mode": "fixd"}, "unknown mode 'fixd', did you mean 'fixed'"), ({"grid": (1, 2)}, "mode 'fixed' has no crops"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            planner.plan(**{"mode": None, "image_size": None, "grid": None} | given)
    with pytest.raises(InputError, match="side 225 must be a multiple of the patch, 14 pixels"):
        FixedSize(225, 14)


def test_points_are_the_models_grids_and_the_users_own(model):
    own = model.workload(grid="3x2").image
    assert [p["grid"] for p in model.planner.points(None, 6).places] == model.planner.grids(6)
    assert [p["grid"] for p in model.planner.points(None, 6, own).places] == [*model.planner.grids(6), (3, 2)]
    with pytest.raises(InputError, match="mode 'tiny' has no crops"):
        model.planner.points("tiny", 6)


@pytest.mark.parametrize("name", config.config_names("sweep"))
@pytest.mark.parametrize("page", [{}, {"image_size": "600x400"}])
def test_every_sweep_runs_on_a_model_without_crops(one_view, name, page):
    settings = config.compose("run_sweep", [f"sweep@_global_={name}"])
    small = {"heads": None, "profiles": ["receipt"], "runtime": ["eager", "flash"]}
    settings |= {key: value for key, value in (small | page).items() if key in settings}
    settings |= {"device": None} if name == "targets" else {}
    for table in sweep_tables(name, one_view, settings):
        assert table.rows and "grid_h" not in table.columns
        if "image_tokens" in table.columns:
            assert {row["image_tokens"] for row in table.rows} == {256}
        for code in LANGUAGES:
            text = " ".join(Language(code).finding(finding) for finding in findings(table))
            assert "None" not in text and "0x0" not in text
        if name in ("vision_crops", "targets", "profiles"):
            assert figures(table)
        if page and "marked" in table.columns:
            assert all(row["marked"] for row in table.rows)


@pytest.mark.parametrize("name", config.config_names("sweep"))
def test_a_sweep_runs_on_a_text_model_or_says_what_it_needs(text, name):
    settings = config.compose("run_sweep", [f"sweep@_global_={name}"]) | {"heads": None}
    if name in ("vision_crops", "profiles", "compression", "encoders"):
        with pytest.raises(InputError, match="text takes no image"):
            sweep_tables(name, text, settings)
        return
    table, *_ = sweep_tables(name, text, settings | ({"device": None} if name == "targets" else {}))
    if name == "devices":
        assert all(row["ttft_s"] > 0 and row["tpot_s"] > 0 for row in table.rows if "ttft_s" in row)
        return
    stages = {"e2e_vision_prefill": ("prefill",), "targets": ("prefill",)}.get(name, ("decode",))
    row = table.rows[-1]
    options = {key: settings[key] for key in ("batch", "decode_steps") if key in settings}
    if name == "compare":
        options |= {"runtime": row["runtime"], "precision": {"weights": row["weights"]}}
        assert row["io_bytes"] == text.request(text.text(settings["prompt_tokens"], **options)).io_bytes
        return
    if name == "sequence":
        options = {key: row[key] for key in ("batch", "decode_steps")}
    work = text.text(row.get("prefill_tokens", settings.get("prompt_tokens")), runtime=row["execution"], **options)
    flops = sum(text.cost(stage, work).flops for stage in stages)
    counted = row.get("required_flops_per_s") or row["tensor_core_flops"] + row["cuda_core_flops"]
    assert counted == flops  # the budget of TTFT is one second
    assert not any("None" in Language("en").finding(finding) for finding in findings(table))


def test_a_page_of_one_view_costs_what_the_model_says(one_view):
    settings = config.compose("run_sweep", ["sweep@_global_=e2e_vision_prefill"])
    table, _ = sweep_tables("e2e_vision_prefill", one_view, settings)
    (row,) = table.select(component="total", execution="flash")
    work = one_view.workload()
    cost = one_view.cost("vision", work) + one_view.cost("prefill", work)
    assert row["tensor_core_flops"] == cost.tensor_core_flops and row["image_size"] == "224x224"
    assert "over one page, mode fixed" in table.title
