"""TwoNN intrinsic dimension (Facco et al. 2017), from ratios of distances to the two nearest neighbours.

Descriptive only: it underestimates high dimensions, and does not follow the true dimension of representations
(Schulte & Rügamer, arXiv 2604.20276). No verdict stands on it.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from ndt_ray.errors import SpecError

DISCARD = 0.1
"""Share of the largest ratios left out of the fit: the far tail does not follow the model."""
FEWEST = 20


def twonn(points: ArrayLike, discard: float = DISCARD) -> float:
    """Slope through the origin of -ln(1 - F(μ)) on ln μ, μ = r2 / r1, F the empirical distribution.

    `points` [n, d]; duplicates count once. NaN for under 20 different points.
    """
    x = np.asarray(points, dtype=np.float64)
    if x.ndim != 2 or not 0 <= discard < 1:
        raise SpecError(f"points must be [n, d] and discard in [0, 1), but got ({x.shape=}, {discard=})")
    if not np.isfinite(x).all():
        return float("nan")
    x = np.unique(x, axis=0)
    if len(x) < FEWEST:
        return float("nan")
    near = cKDTree(x).query(x, k=3)[0] if x.shape[1] <= 20 else _nearest(x)
    ratio = np.sort(near[:, 2] / near[:, 1])
    kept = int(len(x) * (1 - discard))
    log_ratio = np.log(ratio[:kept])
    share = -np.log(1 - np.arange(kept) / len(x))
    power = float(log_ratio @ log_ratio)
    return float(log_ratio @ share) / power if power > 0 else float("nan")


def _nearest(
    x: "np.ndarray[tuple[int, int], np.dtype[np.float64]]",
) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Distances `[n, 3]` to oneself and the two nearest: in many dimensions a tree is slower than all pairs."""
    found = np.zeros((len(x), 3))
    power = (x**2).sum(1)
    for start in range(0, len(x), 512):
        rows = slice(start, start + 512)
        squared = np.maximum(power[rows, None] + power - 2 * x[rows] @ x.T, 0.0)
        places = np.argpartition(squared, 2, axis=1)[:, :3]
        exact = np.sqrt(((x[rows, None] - x[places]) ** 2).sum(-1))  # products of large norms lose small distances
        found[rows] = np.sort(exact, axis=1)
    return found
