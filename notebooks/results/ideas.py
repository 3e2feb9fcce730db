"""train.py with a few methods more: `python notebooks/results/ideas.py --methods kd,own-job-1 ...` takes train.py's flags
(`--resume`, too).

Each idea is a row of train.METHODS and a step, a few lines. In all but `mutual` the student's loss and what it sees
are MetaDistil's; what differs is how, and in `no_pilot` also when, the teacher learns.
"""

import functools
import sys
from pathlib import Path

import torch
from torch.nn.utils import get_total_norm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import metadistil  # noqa: E402
import train  # noqa: E402


def meta_gradient(stage, batch, quiz, trace=None):
    """Algorithm 1's first call, with the stage's settings -> ∇_{θ_T} L_q, a tensor for each teacher parameter."""
    config = stage.config
    settings = {"pilot_lr": config.pilot_lr, "mode": config.meta_grad, "micro_batch": config.micro_batch}
    settings |= {"loss": stage.loss, "quiz_loss": stage.quiz_loss, "trace": trace}
    return metadistil.meta_gradient(stage.student, stage.teachers, batch, quiz, **settings).grads


def updates(stage, batch, grads):
    """Algorithm 1's second and third call: the meta update by these gradients, and the real update -> L_S."""
    metadistil.meta_update(stage.teachers, grads, stage.teacher_optimizer, stage.config.teacher_clip)
    return metadistil.real_update(stage.student, stage.teachers, batch, stage.student_optimizer, stage.loss)


def own_job(stage, batch, draw_quiz, log, weight, hears_quiz=True):
    """The teacher keeps its own job: it also learns the labels of the training batch, as in Meta Pseudo Labels (Pham et
    al. 2021), by a gradient `weight` times as long as the meta-gradient. The control, `hears_quiz=False`, leaves the
    meta-gradient out: of the quiz only that length is left."""
    grads = meta_gradient(stage, batch, draw_quiz())
    own = []
    for teacher in stage.teachers:
        # No quiz: the function gives any network's gradient, here the teacher's on the training batch.
        _, of_teacher = metadistil.quiz_gradient(teacher, dict(teacher.named_parameters()), batch, stage.quiz_loss)
        own += of_teacher.values()
    scale = weight * get_total_norm(grads) / get_total_norm(own).clamp_min(1e-30)
    own = [scale * part for part in own]
    if hears_quiz:
        own = [part + gradient for part, gradient in zip(own, grads)]
    return updates(stage, batch, own)


def less_the_mean(stage, batch, draw_quiz, log):
    """Of ∂L_q/∂z_T the mean over the batch is left out: the quiz no longer asks that all answers shift alike, only that
    one example's answer differ from another's."""
    trace = {}
    meta_gradient(stage, batch, draw_quiz(), trace)
    dL_dz_T = trace["teacher_logits_gradient"]  # (B, K)
    centred = dL_dz_T - dL_dz_T.mean(dim=0)
    inputs, labels = batch
    size = stage.config.micro_batch or len(centred)  # with a size the teachers' outputs are computed again
    grads = metadistil.through_teachers(stage.teachers, inputs, None, [centred], size)
    return updates(stage, batch, metadistil.mean_over_ranks(grads, len(labels)))


def random_walk(stage, batch, draw_quiz, log):
    """A control: the meta-gradient turned to a random direction, at the same length. No quiz has chosen these steps."""
    grads = meta_gradient(stage, batch, draw_quiz())
    noise = [torch.randn_like(gradient) for gradient in grads]
    noise = metadistil.mean_over_ranks(noise, 1)  # on several processes one direction for all
    scale = get_total_norm(grads) / get_total_norm(noise)
    return updates(stage, batch, [scale * part for part in noise])


def no_pilot(stage, batch, draw_quiz, log):
    """An ablation: the quiz is sat at θ_S instead of θ′_S, and λ only scales the meta-gradient. The real update comes
    before the meta update; in Algorithm 1 it comes after. Always by the way of "jvp"."""
    config, student, teachers = stage.config, stage.student, stage.teachers
    theta_S = dict(student.named_parameters())
    _, v = metadistil.quiz_gradient(student, theta_S, draw_quiz(), stage.quiz_loss)
    inputs, labels = batch
    z_T = metadistil.teach(teachers, inputs)
    z_T_leaf = metadistil.each_tensor(metadistil.leaf, z_T)
    dL_dz_T = metadistil.through_student_tangent(student, batch, z_T_leaf, v, config.pilot_lr, stage.loss)
    grads = metadistil.through_teachers(teachers, inputs, z_T, dL_dz_T, config.micro_batch)
    grads = metadistil.mean_over_ranks(grads, len(labels))
    L_S = metadistil.real_update(student, teachers, batch, stage.student_optimizer, stage.loss)
    metadistil.meta_update(teachers, grads, stage.teacher_optimizer, config.teacher_clip)
    return L_S


def mutual(stage, batch, draw_quiz, log):
    """Mutual learning (Zhang et al. 2018): the student learns from the teacher, then the teacher from the student. No
    quiz, so of the flags for the meta-gradient it uses none but the teacher's rate, optimiser and schedule."""
    L_S = metadistil.real_update(stage.student, stage.teachers, batch, stage.student_optimizer, stage.loss)
    for teacher in stage.teachers:
        metadistil.real_update(teacher, stage.student, batch, stage.teacher_optimizer, stage.loss)
    return L_S


def of_metadistil(step):
    """A row of METHODS as MetaDistil's, but for the step."""
    return train.METHODS["metadistil"]._replace(step=step)


METHODS = {
    "own-job-0.3": of_metadistil(functools.partial(own_job, weight=0.3)),
    "own-job-1": of_metadistil(functools.partial(own_job, weight=1.0)),
    "own-job-3": of_metadistil(functools.partial(own_job, weight=3.0)),
    "own-job-1-alone": of_metadistil(functools.partial(own_job, weight=1.0, hears_quiz=False)),
    "no-pilot": of_metadistil(no_pilot),
    "less-the-mean": of_metadistil(less_the_mean),
    "random-walk": of_metadistil(random_walk),
    # No quiz is sat, so the student learns the quiz's labels, too, as in kd.
    "mutual": of_metadistil(mutual)._replace(quiz_labels=True),
}
train.METHODS |= METHODS

if __name__ == "__main__":
    train.PROGRAM = "notebooks/results/ideas.py"
    train.from_terminal()
