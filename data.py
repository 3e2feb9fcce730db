"""The tasks: files read, downloaded or built in; splits, tokens and batches.

A task has four disjoint splits. `train` and `quiz` are carved out of the training file;
`dev` selects; `test` is scored once. Only the labels of `train` can be noisy.
Everything random is a function of a seed.
"""

import collections, hashlib, json, math, os, re, shutil, sys, tempfile, typing, urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer, processors

BUILTIN = "builtin"  # the name of the data set that needs no file
MAX_LENGTH = 128  # tokens of an example that are read
DEFAULT_DATA = "data"  # where files are looked for, and downloaded to, unless told otherwise


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line: what, where, what was expected."""


def expect(condition, message: str):
    """Raise InputError unless the condition holds."""
    if not condition:
        raise InputError(message)


@dataclass
class Split:
    """Examples: sentences, or pairs of sentences where the task has such, and labels where known."""

    texts: list[str] | list[tuple[str, str]]
    labels: np.ndarray | None  # (N,) class numbers, or the scores of a regression

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, rows) -> "Split":
        return Split([self.texts[i] for i in rows], None if self.labels is None else self.labels[rows])

    def __add__(self, other: "Split") -> "Split":
        return Split(self.texts + other.texts, np.concatenate([self.labels, other.labels]))


@dataclass
class Task:
    """One task, split. `data` is "builtin" or the directory; `notes` tell what was decided on the way."""

    name: str
    data: str
    label_names: list[str]  # none: a regression
    metrics: tuple[str, ...]
    train: Split
    quiz: Split
    dev: Split
    label_noise: float  # share of the labels of `train` that is wrong
    notes: list[str]
    test: Split | None = None  # None, or without labels, where none are published; of MNLI dev_mismatched


class GlueTask(typing.NamedTuple):
    """How a GLUE task's files are laid out (header names, not places), and where they come from."""

    folder: str
    texts: tuple[str, ...]  # columns
    label: str  # column
    labels: dict[str, str]  # as written in the file -> as printed; none: scores from 0 to 5
    metrics: tuple[str, ...]
    archive: str  # relative to GLUE_ADDRESS
    md5: str | None = None
    files: tuple[str, str] = ("dev", "test")
    header: tuple[str, ...] = ()  # of files that have none


GLUE_ADDRESS = "https://dl.fbaipublicfiles.com/glue/data/"
SENTENCES, F1 = ("sentence1", "sentence2"), ("f1", "accuracy")
SAME = {"0": "different", "1": "same"}
FOLLOWS = {"entailment": "entailment", "not_entailment": "not entailment"}
GLUE = {
    "sst2": GlueTask("SST-2", ("sentence",), "label", {"0": "negative", "1": "positive"}, ("accuracy",),
                     "SST-2.zip", "9f81648d4199384278b86e315dac217c"),
    "cola": GlueTask("CoLA", ("sentence",), "label", {"0": "unacceptable", "1": "acceptable"}, ("matthews",),
                     "CoLA.zip", header=("source", "label", "mark", "sentence")),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", SAME, F1,
                     "/senteval/senteval_data/msr_paraphrase_train.txt", "793daf7b6224281e75fe61c1f80afe35"),
    "stsb": GlueTask("STS-B", SENTENCES, "score", {}, ("pearson", "spearman"), "STS-B.zip"),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", SAME, F1, "QQP-clean.zip"),
    "mnli": GlueTask("MNLI", SENTENCES, "gold_label", {n: n for n in ("contradiction", "entailment", "neutral")},
                     ("accuracy",), "MNLI.zip", files=("dev_matched", "dev_mismatched")),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", FOLLOWS, ("accuracy",),
                     "QNLIv2.zip", "b4efd6554440de1712e9b54e14760e82"),
    "rte": GlueTask("RTE", SENTENCES, "label", FOLLOWS, ("accuracy",), "RTE.zip", "bef554d0cafd4ab6743488101c638539"),
    "wnli": GlueTask("WNLI", SENTENCES, "label", {"0": "false", "1": "true"}, ("accuracy",),
                     "WNLI.zip", "a1b4bd2861017d302d29e42139657a42"),
}  # fmt: skip


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
    BUILTIN_LABEL_NOISE). Raises InputError."""
    expect(name in GLUE, f"unknown task {name!r}: expected one of {', '.join(GLUE)}")
    spec, notes = GLUE[name], []
    folder = None if data == BUILTIN else find_files(spec, data)
    if folder is None:
        splits = builtin_reviews()
        spec, data, default_quiz, default_noise = GLUE["sst2"], BUILTIN, BUILTIN_QUIZ_SIZE, BUILTIN_LABEL_NOISE
    else:
        paths = {split: folder / f"{name}.tsv" for split, name in zip(("train", "dev", "test"), ("train", *spec.files))}
        present = [split for split in paths if split != "test" or paths[split].is_file()]
        splits = {split: read_glue(paths[split], spec, labelled=split != "test") for split in present}
        default_quiz, default_noise = len(splits["train"]) // 10, 0.0
    train = splits.pop("train")
    held_out = {text for split in splits.values() for text in split.texts}
    kept = [row for row, text in enumerate(train.texts) if text not in held_out]
    if len(kept) < len(train):
        notes.append(f"left out {len(train) - len(kept)} training examples that stand in dev or test, too")
    train, quiz = carve(train[kept], default_quiz if quiz_size is None else quiz_size, train_size, seed)
    assert not {*train.texts} & {*quiz.texts} and not {*train.texts, *quiz.texts} & held_out, "the splits overlap"
    label_noise = default_noise if label_noise is None else label_noise
    train.labels = flip_labels(train.labels, label_noise, len(spec.labels), seed)
    splits |= {"train": train, "quiz": quiz}
    return Task(name, data, [*spec.labels.values()], spec.metrics, label_noise=label_noise, notes=notes, **splits)


def carve(train: Split, quiz_size: int, train_size: int | None, seed: int) -> tuple[Split, Split]:
    """Split the training file into train and quiz by a seeded shuffle.
    A text that stands there twice never goes to the quiz, so the two share no text."""
    count = collections.Counter(train.texts)
    order = np.random.default_rng([seed, 1]).permutation(len(train))
    once = np.array([count[key] == 1 for key in train.texts])[order]
    most = min(once.sum(), len(train) - 1)
    expect(0 < quiz_size <= most, f"--quiz-size {quiz_size}: expected 1 to {most}, part of the training file")
    quiz_rows = order[once][:quiz_size]
    rest = order[~np.isin(order, quiz_rows)]
    size = len(rest) if train_size is None else train_size
    expect(0 < size <= len(rest), f"--train-size {size}: expected 1 to {len(rest)}, what the quiz leaves")
    return train[rest[:size]], train[quiz_rows]


def flip_labels(labels: np.ndarray, share: float, num_labels: int, seed: int) -> np.ndarray:
    """Labels (N,) of which round(share · N), chosen by the seed, are moved to another class. Raises InputError."""
    most, rng, flipped = 1 if num_labels else 0, np.random.default_rng([seed, 3]), labels.copy()
    expect(0 <= share <= most, f"--label-noise {share}: expected a number from 0 to 1, and 0 for a regression")
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    flipped[rows] = (labels[rows] + rng.integers(1, max(2, num_labels), size=len(rows))) % max(2, num_labels)
    return flipped


# ---------------------------------------------------------------- files
def read_glue(path: Path, spec: GlueTask, labelled: bool = True) -> Split:
    """A GLUE file: tab-separated, no quoting, UTF-8, columns found by their names.
    Without `labelled` the label column may be missing. Raises InputError, which names file and line."""
    expect(path.is_file(), f"{path}: expected a file there")
    raw = path.read_bytes()
    try:
        rows = [line.rstrip("\r").split("\t") for line in raw.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: expected UTF-8, found the byte {raw[error.start]:#04x}") from None
    has_header = not spec.header or set(spec.texts) <= set(rows[0])
    header, first = (rows[0], 1) if has_header else (spec.header, 0)
    labelled = labelled or spec.label in header
    wanted = [*spec.texts, spec.label] if labelled else spec.texts
    for column in wanted:
        expect(column in header, f"{path}:1: expected a column {column!r}, found {' '.join(header)[:80]!r}")
    places, texts, labels = [header.index(column) for column in wanted], [], []
    for number, row in enumerate(rows[first:], start=first + 1):
        if row != [""]:
            expect(len(row) == len(header), f"{path}:{number}: expected {len(header)} columns, found {len(row)}")
            cells = [row[place].strip() for place in places]
            labels += [read_label(cells.pop(), spec, f"{path}:{number}")] if labelled else []
            texts.append(tuple(cells) if len(cells) > 1 else cells[0])
    expect(texts, f"{path}: expected a header and at least one row, found none")
    return Split(texts, np.array(labels, np.int64 if spec.labels else np.float32) if labelled else None)


def read_label(text: str, spec: GlueTask, where: str) -> int | float:
    """The number of a class; of a regression the score, 0 to 5. Raises InputError."""
    if spec.labels:
        expect(text in spec.labels, f"{where}: expected a label of {', '.join(spec.labels)}, found {text!r}")
        return list(spec.labels).index(text)
    score = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else math.nan
    expect(0 <= score <= 5, f"{where}: expected a score from 0 to 5, found {text!r}")
    return score


def find_files(spec: GlueTask, data: str) -> Path | None:
    """The directory of the task's files, its own folder in `data`.
    What is missing in the default directory is downloaded; None if there is no network.
    Raises InputError if a directory that was asked for lacks the files."""
    folder = Path(data, spec.folder)
    if (folder / "train.tsv").is_file():
        return folder
    expect(data == DEFAULT_DATA, f"{folder}: expected train.tsv and {spec.files[0]}.tsv there, found neither")
    try:
        download(urllib.parse.urljoin(GLUE_ADDRESS, spec.archive), spec.md5, folder)
    except OSError as error:
        print(f"{spec.folder} is not in {data}/ and cannot be downloaded: {error}", file=sys.stderr)
        return None
    return folder


def download(address: str, md5: str | None, folder: Path, timeout: float = 10.0):
    """Fetch a zip that holds the folder, or MRPC's text file; the folder appears whole and checked, or not at all.
    Raises OSError without a network, InputError on a wrong checksum."""
    with urllib.request.urlopen(address, timeout=timeout) as response:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            archive, whole = Path(temporary, address.rsplit("/", 1)[1]), Path(temporary, folder.name)
            with archive.open("wb") as file:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    print(f"\r{archive.name}: {file.tell() / 1e6:.0f} MB", end="", file=sys.stderr)
            print(file=sys.stderr)
            found = hashlib.md5(archive.read_bytes()).hexdigest()
            expect(md5 in (None, found), f"{address}: expected the MD5 checksum {md5}, found {found}")
            if archive.suffix == ".zip":
                shutil.unpack_archive(archive, temporary)  # leaves out whatever would land elsewhere
            else:
                split_mrpc(archive, whole)
            os.replace(whole, folder)


def split_mrpc(file: Path, folder: Path):
    """MRPC is published without a dev set: the last 408 rows of its training file become one. (GLUE drew others.)"""
    header, *rows = file.read_bytes().splitlines(keepends=True)
    folder.mkdir()
    (folder / "dev.tsv").write_bytes(header + b"".join(rows[-408:]))
    (folder / "train.tsv").write_bytes(header + b"".join(rows[:-408]))


# ---------------------------------------------------------------- tokens and batches
def add_noise(sentence: str, p: float, rng=None) -> str:
    """The sentence with each word replaced by "noise_word" with probability p; punctuation stays."""
    rng = np.random.default_rng() if rng is None else rng
    return re.sub(r"\w[\w'-]*", lambda word: "noise_word" if rng.random() < p else word[0], sentence)


def noisy(split: Split, p: float, seed: int) -> Split:
    """The split with word noise in all its sentences, a function of the seed."""
    rng = np.random.default_rng([seed, 6])
    change = lambda text: add_noise(text, p, rng) if isinstance(text, str) else tuple(map(change, text))  # noqa: E731
    return Split([change(text) for text in split.texts], split.labels)


def train_tokenizer(texts: list[str], vocab_size: int = 8000) -> Tokenizer:
    """A lower-casing WordPiece tokeniser learnt from the texts: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""
    tokenizer = BertWordPieceTokenizer()
    characters = sorted({c for text in texts for c in tokenizer.normalize(text) if not c.isspace()})
    # Left to itself the trainer numbers "##x" in the order of a hash table, another one each time.
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + ["##" + c for c in characters]
    settings = {"min_frequency": 0, "limit_alphabet": len(characters), "special_tokens": first, "show_progress": False}
    tokenizer.train_from_iterator(texts, vocab_size, **settings)
    return Tokenizer.from_str(BertWordPieceTokenizer(tokenizer.get_vocab()).to_str())


def read_tokenizer(directory: str) -> Tokenizer:
    """A published checkpoint's own: tokenizer.json, or vocab.txt (WordPiece), or vocab.json and merges.txt.
    The last are RoBERTa's byte-level BPE: <s> A </s>, or <s> A </s></s> B </s>. Raises InputError."""
    folder = Path(directory)
    try:
        if (folder / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            return tokenizer
        if (folder / "vocab.txt").exists():
            settings = folder / "tokenizer_config.json"
            lowercase = not settings.exists() or json.loads(settings.read_text()).get("do_lower_case", True)
            made = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lowercase)
        else:
            made = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
            ends = [(token, made.token_to_id(token)) for token in ("</s>", "<s>")]
            made.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
        return Tokenizer.from_str(made.to_str())
    except Exception as error:  # the package raises nothing narrower
        raise InputError(f"{folder}: expected tokenizer.json, vocab.txt or vocab.json, merges.txt ({error})") from None


@dataclass
class Encoded:
    """A split in the ids of one vocabulary, padded on the right; `batch` cuts the padding down."""

    inputs: dict[str, np.ndarray]  # input_ids, attention_mask, token_type_ids: (N, T)
    lengths: np.ndarray  # (N,) real tokens of each
    labels: np.ndarray  # (N,)

    def batch(self, rows: np.ndarray, device="cpu") -> tuple[dict, torch.Tensor]:
        """(inputs, labels) of the rows, padded to the longest of them: (B, T) and (B,)."""
        arrays = {name: array[rows, : self.lengths[rows].max()] for name, array in self.inputs.items()}
        inputs = {name: torch.from_numpy(array.astype(np.int64)).to(device) for name, array in arrays.items()}
        return inputs, torch.from_numpy(self.labels[rows]).to(device)


def encode(tokenizer: Tokenizer, split: Split, max_length: int = MAX_LENGTH) -> Encoded:
    """The split in the tokeniser's ids, cut to max_length tokens, at most MAX_LENGTH. Unknown labels become 0."""
    tokenizer.enable_truncation(min(max_length, MAX_LENGTH))
    found = tokenizer.encode_batch(split.texts)
    lengths = np.array([len(one.ids) for one in found])
    names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    inputs = {name: np.zeros((len(found), lengths.max()), np.int32) for name in names}
    for row, one in enumerate(found):
        for name, array in inputs.items():
            array[row, : lengths[row]] = getattr(one, names[name])
    return Encoded(inputs, lengths, np.zeros(len(found), int) if split.labels is None else split.labels)


def batches_of(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One epoch's batches, each the rows of its examples: a fresh shuffle of all, a function of seed and epoch.
    Within pools of 50 batches examples are sorted by length, so that a batch holds little
    padding; the batches then come in random order."""
    rng = np.random.default_rng([seed, 4, epoch])
    rows, pool = rng.permutation(len(lengths)), 50 * batch_size
    pools = [rows[i : i + pool] for i in range(0, len(rows), pool)]
    rows = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in pools])
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def sample_quiz(labels: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
    """Rows of a quiz batch, drawn evenly over the classes there are; with repetition where a class runs short."""
    rng = np.random.default_rng([seed, 5, step])
    labels = np.zeros(len(labels)) if labels.dtype.kind == "f" else labels  # a regression has no classes
    classes = rng.permutation(np.unique(labels))
    shares = [len(part) for part in np.array_split(np.arange(size), len(classes))]
    rows = [np.flatnonzero(labels == label) for label in classes]
    return np.concatenate([rng.choice(own, n, replace=n > len(own)) for own, n in zip(rows, shares)])


# ---------------------------------------------------------------- the built-in reviews
BUILTIN_SIZES = (1800, 1000, 2000)  # train (with the quiz), dev, test
BUILTIN_QUIZ_SIZE = 300
BUILTIN_LABEL_NOISE = 0.4
BUILTIN_BANNER = """\
=== BUILT-IN DATA ===  Film reviews from a small grammar: these numbers are not {task}'s.
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


def builtin_reviews() -> dict[str, Split]:
    """{"train": ..., "dev": ..., "test": ...} of the built-in task: reviews from a small grammar, rightly labelled.
    Words carry sentiment (PRAISE, BLAME) and composition corrects it: a denied word means its
    opposite, in a contrast one side wins, a denied clause is turned round whatever it holds."""
    rng = np.random.default_rng(2022)
    reviews: dict[str, int] = {}  # no sentence twice, so the splits are disjoint
    while len(reviews) < sum(BUILTIN_SIZES):
        label = len(reviews) % 2
        reviews.setdefault(_review(rng, label), label)
    everything = Split(list(reviews), np.array(list(reviews.values())))
    parts = np.split(rng.permutation(len(reviews)), np.cumsum(BUILTIN_SIZES)[:-1])
    return {name: everything[rows] for name, rows in zip(("train", "dev", "test"), parts)}


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
