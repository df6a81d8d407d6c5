"""Run the notebooks of docs/notebooks and store them with their outputs. Needs the extra `dev`.

What is stored depends on nothing but the code: no execution counts, no times, no metadata of the machine.
tests/test_notebooks.py runs them too and compares.
"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path):
    """The notebook at `path` with fresh outputs, run in its own folder; raises if a cell does."""
    notebook = nbformat.read(path, as_version=4)
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    folder = {"metadata": {"path": str(path.parent)}}
    quiet = ["--log-level=40"]  # else it warns that it talks to this process over a local port
    NotebookClient(notebook, kernel_name="python3", resources=folder, extra_arguments=quiet).execute(env=environment)
    notebook.metadata, notebook.nbformat_minor = METADATA, 4  # 4.4 has no cell ids
    for cell in notebook.cells:
        cell.metadata = {}
        cell.pop("id", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.execution_count = None
    return notebook


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
