"""The networks against torch's own layer, their formulas and the published sizes; what is saved is what is read."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, shaken

import models
from models import (
    RESNETS,
    Block,
    CheckpointError,
    Encoder,
    EncoderConfig,
    ResNet,
    ResNetConfig,
    build,
    resnet,
)

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


@pytest.mark.parametrize("preset", models.PRESETS)
def test_every_preset_can_be_built_and_reads_what_its_kind_says(preset):
    with torch.device("meta"):
        network = build(models.PRESETS[preset], vocab_size=100, num_labels=5, dropout=0.3)
        kind = models.KINDS[models.kind_of(network.config)]
        reads = {"sentences": {"input_ids": torch.zeros(2, 8, dtype=torch.long)}, "pictures": {"images": torch.zeros(2, 3, 32, 32)}}
        assert network(**reads[kind.reads]).shape == (2, 5)
    assert isinstance(network, kind.network) and isinstance(network.config, kind.config)


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


BACKWARD = """
import sys, torch
sys.path.insert(0, {root!r})
import models
model = models.ResNet(models.ResNetConfig(8, ({width}, {width}, {width}, 16), 4))
for _ in range(30):
    model(torch.randn(32, 3, 16, 16)).square().sum().backward()
assert all(theta.grad.isfinite().all() for theta in model.parameters())
"""


@pytest.mark.parametrize("width", [3, *(pytest.param(width, marks=pytest.mark.slow) for width in (4, 5, 7, 8, 12))])
def test_no_width_steps_into_the_fault_of_narrow_convolutions(width):
    """As on a processor with AVX2 alone. In a process of its own: a crash, or an endless loop, is a failure here."""
    narrow = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    code = BACKWARD.format(root=str(ROOT), width=width)
    done = subprocess.run([sys.executable, "-c", code], env=narrow, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-300:]


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


def test_a_fresh_encoder_begins_as_bert_does():
    """Biases 0, LayerNorms 1, all else normal with the deviation 0.02."""
    torch.manual_seed(0)
    for name, theta in Encoder.from_preset("tiny", 500).named_parameters():
        if name.endswith("bias"):
            assert (theta == 0).all(), name
        elif "norm" in name:
            assert (theta == 1).all(), name
        else:
            assert theta.std().item() == pytest.approx(0.02, rel=0.2) and abs(theta.mean()) < 0.003, name


def test_dropout_acts_in_train_mode_alone():
    model, ids = Encoder.from_preset("tiny", 50), torch.randint(50, (2, 6))
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


IDS = torch.tensor([[3, 9, 4, 28, 7], [5, 1, 2, 0, 0]])


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
    assert torch.equal(saved_and_read(model, tmp_path / "kept.pt").eval()(IDS), model(IDS))


# ---------------------------------------------------------------- saved networks


@dataclasses.dataclass(frozen=True)
class BagConfig:
    """A kind of network that models.py does not know."""

    vocab_size: int = 30
    widths: tuple[int, ...] = (8, 6)
    max_tokens: int = 50
    num_labels: int = 2


class Bag(torch.nn.Module):
    """The mean of the words' vectors, a hidden layer, a classifier."""

    def __init__(self, config: BagConfig):
        super().__init__()
        self.config, (D, H) = config, config.widths
        self.words, self.hidden = torch.nn.EmbeddingBag(config.vocab_size, D), torch.nn.Linear(D, H)
        self.classifier = torch.nn.Linear(H, config.num_labels)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        return self.classifier(self.hidden(self.words(input_ids)).tanh())


@pytest.fixture
def bags(monkeypatch):
    monkeypatch.setitem(models.KINDS, "bag", models.Kind(Bag, BagConfig, "sentences"))


SHAPES = {"encoder": SMALL, "resnet": ResNetConfig(8, (8, 8, 9, 10), 3), "bag": BagConfig(num_labels=3)}


def output(network):
    """What a network in eval mode says to some input."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return network.eval()(**({"images": images} if isinstance(network, ResNet) else {"input_ids": IDS}))


def saved_and_read(network, path):
    torch.save(models.to_save(network), path)
    return models.read_saved(path)[0]


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_saved_is_what_is_read(kind, tmp_path, bags):
    """Of every kind, one that the test adds among them; from a file, or the directory that holds it."""
    network = shaken(build(SHAPES[kind]))
    output(network.train())  # a norm's running statistics move, too
    torch.save(models.to_save(network, labels=["a", "b", "c"], tokenizer=None), tmp_path / "metadistil.pt")
    for path in (tmp_path / "metadistil.pt", tmp_path, str(tmp_path)):
        twin, rest = models.read_saved(path)
        assert type(twin) is type(network) and twin.config == network.config and models.kind_of(twin.config) == kind
        assert torch.equal(output(twin), output(network))
        assert rest["labels"] == ["a", "b", "c"] and rest["tokenizer"] is None and "weights" not in rest


def test_changes_are_made_where_the_configuration_has_the_field():
    assert build(SMALL, dropout=0.4).config == dataclasses.replace(SMALL, dropout=0.4)
    assert build(RESNETS["resnet8"], dropout=0.4).config == RESNETS["resnet8"]


class Bomb:
    """Unpickled with code execution it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("change, message", [
    ({"format": None}, f"format 1, expected {models.FORMAT}: make it again"),  # as an older version of this code wrote it
    ({"format": models.FORMAT + 1}, f"format {models.FORMAT + 1}, expected {models.FORMAT}"),
    ({"kind": "perceptron"}, "perceptron"), ({"kind": None}, "kind"), ({"config": None}, "config"), ({"weights": None}, "weights"),
    ({"config": {"width": 3}}, "width"), ({"config": {"hidden": "wide"}}, "str"), ({"config": {"hidden": 20}}, "size mismatch"),
    ({"weights": {"words.weight": torch.zeros(30, 16)}}, "Missing key"), ({"weights": Bomb("owned")}, "expected a saved network"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_told_of_in_one_line(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = models.to_save(Encoder(SMALL)) | change
    if isinstance(change.get("config"), dict):
        saved["config"] = dataclasses.asdict(SMALL) | change["config"]
    torch.save({name: value for name, value in saved.items() if name not in change or value is not None}, "network.pt")
    with pytest.raises(CheckpointError) as error:
        models.read_saved("network.pt")
    assert str(error.value).startswith("network.pt: expected a saved network") and message in str(error.value)
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["network.pt"]  # no code was run


def test_what_is_not_there_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.pt", "bert-base-uncased"):
        with pytest.raises(CheckpointError, match=f"{path}: expected a saved network"):
            models.read_saved(path)
