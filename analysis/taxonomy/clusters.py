"""Are there clusters, how many, and do they come back? k-means with silhouette, gap statistic and bootstrap Jaccard.

Sources: Rousseeuw 1987 (silhouette), Tibshirani, Walther & Hastie 2001 (gap), Hennig 2007 (a cluster whose mean Jaccard
over resamples stays under .6 is none). Resamples draw whole runs: events of one run are no independent points.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture

from ndt_ray.analysis.detection import Floats, Ints

STABLE = 0.6
_STARTS = 5
_LARGEST = 2_000
"""Points beyond which the silhouette is taken over a seeded sample of this many."""


@dataclass(frozen=True)
class Fit:
    """k-means at one k; `gap` and its standard error are NaN where not asked for."""

    k: int
    inertia: float
    silhouette: float
    gap: float
    gap_se: float
    bic: float
    labels: Ints


def standardised(values: Floats) -> Floats:
    """Columns with mean 0 and SD 1; a constant column becomes 0."""
    spread = values.std(axis=0)
    scaled: Floats = np.divide(values - values.mean(axis=0), spread, out=np.zeros_like(values), where=spread > 0)
    return scaled


def silhouette(points: Floats, labels: Ints) -> float:
    """Mean silhouette; NaN for one cluster, or as many as points."""
    several = 1 < len(np.unique(labels)) < len(points)
    return float(silhouette_score(points, labels)) if several else float("nan")


def kmeans(points: Floats, k: int, seed: int = 0, starts: int = _STARTS) -> tuple[Ints, float]:
    """Labels and inertia; k must not exceed the number of distinct points."""
    if k == 1:
        centred = points - points.mean(axis=0)
        return np.zeros(len(points), np.int64), float((centred**2).sum())
    found = KMeans(n_clusters=k, random_state=seed, n_init=starts).fit(points)
    return found.labels_.astype(np.int64), float(found.inertia_)


def largest_k(points: Floats, limit: int) -> int:
    """The largest sensible k: at most `limit`, a tenth of the points, and fewer than the distinct ones."""
    distinct = len(np.unique(np.round(points, 9), axis=0))
    return max(1, min(limit, len(points) // 10, distinct - 1))


def fits(points: Floats, limit: int = 8, references: int = 20, seed: int = 0) -> list[Fit]:
    """k-means for k = 1 … largest_k. Gap references: uniform in the box of the principal axes of the points."""
    if len(points) == 0:
        return []
    rng = np.random.default_rng(seed)
    centred = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    turned = centred @ axes.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    boxes = [rng.uniform(low, high, size=turned.shape) @ axes for _ in range(references)]
    sample = rng.choice(len(points), _LARGEST, replace=False) if len(points) > _LARGEST else np.arange(len(points))
    found = []
    for k in range(1, largest_k(points, limit) + 1):
        labels, inertia = kmeans(points, k, seed)
        logs = np.array([_log(kmeans(box, k, seed, starts=1)[1]) for box in boxes])
        gap = float(logs.mean() - _log(inertia)) if references else np.nan
        error = float(logs.std() * np.sqrt(1 + 1 / references)) if references else np.nan
        shape = silhouette(points[sample], labels[sample])
        found.append(Fit(k, inertia, shape, gap, error, _bic(points, k, seed), labels))
    return found


def _bic(points: Floats, k: int, seed: int) -> float:
    if len(points) < 2:
        return float("nan")
    mixture = GaussianMixture(k, covariance_type="diag", random_state=seed, reg_covar=1e-3, max_iter=300, tol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # too many components: its criterion says so as well
        return float(mixture.fit(points).bic(points))


def chosen(found: list[Fit]) -> tuple[int, int, int]:
    """k by silhouette, k by gap, and the one used: 1 where the gap sees no clusters, else the silhouette's."""
    if not found:
        return 0, 0, 0
    shapes = {f.k: f.silhouette for f in found if np.isfinite(f.silhouette)}
    by_shape = max(shapes, key=lambda k: shapes[k]) if shapes else 1
    by_gap = found[-1].k
    for here, after in zip(found, found[1:], strict=False):
        if here.gap >= after.gap - after.gap_se:
            by_gap = here.k
            break
    return by_shape, by_gap, 1 if by_gap == 1 else by_shape


def jaccard(points: Floats, labels: Ints, runs: Ints, resamples: int = 50, seed: int = 0) -> Floats:
    """Mean over resamples of runs of each cluster's best Jaccard overlap with a cluster found anew `[k]`."""
    k = int(labels.max(initial=-1)) + 1
    members = [np.flatnonzero(runs == r) for r in np.unique(runs)]
    rng = np.random.default_rng(seed)
    total, counted = np.zeros(k), np.zeros(k)
    for b in range(resamples):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        if len(np.unique(np.round(points[drawn], 9), axis=0)) < max(k, 2):
            continue
        again, _ = kmeans(points[drawn], k, seed + b, starts=2)
        places, first = np.unique(drawn, return_index=True)  # a run drawn twice counts once
        overlap = _overlap(labels[places], again[first], k)
        known = np.isin(np.arange(k), labels[places])
        total[known] += overlap.max(axis=1)[known]
        counted += known
    mean: Floats = np.divide(total, counted, out=np.full(k, np.nan), where=counted > 0)
    return mean


def _overlap(a: Ints, b: Ints, k: int) -> Floats:
    both = np.zeros((k, k))
    np.add.at(both, (a, b), 1)
    union = both.sum(axis=1, keepdims=True) + both.sum(axis=0, keepdims=True) - both
    shares: NDArray[np.float64] = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return shares


def _log(inertia: float) -> float:
    return float(np.log(max(inertia, 1e-12)))
