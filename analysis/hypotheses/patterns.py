"""Which changes at events are universal, and which belong to some architectures."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ndt_ray.analysis.hypotheses.estimates import Floats, Tested
from ndt_ray.architectures import FAMILIES, family_of


def patterns(tests: pd.DataFrame, trials: pd.DataFrame, alpha: float) -> Iterator[dict[str, Any]]:
    """Rows of `mechanism_patterns`: universal where all tested architectures change alike."""
    if tests.empty:
        return
    families = trials.drop_duplicates("cell").set_index("cell")["model"].map(family_of)
    for metric, rows in tests.dropna(subset=["p"]).groupby("metric"):
        known = rows.dropna(subset=["difference", "lo", "hi"])
        half = (known["hi"] - known["lo"]).to_numpy(float) / 2
        error = half / stats.t.ppf(0.975, np.maximum(known["n_trials"].to_numpy(float) - 1, 1))
        heterogeneity = cochran(known["difference"].to_numpy(float), error)
        names = [str(families.get(cell, "other")) for cell in rows["cell"]]
        yield _pattern(str(metric), names, rows["difference"].to_numpy(float), rows["q"].to_numpy(float), alpha) | {
            "heterogeneity_p": heterogeneity
        }


def replicated(tested: Sequence[Tested], q: Floats, alpha: float) -> Iterator[dict[str, Any]]:
    """The same of hypotheses that were tested in every family: does what is said of all hold in each of them?"""
    names = dict.fromkeys(t.hypothesis for t in tested if t.scope in FAMILIES)
    for name in names:
        own = [(t, v) for t, v in zip(tested, q, strict=True) if t.hypothesis == name and t.scope in FAMILIES]
        known = [(t, float(v)) for t, v in own if math.isfinite(v)]
        if not known:
            continue
        estimates = np.array([t.estimate for t, _ in known])
        effect = np.arctanh(estimates) if known[0][0].prediction.startswith("|r|") else estimates
        row = _pattern(name, [t.scope for t, _ in known], estimates, np.array([v for _, v in known]), alpha)
        yield row | {"heterogeneity_p": cochran(effect, np.array([t.error for t, _ in known]))}


def _pattern(metric: str, families: Sequence[str], estimates: Floats, q: Floats, alpha: float) -> dict[str, Any]:
    clear = q <= alpha
    up, down = int((clear & (estimates > 0)).sum()), int((clear & (estimates < 0)).sum())
    seen = sorted({family for family, is_clear in zip(families, clear, strict=True) if is_clear})
    tested = set(families)
    if up and down:
        pattern = "opposed"
    elif up + down:
        pattern = "universal" if set(seen) == tested and len(tested) > 1 and clear.all() else "specific"
    else:
        pattern = "none"
    counts = {"n_cells": len(q), "up": up, "down": down}
    return {"metric": metric, **counts, "architectures": ",".join(seen), "pattern": pattern}


def cochran(effect: Floats, error: Floats) -> float:
    """p of Cochran's Q: are these effects, with their standard errors, one? NaN for under two or without errors."""
    if len(effect) < 2 or not (np.isfinite(effect).all() and (error > 0).all() and np.isfinite(error).all()):
        return math.nan
    weight = 1 / error**2
    mean = (weight * effect).sum() / weight.sum()
    return float(stats.chi2.sf((weight * (effect - mean) ** 2).sum(), len(effect) - 1))
