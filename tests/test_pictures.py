"""The drawn flowers: files in CIFAR-100's format, the same on every machine."""

import contextlib
import hashlib
import io
import os
import runpy
import sys

import numpy as np
import pictures
import pytest

pytestmark = pytest.mark.slow  # drawing takes seconds


def script(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pictures.py", *map(str, arguments)])
        runpy.run_path(pictures.__file__, run_name="__main__")


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """The folder of the files."""
    here = tmp_path_factory.mktemp("here")
    with contextlib.chdir(here), contextlib.redirect_stdout(io.StringIO()) as said:
        script()
    assert said.getvalue() == "python train.py --task cifar100 --data flowers\n"
    return here / "flowers" / "cifar-100-binary"


def test_the_files_are_cifar_100s_and_the_flowers_those_of_the_record(flowers):
    """Labels to the bit, pixels to the rounding of another processor's cosine. A hue is what its name says."""
    train, test = (np.fromfile(flowers / f"{name}.bin", np.uint8).reshape(-1, 3074) for name in ("train", "test"))
    records = np.concatenate([train, test])
    coarse, fine = records[:, :2].T
    assert len(train) == 4600 and np.bincount(fine).tolist() == [66] * 100 and (coarse == fine // 20).all()
    assert hashlib.md5(records[:, :2].tobytes()).hexdigest() == "584954fcd6ab6f47388ecdce7cfa832f"
    pixels = [
        [120, 129, 147, 150, 156, 113, 51, 93],
        [65, 29, 54, 40, 32, 73, 181, 243],
        [64, 80, 67, 81, 82, 76, 202, 199],
        [85, 155, 45, 136, 42, 63, 68, 86],
    ]
    assert np.abs(records[0:6600:1800, 2::409].astype(int) - pixels).max() <= 1
    names = np.array((flowers / "fine_label_names.txt").read_text().split())
    assert len({*names}) == 100 and names[0] == "2_petals_plain_red" and names[99] == "7_petals_fine_yellow"
    for hue, brightest in (("red", 0), ("green", 1), ("blue", 2)):
        of_hue = records[np.char.endswith(names[fine], f"_plain_{hue}"), 2:].reshape(-1, 3, 32, 32)
        assert of_hue[:, :, 13:19, 13:19].mean(axis=(0, 2, 3)).argmax() == brightest


def test_nothing_is_overwritten_and_nothing_half_written(flowers, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        script(flowers.parent)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said == f"pictures.py: {flowers}: expected no such folder, found one\n"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "draw", lambda: (np.zeros((6600, 3, 32, 32), np.uint8), np.zeros(6600, np.uint8)))
    monkeypatch.setattr(pictures.Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        pictures.write(tmp_path / "flowers" / "cifar-100-binary")
    assert os.listdir(tmp_path / "flowers") == []
