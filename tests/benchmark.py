"""What MetaDistil costs beside plain KD: `python tests/benchmark.py` prints one table.

One pair of encoders, the teacher twice as deep as its student, and one batch and quiz batch of the task's own lengths.
All steps are whole ones, optimisers included. The rounds go through every row in turn, so that a machine that slows
down is fair to all; times are medians over the rounds. Memory is measured in a process for each row. Nothing is asserted.
bfloat16 has rows where the machine multiplies in it: imitated, it is too slow to wait for (train.bf16_in_hardware).
"""

import argparse
import importlib.util
import itertools
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import metadistil
import models
import train

PILOT_LR = 0.02


def flags():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin", help="builtin, or the directory of SST-2's files")
    parser.add_argument("--student-layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one row's peak memory, for the parent process
    return parser.parse_args()


class Bench:
    """Two networks in each precision that the machine multiplies in, a batch and a quiz batch of one shape."""

    def __init__(self, given):
        self.device, B = torch.device(train.DEVICE), given.batch_size
        task = data.load_task("sst2", given.data)
        self.tokenizer = data.train_tokenizer(task.train.keys)
        precisions = ["fp32"] + ["bf16"] * train.bf16_in_hardware()
        self.pairs = {precision: self.build(given, precision) for precision in precisions}
        reader = models.Model(self.pairs["fp32"][0], self.tokenizer, task.label_names, task.columns)
        self.lengths = reader.lengths(task.train.examples)
        self.batches = data.batches_of(self.lengths, B, 0, 0)
        longest = {i: self.lengths[rows].max() for i, rows in enumerate(self.batches) if len(rows) == B}
        usual = np.median(list(longest.values()))  # a batch of the usual length, and a quiz of the same
        first, second = sorted(longest, key=lambda i: abs(longest[i] - usual))[:2]
        drawn = [task.train[self.batches[i]] for i in (first, second)]
        self.batch, self.quiz = ((reader.inputs(split.examples), self.tensor(split.labels)) for split in drawn)

    def tensor(self, labels):
        return torch.from_numpy(labels).to(self.device)

    def build(self, given, precision: str):
        """Student, teacher and their optimisers: the same weights every time, products in the precision."""
        torch.manual_seed(0)
        sizes = {"vocab_size": self.tokenizer.get_vocab_size(), "hidden": given.width, "dropout": 0.1}
        sizes |= {"heads": given.width // 64, "intermediate": 4 * given.width}
        depths = given.student_layers, 2 * given.student_layers
        networks = [models.Encoder(models.EncoderConfig(layers=n, **sizes)).to(self.device) for n in depths]
        for network in networks if precision == "bf16" else ():
            half = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
            network.forward = half(network.forward)
        return *networks, *(torch.optim.AdamW(network.parameters(), 1e-5, fused=True) for network in networks)

    def rows(self) -> dict:
        """{(method, precision): a function that takes one step (or eight)}."""
        found = {}
        for precision, (student, teacher, *optimizers) in self.pairs.items():

            def kd(student=student, teacher=teacher, optimizers=optimizers):
                metadistil.real_update(student, [teacher], self.batch, optimizers[0])

            def ours(mode, student=student, teacher=teacher, optimizers=optimizers):
                settings = {"pilot_lr": PILOT_LR, "mode": mode}
                metadistil.metadistil_step(student, [teacher], self.batch, self.quiz, *optimizers, **settings)

            def every_eighth(kd=kd, ours=ours):
                ours("jvp")
                for _ in range(7):
                    kd()

            found["KD", precision] = kd
            for mode in metadistil.MODES:
                found[f"MetaDistil, {mode}", precision] = lambda mode=mode, ours=ours: ours(mode)
            found["MetaDistil, jvp, every 8th step", precision] = every_eighth
        for name, gradient in {"higher": with_higher, "torchopt": with_torchopt}.items():
            if importlib.util.find_spec(name):
                found[f"the same with {name}", "fp32"] = lambda gradient=gradient: self.foreign(gradient)
        return found

    def foreign(self, gradient):
        """A whole step whose meta-gradient comes from another package."""
        student, teacher, student_optimizer, teacher_optimizer = self.pairs["fp32"]
        student.eval(), teacher.eval()
        for theta, found in zip(teacher.parameters(), gradient(student, teacher, self.batch, self.quiz)):
            theta.grad = found
        teacher_optimizer.step()
        teacher_optimizer.zero_grad()
        metadistil.real_update(student, [teacher], self.batch, student_optimizer)


def with_higher(student, teacher, batch, quiz):
    """The meta-gradient in the words of `higher` (0.2.1)."""
    import higher

    inner = torch.optim.SGD(student.parameters(), PILOT_LR)
    with higher.innerloop_ctx(student, inner, copy_initial_weights=False) as (pupil, optimizer):
        optimizer.step(metadistil.kd_loss(pupil(**batch[0]), teacher(**batch[0]), batch[1]))
        loss = torch.nn.functional.cross_entropy(pupil(**quiz[0]), quiz[1])
        return torch.autograd.grad(loss, list(teacher.parameters()))


def with_torchopt(student, teacher, batch, quiz):
    """The meta-gradient in the words of `torchopt` (0.7)."""
    import torchopt

    before = torchopt.extract_state_dict(student, by="reference")
    optimizer = torchopt.MetaSGD(student, PILOT_LR)
    optimizer.step(metadistil.kd_loss(student(**batch[0]), teacher(**batch[0]), batch[1]))
    loss = torch.nn.functional.cross_entropy(student(**quiz[0]), quiz[1])
    found = torch.autograd.grad(loss, list(teacher.parameters()))
    torchopt.recover_state_dict(student, before)
    return found


class Kept:
    """Counts the bytes that autograd keeps for backward passes at once: each storage once, parameters (leaves that
    require a gradient, θ′_S among them) left out, for they are there anyway."""

    def __init__(self):
        self.alive, self.bytes, self.peak = {}, 0, 0

    class Holder:
        def __init__(self, counter, tensor):
            self.counter, self.tensor, self.key = counter, tensor, tensor.untyped_storage().data_ptr()
            origin = tensor._base if tensor._base is not None else tensor
            self.counted = not (origin.is_leaf and origin.requires_grad)
            if self.counted:
                counter.alive[self.key] = counter.alive.get(self.key, 0) + 1
                if counter.alive[self.key] == 1:
                    counter.bytes += tensor.untyped_storage().nbytes()
                    counter.peak = max(counter.peak, counter.bytes)

        def __del__(self):
            if self.counted:
                self.counter.alive[self.key] -= 1
                if not self.counter.alive[self.key]:
                    self.counter.bytes -= self.tensor.untyped_storage().nbytes()

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda t: self.Holder(self, t), lambda holder: holder.tensor)


def least(bench, meta: bool) -> float:
    """The least arithmetic of a step. KD: the student forward (F_S) and backward (2 F_S), the teacher forward (F_T).
    An exact meta-gradient adds 5 F_S on the batch (forward, backward, and 2 F_S for the product J_S v, or its
    transpose), 3 F_S on the quiz and 3 F_T: 14 F_S, where the teacher is twice the student and the quiz like the batch."""
    student, teacher, *_ = bench.pairs["fp32"]
    F_S, F_S_quiz, F_T = (flops(lambda m=model, x=x: m(**x)) for model, x in
                          ((student, bench.batch[0]), (student, bench.quiz[0]), (teacher, bench.batch[0])))  # fmt: skip
    return 3 * F_S + F_T + meta * (5 * F_S + 3 * F_S_quiz + 3 * F_T)


def flops(step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def milliseconds(step, device) -> float:
    torch.cuda.synchronize() if device.type == "cuda" else None
    started = time.perf_counter()
    step()
    torch.cuda.synchronize() if device.type == "cuda" else None
    return 1000 * (time.perf_counter() - started)


def peak_of(row: int) -> float:
    """The row's peak memory in MB, in a process of its own."""
    done = subprocess.run([sys.executable, *sys.argv, "--row", str(row)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak_memory_mb(step, device) -> float:
    """Most memory held while three steps are taken after a first, in 10⁶ bytes: the GPU's, or on Linux this process's;
    elsewhere NaN."""
    step()
    reset = Path("/proc/self/clear_refs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif reset.exists():
        reset.write_text("5")
    for _ in range(3):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    held = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()) if reset.exists() else None
    return int(held[1]) * 1024 / 1e6 if held else float("nan")


def main():
    given = flags()
    bench = Bench(given)
    rows = bench.rows()
    if given.row:
        print(peak_memory_mb(list(rows.values())[int(given.row)], bench.device))
        return
    B, T = bench.batch[0]["input_ids"].shape
    print(f"{bench.device}, {torch.get_num_threads()} threads; {given.student_layers} layers of {given.width} under "
          f"{2 * given.student_layers}; {B} sentences of up to {T} tokens, as many in the quiz; {given.data}; "
          f"medians of {given.rounds} rounds.")  # fmt: skip
    if "bf16" not in bench.pairs:
        print("No rows in bfloat16: this machine does not multiply in it.")
    print()
    times = {row: [] for row in rows}
    for round_ in range(given.rounds + 1):  # the first warms up
        for row, step in rows.items():
            spent = milliseconds(step, bench.device) / (8 if "8th" in row[0] else 1)
            times[row] += [spent] if round_ else []
    print("| step | precision | ms | times KD | times KD in fp32 | GFLOP | times the least | MB kept | times KD | peak MB |")
    print("| --- " * 10 + "|")
    ms, kept = {row: statistics.median(found) for row, found in times.items()}, {}
    for number, (row, step) in enumerate(rows.items()):
        counter, many = Kept(), 8 if "8th" in row[0] else 1
        with counter.hooks():
            step()
        kept[row] = counter.peak / 1e6
        work = flops(step)
        possible = least(bench, True) + 7 * least(bench, False) if many == 8 else least(bench, row[0] != "KD")
        own, base = ("KD", row[1]), ("KD", "fp32")
        cells = [*row, f"{ms[row]:.0f}", f"{ms[row] / ms[own]:.2f}", f"{ms[row] / ms[base]:.2f}", f"{work / many / 1e9:.1f}",
                 f"{work / possible:.3f}", f"{kept[row]:.0f}", f"{kept[row] / kept[own]:.2f}", f"{peak_of(number):.0f}"]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)
    agree(bench)
    real = sum(bench.lengths)
    computed = sum(len(rows) * bench.lengths[rows].max() for rows in bench.batches)
    print(f"An epoch of {given.data}: {computed:,} tokens computed for {real:,} real ones, {computed / real:.3f} times.")


def agree(bench):
    """Print how the meta-gradients of the pair agree: across modes and precisions."""
    found = {}
    for precision, mode in itertools.product(bench.pairs, metadistil.MODES):
        student, teacher, *_ = bench.pairs[precision]
        for network, source in zip((student, teacher), bench.pairs["fp32"]):
            network.load_state_dict(source.state_dict())
        settings = {"pilot_lr": PILOT_LR, "mode": mode}
        grads = metadistil.meta_gradient(student, [teacher], bench.batch, bench.quiz, **settings).grads
        found[mode, precision] = torch.cat([grad.flatten() for grad in grads]).double()
    exact = found["second_order", "fp32"]
    student = bench.pairs["fp32"][0]
    F_S = flops(lambda: student(**bench.batch[0]))
    print("\nArithmetic of the meta-gradient alone, in forward passes of the student:")
    for mode in metadistil.MODES:
        settings = {"pilot_lr": PILOT_LR, "mode": mode}
        work = flops(lambda: metadistil.meta_gradient(student, [bench.pairs["fp32"][1]], bench.batch, bench.quiz, **settings))
        print(f"- {mode}: {work / F_S:.2f}")
    print("\nMeta-gradients beside second_order in fp32:")
    for (mode, precision), other in list(found.items())[1:]:
        distance, cosine = (other - exact).norm() / exact.norm(), torch.cosine_similarity(other, exact, dim=0)
        print(f"- {mode}, {precision}: relative difference {distance:.1e}, cosine {cosine:.6f}")


if __name__ == "__main__":
    try:
        main()
    except data.InputError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        sys.exit(2)
