"""The look of all notebooks: one colour and one marker for each thing that they compare, and what several figures
draw alike. A notebook shows a cell's figures when the cell ends, so nothing here or in figures0?.py calls plt.show().

Any two colours of LOOKS can be told apart without the receptors for green, too (deuteranopia, the most common kind of
colour blindness): tests/test_draw.py simulates it. Lines differ in their dashes and points in their markers as well.
"""

import html
import inspect
from itertools import cycle
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap


class Look(NamedTuple):
    """How one thing is drawn, wherever it is drawn."""

    colour: str
    marker: str
    line: object  # a line style of matplotlib

    def of_line(self) -> dict:
        """For `ax.plot(x, y, **look.of_line())`: a line."""
        return {"color": self.colour, "linestyle": self.line, "linewidth": 2.6}

    def of_points(self) -> dict:
        """Points without a line."""
        return {"color": self.colour, "marker": self.marker, "linestyle": "", "markeredgecolor": INK}

    def of_curve(self) -> dict:
        """A line with its points."""
        return self.of_points() | self.of_line() | {"markersize": 8}

    def of_bars(self) -> dict:
        """For `ax.errorbar(x, y, half, **look.of_bars())`: points with their intervals."""
        return self.of_points() | {"markersize": 9, "capsize": 4, "elinewidth": 2}


LOOKS = {
    "finetune": Look("#E07A92", "s", ":"),  # a student that learns from labels alone
    "kd": Look("#56B4E9", "o", "--"),  # a student of a teacher that stays as it is
    "metadistil": Look("#00796B", "D", "-"),  # a student of a teacher that hears the quiz
    "teacher": Look("#E8A200", "^", "-."),
    "positive": Look("#1F3A93", "P", "-"),  # class 1, and numbers above zero
    "negative": Look("#8B1A1A", "X", (0, (5, 1, 1, 1))),  # class 0, and numbers below zero
}


def look_of(title) -> Look:
    """The look of a row of a run's table; pkd has kd's, metadistil-pkd metadistil's, a method of one's own kd's."""
    kind = "teacher" if title.startswith("teacher") else title.removeprefix("student ").removesuffix("-pkd")
    return LOOKS.get(kind, LOOKS["kd"])


INK = "#1A1A1A"  # all that is not one of these
GREY = "#767676"  # what stands in the background
LIT = "#D0002F"  # what a figure speaks of just now
# What has no look of its own, in turn.
PLAIN = [Look(INK, "o", "-"), Look(LIT, "s", "--"), Look(GREY, "^", "-."), Look(INK, "D", ":"), Look(GREY, "X", ":")]
# Numbers with a sign: white is zero.
SIGNED = LinearSegmentedColormap.from_list("signed", [LOOKS["negative"].colour, "white", LOOKS["positive"].colour])
HEIGHT = LinearSegmentedColormap.from_list("height", ["white", "#C9D3DE", "#7B8FA6"])  # of a landscape: white is low
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}  # behind words on a coloured ground


def use_style():
    """Set matplotlib's defaults: figures that can be read from the back row."""
    plt.rcParams.update({
        "figure.constrained_layout.use": True, "font.size": 11, "axes.labelsize": 12, "axes.titlesize": 13,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.alpha": 0.3, "legend.frameon": False, "image.cmap": "cividis",
    })  # fmt: skip


def signed(number, digits=2) -> str:
    """A number with its sign, as it is printed in a book: −0.25, +0.25. What rounds to zero has no sign."""
    written = f"{float(number):+.{digits}f}"
    if float(written) == 0:
        written = written[1:]
    return written.replace("-", "−")


def numbers(matrix, digits=2, least=0.0):
    """The numbers of a matrix (R, C) as they are printed in a book; nothing for NaN and what is less than `least`."""
    matrix = np.asarray(matrix)
    return np.where(np.abs(matrix) >= least, np.vectorize(signed)(matrix, digits), "")


def table(columns, rows):
    """A table for the notebook. columns: the names; rows: lists of as many cells, text or numbers, LaTeX between $."""
    from IPython.display import Markdown  # here, for curves.py does without

    lines = [columns, ["---"] * len(columns), *rows]
    text = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    return Markdown(text)


def source(*objects):
    """The source of functions or classes, to be read in the notebook where the module's code is meant."""
    from IPython.display import HTML

    code = "\n\n".join(inspect.getsource(one) for one in objects)
    return HTML(f"<pre>{html.escape(code)}</pre>")


def panels(*titles, xlabel="", ylabel="", size=(13, 5), shared=False, widths=None, **settings):
    """A figure of panels side by side, one for each title -> their axes. xlabel, ylabel: one for all panels or, as a
    list, one for each; if the y axis is shared, its label stands at the first. settings: those of `ax.set`, for all."""
    _, axes = plt.subplots(1, len(titles), figsize=size, sharey=shared, width_ratios=widths, squeeze=False)
    for k, (ax, title) in enumerate(zip(axes[0], titles)):
        x_name, y_name = (label if isinstance(label, str) else label[k] for label in (xlabel, ylabel))
        ax.set(title=title, xlabel=x_name, ylabel=y_name if k == 0 or not shared else "", **settings)
    return axes[0]


def lines(ax, x, named, looks=PLAIN, points=False, **style):
    """Lines over x (N,), each in its look, and their legend. named: {name: heights (N,), or one number for a level};
    points: whether their markers are drawn, too."""
    for (name, y), look in zip(named.items(), cycle(looks)):
        look = look.of_curve() if points else look.of_line()
        ax.plot(x, np.broadcast_to(y, np.shape(x)), **look | style, label=name)
    ax.legend()


def intervals(ax, x, named, looks=PLAIN, apart=0.14, joined=False, **style):
    """Points with bars over x (N,), those of one place side by side, and their legend. named: {name: (middle (N,),
    half a bar (N,), or the two halves of each (2, N))}; joined: whether a line runs through them."""
    for k, ((name, (middle, half)), look) in enumerate(zip(named.items(), cycle(looks))):
        place = np.asarray(x) + apart * (k - (len(named) - 1) / 2)
        look = look.of_bars() | (look.of_line() if joined else {})
        ax.errorbar(place, middle, half, **look | style, label=name)
    ax.legend()


def arrow(ax, start, end, words="", offset=(8, 8), **style):
    """An arrow from point to point, both (2,), and words at its end."""
    look = {"arrowstyle": "-|>", "lw": 2, "color": INK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 15} | style
    ax.annotate("", tuple(map(float, end)), tuple(map(float, start)), arrowprops=look, zorder=3)
    note(ax, words, end, offset)


def note(ax, text, place, offset=(8, 8), **style):
    """Words, if there are any, beside a point (2,); the offset in printer's points."""
    style = {"fontsize": 12, "bbox": ON_WHITE if text else None, "zorder": 6} | style
    ax.annotate(text, tuple(map(float, place)), textcoords="offset points", xytext=offset, **style)


def dot(ax, place, words="", offset=(8, 8), **style):
    """A white dot at a point (2,), and words beside it."""
    style = {"marker": "o", "color": "white", "mec": INK, "ms": 9, "mew": 1.5, "zorder": 5} | style
    ax.plot(*map(float, place), linestyle="", **style)
    note(ax, words, place, offset)


def landscape(ax, x, y, field, levels=None, labels="%g"):
    """A loss over a plane, light where it is small. x (X,), y (Y,), field (Y, X); labels: a format, or None."""
    x, y, field = np.asarray(x), np.asarray(y), np.asarray(field)
    if levels is None:  # as much of the plane between any two neighbours
        levels = np.unique(np.quantile(field, np.linspace(0.01, 0.97, 11)).round(2))
    norm = BoundaryNorm(levels, 256, extend="both")
    ax.contourf(x, y, field, levels, cmap=HEIGHT, norm=norm, extend="both")
    lines = ax.contour(x, y, field, levels, colors=GREY, linewidths=0.6)
    if labels:
        ax.clabel(lines, lines.levels[::2], fontsize=9, fmt=labels)
    ax.set(aspect="equal", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    ax.grid(False)


def heat(ax, matrix, rows=(), columns=(), words=None, size=11, limits=None, **settings):
    """A matrix (R, C) in colour, blue above the middle of the limits, red below, NaN white -> the image, for a colour
    bar. words: what to write into the cells (R, C), else their numbers; settings: those of `ax.set`."""
    matrix = np.asarray(matrix)
    largest = np.nanmax(np.abs(matrix))
    low, high = limits or (-largest, largest)
    image = ax.imshow(matrix, cmap=SIGNED, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    words = numbers(matrix) if words is None else np.asarray(words)
    for i, j in np.argwhere(words != ""):
        dark = abs(matrix[i, j] - (low + high) / 2) > 0.3 * (high - low)
        ax.text(j, i, words[i, j], ha="center", va="center", fontsize=size, color="white" if dark else INK)
    ax.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows, **settings)
    ax.tick_params(labelsize=min(size, 13))
    bare(ax)
    return image


def bare(ax):
    """No grid, no ticks, no frame: for pictures and matrices."""
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def legend_below(ax):
    """One legend for all panels, below them: that of one panel."""
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
