"""Who is compared with whom: usable trials of a sweep, families of tested series, events, held-out accuracy."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.events.tables import EVENTS, SERIES_TESTS
from ndt_ray.errors import NdtError
from ndt_ray.plan.design import SOURCES, Factor, batches_of, factors, unit_of
from ndt_ray.spec import Trial
from ndt_ray.spec.sweepfile import parse_sweep

Z_TRAINED = 3.09
"""One-sided 0.1 %: how far above chance, in standard errors, held-out accuracy must be for a trial to have trained."""


@dataclass(frozen=True)
class Family:
    """A declared family of tested series: what `event_families` says of it."""

    name: str
    primary: bool
    measure: str
    view: str
    detector: str
    null: str
    false_per_series: float = math.nan
    """Events of a testable series that are expected to be false."""

    def has(self, rows: pd.DataFrame) -> "pd.Series[bool]":
        """Which rows of `series_tests` belong to it."""
        mine = (rows["measure"] == self.measure) & (rows["detector"] == self.detector) & (rows["null"] == self.null)
        return mine if self.view == "*" else mine & (rows["view"] == self.view)


def families(event_families: pd.DataFrame, trials: pd.DataFrame, primary_only: bool = False) -> list[Family]:
    """All families but those of control lanes (named `CONTROL: …`), or the primary ones, in order of name."""
    if event_families.empty:
        return []
    rows = event_families.drop_duplicates(["family", "detector", "null"]).sort_values(["family", "detector", "null"])
    columns = ["primary", "measure", "view", "detector", "null"]
    found = [
        Family(row["family"], **{c: row[c] for c in columns}, false_per_series=false_per_series(row))
        for row in rows.to_dict("records")
    ]
    controls = tuple(f"{name}: " for name in (set(trials["control"].dropna()) if len(trials) else ()))
    real = [family for family in found if not controls or not family.name.startswith(controls)]
    return [family for family in real if family.primary] if primary_only else real


def false_per_series(family: Mapping[Any, Any] | pd.Series) -> float:
    """False events expected of a testable series: the family's, spread evenly over these; NaN where it does not say."""
    events, series = family.get("null_events"), family.get("n_calibrated")
    if events is None or series is None or pd.isna(events) or pd.isna(series) or not series:
        return math.nan
    return float(events) / int(series)


def usable(trials: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """Trials that are no control lane and did not diverge or fail; those still running are in."""
    if trials.empty:
        return trials
    kept = trials[trials["control"].fillna("none") == "none"]
    if not outcomes.empty:
        lost = outcomes.loc[outcomes["status"].isin(["diverged", "failed"]), "trial_id"]
        kept = kept[~kept["trial_id"].isin(lost)]
    return kept.sort_values("trial_id", ignore_index=True)


def calibrated(family: Family, series_tests: pd.DataFrame) -> pd.DataFrame:
    """The family's series that could be tested."""
    if series_tests.empty:
        return pd.DataFrame(columns=[c.name for c in SERIES_TESTS.columns])
    return series_tests[family.has(series_tests) & series_tests["calibrated"].astype(bool)]


def events_of(family: Family, events: pd.DataFrame) -> pd.DataFrame:
    """The family's significant events, with `time`: their most likely middle, in steps."""
    if events.empty:
        return pd.DataFrame(columns=[*(c.name for c in EVENTS.columns), "time"])
    mine = (events["family"] == family.name) & (events["detector"] == family.detector) & (events["null"] == family.null)
    rows = events[mine & events["significant"].astype(bool)]
    middle = (rows["step_before"].astype(float) + rows["step_after"].astype(float)) / 2
    return rows.assign(time=rows["step_location"].astype(float).fillna(middle))


def relative_sizes(events: pd.DataFrame) -> "pd.Series[float]":
    """|relative size| of each event, on the confirm probe where that was measured; NaN where neither is known.

    It was not found on that probe: sizes on the one it was found on are too large.
    """
    detected = events["relative_size"].astype(np.float64)
    confirmed = events["confirm_relative"].astype(np.float64) if "confirm_relative" in events else detected
    sizes: pd.Series[float] = confirmed.fillna(detected).abs()
    return sizes


# -- design ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """Trials with their levels: `frame` has trial_id, cell, steps, unit (what is replicated), batches, every factor."""

    frame: pd.DataFrame
    factors: tuple[tuple[str, str], ...]
    """Path and role of every factor."""
    unit: str
    """The seed source that the unit is a value of."""

    def compared(self) -> list[str]:
        """Paths of the axes whose levels are compared: those that have two at least."""
        return [path for path, role in self.factors if role == "compare" and self.frame[path].nunique() > 1]


def design(trials: pd.DataFrame, sweeps: pd.DataFrame) -> Design:
    """Levels from the sweep's own axes; where there is no readable sweep file, model and data set are compared."""
    parsed = [_trial(text) for text in trials["spec"]] if len(trials) else []
    named = _factors(sweeps) if all(t is not None for t in parsed) else None
    seeds = [tuple(row) for row in trials[[f"seed_{s}" for s in SOURCES]].itertuples(index=False, name=None)]
    place = unit_of(seeds)
    frame = trials[["trial_id", "cell", "steps"]].copy()
    frame["unit"] = [str(seed[place]) for seed in seeds]
    frame["batches"] = [json.dumps(batches_of(t)) if t is not None else None for t in parsed]
    if named is None:
        frame["model"], frame["data"] = trials["model"].astype(str), trials["data"].astype(str)
        return Design(frame, (("model", "compare"), ("data", "compare")), SOURCES[place])
    for factor in named:
        frame[factor.path] = [factor.level(t) for t in parsed if t is not None]
    return Design(frame, tuple((f.path, f.role) for f in named), SOURCES[place])


def _trial(text: Any) -> Trial | None:
    try:
        return Trial.model_validate_json(text)
    except (ValueError, TypeError):
        return None  # an imported run that is described in other words


def _factors(sweeps: pd.DataFrame) -> tuple[Factor, ...] | None:
    if sweeps.empty or not isinstance(sweeps["spec"].iloc[0], str):
        return None
    try:
        return factors(parse_sweep(sweeps["spec"].iloc[0]))
    except NdtError:
        return None


# -- did it train? ---------------------------------------------------------------------------------------------------


def trained(trial_ids: Iterable[str], evaluations: pd.DataFrame) -> pd.DataFrame:
    """Per trial: accuracy, balanced accuracy, chance, margin, n and `trained` (None where nothing was evaluated).

    Balanced accuracy (the mean over classes) is 1 / classes for guessing and for a constant answer alike, whatever the
    class sizes; its standard error under chance is sqrt(chance (1 - chance) / n), classes taken as equal. The last
    evaluation counts.
    """
    rows = []
    last = evaluations.sort_values("step").groupby("trial_id").last() if len(evaluations) else pd.DataFrame()
    for trial_id in trial_ids:
        row: dict[str, Any] = dict.fromkeys(("accuracy", "balanced", "chance", "margin", "n", "trained"))
        row["trial_id"] = trial_id
        if trial_id in last.index:
            found = last.loc[trial_id]
            row |= {"accuracy": _number(found["accuracy"]), "n": _number(found["n"])}
            classes = found["class_accuracy"]
            per_class = np.asarray(classes if classes is not None else [], dtype=np.float64)
            per_class = per_class[np.isfinite(per_class)]
            if len(per_class) > 1 and row["n"]:
                chance = 1 / len(per_class)
                margin = Z_TRAINED * math.sqrt(chance * (1 - chance) / row["n"])
                row |= {"balanced": float(per_class.mean()), "chance": chance, "margin": margin}
                row["trained"] = bool(row["balanced"] > chance + margin)
        rows.append(row)
    columns = ["trial_id", "accuracy", "balanced", "chance", "margin", "n", "trained"]
    return pd.DataFrame(rows, columns=columns).astype({"trained": object})


def cell_word(judged: pd.Series) -> str:
    """Of a cell's trials (`trained`): trained, partly (not all), never_trained, or unknown where none was evaluated."""
    known = judged.dropna().astype(bool)
    if known.empty:
        return "unknown"
    return "trained" if known.all() else "partly" if known.any() else "never_trained"


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


# -- numbers per trial -----------------------------------------------------------------------------------------------


def per_series_counts(family: Family, series_tests: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Per trial that has a calibrated series: series, events, events per series."""
    series = calibrated(family, series_tests)
    if series.empty:
        return pd.DataFrame(columns=["trial_id", "series", "events", "events_per_series"])
    counted = series.groupby("trial_id").size().rename("series").to_frame()
    counted["events"] = events_of(family, events).groupby("trial_id").size().reindex(counted.index).fillna(0)
    counted["events_per_series"] = counted["events"] / counted["series"]
    return counted.reset_index()


def level_at(measurements: pd.DataFrame, steps: pd.Series, measure: str, phase: float) -> pd.Series:
    """Mean over layers of a measure at the last measurement up to this phase of the planned steps, per trial.

    Only where every layer that the trial has at that step has a value; `steps`: planned updates by trial_id.
    """
    if measurements.empty or measure not in measurements:
        return pd.Series(dtype=float)
    limit = measurements["trial_id"].map(steps).astype(float) * phase
    rows = measurements[measurements["step"] <= limit + 1e-9]
    if rows.empty:
        return pd.Series(dtype=float)
    at = rows.groupby("trial_id")["step"].transform("max")
    here = rows[rows["step"] == at]
    found = here.groupby("trial_id")[measure].agg(["mean", "count", "size"])
    return found["mean"].where(found["count"] == found["size"]).astype(float)


def by_unit(design: Design, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Per cell and unit, the mean over its trials that have a value."""
    found: dict[str, dict[str, list[float]]] = {}
    frame = design.frame
    for trial_id, cell, unit in zip(frame["trial_id"], frame["cell"], frame["unit"], strict=True):
        if trial_id in values:
            found.setdefault(cell, {}).setdefault(unit, []).append(values[trial_id])
    return {cell: {unit: fmean(own) for unit, own in sorted(units.items())} for cell, units in sorted(found.items())}
