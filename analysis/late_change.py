"""After half time: is what still changes gradual? Weights and representations over the last two quarters, and events.

The founding study claimed that change after 50 % is gradual and called for checkpoints at 50, 75 and 100 % to verify
it. Gradual: no significant event there, something does move, and neither quarter nor any single measurement holds
nearly all of the movement.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.significant import primary, primary_family, replicates
from ndt_ray.analysis.inference.seeds import interval
from ndt_ray.store.schema import Column, Table

QUARTERS = (0.5, 0.75, 1.0)
NEAR = 0.025
"""A checkpoint counts as one of these where it is so near, as a share of the run."""
UNEVEN = 0.9
"""Share of the movement after half time above which one quarter holds nearly all of it; 0.5 is even."""
ONE_STEP = 0.5
"""Share of a layer's movement after half time that one measurement must not hold."""
MOVES = 1e-6

LATE_CHANGE = Table(
    "late_change",
    "What changed after half time in a trial: weights between checkpoints, representations at every measurement.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column(
            "weights_first", "float64", "mean over layers of the displacement from 50 to 75 %; null: no checkpoints"
        ),
        Column("weights_second", "float64", "the same from 75 to 100 %"),
        Column("weights_uneven", "float64", "larger of both / their sum: 0.5 even"),
        Column("representation_first", "float64", "mean over layers of the movement (1 - CKA, summed) from 50 to 75 %"),
        Column("representation_second", "float64", "the same from 75 to 100 %"),
        Column("representation_uneven", "float64", "larger of both / their sum"),
        Column("largest_step", "float64", "largest share that one measurement holds of a layer's movement, mean"),
        Column("late_events", "int32", "significant events from half time on"),
        Column("flag", "string", "no_checkpoints where weights cannot be told; else null"),
    ),
    ("trial_id",),
)

LATE_TESTS = Table(
    "late_change_tests",
    "Is change after half time gradual? By cell, and over all trials.",
    (
        Column("claim", "string", "gradual_after_half"),
        Column("scope", "string", "cell, or * for all trials"),
        Column("n_trials", "int32", "trials judged"),
        Column("late_events", "int32", "significant events from half time on, in all of them"),
        Column("null_late_events", "float64", "false ones expected among them, at the family's false discovery rate"),
        Column("uneven", "float64", "mean share of the larger quarter, weights (representations without checkpoints)"),
        Column("lo", "float64", "95 % interval of it over trials"),
        Column("hi", "float64", "upper end of it"),
        Column("largest_step", "float64", "mean over trials"),
        Column("rule", "string", "how the verdict follows"),
        Column("verdict", "string", "supported, not_supported, undecided, no_change or no_data"),
    ),
    ("claim", "scope"),
)
RULE = (
    f"supported: no event from half time on, the interval of the larger quarter's share ends at most at {UNEVEN}, and"
    f" no measurement holds {ONE_STEP} of the movement; not_supported: an event there, or nearly all in one quarter"
)


@analysis(
    name="late_change",
    reads=(
        "trials", "outcomes", "evaluations", "weight_distances", "velocity", "events", "event_families", "series_tests",
    ),
    writes=(LATE_CHANGE, LATE_TESTS),
    per="sweep",
)  # fmt: skip
def late_change(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """Whether weights and representations change gradually after half time, without discrete events there."""
    trials = replicates(data)
    tests = data.frame("series_tests")
    if trials.empty:
        return {LATE_CHANGE.name: pd.DataFrame(), LATE_TESTS.name: pd.DataFrame()}
    families = data.frame("event_families")
    events, family = primary(data.frame("events"), families), primary_family(families)
    alpha = 0.05 if family is None else float(family.get("alpha", 0.05))
    late = events[events["phase"] >= QUARTERS[0]].groupby("trial_id").size() if len(events) else pd.Series(dtype=int)
    distances, velocity = data.frame("weight_distances"), data.frame("velocity")
    rows = []
    for trial in trials.itertuples():
        own = [t[t["trial_id"] == trial.trial_id] if len(t) else t for t in (distances, velocity)]
        row = changed(own[0], own[1], int(trial.steps))
        sought = len(tests) > 0 and bool((tests["trial_id"] == trial.trial_id).any())
        count = int(late.get(trial.trial_id, 0)) if sought else None
        rows.append({"trial_id": trial.trial_id, **row, "late_events": count})
    table = pd.DataFrame(rows)
    cells = trials[~trials["untrained"]].set_index("trial_id")["cell"]
    learned = table[table["trial_id"].isin(cells.index)]
    found = [judged("*", learned, alpha)]
    found += [judged(str(cell), own, alpha) for cell, own in learned.groupby(learned["trial_id"].map(cells), sort=True)]
    return {LATE_CHANGE.name: table, LATE_TESTS.name: pd.DataFrame(found)}


def changed(distances: pd.DataFrame, velocity: pd.DataFrame, steps: int) -> dict[str, Any]:
    """Row of `late_change` but trial and events, from a trial's weight_distances and velocity."""
    row: dict[str, Any] = dict.fromkeys(c.name for c in LATE_CHANGE.columns[1:-2])
    at = [_nearest(distances, share * steps, NEAR * steps) for share in QUARTERS]
    if None in at or len(set(at)) < len(at):
        row["flag"] = "no_checkpoints"
    else:
        row["flag"] = None
        moved = [_displacement(distances, first, second) for first, second in zip(at, at[1:], strict=False)]
        row |= {"weights_first": moved[0], "weights_second": moved[1], "weights_uneven": _uneven(*moved)}
    if len(velocity):
        half, three = (share * steps for share in QUARTERS[:2])
        known = velocity[(velocity["step"] > half) & velocity["velocity"].notna()]
        known = known.assign(velocity=known["velocity"].clip(lower=0))
        by_layer = known.groupby("layer")["velocity"]
        parts = [known[known["step"] <= three], known[known["step"] > three]]
        sums = [float(p.groupby("layer")["velocity"].sum().mean()) if len(p) else math.nan for p in parts]
        share = (by_layer.max() / by_layer.sum()).replace([np.inf, -np.inf], np.nan)
        row |= {"representation_first": sums[0], "representation_second": sums[1]}
        row |= {"representation_uneven": _uneven(*sums), "largest_step": float(share.mean())}
    return row


def judged(scope: str, rows: pd.DataFrame, alpha: float = 0.05) -> dict[str, Any]:
    """Row of `late_change_tests` from rows of `late_change`; trials in which events were not sought do not count."""
    known = rows[rows["late_events"].notna()]
    uneven = known["weights_uneven"].astype(float).fillna(known["representation_uneven"].astype(float)).dropna()
    within = interval(uneven.to_numpy()) if len(uneven) > 1 else None
    lo, hi = (within.lo, within.hi) if within else (math.nan, math.nan)
    largest = float(known["largest_step"].astype(float).mean()) if len(known) else math.nan
    late = int(known["late_events"].sum()) if len(known) else 0
    total = known[["weights_first", "weights_second", "representation_first", "representation_second"]].astype(float)
    if len(uneven) < 3:
        verdict = "no_data"
    elif late or lo > UNEVEN:
        verdict = "not_supported"
    elif not (total.sum(axis=1) > MOVES).any():
        verdict = "no_change"
    else:
        verdict = "supported" if hi <= UNEVEN and not largest >= ONE_STEP else "undecided"
    return {"claim": "gradual_after_half", "scope": scope, "n_trials": len(uneven), "late_events": late,
            "null_late_events": alpha * late, "uneven": float(uneven.mean()) if len(uneven) else math.nan, "lo": lo,
            "hi": hi, "largest_step": largest, "rule": RULE, "verdict": verdict}  # fmt: skip


def _nearest(distances: pd.DataFrame, wanted: float, within: float) -> int | None:
    if not len(distances):
        return None
    steps = np.unique(distances[["step", "other_step"]].to_numpy(np.int64))
    nearest = int(steps[np.abs(steps - wanted).argmin()])
    return nearest if abs(nearest - wanted) <= within else None


def _displacement(distances: pd.DataFrame, first: int | None, second: int | None) -> float:
    own = distances[(distances["other_step"] == first) & (distances["step"] == second)]
    return float(own["displacement"].mean()) if len(own) else math.nan


def _uneven(first: float, second: float) -> float:
    total = first + second
    return max(first, second) / total if total > 0 else math.nan
