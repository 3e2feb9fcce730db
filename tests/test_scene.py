"""Notebook 02's scene: what it shows of a step is what metadistil.py computes."""

import re
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT

import metadistil

sys.path.insert(0, str(ROOT / "notebooks"))
for package in ("matplotlib", "IPython", "PIL"):
    pytest.importorskip(package)
import scene  # noqa: E402

SETTINGS = [(160.0, 2.0, 2.0, 0.8), (35.0, 0.5, 1.0, 0.3), (250.0, 5.0, 4.5, 1.0), (90.0, 3.0, 2.0, 0.0)]


def numbers(text):
    """The numbers in a printed value."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text.replace("−", "-"))]


def expected(degrees, pilot_lr, temperature, alpha):
    """The values of the nine parts, from a trace of our own. 7 is not in a trace: by a central difference."""
    student, phi = scene.Student(scene.THETA_S), torch.tensor(degrees, dtype=torch.float64).deg2rad()
    settings = {"pilot_lr": pilot_lr, "loss": partial(metadistil.kd_loss, alpha=alpha, temperature=temperature)}
    trace, h = {}, 1e-5
    metadistil.meta_gradient(student, scene.Teacher(phi), scene.WORLD.batch, scene.WORLD.quiz, trace=trace, **settings)
    tips = [
        metadistil.pilot_update(student, scene.WORLD.batch, scene.Teacher(angle)(scene.WORLD.batch[0]), **settings)[
            "theta"
        ]
        for angle in (phi + h, phi - h)
    ]
    slope = trace["meta_gradient"]["phi"]
    return [
        trace["teacher_logits"][0], trace["inner_loss"], trace["pilot_gradient"]["theta"],
        trace["theta_S_prime"]["theta"], trace["quiz_loss_after"], trace["v"]["theta"],
        (tips[0] - tips[1]).detach() / (2 * h), slope, (phi - 2.5 * slope).rad2deg(),
    ]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_printed_value_is_the_traces(settings, capsys):
    for step, value in enumerate(expected(*settings), start=1):
        scene.scene(*settings, step=step)
        printed = capsys.readouterr().out
        assert printed.startswith(f"{step}. ") and printed.count("\n") == 1
        found = numbers(printed.rpartition("value")[2])
        assert torch.allclose(torch.tensor(found[: value.numel()]), value.float().reshape(-1), atol=1e-4), printed


def test_the_meta_gradient_is_the_product_of_the_two_arrows():
    parts = scene.one_step().parts
    v, velocity, product = (parts[k - 1].value for k in (6, 7, 8))
    assert torch.allclose(v @ velocity, product, rtol=1e-12)


def arrows(ax):
    """The colours of the arrows in a picture."""
    return [text.arrow_patch.get_edgecolor() for text in ax.texts if getattr(text, "arrow_patch", None)]


def test_each_step_lights_its_own_box_and_its_own_arrow():
    lit_colour = scene.draw.plt.matplotlib.colors.to_rgba(scene.draw.LIT)
    for step in range(1, 10):
        chain, plane, _ = scene.scene(step=step).get_axes()
        boxes = [text for text in chain.texts if text.get_text()]
        assert [box.get_color() for box in boxes].index("white") == step - 1 and len(boxes) == 9
        lit = [number for number, colour in enumerate(arrows(chain), start=2) if colour == lit_colour]
        assert lit == ([step] if step > 1 else [])
        assert arrows(plane).count(lit_colour) == {2: 0, 5: 0, 8: 2}.get(step, 1)  # 2 and 5 light a curve instead


@pytest.mark.slow
def test_the_player_stands_alone_and_is_small():
    page = scene.player().data
    assert len(page) < 1.5e6 and page.count("data:image/png") == 1 + 9  # the first stands there from the beginning
    assert not re.search(r"""(src|href)=["']?\w+:(?!image)|//[\w.-]+\.(com|org|net)""", page)  # nothing from the net
    step = scene.one_step()
    rows = re.findall(r"<tr title.*?</tr>", page)
    assert len(rows) == 9 and all(scene.written(part) in row for part, row in zip(step.parts, rows))


def test_without_ipywidgets_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    scene.poke()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "pip install ipywidgets" in printed


def test_sliders_move_all_five(monkeypatch, capsys):
    widgets = pytest.importorskip("ipywidgets")
    shown = []
    monkeypatch.setattr(widgets, "interact", lambda function, **sliders: shown.append((function, sliders)))
    scene.poke()
    function, sliders = shown[0]
    assert list(sliders) == ["degrees", "pilot_lr", "temperature", "alpha", "step"]
    assert (sliders["step"].min, sliders["step"].max) == (1, 9)
    for name, slider in sliders.items():
        for end in (slider.min, slider.max):  # the scene is drawn at both ends of every slider
            function(**{other: one.value for other, one in sliders.items()} | {name: end})
