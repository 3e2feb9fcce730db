"""Nothing is silently wrong: what the algorithm cannot differentiate it refuses, and what it can it gets right."""

import copy
from functools import partial

import pytest
import torch
from conftest import shaken
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import metadistil
from metadistil import hard_loss, kd_loss, meta_gradient, metadistil_step

MODES = metadistil.MODES


def exam(n, width=6, classes=3):
    return torch.randn(n, width, dtype=torch.float64), torch.randint(classes, (n,))


def network(*middle):
    return shaken(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), *middle, nn.Linear(5, 3)).double())


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


class Squared(nn.Module):
    def forward(self, x):
        return Square.apply(x)


@pytest.mark.parametrize("student", [network(Squared()), nn.Sequential(network(), Squared())], ids=["middle", "last"])
def test_an_operation_that_is_differentiable_once_is_refused(student):
    with pytest.raises(ValueError, match="differentiated twice"):
        meta_gradient(student, network(), exam(5), exam(4), pilot_lr=0.3)
    with pytest.raises((RuntimeError, NotImplementedError), match="autograd.Function"):
        meta_gradient(student, network(), exam(5), exam(4), pilot_lr=0.3, mode="jvp")
    plain = nn.Sequential(*[module for module in student if not isinstance(module, Squared)])
    assert meta_gradient(plain, network(), exam(5), exam(4), pilot_lr=0.3).grads[0].abs().max() > 0


@pytest.mark.parametrize("mode", MODES)
def test_under_autocast_the_numbers_are_those_without_its_cache(mode):
    """Around a loop, with an evaluation before it, which fills the cache with copies of the weights without a graph."""
    ends = []
    for cache in (True, False):
        torch.manual_seed(0)
        student, teacher = network().float(), network().float()
        (x, y), (x_q, y_q) = exam(8), exam(6)
        optimizers = [torch.optim.SGD(net.parameters(), 1.0) for net in (student, teacher)]
        losses = []
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            with torch.no_grad():
                student(x.float()), teacher(x.float())
            for _ in range(3):
                L_S, found = metadistil_step(
                    student, teacher, (x.float(), y), (x_q.float(), y_q), *optimizers, pilot_lr=1.0, mode=mode
                )
                losses += [L_S, found.quiz_loss]
                assert found.grads[0].abs().max() > 0
        ends.append([*losses, *student.parameters(), *teacher.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


class Overheard:
    """A loss that adds the distance of states which forward hooks have kept."""

    def __init__(self, **heard):
        self.states = {}
        for name, module in heard.items():
            module.register_forward_hook(lambda _, __, output, name=name: self.states.update({name: output}))

    def __call__(self, z_S, z_T, labels):
        return kd_loss(z_S, z_T, labels) + sum(state.square().mean() for state in self.states.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_loss_that_hears_a_network_beside_its_outputs_is_refused(who, mode):
    networks = {"student": network(), "teacher": network()}
    loss = Overheard(**{who: networks[who][0]})
    with pytest.raises(ValueError, match="outputs alone"):
        meta_gradient(*networks.values(), exam(5), exam(4), pilot_lr=0.3, loss=loss, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_may_have_parameters_of_its_own_and_learn_them(mode):
    student, teacher, batch, quiz = network(), network(), exam(5), exam(4)
    alpha = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def loss(z_S, z_T, labels):
        return alpha * metadistil.soft_loss(z_S, z_T, 2.0) + (1 - alpha) * hard_loss(z_S, labels)

    found = meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, loss=loss, mode=mode)
    expected = meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, loss=partial(kd_loss, alpha=0.3))
    torch.testing.assert_close(found.grads, expected.grads)
    assert alpha.grad is None
    optimizer = torch.optim.SGD([*student.parameters(), alpha], 0.1)
    metadistil.real_update(student, teacher, batch, optimizer, loss)
    assert alpha != 0.3


class Breaks(nn.Module):
    """The network, whose derivative is NaN for inputs with an entry above 100."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        z = self.inner(x)
        zero = z - z.detach()
        return z + zero.sqrt() if x.max() > 100 else z


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("who, where, named", [
    ("student", "batch", "the pilot gradient"), ("student", "quiz", "v, the quiz"), ("teacher", "batch", "the meta-gradient"),
])  # fmt: skip
def test_a_gradient_that_is_not_finite_is_named_and_nothing_moves(who, where, named, mode):
    student, teacher, exams = network(), network(), {"batch": exam(5), "quiz": exam(4)}
    exams[where][0][0, 0] = 101.0
    student, teacher = (Breaks(net) if who == name else net for name, net in (("student", student), ("teacher", teacher)))
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (student, teacher)]
    before = copy.deepcopy([*student.parameters(), *teacher.parameters()])
    with pytest.raises(ValueError, match=f"finite gradients, found (nan|inf) in {named}"):
        metadistil_step(student, teacher, *exams.values(), *optimizers, pilot_lr=0.3, mode=mode)
    assert all(map(torch.equal, before, [*student.parameters(), *teacher.parameters()]))


class Frozen(nn.Module):
    """A network that keeps its BatchNorm in eval mode when it is put in train mode."""

    def __init__(self, freezes):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.freezes = freezes
        self.norm.running_mean += torch.randn(5)
        self.double()

    def train(self, mode=True):
        super().train(mode)
        if self.freezes:
            self.norm.eval()
        return self

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.first(x))))


def test_a_batchnorm_that_the_student_freezes_is_frozen_in_the_pilot_and_one_frozen_by_hand_is_not():
    batch, quiz, teacher = exam(5), exam(4), network()
    torch.manual_seed(1)
    frozen = Frozen(freezes=True)
    free = Frozen(freezes=False)
    free.load_state_dict(frozen.state_dict())
    affine = copy.deepcopy(frozen)  # the same function, its BatchNorm written as the affine map that it is when frozen

    class Affine(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.weight, self.bias, self.norm = norm.weight, norm.bias, [norm]

        def forward(self, x):
            [norm] = self.norm
            return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * self.weight + self.bias

    affine.freezes, affine.norm = False, Affine(affine.norm)
    found, expected, with_statistics = (
        meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3) for student in (frozen, affine, free)
    )
    torch.testing.assert_close(found.grads, expected.grads)
    torch.testing.assert_close(list(found.theta_S_prime.values()), list(expected.theta_S_prime.values()))
    by_hand = copy.deepcopy(free).train()
    by_hand.norm.eval()
    torch.testing.assert_close(
        meta_gradient(by_hand, teacher, batch, quiz, pilot_lr=0.3).grads, with_statistics.grads
    )
    assert not by_hand.norm.training and (found.grads[0] - with_statistics.grads[0]).abs().max() > 1e-6


class Noisy(nn.Module):
    """A teacher with dropout and activation checkpointing, which runs the forward pass again in the backward pass."""

    def __init__(self, checkpointed):
        super().__init__()
        self.body, self.head, self.checkpointed = nn.Sequential(network(), nn.Dropout(0.5)), nn.Linear(3, 3), checkpointed
        self.double()

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x))


@pytest.mark.parametrize("mode", MODES)
def test_a_teacher_is_in_eval_mode_throughout_and_then_as_it_was(mode):
    batch, quiz, student = exam(5), exam(4), network()
    noisy, plain = Noisy(True), Noisy(False)
    plain.load_state_dict(noisy.state_dict())
    noisy.train()
    noisy.head.eval()
    modes = [module.training for module in noisy.modules()]
    found = meta_gradient(student, noisy, batch, quiz, pilot_lr=0.3, mode=mode)
    assert [module.training for module in noisy.modules()] == modes
    torch.testing.assert_close(found.grads, meta_gradient(student, plain.eval(), batch, quiz, pilot_lr=0.3).grads)
    metadistil.real_update(student, noisy, batch, torch.optim.SGD(student.parameters(), 0.1))
    assert [module.training for module in noisy.modules()] == modes


def test_a_teacher_without_a_graph_is_refused():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        @torch.no_grad()
        def forward(self, x):
            return self.inner(x)

    with pytest.raises(ValueError, match="no_grad"):
        meta_gradient(network(), Silent(), exam(5), exam(4), pilot_lr=0.3)


@pytest.mark.parametrize("mode", MODES)
def test_sparse_gradients_give_the_numbers_of_dense_ones(mode):
    class Words(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            self.words, self.head = nn.Embedding(7, 5, sparse=sparse), nn.Linear(5, 3)
            self.double()

        def forward(self, ids):
            return self.head(torch.tanh(self.words(ids).mean(dim=1)))

    pair = torch.randint(7, (4, 3)), torch.randint(3, (4,))
    sparse, dense = [Words(True), Words(True)], [Words(False), Words(False)]
    for one, other in zip(sparse, dense):
        one.load_state_dict(other.state_dict())
    found, expected = (meta_gradient(*networks, pair, pair, pilot_lr=0.3, mode=mode).grads for networks in (sparse, dense))
    torch.testing.assert_close(found, expected)


class Counts(nn.Module):
    """A teacher whose forward pass changes a buffer, and whose train() does not return it."""

    def __init__(self):
        super().__init__()
        self.inner = network()
        self.register_buffer("calls", torch.zeros(()))

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


@pytest.mark.parametrize("mode", MODES)
def test_a_teachers_buffers_stay_and_train_need_not_return_the_network(mode):
    student, teacher = Counts(), Counts()
    meta_gradient(student, teacher, exam(5), exam(4), pilot_lr=0.3, mode=mode, trace={})
    assert teacher.calls == student.calls == 0
    metadistil.real_update(student, teacher, exam(5), torch.optim.SGD(student.parameters(), 0.1))
    assert student.calls == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_quiz_loss_that_hears_the_teacher_is_refused(mode):
    student, teacher = network(), network()

    def quiz_loss(logits, labels):
        return hard_loss(logits, labels) + teacher[0].weight.square().sum()

    with pytest.raises(ValueError, match="outputs alone"):
        meta_gradient(student, teacher, exam(5), exam(4), pilot_lr=0.3, quiz_loss=quiz_loss, mode=mode)


def test_a_parameter_that_both_train_is_refused():
    student, teacher = network(), network()
    teacher[0].weight = student[0].weight
    with pytest.raises(ValueError, match="share no trainable"):
        meta_gradient(student, teacher, exam(5), exam(4), pilot_lr=0.3)
    student[0].weight.requires_grad_(False)
    assert meta_gradient(student, teacher, exam(5), exam(4), pilot_lr=0.3).quiz_loss > 0


class Kept(nn.Module):
    """Reads its weights from a list, where no replacement finds them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.kept = [self.weight]

    def forward(self, x):
        return nn.functional.linear(x, self.kept[0])


class Renormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 3, max_norm=1.0)

    def forward(self, x):
        return self.table(x.argmax(dim=1))


@pytest.mark.parametrize("mode", metadistil.MODES)
def test_networks_whose_weights_cannot_be_replaced_are_refused(mode):
    """Before, the meta-gradient of the first was 0, and the second's weights had changed."""
    batch, plain = (torch.randn(6, 4), torch.randint(3, (6,))), nn.Linear(4, 3)
    for student, teacher, expected in [(Kept(), plain, "by its name"), (Renormed(), plain, "max_norm"), (plain, Renormed(), "max_norm")]:
        with pytest.raises(ValueError, match=expected):
            metadistil.meta_gradient(student, teacher, batch, batch, pilot_lr=0.1, mode=mode)
