"""One p-value a series, from its largest statistic and that of null series drawn one batch after the other.

Batches stop where enough null series are as large (Besag & Clifford 1991), and otherwise at a bound. Between the two a
generalised-Pareto tail stands in (Knijnenburg et al. 2009): fitted to the largest null statistics, and used only if a
parametric bootstrap of the Anderson-Darling distance does not reject it. A bounded tail (shape < 0) is never used: it
would call p = 0 what was merely not seen.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ndt_ray.analysis.detection import Floats

BATCH = 500
MOST = 4000
ENOUGH = 10
"""Null series as large as the series, at which no more are drawn."""
TAIL_SHARE = 0.2
SMALLEST_TAIL = 40
ACCEPTED = 0.05
"""p of the fit above which a Pareto tail is believed."""
LEAST = 1e-9
"""No p below this is said: that far out no fitted tail is known to hold."""


@dataclass(frozen=True)
class Tail:
    """The generalised-Pareto tail above `threshold`, which `share` of the null exceeds."""

    threshold: float
    share: float
    shape: float
    scale: float
    fit_p: float

    def beyond(self, statistic: Floats) -> Floats:
        """P(null statistic ≥ each)."""
        excess = np.maximum(np.asarray(statistic, np.float64) - self.threshold, 0) / self.scale
        if self.shape < 1e-6:
            return self.share * np.exp(-excess)
        return np.asarray(self.share * (1 + self.shape * excess) ** (-1 / self.shape))


@dataclass(frozen=True)
class Null:
    """Largest statistics of null series, sorted, and the tail fitted to them if one was needed and believed.

    `attainable`: the smallest p that any series could have had, whatever it took to tell.
    """

    statistics: Floats
    attainable: float
    tail: Tail | None = None

    @property
    def count(self) -> int:
        return len(self.statistics)

    def p(self, statistic: Floats) -> Floats:
        """(1 + null series as large) / (1 + null series), or the tail's where it is smaller than that can resolve."""
        values = np.atleast_1d(np.asarray(statistic, np.float64))
        larger = self.count - np.searchsorted(self.statistics, values, side="left")
        counted = (1 + larger) / (1 + self.count)
        if self.tail is None:
            return np.asarray(counted)
        fitted = np.maximum(self.tail.beyond(values), LEAST)
        return np.where(larger < ENOUGH, np.minimum(fitted, 1.0), counted)

    def quantile(self, level: float) -> float:
        """The statistic that this share of the null stays below."""
        return float(np.quantile(self.statistics, level))


def sequential(
    statistic: float, draw: Callable[[int], Floats], rng: np.random.Generator, batch: int = BATCH, most: int = MOST
) -> Null:
    """Null statistics for one series: `draw(count)` gives those of so many further null series."""
    attainable = LEAST if int(TAIL_SHARE * most) >= SMALLEST_TAIL else 1 / (1 + most)
    drawn = np.sort(draw(batch))
    while True:
        larger = len(drawn) - int(np.searchsorted(drawn, statistic, side="left"))
        if larger >= ENOUGH:
            return Null(drawn, attainable)
        tail = pareto(drawn, rng)
        if tail is not None:
            return Null(drawn, attainable, tail)
        if len(drawn) >= most:
            return Null(drawn, attainable)
        drawn = np.sort(np.concatenate([drawn, draw(min(2 * batch, most - len(drawn)))]))


def pareto(drawn: Floats, rng: np.random.Generator, runs: int = 200) -> Tail | None:
    """The tail of sorted null statistics; None where no share of a fifth or less is accepted as Pareto."""
    count = len(drawn)
    size = int(TAIL_SHARE * count)
    while size >= SMALLEST_TAIL:
        threshold = float((drawn[count - size] + drawn[count - size - 1]) / 2)
        excess = drawn[count - size :] - threshold
        if excess[size // 4 - 1] <= 0 or len(np.unique(excess)) < 0.9 * size:
            return None  # ties: no continuous tail
        shape, scale = (float(x[0]) for x in fit_pareto(excess[None]))
        shape = max(shape, 0.0)
        if shape == 0.0:
            scale = float(excess.mean())
        fit_p = _accepted(excess, shape, scale, runs, rng)
        if fit_p > ACCEPTED:
            return Tail(threshold, size / count, shape, scale, fit_p)
        size = int(0.75 * size)
    return None


def fit_pareto(excess: Floats) -> tuple[Floats, Floats]:
    """Shape ξ and scale of sorted exceedances `[count, size]`: the quasi-Bayesian estimate of Zhang & Stephens 2009."""
    size = excess.shape[-1]
    most = 20 + int(np.sqrt(size))
    largest = excess[:, -1:]
    quarter = excess[:, int(size / 4 + 0.5) - 1][:, None]
    grid = 1 / largest + (1 - np.sqrt(most / (np.arange(1, most + 1) - 0.5))) / (3 * quarter)
    shape = np.log1p(-grid[:, :, None] * excess[:, None, :]).mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_likelihood = size * (np.log(-grid / shape) - shape - 1)
    log_likelihood = np.where(np.isfinite(log_likelihood), log_likelihood, -np.inf)
    weight = np.exp(log_likelihood - log_likelihood.max(axis=-1, keepdims=True))
    theta = (grid * weight).sum(axis=-1) / weight.sum(axis=-1)
    xi = np.log1p(-theta[:, None] * excess).mean(axis=-1)
    return xi, -xi / theta


def _accepted(excess: Floats, shape: float, scale: float, runs: int, rng: np.random.Generator) -> float:
    """p of the Anderson-Darling distance, from samples of the fitted tail that are fitted in their turn."""
    size = len(excess)
    uniform = rng.random((runs, size))
    samples = -np.log(uniform) if shape < 1e-6 else (uniform**-shape - 1) / shape
    samples = np.sort(samples * scale, axis=-1)
    shapes, scales = fit_pareto(samples)
    means = samples.mean(axis=-1)
    scales = np.where(shapes <= 0, means, scales)
    shapes = np.maximum(shapes, 0.0)
    null = _distance(samples, shapes[:, None], scales[:, None])
    own = _distance(excess[None], np.array([[shape]]), np.array([[scale]]))[0]
    return float((1 + (null >= own).sum()) / (1 + runs))


def _distance(excess: Floats, shape: Floats, scale: Floats) -> Floats:
    """Anderson-Darling distance of sorted exceedances `[count, size]` from their tails."""
    size = excess.shape[-1]
    scaled = excess / scale
    log_above = np.where(shape < 1e-6, -scaled, -np.log1p(shape * scaled) / np.maximum(shape, 1e-6))
    log_above = np.minimum(log_above, -1e-12)
    log_below = np.log(-np.expm1(log_above))
    weight = 2 * np.arange(1, size + 1) - 1
    return np.asarray(-size - ((log_below + log_above[:, ::-1]) * weight).mean(axis=-1))
