"""The record of results: rows run once, after those they take models from; RESULTS.md is what the record says."""

import json
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, shaken

sys.path[:0] = [str(ROOT / "notebooks" / "results")]

import methods
import results

import metadistil
import models
import train

pytest.importorskip("matplotlib").use("agg")
import report

SMALL = ("--task sst2 --data builtin --train-size 60 --quiz-size 20 --student micro --teacher-epochs 1 --warmup-epochs 0"
         " --epochs 1 --seeds 2")  # fmt: skip
TAUGHT = results.taught("noise", "plain-0.4")
ROWS = {"plain-0.4": f"{SMALL} --teacher micro --methods finetune,kd",
        "metadistil-0.4": f"{SMALL} --teacher {TAUGHT} --methods metadistil",
        "less-the-mean": f"{SMALL} --teacher {TAUGHT} --methods less-the-mean"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which three rows have been run, two of them with the teachers of the first; one is an idea."""
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(results, "FOUND", folder / "results.jsonl")
        results.run_study("noise", ROWS, 2)
    return folder


@pytest.fixture()
def found(folder, monkeypatch):
    """What these rows found."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(results, "FOUND", folder / "results.jsonl")
    monkeypatch.setattr(results, "studies", lambda: {"noise": ROWS})
    return results.read_found()


@pytest.mark.slow
def test_rows_run_once_and_are_noted(found, monkeypatch):
    assert sorted(found) == sorted(("noise", row) for row in ROWS)
    monkeypatch.setattr(results, "run_row", lambda *_: pytest.fail("run twice"))
    results.run_study("noise", ROWS, 2)
    entry = found["noise", "metadistil-0.4"]
    assert entry["command"] == f"python train.py {ROWS['metadistil-0.4']} --out runs/results/noise/metadistil-0.4"
    assert found["noise", "less-the-mean"]["command"].startswith("python notebooks/methods.py --task sst2")
    finished = train.resume("runs/results/noise/metadistil-0.4").results
    assert results.results_of(train.read_run("runs/results/noise/metadistil-0.4")[0]) == finished
    for title, seeds in finished.items():
        noted = entry["models"][title]
        for name in seeds[0]["scores"]:
            assert np.allclose(noted[name], [seed["scores"][name] for seed in seeds], atol=1e-6)
        assert [len(of) for of in noted["by_epoch"]] == [len(seed["by_epoch"]) for seed in seeds]
    handed = entry["models"]["teacher before"]["dev accuracy"]
    assert handed == found["noise", "plain-0.4"]["models"]["teacher before"]["dev accuracy"]


@pytest.mark.slow
def test_a_row_whose_teachers_are_gone_has_them_trained_again(found, monkeypatch):
    run = []
    monkeypatch.setattr(results, "run_row", lambda study, row, flags: run.append(row))
    monkeypatch.setattr(results, "noted", lambda *_: {"study": "noise", "row": "new"})
    monkeypatch.setattr(results, "FOUND", Path("other.jsonl"))
    Path("other.jsonl").write_text(json.dumps({"study": "noise", "row": "plain-0.4"}) + "\n")
    results.run_study("noise", {"plain-0.4": "--methods kd", "new": f"--teacher {TAUGHT} --methods metadistil"}, 1)
    assert run == ["plain-0.4", "new"]
    noted = [json.loads(line)["row"] for line in Path("other.jsonl").read_text().splitlines()]
    assert noted == ["plain-0.4", "new"]  # what stands there is not noted twice


@pytest.mark.slow
def test_the_tables_compare_with_kd_seed_by_seed(found):
    ours, kd = (report.scores("noise", *of) for of in (("metadistil-0.4", "student metadistil"), ("plain-0.4", "student kd")))
    assert len(ours) == 2
    lines = {line.split("|")[1].strip(): line for line in report.noise().splitlines()}
    assert f"| {train.spread(ours)}; {train.paired_difference(ours, kd)}" in lines["metadistil"]
    assert "student on the quiz alone" not in lines  # not run, so not printed
    title, _, plain, taught, idea = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.overview("noise").splitlines()]
    assert title[1:] == ["teacher before", "student finetune", "student kd", "student metadistil", "teacher after metadistil", "minutes"]
    assert plain[1] == train.spread(report.scores("noise", "plain-0.4", "teacher before")) and plain[3] == train.spread(kd)
    assert taught[1:5] == ["", "", "", f"{train.spread(ours)}; {train.paired_difference(ours, kd)}"]  # a teacher taken over
    of_idea = report.scores("noise", "less-the-mean", "student metadistil")
    assert idea[0] == "less-the-mean" and idea[4] == f"{train.spread(of_idea)}; {train.paired_difference(of_idea, kd)}"


def test_an_idea_stands_under_metadistils_titles_and_pkd_under_its_own(monkeypatch):
    titles = ["teacher before", *(f"{whose} {name}" for name in methods.METHODS for whose in ("student", "teacher after"))]
    monkeypatch.setattr(results, "read_found", lambda: {("s", title): {"models": {title: {}}} for title in titles})
    own = {"student pkd", "teacher after pkd", "student metadistil-pkd", "teacher after metadistil-pkd"}
    assert {*report.models_of("s", *titles)} == own | {"teacher before", "student metadistil", "teacher after metadistil"}


@pytest.mark.slow
def test_the_figure_shows_the_differences(found):
    ours, kd = (report.scores("noise", *of) for of in (("metadistil-0.4", "student metadistil"), ("plain-0.4", "student kd")))
    drawn = {bars.get_label(): bars[0].get_ydata() for bars in report.label_noise().axes[1].containers}
    assert drawn["metadistil"] == pytest.approx(100 * (ours - kd).mean()) and drawn["kd"] == 0 and len(drawn) == 3


def test_the_dynamics_end_where_the_scores_on_dev_are():
    axes = {ax.get_title(): ax for ax in report.dynamics().axes if ax.get_title()}
    assert axes.keys() == report.DYNAMICS.keys()
    for title, (study, *rows) in report.DYNAMICS.items():
        drawn = {line.get_label(): line.get_ydata() for line in axes[title].lines}
        for model in ("student metadistil", "teacher after metadistil"):
            last = 100 * report.scores(study, rows[-1], model, "dev").mean()
            assert drawn[model][-1] == pytest.approx(last, abs=0.02) and len(drawn[model]) > 2


@pytest.mark.slow
def test_the_template_is_filled_in(found, tmp_path, monkeypatch):
    (tmp_path / "template.md").write_text(
        "It is {{compare noise metadistil-0.4 student metadistil / plain-0.4 student kd}}.\n{{answer}}\n{{mean noise plain-0.4 student kd}}"
        "\n{{compare noise shared-0.4 student metadistil / plain-0.4 student kd}}\n{{change noise metadistil-0.4 teacher after metadistil / plain-0.4 teacher before}}"
    )
    monkeypatch.setattr(report, "HERE", tmp_path)
    ours, kd = (report.scores("noise", *of) for of in (("metadistil-0.4", "student metadistil"), ("plain-0.4", "student kd")))
    after, before = (report.scores("noise", *of) for of in (("metadistil-0.4", "teacher after metadistil"), ("plain-0.4", "teacher before")))
    first, *_, answer, mean, not_run, moved = report.page().splitlines()
    assert first == f"It is {report.verdict(ours, kd)}, {train.paired_difference(ours, kd)}."
    assert answer.startswith("| SST-2, pretrained, 40% wrong | test accuracy |") and report.difference(ours, kd) in answer
    assert mean == train.spread(kd) and not_run == "not run" and moved == train.paired_difference(after, before)


@pytest.mark.slow
def test_rows_that_the_record_lacks_are_named(found, monkeypatch):
    monkeypatch.setattr(results, "studies", lambda: {"noise": ROWS | {"new": "", "newer": ""}, "other": {"plain": ""}})
    assert report.not_run() == "- `noise`: `new`, `newer`\n- `other`: `plain`"


def test_what_a_best_score_costs(monkeypatch):
    """By hand: 2 epochs of labels at 10 s, then 3 of kd at 20 s, or 4 of metadistil at 50 s; means over two seeds."""
    curves = {"student finetune": [[0.5] * 6, [0.5] * 6], "student kd": [[0.5, 0.6, 0.6, 0.8, 0.7], [0.5, 0.6, 0.6, 0.8, 0.7]],
              "student metadistil": [[0.5, 0.6, 0.7, 0.7, 0.9, 0.8], [0.5, 0.6, 0.7, 0.9, 0.9, 0.9]]}  # fmt: skip
    seconds = {"student finetune": [50, 70], "student kd": [80, 80], "student metadistil": [200, 240]}
    models = {title: {"by_epoch": curves[title], "seconds": seconds[title]} for title in curves}
    entries = [{"study": "s", "row": "plain", "warmup_epochs": 2, "models": dict(list(models.items())[:2])},
               {"study": "s", "row": "metadistil", "warmup_epochs": 2, "models": dict(list(models.items())[2:])}]  # fmt: skip
    monkeypatch.setattr(results, "read_found", lambda: {("s", entry["row"]): entry for entry in entries})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.costs("s").splitlines()]
    assert rows[2:] == [["student finetune", "50.0", "1", "10", "–"], ["student kd", "80.0", "4", "60", "60"],
                        ["student metadistil", "90.0", "5", "170", "120"]]  # fmt: skip


def test_rows_are_named_by_their_flags_and_take_the_first_ones_teachers():
    rows = results.variants("some", "--task sst2", "--methods kd", ["--methods metadistil --alpha 0.1", "--methods metadistil "], ["--epochs 3"])
    assert list(rows) == ["plain", "alpha-0.1", "metadistil", "epochs-3"]
    assert rows["alpha-0.1"] == "--task sst2 --teacher runs/results/some/plain/seed{seed}/teacher-before.pt --methods metadistil --alpha 0.1"
    assert rows["epochs-3"] == "--task sst2 --epochs 3"


# What each program knows: importing `methods` has added its own to train.METHODS.
KNOWN = {"train.py": {name: method for name, method in train.METHODS.items() if name not in methods.METHODS},
         "notebooks/methods.py": train.METHODS}  # fmt: skip


def checked(words, monkeypatch):
    """The configuration of a command, as its own program accepts it."""
    script, *given = words
    assert (ROOT / script).is_file()
    monkeypatch.setattr(train, "METHODS", KNOWN[script])
    config = train.Config(**train.DEFAULTS["files"] | train.parse(given))
    methods = train.checked_methods(config.methods)
    for field in train.dataclasses.fields(config):
        if field.name in train.parse(given):
            train.checked(field, getattr(config, field.name), methods)
    return config


@pytest.mark.parametrize("study", results.studies())
def test_every_row_is_a_command_that_works_after_the_rows_it_depends_on(study, monkeypatch):
    rows = results.studies()[study]
    for row, flags in rows.items():
        checked(results.command_of(study, row, flags), monkeypatch)
        taken = [other for other in rows if f"/{study}/{other}/" in flags]
        assert all(list(rows).index(other) < list(rows).index(row) for other in taken)


@pytest.mark.parametrize("study, row", results.read_found())
def test_every_command_of_the_record_is_one_of_todays(study, row, monkeypatch):
    """Its program accepts it, is the one that the study would run, and trains the networks that the record shows."""
    entry = results.read_found()[study, row]
    python, *words = shlex.split(entry["command"])
    config = checked(words, monkeypatch)
    script, *_ = results.command_of(study, row, results.studies()[study][row])
    assert (python, words[0], config.out) == ("python", script, f"runs/results/{study}/{row}")
    _, *teachers = config.sources(0)
    titles = [f"{teacher} before" for teacher in teachers]
    for name in config.methods.split(","):
        titles.append(f"student {name}")
        titles += [f"{teacher} after {name}" for teacher in teachers if train.METHODS[name].teacher == "learning"]
    assert [*entry["models"]] == titles
    assert {len(model["seconds"]) for model in entry["models"].values()} == {config.seeds}


def test_the_page_of_results_is_what_the_record_says():
    assert (report.HERE / "RESULTS.md").read_text(encoding="utf-8") == report.page()
    recorded = {study for study, _ in results.read_found()}
    assert recorded <= {*results.studies()}
    template = (report.HERE / "template.md").read_text(encoding="utf-8")
    for study in recorded:
        assert "{{noise}}" in template if study == "noise" else f"{{{{overview {study}" in template
        assert f"{{{{commands {study}}}}}" in template
    prose = re.sub(r"\{\{.*?\}\}", "", template)
    assert not re.search(r"(?<!\w)[-+±]\d|± |\d\.\d", prose)  # numbers of results come from the record


def test_what_the_page_says_without_a_number_is_so():
    def verdict(study, row, title, other, rival):
        return report.verdict(report.scores(study, row, title), report.scores(study, other, rival))

    student, kd, after, before = "student metadistil", "student kd", "teacher after metadistil", "teacher before"
    for row in ("quiz-size-100", "quiz-size-180", "quiz-size-1000"):  # "no gain that is shown"
        assert verdict("reviews", row, student, row, kd) == "level"
    assert verdict("reviews", "teacher-epochs-160", after, "teacher-epochs-160", before) == "level"
    for row in ("alpha-0.1", "alpha-0.3"):
        assert verdict("reviews", row, student, "metadistil", student) == "behind"
    for row in ("temperature-1", "temperature-4", "temperature-8"):
        assert verdict("reviews", row, student, "metadistil", student) == verdict("reviews", row, kd, "plain", kd) == "level"
    for row in ("meta-every-4", "teacher-lr-1e-4"):
        assert report.scores("right", row, after).mean() > report.scores("right", "metadistil", after).mean()
    assert verdict("reviews", "alpha-0.1", after, "plain", before) == "behind"
    assert report.scores("reviews", "alpha-0.1", after).mean() < 0.5
    helps = [about for about, (study, row, *_) in report.ANSWERS.items() if verdict(study, row, kd, row, "student finetune") == "ahead"]
    assert helps == ["CIFAR-100, a fifth of it"]
    gains = [report.scores("ideas", row, student) - report.scores("ideas", "plain", kd) for row in ("no-pilot", "metadistil")]
    assert gains[0].mean() > 0.5 * gains[1].mean()  # "most of the gain needs no pilot"
    by_epoch = results.read_found()["mrpc", "plain"]["models"][student]["by_epoch"]
    assert np.mean(by_epoch, axis=0).argmax() == 0
    assert verdict("cifar", "plain", after, "plain", before) == "level"
    assert verdict("ideas", "own-job-1", student, "plain", kd) == "behind"  # "so it is not the default"
    compressed = [(layers, student, layers, kd) for layers in ("3", "2", "1")] + [("3-1-kd", kd, "1", kd), ("3-1-metadistil", student, "1", student)]
    compressed += [(row, student, "3", kd) for row in results.OWN_JOB] + [("mutual", student, "3", kd)]
    assert {verdict("compression", *pair) for pair in compressed} == {"level"}  # "none of these rows shows a difference"
    trial = {w: report.scores("own-mrpc", f"trial-{w}", student, "dev").mean() for w in ("0.3", "1", "3")}
    assert max(trial, key=trial.get) == "1"
    shared = [(study, "learn-quiz", "plain") for study in ("reviews", "right", "own-mrpc", "own-sst2")]
    shared += [("noise", f"shared-{share}", f"plain-{share}") for share in ("0", "0.3", "0.4")]
    found = {(study, row) for study, row, plain in shared if verdict(study, row, student, plain, kd) != "level"}
    assert found == {("own-sst2", "learn-quiz"), ("noise", "shared-0.4")}
    assert {study for study, row in results.read_found() if "learn-quiz" in row or "shared" in row} == {study for study, *_ in shared}
    assert verdict("own-sst2", "learn-quiz", student, "plain", kd) == "ahead"
    assert (verdict("reviews", "learn-quiz", student, "plain", kd), verdict("reviews", "metadistil", student, "plain", kd)) == ("level", "ahead")


@pytest.mark.parametrize("kind", results.WRONG)
def test_a_spoilt_teacher_is_the_same_network_that_misreads(tmp_path, kind):
    train.main(f"{SMALL} --teacher micro --methods finetune --seeds 1 --out {tmp_path / 'run'}".split())
    results.spoil(path := tmp_path / "run" / "seed0" / "teacher-before.pt", kind)
    whole, spoilt = (models.load(p) for p in (path, path.with_name(f"teacher-{kind}.pt")))
    assert all(map(torch.equal, whole.state_dict().values(), spoilt.state_dict().values()))
    assert (whole.network.config, whole.labels, whole.columns) == (spoilt.network.config, spoilt.labels, spoilt.columns)
    before, after = (model.tokenizer.get_vocab() for model in (whole, spoilt))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert [after[token] for token in special] == [before[token] for token in special]
    if kind == "other-ids":
        assert sorted(after.values()) == sorted(before.values()) and sum(before[t] != after[t] for t in before) > 0.9 * len(before)
    else:
        assert after.items() < before.items() and len(after) == 4 + (len(before) - 4) // 2


@pytest.mark.slow
def test_a_row_that_fails_stops_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FOUND", tmp_path / "results.jsonl")
    with pytest.raises(RuntimeError, match="noise, plain-0, status 2: train.py: --task nothing"):
        results.run_study("noise", {"plain-0": "--task nothing --methods kd"}, 1)
    assert not results.FOUND.exists()


@pytest.mark.parametrize("stopped_by", [RuntimeError("a row"), KeyboardInterrupt()])
def test_when_a_row_has_failed_no_other_begins(stopped_by, monkeypatch):
    begun = []

    def run_row(study, row, flags):
        begun.append(row)
        raise stopped_by

    monkeypatch.setattr(results, "run_row", run_row)
    monkeypatch.setattr(results, "read_found", dict)
    with pytest.raises(type(stopped_by)):
        results.run_study("noise", {str(n): "--methods kd" for n in range(50)}, 1)
    assert len(begun) < 50


def test_a_row_that_was_killed_is_named_with_its_status(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    killed = types.SimpleNamespace(returncode=-9, stderr="")
    monkeypatch.setattr(results.subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(RuntimeError, match="noise, plain-0, status -9: no message"):
        results.run_row("noise", "plain-0", "--methods kd")


@pytest.mark.slow
@pytest.mark.parametrize("study", ["reviews", "mrpc"])
def test_a_page_without_a_first_row_says_so(study, tmp_path, monkeypatch):
    lines = results.FOUND.read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join(line for line in lines if f'"study": "{study}", "row": "plain"' not in line))
    monkeypatch.setattr(results, "FOUND", tmp_path / "results.jsonl")
    assert len(results.read_found()) == len(lines) - 1
    assert report.costs(study) == "Not run." and f"- `{study}`: `plain`" in report.page()
    assert len([ax for ax in report.dynamics().axes if ax.get_title()]) == len(report.DYNAMICS) - 1


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


def test_ahead_level_behind_by_the_interval():
    theirs, noise = np.array([0.70, 0.72, 0.74]), np.array([0.001, -0.001, 0.0])
    assert report.verdict(theirs + 0.02 + noise, theirs) == "ahead"
    assert report.verdict(theirs - 0.02 + noise, theirs) == "behind"
    assert report.verdict(theirs + noise + 0.0005, theirs) == "level"
    assert report.verdict(theirs[:1] + 0.01, theirs[:1]) == "ahead" and report.verdict(theirs, theirs) == "level"


@pytest.fixture(scope="module")
def taught_run(tmp_path_factory):
    """A run's configuration, whose kd has been trained, and so its teacher."""
    out = tmp_path_factory.mktemp("taught") / "run"
    sizes = {"train_size": 60, "quiz_size": 20, "batch_size": 16, "teacher_epochs": 2, "warmup_epochs": 1, "epochs": 2}
    networks = {"teacher": "tiny", "student": "micro", "methods": "kd"}
    return train.run(train.Config(data="builtin", out=str(out), **sizes, **networks)).config


RATE = 1e5  # far too much, but then rounding is far below what moves


def rows_of(stage, k):
    return stage.rows(k)


def take_step(stage, k):
    """Training step k of a stage, by itself."""
    schedule, rows = train.SCHEDULES[stage.config.schedule], rows_of(stage, k)
    train.set_rate(stage.optimizer, stage.rate * schedule(k, stage.total))
    share = schedule(k - stage.warmup_steps, stage.total - stage.warmup_steps)
    train.set_rate(stage.teacher_optimizer, stage.config.teacher_lr * share)
    stage.method.step(stage, stage.seed.batch(rows, k), rows, k)


def first_step(config, method, **settings):
    """(stage, {name: its gradient}) of the teacher in the first step by the method, where SGD has the rate RATE."""
    plain = {"teacher_optimizer": "sgd", "schedule": "falls", "teacher_lr": RATE, "warmup_epochs": 0, "quiz_batch_size": 8}
    config = train.dataclasses.replace(config, methods="kd,metadistil", **plain | settings)
    stage = train.Stage(train.Seed(train.resolved(config), 0), method)
    (teacher,) = stage.teachers
    before = {name: theta.detach().clone() for name, theta in teacher.named_parameters()}
    take_step(stage, 0)
    return stage, {name: (before[name] - theta.detach()) / RATE for name, theta in teacher.named_parameters()}


def first_batch(stage):
    return stage.seed.batch(rows_of(stage, 0), 0)


def at_first(stage):
    """Student and teacher as they are before the first step."""
    return stage.seed.model("student"), models.load(stage.seed.file("teacher before.pt"))


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("weight", [0.3, 1.0, 3.0])
def test_the_teachers_own_job_pulls_so_many_times_as_hard_as_the_quiz(taught_run, weight):
    name = f"own-job-{weight:g}"
    (stage, ours), (_, usual) = (first_step(taught_run, method) for method in (name, "metadistil"))
    _, teacher = at_first(stage)
    inputs, labels = first_batch(stage)
    own = torch.autograd.grad(metadistil.hard_loss(teacher(**inputs), labels), list(teacher.parameters()), materialize_grads=True)
    added = flat(ours.values()) - flat(usual.values())
    assert added.norm().item() == pytest.approx(weight * flat(usual.values()).norm().item(), rel=1e-3)
    assert torch.cosine_similarity(added, flat(own), dim=0) == pytest.approx(1, abs=1e-4)
    if weight == 1:  # its control does the same with the quiz unheard
        _, alone = first_step(taught_run, "own-job-1-alone")
        assert (flat(alone.values()) - added).norm() < 1e-3 * added.norm()


def test_less_the_mean_shifts_nothing_of_all_answers(taught_run):
    (stage, ours), (_, usual) = (first_step(taught_run, method) for method in ("less-the-mean", "metadistil"))
    student, teacher = at_first(stage)
    batch, trace = first_batch(stage), {}
    settings = {"pilot_lr": stage.config.pilot_lr, "loss": stage.loss, "trace": trace}
    metadistil.meta_gradient(student, teacher, batch, stage.quiz(0), **settings)
    message = trace["teacher_logits_gradient"]
    heard = (teacher(**batch[0]) * (message - message.mean(dim=0))).sum()
    expected = torch.autograd.grad(heard, list(teacher.parameters()), materialize_grads=True)
    assert (flat(ours.values()) - flat(expected)).norm() < 1e-2 * flat(expected).norm()
    bias = "network.classifier.bias"  # it alone shifts all answers alike
    assert ours[bias].norm() < 1e-3 * usual[bias].norm()


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_clipped_teacher_goes_as_far_as_its_gradient_is_long_and_no_farther(taught_run, share, monkeypatch):
    usual = flat(first_step(taught_run, "metadistil")[1].values())
    monkeypatch.setattr(methods, "CLIP", share * usual.norm().item())
    moved = flat(first_step(taught_run, "clipped-sgd")[1].values())
    expected = min(share, 1) * usual
    assert (moved - expected).norm() < 1e-3 * expected.norm()
    walked = flat(first_step(taught_run, "random-walk")[1].values())  # as long, and leads elsewhere
    assert walked.norm().item() == pytest.approx(expected.norm().item(), rel=1e-3)
    assert abs(torch.cosine_similarity(walked, usual, dim=0)) < 0.1


@pytest.mark.parametrize("name", ["clipped-sgd", "random-walk"])
def test_a_clipped_teachers_rate_falls_whatever_the_schedule(taught_run, name):
    config = train.dataclasses.replace(taught_run, methods=name, teacher_lr=1e-3, schedule="linear")
    stage = train.Stage(train.Seed(train.resolved(config), 0), name)
    rates = []
    for k in range(5, 15):  # after the warm-up; the rate falls at 62.5%, 75% and 87.5%
        take_step(stage, k)
        rates.append(stage.teacher_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(7 * [1e-3] + [1e-4, 1e-5, 1e-6])


def test_without_a_pilot_the_quiz_is_sat_where_the_student_stands():
    """The step against its definition: v at θ_S, the meta-gradient −λ (∂²L_S/∂θ_T∂θ_S) v, the student's step first."""
    torch.manual_seed(0)
    student, teacher = (shaken(models.Encoder(models.EncoderConfig(20, 8, 1, 2, 16, 8, dropout=0.0))).double() for _ in "ST")
    exam = lambda n: ({"input_ids": torch.randint(20, (n, 5))}, torch.randint(2, (n,)))  # noqa: E731
    batch, quiz, pilot_lr = exam(6), exam(4), 0.3
    theta_S, theta_T = list(student.parameters()), list(teacher.parameters())
    L_S = metadistil.kd_loss(student(**batch[0]), teacher.eval()(**batch[0]), batch[1])
    gradient = torch.autograd.grad(L_S, theta_S, create_graph=True, materialize_grads=True)
    L_q = metadistil.hard_loss(student(**quiz[0]), quiz[1])
    v = torch.autograd.grad(L_q, theta_S, materialize_grads=True)
    expected = torch.autograd.grad(-pilot_lr * sum((g * d).sum() for g, d in zip(gradient, v)), theta_T, materialize_grads=True)
    moved_S = [(theta - 0.1 * part).detach() for theta, part in zip(theta_S, gradient)]
    moved_T = [theta.detach() - 0.1 * part for theta, part in zip(theta_T, expected)]
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (student, teacher)]
    stage = types.SimpleNamespace(
        learner=student, teachers=[teacher], optimizer=optimizers[0], teacher_optimizer=optimizers[1],
        loss=metadistil.kd_loss, quiz_loss=metadistil.hard_loss, config=train.Config(pilot_lr=pilot_lr),
        quiz={7: quiz}.get,
    )  # fmt: skip
    found = methods.no_pilot(stage, batch, None, 7)
    torch.testing.assert_close(found, {"loss": L_S.detach()})
    torch.testing.assert_close([theta.detach() for theta in theta_S], moved_S)
    torch.testing.assert_close([theta.detach() for theta in theta_T], moved_T)


def test_in_mutual_learning_both_learn_from_each_other_and_no_quiz_is_sat(taught_run, monkeypatch):
    monkeypatch.setattr(metadistil, "meta_gradient", lambda *_, **__: pytest.fail("a quiz"))
    stage, moved = first_step(taught_run, "mutual")
    student, teacher = at_first(stage)
    batch = first_batch(stage)
    optimizer = train.OPTIMIZERS[stage.config.optimizer](student.parameters(), lr=stage.optimizer.param_groups[0]["lr"])
    metadistil.real_update(student, [teacher], batch, optimizer, stage.loss)
    ours, theirs = flat(student.state_dict().values()), flat(stage.learner.state_dict().values())
    assert (ours - theirs).norm() < 0.05 * theirs.norm()  # but for dropout's draws
    assert flat(moved.values()).norm() > 0 and methods.METHODS["mutual"].quiz_labels
