"""What a run depends on is recorded; full disks, Ctrl-C and races; what a trained network can be asked."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import sys

import pytest
import torch
from conftest import FEW, SMALL, TEXTS, assert_same_numbers, checkpoint, flags, numbers_of, refused, small, write_reviews
from test_data import write_task

import data
import metadistil
import models
import train


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished.out, tmp_path / "copied")


# ---------------------------------------------------------------- what a run depends on


def test_after_a_change_a_run_does_not_go_on_and_mended_it_does(tmp_path, monkeypatch, capsys):
    write_reviews(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    source, other = checkpoint("network", TEXTS[:50]), checkpoint("other", TEXTS[:50], seed=1)
    out = train.run(small("run", data="data", teacher=source, methods="kd", teacher_epochs=1, warmup_epochs=0, epochs=1)).out

    monkeypatch.setattr(train, "bf16_in_hardware", lambda: False)

    def refuses(expected):
        assert re.search(expected, refused(capsys, ["--resume", "run"]))

    flip = lambda text: text[:-2] + ("0" if text[-2] == "1" else "1") + "\n"  # noqa: E731  the last label
    for path, change, expected in [
        ("data/SST-2/train.tsv", flip, "check sum of .*/train.tsv"), ("data/SST-2/dev.tsv", flip, "check sum of .*/dev.tsv"),
        ("run/config.json", lambda text: text.replace('"seeds": 1', '"seeds": 1, "colour": 3'), "run: expected"),
        ("run/config.json", lambda text: text.replace('"fp32"', '"bf16"'), "bf16; expected"),
        ("run/begun.json", lambda text: text.replace('"format": 3', '"format": 2'), "format 3, expected 2"),
        ("run/config.json", lambda text: text.replace('"kd"', '"kd,magic"'), "--methods magic: expected"),
        ("run/begun.json", lambda text: text.replace('"device": "', '"device": "another '), "device .*, expected another"),
        ("run/begun.json", lambda text: text.replace('"processes": 1', '"processes": 2'), "processes 1, expected 2"),
    ]:  # fmt: skip
        was = (tmp_path / path).read_text()
        (tmp_path / path).write_text(change(was))
        refuses(expected)
        (tmp_path / path).write_text(was)
    for path, now, expected in [("network", other, "check sum of .*/network"), ("data", None, "check sum of .*SST-2/.*.tsv None, expected")]:
        os.rename(path, "was")
        if now:
            shutil.copytree(now, path)
        refuses(expected)  # nor do the reviews stand in for files that are gone
        shutil.rmtree(path, ignore_errors=True)
        os.rename("was", path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        refuses("threads 7, expected ")
    assert train.resume("run").out == out


def test_a_run_from_before_a_flag_goes_on(finished, copied, monkeypatch):
    monkeypatch.setenv("HOME", str(copied.parent))
    config = json.loads((copied / "config.json").read_text())
    del config["meta_every"], config["student_layers"]
    (copied / "config.json").write_text(json.dumps(config))
    for name in ("metadistil.json", "student-metadistil.pt", "teacher-after-metadistil.pt"):
        (copied / "seed1" / name).unlink()
    assert dataclasses.replace(train.resume("~/copied").config, out=finished.config.out) == finished.config
    assert_same_numbers(finished.out, copied)


def test_runs_and_networks_of_the_old_format_say_so(finished, tmp_path, capsys):
    (out := tmp_path / "old").mkdir()
    torch.save({"format": 2, "log": []}, out / "checkpoint.pt")
    assert f"{out}: expected" in refused(capsys, ["--resume", out])
    saved = torch.load(finished.out / "seed0" / "teacher-before.pt", weights_only=True) | {"format": 2}
    torch.save(saved, tmp_path / "old.pt")
    said = refused(capsys, flags(**SMALL | {"teacher": tmp_path / "old.pt", "out": tmp_path / "run"}))
    assert f"format 2, expected {models.FORMAT}" in said and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- directories


def test_nothing_is_overwritten(copied, capsys):
    before, files = numbers_of(copied)[0], sorted(copied.rglob("*"))
    assert f"--out {copied}: expected" in refused(capsys, flags(**SMALL, out=copied))
    assert f"--resume {copied}: expected" in refused(capsys, ["--resume", copied, "--alpha", "0.1"])
    assert numbers_of(copied)[0] == before and sorted(copied.rglob("*")) == files


def test_the_directory_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()  # an empty one is free
    assert train.claim(small("~/x")) == str(tmp_path / "x") and (tmp_path / "x" / "seed0").is_dir()
    monkeypatch.setattr(os, "listdir", lambda path: [])  # another run has just looked, too
    with pytest.raises(OSError, match="seed0"):
        train.claim(small("~/x"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for source, kind in ((data.BUILTIN, "builtin"), (str(FEW), "files")):
        assert re.fullmatch(rf"{tmp_path}/runs/sst2-{kind}-\d{{4}}-\d{{6}}", train.claim(train.Config(task="sst2", data=source)))
    shutil.rmtree("runs")
    os.symlink("nowhere", "runs")
    assert "runs/sst2-files-" in refused(capsys, flags(**SMALL)) and os.readlink("runs") == "nowhere"


def test_networks_by_name_and_by_directory(tmp_path, monkeypatch):
    """A folder with a preset's name changes nothing; directories of each seed are pretrained networks."""
    monkeypatch.chdir(tmp_path)
    checkpoint("micro", TEXTS[:50])
    config = train.resolved(small("run"))
    assert config.teacher == config.student == "micro" and config.alpha == train.DEFAULTS["files"]["alpha"]
    assert train.Seed(config, 0).model("teacher").network.config.hidden == 64
    (tmp_path / "bert-0").mkdir()
    kinds = [train.kind_of_run(dataclasses.replace(config, student=name)) for name in ("bert-{seed}", "bart-{seed}")]
    assert kinds == ["pretrained", "files"]


# ---------------------------------------------------------------- a full disk, Ctrl-C


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, monkeypatch, capsys):
    """Full at every fourth file, again and again."""
    settings = {"methods": "kd", "epochs": 1, "warmup_epochs": 1}
    whole, out, replace, calls = train.run(small(tmp_path / "whole", **settings)), tmp_path / "run", os.replace, []

    def full(*paths):
        calls.append(paths)
        if len(calls) % 4 == 0:
            raise OSError(28, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(models.os, "replace", full)
    command = flags(**{name: value for name, value in SMALL.items() if name != "quiz_batch_size"} | settings, out=out)
    assert "No space left on device" in refused(capsys, command)
    for failures in range(10):
        assert not [*out.rglob("*.part")] and not (out / "table.md").exists()
        with contextlib.suppress(OSError):
            train.resume(out)
            break
    assert failures > 1
    assert_same_numbers(whole.out, out)


@pytest.mark.parametrize("place, said", [
    ((data, "load_task"), "stopped"), ((train, "try_out"), "stopped"), ((train, "load_all"), "stopped"), ((models.Model, "predict"), "stopped"),
    ((metadistil, "metadistil_step"), "stopped"),
])  # fmt: skip
def test_ctrl_c_ends_in_one_line(place, said, finished, copied, monkeypatch, capsys):
    """Before anything is written, while a network is asked, and in the middle, where there is something to go on from."""

    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, pressed)
    (copied / "seed1" / "metadistil.json").unlink()
    asks, middle = place[0] is models.Model or place[1] == "load_all", place[0] is metadistil
    arguments = ["--predict", "fun", "--out", copied] if asks else ["--resume", copied] if middle else flags(**SMALL, out=copied / "new")
    with pytest.raises(SystemExit) as stop:
        train.main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert stop.value.code == 130 and printed.err.splitlines()[-1] == said and not (copied / "new").exists()
    assert (f"python train.py --resume {copied}\n" in printed.out) == middle


# ---------------------------------------------------------------- asking


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A run on pairs of sentences."""
    folder = write_task(tmp_path_factory.mktemp("pairs") / "files", "mrpc", rows=20)
    settings = {"methods": "finetune", "teacher_epochs": 1, "warmup_epochs": 0, "epochs": 1, "train_size": 10, "quiz_size": 4}
    return train.run(small(folder.parent / "run", task="mrpc", data=str(folder), **settings))


def test_any_text_has_an_answer(finished):
    for text in ["", "   ", "\t", "\u200b", "🎬" * 300, "\x07 \x1b[31m", "witty " * 10_000]:
        [(label, probabilities)] = finished.models["student kd"].predict([text])
        assert label == max(probabilities, key=probabilities.get) and sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


@pytest.fixture
def terminal(monkeypatch):
    """What train.py says in a terminal of that encoding, of bytes on its standard input: status, output, errors."""

    def said(arguments, text=b"", encoding="utf-8"):
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
        streams["stdin"] = io.TextIOWrapper(io.BytesIO(text), encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            try:
                status = train.from_terminal()
            except SystemExit as stop:
                status = stop.code
        for name in ("stdout", "stderr"):
            streams[name].seek(0)
        return status, streams["stdout"].read().splitlines(), streams["stderr"].read().splitlines()

    return said


def test_every_model_answers_to_each_sentence_on_standard_input(finished, pairs, terminal, monkeypatch):
    monkeypatch.setenv("HOME", str(finished.out.parent))
    ask = lambda out, *given: terminal(["--predict", "--out", out], *given)  # noqa: E731
    status, said, errors = ask("~/finished", b"the plot is dull\r\n\nthe cast\tis witty\n")
    assert (status, len(said), errors) == (None, 18, []) and [said[n] for n in (0, 6, 12)] == ["the plot is dull", "", "the cast\tis witty"]
    assert [re.fullmatch(r"  (\w+ \w+( \w+)?) +(positive|negative) +(\d+\.\d)%", line)[1] for line in said[1:6]] == [*finished.models]
    assert said[13:] == ask(finished.out, b"the cast is witty")[1][1:]  # a tab is white space there; in pairs it parts
    assert ask(pairs.out, b"one\tother\n")[0] is None and ask(pairs.out, b"\tother\n")[0] is None and ask(finished.out, b"")[1] == []
    for out, text in [(pairs.out, b"one\n"), (pairs.out, b"\n"), (finished.out, b"caf\xe9 \xff\n"), (finished.out, b"\xed\xa0\x80")]:
        status, _, errors = ask(out, text)
        expected = "sentence" if out == finished.out else "#1 String and #2 String"
        assert status == 2 and len(errors) == 1 and errors[0].startswith(f"train.py: expected {expected}, in UTF-8, found ")
    in_latin, in_utf8 = (ask(finished.out, "naïve – 电影\n".encode(), encoding) for encoding in ("latin-1", "utf-8"))
    assert in_latin[0] is None and in_latin[1][1:] == in_utf8[1][1:]  # a letter that the terminal lacks is shown as another


def test_help_can_be_read_in_a_terminal_without_greek_letters(terminal):
    status, said, errors = terminal(["--help"], encoding="cp1252")
    assert status == 0 and any("--pilot-lr" in line for line in said) and not errors
