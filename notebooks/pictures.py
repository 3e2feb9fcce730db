"""Pictures without a download: `python notebooks/pictures.py [DIR]` draws flowers, as CIFAR-100's files, into `flowers`.

A flower's edge is r = r0 (1 + 0.35 cos(petals phi)) in polar coordinates. Its class is 20 times how many petals it has
(0 to 4, for 2, 3, 4, 5 or 7), plus 5 times how close its stripes are (0 to 3), plus its hue (0 to 4). The coarse class
is the petals alone. 4,600 are for training, with quiz and dev, and 2,000 for the test.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

SIZES = {"train": 4600, "test": 2000}
PETALS = (2, 3, 4, 5, 7)
STRIPES = ("plain", "wide", "narrow", "fine")
HUES = ("red", "violet", "blue", "green", "yellow")


def draw(seed=2022):
    """Pictures (N, 3, 32, 32), bytes, and their classes (N,)."""
    N = sum(SIZES.values())
    rng = np.random.default_rng(seed)

    def uniform(low, high):
        return rng.uniform(low, high, (N, 1, 1, 1))

    labels = rng.permutation(N).reshape(-1, 1, 1, 1) % 100
    petals = np.array(PETALS)[labels // 20]
    stripes = labels // 5 % 4
    hue = labels % 5
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    turn = uniform(-0.4, 0.4)
    x = x + uniform(-0.15, 0.15)  # (N, 1, 32, 32) from here on
    y = y + uniform(-0.15, 0.15)
    edge = uniform(0.6, 0.75) * (1 + 0.35 * np.cos(petals * (np.arctan2(y, x) - turn)))
    inside = (8 * (edge - np.hypot(x, y))).clip(0, 1)
    shade = (2 + np.cos(4 * stripes * (x * np.cos(turn) + y * np.sin(turn)))) / 3
    phase = 2 * np.pi * (hue / 5 + rng.normal(0, 0.03, (N, 1, 1, 1)) + np.arange(3).reshape(3, 1, 1) / 3)
    colour = 0.55 + 0.45 * np.cos(phase)  # (N, 3, 1, 1)
    ground = uniform(0, 0.5)  # (N, 1, 1, 1)
    pixels = ground + inside * (shade * colour - ground) + rng.normal(0, 0.06, (N, 3, 32, 32))
    return (255 * pixels.clip(0, 1)).astype(np.uint8), labels.ravel()


def write(folder):
    """The files of CIFAR-100's binary version. The folder appears whole, or not at all. Raises OSError."""
    if folder.exists():
        raise FileExistsError(f"{folder}: expected no such folder, found one")
    pictures, labels = draw()
    records = np.column_stack([labels // 20, labels, pictures.reshape(len(labels), -1)]).astype(np.uint8)
    names = [f"{petals}_petals_{stripes}_{hue}" for petals in PETALS for stripes in STRIPES for hue in HUES]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        drawn = Path(temporary, folder.name)
        drawn.mkdir()
        records[: SIZES["train"]].tofile(drawn / "train.bin")
        records[SIZES["train"] :].tofile(drawn / "test.bin")
        (drawn / "fine_label_names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        drawn.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", default="flowers", metavar="DIR")
    directory = parser.parse_args().directory
    try:
        write(Path(directory, "cifar-100-binary"))
    except OSError as error:
        print(f"pictures.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"python train.py --task cifar100 --data {directory}")
