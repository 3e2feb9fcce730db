"""notebooks/methods.py: the other ways for a teacher to learn, each against its definition."""

import types

import methods
import pytest
import torch
from conftest import shaken

import metadistil
import models
import train


@pytest.fixture(scope="module")
def taught_run(tmp_path_factory):
    """A run's configuration, whose kd has been trained, and so its teacher."""
    out = tmp_path_factory.mktemp("taught") / "run"
    sizes = {"train_size": 60, "quiz_size": 20, "batch_size": 16, "teacher_epochs": 2, "warmup_epochs": 1, "epochs": 2}
    networks = {"teacher": "tiny", "student": "micro", "methods": "kd"}
    return train.run(train.Config(data="builtin", out=str(out), **sizes, **networks)).config


RATE = 1e5  # far too much, but then rounding is far below what moves


def rows_of(stage, k):
    return stage.rows(k)


def take_step(stage, k):
    """Training step k of a stage, by itself."""
    schedule, rows = train.SCHEDULES[stage.config.schedule], rows_of(stage, k)
    train.set_rate(stage.optimizer, stage.rate * schedule(k, stage.total))
    share = schedule(k - stage.warmup_steps, stage.total - stage.warmup_steps)
    train.set_rate(stage.teacher_optimizer, stage.config.teacher_lr * share)
    stage.method.step(stage, stage.seed.batch(rows, k), rows, k)


def first_step(config, method, **settings):
    """(stage, {name: its gradient}) of the teacher in the first step by the method, where SGD has the rate RATE."""
    plain = {"teacher_optimizer": "sgd", "schedule": "falls", "teacher_lr": RATE, "warmup_epochs": 0, "quiz_batch_size": 8}
    config = train.dataclasses.replace(config, methods="kd,metadistil", **plain | settings)
    stage = train.Stage(train.Seed(train.resolved(config), 0), method)
    (teacher,) = stage.teachers
    before = {name: theta.detach().clone() for name, theta in teacher.named_parameters()}
    take_step(stage, 0)
    return stage, {name: (before[name] - theta.detach()) / RATE for name, theta in teacher.named_parameters()}


def first_batch(stage):
    return stage.seed.batch(rows_of(stage, 0), 0)


def at_first(stage):
    """Student and teacher as they are before the first step."""
    return stage.seed.model("student"), models.load(stage.seed.file("teacher before.pt"))


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("weight", [0.3, 1.0, 3.0])
def test_the_teachers_own_job_pulls_so_many_times_as_hard_as_the_quiz(taught_run, weight):
    name = f"own-job-{weight:g}"
    (stage, ours), (_, usual) = (first_step(taught_run, method) for method in (name, "metadistil"))
    _, teacher = at_first(stage)
    inputs, labels = first_batch(stage)
    own = torch.autograd.grad(metadistil.hard_loss(teacher(**inputs), labels), list(teacher.parameters()), materialize_grads=True)
    added = flat(ours.values()) - flat(usual.values())
    assert added.norm().item() == pytest.approx(weight * flat(usual.values()).norm().item(), rel=1e-3)
    assert torch.cosine_similarity(added, flat(own), dim=0) == pytest.approx(1, abs=1e-4)
    if weight == 1:  # its control does the same with the quiz unheard
        _, alone = first_step(taught_run, "own-job-1-alone")
        assert (flat(alone.values()) - added).norm() < 1e-3 * added.norm()


def test_less_the_mean_shifts_nothing_of_all_answers(taught_run):
    (stage, ours), (_, usual) = (first_step(taught_run, method) for method in ("less-the-mean", "metadistil"))
    student, teacher = at_first(stage)
    batch, trace = first_batch(stage), {}
    settings = {"pilot_lr": stage.config.pilot_lr, "loss": stage.loss, "trace": trace}
    metadistil.meta_gradient(student, teacher, batch, stage.quiz(0), **settings)
    message = trace["teacher_logits_gradient"]
    heard = (teacher(**batch[0]) * (message - message.mean(dim=0))).sum()
    expected = torch.autograd.grad(heard, list(teacher.parameters()), materialize_grads=True)
    assert (flat(ours.values()) - flat(expected)).norm() < 1e-2 * flat(expected).norm()
    bias = "network.classifier.bias"  # it alone shifts all answers alike
    assert ours[bias].norm() < 1e-3 * usual[bias].norm()


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_clipped_teacher_goes_as_far_as_its_gradient_is_long_and_no_farther(taught_run, share, monkeypatch):
    usual = flat(first_step(taught_run, "metadistil")[1].values())
    monkeypatch.setattr(methods, "CLIP", share * usual.norm().item())
    moved = flat(first_step(taught_run, "clipped-sgd")[1].values())
    expected = min(share, 1) * usual
    assert (moved - expected).norm() < 1e-3 * expected.norm()
    walked = flat(first_step(taught_run, "random-walk")[1].values())  # as long, and leads elsewhere
    assert walked.norm().item() == pytest.approx(expected.norm().item(), rel=1e-3)
    assert abs(torch.cosine_similarity(walked, usual, dim=0)) < 0.1


@pytest.mark.parametrize("name", ["clipped-sgd", "random-walk"])
def test_a_clipped_teachers_rate_falls_whatever_the_schedule(taught_run, name):
    config = train.dataclasses.replace(taught_run, methods=name, teacher_lr=1e-3, schedule="linear")
    stage = train.Stage(train.Seed(train.resolved(config), 0), name)
    rates = []
    for k in range(5, 15):  # after the warm-up; the rate falls at 62.5%, 75% and 87.5%
        take_step(stage, k)
        rates.append(stage.teacher_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(7 * [1e-3] + [1e-4, 1e-5, 1e-6])


def test_without_a_pilot_the_quiz_is_sat_where_the_student_stands():
    """The step against its definition: v at θ_S, the meta-gradient −λ (∂²L_S/∂θ_T∂θ_S) v, the student's step first."""
    torch.manual_seed(0)
    student, teacher = (shaken(models.Encoder(models.EncoderConfig(20, 8, 1, 2, 16, 8, dropout=0.0))).double() for _ in "ST")
    exam = lambda n: ({"input_ids": torch.randint(20, (n, 5))}, torch.randint(2, (n,)))  # noqa: E731
    batch, quiz, pilot_lr = exam(6), exam(4), 0.3
    theta_S, theta_T = list(student.parameters()), list(teacher.parameters())
    L_S = metadistil.kd_loss(student(**batch[0]), teacher.eval()(**batch[0]), batch[1])
    gradient = torch.autograd.grad(L_S, theta_S, create_graph=True, materialize_grads=True)
    L_q = metadistil.hard_loss(student(**quiz[0]), quiz[1])
    v = torch.autograd.grad(L_q, theta_S, materialize_grads=True)
    expected = torch.autograd.grad(-pilot_lr * sum((g * d).sum() for g, d in zip(gradient, v)), theta_T, materialize_grads=True)
    moved_S = [(theta - 0.1 * part).detach() for theta, part in zip(theta_S, gradient)]
    moved_T = [theta.detach() - 0.1 * part for theta, part in zip(theta_T, expected)]
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (student, teacher)]
    stage = types.SimpleNamespace(
        learner=student, teachers=[teacher], optimizer=optimizers[0], teacher_optimizer=optimizers[1],
        loss=metadistil.kd_loss, quiz_loss=metadistil.hard_loss, config=train.Config(pilot_lr=pilot_lr),
        quiz={7: quiz}.get,
    )  # fmt: skip
    found = methods.no_pilot(stage, batch, None, 7)
    torch.testing.assert_close(found, {"loss": L_S.detach()})
    torch.testing.assert_close([theta.detach() for theta in theta_S], moved_S)
    torch.testing.assert_close([theta.detach() for theta in theta_T], moved_T)


def test_in_mutual_learning_both_learn_from_each_other_and_no_quiz_is_sat(taught_run, monkeypatch):
    monkeypatch.setattr(metadistil, "meta_gradient", lambda *_, **__: pytest.fail("a quiz"))
    stage, moved = first_step(taught_run, "mutual")
    student, teacher = at_first(stage)
    batch = first_batch(stage)
    optimizer = train.OPTIMIZERS[stage.config.optimizer](student.parameters(), lr=stage.optimizer.param_groups[0]["lr"])
    metadistil.real_update(student, [teacher], batch, optimizer, stage.loss)
    ours, theirs = flat(student.state_dict().values()), flat(stage.learner.state_dict().values())
    assert (ours - theirs).norm() < 0.05 * theirs.norm()  # but for dropout's draws
    assert flat(moved.values()).norm() > 0 and methods.METHODS["mutual"].quiz_labels
