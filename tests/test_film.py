"""The README's pictures: the numbers behind them, and that they are small enough for a page."""

import sys

import pytest
from conftest import ROOT

pytest.importorskip("matplotlib").use("agg")
pytest.importorskip("IPython")
Image = pytest.importorskip("PIL.Image")
sys.path.insert(0, str(ROOT / "notebooks"))

import film
import scene


def test_the_teacher_turns_and_the_quiz_loss_falls():
    losses, angles = zip(*((step.parts[4].value, step.parts[8].value) for step in film.steps()))
    assert losses[0] == scene.one_step().parts[4].value
    assert all(later < before for before, later in zip(losses, losses[1:]))
    assert all(later < before for before, later in zip(angles, angles[1:])) and angles[-1] < 90 < angles[0]


def test_the_pictures_are_there_and_small():
    whole = film.FOLDER / "film.gif"
    assert whole.stat().st_size < 1_000_000
    assert all((film.FOLDER / name).stat().st_size < 100_000 for name in ("step.png", "scene.png"))
    with Image.open(whole) as frames:
        assert frames.n_frames == film.STEPS
