"""The networks against torch's own layer, their formulas and the published sizes; what is saved is what is read."""

import dataclasses
import gc
import os
import weakref

import numpy as np
import pytest
import torch
from conftest import shaken
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import nn

import models
from models import RESNETS, Block, CheckpointError, Encoder, EncoderConfig, ResNet, ResNetConfig, build, resnet

SMALL = EncoderConfig(vocab_size=30, hidden=16, layers=2, heads=4, intermediate=40, max_positions=20, num_labels=3)
IDS = torch.tensor([[3, 9, 4, 28, 7], [5, 1, 2, 0, 0]])


def test_block_equals_torchs_transformer_layer():
    block = shaken(Block(SMALL)).eval().double()
    twin = nn.TransformerEncoderLayer(16, 4, 40, activation="gelu", batch_first=True, layer_norm_eps=1e-12)
    twin = twin.eval().double()
    qkv = (block.query, block.key, block.value)
    with torch.no_grad():
        twin.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in qkv]))
        twin.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in qkv]))
        pairs = [(twin.self_attn.out_proj, block.output), (twin.linear1, block.feed_in), (twin.linear2, block.feed_out)]
        pairs += [(twin.norm1, block.attention_norm), (twin.norm2, block.feed_norm)]
        for theirs, ours in pairs:
            theirs.load_state_dict(ours.state_dict())
    states = torch.randn(3, 7, 16, dtype=torch.float64)
    real = torch.arange(7) < torch.tensor([[7], [4], [1]])  # (B, T)
    found, expected = block(states, real[:, None, None, :]), twin(states, src_key_padding_mask=~real)
    assert (found - expected)[real].abs().max() < 1e-6


@pytest.mark.parametrize("offset", [0, 2])
def test_padding_changes_nothing_and_by_default_there_is_none(offset):
    model = shaken(Encoder(dataclasses.replace(SMALL, position_offset=offset))).eval()
    ids, lengths = torch.randint(30, (4, 9)), [9, 5, 2, 1]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    alone = torch.cat([model(ids[i : i + 1, :n]) for i, n in enumerate(lengths)])
    assert (model(ids, mask) - alone).abs().max() < 1e-6
    from_first = Encoder(dataclasses.replace(SMALL, max_positions=20 - offset)).eval()  # without the rows before
    from_first.load_state_dict(model.state_dict() | {"positions.weight": model.positions.weight[offset:]})
    assert torch.equal(model(ids), from_first(ids))
    assert torch.equal(model(ids), model(ids, torch.ones_like(ids), torch.zeros_like(ids)))
    assert not torch.allclose(model(ids), model(ids, token_type_ids=torch.ones_like(ids)))


@pytest.mark.parametrize("name, vocab_size, count", [
    ("micro", 1000, 151_298), ("tiny", 30522, 4_386_178), ("base", 30522, 109_483_778), ("roberta", 50265, 124_647_170),
    ("distilbert", 30522, 66_955_010), ("tinybert", 30522, 14_350_874),
    ("resnet8", None, 83_892), ("resnet20", None, 278_324), ("resnet56", None, 861_620),
    ("resnet110", None, 1_736_564), ("resnet8x4", None, 1_233_540), ("resnet32x4", None, 7_433_860),
])  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, vocab_size, count):
    with torch.device("meta"):
        network = Encoder.from_preset(name, vocab_size) if vocab_size else resnet(name)
        if vocab_size:
            assert network(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_resnet_equals_its_formula_written_with_functions():
    """y = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), with batch statistics, from the weights alone."""
    model = shaken(ResNet(ResNetConfig(14, (3, 3, 4, 5), 6))).double()  # three stages of two blocks
    weights, images = model.state_dict(), torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def convolved(x, name, stride=1):
        weight = weights[f"{name}.0.weight"]
        x = nn.functional.conv2d(x, weight, None, stride, padding=weight.shape[-1] // 2)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (weights[f"{name}.1.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = convolved(images, "stem").relu()
    for block, stride in enumerate((1, 1, 2, 1, 2, 1)):
        y = convolved(convolved(x, f"blocks.{block}.first", stride).relu(), f"blocks.{block}.second")
        x = (y + (convolved(x, f"blocks.{block}.shortcut", stride) if stride > 1 else x)).relu()
    expected = x.mean((2, 3)) @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make, expected", [
    (lambda: resnet("resnet18"), "resnet8"), (lambda: Encoder.from_preset("enormous"), "tiny"),
    (lambda: Encoder(EncoderConfig(hidden=10, heads=4)), "divisible"),
    (lambda: Encoder(SMALL)(torch.zeros(1, 21, dtype=torch.long)), "at most 20"),
    (lambda: models.Model(build(SMALL, vocab_size=len(WORDS) - 1), tokenizer()), "19 words .* for 18 rows"),
    (lambda: models.Model(Encoder(SMALL), tokenizer(late=40)), "41 words .* for 30 rows"),  # its highest number counts
    (lambda: models.Model(Encoder(SMALL)), "only for sentences"),
    (lambda: models.Model(resnet("resnet8"), tokenizer()), "only for sentences"),
    (lambda: models.Model(Encoder(SMALL), tokenizer(), columns=()), "reads pictures"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, expected):
    with pytest.raises(ValueError, match=expected):
        make()


def test_a_fresh_encoder_begins_as_bert_does():
    """Biases 0, LayerNorms 1, all else normal with the deviation 0.02."""
    for name, theta in Encoder.from_preset("tiny", 500).named_parameters():
        if name.endswith("bias"):
            assert (theta == 0).all(), name
        elif "norm" in name:
            assert (theta == 1).all(), name
        else:
            assert theta.std().item() == pytest.approx(0.02, rel=0.2) and abs(theta.mean()) < 0.003, name


def test_dropout_acts_in_train_mode_alone():
    model, ids = build(SMALL, dropout=0.4), torch.randint(30, (2, 6))
    assert model.config == dataclasses.replace(SMALL, dropout=0.4) and not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
    assert build(RESNETS["resnet8"], dropout=0.4).config == RESNETS["resnet8"]  # it has none


def test_layers_that_are_asked_for_show_their_cls_states():
    model = shaken(Encoder(SMALL)).eval()
    logits, seen = model(IDS), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output[:, 0]))
    again, states = model(IDS, layers=(2, 1))
    assert torch.equal(again, logits) and torch.equal(states, torch.stack([seen[1], seen[0]], dim=1))


def test_kept_layers_are_those_of_the_network(tmp_path):
    model = shaken(Encoder(dataclasses.replace(SMALL, layers=4))).eval()
    layers = [*model.blocks]
    model.keep_layers([0, 2, 3])
    assert [*model.blocks] == [layers[0], layers[2], layers[3]] and model.config == dataclasses.replace(SMALL, layers=3)
    model_of(model).save(tmp_path / "kept.pt")
    assert torch.equal(models.load(tmp_path / "kept.pt").network(IDS), model(IDS))


# ---- Models that read

WORDS = "[PAD] [UNK] [CLS] [SEP] the plot cast film is was not witty dull fun and but , ##s ##ed".split()
TEXTS = ["the plot is witty", "dull", "", "the cast is not dull but the films was fun , and the plot", "the film bored"]
PAIRS = [("the plot", "is witty"), ("dull", ""), ("", "the cast is not dull"), ("the film and the plot", "was fun")]


def tokenizer(**more):
    """A tokeniser of WORDS, and of more words by their numbers."""
    words = {word: n for n, word in enumerate(WORDS)} | more
    return Tokenizer.from_str(BertWordPieceTokenizer(words).to_str())


def model_of(network=None, labels=("bad", "good", "so"), columns=("sentence",)):
    """A model of it, or of a small encoder, in eval mode."""
    network = network or shaken(Encoder(SMALL))
    labels = None if labels is None else list(labels)
    if isinstance(network, ResNet):
        return models.Model(network, None, labels, ()).eval()
    return models.Model(network, tokenizer(), labels, columns).eval()


def model_and_examples(kind):
    """A model of one of these kinds, with a few examples that it reads."""
    if kind == "pictures":
        return model_of(shaken(ResNet(ResNetConfig(8, (8, 8, 9, 10), 3)))), pictures()
    if kind == "pairs":
        return model_of(columns=("one", "other")), examples_of(PAIRS)
    if kind == "scores":
        return model_of(shaken(build(SMALL, num_labels=1)), labels=()), examples_of(TEXTS)
    return model_of(labels=None if kind == "no head" else ("bad", "good", "so")), examples_of(TEXTS)


def examples_of(texts):
    return np.fromiter(texts, object)


def pictures(n=5):
    return np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], PAIRS, PAIRS[1:3]], ids=["sentences", "one", "pairs", "two pairs"])
def test_it_reads_what_the_tokenizers_library_gives(texts):
    """Ids, types and mask, padded to the longest of the batch; the lengths."""
    twin, model = tokenizer(), model_of()
    twin.enable_padding()
    expected, found = twin.encode_batch(texts), model.inputs(examples_of(texts))
    assert found["input_ids"].tolist() == [one.ids for one in expected]
    assert found["token_type_ids"].tolist() == [one.type_ids for one in expected]
    assert found["attention_mask"].int().tolist() == [one.attention_mask for one in expected]
    assert model.lengths(examples_of(texts)).tolist() == [sum(one.attention_mask) for one in expected]
    assert not any(tensor.is_floating_point() for tensor in found.values())


@pytest.mark.parametrize("positions, offset, longest", [(512, 0, 128), (20, 2, 18)])
def test_what_is_longer_is_cut_to_what_the_network_reads(positions, offset, longest):
    config = dataclasses.replace(SMALL, max_positions=positions, position_offset=offset)
    model, twin = model_of(Encoder(config)), tokenizer()
    twin.enable_truncation(longest)
    twin.enable_padding()
    texts = ["the plot is witty , " * 40, "fun", ("the plot " * 70, "dull " * 90), ("fun", "dull " * 200)]
    expected = [one.ids for one in twin.encode_batch(texts)]
    assert model.inputs(examples_of(texts))["input_ids"].tolist() == expected and len(expected[0]) == longest
    assert model.lengths(examples_of(texts)).tolist() == [longest, 3, longest, longest]
    assert model.logits(examples_of(texts)).shape == (4, 3)


def test_of_many_texts_it_keeps_few_and_is_right_of_all(monkeypatch):
    expected = model_of().inputs(examples_of(TEXTS))
    monkeypatch.setattr(models, "CACHED", 3)
    model = model_of()
    for _ in range(2):
        found = model.inputs(examples_of(TEXTS))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert model.encode.cache_info().currsize == 3


def test_a_model_that_nobody_holds_is_freed_at_once():
    """A run builds networks for every stage; those of the stages before must not stay."""
    model = model_of()
    model.logits(examples_of(TEXTS))
    seen = weakref.ref(model.network)
    gc.disable()
    try:
        del model
        assert seen() is None
    finally:
        gc.enable()


def test_pictures_are_normalised_and_otherwise_left_alone():
    model, images = model_and_examples("pictures")
    before, found = images.copy(), model.inputs(images)
    mean, deviation = (np.array(part).reshape(3, 1, 1) for part in ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)))
    np.testing.assert_allclose(found["images"].numpy(), (before / 255 - mean) / deviation, atol=1e-6)
    assert {*found} == {"images"} and found["images"].dtype == torch.float32 and (images == before).all()
    assert model.lengths(images).tolist() == [1] * 5


def test_it_returns_what_the_network_says_of_its_inputs():
    model, texts = model_and_examples("sentences")
    inputs, of_logits = model.inputs(texts), model.logits(texts)
    assert torch.equal(model(texts), model.network(**inputs)) and torch.equal(model(examples=texts), model(texts))
    model.layers = (2, 1)
    for found, expected in zip(model(texts), model.network(**inputs, layers=(2, 1)), strict=True):
        assert torch.equal(found, expected)
    assert np.array_equal(model.logits(texts), of_logits)


def test_products_in_half_precision():
    """Close to float32's, not the same; logits in float32 for whoever scores them; not of the model beside it."""
    model, texts = model_of(), examples_of(TEXTS)
    exact = model.logits(texts)
    model.precision = "bf16"
    found = model.logits(texts)
    assert model(texts).dtype == torch.bfloat16 and found.dtype == np.float32
    assert (found != exact).any() and np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    assert model_of(model.network)(texts).dtype == torch.float32


@pytest.mark.parametrize("kind", ["sentences", "pictures"])
def test_logits_are_in_the_examples_order_whatever_the_batches(kind):
    """700 examples make three batches, by length; each must have the logits that it has alone."""
    rng = np.random.default_rng(1)
    model, _ = model_and_examples(kind)
    texts = [" ".join(rng.choice(WORDS[4:], rng.integers(0, 17))) for _ in range(700)]
    examples = pictures(700) if kind == "pictures" else examples_of(texts)
    model.train()
    found = model.logits(examples)
    assert found.shape == (700, 3) and found.dtype == np.float32 and model.training and model.network.training
    model.eval()
    some, shuffled = rng.permutation(700)[:40], rng.permutation(700)
    with torch.no_grad():
        alone = torch.cat([model(examples[n : n + 1]) for n in some]).numpy()
    np.testing.assert_allclose(found[some], alone, atol=1e-5)
    np.testing.assert_allclose(model.logits(examples[shuffled]), found[shuffled], atol=1e-5)
    assert not model.training and len({*np.round(found[:, 0], 5).tolist()}) > 300  # or any order would do


@pytest.mark.parametrize("kind", ["sentences", "pairs", "pictures"])
def test_predictions_are_the_softmax_of_the_logits(kind):
    model, examples = model_and_examples(kind)
    found, logits = model.predict(list(examples)), torch.from_numpy(model.logits(examples))
    assert [label for label, _ in found] == [model.labels[n] for n in logits.argmax(dim=-1)]
    assert [list(by_name) for _, by_name in found] == [["bad", "good", "so"]] * len(examples)
    probabilities = torch.tensor([list(by_name.values()) for _, by_name in found])
    torch.testing.assert_close(probabilities, torch.softmax(logits, dim=-1))
    assert model.predict([]) == []


def test_scores_are_predicted_and_pairs_as_json_has_them():
    scores, texts = model_and_examples("scores")
    assert scores.predict(TEXTS) == [(score, {}) for score in scores.logits(texts)[:, 0].tolist()]
    pairs, _ = model_and_examples("pairs")
    assert pairs.predict(PAIRS) == pairs.predict([list(pair) for pair in PAIRS])
    assert pairs.predict(PAIRS[:1]) != pairs.predict([PAIRS[0][::-1]])  # which of the two comes first matters


@pytest.mark.parametrize("kind, wrong", [
    ("sentences", "fun"), ("sentences", [3]), ("sentences", [("one", "two")]), ("sentences", ["fun", "\udcff"]),
    ("sentences", [pictures()[0]]), ("no head", ["fun"]),
    ("pairs", ["one"]), ("pairs", [("one", "two", "three")]), ("pairs", [("one", 2)]), ("pairs", [("one", "\ud800")]),
    ("pictures", ["fun"]), ("pictures", [pictures()]), ("pictures", [pictures()[0] / 255]),
    ("pictures", [pictures()[0].transpose(1, 2, 0)]),
])  # fmt: skip
def test_what_is_no_example_of_its_kind_is_refused(kind, wrong):
    model, _ = model_and_examples(kind)
    with pytest.raises(ValueError, match="expected") as error:
        model.predict(wrong)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


# ---- Saved models


@pytest.mark.parametrize("kind", ["sentences", "pairs", "pictures", "scores", "no head"])
def test_what_is_saved_is_what_is_read(kind, tmp_path):
    """From a file, or the directory that holds it."""
    model, examples = model_and_examples(kind)
    model.title = "student of a test"
    model.train()(examples)  # a norm's running statistics move, too
    model.save(tmp_path / "new" / "metadistil.pt")
    logits = model.logits(examples)
    assert model.training
    for path in (tmp_path / "new" / "metadistil.pt", str(tmp_path / "new")):
        twin = models.load(path)
        assert not twin.training and not twin.network.training and twin.network.config == model.network.config
        assert (twin.title, twin.labels, twin.columns) == ("student of a test", model.labels, model.columns)
        assert np.array_equal(twin.logits(examples), logits)
    twin.save(tmp_path / "again.pt")
    assert np.array_equal(models.load(tmp_path / "again.pt").logits(examples), logits)


def test_a_flipped_bit_is_noticed(tmp_path):
    """Wherever it is: the file is refused, or read as it was saved (a few bits, as of dates, mean nothing)."""
    (model, texts), path, rng = model_and_examples("sentences"), tmp_path / "one.pt", np.random.default_rng(0)
    model.save(path)
    whole, expected = path.read_bytes(), model.logits(texts)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            twin = models.load(path)
        except CheckpointError as error:
            refused += "\n" not in str(error)
        else:
            assert np.array_equal(twin.logits(texts), expected) and twin.labels == model.labels
    assert refused > 40


@pytest.mark.parametrize("content", [{"format": models.FORMAT, "numbers": torch.arange(5)}, "some\ntext, in UTF-8: é"])
def test_a_file_is_never_half_written(content, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    models.write_whole(path, "the old one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            models.write_whole(path, content)
    assert path.read_text() == "the old one" and [*tmp_path.iterdir()] == [path]
    (tmp_path / f"file.{os.getpid()}.part").write_text("what a killed process left, longer than the content" * 1000)
    models.write_whole(path, content)
    assert [*tmp_path.iterdir()] == [path]
    if isinstance(content, str):
        assert path.read_text(encoding="utf-8") == content
    else:
        assert torch.equal(models.read_whole(path)["numbers"], content["numbers"])


class Bomb:
    """Unpickled with code execution it would make a file."""

    def __reduce__(self):
        return open, ("owned", "w")


@pytest.mark.parametrize("change, message", [
    ({"format": None}, f"format 1, expected {models.FORMAT}: make it again"),  # by an older version of this code
    ({"kind": "perceptron"}, "perceptron"), ({"config": None}, "config"), ({"config": {"width": 3}}, "width"),
    ({"config": dataclasses.asdict(SMALL) | {"hidden": 20}}, "size mismatch"),
    ({"weights": Bomb()}, "expected a saved network"), ({"tokenizer": "{}"}, "expected a saved network"),
    ({"tokenizer": None}, "tokenizer"), ({"labels": None}, "labels"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_told_of_in_one_line(change, message, tmp_path, monkeypatch):
    """Without the entry, or with another one. No code of the file is run."""
    monkeypatch.chdir(tmp_path)
    model_of().save("network.pt")
    saved = torch.load("network.pt", weights_only=True) | change
    torch.save({name: value for name, value in saved.items() if name not in change or value is not None}, "network.pt")
    with pytest.raises(CheckpointError) as error:
        models.load("network.pt")
    assert str(error.value).startswith("network.pt: expected a saved network") and message in str(error.value)
    assert "\n" not in str(error.value) and os.listdir() == ["network.pt"]


def test_what_is_not_there_or_something_else_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    model_of().save(tmp_path / "half.pt")
    whole = (tmp_path / "half.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("hello")
    for name in ("list.pt", "half.pt", "text.pt", "nothing.pt", "", "bert-base-uncased"):
        with pytest.raises(CheckpointError, match=f"{tmp_path / name}: expected a saved network"):
            models.load(tmp_path / name)
