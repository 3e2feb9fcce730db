"""Draw a finished run: `python notebooks/curves.py runs/NAME` writes runs/NAME/curves.png, as train.py does by itself
where matplotlib is installed."""

import json
import sys
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

LINES = list(zip(("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#555555"), (":", "-.", "-", "--", (0, (5, 1, 1, 1, 1, 1)))))


def draw(out) -> Path:
    """curves.png: dev score after each epoch, mean over the seeds and the range between them, of the students, and of
    their teachers while taught. Raises FileNotFoundError if `out` holds no run."""
    log = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    seeds = 1 + max(entry["seed"] for entry in log)
    scored = [entry["scores"] for entry in log if "epoch" in entry and not entry["stage"].startswith("teacher")]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for title, (colour, style) in zip(dict.fromkeys(title for scores in scored for title in scores), cycle(LINES)):
        curves = [100 * next(iter(scores[title].values())) for scores in scored if title in scores]
        curves = np.reshape(curves, (seeds, -1))  # (seeds, epochs)
        epochs, label = np.arange(curves.shape[1]) + 1, title.replace("after", "during")
        axes.plot(epochs, curves.mean(axis=0), color=colour, linestyle=style, label=label)
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    seeds = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    axes.set(xlabel="epoch", ylabel=f"dev score (%), {seeds}")
    axes.legend(frameon=False)
    figure.savefig(path := Path(out, "curves.png"), dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    for run in sys.argv[1:]:
        print(draw(run))
