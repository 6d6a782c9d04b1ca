"""How much better a series is explained with events than without: one statistic for any trend, noise and scale.

y = trend + events + s(t) · autoregressive noise. For every memory of the noise, events are added greedily; the gain of
the k-th is the increase of twice the log likelihood, maximised over memories with and without it. Because the noise is
estimated anew on either side, neither drift nor memory nor a changing scale passes for an event: the null distribution
of the largest gain hardly depends on them, and surrogates that go through the same steps settle the rest.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.analysis.detection.atoms import (
    MEMORIES,
    Memory,
    Shape,
    Singles,
    Whitened,
    apart,
    atoms,
    bank,
    log_scaling,
    products,
    trend,
    whiten,
    whitened,
)

EVENTS = 2
"""Events that are sought in every series, surrogates included."""
IMPLAUSIBLE, IMPLAUSIBLE_BESIDE_SHORT = 120.0, 40.0
"""Twice the log likelihood by which another memory explains a null series better than one that is not tried, and where
that other memory is short. Of 91,000 null series of 60, 120 and 400 measurements with short memories 2 had another
statistic with 40 than with 120, of 24,000 with longer ones 1 in 29."""
SHORT = 0.6
"""Lag-1 correlation up to which a memory is short."""
MANY, MOST_PRODUCTS = 50, 1500
"""Series from which on each memory's dictionary is worth its reading, and atoms up to which the products of every two
are kept (at most 9 MB a memory)."""
_TINY = 1e-12


@dataclass(frozen=True)
class Fitted:
    """Of series `[count, n]`: `gain [count, events]` in units of twice the log likelihood, `atom [count, events]`.

    `memory [count, events + 1]`: the noise's, as a place in the grid, with none, one, … of the events.
    """

    gain: Floats
    atom: Ints
    memory: Ints

    @property
    def statistic(self) -> Floats:
        """The largest gain of one event, `[count]`."""
        return np.asarray(self.gain.max(axis=-1))


def standardised(values: Floats, shape: Shape, even: bool = False) -> tuple[Floats, Floats]:
    """Series `[count, n]` without trend and in units of their local noise; and that noise's relative scale.

    Where it is `even`, the scale is 1, and there are no spikes.
    """
    basis = _basis(values.shape[-1])
    rest = values - (values @ basis) @ basis.T
    if even:
        return rest, np.ones_like(rest)
    scale = local_scale(rest)
    rest = rest / scale
    return (despiked(rest) if shape == "level" else rest), scale


@functools.lru_cache(maxsize=6)
def _basis(n: int) -> Floats:
    return np.asarray(np.linalg.qr(trend(n))[0])


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


@functools.lru_cache(maxsize=6)
def _window(n: int) -> Floats:
    """`[n - 2, n]`: weights that average second differences around every measurement."""
    reach = max(0.2 * n, 8.0)
    distance = np.abs(np.arange(1, n - 1)[:, None] - np.arange(n))
    weight = np.maximum(0.0, 1 - distance / reach)
    return np.asarray(weight / weight.sum(axis=0))


def despiked(values: Floats) -> Floats:
    """Series `[count, n]`, single values that stand out from both sides taken back to the median of five.

    A value is taken back beyond 4 robust SDs of the distances from that median, if it is farther from it than its four
    neighbours from each other: the turn of a smooth curve is no spike. A step stays where and what it was.
    """
    median = median_of_five(values)
    distance = np.abs(values - median)
    limit = 4 * 1.4826 * np.maximum(distance.mean(axis=-1, keepdims=True), _TINY)
    limit = np.broadcast_to(limit, values.shape).copy()
    if values.shape[-1] >= 5:
        a, b, _, d, e = _fives(values)
        spread = np.maximum(np.maximum(a, b), np.maximum(d, e)) - np.minimum(np.minimum(a, b), np.minimum(d, e))
        limit[..., 2:-2] = np.maximum(limit[..., 2:-2], spread)
    return np.where(distance > limit, median, values)


def _fives(values: Floats) -> list[Floats]:
    """Five views `[..., n - 4]`: every value but the two at either end, with the two before and the two after it."""
    return [values[..., k : values.shape[-1] - 4 + k] for k in range(5)]


def median_of_five(values: Floats) -> Floats:
    """Running median of five along the last axis; the two values at either end are left as they are."""
    if values.shape[-1] < 5:
        return values.copy()
    a, b, c, d, e = _fives(values)
    low, high = np.minimum(a, b), np.maximum(a, b)
    low2, high2 = np.minimum(d, e), np.maximum(d, e)
    low, high = np.maximum(low, low2), np.minimum(high, high2)
    median = np.maximum(np.minimum(low, high), np.minimum(np.maximum(low, high), c))
    out = values.copy()
    out[..., 2:-2] = median
    return out


def fit(
    values: Floats,
    shape: Shape = "level",
    events: int = EVENTS,
    free: Singles | None = None,
    memories: Sequence[Memory] = MEMORIES,
    null_series: bool = False,
) -> Fitted:
    """Greedy events of standardised series `[count, n]`; `free [atoms]` is 0 where none is sought.

    In series that are known to hold none (`null_series`), none is sought with memories under which they are far less
    likely than under the best (`IMPLAUSIBLE`).
    """
    count, n = values.shape
    if count < MANY and not null_series:
        level, chosen = _few(values, shape, events, free, memories)
    else:
        level, chosen = _many(values, shape, events, free, memories, null_series)
    best = level.max(axis=1)
    at = level.argmax(axis=1)
    gain = np.diff(best, axis=0).T
    atom = np.take_along_axis(chosen, at[1:, None], axis=1)[:, 0].T
    return Fitted(gain, atom, at.T)


def _many(
    values: Floats, shape: Shape, events: int, free: Singles | None, memories: Sequence[Memory], null_series: bool
) -> tuple[Floats, Ints]:
    """Twice the log likelihood `[events + 1, memories, count]`, -inf where it is not sought, and the atoms."""
    count, n = values.shape
    level = np.full((events + 1, len(memories), count), -np.inf)
    chosen = np.zeros((events, len(memories), count), np.int64)
    known = [whitened(n, shape, memory) for memory in memories]
    seen = [whiten(values, memory) for memory in memories]
    for j, dictionary in enumerate(known):
        level[0, j] = _level(_energy(seen[j], dictionary), log_scaling(dictionary.memory), n)
    reach = _reach(memories) if null_series else np.full(len(memories), np.inf)
    plausible = level[0] >= level[0].max(axis=0) - reach[level[0].argmax(axis=0)]
    separate = apart(n, shape)
    for j, dictionary in enumerate(known):
        rows = np.flatnonzero(plausible[j])
        if len(rows):
            many = len(rows) >= MANY and len(separate) <= MOST_PRODUCTS
            pairs = products(n, shape, dictionary.memory) if many else None
            level[1:, j, rows], chosen[:, j, rows] = _greedy(seen[j][rows], dictionary, pairs, separate, events, free)
    return level, chosen


def _reach(memories: Sequence[Memory]) -> Floats:
    """How far other memories may fall short of each, to be tried."""
    short = [len(m.roots) == 1 and not m.moving and m.roots[0] <= SHORT for m in memories]
    return np.where(short, IMPLAUSIBLE_BESIDE_SHORT, IMPLAUSIBLE)


def _few(
    values: Floats, shape: Shape, events: int, free: Singles | None, memories: Sequence[Memory]
) -> tuple[Floats, Ints]:
    """The same with every memory at once: the atoms, which all share, are read once instead of every dictionary.

    Whitened, and by the transpose again, a series has the same products with atoms as its innovations with whitened
    ones.
    """
    count, n = values.shape
    dictionary, known = bank(n, shape, memories), atoms(n, shape).values
    scaling = dictionary.grid.scaling[:, None]
    level = np.empty((events + 1, len(memories), count))
    chosen = np.empty((events, len(memories), count), np.int64)
    each, rows = np.ogrid[: len(memories), :count]
    seen = dictionary.innovations(values)
    energy = np.einsum("jin,jin->ji", seen, seen)
    least = _TINY * energy
    level[0] = _level(energy, scaling, n)
    if events == 0:
        return level, chosen
    score = dictionary.products(seen, known)
    left, allowed, done = np.ones(()), np.ones((), np.float32) if free is None else free, list[Floats]()
    for k in range(events):
        squared = score * score * allowed / left
        pick = squared.argmax(axis=-1)
        chosen[k] = pick
        energy = energy - squared[each, rows, pick]
        level[k + 1] = _level(np.maximum(energy, least), scaling, n)
        if k + 1 == events:
            break
        atom = dictionary.innovations(known.T[pick]) * dictionary.inverse[each, pick][..., None]
        column = dictionary.products(atom, known)
        for before in done:
            column -= before * before[each, rows, pick][..., None]
        length = np.sqrt(np.maximum(column[each, rows, pick], 1e-6))[..., None]
        column /= length
        score = score - column * (score[each, rows, pick][..., None] / length)
        left = np.maximum(left - column * column, 0.02)
        allowed = allowed * apart(n, shape)[pick]
        done.append(column)
    return level, chosen


def _energy(seen: Floats, dictionary: Whitened) -> Floats:
    """Sum of squares that the trend leaves of whitened series `[count, n]`."""
    return np.asarray(np.einsum("ij,ij->i", seen, seen) - np.sum((seen @ dictionary.basis) ** 2, axis=1))


def _level(energy: Floats, scaling: float | Floats, n: int) -> Floats:
    """Twice the log likelihood, maximised over the size of the noise."""
    return np.asarray(scaling - n * np.log(np.maximum(energy, 1e-300) / n))


def _greedy(
    seen: Floats,
    dictionary: Whitened,
    pairs: Singles | None,
    separate: Singles,
    events: int,
    free: Singles | None,
) -> tuple[Floats, Ints]:
    """Twice the log likelihood of whitened series with 1 … events events `[events, count]`, and the atoms.

    Orthogonal matching pursuit: a chosen atom, without those before it, is projected out of the series and of all
    other atoms; those that overlap it are out. `pairs`: the products of every two atoms, where they are known.
    """
    count, n = seen.shape
    energy, scaling = _energy(seen, dictionary), log_scaling(dictionary.memory)
    least = _TINY * energy
    level = np.empty((events, count))
    chosen = np.empty((events, count), np.int64)
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
        level[k] = _level(np.maximum(energy, least), scaling, n)
        if k + 1 == events:
            break
        column = dictionary.units[:, pick].T @ dictionary.units if pairs is None else pairs[pick]
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
