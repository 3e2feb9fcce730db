"""The tasks: files read, downloaded or built in; splits, tokens and batches.

A task has four disjoint splits. `train` and `quiz` are carved out of the training file;
`dev` selects; `test` is scored once. Only the labels of `train` can be noisy.
Everything random is a function of a seed.
"""

import hashlib
import os
import sys
import urllib.request
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

BUILTIN = "builtin"  # the name of the data set that needs no file
DEFAULT_DATA = "data"  # where files are looked for, and downloaded to, unless told otherwise


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line: what, where, what was expected."""


@dataclass
class Split:
    """Examples: texts, their second sentences where the task has pairs, labels where known."""

    texts: list[str]
    labels: np.ndarray | None  # (N,) class numbers
    pairs: list[str] | None = None

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, rows) -> "Split":
        labels = None if self.labels is None else self.labels[rows]
        pairs = None if self.pairs is None else [self.pairs[i] for i in rows]
        return Split([self.texts[i] for i in rows], labels, pairs)

    def __add__(self, other: "Split") -> "Split":
        pairs = None if self.pairs is None else self.pairs + other.pairs
        return Split(self.texts + other.texts, np.concatenate([self.labels, other.labels]), pairs)

    def keys(self) -> list[tuple]:
        """What makes an example the same example: its text or texts."""
        return list(zip(self.texts) if self.pairs is None else zip(self.texts, self.pairs))


@dataclass
class Task:
    """One task, split. `data` is "builtin" or the directory; `notes` tell what was decided on the way."""

    name: str
    data: str
    label_names: list[str]
    metrics: tuple[str, ...]
    train: Split
    quiz: Split
    dev: Split
    test: Split | None  # None, or without labels, where none are published
    label_noise: float  # share of the labels of `train` that is wrong
    notes: list[str]

    @property
    def num_labels(self) -> int:
        return len(self.label_names)


@dataclass(frozen=True)
class GlueTask:
    """Where a GLUE task's files come from and how they are laid out (header names, not places)."""

    folder: str
    archive: str  # under GLUE_ADDRESS
    md5: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: dict[str, str]  # as written in the file -> as printed
    metrics: tuple[str, ...]


GLUE_ADDRESS = "https://dl.fbaipublicfiles.com/glue/data/"
SENTIMENT = {"0": "negative", "1": "positive"}
GLUE = {
    "sst2": GlueTask(
        "SST-2", "SST-2.zip", "9f81648d4199384278b86e315dac217c", ("sentence",), "label", SENTIMENT, ("accuracy",)
    ),
}


# ---------------------------------------------------------------- loading a task


def load_task(
    name: str, data=DEFAULT_DATA, quiz_size: int | None = None, seed=0, *, train_size=None, label_noise=None
) -> Task:
    """The task `name`, split, from the directory `data` or built in (data="builtin").

    With the default directory missing files are downloaded, and without a network the
    built-in task takes their place; `Task.data` says so. `quiz_size` examples leave the
    training file for the quiz (default: one in ten, as in the paper; built in,
    BUILTIN_QUIZ_SIZE); `train_size` keeps a random subset of the rest; `label_noise` is the
    share of training labels flipped to another class (default: none; built in,
    BUILTIN_LABEL_NOISE). Raises InputError.
    """
    if name not in GLUE:
        raise InputError(f"unknown task {name!r}: expected one of {', '.join(GLUE)}")
    spec, notes = GLUE[name], []
    folder = None if data == BUILTIN else find_files(spec, data)
    if folder is None:
        train, dev, test = builtin_reviews()
        data, default_quiz, default_noise = BUILTIN, BUILTIN_QUIZ_SIZE, BUILTIN_LABEL_NOISE
    else:
        train, dev = (read_glue(folder / f"{split}.tsv", spec) for split in ("train", "dev"))
        test = read_glue(folder / "test.tsv", spec, labelled=False) if (folder / "test.tsv").exists() else None
        default_quiz, default_noise = len(train) // 10, 0.0
    held_out = set(dev.keys()) | set(test.keys() if test else [])
    kept = [row for row, key in enumerate(train.keys()) if key not in held_out]
    if len(kept) < len(train):
        notes.append(f"left out {len(train) - len(kept)} training examples that stand in dev or test, too")
    quiz_size = default_quiz if quiz_size is None else quiz_size
    train, quiz = carve(train[kept], quiz_size, train_size, seed)
    assert not (set(train.keys()) | held_out) & set(quiz.keys()) and not held_out & set(train.keys()), "splits overlap"
    label_noise = default_noise if label_noise is None else label_noise
    train.labels = flip_labels(train.labels, label_noise, len(spec.labels), seed)
    return Task(name, data, list(spec.labels.values()), spec.metrics, train, quiz, dev, test, label_noise, notes)


def carve(train: Split, quiz_size: int, train_size: int | None, seed: int) -> tuple[Split, Split]:
    """Split the training file into train and quiz by a seeded shuffle.

    A text that stands there twice never goes to the quiz, so the two share no text.
    """
    count = Counter(train.keys())
    order = np.random.default_rng([seed, 1]).permutation(len(train))
    once = np.array([count[key] == 1 for key in train.keys()])[order]
    most = min(once.sum(), len(train) - 1)
    if not 0 < quiz_size <= most:
        raise InputError(f"--quiz-size {quiz_size}: expected 1 to {most}, part of the training file")
    quiz_rows = order[once][:quiz_size]
    rest = order[~np.isin(order, quiz_rows)]
    if train_size is not None and not 0 < train_size <= len(rest):
        raise InputError(f"--train-size {train_size}: expected 1 to {len(rest)}, what the quiz leaves")
    return train[rest[:train_size]], train[quiz_rows]


def flip_labels(labels: np.ndarray, share: float, num_labels: int, seed: int) -> np.ndarray:
    """Labels (N,) of which round(share · N), chosen by the seed, are moved to another class. Raises InputError."""
    if not 0 <= share <= 1:
        raise InputError(f"--label-noise {share}: expected a number from 0 to 1")
    rng = np.random.default_rng([seed, 3])
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    flipped = labels.copy()
    flipped[rows] = (labels[rows] + rng.integers(1, num_labels, size=len(rows))) % num_labels
    return flipped


# ---------------------------------------------------------------- files


def read_glue(path: Path, spec: GlueTask, labelled: bool = True) -> Split:
    """A GLUE file: tab-separated, no quoting, UTF-8, columns found by their names.

    Without `labelled` the label column may be missing. Raises InputError, which names file and line.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a file there")
    raw = path.read_bytes()
    try:
        rows = [line.rstrip("\r").split("\t") for line in raw.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: expected UTF-8, found the byte {raw[error.start]:#04x}") from None
    header = rows[0]
    labelled = labelled or spec.label_column in header
    wanted = spec.text_columns + ((spec.label_column,) if labelled else ())
    for column in wanted:
        if column not in header:
            raise InputError(f"{path}:1: expected a column {column!r}, found {' '.join(header)[:80]!r}")
    places, known, found = [header.index(column) for column in wanted], list(spec.labels), []
    for number, row in enumerate(rows[1:], start=2):
        if row == [""]:
            continue
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: expected {len(header)} columns, found {len(row)}")
        if labelled and row[places[-1]] not in known:
            raise InputError(f"{path}:{number}: expected a label of {', '.join(known)}, found {row[places[-1]]!r}")
        found.append([row[place].strip() for place in places])
    if not found:
        raise InputError(f"{path}: expected a header and at least one row, found none")
    columns = [list(column) for column in zip(*found)]
    labels = np.array([known.index(label) for label in columns.pop()]) if labelled else None
    return Split(columns[0], labels, *columns[1:])


def find_files(spec: GlueTask, data: str) -> Path | None:
    """The directory of the task's files: `data`, or the task's own folder in it.

    What is missing in the default directory is downloaded; None if there is no network.
    Raises InputError if a directory that was asked for lacks the files.
    """
    for folder in (Path(data, spec.folder), Path(data)):
        if (folder / "train.tsv").is_file():
            return folder
    if data != DEFAULT_DATA:
        raise InputError(f"{Path(data, spec.folder)}: expected train.tsv and dev.tsv there, found neither")
    try:
        archive = download(GLUE_ADDRESS + spec.archive, spec.md5, Path(data))
    except OSError as error:
        print(f"{spec.folder} is not in {data}/ and cannot be downloaded: {error}", file=sys.stderr)
        return None
    folder = Path(data, spec.folder)
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive) as source:
        for name in ("dev.tsv", "test.tsv", "train.tsv"):  # train.tsv last: where it is, the others are
            part = folder / (name + ".part")
            part.write_bytes(source.read(f"{spec.folder}/{name}"))
            os.replace(part, folder / name)
    archive.unlink()
    return folder


def download(address: str, md5: str, folder: Path, timeout: float = 10.0) -> Path:
    """Fetch a file into the folder; under its own name it stands there only whole and checked.

    Raises OSError without a network, InputError on a wrong checksum.
    """
    target = folder / address.rsplit("/", 1)[1]
    part, digest = target.with_suffix(".part"), hashlib.md5()
    with urllib.request.urlopen(address, timeout=timeout) as response:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    print(f"\r{target.name}: {file.tell() / 1e6:.0f} MB", end="", file=sys.stderr)
            print(file=sys.stderr)
            if digest.hexdigest() != md5:
                raise InputError(f"{address}: expected the MD5 checksum {md5}, found {digest.hexdigest()}")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return target


# ---------------------------------------------------------------- tokens and batches


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A lower-casing WordPiece tokeniser learnt from the texts: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = sorted({c for text in texts for c in tokenizer.normalizer.normalize_str(text) if not c.isspace()})
    # Left to itself the trainer numbers "##x" in the order of a hash table, another one each time.
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + ["##" + c for c in characters]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    learnt = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    learnt.normalizer, learnt.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    learnt.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return learnt


@dataclass
class Encoded:
    """A split in the ids of one vocabulary, padded on the right; `batch` cuts the padding down."""

    ids: np.ndarray  # (N, T) token ids
    types: np.ndarray  # (N, T) 0 for the first sentence, 1 for the second
    lengths: np.ndarray  # (N,) real tokens of each
    labels: np.ndarray  # (N,)

    def __len__(self):
        return len(self.ids)

    def batch(self, rows: np.ndarray, device="cpu") -> tuple[dict, torch.Tensor]:
        """(inputs, labels) of the rows, padded to the longest of them: (B, T) and (B,)."""
        T = self.lengths[rows].max()
        arrays = {
            "input_ids": self.ids[rows, :T],
            "attention_mask": np.arange(T) < self.lengths[rows, None],
            "token_type_ids": self.types[rows, :T],
        }
        inputs = {name: torch.from_numpy(array.astype(np.int64)).to(device) for name, array in arrays.items()}
        return inputs, torch.from_numpy(self.labels[rows]).to(device)


def encode(tokenizer: Tokenizer, split: Split, max_length: int = 128) -> Encoded:
    """The split in the tokeniser's ids; what is longer than max_length tokens is cut. Unknown labels become 0."""
    tokenizer.enable_truncation(max_length)
    found = tokenizer.encode_batch(split.texts if split.pairs is None else list(zip(split.texts, split.pairs)))
    lengths = np.array([len(one.ids) for one in found])
    ids, types = (np.zeros((len(found), lengths.max()), dtype=np.int32) for _ in range(2))
    for row, one in enumerate(found):
        ids[row, : len(one.ids)] = one.ids
        types[row, : len(one.ids)] = one.type_ids
    return Encoded(ids, types, lengths, np.zeros(len(found), int) if split.labels is None else split.labels)


class Batches:
    """The endless stream of training batches, as a sequence: number `step` depends on the seed and step alone.

    Each epoch is a fresh shuffle. Within pools of POOL batches sentences are sorted by length,
    so that a batch holds little padding; the batches then come in random order.
    """

    POOL = 50

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.per_epoch = -(-len(lengths) // batch_size)
        self.epoch, self.order = -1, []

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._shuffled(np.random.default_rng([self.seed, 4, epoch]))
        return self.order[place]

    def _shuffled(self, rng) -> list[np.ndarray]:
        rows, pool, size = rng.permutation(len(self.lengths)), self.POOL * self.batch_size, self.batch_size
        pools = [rows[i : i + pool] for i in range(0, len(rows), pool)]
        sorted_rows = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in pools])
        batches = [sorted_rows[i : i + size] for i in range(0, len(rows), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def sample_quiz(labels: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
    """Rows of a quiz batch, drawn evenly over the classes there are; with repetition where a class runs short."""
    rng = np.random.default_rng([seed, 5, step])
    classes = rng.permutation(np.unique(labels))
    shares = [len(part) for part in np.array_split(np.arange(size), len(classes))]
    rows = [np.flatnonzero(labels == label) for label in classes]
    return np.concatenate([rng.choice(own, n, replace=n > len(own)) for own, n in zip(rows, shares)])


# ---------------------------------------------------------------- the built-in reviews

BUILTIN_SIZES = (1800, 1000, 2000)  # train (with the quiz), dev, test
BUILTIN_QUIZ_SIZE = 300
BUILTIN_LABEL_NOISE = 0.4
BUILTIN_BANNER = """\
=== BUILT-IN DATA ===  Film reviews from a small grammar: these numbers are not SST-2's.
Careless raters: {share:.0%} of the training labels are wrong. Quiz, dev and test labels are right.
"""

PRAISE = """brilliant charming clever delightful elegant engaging enjoyable fascinating fresh fun gorgeous gripping
inspired lively lovely magical moving original splendid witty""".split()
BLAME = """awful banal bland boring clumsy contrived crude dismal dreadful dull empty feeble flat hollow lame lazy
messy pointless shallow silly""".split()
ASPECTS = "acting cast dialogue ending humour music pacing plot script story".split()
ADVERBS = "deeply mostly often quite really truly utterly".split()
PLAIN = ("the {aspect} is {word}", "the {aspect} feels {word}", "the {aspect} is {adverb} {word}")
DENIED = ("the {aspect} is not {word}", "the {aspect} is never {word}", "the {aspect} is hardly {word}")
AGREEING = ("{same} and {other}", "{same} , {other}")  # both clauses say what the sentence says
CONTRASTING = ("{other} but {same}", "although {other} , {same}")  # the clause `same` wins
SCOPED = ("nobody can claim that {other}", "it is not true that {other}")  # the whole clause is denied


def builtin_reviews() -> list[Split]:
    """Train, dev and test of the built-in task: reviews from a small grammar, with their right labels.

    Words carry sentiment (PRAISE, BLAME) and composition corrects it: a denied word means its
    opposite, in a contrast one side wins, a denied clause is turned round whatever it holds.
    """
    rng = np.random.default_rng(2022)
    reviews: dict[str, int] = {}  # no sentence twice, so the splits are disjoint
    while len(reviews) < sum(BUILTIN_SIZES):
        label = len(reviews) % 2
        reviews.setdefault(_review(rng, label), label)
    everything = Split(list(reviews), np.array(list(reviews.values())))
    return [everything[rows] for rows in np.split(rng.permutation(len(reviews)), np.cumsum(BUILTIN_SIZES)[:-1])]


def _review(rng, label: int) -> str:
    """A sentence that says `label` (1: praise)."""
    form = rng.choice(["plain", "agreeing", "contrasting", "scoped"], p=[0.45, 0.3, 0.2, 0.05])
    if form == "plain":
        return _clause(rng, label)
    templates = {"agreeing": AGREEING, "contrasting": CONTRASTING, "scoped": SCOPED}[form]
    other = label if form == "agreeing" else 1 - label
    return rng.choice(templates).format(same=_clause(rng, label), other=_clause(rng, other))


def _clause(rng, says: int) -> str:
    """A clause that says `says`: plainly, or, one time in ten, by denying a word of the other kind."""
    denied = rng.random() < 0.1
    words = {"word": PRAISE if says != denied else BLAME, "aspect": ASPECTS, "adverb": ADVERBS}
    return rng.choice(DENIED if denied else PLAIN).format(**{slot: rng.choice(those) for slot, those in words.items()})
