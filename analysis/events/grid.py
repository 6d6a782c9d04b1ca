"""Even grids made by choosing among the measured steps, linear or logarithmic; nothing is interpolated."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from ndt_ray.analysis.detection import Ints
from ndt_ray.analysis.series import Series, layer_series
from ndt_ray.errors import SpecError, did_you_mean

Grid = Literal["linear", "log"]
GRIDS = ("linear", "log")
OFF = 0.2
"""How far a chosen step may lie from its place on a log grid, in grid distances."""
MOST_LOG = 400
FEWEST_LOG = 24


def series_on(grid: str, rows: pd.DataFrame, measures: Sequence[str], every: int) -> Iterator[Series]:
    """Every layer × view × measure on the grid; of a series with holes, its longest whole part."""
    if grid not in GRIDS:
        raise SpecError(f"unknown grid '{grid}'{did_you_mean(grid, GRIDS)}")
    if grid == "linear" or rows.empty:
        yield from layer_series(rows, measures, every)
        return
    chosen = log_steps(np.sort(rows["step"].unique()).astype(np.int64))
    if chosen.size == 0:
        return
    place = {int(step): i for i, step in enumerate(chosen)}
    # As places 0, 1, 2, … the chosen steps are an even grid; the series gets its steps back afterwards.
    placed = rows[rows["step"].isin(place)].assign(step=lambda r: r["step"].map(place))
    for s in layer_series(placed, measures, 1):
        yield Series(
            s.layer, s.layer_index, s.view, s.measure, chosen[s.steps], s.values, s.first + int(s.steps[0]), s.n_missing
        )


def log_steps(steps: Ints) -> Ints:
    """The longest choice of measured steps (without 0) that is even in log step; none where no 24 are.

    Tried are grids of fewer and fewer points, from every start; each place must have a measured step within a fifth of
    the grid's distance, and no step may serve two.
    """
    logs = np.log(steps[steps > 0].astype(np.float64))
    known = steps[steps > 0]
    best = np.zeros(0, np.int64)
    if len(known) < FEWEST_LOG:
        return best
    for count in range(min(MOST_LOG, len(known)), FEWEST_LOG - 1, -1):
        for start in range(max(1, len(known) // 4)):
            if logs[-1] - logs[start] < np.log(4.0):
                break
            wanted = np.linspace(logs[start], logs[-1], count)
            at = np.searchsorted(logs, wanted).clip(1, len(logs) - 1)
            at = np.where(wanted - logs[at - 1] <= logs[at] - wanted, at - 1, at)
            gap = wanted[1] - wanted[0]
            if (np.abs(logs[at] - wanted) <= OFF * gap).all() and (np.diff(at) > 0).all():
                return np.asarray(known[at])
    return best
