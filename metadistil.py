"""MetaDistil: a teacher that learns to teach from how its student does on a quiz.

Algorithm 1 of "BERT Learns to Teach: Knowledge Distillation with Meta Learning" (Zhou, Xu, McAuley, ACL 2022), for any
`nn.Module`: the losses, the algorithm in the paper's order, then helpers. θ_S and θ_T are the parameters of student and
teacher, θ′_S those of the student's copy after the pilot update; z_S and z_T logits; λ (`pilot_lr`), μ and η the rates
of pilot, meta and real update; B the batch size, K the number of classes.

- `batch` and `quiz` are pairs (inputs, labels), inputs a tensor, or a tuple or dict of arguments. The student never
  trains on the quiz.
- `teachers` is a Module, or a list or tuple of Modules whose outputs are averaged.
- Outputs are what a network returns: logits (B, K), or a tuple (logits, states, ...).
- `loss(student_outputs, teacher_outputs, labels)` is L_S, `quiz_loss(logits, labels)` is L_q: means over the examples.
  For other settings: `loss=functools.partial(kd_loss, alpha=0.9)`.
"""

from collections.abc import Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

MODES = ("second_order", "jvp")


# ---- The losses


def log_softmax(logits: Tensor) -> Tensor:
    """log softmax over the last dimension, (B, K) -> (B, K), stable for any finite logits."""
    # Subtracting the largest logit does not change the result, so it needs no gradient.
    shifted = logits - logits.max(dim=-1, keepdim=True).values.detach()
    return shifted - shifted.exp().sum(dim=-1, keepdim=True).log()


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy between logits (B, K) and class numbers (B,) -> scalar.
    Raises ValueError if labels are floats, or if there is not exactly one for each row of logits."""
    if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        found = f"{tuple(logits.shape)} and {tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"expected logits (B, K) and class numbers (B,), found {found}; else pass a loss of your own")
    return -log_softmax(logits).gather(-1, labels.long().unsqueeze(-1)).mean()


def soft_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(z_T / T) ‖ softmax(z_S / T)) of logits (B, K), the mean over the batch -> scalar. At high T
    the KL's gradient shrinks as 1/T²; T² undoes that, so alpha stays as T changes (Hinton et al. 2015, section 2)."""
    log_p_T = log_softmax(teacher_logits / temperature)  # (B, K)
    log_p_S = log_softmax(student_logits / temperature)  # (B, K)
    kl = (log_p_T.exp() * (log_p_T - log_p_S)).sum(dim=-1)  # (B,)
    return temperature**2 * kl.mean()


def kd_loss(student_outputs, teacher_outputs, labels, alpha: float = 0.5, temperature: float = 2.0) -> Tensor:
    """L_S = α T² KL(softmax(z_T/T) ‖ softmax(z_S/T)) + (1 − α) CE(z_S, y) -> scalar, twice differentiable in the
    logits (B, K) of both networks. If a network returns (logits, states, ...), only the logits are used. Without a
    teacher (None) it is CE(z_S, y). Raises ValueError if the logits differ in shape or a setting is out of range."""
    z_S = tensors_of(student_outputs)[0]
    if teacher_outputs is None:
        return hard_loss(z_S, labels)
    z_T = tensors_of(teacher_outputs)[0]
    if z_S.shape != z_T.shape:
        raise ValueError(f"expected logits of one shape, found {tuple(z_S.shape)} and {tuple(z_T.shape)}")
    if not 0 <= alpha <= 1 or not temperature > 0:
        raise ValueError(f"expected alpha from 0 to 1 and temperature above 0, found {alpha=}, {temperature=}")
    return alpha * soft_loss(z_S, z_T, temperature) + (1 - alpha) * hard_loss(z_S, labels)


# ---- Algorithm 1


class MetaGradient(NamedTuple):
    """What `meta_gradient` returns."""

    quiz_loss: Tensor  # L_q at θ′_S, a scalar
    grads: list[Tensor]  # ∇_{θ_T} L_q: one per teacher parameter, in teacher.parameters() order, teacher after teacher
    theta_S_prime: dict[str, Tensor]  # by parameter name, detached


def metadistil_step(
    student, teachers, batch, quiz, student_optimizer, teacher_optimizer, *, pilot_lr, loss=kd_loss,
    quiz_loss=hard_loss, mode="second_order", trace=None,
) -> tuple[Tensor, MetaGradient]:  # fmt: skip
    """One turn of Algorithm 1's loop: pilot update and quiz (both in `meta_gradient`), meta update of the teachers,
    real update of the student -> (L_S of the real update, the MetaGradient)."""
    result = meta_gradient(
        student, teachers, batch, quiz, pilot_lr=pilot_lr, loss=loss, quiz_loss=quiz_loss, mode=mode, trace=trace
    )
    meta_update(teachers, result.grads, teacher_optimizer)
    L_S = real_update(student, teachers, batch, student_optimizer, loss, trace)
    return L_S, result


def pilot_update(student, batch, teacher_outputs, pilot_lr, loss=kd_loss, create_graph=True, trace=None):
    """Pilot update: θ′_S = θ_S − λ ∇_{θ_S} L_S(x; θ_S, θ_T), on a copy; the student itself does not change.

    Returns theta_S_prime by parameter name, differentiable in the teacher's outputs if create_graph is true. It is one
    step. To chain several, do not load θ′_S into the student and call again: θ_S is detached here, so how the earlier
    steps depend on the teacher would be lost.
    """
    inputs, labels = pair(batch)
    theta_S = {name: leaf(theta) for name, theta in student.named_parameters() if theta.requires_grad}
    own = {*student.parameters()}
    with at(student, theta_S):
        student_outputs = forward(student, inputs)
        if own & leaves(tensors_of(student_outputs)):
            raise ValueError("expected a student that finds each parameter by its name, not in a list of its own")
        L_S = loss(student_outputs, teacher_outputs, labels)
        # create_graph keeps the graph from the gradient back to the teacher's outputs, which `second_order` needs.
        one = torch.ones_like(L_S, requires_grad=create_graph)  # lets `differentiable_twice` see the whole loss
        gradient = torch.autograd.grad(L_S, theta_S.values(), one, create_graph=create_graph, materialize_grads=True)
    pilot_gradient = dict(zip(theta_S, averaged("the pilot gradient", gradient, len(labels))))
    record(trace, student_logits=tensors_of(student_outputs)[0], inner_loss=L_S, pilot_gradient=pilot_gradient)
    # θ_S is detached, so θ′_S depends on the teacher only through the gradient. If create_graph was forgotten, the next
    # derivative fails with an error; without the detach it would silently be zero.
    return {name: theta.detach() - pilot_lr * pilot_gradient[name] for name, theta in theta_S.items()}


def quiz_gradient(student, theta_S_prime, quiz, quiz_loss=hard_loss):
    """The quiz: L_q = quiz_loss(f(x_q; θ′_S), y_q), and v = ∇_{θ′_S} L_q by parameter name -> (L_q, v)."""
    inputs, labels = pair(quiz)
    theta = each_tensor(leaf, theta_S_prime)
    with at(student, theta):
        logits = tensors_of(forward(student, inputs))[0]  # (B, K)
        L_q = quiz_loss(logits, labels)
        gradient = torch.autograd.grad(L_q, theta.values(), materialize_grads=True)
    [L_q] = mean_over_ranks([L_q.detach()], len(labels))
    return L_q, dict(zip(theta, averaged("v, the quiz's gradient", gradient, len(labels))))


def meta_gradient(
    student, teachers, batch, quiz, *, pilot_lr, loss=kd_loss, quiz_loss=hard_loss, mode="second_order", trace=None
) -> MetaGradient:
    """∇_{θ_T} L_q(θ′_S(θ_T)) = −λ (∂²L_S / ∂θ_T ∂θ_S) v, with v = ∇_{θ′_S} L_q.

    mode: "second_order" or "jvp" (`through_student_tangent`), two exact ways to compute ∂L_q/∂z_T, for networks whose
    forward pass is deterministic. trace: a dict to fill with copies of every derivative.
    The teachers run in eval mode. The student runs without dropout, each BatchNorm in the mode that student.train()
    puts it in: to freeze one, override train(); bn.eval() by hand is undone. Afterwards parameters, buffers, modes and
    `.grad` are as before. Raises ValueError if an argument does not have the form described at the top of this file,
    if a loss reaches a network's parameters other than through its outputs, or if a gradient is not finite.
    """
    teachers = as_list(teachers)
    check(student, teachers, mode)
    inputs, labels = pair(batch)
    loss, quiz_loss = (of_outputs_alone(function, student, teachers) for function in (loss, quiz_loss))
    with untouched(teachers):
        z_T = teach(teachers, inputs)
        # The graph is cut here: the student's half delivers ∂L_q/∂z_T, and the teacher's half takes it from there.
        z_T_leaf = each_tensor(leaf, z_T)
        theta_S_prime = pilot_update(student, batch, z_T_leaf, pilot_lr, loss, mode == "second_order", trace)
        L_q, v = quiz_gradient(student, theta_S_prime, quiz, quiz_loss)
        if mode == "second_order":
            dL_dz_T = second_order(theta_S_prime, z_T_leaf, v)
        else:
            dL_dz_T = through_student_tangent(student, batch, z_T_leaf, v, pilot_lr, loss, trace)
        grads = through_teachers(teachers, z_T, dL_dz_T)
    grads = averaged("the meta-gradient", grads, len(labels))
    theta_S_prime = each_tensor(Tensor.detach, theta_S_prime)
    if trace is not None:
        quiz_loss_before, _ = quiz_gradient(student, dict(student.named_parameters()), quiz, quiz_loss)
        record(trace, quiz_loss_before=quiz_loss_before, quiz_loss_after=L_q, theta_S_prime=theta_S_prime, v=v)
        record(trace, teacher_logits=tensors_of(z_T)[0], teacher_logits_gradient=dL_dz_T[0])
        named = teachers if len(teachers) > 1 else teachers[0]  # "0.weight", "1.weight", ... or "weight"
        record(trace, meta_gradient=dict(zip(dict(named.named_parameters()), grads)))
    return MetaGradient(L_q, grads, theta_S_prime)


def second_order(theta_S_prime, z_T_leaf, v):
    """∂L_q/∂z_T = (∂θ′_S/∂z_T)ᵀ v, a tuple: back through the gradient step itself, along the graph that `pilot_update`
    kept. Raises ValueError if student or loss have an operation marked @once_differentiable."""
    differentiable_twice(theta_S_prime.values())
    return torch.autograd.grad(theta_S_prime.values(), tensors_of(z_T_leaf), v.values(), materialize_grads=True)


def through_student_tangent(student, batch, z_T_leaf, v, pilot_lr, loss, trace=None):
    """∂L_q/∂z_T, a tuple, without a second-order graph through the student. This is mode "jvp".

    By the chain rule ∇_{θ_S} L_S = J_Sᵀ ∂L_S/∂z_S, and the student's Jacobian J_S does not depend on the teacher. So
    ∂L_q/∂z_T is the derivative, with respect to z_T, of the number −λ ⟨v, ∇_{θ_S} L_S⟩ = −λ ⟨ż_S, ∂L_S/∂z_S⟩, where
    ż_S = J_S v is a constant.
    """
    inputs, labels = pair(batch)
    z_S, z_S_dot = student_tangent(student, inputs, v)
    z_S = each_tensor(leaf, z_S)
    z_S_dot = tensors_of(z_S_dot)
    record(trace, student_logits_dot=z_S_dot[0])
    L_S = loss(z_S, z_T_leaf, labels)
    one = torch.ones_like(L_S, requires_grad=True)
    dL_dz_S = torch.autograd.grad(L_S, tensors_of(z_S), one, create_graph=True, materialize_grads=True)
    differentiable_twice(dL_dz_S)
    direction = [-pilot_lr * z_dot for z_dot in z_S_dot]
    return torch.autograd.grad(dL_dz_S, tensors_of(z_T_leaf), direction, materialize_grads=True)


def student_tangent(student, inputs, v):
    """(z_S, ż_S = J_S v): the outputs, and how they move when θ_S moves along v; one Jacobian-vector product."""
    theta_S = {name: theta.detach() for name, theta in student.named_parameters() if name in v}

    def outputs_at(theta):
        with at(student, theta):
            return forward(student, inputs)

    with torch.no_grad():
        return jvp(outputs_at, (theta_S,), (v,))


def through_teachers(teachers, z_T, dL_dz_T) -> list[Tensor]:
    """∇_{θ_T} L_q from ∂L_q/∂z_T (B, K): one ordinary backward pass from the teachers' outputs z_T. Frozen parameters
    get zeros. Raises ValueError if the teachers have trainable parameters but their outputs have no graph."""
    theta_T = list(as_list(teachers).parameters())
    trainable = [theta for theta in theta_T if theta.requires_grad]
    with_graph = [(z, gradient) for z, gradient in zip(tensors_of(z_T), dL_dz_T) if z.requires_grad]
    if trainable and not with_graph:
        raise ValueError("expected teachers' outputs with a graph, found none; does forward() run under no_grad?")
    gradient_of = {theta: torch.zeros_like(theta) for theta in theta_T}
    if trainable:
        outputs, output_gradients = zip(*with_graph)
        gradients = torch.autograd.grad(outputs, trainable, output_gradients, materialize_grads=True)
        gradient_of.update(zip(trainable, gradients))
    return list(gradient_of.values())


def meta_update(teachers, grads, teacher_optimizer):
    """Meta update: θ_T ← θ_T − μ ∇_{θ_T} L_q. The teacher's optimiser takes the step; μ is its learning rate."""
    for theta, gradient in zip(as_list(teachers).parameters(), grads, strict=True):
        theta.grad = gradient if theta.requires_grad else None
    teacher_optimizer.step()
    teacher_optimizer.zero_grad()


def real_update(student, teachers, batch, student_optimizer, loss=kd_loss, trace=None) -> Tensor:
    """Real update: θ_S ← θ_S − η ∇_{θ_S} L_S(x; θ_S, θ_T). The student's optimiser takes the step -> L_S.
    The student starts from where it was before the pilot and learns, in train mode, from the updated teachers. With
    teachers that never change this is ordinary KD; with [] it is ordinary fine-tuning."""
    inputs, labels = pair(batch)
    student.train()
    student_outputs = forward(student, inputs)
    teachers = as_list(teachers)
    teacher_outputs = None
    if teachers:
        with torch.no_grad(), untouched(teachers):
            teacher_outputs = teach(teachers, inputs)
    L_S = loss(student_outputs, teacher_outputs, labels)
    student_optimizer.zero_grad()
    L_S.backward()
    [L_S] = mean_over_ranks([L_S.detach()], len(labels))
    learnt = [theta for group in student_optimizer.param_groups for theta in group["params"] if theta.grad is not None]
    for theta, gradient in zip(learnt, mean_over_ranks([theta.grad for theta in learnt], len(labels))):
        theta.grad = gradient
    with_gradient = {name: theta.grad for name, theta in student.named_parameters() if theta.grad is not None}
    record(trace, real_loss=L_S, real_gradient=with_gradient)
    student_optimizer.step()
    return L_S


# ---- The student's copy


@contextmanager
def at(student, theta):
    """Inside this block the student uses `theta` instead of its parameters, in the mode of pilot and quiz: no dropout,
    each BatchNorm as in the real update, and attention kernels that can be differentiated twice, which torch's fused
    ones cannot. It is like `torch.func.functional_call`, but for a whole block: with activation checkpointing, taking
    the gradient runs the forward pass again, so that must happen inside, too."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with untouched(student, theta), sdpa_kernel(SDPBackend.MATH):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            student.train()  # the student's own method: it may freeze a BatchNorm there
            for module in student.modules():
                module.training = module.training and isinstance(module, nn.modules.batchnorm._BatchNorm)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def untouched(network, theta=()):
    """Inside this block the network uses clones of its buffers and, where `theta` has one of that name, other
    parameters. Afterwards its parameters, buffers and train or eval modes are as before."""
    # Keyed by tensor, not by name: a tied parameter has several names and one replacement.
    new = {buffer: buffer.clone() for buffer in network.buffers()}
    new |= {tensor: theta[name] for name, tensor in network.named_parameters() if name in theta}
    held = []
    for module in network.modules():
        held.append((module, module.training, dict(module._parameters), dict(module._buffers)))
    try:
        for module, _, parameters, buffers in held:
            module._parameters.update({name: new.get(tensor, tensor) for name, tensor in parameters.items()})
            module._buffers.update({name: new.get(tensor, tensor) for name, tensor in buffers.items()})
        yield
    finally:
        for module, training, parameters, buffers in held:
            module.training = training
            module._parameters.update(parameters)
            module._buffers.update(buffers)


# ---- Checks


def check(student, teachers: nn.ModuleList, mode):
    """Raise ValueError if there is no such mode, no teacher, a parameter that both student and teachers train, or an
    Embedding with max_norm, which changes its weights in every forward pass."""
    if mode not in MODES:
        raise ValueError(f"expected mode to be one of {MODES}, found {mode!r}")
    if not teachers:
        raise ValueError("expected at least one teacher")
    if any(theta.requires_grad for theta in {*student.parameters()} & {*teachers.parameters()}):
        raise ValueError("expected a student and teachers that share no trainable parameter")
    if any(getattr(module, "max_norm", None) for module in [*student.modules(), *teachers.modules()]):
        raise ValueError("expected no Embedding with max_norm")


def of_outputs_alone(loss, student, teachers):
    """Wraps a loss (outputs..., labels) so that it raises ValueError if it reaches parameters of student or teachers
    other than through their outputs. Such a path, by forward hooks for example, would bypass the cut at z_T."""

    def checked_loss(*outputs_and_labels):
        value = loss(*outputs_and_labels)
        outputs = [tensor for part in outputs_and_labels[:-1] for tensor in tensors_of(part)]
        parameters = {*student.parameters(), *teachers.parameters()}
        if parameters & leaves([value], outputs):
            raise ValueError("expected a loss of the outputs alone; let the networks return (logits, states, ...)")
        return value

    return checked_loss


def graph_nodes(tensors, stop_at=()):
    """The nodes of the autograd graph behind these tensors, stopping at the tensors of `stop_at`."""
    seen = {None, *(tensor.grad_fn for tensor in stop_at)}
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def leaves(tensors, stop_at=()) -> set[Tensor]:
    """The parameters and other leaves of the graph behind these tensors, stopping at the tensors of `stop_at`."""
    return {node.variable for node in graph_nodes(tensors, stop_at) if hasattr(node, "variable")}


def differentiable_twice(gradient):
    """Raise ValueError if the gradient has gone through an operation marked @once_differentiable."""
    # torch puts such an operation's error node beside the path to z_T, where autograd.grad would never reach it; and it
    # does so only if what comes from above has a graph.
    if any(node.name() == "torch::autograd::Error" for node in graph_nodes(gradient)):
        raise ValueError("expected operations that can be differentiated twice, found a @once_differentiable one")


def averaged(name, gradient, examples: int) -> list[Tensor]:
    """The tensors of a gradient, averaged by `mean_over_ranks`, sparse ones made dense. Raises ValueError if an entry
    is not finite."""
    means = [part.to_dense() if part.is_sparse else part for part in mean_over_ranks(gradient, examples)]
    largest = nn.utils.get_total_norm(means, torch.inf)
    if not largest.isfinite():
        raise ValueError(f"expected finite gradients, found {largest.item()} in {name}; nothing was updated")
    return means


# ---- Shared helpers


def forward(model, inputs):
    """The model's outputs: logits, or a tuple (logits, states, ...). Half-precision outputs, as autocast gives them,
    are converted to float32 for the losses. Raises ValueError for inputs or outputs of any other form."""
    torch.clear_autocast_cache()  # it may hold the weights as they were before the optimiser's last step
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
    """The teachers' outputs, averaged. Leaves the teachers in eval mode."""
    outputs = []
    for teacher in as_list(teachers):
        teacher.eval()
        outputs.append(forward(teacher, inputs))
    means = tuple(torch.stack(parts).mean(dim=0) for parts in zip(*map(tensors_of, outputs), strict=True))
    return means if isinstance(outputs[0], tuple) else means[0]


def mean_over_ranks(tensors, examples: int) -> list[Tensor]:
    """Averages each tensor over the processes of torch.distributed, weighted by how many examples each process has, so
    that means over its examples become means over all examples; with one process, the tensors as they are. A tensor
    takes the averaged value but keeps its own graph: v is the same everywhere, so the mean of the processes'
    meta-gradients is that of the whole batch."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(tensors)
    means = []
    for tensor in tensors:
        at_least_float = torch.promote_types(tensor.dtype, torch.float32)
        total = examples * tensor.detach().to(at_least_float)
        count = torch.tensor(examples, dtype=torch.float32, device=tensor.device)
        distributed.all_reduce(total)
        distributed.all_reduce(count)
        mean = (total / count).to(tensor.dtype)
        if tensor.requires_grad:
            mean = tensor + (mean - tensor).detach()
        means.append(mean)
    return means


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


def tensors_of(outputs) -> tuple[Tensor, ...]:
    """Outputs as a tuple: (logits,), or (logits, states, ...)."""
    return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


def leaf(tensor: Tensor) -> Tensor:
    """The tensor's values, as the start of a new graph."""
    return tensor.detach().requires_grad_()


def each_tensor(change, values):
    """Applies `change` to each tensor of a tuple or a dict, or to the one tensor."""
    if isinstance(values, Mapping):
        return {name: change(tensor) for name, tensor in values.items()}
    if isinstance(values, tuple):
        return tuple(change(tensor) for tensor in values)
    return change(values)


def record(trace, **values):
    """Stores copies in the trace, if there is one. For a dict of tensors, also the norm of each."""
    if trace is None:
        return
    for name, value in values.items():
        trace[name] = each_tensor(lambda tensor: tensor.detach().clone(), value)
        if isinstance(value, dict):
            trace[f"{name}_norms"] = {part: tensor.detach().norm().item() for part, tensor in value.items()}
