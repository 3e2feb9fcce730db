"""The exercises of the notebooks: a blank gives its hint and stops nothing, a solution is found right, and no student's
cell holds one."""

import copy
import json
import re
import sys

import pytest
from conftest import ROOT

NOTEBOOKS = ROOT / "notebooks"
# Notebooks with exercises of this kind.
SOLVED = ["01_soft_targets", "02_pilot_update", "03_second_order_gradient", "04_sst2", "05_cifar100", "06_experiments"]
sys.path.insert(0, str(NOTEBOOKS))


def solutions():
    """{"2.1": code, ...} of solutions.md."""
    text = (NOTEBOOKS / "solutions.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## (\d\.\d)\n.*?```python\n(.*?)```", text, re.MULTILINE | re.DOTALL))


def exercise_of(cell):
    """The exercise that a cell checks, such as "2.1"; None for other cells."""
    found = re.search(r'^exercise\("(\d\.\d)"', "".join(cell["source"]), re.MULTILINE)
    return found[1] if found and cell["cell_type"] == "code" else None


def cells_of(stem):
    notebook = json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def plain(code):
    """Code without spaces, comments and line ends."""
    return re.sub(r"#.*|\s", "", code)


@pytest.mark.parametrize("stem", SOLVED)
def test_every_blank_gives_its_hint_and_no_students_cell_a_solution(stem):
    from checks import HINTS

    answers, cells = solutions(), cells_of(stem)
    number = stem[1]
    asked = [exercise_of(cell) for cell in cells if exercise_of(cell)]
    assert asked == sorted(name for name in HINTS if name[0] == number)
    assert asked == sorted(name for name in answers if name[0] == number) and len(asked) >= 3
    for cell in cells:
        source = "".join(cell["source"])
        name = exercise_of(cell)
        if name:
            assert source.startswith("answer = ...\n") and source.count("answer =") == 1
            assert HINTS[name] in printed(cell) and "blank" in printed(cell)
        for answer in answers.values():
            right_hand = plain(answer).rpartition("answer=")[2]
            assert len(right_hand) < 8 or right_hand not in plain(source)


@pytest.mark.slow
@pytest.mark.parametrize("stem", SOLVED)
def test_every_solution_is_found_right(stem):
    """The notebook as it is, and after each blank cell the same cell with the solution: neither stops the other."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("matplotlib")
    notebook, answers = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4), solutions()
    doubled = []
    for cell in notebook.cells:
        doubled.append(cell)
        name = exercise_of(cell)
        if name:
            solved = copy.deepcopy(cell)
            solved["source"] = cell["source"].replace("answer = ...\n", answers[name], 1)
            wrong = copy.deepcopy(cell)
            wrong["source"] = cell["source"].replace("answer = ...", 'answer = "a word"', 1)
            doubled += [solved, wrong]
    notebook.cells = [nbformat.v4.new_code_cell(cell.source) if cell.cell_type == "code" else cell for cell in doubled]
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    said = [printed(cell) for cell in notebook.cells if exercise_of(cell)]
    blank, solved, wrong = said[::3], said[1::3], said[2::3]
    assert blank and all("Hint:" in text and "blank" in text for text in blank)
    assert all(": right." in text for text in solved), solved
    assert not any("right." in text for text in wrong)
