"""The figures of notebook 04. Each is drawn from the numbers that the notebook works out."""

import math

import draw
import matplotlib.pyplot as plt
import numpy as np
from draw import LOOKS


def courses(curves, warmup_epochs):
    """Dev accuracy in percent after each epoch: {title of a row of the table: [...]}."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), sharey=True, width_ratios=(1, 1.5))
    before = curves["teacher before"]
    left.plot(range(1, len(before) + 1), before, **LOOKS["teacher"].of_line())
    for epoch, word in ((int(np.argmax(before)), "best"), (len(before) - 1, "last")):
        left.plot(epoch + 1, before[epoch], **LOOKS["teacher"].of_points() | {"markersize": 10})
        draw.note(left, f"{word} {before[epoch]:.0f}", (epoch + 1, before[epoch]), (0, 12), ha="center")
    left.set(title="the teacher learns from its raters", xlabel="epoch", ylabel="dev accuracy (%)")
    left.set_xlim(0, len(before) + 1.5)
    right.axhline(before[-1], color=draw.GREY, lw=1.5)
    draw.note(right, "teacher before", (0.6, before[-1]), (0, -20), color=draw.GREY)
    right.axvline(warmup_epochs + 0.5, color=draw.GREY, lw=1)
    for title, curve in curves.items():
        if title != "teacher before":
            look = draw.look_of(title)
            points = {"marker": look.marker, "markersize": 7, "markeredgecolor": draw.INK}
            label = title.replace("after", "during")
            right.plot(range(1, len(curve) + 1), curve, **look.of_line() | points, label=label)
    right.set(title="MetaDistil's student and teacher rise above the teacher before", xlabel="epoch")
    right.set_xlim(0.5, len(curves["student kd"]) + 0.5)
    right.legend(loc="lower right")
    for ax in (left, right):
        ax.xaxis.set_major_locator(plt.MultipleLocator(5))
    plt.show()


def quizzes(steps, losses, lowered, neighbours=7):
    """The student's quiz loss before the pilot at some steps (N,), and by how much the pilot lowered it (N,)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6))
    left.plot(steps, losses, **LOOKS["metadistil"].of_points() | {"markersize": 6}, label="one quiz batch")
    mean = np.convolve(losses, np.full(neighbours, 1 / neighbours), "valid")
    ends = neighbours // 2, len(steps) - neighbours // 2
    left.plot(steps[slice(*ends)], mean, color=draw.INK, lw=2.6, label=f"mean of {neighbours} neighbours")
    left.axhline(math.log(2), color=draw.GREY, ls=":", lw=2)
    left.text(steps[-1], math.log(2) + 0.01, "log 2: a guess", color=draw.GREY, ha="right", fontsize=12)
    left.set(title="the quiz loss falls", xlabel="step of the student", ylabel=r"$L_q(\theta_S)$, nats")
    left.set_ylim(0, 1.15 * max(math.log(2), losses.max()))
    left.legend(loc="lower left")
    right.axhline(0, color=draw.INK, lw=1)
    for chosen, role, name in ((lowered > 0, "positive", "lower"), (lowered <= 0, "negative", "higher")):
        look = LOOKS[role]
        right.vlines(steps[chosen], 0, lowered[chosen], color=look.colour, lw=1.5)
        right.plot(steps[chosen], lowered[chosen], **look.of_points() | {"markersize": 9}, label=f"{name} after it")
    right.set(title="one pilot step lowers it a little, or raises it a little", xlabel="step of the student")
    right.set_ylabel(r"$L_q(\theta_S) - L_q(\theta'_S)$, nats")
    right.legend(title="quiz loss")
    plt.show()


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
        narrow.set_xticks([0.5], ["end"])
        narrow.set_yticks([])
        for ax in (wide, narrow):
            ax.grid(False)
    axes[0].set_ylabel("training sentence, sorted by its end")
    figure.colorbar(image, ax=axes, label="$p_T$ of the right class", shrink=0.8)
    plt.show()


def certainty(panels):
    """How sure the teacher is of the right class. panels: {title: (as it came (N,), at the end (N,))}, two of them."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), sharey=True)
    edges, colour = np.linspace(0, 1, 21), LOOKS["teacher"].colour
    for ax, (title, (before, after)) in zip(axes, panels.items()):
        heights = [100 * np.histogram(p, edges)[0] / len(p) for p in (before, after)]
        ax.stairs(heights[1], edges, color=colour, fill=True, label="at the end")
        ax.stairs(heights[0], edges, color=draw.INK, ls="--", lw=2.2, label="as it came")
        ax.axvline(0.5, color=draw.INK, lw=1)
        ax.text(0.25, 0.6, "believes\nthe opposite", ha="center", color=draw.GREY, transform=ax.transAxes)
        ax.set(title=f"{title} ({len(before)} sentences)", xlabel="$p_T$ of the right class", xlim=(0, 1))
    axes[0].set_ylabel("share of these sentences (%)")
    axes[0].legend(loc="upper left")
    figure.suptitle("At the end the teacher is surer, also of what it gets wrong")
    plt.show()


def pushes(middle, half):
    """Of the sentences of a batch those that the quiz pushes to the truth, in percent: the mean of ten quizzes (tens,
    2) and half its 95% interval; the raters were right in column 0, wrong in column 1."""
    figure, ax = plt.subplots(figsize=(9, 4.6))
    looks = (("raters right", draw.INK, "o-"), ("raters wrong", draw.LIT, "s--"))
    for column, (name, colour, style) in enumerate(looks):
        place = 10 * np.arange(len(middle)) + 4.4 + 1.2 * column
        ax.errorbar(place, middle[:, column], half[:, column], fmt=style, color=colour, ms=8, lw=2.2, capsize=4,
                    label=name)  # fmt: skip
    ax.axhline(50, color=draw.INK, lw=1)
    ax.text(10 * len(middle) + 0.5, 49, "as often as not", color=draw.GREY, ha="right", va="top", fontsize=12)
    ax.set(xlabel="quizzes heard", ylabel="pushed to the truth (%)", xlim=(-1, 10 * len(middle) + 1))
    ax.set_title("The quiz is nearly as good a guide where the raters were wrong")
    ax.legend(loc="upper left")
    plt.show()


def opinions(examples, titles, positive, edges):
    """The probability of "positive" that each network gives each sentence, (sentences, networks). examples:
    [(sentence, label)]; edges: after how many sentences a line is drawn."""
    figure, ax = plt.subplots(figsize=(11, 6))
    image = ax.imshow(100 * positive, cmap=draw.SIGNED, vmin=0, vmax=100, aspect="auto")
    for i, (_, answer) in enumerate(examples):
        for j, p in enumerate(positive[i]):
            wrong = (p > 0.5) != answer
            text = f"{100 * p:.0f}" + (" ×" if wrong else "")
            colour, weight = "white" if abs(p - 0.5) > 0.3 else draw.INK, "bold" if wrong else "normal"
            ax.text(j, i, text, ha="center", va="center", fontsize=14, weight=weight, color=colour)
    for edge in edges:
        ax.axhline(edge - 0.5, color=draw.INK, lw=1.5)
    ax.axvline(sum(title.startswith("teacher") for title in titles) - 0.5, color=draw.INK, lw=1.5)
    ax.set_yticks(range(len(examples)), [f"{text}   ({'+' if answer else '−'})" for text, answer in examples])
    ax.set_xticks(range(len(titles)), ["\n".join(title.split()[:2]) for title in titles])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.set_title("Being sure is not being right")
    figure.colorbar(image, ax=ax, label="probability of positive (%)", shrink=0.8)
    plt.show()


def by_group(ax, sizes):
    """The groups on the axis below. sizes: {name: how many}."""
    ax.set_xticks(range(len(sizes)), [f"{name}\n(n = {size})" for name, size in sizes.items()])
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.grid(axis="x", visible=False)


def accuracies(sizes, series):
    """Accuracy by group in percent. series: {title: share and the two ends of its interval (3, groups)}."""
    figure, ax = plt.subplots(figsize=(11, 5.4))
    for place, (title, (share, low, high)) in enumerate(series.items()):
        look = draw.look_of(title)
        inside = "white" if title == "teacher before" else look.colour
        x = np.arange(len(share)) + 0.14 * (place - (len(series) - 1) / 2)
        ax.errorbar(x, share, [share - low, high - share], fmt=look.marker, color=look.colour, ms=10, lw=2, capsize=4,
                    mfc=inside, mec=draw.INK, label=title)  # fmt: skip
    ax.axhline(50, ls="--", color=draw.INK, lw=1)
    by_group(ax, sizes)
    ax.set(ylabel="accuracy (%)", ylim=(0, 102))
    ax.set_title("MetaDistil is ahead of KD on plain sentences and contrasts")
    ax.legend(ncols=2, loc="lower left")
    plt.show()


def lost_and_won(sizes, panels):
    """Sentences lost and won against the teacher before, in percent of the group. panels: {title: (lost, won)}, each
    a share and the two ends of its interval (3, groups)."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
    for ax, (title, parts) in zip(axes, panels.items()):
        look = draw.look_of(title)
        for (share, low, high), sign, word, hatch in zip(parts, (1, -1), ("lost", "won"), ("///", "")):
            error = np.array([share - low, high - share][::sign]).clip(0)
            ax.bar(range(len(share)), sign * share, 0.62, color="white" if hatch else look.colour, hatch=hatch,
                   edgecolor=look.colour, lw=1.5, label=word)  # fmt: skip
            ax.errorbar(range(len(share)), sign * share, error, fmt="none", color=draw.INK, lw=1.8, capsize=5)
        ax.axhline(0, color=draw.INK, lw=1.2)
        by_group(ax, sizes)
        ax.set_title(f"{title} against the teacher before")
        ax.legend(loc="lower right")
        ax.yaxis.set_major_formatter(lambda y, _: f"{abs(y):.0f}")
    axes[0].set_ylabel("← won     share of the group (%)     lost →")
    figure.suptitle("MetaDistil's student wins more sentences than it loses")
    plt.show()


def who_loses(sizes, teachers, students):
    """Of what the teacher before has right and MetaDistil's student has wrong, by group: how many sentences the
    taught teacher has wrong, too (groups,), and how many it has right (groups,)."""
    figure, ax = plt.subplots(figsize=(9, 4.6))
    n = np.array([*sizes.values()])
    bottom = np.zeros(len(n))
    parts = (("the taught teacher has it wrong, too", teachers, "teacher"), ("the taught teacher has it right",
             students, "metadistil"))  # fmt: skip
    for name, counts, role in parts:
        bars = ax.bar(range(len(n)), 100 * counts / n, 0.62, bottom, color=LOOKS[role].colour, ec="white",
                      hatch="///" if role == "teacher" else "", label=name)  # fmt: skip
        labels = [str(count) if count else "" for count in counts]
        ax.bar_label(bars, labels, label_type="center", fontsize=13, bbox=draw.ON_WHITE)
        bottom = bottom + 100 * counts / n
    by_group(ax, sizes)
    ax.set(ylabel="share of the group (%)", ylim=(0, 1.35 * max(bottom.max(), 1)))
    ax.set_title("Sentences that MetaDistil's student loses: who else has them wrong?")
    ax.legend(loc="upper left")
    plt.show()
