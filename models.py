"""The networks: a BERT-style encoder and the CIFAR ResNets, written out; one registry of them; saved networks.

Shapes: B sentences, T tokens, D the hidden width, h heads of width d = D / h, K classes; C channels, H by W pixels.
A model is called as `model(input_ids=..., attention_mask=..., token_type_ids=...)` or `model(images=...)` -> (B, K).
"""

import contextlib
import itertools
import math
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; the defaults are bert-base-uncased's (Devlin et al. 2019)."""

    vocab_size: int = 30522
    hidden: int = 768  # D
    layers: int = 12
    heads: int = 12  # h
    intermediate: int = 3072  # width of the feed-forward layer
    max_positions: int = 512
    position_offset: int = 0  # RoBERTa counts positions from 2
    token_types: int = 2  # 0: no segment embedding
    pooler: str = "tanh"  # activation of the pooler: "tanh", or DistilBERT's "relu"
    num_labels: int = 2  # K
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12

    @property
    def max_tokens(self) -> int:
        """The longest sentence that the network reads."""
        return self.max_positions - self.position_offset


SIZES = {  # layers, D
    "micro": (1, 64),  # ours, for the built-in task
    "tiny": (2, 128),  # the others: Turc et al. 2019, Devlin et al. 2019
    "mini": (4, 256),
    "base": (12, 768),
    "large": (24, 1024),
}
ENCODERS = {
    name: EncoderConfig(layers=layers, hidden=D, heads=D // 64, intermediate=4 * D)
    for name, (layers, D) in SIZES.items()
}
ENCODERS["distilbert"] = EncoderConfig(layers=6, token_types=0, pooler="relu")
ENCODERS["tinybert"] = EncoderConfig(layers=4, hidden=312, intermediate=1200)
ENCODERS["roberta"] = EncoderConfig(max_positions=514, position_offset=2, token_types=1, layer_norm_eps=1e-5)


class Block(nn.Module):
    """One post-norm transformer layer: attention and feed-forward, each added, then normed."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.hidden
        self.heads = config.heads
        if D % self.heads:
            raise ValueError("expected a hidden width divisible by the number of heads")
        self.query = nn.Linear(D, D)
        self.key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)
        self.output = nn.Linear(D, D)
        self.feed_in = nn.Linear(D, config.intermediate)
        self.feed_out = nn.Linear(config.intermediate, D)
        self.attention_norm = nn.LayerNorm(D, config.layer_norm_eps)
        self.feed_norm = nn.LayerNorm(D, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def attention(self, states, mask):
        """Multi-head self-attention, softmax(QKᵀ/√d)V: states (B, T, D), mask (B, 1, 1, T) -> (B, T, D). Written
        out, for fused kernels have no double backward, which the second-order meta-gradient needs."""
        B, T, D = states.shape
        d = D // self.heads

        def by_head(projected):  # (B, T, D) -> (B, h, T, d)
            return projected.view(B, T, self.heads, d).transpose(1, 2)

        query = by_head(self.query(states))
        key = by_head(self.key(states))
        value = by_head(self.value(states))
        scores = query @ key.transpose(2, 3) / math.sqrt(d)  # (B, h, T, T)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # nobody looks at padding
        mixed = self.dropout(scores.softmax(dim=-1)) @ value  # (B, h, T, d)
        return self.output(mixed.transpose(1, 2).reshape(B, T, D))

    def forward(self, states, mask):
        """states (B, T, D), mask (B, 1, 1, T) true at real tokens -> (B, T, D)."""
        states = self.attention_norm(states + self.dropout(self.attention(states, mask)))
        fed = self.feed_out(F.gelu(self.feed_in(states)))  # (B, T, intermediate) in between
        return self.feed_norm(states + self.dropout(fed))


class Encoder(nn.Module):
    """A BERT-style sentence classifier (Devlin et al. 2019, section 3; post-norm, GELU)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.hidden)
        self.positions = nn.Embedding(config.max_positions, config.hidden)
        self.types = nn.Embedding(config.token_types, config.hidden) if config.token_types else None
        self.norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.pooler = nn.Linear(config.hidden, config.hidden)
        self.classifier = nn.Linear(config.hidden, config.num_labels)
        for name, theta in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(theta)
            elif "norm" not in name:
                nn.init.normal_(theta, std=0.02)  # BERT's

    @classmethod
    def from_preset(cls, name: str, vocab_size=30522, num_labels=2, dropout=0.1) -> "Encoder":
        """A preset of ENCODERS with fresh weights. Raises ValueError on an unknown name."""
        return build(named(name, ENCODERS), vocab_size=vocab_size, num_labels=num_labels, dropout=dropout)

    def keep_layers(self, layers: list[int]):
        """Keep only these layers, counted from 0. Raises IndexError."""
        self.blocks = nn.ModuleList(self.blocks[layer] for layer in layers)
        self.config = replace(self.config, layers=len(layers))

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, layers=()):
        """input_ids (B, T), attention_mask (B, T), 1 at real tokens, token_type_ids (B, T) -> logits (B, K).
        Without a mask all tokens are real; without types all are of type 0. With n `layers`, counted from 1, the result
        is (logits, their [CLS] states (B, n, D)). Raises ValueError on a sentence with too many tokens."""
        T = input_ids.shape[1]
        offset = self.config.position_offset
        if T > self.config.max_tokens:
            raise ValueError(f"expected at most {self.config.max_tokens} tokens, not {T}")
        states = self.words(input_ids) + self.positions.weight[offset : offset + T]  # (B, T, D)
        if self.types is not None:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            states = states + self.types(types)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        outputs = [self.dropout(self.norm(states))]  # (B, T, D): of the embeddings, then of each layer
        for block in self.blocks:
            outputs.append(block(outputs[-1], mask))
        first_token = [states[:, 0] for states in outputs]  # [CLS], (B, D) each
        activation = getattr(torch, self.config.pooler)
        pooled = activation(self.pooler(first_token[-1]))  # (B, D)
        logits = self.classifier(self.dropout(pooled))
        if not layers:
            return logits
        return logits, torch.stack([first_token[layer] for layer in layers], dim=1)


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a CIFAR ResNet (He et al. 2016, section 4.2): 6n + 2 layers, in three stages of n blocks."""

    depth: int
    widths: tuple[int, ...] = (16, 16, 32, 64)  # channels of the stem and of the stages
    num_labels: int = 100  # K


RESNETS = {f"resnet{depth}": ResNetConfig(depth) for depth in (8, 14, 20, 32, 44, 56, 110)}
RESNETS |= {f"resnet{depth}x4": ResNetConfig(depth, (32, 64, 128, 256)) for depth in (8, 32)}


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm in the type of its weights, whatever autocast hands it: its forward-mode derivative has no
    bfloat16."""

    def forward(self, states):
        """(B, C, H, W) -> the same."""
        return super().forward(states.to(self.weight.dtype))


def _convolution(C, C_out, size, stride=1):
    convolution = nn.Conv2d(C, C_out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, BatchNorm(C_out))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, added to the input, which a 1×1 convolution brings to their shape where it differs."""

    def __init__(self, C, C_out, stride):
        super().__init__()
        self.first = _convolution(C, C_out, 3, stride)
        self.second = _convolution(C_out, C_out, 3)
        same_shape = C == C_out and stride == 1
        self.shortcut = nn.Identity() if same_shape else _convolution(C, C_out, 1, stride)

    def forward(self, states):
        """(B, C, H, W) -> (B, C_out, H / stride, W / stride)."""
        changed = self.second(F.relu(self.first(states)))
        return F.relu(changed + self.shortcut(states))


class ResNet(nn.Module):
    """A CIFAR ResNet: a stem, three stages of residual blocks, each later one of half the resolution, a classifier."""

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config = config
        self.stem = _convolution(3, config.widths[0], 3)
        self.blocks = nn.Sequential()
        for C, C_out in itertools.pairwise(config.widths):
            self.blocks.append(ResidualBlock(C, C_out, stride=2 if self.blocks else 1))
            for _ in range((config.depth - 2) // 6 - 1):
                self.blocks.append(ResidualBlock(C_out, C_out, stride=1))
        self.classifier = nn.Linear(config.widths[-1], config.num_labels)

    def forward(self, images):
        """(B, 3, H, W) -> logits (B, K)."""
        states = self.blocks(F.relu(self.stem(images)))  # (B, C, H / 4, W / 4)
        return self.classifier(states.mean(dim=(2, 3)))


def resnet(name: str, num_classes: int = 100) -> ResNet:
    """A ResNet of RESNETS with fresh weights. Raises ValueError on an unknown name."""
    return build(named(name, RESNETS), num_labels=num_classes)


def named(name, presets):
    """The preset of that name. Raises ValueError."""
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(presets)}")
    return presets[name]


class CheckpointError(Exception):
    """A saved network cannot be used; the message is one line: where, and what was expected."""


@contextlib.contextmanager
def expecting(what: str):
    """Turn any exception of the block, for torch raises about anything, into a CheckpointError of one line."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from None


class Kind(NamedTuple):
    """A kind of network, for KINDS. What it must offer:

    - The class is built from its configuration alone, and keeps it as `config`.
    - The configuration is a frozen dataclass with `num_labels`; of networks that read sentences also with `vocab_size`
      and `max_tokens`, the longest sentence. A field `dropout` is set by the run.
    - Called with the inputs of one batch by name, (B, ...), it returns logits (B, num_labels).
    - Called with `layers` too, an encoder returns (logits, states of these layers), for methods that ask for states.
    - Its last layer, which other labels replace, is `classifier`.
    """

    network: type
    config: type
    reads: str  # "sentences": input_ids, attention_mask, token_type_ids; or "pictures": images


# To add a network: one entry here, and its presets in PRESETS.
KINDS = {
    "encoder": Kind(Encoder, EncoderConfig, "sentences"),
    "resnet": Kind(ResNet, ResNetConfig, "pictures"),
}
PRESETS = ENCODERS | RESNETS
EXPECTED = f"expected a saved network (.pt), a directory with metadistil.pt, or one of {', '.join(PRESETS)}"
FORMAT = 2  # of saved networks


def kind_of(config) -> str:
    """The name in KINDS of a configuration's kind. Raises ValueError."""
    for name, kind in KINDS.items():
        if type(config) is kind.config:
            return name
    raise ValueError(f"expected a configuration of {', '.join(KINDS)}, found a {type(config).__name__}")


def build(config, **changes) -> nn.Module:
    """A network with fresh weights. Of `changes` those are made that its configuration has a field for."""
    changes = {name: value for name, value in changes.items() if hasattr(config, name)}
    return KINDS[kind_of(config)].network(replace(config, **changes))


def to_save(network: nn.Module, tokenizer=None, labels=None) -> dict:
    """What a saved file holds: the network, its tokeniser as JSON, the names of its labels (None: no trained head)."""
    return {
        "format": FORMAT,
        "kind": kind_of(network.config),
        "config": asdict(network.config),
        "weights": network.state_dict(),
        "tokenizer": tokenizer,
        "labels": labels,
    }


def load_whole(path) -> dict:
    """The dict in a file of torch.save, its check sums right, its format ours. Raises any exception."""
    if zipfile.ZipFile(path).testzip():
        raise ValueError("a wrong check sum: make it again")
    saved = torch.load(path, "cpu", weights_only=True)
    if saved.get("format") != FORMAT:
        raise ValueError(f"format {saved.get('format', 1)}, expected {FORMAT}: make it again")
    return saved


def saved_file(path) -> Path:
    """The file of a saved network: the path, or in a directory its metadistil.pt."""
    return Path(path, "metadistil.pt") if Path(path).is_dir() else Path(path)


def read_saved(path) -> tuple[nn.Module, dict]:
    """The network of a saved file, and what else the file holds. Raises CheckpointError."""
    with expecting(f"{path}: {EXPECTED}"):
        saved = load_whole(saved_file(path))
        if "labels" not in saved:
            raise ValueError("no labels in it")
        network = build(KINDS[saved["kind"]].config(**saved["config"]))
        network.load_state_dict(saved.pop("weights"))
        return network, saved
