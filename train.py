"""The main job, `python train.py --task sst2`: train a teacher, then a student by each method, and print one table.

Every student starts from the same weights, and learns from the same labels in the same number of steps. A run is a list
of stages (each teacher, then each method; for each seed), each a function of the configuration and the seed alone.
"""

import argparse, contextlib, ctypes, dataclasses, functools, gc, itertools, json, os, re, runpy, sys, time, warnings, zipfile
from pathlib import Path

import numpy as np
import torch

import data, metadistil, models
from data import InputError, expect

METHODS, MODES = "finetune|kd|pkd|metadistil|metadistil-pkd", "|".join(metadistil.MODES)
DEVICES = ["auto", "cpu"] + ["cuda"] * torch.cuda.is_available()
RANDOM = [torch.random, torch.cuda][: len(DEVICES) - 1]  # what dropout is drawn from
for function in (torch.exp, torch.log, torch.tanh):  # MKL chooses its code for each at the first call, and two threads
    function(torch.ones(1))  # calling at once may be given a worse one (pytorch's issue 188792): here one thread calls
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of Student's t, 97.5%, 1 to 9 degrees
COUNT, NOT_NEGATIVE, POSITIVE, SHARE = (1, 1e9), (0, 1e30), (1e-30, 1e30), (0, 1)  # what a number may be, ends included


def option(group: str, help: str, valid=None, default=None):
    """A field of Config: `valid` is a range or a regular expression, `default` one value or one for each kind."""
    return dataclasses.field(default=None if isinstance(default, tuple) else default, metadata=locals())


@dataclasses.dataclass
class Config:
    """Everything a run depends on. Each field is a flag; None means that the data, or the kind of run, decide."""
    task: str = option("data", "the task", "|".join(data.TASKS), "sst2")
    data: str = option("data", "directory of the task's files, or 'builtin'", None, data.DEFAULT_DATA)
    quiz_size: int = option("data", "training examples set aside for the quiz [one in ten; builtin: 300]", COUNT)
    train_size: int = option("data", "train on a random subset of that many examples [all]", COUNT)
    label_noise: float = option("data", "share of the training labels that is wrong [0; builtin: 0.4]", SHARE)
    noise: float = option("data", "share of the students' training words turned into noise_word", SHARE, 0.0)
    teacher: str = option("models", "preset, path, or A,B", None, ("tiny", "mini", "mini", "resnet14", "resnet20"))
    student: str = option("models", "preset, or path", None, ("micro", "tiny", "tiny", "resnet8", "resnet8"))
    student_layers: str = option("models", "layers a student keeps of its checkpoint: 1,3,5 [all]", r"\d+(,\d+)*")
    dropout: float = option("models", "share of units dropped while training", SHARE, (0.1, 0.2, 0.1, 0, 0))
    methods: str = option("training", f"of {METHODS}", rf"({METHODS})(,({METHODS}))*", "finetune,kd,metadistil")
    teacher_epochs: int = option("training", "epochs of the teacher's own training", COUNT, (40, 3, 2, 8, 8))
    warmup_epochs: int = option("training", "epochs of each student on labels alone", NOT_NEGATIVE, (5, 1, 1, 1, 1))
    epochs: int = option("training", "epochs of each student after that", COUNT, (50, 2, 1, 5, 4))
    batch_size: int = option("training", "training examples a step", COUNT, (128, 64, 64, 64, 128))
    finetune_lr: float = option("training", "rate of the teacher's training", POSITIVE, (5e-4, 5e-4, 7e-5, 0.1, 0.1))
    student_lr: float = option("training", "rate of the students", POSITIVE, (2e-3, 5e-4, 7e-5, 0.2, 0.1))
    alpha: float = option("distillation", "α, weight of the soft term", SHARE, (0.9, 0.5, 0.5, 0.9, 0.9))
    temperature: float = option("distillation", "T, the logits' divisor", POSITIVE, (2.0, 2.0, 2.0, 4.0, 4.0))
    beta: float = option("distillation", "β, the weight of the hidden states in pkd", NOT_NEGATIVE, 100.0)
    pkd_layers: str = option("distillation", "the teacher's layers for pkd", "skip|last", "skip")
    pilot_lr: float = option("distillation", "λ, the step of the pilot update", POSITIVE, (0.1, 0.02, 2e-3, 0.02, 0.02))
    teacher_lr: float = option("distillation", "μ, rate of the meta update", POSITIVE, (5e-4, 1e-5, 1e-6, 2e-4, 2e-4))
    quiz_batch_size: int = option("distillation", "quiz examples a step, even by class", COUNT, (200, 64, 64, 64, 128))
    meta_grad: str = option("distillation", "way to the meta-gradient", MODES, (*["second_order"] * 3, "jvp", "jvp"))
    micro_batch: int = option("distillation", "examples at a time in the teacher's backward pass [all]", COUNT)
    meta_every: int = option("distillation", "the teacher learns at every K-th step", COUNT, (1, 1, 1, 4, 4))
    no_pilot: bool = option("distillation", "ablation: the student keeps the pilot's update", None, False)
    learn_quiz: bool = option("distillation", "metadistil's student trains on the quiz's labels, too", None, False)
    freeze_teacher: bool = option("distillation", "ablation: the teacher hears the quiz and stays", None, False)
    seeds: int = option("run", "do everything with seeds 0 to N-1", COUNT, 1)
    device: str = option("run", "auto: cuda where there is one", "|".join(DEVICES), "auto")
    precision: str = option("run", "of products; auto: bf16 where the hardware has it", "fp32|bf16|auto", "fp32")
    out: str = option("run", "the run's directory [a new one under runs/]", None, "")
    log_every: int = option("run", "steps between two lines of metrics.jsonl", COUNT, 50)
    checkpoint_seconds: float = option("run", "seconds between two checkpoints", NOT_NEGATIVE, 60.0)

    def load(self, seed: int) -> "data.Task":
        """The task, split by the seed."""
        sizes = {"quiz_size": self.quiz_size, "train_size": self.train_size, "label_noise": self.label_noise}
        return data.load_task(self.task, self.data, seed=seed, **sizes)

    def sources(self, seed: int) -> dict[str, str]:
        """{"student": preset, directory or .pt, "teacher": ..., "teacher 2": ...}, as many teachers as there are."""
        names = f"{self.student},{self.teacher}".replace("{seed}", str(seed)).split(",")
        return {("student", "teacher", f"teacher {n}")[min(n, 2)]: name for n, name in enumerate(names)}

    def layers(self) -> list[int] | None:
        """The layers the student keeps of its checkpoint, 0 the first; None for all."""
        return [int(layer) for layer in self.student_layers.split(",")] if self.student_layers else None


def resolve(config: Config) -> Config:
    """The configuration, checked, nothing left open. Raises InputError, and CheckpointError on an unknown model."""
    for field in dataclasses.fields(config):
        value, valid = getattr(config, field.name), field.metadata["valid"]
        if value is not None and valid:
            words = isinstance(valid, str)
            fits = re.fullmatch(valid, value) if words else valid[0] <= value <= valid[1]
            expected = valid if words else "a number from {:g} to {:g}".format(*valid)
            expect(fits, f"--{field.name.replace('_', '-')} {value}: expected {expected}")
    task = config.load(0)
    files, pictures = task.data != data.BUILTIN, task.name == "cifar100"
    pretrained = any(map(os.path.isdir, f"{config.teacher},{config.student}".split(",")))
    kind = 3 + files if pictures else 2 if pretrained else int(files)
    decided = {"data": task.data, "quiz_size": len(task.quiz), "label_noise": task.label_noise}
    left = {f.name: f.metadata["default"] for f in dataclasses.fields(config) if getattr(config, f.name) is None}
    decided |= {name: five[kind] for name, five in left.items() if isinstance(five, tuple)}
    config = dataclasses.replace(config, **decided)
    config.device = DEVICES[-1] if config.device == "auto" else config.device
    if config.precision == "auto":
        able = any(found for name, found in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
        able = torch.cuda.is_bf16_supported(including_emulation=False) if config.device == "cuda" else able
        config.precision = "bf16" if able else "fp32"
    names = (f"runs/{task.name}-{'files' if files else 'builtin'}{f'-{n}' * (n > 1)}" for n in itertools.count(1))
    config.out = config.out or next(name for name in names if not os.path.exists(name))
    expect(not config.student_layers or os.path.isdir(config.student), "--student-layers: expected a checkpoint")
    expect(not (pictures and config.noise), "--noise: expected a task of sentences")
    shapes = {source: models.shape_of(source) for source in config.sources(0).values()}
    for source, shape in shapes.items():
        of_task = isinstance(shape, models.ResNetConfig) == pictures
        fits = of_task and (not source.endswith(".pt") or shape.num_labels == task.num_labels)
        expect(fits, f"{source}: expected a network for {task.name}, of {task.num_labels} classes")
        fits = "pkd" not in config.methods or not pictures and matched_layers(config, shape, [*shapes.values()][0])
        expect(fits, "pkd: expected a student of 2 layers or more, as wide as its teacher and no deeper")
    return config


def matched_layers(config: Config, shape, student) -> tuple[int, ...]:
    """The layers of a network, from 1, that pkd matches, () if the shapes forbid it: of a student's M all but the last;
    of a teacher's L every (L / M)-th ("skip"), or those before the last (Sun et al. 2019, section 3.2)."""
    L, M = shape.layers, len(config.layers() or range(student.layers))
    chosen = (n * L // M if config.pkd_layers == "skip" else L - M + n for n in range(1, M))
    return tuple(chosen) if M <= L and shape.hidden == student.hidden else ()


def write_whole(path: Path, content: str | dict):
    """Write text, or a dict by torch.save: under `path` stands the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        torch.save(content, file) if isinstance(content, dict) else file.write(content.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def save(config: Config, journal: dict):
    """Write metrics.jsonl and the checkpoint, that nothing done is lost. The journal: configuration, number of stages
    done, results ({model: [a dict for each seed]}), log, and the state of the stage under way."""
    write_whole(Path(config.out, "metrics.jsonl"), "".join(json.dumps(entry) + "\n" for entry in journal["log"]))
    path = Path(config.out, "checkpoint.pt")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, path.with_name("checkpoint-before.pt"))
    write_whole(path, journal)


def read_journal(out: str) -> tuple[Config, dict]:
    """The configuration and the journal of a run, by its last checkpoint that is whole. Raises CheckpointError."""
    paths = Path(out, "checkpoint.pt"), Path(out, "checkpoint-before.pt")
    for path in paths:
        try:
            with models.expecting(f"{path}: expected the checkpoint of a run"):
                expect(not zipfile.ZipFile(path).testzip(), "its check sum is wrong")
                journal = torch.load(path, "cpu", weights_only=True)
                return Config(**journal["config"] | {"out": out}), journal
        except models.CheckpointError as error:
            if not paths[1].exists() or path == paths[1]:
                raise
            warnings.warn(f"{error}; the one before is used", stacklevel=2)


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation; 0 where either is constant. Of two classes it is Matthews' coefficient."""
    constant = np.ptp(predictions) == 0 or np.ptp(labels) == 0
    return 0.0 if constant else float(np.corrcoef(predictions, labels)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (N,) from 1; ties share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


METRICS = {"matthews": pearson, "pearson": pearson, "spearman": lambda p, y: pearson(ranks(p), ranks(y))}
METRICS["accuracy"] = lambda p, y: float((p == y).mean())  # of predictions p (N,) and labels y (N,)
METRICS["f1"] = lambda p, y: float(2 * (p * y).sum() / max(1, (p + y).sum()))  # of class 1; 0 without any hit


@torch.no_grad()
def predict(model: torch.nn.Module, examples: data.Encoded) -> torch.Tensor:
    """The model's logits (N, K) in eval mode, in the examples' order, computed in batches of like length."""
    rows = np.argsort(examples.lengths, kind="stable")
    chunks = np.split(rows, range(256, len(rows), 256))
    logits = [metadistil.forward(model.eval(), examples.batch(chunk)[0])[0].cpu() for chunk in chunks]
    return torch.cat(logits)[np.argsort(rows)]


class Seed:
    """One seed's splits as each role reads them, {role: {split: Encoded}}, and how its models begin."""

    def __init__(self, config: Config, seed: int):
        self.config, self.seed, self.folder = config, seed, Path(config.out, f"seed{seed}")
        self.task, self.sources, self.tokenizers, self.read = config.load(seed), config.sources(seed), {}, {}
        # Whoever has no use for a quiz trains on it, so that every method learns from the same labels.
        splits = {"train+quiz": self.task.train + self.task.quiz, "dev": self.task.dev, "test": self.task.test}
        splits = {name: split for name, split in splits.items() if split and split.labels is not None}
        self.steps_per_epoch = -(-len(splits["train+quiz"]) // config.batch_size)
        own = data.train_tokenizer(splits["train+quiz"].texts) if {*models.PRESETS} & {*self.sources.values()} else None
        encode = functools.cache(data.encode)  # roles of one vocabulary share what they read
        for role, source in reversed(self.sources.items()):  # the student last: its noise is its own
            fresh = source in models.PRESETS or self.task.name == "cifar100"
            tokenizer = self.tokenizers[role] = own if fresh else data.read_tokenizer(source)
            shape, ids = models.shape_of(source), 0 if fresh else max(tokenizer.get_vocab().values())
            if role == "student" and config.noise:
                splits |= {"train+quiz": data.noisy(self.task.train, config.noise, seed) + self.task.quiz}
            expect(fresh or ids < shape.vocab_size, f"{source}: expected {ids + 1:,} rows for its tokeniser's ids")
            most = min(data.MAX_LENGTH, shape.max_positions - shape.position_offset) if tokenizer else 0
            self.read[role] = {n: encode(tokenizer, split, config.device, most) for n, split in splits.items()}

    def batch(self, rows: np.ndarray, step: int | None = None) -> tuple[dict, torch.Tensor]:
        """Rows of train and quiz, ({role: inputs}, labels (B,)). With a step, pictures are cropped and mirrored."""
        crop = None if step is None else [self.seed, 7, step]
        read = functools.cache(lambda split: split.batch(rows, crop))
        found = {role: read(splits["train+quiz"]) for role, splits in self.read.items()}
        return {role: inputs for role, (inputs, _) in found.items()}, found["student"][1]

    def model(self, role: str, saved: str = "") -> torch.nn.Module:
        """The role's model: the same initial weights always, or as a stage saved it. It reads its role's inputs."""
        torch.manual_seed(2 * self.seed + list(self.sources).index(role))
        source = str(self.folder / f"{saved}.pt") if saved else self.sources[role]
        vocab_size = self.tokenizers[role].get_vocab_size() if self.tokenizers[role] else None
        layers = self.config.layers() if role == "student" else None
        model = models.build(source, self.task.num_labels, self.config.dropout, vocab_size, layers)
        device, half, model.role = self.config.device, self.config.precision == "bf16", role
        model.register_forward_pre_hook(lambda _, args, read: (args, read.get(role, read)), with_kwargs=True)
        model.forward = torch.autocast(device, torch.bfloat16, half, cache_enabled=False)(model.forward)
        return model.to(device, memory_format=torch.channels_last)

    def scores(self, model: torch.nn.Module, *splits: str) -> dict[str, float]:
        """{"dev accuracy": 0.81, ...}: the task's metrics on those of the splits that have labels."""
        found, read = {}, self.read[model.role]
        for split in [split for split in splits if split in read]:
            logits = predict(model, read[split]).numpy()
            predictions = logits.argmax(axis=-1) if self.task.label_names else logits[:, 0]
            found |= {f"{split} {name}": METRICS[name](predictions, read[split].labels) for name in self.task.metrics}
        return found


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, total: int):
    """AdamW's rate: linear warm-up over the first tenth of the steps, then linear decay to zero. SGD's: a tenth of
    what it was at 62.5, 75 and 87.5% of the steps, as RepDistiller's (Tian et al. 2020) at 150, 180 and 210 of 240 epochs."""
    warmup = max(1, total // 10)
    linear = min((step + 1) / warmup, (total - step) / max(1, total - warmup))
    falls = 0.1 ** sum(step >= share * total for share in (0.625, 0.75, 0.875))
    for group in optimizer.param_groups:
        group["lr"] = rate * (falls if isinstance(optimizer, torch.optim.SGD) else linear)


def stage(context: Seed, name: str) -> tuple:
    """(learners, optimisers, total, step): models that learn, by title; how many steps; step(k, trace) -> loss.
    A teacher learns from labels, as each student does while it warms up; how methods differ beyond that `step` says."""
    config, meta, teachers = context.config, name.startswith("metadistil"), {}
    if name in context.sources:
        title, model, rate = f"{name} before", context.model(name), config.finetune_lr
        epochs = warmup = 0 if context.sources[name].endswith(".pt") else config.teacher_epochs
    else:
        title, model, rate = f"student {name}", context.model("student"), config.student_lr
        epochs, warmup = config.warmup_epochs + config.epochs, config.warmup_epochs
        for role in list(context.sources)[1:] if name != "finetune" else ():
            teachers[f"{role} after {name}"] = context.model(role, f"{role} before".replace(" ", "-"))
    learners, teachers = {title: model} | (teachers if meta else {}), list(teachers.values())
    torch.nn.ModuleList(teachers).requires_grad_(not config.freeze_teacher)
    for reader in [model, *teachers] if name.endswith("pkd") else ():
        reader.patient_layers = matched_layers(config, reader.config, model.config)
    kind = functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4) if config.task == "cifar100" else torch.optim.AdamW
    optimizers = [kind(module.parameters(), fused=True) for module in [model, torch.nn.ModuleList(teachers)][: 1 + meta]]
    both, n = context.read["student"]["train+quiz"], len(context.task.train)  # the quiz stands behind the n of train
    lengths = both.lengths[:n] if meta and not (config.freeze_teacher or config.learn_quiz) else both.lengths
    batches = functools.lru_cache(1)(functools.partial(data.batches_of, lengths, config.batch_size, context.seed))
    soft = {"alpha": config.alpha, "temperature": config.temperature, "beta": config.beta}
    settings = soft | {"pilot_lr": config.pilot_lr, "mode": config.meta_grad, "micro_batch": config.micro_batch}
    settings["keep_pilot"] = config.no_pilot
    total, warmup = epochs * context.steps_per_epoch, warmup * context.steps_per_epoch

    def step(k: int, trace: dict | None) -> torch.Tensor:
        set_rate(optimizers[0], rate, k, total)
        epoch, place = divmod(k, -(-len(lengths) // config.batch_size))
        batch = context.batch(batches(epoch)[place], k)
        if k < warmup or not meta or (k - warmup) % config.meta_every:
            return metadistil.real_update(model, teachers if k >= warmup else [], batch, optimizers[0], **soft)
        set_rate(optimizers[1], config.teacher_lr, k - warmup, total - warmup)
        rows = n + data.sample_quiz(both.labels[n:], config.quiz_batch_size, context.seed, k)
        waste = int((size := both.lengths[rows]).max() // size.mean())  # what padding to the longest would cost, times
        parts = np.array_split(rows[np.argsort(size, kind="stable")], waste)  # of like length
        quiz = [context.batch(part) for part in parts] if waste > 1 else context.batch(rows)
        return metadistil.metadistil_step(model, teachers, batch, quiz, *optimizers, trace=trace, **settings)[0]

    return learners, optimizers, total, step


def take(context: Seed, name: str, journal: dict):
    """Take the stage's steps, from the checkpoint if it was under way; log, score dev after each epoch, save."""
    config, log = context.config, journal["log"]
    learners, optimizers, total, step = stage(context, name)
    parts = [*learners.values(), *optimizers]
    torch.manual_seed(1000 + context.seed)  # of dropout
    state = journal["under_way"] or {"step": 0, "seconds": 0.0, "peak_mb": 0.0, "parts": [], "rng": []}
    for part, saved in zip(parts, state["parts"]):
        part.load_state_dict(saved)
    for generator, saved in zip(RANDOM, state["rng"]):
        generator.set_rng_state(saved)
    noted, saved, shown = {}, time.monotonic(), -np.inf  # noted: losses, and dev scores by role
    peak_memory_mb(reset=True)
    for k in range(state["step"], total):
        started, trace = time.perf_counter(), {} if k % config.log_every == 0 or k + 1 == total else None
        loss, entry = step(k, trace).item(), {"seed": context.seed, "stage": name, "step": k + 1}
        if not np.isfinite(loss):
            rates = {rate: getattr(config, rate) for rate in ("finetune_lr", "student_lr", "teacher_lr", "pilot_lr")}
            raise InputError(f"{entry}: expected a finite loss, found {loss} at {rates}; try a tenth of these rates")
        if trace is not None:
            quiz = {key: trace[key].item() for key in ("quiz_loss_before", "quiz_loss_after") if key in trace}
            noted |= {"loss": loss, **quiz}
            log.append(entry | {"loss": loss, **quiz})
        state["seconds"] += time.perf_counter() - started
        if (k + 1) % context.steps_per_epoch == 0:
            scores = {title: context.scores(model, "dev") for title, model in learners.items()}
            log.append(entry | {"epoch": (k + 1) // context.steps_per_epoch, "scores": scores})
            noted |= {title.split()[0]: next(iter(found.values())) for title, found in scores.items()}
        if k + 1 == total or time.monotonic() - shown >= (0.2 if sys.stderr.isatty() else 10):
            show(f"seed {context.seed} {name}", k + 1, total, noted, state["seconds"])
            shown = time.monotonic()
        state |= {"step": k + 1, "peak_mb": max(peak_memory_mb(), state["peak_mb"])}  # NaN, if it comes first, stays
        if time.monotonic() - saved >= config.checkpoint_seconds and k + 1 < total:
            rng, saved = [generator.get_rng_state() for generator in RANDOM], time.monotonic()
            state |= {"parts": [part.state_dict() for part in parts], "rng": rng}
            save(config, journal | {"under_way": state})
    finish(context, name, journal, learners, {cost: state[cost] for cost in ("seconds", "peak_mb")})


def finish(context: Seed, name: str, journal: dict, learners: dict, cost: dict):
    """Save the stage's models, score them on dev and, this once, on test, and note the results."""
    for title, model in learners.items():
        whole = {"config": dataclasses.asdict(model.config), "weights": model.state_dict()}
        whole |= {"labels": context.task.label_names, "tokenizer": (t := context.tokenizers[model.role]) and t.to_str()}
        write_whole(context.folder / f"{title.replace(' ', '-')}.pt", whole)
        scores, size = context.scores(model, "dev", "test"), sum(parameter.numel() for parameter in model.parameters())
        (what, found), labels = next(iter(scores.items())), context.task.dev.labels
        chance = max(METRICS[context.task.metrics[0]](labels * 0 + label, labels) for label in np.unique(labels))
        if title.endswith("before") and found < chance + 0.02:
            warnings.warn(f"{title}: {what} {found:.3f}; one answer to everything has {chance:.3f}", stacklevel=2)
        journal["log"].append({"seed": context.seed, "stage": name, "model": title, "final_scores": scores})
        journal["results"].setdefault(title, []).append({"scores": scores, "parameters": size, **cost})
        cost = dict.fromkeys(cost, np.nan)  # a stage's cost is its first model's
    journal |= {"done": journal["done"] + 1, "under_way": None}
    save(context.config, journal)


def show(what: str, step: int, total: int, noted: dict[str, float], seconds: float):
    """Print the progress, after so many seconds: on a terminal over the line before, elsewhere a line of its own."""
    left, live = seconds / step * (total - step), sys.stderr.isatty()
    said = [f"{what:<18} step {step}/{total}", *(f"{name} {value:.4f}" for name, value in noted.items())]
    line = "  ".join([*said, f"{left // 60:.0f}:{left % 60:02.0f} left"])
    print(f"\r\033[K{line}" if live else line, end="" if live and left else "\n", file=sys.stderr, flush=True)


def peak_memory_mb(reset: bool = False) -> float:
    """Most memory held since the last reset, in 10⁶ bytes: the GPU's, or on Linux the process's; else NaN."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats() if reset else None
        return torch.cuda.max_memory_allocated() / 1e6
    with contextlib.suppress(AttributeError, OSError, TypeError):
        if reset:
            gc.collect(), ctypes.CDLL(None).malloc_trim(0)  # what earlier stages have freed, malloc would keep and we count
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
    return np.nan


def spread(values: np.ndarray) -> str:
    """Percent: "71.2", or "71.2 ± 0.4", mean ± standard deviation of several seeds."""
    return f"{100 * values.mean():.1f}" + (f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else "")


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Points, seed by seed: "+4.1 [+2.0, +6.2]", the mean and its 95% interval (on the safe side beyond 10 seeds)."""
    difference, n = 100 * (ours - theirs), len(ours)
    if n == 1:
        return f"{difference[0]:+.1f}"
    mean, half = difference.mean(), T_QUANTILES[min(n, 10) - 2] * difference.std(ddof=1) / np.sqrt(n)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def table(config: Config, task: data.Task, results: dict[str, list[dict]]) -> str:
    """The run's table in Markdown, a row for each model, a column for each score and cost; and what its numbers are."""
    columns, most = list(results["teacher before"][0]["scores"]), results["teacher before"][0]["parameters"]
    main = f"{columns[-1].split()[0]} {task.metrics[0]}"  # the task's first metric, on its last split
    rows = [["model", *columns, f"difference ({main})", "parameters", "times smaller", "seconds", "peak MB"]]
    rows.append(["---"] * len(rows[0]))
    of = {name: {c: np.array([one["scores"][c] for one in found]) for c in columns} for name, found in results.items()}
    for title in sorted(results, key=lambda title: title.startswith("student")):
        rival = "student kd" if title.startswith("student") else title.split(" after")[0] + " before"
        differs, size = rival in results and rival != title, results[title][0]["parameters"]
        difference = paired_difference(of[title][main], of[rival][main]) if differs else ""
        rows.append([title, *map(spread, of[title].values()), difference, f"{size:,}", f"{most / size:.1f}"])
        costs = [np.mean([seed[cost] for seed in results[title]]) for cost in ("seconds", "peak_mb")]
        rows[-1] += ["–" if np.isnan(cost) else f"{cost:.0f}" for cost in costs]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"""

{task.name} ({task.data}): {len(task.train):,} training examples, {task.label_noise:.0%} mislabelled, \
{len(task.quiz):,} in the quiz; {config.seeds} seed(s).
Percent, after all epochs: {config.teacher_epochs} of a teacher, {config.warmup_epochs} + {config.epochs} of a student.
Difference: students to kd, teacher to what it was, paired by seed, with a 95% interval.\n"""


def run(config: Config, journal: dict | None = None) -> dict:
    """A whole run, or by its journal the rest of one -> {"config", "out", "results", "table"}. Raises InputError."""
    config = config if journal else resolve(config)
    out, task, of_seed = Path(config.out), config.load(0), functools.lru_cache(1)(functools.partial(Seed, config))
    if not journal:
        expect(not (out / "checkpoint.pt").exists(), f"--out {out}: holds a run; expected a new one, or --resume {out}")
        list(map(of_seed(0).model, config.sources(0)))  # fails, if at all, before anything is written
        journal = {"config": dataclasses.asdict(config), "done": 0, "results": {}, "log": [], "under_way": None}
        save(config, journal)
    write_whole(out / "config.json", json.dumps(journal["config"], indent=2))
    banner = data.BUILTIN_BANNER.format(share=task.label_noise, task=data.TASKS[task.name].folder)
    print(banner if task.data == data.BUILTIN else f"data: {task.data}", *task.notes, sep="\nnote: ")
    print(f"{config.device}, {torch.get_num_threads()} threads, {config.precision}; everything is written to {out}/")
    names = dict.fromkeys([*list(config.sources(0))[1:], *config.methods.split(",")])
    try:
        for seed, name in list(itertools.product(range(config.seeds), names))[journal["done"] :]:
            take(of_seed(seed), name, journal)
    except KeyboardInterrupt:
        print(f"\nstopped; to go on: python train.py --resume {out}", file=sys.stderr)
        sys.exit(130)
    write_whole(out / "table.md", text := table(config, task, journal["results"]))
    print(f"\n{text}")
    return {"config": config, "out": out, "results": journal["results"], "table": text}


def predict_sentences(out: str, sentences):
    """Print for each sentence, or pair with a tab between, what each model of seed 0 says, and how sure it is."""
    paths = sorted(Path(out, "seed0").glob("*.pt"), key=lambda p: ("student" in p.stem, "after" in p.stem, p))
    expect(paths, f"{out or '--out'}: expected a run with a trained model, found none; start one, or --resume it")
    trained = [(path.stem.replace("-", " "), *models.read_saved(path)) for path in paths]
    expect(all(saved["tokenizer"] for *_, saved in trained), f"{out}: expected a run on sentences, not on pictures")
    for line in map(str.strip, sentences):
        print(line)
        split = data.Split(np.fromiter([tuple(line.split("\t", 1)) if "\t" in line else line], object), None)
        for name, network, saved in trained:
            logits = predict(network, data.encode(data.Tokenizer.from_str(saved["tokenizer"]), split))[0]  # (K,)
            p = metadistil.log_softmax(logits).exp()
            said = f"{saved['labels'][p.argmax()]:<10} {p.max():6.1%}" if saved["labels"] else f"{logits.item():.2f}"
            print(f"  {name:<26} {said}")


def parse(arguments: list[str] | None) -> dict:
    """What the command line gives: a flag for each field of Config, then --resume and --predict."""
    look = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    flags = argparse.ArgumentParser("train.py", **look, argument_default=argparse.SUPPRESS)
    flags.epilog = "Five defaults: of built-in sentences, files, pretrained models, built-in pictures, CIFAR-100."
    flags.error = lambda message: flags.exit(2, f"train.py: {message}\n")  # without the usage, one line
    group = functools.cache(flags.add_argument_group)
    for field in dataclasses.fields(Config):
        name, text, valid, default = (field.metadata[key] for key in ("group", "help", "valid", "default"))
        text += f": {valid}" if isinstance(valid, str) and "(" not in valid else ""
        text += re.sub(r"[()']", "", f" [{default}]") if default not in (None, "", False) else ""
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "metavar": ""}
        group(name).add_argument("--" + field.name.replace("_", "-"), help=text, **kind)
    flags.add_argument("--resume", metavar="RUN", help="go on with a stopped run; it ends with the same numbers")
    flags.add_argument("--predict", metavar="SENTENCE", nargs="?", help="what the run in --out says of it")
    return vars(flags.parse_args(arguments))


def main(arguments: list[str] | None = None):
    """Run the command line. What a user can mend ends in one line and exit status 2."""
    given, warnings.formatwarning = parse(arguments), lambda message, *_: f"note: {message}\n"
    try:
        if "predict" in given:
            return predict_sentences(given.get("out", ""), [given["predict"]] if given["predict"] else sys.stdin)
        if "resume" in given:
            expect(len(given) == 1, f"--resume {given['resume']}: expected no other flag, the run has its own")
        elif given.get("data", data.BUILTIN) != data.BUILTIN:
            given["data"] = os.path.abspath(given["data"])  # asked for: nothing takes its place
        out = run(*read_journal(given["resume"]) if "resume" in given else [Config(**given)])["out"]
        with contextlib.suppress(ImportError, FileNotFoundError):  # no matplotlib, or no such script: no curves
            runpy.run_path(str(Path(__file__).with_name("notebooks") / "curves.py"))["draw"](out)
    except (InputError, models.CheckpointError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
