"""Does dimensionality change before, with or after generalisation? Events of each layer against a run's landmarks."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.grokking.tables import LAGS, ONSETS

LANDMARKS = ("memorised", "turn", "inflection", "onset", "restricted", "excluded", "gini")
"""Columns `NAME_step` of grokking_onsets."""
KEYS = ["cell", "family", "detector", "null", "measure", "view", "layer_index", "layer"]


@analysis(name="grokking_lags", reads=("trials", "events", ONSETS.name), writes=(LAGS,), per="sweep")
def grokking_lags(data: AnalysisInput, *, tolerance: float = 0.02) -> dict[str, pd.DataFrame]:
    """Lag of each layer's largest dimensionality event to the landmarks of grokking, over the seeds of a cell.

    before or after: the 95 % t interval of the mean lag lies beyond `tolerance` of the planned steps; with: within it.
    """
    trials, events, onsets = (data.frame(name) for name in ("trials", "events", ONSETS.name))
    if not len(events) or not len(onsets):
        return {LAGS.name: pd.DataFrame()}
    found = events[events["significant"].astype(bool)]
    if not len(found):
        return {LAGS.name: pd.DataFrame()}
    order = found.assign(_size=found["statistic"].abs()).sort_values("_size", ascending=False, kind="stable")
    largest = order.drop_duplicates(["trial_id", *KEYS[1:]])
    info = trials.set_index("trial_id")
    largest = largest.merge(onsets, on="trial_id").assign(
        cell=lambda rows: rows["trial_id"].map(info["cell"]), planned=lambda rows: rows["trial_id"].map(info["steps"])
    )
    rows = [
        _row(dict(zip(KEYS, key, strict=True)), name, group, tolerance)
        for key, group in largest.groupby(KEYS, sort=True)
        for name in LANDMARKS
    ]
    return {LAGS.name: pd.DataFrame(rows)}


def _row(key: dict[str, Any], name: str, group: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    where = group["step_location"].fillna(group["step_after"]).to_numpy(np.float64)
    lag = where - group[f"{name}_step"].to_numpy(np.float64)
    known = lag[np.isfinite(lag)]
    n = len(known)
    row: dict[str, Any] = key | {
        "landmark": name,
        "n": n,
        "n_missing": len(lag) - n,
        "lag": None,
        "lo": None,
        "hi": None,
    }
    row |= {"share_before": None, "answer": "no trial has both"}
    if not n:
        return row
    mean = float(known.mean())
    row |= {"lag": mean, "share_before": float((known < 0).mean()), "answer": "one trial"}
    if n > 1:
        half = float(student.ppf(0.975, n - 1) * known.std(ddof=1) / np.sqrt(n))
        edge = tolerance * float(group["planned"].max())
        row |= {"lo": mean - half, "hi": mean + half}
        if mean + half < -edge:
            row["answer"] = "before"
        elif mean - half > edge:
            row["answer"] = "after"
        else:
            row["answer"] = "with" if abs(mean) + half <= edge else "undecided"
    return row
