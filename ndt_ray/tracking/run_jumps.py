"""Jumps in the series of one run, as a tracker reports them: in the caller's own training steps."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ndt_ray.analysis.detection import Detector, Floats, Ints, make, uniform_grid
from ndt_ray.analysis.detection.original import RollingLevel
from ndt_ray.analysis.jumps import RESOLUTION
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.store.schema import TABLES
from ndt_ray.tracking.meter import NEVER_SEEN

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SYNONYMS = {"cumulative_90": "energy_90"}
"""ndtracker's names of measures that are called otherwise here."""

KEYS = {"trial_id", "step", "layer", "layer_index", "view", "n_stimuli", "flag"}
METRICS = [column.name for column in TABLES["measurements"].columns if column.name not in KEYS]


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


def rule_of(detector: str | Detector, parameters: Mapping[str, Any]) -> Detector:
    """A detector by name with its parameters, or the one given; SpecError where there is none of that name."""
    if isinstance(detector, str):
        made: Detector = make(detector, parameters)
        return made
    if parameters:
        raise SpecError(f"parameters go with the name of a detector, but got {sorted(parameters)} and an object")
    return detector


def column_of(metric: str) -> str:
    """Our name of a measure; SpecError where there is none."""
    column = SYNONYMS.get(metric, metric)
    if column not in METRICS:
        raise SpecError(f"there is no metric '{metric}'{did_you_mean(metric, METRICS)}")
    return column


def jumps_in(results: "Mapping[str, pd.DataFrame]", column: str, rule: Detector) -> list[Jump]:
    """Jumps of all layers, in order of time and then of layers; layers that are too short to be judged are logged."""
    jumps: list[Jump] = []
    short: list[str] = []
    for name, frame in results.items():
        series = frame[frame["view"] != NEVER_SEEN].groupby(["layer_index", "view"], sort=False)
        judged = [jumps_of(rows, name, column, rule) for _, rows in series]
        jumps += [jump for found, _ in judged for jump in found]
        short += [] if any(long for _, long in judged) else [name]
    if short:
        log.warning("too few measurements in a row to judge %s by %s", ", ".join(short), rule.name)
    return sorted(jumps, key=lambda jump: (jump.step, jump.layer_index, jump.view))


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
