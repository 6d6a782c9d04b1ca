"""How fast a series moves, what of it is the common slow-down of training, and what is left when that is taken out.

All curves of a run start fast and slow down. Two that share nothing else then look coordinated, and shifting one
against the other does not help, for the slow-down is shifted too (SCIENCE §3.0). So tests run on *activity*: the log of
|velocity| without its smooth course, and for correlations prewhitened: what remains is stationary and nearly white.
"""

from functools import lru_cache
from typing import cast

import numpy as np
from scipy.linalg import solve_toeplitz
from scipy.ndimage import convolve1d
from scipy.signal import lfilter
from scipy.stats import norm, rankdata

from ndt_ray.analysis.detection import Floats

RESOLUTION = 1e-6
"""Velocities under this share of the largest value are rounding of stored float32, and count as this share."""

MAX_ORDER = 8

START = 10
"""Changes at the start that correlations leave out: the steepest part of the common slow-down."""


def log_speed(values: Floats) -> Floats:
    """log |change| between neighbours, along the last axis, floored at the resolution of stored values."""
    floor = RESOLUTION * np.maximum(np.abs(values).max(axis=-1, keepdims=True), 1e-300)
    return cast(Floats, np.log(np.maximum(np.abs(np.diff(values, axis=-1)), floor)))


def smooth(values: Floats, window: int) -> Floats:
    """Local straight lines with tricube weights over `window` points, along the last axis.

    One-sided at the end; at the start, where training slows down fastest, over fewer points: 2 i + 11 at place i.
    """
    n = values.shape[-1]
    window = _odd(window, n)
    if window < 5:
        return np.broadcast_to(values.mean(axis=-1, keepdims=True), values.shape).copy() if n else values
    half = window // 2
    centre, start, end = _weights(window)
    out = convolve1d(values, centre, axis=-1, mode="nearest")
    out[..., :half] = values[..., :window] @ start.T
    out[..., n - half :] = values[..., n - window :] @ end.T
    return cast(Floats, out)


def freedom(n: int, window: int) -> float:
    """Degrees of freedom of `smooth`: the trace of what turns values into their course."""
    window = _odd(window, n)
    if window < 5:
        return 1.0
    half = window // 2
    centre, start, end = _weights(window)
    inner = (n - 2 * half) * float(centre[half])
    return inner + float(np.trace(start)) + float(np.trace(end[:, window - half :]))


def _odd(window: int, n: int) -> int:
    return min(window | 1, n if n % 2 else n - 1)


@lru_cache(maxsize=32)
def _weights(window: int) -> tuple[Floats, Floats, Floats]:
    """Weights of an inner point `[window]`, of each of the first and each of the last half `[half, window]`."""
    half = window // 2
    at = np.arange(window, dtype=np.float64)

    def line(where: int, first: int, last: int) -> Floats:
        reach = max(where - first, last - where) + 1
        weight = np.where((at >= first) & (at <= last), (1 - (np.abs(at - where) / reach) ** 3).clip(0) ** 3, 0.0)
        x = at - where
        s0, s1, s2 = (float((weight * x**k).sum()) for k in range(3))
        found: Floats = weight * (s2 - s1 * x) / (s0 * s2 - s1 * s1)
        return found

    start = np.array([line(i, 0, min(window - 1, 2 * i + 10)) for i in range(half)])
    end = np.array([line(i, 0, window - 1) for i in range(window - half, window)])
    return line(half, 0, window - 1), start, end


def activity(values: Floats, window: int) -> Floats:
    """log |velocity| without its smooth course and without its first changes, where no smooth course can be told."""
    speed = log_speed(values)
    left = speed - smooth(speed, window)
    return left[..., START:]


def autoregression(values: Floats, max_order: int = MAX_ORDER) -> Floats:
    """Yule-Walker coefficients of the order that Akaike's criterion chooses, for a series without mean; may be empty.

    Stationary by construction.
    """
    n = len(values)
    top = min(max_order, n // 10)
    power = np.array([values[: n - k] @ values[k:] for k in range(top + 1)]) / max(n, 1)
    if top < 1 or power[0] <= 0:
        return np.zeros(0)
    best, chosen = n * np.log(power[0]), np.zeros(0)
    for order in range(1, top + 1):
        found = solve_toeplitz(power[:order], power[1 : order + 1])
        left = power[0] - found @ power[1 : order + 1]
        if left > 0 and n * np.log(left) + 2 * order < best:
            best, chosen = n * np.log(left) + 2 * order, found
    return chosen


def innovations(values: Floats) -> Floats:
    """What an autoregression leaves of a series, as normal scores: white, with thin tails. Constant: zeros."""
    if len(values) < 3 or np.ptp(values) == 0:
        return np.zeros_like(values)
    centred = values - values.mean()
    left = lfilter(np.concatenate([[1.0], -autoregression(centred)]), [1.0], centred)
    scores = norm.ppf(rankdata(left) / (len(left) + 1))
    return cast(Floats, (scores - scores.mean()) / scores.std())


def sieve(values: Floats, count: int, rng: np.random.Generator) -> Floats:
    """`count` series `[count, n]` of the same autoregression, its innovations drawn with replacement."""
    n = len(values)
    centred = values - values.mean()
    model = np.concatenate([[1.0], -autoregression(centred)])
    left = lfilter(model, [1.0], centred)
    warm = 50
    drawn = rng.choice(left - left.mean(), size=(count, n + warm))
    return cast(Floats, lfilter([1.0], model, drawn, axis=-1)[:, warm:])


def rephased(values: Floats, rng: np.random.Generator) -> Floats:
    """Each row `[..., n]` with its own periodogram and random phases (Theiler et al. 1992); the mean stays.

    What smoothing and prewhitening leave is not quite white: a course taken over 31 points leaves correlations down to
    -0.08 at 10 points, which widen cross-correlations by 7 % in variance. Permuted rows have none of them.
    """
    n = values.shape[-1]
    spectrum = np.fft.rfft(values, axis=-1)
    turned = np.exp(2j * np.pi * rng.random(spectrum.shape))
    turned[..., 0] = 1.0
    if n % 2 == 0:
        turned[..., -1] = np.where(turned[..., -1].real < 0, -1.0, 1.0)
    return np.fft.irfft(spectrum * turned, n, axis=-1)


def lagged(x: Floats, y: Floats, lags: int) -> Floats:
    """Cross-correlations at lags -lags … lags along the last axis, `[..., 2 lags + 1]`; x leads where the lag is > 0.

    For standardised series; each lag is divided by the whole length, so that few overlapping points weigh less.
    """
    n = x.shape[-1]
    lags = min(lags, n - 1)
    shape = np.broadcast_shapes(x.shape, y.shape)[:-1]
    found = np.empty((*shape, 2 * lags + 1))
    for k in range(-lags, lags + 1):
        a, b = (x[..., : n - k], y[..., k:]) if k >= 0 else (x[..., -k:], y[..., : n + k])
        found[..., k + lags] = np.einsum("...i,...i->...", a, b) / n
    return found
