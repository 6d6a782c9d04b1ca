"""Which events replicate: concordance of the seeds of every cell, layer by layer, for every declared family."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.inference import sample
from ndt_ray.analysis.inference.concordance_test import (
    WINDOW,
    Concordance,
    Floats,
    Ints,
    clusters,
    concordance_test,
    merged_times,
)
from ndt_ray.analysis.inference.multiplicity import attainable_q, bh
from ndt_ray.analysis.inference.tables import CONCORDANCE, REPLICATED_EVENTS
from ndt_ray.analysis.nulls import generator

_SERIES = ["layer_index", "layer", "view", "measure", "detector", "null"]


@analysis(
    name="concordance",
    reads=("trials", "outcomes", "events", "event_families", "series_tests"),
    writes=(CONCORDANCE, REPLICATED_EVENTS),
    per="sweep",
)
def concordance(
    data: AnalysisInput,
    *,
    tolerance: float = 2.0,
    n_surrogates: int = 1999,
    primary_only: bool = False,
) -> dict[str, pd.DataFrame]:
    """Whether seeds of a cell have events at the same steps, beyond their common rate, and which events these are.

    `tolerance`: in measurements; where events are wide, a quarter of their median width if that is more. A seed whose
    series could not be tested does not count; one without events does.
    """
    everyone = data.frame("trials")
    trials = sample.usable(everyone, data.frame("outcomes"))
    tests, events = data.frame("series_tests"), data.frame("events")
    rows: list[dict[str, Any]] = []
    shared: list[dict[str, Any]] = []
    for family in sample.families(data.frame("event_families"), everyone, primary_only) if len(trials) else []:
        series = sample.calibrated(family, tests).merge(trials[["trial_id", "cell", "steps"]], on="trial_id")
        found = sample.events_of(family, events)
        judged = [_judged(family, *case, n_surrogates) for case in _cases(series, found, tolerance)]
        rows += _adjusted([row for row, _ in judged])
        rows += [_untested(family, str(cell)) for cell in sorted(set(trials["cell"]) - set(series["cell"]))]
        shared += [row for _, own in judged for row in own]
    return {"concordance": pd.DataFrame(rows), "replicated_events": pd.DataFrame(shared)}


def _cases(
    series: pd.DataFrame, events: pd.DataFrame, tolerance: float
) -> Iterator[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, float, int]]:
    """What is tested: identity, its trials (with steps), its events (trial_id, time, direction), tolerance in steps,
    number of series."""
    key = ["trial_id", *_SERIES]
    for cell, own in series.groupby("cell", sort=True):
        mine = events.merge(own[key], on=key, validate="many_to_one") if len(events) else events
        for name, group in own.groupby(_SERIES, sort=True):
            identity = {"cell": cell, **dict(zip(_SERIES, name, strict=True))}
            here = mine[(mine[_SERIES] == list(name)).all(axis=1)] if len(mine) else mine
            yield identity, group, here, _tolerance(group, here, tolerance), len(group)
        whole = _whole(*(str(own[c].iloc[0]) for c in ("measure", "detector", "null")))
        steps = _tolerance(own, mine, tolerance)
        yield {"cell": cell, **whole}, own.drop_duplicates("trial_id"), _merged(mine, steps), steps, len(own)


def _tolerance(series: pd.DataFrame, events: pd.DataFrame, tolerance: float) -> float:
    grid = float(series["grid_every"].max())
    widths = events["width"].dropna() if len(events) else pd.Series(dtype=float)
    return max(tolerance * grid, float(widths.median()) / 4 if len(widths) else 0.0)


def _merged(events: pd.DataFrame, gap: float) -> pd.DataFrame:
    """One event where several layers of a trial have theirs within `gap` of the next."""
    rows = []
    for trial_id, own in events.groupby("trial_id", sort=True) if len(events) else []:
        directions = own["direction"].unique()
        direction = directions[0] if len(directions) == 1 else "both"
        rows += [(trial_id, t, direction) for t in merged_times(own["time"].to_numpy(float), gap)]
    return pd.DataFrame(rows, columns=["trial_id", "time", "direction"])


def _judged(
    family: sample.Family,
    identity: dict[str, Any],
    series: pd.DataFrame,
    events: pd.DataFrame,
    tolerance: float,
    n_series: int,
    n_surrogates: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row of `concordance`, and the rows of `replicated_events` that go with it."""
    n_seeds, seeds_with = series["trial_id"].nunique(), events["trial_id"].nunique()
    row: dict[str, Any] = {"family": family.name, **identity, "n_seeds": n_seeds, "seeds_with": seeds_with}
    false = family.false_per_series * n_series
    # False events as a Poisson process: a seed has one with this probability.
    row |= {"null_events": false, "null_seeds_with": n_seeds * -np.expm1(-false / max(n_seeds, 1))}
    row |= {"n_events": len(events), "tolerance": tolerance, "window": WINDOW * tolerance}
    row |= dict.fromkeys(("coincidences", "expected_jitter", "expected_redraw", "p_jitter", "p_redraw", "p"))
    row |= dict.fromkeys(("q", "q_attainable", "n_surrogates", "largest", "p_largest", "reason"))
    if n_seeds < 2 or seeds_with < 2:
        row["reason"] = "one seed" if n_seeds < 2 else "no events" if not len(events) else "events of one seed only"
        return row, []
    ordered = events.sort_values(["trial_id", "time"], ignore_index=True)
    times = ordered["time"].to_numpy(float)
    codes, _ = pd.factorize(ordered["trial_id"], sort=True)
    end = float(series["steps"].max())
    rng = generator("concordance", *(str(v) for v in (family.name, *identity.values())))
    grid = float(series["grid_every"].max())
    found = concordance_test(times, codes, tolerance, max(end, times.max()), n_surrogates, rng, grid)
    row |= {"coincidences": found.coincidences, "expected_jitter": found.expected_jitter, "p": found.p}
    row |= {"expected_redraw": found.expected_redraw, "p_jitter": found.p_jitter, "p_redraw": found.p_redraw}
    row |= {"n_surrogates": n_surrogates, "largest": found.largest, "p_largest": found.p_of_size(found.largest)}
    common = {"family": family.name, **identity, "n_seeds": n_seeds}
    return row, [common | shared for shared in _replicated(ordered, times, codes, tolerance, end, n_seeds, found)]


def _untested(family: sample.Family, cell: str) -> dict[str, Any]:
    """The row of a cell none of whose series the family's detector can judge."""
    row: dict[str, Any] = {column.name: None for column in CONCORDANCE.columns}
    row |= {"family": family.name, "cell": cell, **_whole(family.measure, family.detector, family.null)}
    return row | {"n_seeds": 0, "seeds_with": 0, "n_events": 0, "reason": "no series could be tested"}


def _whole(measure: str, detector: str, null: str) -> dict[str, Any]:
    """Identity of the row for all layers together."""
    return {"layer": "*", "layer_index": -1, "view": "*", "measure": measure, "detector": detector, "null": null}


def _replicated(
    events: pd.DataFrame, times: Floats, codes: Ints, tolerance: float, end: float, n_seeds: int, found: Concordance
) -> Iterator[dict[str, Any]]:
    for inside in clusters(times, codes, tolerance):
        ids = sorted(events["trial_id"].iloc[inside].unique())
        directions = events["direction"].iloc[inside].unique()
        step = float(np.median(times[inside]))
        yield {
            "step": step,
            "step_lo": float(times[inside].min()),
            "step_hi": float(times[inside].max()),
            "phase": step / end if end > 0 else None,
            "n_with": len(ids),
            "share": len(ids) / n_seeds,
            "trials": ids,
            "direction": directions[0] if len(directions) == 1 else "both",
            "p": found.p_of_size(len(ids)),
        }


def _adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """q over the rows of single layers, and over those of all layers, each a family of its own."""
    for whole in (False, True):
        mine = [row for row in rows if (row["layer"] == "*") is whole]
        p = np.array([np.nan if row["p"] is None else row["p"] for row in mine], dtype=np.float64)
        tested = int(np.isfinite(p).sum())
        for row, q in zip(mine, bh(p), strict=True):
            if row["p"] is not None:
                row["q"] = float(q)
                row["q_attainable"] = attainable_q(tested, 1 / (1 + row["n_surrogates"]))
    return rows
