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
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import ROOT, shaken
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing

import data
import models
import train

sys.path.insert(0, str(ROOT / "notebooks"))
import fetch  # noqa: E402


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty directory to work in. The local servers are reached without a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    (folder := tmp_path / "here").mkdir()
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


def zipped(**contents):
    with zipfile.ZipFile(archive := io.BytesIO(), "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return archive.getvalue()


def tarred(*members):
    with tarfile.open(fileobj=(archive := io.BytesIO()), mode="w:gz") as file:
        for name, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE if link else tarfile.REGTYPE, link
            file.addfile(member, io.BytesIO())
    return archive.getvalue()


SST2 = {"SST-2/train.tsv": "sentence\tlabel\nwitty\t1\n", "SST-2/dev.tsv": "sentence\tlabel\ndull\t0\n"}


def test_a_data_set_is_fetched_once_and_an_error_before_it_does_not_matter(here, monkeypatch, web, capsys):
    monkeypatch.setenv("HOME", str(here))
    serve(web, monkeypatch, "sst2", zipped(**SST2, **{"../escaped": "", "/tmp/escaped": "", "other": ""}))
    assert run("a/b/c", "sst2", "--data", "~/mine") == 2
    out, err = capsys.readouterr()
    assert f"fetched into {here}/mine/SST-2" in out and err.startswith("fetch.py: a/b/c: expected a task (sst2, ")
    assert files(here.parent) == {f"here/mine/{name}" for name in SST2} and not Path("/tmp/escaped").exists()
    assert Path("mine/SST-2/train.tsv").read_text() == SST2["SST-2/train.tsv"]
    assert run("sst2", "--data", "mine") == 0 and "already there" in capsys.readouterr().out
    assert web.asked == ["/SST-2.zip"]
    assert fetch.SOURCES.keys() == data.FETCHED
    assert all(address.startswith("https://") for task, (address, _) in fetch.SOURCES.items() if task != "sst2")


def test_one_file_and_pictures_are_unpacked(here, monkeypatch, web):
    serve(web, monkeypatch, "mrpc", b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n")
    assert run("mrpc") == 0 and web.asked == ["/msr_paraphrase_train.txt"] and files(here) == {"data/MRPC/train.tsv"}
    serve(web, monkeypatch, "cifar100", tarred(("cifar-100-binary/train.bin", ""), ("cifar-100-binary/test.bin", "")))
    assert run("cifar100") == 0 and Path("data/cifar-100-binary/test.bin").is_file()


@pytest.mark.parametrize("task, content, missing, md5, said", [
    ("sst2", b"half of it", 10, None, "cut off, 10 bytes are missing"),
    ("sst2", zipped(**SST2), 0, "0" * 32, "expected the MD5 checksum 0000"),
    ("sst2", b"<html>Please log in</html>", 0, None, "not a zip file"),
    ("sst2", zipped(**{"SST-2/train.tsv": "x" * 900}).replace(b"x" * 500, b"y" * 500), 0, None, "Bad CRC-32"),
    ("sst2", zipped(**{"SST-2/train.tsv": ""}), 0, None, "expected SST-2/dev.tsv in it"),
    ("cifar100", tarred(("../escaped", "")), 0, None, "outside"),
    ("cifar100", tarred(("cifar-100-binary/train.bin", "/etc/hosts")), 0, None, "absolute path"),
])  # fmt: skip
def test_a_bad_download_is_named_and_leaves_nothing(here, monkeypatch, web, capsys, task, content, missing, md5, said):
    serve(web, monkeypatch, task, content, md5, missing)
    assert said in refused(capsys, here.parent, task) and not list(Path("data").iterdir())


def test_a_folder_that_lacks_a_file_is_left_alone(here, capsys):
    """train.py asks for dev.tsv, so "already there" would be no help."""
    Path("data/SST-2").mkdir(parents=True)
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
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "download", stop)
    assert run("sst2") == 130 and capsys.readouterr().err == "fetch.py: sst2: stopped\n" and not files(here)
    monkeypatch.setattr(fetch, "transformers", None)
    assert "needs the package transformers: pip install -r notebooks/" in refused(capsys, here, here)


# ---- Published networks

FAMILIES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the plot is witty dull café cafe The Plot naïve na".split()
WORDS += "##ive ##s ##t . , 数 a b x".split()
NEXT = len(WORDS)
LABELS = ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]


def named(*labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


def bpe(folder, special):
    """The files of a byte-level tokeniser as RoBERTa was published."""
    tokenizer, text = ByteLevelBPETokenizer(), "The plot is witty and dull, café"
    tokenizer.train_from_iterator([text] * 5, 320, special_tokens=special.split(), show_progress=False)
    tokenizer.save_model(str(folder))


def checkpoint(folder, family="bert", kind="ForSequenceClassification", **settings):
    """A small published network with random weights, and a tokeniser. Returns the package's network."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir(exist_ok=True)
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 60}
    shape |= {"vocab_size": 330, "hidden_dim" if family == "distilbert" else "intermediate_size": 50} | named(*LABELS)
    shape |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5} if family == "roberta" else {}
    config = getattr(transformers, FAMILIES[family] + "Config")(**shape | settings)
    network = shaken(getattr(transformers, FAMILIES[family] + kind)(config)).eval()
    network.save_pretrained(folder)
    if family == "roberta":
        bpe(folder, "<s> <pad> </s> <unk> <mask>")
    else:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return network


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Of each family the package's network and its directory. Leave them as they are."""
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    return {family: (checkpoint(folder, family), folder) for family, folder in folders.items()}


def copied(made, folder, family="bert"):
    """Copy a family's published network into the folder. Returns the package's network."""
    shutil.copytree(made[family][1], folder, dirs_exist_ok=True)
    return made[family][0]


def logits_of(reference, network):
    """The package's and ours on tokens, padding and segments of the test's own."""
    ids = torch.randint(5, 330, (5, 17))
    real = torch.arange(17) < torch.tensor([[17], [9], [2], [1], [12]])
    segments = (torch.arange(17) >= 5).long().expand(5, 17) * (getattr(reference.config, "type_vocab_size", 1) > 1)
    inputs = {"input_ids": ids.masked_fill(~real, reference.config.pad_token_id), "attention_mask": real.long()}
    ours = {"input_ids": ids.masked_fill(~real, 0), "attention_mask": real, "token_type_ids": segments}
    if reference.config.model_type == "bert":
        inputs["token_type_ids"] = segments
    with torch.no_grad():
        return reference(**inputs).logits, network.eval()(**ours)


@torch.no_grad()
def check_saved(folder, reference, head=True, outputs=slice(None)):
    """The saved model is the package's network and tokeniser, its outputs in the order `outputs`. Returns the model."""
    model = models.load(folder)
    theirs = fetch.transformers.AutoTokenizer.from_pretrained(folder, config=reference.config)
    for text in ("The plot is witty.", "CAFÉ naïve", "", " the\tPlot", "数a [MASK] b", "a[NEW] b[more]<mask> </s>"):
        assert model.tokenizer.encode(text).ids == theirs([text])["input_ids"][0]
        assert model.tokenizer.encode(text, "the plot").ids == theirs([text], ["the plot"])["input_ids"][0]
    if head:
        expected, found = logits_of(reference, model.network)
        assert (expected[:, outputs] - found).abs().max() < 1e-5
        expected = reference(**theirs(["The plot"], ["is dull, café"], return_tensors="pt")).logits
        assert (expected[:, outputs] - model([("The plot", "is dull, café")])).abs().max() < 1e-5
    return model


def change(folder, name="config.json", **changes):
    """Other entries of a JSON file; None takes one out."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


def entries(name, **changes):
    return lambda folder: change(folder, name, **changes)


config, settings, added = (partial(entries, f"{name}.json") for name in ("config", "tokenizer_config", "added_tokens"))


def file(name, content=None):
    return lambda folder: (folder / name).write_bytes(content) if content else (folder / name).unlink()


def whole_json(folder, lowercase=True, template=False, **tokenizer_config):
    """A WordPiece tokeniser as tokenizer.json, with truncation and padding left in it."""
    tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS)}, lowercase=lowercase)
    if template:
        pair, special = "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=special)
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    change(folder, "tokenizer_config.json", **tokenizer_config)


def rewrite(folder, changed):
    """The weights as `changed(weights)`, in a pytorch_model.bin."""
    weights = pytest.importorskip("safetensors.torch").load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(changed(weights), folder / "pytorch_model.bin")


def without(part, **more):
    return partial(rewrite, changed=lambda theta: {name: theta[name] for name in theta if part not in name} | more)


def first_files(theta):
    """In the names of the first files, without the family's, as doubles; with what TinyBERT's training left."""
    theta = {name.removeprefix("bert."): weight.double() for name, weight in theta.items()}
    theta = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): theta[name] for name in theta}
    return theta | {"fit_denses.0.weight": torch.ones(3), "cls.predictions.bias": torch.ones(330)}


@pytest.mark.parametrize("family, changed", [
    ("bert", []), ("roberta", []), ("distilbert", []),
    ("bert", [partial(rewrite, changed=first_files), config(dtype="float64")]),
    ("bert", [settings(do_lower_case=False)]), ("bert", [settings(strip_accents=False)]),
    ("distilbert", [settings(tokenize_chinese_chars=False)]), ("roberta", [settings(add_prefix_space=True)]),
    ("bert", [added(**{"[NEW]": NEXT, "[more]": NEXT + 1})]), ("bert", [config(model_type=None)]),
    ("bert", [whole_json]), ("bert", [partial(whole_json, lowercase=False, do_lower_case=False)]),
    # Of the class that transformers saves by default: no types, so that the network is fed zeros, in pairs, too.
    ("bert", [partial(whole_json, tokenizer_class="TokenizersBackend")]),
    ("bert", [partial(whole_json, template=True, tokenizer_class="TokenizersBackend")]),
])  # fmt: skip
def test_a_published_network_becomes_ours(tmp_path, made, capsys, family, changed):
    reference = copied(made, tmp_path, family)
    for prepare in changed:
        prepare(tmp_path)
    assert run(tmp_path, "--model-type", family) == 0
    model = check_saved(tmp_path, reference)
    assert model.labels == LABELS and model.columns == ("sentence",)
    assert {theta.dtype for theta in model.parameters()} == {torch.float32}
    assert "labels: ENTAILMENT, NEUTRAL, CONTRADICTION" in capsys.readouterr().out


def test_robertas_positions_begin_after_its_padding(tmp_path, capsys):
    reference = checkpoint(tmp_path, "roberta", pad_token_id=0, bos_token_id=1)
    assert "ids differ by" in refused(capsys, tmp_path, tmp_path)  # to the package <s> has padding's position
    bpe(tmp_path, "<pad> <s> </s> <unk> <mask>")
    assert run(tmp_path) == 0
    shape = check_saved(tmp_path, reference).network.config
    assert shape.position_offset == 1 and shape.max_tokens == 59


class Evil:
    def __reduce__(self):
        return (open, ("owned", "w"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"
NAN = {"bert.pooler.dense.bias": torch.full((24,), torch.nan)}


@pytest.mark.parametrize("changed, said", [
    (config(model_type="albert"), "expected a model_type of bert, roberta, distilbert, found albert"),
    (config(model_type=None), "found None (--model-type adds one)"),
    (config(hidden_act="gelu_new"), "expected hidden_act gelu, found gelu_new"),
    (config(auto_map={"AutoModel": "modeling.Mine"}), "expected auto_map None, found"),
    (config(architectures=["BertForTokenClassification"]), "no head yet, found BertForTokenClassification"),
    (config(architectures=["BertForMultipleChoice"], **named("0")), "no head yet, found BertForMultipleChoice"),
    (config(architectures=["BertModel", "BertForQuestionAnswering"]), "no head yet, found BertForQuestionAnswering"),
    (config(problem_type="multi_label_classification"), "with num_labels 3, found multi_label_classification"),
    (config(problem_type="multi_label_classification", **named("0")), "num_labels 1, found multi_label_classification"),
    (config(problem_type="regression"), "with num_labels 3, found regression"),
    (config(id2label={"0": "a", "1": "b", "2": "a"}), "expected each label once"),
    (config(label2id=named(*LABELS[::-1])["label2id"]), "id2label and label2id to agree"),
    (config(id2label={"0": "a", "1": "b"}), "classifier.bias has the shape (3,), not (2,)"),
    (config(num_hidden_layers=2), "tensors without a place: 16, first ['bert.encoder.layer.2."),
    (config(num_hidden_layers=4), "tensors missing: 16, first ['bert.encoder.layer.3."),
    (config(vocab_size=NEXT - 1), f"expected ids below vocab_size {NEXT - 1}, found {NEXT - 1}"),
    (without("pooler.dense.bias"), "tensors missing: 1, first ['bert.pooler.dense.bias']"),
    (without("classifier", **{"classifier.0.weight": torch.ones(9)}), "tensors without a place: 1"),  # its own head
    (without("pooler.dense.bias", **NAN), "the logits of a batch"),
    (without("nothing", evil=Evil()), "expected the weights that config.json promises"),
    (file("model.safetensors", POINTER), "model.safetensors: expected the file itself, found a Git-LFS pointer"),
    (file("adapter_config.json", b"{}"), "merge the adapter of adapter_config.json into the network first"),
    (file("config.json"), "config.json: expected one in the directory, found none"),
    (file("config.json", b"{"), "config.json: Expecting property name"),
    (file("vocab.txt"), "tokeniser: expected its files, found none"),
    (file("added_tokens.json", b"[]"), "tokeniser: "),
    (added(**{"[NEW]": 200}), f"expected the id 200 for '[NEW]', as stated, found {NEXT}"),  # the package says nothing
    (settings(added_tokens_decoder={"200": {"content": "[NEW]"}}), "expected the id 200 for '[NEW]', as stated"),
    (settings(truncation_side="left"), "expected texts to be cut on the right"),
    (partial(whole_json, lowercase=False), "to agree, not to differ at"),  # without settings the package lower-cases
    (partial(whole_json, do_lower_case=False), "to agree, not to differ at"),
    (lambda folder: (folder / "metadistil.pt").mkdir(), "cannot be written: "),
])  # fmt: skip
def test_what_is_not_ours_or_not_whole_is_refused_in_one_line(tmp_path, made, here, capsys, changed, said):
    copied(made, tmp_path)
    changed(tmp_path)
    assert said in refused(capsys, tmp_path, tmp_path) and not files(here)  # no code was run from a pickle


def misread(**changes):
    """A converter that reads the configuration wrongly."""
    right = fetch.shape_of
    return {"shape_of": lambda config: models.replace(right(config), **changes)}


def flipped(text):
    return Tokenizer.from_str(text.replace('"lowercase":true', '"lowercase":false'))


KEYS_FIRST = fetch.BERT_NAMES | {"query": "attention.self.key", "key": "attention.self.query"}


@pytest.mark.parametrize("family, broken, said", [
    ("roberta", misread(position_offset=1), "the logits"), ("distilbert", misread(pooler="tanh"), "the logits"),
    ("bert", misread(heads=6), "the logits"), ("bert", {"NAMES": {"bert": KEYS_FIRST}}, "the logits"),
    ("bert", {"relabel": lambda model, wanted: [2, 0, 1]}, "the logits"),
    ("bert", {"Tokenizer": types.SimpleNamespace(from_str=flipped)}, "the tokenisers differ"),
])  # fmt: skip
def test_a_converter_broken_on_purpose_is_caught(tmp_path, made, monkeypatch, capsys, family, broken, said):
    copied(made, tmp_path, family)
    for name, value in broken.items():
        monkeypatch.setattr(fetch, name, value)
    assert said in refused(capsys, tmp_path, tmp_path, "--labels", ",".join(LABELS))


def test_the_proof_sees_a_small_error_under_a_fresh_head(tmp_path, made, monkeypatch, capsys):
    """Weights as they are drawn: in single precision a wrong epsilon makes no difference above 1e-4."""
    reference = copied(made, tmp_path)
    fetch.transformers.BertModel(reference.config).save_pretrained(tmp_path)
    monkeypatch.setattr(fetch, "shape_of", misread(layer_norm_eps=1e-5)["shape_of"])
    assert "the logits" in refused(capsys, tmp_path, tmp_path)


# ---- Heads and their labels


@pytest.mark.parametrize("family, kind", [("bert", "Model"), ("roberta", "ForMaskedLM"), ("distilbert", "ForMaskedLM")])
def test_without_a_trained_head_there_are_no_labels_and_the_same_fresh_head_each_time(tmp_path, capsys, family, kind):
    reference = checkpoint(tmp_path, family, kind, **named("a", "b"))
    assert run(tmp_path) == 0 and "none, the head is fresh" in capsys.readouterr().out
    model = check_saved(tmp_path, reference, head=False)
    first = model.network.state_dict()
    assert model.labels is None and model.network.config.num_labels == 2
    body = getattr(reference, family, reference)  # of a Model it is the network itself
    assert torch.equal(first["words.weight"], body.embeddings.word_embeddings.weight)
    assert kind != "Model" or torch.equal(first["pooler.weight"], reference.pooler.dense.weight)
    assert run(tmp_path) == 0
    assert all(torch.equal(first[name], theta) for name, theta in models.load(tmp_path).network.state_dict().items())
    assert "expected a trained head with classes" in refused(capsys, tmp_path, tmp_path, "--labels", "a,b")


@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_one_output_is_a_regression_and_predicts_its_score(tmp_path, capsys, problem_type):
    reference = checkpoint(tmp_path, **named("LABEL_0"))
    change(tmp_path, problem_type=problem_type)
    assert run(tmp_path) == 0 and "none, a regression" in capsys.readouterr().out
    model = check_saved(tmp_path, reference)
    [(score, probabilities)] = model.predict(["the plot is witty"])
    ids = torch.tensor([[2, *(WORDS.index(word) for word in "the plot is witty".split()), 3]])
    assert model.labels == [] and probabilities == {} and abs(score - reference(ids).logits.item()) < 1e-5
    assert "expected a trained head with classes" in refused(capsys, tmp_path, tmp_path, "--labels", "a")


@pytest.mark.parametrize("wanted, outputs", [
    ("contradiction,entailment,neutral", [2, 0, 1]), ("Neutral, Contradiction, Entailment", [1, 2, 0]),
    ("yes,peut-être,no", [0, 1, 2]), ("entailment,perhaps,no", [0, 1, 2]),
])  # fmt: skip
def test_a_head_under_the_tasks_labels(tmp_path, made, monkeypatch, wanted, outputs):
    """Its own labels in another order: its outputs move along. Others: its outputs are named, and stay."""
    reference = copied(made, tmp_path)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))  # a terminal without ê
    assert run(tmp_path, "--labels", wanted) == 0
    model = check_saved(tmp_path, reference, outputs=outputs)
    assert model.labels == [name.strip() for name in wanted.split(",")]
    assert run(tmp_path) == 0 and check_saved(tmp_path, reference).labels == LABELS  # nothing of it stays


@pytest.mark.parametrize("labels, wanted, found", [
    (["not_entailment", "entailment"], ["--labels", "entailment,not entailment"], ["entailment", "not entailment"]),
    (["us", "US"], [], ["us", "US"]), ([0, 1], [], ["0", "1"]),
])  # fmt: skip
def test_labels_are_kept_as_they_are_written(tmp_path, labels, wanted, found):
    reference = checkpoint(tmp_path, **named("a", "b"))
    change(tmp_path, **named(*labels))
    assert run(tmp_path, *wanted) == 0
    assert check_saved(tmp_path, reference, outputs=[1, 0] if wanted else [0, 1]).labels == found


def test_labels_that_do_not_fit_the_head_are_refused(tmp_path, made, capsys):
    copied(made, tmp_path)
    assert run(tmp_path) == 0
    for of in ("the published network", "the saved one"):
        for wanted, said in (
            ("", "expected 3 names"), ("yes,no,Yes", "each name once"), ("yes,,no", "each name once"),
            ("neutral,perhaps,no", "in their places"),  # which output is "perhaps"?
        ):  # fmt: skip
            assert said in refused(capsys, tmp_path, tmp_path, "--labels", wanted), of
        (tmp_path / "config.json").unlink(missing_ok=True)


@pytest.mark.parametrize("labels, outputs, of_hub", [
    (["LABEL_0", "LABEL_1"], [0, 1], False), (["0", "1"], [0, 1], True), (["POSITIVE", "NEGATIVE"], [1, 0], True),
])  # fmt: skip
def test_the_command_that_train_names_keeps_the_head(tmp_path, labels, outputs, of_hub):
    """train.py begins a head for other labels anew, and its note says how to keep it."""
    folder = tmp_path / "it's here"
    reference = checkpoint(folder, **named(*labels))
    assert run(folder) == 0
    if of_hub:
        (folder / "config.json").unlink()
    settings = {"train_size": 20, "quiz_size": 20, "student": str(folder), "methods": "finetune"}
    config = train.resolved(train.Config(data="builtin", **settings))

    def difference_and_notes():
        seed = train.Seed(config, 0)
        expected, found = logits_of(reference, seed.model("student").network)
        return (expected[:, outputs] - found).abs().max(), {*seed.notes}

    difference, [note] = difference_and_notes()
    assert difference > 1e-3 and run(*shlex.split(note[note.index("python ") :])[2:]) == 0
    difference, notes = difference_and_notes()
    assert difference < 1e-5 and not notes


@pytest.mark.parametrize("weights_file", ["model.safetensors", "pytorch_model.bin"])
def test_a_name_on_the_hub(tmp_path, here, made, monkeypatch, capsys, weights_file):
    (hub := tmp_path / "hub").mkdir()
    (cache := tmp_path / "cache").mkdir()

    def download(name, allow_patterns):
        if name != "org/name":
            raise OSError("404 Client Error.\n\nRepository Not Found")
        for path in hub.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)

    client = mock.create_autospec(fetch.huggingface_hub.snapshot_download, side_effect=download)
    monkeypatch.setattr(fetch.huggingface_hub, "snapshot_download", client)
    copied(made, hub)
    if weights_file == "pytorch_model.bin":
        without("nothing")(hub)
    for name in {"README.md", "tf_model.h5", "optimizer.pt", "pytorch_model.bin"} - {weights_file}:
        (hub / name).write_bytes(b"not asked for")
    assert "the Hugging Face hub: 404 Client Error." in refused(capsys, here, "org/other")
    change(hub, problem_type="multi_label_classification")
    assert "found multi_label_classification" in refused(capsys, here, "org/name")
    assert files(cache) == {"config.json", "vocab.txt"}  # not the weights
    change(hub, problem_type=None)
    assert run("org/name") == 0 and files(here) == {"checkpoints/org/name/metadistil.pt"}
    assert files(cache) == {"config.json", "vocab.txt", weights_file}
    expected, found = logits_of(made["bert"][0], models.load("checkpoints/org/name").network)
    assert (expected - found).abs().max() < 1e-5
