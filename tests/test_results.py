"""The script behind the README's results: rows run once, after those they take models from."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "notebooks"))

import honest
import results
import told

import data
import metadistil
import models
import train

SMALL = ("--task sst2 --data builtin --train-size 60 --quiz-size 20 --student micro --teacher-epochs 1 --warmup-epochs 0"
         " --epochs 1 --seeds 2")  # fmt: skip


@pytest.fixture()
def found(tmp_path, monkeypatch):
    """Two rows, the second with the teachers of the first, run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FOUND", tmp_path / "results.jsonl")
    taught = results.taught("noise", "plain-0.4")
    rows = {"plain-0.4": f"{SMALL} --teacher micro --methods finetune,kd",
            "metadistil-0.4": f"{SMALL} --teacher {taught} --methods metadistil"}  # fmt: skip
    results.run_study("noise", rows, 2)
    monkeypatch.setattr(results, "run_row", lambda *_: pytest.fail("run twice"))
    results.run_study("noise", rows, 2)
    return results.read_found()


def test_rows_run_once_and_are_noted(found):
    assert [json.loads(line)["row"] for line in results.FOUND.open()] == ["plain-0.4", "metadistil-0.4"]
    journal = train.read_journal("runs/results/noise/metadistil-0.4")[1]["results"]
    ours = results.scores("noise", "0.4", "metadistil", "student metadistil")
    assert np.allclose(ours, [seed["scores"]["test accuracy"] for seed in journal["student metadistil"]], atol=1e-6)
    assert found["noise", "metadistil-0.4"]["command"].endswith("--methods metadistil --out runs/results/noise/metadistil-0.4")
    log = [json.loads(line) for line in Path("runs/results/noise/metadistil-0.4/metrics.jsonl").open()]
    of = [entry["scores"]["student metadistil"]["dev accuracy"] for entry in log if "epoch" in entry and entry["stage"] == "metadistil"]
    assert np.allclose(np.ravel(found["noise", "metadistil-0.4"]["models"]["student metadistil"]["by_epoch"]), of, atol=1e-4)
    handed = found["noise", "metadistil-0.4"]["models"]["teacher before"]["dev accuracy"]
    assert handed == found["noise", "plain-0.4"]["models"]["teacher before"]["dev accuracy"]


def test_the_table_and_the_figure_compare_with_kd_seed_by_seed(found):
    ours, kd = (results.scores("noise", "0.4", *results.LINES[label][:2]) for label in ("metadistil", "kd"))
    lines = {line.split(" | ")[0].strip("| "): line for line in results.table("noise").splitlines()}
    assert f"| {train.spread(ours)}; {train.paired_difference(ours, kd)} |" in lines["metadistil"]
    assert "student on the quiz alone" not in lines  # not run, so not printed
    pytest.importorskip("matplotlib").use("agg")
    drawn = {bars.get_label(): bars[0].get_ydata() for bars in results.draw().axes[1].containers}
    assert drawn["metadistil"] == pytest.approx(100 * (ours - kd).mean()) and drawn["kd"] == 0 and len(drawn) == 3


def test_the_overview_shows_what_each_row_trained_beside_the_kd_it_is_compared_with(found):
    title, plain, taught = (line.strip("| ").split(" | ") for line in results.overview("noise").splitlines() if "---" not in line)
    ours, kd = (results.scores("noise", "0.4", *results.LINES[label][:2]) for label in ("metadistil", "kd"))
    assert title[:4] == ["teacher before", "student finetune", "student kd", "student metadistil"]
    assert plain[:2] == ["plain-0.4", train.spread(results.scores("noise", "0.4", "plain", "teacher before"))]
    assert plain[3] == train.spread(kd) and taught[1:4] == ["", "", ""]  # a teacher taken over, no kd of its own
    assert taught[4] == f"{train.spread(ours)}; {train.paired_difference(ours, kd)}"


def test_the_answer_compares_each_study_with_its_own_kd(found, monkeypatch, capsys):
    ours, kd, finetuned = (results.scores("noise", "0.4", *results.LINES[label][:2]) for label in ("metadistil", "kd", "finetune"))
    before, after = (results.scores("noise", "0.4", *results.LINES[label][:2]) for label in ("teacher", "teacher after metadistil"))
    differ = [train.paired_difference(*pair) for pair in ((finetuned, kd), (ours, kd), (after, before))]
    monkeypatch.setattr(sys, "argv", ["results.py"])
    results.main()  # no other study of its table is on record here, and none is run
    *_, answer = capsys.readouterr().out.splitlines()
    assert answer == f"| SST-2, pretrained, 40% wrong | test accuracy | {train.spread(kd)} | {' | '.join(differ)} |"
    assert results.answer().count("\n") == 2


def test_what_a_best_score_costs():
    """By hand: 2 epochs of labels at 10 s, then 3 of kd at 20 s, or 4 of metadistil at 50 s; means over two seeds. Of
    metadistil no memory was noted."""
    curves = {"student finetune": [[0.5] * 6, [0.5] * 6], "student kd": [[0.5, 0.6, 0.6, 0.8, 0.7], [0.5, 0.6, 0.6, 0.8, 0.7]],
              "student metadistil": [[0.5, 0.6, 0.7, 0.7, 0.9, 0.8], [0.5, 0.6, 0.7, 0.9, 0.9, 0.9]]}  # fmt: skip
    seconds = {"student finetune": [50, 70], "student kd": [80, 80], "student metadistil": [200, 240]}
    models = {title: {"by_epoch": curves[title], "seconds": seconds[title]} for title in curves}
    for title in ("student finetune", "student kd"):
        models[title]["peak_mb"] = [401, 502]
    entries = [{"study": "s", "row": "plain", "warmup_epochs": 2, "models": dict(list(models.items())[:2])},
               {"study": "s", "row": "metadistil", "warmup_epochs": 2, "models": dict(list(models.items())[2:])}]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "read_found", lambda: {("s", entry["row"]): entry for entry in entries})
        lines = results.costs("s").splitlines()
    assert lines[2:] == ["| student finetune | 50.0 | 1 | 10 | – | 401 |", "| student kd | 80.0 | 4 | 60 | 60 | 401 |",
                         "| student metadistil | 90.0 | 5 | 170 | 120 | – |"]  # fmt: skip


def test_rows_are_named_by_their_flags_and_take_the_first_ones_teachers():
    rows = results.variants("some", "--task sst2", "--methods kd", ["--methods metadistil --alpha 0.1", "--methods metadistil "], ["--epochs 3"])
    assert list(rows) == ["plain", "alpha-0.1", "metadistil", "epochs-3"]
    assert rows["alpha-0.1"] == "--task sst2 --teacher runs/results/some/plain/seed{seed}/teacher-before.pt --methods metadistil --alpha 0.1"
    assert rows["epochs-3"] == "--task sst2 --epochs 3"
    for study, rows in results.studies().items():  # every row is one that train.py takes, after the rows it depends on
        for row, flags in rows.items():
            train.check(train.Config(**train.parse(flags.split())))
            taken = [other for other in rows if f"/{study}/{other}/" in flags]
            assert all(list(rows).index(other) < list(rows).index(row) for other in taken)


PRINTED = [(results.table, "noise"), *((results.overview, study) for study in ("reviews", "right", "scratch", "improving", "cifar")),
           *((results.overview, study, "dev") for study in ("cola", "mrpc")),
           *((results.costs, study) for study in ("reviews", "improving", "cola", "mrpc"))]  # fmt: skip


def test_the_readme_prints_what_is_on_record():
    readme = (results.ROOT / "README.md").read_text().splitlines()
    assert {study for study, _ in results.read_found()} == {study for _, study, *_ in PRINTED}
    for show, *what in [*PRINTED, (results.answer,)]:
        assert {*show(*what).splitlines()[2:]} <= {*readme}, what


@pytest.mark.parametrize("kind", results.WRONG)
def test_a_spoilt_teacher_is_the_same_network_that_misreads(tmp_path, kind):
    train.main(f"{SMALL} --teacher micro --methods finetune --seeds 1 --out {tmp_path / 'run'}".split())
    results.spoil(path := tmp_path / "run" / "seed0" / "teacher-before.pt", kind)
    (network, whole), (twin, spoilt) = (models.read_saved(p) for p in (path, path.with_name(f"teacher-{kind}.pt")))
    assert all(map(torch.equal, network.state_dict().values(), twin.state_dict().values())) and twin.config == network.config
    before, after = (data.Tokenizer.from_str(saved["tokenizer"]).get_vocab() for saved in (whole, spoilt))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert [after[token] for token in special] == [before[token] for token in special]
    if kind == "other-ids":
        assert sorted(after.values()) == sorted(before.values()) and sum(before[t] != after[t] for t in before) > 0.9 * len(before)
    else:
        assert after.items() < before.items() and len(after) == 4 + (len(before) - 4) // 2


def test_a_row_that_fails_stops_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FOUND", tmp_path / "results.jsonl")
    with pytest.raises(results.subprocess.CalledProcessError):
        results.run_study("noise", {"plain-0": "--task nothing"}, 1)
    assert not results.FOUND.exists()


def test_sst2_gets_a_test_set_out_of_its_training_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    lines = [f"sentence {n}\t{n % 2}\n" for n in range(3000)]
    (folder / "train.tsv").write_text("".join(["sentence\tlabel\n", *lines]))
    (folder / "dev.tsv").write_text("sentence\tlabel\na dev sentence\t1\n")
    results.prepare()
    task = results.train.data.load_task("sst2", "runs/results/glue", 100)
    assert len(task.test) == 2000 and len(task.train) + len(task.quiz) == 1000


def test_what_is_told_is_what_the_meta_gradient_says_of_the_right_class(tmp_path):
    flags = f"{SMALL} --teacher micro --methods kd --label-noise 0.3 --warmup-epochs 2 --out {tmp_path / 'run'}"
    train.main(flags.split())
    config = told.settings_of(str(tmp_path / "run"))
    stage = train.Stage(context := train.Seed(config, 0), "metadistil")
    truth = dict(zip(context.task.train.texts, dataclasses.replace(config, label_noise=0.0).load(0).train.labels))
    truth = np.array([truth[text] for text in context.task.train.texts])
    (accuracy, *shares), n = told.told(stage, truth, batches=1), len(truth)
    assert accuracy == context.scores(stage.student, "dev")["dev accuracy"]
    rows = data.batches_of(context.encoded["student"]["train+quiz"].lengths[:n], config.batch_size, 0, told.FAR)[0]
    settings, trace = {"pilot_lr": config.pilot_lr, "loss": stage.loss}, {}
    batch, quiz = context.batch(rows), context.quiz(told.FAR)
    metadistil.meta_gradient(stage.student, stage.teachers, batch, quiz, trace=trace, **settings)
    raised = -trace["teacher_logits_gradient"].numpy()[np.arange(len(rows)), truth[rows]]  # the teacher goes against it
    wrong = context.task.train.labels[rows] != truth[rows]
    assert shares[::2] == pytest.approx([(raised[wrong == label] > 0).mean() for label in (False, True)])
    assert 0 < wrong.mean() < 1 and shares[0] != shares[1]
    found = told.warm_up(config, 0)
    assert np.shape(found) == (3, 5) and found[0][0] == accuracy
    assert told.table(np.array([found, found])).splitlines()[2].startswith(f"| 0 | {100 * accuracy:.1f} ± 0.0 |")


@pytest.fixture(scope="module")
def taught_run(tmp_path_factory):
    """A run with kd and metadistil, its configuration and its scores: {title: {"dev accuracy": ...}}."""
    flags = f"{SMALL} --teacher tiny --methods kd,metadistil --seeds 1 --epochs 9 --teacher-lr 0.01"
    out = tmp_path_factory.mktemp("taught") / "run"
    train.main([*flags.split(), "--out", str(out)])
    config, journal = train.read_journal(str(out))
    return config, {title: seeds[0]["scores"] for title, seeds in journal["results"].items()}


def test_without_an_idea_it_is_metadistil_as_train_has_it(taught_run):
    config, scores = taught_run
    found = honest.scores_of("as-it-is", config, 0)
    assert found == {title: scores[title] for title in ("student metadistil", "teacher after metadistil")}
    lines = honest.table({"as-it-is": [found] * 2}, [scores["student kd"]] * 2).splitlines()
    mean = train.spread(np.array([scores["student metadistil"]["dev accuracy"]] * 2))
    difference = 100 * (scores["student metadistil"]["dev accuracy"] - scores["student kd"]["dev accuracy"])
    assert lines[3].startswith(f"| as-it-is | {mean}; {difference:+.1f} [")


RATE = 1e5  # far too much, but then rounding is far below what moves


def first_step(config, idea, settings=lambda config: config):
    """(stage, {name: its gradient}) of the teacher in the first step by the idea, where SGD has the rate RATE."""
    plain = {"teacher_optimizer": "sgd", "teacher_schedule": "falls", "teacher_lr": RATE}
    stage = honest.begin(idea, settings(dataclasses.replace(config, **plain)), 0)
    (teacher,) = stage.teachers
    before = {name: theta.detach().clone() for name, theta in teacher.named_parameters()}
    stage.step(0, None)
    return stage, {name: (before[name] - theta.detach()) / RATE for name, theta in teacher.named_parameters()}


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_the_label_loss_pulls_as_hard_as_the_quiz(taught_run):
    (stage, ours), (_, usual) = (first_step(taught_run[0], idea) for idea in ("label-loss", "as-it-is"))
    teacher = stage.context.network("teacher", "teacher-before").eval()
    (inputs,), labels = stage.context.quiz(0)
    own = torch.autograd.grad(metadistil.hard_loss(teacher(**inputs), labels), list(teacher.parameters()), materialize_grads=True)
    added = flat(ours.values()) - flat(usual.values())
    assert added.norm().item() == pytest.approx(flat(usual.values()).norm().item(), rel=1e-3)
    assert torch.cosine_similarity(added, flat(own), dim=0) == pytest.approx(1, abs=1e-4)


def test_what_is_told_less_the_mean_shifts_nothing_of_all_answers(taught_run):
    (stage, ours), (_, usual) = (first_step(taught_run[0], idea) for idea in ("less-the-mean", "as-it-is"))
    student, teacher = stage.context.network("student"), stage.context.network("teacher", "teacher-before")
    batch, trace = stage.batch(0), {}
    settings = {"pilot_lr": stage.config.pilot_lr, "loss": stage.loss, "trace": trace}
    metadistil.meta_gradient(student, teacher, batch, stage.context.quiz(0), **settings)
    message = trace["teacher_logits_gradient"]
    heard = (teacher.eval()(**batch[0]) * (message - message.mean(dim=0))).sum()
    expected = torch.autograd.grad(heard, list(teacher.parameters()), materialize_grads=True)
    assert (flat(ours.values()) - flat(expected)).norm() < 1e-2 * flat(expected).norm()
    bias = "network.classifier.bias"  # it alone shifts all answers alike
    assert ours[bias].norm() < 1e-3 * usual[bias].norm()


def test_the_last_layer_alone_moves(taught_run):
    _, moved = first_step(taught_run[0], "last-layer")
    moved = {name.removeprefix("network.") for name, gradient in moved.items() if gradient.any()}
    assert moved and {name.split(".")[0] for name in moved} <= {"blocks", "pooler", "classifier"}
    assert not any(name.startswith("blocks.0") for name in moved) and any(name.startswith("blocks.1") for name in moved)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_by_clipped_sgd_a_teacher_goes_as_far_as_its_gradient_is_long_and_no_farther(taught_run, monkeypatch, share):
    usual = flat(first_step(taught_run[0], "as-it-is")[1].values())
    monkeypatch.setattr(honest, "LONGEST", share * usual.norm().item())
    expected = min(share, 1) * honest.SGD_TIMES * usual
    moved = flat(first_step(taught_run[0], "clipped-sgd", honest.clipped_sgd)[1].values())
    assert (moved - expected).norm() < 1e-3 * expected.norm()
    walked = flat(first_step(taught_run[0], "random-walk", honest.clipped_sgd)[1].values())  # as long, and leads elsewhere
    assert walked.norm().item() == pytest.approx(expected.norm().item(), rel=1e-3)
    assert abs(torch.cosine_similarity(walked, usual, dim=0)) < 0.1


def test_a_teacher_goes_back_to_where_the_held_out_quiz_liked_it_best(taught_run, monkeypatch):
    stage, scores = honest.begin("held-out", taught_run[0], 0), iter([0.5, 0.4, 0.6, 0.3, 0.6, 0.2, 0.1, 0.3])
    monkeypatch.setattr(stage.context, "scores", lambda reader, split: {split: next(scores)})
    labels = stage.task.quiz.labels[-6:]
    next(epochs := honest.held_out(stage))
    for splits in stage.context.encoded.values():
        assert len(splits["train+quiz"].labels) == 74 and splits["held-out"].labels.tolist() == labels.tolist()
    theta, seen = stage.teachers[0].network.classifier.weight, []
    for k in range(9):
        stage.step(k, None)
        seen.append(theta.detach().clone())
        next(epochs, None)
    assert torch.equal(theta, seen[1]) and torch.equal(seen[7], seen[1]) and not torch.equal(seen[6], seen[1])


def test_the_ideas_as_a_command_on_a_run_that_knows_no_metadistil(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "run")
    train.main(f"{SMALL} --teacher micro --methods kd --seeds 1 --out {out}".split())
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["honest.py", out, "label-loss", "held-out", "--epochs", "1", "--learn-quiz"])
    honest.main()
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| kd", "| label-loss", "| held-out"]
    assert title.count("student metadistil") == title.count("teacher after metadistil") == 2


@pytest.mark.parametrize(("script", "arguments", "expected"), [
    ("honest.py", [], "expected the checkpoint of a run"),
    ("told.py", ["nowhere"], "nowhere/checkpoint.pt: expected the checkpoint of a run"),
    ("honest.py", ["{run}", "as-it-is", "--seeds", "2"], "expected a finished run whose kd has 2 seed(s), found 1"),
    ("honest.py", ["{run}", "--beta", "5"], "--beta: none of --methods kd,metadistil,metadistil heeds it"),
])  # fmt: skip
def test_a_run_that_will_not_do_ends_in_one_line(taught_run, script, arguments, expected):
    command = [sys.executable, str(results.ROOT / "notebooks" / script), *(word.format(run=taught_run[0].out) for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
