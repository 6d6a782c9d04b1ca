"""The founding studies' own rules, kept as they were so that their counts can be reproduced.

None of them is calibrated (ndt_ray.analysis.nulls says what each would report on noise). Sources: Javihaus/ndt,
experiments of the two papers (`DifferenceZ`, `SmoothedGradient`) and the library ndtracker (`RollingLevel`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter1d

from ndt_ray.analysis.detection import Bools, Events, Floats, Ints, Parameters, Rule, checked, make
from ndt_ray.errors import SpecError, did_you_mean


class _Rule(Parameters):
    """Rules that score every position of checked input."""

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
            return Events.none()
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


RULES = (DifferenceZ.name, SmoothedGradient.name, RollingLevel.name)


def rule(name: str, parameters: Mapping[str, Any] | None = None) -> Rule:
    """The founding rule of this name; SpecError for any other detector: only these score every place."""
    if name not in RULES:
        raise SpecError(f"unknown detector '{name}' among the founding rules{did_you_mean(name, RULES)}")
    return cast(Rule, make(name, parameters))


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
