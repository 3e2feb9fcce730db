"""MetaDistil: a teacher that learns to teach from the quiz its student sits.

Algorithm 1 of "BERT Learns to Teach: Knowledge Distillation with Meta Learning" (Zhou, Xu, McAuley, ACL 2022), for any
`nn.Module` that maps an input to logits: the losses, the three updates in the paper's order, the meta-gradient.

Symbols: theta_S, theta_T parameters of student and teacher; theta_S_prime of the student's copy after the pilot; z_S,
z_T logits; B batch size, K classes; `batch`, `quiz` pairs (inputs, labels), `inputs` a tensor or a dict of arguments;
`**soft` alpha, temperature and beta of `inner_loss`. A model returns logits, or (logits, hidden states to match).
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

MODES = ("second_order", "jvp", "finite_difference")


def log_softmax(logits: Tensor) -> Tensor:
    """log softmax over the last dimension, (B, K) -> (B, K), stable at any finite logits."""
    # Subtracting the largest logit changes nothing in the result, so it carries no gradient and may be detached.
    shifted = logits - logits.max(dim=-1, keepdim=True).values.detach()
    return shifted - shifted.exp().sum(dim=-1, keepdim=True).log()


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, K) with class labels (B,) -> scalar.
    Labels of a floating-point type mean regression: the mean squared error of (B, 1)."""
    if labels.is_floating_point():
        return (logits.squeeze(-1) - labels).square().mean()
    return -log_softmax(logits).gather(-1, labels.unsqueeze(-1)).mean()


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(z_T / T) ‖ softmax(z_S / T)), mean over the batch -> scalar. T² undoes the 1/T² that the divisions
    by T leave in the gradient, so that alpha means the same at every T (Hinton et al. 2015, section 2)."""
    log_p_T = log_softmax(teacher_logits / temperature)  # (B, K)
    log_p_S = log_softmax(student_logits / temperature)  # (B, K)
    kl = (log_p_T.exp() * (log_p_T - log_p_S)).sum(dim=-1)  # (B,)
    return temperature**2 * kl.mean()


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha=0.5, temperature=2.0) -> Tensor:
    """L_S = α T² KL(softmax(z_T/T) ‖ softmax(z_S/T)) + (1 − α) CE(z_S, y) -> scalar.
    Logits (B, K), labels (B,); twice differentiable in *both* networks' logits. With floating-point labels (regression)
    the soft term is the squared error of the outputs. Raises ValueError on unlike shapes, and settings out of range."""
    if student_logits.shape != teacher_logits.shape or not 0 <= alpha <= 1 or not temperature > 0:
        found = f"{tuple(student_logits.shape)}, {tuple(teacher_logits.shape)}, {alpha=}, {temperature=}"
        raise ValueError(f"expected logits of one shape, alpha in [0, 1], temperature above 0; found {found}")
    logits = student_logits, teacher_logits
    soft = F.mse_loss(*logits) if labels.is_floating_point() else soft_loss(*logits, temperature)
    return alpha * soft + (1 - alpha) * hard_loss(student_logits, labels)


def pkd_loss(student_states: Tensor, teacher_states: Tensor) -> Tensor:
    """Patient KD's second term: the squared distance of normalised hidden states (B, M, D), M layers of width D.
    Sun et al. 2019, equation 7; the mean over B, M and D, as their code has it -> scalar."""
    difference = F.normalize(student_states, dim=-1) - F.normalize(teacher_states, dim=-1)
    return difference.square().mean()


def inner_loss(student_outputs, teacher_outputs, labels, alpha=0.5, temperature=2.0, beta=0.0) -> Tensor:
    """L_S of what the networks return, as `forward` has it: kd_loss of logits, and of states β pkd_loss -> scalar."""
    (student_logits, *student_states), (teacher_logits, *teacher_states) = student_outputs, teacher_outputs
    loss = kd_loss(student_logits, teacher_logits, labels, alpha, temperature)
    return loss + beta * sum(map(pkd_loss, student_states, teacher_states))


def average_logits(list_of_teacher_logits: list[Tensor]) -> Tensor:
    """The mean of several teachers' logits, each (B, K) -> (B, K)."""
    return torch.stack(list(list_of_teacher_logits)).mean(dim=0)


def forward(model: nn.Module, inputs, theta: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
    """The outputs of the model, or of what it would be with theta, parameters and perhaps buffers: (logits, [states]).
    With theta the call is pure: buffers are cloned, so a BatchNorm layer's running statistics stay as they are.
    What a network under autocast returns in bfloat16 comes in float32: softmax, losses, contractions need it."""
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, dict) else ((inputs,), {})
    buffers = {name: theta.get(name, buffer).clone() for name, buffer in model.named_buffers()} if theta else {}
    outputs = functional_call(model, (theta or {}) | buffers, args, kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(part.float() if part.dtype == torch.bfloat16 else part for part in outputs)


def teach(teachers: list[nn.Module], inputs) -> tuple[Tensor, ...]:
    """The outputs of the teachers, averaged. A teacher is always in eval mode."""
    return tuple(map(average_logits, zip(*[forward(teacher.eval(), inputs) for teacher in teachers])))


@contextmanager
def without_dropout(student: nn.Module):
    """The student's mode in pilot and quiz: no dropout, yet batch statistics in BatchNorm."""
    modes = {module: module.training for module in student.modules()}
    try:
        for module in modes:
            module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def pilot_update(student, batch, teacher_logits, pilot_lr, *, create_graph=True, trace=None, **soft):
    """Algorithm 1, pilot update: θ′_S = θ_S − λ ∇_{θ_S} L_S(x; θ_S, θ_T), on a copy; the student is untouched. Returns
    theta_S_prime by name, with `create_graph` differentiable in teacher_logits (B, K), or outputs (logits, states)."""
    inputs, labels = batch
    theta_S = {n: p.detach().requires_grad_() for n, p in student.named_parameters() if p.requires_grad}
    with without_dropout(student):
        z_S = forward(student, inputs, theta_S)
    z_T = teacher_logits if isinstance(teacher_logits, tuple) else (teacher_logits,)
    loss = inner_loss(z_S, z_T, labels, **soft)
    # create_graph keeps ∂θ′_S/∂θ_T alive: without it no gradient reaches the teacher.
    found = torch.autograd.grad(loss, list(theta_S.values()), create_graph=create_graph, materialize_grads=True)
    gradient = dict(zip(theta_S, found))
    record(trace, student_logits=z_S[0], inner_loss=loss, pilot_gradient=gradient)
    return {name: theta.detach() - pilot_lr * gradient[name] for name, theta in theta_S.items()}


def meta_update(student, teachers, batch, quiz, teacher_optimizer, **settings) -> "MetaGradient":
    """Algorithm 1, meta update: θ_T ← θ_T − μ ∇_{θ_T} L_q(θ′_S(θ_T)), the step taken by the teacher's optimiser.
    `settings` are the keyword arguments of `meta_gradient`, whose result is returned."""
    result = meta_gradient(student, teachers, batch, quiz, **settings)
    for theta, gradient in zip(parameters_of(teachers), result.grads):
        theta.grad = gradient if theta.requires_grad else None
    teacher_optimizer.step()
    teacher_optimizer.zero_grad()
    return result


def real_update(student, teachers, batch, student_optimizer, **soft) -> Tensor:
    """Algorithm 1, real update: θ_S ← θ_S − η ∇_{θ_S} L_S(x; θ_S, θ_T), the step taken by the student's optimiser.
    The student, still where it stood before the pilot, learns in train mode from the teacher as it is now -> the loss.
    With a teacher that never changes this is plain KD, with no teacher at all plain fine-tuning."""
    inputs, labels = batch
    z_S = forward(student.train(), inputs)
    with torch.no_grad():
        z_T = teach(teachers, inputs)
    loss = inner_loss(z_S, z_T, labels, **soft) if teachers else hard_loss(z_S[0], labels)
    student_optimizer.zero_grad()
    loss.backward()
    student_optimizer.step()
    return loss.detach()


def metadistil_step(student, teachers, batch, quiz, student_optimizer, teacher_optimizer, keep_pilot=False, **settings):
    """One turn of Algorithm 1's loop -> (the real update's loss, what `meta_gradient` returned); its keyword arguments
    are `settings`. With `keep_pilot`, an ablation, the student stays where the pilot led; the loss is the quiz's."""
    result = meta_update(student, teachers, batch, quiz, teacher_optimizer, **settings)
    if keep_pilot:
        student.load_state_dict(result.theta_S_prime, strict=False)
        return result.quiz_loss, result
    soft = {name: settings[name] for name in ("alpha", "temperature", "beta") if name in settings}
    return real_update(student, teachers, batch, student_optimizer, **soft), result


class MetaGradient(NamedTuple):
    """What the quiz said: its loss, where it was sat, and which way it would have the teachers move."""
    quiz_loss: Tensor  # L_q at θ′_S, a scalar
    grads: list[Tensor]  # ∇_{θ_T} L_q: one per teacher parameter, in teacher.parameters() order, teacher after teacher
    theta_S_prime: dict[str, Tensor]  # by parameter name, without its graph


def meta_gradient(student, teachers, batch, quiz, *, pilot_lr, mode="second_order", micro_batch=0, trace=None, **soft):
    """∇_{θ_T} L_q(θ′_S(θ_T)) = −λ (∂²L_S / ∂θ_T ∂θ_S) v, with v = ∇_{θ′_S} L_q -> MetaGradient.
    `mode` says how the mixed second derivative is contracted with v: "second_order" through the graph of the pilot
    gradient; "jvp", as exact, and "finite_difference", approximate, through ż_S = J_S v, for the teacher enters L_S by
    its outputs alone: ⟨v, ∇_{θ_S} L_S⟩ = ⟨ż_S, ∂L_S/∂z_S⟩. For `micro_batch` see `through_teachers`. Teachers are put
    in eval mode; no parameter, buffer or `.grad` changes. A dict passed as `trace` is filled with every intermediate
    derivative. Raises ValueError on an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"expected a meta-gradient mode of {MODES}, not {mode!r}")
    with torch.set_grad_enabled(not micro_batch):
        z_T = teach(teachers, batch[0])
    leaves = tuple(part.detach().requires_grad_() for part in z_T)  # the student sees no further than this
    keep = mode == "second_order"
    theta_S_prime = pilot_update(student, batch, leaves, pilot_lr, create_graph=keep, trace=trace, **soft)
    quiz_loss, v = quiz_gradient(student, theta_S_prime, quiz)
    if keep:
        outputs, cotangents = list(theta_S_prime.values()), list(v.values())
    else:
        z_S, z_S_dot = student_tangent(student, batch[0], v, mode)
        z_S, cotangents = [part.requires_grad_() for part in z_S], [-pilot_lr * part for part in z_S_dot]
        # What is left of the second order lives in the loss head, on tensors of shape (B, K).
        outputs = torch.autograd.grad(inner_loss(z_S, leaves, batch[1], **soft), z_S, create_graph=True)
        record(trace, student_logits_dot=z_S_dot[0])
    told = torch.autograd.grad(outputs, leaves, cotangents, materialize_grads=True)  # ∂L_q/∂z_T, (B, K)
    theta_S_prime = {name: theta.detach() for name, theta in theta_S_prime.items()}
    grads = through_teachers(teachers, batch[0], z_T, told, micro_batch)
    if trace is not None:
        before, _ = quiz_gradient(student, dict(student.named_parameters()), quiz)
        names = [f"{i}.{name}" for i, teacher in enumerate(teachers) for name, _ in teacher.named_parameters()]
        record(trace, teacher_logits=z_T[0], theta_S_prime=theta_S_prime, v=v, meta_gradient=dict(zip(names, grads)))
        record(trace, quiz_loss_before=before, quiz_loss_after=quiz_loss, teacher_logits_gradient=told[0])
    return MetaGradient(quiz_loss, grads, theta_S_prime)


def through_teachers(teachers, inputs, z_T, told, micro_batch=None) -> list[Tensor]:
    """∇_{θ_T} L_q of what the teachers are told, ∂L_q/∂z_T (B, K): an ordinary backward pass from their outputs z_T, or
    with `micro_batch` so many examples at a time, z_T having no graph. A zero for what requires no gradient."""
    theta_T, size = parameters_of(teachers), micro_batch or len(z_T[0])
    learning, total = [theta for theta in theta_T if theta.requires_grad], None
    for first in range(0, len(z_T[0]), size) if learning else ():
        rows = slice(first, first + size)
        outputs = teach(teachers, each_tensor(lambda x: x[rows], inputs)) if micro_batch else z_T
        found = torch.autograd.grad(outputs, learning, [part[rows] for part in told], materialize_grads=True)
        total = list(map(torch.add, total, found)) if total else found
    total = iter(total or ())
    return [next(total) if theta.requires_grad else torch.zeros_like(theta) for theta in theta_T]


def each_tensor(change, inputs):
    """`change` of every tensor of `inputs`: a tensor, or a dict of inputs."""
    return {n: each_tensor(change, x) for n, x in inputs.items()} if isinstance(inputs, dict) else change(inputs)


def quiz_gradient(student, theta_S_prime, quiz) -> tuple[Tensor, dict[str, Tensor]]:
    """The quiz: L_q = CE(f(x_q; θ′_S), y_q), and v = ∇_{θ′_S} L_q by name. A list of pairs is one quiz in parts."""
    theta = {name: value.detach().requires_grad_() for name, value in theta_S_prime.items()}
    inputs, labels = zip(*(quiz if isinstance(quiz, list) else [quiz]))
    with without_dropout(student):
        logits = torch.cat([forward(student, part, theta)[0] for part in inputs])
    quiz_loss = hard_loss(logits, torch.cat(labels))
    v = torch.autograd.grad(quiz_loss, list(theta.values()), materialize_grads=True)
    return quiz_loss.detach(), dict(zip(theta, v))


def student_tangent(student, inputs, v, mode="jvp") -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """z_S and ż_S = J_S v: the student's outputs, and how they move when θ_S moves along v. By one forward-mode product
    ("jvp"), or as mean and difference of two points a step scaled by 1/‖v‖ to either side ("finite_difference"): too
    near to each other for the digits of float32, so these are computed, and returned, in float64."""
    theta_S = {name: p.detach() for name, p in student.named_parameters()}
    with without_dropout(student), torch.no_grad():
        if mode == "jvp":
            return jvp(lambda theta: forward(student, inputs, theta), ({name: theta_S[name] for name in v},), (v,))
        wide = inputs, theta_S | dict(student.named_buffers()), v
        inputs, theta_S, v = (each_tensor(lambda x: x.double() if x.is_floating_point() else x, part) for part in wide)
        norm = torch.stack([direction.norm() for direction in v.values()]).norm().clamp_min(1e-300)
        # The cube root balances rounding (grows as 1/ε) against curvature (grows as ε²); 0.2 was measured best.
        epsilon = 0.2 * torch.finfo(torch.float64).eps ** (1 / 3) / norm
        moved = (theta_S | {name: theta_S[name] + step * v[name] for name in v} for step in (-epsilon, epsilon))
        ends = list(zip(*(forward(student, inputs, theta) for theta in moved)))
        return tuple((b + a) / 2 for b, a in ends), tuple((a - b) / (2 * epsilon) for b, a in ends)


def parameters_of(teachers) -> list[Tensor]:
    """theta_T: every parameter of every teacher, teacher after teacher."""
    return [theta for teacher in teachers for theta in teacher.parameters()]


def record(trace: dict | None, **derivatives):
    """Put detached tensors into the trace, if there is one, and beside each dict by layer its norms."""
    for name, value in derivatives.items() if trace is not None else ():
        if isinstance(value, dict):
            trace[name] = {layer: tensor.detach() for layer, tensor in value.items()}
            trace[name + "_norms"] = {layer: tensor.detach().norm().item() for layer, tensor in value.items()}
        else:
            trace[name] = value.detach()
