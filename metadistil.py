"""MetaDistil: a teacher that learns to teach from the quiz its student sits.

Algorithm 1 of "BERT Learns to Teach: Knowledge Distillation with Meta Learning" (Zhou, Xu, McAuley, ACL 2022), for any
`nn.Module`: the losses, the three updates in the paper's order, the meta-gradient. `python metadistil.py` works one
step out.

Symbols: theta_S, theta_T are the parameters of student and teacher; theta_S_prime those of the student's copy after the
pilot; z_S, z_T logits; B the batch size, K the number of classes.

- `batch` and `quiz` are pairs (inputs, labels). Inputs are a tensor, a tuple of arguments or a dict of arguments.
  Only a quiz may have a list of inputs: its parts, sat one after another; the labels are those of all of them.
- `teachers` is a Module, or a list or tuple of Modules, whose outputs are averaged.
- Outputs are what a network returns: logits, or a tuple (logits, states, ...), (B, ...) each.
- `loss(student_outputs, teacher_outputs, labels)` is L_S, `quiz_loss(logits, labels)` is L_q: means over examples.
  Settings are fixed by functools.partial: `loss=partial(kd_loss, alpha=0.9)`.
"""

import math
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

MODES = ("second_order", "jvp")


# ---- The losses


def log_softmax(logits: Tensor) -> Tensor:
    """log softmax over the last dimension, (B, K) -> (B, K), stable at any finite logits."""
    # Subtracting the largest logit does not change the result. So it carries no gradient, and may be detached.
    shifted = logits - logits.max(dim=-1, keepdim=True).values.detach()
    return shifted - shifted.exp().sum(dim=-1, keepdim=True).log()


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of logits (B, K) with class labels (B,) -> scalar.
    Raises ValueError on labels that are not whole numbers, or not one for each row of logits."""
    if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        found = f"{tuple(logits.shape)} and {tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"expected logits (B, K) and class numbers (B,), found {found}; else pass a loss of your own")
    return -log_softmax(logits).gather(-1, labels.long().unsqueeze(-1)).mean()


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(z_T / T) ‖ softmax(z_S / T)) of logits (B, K), the mean over the batch -> scalar. At high T
    the KL's gradient shrinks as 1/T²; T² undoes that, so alpha need not follow T (Hinton et al. 2015, section 2)."""
    log_p_T = log_softmax(teacher_logits / temperature)  # (B, K)
    log_p_S = log_softmax(student_logits / temperature)  # (B, K)
    kl = (log_p_T.exp() * (log_p_T - log_p_S)).sum(dim=-1)  # (B,)
    return temperature**2 * kl.mean()


def kd_loss(student_logits, teacher_logits, labels, alpha: float = 0.5, temperature: float = 2.0) -> Tensor:
    """L_S = α T² KL(softmax(z_T/T) ‖ softmax(z_S/T)) + (1 − α) CE(z_S, y) -> scalar, twice differentiable in both
    networks' logits (B, K). Of outputs (logits, states, ...) it takes the logits. Without a teacher (None) it is
    CE(z_S, y). Raises ValueError on logits of two shapes, and on settings out of range."""
    z_S = tensors_of(student_logits)[0]
    if teacher_logits is None:
        return hard_loss(z_S, labels)
    z_T = tensors_of(teacher_logits)[0]
    if z_S.shape != z_T.shape:
        raise ValueError(f"expected logits of one shape, found {tuple(z_S.shape)} and {tuple(z_T.shape)}")
    if not 0 <= alpha <= 1 or not temperature > 0:
        raise ValueError(f"expected alpha from 0 to 1 and temperature above 0, found {alpha=}, {temperature=}")
    return alpha * soft_loss(z_S, z_T, temperature) + (1 - alpha) * hard_loss(z_S, labels)


# ---- Algorithm 1


class MetaGradient(NamedTuple):
    """What the quiz found out."""

    quiz_loss: Tensor  # L_q at θ′_S, a scalar
    grads: list[Tensor]  # ∇_{θ_T} L_q: one per teacher parameter, in teacher.parameters() order, teacher after teacher
    theta_S_prime: dict[str, Tensor]  # by parameter name, without a graph


def metadistil_step(
    student, teachers, batch, quiz, student_optimizer, teacher_optimizer, *, pilot_lr, loss=kd_loss,
    quiz_loss=hard_loss, mode="second_order", micro_batch=None, clip=None, trace=None,
) -> tuple[Tensor, MetaGradient]:  # fmt: skip
    """One turn of Algorithm 1's loop -> (L_S of the real update, what `meta_gradient` found)."""
    found = meta_gradient(
        student, teachers, batch, quiz, pilot_lr=pilot_lr, loss=loss, quiz_loss=quiz_loss, mode=mode,
        micro_batch=micro_batch, trace=trace,
    )  # fmt: skip
    meta_update(teachers, found.grads, teacher_optimizer, clip)
    return real_update(student, teachers, batch, student_optimizer, loss, trace), found


def pilot_update(student, batch, teacher_outputs, pilot_lr, loss=kd_loss, create_graph=True, trace=None):
    """Pilot update: θ′_S = θ_S − λ ∇_{θ_S} L_S(x; θ_S, θ_T), on a copy; the student stays as it is.
    Returns theta_S_prime by parameter name, differentiable in the teacher's outputs if create_graph is true."""
    inputs, labels = pair(batch)
    theta_S = {name: leaf(theta) for name, theta in student.named_parameters() if theta.requires_grad}
    with at(student, theta_S):
        student_outputs = forward(student, inputs)
        L_S = loss(student_outputs, teacher_outputs, labels)
        # create_graph keeps the graph from the gradient back to the teacher's outputs, which `second_order` needs.
        gradient = torch.autograd.grad(L_S, theta_S.values(), create_graph=create_graph, materialize_grads=True)
    gradient = mean_over_ranks(gradient, len(labels))
    gradient = dict(zip(theta_S, gradient))
    record(trace, student_logits=tensors_of(student_outputs)[0], inner_loss=L_S, pilot_gradient=gradient)
    # θ_S is free of the teacher. Detached, it leaves θ′_S a graph by the gradient alone: if create_graph was forgotten,
    # there is none, and the next derivative is an error instead of zeros.
    return {name: theta.detach() - pilot_lr * gradient[name] for name, theta in theta_S.items()}


def quiz_gradient(student, theta_S_prime, quiz, quiz_loss=hard_loss):
    """The quiz: L_q = quiz_loss(f(x_q; θ′_S), y_q), by default the cross-entropy, and v = ∇_{θ′_S} L_q by name.
    Returns (L_q, v)."""
    inputs, labels = pair(quiz)
    theta = each_tensor(leaf, theta_S_prime)
    parts = inputs if isinstance(inputs, list) else [inputs]
    with at(student, theta):
        outputs = [forward(student, part) for part in parts]
        logits = torch.cat([tensors_of(part)[0] for part in outputs])  # (B, K)
        L_q = quiz_loss(logits, labels)
        v = torch.autograd.grad(L_q, theta.values(), materialize_grads=True)
    L_q, *v = mean_over_ranks([L_q.detach(), *v], len(labels))
    return L_q, dict(zip(theta, v))


def meta_gradient(
    student, teachers, batch, quiz, *, pilot_lr, loss=kd_loss, quiz_loss=hard_loss, mode="second_order",
    micro_batch=None, trace=None,
) -> MetaGradient:  # fmt: skip
    """∇_{θ_T} L_q(θ′_S(θ_T)) = −λ (∂²L_S / ∂θ_T ∂θ_S) v, with v = ∇_{θ′_S} L_q.

    mode: "second_order" (by `second_order`) or "jvp" (by `through_student_tangent`), two exact ways to ∂L_q/∂z_T.
    micro_batch: the number of examples in one backward pass of the teachers; None: all of them.
    trace: a dict, filled with copies of every derivative.
    Teachers are put in eval mode; no parameter, buffer or `.grad` changes. Raises ValueError on what is not of the form
    that the head of this file describes.
    """
    if mode not in MODES:
        raise ValueError(f"expected a mode of {MODES}, found {mode}")
    teachers, (inputs, labels) = as_list(teachers), pair(batch)
    if not teachers or micro_batch is not None and micro_batch < 1:
        raise ValueError("expected at least one teacher, and a micro_batch of 1 or more")
    with torch.set_grad_enabled(not micro_batch):  # in parts, `through_teachers` computes the outputs again
        z_T = teach(teachers, inputs)
    # The graph is cut here: the student's half delivers ∂L_q/∂z_T, the teacher's half takes it from there.
    z_T_leaf = each_tensor(leaf, z_T)
    create_graph = mode == "second_order"
    theta_S_prime = pilot_update(student, batch, z_T_leaf, pilot_lr, loss, create_graph, trace)
    L_q, v = quiz_gradient(student, theta_S_prime, quiz, quiz_loss)
    if create_graph:
        dL_dz_T = second_order(theta_S_prime, z_T_leaf, v)
    else:
        dL_dz_T = through_student_tangent(student, batch, z_T_leaf, v, pilot_lr, loss, trace)
    grads = mean_over_ranks(through_teachers(teachers, inputs, z_T, dL_dz_T, micro_batch), len(labels))
    theta_S_prime = each_tensor(Tensor.detach, theta_S_prime)
    if trace is not None:
        before, _ = quiz_gradient(student, dict(student.named_parameters()), quiz, quiz_loss)
        record(trace, teacher_logits=tensors_of(z_T)[0], teacher_logits_gradient=dL_dz_T[0])
        record(trace, theta_S_prime=theta_S_prime, v=v, quiz_loss_before=before, quiz_loss_after=L_q)
        named = teachers[0] if len(teachers) == 1 else teachers  # of several teachers "0.weight", "1.weight"
        names = dict(named.named_parameters())
        record(trace, meta_gradient=dict(zip(names, grads)))
    return MetaGradient(L_q, grads, theta_S_prime)


def second_order(theta_S_prime, z_T_leaf, v):
    """∂L_q/∂z_T = (∂θ′_S/∂z_T)ᵀ v, a tuple: back through the gradient step itself, by the graph that `pilot_update`
    kept."""
    return torch.autograd.grad(theta_S_prime.values(), tensors_of(z_T_leaf), v.values(), materialize_grads=True)


def through_student_tangent(student, batch, z_T_leaf, v, pilot_lr, loss, trace=None):
    """∂L_q/∂z_T, a tuple, without a second-order graph through the student: the mode "jvp".

    By the chain rule ∇_{θ_S} L_S = J_Sᵀ ∂L_S/∂z_S, and the student's Jacobian J_S is free of the teacher. So
    −λ ⟨v, ∇_{θ_S} L_S⟩ = −λ ⟨ż_S, ∂L_S/∂z_S⟩ with ż_S = J_S v, and only ∂L_S/∂z_S is differentiated by z_T.
    """
    inputs, labels = batch
    z_S, z_S_dot = student_tangent(student, inputs, v)
    z_S = each_tensor(leaf, z_S)
    z_S_dot = tensors_of(z_S_dot)
    record(trace, student_logits_dot=z_S_dot[0])
    L_S = loss(z_S, z_T_leaf, labels)
    dL_dz_S = torch.autograd.grad(L_S, tensors_of(z_S), create_graph=True, materialize_grads=True)  # (B, K)
    direction = [-pilot_lr * z_dot for z_dot in z_S_dot]
    # ∂/∂z_T of ⟨direction, ∂L_S/∂z_S⟩, the direction held fixed.
    return torch.autograd.grad(dL_dz_S, tensors_of(z_T_leaf), direction, materialize_grads=True)


def student_tangent(student, inputs, v):
    """(z_S, ż_S = J_S v): the outputs, and how they move when θ_S moves along v, by one forward-mode product."""
    theta_S = {name: p.detach() for name, p in student.named_parameters() if name in v}  # frozen ones are not in v

    def outputs_at(theta):
        with at(student, theta):
            return forward(student, inputs)

    with torch.no_grad():
        return jvp(outputs_at, (theta_S,), (v,))


def through_teachers(teachers, inputs, z_T, dL_dz_T, micro_batch=None):
    """∇_{θ_T} L_q from ∂L_q/∂z_T (B, K): one ordinary backward pass from the teachers' outputs z_T, or several, of
    `micro_batch` examples each, for which the outputs are computed again. Frozen parameters get zeros."""
    total = {theta: torch.zeros_like(theta) for theta in as_list(teachers).parameters()}
    learning = [theta for theta in total if theta.requires_grad]
    if not learning:
        return list(total.values())
    B = len(dL_dz_T[0])
    size = micro_batch or B
    for first in range(0, B, size):
        rows = slice(first, first + size)
        outputs = teach(teachers, each_tensor(lambda x: x[rows], inputs)) if micro_batch else z_T
        # By the chain rule: the derivative in θ_T of ⟨z_T, ∂L_q/∂z_T⟩, the second held fixed.
        heard = sum((part * message[rows]).sum() for part, message in zip(tensors_of(outputs), dL_dz_T))
        gradients = torch.autograd.grad(heard, learning, materialize_grads=True)
        for theta, gradient in zip(learning, gradients):
            total[theta] += gradient
    return list(total.values())


def meta_update(teachers, grads, teacher_optimizer, clip=None):
    """Meta update: θ_T ← θ_T − μ ∇_{θ_T} L_q, the step taken by the teacher's optimiser. If all grads together
    are longer than `clip`, they are scaled down to that length."""
    if clip is not None:
        length = nn.utils.get_total_norm(grads)
        grads = [gradient * (clip / length).clamp(max=1) for gradient in grads]
    for theta, gradient in zip(as_list(teachers).parameters(), grads, strict=True):
        theta.grad = gradient if theta.requires_grad else None
    teacher_optimizer.step()
    teacher_optimizer.zero_grad()


def real_update(student, teachers, batch, student_optimizer, loss=kd_loss, trace=None) -> Tensor:
    """Real update: θ_S ← θ_S − η ∇_{θ_S} L_S(x; θ_S, θ_T), the step taken by the student's optimiser -> L_S.
    The student, still where it stood before the pilot, learns in train mode from the teachers as they are now.
    With teachers that never change this is plain KD; with [] it is plain fine-tuning."""
    inputs, labels = pair(batch)
    student_outputs = forward(student.train(), inputs)
    with torch.no_grad():
        teacher_outputs = teach(teachers, inputs) if as_list(teachers) else None
    L_S = loss(student_outputs, teacher_outputs, labels)
    student_optimizer.zero_grad()
    L_S.backward()
    moving = {name: theta for name, theta in student.named_parameters() if theta.grad is not None}
    L_S, *gradient = mean_over_ranks([L_S.detach(), *(theta.grad for theta in moving.values())], len(labels))
    for theta, part in zip(moving.values(), gradient):
        theta.grad = part
    record(trace, real_loss=L_S, real_gradient=dict(zip(moving, gradient)))
    student_optimizer.step()
    return L_S


# ---- What they share


@contextmanager
def at(student, theta):
    """Inside, the student is its own copy: it computes with theta in place of its parameters, with clones of its
    buffers, in the mode of pilot and quiz. Afterwards it is as before. As `torch.func.functional_call`, but for a
    whole block: the gradient is taken inside, too, where activation checkpointing runs a forward pass again."""
    # By the tensor itself, not by its name: a tied parameter has several names and one stand-in.
    instead = {buffer: buffer.clone() for buffer in student.buffers()}
    instead |= {parameter: theta[name] for name, parameter in student.named_parameters() if name in theta}
    before = []
    for module in student.modules():  # each once, even if it stands under two names
        before += [(tensors, dict(tensors)) for tensors in (module._parameters, module._buffers)]
    try:
        for tensors, own in before:
            tensors.update({name: instead.get(tensor, tensor) for name, tensor in own.items()})
        with pilot_mode(student):
            yield
    finally:
        for tensors, own in before:
            tensors.update(own)


@contextmanager
def pilot_mode(student):
    """The mode of pilot and quiz: no dropout, batch statistics in BatchNorm, and attention by kernels that can be
    differentiated twice, which torch's fused ones cannot."""
    training = {module: module.training for module in student.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module in training:
            module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, was_training in training.items():
            module.training = was_training


def forward(model, inputs):
    """The model's outputs: logits, or a tuple (logits, states, ...). What autocast made half precision becomes
    float32, for the losses. Raises ValueError on inputs or outputs of another form."""
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    elif isinstance(inputs, tuple):
        outputs = model(*inputs)
    elif isinstance(inputs, Tensor):
        outputs = model(inputs)
    else:
        raise ValueError(f"expected inputs as a tensor, a tuple or a dict, found a {type(inputs).__name__}")
    outputs = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not all(isinstance(part, Tensor) for part in tensors_of(outputs)):
        raise ValueError(f"expected {type(model).__name__} to return logits, a tuple of tensors, or `logits` by name")
    return each_tensor(lambda part: part.float() if part.dtype.itemsize == 2 else part, outputs)


def teach(teachers, inputs):
    """The outputs of the teachers, averaged. A teacher is always in eval mode."""
    outputs = []
    for teacher in as_list(teachers):
        outputs.append(forward(teacher.eval(), inputs))
    means = tuple(torch.stack(parts).mean(dim=0) for parts in zip(*map(tensors_of, outputs), strict=True))
    return means if isinstance(outputs[0], tuple) else means[0]


def mean_over_ranks(tensors, examples: int):
    """Each tensor's mean over the processes of torch.distributed, weighted by how many examples each process holds:
    means over each one's examples become the mean over all. Without processes, the tensors. A graph stays its process's
    own: with v the same in all, the mean of their meta-gradients is that of the whole batch."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(tensors)
    flat = torch.cat([own.detach().flatten() for own in tensors])
    sums = examples * torch.cat([flat, flat.new_ones(1)])
    distributed.all_reduce(sums)
    means = (sums[:-1] / sums[-1]).split([own.numel() for own in tensors])
    found = []
    for own, mean in zip(tensors, means):
        mean = mean.view_as(own)
        # With a graph: the value of the mean, the derivative of this process's own part.
        found.append(own + (mean - own).detach() if own.requires_grad else mean)
    return found


def pair(batch):
    """(inputs, labels) of a batch or a quiz. Raises ValueError if it is not a pair."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise ValueError(f"expected a pair (inputs, labels), labels a tensor, found a {type(batch).__name__}")
    return batch


def as_list(teachers) -> nn.ModuleList:
    """The teachers as a list. A Sequential is one teacher. Raises ValueError on what is not a Module."""
    teachers = list(teachers) if isinstance(teachers, (list, tuple, nn.ModuleList)) else [teachers]
    if not all(isinstance(teacher, nn.Module) for teacher in teachers):
        raise ValueError("expected a teacher as a Module, several as a list of Modules")
    return nn.ModuleList(teachers)


def tensors_of(outputs):
    """The tensors of outputs: of logits one, of a tuple its own."""
    return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


def leaf(tensor):
    """The tensor's values as the start of a new graph."""
    return tensor.detach().requires_grad_()


def each_tensor(change, values):
    """`change` of every tensor in a tensor, a tuple or a dict; all else stays as it is."""
    if isinstance(values, Mapping):
        return {name: each_tensor(change, value) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(each_tensor(change, value) for value in values)
    return change(values) if isinstance(values, Tensor) else values


def record(trace, **values):
    """Put copies into the trace, if there is one, and beside each dict of tensors their norms."""
    if trace is None:
        return
    for name, value in values.items():
        trace[name] = each_tensor(lambda tensor: tensor.detach().clone(), value)
        if isinstance(value, dict):
            trace[f"{name}_norms"] = {part: tensor.detach().norm().item() for part, tensor in value.items()}


# ---- One step worked out


class Scalar(nn.Module):
    """Logits (0, θ x): one parameter, so that every derivative can be worked out on paper."""

    def __init__(self, theta: float):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(B,) -> (B, 2)."""
        return torch.stack([torch.zeros_like(x), self.theta * x], dim=-1)


def worked_example():
    """One step worked out: x = x_q = y = y_q = 1, α = T = 1, θ_S = 0, θ_T = ln 3, λ = 4 ln 3, logits (0, θ x)."""
    student, teacher = Scalar(0.0), Scalar(math.log(3))
    batch = torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.int64)
    settings = {"pilot_lr": 4 * math.log(3), "loss": partial(kd_loss, alpha=1, temperature=1)}
    trace, h = {}, 1e-5
    gradient = meta_gradient(student, teacher, batch, batch, trace=trace, **settings).grads[0]
    theta_S_prime = pilot_update(student, batch, teacher(batch[0]), **settings)["theta"]
    slope = torch.autograd.grad(theta_S_prime, teacher.theta)[0]
    ahead, behind = (
        meta_gradient(student, Scalar(math.log(3) + step), batch, batch, **settings).quiz_loss for step in (h, -h)
    )
    rows = {
        "p_T = softmax(z_T)[1] = 3/4": trace["teacher_logits"].softmax(dim=-1)[0, 1],
        "∇L_S = p_S − p_T = −1/4": trace["pilot_gradient"]["theta"],
        "θ′_S = θ_S − λ ∇L_S = ln 3": theta_S_prime,
        "v = ∇L_q(θ′_S) = −1/4": trace["v"]["theta"],
        "∂²L_S/∂θ_T∂θ_S = −p_T (1 − p_T) = −3/16": -slope / settings["pilot_lr"],
        "meta-gradient −λ (∂²L_S/∂θ_T∂θ_S) v": gradient,
        "  the same by a finite difference": (ahead - behind) / (2 * h),
    }
    print(worked_example.__doc__)
    for name, value in rows.items():
        print(f"{name:40} {value:10.6f}")


if __name__ == "__main__":
    worked_example()
