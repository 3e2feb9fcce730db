"""One short answer to notebooks/exercise.md: MetaDistil for plain tensors and one teacher, without any comfort.

It proves that the path can be walked: it passes all six steps. tests/test_exercise.py also makes wrong files out of it.
Whoever wants to find the answers alone does not read on.
"""

import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

# ---- Step 1


def kd_loss(student_logits, teacher_logits, labels, alpha=0.5, temperature=2.0):
    """L_S = α T² KL(softmax(z_T/T) ‖ softmax(z_S/T)) + (1 − α) CE(z_S, y) -> scalar."""
    log_p_T = F.log_softmax(teacher_logits / temperature, dim=-1)  # (B, K)
    log_p_S = F.log_softmax(student_logits / temperature, dim=-1)  # (B, K)
    kl = (log_p_T.exp() * (log_p_T - log_p_S)).sum(dim=-1)  # (B,)
    return alpha * temperature**2 * kl.mean() + (1 - alpha) * F.cross_entropy(student_logits, labels)


# ---- Step 2


def logits_at(student, theta, inputs):
    """The student's logits with theta in place of its parameters, in the mode of pilot and quiz."""
    for module in student.modules():
        module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    return functional_call(student, (theta, buffers), (inputs,))


def pilot_update(student, batch, teacher_logits, pilot_lr, loss=kd_loss):
    """θ′_S = θ_S − λ ∇_{θ_S} L_S, by parameter name, differentiable in the teacher's logits."""
    inputs, labels = batch
    theta_S = dict(student.named_parameters())
    L_S = loss(logits_at(student, theta_S, inputs), teacher_logits, labels)
    gradients = torch.autograd.grad(L_S, list(theta_S.values()), create_graph=True)
    return {name: theta - pilot_lr * gradient for (name, theta), gradient in zip(theta_S.items(), gradients)}


# ---- Step 3


def quiz_gradient(student, theta_S_prime, quiz):
    """L_q = CE(f(x_q; θ′_S), y_q), and v = ∇_{θ′_S} L_q by parameter name."""
    inputs, labels = quiz
    theta = {name: value.detach().requires_grad_() for name, value in theta_S_prime.items()}
    L_q = F.cross_entropy(logits_at(student, theta, inputs), labels)
    v = torch.autograd.grad(L_q, list(theta.values()))
    return L_q.detach(), dict(zip(theta, v))


# ---- Steps 4 and 5


def meta_gradient(student, teacher, batch, quiz, *, pilot_lr, loss=kd_loss, mode="second_order"):
    """L_q and ∇_{θ_T} L_q, one tensor per parameter of the teacher."""
    z_T = teacher.eval()(batch[0])  # (B, K)
    theta_S_prime = pilot_update(student, batch, z_T, pilot_lr, loss)
    L_q, v = quiz_gradient(student, theta_S_prime, quiz)
    theta_T = list(teacher.parameters())
    if mode == "second_order":
        grads = torch.autograd.grad(list(theta_S_prime.values()), theta_T, [v[name] for name in theta_S_prime])
    else:
        dL_dz_T = through_tangent(student, batch, z_T, v, pilot_lr, loss)
        grads = torch.autograd.grad(z_T, theta_T, dL_dz_T)
    return L_q, grads


def through_tangent(student, batch, z_T, v, pilot_lr, loss):
    """∂L_q/∂z_T (B, K), the gradient in z_T of −λ ⟨ż_S, ∂L_S/∂z_S⟩ with ż_S = J_S v held fixed."""
    inputs, labels = batch
    theta_S = {name: theta.detach() for name, theta in student.named_parameters()}
    z_S, z_S_dot = jvp(lambda theta: logits_at(student, theta, inputs), (theta_S,), (v,))
    z_S, z_T = z_S.detach().requires_grad_(), z_T.detach().requires_grad_()
    (dL_dz_S,) = torch.autograd.grad(loss(z_S, z_T, labels), z_S, create_graph=True)
    (dL_dz_T,) = torch.autograd.grad(dL_dz_S, z_T, -pilot_lr * z_S_dot.detach())
    return dL_dz_T


# ---- Step 6


def meta_update(teacher, grads, teacher_optimizer):
    """θ_T ← θ_T − μ ∇_{θ_T} L_q."""
    for theta, gradient in zip(teacher.parameters(), grads):
        theta.grad = gradient
    teacher_optimizer.step()
    teacher_optimizer.zero_grad()


def real_update(student, teacher, batch, student_optimizer, loss=kd_loss):
    """θ_S ← θ_S − η ∇_{θ_S} L_S(x; θ_S, θ_T) -> L_S before the step."""
    inputs, labels = batch
    with torch.no_grad():
        z_T = teacher.eval()(inputs)
    L_S = loss(student.train()(inputs), z_T, labels)
    student_optimizer.zero_grad()
    L_S.backward()
    student_optimizer.step()
    return L_S.detach()


def metadistil_step(
    student, teacher, batch, quiz, student_optimizer, teacher_optimizer, *, pilot_lr, loss=kd_loss, mode="second_order"
):
    """One turn of Algorithm 1 -> (L_S of the real update, what `meta_gradient` found)."""
    found = meta_gradient(student, teacher, batch, quiz, pilot_lr=pilot_lr, loss=loss, mode=mode)
    meta_update(teacher, found[1], teacher_optimizer)
    L_S = real_update(student, teacher, batch, student_optimizer, loss)
    return L_S, found
