"""One step of MetaDistil worked out, number by number: `python notebooks/worked_example.py`, or notebook 03.

x = x_q = y = y_q = 1, α = T = 1, θ_S = 0, θ_T = ln 3, λ = 4 ln 3, logits (0, θ x). Each line has its value in closed
form in its name; the last one uses no second derivative.
"""

import math
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent))
from metadistil import kd_loss, meta_gradient, pilot_update  # noqa: E402


class Scalar(nn.Module):
    """Logits (0, θ x): one parameter, so that every derivative can be worked out on paper."""

    def __init__(self, theta: float):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(B,) -> (B, 2)."""
        return torch.stack([torch.zeros_like(x), self.theta * x], dim=-1)


def worked_example():
    """Print every number of the step."""
    student, teacher = Scalar(0.0), Scalar(math.log(3))
    batch = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)
    settings = {"pilot_lr": 4 * math.log(3), "loss": partial(kd_loss, alpha=1, temperature=1)}
    trace = {}
    gradient = meta_gradient(student, teacher, batch, batch, trace=trace, **settings).grads[0]

    theta_S_prime = pilot_update(student, batch, teacher(batch[0]), **settings)["theta"]
    slope = torch.autograd.grad(theta_S_prime, teacher.theta)[0]

    def quiz_loss(theta_T):
        return meta_gradient(student, Scalar(theta_T), batch, batch, **settings).quiz_loss

    h = 1e-5
    difference = (quiz_loss(math.log(3) + h) - quiz_loss(math.log(3) - h)) / (2 * h)
    rows = {
        "p_T = softmax(z_T)[1] = 3/4": trace["teacher_logits"].softmax(dim=-1)[0, 1],
        "∇L_S = p_S − p_T = −1/4": trace["pilot_gradient"]["theta"],
        "θ′_S = θ_S − λ ∇L_S = ln 3": theta_S_prime,
        "v = ∇L_q(θ′_S) = −1/4": trace["v"]["theta"],
        "∂²L_S/∂θ_T∂θ_S = −p_T (1 − p_T) = −3/16": -slope / settings["pilot_lr"],
        "meta-gradient −λ (∂²L_S/∂θ_T∂θ_S) v": gradient,
        "  the same by a finite difference": difference,
    }
    for name, value in rows.items():
        print(f"{name:40} {value:10.6f}")


if __name__ == "__main__":
    worked_example()
