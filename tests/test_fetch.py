"""What comes from outside: downloads from a local server, published checkpoints made on the spot, a stand-in for the hub."""

import hashlib
import http.server
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, shaken
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

import models
import train

sys.path.insert(0, str(ROOT / "notebooks"))
import fetch  # noqa: E402

published = pytest.mark.skipif(fetch.transformers is None, reason="needs the package transformers")


def run(*arguments):
    """The command line, in this process. Returns the exit status."""
    before, sys.argv = sys.argv, ["fetch.py", *map(str, arguments)]
    try:
        return fetch.main()
    finally:
        sys.argv = before


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(capsys, folder, *arguments):
    """The one line that says why; nothing was written."""
    before = files(folder)
    capsys.readouterr()  # of what the checkpoint was written with
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    err = err.strip().split("MB\n")[-1]  # after the line of progress
    assert err.startswith(f"fetch.py: {arguments[0]}: ") and len(err.splitlines()) == 1
    assert files(folder) == before and not out
    return err


# ---------------------------------------------------------------- data sets


def serve(web, monkeypatch, task, content, md5="right"):
    """Let a task's download come from the local server, with the checksum that is right, or another."""
    web.content, source = content, fetch.SOURCES[task]
    md5 = hashlib.md5(content).hexdigest() if md5 == "right" else md5
    address = web.address + source.address.rsplit("/", 1)[1]
    monkeypatch.setitem(fetch.SOURCES, task, source._replace(md5=md5, address=address))


def zipped(**contents):
    with zipfile.ZipFile(archive := io.BytesIO(), "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return archive.getvalue()


SST2 = {"SST-2/train.tsv": "sentence\tlabel\nwitty\t1\n", "SST-2/dev.tsv": "sentence\tlabel\ndull\t0\n"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory to work in."""
    (folder := tmp_path / "here").mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_every_address_is_https():
    assert all(source.address.startswith("https://") for source in fetch.SOURCES.values())


def test_a_data_set_is_fetched_once(here, monkeypatch, web, capsys):
    outside = {"../escaped": "nothing but the task's folder is taken out", "/tmp/escaped": "neither", "other": ""}
    serve(web, monkeypatch, "sst2", zipped(**SST2, **outside))
    assert run("sst2") == 0 and "fetched into data/SST-2" in capsys.readouterr().out
    assert files(here.parent) == {"here/data/SST-2/train.tsv", "here/data/SST-2/dev.tsv"}
    assert (here / "data" / "SST-2" / "train.tsv").read_text() == SST2["SST-2/train.tsv"]
    assert not Path("/tmp/escaped").exists()
    assert run("sst2") == 0 and "already there" in capsys.readouterr().out and web.asked == ["/SST-2.zip"]


def test_another_directory_and_what_follows_an_error(here, monkeypatch, web, capsys):
    serve(web, monkeypatch, "sst2", zipped(**SST2))
    assert run("nonsense", "sst2", "--data", "elsewhere") == 2
    out, err = capsys.readouterr()
    assert "fetched into elsewhere/SST-2" in out and files(here) == {f"elsewhere/{name}" for name in SST2}
    assert err.startswith("fetch.py: nonsense: expected a task (sst2, cola,")


def test_mrpc_is_one_file(here, monkeypatch, web):
    serve(web, monkeypatch, "mrpc", b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n")
    assert run("mrpc") == 0 and web.asked == ["/msr_paraphrase_train.txt"] and files(here) == {"data/MRPC/train.tsv"}


def test_a_wrong_checksum_leaves_nothing(here, monkeypatch, web, capsys):
    serve(web, monkeypatch, "sst2", b"not what was expected", md5="0" * 32)
    assert "expected the MD5 checksum 000" in refused(capsys, here, "sst2")


@pytest.mark.parametrize(
    "content, missing, said",
    [
        (b"half of it", 10, "cut off, 10 bytes are missing"),
        (b"PK\x03\x04 no archive", 0, "not a zip file"),
        (zipped(**{"SST-2/train.tsv": "x" * 900}).replace(b"x" * 500, b"y" * 500), 0, "Bad CRC-32"),
        (zipped(other="no folder of the task"), 0, "expected SST-2 in it, with a training file"),
        (zipped(**{"SST-2/dev.tsv": ""}), 0, "expected SST-2 in it, with a training file"),
        (b"", 0, "not a zip file"),
    ],
)
def test_a_broken_download_is_named_and_leaves_nothing(here, monkeypatch, web, capsys, content, missing, said):
    web.missing = missing
    serve(web, monkeypatch, "sst2", content, md5=None)
    assert said in refused(capsys, here, "sst2")
    assert not (here / "data" / "SST-2").exists()


def test_a_folder_without_a_training_file_is_left_alone(here, monkeypatch, web, capsys):
    serve(web, monkeypatch, "sst2", zipped(**SST2))
    (here / "data" / "SST-2").mkdir(parents=True)
    (here / "data" / "SST-2" / "mine.txt").write_text("mine")
    assert "expected a training file in it, or no such folder" in refused(capsys, here, "sst2")
    shutil.rmtree(here / "data")
    (here / "data").write_text("a file")
    assert "exists" in refused(capsys, here, "sst2")


def test_downloads_that_stall_or_never_end_or_change_the_protocol(tmp_path, web):
    web.content, file = b"x" * 5_000_000, tmp_path / "SST-2.zip"
    with pytest.raises(fetch.FetchError, match="expected at most 2,000,000 bytes, found more"):
        fetch.download(web.address + "SST-2.zip", file, most=2_000_000)
    web.stalls = True
    with pytest.raises(OSError, match="timed out"):
        fetch.download(web.address + "SST-2.zip", file, timeout=0.2)
    for elsewhere, message in ((f"file://{__file__}", "not allowed"), ("ftp://127.0.0.1:1/", "expected no redirect")):
        web.asked, web.elsewhere, web.stalls = [], elsewhere, False
        with pytest.raises((OSError, fetch.FetchError), match=message):
            fetch.download(web.address + "SST-2.zip", file, timeout=1)


def test_a_redirect_within_the_protocol_is_followed(tmp_path, web):
    web.content, web.elsewhere = b"there", "/moved/SST-2.zip"
    fetch.download(web.address + "SST-2.zip", tmp_path / "SST-2.zip")
    assert (tmp_path / "SST-2.zip").read_bytes() == b"there" and web.asked == ["/SST-2.zip", "/moved/SST-2.zip"]


def tarred(*members):
    with tarfile.open(fileobj=(archive := io.BytesIO()), mode="w:gz") as file:
        for name, content, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = tarfile.SYMTYPE if link else tarfile.REGTYPE, link, len(content)
            file.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def test_pictures_are_unpacked(here, monkeypatch, web, capsys):
    content = tarred(("cifar-100-binary/train.bin", b"x" * 3074, ""), ("cifar-100-binary/test.bin", b"y" * 3074, ""))
    serve(web, monkeypatch, "cifar100", content[:-9], md5=hashlib.md5(content).hexdigest())
    assert "expected the MD5 checksum" in refused(capsys, here, "cifar100")
    web.content = content
    assert run("cifar100") == 0
    assert files(here) == {"data/cifar-100-binary/train.bin", "data/cifar-100-binary/test.bin"}


@pytest.mark.parametrize(
    "name, link",
    [("../escaped", ""), ("in", "../escaped"), ("in", "/etc/hosts"), ("cifar-100-binary/train.bin", "/etc/hosts")],
)
def test_an_archive_that_would_write_elsewhere_is_refused(here, monkeypatch, web, capsys, name, link):
    serve(web, monkeypatch, "cifar100", tarred((name, b"", link)), md5=None)
    assert ("absolute path" if link.startswith("/") else "outside") in refused(capsys, here, "cifar100")
    assert not (here.parent / "escaped").exists() and not list((here / "data").iterdir())


# ---------------------------------------------------------------- published checkpoints

FAMILIES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = SPECIAL + "the plot is witty dull café cafe The Plot naïve na ##ive ##s ##t . , 数 a b x".split()
LABELS = ["ENTAILMENT", "NEUTRAL", "CONTRADICTION"]


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def change(folder, name="config.json", **changes):
    """Other entries of a JSON file; None takes one out."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    write_json(path, content)


def wordpiece(folder, words=WORDS, **tokenizer_config):
    """The files of a WordPiece tokeniser as BERT was published."""
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if tokenizer_config:
        write_json(folder / "tokenizer_config.json", tokenizer_config)


def bpe(folder, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>"), **tokenizer_config):
    """The files of a byte-level tokeniser as RoBERTa was published."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        ["The plot is witty and dull, café"] * 5, 320, special_tokens=[*special], show_progress=False
    )
    made.save_model(str(folder))
    if tokenizer_config:
        write_json(folder / "tokenizer_config.json", tokenizer_config)


def checkpoint(folder, family="bert", kind="ForSequenceClassification", tokenizer=True, **settings):
    """A small published checkpoint with random weights, and the package's network."""
    folder.mkdir(exist_ok=True)
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "max_position_embeddings": 60}
    shape |= {"vocab_size": 330, "id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    shape |= {"hidden_dim" if family == "distilbert" else "intermediate_size": 50}
    shape |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5} if family == "roberta" else {}
    config = getattr(fetch.transformers, FAMILIES[family] + "Config")(**shape | settings)
    network = shaken(getattr(fetch.transformers, FAMILIES[family] + kind)(config)).eval()
    network.save_pretrained(folder)
    if tokenizer:
        (bpe if family == "roberta" else wordpiece)(folder)
    return network


def rewrite(folder, changed):
    """Let the weights be `changed(weights)`, as a pytorch_model.bin."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(changed(weights), folder / "pytorch_model.bin")


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


TEXTS = ["The plot is witty.", "CAFÉ naïve", "", " the\tPlot", "数a [MASK] b", "a<mask> </s>"]


def check_saved(folder, reference, head=True, outputs=slice(None)):
    """The saved model is the package's network and tokeniser, its outputs in the order `outputs`. Returns the model."""
    model = models.load(folder)
    if head:
        expected, found = logits_of(reference, model.network)
        assert (expected[:, outputs] - found).abs().max() < 1e-5
    theirs = fetch.transformers.AutoTokenizer.from_pretrained(folder, config=reference.config)
    for text in TEXTS:
        assert model.tokenizer.encode(text).ids == theirs([text])["input_ids"][0]
        assert model.tokenizer.encode(text, "the plot").ids == theirs([text], ["the plot"])["input_ids"][0]
    assert model.tokenizer.padding is None
    return model


@published
@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_checkpoint_becomes_ours(tmp_path, family, capsys):
    reference = checkpoint(tmp_path, family)
    assert run(tmp_path) == 0
    model = check_saved(tmp_path, reference)
    assert model.labels == LABELS and model.columns == ("sentence",)
    assert (model.network.config.layers, model.network.config.num_labels) == (3, 3)
    out = capsys.readouterr().out
    assert "largest difference" in out and "ENTAILMENT, NEUTRAL, CONTRADICTION" in out
    assert not list(tmp_path.glob("*.part"))


@published
def test_tinybert_with_what_is_left_of_its_training(tmp_path):
    reference = checkpoint(tmp_path, hidden_size=12, num_attention_heads=2)
    more = {"fit_denses.0.weight": torch.ones(3), "cls.predictions.bias": torch.ones(330)}
    rewrite(tmp_path, lambda weights: weights | more | {"bert.embeddings.position_ids": torch.arange(60)[None]})
    assert run(tmp_path) == 0
    check_saved(tmp_path, reference)


@published
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_number_and_old_names_are_read(tmp_path, dtype):
    reference = checkpoint(tmp_path)

    def old(weights):
        names = {
            n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            for n in weights
        }
        return {names[name]: weight.to(dtype) for name, weight in weights.items()}

    rewrite(tmp_path, old)
    change(tmp_path, dtype=str(dtype).removeprefix("torch."))
    assert run(tmp_path) == 0
    check_saved(tmp_path, reference.to(dtype).float())
    weights = torch.load(tmp_path / "metadistil.pt", weights_only=True)["weights"]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@published
def test_shards_are_read_and_a_missing_one_is_refused(tmp_path, capsys):
    reference = checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and run(tmp_path) == 0
    check_saved(tmp_path, reference)
    (tmp_path / "metadistil.pt").unlink()
    capsys.readouterr()
    shards[1].unlink()
    assert "expected the weights that config.json promises" in refused(capsys, tmp_path, tmp_path)


@published
def test_weights_without_the_familys_name_before_them(tmp_path):
    reference = checkpoint(tmp_path)
    rewrite(tmp_path, lambda weights: {name.removeprefix("bert."): weight for name, weight in weights.items()})
    assert run(tmp_path) == 0
    check_saved(tmp_path, reference)


PAD_FIRST = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")


@published
@pytest.mark.parametrize(
    "padding, special", [(1, None), (0, PAD_FIRST), (3, None)], ids=["as published", "0", "3, of unknown tokens"]
)
def test_robertas_positions_begin_after_its_padding(tmp_path, padding, special):
    reference = checkpoint(tmp_path, "roberta", pad_token_id=padding, bos_token_id=1 if special else 0)
    if special:
        bpe(tmp_path, special)
    assert run(tmp_path) == 0
    config = check_saved(tmp_path, reference).network.config
    assert config.position_offset == padding + 1 and config.max_tokens == 60 - padding - 1


@published
def test_a_roberta_whose_first_token_is_padding_to_it_is_refused(tmp_path, capsys):
    """The package gives <s> padding's position then: no network that counts on can say the same."""
    checkpoint(tmp_path, "roberta", pad_token_id=0)  # <s> has the id 0
    assert "ids part by" in refused(capsys, tmp_path, tmp_path)


@published
def test_a_config_without_model_type(tmp_path, capsys):
    reference = checkpoint(tmp_path)
    change(tmp_path, model_type=None)
    error = refused(capsys, tmp_path, tmp_path)
    assert "expected a model_type of bert, roberta, distilbert, found None (if you know it, add --model-type)" in error
    refused(capsys, tmp_path, tmp_path, "--model-type", "roberta")
    assert run(tmp_path, "--model-type", "bert") == 0
    check_saved(tmp_path, reference)


@published
@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("setting", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_settings_of_a_wordpiece_tokeniser(tmp_path, family, setting):
    reference = checkpoint(tmp_path, family)
    wordpiece(tmp_path, **{setting: False})
    assert run(tmp_path) == 0
    tokenizer = check_saved(tmp_path, reference).tokenizer
    read = {
        "do_lower_case": ("The Plot café", True),
        "strip_accents": ("café", True),
        "tokenize_chinese_chars": ("a数b", False),
    }
    text, known = read[setting]
    assert (tokenizer.encode(text).tokens[1:-1] == text.split()) == known


@published
def test_added_tokens(tmp_path, capsys):
    reference = checkpoint(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"[NEW]": len(WORDS), "[more]": len(WORDS) + 1})
    assert run(tmp_path) == 0
    tokenizer = check_saved(tmp_path, reference).tokenizer
    assert tokenizer.encode("a[NEW] [more]").ids[1:-1] == [WORDS.index("a"), len(WORDS), len(WORDS) + 1]
    (tmp_path / "metadistil.pt").unlink()
    capsys.readouterr()
    write_json(tmp_path / "added_tokens.json", {"[NEW]": 200})  # the package numbers it 25, and says nothing
    assert f"expected the id 200 for '[NEW]', as stated, found {len(WORDS)}" in refused(capsys, tmp_path, tmp_path)


@published
@pytest.mark.parametrize("prefix", [False, True])
def test_add_prefix_space(tmp_path, prefix):
    reference = checkpoint(tmp_path, "roberta")
    bpe(tmp_path, add_prefix_space=prefix)
    assert run(tmp_path) == 0
    tokens = check_saved(tmp_path, reference).tokenizer.encode("a").tokens
    assert tokens == (["<s>", "Ġ", "a", "</s>"] if prefix else ["<s>", "a", "</s>"])


def whole_json(folder, lowercase=True, **tokenizer_config):
    """A WordPiece tokeniser as tokenizer.json, with truncation and padding left in it."""
    made = BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS)}, lowercase=lowercase)
    made.enable_truncation(7)
    made.enable_padding(length=7)
    (folder / "tokenizer.json").write_text(made.to_str())
    (folder / "vocab.txt").unlink(missing_ok=True)
    if tokenizer_config:
        write_json(folder / "tokenizer_config.json", tokenizer_config)


@published
@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("in_settings", [True, False, None])
def test_a_tokenizer_json_and_its_settings_agree_or_are_refused(tmp_path, capsys, in_file, in_settings):
    """Where settings say nothing, the package lower-cases, whatever tokenizer.json says."""
    reference = checkpoint(tmp_path)
    whole_json(tmp_path, in_file, **{} if in_settings is None else {"do_lower_case": in_settings})
    if in_file == (in_settings is not False):
        assert run(tmp_path) == 0
        check_saved(tmp_path, reference)
    else:
        assert "expected tokenizer.json and its settings to agree, not to part at" in refused(
            capsys, tmp_path, tmp_path
        )


@pytest.mark.slow
@published
def test_any_settings_are_right_or_refused(tmp_path, capsys):
    """Whatever the files say together: the package's ids and the stated ones, or one line."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
    @hypothesis.given(data=st.data())
    def holds(data):
        shutil.rmtree(tmp_path)
        reference = checkpoint(tmp_path)
        yes_or_no = st.sampled_from([None, True, False])
        said = {key: data.draw(yes_or_no, key) for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
        said["tokenizer_class"] = data.draw(st.sampled_from([None, "BertTokenizer", "PreTrainedTokenizerFast"]), "class")
        said["truncation_side"] = data.draw(st.sampled_from([None, "right", "left"]), "side")
        said = {key: value for key, value in said.items() if value is not None}
        if data.draw(st.booleans(), "tokenizer.json"):
            whole_json(tmp_path, data.draw(st.booleans(), "lowercase"), **said)
        else:
            wordpiece(tmp_path, **said)
        added = data.draw(st.sampled_from([{}, {"[NEW]": len(WORDS)}, {"[NEW]": 99}, {"witty": 8}]), "added")
        if added:
            write_json(tmp_path / "added_tokens.json", added)
        if run(tmp_path) == 0:
            tokenizer = check_saved(tmp_path, reference).tokenizer
            assert all(tokenizer.token_to_id(token) == number for token, number in added.items())
            capsys.readouterr()
        else:
            out, err = capsys.readouterr()
            assert len(err.splitlines()) == 1 and err.startswith("fetch.py: ") and not (tmp_path / "metadistil.pt").exists()

    holds()


# ---------------------------------------------------------------- heads


@published
@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_trained_head_the_file_names_no_labels(tmp_path, family, kind, capsys):
    reference = checkpoint(tmp_path, family, kind, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    assert run(tmp_path) == 0 and "none, the head is fresh" in capsys.readouterr().out
    model = check_saved(tmp_path, reference, head=False)
    first = model.network.state_dict()
    assert model.labels is None and model.network.config.num_labels == 2
    body = getattr(reference, family, reference)  # of a Model it is the network itself
    assert torch.equal(first["words.weight"], body.embeddings.word_embeddings.weight)
    if (family, kind) == ("bert", "Model"):
        assert torch.equal(first["pooler.weight"], reference.pooler.dense.weight)


@published
def test_a_fresh_head_is_the_same_each_time(tmp_path):
    checkpoint(tmp_path, "roberta", "ForMaskedLM")
    found = []
    for _ in range(2):
        assert run(tmp_path) == 0
        found.append(models.load(tmp_path).state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@published
def test_a_regression_has_scores_and_no_labels(tmp_path):
    reference = checkpoint(tmp_path, id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0})
    assert run(tmp_path) == 0
    model = check_saved(tmp_path, reference)
    [(score, probabilities)] = model.predict(["the plot is witty"])
    assert model.labels == [] and isinstance(score, float) and probabilities == {}


# ---------------------------------------------------------------- the task's labels


@published
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted, outputs", [
    ("contradiction,entailment,neutral", [2, 0, 1]),
    ("entailment,neutral,contradiction", [0, 1, 2]),
    ("Neutral, Contradiction, Entailment", [1, 2, 0]),
    ("yes,perhaps,no", [0, 1, 2]),
    ("entailment,perhaps,no", [0, 1, 2]),
])  # fmt: skip
def test_a_head_under_the_tasks_labels(tmp_path, capsys, family, wanted, outputs):
    """Its own labels in another order: its outputs move along. Others: its outputs are named, and stay."""
    reference = checkpoint(tmp_path, family)
    assert run(tmp_path, "--labels", wanted) == 0
    model = check_saved(tmp_path, reference, outputs=outputs)
    assert model.labels == [name.strip() for name in wanted.split(",")]
    assert ", ".join(model.labels) in capsys.readouterr().out
    assert run(tmp_path) == 0 and check_saved(tmp_path, reference).labels == LABELS  # nothing of it stays


@published
def test_glue_writes_an_underscore_where_the_task_has_a_space(tmp_path):
    labels = {0: "not_entailment", 1: "entailment"}
    reference = checkpoint(tmp_path, id2label=labels, label2id={name: n for n, name in labels.items()})
    assert run(tmp_path, "--labels", "entailment,not entailment") == 0
    assert check_saved(tmp_path, reference, outputs=[1, 0]).labels == ["entailment", "not entailment"]


@published
def test_labels_that_differ_in_case_alone(tmp_path):
    reference = checkpoint(tmp_path, id2label={0: "us", 1: "US"}, label2id={"us": 0, "US": 1})
    assert run(tmp_path) == 0 and check_saved(tmp_path, reference).labels == ["us", "US"]


@published
@pytest.mark.parametrize("wanted, said", [
    ("yes,no", "expected 3 names"), ("a,b,c,d", "expected 3 names"), ("", "expected 3 names"),
    ("yes,no,Yes", "each name once"), ("yes,,no", "each name once"),
    ("neutral,perhaps,no", "in their places"),  # which output is "perhaps"?
])  # fmt: skip
def test_labels_that_do_not_fit_the_head_are_refused(tmp_path, capsys, wanted, said):
    checkpoint(tmp_path)
    assert said in refused(capsys, tmp_path, tmp_path, "--labels", wanted)
    assert run(tmp_path) == 0
    (tmp_path / "config.json").unlink()
    assert said in refused(capsys, tmp_path, tmp_path, "--labels", wanted)  # of the saved model, too


@published
@pytest.mark.parametrize("kind, settings", [
    ("Model", {}), ("ForSequenceClassification", {"id2label": {0: "score"}, "label2id": {"score": 0}}),
])  # fmt: skip
def test_without_a_trained_head_of_classes_there_is_nothing_to_name(tmp_path, capsys, kind, settings):
    checkpoint(tmp_path, kind=kind, **settings)
    assert run(tmp_path) == 0
    for _ in ("published", "saved"):
        for wanted in ("a,b,c", "a"):
            assert "expected a trained head with classes" in refused(capsys, tmp_path, tmp_path, "--labels", wanted)
        (tmp_path / "config.json").unlink(missing_ok=True)


@published
@pytest.mark.parametrize("of_hub", [False, True], ids=["a directory", "as written from the hub"])
@pytest.mark.parametrize("labels, outputs", [
    (["LABEL_0", "LABEL_1"], [0, 1]), (["0", "1"], [0, 1]), (["POSITIVE", "NEGATIVE"], [1, 0]),
])  # fmt: skip
def test_the_command_that_train_names_keeps_the_head(tmp_path, of_hub, labels, outputs):
    """train.py begins a head for other labels anew, and its note says how to keep it."""
    folder = tmp_path / "it's here"
    numbers = {name: number for number, name in enumerate(labels)}
    reference = checkpoint(folder, id2label=dict(enumerate(labels)), label2id=numbers)
    assert run(folder) == 0
    if of_hub:
        (folder / "config.json").rename(folder / "elsewhere")
    settings = {"train_size": 20, "quiz_size": 20, "student": str(folder), "methods": "finetune"}
    config = train.resolved(train.Config(data="builtin", **settings))
    seed = train.Seed(config, 0)
    expected, found = logits_of(reference, seed.model("student").network)
    assert (expected[:, outputs] - found).abs().max() > 1e-3
    [note] = {*seed.notes}
    command = shlex.split(note[note.index("python ") :])
    assert run(*command[2:]) == 0
    seed = train.Seed(config, 0)
    expected, found = logits_of(reference, seed.model("student").network)
    assert (expected[:, outputs] - found).abs().max() < 1e-5 and not seed.notes


# ---------------------------------------------------------------- what is refused


@published
@pytest.mark.parametrize(
    "changes, said",
    [
        ({"hidden_act": "relu"}, "expected hidden_act gelu, found relu"),
        ({"hidden_act": "gelu_new"}, "expected hidden_act gelu, found gelu_new"),
        ({"position_embedding_type": "relative_key"}, "expected position_embedding_type absolute, found relative_key"),
        ({"is_decoder": True}, "expected is_decoder False, found True"),
        ({"add_cross_attention": True}, "expected add_cross_attention False, found True"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "expected each label once"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "config.json: "),
        ({"label2id": dict(zip(LABELS, (2, 1, 0)))}, "expected id2label and label2id to agree"),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.bias has the shape (3,), not (2,)"),
        ({"num_hidden_layers": 2}, "16 tensors have no place there, first ['bert.encoder.layer.2."),
        ({"num_hidden_layers": 4}, "16 tensors are missing, first ['bert.encoder.layer.3."),
        ({"hidden_size": 48}, "has the shape (24"),
        ({"hidden_size": 25}, "25"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"vocab_size": -1}, "vocab_size -1"),
        ({"max_position_embeddings": 61}, "position_embeddings.weight has the shape (60, 24), not (61, 24)"),
    ]
    + [
        ({"model_type": kind}, f"found {kind}")
        for kind in ("albert", "electra", "deberta-v2", "mpnet", "xlm-roberta", "t5")
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_network_that_is_not_ours_is_refused(tmp_path, capsys, changes, said):
    checkpoint(tmp_path)
    change(tmp_path, **changes)
    assert said in refused(capsys, tmp_path, tmp_path)


def without(part):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


@published
@pytest.mark.parametrize(
    "changed, said",
    [
        (lambda weights: {f"module.{name}": weight for name, weight in weights.items()}, "53 tensors are missing"),
        (lambda weights: {"state_dict": weights}, "53 tensors are missing"),
        (
            without("layer.1.output.dense.bias"),
            "1 tensors are missing, first ['bert.encoder.layer.1.output.dense.bias']",
        ),
        (without("pooler.dense.bias"), "1 tensors are missing, first ['bert.pooler.dense.bias']"),
        (without("word_embeddings"), "1 tensors are missing"),
        (
            lambda weights: (
                weights | {"bert.encoder.layer.0.attention.self.distance_embedding.weight": torch.ones(9, 8)}
            ),
            "no place",
        ),
        (lambda weights: weights | {"bert.adapter.weight": torch.ones(9, 8)}, "1 tensors have no place there"),
        (
            lambda weights: weights | {"bert.pooler.dense.bias": torch.full((24,), torch.nan)},
            "the logits of a batch of",
        ),
        (lambda weights: {name: weight.int() for name, weight in weights.items()}, None),  # whole numbers: right
        (lambda weights: list(weights.values()), ""),
    ],
)
def test_weights_that_are_not_what_the_config_promises_are_refused(tmp_path, capsys, changed, said):
    checkpoint(tmp_path)
    rewrite(tmp_path, changed)
    if said is None:
        assert run(tmp_path) == 0
    else:
        assert said in refused(capsys, tmp_path, tmp_path)


@published
def test_labels_that_are_numbers_are_names_too(tmp_path, capsys):
    checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": {"0": 0, "1": 1, "2": 2}, "label2id": {"0": 0, "1": 1, "2": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(tmp_path) == 0 and "labels: 0, 1, 2" in capsys.readouterr().out
    assert models.load(tmp_path).labels == ["0", "1", "2"]


@published
def test_a_full_disk_leaves_no_file(tmp_path, capsys, monkeypatch):
    checkpoint(tmp_path)

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672]")

    monkeypatch.setattr(torch, "save", full)
    assert "cannot be written: [enforce fail" in refused(capsys, tmp_path, tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"


@published
@pytest.mark.parametrize(
    "name, content, said",
    [
        ("model.safetensors", POINTER, "model.safetensors: expected the file itself, found a Git-LFS pointer"),
        ("model.safetensors", None, "no file named model.safetensors"),
        ("model.safetensors", b"", "expected the weights that config.json promises"),
        ("model.safetensors", b"\xff" * 64, "expected the weights that config.json promises"),
        ("pytorch_model.bin", POINTER, "pytorch_model.bin: expected the file itself, found a Git-LFS pointer"),
        ("config.json", None, "config.json: expected one in the directory, found none"),
        ("config.json", b"{", "config.json: Expecting property name"),
        ("config.json", b"[3]", "config.json: "),
        ("config.json", b'"\xe9"', "config.json: "),
        ("vocab.txt", None, "expected the files of a tokeniser, found none"),
        ("vocab.txt", b"\xff\xfe", "expected the files of a tokeniser"),
        ("tokenizer.json", b"{", "expected the files of a tokeniser"),
        ("tokenizer.json", POINTER, "expected the files of a tokeniser"),
        ("tokenizer_config.json", b"{", "expected the files of a tokeniser"),
        ("tokenizer_config.json", b'{"truncation_side": "left"}', "expected texts to be cut on the right"),
        ("added_tokens.json", b"[]", "expected the files of a tokeniser"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path, capsys, name, content, said):
    checkpoint(tmp_path)
    if name == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert said in refused(capsys, tmp_path, tmp_path)


@published
def test_no_code_is_run_from_a_pickle(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    checkpoint(tmp_path)
    rewrite(tmp_path, lambda weights: {"bert.pooler.dense.bias": Evil()})
    refused(capsys, tmp_path, tmp_path)
    assert not (tmp_path / "owned").exists()


@published
@pytest.mark.parametrize("family, token_types", [("bert", 1), ("roberta", 1)])
def test_one_token_type_and_a_tokeniser_that_numbers_the_second_sentence_1(tmp_path, capsys, family, token_types):
    checkpoint(tmp_path, family, tokenizer=False, type_vocab_size=token_types, pad_token_id=0)
    wordpiece(tmp_path, tokenizer_class="BertTokenizer")
    assert "cannot be converted: index out of range" in refused(capsys, tmp_path, tmp_path)


@published
def test_a_vocabulary_larger_than_the_embedding_table(tmp_path, capsys):
    checkpoint(tmp_path, vocab_size=len(WORDS) - 1)
    assert f"expected ids below vocab_size {len(WORDS) - 1}, found {len(WORDS) - 1}" in refused(
        capsys, tmp_path, tmp_path
    )
    checkpoint(tmp_path, vocab_size=len(WORDS))
    assert run(tmp_path) == 0


@published
@pytest.mark.parametrize("name", ["nonsense", "a/b/c", "../up", "-x/y", "./nowhere", "org/na me"])
def test_a_name_that_is_none(here, capsys, name):
    if name.startswith("-"):
        with pytest.raises(SystemExit) as stopped:
            run(name)
        assert stopped.value.code == 2
    else:
        assert "expected a task (sst2, cola" in refused(capsys, here, name)


@published
def test_a_directory_that_cannot_be_written_to(tmp_path, capsys):
    checkpoint(tmp_path)
    (tmp_path / "metadistil.pt").mkdir()
    assert "directory" in refused(capsys, tmp_path, tmp_path)


def test_stopped_by_hand(here, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "download", stop)
    assert run("sst2") == 130 and capsys.readouterr().err == "fetch.py: sst2: stopped\n" and not files(here)


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "transformers", None)
    assert "needs the package transformers: pip install -r notebooks/" in refused(capsys, tmp_path, tmp_path)


@pytest.mark.slow
def test_data_sets_and_help_do_without_the_package_and_on_any_terminal():
    code = "import sys; sys.modules['transformers'] = None; import fetch; sys.argv[1:] = {}; fetch.main()"
    code = "; ".join([code.format(["nonsense"]), "sys.argv[1:] = ['--help']", "fetch.main()"])
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT / "notebooks", env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and "published checkpoints" in found.stdout
    assert found.stderr.startswith("fetch.py: nonsense: expected a task") and len(found.stderr.splitlines()) == 1


# ---------------------------------------------------------------- the proof proves


def change_shape(**changes):
    """A converter that reads the configuration wrongly."""
    right = fetch.shape_of
    return {"shape_of": lambda config: models.replace(right(config), **changes)}


def swap_layers():
    right = fetch.published_name
    other = {"blocks.0": "blocks.1", "blocks.1": "blocks.0"}
    return {"published_name": lambda kind, name: right(kind, other.get(name[:8], name[:8]) + name[8:])}


def flip_case():
    def flipped(tokenizer_json):
        content = json.loads(tokenizer_json)
        content["normalizer"]["lowercase"] = not content["normalizer"]["lowercase"]
        return json.dumps(content)

    return {"unlimited": flipped}


BROKEN = {
    "position offset": ("roberta", lambda: change_shape(position_offset=1), "the logits"),
    "layer order": ("bert", swap_layers, "the logits"),
    "label order": ("bert", lambda: {"label_names": lambda config: LABELS[::-1]}, "the logits"),
    "LayerNorm epsilon": ("roberta", lambda: change_shape(layer_norm_eps=1e-12), "the logits"),
    "lower-casing": ("bert", flip_case, "the tokenisers part"),
    "pooler": ("distilbert", lambda: change_shape(pooler="tanh"), "the logits"),
    "heads": ("bert", lambda: change_shape(heads=6), "the logits"),
}


@published
@pytest.mark.parametrize("how", BROKEN)
def test_a_converter_broken_on_purpose_is_caught_by_its_own_proof(tmp_path, monkeypatch, capsys, how):
    family, broken, said = BROKEN[how]
    checkpoint(tmp_path, family)
    change(tmp_path, label2id=None)  # which would tell it, too
    for name, function in broken().items():
        monkeypatch.setattr(fetch, name, function)
    error = refused(capsys, tmp_path, tmp_path)
    assert said in error and "part" in error


@published
@pytest.mark.parametrize("name, broken", [
    ("reorder", lambda classifier, outputs: None), ("outputs_named", lambda wanted, labels: [1, 2, 0]),
])  # fmt: skip
def test_a_head_in_a_wrong_order_is_caught_by_the_proof(tmp_path, monkeypatch, capsys, name, broken):
    checkpoint(tmp_path)
    monkeypatch.setattr(fetch, name, broken)
    assert "the logits" in refused(capsys, tmp_path, tmp_path, "--labels", "contradiction,entailment,neutral")


@published
def test_the_proof_sees_a_small_error_under_a_fresh_head(tmp_path, monkeypatch, capsys):
    """Weights as they are drawn: single precision would hide a wrong epsilon behind 1e-4."""
    config = fetch.transformers.BertConfig(
        vocab_size=330,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=50,
        layer_norm_eps=1e-5,
    )
    fetch.transformers.BertModel(config).save_pretrained(tmp_path)
    wordpiece(tmp_path)
    monkeypatch.setattr(fetch, "shape_of", change_shape(layer_norm_eps=1e-12)["shape_of"])
    assert "the logits" in refused(capsys, tmp_path, tmp_path)


# ---------------------------------------------------------------- the hub

COMMIT = "a" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub with the files of `hub.folder` as org/name. It can promise more of the weights than it
    sends (`missing` bytes), state another size for them (`wrong_size`), or be gone (`hub.stop()`)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, content, status=200, missing=0, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content) + missing))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            hub, path = self.server, self.path.split("?")[0]
            hub.asked.append(path)
            names = sorted(path.name for path in hub.folder.iterdir())
            file = hub.folder / path.rsplit("/", 1)[1]
            if not path.removeprefix("/api/models").startswith("/org/name/"):
                self.answer(b"", 404, X_Error_Code="RepoNotFound")
            elif "/tree/" in path:
                sizes = {name: (hub.folder / name).stat().st_size for name in names}
                tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
                self.answer(json.dumps(tree).encode(), Content_Type="application/json")
            elif "/api/" in path:
                info = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                self.answer(json.dumps(info).encode(), Content_Type="application/json")
            elif not file.is_file():
                self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                content, weights = file.read_bytes(), file.suffix in (".safetensors", ".bin")
                headers = {"ETag": hashlib.sha256(content).hexdigest(), "X_Repo_Commit": COMMIT}
                if weights and hub.wrong_size and self.command == "HEAD":
                    headers |= {"X_Linked_Size": str(len(content) + 7), "X_Linked_Etag": headers["ETag"]}
                missing = hub.missing if weights and self.command == "GET" else 0
                self.answer(content[: len(content) - missing], missing=missing, **headers)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    def stop():
        server.shutdown()
        server.server_close()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.asked, server.missing, server.wrong_size, server.stop = tmp_path / "hub", [], 0, False, stop
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    constants = fetch.huggingface_hub.constants
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the package's attempts
    yield server
    stop()


@published
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_name_on_the_hub_and_again_from_the_cache(here, hub, weights):
    reference = checkpoint(hub.folder)
    wordpiece(hub.folder, do_lower_case=False)
    if weights == "pytorch_model.bin":
        rewrite(hub.folder, dict)
    for name in ("README.md", "tf_model.h5", "optimizer.pt", *["pytorch_model.bin"] * (weights != "pytorch_model.bin")):
        (hub.folder / name).write_bytes(b"not asked for")
    assert run("org/name") == 0
    saved = here / "checkpoints" / "org" / "name"
    assert files(here) == {"checkpoints/org/name/metadistil.pt"}
    asked = {path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path}
    assert asked == {"config.json", "vocab.txt", "tokenizer_config.json", weights}
    expected, found = logits_of(reference, models.load(saved).network)
    assert (expected - found).abs().max() < 1e-5
    shutil.rmtree(here / "checkpoints")
    hub.stop()
    assert run("org/name") == 0 and saved.is_dir()


@pytest.mark.slow
@published
def test_the_hub_by_its_environment_variable(here, hub):
    labels = ["négatif", "positif"]  # on a terminal without é
    checkpoint(hub.folder, id2label=dict(enumerate(labels)), label2id={"négatif": 0, "positif": 1})
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(here / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, ROOT / "notebooks" / "fetch.py", "org/name"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and "org/name: bert, " in found.stdout and "Traceback" not in found.stderr
    assert models.load(here / "checkpoints" / "org" / "name").labels == labels


def last_line(capsys):
    return capsys.readouterr().err.rstrip("\n").splitlines()[-1]


@published
@pytest.mark.parametrize("broken, said", [("missing", ""), ("wrong_size", "Consistency check failed")])
def test_a_broken_download_from_the_hub_is_told_and_leaves_nothing(here, hub, capsys, broken, said):
    checkpoint(hub.folder)
    setattr(hub, broken, 1000)
    assert run("org/name") == 2 and not files(here)
    error = last_line(capsys)
    assert error.startswith("fetch.py: org/name: the Hugging Face hub: ") and said in error
    hub.stop()  # what is in the cache is not whole
    assert run("org/name") == 2 and not files(here)
    assert "fetch.py: org/name: the Hugging Face hub: " in last_line(capsys)


@published
def test_without_a_network_or_such_a_name_one_line_says_so(here, hub, capsys):
    checkpoint(hub.folder)
    assert "404" in refused(capsys, here, "org/other")
    hub.stop()
    assert "the Hugging Face hub: Got: ConnectError" in refused(capsys, here, "org/name")
