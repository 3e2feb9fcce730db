"""The built-in reviews: `python notebooks/reviews.py` writes train.tsv, dev.tsv and test.tsv, as SST-2's files are laid
out, into notebooks/reviews, where data.py reads them.

They come from a small grammar and are rightly labelled. Words carry sentiment, composition corrects it: denial turns a
word, or a whole clause, into its opposite; in a contrast one side wins.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SIZES = {"train": 1800, "dev": 1000, "test": 2000}  # train with quiz
PRAISE = """brilliant charming clever delightful elegant engaging enjoyable fascinating fresh fun gorgeous gripping
inspired lively lovely magical moving original splendid witty""".split()
BLAME = """awful banal bland boring clumsy contrived crude dismal dreadful dull empty feeble flat hollow lame lazy
messy pointless shallow silly""".split()
ASPECTS = "acting cast dialogue ending humour music pacing plot script story".split()
ADVERBS = "deeply mostly often quite really truly utterly".split()
PLAIN = ("the {aspect} is {word}", "the {aspect} feels {word}", "the {aspect} is {adverb} {word}")
DENIED = ("the {aspect} is not {word}", "the {aspect} is never {word}", "the {aspect} is hardly {word}")
AGREEING = ("{same} and {other}", "{same} , {other}")  # both clauses say what the sentence says
CONTRASTING = ("{other} but {same}", "although {other} , {same}")  # the clause `same` wins
SCOPED = ("nobody can claim that {other}", "it is not true that {other}")  # the whole clause is denied


def draw(seed=2022):
    """{"train": [(review, label), ...], "dev": ..., "test": ...}; label 1 praises."""
    rng = np.random.default_rng(seed)
    reviews = {}  # no sentence twice, so the splits are disjoint

    def clause(praises):
        denied = rng.random() < 0.1  # says it by denying a word of the other kind
        template = rng.choice(DENIED if denied else PLAIN)
        word = rng.choice(PRAISE if praises != denied else BLAME)
        aspect = rng.choice(ASPECTS)
        return template.format(word=word, aspect=aspect, adverb=rng.choice(ADVERBS))

    def review(praises):
        form = rng.choice(["plain", "agreeing", "contrasting", "scoped"], p=[0.45, 0.3, 0.2, 0.05])
        if form == "plain":
            return clause(praises)
        template = rng.choice({"agreeing": AGREEING, "contrasting": CONTRASTING, "scoped": SCOPED}[form])
        same = clause(praises)
        other = clause(praises if form == "agreeing" else not praises)
        return template.format(same=same, other=other)

    while len(reviews) < sum(SIZES.values()):
        label = len(reviews) % 2
        reviews.setdefault(review(label == 1), label)
    rows, examples = iter(rng.permutation(len(reviews))), list(reviews.items())
    return {name: [examples[next(rows)] for _ in range(size)] for name, size in SIZES.items()}


def write(folder=HERE / "reviews"):
    """The files, in UTF-8."""
    folder.mkdir(exist_ok=True)
    for name, examples in draw().items():
        lines = [f"{review}\t{label}\n" for review, label in examples]
        (folder / f"{name}.tsv").write_text("".join(["sentence\tlabel\n", *lines]), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write()
