"""The notebooks run, and their stored outputs are what they give."""

import re
import runpy
import tempfile
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted(Path("docs/notebooks").glob("*.ipynb"))


def outputs(notebook):
    """Per code cell: the source and everything it shows but the figures' pixels."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [
                {k: v for k, v in o.get("data", {}).items() if k != "image/png"} | {"text": o.get("text")}
                for o in cell.outputs
            ]
            yield cell.source, shown, ["image/png" in o.get("data", {}) for o in cell.outputs]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_each_notebook_runs_and_gives_what_is_stored(path):
    executed = runpy.run_path("scripts/run_notebooks.py")["executed"](path)
    assert list(outputs(nbformat.read(path, as_version=4))) == list(outputs(executed)), (
        "run python scripts/run_notebooks.py"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_notebooks_hold_nothing_of_the_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not any(cell.metadata or cell.get("execution_count") for cell in notebook.cells)
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    assert not re.search(r"0x[0-9a-f]{6,}", text)
    assert not any(str(folder) in text for folder in (Path.cwd(), Path.home(), tempfile.gettempdir()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_of_notebooks_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert target.startswith("http") or (path.parent / target).exists(), target
