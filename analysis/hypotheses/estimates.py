"""What hypotheses estimate: a mean over trials, a correlation, what a regression explains of trials left out."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from ndt_ray.analysis.inference.permutation import sign_flips
from ndt_ray.analysis.inference.seeds import interval
from ndt_ray.analysis.nulls import generator

Floats = NDArray[np.float64]
FEWEST = 4
"""Trials below which no verdict is given: four have 16 sign flips and 24 permutations."""
PERMUTATIONS = 4999


@dataclass(frozen=True)
class Tested:
    """A hypothesis' numbers, before the family is known. NaN where there is none."""

    hypothesis: str
    scope: str
    statement: str
    metric: str
    prediction: str
    n: int
    estimate: float = math.nan
    lo: float = math.nan
    hi: float = math.nan
    p: float = math.nan
    p_t: float = math.nan
    r2_in_sample: float = math.nan
    error: float = math.nan
    """Standard error of the estimate, of a correlation of its atanh."""
    lacks: str | None = None
    """What is missing where nothing could be tested; None: trials."""


def of_mean(hypothesis: str, scope: str, statement: str, metric: str, prediction: str, values: ArrayLike) -> Tested:
    """Mean over trials against 0: sign flips decide, for they need no shape; the paired t test stands beside."""
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean()) if len(x) else math.nan
    within, error = interval(x), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else math.nan
    return Tested(
        hypothesis, scope, statement, metric, prediction, len(x), mean, within.lo, within.hi, sign_flips(x).p,
        p_t=paired_t(x), error=error,
    )  # fmt: skip


def paired_t(differences: ArrayLike) -> float:
    """Two-sided p of Student's t of differences of pairs; NaN for under two, and where all are equal."""
    x = np.asarray(differences, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0:
        return math.nan
    return float(2 * stdtr(len(x) - 1, -abs(x.mean()) * math.sqrt(len(x)) / x.std(ddof=1)))


def correlation(x: ArrayLike, y: ArrayLike) -> tuple[float, float, float, float]:
    """Pearson r, Fisher's 95 % interval, a permutation p; NaN where one of them is constant or there are under 4."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return (math.nan,) * 4
    r = float(np.corrcoef(a, b)[0, 1])
    half = 1.96 / math.sqrt(len(a) - 3)
    z = math.atanh(float(np.clip(r, -0.999999, 0.999999)))
    shuffled = generator("correlation", str(len(a))).permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1)
    null = (shuffled - b.mean()) @ (a - a.mean()) / (len(a) * a.std() * b.std())
    p = (1 + int((np.abs(null) >= abs(r) - 1e-12).sum())) / (1 + PERMUTATIONS)
    return r, math.tanh(z - half), math.tanh(z + half), p


def regression(x: Floats, y: Floats) -> tuple[float, float, float]:
    """R² of least squares on rows left out one by one, its permutation p, and R² on the rows that were fitted.

    NaN with too few rows or constant y. The last is no evidence: of as many rows as coefficients it is 1.
    """
    if len(y) < max(FEWEST, x.shape[1] + 3) or np.ptp(y) == 0:
        return math.nan, math.nan, math.nan
    design = np.column_stack([np.ones(len(y)), x])
    hat = design @ np.linalg.pinv(design)
    left = 1 - np.clip(np.diag(hat), 0, 1 - 1e-9)

    def r2(targets: Floats) -> Floats:
        """Of each row of targets `[k, n]`; residuals and means of rows left out, without fitting again."""
        residual = (targets - targets @ hat) / left
        mean = (targets.sum(1, keepdims=True) - targets) / (targets.shape[1] - 1)
        return np.asarray(1 - (residual**2).sum(1) / ((targets - mean) ** 2).sum(1))

    observed = float(r2(y[None])[0])
    shuffled = generator("regression", str(x.shape)).permuted(np.tile(y, (PERMUTATIONS, 1)), axis=1)
    p = (1 + int((r2(shuffled) >= observed - 1e-12).sum())) / (1 + PERMUTATIONS)
    return observed, p, float(1 - ((y - hat @ y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
