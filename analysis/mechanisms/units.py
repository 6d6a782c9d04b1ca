"""What single units answer to: class selectivity, sparseness, diversity, and units that never or always answer.

Responses are `[n, units]`, never negative: positive parts of a layer's outputs, averaged over positions or tokens.
Selectivity is neither sufficient nor necessary for use (Leavitt & Morcos 2020), and above 0 by chance: it stands
beside its value under shuffled labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
THRESHOLD = 0.1
"""Of the founding study, for an activation to count as there."""


def activation_sparsity(acts: ArrayLike, threshold: float = THRESHOLD) -> float:
    """1 - mean(|a| > threshold): the founding study's sparsity, 1 where nothing answers; not `fraction_active`."""
    return 1.0 - float((np.abs(np.asarray(acts)) > threshold).mean())


def fraction_active(acts: ArrayLike, threshold: float = THRESHOLD) -> float:
    """mean(a > threshold): what the second founding document calls sparsity, with the opposite sign."""
    return float((np.asarray(acts) > threshold).mean())


def activation_selectivity(acts: ArrayLike, labels: ArrayLike, classes: int | None = None) -> Floats:
    """Mean activation of each feature for each class, `[features, classes]`; NaN for a class without samples."""
    values, y = np.asarray(acts, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or y.shape != (len(values),):
        raise SpecError(f"activations must be [n, features] with n labels, but got {values.shape} and {y.shape}")
    onehot = np.equal.outer(np.arange(int(y.max()) + 1 if classes is None else classes), y).astype(np.float64)
    counts = onehot.sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray((onehot @ values / counts[:, None]).T)


def selectivity_index(class_means: ArrayLike) -> Floats:
    """(μ_max - μ_rest) / (μ_max + μ_rest) of `[..., classes]`, μ_rest the mean of the others' means (Morcos 2018).

    1 for one class alone, 0 for equal means, NaN for a unit that is silent for all or that has one class only.
    """
    means = np.asarray(class_means, dtype=np.float64)
    there = np.isfinite(means)
    count = there.sum(-1)
    top = np.where(there, means, -np.inf).max(-1, initial=-np.inf)
    rest = (np.where(there, means, 0.0).sum(-1) - top) / np.maximum(count - 1, 1)
    total = top + rest
    usable = (count > 1) & (total > 0)
    return np.where(usable, (top - rest) / np.where(usable, total, 1.0), np.nan)


@dataclass(frozen=True)
class Selectivity:
    """Of each unit, `[units]`, with its null; `null_means` are means over units, `[draws]`."""

    index: Floats
    best: NDArray[np.int64]
    class_means: Floats
    chance: Floats
    p: Floats
    null_means: Floats


def class_selectivity(
    responses: Floats, labels: NDArray[np.int64], classes: int, rng: np.random.Generator, draws: int = 50
) -> Selectivity:
    """Selectivity indices and what shuffled labels give (`draws` of them)."""
    means = activation_selectivity(responses, labels, classes)
    index = selectivity_index(means)
    null = np.stack(
        [selectivity_index(activation_selectivity(responses, rng.permutation(labels), classes)) for _ in range(draws)]
    )
    live = np.isfinite(index)
    at_least = (null >= np.where(live, index, np.inf)).sum(0)
    p = np.where(live, (1 + at_least) / (1 + draws), np.nan)
    chance = np.full(len(index), np.nan)
    chance[live] = null[:, live].mean(0)
    null_means = null[:, live].mean(1) if live.any() else np.full(draws, np.nan)
    best = np.where(np.isfinite(means), means, -np.inf).argmax(1)
    return Selectivity(index, best, means, chance, p, null_means)


def treves_rolls(responses: Floats, axis: int = 0) -> Floats:
    """(mean r)² / mean r² along an axis (0: lifetime, 1: population): 1 dense, 1/n one answer; NaN for silence."""
    mean, square = responses.mean(axis), (responses**2).mean(axis)
    return np.where(square > 0, mean**2 / np.where(square > 0, square, 1), np.nan)


def hoyer(responses: Floats, axis: int = 0) -> Floats:
    """(√n - |r|₁/|r|₂) / (√n - 1): 0 dense, 1 a single answer (Hoyer 2004); NaN for silence or n = 1."""
    n = responses.shape[axis]
    one, two = np.abs(responses).sum(axis), np.sqrt((responses**2).sum(axis))
    usable = (two > 0) & (n > 1)
    return np.where(usable, (np.sqrt(n) - one / np.where(usable, two, 1)) / (np.sqrt(n) - 1 if n > 1 else 1), np.nan)


def diversity(acts: ArrayLike, threshold: float = 0.0) -> int:
    """Different patterns of active units (at all positions) over the stimuli `[n, …]`, at most n.

    How many of the stimuli the layer's gates tell apart; each pattern is a linear region of the layer.
    """
    values = np.asarray(acts)
    bits = np.packbits(values.reshape(len(values), -1) > threshold, axis=1)
    return len({row.tobytes() for row in bits})


def unit_diversity(acts: ArrayLike, unit_axis: int, threshold: float = 0.0) -> NDArray[np.int32]:
    """`diversity` of each unit alone, `[units]`: different patterns of activity over its positions or tokens.

    Without positions a unit is on or off, and has 2 at most; a map of m positions has up to min(n, 2^m).
    """
    values = np.moveaxis(np.asarray(acts), unit_axis, 0)
    return np.array([diversity(unit, threshold) for unit in values], dtype=np.int32)


def states(acts: NDArray[np.float32], unit_axis: int) -> NDArray[np.str_]:
    """dead, always_on or live, of each unit: whether its output is ever, or always, above 0, at any position."""
    axes = tuple(a for a in range(acts.ndim) if a != unit_axis % acts.ndim)
    never, always = acts.max(axis=axes) <= 0, acts.min(axis=axes) > 0
    return np.where(never, "dead", np.where(always, "always_on", "live"))
