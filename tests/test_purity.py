"""The student is untouched, whatever it is made of: networks with odd parts against the same function written plainly."""

import collections
import copy
import itertools
import os
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import metadistil
from metadistil import kd_loss, meta_gradient, metadistil_step

MODES = metadistil.MODES


class Odd(nn.Module):
    """A network with parts that could go wrong; `parts` is a set of their names."""

    def __init__(self, parts, width=6):
        super().__init__()
        self.parts = parts
        self.first = self.again = nn.Linear(width, width)  # one module under two names
        self.norm = self.norm_again = nn.BatchNorm1d(width) if "batchnorm" in parts else nn.Identity()
        self.tied, self.frozen, self.unused = (nn.Linear(width, width) for _ in range(3))
        self.act = nn.ReLU(inplace=True) if "in-place" in parts else nn.Tanh()
        self.head, self.dropout = nn.Linear(width, 3), nn.Dropout(0.5)
        if "tied" in parts:
            self.tied.weight = self.first.weight
        if "frozen" in parts:
            self.frozen.requires_grad_(False)
        if "shared" not in parts:
            self.again = nn.Linear(width, width)

    def block(self, x):
        return self.act(self.norm(self.again(self.act(self.first(x)))))

    def forward(self, x):
        x = checkpoint(self.block, x, use_reentrant=False) if "checkpoint" in self.parts else self.block(x)
        x = self.norm_again(self.frozen(x) + self.tied(x))
        return self.head(self.dropout(x))


def plainly(student, teacher, batch, quiz, pilot_lr):
    """The meta-gradient by a deep copy whose parameters are overwritten: nothing of the module under test."""
    copy_ = copy.deepcopy(student).eval()
    for module in copy_.modules():
        module.training = isinstance(module, nn.BatchNorm1d)
    copy_.parts = copy_.parts - {"checkpoint"}
    theta = [parameter for parameter in copy_.parameters() if parameter.requires_grad]
    z_T = teacher.eval()(batch[0])
    gradient = torch.autograd.grad(kd_loss(copy_(batch[0]), z_T, batch[1]), theta, create_graph=True, materialize_grads=True)
    ahead = copy.deepcopy(copy_)
    moving = [parameter for parameter in ahead.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter, part in zip(moving, gradient):
            parameter -= pilot_lr * part
    v = torch.autograd.grad(F.cross_entropy(ahead(quiz[0]), quiz[1]), moving, materialize_grads=True)
    inner = sum((part * direction).sum() for part, direction in zip(gradient, v))
    return torch.autograd.grad(-pilot_lr * inner, list(teacher.parameters()))


def state_of(network):
    """Everything that must not change: values, identities, gradients, modes, plain attributes."""
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    held = [(name, id(tensor), tensor.detach().clone(), tensor.grad) for name, tensor in tensors]
    return held, [(module.training, set(vars(module))) for module in network.modules()]


def assert_untouched(network, before):
    held, modes = state_of(network)
    assert modes == before[1] and len(held) == len(before[0])
    for (name, place, values, grad), (name_0, place_0, values_0, grad_0) in zip(held, before[0]):
        assert (name, place) == (name_0, place_0) and torch.equal(values, values_0) and grad is grad_0, name


def case(parts, seed=0):
    torch.manual_seed(seed)
    student, teacher = Odd(frozenset(parts)).double().train(), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    exam = lambda n: (torch.randn(n, 6, dtype=torch.float64), torch.randint(3, (n,)))  # noqa: E731
    return student, teacher, exam(7), exam(5)


PARTS = ("shared", "tied", "frozen", "batchnorm", "in-place", "checkpoint")


SUBSETS = [subset for n in range(len(PARTS) + 1) for subset in itertools.combinations(PARTS, n)]


@pytest.mark.parametrize("parts", SUBSETS, ids=lambda parts: ",".join(parts) or "none")
def test_odd_networks_equal_the_same_function_written_plainly(parts):
    for mode in MODES:
        student, teacher, batch, quiz = case(parts, seed=len(",".join(parts)))
        teacher.eval()
        expected, before = plainly(student, teacher, batch, quiz, 0.3), (state_of(student), state_of(teacher))
        found = meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, mode=mode, trace={})
        torch.testing.assert_close(found.grads, list(expected), rtol=1e-9, atol=1e-12)
        assert_untouched(student, before[0])
        assert_untouched(teacher, before[1])


def test_an_error_within_leaves_the_student_untouched():
    student, teacher, batch, quiz = case({"shared", "batchnorm"})
    before = state_of(student)

    def breaks(*_):
        raise ZeroDivisionError

    for wrong in ({"loss": breaks}, {"quiz_loss": breaks}):
        with pytest.raises(ZeroDivisionError):
            meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, **wrong)
        assert_untouched(student, before)


@pytest.mark.parametrize("mode", MODES)
def test_a_shared_student_beside_a_teacher_that_stays_is_kd(mode):
    """The optimiser still holds the network's own parameters, and BatchNorm's averages move as in KD."""
    ends = []
    for ours in (True, False):
        student, teacher, batch, quiz = case({"shared", "tied", "batchnorm"})
        optimizer, still = torch.optim.SGD(student.parameters(), 0.1), torch.optim.SGD(teacher.parameters(), 0.0)
        for _ in range(3):
            if ours:
                metadistil_step(student, teacher, batch, quiz, optimizer, still, pilot_lr=0.3, mode=mode)
            else:
                metadistil.real_update(student, teacher, batch, optimizer)
        ends.append([*student.parameters(), *student.buffers()])
    assert all(map(torch.equal, *ends))


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize("wrong, expected", [
    ({"mode": "finite_difference"}, "second_order"),
    ({"teachers": "teacher"}, "Module"),
    ({"batch": torch.zeros(2, 6)}, "pair"),
    ({"quiz": [(torch.zeros(2, 6), torch.zeros(2))] * 2}, "pair"),
    ({"batch": ([torch.zeros(2, 6)] * 2, torch.zeros(2).long())}, "a tuple or a dict"),
    ({"quiz": ([torch.zeros(2, 6)] * 2, torch.zeros(2).long())}, "a tuple or a dict"),
    ({"quiz": (torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2))}, "class numbers"),
])  # fmt: skip
def test_what_is_not_of_the_form_is_refused_at_the_door(wrong, expected):
    student, teacher, batch, quiz = case(())
    with pytest.raises(ValueError, match=expected):
        meta_gradient(**{"student": student, "teachers": teacher, "batch": batch, "quiz": quiz, "pilot_lr": 0.1} | wrong)


class Returns(nn.Module):
    """A linear layer of one or two inputs whose logits come out in some wrapping."""

    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(6, 3).double(), wrap

    def forward(self, x, scale=None):
        return self.wrap(self.layer(x if scale is None else x * scale))


@pytest.mark.parametrize("wrap", [
    lambda z: {"logits": z}, lambda z: types.SimpleNamespace(logits=z), lambda z: collections.OrderedDict(logits=z),
    lambda z: (z,), lambda z: (z, z.square()),
])  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_logits_come_in_any_usual_wrapping(wrap, mode):
    _, teacher, batch, quiz = case(())
    wrapped, plain = Returns(wrap), Returns(lambda z: z)
    wrapped.load_state_dict(plain.state_dict())
    teachers = Returns(wrap), Returns(wrap)
    found, expected = (
        meta_gradient(student, list(teachers), batch, quiz, pilot_lr=0.1, mode=mode).grads for student in (wrapped, plain)
    )
    assert found[0].abs().max() > 0 and all(map(torch.equal, found, expected))
    with pytest.raises(ValueError, match="to return logits"):
        meta_gradient(Returns(lambda z: {"scores": z}), teacher, batch, quiz, pilot_lr=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_pairs_as_a_dataloader_gives_them_and_inputs_as_a_tuple(mode):
    student, teacher = Returns(lambda z: z), Returns(lambda z: z)
    _, _, (x, y), (x_q, y_q) = case(())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    plain = meta_gradient(student, teacher, (x, y), (x_q, y_q), pilot_lr=0.1, mode=mode)
    found = meta_gradient(student, teacher, next(iter(loader)), [x_q, y_q], pilot_lr=0.1, mode=mode)
    assert all(map(torch.equal, found.grads, plain.grads))
    two = torch.tensor(2.0).double()
    scaled = meta_gradient(student, teacher, ((x, two), y), ((x_q, two), y_q), pilot_lr=0.1, mode=mode)
    expected = meta_gradient(student, teacher, (2 * x, y), (2 * x_q, y_q), pilot_lr=0.1, mode=mode)
    assert all(map(torch.equal, scaled.grads, expected.grads))


@pytest.mark.parametrize("mode", MODES)
def test_a_sequential_is_one_teacher_and_the_trace_shares_no_memory(mode):
    student, teacher, batch, quiz = case(())
    optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (student, teacher)]
    trace = {}
    _, found = metadistil_step(student, teacher, list(batch), list(quiz), *optimizers, pilot_lr=0.3, mode=mode, trace=trace)
    assert list(trace["meta_gradient"]) == [name for name, _ in teacher.named_parameters()]
    kept = {name: value.clone() for name, value in trace["meta_gradient"].items()}
    moved = {name: value.clone() for name, value in trace["theta_S_prime"].items()}
    for tensor in (*found.grads, *found.theta_S_prime.values()):
        tensor *= 100
    assert all(torch.equal(trace["meta_gradient"][name], value) for name, value in kept.items())
    assert all(torch.equal(trace["theta_S_prime"][name], value) for name, value in moved.items())
    assert {"real_loss", "real_gradient", "real_gradient_norms", "quiz_loss_before"} <= set(trace)


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
    student, teacher = Attends(), Attends()
    exam = lambda n: (torch.randn(n, 5, 8), torch.randint(3, (n,)))  # noqa: E731
    batch, quiz = exam(6), exam(4)
    one, other = (meta_gradient(student, teacher, batch, quiz, pilot_lr=0.3, mode=mode).grads for mode in MODES)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
    assert torch.backends.mha.get_fastpath_enabled()


# ---------------------------------------------------------------- several processes

RANK = """
import sys, torch
sys.path.insert(0, {root!r})
sys.path.insert(0, {tests!r})
import metadistil
import test_purity
rank, ranks, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{{sys.argv[4]}}", rank=rank, world_size=ranks)
loss = getattr(test_purity, sys.argv[5])
torch.save(test_purity.split_case(rank, ranks, mode, loss), f"{{sys.argv[4]}}-{{rank}}")
"""


def states_loss(student_outputs, teacher_outputs, labels):
    return kd_loss(student_outputs, teacher_outputs, labels) + (student_outputs[1] - teacher_outputs[1]).square().mean()


def summed_loss(student_outputs, teacher_outputs, labels):
    """Not a mean over examples."""
    return len(labels) * states_loss(student_outputs, teacher_outputs, labels)


def split_case(rank, ranks, mode, loss=states_loss):
    """Meta-gradient, quiz loss and student after a step, of this rank's part of one batch; the parts are uneven."""
    torch.manual_seed(0)
    student, *teachers = (Returns(lambda z: (z, z.square())) for _ in range(3))
    x, y = torch.randn(22, 6, dtype=torch.float64), torch.randint(3, (22,))
    batch, quiz = (x[:13], y[:13]), (x[13:], y[13:])
    shares = {1: [1.0], 2: [0.25, 1.0], 3: [0.25, 0.5, 1.0]}[ranks]
    cut = lambda n: slice(int(([0.0] + shares)[rank] * n), int(shares[rank] * n))  # noqa: E731
    batch, quiz = (tuple(part[cut(len(part))] for part in whole) for whole in (batch, quiz))
    optimizers = [torch.optim.SGD(nn.ModuleList(group).parameters(), 0.1) for group in ([student], teachers)]
    L_S, found = metadistil_step(
        student, teachers, batch, quiz, *optimizers, pilot_lr=0.3, loss=loss, mode=mode
    )
    parameters = [theta.detach() for theta in nn.ModuleList([student, *teachers]).parameters()]
    return [L_S, found.quiz_loss, *found.grads, *parameters]


def split(folder, ranks, mode, loss):
    """What each of the processes finds, a list for each."""
    if not torch.distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    code = RANK.format(root=str(ROOT), tests=str(ROOT / "tests"))
    command = [sys.executable, "-c", code]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    given = [str(ranks), mode, str(folder / "meet"), loss.__name__]
    processes = [subprocess.Popen([*command, str(rank), *given], env=environment) for rank in range(ranks)]
    assert [process.wait(timeout=120) for process in processes] == [0] * ranks
    return [torch.load(f"{folder / 'meet'}-{rank}") for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_batch_split_over_processes_gives_the_step_of_the_whole_batch(tmp_path, ranks, mode):
    whole = split_case(0, 1, mode)
    for found in split(tmp_path, ranks, mode, states_loss):
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_over_processes_a_loss_must_be_a_mean_over_examples(tmp_path):
    """A sum's mean over the processes is not the sum over all."""
    L_S, *_ = split_case(0, 1, "second_order", summed_loss)
    for found in split(tmp_path, 2, "second_order", summed_loss):
        assert abs(found[0] / L_S - 1) > 0.1
