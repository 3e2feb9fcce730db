"""notebooks/methods.py: a program of its own, patient KD, and the other ways for a teacher to learn."""

import runpy
import sys
import types

import methods
import numpy as np
import pytest
import torch
from conftest import TEXTS, checkpoint, refused, shaken, small

import metadistil
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


# ---- Other ways for a teacher to learn, each against its definition

RATE = 1e8  # far too much, but then rounding is far below what moves


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


def first_step(finished, method):
    """(stage, the teacher's gradient as a vector) of the first step by the method, where SGD has the rate RATE."""
    plain = {"teacher_optimizer": "sgd", "schedule": "falls", "teacher_lr": RATE, "warmup_epochs": 0}
    settings = plain | {"methods": "kd,metadistil", "quiz_batch_size": 8}
    stage = train.Stage(train.Seed(train.resolved(train.dataclasses.replace(finished.config, **settings)), 0), method)
    [teacher] = stage.teachers
    before = flat(theta.detach().clone() for theta in teacher.parameters())
    stage.step(0)
    return stage, (before - flat(theta.detach() for theta in teacher.parameters())) / RATE


def at_first(stage):
    """Student, teacher and batch of the first step, as they were before it."""
    student, teacher = stage.seed.model("student"), models.load(stage.seed.file("teacher before.pt"))
    return student, teacher, stage.seed.batch(stage.rows(0), 0)


def test_the_teachers_own_job_pulls_so_many_times_as_hard_as_the_quiz(finished):
    stage, usual = first_step(finished, "metadistil")
    _, teacher, (inputs, labels) = at_first(stage)
    loss = metadistil.hard_loss(teacher(**inputs), labels)
    own = flat(torch.autograd.grad(loss, list(teacher.parameters()), materialize_grads=True))
    added = {}
    for weight in (0.3, 1.0, 3.0):
        added[weight] = first_step(finished, f"own-job-{weight:g}")[1] - usual
        assert added[weight].norm().item() == pytest.approx(weight * usual.norm().item(), rel=1e-3)
        assert torch.cosine_similarity(added[weight], own, dim=0) == pytest.approx(1, abs=1e-4)
    _, alone = first_step(finished, "own-job-1-alone")  # its control does the same with the quiz unheard
    assert (alone - added[1]).norm() < 1e-3 * added[1].norm()


def test_less_the_mean_shifts_nothing_of_all_answers(finished):
    stage, ours = first_step(finished, "less-the-mean")
    student, teacher, batch = at_first(stage)
    settings, trace = {"pilot_lr": stage.config.pilot_lr, "loss": stage.loss}, {}
    metadistil.meta_gradient(student, teacher, batch, stage.quiz(0), trace=trace, **settings)
    message = trace["teacher_logits_gradient"]
    heard = (teacher(**batch[0]) * (message - message.mean(dim=0))).sum()
    expected = flat(torch.autograd.grad(heard, list(teacher.parameters()), materialize_grads=True))
    assert (ours - expected).norm() < 1e-2 * expected.norm()
    _, usual = first_step(finished, "metadistil")
    # The last parameters are the classifier's bias, which alone shifts all answers alike.
    assert ours[-2:].norm() < 1e-3 * usual[-2:].norm()


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_clipped_teacher_goes_as_far_as_its_gradient_is_long_and_no_farther(finished, share, monkeypatch):
    _, usual = first_step(finished, "metadistil")
    monkeypatch.setattr(methods, "CLIP", share * usual.norm().item())
    _, moved = first_step(finished, "clipped-sgd")
    expected = min(share, 1) * usual
    assert (moved - expected).norm() < 1e-3 * expected.norm()
    _, walked = first_step(finished, "random-walk")  # as long, and leads elsewhere
    assert walked.norm().item() == pytest.approx(expected.norm().item(), rel=1e-3)
    assert abs(torch.cosine_similarity(walked, usual, dim=0)) < 0.1


@pytest.mark.parametrize("name", ["clipped-sgd", "random-walk"])
def test_a_clipped_teachers_rate_falls_whatever_the_schedule(finished, name):
    config = train.dataclasses.replace(finished.config, methods=name, teacher_lr=1e-3, schedule="linear")
    stage = train.Stage(train.Seed(train.resolved(config), 0), name)
    rates = []
    for k in range(5, 15):  # after the warm-up; the rate falls at 62.5%, 75% and 87.5%
        stage.step(k)
        rates.append(stage.teacher_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(7 * [1e-3] + [1e-4, 1e-5, 1e-6])


def test_without_a_pilot_the_quiz_is_sat_where_the_student_stands():
    """The step against its definition: v at θ_S, the meta-gradient −λ (∂²L_S/∂θ_T∂θ_S) v, the student's step first."""
    shape = models.EncoderConfig(20, 8, 1, 2, 16, 8, dropout=0.0)
    student, teacher = (shaken(models.Encoder(shape)).double().eval() for _ in range(2))
    batch, quiz = (({"input_ids": torch.randint(20, (n, 5))}, torch.randint(2, (n,))) for n in (6, 4))
    theta_S, theta_T = list(student.parameters()), list(teacher.parameters())

    def gradient(loss, theta, **settings):
        return torch.autograd.grad(loss, theta, materialize_grads=True, **settings)

    L_S = metadistil.kd_loss(student(**batch[0]), teacher(**batch[0]), batch[1])
    of_student = gradient(L_S, theta_S, create_graph=True)
    v = gradient(metadistil.hard_loss(student(**quiz[0]), quiz[1]), theta_S)
    of_teacher = gradient(-0.3 * sum((g * d).sum() for g, d in zip(of_student, v)), theta_T)
    both = (theta_S, of_student), (theta_T, of_teacher)
    moved = [[(theta - 0.1 * g).detach() for theta, g in zip(*pair)] for pair in both]
    stage = types.SimpleNamespace(
        learner=student,
        teachers=[teacher],
        optimizer=torch.optim.SGD(theta_S, 0.1),
        teacher_optimizer=torch.optim.SGD(theta_T, 0.1),
        loss=metadistil.kd_loss,
        quiz_loss=metadistil.hard_loss,
        config=train.Config(pilot_lr=0.3),
        quiz={7: quiz}.get,
    )
    torch.testing.assert_close(methods.no_pilot(stage, batch, None, 7), {"loss": L_S.detach()})
    torch.testing.assert_close([[theta.detach() for theta in of] for of in (theta_S, theta_T)], moved)


def test_in_mutual_learning_both_learn_from_each_other_and_no_quiz_is_sat(finished, monkeypatch):
    monkeypatch.setattr(metadistil, "meta_gradient", lambda *_, **__: pytest.fail("a quiz"))
    stage, moved = first_step(finished, "mutual")
    student, teacher, batch = at_first(stage)
    optimizer = train.OPTIMIZERS[stage.config.optimizer](student.parameters(), lr=stage.optimizer.param_groups[0]["lr"])
    metadistil.real_update(student, [teacher], batch, optimizer, stage.loss)
    ours, theirs = flat(student.state_dict().values()), flat(stage.learner.state_dict().values())
    assert (ours - theirs).norm() < 0.05 * theirs.norm()  # but for dropout's draws
    assert moved.norm() > 0 and methods.METHODS["mutual"].quiz_labels
