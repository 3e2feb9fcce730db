"""What comes from outside: downloads from a local server, small published networks made on the spot."""

import fnmatch
import hashlib
import io
import json
import shlex
import shutil
import sys
import tarfile
import types
import zipfile
from pathlib import Path
from unittest import mock

import fetch
import pytest
import torch
from conftest import shaken
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing

import data
import models
import train


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty directory to work in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*arguments):
    """The command line, in this process. Returns the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fetch.py", *map(str, arguments)])
        return fetch.main()


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(capsys, folder, *arguments):
    """The one line that says why; nothing was written."""
    before = files(folder)
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    err = err.strip().split("MB\n")[-1]  # after the line of progress
    assert err.startswith(f"fetch.py: {arguments[0]}: ") and len(err.splitlines()) == 1
    assert files(folder) == before and not out
    return err


# ---- Data sets


def serve(web, monkeypatch, task, content, md5="right", missing=0):
    """Let a task's download come from the local server, with the checksum that is right, or another."""
    web.content, web.missing, (address, _) = content, missing, fetch.SOURCES[task]
    md5 = hashlib.md5(content).hexdigest() if md5 == "right" else md5
    monkeypatch.setitem(fetch.SOURCES, task, (web.address + address.rsplit("/", 1)[1], md5))


def zipped(contents):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return archive.getvalue()


def tarred(*names):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    return archive.getvalue()


SST2 = {"SST-2/train.tsv": "sentence\tlabel\nwitty\t1\n", "SST-2/dev.tsv": "sentence\tlabel\ndull\t0\n"}


def test_a_data_set_is_fetched_once_and_an_error_before_it_does_not_matter(here, monkeypatch, web, capsys):
    assert fetch.SOURCES.keys() == data.FETCHED
    assert all(address.startswith("https://") for address, _ in fetch.SOURCES.values())
    monkeypatch.setenv("HOME", str(here))
    serve(web, monkeypatch, "sst2", zipped(SST2 | {"../escaped": "", "/tmp/escaped": "", "other": ""}))
    assert run("a/b/c", "sst2", "--data", "~/mine") == 2
    out, err = capsys.readouterr()
    assert f"fetched into {here}/mine/SST-2" in out and err.startswith("fetch.py: a/b/c: expected a task (sst2, ")
    assert files(here.parent) == {f"here/mine/{name}" for name in SST2} and not Path("/tmp/escaped").exists()
    assert Path("mine/SST-2/train.tsv").read_text() == SST2["SST-2/train.tsv"]
    assert run("sst2", "--data", "mine") == 0 and "already there" in capsys.readouterr().out
    assert web.asked == ["/SST-2.zip"]


def test_one_file_and_pictures_are_unpacked(here, monkeypatch, web):
    serve(web, monkeypatch, "mrpc", b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n")
    assert run("mrpc") == 0 and web.asked == ["/msr_paraphrase_train.txt"] and files(here) == {"data/MRPC/train.tsv"}
    serve(web, monkeypatch, "cifar100", tarred("cifar-100-binary/train.bin", "cifar-100-binary/test.bin"))
    assert run("cifar100") == 0 and Path("data/cifar-100-binary/test.bin").is_file()


def test_a_bad_download_or_folder_is_named_and_nothing_changes(here, monkeypatch, web, capsys):
    for task, content, missing, md5, said in [
        ("sst2", b"half of it", 10, None, "cut off, 10 bytes are missing"),
        ("sst2", zipped(SST2), 0, "0" * 32, "expected the MD5 checksum 0000"),
        ("sst2", b"<html>Please log in</html>", 0, None, "not a zip file"),
        ("sst2", zipped({"SST-2/train.tsv": ""}), 0, None, "expected SST-2/dev.tsv in it"),
        ("cifar100", tarred("../escaped"), 0, None, "outside"),
    ]:
        serve(web, monkeypatch, task, content, md5, missing)
        assert said in refused(capsys, here.parent, task) and not list(Path("data").iterdir())
    Path("data/SST-2").mkdir()  # train.py asks for dev.tsv, so "already there" would be no help
    Path("data/SST-2/train.tsv").write_text("mine")
    assert "expected train.tsv and dev.tsv in it, or no such folder" in refused(capsys, here, "sst2")


def test_downloads_that_stall_or_never_end_or_change_the_protocol(tmp_path, web, monkeypatch):
    web.content, address, file = b"x" * 3_000_000, web.address + "SST-2.zip", tmp_path / "SST-2.zip"
    with pytest.raises(ValueError, match="expected at most 2,000,000 bytes, found more"):
        fetch.download(address, file, most=2_000_000)
    web.stalls = True
    with pytest.raises(OSError, match="timed out"):
        fetch.download(address, file, timeout=0.2)
    answer = io.BytesIO(b"from elsewhere")
    answer.url, answer.length = "http://127.0.0.1/SST-2.zip", 0
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda *_, **__: answer)
    with pytest.raises(ValueError, match="expected no redirect to http://127.0.0.1"):
        fetch.download("https://127.0.0.1/SST-2.zip", file)


def test_stopped_by_hand_and_without_the_package(here, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "download", mock.Mock(side_effect=KeyboardInterrupt))
    assert run("sst2") == 130 and capsys.readouterr().err == "fetch.py: sst2: stopped\n" and not files(here)
    monkeypatch.setattr(fetch, "transformers", None)
    assert "needs the package transformers: pip install -r notebooks/" in refused(capsys, here, here)


# ---- Published networks

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the plot is witty dull café cafe The Plot naïve na".split()
WORDS += "##ive ##s ##t . , 数 a b x".split()
NEXT = len(WORDS)
LABELS = ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]


def named(*labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


def publish(folder, family="bert", kind="ForSequenceClassification", changes=(), **settings):
    """Write a small published network with random weights, and a tokeniser; then change its files. Returns the
    package's network."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir(exist_ok=True)
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 60}
    shape |= {"vocab_size": 330, "intermediate_size": 50, "hidden_dim": 50} | named(*LABELS)
    if family == "roberta":  # with a byte-level tokeniser
        shape |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
        tokenizer, special = ByteLevelBPETokenizer(), ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        texts = ["The plot is witty and dull, café"] * 5
        tokenizer.train_from_iterator(texts, 320, special_tokens=special, show_progress=False)
        tokenizer.save_model(str(folder))
    else:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    shape = transformers.AutoConfig.for_model(family, **shape | settings)
    network = shaken(getattr(transformers, f"AutoModel{kind}").from_config(shape)).eval()
    network.save_pretrained(folder)
    change(folder, dict(changes))
    return network


def change(folder, changes):
    """Change files: bytes are a new content, a dict is entries of a JSON file, None takes out the file or the entry.
    Of pytorch_model.bin it is a function of the weights, which replaces model.safetensors."""
    for name, content in changes.items():
        path = folder / name
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        elif isinstance(content, dict):
            content = (json.loads(path.read_text()) if path.exists() else {}) | content
            path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        else:
            weights = pytest.importorskip("safetensors.torch").load_file(folder / "model.safetensors")
            (folder / "model.safetensors").unlink()
            torch.save(content(weights), path)


def config(**entries):
    return {"config.json": entries}


def settings(**entries):
    return {"tokenizer_config.json": entries}


def whole_json(lowercase=True, template=False):
    """A WordPiece tokeniser as tokenizer.json alone, with truncation and padding left in it."""
    tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS)}, lowercase=lowercase)
    if template:
        pair, special = "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=special)
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=7)
    return {"tokenizer.json": tokenizer.to_str().encode(), "vocab.txt": None}


def without(part, **more):
    """The weights, but for those with the part in their names, and with more."""
    return {"pytorch_model.bin": lambda theta: {name: theta[name] for name in theta if part not in name} | more}


def first_names(theta):
    """In the names of the first files, without the family's, as doubles; with what TinyBERT's training left."""
    theta = {name.removeprefix("bert."): weight.double() for name, weight in theta.items()}
    theta = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): theta[name] for name in theta}
    return theta | {"fit_denses.0.weight": torch.ones(3), "cls.predictions.bias": torch.ones(330)}


@torch.no_grad()
def difference(reference, folder, model, outputs=slice(None)):
    """The largest of the package's logits, in the order `outputs`, and ours, on pairs of unequal lengths."""
    theirs = fetch.transformers.AutoTokenizer.from_pretrained(folder, config=reference.config)
    firsts, seconds = ["The plot", "x", ""], ["is dull, café", "a [MASK] b", "witty " * 20]
    expected = reference(**theirs(firsts, seconds, padding=True, return_tensors="pt")).logits
    return (expected[:, outputs] - model.eval()([*zip(firsts, seconds)])).abs().max()


def check_saved(folder, reference, outputs=slice(None)):
    """The saved model is the package's network and tokeniser, its outputs in the order `outputs`. Returns the model."""
    model = models.load(folder)
    theirs = fetch.transformers.AutoTokenizer.from_pretrained(folder, config=reference.config)
    for text in ("The plot is witty.", "CAFÉ naïve", "", " the\tPlot", "数a [MASK] b", "a[NEW] b[more]<mask> </s>"):
        assert model.tokenizer.encode(text).ids == theirs([text])["input_ids"][0]
        assert model.tokenizer.encode(text, "the plot").ids == theirs([text], ["the plot"])["input_ids"][0]
    assert difference(reference, folder, model, outputs) < 1e-5
    return model


PUBLISHED = [
    ("bert", {}),
    ("roberta", {}),
    ("distilbert", config(model_type=None)),
    ("bert", {"pytorch_model.bin": first_names} | config(dtype="float64")),
    ("bert", settings(do_lower_case=False) | {"added_tokens.json": {"[NEW]": NEXT, "[more]": NEXT + 1}}),
    # Of the class that transformers saves by default: no types, so the network is fed zeros, in pairs, too.
    ("bert", whole_json() | settings(tokenizer_class="TokenizersBackend")),
    ("bert", whole_json(template=True) | settings(tokenizer_class="TokenizersBackend")),
]


@pytest.mark.parametrize("family, changes", PUBLISHED)
def test_a_published_network_becomes_ours(tmp_path, capsys, family, changes):
    reference = publish(tmp_path, family, changes=changes)
    assert run(tmp_path, "--model-type", family) == 0
    model = check_saved(tmp_path, reference)
    assert model.labels == LABELS and model.columns == ("sentence",)
    assert {theta.dtype for theta in model.parameters()} == {torch.float32}
    assert "labels: ENTAILMENT, NEUTRAL, CONTRADICTION" in capsys.readouterr().out


class Evil:
    def __reduce__(self):
        return (open, ("owned", "w"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"
NAN = {"bert.pooler.dense.bias": torch.full((24,), torch.nan)}
REFUSED = [
    (config(model_type="albert"), "found albert (--model-type adds one)"),
    (config(auto_map={"AutoModel": "modeling.Mine"}), "expected auto_map None, found"),
    (config(architectures=["BertModel", "BertForTokenClassification"]), "found BertForTokenClassification"),
    (config(problem_type="multi_label_classification"), "with num_labels 3, found multi_label_classification"),
    (config(id2label={"0": "a", "1": "b", "2": "a"}), "expected each label once"),
    (config(label2id=named(*LABELS[::-1])["label2id"]), "id2label and label2id to agree"),
    (config(vocab_size=NEXT - 1), f"expected ids below vocab_size {NEXT - 1}, found {NEXT - 1}"),
    (without("pooler.dense.bias"), "tensors missing: 1, first ['bert.pooler.dense.bias']"),
    (without("classifier", **{"classifier.0.weight": torch.ones(9)}), "tensors without a place: 1"),  # its own head
    (without("pooler.dense.bias", **NAN), "the logits of a batch"),
    (without("nothing", evil=Evil()), "expected the weights that config.json promises"),
    ({"model.safetensors": POINTER}, "model.safetensors: expected the file itself, found a Git-LFS pointer"),
    ({"adapter_config.json": b"{}"}, "merge the adapter of adapter_config.json into the network first"),
    ({"config.json": None}, "config.json: expected one in the directory, found none"),
    ({"vocab.txt": None}, "tokeniser: expected its files, found none"),
    # Of these the package says nothing.
    ({"added_tokens.json": {"[NEW]": 200}}, f"expected the id 200 for '[NEW]', as stated, found {NEXT}"),
    (whole_json(lowercase=False), "to agree, not to differ at"),
    (settings(truncation_side="left"), "expected texts to be cut on the right"),
    ({"metadistil.pt/in the way": b""}, "cannot be written: "),
]


@pytest.mark.parametrize("changes, said", REFUSED)
def test_what_is_not_ours_or_not_whole_is_refused_in_one_line(tmp_path, here, capsys, changes, said):
    publish(tmp_path, changes=changes)
    assert said in refused(capsys, tmp_path, tmp_path) and not files(here)  # no code was run from a pickle


def test_a_converter_broken_on_purpose_is_caught(tmp_path, monkeypatch, capsys):
    reference = publish(tmp_path)
    # Weights as they are drawn: in single precision a wrong epsilon would make no difference above 1e-4.
    fetch.transformers.BertForSequenceClassification(reference.config).save_pretrained(tmp_path)
    read, shape_of, wrong = Tokenizer.from_str, fetch.shape_of, '"lowercase":false'
    in_capitals = types.SimpleNamespace(from_str=lambda text: read(text.replace('"lowercase":true', wrong)))
    for name, broken, said in [
        ("relabel", lambda model, wanted: [2, 0, 1], "the logits"),
        ("Tokenizer", in_capitals, "the tokenisers differ"),
        ("shape_of", lambda config: models.replace(shape_of(config), layer_norm_eps=1e-5), "the logits"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(fetch, name, broken)
            assert said in refused(capsys, tmp_path, tmp_path, "--labels", ",".join(LABELS))


# ---- Heads and their labels


@pytest.mark.parametrize("family, kind", [("bert", ""), ("roberta", "ForMaskedLM")])
def test_without_a_trained_head_there_are_no_labels_and_the_same_fresh_head_each_time(tmp_path, capsys, family, kind):
    reference = publish(tmp_path, family, kind, **named("a", "b"))
    found = []
    for _ in range(2):
        assert run(tmp_path) == 0 and "none, the head is fresh" in capsys.readouterr().out
        model = models.load(tmp_path)
        assert model.labels is None and model.network.config.num_labels == 2
        found.append(model.network.state_dict())
    assert all(torch.equal(theta, found[1][name]) for name, theta in found[0].items())
    body = getattr(reference, family, reference)  # of a Model it is the network itself
    assert torch.equal(found[0]["words.weight"], body.embeddings.word_embeddings.weight)
    assert kind == "ForMaskedLM" or torch.equal(found[0]["pooler.weight"], reference.pooler.dense.weight)


def test_one_output_is_a_regression_and_predicts_its_score(tmp_path, capsys):
    reference = publish(tmp_path, **named("LABEL_0"))
    for problem_type in (None, "regression"):
        change(tmp_path, config(problem_type=problem_type))
        assert run(tmp_path) == 0 and "none, a regression" in capsys.readouterr().out
    model = check_saved(tmp_path, reference)
    [(score, probabilities)] = model.predict(["the plot is witty"])
    assert model.labels == [] and probabilities == {} and score == model(["the plot is witty"]).item()
    assert "expected a trained head with classes" in refused(capsys, tmp_path, tmp_path, "--labels", "a")


def test_a_head_under_the_tasks_labels(tmp_path, monkeypatch):
    """Its own labels in another order: its outputs move along. Others: its outputs are named, and stay."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))  # a terminal without ê
    for labels, wanted, outputs in [
        (LABELS, "contradiction, Entailment,neutral", [2, 0, 1]),
        (["not_entailment", "entailment", "so"], "entailment,not entailment,so", [1, 0, 2]),
        (LABELS, "yes,peut-être,no", [0, 1, 2]),
        (LABELS, "entailment,perhaps,no", [0, 1, 2]),
        (["us", "US", "7"], None, [0, 1, 2]),  # as they are written, and nothing of an earlier conversion stays
    ]:
        reference = publish(tmp_path, changes=config(**named(*labels)))
        assert run(tmp_path, *([] if wanted is None else ["--labels", wanted])) == 0
        expected = labels if wanted is None else [name.strip() for name in wanted.split(",")]
        assert check_saved(tmp_path, reference, outputs).labels == expected


def test_labels_that_do_not_fit_the_head_are_refused(tmp_path, capsys):
    publish(tmp_path)
    assert run(tmp_path) == 0
    for of in ("the published network", "the saved one"):
        for wanted, said in [
            ("", "expected 3 names"),
            ("yes,no,Yes", "each name once"),
            ("yes,,no", "each name once"),
            ("neutral,perhaps,no", "in their places"),  # which output is "perhaps"?
        ]:
            assert said in refused(capsys, tmp_path, tmp_path, "--labels", wanted), of
        (tmp_path / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize("labels, outputs", [(["LABEL_0", "LABEL_1"], [0, 1]), (["POSITIVE", "NEGATIVE"], [1, 0])])
def test_the_command_that_train_names_keeps_the_head(tmp_path, labels, outputs):
    """train.py begins a head for other labels anew, and its note says how to keep it."""
    folder = tmp_path / "it's here"
    reference = publish(folder, **named(*labels))
    assert run(folder) == 0
    if labels[0] == "POSITIVE":  # as a name on the hub leaves it
        (folder / "config.json").unlink()
    sizes = {"train_size": 20, "quiz_size": 20}
    resolved = train.resolved(train.Config(data="builtin", student=str(folder), methods="finetune", **sizes))
    seed = train.Seed(resolved, 0)
    assert difference(reference, folder, seed.model("student"), outputs) > 1e-3
    [note] = {*seed.notes}
    assert run(*shlex.split(note[note.index("python ") :])[2:]) == 0
    seed = train.Seed(resolved, 0)
    assert difference(reference, folder, seed.model("student"), outputs) < 1e-5 and not seed.notes


@pytest.mark.parametrize("weights_file", ["model.safetensors", "pytorch_model.bin"])
def test_a_name_on_the_hub(tmp_path, here, monkeypatch, capsys, weights_file):
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    cache.mkdir()

    def download(name, allow_patterns):
        if name != "org/name":
            raise OSError("404 Client Error.\n\nRepository Not Found")
        for path in hub.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)

    client = mock.create_autospec(fetch.huggingface_hub.snapshot_download, side_effect=download)
    monkeypatch.setattr(fetch.huggingface_hub, "snapshot_download", client)
    changes = without("nothing") if weights_file == "pytorch_model.bin" else {}
    reference = publish(hub, changes=changes)
    for name in {"README.md", "tf_model.h5", "optimizer.pt", "pytorch_model.bin"} - {weights_file}:
        (hub / name).write_bytes(b"not asked for")
    assert "the Hugging Face hub: 404 Client Error." in refused(capsys, here, "org/other")
    change(hub, config(problem_type="multi_label_classification"))
    assert "found multi_label_classification" in refused(capsys, here, "org/name")
    assert files(cache) == {"config.json", "vocab.txt"}  # not the weights
    change(hub, config(problem_type=None))
    assert run("org/name") == 0 and files(here) == {"checkpoints/org/name/metadistil.pt"}
    assert files(cache) == {"config.json", "vocab.txt", weights_file}
    assert difference(reference, hub, models.load("checkpoints/org/name")) < 1e-5
