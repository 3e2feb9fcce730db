"""The main job, `python train.py --task sst2`: train a teacher, then a student by each method; print what came of it.

Every student starts from the same weights and takes the same number of steps. METHODS says which labels it sees. A run
is a list of stages: for each seed each teacher, then each method. On one machine the same configuration, with as many
processes, gives the same numbers, stopped and resumed or not.
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
import signal
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

PROGRAM = "train.py"  # in messages; a script that adds methods puts its own name here
MORE_METHODS = "notebooks/methods.py"
DEVICES = ["auto", "cpu"] + ["cuda"] * torch.cuda.is_available()
# Under torchrun RANK is this process's number, RANKS how many there are. Each computes its own part of every batch.
# Each scores the whole dev and test. The first alone writes files and prints.
SEVERAL = "TORCHELASTIC_RUN_ID" in os.environ
RANK, RANKS = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if SEVERAL else (0, 1)
SHOW_SECONDS = 5  # between two lines of progress
RANDOM = [torch.random] + [torch.cuda] * torch.cuda.is_available()  # what dropout is drawn from

COUNT, NOT_NEGATIVE, POSITIVE, SHARE = (1, 1e9), (0, 1e30), (1e-30, 1e30), (0, 1)  # what a number may be, ends included
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


def option(help, valid=None, default=None, used_by=lambda method: True):
    """A field of Config. valid: a range, or a list of words. used_by: whether a method uses it. If no method of a run
    does, the flag is refused."""
    return dataclasses.field(default=default, metadata={"help": help, "valid": valid, "used_by": used_by})


# Fields for methods that have a teacher, and for those whose teacher learns.
kd_option = functools.partial(option, used_by=lambda method: method.teacher != "none")
meta_option = functools.partial(option, used_by=lambda method: method.teacher == "learning")


@dataclasses.dataclass
class Config:
    """Everything a run depends on. Each field is a flag. None: the task or DEFAULTS decide, or it is off."""

    task: str = option("the task", data.TASKS, "sst2")
    data: str = option("directory of the task's files, or 'builtin'", None, data.DEFAULT_DATA)
    quiz_size: int = option("training examples set aside for the quiz [one in ten; builtin: 300]", COUNT)
    train_size: int = option("train on a random subset of that many examples [all]", COUNT)
    label_noise: float = option("share of the training labels that is wrong [0; builtin: 0.4]", SHARE)
    noise: float = option("share of the students' training words turned into noise_word", SHARE, 0.0)
    teacher: str = option("preset, saved network or directory; several: A,B")
    student: str = option("preset, saved network or directory")
    student_layers: str = option("layers a student keeps of its saved network, from 0: 1,3,5 [all]")
    dropout: float = option("share of units dropped while training", SHARE)
    methods: str = option("methods, with commas between", None, "finetune,kd,metadistil")
    teacher_epochs: int = option("epochs of the teacher's own training, before it teaches", COUNT)
    warmup_epochs: int = option("epochs of each student on labels alone", NOT_NEGATIVE)
    epochs: int = option("epochs of each student after that", COUNT)
    batch_size: int = option("training examples a step", COUNT)
    finetune_lr: float = option("rate of the teacher's own training, before it teaches", POSITIVE)
    student_lr: float = option("rate of the students", POSITIVE)
    optimizer: str = option("optimiser of students, and of the teacher's own training", OPTIMIZERS)
    schedule: str = option("schedule of all rates", SCHEDULES)
    alpha: float = kd_option("α, weight of the soft term", SHARE)
    temperature: float = kd_option("T, the logits' divisor", POSITIVE)
    pilot_lr: float = meta_option("λ, rate of the pilot update", POSITIVE)
    teacher_lr: float = meta_option("μ, rate of the meta update, while it teaches", NOT_NEGATIVE)
    teacher_optimizer: str = meta_option("optimiser of the meta update", OPTIMIZERS)
    quiz_batch_size: int = meta_option("quiz examples a step, as many of each class", COUNT)
    meta_grad: str = meta_option("way to the meta-gradient", [*metadistil.MODES])
    meta_every: int = meta_option("the teacher learns at every K-th step", COUNT)
    learn_quiz: bool = meta_option("MetaDistil's students, too, train on the quiz's labels", None, False)
    seeds: int = option("do everything with seeds 0 to N-1", COUNT, 1)
    device: str = option("auto: cuda where there is one", DEVICES, "auto")
    precision: str = option("of matrix products; auto: bf16 if in hardware", ["fp32", "bf16", "auto"], "fp32")
    out: str = option("the run's directory [a new one under runs/]")
    log_every: int = option("steps between two losses in metrics.jsonl", COUNT, 50)
    checkpoint_seconds: float = option("seconds between two checkpoints", NOT_NEGATIVE, 60.0)

    def load(self, seed: int):
        """The data.Task, split by the seed."""
        return data.load_task(
            self.task, self.data, self.quiz_size, seed, train_size=self.train_size, label_noise=self.label_noise
        )

    def sources(self, seed: int) -> dict[str, str]:
        """{"student": preset or path, "teacher": ..., "teacher 2": ...}; "{seed}" in a path stands for the seed."""
        networks = f"{self.student},{self.teacher}".replace("{seed}", str(seed)).split(",")
        others = [f"teacher {n}" for n in range(2, len(networks))]
        return dict(zip(["student", "teacher", *others], networks))


BASE = {  # of a run on a task's files; what another kind does not name, it takes from here
    "teacher": "mini", "student": "tiny", "dropout": 0.2, "teacher_epochs": 3, "warmup_epochs": 1, "epochs": 2,
    "batch_size": 64, "quiz_batch_size": 64, "finetune_lr": 5e-4, "student_lr": 5e-4, "pilot_lr": 0.02,
    "teacher_lr": 1e-5, "optimizer": "adamw", "schedule": "linear", "teacher_optimizer": "adamw",
    "alpha": 0.5, "temperature": 2.0, "meta_grad": "second_order", "meta_every": 1,
}  # fmt: skip
DEFAULTS = {  # an entry for each kind of run, see kind_of_run
    "files": BASE,
    "builtin": BASE | {
        "teacher": "tiny", "student": "micro", "dropout": 0.1, "teacher_epochs": 40, "warmup_epochs": 5, "epochs": 50,
        "batch_size": 128, "quiz_batch_size": 200, "student_lr": 2e-3, "pilot_lr": 0.1, "teacher_lr": 5e-4,
        "alpha": 0.9,
    },
    "pretrained": BASE | {
        "dropout": 0.1, "teacher_epochs": 2, "epochs": 1, "finetune_lr": 7e-5, "student_lr": 7e-5, "pilot_lr": 2e-3,
        "teacher_lr": 1e-6,
    },
    "pictures": BASE | {
        "teacher": "resnet20", "student": "resnet8", "dropout": 0.0, "teacher_epochs": 8, "epochs": 4,
        "batch_size": 128, "quiz_batch_size": 128, "finetune_lr": 0.1, "student_lr": 0.1, "teacher_lr": 2e-4,
        "optimizer": "momentum", "schedule": "falls", "teacher_optimizer": "momentum", "alpha": 0.9, "temperature": 4.0, "meta_grad": "jvp", "meta_every": 4,
    },
}  # fmt: skip


def kind_of_run(config: Config, task: data.Task):
    """The entry of DEFAULTS: "pictures"; else "pretrained", if a network is a directory; else "builtin" or "files"."""
    if not task.columns:
        return "pictures"
    networks = f"{config.teacher},{config.student}".split(",")
    if any(source not in models.PRESETS and os.path.isdir(source.replace("{seed}", "0")) for source in networks):
        return "pretrained"
    return "builtin" if task.data == data.BUILTIN else "files"


def is_used(config: Config, field):
    """Whether a method of the run uses the field."""
    return any(field.metadata["used_by"](METHODS[name]) for name in config.methods.split(","))


def check(config: Config):
    """Raise InputError on a value of another type, out of its range, or that no method of the run uses."""
    for name in str(config.methods).split(","):
        more = "" if PROGRAM == MORE_METHODS else f"; python {MORE_METHODS} has more, such as pkd"
        expect(name in METHODS, f"--methods {name}: expected some of {', '.join(METHODS)}{more}")
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
        expect(is_used(config, field), f"{flag}: no method of --methods {config.methods} uses it")


def resolve(config: Config):
    """A copy of the configuration, checked, with all defaults, device and absolute paths in it. Raises InputError."""
    config = dataclasses.replace(config)
    check(config)
    task = config.load(0)
    defaults = DEFAULTS[kind_of_run(config, task)] | {"quiz_size": len(task.quiz), "label_noise": task.label_noise}
    for field in dataclasses.fields(config):
        if getattr(config, field.name) is None and field.name in defaults and is_used(config, field):
            setattr(config, field.name, defaults[field.name])
    # The reviews may stand in for the directory.
    config.data = task.data if task.data == data.BUILTIN else os.path.abspath(task.data)
    expect("," not in config.student, f"--student {config.student}: expected one network")
    config.teacher, config.student = absolute(config.teacher), absolute(config.student)
    if config.device == "auto":
        config.device = DEVICES[-1]
    if config.precision == "auto":
        config.precision = "bf16" if bf16_in_hardware(config.device) else "fp32"
    expect(task.columns or not config.noise, "--noise: expected a task of sentences")
    return config


def absolute(networks):
    """The names of networks, with commas between; a path as an absolute one: a run may go on from another directory."""
    found = []
    for name in networks.split(","):
        if name not in models.PRESETS and os.path.exists(name.replace("{seed}", "0")):
            name = os.path.abspath(name)
            expect("," not in name, f"{name}: expected a path without commas")
        found.append(name)
    return ",".join(found)


def claim(config: Config):
    """The run's directory: --out, or the first of runs/TASK-files, runs/TASK-files-2, ... without a run in it (reviews:
    runs/sst2-builtin). Making its seed0 claims it, so that of two runs at once one has it. Raises InputError."""
    base = config.out or f"runs/{config.task}-{'builtin' if config.data == data.BUILTIN else 'files'}"
    for n in itertools.count(1):
        out = base if n == 1 else f"{base}-{n}"
        with contextlib.suppress(FileExistsError):
            Path(out, "seed0").mkdir(parents=True)
            return out
        expect(not config.out, f"--out {out}: holds a run; expected a new one, or --resume {out}")


def depends_on(config: Config, task: data.Task):
    """{what a run reads: its check sum}: seed 0's splits, the saved networks of all seeds. Raises CheckpointError."""
    splits = [task.train, task.quiz, task.dev, task.test]
    found = {f"the splits of {task.data}": [split.checksum() for split in splits if split]}
    for seed in range(config.seeds):
        for source in config.sources(seed).values():
            if source not in models.PRESETS:
                with models.expecting(f"{source}: {models.EXPECTED}"):
                    found[source] = zlib.crc32(models.saved_file(source).read_bytes())
    return found


def bf16_in_hardware(device):
    """Whether the device multiplies in bfloat16. A processor that does not takes 10 to 17 times as long as in fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(able for name, able in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


class Method(NamedTuple):
    """What makes a method. A script adds one by `METHODS["name"] = Method(...)`."""

    # "none": there is no teacher. "fixed": it does not change. "learning": at every `meta_every`-th step after the
    # warm-up `step` is taken, in which the teacher learns; at the others distil_step.
    teacher: str
    quiz_labels: bool  # does the student train on the quiz's labels, too?
    # loss(stage) gives L_S, a function (student_outputs, teacher_outputs, labels) -> scalar. Its teacher_outputs are
    # None in the warm-up, and always where there is no teacher.
    loss: Callable
    # step(stage, batch, rows, k) takes training step k on the batch, whose examples have these row numbers in train and
    # quiz, and returns {"loss": L_S, ...}, tensors for the log. It is not called in the warm-up.
    step: Callable
    # states(student's configuration, a network's own) gives the layers whose [CLS] states that network returns beside
    # its logits. None: networks return logits.
    states: Callable | None = None


def distil_step(stage, batch, rows, k):
    """The student learns, and the teacher stays as it is: plain KD or, without a teacher, fine-tuning."""
    return {"loss": metadistil.real_update(stage.learner, stage.teachers, batch, stage.optimizer, stage.loss)}


def meta_step(stage, batch, rows, k):
    """One turn of Algorithm 1. A step that is logged also measures the quiz loss before the pilot."""
    config, quiz = stage.config, stage.context.quiz(k)
    found = {}
    if stage.is_logged(k):
        theta_S = dict(stage.learner.named_parameters())
        found["quiz_loss_before"], _ = metadistil.quiz_gradient(stage.learner, theta_S, quiz, stage.quiz_loss)
    L_S, result = metadistil.metadistil_step(
        stage.learner, stage.teachers, batch, quiz, stage.optimizer, stage.teacher_optimizer,
        pilot_lr=config.pilot_lr, loss=stage.loss, quiz_loss=stage.quiz_loss, mode=config.meta_grad,
    )  # fmt: skip
    return found | {"loss": L_S, "quiz_loss_after": result.quiz_loss}


def logits_loss(stage):
    """L_S of kd: metadistil's kd_loss; for a regression, squared errors."""
    config = stage.config
    if stage.task.label_names:
        return functools.partial(metadistil.kd_loss, alpha=config.alpha, temperature=config.temperature)
    return functools.partial(regression_kd_loss, alpha=config.alpha)


# Which labels each student sees (--learn-quiz adds the quiz's), and whether its teacher learns: this table decides.
# Before it teaches, every teacher is trained as by finetune, on the labels of train and quiz. So the quiz is new to
# MetaDistil's student, and not to its teacher.
METHODS = {
    "finetune": Method("none", quiz_labels=True, loss=logits_loss, step=distil_step),
    "kd": Method("fixed", quiz_labels=True, loss=logits_loss, step=distil_step),
    "metadistil": Method("learning", quiz_labels=False, loss=logits_loss, step=meta_step),
}


def regression_kd_loss(student_outputs, teacher_outputs, labels, alpha=0.5):
    """kd_loss of a regression, outputs (B, 1), labels (B,): squared errors to teacher and labels -> scalar."""
    hard = (student_outputs[:, 0] - labels).square().mean()
    if teacher_outputs is None:
        return hard
    soft = (student_outputs - teacher_outputs).square().mean()
    return alpha * soft + (1 - alpha) * hard


def join():
    """Under torchrun, meet the other processes; all but the first are silent."""
    if SEVERAL:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        signal.signal(signal.SIGTERM, lost)  # torchrun ends all when one has ended
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")


def lost(*_):
    """End this process, for another of the run has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or torchrun could have the line printed twice
    print(f"{PROGRAM}: stopped, for another process has ended; to go on: the same torchrun, --resume", file=sys.stderr)
    leave(2)


def leave(status):
    """End the process. Where there are several, by os._exit: a thread of torch may still wait for another process, and
    would make sys.exit abort."""
    if not SEVERAL:
        sys.exit(status)
    sys.stdout.flush()
    os._exit(status)


def from_first(value):
    """What the first process has for `value`, in all of them."""
    values = [value]
    if SEVERAL:
        distributed.broadcast_object_list(values)
    return values[0]


def own_part(rows):
    """This process's part of a batch's rows. If there are fewer rows than processes, each takes all."""
    return rows[RANK::RANKS] if len(rows) >= RANKS else rows


class Reader(nn.Module):
    """A network that picks its role's inputs of a batch {role: inputs}: they are in the ids of its own tokeniser. Its
    matrix products are in bfloat16 if the run says so."""

    def __init__(self, network: nn.Module, role, device, precision):
        super().__init__()
        self.network, self.role = network, role
        self.layers = ()  # whose states the method asks for
        self.autocast = functools.partial(
            torch.autocast, device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
        )

    def read(self, **inputs):
        """The network's outputs of inputs by name."""
        if self.layers:
            inputs = inputs | {"layers": self.layers}
        with self.autocast():
            return self.network(**inputs)

    def forward(self, **inputs_by_role):
        """The network's outputs of a batch for all roles."""
        return self.read(**inputs_by_role[self.role])


@torch.no_grad()
def predict(read: Callable, examples: data.Encoded) -> torch.Tensor:
    """The logits (N, K), in the examples' order, computed in batches of like length. The caller sets eval mode."""
    rows = np.argsort(examples.lengths, kind="stable")
    logits = []
    for first in range(0, len(rows), 256):
        inputs, _ = examples.batch(rows[first : first + 256])
        outputs = metadistil.forward(read, inputs)
        logits.append(metadistil.tensors_of(outputs)[0].cpu())
    return torch.cat(logits)[np.argsort(rows)]


def take_over(network, trained, saved, labels):
    """Load a trained network's weights into a fresh one. If it was trained for the same labels in another order, the
    rows of its last layer change places; if for other labels, that layer stays fresh. Case does not count."""
    weights, labels = trained.state_dict(), [name.lower() for name in labels]
    known = saved["labels"] and [name.lower() for name in saved["labels"]]
    if known != labels:
        head = network.classifier.state_dict(prefix="classifier.")
        if known and sorted(known) == sorted(labels):
            order = [known.index(label) for label in labels]
            head = {name: weights[name][order] for name in head}
        weights |= head
    network.load_state_dict(weights)


class Seed:
    """One seed's splits as each role reads them, {role: {split: Encoded}}, and how its networks begin."""

    def __init__(self, config: Config, seed):
        self.config, self.seed = config, seed
        self.task = config.load(seed)
        self.sources = config.sources(seed)
        train_and_quiz = self.task.train + self.task.quiz  # train first, then quiz
        self.steps_per_epoch = -(-len(train_and_quiz) // config.batch_size)
        # The tokeniser of networks that begin without one.
        self.own_tokenizer = functools.cache(lambda: data.train_tokenizer(train_and_quiz.texts))
        self.origins = {source: self.origin(source) for source in set(self.sources.values())}
        splits = {"train+quiz": train_and_quiz, "dev": self.task.dev, "test": self.task.test}
        splits = {name: split for name, split in splits.items() if split and split.labels is not None}
        students_splits = splits
        if config.noise:
            noisy = data.noisy(self.task.train, config.noise, seed)
            students_splits = splits | {"train+quiz": noisy + self.task.quiz}
        encode = functools.cache(data.encode)  # roles of one tokeniser share what they read
        self.tokenizers = {}
        self.encoded = {}
        for role, source in self.sources.items():
            own = students_splits if role == "student" else splits
            shape, tokenizer = self.origins[source]
            longest = getattr(shape, "max_tokens", 1)  # of pictures 1
            self.tokenizers[role] = tokenizer
            self.encoded[role] = {name: encode(tokenizer, split, config.device, longest) for name, split in own.items()}

    def file(self, title):
        """Where the network of that title is saved."""
        return Path(self.config.out, f"seed{self.seed}", f"{title.replace(' ', '-')}.pt")

    def origin(self, source):
        """(configuration, tokeniser) of a network that suits the task: a preset, or a saved network. A network that
        reads pictures has the tokeniser None. Raises InputError, CheckpointError."""
        shape, saved = models.PRESETS.get(source), {}
        if not shape:
            network, saved = models.read_saved(source)
            shape = network.config
        reads = "sentences" if self.task.columns else "pictures"
        expect(models.KINDS[models.kind_of(shape)].reads == reads, f"{source}: expected a network that reads {reads}")
        if source.endswith(".pt"):
            suits = saved["labels"] == self.task.label_names
            expect(suits, f"{source}: expected a network for {self.task.name}'s labels")
        if reads == "pictures":
            return shape, None
        if not saved:
            return shape, self.own_tokenizer()
        with models.expecting(f"{source}: expected a tokeniser in it, and a row of the network for each of its words"):
            tokenizer = data.Tokenizer.from_str(saved["tokenizer"])
            words = max(tokenizer.get_vocab().values()) + 1
            expect(words <= shape.vocab_size, f"{words} words for {shape.vocab_size} rows")
            return shape, tokenizer

    def network(self, role, saved=""):
        """The role's network in a Reader: as it always begins or, with `saved`, a title, as a stage left it."""
        config = self.config
        source = self.sources[role]
        shape, tokenizer = self.origins[source]
        if saved:
            network, _ = models.read_saved(self.file(saved))
        else:
            trained = None if source in models.PRESETS else models.read_saved(source)
            changes = {"num_labels": self.task.num_labels, "dropout": config.dropout}
            if tokenizer and not trained:
                changes["vocab_size"] = tokenizer.get_vocab_size()
            torch.manual_seed(2 * self.seed + list(self.sources).index(role))
            network = models.build(shape, **changes)
            if trained:
                take_over(network, *trained, self.task.label_names)
        if role == "student" and config.student_layers:
            with models.expecting(f"--student-layers {config.student_layers}: expected numbers of layers of {source}"):
                layers = [int(layer) for layer in config.student_layers.split(",")]
                expect(min(layers) >= 0, "0 is the first")
                network.keep_layers(layers)
        return Reader(network, role, config.device, config.precision).to(config.device)

    def batch(self, rows, step=None):
        """({role: inputs}, labels (B,)) of rows of train and quiz. With a step, pictures are cropped and mirrored."""
        crop_seed = None if step is None else [self.seed, 7, step]
        inputs = {}
        batch_of = functools.cache(lambda encoded: encoded.batch(rows, crop_seed))  # roles of one tokeniser share it
        for role, splits in self.encoded.items():
            inputs[role], labels = batch_of(splits["train+quiz"])
        return inputs, labels

    def quiz(self, step):
        """The quiz batch of a step, as many examples of each class: ({role: inputs}, labels (B,))."""
        n = len(self.task.train)
        labels = self.encoded["student"]["train+quiz"].labels[n:]
        return self.batch(own_part(n + data.sample_quiz(labels, self.config.quiz_batch_size, self.seed, step)))

    def scores(self, reader: Reader, *splits):
        """{"dev accuracy": 0.81, ...}: the task's metrics on those of the splits that have labels."""
        found = {}
        reader.eval()
        for split in splits:
            encoded = self.encoded[reader.role].get(split)
            if encoded:
                logits = predict(reader.read, encoded).numpy()
                expect(np.isfinite(logits).all(), f"{reader.role}: expected finite outputs; try a tenth of the rates")
                predictions = logits.argmax(axis=-1) if self.task.label_names else logits[:, 0]
                for name in self.task.metrics:
                    found[f"{split} {name}"] = METRICS[name](predictions, encoded.labels)
        return found


class Stage:
    """The training of one network, `learner`: a student's, by the method `name`; or a teacher's own, from labels,
    before it teaches, where `name` is its role. `learners` are all networks that change, by
    title: "teacher before", "student kd", "teacher after metadistil"."""

    def __init__(self, context: Seed, name):
        self.context, self.name = context, name
        self.config, self.task = context.config, context.task
        of_logits = logits_loss(self)
        # L_q is kd's L_S without a teacher: of the logits and the labels alone, in pkd, too.
        self.quiz_loss = lambda logits, labels: of_logits(logits, None, labels)
        self.teachers = []
        self.teacher_optimizer = None
        self.current_pass = None  # the pass over the data that `self.batches` belongs to; None before the first
        config = self.config
        role = name if name in context.sources else "student"
        self.learner = context.network(role)
        if role == "student":
            self.method = METHODS[name]
            self.rate = config.student_lr
            epochs, warmup_epochs = config.epochs, config.warmup_epochs
            self.learners = {f"student {name}": self.learner}
            if self.method.teacher != "none":
                _, *roles = context.sources  # but for the student
                self.teachers = [context.network(role, saved=f"{role} before") for role in roles]
            if self.method.teacher == "learning":
                self.learners |= {f"{teacher.role} after {name}": teacher for teacher in self.teachers}
                theta_T = nn.ModuleList(self.teachers).parameters()
                self.teacher_optimizer = OPTIMIZERS[config.teacher_optimizer](theta_T, lr=0.0)
        else:  # a teacher learns as by finetune, at a rate of its own; one in a .pt has learnt already
            self.method = METHODS["finetune"]
            self.rate = config.finetune_lr
            ready = context.sources[name].endswith(".pt")
            epochs, warmup_epochs = 0 if ready else config.teacher_epochs, 0
            self.learners = {f"{name} before": self.learner}
        self.warmup_steps = warmup_epochs * context.steps_per_epoch
        self.total = self.warmup_steps + epochs * context.steps_per_epoch
        self.optimizer = OPTIMIZERS[config.optimizer](self.learner.parameters(), lr=0.0)
        if self.method.states:
            for reader in [self.learner, *self.teachers]:
                reader.layers = self.method.states(self.learner.network.config, reader.network.config)
        self.loss = self.method.loss(self)
        self.changing = [*self.learners.values(), *filter(None, [self.optimizer, self.teacher_optimizer])]

    def state(self):
        """What a checkpoint holds of the stage: networks and optimisers that change, where dropout's draws stand."""
        own = [generator.get_rng_state() for generator in RANDOM]
        everyones = [own] * RANKS
        if SEVERAL:
            distributed.all_gather_object(everyones, own)
        return {"parts": [part.state_dict() for part in self.changing], "rng": everyones}

    def restore(self, state):
        """Go on from a checkpoint."""
        for part, saved in zip(self.changing, state["parts"]):
            part.load_state_dict(saved)
        for generator, saved in zip(RANDOM, state["rng"][RANK]):
            generator.set_rng_state(saved)

    def rows(self, k):
        """The row numbers in train and quiz of step k's training batch."""
        context = self.context
        batch_size = self.config.batch_size
        lengths = context.encoded["student"]["train+quiz"].lengths
        sees_quiz_labels = self.method.quiz_labels or self.config.learn_quiz
        if not sees_quiz_labels:
            lengths = lengths[: len(self.task.train)]
        # All students take the same number of steps. Without the quiz a pass over the data is shorter than an epoch.
        current_pass, place = divmod(k, -(-len(lengths) // batch_size))
        if self.current_pass != current_pass:
            self.current_pass = current_pass
            self.batches = data.batches_of(lengths, batch_size, context.seed, current_pass)
        return own_part(self.batches[place])

    def is_logged(self, k):
        """Whether step k has a line in metrics.jsonl. Counted from the end of the warm-up, so that steps at which the
        teacher learns are among them."""
        return (k - self.warmup_steps) % self.config.log_every == 0 or k + 1 == self.total

    def share(self, k):
        """The share of the teacher's rate at step k."""
        return SCHEDULES[self.config.schedule](k - self.warmup_steps, self.total - self.warmup_steps)

    def step(self, k):
        """Take step k, at the rates of its schedule -> {"loss": L_S, ...}."""
        config = self.config
        since_warmup = k - self.warmup_steps
        set_rate(self.optimizer, self.rate * SCHEDULES[config.schedule](k, self.total))
        rows = self.rows(k)
        batch = self.context.batch(rows, k)
        if since_warmup < 0:  # the student learns from labels alone
            return {"loss": metadistil.real_update(self.learner, [], batch, self.optimizer, self.loss)}
        if self.method.teacher == "learning":
            if since_warmup % config.meta_every:  # the teacher stays as it is
                return distil_step(self, batch, rows, k)
            set_rate(self.teacher_optimizer, config.teacher_lr * self.share(k))
        return self.method.step(self, batch, rows, k)


def set_rate(optimizer, rate):
    """The rate of the optimiser's next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def take(context: Seed, name, journal):
    """Take the stage's steps, from the checkpoint if it was under way; log, score dev after each epoch, save."""
    config = context.config
    stage = Stage(context, name)
    torch.manual_seed(1000 + context.seed + 10**6 * RANK)  # for dropout
    state = {"step": 0, "seconds": 0.0, "by_epoch": {title: [] for title in stage.learners}}
    if journal["under_way"]:
        state = journal["under_way"]
        stage.restore(state)
    noted, last_saved, last_shown = {}, time.monotonic(), -np.inf  # noted: for the line of progress
    for k in range(state["step"], stage.total):
        started, last = time.perf_counter(), k + 1 == stage.total
        found = {name: value.item() for name, value in stage.step(k).items()}
        loss = found["loss"]
        entry = {"seed": context.seed, "stage": name, "step": k + 1}
        expect(np.isfinite(loss), f"{entry}: expected a finite loss, found {loss}; try a tenth of the rates")
        state |= {"step": k + 1, "seconds": state["seconds"] + time.perf_counter() - started}
        if stage.is_logged(k):
            journal["log"].append(entry | found)
            noted["loss"] = loss
        epoch, left = divmod(k + 1, context.steps_per_epoch)
        if not left:
            scores = {}
            for title, learner in stage.learners.items():
                scores[title] = context.scores(learner, "dev")
                noted[learner.role], *_ = scores[title].values()
                state["by_epoch"][title].append(noted[learner.role])
            journal["log"].append(entry | {"epoch": epoch, "scores": scores})
        now = time.monotonic()
        if last or now - last_shown >= SHOW_SECONDS:
            show(f"seed {context.seed} {name}", stage.total, state, noted)
            last_shown = now
        if not last and from_first(now - last_saved >= config.checkpoint_seconds):
            save_journal(config, journal | {"under_way": state | stage.state()})
            last_saved = now
    finish(stage, journal, state)


def finish(stage: Stage, journal, state):
    """Save the stage's networks, score them on dev and, this once, on test, and note the results."""
    context, task = stage.context, stage.task
    metric, labels = task.metrics[0], task.dev.labels
    for title, learner in stage.learners.items():
        tokenizer = context.tokenizers[learner.role]
        whole = models.to_save(learner.network, tokenizer.to_str() if tokenizer else None, task.label_names)
        whole |= {"title": title, "columns": task.columns}
        write_whole(context.file(title), whole)
        scores = context.scores(learner, "dev", "test")
        score = scores[f"dev {metric}"]
        if title.endswith("before"):
            chance = max(METRICS[metric](0 * labels + label, labels) for label in np.unique(labels))
            if score < chance + 0.02:
                print(f"note: {title}: dev {metric} {score:.3f}; one answer to everything has {chance:.3f}")
        journal["log"].append({"seed": context.seed, "stage": stage.name, "model": title, "final_scores": scores})
        result = {
            "scores": scores,
            "by_epoch": state["by_epoch"][title],
            "parameters": sum(theta.numel() for theta in learner.parameters()),
            "seconds": state["seconds"],  # of the stage: of one that trains two networks, both have all
        }
        journal["results"].setdefault(title, []).append(result)
    journal.update(done=journal["done"] + 1, under_way=None)
    save_journal(context.config, journal)


def show(what, total, state, noted):
    """Print the progress."""
    left = round(state["seconds"] / state["step"] * (total - state["step"]))
    line = f"{what:<18} {state['step']}/{total}  {left // 60}:{left % 60:02} left"
    for name, value in noted.items():
        line += f"  {name} {value:.3f}"
    if RANK == 0:
        print(line, file=sys.stderr)


def write_whole(path: Path, content):
    """Write text, or a dict by torch.save: under `path` stands the old file or the whole new one, never a part. The
    first process writes, the others wait for it."""
    if RANK == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            if isinstance(content, dict):
                torch.save(content, file)
            else:
                file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    from_first(None)


def save_journal(config: Config, journal):
    """Write metrics.jsonl and the checkpoint, which is the journal. It holds format, config, reads (check sums), ranks
    (number of processes), done (number of stages), results ({title: [a dict for each seed]}), log and under_way: None,
    or {step, seconds, by_epoch (scores on dev), parts and rng (see `Stage.state`)} of the stage that has begun."""
    out = Path(config.out)
    write_whole(out / "metrics.jsonl", "".join(f"{json.dumps(entry)}\n" for entry in journal["log"]))
    write_whole(out / "checkpoint.pt", journal)


def read_journal(out):
    """The configuration and the journal of a run, from its checkpoint. Raises CheckpointError."""
    path = Path(out, "checkpoint.pt")
    with models.expecting(f"{path}: expected the checkpoint of a run"):
        journal = models.load_whole(path)
        return Config(**journal["config"] | {"out": out}), journal


def pearson(predictions, labels):
    """Pearson's correlation; 0 where either is constant. For two classes this is Matthews' coefficient."""
    constant = np.ptp(predictions) == 0 or np.ptp(labels) == 0
    return 0.0 if constant else float(np.corrcoef(predictions, labels)[0, 1])


def ranked(values):
    """Ranks (N,) from 1; ties share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


METRICS = {  # of predictions p (N,) and labels y (N,)
    "accuracy": lambda p, y: float((p == y).mean()),
    "f1": lambda p, y: float(2 * (p * y).sum() / max(1, (p + y).sum())),  # of class 1; 0 without any hit
    "matthews": pearson,
    "pearson": pearson,
    "spearman": lambda p, y: pearson(ranked(p), ranked(y)),
}
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
    t = T_QUANTILES[min(n, 10) - 2]  # beyond 10 seeds on the safe side
    return difference.mean(), t * difference.std(ddof=1) / np.sqrt(n)


def paired_difference(ours, theirs):
    """Points: "+4.1 [+2.0, +6.2]", the mean and its 95% interval; with one seed "+4.1"."""
    mean, half = interval(ours, theirs)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]" if len(ours) > 1 else f"{mean:+.1f}"


def verdict(ours, theirs):
    """Ahead or behind, where the interval of the difference leaves out zero; else level."""
    mean, half = interval(ours, theirs)
    if abs(mean) <= half:
        return "level"
    return "ahead" if mean > 0 else "behind"


def compared(task: data.Task, results):
    """The score that is compared, the task's first metric on its last split; and {title: (its scores (seeds,), its
    rival's)}: a student's rival is kd's student, a taught teacher's is itself before it taught."""
    *_, last = results["teacher before"][0]["scores"]
    main = f"{last.split()[0]} {task.metrics[0]}"
    scores = {title: np.array([one["scores"][main] for one in seeds]) for title, seeds in results.items()}
    pairs = {}
    for title in results:
        rival = "student kd" if title.startswith("student") else re.sub(" after.*", " before", title)
        if rival in results and rival != title:
            pairs[title] = scores[title], scores[rival]
    return main, pairs


def blocks(scores, low, high):
    """Scores by epoch as "▂▅▇█", `low` the lowest block and `high` the highest; at most eight of the epochs."""
    places = np.linspace(0, len(scores) - 1, min(len(scores), 8)).round()
    drawn = ""
    for place in places:
        share = (scores[int(place)] - low) / max(high - low, 1e-9)
        drawn += "▁▂▃▄▅▆▇█"[round(7 * share)]
    return drawn


def table(config: Config, task: data.Task, results):
    """The run's tables, scores and costs with a row for each network, and what their numbers are, as Markdown."""
    first, (main, pairs) = results["teacher before"][0], compared(task, results)
    columns = [*first["scores"]]
    curves = {title: np.mean([one["by_epoch"] for one in seeds], axis=0) for title, seeds in results.items()}
    points = np.concatenate([*curves.values()])
    scores = [["model", *columns, "gain"]]
    costs = [["model", "by epoch", "parameters", "times smaller", "seconds"]]
    for title in sorted(results, key=lambda title: title.startswith("student")):
        seeds, size = results[title], results[title][0]["parameters"]
        found = [spread(np.array([one["scores"][column] for one in seeds])) for column in columns]
        scores.append([title, *found, paired_difference(*pairs[title]) if title in pairs else ""])
        by_epoch = blocks(curves[title], points.min(), points.max())
        seconds = np.mean([one["seconds"] for one in seeds])
        costs.append([title, by_epoch, f"{size:,}", f"{first['parameters'] / size:.1f}", f"{seconds:.0f}"])
    return f"""{layout(scores)}
{layout(costs)}
{task.name} ({task.data}): {len(task.train):,} training examples, {task.label_noise:.0%} mislabelled, \
{len(task.quiz):,} in the quiz; {config.seeds} seed(s); {config.precision}.
Percent, after all epochs: {len(first["by_epoch"])} of a teacher, {config.warmup_epochs} + {config.epochs} of a student.
Gain, {main}: a student's over kd, a teacher's over what it was; of several seeds paired, with its 95% interval.
By epoch: {columns[0]}, from {100 * points.min():.1f} (lowest block) to {100 * points.max():.1f} (highest).
Seconds of training; a taught teacher and its student are trained together, so both show the whole.
"""


def layout(rows):
    """Rows of cells, the first one the heading, as a Markdown table of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    heading, *others = rows
    rule = ["-" * width for width in widths]
    text = ""
    for row in [heading, rule, *others]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        text += f"| {' | '.join(cells)} |\n"
    return text


def what_next(config: Config, task: data.Task, results):
    """What the table shows, and commands to go on with."""
    main, pairs = compared(task, results)
    said = []
    for title, pair in pairs.items():
        if title.startswith("student"):
            by_rule = f" {verdict(*pair)}," if config.seeds > 1 else ""
            said.append(f"{title.removeprefix('student ')}{by_rule} {paired_difference(*pair)}")
    found = f"Compared with kd, {main}: {'; '.join(said) or 'nothing in this run'}.\n"
    if config.seeds == 1:
        found += "One seed decides little; with --seeds 5 there are intervals.\n"
    if len(task.columns) == 1:
        found += f'Ask the models:  python train.py --out {config.out} --predict "NLP is fun."\n'
    return f"{found}See their page:  python notebooks/demo.py {config.out}"


class Run(NamedTuple):
    """What a run leaves."""

    config: Config
    out: Path
    results: dict[str, list[dict]]  # {title: [of each seed {"scores", "by_epoch", "parameters", "seconds"}]}
    table: str

    @property
    def models(self) -> dict[str, "Trained"]:
        """Seed 0's trained networks by title, read from their files."""
        return load_all(self.out)


def run(config: Config, journal: dict | None = None) -> Run:
    """A whole run, or by its journal the rest of one. Raises InputError, CheckpointError. After Ctrl-C it raises
    KeyboardInterrupt; --resume then takes the steps since the last checkpoint again."""
    begins = journal is None
    if begins:
        config = resolve(config)
    check(config)
    of_seed = functools.lru_cache(1)(functools.partial(Seed, config))  # one seed's data at a time
    _, *teachers = config.sources(0)
    names = list(dict.fromkeys([*teachers, *config.methods.split(",")]))
    task = config.load(0)
    reads = depends_on(config, task)
    if begins:
        check_networks(config, of_seed(0))
        config.out = from_first(claim(config) if RANK == 0 else None)
        journal = {"format": models.FORMAT, "config": dataclasses.asdict(config), "reads": reads, "ranks": RANKS,
                   "done": 0, "results": {}, "log": [], "under_way": None}  # fmt: skip
        save_journal(config, journal)
    expect(journal["ranks"] == RANKS, f"{config.out}: expected {journal['ranks']} process(es) to go on, found {RANKS}")
    for what, checksum in journal["reads"].items():
        expect(reads.get(what) == checksum, f"{what}: changed since the run began; expected the same to go on")
    out = Path(config.out)
    write_whole(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2))
    introduce(config, task)
    try:
        for seed, name in list(itertools.product(range(config.seeds), names))[journal["done"] :]:
            take(of_seed(seed), name, journal)
    except KeyboardInterrupt:
        command = "the same torchrun, with" if SEVERAL else f"python {PROGRAM}"
        raise KeyboardInterrupt(f"stopped; to go on: {command} --resume {out}") from None
    results = journal["results"]
    text = table(config, task, results)
    write_whole(out / "table.md", text)
    print(f"\n{text}\n{what_next(config, task, results)}")
    return Run(config, out, results, text)


def introduce(config: Config, task: data.Task):
    """Print what the run is about, and what was decided for the user."""
    print(data.BUILTIN_BANNER.format(share=task.label_noise) if task.data == data.BUILTIN else f"data: {task.data}")
    for note in task.notes:
        print(f"note: {note}")
    if config.precision == "bf16" and not bf16_in_hardware(config.device):
        print("note: this processor has no bfloat16; expect 10 to 17 times the usual time, or take --precision auto")
    if SEVERAL and not task.columns:
        print("note: while pictures are trained, BatchNorm takes the statistics of each process's own part of a batch")
    how = f"{config.device}, {RANKS} process(es) of {torch.get_num_threads()} threads, {config.precision}"
    print(f"{how}; everything is written to {config.out}/")


def check_networks(config: Config, context: Seed):
    """Build the first seed's networks, and each again from what a file would hold of it: what cannot be built or saved
    fails before the run begins. Raises InputError and CheckpointError, as do the methods that ask for states."""
    shapes = []
    for role in context.sources:
        network = context.network(role).network
        with models.expecting(f"{type(network).__name__}: expected a configuration that describes it"):
            saved = models.to_save(network)
            shapes.append(models.KINDS[saved["kind"]].config(**saved["config"]))
            models.build(shapes[-1]).load_state_dict(saved["weights"])
    for name in config.methods.split(","):
        if METHODS[name].states:
            for shape in shapes:
                METHODS[name].states(shapes[0], shape)


class Trained:
    """A trained network out of its file, with its tokeniser and the names of its classes. Raises CheckpointError."""

    def __init__(self, path):
        self.network, saved = models.read_saved(path)
        self.network.eval()
        self.tokenizer = saved["tokenizer"] and data.Tokenizer.from_str(saved["tokenizer"])
        self.labels = saved["labels"]
        expect(self.labels is not None, f"{path}: expected a network with a trained head")
        self.title = saved.get("title")
        # The names of its texts, one or two; of pictures none. A published network's file does not say.
        self.columns = saved.get("columns", ("sentence",))

    def predict(self, examples: list) -> list[tuple]:
        """For each sentence, each (sentence, sentence) of a task of pairs, or each picture in bytes (3, 32, 32),
        (label, {name: probability}); of a regression (score, {}). Raises InputError on another kind of text."""
        expect(not isinstance(examples, str), "predict: expected a list of sentences, found one sentence")
        if not len(examples):
            return []
        for text in examples if self.columns else []:
            parts = text if len(self.columns) > 1 and isinstance(text, (tuple, list)) else [text]
            fits = len(parts) == len(self.columns) and all(
                isinstance(part, str) and not re.search("[\ud800-\udfff]", part)  # what Python makes of other bytes
                for part in parts
            )
            expect(fits, f"expected {' and '.join(self.columns)}, in UTF-8, found {text!r}")
        examples = np.fromiter(examples, object) if self.columns else np.stack(examples)
        longest = getattr(self.network.config, "max_tokens", 1)
        encoded = data.encode(self.tokenizer, data.Split(examples, None), max_tokens=longest)
        logits = predict(self.network, encoded)  # (N, K)
        if not self.labels:
            return [(score, {}) for score in logits[:, 0].tolist()]
        found = []
        for p in metadistil.log_softmax(logits).exp().tolist():
            probabilities = dict(zip(self.labels, p))
            found.append((max(probabilities, key=probabilities.get), probabilities))
        return found


load = Trained  # load("runs/NAME/seed0/student-metadistil.pt").predict(["NLP is fun."])


def load_all(out) -> dict[str, Trained]:
    """{title: Trained} of the networks that a run has saved for seed 0, teachers first. Raises InputError,
    CheckpointError."""
    paths = Path(out, "seed0").glob("*.pt")
    in_order = sorted(paths, key=lambda path: ("student" in path.stem, "after" in path.stem, path))
    expect(in_order, f"{out}: expected a run with a trained network, found none; start one, or --resume it")
    return {network.title: network for network in map(load, in_order)}


def print_predictions(out, sentences):
    """Print for each sentence, or pair with a tab between, what each network of seed 0 says, and how sure it is."""
    expect(out, "--predict: expected --out with the directory of a run")
    trained = load_all(out)
    expect(all(network.columns for network in trained.values()), f"{out}: expected a network that reads sentences")
    for line in sentences:
        line = line.strip("\r\n ")
        print(line)
        for title, network in trained.items():
            text = tuple(line.split("\t", 1)) if len(network.columns) == 2 else line
            label, probabilities = network.predict([text])[0]
            said = f"{label:<10} {probabilities[label]:6.1%}" if probabilities else f"{label:.2f}"
            print(f"  {title:<26} {said}")


def parse(arguments):
    """What the command line gives: a flag for each field of Config, then --resume and --predict. Raises InputError."""
    flags = argparse.ArgumentParser(PROGRAM, None, __doc__, allow_abbrev=False)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.argument_default = argparse.SUPPRESS
    flags.epilog = f"methods: {', '.join(METHODS)}\n\nOther defaults depend on the kind of run:\n"
    flags.epilog += "\n".join(f"{kind}: {settings}" for kind, settings in DEFAULTS.items())
    flags.error = lambda message: expect(False, message)  # not argparse's own exit
    for field in dataclasses.fields(Config):
        text, valid, _ = field.metadata.values()
        if field.type is str and valid:
            text += f": {', '.join(valid)}"
        if field.default:
            text += f" [{field.default}]"
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "metavar": ""}
        flags.add_argument(f"--{field.name.replace('_', '-')}", help=text.replace("%", "%%"), **kind)
    flags.add_argument("--resume", metavar="RUN", help="go on with a stopped run; it ends with the same numbers")
    flags.add_argument("--predict", metavar="SENTENCE", nargs="?", help="what the run in --out says of it, or of stdin")
    return vars(flags.parse_args(arguments))


def main(arguments: list[str] | None = None):
    """Run the command line. What a user can mend ends in one line and exit status 2."""
    try:
        join()
        given = parse(arguments)
        if "predict" in given:
            sentences = sys.stdin if given["predict"] is None else [given["predict"]]
            return print_predictions(given.get("out"), sentences)
        if "resume" in given:
            expect(len(given) == 1, f"--resume {given['resume']}: expected no other flag, the run has its own")
            finished = run(*read_journal(given["resume"]))
        else:
            finished = run(Config(**given))
        if RANK == 0:
            with contextlib.suppress(ImportError, FileNotFoundError):  # no matplotlib, or no such script: no curves
                runpy.run_path(str(Path(__file__).with_name("notebooks") / "curves.py"))["draw"](finished.out)
        from_first(None)  # waits for the first
        if SEVERAL:
            leave(0)
    except (InputError, models.CheckpointError, OSError) as error:
        if RANK == 0:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(2)  # till the first process has said it
        leave(2)
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        leave(130)
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        lost()


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
