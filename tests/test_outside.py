"""What a run depends on is recorded; full disks, Ctrl-C and races; what a trained network can be asked."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import FEW, ROOT, SMALL, TEXTS, assert_same_numbers, checkpoint, flags, refused, small, write_reviews

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
    monkeypatch.setattr(train, "bf16_in_hardware", lambda: False)
    settings = {"methods": "finetune", "teacher_epochs": 1, "warmup_epochs": 0, "epochs": 1}
    checkpoint("other", TEXTS[:50], seed=1)
    out = train.run(small("run", data="data", teacher=checkpoint("network", TEXTS[:50]), **settings)).out
    for path, found, changed, expected in [
        ("data/SST-2/dev.tsv", b"\t1\n", b"\t0\n", "check sum of .*/dev.tsv"),
        ("run/config.json", b'"seeds": 1', b'"seeds": 1, "colour": 3', "run: expected"),
        ("run/config.json", b'"fp32"', b'"bf16"', "bf16; expected"),
        ("run/config.json", b'"finetune"', b'"finetune,magic"', "--methods magic: expected"),
        ("run/begun.json", b'"format": 3', b'"format": 2', "format 3, expected 2"),
        ("run/begun.json", b'"threads": ', b'"threads": 7', "threads .*, expected 7"),
        ("run/begun.json", b'"processes": 1', b'"processes": 2', "processes 1, expected 2"),
        ("run/begun.json", b'"device": "', b'"device": "another ', "device .*, expected another"),
        # Nor do the built-in reviews stand in for a folder that is gone.
        ("data", b"", b"", "SST-2/train.tsv: expected a file there"),
        ("network/metadistil.pt", b"", (tmp_path / "other/metadistil.pt").read_bytes(), "check sum of .*/network"),
    ]:
        os.rename(path, "as it was")
        if path != "data":
            content = (tmp_path / "as it was").read_bytes()
            assert found in content
            (tmp_path / path).write_bytes(content.replace(found, changed, 1) if found else changed)
        assert re.search(expected, refused(capsys, ["--resume", "run"])), path
        os.replace("as it was", path)
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


# ---------------------------------------------------------------- directories


def test_the_directory_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()  # an empty one is free
    assert train.claim(train.resolved(small("~/x"))) == str(tmp_path / "x") and (tmp_path / "x" / "seed0").is_dir()
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "config.json").write_text("of something else")
    assert f"--out {tmp_path}/y: expected a new or empty directory" in refused(capsys, flags(**SMALL, out="~/y"))
    assert os.listdir("y") == ["config.json"] and (tmp_path / "y" / "config.json").read_text() == "of something else"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="seed0"):
        patch.setattr(os, "listdir", lambda path: [])  # another run has just looked, too
        train.claim(train.resolved(small("~/x")))
    for source, kind in ((data.BUILTIN, "builtin"), (str(FEW), "files")):
        out = train.claim(train.Config(task="sst2", data=source, teacher="micro", student="micro"))
        assert re.fullmatch(rf"{tmp_path}/runs/sst2-{kind}-\d{{4}}-\d{{6}}", out)
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
    for student, kind in (("bert-{seed}", "pretrained"), ("bart-{seed}", "files")):
        assert train.kind_of_run(dataclasses.replace(config, student=student)) == kind


# ---------------------------------------------------------------- a full disk, Ctrl-C, two at once


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(finished, copied, monkeypatch, capsys):
    """In its last stage, full at every fourth file, again and again."""
    replace, calls = os.replace, itertools.count(1)
    (copied / "seed1" / "metadistil.json").unlink()
    (copied / "table.md").unlink()

    def full(*paths):
        if next(calls) % 4 == 0:
            raise OSError(28, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(models.os, "replace", full)
    assert "No space left on device" in refused(capsys, ["--resume", copied])
    for failures in range(10):
        assert not [*copied.rglob("*.part")] and not (copied / "table.md").exists()
        with contextlib.suppress(OSError):
            train.resume(copied)
            break
    assert failures > 0
    assert_same_numbers(finished.out, copied)


def test_ctrl_c_ends_in_one_line(copied, monkeypatch, capsys):
    """Before anything is written, and in the middle, where there is something to go on from."""

    def pressed(*_, **__):
        raise KeyboardInterrupt

    (copied / "seed1" / "metadistil.json").unlink()
    for module, name, command in [
        (train, "try_out", flags(**SMALL, out=copied / "new")),
        (metadistil, "metadistil_step", ["--resume", str(copied)]),
    ]:
        monkeypatch.setattr(module, name, pressed)
        with pytest.raises(SystemExit) as stop:
            train.main(command)
        said = capsys.readouterr()
        assert stop.value.code == 130 and said.err.splitlines()[-1] == "stopped"
        assert (f"python train.py --resume {copied}\n" in said.out) == (name == "metadistil_step")
    assert not (copied / "new").exists()


def test_two_may_write_one_file(tmp_path, monkeypatch):
    """As two --resume of one run do: neither takes away what the other is about to rename."""
    path, replace = tmp_path / "table.md", os.replace

    def while_another_writes(*paths):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            patch.setattr(os, "getpid", lambda: 1)
            models.write_whole(path, "the same")
        replace(*paths)

    monkeypatch.setattr(os, "replace", while_another_writes)
    models.write_whole(path, "the same")
    assert path.read_text() == "the same" and [*tmp_path.iterdir()] == [path]


# ---------------------------------------------------------------- asking


def in_terminal(arguments, text=b"", encoding="utf-8"):
    """What train.py says in a terminal of that encoding, of bytes on its standard input: status, output, errors."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    streams["stdin"] = io.TextIOWrapper(io.BytesIO(text), encoding)
    with pytest.MonkeyPatch.context() as patch:
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


def test_every_model_answers_to_each_sentence_on_standard_input(finished):
    ask = functools.partial(in_terminal, ["--predict", "--out", finished.out])
    status, said, errors = ask(b"the plot is dull\r\n\nthe cast\tis witty\n")
    assert status is None and not errors
    assert [said[n] for n in (0, 6, 12)] == ["the plot is dull", "", "the cast\tis witty"] and len(said) == 18
    answer = re.compile(r"  (\w+ \w+( \w+)?) +(positive|negative) +(\d+\.\d)%")
    assert [answer.fullmatch(line)[1] for line in said[1:6]] == [*finished.models]
    assert said[13:] == ask(b"the cast is witty")[1][1:]  # a tab is white space there; in pairs it parts
    status, _, [error] = ask(b"caf\xe9 \xff\n")
    assert status == 2 and error.startswith("train.py: expected sentence, in UTF-8, found ")
    latin, utf8 = (ask("naïve – 电影\n".encode(), encoding) for encoding in ("latin-1", "utf-8"))
    assert latin[0] is None and latin[1][1:] == utf8[1][1:]  # a letter that the terminal lacks is shown as another


def test_help_without_greek_letters_and_a_sentence_that_begins_with_a_dash(finished):
    status, said, errors = in_terminal(["--help"], encoding="cp1252")
    assert status == 0 and any("--pilot-lr" in line for line in said) and not errors
    status, said, errors = in_terminal(["--predict", "-bad", "--out", finished.out])
    assert status is None and said[0] == "-bad" and said[1].startswith("  teacher before ")


@pytest.mark.slow
def test_closed_streams_and_an_odd_backend_end_quietly(copied):
    ask = f"{sys.executable} {ROOT / 'train.py'} --predict --out {copied}"
    for command, status in [
        (f"{ask} <&-", 0),
        (f"yes witty | head -5000 | {ask} | head -1; exit ${{PIPESTATUS[2]}}", 141),
        (f"echo witty | {ask} >&-", 0),
        (f"MPLBACKEND=odd {sys.executable} {ROOT / 'notebooks' / 'curves.py'} {copied}", 0),
    ]:
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (status, ""), command
    assert (copied / "curves.png").is_file()
