"""Each notebook runs from its first cell to its last, and its assertions are the test. Its exercises are tried in the
same kernel: a blank gives its hint, the answer of solutions.md is found right, and neither stops the cells below."""

import json
import re

import pytest
from checks import HINTS
from conftest import ROOT

import metadistil
import models

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
SOLUTIONS = (ROOT / "notebooks" / "solutions.md").read_text(encoding="utf-8")
ANSWERS = dict(re.findall(r"^## (\d\.\d)\n.*?```python\n(.*?)```", SOLUTIONS, re.MULTILINE | re.DOTALL))  # by exercise
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def exercise_in(source):
    """The exercise that a cell checks, such as "2.1"; None for other cells."""
    found = re.search(r'^exercise\("(\d\.\d)"', source, re.MULTILINE)
    return found and found[1]


def printed(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def code_of(path):
    """The code cells as they are committed, each with its source as one string."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_and_finds_its_solutions_right(path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(path, as_version=4)
    cells, tries = [], []
    for cell in notebook.cells:
        cells.append(cell)
        name = exercise_in(cell.source)
        if name and cell.cell_type == "code":
            other_answers = (ANSWERS[name], 'answer = "a word"\n')
            sources = [cell.source.replace("answer = ...\n", answer, 1) for answer in other_answers]
            solved, wrong = map(nbformat.v4.new_code_cell, sources)
            cells += [solved, wrong]
            tries.append((cell, solved, wrong))
    notebook.cells = cells
    folder = path.parent if NOTEBOOKS.index(path) % 2 else ROOT  # a notebook opens from either place
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    for blank, solved, wrong in tries:
        assert "blank" in printed(blank) and "Hint:" in printed(blank)
        assert ": right." in printed(solved), solved.source + printed(solved)
        assert "right." not in printed(wrong)


@each_notebook
def test_a_notebook_is_committed_with_its_figures(path):
    cells = code_of(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(cell["execution_count"] for cell in cells)
    assert not any(output["output_type"] == "error" for output in outputs)
    own = {name for module in (metadistil, models) for name, value in vars(module).items()
           if getattr(value, "__module__", None) == module.__name__}  # fmt: skip
    defined = re.findall(r"^(?:def|class) (\w+)", "\n".join(cell["source"] for cell in cells), re.MULTILINE)
    assert not own & {*defined}  # imported, never written again


@each_notebook
def test_every_exercise_has_its_hint_and_its_solution_stands_elsewhere(path):
    cells = code_of(path)
    exercises = {exercise_in(cell["source"]): cell for cell in cells if exercise_in(cell["source"])}
    for known in (HINTS, ANSWERS):
        assert list(exercises) == sorted(name for name in known if name[0] == path.name[1])
    for name, cell in exercises.items():
        assert cell["source"].startswith("answer = ...\n")
        assert HINTS[name] in printed(cell) and "blank" in printed(cell)
    written = re.sub(r"#.*|\s", "", "\n".join(cell["source"] for cell in cells))
    for answer in ANSWERS.values():
        answer = re.sub(r"#.*|\s", "", answer).rpartition("answer=")[2]
        assert len(answer) < 8 or answer not in written  # shorter ones occur by chance
