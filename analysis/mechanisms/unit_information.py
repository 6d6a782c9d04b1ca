"""What single units tell of the class: d', area under the ROC curve, mutual information, each beside shuffled labels.

Class selectivity compares means alone; these count the spread too. Every one is the largest over classes, or positive
by chance, so that its value under shuffled labels is what it has to be compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ndt_ray.analysis.mechanisms.units import Floats

BINS = 8
"""Of a unit's responses, equally full; responses that are equal share one, as the zeros of a ReLU do."""


@dataclass(frozen=True)
class Readout:
    """Of each unit, `[units]`, with its null; `null_means` are means over units that vary, `[draws]`. A unit that
    always answers the same has no value."""

    value: Floats
    best: NDArray[np.int64]
    """Class that it tells best from the others; -1 where there is none, or where the measure names none."""
    chance: Floats
    p: Floats
    null_means: Floats


def d_prime(responses: ArrayLike, labels: ArrayLike, classes: int) -> Floats:
    """(μ_k - μ_rest) / √((σ²_k + σ²_rest) / 2) of each unit and class, `[units, classes]` (Green and Swets 1966).

    Variances are unbiased; NaN for a class of fewer than two stimuli and for a unit without any spread.
    """
    values = np.asarray(responses, dtype=np.float64)
    values = values - values.mean(0)
    one, n = _indicators(labels, classes)
    return _d_prime(values, values**2, one, n)


def _d_prime(values: Floats, squares: Floats, one: Floats, n: Floats) -> Floats:
    rest = len(values) - n
    sums, sums2 = one @ values, one @ squares
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, mean_rest = sums / n, (values.sum(0) - sums) / rest
        spread = (sums2 - n * mean**2) / (n - 1)
        spread_rest = (squares.sum(0) - sums2 - rest * mean_rest**2) / (rest - 1)
        pooled = np.sqrt(np.maximum(spread + spread_rest, 0) / 2)
        found = np.where(pooled > 1e-12 * np.sqrt(squares.mean(0) + 1e-300), (mean - mean_rest) / pooled, np.nan)
    return np.asarray(np.where((n > 1) & (rest > 1), found, np.nan).T)


def auc(responses: ArrayLike, labels: ArrayLike, classes: int) -> Floats:
    """P(response to class k > response to another) + half of the ties, `[units, classes]`: the area under the ROC
    curve, by ranks (Mann and Whitney 1947). NaN for a class that is absent or alone."""
    ranks = rankdata(np.asarray(responses, dtype=np.float64), axis=0)
    return _auc(ranks, *_indicators(labels, classes))


def _auc(ranks: Floats, one: Floats, n: Floats) -> Floats:
    rest = len(ranks) - n
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((one @ ranks - n * (n + 1) / 2) / (n * rest)).T)


def mutual_information(responses: ArrayLike, labels: ArrayLike, classes: int, bins: int = BINS) -> Floats:
    """I(binned response; class) of each unit in bits, `[units]`, by counting: above 0 by chance, by about
    (bins - 1) (classes - 1) / (2 n ln 2) (Miller 1955), which shuffled labels have too."""
    return _information(binned(responses, bins), *_indicators(labels, classes))


def binned(responses: ArrayLike, bins: int = BINS) -> NDArray[np.float32]:
    """Indicators `[n, units, bins]` of equally full bins; equal responses are in one bin."""
    values = np.asarray(responses, dtype=np.float64)
    if not len(values):
        return np.zeros((0, values.shape[1], bins), dtype=np.float32)
    edges = np.quantile(values, np.arange(1, bins) / bins, axis=0)
    place = (values[:, None] > edges[None]).sum(1)
    return np.asarray(np.equal(place[..., None], np.arange(bins)), dtype=np.float32)


def _information(inside: NDArray[np.float32], one: Floats, n: Floats) -> Floats:
    stimuli, units, bins = inside.shape
    joint = (one.astype(np.float32) @ inside.reshape(stimuli, -1)).reshape(len(one), units, bins) / stimuli
    independent = (n / stimuli)[..., None] * joint.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(joint > 0, joint * np.log2(joint / independent), 0.0).sum((0, 2)), dtype=np.float64)


def _indicators(labels: ArrayLike, classes: int) -> tuple[Floats, Floats]:
    """`[classes, n]`, and stimuli of each class `[classes, 1]`."""
    one = np.equal.outer(np.arange(classes), np.asarray(labels)).astype(np.float64)
    return one, one.sum(1, keepdims=True)


def readouts(
    responses: Floats, labels: NDArray[np.int64], classes: int, rng: np.random.Generator, draws: int = 50
) -> dict[str, Readout]:
    """`d_prime`, `auc` (both of the class told best) and `mutual_information` of units `[n, units]`, with what
    shuffled labels give: the same `draws` of them for all three."""
    centred = responses - responses.mean(0)
    squares, ranks, inside = centred**2, rankdata(responses, axis=0), binned(responses)
    of: dict[str, Callable[[Floats, Floats], Floats]] = {
        "d_prime": lambda one, n: _d_prime(centred, squares, one, n),
        "auc": lambda one, n: _auc(ranks, one, n),
        "mutual_information": lambda one, n: _information(inside, one, n),
    }
    shuffled = [_indicators(rng.permutation(labels), classes) for _ in range(draws)]
    varies = np.ptp(responses, axis=0) > 0 if len(responses) else np.zeros(responses.shape[1], dtype=np.bool_)
    return {name: _readout(measure, _indicators(labels, classes), shuffled, varies) for name, measure in of.items()}


def _readout(
    measure: Callable[[Floats, Floats], Floats],
    true: tuple[Floats, Floats],
    shuffled: list[tuple[Floats, Floats]],
    varies: NDArray[np.bool_],
) -> Readout:
    value, best = _top(measure(*true), varies)
    null = np.stack([_top(measure(*labels), varies)[0] for labels in shuffled])
    known = np.isfinite(value)
    # Of equal counts sums may differ in their last digits, which must not decide what is at least as large.
    at_least = (null >= np.where(known, value - 1e-9 * np.abs(value), np.inf)).sum(0)
    p = np.where(known, (1 + at_least) / (1 + len(null)), np.nan)
    chance = np.full(len(value), np.nan)
    chance[known] = null[:, known].mean(0)
    means = null[:, known].mean(1) if known.any() else np.full(len(null), np.nan)
    return Readout(value, best, chance, p, means)


def _top(values: Floats, varies: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.int64]]:
    """The largest over classes and which that is; values of units as they are."""
    if values.ndim == 1:
        return np.where(varies, values, np.nan), np.full(len(values), -1)
    there = np.isfinite(values).any(1) & varies
    filled = np.where(np.isfinite(values), values, -np.inf)
    return np.where(there, filled.max(1), np.nan), np.where(there, filled.argmax(1), -1)
