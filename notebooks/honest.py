"""What keeps a teacher honest? Five ideas for the meta update and a control, each beside MetaDistil as it is, and beside kd.

`python notebooks/honest.py runs/NAME [IDEA...] [FLAGS]` takes a finished run of train.py that has a kd: its teachers, its
settings, changed by FLAGS, which are train.py's. It trains MetaDistil's student by each IDEA, or by all, from the same
start as the run's students, and prints a table in Markdown. Nothing is written.
"""

import copy
import dataclasses
import itertools
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import metadistil  # noqa: E402
import models  # noqa: E402
import train  # noqa: E402

HELD_OUT, PATIENCE = 3, 5  # one quiz example in three; epochs
SGD_TIMES, LONGEST = 3, 0.3  # SGD's rate, in AdamW's; the length beyond which a meta-gradient is cut


def as_it_is(context: train.Seed):
    """MetaDistil and nothing else -> (learners, total, step, after_epoch)."""
    learners, _, total, step = train.stage(context, "metadistil")
    return learners, total, step, lambda: None


def label_loss(context: train.Seed):
    """The teacher learns the quiz's labels, too, as in Meta Pseudo Labels (Pham et al. 2021): at each of its steps, on
    another quiz batch."""
    learners, optimizers, total, step = train.stage(context, "metadistil")
    teacher, count, n = learners["teacher after metadistil"], itertools.count(), len(context.task.train)

    def batch():
        labels = context.read["teacher"]["train+quiz"].labels[n:]
        return context.batch(n + data.sample_quiz(labels, context.config.quiz_batch_size, context.seed, next(count)))

    optimizers[1].register_step_pre_hook(lambda *_: add_label_loss(teacher, batch()))
    return learners, total, step, lambda: None


def add_label_loss(teacher: torch.nn.Module, batch):
    """Add to the teacher's `.grad` that of its own cross-entropy on the batch, made as long as what is there, that neither
    drowns the other."""
    theta_T = list(teacher.parameters())
    loss = metadistil.hard_loss(metadistil.forward(teacher.eval(), batch[0])[0], batch[1])
    own = torch.autograd.grad(loss, theta_T, materialize_grads=True)
    scale = length([theta.grad for theta in theta_T]) / length(own).clamp_min(1e-30)
    for theta, gradient in zip(theta_T, own):
        theta.grad += scale * gradient


def length(gradients) -> torch.Tensor:
    """The norm of all of them together, a scalar."""
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


def last_layer(context: train.Seed):
    """Of the teacher only the last layer, the pooler and the classifier learn; what it reads in a word stays."""
    learners, total, step, nothing = as_it_is(context)
    teacher = learners["teacher after metadistil"].requires_grad_(False)
    for part in (teacher.blocks[-1], teacher.pooler, teacher.classifier):
        part.requires_grad_(True)
    return learners, total, step, nothing


def less_the_mean(context: train.Seed):
    """The teacher is told of each example what it is told less the mean over the batch: not how the quiz batch would
    have all answers shifted, only how it would have one example differ from the others."""
    learners, total, step, nothing = as_it_is(context)
    through = metadistil.through_teachers

    def centred(teachers, inputs, z_T, told, *micro_batch):
        return through(teachers, inputs, z_T, [part - part.mean(dim=0) for part in told], *micro_batch)

    def centred_step(k, trace):
        with mock.patch.object(metadistil, "through_teachers", centred):
            return step(k, trace)

    return learners, total, centred_step, nothing


def held_out(context: train.Seed):
    """A third of the quiz is kept out of it, and scores the teacher at the start and after each epoch: where five epochs
    have brought nothing better, the teacher goes back to its best and stays there. The student learns on from that."""
    for splits in context.read.values():
        whole, n = splits["train+quiz"], len(context.task.quiz) // HELD_OUT
        splits["train+quiz"], splits["held-out"] = (
            dataclasses.replace(whole, **{name: getattr(whole, name)[rows] for name in ("lengths", "labels", "starts")})
            for rows in (slice(None, -n), slice(-n, None)))  # fmt: skip
    learners, total, step, _ = as_it_is(context)
    teacher, best, waited = learners["teacher after metadistil"], (-np.inf, None), 0

    def after_epoch():
        nonlocal best, waited
        if waited < PATIENCE:
            score = next(iter(context.scores(teacher, "held-out").values()))
            better = score > best[0]
            best, waited = ((score, copy.deepcopy(teacher.state_dict())), 0) if better else (best, waited + 1)
            if waited == PATIENCE:
                teacher.load_state_dict(best[1])
                teacher.requires_grad_(False)

    after_epoch()
    return learners, total, step, after_epoch


def clipped_sgd(context: train.Seed, random: bool = False):
    """The teacher learns by SGD with momentum, from a meta-gradient that is never longer than LONGEST: now and then it is
    many times as long as usual, and a single such step would undo all others."""
    context.config = dataclasses.replace(context.config, teacher_lr=SGD_TIMES * context.config.teacher_lr)
    learners, optimizers, total, step = train.stage(context, "metadistil")
    theta_T = list(learners["teacher after metadistil"].parameters())
    optimizers[1] = torch.optim.SGD(theta_T, momentum=0.9)  # `step` looks there
    generator = torch.Generator().manual_seed(context.seed)  # dropout's draws stay what they are
    optimizers[1].register_step_pre_hook(lambda *_: clip(theta_T, generator if random else None))
    return learners, total, step, lambda: None


def random_walk(context: train.Seed):
    """A control: as `clipped_sgd`, but each of the teacher's gradients is turned to a random direction, at the same length.
    What this does for the student no quiz has done."""
    return clipped_sgd(context, random=True)


def clip(theta_T: list[torch.Tensor], generator: torch.Generator | None = None):
    """Cut the gradient of all of them together to LONGEST; with a generator, put a random one of that length in its place."""
    shorter = torch.nn.utils.clip_grad_norm_(theta_T, LONGEST).clamp_max(LONGEST)
    if generator:
        noise = [torch.randn(theta.shape, generator=generator) for theta in theta_T]
        for theta, part in zip(theta_T, noise):
            theta.grad = shorter / length(noise) * part


IDEAS = {"as-it-is": as_it_is, "label-loss": label_loss, "last-layer": last_layer}
IDEAS |= {"less-the-mean": less_the_mean, "held-out": held_out, "clipped-sgd": clipped_sgd, "random-walk": random_walk}


def scores_of(idea, config: train.Config, seed: int) -> dict[str, dict[str, float]]:
    """{title: {"dev accuracy": ...}} of student and teacher, trained by the idea with the seed."""
    context = train.Seed(config, seed)
    learners, total, step, after_epoch = idea(context)
    torch.manual_seed(1000 + seed)  # of dropout, as in train.py
    for k in range(total):
        step(k, None)
        if (k + 1) % context.steps_per_epoch == 0 and k >= config.warmup_epochs * context.steps_per_epoch:
            after_epoch()
    return {title: context.scores(model, "dev", "test") for title, model in learners.items()}


def table(found: dict[str, list[dict]], kd: list[dict]) -> str:
    """Percent, mean ± standard deviation of the seeds, in Markdown; of the student also the difference to kd, seed by
    seed. found: {idea: [what scores_of returned, of each seed]}, kd: [its scores, of each seed]."""
    splits = list(kd[0])
    rows = [["", *(f"{title}, {split}" for title in [*found.values()][0][0] for split in splits)]]
    rows.append(["---"] * len(rows[0]))
    rows.append(["kd", *(train.spread(np.array([seed[split] for seed in kd])) for split in splits), *[""] * len(splits)])
    for idea, seeds in found.items():
        rows.append([idea])
        for title, split in itertools.product(seeds[0], splits):
            ours, theirs = np.array([seed[title][split] for seed in seeds]), np.array([seed[split] for seed in kd])
            differs = f"; {train.paired_difference(ours, theirs)}" if title.startswith("student") else ""
            rows[-1].append(train.spread(ours) + differs)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main():
    """The command line."""
    out, *words = sys.argv[1:] or [""]
    chosen = list(itertools.takewhile(lambda word: word in IDEAS, words))
    config, journal = train.read_journal(out)
    kd = [seed["scores"] for seed in journal["results"].get("student kd", [])]
    config = dataclasses.replace(config, **train.parse(words[len(chosen) :]))
    data.expect(len(kd) >= config.seeds, f"{out}: expected a finished run whose kd has {config.seeds} seed(s), found {len(kd)}")
    found = {name: [scores_of(IDEAS[name], config, seed) for seed in range(config.seeds)] for name in chosen or IDEAS}
    print(table(found, kd[: config.seeds]))


if __name__ == "__main__":
    try:
        main()
    except (data.InputError, models.CheckpointError) as error:
        print(f"honest.py: {error}", file=sys.stderr)
        sys.exit(2)
