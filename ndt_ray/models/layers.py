"""The small layers that every architecture shares, none of which looks at the leading dimensions of its input.

`[*, B, ...]` in a shape stands for any number of leading dimensions: none in plain PyTorch, one of lanes in the
`stack` engine, which swaps the leaves that own parameters and calls the same forward.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models.init import Constant, Initial, Normal, Uniform

EMBEDDING_WIDTH = 64
"""Of the token embedding in front of models that were made for images."""

Kind = Literal["units", "positions", "tokens"]
Masks = Callable[[int, Sequence[int], float], Tensor]
"""(site, shape, p) -> a mask of that shape with values 0 and 1/(1-p)."""


class Model(nn.Module):
    """A network that names the layers to measure."""

    tracked: dict[str, Kind]
    """Module path -> what its output is: "units" [*, B, F], "positions" [*, B, C, H, W] or "tokens" [*, B, T, D]."""


class Dropout(nn.Module):
    """Dropout by the mask `masks(site, shape, p)` where an engine has set it, else by PyTorch's generator."""

    def __init__(self, p: float, site: int = 0) -> None:
        super().__init__()
        self.p = p
        self.site = site
        self.masks: Masks | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.masks is None:
            return F.dropout(x, self.p)
        return x * self.masks(self.site, x.shape, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, site={self.site}"


def number_dropouts(model: nn.Module) -> int:
    """Give every `Dropout` of `model` its own `site`, counted in traversal order; returns how many there are."""
    dropouts = [m for m in model.modules() if isinstance(m, Dropout)]
    for site, dropout in enumerate(dropouts):
        dropout.site = site
    return len(dropouts)


class PositionalEmbedding(nn.Module):
    """Adds a learned vector to each position: x [*, B, T, D] + weight [T, D] (or [S, T, D], one per lane)."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, width))
        self.initial: dict[str, Initial] = {"weight": Normal(1.0)}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight.unsqueeze(-3)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[-2]}, {self.weight.shape[-1]}"


class MaxPool2d(nn.Module):
    """Maximum over disjoint `size` × `size` squares of x [*, B, C, H, W]; a remainder at the edge is dropped."""

    def __init__(self, size: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        self.size, self.stride, self.padding = size, stride or size, padding

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x.flatten(0, -4), self.size, self.stride, self.padding)
        return unflatten(pooled, 0, x.shape[:-3])

    def extra_repr(self) -> str:
        return f"{self.size}, stride={self.stride}, padding={self.padding}"


class SelfAttention(nn.Module):
    """Multi-head attention with every step of it in a module of its own, so that hooks see it.

    `pattern` passes the softmaxed weights [*, B, heads, queries, keys] through unchanged, before dropout. Initial
    weights are those of `nn.MultiheadAttention`: q, k and v Xavier-uniform as one packed (3·width, width) matrix.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise SpecError(
                f"attention heads must divide the width, but got {width=} {heads=}: choose another of the two"
            )
        self.heads = heads
        self.scale = 1 / math.sqrt(width // heads)
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.pattern = nn.Identity()
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(width, width, bias=bias)
        packed = Uniform(math.sqrt(6 / (width + 3 * width)))
        self.initial: dict[str, Initial] = {f"{name}.weight": packed for name in ("q_proj", "k_proj", "v_proj")}
        if bias:
            self.initial |= {f"{name}.bias": Constant(0.0) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}

    def forward(self, queries: Tensor, keys: Tensor, masked: Tensor | None = None) -> Tensor:
        """[*, B, Q, D], [*, B, T, D] -> [*, B, Q, D]; `masked`, where True, keeps a query from a key."""
        q, k, v = self._split(self.q_proj(queries)), self._split(self.k_proj(keys)), self._split(self.v_proj(keys))
        scores = (q @ k.transpose(-2, -1)) * self.scale
        if masked is not None:
            # Not -inf: a sample of padding alone would turn into NaN, and through the loss the whole batch.
            scores = scores.masked_fill(masked, torch.finfo(scores.dtype).min)
        pattern = self.dropout(self.pattern(scores.softmax(-1)))
        mixed = (pattern @ v).transpose(-3, -2).flatten(-2)
        out: Tensor = self.out_proj(mixed)
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[*, B, T, D] -> [*, B, heads, T, D / heads]."""
        return unflatten(x, -1, (self.heads, -1)).transpose(-3, -2)


def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """`x.unflatten`, which PyTorch leaves untyped."""
    out: Tensor = x.unflatten(dim, tuple(sizes))  # type: ignore[no-untyped-call]
    return out


def token_embedding(inputs: InputSpec, width: int = EMBEDDING_WIDTH) -> nn.Embedding:
    """The embedding that turns ids into vectors; the padding id stays zero."""
    return nn.Embedding(inputs.vocab, width, padding_idx=inputs.padding)


def masked_mean(x: Tensor, keep: Tensor | None) -> Tensor:
    """Mean over tokens [*, B, T, D] -> [*, B, D], over those that `keep` [*, B, T] marks; zero where it marks none."""
    if keep is None:
        return x.mean(-2)
    weight = keep.to(x.dtype)
    return (x * weight.unsqueeze(-1)).sum(-2) / weight.sum(-1, keepdim=True).clamp_min(1)


def require_image(model: str, inputs: InputSpec) -> tuple[int, int, int]:
    """(channels, height, width), or a SpecError that names the models that take `inputs`."""
    if inputs.kind == "image":
        channels, height, width = inputs.shape
        return channels, height, width
    if inputs.kind == "text":
        fitting = "mlp_* (mean of the token embeddings) or transformer_* (the token sequence)"
    else:
        fitting = "modular_transformer, mlp_* or transformer_*"
    raise SpecError(
        f"{model} takes images, but the data set gives {inputs.kind} of shape {inputs.shape}: use {fitting}"
    )


def require_positive(model: str, **sizes: int | Sequence[int]) -> None:
    """SpecError unless every size, or every member of a list of sizes, is at least 1."""
    for name, value in sizes.items():
        if any(size < 1 for size in ([value] if isinstance(value, int) else value)):
            raise SpecError(f"{model}: {name} must be at least 1, but got {name}={value}")


def require_share(model: str, **shares: float) -> None:
    """SpecError unless every share, such as a dropout rate, lies in [0, 1)."""
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise SpecError(f"{model}: {name} must be at least 0 and below 1, but got {name}={value}")
