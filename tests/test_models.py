"""The encoder against torch's own layer and the published sizes."""

import pytest
import torch
from conftest import shaken

from models import PRESETS, Block, Encoder, EncoderConfig

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


def test_what_cannot_be_is_refused():
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
