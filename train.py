"""The main job: train a teacher, then a student by each method, and print one table.

    python train.py --task sst2

Every student starts from the same weights, learns from the same labels and takes the same
number of steps. A run is a list of stages (each teacher, then each method; for each seed), and a
stage is a function of the configuration and the seed alone: it can be killed, resumed, repeated.
"""

import argparse, dataclasses, functools, importlib.util, itertools, json, math, os, re, sys, time, warnings
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import data, metadistil, models
from data import InputError, expect

METHODS = ("finetune", "kd", "pkd", "metadistil", "metadistil-pkd")
KINDS = ("builtin", "files", "pretrained")  # of runs: built-in data; files; models from checkpoints
RANDOM = [torch.random] + ([torch.cuda] if torch.cuda.is_available() else [])  # what dropout is drawn from
DEVICES = ("auto", "cpu") + (("cuda",) if torch.cuda.is_available() else ())


def one_of(*choices):
    """A value may be one of the choices: a test of it, and the words that follow "expected"."""
    return choices.__contains__, "one of " + ", ".join(choices)


def some_of(*choices):
    """A value may be some of the choices, each once, with commas between."""
    return lambda value: len({*value.split(",")} & {*choices}) == len(value.split(",")), "some of " + ",".join(choices)


COUNT = (lambda value: value >= 1, "a whole number, at least 1")
NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "a finite number, at least 0")
POSITIVE = (lambda value: 0 < value < math.inf, "a finite number above 0")
SHARE = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
NUMBERS = (lambda value: re.fullmatch(r"\d+(,\d+)*", value), "whole numbers with commas between")


def option(group: str, help: str, valid=None, default=None):
    """A field of Config: its group in --help, its meaning, what it may be, its default (a tuple: by KINDS)."""
    return dataclasses.field(default=None if isinstance(default, tuple) else default, metadata=locals())


@dataclasses.dataclass
class Config:
    """Everything a run depends on. Each field is a flag; None means that the data, or the kind of run, decide."""

    task: str = option("data", "the task", one_of(*data.GLUE), "sst2")
    data: str = option("data", "directory of the task's files, or 'builtin'", None, data.DEFAULT_DATA)
    quiz_size: int = option("data", "training examples set aside for the quiz [one in ten; builtin: 300]", COUNT)
    train_size: int = option("data", "train on a random subset of that many examples [all]", COUNT)
    label_noise: float = option("data", "share of the training labels that is wrong [0; builtin: 0.4]", SHARE)
    noise: float = option("data", "share of the students' training words turned into noise_word", SHARE, 0.0)
    teacher: str = option("models", "preset or checkpoint's directory; or A,B: two", None, ("tiny", "mini", "mini"))
    student: str = option("models", "preset or checkpoint's directory", None, ("micro", "tiny", "tiny"))
    student_layers: str = option("models", "layers a student keeps of its checkpoint: 1,3,5 [all]", NUMBERS)
    dropout: float = option("models", "share of units dropped while training", SHARE, (0.1, 0.2, 0.1))
    methods: str = option("training", "the students to train", some_of(*METHODS), "finetune,kd,metadistil")
    teacher_epochs: int = option("training", "epochs of the teacher's own training", COUNT, (40, 3, 2))
    warmup_epochs: int = option("training", "epochs of each student on labels alone", NOT_NEGATIVE, (5, 1, 1))
    epochs: int = option("training", "epochs of each student after that", COUNT, (50, 2, 1))
    batch_size: int = option("training", "training examples a step", COUNT, (128, 64, 64))
    finetune_lr: float = option("training", "AdamW rate of the teacher's training", POSITIVE, (5e-4, 5e-4, 7e-5))
    student_lr: float = option("training", "AdamW rate of the students", POSITIVE, (2e-3, 5e-4, 7e-5))
    alpha: float = option("distillation", "α, the weight of the soft term", SHARE, (0.9, 0.5, 0.5))
    temperature: float = option("distillation", "T, by which the logits are divided", POSITIVE, 2.0)
    beta: float = option("distillation", "β, the weight of the hidden states in pkd", NOT_NEGATIVE, 100.0)
    pkd_layers: str = option("distillation", "the teacher's layers for pkd", one_of("skip", "last"), "skip")
    pilot_lr: float = option("distillation", "λ, the step of the pilot update", POSITIVE, (0.1, 0.02, 0.02))
    teacher_lr: float = option("distillation", "μ, AdamW rate of the meta update", POSITIVE, (5e-4, 1e-5, 1e-6))
    quiz_batch_size: int = option("distillation", "quiz examples a step, evenly by class", COUNT, (200, 64, 64))
    meta_grad: str = option("distillation", "way to the meta-gradient", one_of(*metadistil.MODES), "second_order")
    meta_every: int = option("distillation", "the teacher learns at every K-th step", COUNT, 1)
    no_pilot: bool = option("distillation", "ablation: the student keeps the pilot's update", None, False)
    freeze_teacher: bool = option("distillation", "ablation: the teacher hears the quiz and stays", None, False)
    seeds: int = option("run", "do everything with seeds 0 to N-1", COUNT, 1)
    device: str = option("run", "auto: cuda where there is one", one_of(*DEVICES), "auto")
    out: str = option("run", "the run's directory [a new one under runs/]", None, "")
    log_every: int = option("run", "steps between two lines of metrics.jsonl", COUNT, 50)
    checkpoint_seconds: float = option("run", "seconds between two checkpoints", NOT_NEGATIVE, 60.0)


# ---------------------------------------------------------------- the configuration
def resolve(config: Config) -> Config:
    """The configuration, checked, with nothing left open, once it is known which data there are. Raises InputError."""
    for field in dataclasses.fields(config):
        value, valid = getattr(config, field.name), field.metadata["valid"]
        if valid and value is not None:
            expect(valid[0](value), f"--{field.name.replace('_', '-')} {value}: expected {valid[1]}")
    task = load(config, 0)
    place = "builtin" if task.data == data.BUILTIN else "files"
    names = f"{config.teacher or 'tiny'},{config.student or 'tiny'}".split(",")
    kind = KINDS.index(place if set(names) <= set(models.PRESETS) else "pretrained")
    found = {"data": task.data, "quiz_size": len(task.quiz), "label_noise": task.label_noise}
    found |= {"device": DEVICES[-1]} if config.device == "auto" else {}
    if not config.out:
        paths = (Path("runs", f"{task.name}-{place}" + (f"-{n}" if n > 1 else "")) for n in itertools.count(1))
        found["out"] = str(next(path for path in paths if not path.exists()))
    for field in dataclasses.fields(config):
        if getattr(config, field.name) is None and isinstance(field.metadata["default"], tuple):
            found[field.name] = field.metadata["default"][kind]
    config = dataclasses.replace(config, **found)
    matched_layers(config)
    return config


def load(config: Config, seed: int) -> data.Task:
    """The task of the configuration, split by the seed."""
    sizes = {"quiz_size": config.quiz_size, "train_size": config.train_size, "label_noise": config.label_noise}
    return data.load_task(config.task, config.data, seed=seed, **sizes)


def sources_of(config: Config) -> dict[str, str]:
    """{"student": preset or directory, "teacher": ..., "teacher 2": ...}, as many teachers as there are."""
    teachers = {f"teacher {n}" if n > 1 else "teacher": name for n, name in enumerate(config.teacher.split(","), 1)}
    return {"student": config.student, **teachers}


def kept_layers(config: Config) -> list[int] | None:
    """The layers the student keeps of its checkpoint, 0 the first; None for all."""
    return list(map(int, config.student_layers.split(","))) if config.student_layers else None


def matched_layers(config: Config) -> dict[str, tuple[int, ...]]:
    """For each role the layers, 1 the first, whose hidden states pkd matches: of the student's M all but the last.
    Of the teacher's L, "skip" takes every (L / M)-th, "last" those before the last (Sun et al. 2019, section 3.2).
    Raises InputError if pkd is asked for and cannot be, CheckpointError on an unknown model."""
    shapes = {role: models.shape_of(source) for role, source in sources_of(config).items()}
    M, matched = len(kept_layers(config) or range(shapes["student"].layers)), {}
    expect(not (config.student_layers and config.student in models.PRESETS), "--student-layers: expected a checkpoint")
    for role, shape in shapes.items():
        L = M if role == "student" else shape.layers
        fits = 2 <= M <= L and shape.hidden == shapes["student"].hidden
        expected = "a student of 2 layers or more, as wide as its teacher and no deeper"
        expect(fits or "pkd" not in config.methods, f"--methods {config.methods}: pkd expected {expected}")
        matched[role] = tuple(n * L // M if config.pkd_layers == "skip" else L - M + n for n in range(1, M))
    return matched


# ---------------------------------------------------------------- the run's directory
def write_whole(path: Path, content: str | dict):
    """Write text, or a dict by torch.save: under `path` stands the old file or the whole new one, never a part."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(content, file) if isinstance(content, dict) else file.write(content.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def open_journal(config: Config) -> dict:
    """What was done in a run's directory: the number of finished stages, the results so far ({model: [a dict for each
    seed]}), the log, and the state of the stage under way."""
    path = Path(config.out, "checkpoint.pt")
    fresh = {"done": 0, "results": {}, "log": [], "under_way": None}
    return torch.load(path, "cpu", weights_only=True) if path.exists() else fresh


def save(config: Config, journal: dict):
    """Write metrics.jsonl and the checkpoint: what was done up to here will not be lost."""
    write_whole(Path(config.out, "metrics.jsonl"), "".join(json.dumps(entry) + "\n" for entry in journal["log"]))
    write_whole(Path(config.out, "checkpoint.pt"), journal)


def read_config(out: str, given: dict) -> Config:
    """The configuration of the run in a directory. Raises InputError if other flags were given with it."""
    try:
        config = Config(**json.loads(Path(out, "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{out or '--out'}: expected the directory of a run; there is no valid config.json") from None
    expect(set(given) <= {"out"}, f"--resume {out}: expected no other flag, for the run there has its own")
    return dataclasses.replace(config, out=out)


# ---------------------------------------------------------------- scores
def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1, of predictions (N,) and labels (N,); 0 without any hit."""
    hits = ((predictions == 1) & (labels == 1)).sum()
    return float(2 * hits / max(1, (predictions == 1).sum() + (labels == 1).sum()))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation; 0 where either is constant. Of two classes it is Matthews' coefficient."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    x, y = (values - values.mean(dtype=float) for values in (predictions, labels))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (N,) from 1; ties share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


METRICS = {
    "accuracy": lambda predictions, labels: float((predictions == labels).mean()), "f1": f1, "matthews": pearson,
    "pearson": pearson, "spearman": lambda predictions, labels: pearson(ranks(predictions), ranks(labels)),
}  # fmt: skip


@torch.no_grad()
def predict(model: torch.nn.Module, examples: data.Encoded, device: str = "cpu") -> torch.Tensor:
    """The model's logits (N, K) in eval mode, in the examples' order, computed in batches of like length."""
    rows = np.argsort(examples.lengths, kind="stable")
    chunks = [rows[i : i + 256] for i in range(0, len(rows), 256)]
    logits = [metadistil.forward(model.eval(), examples.batch(chunk, device)[0])[0].cpu() for chunk in chunks]
    return torch.cat(logits)[np.argsort(rows)]


# ---------------------------------------------------------------- what the stages of a seed share
class Reader(torch.nn.Module):
    """A network that picks its own ids out of a batch {role: inputs}: each reads its own vocabulary, always."""

    def __init__(self, network: torch.nn.Module, role: str):
        super().__init__()
        self.network, self.role = network, role

    def forward(self, **read):
        return self.network(**read[self.role])


class Seed:
    """One seed's splits in the ids of each role's vocabulary, {role: {split: Encoded}}, and how its models begin."""

    def __init__(self, config: Config, seed: int):
        self.config, self.seed, self.folder = config, seed, Path(config.out, f"seed{seed}")
        self.folder.mkdir(exist_ok=True)
        self.task, self.sources, self.tokenizers, self.read = load(config, seed), sources_of(config), {}, {}
        held_out = {"dev": self.task.dev, "test": self.task.test}
        held_out = {name: split for name, split in held_out.items() if split and split.labels is not None}
        # Whoever has no use for a quiz trains on it, so that every method learns from the same labels.
        texts = self.task.train.texts + self.task.quiz.texts
        sentences = [text if isinstance(text, str) else " ".join(text) for text in texts]
        own = data.train_tokenizer(sentences) if models.PRESETS.keys() & self.sources.values() else None
        for role, source in self.sources.items():
            self.tokenizers[role] = own if source in models.PRESETS else data.read_tokenizer(source)
            longest = models.shape_of(source).max_positions - models.shape_of(source).position_offset
            encode = functools.partial(data.encode, self.tokenizers[role], max_length=longest)
            train = data.noisy(self.task.train, config.noise if role == "student" else 0.0, seed)
            self.read[role] = {"train+quiz": encode(train + self.task.quiz)}
            self.read[role] |= {name: encode(split) for name, split in held_out.items()}
        self.steps_per_epoch = -(-len(texts) // config.batch_size)

    def batch(self, rows: np.ndarray) -> tuple[dict, torch.Tensor]:
        """Rows of train and quiz as each role reads them, {role: inputs}, and their labels (B,)."""
        read = {role: splits["train+quiz"].batch(rows, self.config.device) for role, splits in self.read.items()}
        return {role: inputs for role, (inputs, _) in read.items()}, read["student"][1]

    def model(self, role: str, weights: str = "") -> Reader:
        """The role's model: with the same initial weights at every call, or those that a finished stage left."""
        torch.manual_seed(2 * self.seed + list(self.sources).index(role))
        layers = kept_layers(self.config) if role == "student" else None
        sizes = {"vocab_size": self.tokenizers[role].get_vocab_size(), "num_labels": len(self.task.label_names) or 1}
        network = models.build(self.sources[role], **sizes, layers=layers, dropout=self.config.dropout)
        if weights:
            network.load_state_dict(torch.load(self.folder / f"{weights}.pt", weights_only=True)["weights"])
        return Reader(network, role).to(self.config.device)

    def scores(self, model: Reader, *splits: str) -> dict[str, float]:
        """{"dev accuracy": 0.81, ...}: the task's metrics on those of the splits that have labels."""
        found = {}
        for split in (split for split in splits if split in self.read[model.role]):
            examples = self.read[model.role][split]
            logits = predict(model.network, examples, self.config.device).numpy()
            predictions = logits.argmax(axis=-1) if self.task.label_names else logits[:, 0]
            found |= {f"{split} {name}": METRICS[name](predictions, examples.labels) for name in self.task.metrics}
        return found


# ---------------------------------------------------------------- training
def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, total: int):
    """Linear warm-up to `rate` over the first tenth of the steps, then linear decay to zero."""
    warmup = max(1, total // 10)
    for group in optimizer.param_groups:
        group["lr"] = rate * min((step + 1) / warmup, (total - step) / max(1, total - warmup))


def stage(context: Seed, name: str) -> tuple:
    """(learners, optimisers, total, step): models that learn, by title; how many steps; step(k, trace) -> loss.
    A teacher learns from labels, and so does each student while it warms up. Beyond that the
    methods differ in nothing but what `step` says of them."""
    config, meta, teachers = context.config, name.startswith("metadistil"), {}
    if name in context.sources:
        title, model, rate = f"{name} before", context.model(name), config.finetune_lr
        epochs, warmup = config.teacher_epochs, config.teacher_epochs
    else:
        title, model, rate = f"student {name}", context.model("student"), config.student_lr
        epochs, warmup = config.warmup_epochs + config.epochs, config.warmup_epochs
        for role in list(context.sources)[1:] if name != "finetune" else ():
            teachers[f"{role} after {name}"] = context.model(role, f"{role} before".replace(" ", "-"))
    learners, teachers = {title: model} | (teachers if meta else {}), list(teachers.values())
    if config.freeze_teacher:
        torch.nn.ModuleList(teachers).requires_grad_(False)
    for reader in [model, *teachers] if name.endswith("pkd") else ():
        reader.network.patient_layers = matched_layers(config)[reader.role]
    optimizers = [torch.optim.AdamW(model.parameters(), fused=True)]
    optimizers += [torch.optim.AdamW(metadistil.parameters_of(teachers), fused=True)] if meta else []
    both, n = context.read["student"]["train+quiz"], len(context.task.train)  # the quiz stands behind the n of train
    lengths = both.lengths[:n] if meta and not config.freeze_teacher else both.lengths
    batches = functools.lru_cache(1)(functools.partial(data.batches_of, lengths, config.batch_size, context.seed))
    soft = {"alpha": config.alpha, "temperature": config.temperature, "beta": config.beta}
    settings = soft | {"pilot_lr": config.pilot_lr, "mode": config.meta_grad, "keep_pilot": config.no_pilot}
    total, warmup = epochs * context.steps_per_epoch, warmup * context.steps_per_epoch

    def step(k: int, trace: dict | None) -> torch.Tensor:
        set_rate(optimizers[0], rate, k, total)
        epoch, place = divmod(k, -(-len(lengths) // config.batch_size))
        batch = context.batch(batches(epoch)[place])
        if k < warmup or not meta or (k - warmup) % config.meta_every:
            return metadistil.real_update(model, teachers if k >= warmup else [], batch, optimizers[0], **soft)
        set_rate(optimizers[1], config.teacher_lr, k - warmup, total - warmup)
        quiz = context.batch(n + data.sample_quiz(both.labels[n:], config.quiz_batch_size, context.seed, k))
        return metadistil.metadistil_step(model, teachers, batch, quiz, *optimizers, trace=trace, **settings)[0]

    return learners, optimizers, total, step


def take(context: Seed, name: str, journal: dict):
    """Take the stage's steps, from the checkpoint if it was under way; log, score dev after each epoch, save."""
    config, log = context.config, journal["log"]
    learners, optimizers, total, step = stage(context, name)
    parts, where = [*learners.values(), *optimizers], {"seed": context.seed, "stage": name}
    torch.manual_seed(1000 + context.seed)  # of dropout
    state = journal["under_way"] or {"step": 0, "seconds": 0.0, "peak_mb": 0.0}
    if "parts" in state:
        restore(state, parts)
    progress, saved = Progress(f"seed {context.seed} {name}", state["step"], total), time.monotonic()
    peak_memory_mb(reset=True)
    for k in range(state["step"], total):
        started, trace = time.perf_counter(), {} if k % config.log_every == 0 or k + 1 == total else None
        loss = step(k, trace)
        if trace is not None:
            trace["loss"] = loss
            losses = {key: trace[key].item() for key in ("loss", "quiz_loss_before", "quiz_loss_after") if key in trace}
            finite = all(map(math.isfinite, losses.values()))
            expect(finite, f"{progress.name}, step {k}: expected finite losses, found {losses}; lower the rates")
            log.append({**where, "step": k + 1, **losses})
            progress.noted |= losses
        state["seconds"] += time.perf_counter() - started
        if (k + 1) % context.steps_per_epoch == 0:
            scores = {title: context.scores(model, "dev") for title, model in learners.items()}
            log.append({**where, "step": k + 1, "epoch": (k + 1) // context.steps_per_epoch, "scores": scores})
            progress.noted |= {title.split()[0]: next(iter(found.values())) for title, found in scores.items()}
        progress.show(k + 1)
        state |= {"step": k + 1, "peak_mb": max(peak_memory_mb(), state["peak_mb"])}  # NaN, if it comes first, stays
        if time.monotonic() - saved >= config.checkpoint_seconds and k + 1 < total:
            rng, saved = [generator.get_rng_state() for generator in RANDOM], time.monotonic()
            under_way = state | {"parts": [part.state_dict() for part in parts], "rng": rng}
            save(config, journal | {"under_way": under_way})
    finish(context, name, journal, learners, {"seconds": state["seconds"], "peak_mb": state["peak_mb"]})


def restore(state: dict, parts: list):
    """Put back all that a stage's next step depends on."""
    for part, saved in zip(parts, state.pop("parts")):
        part.load_state_dict(saved)
    for generator, saved in zip(RANDOM, state.pop("rng")):
        generator.set_rng_state(saved)


def finish(context: Seed, name: str, journal: dict, learners: dict, cost: dict):
    """Save the stage's models, score them on dev and, this once, on test, and note the results."""
    for title, model in learners.items():
        whole = {"config": dataclasses.asdict(model.network.config), "weights": model.network.state_dict()}
        whole |= {"tokenizer": context.tokenizers[model.role].to_str(), "labels": context.task.label_names}
        write_whole(context.folder / f"{title.replace(' ', '-')}.pt", whole)
        scores, size = context.scores(model, "dev", "test"), sum(parameter.numel() for parameter in model.parameters())
        journal["log"].append({"seed": context.seed, "stage": name, "model": title, "final_scores": scores})
        journal["results"].setdefault(title, []).append({"scores": scores, "parameters": size, **cost})
        cost = dict.fromkeys(cost, math.nan)  # a stage's cost is its first model's
    journal |= {"done": journal["done"] + 1, "under_way": None}
    save(context.config, journal)


class Progress:
    """One updating line on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, name: str, first: int, total: int):
        self.name, self.first, self.total, self.noted = name, first, total, {}  # noted: losses, and dev scores by role
        self.began, self.shown = time.monotonic(), -math.inf

    def show(self, step: int):
        """Print the line, unless one was printed just now."""
        now, done, live = time.monotonic(), step == self.total, sys.stderr.isatty()
        if done or now - self.shown >= (0.2 if live else 10):
            self.shown, left = now, (now - self.began) / (step - self.first) * (self.total - step)
            said = [f"{name} {value:.4f}" for name, value in self.noted.items()]
            said += [f"{left // 60:.0f}:{left % 60:02.0f} left"]
            start, end = ("\r\033[K", "\n" if done else "") if live else ("", "\n")
            line = "  ".join([f"{self.name:<18} step {step}/{self.total}", *said])
            print(start + line, end=end, file=sys.stderr, flush=True)


def peak_memory_mb(reset: bool = False) -> float:
    """Most memory held since the last reset, in 10⁶ bytes: the GPU's, or on Linux the process's; else NaN."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats() if reset else None
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5") if reset else None
        return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
    except (OSError, TypeError):
        return math.nan


# ---------------------------------------------------------------- results
# The 97.5% quantiles of Student's t distribution for 1 to 9 degrees of freedom; beyond, the last is on the safe side.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def spread(values: np.ndarray) -> str:
    """Percent: "71.2", or "71.2 ± 0.4", mean ± standard deviation of several seeds."""
    return f"{100 * values.mean():.1f}" + (f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else "")


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Points, seed by seed: "+4.1 [+2.0, +6.2]", the mean and its 95% interval by Student's t."""
    difference, n = 100 * (ours - theirs), len(ours)
    if n == 1:
        return f"{difference[0]:+.1f}"
    mean, half = difference.mean(), T_QUANTILES[min(n, 10) - 2] * difference.std(ddof=1) / math.sqrt(n)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def table(results: dict[str, list[dict]]) -> str:
    """The run's table in Markdown: a row for each model, a column for each score and cost."""
    columns, most = list(results["teacher before"][0]["scores"]), results["teacher before"][0]["parameters"]
    last = next(i for i, name in enumerate(columns) if name.split()[0] == columns[-1].split()[0])  # its first metric
    of = {title: np.array([[*seed["scores"].values()] for seed in found]) for title, found in results.items()}
    rows = [["model", *columns, f"difference ({columns[last]})", "parameters", "times smaller", "seconds", "peak MB"]]
    rows.append(["---"] * len(rows[0]))
    for title in sorted(results, key=lambda title: title.startswith("student")):
        rival = "student kd" if title.startswith("student") else title.split(" after")[0] + " before"
        differs, size = rival in results and rival != title, results[title][0]["parameters"]
        costs = [np.mean([seed[cost] for seed in results[title]]) for cost in ("seconds", "peak_mb")]
        rows.append([title, *map(spread, of[title].T)])  # of[title]: (seeds, columns)
        rows[-1].append(paired_difference(of[title][:, last], of[rival][:, last]) if differs else "")
        rows[-1] += [f"{size:,}", f"{most / size:.1f}", *("–" if math.isnan(cost) else f"{cost:.0f}" for cost in costs)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def caption(config: Config, task: data.Task) -> str:
    """What the table's numbers are: which data, which epoch, and what is compared to what."""
    sizes = f"{len(task.train):,} training examples, {task.label_noise:.0%} mislabelled, {len(task.quiz):,} in the quiz"
    epochs = f"all epochs, {config.teacher_epochs} of the teacher, {config.warmup_epochs} + {config.epochs} of a student"
    versus = "Difference: students to kd, teacher to what it was, paired by seed, with a 95% interval"
    return f"{task.name} ({task.data}): {sizes}; {config.seeds} seed(s).\nPercent, after {epochs}. {versus}."


def plot_curves(config: Config, log: list[dict]):
    """curves.png: mean dev score of the students, and of the teachers while taught; only where matplotlib is."""
    if not importlib.util.find_spec("matplotlib"):
        return
    from matplotlib import pyplot

    curves = {}  # {title: dev scores, seed after seed, epoch after epoch}
    for entry in log:
        for title, scores in entry.get("scores", {}).items() if entry["stage"] in METHODS else ():
            curves.setdefault(title.replace("after", "during"), []).append(100 * next(iter(scores.values())))
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (title, scores), style in zip(curves.items(), itertools.cycle((":", "-.", "-", "--"))):
        mean = np.reshape(scores, (config.seeds, -1)).mean(axis=0)
        axes.plot(np.arange(len(mean)) + 1, mean, style, label=title)
    axes.set(xlabel="epoch", ylabel="dev score (%), mean over seeds")
    axes.legend(frameon=False)
    figure.savefig(Path(config.out, "curves.png"), dpi=150, bbox_inches="tight")


# ---------------------------------------------------------------- the command line
def run(config: Config) -> dict:
    """A whole run, as the command line does it. Returns {"config", "out", "results", "table"}. Raises InputError."""
    config = resolve(config)
    path = Path(config.out, "config.json")
    expect(not path.exists(), f"--out {config.out}: holds a run; expected a new directory, or --resume {config.out}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(dataclasses.asdict(config), indent=2))
    return carry_on(config)


def carry_on(config: Config) -> dict:
    """Take the stages of a run that are not finished yet, then write and print the table. Returns as `run` does."""
    journal, task, context = open_journal(config), load(config, 0), None
    banner = data.BUILTIN_BANNER.format(share=task.label_noise, task=data.GLUE[task.name].folder)
    print(banner if task.data == data.BUILTIN else f"data: {task.data}", *task.notes, sep="\nnote: ")
    print(f"{config.device}, {torch.get_num_threads()} threads; everything is written to {config.out}/")
    names = [*list(sources_of(config))[1:], *config.methods.split(",")]
    try:
        for seed, name in list(itertools.product(range(config.seeds), names))[journal["done"] :]:
            context = context if context and context.seed == seed else Seed(config, seed)
            take(context, name, journal)
    except KeyboardInterrupt:
        print(f"\nstopped; to go on: python train.py --resume {config.out}", file=sys.stderr)
        sys.exit(130)
    text = f"{table(journal['results'])}\n\n{caption(config, task)}\n"
    write_whole(Path(config.out, "table.md"), text)
    plot_curves(config, journal["log"])
    print(f"\n{text}")
    return {"config": config, "out": Path(config.out), "results": journal["results"], "table": text}


def predict_sentences(out: str, sentences):
    """Print for each sentence, or pair with a tab between, what each model of seed 0 says, and how sure it is."""
    read_config(out, {})
    paths = sorted(Path(out, "seed0").glob("*.pt"), key=lambda p: ("student" in p.stem, "after" in p.stem, p))
    expect(paths, f"{out}/seed0: expected a trained model, found none yet; go on with --resume {out}")
    trained = [(path.stem.replace("-", " "), torch.load(path, "cpu", weights_only=True)) for path in paths]
    for sentence in map(str.strip, sentences):
        print(sentence)
        text = tuple(sentence.split("\t", 1)) if "\t" in sentence else sentence
        for name, saved in trained:
            network = models.Encoder(models.EncoderConfig(**saved["config"]))
            network.load_state_dict(saved["weights"])
            example = data.encode(Tokenizer.from_str(saved["tokenizer"]), data.Split([text], None))
            logits = predict(network, example)[0]  # (K,)
            p = metadistil.log_softmax(logits).exp()
            said = f"{saved['labels'][p.argmax()]:<10} {p.max():6.1%}" if saved["labels"] else f"{logits.item():.2f}"
            print(f"  {name:<26} {said}")


def parser() -> argparse.ArgumentParser:
    """The command line: a flag for each field of Config, then --resume and --predict."""
    text = f"{__doc__}\nThree defaults in brackets: of the built-in data, of files, and with pretrained models.\n"
    look = {"description": text, "formatter_class": argparse.RawDescriptionHelpFormatter}
    flags = argparse.ArgumentParser("train.py", **look, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    flags.error, groups = lambda message: flags.exit(2, f"train.py: {message}\n"), {}  # without the usage, one line
    for field in dataclasses.fields(Config):
        name, text, valid, default = (field.metadata[key] for key in ("group", "help", "valid", "default"))
        text += f", {valid[1]}" if valid and " of " in valid[1] else ""
        text += re.sub(r"[()']", "", f" [{default}]") if default not in (None, "", False) else ""
        groups[name] = groups.get(name) or flags.add_argument_group(name)
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "metavar": ""}
        groups[name].add_argument("--" + field.name.replace("_", "-"), help=text, **kind)
    flags.add_argument("--resume", metavar="RUN", help="go on with a stopped run; it ends with the same numbers")
    text = "what each model of the run in --out says of a sentence; without one, of every line of the input"
    flags.add_argument("--predict", metavar="SENTENCE", nargs="?", const=None, help=text)
    return flags


def main(arguments: list[str] | None = None):
    """Run the command line. What a user can mend ends in one line and exit status 2."""
    given = vars(parser().parse_args(arguments))
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    try:
        if "predict" in given:
            return predict_sentences(given.get("out", ""), [given["predict"]] if given["predict"] else sys.stdin)
        if given.get("data", data.BUILTIN) != data.BUILTIN:
            given["data"] = os.path.abspath(given["data"])  # a directory that was asked for: nothing takes its place
        carry_on(read_config(given.pop("resume"), given)) if "resume" in given else run(Config(**given))
    except (InputError, models.CheckpointError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
