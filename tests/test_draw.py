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
# Two steps to Oklab (Björn Ottosson 2020), where equal distances look equally far apart; black and white are 1 apart.
TO_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
TO_OKLAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip
FAR = 0.08  # four times what an eye can just tell apart


def oklab(colour, eyes=np.eye(3)):
    """A colour "#RRGGBB" as it is seen by those eyes."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return TO_OKLAB @ np.cbrt(TO_CONES @ (eyes @ linear).clip(0, 1))


def apart(colours, eyes=np.eye(3)):
    """{(name, name): their distance} of every two of {name: colour}."""
    seen = {name: oklab(colour, eyes) for name, colour in colours.items()}
    return {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}


def test_the_measure_is_right():
    """White and sRGB's red, as they are published."""
    assert np.allclose(oklab("#FFFFFF"), (1, 0, 0), atol=1e-6)
    assert np.allclose(oklab("#FF0000"), (0.62796, 0.22486, 0.12585), atol=1e-5)


@pytest.mark.parametrize("eyes", [np.eye(3), DEUTERANOPIA], ids=["all receptors", "deuteranopia"])
def test_any_two_looks_can_be_told_apart(eyes):
    """By their colours, on paper, too; by their markers; the methods by their lines."""
    looks = draw.LOOKS
    assert list(looks) == ["finetune", "kd", "metadistil", "teacher", "positive", "negative"]
    distances = apart({name: look.colour for name, look in looks.items()} | {"paper": "#FFFFFF"}, eyes)
    assert min(distances.values()) > FAR, min(distances, key=distances.get)
    for other in (draw.INK, draw.GREY):
        assert min(apart({"lit": draw.LIT, "other": other}, eyes).values()) > FAR
    assert len({look.marker for look in looks.values()}) == len(looks)
    assert len({looks[name].line for name in ("finetune", "kd", "metadistil", "teacher")}) == 4


def test_a_number_is_written_as_in_a_book():
    assert [draw.signed(x) for x in (0.25, -0.25, 0, -0.001)] == ["+0.25", "−0.25", "0.00", "0.00"]
    assert draw.numbers([[0.25, -0.001], [0.1, -1]], least=0.1).tolist() == [["+0.25", ""], ["+0.10", "−1.00"]]


def test_a_table_is_markdown():
    text = draw.table(["a", "b"], [["x | y", 1]]).data
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| x \\| y | 1 |"]
