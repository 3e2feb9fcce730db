"""Notebook 02's scene: what it shows of a step is what metadistil.py computes, in Python and on its page."""

import json
import math
import re
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT, chromium

import metadistil

sys.path.insert(0, str(ROOT / "notebooks"))
pytest.importorskip("IPython")
import scene  # noqa: E402

KEYS = [part.key for part in scene.PARTS]


def expected(theta_S, phi, pilot_lr, temperature, alpha, teacher_lr, **_):
    """{key: value} of the nine parts, from a trace of our own. The velocity is not in a trace: by central differences,
    the better of whose errors are of the fourth order."""
    student = scene.Student(theta_S)
    settings = {"pilot_lr": pilot_lr, "loss": partial(metadistil.kd_loss, alpha=alpha, temperature=temperature)}
    trace, h = {}, 1e-3
    metadistil.meta_gradient(student, scene.Teacher(phi), *scene.WORLD[:2], trace=trace, **settings)

    def slope(h):
        logits = [scene.Teacher(angle)(scene.WORLD.batch[0]).detach() for angle in (phi + h, phi - h)]
        ahead, behind = (metadistil.pilot_update(student, scene.WORLD.batch, z, **settings)["theta"] for z in logits)
        return (ahead - behind).detach() / (2 * h)

    values = {key: trace[key] for key in KEYS if key in trace}
    values = {key: next(iter(value.values())) if isinstance(value, dict) else value for key, value in values.items()}
    values["velocity"] = (4 * slope(h) - slope(2 * h)) / 3
    return values | {"new_angle": torch.tensor(phi - teacher_lr * values["meta_gradient"].item()).double().rad2deg()}


def largest_difference(found, wanted):
    """Over all nine values; relative where they are large."""
    assert sorted(found) == sorted(wanted) == sorted(KEYS)
    pairs = [(torch.as_tensor(found[key], dtype=torch.float64), wanted[key].detach()) for key in KEYS]
    return max(((one - other).abs() / other.abs().clamp(min=1)).max().item() for one, other in pairs)
