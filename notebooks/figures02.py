"""The figures of notebook 02, each drawn from the numbers that the notebook works out, and its scene for paper."""

import math

import draw
import matplotlib.pyplot as plt
import scene
import torch
from draw import LOOKS
from torch.nn.functional import normalize

AXES = {"xlabel": "student's first weight", "ylabel": "student's second weight"}
FAT = {"color": draw.LIT, "lw": 4, "mutation_scale": 22}  # the arrow that a figure speaks of
OF_RUNS = {"KD, honest teacher": LOOKS["kd"].of_line(), "KD, wrong teacher": LOOKS["kd"].of_line() | {"linestyle": ":"},
           "MetaDistil, wrong at first": LOOKS["metadistil"].of_line()}  # fmt: skip
LENGTHS = {40.0: (draw.LIT, "-."), 10.0: (draw.GREY, "--"), 2.0: (draw.INK, "-")}  # of the pilot: colour and line


def plane(ax, loss, x=(-4.2, 4.2), y=(-4.2, 4.2), levels=None, labels=None):
    """A loss of two weights over a part of their plane -> the two axes and the field (Y, X), as `ax.contour` takes."""
    x, y = (torch.linspace(*ends, 57, dtype=torch.float64) for ends in (x, y))
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    field = torch.func.vmap(torch.func.vmap(loss))(points)
    draw.landscape(ax, x, y, field, levels, labels)
    return x, y, field


def pointer(ax, words, start, end, **style):
    """An arrow between points (2,), with its name beyond the tip."""
    draw.arrow(ax, start, end, **style)
    beyond = 10 * normalize(end - start, dim=0)
    draw.note(ax, words, end, beyond.tolist(), va="center", ha="left" if beyond[0] > 0 else "right")


def teacher_at(ax, degrees, words=""):
    """The circle of all teachers, and the one at that angle, with its name."""
    ax.add_patch(plt.Circle((0, 0), scene.RHO, fill=False, color=draw.GREY, ls=":", lw=1.2))
    place = scene.weights_of(scene.radians(degrees))
    ax.plot(*place, **LOOKS["teacher"].of_points() | {"markersize": 14, "zorder": 5})
    if words:
        draw.note(ax, words, place, (10, 6))


def world():
    """What the student learns from, and what it is asked; and where teacher and truth are undecided."""
    titles = "training: the teacher is wrong, and so are ten labels", "the quiz: every label as the truth would have it"
    labels = {"xlabel": "first input $x_1$", "ylabel": "second input $x_2$"}
    axes = draw.panels(*titles, size=(11, 5.4), shared=True, xlim=(-3, 3), ylim=(-2.6, 2.6), aspect="equal", **labels)
    asked = (scene.WORLD.batch, scene.WRONG, "teacher"), (scene.WORLD.quiz, scene.TRUTH, "truth")
    for ax, ((x, y), angle, name) in zip(axes, asked):
        for label, role in enumerate(("negative", "positive")):
            ax.plot(*x[y == label].T, **LOOKS[role].of_points() | {"markersize": 9}, label=f"class {label}")
        u = torch.tensor([math.cos(angle), math.sin(angle)])
        ax.axline((0, 0), (-u[1], u[0]), color=draw.INK, lw=2)
        pointer(ax, name, torch.zeros(2), 1.8 * u)
    x, _ = scene.WORLD.batch
    axes[0].plot(*x[scene.WORLD.careless].T, "o", color="none", mec=draw.GREY, mew=2, ms=18, label="flipped label")
    axes[0].legend(loc="lower right")


def stills():
    """What scene.html shows, for paper: the nine parts of a step, each with what came before it."""
    step = scene.one_step()
    _, _, gradient, tip, _, v, velocity, _, angle = (part.value for part in step.parts)
    teacher, new_teacher = (scene.weights_of(scene.radians(degrees)) for degrees in (step.degrees, angle.item()))
    arrows = (  # its name; from where to where; the pictures that have it, and those of them in which it is lit
        ("", torch.zeros(2), teacher, (1, 2), (1,)),
        (r"$\nabla L_S$", step.theta_S, step.theta_S + 1.3 * normalize(gradient, dim=0), (3,), (3,)),
        ("", step.theta_S, tip, (4, 5, 6, 7, 8, 9), (4,)),
        ("$-v$", tip, tip - 1.3 * normalize(v, dim=0), (6, 7, 8), (6, 8)),
        (r"$\partial\theta'_S/\partial\theta_T$", tip, tip + 1.3 * normalize(velocity, dim=0), (7, 8), (7, 8)),
        ("", 1.15 * teacher, 1.15 * new_teacher, (9,), (9,)),
    )
    figure, axes = plt.subplots(3, 3, figsize=(8.4, 9.2), sharex=True, sharey=True)
    for number, (ax, part) in enumerate(zip(axes.flat, step.parts), start=1):
        ax.set_title(f"{number}. ${part.symbol}$\n{written(part)}", fontsize=13, color=draw.LIT)
        field = plane(ax, scene.quiz_loss if number > 4 else inner_loss_of(step))
        teacher_at(ax, step.degrees)
        if number in (2, 5):
            ax.contour(*field, [part.value.item()], colors=draw.LIT, linewidths=3.5)
        if number >= 7:
            ax.plot(*scene.all_around(step)[1].T, color=draw.INK, lw=1)
        for words, start, end, shown, lit in arrows:
            if number in shown:
                pointer(ax, words, start, end, **FAT if number in lit else {"lw": 1.8})
        draw.dot(ax, step.theta_S, r"$\theta_S$", (4, 10))
        if number >= 4:
            draw.dot(ax, tip, r"$\theta'_S$", (-10, 11))
    draw.dot(ax, new_teacher, r"new $\theta_T$", (10, 6), marker="^", mec=draw.LIT, mew=2.5, ms=14)
    figure.supxlabel("student's first weight (up: its second)")


def inner_loss_of(step):
    """L_S of the step's teacher, as a function of the student's two weights."""
    return lambda theta: scene.inner_loss(theta, scene.radians(step.degrees), step.temperature, step.alpha)


def written(part) -> str:
    """The value of a part: a number, or a point; of a matrix its shape."""
    value = part.value
    if value.dim() == 2:
        return f"{tuple(value.shape)} numbers"
    text = scene.point(value, 2) if value.dim() == 1 else f"{value:.2f}".replace("-", "−")
    return f"{text} {part.unit}".strip()


def pilot_on_two_landscapes(theta_S_prime):
    """The pilot's arrow over the inner loss, and over the quiz loss."""
    titles = "the inner loss falls: the teacher calls it progress", "the quiz loss rises: the quiz does not"
    axes = draw.panels(*titles, size=(11, 5.2), shared=True, **AXES)
    for ax, loss in zip(axes, (inner_loss_of(scene.one_step()), scene.quiz_loss)):
        plane(ax, loss, (-3.8, 3.8), (-2.4, 3.6), labels="%g")
        teacher_at(ax, 160.0, "teacher")
        pointer(ax, r"$\theta'_S$", scene.THETA_S, theta_S_prime, **FAT)
        draw.dot(ax, scene.THETA_S, r"$\theta_S$", (9, -14))
    draw.dot(axes[1], scene.weights_of(scene.radians(40.0)), "truth", (12, -4), marker="*", ms=18)


def circle_of_arrows(tips, best):
    """The pilot steps of twelve teachers, and the curve of the tips of all, (361, 2), one for each degree."""
    [ax] = draw.panels("All that this teacher can do to this student in one step is a curve", size=(9, 7), **AXES)
    plane(ax, scene.quiz_loss, (-0.95, 2.15), (-1.55, 1.1), torch.arange(0.5, 1.15, 0.05), "%.2f")
    ax.plot(*tips.T, color=draw.INK, lw=1.5)
    for degrees in range(10, 360, 30):
        look = FAT if degrees == 160 else {"lw": 1.2, "color": draw.GREY}
        pointer(ax, f"{degrees}°", scene.THETA_S, tips[degrees], **look)
    draw.dot(ax, scene.THETA_S, r"$\theta_S$", (10, -10))
    draw.dot(ax, tips[best], "best for the quiz", (14, 6), color=LOOKS["teacher"].colour, ms=12)


def plane_and_curve(step, names=("", "")):
    """The student's plane with the pilot's arrow, −v and ∂θ′_S/∂θ_T, for which there may be names; the quiz loss after
    the pilot for every teacher, and ours on it with the tangent, whose slope is the meta-gradient."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4))
    tip, v, velocity = (step.parts[k].value for k in (3, 5, 6))
    degrees, tips, losses = scene.all_around(step)
    plane(left, scene.quiz_loss)
    left.set(title="the student's two weights, over its quiz loss", **AXES)
    teacher_at(left, step.degrees, "teacher")
    left.plot(*tips.T, color=draw.INK, lw=1.2)
    draw.arrow(left, step.theta_S, tip, lw=3)
    pointer(left, names[0], tip, tip - 4 * v, lw=3, color=LOOKS["metadistil"].colour)
    pointer(left, names[1], tip, tip + 1.2 * velocity, lw=3, color=LOOKS["teacher"].colour)
    draw.dot(left, step.theta_S, "student", (8, -16))
    draw.dot(left, tip, "copy", (-34, 6))
    right.plot(degrees, losses, color=LOOKS["metadistil"].colour, lw=2.5)
    right.axhline(scene.quiz_loss(step.theta_S), color=draw.GREY, ls=":")
    touch(right, step)
    right.set(title="its quiz loss after the pilot", xlabel="angle of the teacher (degrees)", xticks=range(0, 361, 90))
    right.set_ylim(losses.min() - 0.05, losses.max() + 0.05)
    return figure


def touch(ax, step):
    """The teacher on the curve of quiz losses, and the tangent there."""
    loss, slope = (step.parts[k].value for k in (4, 7))
    reach = torch.tensor([-40.0, 40.0])
    ax.plot(step.degrees + reach, loss + slope * math.pi / 180 * reach, color=draw.LIT, lw=3)
    ax.plot(step.degrees, loss, **LOOKS["teacher"].of_points() | {"markersize": 14, "zorder": 5})


def tangents(degrees):
    """The same of our teacher, its arrows from close by, and the tangents of teachers at other angles."""
    left, right = plane_and_curve(scene.one_step(), ("$-v$", r"$\partial\theta'_S/\partial\theta_T$")).axes
    left.set(title="A larger angle takes the copy uphill", xlim=(-1.4, 1.6), ylim=(-1.5, 1.5))
    for other in degrees:
        touch(right, scene.one_step(other))
    right.set_title("The meta-gradient is the slope of this curve")


def many_turns(runs):
    """Three students at three moments. runs: {name: rows of weights (2), teacher's angle, two losses}."""
    figure, axes = plt.subplots(3, 3, figsize=(11, 8), sharex=True, sharey=True)
    for row, (name, history) in zip(axes, runs.items()):
        for ax, moment in zip(row, (5, 15, 40)):
            plane(ax, scene.quiz_loss, (-3.5, 3.4), (-1.3, 3.4))
            ax.plot(*history[: moment + 1, :2].T, color=draw.INK, lw=2)
            draw.dot(ax, history[moment, :2])
            teacher_at(ax, float(history[moment, 2]))
            ax.set_title(f"after {moment} steps: $L_q$ = {history[moment, 3]:.2f}")
        row[0].set_ylabel(name.replace(", ", ",\n"), weight="bold")
    figure.supxlabel("student's first weight (up: its second)")
    figure.suptitle("A teacher that hears the quiz turns round, and its student follows", fontsize=16)


def curves(runs):
    """The three students in numbers."""
    titles = ("quiz loss: the repaired teacher's\nstudent ends level", "true loss: so it does on\n4,000 other points",
              "angle: the teacher that hears\nthe quiz finds the truth")  # fmt: skip
    quiz, true, angle = draw.panels(*titles, size=(13, 4.6), xlabel="step", ylabel=["cross-entropy", "", "degrees"])
    for name, history in runs.items():
        for ax, column in ((quiz, 3), (true, 4), (angle, 2)):
            ax.plot(history[:, column], **OF_RUNS[name], label=name)
    for ax in (quiz, true):
        ax.set_ylim(0.3, 2.0)
    quiz.legend(loc="upper right")
    angle.axhline(40, color=draw.INK, lw=1)
    angle.text(60, 45, "truth", ha="right")


def teachers_landscape(start, moves, lesson_loss, own_loss):
    """The plane of a teacher with two weights. start (2,); moves: {name: vector (2,)}; the two losses of its weights:
    the student's quiz loss after its pilot, and the teacher's own."""
    titles = "the student's quiz loss after its pilot", "the teacher's own quiz loss"
    labels = {"xlabel": "teacher's first weight", "ylabel": "teacher's second weight"}
    axes = draw.panels(*titles, size=(12.5, 6.9), shared=True, **labels)
    colours = {"meta-gradient": draw.LIT, "imitation": draw.INK, "tuned on the quiz": LOOKS["teacher"].colour}
    for ax, loss in zip(axes, (lesson_loss, own_loss)):
        plane(ax, loss, (-4.3, 0.6), (-0.9, 3.4), labels="%.2f")
        for name, colour in colours.items():
            pointer(ax, name, start, start + moves[name], **FAT | {"color": colour})
        draw.dot(ax, start, "first-order:\nzero, no arrow", (-98, -14))
    axes[0].figure.suptitle("The meta-gradient makes the next lesson better, not the teacher", fontsize=17)


def long_pilots(tips, losses, runs):
    """The curve of tips, the quiz losses, and whole runs, by the length λ of the pilot. runs: {label: (λ, angles)}."""
    titles = "a longer pilot: a larger curve", "λ = 40: every lesson does harm", "λ = 40: the teacher never settles"
    xlabels = [AXES["xlabel"], "angle of the teacher (degrees)", "step"]
    ylabels = [AXES["ylabel"], "quiz loss after the pilot", "teacher's angle (degrees)"]
    left, middle, right = draw.panels(*titles, size=(13, 4.8), widths=(1.1, 1, 1), xlabel=xlabels, ylabel=ylabels)
    plane(left, scene.quiz_loss, (-7, 7), (-5.2, 7.5), [0.5, 0.55, 0.65, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0])
    for length, (colour, dashes) in LENGTHS.items():
        left.plot(*tips[length].T, dashes, color=colour, lw=2.5, label=f"λ = {length:g}")
        left.plot(*torch.stack([scene.THETA_S, tips[length][40]]).T, color=colour, lw=2.5)
        draw.dot(left, tips[length][40], color=colour)
        middle.plot(losses[length], dashes, color=colour, lw=2.5)
        best = int(losses[length].argmin())
        draw.dot(middle, (best, losses[length][best]), color=colour)
    draw.dot(left, scene.THETA_S)
    left.legend(loc="upper left", frameon=True)
    before = scene.quiz_loss(scene.THETA_S)
    middle.axhline(before, color=draw.INK, ls=":")
    draw.note(middle, "before the pilot", (150, before), (0, -17), fontsize=11)
    middle.set(xticks=range(0, 361, 90), yscale="log")
    middle.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    middle.minorticks_off()
    for label, (length, angles) in runs.items():
        colour, dashes = LENGTHS[length]
        quiet, thin = "smaller" in label, label == "λ = 40"
        right.plot(angles, label=label, color=colour, ls=":" if quiet else dashes, lw=0.8 if thin else 3)
    right.set_ylim(-70, 330)
    right.legend(loc="upper right", ncols=2, fontsize=10)
