"""What comes from outside: `python notebooks/fetch.py NAME...` downloads data sets and converts published networks.

NAME is a task (sst2, cola, mrpc, stsb, qqp, mnli, qnli, rte, wnli, cifar100): its files go, checked, into `data/`.

Or NAME is a directory, or a name on the Hugging Face hub (org/name), with a BERT, RoBERTa, DistilBERT or TinyBERT that
classifies sentences, gives them a score, or has no head yet. The package transformers reads it, and its network and
tokeniser are compared with ours. If they differ, one line says where and nothing is written. Otherwise what train.py
reads (network, tokeniser, label names) goes into DIR/metadistil.pt, or checkpoints/org/name/metadistil.pt. If the files
lack the head, or the layer before it, transformers fills it with random numbers, and there are no label names.

train.py keeps a trained head only if its labels are the task's, in the task's order. `--labels` writes it that way,
from the published files, or from metadistil.pt alone where the directory lacks them.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing

try:
    import huggingface_hub
    import transformers
except ImportError:  # not needed for data sets
    transformers = None

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import models  # noqa: E402
from data import TASKS, InputError, expect, paths_of  # noqa: E402

SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SOURCES = {  # of each task the address, and the MD5 checksum where one is known
    "sst2": (GLUE + "SST-2.zip", "9f81648d4199384278b86e315dac217c"),
    "cola": (GLUE + "CoLA.zip", None),
    "mrpc": (SENTEVAL + "msr_paraphrase_train.txt", "793daf7b6224281e75fe61c1f80afe35"),  # no archive
    "stsb": (GLUE + "STS-B.zip", None),
    "qqp": (GLUE + "QQP-clean.zip", None),
    "mnli": (GLUE + "MNLI.zip", None),
    "qnli": (GLUE + "QNLIv2.zip", "b4efd6554440de1712e9b54e14760e82"),
    "rte": (GLUE + "RTE.zip", "bef554d0cafd4ab6743488101c638539"),
    "wnli": (GLUE + "WNLI.zip", "a1b4bd2861017d302d29e42139657a42"),
    "cifar100": ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}


def fetch_data(name, data):
    """Download a task's data set. Its folder in the directory `data` appears whole and checked, or not at all."""
    address, md5 = SOURCES[name]
    paths = paths_of(name, Path(data).expanduser())  # the shell leaves --data=~/glue as it is
    folder, needed = paths["train"].parent, [paths[split].name for split in TASKS[name].needed]
    if all((folder / file).is_file() for file in needed):
        print(f"{name}: {folder} is already there")
        return
    expect(not folder.exists(), f"{folder}: expected {' and '.join(needed)} in it, or no such folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive = Path(temporary, address.rsplit("/", 1)[1])
        unpacked = Path(temporary, "unpacked", folder.name)
        with models.expecting(f"{address}: cannot be downloaded"):
            download(address, archive)
        found = hashlib.md5(archive.read_bytes()).hexdigest()
        expect(md5 in (None, found), f"{address}: expected the MD5 checksum {md5}, found {found}")
        with models.expecting(f"{address}: cannot be unpacked"):
            if archive.suffix == ".txt":  # it is the file itself
                unpacked.mkdir(parents=True)
                archive.rename(unpacked / needed[0])
            else:  # a member that would land elsewhere is left out (zip) or refused (tar)
                shutil.unpack_archive(archive, unpacked.parent, filter="data" if archive.suffix == ".gz" else None)
        for file in needed:
            expect((unpacked / file).is_file(), f"{address}: expected {folder.name}/{file} in it")
        unpacked.rename(folder)
    print(f"{name}: fetched into {folder}")


def download(address, file, timeout=10.0, most=10**9):
    """Download a file of at most so many bytes, with a line of progress. Raises about anything."""
    with urllib.request.urlopen(address, timeout=timeout) as response, file.open("wb") as output:
        expect(response.url.split(":")[0] == address.split(":")[0], f"expected no redirect to {response.url}")
        try:
            while part := response.read(1 << 20):
                output.write(part)
                expect(output.tell() <= most, f"expected at most {most:,} bytes, found more")
                print(f"\r{file.name}: {output.tell() / 1e6:.0f} MB", end="", file=sys.stderr)
        finally:
            print(file=sys.stderr)
        expect(not response.length, f"cut off, {response.length} bytes are missing")


BERT_NAMES = {  # our name of a part -> the published name after "bert."; of pooler and classifier the whole name
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
NAMES = {"bert": BERT_NAMES, "roberta": ROBERTA_NAMES, "distilbert": DISTILBERT_NAMES}  # TinyBERT's model_type is bert
# What a file may hold beside the network: what it was pretrained with, and a pooler that RoBERTa does not use.
LEFT_OVER = re.compile(r"(cls|lm_head|fit_denses|vocab_\w+|(roberta\.)?pooler)\.")
# The ends of `architectures` that we read: a classifier of sentences, or a pretrained network whose head is not used.
READABLE = re.compile(r"(ForSequenceClassification|Model|ForMaskedLM|ForPreTraining|ForNextSentencePrediction)$")
EXPRESSIBLE = {  # settings that our Encoder has no field for, and the only value it can express
    "hidden_act": "gelu",
    "activation": "gelu",  # DistilBERT's word for it
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "auto_map": None,  # the network's own code
}


def published_name(model_type, name):
    """Our name of a tensor -> the published one: words.weight -> bert.embeddings.word_embeddings.weight."""
    parts = name.split(".")
    published = ".".join(NAMES[model_type].get(part, part) for part in parts)
    return published if parts[0] in ("pooler", "classifier") else f"{model_type}.{published}"


def from_hub(name, *weights):
    """The directory in the hub's cache with a network's small files and these of weights, all of one revision."""
    small = ["config.json", "adapter_config.json", "*token*.json", "vocab.*", "merges.txt"]
    with models.expecting("the Hugging Face hub"):
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*small, *weights]))


def read_json(folder, name):
    """A file of a checkpoint; {} if it is not there."""
    path = Path(folder, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_config(folder, model_type=None):
    """The package's configuration of a network that ours can express, and the names of the labels, [] for a regression.
    `model_type` is used where the file has none."""
    with models.expecting("config.json"):
        published = read_json(folder, "config.json")
        expect(published, "expected one in the directory, found none")
        found = published.pop("model_type", model_type)
        expect(found in NAMES, f"expected a model_type of {', '.join(NAMES)}, found {found} (--model-type adds one)")
        for setting, value in EXPRESSIBLE.items():
            given = published.get(setting, value)
            expect(given == value, f"expected {setting} {value}, found {given}")
        for name in published.get("architectures") or []:
            expect(READABLE.search(name), f"expected a classifier of sentences, or no head yet, found {name}")
        config = transformers.CONFIG_MAPPING[found].from_dict(published)
        count = config.num_labels
        kind = "single_label_classification" if count > 1 else "regression"
        stated = published.get("problem_type") or kind
        expect(stated == kind, f"expected problem_type {kind} with num_labels {count}, found {stated}")
        labels = [str(config.id2label[number]) for number in range(count)]  # in the order of the logits
        expect(len({*labels}) == count, f"expected each label once, found {labels}")
        numbers = published.get("label2id") or {}
        agree = all(int(numbers.get(label, number)) == number for number, label in enumerate(labels))
        expect(agree, f"expected id2label and label2id to agree, found {labels}, {numbers}")
    return config, labels if count > 1 else []


def read_network(folder, config):
    """The package's network, and whether its head was in the files. Everything else must have been there."""
    with models.expecting("expected the weights that config.json promises"):
        for file in filter(Path.is_file, folder.iterdir()):
            expect(file.name != "adapter_config.json", f"merge the adapter of {file.name} into the network first")
            with file.open("rb") as content:
                pointer = content.read(40).startswith(b"version https://git-lfs")
            expect(not pointer, f"{file.name}: expected the file itself, found a Git-LFS pointer (git lfs pull)")
        torch.manual_seed(0)  # the same fresh head each time
        reference, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        for name, found, promised in sorted(loaded["mismatched_keys"]):
            raise InputError(f"{name} has the shape {tuple(found)}, not {tuple(promised)}")
        missing, names = {*loaded["missing_keys"]}, NAMES[config.model_type]
        head = [{f"{names[part]}.weight", f"{names[part]}.bias"} for part in ("pooler", "classifier")]
        fresh = set().union(*(part for part in head if part <= missing))
        lacking = sorted(missing - fresh)
        expect(not lacking, f"tensors missing: {len(lacking)}, first {lacking[:1]}")
        unknown = sorted(name for name in loaded["unexpected_keys"] if not LEFT_OVER.match(name))
        expect(not unknown, f"tensors without a place: {len(unknown)}, first {unknown[:1]}")
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
    """The package's tokeniser. Raises CheckpointError where the package passes over what the files say."""
    with models.expecting("tokeniser"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
        vocabulary = tokenizer.get_vocab()
        # Without files the package makes up a vocabulary of its special tokens.
        expect(len(vocabulary) > len({*tokenizer.all_special_tokens}), "expected its files, found none")
        expect(tokenizer.truncation_side == "right", "expected texts to be cut on the right")
        most = max(vocabulary.values())
        expect(most < config.vocab_size, f"expected ids below vocab_size {config.vocab_size}, found {most}")
        added = read_json(folder, "tokenizer.json").get("added_tokens", [])
        settings = read_json(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
        stated = read_json(folder, "added_tokens.json") | {token["content"]: token["id"] for token in added}
        stated |= {token["content"]: int(number) for number, token in settings.items()}
        for token, number in stated.items():
            found = vocabulary.get(token)
            expect(found == number, f"expected the id {number} for {token!r}, as stated, found {found}")
    return tokenizer


def of_one_type(tokenizer):
    """A tokeniser changed to give every token the type 0, as the package feeds a network if it gets no types."""
    content = json.loads(tokenizer.to_str())
    processor = json.dumps(content["post_processor"])
    if "TemplateProcessing" in processor:  # nothing may follow a template, so the template itself is changed
        content["post_processor"] = json.loads(processor.replace('"type_id": 1', '"type_id": 0'))
        return Tokenizer.from_str(json.dumps(content))
    zeros = TemplateProcessing(single="$A:0", pair="$A:0 $B:0")
    tokenizer.post_processor = Sequence([tokenizer.post_processor, zeros])
    return tokenizer


def convert_tokenizer(tokenizer, whole):
    """The package's tokeniser as ours. Raises InputError if a text has other ids or types, or other ids by `whole`, the
    content of tokenizer.json: the package reads a part of it, and takes the rest from tokenizer_config.json."""
    ours = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    alone = Tokenizer.from_str(json.dumps(whole)) if whole else ours
    for one in (ours, alone):
        one.no_truncation()
        one.no_padding()
    typed = "token_type_ids" in tokenizer.model_input_names
    if not typed:
        ours = of_one_type(ours)
    texts = plain_texts(tokenizer)
    for text in texts:
        agree = alone.encode(text).ids == ours.encode(text).ids
        expect(agree, f"expected tokenizer.json and tokenizer_config.json to agree, not to differ at {text[:40]!r}")
    special = [f"one {token} two{token}three {token}" for token in map(str, tokenizer.added_tokens_decoder.values())]
    texts += special[:50]
    for seconds in (None, texts[::-1]):
        theirs = tokenizer(texts, seconds)
        for i, text in enumerate(texts):
            pair = (text, seconds[i]) if seconds else (text,)
            found, ids = ours.encode(*pair), theirs["input_ids"][i]
            types = theirs["token_type_ids"][i] if typed else [0] * len(ids)
            same = found.ids == ids and found.type_ids == types
            expect(same, f"the tokenisers differ: {pair!r:.80} is {ids[:9]} to the package, {found.ids[:9]} to us")
    return ours


def batches(config, tokenizer, model):
    """Batches as either network is called, (theirs, ours): random tokens, padding and segments, up to the longest;
    then odd texts and pairs of them, one at a time, each network by its own tokeniser."""
    shape = model.network.config
    for T in (2, 9, 40, shape.max_tokens):
        T = min(T, shape.max_tokens)
        ids = torch.randint(shape.vocab_size - 1, (3, T))
        ids += ids >= (config.pad_token_id or 0)  # RoBERTa takes no token of padding's id for a real one
        mask = torch.arange(T) < torch.tensor([[T], [1], [T // 2]])
        inputs = {"input_ids": ids, "attention_mask": mask.long()}  # what is behind the mask must not matter
        if shape.token_types > 1:
            inputs["token_type_ids"] = torch.randint(shape.token_types, (3, T))
        yield inputs, inputs
    longest = min(shape.max_tokens, models.MAX_TOKENS)
    for pair in [(text,) for text in ODD_TEXTS] + [*zip(ODD_TEXTS, reversed(ODD_TEXTS))]:
        theirs = tokenizer(*([text] for text in pair), truncation=True, max_length=longest, return_tensors="pt")
        yield theirs, model.inputs([pair])


@torch.no_grad()
def prove_logits(reference, network, outputs, pairs, most=1e-9):
    """The largest difference of the logits (B, K), the package's in the order `outputs`. Raises InputError if it is too
    large. In double precision equal networks differ by 1e-14; in single a wrong epsilon could hide."""
    reference.double()
    network.double()
    largest = 0.0
    for theirs, ours in pairs:
        difference = (network(**ours) - reference(**theirs).logits[:, outputs]).abs().max().item()
        shape = tuple(ours["input_ids"].shape)
        expect(difference <= most, f"the logits of a batch of {shape} ids differ by {difference:.1e}")
        largest = max(largest, difference)
    network.float()
    return largest


def relabel(model, wanted):
    """Give a head the wanted labels. If they are its own in another order, its outputs move along; if they are others,
    they name its outputs as they stand. Returns for each output the number it had. Raises InputError."""
    expect(model.labels, "--labels: expected a trained head with classes, found none")

    def plain(label):  # neither case nor an underscore for a space counts
        return label.lower().replace("_", " ")

    count = len(model.labels)
    expect(len(wanted) == count, f"--labels: expected {count} names, for {model.labels}, found {len(wanted)}")
    names, labels = [*map(plain, wanted)], [*map(plain, model.labels)]
    expect("" not in names and len({*names}) == count, f"--labels: expected each name once, found {wanted}")
    if {*names} == {*labels}:
        outputs = [labels.index(name) for name in names]
    else:
        outputs = [*range(count)]
        moved = [label for label, name in zip(labels, names) if label in names and label != name]
        expect(not moved, f"--labels: expected all labels of the head, {labels}, or {moved} in their places")
    with torch.no_grad():
        for theta in model.network.classifier.parameters():  # (K, D) and (K,)
            theta.copy_(theta[outputs])
    model.labels = wanted
    return outputs


def convert(name, model_type, wanted):
    """A published network as a Model, its head under the wanted labels if any; and in words how they were compared."""
    expect(transformers, "needs the package transformers: pip install -r notebooks/requirements.txt")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()
    here = Path(name).exists()
    folder = Path(name) if here else from_hub(name)
    config, labels = read_config(folder, model_type)
    tokenizer = read_tokenizer(folder, config)
    if not here:
        folder = from_hub(name, "model*.safetensors*")
        if not any(folder.glob("*.safetensors")):
            folder = from_hub(name, "pytorch_model*.bin*")
    reference, trained = read_network(folder, config)
    with models.expecting("cannot be converted"):
        network, published = models.Encoder(shape_of(config)).eval(), reference.state_dict()
        names = {ours: published_name(config.model_type, ours) for ours in network.state_dict()}
        network.load_state_dict({ours: published[theirs] for ours, theirs in names.items()})
        ours = convert_tokenizer(tokenizer, read_json(folder, "tokenizer.json"))
        model = models.Model(network, ours, labels if trained else None)
        outputs = relabel(model, wanted) if wanted else [*range(config.num_labels)]
        largest = prove_logits(reference, network, outputs, batches(config, tokenizer, model))
    size = f"{config.model_type}, {reference.num_parameters():,} parameters, {config.num_hidden_layers} layers"
    return model, f"{size}\n  the same ids from both tokenisers; largest difference of the logits {largest:.1e}"


def fetch_network(name, model_type, labels):
    """Save a published network as ours, or a saved one again, its head under the labels "A,B,..." if they are given."""
    here, wanted = Path(name).exists(), None if labels is None else [label.strip() for label in labels.split(",")]
    expected = f"expected a task ({', '.join(SOURCES)}), a directory, or a name on the hub (org/name)"
    expect(here or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name), expected)
    file = models.saved_file(name) if here else Path("checkpoints", name, "metadistil.pt")
    if here and wanted and file.is_file() and not Path(name, "config.json").exists():
        model, found = models.load(file), "a saved network"
        relabel(model, wanted)
    else:
        model, found = convert(name, model_type, wanted)
    with models.expecting("cannot be written"):
        model.save(file)
    shown = "none, the head is fresh" if model.labels is None else ", ".join(model.labels) or "none, a regression"
    print(f"{name}: {found}\n  labels: {shown}\n  written: {file}")


def main():
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a task, a directory, or a name on the hub")
    parser.add_argument("--data", default="data", metavar="DIR", help="where data sets go (data)")
    parser.add_argument("--model-type", choices=NAMES, help="of a network whose config.json does not say it")
    parser.add_argument("--labels", metavar="A,B,...", help="a trained head's labels in the task's order, or new names")
    arguments, status = parser.parse_args(), 0
    sys.stdout.reconfigure(errors="backslashreplace")  # labels may have letters that the terminal has not
    for name in arguments.names:
        try:
            if name in SOURCES:
                fetch_data(name, arguments.data)
            else:
                fetch_network(name, arguments.model_type, arguments.labels)
        except (InputError, models.CheckpointError, OSError) as error:
            print(f"fetch.py: {name}: {error}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print(f"fetch.py: {name}: stopped", file=sys.stderr)
            return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
