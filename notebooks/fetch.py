"""What comes from outside: `python notebooks/fetch.py NAME...` fetches data sets and converts published checkpoints.

A task (sst2, cola, mrpc, stsb, qqp, mnli, qnli, rte, wnli, cifar100): its files, checked, into `data/`.

A directory, or a name on the Hugging Face hub (org/name), with a BERT, RoBERTa, DistilBERT or TinyBERT: the package
transformers reads it, and DIR/metadistil.pt or checkpoints/org/name/metadistil.pt holds what train.py reads: network,
tokeniser, names of the labels. Before that the two networks and the two tokenisers are compared. Where they part, one
line says so, and nothing is written. The package fills what the files lack with random numbers, which is allowed of
the head alone: the classifier, the layer before it, or both. If one is missing, the file names no labels.

train.py keeps a head whose labels are the task's, in the task's order. `--labels` writes it so: out of the published
files, or out of metadistil.pt alone where they are not in the directory.
"""

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

try:
    import huggingface_hub
    import transformers
except ImportError:  # data sets do without
    transformers = None

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import models  # noqa: E402


class FetchError(Exception):
    """What was asked for cannot be had; the message is one line: where, what was expected, what was found."""


def expect(condition, message):
    """Raise FetchError unless the condition holds."""
    if not condition:
        raise FetchError(message)


@contextlib.contextmanager
def saying(what):
    """Turn any exception of the block, for packages raise about anything, into a FetchError of one line."""
    try:
        yield
    except FetchError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FetchError(f"{what}: {reason[:300]}") from None


class Source(NamedTuple):
    """Where a task's data set comes from."""

    folder: str  # in the data directory, and in the archive
    address: str
    md5: str | None = None  # where one is known


GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
MRPC = "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt"  # a file, not an archive
CIFAR100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
SOURCES = {
    "sst2": Source("SST-2", GLUE + "SST-2.zip", "9f81648d4199384278b86e315dac217c"),
    "cola": Source("CoLA", GLUE + "CoLA.zip"),
    "mrpc": Source("MRPC", MRPC, "793daf7b6224281e75fe61c1f80afe35"),
    "stsb": Source("STS-B", GLUE + "STS-B.zip"),
    "qqp": Source("QQP", GLUE + "QQP-clean.zip"),
    "mnli": Source("MNLI", GLUE + "MNLI.zip"),
    "qnli": Source("QNLI", GLUE + "QNLIv2.zip", "b4efd6554440de1712e9b54e14760e82"),
    "rte": Source("RTE", GLUE + "RTE.zip", "bef554d0cafd4ab6743488101c638539"),
    "wnli": Source("WNLI", GLUE + "WNLI.zip", "a1b4bd2861017d302d29e42139657a42"),
    "cifar100": Source("cifar-100-binary", CIFAR100, "03b5dce01913d631647c71ecec9e9cb8"),
}


def has_training_file(folder):
    """Whether a data set lies there."""
    return any((folder / name).is_file() for name in ("train.tsv", "train.bin"))


def fetch_data(name, data):
    """Fetch a task's data set. Its folder in the directory `data` appears whole and checked, or not at all."""
    folder_name, address, md5 = SOURCES[name]
    folder = Path(data, folder_name)
    if has_training_file(folder):
        print(f"{name}: {folder} is already there")
        return
    expect(not folder.exists(), f"{folder}: expected a training file in it, or no such folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        file = Path(temporary, address.rsplit("/", 1)[1])
        unpacked = Path(temporary, "unpacked", folder_name)
        with saying(f"{address}: cannot be downloaded"):
            download(address, file)
            found = hashlib.md5(file.read_bytes()).hexdigest()
            expect(md5 in (None, found), f"{address}: expected the MD5 checksum {md5}, found {found}")
        with saying(f"{address}: cannot be unpacked"):
            if file.suffix == ".txt":
                unpacked.mkdir(parents=True)
                file.rename(unpacked / "train.tsv")
            else:  # what would land elsewhere is left out (zip) or refused (tar)
                shutil.unpack_archive(file, unpacked.parent, filter="data" if file.suffix == ".gz" else None)
        expect(has_training_file(unpacked), f"{address}: expected {folder_name} in it, with a training file")
        unpacked.rename(folder)
    print(f"{name}: fetched into {folder}")


class SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows a redirect from https to https, not to http or ftp."""

    def redirect_request(self, request, file, code, message, headers, address):
        """The request that follows. Raises FetchError."""
        expect(address.split(":")[0] == request.type, f"{request.full_url}: expected no redirect to {address}")
        return super().redirect_request(request, file, code, message, headers, address)


def download(address, file, timeout=10.0, most=10**9):
    """Write what lies at an address to a file, with a line of progress. Raises FetchError and about anything else."""
    with urllib.request.build_opener(SameScheme).open(address, timeout=timeout) as response, file.open("wb") as output:
        try:
            while part := response.read(1 << 20):
                output.write(part)
                expect(output.tell() <= most, f"{address}: expected at most {most:,} bytes, found more")
                print(f"\r{file.name}: {output.tell() / 1e6:.0f} MB", end="", file=sys.stderr)
        finally:
            print(file=sys.stderr)
        missing = response.length or 0
        expect(not missing, f"{address}: cut off, {missing:,} bytes are missing")


BERT_NAMES = {  # our name of a part -> the published one, behind "bert." and so on; pooler and classifier: the whole name
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "blocks": "encoder.layer",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_in": "intermediate.dense",
    "feed_out": "output.dense",
    "feed_norm": "output.LayerNorm",
    "pooler": "bert.pooler.dense",
    "classifier": "classifier",
}
ROBERTA_NAMES = BERT_NAMES | {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}
DISTILBERT_NAMES = BERT_NAMES | {
    "blocks": "transformer.layer",
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_in": "ffn.lin1",
    "feed_out": "ffn.lin2",
    "feed_norm": "output_layer_norm",
    "pooler": "pre_classifier",
}
# By model_type. TinyBERT's is bert.
NAMES = {"bert": BERT_NAMES, "roberta": ROBERTA_NAMES, "distilbert": DISTILBERT_NAMES}
# What a file may hold beside the network: heads for another purpose, and a pooler that RoBERTa does not use.
OTHER_HEADS = re.compile(r"(cls|lm_head|qa_outputs|fit_denses|vocab_\w+|classifier|(roberta\.)?pooler)\.")
EXPRESSIBLE = {  # settings that our Encoder has no field for, and the only value it can express
    "hidden_act": "gelu",
    "activation": "gelu",  # DistilBERT's word for it
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def published_name(model_type, name):
    """Our name of a tensor -> the published one: words.weight -> bert.embeddings.word_embeddings.weight."""
    parts = name.split(".")
    published = ".".join(NAMES[model_type].get(part, part) for part in parts)
    return published if parts[0] in ("pooler", "classifier") else f"{model_type}.{published}"


def from_hub(name):
    """The directory in the hub's cache where the files of a name lie, all of one revision."""
    wanted = ["config.json", "*token*.json", "vocab.*", "merges.txt", "model*.safetensors*"]
    with saying("the Hugging Face hub"):
        folder = huggingface_hub.snapshot_download(name, allow_patterns=wanted)
        if not any(Path(folder).glob("*.safetensors")):
            folder = huggingface_hub.snapshot_download(name, allow_patterns=[*wanted, "pytorch_model*.bin*"])
    return folder


def read_json(folder, name):
    """A file of a checkpoint; {} if it is not there."""
    path = Path(folder, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_config(folder, model_type=None):
    """The package's configuration. `model_type` stands in where the file has none."""
    with saying("config.json"):
        published = read_json(folder, "config.json")
        expect(published, "config.json: expected one in the directory, found none")
        found = published.pop("model_type", model_type)
        hint = " (if you know it, add --model-type)" if found is None else ""
        expect(found in NAMES, f"config.json: expected a model_type of {', '.join(NAMES)}, found {found}{hint}")
        for setting, value in EXPRESSIBLE.items():
            given = published.get(setting, value)
            expect(given == value, f"config.json: expected {setting} {value}, found {given}")
        config = transformers.CONFIG_MAPPING[found].from_dict(published)
        numbers = {name: number for number, name in enumerate(label_names(config))}
        expect(len(numbers) == config.num_labels, f"config.json: expected each label once, found {config.id2label}")
        stated = {name: int(number) for name, number in (published.get("label2id") or {}).items()}
        agree = stated == numbers or stated.keys() != numbers.keys()
        expect(agree, f"config.json: expected id2label and label2id to agree, found {config.id2label}, {stated}")
    return config


def label_names(config):
    """The names of the classes, as they are written, in the order of the logits."""
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def read_network(folder, config):
    """The package's network, and whether its head was in the files. Everything else must have been there."""
    expected = "expected the weights that config.json promises"
    with saying(expected):
        for file in filter(Path.is_file, Path(folder).iterdir()):
            with file.open("rb") as content:
                pointer = content.read(40).startswith(b"version https://git-lfs")
            expect(not pointer, f"{file.name}: expected the file itself, found a Git-LFS pointer (git lfs pull)")
        torch.manual_seed(0)  # the same fresh head each time
        reference, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    for name, found, promised in sorted(loaded["mismatched_keys"]):
        raise FetchError(f"{expected}: {name} has the shape {tuple(found)}, not {tuple(promised)}")
    missing, names = {*loaded["missing_keys"]}, NAMES[config.model_type]
    head = [{f"{names[part]}.weight", f"{names[part]}.bias"} for part in ("pooler", "classifier")]
    fresh = set().union(*(part for part in head if part <= missing))
    lacking = sorted(missing - fresh)
    expect(not lacking, f"{expected}: {len(lacking)} tensors are missing, first {lacking[:1]}")
    unknown = sorted(name for name in loaded["unexpected_keys"] if not OTHER_HEADS.match(name))
    expect(not unknown, f"{expected}: {len(unknown)} tensors have no place there, first {unknown[:1]}")
    return reference.eval(), not fresh


def shape_of(config):
    """The package's configuration as ours."""
    distilbert = config.model_type == "distilbert"
    return models.EncoderConfig(
        vocab_size=config.vocab_size,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        intermediate=config.hidden_dim if distilbert else config.intermediate_size,
        max_positions=config.max_position_embeddings,
        position_offset=config.pad_token_id + 1 if config.model_type == "roberta" else 0,
        token_types=0 if distilbert else config.type_vocab_size,
        pooler="relu" if distilbert else "tanh",
        num_labels=config.num_labels,
        layer_norm_eps=1e-12 if distilbert else config.layer_norm_eps,
    )


def convert(reference):
    """The package's network as our Encoder."""
    network = models.Encoder(shape_of(reference.config))
    published = reference.state_dict()
    model_type = reference.config.model_type
    network.load_state_dict({name: published[published_name(model_type, name)] for name in network.state_dict()})
    return network.eval()


def plain(label):
    """A label by which it is looked up: neither case nor an underscore for a space counts."""
    return label.lower().replace("_", " ")


def outputs_named(wanted, labels):
    """For each label that is wanted, the number of the output that it is to name: its own, if these are the labels of the
    head in another order; else the outputs are named in their order. Raises FetchError."""
    expect(len(wanted) == len(labels), f"--labels: expected {len(labels)} names, for {labels}, found {len(wanted)}")
    wanted, labels = [*map(plain, wanted)], [*map(plain, labels)]
    expect("" not in wanted and len({*wanted}) == len(wanted), f"--labels: expected each name once, found {wanted}")
    if {*wanted} == {*labels}:
        return [labels.index(label) for label in wanted]
    moved = [label for label, ours in zip(labels, wanted) if label in wanted and label != ours]
    expect(not moved, f"--labels: expected all labels of the head, {labels}, or {moved} in their places")
    return [*range(len(labels))]


@torch.no_grad()
def reorder(classifier, outputs):
    """Let output i of a head be what outputs[i] was."""
    for theta in classifier.parameters():  # (K, D) and (K,)
        theta.copy_(theta[outputs])


PAGE = """The plot is witty.
THE PLOT, Is it Witty?!
  spaces  before and after \u00a0
\ta tab\tinside, a carriage return\r and \u2028 another line
café naïve Ångström, cafe\u0301 decomposed, İstanbul ıssız Straße ﬁne ½ ① Ⅷ ΣΊΣΥΦΟΣ
数据 科学と日本語 한국어 שלום مرحبا привет नमस्ते
👩‍👩‍👧 🎬 ❤️ “quoted” — and… don't won't 3.14 $5 @you #tag http://x.y/z?q=1&r=2
control \x00 \x01 \x7f \u200b \u00ad \ufeff \ufffd characters"""
ODD_TEXTS = [*PAGE.split("\n"), PAGE, PAGE.replace(" ", ""), "", " "]


def plain_texts(tokenizer):
    """Odd texts, and some of the tokeniser's own words, as they are and in capitals."""
    words = sorted({*tokenizer.get_vocab()} - {*map(str, tokenizer.added_tokens_decoder.values())})
    words = [word.replace("##", "").replace("Ġ", " ") for word in words[:: len(words) // 500 + 1]]
    lines = [" ".join(words[first : first + 20]) for first in range(0, len(words), 20)]
    return ODD_TEXTS + lines + [line.upper() for line in lines]


def read_tokenizer(folder, config):
    """The package's tokeniser. Where the package passes over something that the files say, this refuses them."""
    with saying("expected the files of a tokeniser"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        vocabulary = tokenizer.get_vocab()
        # Without files the package makes up a vocabulary of its special tokens.
        expect(len(vocabulary) > len({*tokenizer.all_special_tokens}), "expected the files of a tokeniser, found none")
        expect(tokenizer.truncation_side == "right", "tokeniser: expected texts to be cut on the right")
        most = max(vocabulary.values())
        expect(most < config.vocab_size, f"tokeniser: expected ids below vocab_size {config.vocab_size}, found {most}")
        for token, number in stated_ids(folder).items():
            found = vocabulary.get(token)
            expect(found == number, f"tokeniser: expected the id {number} for {token!r}, as stated, found {found}")
        whole = read_json(folder, "tokenizer.json")  # the package reads a part of it, and takes the rest from settings
        alone = Tokenizer.from_str(unlimited(json.dumps(whole))) if whole else None
        for text in plain_texts(tokenizer) if whole else []:
            agree = alone.encode(text).ids == tokenizer([text])["input_ids"][0]
            expect(agree, f"tokeniser: expected tokenizer.json and its settings to agree, not to part at {text[:40]!r}")
    return tokenizer


def stated_ids(folder):
    """The ids of added tokens, by token, as the files of a tokeniser state them."""
    added = read_json(folder, "tokenizer.json").get("added_tokens", [])
    settings = read_json(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
    ids = read_json(folder, "added_tokens.json") | {token["content"]: token["id"] for token in added}
    return ids | {token["content"]: int(number) for number, token in settings.items()}


def unlimited(tokenizer_json):
    """The JSON of a tokeniser that neither cuts nor pads."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.to_str()


def prove_ids(tokenizer, ours):
    """The number of texts that are the same ids to both tokenisers, alone and in pairs. Raises FetchError."""
    special = [f"one {token} two{token}three {token}" for token in map(str, tokenizer.added_tokens_decoder.values())]
    texts = plain_texts(tokenizer) + special[:50]
    for seconds in (None, texts[::-1]):
        theirs = tokenizer(texts, seconds)
        for i, text in enumerate(texts):
            pair = (text, seconds[i] if seconds else None)
            found = ours.encode(*pair)
            same = found.ids == theirs["input_ids"][i]
            if "token_type_ids" in theirs:
                same = same and found.type_ids == theirs["token_type_ids"][i]
            ids = f"{theirs['input_ids'][i][:9]} to the package, {found.ids[:9]} to us"
            expect(same, f"the tokenisers part: {pair!r:.80} is {ids}")
    return len(texts)


def random_batches(config):
    """Batches as either network is called, (theirs, ours): random tokens, padding and segments, up to the longest."""
    shape = shape_of(config)
    for T in (2, 9, 40, shape.max_tokens):
        T = min(T, shape.max_tokens)
        ids = torch.randint(shape.vocab_size - 1, (3, T))
        ids += ids >= (config.pad_token_id or 0)  # RoBERTa takes no token of padding's id for a real one
        mask = torch.arange(T) < torch.tensor([[T], [1], [T // 2]])
        inputs = {"input_ids": ids, "attention_mask": mask.long()}  # what is behind the mask must not matter
        if shape.token_types > 1:
            inputs["token_type_ids"] = torch.randint(shape.token_types, (3, T))
        yield inputs, inputs


def read_batches(tokenizer, ours, longest):
    """The same of odd texts and pairs of them, one at a time, each network by its own tokeniser."""
    ours.enable_truncation(longest)
    for pair in [(text,) for text in ODD_TEXTS] + [*zip(ODD_TEXTS, reversed(ODD_TEXTS))]:
        theirs = tokenizer(*([text] for text in pair), truncation=True, max_length=longest, return_tensors="pt")
        found = ours.encode(*pair)
        inputs = {"input_ids": found.ids, "token_type_ids": found.type_ids, "attention_mask": found.attention_mask}
        yield theirs, {name: torch.tensor([row]) for name, row in inputs.items()}


@torch.no_grad()
def prove_logits(reference, network, labels, batches, most):
    """The largest difference of the logits (B, K). Raises FetchError if it is more than `most`. Ours are looked up by the
    names of the labels that the file will hold, so that a wrong order shows; under new names in their places."""
    places = {plain(label): n for n, label in enumerate(labels)} | {label: n for n, label in enumerate(labels)}
    published = [str(reference.config.id2label[number]) for number in range(len(labels))]
    columns = [places.get(name, places.get(plain(name), n)) for n, name in enumerate(published)]
    largest = 0.0
    for theirs, ours in batches:
        difference = (network(**ours)[:, columns] - reference(**theirs).logits).abs().max().item()
        found = f"the logits of a batch of {tuple(ours['input_ids'].shape)} ids part by {difference:.1e}"
        expect(difference <= most, f"{found}, expected at most {most:.0e}")
        largest = max(largest, difference)
    return largest


def prove(reference, network, labels, tokenizer, tokenizer_json):
    """Compare the package's network and tokeniser with ours. Returns what was found, in words. Raises FetchError."""
    ours, longest = Tokenizer.from_str(tokenizer_json), min(48, network.config.max_tokens)
    texts = prove_ids(tokenizer, ours)
    batches = random_batches(reference.config)
    single = prove_logits(reference, network, labels, batches, most=1e-4)
    # Behind single precision a wrong epsilon can hide. In double precision equal networks differ by 1e-14.
    batches = read_batches(tokenizer, ours, longest)
    double = prove_logits(reference.double(), network.double(), labels, batches, most=1e-9)
    network.float()
    return f"""  the same ids from both tokenisers: {texts} texts, alone and in pairs
  largest difference of the logits: {single:.1e} on random batches of up to {network.config.max_tokens} tokens;
  {double:.1e} on {2 * len(ODD_TEXTS)} texts and pairs, each network by its own tokeniser, in double precision"""


def fetch_checkpoint(name, folder, model_type=None, wanted=None):
    """Convert a published checkpoint, prove that it is the same, and write it to the folder, its head under the labels
    that are wanted."""
    expect(transformers, "needs the package transformers: pip install -r notebooks/requirements.txt")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
    source = name if Path(name).is_dir() else from_hub(name)
    config = read_config(source, model_type)
    tokenizer = read_tokenizer(source, config)
    reference, head = read_network(source, config)
    with saying("cannot be converted"):
        network, labels = convert(reference), label_names(config)
        if wanted:
            expect(head and len(labels) > 1, "--labels: expected a trained head with classes, found none")
            reorder(network.classifier, outputs_named(wanted, labels))
            labels = wanted
        tokenizer_json = unlimited(tokenizer.backend_tokenizer.to_str())
        proof = prove(reference, network, labels, tokenizer, tokenizer_json)
        named = labels if len(labels) > 1 else []  # one output is a regression
        model = models.Model(network, Tokenizer.from_str(tokenizer_json), named if head else None)
    file = folder / "metadistil.pt"
    with saying("cannot be written"):
        model.save(file)
    print(f"{name}: {config.model_type}, {reference.num_parameters():,} parameters, {config.num_hidden_layers} layers")
    print(proof)
    print(f"  labels: {', '.join(named) or 'none, a regression' if head else 'none, the head is fresh'}")
    print(f"  written: {file}")


def relabel(name, wanted):
    """Write a saved model again, its head under the labels that are wanted."""
    with saying("--labels"):
        model, file = models.load(name), models.saved_file(name)
        expect(model.labels, "expected a trained head with classes, found none")
        reorder(model.network.classifier, outputs_named(wanted, model.labels))
        model.labels = wanted
        model.save(file)
    print(f"{name}: labels: {', '.join(wanted)}\n  written: {file}")


LABELS_HELP = """the labels of a checkpoint's head in the order of the task: if these are its own labels, its outputs
change places; if they are others, they are names for its outputs as they stand"""


def main():
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a task, a directory, or a name on the hub")
    parser.add_argument("--data", default="data", metavar="DIR", help="where data sets go (data)")
    parser.add_argument("--model-type", choices=NAMES, help="of a checkpoint whose config.json does not say it")
    parser.add_argument("--labels", metavar="A,B,...", help=LABELS_HELP)
    arguments, status = parser.parse_args(), 0
    labels = None if arguments.labels is None else [name.strip() for name in arguments.labels.split(",")]
    sys.stdout.reconfigure(errors="backslashreplace")  # labels may have letters that the terminal has not
    for name in arguments.names:
        try:
            if name in SOURCES:
                fetch_data(name, arguments.data)
            elif labels and models.saved_file(name).is_file() and not Path(name, "config.json").exists():
                relabel(name, labels)
            elif Path(name).is_dir():
                fetch_checkpoint(name, Path(name), arguments.model_type, labels)
            else:
                expected = f"expected a task ({', '.join(SOURCES)}), a directory, or a name on the hub (org/name)"
                expect(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name), expected)
                fetch_checkpoint(name, Path("checkpoints", name), arguments.model_type, labels)
        except (FetchError, OSError) as error:
            print(f"fetch.py: {name}: {error}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print(f"fetch.py: {name}: stopped", file=sys.stderr)
            return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
