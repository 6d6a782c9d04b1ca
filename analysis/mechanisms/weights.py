"""How far parameters moved between two moments of training."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine of two arrays taken as vectors; 0 where a norm is 0."""
    x, y = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if x.shape != y.shape:
        raise SpecError(f"a cosine needs arrays of as many numbers, but got {x.size} and {y.size}")
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip(x @ y / norms, -1.0, 1.0)) if norms > 0 else 0.0


def weight_change_magnitude(before: ArrayLike, after: ArrayLike) -> dict[str, float]:
    """l2_norm, relative_change (‖Δ‖/‖before‖; NaN from zero), max_change, mean_change (of |Δ|), cosine_similarity."""
    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if x.shape != y.shape or not x.size:
        raise SpecError(f"a change needs two arrays of one shape, but got {x.shape} and {y.shape}")
    change, norm = np.abs(y - x), float(np.linalg.norm(x))
    length = float(np.linalg.norm(change))
    return {
        "l2_norm": length,
        "relative_change": length / norm if norm > 0 else float("nan"),
        "max_change": float(change.max()),
        "mean_change": float(change.mean()),
        "cosine_similarity": cosine_similarity(x, y),
    }


def distances(rows: Floats) -> tuple[Floats, Floats]:
    """Euclidean distances `[N, N]` and norms `[N]` of the rows of `[N, P]`, from inner products of differences.

    Differences to the first row keep what cancels small: neighbouring checkpoints are 1e-3 of their norm apart.
    """
    offset = rows - rows[0]
    gram = offset @ offset.T
    power = np.diag(gram)
    squared = np.maximum(power[:, None] + power - 2 * gram, 0.0)
    np.fill_diagonal(squared, 0.0)
    return np.sqrt(squared), np.linalg.norm(rows, axis=1)
