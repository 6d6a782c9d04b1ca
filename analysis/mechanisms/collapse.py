"""Neural collapse (Papyan, Han & Donoho 2020) of the penultimate representation, and how classes cluster.

Measured on held-out stimuli, where the terminal phase shows less than on training data.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Collapse:
    """NaN where it does not exist: fewer than two stimuli of a class (nc1), no classifier (nc3, nc4), equal means."""

    nc1: float = np.nan
    """tr(Σ_W Σ_B⁺) / C: spread within classes against spread between them; → 0."""
    nc2_norm: float = np.nan
    """SD / mean of the lengths of centred class means: equinorm; → 0."""
    nc2_angle: float = np.nan
    """Mean |cos + 1/(C - 1)| over pairs of class means: equiangular at the widest; → 0."""
    nc3: float = np.nan
    """‖W/‖W‖ - M/‖M‖‖_F of the classifier and the class means: self-duality; → 0."""
    nc4: float = np.nan
    """Share of stimuli where the network and the nearest class mean decide differently; → 0."""


def neural_collapse(
    features: Floats,
    labels: NDArray[np.int64],
    classes: int,
    weight: Floats | None = None,
    decisions: NDArray[np.int64] | None = None,
) -> Collapse:
    """NC1-NC4 of features `[n, d]`; `weight` [classes, d] of the classifier, `decisions` [n] of the network."""
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes or counts.min() < 2:
        return Collapse()
    onehot = np.equal.outer(np.arange(classes), labels).astype(np.float64)
    means = onehot @ features / counts[:, None]
    centred = means - means.mean(0)
    lengths = np.linalg.norm(centred, axis=1)
    if not np.isfinite(lengths).all() or lengths.min() <= 1e-12 * (1 + np.abs(means).max()):
        return Collapse()
    within = features - means[labels]
    # Σ_B has rank C - 1 at most: its pseudo-inverse lives in the span of the class means.
    _, singular, basis = np.linalg.svd(centred, full_matrices=False)
    keep = singular > singular[0] * 1e-10
    inside = within @ basis[keep].T
    nc1 = float(((inside**2).mean(0) / (singular[keep] ** 2 / classes)).sum() / classes)
    unit = centred / lengths[:, None]
    cosines = (unit @ unit.T)[np.triu_indices(classes, 1)]
    nc3 = nc4 = np.nan
    if weight is not None and weight.shape == centred.shape and np.linalg.norm(weight) > 0:
        nc3 = float(np.linalg.norm(weight / np.linalg.norm(weight) - centred / np.linalg.norm(centred)))
    if decisions is not None:
        distance = ((features**2).sum(1)[:, None] - 2 * features @ means.T) + (means**2).sum(1)
        nc4 = float((distance.argmin(1) != decisions).mean())
    return Collapse(
        nc1, float(lengths.std() / lengths.mean()), float(np.abs(cosines + 1 / (classes - 1)).mean()), nc3, nc4
    )


def silhouette(features: Floats, labels: NDArray[np.int64]) -> float:
    """Mean silhouette of the true classes in -1..1, 0 for no clustering; NaN for under two classes or equal rows."""
    present = len(np.unique(labels))
    if not 2 <= present < len(labels) or not np.isfinite(features).all() or np.ptp(features, axis=0).max() == 0:
        return float("nan")
    return float(silhouette_score(features, labels))
