"""The six steps of notebooks/exercise.md, checked by the project's own oracles.

`MINE=my_metadistil.py pytest tests/test_exercise.py -k step3` checks step 3 of that file; without MINE, and without -k,
all steps of our own metadistil.py. Whatever fails ends with a hint.

Steps 2 to 5, and the updates of step 6, are handed our own kd_loss as `loss`. So each step is judged by itself.
"""

import copy
import importlib.util
import math
import os
import re
import subprocess
import sys
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT, shaken
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import metadistil
import train

MINE = os.environ.get("MINE")
LN3 = math.log(3)


# ---------------------------------------------------------------- the file under test


@pytest.fixture(scope="session")
def mine():
    """The module under test: the file that MINE names, or else our own metadistil.py."""
    if MINE is None:
        return metadistil
    if not Path(MINE).is_file():
        pytest.fail(f"MINE={MINE}: expected a Python file there", pytrace=False)
    specification = importlib.util.spec_from_file_location("mine", MINE)
    module, trouble = importlib.util.module_from_spec(specification), None
    try:
        specification.loader.exec_module(module)
    except Exception:
        trouble = traceback.format_exc(limit=-1)
    if trouble:
        pytest.fail(f"{MINE} cannot be imported:\n{trouble}", pytrace=False)
    return module


def function(mine, name, step):
    """The function of that name in the module under test."""
    if not hasattr(mine, name):
        pytest.fail(f"{MINE} has no {name}: step {step} of notebooks/exercise.md says what to write", pytrace=False)
    return getattr(mine, name)


@pytest.fixture
def kd_loss(mine):
    return function(mine, "kd_loss", 1)


@pytest.fixture
def pilot_update(mine):
    return function(mine, "pilot_update", 2)


@pytest.fixture
def quiz_gradient(mine):
    return function(mine, "quiz_gradient", 3)


@pytest.fixture
def meta_gradient(mine):
    return function(mine, "meta_gradient", 4)


@pytest.fixture
def real_update(mine):
    return function(mine, "real_update", 6)


@pytest.fixture
def metadistil_step(mine):
    return function(mine, "metadistil_step", 6)


# ---------------------------------------------------------------- how a test fails


PARAMETERS = (
    "write the new values into a dict of your own; nothing may be changed in place, no optimiser may step here."
)
BUFFERS = (
    "a forward pass in train mode moves BatchNorm's running_mean: eval mode for the teacher; for the student in pilot "
    "and quiz, hand functional_call clones of the buffers."
)
GRAD = "take gradients by torch.autograd.grad, which returns them; .backward() leaves them in .grad."
CREATE_GRAPH = (
    "θ′_S knows nothing of the teacher: was create_graph=True forgotten where the gradient of L_S is taken, or was the "
    "teacher's output detached?"
)
TEACHER_PATH = (
    "there is no way back to the teacher: was its output detached, or computed under torch.no_grad(), or was "
    "create_graph=True forgotten (in the pilot; in mode jvp where ∂L_S/∂z_S is taken)?"
)
DROPOUT = (
    "the same call gave two results, so dropout is on: the teacher has to be in eval mode, and in pilot and quiz "
    "every module of the student but BatchNorm."
)
BATCH_STATISTICS = (
    "BatchNorm used its running averages: in pilot and quiz it stays in train mode, with the statistics of the batch, "
    "while all other modules are in eval mode."
)


def fail(what, hint):
    """Fail with what was found, and a hint."""
    __tracebackhide__ = True
    pytest.fail(f"{what}\nHint: {hint}")


def flat(values):
    """A number, a tensor, a list of tensors or a dict of tensors by name, as one vector."""
    if isinstance(values, dict):
        values = [values[name] for name in sorted(values)]
    if not isinstance(values, (list, tuple)):
        values = [values]
    return torch.cat([torch.as_tensor(value, dtype=torch.float64).detach().flatten() for value in values])


def agree(found, expected, hint, tolerance=1e-9):
    """Fail unless the two agree to that relative tolerance."""
    __tracebackhide__ = True
    if isinstance(expected, dict):
        names = sorted(found) if isinstance(found, dict) else type(found).__name__
        if names != sorted(expected):
            fail(f"expected a dict with the keys {sorted(expected)}, found {names}", "one tensor by parameter name.")
    found, expected = flat(found), flat(expected)
    if found.shape != expected.shape:
        fail(f"expected {len(expected)} number(s), found {len(found)}", hint)
    difference = found - expected
    if not difference.norm() <= tolerance * expected.norm() + 1e-12:  # not: of NaN no comparison holds
        worst = difference.abs().argmax()
        where = f", in number {worst + 1} of {len(found)}, where they differ most" if len(found) > 1 else ""
        fail(f"expected {expected[worst]:.6g}, found {found[worst]:.6g}{where}", hint)


@contextmanager
def hinted(hint):
    """An error of torch's inside ends with the hint; the traceback shows the line where it came up."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(f"Hint: {hint}")
        raise


def check_unchanged(network, before, whose):
    """Fail if a parameter, a buffer or a `.grad` of the network is not what it was, `before` a copy of state_dict()."""
    __tracebackhide__ = True
    buffers = {name for name, _ in network.named_buffers()}
    for name, tensor in network.state_dict().items():
        if not torch.equal(tensor, before[name]):
            fail(f"{whose} has another {name} than before", BUFFERS if name in buffers else PARAMETERS)
    if any(theta.grad is not None for theta in network.parameters()):
        fail(f"{whose} has something in .grad", GRAD)


# ---------------------------------------------------------------- networks and oracles


class Line(nn.Module):
    """Logits (0, θ·x), (B, D) -> (B, 2): so small that a pencil finds every derivative."""

    def __init__(self, *theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x):
        score = x @ self.theta
        return torch.stack([torch.zeros_like(score), score], dim=-1)


def one_example(*x):
    """A batch of the one example x, its label 1."""
    return torch.tensor([x], dtype=torch.float64), torch.tensor([1])


def scalar_case():
    """x = x_q = y = y_q = 1, θ_S = 0, θ_T = ln 3, and for the loss α = T = 1; λ is to be 4 ln 3."""
    return Line(0.0), Line(LN3), one_example(1.0), one_example(1.0)


def pencil_case():
    """x = (1, 2), x_q = (1, 1), y = y_q = 1, θ_S = θ_T = 0, and for the loss α = T = 1; λ is to be 1."""
    return Line(0.0, 0.0), Line(0.0, 0.0), one_example(1.0, 2.0), one_example(1.0, 1.0)


def network(width):
    """Two layers with what pilot and quiz could spoil, BatchNorm and dropout; (B, 3) -> (B, 3)."""
    layers = nn.Linear(3, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.5), nn.Linear(width, 3)
    return shaken(nn.Sequential(*layers)).double()


def network_case():
    """Student, teacher, batch and quiz, all random."""
    batch = torch.randn(7, 3, dtype=torch.float64), torch.randint(3, (7,))
    quiz = torch.randn(5, 3, dtype=torch.float64), torch.randint(3, (5,))
    return network(4), network(6), batch, quiz


SOFT_ONLY = partial(metadistil.kd_loss, alpha=1, temperature=1)
LOSS = partial(metadistil.kd_loss, alpha=0.6, temperature=2.5)
PILOT_LR = 0.3


def twin_of(student):
    """A copy of the student in the mode of pilot and quiz."""
    twin = copy.deepcopy(student)
    for module in twin.modules():
        module.training = isinstance(module, nn.BatchNorm1d)
    return twin


def plain_pilot(student, teacher_logits, batch):
    """The student after the pilot: a copy, .backward(), and SGD. No gradient can pass through it."""
    twin = twin_of(student)
    LOSS(twin(batch[0]), teacher_logits.detach(), batch[1]).backward()
    torch.optim.SGD(twin.parameters(), lr=PILOT_LR).step()
    return twin


def slopes(value, parameters, h=1e-5):
    """For each parameter a random direction, and the slope of value() along it, by a central difference."""
    directions = [torch.randn_like(theta) for theta in parameters]
    found = []
    for theta, direction in zip(parameters, directions):
        values = []
        for shift in (h, -2 * h):
            theta.data += shift * direction
            values.append(value().item())
        theta.data += h * direction
        found.append((values[0] - values[1]) / (2 * h))
    return directions, found


def along(directions, gradients):
    """The slope that each gradient has along its direction."""
    return [(direction * gradient).sum() for direction, gradient in zip(directions, gradients)]


def check_arrives(grads):
    """Fail if nothing reaches the teacher. (An error of torch's, the other way to say so, is caught by `hinted`.)"""
    __tracebackhide__ = True
    if any(gradient is None for gradient in grads):
        fail("a gradient of the teacher is None", TEACHER_PATH)
    if flat(grads).norm() == 0:
        fail("the gradient of the teacher is zero", TEACHER_PATH)


def check_meta_gradient(meta_gradient, student, teacher, batch, quiz, mode, hint):
    """The meta-gradient against central differences of the quiz loss after a plain pilot."""
    __tracebackhide__ = True
    with hinted(TEACHER_PATH):
        L_q, grads = meta_gradient(student, teacher, batch, quiz, pilot_lr=PILOT_LR, loss=LOSS, mode=mode)[:2]

    def quiz_loss():
        return F.cross_entropy(plain_pilot(student, teacher.eval()(batch[0]), batch)(quiz[0]), quiz[1])

    agree(L_q, quiz_loss(), "the first thing returned is L_q, the quiz loss of the copy at θ′_S.")
    check_arrives(grads)
    if len(grads) != len(list(teacher.parameters())):
        fail(f"found {len(grads)} gradients", "one for each of teacher.parameters(), in that order.")
    directions, expected = slopes(quiz_loss, list(teacher.parameters()))
    agree(along(directions, grads), expected, hint, tolerance=1e-6)


# ---------------------------------------------------------------- step 1: the KD loss


def test_step1_the_hard_term_is_the_cross_entropy(kd_loss):
    z_S, z_T, y = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    hint = "with alpha = 0 L_S is CE(z_S, y): at temperature 1, and the mean over the examples."
    agree(kd_loss(z_S, z_T, y, alpha=0.0, temperature=3.0), F.cross_entropy(z_S, y), hint, tolerance=1e-6)


@pytest.mark.parametrize("B", [1, 2])
def test_step1_the_soft_term_is_a_mean_over_the_examples(kd_loss, B):
    """p_T = (3/4, 1/4), p_S = (1/4, 3/4): KL = 3/4 ln 3 − 1/4 ln 3, whichever of the two stands first."""
    z_T, z_S = torch.tensor([[LN3, 0.0]] * B), torch.tensor([[0.0, LN3]] * B)
    hint = 'KL is a sum over the K classes, then a mean over the B examples (in F.kl_div reduction="batchmean").'
    agree(kd_loss(z_S, z_T, torch.zeros(B).long(), alpha=1.0, temperature=1.0), LN3 / 2, hint, tolerance=1e-6)


def test_step1_the_teacher_stands_first_in_KL(kd_loss):
    """p_T = (3/4, 1/4), p_S = (1/2, 1/2): KL(p_T ‖ p_S) = 3/4 ln 3/2 + 1/4 ln 1/2."""
    z_T, z_S = torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2)
    hint = (
        "KL(p_T ‖ p_S) = Σ p_T (log p_T − log p_S), not KL(p_S ‖ p_T); F.kl_div(input, target) wants log p_S first, "
        "p_T second."
    )
    expected = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
    agree(kd_loss(z_S, z_T, torch.tensor([0]), alpha=1.0, temperature=1.0), expected, hint, tolerance=1e-6)


def test_step1_the_temperature(kd_loss):
    """Logits twice as large at T = 2 are the same probabilities, so the soft term is T² times what it was."""
    z_T, z_S = torch.tensor([[2 * LN3, 0.0]]), torch.tensor([[0.0, 2 * LN3]])
    hint = "T² stands before the KL, and the logits of both networks are divided by T before their softmax."
    agree(kd_loss(z_S, z_T, torch.tensor([0]), alpha=1.0, temperature=2.0), 4 * LN3 / 2, hint, tolerance=1e-6)


def test_step1_alpha_weighs_the_two_terms(kd_loss):
    z_S, z_T, y = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    for given, (alpha, T) in (({"alpha": 0.3, "temperature": 4.0}, (0.3, 4.0)), ({}, (0.5, 2.0))):
        kl = F.kl_div((z_S / T).log_softmax(-1), (z_T / T).softmax(-1), reduction="batchmean")
        expected = alpha * T**2 * kl + (1 - alpha) * F.cross_entropy(z_S, y)
        hint = "alpha before the soft term, 1 − alpha before the hard one; by default alpha = 0.5 and temperature = 2."
        agree(kd_loss(z_S, z_T, y, **given), expected, hint, tolerance=1e-5)


def test_step1_both_networks_get_a_gradient(kd_loss):
    z_S, z_T = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = torch.tensor([0, 2, 1, 1])
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        if not check(lambda s, t: kd_loss(s, t, y, 0.7, 3.0), (z_S, z_T), raise_exception=False):
            fail(
                f"{check.__name__} fails", "L_S must be twice differentiable in both networks' logits: detach neither."
            )


def test_step1_large_logits(kd_loss):
    large = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    found = kd_loss(large.flip(0), large, torch.tensor([1, 0]), 0.5, 2.0)
    if not found.isfinite():
        fail(f"of logits as large as 10,000 the loss is {found}", "take log_softmax, never the log of a softmax.")


# ---------------------------------------------------------------- step 2: the pilot update


def test_step2_the_copy_moves_down_the_inner_loss(pilot_update):
    """p_T = 3/4 and p_S = 1/2, so ∇L_S = −1/4, and θ′_S = 0 + 4 ln 3 · 1/4."""
    student, teacher, batch, _ = scalar_case()
    found = pilot_update(student, batch, teacher(batch[0]), 4 * LN3, loss=SOFT_ONLY)
    hint = "θ′_S = θ_S − λ ∇L_S, and here ∇L_S = p_S − p_T = −1/4: is the sign right, is λ there?"
    agree(found, {"theta": LN3}, hint)


def test_step2_the_copy_remembers_the_teacher(pilot_update):
    """∂θ′_S/∂θ_T = −λ ∂²L_S/∂θ_T∂θ_S = λ p_T (1 − p_T) = 4 ln 3 · 3/16."""
    student, teacher, batch, _ = scalar_case()
    theta_S_prime = pilot_update(student, batch, teacher(batch[0]), 4 * LN3, loss=SOFT_ONLY)
    with hinted(CREATE_GRAPH):
        slope = torch.autograd.grad(theta_S_prime["theta"].sum(), teacher.theta)
    agree(slope, 0.75 * LN3, "∂θ′_S/∂θ_T is to be λ p_T (1 − p_T), with p_T = 3/4.")


def test_step2_without_dropout(pilot_update):
    student, teacher, batch, _ = network_case()
    student.train()
    z_T = teacher.eval()(batch[0]).detach()
    one, other = (pilot_update(student, batch, z_T, PILOT_LR, loss=LOSS) for _ in range(2))
    agree(one, other, DROPOUT)


def test_step2_batchnorm_sees_the_batch(pilot_update):
    student, teacher, batch, _ = network_case()
    z_T = teacher.eval()(batch[0]).detach()
    one = pilot_update(student, batch, z_T, PILOT_LR, loss=LOSS)
    student[1].running_mean.fill_(17.0)
    agree(pilot_update(student, batch, z_T, PILOT_LR, loss=LOSS), one, BATCH_STATISTICS)


def test_step2_equals_a_plain_step_of_a_copy(pilot_update):
    student, teacher, batch, _ = network_case()
    z_T = teacher.eval()(batch[0]).detach()
    expected = dict(plain_pilot(student, z_T, batch).named_parameters())
    found = pilot_update(student, batch, z_T, PILOT_LR, loss=LOSS)
    agree(
        found, expected, "θ′_S is where one step of SGD with rate λ would lead; is L_S the `loss` that was handed over?"
    )


def test_step2_leaves_the_student_alone(pilot_update):
    student, teacher, batch, _ = network_case()
    z_T = teacher.eval()(batch[0]).detach()
    before = copy.deepcopy(student.state_dict())
    pilot_update(student.train(), batch, z_T, PILOT_LR, loss=LOSS)
    check_unchanged(student, before, "the student")


# ---------------------------------------------------------------- step 3: the quiz


def test_step3_the_quiz_is_sat_by_the_copy(quiz_gradient):
    """At θ′_S = ln 3 the student's p is 3/4, so L_q = −ln 3/4 and v = p − 1 = −1/4."""
    student, _, _, quiz = scalar_case()
    with hinted(
        "make leaves of θ′_S, by .detach().requires_grad_(): what comes in may have a graph, or no gradient at all."
    ):
        L_q, v = quiz_gradient(student, {"theta": torch.tensor([LN3], dtype=torch.float64)}, quiz)
    hint = "L_q = CE(f(x_q; θ′_S), y_q): at θ_S = 0, where the student itself stands, it would be ln 2."
    agree(L_q, math.log(4 / 3), hint)
    agree(v, {"theta": -0.25}, "v is the gradient of L_q at θ′_S: at θ_S = 0 it would be −1/2.")


def test_step3_without_dropout(quiz_gradient):
    student, _, _, quiz = network_case()
    theta = dict(network(4).named_parameters())
    one, other = (quiz_gradient(student.train(), theta, quiz)[0] for _ in range(2))
    agree(one, other, DROPOUT)


def test_step3_equals_a_finite_difference(quiz_gradient):
    student, _, _, quiz = network_case()
    copied = twin_of(network(4))
    L_q, v = quiz_gradient(student, {name: theta.detach().clone() for name, theta in copied.named_parameters()}, quiz)
    agree(L_q, F.cross_entropy(copied(quiz[0]), quiz[1]), BATCH_STATISTICS)
    directions, expected = slopes(lambda: F.cross_entropy(copied(quiz[0]), quiz[1]), list(copied.parameters()))
    gradients = [v[name] for name, _ in copied.named_parameters()]
    agree(along(directions, gradients), expected, "v is not the gradient of L_q in θ′_S.", tolerance=1e-6)


def test_step3_leaves_the_student_alone(quiz_gradient):
    student, _, _, quiz = network_case()
    theta = {name: theta.detach() for name, theta in network(4).named_parameters()}
    before = copy.deepcopy(student.state_dict())
    quiz_gradient(student.train(), theta, quiz)
    check_unchanged(student, before, "the student")


# ---------------------------------------------------------------- step 4: the meta-gradient by second order
# ---------------------------------------------------------------- step 5: the same by the jvp


def check_by_hand(meta_gradient, mode):
    """The two examples that a pencil can check."""
    __tracebackhide__ = True
    with hinted(TEACHER_PATH):
        grads = meta_gradient(*scalar_case(), pilot_lr=4 * LN3, loss=SOFT_ONLY, mode=mode)[1]
    check_arrives(grads)
    hint = "−λ (∂²L_S/∂θ_T∂θ_S) v with λ = 4 ln 3, ∂²L_S/∂θ_T∂θ_S = −3/16, v = −1/4: is a factor or a sign missing?"
    agree(grads, -3 / 16 * LN3, hint)
    grads = meta_gradient(*pencil_case(), pilot_lr=1.0, loss=SOFT_ONLY, mode=mode)[1]
    hint = "−λ M v with M = −1/4 [[1, 2], [2, 4]] of the batch and v = (−1/2, −1/2) of the quiz: were the two mixed up?"
    agree(grads, torch.tensor([-3 / 8, -3 / 4]), hint)


def check_leaves_both_alone(meta_gradient, mode):
    """Neither network is changed, and the teacher is in eval mode."""
    __tracebackhide__ = True
    student, teacher, batch, quiz = network_case()
    settings = {"pilot_lr": PILOT_LR, "loss": LOSS, "mode": mode}
    before = [copy.deepcopy(one.state_dict()) for one in (student, teacher)]
    one = meta_gradient(student.train(), teacher.train(), batch, quiz, **settings)[1]
    check_unchanged(student, before[0], "the student")
    check_unchanged(teacher, before[1], "the teacher")
    agree(meta_gradient(student, teacher.train(), batch, quiz, **settings)[1], one, DROPOUT)


def test_step4_equals_the_values_worked_out_by_hand(meta_gradient):
    check_by_hand(meta_gradient, "second_order")


def test_step4_leaves_both_networks_alone(meta_gradient):
    check_leaves_both_alone(meta_gradient, "second_order")


def test_step4_equals_a_finite_difference(meta_gradient):
    hint = "the meta-gradient is not the slope of L_q(θ′_S(θ_T)): compare your steps with section 4 of notebook 03."
    check_meta_gradient(meta_gradient, *network_case(), "second_order", hint)


JVP = "∂L_q/∂z_T = −λ ∂/∂z_T ⟨ż_S, ∂L_S/∂z_S⟩ with ż_S = J_S v at θ_S (not at θ′_S), held fixed."


def test_step5_equals_the_values_worked_out_by_hand(meta_gradient):
    check_by_hand(meta_gradient, "jvp")


def test_step5_leaves_both_networks_alone(meta_gradient):
    check_leaves_both_alone(meta_gradient, "jvp")


def test_step5_equals_second_order(meta_gradient):
    networks = network_case()
    networks[1].eval()
    one, other = (meta_gradient(*networks, pilot_lr=PILOT_LR, loss=LOSS, mode=m)[1] for m in ("second_order", "jvp"))
    agree(other, one, JVP)


def test_step5_equals_a_finite_difference(meta_gradient):
    check_meta_gradient(meta_gradient, *network_case(), "jvp", JVP)


class Square(torch.autograd.Function):
    """x², with a backward pass that cannot be differentiated again, and a forward-mode derivative."""

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] * tangent


class OnceDifferentiable(nn.Module):
    """A student without a second derivative: mode "jvp" can do with it, mode "second_order" cannot."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x):
        return self.second(Square.apply(self.first(x)))


def test_step5_asks_the_student_for_no_second_derivative(meta_gradient):
    _, teacher, batch, quiz = network_case()
    hint = "mode jvp must not go back through the pilot's gradient: take J_S v by torch.func.jvp, one forward pass."
    check_meta_gradient(meta_gradient, OnceDifferentiable(), teacher, batch, quiz, "jvp", hint)


# ---------------------------------------------------------------- step 6: one turn, and a run


def sgd(network, rate):
    return torch.optim.SGD(network.parameters(), lr=rate)


def test_step6_the_real_update_is_a_step_of_distillation(real_update):
    student, teacher, batch, _ = network_case()
    twin, z_T = copy.deepcopy(student).train(), teacher.eval()(batch[0]).detach()
    torch.manual_seed(3)  # of dropout
    found = real_update(student.eval(), teacher.train(), batch, sgd(student, 0.1), loss=LOSS)
    torch.manual_seed(3)
    L_S = LOSS(twin(batch[0]), z_T, batch[1])
    L_S.backward()
    sgd(twin, 0.1).step()
    hint = (
        "L_S of the student in train mode, dropout on, and of the teacher in eval mode; then one step of the optimiser."
    )
    agree(found, L_S, hint)
    agree(dict(student.named_parameters()), dict(twin.named_parameters()), hint)
    hint = "BatchNorm's averages move here, by one forward pass."
    agree(dict(student.named_buffers()), dict(twin.named_buffers()), hint)


def test_step6_the_real_update_is_no_lesson_for_the_teacher(real_update):
    student, teacher, batch, _ = network_case()
    before = copy.deepcopy(teacher.state_dict())
    real_update(student, teacher, batch, sgd(student, 0.1), loss=LOSS)
    if any(theta.grad is not None for theta in teacher.parameters()):
        hint = "ask the teacher under torch.no_grad(): its .grad holds ∂L_S/∂θ_T, the wish to imitate the student."
        fail("the teacher has something in .grad", hint)
    check_unchanged(teacher, before, "the teacher")


def test_step6_old_gradients_do_not_count(real_update):
    """p_S − p_T = −1/4, so a step at the rate 1 leads to 1/4."""
    student, teacher, batch, _ = scalar_case()
    student.theta.grad = torch.ones(1, dtype=torch.float64)
    real_update(student, teacher, batch, sgd(student, 1.0), loss=SOFT_ONLY)
    agree(student.theta, 1 / 4, "what an earlier step left in .grad was added: call zero_grad before backward.")


def turn_by_hand(metadistil_step, student_lr, teacher_lr):
    """θ_S and θ_T after one turn of the scalar example."""
    student, teacher, batch, quiz = scalar_case()
    rates = sgd(student, student_lr), sgd(teacher, teacher_lr)
    metadistil_step(student, teacher, batch, quiz, *rates, pilot_lr=4 * LN3, loss=SOFT_ONLY)
    return student.theta, teacher.theta


def test_step6_the_teacher_steps_down_the_quiz(metadistil_step):
    _, theta_T = turn_by_hand(metadistil_step, student_lr=0.0, teacher_lr=1.0)
    hint = "θ_T ← θ_T − μ ∇_{θ_T} L_q: put the meta-gradient into the teacher's .grad, then let its optimiser step."
    agree(theta_T, (1 + 3 / 16) * LN3, hint)


def test_step6_the_student_starts_where_it_stood(metadistil_step):
    """A teacher that stays: θ_S ← 0 + p_T − p_S = 3/4 − 1/2."""
    theta_S, _ = turn_by_hand(metadistil_step, student_lr=1.0, teacher_lr=0.0)
    agree(theta_S, 1 / 4, "the real update starts from θ_S: θ′_S was the copy's, and is thrown away after the quiz.")


def test_step6_the_student_hears_the_improved_teacher(metadistil_step):
    """θ_T ← ln 3 + 4 · 3/16 ln 3, then θ_S ← 0 + p_T − p_S with the new p_T."""
    theta_S, theta_T = turn_by_hand(metadistil_step, student_lr=1.0, teacher_lr=4.0)
    agree(theta_T, 7 / 4 * LN3, "θ_T ← θ_T − μ ∇_{θ_T} L_q, once in a turn.")
    new_p_T = 1 / (1 + 3 ** (-7 / 4))
    agree(
        theta_S, new_p_T - 1 / 2, "first the meta update, then the real update, which asks the improved teacher again."
    )


def test_step6_the_real_update_alone_moves_batchnorm(metadistil_step):
    student, teacher, batch, quiz = network_case()
    metadistil_step(student, teacher, batch, quiz, sgd(student, 0.1), sgd(teacher, 0.1), pilot_lr=PILOT_LR, loss=LOSS)
    moved = [int(student[1].num_batches_tracked), int(teacher[1].num_batches_tracked)]
    hint = (
        "in a whole turn the student's averages see one forward pass, that of the real update, and the teacher's none."
    )
    agree(moved, [1, 0], hint)


def test_step6_three_turns_equal_ours(metadistil_step):
    ends = []
    for step in (metadistil_step, metadistil.metadistil_step):
        torch.manual_seed(0)
        student, teacher, batch, quiz = network_case()
        optimizers = [torch.optim.AdamW(one.parameters(), lr=0.01) for one in (student, teacher)]
        for _ in range(3):
            step(student, teacher, batch, quiz, *optimizers, pilot_lr=PILOT_LR, loss=LOSS)
        ends.append([*student.parameters(), *teacher.parameters()])
    hint = (
        "one turn was right, three are not: does something of the turn before still stand in a .grad or in a network?"
    )
    agree(*ends, hint, tolerance=1e-6)


class OneArgument(nn.Module):
    """A model of train.py, called with one tensor: (B, T, 2), ids and mask -> logits (B, K)."""

    def __init__(self, model):
        super().__init__()
        self.network = model.network

    def forward(self, ids_and_mask):
        ids, mask = ids_and_mask.unbind(dim=-1)
        return self.network(input_ids=ids, attention_mask=mask)


def one_tensor(model, batch):
    """A batch of train.py as the exercise has it: one tensor (B, T, 2), ids and mask, and the labels (B,)."""
    inputs, labels = batch
    read = model.inputs(inputs["examples"])  # student and teacher have one vocabulary
    return torch.stack([read["input_ids"], read["attention_mask"].int()], dim=-1), labels


def step_of(mine):
    """A step for a row of train.METHODS: the turn that stands in the file, with the loss that stands there."""

    def step(stage, batch, rows, k):
        config, student, teacher = stage.config, stage.learner, stage.teachers[0]
        L_S, _ = mine.metadistil_step(
            OneArgument(student), OneArgument(teacher), one_tensor(student, batch), one_tensor(student, stage.quiz(k)),
            stage.optimizer, stage.teacher_optimizer, pilot_lr=config.pilot_lr,
            loss=partial(mine.kd_loss, alpha=config.alpha, temperature=config.temperature),
        )  # fmt: skip
        return {"loss": L_S}

    return step


def noting(step, losses):
    """The same step; it notes its loss in `losses`, by the number of the step."""

    def noted(stage, batch, rows, k):
        found = step(stage, batch, rows, k)
        losses[k] = found["loss"].item()
        return found

    return noted


@pytest.mark.slow
def test_step6_a_run_on_the_built_in_task(mine, kd_loss, metadistil_step, monkeypatch, tmp_path):
    """Two rows of one small run, ours and the file's: the same loss at every step."""
    row, ours, theirs = train.METHODS["metadistil"], {}, {}
    monkeypatch.setitem(train.METHODS, "metadistil", row._replace(step=noting(row.step, ours)))
    monkeypatch.setitem(train.METHODS, "mine", row._replace(step=noting(step_of(mine), theirs)))
    sizes = {"label_noise": 0.0, "train_size": 640, "batch_size": 64, "quiz_batch_size": 32, "finetune_lr": 2e-3}
    epochs = {"teacher_epochs": 3, "warmup_epochs": 0, "epochs": 1}
    train.run(train.Config(data="builtin", methods="metadistil,mine", out=tmp_path / "run", **sizes, **epochs))
    assert len(ours) == 15  # all steps of the epoch
    hint = "the losses part from ours, though all checks before agree: is each L_S that of the `loss` handed over?"
    agree(theirs, ours, hint, tolerance=1e-4)


# ---------------------------------------------------------------- the checks themselves

SOLUTION = ROOT / "tests" / "exercise_solution.py"


class Mistake(NamedTuple):
    """One change that makes a wrong file of the solution, and what is to be said of it."""

    step: int  # the first that fails
    hint: str  # words of its hint
    right: str  # what stands in the solution
    wrong: str  # what takes its place


MISTAKES = {
    "KL the other way round": Mistake(
        1, "not KL(p_S ‖ p_T)", "log_p_T.exp() * (log_p_T - log_p_S)", "log_p_S.exp() * (log_p_S - log_p_T)"
    ),
    "T squared forgotten": Mistake(1, "T² stands before the KL", "alpha * temperature**2 * kl", "alpha * kl"),
    "create_graph forgotten": Mistake(
        2, "was create_graph=True forgotten", "list(theta_S.values()), create_graph=True", "list(theta_S.values())"
    ),
    "BatchNorm moved": Mistake(2, "hand functional_call clones of the buffers", "(theta, buffers)", "theta"),
    "quiz at the old place": Mistake(
        3, "at θ_S = 0, where the student itself stands", "in theta_S_prime.items()", "in student.named_parameters()"
    ),
    "teacher detached": Mistake(
        4, "was its output detached", "teacher.eval()(batch[0])", "teacher.eval()(batch[0]).detach()"
    ),
    "second order in place of the jvp": Mistake(
        5, "take J_S v by torch.func.jvp", 'if mode == "second_order":', "if mode:"
    ),
    "real update from the copy": Mistake(
        6,
        "θ′_S was the copy's",
        "    L_S = real_update(",
        "    student.load_state_dict(pilot_update(student, batch, teacher(batch[0]), pilot_lr, loss), strict=False)\n"
        "    L_S = real_update(",
    ),
}


def check(path):
    """What the checks say of a file, up to the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", "step", __file__]
    environment = os.environ | {"MINE": str(path), "PYTHONIOENCODING": "utf-8", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8").stdout


def test_what_the_page_says_to_read_is_there():
    page = (ROOT / "notebooks" / "exercise.md").read_text(encoding="utf-8")
    to_read = re.findall(r"\*\*Then read\*\* (.*?)\.(?:\s|$)", page, re.DOTALL)
    names = {name for sentence in to_read for name in re.findall(r"`(\w+)`", sentence)}
    assert len(to_read) == 6 and {"kd_loss", "meta_step"} <= names
    assert [name for name in names if not hasattr(metadistil, name) and not hasattr(train, name)] == []


@pytest.mark.slow
@pytest.mark.skipif(MINE is not None, reason="of the checks, not of a file")
def test_a_short_file_of_plain_functions_passes_everything():
    said = check(SOLUTION)
    assert " passed" in said and "failed" not in said and "error" not in said, said


@pytest.mark.slow
@pytest.mark.skipif(MINE is not None, reason="of the checks, not of a file")
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_wrong_file_fails_where_it_is_wrong_and_a_hint_says_why(mistake, tmp_path):
    text = SOLUTION.read_text(encoding="utf-8")
    assert mistake.right in text
    path = tmp_path / "wrong.py"
    path.write_text(text.replace(mistake.right, mistake.wrong, 1), encoding="utf-8")
    said = check(path)
    assert f"FAILED tests/test_exercise.py::test_step{mistake.step}_" in said, said
    hint = said.partition("Hint: ")[2]
    assert mistake.hint in hint, said
