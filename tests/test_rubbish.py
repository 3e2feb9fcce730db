"""Whatever a user can get wrong ends in one line that says what, where and what was expected, with exit status 2,
before anything is written. What is harmless is accepted."""

import dataclasses
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEW, ROOT, SMALL, TEXTS, checkpoint, flags, refused, small, stopped_after
from test_data import write_cifar, write_glue
from test_silence import Square

import models
import train


def test_bad_flags(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, expected in [
        ("--tsak sst2", "unrecognized arguments"),
        ("--epochs 0", "--epochs 0: expected a number from 1 to 1e+09"),
        ("--optimizer adam", "--optimizer adam: expected one of adamw, sgd"),
        ("--methods kd,magic", "--methods magic: expected some of finetune, kd"),
        ("--methods kd --pilot-lr 0.1", "--pilot-lr: no method"),
        ("--teacher huge", "huge: expected a saved network (.pt), a directory with metadistil.pt, or one of micro"),
        ("--student tiny,mini", "tiny,mini: expected a saved network"),
        ("--student resnet8", "resnet8: expected a network that reads sentences"),
        ("--student-layers=-1", "--student-layers -1: expected numbers of layers"),
        ("--out /dev/null/run", "/dev/null/run"),
        ("--resume /nowhere", "/nowhere: expected a run"),
        ("--resume /nowhere --alpha 0.1", "--resume /nowhere: expected no other flag"),
        ("--predict x", "--predict: expected --out"),
        ("--predict x --out /nowhere", "/nowhere: expected a run with a trained network"),
    ]:
        given = [] if "--resume" in words else flags(data=FEW, teacher="micro", student="micro")
        assert expected in refused(capsys, [*given, *words.split()]), words
        assert not list(tmp_path.iterdir())


def test_from_python_values_of_another_type_are_refused():
    wrong = {int: ("2", 2.5, [2]), float: ("0.5", float("nan"), [0.5]), str: (7, ["kd"]), bool: ("yes", 2)}
    for field in dataclasses.fields(train.Config):
        for value in wrong[field.type]:
            with pytest.raises(train.InputError, match=f"--{field.name.replace('_', '-')} .*: expected"):
                train.resolved(dataclasses.replace(small("run"), **{field.name: value}))


@pytest.mark.parametrize("kind", train.DEFAULTS)
def test_python_and_flags_give_one_configuration(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FEW, "files")
    given = {"alpha": 0.25, "seeds": 2} | {
        "files": {"data": "files"},
        "builtin": {},
        "pretrained": {"data": "files", "teacher": checkpoint("network", TEXTS[:50])},
        "pictures": {"task": "cifar100", "data": str(write_cifar(tmp_path))},
    }[kind]
    resolved = train.resolved(train.Config(**given, learn_quiz=True))
    from_flags = train.resolved(train.Config(**train.parse([*flags(**given), "--learn-quiz"])))
    as_numpy = given | {"alpha": np.float32(0.25), "seeds": np.int64(2), "data": Path(given.get("data", "data"))}
    from_numpy = train.resolved(train.Config(**as_numpy, learn_quiz=np.True_))
    from_file = train.Config(**json.loads(json.dumps(dataclasses.asdict(from_numpy))))
    assert resolved == from_flags == from_numpy == from_file == train.resolved(resolved)
    assert train.resolved(train.Config(**given | {"alpha": 0.0})).alpha == 0  # a zero is not "not given"
    expected = train.DEFAULTS[kind] | given | {"learn_quiz": True, "label_noise": 0.4 if kind == "builtin" else 0.0}
    expected["quiz_size"] = {"builtin": 300, "pictures": 19}.get(kind, 9)
    expected["data"] = "builtin" if kind == "builtin" else os.path.abspath(given["data"])
    if kind == "pretrained":
        expected["teacher"] = os.path.abspath("network")
    assert vars(resolved) == expected


def test_harmless_lines_of_one_class_train(tmp_path):
    rows = [(f'🎬 "wörds {n}', 0) for n in range(40)] + [("long " * 20_000, 0)]
    write_glue(tmp_path, rows, dev=[("one", 0)])
    settings = {"train_size": 20, "quiz_size": 1, "epochs": 1, "warmup_epochs": 0, "teacher_epochs": 1}
    finished = train.run(small(tmp_path / "run", data=str(tmp_path), methods="metadistil", **settings))
    assert all(np.isfinite(of["scores"]["dev accuracy"]) for [of] in finished.results.values())


def test_a_run_does_not_go_on_from_a_damaged_checkpoint(capsys, tmp_path):
    run = tmp_path / "run"
    with stopped_after(4), pytest.raises(KeyboardInterrupt):
        train.run(small(run, methods="kd"))
    half_way = run / "seed0" / "teacher.checkpoint"
    half_way.write_bytes(half_way.read_bytes()[:-100])
    assert f"{half_way}: expected" in refused(capsys, ["--resume", run])


class OddConfig(models.EncoderConfig):
    pass


class Odd(models.Encoder):
    """Its configuration does not describe it."""

    def __init__(self, config):
        super().__init__(config)
        self.extra = torch.nn.Linear(2, int(torch.randint(2, 1000, ())))

    def forward(self, *given, **named):
        return Square.apply(super().forward(*given, **named))


def test_what_cannot_work_is_refused_before_anything_is_written(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(train.METHODS, "teacher-like", train.METHODS["kd"])
    monkeypatch.setitem(models.KINDS, "odd", models.Kind(Odd, OddConfig, "sentences"))
    monkeypatch.setitem(models.PRESETS, "odd", OddConfig(layers=1, hidden=16, heads=1, intermediate=16))
    pictures = {"task": "cifar100", "data": str(write_cifar(tmp_path))}
    residual = pictures | {"teacher": "resnet8", "student": "resnet8"}
    two_seeds = {"teacher": f"{finished.out}/seed{{seed}}/teacher-before.pt"}
    for settings, expected in [
        ({"methods": "metadistil", "student": "odd"}, "metadistil: expected .*differentiated twice"),
        ({"methods": "kd", "teacher": "odd"}, "teacher: expected .* a network that can be rebuilt"),
        (two_seeds | {"methods": "kd", "seeds": 3}, "seed2/teacher-before.pt: "),
        ({"methods": "kd,teacher-like"}, "--methods teacher-like: expected"),
        (pictures, "micro: expected .*pictures"),
        (pictures | {"noise": 0.1}, "--noise: expected"),
        (residual | {"student_layers": "0"}, "layers 0: expected"),
    ]:
        with pytest.raises((train.InputError, models.CheckpointError), match=expected):
            train.run(small(tmp_path / "run", **settings))
        assert not (tmp_path / "run").exists()


def test_numbers_that_are_not_finite_stop_the_run_in_one_line(tmp_path, capsys, finished):
    said = refused(capsys, flags(**SMALL | {"finetune_lr": 1e30, "out": tmp_path / "run"}))
    assert "teacher, step 2: expected a finite loss" in said
    seed = train.Seed(finished.config, 0)
    student = seed.model("student")
    torch.nn.init.constant_(student.network.classifier.bias, torch.nan)
    with pytest.raises(train.InputError, match="dev: expected finite outputs"):
        seed.scores(student, "dev")


def test_without_matplotlib_a_script_that_draws_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for script in ("curves.py", "film.py", "results/report.py"):
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "notebooks" / script), run_name="__main__")
        said = f"{Path(script).name}: expected matplotlib; pip install -r notebooks/requirements.txt\n"
        assert stop.value.code == 2 and capsys.readouterr().err == said
