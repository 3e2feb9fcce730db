"""The README's pictures: `python notebooks/film.py` draws them into notebooks/figures/.

step.png is one step of MetaDistil as a diagram, film.gif the world of notebook 02 in motion: the student stays where it
is, and at each step the teacher takes its meta update. scene.png, its first frame, stands where scene.html cannot run.
"""

import io
import math
import sys
from pathlib import Path

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

FOLDER = HERE / "figures"
STEPS, RATE, COLOURS = 40, 0.5, 256  # frames of the film; μ, small, so that the teacher turns slowly; colours


def steps() -> list[scene.Step]:
    """One step after the other, each with the teacher that the step before has turned."""
    found, degrees = [], math.degrees(scene.WRONG)
    for _ in range(STEPS):
        found.append(scene.one_step(degrees, teacher_lr=RATE))
        degrees = found[-1].parts[8].value.item()
    return found


def picture_of(figure) -> Image.Image:
    """A figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, dpi=90)
    plt.close(figure)
    return Image.open(file).convert("RGB")


def film(frames, path):
    """The frames as a GIF that starts again after a rest."""
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
    """Draw all three."""
    draw.use_style()
    FOLDER.mkdir(exist_ok=True)
    picture_of(diagram()).quantize(64).save(FOLDER / "step.png", optimize=True)
    frames = [picture_of(figures02.plane_and_curve(step)) for step in steps()]
    film(frames, FOLDER / "film.gif")
    frames[0].quantize(COLOURS, Image.Quantize.FASTOCTREE).save(FOLDER / "scene.png", optimize=True)
    for name in ("step.png", "film.gif", "scene.png"):
        print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
