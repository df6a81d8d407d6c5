"""What the documents say is what the code does."""

import doctest
import pkgutil
import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest

import modelmeter
from examples import all_layers, every_example
from modelmeter import cli
from modelmeter.graph.axes import AXES
from modelmeter.layers.base import walk
from modelmeter.report.formulas import GENERATED

MODULES = [
    m.name for m in pkgutil.walk_packages(modelmeter.__path__, "modelmeter.")
    if not m.name.endswith("__main__") and ".validate" not in m.name
]  # fmt: skip
PAGES = [Path("README.md"), *sorted(Path("docs").glob("*.md")), Path("CONTRIBUTING.md"), Path("CHANGELOG.md")]


@pytest.mark.parametrize("name", MODULES)
def test_doctests_of_modules(name):
    failed, _ = doctest.testmod(import_module(name))
    assert not failed


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_snippets_of_pages(path):
    text = re.sub(r"^```.*$", "", path.read_text(), flags=re.MULTILINE)
    parsed = doctest.DocTestParser().get_doctest(text, {}, str(path), str(path), 0)
    runner = doctest.DocTestRunner()
    runner.run(parsed)
    assert not runner.failures


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_links_between_pages_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted(Path("scripts").glob("*.py")), ids=str)
def test_scripts_find_what_they_use(path):
    if path.stem in ("trace_survey", "run_notebooks"):
        pytest.importorskip("torch")
    assert runpy.run_path(str(path), run_name="not main")


@pytest.mark.parametrize("path", GENERATED)
def test_generated_pages_are_current(path):
    assert Path(path).read_text() == GENERATED[path](), "run python -m modelmeter.report.formulas"


def test_the_readmes_table_is_what_the_command_prints(capsys):
    assert cli.main(["cost", "deepseek_ocr", "image=examples/page.png"]) == 0
    assert capsys.readouterr().out.strip() in Path("README.md").read_text()


def test_the_readme_has_four_commands_and_ci_runs_the_tests():
    commands = re.findall(r"```sh\n(.*?)\n```", Path("README.md").read_text(), flags=re.DOTALL)
    assert len(commands) == 4
    assert "modelmeter.sweep vision_crops" in commands[0] and commands[1].endswith("-m pytest")
    assert commands[2].endswith("-m pytest tests/test_llama_cpp.py")
    assert commands[3].endswith("-m pytest -n 0 tests/test_openvino.py")
    assert Path(".ci/run").read_text().count("' README.md") == 2 and "for wanted in 3 4" in Path(".ci/run").read_text()


PUBLIC = [layer for layer in all_layers() if not layer.__name__.startswith("_")]


@pytest.mark.parametrize("layer", PUBLIC, ids=lambda c: c.__name__)
def test_every_layer_documents_its_source_axes_and_an_example(layer):
    text = layer.__doc__
    assert "Axes:" in text and text.endswith("\n    ")
    if layer.__module__ != "modelmeter.layers.base":
        assert "Vendor:" in text and ">>>" in text


def test_every_axis_of_an_equation_is_in_the_glossary_or_a_size_of_its_layer():
    used, told = set(), set()
    for _, layer, _ in every_example():
        told |= {axis for part in walk(layer) for axis in part.sizes.split()}
        for op in layer.graph().ops:
            tensors = (*op.equation.outputs, *op.equation.operands)
            used |= {*op.over.split(), *(axis for tensor in tensors for axis in tensor.stored + tensor.touched)}
    used = {re.sub(r"_\d+$", "", axis) for axis in used}  # images of a second size
    assert used <= set(AXES) | told
    assert set(AXES) <= used | told | {"l"}  # how often a layer is repeated


def test_modules_open_with_what_they_are_and_stay_small():
    for path in Path("src").rglob("*.py"):
        text = path.read_text()
        assert text.startswith('"""'), path
        assert len(text.splitlines()) <= 380, path


REGISTRIES = ("vendors.py", "families.py", "registry.py")
"""Where what a model has of its own is found by name."""


def test_nothing_generic_names_the_model():
    for path in Path("src/modelmeter").rglob("*.py"):
        if "deepseek" in path.name or path.parent.name == "deepseek_ocr" or path.name in REGISTRIES:
            continue
        text = re.sub(r"from modelmeter\S* import .*|#.*|Vendor: .*", "", path.read_text())
        for word in re.findall(r"(?i)deepseek[ _-]?ocr(?! ?2)", text):  # the second one is among the other towers
            assert path.name == "__init__.py" and "load_model" in text, (path, word)


def test_the_readmes_shares_are_those_of_the_targets_sweep(tmp_path):
    assert cli.main(["sweep", "targets", f"out={tmp_path}", "figures=false", "device=null"]) == 0
    text = (tmp_path / "targets" / "device_shares.md").read_text()
    readme = Path("README.md").read_text()
    rows = re.findall(r"^\| (NVIDIA.*?|AMD.*?) \| (.*?) \| (.*?) \|$", readme, re.MULTILINE)
    assert len(rows) == 4
    for device, tensor, memory in rows:
        assert re.search(
            rf"\| TPOT \| 0.05 \| flash \| {device} \| {tensor} \| .* \| {memory} \| memory bandwidth \|", text
        )
    least = re.search(r"TPOT is bound .* all 8 devices, by a factor of (\d+) or more", text)
    flash = re.search(r"TTFT, flash execution: memory bandwidth binds at every grid on (\d) of 8", text)
    none = re.search(r"TTFT, compulsory execution: memory bandwidth binds at every grid on 0 of 8", text)
    said = " ".join(readme.split())
    assert none and f"at least {least[1]} times that of the tensor cores" in said
    assert f"memory binds at every grid on {flash[1]} of 8 devices" in said


def test_the_readmes_cells_are_those_of_the_reconciliation():
    text = " ".join(Path("reports/reconciliation.md").read_text().split())
    assert "742 of 742 cells" in text and "84 of 84 cells" in text
    assert "all 742 cells" in Path("README.md").read_text()


def test_every_sweep_has_a_script_and_is_in_the_readme():
    sweeps = {path.stem for path in Path("configs/sweep").glob("*.yaml")}
    assert {path.stem for path in Path("scripts/sweep").glob("*.py")} == sweeps
    readme = Path("README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in sweeps)
