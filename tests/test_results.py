"""The record of results: rows run once, after those they take models from; RESULTS.md is what the record says."""

import json
import re
import sys
import time
import types

import numpy as np
import pytest
from conftest import ROOT, TEXTS, checkpoint

import data
import models
import train

sys.path.append(str(ROOT / "notebooks" / "results"))
import results  # noqa: E402

pytest.importorskip("matplotlib").use("agg")
import report  # noqa: E402

SMALL = "--task sst2 --data builtin --train-size 60 --quiz-size 20 --student micro --teacher-epochs 1"
STUDY = {
    "base": f"{SMALL} --warmup-epochs 0 --epochs 1 --seeds 2",
    "words": {"TEACHER": "--teacher runs/results/noise/plain-0.4/seed{seed}/teacher-before.pt"},
    "rows": {
        "plain-0.4": "--teacher micro --methods finetune,kd",
        "metadistil-0.4": "TEACHER --methods metadistil",
        "less-the-mean-0.4": "TEACHER --methods less-the-mean",
    },
}
ROWS = results.written_out(STUDY)
STUDENT, KD, AFTER, BEFORE = "student metadistil", "student kd", "teacher after metadistil", "teacher before"
PAGE, TEMPLATE = ((report.HERE / name).read_text(encoding="utf-8") for name in ("RESULTS.md", "template.md"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.fixture
def found(folder, monkeypatch):
    """The record of three rows, run at first use; two have the teachers of the first, and one of these is an idea."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(results, "FOUND", folder / "results.jsonl")
    monkeypatch.setattr(results, "read_studies", lambda: {"noise": STUDY})
    results.run_study("noise", ROWS, 2)
    return results.read_found()


def cells_of(table):
    """The rows of a Markdown table, its rule left out."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [row for row in rows if set("".join(row)) != {"-"}]


# ---------------------------------------------------------------- studies are run


@pytest.mark.slow
def test_rows_run_once_and_are_noted(found, monkeypatch):
    monkeypatch.setattr(results, "run_row", lambda *_: pytest.fail("run twice"))
    results.run_study("noise", ROWS, 2)
    entry, plain = found["noise", "metadistil-0.4"], found["noise", "plain-0.4"]
    assert entry["command"] == f"python train.py {ROWS['metadistil-0.4']} --out runs/results/noise/metadistil-0.4"
    assert found["noise", "less-the-mean-0.4"]["command"].startswith("python notebooks/methods.py --task sst2")
    finished = train.resume("runs/results/noise/metadistil-0.4").results
    assert results.results_of(train.read_run("runs/results/noise/metadistil-0.4")[0]) == finished
    for title, seeds in finished.items():
        noted = entry["models"][title]
        for name in seeds[0]["scores"]:
            assert np.allclose(noted[name], [seed["scores"][name] for seed in seeds], atol=1e-6)
        assert [len(of) for of in noted["by_epoch"]] == [len(seed["by_epoch"]) for seed in seeds]
    assert entry["models"][BEFORE]["dev accuracy"] == plain["models"][BEFORE]["dev accuracy"]


def test_a_row_whose_teachers_are_gone_has_them_trained_again(tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr(results, "run_row", lambda study, row, flags: run.append(row))
    monkeypatch.setattr(results, "noted", lambda study, row, flags: {"study": study, "row": row})
    monkeypatch.setattr(results, "FOUND", tmp_path / "results.jsonl")
    results.FOUND.write_text(json.dumps({"study": "noise", "row": "plain-0.4"}) + "\n")
    results.run_study("noise", {row: ROWS[row] for row in ("plain-0.4", "metadistil-0.4")}, 1)
    noted = [json.loads(line)["row"] for line in results.FOUND.read_text().splitlines()]
    assert run == noted == ["plain-0.4", "metadistil-0.4"]  # what is on record is not noted twice


@pytest.mark.parametrize("status, found", [(2, "status 2: train.py: no"), (-9, "status -9: no message"), (None, "^$")])
def test_a_row_that_fails_is_named_and_no_other_begins(status, found, tmp_path, monkeypatch):
    begun = []

    def run(command, **_):
        begun.append(command)
        time.sleep(0.2)  # a real row takes minutes
        if status is None:
            raise KeyboardInterrupt
        return types.SimpleNamespace(returncode=status, stderr="a warning\ntrain.py: no" if status > 0 else "")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FOUND", tmp_path / "results.jsonl")
    monkeypatch.setattr(results.subprocess, "run", run)
    with pytest.raises(RuntimeError if status else KeyboardInterrupt, match=found):
        results.run_study("noise", {str(n): "--methods kd" for n in range(50)}, 1)
    assert len(begun) < 50 and not results.FOUND.exists()


def test_spoilt_teachers_are_the_same_network_that_misreads(tmp_path):
    path, vocabularies = models.saved_file(checkpoint(tmp_path, TEXTS, labels=["no", "yes"])), []
    whole = models.load(path)
    for kind in ("other-ids", "half-vocabulary"):
        results.spoil(path, kind)
        spoilt = models.load(path.with_name(f"teacher-{kind}.pt"))
        assert all(map(np.array_equal, whole.state_dict().values(), spoilt.state_dict().values()))
        assert (whole.network.config, whole.labels) == (spoilt.network.config, spoilt.labels)
        vocabularies.append(spoilt.tokenizer.get_vocab())
    before, (other, half) = whole.tokenizer.get_vocab(), vocabularies
    assert all(other[token] == half[token] == before[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
    assert sorted(other.values()) == sorted(before.values())
    assert sum(before[token] != other[token] for token in before) > 0.9 * len(before)
    assert half.items() < before.items() and len(half) == 4 + (len(before) - 4) // 2


def test_sst2_gets_a_test_set_out_of_its_training_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"sentence {n}\t{n % 2}\n" for n in range(3000)))
    (folder / "dev.tsv").write_text("sentence\tlabel\na dev sentence\t1\n")
    results.prepare()
    task = data.load_task("sst2", "runs/results/glue", 100)
    assert len(task.test) == 2000 and len(task.train) + len(task.quiz) == 1000


# ---------------------------------------------------------------- the record's commands


def accepted(flags):
    """The configuration of these flags; fails if one is refused."""
    given = train.parse(flags)
    config = train.Config(**train.DEFAULTS["files"] | given)
    teachers = {train.method_named(name).teacher for name in config.methods.split(",")}
    for name, value in given.items():
        assert train.checked(name, value) == value and teachers & {*train.FIELDS[name].metadata["teachers"]}, name
    return config


@pytest.mark.parametrize("study", results.studies())
def test_every_command_of_studies_and_record_is_one_of_todays(study):
    """A row comes after those whose models it takes. The record's command means what the study's row means, and trained
    the networks that the record shows."""
    rows, record = results.studies()[study], results.read_found()
    for row, flags in rows.items():
        script, *words = results.command_of(study, row, flags)
        config = accepted(words)
        taken = [other for other in rows if f"/{study}/{other}/" in flags]
        assert all(list(rows).index(other) < list(rows).index(row) for other in taken)
        if (study, row) in record:
            entry = record[study, row]
            python, script_then, *words = entry["command"].split()
            assert (python, script_then) == ("python", script) and accepted(words) == config
            assert {len(model["seconds"]) for model in entry["models"].values()} == {config.seeds}
            names = config.methods.split(",")
            learning = {name for name in names if train.METHODS[name].teacher == "learning"}
            assert [title[8:] for title in entry["models"] if title.startswith("student ")] == names
            assert {title.split(" after ")[1] for title in entry["models"] if " after " in title} == learning


def test_the_page_has_every_command_of_the_record():
    """As a reader puts it together: the study's command, a row's flags, the text of each word in capitals."""
    words, base, printed = {}, "", []
    for line in PAGE.splitlines():
        if "`python train.py -" in line:
            words, base = {}, re.search(r"`python train.py (.*?)`", line)[1]
        words |= dict(re.findall(r"`([A-Z-]+)` = `(.*?)`", line))
        for row in re.findall(r"\| `((?:--|[A-Z]{2}).*?)` +\|", line):
            flags = re.sub(r"(?<!\S)[A-Z-]+(?!\S)", lambda word: words.get(word[0], word[0]), f"{base} {row}")
            printed += [accepted(flags.replace("SHARE", share).split()) for share in ("0", "0.1", "0.2", "0.3", "0.4")]
    for (study, row), entry in results.read_found().items():
        first = next(iter(results.read_studies()[study]["rows"])).replace("SHARE", row.split("-")[-1])
        teacher = f"runs/results/{study}/{first}/seed{{seed}}/teacher-before.pt"
        _, _, *flags, _, _ = entry["command"].replace(teacher, "TEACHER").split()  # without --out and its folder
        assert accepted(flags) in printed, (study, row)


# ---------------------------------------------------------------- the page


def test_ahead_level_behind_by_the_interval():
    theirs, noise = np.array([0.70, 0.72, 0.74]), np.array([0.001, -0.001, 0.0])
    for shift, verdict in ((0.02, "ahead"), (-0.02, "behind"), (0.0005, "level")):
        assert report.verdict(theirs + shift + noise, theirs) == verdict
    assert report.verdict(theirs[:1] + 0.01, theirs[:1]) == "ahead" and report.verdict(theirs, theirs) == "level"


@pytest.mark.slow
def test_tables_figure_and_page_compare_with_kd_seed_by_seed(found, tmp_path, monkeypatch):
    """An idea is in the table under its own name. What was not run is not shown, or called so."""
    places = [("metadistil-0.4", STUDENT), ("less-the-mean-0.4", STUDENT), ("plain-0.4", KD), ("plain-0.4", BEFORE)]
    ours, idea, kd, before = (report.scores("noise", *place) for place in places)
    less_kd, of_idea = (train.paired_difference(student, kd) for student in (ours, idea))
    scores, differences = map(cells_of, report.noise().split("\n\n"))
    assert ["metadistil", train.spread(ours)] in scores and ["metadistil", less_kd] in differences
    assert "student on the quiz alone" not in report.noise()
    _, plain, taught, other = cells_of(report.overview("noise"))
    assert plain[0] == f"`{STUDY['rows']['plain-0.4']}`" and plain[4:6] == [train.spread(kd), train.spread(before)]
    assert taught[1:6] == ["metadistil", train.spread(ours), less_kd, "", ""]  # neither kd nor teacher of its own
    assert other[1:4] == ["less-the-mean", train.spread(idea), of_idea]
    drawn = {bars.get_label(): bars[0].get_ydata() for bars in report.label_noise().axes[1].containers}
    assert drawn["metadistil"] == pytest.approx(100 * (ours - kd).mean()) and drawn["kd"] == 0 and len(drawn) == 3
    monkeypatch.setitem(STUDY, "rows", STUDY["rows"] | {"new": "--methods kd"})
    kd_row = "student metadistil / plain-0.4 student kd"
    asked = [f"compare noise metadistil-0.4 {kd_row}", f"change noise less-the-mean-0.4 {kd_row}", "not_run"]
    asked += [f"compare noise shared-0.4 {kd_row}", "mean noise plain-0 student kd", "mean noise plain-0.4 student kd"]
    (tmp_path / "template.md").write_text("\n".join(f"{{{{{words}}}}}" for words in [*asked, "answer"]))
    monkeypatch.setattr(report, "HERE", tmp_path)
    *said, _, _, answer = report.page().splitlines()
    compared = f"{report.verdict(ours, kd)}, {less_kd}"
    assert said == [compared, of_idea, "`noise new`", "not run", "not run", train.spread(kd)]
    assert answer.startswith("| SST-2, pretrained, 40% wrong |") and compared in answer


def test_what_a_best_score_costs(monkeypatch):
    """By hand: 2 epochs of labels at 10 s, then 3 of kd at 20 s, or 4 of metadistil at 50 s; means over two seeds."""
    labels = {"by_epoch": [[0.5] * 6] * 2, "seconds": [50, 70]}
    kd = {"by_epoch": [[0.5, 0.6, 0.6, 0.8, 0.7]] * 2, "seconds": [80, 80]}
    meta = {"by_epoch": [[0.5, 0.6, 0.7, 0.7, 0.9, 0.8], [0.5, 0.6, 0.7, 0.9, 0.9, 0.9]], "seconds": [200, 240]}
    rows = {"plain": {"student finetune": labels, KD: kd}, "metadistil": {STUDENT: meta}}
    record = {("s", row): {"warmup_epochs": 2, "models": of_row} for row, of_row in rows.items()}
    monkeypatch.setattr(results, "read_found", lambda: record)
    _, row = cells_of(report.costs("s other"))
    assert row == ["s", "50.0, epoch 1, 10 s; –", "80.0, epoch 4, 60 s; 60 s", "90.0, epoch 5, 170 s; 120 s"]


def test_the_page_comes_from_an_empty_file(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "HERE", tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "template.md").write_text(TEMPLATE, encoding="utf-8")
    report.write()
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == PAGE
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"dynamics.png", "label_noise.png"}


def test_beside_every_gain_over_kd_are_its_rivals():
    """Where a table has a student ahead of kd, its section says what the same quiz does without MetaDistil."""
    alone, tuned = f"{report.ALONE} student finetune", "tuned-kd student kd"
    reviews = [report.change(f"reviews {rival} / plain student kd") for rival in (alone, tuned)]
    noise = ("quiz-alone student finetune", "tuned-kd-0.4 student kd")
    noise = [report.change(f"noise {rival} / plain-0.4 student kd") for rival in noise]
    right = [report.mean("right plain student finetune"), report.mean(f"reviews {alone}")]
    rivals = {"reviews": reviews, "ideas": reviews, "right": right, "noise": noise, "own-sst2": noise}
    tables = {words.split()[0]: report.overview(words) for words in re.findall(r"\{\{overview (.*?)\}\}", TEMPLATE)}
    for study, table in (tables | {"noise": report.noise()}).items():
        [section] = [section for section in PAGE.split("\n## ") if table.strip() in section]
        if re.search(r"\| \+\d+\.\d \[\+", table):
            assert study in rivals and all(rival in section for rival in rivals[study]), study


def test_what_the_page_says_in_words_is_checked_when_it_is_written():
    ahead, more = "reviews metadistil student metadistil / plain student kd", "more right {} student kd / {} student kd"
    assert report.so(f"# words\nahead {ahead}\n{more.format('plain', 'other-ids')}") == "" and "{{so\n#" in TEMPLATE
    for false in (f"level {ahead}", more.format("other-ids", "plain")):
        with pytest.raises(ValueError, match="template.md: expected"):
            report.so(false)
    kd = report.scores("ideas", "plain", KD)
    no_pilot, ours = (report.scores("ideas", row, STUDENT) - kd for row in ("no-pilot", "metadistil"))
    assert no_pilot.mean() > 0.5 * ours.mean()  # "much of the gain needs no pilot"
    by_epoch = results.read_found()["mrpc", "plain"]["models"][STUDENT]["by_epoch"]
    assert np.mean(by_epoch, axis=0).argmax() == 0  # "at its best after the first epoch"
