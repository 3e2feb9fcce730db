"""README and the teachers' page: short, and true as far as a test can see."""

import inspect
import json
import re

import pytest
from conftest import ROOT

import data
import metadistil
import models
import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "teaching.md": (ROOT / "notebooks" / "teaching.md").read_text(encoding="utf-8")}


def test_its_lines_of_the_algorithm_are_the_codes():
    [code] = re.findall(r"```python\n(    result = .*?)```", README, re.DOTALL)
    assert code in inspect.getsource(metadistil.metadistil_step)


def test_its_networks_of_ones_own_run_as_they_stand():
    [code] = re.findall(r"```python\n(import torch.*?)```", README, re.DOTALL)
    found = {}
    exec(code.replace("range(100)", "range(2)"), found)
    assert all(theta.grad is None or theta.isfinite().all() for theta in found["teacher"].parameters())
    assert found["step"] == 1 and found["teacher_optimizer"].state_dict()["state"][0]["step"] == 2  # it learnt twice


def test_its_differences_are_those_of_the_record():
    results = (ROOT / "notebooks" / "results" / "RESULTS.md").read_text(encoding="utf-8")
    found = re.findall(r"[-+]\d+\.\d\s\[[-+]\d+\.\d, [-+]\d+\.\d\]", README.replace("\n ", ""))
    assert len(found) >= 6
    assert all(one in results for one in found)
    without_interval = re.findall(r"[-+]\d+\.\d(?=[;)])", README)  # such as (-0.2)
    assert len(without_interval) >= 4
    assert all(f" {one} [" in results for one in without_interval)


def test_its_methods_are_those_of_the_table():
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (yes|no) \|$", README, re.MULTILINE)
    assert dict(rows) == {name: "yes" if method.quiz_labels else "no" for name, method in train.METHODS.items()
                          if name in dict(rows)}  # fmt: skip
    assert len(rows) == 3
    more = re.findall(r'^    "([\w.-]+)": ', (ROOT / "notebooks" / "methods.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert "adds eleven methods" in README and len(more) == 11 and {"pkd", "metadistil-pkd"} < set(more)


def test_its_tasks_are_those_there_are():
    [table] = re.findall(r"\| `--task` .*?\n\n", README, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", table)) == {name for name in data.TASKS if name != "mine"}


@pytest.mark.parametrize("page", PAGES)
def test_what_it_names_exists(page):
    text = PAGES[page]
    flags = {f"--{field.name.replace('_', '-')}" for field in train.dataclasses.fields(train.Config)}
    flags |= {"--help", "--resume", "--predict", "--nproc-per-node", "--all"}
    assert set(re.findall(r"(?<=[\s`])--[a-z][\w-]*", text)) <= flags
    folder = ROOT if page == "README.md" else ROOT / "notebooks"
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (folder / link).is_file(), link
    for path in re.findall(r"(?:notebooks|tests)/[\w./]+\.(?:py|md|txt)", text):
        assert (ROOT / path).is_file(), path
    for module, name in re.findall(r"`(metadistil|train|models|data)\.(\w+)(?:\(.*?\))?`", text):
        assert name == "py" or hasattr(globals()[module], name), name
    for stem in re.findall(r"^\| `(0\d_\w+)` ", text, re.MULTILINE):
        assert (ROOT / "notebooks" / f"{stem}.ipynb").is_file()


def test_the_figures_in_the_teachers_page_are_those_of_the_notebooks():
    for notebook, figure in re.findall(r"[Nn]otebook 0(\d), figure (\d\.\d+)", PAGES["teaching.md"]):
        assert figure.startswith(notebook)
        path = next((ROOT / "notebooks").glob(f"0{notebook}_*.ipynb"))
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert any(f"**Figure {figure}.**" in "".join(cell["source"]) for cell in cells), figure


def test_presets_and_networks_it_speaks_of():
    for preset in re.findall(r"checkpoints/([\w./-]+)", README):
        assert preset.count("/") == 1 and preset not in models.PRESETS  # a hub name: owner and network
