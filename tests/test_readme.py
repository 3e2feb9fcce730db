"""README and the teachers' page: short, and true as far as a test can see."""

import functools
import json
import re

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


def test_its_algorithm_is_that_of_metadistil_step():
    """The README's lines, run as they stand, and metadistil_step: two steps, float64."""
    [code] = re.findall(r"## The whole algorithm\n\n```python\n(.*?)```", README, re.DOTALL)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        teacher = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        optimizers = [torch.optim.SGD(network.parameters(), lr=0.5) for network in (student, teacher)]
        networks.append((student, teacher, *optimizers))
    (student, teacher, student_optimizer, teacher_optimizer), (ours, our_teacher, *our_optimizers) = networks
    settings = {"alpha": 0.7, "T": 3.0, "pilot_lr": 0.4}
    for _ in range(2):
        x, x_q = torch.randn(8, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
        y, y_q = torch.randint(3, (8,)), torch.randint(3, (6,))
        exec(code, {**settings, "x": x, "y": y, "x_q": x_q, "y_q": y_q, "student": student, "teacher": teacher,
                    "student_optimizer": student_optimizer, "teacher_optimizer": teacher_optimizer})  # fmt: skip
        loss = functools.partial(metadistil.kd_loss, alpha=0.7, temperature=3.0)
        metadistil.metadistil_step(ours, our_teacher, (x, y), (x_q, y_q), *our_optimizers, pilot_lr=0.4, loss=loss)
    for a, b in ((student, ours), (teacher, our_teacher)):
        for theirs, mine in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-12)


def test_its_networks_of_ones_own_run_as_they_stand():
    [code] = re.findall(r"```python\n(import torch\nfrom metadistil.*?)```", README, re.DOTALL)
    found = {}
    exec(code.replace("range(100)", "range(2)"), found)
    assert all(theta.grad is None or theta.isfinite().all() for theta in found["teacher"].parameters())
    assert found["step"] == 1 and found["teacher_optimizer"].state_dict()["state"][0]["step"] == 2  # it learnt twice


def test_its_differences_are_those_of_the_record():
    results = (ROOT / "notebooks" / "results" / "RESULTS.md").read_text(encoding="utf-8")
    found = re.findall(r"[-+]\d+\.\d\s\[[-+]\d+\.\d, [-+]\d+\.\d\]", README.replace("\n ", ""))
    assert len(found) >= 6
    assert all(one in results for one in found)


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
