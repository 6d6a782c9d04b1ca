"""Jumps in the series of one run, as a tracker reports them: in the caller's own training steps."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ndt_ray.analysis.detectors import Detector, Ints, uniform_grid
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
        events = rule(s, v)
        for i in range(len(events)):
            before, after = int(events.step_before[i]), int(events.step_after[i])
            low, high = (float(v[np.searchsorted(s, step)]) for step in (before, after))
            found.append(
                Jump(
                    after,
                    before,
                    layer,
                    int(rows["layer_index"].iloc[0]),
                    str(rows["view"].iloc[0]),
                    column,
                    low,
                    high,
                    float(events.magnitude[i]),
                    float(events.z[i]),
                    "increase" if events.direction[i] > 0 else "decrease",
                )
            )
    return found, bool(parts)


def _parts(steps: Ints, values: np.ndarray) -> list[Ints]:
    """Places of the runs of finite values without a hole, on the grid of the most common distance."""
    if len(steps) < 2:
        return []
    every = int(np.bincount(np.diff(steps)).argmax())
    start = int(np.bincount(steps % every, minlength=every).argmax())
    grid = uniform_grid(steps, every, start=start)
    grid = grid[np.isfinite(values[grid])]
    return np.split(grid, np.flatnonzero(np.diff(steps[grid]) != every) + 1)
