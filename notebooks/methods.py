"""train.py with more methods: `python notebooks/methods.py --methods kd,pkd ...` takes the flags of train.py.

Each method is a row of train.METHODS: a loss or a step of a few lines, with its equation and its source. Run it with
`--resume` and `--predict` as train.py.
"""

import functools
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import get_total_norm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import metadistil  # noqa: E402
import train  # noqa: E402

BETA = 100.0  # β, the weight of pkd's states
CLIP = 0.3  # the longest meta-gradient of clipped-sgd and random-walk; few are longer


# ---- Patient KD (Sun et al. 2019): the student also learns hidden states


def pkd_loss(student_states, teacher_states):
    """mean((h_S / ‖h_S‖ − h_T / ‖h_T‖)²) over [CLS] states (B, n, D) of n layers -> scalar. Equation 7, but a mean over
    B, n and D, as in the code of its authors."""
    h_S = nn.functional.normalize(student_states, dim=-1)
    h_T = nn.functional.normalize(teacher_states, dim=-1)
    return (h_S - h_T).square().mean()


def patient_loss(stage):
    """L_S = kd_loss + β pkd_loss, of outputs (logits, states)."""
    of_logits = train.logits_loss(stage)

    def loss(student_outputs, teacher_outputs, labels):
        z_S, states_S = student_outputs
        if teacher_outputs is None:
            return of_logits(z_S, None, labels)
        z_T, states_T = teacher_outputs
        return of_logits(z_S, z_T, labels) + BETA * pkd_loss(states_S, states_T)

    return loss


def patient_layers(student, network):
    """The layers of `network` whose states are compared: the student's 1 to M − 1, beside every (L / M)-th of a
    teacher's L (section 3.2). Takes two configurations; raises InputError if the states cannot be compared."""
    M, L = (getattr(config, "layers", 0) for config in (student, network))
    fits = L >= M >= 2 and network.hidden == student.hidden
    found = f"found {student} and {network}"
    train.expect(fits, f"pkd: expected a student of 2 layers or more, as wide as its teacher and no deeper, {found}")
    return tuple(n * L // M for n in range(1, M))


# ---- Other ways for a teacher to learn: own steps beside MetaDistil's loss


def meta_gradient(stage, batch, k, trace=None):
    """The meta-gradient of step k, with the stage's settings: a tensor for each teacher parameter."""
    settings = {"pilot_lr": stage.config.pilot_lr, "mode": stage.config.meta_grad}
    settings |= {"loss": stage.loss, "quiz_loss": stage.quiz_loss, "trace": trace}
    return metadistil.meta_gradient(stage.learner, stage.teachers, batch, stage.quiz(k), **settings).grads


def real_update(stage, batch):
    """The student's step -> {"loss": L_S}."""
    return {"loss": metadistil.real_update(stage.learner, stage.teachers, batch, stage.optimizer, stage.loss)}


def updates(stage, batch, grads):
    """Meta update by these gradients, then real update -> {"loss": L_S}."""
    metadistil.meta_update(stage.teachers, grads, stage.teacher_optimizer)
    return real_update(stage, batch)


def own_job(stage, batch, rows, k, weight, hears_quiz=True):
    """g + w ‖g‖ h / ‖h‖: beside the meta-gradient g, the teacher learns the labels of the training batch by their
    gradient h, as in Meta Pseudo Labels (Pham et al. 2021). Its control, `hears_quiz=False`, leaves out g."""
    g = meta_gradient(stage, batch, k)
    h = []
    for teacher in stage.teachers:
        # There is no quiz here: `quiz_gradient` gives a network's gradient on any labelled examples.
        _, of_teacher = metadistil.quiz_gradient(teacher, dict(teacher.named_parameters()), batch, stage.quiz_loss)
        h += of_teacher.values()
    scale = weight * get_total_norm(g) / get_total_norm(h).clamp_min(1e-30)
    h = [scale * part for part in h]
    return updates(stage, batch, [a + b for a, b in zip(h, g)] if hears_quiz else h)


def less_the_mean(stage, batch, rows, k):
    """∂L_q/∂z_T less its mean over the batch: the quiz no longer asks that all answers move alike, only that one
    example's answer differ from another's."""
    trace = {}
    meta_gradient(stage, batch, k, trace)
    dL_dz_T = trace["teacher_logits_gradient"]  # (B, K)
    inputs, labels = batch
    z_T = metadistil.teach(stage.teachers, inputs)
    grads = metadistil.through_teachers(stage.teachers, z_T, [dL_dz_T - dL_dz_T.mean(dim=0)])
    return updates(stage, batch, metadistil.mean_over_ranks(grads, len(labels)))


def clipped(stage, k, grads):
    """The gradients, together at most CLIP long. Also sets the teacher's rate, which falls as in train.falls."""
    share = train.falls(k - stage.warmup_steps, stage.total - stage.warmup_steps)
    train.set_rate(stage.teacher_optimizer, stage.config.teacher_lr * share)
    scale = (CLIP / get_total_norm(grads)).clamp(max=1)
    return [gradient * scale for gradient in grads]


def clipped_sgd(stage, batch, rows, k):
    """The teacher takes no longer steps than a length of CLIP gives. Meant for --teacher-optimizer momentum."""
    return updates(stage, batch, clipped(stage, k, meta_gradient(stage, batch, k)))


def random_walk(stage, batch, rows, k):
    """The control of clipped-sgd: ‖g‖ r / ‖r‖, a random direction r, as long as the meta-gradient g."""
    g = meta_gradient(stage, batch, k)
    r = [torch.randn_like(gradient) for gradient in g]
    r = metadistil.mean_over_ranks(r, 1)  # on several processes one direction for all
    scale = get_total_norm(g) / get_total_norm(r)
    return updates(stage, batch, clipped(stage, k, [scale * part for part in r]))


def no_pilot(stage, batch, rows, k):
    """An ablation: v = ∇_{θ_S} L_q, the quiz taken at θ_S and not at θ′_S. λ only scales the meta-gradient, and the
    real update comes before the meta update. The way is that of "jvp"."""
    learner, teachers = stage.learner, stage.teachers
    inputs, labels = batch
    _, v = metadistil.quiz_gradient(learner, dict(learner.named_parameters()), stage.quiz(k), stage.quiz_loss)
    z_T = metadistil.teach(teachers, inputs)
    z_T_leaf = metadistil.each_tensor(metadistil.leaf, z_T)
    pilot_lr = stage.config.pilot_lr
    dL_dz_T = metadistil.through_student_tangent(learner, batch, z_T_leaf, v, pilot_lr, stage.loss)
    grads = metadistil.mean_over_ranks(metadistil.through_teachers(teachers, z_T, dL_dz_T), len(labels))
    found = real_update(stage, batch)
    metadistil.meta_update(teachers, grads, stage.teacher_optimizer)
    return found


def mutual(stage, batch, rows, k):
    """Mutual learning (Zhang et al. 2018): the student learns from the teacher, then the teacher from the student.
    There is no quiz; of the flags for the teacher it uses its rate and its optimiser."""
    found = real_update(stage, batch)
    for teacher in stage.teachers:
        metadistil.real_update(teacher, stage.learner, batch, stage.teacher_optimizer, stage.loss)
    return found


def like_metadistil(step):
    """MetaDistil's row with another step."""
    return train.METHODS["metadistil"]._replace(step=step)


METHODS = {
    "pkd": train.METHODS["kd"]._replace(loss=patient_loss, states=patient_layers),
    "metadistil-pkd": train.METHODS["metadistil"]._replace(loss=patient_loss, states=patient_layers),
    "own-job-0.3": like_metadistil(functools.partial(own_job, weight=0.3)),
    "own-job-1": like_metadistil(functools.partial(own_job, weight=1.0)),
    "own-job-3": like_metadistil(functools.partial(own_job, weight=3.0)),
    "own-job-1-alone": like_metadistil(functools.partial(own_job, weight=1.0, hears_quiz=False)),
    "no-pilot": like_metadistil(no_pilot),
    "less-the-mean": like_metadistil(less_the_mean),
    "clipped-sgd": like_metadistil(clipped_sgd),
    "random-walk": like_metadistil(random_walk),
    # Without a quiz, so the student learns the quiz's labels, as in kd.
    "mutual": like_metadistil(mutual)._replace(quiz_labels=True),
}
train.METHODS |= METHODS

if __name__ == "__main__":
    train.PROGRAM = train.MORE_METHODS
    train.from_terminal()
