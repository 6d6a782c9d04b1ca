"""Null series of one series: its own smooth trend, noise of its own memory and scale, and no event.

`describe` takes a series apart: trend, local scale, and a remainder from which events that stand out beyond doubt are
taken (with them the noise would look like a walk, and hide what made it so). `draw` puts null series together again,
in the series' own units, so that they go through every step that the series goes through. Four kinds of noise:

- ar_sieve: an autoregression of the remainder, its order by AIC, its coefficients corrected for their small-sample
  bias (Kilian 1998), driven by resampled innovations
  (Bühlmann 1997), or for rates, where one high value may be an event, by Student-t ones of fitted tail;
- iaaft: the remainder's own values, with its own power spectrum in the end (Schreiber & Schmitz 1996);
- block: blocks of the remainder of geometric length (stationary bootstrap: Politis & Romano 1994);
- siblings: how continuations of one checkpoint that differ only in batch order differ from their mean (`siblings`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.signal import lfilter
from scipy.stats import t as student_t

from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.detection.atoms import BY_SIZE, MEMORIES, NARROW, NOISY, WITHOUT_LONE, Regime, Shape, trend
from ndt_ray.analysis.detection.likelihood import EVENTS, despiked, fit, local_scale
from ndt_ray.analysis.detection.locate import Located, Settled, design, left_by, nothing, search, settle
from ndt_ray.errors import SpecError, did_you_mean

NULLS = ("ar_sieve", "iaaft", "block")
"""Noise that a series alone can tell; `siblings` needs other series."""
BEYOND_DOUBT = 32.0
"""Gain above which an event is taken out before the noise is described, and with several memories what it must gain on
average (`WITH_SEVERAL`): by chance both happen in 1 of 100 null series, in 1 of 20 near a unit root (300 a family)."""
WITH_SEVERAL = 18.0
LONGEST_MEMORY = 0.99
"""Lag-1 correlation beyond which none is told from another."""
STANDS_OUT = 15.0
"""Without visible noise: factor by which an event must reduce the sum of squares that is left, to be taken out."""
LASTING = 0.9
"""Least of several equal roots at which no noise is visible."""
LONGEST_WANDER = 0.04
"""Without visible noise: share of a series within which what is left must decorrelate, or too few turns are seen."""
OBVIOUS = 1000.0
"""Factor by which events reduce the sum of squares that is left, from which on the rest may wander slowly."""
MAX_ORDER = 20
STATIONARY = 0.9975
"""Largest root of an autoregression that can be drawn from."""
LARGEST_REFLECTION = 1 - 1e-9
HEAVY, HEAVIEST = 30.0, 1.5
"""Degrees of freedom below which a tail is corrected, and to which at most."""
_BURN = 200
_TAIL_RUNS = 8
_BIAS_RUNS = 200
_IAAFT_ROUNDS = 40


@dataclass(frozen=True)
class Described:
    """A series taken apart: trend, events, and scale · (remainder + spikes). All but `coefficients` are `[n]`.

    `tame`: the series without the spikes. `smooth` `[n, columns]`: what spans the trend.
    `coefficients`: of the autoregression, corrected for bias. `phi`: lag-1 correlation that they imply. `quantum`:
    distance of the values a series of few values can take, else 0. `removed`: events taken out.
    """

    trend: Floats
    scale: Floats
    tame: Floats
    smooth: Floats
    remainder: Floats
    spikes: Floats
    coefficients: Floats
    phi: float
    quantum: float
    removed: int
    shape: Shape
    curved: bool
    noiseless: bool

    @property
    def regime(self) -> Regime:
        """How its events are sought."""
        return BY_SIZE if self.curved else NOISY

    @property
    def stationary(self) -> bool:
        """Whether the autoregression is: without, no null series can be drawn."""
        return _largest_root(self.coefficients) < STATIONARY

    @property
    def turns(self) -> bool:
        """Whether a series as smooth as a curve turns often enough to tell how far it wanders, its events aside."""
        n = len(self.remainder)
        if not self.curved or _decorrelation(self.remainder) <= LONGEST_WANDER * n:
            return True
        whole = left_by(trend(n), self.tame) / self.scale
        return bool(whole @ whole >= OBVIOUS * (self.remainder @ self.remainder))

    @property
    def sd(self) -> float:
        """Marginal SD of the noise, in units of the series, where its scale is typical."""
        return float(self.remainder.std() * np.median(self.scale))


def describe(values: Floats, shape: Shape, rng: np.random.Generator) -> Described:
    """Take one series `[n]` apart."""
    n = len(values)
    rest = left_by(trend(n), values)
    scale = local_scale(rest[None])[0]
    raw = rest / scale
    without_spikes = despiked(raw[None])[0] if shape == "level" else raw
    tame = values + (without_spikes - raw) * scale
    curved = shape == "level" and _smooth(without_spikes, 0)
    # A lone high value of a rate may be an event or the tail of its noise: it stays, and the tail is fitted to it.
    regime = WITHOUT_LONE if shape == "rate" else NARROW if curved else NOISY
    settled = search(tame, scale, shape, BEYOND_DOUBT, regime)
    noiseless = curved and _smooth(left_by(settled.smooth, tame - settled.sum(n)) / scale, EVENTS)
    if noiseless:
        tame, scale, raw, without_spikes = values, np.ones(n), rest, rest
        settled = search(tame, scale, shape, n * np.log(STANDS_OUT), BY_SIZE)
    elif settled.events:
        settled, scale = _in_calm(settled, tame, scale, regime)
    events, smooth = settled.sum(n), settled.smooth
    remainder = _left(tame, scale, smooth, settled.events)
    coefficients = _autoregression(remainder, design(smooth, settled.events) / scale[:, None], rng)
    return Described(
        trend=values - events - left_by(smooth, values - events),
        scale=scale,
        tame=tame,
        smooth=smooth,
        remainder=remainder,
        spikes=raw - without_spikes,
        coefficients=coefficients,
        phi=_implied_phi(coefficients),
        quantum=quantum(values),
        removed=len(settled.events),
        shape=shape,
        curved=curved,
        noiseless=noiseless,
    )


def _smooth(series: Floats, events: int) -> bool:
    """Whether a standardised series, so many events aside, is likeliest as a curve of several equal roots."""
    memory = MEMORIES[int(fit(series[None], events=events).memory[0, events])]
    return len(memory.roots) > 1 and not memory.moving and memory.roots[0] >= LASTING


def _in_calm(settled: Settled, tame: Floats, scale: Floats, regime: Regime) -> tuple[Settled, Floats]:
    """Events again with the scale of the noise without them: beside an event it was that of its rise."""
    calm = local_scale(left_by(settled.smooth, tame - settled.sum(len(tame)))[None])[0]
    again = settle(tame, calm, settled.events, settled.memory, BEYOND_DOUBT, settled.smooth, regime)
    with_, without = (_left(tame, calm, again.smooth, e) for e in (again.events, []))
    # Slow wander under faster noise looks like events to noise with one memory, and not to noise with several.
    if _cost(without) - _cost(with_) < WITH_SEVERAL * len(again.events):
        return nothing(again.smooth), scale
    return again, calm


def draw(known: Described, count: int, null: str, rng: np.random.Generator) -> Floats:
    """`count` null series `[count, n]` in the units of the series."""
    if null not in NULLS:
        raise SpecError(f"unknown null '{null}'{did_you_mean(null, NULLS)} - siblings need continuations")
    makers = {"ar_sieve": _sieve, "iaaft": _iaaft, "block": _blocks}
    noise = makers[null](known, count, rng)
    n = len(known.trend)
    noise += rng.choice(known.spikes, (count, n))
    out = known.trend + known.scale * noise
    return out if known.quantum == 0 else np.rint(out / known.quantum) * known.quantum


def siblings(values: Floats, continuations: Floats, shape: Shape) -> Floats:
    """Null series from continuations `[K, n]` of one checkpoint over the same steps as `values` `[n]`.

    Each is the series' own smooth trend and one continuation's deviation from their mean, widened by √(K / (K - 1)) for
    the mean that was taken from the same K. SpecError for fewer than 3 continuations, or another length.
    """
    if continuations.ndim != 2 or continuations.shape[-1] != len(values) or len(continuations) < 3:
        raise SpecError(
            f"siblings are at least 3 continuations of the series' {len(values)} measurements, but got an array of"
            f" shape {continuations.shape} - fork the checkpoint that the series begins at"
        )
    count = len(continuations)
    known = describe(values, shape, np.random.default_rng(0))
    deviation = (continuations - continuations.mean(axis=0)) * np.sqrt(count / (count - 1))
    return np.asarray(known.trend + deviation)


def quantum(values: Floats) -> float:
    """Distance of the values that a series takes, where they are few and on a grid (integers); else 0."""
    distinct = np.unique(values)
    if len(distinct) < 2 or len(distinct) > len(values) / 4:
        return 0.0
    gaps = np.diff(distinct)
    least = float(gaps.min())
    return least if np.allclose(gaps / least, np.rint(gaps / least), atol=1e-6) else 0.0


def _left(values: Floats, scale: Floats, smooth: Floats, events: Sequence[Located]) -> Floats:
    """What trend and events leave of values, in units of their scale."""
    return left_by(design(smooth, events) / scale[:, None], values / scale)


def _cost(remainder: Floats) -> float:
    """Twice the negative log likelihood of the best autoregression, with AIC's price for its order."""
    return float(_costs(remainder).min())


def _costs(remainder: Floats) -> Floats:
    """The same by order, from 1 on."""
    n = len(remainder)
    highest = max(1, min(MAX_ORDER, n // 20))
    variance = _burg(remainder[None], highest)[1][1:, 0]
    return np.asarray(n * np.log(np.maximum(variance, 1e-300)) + 2 * np.arange(1, highest + 1))


def _autoregression(remainder: Floats, columns: Floats, rng: np.random.Generator) -> Floats:
    """Coefficients of order 1 or more by AIC, corrected for the bias that trend and small samples give them."""
    n = len(remainder)
    order = int(_costs(remainder).argmin()) + 1
    found = _burg(remainder[None], order)[0][order - 1][0]
    if _largest_root(found) >= STATIONARY:
        return cast(Floats, found)
    noise = lfilter([1.0], np.r_[1.0, -found], rng.standard_normal((_BIAS_RUNS, n + _BURN)), axis=-1)[:, _BURN:]
    again = _burg(left_by(columns, noise), order)[0][order - 1]
    bias = again.mean(axis=0) - found
    for shrunk in (1.0, 0.8, 0.6, 0.4, 0.2):
        corrected = found - shrunk * bias
        if _largest_root(corrected) < STATIONARY:
            return cast(Floats, corrected)
    return cast(Floats, found)


def _burg(series: Floats, highest: int) -> tuple[list[Floats], Floats]:
    """Coefficients of orders 1 … highest, each `[count, order]`, and innovation variances by order (Burg 1968).

    Yule-Walker takes a smooth series for a far noisier one: its taper is larger than such innovations.
    """
    count, n = series.shape
    ahead, behind = series[:, 1:], series[:, :-1]
    variance = [np.maximum(np.einsum("ij,ij->i", series, series) / n, 1e-300)]
    coefficients: list[Floats] = []
    last = np.zeros((count, 0))
    for _ in range(highest):
        both = np.einsum("ij,ij->i", ahead, ahead) + np.einsum("ij,ij->i", behind, behind)
        reflection = 2 * np.einsum("ij,ij->i", ahead, behind) / np.maximum(both, 1e-300)
        reflection = np.clip(reflection, -LARGEST_REFLECTION, LARGEST_REFLECTION)
        last = np.concatenate([last - reflection[:, None] * last[:, ::-1], reflection[:, None]], axis=1)
        variance.append(variance[-1] * (1 - reflection**2))
        coefficients.append(last)
        step = reflection[:, None]
        ahead, behind = (ahead - step * behind)[:, 1:], (behind - step * ahead)[:, :-1]
    return coefficients, np.stack(variance)


def _decorrelation(series: Floats) -> int:
    """First lag at which the autocorrelation of a series is below 1/e."""
    n = len(series)
    spectrum = np.abs(np.fft.rfft(series - series.mean(), 2 * n)) ** 2
    correlation = np.fft.irfft(spectrum)[:n]
    below = np.flatnonzero(correlation < np.exp(-1) * correlation[0])
    return int(below[0]) if len(below) else n


def _largest_root(coefficients: Floats) -> float:
    return float(np.abs(np.roots(np.r_[1.0, -coefficients])).max(initial=0.0))


def _implied_phi(coefficients: Floats) -> float:
    """Lag-1 correlation of an autoregression, from its impulse response."""
    impulse = np.zeros(4000)
    impulse[0] = 1.0
    response = lfilter([1.0], np.r_[1.0, -coefficients], impulse)
    return float(np.clip((response[1:] @ response[:-1]) / (response @ response), -LONGEST_MEMORY, LONGEST_MEMORY))


def _sieve(known: Described, count: int, rng: np.random.Generator) -> Floats:
    n, order = len(known.remainder), len(known.coefficients)
    innovations = lfilter(np.r_[1.0, -known.coefficients], [1.0], known.remainder)[order:]
    innovations = innovations - innovations.mean()
    innovations *= np.sqrt(n / max(n - order - known.removed - known.smooth.shape[1], 1))
    if known.shape == "level":
        drawn = rng.choice(innovations, (count, n + _BURN))
    else:
        degrees, scale, weight = _tails(known, innovations, rng)
        # How heavy a tail is, is known no better than so many innovations tell.
        which = rng.choice(len(weight), count, p=weight)
        drawn = scale[which, None] * rng.standard_t(degrees[which, None], (count, n + _BURN))
    return cast(Floats, lfilter([1.0], np.r_[1.0, -known.coefficients], drawn, axis=-1)[:, _BURN:])


def _tails(known: Described, innovations: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Degrees of freedom, scales and probabilities of the Student-t's that innovations may come from.

    A high value raises the local scale that it was divided by, and tails look lighter than they are: by as much as
    those of a few series drawn from the likeliest t do.
    """
    degrees, scales, weights = students(innovations[None])
    scale, weight = scales[0], weights[0]
    if weight @ np.log(degrees) > np.log(HEAVY):
        return degrees, scale, weight
    best = int(weight.argmax())
    drawn = known.scale * scale[best] * rng.standard_t(degrees[best], (_TAIL_RUNS, len(known.scale)))
    again = students(drawn / local_scale(drawn))[2]
    lighter = float(np.mean(again @ np.log(degrees)) - np.log(degrees[best]))
    heavier = np.maximum(degrees * np.exp(-max(lighter, 0.0)), HEAVIEST)
    # The same spread: half of all values of a t lie within its quartiles.
    return heavier, scale * student_t.ppf(0.75, degrees) / student_t.ppf(0.75, heavier), weight


def students(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Student-t's for series `[count, n]`: degrees of freedom `[k]`, the scale of each that a series is likeliest under
    `[count, k]`, and the likelihoods `[count, k]`, which sum to 1.

    200 degrees stand for the Gaussian.
    """
    degrees = np.array([2.1, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 50.0, 200.0])
    squared = (values**2)[:, None]
    squared = np.maximum(squared, 1e-30 * np.maximum(squared.max(axis=-1, keepdims=True), 1e-300))
    variance = np.repeat(np.median(squared, axis=-1) * 2 + 1e-300, len(degrees), axis=1)
    for _ in range(30):
        weight = (degrees[:, None] + 1) / (degrees[:, None] + squared / variance[..., None])
        variance = (weight * squared).mean(axis=-1)
    scale = np.sqrt(variance)
    log_likelihood = student_t.logpdf(values[:, None], degrees[:, None], scale=scale[..., None]).sum(axis=-1)
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=-1, keepdims=True))
    return degrees, scale, likelihood / likelihood.sum(axis=-1, keepdims=True)


def _iaaft(known: Described, count: int, rng: np.random.Generator) -> Floats:
    values = known.remainder
    n = len(values)
    ordered = np.sort(values)
    amplitude = np.abs(np.fft.rfft(values))
    series = rng.permuted(np.tile(values, (count, 1)), axis=1)
    for _ in range(_IAAFT_ROUNDS):
        spectrum = np.fft.rfft(series, axis=-1)
        phase = spectrum / np.maximum(np.abs(spectrum), 1e-300)
        shaped = np.fft.irfft(amplitude * phase, n, axis=-1)
        np.put_along_axis(series, shaped.argsort(axis=-1), np.broadcast_to(ordered, series.shape), axis=-1)
    return series


def _blocks(known: Described, count: int, rng: np.random.Generator) -> Floats:
    """Blocks of mean length n^(1/3) · ((1 + φ) / (1 - φ))^(2/3), at most a tenth of the series, wrapped at its end."""
    n = len(known.remainder)
    memory = (1 + max(known.phi, 0.0)) / (1 - max(known.phi, 0.0))
    length = min(max(n ** (1 / 3) * memory ** (2 / 3), 2.0), n / 10)
    begins = rng.random((count, n)) < 1 / length
    begins[:, 0] = True
    start = rng.integers(0, n, (count, n))
    at = np.maximum.accumulate(np.where(begins, np.arange(n), 0), axis=-1)
    place = (np.take_along_axis(start, at, axis=-1) + np.arange(n) - at) % n
    return cast(Floats, known.remainder[place])
