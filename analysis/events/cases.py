"""The series of a trial that are put to the test: levels, and rates by their logarithm."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.detection.atoms import Shape
from ndt_ray.analysis.events.grid import series_on
from ndt_ray.analysis.series import Series

MEASURES = ("participation_ratio", "stable_rank")
"""Centred, of each layer in its own view."""
VELOCITIES = ("velocity",)
"""Columns of the table `velocity`: rates, which an event raises for a while."""
LEVELS = ("from_init", "from_anchor", "label_alignment")
"""Columns of that table which an event moves for good."""
KERNEL = "kernel"
NO_MEASURES = ("step", "layer_index", "n_stimuli")
"""Numeric columns of `measurements` that are none."""
SMALLEST = 1e-12
"""Rates are judged by their logarithm; what is below this is no motion (ndt_ray.measurement.velocity.RESOLUTION)."""


@dataclass(frozen=True)
class Case:
    """One series to be judged: `values` as the detector sees them, `series` as measured."""

    series: Series
    shape: Shape
    values: Floats

    @property
    def key(self) -> str:
        s = self.series
        return f"{s.measure} {s.layer} {s.view} {s.steps[0]}" if s.steps.size else ""

    @property
    def judged(self) -> Series:
        """The series with its values as the detector sees them."""
        return replace(self.series, values=self.values)

    @property
    def name(self) -> tuple[str, int, str]:
        """What it has in common with the same series of another trial."""
        return self.series.measure, self.series.layer_index, self.series.view


def cases(
    rows: pd.DataFrame,
    moves: pd.DataFrame,
    *,
    measures: Sequence[str],
    velocities: Sequence[str],
    grid: str,
    every: int,
) -> Iterator[Case]:
    """All series of one trial, from its rows of `measurements` and `velocity`."""
    for series in series_on(grid, rows, measures, every):
        yield Case(series, "level", series.values)
    if moves.empty:
        return
    known = moves.assign(view=KERNEL)
    levels = [v for v in velocities if v in LEVELS]
    rates = [v for v in velocities if v not in LEVELS]
    for series in series_on(grid, known, levels, every):
        yield Case(series, "level", series.values)
    # A rate over another distance is another rate: where measurements lie denser, nothing of the grid is judged.
    even = known[known["previous_step"].notna() & (known["step"] - known["previous_step"] == every)]
    for series in series_on("linear", even, rates, every):
        yield Case(series, "rate", _logarithm(series.values))


def measured(rows: pd.DataFrame) -> list[str]:
    """Measures of which rows of `measurements` hold any value."""
    return [
        str(name)
        for name, column in rows.items()
        if name not in NO_MEASURES and pd.api.types.is_numeric_dtype(column) and column.notna().any()
    ]


def _logarithm(values: Floats) -> Floats:
    """Natural logarithm of a rate; what is below 1 % of its median motion counts as that."""
    moving = values[values > SMALLEST]
    if len(moving) < len(values) / 2:
        return np.zeros_like(values)
    least = max(SMALLEST, 0.01 * float(np.median(moving)))
    return np.asarray(np.log(np.maximum(values, least)), dtype=np.float64)
