"""Each notebook runs from its first cell to its last: its assertions are the test."""

import json
import re

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    nbclient = pytest.importorskip("nbclient")
    nbformat, _ = pytest.importorskip("nbformat"), pytest.importorskip("matplotlib")
    folder = path.parent if NOTEBOOKS.index(path) % 2 else ROOT  # it opens from either place
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_figures(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert figures >= 3 and all(cell["execution_count"] for cell in code)
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    modules = "\n".join((ROOT / f"{name}.py").read_text(encoding="utf-8") for name in ("metadistil", "models"))
    names = set(re.findall(r"^(?:def|class) (\w+)", modules, re.MULTILINE))
    defined = re.findall(r"^(?:def|class) (\w+)", "\n".join("".join(cell["source"]) for cell in code), re.MULTILINE)
    assert not names & {*defined}  # imported, never written again
