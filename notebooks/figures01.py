"""The figures of notebook 01. Each is drawn from the numbers that the notebook works out."""

import math

import draw
import matplotlib.pyplot as plt
import torch
from draw import LOOKS

STARS = ["1", "2", "3", "4", "5"]
OF_STARS = [(draw.GREY, ":"), (draw.GREY, "-."), (draw.INK, "--"), (draw.LIT, "-"), (draw.INK, "-")]  # colour and line


def temperatures(one_hot, by_temperature, T, p):
    """The label and the teacher at some temperatures, {T: (5,)}; probabilities p (N, 5) at temperatures T (N,)."""
    bars, lines = plt.figure(figsize=(13, 5)).subfigures(1, 2, width_ratios=(1.2, 1))
    shown = {"the label": one_hot} | {f"teacher, T = {one:g}": values for one, values in by_temperature.items()}
    for ax, (title, values) in zip(bars.subplots(2, 2, sharex=True, sharey=True).flat, shown.items()):
        colour = draw.GREY if title == "the label" else LOOKS["teacher"].colour
        ax.bar_label(ax.bar(STARS, values, color=colour), fmt="%.2f", padding=1)
        ax.set(title=title, ylim=(0, 1.2))
        ax.grid(False)
    bars.suptitle("The teacher also says which wrong answers are nearly right")
    bars.supxlabel("stars")
    bars.supylabel("probability")
    ax = lines.subplots()
    for k in (3, 4, 2, 1, 0):
        colour, line = OF_STARS[k]
        ax.plot(T, p[:, k], line, color=colour, lw=2.5, label=f"{STARS[k]} stars" if k else "1 star")
    ax.axhline(1 / 5, color=draw.INK, lw=0.8)
    draw.note(ax, "1/K", (100, 1 / 5), (-28, 14))
    ax.set(
        xscale="log", xlabel="temperature T", ylabel="probability", title="A high temperature makes all answers alike"
    )
    ax.legend()


def overflow(a, values):
    """log p over the logit a (N,), by three formulas: {name: (N,)}. The two that end are drawn higher."""
    labels = {"xlabel": "logit a of the second class; the first has 0", "ylabel": "log p of the first class"}
    title = "Two short formulas end where a network's logits can be"
    [ax] = draw.panels(title, size=(10, 4.8), xlim=(0, 150), **labels)
    looks = (
        ("metadistil.log_softmax", 0, "-", draw.INK),
        ("half-way", 8, "--", draw.GREY),
        ("naive", 16, "-.", draw.LIT),
    )
    for name, lift, line, colour in looks:
        good = values[name].isfinite()
        x, y = a[good], values[name][good] + lift
        ax.plot(x, y, line, color=colour, lw=2.8, label=f"{name} (drawn {lift} higher)" if lift else name)
        if lift:
            ax.plot(x[-1], y[-1], "X", color=colour, ms=14, mec=draw.INK)
            draw.note(ax, f"ends at a = {x[-1]:.0f}", (x[-1], y[-1]), (12, 4))
    ax.legend(loc="lower left")


def surfaces(axis, fields, paths, teacher, bottoms):
    """L_S over the student's plane for each α: {α: (N, N)}, {α: path (steps, 2)}, {α: bottom (2,)}."""
    titles = "α = 1: a bowl, its bottom the teacher", "α = 0.5: pulled to the label", "α = 0: a slope without a bottom"
    xlabel, ylabel = (f"student's logit of class {k}, less class 3's" for k in (1, 2))
    axes = draw.panels(*titles, xlabel=xlabel, ylabel=ylabel, size=(14, 5.2), shared=True)
    for ax, alpha in zip(axes, fields):
        draw.landscape(ax, axis, axis, fields[alpha], [0, 0.05, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6])
        path = paths[alpha][(paths[alpha] < 4.8).all(dim=1)]
        ax.plot(*path.T, color=draw.LIT, lw=3)
        draw.dot(ax, path[0])
        draw.note(ax, "start", path[0], (-14, -20))
        ax.plot(*teacher, **LOOKS["teacher"].of_points() | {"markersize": 14, "zorder": 5})
        draw.note(ax, "teacher", teacher, (12, -12))
        if alpha in bottoms:
            draw.dot(ax, bottoms[alpha], marker="*", ms=17)
        else:  # the path has no end; show that it leaves the picture
            draw.arrow(ax, path[-40], path[-1], color=draw.LIT, lw=3)


def gaps(panels):
    """What a student is pulled to. panels: {name: (probabilities of the student (5,), of the target (5,))}."""
    titles = "the label pulls to four stars alone", "the teacher pulls to five stars, too"
    axes = draw.panels(*titles, xlabel="stars", ylabel="probability", shared=True, ylim=(0, 1.15))
    place = torch.arange(5)
    for ax, (name, (student, target)) in zip(axes, panels.items()):
        colour = LOOKS["teacher"].colour if "teacher" in name else draw.GREY
        ax.bar(place - 0.2, student, 0.4, color=LOOKS["kd"].colour, label="student")
        ax.bar(place + 0.2, target, 0.4, color="white", edgecolor=colour, hatch="///", lw=1.5, label=name)
        for k, gap in enumerate((target - student).tolist()):
            if abs(gap) > 0.06:
                draw.arrow(ax, (k - 0.2, student[k]), (k - 0.2, target[k]), lw=2.5)
            ax.text(k, max(target[k], student[k]) + 0.03, draw.signed(gap), ha="center", fontsize=14)
        ax.set_xticks(place, STARS)
        ax.legend(loc="upper left")
        ax.grid(axis="x", visible=False)


def temperature_squared(T, size, limit, hard, distance):
    """The size (N,) of the soft gradient with T², its limit, the hard one's size; the distance (N,) from the limit."""
    titles = "T² keeps the soft gradient alive", "At high T, distillation matches logits"
    ylabels = ["size of the gradient in $z_S$", "relative distance from logit matching"]
    left, right = draw.panels(*titles, xlabel="temperature T", ylabel=ylabels, size=(13, 4.8))
    left.loglog(T, size, color=draw.LIT, lw=3)
    left.loglog(T, size / T**2, "--", color=draw.INK, lw=2.5)
    left.axhline(limit, color=draw.INK, lw=0.8)
    left.axhline(hard, color=draw.GREY, lw=2, ls=":")
    left.text(1000, 0.22, "with T² (thin line: its limit)", color=draw.LIT, ha="right", fontsize=13)
    left.text(1.5, 6e-4, "without T²", fontsize=13)
    left.text(1000, 1.6, "hard gradient (dotted)", color=draw.GREY, ha="right", fontsize=13)
    left.set_ylim(3e-7, 20)
    right.loglog(T, distance, color=draw.LIT, lw=3)
    right.loglog(T, distance[-1] * T[-1] / T, "--", color=draw.INK, lw=1)
    right.text(40, 0.05, "slope −1 (dashed)", fontsize=13)


def mixing(soft, hard, resting, marked, teacher, label):
    """Steps (2,) of soft targets and label; resting places {T: (N, 3)}, marked ones {T: {α: (3,)}}: probabilities."""
    _, (left, right) = plt.subplots(1, 2, figsize=(13, 5.6))
    mixed_steps(left, soft, hard)
    corners = torch.tensor([[0.0, 0.0], [0.5, math.sqrt(3) / 2], [1.0, 0.0]], dtype=torch.float64)  # of the triangle
    right.fill(*corners.T, facecolor="white", edgecolor=draw.INK, lw=1.5)
    for k, offset in enumerate((-20, 10, -20)):
        draw.note(right, f"class {k + 1}", corners[k], (0, offset), ha="center")
    for (T, places), colour, line, marker in zip(resting.items(), (draw.INK, draw.LIT), ("-", "--"), "os"):
        right.plot(*(torch.cat([label, places]) @ corners).T, line, color=colour, lw=2.5, label=f"T = {T:g}")
        for alpha, place in marked[T].items():
            right.plot(*(place @ corners), marker, color=colour, mec=draw.INK, ms=10)
            if T > 1:
                draw.note(right, f"α = {alpha}", place @ corners, (14, -4))
    right.plot(*(teacher @ corners).T, **LOOKS["teacher"].of_points() | {"markersize": 14}, label="teacher, α = 1")
    right.plot(*(label @ corners).T, "*", color=draw.INK, ms=18, label="label, α = 0")
    right.legend(loc="upper right", bbox_to_anchor=(1.14, 1))
    right.set(aspect="equal", xlim=(-0.06, 1.12), ylim=(-0.08, 0.95), title="where the student comes to rest")
    right.axis("off")


def mixed_steps(ax, soft, hard):
    """The two steps, and three mixed ones."""
    for alpha in (0.25, 0.5, 0.75):
        tip = alpha * soft + (1 - alpha) * hard
        draw.arrow(ax, (0, 0), tip, lw=1.5)
        draw.note(ax, f"α = {alpha}", tip, (9, 3), fontsize=11)
    for name, step, colour, offset in (
        ("soft targets, α = 1", soft, LOOKS["teacher"].colour, (10, -2)), ("label, α = 0", hard, draw.GREY, (-20, 12))
    ):  # fmt: skip
        draw.arrow(ax, (0, 0), step, color=colour, lw=4, mutation_scale=22)
        draw.note(ax, name, step, offset)
    ax.plot(*torch.stack([soft, hard]).T, ":", color=draw.INK, lw=1.5)
    draw.dot(ax, (0, 0))
    draw.note(ax, "the student", (0, 0), (10, -16))
    ax.set(xlabel="step in the logit of class 1", ylabel="step in the logit of class 2", aspect="equal")
    ax.set(xlim=(-0.3, 1.05), ylim=(-0.15, 1.1), title="α slides the step along a straight line")


def teachers_side(shift, losses, slopes, here, mixed):
    """L_S while one of the teacher's logits moves, {class: (N,)}, slopes (5,); the mixed second derivative (5, 5)."""
    _, (left, right) = plt.subplots(1, 2, figsize=(13.5, 5.4), width_ratios=(1.1, 1))
    near = shift[shift.abs() <= 1.5]
    for (k, values), colour, line in zip(losses.items(), (draw.GREY, draw.INK, draw.LIT), ("-.", "--", "-")):
        label = f"{STARS[k]} stars, slope {draw.signed(slopes[k], 3)}"
        left.plot(shift, values, line, color=colour, lw=2.8, label=label)
        left.plot(near, here + slopes[k] * near, color=draw.INK, lw=1)
    draw.dot(left, (0, here))
    left.set(title="The closed form is the slope", xlabel="change in one of the teacher's logits", ylabel="$L_S$")
    left.legend(title="the logit of", loc="upper center")
    draw.heat(right, mixed, STARS, STARS, draw.numbers(mixed, 3), size=14, xlabel="stars (teacher's logit)",
              ylabel="stars (gradient in the student's logit)",
              title=r"$\partial^2 L_S\,/\,\partial z_T\,\partial z_S$: each class against the others")  # fmt: skip
