"""The shapes that a series is compared with: a smooth trend, and events of every place and width beyond it.

For n measurements: `trend` spans what is no event (a parabola and decays from the initialisation), `bends` are trends
that curve as slowly as the run, `atoms` are steps, sigmoids, bumps and kinks. `Whitened` holds them as noise
sees them, for every memory of a grid, so that the likelihood of all events in many series is one matrix product.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import expit

from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.analysis.detection.kept import Kept

Singles = NDArray[np.float32]
Shape = Literal["level", "rate"]
"""What a series is: a level, which an event moves for good; or a rate (velocity), which an event raises for a while."""


class Memory(NamedTuple):
    """Noise by the roots of its autoregression (one: an AR(1) of that coefficient) and of its moving average."""

    roots: tuple[float, ...]
    moving: tuple[float, ...] = ()


MEMORIES = (
    *(Memory((phi,)) for phi in (-0.3, 0.0, 0.25, 0.45, 0.6, 0.72, 0.82, 0.89, 0.94, 0.97, 0.99)),
    *(Memory((root, root)) for root in (0.7, 0.85, 0.93, 0.97, 0.99)),
    *(Memory((root,) * 3) for root in (0.8, 0.9, 0.95)),
    *(Memory((root,), (0.6,)) for root in (0.94, 0.97, 0.99)),
    *(Memory((root, root), (0.6, 0.6)) for root in (0.93, 0.97, 0.99)),
)
"""Grid of memories over which the likelihood is maximised. Noise that wanders smoothly (several roots) or under faster
noise (a moving average) looks to an AR(1) as if it had events."""
RISE = 2 * float(np.log(9))
"""A logistic of scale s rises from 10 to 90 % within 2 ln 9 · s."""
DECAYS = (0.01, 0.04, 0.16)
"""Time constants of the trend's decays, in shares of the series: together they follow any relaxation from the start."""
BENDS = tuple(float(x) for x in np.geomspace(0.01, 0.6, 16))
"""Time constants of the decays among the bends, in shares of the series."""
BROAD = (0.6, 0.75, 0.95)
"""10-90 % widths of the sigmoids among the bends, in shares of the series."""
CENTRES = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Their middles; nearer to the ends they are half a sigmoid, and what they follow is as often an event's rise."""
WIDEST = 0.3
"""Widest sigmoid, 10-90 %, as a share of the series."""
KINK = 0.15
"""The size of a kink is how far it departs from its continued line within this share of the series."""
EDGE = 5
"""No event is sought within so many measurements of either end."""
SWALLOWED = 0.02
"""An atom of which the trend leaves less than this share of its energy cannot be told from the trend."""
SWALLOWED_KINK = 0.004
"""The same for kinks: their size is that near the corner, and most of their energy is the slope that follows."""


def trend(n: int) -> Floats:
    """Columns that span a smooth trend, `[n, columns]`; fewer decays where a series is short."""
    t = np.arange(n) / max(n - 1, 1)
    decays = [np.exp(-t / share) for share in DECAYS if share * n >= 2]
    return np.stack([np.ones(n), t, t * t, *decays], axis=1)


@functools.lru_cache(maxsize=6)
def bends(n: int) -> tuple[Floats, Floats]:
    """Trends with one bend as slow as the run: columns that all have `[n, k]`, and the bends `[n, bends]`.

    A parabola, the fastest decay, and any one of decays, broad sigmoids and half a cosine. They follow whole-run curves
    that `trend` does not (a schedule, a slow sigmoid), and fewer events than it.
    """
    t = np.arange(n) / max(n - 1, 1)
    slow = [np.exp(-t / share) for share in BENDS if share * n >= 2]
    slow += [curve("sigmoid", n, c * n, w * n) for w in BROAD for c in CENTRES]
    slow.append(np.cos(np.pi * t))
    return trend(n)[:, :4], np.stack(slow, axis=1)


@dataclass(frozen=True)
class Atoms:
    """Events of unit size: `values [n, atoms]`, and of each its middle, 10-90 % width (0: step) and kind."""

    values: Floats
    location: Floats
    width: Floats
    kind: Sequence[str]


def curve(kind: str, n: int, location: float, width: float) -> Floats:
    """One event of unit size on n measurements; `location` between measurements is a half."""
    t = np.arange(n, dtype=np.float64)
    if kind == "kink":
        return np.maximum(0.0, t - location) / (KINK * n)
    if kind == "bump":
        if width < 2:
            return (np.abs(t - location) <= 0.5).astype(np.float64)
        half = expit((t - location) * (RISE / width))
        return np.asarray(4 * half * (1 - half), dtype=np.float64)
    if width <= 1:
        return (t > location).astype(np.float64)
    return np.asarray(expit((t - location) * (RISE / width)), dtype=np.float64)


def widths(n: int) -> list[int]:
    """10-90 % widths of the sigmoids, from 6 measurements (3 in short series) to `WIDEST` of the series."""
    found, width = [], 6.0 if n >= 100 else 3.0
    while width <= WIDEST * n:
        found.append(round(width))
        width *= 2 if width < 24 else 1.6
    return found


@functools.lru_cache(maxsize=6)
def atoms(n: int, shape: Shape) -> Atoms:
    """Every event that is sought in n measurements; places are a fifth of a width apart."""
    chosen: list[tuple[str, float, float]] = []
    if shape == "level":
        chosen += [("step", k - 0.5, 0.0) for k in range(EDGE, n - EDGE + 1)]
    else:
        chosen += [("bump", float(k), 1.0) for k in range(EDGE, n - EDGE)]
    for width in widths(n):
        margin, gap = max(EDGE, width / 4), max(1.0, width / 5)
        places = np.arange(margin, n - margin, gap)
        chosen += [("sigmoid" if shape == "level" else "bump", float(p), float(width)) for p in places]
    if shape == "level":
        chosen += [("kink", float(k), 0.0) for k in np.arange(0.1 * n, 0.9 * n, max(1.0, n / 40))]
    columns = [curve("sigmoid" if kind == "step" else kind, n, place, width) for kind, place, width in chosen]
    kinds, location, width_ = zip(*chosen, strict=True)
    return Atoms(np.stack(columns, axis=1), np.array(location), np.array(width_), kinds)


@dataclass(frozen=True)
class Whitened:
    """The atoms as noise of one memory sees them: whitened, without the whitened trend, of unit length.

    `basis [n, columns]`: orthonormal whitened trend. `units [n, atoms]`, float32: a whitened series times these is
    every atom's signed root of the residual energy that it explains; 0 for atoms that the trend swallows. `inverse
    [atoms]`: what an atom's values, whitened and without the trend, were multiplied by.
    """

    memory: Memory
    basis: Floats
    units: Singles
    inverse: Floats


def whiten(values: Floats, memory: Memory) -> Floats:
    """Series `[..., n]` with noise of this memory removed: innovations, the first ones scaled to theirs."""
    for root in memory.roots:
        left = values.copy()
        left[..., 1:] -= root * values[..., :-1]
        left[..., 0] *= np.sqrt(1 - root * root)
        values = left
    for root in memory.moving:
        values = cast(Floats, lfilter([1.0], [1.0, -root], values, axis=-1))
    return values


def log_scaling(memory: Memory) -> float:
    """Twice the logarithm of the determinant of `whiten`."""
    return float(sum(np.log1p(-root * root) for root in memory.roots))


_kept = Kept(400 * 2**20)
"""A trial's series differ in length by what is their transient: at 400 measurements the dictionaries of one length take
44 MB, and the products that null series ask for as much again."""


def whitened(n: int, shape: Shape, memory: Memory) -> Whitened:
    """The dictionary for n measurements as noise of one memory sees it."""
    return _kept.get((n, shape, memory), lambda: _whitened(n, shape, memory), lambda w: w.units.nbytes)


def products(n: int, shape: Shape, memory: Memory) -> Singles:
    """Of every two atoms in the dictionary, `[atoms, atoms]`."""
    units = whitened(n, shape, memory).units
    return _kept.get((n, shape, memory, "products"), lambda: units.T @ units, lambda p: p.nbytes)


def _whitened(n: int, shape: Shape, memory: Memory) -> Whitened:
    known = atoms(n, shape)
    basis, _ = np.linalg.qr(whiten(trend(n).T, memory).T)
    seen = whiten(known.values.T, memory).T
    rest = seen - basis @ (basis.T @ seen)
    rest -= basis @ (basis.T @ rest)
    left = np.einsum("ij,ij->j", rest, rest)
    centred = seen - basis[:, :1] @ (basis[:, :1].T @ seen)
    least = np.where([kind == "kink" for kind in known.kind], SWALLOWED_KINK, SWALLOWED)
    swallowed = left < least * np.einsum("ij,ij->j", centred, centred)
    inverse = np.where(swallowed, 0.0, 1 / np.sqrt(np.where(swallowed, 1.0, left)))
    return Whitened(memory, basis, (rest * inverse).astype(np.float32), inverse)


@dataclass(frozen=True)
class Grid:
    """Every memory of a grid at once: `whiten` and its transpose of series `[memories, count, n]`, each by its own.

    `roots [memories, most]`, with 0 for none, and `moving`: which memories have which roots of a moving average.
    `scaling [memories]`: their `log_scaling`.
    """

    roots: Floats
    moving: Mapping[tuple[float, ...], Ints]
    scaling: Floats

    def whiten(self, values: Floats) -> Floats:
        """Innovations of series `[count, n]` under every memory, `[memories, count, n]`, or of such an array."""
        values = np.broadcast_to(values, (len(self.roots), *values.shape[-2:])).copy()
        for root in self.roots.T[:, :, None]:
            left = values.copy()
            left[..., 1:] -= root[..., None] * values[..., :-1]
            left[..., 0] *= np.sqrt(1 - root * root)
            values = left
        return self._moved(values, 1)

    def transposed(self, values: Floats) -> Floats:
        """Series times the transpose of the matrix that whitens."""
        values = self._moved(values.copy(), -1)
        for root in self.roots.T[::-1, :, None]:
            left = values.copy()
            left[..., 0] *= np.sqrt(1 - root * root)
            left[..., :-1] -= root[..., None] * values[..., 1:]
            values = left
        return values

    def _moved(self, values: Floats, direction: int) -> Floats:
        for moving, rows in self.moving.items():
            some = values[rows][..., ::direction]
            for root in moving:
                some = lfilter([1.0], [1.0, -root], some, axis=-1)
            values[rows] = some[..., ::direction]
        return values


@functools.lru_cache(maxsize=6)
def grid(memories: tuple[Memory, ...]) -> Grid:
    """These memories, at once."""
    roots = np.zeros((len(memories), max(len(memory.roots) for memory in memories)))
    moving: dict[tuple[float, ...], list[int]] = {}
    for j, memory in enumerate(memories):
        roots[j, : len(memory.roots)] = memory.roots
        if memory.moving:
            moving.setdefault(memory.moving, []).append(j)
    scaling = np.array([log_scaling(memory) for memory in memories])
    return Grid(roots, {key: np.array(rows) for key, rows in moving.items()}, scaling)


@dataclass(frozen=True)
class Bank:
    """What a few series need of the dictionaries of all memories of a grid: the atoms themselves stay as they are.

    `basis [memories, n, columns]` and `inverse [memories, atoms]` as in `Whitened`.
    """

    grid: Grid
    basis: Floats
    inverse: Floats

    def innovations(self, values: Floats) -> Floats:
        """Series `[count, n]`, or `[memories, count, n]`, whitened and without the whitened trend."""
        seen = self.grid.whiten(values)
        return np.asarray(seen - (seen @ self.basis) @ self.basis.transpose(0, 2, 1))

    def products(self, seen: Floats, atoms: Floats) -> Floats:
        """Innovations `[memories, count, n]` times every atom's `[n, atoms]`, those of unit length."""
        # One matrix product: as a stack of them every memory would read all atoms anew.
        score = (self.grid.transposed(seen).reshape(-1, seen.shape[-1]) @ atoms).reshape(*seen.shape[:-1], -1)
        return np.asarray(score * self.inverse[:, None])


def bank(n: int, shape: Shape, memories: Sequence[Memory]) -> Bank:
    """All memories of a grid for n measurements."""
    return _kept.get((n, shape, tuple(memories), "bank"), lambda: _bank(n, shape, memories), lambda b: b.basis.nbytes)


def _bank(n: int, shape: Shape, memories: Sequence[Memory]) -> Bank:
    each = [whitened(n, shape, memory) for memory in memories]
    return Bank(grid(tuple(memories)), np.stack([w.basis for w in each]), np.stack([w.inverse for w in each]))


@dataclass(frozen=True)
class Regime:
    """What noise a series is held to have, and which events are therefore sought: `widest` is a share of the series."""

    memories: Sequence[Memory] = MEMORIES
    widest: float = 1.0
    kinks: bool = True
    lone: bool = True

    def sought(self, n: int, shape: Shape) -> Singles | None:
        """`[atoms]`: 0 for those that are not, None if all are."""
        if self.widest == 1.0 and self.kinks and self.lone:
            return None
        known = atoms(n, shape)
        kind = np.array(known.kind)
        out = (known.width > self.widest * n) | ((kind == "kink") & (not self.kinks))
        out |= (kind == "bump") & (known.width <= 1) & (not self.lone)
        return np.asarray(~out, dtype=np.float32)


NOISY = Regime()
WITHOUT_LONE = Regime(lone=False)
NARROW = Regime(widest=0.2, kinks=False)
"""For series that are as smooth as a curve: a slow bend is no event there."""
BY_SIZE = Regime((Memory((0.0,)),), widest=0.2, kinks=False)
"""The same, by least squares: the innovations of a smooth series are the curvature of the events themselves, and an
event is judged by its size beside the rest of the series."""


@functools.lru_cache(maxsize=6)
def apart(n: int, shape: Shape) -> Singles:
    """`[atoms, atoms]`: 1 where two events are distinct, 0 where they overlap and would describe one."""
    known = atoms(n, shape)
    distance = np.abs(known.location[:, None] - known.location)
    reach = np.maximum((known.width[:, None] + known.width) / 2, EDGE)
    return (distance >= reach).astype(np.float32)
