"""The main job, `python train.py --task sst2`: train a teacher, then a student by each method; print what came of it.

Every student starts from the same weights and takes the same number of steps. The METHODS table says which labels each
student sees. A run is a list of stages: for each seed the teachers, then the methods. On one machine, with as many
processes and threads, the same command gives the same results, stopped and resumed or not.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import runpy
import shlex
import sys
import time
import zlib
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import distributed, nn

import data
import metadistil
import models
from data import InputError, expect
from models import load  # noqa: F401  load("runs/NAME/seed0/student-kd.pt").predict(["NLP is fun."])

PROGRAM = "train.py"  # in messages; a script that adds methods puts its own name here
MORE_METHODS = "notebooks/methods.py"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Under torchrun RANK is this process's number, RANKS how many there are. Each computes its own part of every batch and
# scores the whole dev and test. The first alone writes files and prints.
SEVERAL = "TORCHELASTIC_RUN_ID" in os.environ
RANK, RANKS = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if SEVERAL else (0, 1)
RANDOM = [torch.random, torch.cuda] if torch.cuda.is_available() else [torch.random]  # dropout draws from these
SHOW_SECONDS = 5  # between two lines of progress

# ---- 1. The configuration

COUNT, NOT_NEGATIVE, POSITIVE, SHARE = (1, 1e9), (0, 1e30), (1e-30, 1e30), (0, 1)  # ranges, ends included
OPTIMIZERS = {
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, fused=True),
    "momentum": functools.partial(torch.optim.SGD, fused=True, momentum=0.9, weight_decay=5e-4),  # RepDistiller's
}


def linear(step, total):
    """A linear rise over the first tenth of the steps, then a linear fall to zero."""
    rise = max(1, total // 10)
    return min((step + 1) / rise, (total - step) / max(1, total - rise))


def falls(step, total):
    """The rate is divided by ten at 62.5%, at 75% and at 87.5% of the steps: RepDistiller's 150, 180 and 210 of 240
    epochs (Tian et al. 2020)."""
    return 0.1 ** sum(step >= share * total for share in (0.625, 0.75, 0.875))


SCHEDULES = {"linear": linear, "falls": falls}  # (step, total) -> share of the rate


def option(help, valid=None, teachers=("none", "fixed", "learning")):
    """A field of Config. valid: a range, or a list of words. teachers: a method uses this option if its Method.teacher
    is one of them."""
    return dataclasses.field(default=None, metadata={"help": help, "valid": valid, "teachers": teachers})


kd_option = functools.partial(option, teachers=("fixed", "learning"))
meta_option = functools.partial(option, teachers=("learning",))


@dataclasses.dataclass
class Config:
    """Everything a run depends on. Each field is a flag. None: not given, so that DEFAULTS or the task decide."""

    task: str = option("the task", data.TASKS)
    data: str = option("directory of the task's files, or 'builtin'")
    quiz_size: int = option("training examples set aside for the quiz [one in ten; builtin: 300]", COUNT)
    train_size: int = option("train on a random subset of that many examples [all]", COUNT)
    label_noise: float = option("share of the training labels to make wrong [0; builtin: 0.4]", SHARE)
    noise: float = option("share of the students' training words turned into noise_word", SHARE)
    teacher: str = option("preset, saved network or directory; several: A,B")
    student: str = option("preset, saved network or directory")
    student_layers: str = option("layers a student keeps of its saved network, from 0: 1,3,5 [all]")
    dropout: float = option("share of units dropped while training", SHARE)
    methods: str = option("methods, separated by commas")
    teacher_epochs: int = option("epochs of the teacher's own training, before it teaches", COUNT)
    warmup_epochs: int = option("epochs of each student on labels alone", NOT_NEGATIVE)
    epochs: int = option("epochs of each student after that", COUNT)
    batch_size: int = option("training examples per step", COUNT)
    finetune_lr: float = option("rate of the teacher's own training, before it teaches", POSITIVE)
    student_lr: float = option("η, rate of the students", POSITIVE)
    optimizer: str = option("optimiser of students, and of the teacher's own training", OPTIMIZERS)
    schedule: str = option("schedule of all rates", SCHEDULES)
    alpha: float = kd_option("α, weight of the soft term", SHARE)
    temperature: float = kd_option("T, by which the logits are divided", POSITIVE)
    pilot_lr: float = meta_option("λ, rate of the pilot update", POSITIVE)
    teacher_lr: float = meta_option("μ, rate of the meta update, while it teaches", NOT_NEGATIVE)
    teacher_optimizer: str = meta_option("optimiser of the meta update", OPTIMIZERS)
    quiz_batch_size: int = meta_option("quiz examples per step, as many of each class", COUNT)
    meta_grad: str = meta_option("how to compute the meta-gradient", metadistil.MODES)
    meta_every: int = meta_option("the teacher learns at every K-th step", COUNT)
    learn_quiz: bool = meta_option("MetaDistil's students, too, train on the quiz's labels")
    seeds: int = option("do everything with seeds 0 to N-1", COUNT)
    precision: str = option("of matrix products; fp32 where there is no hardware for bf16", ("fp32", "bf16"))
    out: str = option("the run's directory, new or empty [a new one under runs/]")

    def load(self, seed: int):
        """The data.Task, split by the seed."""
        sizes = {"train_size": self.train_size, "label_noise": self.label_noise}
        return data.load_task(self.task, self.data, self.quiz_size, seed, **sizes)

    def sources(self, seed: int) -> dict[str, str]:
        """{"student": preset or path, "teacher": ..., "teacher 2": ...}; "{seed}" in a path stands for the seed."""
        student, *teachers = f"{self.student},{self.teacher}".replace("{seed}", str(seed)).split(",")
        numbered = {f"teacher {n}" if n > 1 else "teacher": source for n, source in enumerate(teachers, 1)}
        return {"student": student} | numbered


FILES = {  # defaults of a run on a task's files; the other kinds take from here whatever they do not set
    "task": "sst2", "data": data.DEFAULT_DATA, "noise": 0.0, "teacher": "mini", "student": "tiny", "dropout": 0.2,
    "methods": "finetune,kd,metadistil", "teacher_epochs": 3, "warmup_epochs": 1, "epochs": 2, "batch_size": 64,
    "quiz_batch_size": 64, "finetune_lr": 5e-4, "student_lr": 5e-4, "pilot_lr": 0.02, "teacher_lr": 1e-5,
    "optimizer": "adamw", "schedule": "linear", "teacher_optimizer": "adamw", "alpha": 0.5, "temperature": 2.0,
    "meta_grad": "second_order", "meta_every": 1, "learn_quiz": False, "seeds": 1, "precision": "fp32",
}  # fmt: skip
DEFAULTS = {  # for each kind of run, see kind_of_run
    "files": FILES,
    "builtin": FILES | {
        "teacher": "tiny", "student": "micro", "dropout": 0.1, "teacher_epochs": 40, "warmup_epochs": 5, "epochs": 50,
        "batch_size": 128, "quiz_batch_size": 200, "student_lr": 2e-3, "pilot_lr": 0.1, "teacher_lr": 5e-4,
        "alpha": 0.9,
    },
    "pretrained": FILES | {
        "dropout": 0.1, "teacher_epochs": 2, "epochs": 1, "finetune_lr": 7e-5, "student_lr": 7e-5, "pilot_lr": 2e-3,
        "teacher_lr": 1e-6,
    },
    "pictures": FILES | {
        "teacher": "resnet20", "student": "resnet8", "dropout": 0.0, "teacher_epochs": 8, "epochs": 4,
        "batch_size": 128, "quiz_batch_size": 128, "finetune_lr": 0.1, "student_lr": 0.1, "teacher_lr": 2e-4,
        "optimizer": "momentum", "schedule": "falls", "teacher_optimizer": "momentum", "alpha": 0.9,
        "temperature": 4.0, "meta_grad": "jvp", "meta_every": 4,
    },
}  # fmt: skip


def kind_of_run(config: Config, task: data.Task) -> str:
    """The first that applies: pictures; pretrained, if a network is a directory; builtin; files."""
    if not task.columns:
        return "pictures"
    if any(source not in models.PRESETS and os.path.isdir(source) for source in config.sources(0).values()):
        return "pretrained"
    return "builtin" if task.data == data.BUILTIN else "files"


def method_names(config: Config) -> list[str]:
    """The names of the run's methods. Raises InputError on one that METHODS lacks."""
    names = str(config.methods).split(",")
    for name in names:
        more = "" if PROGRAM == MORE_METHODS else f"; python {MORE_METHODS} has more, such as pkd"
        expect(name in METHODS, f"--methods {name}: expected some of {', '.join(METHODS)}{more}")
        fits = re.fullmatch(r"[\w.-]+", name) and not name.startswith("teacher")
        expect(fits, f"--methods {name}: expected letters, digits, _, - and ., and a name that is not a teacher's")
    return names


def is_used(config: Config, field) -> bool:
    """Whether a method of the run uses this field of Config."""
    return any(METHODS[name].teacher in field.metadata["teachers"] for name in method_names(config))


def checked(given: dict) -> dict:
    """The fields that are given, converted to their types. Raises InputError on a value of another type, out of its
    range, or that no method of the run uses."""
    config, found = Config(**FILES | given), {}
    for field in dataclasses.fields(config):
        if field.name in given:
            value, flag = given[field.name], f"--{field.name.replace('_', '-')}"
            expect(is_used(config, field), f"{flag}: no method of --methods {config.methods} uses it")
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            with models.expecting(f"{flag} {value!r}: expected a value of type {field.type.__name__}", InputError):
                found[field.name] = field.type(value)
                expect(found[field.name] == value, f"found {found[field.name]}")
            valid = field.metadata["valid"]
            if field.type in (int, float):
                low, high = valid
                expect(low <= value <= high, f"{flag} {value}: expected a number from {low:g} to {high:g}")
            elif valid:
                expect(value in valid, f"{flag} {value}: expected one of {', '.join(valid)}")
    return found


def resolved(config: Config) -> Config:
    """A complete configuration: checked, with the defaults of its kind of run and absolute paths. A field that no
    method uses is None. Raises InputError."""
    given = checked({name: value for name, value in vars(config).items() if value is not None})
    config = Config(**FILES | given)
    task = config.load(0)
    of_task = {"quiz_size": len(task.quiz), "label_noise": task.label_noise}
    config = Config(**DEFAULTS[kind_of_run(config, task)] | of_task | given)
    for field in dataclasses.fields(config):
        if not is_used(config, field):
            setattr(config, field.name, None)
    # load_task may have fallen back on the built-in reviews.
    config.data = task.data if task.data == data.BUILTIN else os.path.abspath(task.data)
    expect("," not in config.student, f"--student {config.student}: expected one network")
    config.student, config.teacher = absolute_paths(config.student), absolute_paths(config.teacher)
    expect(task.columns or not config.noise, "--noise: expected a task of sentences")
    if config.precision == "bf16" and not bf16_in_hardware():
        config.precision = "fp32"
        print("note: no hardware for bf16 here; computing in fp32")
    return config


def absolute_paths(networks: str) -> str:
    """The networks, with commas between, their paths made absolute, so that the run can be resumed from anywhere."""
    found = networks.split(",")
    for n, source in enumerate(found):
        if source not in models.PRESETS and os.path.exists(source.replace("{seed}", "0")):
            found[n] = os.path.abspath(source)
    return ",".join(found)


def bf16_in_hardware() -> bool:
    """Whether the device multiplies in bfloat16. A processor that imitates it takes 10 to 17 times as long as fp32."""
    if DEVICE == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(able for name, able in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


# ---- 2. The methods


class Method(NamedTuple):
    """What makes a method. A script adds one by `METHODS["name"] = Method(...)`."""

    # "none": there is no teacher. "fixed": it does not change. "learning": at every `meta_every`-th step after the
    # warm-up `step` is taken, in which the teacher learns; at the others distil_step.
    teacher: str
    quiz_labels: bool  # does the student train on the quiz's labels, too?
    # loss(stage) gives L_S, a function (student_outputs, teacher_outputs, labels) -> scalar. Its teacher_outputs are
    # None in the warm-up, and always where there is no teacher. It is called once per stage, last, so it may create a
    # state of its own: append that to stage.changing; give its parameters to an optimiser by add_param_group.
    loss: Callable
    # step(stage, batch, rows, k) takes training step k on the batch, whose examples have these row numbers in train and
    # quiz, and returns {"loss": L_S, ...}, scalar tensors. The log has the mean loss of an epoch, and the last value of
    # the others. It is not called in the warm-up.
    step: Callable
    # states(student's configuration, network's configuration) gives the layers whose [CLS] states the network returns
    # along with its logits; called for the student and for each teacher. None: networks return logits.
    states: Callable | None = None


def distil_step(stage, batch, rows, k):
    """The teacher stays as it is: plain KD. In the warm-up, and without a teacher, the student learns labels alone."""
    teachers = stage.teachers if k >= stage.warmup_steps else []
    return {"loss": metadistil.real_update(stage.learner, teachers, batch, stage.optimizer, stage.loss)}


def meta_step(stage, batch, rows, k):
    """One turn of Algorithm 1. The last one of an epoch also measures the quiz loss before the pilot, for the log."""
    config = stage.config
    trace = {} if stage.is_logged(k) else None
    L_S, result = metadistil.metadistil_step(
        stage.learner, stage.teachers, batch, stage.quiz(k), stage.optimizer, stage.teacher_optimizer,
        pilot_lr=config.pilot_lr, loss=stage.loss, quiz_loss=stage.quiz_loss, mode=config.meta_grad, trace=trace,
    )  # fmt: skip
    if not trace:
        return {"loss": L_S}
    return {"loss": L_S, "quiz_loss_before": trace["quiz_loss_before"], "quiz_loss_after": result.quiz_loss}


def logits_loss(stage):
    """L_S of kd: metadistil's kd_loss; for a regression, squared errors."""
    config = stage.config
    if stage.task.label_names:
        return functools.partial(metadistil.kd_loss, alpha=config.alpha, temperature=config.temperature)
    return functools.partial(regression_kd_loss, alpha=config.alpha)


def regression_kd_loss(student_outputs, teacher_outputs, labels, alpha=0.5):
    """kd_loss of a regression, outputs (B, 1), labels (B,): squared errors to teacher and labels -> scalar."""
    hard = (student_outputs[:, 0] - labels).square().mean()
    if teacher_outputs is None:
        return hard
    soft = (student_outputs - teacher_outputs).square().mean()
    return alpha * soft + (1 - alpha) * hard


# This table decides which labels each student sees (--learn-quiz adds the quiz's), and whether its teacher learns.
# Before it teaches, every teacher is trained the way finetune trains a student, on the labels of train and quiz. So the
# quiz is new to MetaDistil's student, but not to its teacher. Only the labels of train can be wrong (--label-noise).
METHODS = {
    "finetune": Method("none", quiz_labels=True, loss=logits_loss, step=distil_step),
    "kd": Method("fixed", quiz_labels=True, loss=logits_loss, step=distil_step),
    "metadistil": Method("learning", quiz_labels=False, loss=logits_loss, step=meta_step),
}


# ---- 3. What a seed decides


class Seed:
    """The splits of one seed, and the initial state of its networks."""

    def __init__(self, config: Config, number: int):
        self.config, self.number = config, number
        self.task = config.load(number)
        self.sources = config.sources(number)
        self.examples = self.task.train + self.task.quiz  # train first, then quiz
        self.noisy = None
        if config.noise:
            self.noisy = (data.noisy(self.task.train, config.noise, number) + self.task.quiz).examples
        self.steps_per_epoch = -(-len(self.examples) // config.batch_size)
        self.notes = []
        # The length of each example in the student's tokens, (N,): batches are made of similar lengths.
        self.lengths = self.model("student").lengths(self.examples.examples if self.noisy is None else self.noisy)

    @functools.cached_property
    def tokenizer(self) -> str:
        """The tokeniser of networks that begin without one, learnt from train and quiz; as JSON."""
        return data.train_tokenizer(self.examples.keys).to_str()

    def file(self, name) -> Path:
        """Where a network or a stage's result is saved."""
        return Path(self.config.out, f"seed{self.number}", name.replace(" ", "-"))

    def model(self, role) -> models.Model:
        """A fresh copy of the role's network, a preset or a saved one, always with the same initial weights. Raises
        InputError, CheckpointError."""
        config, task, source = self.config, self.task, self.sources[role]
        saved = None if source in models.PRESETS else models.load(source)
        shape = saved.network.config if saved else models.PRESETS[source]
        reads = "sentences" if task.columns else "pictures"
        expect(models.KINDS[models.kind_of(shape)].reads == reads, f"{source}: expected a network that reads {reads}")
        tokenizer = None
        changes = {"num_labels": task.num_labels, "dropout": config.dropout}
        if saved:
            tokenizer = saved.tokenizer
        elif task.columns:
            tokenizer = Tokenizer.from_str(self.tokenizer)
            changes["vocab_size"] = tokenizer.get_vocab_size()
        torch.manual_seed(2 * self.number + list(self.sources).index(role))
        network = models.build(shape, **changes)
        if saved:
            self.take_over(network, saved, role)
        if role == "student" and config.student_layers:
            with models.expecting(f"--student-layers {config.student_layers}: expected numbers of layers of {source}"):
                layers = [int(layer) for layer in config.student_layers.split(",")]
                expect(min(layers) >= 0, "0 is the first")
                network.keep_layers(layers)
        model = models.Model(network, tokenizer, task.label_names, task.columns)
        model.reads_noise = role == "student"
        return model

    def take_over(self, network, saved, role):
        """Load a saved model's weights into a fresh network. If its head was trained for other labels, the new head
        keeps its random weights, and a note says so."""
        weights, source = saved.network.state_dict(), self.sources[role]
        ours, theirs = (",".join(labels or []) for labels in (self.task.label_names, saved.labels))
        if saved.labels is None or ours.lower() != theirs.lower():
            fits = role == "student" or not source.endswith(".pt")
            expect(fits, f"{source}: expected a teacher with the labels {ours}, found {theirs or 'none'}")
            weights |= network.classifier.state_dict(prefix="classifier.")
            if saved.labels:
                note = f"{source} has a head for {theirs}; the task has {ours or 'scores'}. So it gets a new head"
                if len(saved.labels) == len(self.task.label_names):
                    command = ["python", "notebooks/fetch.py", source, "--labels", ours]
                    note += f"; if the labels mean the same: {shlex.join(command)}"
                self.notes.append(note)
        network.load_state_dict(weights)

    def batch(self, rows, crop=None):
        """({"examples": ..., "noisy": ...}, labels (B,)) of rows of train and quiz. Pictures are cropped if `crop`, the
        number of the step, is given."""
        examples = self.examples.examples[rows]
        if crop is not None and not self.task.columns:
            examples = data.crop_and_mirror(examples, [self.number, 7, crop])
        inputs = {"examples": examples}
        if self.noisy is not None:
            inputs["noisy"] = self.noisy[rows]
        return inputs, torch.from_numpy(self.examples.labels[rows]).to(DEVICE)

    def scores(self, model, *splits) -> dict[str, float]:
        """{"dev accuracy": 0.81, ...}: the task's metrics on those of the splits that have labels."""
        found = {}
        for name in splits:
            split = getattr(self.task, name)
            if split and split.labels is not None:
                logits = model.logits(split.examples)
                expect(np.isfinite(logits).all(), f"{name}: expected finite outputs; try a tenth of the rates")
                predictions = logits.argmax(axis=-1) if self.task.label_names else logits[:, 0]
                for metric in self.task.metrics:
                    found[f"{name} {metric}"] = data.METRICS[metric](predictions, split.labels)
        return found


# ---- 4. A stage


class Stage:
    """The training of one network, the `learner`. `name` is a method (the learner is a student), or a role such as
    "teacher" (a teacher learns labels before it teaches). trial: a dry run before any training; its teachers are
    untrained. The last weights count, of students and teachers, not those of the best epoch. Which network is in train
    or eval mode when: metadistil.py."""

    def __init__(self, seed: Seed, name, trial=False):
        self.seed, self.name = seed, name
        self.config, self.task = seed.config, seed.task
        config = self.config
        is_teacher = name in seed.sources
        self.method = METHODS["finetune" if is_teacher else name]
        self.learner = seed.model(name if is_teacher else "student")
        self.learner.title = f"{name} before" if is_teacher else f"student {name}"
        self.rate = config.finetune_lr if is_teacher else config.student_lr
        epochs, warmup_epochs = config.epochs, config.warmup_epochs
        if is_teacher:  # a teacher loaded from a .pt is already trained
            epochs, warmup_epochs = 0 if seed.sources[name].endswith(".pt") else config.teacher_epochs, 0
        self.warmup_steps = warmup_epochs * seed.steps_per_epoch
        self.total = self.warmup_steps + epochs * seed.steps_per_epoch
        self.teachers = []
        if self.method.teacher != "none":
            for role in list(seed.sources)[1:]:
                teacher = seed.model(role) if trial else models.load(seed.file(f"{role} before.pt"))
                teacher.title = f"{role} after {name}"
                self.teachers.append(teacher)
        for model in [self.learner, *self.teachers]:
            model.to(DEVICE).precision = config.precision
            if self.method.states:
                model.layers = self.method.states(self.learner.network.config, model.network.config)
        self.optimizer = OPTIMIZERS[config.optimizer](self.learner.parameters(), lr=0.0)
        self.teacher_optimizer = None
        self.trained = [self.learner]  # what is saved at the end
        # What a checkpoint holds, as the first process has it. A method may append a state of its own: anything with
        # state_dict and load_state_dict.
        self.changing = [self.learner, self.optimizer]
        if self.method.teacher == "learning":
            theta_T = nn.ModuleList(self.teachers).parameters()
            self.teacher_optimizer = OPTIMIZERS[config.teacher_optimizer](theta_T, lr=0.0)
            self.trained += self.teachers
            self.changing += [*self.teachers, self.teacher_optimizer]
        of_logits = logits_loss(self)
        # L_q is kd's L_S without a teacher: of the logits and the labels alone.
        self.quiz_loss = lambda logits, labels: of_logits(logits, None, labels)
        self.loss = self.method.loss(self)

    def batches(self):
        """The row numbers, in train and quiz, of one training batch after another; pass after pass, without end. All
        students take the same number of steps, so without the quiz's examples a pass is shorter than an epoch."""
        sees_quiz_labels = self.method.quiz_labels or self.config.learn_quiz
        lengths = self.seed.lengths if sees_quiz_labels else self.seed.lengths[: len(self.task.train)]
        for number in itertools.count():
            yield from data.batches_of(lengths, self.config.batch_size, self.seed.number, number)

    def quiz(self, k):
        """The quiz batch of step k, as many examples of each class."""
        rows = data.sample_quiz(self.task.quiz.labels, self.config.quiz_batch_size, self.seed.number, k)
        return self.seed.batch(own_part(len(self.task.train) + rows))

    def is_logged(self, k) -> bool:
        """For a step k at which the teacher learns: is it the last such step of its epoch?"""
        epoch = k // self.seed.steps_per_epoch
        return (k + self.config.meta_every) // self.seed.steps_per_epoch > epoch

    def epoch(self, k, losses, quiz_losses) -> dict:
        """The line of metrics.jsonl for the epoch that step k ends."""
        where = {"seed": self.seed.number, "stage": self.name, "epoch": (k + 1) // self.seed.steps_per_epoch}
        scores = {model.title: self.seed.scores(model, "dev") for model in self.trained}
        return where | {"step": k + 1, "loss": float(np.mean(losses))} | quiz_losses | {"scores": scores}

    def state(self) -> dict:
        """For a checkpoint: everything that changes, and each process's random state."""
        return {
            "changing": [part.state_dict() for part in self.changing],
            "rng": from_all([generator.get_rng_state() for generator in RANDOM]),
        }

    def restore(self, saved) -> dict:
        """Restore it from a checkpoint; return what else the checkpoint holds."""
        for part, state in zip(self.changing, saved.pop("changing"), strict=True):
            part.load_state_dict(state)
        for generator, state in zip(RANDOM, saved.pop("rng")[RANK], strict=True):
            generator.set_rng_state(state)
        return saved


def set_rate(optimizer, rate):
    """Set the learning rate of the optimiser's next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


# ---- 5. The loop


def train_stage(stage: Stage, earlier: list[dict]):
    """Train from the stage's checkpoint, if there is one. After each epoch score dev, log, and write a checkpoint; at
    the end save the networks and the result. earlier: the log of the stages before."""
    config, seed, schedule = stage.config, stage.seed, SCHEDULES[stage.config.schedule]
    torch.manual_seed(1000 + seed.number + 10**6 * RANK)  # for dropout
    done = {"step": 0, "seconds": 0.0, "log": []}
    checkpoint = seed.file(f"{stage.name}.checkpoint")
    if checkpoint.exists():
        with models.expecting(f"{checkpoint}: expected a whole checkpoint; without this file the stage begins anew"):
            done = stage.restore(models.read_whole(checkpoint))
    losses, quiz_losses, shown = [], {}, -np.inf
    for k, rows in enumerate(itertools.islice(stage.batches(), done["step"], stage.total), done["step"]):
        started = time.perf_counter()
        since_warmup = k - stage.warmup_steps
        rows = own_part(rows)
        batch = seed.batch(rows, k)
        set_rate(stage.optimizer, stage.rate * schedule(k, stage.total))
        step = stage.method.step if since_warmup >= 0 else distil_step
        if stage.teacher_optimizer and since_warmup >= 0:
            share = schedule(since_warmup, stage.total - stage.warmup_steps)
            set_rate(stage.teacher_optimizer, config.teacher_lr * share)
            if since_warmup % config.meta_every:
                step = distil_step
        found = step(stage, batch, rows, k)
        losses.append(found.pop("loss").item())
        quiz_losses |= {name: value.item() for name, value in found.items()}
        expect(np.isfinite(losses[-1]), f"{stage.name}, step {k + 1}: expected a finite loss; try a tenth of the rates")
        done |= {"step": k + 1, "seconds": done["seconds"] + time.perf_counter() - started}
        if (k + 1) % seed.steps_per_epoch == 0:
            done["log"].append(stage.epoch(k, losses, quiz_losses))
            losses, quiz_losses = [], {}
            lines = [f"{json.dumps(entry)}\n" for entry in earlier + done["log"]]
            write(Path(config.out, "metrics.jsonl"), "".join(lines))
            if k + 1 < stage.total:
                write(checkpoint, {"format": models.FORMAT} | done | stage.state())
        if k + 1 == stage.total or time.monotonic() - shown >= SHOW_SECONDS:
            show(stage, done)
            shown = time.monotonic()
    save(stage, done)


def save(stage: Stage, done):
    """Save the stage's networks; score them on dev and, only now, on test; write the result, which ends the stage."""
    results, main = {}, f"dev {stage.task.metrics[0]}"
    for model in stage.trained:
        if RANK == 0:
            model.save(stage.seed.file(f"{model.title}.pt"))
        results[model.title] = {
            "scores": stage.seed.scores(model, "dev", "test"),
            "by_epoch": [epoch["scores"][model.title][main] for epoch in done["log"]],
            "parameters": sum(theta.numel() for theta in model.parameters()),
            "seconds": done["seconds"],  # of the whole stage, for a taught teacher as for its student
        }
    write(stage.seed.file(f"{stage.name}.json"), json.dumps({"results": results, "log": done["log"]}))


def show(stage: Stage, done):
    """Print a line of progress."""
    left = round(done["seconds"] / done["step"] * (stage.total - done["step"]))
    line = f"seed {stage.seed.number} {stage.name:<11} {done['step']}/{stage.total}  {left // 60}:{left % 60:02} left"
    for entry in done["log"][-1:]:
        line += f"  loss {entry['loss']:.3f}"
        for title, scores in entry["scores"].items():
            line += f"  {title.split()[0]} {next(iter(scores.values())):.3f}"
    if RANK == 0:
        print(line, file=sys.stderr)


# ---- Several processes


def own_part(rows):
    """This process's part of a batch's rows. If there are fewer rows than processes, every process takes all."""
    return rows[RANK::RANKS] if len(rows) >= RANKS else rows


def from_all(value) -> list:
    """Every process's `value`, in the order of their ranks."""
    values = [value] * RANKS
    if SEVERAL:
        distributed.all_gather_object(values, value)
    return values


def write(path: Path, content):
    """Write a file atomically, by the first process. The others wait."""
    if RANK == 0:
        models.write_whole(path, content)
    from_all(None)


# ---- 6. A run


class Run(NamedTuple):
    """The outcome of a run."""

    config: Config
    out: Path
    results: dict[str, list[dict]]  # {title: [{"scores", "by_epoch", "parameters", "seconds"} per seed]}
    table: str

    @property
    def models(self) -> dict[str, models.Model]:
        """Seed 0's trained networks by title, read from their files."""
        return load_all(self.out)


def run(config: Config) -> Run:
    """Do a whole run. Raises InputError, CheckpointError."""
    config = resolved(config)
    begun = begun_with(config)
    notes = try_out(config)
    config.out = claim(config)
    write(Path(config.out, "config.json"), json.dumps(dataclasses.asdict(config), indent=2))
    write(Path(config.out, "begun.json"), json.dumps(begun, indent=2))
    return go_on(config, notes)


def resume(out) -> Run:
    """Finish a stopped run, from its last checkpoint. Raises InputError if anything it depends on has changed."""
    config, begun = read_run(out)
    method_names(config)
    expect(config.precision == "fp32" or bf16_in_hardware(), f"{out}: begun in bf16; expected hardware for it")
    for what, now in begun_with(config).items():
        expect(now == begun.get(what), f"{out}: {what} {now}, expected {begun.get(what)} as when the run began")
    return go_on(config, [])


def read_run(out) -> tuple[Config, dict]:
    """The configuration of a run, and what it began with. Flags added since then get their defaults. Raises
    CheckpointError."""
    out = Path(out).expanduser().absolute()
    with models.expecting(f"{out}: expected a run of this version, with config.json and begun.json"):
        begun = json.loads((out / "begun.json").read_text())
        config = json.loads((out / "config.json").read_text())
        return Config(**DEFAULTS[begun["kind"]] | config | {"out": str(out)}), begun


def begun_with(config: Config) -> dict:
    """What must be the same for a run to go on. Opens each saved network of each seed. Raises CheckpointError."""
    task = dataclasses.replace(config, train_size=None).load(0)
    found = {"format": models.FORMAT, "kind": kind_of_run(config, task), "processes": RANKS}
    found |= {"threads": torch.get_num_threads(), "device": DEVICE}
    splits = [task.train, task.quiz, task.dev, task.test]
    found[f"check sum of {task.data}"] = [split.checksum() for split in splits if split]
    for source in {source for seed in range(config.seeds) for source in config.sources(seed).values()}:
        if source not in models.PRESETS:
            models.load(source)
            found[f"check sum of {source}"] = zlib.crc32(models.saved_file(source).read_bytes())
    return found


def try_out(config: Config) -> list[str]:
    """Build each stage of seed 0 and take one step of each kind, so that what cannot work fails before anything is
    written -> notes for the user. Raises InputError, CheckpointError."""
    seed = Seed(config, 0)
    with torch.random.fork_rng():
        for name in stage_names(config):
            stage = Stage(seed, name, trial=True)
            rows = own_part(next(stage.batches()))
            batch = seed.batch(rows, 0)
            with models.expecting(f"{name}: expected a first step that works", InputError):
                distil_step(stage, batch, rows, k=-1)
                distil_step(stage, batch, rows, stage.warmup_steps)
                stage.method.step(stage, batch, rows, stage.warmup_steps)
            for model in stage.trained:
                with models.expecting(f"{name}: expected a network that can be rebuilt from its configuration"):
                    models.build(model.network.config).load_state_dict(model.network.state_dict())
    return [*seed.task.notes, *dict.fromkeys(seed.notes)]


def stage_names(config: Config) -> list[str]:
    """The stages of each seed: its teachers, then its methods."""
    _, *teachers = config.sources(0)
    return list(dict.fromkeys([*teachers, *config.methods.split(",")]))


def claim(config: Config) -> str:
    """Make the run's directory: --out, which must be new or empty, or runs/TASK-KIND-MMDD-HHMMSS. Raises InputError."""
    kind = "builtin" if config.data == data.BUILTIN else "files"
    out = from_all(config.out or time.strftime(f"runs/{config.task}-{kind}-%m%d-%H%M%S"))[0]
    out = os.path.abspath(os.path.expanduser(out))
    free = from_all(not os.path.isdir(out) or not os.listdir(out))[0]  # the first process decides
    expect(free, f"--out {out}: expected a new or empty directory; to go on with a run: --resume")
    if RANK == 0:
        os.makedirs(os.path.join(out, "seed0"))  # if two runs start at once, only one can create it
    return out


def go_on(config: Config, notes) -> Run:
    """Train the stages that have no result yet, then print the table."""
    out = Path(config.out)
    print(f"{out}/  {DEVICE}, {RANKS} process(es) of {torch.get_num_threads()} threads, {config.precision}")
    banner = data.BUILTIN_BANNER.format(share=config.label_noise)
    print(banner if config.data == data.BUILTIN else f"data: {config.data}")
    for note in notes:
        print(f"note: {note}")
    log, results = [], {}
    try:
        for number in range(config.seeds):
            seed = Seed(config, number)
            for name in stage_names(config):
                ended = seed.file(f"{name}.json")
                if not from_all(ended.exists())[0]:  # the first decides: another may see a result it has just written
                    train_stage(Stage(seed, name), log)
                if RANK == 0:
                    ended.with_suffix(".checkpoint").unlink(missing_ok=True)
                found = json.loads(ended.read_text())
                log += found["log"]
                for title, of_seed in found["results"].items():
                    results.setdefault(title, []).append(of_seed)
    except KeyboardInterrupt:
        command = "the same torchrun, with" if SEVERAL else f"python {PROGRAM}"
        raise KeyboardInterrupt(f"stopped; to go on: {command} --resume {out}") from None
    text = table(config, results)
    write(out / "table.md", text)
    print(f"\n{text}\n{out}/")
    if len(data.TASKS[config.task].texts) == 1:
        print(f'Ask the models: python {PROGRAM} --out {out} --predict "NLP is fun."')
    return Run(config, out, results, text)


def load_all(out) -> dict[str, models.Model]:
    """{title: model} of the networks that a run has saved for seed 0, teachers first. Raises InputError."""
    found = [models.load(path) for path in sorted(Path(out, "seed0").glob("*.pt"))]
    expect(found, f"{out}: expected a run with a trained network, found none; start one, or --resume it")
    found.sort(key=lambda model: (model.title.startswith("student"), "after" in model.title))
    return {model.title: model for model in found}


# ---- 7. The table

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of Student's t, 97.5%, 1 to 9 degrees


def spread(values) -> str:
    """Percent: "71.2", or "71.2 ± 0.4", mean ± standard deviation of several seeds."""
    deviation = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{deviation}"


def interval(ours, theirs):
    """(mean, half the width of its 95% interval) of the paired difference, in points. With one seed half is 0."""
    difference, n = 100 * (ours - theirs), len(ours)
    if n == 1:
        return difference.mean(), 0.0
    t = T_QUANTILES[min(n, 10) - 2]  # above 10 seeds a little too wide, to be safe
    return difference.mean(), t * difference.std(ddof=1) / np.sqrt(n)


def paired_difference(ours, theirs) -> str:
    """Points: "+4.1 [+2.0, +6.2]", the mean and its 95% interval; with one seed "+4.1"."""
    mean, half = interval(ours, theirs)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]" if len(ours) > 1 else f"{mean:+.1f}"


def table(config: Config, results) -> str:
    """The run's table as Markdown, a row for each network, with an explanation of its numbers."""
    first, (main, *others) = results["teacher before"][0], data.TASKS[config.task].metrics
    splits = [split for split in ("dev", "test") if f"{split} {main}" in first["scores"]]

    def scores(title, split, metric=main):
        return np.array([of_seed["scores"][f"{split} {metric}"] for of_seed in results[title]])

    rows, below = [["model", *splits, "gain", "size", "smaller", "seconds"]], ""
    for title in sorted(results, key=lambda title: title.startswith("student")):
        rival = "student kd" if title.startswith("student") else re.sub(" after.*", " before", title)
        compared = rival in results and rival != title
        gain = paired_difference(scores(title, splits[-1]), scores(rival, splits[-1])) if compared else ""
        size = results[title][0]["parameters"]
        costs = [f"{size / 1e6:.2f}M", f"{first['parameters'] / size:.1f}"]
        seconds = np.mean([of_seed["seconds"] for of_seed in results[title]])
        rows.append([title, *(spread(scores(title, split)) for split in splits), gain, *costs, f"{seconds:.0f}"])
        for metric in others:
            below += f"{title}: {splits[-1]} {metric} {spread(scores(title, splits[-1], metric))}\n"
    paired = "" if config.seeds == 1 else "; paired by seed, with its 95% interval"
    return f"""{layout(rows)}
{main}, %, {config.seeds} seed(s). size: parameters. smaller: how many times smaller than the teacher.
gain, on {splits[-1]}: a student's is over kd, a taught teacher's over itself before it taught{paired}.
seconds of training: a taught teacher and its student train together, so both rows show the same time.
{below}"""


def layout(rows) -> str:
    """Rows of cells, the first one the heading, as a Markdown table of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    heading, *others = rows
    text = ""
    for row in [heading, ["-" * width for width in widths], *others]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        text += f"| {' | '.join(cells)} |\n"
    return text


# ---- 8. The command line


def print_predictions(out, sentences):
    """Print for each sentence, or pair with a tab between, what each network of seed 0 says, and how sure it is."""
    expect(out, "--predict: expected --out with the directory of a run")
    found = load_all(os.path.expanduser(out))
    expect(all(model.columns for model in found.values()), f"{out}: expected a network that reads sentences")
    for line in sentences:
        line = line.strip("\r\n ")
        print(line)
        for title, model in found.items():
            text = tuple(line.split("\t", 1)) if len(model.columns) == 2 else line
            [(label, probabilities)] = model.predict([text])
            said = f"{label:<10} {probabilities[label]:6.1%}" if probabilities else f"{label:.2f}"
            print(f"  {title:<26} {said}")


def parse(arguments) -> dict:
    """What the command line gives: a flag for each field of Config, then --resume and --predict. Raises InputError."""
    flags = argparse.ArgumentParser(PROGRAM, None, __doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.error = functools.partial(expect, False)  # raises InputError with argparse's message
    flags.epilog = f"methods: {', '.join(METHODS)}\n\nDefaults by kind of run:\n"
    flags.epilog += "\n".join(f"{kind}: {settings}" for kind, settings in DEFAULTS.items())
    for field in dataclasses.fields(Config):
        text, valid, _ = field.metadata.values()
        if field.type is str and valid:
            text += f": {', '.join(valid)}"
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "metavar": ""}
        flags.add_argument(f"--{field.name.replace('_', '-')}", help=text.replace("%", "%%"), **kind)
    flags.add_argument(
        "--resume", metavar="RUN", help="finish a stopped run; the results are those of a run without the stop"
    )
    flags.add_argument(
        "--predict", metavar="SENTENCE", nargs="?", help="classify it, or each line of stdin, by the run in --out"
    )
    return vars(flags.parse_args(arguments))


def command(arguments):
    """Do what the command line says."""
    given = parse(arguments)
    if "predict" in given:
        return print_predictions(given.get("out"), sys.stdin if given["predict"] is None else [given["predict"]])
    if "resume" in given:
        expect(len(given) == 1, f"--resume {given['resume']}: expected no other flag, the run has its own")
    finished = resume(given["resume"]) if "resume" in given else run(Config(**given))
    if RANK == 0:
        with contextlib.suppress(ImportError, FileNotFoundError):  # no matplotlib, or no such script: no curves
            runpy.run_path(str(Path(__file__).with_name("notebooks") / "curves.py"))["draw"](finished.out)


def main(arguments: list[str] | None = None):
    """Run the command line. User errors print one line and exit with status 2."""
    if SEVERAL:
        if DEVICE == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo")
        if RANK > 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")
    try:
        command(arguments)
    except (ValueError, OSError) as error:
        if RANK == 0:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
        else:
            time.sleep(10)  # or torchrun may end the first process before it has said this
        sys.exit(2)
    except KeyboardInterrupt as stop:
        if RANK == 0:
            print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def from_terminal():
    """main, in a terminal of any encoding."""
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # where a terminal has no Greek letters
    main()


for function in (torch.exp, torch.log, torch.tanh):
    # So that numbers repeat: MKL chooses its code for each function at the first call. Two threads that call at once
    # may be given a worse one (pytorch's issue 188792). Here one thread calls.
    function(torch.ones(1))

if __name__ == "__main__":
    from_terminal()
