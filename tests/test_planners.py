"""Planners: two rules, one protocol; sweeps go over whatever they offer."""

from dataclasses import dataclass
from typing import Any

import pytest

from modelmeter import config
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.models.model import Model
from modelmeter.models.planner import FixedSize
from modelmeter.publish import sweep_tables
from modelmeter.report.figures import figures
from modelmeter.report.findings import findings
from modelmeter.report.language import LANGUAGES, Language


@dataclass(frozen=True)
class OneView(Model):
    """A patch convolution, a projector and a decoder behind a planner without crops."""

    name: str
    preprocess: FixedSize
    patch: mm.PatchEmbed
    projector: mm.MlpProjector
    decoder: mm.CausalLM

    def plan(self, *, mode, image_size, grid):
        return self.preprocess.plan(mode, image_size, grid)

    def vision(self, n, image):
        rows = self.preprocess.side // self.preprocess.patch
        yield from self.patch.at(n, "patch", u=rows, v=rows, x="pixels", y="features")
        yield from self.projector.at(n, "projector", s=rows * rows, x="features", y="image")

    def language(self, n):
        yield from self.decoder.at(n, "", y="logits")

    def grids(self, largest):
        return []

    def has_crops(self, mode):
        return False

    modes = ("fixed",)
    positions = 4096


@pytest.fixture(scope="module")
def one_view():
    norm, rotary = mm.DeepseekV2RMSNorm(d=32), mm.LlamaRotaryEmbedding(e=8)
    attention = mm.LlamaAttention(d=32, g=2, r=2, e=8, rotary=rotary)
    block = mm.DeepseekV2DecoderLayer(attention, mm.DeepseekV2MLP(d=32, f=64), norm)
    decoder = mm.CausalLM(mm.TokenEmbedding(100, 32), (block, block), norm, mm.LMHead(100, 32), rotary)
    patch, projector = mm.PatchEmbed(c=3, d=16, p=14), mm.MlpProjector("linear", 16, 32)
    return OneView("one_view", FixedSize(side=224, patch=14), patch, projector, decoder)


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


@pytest.mark.parametrize("largest", [2, 7])
def test_points_together_are_the_points_one_by_one(model, one_view, largest):
    for some in (model, one_view):
        points = some.planner.points(None, largest)
        plan: Any = some.workload(**points.together).image
        for i, place in enumerate(points.places):
            one = some.workload(**place).image
            columns = some.planner.columns(one)
            assert set(points.keys) <= columns.keys()
            tokens = plan.tokens[i] if hasattr(plan.tokens, "shape") else plan.tokens
            assert one.tokens == tokens


def test_points_are_the_models_grids_and_the_users_own(model):
    own = model.workload(grid="3x2").image
    assert [p["grid"] for p in model.planner.points(None, 6).places] == model.grids(6)
    assert [p["grid"] for p in model.planner.points(None, 6, own).places] == [*model.grids(6), (3, 2)]
    with pytest.raises(InputError, match="mode 'tiny' has no crops"):
        model.planner.points("tiny", 6)


@pytest.mark.parametrize("name", config.config_names("sweep"))
@pytest.mark.parametrize("page", [{}, {"image_size": "600x400"}])
def test_every_sweep_runs_on_a_model_without_crops(one_view, name, page):
    settings = config.compose("run_sweep", [f"sweep@_global_={name}"])
    small = {"heads": ["4x2"], "profiles": ["receipt"], "runtime": ["eager", "flash"]}
    settings |= {key: value for key, value in (small | page).items() if key in settings}
    if name == "profiles":
        settings["profiles"] = ["receipt"]
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


def test_a_page_of_one_view_costs_what_the_model_says(one_view):
    settings = config.compose("run_sweep", ["sweep@_global_=e2e_vision_prefill"])
    table, _ = sweep_tables("e2e_vision_prefill", one_view, settings)
    (row,) = table.select(component="total", execution="flash")
    work = one_view.workload()
    cost = one_view.cost("vision", work) + one_view.cost("prefill", work)
    assert row["tensor_core_flops"] == cost.tensor_core_flops and row["image_size"] == "224x224"
    assert "over one page, mode fixed" in table.title
