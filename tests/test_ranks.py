"""`torchrun --nproc-per-node 2 train.py`: the numbers of one process; a process that dies; going on."""

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_train import SMALL, assert_same_numbers, flags

pytestmark = pytest.mark.slow

QUICK = SMALL | {"teacher_epochs": 1, "epochs": 1, "log_every": 1}
DIES = """
import os, signal, sys
sys.path.insert(0, {root!r})
import train

save, calls = train.save_journal, []

def save_then_die(config, journal):
    save(config, journal)
    calls.append(journal)
    if train.RANK == 1 and len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

train.save_journal = save_then_die
train.main(sys.argv[1:])
"""


def torchrun(*arguments, processes=2, script=ROOT / "train.py"):
    """The finished command, under torchrun, of processes of one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def alone(*arguments):
    subprocess.run([sys.executable, ROOT / "train.py", *map(str, arguments)], check=True, capture_output=True)


def log_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_log(out, other, tolerance):
    for one, two in zip(log_of(out), log_of(other), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value), (one, two)


@pytest.mark.parametrize("other", [
    {}, {"batch_size": 7, "quiz_batch_size": 5, "meta_grad": "jvp"}, {"batch_size": 1, "train_size": 8},
    {"teacher_optimizer": "sgd", "teacher_lr": 10.0},
])  # fmt: skip
def test_two_processes_have_the_numbers_of_one(other, tmp_path):
    """Of parts of uneven size, too, and of a batch that is smaller than the number of processes."""
    given = [part for part in flags(**QUICK | {"dropout": 0.0, "methods": "kd,metadistil"} | other) if part != "None"]
    alone(*given, "--out", tmp_path / "one")
    found = torchrun(*given, "--out", tmp_path / "two")
    assert found.returncode == 0, found.stderr
    assert_same_log(tmp_path / "one", tmp_path / "two", 1e-4)
    assert found.stdout.count("everything is written to") == 1 and "2 process(es)" in found.stdout


def test_dropout_differs_by_process(tmp_path):
    given = flags(**QUICK | {"dropout": 0.3, "methods": "finetune"})
    given = [part for part in given if part not in ("--quiz-batch-size", "8")]
    alone(*given, "--out", tmp_path / "one")
    assert torchrun(*given, "--out", tmp_path / "two").returncode == 0
    losses = [[entry["loss"] for entry in log_of(tmp_path / name) if "loss" in entry] for name in ("one", "two")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody touched, and its flags."""
    given = flags(**QUICK | {"checkpoint_seconds": 0.0, "dropout": 0.2})
    out = tmp_path_factory.mktemp("ranks") / "whole"
    assert torchrun(*given, "--out", out).returncode == 0
    return out, given


@pytest.mark.parametrize("at", [4, 12, 20, 30])
def test_a_process_that_dies_ends_the_run_and_it_goes_on(at, whole, tmp_path):
    """In each stage: 5 steps of the teacher, 10 of finetune, of kd and of metadistil, each saved."""
    untouched, given = whole
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(root=str(ROOT), at=at))
    started = time.monotonic()
    dead = torchrun(*given, "--out", tmp_path / "dead", script=script)
    ours = [line for line in dead.stderr.splitlines() if line.startswith("train.py: ")]
    assert dead.returncode != 0 and time.monotonic() - started < 60
    assert len(ours) == 1 and "another process has ended" in ours[0] and 'train.py", line' not in dead.stderr
    assert torchrun("--resume", tmp_path / "dead").returncode == 0
    assert_same_numbers(untouched, tmp_path / "dead")


def test_another_number_of_processes_does_not_go_on(whole):
    found = subprocess.run([sys.executable, ROOT / "train.py", "--resume", whole[0]], capture_output=True, text=True)
    assert found.returncode == 2 and "expected 2 process(es) to go on, found 1" in found.stderr


def test_what_a_user_can_mend_is_said_once(tmp_path):
    found = torchrun("--task", "cola", "--data", tmp_path)
    assert found.returncode != 0
    assert [line.startswith("train.py: ") for line in found.stderr.splitlines()].count(True) == 1
    assert "expected a file there" in found.stderr
