"""The figures of notebook 06. Scores come as shares of 1, as train.py has them, and are drawn in percent."""

import draw
import numpy as np
from draw import LOOKS, Look

import train

MINUS_KD = "minus KD's, seed by seed (points)"
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


def means(ax, x, found, apart, dots=None, **look):
    """Means over the seeds, with their 95% intervals. found: {line: (N, seeds)}, NaN where nothing was run; dots: how
    far beside its bar every seed stands as a dot."""
    for k, (line, seeds) in enumerate(found.items()):
        run = ~np.isnan(seeds).any(axis=1)
        mean, half = np.array([train.interval(row, np.zeros_like(row)) for row in seeds[run]]).T
        place = np.array(x)[run] + apart * (k - (len(found) - 1) / 2)  # side by side
        ax.errorbar(place, mean, half, **OF_RECORD[line].of_bars() | OF_RECORD[line].of_line() | look, label=line)
        if dots:
            ax.plot(place + dots, 100 * seeds[run], ".", color=OF_RECORD[line].colour, mec=draw.INK, ms=10)


def over_wrong_labels(shares, panels, ylabels, apart=0.4, dots=None):
    """Accuracies, or differences of two, over the share of wrong labels. panels: {title: {line: (shares, seeds)}}."""
    x = 100 * np.array(shares)
    axes = draw.panels(*panels, xlabel="wrong labels in training (%)", ylabel=ylabels, size=(13, 5.5), xticks=x)
    for ax, found in zip(axes, panels.values()):
        means(ax, x, found, apart, dots)
        ax.legend()
        low, high = ax.get_ylim()
        if low < 0 < high:
            ax.axhline(0, color=draw.INK, lw=1)


def teachers_and_students(by_share):
    """Each seed's teacher before and after, and its two students. by_share: {share: {model: (seeds,)}}."""
    titles = [f"{share:.0%} wrong labels" for share in by_share]
    axes = draw.panels(*titles, xlabel="seed", ylabel="dev accuracy (%)", shared=True)
    looks = {  # how far beside the teacher's line, and the mark
        "teacher before": (0, LOOKS["teacher"]._replace(marker="s")),
        "teacher after metadistil": (0, LOOKS["teacher"]),
        "student kd": (-0.25, LOOKS["kd"]),
        "student metadistil": (0.25, LOOKS["metadistil"]),
    }
    for ax, found in zip(axes, by_share.values()):
        seeds = np.arange(len(found["student kd"]))
        ends = (100 * found[f"teacher {when}"] for when in ("before", "after metadistil"))
        ax.vlines(seeds, *ends, color=LOOKS["teacher"].colour, lw=2.5)
        for model, (aside, look) in looks.items():
            ax.plot(seeds + aside, 100 * found[model], **look.of_points() | {"markersize": 10}, label=model)
        ax.set(xticks=seeds, xlim=(-0.5, len(seeds) - 0.5))
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
    draw.legend_below(axes[0])


def knobs(title, panels, usual, deviation=None):
    """The two students, a knob a panel. panels: {knob: {value: {method: scores of the seeds, or the score of one}}};
    usual: {knob: its usual value}; deviation: {method: points}, of the seeds, as bands about the usual scores."""
    axes = draw.panels(*[""] * len(panels), ylabel="student's accuracy (%)", size=(13, 4.6), shared=True)
    for ax, (knob, by_value) in zip(axes, panels.items()):
        methods = next(iter(by_value.values()))
        found = {method: np.array([np.atleast_1d(of[method]) for of in by_value.values()]) for method in methods}
        named = isinstance(usual[knob], str)  # such values have no order, so no line joins them
        means(ax, range(len(by_value)), found, 0.12, **{"linestyle": ""} if named else {})
        at = [*by_value].index(usual[knob])
        ax.axvline(at, color=draw.INK, lw=0.8, ls=":", zorder=0)
        for method, points in (deviation or {}).items():
            middle = 100 * found[method][at].mean()
            ax.axhspan(middle - points, middle + points, color=LOOKS[method].colour, alpha=0.15, lw=0)
        ax.set(xlabel=KNOBS.get(knob, knob), xlim=(-0.4, len(by_value) - 0.6))
        ax.set_xticks(range(len(by_value)), [value if named else f"{value:,g}" for value in by_value])
    ax.figure.suptitle(title)
    draw.legend_below(ax)


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
