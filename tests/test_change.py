"""README, "To change it": each change, done as it is described there."""

from dataclasses import dataclass

import pytest
import torch
from test_metadistil import decoupled_kd_loss
from test_train import assert_same_numbers, command_line, small
from torch import nn

import data
import metadistil
import models
import train


def losses_of(out):
    """The losses of the last stage's log lines."""
    return [entry["loss"] for entry in train.read_journal(str(out))[1]["log"] if "loss" in entry]


def test_a_new_loss_is_a_function_and_a_row(tmp_path, monkeypatch):
    called = []

    def dkd(stage):
        def loss(student_outputs, teacher_outputs, labels):
            if teacher_outputs is None:  # the warm-up
                return metadistil.hard_loss(student_outputs, labels)
            called.append(stage.name)
            return decoupled_kd_loss(student_outputs, teacher_outputs, labels)

        return loss

    monkeypatch.setitem(train.METHODS, "dkd", train.Method("fixed", True, dkd, train.distil_step))
    monkeypatch.setitem(train.METHODS, "metadistil-dkd", train.Method("learning", False, dkd, train.meta_step))
    finished = train.run(small(tmp_path / "run", methods="dkd,metadistil-dkd"))
    assert {"student dkd", "student metadistil-dkd", "teacher after metadistil-dkd"} < set(finished.results)
    assert called.count("dkd") == 10 and called.count("metadistil-dkd") == 2 * 10  # in pilot and real update


def test_a_table_of_ones_own_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(data.TASKS, "mine", data.Files("mine", ("text",), "mood", {"-": "bad", "+": "good"}))
    folder = tmp_path / "tables"
    settings = {"task": "mine", "data": str(folder), "train_size": 30, "quiz_size": 10, "label_noise": 0.0, "methods": "kd"}
    with pytest.raises(train.InputError, match="mine/train.tsv: expected a file there"):
        train.run(small(tmp_path / "none", **settings))
    assert not list(tmp_path.iterdir())  # and no reviews take its place
    (folder / "mine").mkdir(parents=True)
    for name, rows in (("train", range(60)), ("dev", range(60, 90))):
        lines = [f"{'+-'[n % 2]}\tthis is number {n}\n" for n in rows]
        (folder / "mine" / f"{name}.tsv").write_text("mood\ttext\n" + "".join(lines))
    finished = train.run(small(tmp_path / "run", **settings))
    assert list(finished.results["student kd"][0]["scores"]) == ["dev accuracy"]
    assert finished.models["student kd"].labels == ["bad", "good"]


@dataclass(frozen=True)
class BagConfig:
    """The shape of a bag of words."""

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
    settings = {"teacher": "bag", "student": "micro", "methods": "kd,metadistil", "checkpoint_seconds": 0.0}
    whole = train.run(small(tmp_path / "whole", **settings))
    assert isinstance(whole.models["teacher after metadistil"].network, Bag)  # saved and read again
    save, saves = train.save_journal, []

    def stop_at_20(config, journal):
        save(config, journal)
        saves.append(journal)
        if len(saves) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_journal", stop_at_20)
    with pytest.raises(KeyboardInterrupt):
        train.run(small(tmp_path / "stopped", **settings))
    monkeypatch.setattr(train, "save_journal", save)
    train.run(*train.read_journal(str(tmp_path / "stopped")))
    assert_same_numbers(tmp_path / "whole", tmp_path / "stopped")


def test_a_network_that_its_configuration_does_not_describe_fails_before_its_training(tmp_path, monkeypatch):
    class Grown(Bag):
        def __init__(self, config):
            super().__init__(config)
            self.extra = nn.Linear(2, int(torch.randint(2, 1000, ())))

    monkeypatch.setitem(models.KINDS, "bag", models.Kind(Grown, BagConfig, "sentences"))
    monkeypatch.setitem(models.PRESETS, "bag", BagConfig())
    with pytest.raises(models.CheckpointError, match="Grown: expected a configuration that describes it"):
        train.run(small(tmp_path / "run", teacher="bag", methods="kd"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_optimiser_for_the_teacher_is_settings_alone(tmp_path):
    flags = "--task sst2 --data builtin --teacher micro --train-size 60 --quiz-size 20 --teacher-epochs 1 --warmup-epochs 0 --epochs 1"
    flags += f" --methods metadistil --teacher-optimizer sgd --teacher-lr 10 --out {tmp_path / 'run'}"
    command_line(*flags.split(), check=True)
    before, after = (models.read_saved(tmp_path / "run" / "seed0" / f"teacher-{name}.pt")[0] for name in ("before", "after-metadistil"))
    moved = [one.detach() - other.detach() for one, other in zip(after.parameters(), before.parameters())]
    length = torch.stack([part.norm() for part in moved]).norm().item()
    config, _ = train.read_journal(str(tmp_path / "run"))
    stage = train.Stage(train.Seed(config, 0), "metadistil")  # as it began: one step, of all 60 examples
    batch, quiz = stage.context.batch(stage.rows(0), 0), stage.context.quiz(0)
    settings = {"pilot_lr": config.pilot_lr, "loss": stage.loss, "quiz_loss": stage.quiz_loss, "mode": config.meta_grad}
    grads = metadistil.meta_gradient(stage.learner, stage.teachers, batch, quiz, **settings).grads
    expected = 10 * torch.stack([gradient.norm() for gradient in grads]).norm().item()
    assert stage.total == 1 and len(batch[1]) == 60 and length == pytest.approx(expected, rel=1e-3) and expected > 0


def test_mutual_learning_is_a_row_and_a_function(tmp_path, monkeypatch):
    """Zhang et al. 2018: student and teacher learn from each other."""

    def mutual_step(stage, batch, rows, k):
        L_S = metadistil.real_update(stage.learner, stage.teachers, batch, stage.optimizer, stage.loss)
        for teacher in stage.teachers:
            metadistil.real_update(teacher, stage.learner, batch, stage.teacher_optimizer, stage.loss)
        return {"loss": L_S}

    monkeypatch.setitem(train.METHODS, "mutual", train.Method("learning", True, train.logits_loss, mutual_step))
    finished = train.run(small(tmp_path / "run", methods="kd,mutual", teacher_lr=1e-2))
    before, after = (finished.models[f"teacher {name}"].network.state_dict() for name in ("before", "after mutual"))
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])
    assert "teacher after mutual" in finished.table
