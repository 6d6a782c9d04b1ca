"""What threshold would make the founding rules report as few events on noise in every architecture?

One threshold for all was the founding studies' choice; how many events it reports where there is nothing depends on the
length and the memory of a series, and both differ between architectures. Here each cell gets the threshold at which the
rule reports `per_series` events a series of noise like its own, beside what the fixed threshold reports there.
"""

import functools
import math
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis import nulls
from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detection.original import rule
from ndt_ray.analysis.events.significant import replicates
from ndt_ray.errors import SpecError
from ndt_ray.store.schema import Column, Table

THRESHOLDS = Table(
    "threshold_calibration",
    "By cell: the threshold of a founding rule that reports a given number of events a series of noise like its own.",
    (
        Column("cell", "string", "everything but seeds and controls, short; * for all cells"),
        Column("measure", "string", "column of measurements"),
        Column("detector", "string", "the rule"),
        Column("null", "string", "white_noise or ar1"),
        Column("n_series", "int32", "layer-series of the cell"),
        Column("n", "int32", "their median length", "measurements"),
        Column("phi", "float64", "their median lag-1 dependence"),
        Column("per_series", "float64", "events a series asked for"),
        Column("threshold", "float64", "at which noise gives that many; null where no threshold does"),
        Column("fixed", "float64", "the rule's own threshold"),
        Column("fixed_per_series", "float64", "events a series of noise that it reports"),
        Column("spread", "float64", "in the row *: largest / smallest threshold of the cells"),
    ),
    ("measure", "detector", "null", "cell"),
)
FAMILIES = ("white_noise", "ar1")


@analysis(
    name="thresholds", reads=("trials", "outcomes", "evaluations", "jump_counts"), writes=(THRESHOLDS,), per="sweep"
)
def thresholds(data: AnalysisInput, *, per_series: float = 0.05) -> dict[str, pd.DataFrame]:
    """Thresholds of the founding rules calibrated for each architecture's own noise: equal rates of false events."""
    trials, counts = replicates(data), data.frame("jump_counts")
    if trials.empty or counts.empty:
        return {THRESHOLDS.name: pd.DataFrame()}
    own = counts[(counts["mode"] == "default") & counts["trial_id"].isin(trials["trial_id"])]
    own = own.assign(cell=own["trial_id"].map(trials.set_index("trial_id")["cell"]))
    rows: list[dict[str, Any]] = []
    for (measure, detector), both in own.groupby(["measure", "detector"], sort=True):
        for family in FAMILIES:
            found = [
                {"cell": str(cell)} | calibrated(str(detector), family, group, per_series)
                for cell, group in both.groupby("cell", sort=True)
            ]
            known = [row["threshold"] for row in found if row["threshold"] is not None]
            whole = {"cell": "*"} | calibrated(str(detector), family, both, per_series)
            whole["spread"] = max(known) / min(known) if known and min(known) > 0 else None
            rows += [row | {"measure": measure, "detector": detector, "null": family} for row in [*found, whole]]
    return {THRESHOLDS.name: pd.DataFrame(rows)}


def calibrated(detector: str, family: str, series: pd.DataFrame, per_series: float) -> dict[str, Any]:
    """Threshold of a rule for noise like these series (columns n, phi), and what its own threshold reports.

    Memory counts to two digits: cells that differ by less have one calibration.
    """
    n, phi = int(series["n"].median()), float(series["phi"].median())
    memory = round(float(np.clip(phi, -0.99, 0.99)), 2) if family == "ar1" and math.isfinite(phi) else 0.0
    fixed, reported, threshold = _calibrated(detector, family, n, memory, per_series)
    row: dict[str, Any] = {"n_series": len(series), "n": n, "phi": phi, "per_series": per_series, "spread": None}
    return row | {"fixed": fixed, "fixed_per_series": reported, "threshold": threshold}


@functools.lru_cache(maxsize=4096)
def _calibrated(detector: str, family: str, n: int, phi: float, per_series: float) -> tuple[float, float, float | None]:
    """(the rule's own threshold, events a series of noise it reports, the threshold that gives `per_series`)."""
    own = rule(detector)
    noise = nulls.surrogates(family, n, 1.0, 500, nulls.generator("fixed", detector, family, str(n), str(phi)), phi)
    reported = float(own.scores(noise)[1].sum() / len(noise))
    try:
        found = nulls.calibrated_threshold(lambda t: rule(detector, {"threshold": t}), n, per_series, family, phi)
    except SpecError:  # series too short for any threshold to give so many: the row says null
        return float(own.parameters()["threshold"]), reported, None
    return float(own.parameters()["threshold"]), reported, found
