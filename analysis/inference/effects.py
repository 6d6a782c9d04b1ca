"""Effect sizes between two groups of seeds. Positive: the first group is larger. NaN where a group is too small.

Sources: Hedges 1981 (g and its exact correction), Lakens 2013 (g_av of pairs), Cliff 1993 (delta), Kerby 2014
(rank-biserial of pairs), McGraw & Wong 1992 (probability of superiority), Agarwal et al. 2021 (interquartile mean).
"""

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr
from scipy.stats import rankdata
from scipy.stats import t as student

Floats = NDArray[np.float64]
NAN = float("nan")


def hedges_g(a: ArrayLike, b: ArrayLike) -> float:
    """Difference of means / pooled SD, corrected for small samples; NaN under 2 + 2 values or without any spread."""
    x, y = _clean(a), _clean(b)
    if min(len(x), len(y)) < 2:
        return NAN
    df = len(x) + len(y) - 2
    pooled = math.sqrt(((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / df)
    return correction(df) * float(x.mean() - y.mean()) / pooled if pooled > 0 else NAN


def hedges_g_av(a: ArrayLike, b: ArrayLike) -> float:
    """For pairs: mean difference / root mean square of the two SDs, corrected with 2 (n - 1) degrees of freedom."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 2:
        return NAN
    average = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    return correction(2 * (len(x) - 1)) * float((x - y).mean()) / average if average > 0 else NAN


def g_interval(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of Hedges' g of two independent groups, by inverting the noncentral t; its unit is the seed."""
    x, y = _clean(a), _clean(b)
    g = hedges_g(x, y)
    if not math.isfinite(g):
        return NAN, NAN
    df = len(x) + len(y) - 2
    scale = math.sqrt(len(x) * len(y) / (len(x) + len(y)))
    t = g / correction(df) * scale
    tail = (1 - confidence) / 2
    low, high = (_noncentrality(t, df, share) * correction(df) / scale for share in (1 - tail, tail))
    return low, high


def cliffs_delta(a: ArrayLike, b: ArrayLike) -> float:
    """P(first > second) - P(first < second) over all cross pairs: -1 to 1."""
    x, y = _clean(a), _clean(b)
    return float(np.sign(x[:, None] - y[None, :]).mean()) if len(x) and len(y) else NAN


def superiority(a: ArrayLike, b: ArrayLike) -> float:
    """Probability that a value of the first group exceeds one of the second; ties count half."""
    return (cliffs_delta(a, b) + 1) / 2


def rank_biserial(a: ArrayLike, b: ArrayLike) -> float:
    """For pairs: (sum of ranks of positive differences - of negative ones) / their total; zeros are left out."""
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    d = d[np.isfinite(d) & (d != 0)]
    if not len(d):
        return NAN
    ranks = rankdata(np.abs(d))
    return float(np.sum(np.sign(d) * ranks) / ranks.sum())


def log_ratio(a: ArrayLike, b: ArrayLike) -> float:
    """Log of the ratio of means, where both are positive; else NaN."""
    x, y = _clean(a), _clean(b)
    if not len(x) or not len(y) or x.mean() <= 0 or y.mean() <= 0:
        return NAN
    return math.log(x.mean() / y.mean())


def log_ratio_interval(a: ArrayLike, b: ArrayLike, paired: bool, confidence: float = 0.95) -> tuple[float, float]:
    """Of the log of the ratio of means: t on the delta method's error, degrees of freedom as Welch's; NaN as the ratio.

    At six seeds it covers 96 % or more of Poisson counts (means 1 to 3), 95 % of log-normal values (SD 0.5) and 93 % of
    exponential ones (two groups, 3,000 simulations); pairs 1 % less.
    """
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    centre = log_ratio(x, y)
    if not math.isfinite(centre) or min(len(x), len(y)) < 2:
        return NAN, NAN
    if paired:
        error, df = float((x / x.mean() - y / y.mean()).std(ddof=1)) / math.sqrt(len(x)), float(len(x) - 1)
    else:
        parts = [float(v.var(ddof=1)) / len(v) / float(v.mean()) ** 2 for v in (x, y)]
        error = math.sqrt(sum(parts))
        df = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (x, y), strict=True)) if error else 1.0
    if error == 0:
        return NAN, NAN
    half = float(student.ppf((1 + confidence) / 2, df)) * error
    return centre - half, centre + half


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: without the lowest and the highest quarter (rounded down to whole seeds)."""
    x = np.sort(_clean(values))
    cut = len(x) // 4
    return float(x[cut : len(x) - cut].mean()) if len(x) else NAN


def correction(df: int) -> float:
    """Hedges' exact factor that takes the bias out of d: 1 - 3 / (4 df - 1), nearly."""
    if df < 2:
        return NAN
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)


def _noncentrality(t: float, df: int, share: float) -> float:
    """The noncentrality at which P(T <= t) is `share`. (SciPy's nct is NaN in places.)"""
    scales, weights = _scales(df)

    def missed(delta: float) -> float:
        return float(weights @ ndtr(t * scales - delta)) - share

    width = 10.0 + abs(t)
    low, high = t - width, t + width
    while missed(low) < 0:
        low -= width
    while missed(high) > 0:
        high += width
    return float(brentq(missed, low, high, xtol=1e-6))


@functools.lru_cache(maxsize=256)
def _scales(df: int) -> tuple[Floats, Floats]:
    """chi / sqrt(df) at the medians of 400 slices of its distribution, and the slices' probabilities."""
    u = np.linspace(0.0, 1.0, 401)
    # Slices narrow towards both ends, where a large t looks.
    shares = u * u * (3 - 2 * u)
    middles = (shares[1:] + shares[:-1]) / 2
    return np.sqrt(chdtri(df, 1 - middles) / df), np.diff(shares)


def _clean(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64).ravel()
    return found[np.isfinite(found)]
