"""The figures of notebook 06. Scores come as shares of 1, as train.py has them, and are drawn in percent."""

import draw
import matplotlib.pyplot as plt
import numpy as np
from draw import LOOKS, Look

import train

WRONG = "wrong labels in training (%)"
LESS_KD = "less KD's, seed by seed (points)"
OF_RECORD = LOOKS | {  # lines of the record's study "noise": how they are drawn
    "kd from the teacher tuned on the quiz": Look(LOOKS["kd"].colour, "^", (0, (1, 1))),
    "kd without the quiz's labels": Look(LOOKS["kd"].colour, "v", ":"),
    "metadistil that learns the quiz, too": Look(LOOKS["metadistil"].colour, "s", ":"),
    "student on the quiz alone": Look(LOOKS["finetune"].colour, "X", "-."),
    "teacher tuned on the quiz": Look(LOOKS["teacher"].colour, "s", "--"),
    "teacher after metadistil": LOOKS["teacher"],
}
KNOBS = {
    "alpha": r"$\alpha$, weight of the soft targets",
    "temperature": "temperature $T$",
    "pilot_lr": r"pilot step $\lambda$",
    "quiz_size": "examples in the quiz",
}


def beside(x, lines, apart):
    """x (N,) for each of some lines, moved a little, so that their bars stand side by side."""
    return [np.array(x) + apart * (k - (len(lines) - 1) / 2) for k in range(len(lines))]


def means(ax, x, found, apart=0.4, **look):
    """Lines of means over the seeds, with 95% intervals. found: {line: (N, seeds)}, NaN where nothing was run."""
    for place, (line, seeds) in zip(beside(x, found, apart), found.items()):
        run = ~np.isnan(seeds).any(axis=1)
        mean, half = np.array([train.interval(row, np.zeros_like(row)) for row in seeds[run]]).T
        ax.errorbar(place[run], mean, half, **OF_RECORD[line].of_bars() | OF_RECORD[line].of_line() | look, label=line)


def one_seed(ax, place, found, usual, deviation):
    """Both students over the places (N,), {method: scores}, and at the usual one the deviation between the seeds."""
    for x, (method, scores) in zip(place, found.items()):
        scores = 100 * np.array(scores)
        ax.plot(x, scores, **LOOKS[method].of_curve(), label=method)
        ax.errorbar(x[usual], scores[usual], deviation[method], color=LOOKS[method].colour, capsize=5, lw=2)


def students(shares, scores):
    """The students over the share of wrong labels, and their differences from KD. scores: {method: (shares, seeds)}."""
    x, less_kd = 100 * np.array(shares), {name: found - scores["kd"] for name, found in scores.items() if name != "kd"}
    titles, ylabels = (
        ("Wrong labels cost every student", "Three seeds leave wide intervals"),
        ["dev accuracy (%)", LESS_KD],
    )
    left, right = draw.panels(*titles, xlabel=WRONG, ylabel=ylabels, size=(13, 5.2), xticks=x)
    right.axhline(0, **LOOKS["kd"].of_line())
    means(right, x, less_kd, 2, linestyle="")
    for ax, lines, apart, aside in ((left, scores, 1, 0), (right, less_kd, 2, 1.2)):
        for place, (method, found) in zip(beside(x, lines, apart), lines.items()):
            ax.plot(place + aside, 100 * found, **LOOKS[method].of_points() | {"markersize": 5, "alpha": 0.7})
            if ax is left:
                ax.plot(place, 100 * found.mean(axis=1), **LOOKS[method].of_curve(), label=method)
        ax.legend(loc="lower left")


def teachers_and_students(by_share):
    """Each seed's teacher before and after, and its two students. by_share: {share: {model: (seeds,)}}."""
    titles = [f"{share:.0%} wrong labels" for share in by_share]
    axes = draw.panels(*titles, xlabel="seed", ylabel="dev accuracy (%)", shared=True)
    teacher = LOOKS["teacher"]
    bar = {"marker": "_", "markersize": 20, "markeredgewidth": 4, "markeredgecolor": teacher.colour}
    looks = {
        "teacher before": (
            0,
            teacher.of_points() | bar,
        ),
        "teacher after metadistil": (0, teacher.of_points()),
        "student kd": (-0.25, LOOKS["kd"].of_points()),
        "student metadistil": (0.25, LOOKS["metadistil"].of_points()),
    }
    for ax, found in zip(axes, by_share.values()):
        seeds = np.arange(len(found["student kd"]))
        ends = (100 * found[f"teacher {when}"] for when in ("before", "after metadistil"))
        ax.vlines(seeds, *ends, color=teacher.colour, lw=2.5)
        for model, (aside, look) in looks.items():
            ax.plot(seeds + aside, 100 * found[model], **{"markersize": 10} | look, label=model)
        ax.set(xticks=seeds, xlim=(-0.5, len(seeds) - 0.5))
        ax.grid(axis="x", visible=False)
    ax.figure.suptitle("A student becomes about as good as the teacher that it has")
    draw.legend_below(ax)


def over_time(curves, before, warmup):
    """Dev accuracy after each epoch. curves: {model: (epochs,)}; before: that of the teacher at the start."""
    labels = {"xlabel": "epoch of the student", "ylabel": "dev accuracy (%), mean of the seeds"}
    [ax] = draw.panels("The student that does not see the quiz's labels starts behind", size=(11, 5), **labels)
    shade(ax, 0.5, warmup + 0.5)
    ax.axhline(100 * before, color=LOOKS["teacher"].colour, lw=1.5, label="teacher before")
    for model, curve in curves.items():
        epochs = np.arange(1, len(curve) + 1)
        shown = epochs >= warmup if model.startswith("teacher") else epochs > 0  # a teacher stands still before
        label = model.replace("after", "during")
        ax.plot(epochs[shown], 100 * curve[shown], **draw.look_of(model).of_curve(), label=label)
    ax.set_xticks(epochs)
    ax.legend(loc="lower right")


def shade(ax, start, end):
    """The warm-up, as a grey band."""
    ax.axvspan(start, end, color=draw.GREY, alpha=0.12, lw=0)
    ax.text((start + end) / 2, 0.98, "warm-up", transform=ax.get_xaxis_transform(), ha="center", va="top")


def watched(panels, warmup):
    """What a teacher answers while it is taught. panels: {title: {of what: (epochs + 1,)}}."""
    labels = {"xlabel": "epoch of the student", "ylabel": "share of the sentences (%)", "ylim": (0, 105)}
    axes = draw.panels(*panels, size=(13, 5.2), shared=True, **labels)
    looks = {
        "right on dev": LOOKS["teacher"],
        "right on the quiz": Look(draw.INK, "o", "--"),
        "training labels as given": Look(draw.GREY, "s", ":"),
        "wrong training labels, repeated": Look(draw.LIT, "X", "-"),
    }
    for ax, found in zip(axes, panels.values()):
        for name, values in found.items():
            ax.plot(100 * np.array(values), **looks[name].of_curve() | {"markersize": 6}, label=name)
        shade(ax, 0, warmup)
        ax.set_xticks(range(0, len(values), 2))
        ax.tick_params(labelleft=True)
    draw.legend_below(ax)


def rivals(shares, scores):
    """Students on real text and, seed by seed, their differences from KD. scores: {line: (shares, seeds)}."""
    x, less_kd = 100 * np.array(shares), {line: found - scores["kd"] for line, found in scores.items() if line != "kd"}
    titles = "With 40% wrong labels the quiz alone teaches best", "The rivals gain on KD, MetaDistil falls behind"
    ylabels = ["student's test accuracy (%)", LESS_KD]
    left, right = draw.panels(*titles, xlabel=WRONG, ylabel=ylabels, size=(13, 5.6), xticks=x)
    means(left, x, scores)
    right.axhline(0, **LOOKS["kd"].of_line())
    means(right, x, less_kd)
    left.legend(loc="lower left")


def reasons(shares, less_kd, less_before):
    """What costs MetaDistil's student, and what repairs a teacher: differences {line: (shares, seeds)}."""
    x, ylabels = 100 * np.array(shares), [LESS_KD, "teacher's gain, seed by seed (points)"]
    titles = "Without the quiz's labels a student falls behind", "Only tuning on the quiz repairs the teacher"
    left, right = draw.panels(*titles, xlabel=WRONG, ylabel=ylabels, size=(13, 5.4), xticks=x)
    left.axhline(0, **LOOKS["kd"].of_line(), label="kd")
    means(left, x, less_kd)
    right.axhline(0, color=draw.INK, lw=1)
    means(right, x, less_before)
    left.legend(loc="lower left")
    right.legend(loc="upper left")


def name_knob(ax, knob, values, usual):
    """The values of a knob on the axis below; a dotted line at the usual one."""
    ax.axvline([*values].index(usual), color=draw.INK, lw=0.8, ls=":", zorder=0)
    ax.set(xlabel=KNOBS[knob], xlim=(-0.4, len(values) - 0.6))
    ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    ax.tick_params(labelleft=True)


def knobs(found, usual, deviation):
    """One seed, one knob a panel. found: {knob: {value: {method: score}}}; usual: {knob: value}; deviation between
    seeds: {method: points}."""
    axes = draw.panels(*[""] * len(found), ylabel="student's dev accuracy (%)", size=(13, 4.6), shared=True)
    for ax, (knob, by_value) in zip(axes, found.items()):
        scores = {method: [of[method] for of in by_value.values()] for method in ("kd", "metadistil")}
        one_seed(ax, beside(range(len(by_value)), scores, 0.12), scores, [*by_value].index(usual[knob]), deviation)
        name_knob(ax, knob, by_value, usual[knob])
    ax.legend(loc="best")
    ax.figure.suptitle("One seed: does a line bend by more than its bar?")


def knobs_of_record(found, usual):
    """Means of five seeds. found: {knob: {value: {method: (seeds,)}}}; usual: {knob: value}."""
    _, axes = plt.subplots(2, 2, figsize=(13, 9), sharey=True)
    titles = (r"A small $\alpha$ costs MetaDistil more than KD", "$T$ hardly matters to either",
              r"MetaDistil is ahead with each $\lambda$", "A quiz can be too small, and too large")  # fmt: skip
    for ax, title, (knob, by_value) in zip(axes.flat, titles, found.items()):
        scores = {method: np.array([of[method] for of in by_value.values()]) for method in ("kd", "metadistil")}
        means(ax, range(len(by_value)), scores, 0.12)
        name_knob(ax, knob, by_value, usual[knob])
        ax.set_title(title)
    for ax in axes[:, 0]:
        ax.set_ylabel("student's test accuracy (%)")
    axes[0, 1].legend(loc="lower right")


def sizes(parameters, found, teacher, deviation):
    """One seed: students by size. parameters: of each; found: {method: score of each}; teacher: its score."""
    title = "One seed: is any difference between sizes larger than the bars?"
    [ax] = draw.panels(title, xlabel="student's parameters (logarithmic)", ylabel="dev accuracy (%)", size=(11, 5.2))
    places = [factor * np.array(parameters) for factor in (0.98, 1.02)]
    one_seed(ax, places, {method: found[method] for method in ("kd", "metadistil")}, 1, deviation)
    ax.axhline(100 * teacher, **LOOKS["teacher"].of_line(), label="teacher before")
    ax.set_xscale("log")
    ax.set_xticks(parameters, [f"{n:,}\n(teacher: {max(parameters) / n:.1f} times as many)" for n in parameters])
    ax.minorticks_off()
    ax.legend(loc="best")


def ideas(found, deviation):
    """One seed, a row for each idea. found: {idea: {method: score}}, the usual setting first."""
    title, limits = "One seed: does a mark lie beyond the usual setting's bar?", (len(found) - 0.5, -0.5)
    [ax] = draw.panels(title, xlabel="student's dev accuracy (%)", size=(11, 4.6), ylim=limits)
    rows, usual = range(len(found)), next(iter(found.values()))
    scores = {method: 100 * np.array([of[method] for of in found.values()]) for method in ("kd", "metadistil")}
    ax.hlines(rows, *scores.values(), color=draw.GREY, lw=1.2, zorder=1)
    for (method, values), aside in zip(scores.items(), (0.17, -0.17)):
        look = LOOKS[method]
        ax.plot(values, rows, **look.of_points() | {"markersize": 11}, label=method)
        ax.errorbar(100 * usual[method], aside, xerr=deviation[method], color=look.colour, capsize=4, lw=2)
        ax.axvline(100 * usual[method], color=look.colour, lw=1.2, ls=look.line, zorder=0)
    ax.set_yticks(rows, found)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def half_widths(n, half, known):
    """The half-width of an interval over the number of seeds n (N,), and what it were if s were known; points."""
    labels = {"xlabel": "number of seeds n", "ylabel": "half-width (points)"}
    [ax] = draw.panels("The first seeds buy the most", size=(11, 5), xticks=n, ylim=(0, 1.15 * max(half)), **labels)
    ax.plot(n, half, color=draw.INK, lw=2.6, marker="o", ms=8, label=r"$t_{n-1}\,s/\sqrt{n}$")
    ax.plot(n, known, color=draw.GREY, lw=2.4, ls=":", label=r"$1.96\,s/\sqrt{n}$: if $s$ were known")
    for count, value in zip(n, half):
        if count in (2, 3, 5, 10):
            draw.note(ax, f"{value:.1f}", (count, value), (6, 8))
    ax.legend()
