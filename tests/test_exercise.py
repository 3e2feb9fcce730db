"""The six steps of notebooks/exercise.md, checked by values worked out by hand and against our own metadistil.py.

`MINE=my_metadistil.py pytest tests/test_exercise.py -k step3` checks step 3 of that file; without MINE the checks judge
exercise_solution.py. Whatever fails ends with a hint.

Steps 2 to 5, and the updates of step 6, are handed our own kd_loss as `loss`. So each step is judged by itself.
"""

import copy
import importlib.util
import json
import math
import os
import types
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import exercise_solution
import pytest
import torch
from conftest import shaken, small
from torch import nn

import metadistil
import train

LN3 = math.log(3)
SOFT_ONLY = partial(metadistil.kd_loss, alpha=1, temperature=1)
LOSS = partial(metadistil.kd_loss, alpha=0.6, temperature=2.5)


@pytest.fixture(scope="session")
def mine():
    """The file that MINE names, or else our short solution."""
    path = Path(os.environ.get("MINE", exercise_solution.__file__))
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- how a check fails


def fail(what, hint):
    __tracebackhide__ = True
    pytest.fail(f"{what}\nHint: {hint}")


def flat(values):
    """A number, a tensor, or lists and dicts of them, as one vector."""
    if isinstance(values, dict):
        values = [values[name] for name in sorted(values)]
    if isinstance(values, (list, tuple)):
        return torch.cat([flat(value) for value in values])
    return torch.as_tensor(values, dtype=torch.float64).detach().flatten()


def agree(found, expected, hint, tolerance=1e-9):
    """Fail unless the two agree to that relative tolerance."""
    __tracebackhide__ = True
    found, expected = flat(found), flat(expected)
    if len(found) != len(expected) or not (found - expected).norm() <= tolerance * expected.norm() + 1e-12:
        fail(f"expected {expected[:6].tolist()}, found {found[:6].tolist()}", hint)


def check_like_ours(mine, call, hint, case=None):
    """call(module, student, teacher, batch, quiz) must return the same by the file as by ours."""
    __tracebackhide__ = True
    found, expected = (call(module, *(case or network_case)()) for module in (mine, metadistil))
    hint += " And the modes? Teacher in eval mode; in pilot and quiz the student, too, but for its BatchNorm."
    agree(found, expected, hint, tolerance=1e-6)


@contextmanager
def hinted(hint):
    """An error of torch's inside ends with the hint; the traceback shows the line where it came up."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(f"Hint: {hint}")
        raise


@contextmanager
def left_alone(*networks):
    """Fail if the block changes a parameter, a buffer or a `.grad` of the networks."""
    __tracebackhide__ = True
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    yield
    for network, was in zip(networks, before):
        changed = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, was[name])]
        changed += [f"{name}.grad" for name, theta in network.named_parameters() if theta.grad is not None]
        if changed:
            hint = "torch.autograd.grad leaves nothing in .grad; functional_call takes clones of the student's buffers."
            fail(f"changed: {', '.join(changed)}", hint)


def line(*theta):
    """Logits (0, θ·x), (B, D) -> (B, 2): so small that a pencil finds every derivative."""
    layer = nn.Linear(len(theta), 1, bias=False, dtype=torch.float64)
    layer.weight.data[0] = torch.tensor(theta, dtype=torch.float64)
    return nn.Sequential(layer, nn.ConstantPad1d((1, 0), 0.0))


def one_example(*x):
    """A batch of the one example x, its label 1."""
    return torch.tensor([x], dtype=torch.float64), torch.tensor([1])


def scalar_case():
    """Student, teacher, batch, quiz: x = x_q = y = y_q = 1, θ_S = 0, θ_T = ln 3; α = T = 1, and λ is to be 4 ln 3."""
    return line(0.0), line(LN3), one_example(1.0), one_example(1.0)


def network_case(middle=nn.Tanh):
    """The same at random, always the same; with what pilot and quiz could spoil, BatchNorm and dropout."""
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), middle(), nn.Dropout(), nn.Linear(width, 3))
        for width, middle in ((4, middle), (6, nn.Tanh))
    )
    batch, quiz = ((torch.randn(B, 3, dtype=torch.float64), torch.randint(3, (B,))) for B in (7, 5))
    return shaken(student).double(), shaken(teacher).double(), batch, quiz


# ---------------------------------------------------------------- the six steps


def test_step1_the_kd_loss(mine):
    """By hand: p_T = (3/4, 1/4), p_S = (1/4, 3/4): KL = 3/4 ln 3 − 1/4 ln 3, whichever of the two stands first."""
    one, other, even = torch.tensor([[LN3, 0.0]]), torch.tensor([[0.0, LN3]]), torch.zeros(1, 2)
    for z_S, z_T, alpha, T, expected, hint in [
        (other, one, 1.0, 1.0, LN3 / 2, "KL is a sum over the K classes."),
        (other.expand(2, 2), one.expand(2, 2), 1.0, 1.0, LN3 / 2, "KL is a mean over the B examples."),
        (even, one, 1.0, 1.0, math.log(27 / 16) / 4, "KL(p_T ‖ p_S) = Σ p_T (log p_T − log p_S), not KL(p_S ‖ p_T)."),
        (2 * other, 2 * one, 1.0, 2.0, 2 * LN3, "T² stands before the KL; all logits are divided by T before softmax."),
        (other, one, 0.0, 3.0, math.log(4), "with alpha = 0 L_S is CE(z_S, y), at temperature 1."),
    ]:
        found = mine.kd_loss(z_S, z_T, torch.zeros(len(z_S)).long(), alpha=alpha, temperature=T)
        agree(found, expected, hint, tolerance=1e-6)
    z_S, z_T = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = torch.tensor([0, 1, 2, 1, 0])
    hint = "alpha before the soft term, 1 − alpha before the hard one; by default alpha = 0.5 and temperature = 2."
    for settings in ({"alpha": 0.3, "temperature": 4.0}, {}):
        agree(mine.kd_loss(z_S, z_T, y, **settings), metadistil.kd_loss(z_S, z_T, y, **settings), hint)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        if not check(lambda *logits: mine.kd_loss(*logits, y), (z_S, z_T), raise_exception=False):
            fail(f"{check.__name__} fails", "let L_S be twice differentiable in both networks' logits: detach neither.")
    if not mine.kd_loss(1e4 * z_S, 1e4 * z_T, y).isfinite():
        fail("of logits as large as 10,000 the loss is infinite", "take log_softmax, never the log of a softmax.")


def test_step2_the_pilot_update(mine):
    """By hand: p_T = 3/4, p_S = 1/2, ∇L_S = −1/4, and ∂θ′_S/∂θ_T = λ p_T (1 − p_T) = 4 ln 3 · 3/16."""
    student, teacher, batch, _ = scalar_case()
    theta_S_prime = mine.pilot_update(student, batch, teacher(batch[0]), 4 * LN3, loss=SOFT_ONLY)
    hint = "θ′_S = θ_S − λ ∇L_S, and here ∇L_S = p_S − p_T = −1/4: is the sign right, is λ there?"
    agree(theta_S_prime, {"0.weight": LN3}, hint)
    with hinted("θ′_S knows nothing of the teacher: was create_graph=True forgotten where ∇L_S is taken?"):
        slope = torch.autograd.grad(theta_S_prime["0.weight"].sum(), teacher[0].weight)
    agree(slope, 0.75 * LN3, "∂θ′_S/∂θ_T is to be λ p_T (1 − p_T), with p_T = 3/4.")

    def pilot(module, student, teacher, batch, quiz):
        with left_alone(student):
            return module.pilot_update(student, batch, teacher.eval()(batch[0]), 0.3, loss=LOSS)

    check_like_ours(mine, pilot, "one step of SGD leads to θ′_S; is L_S the `loss` that was handed over?")


def test_step3_the_quiz(mine):
    """By hand: at θ′_S = ln 3 the student's p is 3/4, so L_q = −ln 3/4 and v = p − 1 = −1/4."""
    student, _, _, quiz = scalar_case()
    with hinted("make leaves of θ′_S by .detach().requires_grad_(): it may come with a graph, or with no gradient."):
        L_q, v = mine.quiz_gradient(student, {"0.weight": torch.tensor([[LN3]], dtype=torch.float64)}, quiz)
    hint = "L_q is of f(x_q; θ′_S): at θ_S = 0, where the student itself stands, it would be ln 2."
    agree(L_q, math.log(4 / 3), hint)
    agree(v, {"0.weight": -0.25}, "v is the gradient of L_q at θ′_S: at θ_S = 0 it would be −1/2.")

    def sit(module, student, teacher, batch, quiz):
        theta_S_prime = {name: theta.detach() + 0.1 for name, theta in student.named_parameters()}
        with left_alone(student):
            return module.quiz_gradient(student, theta_S_prime, quiz)

    check_like_ours(mine, sit, "L_q = CE(f(x_q; θ′_S), y_q), and v is its gradient in θ′_S.")


def check_meta_gradient(mine, mode, hint, **case):
    """By hand: x = (1, 2), x_q = (1, 1), y = y_q = 1, θ_S = θ_T = (0, 0), α = T = λ = 1."""
    __tracebackhide__ = True
    pencil_case = line(0.0, 0.0), line(0.0, 0.0), one_example(1.0, 2.0), one_example(1.0, 1.0)
    path = "no way back to the teacher: was it detached, or asked under no_grad, or create_graph=True forgotten?"
    with hinted(path):
        _, [gradient] = mine.meta_gradient(*pencil_case, pilot_lr=1.0, loss=SOFT_ONLY, mode=mode)[:2]
    if gradient is None or gradient.norm() == 0:
        fail(f"the gradient of the teacher is {gradient}", path)
    by_hand = "−λ M v, M = −1/4 [[1, 2], [2, 4]] of the batch, v = (−1/2, −1/2) of the quiz: a sign? The two mixed up?"
    agree(gradient, [-3 / 8, -3 / 4], by_hand)

    def meta_gradient(module, student, teacher, batch, quiz):
        with left_alone(student, teacher):
            return module.meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, loss=LOSS, mode=mode)[:2]

    check_like_ours(mine, meta_gradient, hint, **case)


def test_step4_the_meta_gradient(mine):
    check_meta_gradient(mine, "second_order", "compare your steps with section 4 of notebook 03.")


class OnceDifferentiable(nn.Module):
    """x², whose gradient comes without a graph. So it cannot be differentiated again."""

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(torch.Tensor.detach)
        return x.square()


def test_step5_the_same_by_the_jvp(mine):
    hint = "∂L_q/∂z_T = −λ ∂/∂z_T ⟨ż_S, ∂L_S/∂z_S⟩ with ż_S = J_S v at θ_S (not at θ′_S), held fixed."
    check_meta_gradient(mine, "jvp", hint)
    hint = "mode jvp must not go back through the pilot's gradient: take J_S v by torch.func.jvp, one forward pass."
    check_meta_gradient(mine, "jvp", hint, case=partial(network_case, OnceDifferentiable))


def sgd(network, rate):
    return torch.optim.SGD(network.parameters(), lr=rate)


def test_step6_the_real_update(mine):
    def learn(module, student, teacher, batch, quiz):
        with left_alone(teacher):
            L_S = module.real_update(student.eval(), teacher, batch, sgd(student, 0.1), loss=LOSS)
        return [L_S, student.state_dict()]

    check_like_ours(mine, learn, "the student in train mode, dropout on; the teacher under no_grad.")
    student, teacher, batch, _ = scalar_case()
    student[0].weight.grad = torch.ones(1, 1, dtype=torch.float64)
    mine.real_update(student, teacher, batch, sgd(student, 1.0), loss=SOFT_ONLY)
    hint = "what an earlier step left in .grad was added: call zero_grad before backward."
    agree(student[0].weight, 3 / 4 - 1 / 2, hint)  # p_T − p_S


def test_step6_a_turn(mine):
    """By hand: ∇_{θ_T} L_q = −3/16 ln 3, and θ_S moves by p_T − p_S at the rate of 1."""
    for student_lr, teacher_lr, theta_S, theta_T, hint in [
        (1.0, 0.0, 3 / 4 - 1 / 2, LN3, "the real update starts from θ_S: θ′_S was the copy's, and is thrown away."),
        (0.0, 1.0, 0, (1 + 3 / 16) * LN3, "θ_T ← θ_T − μ ∇_{θ_T} L_q: put the meta-gradient into .grad, then step."),
        (1.0, 4.0, 1 / (1 + 3 ** (-7 / 4)) - 1 / 2, 7 / 4 * LN3, "the student learns from the improved teacher."),
    ]:
        student, teacher, *exams = scalar_case()
        rates = sgd(student, student_lr), sgd(teacher, teacher_lr)
        mine.metadistil_step(student, teacher, *exams, *rates, pilot_lr=4 * LN3, loss=SOFT_ONLY)
        agree([student[0].weight, teacher[0].weight], [theta_S, theta_T], hint)


def step_of(mine):
    """A step for a row of train.METHODS: the turn that stands in the file, with the loss that stands there."""

    def step(stage, batch, rows, k):
        batch, quiz = ((inputs["examples"], labels) for inputs, labels in (batch, stage.quiz(k)))
        loss = partial(mine.kd_loss, alpha=stage.config.alpha, temperature=stage.config.temperature)
        steps, pilot_lr = (stage.optimizer, stage.teacher_optimizer), stage.config.pilot_lr
        turn = mine.metadistil_step(stage.learner, *stage.teachers, batch, quiz, *steps, pilot_lr=pilot_lr, loss=loss)
        return {"loss": turn[0]}

    return step


def test_step6_a_run(mine, tmp_path, monkeypatch):
    """Two rows of one run on a few of the built-in reviews, ours and the file's: the same loss in each epoch."""
    monkeypatch.setitem(train.METHODS, "mine", train.METHODS["metadistil"]._replace(step=step_of(mine)))
    settings = {"warmup_epochs": 0, "epochs": 3, "student_lr": 5e-3, "teacher_lr": 1e-2, "pilot_lr": 0.1}
    finished = train.run(small(tmp_path / "run", methods="metadistil,mine", **settings))
    log = [json.loads(line) for line in (finished.out / "metrics.jsonl").read_text().splitlines()]
    losses = {name: [line["loss"] for line in log if line["stage"] == name] for name in ("mine", "metadistil")}
    hint = "the losses part from ours, though a turn is right: does something of the turn before stand in a .grad?"
    agree(losses["mine"], losses["metadistil"], hint, tolerance=1e-5)


# ---------------------------------------------------------------- the checks themselves


def test_a_mistake_fails_at_its_step_and_the_hint_says_why():
    """Our solution with one piece of it replaced."""
    kl_the_other_way = "log_p_S.exp() * (log_p_S - log_p_T)"
    meta_update = "meta_update(teacher, found[1], teacher_optimizer)"
    of_the_copy = "student.load_state_dict(pilot_update(student, batch, teacher(batch[0]), pilot_lr, loss))"
    for piece, wrong, check, hint in [
        ("log_p_T.exp() * (log_p_T - log_p_S)", kl_the_other_way, test_step1_the_kd_loss, "not KL(p_S ‖ p_T)"),
        ("create_graph=True", "retain_graph=True", test_step2_the_pilot_update, "was create_graph=True forgotten"),
        ("buffer.clone()", "buffer", test_step2_the_pilot_update, "functional_call takes clones"),
        ("theta_S_prime.items()", "student.named_parameters()", test_step3_the_quiz, "where the student itself stands"),
        ("(batch[0])  # (B, K)", "(batch[0]).detach()", test_step4_the_meta_gradient, "was it detached"),
        ('if mode == "second_order"', "if True", test_step5_the_same_by_the_jvp, "take J_S v by torch.func.jvp"),
        (meta_update, f"{of_the_copy}; {meta_update}", test_step6_a_turn, "θ′_S was the copy's"),
    ]:
        source = Path(exercise_solution.__file__).read_text(encoding="utf-8")
        assert piece in source
        module = types.ModuleType("wrong")
        exec(source.replace(piece, wrong, 1), vars(module))
        with pytest.raises((RuntimeError, pytest.fail.Exception)) as failure:
            check(module)
        said = "\n".join([str(failure.value), *getattr(failure.value, "__notes__", [])])
        assert hint in said.partition("Hint: ")[2], piece
