"""The networks: a BERT-style encoder, written out.

Shapes: B sentences, T tokens, D the hidden width, h heads of width d = D / h, K classes.
A model is called as `model(input_ids=..., attention_mask=..., token_type_ids=...)` and
returns logits (B, K).
"""

import math
from dataclasses import dataclass, replace

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


PRESETS = {
    "micro": _bert(1, 64),  # ours, for the built-in task
    "tiny": _bert(2, 128),  # this one and the next three: Turc et al. 2019
    "mini": _bert(4, 256),
    "small": _bert(4, 512),
    "medium": _bert(8, 512),
    "base": _bert(12, 768),
    "large": _bert(24, 1024),
    "distilbert": _bert(6, 768, token_types=0, pooler="relu"),
    "tinybert": _bert(4, 312, heads=12, intermediate=1200),
    "roberta": _bert(12, 768, max_positions=514, position_offset=2, token_types=1, layer_norm_eps=1e-5),
}


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(QKᵀ/√d)V, in the open.

    Not `scaled_dot_product_attention`: the fused kernels have no double backward, which
    the second-order meta-gradient needs.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        if config.hidden % config.heads:
            raise ValueError(f"expected a hidden width divisible by the heads, not {config.hidden} by {config.heads}")
        self.heads = config.heads
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.output = nn.Linear(config.hidden, config.hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states (B, T, D), mask (B, 1, 1, T) true at real tokens -> (B, T, D)."""
        B, T, D = states.shape
        heads = (B, T, self.heads, D // self.heads)
        query = self.query(states).view(heads).transpose(1, 2)  # (B, h, T, d)
        key = self.key(states).view(heads).transpose(1, 2)  # (B, h, T, d)
        value = self.value(states).view(heads).transpose(1, 2)  # (B, h, T, d)
        scores = query @ key.transpose(2, 3) / math.sqrt(D // self.heads)  # (B, h, T, T)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # nobody looks at padding
        mixed = self.dropout(scores.softmax(dim=-1)) @ value  # (B, h, T, d)
        return self.output(mixed.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """One post-norm transformer layer: attention and feed-forward, each added, then normed."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.feed_in = nn.Linear(config.hidden, config.intermediate)
        self.feed_out = nn.Linear(config.intermediate, config.hidden)
        self.feed_norm = nn.LayerNorm(config.hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states (B, T, D), mask (B, 1, 1, T) -> (B, T, D)."""
        states = self.attention_norm(states + self.dropout(self.attention(states, mask)))
        fed = self.feed_out(F.gelu(self.feed_in(states)))  # (B, T, 4D) in between
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
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module):
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

    def forward(self, input_ids: Tensor, attention_mask=None, token_type_ids=None) -> Tensor:
        """input_ids (B, T), attention_mask (B, T), 1 at real tokens, token_type_ids (B, T) -> (B, K).

        Without a mask all tokens are real; without types all are of type 0. Raises
        ValueError on a sentence longer than the model has positions.
        """
        B, T = input_ids.shape
        offset = self.config.position_offset
        if T + offset > self.config.max_positions:
            raise ValueError(f"expected at most {self.config.max_positions - offset} tokens, not {T}")
        states = self.words(input_ids) + self.positions.weight[offset : offset + T]  # (B, T, D)
        if self.types is not None:
            states = states + self.types(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        states = self.dropout(self.norm(states))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask[:, None, None, :].bool()  # (B, 1, 1, T)
        for block in self.blocks:
            states = block(states, mask)
        pooled = getattr(torch, self.config.pooler)(self.pooler(states[:, 0]))  # (B, D), from [CLS]
        return self.classifier(self.dropout(pooled))
