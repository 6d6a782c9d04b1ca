"""Does one named measure tell when a run generalised? Its events against the run's own step of 50 % held-out accuracy.

The bar: an event within a tenth of training around that step, and none between memorisation and half of it - while the
network has the training set by heart and nothing has happened yet. An event lies where its middle is located.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.families import PRIMARY, declared_family
from ndt_ray.analysis.mechanisms.grokking.tables import ACCEPTANCE, ONSETS, VERDICTS
from ndt_ray.errors import SpecError

JUDGED = ("passed", "missed", "early", "missed_and_early")


@analysis(
    name="grokking_verdicts",
    reads=("trials", "outcomes", "series_tests", "events", "event_families", ONSETS.name),
    writes=(VERDICTS, ACCEPTANCE),
    per="sweep",
)
def grokking_verdicts(
    data: AnalysisInput, *, primary: Mapping[str, str] = PRIMARY, layers: str = "*", tolerance: float = 0.1
) -> dict[str, pd.DataFrame]:
    """Whether events of one named measure fall on a run's generalisation, and none between memorising and half of it.

    `primary`: measure, detector and null, as in `events`; `layers`: a pattern of module paths; `tolerance`: either side
    of the step of 50 % held-out accuracy, as a share of planned training.
    """
    primary = declared_family(primary)
    if not 0 < tolerance < 1:
        raise SpecError(f"0 < tolerance < 1 must hold, but got ({tolerance=})")
    trials, onsets = data.frame("trials"), data.frame(ONSETS.name)
    if trials.empty or onsets.empty:
        return {VERDICTS.name: pd.DataFrame(), ACCEPTANCE.name: pd.DataFrame()}
    tests, found = (_asked(data.frame(name), primary, layers) for name in ("series_tests", "events"))
    if len(found):
        found = found[found["significant"].astype(bool)]
    outcomes = data.frame("outcomes")
    finished = set(outcomes.loc[outcomes["status"] == "finished", "trial_id"]) if len(outcomes) else set()
    alpha = _alpha(data.frame("event_families"), primary)
    known = trials[trials["control"] == "none"].merge(onsets, on="trial_id").sort_values("trial_id")
    rows = []
    for run in known.to_dict("records"):
        series, events = (t[t["trial_id"] == run["trial_id"]] if len(t) else t for t in (tests, found))
        row = {"trial_id": run["trial_id"], "cell": run["cell"], **primary, "layers": layers}
        rows.append(row | _row(run, series, events, run["trial_id"] in finished, tolerance, alpha))
    verdicts = pd.DataFrame(rows)
    return {VERDICTS.name: verdicts, ACCEPTANCE.name: _acceptance(verdicts)}


def _asked(rows: pd.DataFrame, primary: Mapping[str, str], layers: str) -> pd.DataFrame:
    for column, value in primary.items():
        rows = rows[rows[column] == value] if len(rows) else rows
    return rows[[fnmatch.fnmatchcase(str(layer), layers) for layer in rows["layer"]]] if len(rows) else rows


def _alpha(families: pd.DataFrame, primary: Mapping[str, str]) -> float:
    own = _asked(families.assign(layer="*"), primary, "*") if len(families) else families
    return float(own["alpha"].iloc[0]) if len(own) else float("nan")


def _row(
    run: Mapping[str, Any], tests: pd.DataFrame, events: pd.DataFrame, finished: bool, tolerance: float, alpha: float
) -> dict[str, Any]:
    memorised, half = (None if pd.isna(run[c]) else int(run[c]) for c in ("memorised_step", "accuracy_step"))
    calibrated = int(tests["calibrated"].astype(bool).sum()) if len(tests) else 0
    row: dict[str, Any] = {
        "n_series": len(tests),
        "n_calibrated": calibrated,
        "memorised_step": memorised,
        "half_step": half,
        "n_events": len(events),
        "null_events": alpha * len(events) if len(events) else 0.0,
        **dict.fromkeys(("event_step", "event_layer", "distance", "q", "n_near", "n_early", "early_step")),
    }
    why = (
        "unfinished"
        if not finished
        else "not_memorised"
        if memorised is None
        else "not_generalised"
        if half is None
        else "not_tested"
        if calibrated == 0
        else None
    )
    if memorised is None or half is None:
        return row | {"verdict": why}
    where = events["step_location"].to_numpy(np.float64) if len(events) else np.zeros(0)
    distance = (where - half) / int(run["steps"])
    early = np.sort(where[(where > memorised) & (where < half / 2)])
    near = int((np.abs(distance) <= tolerance).sum())
    row |= {"n_near": near, "n_early": len(early), "early_step": float(early[0]) if len(early) else None}
    if len(where):
        nearest = int(np.abs(distance).argmin())
        event = events.iloc[nearest]
        row |= {"event_step": float(where[nearest]), "event_layer": event["layer"]}
        row |= {"distance": float(distance[nearest]), "q": float(event["q"])}
    failed = "_and_".join(name for name, bad in (("missed", near == 0), ("early", len(early) > 0)) if bad)
    return row | {"verdict": why or failed or "passed"}


def _acceptance(verdicts: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (cell, measure, layers), group in verdicts.groupby(["cell", "measure", "layers"], sort=True):
        own = group["verdict"]
        judged = int(own.isin(JUDGED).sum())
        passed = int((own == "passed").sum())
        rows.append(
            {
                "cell": cell,
                "measure": measure,
                "layers": layers,
                "n": len(own),
                "n_judged": judged,
                "n_passed": passed,
                "n_missed": int(own.isin(("missed", "missed_and_early")).sum()),
                "n_early": int(own.isin(("early", "missed_and_early")).sum()),
                "accepted": passed == len(own) if judged == len(own) else None,
            }
        )
    return pd.DataFrame(rows).astype({"accepted": object})
