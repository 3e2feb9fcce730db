"""The networks: a BERT-style encoder and the CIFAR ResNets, written out; and how published checkpoints are read.

Shapes: B sentences, T tokens, D the hidden width, h heads of width d = D / h, K classes; C channels, H by W pixels.
A model is called as `model(input_ids=..., attention_mask=..., token_type_ids=...)` or `model(images=...)` -> (B, K).
"""

import contextlib, itertools, json, math, re, warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
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


# By the model_type of a config.json (TinyBERT's is bert): what the file does not say.
FAMILIES = {"bert": {}, "roberta": {"position_offset": 2}, "distilbert": {"token_types": 0, "pooler": "relu"}}
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512)}  # Turc et al. 2019
SIZES |= {"micro": (1, 64), "base": (12, 768), "large": (24, 1024)}  # micro: ours, for the built-in task
PRESETS = {n: EncoderConfig(layers=L, hidden=D, heads=D // 64, intermediate=4 * D) for n, (L, D) in SIZES.items()}
PRESETS["distilbert"] = EncoderConfig(layers=6, **FAMILIES["distilbert"])
PRESETS["tinybert"] = EncoderConfig(layers=4, hidden=312, intermediate=1200)
PRESETS["roberta"] = EncoderConfig(max_positions=514, token_types=1, layer_norm_eps=1e-5, **FAMILIES["roberta"])


class Block(nn.Module):
    """One post-norm transformer layer: attention and feed-forward, each added, then normed."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, self.heads = config.hidden, config.heads
        if D % self.heads:
            raise ValueError(f"expected a hidden width divisible by the heads, not {D} by {self.heads}")
        self.query, self.key, self.value, self.output = (nn.Linear(D, D) for _ in range(4))
        self.feed_in, self.feed_out = nn.Linear(D, config.intermediate), nn.Linear(config.intermediate, D)
        self.attention_norm, self.feed_norm = (nn.LayerNorm(D, eps=config.layer_norm_eps) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def attention(self, states: Tensor, mask: Tensor) -> Tensor:
        """Multi-head self-attention, softmax(QKᵀ/√d)V: states (B, T, D), mask (B, 1, 1, T) -> (B, T, D). In the open,
        for the fused kernels have no double backward, which the second-order meta-gradient needs."""
        B, T, D = states.shape
        heads, projections = (B, T, self.heads, D // self.heads), (self.query, self.key, self.value)
        query, key, value = (part(states).view(heads).transpose(1, 2) for part in projections)  # (B, h, T, d) each
        scores = query @ key.transpose(2, 3) / math.sqrt(D // self.heads)  # (B, h, T, T)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # nobody looks at padding
        mixed = self.dropout(scores.softmax(dim=-1)) @ value  # (B, h, T, d)
        return self.output(mixed.transpose(1, 2).reshape(B, T, D))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states (B, T, D), mask (B, 1, 1, T) true at real tokens -> (B, T, D)."""
        states = self.attention_norm(states + self.dropout(self.attention(states, mask)))
        fed = self.feed_out(F.gelu(self.feed_in(states)))  # (B, T, 4D) in between
        return self.feed_norm(states + self.dropout(fed))


class Encoder(nn.Module):
    """A BERT-style sentence classifier (Devlin et al. 2019, section 3; post-norm, GELU)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.patient_layers: tuple[int, ...] = ()  # counted from 1; see forward
        self.words = nn.Embedding(config.vocab_size, config.hidden)
        self.positions = nn.Embedding(config.max_positions, config.hidden)
        self.types = nn.Embedding(config.token_types, config.hidden) if config.token_types else None
        self.norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.pooler = nn.Linear(config.hidden, config.hidden)
        self.classifier = nn.Linear(config.hidden, config.num_labels)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)  # BERT's
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @classmethod
    def from_preset(cls, name: str, vocab_size=30522, num_labels=2, dropout=0.1) -> "Encoder":
        """A preset of PRESETS with fresh weights. Raises ValueError on an unknown name."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
        return cls(replace(PRESETS[name], vocab_size=vocab_size, num_labels=num_labels, dropout=dropout))

    @classmethod
    def from_pretrained(cls, directory, num_labels=2, layers=None, dropout=0.1) -> "Encoder":
        """A published BERT, TinyBERT, RoBERTa or DistilBERT; `layers` (0 is the first) keeps those only, a head comes
        along if its labels agree in number; a warning names what is lacking or to spare. Raises CheckpointError."""
        config = replace(shape_of(str(directory)), num_labels=num_labels, dropout=dropout)
        with expecting(f"{directory}: expected the weights that config.json promises"):
            model = cls(config)
            tensors = read_weights(Path(directory))
            tensors = {n: t for n, t in tensors.items() if not n.startswith("classifier.") or len(t) == num_labels}
            fresh, unused = (", ".join(names) for names in model.load_state_dict(tensors, strict=False))
            model.blocks = nn.ModuleList(model.blocks[layer] for layer in layers or range(config.layers))
        if fresh or unused:
            warnings.warn(f"{directory}: fresh weights: {fresh or 'none'}; not used: {unused or 'none'}", stacklevel=2)
        model.config = replace(config, layers=len(model.blocks))
        return model

    def forward(self, input_ids: Tensor, attention_mask=None, token_type_ids=None) -> Tensor | tuple[Tensor, Tensor]:
        """input_ids (B, T), attention_mask (B, T), 1 at real tokens, token_type_ids (B, T) -> logits (B, K).
        Without a mask all tokens are real; without types all are of type 0. With n `patient_layers` the result is
        (logits, their [CLS] states (B, n, D)). Raises ValueError on a sentence longer than the model has positions."""
        T, offset = input_ids.shape[1], self.config.position_offset
        if T + offset > self.config.max_positions:
            raise ValueError(f"expected at most {self.config.max_positions - offset} tokens, not {T}")
        states = self.words(input_ids) + self.positions.weight[offset : offset + T]  # (B, T, D)
        if self.types is not None:
            states = states + self.types(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        layers = [self.dropout(self.norm(states))]  # after each layer, (B, T, D)
        for block in self.blocks:
            layers.append(block(layers[-1], mask.bool()[:, None, None, :]))
        pooled = getattr(torch, self.config.pooler)(self.pooler(layers[-1][:, 0]))  # (B, D)
        logits = self.classifier(self.dropout(pooled))
        patient = [layers[layer][:, 0] for layer in self.patient_layers]  # (B, D) each
        return (logits, torch.stack(patient, dim=1)) if patient else logits


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a CIFAR ResNet (He et al. 2016, section 4.2): 6n + 2 layers, in three stages of n blocks."""
    depth: int
    widths: tuple[int, ...] = (16, 16, 32, 64)  # channels of the stem and of the stages
    num_labels: int = 100  # K


RESNETS = {f"resnet{depth}": ResNetConfig(depth) for depth in (8, 14, 20, 32, 44, 56, 110)}
RESNETS |= {f"resnet{depth}x4": ResNetConfig(depth, (32, 64, 128, 256)) for depth in (8, 32)}


def _convolution(C: int, C_out: int, size: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(C, C_out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    norm = nn.BatchNorm2d(C_out)  # full precision without grad mode: its forward-mode product has no bfloat16
    norm.register_forward_pre_hook(lambda n, x: x if torch.is_grad_enabled() else (x[0].to(n.weight.dtype),))
    return nn.Sequential(convolution, norm)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, added to the input, which a 1×1 convolution brings to their shape where it differs."""

    def __init__(self, C: int, C_out: int, stride: int):
        super().__init__()
        self.first, self.second = _convolution(C, C_out, 3, stride), _convolution(C_out, C_out, 3)
        self.shortcut = nn.Identity() if (C, stride) == (C_out, 1) else _convolution(C, C_out, 1, stride)

    def forward(self, states: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_out, H / stride, W / stride)."""
        return F.relu(self.second(F.relu(self.first(states))) + self.shortcut(states))


class ResNet(nn.Module):
    """A CIFAR ResNet: a stem, three stages of residual blocks, each of half the resolution, a classifier."""

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config, blocks = config, []
        self.stem = _convolution(3, config.widths[0], 3)
        for C, C_out in itertools.pairwise(config.widths):
            blocks.append(ResidualBlock(C, C_out, stride=2 if blocks else 1))
            blocks += [ResidualBlock(C_out, C_out, stride=1) for _ in range((config.depth - 2) // 6 - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(config.widths[-1], config.num_labels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, K)."""
        states = self.blocks(F.relu(self.stem(images)))  # (B, C, H / 4, W / 4)
        return self.classifier(states.mean(dim=(2, 3)))


def resnet(name: str, num_classes: int = 100) -> ResNet:
    """A ResNet of RESNETS with fresh weights. Raises ValueError on an unknown name."""
    if name not in RESNETS:
        raise ValueError(f"unknown ResNet {name!r}: expected one of {', '.join(RESNETS)}")
    return ResNet(replace(RESNETS[name], num_labels=num_classes))


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message is one line: where, and what was expected."""


@contextlib.contextmanager
def expecting(what: str):
    """Turn any exception of the block, for torch and json raise about anything, into a CheckpointError of one line."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from None


SAFETENSORS_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
PUBLISHED_CONFIG = {  # how a config.json names the fields of EncoderConfig; the second name of two is DistilBERT's
    "vocab_size": "vocab_size", "hidden_size": "hidden", "dim": "hidden", "num_hidden_layers": "layers",
    "n_layers": "layers", "num_attention_heads": "heads", "n_heads": "heads", "intermediate_size": "intermediate",
    "hidden_dim": "intermediate", "max_position_embeddings": "max_positions", "type_vocab_size": "token_types",
    "layer_norm_eps": "layer_norm_eps"}  # fmt: skip
PUBLISHED_NAMES = {  # how the files name the tensors: patterns, each replaced in turn
    r"^(bert|roberta|distilbert)\.": "", r"\.gamma$": ".weight", r"\.beta$": ".bias",
    r"^embeddings\.LayerNorm": "norm", r"^embeddings\.word_embeddings": "words",
    r"^embeddings\.position_embeddings": "positions", r"^embeddings\.token_type_embeddings": "types",
    r"^(encoder|transformer)\.layer": "blocks", r"attention\.output\.LayerNorm|sa_layer_norm": "attention_norm",
    r"attention\.output\.dense|attention\.out_lin": "attention.self.output", r"attention\.(self\.)?": "",
    r"\.q_lin": ".query", r"\.k_lin": ".key", r"\.v_lin": ".value", r"intermediate\.dense|ffn\.lin1": "feed_in",
    r"\boutput\.LayerNorm|output_layer_norm": "feed_norm", r"\boutput\.dense|ffn\.lin2": "feed_out",
    r"^(pooler\.dense|classifier\.dense|pre_classifier)": "pooler", r"^classifier\.out_proj": "classifier"}  # fmt: skip


def shape_of(source: str) -> EncoderConfig | ResNetConfig:
    """The shape of what `build` would build. Raises CheckpointError."""
    if source in PRESETS | RESNETS:
        return (PRESETS | RESNETS)[source]
    if source.endswith(".pt"):
        return read_saved(source)[0].config
    expected = f"expected {', '.join(PRESETS | RESNETS)}, a .pt, or a directory with the config.json of a BERT"
    with expecting(f"{source}: {expected}, RoBERTa or DistilBERT with gelu"):
        published = json.loads(Path(source, "config.json").read_text())
        fields = {ours: published[name] for name, ours in PUBLISHED_CONFIG.items() if name in published}
        missing = {*PUBLISHED_CONFIG.values()} - {*fields, "token_types", "layer_norm_eps"}
        activation = published.get("hidden_act", published.get("activation"))
        if missing or activation != "gelu" or min(fields.values()) <= 0:
            raise ValueError(f"no {', '.join(sorted(missing))}" if missing else f"activation {activation}, {fields}")
        return EncoderConfig(**fields | FAMILIES[published.get("model_type", "bert")])


def build(source: str, num_labels: int, dropout=0.0, vocab_size=None, layers=None) -> Encoder | ResNet:
    """A preset with fresh weights, the checkpoint in a directory, or a .pt of train.py. Raises CheckpointError."""
    if source in RESNETS:
        return resnet(source, num_labels)
    if source in PRESETS:
        return Encoder.from_preset(source, vocab_size, num_labels, dropout)
    if source.endswith(".pt"):
        return read_saved(source)[0]
    return Encoder.from_pretrained(source, num_labels, layers, dropout)


def read_saved(path) -> tuple[Encoder | ResNet, dict]:
    """The network in a .pt of train.py, and all that the file holds. Raises CheckpointError."""
    with expecting(f"{path}: expected a model saved by train.py"):
        saved = torch.load(path, "cpu", weights_only=True)
        shape = saved["config"]
        network = ResNet(ResNetConfig(**shape)) if "depth" in shape else Encoder(EncoderConfig(**shape))
        network.load_state_dict(saved["weights"])
        return network, saved


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors or pytorch_model.bin, by our names."""
    safe, pickled = directory / "model.safetensors", directory / "pytorch_model.bin"
    tensors, renamed = read_safetensors(safe) if safe.exists() else torch.load(pickled, "cpu", weights_only=True), {}
    for name, tensor in sorted(tensors.items(), key=lambda pair: pair[0]):
        for pattern, ours in PUBLISHED_NAMES.items():
            name = re.sub(pattern, ours, name)
        renamed.setdefault(name, tensor)  # RoBERTa's classifier.dense comes before a pooler that it does not use
    return renamed


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: 8 bytes for the length of the header, the header in JSON, the raw buffers."""
    raw, tensors = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8), {}
    start = 8 + int.from_bytes(raw[:8].tolist(), "little")
    for name, entry in json.loads(bytes(raw[8:start].tolist())).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in entry["data_offsets"])
            values = raw[first:last].clone().view(SAFETENSORS_TYPES[entry["dtype"]])  # a clone is aligned
            tensors[name] = values.reshape(entry["shape"])
    return tensors
