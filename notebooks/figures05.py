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
    "student, static": LOOKS["kd"],
    "student, static, other start": LOOKS["kd"],
    "student, dynamic": LOOKS["metadistil"],
    "student, cross": LOOKS["kd"],
}
OF_TEACHER = {  # colour and line of the three teachers, where they are compared with each other
    "teacher, before": (draw.GREY, "-"),
    "teacher, dynamic": (LOOKS["teacher"].colour, LOOKS["teacher"].line),
    "teacher, other's": (draw.INK, ":"),
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
    ax.grid(False)
    ax.tick_params(length=0)


def sheet(examples, flowers):
    """A picture of each class, (100, 3, 32, 32) bytes, as a grid of 5 rows and 20 columns."""
    framed = np.pad(examples.transpose(0, 2, 3, 1), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    whole = framed.reshape(5, 20, 34, 34, 3).transpose(0, 2, 1, 3, 4).reshape(5 * 34, 20 * 34, 3)
    _, ax = plt.subplots(figsize=(12, 3.9))
    ax.imshow(whole, extent=(-0.5, 19.5, 4.5, -0.5))
    name_grid(ax, flowers)
    ax.set_title("Neighbours in the sheet look alike" if flowers else "One training picture of each class")
    plt.show()


def cropped(whole, seen):
    """Pictures as they are, and as one training batch holds them: (N, 3, 32, 32) bytes each."""
    figure, axes = plt.subplots(2, len(whole), figsize=(12, 3.5))
    for row, name in enumerate(("whole", "cropped,\nmirrored")):
        for ax, image in zip(axes[row], (whole, seen)[row]):
            ax.imshow(image.transpose(1, 2, 0))
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
        axes[row, 0].set_ylabel(name)
    figure.suptitle("A training picture is cut and mirrored anew each time")
    plt.show()


def accuracies(accuracy, error, N, chance):
    """{network: its accuracy on N test pictures} with ± 1.96 standard errors, {network: of that accuracy}."""
    _, ax = plt.subplots(figsize=(11, 5))
    for place, (name, p) in enumerate(reversed(accuracy.items())):
        look = OF_STUDENT.get(name, LOOKS["teacher"])
        ax.errorbar(100 * p, place, xerr=196 * error[name], color=look.colour, capsize=5, lw=2.5)
        inside = {"markerfacecolor": "white", "markeredgecolor": look.colour} if "other start" in name else {}
        ax.plot(100 * p, place, **look.of_points() | inside | {"markersize": 11, "mew": 2})
        draw.note(ax, f"{100 * p:.1f}", (100 * (p + 1.96 * error[name]), place), (10, 0), va="center")
    ax.set_yticks(range(len(accuracy)), reversed(accuracy))
    ax.axhline(len(accuracy) - 3.5, color=draw.GREY, lw=0.8)
    ax.set(title="The teacher is ahead of its students", ylim=(-0.5, len(accuracy) - 0.4),
           xlabel=f"accuracy (%) on {N:,} test pictures; bar: ± 1.96 standard errors; chance is {chance:g}%")  # fmt: skip
    ax.margins(x=0.1)
    ax.grid(axis="y", visible=False)
    plt.show()


def by_class(accuracies, differences, flowers):
    """{network: accuracy (5, 20) in percent} on the left, {difference: points (5, 20)} on the right, two each."""
    figure, axes = plt.subplots(2, 2, figsize=(14, 6.2))
    for ax, (name, percent) in zip(axes[:, 0], accuracies.items()):
        shown = ax.imshow(percent, vmin=0, vmax=100)
        ax.set_title(name)
    figure.colorbar(shown, ax=axes[:, 0], label="accuracy (%)", location="bottom", shrink=0.6)
    for ax, (name, points) in zip(axes[:, 1], differences.items()):
        shown = ax.imshow(points, cmap=draw.SIGNED, vmin=-100, vmax=100)
        mark(ax, points, least=24.9, dark=60)
        ax.set_title(name)
    figure.colorbar(shown, ax=axes[:, 1], label="difference (points)", location="bottom", shrink=0.6)
    for ax in axes.flat:
        name_grid(ax, flowers)
    for ax in axes[0]:
        ax.set_xlabel("")
    figure.suptitle("The student is right more often where its teacher is right", fontsize=16)
    plt.show()


def mark(ax, values, least, dark):
    """Write the sign into the squares of a matrix whose size is at least `least`; white on those beyond `dark`."""
    for (row, column), value in np.ndenumerate(np.asarray(values)):
        if abs(value) >= least:
            ink = "white" if abs(value) > dark else draw.INK
            ax.text(column, row, "+" if value > 0 else "−", ha="center", va="center", color=ink, fontsize=12)


def confusion(shares, flowers):
    """{network: (20, 20), the percentage of each true group (row) that was answered as each group (column)}."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 6), sharey=True)
    unit = "petals; in each block the four stripes" if flowers else "class numbers, by fives"
    for ax, (name, percent) in zip(axes, shares.items()):
        shown = ax.imshow(percent, cmap=draw.SIGNED, vmin=-100, vmax=100)  # of it the half above zero
        for at in (3.5, 7.5, 11.5, 15.5):
            ax.axhline(at, color=draw.GREY, lw=1)
            ax.axvline(at, color=draw.GREY, lw=1)
        ax.set_xticks(np.arange(5) * 4 + 1.5, rows_of_grid(flowers))
        ax.set_yticks(np.arange(5) * 4 + 1.5, rows_of_grid(flowers))
        ax.tick_params(length=0, labelleft=True)
        ax.grid(False)
        ax.set(title=name, xlabel=f"answered group ({unit})", ylabel="true group")
    bar = figure.colorbar(shown, ax=axes, label="% of the row", shrink=0.8)
    bar.ax.set_ylim(0, 100)
    words = "Most answers in a wrong group have the right stripes" if flowers else "Which groups are taken for which"
    figure.suptitle(words, fontsize=16)
    plt.show()


def softness(classes, moved):
    """Of each test picture: {teacher: e^H (N,)}, and {taught teacher: share of the probability that moved (N,)}."""
    _, axes = plt.subplots(1, 3, figsize=(14, 4.6), width_ratios=(1.2, 1, 1))
    ticks = [1, 3, 10, 30, 100]
    for name, count in classes.items():
        colour, line = OF_TEACHER[name]
        axes[0].hist(count.clip(1, 100), np.geomspace(1, 100, 41), histtype="step", lw=2.4, color=colour, ls=line,
                     label=name)  # fmt: skip
    axes[0].set(xscale="log", xlabel="classes in the soft target, $e^H$", ylabel="test pictures",
                title="Half of the soft targets\nhold more than 4 classes")  # fmt: skip
    axes[0].legend(loc="upper left", fontsize=10)
    axes[1].plot(classes["teacher, before"], classes["teacher, dynamic"], ".", color=LOOKS["teacher"].colour, ms=4)
    axes[1].plot([1, 100], [1, 100], color=draw.INK, lw=1)
    axes[1].set(xscale="log", yscale="log", xlabel="$e^H$ before", ylabel="$e^H$ after (dynamic)", aspect="equal",
                title="Each picture\nbefore and after")  # fmt: skip
    for axis in (axes[0].xaxis, axes[1].xaxis, axes[1].yaxis):
        axis.set_ticks(ticks, ticks)
    for name, share in moved.items():
        colour, line = OF_TEACHER[name]
        percent = 100 * np.sort(share)
        axes[2].plot(percent, 100 * np.arange(1, len(share) + 1) / len(share), ls=line, color=colour, lw=2.6,
                     label=name)  # fmt: skip
    axes[2].axhline(50, color=draw.GREY, lw=1)
    axes[2].set(xlabel="probability that moved (%)", ylabel="test pictures at or below (%)", xlim=(0, None),
                title="The median soft target\nmoves by less than a quarter")  # fmt: skip
    axes[2].legend(loc="lower right", fontsize=10)
    plt.show()


def opinions(chosen, flowers):
    """Soft targets before and after. chosen: for each test picture its `image` (32, 32, 3), `words`, and of five classes
    `names`, `before`, `after` (percent) and `examples` (32, 32, 3) each."""
    figure, axes = plt.subplots(len(chosen), 2, figsize=(12.5, 11.5), width_ratios=(1, 4.6))
    highest = max(max(*one["before"], *one["after"]) for one in chosen)
    places = np.arange(5)
    for (ax, bars), one in zip(axes, chosen):
        ax.imshow(one["image"])
        ax.set(xticks=[], yticks=[], xlabel=one["words"])
        ax.grid(False)
        bars.bar(places - 0.14, one["before"], 0.27, color=draw.GREY, label="before")
        bars.bar(places + 0.14, one["after"], 0.27, color=LOOKS["teacher"].colour, hatch="///", ec="white", lw=0,
                 label="after (dynamic)")  # fmt: skip
        bars.set_xticks(places, one["names"])
        bars.set(ylabel="soft target (%)", xlim=(-0.8, 4.4), ylim=(0, 1.1 * highest))
        bars.grid(axis="x", visible=False)
        for place, example in zip(places, one["examples"]):
            small = OffsetImage(example, zoom=1.2)
            box = AnnotationBbox(small, (place - 0.51, 0.5), xycoords=("data", "axes fraction"), frameon=False)
            bars.add_artist(box)
    axes[0, 1].legend(loc="upper right")
    words = "The teacher is less certain of the petals than of the hue" if flowers else "Soft targets, before and after"
    figure.suptitle(words, fontsize=16)
    plt.show()


def gradient_of_logits(gradient, labels, flowers):
    """∂L_q/∂z_T (B, K) of pictures sorted by class, labels (B,); below, the sum of each column on the grid."""
    unit = 10.0 ** math.floor(math.log10(np.abs(gradient).max()))
    gradient, power = gradient / unit, f"$10^{{{math.log10(unit):.0f}}}$"
    figure, axes = plt.subplots(2, 1, figsize=(12.5, 10), height_ratios=(2.1, 1))
    limit = np.quantile(np.abs(gradient), 0.995)
    shown = axes[0].imshow(gradient, cmap=draw.SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    figure.colorbar(shown, ax=axes[0], label=rf"$\partial L_q/\partial z_T$ ({power}); above 0: lower it", pad=0.01)
    for marker, large in (("+", gradient > 0.7 * limit), ("_", gradient < -0.7 * limit)):
        axes[0].plot(*np.argwhere(large).T[::-1], marker, color="white", ms=5, mew=1)
    axes[0].plot(labels, np.arange(len(labels)), "s", color="none", mec=draw.INK, mew=1, ms=7, label="the right class")
    axes[0].set(xlabel="class", ylabel="training picture, sorted by class")
    axes[0].legend(loc="upper right", frameon=True)
    axes[0].grid(False)
    columns = gradient.sum(axis=0).reshape(5, 20)
    limit = np.abs(columns).max()
    shown = axes[1].imshow(columns, cmap=draw.SIGNED, vmin=-limit, vmax=limit, aspect="auto")
    mark(axes[1], columns, least=0.2 * limit, dark=0.6 * limit)
    figure.colorbar(shown, ax=axes[1], label=f"sum over the pictures ({power})", pad=0.01)
    name_grid(axes[1], flowers)
    words = "On the lines beside the diagonal: the right stripes and hue, other petals" if flowers else "By class"
    axes[0].set_title(words)
    axes[1].set_title("The sum of each column")
    plt.show()
