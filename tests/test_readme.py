"""README and the teachers' page are true, as far as a test can see: their commands, numbers, code and names."""

import inspect
import json
import re
import shlex

import pytest
import torch
from conftest import ROOT

import data
import metadistil
import models
import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "teaching.md": (ROOT / "notebooks" / "teaching.md").read_text(encoding="utf-8")}


def test_its_lines_of_the_algorithm_do_what_the_code_does():
    [lines] = re.findall(r"```python\n( {4}.*?)```", README, re.DOTALL)
    names = {**vars(metadistil)}
    parameters = inspect.signature(metadistil.metadistil_step).parameters
    exec(f"def step({', '.join(parameters)}):\n{lines}", names)
    ends = []
    for step in (names["step"], metadistil.metadistil_step):
        torch.manual_seed(0)
        given = {name: parameter.default for name, parameter in parameters.items()} | {"pilot_lr": 0.1}
        for name in ("student", "teacher"):
            network = torch.nn.Linear(4, 3)
            given[f"{name}s" if f"{name}s" in parameters else name] = network
            given[f"{name}_optimizer"] = torch.optim.AdamW(network.parameters(), lr=0.1)
        for name in ("batch", "quiz"):
            given[name] = torch.randn(6, 4), torch.randint(3, (6,))
        step(**given)
        ends.append([*given["student"].parameters(), *given["teachers"].parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_its_networks_of_ones_own_run_as_they_stand():
    [code] = re.findall(r"```python\n(import torch.*?)```", README, re.DOTALL)
    found = {}
    exec(code.replace("range(100)", "range(2)"), found)
    assert found["step"] == 1 and found["teacher_optimizer"].state_dict()["state"][0]["step"] == 2  # it learnt twice


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_can_be_given(page):
    """What follows train.py or methods.py, and flags alone; but for those with a letter in the place of a number."""
    given = []
    for code in re.findall(r"```.*?```|`[^`]+`", PAGES[page], re.DOTALL):
        for words in re.findall(r"(?:(?:train|methods)\.py|^)(?= *--)([^#&]*)", code.strip("`"), re.MULTILINE):
            if " " in words.strip() and not re.search(r"--(help|all|nproc)|\.\.\.| [A-Z]$", words):
                given.append(train.parse(shlex.split(words)))
    assert given and all(given)


def test_its_differences_are_those_of_the_record():
    results = (ROOT / "notebooks" / "results" / "RESULTS.md").read_text(encoding="utf-8")
    with_interval = re.findall(r"[-+]\d+\.\d\s\[[-+]\d+\.\d, [-+]\d+\.\d\]", README.replace("\n ", ""))
    without = re.findall(r"[-+]\d+\.\d(?=[;)])", README)  # such as (-0.2)
    assert with_interval and [found for found in with_interval if found not in results] == []
    assert without and [found for found in without if f" {found} [" not in results] == []


def test_its_methods_and_tasks_are_those_there_are():
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (yes|no) \|$", README, re.MULTILINE)
    assert rows
    for name, sees_quiz in rows:
        assert train.METHODS[name].quiz_labels == (sees_quiz == "yes"), name
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
    for path in re.findall(r"checkpoints/([\w./-]+)", text):
        assert path.count("/") == 1 and path not in models.PRESETS  # a hub name: owner and network


def test_the_figures_in_the_teachers_page_are_those_of_the_notebooks():
    for notebook, figure in re.findall(r"[Nn]otebook 0(\d), figure (\d\.\d+)", PAGES["teaching.md"]):
        [path] = (ROOT / "notebooks").glob(f"0{notebook}_*.ipynb")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert any(f"**Figure {figure}.**" in "".join(cell["source"]) for cell in cells), figure
