"""README and the teachers' page are true, as far as a test can see: their commands, numbers, code and names."""

import copy
import functools
import json
import re
import shlex

import pytest
import torch
from conftest import ROOT
from torch import nn

import data
import metadistil
import models
import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "teaching.md": (ROOT / "notebooks" / "teaching.md").read_text(encoding="utf-8")}
MODULES = {"metadistil": metadistil, "train": train, "models": models, "data": data}


def test_its_algorithm_is_that_of_metadistil_step():
    """The README's lines, run as they stand, and metadistil_step: two steps, float64."""
    [code] = re.findall(r"## The whole algorithm\n\n```python\n(.*?)```", README, re.DOTALL)
    student, teacher = (nn.Sequential(nn.Linear(5, D), nn.Tanh(), nn.Linear(D, 3)).double() for D in (4, 6))
    ours = copy.deepcopy(student), copy.deepcopy(teacher)
    names = {"student": student, "teacher": teacher, "alpha": 0.7, "T": 3.0, "pilot_lr": 0.4}
    names |= {f"{name}_optimizer": torch.optim.SGD(names[name].parameters(), lr=0.5) for name in ("student", "teacher")}
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.5) for network in ours]
    loss = functools.partial(metadistil.kd_loss, alpha=0.7, temperature=3.0)
    for _ in range(2):
        x, y = torch.randn(14, 5, dtype=torch.float64), torch.randint(3, (14,))
        exec(code, names | {"x": x[:8], "y": y[:8], "x_q": x[8:], "y_q": y[8:]})
        batch, quiz = (x[:8], y[:8]), (x[8:], y[8:])
        metadistil.metadistil_step(*ours, batch, quiz, *optimizers, pilot_lr=0.4, loss=loss)
    for network, our_network in zip((student, teacher), ours):
        for theta, our_theta in zip(network.parameters(), our_network.parameters(), strict=True):
            torch.testing.assert_close(theta, our_theta, rtol=0, atol=1e-12)


def test_its_networks_of_ones_own_run_as_they_stand():
    [code] = re.findall(r"```python\n(import torch\nfrom metadistil.*?)```", README, re.DOTALL)
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


@pytest.mark.parametrize("page", PAGES)
def test_what_it_names_exists(page):
    text, folder = PAGES[page], ROOT if page == "README.md" else ROOT / "notebooks"
    flags = {f"--{field.name.replace('_', '-')}" for field in train.dataclasses.fields(train.Config)}
    flags |= {"--help", "--resume", "--predict", "--nproc-per-node", "--all"}
    assert set(re.findall(r"(?<=[\s`])--[a-z][\w-]*", text)) <= flags
    paths = [folder / link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    paths += [ROOT / path for path in re.findall(r"(?:notebooks|tests)/[\w./]+\.(?:py|md|txt)", text)]
    paths += [ROOT / "notebooks" / f"{stem}.ipynb" for stem in re.findall(r"^\| `(0\d_\w+)` ", text, re.MULTILINE)]
    assert [path for path in paths if not path.is_file()] == []
    for module, name in re.findall(r"`(metadistil|train|models|data)\.(\w+)(?:\(.*?\))?`", text):
        assert name == "py" or hasattr(MODULES[module], name), name


def test_its_differences_are_those_of_the_record():
    results = (ROOT / "notebooks" / "results" / "RESULTS.md").read_text(encoding="utf-8")
    with_interval = re.findall(r"[-+]\d+\.\d\s\[[-+]\d+\.\d, [-+]\d+\.\d\]", README.replace("\n ", ""))
    assert with_interval and [found for found in with_interval if found not in results] == []


def test_the_figures_in_the_teachers_page_are_those_of_the_notebooks():
    for notebook, figure in re.findall(r"[Nn]otebook 0(\d), figure (\d\.\d+)", PAGES["teaching.md"]):
        [path] = (ROOT / "notebooks").glob(f"0{notebook}_*.ipynb")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert any(f"**Figure {figure}.**" in "".join(cell["source"]) for cell in cells), figure
