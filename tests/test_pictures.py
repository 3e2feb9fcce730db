"""The drawn flowers: as CIFAR-100 lays its files out, and the same on every machine."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT


def run(*arguments, **options):
    command = [sys.executable, ROOT / "notebooks" / "pictures.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """The folder of files, and what was printed."""
    here = tmp_path_factory.mktemp("here")
    found = run(cwd=here)
    assert found.returncode == 0
    return here / "flowers" / "cifar-100-binary", found.stdout


def records(folder, name):
    return np.fromfile(folder / f"{name}.bin", np.uint8).reshape(-1, 3074)


def test_the_files_are_cifar_100s(flowers):
    folder, printed = flowers
    assert printed == "python train.py --task cifar100 --data flowers\n"
    train, test = records(folder, "train"), records(folder, "test")
    assert (len(train), len(test)) == (4600, 2000)
    everything = np.concatenate([train, test])
    coarse, fine = everything[:, 0], everything[:, 1]
    assert (np.bincount(fine) == 66).all() and len(np.bincount(fine)) == 100 and (coarse == fine // 20).all()
    names = (folder / "fine_label_names.txt").read_text().splitlines()
    assert len({*names}) == 100 and (names[0], names[99]) == ("2_petals_plain_red", "7_petals_fine_yellow")


def test_the_flowers_are_those_of_the_record(flowers):
    """Labels to the bit, pixels to the rounding of another processor's cosine."""
    everything = np.concatenate([records(flowers[0], name) for name in ("train", "test")])
    assert hashlib.md5(everything[:, :2].tobytes()).hexdigest() == "584954fcd6ab6f47388ecdce7cfa832f"
    pixels = [
        [120, 129, 147, 150, 156, 113, 51, 93],
        [65, 29, 54, 40, 32, 73, 181, 243],
        [64, 80, 67, 81, 82, 76, 202, 199],
        [85, 155, 45, 136, 42, 63, 68, 86],
    ]
    assert np.abs(everything[0:6600:1800, 2::409].astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("hue, brightest", [("red", 0), ("blue", 2), ("green", 1)])
def test_a_hue_is_what_its_name_says(flowers, hue, brightest):
    everything = np.concatenate([records(flowers[0], name) for name in ("train", "test")])
    names = np.array((flowers[0] / "fine_label_names.txt").read_text().split())
    of_hue = np.char.endswith(names[everything[:, 1]], f"_plain_{hue}")
    middle = everything[of_hue, 2:].reshape(-1, 3, 32, 32)[:, :, 13:19, 13:19]
    assert middle.mean(axis=(0, 2, 3)).argmax() == brightest


@pytest.mark.slow
def test_nothing_is_overwritten_and_nothing_half_written(flowers, tmp_path):
    found = run(flowers[0].parent)
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith("pictures.py: ") and "expected no such folder, found one" in found.stderr
    (tmp_path / "file").write_text("")
    found = run(tmp_path / "file")
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
