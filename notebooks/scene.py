"""The world of notebook 02, and one step of MetaDistil in it, in nine parts: `scene` draws a part and prints its value,
`poke` puts sliders to it in Jupyter, `player` is a film of the nine that needs no Python.

The student has two weights. The teacher has one parameter, an angle: all that it can do is turn. So every object of the
algorithm is a point, an arrow or a curve of one plane. Every number comes from metadistil.py, nearly all by its trace.
"""

import base64
import html
import io
import math
import re
from functools import partial
from typing import NamedTuple

import draw
import matplotlib.pyplot as plt
import torch
from IPython.display import HTML
from matplotlib.animation import FuncAnimation
from PIL import Image
from torch import Tensor, nn

import metadistil

RHO = 3.0  # the strength of every teacher: how far its two weights are from the origin
TRUTH, WRONG = math.radians(40), math.radians(160)  # the angle of the truth, and of our teacher
THETA_S = torch.tensor([0.8, -0.5], dtype=torch.float64)  # where our student stands
PILOT_LR, TEMPERATURE, ALPHA = 2.0, 2.0, 0.8  # λ, T, α
TEACHER_LR = 2.5  # μ, large, so that one step can be seen


def two_logits(score: Tensor) -> Tensor:
    """The logits (0, score) of two classes: (B,) -> (B, 2)."""
    return torch.stack([torch.zeros_like(score), score], dim=-1)


class Student(nn.Module):
    """Logistic regression with two weights: the logits are (0, θ·x)."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float64).clone())

    def forward(self, x):
        """(B, 2) -> logits (B, 2)."""
        return two_logits(x @ self.theta)


class Teacher(nn.Module):
    """The same, but its weights are ρ (cos φ, sin φ): its one parameter is the angle φ, in radians."""

    def __init__(self, phi):
        super().__init__()
        self.phi = nn.Parameter(torch.as_tensor(phi, dtype=torch.float64).clone())

    def forward(self, x):
        """(B, 2) -> logits (B, 2)."""
        return two_logits(x @ weights_of(self.phi))


def weights_of(phi: Tensor) -> Tensor:
    """The weights (2,) of the teacher with the angle φ."""
    return RHO * torch.stack([phi.cos(), phi.sin()])


def radians(degrees: float) -> Tensor:
    """An angle in degrees as a tensor, in radians."""
    return torch.tensor(degrees, dtype=torch.float64).deg2rad()


class World(NamedTuple):
    """What there is to learn from. Each a pair: points (N, 2), labels (N,)."""

    batch: tuple[Tensor, Tensor]
    quiz: tuple[Tensor, Tensor]
    truth: tuple[Tensor, Tensor]  # many more, to measure the true loss with
    careless: Tensor  # (N,), true where a label of the batch was flipped


def build_world() -> World:
    """24 training points, ten of them with a flipped label; 60 points of the quiz; 4,000 more."""
    generator = torch.Generator().manual_seed(0)

    def points(count, flipped):
        x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        p = Teacher(TRUTH)(x).softmax(dim=-1)[:, 1].detach()
        right = (torch.rand(count, generator=generator, dtype=torch.float64) < p).long()
        careless = torch.randperm(count, generator=generator) < flipped
        return (x, torch.where(careless, 1 - right, right)), careless

    batch, careless = points(24, flipped=10)
    quiz, _ = points(60, flipped=0)
    truth, _ = points(4000, flipped=0)
    return World(batch, quiz, truth, careless)


WORLD = build_world()


# ---- One step of MetaDistil, in nine parts


class Part(NamedTuple):
    """One of the nine, in words and formulas, and where its value stands in a trace."""

    name: str
    symbol: str  # LaTeX
    equation: str  # LaTeX
    plain: str  # the same equation, in letters
    key: str
    means: str
    unit: str = ""
    value: Tensor | None = None


PARTS = [
    Part(
        name="what the teacher says",
        symbol="z_T",
        equation=r"z_T = (0,\ \rho\,u(\theta_T)\cdot x)",
        plain="z_T = (0, ρ u(θ_T)·x)",
        key="teacher_logits",
        means="Two logits for each of the 24 training points.",
    ),
    Part(
        name="the inner loss",
        symbol="L_S",
        equation=r"L_S = \alpha T^2\,\mathrm{KL} + (1-\alpha)\,\mathrm{CE}",
        plain="L_S = α T² KL + (1 − α) CE",
        key="inner_loss",
        means="How far the student is from its teacher,\nand from the labels. The lit curve has this height.",
    ),
    Part(
        name="the pilot gradient",
        symbol=r"\nabla L_S",
        equation=r"\nabla_{\theta_S} L_S(\theta_S, \theta_T)",
        plain="∇L_S at θ_S",
        key="pilot_gradient",
        means="The way up the inner loss.\nThe arrow shows the direction alone.",
    ),
    Part(
        name="the pilot update",
        symbol=r"\theta'_S",
        equation=r"\theta'_S = \theta_S - \lambda\,\nabla_{\theta_S} L_S",
        plain="θ′_S = θ_S − λ ∇L_S",
        key="theta_S_prime",
        means="A copy of the student takes one step\nas the teacher asks. The student stays.",
    ),
    Part(
        name="the quiz loss",
        symbol="L_q",
        equation=r"L_q = \mathrm{CE}(f(x_q;\ \theta'_S),\ y_q)",
        plain="L_q = CE(f(x_q; θ′_S), y_q)",
        key="quiz_loss_after",
        means="The copy sits the quiz. A new landscape:\nthe lit curve has this height.",
    ),
    Part(
        name="the quiz gradient",
        symbol="v",
        equation=r"v = \nabla_{\theta'_S} L_q",
        plain="v = ∇L_q at θ′_S",
        key="v",
        means="The way up the quiz loss.\nThe arrow shows the direction alone.",
    ),
    Part(
        name="how the copy follows the teacher",
        symbol=r"\frac{\partial\theta'_S}{\partial\theta_T}",
        equation=r"\frac{\partial\theta'_S}{\partial\theta_T} = "
        r"-\lambda\,\frac{\partial^2 L_S}{\partial\theta_T\,\partial\theta_S}",
        plain="∂θ′_S/∂θ_T = −λ ∂²L_S/∂θ_T∂θ_S",
        key="velocity",
        means="The closed curve: where teachers of all angles\nwould send the copy. The arrow runs along it,\n"
        "and shows the direction alone.",
        unit="per radian",
    ),
    Part(
        name="the meta-gradient",
        symbol=r"v\cdot\frac{\partial\theta'_S}{\partial\theta_T}",
        equation=r"\nabla_{\theta_T} L_q = v\cdot\frac{\partial\theta'_S}{\partial\theta_T}",
        plain="∇L_q at θ_T = v · ∂θ′_S/∂θ_T",
        key="meta_gradient",
        means="Positive if the two arrows make less than a\nright angle. Then the quiz loss grows as the\n"
        "teacher's angle grows.",
        unit="per radian",
    ),
    Part(
        name="the meta update",
        symbol=r"\mathrm{new}\ \theta_T",
        equation=r"\theta_T \leftarrow \theta_T - \mu\,\nabla_{\theta_T} L_q",
        plain="θ_T ← θ_T − μ ∇L_q",
        key="new_angle",
        means=f"The teacher turns ($\\mu = {TEACHER_LR:g}$).",
        unit="degrees",
    ),
]


class Step(NamedTuple):
    """One step of MetaDistil: its settings, and its nine parts with their values."""

    degrees: float
    pilot_lr: float
    temperature: float
    alpha: float
    parts: list[Part]


def one_step(degrees=160.0, pilot_lr=PILOT_LR, temperature=TEMPERATURE, alpha=ALPHA) -> Step:
    """One step, taken by metadistil.py with a teacher at that angle."""
    student, teacher = Student(THETA_S), Teacher(math.radians(degrees))
    settings = {"pilot_lr": pilot_lr, "loss": partial(metadistil.kd_loss, alpha=alpha, temperature=temperature)}
    trace = {}
    found = metadistil.meta_gradient(student, teacher, WORLD.batch, WORLD.quiz, trace=trace, **settings)
    trace["velocity"] = velocity(student, teacher, settings)
    metadistil.meta_update(teacher, found.grads, torch.optim.SGD(teacher.parameters(), TEACHER_LR))
    trace["new_angle"] = teacher.phi.detach().rad2deg()
    parts = []
    for part in PARTS:
        value = trace[part.key]
        if isinstance(value, dict):  # by parameter name; student and teacher have one parameter each
            (value,) = value.values()
        parts.append(part._replace(value=value))
    return Step(degrees, pilot_lr, temperature, alpha, parts)


def velocity(student, teacher, settings) -> Tensor:
    """∂θ′_S/∂θ_T (2,), which is the only one of the nine that a trace does not hold."""
    x, _ = WORLD.batch
    tip = metadistil.pilot_update(student, WORLD.batch, teacher(x), **settings)["theta"]
    return torch.stack([torch.autograd.grad(part, teacher.phi, retain_graph=True)[0] for part in tip])


def shape_of(value: Tensor) -> str:
    """As torch writes it: (24, 2), (2,), ()."""
    return str(tuple(value.shape))


def written(part: Part, digits=4) -> str:
    """The value of a part in words: a number, a point, or the first row of a matrix."""
    value = part.value
    if value.dim() == 2:
        return f"{point(value[0], digits)}, and {len(value) - 1} rows more"
    text = point(value, digits) if value.dim() == 1 else f"{value:.{digits}f}"
    return f"{text} {part.unit}".strip().replace("-", "−")


def point(values: Tensor, digits) -> str:
    """(0.8000, −0.5000)."""
    return "(" + ", ".join(f"{value:.{digits}f}" for value in values).replace("-", "−") + ")"


def line(step: Step, number: int) -> str:
    """Name, equation, shape and value of the part with that number, 1 to 9."""
    part = step.parts[number - 1]
    return f"{number}. {part.name}: {part.plain}; shape {shape_of(part.value)}; value {written(part)}"


# ---- Its picture


LINE = torch.linspace(-4.2, 4.2, 57, dtype=torch.float64)  # both axes of the plane
PLANE = torch.stack(torch.meshgrid(LINE, LINE, indexing="xy"), dim=-1).reshape(-1, 2)


def over_plane(loss, plane=PLANE) -> Tensor:
    """A loss of two weights at every point of a square plane (n², 2) -> (n, n)."""
    n = math.isqrt(len(plane))
    return torch.func.vmap(loss)(plane).reshape(n, n)


def inner_loss(theta, phi, temperature=TEMPERATURE, alpha=ALPHA):
    """L_S of a student with the weights theta (2,), taught by the teacher with the angle phi."""
    x, y = WORLD.batch
    return metadistil.kd_loss(two_logits(x @ theta), two_logits(x @ weights_of(phi)), y, alpha, temperature)


def quiz_loss(theta, examples=WORLD.quiz):
    """L_q of a student with the weights theta (2,)."""
    x, y = examples
    return metadistil.hard_loss(two_logits(x @ theta), y)


def draw_scene(figure, step: Step, number: int):
    """The nine parts in a row, the one with that number lit; the plane; the part in words."""
    chain, below = figure.subfigures(2, 1, height_ratios=[0.75, 5])
    draw_chain(chain.subplots(), step, number)
    left, right = below.subplots(1, 2, width_ratios=[1.12, 1])
    draw_plane(left, step, number)
    draw_words(right, step, number)


def draw_chain(ax, step, number):
    """Nine boxes and the arrows between them. What is still to come is pale."""
    for n, part in enumerate(step.parts, start=1):
        lit, done = n == number, n < number
        colour = draw.LIT if lit else draw.INK if done else "#C4C4C4"
        box = {"boxstyle": "round,pad=0.35", "fc": draw.LIT if lit else "white", "ec": colour, "lw": 1.5}
        ink = "white" if lit else colour
        place = 9.1 if n == 9 else n  # its box is wide
        ax.text(place, 0, f"${part.symbol}$", ha="center", va="center", fontsize=15, color=ink, bbox=box)
        if n > 1:
            draw.arrow(ax, (n - 0.66, 0), (n - 0.36, 0), color=colour, lw=3 if lit else 1.5)
    ax.set(xlim=(0.6, 9.7), ylim=(-1, 1))
    ax.axis("off")


def draw_plane(ax, step, number):
    """The plane of the weights, with the arrows up to that number."""
    values = [part.value for part in step.parts]
    if number <= 4:
        title = "the inner loss $L_S$"
        field = over_plane(lambda theta: inner_loss(theta, radians(step.degrees), step.temperature, step.alpha))
    else:
        title = "the quiz loss $L_q$"
        field = over_plane(quiz_loss)
    draw.landscape(ax, LINE, LINE, field)
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
            draw.note(ax, label, end, (-4, -22), fontsize=13, color=draw.LIT if lit else draw.INK)
    draw.dot(ax, THETA_S)
    draw.note(ax, r"$\theta_S$", THETA_S, (4, 10))
    if number >= 4:
        draw.dot(ax, values[3])
        draw.note(ax, r"$\theta'_S$", values[3], (-10, 11))
    if number >= 7:
        ax.plot(*tips(step).T, color=draw.INK, lw=1)
    if number == 9:
        draw_turn(ax, step.degrees, values[8].item())


SHOWN = {1: [1], 2: [1], 3: [3], 4: [4], 5: [4], 6: [4, 6], 7: [4, 6, 7], 8: [4, 6, 7], 9: [4]}  # arrows of the parts


def arrows_of(step, teacher) -> dict:
    """{number of the part: (start, end, label)}, of the parts that are arrows. Directions have one length."""
    _, _, gradient, tip, _, v, tip_velocity, _, _ = [part.value for part in step.parts]
    return {
        1: ((0, 0), teacher, ""),
        3: (THETA_S, THETA_S + direction(gradient), r"$\nabla L_S$"),
        4: (THETA_S, tip, ""),
        6: (tip, tip + direction(v), "$v$"),
        7: (tip, tip + direction(tip_velocity), r"$\partial\theta'_S/\partial\theta_T$"),
    }


def direction(vector: Tensor) -> Tensor:
    """The vector (2,) brought to one length. Zero stays zero: at α = 0 the copy does not follow the teacher at all."""
    return 1.3 * vector / vector.norm().clamp(min=1e-12)


def draw_teacher(ax, degrees, **style):
    """The circle of all teachers, and the one at that angle -> its weights (2,)."""
    circle = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    ax.plot(*weights_of(circle), ":", color=draw.GREY, lw=1.2)
    place = weights_of(radians(degrees))
    ax.plot(*place, **draw.LOOKS["teacher"].of_points() | {"markersize": 14, "zorder": 5} | style)
    return place


def draw_turn(ax, before, after):
    """The teacher's way along its circle, in degrees, and where it then stands."""
    way = torch.linspace(before, after, 60, dtype=torch.float64).deg2rad()
    path = 1.14 * weights_of(way).T  # (60, 2)
    ax.plot(*path.T, color=draw.LIT, lw=4)
    draw.arrow(ax, path[-6], path[-1], color=draw.LIT, lw=4, mutation_scale=22)
    ax.plot(*weights_of(way[-1]), marker="^", color="white", mec=draw.LIT, mew=2.5, ms=14, zorder=5)


def tips(step: Step, count=181) -> Tensor:
    """Where the pilot would take the copy, for teachers all around the circle: (count, 2)."""

    def tip(phi):
        slope = torch.func.grad(inner_loss)(THETA_S, phi, step.temperature, step.alpha)
        return THETA_S - step.pilot_lr * slope

    return torch.func.vmap(tip)(torch.linspace(0, 2 * math.pi, count, dtype=torch.float64))


def draw_words(ax, step, number):
    """Name, equation, shape, value and meaning of a part, and the settings."""
    part = step.parts[number - 1]
    ax.axis("off")
    settings = (rf"teacher at {step.degrees:g}°,  $\lambda$ = {step.pilot_lr:g},  $T$ = {step.temperature:g},  "
                rf"$\alpha$ = {step.alpha:g}")  # fmt: skip
    rows = [
        (0.97, f"{number}. {part.name}", 17, draw.LIT),
        (0.78, f"${part.equation}$", 21, draw.INK),
        (0.58, f"shape  {shape_of(part.value)}", 15, draw.INK),
        (0.48, f"value  {written(part)}", 15, draw.INK),
        (0.30, part.means, 14, draw.INK),
        (0.02, settings, 13, draw.GREY),
    ]
    for height, text, size, colour in rows:
        words = ax.text(0, height, text, fontsize=size, color=colour, va="center", transform=ax.transAxes)
        words.set_in_layout(False)  # the plane beside stands still, however long the words are


# ---- To look at, to poke at, to play


def new_figure():
    """An empty figure of the scene's size, that no notebook shows by itself."""
    figure = plt.figure(figsize=(11, 6.4), dpi=100, layout="constrained")
    plt.close(figure)
    return figure


def scene(degrees=160.0, pilot_lr=PILOT_LR, temperature=TEMPERATURE, alpha=ALPHA, step=1):
    """Print the name, equation, shape and value of a part, 1 to 9, and return its picture."""
    taken = one_step(degrees, pilot_lr, temperature, alpha)
    print(line(taken, step))
    figure = new_figure()
    draw_scene(figure, taken, step)
    return figure


def stills():
    """All nine parts in one picture, where nothing plays."""
    taken = one_step()
    figure, axes = plt.subplots(3, 3, figsize=(11, 11.8), sharex=True, sharey=True)
    for number, (ax, part) in enumerate(zip(axes.flat, taken.parts), start=1):
        draw_plane(ax, taken, number)
        value = "(24, 2) numbers" if part.value.dim() == 2 else written(part, digits=2)
        ax.set_title(f"{number}. ${part.symbol}$\n{value}", fontsize=14, color=draw.LIT)
        ax.set(xlabel="first weight" if number > 6 else "", ylabel="second weight" if number % 3 == 1 else "")
    plt.show()


def poke():
    """Five sliders to the scene, where Jupyter has them."""
    try:
        from ipywidgets import FloatSlider, IntSlider, interact
    except ImportError:
        print("The sliders need a package: pip install ipywidgets==8.1.9. The player below needs nothing.")
        return
    interact(
        scene,
        degrees=FloatSlider(160, min=0, max=360, step=5, description="angle °"),
        pilot_lr=FloatSlider(PILOT_LR, min=0.5, max=5, step=0.5, description="λ"),
        temperature=FloatSlider(TEMPERATURE, min=0.5, max=5, step=0.5, description="T"),
        alpha=FloatSlider(ALPHA, min=0, max=1, step=0.1, description="α"),
        step=IntSlider(1, min=1, max=9, description="step"),
    )


FOLLOW = """
<style>
  /* A picture without a width of its own can shrink to nothing. */
  #nine-parts .animation { display: block; text-align: left; }
  #nine-parts img { width: 1100px; max-width: 100%; }
</style>
<script>
(function () {
  /* Light the row of the part that the player shows. */
  var player = document.getElementById("nine-parts"), image = player.querySelector("img");
  function show() {
    var number = 1 + parseInt(player.querySelector("input[type=range]").value);
    player.querySelectorAll("tbody tr").forEach(function (row, k) {
      row.style.background = k + 1 === number ? "#F9D5DC" : "";
      row.style.fontWeight = k + 1 === number ? "bold" : "";
      if (k + 1 === number) { player.querySelector("[role=status]").textContent = row.title; }
    });
  }
  new MutationObserver(function () { setTimeout(show, 0); }).observe(image, {attributes: true});
  show();  /* the player may have set its first picture before this script was read */
})();
</script>
"""
ICONS = {
    "minus": "−", "plus": "+", "fast-backward": "|◀", "fast-forward": "▶|", "step-backward": "‹", "step-forward": "›",
    "play fa-flip-horizontal": "◀", "play": "▶", "pause": "II",
}  # fmt: skip


def player() -> HTML:
    """The nine parts as a film with buttons, and as a table that it lights row by row."""
    taken, figure = one_step(), new_figure()

    def frame(k):
        figure.clear()
        draw_scene(figure, taken, k + 1)
        return ()

    film = FuncAnimation(figure, frame, frames=9, init_func=lambda: ()).to_jshtml(fps=0.5, default_mode="once")
    return HTML(f'<div id="nine-parts">{standing_alone(film)}<p role="status"></p>{rows_of(taken)}</div>{FOLLOW}')


def standing_alone(film: str) -> str:
    """matplotlib's player: its icons as letters instead of a font from the net, its pictures in 256 colours, and the
    first of them there from the beginning, for places that run no script."""
    film = re.sub(r"<link[^>]*>", "", film)
    film = re.sub(r'<i class="fa fa-([a-z -]+)"></i>', lambda found: ICONS[found[1]], film)
    picture = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\\\n]+)")
    film = picture.sub(lambda found: f"data:image/png;base64,{in_few_colours(found[1])}", film)
    first = picture.search(film)[0]
    return film.replace("<img ", f'<img src="{first}" alt="One step of MetaDistil" ', 1)


def in_few_colours(png: str) -> str:
    """A PNG file in base64 -> the same with 256 colours, half the size."""
    picture = Image.open(io.BytesIO(base64.b64decode(re.sub(r"[\\\n]", "", png)))).convert("RGB")
    file = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def rows_of(step: Step) -> str:
    """The nine parts as a table in HTML."""
    head = "".join(f'<th style="text-align: left">{name}</th>' for name in ("", "what", "equation", "shape", "value"))
    rows = ""
    for number, part in enumerate(step.parts, start=1):
        cells = (number, part.name, part.plain, shape_of(part.value), written(part))
        title = html.escape(line(step, number), quote=True)
        cells = "".join(f'<td style="text-align: left">{html.escape(str(cell))}</td>' for cell in cells)
        rows += f'<tr title="{title}">{cells}</tr>\n'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
