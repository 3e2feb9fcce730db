"""The networks: a BERT-style encoder and the CIFAR ResNets; one registry of them; models that read raw sentences.

Shapes: B sentences, T tokens, D the hidden width, h heads of width d = D / h, K classes; C channels, H by W pixels.
"""

import contextlib
import copy
import functools
import io
import itertools
import math
import os
import re
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F


def expect(condition, message):
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError(message)


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


ENCODERS = {  # tiny and mini: Turc et al. 2019; micro is ours, for the built-in task
    "micro": EncoderConfig(layers=1, hidden=64, heads=1, intermediate=256),
    "tiny": EncoderConfig(layers=2, hidden=128, heads=2, intermediate=512),
    "mini": EncoderConfig(layers=4, hidden=256, heads=4, intermediate=1024),
    "base": EncoderConfig(),
    "distilbert": EncoderConfig(layers=6, token_types=0, pooler="relu"),
    "tinybert": EncoderConfig(layers=4, hidden=312, intermediate=1200),
    "roberta": EncoderConfig(max_positions=514, position_offset=2, token_types=1, layer_norm_eps=1e-5),
}


class Block(nn.Module):
    """One post-norm transformer layer: attention and feed-forward, each added, then normed."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D = config.hidden
        self.heads = config.heads
        expect(D % self.heads == 0, "expected a hidden width divisible by the number of heads")
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

        def by_head(linear):  # (B, T, D) -> (B, h, T, d)
            return linear(states).unflatten(2, (self.heads, -1)).transpose(1, 2)

        query = by_head(self.query)
        key = by_head(self.key)
        value = by_head(self.value)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])  # (B, h, T, T)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # nobody looks at padding
        mixed = self.dropout(scores.softmax(dim=-1)) @ value  # (B, h, T, d)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def forward(self, states, mask):
        """states (B, T, D), mask (B, 1, 1, T) true at real tokens -> (B, T, D)."""
        states = self.attention_norm(states + self.dropout(self.attention(states, mask)))
        fed = self.feed_out(F.gelu(self.feed_in(states)))  # (B, T, intermediate) in between
        return self.feed_norm(states + self.dropout(fed))


class Encoder(nn.Module):
    """A BERT-style sentence classifier (Devlin et al. 2019, section 3; post-norm, GELU)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config, D = config, config.hidden
        self.words = nn.Embedding(config.vocab_size, D)
        self.positions = nn.Embedding(config.max_positions, D)
        self.types = nn.Embedding(config.token_types, D) if config.token_types else None
        self.norm = nn.LayerNorm(D, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.pooler = nn.Linear(D, D)
        self.classifier = nn.Linear(D, config.num_labels)
        for name, theta in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(theta)
            elif "norm" not in name:
                nn.init.normal_(theta, std=0.02)  # BERT's

    @classmethod
    def from_preset(cls, name: str, vocab_size=30522, num_labels=2, dropout=0.1) -> "Encoder":
        """An encoder with fresh weights, by the name of its preset. Raises ValueError on an unknown name."""
        expect(name in ENCODERS, f"{name!r}: expected one of {', '.join(ENCODERS)}")
        return build(name, vocab_size=vocab_size, num_labels=num_labels, dropout=dropout)

    def keep_layers(self, layers: list[int]):
        """Keep only these layers, counted from 0. Raises IndexError."""
        self.blocks = nn.ModuleList(self.blocks[layer] for layer in layers)
        self.config = replace(self.config, layers=len(layers))

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, layers=()):
        """input_ids (B, T), attention_mask (B, T), 1 at real tokens, token_type_ids (B, T) -> logits (B, K).
        Without a mask all tokens are real; without types all are of type 0. With n `layers`, counted from 1, the result
        is (logits, their [CLS] states (B, n, D)). Raises ValueError on a sentence with too many tokens."""
        T, offset = input_ids.shape[1], self.config.position_offset
        expect(T <= self.config.max_tokens, f"expected at most {self.config.max_tokens} tokens, not {T}")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        states = self.words(input_ids) + self.positions.weight[offset : offset + T]  # (B, T, D)
        if self.types is not None:
            states = states + self.types(token_type_ids)
        states = self.dropout(self.norm(states))
        mask = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        first_token = [states[:, 0]]  # [CLS], (B, D): of the embeddings, then of each layer
        for block in self.blocks:
            states = block(states, mask)
            first_token.append(states[:, 0])
        activation = getattr(torch, self.config.pooler)
        logits = self.classifier(self.dropout(activation(self.pooler(first_token[-1]))))
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
    """BatchNorm in the type of its weights, under autocast, too: its forward-mode derivative has no bfloat16."""

    def forward(self, states):
        """(B, C, H, W) -> the same."""
        return super().forward(states.to(self.weight.dtype))


def convolution(C, C_out, size, stride=1):
    """A convolution without a bias, and its norm: (B, C, H, W) -> (B, C_out, H / stride, W / stride)."""
    layer = nn.Conv2d(C, C_out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, BatchNorm(C_out))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, added to the input, which a 1×1 convolution brings to their shape where it differs."""

    def __init__(self, C, C_out, stride):
        super().__init__()
        self.first = convolution(C, C_out, 3, stride)
        self.second = convolution(C_out, C_out, 3)
        same_shape = C == C_out and stride == 1
        self.shortcut = nn.Identity() if same_shape else convolution(C, C_out, 1, stride)

    def forward(self, states):
        """(B, C, H, W) -> (B, C_out, H / stride, W / stride)."""
        changed = self.second(F.relu(self.first(states)))
        return F.relu(changed + self.shortcut(states))


class ResNet(nn.Module):
    """A CIFAR ResNet: a stem, three stages of residual blocks, each later one of half the resolution, a classifier."""

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config = config
        self.stem = convolution(3, config.widths[0], 3)
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
    """A ResNet with fresh weights, by the name of its preset. Raises ValueError on an unknown name."""
    expect(name in RESNETS, f"{name!r}: expected one of {', '.join(RESNETS)}")
    return build(name, num_labels=num_classes)


# ---- The registry


class Kind(NamedTuple):
    """A kind of network, for KINDS. What it must offer:

    - The class is built from its configuration alone, and keeps it as `config`.
    - The configuration is a frozen dataclass with `num_labels`; of networks that read sentences also with `vocab_size`
      and `max_tokens`, the longest sentence. A field `dropout` is set by the run.
    - Called with the inputs of one batch by name, (B, ...), it returns logits (B, num_labels). Called with `layers`
      too, an encoder returns (logits, states of these layers), for methods that ask for states.
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


def kind_of(config) -> str:
    """The name in KINDS of a configuration's kind. Raises ValueError."""
    names = {kind.config: name for name, kind in KINDS.items()}
    expected = f"expected a configuration of {', '.join(KINDS)}, or one of {', '.join(PRESETS)}"
    expect(type(config) in names, f"{expected}; found {config!r}")
    return names[type(config)]


def build(shape, **changes) -> nn.Module:
    """A network with fresh weights, of a configuration or the name of a preset. Changes to fields that the
    configuration lacks are ignored. Raises ValueError."""
    config = PRESETS.get(shape, shape)
    kind = KINDS[kind_of(config)]
    return kind.network(replace(config, **{name: changes[name] for name in changes if hasattr(config, name)}))


# ---- A network that reads

MAX_TOKENS = 128  # a longer sentence is cut
CACHED = 100_000  # sentences whose ids are kept, some 45 MB
PIXELS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))  # CIFAR-100's mean and deviation, pixels from 0 to 1


def encode(tokenizer: Tokenizer, text) -> np.ndarray:
    """The id, the type and the mask (1: no padding) of each token of a sentence or pair, (T, 3)."""
    found = tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text)
    return np.array([found.ids, found.type_ids, found.attention_mask], np.int32).T


class Model(nn.Module):
    """A network with what it reads by: raw sentences or pictures in, logits out.

    `labels` are the names of its classes: None without a trained head, [] for a regression. `columns` are the names of
    an example's texts, one or two; of pictures none. Raises ValueError if the tokeniser does not fit the network.
    """

    title = None  # in a run: "student kd"
    precision = "fp32"  # of matrix products; or "bf16"
    layers = ()  # whose states are returned beside the logits
    reads_noise = False  # whether it reads `noisy` instead of `examples`

    def __init__(self, network: nn.Module, tokenizer: Tokenizer | None = None, labels=None, columns=("sentence",)):
        super().__init__()
        self.tokenizer = tokenizer = copy.deepcopy(tokenizer)  # as it is cut to the network's length below
        self.network, self.labels, self.columns = network, labels, tuple(columns)
        # Not of `self`, which would then refer to itself and not be freed when it is no longer used.
        self.encode = functools.lru_cache(CACHED)(functools.partial(encode, tokenizer))
        reads = "sentences" if self.columns else "pictures"
        fits = KINDS[kind_of(network.config)].reads == reads and bool(tokenizer) == bool(self.columns)
        expect(fits, f"expected a network that reads {reads}, and a tokeniser only for sentences")
        if tokenizer:
            words = max(tokenizer.get_vocab().values()) + 1
            rows = network.config.vocab_size
            expect(words <= rows, f"{words} words in the tokeniser for {rows} rows in the network")
            tokenizer.enable_truncation(min(network.config.max_tokens, MAX_TOKENS))
            tokenizer.no_padding()

    def lengths(self, examples) -> np.ndarray:
        """The number of tokens of each example, (N,); 1 for a picture."""
        return np.array([len(self.encode(text)) if self.tokenizer else 1 for text in examples])

    def inputs(self, examples) -> dict[str, torch.Tensor]:
        """What the network takes: ids, types and mask (B, T), T the length of the longest; or images (B, 3, 32, 32)."""
        device = next(self.parameters()).device
        if not self.tokenizer:
            mean, deviation = torch.tensor(PIXELS, device=device)[:, :, None, None]  # (3, 1, 1) each
            return {"images": (torch.from_numpy(np.asarray(examples)).to(device) / 255 - mean) / deviation}
        encoded = [self.encode(text) for text in examples]
        padded = np.zeros((len(encoded), max(map(len, encoded)), 3), np.int32)  # (B, T, 3)
        for n, tokens in enumerate(encoded):
            padded[n, : len(tokens)] = tokens
        ids, types, mask = torch.from_numpy(padded).to(device).unbind(dim=2)
        return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}

    def forward(self, examples, noisy=None):
        """B examples -> logits (B, K), or (logits, states) if `layers` are set. noisy: the same with word noise."""
        inputs = self.inputs(noisy if self.reads_noise and noisy is not None else examples)
        if self.layers:
            inputs["layers"] = self.layers
        device, half = next(self.parameters()).device.type, self.precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=False):
            return self.network(**inputs)

    @torch.no_grad()
    def logits(self, examples) -> np.ndarray:
        """The logits (N, K) in eval mode, computed in batches of similar length."""
        was_training = self.training
        self.eval()
        rows = np.argsort(self.lengths(examples), kind="stable")
        found = []
        for batch in np.split(rows, range(256, len(rows), 256)):
            outputs = self([examples[row] for row in batch])
            found.append((outputs[0] if self.layers else outputs).float().cpu())
        self.train(was_training)
        return torch.cat(found)[np.argsort(rows)].numpy()

    def predict(self, examples) -> list[tuple]:
        """For each sentence, each (sentence, sentence) of a task of pairs, or each picture in bytes (3, 32, 32),
        (label, {name: probability}); of a regression (score, {}). Raises ValueError on anything else, and if the
        network has no trained head."""
        expect(self.labels is not None, "predict: expected a network with a trained head")
        expect(not isinstance(examples, str), "predict: expected a list of sentences, found one sentence")
        examples = [self.checked(example) for example in examples]
        if not examples:
            return []
        logits = torch.from_numpy(self.logits(examples))
        if not self.labels:
            return [(score, {}) for score in logits[:, 0].tolist()]
        found = []
        for probabilities in logits.softmax(dim=-1).tolist():
            by_name = dict(zip(self.labels, probabilities))
            found.append((max(by_name, key=by_name.get), by_name))
        return found

    def checked(self, example):
        """An example that a user gave; texts in a list become a tuple. Raises ValueError if it cannot be read."""
        example = tuple(example) if isinstance(example, list) else example
        if self.columns:
            expected = f"{' and '.join(self.columns)}, in UTF-8"
            texts = example if isinstance(example, tuple) else (example,)
            fits = len(texts) == len(self.columns) and all(isinstance(text, str) for text in texts)
            fits = fits and not re.search("[\ud800-\udfff]", "".join(texts))  # Python's reading of what is not UTF-8
        else:
            expected = "a picture in bytes, (3, 32, 32)"
            fits = isinstance(example, np.ndarray) and example.shape == (3, 32, 32) and example.dtype == np.uint8
        expect(fits, f"expected {expected}, found {str(example)[:80]!r}")
        return example

    def save(self, path):
        """Save it, so that `load` gives the same model."""
        write_whole(Path(path), {
            "kind": kind_of(self.network.config), "config": asdict(self.network.config),
            "weights": self.network.state_dict(), "tokenizer": self.tokenizer and self.tokenizer.to_str(),
            "labels": self.labels, "columns": self.columns, "title": self.title,
        })  # fmt: skip


# ---- Files

FORMAT = 3  # of files that hold a dict


class CheckpointError(ValueError):
    """A saved network cannot be used. The message is one line: where, and what was expected."""


@contextlib.contextmanager
def expecting(what: str, kind=CheckpointError, caught=Exception):
    """Turn an exception of the block, of the classes `caught`, into one of this kind, of one line."""
    try:
        yield
    except caught as error:
        raise kind(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


def load(path) -> Model:
    """The model in a saved file, or in the metadistil.pt of a directory, in eval mode. Raises CheckpointError."""
    names = ", ".join(PRESETS)
    with expecting(f"{path}: expected a saved network (.pt), a directory with metadistil.pt, or one of {names}"):
        saved = read_whole(saved_file(path))
        network = build(KINDS[saved["kind"]].config(**saved["config"]))
        network.load_state_dict(saved["weights"])
        tokenizer = saved["tokenizer"] and Tokenizer.from_str(saved["tokenizer"])
        model = Model(network, tokenizer, saved["labels"], saved["columns"])
        model.title = saved["title"]
        return model.eval()


def saved_file(path) -> Path:
    """The file itself: the path, or in a directory its metadistil.pt."""
    return Path(path, "metadistil.pt") if Path(path).is_dir() else Path(path)


def read_whole(path) -> dict:
    """The dict that `write_whole` wrote. Raises any exception if a bit has changed, or if the format is another."""
    expect(not zipfile.ZipFile(path).testzip(), "a wrong check sum: make it again")
    saved = torch.load(path, "cpu", weights_only=True)
    found = saved.get("format", 1)
    expect(found == FORMAT, f"format {found}, expected {FORMAT}: make it again")
    return saved


def write_whole(path: Path, content):
    """Write text, or a dict and its format by torch.save, atomically: `path` is never half written."""
    file = io.BytesIO()
    if isinstance(content, dict):
        torch.save({"format": FORMAT} | content, file)
    else:
        file.write(content.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # of this process: another may write the same file
    try:
        part.write_bytes(file.getbuffer())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
