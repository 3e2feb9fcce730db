"""The figures of notebook 03. Each is drawn from the numbers that the notebook works out."""

import draw
import matplotlib.pyplot as plt
import numpy as np
import torch
from draw import LOOKS

TEACHER = [f"$W_{{{k}{i}}}$" for k in (1, 2, 3) for i in (1, 2)]
STUDENT = ["$w_1$", "$w_2$", "$u_1$", "$u_2$", "$u_3$"]


def product(M, v, meta_gradient, lam):
    """M (6, 5) under v (5,), M diag(v), and the meta-gradient (6,)."""
    picture = np.full((8, 13), np.nan)
    picture[0, :5], picture[2:, :5], picture[2:, 6:11], picture[2:, 12] = v, M, M * v, meta_gradient
    [ax] = draw.panels("The meta-gradient as a product", size=(14, 6), ylabel="teacher parameter")
    words, largest = draw.numbers(picture, 3), (M * v).abs().max()
    draw.heat(ax, picture, ["$v$", "", *TEACHER], [*STUDENT, "", *STUDENT], words, 13, (-largest, largest))
    ax.text(2, 1, r"$M = \partial^2 L_S/\partial\theta_T\,\partial\theta_S$", ha="center")
    ax.text(8, 1, r"each column times its $v$: $M\,\mathrm{diag}(v)$", ha="center")
    ax.text(12, 1, rf"row sums $\times -${lam:g}", ha="center")


def three_factors(J_T, C, J_S):
    """J_Tᵀ (6, 6), the blocks of C (2, 3, 3) on a diagonal, and J_S (6, 5): their product is M, but for a factor."""
    classes = [f"$b$={b}\n$k$={k}" for b in (1, 2) for k in (1, 2, 3)]
    titles = r"$J_T^\top$: how the teacher moves", "the loss: one block an example", r"$J_S$: how the student moves"
    axes = draw.panels(*titles, size=(14, 5.2), widths=[6, 6, 5])
    parts = J_T.reshape(6, 6).T, torch.block_diag(*C), J_S.reshape(6, 5)
    for ax, part, rows, columns in zip(axes, parts, (TEACHER, classes, classes), (classes, classes, STUDENT)):
        draw.heat(ax, part, rows, columns, draw.numbers(part, least=0.005), size=14)


def prices(z_dot, gradient, change, framed):
    """A teacher that is a table: the price of every logit, its gradient, and what a step changes; all (B, K)."""
    titles = (
        r"price $\dot z_S = J_S v$",
        r"gradient, $100\ \partial L_q/\partial z_T$",
        "change of probability (points)",
    )
    axes = draw.panels(*titles, size=(13, 3.6))
    for ax, part in zip(axes, (z_dot, 100 * gradient, 100 * change)):
        draw.heat(ax, part, ["example 1", "example 2"], [f"class {k}" for k in range(3)], size=17)
        ax.plot(*framed.nonzero().T.flip(0), "s", color="none", mec=draw.INK, mew=2.5, ms=75)


def numbers(values) -> str:
    """(−0.38, −0.75), or −0.38: short."""
    written = [f"{value:.3g}".replace("-", "−") for value in np.atleast_1d(values) + 0.0]
    return written[0] if len(written) == 1 else f"({', '.join(written)})"


def kept_graph(words):
    """The graph's nodes, {node: word}: from the result along the teacher's way, then the student's three."""
    title = "From the copy a path of nodes leads back to the teacher"
    [ax] = draw.panels(title, size=(14, 4), xlim=(-0.5, 7.5), ylim=(-0.5, 2))
    places = dict(zip(words, [(x, 1) for x in range(7, -1, -1)] + [(4, 0), (2.5, 0), (1, 0)]))
    takers, frames = {one: node for node in words for one in node.inputs}, {}
    for node, place in places.items():
        colour, width = (LOOKS["teacher"].colour, 5) if node.gradient is not None else (draw.GREY, 2)
        look = {"boxstyle": "round", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
        text = f"{words[node]}\n{node.name}\n{numbers(node.value)}"
        frames[node] = ax.text(*place, text, ha="center", va="center", fontsize=14, bbox=look).get_bbox_patch()
        if node in takers:  # the arrow runs from frame to frame
            ends = {"patchA": frames[node], "patchB": frames[takers[node]], "mutation_scale": 20}
            draw.arrow(ax, place, places[takers[node]], color=colour, lw=width, **ends)
        if node.gradient is not None:
            ax.text(place[0], 1.6, numbers(node.gradient), ha="center", color=draw.LIT, fontsize=15, weight="bold")
    ax.axis("off")


def norms_by_layer(pilot, v, meta):
    """Norms of the gradients, by layer: {layer: norm} for the student's two and the teacher's one."""
    titles = "student: the embedding tables feel most", "teacher: the meta-gradient reaches every layer"
    axes = draw.panels(*titles, xlabel="norm of the gradient", size=(13, 7), xscale="log")
    of_student = {r"pilot gradient $\nabla_{\theta_S} L_S$": pilot, "quiz gradient $v$": v}
    for ax, gradients in zip(axes, (of_student, {"meta-gradient": meta})):
        for (name, norms), look in zip(gradients.items(), draw.PLAIN):
            ax.plot(norms.values(), norms.keys(), **look.of_points(), markersize=9, label=name)
        ax.invert_yaxis()
        ax.legend(loc="upper left")


def heard(students, labels, denies):
    """How alike a student holds each pair of sentences, and what is then said about each. students: {title: what was
    found}; labels (40,), sorted; denies (40,), true where a word is denied."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9.4), height_ratios=[1.7, 1], sharey="row")
    for (above, below), (title, found) in zip(axes.T, students.items()):
        image = draw.heat(above, found["alike"], words=np.full((40, 40), ""), limits=(-1, 1), title=title)
        above.set(aspect="equal", xlabel="quiz sentences $q$", ylabel="training sentences $b$")
        above.set_yticks([9.5, 29.5], ["blame", "praise"], rotation=90, va="center")
        for role, rows in (("negative", labels == 0), ("positive", labels == 1)):
            below.plot(np.flatnonzero(rows), found["d_dot"][rows], **LOOKS[role].of_points(), markersize=9)
        below.plot(np.flatnonzero(denies), found["d_dot"][denies], "o", color="none", mec=draw.GREY, mew=2, ms=17)
        below.axhline(0, color=draw.INK, lw=1)
        below.axvline(19.5, color=draw.GREY, lw=1)
        below.set(xlabel="training sentences $b$", ylabel=r"$\dot d_b$ (above 0: lower it)", xlim=(-1, 40))
        for ax in (above, below):
            ax.set_xticks([9.5, 29.5], ["blame", "praise"])
    figure.colorbar(image, ax=axes[0], shrink=0.85, label=r"cosine of $\nabla d_b$ and $\nabla d_q$")


def error_curves(curves, chosen):
    """The relative error of a finite difference by its length. curves: {precision: (lengths, errors)}; chosen:
    {precision: (length of the formula, its error)}."""
    labels = {"xlabel": r"length of the step in parameter space, $\epsilon\,\|v\|$", "xscale": "log", "yscale": "log"}
    title = "Too long or too short: a finite difference has a best length"
    [ax] = draw.panels(title, ylabel=r"relative error of $\dot z_S$", size=(11, 6), **labels)
    for (precision, (lengths, errors)), look in zip(curves.items(), (draw.PLAIN[1], draw.PLAIN[0])):
        draw.lines(ax, lengths, {precision: errors}, [look], points=True, markersize=5)
        draw.dot(ax, chosen[precision], "0.2 eps$^{1/3}$", (14, -14), marker="*", ms=20)


def memory(kept):
    """The bytes that autograd keeps in the course of a step, {way: (N,)}."""
    labels = {"xlabel": "tensors kept or released, in order", "ylabel": "MB kept for backward passes"}
    [ax] = draw.panels("Memory: jvp needs less", size=(10, 5), **labels)
    for (name, history), look in zip(kept.items(), (LOOKS["kd"], draw.PLAIN[1], draw.PLAIN[0])):
        label = f"{name}: at most {history.max() / 1e6:.1f}"
        ax.step(range(len(history)), history / 1e6, where="post", **look.of_line(), label=label)
    ax.legend()
