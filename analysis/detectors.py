"""Rules that find jumps in a series, behind one interface: `detector(steps, values) -> Events`.

The first three are the founding studies' own, kept as they were so that their counts can be reproduced; none of them
is calibrated (ndt_ray.analysis.nulls says what each would report on noise). Sources: Javihaus/ndt, experiments of the
two papers (`DifferenceZ`, `SmoothedGradient`) and the library ndtracker (`RollingLevel`).

They assume equal spacing: `uniform_grid` chooses such a grid among the measured steps; nothing is interpolated.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d

from ndt_ray.errors import SpecError, did_you_mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Events:
    """Columns of the events of one series, in order of time.

    `index`: place in the series given. `step_before`, `step_after`: the measurements that bracket the change.
    `magnitude`: in units of the series (never negative). `z`: signed score of the rule. `direction`: +1 or -1.
    """

    index: Ints
    step_before: Ints
    step_after: Ints
    magnitude: Floats
    z: Floats
    direction: Ints

    def __len__(self) -> int:
        return len(self.index)


class Detector(Protocol):
    """A rule with a name and parameters."""

    @property
    def name(self) -> str: ...
    def parameters(self) -> dict[str, Any]: ...
    def scores(self, values: Floats) -> tuple[Floats, Bools]:
        """For series `[..., n]`: z and whether it is flagged, `[..., positions]`; constant series get z = 0."""

    def __call__(self, steps: ArrayLike, values: ArrayLike) -> Events: ...


class _Rule:
    """What the rules share: parameters from the dataclass fields, and checked input."""

    name: str

    def parameters(self) -> dict[str, Any]:
        return asdict(cast(Any, self))

    def scores(self, values: Floats) -> tuple[Floats, Bools]:
        raise NotImplementedError

    def _flagged(self, steps: ArrayLike, values: ArrayLike) -> tuple[Ints, Floats, Ints, Floats]:
        steps_n, values_n = checked(steps, values)
        z, flagged = self.scores(values_n)
        index = np.flatnonzero(flagged)
        return steps_n, values_n, index, z[index]


@dataclass(frozen=True)
class DifferenceZ(_Rule):
    """Every first difference whose |z| exceeds `threshold`; mean and SD (ddof 0) over the whole series.

    The rule behind the 2,991 jumps. An event at index i is the change from measurement i to i + 1; its magnitude is
    |difference|. No merging, no smallest size.
    """

    threshold: float = 2.0

    name = "difference_z"

    def scores(self, values: Floats) -> tuple[Floats, Bools]:
        if values.shape[-1] < 2:
            none = np.zeros((*values.shape[:-1], 0))
            return none, none > 0
        z = _standardised(np.diff(_tame(values), axis=-1))
        return z, np.abs(z) > self.threshold

    def __call__(self, steps: ArrayLike, values: ArrayLike) -> Events:
        s, v, i, z = self._flagged(steps, values)
        change = v[i + 1] - v[i]
        return Events(i, s[i], s[i + 1], np.abs(change), z, np.where(change > 0, 1, -1))


@dataclass(frozen=True)
class SmoothedGradient(_Rule):
    """Every point where the smoothed gradient's signed z exceeds `threshold`: rises only, runs counted point by point.

    The rule behind "CNN 14.0, Transformer 3.1, MLP 0.5": gradient per measurement, Gaussian filter of `sigma`
    measurements, z with SD + `floor`. It was applied to the mean over layers. Magnitude: the smoothed gradient.
    """

    sigma: float = 3.0
    threshold: float = 2.0
    floor: float = 1e-10

    name = "smoothed_gradient"

    def _gradient(self, values: Floats) -> Floats:
        return cast(Floats, gaussian_filter1d(np.gradient(values, axis=-1), self.sigma, axis=-1))

    def scores(self, values: Floats) -> tuple[Floats, Bools]:
        if values.shape[-1] < 2:
            return np.zeros_like(values), np.zeros(values.shape, bool)
        gradient = self._gradient(_tame(values))
        mean, deviation = gradient.mean(axis=-1, keepdims=True), gradient.std(axis=-1, keepdims=True)
        z = (gradient - mean) / (deviation + self.floor)
        return z, z > self.threshold

    def __call__(self, steps: ArrayLike, values: ArrayLike) -> Events:
        s, v, i, z = self._flagged(steps, values)
        if len(i) == 0:
            return _no_events()
        gradient = self._gradient(v)[i]
        before, after = s[np.maximum(i - 1, 0)], s[np.minimum(i + 1, len(s) - 1)]
        return Events(i, before, after, np.abs(gradient), z, np.where(gradient > 0, 1, -1))


@dataclass(frozen=True)
class RollingLevel(_Rule):
    """Every value over `threshold` SDs from the mean of the previous `window` values (ndtracker's JumpDetector).

    Starts once `min_samples` values have passed; a window whose SD is below `floor` is skipped. One lasting shift is
    reported several times in a row, until the window has taken it in. Magnitude: distance from the window's mean.
    """

    window: int = 50
    threshold: float = 3.0
    min_samples: int = 20
    floor: float = 1e-10

    name = "rolling_level"

    def __post_init__(self) -> None:
        if not 1 <= self.min_samples <= self.window:
            raise SpecError(f"1 <= min_samples <= window must hold, but got ({self.min_samples=}, {self.window=})")

    def _distances(self, values: Floats) -> tuple[Floats, Floats]:
        """Distance of every value from its window's mean, and the window's SD; 0 where there is no window yet."""
        distance, deviation = np.zeros_like(values), np.zeros_like(values)
        for i in range(self.min_samples, min(self.window, values.shape[-1])):
            previous = values[..., :i]
            distance[..., i] = values[..., i] - previous.mean(axis=-1)
            deviation[..., i] = previous.std(axis=-1)
        if values.shape[-1] > self.window:
            full = np.lib.stride_tricks.sliding_window_view(values, self.window, axis=-1)[..., :-1, :]
            distance[..., self.window :] = values[..., self.window :] - full.mean(axis=-1)
            deviation[..., self.window :] = full.std(axis=-1)
        return distance, deviation

    def scores(self, values: Floats) -> tuple[Floats, Bools]:
        tame = _tame(values)
        distance, deviation = self._many_distances(tame) if tame.ndim == 2 else self._distances(tame)
        z = np.divide(distance, deviation, out=np.zeros_like(distance), where=deviation >= self.floor)
        return z, np.abs(z) > self.threshold

    def _many_distances(self, values: Floats) -> tuple[Floats, Floats]:
        """The same for many series `[count, n]`, from running sums: 15 times faster, right to 1e-6 of the spread.

        Series with a window flatter than that go the long way.
        """
        n = values.shape[-1]
        spread = values.std(axis=-1, keepdims=True)
        scaled = np.divide(
            values - values.mean(axis=-1, keepdims=True), spread, out=np.zeros_like(values), where=spread > 0
        )
        sums = np.zeros((2, len(values), n + 1))
        np.cumsum((scaled, scaled**2), axis=-1, out=sums[..., 1:])
        end = np.arange(self.min_samples, n)
        start = np.maximum(0, end - self.window)
        mean, square = (sums[..., end] - sums[..., start]) / (end - start)
        variance = square - mean**2
        distance, deviation = np.zeros_like(values), np.zeros_like(values)
        distance[:, end] = (scaled[:, end] - mean) * spread
        deviation[:, end] = np.sqrt(np.maximum(variance, 0)) * spread
        flat = (variance < 1e-6).any(axis=-1)
        if flat.any():
            distance[flat], deviation[flat] = self._distances(values[flat])
        return distance, deviation

    def __call__(self, steps: ArrayLike, values: ArrayLike) -> Events:
        s, v, i, z = self._flagged(steps, values)
        distance = np.array([v[k] - v[max(0, k - self.window) : k].mean() for k in i])
        return Events(i, s[i - 1], s[i], np.abs(distance), z, np.where(distance > 0, 1, -1))


_RULES: dict[str, type[Any]] = {rule.name: rule for rule in (DifferenceZ, SmoothedGradient, RollingLevel)}


def names() -> list[str]:
    """Names of the detectors."""
    return sorted(_RULES)


def make(name: str, parameters: Mapping[str, Any] | None = None) -> Detector:
    """The detector of this name; SpecError names what is unknown."""
    if name not in _RULES:
        raise SpecError(f"unknown detector '{name}'{did_you_mean(name, _RULES)}")
    known = _RULES[name].__dataclass_fields__
    for key in parameters or {}:
        if key not in known:
            raise SpecError(f"detector '{name}' has no parameter '{key}'{did_you_mean(key, known)}")
    return cast(Detector, _RULES[name](**(parameters or {})))


def checked(steps: ArrayLike, values: ArrayLike) -> tuple[Ints, Floats]:
    """One series, as int64 steps and float64 values, or SpecError: what a detector cannot honestly judge.

    Steps must rise and be evenly spaced, values finite; a series of fewer than two points is fine, and has no events.
    """
    s, v = np.asarray(steps), np.asarray(values)
    if s.ndim != 1 or s.shape != v.shape:
        raise SpecError(f"steps and values must be two sequences of one length, but got shapes {s.shape} and {v.shape}")
    if s.size and not np.issubdtype(s.dtype, np.integer):
        raise SpecError(f"steps are whole numbers (optimizer updates), but got {s.dtype}")
    s, v = s.astype(np.int64), v.astype(np.float64)
    gaps = np.diff(s)
    if (gaps <= 0).any():
        at = int(s[int(np.flatnonzero(gaps <= 0)[0]) + 1])
        raise SpecError(f"steps must rise, but step {at} follows a later or equal one - sort, and drop duplicates")
    if gaps.size and (gaps != gaps[0]).any():
        raise SpecError(
            f"steps must be evenly spaced, but got distances from {gaps.min()} to {gaps.max()} -"
            " choose the steps of one grid with uniform_grid(steps, every)"
        )
    bad = np.flatnonzero(~(np.abs(v) <= 1e300))
    if bad.size:
        raise SpecError(
            f"{bad.size} of {v.size} values are not finite, or above 1e300 (first at step {s[bad[0]]}) - leave them out"
        )
    return s, v


def uniform_grid(steps: ArrayLike, every: int, start: int | None = None) -> Ints:
    """Places of the measured steps that lie on the grid start, start + every, …: chosen, never interpolated.

    `start` is the first step where it is not given. SpecError where steps do not rise or `every` is not positive.
    """
    s = np.asarray(steps, dtype=np.int64)
    if every <= 0:
        raise SpecError(f"the distance of a grid must be positive, but got ({every=})")
    if (np.diff(s) <= 0).any():
        raise SpecError("steps must rise - sort, and drop duplicates")
    if s.size == 0:
        return np.zeros(0, np.int64)
    origin = int(s[0]) if start is None else start
    return np.flatnonzero((s >= origin) & ((s - origin) % every == 0))


def longest_stretch(steps: ArrayLike, values: ArrayLike, every: int) -> Ints:
    """Places of the longest run of finite values without a gap in a grid of distance `every`; of equals the first."""
    s, v = np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
    places = np.flatnonzero(np.isfinite(v))
    if places.size == 0:
        return places
    runs = np.split(places, np.flatnonzero(np.diff(s[places]) != every) + 1)
    return max(runs, key=len)


def merged(index: ArrayLike, gap: int = 1) -> list[Ints]:
    """Indices of one series gathered into clusters: neighbours no further apart than `gap` belong together."""
    i = np.asarray(index, dtype=np.int64)
    return np.split(i, np.flatnonzero(np.diff(i) > gap) + 1) if i.size else []


def _no_events() -> Events:
    ints, floats = np.zeros(0, np.int64), np.zeros(0)
    return Events(ints, ints, ints, floats, floats, ints)


def _standardised(values: Floats) -> Floats:
    """z-scores with mean and SD (ddof 0) along the last axis; 0 where the SD is 0."""
    centred: Floats = values - values.mean(axis=-1, keepdims=True)
    deviation: Floats = values.std(axis=-1, keepdims=True)
    z: Floats = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
    return z


def _tame(values: Floats) -> Floats:
    """Values above 1e100 divided by a power of two (exact), so that squares cannot overflow."""
    largest = float(np.abs(values).max(initial=0.0))
    return values if largest < 1e100 else cast(Floats, np.ldexp(values, -math.frexp(largest)[1]))
