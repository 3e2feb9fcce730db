"""Nothing is silently wrong: what the algorithm cannot differentiate it refuses, and what it can it gets right."""

import copy
from functools import partial

import pytest
import torch
from conftest import shaken
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import metadistil
from metadistil import hard_loss, kd_loss, meta_gradient, metadistil_step

MODES = metadistil.MODES
each_mode = pytest.mark.parametrize("mode", MODES)


def exam(n):
    return torch.randn(n, 6, dtype=torch.float64), torch.randint(3, (n,))


def network():
    return shaken(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double())


# ---- What cannot be differentiated as it must be


class Square(torch.autograd.Function):
    """x² with a backward pass that cannot be differentiated again, as in compiled kernels."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("layer", [0, -1])
def test_an_operation_that_is_differentiable_once_is_refused_in_a_student(layer):
    student = network()
    student[layer].register_forward_hook(lambda module, inputs, output: Square.apply(output))
    with pytest.raises(ValueError, match="differentiated twice"):
        meta_gradient(student, network(), exam(5), exam(4), pilot_lr=0.3)
    with pytest.raises((RuntimeError, NotImplementedError), match="autograd.Function"):
        meta_gradient(student, network(), exam(5), exam(4), pilot_lr=0.3, mode="jvp")


class Overheard:
    """A loss that adds the size of a state which a forward hook has kept."""

    def __init__(self, module):
        module.register_forward_hook(lambda module, inputs, output: setattr(self, "state", output))

    def __call__(self, z_S, z_T, labels):
        return kd_loss(z_S, z_T, labels) + self.state.square().mean()


@each_mode
@pytest.mark.parametrize("which, expected", [
    ("student's state", "outputs alone"), ("teacher's state", "outputs alone"), ("teacher's weight", "outputs alone"),
    ("differentiable once", "differentiated twice"),
])  # fmt: skip
def test_a_loss_that_is_not_a_smooth_function_of_the_outputs_alone_is_refused(which, expected, mode):
    student, teacher = network(), network()
    losses = {
        "student's state": {"loss": Overheard(student[0])},
        "teacher's state": {"loss": Overheard(teacher[0])},
        "teacher's weight": {"quiz_loss": lambda z, labels: hard_loss(z, labels) + teacher[0].weight.square().sum()},
        "differentiable once": {"loss": lambda z_S, z_T, labels: Square.apply(z_S - z_T).mean()},
    }
    with pytest.raises(ValueError, match=expected):
        meta_gradient(student, teacher, exam(5), exam(4), pilot_lr=0.3, mode=mode, **losses[which])


@each_mode
def test_a_loss_may_have_parameters_of_its_own_and_learn_them(mode):
    student, teacher, batch, quiz = network(), network(), exam(5), exam(4)
    alpha = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def loss(z_S, z_T, labels):
        return alpha * metadistil.soft_loss(z_S, z_T, 2.0) + (1 - alpha) * hard_loss(z_S, labels)

    found = meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, loss=loss, mode=mode)
    expected = meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, loss=partial(kd_loss, alpha=0.3))
    torch.testing.assert_close(found.grads, expected.grads)
    assert alpha.grad is None
    metadistil.real_update(student, teacher, batch, torch.optim.SGD([*student.parameters(), alpha], 0.1), loss)
    assert alpha != 0.3


@each_mode
@pytest.mark.parametrize("role, which, expected", [
    ("student", "kept", "by its name"), ("student", "renormed", "max_norm"), ("teacher", "renormed", "max_norm"),
    ("teacher", "silent", "no_grad"),
])  # fmt: skip
def test_a_network_that_hides_its_weights_or_its_graph_is_refused(role, which, expected, mode):
    odd = {"kept": nn.Embedding(9, 3), "renormed": nn.Embedding(9, 3, max_norm=1.0), "silent": nn.Embedding(9, 3)}
    kept = [odd["kept"].weight]  # where no replacement finds it
    odd["kept"].forward = lambda ids: kept[0][ids]
    odd["silent"].forward = torch.no_grad()(odd["silent"].forward)
    networks = {"student": nn.Embedding(9, 3), "teacher": nn.Embedding(9, 3)} | {role: odd[which]}
    words = torch.randint(9, (5,)), torch.randint(3, (5,))
    with pytest.raises(ValueError, match=expected):
        meta_gradient(*networks.values(), words, words, pilot_lr=0.3, mode=mode)


def test_a_parameter_that_both_train_is_refused():
    student, teacher = network(), network()
    teacher[0].weight = student[0].weight
    with pytest.raises(ValueError, match="share no trainable"):
        meta_gradient(student, teacher, exam(5), exam(4), pilot_lr=0.3)
    student[0].weight.requires_grad_(False)
    assert meta_gradient(student, teacher, exam(5), exam(4), pilot_lr=0.3).quiz_loss > 0


@each_mode
@pytest.mark.parametrize("who, where, named", [
    ("student", "batch", "the pilot gradient"), ("student", "quiz", "v, the quiz"),
    ("teacher", "batch", "the meta-gradient"),
])  # fmt: skip
def test_a_gradient_that_is_not_finite_is_named_and_nothing_moves(who, where, named, mode):
    exams, networks = {"batch": exam(5), "quiz": exam(4)}, {"student": network(), "teacher": network()}
    exams[where][0][0, 0] = 101.0
    # From inputs above 100 the derivative is NaN.
    networks[who].register_forward_hook(lambda _, given, z: z + (z - z.detach()).sqrt() if given[0].max() > 100 else z)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in networks.values()]
    before = copy.deepcopy([net.state_dict() for net in networks.values()])
    with pytest.raises(ValueError, match=f"finite gradients, found (nan|inf) in {named}"):
        metadistil_step(*networks.values(), *exams.values(), *optimizers, pilot_lr=0.3, mode=mode)
    torch.testing.assert_close([net.state_dict() for net in networks.values()], before, rtol=0, atol=0)


# ---- What is unusual, and right all the same


@each_mode
def test_under_autocast_the_numbers_are_those_without_its_cache(mode):
    """Around a loop, with an evaluation before it, which fills the cache with copies of the weights without a graph."""
    ends = []
    for cache in (True, False):
        torch.manual_seed(0)
        student, teacher = network().float(), network().float()
        batch, quiz = ((x.float(), y) for x, y in (exam(8), exam(6)))
        optimizers = [torch.optim.SGD(net.parameters(), 1.0) for net in (student, teacher)]
        losses = []
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            with torch.no_grad():
                student(batch[0]), teacher(batch[0])
            for _ in range(3):
                L_S, found = metadistil_step(student, teacher, batch, quiz, *optimizers, pilot_lr=1.0, mode=mode)
                losses += [L_S, found.quiz_loss]
                assert L_S.dtype == torch.float32 and found.grads[0].abs().max() > 0
        ends.append([*losses, *student.parameters(), *teacher.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


class Freezes(nn.Sequential):
    """Keeps its BatchNorm in eval mode when it is put in train mode."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()


def test_a_batchnorm_that_the_student_freezes_is_frozen_in_the_pilot_and_one_frozen_by_hand_is_not():
    free = network()
    free.insert(1, nn.BatchNorm1d(5).double())
    free[1].running_mean += torch.randn(5)
    by_hand, written_out = (copy.deepcopy(free) for _ in range(2))
    by_hand[1].eval()
    norm = written_out[1]  # as a function, without a mode
    norm.forward = lambda x: F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    students = {"frozen": Freezes(*copy.deepcopy(free)), "written out": written_out, "free": free, "by hand": by_hand}
    networks = network(), exam(5), exam(4)
    found = {kind: meta_gradient(student, *networks, pilot_lr=0.3) for kind, student in students.items()}
    torch.testing.assert_close(found["frozen"].grads, found["written out"].grads)
    torch.testing.assert_close(found["frozen"].theta_S_prime, found["written out"].theta_S_prime)
    torch.testing.assert_close(found["by hand"].grads, found["free"].grads)
    assert (found["frozen"].grads[0] - found["free"].grads[0]).abs().max() > 1e-6
    assert not by_hand[1].training


@each_mode
def test_sparse_gradients_give_the_numbers_of_dense_ones(mode):
    words = torch.randint(7, (4,)), torch.randint(3, (4,))
    dense, sparse = ([nn.Embedding(7, 3, sparse=sparse).double() for _ in range(2)] for sparse in (False, True))
    for one, other in zip(sparse, dense):
        one.load_state_dict(other.state_dict())
    found, expected = (meta_gradient(*networks, words, words, pilot_lr=0.3, mode=mode) for networks in (sparse, dense))
    torch.testing.assert_close(found.grads, expected.grads)
    assert expected.grads[0].abs().max() > 0
