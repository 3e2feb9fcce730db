"""Draw a finished run: `python notebooks/curves.py runs/NAME` writes runs/NAME/curves.png, as train.py does by itself
where matplotlib is installed."""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ["MPLBACKEND"] = "agg"  # to a file, whatever is set for windows
try:
    import matplotlib.pyplot as plt
except ImportError:
    if __name__ != "__main__":  # train.py does without the picture
        raise
    print("curves.py: expected matplotlib; pip install -r notebooks/requirements.txt", file=sys.stderr)
    sys.exit(2)

sys.path.insert(0, str(Path(__file__).parent))
import draw as style

SECOND_LINES = [(0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]  # of the second, third, fourth of one colour


def draw(out) -> Path:
    """curves.png: dev score after each epoch, mean over the seeds and the range between them, of the students, and of
    their teachers while they learn to teach. Raises FileNotFoundError if `out` holds no finished run."""
    if not Path(out, "table.md").is_file():
        raise FileNotFoundError(f"{out}: expected a finished run; one that was stopped goes on by --resume")
    log = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    seeds = 1 + max(entry["seed"] for entry in log)
    scored = [entry["scores"] for entry in log if not entry["stage"].startswith("teacher")]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    drawn = []
    for title in dict.fromkeys(title for scores in scored for title in scores):
        curves = [100 * next(iter(scores[title].values())) for scores in scored if title in scores]
        curves = np.reshape(curves, (seeds, -1))  # (seeds, epochs)
        epochs, label, look = np.arange(curves.shape[1]) + 1, title.replace("after", "during"), style.look_of(title)
        line = [look.line, *SECOND_LINES][drawn.count(look.colour) % 4]
        axes.plot(epochs, curves.mean(axis=0), color=look.colour, linestyle=line, linewidth=2, label=label)
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=look.colour, alpha=0.15, linewidth=0)
        drawn.append(look.colour)
    seeds = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    axes.set(xlabel="epoch", ylabel=f"dev score (%), {seeds}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = Path(out, "curves.png")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    for run in sys.argv[1:]:
        try:
            print(draw(run))
        except FileNotFoundError as error:
            print(f"curves.py: {error}", file=sys.stderr)
            sys.exit(2)
