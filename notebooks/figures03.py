"""The figures of notebook 03. Each is drawn from the numbers that the notebook works out."""

import draw
import matplotlib.pyplot as plt
import numpy as np
from draw import LOOKS

TEACHER = [f"$W_{{{k}{i}}}$" for k in (1, 2, 3) for i in (1, 2)]
STUDENT = ["$w_1$", "$w_2$", "$u_1$", "$u_2$", "$u_3$"]


def product(M, v, meta_gradient, lam):
    """M (6, 5) under v (5,), M diag(v), and the meta-gradient (6,)."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), width_ratios=[5, 5, 1.15], height_ratios=[1, 6])
    draw.heat(axes[0, 0], v[None], ["$v$"], [""] * 5, size=14)
    axes[0, 0].set_title("what the quiz wants: $v$")
    draw.heat(axes[1, 0], M, TEACHER, STUDENT, digits=3, size=13)
    axes[1, 0].set_title(r"how the teacher changes the step: $M = \partial^2 L_S/\partial\theta_T\,\partial\theta_S$")
    draw.heat(axes[1, 1], M * v, TEACHER, STUDENT, digits=3, size=13)
    axes[1, 1].set_title(r"each column times its $v$: $M\,\mathrm{diag}(v)$")
    draw.heat(axes[1, 2], meta_gradient[:, None], None, [rf"× $-\lambda$ ($-${lam:g})"], digits=3, size=13)
    axes[1, 2].set_title("row sums")
    axes[1, 0].set(xlabel="student parameter", ylabel="teacher parameter")
    axes[1, 1].set(xlabel="student parameter")
    for ax in (axes[0, 1], axes[0, 2]):
        ax.axis("off")
    words = "A large entry of $v$ makes its column count.\nA small one makes it disappear."
    axes[0, 1].text(0, 0.5, words, fontsize=14, va="center", transform=axes[0, 1].transAxes)
    for ax in axes.flat:
        ax.tick_params(labelsize=14)
    plt.show()


def three_factors(J_T, C, J_S):
    """J_Tᵀ (6, 6), the blocks of C (2, 3, 3) on a diagonal, and J_S (6, 5): their product is M, but for a factor."""
    middle = np.zeros((6, 6))
    middle[:3, :3], middle[3:, 3:] = C
    classes = [f"$b$={b}\n$k$={k}" for b in (1, 2) for k in (1, 2, 3)]
    figure, axes = plt.subplots(1, 3, figsize=(14, 5.2), width_ratios=[6, 6, 5])
    parts = (J_T.reshape(6, 6).T, TEACHER, classes), (middle, classes, classes), (J_S.reshape(6, 5), classes, STUDENT)
    titles = (r"$J_T^\top$: how the teacher moves", r"the loss: one block an example", r"$J_S$: how the student moves")
    for ax, (part, rows, columns), title in zip(axes, parts, titles):
        draw.heat(ax, part, rows, columns, digits=2, size=14, least=0.005)
        ax.set_title(title, fontsize=15)
        ax.tick_params(labelsize=12)
    for ax, sides in zip(axes, ("v", "vh", "h")):
        if "v" in sides:
            ax.axvline(2.5, color=draw.INK, lw=2)
        if "h" in sides:
            ax.axhline(2.5, color=draw.INK, lw=2)
    plt.show()


def numbers(values) -> str:
    """(−0.38, −0.75), or −0.38: short."""
    written = [f"{value:.3g}".replace("-", "−") for value in np.atleast_1d(np.asarray(values, dtype=float)) + 0.0]
    return written[0] if len(written) == 1 else f"({', '.join(written)})"


def kept_graph(nodes, teachers_way, words, theta_S_prime, inner_loss, ends):
    """Above: the nodes of the graph, the teacher's way with words, values and gradients. Below: what is there without
    create_graph. ends: the leaves θ_T and θ_S, their values."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(14, 6.4), height_ratios=[2.3, 1])
    place = {node: (float(k), 0.0) for k, node in enumerate(reversed(teachers_way))}
    students = [node for node in reversed(nodes) if node not in place]  # the leaf first
    place |= dict(zip(students, [(1.2, -1.15), (2.45, -1.15), (4.0, -1.15)]))
    words = words | dict(zip(students, (r"$\theta_S$", r"$s = x\cdot\theta_S$", r"$\sigma(s)$")))
    boxes = {}
    for node in nodes:
        boxes[node] = box(
            above, place[node], f"{words[node]}\n{node.name}\n{numbers(node.value)}", node in teachers_way
        )
        if node.gradient is not None:
            x, y = place[node]
            above.text(x, y + 0.5, numbers(node.gradient), ha="center", color=draw.LIT, fontsize=15, weight="bold")
    for node in nodes:
        for one in node.inputs:
            taught = node in teachers_way and one in teachers_way
            style = {"color": LOOKS["teacher"].colour, "lw": 5} if taught else {"color": draw.GREY, "lw": 2}
            draw.arrow(
                above, place[one], place[node], patchA=boxes[one], patchB=boxes[node], mutation_scale=20, **style
            )
    box(above, (6.4, -1.15), f"the value $L_S$ = {inner_loss:.3f}\nis not in this graph", ghost=True)
    above.text(7, 0.82, "$v$ comes in", ha="center", color=draw.LIT, fontsize=15)
    above.text(0.1, 0.82, "the meta-gradient", ha="center", color=draw.LIT, fontsize=15)
    above.set_title(
        "create_graph=True: from the copy a path of nodes leads back to the teacher", loc="left", fontsize=16
    )
    box(below, (0, 0), r"$\theta_T$" + f"\nleaf\n{numbers(ends[0])}")
    box(below, (1.2, 0), r"$\theta_S$" + f"\nleaf\n{numbers(ends[1])}")
    box(below, (7, 0), r"$\theta'_S$" + f"\nno node\n{numbers(theta_S_prime)}")
    below.set_title(
        "create_graph=False: the copy is a pair of numbers, and no path leads anywhere", loc="left", fontsize=16
    )
    for ax, low, high in ((above, -1.6, 1.05), (below, -0.5, 0.45)):
        ax.set(xlim=(-0.55, 7.55), ylim=(low, high))
        ax.axis("off")
    plt.show()


def box(ax, place, words, taught=False, ghost=False):
    """A node of the graph: what it is, and its value -> the frame around it."""
    face, edge, width = ("#FDF1D6", LOOKS["teacher"].colour, 2.5) if taught else ("white", draw.GREY, 1.5)
    look = {"boxstyle": "round,pad=0.3", "fc": face, "ec": edge, "lw": width, "ls": ":" if ghost else "-"}
    colour = draw.GREY if ghost else draw.INK
    text = ax.text(*place, words, ha="center", va="center", fontsize=14, bbox=look, zorder=4, color=colour)
    return text.get_bbox_patch()


def norms_by_layer(pilot, v, meta):
    """Norms of the gradients, by layer: {layer: norm} for the student's two and the teacher's one."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 7))
    rows = np.arange(len(pilot))
    axes[0].barh(rows - 0.2, pilot.values(), 0.4, color=draw.INK, label=r"pilot gradient $\nabla_{\theta_S} L_S$")
    axes[0].barh(rows + 0.2, v.values(), 0.4, color=draw.LIT, hatch="///", ec="white", label="quiz gradient $v$")
    axes[0].set_yticks(rows, pilot)
    axes[0].legend(loc="center right", fontsize=13)
    axes[0].set(title="student: the embedding tables feel most", xlabel="norm of the gradient")
    rows = np.arange(len(meta))
    axes[1].barh(rows, meta.values(), 0.7, color=LOOKS["teacher"].colour)
    axes[1].set_yticks(rows, meta)
    axes[1].set(title="teacher: the meta-gradient reaches every layer", xlabel="norm of the gradient (mind the scale)")
    for ax in axes:
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    plt.show()


def prices(z_dot, gradient, change, small_print):
    """A teacher that is a table: the price of every logit, its gradient, and what a step changes; all (B, K)."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    classes, examples = [f"class {k}" for k in range(3)], [f"example {b}" for b in range(1, 1 + len(z_dot))]
    titles = (
        "price $\\dot z_S = J_S v$\n(blue: the quiz wants it lower)",
        "gradient of the teacher's logit\n" + r"$100\ \partial L_q/\partial z_T$",
        "its probability after a step\n(change in percentage points)",
    )
    for ax, part, title in zip(axes, (z_dot, 100 * gradient, 100 * change), titles):
        draw.heat(ax, part, examples if ax is axes[0] else None, classes, size=17)
        ax.set_title(title, fontsize=15)
        ax.tick_params(labelsize=13)
        for b, k in np.argwhere(np.asarray(small_print)):
            ax.add_patch(plt.Rectangle((k - 0.47, b - 0.45), 0.94, 0.9, fill=False, lw=2.5, ls="--", ec=draw.INK))
    plt.show()


def heard(students, labels, denies):
    """How alike a student holds each pair of sentences, and what is then said about each. students: {title: what was
    found}; labels (40,), sorted; denies (40,), true where a word is denied."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9.4), height_ratios=[1.7, 1], sharey="row")
    for column, (title, found) in enumerate(students.items()):
        ax = axes[0, column]
        image = ax.imshow(found["alike"], vmin=-1, vmax=1, cmap=draw.SIGNED)
        ax.grid(False)
        for (b, q), value in found["blocks"].items():
            ax.text(20 * q + 9.5, 20 * b + 9.5, f"mean {draw.signed(value)}", ha="center", va="center", fontsize=15,
                    bbox=draw.ON_WHITE)  # fmt: skip
        ax.set(title=title, xlabel="quiz sentences $q$", ylabel="training sentences $b$")
        ax.set_xticks([9.5, 29.5], ["blame", "praise"])
        ax.set_yticks([9.5, 29.5], ["blame", "praise"], rotation=90, va="center")
        ax.tick_params(length=0, labelleft=True)
        below = axes[1, column]
        for label, role in ((0, "negative"), (1, "positive")):
            rows = np.flatnonzero(labels == label)
            below.plot(rows, found["d_dot"][rows], **LOOKS[role].of_points() | {"markersize": 9})
        rings = np.flatnonzero(denies)
        below.plot(rings, found["d_dot"][rings], "o", color="none", mec=draw.GREY, mew=2, ms=17)
        below.axhline(0, color=draw.INK, lw=1)
        below.axvline(19.5, color=draw.GREY, lw=1)
        below.set_xticks([9.5, 29.5], ["blame", "praise"])
        below.tick_params(length=0, labelleft=True)
        below.set(xlabel="training sentences $b$", ylabel=r"$\dot d_b$ (above 0: lower it)", xlim=(-1, 40))
    figure.colorbar(image, ax=axes[0], shrink=0.85, label=r"cosine of $\nabla d_b$ and $\nabla d_q$")
    plt.show()


def error_curves(curves, chosen):
    """The relative error of a finite difference by its length. curves: {precision: (lengths, errors)}; chosen:
    {precision: (length of the formula, its error)}."""
    figure, ax = plt.subplots(figsize=(11, 6))
    looks = {"float32": (draw.LIT, "o", (1.2e-5, 6e-6)), "float64": (draw.INK, "s", (1.2e-6, 6e-13))}
    for precision, (colour, marker, place) in looks.items():
        ax.loglog(*curves[precision], color=colour, lw=2.5, marker=marker, ms=4.5)
        ax.annotate(precision, [found[0] for found in curves[precision]], (4, 14), textcoords="offset points",
                    color=colour, fontsize=15, weight="bold")  # fmt: skip
        ax.plot(*chosen[precision], "*", ms=20, color="white", mec=draw.INK, zorder=4)
        ax.annotate("0.2 eps$^{1/3}$", chosen[precision], place, ha="center", va="center", fontsize=14,
                    arrowprops={"arrowstyle": "-", "color": draw.INK, "shrinkB": 8})  # fmt: skip
    ax.text(3e-4, 2e-8, r"curvature: grows as $\epsilon^2$", fontsize=14)
    ax.text(1.2e-11, 2e-10, r"rounding: grows as $1/\epsilon$", fontsize=14)
    ax.set(xlabel=r"length of the step in parameter space, $\epsilon\,\|v\|$", ylabel=r"relative error of $\dot z_S$",
           ylim=(1e-13, 10), title="Too long or too short: a finite difference has a best length")  # fmt: skip
    plt.show()


def costs(parts, kept):
    """Arithmetic of a step in forward passes of the student, {way: its parts}; memory over the step, {way: bytes}."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13.5, 5.6), width_ratios=[1, 1.25])
    names = list(parts)
    bottom = np.zeros(len(names))
    stack = (("teacher", LOOKS["teacher"].colour, ""), ("pilot (KD: real update)", draw.INK, ""),
             ("quiz", draw.GREY, "//"), ("contraction with $v$", draw.LIT, "xx"))  # fmt: skip
    for k, (label, colour, hatch) in enumerate(stack):
        height = np.array([parts[name][k] for name in names])
        left.bar(names, height, 0.62, bottom, color=colour, hatch=hatch, ec="white", label=label)
        bottom += height
    for k, total in enumerate(bottom):
        left.text(k, total + 0.2, f"{total:.1f}", ha="center", fontsize=14)
    left.set(title="arithmetic: second_order needs less", ylabel="forward passes of the student", ylim=(0, 22))
    left.legend(loc="upper left")
    left.grid(axis="x", visible=False)
    looks = {
        "KD": LOOKS["kd"].of_line(),
        "second_order": {"color": draw.LIT, "lw": 2.6},
        "jvp": {"color": draw.INK, "lw": 2.6},
    }
    for name, history in kept.items():
        megabytes = history / 1e6
        right.step(np.arange(len(megabytes)), megabytes, where="post", **looks[name])
        right.text(
            megabytes.argmax(), megabytes.max() + 0.3, f"{name}: {megabytes.max():.1f}", ha="center", fontsize=14
        )
    right.set(title="memory: jvp needs less", xlabel="tensors kept or released, in order",
              ylabel="MB kept for backward passes", ylim=(0, 15))  # fmt: skip
    plt.show()


def parts_and_whole(whole, ways):
    """Each entry of the meta-gradient from a batch in parts, over the same entry of the whole batch's. whole (P,),
    ways: {what was averaged: (P,)}, two of them."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharex=True, sharey=True)
    for ax, (title, found) in zip(axes, ways.items()):
        ends = whole.min().item(), whole.max().item()
        ax.plot(ends, ends, color=draw.GREY, lw=1, label="the same")
        ax.plot(whole, found, ".", color=draw.INK, ms=5)
        ax.set(title=title, xlabel="meta-gradient of the whole batch, entry by entry")
    axes[0].set_ylabel("from two parts")
    axes[0].legend()
    plt.show()
