"""What a run depends on is recorded; names and races change nothing; at the edges one line, or the right answer."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, builtin_reviews
from test_data import write_task
from test_train import SMALL, TEXTS, assert_same_numbers, checkpoint, command_line, flags, press_ctrl_c, small

import data
import models
import train
from train import InputError

# ---------------------------------------------------------------- what a run depends on


def stopped(monkeypatch, config):
    """A run that is stopped in the student's training."""
    config.checkpoint_seconds = 0.0
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 14)
        with pytest.raises(KeyboardInterrupt):
            train.run(config)


def write_reviews(folder, rows=90):
    """SST-2's files with sentences of the reviews, right labels."""
    (folder / "SST-2").mkdir(parents=True, exist_ok=True)
    for name, part in (("train", "train"), ("dev", "dev")):
        split = builtin_reviews(part)[:rows]
        lines = [f"{text}\t{label}\n" for text, label in zip(split.texts, split.labels)]
        (folder / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))


def test_a_run_goes_on_from_another_directory(tmp_path, monkeypatch):
    """Its data and its networks are found again, though they were given by relative paths."""
    write_reviews(tmp_path / "data")
    checkpoint(tmp_path / "network", TEXTS[:50])
    monkeypatch.chdir(tmp_path)
    settings = {"data": "data", "teacher": "network", "student": "micro", "methods": "kd", "label_noise": 0.1}
    train.run(small(tmp_path / "whole", **settings))
    stopped(monkeypatch, small("stopped", **settings))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train.run(*train.read_journal("../stopped"))
    assert_same_numbers(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("change, message", [
    ("label", "the splits of .*/data: changed"), ("dev", "the splits of .*/data: changed"), ("gone", "expected a file there"),
    ("network", "network: changed since the run began"),
])  # fmt: skip
def test_after_a_change_a_run_does_not_go_on(change, message, tmp_path, monkeypatch):
    """And the reviews never stand in for files that are gone."""
    write_reviews(tmp_path / "data")
    checkpoint(tmp_path / "network", TEXTS[:50])
    monkeypatch.chdir(tmp_path)
    stopped(monkeypatch, small("run", data="data", teacher="network", student="micro", methods="kd", label_noise=0.1))
    if change == "network":
        checkpoint(tmp_path / "network", TEXTS[:50], seed=1)
    elif change == "gone":
        for path in (tmp_path / "data" / "SST-2").iterdir():
            path.unlink()
        (tmp_path / "data" / "SST-2").rmdir()
    else:
        path = tmp_path / "data" / "SST-2" / ("dev.tsv" if change == "dev" else "train.tsv")
        text = path.read_text()
        path.write_text(text[:-2] + ("0" if text[-2] == "1" else "1") + "\n")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match=message):
        train.run(*train.read_journal("run"))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before  # mended, it can go on


def test_the_reviews_go_on_as_reviews(tmp_path, monkeypatch):
    """Even if SST-2's files have come meanwhile."""
    monkeypatch.chdir(tmp_path)
    stopped(monkeypatch, small("run", data="data", methods="kd"))
    write_reviews(tmp_path / "data")
    assert "(builtin)" in train.run(*train.read_journal("run")).table


# ---------------------------------------------------------------- names and races


def test_a_folder_with_a_presets_name_changes_nothing(tmp_path, monkeypatch):
    train.run(small(tmp_path / "one", methods="kd"))
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "micro", TEXTS[:50])
    config = train.run(small(tmp_path / "other", methods="kd")).config
    assert config.teacher == config.student == "micro" and config.epochs == SMALL["epochs"]
    assert_same_numbers(tmp_path / "one", tmp_path / "other")


@pytest.mark.slow
def test_two_runs_at_once_take_two_directories(tmp_path):
    given = SMALL | {"methods": "finetune", "teacher_epochs": 1, "epochs": 1}
    del given["quiz_batch_size"]
    command = [sys.executable, str(ROOT / "train.py"), *flags(**given)]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [one.communicate()[0] for one in runs]
    assert [one.returncode for one in runs] == [0, 0, 0]
    folders = {line.split()[-1] for text in said for line in text.splitlines() if "everything is written to" in line}
    assert folders == {f"runs/sst2-builtin{ending}/" for ending in ("", "-2", "-3")}
    assert_same_numbers(tmp_path / "runs" / "sst2-builtin", tmp_path / "runs" / "sst2-builtin-3")


def test_of_two_runs_one_has_the_directory(tmp_path):
    config = small(tmp_path / "run")
    (tmp_path / "run").mkdir()  # an empty one is free
    assert train.claim(config) == str(tmp_path / "run")
    with pytest.raises(InputError, match="holds a run"):
        train.claim(config)


def test_a_network_that_a_later_seed_needs_is_looked_for_before_the_first(tmp_path):
    first = train.run(small(tmp_path / "first", methods="kd"))
    source = str(first.out / "seed{seed}" / "teacher-before.pt")
    with pytest.raises(models.CheckpointError, match="seed1/teacher-before.pt: expected a saved network"):
        train.run(small(tmp_path / "second", teacher=source, methods="kd", seeds=2))
    assert not (tmp_path / "second").exists()


def test_a_network_given_twice_is_read_and_encoded_once(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "network", TEXTS[:50])
    read, encoded = models.read_saved, data.encode
    calls = []
    monkeypatch.setattr(models, "read_saved", lambda *given, **more: calls.append("read") or read(*given, **more))
    monkeypatch.setattr(data, "encode", lambda *given: calls.append("encode") or encoded(*given))
    config = train.resolve(small(tmp_path / "run", teacher=f"{source},{source}", student=source))
    context = train.Seed(config, 0)
    assert calls == ["read"] + ["encode"] * 3  # train and quiz, dev, test
    assert context.encoded["teacher"]["dev"] is context.encoded["student"]["dev"]


# ---------------------------------------------------------------- at the edges


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return train.run(small(tmp_path_factory.mktemp("edges") / "run", methods="kd", teacher_epochs=1, epochs=1)).out


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_task(folder, "mrpc")
    config = small(folder / "run", task="mrpc", data=str(folder), methods="kd", label_noise=0.0, train_size=6, quiz_size=4)
    return train.run(config).out


def answers(out, text, **options):
    """What `--predict` says of the bytes on its standard input: the lines, after the text itself."""
    found = subprocess.run(
        [sys.executable, ROOT / "train.py", "--predict", "--out", out], input=text, capture_output=True, **options
    )
    return found.returncode, found.stdout.decode(errors="replace").splitlines()[1:], found.stderr.decode()


@pytest.mark.parametrize("positions", [40, 512])
def test_a_text_longer_than_the_positions_is_cut(positions, tmp_path):
    checkpoint(tmp_path / "network", TEXTS[:50], labels=["negative", "positive"], max_positions=positions)
    network = train.load(tmp_path / "network" / "metadistil.pt")
    assert network.predict(["witty " * 10_000]) == network.predict(["witty " * positions])


@pytest.mark.parametrize("text", ["", "   ", "\t", "\u200b", "🎬" * 300, "\x07 \x1b[31m"])
def test_any_text_has_an_answer(text, reviews):
    [(label, probabilities)] = train.load(reviews / "seed0" / "student-kd.pt").predict([text])
    assert label in probabilities and sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_an_empty_sentence_can_be_asked_about(reviews):
    found = command_line("--predict", "", "--out", reviews, check=True)
    assert len(found.stdout.splitlines()) == 3  # the sentence, two networks


@pytest.mark.slow
def test_a_tab_parts_a_pair_and_is_white_space_in_a_sentence(reviews, pairs):
    plain = answers(reviews, b"the plot is witty\n")
    assert plain[0] == 0 and len(plain[1]) == 2
    assert answers(reviews, b"\tthe plot is witty\n") == answers(reviews, b"the plot\tis witty\n") == plain
    assert answers(pairs, b"one\tother\n")[0] == answers(pairs, b"\tother\n")[0] == 0
    for text in (b"one\n", b"\n"):
        code, _, said = answers(pairs, text)
        assert code == 2 and len(said.splitlines()) == 1 and "expected #1 String and #2 String" in said


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [b"caf\xe9 \xff\n", b"\xed\xa0\x80\n"])
def test_bytes_that_are_not_utf8_end_in_one_line(wrong, reviews):
    code, _, said = answers(reviews, wrong)
    assert code == 2 and said.startswith("train.py: expected sentence, in UTF-8, found ") and len(said.splitlines()) == 1
    command = [sys.executable, ROOT / "train.py", "--out", reviews, "--predict", wrong.strip()]
    found = subprocess.run(command, capture_output=True)
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1


@pytest.mark.slow
def test_standard_input_is_utf8_whatever_the_locale(reviews):
    """And where a terminal lacks a letter, it shows another one."""
    text = "naïve – 电影\n".encode()
    in_latin = answers(reviews, text, env=os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"})
    assert in_latin[0] == 0 and in_latin == answers(reviews, text)


def test_help_can_be_read_in_a_terminal_without_greek_letters():
    command = [sys.executable, ROOT / "train.py", "--help"]
    found = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"})
    assert found.returncode == 0 and b"--pilot-lr" in found.stdout and not found.stderr


@pytest.mark.parametrize("place", [(train, "load_all"), (train, "predict"), (models, "read_saved"), (data, "load_task")])
def test_ctrl_c_while_loading_or_predicting_ends_in_one_line(place, reviews, monkeypatch, capsys, tmp_path):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, pressed)
    given = flags(**SMALL | {"out": tmp_path / "run"}) if place[0] is data else ["--predict", "fun", "--out", str(reviews)]
    with pytest.raises(SystemExit) as stop:
        train.main(given)
    assert stop.value.code == 130 and capsys.readouterr().err.strip() == "stopped"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["fun", [3], [("one",)], [("one", "two", "three")], [None], [b"fun"], ["\udcff"]])
def test_predict_says_what_it_expects(given, reviews):
    with pytest.raises(InputError, match="expected"):
        train.load(reviews / "seed0" / "student-kd.pt").predict(given)


def test_of_no_text_nothing_is_predicted(reviews):
    assert train.load(reviews / "seed0" / "student-kd.pt").predict([]) == []


def test_a_network_without_a_trained_head_predicts_nothing(tmp_path):
    folder = checkpoint(tmp_path / "network", TEXTS[:50])  # as fetch.py leaves a published encoder
    with pytest.raises(InputError, match=f"{folder}: expected a network with a trained head"):
        train.load(folder)


def test_a_path_with_a_comma_is_named_whole(tmp_path, monkeypatch, reviews):
    (folder := tmp_path / "kd,2024").mkdir()
    shutil.copy(reviews / "seed0" / "teacher-before.pt", folder / "ready.pt")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"kd,2024/ready\.pt: expected a path without commas"):
        train.resolve(train.Config(**SMALL | {"teacher": "ready.pt", "out": "run"}))


def test_directories_of_each_seed_are_pretrained_networks(tmp_path, monkeypatch):
    for seed in range(2):
        (tmp_path / f"bert-{seed}").mkdir()
    task = data.load_task("sst2", data.BUILTIN)
    monkeypatch.chdir(tmp_path)
    assert train.kind_of_run(train.Config(student="bert-{seed}"), task) == "pretrained"
    assert train.kind_of_run(train.Config(student="bart-{seed}"), task) == "builtin"
