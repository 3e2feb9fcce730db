"""The tasks: files read, downloaded or built in; splits, tokens and batches.

A task has four disjoint splits. `train` and `quiz` are carved out of the training file; `dev` selects; `test` is scored
once. Only the labels of `train` can be noisy. Everything random is a function of a seed.
"""

import array, collections, functools, hashlib, json, re, shutil, sys, tarfile, tempfile, urllib.request, zipfile, zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer, processors
from torch.nn import functional as F

BUILTIN, DEFAULT_DATA = "builtin", "data"  # the data that need no file; where files are, or are downloaded to
PIXELS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))  # CIFAR-100's mean and deviation, of 0 to 1
MAX_LENGTH = 128  # tokens of an example that are read


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line: what, where, what was expected."""


def expect(condition, message: str):
    """Raise InputError unless the condition holds."""
    if not condition:
        raise InputError(message)


@dataclass(eq=False)
class Split:
    """Examples, and labels where known. `texts` are the examples as what can be looked up."""
    examples: np.ndarray  # sentences or pairs of sentences (N,), objects; or pictures in bytes (N, 3, 32, 32)
    labels: np.ndarray | None  # (N,) class numbers, or the scores of a regression

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, rows) -> "Split":
        return Split(self.examples[rows], None if self.labels is None else self.labels[rows])

    def __add__(self, other: "Split") -> "Split":
        return Split(*map(np.concatenate, ((self.examples, other.examples), (self.labels, other.labels))))

    images = property(lambda self: self.examples)
    texts = property(lambda self: list(self.examples if self.examples.dtype == object else map(bytes, self.examples)))


class Task(NamedTuple):
    """One task, split. `data` is "builtin" or the directory; `notes` tell what was decided on the way."""
    name: str
    data: str
    label_names: list[str]  # none: a regression
    num_labels: int  # outputs of a network: 1 for a regression
    metrics: tuple[str, ...]
    train: Split
    quiz: Split
    dev: Split
    label_noise: float  # share of the labels of `train` that is wrong
    notes: list[str]
    test: Split | None = None  # None, or without labels, where none are published; of MNLI dev_mismatched


class Files(NamedTuple):
    """How a task's files are laid out (header names, not places), and where they come from."""
    folder: str
    texts: tuple[str, ...]  # columns; none: pictures
    label: str  # column
    labels: dict[str, str]  # as written in the file -> as printed; none: scores from 0 to 5
    archive: str  # relative to GLUE_ADDRESS
    md5: str | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    names: tuple[str, ...] = ("train", "dev", "test")
    header: tuple[str, ...] = ()  # of files that have none
    needed: tuple[str, ...] = ("train", "dev")  # a dev set that is not published is carved out of train


GLUE_ADDRESS = "https://dl.fbaipublicfiles.com/glue/data/"
SENTENCES, F1, SAME = ("sentence1", "sentence2"), ("f1", "accuracy"), {"0": "different", "1": "same"}
TONE, FOLLOWS = {"0": "negative", "1": "positive"}, {"entailment": "entailment", "not_entailment": "not entailment"}
TASKS = {
    "sst2": Files("SST-2", ("sentence",), "label", TONE, "SST-2.zip", "9f81648d4199384278b86e315dac217c"),
    "cola": Files("CoLA", ("sentence",), "label", {"0": "unacceptable", "1": "acceptable"}, "CoLA.zip",
                  metrics=("matthews",), header=("source", "label", "mark", "sentence")),
    "mrpc": Files("MRPC", ("#1 String", "#2 String"), "Quality", SAME, needed=("train",), metrics=F1, md5=
                  "793daf7b6224281e75fe61c1f80afe35", archive="/senteval/senteval_data/msr_paraphrase_train.txt"),
    "stsb": Files("STS-B", SENTENCES, "score", {}, "STS-B.zip", metrics=("pearson", "spearman")),
    "qqp": Files("QQP", ("question1", "question2"), "is_duplicate", SAME, "QQP-clean.zip", metrics=F1),
    "mnli": Files("MNLI", SENTENCES, "gold_label", {n: n for n in ("contradiction", "entailment", "neutral")},
                  "MNLI.zip", names=("train", "dev_matched", "dev_mismatched")),
    "qnli": Files("QNLI", ("question", "sentence"), "label", FOLLOWS, "QNLIv2.zip", "b4efd6554440de1712e9b54e14760e82"),
    "rte": Files("RTE", SENTENCES, "label", FOLLOWS, "RTE.zip", "bef554d0cafd4ab6743488101c638539"),
    "wnli": Files("WNLI", SENTENCES, "label", {"0": "no", "1": "yes"}, "WNLI.zip", "a1b4bd2861017d302d29e42139657a42"),
    "cifar100": Files("cifar-100-binary", (), "", {f"class {n}": f"class {n}" for n in range(100)},
                      "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8",
                      needed=("train", "test"))}  # fmt: skip


def load_task(name, data=DEFAULT_DATA, quiz_size=None, seed=0, *, train_size=None, label_noise=None) -> Task:
    """The task `name`, split, from the directory `data` or built in (data="builtin"). In the default directory missing
    files are downloaded, and without a network the built-in task takes their place; `Task.data` says so. `quiz_size`
    examples leave the training file for the quiz (one in ten, as in the paper; of the reviews 300), `train_size` is a
    random subset of the rest, `label_noise` the share of its labels flipped (reviews: 0.4). Raises InputError."""
    expect(name in TASKS, f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    files, notes, size, noise = TASKS[name], [], None, 0.0
    paths = {} if data == BUILTIN else find_files(files, data)
    if paths:
        read = read_glue if files.texts else read_pictures
        splits = {split: read(path, files, split) for split, path in paths.items()}
    elif files.texts:
        splits, files, size, noise = dict(builtin_reviews()), TASKS["sst2"], BUILTIN_QUIZ_SIZE, BUILTIN_LABEL_NOISE
    else:
        splits = dict(builtin_pictures())
    train = splits.pop("train")
    if "dev" not in splits:
        train, splits["dev"] = carve(train, len(train) // 10, None, 0)
        notes.append(f"dev: {len(splits['dev']):,} examples carved out of the training file, the same for every seed")
    held_out = {text for split in splits.values() for text in split.texts}
    kept = np.array([text not in held_out for text in train.texts])
    if not kept.all():
        notes.append(f"left out {(~kept).sum()} training examples that stand in dev or test, too")
    size = quiz_size if quiz_size is not None else size or len(train) // 10
    train, quiz = carve(train[kept], size, train_size, seed)
    assert not {*train.texts} & {*quiz.texts} and not {*train.texts, *quiz.texts} & held_out, "the splits overlap"
    noise = noise if label_noise is None else label_noise
    train.labels = flip_labels(train.labels, noise, len(files.labels), seed)
    labels, data, metrics = [*files.labels.values()], data if paths else BUILTIN, files.metrics
    return Task(name, data, labels, len(labels) or 1, metrics, train, quiz, **splits, label_noise=noise, notes=notes)


def carve(train: Split, quiz_size: int, train_size: int | None, seed: int) -> tuple[Split, Split]:
    """The training file as train and quiz, or dev, by a seeded shuffle. What stands there twice never is quiz."""
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


def read_glue(path: Path, files: Files, split: str) -> Split:
    """A GLUE file: tab-separated, no quoting, UTF-8; test may lack labels. Raises InputError with file and line."""
    raw = path.read_bytes()
    expect(b"\0" not in raw, f"{path}:{raw[: raw.find(0)].count(10) + 1}: expected text, found a NUL byte")
    try:
        rows = [line.rstrip("\r").split("\t") for line in raw.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: expected UTF-8, found the byte {raw[error.start]:#04x}") from None
    header = files.header if files.header and not {*files.texts} <= {*rows[0]} else rows.pop(0)
    labelled = split != "test" or files.label in header
    for column in (*files.texts, files.label)[: None if labelled else -1]:
        expect(column in header, f"{path}:1: expected a column {column!r}, found {' '.join(header)[:80]!r}")
    texts, labels = [], []
    for number, row in enumerate(rows, start=1 + (header is not files.header)):
        if row != [""]:
            where, cells = f"{path}:{number}", dict(zip(header, map(str.strip, row)))
            expect(len(row) == len(header), f"{where}: expected {len(header)} columns, found {len(row)}")
            texts.append(tuple(cells[c] for c in files.texts) if len(files.texts) > 1 else cells[files.texts[0]])
            if labelled:
                label, known = cells[files.label], "a label of " + ", ".join(files.labels)
                fits = label in files.labels if files.labels else re.fullmatch(r"[0-4](\.\d+)?|5(\.0+)?", label)
                expect(fits, f"{where}: expected {known if files.labels else 'a score from 0 to 5'}, found {label!r}")
                labels.append([*files.labels].index(label) if files.labels else float(label))
    expect(any(map(any, texts)), f"{path}: expected a header and at least one sentence, found none")
    kind = np.int64 if files.labels else np.float32
    return Split(np.fromiter(texts, object), np.array(labels, kind) if labelled else None)


def read_pictures(path: Path, files: Files, split: str) -> Split:
    """CIFAR-100's records: a coarse label, a fine label, 3 × 32 × 32 bytes. Raises InputError with file and byte."""
    size, most, record = path.stat().st_size, {"train": 50_000, "test": 10_000}[split], 2 + 3 * 32 * 32
    expected = f"whole records of {record:,} bytes, at most {most:,} of them"
    expect(0 < size <= most * record and size % record == 0, f"{path}: expected {expected}, found {size:,} bytes")
    records = np.fromfile(path, np.uint8).reshape(-1, record)
    for row, column in np.argwhere(records[:, :2] > (19, 99))[:1]:
        where, found = f"{path}: byte {row * record + column:,}", records[row, column]
        raise InputError(f"{where}: expected a label of at most {(19, 99)[column]}, found {found}")
    return Split(records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1].astype(np.int64))


def find_files(files: Files, data: str) -> dict[str, Path]:
    """{"train": path, ...} of the task's files, in its own folder in `data`. What is missing in the default directory
    is downloaded; {} if there is no network. Raises InputError if another directory, or the folder, lacks a file."""
    folder, ending = Path(data, files.folder), "tsv" if files.texts else "bin"
    paths = {split: folder / f"{name}.{ending}" for split, name in zip(("train", "dev", "test"), files.names)}
    if not paths["train"].is_file():
        expect(data == DEFAULT_DATA, f"{folder}: expected train.{ending} there, found none")
        try:
            download(urllib.parse.urljoin(GLUE_ADDRESS, files.archive), files.md5, folder)
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
            print(f"{files.folder} is not in {data}/ and cannot be downloaded: {error}", file=sys.stderr)
            return {}
    for split in files.needed:
        expect(paths[split].is_file(), f"{paths[split]}: expected a file there")
    return {split: path for split, path in paths.items() if path.is_file()}


def download(address: str, md5: str | None, folder: Path, timeout: float = 10.0, most: int = 10**9):
    """Fetch an archive of the folder, or MRPC's training file; the folder appears whole and checked, or not at all.
    Raises OSError without a network or if it breaks, InputError on what is not the file that was promised."""
    with urllib.request.urlopen(address, timeout=timeout) as response:
        expect(response.url.split(":")[0] == address.split(":")[0], f"{address}: expected no change to {response.url}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            archive, whole = Path(temporary, address.rsplit("/", 1)[1]), Path(temporary, folder.name)
            with archive.open("wb") as file:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    expect(file.tell() <= most, f"{address}: expected at most {most:,} bytes, found more")
                    print(f"\r{archive.name}: {file.tell() / 1e6:.0f} MB", end="", file=sys.stderr)
            print(file=sys.stderr)
            if response.length:
                raise OSError(f"{address}: cut off, {response.length:,} bytes are missing")
            found = hashlib.md5(archive.read_bytes()).hexdigest()
            expect(md5 in (None, found), f"{address}: expected the MD5 checksum {md5}, found {found}")
            if archive.suffix == ".txt":
                whole.mkdir()
                archive.rename(whole / "train.tsv")
            else:  # leaves out, or refuses, whatever would land elsewhere
                shutil.unpack_archive(archive, temporary, filter="data" if archive.suffix == ".gz" else None)
            whole.rename(folder)


def add_noise(sentence: str, p: float, rng=np.random.default_rng()) -> str:  # noqa: B008
    """The sentence with each word replaced by "noise_word" with probability p; punctuation stays."""
    return re.sub(r"\w[\w'-]*", lambda word: "noise_word" if rng.random() < p else word[0], sentence)


def noisy(split: Split, p: float, seed: int) -> Split:
    """The split with word noise in all its sentences, a function of the seed."""
    rng = np.random.default_rng([seed, 6])
    change = lambda text: add_noise(text, p, rng) if isinstance(text, str) else tuple(map(change, text))  # noqa: E731
    return Split(np.fromiter(map(change, split.texts), object), split.labels)


def train_tokenizer(texts: list[str], vocab_size: int = 8000) -> Tokenizer:
    """A lower-casing WordPiece tokeniser learnt from the texts: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""
    tokenizer, texts = BertWordPieceTokenizer(), texts[:: 1 + len(texts) // 10**5]  # 100,000 at most are enough
    texts = [text if isinstance(text, str) else " ".join(text) for text in texts]
    characters = sorted({c for each in set().union(*texts) for c in tokenizer.normalize(each) if not c.isspace()})
    # Left to itself the trainer numbers "##x" in the order of a hash table, another one each time.
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + ["##" + c for c in characters]
    settings = {"min_frequency": 0, "limit_alphabet": len(characters), "special_tokens": first, "show_progress": False}
    tokenizer.train_from_iterator(texts, vocab_size, **settings)
    return Tokenizer.from_str(BertWordPieceTokenizer(tokenizer.get_vocab()).to_str())


def read_tokenizer(directory: str) -> Tokenizer:
    """A checkpoint's own: tokenizer.json, vocab.txt (WordPiece), or vocab.json and merges.txt (byte-level BPE:
    <s> A </s>, or <s> A </s></s> B </s>); or that of a .pt. Raises InputError."""
    folder = Path(directory)
    try:
        if folder.suffix == ".pt":
            return Tokenizer.from_str(torch.load(folder, "cpu", weights_only=True)["tokenizer"])
        if (folder / "tokenizer.json").exists():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
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


@dataclass(eq=False)
class Encoded:
    """A split as a network reads it: in the ids of one vocabulary, one sentence after the other; or pictures."""
    inputs: dict[str, torch.Tensor]  # input_ids, token_type_ids: (all tokens + 1,), last a 0; or images (N, 3, 32, 32)
    lengths: np.ndarray  # (N,) tokens of each; of pictures 1
    labels: np.ndarray  # (N,)
    starts: np.ndarray  # (N,) where each begins

    def batch(self, rows: np.ndarray, crop=None) -> tuple[dict, torch.Tensor]:
        """(inputs, labels) of the rows, on the inputs' device: (B, T), padded to the longest of them by 0, and (B,).
        Pictures (B, 3, 32, 32) are normalised, channels last in memory; with a seed as `crop` cropped and mirrored."""
        token, device = np.arange(self.lengths[rows].max()), next(iter(self.inputs.values())).device
        real = token < self.lengths[rows, None]  # (B, T)
        places = torch.from_numpy(np.where(real, self.starts[rows, None] + token, -1)).to(device)
        inputs, labels = {n: x[places] for n, x in self.inputs.items()}, torch.from_numpy(self.labels[rows]).to(device)
        if "images" not in inputs:
            return inputs | {"attention_mask": torch.from_numpy(real).to(device)}, labels
        images = inputs["images"][:, 0]  # a picture is its only token
        images = images if crop is None else crop_and_mirror(images, crop)
        mean, deviation = torch.tensor(PIXELS, device=device)[:, :, None, None]  # (3, 1, 1) each
        return {"images": ((images / 255 - mean) / deviation).contiguous(memory_format=torch.channels_last)}, labels


def crop_and_mirror(images: torch.Tensor, seed) -> torch.Tensor:
    """(B, 3, 32, 32) -> the same: at random cut out of itself in a frame of 4 black pixels; half of them mirrored."""
    draws = np.random.default_rng(seed).integers(0, (9, 9, 2), (len(images), 3))
    top, left, mirrored = torch.from_numpy(draws).to(images.device).T[..., None]  # (B, 1) each
    side, one = torch.arange(32, device=images.device), torch.arange(len(images), device=images.device)
    across = left + torch.where(mirrored == 1, side.flip(0), side)
    framed = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)  # (B, 40, 40, 3)
    return framed[one[:, None, None], (top + side)[:, :, None], across[:, None]].permute(0, 3, 1, 2)


def encode(tokenizer: Tokenizer | None, split: Split, device="cpu", max_length=MAX_LENGTH) -> Encoded:
    """The split in the tokeniser's ids, cut to max_length; pictures, without a tokeniser. Unknown labels become 0."""
    labels = np.zeros(len(split), int) if split.labels is None else split.labels
    if tokenizer is None:
        inputs, lengths = {"images": split.images}, np.ones(len(split), int)
    else:
        tokenizer.enable_truncation(max_length)
        tokenizer.no_padding()
        ids, types, lengths, texts = *map(array.array, "iiq"), split.texts
        for first in range(0, len(texts), 10_000):  # an encoding holds much more than its ids
            print(f"\r{first:,} of {len(texts):,} read", end="\r", file=sys.stderr) if len(texts) > 10**5 else None
            for one in tokenizer.encode_batch_fast(texts[first : first + 10_000]):
                ids.extend(one.ids)
                types.extend(one.type_ids)
                lengths.append(len(one))
        ids.append(0), types.append(0)
        inputs, lengths = {"input_ids": np.array(ids), "token_type_ids": np.array(types)}, np.array(lengths)
    inputs = {name: torch.from_numpy(whole).to(device) for name, whole in inputs.items()}
    return Encoded(inputs, lengths, labels, np.cumsum(lengths) - lengths)


def batches_of(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One epoch's batches of rows: shuffled by seed and epoch, sorted by length within pools of 50 batches."""
    rng, N = np.random.default_rng([seed, 4, epoch]), len(lengths)
    rows, pools = rng.permutation(N), np.arange(N) // (50 * batch_size)
    rows = rows[np.lexsort((lengths[rows], pools))]
    batches = np.split(rows, range(batch_size, N, batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def sample_quiz(labels: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
    """Rows of a quiz batch, drawn evenly over the classes there are; with repetition where a class runs short."""
    rng = np.random.default_rng([seed, 5, step])
    labels = np.zeros(len(labels)) if labels.dtype.kind == "f" else labels  # a regression has no classes
    rows = [np.flatnonzero(labels == label) for label in rng.permutation(np.unique(labels))]
    shares = map(len, np.array_split(np.arange(size), len(rows)))
    return np.concatenate([rng.choice(own, n, replace=n > len(own)) for own, n in zip(rows, shares)])


BUILTIN_SIZES, BUILTIN_QUIZ_SIZE, BUILTIN_LABEL_NOISE = (1800, 1000, 2000), 300, 0.4  # train and quiz, dev, test
BUILTIN_BANNER = """=== BUILT-IN DATA ===  Reviews from a grammar, or drawn flowers: these numbers are not {task}'s.
Wrong labels, as if by careless raters: {share:.0%} of the training set; none in quiz, dev and test.\n"""

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


@functools.cache
def builtin_reviews() -> dict[str, Split]:
    """{"train": ..., "dev": ..., "test": ...}: reviews from a small grammar, rightly labelled. Words carry sentiment,
    composition corrects it: denial turns a word, or a whole clause, into its opposite; in a contrast one side wins."""
    rng, reviews = np.random.default_rng(2022), {}  # no sentence twice, so the splits are disjoint

    def clause(praises: bool) -> str:
        denied = rng.random() < 0.1  # says it by denying a word of the other kind
        slots = {"word": PRAISE if praises != denied else BLAME, "aspect": ASPECTS, "adverb": ADVERBS}
        return rng.choice(DENIED if denied else PLAIN).format(**{slot: rng.choice(of) for slot, of in slots.items()})

    def review(praises: bool) -> str:
        form = rng.choice(["plain", "agreeing", "contrasting", "scoped"], p=[0.45, 0.3, 0.2, 0.05])
        if form == "plain":
            return clause(praises)
        templates = {"agreeing": AGREEING, "contrasting": CONTRASTING, "scoped": SCOPED}[form]
        other = praises if form == "agreeing" else not praises
        return rng.choice(templates).format(same=clause(praises), other=clause(other))

    while len(reviews) < sum(BUILTIN_SIZES):
        label = len(reviews) % 2
        reviews.setdefault(review(label == 1), label)
    everything = Split(np.fromiter(reviews, object), np.array(list(reviews.values())))
    parts = np.split(rng.permutation(len(reviews)), np.cumsum(BUILTIN_SIZES)[:-1])
    return {name: everything[rows] for name, rows in zip(("train", "dev", "test"), parts)}


@functools.cache
def builtin_pictures() -> dict[str, Split]:
    """{"train": ..., "test": ...}: flowers, their edge r = r₀ (1 + 0.35 cos(petals φ)) in polar coordinates.
    Class = 20 × (0 to 4: how many petals) + 5 × (0 to 3: how close the stripes) + (0 to 4: hue)."""
    rng, n, N = np.random.default_rng(2022), 4600, 6600  # to train on (with quiz and dev), in all
    draw = lambda low, high: rng.uniform(low, high, (N, 1, 1, 1))  # noqa: E731
    labels = rng.permutation(N).reshape(-1, 1, 1, 1) % 100
    petals, stripes, hue = np.array([2, 3, 4, 5, 7])[labels // 20], labels // 5 % 4, labels % 5
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    turn, x, y = draw(-0.4, 0.4), x + draw(-0.15, 0.15), y + draw(-0.15, 0.15)  # (N, 1, 32, 32) from here on
    edge = draw(0.6, 0.75) * (1 + 0.35 * np.cos(petals * (np.arctan2(y, x) - turn)))
    inside = (8 * (edge - np.hypot(x, y))).clip(0, 1)
    shade = (2 + np.cos(4 * stripes * (x * np.cos(turn) + y * np.sin(turn)))) / 3
    phase = 2 * np.pi * (hue / 5 + rng.normal(0, 0.03, (N, 1, 1, 1)) + np.arange(3).reshape(3, 1, 1) / 3)
    colour, ground = 0.55 + 0.45 * np.cos(phase), draw(0, 0.5)  # (N, 3, 1, 1), (N, 1, 1, 1)
    pixels = ground + inside * (shade * colour - ground) + rng.normal(0, 0.06, (N, 3, 32, 32))
    pictures = Split((255 * pixels.clip(0, 1)).astype(np.uint8), labels.ravel())
    return {"train": pictures[:n], "test": pictures[n:]}
