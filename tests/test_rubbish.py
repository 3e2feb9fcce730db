"""Whatever a user can get wrong ends in one line that says what, where and what was expected, with exit status 2; nothing
half-written stays. What is harmless is accepted."""

import dataclasses
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import save_checkpoint
from test_data import records_of, write_cifar, write_glue
from test_train import SMALL, flags, small

import data
import models
import train


def refused(capsys, arguments) -> str:
    """Run the command line, which must refuse: its one line."""
    with pytest.raises(SystemExit) as stop:
        train.main([str(argument) for argument in arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert stop.value.code == 2 and len(said) == 1 and said[0].startswith("train.py: ") and "expected" in said[0] or "invalid" in said[0]
    assert "Traceback" not in said[0]
    return said[0]


# ---------------------------------------------------------------- flags

FINE = {"0": {"noise", "dropout", "label_noise", "alpha", "beta", "warmup_epochs", "checkpoint_seconds"}}  # what may be 0
NUMBERS = [
    (field.name, value)
    for field in dataclasses.fields(train.Config)
    for value in ("-1", "0", "nan", "inf", "some", "1e400", "0x10")
    if field.type in (int, float) and field.name not in FINE.get(value, ())
]


@pytest.mark.parametrize("name, value", NUMBERS)
def test_numbers_that_cannot_be(name, value, capsys, tmp_path):
    settings = SMALL | {"out": tmp_path / "run", name: value}
    assert f"--{name.replace('_', '-')}" in refused(capsys, flags(**settings)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, value", [
    ("task", ""), ("task", "SST2"), ("data", "/dev/null"), ("teacher", ""), ("teacher", "tiny,"), ("teacher", "."),
    ("teacher", "resnet20"), ("student", "nothing.pt"), ("student", "resnet8"), ("student_layers", "1,,2"), ("student_layers", "all"),
    ("student_layers", "-1"), ("methods", ""), ("methods", "KD"), ("methods", "kd;pkd"), ("pkd_layers", "first"),
    ("meta_grad", "exact"), ("device", "tpu"), ("precision", "fp8"), ("out", "/dev/null/run"), ("resume", "/dev/null"), ("seed", "1"),
])  # fmt: skip
def test_words_that_cannot_be(name, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main(flags(**({} if name == "resume" else SMALL | {"out": "run"}) | {name: value}))
    assert stop.value.code == 2 and len(capsys.readouterr().err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


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
    "emoji": HEADER + ROWS.replace(b"words", "🎬 wörds".encode()), "a sentence of 10 MB": HEADER + ROWS + b"long " * 2_000_000 + b"\t1\n",
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
    assert set(finished["results"]) > {"student kd", "student metadistil"}


@pytest.mark.parametrize("content", [
    b"", bytes(3073), bytes(3075), bytes(10), bytes([20, 0]) + bytes(3072), bytes([0, 100]) + bytes(3072), b"\xff" * 3074,
    (HEADER + ROWS), records_of(30).tobytes()[:-1], records_of(30).tobytes() + b"\0",
])  # fmt: skip
@pytest.mark.parametrize("name", ["train", "test"])
def test_bad_pictures(name, content, capsys, tmp_path):
    write_cifar(tmp_path, **{name: content})
    said = refused(capsys, flags(task="cifar100", data=tmp_path, out=tmp_path / "run"))
    assert f"{name}.bin" in said and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- checkpoints of others


class Bomb:
    """Unpickled with code execution it would make a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def tensors(header: dict | bytes, length: int | None = None, body: bytes = bytes(64)) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def entry(**change) -> dict:
    return {"words.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | change}


SHAPE = models.EncoderConfig(vocab_size=60, hidden=16, layers=2, heads=2, intermediate=32, max_positions=130)
BAD_SAFETENSORS = {
    "empty": b"", "short": b"\x01", "header of 2^63 bytes": tensors({}, 2**63), "header beyond the file": tensors({}, 10_000),
    "no JSON": tensors(b"nothing"), "JSON of another kind": tensors(b"[1, 2]"), "no shape": tensors({"words.weight": {"dtype": "F32"}}),
    "offsets outside": tensors(entry(data_offsets=[0, 6400])), "offsets backwards": tensors(entry(data_offsets=[64, 0])),
    "negative offsets": tensors(entry(data_offsets=[-64, 64])), "unknown type": tensors(entry(dtype="F8")), "wrong shape": tensors(entry(shape=[3, 5])),
    "huge shape": tensors(entry(shape=[2**40, 2**40])), "of another model": tensors(entry()), "text for offsets": tensors(entry(data_offsets="ab")),
}  # fmt: skip
BAD_CONFIGS = {
    "missing": None, "empty": "", "no JSON": "{", "a list": "[]", "another model": {"model_type": "t5"}, "no heads": {"num_attention_heads": None},
    "heads of 0": {"num_attention_heads": 0}, "heads that do not divide": {"num_attention_heads": 3}, "relu": {"hidden_act": "relu"},
    "text for a number": {"hidden_size": "wide"}, "no positions": {"max_position_embeddings": 0}, "negative layers": {"num_hidden_layers": -1},
    "another width": {"hidden_size": 24}, "fewer words": {"vocab_size": 12}, "an eps of text": {"layer_norm_eps": "small"},
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A whole checkpoint directory, which each test below breaks in one place."""
    torch.manual_seed(0)
    tokenizer = data.train_tokenizer(["a line of words"] * 9, 60)
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "whole", models.Encoder(SHAPE), tokenizer)


def copied(published, tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for path in published.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def refused_checkpoint(capsys, tmp_path, directory) -> str:
    said = refused(capsys, flags(**SMALL | {"teacher": directory, "methods": "kd", "out": tmp_path / "run"}))
    assert str(directory) in said and not (tmp_path / "run").exists()
    return said


@pytest.mark.parametrize("what", BAD_SAFETENSORS)
def test_bad_safetensors(what, published, capsys, tmp_path):
    directory = copied(published, tmp_path)
    (directory / "model.safetensors").write_bytes(BAD_SAFETENSORS[what])
    refused_checkpoint(capsys, tmp_path, directory)


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_bad_configs(what, published, capsys, tmp_path):
    directory, change = copied(published, tmp_path), BAD_CONFIGS[what]
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").unlink()
    if isinstance(change, dict):
        changed = {name: value for name, value in (config | change).items() if value is not None}
        (directory / "config.json").write_text(json.dumps(changed))
    elif change is not None:
        (directory / "config.json").write_text(change)
    refused_checkpoint(capsys, tmp_path, directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tokenizer.json"])
@pytest.mark.parametrize("content", ["missing", "empty", "cut", "noise", "directory", "bomb"])
def test_bad_weights_and_tokenisers(name, content, published, capsys, tmp_path):
    directory = copied(published, tmp_path)
    whole = (directory / name).read_bytes()
    (directory / name).unlink()
    if content == "directory":
        (directory / name).mkdir()
    elif content != "missing":
        bomb = pickle.dumps({"words.weight": Bomb(tmp_path / "exploded")})
        (directory / name).write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": bytes(range(256)) * 9, "bomb": bomb}[content])
    refused_checkpoint(capsys, tmp_path, directory)
    assert not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------- our own models and checkpoints


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run's directory with its last two checkpoints and a trained teacher."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    train.run(small(out, methods="kd", checkpoint_seconds=0.0))
    return out


def damaged(path, how, tmp_path):
    content = path.read_bytes()
    if how == "a bomb":
        torch.save({"config": Bomb(tmp_path / "exploded"), "weights": {}}, path)
        return
    if how == "a flipped bit":
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda info: info.file_size)
        place = largest.header_offset + 200 + largest.file_size // 2
        content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": bytes(range(256)) * 40}.get(how, content))
    if how == "another dict":
        torch.save({"weights": {}}, path)
    if how == "a tensor":
        torch.save(torch.zeros(3), path)


HOW = ["empty", "cut", "noise", "a flipped bit", "another dict", "a tensor", "a bomb"]


@pytest.mark.parametrize("how", HOW)
def test_damaged_checkpoints_are_refused(how, stopped, capsys, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoint.pt").write_bytes((stopped / "checkpoint.pt").read_bytes())
    damaged(out / "checkpoint.pt", how, tmp_path)
    assert "checkpoint.pt: expected the checkpoint of a run" in refused(capsys, ["--resume", out])
    assert not (tmp_path / "exploded").exists() and sorted(path.name for path in out.iterdir()) == ["checkpoint.pt"]


@pytest.mark.parametrize("how", [*HOW, "missing"])
def test_the_checkpoint_before_a_damaged_one_is_used(how, stopped, tmp_path, recwarn):
    (out := tmp_path / "run").mkdir()
    for name in ("checkpoint.pt", "checkpoint-before.pt", "metrics.jsonl"):
        (out / name).write_bytes((stopped / name).read_bytes())
    (out / "seed0").mkdir()
    for path in (stopped / "seed0").iterdir():
        (out / "seed0" / path.name).write_bytes(path.read_bytes())
    (out / "checkpoint.pt").unlink() if how == "missing" else damaged(out / "checkpoint.pt", how, tmp_path)
    train.run(*train.read_journal(str(out)))
    assert any("checkpoint.pt: expected the checkpoint of a run" in str(w.message) and "the one before is used" in str(w.message) for w in recwarn)
    assert (out / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("how", [how for how in HOW if how != "a flipped bit"])
def test_damaged_models_are_refused(how, stopped, capsys, tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes((stopped / "seed0" / "teacher-before.pt").read_bytes())
    damaged(path, how, tmp_path)
    said = refused(capsys, flags(**SMALL | {"teacher": path, "out": tmp_path / "run"}))
    assert "teacher.pt: expected a model saved by train.py" in said and not (tmp_path / "exploded").exists() and not (tmp_path / "run").exists()


def test_a_tokeniser_of_more_words_than_the_model_is_refused(published, capsys, tmp_path):
    directory = copied(published, tmp_path)
    data.train_tokenizer([f"word{n}" for n in range(300)], 400).save(str(directory / "tokenizer.json"))
    assert "rows for its tokeniser's ids" in refused_checkpoint(capsys, tmp_path, directory)


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


# ---------------------------------------------------------------- it notices


def test_a_teacher_near_chance_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"teacher before: dev accuracy 0\.\d+; one answer to everything has 0\.50\d"):
        train.run(small(tmp_path / "run", methods="kd", teacher_epochs=1, epochs=1))


def test_the_step_and_the_rates_of_a_loss_that_is_not_finite_are_named(capsys, tmp_path):
    with pytest.raises(SystemExit):
        train.main(flags(**SMALL | {"out": tmp_path / "run", "finetune_lr": 1e30}))
    said = capsys.readouterr().err.splitlines()[-1]
    assert "'stage': 'teacher', 'step': 2" in said and "found nan" in said and "'finetune_lr': 1e+30" in said and "try a tenth" in said


@pytest.mark.parametrize("dev, quiz_size", [([("one", 1), ("two", 1)], 1), ([("one", 0)], 3), ([("one", 0), ("two", 1)], 2)])
def test_tiny_and_one_sided_quizzes_and_dev_sets_work(dev, quiz_size, tmp_path):
    write_glue(tmp_path, dev=dev)
    finished = train.run(small(tmp_path / "run", data=str(tmp_path), train_size=None, quiz_size=quiz_size, epochs=1))
    assert all(np.isfinite(one["scores"]["dev accuracy"]) for found in finished["results"].values() for one in found)
