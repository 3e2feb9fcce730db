"""Whatever a user can get wrong ends in one line that says what, where and what was expected, with exit status 2; nothing
half-written stays. What is harmless is accepted."""

import dataclasses
import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, builtin_reviews
from test_data import records_of, write_cifar, write_glue
from test_train import SMALL, flags, small

import data
import metadistil
import models
import train


def refused(capsys, arguments) -> str:
    """Run the command line, which must refuse: its one line."""
    with pytest.raises(SystemExit) as stop:
        train.main([str(argument) for argument in arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert stop.value.code == 2 and len(said) == 1 and said[0].startswith("train.py: ")
    assert "expected" in said[0] or "invalid" in said[0]
    return said[0]


# ---------------------------------------------------------------- flags

FIELDS = dataclasses.fields(train.Config)
EVERY_METHOD = ",".join(train.METHODS)
MAY_BE_ZERO = [field.name for field in FIELDS if field.type in (int, float) and field.metadata["valid"][0] <= 0]
NUMBERS = [
    (field.name, value)
    for field in FIELDS
    for value in ("-1", "0", "nan", "inf", "some", "1e400", "0x10")
    if field.type in (int, float) and not (value == "0" and field.name in MAY_BE_ZERO)
]


@pytest.mark.parametrize("name, value", NUMBERS)
def test_numbers_that_cannot_be(name, value, capsys, tmp_path):
    settings = SMALL | {"out": tmp_path / "run", name: value}
    assert f"--{name.replace('_', '-')}" in refused(capsys, flags(**settings)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MAY_BE_ZERO)
def test_what_may_be_zero_stays_zero(name, tmp_path):
    for zero in (0, 0.0) if train.Config.__annotations__[name] is float else (0,):
        assert getattr(train.resolve(small(tmp_path / "run", methods=EVERY_METHOD, **{name: zero})), name) == 0


@pytest.mark.parametrize("name, value", [
    ("task", ""), ("task", "SST2"), ("data", "/dev/null"), ("teacher", ""), ("teacher", "tiny,"), ("teacher", "."),
    ("teacher", "resnet20"), ("student", "nothing.pt"), ("student", "resnet8"), ("student_layers", "1,,2"), ("student_layers", "all"),
    ("student_layers", "-1"), ("student_layers", "1"), ("methods", ""), ("methods", "KD"), ("methods", "kd;finetune"),
    ("optimizer", "Adam"), ("schedule", ""), ("schedule", "cosine"), ("meta_grad", "exact"), ("device", "tpu"),
    ("precision", "fp8"), ("out", "/dev/null/run"), ("resume", "/dev/null"), ("seed", "1"),
])  # fmt: skip
def test_words_that_cannot_be(name, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main(flags(**({} if name == "resume" else SMALL | {"out": "run"}) | {name: value}))
    assert stop.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_value_of_another_type_is_refused(field, tmp_path):
    """From Python, where no command line reads the words."""
    for wrong in {int: ("2", 2.0, True), float: ("0.5", True), str: (7, ["kd"]), bool: (1, "yes")}[field.type]:
        with pytest.raises(data.InputError, match=f"--{field.name.replace('_', '-')} .*: expected"):
            train.run(train.Config(**SMALL | {"out": str(tmp_path / "run"), "methods": EVERY_METHOD} | {field.name: wrong}))
    assert not list(tmp_path.iterdir())


ALONE = ",".join(name for name, method in train.METHODS.items() if method.teacher == "none")


@pytest.mark.parametrize("field", [field for field in FIELDS if not field.metadata["used_by"](train.METHODS["finetune"])], ids=lambda field: field.name)
def test_a_flag_that_no_method_of_the_run_uses_is_refused(field, tmp_path):
    settings = SMALL | {"out": tmp_path / "run", "quiz_batch_size": None}
    value = True if field.type is bool else next(iter(field.metadata["valid"])) if field.type is str else 1
    said = f"--{field.name.replace('_', '-')}: no method of --methods {ALONE} uses it"
    with pytest.raises(data.InputError, match=f"^{said}$"):
        train.resolve(train.Config(**settings | {"methods": ALONE, field.name: value}))
    assert getattr(train.resolve(train.Config(**settings | {"methods": EVERY_METHOD, field.name: value})), field.name) == value


# ---------------------------------------------------------------- files of a task

HEADER, ROWS = b"sentence\tlabel\n", b"".join(b"a line of words %d\t%d\n" % (n, n % 2) for n in range(40))
BAD_FILES = {
    "empty": b"", "only a header": HEADER, "no header": ROWS, "another header": b"text\ttone\n" + ROWS,
    "label column missing": b"sentence\n" + b"words\n" * 40, "column missing": HEADER + ROWS + b"no label\n",
    "extra column": HEADER + ROWS + b"words\t1\t7\n", "unknown label": HEADER + ROWS + b"words\t2\n",
    "empty label": HEADER + ROWS + b"words\t\n", "word for a label": HEADER + b"words\tgood\n" + ROWS,
    "NUL bytes": HEADER + ROWS + b"wo\0rds\t1\n", "Latin-1": HEADER + ROWS + b"caf\xe9\t1\n", "UTF-16": (HEADER + ROWS).decode().encode("utf-16"),
    "blank sentences": HEADER + b"\t1\n \t0\n" * 20, "blank lines": b"\n" * 50, "comma-separated": (HEADER + ROWS).replace(b"\t", b","),
    "spaces for tabs": (HEADER + ROWS).replace(b"\t", b"    "), "two rows in one": HEADER + ROWS + b"a\t1\tb\t0\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "one row": HEADER + b"words\t1\n",
    "unknown label far down": HEADER + ROWS * 100 + b"words\t-1\n",
}  # fmt: skip


@pytest.mark.parametrize("what", [*BAD_FILES, "a directory", "nothing"])
@pytest.mark.parametrize("name", ["train", "dev"])
def test_bad_files(name, what, capsys, tmp_path):
    path = write_glue(tmp_path) / "SST-2" / f"{name}.tsv"
    path.unlink()
    if what == "a directory":
        path.mkdir()
    elif what != "nothing":
        path.write_bytes(BAD_FILES[what])
    if (name, what) == ("dev", "one row"):  # that is a dev set
        return
    said = refused(capsys, flags(**SMALL | {"data": tmp_path, "train_size": 8, "quiz_size": 8, "out": tmp_path / "run"}))
    assert str(path) in said or what in ("a directory", "nothing", "one row")
    assert not (tmp_path / "run").exists()


HARMLESS = {
    "byte-order mark": b"\xef\xbb\xbf" + HEADER + ROWS, "carriage returns": (HEADER + ROWS).replace(b"\n", b"\r\n"),
    "no final newline": (HEADER + ROWS)[:-1], "blank line at the end": HEADER + ROWS + b"\n\n", "quotes": HEADER + ROWS.replace(b"words", b'"words'),
    "emoji": HEADER + ROWS.replace(b"words", "🎬 wörds".encode()), "a sentence of 1 MB": HEADER + ROWS + b"long " * 200_000 + b"\t1\n",
    "some blank sentences": HEADER + ROWS + b" \t1\n", "another column order": b"label\tsentence\n" + b"".join(b"%d\tline %d\n" % (n % 2, n) for n in range(40)),
    "an extra column with a name": b"id\tsentence\tlabel\n" + b"".join(b"%d\tline %d\t%d\n" % (n, n, n % 2) for n in range(40)),
    "one class": HEADER + ROWS.replace(b"\t1\n", b"\t0\n"),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_harmless_is_read(what, tmp_path):
    path = write_glue(tmp_path) / "SST-2" / "train.tsv"
    path.write_bytes(HARMLESS[what])
    task = data.load_task("sst2", str(tmp_path))
    assert 40 <= len(task.train) + len(task.quiz) <= 41 and not any("\r" in text or "\ufeff" in text for text in task.train.texts)
    finished = train.run(small(tmp_path / "run", data=str(tmp_path), train_size=None, quiz_size=4, epochs=1, teacher_epochs=1))
    assert len(finished.results) > 2 and all(np.isfinite(one["scores"]["dev accuracy"]) for found in finished.results.values() for one in found)


@pytest.mark.parametrize("content", [
    b"", bytes(3073), bytes(3075), bytes(10), bytes([20, 0]) + bytes(3072), bytes([0, 100]) + bytes(3072), b"\xff" * 3074,
    (HEADER + ROWS), records_of(30).tobytes()[:-1], records_of(30).tobytes() + b"\0",
])  # fmt: skip
@pytest.mark.parametrize("name", ["train", "test"])
def test_bad_pictures(name, content, capsys, tmp_path):
    write_cifar(tmp_path, **{name: content})
    said = refused(capsys, flags(task="cifar100", data=tmp_path, out=tmp_path / "run"))
    assert f"{name}.bin" in said and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- saved networks


class Bomb:
    """Unpickled with code execution it would make a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


SHAPE = models.EncoderConfig(vocab_size=60, hidden=16, layers=2, heads=2, intermediate=32, max_positions=130)


@pytest.fixture(scope="module")
def whole():
    """A saved network, which each test below breaks in one place."""
    tokenizer = data.train_tokenizer(["a line of words"] * 9, 60)
    return models.to_save(models.Encoder(SHAPE), labels=["negative", "positive"], tokenizer=tokenizer.to_str())


def refused_network(capsys, tmp_path, path) -> str:
    said = refused(capsys, flags(**SMALL | {"teacher": path, "out": tmp_path / "run"}))
    assert str(path) in said and not (tmp_path / "run").exists()
    return said


BAD_CONFIGS = {
    "heads of 0": {"heads": 0}, "heads that do not divide": {"heads": 3}, "text for a number": {"hidden": "wide"}, "no number": {"hidden": None},
    "no positions": {"max_positions": 0}, "negative layers": {"layers": -1}, "another width": {"hidden": 24}, "fewer words": {"vocab_size": 12},
    "an unknown field": {"colour": "red"},
}  # fmt: skip
BAD_ENTRIES = {
    "an older format": {"format": ...}, "another format": {"format": "2"}, "another kind": {"kind": "t5"}, "no kind": {"kind": ...},
    "pictures": {"kind": "resnet", "config": {"depth": 8}}, "no configuration": {"config": ...}, "a configuration of text": {"config": "base"},
    "no weights": {"weights": ...}, "weights of text": {"weights": "heavy"}, "too few weights": {"weights": {"words.weight": torch.zeros(60, 16)}},
}  # fmt: skip
BAD_ENTRIES |= {what: {"config": dataclasses.asdict(SHAPE) | change} for what, change in BAD_CONFIGS.items()}
BAD_READERS = {
    "no tokeniser": {"tokenizer": ...}, "None for a tokeniser": {"tokenizer": None}, "a tokeniser of nonsense": {"tokenizer": "{"},
    "more words than rows": {"tokenizer": data.train_tokenizer(builtin_reviews("dev").texts).to_str()}, "no labels": {"labels": ...},
}  # fmt: skip


def broken(whole, change, path):
    """The saved network with that change, written; `...` leaves an entry out."""
    path.parent.mkdir(exist_ok=True)
    torch.save({name: value for name, value in (whole | change).items() if value is not ...}, path)
    return path


@pytest.mark.parametrize("what", BAD_ENTRIES)
@pytest.mark.parametrize("name", ["network.pt", "folder/metadistil.pt"])
def test_saved_networks_with_something_else_in_them(name, what, whole, capsys, tmp_path):
    path = broken(whole, BAD_ENTRIES[what], tmp_path / name)
    said = refused_network(capsys, tmp_path, path if name == "network.pt" else path.parent)
    if "format" in what:
        assert f"expected {models.FORMAT}: make it again" in said


@pytest.mark.parametrize("what", BAD_READERS)
@pytest.mark.parametrize("name", ["network.pt", "folder/metadistil.pt"])
def test_saved_networks_that_cannot_read(name, what, whole, capsys, tmp_path):
    path = broken(whole, BAD_READERS[what], tmp_path / name)
    refused_network(capsys, tmp_path, path if name == "network.pt" else path.parent)


@pytest.mark.parametrize("layers", ["2", "0,99"])
def test_layers_that_a_saved_network_lacks_are_refused(layers, whole, capsys, tmp_path):
    path = broken(whole, {}, tmp_path / "network.pt")
    said = refused(capsys, flags(**SMALL | {"student": path, "student_layers": layers, "out": tmp_path / "run"}))
    assert "--student-layers" in said and not (tmp_path / "run").exists()


def test_layers_of_a_network_without_layers_are_refused(capsys, tmp_path):
    write_cifar(tmp_path)
    names = list(data.TASKS["cifar100"].labels.values())
    path = broken(models.to_save(models.resnet("resnet8"), labels=names, tokenizer=None), {}, tmp_path / "network.pt")
    said = refused(capsys, flags(task="cifar100", data=tmp_path, student=path, student_layers="0", out=tmp_path / "run"))
    assert "--student-layers" in said and not (tmp_path / "run").exists()


def damaged(path, how, tmp_path):
    content = path.read_bytes()
    path.unlink()
    if how == "a directory":
        path.mkdir()
    elif how == "a bomb":
        torch.save({"format": models.FORMAT, "config": Bomb(tmp_path / "exploded"), "weights": {}}, path)
    elif how == "a pickled bomb":
        path.write_bytes(pickle.dumps({"config": Bomb(tmp_path / "exploded")}))
    elif how in ("another dict", "a tensor"):
        torch.save({"weights": {}} if how == "another dict" else torch.zeros(3), path)
    elif how != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": bytes(range(256)) * 40}[how])


HOW = ["missing", "empty", "cut", "noise", "a directory", "another dict", "a tensor", "a bomb", "a pickled bomb"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["network.pt", "folder/metadistil.pt"])
def test_damaged_networks_are_refused(name, how, whole, capsys, tmp_path):
    path = broken(whole, {}, tmp_path / name)
    damaged(path, how, tmp_path)
    said = refused_network(capsys, tmp_path, path if name == "network.pt" else path.parent)
    assert "expected a saved network" in said and not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------- our own runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run, with its checkpoint and its trained networks."""
    return train.run(small(tmp_path_factory.mktemp("runs") / "finished", methods="kd", teacher_epochs=1, epochs=1))


@pytest.mark.parametrize("how", HOW)
def test_damaged_checkpoints_are_refused(how, finished, capsys, tmp_path):
    (out := tmp_path / "run").mkdir()
    (out / "checkpoint.pt").write_bytes((finished.out / "checkpoint.pt").read_bytes())
    damaged(out / "checkpoint.pt", how, tmp_path)
    said = refused(capsys, ["--resume", out])
    assert "checkpoint.pt: expected the checkpoint of a run" in said and not (tmp_path / "exploded").exists()
    assert [path.name for path in out.iterdir()] == ["checkpoint.pt"] * (how != "missing")


def test_a_flipped_bit_in_a_checkpoint_is_noticed(finished, capsys, tmp_path):
    (out := tmp_path / "run").mkdir()
    content = bytearray((finished.out / "checkpoint.pt").read_bytes())
    with zipfile.ZipFile(finished.out / "checkpoint.pt") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    (out / "checkpoint.pt").write_bytes(content)
    assert "checkpoint.pt: expected the checkpoint of a run" in refused(capsys, ["--resume", out])


def test_a_checkpoint_of_an_older_version_says_so(finished, capsys, tmp_path):
    journal = torch.load(finished.out / "checkpoint.pt", weights_only=True)
    del journal["format"]
    torch.save(journal, tmp_path / "checkpoint.pt")
    assert f"format 1, expected {models.FORMAT}: make it again" in refused(capsys, ["--resume", tmp_path])


@pytest.mark.parametrize("how", [how for how in HOW if how != "missing"])
def test_damaged_networks_predict_nothing(how, finished, capsys, tmp_path):
    (tmp_path / "seed0").mkdir()
    path = tmp_path / "seed0" / "student-kd.pt"
    path.write_bytes((finished.out / "seed0" / "student-kd.pt").read_bytes())
    damaged(path, how, tmp_path)
    assert "student-kd.pt: expected" in refused(capsys, ["--predict", "A film.", "--out", tmp_path])
    assert not (tmp_path / "exploded").exists()


def test_predictions_need_a_run_and_a_list(finished, capsys, tmp_path):
    assert "--predict: expected --out" in refused(capsys, ["--predict", "A film."])
    assert f"{tmp_path}: expected a run" in refused(capsys, ["--predict", "A film.", "--out", tmp_path])
    with pytest.raises(data.InputError, match="expected a list of sentences"):
        finished.models["student kd"].predict("A film.")


@pytest.mark.parametrize("place", ["fsync", "replace", "open"])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing_under_its_final_name(place, capsys, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (os, "replace"), "open": (train.Path, "open")}[place], full)
    with pytest.raises(SystemExit) as stop:
        train.main(flags(**SMALL | {"out": tmp_path / "run"}))
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said) == 1 and "No space left on device" in said[0]
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.suffix != ".part"]


def test_a_read_only_directory_is_named(capsys, tmp_path, monkeypatch):
    def denied(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(train.Path, "mkdir", denied)
    with pytest.raises(SystemExit) as stop:
        train.main(flags(**SMALL | {"out": tmp_path / "run"}))
    assert stop.value.code == 2 and f"Permission denied: '{tmp_path}" in capsys.readouterr().err


def test_ctrl_c_is_told_of_in_one_line(capsys, tmp_path, monkeypatch):
    """Before the run has begun, and in its middle, when there is something to go on from; from Python the same sentence."""

    def pressed(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    for place, name, said in ((data, "load_task", "stopped"), (metadistil, "real_update", f"stopped; to go on: python train.py --resume {out}")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(place, name, pressed)
            train.main(flags(**SMALL | {"out": out}))
        assert stop.value.code == 130 and capsys.readouterr().err.strip() == said
        assert out.exists() == (name == "real_update")
    monkeypatch.setattr(metadistil, "real_update", pressed)
    with pytest.raises(KeyboardInterrupt, match=f"to go on: python train.py --resume {out}"):
        train.run(*train.read_journal(str(out)))


# ---------------------------------------------------------------- it notices


def test_a_teacher_near_chance_is_warned_of(capsys, tmp_path):
    train.run(small(tmp_path / "run", methods="kd", teacher_epochs=1, epochs=1))
    said = capsys.readouterr().out
    assert re.search(r"note: teacher before: dev accuracy 0\.\d+; one answer to everything has 0\.50\d\n", said)


def test_the_step_and_the_rates_of_a_loss_that_is_not_finite_are_named(capsys, tmp_path):
    with pytest.raises(SystemExit):
        train.main(flags(**SMALL | {"out": tmp_path / "run", "finetune_lr": 1e30}))
    said = capsys.readouterr().err.splitlines()[-1]
    assert "'stage': 'teacher', 'step': 2" in said and "found nan" in said and "try a tenth of the rates" in said


@pytest.mark.slow
@pytest.mark.parametrize("script", ["curves.py", "film.py", "results/report.py"])
def test_without_matplotlib_a_script_that_draws_says_so_in_one_line(script, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    ran = subprocess.run(
        [sys.executable, ROOT / "notebooks" / script], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    name = script.split("/")[-1]
    assert ran.returncode == 2 and ran.stderr == f"{name}: expected matplotlib; pip install -r notebooks/requirements.txt\n"


@pytest.mark.parametrize("dev, quiz_size", [([("one", 1), ("two", 1)], 1), ([("one", 0)], 3), ([("one", 0), ("two", 1)], 2)])
def test_tiny_and_one_sided_quizzes_and_dev_sets_work(dev, quiz_size, tmp_path):
    write_glue(tmp_path, dev=dev)
    finished = train.run(small(tmp_path / "run", data=str(tmp_path), train_size=None, quiz_size=quiz_size, epochs=1))
    assert all(np.isfinite(one["scores"]["dev accuracy"]) for found in finished.results.values() for one in found)
