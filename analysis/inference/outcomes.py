"""What is compared: one number per trial for every outcome, and what is said of a group of seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ndt_ray.analysis.api import AnalysisInput
from ndt_ray.analysis.inference import effects, sample, seeds

ABOUT_LEARNING = ("final_accuracy",)
"""Outcomes that show whether a cell learned, and are therefore compared whether it did or not."""
READS = ("trials", "outcomes", "sweeps", "events", "event_families", "series_tests", "measurements", "evaluations")


@dataclass(frozen=True)
class Outcome:
    """Values by trial_id, where known; `family` names the events' family, `primary` whether it is the declared one;
    `null`: the value expected where there is nothing."""

    name: str
    values: Mapping[str, float]
    family: str | None = None
    primary: bool = True
    null: float | None = None


def all_outcomes(
    data: AnalysisInput, trials: pd.DataFrame, measures: Sequence[str], phases: Sequence[float]
) -> list[Outcome]:
    """Events per layer-series, median onset phase and size of a trial's events, final accuracy, MEASURE@PHASE."""
    found: list[Outcome] = []
    tests, events = data.frame("series_tests"), data.frame("events")
    for family in sample.families(data.frame("event_families"), data.frame("trials")):
        found += event_outcomes(family, tests, events)
    accuracy = final_accuracy(data.frame("outcomes"), data.frame("evaluations"))
    found.append(Outcome("final_accuracy", known(accuracy)))
    steps = trials.set_index("trial_id")["steps"] if len(trials) else pd.Series(dtype=float)
    measured = chosen(data, "measurements", ("trial_id", "step", *measures))
    for measure in measures:
        for phase in phases:
            values = sample.level_at(measured, steps, measure, phase)
            found.append(Outcome(f"{measure}@{phase:g}", known(values)))
    return found


def event_outcomes(family: sample.Family, tests: pd.DataFrame, events: pd.DataFrame) -> list[Outcome]:
    """Of a family of tested series: events per series, and the medians of when its events begin and how large they are.

    Sizes are |relative|, on the confirm probe where that was measured.
    """
    counts = sample.per_series_counts(family, tests, events).set_index("trial_id")["events_per_series"]
    own = sample.events_of(family, events)
    phase = own["phase"].astype(float).groupby(own["trial_id"]).median()
    size = sample.relative_sizes(own).groupby(own["trial_id"]).median()
    values = {"events_per_series": counts, "event_phase": phase, "event_size": size}
    null = {"events_per_series": number(family.false_per_series)}
    return [Outcome(n, known(series), family.name, family.primary, null.get(n)) for n, series in values.items()]


def chosen(data: AnalysisInput, table: str, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a table, those that it has: a sweep's measurements as a whole are large."""
    rows = data.tables[table]
    return rows.select([c for c in dict.fromkeys(columns) if c in rows.column_names]).to_pandas()


def known(values: pd.Series) -> dict[str, float]:
    """By trial_id, what is there and finite."""
    return {str(k): float(v) for k, v in values.items() if v is not None and math.isfinite(v)}


def final_accuracy(outcomes: pd.DataFrame, evaluations: pd.DataFrame) -> pd.Series:
    """Held-out accuracy at the end of a finished trial, else at its last evaluation."""
    last = pd.Series(dtype=float)
    if len(evaluations):
        last = evaluations.sort_values("step").groupby("trial_id")["accuracy"].last().astype(float)
    if len(outcomes):
        ended = outcomes.set_index("trial_id")["final_accuracy"].astype(float).dropna()
        last = ended.combine_first(last) if len(last) else ended
    return last


def ends(values: ArrayLike, other: ArrayLike | None = None, paired: bool = False) -> dict[str, Any]:
    """Interval of a mean, or of a difference of two: the recommended one and t's."""
    x = np.asarray(values, np.float64)
    y = None if other is None else np.asarray(other, np.float64)
    n = len(x) if y is None else min(len(x), len(y))
    method = seeds.recommended(n)
    found, student = _interval(x, y, paired, method), _interval(x, y, paired, "t")
    known = math.isfinite(found.lo)
    row: dict[str, Any] = {"interval": method if known else None, "lo": number(found.lo), "hi": number(found.hi)}
    return row | {"t_lo": number(student.lo), "t_hi": number(student.hi)}


def estimate(values: ArrayLike) -> dict[str, Any]:
    """What is said of one group of seeds; a reason instead of an interval where there is none."""
    x = np.asarray(values, np.float64)
    bca = seeds.interval(x, "bca")
    row: dict[str, Any] = {"n": len(x), "mean": float(x.mean()), "iqm": effects.iqm(x)}
    row |= {"sd": float(x.std(ddof=1)) if len(x) > 1 else None, **ends(x)}
    row |= {"bca_lo": number(bca.lo), "bca_hi": number(bca.hi), "reason": None}
    if row["lo"] is None:
        row["reason"] = "one seed" if len(x) < 2 else "all seeds are equal"
    return row


def number(value: float) -> float | None:
    """None for what is not finite."""
    return float(value) if math.isfinite(value) else None


def _interval(x: Any, y: Any, paired: bool, method: str) -> seeds.Interval:
    if y is None:
        return seeds.interval(x, method)
    return seeds.difference_interval(x, y, paired=paired, method=method)
