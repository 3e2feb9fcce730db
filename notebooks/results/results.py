"""The record's studies again: `python notebooks/results/results.py STUDY...` runs what is missing of a study, each row
one command, and writes RESULTS.md anew; without a STUDY only that.

What a row found is appended to results.jsonl when the row is done. A row that stands there is not run again (to see it
run, take out its line, and its folder under runs/results/), and a run that was stopped goes on. Start it in the
project's folder; there it looks for `glue` (GLUE's tasks), `cifar` (CIFAR-100) and `minilm`, as far as a study needs
them; links will do. `minilm` is the directory of a published checkpoint, in which `python notebooks/fetch.py minilm`
has made metadistil.pt. SST-2's published test file has no labels: 2,000 examples of its training file, always the same,
are the test set here.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]
import methods  # noqa: E402

import models  # noqa: E402
import train  # noqa: E402

FOUND, RUNS = HERE / "results.jsonl", "runs/results"
SST2 = f"--task sst2 --data {RUNS}/glue --precision bf16 --seeds 5 --quiz-size 400"
REVIEWS = "--task sst2 --data builtin --seeds 5"
STUDENT = "--student minilm --student-layers 1,3,5"
PAIR = f"{SST2} --train-size 1600 {STUDENT} --warmup-epochs 3"
QUIZ = f"{SST2} --train-size 1 --methods finetune --warmup-epochs 0 --batch-size 64 --student-lr 7e-5"
DEAF = "--teacher-lr 0 --meta-every 1000000"  # one quiz, at the first step, which moves the teacher by nothing
WRONG = ("other-ids", "half-vocabulary")  # teachers that are wrong for another reason than their labels; see `spoil`
OWN_JOB = ("own-job-1", "own-job-1-alone")
HEARD = "--teacher-lr 3e-5 --pilot-lr 0.002 --quiz-batch-size 200"
MOMENTUM = "--teacher-optimizer momentum --teacher-lr 1.5e-3"  # SGD with momentum, at three times AdamW's rate


def taught(study: str, row: str, model: str = "teacher-before") -> str:
    """Where, seed by seed, another row leaves a model."""
    return f"{RUNS}/{study}/{row}/seed{{seed}}/{model}.pt"


def beside(study: str, base: str, plain: str, rows: dict[str, str]) -> dict[str, str]:
    """{row: flags}: "plain", then the rows, with its teachers."""
    teacher = f"--teacher {taught(study, 'plain')}"
    return {"plain": f"{base} {plain}"} | {row: f"{base} {teacher} {flags}" for row, flags in rows.items()}


def variants(study: str, base: str, plain: str, taught_rows: list[str], anew: list[str] = []) -> dict[str, str]:
    """{row: flags}: "plain", then rows with its teachers, then rows with teachers of their own, named by their flags."""

    def name(row):
        return "-".join(re.sub("--(methods [a-z,]+ )?", "", row).split()) or "metadistil"

    rows = beside(study, base, plain, {name(row): row for row in taught_rows})
    return rows | {name(row): f"{base} {row}" for row in anew}


def improving(study: str, base: str, teacher: str, methods: str, epochs: int) -> dict[str, str]:
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
        for kind, share in itertools.product(
            ("plain", "tuned", "tuned-kd", "withheld", "metadistil", "shared"), shares
        ):
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


def honest(study: str, base: str) -> dict[str, str]:
    """Ideas to keep a teacher honest, and their controls."""
    flags = {
        "metadistil": "metadistil",
        "no-pilot": "no-pilot",
        "clipped-sgd": f"clipped-sgd {MOMENTUM}",
        "random-walk": f"random-walk {MOMENTUM}",
        "mutual": "mutual",
        "less-the-mean": "less-the-mean",
    } | {kind: kind for kind in OWN_JOB}
    rows = {name: f"--methods {words}" for name, words in flags.items()}
    return beside(study, base, "--methods finetune,kd", rows)


def own_job(study: str, base: str, flags: str = "", trial=()) -> dict[str, str]:
    """The teacher keeps its own job, by a gradient w times as long as the meta-gradient, w = 1; and the control, that
    gradient with the quiz unheard. `trial`: values of w to try with two seeds; the best on dev is taken."""
    # A flag given twice holds as given last: a trial's --seeds 2.
    rows = {f"trial-{w}": f"--methods own-job-{w} {flags} --seeds 2" for w in trial}
    rows |= {kind: f"--methods {kind} {flags}" for kind in OWN_JOB}
    rows["learn-quiz"] = f"--methods metadistil --learn-quiz {flags}"
    return beside(study, base, "--teacher minilm --methods kd", rows)


def compression(study: str) -> dict[str, str]:
    """Six layers into three, two and one: --student-layers prunes, then the student learns. "3-1": by an assistant, the
    student of three layers of the same method. Other methods beside kd, from the same teachers."""
    base = f"{SST2} --train-size 2000 --epochs 2 --student minilm"
    teacher = f"--teacher {taught(study, '3')}"
    rows = {"3": f"{base} --student-layers 1,3,5 --teacher minilm --methods kd,metadistil"}
    for kind in ("mutual", *OWN_JOB):
        rows[kind] = f"{base} --student-layers 1,3,5 {teacher} --methods {kind}"
    for layers in ("2,5", "5"):
        rows[str(len(layers.split(",")))] = f"{base} --student-layers {layers} {teacher} --methods kd,metadistil"
    for method in ("kd", "metadistil"):
        assistant = f"--teacher {taught(study, '3', f'student-{method}')}"
        rows[f"3-1-{method}"] = f"{base} --student-layers 5 {assistant} --methods {method}"
    return rows


def studies() -> dict[str, dict[str, str]]:
    """{study: {row: flags}}. A row may take models from rows before it."""
    plain, meta, both = "--methods finetune,kd", "--methods metadistil ", "--methods kd,metadistil "
    gentle = [
        meta + flags for flags in ("", "--meta-every 4", "--teacher-lr 1e-4", "--learn-quiz", "--quiz-batch-size 50")
    ]
    late = f"{both}--warmup-epochs 20 --epochs 35"
    reviews = [*gentle, late, *(f"{meta}--pilot-lr {rate}" for rate in (0.02, 0.5))]
    reviews += [f"{both}--alpha {alpha}" for alpha in (0.1, 0.3, 0.5, 0.7)]
    reviews += [*(f"{both}--temperature {T}" for T in (1, 4, 8)), f"{both}--student tiny"]
    own = [
        f"{both}{flags}" for flags in ("--quiz-size 100", "--quiz-size 180", "--quiz-size 1000", "--teacher-epochs 160")
    ]
    own.append("--methods finetune --train-size 1 --batch-size 32 --epochs 75")  # the quiz and one sentence more
    few = f"--data glue --precision bf16 --seeds 5 --teacher minilm {STUDENT} --teacher-epochs 3 --epochs 2"
    mrpc = f"--task mrpc --data glue --precision bf16 --seeds 5 {STUDENT} --teacher-epochs 3 --epochs 2"
    sst2 = f"{PAIR} --teacher-epochs 8 --epochs 3 --alpha 0.9"
    three, four = "finetune,kd,metadistil", "finetune,kd,pkd,metadistil"
    right = f"{REVIEWS} --label-noise 0"
    kept = ("plain", "metadistil", *OWN_JOB)
    spoilt = {kind: f"{right} --teacher {taught('right', 'plain', f'teacher-{kind}')} {both}" for kind in WRONG}
    return {
        "reviews": variants("reviews", REVIEWS, plain, reviews, own),
        "right": variants("right", right, plain, [*gentle, late]) | spoilt,
        "ideas": honest("ideas", REVIEWS),
        "ideas-right": {row: flags for row, flags in honest("ideas-right", right).items() if row in kept},
        "own-mrpc": own_job("own-mrpc", f"{mrpc} --train-size 1600", trial=("0.3", "1", "3")),
        "own-sst2": own_job("own-sst2", f"{sst2} --label-noise 0.4", HEARD),
        "compression": compression("compression"),
        "mrpc": {"plain": f"--task mrpc {few} --methods {four}"},
        "cola": {"plain": f"--task cola {few} --methods {four}"},
        "scratch": improving("scratch", f"{SST2} --train-size 4000 --teacher-epochs 8", "mini", three, 4),
        "improving": improving("improving", f"{SST2} --train-size 2000 {STUDENT}", "minilm", four, 2),
        "noise": wrong_labels(),
        "cifar": pictures("cifar", "--task cifar100 --data cifar --train-size 10000 --precision bf16 --seeds 5"),
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
        models.write_whole(folder / "test.tsv", "".join([header, *(lines[i] for i in sorted(chosen))]))


def spoil(path: Path, kind: str):
    """Beside the teacher saved at `path`, the same one misreading: "other-ids", the ids of another model, whose tokens
    stand in another order; or "half-vocabulary", which lacks every other token (of their random order)."""
    teacher, rng = models.load(path), np.random.default_rng(0)
    tokenizer = json.loads(teacher.tokenizer.to_str())
    vocabulary = tokenizer["model"]["vocab"]  # {token: id}
    tokens = rng.permutation([token for token in vocabulary if token[0] != "["]).tolist()
    if kind == "other-ids":
        vocabulary |= dict(zip(tokens, sorted(vocabulary[token] for token in tokens)))
    else:
        tokenizer["model"]["vocab"] = {token: n for token, n in vocabulary.items() if token not in tokens[::2]}
    misreading = Tokenizer.from_str(json.dumps(tokenizer))
    spoilt = models.Model(teacher.network, misreading, teacher.labels, teacher.columns)
    spoilt.title = f"teacher {kind}"
    spoilt.save(path.with_name(f"teacher-{kind}.pt"))


def read_found() -> dict[tuple[str, str], dict]:
    """{(study, row): {"command", "models": {title: {what: [of each seed]}}}}."""
    lines = FOUND.read_text().splitlines() if FOUND.exists() else []
    return {(entry["study"], entry["row"]): entry for entry in map(json.loads, lines)}


def run_row(study: str, row: str, flags: str):
    """Run one row to its end, in a process of one thread, from its last checkpoint if it has one."""
    out = f"{RUNS}/{study}/{row}"
    for kind in [kind for kind in WRONG if f"teacher-{kind}.pt" in flags]:
        for path in Path(RUNS, study, "plain").glob("seed*/teacher-before.pt"):
            spoil(path, kind)
    script, *given = command_of(study, row, flags)
    if Path(out, "begun.json").exists():
        given = ["--resume", out]
    print("python", script, *given, flush=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *given],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        *_, last = done.stderr.splitlines() or ["no message"]
        raise RuntimeError(f"{study}, {row}, status {done.returncode}: {last}")


def command_of(study: str, row: str, flags: str) -> list[str]:
    """The words of a row's command, but for "python"."""
    names = re.search(r"--methods (\S+)", flags)[1].split(",")
    script = train.MORE_METHODS if any(name in methods.METHODS for name in names) else "train.py"
    return [script, *flags.split(), "--out", f"{RUNS}/{study}/{row}"]


def results_of(config: train.Config) -> dict[str, list[dict]]:
    """What the stages of a finished run found: {title: [of each seed {"scores", "by_epoch", ...}]}."""
    found = {}
    for seed, stage in itertools.product(range(config.seeds), train.stage_names(config)):
        ended = Path(config.out, f"seed{seed}", f"{stage.replace(' ', '-')}.json")
        for title, of_seed in json.loads(ended.read_text())["results"].items():
            found.setdefault(title, []).append(of_seed)
    return found


def noted(study: str, row: str, flags: str) -> dict:
    """What is noted of a finished row: scores and costs of each model, of each seed; "by_epoch" are those on dev."""
    config, _ = train.read_run(f"{RUNS}/{study}/{row}")
    models = {}
    for title, seeds in results_of(config).items():
        models[title] = {key: [round(one["scores"][key], 6) for one in seeds] for key in seeds[0]["scores"]}
        models[title] |= {key: [one[key] for one in seeds] for key in ("parameters", "seconds")}
        models[title]["by_epoch"] = [[round(score, 4) for score in one["by_epoch"]] for one in seeds]
    command = " ".join(["python", *command_of(study, row, flags)])
    return {"study": study, "row": row, "command": command, "warmup_epochs": config.warmup_epochs, "models": models}


def run_study(study: str, rows: dict[str, str], jobs: int):
    """Run the rows that are not on record, and again those whose models they take (a finished run ends at once); `jobs`
    at a time, none before those whose models it takes. When one fails, or at Ctrl-C, no other begins."""
    known, running = read_found(), {}

    def takes(row):
        return [other for other in rows if f"/{study}/{other}/" in rows[row]]

    def job(row, needed):
        for future in needed:
            future.result()
        run_row(study, row, rows[row])
        if (study, row) not in known:
            with FOUND.open("a") as file:
                file.write(json.dumps(noted(study, row, rows[row])).replace("NaN", "null") + "\n")

    missing = [row for row in rows if (study, row) not in known]
    for row in missing:  # grows by the rows that those take models from
        missing += [other for other in takes(row) if other not in missing]
    with ThreadPoolExecutor(jobs) as pool:
        for row in [row for row in rows if row in missing]:
            running[row] = pool.submit(job, row, [running[other] for other in takes(row)])
        try:
            for future in as_completed(running.values()):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # no row begins any more
            raise


def main():
    """The command line."""
    known = studies()
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*known, []]  # without a STUDY argparse looks for the empty list among them
    flags.add_argument("studies", nargs="*", choices=choices, metavar="STUDY", help=", ".join(known))
    flags.add_argument("--jobs", type=int, default=2, help="rows at a time, each on one core [2]")
    given = flags.parse_args()
    for study in given.studies:
        if f"{RUNS}/glue" in "".join(known[study].values()):
            prepare()
        run_study(study, known[study], given.jobs)
    import report  # which reads what was found, and draws

    report.write()


if __name__ == "__main__":
    main()
