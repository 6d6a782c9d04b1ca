"""Transformer encoders: the four of the founding study, the one it planned and never ran, and a generic one.

An image becomes a raster of about 16 tokens of consecutive numbers; ids become their embeddings, one token each.
The layer computes what `torch.nn.TransformerEncoderLayer` computes, with attention taken apart so that it can be
measured. Measured are `input_proj`, `fc` and, per layer, the outputs of attention and of both feed-forward Linears.
"""

from torch import Tensor, nn

from ndt_ray.inputs import InputSpec
from ndt_ray.models.layers import (
    EMBEDDING_WIDTH,
    Dropout,
    Model,
    PositionalEmbedding,
    SelfAttention,
    masked_mean,
    number_dropouts,
    require_positive,
    require_share,
    token_embedding,
    unflatten,
)

TARGET_TOKENS = 16
DROPOUT = 0.1


class EncoderLayer(nn.Module):
    """Attention, then two Linears, each added to its input; `pre_norm` normalises what goes in, else what comes out."""

    def __init__(
        self, width: int, heads: int, dropout: float, pre_norm: bool = False, activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = SelfAttention(width, heads, dropout)
        self.linear1 = nn.Linear(width, 4 * width)
        self.activation = activation()
        self.dropout = Dropout(dropout)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)

    def forward(self, x: Tensor, masked: Tensor | None = None) -> Tensor:
        """[*, B, T, D] -> [*, B, T, D]; `masked` broadcasts to [*, B, heads, T, T]."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), masked)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, masked))
        out: Tensor = self.norm2(x + self._feed_forward(x))
        return out

    def _attend(self, x: Tensor, masked: Tensor | None) -> Tensor:
        out: Tensor = self.dropout1(self.self_attn(x, x, masked))
        return out

    def _feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        return out


class Encoder(nn.Module):
    """Encoder layers, one after the other."""

    def __init__(self, layers: list[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, masked: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, masked)
        return x

    def tracked_paths(self, prefix: str) -> list[str]:
        """The measured layers in forward order."""
        parts = ("self_attn.out_proj", "linear1", "linear2")
        return [f"{prefix}.layers.{i}.{part}" for i in range(len(self.layers)) for part in parts]


class Transformer(Model):
    """[*, B, *sample] -> logits [*, B, classes]: embed, encode, average over tokens, classify."""

    def __init__(self, inputs: InputSpec, width: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        require_share("transformer", dropout=dropout)
        self.padding = inputs.padding
        self.sample_dims = len(inputs.shape)
        if inputs.kind == "image":
            self.length = token_count(inputs.features)
            token_width = inputs.features // self.length
            self.embedding = None
        else:
            self.length = inputs.features
            token_width = EMBEDDING_WIDTH
            self.embedding = token_embedding(inputs)
        self.input_proj = nn.Linear(token_width, width)
        self.pos_encoder = PositionalEmbedding(self.length, width)
        self.transformer = Encoder([EncoderLayer(width, heads, dropout) for _ in range(depth)])
        self.fc = nn.Linear(width, inputs.classes)
        self.tracked = {"input_proj": "tokens"}
        self.tracked |= {path: "tokens" for path in self.transformer.tracked_paths("transformer")}
        self.tracked["fc"] = "units"
        number_dropouts(self)

    def forward(self, x: Tensor) -> Tensor:
        keep: Tensor | None = None
        if self.embedding is None:
            tokens = unflatten(x.flatten(-self.sample_dims), -1, (self.length, -1))
        else:
            tokens = self.embedding(x)
            keep = x != self.padding if self.padding is not None else None
        masked = None if keep is None else ~keep[..., None, None, :]
        encoded = self.transformer(self.pos_encoder(self.input_proj(tokens)), masked)
        logits: Tensor = self.fc(masked_mean(encoded, keep))
        return logits


def token_count(features: int) -> int:
    """The divisor of `features` closest to 16, the smaller of two: 784 -> 16, 64 -> 16, 100 -> 20."""
    divisors = [n for n in range(1, features + 1) if features % n == 0]
    return min(divisors, key=lambda n: abs(n - TARGET_TOKENS))


def transformer(
    inputs: InputSpec, *, width: int = 128, heads: int = 4, depth: int = 2, dropout: float = DROPOUT
) -> nn.Module:
    """A post-norm transformer encoder with the given width, attention heads and layers."""
    require_positive("transformer", width=width, heads=heads, depth=depth)
    return Transformer(inputs, width, heads, depth, dropout)


def transformer_shallow(inputs: InputSpec, *, dropout: float = DROPOUT) -> nn.Module:
    """Two encoder layers, 128 wide, 4 heads."""
    return Transformer(inputs, 128, 4, 2, dropout)


def transformer_medium(inputs: InputSpec, *, dropout: float = DROPOUT) -> nn.Module:
    """Four encoder layers, 128 wide, 4 heads."""
    return Transformer(inputs, 128, 4, 4, dropout)


def transformer_deep(inputs: InputSpec, *, dropout: float = DROPOUT) -> nn.Module:
    """Six encoder layers, 128 wide, 4 heads."""
    return Transformer(inputs, 128, 4, 6, dropout)


def transformer_narrow(inputs: InputSpec, *, dropout: float = DROPOUT) -> nn.Module:
    """Four encoder layers, 64 wide, 4 heads."""
    return Transformer(inputs, 64, 4, 4, dropout)


def transformer_wide(inputs: InputSpec, *, dropout: float = DROPOUT) -> nn.Module:
    """Four encoder layers, 256 wide, 8 heads."""
    return Transformer(inputs, 256, 8, 4, dropout)
