"""What MetaDistil would cost on eight GPUs, on paper: `python tests/on_paper.py` prints it in two minutes.

BERT-base teaches six layers on MNLI, in bfloat16, the batch split over the GPUs. Nothing is computed: the steps run on
tensors without values, which have shapes and sizes, and arithmetic, messages and bytes are counted. What the GPU makes
of it (its rate, its own workspaces) is assumed, and stands in the first line.
"""

import sys
import weakref
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

import metadistil
import models

GPUS, T, RATE, LINK = 8, 128, 150e12, 100e9  # tokens; products a second that a GPU is assumed to reach; bytes a second
SIZES = (16, 40, 80)  # GB
STEPS = {
    "KD": None,
    "second_order": {"mode": "second_order"},
    "jvp": {"mode": "jvp"},
}


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors at once, each storage once."""

    def __init__(self, networks):
        super().__init__()
        self.bytes, self.peak, self.seen = 0, 0, set()
        for network in networks:
            for parameter in network.parameters():
                self.see(parameter)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                self.see(output)
        return outputs

    def see(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.seen.discard(key)
        self.bytes -= size


def networks():
    """Student of six layers, teacher of twelve, and their optimisers."""
    shape = models.ENCODERS["base"]
    found = []
    for layers in (6, 12):
        network = models.build(shape, layers=layers, num_labels=3)
        network.forward = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)(network.forward)
        found.append(network)
    return found, [torch.optim.AdamW(network.parameters(), 1e-5) for network in found]


def count(settings, B):
    """(peak bytes, arithmetic) of a second step, when the optimisers have their state, of B examples on one GPU."""
    # Tensors without values cannot be checked for being finite.
    unchecked = mock.patch.object(metadistil, "averaged", lambda name, gradient, examples: list(gradient))
    with FakeTensorMode(), unchecked:
        (student, teacher), optimizers = networks()
        ids = torch.ones(B, T, dtype=torch.int64)
        batch = {"input_ids": ids, "attention_mask": ids.bool()}, torch.ones(B, dtype=torch.int64)

        def step():
            if settings is None:
                metadistil.real_update(student, teacher, batch, optimizers[0])
            else:
                metadistil.metadistil_step(student, teacher, batch, batch, *optimizers, pilot_lr=0.02, **settings)

        with Held([student, teacher]) as held:
            step()
            held.peak = 0
            with FlopCounterMode(display=False) as flops:
                step()
        return held.peak, flops.get_total_flops()


def sent(settings):
    """Bytes that a GPU sends in a step: of each mean of n bytes, 2 n (GPUS − 1) / GPUS, as in a ring."""
    with FakeTensorMode():
        student, teacher = (sum(p.numel() for p in network.parameters()) for network in networks()[0])
    # The real gradient; and with a quiz the pilot's gradient, v, and the teacher's gradient; in float32.
    numbers = student if settings is None else 3 * student + teacher
    return 4 * numbers * 2 * (GPUS - 1) / GPUS


def main():
    """Print the table."""
    print(f"BERT-base teaches 6 layers, {T} tokens, bfloat16, {GPUS} GPUs of {RATE / 1e12:.0f} TFLOP/s, links of {LINK / 1e9:.0f} GB/s")
    print("\n| step | GB sent | ms | at 32 a GPU: TFLOP | ms | share sent | most examples a GPU in " + " | in ".join(f"{gb} GB" for gb in SIZES) + " |")
    print("| --- " * (6 + len(SIZES)) + "|")
    for name, settings in STEPS.items():
        _, work = count(settings, 32)
        (few, _), (many, _) = count(settings, 128), count(settings, 256)  # so many that activations decide the peak
        each = (many - few) / 128
        fixed = many - 256 * each
        most = [max(0, int((gb * 1e9 - fixed) / each)) for gb in SIZES]
        message, computing = sent(settings) / LINK, work / RATE
        cells = [name, f"{sent(settings) / 1e9:.2f}", f"{1000 * message:.0f}", f"{work / 1e12:.1f}", f"{1000 * computing:.0f}"]
        cells += [f"{message / (message + computing):.0%}", *(f"{n:,}" for n in most)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
