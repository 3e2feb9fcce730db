"""Kill it anywhere: `python tests/soak.py [KILLS]` runs the built-in task, kills it that many times (20) with SIGKILL at
random moments, resumes it each time, and compares what it ends with to a run that nobody touched. Exit status 1 if it differs."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # beside other work two threads would wait for each other
TRAIN = Path(__file__).parent.parent / "train.py"
RUN = ["--task", "sst2", "--data", "builtin", "--teacher", "micro", "--train-size", "400", "--teacher-epochs", "10",
       "--warmup-epochs", "2", "--epochs", "12", "--batch-size", "16", "--quiz-batch-size", "32"]  # fmt: skip


def start(*flags) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(TRAIN), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def start_or_resume(out: Path, flags) -> subprocess.Popen:
    if (out / "begun.json").exists():
        return start("--resume", str(out))
    shutil.rmtree(out, ignore_errors=True)  # killed before there was a run
    return start(*flags, "--out", str(out))


def numbers(out: Path) -> tuple:
    """All that a run computed: its log, its table without the seconds, its networks."""
    lines = (out / "table.md").read_text().splitlines()
    table = [line.rsplit("|", 2)[0] if line.startswith("|") else line for line in lines]
    weights = {path.name: torch.load(path, weights_only=True)["weights"] for path in sorted(out.glob("seed*/*.pt"))}
    return (out / "metrics.jsonl").read_text(), table, weights


def same(one: tuple, other: tuple) -> bool:
    equal = one[:2] == other[:2] and one[2].keys() == other[2].keys()
    return equal and all(torch.equal(t, other[2][name][key]) for name, state in one[2].items() for key, t in state.items())


def soak(folder: Path, kills: int, flags: list[str] = RUN, seed: int = 0) -> bool:
    """Whether a run killed so many times ends as one that was not. Prints where each kill fell; each fourth one falls
    into the writing of a checkpoint."""
    whole, out, rng, began = folder / "whole", folder / "killed", random.Random(seed), time.monotonic()
    process = start(*flags, "--out", str(whole))
    while process.poll() is None and not changed(whole):
        time.sleep(0.01)
    starting = time.monotonic() - began
    assert not process.wait(), process.stderr.read()
    share, kill = (time.monotonic() - began - starting) / kills, 0  # of the work
    while kill < kills:
        for part in out.glob("**/*.part"):
            part.unlink()  # of the kill before, lest it be taken for this one's
        before = changed(out)
        process = start_or_resume(out, flags)
        if kill % 5 == 0:  # while it starts
            time.sleep(rng.uniform(0, starting))
        else:
            while process.poll() is None and changed(out) == before:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, share))
        while kill % 4 == 3 and process.poll() is None and not any(out.glob("seed0/*.checkpoint.*.part")):
            pass
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kill += 1
            print(f"kill {kill}: {where(out)}", flush=True)
            if kill < kills:
                continue
            process = start_or_resume(out, flags)
        assert not process.wait(), process.stderr.read()
        if not same(numbers(whole), numbers(out)):
            return False
        out = out.with_name(out.name + "-again")  # it ended before the last kill: once more from the start
    return True


def changed(out: Path) -> tuple:
    """Which checkpoints and results the run has, and when they were written; false if there are none."""
    found = []
    for path in sorted([*out.glob("seed*/*.checkpoint"), *out.glob("seed*/*.json")]):
        try:
            found.append((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # a stage has ended meanwhile
            pass
    return tuple(found)


def where(out: Path) -> str:
    """The last that the killed run had written."""
    parts = ", ".join(path.name for path in out.glob("**/*.part"))
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    return (lines[-1][:100] if lines else "before the first line of the log") + (f", while writing {parts}" if parts else "")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        fine = soak(Path(temporary), int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print("the same numbers as a run nobody touched" if fine else "NOT the same numbers")
    sys.exit(not fine)
