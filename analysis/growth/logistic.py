"""Logistic growth of dimensionality over training: the founding study's "TAP" fit, with what it left unsaid.

The stated model was D(t+1) = D(t) + alpha |grad L| D (1 - D / D_max); what was fitted, and is fitted here, is the
logistic curve without the gradient. It only rises: where dimensionality falls it cannot fit, and R² says so.
Parameters that end at a bound are no estimates, and are named (Javihaus/ndt, experiments/new/phase1_analysis.py).
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.growth.models import GROWTH_MODELS, Curve, compared
from ndt_ray.analysis.series import Series, clock, mean_series
from ndt_ray.analysis.tables import GROWTH

ALPHA = (0.1, 50.0)
T0 = (0.0, 1.0)
_NEAR = 1e-6
"""Relative distance to a bound that counts as being at it."""


@dataclass(frozen=True)
class Fit:
    """A fitted curve on t in [0, 1]; NaN and a `flag` where there is none."""

    r2: float = np.nan
    d_max: float = np.nan
    alpha: float = np.nan
    t0: float = np.nan
    at_bound: tuple[str, ...] = ()
    flag: str | None = None


@analysis(
    name="growth",
    reads=("trials", "measurements", "scalars", "original_measurements"),
    writes=(GROWTH, GROWTH_MODELS),
    per="trial",
)
def growth(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = ("participation_ratio_sv_uncentred",),
    modes: Sequence[str] = ("default", "original"),
) -> dict[str, pd.DataFrame]:
    """Logistic growth of mean dimensionality, in time and in accumulated gradient, against simpler curves by AIC.

    `original` fits the published series on its recorded steps 0, 5, …; `default` the measurements in true steps.
    """
    trial = clock(data.frame("trials"), data.frame("measurements"))
    gradient = _gradient(data.frame("scalars"))
    rows: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    cases = []
    if "default" in modes:
        cases += [("default", s, 0) for s in mean_series(data.frame("measurements"), measures, trial.every)]
    if "original" in modes:
        published = mean_series(data.frame("original_measurements"), ("participation_ratio",), trial.every)
        cases += [("original", s, int(s.steps[0])) for s in published]
    for mode, series, origin in cases:
        identity = {"trial_id": trial.trial_id, "measure": series.measure, "mode": mode}
        row, fitted = _row(mode, trial.trial_id, series, origin)
        rows.append(row)
        models += [
            identity | m | {"parameters": json.dumps(m["parameters"])} for m in _models(series, fitted, gradient)
        ]
    return {"growth": pd.DataFrame(rows), "growth_models": pd.DataFrame(models)}


def _gradient(scalars: pd.DataFrame) -> pd.Series:
    """Gradient norm by step; empty where it was not stored."""
    if scalars.empty or "grad_norm" not in scalars:
        return pd.Series(dtype=np.float64)
    return scalars.set_index("step")["grad_norm"].astype(np.float64).dropna().sort_index()


def _models(series: Series, fitted: Fit, gradient: pd.Series) -> Iterator[dict[str, Any]]:
    """The simple curves, the logistic in time as already fitted, and the logistic in accumulated gradient norm."""
    d = series.values
    t = (series.steps - series.steps[0]) / max(int(series.steps[-1] - series.steps[0]), 1) if len(d) else d
    norms = gradient.reindex(series.steps).bfill().to_numpy() if len(gradient) else np.full(len(d), np.nan)
    stated, tau = Fit(flag="no_gradient"), t
    if len(d) > 3 and np.isfinite(norms).all() and norms.sum() > 0:
        tau = np.concatenate([[0.0], np.cumsum(norms[1:] * np.diff(series.steps))])
        tau = tau / tau[-1] if tau[-1] > 0 else t
        stated = fit(tau, d)
    others = {"logistic": (_curve(t, fitted), 5), "logistic_gradient": (_curve(tau, stated), 5)}
    return compared(t, d, others)


def _curve(t: Floats, found: Fit) -> Curve:
    parameters = {"d_max": found.d_max, "alpha": found.alpha, "t0": found.t0}
    if found.flag:
        return Curve(None, {}, flag=found.flag)
    return Curve(logistic(t, found.d_max, found.alpha, found.t0), parameters, found.at_bound)


def logistic(t: Floats, d_max: float, alpha: float, t0: float) -> Floats:
    """D_max / (1 + exp(-alpha (t - t0)))."""
    return d_max / (1.0 + np.exp(-alpha * (t - t0)))


def fit(t: Floats, d: Floats) -> Fit:
    """Least squares with the published start (1.2 max D, 5, .5) and bounds; `t` is scaled to [0, 1].

    Bounds: D_max in [max D, 2 max D], alpha in [.1, 50], t0 in [0, 1]; at most 10,000 evaluations.
    """
    if len(d) < 4:
        return Fit(flag="short")
    top = float(d.max())
    if not top > 0:
        return Fit(flag="no_level")
    if np.ptp(d) == 0:
        return Fit(flag="constant")
    bounds = np.array([(top, 2 * top), ALPHA, T0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # the covariance, not used here, may not exist at a bound
            found, _ = curve_fit(logistic, t, d, p0=[1.2 * top, 5.0, 0.5], bounds=tuple(bounds.T), maxfev=10_000)
    except RuntimeError:
        return Fit(flag="not_converged")
    residual = d - logistic(t, *found)
    r2 = 1.0 - float(residual @ residual) / float((d - d.mean()) @ (d - d.mean()))
    near = np.abs(found[:, None] - bounds).min(axis=1) <= _NEAR * (bounds[:, 1] - bounds[:, 0])
    at_bound = tuple(name for name, hit in zip(("d_max", "alpha", "t0"), near, strict=True) if hit)
    d_max, alpha, t0 = (float(x) for x in found)
    return Fit(r2, d_max, alpha, t0, at_bound)


def _row(mode: str, trial_id: str, series: Series, origin: int) -> tuple[dict[str, Any], Fit]:
    steps, d = series.steps - origin, series.values
    last = float(steps[-1]) if len(steps) > 3 else np.nan
    fitted = fit(steps / last, d) if len(steps) > 3 else Fit(flag="short")
    row = {
        "trial_id": trial_id,
        "measure": series.measure,
        "mode": mode,
        "n": len(d),
        "r2": fitted.r2,
        "alpha": fitted.alpha / last,
        "alpha_run": fitted.alpha,
        "d_max": fitted.d_max,
        "t0": fitted.t0,
        "t0_step": fitted.t0 * last,
        "at_bound": ",".join(fitted.at_bound),
        "verdict": None if fitted.flag else verdict(fitted.r2),
        "d_first": d[0] if len(d) else None,
        "d_last": d[-1] if len(d) else None,
        "flag": fitted.flag,
    }
    return row, fitted


def verdict(r2: float) -> str:
    """The founding report's words: excellent above .8, moderate above .5, else poor."""
    return "excellent" if r2 > 0.8 else "moderate" if r2 > 0.5 else "poor"
