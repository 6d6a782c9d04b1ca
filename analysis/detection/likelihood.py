"""How much better a series is explained with events than without: one statistic for any trend, noise and scale.

y = trend + events + s(t) · AR(1) noise. For every coefficient of the noise, events are added greedily; the gain of the
k-th is the increase of twice the log likelihood, maximised over coefficients with and without it. Because the noise is
estimated anew on either side, neither drift nor memory nor a changing scale passes for an event: the null distribution
of the largest gain hardly depends on them, and surrogates that go through the same steps settle the rest.
"""

from dataclasses import dataclass

import numpy as np

from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.analysis.detection.atoms import PHIS, Shape, Singles, Whitened, apart, trend, whiten, whitened

EVENTS = 2
"""Events that are sought in every series, surrogates included."""
_TINY = 1e-12


@dataclass(frozen=True)
class Fitted:
    """Of series `[count, n]`: `gain [count, events]` in units of twice the log likelihood, `atom [count, events]`.

    `phi [count, events + 1]`: the noise's coefficient with none, one, … of the events.
    """

    gain: Floats
    atom: Ints
    phi: Floats

    @property
    def statistic(self) -> Floats:
        """The largest gain of one event, `[count]`."""
        return np.asarray(self.gain.max(axis=-1))


def standardised(values: Floats, shape: Shape) -> tuple[Floats, Floats]:
    """Series `[count, n]` without trend and in units of their local noise; and that noise's relative scale."""
    n = values.shape[-1]
    basis, _ = np.linalg.qr(trend(n))
    rest = values - (values @ basis) @ basis.T
    scale = local_scale(rest)
    rest = rest / scale
    return (despiked(rest) if shape == "level" else rest), scale


def local_scale(rest: Floats) -> Floats:
    """Scale of the noise along each series `[count, n]`, from second differences, which neither slope nor step moves.

    Root-means of |second difference|^(1/2) under a triangular window of a fifth of the series: robust, and no value
    counts for more than three times the typical one.
    """
    n = rest.shape[-1]
    second = np.abs(rest[:, 2:] - 2 * rest[:, 1:-1] + rest[:, :-2]) ** 0.5
    window = _window(n)
    capped = np.minimum(second, np.sqrt(3.0) * (second @ window)[:, 1:-1])
    local = capped @ window
    floor = 0.02 * local.mean(axis=-1, keepdims=True)
    return np.asarray(np.maximum(local, np.where(floor > 0, floor, 1.0)) ** 2)


def _window(n: int) -> Floats:
    """`[n - 2, n]`: weights that average second differences around every measurement."""
    reach = max(0.2 * n, 8.0)
    distance = np.abs(np.arange(1, n - 1)[:, None] - np.arange(n))
    weight = np.maximum(0.0, 1 - distance / reach)
    return np.asarray(weight / weight.sum(axis=0))


def despiked(values: Floats) -> Floats:
    """Series `[count, n]`, single values that stand out from both sides taken back to the median of five.

    A value is taken back beyond 4 robust SDs of the distances from that median. A step stays where and what it was.
    """
    median = median_of_five(values)
    distance = np.abs(values - median)
    limit = 4 * 1.4826 * np.maximum(distance.mean(axis=-1, keepdims=True), _TINY)
    return np.where(distance > limit, median, values)


def median_of_five(values: Floats) -> Floats:
    """Running median of five along the last axis; the two values at either end are left as they are."""
    if values.shape[-1] < 5:
        return values.copy()
    a, b, c, d, e = (values[..., k : values.shape[-1] - 4 + k] for k in range(5))
    low, high = np.minimum(a, b), np.maximum(a, b)
    low2, high2 = np.minimum(d, e), np.maximum(d, e)
    low, high = np.maximum(low, low2), np.minimum(high, high2)
    median = np.maximum(np.minimum(low, high), np.minimum(np.maximum(low, high), c))
    out = values.copy()
    out[..., 2:-2] = median
    return out


def fit(values: Floats, shape: Shape = "level", events: int = EVENTS, free: Singles | None = None) -> Fitted:
    """Greedy events of standardised series `[count, n]`; `free [atoms]` is 0 where none is sought."""
    count, n = values.shape
    separate = apart(n, shape)
    level = np.empty((events + 1, len(PHIS), count))
    chosen = np.zeros((events, len(PHIS), count), np.int64)
    for j, dictionary in enumerate(whitened(n, shape)):
        level[:, j], chosen[:, j] = _greedy(values, dictionary, separate, events, free)
    best = level.max(axis=1)
    at = level.argmax(axis=1)
    gain = np.diff(best, axis=0).T
    atom = np.stack([chosen[k, at[k + 1], np.arange(count)] for k in range(events)], axis=1)
    return Fitted(gain, atom, np.array(PHIS)[at].T)


def _greedy(
    values: Floats, dictionary: Whitened, separate: Singles, events: int, free: Singles | None
) -> tuple[Floats, Ints]:
    """Twice the log likelihood with 0 … events events `[events + 1, count]` at one coefficient, and the atoms.

    Orthogonal matching pursuit: a chosen atom, without those before it, is projected out of the series and of all
    other atoms; those that overlap it are out.
    """
    count, n = values.shape
    seen = whiten(values, dictionary.phi)
    energy = np.einsum("ij,ij->i", seen, seen) - np.sum((seen @ dictionary.basis) ** 2, axis=1)
    least = np.maximum(_TINY * energy, 1e-300)
    root = np.log1p(-(dictionary.phi**2))
    level = np.empty((events + 1, count))
    chosen = np.empty((events, count), np.int64)
    level[0] = root - n * np.log(np.maximum(energy, least) / n)
    rows = np.arange(count)
    score = seen.astype(np.float32) @ dictionary.units
    left: Singles | None = None
    done: list[Singles] = []
    for k in range(events):
        squared = score * score
        if free is not None:
            squared *= free
        if left is not None:
            squared /= left
        pick = squared.argmax(axis=1)
        chosen[k] = pick
        energy = energy - squared[rows, pick]
        level[k + 1] = root - n * np.log(np.maximum(energy, least) / n)
        if k + 1 == events:
            break
        column = dictionary.units[:, pick].T @ dictionary.units
        for before in done:
            column -= before * before[rows, pick][:, None]
        length = np.sqrt(np.maximum(column[rows, pick], np.float32(1e-6)))[:, None]
        column /= length
        score -= column * (score[rows, pick][:, None] / length)
        taken = column * column
        left = np.maximum((1 - taken) if left is None else (left - taken), np.float32(0.02))
        free = separate[pick] if free is None else free * separate[pick]
        done.append(column)
    return level, chosen
