"""The tasks: their files or the built-in reviews, splits, metrics, batches, word noise, a tokeniser.

A task has four splits. `train` and `quiz` are carved out of the training file and share no example with each other or
with the rest. `dev` selects; `test` is scored once. Only the labels of `train` can be noisy. Everything random is drawn
by default_rng([seed, purpose, ...]): 1 splits, 3 wrong labels, 4 batches, 5 quiz batches, 6 word noise, 7 crops.
"""

import collections
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch.nn import functional as F

BUILTIN = "builtin"  # stands for the reviews, where a directory is expected
REVIEWS = Path(__file__).parent / "notebooks" / "reviews"  # written by notebooks/reviews.py
DEFAULT_DATA = "data"
BUILTIN_BANNER = """=== builtin data ===  Film reviews from a small grammar: these numbers are not SST-2's.
Wrong labels, as if by careless raters: {share:.0%} of the training set; none in quiz, dev and test.
The real SST-2: python notebooks/fetch.py sst2; then the same command takes some 28 minutes.
"""


class InputError(ValueError):
    """The user gave something that cannot be used. The message is one line: what, where, what was expected."""


def expect(condition, message):
    """Raise InputError unless the condition holds."""
    if not condition:
        raise InputError(message)


@dataclass
class Split:
    """Examples, and their labels where known."""

    examples: np.ndarray  # sentences or pairs of sentences (N,), objects; or pictures in bytes (N, 3, 32, 32)
    labels: np.ndarray | None  # (N,) class numbers, or the scores of a regression

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, rows):
        return Split(self.examples[rows], None if self.labels is None else self.labels[rows])

    def __add__(self, other):
        examples = np.concatenate([self.examples, other.examples])
        return Split(examples, np.concatenate([self.labels, other.labels]))

    @property
    def keys(self) -> list:
        """The examples in a form that a set can hold: sentences, pairs, or the bytes of pictures."""
        return list(self.examples) if self.examples.dtype == object else [bytes(one) for one in self.examples]


class Task(NamedTuple):
    """One task, split."""

    name: str
    data: str  # "builtin", or the directory
    columns: tuple[str, ...]  # the names of an example's texts, one or two; of pictures none
    label_names: list[str]  # empty: a regression
    num_labels: int  # outputs of a network: 1 for a regression
    metrics: tuple[str, ...]
    train: Split
    quiz: Split
    dev: Split
    label_noise: float  # share of the labels of `train` that was made wrong
    notes: list[str]  # what was decided for the user
    test: Split | None = None  # None without a file; its labels None where none are published; MNLI's is dev_mismatched


class Files(NamedTuple):
    """How a task's files are laid out: DIR/folder/train.tsv and so on, columns by their names in the header."""

    folder: str
    texts: tuple[str, ...]  # columns; empty: pictures
    label: str  # column
    labels: dict[str, str]  # as written in the file -> as printed; empty: scores from 0 to 5
    metrics: tuple[str, ...] = ("accuracy",)
    names: tuple[str, ...] = ("train", "dev", "test")  # of the files of train, dev and test
    header: tuple[str, ...] = ()  # names of the columns, where a file has no line for them
    needed: tuple[str, ...] = ("train", "dev")  # splits whose file must be there; a missing dev is carved out of train


SENTENCES = ("sentence1", "sentence2")
TONE = {"0": "negative", "1": "positive"}
GRAMMAR = {"0": "unacceptable", "1": "acceptable"}
SAME = {"0": "different", "1": "same"}
FOLLOWS = {"entailment": "entailment", "not_entailment": "not entailment"}
MNLI = {name: name for name in ("contradiction", "entailment", "neutral")}
CLASSES = {f"class {n}": f"class {n}" for n in range(100)}
F1 = ("f1", "accuracy")
COLA_HEADER = ("source", "label", "mark", "sentence")
MNLI_FILES = ("train", "dev_matched", "dev_mismatched")
TASKS = {
    "sst2": Files("SST-2", ("sentence",), "label", TONE),
    "cola": Files("CoLA", ("sentence",), "label", GRAMMAR, ("matthews",), header=COLA_HEADER),
    "mrpc": Files("MRPC", ("#1 String", "#2 String"), "Quality", SAME, F1, needed=("train",)),
    "stsb": Files("STS-B", SENTENCES, "score", {}, ("pearson", "spearman")),
    "qqp": Files("QQP", ("question1", "question2"), "is_duplicate", SAME, F1),
    "mnli": Files("MNLI", SENTENCES, "gold_label", MNLI, names=MNLI_FILES),
    "qnli": Files("QNLI", ("question", "sentence"), "label", FOLLOWS),
    "rte": Files("RTE", SENTENCES, "label", FOLLOWS),
    "wnli": Files("WNLI", SENTENCES, "label", {"0": "no", "1": "yes"}),
    "cifar100": Files("cifar-100-binary", (), "", CLASSES, needed=("train", "test")),
}
FETCHED = {*TASKS}  # those that notebooks/fetch.py can download
# To add a task, one entry: TASKS["mine"] = Files("mine", ("text",), "label", {"0": "no", "1": "yes"})


def load_task(name, data=DEFAULT_DATA, quiz_size=None, seed=0, *, train_size=None, label_noise=None) -> Task:
    """The task `name`, split, from the directory `data`. For sst2, data="builtin" means the reviews of a grammar, which
    also stand in where the default directory lacks SST-2; `Task.data` says so.

    quiz_size: examples that leave the training file for the quiz (one in ten, as in the paper; reviews: 300).
    train_size: how many of the others to keep, at random. label_noise: share of their labels to flip (reviews: 0.4).
    Raises InputError.
    """
    expect(name in TASKS, f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    files, notes = TASKS[name], []
    folder = Path(data, files.folder)
    if name == "sst2" and (data == BUILTIN or data == DEFAULT_DATA and not folder.exists()):
        data, folder = BUILTIN, REVIEWS
    splits = read_files(files, folder, name)
    train = splits.pop("train")
    if "dev" not in splits:
        train, splits["dev"] = carve(train, len(train) // 10, None, 0)
        notes.append(f"dev: {len(splits['dev']):,} examples carved out of the training file, the same for every seed")
    held_out = {key for split in splits.values() for key in split.keys}
    kept = np.array([key not in held_out for key in train.keys])
    if not kept.all():
        notes.append(f"left out {(~kept).sum()} training examples that are in dev or test, too")
    usual_quiz, usual_noise = (300, 0.4) if data == BUILTIN else (len(train) // 10, 0.0)
    quiz_size = usual_quiz if quiz_size is None else quiz_size
    label_noise = usual_noise if label_noise is None else label_noise
    train, quiz = carve(train[kept], quiz_size, train_size, seed)
    assert not {*train.keys} & {*quiz.keys} and not {*train.keys, *quiz.keys} & held_out, "the splits overlap"
    labels = list(files.labels.values())
    missing = sorted({*train.labels.tolist()} - {*quiz.labels.tolist()}) if labels else []
    if missing:
        example = repr(labels[missing[0]])
        notes.append(f"the quiz has no example of {len(missing)} of {len(labels)} classes, such as {example}")
    train.labels = flip_labels(train.labels, label_noise, len(labels), seed)
    return Task(name, data, files.texts, labels, len(labels) or 1, files.metrics, train, quiz, **splits,
                label_noise=label_noise, notes=notes)  # fmt: skip


def files_of(name, data) -> list[Path]:
    """The files of the task `name` in the directory `data`."""
    files = TASKS[name]
    folder = REVIEWS if data == BUILTIN else Path(data, files.folder)
    found = [path for path in folder.glob("*") if path.stem in files.names]
    return sorted(found)


def read_files(files: Files, folder: Path, task) -> dict[str, Split]:
    """{"train": Split, ...} of the task's files in its folder. Raises InputError."""
    ending = "tsv" if files.texts else "bin"
    splits = {}
    for split, name in zip(("train", "dev", "test"), files.names):
        path = folder / f"{name}.{ending}"
        if path.is_file():
            splits[split] = read_glue(path, files, split) if files.texts else read_pictures(path)
        elif split in files.needed:
            get = f"; to fetch it: python notebooks/fetch.py {task}" if task in FETCHED else ""
            get += "" if files.texts else ", or draw pictures: python notebooks/pictures.py"
            raise InputError(f"{path}: expected a file there{get}")
    return splits


def carve(train: Split, quiz_size, train_size, seed):
    """Split the training file into train and quiz (or dev), by a seeded shuffle. Examples that occur twice stay in
    train. Raises InputError."""
    count = collections.Counter(train.keys)
    once = np.array([count[key] == 1 for key in train.keys], bool)
    most = min(once.sum(), len(train) - 1)
    expect(most > 0, "expected a training file with at least two examples that occur once and not in dev or test")
    expect(0 < quiz_size <= most, f"--quiz-size {quiz_size}: expected 1 to {most}, part of the training file")
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(train))
    quiz_rows = order[once[order]][:quiz_size]
    rest = order[~np.isin(order, quiz_rows)]
    fits = train_size is None or 0 < train_size <= len(rest)
    expect(fits, f"--train-size {train_size}: expected 1 to {len(rest)}, what the quiz leaves")
    return train[rest[:train_size]], train[quiz_rows]


def flip_labels(labels, share, num_labels, seed):
    """Labels (N,) of which round(share · N), chosen by the seed, are moved to another class. Raises InputError."""
    fits = 0 <= share <= 1 and (num_labels > 1 or not share)
    expect(fits, f"--label-noise {share}: expected a number from 0 to 1, and 0 for a regression")
    if not share:
        return labels
    rng = np.random.default_rng([seed, 3])
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    steps = rng.integers(1, num_labels, size=len(rows))
    flipped = labels.copy()
    flipped[rows] = (labels[rows] + steps) % num_labels
    return flipped


def read_rows(path: Path) -> list[list[str]]:
    """The lines of a tab-separated file in UTF-8, without quoting, as lists of cells. Raises InputError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        found = error.object[error.start]
        raise InputError(f"{path}:{number}: expected UTF-8, found the byte {found:#04x}") from None
    number = text[: text.find("\0")].count("\n") + 1
    expect("\0" not in text, f"{path}:{number}: expected text, found a NUL byte")
    return [[cell.strip() for cell in line.split("\t")] for line in text.split("\n")]


def read_glue(path: Path, files: Files, split) -> Split:
    """The Split in a GLUE file; that of test may have no column of labels. Raises InputError with file and line."""
    rows, header, first_line = read_rows(path), files.header, 1
    if not header or {*files.texts} <= {*rows[0]}:
        header, first_line = rows.pop(0), 2
    labelled = split != "test" or files.label in header
    for column in [*files.texts, files.label] if labelled else files.texts:
        found = " ".join(header)[:80]
        expect(header.count(column) == 1, f"{path}:1: expected one column {column!r}, found {found!r}")
    texts, labels, known = [], [], [*files.labels]
    expected = f"a label of {', '.join(known)}" if known else "a score from 0 to 5"
    for number, row in enumerate(rows, first_line):
        if row != [""]:
            where, cells = f"{path}:{number}", dict(zip(header, row))
            expect(len(row) == len(header), f"{where}: expected {len(header)} columns, found {len(row)}")
            text = tuple(cells[column] for column in files.texts)
            texts.append(text if len(text) > 1 else text[0])
            if labelled:
                written = cells[files.label]
                is_score = not known and re.fullmatch(r"[0-4](\.[0-9]+)?|5(\.0+)?", written)
                expect(is_score or written in known, f"{where}: expected {expected}, found {written!r}")
                labels.append(known.index(written) if known else float(written))
    expect(any(map(any, texts)), f"{path}: expected a header and at least one sentence, found none")
    kind = np.int64 if files.labels else np.float32
    return Split(np.fromiter(texts, object), np.array(labels, kind) if labelled else None)


def read_pictures(path: Path) -> Split:
    """CIFAR-100's records: a coarse label, a fine label, 3 × 32 × 32 bytes. Raises InputError."""
    record = 2 + 3 * 32 * 32
    size = path.stat().st_size
    expect(size and size % record == 0, f"{path}: expected whole records of {record:,} bytes, found {size:,} bytes")
    records = np.fromfile(path, np.uint8).reshape(-1, record)
    wrong = (records[:, :2] > (19, 99)).any(axis=1)
    first = wrong.argmax()
    expect(not wrong.any(), f"{path}: record {first + 1}: expected labels up to 19 and 99, found {records[first, :2]}")
    return Split(records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1].astype(np.int64))


# ---- Metrics


def confusion(predictions, labels):
    """counts (C, C) of each pair (label, prediction), over the C classes that occur in either."""
    classes, found = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (found[: len(labels)], found[len(labels) :]), 1)
    return classes, counts


def f1(predictions, labels) -> float:
    """2 hits / (predicted + labelled): that of class 1 where only classes 0 and 1 occur, else the mean over the classes
    (macro-F1). A class that is never hit has 0."""
    classes, counts = confusion(predictions, labels)
    of_class = 2 * counts.diagonal() / (counts.sum(axis=0) + counts.sum(axis=1))
    if classes.max() <= 1:
        return float(of_class[classes == 1].sum())
    return float(of_class.mean())


def matthews(predictions, labels) -> float:
    """Matthews' correlation coefficient, for any number of classes (Gorodkin 2004); 0 where either is constant."""
    _, counts = confusion(predictions, labels)
    labelled, predicted, N = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    covariance = N * counts.trace() - labelled @ predicted
    variances = (N**2 - labelled @ labelled) * (N**2 - predicted @ predicted)
    return float(covariance / np.sqrt(variances)) if variances else 0.0


def pearson(predictions, labels) -> float:
    """Pearson's correlation; 0 where either is constant."""
    constant = np.ptp(predictions) == 0 or np.ptp(labels) == 0
    return 0.0 if constant else float(np.corrcoef(predictions, labels)[0, 1])


def ranked(values):
    """Ranks (N,) from 1; ties share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


METRICS = {  # of predictions (N,) and labels (N,)
    "accuracy": lambda predictions, labels: float((predictions == labels).mean()),
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": lambda predictions, labels: pearson(ranked(predictions), ranked(labels)),
}


# ---- Batches, crops, word noise, a tokeniser


def batches_of(lengths, batch_size, seed, number):
    """The batches of rows of pass `number` over the data: shuffled, and within pools of 50 batches sorted by length."""
    rng = np.random.default_rng([seed, 4, number])
    N = len(lengths)
    rows = rng.permutation(N)
    pools = np.arange(N) // (50 * batch_size)
    rows = rows[np.lexsort((lengths[rows], pools))]
    batches = np.split(rows, range(batch_size, N, batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def sample_quiz(labels, size, seed, step):
    """Rows of a quiz batch, drawn evenly over the classes there are, or over a regression's scores; with repetition
    where a class runs short."""
    rng = np.random.default_rng([seed, 5, step])
    classes = rng.permutation(np.unique(labels))
    drawn = []
    for label, share in zip(classes, np.array_split(np.arange(size), len(classes))):
        rows = np.flatnonzero(labels == label)
        drawn.append(rng.choice(rows, len(share), replace=len(share) > len(rows)))
    return np.concatenate(drawn)


def crop_and_mirror(pictures, seed):
    """(B, 3, 32, 32) -> the same: each in a frame of 4 black pixels, a random window cut out, mirrored or not."""
    draws = np.random.default_rng(seed).integers(0, (9, 9, 2), (len(pictures), 3))
    framed = F.pad(torch.from_numpy(pictures), (4, 4, 4, 4))
    cut = []
    for picture, (top, left, mirrored) in zip(framed, draws.tolist()):
        window = picture[:, top : top + 32, left : left + 32]
        cut.append(window.flip(2) if mirrored else window)
    return torch.stack(cut).numpy()


def add_noise(text, p, rng=np.random.default_rng()):  # noqa: B008
    """The sentence, or pair, with each word replaced by "noise_word" with probability p. Punctuation between words
    stays; hyphens and apostrophes in a word, or right after it, are part of it."""

    def change(match):
        return "noise_word" if rng.random() < p else match.group()

    if isinstance(text, tuple):
        return tuple(add_noise(part, p, rng) for part in text)
    return re.sub(r"\w[\w'-]*", change, text)


def noisy(split: Split, p, seed) -> Split:
    """The split with word noise in all its texts, a function of the seed."""
    rng = np.random.default_rng([seed, 6])
    texts = (add_noise(text, p, rng) for text in split.examples)
    return Split(np.fromiter(texts, object), split.labels)


def train_tokenizer(texts, vocab_size=8000) -> Tokenizer:
    """A lower-casing WordPiece tokeniser learnt from the texts: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""
    texts = texts[:: 1 + len(texts) // 10**5]  # 100,000 at most are enough
    texts = [text if isinstance(text, str) else " ".join(text) for text in texts]
    tokenizer = BertWordPieceTokenizer()
    characters = {c for text in {*texts} for c in tokenizer.normalize(text) if not c.isspace()}
    # Left to itself, the trainer numbers the "##x" in another order each time, that of a hash table. As special tokens
    # they are numbered in the order given here.
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + [f"##{c}" for c in sorted(characters)]
    settings = {"min_frequency": 0, "limit_alphabet": len(characters), "special_tokens": first}
    tokenizer.train_from_iterator(texts, vocab_size, show_progress=False, **settings)
    # Made again from its vocabulary, so that no "##x" is special any more.
    return Tokenizer.from_str(BertWordPieceTokenizer(tokenizer.get_vocab()).to_str())
