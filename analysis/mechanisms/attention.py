"""What attention heads do: entropy, span, divergence and the patterns of known heads, from attention weights alone.

A pattern is `[n, heads, queries, keys]`, rows that sum to 1. Queries are the last positions where there are fewer of
them than keys. Falling entropy is not specialisation by itself: entropy collapse (Zhai et al. 2023) is a failure.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
EPSILON = 1e-10
"""Inside the founding study's logarithm."""


def attention_entropy(attn: ArrayLike, from_logits: bool = False) -> float:
    """-sum p ln(p + 1e-10) over keys, mean over everything else, in nats: ln n for uniform weights, 0 for one key.

    `from_logits`: `attn` holds scores, which are softmaxed here (the founding study did so even to weights).
    """
    weights = np.asarray(attn, dtype=np.float64)
    if weights.ndim < 1 or not weights.size:
        raise SpecError(f"attention weights need an axis of keys, but got shape {weights.shape}")
    if from_logits:
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    return float(-(weights * np.log(weights + EPSILON)).sum(-1).mean())


def attention_specialization(attn: ArrayLike) -> dict[str, float]:
    """Mean, smallest, largest entropy of heads `[n, heads, q, k]`, their SD, and their range (specialization_index)."""
    weights = np.asarray(attn, dtype=np.float64)
    if weights.ndim != 4:
        raise SpecError(f"attention weights must be [n, heads, queries, keys], but got shape {weights.shape}")
    heads = np.array([attention_entropy(weights[:, h]) for h in range(weights.shape[1])])
    return {
        "mean_entropy": float(heads.mean()),
        "min_entropy": float(heads.min()),
        "max_entropy": float(heads.max()),
        "entropy_std": float(heads.std()),
        "specialization_index": float(heads.max() - heads.min()),
    }


def available_keys(attn: NDArray[Any], ids: NDArray[Any] | None = None, padding: int | None = None) -> Bools:
    """Keys that a query may attend to, `[n, q, k]`: not masked in every sample, and not padding."""
    free = (attn > 0).any(axis=(0, 1))
    found = np.broadcast_to(free, (len(attn), *free.shape))
    if ids is None or padding is None or ids.shape != (len(attn), free.shape[1]):
        return found
    return np.asarray(found & (ids != padding)[:, None, :])


class Heads:
    """Attention weights with what each query could have attended to; every mean is over queries of real tokens."""

    def __init__(self, attn: ArrayLike, available: Bools | None = None) -> None:
        self.attn: Floats = np.asarray(attn, dtype=np.float64)
        if self.attn.ndim != 4:
            raise SpecError(f"attention weights must be [n, heads, queries, keys], but got shape {self.attn.shape}")
        n, self.heads, queries, keys = self.attn.shape
        self.available = (
            available_keys(self.attn) if available is None else np.broadcast_to(available, (n, queries, keys))
        )
        self.count = self.available.sum(-1)
        """Available keys of each query, `[n, q]`."""
        self.positions = np.arange(keys - queries, keys)
        real = np.asarray(self.available.any(1))  # padding is no key of anybody
        self.valid: Bools = (self.count > 0) & real[:, self.positions]

    def entropy(self) -> Floats:
        """Nats, `[heads]`."""
        return self._mean(self._entropies(), self.valid)

    def entropy_normalised(self) -> Floats:
        """Entropy / ln(available keys), `[heads]`: 1 where attention is uniform. Queries of one key do not count."""
        usable = self.valid & (self.count > 1)
        return self._mean(self._entropies() / np.log(np.where(usable, self.count, 2))[:, None], usable)

    def uniform_entropy(self) -> float:
        """Entropy of attention that is uniform over the available keys, in nats."""
        return float(np.log(self.count[self.valid]).mean()) if self.valid.any() else float("nan")

    def span(self) -> tuple[Floats, float]:
        """Mean distance in tokens from query to key, `[heads]`, and that of uniform attention."""
        distance = np.abs(self.positions[:, None] - np.arange(self.attn.shape[3]))
        uniform = (self.available * distance).sum(-1) / np.maximum(self.count, 1)
        return self._mean((self.attn * distance).sum(-1), self.valid), float(uniform[self.valid].mean())

    def confidence(self) -> tuple[Floats, float]:
        """Mean largest weight, `[heads]`, and that of uniform attention."""
        return self._mean(self.attn.max(-1), self.valid), float((1 / self.count[self.valid]).mean())

    def divergence(self) -> Floats:
        """Jensen-Shannon divergence of every two heads, `[heads, heads]`, in nats: 0 for equal ones, at most ln 2."""
        found = np.zeros((self.heads, self.heads))
        entropies = self._entropies()
        for i in range(self.heads):
            for j in range(i):
                middle = _entropy((self.attn[:, i] + self.attn[:, j]) / 2)
                excess = middle - (entropies[:, i] + entropies[:, j]) / 2
                found[i, j] = found[j, i] = max(0.0, float(excess[self.valid].mean()))
        return found

    def score(self, targets: Bools) -> tuple[Floats, float]:
        """Weight on target keys `[n, q, k]`, mean over queries that have any, `[heads]`, and that of uniform attention.

        NaN where no query has a target.
        """
        targets = targets & self.available
        usable = self.valid & targets.any(-1)
        if not usable.any():
            return np.full(self.heads, np.nan), float("nan")
        chance = targets.sum(-1)[usable] / self.count[usable]
        return self._mean((self.attn * targets[:, None]).sum(-1), usable), float(chance.mean())

    def previous_token(self) -> tuple[Floats, float]:
        """Weight on the token before the query's (Clark et al. 2019)."""
        keys = self.attn.shape[3]
        return self.score(np.broadcast_to(self.positions[:, None] - 1 == np.arange(keys), self.available.shape))

    def duplicate_token(self, ids: NDArray[Any]) -> tuple[Floats, float]:
        """Weight on earlier tokens that are the query's own; `ids` [n, keys] (Elhage et al. 2021)."""
        return self.score(_earlier(ids, self.positions, shift=0))

    def induction(self, ids: NDArray[Any]) -> tuple[Floats, float]:
        """Weight on tokens that came after an earlier occurrence of the query's (Olsson et al. 2022)."""
        return self.score(_earlier(ids, self.positions, shift=1))

    def _entropies(self) -> Floats:
        return _entropy(self.attn)

    def _mean(self, values: Floats, usable: Bools) -> Floats:
        """Mean over usable queries of `[n, heads, q]`; NaN where there are none."""
        total = usable.sum()
        return (values * usable[:, None]).sum((0, 2)) / total if total else np.full(self.heads, np.nan)


def _entropy(weights: Floats) -> Floats:
    """-sum p ln p over the last axis, 0 ln 0 = 0."""
    return np.asarray(-(weights * np.log(np.where(weights > 0, weights, 1.0))).sum(-1))


def _earlier(ids: NDArray[Any], positions: NDArray[np.int64], shift: int) -> Bools:
    """`[n, q, k]`: the token `shift` places before key k is the query's own, and an earlier one."""
    n, keys = ids.shape
    key = np.arange(keys)
    equal = np.zeros((n, len(positions), keys), dtype=bool)
    equal[:, :, shift:] = ids[:, positions, None] == ids[:, None, : keys - shift]
    return equal & (key - shift < positions[:, None]) & (key < positions[:, None] + (shift > 0))


def summary(attn: ArrayLike, ids: NDArray[Any] | None = None, padding: int | None = None) -> Mapping[str, Any]:
    """All of it: metric -> (values of the heads, value of uniform attention)."""
    weights = np.asarray(attn)
    heads = Heads(weights, available_keys(weights, ids, padding))
    found: dict[str, tuple[Floats, float]] = {
        "attention_entropy": (heads.entropy(), heads.uniform_entropy()),
        "attention_entropy_normalised": (heads.entropy_normalised(), 1.0),
        "attention_span": heads.span(),
        "attention_confidence": heads.confidence(),
        "previous_token_score": heads.previous_token(),
    }
    divergence = heads.divergence()
    others = max(heads.heads - 1, 1)
    found["head_divergence"] = (divergence.sum(1) / others if heads.heads > 1 else np.array([np.nan]), 0.0)
    if ids is not None and ids.shape == (len(weights), weights.shape[3]):
        found["duplicate_token_score"] = heads.duplicate_token(ids)
        found["induction_score"] = heads.induction(ids)
    return found
