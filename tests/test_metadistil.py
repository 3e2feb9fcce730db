"""The algorithm against oracles: closed forms, central differences, torch's own functions."""

import copy
import gc
import math
from functools import partial

import pytest
import torch
from conftest import shaken
from torch import nn
from torch.nn import functional as F

import metadistil
import models
from metadistil import hard_loss, kd_loss, meta_gradient, metadistil_step, pilot_update, real_update
from worked_example import Scalar

MODES = metadistil.MODES


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def relative_difference(found, expected):
    """The distance of two lists of tensors, relative to the length of the second."""
    found, expected = flat(found), flat(expected)
    return ((found - expected).norm() / expected.norm()).item()


def same(tensors, others):
    """Whether two lists of tensors are equal bit for bit."""
    return all(torch.equal(one, other) for one, other in zip(tensors, others, strict=True))


# ---- The losses


def torch_kd_loss(z_S, z_T, labels, alpha, temperature):
    """L_S by torch's own functions."""
    p_T = (z_T / temperature).softmax(dim=-1)
    soft = F.kl_div((z_S / temperature).log_softmax(dim=-1), p_T, reduction="batchmean")
    return alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(z_S, labels)


@pytest.mark.parametrize("alpha, temperature", [(0.0, 1.0), (0.3, 2.0), (1.0, 4.0)])
def test_kd_loss_equals_torchs_own_pieces(alpha, temperature):
    z_S, z_T, y = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    expected = torch_kd_loss(z_S, z_T, y, alpha, temperature)
    torch.testing.assert_close(kd_loss(z_S, z_T, y, alpha, temperature), expected)
    torch.testing.assert_close(kd_loss(z_S, None, y, alpha), F.cross_entropy(z_S, y))


def test_first_and_second_derivatives_of_kd_loss_in_both_networks_logits():
    z_S, z_T = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def loss(z_S, z_T):
        return kd_loss(z_S, z_T, torch.tensor([0, 2, 1, 1]), 0.7, 3.0)

    assert torch.autograd.gradcheck(loss, (z_S, z_T))
    assert torch.autograd.gradgradcheck(loss, (z_S, z_T))


def test_the_soft_gradient_is_the_difference_of_probabilities():
    """T (p_S − p_T) / B; and where both networks agree, everything is zero."""
    z_S, z_T, T = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3).double(), 2.0
    [found] = torch.autograd.grad(metadistil.soft_loss(z_S, z_T, T), z_S)
    expected = T * ((z_S / T).softmax(-1) - (z_T / T).softmax(-1)) / 4
    torch.testing.assert_close(found, expected.detach())
    z_T = z_S.detach().clone().requires_grad_()
    loss = metadistil.soft_loss(z_S, z_T, T)
    for tensor in (loss, *torch.autograd.grad(loss, (z_S, z_T))):
        assert tensor.abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kd_loss_is_finite_and_twice_differentiable_at_extreme_logits(dtype):
    extreme = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 1e4]], dtype=dtype)
    z_S, z_T = extreme.flip(0).requires_grad_(), extreme.clone().requires_grad_()
    loss = kd_loss(z_S, z_T, torch.tensor([1, 0, 2]), 0.5, 2.0)
    first = torch.autograd.grad(loss, (z_S, z_T), create_graph=True)
    second = torch.autograd.grad(sum((g * torch.randn_like(g)).sum() for g in first), (z_S, z_T))
    assert all(tensor.isfinite().all() for tensor in (loss, *first, *second))


@pytest.mark.parametrize("wrong, expected", [
    ({"alpha": -0.1}, "alpha from 0 to 1"), ({"alpha": 1.1}, "alpha from 0 to 1"),
    ({"temperature": 0.0}, "temperature above 0"), ({"temperature": float("nan")}, "temperature above 0"),
    ({"teacher_outputs": torch.zeros(2, 1)}, "one shape"),
    ({"labels": torch.tensor([0.0, 1.0])}, "class numbers"), ({"labels": torch.tensor([[0], [1]])}, "class numbers"),
    ({"labels": torch.eye(2)}, "class numbers"), ({"labels": torch.tensor([0, 1, 1])}, "class numbers"),
])  # fmt: skip
def test_kd_loss_neither_broadcasts_nor_guesses(wrong, expected):
    right = {"student_outputs": torch.zeros(2, 2), "teacher_outputs": torch.zeros(2, 2), "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=expected):
        kd_loss(**right | wrong)


# ---- Networks and losses that the oracles are tried on: cases (student, teachers, batch, quiz)


def exam(inputs, classes):
    """Inputs by name, with a random label each."""
    B = len(next(iter(inputs.values())))
    return inputs, torch.randint(classes, (B,))


def sentences(B):
    lengths = torch.randint(2, 7, (B, 1))
    mask = (torch.arange(6) < lengths).long()
    return exam({"input_ids": torch.randint(20, (B, 6)), "attention_mask": mask}, classes=3)


def encoder(layers, hidden):
    config = models.EncoderConfig(20, hidden, layers, 2, 2 * hidden, 12, num_labels=3)
    return shaken(models.Encoder(config))


def encoder_case(dtype):
    """Two teachers. All networks have dropout."""
    student, *teachers = encoder(1, 8), encoder(2, 12), encoder(1, 8)
    return student.to(dtype), [teacher.to(dtype) for teacher in teachers], sentences(5), sentences(4)


class WithStates(nn.Module):
    """An encoder that returns (logits, [CLS] states of those layers)."""

    def __init__(self, network, layers):
        super().__init__()
        self.network, self.layers = network, layers

    def forward(self, **inputs):
        return self.network(**inputs, layers=self.layers)


def states_case(dtype):
    student = WithStates(encoder(1, 8).to(dtype), (1,))
    teachers = [WithStates(encoder(2, 8).to(dtype), (2,)) for _ in range(2)]
    return student, teachers, sentences(5), sentences(4)


def resnet_case(dtype):
    batch, quiz = (exam({"images": torch.randn(B, 3, 8, 8, dtype=dtype)}, classes=4) for B in (9, 7))
    small, large = models.ResNetConfig(8, (3, 3, 4, 6), 4), models.ResNetConfig(14, (4, 4, 6, 8), 4)
    return shaken(models.ResNet(small)).to(dtype), [shaken(models.ResNet(large)).to(dtype)], batch, quiz


ALPHA, T, PILOT_LR = 0.6, 2.5, 0.3
SETTINGS = {"pilot_lr": PILOT_LR, "loss": partial(kd_loss, alpha=ALPHA, temperature=T)}
SAME_LOSS = partial(torch_kd_loss, alpha=ALPHA, temperature=T)  # by torch


def decoupled_kd_loss(z_S, z_T, labels, alpha=1.0, beta=4.0, temperature=2.0):
    """Zhao et al. 2022: the target class against the rest (α), and the other classes among themselves (β)."""
    target = F.one_hot(labels, z_S.shape[-1]).bool()

    def parts(z):
        p = (z / temperature).softmax(-1)
        rest = (z / temperature).masked_fill(target, -1e4).log_softmax(-1)
        return torch.stack([p[target], 1 - p[target]], dim=-1), rest

    (two_S, rest_S), (two_T, rest_T) = parts(z_S), parts(z_T)
    of_target = (two_T * (two_T.log() - two_S.log())).sum(-1)
    of_rest = (rest_T.exp() * (rest_T - rest_S)).sum(-1)
    return (alpha * of_target + beta * of_rest).mean() * temperature**2 + hard_loss(z_S, labels)


def states_loss(student_outputs, teacher_outputs, labels):
    """kd_loss of the logits, and the squared distance of the states."""
    return kd_loss(student_outputs, teacher_outputs, labels) + (student_outputs[1] - teacher_outputs[1]).square().mean()


# ---- The meta-gradient


@pytest.mark.parametrize("mode", MODES)
def test_meta_gradient_equals_the_closed_form_on_a_scalar_student(mode):
    """L_S = α T² KL(σ(tx/T) ‖ σ(sx/T)) + (1−α) CE, so with σ the logistic function

    dL_S/ds = α T x (σ(sx/T) − σ(tx/T)) + (1−α) x (σ(sx) − y),   ∂²L_S/∂t∂s = −α x² σ′(tx/T),
    dL_q/ds′ = x_q (σ(s′x_q) − y_q),   dL_q/dt = λ α x² σ′(tx/T) · dL_q/ds′.
    """
    s, t, x, y, x_q, y_q = 0.3, -0.8, 1.7, 1, -0.6, 1
    alpha, T, pilot_lr = 0.7, 3.0, 0.4

    def sigma(z):
        return 1 / (1 + math.exp(-z))

    def one_example(x, y):
        return torch.tensor([x], dtype=torch.float64), torch.tensor([y])

    s_prime = s - pilot_lr * (
        alpha * T * x * (sigma(s * x / T) - sigma(t * x / T)) + (1 - alpha) * x * (sigma(s * x) - y)
    )
    v = x_q * (sigma(s_prime * x_q) - y_q)
    expected = pilot_lr * alpha * x**2 * sigma(t * x / T) * (1 - sigma(t * x / T)) * v
    trace, loss = {}, partial(kd_loss, alpha=alpha, temperature=T)
    settings = {"pilot_lr": pilot_lr, "loss": loss, "mode": mode, "trace": trace}
    found = meta_gradient(Scalar(s), [Scalar(t)], one_example(x, y), one_example(x_q, y_q), **settings)
    assert found.grads[0].item() == pytest.approx(expected, rel=1e-14)
    assert trace["theta_S_prime"]["theta"].item() == pytest.approx(s_prime, rel=1e-14)
    assert trace["v"]["theta"].item() == pytest.approx(v, rel=1e-14)


@pytest.mark.parametrize("case", [encoder_case, resnet_case])
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_the_two_modes_agree(case, dtype, limit):
    networks = case(dtype)
    one, other = (meta_gradient(*networks, mode=mode, **SETTINGS).grads for mode in MODES)
    assert relative_difference(one, other) < limit


@torch.no_grad()
def plain_outputs(teachers, inputs):
    """The teachers' outputs in eval mode, averaged."""
    outputs = [teacher.eval()(**inputs) for teacher in teachers]
    if isinstance(outputs[0], tuple):
        return tuple(torch.stack(parts).mean(dim=0) for parts in zip(*outputs))
    return torch.stack(outputs).mean(dim=0)


def quiz_loss_after_pilot(student, teachers, batch, quiz, loss):
    """L_q(θ′_S(θ_T)), with the pilot by plain backward(): nothing of the module under test."""
    pupil = copy.deepcopy(student)
    for module in pupil.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    loss(pupil(**batch[0]), plain_outputs(teachers, batch[0]), batch[1]).backward()
    with torch.no_grad():
        for theta in pupil.parameters():
            if theta.grad is not None:
                theta -= PILOT_LR * theta.grad
        outputs = pupil(**quiz[0])
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return F.cross_entropy(logits, quiz[1])


def central_differences(function, thetas, directions, epsilon=3e-6):
    """The derivative of function() as each of the parameters moves in its direction."""
    derivatives = []
    for theta, direction in zip(thetas, directions, strict=True):
        start, values = theta.detach().clone(), []
        for step in (epsilon, -epsilon):
            theta.data = start + step * direction
            values.append(function())
        theta.data = start
        derivatives.append((values[0] - values[1]) / (2 * epsilon))
    return derivatives


@pytest.mark.parametrize("case, loss, plain_loss", [
    (encoder_case, SETTINGS["loss"], SAME_LOSS), (resnet_case, SETTINGS["loss"], SAME_LOSS),
    (encoder_case, decoupled_kd_loss, decoupled_kd_loss), (states_case, states_loss, states_loss),
], ids=["encoder", "resnet", "a loss of one's own", "states"])  # fmt: skip
def test_meta_gradient_equals_central_differences(case, loss, plain_loss):
    """Over each teacher parameter, in a random direction. Dropout is off, and BatchNorm sees the batch."""
    student, teachers, batch, quiz = case(torch.float64)
    theta_T = list(nn.ModuleList(teachers).parameters())
    directions = [torch.randn_like(theta) for theta in theta_T]
    quiz_loss = partial(quiz_loss_after_pilot, student, teachers, batch, quiz, plain_loss)
    expected = central_differences(quiz_loss, theta_T, directions)
    for mode in MODES:
        grads = meta_gradient(student, teachers, batch, quiz, pilot_lr=PILOT_LR, loss=loss, mode=mode).grads
        found = [(gradient * direction).sum() for gradient, direction in zip(grads, directions, strict=True)]
        assert relative_difference(found, expected) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_what_the_teacher_is_told_is_the_gradient_in_its_logits(mode):
    """For kd_loss it is (λ α / B) softmax(z_T/T) (ż_S − Σ softmax(z_T/T) ż_S), see notebook 03, section 5."""
    student, teachers, batch, quiz = encoder_case(torch.float64)
    trace = {}
    meta_gradient(student, teachers, batch, quiz, mode=mode, trace=trace, **SETTINGS)
    _, z_S_dot = metadistil.student_tangent(student, batch[0], trace["v"])
    p_T = (trace["teacher_logits"] / T).softmax(-1)
    expected = PILOT_LR * ALPHA * p_T * (z_S_dot - (p_T * z_S_dot).sum(-1, keepdim=True)) / len(p_T)
    assert relative_difference([trace["teacher_logits_gradient"]], [expected]) < 1e-12


def test_a_forgotten_create_graph_is_an_error_and_not_a_zero():
    """The detach in `pilot_update` makes it one. Without it θ′_S would have a graph, but none to the teacher."""
    student, teachers, batch, quiz = encoder_case(torch.float64)
    z_T = metadistil.leaf(plain_outputs(teachers, batch[0]))
    theta_S_prime = pilot_update(student, batch, z_T, PILOT_LR, create_graph=False)
    _, v = metadistil.quiz_gradient(student, theta_S_prime, quiz)
    with pytest.raises(RuntimeError, match="does not require grad"):
        metadistil.second_order(theta_S_prime, z_T, v)


@pytest.mark.parametrize("mode", MODES)
def test_a_student_that_does_not_listen_gives_its_teacher_nothing_to_learn(mode):
    settings = {"pilot_lr": 0.3, "mode": mode, "loss": lambda z_S, z_T, labels: hard_loss(z_S, labels)}
    assert flat(meta_gradient(*encoder_case(torch.float64), **settings).grads).abs().max() == 0


class WithFrozenState(nn.Module):
    """(logits, a state of a layer that no gradient reaches)."""

    def __init__(self):
        super().__init__()
        self.frozen, self.head = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 3)

    def forward(self, x):
        state = self.frozen(x)
        return self.head(state), state


def test_frozen_parameters_get_zeros_and_an_output_that_no_gradient_reaches_takes_no_part():
    batch, quiz = ((torch.randn(5, 3), torch.randint(3, (5,))) for _ in range(2))
    student, teacher = nn.Linear(3, 3), WithFrozenState()
    free = nn.Sequential(copy.deepcopy(teacher.frozen).requires_grad_(), teacher.head)
    found = meta_gradient(student, teacher, batch, quiz, **SETTINGS).grads
    expected = meta_gradient(student, free, batch, quiz, **SETTINGS).grads
    assert flat(found[:2]).abs().max() == 0 < flat(expected[:2]).abs().max()
    assert relative_difference(found[2:], expected[2:]) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_the_trace_holds_every_factor_of_the_chain_rule(mode):
    """As copies, without a graph."""
    student, teachers, batch, quiz = encoder_case(torch.float64)
    trace = {}
    result = meta_gradient(student, teachers, batch, quiz, mode=mode, trace=trace, **SETTINGS)
    moved = {name: theta - PILOT_LR * trace["pilot_gradient"][name] for name, theta in student.named_parameters()}
    torch.testing.assert_close(trace["theta_S_prime"], moved, check_stride=False)
    before = F.cross_entropy(student.eval()(**quiz[0]), quiz[1])
    torch.testing.assert_close([trace["quiz_loss_before"], trace["quiz_loss_after"]], [before, result.quiz_loss])
    inner_loss = torch_kd_loss(trace["student_logits"], trace["teacher_logits"], batch[1], ALPHA, T)
    torch.testing.assert_close(trace["inner_loss"], inner_loss)
    assert list(trace["meta_gradient"]) == [name for name, _ in nn.ModuleList(teachers).named_parameters()]
    assert same(trace["meta_gradient"].values(), result.grads)
    for name in ("pilot_gradient", "v", "meta_gradient"):
        norms = {layer: pytest.approx(tensor.norm().item()) for layer, tensor in trace[name].items()}
        assert trace[f"{name}_norms"] == norms
    for value in trace.values():
        parts = value.values() if isinstance(value, dict) else [value]
        assert not any(isinstance(part, torch.Tensor) and part.requires_grad for part in parts)
    for tensor in (*result.grads, *result.theta_S_prime.values()):
        tensor.zero_()
    assert all(flat(trace[name].values()).abs().max() > 0 for name in ("meta_gradient", "theta_S_prime"))


# ---- The updates


@pytest.mark.parametrize("mode", MODES)
def test_a_step_moves_the_teachers_down_the_quiz_and_then_the_student_with_their_help(mode):
    """With losses of one's own."""
    student, teachers, batch, quiz = encoder_case(torch.float64)
    twin, theta_T = copy.deepcopy(student), list(nn.ModuleList(teachers).parameters())
    before, expected = copy.deepcopy(theta_T), meta_gradient(student, teachers, batch, quiz, **SETTINGS)
    optimizers = torch.optim.SGD(student.parameters(), 0.1), torch.optim.SGD(theta_T, 10.0)
    settings = SETTINGS | {"mode": mode, "quiz_loss": lambda logits, labels: 2 * hard_loss(logits, labels)}
    torch.manual_seed(3)
    L_S, result = metadistil_step(student, teachers, batch, quiz, *optimizers, **settings)
    assert result.quiz_loss.item() == pytest.approx(2 * expected.quiz_loss.item())
    assert relative_difference(result.grads, [2 * gradient for gradient in expected.grads]) < 1e-9
    moved = [theta - old for theta, old in zip(theta_T, before)]
    assert relative_difference(moved, [-10 * gradient for gradient in result.grads]) < 1e-9
    assert meta_gradient(twin, teachers, batch, quiz, **SETTINGS).quiz_loss < expected.quiz_loss
    torch.manual_seed(3)  # the same dropout
    L_S_of_twin = real_update(twin, teachers, batch, torch.optim.SGD(twin.parameters(), 0.1), SETTINGS["loss"])
    assert L_S == L_S_of_twin and same(student.parameters(), twin.parameters())


def test_real_update_is_a_step_of_distillation_or_of_fine_tuning():
    """Against torch's own functions, with the same dropout; first with the teachers, then without."""
    student, teachers, batch, _ = encoder_case(torch.float64)
    theta_S = dict(student.named_parameters())
    for listened_to in (teachers, []):
        torch.manual_seed(3)
        z_S = student.train()(**batch[0])
        if listened_to:
            loss = SAME_LOSS(z_S, plain_outputs(teachers, batch[0]), batch[1])
        else:
            loss = F.cross_entropy(z_S, batch[1])
        gradients = torch.autograd.grad(loss, list(theta_S.values()), materialize_grads=True)
        expected = [(theta - 0.1 * gradient).detach() for theta, gradient in zip(theta_S.values(), gradients)]
        student.eval()
        torch.manual_seed(3)
        optimizer, trace = torch.optim.SGD(student.parameters(), lr=0.1), {}
        found = real_update(student, listened_to, batch, optimizer, SETTINGS["loss"], trace)
        torch.testing.assert_close([found, trace["real_loss"]], [loss.detach()] * 2)
        torch.testing.assert_close(trace["real_gradient"], dict(zip(theta_S, gradients)))
        torch.testing.assert_close([theta.detach() for theta in theta_S.values()], expected)


@pytest.mark.parametrize("mode", MODES)
def test_of_a_whole_step_only_the_real_update_moves_running_statistics(mode):
    student, teachers, batch, quiz = resnet_case(torch.float32)
    twin, of_teacher = copy.deepcopy(student), copy.deepcopy(list(teachers[0].buffers()))
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (student, teachers[0])]
    metadistil_step(student, teachers, batch, quiz, *optimizers, mode=mode, **SETTINGS)
    twin.train()(**batch[0])  # one forward pass in train mode, where the real update made one
    torch.testing.assert_close(dict(student.named_buffers()), dict(twin.named_buffers()))
    assert same(teachers[0].buffers(), of_teacher)


def test_as_many_gradients_as_parameters():
    teacher = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="zip"):
        metadistil.meta_update(teacher, [torch.ones(2, 3)], torch.optim.SGD(teacher.parameters(), 0.1))


@pytest.mark.parametrize("mode", MODES)
def test_no_graph_outlives_its_step(mode):
    """As many tensors are alive after 60 steps as after 20, and nothing that a step returns holds a graph."""
    student, teachers, quiz = Scalar(0.3), [Scalar(-0.8)], (torch.ones(2, dtype=torch.float64), torch.tensor([0, 1]))
    batch = torch.tensor([1.7, -0.3], dtype=torch.float64), torch.tensor([1, 0])
    optimizers = torch.optim.AdamW(student.parameters()), torch.optim.AdamW(teachers[0].parameters())
    alive = {}
    for step in range(1, 61):
        trace = {} if step % 10 == 0 else None
        loss, result = metadistil_step(student, teachers, batch, quiz, *optimizers, mode=mode, trace=trace, **SETTINGS)
        returned = (loss, result.quiz_loss, *result.grads, *result.theta_S_prime.values())
        assert not any(tensor.requires_grad for tensor in returned)
        if step in (20, 60):
            gc.collect()
            alive[step] = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    assert alive[20] == alive[60]
