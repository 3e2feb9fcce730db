"""The README's two pictures: `python notebooks/film.py` draws one step of MetaDistil as a diagram, and the world of
notebook 02 in motion, into notebooks/figures/.

In the film the student stays where it is. At each step it makes its pilot update on a copy, the copy sits the quiz, and
the teacher takes its meta update: it turns.
"""

import functools
import io
import math
import sys
from pathlib import Path

import torch

try:
    import matplotlib.pyplot as plt
    from PIL import Image  # comes with matplotlib
except ImportError:
    print("film.py: expected matplotlib; pip install -r notebooks/requirements.txt", file=sys.stderr)
    sys.exit(2)

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import draw  # noqa: E402
import figures02  # noqa: E402
import scene  # noqa: E402

import metadistil  # noqa: E402

FOLDER = HERE / "figures"
STEPS, RATE, COLOURS = 40, 0.5, 128  # frames of the film; μ, small, so that the teacher turns slowly; colours


def steps():
    """[(teacher's angle, θ′_S, quiz loss), ...]: what the trace of each step says, the teacher's step after it."""
    student, teacher = scene.Student(scene.THETA_S), scene.Teacher(scene.WRONG)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=RATE)
    loss = functools.partial(metadistil.kd_loss, alpha=scene.ALPHA, temperature=scene.TEMPERATURE)
    found = []
    for _ in range(STEPS):
        angle = teacher.phi.item()
        step = metadistil.meta_gradient(
            student, teacher, scene.WORLD.batch, scene.WORLD.quiz, pilot_lr=scene.PILOT_LR, loss=loss
        )
        found.append((angle, step.theta_S_prime["theta"], step.quiz_loss.item()))
        metadistil.meta_update(teacher, step.grads, optimizer)
    return found


def frame(found, now):
    """One frame: the plane of the student's weights on the left, the quiz loss so far on the right."""
    angle, theta_S_prime, _ = found[now]
    figure, (plane, curve) = plt.subplots(1, 2, figsize=(9, 4.4), width_ratios=(3, 2))
    figures02.quiz_landscape(plane, -3.6, 3.6, -2.0, 3.6, labels=None)
    plane.set(title="the student's two weights, over its quiz loss (dark is high)", **figures02.AXES)
    teacher = scene.draw_teacher(plane, math.degrees(angle))
    draw.note(plane, "teacher", teacher, (6, 8), color=draw.LOOKS["teacher"].colour, weight="bold")
    draw.arrow(plane, scene.THETA_S, theta_S_prime, lw=3, color=draw.LIT)
    draw.dot(plane, scene.THETA_S)
    draw.note(plane, "student", scene.THETA_S, (8, -16))
    draw.note(plane, "pilot", theta_S_prime, (6, -4), color=draw.LIT)
    losses = [loss for _, _, loss in found]
    curve.plot(losses[: now + 1], color=draw.LIT, lw=2.5)
    curve.plot(now, losses[now], "o", color=draw.LIT, ms=8)
    curve.set(title="quiz loss of the pilot's copy", xlabel="meta updates of the teacher", xlim=(-0.5, STEPS - 0.5))
    curve.set(ylim=(min(losses) - 0.02, max(losses) + 0.02))
    return figure


def picture_of(figure) -> Image.Image:
    """A figure as a picture of few colours."""
    file = io.BytesIO()
    figure.savefig(file, dpi=90)
    plt.close(figure)
    return Image.open(file).convert("RGB")


def film(found, path):
    """The frames as a GIF that starts again after a rest."""
    frames = [picture_of(frame(found, now)) for now in range(len(found))]
    palette = frames[-1].quantize(COLOURS, Image.Quantize.FASTOCTREE)
    frames = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
    durations = [900] + [120] * (len(frames) - 2) + [2500]  # milliseconds
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


BOXES = {  # name in the diagram: place of its middle, text, role in draw.LOOKS or None
    "teacher": ((0.14, 0.74), "teacher $\\theta_T$", "teacher"),
    "student": ((0.14, 0.24), "student $\\theta_S$", "metadistil"),
    "copy": ((0.5, 0.24), "its copy $\\theta'_S$\nafter the pilot update", None),
    "quiz": ((0.86, 0.24), "quiz loss\n$L_q(\\theta'_S)$", None),
}
ARROWS = [  # where it begins and ends, text, where the text stands, colour
    ((0.215, 0.24), (0.37, 0.24), "1  one gradient\nstep on a batch", (0.292, 0.39), draw.INK),
    ((0.63, 0.24), (0.79, 0.24), "2  sits\nthe quiz", (0.71, 0.39), draw.INK),
    ((0.86, 0.38), (0.225, 0.80), "3  the quiz loss flows back, through the gradient step itself", (0.56, 0.90), draw.LIT),
    ((0.14, 0.64), (0.14, 0.35), "4  the student learns from\nthe improved teacher", (0.16, 0.55), draw.INK),
]  # fmt: skip


def diagram():
    """One step: student, copy, quiz, teacher, student."""
    figure, ax = plt.subplots(figsize=(9, 3.4))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    for (x, y), text, role in BOXES.values():
        edge = draw.LOOKS[role].colour if role else draw.GREY
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": edge, "linewidth": 2.5}
        ax.text(x, y, text, ha="center", va="center", fontsize=13, bbox=box)
    for start, end, text, (x, y), colour in ARROWS:
        bend = "angle3,angleA=90,angleB=0" if colour == draw.LIT else "arc3"
        draw.arrow(ax, start, end, connectionstyle=bend, color=colour, lw=2.5)
        ax.text(x, y, text, ha="left" if x < 0.2 else "center", va="center", fontsize=11, color=colour)
    return figure


def main():
    """Draw both."""
    draw.use_style()
    FOLDER.mkdir(exist_ok=True)
    picture_of(diagram()).quantize(64).save(FOLDER / "step.png", optimize=True)
    film(steps(), FOLDER / "film.gif")
    for path in (FOLDER / "step.png", FOLDER / "film.gif"):
        print(f"{path}: {path.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
