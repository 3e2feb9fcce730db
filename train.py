"""The main job, `python train.py --task sst2`: train a teacher, then a student by each method; print the results.

Every student starts from the same weights and takes the same number of steps. The METHODS table says which labels each
student sees. A run is a list of stages: for each seed the teachers, then the methods. On the CPUs of one machine, with
the same numbers of processes and threads, a command gives the same results each time, stopped and resumed or not.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
from torch import distributed, nn

import data
import metadistil
import models
from data import InputError, expect
from models import load  # noqa: F401  load("runs/NAME/seed0/student-kd.pt").predict(["NLP is fun."])

PROGRAM = "train.py"  # in messages; a script that adds methods puts its own name here
MORE_METHODS = "notebooks/methods.py"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GENERATORS = [torch.random, torch.cuda] if DEVICE == "cuda" else [torch.random]
# Under torchrun each process computes its own part of every batch. Only the first, RANK 0, writes files and prints.
RANK, RANKS = 0, 1
if "TORCHELASTIC_RUN_ID" in os.environ:
    RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
SHOW_SECONDS = 5  # between two lines of progress

for function in (torch.exp, torch.log, torch.tanh):
    # For repeatable results: MKL chooses its code for each function at the first call. Two threads that call at once
    # may be given a worse one (pytorch's issue 188792). Here one thread calls.
    function(torch.ones(1))

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
    """The rate is divided by ten at 62.5%, 75% and 87.5% of the steps, as in RepDistiller (Tian et al. 2020)."""
    return 0.1 ** sum(step >= share * total for share in (0.625, 0.75, 0.875))


SCHEDULES = {"linear": linear, "falls": falls}  # (step, total) -> share of the rate


def option(help, valid=None, default=None, *others, teachers=("none", "fixed", "learning")):
    """A field of Config. valid: a range, or a list of words. default: that of runs on files; others: those of
    builtin, pretrained and pictures, unless all are the same. teachers: the kinds of Method.teacher that use it."""
    defaults = [default, *(others or 3 * [default])]
    metadata = {"help": help, "valid": valid, "defaults": defaults, "teachers": teachers}
    return dataclasses.field(default=None, metadata=metadata)


kd_option = functools.partial(option, teachers=("fixed", "learning"))
meta_option = functools.partial(option, teachers=("learning",))


@dataclasses.dataclass
class Config:
    """All settings of a run. Each field is a flag. None: not given; then the kind of run or the task decides."""

    task: str = option("the task", data.TASKS, "sst2")
    data: str = option("directory of the task's files, or 'builtin'", None, data.DEFAULT_DATA)
    quiz_size: int = option("training examples set aside for the quiz [one in ten; builtin: 300]", COUNT)
    train_size: int = option("train on a random subset of that many examples [all]", COUNT)
    label_noise: float = option("share of train's labels made wrong, at random [0; builtin: 0.4]", SHARE)
    noise: float = option("share of train's words that students read as 'noise_word'", SHARE, 0.0)
    teacher: str = option("preset, saved network or directory; several: A,B", None, "mini", "tiny", "mini", "resnet20")
    student: str = option("preset, saved network or directory", None, "tiny", "micro", "tiny", "resnet8")
    student_layers: str = option("layers kept of the saved student, counting from 0: 1,3,5 [all]")
    dropout: float = option("share of units dropped while training", SHARE, 0.2, 0.1, 0.1, 0.0)
    methods: str = option("methods, separated by commas", None, "finetune,kd,metadistil")
    teacher_epochs: int = option("epochs of the teacher's own training, before it teaches", COUNT, 3, 40, 2, 8)
    warmup_epochs: int = option("epochs of each student on labels alone", NOT_NEGATIVE, 1, 5, 1, 1)
    epochs: int = option("epochs of each student after that", COUNT, 2, 50, 1, 4)
    batch_size: int = option("training examples per step", COUNT, 64, 128, 64, 128)
    finetune_lr: float = option("rate of the teacher's training before it teaches", POSITIVE, 5e-4, 5e-4, 7e-5, 0.1)
    student_lr: float = option("η, rate of the students", POSITIVE, 5e-4, 2e-3, 7e-5, 0.1)
    optimizer: str = option(
        "optimiser, except of pilot and meta update", OPTIMIZERS, "adamw", "adamw", "adamw", "momentum"
    )
    schedule: str = option("schedule of all rates but λ", SCHEDULES, "linear", "linear", "linear", "falls")
    alpha: float = kd_option("α, weight of the soft term", SHARE, 0.5, 0.9, 0.5, 0.9)
    temperature: float = kd_option("T, by which the logits are divided", POSITIVE, 2.0, 2.0, 2.0, 4.0)
    pilot_lr: float = meta_option("λ, rate of the pilot update", POSITIVE, 0.02, 0.1, 2e-3, 0.02)
    teacher_lr: float = meta_option("μ, rate of the meta update", NOT_NEGATIVE, 1e-5, 5e-4, 1e-6, 2e-4)
    teacher_optimizer: str = meta_option("that of the meta update", OPTIMIZERS, "adamw", "adamw", "adamw", "momentum")
    quiz_batch_size: int = meta_option("quiz examples per step, balanced over classes", COUNT, 64, 200, 64, 128)
    meta_grad: str = meta_option(
        "mode of meta_gradient", metadistil.MODES, "second_order", "second_order", "second_order", "jvp"
    )
    meta_every: int = meta_option("the teacher learns at every K-th step", COUNT, 1, 1, 1, 4)
    learn_quiz: bool = meta_option("train MetaDistil's students on the quiz's labels, too", None, False)
    seeds: int = option("do everything with seeds 0 to N-1", COUNT, 1)
    precision: str = option("type of matrix products; fp32 if the hardware lacks bf16", ("fp32", "bf16"), "fp32")
    out: str = option("the run's directory, new or empty [a new one under runs/]")

    def load(self, seed):
        """The data.Task, split by the seed."""
        sizes = {"train_size": self.train_size, "label_noise": self.label_noise}
        return data.load_task(self.task, self.data, self.quiz_size, seed, **sizes)

    def sources(self, seed):
        """{"student": preset or path, "teacher": ..., "teacher 2": ...}; "{seed}" in a path stands for the seed."""
        sources = {"student": self.student}
        for n, teacher in enumerate(self.teacher.split(","), 1):
            sources[f"teacher {n}" if n > 1 else "teacher"] = teacher
        return {role: source.replace("{seed}", str(seed)) for role, source in sources.items()}


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
DEFAULTS = {  # of each kind of run, by field
    kind: {name: field.metadata["defaults"][n] for name, field in FIELDS.items()}
    for n, kind in enumerate(["files", "builtin", "pretrained", "pictures"])
}


def flag(name):
    """The flag of a field of Config."""
    return f"--{name.replace('_', '-')}"


def resolved(config):
    """A complete configuration: checked, with the defaults of its kind of run and absolute paths, so that the run can
    be resumed from anywhere. A field that no method uses is None. Raises InputError."""
    given = {name: checked(name, value) for name, value in vars(config).items() if value is not None}
    config = Config(**DEFAULTS["files"] | given)
    teachers = {method_named(name).teacher for name in config.methods.split(",")}
    used = [name for name, field in FIELDS.items() if teachers.intersection(field.metadata["teachers"])]
    for name in given:
        expect(name in used, f"{flag(name)}: no method of the run uses it")
    task = config.load(0)  # it may fall back on the built-in reviews
    config.data = task.data if task.data == data.BUILTIN else os.path.abspath(task.data)
    given |= {"data": config.data, "quiz_size": len(task.quiz), "label_noise": task.label_noise}
    defaults = DEFAULTS[kind_of_run(config)]
    config = Config(**{name: defaults[name] for name in used} | given)
    config.student, config.teacher = absolute(config.student), absolute(config.teacher)
    if config.precision == "bf16" and not bf16_in_hardware():
        config.precision = "fp32"
        print("note: no hardware for bf16 here; computing in fp32")
    return config


def checked(name, value):
    """The value of a field of Config, in the field's type. Raises InputError on another type, or if out of range."""
    kind, valid = FIELDS[name].type, FIELDS[name].metadata["valid"]
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    with models.expecting(f"{flag(name)} {value!r}: expected a value of type {kind.__name__}", InputError):
        found = kind(value)
        expect(found == value, f"found {found}")
    if kind in (int, float):
        low, high = valid
        expect(low <= found <= high, f"{flag(name)} {found}: expected a number from {low:g} to {high:g}")
    elif valid:
        expect(found in valid, f"{flag(name)} {found}: expected one of {', '.join(valid)}")
    return ",".join(map(os.path.expanduser, found.split(","))) if kind is str else found


def method_named(name):
    """The Method of that name. Raises InputError if it is not in METHODS, or cannot name a file."""
    more = "" if PROGRAM == MORE_METHODS else f"; python {MORE_METHODS} has more, such as pkd"
    expect(name in METHODS, f"--methods {name}: expected some of {', '.join(METHODS)}{more}")
    fits = re.fullmatch(r"(?!teacher|student$)[\w.-]+", name)
    expect(fits, f"--methods {name}: expected letters, digits, _, - and ., and no name of a network")
    return METHODS[name]


def kind_of_run(config):
    """The first that applies: pictures; pretrained, if a network is a directory; builtin; files."""
    if not data.TASKS[config.task].texts:
        return "pictures"
    if any(source not in models.PRESETS and os.path.isdir(source) for source in config.sources(0).values()):
        return "pretrained"
    return "builtin" if config.data == data.BUILTIN else "files"


def absolute(sources):
    """Presets and paths, separated by commas, with absolute paths."""
    return ",".join(one if one in models.PRESETS else os.path.abspath(one) for one in sources.split(","))


def bf16_in_hardware():
    """Whether the device multiplies in bfloat16. A processor that emulates it takes 10 to 17 times as long as fp32."""
    if DEVICE == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(able for name, able in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


# ---- 2. The methods


class Method(NamedTuple):
    """What makes a method. A script adds one by `METHODS["name"] = Method(...)`."""

    # "none"; "fixed"; or "learning": it learns in `step`, called at every `meta_every`-th step after the warm-up
    teacher: str
    quiz_labels: bool  # does the student train on the quiz's examples, too?
    # loss(stage) makes L_S, a function (student_outputs, the teachers' mean or None, labels) -> scalar. It is called
    # last in Stage.__init__, so it may add a state (stage.changing) and parameters (stage.optimizer.add_param_group).
    loss: Callable
    # step(stage, batch, rows, k) -> {"loss": L_S, ...}, scalar tensors: trains, after the warm-up, on the batch; its
    # rows are those of train and quiz; k counts from the stage's start. Logged for an epoch: the mean of the loss,
    # of the other values the last.
    step: Callable
    # states(the student's configuration, that of one network, student or teacher) -> the layers whose [CLS] states this
    # network returns along with its logits. None: networks return logits.
    states: Callable | None = None


def distil_step(stage, batch, rows, k):
    """Plain KD: the teacher does not change. In the warm-up and without a teacher, the student trains on labels only.
    Here and in meta_step, metadistil.py sets the modes: teachers in eval, the learner in train, the pilot's copy
    without dropout."""
    teachers = stage.teachers if k >= stage.warmup_steps else []
    return {"loss": metadistil.real_update(stage.learner, teachers, batch, stage.optimizer, stage.loss)}


def meta_step(stage, batch, rows, k):
    """One iteration of Algorithm 1: pilot update, quiz, meta update, real update. The last in an epoch also logs the
    quiz loss before and after the pilot."""
    config = stage.config
    logged = ("quiz_loss_before", "quiz_loss_after") if stage.is_logged(k) else ()
    trace = {} if logged else None
    L_S, _ = metadistil.metadistil_step(
        stage.learner, stage.teachers, batch, stage.quiz(k), stage.optimizer, stage.teacher_optimizer,
        pilot_lr=config.pilot_lr, loss=stage.loss, quiz_loss=stage.quiz_loss, mode=config.meta_grad, trace=trace,
    )  # fmt: skip
    return {"loss": L_S} | {name: trace[name] for name in logged}


def logits_loss(stage):
    """L_S of kd: metadistil's kd_loss, or for a regression squared errors."""
    if not stage.task.label_names:
        return functools.partial(squared_errors, alpha=stage.config.alpha)
    return functools.partial(metadistil.kd_loss, alpha=stage.config.alpha, temperature=stage.config.temperature)


def squared_errors(student_outputs, teacher_outputs, labels, alpha):
    """α mean((z_S − z_T)²) + (1 − α) mean((z_S − y)²), of outputs z (B, 1) and scores y (B,) -> scalar."""
    hard = (student_outputs[:, 0] - labels).square().mean()
    if teacher_outputs is None:
        return hard
    return alpha * (student_outputs - teacher_outputs).square().mean() + (1 - alpha) * hard


# Before it teaches, a teacher (unless a .pt) is trained like finetune, on the labels of train and quiz. So the quiz is
# new to MetaDistil's student, but not to its teacher; --learn-quiz lets the student train on it, too.
# What else can be added: a task, to data.TASKS; a network, to models.KINDS.
METHODS = {
    "finetune": Method("none", quiz_labels=True, loss=logits_loss, step=distil_step),
    "kd": Method("fixed", quiz_labels=True, loss=logits_loss, step=distil_step),
    "metadistil": Method("learning", quiz_labels=False, loss=logits_loss, step=meta_step),
}


# ---- 3. What a seed decides


class Seed:
    """The splits of one seed, and its networks as they begin."""

    def __init__(self, config, number):
        self.config, self.number = config, number
        self.task = config.load(number)
        self.sources = config.sources(number)
        self.notes = [*self.task.notes]
        self.examples = self.task.train + self.task.quiz  # train first, then quiz
        self.noisy = self.examples  # what students read while they train; the labels are the same
        if config.noise:
            expect(self.task.columns, "--noise: expected a task of sentences")
            self.noisy = data.noisy(self.task.train, config.noise, number) + self.task.quiz
        self.steps_per_epoch = math.ceil(len(self.examples) / config.batch_size)
        # The length of each example in the student's tokens, (N,): batches are made of similar lengths.
        self.lengths = self.model("student").lengths(self.noisy.examples)

    @functools.cached_property
    def tokenizer(self):
        """The tokeniser of presets, learnt from train and quiz. Pictures have none."""
        return data.train_tokenizer(self.examples.keys) if self.task.columns else None

    def file(self, name):
        """Where a network or a stage's result is saved."""
        return Path(self.config.out, f"seed{self.number}", name.replace(" ", "-"))

    def model(self, role, title=None, trained=False):
        """A new copy of the role's network, with the same initial weights each time; or, if `trained`, with those that
        the teacher's own stage saved. Raises InputError, CheckpointError."""
        config, task = self.config, self.task
        source = self.file(f"{role} before.pt") if trained else self.sources[role]
        changes = {"num_labels": task.num_labels, "dropout": config.dropout}
        if source in models.PRESETS:
            saved, shape, tokenizer = None, models.PRESETS[source], self.tokenizer
            if tokenizer:
                changes["vocab_size"] = tokenizer.get_vocab_size()
        else:
            saved = models.load(source)
            shape, tokenizer = saved.network.config, saved.tokenizer
        # The same weights each time: the random state depends on seed and role alone.
        torch.manual_seed(2 * self.number + list(self.sources).index(role))
        network = models.build(shape, **changes)
        if saved:
            self.take_over(network, saved, role)
        if role == "student" and config.student_layers:
            with models.expecting(f"--student-layers {config.student_layers}: expected numbers of layers of {source}"):
                layers = [int(layer) for layer in config.student_layers.split(",")]
                expect(min(layers) >= 0, "0 is the first")
                network.keep_layers(layers)
        with models.expecting(source):
            model = models.Model(network, tokenizer, task.label_names, task.columns)
        model.title, model.precision, model.reads_noise = title, config.precision, role == "student"
        return model.to(DEVICE)

    def take_over(self, network, saved, role):
        """Load a saved model's weights into a fresh network. A head for other labels is replaced, with a note; a
        teacher's .pt for other labels is an InputError."""
        weights, source = saved.network.state_dict(), self.sources[role]
        ours = ",".join(self.task.label_names) or "scores"
        theirs = "no labels" if saved.labels is None else ",".join(saved.labels) or "scores"
        if ours.lower() != theirs.lower():
            is_trained_teacher = role != "student" and source.endswith(".pt")
            expect(not is_trained_teacher, f"{source}: expected a teacher of {ours}, found one of {theirs}")
            weights |= network.classifier.state_dict(prefix="classifier.")
            if saved.labels is not None:
                note = f"{source} gets a new head: its own is for {theirs}, the task has {ours}"
                if len(saved.labels) == len(self.task.label_names):
                    note += f'; if the labels mean the same: python notebooks/fetch.py "{source}" --labels "{ours}"'
                self.notes.append(note)
        network.load_state_dict(weights)

    def batch(self, rows, step=None):
        """({"examples": ..., "noisy": ...}, labels (B,)) of rows of train and quiz. Given the number of a training
        step, pictures are cropped."""
        inputs = {"examples": self.examples.examples[rows]}
        if self.task.columns:
            inputs["noisy"] = self.noisy.examples[rows]
        elif step is not None:
            inputs["examples"] = data.crop_and_mirror(inputs["examples"], [self.number, 7, step])
        return inputs, torch.from_numpy(self.examples.labels[rows]).to(DEVICE)

    def scores(self, model, *splits):
        """{"dev accuracy": 0.81, ...}: the task's metrics on the given splits, if they have labels."""
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
    """The training of one network, the `learner`: a student, by the method `name`; or the teacher `name`, on labels,
    before it teaches. The last weights are kept, not those of the best epoch. trial: a dry run, with untrained
    teachers."""

    def __init__(self, seed, name, trial=False):
        config = seed.config
        self.seed, self.name, self.config, self.task = seed, name, config, seed.task
        if name in seed.sources:
            self.method, self.rate = METHODS["finetune"], config.finetune_lr
            trained = seed.sources[name].endswith(".pt")
            warmup_epochs, epochs = 0, 0 if trained else config.teacher_epochs
            self.learner = seed.model(name, f"{name} before")
        else:
            self.method, self.rate = METHODS[name], config.student_lr
            warmup_epochs, epochs = config.warmup_epochs, config.epochs
            self.learner = seed.model("student", f"student {name}")
        self.warmup_steps = warmup_epochs * seed.steps_per_epoch
        self.total = self.warmup_steps + epochs * seed.steps_per_epoch
        self.seconds, self.log = 0.0, []  # of training; an entry for each epoch done
        self.teachers = []
        if self.method.teacher != "none":
            _, *roles = seed.sources
            self.teachers = [seed.model(role, f"{role} after {name}", trained=not trial) for role in roles]
        if self.method.states:
            for model in [self.learner, *self.teachers]:
                model.layers = self.method.states(self.learner.network.config, model.network.config)
        self.optimizer = OPTIMIZERS[config.optimizer](self.learner.parameters(), lr=0.0)
        self.teacher_optimizer = None
        self.trained = [self.learner]  # what is saved at the end
        # Whose states a checkpoint holds. A method may append its own: anything with state_dict and load_state_dict.
        self.changing = [self.learner, self.optimizer]
        if self.method.teacher == "learning":
            theta_T = nn.ModuleList(self.teachers).parameters()
            self.teacher_optimizer = OPTIMIZERS[config.teacher_optimizer](theta_T, lr=0.0)
            self.trained += self.teachers
            self.changing += [*self.teachers, self.teacher_optimizer]
        sees_quiz = self.method.quiz_labels or (config.learn_quiz and self.method.teacher == "learning")
        lengths = seed.lengths if sees_quiz else seed.lengths[: len(self.task.train)]
        batches_of_pass = functools.partial(data.batches_of, lengths, config.batch_size, seed.number)
        self.batches = functools.lru_cache(1)(batches_of_pass)  # by the number of the pass; keeps the last
        self.steps_per_pass = len(self.batches(0))
        kd_loss = logits_loss(self)
        self.quiz_loss = lambda logits, labels: kd_loss(logits, None, labels)  # of labels alone
        self.loss = self.method.loss(self)

    def rows(self, k):
        """The row numbers, in train and quiz, of step k's batch. Without the quiz a student's batches are not kd's, and
        a pass has fewer; its epoch has as many steps as kd's, so more than one pass."""
        number, n = divmod(k, self.steps_per_pass)
        return own_part(self.batches(number)[n])

    def quiz(self, k):
        """The quiz batch of step k, balanced over the classes."""
        rows = data.sample_quiz(self.task.quiz.labels, self.config.quiz_batch_size, self.seed.number, k)
        return self.seed.batch(own_part(len(self.task.train) + rows))

    def is_logged(self, k):
        """Whether step k, at which the teacher learns, is the last such step of its epoch."""
        return k % self.seed.steps_per_epoch + self.config.meta_every >= self.seed.steps_per_epoch

    def step(self, k):
        """Set the rates, then take step k -> the scalar tensors that the method returns."""
        schedule, rows = SCHEDULES[self.config.schedule], self.rows(k)
        batch, after_warmup = self.seed.batch(rows, k), k - self.warmup_steps
        set_rate(self.optimizer, self.rate * schedule(k, self.total))
        if after_warmup < 0:
            return distil_step(self, batch, rows, k)
        if self.teacher_optimizer:
            if after_warmup % self.config.meta_every:
                return distil_step(self, batch, rows, k)
            share = schedule(after_warmup, self.total - self.warmup_steps)
            set_rate(self.teacher_optimizer, self.config.teacher_lr * share)
        return self.method.step(self, batch, rows, k)

    def state_dict(self):
        """A checkpoint: all that has changed since the stage began, with the random states of all processes. A run
        killed within an epoch repeats that epoch from here."""
        random_states = from_all([generator.get_rng_state() for generator in GENERATORS])
        changing = [part.state_dict() for part in self.changing]
        return {"seconds": self.seconds, "log": self.log, "changing": changing, "rng": random_states}

    def load_state_dict(self, state):
        """Go back to a checkpoint."""
        self.seconds, self.log = state["seconds"], state["log"]
        for part, of_part in zip(self.changing, state["changing"], strict=True):
            part.load_state_dict(of_part)
        for generator, random_state in zip(GENERATORS, state["rng"][RANK], strict=True):
            generator.set_rng_state(random_state)


def set_rate(optimizer, rate):
    """Set the learning rate of the optimiser's next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


# ---- 5. The loop


def train_stage(stage, earlier):
    """Train the epochs that the stage's checkpoint lacks. After each one score dev, log, and write a checkpoint; at the
    end save networks and scores. earlier: the log of the stages before."""
    seed, checkpoint = stage.seed, stage.seed.file(f"{stage.name}.checkpoint")
    torch.manual_seed(1000 + seed.number + 10**6 * RANK)  # for dropout; a checkpoint brings its own random state
    if checkpoint.exists():
        with models.expecting(f"{checkpoint}: expected a whole checkpoint; delete it to restart the stage"):
            stage.load_state_dict(models.read_whole(checkpoint))
    shown = time.monotonic()
    for epoch in range(len(stage.log), stage.total // seed.steps_per_epoch):
        losses, others = [], {}
        for k in range(epoch * seed.steps_per_epoch, (epoch + 1) * seed.steps_per_epoch):
            started = time.perf_counter()
            numbers = {name: value.item() for name, value in stage.step(k).items()}
            stage.seconds += time.perf_counter() - started
            losses.append(numbers.pop("loss"))
            others |= numbers
            finite = np.isfinite(losses[-1])
            expect(finite, f"{stage.name}, step {k + 1}: expected a finite loss; try a tenth of the rates")
            if time.monotonic() - shown >= SHOW_SECONDS:
                show(stage, k + 1)
                shown = time.monotonic()
        entry = {"seed": seed.number, "stage": stage.name, "epoch": epoch + 1, "step": k + 1}
        entry |= {"loss": float(np.mean(losses))} | others
        entry["scores"] = {model.title: seed.scores(model, "dev") for model in stage.trained}
        stage.log.append(entry)
        lines = [f"{json.dumps(entry)}\n" for entry in earlier + stage.log]
        write(Path(stage.config.out, "metrics.jsonl"), "".join(lines))
        write(checkpoint, stage.state_dict())
    if stage.log:
        show(stage, stage.total)
    save(stage)


def save(stage):
    """Save the stage's networks; score them on dev and, only now, on test; write the result, which ends the stage."""
    results, metric = {}, f"dev {stage.task.metrics[0]}"
    for model in stage.trained:
        if RANK == 0:
            model.save(stage.seed.file(f"{model.title}.pt"))
        results[model.title] = {
            "scores": stage.seed.scores(model, "dev", "test"),
            "by_epoch": [epoch["scores"][model.title][metric] for epoch in stage.log],
            "parameters": sum(theta.numel() for theta in model.parameters()),
            "seconds": stage.seconds,  # of the whole stage, for a taught teacher as for its student
        }
    write(stage.seed.file(f"{stage.name}.json"), json.dumps({"results": results, "log": stage.log}))


def show(stage, steps):
    """Print a progress line: how many steps are done."""
    left = round(stage.seconds / steps * (stage.total - steps))
    line = f"seed {stage.seed.number} {stage.name:<11} {steps}/{stage.total}  {left // 60}:{left % 60:02} left"
    for entry in stage.log[-1:]:
        line += f"  loss {entry['loss']:.3f}"
        for title, scores in entry["scores"].items():
            line += f"  {title.split()[0]} {next(iter(scores.values())):.3f}"
    if RANK == 0:
        print(line, file=sys.stderr)


# ---- Several processes


def own_part(rows):
    """This process's part of a batch's rows. If there are fewer rows than processes, every process takes all."""
    return rows[RANK::RANKS] if len(rows) >= RANKS else rows


def from_all(value):
    """Every process's `value`, in the order of their ranks."""
    values = [value] * RANKS
    if RANKS > 1:
        distributed.all_gather_object(values, value)
    return values


def write(path, content):
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
    def models(self):
        """Seed 0's trained networks by title, read from their files."""
        return load_all(self.out)


def run(config):
    """Carry out a whole run -> Run. Raises InputError, CheckpointError."""
    config = resolved(config)
    begun = begun_with(config)
    notes = try_out(config)
    config.out = claim(config)
    write(Path(config.out, "config.json"), json.dumps(dataclasses.asdict(config), indent=2))
    write(Path(config.out, "begun.json"), json.dumps(begun, indent=2))
    return go_on(config, notes)


def resume(out):
    """Finish a stopped run, from its last checkpoint -> Run. Raises InputError if what begun_with lists has changed."""
    stored, begun = read_run(out)
    config = resolved(stored)
    expect(config.precision == stored.precision, f"{out}: begun in bf16; expected hardware for it")
    now = begun_with(config)
    for what in begun | now:
        found, expected = now.get(what), begun.get(what)
        expect(found == expected, f"{out}: {what} {found}, expected {expected} as when the run began")
    return go_on(config, [])


def read_run(out):
    """The configuration of a run, and what it began with. Raises CheckpointError."""
    out = os.path.abspath(os.path.expanduser(out))
    with models.expecting(f"{out}: expected a run of this version, with config.json and begun.json"):
        config, begun = (json.loads(Path(out, name).read_text()) for name in ("config.json", "begun.json"))
        return Config(**config | {"out": out}), begun


def begun_with(config):
    """{what: value} that `resume` compares, besides the precision. Opens each saved network of each seed, to find a
    broken one before the run begins. Raises CheckpointError."""
    files = data.files_of(config.task, config.data)
    for source in {source for seed in range(config.seeds) for source in config.sources(seed).values()}:
        if source not in models.PRESETS:
            models.load(source)
            files.append(models.saved_file(source))
    begun = {f"check sum of {file}": zlib.crc32(file.read_bytes()) for file in files}
    begun |= {"format": models.FORMAT, "processes": RANKS, "threads": torch.get_num_threads(), "device": DEVICE}
    return begun


def try_out(config):
    """Build each stage of seed 0, one at a time, and take a step of each kind, so that what cannot work fails before
    anything is written -> notes for the user. Raises InputError, CheckpointError."""
    seed = Seed(config, 0)
    for name in stage_names(config):
        expected = f"{name}: expected steps that work, and a network that can be rebuilt"
        with models.expecting(expected, InputError, (ValueError, RuntimeError)):
            try_stage(Stage(seed, name, trial=True))
    return list(dict.fromkeys(seed.notes))


def try_stage(stage):
    """Take the first step of the warm-up and two of the method: with --meta-every above 1 the teacher learns at the
    first of them only. Then load each network as if from a file."""
    for k in (0, stage.warmup_steps, stage.warmup_steps + 1):
        stage.step(k)
    for model in stage.trained:
        models.build(model.network.config).load_state_dict(model.network.state_dict())


def claim(config):
    """Make the run's directory: --out, new or empty, or runs/TASK-KIND-MMDD-HHMMSS. Raises InputError."""
    out = os.path.abspath(config.out or time.strftime(f"runs/{config.task}-{kind_of_run(config)}-%m%d-%H%M%S"))
    taken = os.path.isdir(out) and os.listdir(out)
    out, taken = from_all((out, taken))[0]  # the first process decides
    expect(not taken, f"--out {out}: expected a new or empty directory; to go on with a run: --resume")
    if RANK == 0:
        os.makedirs(os.path.join(out, "seed0"))  # if two runs start at once, only one can create it
    return out


def stage_names(config):
    """The stages of each seed: its teachers, then its methods."""
    _, *teachers = config.sources(0)
    return list(dict.fromkeys([*teachers, *config.methods.split(",")]))


def go_on(config, notes):
    """Train the stages that have no result yet, then print the table -> Run."""
    out, log, results = Path(config.out), [], {}
    begin = "python" if RANKS == 1 else "the same torchrun with"
    banner = data.BUILTIN_BANNER.format(share=config.label_noise)
    print(f"{out}/  {DEVICE}, {RANKS} process(es) of {torch.get_num_threads()} threads, {config.precision}")
    print(f"if it is stopped, to go on: {begin} {PROGRAM} --resume {out}", flush=True)
    print(banner if config.data == data.BUILTIN else f"data: {config.data}")
    for note in notes:
        print(f"note: {note}")
    for number in range(config.seeds):
        seed = Seed(config, number)
        for name in stage_names(config):
            ended = seed.file(f"{name}.json")
            if not from_all(ended.exists())[0]:  # the first process decides; the others may look too late
                train_stage(Stage(seed, name), log)
            seed.file(f"{name}.checkpoint").unlink(missing_ok=True)
            found = json.loads(ended.read_text())
            log += found["log"]
            for title, of_seed in found["results"].items():
                results.setdefault(title, []).append(of_seed)
    text = table(config, results)
    write(out / "table.md", text)
    print(f"\n{text}\n{out}/")
    if len(data.TASKS[config.task].texts) == 1:
        print(f'Ask the models: python {PROGRAM} --out {out} --predict "NLP is fun."')
    return Run(config, out, results, text)


def load_all(out):
    """{title: model} of the networks that a run has saved for seed 0, teachers first. Raises InputError."""
    found = [models.load(path) for path in Path(out, "seed0").glob("*.pt")]
    expect(found, f"{out}: expected a run with a trained network, found none; start one, or --resume it")
    found.sort(key=lambda model: (model.title.startswith("student"), "after" in model.title, model.title))
    return {model.title: model for model in found}


# ---- 7. The table

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of Student's t, 97.5%, 1 to 9 degrees


def spread(values):
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


def paired_difference(ours, theirs):
    """In points: "+4.1 [+2.0, +6.2]", the mean and its 95% interval; with one seed "+4.1"."""
    mean, half = interval(ours, theirs)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]" if len(ours) > 1 else f"{mean:+.1f}"


def table(config, results):
    """The run's table as Markdown, a row for each network, with an explanation of its numbers."""
    main, *others = data.TASKS[config.task].metrics
    first, below = results["teacher before"][0], ""
    splits = [split for split in ("dev", "test") if f"{split} {main}" in first["scores"]]
    last = splits[-1]

    def scores(title, split, metric=main):
        return np.array([of_seed["scores"][f"{split} {metric}"] for of_seed in results[title]])

    rows = [["model", *splits, "gain", "size", "smaller", "seconds"]]
    for title in sorted(results, key=lambda title: title.startswith("student")):
        rival = "student kd" if title.startswith("student") else re.sub(" after.*", " before", title)
        compared = rival in results and rival != title
        gain = paired_difference(scores(title, last), scores(rival, last)) if compared else ""
        size = results[title][0]["parameters"]
        costs = [f"{size / 1e6:.2f}M", f"{first['parameters'] / size:.1f}"]
        seconds = np.mean([of_seed["seconds"] for of_seed in results[title]])
        rows.append([title, *(spread(scores(title, split)) for split in splits), gain, *costs, f"{seconds:.0f}"])
        for metric in others:
            below += f"{title}: {last} {metric} {spread(scores(title, last, metric))}\n"
    paired = "" if config.seeds == 1 else "; paired by seed, with its 95% interval"
    return f"""{layout(rows)}
{main}, %, {config.seeds} seed(s). size: parameters. smaller: how many times smaller than the teacher.
gain, on {last}: a student's is over kd, a taught teacher's over itself before it taught{paired}.
seconds of training: a taught teacher and its student train together, so both rows show the same time.
{below}"""


def layout(rows):
    """Rows of cells, the first one the heading, as a Markdown table of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    text = ""
    for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
        text += f"| {' | '.join(map(str.ljust, row, widths))} |\n"
    return text


# ---- 8. The command line


def print_predictions(out, sentences):
    """Print what each network of seed 0 predicts for each sentence (or two, with a tab between), and how sure it is."""
    found = load_all(os.path.expanduser(out))
    for line in sentences:
        line = line.strip("\r\n ")
        print(line)
        for title, model in found.items():
            text = tuple(line.split("\t", 1)) if len(model.columns) == 2 else line
            [(label, probabilities)] = model.predict([text])
            said = f"{label:<10} {probabilities[label]:6.1%}" if probabilities else f"{label:.2f}"
            print(f"  {title:<26} {said}")


def parse(arguments):
    """What the command line gives, a dict: a flag for each field of Config, --resume, --predict. Raises InputError."""
    flags = argparse.ArgumentParser(PROGRAM, None, __doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    flags.error = functools.partial(expect, False)  # raises InputError with argparse's message
    flags.epilog = f"Methods: {', '.join(METHODS)}. Defaults, in brackets, are those of a run on: {', '.join(DEFAULTS)}"
    for name, field in FIELDS.items():
        text, valid = field.metadata["help"], field.metadata["valid"]
        defaults = [str(default) for default in field.metadata["defaults"]]
        if field.type is str and valid:
            text += f": {', '.join(valid)}"
        if "None" not in defaults:
            text += f" [{', '.join(defaults) if len({*defaults}) > 1 else defaults[0]}]"
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "metavar": ""}
        flags.add_argument(flag(name), help=text, **kind)
    flags.add_argument("--resume", metavar="RUN", help="finish a stopped run, as if it had never stopped")
    what = "classify it, or each line of stdin, by the run in --out"
    flags.add_argument("--predict", metavar="SENTENCE", nargs="?", help=what)
    if "--predict" in arguments[:-1]:
        n = arguments.index("--predict")
        if re.match("-[^-]", arguments[n + 1]):  # argparse would take this sentence for a flag
            arguments = [*arguments[:n], f"--predict={arguments[n + 1]}", *arguments[n + 2 :]]
    return vars(flags.parse_args(arguments))


def command(arguments):
    """Do what the command line says."""
    given = parse(arguments)
    if "predict" in given:
        expect("out" in given, "--predict: expected --out with the directory of a run")
        sentences = sys.stdin or [] if given["predict"] is None else [given["predict"]]
        return print_predictions(given["out"], sentences)
    if "resume" in given:
        expect(len(given) == 1, f"--resume {given['resume']}: expected no other flag, the run has its own")
        finished = resume(given["resume"])
    else:
        finished = run(Config(**given))
    if RANK == 0:  # without matplotlib there are no curves, and no message
        curves = Path(__file__).with_name("notebooks") / "curves.py"
        subprocess.run([sys.executable, curves, finished.out], capture_output=True)


def main(arguments=None):
    """Run the command line. A user error prints one line and exits with status 2."""
    try:
        if RANKS > 1:
            if DEVICE == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            distributed.init_process_group("cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo")
            if RANK > 0:
                sys.stdout = open(os.devnull, "w", encoding="utf-8")
        command(sys.argv[1:] if arguments is None else arguments)
        if RANKS > 1:
            distributed.destroy_process_group()  # else its threads may end the process with an abort
    except BrokenPipeError:  # whoever read the output, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError) as error:
        if RANK == 0:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
        else:
            time.sleep(10)  # else torchrun may kill the first process before it prints
        sys.exit(2)
    except KeyboardInterrupt:
        if RANK == 0:
            print("\nstopped", file=sys.stderr)
        sys.exit(130)


def from_terminal():
    """main, in a terminal of any encoding. Any of its streams may be closed."""
    if sys.stdin:
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # where a terminal has no Greek letters
    main()


if __name__ == "__main__":
    from_terminal()
