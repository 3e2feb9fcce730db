"""The figures of notebook 04. Each is drawn from the numbers that the notebook works out."""

import math

import draw
import numpy as np
from draw import LOOKS


def courses(curves, warmup_epochs):
    """Dev accuracy in percent after each epoch: {title of a row of the table: [...]}."""
    titles = "the teacher learns from its raters", "MetaDistil's student and teacher rise above the teacher before"
    before = curves["teacher before"]
    labels = {"xlabel": "epoch", "ylabel": "dev accuracy (%)", "xticks": range(0, len(before) + 1, 5)}
    left, right = draw.panels(*titles, shared=True, widths=(1, 1.5), **labels)
    draw.lines(left, range(1, len(before) + 1), {"teacher before": before}, [LOOKS["teacher"]])
    right.axhline(before[-1], color=draw.GREY, lw=1.5, label="teacher before, at its end")
    right.axvline(warmup_epochs + 0.5, color=draw.GREY, lw=1)
    students = {title.replace("after", "during"): curve for title, curve in curves.items() if curve is not before}
    epochs = range(1, len(curves["student kd"]) + 1)
    draw.lines(right, epochs, students, map(draw.look_of, students), points=True)


def quizzes(steps, losses, lowered):
    """The student's quiz loss before the pilot at some steps (N,), and by how much the pilot lowered it (N,)."""
    titles = "the quiz loss falls", "one pilot step lowers it a little, or raises it a little"
    ylabels = [r"$L_q(\theta_S)$, nats", r"$L_q(\theta_S) - L_q(\theta'_S)$, nats"]
    left, right = draw.panels(*titles, xlabel="step of the student", ylabel=ylabels, size=(13, 4.6))
    left.plot(steps, losses, **LOOKS["metadistil"].of_points(), label="one quiz batch")
    draw.lines(left, steps, {"log 2: a guess": math.log(2)}, [draw.PLAIN[4]])
    left.set_ylim(0)
    for chosen, role, name in ((lowered > 0, "positive", "lower"), (lowered <= 0, "negative", "higher")):
        right.vlines(steps[chosen], 0, lowered[chosen], color=LOOKS[role].colour, lw=1.5)
        right.plot(steps[chosen], lowered[chosen], **LOOKS[role].of_points(), ms=9, label=f"{name} after it")
    right.legend(title="quiz loss")


def minds(panels):
    """How sure the teacher is of the right class, quiz after quiz, and at the end of the run. panels: {title: (paths
    (quizzes + 1, sentences), at the end (sentences,))}, two of them."""
    axes = draw.panels(*panels, xlabel="quizzes heard", ylabel="training sentence, sorted by its end", shared=True)
    for ax, (paths, at_end) in zip(axes, panels.values()):
        order = np.argsort(at_end + 1e-3 * paths[-1])[::-1]
        strips = [paths, np.full((2, len(order)), np.nan), np.tile(at_end, (6, 1))]  # the end is six quizzes wide
        image = ax.imshow(np.vstack(strips).T[order], aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        ticks = range(0, len(paths) - 9, 20)
        ax.set_xticks([*ticks, len(paths) + 4.5], [*ticks, "end"])
        draw.bare(ax)
    ax.figure.colorbar(image, ax=axes, label="$p_T$ of the right class", shrink=0.8)


def certainty(panels):
    """How sure the teacher is of the right class. panels: {title: (as it came (N,), at the end (N,))}, two of them."""
    titles = [f"{title} ({len(before)} sentences)" for title, (before, _) in panels.items()]
    labels = {"xlabel": "$p_T$ of the right class", "ylabel": "share of these sentences (%)", "xlim": (0, 1)}
    axes = draw.panels(*titles, size=(13, 4.6), shared=True, **labels)
    for ax, (before, after) in zip(axes, panels.values()):
        bins = {"bins": np.linspace(0, 1, 21), "weights": np.full(len(after), 100 / len(after))}
        ax.hist(after, color=LOOKS["teacher"].colour, label="at the end", **bins)
        ax.hist(before, histtype="step", color=draw.INK, ls="--", lw=2.2, label="as it came", **bins)
        ax.axvline(0.5, color=draw.INK, lw=1)
    axes[0].legend(loc="upper left")
    ax.figure.suptitle("At the end the teacher is surer, also of what it gets wrong")


def pushes(middle, half):
    """Of the sentences of a batch those that the quiz pushes to the truth, in percent: the mean of ten quizzes (tens,
    2) and half its 95% interval; the raters were right in column 0, wrong in column 1."""
    labels = {"xlabel": "quizzes heard", "ylabel": "pushed to the truth (%)"}
    title = "The quiz is nearly as good a guide where the raters were wrong"
    [ax] = draw.panels(title, size=(9, 4.6), **labels)
    x, pairs = 10 * np.arange(len(middle)) + 5, zip(middle.T, half.T)
    draw.intervals(ax, x, dict(zip(("raters right", "raters wrong"), pairs)), apart=1.2, joined=True)
    draw.lines(ax, (0, 10 * len(middle)), {"as often as not": 50}, [draw.PLAIN[4]])


def opinions(examples, titles, positive, edges):
    """The probability of "positive" that each network gives each sentence, (sentences, networks). examples:
    [(sentence, label)]; edges: after how many sentences a line is drawn."""
    [ax] = draw.panels("Being sure is not being right", size=(11, 6))
    labels = np.array([label for _, label in examples])[:, None]
    crosses = np.where((positive > 0.5) == labels, "", " ×")
    words = np.char.add(np.char.mod("%.0f", 100 * positive), crosses)
    rows = [f"{text}   ({'+' if label else '−'})" for text, label in examples]
    columns = ["\n".join(title.split()[:2]) for title in titles]
    image = draw.heat(ax, 100 * positive, rows, columns, words, 14, limits=(0, 100))
    ax.hlines(np.array(edges) - 0.5, -0.5, len(titles) - 0.5, color=draw.INK, lw=1.5)
    ax.figure.colorbar(image, ax=ax, label="probability of positive (%)", shrink=0.8)


def accuracies(sizes, series):
    """Accuracy by group in percent. sizes: {group: how many}; series: {title: share, low end, high end (3, groups)}."""
    title = "MetaDistil is ahead of KD on plain sentences and contrasts"
    [ax] = draw.panels(title, ylabel="accuracy (%)", size=(11, 5.4), ylim=(0, 102))
    named = {name: (share, (share - low, high - share)) for name, (share, low, high) in series.items()}
    draw.intervals(ax, range(len(sizes)), named, map(draw.look_of, series))
    ax.lines[0].set_markerfacecolor("white")  # the teacher before
    ax.axhline(50, ls="--", color=draw.INK, lw=1)
    ax.set_xticks(range(len(sizes)), [f"{name}\n(n = {size})" for name, size in sizes.items()])
    ax.legend(ncols=2, loc="lower left")
