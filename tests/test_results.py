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

import data
import honest
import metadistil
import models
import results
import told
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
    """By hand: 2 epochs of labels at 10 s, then 3 of kd at 20 s, or 4 of metadistil at 50 s; means over two seeds."""
    curves = {"student finetune": [[0.5] * 6, [0.5] * 6], "student kd": [[0.5, 0.6, 0.6, 0.8, 0.7], [0.5, 0.6, 0.6, 0.8, 0.7]],
              "student metadistil": [[0.5, 0.6, 0.7, 0.7, 0.9, 0.8], [0.5, 0.6, 0.7, 0.9, 0.9, 0.9]]}  # fmt: skip
    seconds = {"student finetune": [50, 70], "student kd": [80, 80], "student metadistil": [200, 240]}
    models = {title: {"by_epoch": curves[title], "seconds": seconds[title], "peak_mb": [401, 502]} for title in curves}
    entries = [{"study": "s", "row": "plain", "warmup_epochs": 2, "models": dict(list(models.items())[:2])},
               {"study": "s", "row": "metadistil", "warmup_epochs": 2, "models": dict(list(models.items())[2:])}]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "read_found", lambda: {("s", entry["row"]): entry for entry in entries})
        lines = results.costs("s").splitlines()
    assert lines[2:] == ["| student finetune | 50.0 | 1 | 10 | – | 401 |", "| student kd | 80.0 | 4 | 60 | 60 | 401 |",
                         "| student metadistil | 90.0 | 5 | 170 | 120 | 401 |"]  # fmt: skip


def test_rows_are_named_by_their_flags_and_take_the_first_ones_teachers():
    rows = results.variants("some", "--task sst2", "--methods kd", ["--methods metadistil --alpha 0.1", "--methods metadistil "], ["--epochs 3"])
    assert list(rows) == ["plain", "alpha-0.1", "metadistil", "epochs-3"]
    assert rows["alpha-0.1"] == "--task sst2 --teacher runs/results/some/plain/seed{seed}/teacher-before.pt --methods metadistil --alpha 0.1"
    assert rows["epochs-3"] == "--task sst2 --epochs 3"
    for study, rows in results.studies().items():  # every row is one that train.py takes, after the rows it depends on
        for row, flags in rows.items():
            assert set(train.parse(flags.split())) <= {*train.Config.__dataclass_fields__}
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
    (_, whole), (_, spoilt) = (models.read_saved(p) for p in (path, path.with_name(f"teacher-{kind}.pt")))
    assert all(map(torch.equal, whole["weights"].values(), spoilt["weights"].values()))
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
    config, _ = train.read_journal(str(tmp_path / "run"))
    context = train.Seed(config, 0)
    truth = dict(zip(context.task.train.texts, train.dataclasses.replace(config, label_noise=0.0).load(0).train.labels))
    truth = np.array([truth[text] for text in context.task.train.texts])
    student, teacher = context.model("student"), context.model("teacher", "teacher-before")
    (accuracy, *shares), n = told.told(context, student, teacher, truth, batches=1), len(truth)
    assert accuracy == context.scores(student, "dev")["dev accuracy"]
    rows = data.batches_of(context.read["student"]["train+quiz"].lengths[:n], config.batch_size, 0, 10**6)[0]
    quiz, trace = context.batch(n + data.sample_quiz(context.task.quiz.labels, config.quiz_batch_size, 0, 10**6)), {}
    settings = {"pilot_lr": config.pilot_lr, "alpha": config.alpha, "temperature": config.temperature}
    metadistil.meta_gradient(student, [teacher], context.batch(rows), quiz, trace=trace, **settings)
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
    found = honest.scores_of(honest.as_it_is, config, 0)
    assert found == {title: scores[title] for title in ("student metadistil", "teacher after metadistil")}
    lines = honest.table({"as-it-is": [found] * 2}, [scores["student kd"]] * 2).splitlines()
    mean = train.spread(np.array([scores["student metadistil"]["dev accuracy"]] * 2))
    difference = 100 * (scores["student metadistil"]["dev accuracy"] - scores["student kd"]["dev accuracy"])
    assert lines[3].startswith(f"| as-it-is | {mean}; {difference:+.1f} [")


def test_the_label_loss_pulls_as_hard_as_the_quiz(taught_run):
    context = train.Seed(taught_run[0], 0)
    teacher, batch = context.model("teacher", "teacher-before"), context.batch(np.arange(60, 80))
    before = metadistil.hard_loss(teacher.eval()(**batch[0]), batch[1])
    own = torch.autograd.grad(before, list(teacher.parameters()), materialize_grads=True)
    for theta in teacher.parameters():
        theta.grad = torch.full_like(theta, 1e-6)
    honest.add_label_loss(teacher, batch)
    added = [theta.grad - 1e-6 for theta in teacher.parameters()]
    assert honest.length(added) == pytest.approx(1e-6 * sum(theta.numel() for theta in teacher.parameters()) ** 0.5, rel=1e-3)
    cosine = sum((a * b).sum() for a, b in zip(added, own)) / honest.length(added) / honest.length(own)
    assert cosine == pytest.approx(1, abs=1e-4)


def test_what_is_told_less_the_mean_shifts_nothing_of_all_answers(taught_run, monkeypatch):
    heard, through = [], metadistil.through_teachers
    monkeypatch.setattr(metadistil, "through_teachers", lambda *given: heard.append(given[3][0]) or through(*given))
    for idea in (honest.as_it_is, honest.less_the_mean):
        *_, step, _ = idea(train.Seed(taught_run[0], 0))
        step(0, None)
    assert torch.equal(heard[0] - heard[0].mean(dim=0), heard[1])
    assert heard[0].mean(dim=0).norm() > 0.1 * heard[0].norm(dim=1).mean()


def test_the_last_layer_alone_moves(taught_run):
    context = train.Seed(taught_run[0], 0)
    learners, _, step, _ = honest.last_layer(context)
    step(0, None)
    was = context.model("teacher", "teacher-before").state_dict()
    moved = {name for name, theta in learners["teacher after metadistil"].state_dict().items() if not torch.equal(theta, was[name])}
    assert moved and {name.split(".")[0] for name in moved} <= {"blocks", "pooler", "classifier"}
    assert not any(name.startswith("blocks.0") for name in moved) and any(name.startswith("blocks.1") for name in moved)


def test_by_clipped_sgd_a_teacher_goes_as_far_as_its_gradient_is_long_and_no_farther(taught_run, monkeypatch):
    RATE = 10.0  # far too much, but then rounding is far below what moves

    def moved(longest):
        monkeypatch.setattr(honest, "LONGEST", longest)
        learners, _, step, _ = honest.clipped_sgd(train.Seed(dataclasses.replace(taught_run[0], teacher_lr=RATE), 0))
        theta_T = [*learners["teacher after metadistil"].parameters()]
        before = [theta.detach().clone() for theta in theta_T]
        step(0, trace := {})
        return [was - theta.detach() for was, theta in zip(before, theta_T)], [*trace["meta_gradient"].values()]

    free, gradients = moved(1e9)
    length = honest.length(gradients).item()
    assert honest.length(free) == pytest.approx(honest.SGD_TIMES * RATE * length, rel=1e-3)
    for share in (0.5, 2.0):
        off = [ours - min(share, 1) * honest.SGD_TIMES * RATE * gradient for ours, gradient in zip(moved(share * length)[0], gradients)]
        assert honest.length(off) < 1e-3 * honest.length(free)


def test_a_random_walk_is_as_long_and_leads_elsewhere():
    heard, theta_T = [torch.full((300, 2), 0.1), torch.full((400,), 0.1)], [torch.zeros(300, 2), torch.zeros(400)]
    for longest in (0.3, 100.0):
        for theta, gradient in zip(theta_T, heard):
            theta.grad = gradient.clone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(honest, "LONGEST", longest)
            honest.clip(theta_T, torch.Generator().manual_seed(0))
        walked = [theta.grad for theta in theta_T]
        assert honest.length(walked) == pytest.approx(min(longest, honest.length(heard).item()), rel=1e-5)
        cosine = sum((a * b).sum() for a, b in zip(walked, heard)) / honest.length(walked) / honest.length(heard)
        assert abs(cosine) < 0.1


def test_a_teacher_goes_back_to_where_the_held_out_quiz_liked_it_best(taught_run, monkeypatch):
    context, scores = train.Seed(taught_run[0], 0), iter([0.5, 0.4, 0.6, 0.3, 0.6, 0.2, 0.1, 0.3])
    monkeypatch.setattr(context, "scores", lambda model, split: {split: next(scores)})
    held_out = context.task.quiz.labels[-6:]
    learners, _, step, after_epoch = honest.held_out(context)
    for splits in context.read.values():
        assert len(splits["train+quiz"].labels) == 74 and splits["held-out"].labels.tolist() == held_out.tolist()
    theta, seen = learners["teacher after metadistil"].classifier.weight, []
    for k in range(9):
        step(k, None)
        seen.append(theta.detach().clone())
        after_epoch()
    assert torch.equal(theta, seen[1]) and torch.equal(seen[7], seen[1]) and not torch.equal(seen[6], seen[1])


def test_the_ideas_as_a_command(taught_run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["honest.py", taught_run[0].out, "label-loss", "held-out", "--epochs", "1", "--learn-quiz"])
    honest.main()
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| kd", "| label-loss", "| held-out"]
    assert title.count("student metadistil") == title.count("teacher after metadistil") == 2


@pytest.mark.parametrize(("script", "arguments", "expected"), [
    ("honest.py", [], "expected the checkpoint of a run"),
    ("told.py", ["nowhere"], "nowhere/checkpoint.pt: expected the checkpoint of a run"),
    ("honest.py", ["{run}", "as-it-is", "--seeds", "2"], "expected a finished run whose kd has 2 seed(s), found 1"),
])  # fmt: skip
def test_a_run_that_will_not_do_ends_in_one_line(taught_run, script, arguments, expected):
    command = [sys.executable, str(results.ROOT / "notebooks" / script), *(word.format(run=taught_run[0].out) for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
