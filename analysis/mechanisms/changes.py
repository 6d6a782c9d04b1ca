"""Before, during and after: how a metric changes over an event's window, and over windows like it without an event.

The change over a window is compared with that over control windows of the same trial and layer. An event's own test
asks whether it lies outside what its controls predict; the test of a metric asks whether events change it more than
their controls do, with the trial as the unit.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import stdtr

from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.analysis.inference.permutation import sign_flips

Floats = NDArray[np.float64]
FEWEST_CONTROLS = 3
"""For a spread of controls; under it there is a difference, and no test of the single event."""
FEWEST_TRIALS = 3
FEWEST_SEEDS = 4
"""Of a cell, to compare one with the others: three others give a spread, and 24 permutations."""

Series = Mapping[int, float]
"""step -> value of one metric of one layer of one trial."""


@dataclass(frozen=True)
class Windows:
    """The windows of one event, as checkpoints: its own, matched controls, and controls of the same length alone.

    `lacking`: what leaves fewer than `FEWEST_CONTROLS` of them, asked for one after the other: `length`, `phase`, `lr`
    or `displacement`; None where there are enough.
    """

    own: tuple[int, int]
    matched: Sequence[tuple[int, int]] = ()
    unmatched: Sequence[tuple[int, int]] = ()
    lacking: str | None = None


@dataclass(frozen=True)
class Change:
    """One metric over one event's windows. NaN where there is nothing to compare."""

    before: float
    after: float
    controls: Floats
    unmatched: Floats

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def difference(self) -> float:
        """Change less the mean change over matched controls."""
        return self.change - float(self.controls.mean()) if len(self.controls) else float("nan")

    @property
    def unmatched_difference(self) -> float:
        return self.change - float(self.unmatched.mean()) if len(self.unmatched) else float("nan")


def change_over(series: Series, windows: Windows) -> Change | None:
    """None where the metric has no value at an end of the event's window; controls without values are left out."""
    before, after = (series.get(step, np.nan) for step in windows.own)
    if not (np.isfinite(before) and np.isfinite(after)):
        return None
    return Change(before, after, _changes(series, windows.matched), _changes(series, windows.unmatched))


def _changes(series: Series, windows: Sequence[tuple[int, int]]) -> Floats:
    found = np.array([series.get(b, np.nan) - series.get(a, np.nan) for a, b in windows], dtype=np.float64)
    return found[np.isfinite(found)]


def outside(value: ArrayLike, others: ArrayLike) -> Floats:
    """Two-sided p of values `[...]` against the Gaussian prediction of `others` [..., k]: Student's t with k - 1
    degrees of freedom of (value - mean) / (s sqrt(1 + 1/k)).

    NaN for under two others; 1 where the value equals constant others, NaN where these give no scale to differ on.
    """
    x, y = np.asarray(value, dtype=np.float64), np.asarray(others, dtype=np.float64)
    k = y.shape[-1]
    if k < 2:
        return np.full(x.shape, np.nan)
    mean, spread = y.mean(-1), y.std(-1, ddof=1)
    off, noise = np.abs(x - mean), 1e-12 * np.maximum(np.abs(mean), np.abs(x))
    flat = spread <= noise
    t = off / np.where(flat, 1.0, spread * np.sqrt(1 + 1 / k))
    p = 2 * stdtr(k - 1, -t)
    return np.asarray(np.where(flat, np.where(off <= noise, 1.0, np.nan), p))


def event_p(changes: Sequence[Change]) -> Floats:
    """p of each event, at least its rank among the controls of all of them (of all metrics of a sweep).

    Each control is predicted from the other controls of its event as the event is from all: where that fails as often
    for controls as for events - heavy tails, unequal spreads - the rank says so, and the p is no smaller than that.
    """
    own = np.full(len(changes), np.nan)
    null: list[Floats] = []
    counts = np.array([len(c.controls) for c in changes])
    for k in np.unique(counts[counts >= FEWEST_CONTROLS]):
        places = np.flatnonzero(counts == k).tolist()
        controls = np.stack([changes[i].controls for i in places])
        own[places] = outside([changes[i].change for i in places], controls)
        rest = np.array([np.delete(np.arange(k), i) for i in range(k)])
        null.append(outside(controls, controls[:, rest]).ravel())
    drawn = np.sort(np.concatenate(null)) if null else np.zeros(0)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return np.full(len(changes), np.nan)
    rank = (1 + np.searchsorted(drawn, own, side="right")) / (1 + len(drawn))
    return np.where(np.isfinite(own), np.maximum(own, rank), np.nan)


@dataclass
class MetricTest:
    """One metric of one cell: do events change it more than their controls? The trial is the unit."""

    n_trials: int
    n_events: int
    mean: float = np.nan
    """Mean over trials of the mean difference of their events, in control SDs."""
    lo: float = np.nan
    hi: float = np.nan
    effect: float = np.nan
    """Mean / SD over trials (Cohen's d_z); NaN for under three."""
    p: float = np.nan
    p_sign: float = np.nan
    """Exact sign-flip p; at least 2 / 2^trials."""
    by_trial: dict[str, float] = field(default_factory=dict)


def metric_test(differences: Mapping[str, Sequence[float]]) -> MetricTest:
    """From the differences of each trial's events, in control SDs: a t test over trials, and the exact sign flips."""
    by_trial = {t: float(np.mean(d)) for t, d in sorted(differences.items()) if len(d)}
    values = np.array(list(by_trial.values()), dtype=np.float64)
    found = MetricTest(len(values), sum(len(d) for d in differences.values()), by_trial=by_trial)
    if not len(values):
        return found
    found.mean = float(values.mean())
    if len(values) < FEWEST_TRIALS:
        return found
    spread = float(values.std(ddof=1))
    if spread <= 1e-12 * np.abs(values).max() or spread == 0:
        found.p = 1.0 if found.mean == 0 else float("nan")
        return found
    error = spread / np.sqrt(len(values))
    margin = float(stats.t.ppf(0.975, len(values) - 1)) * error
    found.lo, found.hi, found.effect = found.mean - margin, found.mean + margin, found.mean / spread
    found.p = float(2 * stdtr(len(values) - 1, -abs(found.mean) / error))
    found.p_sign = sign_flips(values).p
    return found


@dataclass(frozen=True)
class SeedTest:
    """Do events change a metric more than the same windows do in the other seeds of the cell?"""

    n_trials: int
    n_events: int
    difference: float = np.nan
    """Mean over events of the change less the mean over trials, in SDs over trials."""
    p: float = np.nan
    """Share of the permutations of trials with at least this; at least 1 / trials!."""


def seed_test(windows: Sequence[tuple[str, Mapping[str, float]]], most: int = 6, draws: int = 1999) -> SeedTest:
    """From (trial of the event, change over its window in every trial): the trials' events are dealt to other trials.

    Where events have nothing to do with the metric, trials are exchangeable, whatever depends on phase, learning rate
    and length: these are equal by construction. All permutations of up to `most` trials, else `draws` (seeded).
    Trials without a value in some window, and windows equal in all trials, are left out; null under 4 trials.
    """
    everywhere = set.intersection(*(set(changes) for _, changes in windows)) if windows else set()
    trials = sorted(everywhere)
    place = {trial: i for i, trial in enumerate(trials)}
    kept = [(place[own], [changes[t] for t in trials]) for own, changes in windows if own in place]
    table = np.array([row for _, row in kept], dtype=np.float64).reshape(len(kept), len(trials))
    owners = np.array([own for own, _ in kept], dtype=np.int64)
    spread = table.std(axis=1, ddof=1) if len(trials) > 1 else np.zeros(len(table))
    varies = spread > 1e-12 * np.abs(table).max(axis=1, initial=0.0)
    table, owners, spread = table[varies], owners[varies], spread[varies]
    if len(trials) < FEWEST_SEEDS or not len(table):
        return SeedTest(len(trials), len(table))
    z = (table - table.mean(1, keepdims=True)) / spread[:, None]
    if len(trials) <= most:
        orders = np.array(list(itertools.permutations(range(len(trials)))))
    else:
        rng = np.random.Generator(np.random.Philox(key=len(trials)))
        drawn = rng.permuted(np.tile(np.arange(len(trials)), (draws, 1)), axis=1)
        orders = np.concatenate([np.arange(len(trials))[None], drawn])  # the first is what was observed
    means = z[np.arange(len(z)), orders[:, owners]].mean(1)
    at_least = np.abs(means) >= abs(means[0]) * (1 - 1e-9)
    return SeedTest(len(trials), len(table), float(means[0]), float(at_least.mean()))


def spreads(changes: Mapping[tuple[str, str], Sequence[Change]]) -> dict[tuple[str, str], float]:
    """SD of control changes around their event's mean, pooled over events, by (layer, metric): the unit of effects.

    NaN where controls do not vary, or are too few.
    """
    found = {}
    for key, group in changes.items():
        off = [c.controls - c.controls.mean() for c in group if len(c.controls) > 1]
        free = sum(len(o) - 1 for o in off)
        pooled = float(np.sqrt(sum(float(o @ o) for o in off) / free)) if free else float("nan")
        scale = max((float(np.abs(c.controls).max()) for c in group if len(c.controls)), default=0.0)
        found[key] = pooled if pooled > 1e-12 * scale else float("nan")
    return found


def with_q(rows: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    """Rows with Benjamini-Hochberg `q` of their `p` (both with a prefix), over all that have one."""
    q = bh(rows[f"{prefix}p"].to_numpy(np.float64)) if len(rows) else np.zeros(0)
    return rows.assign(**{f"{prefix}q": q})
