"""The figures of notebook 01. Each is drawn from the numbers that the notebook works out."""

import math

import draw
import matplotlib.pyplot as plt
import torch
from draw import LOOKS

STARS = ["1", "2", "3", "4", "5"]
LINES = [  # of the five numbers of stars, the likeliest last
    {"color": draw.GREY, "ls": ":", "lw": 2},
    {"color": draw.GREY, "ls": "-.", "lw": 2},
    {"color": draw.INK, "ls": "--", "lw": 2},
    {"color": draw.LIT, "ls": "-", "lw": 3},
    {"color": draw.INK, "ls": "-", "lw": 2},
]


def temperatures(one_hot, by_temperature, T, p):
    """The label and the teacher at some temperatures, {T: (5,)}; probabilities p (N, 5) at temperatures T (N,)."""
    figure = plt.figure(figsize=(13, 5))
    bars, lines = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    axes = bars.subplots(2, 2, sharex=True, sharey=True)
    shown = {"the label": one_hot} | {f"teacher, T = {one:g}": values for one, values in by_temperature.items()}
    for ax, (title, values) in zip(axes.flat, shown.items()):
        colour = draw.GREY if title == "the label" else LOOKS["teacher"].colour
        ax.bar_label(ax.bar(STARS, values, color=colour), fmt="%.2f", padding=1)
        ax.set(title=title, ylim=(0, 1.2))
        ax.grid(False)
    bars.suptitle("The teacher also says which wrong answers are nearly right")
    bars.supxlabel("stars")
    bars.supylabel("probability")
    ax = lines.subplots()
    for k in (3, 4, 2, 1, 0):
        ax.plot(T, p[:, k], **LINES[k], label=f"{STARS[k]} stars" if k else "1 star")
    ax.axhline(1 / 5, color=draw.INK, lw=0.8)
    ax.annotate("1/K", (100, 1 / 5), textcoords="offset points", xytext=(-28, 14))
    ax.set(xscale="log", xlabel="temperature T", ylabel="probability", ylim=(-0.03, 1.03))
    ax.set_title("A high temperature makes all answers alike")
    ax.legend()
    plt.show()


def overflow(a, values):
    """log p over the logit a (N,), by three formulas: {name: (N,)}. The two that end are drawn higher."""
    figure, ax = plt.subplots(figsize=(10, 4.8))
    looks = {
        "metadistil.log_softmax": (0, "-", draw.INK),
        "half-way": (8, "--", draw.GREY),
        "naive": (16, "-.", draw.LIT),
    }
    for name, (lift, dashes, colour) in looks.items():
        good = values[name].isfinite()
        last = int(good.sum()) - 1
        label = f"{name} (drawn {lift} higher)" if lift else name
        ax.plot(a[good], values[name][good] + lift, dashes, color=colour, lw=2.8, label=label)
        if lift:
            end = a[last].item(), values[name][last].item() + lift
            ax.plot(*end, "X", color=colour, ms=14, mec=draw.INK)
            draw.note(ax, f"ends at a = {end[0]:.0f}", end, (12, 4))
    ax.set(xlabel="logit a of the second class; the first has 0", ylabel="log p of the first class", xlim=(0, 150))
    ax.set_title("Two short formulas end where a network's logits can be")
    ax.legend(loc="lower left")
    plt.show()


LEVELS = [0, 0.05, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6]


def surfaces(axis, fields, paths, teacher, bottoms):
    """L_S over the student's plane for each α: {α: (N, N)}, {α: path (steps, 2)}, {α: bottom (2,)}."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 5.2), sharey=True)
    titles = {
        1.0: "α = 1: a bowl, its bottom the teacher",
        0.5: "α = 0.5: pulled to the label",
        0.0: "α = 0: a slope without a bottom",
    }
    for ax, (alpha, field) in zip(axes, fields.items()):
        draw.landscape(ax, axis, axis, field, LEVELS)
        path = paths[alpha]
        inside = path[(path < 4.8).all(dim=1)]
        ax.plot(*inside.T, color=draw.LIT, lw=3)
        if alpha == 0:  # the path has no end; show that it leaves the picture
            draw.arrow(ax, inside[-40], inside[-1], color=draw.LIT, lw=3)
        draw.dot(ax, path[0])
        draw.note(ax, "start", path[0], (-14, -20))
        ax.plot(*teacher, **LOOKS["teacher"].of_points() | {"markersize": 14, "zorder": 5})
        draw.note(ax, "teacher", teacher, (12, -12))
        if alpha in bottoms:
            ax.plot(*bottoms[alpha], "*", color="white", mec=draw.INK, ms=17, zorder=6)
        ax.set(title=titles[alpha], xlabel="student's logit of class 1, less class 3's")
    axes[0].set_ylabel("student's logit of class 2, less class 3's")
    plt.show()


def gaps(panels):
    """What a student is pulled to. panels: {name: (probabilities of the student (5,), of the target (5,))}."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
    place = torch.arange(5)
    for ax, (name, (student, target)) in zip(axes, panels.items()):
        colour = LOOKS["teacher"].colour if "teacher" in name else draw.GREY
        ax.bar(place - 0.2, student, 0.4, color=LOOKS["kd"].colour, label="student")
        ax.bar(place + 0.2, target, 0.4, color="white", edgecolor=colour, hatch="///", lw=1.5, label=name)
        for k, gap in enumerate((target - student).tolist()):
            if abs(gap) > 0.06:
                draw.arrow(ax, (k - 0.2, student[k]), (k - 0.2, target[k]), lw=2.5)
            ax.text(k, max(target[k], student[k]) + 0.03, draw.signed(gap), ha="center", fontsize=14)
        ax.set(xlabel="stars", xticks=place, xticklabels=STARS, ylim=(0, 1.15))
        ax.legend(loc="upper left")
        ax.grid(axis="x", visible=False)
    axes[0].set(title="the label pulls to four stars alone", ylabel="probability")
    axes[1].set(title="the teacher pulls to five stars, too")
    plt.show()


def temperature_squared(T, size, limit, hard, distance):
    """The size (N,) of the soft gradient with T², its limit, the hard one's size; the distance (N,) from the limit."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8))
    left.loglog(T, size, color=draw.LIT, lw=3)
    left.loglog(T, size / T**2, "--", color=draw.INK, lw=2.5)
    left.axhline(limit, color=draw.INK, lw=0.8)
    left.axhline(hard, color=draw.GREY, lw=2, ls=":")
    left.text(1000, 0.22, "with T² (thin line: its limit)", color=draw.LIT, ha="right", fontsize=13)
    left.text(1.5, 6e-4, "without T²", fontsize=13)
    left.text(1000, 1.6, "hard gradient (dotted)", color=draw.GREY, ha="right", fontsize=13)
    left.set(title="T² keeps the soft gradient alive", xlabel="temperature T", ylabel="size of the gradient in $z_S$")
    left.set(ylim=(3e-7, 20))
    right.loglog(T, distance, color=draw.LIT, lw=3)
    right.loglog(T, distance[-1] * T[-1] / T, "--", color=draw.INK, lw=1)
    right.text(40, 0.05, "slope −1 (dashed)", fontsize=13)
    right.set(
        title="At high T, distillation matches logits",
        xlabel="temperature T",
        ylabel="relative distance from logit matching",
    )
    plt.show()


CORNERS = torch.tensor([[0.0, 0.0], [0.5, math.sqrt(3) / 2], [1.0, 0.0]], dtype=torch.float64)  # of the triangle


def mixing(soft, hard, resting, marked, teacher, label):
    """Steps (2,) of soft targets and label; resting places {T: (N, 3)}, marked ones {T: {α: (3,)}}: probabilities."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6))
    mixed_steps(left, soft, hard)
    right.fill(*CORNERS.T, facecolor="white", edgecolor=draw.INK, lw=1.5)
    for k, offset in enumerate((-20, 10, -20)):
        right.annotate(
            f"class {k + 1}", CORNERS[k], textcoords="offset points", xytext=(0, offset), ha="center", fontsize=13
        )
    for (T, places), colour, dashes, marker in zip(resting.items(), (draw.INK, draw.LIT), ("-", "--"), "os"):
        right.plot(*(torch.cat([label, places]) @ CORNERS).T, dashes, color=colour, lw=2.5, label=f"T = {T:g}")
        for alpha, place in marked[T].items():
            right.plot(*(place @ CORNERS), marker, color=colour, mec=draw.INK, ms=10)
            if T > 1:
                draw.note(right, f"α = {alpha}", place @ CORNERS, (14, -4))
    right.plot(*(teacher @ CORNERS).T, **LOOKS["teacher"].of_points() | {"markersize": 14}, label="teacher, α = 1")
    right.plot(*(label @ CORNERS).T, "*", color=draw.INK, ms=18, label="label, α = 0")
    right.legend(loc="upper right", bbox_to_anchor=(1.14, 1))
    right.set(aspect="equal", xlim=(-0.06, 1.12), ylim=(-0.08, 0.95), title="where the student comes to rest")
    right.axis("off")
    plt.show()


def mixed_steps(ax, soft, hard):
    """The two steps, and three mixed ones."""
    for name, step, colour, offset in (
        ("soft targets, α = 1", soft, LOOKS["teacher"].colour, (10, -2)),
        ("label, α = 0", hard, draw.GREY, (-20, 12)),
    ):
        draw.arrow(ax, (0, 0), step, color=colour, lw=4, mutation_scale=22)
        draw.note(ax, name, step, offset)
    for alpha in (0.25, 0.5, 0.75):
        tip = alpha * soft + (1 - alpha) * hard
        draw.arrow(ax, (0, 0), tip, lw=1.5)
        draw.note(ax, f"α = {alpha}", tip, (9, 3), fontsize=11)
    ax.plot(*torch.stack([soft, hard]).T, ":", color=draw.INK, lw=1.5)
    draw.dot(ax, (0, 0))
    draw.note(ax, "the student", (0, 0), (10, -16))
    ax.set(xlabel="step in the logit of class 1", ylabel="step in the logit of class 2", aspect="equal")
    ax.set(xlim=(-0.3, 1.05), ylim=(-0.15, 1.1), title="α slides the step along a straight line")


def teachers_side(shift, losses, slopes, here, mixed):
    """L_S while one of the teacher's logits moves, {class: (N,)}, slopes (5,); the mixed second derivative (5, 5)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13.5, 5.4), width_ratios=(1.1, 1))
    near = shift[shift.abs() <= 1.5]
    for (k, values), colour, dashes in zip(losses.items(), (draw.GREY, draw.INK, draw.LIT), ("-.", "--", "-")):
        label = f"{STARS[k]} stars, slope {draw.signed(slopes[k], 3)}"
        left.plot(shift, values, dashes, color=colour, lw=2.8, label=label)
        left.plot(near, here + slopes[k] * near, color=draw.INK, lw=1)
    draw.dot(left, (0, here))
    left.set(title="The closed form is the slope", xlabel="change in one of the teacher's logits", ylabel="$L_S$")
    left.legend(title="the logit of", loc="upper center")
    draw.heat(right, mixed, STARS, STARS, digits=3, size=14)
    right.set(xlabel="stars (teacher's logit)", ylabel="stars (gradient in the student's logit)")
    right.set_title(r"$\partial^2 L_S\,/\,\partial z_T\,\partial z_S$: each class against the others")
    plt.show()
