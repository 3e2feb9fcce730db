"""The drawn flowers: as CIFAR-100 lays its files out, and the same on every machine."""

import contextlib
import hashlib
import io
import os
import runpy
import sys

import numpy as np
import pictures
import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow  # drawing takes seconds


def run(*arguments):
    """Run the script -> its exit status, output, errors."""
    out, errors, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        patch.setattr(sys, "argv", ["pictures.py", *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "notebooks" / "pictures.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """The folder of the files."""
    here = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert run() == (0, "python train.py --task cifar100 --data flowers\n", "")
    return here / "flowers" / "cifar-100-binary"


def records(folder):
    """The records of train and test, (6600, 3074)."""
    train, test = (np.fromfile(folder / f"{name}.bin", np.uint8).reshape(-1, 3074) for name in ("train", "test"))
    assert (len(train), len(test)) == (4600, 2000)
    return np.concatenate([train, test])


def test_the_files_are_cifar_100s(flowers):
    coarse, fine = records(flowers)[:, :2].T
    assert np.bincount(fine).tolist() == [66] * 100 and (coarse == fine // 20).all()
    names = (flowers / "fine_label_names.txt").read_text().splitlines()
    assert len({*names}) == 100 and (names[0], names[99]) == ("2_petals_plain_red", "7_petals_fine_yellow")


def test_the_flowers_are_those_of_the_record(flowers):
    """Labels to the bit, pixels to the rounding of another processor's cosine."""
    everything = records(flowers)
    assert hashlib.md5(everything[:, :2].tobytes()).hexdigest() == "584954fcd6ab6f47388ecdce7cfa832f"
    pixels = [
        [120, 129, 147, 150, 156, 113, 51, 93],
        [65, 29, 54, 40, 32, 73, 181, 243],
        [64, 80, 67, 81, 82, 76, 202, 199],
        [85, 155, 45, 136, 42, 63, 68, 86],
    ]
    assert np.abs(everything[0:6600:1800, 2::409].astype(int) - pixels).max() <= 1


def test_a_hue_is_what_its_name_says(flowers):
    everything, names = records(flowers), np.array((flowers / "fine_label_names.txt").read_text().split())
    for hue, brightest in (("red", 0), ("green", 1), ("blue", 2)):
        of_hue = everything[np.char.endswith(names[everything[:, 1]], f"_plain_{hue}")]
        middle = of_hue[:, 2:].reshape(-1, 3, 32, 32)[:, :, 13:19, 13:19]
        assert middle.mean(axis=(0, 2, 3)).argmax() == brightest


def test_nothing_is_overwritten_and_nothing_half_written(flowers, tmp_path, monkeypatch):
    status, _, errors = run(flowers.parent)
    assert status == 2 and len(errors.splitlines()) == 1
    assert errors.startswith("pictures.py: ") and "expected no such folder, found one" in errors

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "draw", lambda: (np.zeros((6600, 3, 32, 32), np.uint8), np.zeros(6600, np.uint8)))
    monkeypatch.setattr(pictures.Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        pictures.write(tmp_path / "flowers" / "cifar-100-binary")
    assert os.listdir(tmp_path / "flowers") == []
