"""Permutation tests of differences of means: exact while there are few arrangements.

Groups: all regroupings of the units. Pairs: all sign flips of the differences. Several treatments of each block: all
their orders in it. Two-sided on the absolute difference;
ties count as at least as large, so that p is never too small. Beyond `EXACT` arrangements so many are drawn, with the
observed one among them (Phipson & Smyth 2010).
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_ray.analysis.nulls import generator
from ndt_ray.plan.power import smallest_p

Floats = NDArray[np.float64]
EXACT = 20_000
DRAWN = 9_999
ROUNDING = 1e-9
"""Relative to the largest difference: nearer ones are equal."""


@dataclass(frozen=True)
class Tested:
    """Two-sided p, whether all arrangements were enumerated, and the smallest p there could have been."""

    p: float
    exact: bool
    smallest: float


def unpaired(a: ArrayLike, b: ArrayLike, *key: str) -> Tested:
    """Mean of one group against that of another; `key` names the draws where not all regroupings are made."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    n, m = len(x), len(y)
    if min(n, m) < 1 or n + m < 3:
        return Tested(math.nan, True, 1.0)
    exact = math.comb(n + m, n) <= EXACT
    chosen = _groups(n, m) if exact else _drawn_groups(n, m, key)
    values = np.concatenate([x, y])
    values = values - values.mean()
    gaps = np.abs(chosen @ values) * (1 / n + 1 / m)  # the others' sum is minus this one's
    return _p(gaps, abs(float(x.mean() - y.mean())), exact, smallest_p(n, m, paired=False))


def paired(a: ArrayLike, b: ArrayLike, *key: str) -> Tested:
    """Mean of the differences of pairs against 0."""
    return sign_flips(np.asarray(a, np.float64).ravel() - np.asarray(b, np.float64).ravel(), *key)


def sign_flips(values: ArrayLike, *key: str) -> Tested:
    """Mean of values, symmetric about 0 under the null, against 0; NaN for under two."""
    d = np.asarray(values, np.float64).ravel()
    n = len(d)
    if n < 2:
        return Tested(math.nan, True, 1.0)
    exact = 2**n <= EXACT
    signs = _signs(n) if exact else 1.0 - 2.0 * generator("sign flips", *key).integers(0, 2, (DRAWN, n))
    return _p(np.abs(signs @ d) / n, abs(float(d.mean())), exact, smallest_p(n, n, paired=True))


def within_blocks(values: ArrayLike, *key: str) -> Tested:
    """Whether the means of treatments differ, `[blocks, treatments]`: their order is permuted within every block.

    The statistic is the variance of the treatments' means (Friedman's test on values instead of ranks). NaN for under
    two blocks or treatments.
    """
    table = np.asarray(values, np.float64)
    n, k = table.shape
    if n < 2 or k < 2:
        return Tested(math.nan, True, 1.0)
    table = table - table.mean(axis=1, keepdims=True)
    count = math.factorial(k) ** (n - 1)  # one order for all blocks at once changes nothing: the first stays as it is
    if exact := count <= EXACT:
        orders = np.array(list(itertools.permutations(range(k))))
        sums = table[:1]
        for row in table[1:]:
            sums = (sums[:, None, :] + row[orders]).reshape(-1, k)
    else:
        rng = generator("within blocks", *key)
        sums = np.stack([rng.permuted(table, axis=1).sum(axis=0) for _ in range(DRAWN)])
    observed = float((table.sum(axis=0) ** 2).sum())
    return _p((sums**2).sum(axis=1), observed, exact, 1 / count)


def _p(gaps: Floats, observed: float, exact: bool, smallest: float) -> Tested:
    slack = ROUNDING * max(observed, float(gaps.max(initial=0.0)))
    hits = int((gaps >= observed - slack).sum())
    if exact:
        return Tested(hits / len(gaps), True, smallest)
    return Tested((1 + hits) / (1 + len(gaps)), False, max(smallest, 1 / (1 + len(gaps))))


@functools.lru_cache(maxsize=32)
def _groups(n: int, m: int) -> Floats:
    """Members of the first group in every regrouping, `[regroupings, n + m]`."""
    picks = np.array(list(itertools.combinations(range(n + m), n)))
    chosen = np.zeros((len(picks), n + m))
    chosen[np.arange(len(picks))[:, None], picks] = 1.0
    return chosen


def _drawn_groups(n: int, m: int, key: tuple[str, ...]) -> Floats:
    order = np.argsort(generator("regroupings", *key).random((DRAWN, n + m)), axis=1)
    return (order < n).astype(np.float64)


@functools.lru_cache(maxsize=32)
def _signs(n: int) -> Floats:
    return np.array(list(itertools.product((1.0, -1.0), repeat=n)))
