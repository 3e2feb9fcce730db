"""Write RESULTS.md: `python notebooks/results/report.py` fills template.md in from the record and draws the figures.

The template has no numbers of results. Where it says {{NAME WORDS}}, the function of that name in PARTS puts what the
record says: tables, numbers, and "ahead", "level" or "behind" by one rule, `verdict`.
"""

import re
import sys
from pathlib import Path

import numpy as np

try:
    import matplotlib.pyplot as plt
except ImportError:
    print("report.py: expected matplotlib; pip install -r notebooks/requirements.txt", file=sys.stderr)
    sys.exit(2)

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import draw  # noqa: E402
import methods  # noqa: E402
import results  # noqa: E402

import train  # noqa: E402

KD, META, FINETUNE = draw.LOOKS["kd"], draw.LOOKS["metadistil"], draw.LOOKS["finetune"]
LINES = {  # of the study "noise": a line of its tables -> row without share, model, look in the figure (students only)
    "teacher": ("plain", "teacher before", None),
    "teacher tuned on the quiz": ("tuned", "student finetune", None),
    "teacher after metadistil": ("metadistil", "teacher after metadistil", None),
    "finetune": ("plain", "student finetune", FINETUNE),
    "kd": ("plain", "student kd", KD),
    "metadistil": ("metadistil", "student metadistil", META),
    "metadistil that learns the quiz, too": ("shared", "student metadistil", META._replace(marker="s", line=":")),
    "kd without the quiz's labels": ("withheld", "student metadistil", KD._replace(marker="v", line=":")),
    "kd from the teacher tuned on the quiz": ("tuned-kd", "student kd", KD._replace(marker="^", line="-.")),
    "student on the quiz alone": ("quiz-alone", "student finetune", FINETUNE._replace(marker="x", line="-.")),
}
ALONE = "train-size-1-batch-size-32-epochs-75"  # the row of the reviews that trains on the quiz alone
ANSWERS = {  # a line of `answer` -> study, its rows: of kd, of MetaDistil, of the two rivals that use the same quiz
    "built-in reviews, no label wrong": ("right", "plain", "metadistil"),
    "built-in reviews, 40% wrong": ("reviews", "plain", "metadistil", ALONE, "tuned-kd"),
    "SST-2, from scratch": ("scratch", "plain", "plain"),
    "SST-2, pretrained": ("improving", "plain", "plain"),
    "SST-2, pretrained, 0% wrong": ("noise", "plain-0", "metadistil-0", "quiz-alone", "tuned-kd-0"),
    "SST-2, pretrained, 10% wrong": ("noise", "plain-0.1", "metadistil-0.1", "quiz-alone", "tuned-kd-0.1"),
    "SST-2, pretrained, 20% wrong": ("noise", "plain-0.2", "metadistil-0.2", "quiz-alone", "tuned-kd-0.2"),
    "SST-2, pretrained, 30% wrong": ("noise", "plain-0.3", "metadistil-0.3", "quiz-alone", "tuned-kd-0.3"),
    "SST-2, pretrained, 40% wrong": ("noise", "plain-0.4", "metadistil-0.4", "quiz-alone", "tuned-kd-0.4"),
    "CoLA, dev Matthews": ("cola", "plain", "plain"),
    "MRPC, dev F1": ("mrpc", "plain", "plain"),
    "CIFAR-100, a fifth of it": ("cifar", "plain", "plain"),
}
DYNAMICS = {  # a panel of the figure of that name -> study, rows
    "built-in reviews, no label wrong": ("right", "plain", "metadistil"),
    "built-in reviews, 40% wrong": ("reviews", "plain", "metadistil"),
    "MRPC, pretrained": ("mrpc", "plain"),
    "CIFAR-100, a fifth of it": ("cifar", "plain"),
    "no label wrong, teacher keeps its job": ("ideas-right", "plain", "own-job-1"),
    "40% wrong, teacher keeps its job": ("ideas", "plain", "own-job-1"),
}
# Other ways for a teacher to learn: methods with MetaDistil's loss and a step of their own.
IDEAS = [name for name, method in methods.METHODS.items() if method.loss is train.METHODS["metadistil"].loss]


# ---- Numbers of the record


def models_of(study, *rows):
    """{title: what was found of it} of all models that these rows of the record trained. The student and teacher of one
    of IDEAS stand under the titles of MetaDistil's."""
    record, models = results.read_found(), {}
    for row in rows:
        for title, model in record[study, row]["models"].items():
            method = title.split()[-1]
            models[title.replace(method, "metadistil") if method in IDEAS else title] = model
    return models


def on_record(study, *rows):
    """Whether all these rows have been run."""
    return all((study, row) in results.read_found() for row in rows)


def score_name(model, split="test"):
    """The name of a model's score in the task's first metric on the split; on dev where test has no labels."""
    return next(name for part in (split, "dev") for name in model if name.startswith(part))


def scores(study, row, title, split="test"):
    """A model's scores (seeds,); () if it was not run."""
    models = models_of(study, row) if on_record(study, row) else {}
    return np.array(models[title][score_name(models[title], split)] if title in models else [])


def minutes(models):
    """Of training, of all models and seeds together. A taught teacher's are in its student's."""
    return sum(sum(model["seconds"]) for title, model in models.items() if " after " not in title) / 60


def verdict(ours, theirs):
    """Ahead or behind, where the interval of the difference leaves out zero; else level."""
    mean, half = train.interval(ours, theirs)
    if abs(mean) <= half:
        return "level"
    return "ahead" if mean > 0 else "behind"


def difference(ours, theirs):
    """Such as "ahead, +4.1 [+2.0, +6.2]"; points."""
    return f"{verdict(ours, theirs)}, {train.paired_difference(ours, theirs)}"


def said(how, *found, missing=""):
    """What `how` says of these scores; `missing` where some were not run."""
    return how(*found) if all(map(len, found)) else missing


# ---- What the template asks for


def compare(words, how=difference):
    """Of words like "STUDY ROW TITLE / ROW TITLE": the first model minus the second, seed by seed."""
    ours, theirs = words.split(" / ")
    study, row, title = ours.split(maxsplit=2)
    other_row, other_title = theirs.split(maxsplit=1)
    return said(how, scores(study, row, title), scores(study, other_row, other_title), missing="not run")


def change(words):
    """As `compare`, without the verdict: of a teacher before and after its lessons."""
    return compare(words, train.paired_difference)


def so(claims):
    """Nothing; raises ValueError if a claim does not hold. For what the template says in words, a claim a line: "level
    STUDY ROW TITLE / ROW TITLE", or with "more" on the mean. A line that begins with # says what for."""

    def on_the_mean(ours, theirs):
        return "more" if ours.mean() > theirs.mean() else "less"

    for claim in [line for line in claims.splitlines() if line[0] != "#"]:
        expected, words = claim.split(maxsplit=1)
        found = compare(words, on_the_mean if expected == "more" else verdict)
        if found not in (expected, "not run"):
            raise ValueError(f"template.md: expected {claim}; found {found}")
    return ""


def mean(words):
    """Of words like "STUDY ROW TITLE": mean and deviation of its scores."""
    study, row, title = words.split(maxsplit=2)
    return said(train.spread, scores(study, row, title), missing="not run")


def answer():
    """A line for each of ANSWERS that has been run: kd's student; what differs from it, seed by seed; and what the quiz
    did to the teacher."""
    rows = [["", "kd", "kd minus finetune", "metadistil", "quiz alone", "tuned teacher", "teacher, after minus before"]]
    for about, (study, plain, meta, *rivals) in ANSWERS.items():
        if on_record(study, plain, meta):
            kd, finetune = scores(study, plain, "student kd"), scores(study, plain, "student finetune")
            before, after = scores(study, plain, "teacher before"), scores(study, meta, "teacher after metadistil")
            alone, tuned = rivals or (None, None)
            others = [(meta, "student metadistil"), (alone, "student finetune"), (tuned, "student kd")]
            minus_kd = [said(difference, scores(study, *other), kd) for other in others]
            rows.append([about, train.spread(kd), difference(kd, finetune), *minus_kd, difference(after, before)])
    return train.layout(rows)


def settings_of(study):
    """The settings of a study, such as shares of wrong labels, whose row "plain-SETTING" is on record."""
    rows = [row for of, row in results.read_found() if of == study]
    return sorted(row.removeprefix("plain-") for row in rows if row.startswith("plain-"))


def of_line(setting, kind, title):
    """The scores (seeds,) of a line of the study "noise" in one setting; the quiz alone has one row for all."""
    found = scores("noise", f"{kind}-{setting}", title)
    return found if len(found) else scores("noise", kind, title)


def noise():
    """The study "noise", two tables: a column for each share of wrong labels, a line for each of LINES with its scores;
    then the students again, each minus the kd of its share."""
    settings = settings_of("noise")
    kd = [of_line(setting, *LINES["kd"][:2]) for setting in settings]
    of_scores, of_differences = [["score", *settings]], [["minus kd", *settings]]
    for label, (kind, title, look) in LINES.items():
        found = [of_line(setting, kind, title) for setting in settings]
        if any(map(len, found)):
            of_scores.append([label, *(said(train.spread, ours) for ours in found)])
            if look and label != "kd":
                minus_kd = [said(train.paired_difference, *pair) for pair in zip(found, kd)]
                of_differences.append([label, *minus_kd])
    return f"{train.layout(of_scores)}\n{train.layout(of_differences)}"


def noise_rows():
    """The rows of the study "noise": what lines of its tables come from each, and the minutes that each share took."""
    record, of = results.read_found(), results.read_studies()["noise"]
    table = [["lines", "flags", "minutes of each share"]]
    for row, flags in of["rows"].items():
        labels = [label for label, (kind, *_) in LINES.items() if kind == row.removesuffix("-SHARE")]
        names = dict.fromkeys(row.replace("SHARE", share) for share in of["shares"])
        took = [minutes(record["noise", name]["models"]) for name in names if ("noise", name) in record]
        table.append(["; ".join(labels), f"`{flags}`", ", ".join(f"{one:.0f}" for one in took)])
    return train.layout(table)


def command(study):
    """The study's command, to which each row adds its flags, and the words in capitals beside TEACHER."""
    of = results.read_studies()[study]
    words = [f"`{word}` = `{text}`" for word, text in of["words"].items() if word != "TEACHER"]
    return ",\n".join([f"`python train.py {of['base']}`", *words])


def overview(words):
    """Of words like "STUDY" or "STUDY dev": a line for each row and each student in it.

    A student stands beside a kd of its size (within 1%, for vocabularies differ): the row's own kd, if the row has
    another student, too; else the first row's. Teachers are shown in the row that trained them: in others they took no
    seconds.
    """
    study, *split = words.split()
    record, flags = results.read_found(), results.read_studies()[study]["rows"]
    found = {row: record[study, row]["models"] for row in results.studies()[study] if (study, row) in record}
    if not found:
        return "Not run."
    first, *_ = found.values()
    table = [["flags", "student", "score", "minus kd", "kd", "teacher", "teacher after", "minutes"]]
    for row, models in found.items():
        students = [title for title in models if title.startswith("student") and title != "student kd"]
        has_own = bool(students) and "student kd" in models
        kd = (models if has_own else first).get("student kd")
        teachers = [title for title in models if title.endswith(" before") and any(models[title]["seconds"])]
        cells = [
            f"`{flags[row]}`",
            spread_of(models, ["student kd"] if has_own else [], *split),
            spread_of(models, teachers, *split),
            f"{minutes(models):.0f}",
        ]
        for title in students or ["student kd"]:
            method = title.removeprefix("student ")
            after = [name for name in models if name.endswith(f"after {method}")]
            ours = [method, spread_of(models, [title], *split), minus_kd(models[title], kd, *split)]
            table.append([cells[0], *ours, cells[1], cells[2], spread_of(models, after, *split), cells[3]])
            cells = ["", "", "", ""]  # what all students of a row share is said once
    return train.layout(table)


def spread_of(models, titles, split="test"):
    """Mean and deviation of each of these models."""
    return ", ".join(train.spread(np.array(models[title][score_name(models[title], split)])) for title in titles)


def minus_kd(model, kd, split="test"):
    """Such as "+9.0 [+6.3, +11.6]"; nothing where kd is missing, of another size, or the same model."""
    if not kd or model is kd or not np.isclose(model["parameters"][0], kd["parameters"][0], rtol=0.01):
        return ""
    score = score_name(model, split)
    ours = np.array(model[score])
    return train.paired_difference(ours, np.array(kd[score][: len(ours)]))  # a trial has fewer seeds


def costs(studies):
    """Of words like "STUDY STUDY": a line for each, a column for each student; see `costs_of`."""
    found = {study: costs_of(study) for study in studies.split() if on_record(study, "plain")}
    titles = list(dict.fromkeys(title for cells in found.values() for title in cells))
    lines = [[study, *(cells.get(title, "") for title in titles)] for study, cells in found.items()]
    return train.layout([["", *titles], *lines])


def costs_of(study):
    """{student: "84.3, epoch 51, 78 s; 13 s"}: its best on dev (the mean over the seeds after each epoch), when it is
    reached, in seconds of training, and when the student is as good as the rival's best. The rival is pkd, or kd where
    there is no pkd. An epoch of warm-up is taken to cost what one of finetune costs; the others of a method share the
    rest evenly."""
    record, found = results.read_found(), {}
    for row in ("plain", "metadistil"):
        if (study, row) in record:
            for title, model in record[study, row]["models"].items():
                if title.startswith("student"):
                    found[title.removeprefix("student ")] = model, record[study, row]["warmup_epochs"]
    rival, cells = "pkd" if "pkd" in found else "kd", {}
    curves = {name: np.mean(model["by_epoch"], axis=0) for name, (model, _) in found.items()}  # (epochs,)
    an_epoch_of_labels = np.mean(found["finetune"][0]["seconds"]) / len(curves["finetune"])
    for name, (model, warmup) in found.items():
        warmup = 0 if name == "finetune" else warmup
        epochs = np.arange(1, len(curves[name]) + 1)
        later = (np.mean(model["seconds"]) - warmup * an_epoch_of_labels) / (len(epochs) - warmup)
        seconds = an_epoch_of_labels * np.minimum(epochs, warmup) + later * np.maximum(0, epochs - warmup)  # (epochs,)
        best = curves[name].argmax()
        as_good = np.flatnonzero(curves[name] >= curves[rival].max())
        reached = f"{seconds[as_good[0]]:.0f} s" if len(as_good) else "–"
        cells[name] = f"{100 * curves[name][best]:.1f}, epoch {best + 1}, {seconds[best]:.0f} s; {reached}"
    return cells


def not_run():
    """The rows that are not on record, such as "`STUDY ROW`, `STUDY ROW`"."""
    rows = [(study, row) for study, rows in results.studies().items() for row in rows if not on_record(study, row)]
    return ", ".join(f"`{study} {row}`" for study, row in rows)


PARTS = (answer, change, command, compare, costs, mean, noise, noise_rows, not_run, overview, so)


# ---- The page and its figures


def label_noise():
    """The students' test accuracy over the share of wrong labels, and, seed by seed, its difference to kd; means with
    95% intervals."""
    draw.use_style()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    students = [(label, line) for label, line in LINES.items() if line[2]]
    for place, (label, (kind, title, look)) in enumerate(students):
        of = {setting: of_line(setting, kind, title) for setting in settings_of("noise")}
        of = {setting: found for setting, found in of.items() if len(found)}
        differences = [found - of_line(setting, *LINES["kd"][:2]) for setting, found in of.items()]
        where = 100 * np.array([*of], float) + 0.4 * (place - (len(students) - 1) / 2)  # side by side
        for ax, found in zip(axes, (np.array([*of.values()]), np.array(differences))):  # (settings, seeds)
            if len(found):
                half = [train.interval(seeds, 0)[1] for seeds in found]
                style = {"color": look.colour, "linestyle": look.line, "marker": look.marker, "capsize": 3}
                ax.errorbar(where, 100 * found.mean(axis=1), half, **style, label=label)
    axes[0].set(xlabel="wrong training labels (%)", ylabel="student's test accuracy (%)")
    axes[1].set(xlabel="wrong training labels (%)", ylabel="minus kd's, seed by seed (points)")
    axes[0].legend(fontsize=9)
    return figure


def dynamics():
    """Both students and the taught teacher on dev, after each epoch; means over the seeds, and a deviation to each
    side. Left of the dotted line the students learn from labels alone."""
    draw.use_style()
    of_panels = {title: panel for title, panel in DYNAMICS.items() if on_record(*panel)}
    n_rows = -(-len(of_panels) // 3)
    figure, axes = plt.subplots(n_rows, 3, figsize=(13, 4 * n_rows))
    for ax in axes.flat[len(of_panels) :]:
        ax.axis("off")
    for ax, (title, (study, *rows)) in zip(axes.flat, of_panels.items()):
        models = models_of(study, *rows)
        for model in ("student kd", "student metadistil", "teacher after metadistil"):
            found = 100 * np.array(models[model]["by_epoch"])  # (seeds, epochs)
            epochs, mean, deviation = np.arange(1, found.shape[1] + 1), found.mean(axis=0), found.std(axis=0, ddof=1)
            ax.plot(epochs, mean, **draw.look_of(model).of_line(), label=model)
            ax.fill_between(epochs, mean - deviation, mean + deviation, color=draw.look_of(model).colour, alpha=0.2)
        ax.axvline(results.read_found()[study, rows[-1]]["warmup_epochs"] + 0.5, color=draw.GREY, linestyle=":")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(title=title, xlabel="epoch", ylabel=f"{score_name(models[model], 'dev')} (%)")
    axes.flat[0].legend(fontsize=9)
    return figure


def page():
    """The template, filled in."""

    def fill(found):
        part, words = parts[found[1]], found[2].strip()
        return (part(words) if words else part()).rstrip("\n")

    parts = {part.__name__: part for part in PARTS}
    template = (HERE / "template.md").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)(.*?)\}\}", fill, template, flags=re.DOTALL).rstrip() + "\n"


def write():
    """RESULTS.md, and its figures."""
    (HERE / "RESULTS.md").write_text(page(), encoding="utf-8")
    for draw_figure in (label_noise, dynamics):
        draw_figure().savefig(HERE / "figures" / f"{draw_figure.__name__}.png", dpi=100)
    print(HERE / "RESULTS.md")


if __name__ == "__main__":
    write()
