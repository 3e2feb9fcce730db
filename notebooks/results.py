"""The README's results again: `python notebooks/results.py STUDY...` runs what is missing of a study, each row one
command of train.py, and prints its table; "noise" is also drawn, as notebooks/figures/label_noise.png. Last come the
main rows of all studies in one table; without a STUDY nothing else.

What a row found is appended to notebooks/results.jsonl when the row is done. A row that stands there is not run again (take
its line out to see it run), and a run that was stopped goes on. Start it in the project's folder; there it looks for `glue`
(GLUE's tasks), `cifar` (CIFAR-100) and `minilm`, as far as a study needs them; links will do. `minilm` is the directory of a
published checkpoint, in which `python notebooks/fetch.py minilm` has made metadistil.pt.
SST-2's published test file has no labels: 2,000 examples of its training file, always the same, are the test set here.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import models  # noqa: E402
import train  # noqa: E402

FIGURE = ROOT / "notebooks" / "figures" / "label_noise.png"
FOUND, RUNS = ROOT / "notebooks" / "results.jsonl", "runs/results"
SST2 = f"--task sst2 --data {RUNS}/glue --precision auto --seeds 5 --quiz-size 400"
REVIEWS = "--task sst2 --data builtin --seeds 5"
STUDENT = "--student minilm --student-layers 1,3,5"
PAIR = f"{SST2} --train-size 1600 {STUDENT} --warmup-epochs 3"
QUIZ = f"{SST2} --train-size 1 --methods finetune --warmup-epochs 0 --batch-size 64 --student-lr 7e-5"
LINES = {  # what a line shows: kind of row, model; of a student also colour and style in the figure
    "teacher": ("plain", "teacher before"),
    "teacher tuned on the quiz": ("tuned", "student finetune"),
    "teacher after metadistil": ("metadistil", "teacher after metadistil"),
    "finetune": ("plain", "student finetune", "#555555", ":^"),
    "kd": ("plain", "student kd", "#0072B2", "--o"),
    "metadistil": ("metadistil", "student metadistil", "#E69F00", "-s"),
    "metadistil that learns the quiz, too": ("shared", "student metadistil", "#D55E00", "-X"),
    "kd without the quiz's labels": ("withheld", "student metadistil", "#56B4E9", ":P"),
    "kd from the teacher tuned on the quiz": ("tuned-kd", "student kd", "#009E73", "-.D"),
    "student on the quiz alone": ("quiz-alone", "student finetune", "#CC79A7", ":v"),
}
DEAF = "--teacher-lr 0 --meta-every 1000000"  # one quiz, at the first step, which moves the teacher by nothing
WRONG = ("other-ids", "half-vocabulary")  # teachers that are wrong for another reason than their labels; see `spoil`
ANSWERS = {  # what a line of `answer` is about: study, rows
    "built-in reviews, no label wrong": ("right", "plain", "metadistil"),
    "built-in reviews, 40% wrong": ("reviews", "plain", "metadistil"),
    "SST-2, from scratch": ("scratch", "plain"),
    "SST-2, pretrained": ("improving", "plain"),
    "SST-2, pretrained, 10% wrong": ("noise", "plain-0.1", "metadistil-0.1"),
    "SST-2, pretrained, 20% wrong": ("noise", "plain-0.2", "metadistil-0.2"),
    "SST-2, pretrained, 30% wrong": ("noise", "plain-0.3", "metadistil-0.3"),
    "SST-2, pretrained, 40% wrong": ("noise", "plain-0.4", "metadistil-0.4"),
    "CoLA, pretrained": ("cola", "plain"),
    "MRPC, pretrained": ("mrpc", "plain"),
    "CIFAR-100, a fifth of it": ("cifar", "plain"),
}
HEARD = "--teacher-lr 3e-5 --pilot-lr 0.002 --quiz-batch-size 200"


def taught(study: str, row: str, model: str = "teacher-before") -> str:
    """Where, seed by seed, another row leaves a model."""
    return f"{RUNS}/{study}/{row}/seed{{seed}}/{model}.pt"


def variants(study: str, base: str, plain: str, taught_rows: list[str], anew: list[str] = []) -> dict[str, str]:
    """{row: flags}: "plain", then rows with its teachers, then rows with teachers of their own, all named by their flags."""
    teacher = f"--teacher {taught(study, 'plain')} "
    name = lambda row: "-".join(re.sub("--(methods [a-z,]+ )?", "", row).split()) or "metadistil"  # noqa: E731
    rows = {"plain": plain} | {name(row): teacher + row for row in taught_rows} | {name(row): row for row in anew}
    return {row: f"{base} {flags}" for row, flags in rows.items()}


def ideas(study: str, base: str, teacher: str, methods: str, epochs: int) -> dict[str, str]:
    """Those of "Improving MetaDistil": an epoch of labels alone left out or not, word noise, a second teacher."""
    cold, noisy = f"--methods metadistil --warmup-epochs 0 --epochs {epochs + 1}", "--methods kd,metadistil --noise 0.2"
    plain, two = f"--teacher {teacher} --methods {methods}", f"--methods metadistil --teacher {teacher},{teacher}"
    return variants(study, f"{base} --epochs {epochs}", plain, [cold, noisy], [two])


def pictures(study: str, base: str) -> dict[str, str]:
    """Static and dynamic; a teacher taught for another student; cross: that teacher, frozen, for the first student."""
    rows = {"plain": "--methods finetune,kd,metadistil"}
    rows["resnet14"] = f"--student resnet14 --methods metadistil --teacher {taught(study, 'plain')}"
    rows["cross"] = f"--methods kd --teacher {taught(study, 'resnet14', 'teacher-after-metadistil')}"
    return {row: f"{base} {flags}" for row, flags in rows.items()}


def wrong_labels() -> dict[str, str]:
    """The study "noise": {row: flags}; a row is a kind and a share of wrong labels."""
    rows = {}
    for shares in (("0.4", "0"), ("0.2",), ("0.1", "0.3")):
        for kind, share in itertools.product(("plain", "tuned", "tuned-kd", "withheld", "metadistil", "shared"), shares):
            teacher, flipped = taught("noise", f"plain-{share}"), f"{PAIR} --epochs 3 --alpha 0.9 --label-noise {share}"
            tuned = taught("noise", f"tuned-{share}", "student-finetune")
            rows[f"{kind}-{share}"] = {
                "plain": f"{flipped} --teacher minilm --teacher-epochs 8 --methods finetune,kd",
                "tuned": f"{QUIZ} --teacher {teacher} --student {teacher} --dropout 0.1 --epochs 8",
                "tuned-kd": f"{flipped} --teacher {tuned} --methods kd",
                "withheld": f"{flipped} --teacher {teacher} --methods metadistil {DEAF}",
                "metadistil": f"{flipped} --teacher {teacher} --methods metadistil {HEARD}",
                "shared": f"{flipped} --teacher {teacher} --methods metadistil {HEARD} --learn-quiz",
            }[kind]
    rows["quiz-alone"] = f"{QUIZ} --teacher {taught('noise', 'plain-0')} {STUDENT} --epochs 27"
    return rows


def studies() -> dict[str, dict[str, str]]:
    """{study: {row: flags of train.py}}. A row may take models from rows before it."""
    plain, meta, both = "--methods finetune,kd", "--methods metadistil ", "--methods kd,metadistil "
    gentle = [meta + flags for flags in ("", "--meta-every 4", "--teacher-lr 1e-4", "--learn-quiz", "--quiz-batch-size 50")]
    late = f"{both}--warmup-epochs 20 --epochs 35"
    reviews = [*gentle, late, f"{meta}--no-pilot", *(f"{meta}--pilot-lr {rate}" for rate in (0.02, 0.5))]
    reviews += [f"{both}--alpha {alpha}" for alpha in (0.1, 0.3, 0.5, 0.7)]
    reviews += [*(f"{both}--temperature {T}" for T in (1, 4, 8)), f"{both}--student tiny"]
    own = [f"{both}{flags}" for flags in ("--quiz-size 100", "--quiz-size 180", "--quiz-size 1000", "--teacher-epochs 160")]
    own.append("--methods finetune --train-size 1 --batch-size 32 --epochs 75")  # the quiz and one sentence more
    few = f"--data glue --precision auto --seeds 5 --teacher minilm {STUDENT} --teacher-epochs 3 --epochs 2"
    three, four = "finetune,kd,metadistil", "finetune,kd,pkd,metadistil"
    spoilt = {kind: f"{REVIEWS} --label-noise 0 --teacher {taught('right', 'plain', f'teacher-{kind}')} {both}" for kind in WRONG}
    return {
        "reviews": variants("reviews", REVIEWS, plain, reviews, own),
        "right": variants("right", f"{REVIEWS} --label-noise 0", plain, [*gentle, late]) | spoilt,
        "mrpc": {"plain": f"--task mrpc {few} --methods {four}"},
        "cola": {"plain": f"--task cola {few} --methods {four}"},
        "scratch": ideas("scratch", f"{SST2} --train-size 4000 --teacher-epochs 8", "mini", three, 4),
        "improving": ideas("improving", f"{SST2} --train-size 2000 {STUDENT}", "minilm", four, 2),
        "noise": wrong_labels(),
        "cifar": pictures("cifar", "--task cifar100 --data cifar --train-size 10000 --precision auto --seeds 5"),
    }


def prepare():
    """runs/results/glue/SST-2: the published training and dev files, and a test set taken from the former."""
    folder = Path(RUNS, "glue", "SST-2")
    if not (folder / "test.tsv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("train.tsv", "dev.tsv"):
            (folder / name).write_bytes(Path("glue/SST-2", name).read_bytes())
        header, *lines = (folder / "train.tsv").read_text().splitlines(keepends=True)
        chosen = np.random.default_rng(0).permutation(len(lines))[:2000]
        train.write_whole(folder / "test.tsv", "".join([header, *(lines[i] for i in sorted(chosen))]))


def spoil(path: Path, kind: str):
    """Beside the teacher saved at `path`, the same one misreading: "other-ids", the ids of another model, whose tokens
    stand in another order; or "half-vocabulary", which lacks every other token (of their random order)."""
    network, saved = models.read_saved(path)
    tokenizer, rng = json.loads(saved["tokenizer"]), np.random.default_rng(0)
    vocabulary = tokenizer["model"]["vocab"]  # {token: id}
    tokens = rng.permutation([token for token in vocabulary if token[0] != "["]).tolist()
    if kind == "other-ids":
        vocabulary |= dict(zip(tokens, sorted(vocabulary[token] for token in tokens)))
    else:
        tokenizer["model"]["vocab"] = {token: n for token, n in vocabulary.items() if token not in tokens[::2]}
    misreading = models.to_save(network, tokenizer=json.dumps(tokenizer), labels=saved["labels"])
    train.write_whole(path.with_name(f"teacher-{kind}.pt"), misreading)


def read_found() -> dict[tuple[str, str], dict]:
    """{(study, row): {"command", "models": {title: {what: [of each seed]}}}}."""
    lines = FOUND.read_text().splitlines() if FOUND.exists() else []
    return {(entry["study"], entry["row"]): entry for entry in map(json.loads, lines)}


def run_row(study: str, row: str, flags: str):
    """Run one row to its end, in a process of one thread, from its last checkpoint if it has one; note what it found."""
    out = f"{RUNS}/{study}/{row}"
    for kind in [kind for kind in WRONG if f"teacher-{kind}.pt" in flags]:
        for path in Path(RUNS, study, "plain").glob("seed*/teacher-before.pt"):
            spoil(path, kind)
    given = ["--resume", out] if Path(out, "checkpoint.pt").exists() else [*flags.split(), "--out", out]
    print(f"python train.py {' '.join(given)}", flush=True)
    quiet = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, str(ROOT / "train.py"), *given], check=True, **quiet)
    with FOUND.open("a") as file:
        file.write(json.dumps(noted(study, row, flags)).replace("NaN", "null") + "\n")


def noted(study: str, row: str, flags: str) -> dict:
    """What is noted of a finished row: the scores and costs of each model, of each seed; "by_epoch" are those on dev."""
    out, models = f"{RUNS}/{study}/{row}", {}
    config, journal = train.read_journal(out)
    for title, seeds in journal["results"].items():
        models[title] = {key: [round(one["scores"][key], 6) for one in seeds] for key in seeds[0]["scores"]}
        models[title] |= {key: [one[key] for one in seeds] for key in ("parameters", "seconds")}
        models[title]["by_epoch"] = [[] for _ in seeds]
    for entry in journal["log"]:
        for title, scores in entry.get("scores", {}).items():
            models[title]["by_epoch"][entry["seed"]].append(round(next(iter(scores.values())), 4))
    command = f"python train.py {flags} --out {out}"
    return {"study": study, "row": row, "command": command, "warmup_epochs": config.warmup_epochs, "models": models}


def run_study(study: str, rows: dict[str, str], jobs: int):
    """Run the rows that have not been run, `jobs` at a time, none before those whose models it takes."""
    running, known = {}, read_found()

    def job(row: str, needed: list):
        for future in needed:
            future.result()
        run_row(study, row, rows[row])

    with ThreadPoolExecutor(jobs) as pool:
        for row, flags in rows.items():
            if (study, row) not in known:
                needed = [future for other, future in running.items() if f"/{study}/{other}/" in flags]
                running[row] = pool.submit(job, row, needed)
        for future in running.values():
            future.result()


def scores(study: str, setting: str, kind: str, model: str, split: str = "test", cost: str = "") -> np.ndarray:
    """The task's first metric on the split, or a cost, of each seed, (seeds,); (0,) if the row has not been run."""
    found = read_found()
    row = found.get((study, f"{kind}-{setting}"), found.get((study, kind), {"models": {model: {}}}))["models"][model]
    return np.array(next((row[key] for key in row if key == cost or not cost and key.startswith(split)), []), float)


def settings_of(study: str) -> list[str]:
    """The settings, shares of wrong labels say, for which the study has a student of kd to compare with."""
    return sorted(row.removeprefix("plain-") for of, row in read_found() if of == study and row.startswith("plain-"))


def table(study: str, split: str = "test") -> str:
    """What is known of a study, in Markdown: a line for each model, a column for each setting. Percent, mean ± standard
    deviation of the seeds; of students also the difference to the setting's own kd, with its 95% interval."""
    settings = settings_of(study)
    rows = [["", *settings, "seconds a seed"], ["---"] * (len(settings) + 2)]
    for label, (kind, model, *look) in LINES.items():
        cells = []
        for setting in settings:
            ours, kd = scores(study, setting, kind, model, split), scores(study, setting, *LINES["kd"][:2], split)
            differs = f"; {train.paired_difference(ours, kd)}" if look and label != "kd" and len(ours) else ""
            cells.append(train.spread(ours) + differs if len(ours) else "")
        costs = np.concatenate([scores(study, setting, kind, model, cost="seconds") for setting in settings])
        if any(cells):
            rows.append([label, *cells, "" if np.isnan(costs).all() else f"{costs.mean():.0f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def overview(study: str, split: str = "test") -> str:
    """What is known of a study, in Markdown: a line for each row, named by the flags that set it apart from the first, and a
    column for each model trained in any. Percent, mean ± standard deviation of the seeds; of students also the difference,
    with its 95% interval, to a kd of the same size (within 1%, for vocabularies differ): the row's own where it stands beside a
    metadistil, else the first row's. Minutes are of training, all seeds together."""
    everything = read_found()
    found = {row: everything[study, row] for row in studies()[study] if (study, row) in everything}
    known = {row: {title: of for title, of in entry["models"].items() if of["seconds"][0] != 0} for row, entry in found.items()}
    first = known[next(iter(known))]
    titles = list(dict.fromkeys(title for models in known.values() for title in models))
    lines = [["", *titles, "minutes"], ["---"] * (len(titles) + 2)]
    flags = {row: re.findall(r"--\S+ [^-]\S*|--\S+", entry["command"]) for row, entry in found.items()}
    for row, trained in known.items():
        own = [flag for flag in flags[row] if flag not in [*flags.values()][0] and not re.search("pt$|^--methods|^--out", flag)]
        kd, cells = (trained if {"student kd", "student metadistil"} <= {*trained} else first)["student kd"], []
        for title in titles:
            of = trained.get(title, {})
            ours, theirs = (np.array(next((of[key] for key in of if key.startswith(split)), [])) for of in (of, kd))
            cells.append(train.spread(ours) if len(ours) else "")
            like = of is not kd and len(ours) and np.allclose(of["parameters"], kd["parameters"], rtol=0.01)
            if like and title.startswith("student"):
                cells[-1] += f"; {train.paired_difference(ours, theirs)}"
        seconds = sum(np.nansum(np.array(of["seconds"], float)) for of in trained.values())
        lines.append([f"`{' '.join(own)}`" if own else row, *cells, f"{seconds / 60:.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def costs(study: str) -> str:
    """When is a method at its best, and when where pkd (or without it kd) is at its best, in Markdown: mean dev scores after
    each epoch, their highest, the seconds of training until then and until the rival's highest is reached; and the first
    seed's peak memory, if the record has it. An epoch of warm-up is taken to cost what one of finetune costs, the others of
    a method share the rest evenly. Empty where the study has no metadistil beside a kd."""
    of = {title: (entry, model) for (name, row), entry in read_found().items() if name == study and row in ("plain", "metadistil")
          for title, model in entry["models"].items() if title.startswith("student")}  # fmt: skip
    if "student metadistil" not in of:
        return ""
    rival = "student pkd" if "student pkd" in of else "student kd"
    columns = "best on dev, %", "after epoch", "seconds", f"seconds to {rival.split()[1]}'s best", "peak MB, first seed"
    rows = [["", *columns], ["---"] * 6]
    curves = {title: np.mean(model["by_epoch"], axis=0) for title, (_, model) in of.items()}  # (epochs,)
    plain = np.mean(of["student finetune"][1]["seconds"]) / len(curves["student finetune"])
    for title, (entry, model) in of.items():
        epochs, warmup = np.arange(1, len(curves[title]) + 1), entry["warmup_epochs"] if title != "student finetune" else 0
        later = (np.mean(model["seconds"]) - warmup * plain) / (len(epochs) - warmup)
        seconds = plain * np.minimum(epochs, warmup) + later * np.maximum(0, epochs - warmup)  # (epochs,)
        best, level = curves[title].argmax(), np.flatnonzero(curves[title] >= curves[rival].max())[:1]
        cells = [f"{100 * curves[title][best]:.1f}", str(best + 1), f"{seconds[best]:.0f}"]
        cells += [f"{seconds[n]:.0f}" for n in level] or ["–"]
        cells += [f"{peak:.0f}" for peak in model.get("peak_mb", [])[:1]] or ["–"]
        rows.append([title, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def answer() -> str:
    """Does it help, and when? In Markdown: a line for each of ANSWERS that has been run, in the task's first metric, on test,
    or on dev where test has no labels: kd's student, and, seed by seed, what differs from it (mean and 95% interval); and
    what the quiz did to the teacher."""
    pairs = [("student finetune", "student kd"), ("student metadistil", "student kd")]
    pairs.append(("teacher after metadistil", "teacher before"))
    columns = "score", "kd", "finetune less kd", "metadistil less kd", "teacher after less before"
    lines, found = [["", *columns], ["---"] * 6], read_found()
    for about, (study, *rows) in ANSWERS.items():
        if all((study, row) in found for row in rows):
            models = {title: of for row in rows for title, of in found[study, row]["models"].items()}
            score = next(key for split in ("test", "dev") for key in models["student kd"] if key.startswith(split))
            of = {title: np.array(model[score]) for title, model in models.items()}  # {title: (seeds,)}
            differ = [train.paired_difference(of[ours], of[theirs]) for ours, theirs in pairs]
            lines.append([about, score, train.spread(of["student kd"]), *differ])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw():
    """A figure of the study "noise": the students' test accuracy over the share of wrong labels, and, seed by seed, its
    difference to kd; means with 95% intervals."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for place, (label, (kind, model, *look)) in enumerate((n, line) for n, line in LINES.items() if len(line) > 2):
        of = {setting: scores("noise", setting, kind, model) for setting in settings_of("noise")}
        of = {setting: values for setting, values in of.items() if len(values)}
        if not of:
            continue
        less_kd = [values - scores("noise", setting, *LINES["kd"][:2]) for setting, values in of.items()]
        for ax, values in zip(axes, (np.array([*of.values()]), np.array(less_kd))):  # (settings, seeds)
            half = train.T_QUANTILES[values.shape[1] - 2] * values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
            style = {"color": look[0], "linestyle": look[1][:-1], "marker": look[1][-1], "capsize": 3, "label": label}
            ax.errorbar(100 * np.array([*of], float) + 0.4 * (place - 2), 100 * values.mean(axis=1), 100 * half, **style)
    axes[0].set(xlabel="wrong training labels (%)", ylabel=f"student's test accuracy (%), {values.shape[1]} seeds")
    axes[1].set(xlabel="wrong training labels (%)", ylabel="the same less kd's, seed by seed (points)")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def main():
    """The command line."""
    known = studies()
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*known, []]  # argparse holds even no study at all against them
    flags.add_argument("studies", nargs="*", choices=choices, metavar="STUDY", help=", ".join(known))
    flags.add_argument("--jobs", type=int, default=2, help="rows at a time, each on one core [2]")
    given = flags.parse_args()
    for study in given.studies:
        if f"{RUNS}/glue" in "".join(known[study].values()):
            prepare()
        run_study(study, known[study], given.jobs)
        show = table if study == "noise" else overview
        models = [model for (of, _), entry in read_found().items() if of == study for model in entry["models"].values()]
        for split in ("test", "dev"):
            if any(key.startswith(split) for model in models for key in model):  # test may have no labels
                print(f"\n{study}, {split}\n{show(study, split)}")
        if what := costs(study):
            print(f"\n{study}, what the best scores cost\n{what}")
        if study == "noise":
            draw().savefig(FIGURE, dpi=150)
    print(f"\nDoes it help, and when?\n{answer()}")


if __name__ == "__main__":
    main()
