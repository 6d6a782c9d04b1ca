"""Jumps in the series of one run, as a tracker reports them: in the caller's own training steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from ndt_ray.analysis.detection import Detector, Floats, Ints, uniform_grid
from ndt_ray.analysis.detection.original import RollingLevel
from ndt_ray.analysis.jumps import RESOLUTION

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Jump:
    """A change that a detector reports: between the measurements at `step_before` and `step`, both training steps."""

    step: int
    step_before: int
    layer: str
    layer_index: int
    view: str
    metric: str
    value_before: float
    value_after: float
    magnitude: float
    z_score: float
    direction: Literal["increase", "decrease"]

    @property
    def metric_name(self) -> str:
        """ndtracker's name for `metric`."""
        return self.metric


class JumpDetector:
    """ndtracker's rule for one series: values over `z_threshold` SDs from the mean of the `window_size` before.

    It starts once `min_samples` values have passed. SpecError where these do not fit together.
    """

    def __init__(self, window_size: int = 50, z_threshold: float = 3.0, min_samples: int = 20) -> None:
        self.rule = RollingLevel(window_size, z_threshold, min_samples)

    def detect_jumps(
        self,
        values: ArrayLike,
        metric_name: str = "dimensionality",
        step_offset: int = 0,
        *,
        steps: Sequence[int] | None = None,
    ) -> list[Jump]:
        """Jumps in `values`, at their training `steps`; without these, at their places + `step_offset`.

        SpecError where steps do not rise evenly or values are not finite: leave out what was not measured.
        """
        series = np.asarray(values, dtype=np.float64)
        at = np.arange(len(series)) + step_offset if steps is None else np.asarray(steps)
        return _described(self.rule, at, series, ("", 0, "", metric_name))


def jumps_of(rows: "pd.DataFrame", layer: str, column: str, rule: Detector) -> tuple[list[Jump], bool]:
    """Jumps of one layer's measurements in one view, and whether the series was long enough to be judged.

    A series is judged on the grid of its most common distance, each part without holes by itself; a part that is
    constant within float32 has no jumps.
    """
    steps = rows["step"].to_numpy(np.int64)
    values = rows[column].to_numpy(dtype=np.float64, na_value=math.nan)
    needed = int(rule.parameters().get("min_samples", 1)) + 1
    parts = [part for part in _parts(steps, values) if len(part) >= needed]
    found: list[Jump] = []
    for part in parts:
        s, v = steps[part], values[part]
        if float(v.std()) <= RESOLUTION * float(np.abs(v).max()):
            continue
        found += _described(rule, s, v, (layer, int(rows["layer_index"].iloc[0]), str(rows["view"].iloc[0]), column))
    return found, bool(parts)


def _described(rule: Detector, steps: Ints, values: Floats, identity: tuple[str, int, str, str]) -> list[Jump]:
    events = rule(steps, values)
    columns = (events.step_before, events.step_after, events.magnitude, events.z, events.direction)
    found = []
    for before, after, magnitude, z, direction in zip(*(column.tolist() for column in columns), strict=True):
        low, high = (float(values[np.searchsorted(steps, step)]) for step in (before, after))
        way: Literal["increase", "decrease"] = "increase" if direction > 0 else "decrease"
        found.append(Jump(after, before, *identity, low, high, magnitude, z, way))
    return found


def _parts(steps: Ints, values: Floats) -> list[Ints]:
    """Places of the runs of finite values without a hole, on the grid of the most common distance."""
    if len(steps) < 2:
        return []
    every = _most_common(np.diff(steps))
    grid = uniform_grid(steps, every, start=_most_common(steps % every))
    grid = grid[np.isfinite(values[grid])]
    return np.split(grid, np.flatnonzero(np.diff(steps[grid]) != every) + 1)


def _most_common(values: Ints) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])
