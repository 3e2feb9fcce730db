"""The figures of notebook 05. Each is drawn from the numbers that the notebook works out."""

import math

import draw
import matplotlib.pyplot as plt
import numpy as np
import pictures
from draw import LOOKS
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

OF_STUDENT = {  # how each student is drawn: by what it learnt from
    "student, at the start": LOOKS["finetune"],
    "student, dynamic": LOOKS["metadistil"],
}
OF_TEACHER = {  # the three teachers, where they are compared with each other
    "teacher, before": {"color": draw.GREY, "ls": "-"},
    "teacher, dynamic": {"color": LOOKS["teacher"].colour, "ls": LOOKS["teacher"].line},
    "teacher, other's": {"color": draw.INK, "ls": ":"},
}


def rows_of_grid(flowers):
    """The names of the five rows of classes, 0 to 19, 20 to 39, and so on."""
    return pictures.PETALS if flowers else [f"{20 * row} …" for row in range(5)]


def name_of(k, flowers):
    """The name of class k, on two lines."""
    if not flowers:
        return f"class {k}"
    return f"{pictures.PETALS[k // 20]} petals\n{pictures.STRIPES[k // 5 % 4]}, {pictures.HUES[k % 5]}"


def name_grid(ax, flowers):
    """Name rows and columns of a 5 × 20 grid of classes, and part the blocks of one density of stripes."""
    ax.set_yticks(range(5), rows_of_grid(flowers))
    if flowers:
        ax.set_xticks(np.arange(4) * 5 + 2, pictures.STRIPES)
        ax.set(ylabel="petals", xlabel="stripes; in each block the five hues")
        for x in (4.5, 9.5, 14.5):
            ax.axvline(x, color=draw.INK, lw=1)
    else:
        ax.set(xlabel="class number, modulo 20", xticks=range(0, 20, 5))
    draw.bare(ax)


def mosaic(ax, images):
    """Pictures (R, C, 3, 32, 32), bytes, in rows and columns: the first at (0, 0), the next at (1, 0)."""
    rows, columns = images.shape[:2]
    framed = np.pad(images, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255)
    whole = framed.transpose(0, 3, 1, 4, 2).reshape(34 * rows, 34 * columns, 3)
    ax.imshow(whole, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    draw.bare(ax)


def sheet(examples, flowers):
    """A picture of each class, (100, 3, 32, 32) bytes, as a grid of 5 rows and 20 columns."""
    title = "Neighbours in the sheet look alike" if flowers else "One training picture of each class"
    [ax] = draw.panels(title, size=(12, 3.9))
    mosaic(ax, examples.reshape(5, 20, 3, 32, 32))
    name_grid(ax, flowers)


def cropped(whole, seen):
    """Pictures as they are, and as one training batch holds them: (N, 3, 32, 32) bytes each."""
    [ax] = draw.panels("A training picture is cut and mirrored anew each time", size=(12, 3.5), xticks=[])
    mosaic(ax, np.stack([whole, seen]))
    ax.set_yticks([0, 1], ["whole", "cropped,\nmirrored"])


def accuracies(accuracy, error, N, chance):
    """{network: its accuracy on N test pictures} with ± 1.96 standard errors, {network: of that accuracy}."""
    xlabel = f"accuracy (%) on {N:,} test pictures; bar: ± 1.96 standard errors; chance is {chance:g}%"
    [ax] = draw.panels("The teacher is ahead of its students", xlabel=xlabel, size=(11, 5))
    for place, (name, p) in enumerate(accuracy.items()):
        look = OF_STUDENT.get(name, LOOKS["teacher" if name.startswith("teacher") else "kd"])
        fill = {"markerfacecolor": "white"} if "other start" in name else {}
        half = 196 * error[name]
        ax.errorbar(100 * p, place, xerr=half, **look.of_bars() | fill)
        draw.note(ax, f"{100 * p:.1f}", (100 * p + half, place), (10, 0), va="center")
    ax.set_yticks(range(len(accuracy)), accuracy)
    ax.axhline(2.5, color=draw.GREY, lw=0.8)  # below the three teachers
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.grid(axis="y", visible=False)


def by_class(accuracies, differences, flowers):
    """{network: accuracy (5, 20) in percent} on the left, {difference: points (5, 20)} on the right, two each."""
    figure, axes = plt.subplots(2, 2, figsize=(14, 6.2), sharex="col")
    for ax, (name, percent) in zip(axes[:, 0], accuracies.items()):
        shown = ax.imshow(percent, vmin=0, vmax=100, aspect="auto")
        ax.set_title(name)
    figure.colorbar(shown, ax=axes[:, 0], label="accuracy (%)", location="bottom", shrink=0.6)
    for ax, (name, points) in zip(axes[:, 1], differences.items()):
        words = np.select([points > 24.9, points < -24.9], ["+", "−"], "")
        shown = draw.heat(ax, points, words=words, limits=(-100, 100), title=name)
    figure.colorbar(shown, ax=axes[:, 1], label="difference (points)", location="bottom", shrink=0.6)
    for ax in axes.flat:
        name_grid(ax, flowers)
        ax.label_outer()
    figure.suptitle("The student is right more often where its teacher is right", fontsize=16)


def confusion(shares, flowers):
    """{network: (20, 20), the percentage of each true group (row) that was answered as each group (column)}."""
    unit = "petals; in each block the four stripes" if flowers else "class numbers, by fives"
    labels = {"xlabel": f"answered group ({unit})", "ylabel": "true group"}
    axes = draw.panels(*shares, size=(13, 6), shared=True, **labels)
    for ax, percent in zip(axes, shares.values()):
        shown = ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        for edge in (3.5, 7.5, 11.5, 15.5):
            ax.axhline(edge, color=draw.GREY, lw=1)
            ax.axvline(edge, color=draw.GREY, lw=1)
        ax.set_xticks(np.arange(5) * 4 + 1.5, rows_of_grid(flowers))
        ax.set_yticks(np.arange(5) * 4 + 1.5, rows_of_grid(flowers))
        draw.bare(ax)
    figure = axes[0].figure
    figure.colorbar(shown, ax=axes, label="% of the row", shrink=0.8)
    words = "Most answers in a wrong group have the right stripes" if flowers else "Which groups are taken for which"
    figure.suptitle(words, fontsize=16)


def softness(classes, moved):
    """Of each test picture: {teacher: e^H (N,)}, and {taught teacher: share of the probability that moved (N,)}."""
    titles = ("Half of the soft targets\nhold more than 4 classes", "Each picture\nbefore and after",
              "The median soft target\nmoves by less than a quarter")  # fmt: skip
    xlabels = ["classes in the soft target, $e^H$", "$e^H$ before", "probability that moved (%)"]
    ylabels = ["test pictures", "$e^H$ after (dynamic)", "share of the test pictures at or below"]
    left, middle, right = draw.panels(*titles, xlabel=xlabels, ylabel=ylabels, size=(14, 4.6), widths=(1.2, 1, 1))
    for name, count in classes.items():
        left.hist(count.clip(1, 100), np.geomspace(1, 100, 41), histtype="step", lw=2.4, label=name, **OF_TEACHER[name])
    middle.plot(classes["teacher, before"], classes["teacher, dynamic"], ".", color=LOOKS["teacher"].colour, ms=4)
    middle.axline((1, 1), (100, 100), color=draw.INK, lw=1)
    left.set(xscale="log")
    middle.set(xscale="log", yscale="log", aspect="equal", xlim=(1, 100), ylim=(1, 100))
    for axis in (left.xaxis, middle.xaxis, middle.yaxis):
        axis.set_ticks([1, 3, 10, 30, 100], [1, 3, 10, 30, 100])
    for name, share in moved.items():
        right.ecdf(100 * share, lw=2.6, label=name, **OF_TEACHER[name])
    right.axhline(0.5, color=draw.GREY, lw=1)
    left.legend(loc="upper left", fontsize=10)
    right.legend(loc="lower right", fontsize=10)


def opinions(chosen, flowers):
    """Soft targets before and after. chosen: for each test picture its `image` (32, 32, 3), `words`, and of five classes
    `names`, `before`, `after` (percent) and `examples` (32, 32, 3) each."""
    figure, axes = plt.subplots(len(chosen), 2, figsize=(12.5, 11.5), width_ratios=(1, 4.6), sharey="col")
    places, taught = np.arange(5), {"color": LOOKS["teacher"].colour, "hatch": "///", "ec": "white", "lw": 0}
    for (ax, bars), one in zip(axes, chosen):
        ax.imshow(one["image"])
        ax.set(xticks=[], yticks=[], xlabel=one["words"])
        bars.bar(places - 0.14, one["before"], 0.27, color=draw.GREY, label="before")
        bars.bar(places + 0.14, one["after"], 0.27, label="after (dynamic)", **taught)
        bars.set(ylabel="soft target (%)", xlim=(-0.8, 4.4))
        bars.set_xticks(places, one["names"])
        bars.grid(axis="x", visible=False)
        for place, example in zip(places, one["examples"]):
            where = {"xycoords": ("data", "axes fraction"), "frameon": False}
            bars.add_artist(AnnotationBbox(OffsetImage(example, zoom=1.2), (place - 0.51, 0.5), **where))
    axes[0, 1].legend(loc="upper right")
    words = "The teacher is less certain of the petals than of the hue" if flowers else "Soft targets, before and after"
    figure.suptitle(words, fontsize=16)


def gradient_of_logits(gradient, labels, flowers):
    """∂L_q/∂z_T (B, K) of pictures sorted by class, labels (B,)."""
    power = math.floor(math.log10(np.abs(gradient).max()))
    gradient, unit = gradient / 10.0**power, f"$10^{{{power}}}$"
    limit = np.quantile(np.abs(gradient), 0.995)
    words = "On the lines beside the diagonal: the right stripes and hue, other petals" if flowers else "By class"
    [ax] = draw.panels(words, size=(12.5, 7), xlabel="class", ylabel="training picture, sorted by class")
    shown = ax.imshow(gradient, cmap=draw.SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.figure.colorbar(shown, label=rf"$\partial L_q/\partial z_T$ ({unit}); above 0: lower it", pad=0.01)
    for marker, large in (("+", gradient > 0.7 * limit), ("_", gradient < -0.7 * limit)):
        ax.plot(*np.argwhere(large).T[::-1], marker, color="white", ms=5, mew=1)
    ax.plot(labels, np.arange(len(labels)), "s", color="none", mec=draw.INK, mew=1, ms=7, label="the right class")
    ax.legend(loc="upper right", frameon=True)
    ax.grid(False)
