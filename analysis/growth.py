"""Logistic growth of dimensionality over training: the founding study's "TAP" fit, with what it left unsaid.

The stated model was D(t+1) = D(t) + alpha |grad L| D (1 - D / D_max); what was fitted, and is fitted here, is the
logistic curve without the gradient. It only rises: where dimensionality falls it cannot fit, and R² says so.
Parameters that end at a bound are no estimates, and are named (Javihaus/ndt, experiments/new/phase1_analysis.py).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detectors import Floats
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


@analysis(name="growth", reads=("trials", "measurements", "original_measurements"), writes=(GROWTH,), per="trial")
def growth(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = ("participation_ratio_sv_uncentred",),
    modes: Sequence[str] = ("default", "original"),
) -> dict[str, pd.DataFrame]:
    """Logistic growth curves of mean dimensionality, with fit quality and parameters that ended at a bound named.

    `original` fits the published series on its recorded steps 0, 5, …; `default` the measurements in true steps.
    """
    trial = clock(data.frame("trials"), data.frame("measurements"))
    rows = []
    if "default" in modes:
        for series in mean_series(data.frame("measurements"), measures, trial.every):
            rows.append(_row("default", trial.trial_id, series, 0))
    if "original" in modes:
        for series in mean_series(data.frame("original_measurements"), ("participation_ratio",), trial.every):
            rows.append(_row("original", trial.trial_id, series, int(series.steps[0])))
    return {"growth": pd.DataFrame(rows)}


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


def _row(mode: str, trial_id: str, series: Series, origin: int) -> dict[str, Any]:
    steps, d = series.steps - origin, series.values
    last = float(steps[-1]) if len(steps) > 3 else np.nan
    fitted = fit(steps / last, d) if len(steps) > 3 else Fit(flag="short")
    return {
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


def verdict(r2: float) -> str:
    """The founding report's words: excellent above .8, moderate above .5, else poor."""
    return "excellent" if r2 > 0.8 else "moderate" if r2 > 0.5 else "poor"
