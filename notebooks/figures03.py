"""The figures of notebook 03. Each is drawn from the numbers that the notebook works out."""

import draw
import matplotlib.pyplot as plt
import numpy as np
from draw import LOOKS

TEACHER = [f"$W_{{{k}{i}}}$" for k in (1, 2, 3) for i in (1, 2)]
STUDENT = ["$w_1$", "$w_2$", "$u_1$", "$u_2$", "$u_3$"]


def product(M, v, meta_gradient, lam):
    """M (6, 5) under v (5,), M diag(v), and the meta-gradient (6,)."""
    _, axes = plt.subplots(2, 3, figsize=(13, 7), width_ratios=[5, 5, 1.15], height_ratios=[1, 6])
    draw.heat(axes[0, 0], v[None], ["$v$"], size=14, title="what the quiz wants: $v$")
    words = "A large entry of $v$ makes its column count.\nA small one makes it disappear."
    axes[0, 1].text(0, 0.5, words, fontsize=14, va="center", transform=axes[0, 1].transAxes)
    for ax in axes[0, 1:]:
        ax.axis("off")
    titles = (r"how the teacher changes the step: $M = \partial^2 L_S/\partial\theta_T\,\partial\theta_S$",
              r"each column times its $v$: $M\,\mathrm{diag}(v)$")  # fmt: skip
    for ax, part, title in zip(axes[1], (M, M * v), titles):
        draw.heat(ax, part, TEACHER, STUDENT, draw.numbers(part, 3), 13, title=title, xlabel="student parameter")
    axes[1, 0].set_ylabel("teacher parameter")
    sums, below = meta_gradient[:, None], [rf"× $-\lambda$ ($-${lam:g})"]
    draw.heat(axes[1, 2], sums, columns=below, words=draw.numbers(sums, 3), size=13, title="row sums")


def three_factors(J_T, C, J_S):
    """J_Tᵀ (6, 6), the blocks of C (2, 3, 3) on a diagonal, and J_S (6, 5): their product is M, but for a factor."""
    middle = np.zeros((6, 6))
    middle[:3, :3], middle[3:, 3:] = C
    classes = [f"$b$={b}\n$k$={k}" for b in (1, 2) for k in (1, 2, 3)]
    titles = r"$J_T^\top$: how the teacher moves", "the loss: one block an example", r"$J_S$: how the student moves"
    axes = draw.panels(*titles, size=(14, 5.2), widths=[6, 6, 5])
    parts = (J_T.reshape(6, 6).T, TEACHER, classes), (middle, classes, classes), (J_S.reshape(6, 5), classes, STUDENT)
    for ax, (part, rows, columns) in zip(axes, parts):
        draw.heat(ax, part, rows, columns, draw.numbers(part, least=0.005), size=14)
        if columns is classes:
            ax.axvline(2.5, color=draw.INK, lw=2)
        if rows is classes:
            ax.axhline(2.5, color=draw.INK, lw=2)


def numbers(values) -> str:
    """(−0.38, −0.75), or −0.38: short."""
    written = [f"{value:.3g}".replace("-", "−") for value in np.atleast_1d(np.asarray(values, dtype=float)) + 0.0]
    return written[0] if len(written) == 1 else f"({', '.join(written)})"


def kept_graph(words, theta_S_prime, inner_loss, ends):
    """Above: the graph's nodes {node: word}, with values and gradients, the result first, then the teacher's way, then
    the student's three. Below: what is there without create_graph. ends: the leaves θ_T and θ_S, their values."""
    _, (above, below) = plt.subplots(2, 1, figsize=(14, 6.4), height_ratios=[2.3, 1])
    places = [(float(x), 0.0) for x in range(7, -1, -1)] + [(4.0, -1.15), (2.45, -1.15), (1.2, -1.15)]
    place, boxes = dict(zip(words, places)), {}
    for node, (x, y) in place.items():
        text = f"{words[node]}\n{node.name}\n{numbers(node.value)}"
        boxes[node] = box(above, (x, y), text, taught=node.gradient is not None)
        if node.gradient is not None:
            above.text(x, 0.5, numbers(node.gradient), ha="center", color=draw.LIT, fontsize=15, weight="bold")
    for node in words:
        for one in node.inputs:
            ends_of_arrow = {"patchA": boxes[one], "patchB": boxes[node], "mutation_scale": 20}
            colour, width = (LOOKS["teacher"].colour, 5) if one.gradient is not None else (draw.GREY, 2)
            draw.arrow(above, place[one], place[node], color=colour, lw=width, **ends_of_arrow)
    box(above, (6.4, -1.15), f"the value $L_S$ = {inner_loss:.3f}\nis not in this graph", ghost=True)
    above.text(7, 0.82, "$v$ comes in", ha="center", color=draw.LIT, fontsize=15)
    above.text(0.1, 0.82, "the meta-gradient", ha="center", color=draw.LIT, fontsize=15)
    box(below, (0, 0), f"$\\theta_T$\nleaf\n{numbers(ends[0])}")
    box(below, (1.2, 0), f"$\\theta_S$\nleaf\n{numbers(ends[1])}")
    box(below, (7, 0), f"$\\theta'_S$\nno node\n{numbers(theta_S_prime)}")
    titles = ("create_graph=True: from the copy a path of nodes leads back to the teacher",
              "create_graph=False: the copy is a pair of numbers, and no path leads anywhere")  # fmt: skip
    for ax, title, limits in zip((above, below), titles, ((-1.6, 1.05), (-0.5, 0.45))):
        ax.set_title(title, loc="left", fontsize=16)
        ax.set(xlim=(-0.55, 7.55), ylim=limits)
        ax.axis("off")


def box(ax, place, words, taught=False, ghost=False):
    """A node of the graph: what it is, and its value -> the frame around it."""
    face, edge, width = ("#FDF1D6", LOOKS["teacher"].colour, 2.5) if taught else ("white", draw.GREY, 1.5)
    look = {"boxstyle": "round,pad=0.3", "fc": face, "ec": edge, "lw": width, "ls": ":" if ghost else "-"}
    colour = draw.GREY if ghost else draw.INK
    text = ax.text(*place, words, ha="center", va="center", fontsize=14, bbox=look, zorder=4, color=colour)
    return text.get_bbox_patch()


def norms_by_layer(pilot, v, meta):
    """Norms of the gradients, by layer: {layer: norm} for the student's two and the teacher's one."""
    titles = "student: the embedding tables feel most", "teacher: the meta-gradient reaches every layer"
    xlabels = ["norm of the gradient", "norm of the gradient (mind the scale)"]
    axes = draw.panels(*titles, xlabel=xlabels, size=(13, 7))
    rows = np.arange(len(pilot))
    axes[0].barh(rows - 0.2, pilot.values(), 0.4, color=draw.INK, label=r"pilot gradient $\nabla_{\theta_S} L_S$")
    axes[0].barh(rows + 0.2, v.values(), 0.4, color=draw.LIT, hatch="///", ec="white", label="quiz gradient $v$")
    axes[0].legend(loc="center right", fontsize=13)
    axes[1].barh(range(len(meta)), meta.values(), 0.7, color=LOOKS["teacher"].colour)
    for ax, layers in zip(axes, (pilot, meta)):
        ax.set_yticks(range(len(layers)), layers)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)


def prices(z_dot, gradient, change, small_print):
    """A teacher that is a table: the price of every logit, its gradient, and what a step changes; all (B, K)."""
    classes, examples = [f"class {k}" for k in range(3)], [f"example {b}" for b in range(1, 1 + len(z_dot))]
    titles = ("price $\\dot z_S = J_S v$\n(blue: the quiz wants it lower)",
              "gradient of the teacher's logit\n" + r"$100\ \partial L_q/\partial z_T$",
              "its probability after a step\n(change in percentage points)")  # fmt: skip
    axes = draw.panels(*titles, size=(13, 3.6))
    for ax, part in zip(axes, (z_dot, 100 * gradient, 100 * change)):
        draw.heat(ax, part, examples if ax is axes[0] else (), classes, size=17)
        for b, k in np.argwhere(np.asarray(small_print)):
            ax.add_patch(plt.Rectangle((k - 0.47, b - 0.45), 0.94, 0.9, fill=False, lw=2.5, ls="--", ec=draw.INK))


def heard(students, labels, denies):
    """How alike a student holds each pair of sentences, and what is then said about each. students: {title: what was
    found}; labels (40,), sorted; denies (40,), true where a word is denied."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9.4), height_ratios=[1.7, 1], sharey="row")
    for (above, below), (title, found) in zip(axes.T, students.items()):
        image = draw.heat(above, found["alike"], words=np.full((40, 40), ""), limits=(-1, 1), title=title)
        for (b, q), value in found["blocks"].items():
            words = {"ha": "center", "va": "center", "fontsize": 15, "bbox": draw.ON_WHITE}
            above.text(20 * q + 9.5, 20 * b + 9.5, f"mean {draw.signed(value)}", **words)
        above.set(aspect="equal", xlabel="quiz sentences $q$", ylabel="training sentences $b$")
        above.set_yticks([9.5, 29.5], ["blame", "praise"], rotation=90, va="center")
        for label, role in ((0, "negative"), (1, "positive")):
            rows = np.flatnonzero(labels == label)
            below.plot(rows, found["d_dot"][rows], **LOOKS[role].of_points() | {"markersize": 9})
        rings = np.flatnonzero(denies)
        below.plot(rings, found["d_dot"][rings], "o", color="none", mec=draw.GREY, mew=2, ms=17)
        below.axhline(0, color=draw.INK, lw=1)
        below.axvline(19.5, color=draw.GREY, lw=1)
        below.set(xlabel="training sentences $b$", ylabel=r"$\dot d_b$ (above 0: lower it)", xlim=(-1, 40))
        for ax in (above, below):
            ax.set_xticks([9.5, 29.5], ["blame", "praise"])
            ax.tick_params(length=0, labelleft=True)
    figure.colorbar(image, ax=axes[0], shrink=0.85, label=r"cosine of $\nabla d_b$ and $\nabla d_q$")


def error_curves(curves, chosen):
    """The relative error of a finite difference by its length. curves: {precision: (lengths, errors)}; chosen:
    {precision: (length of the formula, its error)}."""
    xlabel, ylabel = r"length of the step in parameter space, $\epsilon\,\|v\|$", r"relative error of $\dot z_S$"
    title = "Too long or too short: a finite difference has a best length"
    [ax] = draw.panels(title, xlabel=xlabel, ylabel=ylabel, size=(11, 6), ylim=(1e-13, 10))
    looks = {"float32": (draw.LIT, "o", (-60, -38)), "float64": (draw.INK, "s", (-30, -60))}
    for precision, (colour, marker, offset) in looks.items():
        lengths, errors = curves[precision]
        ax.loglog(lengths, errors, color=colour, lw=2.5, marker=marker, ms=4.5)
        draw.note(ax, precision, (lengths[0], errors[0]), (4, 14), color=colour, fontsize=15, weight="bold")
        draw.dot(ax, chosen[precision], marker="*", ms=20)
        line = {"arrowstyle": "-", "color": draw.INK, "shrinkB": 8}
        draw.note(ax, "0.2 eps$^{1/3}$", chosen[precision], offset, ha="center", fontsize=14, arrowprops=line)
    ax.text(3e-4, 2e-8, r"curvature: grows as $\epsilon^2$", fontsize=14)
    ax.text(1.2e-11, 2e-10, r"rounding: grows as $1/\epsilon$", fontsize=14)


def costs(parts, kept):
    """Arithmetic of a step in forward passes of the student, {way: its parts}; memory over the step, {way: bytes}."""
    titles, xlabels = (
        ("arithmetic: second_order needs less", "memory: jvp needs less"),
        ["", "tensors kept or released, in order"],
    )
    ylabels = ["forward passes of the student", "MB kept for backward passes"]
    left, right = draw.panels(*titles, xlabel=xlabels, ylabel=ylabels, size=(13.5, 5.6), widths=[1, 1.25])
    looks = {"teacher": (LOOKS["teacher"].colour, ""), "pilot (KD: real update)": (draw.INK, ""),
             "quiz": (draw.GREY, "//"), "contraction with $v$": (draw.LIT, "xx")}  # fmt: skip
    heights = np.array([*parts.values()]).T
    sums = draw.stack(left, [*parts], {name: (part, *look) for (name, look), part in zip(looks.items(), heights)})
    for k, total in enumerate(sums):
        left.text(k, total + 0.2, f"{total:.1f}", ha="center", fontsize=14)
    left.set_ylim(0, 22)
    left.legend(loc="upper left")
    lines = {"KD": (LOOKS["kd"].colour, "--"), "second_order": (draw.LIT, "-"), "jvp": (draw.INK, "-")}
    for name, history in kept.items():
        colour, line = lines[name]
        megabytes = history / 1e6
        right.step(np.arange(len(megabytes)), megabytes, line, where="post", color=colour, lw=2.6)
        highest = (megabytes.argmax(), megabytes.max())
        draw.note(right, f"{name}: {megabytes.max():.1f}", highest, (0, 6), ha="center", fontsize=14)
    right.set_ylim(0, 15)


def parts_and_whole(whole, ways):
    """Each entry of the meta-gradient from a batch in parts, over the same entry of the whole batch's. whole (P,),
    ways: {what was averaged: (P,)}, two of them."""
    xlabel = "meta-gradient of the whole batch, entry by entry"
    axes = draw.panels(*ways, xlabel=xlabel, ylabel="from two parts", size=(11, 5), shared=True)
    for ax, found in zip(axes, ways.values()):
        ends = whole.min().item(), whole.max().item()
        ax.plot(ends, ends, color=draw.GREY, lw=1, label="the same")
        ax.plot(whole, found, ".", color=draw.INK, ms=5)
    axes[0].legend()
