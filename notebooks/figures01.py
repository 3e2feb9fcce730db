"""The figures of notebook 01. Each is drawn from the numbers that the notebook works out."""

import math

import draw
import torch
from draw import LOOKS

STARS = ["1", "2", "3", "4", "5"]


def temperatures(one_hot, by_temperature, T, p):
    """The label and the teacher at some temperatures, {T: (5,)}; probabilities p (N, 5) at temperatures T (N,)."""
    shown = {"the label": one_hot} | {f"teacher, T = {one:g}": values for one, values in by_temperature.items()}
    labels = {"xlabel": [*["probability"] * len(shown), "temperature T"], "ylabel": ["stars", *[""] * len(shown)]}
    *bars, course = draw.panels(*shown, "teacher, any T", size=(14, 4), widths=[1] * len(shown) + [2.2], **labels)
    for ax, (title, values) in zip(bars, shown.items()):
        colour = draw.GREY if title == "the label" else LOOKS["teacher"].colour
        ax.bar_label(ax.barh(STARS, values, color=colour), fmt="%.2f", padding=3)
        ax.set_xlim(0, 1.4)
    course.axhline(1 / 5, color=draw.INK, lw=0.8, label="1/K")
    draw.lines(course, T, {f"stars: {STARS[k]}": p[:, k] for k in (3, 4, 2, 1, 0)})
    course.set_xscale("log")


def surfaces(axis, fields, paths, teacher, bottoms):
    """L_S over the student's plane for each α: {α: (N, N)}, {α: path (steps, 2)}, {α: bottom (2,)}."""
    titles = "α = 1: a bowl, its bottom the teacher", "α = 0.5: pulled to the label", "α = 0: a slope without a bottom"
    xlabel, ylabel = (f"student's logit of class {k}, less class 3's" for k in (1, 2))
    axes = draw.panels(*titles, xlabel=xlabel, ylabel=ylabel, size=(14, 5.2), shared=True)
    for ax, alpha in zip(axes, fields):
        draw.landscape(ax, axis, axis, fields[alpha], [0, 0.05, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6])
        ax.plot(*paths[alpha].T, color=draw.LIT, lw=3)
        draw.dot(ax, paths[alpha][0], "start", (-14, -20))
        draw.dot(ax, teacher, "teacher", (12, -12), color=LOOKS["teacher"].colour, marker="^", ms=14)
        if alpha in bottoms:
            draw.dot(ax, bottoms[alpha], marker="*", ms=17)


def gaps(panels):
    """What a student is pulled to. panels: {name: (probabilities of the student (5,), of the target (5,))}."""
    titles = "the label pulls to four stars alone", "the teacher pulls to five stars, too"
    axes = draw.panels(*titles, xlabel="stars", ylabel="probability", shared=True, ylim=(0, 1.15))
    place = torch.arange(5)
    for ax, (name, (student, target)) in zip(axes, panels.items()):
        ax.bar(place - 0.2, student, 0.4, color=LOOKS["kd"].colour, label="student")
        ax.bar(place + 0.2, target, 0.4, color="white", edgecolor=draw.INK, hatch="///", label=name)
        for k, gap in enumerate(target - student):
            if abs(gap) > 0.06:
                draw.arrow(ax, (k - 0.2, student[k]), (k - 0.2, target[k]))
            ax.text(k, max(target[k], student[k]) + 0.03, draw.signed(gap), ha="center", fontsize=14)
        ax.set_xticks(place, STARS)
        ax.legend(loc="upper left")


def temperature_squared(T, size, hard, distance):
    """The size (N,) of the soft gradient with T², the hard one's size, and the distance (N,) from the limit."""
    titles = "T² keeps the soft gradient alive", "At high T, distillation matches logits"
    ylabels = ["size of the gradient in $z_S$", "relative distance from logit matching"]
    scales = {"xscale": "log", "yscale": "log"}
    left, right = draw.panels(*titles, xlabel="temperature T", ylabel=ylabels, size=(13, 4.8), **scales)
    draw.lines(left, T, {"hard gradient": hard, "with T²": size, "without T²": size / T**2})
    draw.lines(right, T, {"slope −1": distance[-1] * T[-1] / T, "with T²": distance})


def mixing(resting, marked, teacher, label):
    """Where the student comes to rest: {T: (N, 3)}, and at some α {T: {α: (3,)}}; probabilities."""
    [ax] = draw.panels("Where the student comes to rest", size=(9, 6.5), aspect="equal")
    corners = torch.tensor([[0.0, 0.0], [0.5, math.sqrt(3) / 2], [1.0, 0.0]], dtype=torch.float64)  # of the triangle
    ax.fill(*corners.T, facecolor="white", edgecolor=draw.INK, lw=1.5)
    for k, offset in enumerate((-20, 10, -20)):
        draw.note(ax, f"class {k + 1}", corners[k], (0, offset), ha="center")
    for (T, places), look in zip(resting.items(), draw.PLAIN):
        ax.plot(*(torch.cat([label, places]) @ corners).T, **look.of_line(), label=f"T = {T:g}")
        for alpha, place in marked[T].items():
            words = f"α = {alpha}" if T > 1 else ""
            draw.dot(ax, place @ corners, words, (14, -4), color=look.colour, marker=look.marker)
    draw.dot(ax, teacher[0] @ corners, "teacher, α = 1", (14, -6), color=LOOKS["teacher"].colour, marker="^", ms=14)
    draw.dot(ax, label[0] @ corners, "label, α = 0", (14, 0), color=draw.INK, marker="*", ms=18)
    ax.legend(loc="upper right")
    ax.axis("off")


def teachers_side(shift, losses, slopes, here, mixed):
    """L_S while one of the teacher's logits moves, {class: (N,)}, slopes (5,); the mixed second derivative (5, 5)."""
    titles = (
        "The closed form is the slope",
        r"$\partial^2 L_S\,/\,\partial z_T\,\partial z_S$: each class against the others",
    )
    left, right = draw.panels(*titles, size=(13.5, 5.4), widths=(1.1, 1))
    named = {f"logit of {STARS[k]} stars, slope {draw.signed(slopes[k], 3)}": loss for k, loss in losses.items()}
    draw.lines(left, shift, named)
    for k in losses:
        left.axline((0, here), slope=slopes[k], color=draw.INK, lw=0.8)
    draw.dot(left, (0, here))
    left.set(xlabel="change in one of the teacher's logits", ylabel="$L_S$")
    words = {"xlabel": "stars (teacher's logit)", "ylabel": "stars (gradient in the student's logit)"}
    draw.heat(right, mixed, STARS, STARS, draw.numbers(mixed, 3), size=14, **words)
