"""From tested series to events: families of series, false discovery rates over them, levels inside the selected."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS, KEY
from ndt_ray.analysis.inference.multiplicity import attainable_q, benjamini_bogomolov, bh
from ndt_ray.errors import SpecError

PRIMARY: Mapping[str, str] = {"measure": "participation_ratio", "detector": "profile", "null": "ar_sieve"}
NO_CONTROL = "none"


@analysis(
    name="events",
    reads=("trials", "series_tests", "event_candidates"),
    writes=(EVENTS, EVENT_FAMILIES),
    per="sweep",
)
def events(
    data: AnalysisInput, *, alpha: float = 0.05, primary: Mapping[str, str] = PRIMARY
) -> dict[str, pd.DataFrame]:
    """Events of the sweep: series selected at a false discovery rate, events inside at the level that pays for it.

    One family per measure, detector and null, over all trials and layers; the one that `primary` names is the declared
    one, the others are its multiverse. Control lanes are families of their own. What `primary` leaves out is as in
    `PRIMARY`.
    """
    if not 0 < alpha < 1:
        raise SpecError(f"0 < alpha < 1 must hold, but got ({alpha=})")
    primary = declared_family(primary)
    tests, candidates = data.frame("series_tests"), data.frame("event_candidates")
    if tests.empty:
        return {"events": pd.DataFrame(), "event_families": pd.DataFrame()}
    tests = _with_control(tests, data.frame("trials"))
    found, families = [], []
    for (control, measure, detector, null), group in tests.groupby(
        ["control", "measure", "detector", "null"], sort=True
    ):
        declared = {"measure": measure, "detector": detector, "null": null} == primary
        name = _name(str(control), str(measure), str(detector), str(null), declared, primary)
        rows, family = judged(group, candidates, alpha)
        found.append(rows.assign(family=name))
        families.append(
            {
                "family": name,
                "primary": declared and control == NO_CONTROL,
                "measure": measure,
                "view": "*",
                "detector": detector,
                "null": null,
                "alpha": alpha,
                **family,
            }
        )
    if not any(family["primary"] for family in families):
        asked = ", ".join(f"{key} {value}" for key, value in primary.items())
        data.notes.append(f"no series was tested of the declared family ({asked})")
    columns = [c.name for c in EVENTS.columns]
    rows = pd.concat(found, ignore_index=True)
    return {"events": rows[columns] if len(rows) else pd.DataFrame(), "event_families": pd.DataFrame(families)}


def judged(tests: pd.DataFrame, candidates: pd.DataFrame, alpha: float) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Candidates of one family with their q and level, and the family's counts."""
    p = tests["p"].astype(np.float64).where(tests["calibrated"].astype(bool)).to_numpy()
    q = bh(p)
    tested, selected = int(np.isfinite(p).sum()), int((q <= alpha).sum())
    level = benjamini_bogomolov(selected, tested, alpha)
    attainable = np.array([attainable_q(tested, s) for s in tests["p_attainable"].to_numpy(np.float64)])
    verdicts = tests[list(KEY)].assign(p_series=p, q=q, q_attainable=attainable, level=level)
    if candidates.empty:
        rows = pd.DataFrame()
    else:
        rows = candidates.merge(verdicts, on=list(KEY), how="inner", validate="many_to_one")
        inside = rows["p_event"].astype(np.float64) <= rows["level"]
        rows["significant"] = ((rows["q"] <= alpha) & inside).fillna(False).astype(bool)
    n_events = int(rows["significant"].sum()) if len(rows) else 0
    known = np.isfinite(p)
    return rows, {
        "n_series": len(tests),
        "n_calibrated": tested,
        "n_selected": selected,
        "n_candidates": len(rows),
        "null_candidates": float(tests["null_candidates"].astype(np.float64).fillna(0.0).sum()),
        "n_events": n_events,
        "null_events": alpha * n_events,
        "q_attainable": float(attainable[known].min()) if known.any() else None,
    }


def declared_family(primary: Mapping[str, str]) -> dict[str, str]:
    """Measure, detector and null of the declared family; SpecError for another key."""
    if unknown := sorted(set(primary) - set(PRIMARY)):
        raise SpecError(f"primary names some of {sorted(PRIMARY)}, but got {unknown}")
    return {**PRIMARY, **primary}


def _with_control(tests: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Tests with the control of their trial: none where the trials table does not say."""
    if trials.empty or "control" not in trials:
        return tests.assign(control=NO_CONTROL)
    joined = tests.merge(trials[["trial_id", "control"]].drop_duplicates("trial_id"), on="trial_id", how="left")
    return joined.assign(control=joined["control"].fillna(NO_CONTROL))


def _name(control: str, measure: str, detector: str, null: str, declared: bool, primary: Mapping[str, str]) -> str:
    """`primary`, or the measure, with what differs from the primary family, and the control it is of."""
    if declared:
        own = "primary"
    else:
        more = [x for x, key in ((detector, "detector"), (null, "null")) if x != primary[key]]
        own = "/".join([measure, *more])
    return own if control == NO_CONTROL else f"{control}: {own}"
