"""Adjusted p-values over a family. NaN stays NaN and is not counted: what could not be tested is no hypothesis.

Sources: Benjamini & Hochberg 1995, Benjamini & Yekutieli 2001 (both through SciPy), Holm 1979, Benjamini & Bogomolov
2014 (families selected by what they hold, tested inside at a level that pays for the selection).
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]


def bh(p: ArrayLike) -> Floats:
    """Benjamini-Hochberg q-values, in the order and shape given: under independence or positive dependence."""
    return _over_known(p, lambda known: false_discovery_control(known, method="bh"))


def by(p: ArrayLike) -> Floats:
    """Benjamini-Yekutieli q-values, in the order and shape given: under any dependence."""
    return _over_known(p, lambda known: false_discovery_control(known, method="by"))


def holm(p: ArrayLike) -> Floats:
    """Holm's adjusted p-values (family-wise error, any dependence), in the order and shape given."""
    return _over_known(p, _holm)


def benjamini_bogomolov(n_selected: int, n_tested: int, alpha: float) -> float:
    """Level for tests inside selected families: alpha * selected / tested; 0 where nothing was selected or tested."""
    if not 0 <= n_selected <= n_tested or not 0 < alpha < 1:
        raise SpecError(
            f"0 <= n_selected <= n_tested and 0 < alpha < 1 must hold, but got ({n_selected=}, {n_tested=}, {alpha=})"
        )
    return alpha * n_selected / n_tested if n_tested else 0.0


def attainable_q(n_tested: int, smallest_p: float, n_alike: int = 1) -> float:
    """The smallest q that one of `n_tested` hypotheses can reach when no p can be below `smallest_p`.

    `n_alike`: how many of them reach that p together; alone (1), q is n_tested * smallest_p, at most 1. Holm's
    smallest adjusted p is the same number with n_alike = 1. NaN where nothing is tested.
    """
    if n_tested < 0 or not 1 <= n_alike <= max(n_tested, 1) or not (0 <= smallest_p <= 1 or np.isnan(smallest_p)):
        raise SpecError(
            "n_tested >= 0, 1 <= n_alike <= n_tested and 0 <= smallest_p <= 1 must hold, but got"
            f" ({n_tested=}, {n_alike=}, {smallest_p=})"
        )
    return float("nan") if n_tested == 0 else float(np.minimum(1.0, n_tested * smallest_p / n_alike))


def adjusted(rows: list[dict[str, Any]], least: float = float("nan")) -> list[dict[str, Any]]:
    """Rows with `q`, Benjamini-Hochberg over those that have a `p`, and the smallest that each of these could have had.

    `least`: the smallest p of any, where rows have no `p_attainable` of their own.
    """
    known = [row for row in rows if row.get("p") is not None and np.isfinite(row["p"])]
    for row in rows:
        row.setdefault("q", None)
        row["q_attainable"] = None
    for row, q in zip(known, bh([row["p"] for row in known]), strict=True):
        row |= {"q": float(q), "q_attainable": attainable_q(len(known), float(row.get("p_attainable", least)))}
    return rows


def _holm(p: Floats) -> Floats:
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def _over_known(p: ArrayLike, adjust: Callable[[Floats], Floats]) -> Floats:
    """Adjust what is known; SpecError for a p outside [0, 1]."""
    given = np.asarray(p, dtype=np.float64)
    known = ~np.isnan(given)
    bad = given[known][(given[known] < 0) | (given[known] > 1)]
    if bad.size:
        raise SpecError(f"a p-value lies in [0, 1], but got {bad[0]:g} ({bad.size} such of {given.size})")
    adjusted = np.full(given.shape, np.nan)
    if known.any():
        adjusted[known] = adjust(given[known])
    return cast(Floats, adjusted)
