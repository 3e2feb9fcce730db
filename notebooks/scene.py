"""The world of notebook 02, and one step of MetaDistil in it, in nine parts. Every number comes from metadistil.py.

The student has two weights. The teacher has one parameter, an angle: all that it can do is turn. So every object of the
algorithm is a point, an arrow or a curve of one plane. scene.html shows that plane, to be taken in the hand;
figures02.py draws it for paper.

`python notebooks/scene.py` writes the words of the nine parts and the points of the world into scene.html.
"""

import base64
import html
import json
import math
import re
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from IPython.display import HTML
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import metadistil  # noqa: E402

RHO = 3.0  # the strength of every teacher: how far its two weights are from the origin
TRUTH, WRONG = math.radians(40), math.radians(160)  # the angle of the truth, and of our teacher
THETA_S = torch.tensor([0.8, -0.5], dtype=torch.float64)  # where our student stands
PILOT_LR, TEMPERATURE, ALPHA = 2.0, 2.0, 0.8  # λ, T, α
TEACHER_LR, STUDENT_LR = 2.5, 2.0  # μ, large, so that one step can be seen, and η


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
        x = torch.randn(count, 2, generator=generator, dtype=torch.float64).round(decimals=2)
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
    """One of the nine, in words, and its value in a step."""

    name: str
    symbol: str  # LaTeX
    equation: str  # in letters, as the page has it
    key: str  # where its value stands in a trace of metadistil.py
    means: str
    unit: str = ""
    value: Tensor | None = None


PARTS = [
    Part(
        name="what the teacher says",
        symbol="z_T",
        equation="z_T = (0, ρ u(θ_T)·x)",
        key="teacher_logits",
        means="Two logits for each of the 24 training points x. The teacher's weights are ρ u: their length ρ = 3 is "
        "fixed (dotted circle), and its angle, θ_T, sets their direction u.",
    ),
    Part(
        name="the inner loss",
        symbol="L_S",
        equation="L_S = α T² KL + (1 − α) CE",
        key="inner_loss",
        means="How far the student is from its teacher, and from the labels, ten of which were flipped. All students "
        "on the red line have this loss.",
    ),
    Part(
        name="the pilot gradient",
        symbol=r"\nabla L_S",
        equation="∇L_S at θ_S",
        key="pilot_gradient",
        means="The way up the inner loss. The step goes the other way.",
    ),
    Part(
        name="the pilot update",
        symbol=r"\theta'_S",
        equation="θ′_S = θ_S − λ ∇L_S",
        key="theta_S_prime",
        means="A copy of the student takes one step down the inner loss, as the teacher asks. The student itself "
        "stays.",
    ),
    Part(
        name="the quiz loss",
        symbol="L_q",
        equation="L_q = CE(f(x_q; θ′_S), y_q)",
        key="quiz_loss_after",
        means="The copy sits the quiz: 60 points that no student trains on. All copies on the red line have this loss.",
    ),
    Part(
        name="the quiz gradient",
        symbol="v",
        equation="v = ∇L_q at θ′_S",
        key="v",
        means="The way up the quiz loss, from where the copy stands. The arrow is −v, the way down.",
    ),
    Part(
        name="how the copy follows the teacher",
        symbol=r"\frac{\partial\theta'_S}{\partial\theta_T}",
        equation="∂θ′_S/∂θ_T = −λ ∂²L_S/∂θ_T∂θ_S",
        key="velocity",
        means="A derivative of the pilot gradient, so a second one: the copy's velocity as the teacher turns. Each angle "
        "sends the copy to its own place on the closed curve. The arrow: where it heads if the angle grows.",
        unit="per radian",
    ),
    Part(
        name="the meta-gradient",
        symbol=r"v\cdot\frac{\partial\theta'_S}{\partial\theta_T}",
        equation="∂L_q/∂θ_T = v · ∂θ′_S/∂θ_T",
        key="meta_gradient",
        means="v times the copy's velocity: the slope of the tangent. Positive: if the angle grew, the copy would do "
        "worse on the quiz.",
        unit="per radian",
    ),
    Part(
        name="the meta update",
        symbol=r"\mathrm{new}\ \theta_T",
        equation="θ_T ← θ_T − μ ∂L_q/∂θ_T",
        key="new_angle",
        means="The teacher turns against the slope, so that the next copy does better on the quiz.",
        unit="degrees",
    ),
]


class Step(NamedTuple):
    """One step of MetaDistil: its settings, and its nine parts with their values."""

    degrees: float
    pilot_lr: float
    temperature: float
    alpha: float
    theta_S: Tensor
    parts: list[Part]


def one_step(
    degrees=160.0, pilot_lr=PILOT_LR, temperature=TEMPERATURE, alpha=ALPHA, theta_S=THETA_S, teacher_lr=TEACHER_LR
) -> Step:
    """One step, taken by metadistil.py with a teacher at that angle and a student at theta_S (2,)."""
    student, teacher = Student(theta_S), Teacher(math.radians(degrees))
    settings = {"pilot_lr": pilot_lr, "loss": partial(metadistil.kd_loss, alpha=alpha, temperature=temperature)}
    trace = {}
    result = metadistil.meta_gradient(student, teacher, WORLD.batch, WORLD.quiz, trace=trace, **settings)
    trace["velocity"] = velocity(student, teacher, settings)
    metadistil.meta_update(teacher, result.grads, torch.optim.SGD(teacher.parameters(), teacher_lr))
    trace["new_angle"] = teacher.phi.detach().rad2deg()
    parts = []
    for part in PARTS:
        value = trace[part.key]
        if isinstance(value, dict):  # by parameter name; student and teacher have one parameter each
            (value,) = value.values()
        parts.append(part._replace(value=value))
    return Step(degrees, pilot_lr, temperature, alpha, student.theta.detach(), parts)


def velocity(student, teacher, settings) -> Tensor:
    """∂θ′_S/∂θ_T (2,), the only one of the nine that a trace does not hold."""
    x, _ = WORLD.batch
    tip = metadistil.pilot_update(student, WORLD.batch, teacher(x), **settings)["theta"]
    return torch.stack([torch.autograd.grad(part, teacher.phi, retain_graph=True)[0] for part in tip])


def point(values: Tensor, digits) -> str:
    """(0.8000, −0.5000)."""
    return "(" + ", ".join(f"{value:.{digits}f}" for value in values).replace("-", "−") + ")"


def inner_loss(theta, phi, temperature=TEMPERATURE, alpha=ALPHA):
    """L_S of a student with the weights theta (2,), taught by the teacher with the angle phi."""
    x, y = WORLD.batch
    return metadistil.kd_loss(two_logits(x @ theta), two_logits(x @ weights_of(phi)), y, alpha, temperature)


def quiz_loss(theta, examples=WORLD.quiz):
    """L_q of a student with the weights theta (2,)."""
    x, y = examples
    return metadistil.hard_loss(two_logits(x @ theta), y)


def all_around(step: Step):
    """Teachers at every second degree -> their angles in degrees (181,), where the pilot takes the copy (181, 2), and
    its quiz losses there (181,)."""

    def tip(phi):
        gradient = torch.func.grad(inner_loss)(step.theta_S, phi, step.temperature, step.alpha)
        return step.theta_S - step.pilot_lr * gradient

    degrees = torch.linspace(0, 360, 181, dtype=torch.float64)
    tips = torch.func.vmap(tip)(degrees.deg2rad())
    return degrees, tips, torch.func.vmap(quiz_loss)(tips)


# ---- Its page


PAGE = HERE / "scene.html"


def page() -> HTML:
    """The page in a frame. Where frames are dropped, a still picture and a link stand there."""
    still = base64.b64encode((HERE / "figures" / "scene.png").read_bytes()).decode()
    text = html.escape(PAGE.read_text(encoding="utf-8"))
    words = "The student's plane, and the quiz loss after the pilot for every teacher"
    return HTML(
        '<div class="scene"><style>.scene iframe ~ .still { display: none }</style>'
        f'<iframe srcdoc="{text}" title="{words}" style="width: 100%; height: 1200px; border: 0"></iframe>'
        f'<p class="still"><img src="data:image/png;base64,{still}" alt="{words}"><br>To take it in the hand, '
        'download <a href="scene.html">notebooks/scene.html</a> and open it.</p></div>'
    )


def written_into(text: str) -> str:
    """The text of the page, with the words of the nine parts and the numbers of the world as they are here."""
    rows = " ".join(row_of(number, part) for number, part in enumerate(one_step().parts, start=1))
    rows = "\n".join(["", *textwrap.wrap(rows, 120, break_on_hyphens=False), ""])
    for name, content in (("parts", rows), ("world", world_in_json())):
        before, rest = text.split(f"<!-- {name}: written by scene.py -->")
        _, after = rest.split(f"<!-- end of {name} -->")
        text = f"{before}<!-- {name}: written by scene.py -->{content}<!-- end of {name} -->{after}"
    return text


def row_of(number: int, part: Part) -> str:
    """A part as a row of the page's table. The page itself works out the value."""
    unit = f' data-unit="{part.unit}"' if part.unit else ""
    return (
        f'<tr data-key="{part.key}"{unit} data-means="{part.means}">'
        f"<th><button>{number} {part.name}</button></th><td>{part.equation}</td>"
        f"<td>{tuple(part.value.shape)}</td><td></td></tr>"
    )


def world_in_json() -> str:
    """The points of batch and quiz, and where everything stands at first."""
    start = {"theta_S": THETA_S.tolist(), "phi": WRONG, "pilot_lr": PILOT_LR, "temperature": TEMPERATURE}
    start |= {"alpha": ALPHA, "teacher_lr": TEACHER_LR, "student_lr": STUDENT_LR}
    numbers = {"rho": RHO, "truth": TRUTH, "start": start}
    for name in ("batch", "quiz"):
        x, y = getattr(WORLD, name)
        numbers[name] = {"x": x.tolist(), "y": y.tolist()}
    lines = re.findall(r".{1,119}(?:,|$)", json.dumps(numbers, separators=(",", ":")))
    return "\n".join(['<script type="application/json" id="world">', *lines, "</script>"])


def main():
    """Write them into the page."""
    PAGE.write_text(written_into(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE}: {PAGE.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
