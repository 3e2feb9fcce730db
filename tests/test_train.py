"""The main job: same numbers, fair comparisons, errors in one line."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import metadistil
import train

SMALL = {
    "data": "builtin", "teacher": "micro", "student": "micro", "train_size": 60, "quiz_size": 20, "batch_size": 16,
    "quiz_batch_size": 8, "teacher_epochs": 2, "warmup_epochs": 1, "epochs": 2, "log_every": 2,
}  # fmt: skip


def small(out, **other):
    return train.Config(**(SMALL | {"out": str(out)} | other))


def flags(**values):
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def command_line(*arguments, **options):
    return subprocess.run([sys.executable, ROOT / "train.py", *arguments], capture_output=True, text=True, **options)


def numbers_of(out):
    """All that a run computed: its log, byte for byte, and its final weights."""
    weights = {str(path.relative_to(out)): torch.load(path, weights_only=True)["weights"] for path in sorted(Path(out).glob("seed*/*.pt"))}
    return (Path(out) / "metrics.jsonl").read_bytes(), weights


def assert_same_numbers(one, other):
    (log, weights), (other_log, other_weights) = numbers_of(one), numbers_of(other)
    assert log == other_log and weights.keys() == other_weights.keys()
    for name, state in weights.items():
        assert all(torch.equal(tensor, other_weights[name][key]) for key, tensor in state.items()), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small finished run of two seeds."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return train.run(small(out, seeds=2))


def test_a_run_leaves_what_it_promises(finished):
    out = finished["out"]
    config = json.loads((out / "config.json").read_text())
    assert config["alpha"] == 0.9 and config["label_noise"] == 0.4 and config["data"] == "builtin"  # all resolved
    names = {"teacher-before", "student-finetune", "student-kd", "student-metadistil", "teacher-after-metadistil"}
    assert {path.stem for path in (out / "seed1").glob("*.pt")} == names
    assert (out / "table.md").read_text().startswith(finished["table"].splitlines()[0])
    assert not list(out.rglob("*.part"))
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    taught = [e for e in entries if e["stage"] == "metadistil" and "quiz_loss_after" in e]
    assert taught and all(math.isfinite(e["quiz_loss_before"]) for e in taught)
    finals = [e for e in entries if "final_scores" in e]
    assert len(finals) == 2 * 5
    assert not any("test" in json.dumps(e) for e in entries if "final_scores" not in e)  # test: once, at the end


def test_the_table_shows_each_model_with_its_scores(finished):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in finished["table"].splitlines() if "|" in line]
    names = ["teacher before", "teacher after metadistil", "student finetune", "student kd", "student metadistil"]
    assert [row[0] for row in rows[2:]] == names
    of = {name: np.array([seed["scores"]["test accuracy"] for seed in finished["results"][name]]) for name in names}
    assert rows[0][2] == "test accuracy" and [row[2] for row in rows[2:]] == [train.spread(of[name]) for name in names]
    assert rows[6][3] == train.paired_difference(of["student metadistil"], of["student kd"]) and rows[5][3] == ""
    assert rows[3][3] == train.paired_difference(of["teacher after metadistil"], of["teacher before"])


def test_the_same_command_gives_the_same_numbers(finished, tmp_path):
    arguments = flags(**SMALL, seeds=2, out=tmp_path / "again")
    shuffled = [part for i in range(len(arguments) - 2, -1, -2) for part in arguments[i : i + 2]]
    command_line(*shuffled, check=True)
    assert_same_numbers(finished["out"], tmp_path / "again")


def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_numbers(finished, tmp_path):
    out, delays = tmp_path / "killed", np.random.default_rng(time.time_ns()).uniform(0, 1.5, size=2)
    start = [sys.executable, ROOT / "train.py", *flags(**SMALL, seeds=2, checkpoint_seconds=0, out=out)]
    for delay in delays:
        process = subprocess.Popen(start, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (out / "checkpoint.pt").exists():
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        start = [sys.executable, ROOT / "train.py", "--resume", out]
    command_line("--resume", str(out), check=True)
    assert_same_numbers(finished["out"], out), delays


@pytest.mark.parametrize("stop_at", [1, 9, 13, 21])
def test_stopped_between_two_steps(tmp_path, monkeypatch, stop_at, finished):
    """Ctrl-C says how to go on, and nothing is lost but the time."""
    saved, save = [], train.save

    def save_then_stop(config, journal):
        save(config, journal)
        saved.append(journal)
        if len(saved) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save", save_then_stop)
    with pytest.raises(SystemExit) as stop:
        train.run(small(tmp_path / "stopped", seeds=2, checkpoint_seconds=0.0))
    assert stop.value.code == 130
    monkeypatch.undo()
    train.carry_on(train.read_config(str(tmp_path / "stopped"), {}))
    assert_same_numbers(finished["out"], tmp_path / "stopped")


def test_every_student_starts_from_the_same_weights_and_the_same_teacher(finished):
    context = train.Seed(finished["config"], 1)
    starts = {name: train.stage(context, name)[0] for name in ("finetune", "kd", "metadistil")}
    for name in ("kd", "metadistil"):
        pairs = zip(starts["finetune"]["student finetune"].parameters(), starts[name][f"student {name}"].parameters())
        assert all(torch.equal(one, other) for one, other in pairs)
    teacher = torch.load(finished["out"] / "seed1" / "teacher-before.pt", weights_only=True)["weights"]
    taught = starts["metadistil"]["teacher after metadistil"].network.state_dict()
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in taught.items())


def test_labels_and_steps_are_shared_fairly(tmp_path, monkeypatch):
    """The quiz never enters MetaDistil's batches; whoever has no quiz trains on it; all take as many steps."""
    seen = {"batches": [], "quizzes": []}
    real_update, meta_update = metadistil.real_update, metadistil.meta_update

    def watch_real(student, teachers, batch, *rest, **settings):
        seen["batches"].append(batch[0]["student"]["input_ids"])
        return real_update(student, teachers, batch, *rest, **settings)

    def watch_meta(student, teachers, batch, quiz, *rest, **settings):
        seen["quizzes"].append(quiz[0]["student"]["input_ids"])
        return meta_update(student, teachers, batch, quiz, *rest, **settings)

    monkeypatch.setattr(metadistil, "real_update", watch_real)
    monkeypatch.setattr(metadistil, "meta_update", watch_meta)
    rows = lambda tensors: {tuple(i for i in row.tolist() if i) for tensor in tensors for row in tensor}  # noqa: E731
    steps, texts = {}, {}
    for method in ("finetune", "kd", "metadistil"):
        finished = train.run(small(tmp_path / method, methods=method))
        teacher_steps = 2 * 5  # epochs × steps an epoch: 80 examples, 16 a batch
        steps[method] = len(seen["batches"]) - teacher_steps
        texts[method], asked = rows(seen["batches"][teacher_steps:]), rows(seen["quizzes"])
        seen = {"batches": [], "quizzes": []}
    context = train.Seed(finished["config"], 0)
    ids, n = torch.tensor(context.read["student"]["train+quiz"].inputs["input_ids"]), len(context.task.train)
    train_rows, quiz_rows = rows([ids[:n]]), rows([ids[n:]])
    assert steps == {"finetune": 15, "kd": 15, "metadistil": 15}
    assert texts["finetune"] == texts["kd"] == train_rows | quiz_rows
    assert texts["metadistil"] == train_rows and asked <= quiz_rows


def test_predict_shows_every_model_side_by_side(finished, capsys):
    out = str(finished["out"])
    train.main(["--predict", "NLP is fun.", "--out", out])
    lines = capsys.readouterr().out.splitlines()
    said = [re.fullmatch(r"  (\w+ \w+( \w+)?) +(positive|negative) +(\d+\.\d)%", line) for line in lines[1:]]
    assert lines[0] == "NLP is fun." and {found[1] for found in said} == set(finished["results"])
    several = command_line("--predict", "--out", out, input="the plot is dull\nthe cast is witty\n", check=True)
    assert len(several.stdout.splitlines()) == 12


# ---------------------------------------------------------------- numbers worked by hand


def test_t_quantiles_are_the_tabulated_ones():
    stats = pytest.importorskip("scipy.stats")
    assert train.T_QUANTILES == pytest.approx([stats.t.ppf(0.975, degrees) for degrees in range(1, 10)], abs=5e-4)


def test_paired_difference_worked_by_hand():
    ours, theirs = np.array([0.70, 0.74, 0.78]), np.array([0.69, 0.71, 0.73])
    # differences 1, 3, 5: mean 3, deviation 2, half-width 4.3027 · 2 / √3 = 4.968
    assert train.paired_difference(ours, theirs) == "+3.0 [-2.0, +8.0]"
    assert train.paired_difference(ours[:1], theirs[:1]) == "+1.0"
    assert train.spread(ours) == "74.0 ± 4.0" and train.spread(ours[:1]) == "70.0"


def test_accuracy_and_order_of_predictions(finished):
    context = train.Seed(finished["config"], 0)
    model, dev = context.model("student").network.eval(), context.read["student"]["dev"]
    with torch.no_grad():
        one_by_one = torch.cat([model(**dev.batch(np.array([row]))[0]) for row in range(40)])
    torch.testing.assert_close(train.predict(model, dev)[:40], one_by_one)
    assert train.METRICS["accuracy"](np.array([1, 0, 1, 1]), np.array([1, 1, 1, 0])) == 0.5


def test_the_rate_warms_up_and_decays():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=123.0)
    rates = []
    for step in range(20):
        train.set_rate(optimizer, 0.1, step, 20)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1]) and rates[10] == pytest.approx(0.1 * 10 / 18)
    assert rates[-1] == pytest.approx(0.1 / 18)


# ---------------------------------------------------------------- errors


BAD = [
    (["--task", "sst3"], "--task sst3: expected one of"),
    (["--tsak", "sst2"], "unrecognized arguments"),
    (["--data", "/nowhere"], "/nowhere/SST-2: expected train.tsv"),
    (["--alpha", "1.5"], "--alpha 1.5: expected a number from 0 to 1"),
    (["--alpha", "nan"], "--alpha nan: expected a number from 0 to 1"),
    (["--temperature", "0"], "--temperature 0.0: expected a finite number above 0"),
    (["--temperature", "inf"], "--temperature inf: expected a finite number above 0"),
    (["--student-lr", "-1"], "--student-lr -1.0: expected a finite number above 0"),
    (["--epochs", "0"], "--epochs 0: expected a whole number, at least 1"),
    (["--epochs", "many"], "argument --epochs: invalid int value"),
    (["--quiz-size", "5000"], "--quiz-size 5000: expected 1 to 1799"),
    (["--train-size", "5000"], "--train-size 5000: expected 1 to 1500"),
    (["--label-noise", "2"], "--label-noise 2.0: expected a number from 0 to 1"),
    (["--teacher", "huge"], "huge: expected a checkpoint's directory, or one of micro, tiny"),
    (["--methods", "kd,magic"], "--methods kd,magic: expected some of finetune,kd,pkd,metadistil,metadistil-pkd"),
    (["--methods", "kd,kd"], "--methods kd,kd: expected some of"),
    (["--meta-grad", "third"], "--meta-grad third: expected one of"),
    (["--resume", "/nowhere"], "/nowhere: expected the directory of a run"),
    (["--predict", "x", "--out", "/nowhere"], "/nowhere: expected the directory of a run"),
    (["--out", "/proc/nowhere"], "/proc/nowhere"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_input_ends_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main(arguments if "--data" in arguments or "--resume" in arguments else [*arguments, "--data", "builtin"])
    found = capsys.readouterr()
    assert stop.value.code == 2 and found.out == "" and not list(tmp_path.iterdir())
    assert found.err.startswith("train.py: ") and message in found.err and found.err.count("\n") == 1


def test_nothing_is_overwritten(finished, capsys):
    before = numbers_of(finished["out"])[0]
    for arguments in (flags(**SMALL, out=finished["out"]), ["--resume", str(finished["out"]), "--alpha", "0.1"]):
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert numbers_of(finished["out"])[0] == before


def test_without_out_each_run_gets_a_new_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sst2-builtin").mkdir(parents=True)
    assert train.resolve(train.Config(data="builtin")).out == "runs/sst2-builtin-2"


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(flags(**SMALL, out=tmp_path / "wild", finetune_lr=1e30))
    assert stop.value.code == 2 and "expected finite losses" in capsys.readouterr().err
