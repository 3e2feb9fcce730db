"""The look of the notebooks: colours that everybody can tell apart, markers and lines that differ as well."""

import itertools
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
pytest.importorskip("matplotlib")
pytest.importorskip("IPython")
Color = pytest.importorskip("coloraide").Color
import draw  # noqa: E402

FAR = 20  # of CIEDE2000, where black and white are 100 apart


def apart(colours, without_green):
    """{(name, name): their difference} of every two of {name: colour}, to eyes with or without receptors for green."""
    seen = {name: Color(colour) for name, colour in colours.items()}
    if without_green:
        seen = {name: colour.filter("deutan") for name, colour in seen.items()}
    return {pair: seen[pair[0]].delta_e(seen[pair[1]], method="2000") for pair in itertools.combinations(seen, 2)}


@pytest.mark.parametrize("without_green", [False, True])
def test_any_two_looks_can_be_told_apart(without_green):
    """By their colours, on paper, too; by their markers; the methods by their lines."""
    looks = draw.LOOKS
    assert list(looks) == ["finetune", "kd", "metadistil", "teacher", "positive", "negative"]
    colours = {name: look.colour for name, look in looks.items()} | {"paper": "#FFFFFF"}
    distances = apart(colours, without_green)
    assert min(distances.values()) > FAR, min(distances, key=distances.get)
    for other in (draw.INK, draw.GREY):
        assert min(apart({"lit": draw.LIT, "other": other}, without_green).values()) > FAR
    assert len({look.marker for look in looks.values()}) == len(looks)
    assert len({looks[name].line for name in ("finetune", "kd", "metadistil", "teacher")}) == 4


def test_a_number_is_written_as_in_a_book():
    assert [draw.signed(x) for x in (0.25, -0.25, 0, -0.001)] == ["+0.25", "−0.25", "0.00", "0.00"]
    assert draw.numbers([[0.25, -0.001], [0.1, -1]], least=0.1).tolist() == [["+0.25", ""], ["+0.10", "−1.00"]]


def test_a_table_is_markdown():
    text = draw.table(["a", "b"], [["x | y", 1]]).data
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| x \\| y | 1 |"]
