"""Found events against true ones: one-to-one matching, and the scores that follow from it.

Places are middles of changes in measurements (a step between measurements k - 1 and k is at k - 0.5). `precision`,
`recall`, `hausdorff` and `rand_index` agree with ruptures 1.1.10 where its greedy matching is one-to-one; covering is
that of Arbelaez et al. (2011) as used for change points by van den Burg and Williams (2020).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """What one or more series gave: events found, true ones, matched ones, and where the matched ones lay.

    `errors`: found minus true place of the matched events, in measurements. `measurements`: lengths of the series
    together. A ratio without a denominator is NaN: precision where nothing was found, recall where nothing is true.
    """

    found: int
    true: int
    matched: int
    measurements: int
    errors: tuple[float, ...] = ()

    @property
    def precision(self) -> float:
        return _ratio(self.matched, self.found)

    @property
    def recall(self) -> float:
        return _ratio(self.matched, self.true)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.matched, self.found + self.true)

    @property
    def false_positives(self) -> int:
        return self.found - self.matched

    @property
    def false_per_1000(self) -> float:
        """False positives per 1,000 measurements."""
        return _ratio(1000 * self.false_positives, self.measurements)

    @property
    def median_error(self) -> float:
        """Median distance of matched events from the truth, in measurements."""
        return float(np.median(np.abs(self.errors))) if self.errors else float("nan")

    @property
    def median_signed_error(self) -> float:
        """Median of found minus true: positive where events are found late."""
        return float(np.median(self.errors)) if self.errors else float("nan")


def match(found: ArrayLike, true: ArrayLike, tolerance: ArrayLike) -> tuple[Ints, Ints]:
    """Indices of matched pairs (of `found`, of `true`): as many as can be, and of these the nearest together.

    A pair may be no further apart than the tolerance, one number or one per true event; none is used twice.
    """
    f, t = np.asarray(found, dtype=np.float64), np.asarray(true, dtype=np.float64)
    limit = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), t.shape)
    if (limit < 0).any() or not np.isfinite(limit).all():
        raise SpecError(f"a matching tolerance must be finite and not negative, but got {limit.min()}")
    none = np.zeros(0, np.int64)
    if f.size == 0 or t.size == 0:
        return none, none
    distance = np.abs(f[:, None] - t[None, :])
    near = distance <= limit
    # One pair that is too far costs more than all near ones: the number of matches comes before their distance.
    far = 1.0 + 2 * min(len(f), len(t)) * float(limit.max(initial=0.0) + 1)
    i, j = linear_sum_assignment(np.where(near, distance, far))
    kept = near[i, j]
    return i[kept].astype(np.int64), j[kept].astype(np.int64)


def score(found: ArrayLike, true: ArrayLike, tolerance: ArrayLike, n: int) -> Score:
    """The score of one series of `n` measurements."""
    f, t = np.asarray(found, dtype=np.float64), np.asarray(true, dtype=np.float64)
    i, j = match(f, t, tolerance)
    return Score(len(f), len(t), len(i), n, tuple((f[i] - t[j]).tolist()))


def together(scores: Iterable[Score]) -> Score:
    """Many series as one: counts add up, so that ratios are over events, not over series."""
    parts = list(scores)
    return Score(
        sum(s.found for s in parts),
        sum(s.true for s in parts),
        sum(s.matched for s in parts),
        sum(s.measurements for s in parts),
        tuple(error for s in parts for error in s.errors),
    )


def hausdorff(found: ArrayLike, true: ArrayLike) -> float:
    """Largest distance of any event, found or true, to the nearest of the other kind; NaN where one kind is missing."""
    f, t = np.asarray(found, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if f.size == 0 or t.size == 0:
        return float("nan")
    distance = np.abs(f[:, None] - t[None, :])
    return float(max(distance.min(axis=0).max(), distance.min(axis=1).max()))


def rand_index(found: ArrayLike, true: ArrayLike, n: int) -> float:
    """Share of pairs of measurements that both segmentations join, or both part; NaN under two measurements."""
    if n < 2:
        return float("nan")
    together_in_both = _pairs(_overlaps(found, true, n))
    pairs = n * (n - 1) / 2
    apart = _pairs(_lengths(found, n)) + _pairs(_lengths(true, n)) - 2 * together_in_both
    return float(1 - apart / pairs)


def covering(found: ArrayLike, true: ArrayLike, n: int) -> float:
    """Mean over true segments, by length, of the best Jaccard overlap with a found segment; 1 for the same cuts."""
    if n < 1:
        return float("nan")
    overlap = _overlaps(found, true, n)
    of_found, of_true = _lengths(found, n), _lengths(true, n)
    jaccard = overlap / (of_found[:, None] + of_true[None, :] - overlap)
    return float((of_true * jaccard.max(axis=0)).sum() / n)


def _cuts(places: ArrayLike, n: int) -> Ints:
    """Borders of the segments, 0 and `n` included: a change at k - 0.5, or at k, is a cut before measurement k."""
    inner = np.ceil(np.asarray(places, dtype=np.float64)).astype(np.int64)
    return np.unique(np.concatenate([[0], inner[(inner > 0) & (inner < n)], [n]]))


def _lengths(places: ArrayLike, n: int) -> Floats:
    return np.diff(_cuts(places, n).astype(np.float64))


def _overlaps(found: ArrayLike, true: ArrayLike, n: int) -> Floats:
    """Measurements shared by each found and each true segment."""
    f, t = _cuts(found, n), _cuts(true, n)
    low = np.maximum(f[:-1, None], t[None, :-1])
    high = np.minimum(f[1:, None], t[None, 1:])
    return np.maximum(0.0, (high - low).astype(np.float64))


def _pairs(counts: Floats) -> float:
    return float((counts * (counts - 1) / 2).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
