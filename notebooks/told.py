"""Is the teacher told the truth? `python notebooks/told.py RUN` looks, in a finished run with wrong labels and two classes,
at what the quiz would have its (first) teacher say of the training examples, after each epoch of the student's warm-up.

The quiz would have d = z_1 − z_0 of an example lower where ḋ = ż_1 − ż_0 > 0, with ż_S = J_S v (README, "The meta-gradient").
That is the truth if its right label is 0. Printed is the share of examples about which the truth is told, of those whose label
is right and of those whose label is wrong: as it is told, and less what all examples of a batch are told alike (their mean ḋ).
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

COLUMNS = ("dev accuracy", "right label, as told", "right label, less the mean", "wrong label, as told", "wrong label, less the mean")


def told(context: train.Seed, student, teacher, truth: np.ndarray, batches: int = 6) -> list[float]:
    """COLUMNS of a student as it is, over some training batches, a quiz batch with each. `truth`: the right labels (N,)."""
    config, n, both = context.config, len(truth), context.read["student"]["train+quiz"]
    settings = {"pilot_lr": config.pilot_lr, "alpha": config.alpha, "temperature": config.temperature}
    found = []  # of each example: is its label wrong, is the truth told, is it once the mean is taken off
    for k, rows in enumerate(data.batches_of(both.lengths[:n], config.batch_size, context.seed, 10**6)[:batches]):
        quiz = context.batch(n + data.sample_quiz(both.labels[n:], config.quiz_batch_size, context.seed, 10**6 + k))
        trace = {}
        metadistil.meta_gradient(student, [teacher], context.batch(rows), quiz, mode="jvp", trace=trace, **settings)
        d_dot = np.diff(trace["student_logits_dot"].numpy())[:, 0]  # (B,)
        wished = (d_dot < 0, d_dot < d_dot.mean())  # class 1, if true
        found.append([both.labels[rows] != truth[rows], *(wish == (truth[rows] == 1) for wish in wished)])
    wrong, *true = np.concatenate(found, axis=1)
    shares = [one[wrong == label].mean() for label in (False, True) for one in true]
    return [*context.scores(student, "dev").values(), *shares]


def warm_up(config: train.Config, seed: int) -> list[list[float]]:
    """`told`, before the student's first step and after each epoch of its warm-up, (epochs + 1, columns)."""
    context, rows = train.Seed(config, seed), []
    truth = dataclasses.replace(config, label_noise=0.0).load(seed).train.labels
    learners, _, _, step = train.stage(context, "metadistil")
    student, teacher = learners["student metadistil"], learners["teacher after metadistil"].requires_grad_(False)
    for epoch in range(config.warmup_epochs + 1):
        rows.append(told(context, student, teacher, truth))
        for k in range(epoch * context.steps_per_epoch, min(epoch + 1, config.warmup_epochs) * context.steps_per_epoch):
            step(k, None)
    return rows


def table(found: np.ndarray) -> str:
    """Means ± standard deviations over the seeds of (seeds, epochs + 1, columns), in Markdown."""
    rows = [["epochs of warm-up", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    rows += [[str(epoch), *map(train.spread, of.T)] for epoch, of in enumerate(found.transpose(1, 0, 2))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main():
    """The command line: the table, and the numbers behind it."""
    config, _ = train.read_journal("".join(sys.argv[1:2]))
    found = [warm_up(config, seed) for seed in range(config.seeds)]
    print(table(np.array(found)))
    print(json.dumps(np.round(found, 4).tolist()))


if __name__ == "__main__":
    try:
        main()
    except models.CheckpointError as error:
        print(f"told.py: {error}", file=sys.stderr)
        sys.exit(2)
