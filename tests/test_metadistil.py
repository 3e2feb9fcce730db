"""The algorithm against oracles: closed forms, finite differences, torch's own functions."""

import copy
import gc
import types
from functools import partial

import pytest
import torch
from conftest import ROOT, shaken
from torch import nn
from torch.nn import functional as F

import metadistil
import models
from metadistil import hard_loss, kd_loss, meta_gradient, metadistil_step, pilot_update, real_update
from worked_example import Scalar

MODES = metadistil.MODES


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def relative_difference(one, other):
    one, other = flat(one), flat(other)
    return ((one - other).norm() / other.norm()).item()


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("alpha, temperature", [(0.0, 1.0), (0.3, 2.0), (1.0, 4.0)])
def test_kd_loss_equals_torchs_own_pieces(alpha, temperature):
    z_S, z_T, y = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    kl = F.kl_div((z_S / temperature).log_softmax(-1), (z_T / temperature).softmax(-1), reduction="batchmean")
    expected = alpha * temperature**2 * kl + (1 - alpha) * F.cross_entropy(z_S, y)
    torch.testing.assert_close(kd_loss(z_S, z_T, y, alpha, temperature), expected)


def test_kd_loss_gradients_in_both_networks_logits():
    z_S, z_T = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = torch.tensor([0, 2, 1, 1])
    assert torch.autograd.gradcheck(lambda s, t: kd_loss(s, t, y, 0.7, 3.0), (z_S, z_T))
    assert torch.autograd.gradgradcheck(lambda s, t: kd_loss(s, t, y, 0.7, 3.0), (z_S, z_T))


def test_soft_gradient_is_the_difference_of_probabilities():
    z_S, z_T, T = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3), 2.0
    (found,) = torch.autograd.grad(kd_loss(z_S, z_T, torch.zeros(4, dtype=torch.long), 1.0, T), z_S)
    torch.testing.assert_close(found, T * ((z_S / T).softmax(-1) - (z_T / T).softmax(-1)).detach() / 4)


def test_soft_term_and_its_gradients_are_zero_at_equality():
    z_S = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    z_T = z_S.detach().clone().requires_grad_()
    loss = kd_loss(z_S, z_T, torch.tensor([0, 1, 2, 0]), 1.0, 2.0)
    assert abs(loss.item()) < 1e-15
    assert all(g.abs().max() < 1e-15 for g in torch.autograd.grad(loss, (z_S, z_T)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kd_loss_is_finite_and_twice_differentiable_at_extreme_logits(dtype):
    extreme = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 1e4]], dtype=dtype)
    z_S, z_T = extreme.flip(0).requires_grad_(), extreme.clone().requires_grad_()
    loss = kd_loss(z_S, z_T, torch.tensor([1, 0, 2]), 0.5, 2.0)
    gradients = torch.autograd.grad(loss, (z_S, z_T), create_graph=True)
    second = torch.autograd.grad(sum((g * torch.randn_like(g)).sum() for g in gradients), (z_S, z_T))
    assert loss.isfinite() and all(tensor.isfinite().all() for tensor in (*gradients, *second))


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"alpha": 1.1}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_kd_loss_refuses_what_cannot_be(wrong):
    with pytest.raises(ValueError):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), **wrong)


def test_kd_loss_does_not_broadcast():
    with pytest.raises(ValueError, match="one shape"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]), torch.eye(2), torch.tensor([0, 1, 1])])
def test_labels_that_are_not_one_class_number_each_are_refused(labels):
    """Floats, (B, 1), soft labels (B, K), one too many: none is broadcast, none is guessed at."""
    for loss in (hard_loss, lambda z, y: kd_loss(z, z, y)):
        with pytest.raises(ValueError, match="class numbers"):
            loss(torch.zeros(2, 2), labels)


def test_without_a_teacher_kd_loss_is_the_cross_entropy():
    z_S, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(kd_loss(z_S, None, y, alpha=0.9), F.cross_entropy(z_S, y))


# ---------------------------------------------------------------- the meta-gradient


@pytest.mark.parametrize("mode", MODES)
def test_meta_gradient_equals_the_closed_form_on_a_scalar_student(mode):
    """L_S = α T² KL(σ(tx/T) ‖ σ(sx/T)) + (1−α) CE, so with σ the logistic function

    dL_S/ds = α T x (σ(sx/T) − σ(tx/T)) + (1−α) x (σ(sx) − y),   ∂²L_S/∂t∂s = −α x² σ′(tx/T),
    dL_q/ds′ = x_q (σ(s′x_q) − y_q),   dL_q/dt = λ α x² σ′(tx/T) · dL_q/ds′.
    """
    s, t, x, y, x_q, y_q = 0.3, -0.8, 1.7, 1, -0.6, 1
    alpha, T, pilot_lr = 0.7, 3.0, 0.4
    sigma = lambda z: 1 / (1 + torch.exp(torch.tensor(-z, dtype=torch.float64)).item())  # noqa: E731
    inner = alpha * T * x * (sigma(s * x / T) - sigma(t * x / T)) + (1 - alpha) * x * (sigma(s * x) - y)
    s_prime = s - pilot_lr * inner
    v = x_q * (sigma(s_prime * x_q) - y_q)
    expected = pilot_lr * alpha * x**2 * sigma(t * x / T) * (1 - sigma(t * x / T)) * v

    as_batch = lambda value, label: (torch.tensor([value], dtype=torch.float64), torch.tensor([label]))  # noqa: E731
    loss, trace = partial(kd_loss, alpha=alpha, temperature=T), {}
    settings = {"pilot_lr": pilot_lr, "loss": loss, "mode": mode, "trace": trace}
    found = meta_gradient(Scalar(s), [Scalar(t)], as_batch(x, y), as_batch(x_q, y_q), **settings)
    assert found.grads[0].item() == pytest.approx(expected, rel=1e-14)
    assert trace["theta_S_prime"]["theta"].item() == pytest.approx(s_prime, rel=1e-14)
    assert trace["v"]["theta"].item() == pytest.approx(v, rel=1e-14)


class Images(nn.Module):
    """A convolution with BatchNorm: the layer whose buffers the pilot could spoil."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.GELU(), nn.Flatten())
        self.head = nn.Linear(channels * 16, 4)

    def forward(self, x):
        return self.head(self.layers(x))


def encoder(layers, hidden):
    config = models.EncoderConfig(20, hidden, layers, 2, 2 * hidden, 12, num_labels=3)
    return shaken(models.Encoder(config))


def encoder_case(dtype):
    def exam(n):
        ids, mask = torch.randint(20, (n, 6)), (torch.arange(6) < torch.randint(2, 7, (n, 1))).long()
        return {"input_ids": ids, "attention_mask": mask}, torch.randint(3, (n,))

    return encoder(1, 8).to(dtype), [encoder(2, 12).to(dtype), encoder(1, 8).to(dtype)], exam(5), exam(4)


def image_case(dtype):
    def exam(n):
        return torch.randn(n, 3, 6, 6, dtype=dtype), torch.randint(4, (n,))

    return shaken(Images(3)).to(dtype), [shaken(Images(5)).to(dtype)], exam(6), exam(5)


def resnet_case(dtype):
    def exam(n):
        return {"images": torch.randn(n, 3, 8, 8, dtype=dtype)}, torch.randint(4, (n,))

    small, large = models.ResNetConfig(8, (3, 3, 4, 6), 4), models.ResNetConfig(14, (4, 4, 6, 8), 4)
    return shaken(models.ResNet(small)).to(dtype), [shaken(models.ResNet(large)).to(dtype)], exam(9), exam(7)


ALPHA, T, PILOT_LR = 0.6, 2.5, 0.3
SETTINGS = {"pilot_lr": PILOT_LR, "loss": partial(kd_loss, alpha=ALPHA, temperature=T)}


@pytest.mark.parametrize("case", [encoder_case, image_case, resnet_case])
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_the_two_modes_agree(case, dtype, limit):
    networks = case(dtype)
    one, other = (meta_gradient(*networks, mode=mode, **SETTINGS).grads for mode in MODES)
    assert relative_difference(one, other) < limit


def quiz_loss_after_pilot(student, teachers, batch, quiz, pilot_lr=PILOT_LR, alpha=ALPHA, temperature=T):
    """L_q(θ′_S(θ_T)) with the pilot by plain backward() and torch's own losses: nothing of the module under test."""
    pupil = copy.deepcopy(student)
    for module in pupil.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    run = lambda model, x: model(**x) if isinstance(x, dict) else model(x)  # noqa: E731
    with torch.no_grad():
        z_T = torch.stack([run(teacher.eval(), batch[0]) for teacher in teachers]).mean(0) / temperature
    z_S = run(pupil, batch[0])
    soft = F.kl_div((z_S / temperature).log_softmax(-1), z_T.softmax(-1), reduction="batchmean") * temperature**2
    (alpha * soft + (1 - alpha) * F.cross_entropy(z_S, batch[1])).backward()
    with torch.no_grad():
        for parameter in pupil.parameters():
            if parameter.grad is not None:
                parameter -= pilot_lr * parameter.grad
        return F.cross_entropy(run(pupil, quiz[0]), quiz[1]).item()


@pytest.mark.parametrize("case", [encoder_case, image_case, resnet_case])
@pytest.mark.parametrize("mode", MODES)
def test_meta_gradient_equals_central_differences_over_teacher_parameters(case, mode):
    student, teachers, batch, quiz = case(torch.float64)
    grads = meta_gradient(student, teachers, batch, quiz, mode=mode, **SETTINGS).grads
    theta_T = [parameter for teacher in teachers for parameter in teacher.parameters()]
    epsilon, generator, found, expected = 3e-6, torch.Generator().manual_seed(1), [], []
    for parameter, gradient in zip(theta_T, grads, strict=True):
        for place in torch.randint(parameter.numel(), (3,), generator=generator).tolist():
            losses = []
            for shift in (epsilon, -epsilon):
                parameter.data.view(-1)[place] += shift
                losses.append(quiz_loss_after_pilot(student, teachers, batch, quiz))
                parameter.data.view(-1)[place] -= shift
            found.append(gradient.view(-1)[place])
            expected.append(torch.tensor((losses[0] - losses[1]) / (2 * epsilon), dtype=torch.float64))
    assert relative_difference(found, expected) < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_what_the_teacher_is_told_is_the_gradient_in_its_logits(mode):
    """For kd_loss it is (λ α / B) softmax(z_T/T) (ż_S − Σ softmax(z_T/T) ż_S), see notebook 03, section 5."""
    student, teachers, batch, quiz = encoder_case(torch.float64)
    meta_gradient(student, teachers, batch, quiz, mode=mode, trace=(trace := {}), **SETTINGS)
    _, z_S_dot = metadistil.student_tangent(student, batch[0], trace["v"])
    p_T = (trace["teacher_logits"] / T).softmax(-1)
    expected = PILOT_LR * ALPHA * p_T * (z_S_dot - (p_T * z_S_dot).sum(-1, keepdim=True)) / len(p_T)
    assert relative_difference([trace["teacher_logits_gradient"]], [expected]) < 1e-12


def test_the_oracle_sees_a_first_order_shortcut():
    """Dropping create_graph must not pass for a meta-gradient: it has none to give."""
    student, teachers, batch, _ = encoder_case(torch.float64)
    z_T = metadistil.teach(teachers, batch[0])
    assert all(theta.requires_grad for theta in pilot_update(student, batch, z_T, 0.1).values())
    cut = pilot_update(student, batch, z_T, 0.1, create_graph=False)
    assert not any(theta.requires_grad for theta in cut.values())
    with pytest.raises(RuntimeError):
        torch.autograd.grad(sum(theta.sum() for theta in cut.values()), list(teachers[0].parameters()))


def with_mistakes(*mistakes):
    """metadistil.py with some of its text replaced, as a module of its own."""
    text, module = (ROOT / "metadistil.py").read_text(encoding="utf-8"), types.ModuleType("mistaken")
    for right, wrong in mistakes:
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    exec(compile(text, "mistaken", "exec"), module.__dict__)
    return module


FORGOTTEN_GRAPH = ("create_graph=create_graph", "create_graph=False")
FORGOTTEN_DETACH = ("theta.detach() - pilot_lr", "theta - pilot_lr")


def test_a_forgotten_create_graph_is_an_error_and_not_a_zero():
    """The detach in `pilot_update` makes it one: without both, the teacher's gradient is zero, and nobody is told."""
    networks = encoder_case(torch.float64)
    with pytest.raises(RuntimeError, match="does not require grad"):
        with_mistakes(FORGOTTEN_GRAPH).meta_gradient(*networks, pilot_lr=0.3)
    silent = with_mistakes(FORGOTTEN_GRAPH, FORGOTTEN_DETACH).meta_gradient(*networks, pilot_lr=0.3)
    assert flat(silent.grads).abs().max() == 0 < flat(meta_gradient(*networks, pilot_lr=0.3).grads).abs().max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("other", [{"alpha": 0.3}, {"temperature": 1.0}])
def test_the_loss_handed_over_reaches_pilot_and_real_update(mode, other):
    """Another setting changes the meta-gradient and, with a teacher that stays, where the student ends."""
    settings, found = {"alpha": ALPHA, "temperature": T}, []
    for changed in ({}, other):
        student, teachers, batch, quiz = encoder_case(torch.float64)
        optimizers = torch.optim.SGD(student.parameters(), 0.1), torch.optim.SGD(teachers[0].parameters(), 0.0)
        loss = partial(kd_loss, **settings | changed)
        torch.manual_seed(0)
        _, result = metadistil_step(student, teachers, batch, quiz, *optimizers, pilot_lr=0.3, loss=loss, mode=mode)
        found.append((result.grads, list(student.parameters())))
    assert relative_difference(found[0][0], found[1][0]) > 1e-3
    assert relative_difference(found[0][1], found[1][1]) > 1e-7


@pytest.mark.parametrize("mode", MODES)
def test_what_is_handed_over_is_called_wherever_it_belongs(mode):
    """loss: in the pilot, in jvp's loss head, in the real update. quiz_loss: at the quiz."""
    student, teachers, batch, quiz = encoder_case(torch.float64)
    optimizers, calls = [torch.optim.SGD(network.parameters(), 0.1) for network in (student, teachers[0])], []

    def loss(student_outputs, teacher_outputs, labels):
        calls.append("L_S")
        return kd_loss(student_outputs, teacher_outputs, labels)

    def quiz_loss(logits, labels):
        calls.append("L_q")
        return 2 * hard_loss(logits, labels)

    _, found = metadistil_step(
        student, teachers, batch, quiz, *optimizers, pilot_lr=0.3, loss=loss, quiz_loss=quiz_loss, mode=mode
    )
    assert calls == ["L_S", "L_q", *["L_S"] * (mode == "jvp"), "L_S"]
    assert found.quiz_loss > 1.5 * meta_gradient(student, teachers, batch, quiz, pilot_lr=0.3).quiz_loss


@pytest.mark.parametrize("mode", MODES)
def test_a_student_that_does_not_listen_gives_its_teacher_nothing_to_learn(mode):
    deaf = SETTINGS | {"loss": partial(kd_loss, alpha=0.0)}
    assert flat(meta_gradient(*encoder_case(torch.float64), mode=mode, **deaf).grads).abs().max() == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [encoder_case, image_case, resnet_case])
def test_meta_gradient_touches_neither_student_nor_teacher(case, mode):
    student, teachers, batch, quiz = case(torch.float32)
    student.train()
    before = [copy.deepcopy(network.state_dict()) for network in (student, *teachers)]
    meta_gradient(student, teachers, batch, quiz, mode=mode, trace={}, **SETTINGS)
    for network, state in zip((student, *teachers), before):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(module.training for module in student.modules())


def test_batchnorm_sees_the_batch_in_the_pilot():
    student, teachers, batch, _ = image_case(torch.float64)
    z_T = metadistil.teach(teachers, batch[0])
    before = pilot_update(student, batch, z_T, 0.1)
    for buffer in (student.layers[1].running_mean, student.layers[1].running_var):
        buffer.fill_(17.0)
    after = pilot_update(student, batch, z_T, 0.1)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("mode", MODES)
def test_of_a_whole_step_only_the_real_update_moves_running_statistics(mode):
    student, teachers, batch, quiz = resnet_case(torch.float32)
    twin, buffers = copy.deepcopy(student), [buffer.clone() for buffer in teachers[0].buffers()]
    optimizers = [torch.optim.SGD(list(module.parameters()), 0.1) for module in (student, teachers[0])]
    metadistil_step(student, teachers, batch, quiz, *optimizers, mode=mode, **SETTINGS)
    twin.train()(**batch[0])  # one forward pass in train mode, where the real update made one
    for (name, found), expected in zip(student.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)
    assert all(torch.equal(now, before) for now, before in zip(teachers[0].buffers(), buffers, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_dropout_is_off_in_pilot_and_quiz(mode):
    networks = encoder_case(torch.float64)
    networks[0].train()
    one, two = (meta_gradient(*networks, mode=mode, **SETTINGS).grads for _ in range(2))
    assert torch.equal(flat(one), flat(two))


def test_frozen_teacher_parameters_get_zeros():
    student, teachers, batch, quiz = encoder_case(torch.float64)
    expected = meta_gradient(student, teachers, batch, quiz, **SETTINGS).grads
    teachers[0].words.weight.requires_grad_(False)
    found = meta_gradient(student, teachers, batch, quiz, **SETTINGS).grads
    assert found[0].abs().max() == 0 < expected[0].abs().max()
    assert relative_difference(found[1:], expected[1:]) < 1e-12


class WithFrozenState(nn.Module):
    """(logits, a state of a layer that no gradient reaches)."""

    def __init__(self):
        super().__init__()
        self.frozen, self.head = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 3)

    def forward(self, x):
        state = self.frozen(x)
        return self.head(state), state


def test_an_output_that_no_gradient_reaches_takes_no_part():
    torch.manual_seed(0)
    batch, quiz = ((torch.randn(5, 3), torch.randint(3, (5,))) for _ in range(2))
    student, teacher = nn.Linear(3, 3), WithFrozenState()
    found = meta_gradient(student, teacher, batch, quiz, **SETTINGS).grads
    of_logits = nn.Sequential(teacher.frozen, teacher.head)
    expected = meta_gradient(student, of_logits, batch, quiz, **SETTINGS).grads
    assert relative_difference(found, expected) < 1e-6 and found[2].abs().max() > 0


@pytest.mark.parametrize("mode", MODES)
def test_trace_holds_every_factor_of_the_chain_rule(mode):
    student, teachers, batch, quiz = encoder_case(torch.float64)
    result = meta_gradient(student, teachers, batch, quiz, mode=mode, trace=(trace := {}), **SETTINGS)
    theta_S = dict(student.named_parameters())
    for name, theta in theta_S.items():
        expected = theta - PILOT_LR * trace["pilot_gradient"][name]
        torch.testing.assert_close(trace["theta_S_prime"][name], expected.detach())
    with torch.no_grad():
        torch.testing.assert_close(trace["quiz_loss_before"], F.cross_entropy(student.eval()(**quiz[0]), quiz[1]))
        loss = kd_loss(trace["student_logits"], trace["teacher_logits"], batch[1], ALPHA, T)
    torch.testing.assert_close(trace["inner_loss"], loss)
    torch.testing.assert_close(trace["quiz_loss_after"], result.quiz_loss)
    assert relative_difference(trace["meta_gradient"].values(), result.grads) == 0
    for name in ("pilot_gradient", "v", "meta_gradient"):
        assert trace[name + "_norms"] == {layer: pytest.approx(t.norm().item()) for layer, t in trace[name].items()}
    tensors = [t for value in trace.values() if not isinstance(value, float) for t in (value.values() if isinstance(value, dict) else [value])]
    assert not any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)  # no graph outlives the step


def test_no_teacher_is_refused():
    student, _, batch, quiz = encoder_case(torch.float32)
    with pytest.raises(ValueError, match="at least one teacher"):
        meta_gradient(student, [], batch, quiz, **SETTINGS)


def test_unknown_mode():
    with pytest.raises(ValueError, match="second_order"):
        meta_gradient(*encoder_case(torch.float32), mode="third_order", **SETTINGS)


# ---------------------------------------------------------------- the updates


def test_meta_update_steps_down_the_quiz():
    student, teachers, batch, quiz = encoder_case(torch.float64)
    theta_T = list(nn.ModuleList(teachers).parameters())
    optimizer, before = torch.optim.SGD(theta_T, lr=1.0), [theta.detach().clone() for theta in theta_T]
    result = meta_gradient(student, teachers, batch, quiz, **SETTINGS)
    metadistil.meta_update(teachers, result.grads, optimizer)
    moved = [theta.detach() - old for theta, old in zip(theta_T, before)]
    assert relative_difference(moved, [-g for g in result.grads]) < 1e-9
    assert meta_gradient(student, teachers, batch, quiz, **SETTINGS).quiz_loss < result.quiz_loss


def test_real_update_is_a_step_of_distillation_or_of_fine_tuning():
    student, teachers, batch, _ = encoder_case(torch.float64)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for listened_to in (teachers, []):
        theta_S = dict(student.named_parameters())
        z_S = student(**batch[0])
        with torch.no_grad():
            z_T = torch.stack([teacher.eval()(**batch[0]) for teacher in teachers]).mean(0)
        loss = kd_loss(z_S, z_T, batch[1], ALPHA, T) if listened_to else F.cross_entropy(z_S, batch[1])
        gradients = torch.autograd.grad(loss, list(theta_S.values()), materialize_grads=True)
        expected = {name: (p - 0.1 * g).detach() for (name, p), g in zip(theta_S.items(), gradients)}
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        found = real_update(student, listened_to, batch, optimizer, SETTINGS["loss"], trace := {})
        torch.testing.assert_close(found, loss.detach())
        torch.testing.assert_close(trace["real_loss"], found)
        torch.testing.assert_close(trace["real_gradient"], dict(zip(theta_S, gradients)))
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])


def test_a_step_with_a_teacher_that_does_not_move_is_kd():
    student, teachers, batch, quiz = encoder_case(torch.float64)
    other = copy.deepcopy(student)
    for pupil, rate in ((student, 0.0), (other, None)):
        torch.manual_seed(3)  # the same dropout
        optimizer = torch.optim.AdamW(pupil.parameters(), lr=0.01)
        if rate is None:
            real_update(pupil, teachers, batch, optimizer, SETTINGS["loss"])
        else:
            still = torch.optim.SGD(nn.ModuleList(teachers).parameters(), lr=rate)
            metadistil_step(pupil, teachers, batch, quiz, optimizer, still, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), other.parameters()))


def test_real_update_uses_the_improved_teacher():
    student, teachers, batch, quiz = encoder_case(torch.float64)
    optimizers = torch.optim.SGD(student.parameters(), 0.1), torch.optim.SGD(nn.ModuleList(teachers).parameters(), 100.0)
    seen = []
    hook = teachers[0].classifier.register_forward_hook(lambda *_: seen.append(teachers[0].classifier.bias.detach().clone()))
    metadistil_step(student, teachers, batch, quiz, *optimizers, **SETTINGS)
    hook.remove()
    assert len(seen) == 2 and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("mode", MODES)
def test_no_graph_outlives_its_step(mode):
    """As many tensors are alive after 200 steps as after 20, and nothing that a step returns holds a graph."""
    torch.manual_seed(0)
    student, teachers, quiz = Scalar(0.3), [Scalar(-0.8)], (torch.ones(2, dtype=torch.float64), torch.tensor([0, 1]))
    batch = torch.tensor([1.7, -0.3], dtype=torch.float64), torch.tensor([1, 0])
    optimizers = torch.optim.AdamW(student.parameters()), torch.optim.AdamW(teachers[0].parameters())
    alive = {}
    for step in range(1, 201):
        trace = {} if step % 10 == 0 else None
        loss, result = metadistil_step(student, teachers, batch, quiz, *optimizers, mode=mode, trace=trace, **SETTINGS)
        assert not any(tensor.requires_grad for tensor in (loss, result.quiz_loss, *result.grads, *result.theta_S_prime.values()))
        if step in (20, 200):
            gc.collect()
            alive[step] = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    assert alive[20] == alive[200]


# ---------------------------------------------------------------- a loss of one's own, states, parts, frozen teachers


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


class WithStates(nn.Module):
    """An encoder that returns (logits, [CLS] states of those layers)."""

    def __init__(self, network, layers):
        super().__init__()
        self.network, self.layers = network, layers

    def forward(self, **inputs):
        return self.network(**inputs, layers=self.layers)


def patient_case(dtype):
    """Two teachers and a student that return (logits, hidden states)."""
    _, _, batch, quiz = encoder_case(dtype)
    student, *teachers = (encoder(layers, 8).to(dtype) for layers in (2, 3, 3))
    return WithStates(student, (1, 2)), [WithStates(teacher, (1, 3)) for teacher in teachers], batch, quiz


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case, loss", [(encoder_case, decoupled_kd_loss), (patient_case, states_loss)])
def test_with_a_loss_of_ones_own_the_meta_gradient_equals_central_differences(case, loss, mode):
    student, teachers, batch, quiz = case(torch.float64)
    found = meta_gradient(student, teachers, batch, quiz, pilot_lr=0.3, loss=loss, mode=mode).grads
    theta_T = list(nn.ModuleList(teachers).parameters())
    directions = [torch.randn_like(theta) for theta in theta_T]
    expected = sum((gradient * direction).sum() for gradient, direction in zip(found, directions)).item()

    def quiz_loss():
        pupil = copy.deepcopy(student).eval()
        outputs = [teacher.eval()(**batch[0]) for teacher in teachers]
        z_T = outputs[0].detach() * 0.5 + outputs[1].detach() * 0.5 if isinstance(outputs[0], torch.Tensor) else tuple(
            torch.stack(parts).mean(0).detach() for parts in zip(*outputs))  # fmt: skip
        loss(pupil(**batch[0]), z_T, batch[1]).backward()
        with torch.no_grad():
            for theta in pupil.parameters():
                theta -= 0.3 * (0 if theta.grad is None else theta.grad)
            outputs = pupil(**quiz[0])
            return F.cross_entropy(outputs if isinstance(outputs, torch.Tensor) else outputs[0], quiz[1]).item()

    losses, epsilon = [], 1e-5
    for sign in (1, -2):
        with torch.no_grad():
            for theta, direction in zip(theta_T, directions):
                theta.add_(sign * epsilon * direction)
        losses.append(quiz_loss())
    assert (losses[0] - losses[1]) / (2 * epsilon) == pytest.approx(expected, rel=1e-5)


def test_a_frozen_teacher_hears_the_quiz_and_the_student_learns_as_in_kd():
    results = []
    for frozen in (True, False):
        torch.manual_seed(1)
        student, teachers, batch, quiz = encoder_case(torch.float32)
        optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
        theta_T = list(nn.ModuleList(teachers).requires_grad_(False).parameters())
        if frozen:
            before = [theta.clone() for theta in theta_T]
            pair = (optimizer, torch.optim.AdamW(theta_T, lr=0.1))
            _, result = metadistil_step(student, teachers, batch, quiz, *pair, pilot_lr=0.1)
            assert all(gradient.eq(0).all() for gradient in result.grads) and result.quiz_loss > 0
            assert all(map(torch.equal, before, theta_T))
        else:
            real_update(student, teachers, batch, optimizer)
        results.append(list(student.parameters()))
    assert all(map(torch.equal, *results))


def test_as_many_gradients_as_parameters():
    teacher = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="zip"):
        metadistil.meta_update(teacher, [torch.ones(2, 3)], torch.optim.SGD(teacher.parameters(), 0.1))
