"""The main job, `python train.py --task sst2`: train a teacher, then a student by each method, and print one table.

Every student starts from the same weights and takes the same number of steps; which labels it sees stands in METHODS.
A run is a list of stages (each teacher, then each method; for each seed). A stage is a function of the configuration
and the seed alone.
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
import sys
import time
import warnings
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
from torch import nn

import data
import metadistil
import models
from data import InputError, expect

DEVICES = ["auto", "cpu"] + ["cuda"] * torch.cuda.is_available()
RANDOM = [torch.random, torch.cuda] if torch.cuda.is_available() else [torch.random]  # what dropout is drawn from

# ---- What a run depends on

COUNT, NOT_NEGATIVE, POSITIVE, SHARE = (1, 1e9), (0, 1e30), (1e-30, 1e30), (0, 1)  # what a number may be, ends included
OPTIMIZERS = {
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, fused=True),
    "momentum": functools.partial(torch.optim.SGD, fused=True, momentum=0.9, weight_decay=5e-4),  # RepDistiller's
}


def linear(step, total):
    """Linear warm-up over the first tenth of the steps, then linear decay to zero."""
    warmup = max(1, total // 10)
    return min((step + 1) / warmup, (total - step) / max(1, total - warmup))


def falls(step, total):
    """A tenth of what it was at 62.5, 75 and 87.5% of the steps, as RepDistiller's (Tian et al. 2020) at 150, 180 and
    210 of 240 epochs."""
    return 0.1 ** sum(step >= share * total for share in (0.625, 0.75, 0.875))


SCHEDULES = {"linear": linear, "falls": falls}  # (step, total) -> share of the rate


def option(help, valid=None, default=None, heeded="always"):
    """A field of Config. valid: a range, or a list of words. default: None where DEFAULTS or the task decide.
    heeded: by which runs, see `heeds`."""
    return dataclasses.field(default=default, metadata={"help": help, "valid": valid, "heeded": heeded})


@dataclasses.dataclass
class Config:
    """Everything a run depends on. Each field is a flag; None means that the task, or the kind of run, decides."""

    task: str = option("the task", data.TASKS, "sst2")
    data: str = option("directory of the task's files, or 'builtin'", None, data.DEFAULT_DATA)
    quiz_size: int = option("training examples set aside for the quiz [one in ten; builtin: 300]", COUNT)
    train_size: int = option("train on a random subset of that many examples [all]", COUNT)
    label_noise: float = option("share of the training labels that is wrong [0; builtin: 0.4]", SHARE)
    noise: float = option("share of the students' training words turned into noise_word", SHARE, 0.0)
    teacher: str = option("preset, saved network or directory; several: A,B")
    student: str = option("preset, saved network or directory")
    student_layers: str = option("layers a student keeps of its saved network: 1,3,5 [all]")
    dropout: float = option("share of units dropped while training", SHARE)
    methods: str = option("methods, with commas between", None, "finetune,kd,metadistil")
    teacher_epochs: int = option("epochs of the teacher's own training", COUNT)
    warmup_epochs: int = option("epochs of each student on labels alone", NOT_NEGATIVE)
    epochs: int = option("epochs of each student after that", COUNT)
    batch_size: int = option("training examples a step", COUNT)
    finetune_lr: float = option("rate of the teacher's own training", POSITIVE)
    student_lr: float = option("rate of the students", POSITIVE)
    optimizer: str = option("of students, and of the teacher's own training", OPTIMIZERS)
    schedule: str = option("of their rates", SCHEDULES)
    alpha: float = option("α, weight of the soft term", SHARE, heeded="teacher")
    temperature: float = option("T, the logits' divisor", POSITIVE, heeded="teacher")
    beta: float = option("β, the weight of the hidden states in pkd", NOT_NEGATIVE, heeded="pkd")
    pilot_lr: float = option("λ, the step of the pilot update", POSITIVE, heeded="learning")
    teacher_lr: float = option("μ, rate of the meta update", NOT_NEGATIVE, heeded="learning")
    teacher_optimizer: str = option("of the meta update", OPTIMIZERS, heeded="learning")
    teacher_schedule: str = option("of its rate", SCHEDULES, heeded="learning")
    teacher_clip: float = option("cut the meta-gradient to that length [no]", POSITIVE, heeded="learning")
    quiz_batch_size: int = option("quiz examples a step, even by class", COUNT, heeded="learning")
    meta_grad: str = option("way to the meta-gradient", [*metadistil.MODES], heeded="learning")
    micro_batch: int = option("examples at a time in the teacher's backward pass [all]", COUNT, heeded="learning")
    meta_every: int = option("the teacher learns at every K-th step", COUNT, heeded="learning")
    no_pilot: bool = option("ablation: the quiz is sat at θ_S", None, False, heeded="learning")
    learn_quiz: bool = option("students train on the quiz's labels, too", None, False, heeded="learning")
    seeds: int = option("do everything with seeds 0 to N-1", COUNT, 1)
    device: str = option("auto: cuda where there is one", DEVICES, "auto")
    precision: str = option("of products; auto: bf16 where the hardware has it", ["fp32", "bf16", "auto"], "fp32")
    out: str = option("the run's directory [a new one under runs/]")
    log_every: int = option("steps between two lines of metrics.jsonl", COUNT, 50)
    checkpoint_seconds: float = option("seconds between two checkpoints", NOT_NEGATIVE, 60.0)

    def load(self, seed: int) -> "data.Task":
        """The task, split by the seed."""
        sizes = {"quiz_size": self.quiz_size, "train_size": self.train_size, "label_noise": self.label_noise}
        return data.load_task(self.task, self.data, seed=seed, **sizes)

    def sources(self, seed: int) -> dict[str, str]:
        """{"student": preset or path, "teacher": ..., "teacher 2": ...}, as many teachers as there are."""
        sources = {"student": self.student, "teacher": self.teacher.split(",")[0]}
        for n, source in enumerate(self.teacher.split(",")[1:], start=2):
            sources[f"teacher {n}"] = source
        return {role: source.replace("{seed}", str(seed)) for role, source in sources.items()}

    def layers(self) -> list[int]:
        """The layers that the student keeps of its saved network, 0 the first; [] for all."""
        return [int(layer) for layer in self.student_layers.split(",")] if self.student_layers else []


FILES = {
    "teacher": "mini", "student": "tiny", "dropout": 0.2, "teacher_epochs": 3, "warmup_epochs": 1, "epochs": 2,
    "batch_size": 64, "quiz_batch_size": 64, "finetune_lr": 5e-4, "student_lr": 5e-4, "pilot_lr": 0.02,
    "teacher_lr": 1e-5, "optimizer": "adamw", "schedule": "linear", "teacher_optimizer": "adamw",
    "teacher_schedule": "linear", "alpha": 0.5, "temperature": 2.0, "beta": 100.0, "meta_grad": "second_order",
    "meta_every": 1,
}  # fmt: skip
DEFAULTS = {  # by the kind of run, see kind_of_run; each says where it differs from a run on files of sentences
    "files": FILES,
    "reviews": FILES | {
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
        "optimizer": "momentum", "schedule": "falls", "teacher_optimizer": "momentum", "teacher_schedule": "falls",
        "alpha": 0.9, "temperature": 4.0, "meta_grad": "jvp", "meta_every": 4,
    },
}  # fmt: skip


def kind_of_run(config: Config, task: data.Task):
    """Which of DEFAULTS holds: pictures, else pretrained if a directory is among the networks, else reviews or files."""
    if not data.TASKS[task.name].texts:
        return "pictures"
    if any(is_pretrained(source) for source in f"{config.teacher},{config.student}".split(",")):
        return "pretrained"
    return "reviews" if task.data == data.BUILTIN else "files"


def is_pretrained(source):
    """Whether a network comes from a directory: it is trained on the task, where a .pt is ready as it is."""
    return source not in models.PRESETS and os.path.isdir(source)


def heeds(config: Config, heeded):
    """Whether a method of the run heeds a field: "always"; "teacher" if it has one; "learning" if it learns; "pkd"."""
    methods = [METHODS[name] for name in config.methods.split(",")]
    return {
        "always": True,
        "teacher": any(method.teacher != "none" for method in methods),
        "learning": any(method.teacher == "learning" for method in methods),
        "pkd": any(method.loss is patient_loss for method in methods),
    }[heeded]


def check(config: Config):
    """Raise InputError on a value of another type, out of its range, or that no method of the run heeds."""
    for name in str(config.methods).split(","):
        expect(name in METHODS, f"--methods {name}: expected some of {', '.join(METHODS)}")
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value is field.default:  # not given
            continue
        if field.type is float and type(value) is int or field.type is str and isinstance(value, os.PathLike):
            value = field.type(value)
            setattr(config, field.name, value)
        expected = {int: "a whole number", float: "a number", str: "a word", bool: "True or False"}[field.type]
        expect(type(value) is field.type, f"{flag} {value!r}: expected {expected}")
        valid = field.metadata["valid"]
        if isinstance(valid, tuple):
            low, high = valid
            expect(low <= value <= high, f"{flag} {value}: expected a number from {low:g} to {high:g}")
        elif valid:
            expect(value in valid, f"{flag} {value}: expected one of {', '.join(valid)}")
        expect(heeds(config, field.metadata["heeded"]), f"{flag}: none of --methods {config.methods} heeds it")
    layers = config.student_layers or "0"
    expect(re.fullmatch(r"\d+(,\d+)*", layers), f"--student-layers {layers}: expected numbers with commas between")


def resolve(config: Config):
    """The configuration, checked, nothing left open that the task or the kind of run decides. Raises InputError."""
    config = dataclasses.replace(config)
    check(config)
    task = config.load(0)
    defaults = DEFAULTS[kind_of_run(config, task)]
    defaults = defaults | {"data": task.data, "quiz_size": len(task.quiz), "label_noise": task.label_noise}
    for name, value in defaults.items():
        is_open = getattr(config, name) is None and heeds(config, Config.__dataclass_fields__[name].metadata["heeded"])
        if is_open or name == "data":  # the reviews may stand in for the directory
            setattr(config, name, value)
    if config.device == "auto":
        config.device = DEVICES[-1]
    if config.precision == "auto":
        config.precision = "bf16" if bf16_in_hardware(config.device) else "fp32"
    pictures = not data.TASKS[task.name].texts
    expect(not (pictures and config.noise), "--noise: expected a task of sentences")
    expect(
        not config.student_layers or config.student not in models.PRESETS, "--student-layers: expected a saved network"
    )
    config.out = config.out or new_folder(task)
    return config


def new_folder(task: data.Task):
    """The first of runs/TASK-builtin, runs/TASK-builtin-2, ... that is not there."""
    base = f"runs/{task.name}-{'builtin' if task.data == data.BUILTIN else 'files'}"
    folder, n = base, 1
    while os.path.exists(folder):
        n += 1
        folder = f"{base}-{n}"
    return folder


def bf16_in_hardware(device):
    """Whether the device multiplies in bfloat16. A processor that does not takes 10 to 17 times as long as in float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(able for name, able in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


# ---- The methods


class Method(NamedTuple):
    """What makes a method. A script adds one by `METHODS["name"] = Method(...)`."""

    teacher: str  # "none"; "fixed": it stays as it is; "learning": it has an optimiser, and each `meta_every`-th step
    quiz_labels: bool  # does the student train on the quiz's labels, too?
    loss: Callable  # stage -> L_S, a function as metadistil has it
    step: Callable  # (stage, batch, draw_quiz, log) -> L_S: one step after the warm-up


def distil_step(stage, batch, draw_quiz, log):
    """Plain KD or, without a teacher, fine-tuning."""
    return metadistil.real_update(stage.student, stage.teachers, batch, stage.student_optimizer, stage.loss)


def meta_step(stage, batch, draw_quiz, log):
    """One turn of Algorithm 1. If there is a log, it gets the quiz loss before the pilot and after."""
    config, student, teachers = stage.config, stage.student, stage.teachers
    quiz = draw_quiz()
    if log is not None:
        theta_S = dict(student.named_parameters())
        log["quiz_loss_before"], _ = metadistil.quiz_gradient(student, theta_S, quiz, stage.quiz_loss)
    L_S, found = metadistil.metadistil_step(
        student, teachers, batch, quiz, stage.student_optimizer, stage.teacher_optimizer, pilot_lr=config.pilot_lr,
        loss=stage.loss, quiz_loss=stage.quiz_loss, mode=config.meta_grad, micro_batch=config.micro_batch,
        clip=config.teacher_clip,
    )  # fmt: skip
    if log is not None:
        log["quiz_loss_after"] = found.quiz_loss
    return L_S


def step_without_pilot(stage, batch, draw_quiz, log):
    """An ablation: the quiz is sat at θ_S instead of θ′_S, and λ only scales what the teacher hears. Then the student's
    optimiser takes its step, with the teachers as they were; then they move."""
    student, teachers = stage.student, stage.teachers
    z_T = metadistil.teach(teachers, batch[0])
    z_T_leaf = metadistil.each_tensor(metadistil.leaf, z_T)
    L_q, v = metadistil.quiz_gradient(student, dict(student.named_parameters()), draw_quiz(), stage.quiz_loss)
    dL_dz_T = metadistil.through_student_tangent(student, batch, z_T_leaf, v, stage.config.pilot_lr, stage.loss)
    grads = metadistil.through_teachers(teachers, batch[0], z_T, dL_dz_T, stage.config.micro_batch)
    L_S = metadistil.real_update(student, teachers, batch, stage.student_optimizer, stage.loss)
    metadistil.meta_update(teachers, grads, stage.teacher_optimizer, stage.config.teacher_clip)
    if log is not None:
        log["quiz_loss_before"] = L_q
    return L_S


def kd_loss(stage):
    """L_S of kd: metadistil's, of a regression squared errors."""
    config = stage.config
    if stage.task.label_names:
        return functools.partial(metadistil.kd_loss, alpha=config.alpha, temperature=config.temperature)
    return functools.partial(regression_kd_loss, alpha=config.alpha)


def patient_loss(stage):
    """L_S of pkd: kd_loss, and β times the distance of hidden states, of the layers that student and teachers match."""
    logits_loss, beta = kd_loss(stage), stage.config.beta
    student, *teachers = (reader.network for reader in (stage.student, *stage.teachers))
    M = student.config.layers
    for network in (student, *teachers):
        # Of a student's M layers all but the last; of a teacher's L every (L / M)-th (Sun et al. 2019, section 3.2).
        network.patient_layers = tuple(n * network.config.layers // M for n in range(1, M))

    def loss(student_outputs, teacher_outputs, labels):
        if teacher_outputs is None:
            return logits_loss(student_outputs[0], None, labels)
        (z_S, states_S), (z_T, states_T) = student_outputs, teacher_outputs
        return logits_loss(z_S, z_T, labels) + beta * pkd_loss(states_S, states_T)

    return loss


# Which labels each student sees, and whether its teacher learns: the whole experiment is this table.
METHODS = {
    "finetune": Method("none", quiz_labels=True, loss=kd_loss, step=distil_step),
    "kd": Method("fixed", quiz_labels=True, loss=kd_loss, step=distil_step),
    "pkd": Method("fixed", quiz_labels=True, loss=patient_loss, step=distil_step),
    "metadistil": Method("learning", quiz_labels=False, loss=kd_loss, step=meta_step),
    "metadistil-pkd": Method("learning", quiz_labels=False, loss=patient_loss, step=meta_step),
}


def pkd_loss(student_states, teacher_states):
    """Patient KD's second term: the squared distance of normalised hidden states (B, M, D), M layers of width D.
    Sun et al. 2019, equation 7; the mean over B, M and D, as their code has it -> scalar."""
    h_S = nn.functional.normalize(student_states, dim=-1)
    h_T = nn.functional.normalize(teacher_states, dim=-1)
    return (h_S - h_T).square().mean()


def squared_loss(predictions, labels):
    """A regression's loss: the mean squared error of predictions (B, 1) and scores (B,) -> scalar. Raises ValueError."""
    if predictions.shape != (len(labels), 1) or labels.ndim != 1:
        shapes = tuple(predictions.shape), tuple(labels.shape)
        raise ValueError(f"expected predictions (B, 1) and scores (B,), found {shapes}")
    return (predictions.squeeze(-1) - labels).square().mean()


def regression_kd_loss(student_outputs, teacher_outputs, labels, alpha=0.5):
    """kd_loss of a regression, outputs (B, 1): squared errors to the teacher and to the scores -> scalar."""
    if teacher_outputs is None:
        return squared_loss(student_outputs, labels)
    soft = (student_outputs - teacher_outputs).square().mean()
    return alpha * soft + (1 - alpha) * squared_loss(student_outputs, labels)


# ---- One seed, its networks and its stages


class Reader(nn.Module):
    """A network that reads, of a batch {role: inputs}, the inputs in the ids of its own tokeniser. Its products are
    taken in bfloat16 if the run says so."""

    def __init__(self, network: nn.Module, role, device, precision):
        super().__init__()
        self.network, self.role = network, role
        half = precision == "bf16"
        self.autocast = functools.partial(torch.autocast, device, torch.bfloat16, half, cache_enabled=False)

    def read(self, **inputs):
        """The network's outputs of inputs by name."""
        with self.autocast():
            return self.network(**inputs)

    def forward(self, **inputs_by_role):
        """The network's outputs of a batch for all roles."""
        return self.read(**inputs_by_role[self.role])


@torch.no_grad()
def predict(read: Callable, examples: data.Encoded) -> torch.Tensor:
    """The logits (N, K) of a network in eval mode, in the examples' order, computed in batches of like length."""
    rows = np.argsort(examples.lengths, kind="stable")
    logits = []
    for chunk in np.split(rows, range(256, len(rows), 256)):
        outputs = metadistil.forward(read, examples.batch(chunk)[0])
        logits.append(metadistil.tensors_of(outputs)[0].cpu())
    return torch.cat(logits)[np.argsort(rows)]


class Seed:
    """One seed's splits as each role reads them, {role: {split: Encoded}}, and how its networks begin."""

    def __init__(self, config: Config, seed):
        self.config, self.seed, self.folder = config, seed, Path(config.out, f"seed{seed}")
        self.task, self.sources = config.load(seed), config.sources(seed)
        self.of_sentences = bool(data.TASKS[self.task.name].texts)
        train_and_quiz = self.task.train + self.task.quiz  # the quiz stands behind the train
        self.steps_per_epoch = -(-len(train_and_quiz) // config.batch_size)
        sources = list(dict.fromkeys(self.sources.values()))
        self.saved = {source: models.read_saved(source) for source in sources if source not in models.PRESETS}
        shapes = {source: self.check(source) for source in sources}
        self.own_tokenizer = None  # of networks that begin without one, learnt from the training sentences
        if self.of_sentences and any(source in models.PRESETS for source in sources):
            self.own_tokenizer = data.train_tokenizer(train_and_quiz.texts)
        tokenizers = {source: self.tokenizer(source) for source in sources}
        self.tokenizers = {role: tokenizers[source] for role, source in self.sources.items()}
        splits = {"train+quiz": train_and_quiz, "dev": self.task.dev, "test": self.task.test}
        splits = {name: split for name, split in splits.items() if split and split.labels is not None}
        students_splits = splits
        if config.noise:
            noisy = data.noisy(self.task.train, config.noise, seed) + self.task.quiz
            students_splits = splits | {"train+quiz": noisy}
        encode = functools.cache(data.encode)  # roles of one vocabulary share what they read
        self.encoded = {}
        for role, source in self.sources.items():
            longest = min(data.MAX_LENGTH, shapes[source].max_tokens) if self.of_sentences else 0
            own = students_splits if role == "student" else splits
            encoded = {name: encode(tokenizers[source], split, config.device, longest) for name, split in own.items()}
            self.encoded[role] = encoded

    def check(self, source):
        """The configuration of a network that can read this task. Raises InputError."""
        shape = models.PRESETS[source] if source in models.PRESETS else self.saved[source][0].config
        reads = "sentences" if self.of_sentences else "pictures"
        expect(models.KINDS[models.kind_of(shape)].reads == reads, f"{source}: expected a network that reads {reads}")
        if source.endswith(".pt"):
            labels = self.saved[source][1]["labels"]
            expect(labels == self.task.label_names, f"{source}: expected a network for {self.task.name}'s labels")
        if source == self.sources["student"] and self.config.student_layers:
            deepest = max(self.config.layers())
            expect(deepest < getattr(shape, "layers", 0), f"--student-layers {deepest}: expected a layer of {source}")
        return shape

    def tokenizer(self, source):
        """The tokeniser of a network; None for pictures. Raises CheckpointError."""
        if source in models.PRESETS or not self.of_sentences:
            return self.own_tokenizer
        network, saved = self.saved[source]
        with models.expecting(f"{source}: expected a tokeniser in it, and a row of the network for each of its words"):
            tokenizer = data.Tokenizer.from_str(saved["tokenizer"])
            words = max(tokenizer.get_vocab().values()) + 1
            expect(words <= network.config.vocab_size, f"{words} words for {network.config.vocab_size} rows")
            return tokenizer

    def network(self, role, saved=""):
        """The role's network in a Reader: the same initial weights always, or as a stage saved it."""
        torch.manual_seed(2 * self.seed + list(self.sources).index(role))
        source, config = self.sources[role], self.config
        changes = {"num_labels": self.task.num_labels, "dropout": config.dropout}
        if saved:
            network, _ = models.read_saved(self.folder / f"{saved}.pt")
        elif source in models.PRESETS:
            if self.of_sentences:
                changes["vocab_size"] = self.own_tokenizer.get_vocab_size()
            network = models.build(models.PRESETS[source], **changes)
        else:
            labels = [label.lower() for label in self.saved[source][1]["labels"] or ()]
            head = labels == self.task.label_names  # in the same order; published names are often upper-case
            network, _ = models.read_saved(source, head, **changes)
        if role == "student" and config.student_layers:
            network.keep_layers(config.layers())
        return Reader(network, role, config.device, config.precision).to(config.device)

    def batch(self, rows, step=None):
        """Rows of train and quiz, ({role: inputs}, labels (B,)). With a step, pictures are cropped and mirrored."""
        crop = None if step is None else [self.seed, 7, step]
        inputs, batches = {}, {}
        for role, splits in self.encoded.items():
            encoded = splits["train+quiz"]
            if encoded not in batches:  # roles of one vocabulary share their batches
                batches[encoded] = encoded.batch(rows, crop)
            inputs[role], labels = batches[encoded]
        return inputs, labels

    def quiz(self, step):
        """The quiz of a step, even by class. Where one long sentence would pad all others, in parts of like length."""
        n, both = len(self.task.train), self.encoded["student"]["train+quiz"]
        rows = n + data.sample_quiz(both.labels[n:], self.config.quiz_batch_size, self.seed, step)
        length = both.lengths[rows]
        n_parts = int(length.max() // length.mean())
        if n_parts > 1:
            rows = rows[np.argsort(length, kind="stable")]
        inputs, labels = zip(*(self.batch(part) for part in np.array_split(rows, n_parts)))
        return list(inputs), torch.cat(labels)

    def scores(self, reader: Reader, *splits):
        """{"dev accuracy": 0.81, ...}: the task's metrics on those of the splits that have labels."""
        found = {}
        reader.eval()
        for split in splits:
            encoded = self.encoded[reader.role].get(split)
            if encoded:
                logits = predict(reader.read, encoded).numpy()
                predictions = logits.argmax(axis=-1) if self.task.label_names else logits[:, 0]
                for name in self.task.metrics:
                    found[f"{split} {name}"] = METRICS[name](predictions, encoded.labels)
        return found


class Stage:
    """A student that learns by a method; or a teacher that learns from labels, which is then its own `student`.
    `learners` are the networks that change, by the titles of their rows in the table."""

    def __init__(self, context: Seed, name):
        self.context, self.name, self.config, self.task = context, name, context.config, context.task
        config, self.teachers, self.teacher_optimizer = self.config, [], None
        self.quiz_loss = metadistil.hard_loss if self.task.label_names else squared_loss
        if name in context.sources:
            ready = context.sources[name].endswith(".pt")
            self.method, self.rate = METHODS["finetune"], config.finetune_lr
            self.student, self.warmup_steps = context.network(name), 0
            self.total = 0 if ready else config.teacher_epochs * context.steps_per_epoch
            self.learners = {f"{name} before": self.student}
        else:
            self.method, self.rate = METHODS[name], config.student_lr
            self.student = context.network("student")
            self.warmup_steps = config.warmup_epochs * context.steps_per_epoch
            self.total = self.warmup_steps + config.epochs * context.steps_per_epoch
            self.learners = {f"student {name}": self.student}
            self.add_teachers()
        self.student_optimizer = OPTIMIZERS[config.optimizer](self.student.parameters(), lr=0.0)
        self.loss = self.method.loss(self)

    def add_teachers(self):
        """The teachers, as their own training left them, and their optimiser if they learn."""
        roles = [role for role in self.context.sources if role != "student"]
        if self.method.teacher == "none":
            return
        self.teachers = [self.context.network(role, f"{role} before".replace(" ", "-")) for role in roles]
        if self.method.teacher == "learning":
            self.learners |= {f"{role} after {self.name}": one for role, one in zip(roles, self.teachers)}
            theta_T = nn.ModuleList(self.teachers).parameters()
            self.teacher_optimizer = OPTIMIZERS[self.config.teacher_optimizer](theta_T, lr=0.0)

    def state(self):
        """What a checkpoint holds of the stage: networks and optimisers that change, and where dropout's draws stand."""
        parts = [part.state_dict() for part in self.changing()]
        return {"parts": parts, "rng": [generator.get_rng_state() for generator in RANDOM]}

    def restore(self, state):
        """Go on from a checkpoint."""
        for part, saved in zip(self.changing(), state["parts"]):
            part.load_state_dict(saved)
        for generator, saved in zip(RANDOM, state["rng"]):
            generator.set_rng_state(saved)

    def changing(self):
        """The networks and optimisers that the stage changes."""
        optimizers = [self.student_optimizer, self.teacher_optimizer]
        return [*self.learners.values(), *(optimizer for optimizer in optimizers if optimizer)]

    def batch(self, k):
        """The training batch of step k."""
        context, both = self.context, self.context.encoded["student"]["train+quiz"]
        sees_quiz_labels = self.method.quiz_labels or self.config.learn_quiz
        lengths = both.lengths if sees_quiz_labels else both.lengths[: len(self.task.train)]
        epoch, place = divmod(k, -(-len(lengths) // self.config.batch_size))
        if getattr(self, "epoch", None) != epoch:
            self.epoch = epoch
            self.batches = data.batches_of(lengths, self.config.batch_size, context.seed, epoch)
        return context.batch(self.batches[place], k)

    def step(self, k, log):
        """Step k -> L_S."""
        config, since_warmup = self.config, k - self.warmup_steps
        set_rate(self.student_optimizer, self.rate * SCHEDULES[config.schedule](k, self.total))
        batch, quiz = self.batch(k), functools.partial(self.context.quiz, k)
        if since_warmup < 0:  # the student learns from labels alone
            return metadistil.real_update(self.student, [], batch, self.student_optimizer, self.loss)
        if self.method.teacher != "learning":
            return self.method.step(self, batch, quiz, log)
        if since_warmup % config.meta_every:  # the teacher stays as it is
            return distil_step(self, batch, quiz, log)
        share = SCHEDULES[config.teacher_schedule](since_warmup, self.total - self.warmup_steps)
        set_rate(self.teacher_optimizer, config.teacher_lr * share)
        step = step_without_pilot if config.no_pilot else self.method.step
        return step(self, batch, quiz, log)


def set_rate(optimizer, rate):
    """The rate of the optimiser's next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


# ---- The loop, and what it leaves on disk


def take(context: Seed, name, journal):
    """Take the stage's steps, from the checkpoint if it was under way; log, score dev after each epoch, save."""
    config, stage = context.config, Stage(context, name)
    for learner in stage.learners.values():  # a network that cannot be saved fails here, not after its training
        check_round_trip(learner.network)
    torch.manual_seed(1000 + context.seed)  # of dropout
    state = {"step": 0, "seconds": 0.0}
    if journal["under_way"]:
        state = journal["under_way"]
        stage.restore(state)
    noted, last_saved, last_shown = {}, time.monotonic(), -np.inf  # noted: losses and dev scores
    for k in range(state["step"], stage.total):
        started = time.perf_counter()
        log = {} if k % config.log_every == 0 or k + 1 == stage.total else None
        loss = stage.step(k, log).item()
        entry = {"seed": context.seed, "stage": name, "step": k + 1}
        expect(np.isfinite(loss), f"{entry}: expected a finite loss, found {loss}; try a tenth of the rates")
        state["seconds"] += time.perf_counter() - started
        state["step"] = k + 1
        if log is not None:
            losses = {"loss": loss} | {key: value.item() for key, value in log.items()}
            journal["log"].append(entry | losses)
            noted |= losses
        if state["step"] % context.steps_per_epoch == 0:
            scores = {title: context.scores(learner, "dev") for title, learner in stage.learners.items()}
            journal["log"].append(entry | {"epoch": state["step"] // context.steps_per_epoch, "scores": scores})
            noted |= {title.split()[0]: next(iter(found.values())) for title, found in scores.items()}
        now, last = time.monotonic(), state["step"] == stage.total
        if last or now - last_shown >= (0.2 if sys.stderr.isatty() else 10):
            show(f"seed {context.seed} {name}", stage.total, state, noted)
            last_shown = now
        if not last and now - last_saved >= config.checkpoint_seconds:
            save_journal(config, journal | {"under_way": state | stage.state()})
            last_saved = now
    finish(stage, journal, state["seconds"])


def finish(stage: Stage, journal, seconds):
    """Save the stage's networks, score them on dev and, this once, on test, and note the results."""
    context, task = stage.context, stage.task
    for title, learner in stage.learners.items():
        tokenizer = context.tokenizers[learner.role]
        more = {"labels": task.label_names, "tokenizer": tokenizer.to_str() if tokenizer else None}
        write_whole(
            context.folder / f"{title.replace(' ', '-')}.pt", models.to_save(learner.network, **more) | {"title": title}
        )
        scores = context.scores(learner, "dev", "test")
        metric, found = next(iter(scores.items()))
        chance = score_of_one_answer(task)
        if title.endswith("before") and found < chance + 0.02:
            warnings.warn(f"{title}: {metric} {found:.3f}; one answer to everything has {chance:.3f}", stacklevel=2)
        journal["log"].append({"seed": context.seed, "stage": stage.name, "model": title, "final_scores": scores})
        size = sum(theta.numel() for theta in learner.parameters())
        result = {"scores": scores, "parameters": size, "seconds": seconds}
        journal["results"].setdefault(title, []).append(result)
        seconds = np.nan  # a stage's time is its first network's
    journal |= {"done": journal["done"] + 1, "under_way": None}
    save_journal(context.config, journal)


def score_of_one_answer(task: data.Task):
    """The best score on dev of one answer to everything."""
    labels, score = task.dev.labels, METRICS[task.metrics[0]]
    return max(score(np.full_like(labels, label), labels) for label in np.unique(labels))


def check_round_trip(network: nn.Module):
    """Raise InputError if the network, saved and read again, would not be the same kind of network."""
    kind = models.KINDS[models.kind_of(network.config)]
    twin = models.build(kind.config(**dataclasses.asdict(network.config)))
    ours, theirs = ([(n, w.shape) for n, w in one.state_dict().items()] for one in (network, twin))
    expect(ours == theirs, f"{kind.network.__name__}: its configuration does not describe it")


def show(what, total, state, noted):
    """Print the progress: on a terminal over the line before, elsewhere a line of its own."""
    step, live = state["step"], sys.stderr.isatty()
    left = state["seconds"] / step * (total - step)
    noted = [f"{name} {value:.4f}" for name, value in noted.items()]
    line = "  ".join([f"{what:<18} step {step}/{total}", *noted, f"{left // 60:.0f}:{left % 60:02.0f} left"])
    if live:
        line = f"\r\033[K{line}"
    print(line, end="" if live and left else "\n", file=sys.stderr, flush=True)


def write_whole(path: Path, content):
    """Write text, or a dict by torch.save: under `path` stands the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        if isinstance(content, dict):
            torch.save(content, file)
        else:
            file.write(content.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def save_journal(config: Config, journal):
    """Write metrics.jsonl and the checkpoint, so that nothing done is lost. The journal: configuration, number of
    stages done, results ({title: [a dict for each seed]}), log, and the state of the stage under way."""
    lines = [json.dumps(entry) + "\n" for entry in journal["log"]]
    write_whole(Path(config.out, "metrics.jsonl"), "".join(lines))
    write_whole(Path(config.out, "checkpoint.pt"), journal)


def read_journal(out):
    """The configuration and the journal of a run, from its checkpoint. Raises CheckpointError."""
    path = Path(out, "checkpoint.pt")
    with models.expecting(f"{path}: expected the checkpoint of a run"):
        journal = models.load_whole(path)
        return Config(**journal["config"] | {"out": out}), journal


# ---- Metrics and the table


def pearson(predictions, labels):
    """Pearson's correlation; 0 where either is constant. Of two classes it is Matthews' coefficient."""
    constant = np.ptp(predictions) == 0 or np.ptp(labels) == 0
    return 0.0 if constant else float(np.corrcoef(predictions, labels)[0, 1])


def ranks(values):
    """Ranks (N,) from 1; ties share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


METRICS = {  # of predictions p (N,) and labels y (N,)
    "accuracy": lambda p, y: float((p == y).mean()),
    "f1": lambda p, y: float(2 * (p * y).sum() / max(1, (p + y).sum())),  # of class 1; 0 without any hit
    "matthews": pearson,
    "pearson": pearson,
    "spearman": lambda p, y: pearson(ranks(p), ranks(y)),
}
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of Student's t, 97.5%, 1 to 9 degrees


def spread(values):
    """Percent: "71.2", or "71.2 ± 0.4", mean ± standard deviation of several seeds."""
    deviation = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{deviation}"


def paired_difference(ours, theirs):
    """Points, seed by seed: "+4.1 [+2.0, +6.2]", the mean and its 95% interval (on the safe side beyond 10 seeds)."""
    difference, n = 100 * (ours - theirs), len(ours)
    mean = difference.mean()
    if n == 1:
        return f"{mean:+.1f}"
    half = T_QUANTILES[min(n, 10) - 2] * difference.std(ddof=1) / np.sqrt(n)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def table(config: Config, task: data.Task, results):
    """The run's table in Markdown, a row for each network, a column for each score; and what its numbers are."""
    columns, most = list(results["teacher before"][0]["scores"]), results["teacher before"][0]["parameters"]
    main = f"{columns[-1].split()[0]} {task.metrics[0]}"  # the task's first metric, on its last split
    of = {
        title: {c: np.array([one["scores"][c] for one in seeds]) for c in columns} for title, seeds in results.items()
    }
    rows = [["model", *columns, f"difference ({main})", "parameters", "times smaller", "seconds"]]
    rows.append(["---"] * len(rows[0]))
    for title in sorted(results, key=lambda title: title.startswith("student")):
        is_student, size = title.startswith("student"), results[title][0]["parameters"]
        rival = "student kd" if is_student else title.split(" after")[0] + " before"
        compared = rival in results and rival != title
        difference = paired_difference(of[title][main], of[rival][main]) if compared else ""
        seconds = np.mean([seed["seconds"] for seed in results[title]])
        seconds = "–" if np.isnan(seconds) else f"{seconds:.0f}"
        scores = [spread(values) for values in of[title].values()]
        rows.append([title, *scores, difference, f"{size:,}", f"{most / size:.1f}", seconds])
    return (
        "\n".join("| " + " | ".join(row) + " |" for row in rows)
        + f"""

{task.name} ({task.data}): {len(task.train):,} training examples, {task.label_noise:.0%} mislabelled, \
{len(task.quiz):,} in the quiz; {config.seeds} seed(s); {config.precision}.
Percent, after all epochs: {config.teacher_epochs} of a teacher, {config.warmup_epochs} + {config.epochs} of a student.
Difference: students to kd, teacher to what it was, paired by seed, with a 95% interval.
"""
    )


# ---- A run, a trained network, the command line


class Run(NamedTuple):
    """What a run leaves."""

    config: Config
    out: Path
    results: dict[str, list[dict]]  # {title: [{"scores": ..., "parameters": ..., "seconds": ...} of each seed]}
    table: str

    @property
    def models(self) -> dict[str, "Trained"]:
        """Seed 0's trained networks by title, read from their files."""
        return load_all(self.out)


def run(config: Config, journal: dict | None = None) -> Run:
    """A whole run, or by its journal the rest of one. Raises InputError, CheckpointError; after Ctrl-C, when
    everything up to the last checkpoint is saved, KeyboardInterrupt."""
    config = config if journal else resolve(config)
    out, task = Path(config.out), config.load(0)
    of_seed = functools.lru_cache(1)(functools.partial(Seed, config))
    names = list(dict.fromkeys([*list(config.sources(0))[1:], *config.methods.split(",")]))
    if not journal:
        expect(not (out / "checkpoint.pt").exists(), f"--out {out}: holds a run; expected a new one, or --resume {out}")
        check_layers(config, of_seed(0))
        journal = {"format": models.FORMAT, "config": dataclasses.asdict(config), "done": 0, "results": {}, "log": []}
        journal["under_way"] = None
        save_journal(config, journal)
    write_whole(out / "config.json", json.dumps(journal["config"], indent=2))
    introduce(config, task)
    try:
        for seed, name in list(itertools.product(range(config.seeds), names))[journal["done"] :]:
            take(of_seed(seed), name, journal)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; to go on: python train.py --resume {out}") from None
    text = table(config, task, journal["results"])
    write_whole(out / "table.md", text)
    print(f"\n{text}")
    return Run(config, out, journal["results"], text)


def introduce(config: Config, task: data.Task):
    """Print what the run is about, and what was decided for the user."""
    print(data.BUILTIN_BANNER.format(share=task.label_noise) if task.data == data.BUILTIN else f"data: {task.data}")
    for note in task.notes:
        print(f"note: {note}")
    if config.precision == "bf16" and not bf16_in_hardware(config.device):
        print("note: this processor has no bfloat16; expect 10 times the usual time, or take --precision auto")
    print(
        f"{config.device}, {torch.get_num_threads()} threads, {config.precision}; everything is written to {config.out}/"
    )


def check_layers(config: Config, context: Seed):
    """Raise InputError if pkd is to match layers of networks that do not match."""
    shapes = [context.network(role).network.config for role in context.sources]
    if heeds(config, "pkd"):
        encoders = all(isinstance(shape, models.EncoderConfig) for shape in shapes)
        fits = encoders and all(shape.hidden == shapes[0].hidden for shape in shapes)
        fits = fits and 2 <= shapes[0].layers <= min(shape.layers for shape in shapes)
        expect(fits, "pkd: expected a student of 2 layers or more, as wide as its teacher and no deeper")


class Trained:
    """A trained network with its tokeniser and the names of its classes."""

    def __init__(self, path):
        self.network, saved = models.read_saved(path)
        self.network.eval()
        expect(saved["tokenizer"], f"{path}: expected a network that reads sentences")
        self.tokenizer, self.labels = data.Tokenizer.from_str(saved["tokenizer"]), saved["labels"]
        self.title = saved.get("title", Path(path).stem)

    def predict(self, sentences: list) -> list[tuple]:
        """For each sentence, or pair (a tuple), (label, {name: probability}); of a regression (score, {}).
        Raises InputError on one sentence in place of a list."""
        expect(not isinstance(sentences, str), "predict: expected a list of sentences, found one sentence")
        examples = data.Split(np.fromiter(sentences, object), None)
        longest = min(data.MAX_LENGTH, self.network.config.max_tokens)
        logits = predict(self.network, data.encode(self.tokenizer, examples, max_length=longest))  # (N, K)
        if not self.labels:
            return [(score, {}) for score in logits[:, 0].tolist()]
        found = []
        for p in metadistil.log_softmax(logits).exp():
            found.append((self.labels[p.argmax()], dict(zip(self.labels, p.tolist()))))
        return found


def load(path) -> Trained:
    """The trained network in a file like runs/NAME/seed0/student-metadistil.pt. Raises CheckpointError, InputError."""
    return Trained(path)


def load_all(out) -> dict[str, Trained]:
    """{title: Trained} of the networks that a run has saved for seed 0, teachers first. Raises InputError."""
    paths = list(Path(out, "seed0").glob("*.pt"))
    expect(paths, f"{out}: expected a run with a trained network, found none; start one, or --resume it")
    paths.sort(key=lambda path: ("student" in path.stem, "after" in path.stem, path))
    return {trained.title: trained for trained in map(load, paths)}


def print_predictions(out, sentences):
    """Print for each sentence, or pair with a tab between, what each network of seed 0 says, and how sure it is."""
    expect(out, "--predict: expected --out with the directory of a run")
    trained = load_all(out)
    for line in sentences:
        line = line.strip("\r\n ")
        print(line)
        for title, network in trained.items():
            label, probabilities = network.predict([tuple(line.split("\t", 1)) if "\t" in line else line])[0]
            said = f"{label:<10} {probabilities[label]:6.1%}" if probabilities else f"{label:.2f}"
            print(f"  {title:<26} {said}")


def parse(arguments):
    """What the command line gives: a flag for each field of Config, then --resume and --predict."""
    look = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    flags = argparse.ArgumentParser("train.py", **look, argument_default=argparse.SUPPRESS)
    flags.epilog = f"methods: {', '.join(METHODS)}\ndefaults in brackets: of " + ", ".join(DEFAULTS)
    flags.error = lambda message: flags.exit(2, f"train.py: {message}\n")  # without the usage, one line
    for field in dataclasses.fields(Config):
        text, valid = field.metadata["help"], field.metadata["valid"]
        if field.type is str and valid:
            text += f": {', '.join(valid)}"
        defaults = list(dict.fromkeys(str(kind[field.name]) for kind in DEFAULTS.values() if field.name in kind))
        defaults = defaults or ([str(field.default)] if field.default not in (None, False) else [])
        text += f" [{', '.join(defaults)}]" if defaults else ""
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "metavar": ""}
        flags.add_argument("--" + field.name.replace("_", "-"), help=text.replace("%", "%%"), **kind)
    flags.add_argument("--resume", metavar="RUN", help="go on with a stopped run; it ends with the same numbers")
    flags.add_argument("--predict", metavar="SENTENCE", nargs="?", help="what the run in --out says of it")
    return vars(flags.parse_args(arguments))


def main(arguments: list[str] | None = None):
    """Run the command line. What a user can mend ends in one line and exit status 2."""
    given = parse(arguments)
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    try:
        if "predict" in given:
            sentences = sys.stdin if given["predict"] is None else [given["predict"]]
            return print_predictions(given.get("out", ""), sentences)
        if "resume" in given:
            expect(len(given) == 1, f"--resume {given['resume']}: expected no other flag, the run has its own")
            out = run(*read_journal(given["resume"])).out
        else:
            out = run(Config(**given)).out
        with contextlib.suppress(ImportError, FileNotFoundError):  # no matplotlib, or no such script: no curves
            runpy.run_path(str(Path(__file__).with_name("notebooks") / "curves.py"))["draw"](out)
    except (InputError, models.CheckpointError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


for function in (torch.exp, torch.log, torch.tanh):
    # MKL chooses its code for each at the first call. Two threads that call at once may be given a worse one (pytorch's
    # issue 188792); here one thread calls.
    function(torch.ones(1))

if __name__ == "__main__":
    main()
