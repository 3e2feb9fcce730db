"""The networks: a BERT-style encoder, written out, and how it reads published checkpoints.

Shapes: B sentences, T tokens, D the hidden width, h heads of width d = D / h, K classes.
A model is called as `model(input_ids=..., attention_mask=..., token_type_ids=...)` and
returns logits (B, K).
"""

import json, math, re, warnings
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


def _bert(layers: int, hidden: int, **other) -> EncoderConfig:
    return EncoderConfig(layers=layers, hidden=hidden, **({"heads": hidden // 64, "intermediate": 4 * hidden} | other))


# By the model_type of a config.json (TinyBERT's is bert): what the file does not say.
FAMILIES = {"bert": {}, "roberta": {"position_offset": 2}, "distilbert": {"token_types": 0, "pooler": "relu"}}
PRESETS = {
    "micro": _bert(1, 64),  # ours, for the built-in task
    "tiny": _bert(2, 128),  # this one and the next three: Turc et al. 2019
    "mini": _bert(4, 256),
    "small": _bert(4, 512),
    "medium": _bert(8, 512),
    "base": _bert(12, 768),
    "large": _bert(24, 1024),
    "distilbert": _bert(6, 768, **FAMILIES["distilbert"]),
    "tinybert": _bert(4, 312, heads=12, intermediate=1200),
    "roberta": _bert(12, 768, max_positions=514, token_types=1, layer_norm_eps=1e-5, **FAMILIES["roberta"]),
}


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
        """Multi-head self-attention, softmax(QKᵀ/√d)V, in the open: states (B, T, D), mask (B, 1, 1, T) -> (B, T, D).
        Not `scaled_dot_product_attention`: the fused kernels have no double backward, which
        the second-order meta-gradient needs."""
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
        """A published checkpoint: BERT, TinyBERT, RoBERTa or DistilBERT, by its config.json and weights.
        `layers` (0 is the first) keeps those only. A classification head comes along when
        its number of labels agrees. What the file lacks or has to spare is warned of in one
        line. Raises CheckpointError."""
        config = replace(shape_of(str(directory)), num_labels=num_labels, dropout=dropout)
        model = cls(config)
        try:
            tensors = read_weights(Path(directory))
            tensors = {n: t for n, t in tensors.items() if not n.startswith("classifier.") or len(t) == num_labels}
            fresh, unused = (", ".join(names) for names in model.load_state_dict(tensors, strict=False))
            model.blocks = nn.ModuleList(model.blocks[layer] for layer in layers or range(config.layers))
        except Exception as error:  # torch and json raise about anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{directory}: expected the weights that config.json promises: {reason}") from None
        if fresh or unused:
            warnings.warn(f"{directory}: fresh weights: {fresh or 'none'}; not used: {unused or 'none'}", stacklevel=2)
        model.config = replace(config, layers=len(model.blocks))
        return model

    def forward(self, input_ids: Tensor, attention_mask=None, token_type_ids=None) -> Tensor | tuple[Tensor, Tensor]:
        """input_ids (B, T), attention_mask (B, T), 1 at real tokens, token_type_ids (B, T) -> logits (B, K).
        Without a mask all tokens are real; without types all are of type 0. With n
        `patient_layers` the result is (logits, their [CLS] states (B, n, D)). Raises
        ValueError on a sentence longer than the model has positions."""
        B, T = input_ids.shape
        offset = self.config.position_offset
        if T > self.config.max_positions - offset:
            raise ValueError(f"expected at most {self.config.max_positions - offset} tokens, not {T}")
        states = self.words(input_ids) + self.positions.weight[offset : offset + T]  # (B, T, D)
        if self.types is not None:
            states = states + self.types(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        states = self.dropout(self.norm(states))
        mask = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        mask = mask[:, None, None, :]  # (B, 1, 1, T)
        cls_states = []  # after each layer, (B, D)
        for block in self.blocks:
            states = block(states, mask)
            cls_states.append(states[:, 0])
        pooled = getattr(torch, self.config.pooler)(self.pooler(states[:, 0]))  # (B, D)
        logits = self.classifier(self.dropout(pooled))
        if not self.patient_layers:
            return logits
        return logits, torch.stack([cls_states[layer - 1] for layer in self.patient_layers], dim=1)


# ---------------------------------------------------------------- published checkpoints
class CheckpointError(Exception):
    """A checkpoint cannot be used; the message is one line: where, and what was expected."""


SAFETENSORS_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
# How a config.json names the fields of EncoderConfig; the second name of two is DistilBERT's.
PUBLISHED_CONFIG = {
    "vocab_size": "vocab_size", "hidden_size": "hidden", "dim": "hidden", "num_hidden_layers": "layers",
    "n_layers": "layers", "num_attention_heads": "heads", "n_heads": "heads", "intermediate_size": "intermediate",
    "hidden_dim": "intermediate", "max_position_embeddings": "max_positions", "type_vocab_size": "token_types",
    "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
# How the files name the tensors: patterns, each replaced in turn.
PUBLISHED_NAMES = {
    r"^(bert|roberta|distilbert)\.": "", r"\.gamma$": ".weight", r"\.beta$": ".bias",
    r"^embeddings\.LayerNorm": "norm", r"^embeddings\.word_embeddings": "words",
    r"^embeddings\.position_embeddings": "positions", r"^embeddings\.token_type_embeddings": "types",
    r"^(encoder|transformer)\.layer": "blocks", r"attention\.output\.LayerNorm|sa_layer_norm": "attention_norm",
    r"attention\.output\.dense|attention\.out_lin": "attention.self.output", r"attention\.(self\.)?": "",
    r"\.q_lin": ".query", r"\.k_lin": ".key", r"\.v_lin": ".value", r"intermediate\.dense|ffn\.lin1": "feed_in",
    r"\boutput\.LayerNorm|output_layer_norm": "feed_norm", r"\boutput\.dense|ffn\.lin2": "feed_out",
    r"^(pooler\.dense|classifier\.dense|pre_classifier)": "pooler", r"^classifier\.out_proj": "classifier",
}  # fmt: skip


def shape_of(source: str) -> EncoderConfig:
    """The shape of a preset, or of the checkpoint in a directory, as its config.json tells. Raises CheckpointError."""
    if source in PRESETS:
        return PRESETS[source]
    path = Path(source, "config.json")
    if not path.is_file():
        raise CheckpointError(f"{source}: expected a checkpoint's directory, or one of {', '.join(PRESETS)}")
    try:
        published = json.loads(path.read_text())
        family = published.get("model_type", "bert")
        activation = published.get("hidden_act", published.get("activation"))
        fields = {ours: published[name] for name, ours in PUBLISHED_CONFIG.items() if name in published}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected the JSON of a checkpoint ({error})") from None
    missing = {*PUBLISHED_CONFIG.values()} - {*fields, "token_types", "layer_norm_eps"}
    if family not in FAMILIES or activation != "gelu" or missing:
        raise CheckpointError(f"{path}: expected a BERT, RoBERTa or DistilBERT with gelu, and all its sizes")
    return EncoderConfig(**(fields | FAMILIES[family]))


def build(source: str, vocab_size: int, num_labels: int, dropout: float, layers=None) -> Encoder:
    """A preset with fresh weights, or the checkpoint in a directory. Raises CheckpointError."""
    if source in PRESETS:
        return Encoder.from_preset(source, vocab_size, num_labels, dropout)
    return Encoder.from_pretrained(source, num_labels, layers, dropout)


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
    raw = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    start = 8 + int.from_bytes(raw[:8].tolist(), "little")
    header = json.loads(bytes(raw[8:start].tolist()))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        values = raw[first:last].clone().view(SAFETENSORS_TYPES[entry["dtype"]])  # a clone is aligned
        tensors[name] = values.reshape(entry["shape"])
    return tensors
