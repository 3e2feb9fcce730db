"""The encoder against torch's own layer and the published sizes."""

import dataclasses
import json
import warnings

import pytest
import torch
from conftest import save_checkpoint, shaken

from models import PRESETS, RESNETS, Block, CheckpointError, Encoder, EncoderConfig, ResNet, ResNetConfig, resnet

SMALL = EncoderConfig(vocab_size=30, hidden=16, layers=2, heads=4, intermediate=40, max_positions=20, num_labels=3)


def test_block_equals_torchs_transformer_layer():
    block = shaken(Block(SMALL)).eval().double()
    twin = torch.nn.TransformerEncoderLayer(
        16, 4, 40, activation="gelu", norm_first=False, batch_first=True, layer_norm_eps=SMALL.layer_norm_eps
    ).eval().double()  # fmt: skip
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
def test_more_padding_changes_nothing(offset):
    model = shaken(Encoder(EncoderConfig(**(vars(SMALL) | {"position_offset": offset})))).eval()
    ids, lengths = torch.randint(30, (4, 9)), torch.tensor([[9], [5], [2], [1]])
    mask = (torch.arange(9) < lengths).long()
    longer = [torch.nn.functional.pad(tensor, (0, 6), value=fill) for tensor, fill in ((ids, 7), (mask, 0))]
    assert (model(ids, mask) - model(*longer)).abs().max() < 1e-6
    alone = torch.cat([model(ids[i : i + 1, :n]) for i, n in enumerate(lengths.flatten().tolist())])
    assert (model(ids, mask) - alone).abs().max() < 1e-6


def test_defaults_are_all_real_and_type_zero():
    model, ids = shaken(Encoder(SMALL)).eval(), torch.randint(30, (2, 5))
    assert torch.equal(model(ids), model(ids, torch.ones_like(ids), torch.zeros_like(ids)))
    assert not torch.allclose(model(ids), model(ids, token_type_ids=torch.ones_like(ids)))


@pytest.mark.parametrize(
    "preset, vocab_size, count",
    [
        ("base", 30522, 109_483_778),
        ("roberta", 50265, 124_647_170),
        ("distilbert", 30522, 66_955_010),
        ("tinybert", 30522, 14_350_874),
    ],
)
def test_parameter_counts_are_the_published_ones(preset, vocab_size, count):
    with torch.device("meta"):
        model = Encoder.from_preset(preset, vocab_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_built(preset):
    with torch.device("meta"):
        model = Encoder.from_preset(preset, vocab_size=100, num_labels=5)
        assert model(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 5)


@pytest.mark.parametrize(
    "name, count",
    [("resnet8", 83_892), ("resnet20", 278_324), ("resnet56", 861_620), ("resnet110", 1_736_564),
     ("resnet8x4", 1_233_540), ("resnet32x4", 7_433_860)],
)  # fmt: skip
def test_resnets_have_the_published_parameter_counts(name, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in resnet(name).parameters()) == count


@pytest.mark.parametrize("name", RESNETS)
def test_every_resnet_has_its_depth_and_halves_the_picture_twice(name):
    with torch.device("meta"):
        model, seen = resnet(name, num_classes=7), []
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    depth, stem = int(name.removeprefix("resnet").removesuffix("x4")), 32 if name.endswith("x4") else 16
    assert len(seen) == depth - 1 and seen[0] == (stem, 32, 32)  # the classifier is the last of the layers
    widths = [64, 128, 256] if name.endswith("x4") else [16, 32, 64]
    stages = [(width, 32 >> n, 32 >> n) for n, width in enumerate(widths) for _ in range((depth - 2) // 3)]
    assert seen[1:] == stages


def test_resnet_equals_its_formula_written_with_functions():
    """y = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), with batch statistics, from the weights alone."""
    model = shaken(ResNet(ResNetConfig(8, (3, 3, 4, 5), 6))).double()
    weights, images = model.state_dict(), torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def convolved(x, name, stride=1):
        x = torch.nn.functional.conv2d(x, weights[f"{name}.0.weight"], None, stride, weights[f"{name}.0.weight"].shape[-1] // 2)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (weights[f"{name}.1.{part}"][:, None, None] for part in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = convolved(images, "stem").relu()
    for block, stride in enumerate((1, 2, 2)):
        y = convolved(convolved(x, f"blocks.{block}.first", stride).relu(), f"blocks.{block}.second")
        x = (y + (convolved(x, f"blocks.{block}.shortcut", stride) if block else x)).relu()
    expected = x.mean((2, 3)) @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-12)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="resnet8"):
        resnet("resnet18")
    with pytest.raises(ValueError, match="at most 20"):
        Encoder(SMALL)(torch.zeros(1, 21, dtype=torch.long))
    with pytest.raises(ValueError, match="tiny"):
        Encoder.from_preset("enormous")
    with pytest.raises(ValueError, match="divisible"):
        Encoder(EncoderConfig(hidden=10, heads=4))


def test_dropout_acts_in_train_mode_alone():
    model, ids = Encoder.from_preset("tiny", 50), torch.randint(50, (2, 6))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


# ---------------------------------------------------------------- published checkpoints


def published_model(family, directory, file_format="safetensors", num_labels=2, head=True):
    """A small random model of the family, saved by the reference implementation; it, in eval mode."""
    transformers = pytest.importorskip("transformers")
    names = {"bert": "Bert", "tinybert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
    shape = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"intermediate_size": 50, "max_position_embeddings": 40}
    if family == "distilbert":
        shape = dict(zip(("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings"), shape.values()))
    if family == "roberta":
        shape |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    config = getattr(transformers, names[family] + "Config")(**shape, num_labels=num_labels)
    kind = "ForSequenceClassification" if head else "ForMaskedLM"
    model = shaken(getattr(transformers, names[family] + kind)(config)).eval()
    if file_format == "safetensors":
        model.save_pretrained(directory)
    else:  # the older format: the package itself no longer writes it
        config.save_pretrained(directory)
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
@pytest.mark.parametrize("family", ["bert", "tinybert", "roberta", "distilbert"])
def test_logits_equal_the_reference_implementations(family, file_format, tmp_path):
    reference = published_model(family, tmp_path, file_format, num_labels=3)
    model = Encoder.from_pretrained(tmp_path, num_labels=3).eval()
    ids, lengths = torch.randint(5, 60, (6, 17)), torch.tensor([[17], [9], [2], [1], [12], [17]])
    mask = (torch.arange(17) < lengths).long()
    ids = torch.where(mask.bool(), ids, 1 if family == "roberta" else 0)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family in ("bert", "tinybert"):
        inputs["token_type_ids"] = (torch.arange(17) >= lengths // 2).long()
    with torch.no_grad():
        assert (model(**inputs) - reference(**inputs).logits).abs().max() < 1e-5


def small_checkpoint(tmp_path):
    """A BERT of three layers with a head for three classes, in the published format, and what it was made from."""
    model = shaken(Encoder(dataclasses.replace(SMALL, layers=3)))
    return save_checkpoint(tmp_path / "checkpoint", model), model.eval()


def write_safetensors(path, tensors):
    """The format by its specification; each tensor in its own type."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    header, buffers, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + len(raw)]}
        buffers.append(raw)
        end += len(raw)
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(buffers))


IDS = torch.tensor([[3, 9, 4, 28, 7], [5, 1, 2, 0, 0]])


def test_a_checkpoint_brings_its_head_when_the_labels_agree(tmp_path):
    directory, model = small_checkpoint(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(Encoder.from_pretrained(directory, num_labels=3).eval()(IDS), model(IDS))
    with pytest.warns(UserWarning) as said:
        other = Encoder.from_pretrained(directory, num_labels=2)
    assert [str(one.message) for one in said] == [
        f"{directory}: fresh weights: classifier.weight, classifier.bias; not used: none"
    ]
    assert other(IDS).shape == (2, 2) and torch.equal(other.pooler.weight, model.pooler.weight)


def test_kept_layers_are_those_of_the_checkpoint(tmp_path):
    directory, model = small_checkpoint(tmp_path)
    student = Encoder.from_pretrained(directory, num_labels=3, layers=(0, 2)).eval()
    assert len(student.blocks) == student.config.layers == 2
    del model.blocks[1]
    assert torch.equal(student(IDS), model(IDS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_old_names_and_every_type_of_number_are_read(tmp_path, dtype):
    directory, model = small_checkpoint(tmp_path)
    tensors = torch.load(directory / "pytorch_model.bin", weights_only=True)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.to(dtype)
           for name, tensor in tensors.items()}  # fmt: skip
    (directory / "pytorch_model.bin").unlink()
    write_safetensors(directory / "model.safetensors", old | {"bert.embeddings.position_ids": torch.arange(20)})
    with pytest.warns(UserWarning, match="fresh weights: none; not used: embeddings.position_ids$"):
        found = Encoder.from_pretrained(directory, num_labels=3)
    for (name, ours), expected in zip(found.named_parameters(), model.parameters()):
        assert ours.dtype == torch.float32 and torch.equal(ours, expected.to(dtype).float()), name


def test_a_language_models_file_leaves_its_head_behind(tmp_path):
    published_model("roberta", tmp_path, head=False)
    with pytest.warns(UserWarning) as said:
        Encoder.from_pretrained(tmp_path)
    message = str(said[0].message)
    assert "fresh weights: pooler.weight, pooler.bias, classifier.weight, classifier.bias; not used: lm_head" in message
    assert "\n" not in message and len(said) == 1


def test_a_pooler_that_roberta_does_not_use_is_not_taken_for_its_head(tmp_path):
    reference = published_model("roberta", tmp_path, "bin")
    path = tmp_path / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    pooler = {"roberta.pooler.dense.weight": torch.ones(24, 24), "roberta.pooler.dense.bias": torch.ones(24)}
    torch.save(tensors | pooler, path)
    ids = IDS.clamp(min=2)  # to the reference, 1 is padding
    with torch.no_grad():
        assert (Encoder.from_pretrained(tmp_path).eval()(ids) - reference(ids).logits).abs().max() < 1e-5


def test_patient_layers_show_their_cls_states():
    model = shaken(Encoder(SMALL)).eval()
    logits, seen = model(IDS), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output[:, 0]))
    model.patient_layers = (2, 1)
    again, states = model(IDS)
    assert torch.equal(again, logits) and torch.equal(states, torch.stack([seen[1], seen[0]], dim=1))


def broken(tmp_path, name, content):
    directory, _ = small_checkpoint(tmp_path)
    (directory / name).unlink(missing_ok=True)
    if content is not None:
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", None, "or a directory with the config.json of a BERT"),
        ("config.json", b"{", "with gelu: Expecting property name"),
        ("config.json", b"[]", "with gelu: "),
        ("config.json", b'{"model_type": "t5"}', "RoBERTa or DistilBERT with gelu: no heads, hidden"),
        ("pytorch_model.bin", None, "expected the weights that config.json promises"),
        ("pytorch_model.bin", b"nonsense", "expected the weights that config.json promises"),
        ("model.safetensors", b"", "expected the weights that config.json promises"),
        ("model.safetensors", b"\xff" * 64, "expected the weights that config.json promises"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{}", None),
    ],
)
def test_a_broken_checkpoint_is_told_in_one_line(tmp_path, name, content, message):
    directory = broken(tmp_path, name, content)
    if message is None:  # a file without tensors is told of as one
        with pytest.warns(UserWarning, match="fresh weights: words.weight, positions.weight"):
            Encoder.from_pretrained(directory)
        return
    with pytest.raises(CheckpointError) as error:
        Encoder.from_pretrained(directory)
    assert message in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_tensors_of_another_shape_and_layers_that_are_not_there_are_refused(tmp_path):
    directory, _ = small_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="index 3 is out of range"):
        Encoder.from_pretrained(directory, layers=(1, 3))
    config = json.loads((directory / "config.json").read_text()) | {"hidden_size": 20}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="size mismatch for words.weight"):
        Encoder.from_pretrained(directory)


def test_no_code_is_run_from_a_pickle(tmp_path):
    directory, _ = small_checkpoint(tmp_path)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"words.weight": Evil()}, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        Encoder.from_pretrained(directory)
    assert not (tmp_path / "owned").exists()
