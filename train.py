"""The main job: train a teacher, then a student by each method, and print one table.

    python train.py --task sst2

Every student starts from the same weights, learns from the same labels and takes the same
number of steps. A run is a list of stages (the teacher, then each method; for each seed), and a
stage is a function of the configuration and the seed alone: it can be killed, resumed, repeated.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import data
import metadistil
import models
from data import InputError
from metadistil import META_GRADIENT_MODES

METHODS = ("finetune", "kd", "metadistil")

# What a value may be: a test of it, and the words that follow "expected".
COUNT = (lambda value: value >= 1, "a whole number, at least 1")
NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "a finite number, at least 0")
POSITIVE = (lambda value: 0 < value < math.inf, "a finite number above 0")
SHARE = (lambda value: 0 <= value <= 1, "a number from 0 to 1")


def one_of(*choices):
    """A value may be one of the choices."""
    return choices.__contains__, "one of " + ", ".join(choices)


def option(group: str, help: str, valid=None, default=None, **by_data):
    """A field of Config: its group in --help, its meaning, what it may be, its default (for each kind of data)."""
    return dataclasses.field(default=default, metadata=locals())


@dataclasses.dataclass
class Config:
    """Everything a run depends on. Each field is a flag; None means that the data decide."""

    task: str = option("data", "the task", one_of(*data.GLUE), "sst2")
    data: str = option("data", "directory of the task's files, or 'builtin'", None, data.DEFAULT_DATA)
    quiz_size: int = option("data", "training examples set aside for the quiz [one in ten; builtin: 300]", COUNT)
    train_size: int = option("data", "train on a random subset of that many examples [all]", COUNT)
    label_noise: float = option("data", "share of the training labels that is wrong [0; builtin: 0.4]", SHARE)
    vocab_size: int = option("data", "most entries of the WordPiece vocabulary", COUNT, 8000)
    teacher: str = option("models", "the teacher's preset", one_of(*models.PRESETS), builtin="tiny", files="mini")
    student: str = option("models", "the students' preset", one_of(*models.PRESETS), builtin="micro", files="tiny")
    dropout: float = option("models", "share of units dropped while training", SHARE, builtin=0.1, files=0.2)
    methods: str = option("training", "the students to train, comma-separated", None, ",".join(METHODS))
    teacher_epochs: int = option("training", "epochs of the teacher's own training", COUNT, builtin=40, files=3)
    warmup_epochs: int = option("training", "epochs on labels alone, first", NOT_NEGATIVE, builtin=5, files=1)
    epochs: int = option("training", "epochs of each student after that", COUNT, builtin=50, files=2)
    batch_size: int = option("training", "training examples a step", COUNT, builtin=128, files=64)
    finetune_lr: float = option("training", "AdamW rate of the teacher's training", POSITIVE, builtin=5e-4, files=5e-4)
    student_lr: float = option("training", "AdamW rate of the students", POSITIVE, builtin=2e-3, files=5e-4)
    weight_decay: float = option("training", "AdamW weight decay, of teacher and students", NOT_NEGATIVE, 0.01)
    alpha: float = option("distillation", "α, the weight of the soft term", SHARE, builtin=0.9, files=0.5)
    temperature: float = option("distillation", "T, by which the logits are divided", POSITIVE, 2.0)
    pilot_lr: float = option("distillation", "λ, the step of the pilot update", POSITIVE, builtin=0.1, files=0.02)
    teacher_lr: float = option("distillation", "μ, AdamW rate of the meta update", POSITIVE, builtin=5e-4, files=1e-5)
    quiz_batch_size: int = option("distillation", "quiz examples a step, evenly by class", COUNT, builtin=200, files=64)
    meta_grad: str = option("distillation", "way to the meta-gradient", one_of(*META_GRADIENT_MODES), "second_order")
    seeds: int = option("run", "do everything with seeds 0 to N-1", COUNT, 1)
    device: str = option("run", "auto: cuda where there is one", one_of("auto", "cpu", "cuda"), "auto")
    out: str = option("run", "the run's directory [a new one under runs/]", None, "")
    log_every: int = option("run", "steps between two lines of metrics.jsonl", COUNT, 50)
    checkpoint_seconds: float = option("run", "seconds between two checkpoints", NOT_NEGATIVE, 20.0)


# ---------------------------------------------------------------- the configuration


def check(config: Config):
    """Raise InputError on the first field whose value cannot be."""
    for field in dataclasses.fields(config):
        value, valid = getattr(config, field.name), field.metadata["valid"]
        if valid and value is not None and not valid[0](value):
            raise InputError(f"--{field.name.replace('_', '-')} {value}: expected {valid[1]}")
    methods = config.methods.split(",")
    if set(methods) - set(METHODS) or len(set(methods)) < len(methods):
        raise InputError(f"--methods {config.methods}: expected some of {','.join(METHODS)}, each once")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: expected cpu or auto, for there is no such device here")


def resolve(config: Config) -> Config:
    """The configuration with nothing left open, once it is known which data there are."""
    task = load(config, 0)
    kind = "builtin" if task.data == data.BUILTIN else "files"
    found = {"data": task.data, "quiz_size": len(task.quiz), "label_noise": task.label_noise}
    for field in dataclasses.fields(config):
        if field.metadata["by_data"] and getattr(config, field.name) is None:
            found[field.name] = field.metadata["by_data"][kind]
    if config.device == "auto":
        found["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if not config.out:
        paths = (Path("runs", f"{task.name}-{kind}" + (f"-{n}" if n > 1 else "")) for n in itertools.count(1))
        found["out"] = str(next(path for path in paths if not path.exists()))
    return dataclasses.replace(config, **found)


def load(config: Config, seed: int) -> data.Task:
    """The task of the configuration, split by the seed."""
    sizes = {"quiz_size": config.quiz_size, "train_size": config.train_size, "label_noise": config.label_noise}
    return data.load_task(config.task, config.data, seed=seed, **sizes)


# ---------------------------------------------------------------- the run's directory


def write_whole(path: Path, content: str | dict):
    """Write text, or a dict by torch.save: under `path` stands the old file or the whole new one, never a part."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(content, file) if isinstance(content, dict) else file.write(content.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class Run:
    """A run's directory: config.json, metrics.jsonl, checkpoint.pt, table.md, seed*/MODEL.pt.

    The checkpoint holds the number of stages done, the results so far ({model: [a dict for each
    seed]}), the state of the stage under way, and the length of metrics.jsonl then: what a killed
    run logged later is cut off, for it will be logged again.
    """

    def __init__(self, out: Path, config: Config):
        self.out, self.config = out, config
        self.state = {"done": 0, "results": {}, "under_way": None, "log_bytes": 0}
        if (out / "checkpoint.pt").exists():
            self.state = torch.load(out / "checkpoint.pt", weights_only=True, map_location="cpu")
        self.log_file = (out / "metrics.jsonl").open("ab")
        self.log_file.truncate(self.state["log_bytes"])

    @classmethod
    def create(cls, config: Config) -> "Run":
        """A new run in the directory config.out. Raises InputError if a run is there already."""
        out = Path(config.out)
        if (out / "config.json").exists():
            raise InputError(f"--out {out}: holds a run already; expected a new directory, or --resume {out}")
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / "config.json", json.dumps(dataclasses.asdict(config), indent=2))
        except OSError as error:
            raise InputError(f"--out {out}: expected a directory to write to ({error.strerror})") from None
        return cls(out, config)

    def log(self, **entry):
        """Append one object to metrics.jsonl."""
        self.log_file.write((json.dumps(entry) + "\n").encode())

    def save(self, under_way: dict | None):
        """Write the checkpoint: what was done up to here will not be lost."""
        self.log_file.flush()
        self.state |= {"under_way": under_way, "log_bytes": self.log_file.tell()}
        write_whole(self.out / "checkpoint.pt", self.state)


def read_config(out: str, given: dict) -> Config:
    """The configuration of the run in a directory. Raises InputError if a flag given now says otherwise."""
    try:
        config = Config(**json.loads(Path(out, "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{out or '--out'}: expected the directory of a run; there is no valid config.json") from None
    for name, value in given.items():
        if name != "out" and value != getattr(config, name):
            raise InputError(f"{out}: expected {name} {getattr(config, name)}, as the run there has it, not {value}")
    return dataclasses.replace(config, out=out)


# ---------------------------------------------------------------- what the stages of a seed share


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of the predictions (N,) that equal the labels (N,)."""
    return float((predictions == labels).mean())


METRICS = {"accuracy": accuracy}


@torch.no_grad()
def predict(model: torch.nn.Module, examples: data.Encoded, device: str = "cpu") -> torch.Tensor:
    """The model's logits (N, K) in eval mode, in the examples' order, computed in batches of like length."""
    rows = np.argsort(examples.lengths, kind="stable")
    chunks = [rows[i : i + 256] for i in range(0, len(rows), 256)]
    model.eval()
    logits = [metadistil.forward(model, examples.batch(chunk, device)[0]).cpu() for chunk in chunks]
    return torch.cat(logits)[np.argsort(rows)]


def new_model(config: Config, role: str, tokenizer: Tokenizer, num_labels: int) -> torch.nn.Module:
    """The teacher or the student with fresh weights."""
    return models.Encoder.from_preset(getattr(config, role), tokenizer.get_vocab_size(), num_labels, config.dropout)


class Seed:
    """One seed's splits in token ids, and how its models begin."""

    def __init__(self, run: Run, seed: int):
        self.run, self.config, self.seed = run, run.config, seed
        self.folder = run.out / f"seed{seed}"
        self.folder.mkdir(exist_ok=True)
        self.task = task = load(self.config, seed)
        path = self.folder / "tokenizer.json"
        if not path.exists():
            texts = [text for key in (task.train + task.quiz).keys() for text in key]
            write_whole(path, data.train_tokenizer(texts, self.config.vocab_size).to_str())
        self.tokenizer = Tokenizer.from_file(str(path))
        # Whoever has no use for a quiz trains on it, so that every method learns from the same labels.
        splits = {"train": task.train, "quiz": task.quiz, "train+quiz": task.train + task.quiz, "dev": task.dev}
        splits |= {"test": task.test} if task.test and task.test.labels is not None else {}
        self.splits = {name: data.encode(self.tokenizer, split) for name, split in splits.items()}
        self.steps_per_epoch = -(-len(self.splits["train+quiz"]) // self.config.batch_size)

    def learner(self, role: str, rate: float, weights: str = "") -> tuple:
        """(model, optimiser): the same initial weights at every call, or those of a finished stage."""
        torch.manual_seed(2 * self.seed + (role == "teacher"))
        model = new_model(self.config, role, self.tokenizer, self.task.num_labels).to(self.config.device)
        if weights:
            model.load_state_dict(torch.load(self.folder / f"{weights}.pt", weights_only=True))
        decay = self.config.weight_decay
        return model, torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)

    def scores(self, model: torch.nn.Module, *splits: str) -> dict[str, float]:
        """{"dev accuracy": 0.81, ...}: the task's metrics on those of the splits that have labels."""
        found = {}
        for split in (split for split in splits if split in self.splits):
            predictions = predict(model, self.splits[split], self.config.device).argmax(dim=-1).numpy()
            for metric in self.task.metrics:
                found[f"{split} {metric}"] = METRICS[metric](predictions, self.splits[split].labels)
        return found


# ---------------------------------------------------------------- training


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, total: int):
    """Linear warm-up to `rate` over the first tenth of the steps, then linear decay to zero."""
    warmup = max(1, total // 10)
    for group in optimizer.param_groups:
        group["lr"] = rate * min((step + 1) / warmup, (total - step) / max(1, total - warmup))


def stage(context: Seed, name: str) -> tuple:
    """(learners, total, step): which models learn, {name: (model, optimiser)}; how many steps; step(k, trace) -> loss.

    The teacher learns from labels, and so does each student while it warms up. Beyond that the
    methods differ in nothing but what `step` says of them.
    """
    config, quiz = context.config, context.splits["quiz"]
    if name == "teacher":
        rate, epochs, warmup = config.finetune_lr, config.teacher_epochs, 0
        learner, optimizer = context.learner("teacher", rate)
        learners = {"teacher before": (learner, optimizer)}
    else:
        rate, epochs, warmup = config.student_lr, config.warmup_epochs + config.epochs, config.warmup_epochs
        learner, optimizer = context.learner("student", rate)
        learners = {f"student {name}": (learner, optimizer)}
    if name in ("kd", "metadistil"):
        teacher, teacher_optimizer = context.learner("teacher", config.teacher_lr, weights="teacher-before")
        learners |= {"teacher after metadistil": (teacher, teacher_optimizer)} if name == "metadistil" else {}
    examples = context.splits["train" if name == "metadistil" else "train+quiz"]
    batches = data.Batches(examples.lengths, config.batch_size, context.seed)
    total, warmup = epochs * context.steps_per_epoch, warmup * context.steps_per_epoch
    soft = {"alpha": config.alpha, "temperature": config.temperature}

    def step(k: int, trace: dict | None) -> torch.Tensor:
        set_rate(optimizer, rate, k, total)
        batch = examples.batch(batches[k], config.device)
        if name in ("teacher", "finetune") or k < warmup:
            return metadistil.real_update(learner, [], batch, optimizer)
        if name == "kd":
            return metadistil.real_update(learner, [teacher], batch, optimizer, **soft)
        set_rate(teacher_optimizer, config.teacher_lr, k - warmup, total - warmup)
        exam = quiz.batch(data.sample_quiz(quiz.labels, config.quiz_batch_size, context.seed, k), config.device)
        settings = soft | {"pilot_lr": config.pilot_lr, "mode": config.meta_grad, "trace": trace}
        return metadistil.metadistil_step(learner, [teacher], batch, exam, optimizer, teacher_optimizer, **settings)[0]

    return learners, total, step


def take(context: Seed, name: str):
    """Take the stage's steps, from the checkpoint if it was under way; log, score dev after each epoch, save."""
    run, config = context.run, context.config
    learners, total, step = stage(context, name)
    torch.manual_seed(1000 + context.seed)  # of dropout
    where = {"seed": context.seed, "stage": name}
    state = run.state["under_way"] or {"step": 0, "seconds": 0.0, "peak_mb": 0.0}
    if "parts" in state:
        restore(state, learners)
    progress, saved = Progress(f"seed {context.seed} {name}", state["step"], total), time.monotonic()
    measurable = not math.isnan(peak_memory_mb(reset=True))
    for k in range(state["step"], total):
        started = time.perf_counter()
        trace = {} if k % config.log_every == 0 or k + 1 == total else None
        loss = step(k, trace)
        if trace is not None:
            quiz_losses = {key: trace[key] for key in ("quiz_loss_before", "quiz_loss_after") if key in trace}
            losses = {key: float(value) for key, value in ({"loss": loss} | quiz_losses).items()}
            if not all(map(math.isfinite, losses.values())):
                raise InputError(f"{progress.name}, step {k}: expected finite losses, found {losses}; lower the rates")
            run.log(**where, step=k + 1, **losses)
            progress.noted |= losses
        state["seconds"] += time.perf_counter() - started
        if (k + 1) % context.steps_per_epoch == 0:
            scores = {title: context.scores(model, "dev") for title, (model, _) in learners.items()}
            run.log(**where, step=k + 1, epoch=(k + 1) // context.steps_per_epoch, scores=scores)
            progress.scores = {title.split()[0]: next(iter(found.values())) for title, found in scores.items()}
        progress.show(k + 1)
        state |= {"step": k + 1, "peak_mb": max(state["peak_mb"], peak_memory_mb()) if measurable else math.nan}
        if time.monotonic() - saved >= config.checkpoint_seconds and k + 1 < total:
            run.save(snapshot(state, learners))
            saved = time.monotonic()
    finish(context, name, state, learners)


def snapshot(state: dict, learners: dict) -> dict:
    """The stage's state, with all that its next step depends on."""
    parts = {role: [part.state_dict() for part in pair] for role, pair in learners.items()}
    return state | {"parts": parts, "rng": [generator.get_rng_state() for generator in random_generators()]}


def restore(state: dict, learners: dict):
    """Put back what `snapshot` took."""
    for role, pair in learners.items():
        for part, saved in zip(pair, state["parts"][role]):
            part.load_state_dict(saved)
    for generator, saved in zip(random_generators(), state["rng"]):
        generator.set_rng_state(saved)


def random_generators() -> list:
    """Whatever torch draws dropout from here."""
    return [torch.random] + ([torch.cuda] if torch.cuda.is_available() else [])


def finish(context: Seed, name: str, state: dict, learners: dict):
    """Save the stage's models, score them on dev and, this once, on test, and note the results."""
    run, cost = context.run, {"seconds": state["seconds"], "peak_mb": state["peak_mb"]}
    for title, (model, _) in learners.items():
        write_whole(context.folder / f"{title.replace(' ', '-')}.pt", model.state_dict())
        scores = context.scores(model, "dev", "test")
        run.log(seed=context.seed, stage=name, model=title, final_scores=scores)
        size = sum(parameter.numel() for parameter in model.parameters())
        run.state["results"].setdefault(title, []).append({"scores": scores, "parameters": size, **cost})
        cost = dict.fromkeys(cost, math.nan)  # a stage's cost is its first model's
    run.state["done"] += 1
    run.save(None)


class Progress:
    """One updating line on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, name: str, first: int, total: int):
        self.name, self.first, self.total = name, first, total
        self.live, self.began, self.shown, self.noted = sys.stderr.isatty(), time.monotonic(), -math.inf, {}
        self.scores = {}

    def show(self, step: int):
        """Print the losses noted and the last dev scores, unless a line was printed just now."""
        now, done = time.monotonic(), step == self.total
        if not done and now - self.shown < (0.2 if self.live else 10):
            return
        self.shown, noted = now, self.noted
        left = (now - self.began) / (step - self.first) * (self.total - step)
        parts = [f"{self.name:<18} step {step}/{self.total}"]
        parts += [f"loss {noted['loss']:.3f}"] if "loss" in noted else []
        if "quiz_loss_before" in noted:
            parts.append(f"quiz {noted['quiz_loss_before']:.4f} → {noted['quiz_loss_after']:.4f}")
        parts += [f"{role} {score:.1%}" for role, score in self.scores.items()]
        parts.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
        start, end = ("\r\033[K", "\n" if done else "") if self.live else ("", "\n")
        print(start + "  ".join(parts), end=end, file=sys.stderr, flush=True)


def peak_memory_mb(reset: bool = False) -> float:
    """Most memory held since the last reset, in 10⁶ bytes: the GPU's, or on Linux the process's; else NaN."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats() if reset else None
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        return math.nan


# ---------------------------------------------------------------- results


def t_quantile(degrees: int) -> float:
    """The 97.5% quantile of Student's t distribution, by summing up its density from 0; within 1e-4."""
    x = np.linspace(0, 13, 130_001)
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    density = np.exp(scale - (degrees + 1) / 2 * np.log1p(x**2 / degrees))
    return float(np.interp(0.475, np.cumsum((density[1:] + density[:-1]) / 2) * x[1], x[1:]))


def spread(values: np.ndarray) -> str:
    """Percent: "71.2", or "71.2 ± 0.4", mean ± standard deviation of several seeds."""
    return f"{100 * values.mean():.1f}" + (f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else "")


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Points, seed by seed: "+4.1 [+2.0, +6.2]", the mean and its 95% interval by Student's t."""
    difference = 100 * (ours - theirs)
    mean, n = difference.mean(), len(difference)
    half = t_quantile(n - 1) * difference.std(ddof=1) / math.sqrt(n) if n > 1 else 0
    return f"{mean:+.1f}" + (f" [{mean - half:+.1f}, {mean + half:+.1f}]" if n > 1 else "")


def table(results: dict[str, list[dict]]) -> str:
    """The run's table in Markdown: a row for each model, a column for each score and cost."""
    columns = list(results["teacher before"][0]["scores"])
    most = results["teacher before"][0]["parameters"]
    heads = ["model", *columns, f"difference ({columns[-1]})", "parameters", "times smaller", "seconds", "peak MB"]
    lines = [heads, ["---"] * len(heads)]
    for title in sorted(results, key=lambda title: title.startswith("student")):
        of = {title: np.array([[seed["scores"][column] for column in columns] for seed in found])
              for title, found in results.items()}  # (seeds, columns)  # fmt: skip
        rival = "teacher before" if title.startswith("teacher") else "student kd"
        differs = rival in results and rival != title
        cells = [title, *map(spread, of[title].T)]
        cells.append(paired_difference(of[title][:, -1], of[rival][:, -1]) if differs else "")
        size = results[title][0]["parameters"]
        cells += [f"{size:,}", f"{most / size:.1f}"]
        costs = (np.mean([seed[cost] for seed in results[title]]) for cost in ("seconds", "peak_mb"))
        lines.append(cells + ["–" if math.isnan(cost) else f"{cost:.0f}" for cost in costs])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def caption(config: Config, task: data.Task) -> str:
    """What the table's numbers are: which data, which epoch, and what is compared to what."""
    seeds = "one seed" if config.seeds == 1 else f"{config.seeds} seeds, mean ± standard deviation"
    test = f"{len(task.test):,} in test" if task.test and task.test.labels is not None else "test without labels"
    return (
        f"{task.name} ({task.data}): {len(task.train):,} training examples, {task.label_noise:.0%} mislabelled, "
        f"{len(task.quiz):,} in the quiz, {len(task.dev):,} in dev, {test}.\nScores in percent, {seeds}, last epoch: "
        f"{config.teacher_epochs} of the teacher, {config.warmup_epochs} + {config.epochs} of each student.\n"
        "Difference: students to kd, teacher to what it was; paired by seed, with a 95% interval if there are several."
    )


# Okabe and Ito's colours, which the colour-blind can tell apart, with line styles for print in grey.
CURVES = [("#E69F00", ":"), ("#56B4E9", "-."), ("#000000", "-"), ("#D55E00", "--")]


def plot_curves(out: Path):
    """curves.png: dev score of each student, and of the teacher while it is taught; only where matplotlib is."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return
    curves: dict[str, dict[int, list]] = {}
    for entry in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        for title, scores in entry.get("scores", {}).items():
            points = curves.setdefault(title, {}).setdefault(entry["epoch"], [])
            points.append(100 * next(iter(scores.values())))
    curves.pop("teacher before", None)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (title, curve), (color, line) in zip(curves.items(), CURVES):
        lowest, mean, highest = ([f(scores) for scores in curve.values()] for f in (min, np.mean, max))
        axes.plot(list(curve), mean, color=color, linestyle=line, label=title.replace("after", "during"))
        axes.fill_between(list(curve), lowest, highest, color=color, alpha=0.1, linewidth=0)
    axes.set(xlabel="epoch", ylabel="dev score (%): mean, and range over seeds")
    axes.legend(frameon=False)
    figure.savefig(out / "curves.png", dpi=150, bbox_inches="tight")
    pyplot.close(figure)


# ---------------------------------------------------------------- the command line


def run(config: Config) -> dict:
    """A whole run, as the command line does it. Returns {"config", "out", "results", "table"}. Raises InputError."""
    check(config)
    return carry_on(Run.create(resolve(config)))


def resume(out: str, given: dict | None = None) -> dict:
    """Go on with the run in a directory; `given` are flags, which must agree with it. Raises InputError."""
    config = read_config(out, given or {})
    return carry_on(Run(Path(out), config))


def carry_on(run: Run) -> dict:
    """Take the stages that are not finished yet, then write and print the table."""
    config, task = run.config, load(run.config, 0)
    print(data.BUILTIN_BANNER.format(share=task.label_noise) if task.data == data.BUILTIN else f"data: {task.data}")
    for note in task.notes:
        print(f"note: {note}")
    print(f"{config.device}, {torch.get_num_threads()} threads; everything is written to {run.out}/")
    stages = [(seed, name) for seed in range(config.seeds) for name in ["teacher", *config.methods.split(",")]]
    context = None
    try:
        for seed, name in stages[run.state["done"] :]:
            context = context if context and context.seed == seed else Seed(run, seed)
            take(context, name)
    except KeyboardInterrupt:
        print(f"\nstopped; to go on: python train.py --resume {run.out}", file=sys.stderr)
        sys.exit(130)
    text = f"{table(run.state['results'])}\n\n{caption(config, task)}\n"
    write_whole(run.out / "table.md", text)
    plot_curves(run.out)
    print(f"\n{text}")
    return {"config": config, "out": run.out, "results": run.state["results"], "table": text}


def predict_sentences(out: str, sentences):
    """Print for each sentence what every trained model of the run's seed 0 says, and how sure it is."""
    config = read_config(out, {})
    folder, labels = Path(out, "seed0"), list(data.GLUE[config.task].labels.values())
    paths = sorted(folder.glob("*.pt"))
    trained = {path.stem: torch.load(path, weights_only=True, map_location="cpu") for path in paths}
    if not trained:
        raise InputError(f"{folder}: expected a trained model, found none yet; go on with --resume {out}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for name, weights in trained.items():
        trained[name] = new_model(config, name.split("-")[0], tokenizer, len(labels))
        trained[name].load_state_dict(weights)
    for sentence in map(str.strip, sentences):
        print(sentence)
        example = data.encode(tokenizer, data.Split([sentence], None))
        for name, model in sorted(trained.items(), key=lambda pair: ("student" in pair[0], "after" in pair[0])):
            p = metadistil.log_softmax(predict(model, example)).exp()[0]  # (K,)
            print(f"  {name.replace('-', ' '):<26} {labels[p.argmax()]:<10} {p.max():6.1%}")


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The command line: a flag for each field of Config, then --resume and --predict."""
    flags = Parser("train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                   argument_default=argparse.SUPPRESS, allow_abbrev=False)  # fmt: skip
    groups = {}
    for field in dataclasses.fields(Config):
        text, valid, by_data = field.metadata["help"], field.metadata["valid"], field.metadata["by_data"]
        if valid and valid[1].startswith("one of"):
            text += ", " + valid[1]
        default = ", ".join(f"{kind}: {value}" for kind, value in by_data.items()) or field.default
        text += f" [{default}]" if default not in (None, "") else ""
        name = field.metadata["group"]
        group = groups[name] = groups.get(name) or flags.add_argument_group(name)
        group.add_argument("--" + field.name.replace("_", "-"), type=field.type, help=text, metavar="")
    flags.add_argument("--resume", metavar="RUN", help="go on with a stopped run; it ends with the same numbers")
    text = "what each model of the run in --out says of a sentence; without one, of every line of the input"
    flags.add_argument("--predict", metavar="SENTENCE", nargs="?", const=None, help=text)
    return flags


def main(arguments: list[str] | None = None):
    """Run the command line. What a user can mend ends in one line and exit status 2."""
    given = vars(parser().parse_args(arguments))
    try:
        if "predict" in given:
            sentences = sys.stdin if given["predict"] is None else [given["predict"]]
            return predict_sentences(given.get("out", ""), sentences)
        if given.get("data", data.BUILTIN) != data.BUILTIN:
            given["data"] = os.path.abspath(given["data"])  # a directory that was asked for: nothing takes its place
        resume(given.pop("resume"), given) if "resume" in given else run(Config(**given))
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
