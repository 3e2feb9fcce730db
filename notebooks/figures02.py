"""The figures of notebook 02, each drawn from the numbers that the notebook works out, and its scene for paper."""

import math

import draw
import matplotlib.pyplot as plt
import scene
import torch
from draw import LOOKS

AXES = {"xlabel": "student's first weight", "ylabel": "student's second weight"}
DEGREES = torch.arange(361)
LINE = torch.linspace(-4.2, 4.2, 57, dtype=torch.float64)  # both axes of the plane
PLANE = torch.stack(torch.meshgrid(LINE, LINE, indexing="xy"), dim=-1).reshape(-1, 2)


def grid(x_low, x_high, y_low, y_high, count=61):
    """The two axes of a plane and its points: (count,), (count,), (count², 2)."""
    x = torch.linspace(x_low, x_high, count, dtype=torch.float64)
    y = torch.linspace(y_low, y_high, count, dtype=torch.float64)
    return x, y, torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def quiz_landscape(ax, x_low, x_high, y_low, y_high, levels=None, labels="%g"):
    """The quiz loss over a part of the student's plane."""
    x, y, plane = grid(x_low, x_high, y_low, y_high)
    draw.landscape(ax, x, y, over_plane(scene.quiz_loss, plane), levels, labels)
    ax.set(**AXES)


def world():
    """What the student learns from, and what it is asked."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), sharex=True, sharey=True)
    draw_points(axes[0], scene.WORLD.batch, scene.WRONG, "teacher")
    draw_points(axes[1], scene.WORLD.quiz, scene.TRUTH, "truth")
    x, _ = scene.WORLD.batch
    axes[0].plot(*x[scene.WORLD.careless].T, "o", color="none", mec=draw.GREY, mew=2, ms=18, label="flipped label")
    axes[0].set(title="training: the teacher is wrong, and so are ten labels", ylabel="second input $x_2$")
    axes[1].set(title="the quiz: every label as the truth would have it")
    axes[0].legend(loc="lower right")
    plt.show()


def draw_points(ax, examples, angle, name):
    """Points by class, and the line between the classes by a teacher (or the truth) at that angle."""
    x, y = examples
    for label, role in ((0, "negative"), (1, "positive")):
        ax.plot(*x[y == label].T, **LOOKS[role].of_points() | {"markersize": 9}, label=f"class {label}")
    u = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    line = torch.outer(torch.tensor([-5.0, 5.0], dtype=torch.float64), torch.stack([-u[1], u[0]]))
    ax.plot(*line.T, color=draw.INK, lw=2)
    draw.arrow(ax, (0, 0), 1.3 * u)
    draw.note(ax, name, 1.3 * u, (-48, 8) if u[0] < 0 else (6, 6), weight="bold")
    ax.set(xlabel="first input $x_1$", aspect="equal", xlim=(-3, 3), ylim=(-2.6, 2.6))


def pilot_on_two_landscapes(theta_S_prime):
    """The pilot's arrow over the inner loss, and over the quiz loss."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True)
    x, y, plane = grid(-3.8, 3.8, -2.4, 3.6)
    phi = torch.tensor(scene.WRONG, dtype=torch.float64)
    draw.landscape(axes[0], x, y, over_plane(lambda theta: scene.inner_loss(theta, phi), plane))
    draw.landscape(axes[1], x, y, over_plane(scene.quiz_loss, plane))
    axes[0].set(title="the inner loss falls: the teacher calls it progress", **AXES)
    axes[1].set(title="the quiz loss rises: the quiz does not", xlabel=AXES["xlabel"])
    for ax in axes:
        draw.note(ax, "teacher", draw_teacher(ax, 160.0), (-6, 14))
        draw.arrow(ax, scene.THETA_S, theta_S_prime, lw=3, color=draw.LIT)
        draw.dot(ax, scene.THETA_S)
        draw.note(ax, r"$\theta_S$", scene.THETA_S, (9, -14))
        draw.note(ax, r"$\theta'_S$", theta_S_prime, (-28, 6))
    truth = scene.weights_of(torch.tensor(scene.TRUTH, dtype=torch.float64))
    axes[1].plot(*truth, "*", color="white", mec=draw.INK, ms=18, zorder=5)
    draw.note(axes[1], "truth", truth, (12, -4))
    plt.show()


def circle_of_arrows(tips, best):
    """The pilot steps of twelve teachers, and the curve of the tips of all, (361, 2), one for each degree."""
    figure, ax = plt.subplots(figsize=(9, 7))
    quiz_landscape(ax, -0.95, 2.15, -1.55, 1.1, torch.arange(0.5, 1.15, 0.05), "%.2f")
    ax.plot(*tips.T, color=draw.INK, lw=1.5)
    for degrees in range(10, 360, 30):
        tip, ours = tips[degrees], degrees == 160
        look = {"lw": 4, "color": draw.LIT, "mutation_scale": 22} if ours else {"lw": 1.2, "color": draw.GREY}
        draw.arrow(ax, scene.THETA_S, tip, **look)
        outward = direction(tip - tips.mean(dim=0))
        offset = (14 * outward[0] - 11, 13 * outward[1] - 5)
        draw.note(ax, f"{degrees}°", tip, offset, weight="bold" if ours else "normal")
    draw.dot(ax, scene.THETA_S)
    draw.note(ax, r"$\theta_S$", scene.THETA_S, (10, -10), fontsize=14)
    draw.dot(ax, tips[best], color=LOOKS["teacher"].colour, ms=12)
    draw.note(ax, "best for the quiz", tips[best], (14, 6), fontsize=13)
    ax.set(title="All that this teacher can do to this student in one step is a curve")
    plt.show()


def tangent(tips, quiz_losses, velocity, v, slope_at):
    """The two arrows at the tip, and the quiz loss of all teachers, (361,), with tangents by the meta-gradient."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 5.2), width_ratios=(1, 1.25))
    quiz_landscape(left, -1.0, 0.6, -0.75, 0.85, torch.arange(0.5, 1.15, 0.05), None)
    tip = tips[160]
    left.plot(*tips.T, color=draw.INK, lw=1.2)
    for vector, words, offset, colour in (
        (velocity, r"$\partial\theta'_S/\partial\theta_T$", (-74, 0), draw.INK), (-v, "$-v$", (-6, 10), draw.LIT)
    ):  # fmt: skip
        end = tip + 0.6 * vector / vector.norm()
        draw.arrow(left, tip, end, lw=3.5, mutation_scale=22, color=colour)
        draw.note(left, words, end, offset, fontsize=15, color=colour)
    draw.dot(left, tip)
    draw.note(left, r"$\theta'_S$", tip, (-28, 8), fontsize=15)
    left.set(title="A larger angle takes the tip uphill")
    right.plot(DEGREES, quiz_losses, color=draw.INK, lw=2.5)
    for degrees, reach in ((20, 32), (160, 55), (285, 32)):
        run = torch.tensor([-reach, reach])
        slope = slope_at(degrees) * math.pi / 180  # per degree
        right.plot(degrees + run, quiz_losses[degrees] + slope * run, "--", color=draw.LIT, lw=2)
        draw.dot(right, (degrees, quiz_losses[degrees]))
    draw.note(right, "our teacher", (160, quiz_losses[160]), (-92, 8))
    best = int(quiz_losses.argmin())
    draw.dot(right, (best, quiz_losses[best]), color=LOOKS["teacher"].colour, ms=12)
    right.axhline(scene.quiz_loss(scene.THETA_S), color=draw.GREY, ls=":")
    draw.note(right, "before the pilot", (195, scene.quiz_loss(scene.THETA_S)), (0, -18), color=draw.GREY)
    right.set(title="The meta-gradient is the slope of this curve", xlabel=r"angle of the teacher $\theta_T$ (degrees)",
              ylabel=r"quiz loss after the pilot, $L_q(\theta'_S)$", xticks=range(0, 361, 60))  # fmt: skip
    plt.show()


def one_turn(theta_S_prime, phi_new, theta_S_new):
    """Pilot, meta update, real update."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.7), sharey=True)
    titles = ("1. pilot: the copy obeys", "2. meta: the teacher turns", "3. real: the student learns")
    after = math.degrees(phi_new)
    for ax, title in zip(axes, titles):
        quiz_landscape(ax, -3.9, 3.5, -1.3, 3.6, labels=None)
        ax.set(title=title, ylabel=AXES["ylabel"] if ax is axes[0] else "")
        first = ax is axes[0]
        draw.arrow(ax, scene.THETA_S, theta_S_prime, ls="-" if first else ":", color=draw.LIT if first else draw.INK,
                   lw=3.5 if first else 2)  # fmt: skip
        draw.dot(ax, scene.THETA_S)
        draw.note(ax, r"$\theta_S$", scene.THETA_S, (9, -12))
    draw.note(axes[0], r"$\theta'_S$", theta_S_prime, (-8, 12))
    draw.note(axes[0], r"$\theta_T$", draw_teacher(axes[0], 160.0), (12, 4))
    draw_teacher(axes[1], 160.0)
    draw_turn(axes[1], 160.0, after)
    draw.note(axes[1], r"new $\theta_T$", scene.weights_of(scene.radians(after)), (13, -4))
    draw.note(axes[2], r"new $\theta_T$", draw_teacher(axes[2], after), (13, -4))
    draw.arrow(axes[2], scene.THETA_S, theta_S_new, lw=3.5, color=draw.LIT)
    draw.note(axes[2], r"new $\theta_S$", theta_S_new, (-50, 14))
    plt.show()


def look_of(run):
    """A run's colour and line: KD or MetaDistil; the wrong teacher's dotted."""
    look = LOOKS["metadistil" if run.startswith("MetaDistil") else "kd"]
    return look.of_line() | ({"linestyle": ":"} if run == "KD, wrong teacher" else {})


def many_turns(runs, pilot, moments=(0, 5, 15, 40)):
    """Three students at four moments. runs: {name: rows of weights (2), teacher's angle, two losses}."""
    figure, axes = plt.subplots(3, 4, figsize=(12, 7.1), sharex=True, sharey=True)
    for ax, moment in zip(axes[0], moments):
        ax.set_title(f"after {moment} steps")
    for row, (name, history) in zip(axes, runs.items()):
        for ax, moment in zip(row, moments):
            quiz_landscape(ax, -3.5, 3.4, -1.3, 3.4, labels=None)
            path, angle = history[: moment + 1, :2], float(history[moment, 2])
            ax.plot(*path.T, color=draw.INK, lw=2)
            following = pilot(path[-1], scene.radians(angle))
            if (following - path[-1]).norm() > 0.15:
                draw.arrow(ax, path[-1], following, lw=1.5, color=draw.LIT)
            draw.dot(ax, path[-1])
            draw_teacher(ax, angle, markersize=12)
            words = f"$L_q$ = {history[moment, 3]:.2f}"
            ax.text(0.97, 0.05, words, transform=ax.transAxes, ha="right", bbox=draw.ON_WHITE)
            ax.set(xlabel="", ylabel="")
        row[0].set_ylabel(name.replace(", ", ",\n"), weight="bold")
    figure.supxlabel("student's first weight (up: its second)")
    figure.suptitle("A teacher that hears the quiz turns round, and its student follows", fontsize=16)
    plt.show()


def curves(runs):
    """The three students in numbers."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6))
    titles = ("quiz loss: the repaired teacher's\nstudent ends level", "true loss: so it does on\n4,000 other points",
              "angle: the teacher that hears\nthe quiz finds the truth")  # fmt: skip
    for ax, column, title in zip(axes, (3, 4, 2), titles):
        for name, history in runs.items():
            ax.plot(history[:, column], **look_of(name), label=name)
        ax.set(xlabel="step", title=title)
    axes[0].set(ylabel="cross-entropy", ylim=(0.3, 2.0))
    axes[1].set(ylim=(0.3, 2.0))
    axes[0].legend(loc="upper right")
    axes[2].set(ylabel="degrees")
    axes[2].axhline(40, color=draw.INK, lw=1)
    axes[2].text(60, 45, "truth", ha="right")
    plt.show()


def teachers_landscape(start, moves, lesson_loss, own_loss):
    """The plane of a teacher with two weights. start (2,); moves: {name: vector (2,)}; the two losses of its weights:
    the student's quiz loss after its pilot, and the teacher's own."""
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 6.9), sharey=True)
    x, y, plane = grid(-4.3, 0.6, -0.9, 3.4, 49)
    looks = {
        "meta-gradient": (draw.LIT, (6, 6)),
        "imitation": (draw.INK, (4, -26)),
        "tuned on the quiz": (LOOKS["teacher"].colour, (6, -3)),
    }
    for ax, loss in zip(axes, (lesson_loss, own_loss)):
        draw.landscape(ax, x, y, over_plane(loss, plane), labels="%.2f")
        for name, (colour, offset) in looks.items():
            draw.arrow(ax, start, start + moves[name], color=colour, lw=4, mutation_scale=22)
            draw.note(ax, name, start + moves[name], offset, weight="bold")
        draw.dot(ax, start, ms=11)
        draw.note(ax, "first-order:\nzero, no arrow", start, (-98, -14))
        ax.set(xlabel="teacher's first weight")
    axes[0].set(title="the student's quiz loss after its pilot", ylabel="teacher's second weight")
    axes[1].set(title="the teacher's own quiz loss")
    figure.suptitle("The meta-gradient makes the next lesson better, not the teacher", fontsize=17)
    plt.show()


LENGTHS = {2.0: (draw.INK, "-"), 10.0: (draw.GREY, "--"), 40.0: (draw.LIT, "-.")}  # of the pilot: colour and line


def long_pilots(curves, losses, runs):
    """The curve of tips, the quiz losses, and whole runs, by the length λ of the pilot. runs: {label: (λ, angles)}."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.8), width_ratios=(1.1, 1, 1))
    enlarged_curves(left, curves)
    for length, (colour, dashes) in LENGTHS.items():
        middle.plot(DEGREES, losses[length], dashes, color=colour, lw=2.5)
        best = int(losses[length].argmin())
        draw.dot(middle, (best, losses[length][best]), color=colour)
    middle.axhline(scene.quiz_loss(scene.THETA_S), color=draw.INK, ls=":")
    draw.note(middle, "before the pilot", (150, scene.quiz_loss(scene.THETA_S)), (0, -17), fontsize=11)
    middle.set(
        title="λ = 40: every lesson does harm", xlabel="angle of the teacher (degrees)", xticks=range(0, 361, 90)
    )
    middle.set(ylabel="quiz loss after the pilot", yscale="log")
    middle.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    middle.minorticks_off()
    for label, (length, angles) in runs.items():
        colour, dashes = LENGTHS[length]
        quiet, thin = "smaller" in label, label == "λ = 40"
        right.plot(angles, label=label, color=colour, ls=":" if quiet else dashes, lw=0.8 if thin else 3)
    right.set(
        title="λ = 40: the teacher never settles", xlabel="step", ylabel="teacher's angle (degrees)", ylim=(-70, 330)
    )
    right.legend(loc="upper right", ncols=2, fontsize=10)
    plt.show()


def enlarged_curves(ax, curves):
    """The curves of tips, (361, 2) by λ, and the arrows of the teacher at 40°, which all lie on one line."""
    quiz_landscape(ax, -7, 7, -5.5, 7.5, [0.5, 0.55, 0.65, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0], None)
    way = curves[2.0][40] - scene.THETA_S
    for length, reach in ((40.0, 7.9), (10.0, 5.0), (2.0, 1.0)):  # the longest leaves the picture
        draw.arrow(ax, scene.THETA_S, scene.THETA_S + reach * way, color=LENGTHS[length][0], lw=3)
    for length in (10.0, 2.0):
        ax.plot(*curves[length].T, LENGTHS[length][1], color=LENGTHS[length][0], lw=2.5)
    draw.dot(ax, scene.THETA_S)
    for words, place in (("λ = 2", (-1.2, -2.3)), ("λ = 10", (-6.2, -3.6)), ("λ = 40", (3.1, 6.2))):
        draw.note(ax, words, place, (0, 0))
    ax.set(title="a longer pilot: a larger curve")


# ---- The scene of scene.html, for paper


def over_plane(loss, plane=PLANE):
    """A loss of two weights at every point of a square plane (n², 2) -> (n, n)."""
    n = math.isqrt(len(plane))
    return torch.func.vmap(loss)(plane).reshape(n, n)


def draw_plane(ax, step, number):
    """The plane of the weights, with the arrows up to that number."""
    values = [part.value for part in step.parts]
    if number <= 4:
        title = "the inner loss $L_S$"
        phi = scene.radians(step.degrees)
        field = over_plane(lambda theta: scene.inner_loss(theta, phi, step.temperature, step.alpha))
    else:
        title = "the quiz loss $L_q$"
        field = over_plane(scene.quiz_loss)
    draw.landscape(ax, LINE, LINE, field, labels=None)
    if number in (2, 5):
        ax.contour(LINE, LINE, field, [values[number - 1].item()], colors=draw.LIT, linewidths=3.5)
    ax.set(title=f"{title} (light: small)", xlabel="first weight", ylabel="second weight")
    teacher = draw_teacher(ax, step.degrees)
    for n in SHOWN[number]:
        start, end, label = arrows_of(step, teacher)[n]
        lit = n == number or number == 8 and n in (6, 7)
        style = {"color": draw.LIT, "lw": 4, "mutation_scale": 22} if lit else {"lw": 1.8}
        draw.arrow(ax, start, end, **style)
        if label:
            draw.note(ax, label, end, (5, 5) if n == 6 else (-4, -22), fontsize=13, color=draw.LIT if lit else draw.INK)
    draw.dot(ax, step.theta_S)
    draw.note(ax, r"$\theta_S$", step.theta_S, (4, 10))
    if number >= 4:
        draw.dot(ax, values[3])
        draw.note(ax, r"$\theta'_S$", values[3], (-10, 11))
    if number >= 7:
        ax.plot(*scene.all_around(step)[1].T, color=draw.INK, lw=1)
    if number == 9:
        draw_turn(ax, step.degrees, values[8].item())


SHOWN = {1: [1], 2: [1], 3: [3], 4: [4], 5: [4], 6: [4, 6], 7: [4, 6, 7], 8: [4, 6, 7], 9: [4]}  # arrows of the parts


def arrows_of(step, teacher) -> dict:
    """{number of the part: (start, end, label)}, of the parts that are arrows. Directions have one length."""
    _, _, gradient, tip, _, v, tip_velocity, _, _ = [part.value for part in step.parts]
    return {
        1: ((0, 0), teacher, ""),
        3: (step.theta_S, step.theta_S + direction(gradient), r"$\nabla L_S$"),
        4: (step.theta_S, tip, ""),
        6: (tip, tip - direction(v), "$-v$"),
        7: (tip, tip + direction(tip_velocity), r"$\partial\theta'_S/\partial\theta_T$"),
    }


def direction(vector):
    """The vector (2,) brought to one length. Zero stays zero: at α = 0 the copy does not follow the teacher at all."""
    return 1.3 * vector / vector.norm().clamp(min=1e-12)


def draw_teacher(ax, degrees, **style):
    """The circle of all teachers, and the one at that angle -> its weights (2,)."""
    circle = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    ax.plot(*scene.weights_of(circle), ":", color=draw.GREY, lw=1.2)
    place = scene.weights_of(scene.radians(degrees))
    ax.plot(*place, **draw.LOOKS["teacher"].of_points() | {"markersize": 14, "zorder": 5} | style)
    return place


def draw_turn(ax, before, after):
    """The teacher's way along its circle, in degrees, and where it then stands."""
    way = torch.linspace(before, after, 60, dtype=torch.float64).deg2rad()
    path = 1.14 * scene.weights_of(way).T  # (60, 2)
    ax.plot(*path.T, color=draw.LIT, lw=4)
    draw.arrow(ax, path[-6], path[-1], color=draw.LIT, lw=4, mutation_scale=22)
    ax.plot(*scene.weights_of(way[-1]), marker="^", color="white", mec=draw.LIT, mew=2.5, ms=14, zorder=5)


def plane_and_curve(step):
    """What scene.html shows, as a figure: the student's plane with its arrows; the quiz loss after the pilot for every
    teacher, and ours on it with the tangent, whose slope is the meta-gradient."""
    figure, (plane, curve) = plt.subplots(1, 2, figsize=(9, 4.4))
    tip, loss, v, velocity, slope = (step.parts[k].value for k in (3, 4, 5, 6, 7))
    draw.landscape(plane, LINE, LINE, over_plane(scene.quiz_loss), labels=None)
    plane.set(title="the student's two weights, over its quiz loss", **AXES)
    degrees, tips, losses = scene.all_around(step)
    teacher = draw_teacher(plane, step.degrees)
    plane.plot(*tips.T, color=draw.INK, lw=1.2)
    draw.arrow(plane, step.theta_S, tip, lw=3)
    draw.arrow(plane, tip, tip - 4 * v, lw=3, color=LOOKS["metadistil"].colour)
    draw.arrow(plane, tip, tip + 1.2 * velocity, lw=3, color=LOOKS["teacher"].colour)
    for place, words, offset in (
        (teacher, "teacher", (10, 6)),
        (step.theta_S, "student", (8, -16)),
        (tip, "copy", (-34, 6)),
    ):
        draw.note(plane, words, place, offset)
    draw.dot(plane, step.theta_S)
    draw.dot(plane, tip)
    reach = torch.tensor([-40.0, 40.0])
    curve.plot(degrees, losses, color=LOOKS["metadistil"].colour, lw=2.5)
    curve.axhline(scene.quiz_loss(step.theta_S), color=draw.GREY, ls=":")
    curve.plot(step.degrees + reach, loss + slope * math.pi / 180 * reach, color=draw.LIT, lw=3)
    curve.plot(step.degrees, loss, **LOOKS["teacher"].of_points() | {"markersize": 14, "zorder": 5})
    curve.set(title="its quiz loss after the pilot", xlabel="angle of the teacher (degrees)", xticks=range(0, 361, 90))
    curve.set_ylim(losses.min() - 0.05, losses.max() + 0.05)
    return figure


def stills():
    """All nine parts in one picture."""
    step = scene.one_step()
    figure, axes = plt.subplots(3, 3, figsize=(8.4, 9.2), sharex=True, sharey=True)
    for number, (ax, part) in enumerate(zip(axes.flat, step.parts), start=1):
        draw_plane(ax, step, number)
        ax.set_title(f"{number}. ${part.symbol}$\n{written(part)}", fontsize=13, color=draw.LIT)
        ax.set(xlabel="first weight" if number > 6 else "", ylabel="second weight" if number % 3 == 1 else "")
    plt.show()


def written(part) -> str:
    """The value of a part: a number, or a point; of a matrix its shape."""
    value = part.value
    if value.dim() == 2:
        return f"{tuple(value.shape)} numbers"
    text = scene.point(value, 2) if value.dim() == 1 else f"{value:.2f}".replace("-", "−")
    return f"{text} {part.unit}".strip()
