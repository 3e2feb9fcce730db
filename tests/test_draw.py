"""The look of the notebooks: colours that everybody can tell apart, markers and lines that differ as well."""

import itertools
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
pytest.importorskip("matplotlib")
pytest.importorskip("IPython")
import draw  # noqa: E402

# Eyes without the receptors for green, on linear RGB (Machado, Oliveira and Fernandes 2009, severity 1.0).
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(colour, eyes=np.eye(3)):
    """A colour "#RRGGBB" as it is seen by those eyes -> L*, a*, b* of CIELAB."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ (eyes @ linear).clip(0, 1) / WHITE
    fx, fy, fz = (np.cbrt(t) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def delta_e(one, other):
    """The difference CIEDE2000 of two colours of CIELAB, in the notation of Sharma, Wu and Dalal (2005)."""
    (L1, a1, b1), (L2, a2, b2) = one, other
    C = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    G = 0.5 * (1 - np.sqrt(C**7 / (C**7 + 25**7)))
    C1, C2 = np.hypot((1 + G) * a1, b1), np.hypot((1 + G) * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, (1 + G) * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    dh = (h2 - h1 + 180) % 360 - 180
    dH = 2 * np.sqrt(C1 * C2) * np.sin(np.radians(dh / 2))
    L, C, h = (L1 + L2) / 2, (C1 + C2) / 2, (h1 + dh / 2) % 360
    cosines = {1: (-0.17, 30), 2: (0.24, 0), 3: (0.32, -6), 4: (-0.20, 63)}
    T = 1 + sum(weight * np.cos(np.radians(n * h - turn)) for n, (weight, turn) in cosines.items())
    S_L, S_C, S_H = 1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2), 1 + 0.045 * C, 1 + 0.015 * C * T
    R_T = -2 * np.sqrt(C**7 / (C**7 + 25**7)) * np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2))))
    parts = (L2 - L1) / S_L, (C2 - C1) / S_C, dH / S_H
    return np.sqrt(sum(part**2 for part in parts) + R_T * parts[1] * parts[2])


def test_the_measure_is_right():
    """Two of the pairs that Sharma, Wu and Dalal publish for this purpose."""
    assert abs(delta_e((50, 2.6772, -79.7751), (50, 0, -82.7485)) - 2.0425) < 1e-4
    assert abs(delta_e((50, 2.5, 0), (73, 25, -18)) - 27.1492) < 1e-4
    assert np.allclose(lab("#FFFFFF"), (100, 0, 0), atol=0.01)


@pytest.mark.parametrize("eyes", [np.eye(3), DEUTERANOPIA], ids=["all receptors", "deuteranopia"])
def test_any_two_colours_can_be_told_apart(eyes):
    assert list(draw.LOOKS) == ["finetune", "kd", "metadistil", "teacher", "positive", "negative"]
    seen = {name: lab(look.colour, eyes) for name, look in draw.LOOKS.items()}
    apart = {pair: delta_e(seen[pair[0]], seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    assert min(apart.values()) > 20, min(apart, key=apart.get)
    assert all(delta_e(colour, lab("#FFFFFF", eyes)) > 20 for colour in seen.values())  # and from the paper


def test_what_is_lit_stands_out():
    for other in (draw.INK, draw.GREY):
        assert delta_e(lab(draw.LIT, DEUTERANOPIA), lab(other, DEUTERANOPIA)) > 20


def test_markers_and_lines_differ_too():
    looks = draw.LOOKS.values()
    assert len({look.marker for look in looks}) == len(looks)
    methods = [draw.LOOKS[name].line for name in ("finetune", "kd", "metadistil", "teacher")]
    assert len({*methods}) == 4


def test_a_number_is_written_as_in_a_book():
    assert [draw.signed(x) for x in (0.25, -0.25, 0, -0.001)] == ["+0.25", "−0.25", "0.00", "0.00"]


def test_small_numbers_can_be_left_out_of_a_matrix():
    assert draw.numbers([[0.25, -0.001], [0.1, -1]], least=0.1).tolist() == [["+0.25", ""], ["+0.10", "−1.00"]]


def test_a_table_is_markdown():
    text = draw.table(["a", "b"], [["x | y", 1]]).data
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| x \\| y | 1 |"]
