"""From measurement rows to the series that a detector may judge: one grid, no holes, in true steps."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ndt_ray.analysis.detection import Floats, Ints, longest_stretch, uniform_grid
from ndt_ray.errors import SpecError

ALL_LAYERS = "*"
"""Stands in `layer` and `view` where a series is the mean over layers; its `layer_index` is -1."""


@dataclass(frozen=True)
class Series:
    """One measure of one layer on an even grid. `first`: place of its first point on the whole grid."""

    layer: str
    layer_index: int
    view: str
    measure: str
    steps: Ints
    values: Floats
    first: int = 0
    n_missing: int = 0

    def since(self, step: int) -> "Series":
        """The part from the first measurement at or after `step`."""
        cut = int(np.searchsorted(self.steps, step))
        rest = (self.steps[cut:], self.values[cut:], self.first + cut)
        return Series(self.layer, self.layer_index, self.view, self.measure, *rest, self.n_missing)


@dataclass(frozen=True)
class Clock:
    """A trial's planned updates and the distance of its measurement grid."""

    trial_id: str
    steps: int
    every: int


def clock(trials: pd.DataFrame, rows: pd.DataFrame) -> Clock:
    """From the one `trials` row of a partition: its updates, and `measure.every` of its spec.

    A run that never said how long it would be ends at the last step of `rows`, its measurements.
    """
    if len(trials) != 1:
        raise SpecError(f"a partition has one row in 'trials', but got {len(trials)}")
    row = trials.iloc[0]
    try:
        every = int(json.loads(row["spec"])["measure"]["every"])
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"trial {row['trial_id']}: its spec names no grid (measure.every) - {error!r}") from error
    steps = row["steps"] if not pd.isna(row["steps"]) else 0 if rows.empty else rows["step"].max()
    return Clock(str(row["trial_id"]), int(steps), every)


def layer_series(rows: pd.DataFrame, measures: Sequence[str], every: int) -> Iterator[Series]:
    """Every layer × view × measure that has any value, on the grid; of a series with holes, its longest whole part."""
    if rows.empty:
        return
    present = [m for m in measures if m in rows and rows[m].notna().any()]
    for (_, layer, view), group in rows.groupby(["layer_index", "layer", "view"], sort=True):
        ordered = group.sort_values("step")
        for measure in present:
            values = ordered[measure].to_numpy(dtype=np.float64, na_value=np.nan)
            if np.isfinite(values).any():
                identity = (str(layer), int(ordered["layer_index"].iloc[0]), str(view), measure)
                yield _on_grid(identity, ordered["step"].to_numpy(np.int64), values, every)


def mean_series(rows: pd.DataFrame, measures: Sequence[str], every: int) -> Iterator[Series]:
    """The mean over layers of each measure, where every layer has a value."""
    if rows.empty:
        return
    layers = rows.groupby(["layer_index", "layer", "view"]).ngroups
    for measure in (m for m in measures if m in rows and rows[m].notna().any()):
        by_step = rows.groupby("step")[measure].agg(["mean", "count"])
        values = by_step["mean"].where(by_step["count"] == layers).to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(values).any():
            yield _on_grid((ALL_LAYERS, -1, ALL_LAYERS, measure), by_step.index.to_numpy(np.int64), values, every)


def _on_grid(identity: tuple[str, int, str, str], steps: Ints, values: Floats, every: int) -> Series:
    grid = uniform_grid(steps, every)
    steps, values = steps[grid], values[grid]
    planned = (int(steps[-1]) - int(steps[0])) // every + 1
    kept = longest_stretch(steps, values, every)
    if kept.size == 0:
        return Series(*identity, steps[:0], values[:0], 0, planned)
    first = (int(steps[kept[0]]) - int(steps[0])) // every
    return Series(*identity, steps[kept], values[kept], first, planned - int(kept.size))
