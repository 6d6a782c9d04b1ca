"""Do events of different seeds coincide more than their common rate makes them? One test of one series' events.

All seeds of a cell start fast and slow down, so that their events crowd together early whatever happens; circular
shifts call that concordance in every simulation. Two nulls keep the common rate, and the larger p counts:
- jitter: every event moved within ±W, uniformly in log(1 + step / W): W steps at the start, a factor of two later on;
- redraw: every seed's events drawn anew, as many, from the density of the *other* seeds' events in the same time.
Independent seeds with a shared rate, exponential or falling as 1 / step, reject in under 5 % (tests).
Source of the jitter: Amarasingham et al. 2012, "Conditional modeling and the jitter method of spike resampling".
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WINDOW = 4.0
"""W in tolerances: the smallest at which the jitter does not undo itself."""
_CHUNK = 4_000_000
"""Comparisons held at once."""


@dataclass(frozen=True)
class Concordance:
    """What coincides, and what of it the nulls give. `coincidences`: pairs of events of two seeds within tolerance.

    `largest`: seeds in the window of two tolerances that holds most of them; `sizes`: its distribution under the
    nulls, as p for one, two, ... seeds, the larger of the two nulls' each.
    """

    coincidences: int
    expected_jitter: float
    expected_redraw: float
    p_jitter: float
    p_redraw: float
    largest: int
    sizes: Floats

    @property
    def p(self) -> float:
        return max(self.p_jitter, self.p_redraw)

    def p_of_size(self, seeds: int) -> float:
        """Probability that somewhere in the run this many seeds or more have an event together."""
        return float(self.sizes[min(seeds, len(self.sizes)) - 1])


def concordance_test(
    times: Floats, seeds: Ints, tolerance: float, end: float, surrogates: int, rng: np.random.Generator, grid: float = 0
) -> Concordance:
    """Test events at `times` [events] (steps) of `seeds` [events] on (0, end]; surrogates are rounded to `grid`."""
    window = WINDOW * tolerance
    count, largest = _counted(times[None, :], seeds, tolerance)
    n_seeds = len(np.unique(seeds))
    p, expected, sizes = [], [], []
    for draw in (_jittered, _redrawn):
        drawn = draw(times, seeds, window, end, surrogates, rng)
        found, most = _counted(np.round(drawn / grid) * grid if grid > 0 else drawn, seeds, tolerance)
        p.append((1 + int((found >= count[0]).sum())) / (1 + surrogates))
        expected.append(float(found.mean()))
        sizes.append([(1 + int((most >= k).sum())) / (1 + surrogates) for k in range(1, n_seeds + 1)])
    worst: Floats = np.max(np.array(sizes), axis=0)
    return Concordance(int(count[0]), expected[0], expected[1], p[0], p[1], int(largest[0]), worst)


def clusters(times: Floats, seeds: Ints, tolerance: float) -> list[Ints]:
    """Events that different seeds share: again and again the window of two tolerances with most seeds (then events).

    Each event is in one cluster at most; those of one seed only are left out. Places in `times`, clusters by time.
    """
    left = np.argsort(times, kind="stable")
    found: list[Ints] = []
    while len(left):
        t = times[left]
        ends = np.searchsorted(t, t + 2 * tolerance, side="right")
        held = [left[i:end] for i, end in enumerate(ends)]
        best = max(held, key=lambda inside: (len(np.unique(seeds[inside])), len(inside)))
        if len(np.unique(seeds[best])) < 2:
            break
        found.append(best)
        left = left[~np.isin(left, best)]
    return sorted(found, key=lambda inside: float(np.median(times[inside])))


def merged_times(times: Floats, gap: float) -> Floats:
    """Events of one seed in several layers as one each: those no further apart than `gap` at their median."""
    ordered = np.sort(times)
    parts = np.split(ordered, np.flatnonzero(np.diff(ordered) > gap) + 1) if len(ordered) else []
    return np.array([float(np.median(part)) for part in parts])


def _counted(times: Floats, seeds: Ints, tolerance: float) -> tuple[Ints, Ints]:
    """Coinciding pairs, and seeds in the fullest window, of every row of `times` [rows, events]."""
    rows, n = times.shape
    other = seeds[:, None] < seeds[None, :]
    members = [seeds == k for k in np.unique(seeds)]
    pairs, largest = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    step = max(1, _CHUNK // max(1, n * n))
    slack = 1e-9 * max(1.0, tolerance)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        gap = times[part, None, :] - times[part, :, None]
        pairs[part] = ((np.abs(gap) <= tolerance + slack) & other).sum(axis=(1, 2))
        inside = (gap >= 0) & (gap <= 2 * tolerance + slack)
        held = np.stack([inside[:, :, own].any(axis=2) for own in members])
        largest[part] = held.sum(axis=0).max(axis=1)
    return pairs, largest


def _jittered(times: Floats, seeds: Ints, window: float, end: float, count: int, rng: np.random.Generator) -> Floats:
    del seeds
    moved = _warped(times, window) + rng.uniform(-math.log(2), math.log(2), (count, len(times)))
    return _unwarped(_reflected(moved, _warped(end, window)), window)


def _redrawn(times: Floats, seeds: Ints, window: float, end: float, count: int, rng: np.random.Generator) -> Floats:
    u, top = _warped(times, window), float(_warped(end, window))
    drawn = np.empty((count, len(times)))
    for k in np.unique(seeds):
        own, others = np.flatnonzero(seeds == k), u[seeds != k]
        shape = (count, len(own))
        if not len(others):
            drawn[:, own] = rng.uniform(0, top, shape)
            continue
        # Silverman's bandwidth, but no narrower than the jitter's SD: else the density follows single events.
        width = max(1.06 * float(others.std()) * len(others) ** -0.2, math.log(2) / math.sqrt(3))
        drawn[:, own] = others[rng.integers(0, len(others), shape)] + width * rng.standard_normal(shape)
    return _unwarped(_reflected(drawn, top), window)


def _warped(steps: Floats | float, window: float) -> Floats:
    return cast(Floats, np.log1p(np.asarray(steps, np.float64) / window))


def _unwarped(u: Floats, window: float) -> Floats:
    return window * np.expm1(u)


def _reflected(u: Floats, top: float | Floats) -> Floats:
    """Folded back at 0 and at `top`, so that no event is lost at an end."""
    folded = np.mod(u, 2 * top)
    return cast(Floats, np.where(folded > top, 2 * top - folded, folded))
