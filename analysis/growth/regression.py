"""Does the growth rate follow from depth and width? In-sample R² beside the one of predicting what was left out.

The founding report gave R² = 1.0: four architectures passed its R² > .5, and three predictors with an intercept pass
through any four points. `original` repeats that and says so; `default` takes cells, on logarithms.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.events.significant import replicates
from ndt_ray.store.schema import Column, Table

GROWTH_REGRESSION = Table(
    "growth_regression",
    "Growth rate alpha regressed on the shape of the network.",
    (
        Column("mode", "string", "default: cells, logarithms; original: architectures, as published"),
        Column("measure", "string", "column whose growth was fitted"),
        Column("target", "string", "what is predicted"),
        Column("predictors", "string", "comma-separated"),
        Column("n", "int32", "cells or architectures used"),
        Column("n_left_out", "int32", "those whose fit is poor, at a bound, or has no shape on record"),
        Column("r2", "float64", "in-sample"),
        Column("r2_left_out", "float64", "leave-one-out; null where a fit to the rest is not determined"),
        Column("saturated", "bool", "as many parameters as points: the in-sample R² is 1 whatever the data"),
        Column("coefficients", "string", "as JSON, the intercept included"),
    ),
    ("mode", "measure", "predictors"),
)

PUBLISHED = ("depth", "width", "connectivity")


@analysis(
    name="growth_regression",
    reads=("trials", "outcomes", "evaluations", "growth", "convergence"),
    writes=(GROWTH_REGRESSION,),
    per="sweep",
)
def growth_regression(data: AnalysisInput, *, good: float = 0.5) -> dict[str, pd.DataFrame]:
    """Growth rate from depth and width of the network, with leave-one-out R² beside the in-sample one.

    `good`: smallest R² of a growth curve whose rate is taken. Default mode leaves out rates that ended at a bound.
    """
    trials, growth = replicates(data), data.frame("growth")
    if growth.empty or trials.empty or trials["untrained"].all():
        return {"growth_regression": pd.DataFrame()}
    trials = trials[~trials["untrained"]]
    layers = _layers(data.frame("convergence"))
    joined = growth.merge(trials[["trial_id", "cell", "model", "n_parameters", "spec"]], on="trial_id")
    rows = []
    for (mode, measure), group in joined.groupby(["mode", "measure"], sort=True):
        table = _published(group, good) if mode == "original" else _cells(group, layers, good)
        target = "alpha" if mode == "original" else "log_alpha"
        predictors = [c for c in table if c not in (target, "name")]
        known = table.dropna()
        count = group["model" if mode == "original" else "cell"].nunique()
        rows.append(
            {"mode": mode, "measure": measure, "target": target, "predictors": ",".join(predictors)}
            | {"n": len(known), "n_left_out": count - len(known)}
            | regression(known[target].to_numpy(np.float64), known[predictors].to_numpy(np.float64), predictors)
        )
    return {"growth_regression": pd.DataFrame(rows)}


def _layers(convergence: pd.DataFrame) -> pd.Series:
    if convergence.empty:
        return pd.Series(dtype=np.float64)
    own = convergence[convergence["mode"] == "default"]
    return own.groupby("trial_id")["layer_index"].max() + 1.0


def _published(group: pd.DataFrame, good: float) -> pd.DataFrame:
    """Architectures whose mean R² passes: mean alpha, and depth, width and connectivity as published."""
    shapes = [json.loads(spec).get("published", {}) for spec in group["spec"]]
    table = group.assign(**{c: [s.get(c, np.nan) for s in shapes] for c in PUBLISHED})
    mean = table.groupby("model")[["alpha", "r2", *PUBLISHED]].mean().reset_index(names="name")
    return mean[mean["r2"] > good][["name", "alpha", *PUBLISHED]]


def _cells(group: pd.DataFrame, layers: pd.Series, good: float) -> pd.DataFrame:
    """Cells: mean log growth rate, log number of measured layers, log mean width (root of parameters a layer)."""
    usable = group[(group["r2"] > good) & (group["at_bound"].fillna("") == "") & (group["alpha_run"] > 0)]
    depth = usable["trial_id"].map(layers).astype(np.float64)
    width = np.sqrt(usable["n_parameters"].astype(np.float64) / depth)
    table = usable.assign(log_alpha=np.log(usable["alpha_run"]), log_depth=np.log(depth), log_width=np.log(width))
    return table.groupby("cell")[["log_alpha", "log_depth", "log_width"]].mean().reset_index(names="name")


def regression(target: Floats, predictors: Floats, names: Sequence[str]) -> dict[str, Any]:
    """Ordinary least squares with an intercept: in-sample and leave-one-out R²; NaN where not determined."""
    n = len(target)
    design = np.column_stack([np.ones(n), predictors]) if n else np.zeros((0, len(names) + 1))
    rank = int(np.linalg.matrix_rank(design)) if n else 0
    blank = {"r2": np.nan, "r2_left_out": np.nan, "saturated": n <= design.shape[1], "coefficients": "{}"}
    if n < 2 or np.ptp(target) == 0:
        return blank
    scale = np.abs(design).max(axis=0)
    scaled = design / np.where(scale > 0, scale, 1.0)
    found = np.linalg.lstsq(scaled, target, rcond=None)[0]
    left = target - scaled @ found
    total = float(((target - target.mean()) ** 2).sum())
    coefficients = dict(zip(("intercept", *names), (found / np.where(scale > 0, scale, 1.0)).tolist(), strict=True))
    left_out = np.nan
    if n - 1 > rank and rank == design.shape[1]:
        leverage = np.einsum("ij,ji->i", scaled, np.linalg.pinv(scaled))
        if leverage.max() < 1 - 1e-9:
            errors = left / (1 - leverage)
            baseline = (target - target.mean()) * n / (n - 1)  # the mean of the others
            left_out = 1 - float(errors @ errors) / float(baseline @ baseline)
    return blank | {
        "r2": 1 - float(left @ left) / total,
        "r2_left_out": left_out,
        "saturated": n <= rank,
        "coefficients": json.dumps(coefficients),
    }
