"""No network is changed, whatever it is made of: odd parts against the same function written plainly. Then the form of
arguments, and a batch that is split over processes."""

import contextlib
import copy
import types
from datetime import timedelta

import pytest
import torch
from test_metadistil import states_loss
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import metadistil
from metadistil import kd_loss, meta_gradient, metadistil_step

MODES = metadistil.MODES
PARTS = ("shared", "tied", "frozen", "batchnorm", "in-place", "checkpoint")


class Odd(nn.Module):
    """A network with some of PARTS, each of which could go wrong. It always has an unused layer, dropout, a buffer that
    the forward pass changes, and a train() that does not return it."""

    def __init__(self, parts, width=6):
        super().__init__()
        self.parts = parts
        self.first, self.tied, self.frozen, self.unused = (nn.Linear(width, width) for _ in range(4))
        self.again = self.first if "shared" in parts else nn.Linear(width, width)  # one module under two names
        self.norm = self.norm_again = nn.BatchNorm1d(width) if "batchnorm" in parts else nn.Identity()
        self.act = nn.ReLU(inplace=True) if "in-place" in parts else nn.Tanh()
        self.head, self.dropout = nn.Linear(width, 3), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        if "tied" in parts:
            self.tied.weight = self.first.weight
        if "frozen" in parts:
            self.frozen.requires_grad_(False)
        self.double()

    def train(self, mode=True):
        super().train(mode)

    def block(self, x):
        return self.dropout(self.act(self.norm(self.again(self.act(self.first(x))))))

    def forward(self, x):
        self.calls += 1
        x = checkpoint(self.block, x, use_reentrant=False) if "checkpoint" in self.parts else self.block(x)
        return self.head(self.norm_again(self.frozen(x) + self.tied(x)))


def exam(n):
    return torch.randn(n, 6, dtype=torch.float64), torch.randint(3, (n,))


def case(parts=()):
    """(student, teacher, batch, quiz), the same at every call. Both networks are odd, a part of the teacher in eval."""
    torch.manual_seed(len(",".join(parts)))
    student, teacher = Odd(frozenset(parts)), Odd(frozenset(parts))
    teacher.head.eval()
    return student, teacher, exam(7), exam(5)


def plainly(student, teacher, batch, quiz, pilot_lr):
    """The meta-gradient by deep copies whose parameters are overwritten: nothing of the module under test."""
    pupil, expert = copy.deepcopy(student), copy.deepcopy(teacher).requires_grad_()
    pupil.parts = expert.parts = student.parts - {"checkpoint"}
    expert.eval()
    for module in pupil.modules():
        module.training = isinstance(module, nn.BatchNorm1d)
    ahead = copy.deepcopy(pupil)
    theta, theta_prime = ([p for p in network.parameters() if p.requires_grad] for network in (pupil, ahead))
    L_S = kd_loss(pupil(batch[0]), expert(batch[0]), batch[1])
    gradient = torch.autograd.grad(L_S, theta, create_graph=True, materialize_grads=True)
    with torch.no_grad():
        for parameter, part in zip(theta_prime, gradient):
            parameter -= pilot_lr * part
    v = torch.autograd.grad(F.cross_entropy(ahead(quiz[0]), quiz[1]), theta_prime, materialize_grads=True)
    inner = sum((part * direction).sum() for part, direction in zip(gradient, v))
    grads = torch.autograd.grad(-pilot_lr * inner, list(expert.parameters()), materialize_grads=True)
    return [gradient * theta.requires_grad for gradient, theta in zip(grads, teacher.parameters())]


def snapshot(network):
    """The tensors of a network by name, each with a copy of its values and its gradient; modes and attributes."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    tensors = {name: (tensor, tensor.detach().clone(), tensor.grad) for name, tensor in named}
    return tensors, [(module.training, set(vars(module))) for module in network.modules()]


@contextlib.contextmanager
def untouched(*networks):
    """Fails if the block changes a tensor, its values or its gradient, a mode or which attributes there are."""
    before = [snapshot(network) for network in networks]
    yield
    for network, (tensors, modes) in zip(networks, before):
        now, modes_now = snapshot(network)
        assert modes_now == modes and now.keys() == tensors.keys()
        for name, (tensor, values, grad) in now.items():
            old_tensor, old_values, old_grad = tensors[name]
            assert tensor is old_tensor and torch.equal(values, old_values) and grad is old_grad, name


@pytest.mark.parametrize("parts", [(), *((part,) for part in PARTS), PARTS], ids=str)
def test_odd_networks_equal_the_same_function_written_plainly_and_stay_as_they_were(parts):
    student, teacher, batch, quiz = case(parts)
    expected = plainly(student, teacher, batch, quiz, pilot_lr=0.3)
    for mode in MODES:
        with untouched(student, teacher):
            trace = {}
            found = meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, mode=mode, trace=trace)
        torch.testing.assert_close(found.grads, expected, rtol=1e-9, atol=1e-12)
        assert list(trace["meta_gradient"]) == [name for name, _ in teacher.named_parameters()]
        assert found.grads[0].abs().max() > 0


@pytest.mark.parametrize("which", ["loss", "quiz_loss"])
def test_an_error_within_leaves_the_networks_untouched(which):
    student, teacher, batch, quiz = case(("shared", "batchnorm"))

    def breaks(*_):
        raise ZeroDivisionError

    with untouched(student, teacher), pytest.raises(ZeroDivisionError):
        meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, **{which: breaks})


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_an_odd_student_beside_a_teacher_that_stays_learns_as_in_kd(frozen, mode):
    """The optimiser still holds the network's own parameters, and dropout and BatchNorm's averages are those of KD. A
    frozen teacher stays even with an optimiser that decays weights. Its quiz is held all the same."""
    ends = []
    for ours in (True, False):
        student, teacher, batch, quiz = case(("shared", "tied", "batchnorm"))
        teacher.requires_grad_(not frozen)
        optimizer = torch.optim.AdamW(student.parameters(), 0.1)
        still = torch.optim.AdamW(teacher.parameters(), 0.1 if frozen else 0.0)
        with untouched(teacher):
            for _ in range(3):
                if ours:
                    _, found = metadistil_step(student, teacher, batch, quiz, optimizer, still, pilot_lr=0.3, mode=mode)
                    assert found.quiz_loss > 0 and frozen != any(gradient.any() for gradient in found.grads)
                else:
                    metadistil.real_update(student, teacher, batch, optimizer)
        ends.append([*student.parameters(), *student.buffers()])
    assert all(map(torch.equal, *ends))


# ---- The form of arguments and outputs


@pytest.mark.parametrize("wrong, expected", [
    ({"mode": "finite_difference"}, "second_order"),
    ({"teachers": "teacher"}, "Module"), ({"teachers": []}, "at least one teacher"),
    ({"batch": torch.zeros(2, 6)}, "pair"), ({"quiz": [(torch.zeros(2, 6), torch.zeros(2))] * 2}, "pair"),
    ({"batch": ([torch.zeros(2, 6)] * 2, torch.zeros(2).long())}, "a tuple or a dict"),
    ({"quiz": ([torch.zeros(2, 6)] * 2, torch.zeros(2).long())}, "a tuple or a dict"),
    ({"quiz": (torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2))}, "class numbers"),
])  # fmt: skip
def test_what_is_not_of_the_form_is_refused(wrong, expected):
    right = dict(zip(("student", "teachers", "batch", "quiz"), case()))
    with pytest.raises(ValueError, match=expected):
        meta_gradient(**right | wrong, pilot_lr=0.1)


class Returns(nn.Module):
    """A linear layer of one or two inputs whose logits come out in some wrapping."""

    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(6, 3).double(), wrap

    def forward(self, x, scale=None):
        return self.wrap(self.layer(x if scale is None else x * scale))


@pytest.mark.parametrize("wrap", [
    lambda z: {"logits": z}, lambda z: types.SimpleNamespace(logits=z), lambda z: (z,), lambda z: (z, z.square()),
])  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_logits_come_in_any_usual_wrapping(wrap, mode):
    _, _, batch, quiz = case()
    wrapped, plain = Returns(wrap), Returns(lambda z: z)
    wrapped.load_state_dict(plain.state_dict())
    teachers = [Returns(wrap), Returns(wrap)]
    expected = meta_gradient(plain, teachers, batch, quiz, pilot_lr=0.1, mode=mode).grads
    found = meta_gradient(wrapped, teachers, batch, quiz, pilot_lr=0.1, mode=mode).grads
    assert found[0].abs().max() > 0 and all(map(torch.equal, found, expected))
    with pytest.raises(ValueError, match="to return logits"):
        meta_gradient(Returns(lambda z: {"scores": z}), teachers, batch, quiz, pilot_lr=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_pairs_may_be_lists_and_inputs_tuples(mode):
    student, teacher, two = Returns(lambda z: z), Returns(lambda z: z), torch.tensor(2.0).double()
    _, _, (x, y), (x_q, y_q) = case()
    expected = meta_gradient(student, teacher, (2 * x, y), (2 * x_q, y_q), pilot_lr=0.1, mode=mode)
    found = meta_gradient(student, teacher, [(x, two), y], [(x_q, two), y_q], pilot_lr=0.1, mode=mode)
    assert all(map(torch.equal, found.grads, expected.grads))


class Attends(nn.Module):
    """torch's own transformer layer, whose fused attention has neither double backward nor forward mode."""

    def __init__(self, width=8):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        states = self.layer(x)
        states = states + F.scaled_dot_product_attention(states, states, states)
        return self.head(states.mean(dim=1))


def test_torchs_fused_attention_is_told_to_be_differentiable_twice():
    batch, quiz = ((torch.randn(n, 5, 8), torch.randint(3, (n,))) for n in (6, 4))
    networks = Attends(), Attends()
    one, other = (meta_gradient(*networks, batch, quiz, pilot_lr=0.3, mode=mode).grads for mode in MODES)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
    assert torch.backends.mha.get_fastpath_enabled()


# ---- Several processes


def summed_loss(student_outputs, teacher_outputs, labels):
    """Not a mean over examples."""
    return len(labels) * states_loss(student_outputs, teacher_outputs, labels)


def step_of(share, mode, loss):
    """Losses, meta-gradient and parameters after one step on a share (first, last) of one batch and quiz."""
    torch.manual_seed(0)
    student, *teachers = (Returns(lambda z: (z, z.square())) for _ in range(3))

    def part(examples):
        first, last = (int(bound * len(examples[1])) for bound in share)
        return tuple(tensor[first:last] for tensor in examples)

    batch, quiz = part(exam(13)), part(exam(9))
    optimizers = [torch.optim.SGD(nn.ModuleList(group).parameters(), 0.1) for group in ([student], teachers)]
    L_S, found = metadistil_step(student, teachers, batch, quiz, *optimizers, pilot_lr=0.3, loss=loss, mode=mode)
    parameters = [theta.detach() for theta in nn.ModuleList([student, *teachers]).parameters()]
    return [L_S, found.quiz_loss, *found.grads, *parameters]


STEPS = {"second_order": ("second_order", states_loss), "jvp": ("jvp", states_loss), "sum": ("jvp", summed_loss)}
SHARES = [(0, 0.25), (0.25, 0.5), (0.5, 1)]  # uneven


def one_process(rank, folder):
    meet, limit = f"file://{folder}/meet", timedelta(minutes=2)
    torch.distributed.init_process_group("gloo", meet, limit, world_size=len(SHARES), rank=rank)
    torch.save({name: step_of(SHARES[rank], *step) for name, step in STEPS.items()}, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_batch_split_over_processes_gives_the_step_of_the_whole_batch(tmp_path):
    """The loss must be a mean over examples: a sum's mean over processes is not the whole sum."""
    if not torch.distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    torch.multiprocessing.spawn(one_process, (tmp_path,), nprocs=len(SHARES))
    whole = {name: step_of((0, 1), *step) for name, step in STEPS.items()}
    for rank in range(len(SHARES)):
        found = torch.load(tmp_path / str(rank))
        for mode in MODES:
            torch.testing.assert_close(found[mode], whole[mode], rtol=1e-12, atol=1e-15)
        assert abs(found["sum"][0] / whole["sum"][0] - 1) > 0.1
