"""torchrun with two processes: the numbers of one; a process that dies; going on; what a user can mend."""

import json
import os
import subprocess
import sys

import pytest
import soak
import torch
from conftest import ROOT

import train

pytestmark = pytest.mark.slow

LIMIT = 400  # seconds for one torchrun: whoever waits longer hangs
SMALL = {
    "task": "sst2", "data": "builtin", "teacher": "micro", "student": "micro", "train_size": 29, "quiz_size": 14,
    "batch_size": 7, "quiz_batch_size": 5, "methods": "metadistil", "teacher_epochs": 1, "warmup_epochs": 1, "epochs": 1,
}  # fmt: skip
# Parts are uneven everywhere, and the last batch of every pass is of one example, fewer than there are processes.
ALIKE = {
    "second_order": {"dropout": 0.0, "methods": "kd,metadistil", "teacher_optimizer": "sgd", "teacher_lr": 10.0},
    "jvp, a teacher out of a file": {"dropout": 0.0, "meta_grad": "jvp", "teacher_lr": 1e-2},
}
DROPOUT = SMALL | {"dropout": 0.3}
# What a process of torchrun does: argv holds the runs to make, and what goes wrong. Without runs: the command line.
SCRIPT = f"""
import json, os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
import train

given = json.loads(sys.argv[1])

def late(function, *arguments):  # the process of that number is late
    if train.RANK == given.get("late"):
        time.sleep(3)
    return function(*arguments)

begin = train.Seed.__init__

def begin_late(seed, config, number):
    own = config.teacher.endswith(".pt")
    late(begin, seed, config, number) if own else begin(seed, config, number)

def dying(stage, batch, rows, k):
    if train.RANK == 1 and k == given["dies"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return train.meta_step(stage, batch, rows, k)

train.Seed.__init__ = begin_late
command = train.command
if "dies" in given:
    train.METHODS["metadistil"] = train.METHODS["metadistil"]._replace(step=dying)
if "runs" in given:
    command = lambda _: [train.run(train.Config(**config)) for config in given["runs"]]
train.command = lambda arguments: late(command, arguments)
train.main(sys.argv[2:])
"""


def torchrun(script, *arguments, processes=2):
    """The finished command, under torchrun, of processes of one thread, without a GPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        stdout, stderr = process.communicate(timeout=LIMIT)
    finally:
        process.terminate()  # it ends its processes, too
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """{name: directory}: the runs of ALIKE by one process, "one ..."; by two, "two ..."; and "whole", by two with
    dropout. The second process is late where a stage without a step begins."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "DEVICE", "cpu")
        for name, other in ALIKE.items():
            if "file" in name:
                other["teacher"] = str(folder / "one second_order" / "seed0" / "teacher-before.pt")
            train.run(train.Config(**SMALL | other, out=str(folder / f"one {name}")))
            runs[f"two {name}"] = SMALL | other
    runs["whole"] = DROPOUT
    configs = [config | {"out": str(folder / name)} for name, config in runs.items()]
    done = torchrun(script, json.dumps({"runs": configs, "late": 1}))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es)") == len(configs)  # one of them speaks
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_have_the_numbers_of_one(name, finished):
    one, two = (
        [json.loads(line) for line in (finished[f"{which} {name}"] / "metrics.jsonl").read_text().splitlines()]
        for which in ("one", "two")
    )
    assert len(one) == len(two) == (2 if "file" in name else 5)
    for ours, theirs in zip(one, two):
        assert ours.pop("stage") == theirs.pop("stage")
        scores, others = ours.pop("scores"), theirs.pop("scores")
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert scores.keys() == others.keys()
        for title, of_model in scores.items():
            assert of_model == pytest.approx(others[title], abs=0.003)  # of 1,000 examples
    assert abs(one[-1]["quiz_loss_after"] - one[-1]["quiz_loss_before"]) > 1e-3  # enough happens to be compared


def test_a_process_that_dies_ends_the_run_and_it_goes_on(script, finished, tmp_path):
    """In MetaDistil's second epoch. Dropout differs by process, and goes on where it was."""
    out, steps = tmp_path / "run", 7
    dead = torchrun(script, json.dumps({"runs": [DROPOUT | {"out": str(out)}], "dies": steps + 3}))
    assert dead.returncode != 0 and not (out / "table.md").exists()
    states = torch.load(out / "seed0" / "metadistil.checkpoint", weights_only=True)["rng"]
    assert len(states) == 2 and not torch.equal(states[0][0], states[1][0])
    with pytest.raises(train.InputError, match="processes 1, expected 2"):
        train.resume(out)
    assert torchrun(ROOT / "train.py", "--resume", out).returncode == 0
    assert soak.same(soak.numbers(out), soak.numbers(finished["whole"]))


@pytest.mark.parametrize("late", [0, None])
def test_what_a_user_can_mend_is_said_once(late, script, tmp_path):
    """By the first process, though the other one may see it earlier, or not at all."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    given = ["--task", "cola", "--data", tmp_path] if late == 0 else ["--data", "builtin", "--out", tmp_path / "full"]
    found = torchrun(script, json.dumps({"late": late}), *given)
    said = found.stderr.splitlines()
    [ours] = [line for line in said if line.startswith("train.py: ")]
    assert found.returncode != 0 and "expected a " in ours and str(tmp_path) in ours
    assert not any('train.py", line' in line for line in said)
