"""Whatever a user can get wrong ends in one line that says what, where and what was expected, with exit status 2, before
anything is written. What is harmless is accepted."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEW, ROOT, SMALL, TEXTS, checkpoint, flags, refused, small, stopped_after
from test_data import write_cifar, write_glue
from test_silence import Square

import data
import metadistil
import models
import train

# ---------------------------------------------------------------- flags

BAD = [
    ("--tsak sst2", "unrecognized arguments"), ("--epochs many", "invalid int value"), ("--epochs 0", "from 1 to 1e+09"), ("--epochs", "expected one argument"),
    ("--seeds -1", "from 1 to"), ("--alpha 1.5", "--alpha 1.5: expected a number from 0 to 1"), ("--alpha nan", "--alpha nan: expected"),
    ("--temperature 0", "from 1e-30 to 1e+30"), ("--student-lr inf", "--student-lr inf"), ("--label-noise 2", "from 0 to 1"),
    ("--quiz-size 5000", "--quiz-size 5000: expected 1 to 89"), ("--train-size 5000", "--train-size 5000: expected 1 to 81"),
    ("--task sst3", "--task sst3: expected one of sst2, cola"), ("--task=", "--task : expected one of"), ("--optimizer adam", "expected one of adamw, sgd"),
    ("--precision fp8", "expected one of fp32, bf16"), ("--meta-grad third", "expected one of second_order, jvp"), ("--schedule cosine", "expected one of linear"),
    ("--methods kd,magic", "--methods magic: expected some of finetune, kd"), ("--methods kd,", "--methods : expected"), ("--methods teacher", "teacher"),
    ("--methods kd --pilot-lr 0.1", "--pilot-lr: no method"), ("--methods finetune --alpha 1", "--alpha: no method"),
    ("--teacher huge", "huge: expected a saved network (.pt), a directory with metadistil.pt, or one of micro, tiny"), ("--teacher tiny,", "expected a saved"),
    ("--teacher .", "test_bad_flags0: expected a saved network"), ("--student tiny,mini", "expected one network"), ("--student resnet8", "resnet8: expected"),
    ("--student-layers 1,3", "--student-layers 1,3: expected"), ("--student-layers all", "expected"),
    ("--student-layers=-1", "expected"), ("--data /dev/null", "/dev/null/SST-2/train.tsv: expected a file there; to fetch it: python notebooks"),
    ("--task cola", "CoLA/train.tsv: expected a file there"), ("--resume /nowhere", "/nowhere: expected a run"), ("--predict x --out /nowhere", "expected a run with a"),
    ("--predict x", "--predict: expected --out"), ("--out /proc/nowhere", "/proc/nowhere"), ("--out /dev/null/run", "/dev/null/run"), ("--pilot-lr 1e30", "metadistil: expected"),
]  # fmt: skip


def test_bad_flags(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, expected in BAD:
        given = [] if "--resume" in words else flags(data=FEW, teacher="micro", student="micro")
        assert expected in refused(capsys, [*given, *words.split()]), words
        assert not list(tmp_path.iterdir())


def test_values_of_another_type_and_fields_that_no_method_uses_are_refused():
    """From Python, where no command line reads the words."""
    fields, config = dataclasses.fields(train.Config), small("run", methods="finetune")
    for field in fields:
        for wrong in {int: ("2", 2.5, [2]), float: ("0.5", None.__class__, [0.5]), str: (7, ["kd"]), bool: ("yes", 2)}[field.type]:
            with pytest.raises(train.InputError, match=f"--{field.name.replace('_', '-')} .*: expected"):
                train.resolved(dataclasses.replace(small("run"), **{field.name: wrong}))
        if "none" not in field.metadata["teachers"]:
            value = True if field.type is bool else next(iter(field.metadata["valid"])) if field.type is str else 1
            with pytest.raises(train.InputError, match=f"^--{field.name.replace('_', '-')}: no method"):
                train.resolved(dataclasses.replace(config, **{field.name: value}))
        if field.type in (int, float) and field.metadata["valid"][0] == 0:  # what may be zero stays zero
            assert getattr(train.resolved(small("run", **{field.name: 0})), field.name) == 0


@pytest.mark.parametrize("kind", train.DEFAULTS)
def test_python_and_flags_give_one_configuration(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FEW, "files")
    given = {"files": {"data": "files"}, "builtin": {}, "pretrained": {"data": "files", "teacher": checkpoint("network", TEXTS[:50])},
             "pictures": {"task": "cifar100", "data": str(write_cifar(tmp_path))}}[kind] | {"alpha": 0.25, "seeds": 2}  # fmt: skip
    resolved = train.resolved(train.Config(**given, learn_quiz=True))
    from_flags = train.resolved(train.Config(**train.parse([*flags(**given), "--learn-quiz"])))
    as_numpy = given | {"alpha": np.float32(0.25), "seeds": np.int64(2), "data": Path(given.get("data", "data"))}
    from_numpy = train.resolved(train.Config(**as_numpy, learn_quiz=np.True_))
    from_file = train.Config(**json.loads(json.dumps(dataclasses.asdict(from_numpy))))
    assert resolved == from_flags == from_numpy == from_file == train.resolved(resolved)
    expected = {name: value for name, value in train.DEFAULTS[kind].items() if value is not None} | given | {"learn_quiz": True} | {"quiz_size": {"builtin": 300, "pictures": 19}.get(kind, 9)}
    expected |= {"data": "builtin" if kind == "builtin" else os.path.abspath(given["data"]), "label_noise": 0.4 * (kind == "builtin")}
    if kind == "pretrained":
        expected["teacher"] = str(tmp_path / "network")
    assert {name: value for name, value in vars(resolved).items() if value is not None} == expected


# ---------------------------------------------------------------- files of a task

HEADER, ROWS = b"sentence\tlabel\n", b"".join(b"a line of words %d\t%d\n" % (n, n % 2) for n in range(40))
BAD_FILES = {
    "empty": b"", "no header": ROWS, "column missing": HEADER + ROWS + b"no label\n", "unknown label": HEADER + ROWS + b"words\t2\n",
    "NUL bytes": HEADER + ROWS + b"wo\0rds\t1\n", "Latin-1": HEADER + ROWS + b"caf\xe9\t1\n", "UTF-16": (HEADER + ROWS).decode().encode("utf-16"),
    "blank sentences": HEADER + b"\t1\n \t0\n" * 20, "comma-separated": (HEADER + ROWS).replace(b"\t", b","), "a directory": None,
}  # fmt: skip
HARMLESS = {
    "marks, returns, blank lines": b"\xef\xbb\xbf" + (HEADER + ROWS).replace(b"\n", b"\r\n") + b"\n\n",
    "emoji, quotes, a long line": HEADER + ROWS.replace(b"words", "🎬 \"wörds".encode()) + b"long " * 20_000 + b"\t1\n \t1",
    "columns": b"id\tlabel\tsentence\n" + b"".join(b"%d\t%d\tline %d\n" % (n, n % 2, n) for n in range(40)),
    "one class": HEADER + ROWS.replace(b"\t1\n", b"\t0\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["train", "dev"])
def test_bad_files(name, capsys, tmp_path):
    path = write_glue(tmp_path) / "SST-2" / f"{name}.tsv"
    for what, content in BAD_FILES.items():
        path.unlink()
        path.mkdir() if content is None else path.write_bytes(content)
        said = refused(capsys, flags(**SMALL | {"data": tmp_path, "train_size": 8, "quiz_size": 8, "out": tmp_path / "run"}))
        assert str(path) in said and "expected" in said and not (tmp_path / "run").exists(), what


@pytest.mark.parametrize("what", HARMLESS)
def test_harmless_files_and_tiny_one_sided_quizzes_and_dev_sets_train(what, tmp_path):
    dev = [("one", 0)] if what == "one class" else [("one", 1), ("two", 1)]
    (write_glue(tmp_path, dev=dev) / "SST-2" / "train.tsv").write_bytes(HARMLESS[what])
    settings = {"train_size": 20, "quiz_size": 1, "epochs": 1, "warmup_epochs": 0, "teacher_epochs": 1, "methods": "metadistil"}
    finished = train.run(small(tmp_path / "run", data=str(tmp_path), **settings))
    assert all(np.isfinite(of["scores"]["dev accuracy"]) for [of] in finished.results.values())


# ---------------------------------------------------------------- saved networks


class Bomb:
    """Unpickled with code execution it would make a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damaged(whole, tmp_path):
    """{what is wrong: bytes} of a saved network, for most with one entry changed."""
    saved, content = torch.load(whole, weights_only=True), whole.read_bytes()
    found = {"empty": b"", "cut": content[: len(content) // 2], "noise": bytes(range(256)) * 40}
    found["a pickled bomb"] = pickle.dumps({"config": Bomb(tmp_path / "exploded")})
    found["a flipped bit"] = content.replace(old := saved["weights"]["pooler.weight"].numpy().tobytes()[:64], bytes([old[0] ^ 1]) + old[1:])
    for what, change in {
        "another kind": {"kind": "t5"}, "pictures": {"kind": "resnet", "config": {"depth": 8}}, "another width": {"config": saved["config"] | {"hidden": 24}},
        "an unknown field": {"config": saved["config"] | {"colour": "red"}}, "no weights": {"weights": {}}, "no tokeniser": {"tokenizer": None},
        "nonsense for one": {"tokenizer": "{"}, "too many words": {"tokenizer": data.train_tokenizer(TEXTS).to_str()}, "a bomb": {"weights": Bomb(tmp_path / "exploded")},
        "a tensor": torch.zeros(3),
    }.items():  # fmt: skip
        torch.save(saved | change if isinstance(change, dict) else change, tmp_path / "changed")
        found[what] = (tmp_path / "changed").read_bytes()
    return found


def test_damaged_networks_neither_teach_nor_answer(capsys, tmp_path):
    source = Path(checkpoint(tmp_path / "network", TEXTS[:50], labels=["negative", "positive"]), "metadistil.pt")
    (tmp_path / "run" / "seed0").mkdir(parents=True)
    for what, content in damaged(source, tmp_path).items():
        source.write_bytes(content)
        for path in (source, source.parent):
            said = refused(capsys, flags(**SMALL | {"teacher": path, "out": tmp_path / "new"}))
            assert f"{path}: expected a saved network" in said and not (tmp_path / "new").exists(), what
        (tmp_path / "run" / "seed0" / "student-kd.pt").write_bytes(content)
        assert "student-kd.pt: expected" in refused(capsys, ["--predict", "A film.", "--out", tmp_path / "run"]), what
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_checkpoint_of_a_stage_is_refused(capsys, tmp_path):
    with stopped_after(4), pytest.raises(KeyboardInterrupt):
        train.run(small(tmp_path / "run", methods="kd"))
    path = tmp_path / "run" / "seed0" / "teacher.checkpoint"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: expected" in refused(capsys, ["--resume", tmp_path / "run"])


# ---------------------------------------------------------------- what cannot work fails before anything is written


def loss_of_squares(stage):
    def loss(z_S, z_T, labels):
        hard = metadistil.hard_loss(z_S, labels)
        return hard if z_T is None else hard + Square.apply(z_S - z_T).mean()

    return loss


class OddConfig(models.EncoderConfig):
    pass


class Squared(models.Encoder):
    def forward(self, *given, **named):
        return Square.apply(super().forward(*given, **named))


class Grown(models.Encoder):
    """Its configuration does not describe it."""

    def __init__(self, config):
        super().__init__(config)
        self.extra = torch.nn.Linear(2, int(torch.randint(2, 1000, ())))


@pytest.mark.parametrize("settings, expected", [
    ({"methods": "squares"}, "squares: expected .*differentiated twice"),
    ({"methods": "squares", "meta_grad": "jvp"}, "squares: expected .*differentiated twice"),
    ({"methods": "metadistil", "student": "squared"}, "metadistil: expected .*differentiated twice"),
    ({"methods": "metadistil", "student": "squared", "meta_grad": "jvp"}, "metadistil: expected"),
    ({"methods": "kd", "teacher": "grown"}, "teacher: expected"),
    ({"methods": "kd", "teacher": "{finished}/seed{seed}/teacher-before.pt", "seeds": 3}, "seed2/teacher-before.pt: expected a saved network"),
    ({"methods": "kd,teacher-like"}, "--methods teacher-like: expected"),
    ({"methods": "kd,a b"}, "--methods a b: expected"), ({"teacher": "resnet8"}, "resnet8: expected .*sentences"),
    ({"task": "cifar100"}, "micro: expected .*pictures"), ({"task": "cifar100", "noise": 0.1}, "--noise: expected"),
    ({"task": "cifar100", "teacher": "resnet8", "student": "resnet8", "student_layers": "0"}, "--student-layers 0: expected"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_written(settings, expected, finished, tmp_path, monkeypatch):
    for name in ("teacher-like", "a b"):
        monkeypatch.setitem(train.METHODS, name, train.METHODS["kd"])
    monkeypatch.setitem(train.METHODS, "squares", train.METHODS["metadistil"]._replace(loss=loss_of_squares))
    network = Grown if settings.get("teacher") == "grown" else Squared
    monkeypatch.setitem(models.KINDS, "odd", models.Kind(network, OddConfig, "sentences"))
    for name in ("grown", "squared"):
        monkeypatch.setitem(models.PRESETS, name, OddConfig(layers=1, hidden=16, heads=1, intermediate=16))
    given = settings | ({"data": str(write_cifar(tmp_path))} if "task" in settings else {})
    given["teacher"] = given.get("teacher", "micro").replace("{finished}", str(finished.out))
    with pytest.raises((train.InputError, models.CheckpointError), match=expected):
        train.run(small(tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- numbers that are not finite


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(tmp_path, capsys):
    for settings, expected in [({"finetune_lr": 1e30}, "teacher, step 2: expected"),
                               ({"student_lr": 1e30, "warmup_epochs": 0}, "expected finite gradients")]:  # fmt: skip
        assert expected in refused(capsys, flags(**SMALL | {"methods": "metadistil", "out": tmp_path / expected[:5]} | settings))


def test_outputs_that_are_not_finite_have_no_score(finished):
    seed = train.Seed(finished.config, 0)
    student = seed.model("student")
    torch.nn.init.constant_(student.network.classifier.bias, torch.nan)
    with pytest.raises(train.InputError, match="dev: expected"):
        seed.scores(student, "dev")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["curves.py", "film.py", "results/report.py"])
def test_without_matplotlib_a_script_that_draws_says_so_in_one_line(script, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    command, env = [sys.executable, ROOT / "notebooks" / script], os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ran.returncode == 2 and re.fullmatch(r"\w+\.py: expected matplotlib; pip install -r notebooks/requirements.txt\n", ran.stderr)
