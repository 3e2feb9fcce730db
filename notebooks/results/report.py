"""RESULTS.md from results.jsonl and template.md: `python notebooks/results/report.py`, which also draws the figures.

The template's prose holds no numbers of results. Where it says {{NAME ARGUMENTS}}, the function of that name in PARTS
puts what the record says: tables, numbers, and "ahead", "level" or "behind" by one rule, `verdict`.
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

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
import draw  # noqa: E402
import methods  # noqa: E402
import results  # noqa: E402

import train  # noqa: E402

HERE = results.HERE
LINES = {  # of the study "noise": what a line shows -> kind of row, model, look in the figure (of students alone)
    "teacher": ("plain", "teacher before", None),
    "teacher tuned on the quiz": ("tuned", "student finetune", None),
    "teacher after metadistil": ("metadistil", "teacher after metadistil", None),
    "finetune": ("plain", "student finetune", draw.LOOKS["finetune"]),
    "kd": ("plain", "student kd", draw.LOOKS["kd"]),
    "metadistil": ("metadistil", "student metadistil", draw.LOOKS["metadistil"]),
    "metadistil that learns the quiz, too": (
        "shared",
        "student metadistil",
        draw.Look(draw.LOOKS["metadistil"].colour, "s", ":"),
    ),
    "kd without the quiz's labels": ("withheld", "student metadistil", draw.Look(draw.LOOKS["kd"].colour, "v", ":")),
    "kd from the teacher tuned on the quiz": ("tuned-kd", "student kd", draw.Look(draw.LOOKS["kd"].colour, "^", "-.")),
    "student on the quiz alone": (
        "quiz-alone",
        "student finetune",
        draw.Look(draw.LOOKS["finetune"].colour, "x", "-."),
    ),
}
ANSWERS = {  # what a line of `answer` is about: study, rows
    "built-in reviews, no label wrong": ("right", "plain", "metadistil"),
    "built-in reviews, 40% wrong": ("reviews", "plain", "metadistil"),
    "SST-2, from scratch": ("scratch", "plain"),
    "SST-2, pretrained": ("improving", "plain"),
    "SST-2, pretrained, 0% wrong": ("noise", "plain-0", "metadistil-0"),
    "SST-2, pretrained, 10% wrong": ("noise", "plain-0.1", "metadistil-0.1"),
    "SST-2, pretrained, 20% wrong": ("noise", "plain-0.2", "metadistil-0.2"),
    "SST-2, pretrained, 30% wrong": ("noise", "plain-0.3", "metadistil-0.3"),
    "SST-2, pretrained, 40% wrong": ("noise", "plain-0.4", "metadistil-0.4"),
    "CoLA, pretrained": ("cola", "plain"),
    "MRPC, pretrained": ("mrpc", "plain"),
    "CIFAR-100, a fifth of it": ("cifar", "plain"),
}
DYNAMICS = {  # a panel of the figure of that name: study, rows
    "built-in reviews, no label wrong": ("right", "plain", "metadistil"),
    "built-in reviews, 40% wrong": ("reviews", "plain", "metadistil"),
    "MRPC, pretrained": ("mrpc", "plain"),
    "CIFAR-100, a fifth of it": ("cifar", "plain"),
    "no label wrong, teacher keeps its job": ("ideas-right", "plain", "own-job-1"),
    "40% wrong, teacher keeps its job": ("ideas", "plain", "own-job-1"),
}


# Other ways for a teacher to learn: methods with MetaDistil's loss and a step of their own.
IDEAS = [name for name, method in methods.METHODS.items() if method.loss is train.METHODS["metadistil"].loss]


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
    models = models_of(study, row) if (study, row) in results.read_found() else {}
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


# ---- What the template asks for


def answer():
    """Does it help, and when? A line for each of ANSWERS that has been run: kd's student, and, seed by seed, what
    differs from it; and what the quiz did to the teacher."""
    pairs = [("student kd", "student finetune"), ("student metadistil", "student kd")]
    pairs.append(("teacher after metadistil", "teacher before"))
    rows = [["", "score", "kd", "kd less finetune", "metadistil less kd", "teacher after less before"]]
    for about, (study, *of) in ANSWERS.items():
        if on_record(study, *of):
            models = models_of(study, *of)
            score = score_name(models["student kd"])
            found = {title: np.array(model[score]) for title, model in models.items()}
            differ = [difference(found[ours], found[theirs]) for ours, theirs in pairs]
            rows.append([about, score, train.spread(found["student kd"]), *differ])
    return train.layout(rows)


def compare(words, said=difference):
    """Of words like "STUDY ROW TITLE / ROW TITLE": the first beside the second, seed by seed."""
    ours, theirs = words.split(" / ")
    study, row, title = ours.split(maxsplit=2)
    other_row, other_title = theirs.split(maxsplit=1)
    ours, theirs = scores(study, row, title), scores(study, other_row, other_title)
    return said(ours, theirs) if len(ours) and len(theirs) else "not run"


def change(words):
    """As `compare`, without the verdict: of a teacher before and after its lessons."""
    return compare(words, train.paired_difference)


def mean(words):
    """Of words like "STUDY ROW TITLE": mean and deviation of its scores."""
    study, row, title = words.split(maxsplit=2)
    found = scores(study, row, title)
    return train.spread(found) if len(found) else "not run"


def settings_of(study):
    """The settings of a study, such as shares of wrong labels, whose row "plain-SETTING" is on record."""
    return sorted(
        row.removeprefix("plain-") for of, row in results.read_found() if of == study and row.startswith("plain-")
    )


def of_line(setting, kind, title, split="test"):
    """The scores (seeds,) of a line of the study "noise" in one setting. A row without a setting, the quiz alone, serves
    for each."""
    found = scores("noise", f"{kind}-{setting}", title, split)
    return found if len(found) else scores("noise", kind, title, split)


def noise(split="test"):
    """The study "noise": a line for each of LINES, a column for each share of wrong labels. Of students also the
    difference to the share's own kd."""
    settings = settings_of("noise")
    rows = [["", *settings]]
    for label, (kind, title, look) in LINES.items():
        cells = []
        for setting in settings:
            ours, kd = of_line(setting, kind, title, split), of_line(setting, *LINES["kd"][:2], split)
            differs = f"; {train.paired_difference(ours, kd)}" if look and label != "kd" and len(ours) else ""
            cells.append(train.spread(ours) + differs if len(ours) else "")
        if any(cells):
            rows.append([label, *cells])
    return train.layout(rows)


def overview(words):
    """Of words like "STUDY" or "STUDY dev": a line for each row, a column for each model that any row trained. A student
    stands beside a kd of its size (within 1%, for vocabularies differ): the row's own, if the row has kd and metadistil;
    else the first row's. Minutes are of training, all seeds together."""
    study, *split = words.split()
    record = results.read_found()
    trained = {}
    for row in results.studies()[study]:
        if (study, row) in record:
            models = models_of(study, row)
            trained[row] = {title: model for title, model in models.items() if was_trained(model)}
    if not trained:
        return "Not run."
    titles = list(dict.fromkeys(title for models in trained.values() for title in models))
    first, *_ = trained.values()
    table = [["", *titles, "minutes"]]
    for row, models in trained.items():
        has_both = {"student kd", "student metadistil"} <= {*models}
        kd = (models if has_both else first).get("student kd")
        cells = [cell_of(title, models.get(title), kd, *split) for title in titles]
        table.append([row, *cells, f"{minutes(models):.0f}"])
    return train.layout(table)


def was_trained(model):
    """Whether the row trained it; a teacher that a file brought has no seconds."""
    return model["seconds"][0] != 0


def cell_of(title, model, kd, split="test"):
    """Such as "84.2 ± 3.9; +9.0 [+6.3, +11.6]": a model's score and, of a student, its difference to any kd."""
    if model is None:
        return ""
    score = score_name(model, split)
    ours = np.array(model[score])
    cell = train.spread(ours)
    if kd and title.startswith("student") and model is not kd:
        if np.isclose(model["parameters"][0], kd["parameters"][0], rtol=0.01):
            theirs = np.array(kd[score][: len(ours)])  # a trial has fewer seeds
            cell += f"; {train.paired_difference(ours, theirs)}"
    return cell


def costs(study):
    """When each method is at its best on dev (the mean over the seeds after each epoch), and when it is as good as pkd's
    best, or kd's where there is no pkd: the seconds of training until then. An epoch of warm-up is taken to cost what
    one of finetune costs; the others of a method share the rest evenly."""
    record, found = results.read_found(), {}
    for row in ("plain", "metadistil"):
        if (study, row) in record:
            for title, model in record[study, row]["models"].items():
                if title.startswith("student"):
                    found[title] = model, record[study, row]["warmup_epochs"]
    rival = "student pkd" if "student pkd" in found else "student kd"
    if not {"student finetune", rival} <= {*found}:
        return "Not run."
    rows = [["", "best on dev, %", "after epoch", "seconds", f"seconds to {rival.split()[1]}'s best"]]
    curves = {title: np.mean(model["by_epoch"], axis=0) for title, (model, _) in found.items()}  # (epochs,)
    an_epoch_of_labels = np.mean(found["student finetune"][0]["seconds"]) / len(curves["student finetune"])
    for title, (model, warmup) in found.items():
        warmup = 0 if title == "student finetune" else warmup
        epochs = np.arange(1, len(curves[title]) + 1)
        later = (np.mean(model["seconds"]) - warmup * an_epoch_of_labels) / (len(epochs) - warmup)
        seconds = an_epoch_of_labels * np.minimum(epochs, warmup) + later * np.maximum(0, epochs - warmup)  # (epochs,)
        best = curves[title].argmax()
        level = np.flatnonzero(curves[title] >= curves[rival].max())
        reached = f"{seconds[level[0]]:.0f}" if len(level) else "–"
        rows.append([title, f"{100 * curves[title][best]:.1f}", str(best + 1), f"{seconds[best]:.0f}", reached])
    return train.layout(rows)


def commands(study):
    """The study's commands on record, with the minutes of training that each took."""
    lines = []
    for (of, row), entry in results.read_found().items():
        if of == study:
            lines.append(f"{entry['command']}    # {row}: {minutes(entry['models']):.0f} min")
    return "<details><summary>Commands</summary>\n\n```\n" + "\n".join(lines) + "\n```\n</details>"


def not_run():
    """The rows that are not on record, a line for each study."""
    record, lines = results.read_found(), []
    for study, rows in results.studies().items():
        missing = [f"`{row}`" for row in rows if (study, row) not in record]
        if missing:
            lines.append(f"- `{study}`: {', '.join(missing)}")
    return "\n".join(lines)


PARTS = {part.__name__: part for part in (answer, compare, change, mean, noise, overview, costs, commands, not_run)}


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
        less_kd = [found - of_line(setting, *LINES["kd"][:2]) for setting, found in of.items()]
        where = 100 * np.array([*of], float) + 0.4 * (place - (len(students) - 1) / 2)  # side by side
        for ax, found in zip(axes, (np.array([*of.values()]), np.array(less_kd))):  # (settings, seeds)
            if len(found):
                half = [train.interval(seeds, 0)[1] for seeds in found]
                style = {"color": look.colour, "linestyle": look.line, "marker": look.marker, "capsize": 3}
                ax.errorbar(where, 100 * found.mean(axis=1), half, **style, label=label)
    axes[0].set(xlabel="wrong training labels (%)", ylabel="student's test accuracy (%)")
    axes[1].set(xlabel="wrong training labels (%)", ylabel="the same less kd's, seed by seed (points)")
    axes[0].legend(fontsize=9)
    return figure


def dynamics():
    """Both students and the taught teacher on dev, after each epoch; means over the seeds, and a deviation to each side.
    Left of the dotted line the students learn from labels alone."""
    draw.use_style()
    of_panels = {title: panel for title, panel in DYNAMICS.items() if on_record(*panel)}
    n_rows = -(-len(of_panels) // 3)
    figure, axes = plt.subplots(n_rows, 3, figsize=(13, 4 * n_rows))
    for ax in axes.flat[len(of_panels) :]:
        ax.axis("off")
    for ax, (title, (study, *rows)) in zip(axes.flat, of_panels.items()):
        models = models_of(study, *rows)
        for model in ("student kd", "student metadistil", "teacher after metadistil"):
            scores = 100 * np.array(models[model]["by_epoch"])  # (seeds, epochs)
            epochs, mean, deviation = np.arange(1, scores.shape[1] + 1), scores.mean(axis=0), scores.std(axis=0, ddof=1)
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
        name, words = found.groups()
        words = words.strip()
        return (PARTS[name](words) if words else PARTS[name]()).rstrip("\n")

    return re.sub(r"\{\{(\w+)(.*?)\}\}", fill, (HERE / "template.md").read_text(encoding="utf-8"))


def write():
    """RESULTS.md, and its figures."""
    (HERE / "RESULTS.md").write_text(page(), encoding="utf-8")
    for draw_figure in (label_noise, dynamics):
        draw_figure().savefig(HERE / "figures" / f"{draw_figure.__name__}.png", dpi=100)
    print(HERE / "RESULTS.md")


if __name__ == "__main__":
    write()
