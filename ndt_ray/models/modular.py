"""The modular-addition transformer that groks (Nanda et al. 2023): one layer, no biases, no LayerNorm.

Tokens are a, b and '='; the logits of a + b are read out at '='. As nothing later reads the other positions, the last
layer computes its query and its feed-forward part there alone: the same function at a third of the cost.
"""

import math

import torch
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
)


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
        x = queries + self.self_attn(queries, x, masked)
        out: Tensor = x + self.linear2(self.relu(self.linear1(x)))
        return out


class ModularTransformer(Model):
    """ids [*, B, T] -> logits [*, B, classes] at the last position.

    `blocks.0.self_attn.pattern` sees [*, B, heads, 1, T] (the '=' row), `blocks.0.relu` the neurons [*, B, 1, hidden].
    """

    def __init__(self, inputs: InputSpec, width: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
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
