"""What takes longest: DeepSeek-OCR at full size beside transformers' modules, and the reports, which tell the same
comparisons. Both stand in one file so that one process compares once.
"""

from pathlib import Path

import pytest
from test_report import REPORTED, REPORTS

from modelmeter import cli
from modelmeter.layers.base import walk

pytest.importorskip("torch")
pytest.importorskip("transformers")


def at_full_size(stages):
    """What is compared of the layers or of the stages: once for the tests and the report."""
    from modelmeter.validate import registry

    results = [r for r in registry.comparisons("deepseek_ocr") if (r.case.group == "stage") == stages]
    for result in results:
        assert result.equal, (result.case.layer, result.measured, result.theoretical)
    return [result.case.layer for result in results]


def test_every_layer_equals_its_module_at_full_size(model):
    tested = {layer.split(" (")[0] for layer in at_full_size(stages=False)}
    named = {type(layer).__name__ for part in (model.tower, model.projector, model.decoder) for layer in walk(part)}
    assert named - {"CausalLM", "DeepEncoder", "Repeat"} <= tested  # the stages test these


def test_every_stage_equals_the_whole_model_at_full_size():
    labels = at_full_size(stages=True)
    assert sum(label.startswith("vision") for label in labels) >= 8
    assert sum(label.startswith("prefill") for label in labels) == 2
    assert sum(label.startswith("decode") for label in labels) >= 3


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("reports")
    for model in REPORTED:
        assert cli.main(["report", model, f"out={out}"]) == 0
    return out


def files(folder):
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and p.relative_to(folder).parts[0] != "sweep"
    }


def test_regenerating_the_reports_leaves_no_diff(written):
    assert files(written) == files(REPORTS), "run modelmeter report; remove what it no longer writes"
    for name in sorted(files(written)):
        assert (written / name).read_bytes() == (REPORTS / name).read_bytes(), (
            f"{name}: run modelmeter report {Path(name).parts[0]}"
        )
