"""What keeps a teacher honest? Five ideas for the meta update and a control, each beside MetaDistil as it is, and kd.

`python notebooks/honest.py runs/NAME [IDEA...] [FLAGS]` takes a finished run of train.py that has a kd: its teachers,
its settings, changed by FLAGS, which are train.py's. It trains MetaDistil's student by each IDEA, or by all, from the
same start as the run's students, and prints a table in Markdown. Nothing is written.

An idea is a step, a row in train.METHODS: a few lines between the calls of Algorithm 1. `held-out` and `clipped-sgd`
take MetaDistil's own step: the one does something after each epoch, the other is settings alone.
"""

import copy
import dataclasses
import functools
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import metadistil  # noqa: E402
import models  # noqa: E402
import train  # noqa: E402

HELD_OUT, PATIENCE = 3, 5  # one quiz example in three; epochs
SGD_TIMES, LONGEST = 3, 0.3  # SGD's rate, in AdamW's; the length beyond which a meta-gradient is cut
train.OPTIMIZERS["sgd-0.9"] = functools.partial(torch.optim.SGD, momentum=0.9)


def meta_gradient(stage, batch, quiz, trace=None) -> list[torch.Tensor]:
    """Algorithm 1's first call, with the stage's settings -> ∇_{θ_T} L_q."""
    config = stage.config
    settings = {"pilot_lr": config.pilot_lr, "mode": config.meta_grad, "micro_batch": config.micro_batch}
    settings |= {"loss": stage.loss, "quiz_loss": stage.quiz_loss, "trace": trace}
    return metadistil.meta_gradient(stage.student, stage.teachers, batch, quiz, **settings).grads


def updates(stage, batch, grads) -> torch.Tensor:
    """Its second and third call: the meta update by these gradients, and the real update -> L_S."""
    metadistil.meta_update(stage.teachers, grads, stage.teacher_optimizer, stage.config.teacher_clip)
    return metadistil.real_update(stage.student, stage.teachers, batch, stage.student_optimizer, stage.loss)


def label_loss(stage, batch, draw_quiz, log):
    """The teacher learns the quiz's labels, too, as in Meta Pseudo Labels (Pham et al. 2021), each time of another quiz.
    That gradient is made as long as the meta-gradient, so that neither drowns the other."""
    grads = meta_gradient(stage, batch, draw_quiz())
    another, own = stage.context.quiz(next(stage.quizzes)), []
    for teacher in stage.teachers:
        _, of_teacher = metadistil.quiz_gradient(teacher, dict(teacher.named_parameters()), another, stage.quiz_loss)
        own += of_teacher.values()
    scale = length(grads) / length(own).clamp_min(1e-30)
    return updates(stage, batch, [gradient + scale * part for gradient, part in zip(grads, own)])


def last_layer(stage, batch, draw_quiz, log):
    """Of the teacher only the last layer, the pooler and the classifier learn; what it reads in a word stays."""
    for reader in stage.teachers:
        teacher = reader.requires_grad_(False).network
        torch.nn.ModuleList([teacher.blocks[-1], teacher.pooler, teacher.classifier]).requires_grad_(True)
    return train.meta_step(stage, batch, draw_quiz, log)


def less_the_mean(stage, batch, draw_quiz, log):
    """The teacher is told of each example what it is told less the mean over the batch: not how the quiz would have all
    answers shifted, only how it would have one example differ from the others."""
    meta_gradient(stage, batch, draw_quiz(), trace := {})
    message = trace["teacher_logits_gradient"]  # (B, K)
    centred = message - message.mean(dim=0)
    size = stage.config.micro_batch or len(message)
    return updates(stage, batch, metadistil.through_teachers(stage.teachers, batch[0], None, [centred], size))


def random_walk(stage, batch, draw_quiz, log):
    """A control: as `clipped-sgd`, but the meta-gradient is turned to a random direction, at the same length. What this
    does for the student no quiz has done."""
    grads = meta_gradient(stage, batch, draw_quiz())
    noise = [torch.randn(gradient.shape, generator=stage.random).to(gradient) for gradient in grads]
    scale = length(grads) / length(noise)
    return updates(stage, batch, [scale * part for part in noise])


def length(gradients) -> torch.Tensor:
    """The norm of all of them together, a scalar."""
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


def clipped_sgd(config: train.Config) -> train.Config:
    """The teacher learns by SGD with momentum, from a meta-gradient that is never longer than LONGEST: now and then it
    is many times as long as usual, and a single such step would undo all others. The rate falls in steps."""
    by_sgd = {"teacher_optimizer": "sgd-0.9", "teacher_schedule": "falls", "teacher_clip": LONGEST}
    return dataclasses.replace(config, **by_sgd, teacher_lr=SGD_TIMES * config.teacher_lr)


def held_out(stage):
    """A third of the quiz is kept out of it, and scores the teacher at the start and after each epoch: where five
    epochs have brought nothing better, the teacher goes back to its best and stays there. The student learns on from
    that. A generator: at each `yield` an epoch passes."""
    context, teachers = stage.context, torch.nn.ModuleList(stage.teachers)
    for splits in context.encoded.values():
        whole, n = splits["train+quiz"], len(context.task.quiz) // HELD_OUT
        for split, rows in (("train+quiz", slice(None, -n)), ("held-out", slice(-n, None))):
            own = {field: getattr(whole, field)[rows] for field in ("lengths", "labels")}
            inputs = {name: ids[rows] for name, ids in whole.inputs.items()}
            splits[split] = dataclasses.replace(whole, **own, inputs=inputs)
    best, waited = -np.inf, 0
    while waited < PATIENCE:
        score = np.mean([next(iter(context.scores(teacher, "held-out").values())) for teacher in teachers])
        waited += 1
        if score > best:
            best, state, waited = score, copy.deepcopy(teachers.state_dict()), 0
        if waited < PATIENCE:
            yield
    teachers.load_state_dict(state)
    teachers.requires_grad_(False)


# ---- The rows of train.METHODS, and what else belongs to an idea

IDEAS = {
    "as-it-is": train.meta_step,
    "label-loss": label_loss,
    "last-layer": last_layer,
    "less-the-mean": less_the_mean,
    "held-out": train.meta_step,
    "clipped-sgd": train.meta_step,
    "random-walk": random_walk,
}
SETTINGS = {"clipped-sgd": clipped_sgd, "random-walk": clipped_sgd}
AFTER_EPOCHS = {"held-out": held_out}
for idea, step in IDEAS.items():
    train.METHODS[idea] = train.METHODS["metadistil"]._replace(step=step)


def scores_of(idea: str, config: train.Config, seed: int) -> dict[str, dict[str, float]]:
    """{title: {"dev accuracy": ...}} of student and teacher, trained by the idea with the seed."""
    if idea in SETTINGS:
        config = SETTINGS[idea](config)
    stage = begin(idea, config, seed)
    context = stage.context
    epochs = AFTER_EPOCHS[idea](stage) if idea in AFTER_EPOCHS else iter([])
    next(epochs, None)
    torch.manual_seed(1000 + seed)  # of dropout, as in train.py
    for k in range(stage.total):
        stage.step(k, None)
        if (k + 1) % context.steps_per_epoch == 0 and k >= stage.warmup_steps:
            next(epochs, None)
    titles = {title: title.replace(idea, "metadistil") for title in stage.learners}
    return {titles[title]: context.scores(learner, "dev", "test") for title, learner in stage.learners.items()}


def begin(idea: str, config: train.Config, seed: int) -> train.Stage:
    """The stage of the idea, and what ideas draw from: quizzes of their own; and noise, lest dropout draw otherwise."""
    stage = train.Stage(train.Seed(config, seed), idea)
    stage.quizzes, stage.random = itertools.count(), torch.Generator().manual_seed(seed)
    return stage


def table(found: dict[str, list[dict]], kd: list[dict]) -> str:
    """Percent, mean ± standard deviation of the seeds, in Markdown; of the student also the difference to kd, seed by
    seed. found: {idea: [what scores_of returned, of each seed]}, kd: [its scores, of each seed]."""
    splits, titles = list(kd[0]), list([*found.values()][0][0])
    columns = list(itertools.product(titles, splits))
    rows = [["", *(f"{title}, {split}" for title, split in columns)], ["---"] * (1 + len(columns))]
    of_kd = {split: np.array([seed[split] for seed in kd]) for split in splits}
    rows.append(["kd", *map(train.spread, of_kd.values()), *[""] * (len(columns) - len(splits))])
    for idea, seeds in found.items():
        rows.append([idea])
        for title, split in columns:
            ours = np.array([seed[title][split] for seed in seeds])
            differs = f"; {train.paired_difference(ours, of_kd[split])}" if title.startswith("student") else ""
            rows[-1].append(train.spread(ours) + differs)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main():
    """The command line."""
    out, *words = sys.argv[1:] or [""]
    chosen = list(itertools.takewhile(lambda word: word in IDEAS, words))
    config, journal = train.read_journal(out)
    config = dataclasses.replace(config, **train.parse(words[len(chosen) :]))
    config = train.resolve(dataclasses.replace(config, methods=f"{config.methods},metadistil"))
    kd = [seed["scores"] for seed in journal["results"].get("student kd", [])]
    enough = f"{out}: expected a finished run whose kd has {config.seeds} seed(s), found {len(kd)}"
    data.expect(len(kd) >= config.seeds, enough)
    found = {idea: [scores_of(idea, config, seed) for seed in range(config.seeds)] for idea in chosen or IDEAS}
    print(table(found, kd[: config.seeds]))


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, models.CheckpointError) as error:
        print(f"honest.py: {error}", file=sys.stderr)
        sys.exit(2)
