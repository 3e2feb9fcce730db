"""notebooks/methods.py: patient KD, and a program of its own. What its other methods do: test_ideas.py."""

import os
import subprocess
import sys

import methods
import pytest
import torch
from conftest import ROOT, TEXTS, checkpoint, command_line, small, small_pictures
from test_data import write_cifar

import train


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two networks, of four layers and of two."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return [checkpoint(folder / "one", TEXTS[-4:], 4), checkpoint(folder / "two", TEXTS[:300], 2, seed=1)]


def test_the_loss_of_pkd_worked_by_hand():
    student, teacher = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]]), torch.tensor([[[4.0, 3.0]], [[0.0, 9.0]]])
    # unit vectors (0.6, 0.8) against (0.8, 0.6), then equal ones: (0.04 + 0.04 + 0 + 0) / 4
    assert methods.pkd_loss(student, teacher).item() == pytest.approx(0.02)


@pytest.mark.parametrize("kept, expected_student, expected_teacher", [("1,3", (1,), (2,)), (None, (1, 2, 3), (1, 2, 3))])
def test_pkd_matches_hidden_states_alone_and_inside_metadistil(checkpoints, tmp_path, monkeypatch, kept, expected_student, expected_teacher):
    """Of a student's M layers all but the last, of a teacher's L every (L / M)-th: Sun et al. 2019, section 3.2."""
    monkeypatch.setattr(methods, "BETA", 1000.0)
    settings = {"teacher": checkpoints[0], "student": checkpoints[0], "student_layers": kept}
    seed, rows = train.Seed(train.resolved(small(tmp_path, **settings, methods="pkd,metadistil-pkd")), 0), torch.arange(16).numpy()
    for name, other in (("pkd", "kd"), ("metadistil-pkd", "metadistil")):
        losses, states = {}, {}
        for method in (name, other):
            stage = train.Stage(seed, method, trial=True)
            train.set_rate(stage.optimizer, 1e-3)
            losses[method] = stage.method.step(stage, seed.batch(rows), rows, stage.warmup_steps)["loss"].item()
            states[method] = stage.learner.network.blocks[0].query.weight
            layers = stage.learner.layers, stage.teachers[0].layers
            assert layers == ((expected_student, expected_teacher) if method == name else ((), ()))
        assert not torch.equal(states[name], states[other]) and (kept is None or losses[name] > losses[other] + 0.1)


def test_pkd_refuses_layers_that_do_not_match(checkpoints, tmp_path):
    for settings in ({"student": "tiny"}, {"student": checkpoints[0], "student_layers": "1"}, {"teacher": checkpoints[1], "student": checkpoints[0]}):
        with pytest.raises(train.InputError, match="pkd: expected a student of 2 layers.*, found "):
            train.run(small(tmp_path / "run", **{"teacher": checkpoints[0], "methods": "pkd"} | settings))
    with pytest.raises(train.InputError, match="pkd: expected a student of 2 layers.*, found "):
        train.run(small_pictures(write_cifar(tmp_path), tmp_path / "run", methods="pkd"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_says_where_pkd_is(tmp_path):
    refused = command_line("--methods", "kd,pkd", cwd=tmp_path)
    assert refused.returncode == 2 and not list(tmp_path.iterdir())
    assert refused.stderr.startswith("train.py: --methods pkd: expected some of finetune, kd, metadistil; ")
    assert refused.stderr.endswith("python notebooks/methods.py has more, such as pkd\n") and refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_more_methods_are_a_program_of_its_own(tmp_path):
    command = [sys.executable, ROOT / "notebooks" / "methods.py"]
    asked = subprocess.run([*command, "--help"], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert asked.returncode == 0 and b"--pilot-lr" in asked.stdout and not asked.stderr
    refused = subprocess.run([*command, "--alpha", "7"], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.startswith("notebooks/methods.py: --alpha 7.0: expected")
