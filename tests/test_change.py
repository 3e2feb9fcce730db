"""README, "To change it": each change, done as it is described there; stopped and resumed, what it adds comes along."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import assert_same_numbers, run_with_stops, small
from test_metadistil import decoupled_kd_loss
from torch import nn

import data
import metadistil
import models
import train


def test_a_new_loss_is_a_function_and_a_row(tmp_path, monkeypatch):
    called = []

    def dkd(stage):
        def loss(z_S, z_T, labels):
            if z_T is None:  # the warm-up
                return metadistil.hard_loss(z_S, labels)
            called.append(stage.name)
            return decoupled_kd_loss(z_S, z_T, labels)

        return loss

    monkeypatch.setitem(train.METHODS, "dkd", train.Method("fixed", True, dkd, train.distil_step))
    monkeypatch.setitem(train.METHODS, "metadistil-dkd", train.Method("learning", False, dkd, train.meta_step))
    finished = train.run(small(tmp_path / "run", methods="dkd,metadistil-dkd", epochs=1))
    assert {"student dkd", "student metadistil-dkd", "teacher after metadistil-dkd"} < {*finished.results}
    # At the 5 steps after the warm-up, by metadistil both in pilot and real update; and in those that are tried out.
    assert 5 <= called.count("dkd") < 10 <= called.count("metadistil-dkd") < 15


def test_a_fault_in_a_method_of_ones_own_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setitem(train.METHODS, "mine", train.METHODS["kd"]._replace(step=lambda *_: nowhere))  # noqa: F821
    with pytest.raises(NameError, match="nowhere"):
        train.run(small(tmp_path / "run", methods="mine"))
    assert not (tmp_path / "run").exists()


def test_learn_quiz_changes_no_method_whose_teacher_is_fixed(tmp_path, monkeypatch):
    monkeypatch.setitem(train.METHODS, "without", train.METHODS["kd"]._replace(quiz_labels=False))
    config = train.resolved(small(tmp_path / "run", methods="without,metadistil", learn_quiz=True))
    seed = train.Seed(config, 0)
    seen = {name: train.Stage(seed, name, trial=True).steps_per_pass for name in ("without", "metadistil")}
    assert seen == {"without": 4, "metadistil": 5}  # batches of 16 of 60 examples, and of 80


def test_a_table_of_ones_own_is_one_entry(tmp_path, monkeypatch):
    """Of three classes, scored by macro-F1."""
    files = data.Files("mine", ("text",), "mood", {"-": "bad", "0": "fair", "+": "good"}, ("f1",))
    monkeypatch.setitem(data.TASKS, "mine", files)
    sizes = {"train_size": 40, "quiz_size": 12, "epochs": 1}
    settings = {"task": "mine", "data": str(tmp_path / "tables"), "methods": "metadistil"} | sizes
    with pytest.raises(train.InputError, match="mine/train.tsv: expected a file there$"):
        train.run(small(tmp_path / "run", **settings))
    assert not list(tmp_path.iterdir())  # and no reviews take its place
    (tmp_path / "tables" / "mine").mkdir(parents=True)
    for name, rows in (("train", range(60)), ("dev", range(60, 90))):
        lines = [f"{'-0+'[n % 3]}\tthis is number {n} , {('no', 'well', 'yes')[n % 3]}\n" for n in rows]
        (tmp_path / "tables" / "mine" / f"{name}.tsv").write_text("mood\ttext\n" + "".join(lines))
    finished = train.run(small(tmp_path / "run", **settings))
    student, dev = finished.models["student metadistil"], finished.config.load(0).dev
    assert student.labels == ["bad", "fair", "good"]
    said = np.array([student.labels.index(label) for label, _ in student.predict(list(dev.examples))])
    hits = [2 * (said[dev.labels == n] == n).sum() / ((said == n).sum() + (dev.labels == n).sum()) for n in range(3)]
    assert finished.results["student metadistil"][0]["scores"] == {"dev f1": pytest.approx(np.mean(hits))}


@dataclass(frozen=True)
class BagConfig:
    vocab_size: int = 100
    hidden: int = 32
    num_labels: int = 2
    max_tokens: int = 128


class Bag(nn.Module):
    """A classifier of the mean of its words' vectors."""

    def __init__(self, config: BagConfig):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.hidden)
        self.classifier = nn.Linear(config.hidden, config.num_labels)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        real = attention_mask.unsqueeze(-1).float()  # (B, T, 1)
        return self.classifier((self.words(input_ids) * real).sum(dim=1) / real.sum(dim=1))


def test_a_new_network_is_its_class_and_two_entries(tmp_path, monkeypatch):
    monkeypatch.setitem(models.KINDS, "bag", models.Kind(Bag, BagConfig, "sentences"))
    monkeypatch.setitem(models.PRESETS, "bag", BagConfig())
    finished = train.run(small(tmp_path / "run", teacher="bag", student="micro", methods="metadistil", epochs=1))
    teacher = finished.models["teacher after metadistil"]  # saved and read again
    assert isinstance(teacher.network, Bag)
    scores = train.Seed(finished.config, 0).scores(teacher, "dev", "test")
    assert scores == finished.results["teacher after metadistil"][0]["scores"]


def test_another_optimiser_for_the_teacher_is_settings_alone(tmp_path):
    settings = {"batch_size": 80, "warmup_epochs": 0, "epochs": 1, "teacher_optimizer": "sgd", "teacher_lr": 10}
    finished = train.run(small(tmp_path / "run", methods="metadistil", **settings))
    stage = train.Stage(train.Seed(finished.config, 0), "metadistil")  # as it began: one step, of all 60 examples
    batch = stage.seed.batch(stage.rows(0))
    settings = {"pilot_lr": finished.config.pilot_lr, "loss": stage.loss, "quiz_loss": stage.quiz_loss}
    grads = metadistil.meta_gradient(stage.learner, stage.teachers, batch, stage.quiz(0), **settings).grads
    after = finished.models["teacher after metadistil"].parameters()
    assert stage.total == 1 and len(batch[1]) == 60 and max(gradient.abs().max() for gradient in grads) > 1e-6
    for before, now, gradient in zip(stage.teachers[0].parameters(), after, grads, strict=True):
        torch.testing.assert_close(before - now, 10 * gradient, rtol=1e-3, atol=1e-6)


def test_mutual_learning_is_a_row_and_a_function(tmp_path, monkeypatch):
    """Zhang et al. 2018: student and teacher learn from each other."""

    def mutual_step(stage, batch, rows, k):
        L_S = metadistil.real_update(stage.learner, stage.teachers, batch, stage.optimizer, stage.loss)
        for teacher in stage.teachers:
            metadistil.real_update(teacher, stage.learner, batch, stage.teacher_optimizer, stage.loss)
        return {"loss": L_S}

    monkeypatch.setitem(train.METHODS, "mutual", train.Method("learning", True, train.logits_loss, mutual_step))
    finished = train.run(small(tmp_path / "run", methods="kd,mutual", epochs=1, teacher_lr=1e-2))
    before, after = (finished.models[f"teacher {name}"].network.state_dict() for name in ("before", "after mutual"))
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert "teacher after mutual" in finished.table


def learns(stage, *values):
    """Give the stage parameters that begin with these values, learnt by the teacher's optimiser."""
    stage.own = nn.ParameterList(values)
    stage.changing.append(stage.own)
    stage.teacher_optimizer.add_param_group({"params": stage.own.parameters()})


def own_update(stage, batch, k, loss):
    """The stage's parameters learn from the quiz, then the student from the loss (student_outputs, own, labels)."""
    own = tuple(map(metadistil.leaf, stage.own))
    theta_S_prime = metadistil.pilot_update(stage.learner, batch, own, stage.config.pilot_lr, loss)
    _, v = metadistil.quiz_gradient(stage.learner, theta_S_prime, stage.quiz(k), stage.quiz_loss)
    for value, gradient in zip(stage.own, metadistil.second_order(theta_S_prime, own, v)):
        value.grad = gradient
    stage.teacher_optimizer.step()
    learnt = tuple(value.detach() for value in stage.own)
    settings = {"loss": lambda z_S, z_T, labels: loss(z_S, learnt, labels)}
    return {"loss": metadistil.real_update(stage.learner, [], batch, stage.optimizer, **settings)}


def example_weights(stage):
    """Ren et al. 2018: the quiz teaches one weight for each training example."""
    learns(stage, torch.ones(len(stage.task.train)))
    return lambda z_S, z_T, labels: metadistil.hard_loss(z_S, labels)


def weighted_step(stage, batch, rows, k):
    def loss(z_S, own, labels):
        return (own[0][rows] * nn.functional.cross_entropy(z_S, labels, reduction="none")).mean()

    return own_update(stage, batch, k, loss)


def alpha_and_temperature(stage):
    """The quiz teaches α and T."""
    learns(stage, torch.zeros(()), torch.zeros(()))
    return train.logits_loss(stage)


def tempered_step(stage, batch, rows, k):
    with torch.no_grad():
        z_T = metadistil.teach(stage.teachers, batch[0])

    def loss(z_S, own, labels):
        alpha, temperature = own[0].sigmoid(), own[1].exp()
        return alpha * metadistil.soft_loss(z_S, z_T, temperature) + (1 - alpha) * metadistil.hard_loss(z_S, labels)

    return own_update(stage, batch, k, loss)


@pytest.mark.parametrize("loss, step", [(example_weights, weighted_step), (alpha_and_temperature, tempered_step)])
def test_a_method_with_parameters_of_its_own_can_be_stopped_and_resumed(loss, step, tmp_path, monkeypatch):
    stages = []

    def noted_step(stage, *rest):
        stages.append(stage)
        return step(stage, *rest)

    monkeypatch.setitem(train.METHODS, "own", train.Method("learning", False, loss, noted_step))
    settings = {"methods": "own", "teacher_lr": 0.1, "student_lr": 0.01}
    whole = train.run(small(tmp_path / "whole", **settings))
    begun, ended = stages[0].own, stages[-1].own  # the first was but tried out
    for one, other in zip(begun, ended, strict=True):
        assert (one != other).float().mean() > 0.9
    run_with_stops(small(tmp_path / "stopped", **settings), 3)
    assert_same_numbers(whole.out, tmp_path / "stopped")
