"""The figures of notebook 04. Each is drawn from the numbers that the notebook works out."""

import math

import draw
import matplotlib.pyplot as plt
import numpy as np
from draw import LOOKS


def courses(curves, warmup_epochs):
    """Dev accuracy in percent after each epoch: {title of a row of the table: [...]}."""
    titles = "the teacher learns from its raters", "MetaDistil's student and teacher rise above the teacher before"
    left, right = draw.panels(*titles, xlabel="epoch", ylabel="dev accuracy (%)", shared=True, widths=(1, 1.5))
    before = curves["teacher before"]
    left.plot(range(1, len(before) + 1), before, **LOOKS["teacher"].of_line())
    for epoch, word in ((int(np.argmax(before)), "best"), (len(before) - 1, "last")):
        left.plot(epoch + 1, before[epoch], **LOOKS["teacher"].of_points() | {"markersize": 10})
        draw.note(left, f"{word} {before[epoch]:.0f}", (epoch + 1, before[epoch]), (0, 12), ha="center")
    left.set_xlim(0, len(before) + 1.5)
    right.axhline(before[-1], color=draw.GREY, lw=1.5)
    draw.note(right, "teacher before", (0.6, before[-1]), (0, -20), color=draw.GREY)
    right.axvline(warmup_epochs + 0.5, color=draw.GREY, lw=1)
    for title, curve in curves.items():
        if title != "teacher before":
            label = title.replace("after", "during")
            right.plot(range(1, len(curve) + 1), curve, **draw.look_of(title).of_curve(), label=label)
    right.set_xlim(0.5, len(curve) + 0.5)
    right.legend(loc="lower right")
    for ax in (left, right):
        ax.xaxis.set_major_locator(plt.MultipleLocator(5))


def quizzes(steps, losses, lowered, neighbours=7):
    """The student's quiz loss before the pilot at some steps (N,), and by how much the pilot lowered it (N,)."""
    titles = "the quiz loss falls", "one pilot step lowers it a little, or raises it a little"
    ylabels = [r"$L_q(\theta_S)$, nats", r"$L_q(\theta_S) - L_q(\theta'_S)$, nats"]
    left, right = draw.panels(*titles, xlabel="step of the student", ylabel=ylabels, size=(13, 4.6))
    left.plot(steps, losses, **LOOKS["metadistil"].of_points(), label="one quiz batch")
    mean = np.convolve(losses, np.full(neighbours, 1 / neighbours), "valid")
    middle = steps[neighbours // 2 : len(steps) - neighbours // 2]
    left.plot(middle, mean, color=draw.INK, lw=2.6, label=f"mean of {neighbours} neighbours")
    left.axhline(math.log(2), color=draw.GREY, ls=":", lw=2)
    left.text(steps[-1], math.log(2) + 0.01, "log 2: a guess", color=draw.GREY, ha="right")
    left.set_ylim(0, 1.15 * max(math.log(2), *losses))
    left.legend(loc="lower left")
    right.axhline(0, color=draw.INK, lw=1)
    for chosen, role, name in ((lowered > 0, "positive", "lower"), (lowered <= 0, "negative", "higher")):
        right.vlines(steps[chosen], 0, lowered[chosen], color=LOOKS[role].colour, lw=1.5)
        right.plot(steps[chosen], lowered[chosen], **LOOKS[role].of_points(), ms=9, label=f"{name} after it")
    right.legend(title="quiz loss")


def minds(panels):
    """How sure the teacher is of the right class, quiz after quiz, and at the end of the run. panels: {title: (paths
    (quizzes + 1, sentences), at the end (sentences,))}, two of them."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 5.4), width_ratios=(12, 1, 12, 1))
    for (wide, narrow), (title, (paths, at_end)) in zip(axes.reshape(2, 2), panels.items()):
        order = np.argsort(at_end + 1e-3 * paths[-1])[::-1]
        count, look = len(order), {"aspect": "auto", "vmin": 0, "vmax": 1}
        image = wide.imshow(paths.T[order], extent=(-0.5, len(paths) - 0.5, count + 0.5, 0.5), **look)
        narrow.imshow(at_end[order][:, None], extent=(0, 1, count + 0.5, 0.5), **look)
        wide.set(title=title, xlabel="quizzes heard", yticks=[1, 10, 20, count])
        narrow.set(xticks=[0.5], xticklabels=["end"], yticks=[])
        for ax in (wide, narrow):
            ax.grid(False)
    axes[0].set_ylabel("training sentence, sorted by its end")
    figure.colorbar(image, ax=axes, label="$p_T$ of the right class", shrink=0.8)


def certainty(panels):
    """How sure the teacher is of the right class. panels: {title: (as it came (N,), at the end (N,))}, two of them."""
    titles = [f"{title} ({len(before)} sentences)" for title, (before, _) in panels.items()]
    labels = {"xlabel": "$p_T$ of the right class", "ylabel": "share of these sentences (%)", "xlim": (0, 1)}
    axes = draw.panels(*titles, size=(13, 4.6), shared=True, **labels)
    edges = np.linspace(0, 1, 21)
    for ax, (before, after) in zip(axes, panels.values()):
        heights = [100 * np.histogram(p, edges)[0] / len(p) for p in (before, after)]
        ax.stairs(heights[1], edges, color=LOOKS["teacher"].colour, fill=True, label="at the end")
        ax.stairs(heights[0], edges, color=draw.INK, ls="--", lw=2.2, label="as it came")
        ax.axvline(0.5, color=draw.INK, lw=1)
        ax.text(0.25, 0.6, "believes\nthe opposite", ha="center", color=draw.GREY, transform=ax.transAxes)
    axes[0].legend(loc="upper left")
    ax.figure.suptitle("At the end the teacher is surer, also of what it gets wrong")


def pushes(middle, half):
    """Of the sentences of a batch those that the quiz pushes to the truth, in percent: the mean of ten quizzes (tens,
    2) and half its 95% interval; the raters were right in column 0, wrong in column 1."""
    title = "The quiz is nearly as good a guide where the raters were wrong"
    [ax] = draw.panels(title, xlabel="quizzes heard", ylabel="pushed to the truth (%)", size=(9, 4.6))
    looks = (("raters right", draw.INK, "o-"), ("raters wrong", draw.LIT, "s--"))
    for column, (name, colour, style) in enumerate(looks):
        place, bars = 10 * np.arange(len(middle)) + 4.4 + 1.2 * column, {"fmt": style, "capsize": 4, "label": name}
        ax.errorbar(place, middle[:, column], half[:, column], color=colour, ms=8, lw=2.2, **bars)
    ax.axhline(50, color=draw.INK, lw=1)
    end = 10 * len(middle)
    ax.text(end + 0.5, 49, "as often as not", color=draw.GREY, ha="right", va="top")
    ax.set_xlim(-1, end + 1)
    ax.legend(loc="upper left")


def opinions(examples, titles, positive, edges):
    """The probability of "positive" that each network gives each sentence, (sentences, networks). examples:
    [(sentence, label)]; edges: after how many sentences a line is drawn."""
    [ax] = draw.panels("Being sure is not being right", size=(11, 6))
    words = [[f"{100 * p:.0f}" + (" ×" if (p > 0.5) != label else "") for p in row]
             for row, (_, label) in zip(positive, examples)]  # fmt: skip
    rows = [f"{text}   ({'+' if label else '−'})" for text, label in examples]
    columns = ["\n".join(title.split()[:2]) for title in titles]
    image = draw.heat(ax, 100 * positive, rows, columns, words, 14, limits=(0, 100))
    for edge in edges:
        ax.axhline(edge - 0.5, color=draw.INK, lw=1.5)
    ax.axvline(sum(title.startswith("teacher") for title in titles) - 0.5, color=draw.INK, lw=1.5)
    ax.figure.colorbar(image, ax=ax, label="probability of positive (%)", shrink=0.8)


def by_group(ax, sizes):
    """Name the groups {name: how many} on the axis below."""
    ax.set_xticks(range(len(sizes)), [f"{name}\n(n = {size})" for name, size in sizes.items()])
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.grid(axis="x", visible=False)


def accuracies(sizes, series):
    """Accuracy by group in percent. series: {title: share and the two ends of its interval (3, groups)}."""
    title = "MetaDistil is ahead of KD on plain sentences and contrasts"
    [ax] = draw.panels(title, ylabel="accuracy (%)", size=(11, 5.4), ylim=(0, 102))
    for place, (title, (share, low, high)) in enumerate(series.items()):
        bars = draw.look_of(title).of_bars()
        bars["markerfacecolor"] = "white" if title == "teacher before" else bars["color"]
        x = np.arange(len(share)) + 0.14 * (place - (len(series) - 1) / 2)
        ax.errorbar(x, share, [share - low, high - share], **bars, label=title)
    ax.axhline(50, ls="--", color=draw.INK, lw=1)
    by_group(ax, sizes)
    ax.legend(ncols=2, loc="lower left")


def lost_and_won(sizes, panels):
    """Sentences lost and won against the teacher before, in percent of the group. panels: {title: (lost, won)}, each
    a share and the two ends of its interval (3, groups)."""
    titles = [f"{title} against the teacher before" for title in panels]
    axes = draw.panels(*titles, ylabel="← won     share of the group (%)     lost →", shared=True)
    groups = range(len(sizes))
    for ax, (title, parts) in zip(axes, panels.items()):
        colour = draw.look_of(title).colour
        for (share, low, high), sign, word, fill in zip(parts, (1, -1), ("lost", "won"), ("white", colour)):
            ax.bar(groups, sign * share, 0.62, color=fill, hatch="///", edgecolor=colour, lw=1.5, label=word)
            half = np.array([share - low, high - share][::sign]).clip(0)
            ax.errorbar(groups, sign * share, half, fmt="none", color=draw.INK, lw=1.8, capsize=5)
        ax.axhline(0, color=draw.INK, lw=1.2)
        by_group(ax, sizes)
        ax.legend(loc="lower right")
        ax.yaxis.set_major_formatter(lambda y, _: f"{abs(y):.0f}")
    ax.figure.suptitle("MetaDistil's student wins more sentences than it loses")


def who_loses(sizes, teachers, students):
    """Of what the teacher before has right and MetaDistil's student has wrong, by group: how many sentences the
    taught teacher has wrong, too (groups,), and how many it has right (groups,)."""
    title = "Sentences that MetaDistil's student loses: who else has them wrong?"
    [ax] = draw.panels(title, ylabel="share of the group (%)", size=(9, 4.6))
    share = 100 / np.array([*sizes.values()])
    highest = draw.stack(ax, range(len(sizes)), {
        "the taught teacher has it wrong, too": (share * teachers, LOOKS["teacher"].colour, "///"),
        "the taught teacher has it right": (share * students, LOOKS["metadistil"].colour, ""),
    }).max()  # fmt: skip
    for bars, counts in zip(ax.containers, (teachers, students)):
        labels = [count or "" for count in counts]
        ax.bar_label(bars, labels, label_type="center", fontsize=13, bbox=draw.ON_WHITE)
    by_group(ax, sizes)
    ax.set_ylim(0, 1.35 * max(highest, 1))
    ax.legend(loc="upper left")
