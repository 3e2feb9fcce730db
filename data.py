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
from tokenizers import BertWordPieceTokenizer, Tokenizer

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


# ---- The files

SPLITS = ("train", "dev", "test")  # those with a file; the quiz is carved out of train


class Files(NamedTuple):
    """How a task's files are laid out: DIR/folder/train.tsv and so on, columns by their names in the header."""

    folder: str
    texts: tuple[str, ...]  # columns; empty: pictures
    label: str  # column
    labels: dict[str, str]  # as written in the file -> as printed; empty: scores from 0 to 5
    metrics: tuple[str, ...] = ("accuracy",)
    names: tuple[str, ...] = SPLITS  # of their files
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


def paths_of(name, data) -> dict[str, Path]:
    """Where the files of the task's train, dev and test are, or would be."""
    files = TASKS[name]
    folder = REVIEWS if (name, data) == ("sst2", BUILTIN) else Path(data, files.folder)
    ending = "tsv" if files.texts else "bin"
    return {split: folder / f"{file}.{ending}" for split, file in zip(SPLITS, files.names)}


def files_of(name, data) -> list[Path]:
    """The files of the task that are there."""
    return [path for path in paths_of(name, data).values() if path.is_file()]


def read_files(name, data) -> dict[str, Split]:
    """The task's files as {"train": Split, ...}. Raises InputError."""
    files, splits = TASKS[name], {}
    for split, path in paths_of(name, data).items():
        if path.is_file():
            splits[split] = read_glue(path, files, split) if files.texts else read_pictures(path)
        elif split in files.needed:
            hint = f"; to fetch it: python notebooks/fetch.py {name}" if name in FETCHED else ""
            hint += "" if files.texts else ", or draw pictures: python notebooks/pictures.py"
            raise InputError(f"{path}: expected a file there{hint}")
    return splits


def read_glue(path: Path, files: Files, split) -> Split:
    """The Split in a GLUE file: tab-separated, without quoting; that of test may have no column of labels. Raises
    InputError with file and line."""
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")  # what is not UTF-8 becomes a lone surrogate
    rows = [[cell.strip() for cell in line.split("\t")] for line in text.split("\n")]
    header, first_line = files.header, 1
    if not header or {*files.texts} <= {*rows[0]}:
        header, first_line = rows.pop(0), 2
    labelled = split != "test" or files.label in header
    for column in [*files.texts, files.label] if labelled else files.texts:
        found = " ".join(header)[:80]
        expect(header.count(column) == 1, f"{path}:1: expected one column {column!r}, found {found!r}")
    texts, labels, known = [], [], [*files.labels]
    expected = f"a label of {', '.join(known)}" if known else "a score from 0 to 5"
    for number, row in enumerate(rows, first_line):
        if row == [""]:
            continue
        where, cells = f"{path}:{number}", dict(zip(header, row))
        not_text = re.findall("[\0\ud800-\udfff]", "".join(row))
        expect(not not_text, f"{where}: expected text in UTF-8, found {not_text[:1]}")
        expect(len(row) == len(header), f"{where}: expected {len(header)} columns, found {len(row)}")
        text = tuple(cells[column] for column in files.texts)
        texts.append(text if len(text) > 1 else text[0])
        if labelled:
            written = cells[files.label]
            is_score = not known and re.fullmatch(r"[0-4](\.[0-9]+)?|5(\.0+)?", written)
            expect(is_score or written in known, f"{where}: expected {expected}, found {written!r}")
            labels.append(known.index(written) if known else float(written))
    expect(any(map(any, texts)), f"{path}: expected a header and at least one sentence, found none")
    kind = np.int64 if known else np.float32
    return Split(np.fromiter(texts, object), np.array(labels, kind) if labelled else None)


def read_pictures(path: Path) -> Split:
    """CIFAR-100's records: a coarse label, a fine label, 3 × 32 × 32 bytes. Raises InputError."""
    content, record = np.fromfile(path, np.uint8), 2 + 3 * 32 * 32
    whole = len(content) and len(content) % record == 0
    expect(whole, f"{path}: expected whole records of {record:,} bytes, found {len(content):,} bytes")
    records = content.reshape(-1, record)
    labels = records[:, :2]  # (N, 2)
    for row in np.flatnonzero((labels > (19, 99)).any(axis=1)):
        raise InputError(f"{path}: record {row + 1}: expected labels up to 19 and 99, found {labels[row]}")
    return Split(records[:, 2:].reshape(-1, 3, 32, 32), labels[:, 1].astype(np.int64))


# ---- The splits


def load_task(name, data=DEFAULT_DATA, quiz_size=None, seed=0, *, train_size=None, label_noise=None) -> Task:
    """The task `name`, split, from the directory `data`. For sst2, data="builtin" means the reviews of a grammar, which
    also stand in where the default directory lacks SST-2; `Task.data` says so.

    quiz_size: examples that leave the training file for the quiz (one in ten, as in the paper; reviews: 300).
    train_size: how many of the others to keep, at random. label_noise: share of their labels to flip (reviews: 0.4).
    Raises InputError.
    """
    expect(name in TASKS, f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    files, notes = TASKS[name], []
    if name == "sst2" and data == DEFAULT_DATA and not Path(data, files.folder).exists():
        data = BUILTIN
    splits = read_files(name, data)
    train = splits.pop("train")
    if "dev" not in splits:
        train, splits["dev"] = carve(train, len(train) // 10, 0)
        notes.append(f"dev: {len(splits['dev']):,} examples carved out of the training file, the same for every seed")
    if quiz_size is None:
        quiz_size = 300 if data == BUILTIN else len(train) // 10
    if label_noise is None:
        label_noise = 0.4 if data == BUILTIN else 0.0
    held_out = {key for split in splits.values() for key in split.keys}
    kept = np.array([key not in held_out for key in train.keys])
    if not kept.all():
        notes.append(f"left out {(~kept).sum()} training examples that are in dev or test, too")
    train, quiz = carve(train[kept], quiz_size, seed)
    fits = train_size is None or 0 < train_size <= len(train)
    expect(fits, f"--train-size {train_size}: expected 1 to {len(train)}, what the quiz leaves")
    train = train[:train_size]
    assert not {*train.keys} & {*quiz.keys} and held_out.isdisjoint(train.keys + quiz.keys), "the splits overlap"
    labels, missing = [*files.labels.values()], np.setdiff1d(train.labels, quiz.labels)
    if labels and len(missing):
        example = repr(labels[missing[0]])
        notes.append(f"the quiz has no example of {len(missing)} of {len(labels)} classes, such as {example}")
    train.labels = flip_labels(train.labels, label_noise, len(labels), seed)
    return Task(data, files.texts, labels, len(labels) or 1, files.metrics, train, quiz, **splits,
                label_noise=label_noise, notes=notes)  # fmt: skip


def carve(split: Split, size, seed) -> tuple[Split, Split]:
    """(what is left, `size` examples), by a seeded shuffle. Examples that occur twice are left. Raises InputError."""
    count = collections.Counter(split.keys)
    once = np.array([count[key] == 1 for key in split.keys], bool)
    most = min(once.sum(), len(split) - 1)
    expect(most > 0, "expected a training file with at least two examples that occur once and not in dev or test")
    expect(0 < size <= most, f"--quiz-size {size}: expected 1 to {most}, part of the training file")
    order = np.random.default_rng([seed, 1]).permutation(len(split))
    carved = order[once[order]][:size]
    left = order[~np.isin(order, carved)]
    return split[left], split[carved]


def flip_labels(labels, share, num_labels, seed):
    """Labels (N,) of which round(share · N), chosen by the seed, are moved to another class. Raises InputError."""
    if share == 0:
        return labels
    fits = 0 < share <= 1 and num_labels > 1
    expect(fits, f"--label-noise {share}: expected a number from 0 to 1, and 0 for a regression")
    rng = np.random.default_rng([seed, 3])
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    flipped = labels.copy()
    flipped[rows] = (labels[rows] + rng.integers(1, num_labels, size=len(rows))) % num_labels
    return flipped


# ---- Metrics


def one_hot(predictions, labels):
    """(classes (C,), predictions (N, C), labels (N, C)), with a 1 in the column of each class, of those that occur."""
    classes = np.union1d(predictions, labels)
    return classes, 1.0 * (predictions[:, None] == classes), 1.0 * (labels[:, None] == classes)


def f1(predictions, labels) -> float:
    """2 hits / (predicted + labelled): that of class 1 where only classes 0 and 1 occur, else the mean over the classes
    (macro-F1). A class that is never hit has 0."""
    classes, predicted, labelled = one_hot(predictions, labels)
    of_class = 2 * (predicted * labelled).sum(axis=0) / (predicted + labelled).sum(axis=0)
    if classes.max() <= 1:
        return float(of_class[classes == 1].sum())
    return float(of_class.mean())


def matthews(predictions, labels) -> float:
    """Matthews' correlation coefficient, for any number of classes (Gorodkin 2004): Pearson's, of the one-hot columns,
    each less its mean; 0 where either is constant."""
    _, predicted, labelled = one_hot(predictions, labels)
    return pearson((predicted - predicted.mean(axis=0)).ravel(), (labelled - labelled.mean(axis=0)).ravel())


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
    framed = np.pad(pictures, ((0, 0), (0, 0), (4, 4), (4, 4)))
    cut = []
    for picture, (top, left, mirrored) in zip(framed, draws):
        window = picture[:, top : top + 32, left : left + 32]
        cut.append(window[:, :, ::-1] if mirrored else window)
    return np.stack(cut)


def add_noise(text, p, rng=np.random):
    """The sentence, or pair, with each word replaced by "noise_word" with probability p. Punctuation between words
    stays; hyphens and apostrophes in a word, or right after it, are part of it."""
    if isinstance(text, tuple):
        return tuple(add_noise(part, p, rng) for part in text)
    return re.sub(r"\w[\w'-]*", lambda word: "noise_word" if rng.random() < p else word[0], text)


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
