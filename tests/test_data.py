"""Splits, labels, files, batches, word noise, crops and the tokeniser, against what can be counted by hand."""

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import reviews
from conftest import ROOT, builtin_reviews

import data
from data import InputError, load_task


def sentences(texts, labels=None):
    """A Split of a list."""
    return data.Split(np.fromiter(texts, object), labels)


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


def test_words_alone_do_not_decide_the_builtin_label():
    """Counting praise against blame is better than chance, yet far from right: composition is needed."""
    test = builtin_reviews("test")
    votes = [sum((w in reviews.PRAISE) - (w in reviews.BLAME) for w in text.split()) for text in test.keys]
    right = np.mean([(0.5 if vote == 0 else (vote > 0) == label) for vote, label in zip(votes, test.labels)])
    assert 0.6 < right < 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_are_disjoint_and_a_function_of_the_seed(seed):
    one, two = (load_task("sst2", "builtin", seed=seed) for _ in range(2))
    splits = {name: set(getattr(one, name).keys) for name in ("train", "quiz", "dev", "test")}
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 4800
    assert one.train.keys == two.train.keys and (one.train.labels == two.train.labels).all()
    assert set(load_task("sst2", "builtin", seed=seed + 5).quiz.keys) != set(one.quiz.keys)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_label_noise_flips_its_share_of_the_training_labels_alone(share):
    clean, noisy = (load_task("sst2", "builtin", seed=3, label_noise=noise) for noise in (0, share))
    truth = {text: label for split in map(builtin_reviews, ("train", "dev", "test")) for text, label in zip(split.keys, split.labels)}
    assert noisy.train.keys == clean.train.keys
    assert (noisy.train.labels != clean.train.labels).mean() == share
    for split in (clean.train, noisy.quiz, noisy.dev, noisy.test):
        assert [truth[text] for text in split.keys] == split.labels.tolist()


def test_default_noise_is_what_the_banner_says():
    task = load_task("sst2", "builtin")
    truth = dict(zip(builtin_reviews("train").keys, builtin_reviews("train").labels))
    wrong = np.mean([truth[text] != label for text, label in zip(task.train.keys, task.train.labels)])
    assert wrong == pytest.approx(task.label_noise) and f"{wrong:.0%}" in data.BUILTIN_BANNER.format(share=wrong)


def test_flipped_labels_of_many_classes_are_other_classes():
    labels = np.random.default_rng(0).integers(5, size=1000)
    flipped = data.flip_labels(labels, 0.3, 5, seed=0)
    assert (flipped != labels).sum() == 300 and set(flipped) == set(range(5))


def test_sizes():
    task = load_task("sst2", "builtin", quiz_size=50, train_size=120)
    assert (len(task.train), len(task.quiz)) == (120, 50)
    for wrong in ({"quiz_size": 0}, {"quiz_size": 1800}, {"train_size": 1501}, {"train_size": 0}, {"label_noise": 1.5}):
        with pytest.raises(InputError, match="expected"):
            load_task("sst2", "builtin", **wrong)


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


def test_columns_are_found_by_name_and_a_labelled_test_file_is_scored(tmp_path):
    write_glue(tmp_path, test="label\tindex\tsentence\n1\t0\tgood\n0\t1\tbad\n")
    task = load_task("sst2", str(tmp_path))
    assert task.test.keys == ["good", "bad"] and task.test.labels.tolist() == [1, 0]
    assert len(task.quiz) == 4  # one in ten


def test_training_examples_that_stand_in_dev_are_left_out_and_said(tmp_path):
    write_glue(tmp_path, dev=[("sentence number 3", 1), ("other", 0)])
    task = load_task("sst2", str(tmp_path))
    assert "sentence number 3" not in task.train.keys + task.quiz.keys
    assert len(task.train) + len(task.quiz) == 39
    assert len(task.notes) == 1 and "left out 1 training example" in task.notes[0]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "train.tsv:1: expected one column 'sentence'"),
        (b"sentence\tlabel\n", "train.tsv: expected a header and at least one sentence"),
        (b"text\tlabel\nx\t1\n", "train.tsv:1: expected one column 'sentence'"),
        (b"sentence\ttext\nx\t1\n", "train.tsv:1: expected one column 'label'"),
        (b"sentence\tlabel\tsentence\nx\t1\ty\n", "train.tsv:1: expected one column 'sentence'"),
        (b"sentence\tlabel\tlabel\nx\t1\t0\n", "train.tsv:1: expected one column 'label'"),
        (b"sentence\tlabel\nx\t1\ny\0\t0\n", "train.tsv:3: expected text, found a NUL byte"),
        (b"sentence\tlabel\nheld out 1\t1\n", "expected a training file with at least two examples"),
        (b"sentence\tlabel\nx\t1\nx\t1\ny\t1\ny\t1\n", "expected a training file with at least two examples"),
        (b"sentence\tlabel\nx\t1\ny\n", "train.tsv:3: expected 2 columns, found 1"),
        (b"sentence\tlabel\nx\t1\ty\n", "train.tsv:2: expected 2 columns, found 3"),
        (b"sentence\tlabel\nx\t1\ny\tgood\n", "train.tsv:3: expected a label of 0, 1, found 'good'"),
        (b"sentence\tlabel\nx\t1\ncaf\xe9\t0\n", "train.tsv:3: expected UTF-8, found the byte 0xe9"),
        (b"\xef\xbb\xbfsentence\tlabel\nx\t1\n\xe9\t0\n", "train.tsv:3: expected UTF-8, found the byte 0xe9"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, content, message):
    write_glue(tmp_path)
    (tmp_path / "SST-2" / "train.tsv").write_bytes(content)
    with pytest.raises(InputError) as error:
        load_task("sst2", str(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in data.TASKS if name != "sst2"])
@pytest.mark.parametrize("where", ["builtin", "data"])
def test_what_is_built_in_is_sst2_alone(name, where, tmp_path, monkeypatch):
    """The others say in one line how to get their files; nothing is made on the way."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        load_task(name, where)
    said = str(error.value)
    assert said.startswith(f"{where}/{data.TASKS[name].folder}/train.") and f"python notebooks/fetch.py {name}" in said
    assert ("python notebooks/pictures.py" in said) == (name == "cifar100") and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_the_builtin_reviews_stand_in_where_the_default_directory_lacks_sst2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_task("sst2").data == "builtin" and not list(tmp_path.iterdir())
    (tmp_path / "data").mkdir()
    write_glue(tmp_path / "data")
    task = load_task("sst2")
    assert task.data == "data" and len(task.train) + len(task.quiz) == 40


@pytest.mark.parametrize("name", ["train", "dev"])
def test_a_missing_file_is_an_error_that_says_how_to_get_it(name, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="train.tsv: expected a file there; .*python notebooks/fetch.py sst2"):
        load_task("sst2", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (write_glue(tmp_path / "data") / "SST-2" / f"{name}.tsv").unlink()
    with pytest.raises(InputError, match=f"{name}.tsv: expected a file there; .*python notebooks/fetch.py sst2"):
        load_task("sst2")  # half of the files: no stand-in


def test_a_task_of_ones_own_is_read_like_the_others_and_not_sent_to_fetch(tmp_path, monkeypatch):
    mine = data.Files("mine", ("question", "answer"), "tone", {"no": "bad", "yes": "good"})
    monkeypatch.setitem(data.TASKS, "mine", mine)
    with pytest.raises(InputError) as error:
        load_task("mine", str(tmp_path))
    assert "train.tsv: expected a file there" in str(error.value) and "fetch.py" not in str(error.value)
    (tmp_path / "mine").mkdir()
    for name in ("train", "dev"):
        rows = [f"{name} {i}\t{'yes' if i % 3 else 'no'}\tanswer {i}" for i in range(20)]
        (tmp_path / "mine" / f"{name}.tsv").write_text("\n".join(["question\ttone\tanswer", *rows]))
    task = load_task("mine", str(tmp_path))
    assert task.columns == ("question", "answer") and task.label_names == ["bad", "good"] and task.test is None
    assert task.dev.keys[3:5] == [("dev 3", "answer 3"), ("dev 4", "answer 4")] and task.dev.labels[3:5].tolist() == [0, 1]


def digest(task) -> str:
    """A short hash of the splits, row for row."""
    splits = [split for split in (task.train, task.quiz, task.dev, task.test) if split]
    rows = [(text, int(label)) for split in splits for text, label in zip(split.keys, split.labels)]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def test_splits_are_row_for_row_what_they_were_and_without_a_note(tmp_path):
    builtin, files = (load_task("sst2", where, seed=3) for where in ("builtin", str(write_glue(tmp_path))))
    assert (digest(builtin), digest(files)) == ("ee465df16a4900db", "0763b81c51b539cb")
    assert builtin.notes == files.notes == []


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


def test_little_padding_is_computed():
    """Tokens of an epoch's batches over real ones, of sentences as uneven as SST-2's phrases: at most 1.1."""
    lengths = np.random.default_rng(0).geometric(0.1, 20_000).clip(1, 60) + 2
    computed = sum(len(rows) * lengths[rows].max() for rows in data.batches_of(lengths, 64, 0, 0))
    assert computed <= 1.1 * lengths.sum()


def test_the_tokeniser_is_the_same_in_every_process():
    """The trainer's hash tables differ from process to process; the vocabulary must not."""
    code = "import data; texts = data.load_task('sst2', 'builtin').train.keys; print(sorted(data.train_tokenizer(texts, 250).get_vocab().items()))"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    own = data.train_tokenizer(load_task("sst2", "builtin").train.keys, 250).get_vocab()
    assert other.strip() == str(sorted(own.items())) and len(own) == 250


def test_batches_cover_each_epoch_once_and_depend_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(3, 30, size=1001)
    epochs = [data.batches_of(lengths, 10, 4, epoch) for epoch in (0, 1, 0)]
    for batches in epochs:
        assert sorted(row for batch in batches for row in batch) == list(range(1001))
        assert max(map(len, batches)) == 10 and len(batches) == 101
    one, other, again = ([batch.tolist() for batch in batches] for batches in epochs)
    assert one == again and one != other
    padded = sum(len(batch) * lengths[batch].max() for batch in epochs[0])
    assert padded / lengths.sum() < 1.1


def test_the_quiz_is_drawn_evenly_over_the_classes():
    labels = np.array([0] * 90 + [1] * 7 + [2] * 3)
    rows = data.sample_quiz(labels, 20, seed=0, step=5)
    assert sorted(Counter(labels[rows]).values()) == [6, 7, 7]
    assert len(set(rows[labels[rows] < 2])) == (labels[rows] < 2).sum()  # no repetition where there is enough
    assert (rows == data.sample_quiz(labels, 20, seed=0, step=5)).all()
    assert (rows != data.sample_quiz(labels, 20, seed=0, step=6)).any()


def test_unknown_task():
    with pytest.raises(InputError, match="expected one of sst2"):
        load_task("sst3", "builtin")


# ---------------------------------------------------------------- every GLUE task

# The official headers; "text", "text2" and "label" stand for what a row holds there, "-" for anything.
HEADERS = {
    "sst2": "sentence label",
    "cola": None,
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "stsb": "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
    "qqp": "id|qid1|qid2|question1|question2|is_duplicate",
    "mnli": "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|"
    "sentence2_parse|sentence1|sentence2|label1|gold_label",
    "qnli": "index|question|sentence|label",
    "rte": "index|sentence1|sentence2|label",
    "wnli": "index|sentence1|sentence2|label",
}
TEXTS = {"mrpc": ("#1 String", "#2 String"), "qqp": ("question1", "question2"), "qnli": ("question", "sentence")}
LABELS = {"stsb": ["0.000", "2.4", "5.000"], "mnli": ["contradiction", "entailment", "neutral"]}
LABELS |= dict.fromkeys(("qnli", "rte"), ["entailment", "not_entailment"])


def write_task(folder, name, rows=12):
    """A made-up miniature of a task's files in their official layout."""
    spec, labels = data.TASKS[name], LABELS.get(name, ["0", "1"])
    header = HEADERS[name] and HEADERS[name].replace(" label", "|label").split("|")
    (folder / spec.folder).mkdir(parents=True)
    for number, split in enumerate(["train", *(["dev_matched", "dev_mismatched"] if name == "mnli" else ["dev"])]):
        lines = ["\t".join(header)] if header else []
        for i in range(rows):
            first, second, label = f"one {number} {i} \"so", f"two {number} {i} yes", labels[i % len(labels)]
            if name == "cola":
                lines.append(f"gj04\t{label}\t*\t{first}")
                continue
            cells = dict.fromkeys(header, "-")
            cells |= dict(zip(TEXTS.get(name, ("sentence",) if name == "sst2" else ("sentence1", "sentence2")), (first, second)))
            cells[{"mrpc": "Quality", "stsb": "score", "qqp": "is_duplicate", "mnli": "gold_label"}.get(name, "label")] = label
            lines.append("\t".join(cells.values()))
        mark = "\ufeff" if name == "mrpc" else ""
        (folder / spec.folder / f"{split}.tsv").write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")
    if name == "cola":  # without labels, and unlike the other two with a header
        (folder / spec.folder / "test.tsv").write_text("index\tsentence\n0\twho knows\n", encoding="utf-8")
    return folder


METRICS = {"cola": ("matthews",), "mrpc": ("f1", "accuracy"), "qqp": ("f1", "accuracy"), "stsb": ("pearson", "spearman")}


@pytest.mark.parametrize("name", HEADERS)
def test_every_task_is_read_in_its_official_layout(name, tmp_path):
    task = load_task(name, str(write_task(tmp_path, name)), quiz_size=3)
    assert [len(split) for split in (task.train, task.quiz, task.dev)] == [9, 3, 12]
    assert task.metrics == METRICS.get(name, ("accuracy",))
    pair = name not in ("sst2", "cola")
    assert task.columns == TEXTS.get(name, ("sentence1", "sentence2") if pair else ("sentence",))
    assert task.dev.keys[4] == (('one 1 4 "so', "two 1 4 yes") if pair else 'one 1 4 "so')
    both = Counter(zip(task.train.keys + task.quiz.keys, [*task.train.labels, *task.quiz.labels]))
    if name == "stsb":
        assert task.label_names == [] and task.dev.labels[:3] == pytest.approx([0, 2.4, 5])
        assert {label for _, label in both} == {np.float32(x) for x in (0, 2.4, 5)}
        with pytest.raises(InputError, match="expected 0|0 for a regression"):
            load_task(name, str(tmp_path), label_noise=0.1)
    else:
        K = len(LABELS.get(name, "01"))
        assert len(task.label_names) == K and task.dev.labels.tolist() == [i % K for i in range(12)]
        text = ('one 0 4 "so', "two 0 4 yes") if pair else 'one 0 4 "so'
        assert both[text, 4 % K] == 1
    if name == "mnli":  # the second dev set, which nothing selects by, is scored once, as a test set is
        assert task.test.keys[0] == ('one 2 0 "so', "two 2 0 yes") and len(task.test.labels) == 12
    if name == "cola":
        assert task.test.keys == ["who knows"] and task.test.labels is None


@pytest.mark.parametrize("score", ["5.1", "-1", "nan", "inf", "two", ""])
def test_a_score_outside_0_to_5_is_named_with_its_line(score, tmp_path):
    path = write_task(tmp_path, "stsb") / "STS-B" / "train.tsv"
    path.write_text(path.read_text().replace("\t2.4\n", f"\t{score}\n", 1))
    with pytest.raises(InputError, match="train.tsv:3: expected a score from 0 to 5"):
        load_task("stsb", str(tmp_path))


def test_where_no_dev_set_is_published_one_is_carved_out_of_train(tmp_path):
    (write_task(tmp_path, "mrpc", rows=200) / "MRPC" / "dev.tsv").unlink()
    task = load_task("mrpc", str(tmp_path))
    assert [len(split) for split in (task.dev, task.quiz, task.train)] == [20, 18, 162]
    assert task.dev.keys == load_task("mrpc", str(tmp_path), seed=5).dev.keys  # one dev set for all seeds
    assert task.notes == ["dev: 20 examples carved out of the training file, the same for every seed"]


def test_a_regressions_quiz_is_even_over_its_scores():
    scores = np.float32([0] * 30 + [2.5] * 8 + [5] * 2)
    rows = data.sample_quiz(scores, 12, seed=0, step=5)
    assert Counter(scores[rows].tolist()) == {0: 4, 2.5: 4, 5: 4}
    assert len({*data.sample_quiz(np.linspace(0, 5, 40, dtype=np.float32), 20, seed=0, step=5)}) == 20


# ---------------------------------------------------------------- noise


def test_word_noise_replaces_words_and_spares_punctuation():
    assert data.add_noise("This is a sentence.", 0) == "This is a sentence."
    assert data.add_noise("This isn't a sentence, is it?", 1) == "noise_word noise_word noise_word noise_word, noise_word noise_word?"
    text = " ".join(f"w{i}" for i in range(4000))
    noisy = data.add_noise(text, 0.2, np.random.default_rng(0)).split()
    kept = [word for word in noisy if word != "noise_word"]
    assert len(noisy) == 4000 and abs(len(kept) / 4000 - 0.8) < 0.02 and set(kept) <= set(text.split())
    split = sentences(["a b", ("c d", "e f")], None)
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


def write_cifar(folder, train=None, test=None):
    """A miniature CIFAR-100, by default of 220 and 30 pictures."""
    (folder / "cifar-100-binary").mkdir(exist_ok=True)
    for name, content in (("train", train), ("test", test)):
        default = records_of(220) if name == "train" else records_of(30, seed=1)
        (folder / "cifar-100-binary" / f"{name}.bin").write_bytes(default.tobytes() if content is None else content)
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


def test_pictures_of_ones_own_dev_file_are_dev(tmp_path):
    write_cifar(tmp_path)
    own = records_of(40, seed=2)
    (tmp_path / "cifar-100-binary" / "dev.bin").write_bytes(own.tobytes())
    task = load_task("cifar100", str(tmp_path))
    assert task.dev.keys == list(map(bytes, own[:, 2:])) and len(task.train) + len(task.quiz) == 220


@pytest.mark.parametrize("seed", [0, 1])
def test_dev_and_quiz_are_carved_out_of_the_training_pictures(seed, tmp_path):
    write_cifar(tmp_path)
    task = load_task("cifar100", str(tmp_path), seed=seed)
    parts = [set(split.keys) for split in (task.train, task.quiz, task.dev, task.test)]
    assert [len(part) for part in parts] == [179, 19, 22, 30]
    assert len(set.union(*parts)) == 250  # disjoint
    assert parts[0] | parts[1] | parts[2] == set(map(bytes, records_of(220)[:, 2:]))
    assert task.dev.keys == load_task("cifar100", str(tmp_path), seed=seed + 7).dev.keys  # a taught teacher's dev set
    assert task.notes[0] == "dev: 22 examples carved out of the training file, the same for every seed"


def test_a_picture_of_the_test_set_does_not_stay_in_train(tmp_path):
    records = records_of(220)
    write_cifar(tmp_path, test=records[:4].tobytes())
    task = load_task("cifar100", str(tmp_path))
    held_out = sum(picture in {*task.dev.keys} for picture in task.test.keys)
    assert not {*task.train.keys, *task.quiz.keys} & {*task.test.keys}
    assert any(f"left out {4 - held_out} training examples" in note for note in task.notes)


@pytest.mark.parametrize("name, content, message", [
    ("train", records_of(9).tobytes()[:-1], "train.bin: expected whole records of 3,074 bytes"),
    ("train", records_of(9).tobytes() + b"x", "expected whole records of 3,074 bytes, found 27,667 bytes"),
    ("train", b"", "train.bin: expected whole records"),
    ("test", bytes([0, 5]) + bytes(3072) + bytes([3, 100]) + bytes(3072),
     "test.bin: record 2: expected labels up to 19 and 99, found [  3 100]"),
    ("train", bytes([20, 5]) + bytes(3072), "train.bin: record 1: expected labels up to 19 and 99, found [20  5]"),
])  # fmt: skip
def test_bad_pictures_are_named_with_their_record(tmp_path, name, content, message):
    write_cifar(tmp_path, **{name: content})
    with pytest.raises(InputError) as error:
        load_task("cifar100", str(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_file_of_pictures_is_an_error(tmp_path, missing):
    (write_cifar(tmp_path) / "cifar-100-binary" / f"{missing}.bin").unlink()
    with pytest.raises(InputError, match=f"{missing}.bin: expected a file there; .*python notebooks/fetch.py cifar100.*notebooks/pictures.py"):
        load_task("cifar100", str(tmp_path))


def test_a_training_picture_is_a_crop_of_its_framed_self_mirrored_or_not():
    """Each found among its 9 × 9 × 2 possible views; all places and both ways occur."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (400, 3, 32, 32), dtype=np.uint8)
    before, cut, seen = pictures.copy(), data.crop_and_mirror(pictures, 1), set()
    assert cut.dtype == np.uint8 and (pictures == before).all()
    framed = np.pad(pictures, ((0, 0), (0, 0), (4, 4), (4, 4)))
    for n in range(len(pictures)):
        for mirrored, view in ((False, cut[n]), (True, cut[n, :, :, ::-1])):
            for top in range(9):
                for left in range(9):
                    if np.array_equal(framed[n, :, top : top + 32, left : left + 32], view):
                        seen.add((n, top, left, mirrored))
    assert {n for n, *_ in seen} == set(range(400)) and len(seen) == 400
    assert {top for _, top, _, _ in seen} == {left for _, _, left, _ in seen} == set(range(9))
    assert 140 < sum(mirrored for *_, mirrored in seen) < 260


def test_crops_are_a_function_of_their_seed(tmp_path):
    pictures = load_task("cifar100", str(write_cifar(tmp_path))).dev.examples
    one, same, other = (data.crop_and_mirror(pictures, seed) for seed in ([0, 7, 3], [0, 7, 3], [0, 7, 4]))
    assert (one == same).all() and (one != other).any() and (one != pictures).any()
