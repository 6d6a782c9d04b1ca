"""Tests on rates of change that keep the common slow-down of training: bursts, pairs of layers, layer and loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ndt_ray.analysis.critical import rates
from ndt_ray.analysis.detection import Bools, Floats, merged
from ndt_ray.analysis.inference.multiplicity import adjusted
from ndt_ray.analysis.nulls import generator

SCALES = (1, 3, 5, 10, 20)
SHORT = 30
"""Fewer changes than this are described, and not tested."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring changes, first to last, that are `ratio` times as fast as those before and after them."""

    first: int
    last: int
    scale: int
    ratio: float
    statistic: float
    p: float


@dataclass(frozen=True)
class Bursts:
    """Test of one series; `flag` says why there is none."""

    statistic: float = float("nan")
    p: float = float("nan")
    stretches: tuple[Stretch, ...] = ()
    null_stretches: float = float("nan")
    flag: str | None = None


def bursts(values: Floats, count: int, *key: str) -> Bursts:
    """Does a series anywhere move faster than its smooth course and its noise explain?

    Statistic: the largest mean of log |velocity| above its course over windows of 1 to 20 changes, each in units of its
    spread under the null. Null: AR-sieve series around the same course, the course taken out of them anew.
    """
    n = len(values) - 1
    if n < SHORT or np.ptp(values) <= rates.RESOLUTION * np.abs(values).max(initial=0.0):
        return Bursts(flag="short" if n < SHORT else "constant")
    window = int(np.clip(round(0.2 * n), 21, 81))
    speed = rates.log_speed(values)
    course = rates.smooth(speed, window)
    left = speed - course
    inflated = left / np.sqrt(1 - min(0.9, rates.freedom(n, window) / n))  # smoothing took this much of the noise
    drawn = course + rates.sieve(inflated, count, generator("bursts", *key))
    null = drawn - rates.smooth(drawn, window)
    scales = [k for k in SCALES if k <= n // 10]
    nulls = [_window_means(null, k) for k in scales]
    spread = [max(float(x.std()), 1e-12) for x in nulls]
    nulls = [x / s for x, s in zip(nulls, spread, strict=True)]
    observed = [_window_means(left[None], k)[0] / s for k, s in zip(scales, spread, strict=True)]
    largest = np.max([x.max(axis=1) for x in nulls], axis=0)
    critical = float(np.quantile(largest, 0.95))
    false = [len(_runs([x[b] for x in nulls], scales, critical, n)) for b in range(min(count, 100))]
    statistic = max(float(z.max()) for z in observed)
    found = [_stretch(run, observed, scales, speed, largest) for run in _runs(observed, scales, critical, n)]
    return Bursts(statistic, upper_p(largest, statistic), tuple(found), float(np.mean(false)))


def _stretch(run: Any, observed: Sequence[Floats], scales: Sequence[int], speed: Floats, null: Floats) -> Stretch:
    first, last = int(run[0]), int(run[-1])
    tried = [(z[first : last + 2 - k], k) for z, k in zip(observed, scales, strict=True) if last + 2 - k > first]
    statistic, scale = max((float(z.max()), k) for z, k in tried)
    return Stretch(first, last, scale, _ratio(speed, first, last), statistic, upper_p(null, statistic))


def _ratio(speed: Floats, first: int, last: int) -> float:
    """Geometric mean speed of a stretch over that of stretches as long (five at least) on either side."""
    wide = max(5, last + 1 - first)
    sides = [x.mean() for x in (speed[max(0, first - wide) : first], speed[last + 1 : last + 1 + wide]) if x.size]
    return float(np.exp(speed[first : last + 1].mean() - np.mean(sides))) if sides else float("nan")


def _runs(observed: Sequence[Floats], scales: Sequence[int], critical: float, n: int) -> list[Any]:
    """Stretches of the changes that lie in a window above the critical value."""
    covered: Bools = np.zeros(n, dtype=bool)
    for z, k in zip(observed, scales, strict=True):
        for start in np.flatnonzero(z > critical):
            covered[start : start + k] = True
    return merged(np.flatnonzero(covered))


def _window_means(values: Floats, width: int) -> Floats:
    total = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    means: Floats = (total[:, width:] - total[:, :-width]) / width
    return means


def pair_tests(white_LT: Floats, lags: int, count: int, *key: str) -> tuple[list[dict[str, Any]], float, float]:
    """Every pair of rows of prewhitened activities [L, T]: lagged correlations with p; and the mean over pairs, its p.

    Null: every row with phases of its own, `count` times; exact for rows that are stationary, Gaussian and independent.
    """
    a, b = np.triu_indices(len(white_LT), 1)
    if len(a) == 0:
        return [], float("nan"), float("nan")
    observed = rates.lagged(white_LT[a], white_LT[b], lags)
    rng = generator("pairs", *key)
    largest, mean = np.empty((count, len(a))), np.empty(count)
    for k in range(count):
        drawn = rates.rephased(white_LT, rng)
        null = rates.lagged(drawn[a], drawn[b], lags)
        largest[k], mean[k] = np.abs(null).max(axis=1), null[:, null.shape[1] // 2].mean()
    zero = float(observed[:, observed.shape[1] // 2].mean())
    rows = [_lag_row(observed[i], largest[:, i]) | {"a": int(a[i]), "b": int(b[i])} for i in range(len(a))]
    return adjusted(rows, 1 / (1 + count)), zero, upper_p(mean, zero)


def couplings(white_LT: Floats, loss_T: Floats, lags: int, count: int, *key: str) -> list[dict[str, Any]]:
    """Each row of prewhitened activities [L, T] against that of the loss [T]: lagged correlations with p and q."""
    rng = generator("loss", *key)
    drawn = rates.rephased(np.tile(loss_T, (count, 1)), rng)
    rows = []
    for layer in white_LT:
        null = np.abs(rates.lagged(layer[None], drawn, lags)).max(axis=1)
        rows.append(_lag_row(rates.lagged(layer, loss_T, lags), null))
    return adjusted(rows, 1 / (1 + count))


def _lag_row(correlation: Floats, null: Floats) -> dict[str, Any]:
    middle, best = len(correlation) // 2, int(np.abs(correlation).argmax())
    largest = float(np.abs(correlation[best]))
    row = {"r0": float(correlation[middle]), "lag": best - middle, "r": float(correlation[best])}
    return row | {"p": upper_p(null, largest - 1e-12)}


def upper_p(null: Floats, observed: float) -> float:
    """(1 + null values at least as large) / (1 + null values)."""
    return (1 + int((null >= observed).sum())) / (1 + len(null))
