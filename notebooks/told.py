"""Is the teacher told the truth? `python notebooks/told.py RUN` looks, in a finished run with wrong labels and two
classes, at what the quiz would have its (first) teacher say of the training examples, after each epoch of the student's
warm-up.

The quiz would have d = z_1 − z_0 of an example lower where ḋ = ż_1 − ż_0 > 0, with ż_S = J_S v (README, "The
meta-gradient"). That is the truth if its right label is 0. Printed is the share of examples about which the truth is
told, of those whose label is right and of those whose label is wrong: as it is told, and less what all examples of a
batch are told alike (their mean ḋ).
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data  # noqa: E402
import metadistil  # noqa: E402
import models  # noqa: E402
import train  # noqa: E402

COLUMNS = [
    "dev accuracy",
    "right label, as told",
    "right label, less the mean",
    "wrong label, as told",
    "wrong label, less the mean",
]
FAR = 10**6  # an epoch, and steps, that no run comes to


def told(stage: train.Stage, truth: np.ndarray, batches: int = 6) -> list[float]:
    """COLUMNS of the stage's student as it is, over some training batches, a quiz with each. `truth`: the right labels
    of the training set (N,)."""
    context, config, n = stage.context, stage.config, len(truth)
    both, found = context.encoded["student"]["train+quiz"], []
    settings = {"pilot_lr": config.pilot_lr, "loss": stage.loss, "mode": "jvp"}
    for k, rows in enumerate(data.batches_of(both.lengths[:n], config.batch_size, context.seed, FAR)[:batches]):
        batch, quiz, trace = context.batch(rows), context.quiz(FAR + k), {}
        metadistil.meta_gradient(stage.student, stage.teachers[:1], batch, quiz, trace=trace, **settings)
        d_dot = np.diff(trace["student_logits_dot"].numpy(force=True))[:, 0]  # (B,)
        is_wrong = both.labels[rows] != truth[rows]
        says_one = np.stack([d_dot < 0, d_dot < d_dot.mean()])  # as it is told, and less the mean (2, B)
        found.append([is_wrong, *(says_one == (truth[rows] == 1))])
    is_wrong, *is_true = np.concatenate(found, axis=1)
    shares = [one[is_wrong == label].mean() for label in (False, True) for one in is_true]
    return [*context.scores(stage.student, "dev").values(), *shares]


def warm_up(config: train.Config, seed: int) -> list[list[float]]:
    """`told`, before the student's first step and after each epoch of its warm-up, (epochs + 1, columns)."""
    context = train.Seed(config, seed)
    stage = train.Stage(context, "metadistil")
    truth = dataclasses.replace(config, label_noise=0.0).load(seed).train.labels
    rows = [told(stage, truth)]
    for k in range(stage.warmup_steps):
        stage.step(k, None)
        if (k + 1) % context.steps_per_epoch == 0:
            rows.append(told(stage, truth))
    return rows


def table(found: np.ndarray) -> str:
    """Means ± standard deviations over the seeds of (seeds, epochs + 1, columns), in Markdown."""
    rows = [["epochs of warm-up", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    rows += [[str(epoch), *map(train.spread, of.T)] for epoch, of in enumerate(found.transpose(1, 0, 2))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def settings_of(run: str) -> train.Config:
    """The settings of a finished run, those of metadistil among them, if it took its steps or not."""
    config, _ = train.read_journal(run)
    return train.resolve(dataclasses.replace(config, methods=f"{config.methods},metadistil"))


def main():
    """The command line: the table, and the numbers behind it."""
    config = settings_of("".join(sys.argv[1:2]))
    found = [warm_up(config, seed) for seed in range(config.seeds)]
    print(table(np.array(found)))
    print(json.dumps(np.round(found, 4).tolist()))


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, models.CheckpointError) as error:
        print(f"told.py: {error}", file=sys.stderr)
        sys.exit(2)
