"""Detectors of events in a series, behind one interface: `detector(steps, values) -> Events`.

`profile` is the default: calibrated against noise of the series' own memory and scale, and located by likelihood.
`local_contrast` is its robust, uncalibrated relative; `pelt` and `binseg` are the change-point methods people expect;
`difference_z`, `smoothed_gradient` and `rolling_level` are the founding studies' rules.

All assume equal spacing: `uniform_grid` chooses such a grid among the measured steps; nothing is interpolated.
"""

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

    @staticmethod
    def none() -> "Events":
        """No events."""
        ints, floats = np.zeros(0, np.int64), np.zeros(0)
        return Events(ints, ints, ints, floats, floats, ints)


class Detector(Protocol):
    """A rule with a name and parameters."""

    @property
    def name(self) -> str: ...
    def parameters(self) -> dict[str, Any]: ...
    def __call__(self, steps: ArrayLike, values: ArrayLike) -> Events: ...


class Rule(Detector, Protocol):
    """A detector that scores every position of many series at once."""

    def scores(self, values: Floats) -> tuple[Floats, Bools]:
        """For series `[..., n]`: z and whether it is flagged, `[..., positions]`; constant series get z = 0."""


class Parameters:
    """Parameters of a detector are its dataclass fields."""

    name: str

    def parameters(self) -> dict[str, Any]:
        return asdict(cast(Any, self))


_HERE = "ndt_ray.analysis.detection"
_DETECTORS = {
    "profile": f"{_HERE}.profile:Profile",
    "local_contrast": f"{_HERE}.contrast:LocalContrast",
    "pelt": f"{_HERE}.changepoint:Pelt",
    "binseg": f"{_HERE}.changepoint:BinSeg",
    "difference_z": f"{_HERE}.original:DifferenceZ",
    "smoothed_gradient": f"{_HERE}.original:SmoothedGradient",
    "rolling_level": f"{_HERE}.original:RollingLevel",
}
"""Imported when asked for: the change-point methods need an optional package."""


def names() -> list[str]:
    """Names of the detectors."""
    return sorted(_DETECTORS)


def make(name: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """The detector of this name; SpecError names what is unknown."""
    if name not in _DETECTORS:
        raise SpecError(f"unknown detector '{name}'{did_you_mean(name, _DETECTORS)}")
    module, _, kind = _DETECTORS[name].partition(":")
    made = getattr(importlib.import_module(module), kind)
    known = made.__dataclass_fields__
    for key in parameters or {}:
        if key not in known:
            raise SpecError(f"detector '{name}' has no parameter '{key}'{did_you_mean(key, known)}")
    return made(**(parameters or {}))


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
