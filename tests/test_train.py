"""The main job: same numbers, fair comparisons, errors in one line."""

import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, builtin_reviews, shaken
from test_data import write_cifar, write_task
from torch.utils._python_dispatch import TorchDispatchMode

import data
import metadistil
import models
import train

SMALL = {
    "data": "builtin", "teacher": "micro", "student": "micro", "train_size": 60, "quiz_size": 20, "batch_size": 16,
    "quiz_batch_size": 8, "teacher_epochs": 2, "warmup_epochs": 1, "epochs": 2, "log_every": 2,
}  # fmt: skip


def small(out, **other):
    return heeded(SMALL | {"out": str(out)} | other)


def heeded(settings):
    """The configuration without the size of quizzes, if no method sits any: it would be refused."""
    if "metadistil" not in settings.get("methods", "metadistil"):
        del settings["quiz_batch_size"]
    return train.Config(**settings)


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
    out = finished.out
    config = json.loads((out / "config.json").read_text())
    assert config["alpha"] == 0.9 and config["label_noise"] == 0.4 and config["data"] == "builtin"  # all resolved
    names = {"teacher-before", "student-finetune", "student-kd", "student-metadistil", "teacher-after-metadistil"}
    assert {path.stem for path in (out / "seed1").glob("*.pt")} == names
    assert (out / "table.md").read_text().startswith(finished.table.splitlines()[0])
    assert not list(out.rglob("*.part"))
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    taught = [e for e in entries if e["stage"] == "metadistil" and "quiz_loss_after" in e]
    assert taught and all(math.isfinite(e["quiz_loss_before"]) for e in taught)
    finals = [e for e in entries if "final_scores" in e]
    assert len(finals) == 2 * 5
    assert not any("test" in json.dumps(e) for e in entries if "final_scores" not in e)  # test: once, at the end


def test_the_table_shows_each_model_with_its_scores(finished):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in finished.table.split("\n\n")[0].splitlines()]
    names = ["teacher before", "teacher after metadistil", "student finetune", "student kd", "student metadistil"]
    assert [row[0] for row in rows[2:]] == names
    of = {name: np.array([seed["scores"]["test accuracy"] for seed in finished.results[name]]) for name in names}
    assert rows[0][2] == "test accuracy" and [row[2] for row in rows[2:]] == [train.spread(of[name]) for name in names]
    assert rows[6][3] == train.paired_difference(of["student metadistil"], of["student kd"]) and rows[5][3] == ""
    assert rows[3][3] == train.paired_difference(of["teacher after metadistil"], of["teacher before"])
    scores, costs, _ = finished.table.split("\n\n")
    for one in (scores, costs):
        assert len({len(line) for line in one.splitlines()}) == 1  # aligned, so that it reads well raw, too
    of_one = train.table(finished.config, finished.config.load(0), {title: of[:1] for title, of in finished.results.items()})
    assert max(len(line) for line in of_one.splitlines() if "|" in line) <= 80  # a narrow terminal
    assert [[cell.strip() for cell in line.split("|")[1:-1]][0] for line in costs.splitlines()[2:]] == names


def test_the_table_draws_the_dev_scores_by_epoch(finished):
    log = [json.loads(line) for line in (finished.out / "metrics.jsonl").read_text().splitlines()]
    for title, seeds in finished.results.items():
        for seed, found in enumerate(seeds):
            logged = [entry["scores"][title]["dev accuracy"] for entry in log
                      if entry["seed"] == seed and title in entry.get("scores", {})]  # fmt: skip
            assert logged and found["by_epoch"] == logged, title
    curves = {title: np.mean([seed["by_epoch"] for seed in seeds], axis=0) for title, seeds in finished.results.items()}
    low, high = min(map(min, curves.values())), max(map(max, curves.values()))
    for title, curve in curves.items():
        line = next(line for line in finished.table.split("\n\n")[1].splitlines() if title in line)
        assert train.blocks(curve, low, high) in line, title
    assert f"from {100 * low:.1f} (lowest block) to {100 * high:.1f} (highest)" in finished.table


def test_blocks_worked_by_hand():
    assert train.blocks(np.array([0.0, 0.25, 0.5, 1.0]), 0.0, 1.0) == "▁▃▅█"
    assert train.blocks(np.array([0.7, 0.7]), 0.7, 0.7) == "▁▁"  # a flat curve
    long = train.blocks(np.array([1.0] + [0.0] * 53 + [1.0]), 0.0, 1.0)
    assert len(long) == 8 and long[0] == long[-1] == "█"  # the last epoch is always among them
    assert train.blocks(np.array([]), 0.0, 1.0) == ""  # a teacher that a file brought


def test_rows_as_a_table_in_markdown():
    rows = [["model", "dev", "seconds"], ["a teacher", "71.0", "3"]]
    whole = "| model     | dev  | seconds |\n| --------- | ---- | ------- |\n| a teacher | 71.0 | 3       |\n"
    assert train.layout(rows) == whole


def test_a_run_ends_with_what_the_table_shows_and_two_commands_that_work(finished, capsys):
    ours, kd = ([seed["scores"]["test accuracy"] for seed in finished.results[f"student {name}"]] for name in ("metadistil", "kd"))
    said = train.what_next(finished.config, finished.config.load(0), finished.results)
    ours, kd = np.array(ours), np.array(kd)
    assert f"metadistil {train.verdict(ours, kd)}, {train.paired_difference(ours, kd)}." in said
    command = re.search(r"python train.py (--out .* --predict) \"(.*)\"", said)
    train.main([*command[1].split(), command[2]])
    assert capsys.readouterr().out.startswith("NLP is fun.\n  teacher before")
    assert f"python notebooks/demo.py {finished.out}" in said and (ROOT / "notebooks" / "demo.py").exists()
    assert "One seed" not in said and "One seed" in train.what_next(
        train.Config(seeds=1, out="x"), finished.config.load(0), {title: of[:1] for title, of in finished.results.items()}
    )


def test_a_teacher_out_of_a_file_had_no_epochs_here(finished, tmp_path):
    ready = str(finished.out / "seed{seed}" / "teacher-before.pt")
    again = train.run(small(tmp_path / "again", teacher=ready, methods="kd"))
    assert "after all epochs: 0 of a teacher" in again.table and "2 of a teacher" in finished.table


def test_outputs_that_are_not_finite_have_no_score(finished):
    context = train.Seed(finished.config, 0)
    student = context.network("student")
    torch.nn.init.constant_(student.network.classifier.bias, math.nan)
    with pytest.raises(train.InputError, match="student: expected finite outputs"):
        context.scores(student, "dev")


def test_ahead_level_behind_by_the_interval():
    theirs, noise = np.array([0.70, 0.72, 0.74]), np.array([0.001, -0.001, 0.0])
    assert train.verdict(theirs + 0.02 + noise, theirs) == "ahead"
    assert train.verdict(theirs - 0.02 + noise, theirs) == "behind"
    assert train.verdict(theirs + noise + 0.0005, theirs) == "level"
    assert train.verdict(theirs[:1] + 0.01, theirs[:1]) == "ahead" and train.verdict(theirs, theirs) == "level"


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(finished, tmp_path):
    arguments = flags(**SMALL, seeds=2, out=tmp_path / "again")
    shuffled = [part for i in range(len(arguments) - 2, -1, -2) for part in arguments[i : i + 2]]
    command_line(*shuffled, check=True)
    assert_same_numbers(finished.out, tmp_path / "again")


@pytest.mark.slow
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
    assert_same_numbers(finished.out, out), delays


def press_ctrl_c(monkeypatch, stop_at):
    """Interrupt the run right after its checkpoint of that number."""
    saved, save = [], train.save_journal

    def save_then_stop(config, journal):
        save(config, journal)
        saved.append(journal)
        if len(saved) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_journal", save_then_stop)


@pytest.mark.parametrize("stop_at", [*(pytest.param(at, marks=pytest.mark.slow) for at in (2, 10, 14)), 22])
def test_stopped_between_two_steps(tmp_path, monkeypatch, stop_at, finished):
    """Ctrl-C says how to go on, and nothing is lost but the time."""
    press_ctrl_c(monkeypatch, stop_at)
    with pytest.raises(KeyboardInterrupt, match="to go on: python train.py --resume"):
        train.run(small(tmp_path / "stopped", seeds=2, checkpoint_seconds=0.0))
    monkeypatch.undo()
    train.run(*train.read_journal(str(tmp_path / "stopped")))
    assert_same_numbers(finished.out, tmp_path / "stopped")


def test_every_student_starts_from_the_same_weights_and_the_same_teacher(finished):
    context = train.Seed(finished.config, 1)
    starts = {name: train.Stage(context, name).learners for name in ("finetune", "kd", "metadistil")}
    for name in ("kd", "metadistil"):
        pairs = zip(starts["finetune"]["student finetune"].parameters(), starts[name][f"student {name}"].parameters())
        assert all(torch.equal(one, other) for one, other in pairs)
    teacher = torch.load(finished.out / "seed1" / "teacher-before.pt", weights_only=True)["weights"]
    taught = starts["metadistil"]["teacher after metadistil"].network.state_dict()
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in taught.items())


def test_labels_and_steps_are_shared_fairly(tmp_path, monkeypatch):
    """The quiz never enters MetaDistil's batches; whoever has no quiz trains on it; all take as many steps."""
    seen = {"batches": [], "quizzes": []}
    real_update, meta_gradient = metadistil.real_update, metadistil.meta_gradient

    def watch_real(student, teachers, batch, *rest, **settings):
        seen["batches"].append(batch[0]["student"]["input_ids"])
        return real_update(student, teachers, batch, *rest, **settings)

    def watch_meta(student, teachers, batch, quiz, **settings):
        seen["quizzes"].append(quiz[0]["student"]["input_ids"])
        return meta_gradient(student, teachers, batch, quiz, **settings)

    monkeypatch.setattr(metadistil, "real_update", watch_real)
    monkeypatch.setattr(metadistil, "meta_gradient", watch_meta)
    rows = lambda tensors: {tuple(i for i in row.tolist() if i) for tensor in tensors for row in tensor}  # noqa: E731
    steps, texts = {}, {}
    for method in ("finetune", "kd", "metadistil"):
        finished = train.run(small(tmp_path / method, methods=method))
        teacher_steps = 2 * 5  # epochs × steps an epoch: 80 examples, 16 a batch
        steps[method] = len(seen["batches"]) - teacher_steps
        texts[method], asked = rows(seen["batches"][teacher_steps:]), rows(seen["quizzes"])
        seen = {"batches": [], "quizzes": []}
    context = train.Seed(finished.config, 0)
    n = len(context.task.train)
    ids = context.encoded["student"]["train+quiz"].batch(np.arange(n + len(context.task.quiz)))[0]["input_ids"]
    train_rows, quiz_rows = rows([ids[:n]]), rows([ids[n:]])
    assert steps == {"finetune": 15, "kd": 15, "metadistil": 15}
    assert texts["finetune"] == texts["kd"] == train_rows | quiz_rows
    assert texts["metadistil"] == train_rows and asked <= quiz_rows


def test_predict_shows_every_model_side_by_side(finished, capsys):
    out = str(finished.out)
    train.main(["--predict", "NLP is fun.", "--out", out])
    lines = capsys.readouterr().out.splitlines()
    said = [re.fullmatch(r"  (\w+ \w+( \w+)?) +(positive|negative) +(\d+\.\d)%", line) for line in lines[1:]]
    assert lines[0] == "NLP is fun." and {found[1] for found in said} == set(finished.results)
    several = command_line("--predict", "--out", out, input="the plot is dull\nthe cast is witty\n", check=True)
    assert len(several.stdout.splitlines()) == 12


# ---------------------------------------------------------------- numbers worked by hand


def test_t_quantiles_are_the_tabulated_ones():
    stats = pytest.importorskip("scipy.stats")
    for n in range(2, 11):
        ours, theirs = np.random.default_rng(n).random((2, n))
        low, high = stats.t.interval(0.95, n - 1, 100 * (ours - theirs).mean(), 100 * stats.sem(ours - theirs))
        found = [float(part) for part in re.findall(r"[-+][\d.]+", train.paired_difference(ours, theirs))]
        assert found[1:] == pytest.approx([low, high], abs=0.1)


def test_paired_difference_worked_by_hand():
    ours, theirs = np.array([0.70, 0.74, 0.78]), np.array([0.69, 0.71, 0.73])
    # differences 1, 3, 5: mean 3, deviation 2, half-width 4.3027 · 2 / √3 = 4.968
    assert train.paired_difference(ours, theirs) == "+3.0 [-2.0, +8.0]"
    assert train.paired_difference(ours[:1], theirs[:1]) == "+1.0"
    assert train.spread(ours) == "74.0 ± 4.0" and train.spread(ours[:1]) == "70.0"


def test_accuracy_and_order_of_predictions(finished):
    context = train.Seed(finished.config, 0)
    model, dev = context.network("student").eval().read, context.encoded["student"]["dev"]
    with torch.no_grad():
        one_by_one = torch.cat([model(**dev.batch(np.array([row]))[0]) for row in range(40)])
    torch.testing.assert_close(train.predict(model, dev)[:40], one_by_one)
    assert train.METRICS["accuracy"](np.array([1, 0, 1, 1]), np.array([1, 1, 1, 0])) == 0.5


def test_the_linear_schedule_warms_up_and_decays():
    shares = [train.SCHEDULES["linear"](step, 20) for step in range(20)]
    assert shares[:3] == pytest.approx([0.5, 1, 1]) and shares[10] == pytest.approx(10 / 18)
    assert shares[-1] == pytest.approx(1 / 18)


@pytest.mark.parametrize("total", [24, 240])
def test_the_falls_are_in_proportion_to_the_run(total):
    """RepDistiller's schedule at its own length: 150, 180 and 210 of 240 epochs."""
    shares = [train.SCHEDULES["falls"](step, total) for step in range(total)]
    falls = [step for step in range(1, total) if shares[step] < shares[step - 1]]
    assert falls == [150 * total // 240, 180 * total // 240, 210 * total // 240] and shares[0] == 1
    assert shares[-1] == pytest.approx(1e-3)


# ---------------------------------------------------------------- errors


BAD = [
    (["--task", "sst3"], "--task sst3: expected one of sst2, cola"),
    (["--tsak", "sst2"], "unrecognized arguments"),
    (["--data", "/nowhere"], "/nowhere/SST-2/train.tsv: expected a file there; to fetch it: python notebooks/fetch.py sst2"),
    (["--alpha", "1.5"], "--alpha 1.5: expected a number from 0 to 1"),
    (["--alpha", "nan"], "--alpha nan: expected a number from 0 to 1"),
    (["--temperature", "0"], "--temperature 0.0: expected a number from 1e-30 to 1e+30"),
    (["--temperature", "inf"], "--temperature inf: expected a number from 1e-30 to 1e+30"),
    (["--student-lr", "-1"], "--student-lr -1.0: expected a number from 1e-30 to 1e+30"),
    (["--epochs", "0"], "--epochs 0: expected a number from 1 to 1e+09"),
    (["--epochs", "many"], "argument --epochs: invalid int value"),
    (["--quiz-size", "5000"], "--quiz-size 5000: expected 1 to 1799"),
    (["--train-size", "5000"], "--train-size 5000: expected 1 to 1500"),
    (["--label-noise", "2"], "--label-noise 2.0: expected a number from 0 to 1"),
    (["--teacher", "huge"], "huge: expected a saved network (.pt), a directory with metadistil.pt, or one of micro, tiny"),
    (["--methods", "kd,magic"], "--methods magic: expected some of finetune, kd"),
    (["--methods", "kd,"], "--methods : expected"),
    (["--methods", "kd", "--pilot-lr", "0.1"], "--pilot-lr: no method of --methods kd uses it"),
    (["--methods", "finetune", "--temperature", "3"], "--temperature: no method of --methods finetune uses it"),
    (["--optimizer", "adam"], "--optimizer adam: expected one of adamw, sgd, momentum"),
    (["--task", "cifar100", "--data", "/nowhere"], "python notebooks/fetch.py cifar100, or draw pictures: python notebooks/pictures.py"),
    (["--task", "cola"], "builtin/CoLA/train.tsv: expected a file there"),
    (["--student-layers", "1,3"], "--student-layers 1,3: expected numbers of layers of micro: index 1 is out of range"),
    (["--meta-grad", "third"], "--meta-grad third: expected one of second_order, jvp"),
    (["--resume", "/nowhere"], "/nowhere/checkpoint.pt: expected the checkpoint of a run"),
    (["--predict", "x", "--out", "/nowhere"], "/nowhere: expected a run with a trained network"),
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
    before = numbers_of(finished.out)[0]
    for arguments in (flags(**SMALL, out=finished.out), ["--resume", str(finished.out), "--alpha", "0.1"]):
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert numbers_of(finished.out)[0] == before


def test_without_out_each_run_gets_a_new_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = train.resolve(train.Config(data="builtin"))
    assert [train.claim(config) for _ in range(3)] == [f"runs/sst2-builtin{ending}" for ending in ("", "-2", "-3")]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(flags(**SMALL, out=tmp_path / "wild", finetune_lr=1e30))
    assert stop.value.code == 2 and "expected a finite loss, found" in capsys.readouterr().err


# ---------------------------------------------------------------- scores, by hand and against the libraries


def test_metrics_worked_by_hand():
    predictions, labels = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0])
    scores = {name: metric(predictions, labels) for name, metric in train.METRICS.items()}
    # precision 2/3, recall 2/3; Matthews (2·2 − 1·1) / √(3·3·3·3) = 1/3
    assert scores["accuracy"] == pytest.approx(4 / 6) and scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews"] == pytest.approx(1 / 3)
    assert train.pearson(np.array([1.0, 2, 3]), np.array([1.0, 2, 9])) == pytest.approx(8 / math.sqrt(2 * 38))
    assert train.ranked(np.array([5.0, 1, 5, 3])).tolist() == [3.5, 1, 3.5, 2]
    # ranks (1, 2.5, 2.5, 4) against (1, 2, 3, 4): 4.5 / √(4.5 · 5)
    found = train.METRICS["spearman"](np.array([0.1, 7, 7, 8]), np.array([1.0, 2, 3, 4]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_constant_predictions_score_zero():
    labels = np.array([0, 1, 1, 0])
    for constant in (np.zeros(4, int), np.full(4, 0.1)):
        for name in ("matthews", "pearson", "spearman"):
            assert train.METRICS[name](constant, labels) == train.METRICS[name](labels, constant) == 0.0
    assert train.METRICS["f1"](np.zeros(4, int), labels) == train.METRICS["f1"](np.zeros(4, int), np.zeros(4, int)) == 0.0
    assert train.METRICS["f1"](np.ones(4, int), labels) == pytest.approx(2 / 3)


@pytest.mark.parametrize("case", ["random", "ties", "one class said", "one class there", "all wrong", "single"])
def test_metrics_agree_with_the_libraries(case):
    sklearn, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(2, size=(2, 1 if case == "single" else 60))
    predictions = {"one class said": 0 * labels + 1, "all wrong": 1 - labels}.get(case, predictions)
    labels = 0 * labels if case == "one class there" else labels
    expected = {"accuracy": sklearn.accuracy_score(labels, predictions), "f1": sklearn.f1_score(labels, predictions, zero_division=0),
                "matthews": sklearn.matthews_corrcoef(labels, predictions)}  # fmt: skip
    assert {name: train.METRICS[name](predictions, labels) for name in expected} == pytest.approx(expected)
    if case != "single":
        scores = rng.normal(size=60).astype(np.float32)
        truth = (rng.integers(6, size=60) if case == "ties" else rng.normal(size=60)).astype(np.float32)
        assert train.pearson(scores, truth) == pytest.approx(stats.pearsonr(scores.astype(float), truth).statistic)
        assert train.METRICS["spearman"](scores, truth) == pytest.approx(stats.spearmanr(scores, truth).statistic)


# ---------------------------------------------------------------- checkpoints, several teachers, ablations


TEXTS = builtin_reviews("train").texts


def checkpoint(folder, texts, layers=2, seed=0, labels=None, **shape):
    """A random Encoder as notebooks/fetch.py leaves a published one, with a tokeniser learnt from the texts."""
    torch.manual_seed(seed)
    tokenizer = data.train_tokenizer(texts, 150)
    shape = {"hidden": 16, "heads": 2, "intermediate": 32, "max_positions": 40} | shape
    config = models.EncoderConfig(vocab_size=tokenizer.get_vocab_size(), layers=layers, **shape)
    network = shaken(models.Encoder(config))
    train.write_whole(folder / "metadistil.pt", models.to_save(network, tokenizer=tokenizer.to_str(), labels=labels))
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return [checkpoint(folder / "one", TEXTS[-4:], 4), checkpoint(folder / "two", TEXTS[:300], 2, seed=1)]


def test_two_teachers_each_read_the_ids_of_their_own_vocabulary(checkpoints, tmp_path):
    config = train.resolve(small(tmp_path, teacher=",".join(checkpoints), student="micro"))
    context = train.Seed(config, 0)
    assert list(context.sources) == ["student", "teacher", "teacher 2"]
    rows = np.arange(5)
    inputs, _ = context.batch(rows)
    for role, source in zip(("teacher", "teacher 2"), checkpoints):
        own_tokenizer = data.Tokenizer.from_str(models.read_saved(source)[1]["tokenizer"])
        own = data.encode(own_tokenizer, context.task.train[rows]).batch(rows)[0]
        reader = context.network(role).eval()
        with torch.no_grad():
            assert torch.equal(reader(**inputs), reader.read(**own)), role
    with torch.no_grad():  # fed the first one's ids, the second says something else
        assert not torch.allclose(reader(**inputs), reader.read(**inputs["teacher"]), atol=1e-3)


def test_two_teachers_are_both_trained_averaged_and_taught(checkpoints, tmp_path):
    settings = {"teacher": ",".join(checkpoints), "student": checkpoints[0], "student_layers": "1,3", "methods": "kd,metadistil"}
    finished = train.run(small(tmp_path / "run", teacher_lr=0.01, **settings))
    titles = {"teacher before", "teacher 2 before", "teacher after metadistil", "teacher 2 after metadistil"}
    assert titles | {"student kd", "student metadistil"} == set(finished.results)
    of = {path.stem: torch.load(path, weights_only=True) for path in (tmp_path / "run" / "seed0").glob("*.pt")}
    for teacher in ("teacher", "teacher-2"):
        moved = (of[f"{teacher}-before"]["weights"][name] - tensor for name, tensor in of[f"{teacher}-after-metadistil"]["weights"].items())
        assert max(difference.abs().max() for difference in moved) > 1e-3
    assert of["student-kd"]["config"]["layers"] == 2 and of["teacher-before"]["config"]["layers"] == 4
    train.print_predictions(str(tmp_path / "run"), ["the plot is dull"])


def test_a_checkpoint_decides_the_defaults(checkpoints, tmp_path):
    config = train.resolve(small(tmp_path, teacher=checkpoints[0], student="micro", epochs=None))
    assert config.student_lr == 7e-5 and config.epochs == 1 and config.data == "builtin"


NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("saved, labels, order", [
    (NAMES, NAMES, [0, 1, 2]), (["C", "A", "b"], NAMES, [1, 2, 0]), (["a", "B"], ["b", "A"], [1, 0]), (NAMES, [*"vwxyz"], None), (NAMES, ["a", "b", "d"], None),
    (None, NAMES, None), ([], [], [0]), (None, [], None), (["one"], [], None),
])  # fmt: skip
@pytest.mark.parametrize("shape", [models.EncoderConfig(30, 8, 1, 2, 16, 8), models.ResNetConfig(8)])
def test_a_network_takes_over_all_weights_but_those_of_a_head_for_other_labels(shape, saved, labels, order):
    """order: the rows of the trained head that the fresh one gets; none if it stays fresh. No labels: a regression."""
    trained, network = (shaken(models.build(shape, num_labels=len(names or "1"))) for names in (saved, labels))
    fresh, theirs = dict(network.classifier.state_dict()), trained.state_dict()
    fresh = {name: tensor.clone() for name, tensor in fresh.items()}
    train.take_over(network, trained, {"labels": saved}, labels)
    ours = network.state_dict()
    for name in ours:
        if not name.startswith("classifier."):
            assert torch.equal(ours[name], theirs[name]), name
    for name, was in fresh.items():
        expected = was if order is None else theirs[f"classifier.{name}"][order]
        assert torch.equal(ours[f"classifier.{name}"], expected), name


@pytest.mark.parametrize("labels, order", [
    (["NEGATIVE", "positive"], [0, 1]), (["positive", "negative"], [1, 0]), (["fresh", "rotten"], None), (None, None),
])  # fmt: skip
def test_a_head_comes_along_for_the_same_labels_in_the_tasks_order(labels, order, tmp_path):
    source = checkpoint(tmp_path / "network", TEXTS[:50], labels=labels)
    context = train.Seed(train.resolve(small(tmp_path / "run", teacher=source, student="micro")), 0)
    saved, network = models.read_saved(source)[0].state_dict(), context.network("teacher").network.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.items() if "classifier" not in name)
    head = saved["classifier.weight"]
    assert torch.equal(network["classifier.weight"], head[order]) if order else not torch.equal(network["classifier.weight"], head)


def test_with_a_rate_of_zero_and_the_quizs_labels_metadistil_is_kd(tmp_path):
    train.run(small(tmp_path / "run", methods="kd,metadistil", teacher_lr=0.0, learn_quiz=True))
    weights = numbers_of(tmp_path / "run")[1]
    for one, other in (("student-kd", "student-metadistil"), ("teacher-before", "teacher-after-metadistil")):
        one, other = weights[f"seed0/{one}.pt"], weights[f"seed0/{other}.pt"]
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("quiz_loss_after" in entry for entry in log)  # the quiz was sat nevertheless


@pytest.mark.parametrize("flag, calls", [({"meta_every": 3}, (4, 15)), ({}, (10, 15))])
def test_the_teacher_learns_at_every_so_manyth_step(tmp_path, monkeypatch, flag, calls):
    seen = {"meta_update": 0, "real_update": 0}
    for name, original in [(name, getattr(metadistil, name)) for name in seen]:
        def counted(*arguments, name=name, original=original, **settings):  # fmt: skip
            seen[name] += 1
            return original(*arguments, **settings)
        monkeypatch.setattr(metadistil, name, counted)  # fmt: skip
    train.run(small(tmp_path / "run", methods="metadistil", **flag))
    assert (seen["meta_update"], seen["real_update"] - 10) == calls  # 10: the teacher's own training


def test_word_noise_is_for_the_training_sentences_of_the_student_alone(tmp_path):
    context = train.Seed(train.resolve(small(tmp_path, noise=1.0)), 0)
    n = len(context.task.train)
    rows = lambda split: [split.batch(np.array([row]))[0]["input_ids"][0].tolist() for row in range(len(split.lengths))]  # noqa: E731
    clean = rows(data.encode(context.tokenizers["teacher"], context.task.train + context.task.quiz))
    for role in ("student", "teacher"):
        same = [a == b for a, b in zip(rows(context.encoded[role]["train+quiz"]), clean)]
        assert all(same[n:]) and all(same[:n]) == (role == "teacher") and any(same[:n]) == (role == "teacher")
    dev = rows(data.encode(context.tokenizers["student"], context.task.dev))
    assert rows(context.encoded["student"]["dev"]) == dev


@pytest.mark.parametrize("name, columns", [
    ("stsb", ["dev pearson", "dev spearman"]), ("mrpc", ["dev f1", "dev accuracy"]),
    ("mnli", ["dev accuracy", "test accuracy"]), ("cola", ["dev matthews"]),
])  # fmt: skip
def test_other_tasks_run_with_their_metrics(name, columns, tmp_path, capsys):
    folder, out = write_task(tmp_path / "files", name, rows=30), tmp_path / "run"
    settings = {"teacher_epochs": 1, "epochs": 1, "train_size": 20, "quiz_size": 6}
    finished = train.run(small(out, **settings, data=str(folder), task=name))
    assert list(finished.results["student metadistil"][0]["scores"]) == columns
    main = columns[1] if name == "mnli" else columns[0]  # the task's first metric on the last split
    assert f"Gain, {main}: " in finished.table
    assert all(math.isfinite(score) for score in finished.results["student metadistil"][0]["scores"].values())
    capsys.readouterr()
    train.main(["--predict", "one thing\tanother" if name != "cola" else "one thing", "--out", str(out)])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6 and (name != "stsb" or re.search(r"-?\d\.\d\d$", said[1]))


# ---------------------------------------------------------------- pictures


def small_pictures(folder, out, **other):
    settings = {"task": "cifar100", "data": str(folder), "teacher": "resnet8", "student": "resnet8", "batch_size": 32,
                "quiz_batch_size": 16, "teacher_epochs": 2, "warmup_epochs": 1, "epochs": 1, "log_every": 2}  # fmt: skip
    return heeded(settings | {"out": str(out)} | other)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 250 random pictures, and a finished run on it."""
    folder = write_cifar(tmp_path_factory.mktemp("pictures"))
    return folder, train.run(small_pictures(folder, folder / "run", seeds=2))


def test_a_run_on_pictures_leaves_what_it_promises(pictures, capsys):
    folder, finished = pictures
    assert set(finished.results) == {"teacher before", "teacher after metadistil", "student finetune", "student kd", "student metadistil"}
    assert list(finished.results["student kd"][0]["scores"]) == ["dev accuracy", "test accuracy"]
    assert finished.results["student kd"][1]["parameters"] == 83_892
    with pytest.raises(SystemExit) as stop:
        train.main(["--predict", "a flower", "--out", str(folder / "run")])
    assert stop.value.code == 2 and "expected a network that reads sentences" in capsys.readouterr().err


class Called(TorchDispatchMode):
    """Notes which of the functions that torch leaves to MKL are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in "acos asin atan cos erf erfc erfinv exp expm1 log log10 log1p log2 sin sqrt tan tanh".split():
            self.names.add(name)
        return function(*args, **kwargs or {})


@pytest.mark.slow
def test_what_MKL_chooses_at_the_first_call_is_called_by_one_thread_first(tmp_path, pictures):
    with Called() as first:
        runpy.run_path(train.__file__, run_name="imported")
    with Called() as then:
        train.run(small(tmp_path / "reviews", epochs=1))
        train.run(small_pictures(pictures[0], tmp_path / "pictures", teacher_epochs=1))
    assert {"exp", "log", "tanh"} <= then.names <= first.names


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 6])
def test_a_run_on_pictures_stopped_and_resumed_ends_with_the_same_numbers(pictures, tmp_path, monkeypatch, stop_at):
    folder, finished = pictures
    press_ctrl_c(monkeypatch, stop_at)
    with pytest.raises(KeyboardInterrupt):
        train.run(small_pictures(folder, tmp_path / "stopped", seeds=2, checkpoint_seconds=0.0))
    monkeypatch.undo()
    train.run(*train.read_journal(str(tmp_path / "stopped")))
    assert_same_numbers(finished.out, tmp_path / "stopped")


def test_pictures_are_trained_by_sgd_as_in_the_benchmark(pictures):
    stage = train.Stage(train.Seed(pictures[1].config, 0), "metadistil")
    assert stage.total == 2 * 7  # 198 pictures, 32 a step
    for optimizer in (stage.optimizer, stage.teacher_optimizer):
        assert isinstance(optimizer, torch.optim.SGD)
        assert [(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.9, 5e-4)]


def test_teacher_and_student_see_the_same_crops_and_the_quiz_has_none(pictures):
    context = train.Seed(pictures[1].config, 0)
    rows = np.arange(6)
    (cropped, _), (again, _), (other, _), (plain, _) = (context.batch(rows, step) for step in (3, 3, 4, None))
    assert torch.equal(cropped["student"]["images"], cropped["teacher"]["images"])
    assert torch.equal(cropped["student"]["images"], again["student"]["images"])
    assert not torch.equal(cropped["student"]["images"], other["student"]["images"])
    assert torch.equal(plain["student"]["images"], data.encode(None, context.task.train[rows]).batch(rows)[0]["images"])


def test_a_quiz_is_sat_on_whole_pictures(pictures, monkeypatch):
    context, seen = train.Seed(pictures[1].config, 0), {}
    result = metadistil.MetaGradient(torch.zeros(()), [], {})
    monkeypatch.setattr(metadistil, "metadistil_step", lambda *given, **_: seen.update(batch=given[2], quiz=given[3]) or (torch.zeros(()), result))
    train.Stage(context, "metadistil").step(7)  # the first step after the warm-up
    whole = data.encode(None, context.task.quiz).batch(np.arange(len(context.task.quiz)))[0]["images"]
    among = lambda images: [any(torch.equal(one, other) for other in whole) for one in images]  # noqa: E731
    assert len(seen["quiz"][1]) == 16 and all(among(seen["quiz"][0]["student"]["images"]))
    assert not any(among(seen["batch"][0]["student"]["images"]))


@pytest.mark.parametrize("learn_quiz", [False, True])
def test_the_quiz_is_kept_from_the_student_unless_it_is_to_learn_it(tmp_path, monkeypatch, learn_quiz):
    context, trained_on = train.Seed(train.resolve(small(tmp_path / "run", learn_quiz=learn_quiz)), 0), []
    monkeypatch.setattr(metadistil, "real_update", lambda *given, **_: trained_on.extend(given[2]) or torch.zeros(()))
    monkeypatch.setattr(context, "batch", lambda rows, step=None: rows)
    monkeypatch.setattr(context, "network", lambda role, saved="": train.Reader(torch.nn.Linear(1, 1), role, "cpu", "fp32"))
    stage = train.Stage(context, "metadistil")
    for k in range(context.steps_per_epoch):  # an epoch of the warm-up
        stage.step(k)
    everything = set(range(80)) if learn_quiz else set(range(60))
    assert set(trained_on) == everything


def test_a_taught_teacher_teaches_another_student_as_it_is(pictures, tmp_path):
    """Static, cross: a teacher saved by one run, frozen in another."""
    folder, finished = pictures
    source = str(folder / "run" / "seed{seed}" / "teacher-after-metadistil.pt")
    crossed = train.run(small_pictures(folder, tmp_path / "cross", teacher=source, methods="kd", seeds=2))
    taught, frozen = (run.results[name] for run, name in ((finished, "teacher after metadistil"), (crossed, "teacher before")))
    assert [seed["scores"] for seed in frozen] == [seed["scores"] for seed in taught]
    for seed in (0, 1):
        paths = [Path(source.format(seed=seed)), tmp_path / "cross" / f"seed{seed}" / "teacher-before.pt"]
        one, other = (torch.load(path, weights_only=True)["weights"] for path in paths)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert {entry["stage"] for entry in map(json.loads, (tmp_path / "cross" / "metrics.jsonl").open())} == {"teacher", "kd"}
    assert crossed.table.split("\n\n")[1].splitlines()[2].split("|")[-2].strip() == "0"  # no second of training


def test_a_saved_teacher_of_sentences_brings_its_tokeniser(finished, tmp_path):
    source = str(finished.out / "seed0" / "teacher-after-metadistil.pt")
    crossed = train.run(small(tmp_path / "cross", teacher=source, methods="kd", train_size=40))
    expected = finished.results["teacher after metadistil"][0]["scores"]
    assert crossed.results["teacher before"][0]["scores"] == expected


def test_a_saved_model_of_each_seed_may_learn_on_as_a_student(pictures, tmp_path):
    source = str(pictures[0] / "run" / "seed{seed}" / "teacher-before.pt")
    config = train.resolve(small_pictures(pictures[0], tmp_path, teacher=source, student=source, methods="finetune"))
    for seed in (0, 1):
        saved = torch.load(source.format(seed=seed), weights_only=True)["weights"]
        assert all(torch.equal(saved[name], value) for name, value in train.Seed(config, seed).network("student").network.state_dict().items())


@pytest.mark.parametrize("other, message", [
    ({"teacher": "mini"}, "mini: expected a network that reads pictures"),
    ({"task": "sst2", "data": "builtin"}, "resnet8: expected a network that reads sentences"),
    ({"noise": 0.1}, "--noise: expected a task of sentences"),
    ({"teacher": "nowhere.pt"}, "nowhere.pt: expected a saved network"),
])  # fmt: skip
def test_networks_and_tasks_that_do_not_fit_are_told_of(pictures, tmp_path, other, message):
    with pytest.raises((train.InputError, models.CheckpointError), match=message):
        train.run(small_pictures(pictures[0], tmp_path / "run", **other))
    assert not list(tmp_path.iterdir())


def test_a_saved_teacher_of_other_classes_is_refused(pictures, tmp_path):
    model = models.resnet("resnet8", 10)
    train.write_whole(tmp_path / "ten.pt", models.to_save(model, labels=list("0123456789"), tokenizer=None))
    with pytest.raises(train.InputError, match="ten.pt: expected a network for cifar100's labels"):
        train.run(small_pictures(pictures[0], tmp_path / "run", teacher=str(tmp_path / "ten.pt")))


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("mode", metadistil.MODES)
def test_bfloat16_is_for_products_and_not_for_parameters_losses_or_the_meta_gradient(tmp_path, mode):
    found, multiplied = {}, {}
    for precision in ("fp32", "bf16"):
        context = train.Seed(train.resolve(small(tmp_path, precision=precision)), 0)
        student, teacher = (shaken(context.network(role)) for role in ("student", "teacher"))
        student.network.blocks[0].feed_in.register_forward_hook(lambda _, __, out: multiplied.update({precision: out.dtype}))
        batch, quiz = context.batch(np.arange(60)), context.batch(np.arange(60, 80))
        found[precision] = metadistil.meta_gradient(student, [teacher], batch, quiz, pilot_lr=0.1, mode=mode)
        assert metadistil.forward(student, batch[0]).dtype == found[precision].quiz_loss.dtype == torch.float32
        torch.manual_seed(0)
    assert multiplied == {"fp32": torch.float32, "bf16": torch.bfloat16}
    one, other = (torch.cat([g.flatten() for g in found[precision].grads]) for precision in found)
    assert one.dtype == other.dtype == torch.float32 and not torch.equal(one, other)
    assert torch.cosine_similarity(one.double(), other.double(), dim=0) > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("mode", metadistil.MODES)
def test_bfloat16_holds_on_pictures(pictures, tmp_path, mode):
    grads = []
    for precision in ("fp32", "bf16"):
        context = train.Seed(train.resolve(small_pictures(pictures[0], tmp_path, precision=precision)), 0)
        student, teacher = map(context.network, ("student", "teacher"))
        batch, quiz = context.batch(np.arange(64)), context.batch(np.arange(64, 128))
        found = metadistil.meta_gradient(student, [teacher], batch, quiz, pilot_lr=0.1, mode=mode)
        grads.append(torch.cat([g.flatten() for g in found.grads]))
        with torch.no_grad():  # BatchNorm rounds alike with a graph and without
            without_graph = metadistil.forward(student, batch[0])
        assert torch.equal(without_graph, metadistil.forward(student, batch[0]).detach())
    assert not torch.equal(*grads) and torch.cosine_similarity(*grads, dim=0) > 0.99


def test_the_loss_of_regression_worked_by_hand():
    z_S, z_T, y = torch.randn(4, 1), torch.randn(4, 1), torch.randn(4)
    squared = torch.nn.functional.mse_loss
    expected = 0.3 * squared(z_S, z_T) + 0.7 * squared(z_S[:, 0], y)
    torch.testing.assert_close(train.regression_kd_loss(z_S, z_T, y, 0.3), expected)
    torch.testing.assert_close(train.regression_kd_loss(z_S, None, y, 0.3), squared(z_S[:, 0], y))


@pytest.mark.slow
def test_bfloat16_without_hardware_is_warned_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    train.run(small(tmp_path / "run", methods="finetune", precision="bf16", teacher_epochs=1, epochs=1))
    assert "has no bfloat16" in capsys.readouterr().out
    found = train.run(small(tmp_path / "auto", methods="finetune", precision="auto", teacher_epochs=1, epochs=1))
    printed = capsys.readouterr().out
    assert "threads, fp32;" in printed and "no bfloat16" not in printed and "; fp32." in found.table


@pytest.mark.slow
def test_precision_auto_says_what_it_took(tmp_path, capsys):
    config = train.resolve(small(tmp_path, precision="auto"))
    assert config.precision == ("bf16" if any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name) else "fp32")
    train.run(small(tmp_path / "run", methods="metadistil", precision="bf16", teacher_epochs=1, epochs=1))
    assert "threads, bf16;" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_draws_the_curves(tmp_path):
    pytest.importorskip("matplotlib")
    train.main(flags(**SMALL | {"out": tmp_path / "run", "methods": "kd,metadistil", "seeds": 2}))
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "run" / "table.md").unlink()  # as if the run had been stopped
    drawn = subprocess.run([sys.executable, ROOT / "notebooks" / "curves.py", tmp_path / "run"], capture_output=True, text=True)
    assert drawn.returncode == 2 and drawn.stderr == f"curves.py: {tmp_path / 'run'}: expected a finished run; one that was stopped goes on by --resume\n"


def test_of_several_processes_a_run_on_pictures_says_whose_statistics_it_takes(pictures, monkeypatch, capsys):
    config, task = pictures[1].config, pictures[1].config.load(0)
    train.introduce(config, task)
    assert "BatchNorm" not in capsys.readouterr().out
    monkeypatch.setattr(train, "SEVERAL", True)
    train.introduce(config, task)
    assert "BatchNorm takes the statistics of each process's own part" in capsys.readouterr().out


def test_the_order_of_flags_changes_nothing(tmp_path):
    settings = list((SMALL | {"methods": "metadistil", "teacher_epochs": 1, "epochs": 1}).items())
    for out, order in (("one", settings), ("other", settings[::-1])):
        train.main(flags(**dict(order), out=tmp_path / out))
    assert_same_numbers(tmp_path / "one", tmp_path / "other")
