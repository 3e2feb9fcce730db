"""The figures of notebook 06. Scores come as shares of 1, as train.py has them, and are drawn in percent."""

import draw
import matplotlib.pyplot as plt
import numpy as np
from draw import LOOKS, Look

import train

WRONG = "wrong labels in training (%)"
LESS_KD = "less KD's, seed by seed (points)"
BARS = {"capsize": 4, "elinewidth": 2, "markeredgecolor": draw.INK, "markersize": 9}
OF_RECORD = {  # lines of the record's study "noise": how they are drawn
    "kd": LOOKS["kd"],
    "metadistil": LOOKS["metadistil"],
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


def with_bars(ax, x, found, look, label, joined=True):
    """Means over the seeds with their 95% intervals, at x (N,). found (N, seeds), shares of 1."""
    mean, half = np.array([train.interval(seeds, np.zeros_like(seeds)) for seeds in found]).T
    line = look.line if joined else "none"
    style = {"color": look.colour, "linestyle": line, "marker": look.marker, "lw": 2.4} | BARS
    ax.errorbar(x, mean, half, **style, label=label)


def students(shares, scores):
    """The students over the share of wrong labels, and their differences from KD. scores: {method: (shares, seeds)}."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2))
    x = 100 * np.array(shares)
    for shift, (method, found) in zip((-1, 0, 1), scores.items()):
        look = LOOKS[method]
        left.plot(x + shift, 100 * found, **look.of_points() | {"markersize": 4, "alpha": 0.6})
        left.plot(x + shift, 100 * found.mean(axis=1), **look.of_line() | {"marker": look.marker}, ms=9, mec=draw.INK,
                  label=method)  # fmt: skip
        if method != "kd":
            less_kd = found - scores["kd"]
            with_bars(right, x + shift, less_kd, look, f"{method} less kd", joined=False)
            right.plot(x + shift + 1.2, 100 * less_kd, **look.of_points() | {"markersize": 5, "alpha": 0.7})
    left.set(title="Wrong labels cost every student", ylabel="student's dev accuracy (%)")
    right.axhline(0, **LOOKS["kd"].of_line())
    right.set(title="Three seeds leave wide intervals", ylabel=LESS_KD)
    left.legend(loc="lower left")
    right.legend(loc="lower left")
    for ax in (left, right):
        ax.set(xlabel=WRONG, xticks=x)
    plt.show()


def teachers_and_students(by_share):
    """Each seed's teacher before and after, and its two students. by_share: {share: {model: (seeds,)}}."""
    figure, axes = plt.subplots(1, len(by_share), figsize=(13, 5), sharey=True)
    teacher, tall = LOOKS["teacher"], {"markersize": 10}
    before = {"color": teacher.colour, "marker": "_", "linestyle": "", "markersize": 20, "markeredgewidth": 4}
    for ax, (share, found) in zip(axes, by_share.items()):
        seeds = np.arange(len(found["student kd"]))
        of = {model: 100 * scores for model, scores in found.items()}
        ax.vlines(seeds, of["teacher before"], of["teacher after metadistil"], color=teacher.colour, lw=2.5)
        ax.plot(seeds, of["teacher before"], **before, label="teacher before")
        ax.plot(seeds, of["teacher after metadistil"], **teacher.of_points() | tall, label="teacher after metadistil")
        for method, side in (("kd", -0.25), ("metadistil", 0.25)):
            look = LOOKS[method].of_points() | tall
            ax.plot(seeds + side, of[f"student {method}"], **look, label=f"student {method}")
        ax.set(title=f"{share:.0%} wrong labels", xlabel="seed", xticks=seeds, xlim=(-0.5, len(seeds) - 0.5))
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("dev accuracy (%)")
    figure.suptitle("A student becomes about as good as the teacher that it has")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    plt.show()


def over_time(curves, before, warmup):
    """Dev accuracy after each epoch. curves: {model: (epochs,)}; before: that of the teacher at the start."""
    figure, ax = plt.subplots(figsize=(11, 5))
    shade(ax, 0.5, warmup + 0.5)
    ax.axhline(100 * before, color=LOOKS["teacher"].colour, lw=1.5, label="teacher before")
    for model, curve in curves.items():
        look = LOOKS[model.split()[0] if model.startswith("teacher") else model.split()[-1]]
        epochs = np.arange(1, len(curve) + 1)
        shown = epochs >= warmup if model.startswith("teacher") else epochs > 0  # a teacher stands still before
        ax.plot(epochs[shown], 100 * curve[shown], **look.of_line() | {"marker": look.marker}, ms=7, mec=draw.INK,
                label=model.replace("after", "during"))  # fmt: skip
    ax.set(xlabel="epoch of the student", ylabel="dev accuracy (%), mean of the seeds", xticks=epochs)
    ax.set_title("The student that does not see the quiz's labels starts behind")
    ax.legend(loc="lower right")
    plt.show()


def shade(ax, start, end):
    """The warm-up, as a grey band."""
    ax.axvspan(start, end, color=draw.GREY, alpha=0.12, lw=0)
    ax.text((start + end) / 2, 0.98, "warm-up", transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize=12)


def watched(panels, warmup):
    """What a teacher answers while it is taught. panels: {title: {of what: (epochs + 1,)}}."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), sharey=True)
    teacher = LOOKS["teacher"]
    looks = {
        "right on dev": teacher.of_line() | {"marker": teacher.marker},
        "right on the quiz": {"color": draw.INK, "ls": "--", "lw": 2, "marker": "o"},
        "training labels as given": {"color": draw.GREY, "ls": ":", "lw": 2.4, "marker": "s"},
        "wrong training labels, repeated": {"color": draw.LIT, "ls": "-", "lw": 2.6, "marker": "X"},
    }
    for ax, (title, found) in zip(axes, panels.items()):
        for name, values in found.items():
            ax.plot(100 * np.array(values), **looks[name], ms=6, label=name)
        shade(ax, 0, warmup)
        ax.set(title=title, xlabel="epoch of the student", xticks=range(0, len(values), 2), ylim=(0, 105))
        ax.tick_params(labelleft=True)
    axes[0].set_ylabel("share of the sentences (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    plt.show()


def lines_of_record(ax, shares, found, offsets):
    """Some lines over the share of wrong labels, shares (N,). found: {line: (N, seeds)}, NaN where nothing was run."""
    x = 100 * np.array(shares)
    for line, offset in zip(found, offsets):
        run = ~np.isnan(found[line]).any(axis=1)
        with_bars(ax, (x + offset)[run], found[line][run], OF_RECORD[line], line)
    ax.set(xlabel=WRONG, xticks=x)


def rivals(shares, scores):
    """Students on real text and, seed by seed, their differences from KD. scores: {line: (shares, seeds)}."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6))
    offsets = (-0.6, -0.2, 0.2, 0.6)
    lines_of_record(left, shares, scores, offsets)
    less_kd = {line: found - scores["kd"] for line, found in scores.items() if line != "kd"}
    right.axhline(0, **LOOKS["kd"].of_line())
    lines_of_record(right, shares, less_kd, offsets[1:])
    left.set(title="With 40% wrong labels the quiz alone teaches best", ylabel="student's test accuracy (%)")
    right.set(title="The rivals gain on KD, MetaDistil falls behind", ylabel=LESS_KD)
    left.legend(loc="lower left")
    plt.show()


def reasons(shares, less_kd, less_before):
    """What costs MetaDistil's student, and what repairs a teacher: differences {line: (shares, seeds)}."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4))
    left.axhline(0, **LOOKS["kd"].of_line(), label="kd")
    lines_of_record(left, shares, less_kd, (-0.5, 0, 0.5))
    left.set(title="Without the quiz's labels a student falls behind", ylabel=LESS_KD)
    right.axhline(0, color=draw.INK, lw=1)
    lines_of_record(right, shares, less_before, (-0.3, 0.3))
    right.set(title="Only tuning on the quiz repairs the teacher", ylabel="teacher's gain, seed by seed (points)")
    left.legend(loc="lower left")
    right.legend(loc="upper left")
    plt.show()


def knobs(found, usual, deviation):
    """One seed, one knob a panel. found: {knob: {value: {method: score}}}; usual: {knob: value}; deviation between
    seeds: {method: points}."""
    figure, axes = plt.subplots(1, len(found), figsize=(13, 4.6), sharey=True)
    for ax, (knob, by_value) in zip(axes, found.items()):
        place, at = np.arange(len(by_value)), [*by_value].index(usual[knob])
        for shift, method in ((-0.06, "kd"), (0.06, "metadistil")):
            look = LOOKS[method]
            scores = 100 * np.array([of[method] for of in by_value.values()])
            ax.plot(place + shift, scores, **look.of_line() | {"marker": look.marker}, ms=9, mec=draw.INK, label=method)
            ax.errorbar(at + shift, scores[at], deviation[method], color=look.colour, capsize=5, lw=2)
        ax.axvline(at, color=draw.INK, lw=0.8, ls=":", zorder=0)
        ax.set(xlabel=KNOBS[knob], xlim=(-0.4, len(place) - 0.6))
        ax.set_xticks(place, [f"{value:g}" for value in by_value])
        ax.tick_params(labelleft=True)
    axes[0].set_ylabel("student's dev accuracy (%)")
    axes[-1].legend(loc="best")
    figure.suptitle("One seed: does a line bend by more than its bar?")
    plt.show()


def knobs_of_record(found, usual):
    """Means of five seeds. found: {knob: {value: {method: (seeds,)}}}; usual: {knob: value}."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), sharey=True)
    titles = (
        r"A small $\alpha$ costs MetaDistil more than KD",
        "$T$ hardly matters to either",
        r"MetaDistil is ahead with each $\lambda$",
        "A quiz can be too small, and too large",
    )
    for ax, title, (knob, by_value) in zip(axes.flat, titles, found.items()):
        place = np.arange(len(by_value))
        for shift, method in ((-0.06, "kd"), (0.06, "metadistil")):
            with_bars(ax, place + shift, [of[method] for of in by_value.values()], LOOKS[method], method)
        ax.axvline([*by_value].index(usual[knob]), color=draw.INK, lw=0.8, ls=":", zorder=0)
        ax.set(title=title, xlabel=KNOBS[knob])
        ax.set_xticks(place, [f"{value:g}" for value in by_value])
        ax.tick_params(labelleft=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("student's test accuracy (%)")
    axes[0, 1].legend(loc="lower right")
    plt.show()


def sizes(parameters, found, teacher, deviation):
    """One seed: students by size. parameters: of each; found: {method: score of each}; teacher: its score."""
    figure, ax = plt.subplots(figsize=(11, 5.2))
    for factor, method in ((0.98, "kd"), (1.02, "metadistil")):
        look, x, y = LOOKS[method], factor * np.array(parameters), 100 * np.array(found[method])
        ax.plot(x, y, **look.of_line() | {"marker": look.marker}, ms=9, mec=draw.INK, label=f"student {method}")
        ax.errorbar(x[1], y[1], deviation[method], color=look.colour, capsize=5, lw=2)
    ax.axhline(100 * teacher, **LOOKS["teacher"].of_line(), label="teacher before")
    ax.set(xscale="log", xlabel="student's parameters (logarithmic)", ylabel="dev accuracy (%)")
    names = [f"{n:,}\n(teacher: {max(parameters) / n:.1f} times as many)" for n in parameters]
    ax.set_xticks(parameters, names)
    ax.set_title("One seed: is any difference between sizes larger than the bars?")
    ax.minorticks_off()
    ax.legend(loc="best")
    plt.show()


def ideas(found, deviation):
    """One seed, a row for each idea. found: {idea: {method: score}}, the usual setting first."""
    figure, ax = plt.subplots(figsize=(11, 4.6))
    for row, scores in enumerate(found.values()):
        pair = [100 * scores[method] for method in ("kd", "metadistil")]
        ax.plot(pair, [row, row], color=draw.GREY, lw=1.2, zorder=1)
        for value, method, shift in zip(pair, ("kd", "metadistil"), (0.17, -0.17)):
            look = LOOKS[method]
            ax.plot(value, row, **look.of_points() | {"markersize": 11}, label=None if row else method)
            if row == 0:
                ax.errorbar(value, row + shift, xerr=deviation[method], color=look.colour, capsize=4, lw=2)
                ax.axvline(value, color=look.colour, lw=1.2, ls=look.line, zorder=0)
    ax.set_yticks(range(len(found)), [*found])
    ax.set(xlabel="student's dev accuracy (%)", ylim=(len(found) - 0.5, -0.5))
    ax.set_title("One seed: does a mark lie beyond the usual setting's bar?")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def half_widths(n, half, known):
    """The half-width of an interval over the number of seeds n (N,), and what it were if s were known; points."""
    figure, ax = plt.subplots(figsize=(11, 5))
    ax.plot(n, half, color=draw.INK, lw=2.6, marker="o", ms=8, label=r"$t_{n-1}\,s/\sqrt{n}$")
    ax.plot(n, known, color=draw.GREY, lw=2.4, ls=":", label=r"$1.96\,s/\sqrt{n}$: if $s$ were known")
    for count, value in zip(n, half):
        if count in (2, 3, 5, 10):
            draw.note(ax, f"{value:.1f}", (count, value), (6, 8))
    ax.set(xlabel="number of seeds n", ylabel="half-width (points)", xticks=n, ylim=(0, 1.15 * max(half)))
    ax.set_title("The first seeds buy the most")
    ax.legend()
    plt.show()
