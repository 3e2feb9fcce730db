"""Splits, labels, files, batches, word noise, crops and the tokeniser, against what can be counted by hand."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import reviews
from conftest import builtin_reviews

import data
from data import InputError, load_task


def write_glue(folder, train=None, dev=None, test=None):
    """A miniature SST-2 in GLUE's layout."""
    (folder / "SST-2").mkdir(exist_ok=True)
    train = [(f"sentence number {i}", i % 2) for i in range(40)] if train is None else train
    dev = [(f"held out {i}", i % 2) for i in range(10)] if dev is None else dev
    for name, rows in (("train", train), ("dev", dev)):
        lines = ["sentence\tlabel"] + [f"{text}\t{label}" for text, label in rows]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if test is not None:
        (folder / "SST-2" / "test.tsv").write_text(test, encoding="utf-8")
    return folder


# ---------------------------------------------------------------- the built-in task


def test_builtin_reviews_mean_what_their_labels_say():
    """An independent reader of the grammar: splits a sentence into clauses, reads each, and composes."""

    def clause(text):
        words = text.split()
        praise = int(words[-1] in reviews.PRAISE)
        return 1 - praise if words[2] == "is" and words[3] in ("not", "never", "hardly") else praise

    def read(text):
        for denial in ("nobody can claim that ", "it is not true that "):
            if text.startswith(denial):
                return 1 - clause(text.removeprefix(denial))
        if text.startswith("although "):
            return clause(text.split(" , ")[1])
        for link, wins in ((" but ", 1), (" and ", 0), (" , ", 0)):
            if link in text:
                return clause(text.split(link)[wins])
        return clause(text)

    splits = [builtin_reviews(name) for name in ("train", "dev", "test")]
    assert [len(split) for split in splits] == [1800, 1000, 2000]
    for split in splits:
        assert [read(text) for text in split.keys] == split.labels.tolist()
        assert abs(split.labels.mean() - 0.5) < 0.05


def test_the_files_of_the_reviews_are_what_the_grammar_writes(tmp_path):
    reviews.write(tmp_path)
    for name in ("train", "dev", "test"):
        assert (tmp_path / f"{name}.tsv").read_bytes() == (data.REVIEWS / f"{name}.tsv").read_bytes()


def test_splits_are_disjoint_and_row_for_row_what_they_were(tmp_path):
    files = str(write_glue(tmp_path))
    for folder, size, expected in [("builtin", 4800, "ee465df16a4900db"), (files, 50, "0763b81c51b539cb")]:
        task = load_task("sst2", folder, seed=3)
        splits = [split for split in (task.train, task.quiz, task.dev, task.test) if split]
        rows = [(text, int(label)) for split in splits for text, label in zip(split.keys, split.labels)]
        assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == expected
        assert len({text for text, _ in rows}) == len(rows) == size and task.notes == []
        assert load_task("sst2", folder, seed=6).quiz.keys != task.quiz.keys


def test_label_noise_flips_its_share_of_the_training_labels_alone():
    splits = [builtin_reviews(name) for name in ("train", "dev", "test")]
    truth = {text: label for split in splits for text, label in zip(split.keys, split.labels)}

    def wrong(split):
        return np.mean([truth[text] != label for text, label in zip(split.keys, split.labels)])

    for given, share in ((0, 0), (0.25, 0.25), (1, 1), (None, 0.4)):
        task = load_task("sst2", "builtin", seed=3, label_noise=given)
        assert wrong(task.train) == share == task.label_noise
        assert wrong(task.quiz) == wrong(task.dev) == wrong(task.test) == 0
        assert task.train.keys == load_task("sst2", "builtin", seed=3).train.keys


def test_flipped_labels_of_many_classes_are_other_classes():
    labels = np.random.default_rng(0).integers(5, size=1000)
    flipped = data.flip_labels(labels, 0.3, 5, seed=0)
    assert (flipped != labels).sum() == 300 and set(flipped) == set(range(5))


def test_sizes_and_names():
    task = load_task("sst2", "builtin", quiz_size=50, train_size=120)
    assert (len(task.train), len(task.quiz)) == (120, 50)
    for wrong in ({"quiz_size": 0}, {"quiz_size": 1800}, {"train_size": 1501}, {"train_size": 0}, {"label_noise": 1.5}):
        with pytest.raises(InputError, match="expected"):
            load_task("sst2", "builtin", **wrong)
    with pytest.raises(InputError, match="expected one of sst2"):
        load_task("sst3", "builtin")


# ---------------------------------------------------------------- files


def test_files_are_read_as_they_are(tmp_path):
    rows = [('a "quoted word', 1), ("café 🎬", 0), ("plain", 1), ("again", 0), ("again", 0)]
    write_glue(tmp_path, rows, test="index\tsentence\n0\twho knows\n")
    text = (tmp_path / "SST-2" / "train.tsv").read_text()
    (tmp_path / "SST-2" / "train.tsv").write_bytes(b"\xef\xbb\xbf" + text.rstrip("\n").replace("\n", "\r\n").encode())
    task = load_task("sst2", str(tmp_path), quiz_size=1)
    assert Counter(zip(task.train.keys + task.quiz.keys, [*task.train.labels, *task.quiz.labels])) == Counter(rows)
    assert task.label_noise == 0 and task.data == str(tmp_path) and task.label_names == ["negative", "positive"]
    assert task.test.keys == ["who knows"] and task.test.labels is None
    assert task.quiz.keys != ["again"]  # it stands in the file twice: its twin would stay behind


@pytest.mark.parametrize("file, content, message", [
    ("train.tsv", b"", "train.tsv:1: expected one column 'sentence'"),
    ("train.tsv", b"sentence\tlabel\tlabel\nx\t1\t0\n", "train.tsv:1: expected one column 'label'"),
    ("train.tsv", b"sentence\tlabel\n\t1\n \t0\n", "train.tsv: expected a header and at least one sentence"),
    ("train.tsv", b"sentence\tlabel\nx\t1\ny\0\t0\n", "train.tsv:3: expected text in UTF-8, found ['\\x00']"),
    ("train.tsv", b"sentence\tlabel\nx\t1\nx\t1\ny\t1\ny\t1\n", "expected a training file with at least two examples"),
    ("train.tsv", b"sentence\tlabel\nx\t1\ny\n", "train.tsv:3: expected 2 columns, found 1"),
    ("train.tsv", b"sentence\tlabel\nx\t1\ny\tgood\n", "train.tsv:3: expected a label of 0, 1, found 'good'"),
    ("train.tsv", b"sentence\tlabel\nx\t1\n\xe9\t0\n", "train.tsv:3: expected text in UTF-8, found ['\\udce9']"),
    ("train.bin", bytes(27_667), "train.bin: expected whole records of 3,074 bytes, found 27,667 bytes"),
    ("train.bin", bytes([20, 5]) + bytes(3072), "train.bin: record 1: expected labels up to 19 and 99, found [20  5]"),
    ("test.bin", bytes(3074) + bytes([3, 100]) + bytes(3072), "test.bin: record 2: expected labels up to 19 and 99"),
])  # fmt: skip
def test_bad_files_are_named_with_their_line_or_record(tmp_path, file, content, message):
    task, write_files = ("sst2", write_glue) if file == "train.tsv" else ("cifar100", write_cifar)
    [path] = write_files(tmp_path).rglob(file)
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_task(task, str(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_built_in_is_sst2_alone(tmp_path, monkeypatch):
    """The others say in one line how to get their files; nothing is made on the way."""
    monkeypatch.chdir(tmp_path)
    for name in data.TASKS.keys() - {"sst2"}:
        with pytest.raises(InputError) as error:
            load_task(name, "builtin")
        said = str(error.value)
        assert said.startswith(f"builtin/{data.TASKS[name].folder}/train.") and "\n" not in said
        assert f"python notebooks/fetch.py {name}" in said
        assert ("python notebooks/pictures.py" in said) == (name == "cifar100")
    assert not list(tmp_path.iterdir())


def test_the_builtin_reviews_stand_in_where_the_default_directory_lacks_all_of_sst2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_task("sst2").data == "builtin" and not list(tmp_path.iterdir())
    (tmp_path / "data").mkdir()
    write_glue(tmp_path / "data")
    task = load_task("sst2")
    assert task.data == "data" and len(task.train) + len(task.quiz) == 40
    (tmp_path / "data" / "SST-2" / "dev.tsv").unlink()
    with pytest.raises(InputError, match="dev.tsv: expected a file there; .*python notebooks/fetch.py sst2"):
        load_task("sst2")


def test_a_class_that_the_quiz_lacks_is_said(tmp_path):
    """3 rows of 100: most quizzes of 10 have none of them."""
    write_glue(tmp_path, [(f"sentence number {i}", int(i < 3)) for i in range(100)])
    tasks = [load_task("sst2", str(tmp_path), seed=seed) for seed in range(6)]
    lacks = [not task.quiz.labels.any() for task in tasks]
    assert {*lacks} == {True, False}
    for task, lacking in zip(tasks, lacks):
        assert task.notes == ["the quiz has no example of 1 of 2 classes, such as 'positive'"] * lacking


# ---------------------------------------------------------------- the tokeniser, and batches


def test_the_tokeniser_knows_the_words_it_learnt_from_and_spells_out_the_others():
    tokenizer = data.train_tokenizer(["the plot is witty", ("the plot", "is dull")] * 3, 200)
    assert tokenizer.encode("The PLOT").tokens == ["[CLS]", "the", "plot", "[SEP]"]
    found = tokenizer.encode("the", "dull plot")
    assert found.tokens == ["[CLS]", "the", "[SEP]", "dull", "plot", "[SEP]"] and found.type_ids == [0, 0, 0, 1, 1, 1]
    spelt = tokenizer.encode("wilt").tokens[1:-1]
    assert len(spelt) > 1 and "".join(spelt).replace("##", "") == "wilt"
    assert tokenizer.encode("🎬").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert [tokenizer.id_to_token(n) for n in range(4)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def test_the_tokeniser_is_the_same_each_time():
    """The trainer's hash tables are not: without care "##x" are numbered in another order each time."""
    texts = load_task("sst2", "builtin").train.keys
    one, *others = (data.train_tokenizer(texts, 250).get_vocab() for _ in range(3))
    assert others == [one, one] and len(one) == 250


def test_batches_cover_each_epoch_once_and_depend_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(3, 30, size=1001)
    epochs = [data.batches_of(lengths, 10, 4, epoch) for epoch in (0, 1, 0)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(1001))
        assert max(map(len, batches)) == 10 and len(batches) == 101
    one, other, again = ([batch.tolist() for batch in batches] for batches in epochs)
    assert one == again and one != other


def test_little_padding_is_computed():
    """Tokens of an epoch's batches over real ones, of sentences as uneven as SST-2's phrases: at most 1.1."""
    lengths = np.random.default_rng(0).geometric(0.1, 20_000).clip(1, 60) + 2
    computed = sum(len(rows) * lengths[rows].max() for rows in data.batches_of(lengths, 64, 0, 0))
    assert computed <= 1.1 * lengths.sum()


def test_the_quiz_is_drawn_evenly_over_the_classes():
    labels = np.array([0] * 90 + [1] * 7 + [2] * 3)
    rows = data.sample_quiz(labels, 20, seed=0, step=5)
    assert sorted(Counter(labels[rows]).values()) == [6, 7, 7]
    assert len(set(rows[labels[rows] < 2])) == (labels[rows] < 2).sum()  # no repetition where there is enough
    assert (rows == data.sample_quiz(labels, 20, seed=0, step=5)).all()
    assert (rows != data.sample_quiz(labels, 20, seed=0, step=6)).any()
    scores = np.float32([0] * 30 + [2.5] * 8 + [5] * 2)  # of a regression
    assert Counter(scores[data.sample_quiz(scores, 12, seed=0, step=5)].tolist()) == {0: 4, 2.5: 4, 5: 4}


# ---------------------------------------------------------------- every GLUE task

MNLI_HEADER = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|"
    "sentence1|sentence2|label1|gold_label"
)
STSB_HEADER = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score"
PAIR, QUESTIONS = ("sentence1", "sentence2"), ("question1", "question2")
FOLLOWS, F1 = ("entailment", "not_entailment"), ("f1", "accuracy")
LAYOUTS = {  # the official header; the columns of the texts and of the label; labels as written; metrics
    "sst2": ("sentence|label", ("sentence",), "label", "01", ("accuracy",)),
    "cola": ("source|label|mark|sentence", ("sentence",), "label", "01", ("matthews",)),  # the files lack this line
    "mrpc": ("Quality|#1 ID|#2 ID|#1 String|#2 String", ("#1 String", "#2 String"), "Quality", "01", F1),
    "stsb": (STSB_HEADER, PAIR, "score", ("0.000", "2.4", "5.000"), ("pearson", "spearman")),
    "qqp": ("id|qid1|qid2|question1|question2|is_duplicate", QUESTIONS, "is_duplicate", "01", F1),
    "mnli": (MNLI_HEADER, PAIR, "gold_label", ("contradiction", "entailment", "neutral"), ("accuracy",)),
    "qnli": ("index|question|sentence|label", ("question", "sentence"), "label", FOLLOWS, ("accuracy",)),
    "rte": ("index|sentence1|sentence2|label", PAIR, "label", FOLLOWS, ("accuracy",)),
    "wnli": ("index|sentence1|sentence2|label", PAIR, "label", "01", ("accuracy",)),
}  # fmt: skip


def write_task(folder, name, rows=12):
    """A made-up miniature of a task's files in their official layout."""
    header, texts, label_column, labels, _ = LAYOUTS[name]
    columns, place = header.split("|"), folder / data.TASKS[name].folder
    place.mkdir(parents=True)
    for number, split in enumerate(("train", "dev_matched", "dev_mismatched") if name == "mnli" else ("train", "dev")):
        lines = [] if name == "cola" else ["\t".join(columns)]
        for i in range(rows):
            cells = dict.fromkeys(columns, "-") | {label_column: labels[i % len(labels)]}
            cells |= zip(texts, (f'one {number} {i} "so', f"two {number} {i} yes"))
            lines.append("\t".join(cells.values()))
        encoding = "utf-8-sig" if name == "mrpc" else "utf-8"
        (place / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding=encoding)
    if name == "cola":  # without labels, and unlike the other two with a header
        (place / "test.tsv").write_text("index\tsentence\n0\twho knows\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_task_is_read_in_its_official_layout(name, tmp_path):
    _, texts, _, labels, metrics = LAYOUTS[name]
    task = load_task(name, str(write_task(tmp_path, name)), quiz_size=3)
    assert [len(split) for split in (task.train, task.quiz, task.dev)] == [9, 3, 12]
    assert task.metrics == metrics and task.columns == texts

    def text(number, i):
        return (f'one {number} {i} "so', f"two {number} {i} yes") if len(texts) > 1 else f'one {number} {i} "so'

    classes = np.float32([0, 2.4, 5]) if name == "stsb" else range(len(labels))
    assert task.dev.keys == [text(1, i) for i in range(12)]
    assert task.dev.labels.tolist() == [classes[i % len(classes)] for i in range(12)]
    of_training = dict(zip(task.train.keys + task.quiz.keys, [*task.train.labels, *task.quiz.labels]))
    assert of_training == {text(0, i): classes[i % len(classes)] for i in range(12)}
    if name == "stsb":
        assert task.label_names == [] and task.num_labels == 1
        with pytest.raises(InputError, match="0 for a regression"):
            load_task(name, str(tmp_path), label_noise=0.1)
    else:
        assert len(task.label_names) == task.num_labels == len(labels)
    if name == "mnli":  # the second dev set, which nothing selects by, is scored once, as a test set is
        assert task.test.keys[0] == text(2, 0) and len(task.test.labels) == 12
    if name == "cola":
        assert task.test.keys == ["who knows"] and task.test.labels is None


def test_a_score_outside_0_to_5_is_named_with_its_line(tmp_path):
    path = write_task(tmp_path, "stsb") / "STS-B" / "train.tsv"
    right = path.read_text()
    for score in ("5.1", "-1", "nan", ""):
        path.write_text(right.replace("\t2.4\n", f"\t{score}\n", 1))
        with pytest.raises(InputError, match="train.tsv:3: expected a score from 0 to 5"):
            load_task("stsb", str(tmp_path))


# ---------------------------------------------------------------- noise


def test_word_noise_replaces_words_and_spares_punctuation():
    assert data.add_noise("This is a sentence.", 0) == "This is a sentence."
    noisy = data.add_noise("This isn't a well-meant phrase, is it?", 1)
    assert noisy == "noise_word noise_word noise_word noise_word noise_word, noise_word noise_word?"
    text = " ".join(f"w{i}" for i in range(4000))
    noisy = data.add_noise(text, 0.2, np.random.default_rng(0)).split()
    kept = [word for word in noisy if word != "noise_word"]
    assert len(noisy) == 4000 and abs(len(kept) / 4000 - 0.8) < 0.02 and set(kept) <= set(text.split())
    split = data.Split(np.fromiter(["a b", ("c d", "e f")], object), None)
    assert data.noisy(split, 1.0, 0).keys == ["noise_word noise_word", ("noise_word noise_word",) * 2]
    assert data.noisy(split, 0.5, 3).keys == data.noisy(split, 0.5, 3).keys


# ---------------------------------------------------------------- pictures


RECORD = 3074


def records_of(n, seed=0):
    """Random records in CIFAR-100's binary format: (n, 3074) bytes."""
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (n, RECORD), dtype=np.uint8)
    records[:, 0], records[:, 1] = rng.integers(0, 20, n), np.arange(n) % 100
    return records


def write_cifar(folder):
    """A miniature CIFAR-100 of 220 and 30 pictures."""
    (folder / "cifar-100-binary").mkdir(exist_ok=True)
    for name, records in (("train", records_of(220)), ("test", records_of(30, seed=1))):
        (folder / "cifar-100-binary" / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def test_pictures_are_read_byte_by_byte(tmp_path):
    write_cifar(tmp_path)
    task = load_task("cifar100", str(tmp_path))
    raw = (tmp_path / "cifar-100-binary" / "test.bin").read_bytes()
    assert task.test.examples.shape == (30, 3, 32, 32) and task.num_labels == 100 and task.metrics == ("accuracy",)
    assert task.columns == () and len(task.label_names) == 100
    for n, channel, row, column in ((0, 0, 0, 0), (7, 2, 31, 1), (29, 1, 5, 30)):
        assert task.test.examples[n, channel, row, column] == raw[n * RECORD + 2 + channel * 1024 + row * 32 + column]
        assert task.test.labels[n] == raw[n * RECORD + 1]


def test_dev_and_quiz_are_carved_out_of_the_training_pictures(tmp_path):
    write_cifar(tmp_path)
    task = load_task("cifar100", str(tmp_path), seed=1)
    parts = [set(split.keys) for split in (task.train, task.quiz, task.dev, task.test)]
    assert [len(part) for part in parts] == [179, 19, 22, 30]
    assert len(set.union(*parts)) == 250  # disjoint
    assert parts[0] | parts[1] | parts[2] == set(map(bytes, records_of(220)[:, 2:]))
    assert task.dev.keys == load_task("cifar100", str(tmp_path), seed=7).dev.keys  # a taught teacher's dev set
    assert task.notes[0] == "dev: 22 examples carved out of the training file, the same for every seed"


def test_pictures_of_dev_and_test_do_not_stay_in_train_and_ones_own_dev_file_is_dev(tmp_path):
    records, place = records_of(220), write_cifar(tmp_path) / "cifar-100-binary"
    (place / "test.bin").write_bytes(records[:4].tobytes())
    (place / "dev.bin").write_bytes(records[4:44].tobytes())
    task = load_task("cifar100", str(tmp_path))
    assert task.dev.keys == list(map(bytes, records[4:44, 2:]))
    assert {*task.train.keys, *task.quiz.keys} == {*map(bytes, records[44:, 2:])}
    assert "left out 44 training examples that are in dev or test, too" in task.notes


def test_a_training_picture_is_a_crop_of_its_framed_self_mirrored_or_not():
    """One of its 9 × 9 × 2 views, the one that the seed draws; the record depends on these draws."""
    pictures = np.random.default_rng(0).integers(0, 256, (400, 3, 32, 32), dtype=np.uint8)
    before, cut = pictures.copy(), data.crop_and_mirror(pictures, [0, 7, 3])
    assert cut.dtype == np.uint8 and (pictures == before).all()
    framed = np.pad(pictures, ((0, 0), (0, 0), (4, 4), (4, 4)))
    draws = np.random.default_rng([0, 7, 3]).integers(0, (9, 9, 2), (400, 3))
    for picture, found, (top, left, mirrored) in zip(framed, cut, draws):
        window = picture[:, top : top + 32, left : left + 32]
        assert np.array_equal(found, window[:, :, ::-1] if mirrored else window)
    assert (data.crop_and_mirror(pictures, [0, 7, 4]) != cut).any()
