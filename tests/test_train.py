"""The main job: what a run leaves, the same numbers again, fair comparisons; several teachers, pictures, bfloat16."""

import copy
import dataclasses
import json
import math
import os
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    FEW, SMALL, TEXTS, assert_same_numbers, checkpoint, flags, numbers_of, resume_with_stops, run_with_stops,
    same_weights, shaken, small, small_pictures, stopped_after,
)  # fmt: skip
from test_data import write_cifar, write_task
from torch.utils._python_dispatch import TorchDispatchMode

import data
import metadistil
import models
import train

TEACHERS = ["teacher before", "teacher after metadistil"]
STUDENTS = ["student finetune", "student kd", "student metadistil"]


def log_of(out):
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- what a run leaves


def test_a_run_leaves_what_it_promises(finished):
    out, stages = finished.out, {"teacher": 2, "finetune": 3, "kd": 3, "metadistil": 3}  # and their epochs
    saved = [*(f"{stage}.json" for stage in stages), *(f"{title.replace(' ', '-')}.pt" for title in TEACHERS + STUDENTS)]
    expected = {"config.json", "begun.json", "metrics.jsonl", "table.md", *(f"seed{n}/{name}" for n in range(2) for name in saved)}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == expected
    assert json.loads((out / "config.json").read_text()) == dataclasses.asdict(finished.config)
    log = log_of(out)
    epochs = [(seed, stage, epoch + 1, 5 * (epoch + 1)) for seed in range(2) for stage, n in stages.items() for epoch in range(n)]
    assert [(line["seed"], line["stage"], line["epoch"], line["step"]) for line in log] == epochs
    for line in log:  # MetaDistil's first epoch is the warm-up
        taught = line["stage"] == "metadistil" and line["epoch"] > 1
        assert math.isfinite(line["loss"]) and ("quiz_loss_before" in line) == ("quiz_loss_after" in line) == taught
    assert "test" not in (out / "metrics.jsonl").read_text()  # scored once, at the end
    for title, of in finished.results.items():
        for seed, found in enumerate(of):
            scores = [line["scores"][title]["dev accuracy"] for line in log if line["seed"] == seed and title in line["scores"]]
            assert found["by_epoch"] == scores and found["scores"]["dev accuracy"] == scores[-1], title
    assert list(finished.models) == TEACHERS + STUDENTS == [*map(str, train.load_all(out))]


def test_a_saved_model_says_what_was_scored(finished):
    task = finished.config.load(1)
    model = train.load(finished.out / "seed1" / "student-kd.pt")
    said = model.predict(list(task.test.examples))
    right = np.mean([label == task.label_names[n] for (label, _), n in zip(said, task.test.labels)])
    assert right == finished.results["student kd"][1]["scores"]["test accuracy"]


def test_the_table_shows_each_model_with_its_scores(finished):
    assert (finished.out / "table.md").read_text() == finished.table
    lines = [line for line in finished.table.splitlines() if line.startswith("|")]
    heading, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert heading == ["model", "dev", "test", "gain", "size", "smaller", "seconds"] and len({*map(len, lines)}) == 1
    scores = {title: np.array([[seed["scores"][f"{split} accuracy"] for split in ("dev", "test")] for seed in of])
              for title, of in finished.results.items()}  # fmt: skip
    for row, title, rival in zip(rows, TEACHERS + STUDENTS, [None, "teacher before", "student kd", None, "student kd"], strict=True):
        shown = [f"{100 * mean:.1f} ± {100 * deviation:.1f}" for mean, deviation in zip(scores[title].mean(0), scores[title].std(0, ddof=1))]
        gain = train.paired_difference(scores[title][:, 1], scores[rival][:, 1]) if rival else ""
        size = sum(theta.numel() for theta in finished.models[title].parameters())
        seconds = np.mean([seed["seconds"] for seed in finished.results[title]])
        assert row == [title, *shown, gain, f"{size / 1e6:.2f}M", "1.0", f"{seconds:.0f}"]
    of_one = train.table(dataclasses.replace(finished.config, seeds=1), {title: of[:1] for title, of in finished.results.items()})
    assert max(len(line) for line in of_one.splitlines() if line.startswith("|")) <= 100


@pytest.mark.parametrize("name, scores", [
    ("stsb", ["dev pearson", "dev spearman"]), ("mrpc", ["dev f1", "dev accuracy"]),
    ("mnli", ["dev accuracy", "test accuracy"]), ("cola", ["dev matthews"]),
])  # fmt: skip
def test_other_tasks_run_with_their_metrics(name, scores, tmp_path, capsys):
    folder, out = write_task(tmp_path / "files", name, rows=30), tmp_path / "run"
    settings = {"methods": "metadistil", "teacher_epochs": 1, "epochs": 1, "train_size": 20, "quiz_size": 6}
    finished = train.run(small(out, **settings, data=str(folder), task=name))
    for title, [of] in finished.results.items():
        assert list(of["scores"]) == scores and all(map(math.isfinite, of["scores"].values()))
        second = [line for line in finished.table.splitlines() if line.startswith(f"{title}: {scores[-1]} ")]
        assert len(second) == (name in ("stsb", "mrpc"))  # which have a second metric
    capsys.readouterr()
    train.main(["--predict", "one thing" if name == "cola" else "\tanother thing", "--out", str(out)])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and (name != "stsb" or re.search(r"-?\d\.\d\d$", said[1]))


# ---------------------------------------------------------------- the same numbers


def test_the_same_flags_in_another_order_give_the_same_numbers_and_curves(finished, tmp_path):
    train.main(flags(seeds=2, out=tmp_path / "again", **dict([*SMALL.items()][::-1])))
    assert_same_numbers(finished.out, tmp_path / "again")
    pytest.importorskip("matplotlib")
    assert (tmp_path / "again" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("writes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_stopped_again_and_again_and_resumed_elsewhere_it_ends_with_the_same_numbers(writes, finished, tmp_path, monkeypatch):
    """After 2 files: right after each checkpoint and each result of a stage. After 3: after the logs, too."""
    monkeypatch.chdir(tmp_path)
    with stopped_after(writes), pytest.raises(KeyboardInterrupt):
        train.run(small("run", data=os.path.relpath(FEW), seeds=2))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    ended = resume_with_stops("../run", writes)
    assert_same_numbers(finished.out, ended.out) and not [*ended.out.rglob("*.checkpoint"), *ended.out.rglob("*.part")]


# ---------------------------------------------------------------- fairness


@pytest.fixture
def watched(monkeypatch):
    """Notes of every training step (student's title, L_S, labels by sentence), of every quiz the sentences. Without the
    steps that are tried out."""
    seen = SimpleNamespace(steps=[], quizzes=[])
    real_update, meta_gradient = metadistil.real_update, metadistil.meta_gradient

    def watch_real(student, teachers, batch, *rest, **settings):
        inputs, labels = batch
        L_S = real_update(student, teachers, batch, *rest, **settings)
        seen.steps.append((student.title, L_S.item(), dict(zip(inputs["examples"], labels.tolist(), strict=True))))
        return L_S

    def watch_meta(student, teachers, batch, quiz, **settings):
        seen.quizzes.append({*quiz[0]["examples"]})
        return meta_gradient(student, teachers, batch, quiz, **settings)

    monkeypatch.setattr(train, "try_out", lambda config: [])
    monkeypatch.setattr(metadistil, "real_update", watch_real)
    monkeypatch.setattr(metadistil, "meta_gradient", watch_meta)
    return seen


def learnt(seen, title):  # the labels by sentence that a student saw
    return {text: label for name, _, labels in seen.steps if name == title for text, label in labels.items()}


def test_labels_steps_and_starts_are_shared_fairly(watched, tmp_path):
    """The quiz never enters MetaDistil's batches; whoever has no quiz trains on it; all begin alike and take as many steps."""
    finished = train.run(small(tmp_path / "run", label_noise=0.4))
    task = finished.config.load(0)
    train_labels, quiz_labels = (dict(zip(split.examples, split.labels)) for split in (task.train, task.quiz))
    for title in ("teacher before", "student finetune", "student kd"):
        assert learnt(watched, title) == train_labels | quiz_labels
    assert learnt(watched, "student metadistil") == train_labels and set.union(*watched.quizzes) <= {*quiz_labels}
    losses = {title: [loss for name, loss, _ in watched.steps if name == title] for title in ["teacher before", *STUDENTS]}
    assert [*map(len, losses.values())] == [10, 15, 15, 15] and len(watched.quizzes) == 10
    seed = train.Seed(finished.config, 0)  # that kd's and MetaDistil's teachers are the same, the next test shows
    starts = [train.Stage(seed, name).learner.network.state_dict() for name in ("finetune", "kd", "metadistil")]
    assert all(same_weights(start, starts[0]) for start in starts)
    for line in log_of(finished.out):  # and the log shows the means of the epochs
        title = f"student {line['stage']}" if line["stage"] != "teacher" else "teacher before"
        assert line["loss"] == pytest.approx(np.mean(losses[title][line["step"] - 5 : line["step"]]))


def test_with_a_rate_of_zero_and_the_quizs_labels_metadistil_is_kd(watched, tmp_path):
    train.run(small(tmp_path / "run", methods="kd,metadistil", teacher_lr=0.0, learn_quiz=True))
    weights = numbers_of(tmp_path / "run")[1]
    for one, other in (("student-kd", "student-metadistil"), ("teacher-before", "teacher-after-metadistil")):
        assert same_weights(weights[f"seed0/{one}.pt"], weights[f"seed0/{other}.pt"])
    assert len(watched.quizzes) == 10  # sat nevertheless
    assert learnt(watched, "student kd") == learnt(watched, "student metadistil") and len(learnt(watched, "student kd")) == 80


def test_the_teacher_learns_at_every_so_manyth_step(watched, tmp_path):
    finished = train.run(small(tmp_path / "run", methods="metadistil", meta_every=3))
    assert len(watched.quizzes) == 4 and len(watched.steps) == 10 + 15  # the teacher's own, first
    assert ["quiz_loss_after" in line for line in log_of(finished.out)] == [False] * 3 + [True] * 2


def test_word_noise_reaches_the_students_training_alone(tmp_path):
    seed = train.Seed(train.resolved(small(tmp_path / "run", noise=1.0)), 0)
    stage, rows = train.Stage(seed, "kd", trial=True), np.arange(80)  # 60 of train, 20 of the quiz
    (inputs, _), (teacher,) = seed.batch(rows), stage.teachers
    assert [noisy == text for noisy, text in zip(inputs["noisy"], inputs["examples"])] == [False] * 60 + [True] * 20
    for model, read in ((stage.learner, inputs["noisy"]), (teacher, inputs["examples"])):
        assert torch.equal(model.eval()(**inputs), model(read))
    assert not torch.equal(stage.learner(inputs["noisy"]), stage.learner(inputs["examples"]))
    accuracy = (stage.learner.logits(seed.task.dev.examples).argmax(axis=-1) == seed.task.dev.labels).mean()
    assert seed.scores(stage.learner, "dev") == {"dev accuracy": accuracy}


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


def test_the_loss_of_regression_worked_by_hand():
    z_S, z_T, y = torch.randn(4, 1), torch.randn(4, 1), torch.randn(4)
    squared = torch.nn.functional.mse_loss
    expected = 0.3 * squared(z_S, z_T) + 0.7 * squared(z_S[:, 0], y)
    loss = train.logits_loss(SimpleNamespace(config=train.Config(alpha=0.3), task=SimpleNamespace(label_names=[])))
    torch.testing.assert_close(loss(z_S, z_T, y), expected)
    torch.testing.assert_close(loss(z_S, None, y), squared(z_S[:, 0], y))


# ---------------------------------------------------------------- several teachers, saved ones, heads


def test_several_teachers_read_by_their_own_vocabularies_are_averaged_and_taught(tmp_path):
    sources = [checkpoint(tmp_path / "one", TEXTS[-4:], 4), checkpoint(tmp_path / "two", TEXTS[:300], 2, seed=1)]
    settings = {"teacher": ",".join(sources), "student": sources[0], "student_layers": "1,3", "methods": "kd,metadistil"}
    finished = train.run(small(tmp_path / "run", teacher_lr=0.01, **settings))
    titles = ["teacher 2 before", "teacher before", "teacher 2 after metadistil", "teacher after metadistil"]
    assert {*titles, "student kd", "student metadistil"} == {*finished.results} == {*finished.models}
    for role in ("teacher", "teacher 2"):
        before, after = (finished.models[f"{role} {when}"].network.state_dict() for when in ("before", "after metadistil"))
        assert max((before[name] - tensor).abs().max() for name, tensor in after.items()) > 1e-3
    teacher, student = (finished.models[title].network for title in ("teacher before", "student kd"))
    large, little = (sum(theta.numel() for theta in network.parameters()) for network in (teacher, student))
    assert (teacher.config.layers, student.config.layers) == (4, 2)
    assert re.search(rf"\| student kd .*\| {little / 1e6:.2f}M +\| {large / little:.1f} ", finished.table)
    seed = train.Seed(finished.config, 0)
    inputs, teachers = seed.batch(np.arange(5))[0], train.Stage(seed, "kd").teachers
    with torch.no_grad():
        outputs = []
        for teacher, source in zip(teachers, sources):
            tokens = [models.load(source).tokenizer.encode(text).ids for text in inputs["examples"]]
            outputs.append(torch.cat([teacher.eval().network(torch.tensor([ids])) for ids in tokens]))
        torch.testing.assert_close(metadistil.teach(teachers, inputs), sum(outputs) / 2)


def test_saved_models_of_each_seed_teach_as_they_are_and_learn_on_as_students(finished, tmp_path):
    """A teacher taught by one run is frozen in another. It brings its tokeniser, and has no epoch of its own."""
    taught = str(finished.out / "seed{seed}" / "teacher-after-metadistil.pt")
    student = str(finished.out / "seed{seed}" / "student-kd.pt")
    crossed = train.run(small(tmp_path / "run", teacher=taught, student=student, methods="kd", train_size=40, seeds=2))
    frozen = crossed.results["teacher before"]
    assert [of["scores"] for of in frozen] == [of["scores"] for of in finished.results["teacher after metadistil"]]
    assert [(of["by_epoch"], of["seconds"]) for of in frozen] == [([], 0.0)] * 2
    for number in (0, 1):
        stage = train.Stage(train.Seed(crossed.config, number), "kd")
        for model, source in ((stage.teachers[0], taught), (stage.learner, student)):
            assert same_weights(model.network.state_dict(), models.load(source.format(seed=number)).network.state_dict())


NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("saved, labels, fits", [
    (NAMES, NAMES, True), (["A", "b", "C"], NAMES, True), (["c", "a", "b"], NAMES, False), (NAMES, ["a", "b", "d"], False),
    (NAMES, [*"vwxyz"], False), (None, NAMES, False), ([], [], True), (None, [], False), ([], NAMES, False),
])  # fmt: skip
@pytest.mark.parametrize("shape", [models.EncoderConfig(30, 8, 1, 2, 16, 8), models.ResNetConfig(8)])
def test_a_network_takes_over_all_weights_but_those_of_a_head_for_other_labels(shape, saved, labels, fits):
    """No labels: a regression. None: no trained head. A note says that a trained one was left out."""
    trained, network = (shaken(models.build(shape, num_labels=len(names or "1"))) for names in (saved, labels))
    theirs, fresh = (copy.deepcopy(model.state_dict()) for model in (trained, network))
    seed = SimpleNamespace(task=SimpleNamespace(label_names=labels), sources={"teacher": "folder"}, notes=[])
    train.Seed.take_over(seed, network, SimpleNamespace(network=trained, labels=saved), "teacher")
    for name, tensor in network.state_dict().items():
        expected = fresh if name.startswith("classifier.") and not fits else theirs
        assert torch.equal(tensor, expected[name]), name
    assert len(seed.notes) == (saved is not None and not fits)
    for note in seed.notes:  # as many labels might mean the same
        assert (f'"folder" --labels "{",".join(labels)}"' in note) == (len(saved) == len(labels))


def test_a_head_for_other_labels_is_told_of_and_no_ready_teacher(tmp_path, capsys):
    source = checkpoint(tmp_path / "network", TEXTS[:50], labels=["fresh", "rotten"])
    settings = {"methods": "kd", "teacher_epochs": 1, "epochs": 1, "warmup_epochs": 0}
    train.run(small(tmp_path / "run", teacher=source, student=f"{source}/metadistil.pt", **settings))
    assert f'python notebooks/fetch.py "{source}" --labels "negative,positive"' in capsys.readouterr().out
    with pytest.raises(train.InputError, match="network/metadistil.pt: expected a teacher of negative,positive, found one of fresh,rotten"):
        train.run(small(tmp_path / "other", teacher=f"{source}/metadistil.pt", **settings))
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 250 random pictures, and a finished run on few of them."""
    folder = write_cifar(tmp_path_factory.mktemp("pictures"))
    return folder, train.run(small_pictures(folder, folder / "run"))


def test_a_run_on_pictures_leaves_what_it_promises(pictures, capsys):
    folder, finished = pictures
    assert [*finished.models] == TEACHERS + STUDENTS
    [of] = finished.results["student kd"]
    assert list(of["scores"]) == ["dev accuracy", "test accuracy"] and of["parameters"] == 83_892
    stage = train.Stage(train.Seed(finished.config, 0), "metadistil")
    for optimizer in (stage.optimizer, stage.teacher_optimizer):  # as in the benchmark
        assert isinstance(optimizer, torch.optim.SGD)
        assert [(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.9, 5e-4)]
    with pytest.raises(SystemExit) as stop:
        train.main(["--predict", "a flower", "--out", str(folder / "run")])
    assert stop.value.code == 2 and "expected a picture" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_pictures_stopped_and_resumed_ends_with_the_same_numbers(pictures, tmp_path):
    run_with_stops(small_pictures(pictures[0], tmp_path / "stopped"), 3)
    assert_same_numbers(pictures[1].out, tmp_path / "stopped")


def test_steps_crop_pictures_once_for_teacher_and_student_and_the_quiz_has_no_crops(pictures, monkeypatch):
    seen, seed = [], train.Seed(pictures[1].config, 0)
    watch = train.Method("learning", False, train.logits_loss, lambda *given: seen.extend(given) or {})
    monkeypatch.setitem(train.METHODS, "watch", watch)
    stage = train.Stage(seed, "watch")
    k = stage.warmup_steps
    stage.step(k)
    _, (inputs, _), rows, _ = seen
    assert np.array_equal(inputs["examples"], data.crop_and_mirror(seed.examples.examples[rows], [0, 7, k]))
    quiz = stage.quiz(k)[0]["examples"]
    assert len(quiz) == 8 and {*map(bytes, quiz)} <= {*map(bytes, seed.task.quiz.examples)}


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


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("kind, mode", [
    *(("sentences", mode) for mode in metadistil.MODES), pytest.param("pictures", "jvp", marks=pytest.mark.slow),
])  # fmt: skip
def test_bfloat16_is_for_products_and_not_for_parameters_losses_or_the_meta_gradient(kind, mode, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "bf16_in_hardware", lambda: True)
    found, multiplied = [], []
    for precision in ("fp32", "bf16"):
        config = small_pictures(pictures[0], tmp_path, precision=precision) if kind == "pictures" else small(tmp_path, precision=precision)
        seed = train.Seed(train.resolved(config), 0)
        stage = train.Stage(seed, "metadistil", trial=True)
        student, teachers = shaken(stage.learner, 0.02), [shaken(stage.teachers[0], 0.02)]
        layer = student.network.blocks[0].feed_in if kind == "sentences" else student.network.stem[0]
        layer.register_forward_hook(lambda _, __, output: multiplied.append(output.dtype))
        batch, quiz = (seed.batch(rows) for rows in np.split(np.arange(len(seed.examples)), [len(seed.task.train)]))
        grads = metadistil.meta_gradient(student, teachers, batch, quiz, pilot_lr=0.1, mode=mode)
        found.append(torch.cat([gradient.flatten() for gradient in grads.grads]))
        outputs = metadistil.forward(student, batch[0])
        assert outputs.dtype == grads.quiz_loss.dtype == torch.float32
        assert {*multiplied} == {torch.float32 if precision == "fp32" else torch.bfloat16}
        if kind == "pictures":  # BatchNorm rounds alike with a graph and without
            with torch.no_grad():
                assert torch.equal(outputs, metadistil.forward(student, batch[0]))
        multiplied.clear()
        torch.manual_seed(0)
    assert found[0].dtype == found[1].dtype == torch.float32 and not torch.equal(*found)
    assert torch.cosine_similarity(*(gradient.double() for gradient in found), dim=0) > 0.99


def test_bfloat16_without_hardware_becomes_float32_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    monkeypatch.setattr(train, "DEVICE", "cpu")
    assert train.resolved(small(tmp_path, precision="bf16")).precision == "fp32" and "bf16" in capsys.readouterr().out
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    assert train.resolved(small(tmp_path, precision="bf16")).precision == "bf16" and not capsys.readouterr().out
