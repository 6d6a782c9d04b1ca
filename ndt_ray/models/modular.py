"""The modular-addition transformer that groks (Nanda et al. 2023): one layer, no biases, no LayerNorm.

Tokens are a, b and '='; the logits of a + b are read out at '='. As nothing later reads the other positions, the last
layer computes its query and its feed-forward part there alone: the same function at a third of the cost. And as a
network of one layer attends to tokens that nothing has touched yet, it looks queries, keys and values up in tables of
token x position instead of projecting every row: half of what is then left (full batch, p = 113).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models.init import Initial, Normal
from ndt_ray.models.layers import (
    Kind,
    Model,
    PositionalEmbedding,
    SelfAttention,
    number_dropouts,
    require_positive,
    unflatten,
)

LARGEST_TABLE = 512
"""Tokens up to which attention goes by tables; a table of scores grows with the square of their number."""


class ModularBlock(nn.Module):
    """Causal attention and a ReLU layer, each added to the residual stream; the last one at the last position only."""

    def __init__(self, width: int, heads: int, hidden: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.self_attn = SelfAttention(width, heads, bias=False)
        self.linear1 = nn.Linear(width, hidden, bias=False)
        self.relu = nn.ReLU()
        self.linear2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[*, B, T, D] -> [*, B, T, D], or [*, B, 1, D] in the last block."""
        if self.last:
            queries, masked = x[..., -1:, :], None
        else:
            length = x.shape[-2]
            queries, masked = x, torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        return self.feed_forward(queries + self.self_attn(queries, x, masked))

    def feed_forward(self, x: Tensor) -> Tensor:
        """[*, B, Q, D] -> [*, B, Q, D]."""
        out: Tensor = x + self.linear2(self.relu(self.linear1(x)))
        return out

    def from_table(self, table: Tensor, ids: Tensor) -> Tensor:
        """What `forward` gives for the embeddings `table` [*, V, T, D] of ids [*, B, T]: [*, B, 1, D]."""
        attention, positions = self.self_attn, ids.shape[-1]
        places = ids * positions + torch.arange(positions, device=ids.device)
        queries = rows(table[..., -1, :], ids[..., -1:])
        asked = split(attention.q_proj(table[..., -1, :]), attention.heads)
        keys = split(attention.k_proj(table), attention.heads)
        # [*, V of the query, V, T, heads]
        scores = torch.einsum("...qhd,...vthd->...qvth", asked, keys) * attention.scale
        of_pair = rows(scores.flatten(-4, -2), ids[..., -1:] * (table.shape[-3] * positions) + places)
        pattern = attention.dropout(attention.pattern(of_pair.transpose(-1, -2).unsqueeze(-2).softmax(-1)))
        values = split(rows(attention.v_proj(table).flatten(-3, -2), places), attention.heads)
        mixed = (pattern.squeeze(-2).transpose(-1, -2).unsqueeze(-1) * values).sum(-3)
        return self.feed_forward(queries + attention.out_proj(mixed.flatten(-2).unsqueeze(-2)))


def split(x: Tensor, heads: int) -> Tensor:
    """[..., D] -> [..., heads, D / heads]."""
    return unflatten(x, -1, (heads, -1))


def rows(table: Tensor, places: Tensor) -> Tensor:
    """table [*, V, D] at places [*, ...], each lane in its own table: [*, ..., D]."""
    lead = table.shape[:-2]
    lanes = torch.arange(math.prod(lead), device=places.device) * table.shape[-2]
    offsets = lanes.view(*lead, *[1] * (places.dim() - len(lead)))
    return F.embedding(places + offsets, table.reshape(-1, table.shape[-1]))


class ModularTransformer(Model):
    """ids [*, B, T] -> logits [*, B, classes] at the last position.

    `blocks.0.self_attn.pattern` sees [*, B, heads, 1, T] (the '=' row), `blocks.0.relu` the neurons [*, B, 1, hidden].
    """

    def __init__(self, inputs: InputSpec, width: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.vocab = inputs.vocab
        self.embedding = nn.Embedding(inputs.vocab, width)
        self.pos_encoder = PositionalEmbedding(inputs.features, width)
        self.blocks = nn.Sequential(*(ModularBlock(width, heads, hidden, i == depth - 1) for i in range(depth)))
        self.unembed = nn.Linear(width, inputs.classes, bias=False)
        parts = ("self_attn.out_proj", "linear1", "linear2")
        kind: Kind = "tokens"
        self.tracked = {f"blocks.{i}.{part}": kind for i in range(depth) for part in parts}
        self.tracked["unembed"] = "units"
        # TransformerLens's "gpt2" initialisation, for every tensor alike.
        std = Normal(0.8 / math.sqrt(width))
        self.initial: dict[str, Initial] = {name: std for name, _ in self.named_parameters()}
        number_dropouts(self)

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0]
        if isinstance(first, ModularBlock) and first.last and self.vocab <= LARGEST_TABLE:
            tokens = torch.arange(self.vocab, device=x.device).unsqueeze(-1)
            every = tokens.expand(*x.shape[:-2], self.vocab, x.shape[-1])
            residual = first.from_table(self.pos_encoder(self.embedding(every)), x)
        else:
            residual = self.blocks(self.pos_encoder(self.embedding(x)))
        logits: Tensor = self.unembed(residual[..., -1, :])
        return logits


def modular_transformer(
    inputs: InputSpec, *, width: int = 128, heads: int = 4, hidden: int = 512, depth: int = 1
) -> nn.Module:
    """The transformer without biases or LayerNorm that groks modular addition, read out at '='."""
    if inputs.kind != "modular":
        raise SpecError(
            f"modular_transformer takes the ids of modular arithmetic, but the data set gives {inputs.kind} of shape "
            f"{inputs.shape}: use transformer_* for it, or a modular data set"
        )
    require_positive("modular_transformer", width=width, heads=heads, hidden=hidden, depth=depth)
    return ModularTransformer(inputs, width, heads, hidden, depth)
