"""notebooks/methods.py: patient KD, and a program of its own. What its other methods do: test_ideas.py."""

import runpy
import sys

import methods
import numpy as np
import pytest
import torch
from conftest import TEXTS, checkpoint, refused, small

import models
import train


def encoder(layers, hidden=64):
    return models.EncoderConfig(layers=layers, hidden=hidden)


def test_the_loss_of_pkd_worked_by_hand():
    student, teacher = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]]), torch.tensor([[[4.0, 3.0]], [[0.0, 9.0]]])
    # unit vectors (0.6, 0.8) against (0.8, 0.6), then equal ones: (0.04 + 0.04 + 0 + 0) / 4
    assert methods.pkd_loss(student, teacher).item() == pytest.approx(0.02)


def test_the_layers_that_pkd_matches_and_others_are_refused_before_anything_is_written(tmp_path):
    """Of a student's M layers all but the last, of a teacher's L every (L / M)-th: Sun et al. 2019, section 3.2."""
    for M, L, of_student, of_teacher in [(2, 4, (1,), (2,)), (4, 4, (1, 2, 3), (1, 2, 3)), (3, 12, (1, 2), (4, 8))]:
        assert methods.patient_layers(encoder(M), encoder(M)) == of_student
        assert methods.patient_layers(encoder(M), encoder(L)) == of_teacher
    picture = models.RESNETS["resnet8"]
    for student, teacher in [(encoder(1), encoder(4)), (encoder(4), encoder(2)), (encoder(2, 128), encoder(4))]:
        with pytest.raises(train.InputError, match="pkd: expected a student of 2 layers.*, found "):
            methods.patient_layers(student, teacher)
    with pytest.raises(train.InputError, match="found ResNetConfig"):
        methods.patient_layers(picture, picture)
    with pytest.raises(train.InputError, match="pkd: expected a student of 2 layers.*, found "):
        train.run(small(tmp_path / "run", methods="pkd"))
    assert not (tmp_path / "run").exists()


def test_pkd_matches_hidden_states_alone_and_inside_metadistil(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "BETA", 1000.0)
    network = checkpoint(tmp_path, TEXTS[-4:], 4)
    settings = {"teacher": network, "student": network, "student_layers": "1,3", "methods": "pkd,metadistil-pkd"}
    seed, rows = train.Seed(train.resolved(small(tmp_path / "run", **settings)), 0), np.arange(16)
    for patient, plain in (("pkd", "kd"), ("metadistil-pkd", "metadistil")):
        losses, weights = {}, {}
        for method in (patient, plain):
            stage = train.Stage(seed, method, trial=True)
            train.set_rate(stage.optimizer, 1e-3)
            losses[method] = stage.method.step(stage, seed.batch(rows), rows, stage.warmup_steps)["loss"].item()
            weights[method] = stage.learner.network.blocks[0].query.weight
            matched = stage.learner.layers, stage.teachers[0].layers
            assert matched == (((1,), (2,)) if method == patient else ((), ()))
        assert losses[patient] > losses[plain] + 0.1 and not torch.equal(weights[patient], weights[plain])


def test_train_says_where_pkd_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    usual = {name: method for name, method in train.METHODS.items() if name not in methods.METHODS}
    monkeypatch.setattr(train, "METHODS", usual)
    said = refused(capsys, ["--methods", "kd,pkd"])
    assert said.startswith("train.py: --methods pkd: expected some of finetune, kd, metadistil; ")
    assert said.endswith("python notebooks/methods.py has more, such as pkd") and not list(tmp_path.iterdir())


def test_more_methods_are_a_program_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(train, "METHODS", train.METHODS.copy())
    monkeypatch.setattr(train, "PROGRAM", train.PROGRAM)
    monkeypatch.setattr(sys, "stdin", None)
    for arguments, status, said in [
        (["--help"], 0, "Methods: finetune, kd, metadistil, pkd, "),
        (["--alpha", "7"], 2, "notebooks/methods.py: --alpha 7.0: expected "),
    ]:
        monkeypatch.setattr(sys, "argv", ["methods.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(methods.__file__, run_name="__main__")
        assert stop.value.code == status and said in "".join(capsys.readouterr())
