"""Run the studies again: `python notebooks/results/results.py STUDY...` runs the rows of a study that the record lacks.

studies.toml says which rows a study has; each row is one command. What a row found is appended to results.jsonl, the
record, as soon as the row is done. A row on record is not run again: to see it run, take out its line and delete its
folder under runs/results/. A run that was stopped goes on where it was. Afterwards `python notebooks/results/report.py`
writes RESULTS.md anew.

Start it in the project's folder. There it looks for `glue` (GLUE's tasks), `cifar` (CIFAR-100) and `minilm`, as far as
a study needs them; links will do. `minilm` is the directory of a published checkpoint, in which
`python notebooks/fetch.py minilm` has made metadistil.pt. SST-2's published test file has no labels, so 2,000 examples
of its training file, always the same ones, are the test set here.
"""

import argparse
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent), str(ROOT)]
import methods  # noqa: E402

import models  # noqa: E402
import train  # noqa: E402

FOUND, RUNS = HERE / "results.jsonl", "runs/results"
SPOILT = ("other-ids", "half-vocabulary")  # teachers that are wrong for another reason than their labels; see `spoil`


# ---- What a study runs


def read_studies() -> dict[str, dict]:
    """{study: {"base", "words", "rows", and for some "shares"}}, as studies.toml has them."""
    return tomllib.loads((HERE / "studies.toml").read_text(encoding="utf-8"))


def studies() -> dict[str, dict[str, str]]:
    """{study: {row: all its flags}}."""
    return {name: written_out(study) for name, study in read_studies().items()}


def written_out(study: dict) -> dict[str, str]:
    """{row: all its flags}: base and row's own, the text in place of each word, one row for each share."""
    rows = {}
    for row, flags in study["rows"].items():
        flags = f"{study['base']} {flags}"
        for word, text in study["words"].items():
            flags = re.sub(rf"\b{word}\b", text, flags)
        for share in study["shares"] if "SHARE" in row else [""]:
            rows[row.replace("SHARE", share)] = flags.replace("SHARE", share)
    return rows


def command_of(study: str, row: str, flags: str) -> list[str]:
    """The words of a row's command, without "python"."""
    names = re.search(r"--methods (\S+)", flags)[1].split(",")
    script = train.MORE_METHODS if any(name in methods.METHODS for name in names) else "train.py"
    return [script, *flags.split(), "--out", f"{RUNS}/{study}/{row}"]


# ---- What it needs


def prepare():
    """runs/results/glue/SST-2: the published training and dev files, and a test set taken from the training file."""
    folder = Path(RUNS, "glue", "SST-2")
    if not (folder / "test.tsv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("train.tsv", "dev.tsv"):
            (folder / name).write_bytes(Path("glue/SST-2", name).read_bytes())
        header, *lines = (folder / "train.tsv").read_text().splitlines(keepends=True)
        chosen = np.random.default_rng(0).permutation(len(lines))[:2000]
        models.write_whole(folder / "test.tsv", "".join([header, *(lines[i] for i in sorted(chosen))]))


def spoil(path: Path, kind: str):
    """Save, beside the teacher at `path`, the same network with a tokeniser that misreads.

    "other-ids": every token has the id that another one had. "half-vocabulary": every second token, in random order, is
    missing.
    """
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


# ---- Running, and the record


def read_found() -> dict[tuple[str, str], dict]:
    """The record: {(study, row): {"command", "models": {title: {what: [of each seed]}}, ...}}."""
    return entries(FOUND.read_text() if FOUND.exists() else "")


@functools.lru_cache(maxsize=1)  # a page of results asks hundreds of times
def entries(lines: str) -> dict[tuple[str, str], dict]:
    """The entries of the record's text."""
    return {(entry["study"], entry["row"]): entry for entry in map(json.loads, lines.splitlines())}


def run_row(study: str, row: str, flags: str):
    """Run one row to its end, in a process of one thread, from its last checkpoint if it has one."""
    out = f"{RUNS}/{study}/{row}"
    for kind in [kind for kind in SPOILT if f"teacher-{kind}.pt" in flags]:
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
        message = done.stderr.splitlines() or ["no message"]
        raise RuntimeError(f"{study}, {row}, status {done.returncode}: {message[-1]}")


def results_of(config: train.Config) -> dict[str, list[dict]]:
    """What the stages of a finished run found: {title: [of each seed {"scores", "by_epoch", ...}]}."""
    found = {}
    for seed, stage in itertools.product(range(config.seeds), train.stage_names(config)):
        ended = Path(config.out, f"seed{seed}", f"{stage.replace(' ', '-')}.json")
        for title, of_seed in json.loads(ended.read_text())["results"].items():
            found.setdefault(title, []).append(of_seed)
    return found


def noted(study: str, row: str, flags: str) -> dict:
    """The record's entry for a finished row: scores and costs of each model and seed. "by_epoch" has dev scores."""
    config, _ = train.read_run(f"{RUNS}/{study}/{row}")
    of_models = {}
    for title, seeds in results_of(config).items():
        model = {key: [round(one["scores"][key], 6) for one in seeds] for key in seeds[0]["scores"]}
        model |= {key: [one[key] for one in seeds] for key in ("parameters", "seconds")}
        model["by_epoch"] = [[round(score, 4) for score in one["by_epoch"]] for one in seeds]
        of_models[title] = model
    command = " ".join(["python", *command_of(study, row, flags)])
    return {"study": study, "row": row, "command": command, "warmup_epochs": config.warmup_epochs, "models": of_models}


def run_study(study: str, rows: dict[str, str], jobs: int):
    """Run the rows that the record lacks, and the rows whose models they take (a finished run ends at once).

    `jobs` rows run at a time, none before those whose models it takes. When a row fails, or at Ctrl-C, no other begins.
    """
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
    flags.add_argument("studies", nargs="+", choices=known, metavar="STUDY", help=", ".join(known))
    flags.add_argument("--jobs", type=int, default=2, help="rows at a time, each on one core [2]")
    given = flags.parse_args()
    for study in given.studies:
        if f"{RUNS}/glue" in "".join(known[study].values()):
            prepare()
        run_study(study, known[study], given.jobs)


if __name__ == "__main__":
    main()
