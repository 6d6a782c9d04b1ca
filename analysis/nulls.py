"""How many events a rule reports where there is nothing: surrogate series of matched length and spread.

Two nulls stand beside every count: white noise (a level that only fluctuates) and AR(1) (a level that remembers). Both
are stationary; neither has a training curve's transient, so a count above them is no proof, a count below them a
verdict. Surrogates are drawn from counter-based generators keyed by what they stand for: the same series has the same
null in any order, pack or process.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.signal import lfilter

from ndt_ray.analysis.detection import Floats, Rule
from ndt_ray.errors import SpecError, did_you_mean

FAMILIES = ("white_noise", "ar1", "random_walk")
MAX_PHI = 0.99
"""Estimates at or beyond the unit root are taken back to this: beyond it no stationary series exists."""


@dataclass(frozen=True)
class NullCount:
    """What `surrogates` series without events gave: mean, SD and central 95 % of the counts, and p of `observed`.

    p = (1 + number of surrogates with at least as many) / (1 + surrogates): small where there are more than by chance.
    """

    observed: int
    mean: float
    sd: float
    low: float
    high: float
    p: float
    surrogates: int


def generator(*key: str) -> np.random.Generator:
    """A Philox generator keyed by the first 128 bits of the SHA-256 of the parts."""
    digest = hashlib.sha256("\x1f".join(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def detrended(values: Floats) -> Floats:
    """The series without its least-squares line."""
    n = len(values)
    if n < 2:
        return values - values.mean() if n else values
    t = np.arange(n) - (n - 1) / 2
    return cast(Floats, values - values.mean() - t * (t @ (values - values.mean()) / (t @ t)))


def robust_phi(values: Floats) -> float:
    """Lag-1 dependence from differences: (MAD of y[t+2] - y[t] / MAD of y[t+1] - y[t])^2 - 1, within ±0.99.

    0 for white noise, 1 for a random walk; neither drift nor jumps move it. Where more than half of the differences
    are equal (MAD 0) the ordinary lag-1 correlation stands in; NaN for a constant series or under four points.
    """
    if len(values) < 4:
        return float("nan")
    one, two = _mad(values[1:] - values[:-1]), _mad(values[2:] - values[:-2])
    if one > 0:
        phi = (two / one) ** 2 - 1
    else:
        centred = values - values.mean()
        power = float(centred @ centred)
        if power == 0:
            return float("nan")
        phi = float(centred[1:] @ centred[:-1]) / power
    return float(np.clip(phi, -MAX_PHI, MAX_PHI))


def surrogates(family: str, n: int, sd: float, count: int, rng: np.random.Generator, phi: float = 0.0) -> Floats:
    """`count` series of `n` values without events, `[count, n]`.

    white_noise: independent Gaussians of this SD. ar1: stationary AR(1) with `phi` and this marginal SD.
    random_walk: independent Gaussian *differences* of this SD.
    """
    if family not in FAMILIES:
        raise SpecError(f"unknown null '{family}'{did_you_mean(family, FAMILIES)}")
    noise = rng.standard_normal((count, n))
    if family == "random_walk":
        return sd * np.cumsum(noise, axis=-1)
    if family == "ar1":
        if not -1 < phi < 1:
            raise SpecError(f"a stationary AR(1) needs -1 < phi < 1, but got ({phi=})")
        noise[:, 1:] *= np.sqrt(1 - phi * phi)
        noise = lfilter([1.0], [1.0, -phi], noise, axis=-1)
    return sd * noise


def matched(family: str, values: Floats, count: int, *key: str) -> Floats | None:
    """Surrogates of one series: its length, the SD and φ of what its line leaves; None for constant or short ones."""
    if len(values) < 4 or np.ptp(values) == 0:
        return None
    rest = detrended(values)
    sd, phi = float(rest.std()), robust_phi(rest)
    if sd == 0 or np.isnan(phi):
        return None
    return surrogates(family, len(values), sd, count, generator(*key, family), phi)


def expected(detector: Rule, series: Floats, observed: int) -> NullCount:
    """The detector's counts on surrogates `[count, n]`, beside the observed one."""
    counts = detector.scores(series)[1].sum(axis=-1)
    low, high = np.quantile(counts, (0.025, 0.975))
    p = (1 + int((counts >= observed).sum())) / (1 + len(counts))
    return NullCount(observed, float(counts.mean()), float(counts.std(ddof=1)), float(low), float(high), p, len(counts))


def calibrated_threshold(
    make: Callable[[float], Rule], n: int, per_series: float, family: str = "white_noise", phi: float = 0.0
) -> float:
    """The threshold at which the rule reports `per_series` events on average in series of `n` values without any.

    `make` builds the rule from a threshold. From 2,000 surrogates of the given family (seeded), to 0.001.
    """
    series = surrogates(family, n, 1.0, 2000, generator("threshold", family, str(n), str(phi)), phi)
    low, high = 0.0, 20.0
    if not 0 < per_series < make(low).scores(series)[1].sum() / len(series):
        raise SpecError(f"no threshold of {make(low).name} gives this rate on series of {n} values: ({per_series=})")
    while high - low > 1e-3:
        middle = (low + high) / 2
        too_many = make(middle).scores(series)[1].sum() / len(series) > per_series
        low, high = (middle, high) if too_many else (low, middle)
    return high


def _mad(values: Floats) -> float:
    return float(np.median(np.abs(values - np.median(values))))
