"""Linear models of values that are nested in trials: a random intercept a trial, or, failing that, its bootstrap.

Layers and events of one trial share a seed, so that counting them as if they were independent makes p-values of
nothing. `metric ~ factors + (1 | seed:cell)` is fitted by restricted maximum likelihood (statsmodels' MixedLM). Where
that does not converge, ends at its boundary or is not installed, least squares with errors from resampled trials says
the same with less, and the row says why.
"""

import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
METHODS = ("mixed", "cluster_bootstrap")
DRAWS = 1999
FEWEST = 4
"""Trials below which nothing is fitted."""
BOUNDARY = 1e-4
"""Variance of trials / residual variance below which a fit has ended at its boundary, where its theory fails."""


@dataclass(frozen=True)
class Term:
    """One coefficient: `term` of the model at a `level` against the reference, or per SD of a numeric one."""

    term: str
    level: str
    estimate: float
    se: float
    df: float
    p: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Fit:
    """A fitted model, or why there is none (`method` is empty then, and there are no terms)."""

    method: str
    flag: str | None
    n: int
    n_trials: int
    terms: tuple[Term, ...] = ()
    sd_trial: float = math.nan
    sd_residual: float = math.nan


def fit(
    y: Sequence[float] | Floats,
    fixed: pd.DataFrame,
    trials: Sequence[Any],
    *,
    interaction: bool = False,
    method: str = "mixed",
    draws: int = DRAWS,
) -> Fit:
    """Coefficients of the columns of `fixed` for values that are nested in `trials`.

    Columns of text are factors with their first level (sorted) for reference, numbers are standardised; `interaction`
    adds the products of the first two factors. A coefficient of what varies within trials has n - trials - terms
    degrees of freedom, of what does not, trials - terms (Pinheiro and Bates 2000, §2.4.2). Rows that are not finite
    are left out. SpecError for an unknown method or columns of unequal length.
    """
    if method not in METHODS:
        raise SpecError(f"unknown method '{method}': {' or '.join(METHODS)}")
    if not len(y) == len(fixed) == len(trials):
        raise SpecError(f"a row each is wanted, but got {len(y)} values, {len(fixed)} rows and {len(trials)} trials")
    values = np.asarray(y, dtype=np.float64)
    known = np.isfinite(values) & fixed.notna().all(axis=1).to_numpy()
    values, own = values[known], fixed[known].reset_index(drop=True)
    groups = pd.factorize(np.asarray(trials, dtype=object)[known])[0]
    n, n_trials = len(values), len(set(groups.tolist()))
    design, names = matrix(own, interaction)
    flag = _unfit(values, design, n_trials)
    if flag:
        return Fit("", flag, n, n_trials)
    df = _freedom(design, groups)
    if df.min() < 1:
        return Fit("", "too_few_trials", n, n_trials)
    if np.bincount(groups).max() == 1:
        flag, found = "one_value_a_trial", None
    else:
        flag, found = _mixed(values, design, groups) if method == "mixed" else ("asked_for", None)
    if found is not None:
        beta, se, sd = found
        return Fit("mixed", None, n, n_trials, _terms(names, beta, se, df), *sd)
    beta, se = _bootstrap(values, design, groups, draws)
    return Fit("cluster_bootstrap", flag, n, n_trials, _terms(names, beta, se, df))


def matrix(fixed: pd.DataFrame, interaction: bool = False) -> tuple[Floats, list[tuple[str, str]]]:
    """The design `[n, terms]`, an intercept first, and (term, level) of each column. What never varies is left out."""
    columns, names = [np.ones(len(fixed))], [("(intercept)", "")]
    levels: dict[str, list[str]] = {}
    for name in fixed.columns:
        values = fixed[name]
        if pd.api.types.is_numeric_dtype(values):
            x = values.to_numpy(dtype=np.float64)
            if len(x) and np.ptp(x) > 0:
                columns.append((x - x.mean()) / x.std())
                names.append((name, "per SD"))
            continue
        said = values.astype(str)
        levels[name] = sorted(said.unique())
        for level in levels[name][1:]:
            columns.append((said == level).to_numpy(dtype=np.float64))
            names.append((name, level))
    both = [name for name in levels if len(levels[name]) > 1][:2]
    if interaction and len(both) == 2:
        place = {name: i for i, name in enumerate(names)}
        for a in levels[both[0]][1:]:
            for b in levels[both[1]][1:]:
                columns.append(columns[place[both[0], a]] * columns[place[both[1], b]])
                names.append((f"{both[0]}:{both[1]}", f"{a}:{b}"))
    return np.column_stack(columns), names


def _unfit(values: Floats, design: Floats, n_trials: int) -> str | None:
    if n_trials < FEWEST:
        return "too_few_trials"
    if np.ptp(values) == 0:
        return "constant"
    return "confounded" if np.linalg.matrix_rank(design) < design.shape[1] else None


def _freedom(design: Floats, groups: NDArray[np.int64]) -> Floats:
    """Degrees of freedom of each coefficient, by the level at which its column varies."""
    n_trials = int(groups.max()) + 1
    first = np.array([int(np.flatnonzero(groups == g)[0]) for g in range(n_trials)])
    within = np.array([bool((column != column[first][groups]).any()) for column in design.T])
    between, inside = n_trials - int((~within).sum()), len(design) - n_trials - int(within.sum())
    return np.where(within, inside, between).astype(np.float64)


def _terms(names: list[tuple[str, str]], beta: Floats, se: Floats, df: Floats) -> tuple[Term, ...]:
    out = []
    for (term, level), b, s, d in zip(names, beta.tolist(), se.tolist(), df.tolist(), strict=True):
        half = float(student.ppf(0.975, d)) * s
        p = float(2 * student.sf(abs(b) / s, d)) if s > 0 else math.nan
        out.append(Term(term, level, b, s, d, p, b - half, b + half))
    return tuple(out)


# -- the two methods -------------------------------------------------------------------------------------------------

Found = tuple[Floats, Floats, tuple[float, float]]


def _mixed(values: Floats, design: Floats, groups: NDArray[np.int64]) -> tuple[str | None, Found | None]:
    """Coefficients, their errors and the SDs of trials and residuals; else why not."""
    if importlib.util.find_spec("statsmodels") is None:
        return "statsmodels_missing", None
    from statsmodels.regression.mixed_linear_model import MixedLM
    from statsmodels.tools.sm_exceptions import ConvergenceWarning, ModelWarning

    scale = values.std()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fitted = MixedLM(values / scale, design, groups).fit(reml=True, method=["lbfgs", "powell"])
            beta, se = np.asarray(fitted.fe_params), np.asarray(fitted.bse_fe)
            trial, residual = float(np.asarray(fitted.cov_re).ravel()[0]), float(fitted.scale)
        except (np.linalg.LinAlgError, ValueError, FloatingPointError):
            return "singular", None
    if trial < BOUNDARY * residual:
        return "boundary", None  # trials do not differ more than their values do: statsmodels warns of it too
    if not fitted.converged or any(issubclass(w.category, ConvergenceWarning | ModelWarning) for w in caught):
        return "not_converged", None
    if not (np.isfinite(beta).all() and np.isfinite(se).all() and (se > 0).all()):
        return "singular", None
    sd = float(math.sqrt(trial) * scale), float(math.sqrt(residual) * scale)
    return None, (beta * scale, se * scale, sd)


def _bootstrap(values: Floats, design: Floats, groups: NDArray[np.int64], draws: int) -> tuple[Floats, Floats]:
    """Least squares, and standard errors from `draws` of whole trials, drawn within trials of the same fixed terms.

    A stratum of m trials gives (m - 1) / m of the variance: it is scaled up by the smallest. Strata of one trial are
    joined into one.
    """
    beta = np.linalg.lstsq(design, values, rcond=None)[0]
    rows = [np.flatnonzero(groups == g) for g in range(int(groups.max()) + 1)]
    strata: dict[bytes, list[int]] = {}
    for g, own in enumerate(rows):
        strata.setdefault(design[own].mean(0).round(9).tobytes(), []).append(g)
    alone = [members[0] for members in strata.values() if len(members) == 1]
    drawn_from = [np.array(m) for m in strata.values() if len(m) > 1] + ([np.array(alone)] if alone else [])
    cross = np.stack([design[own].T @ design[own] for own in rows])
    toward = np.stack([design[own].T @ values[own] for own in rows])
    rng = generator("mixed", str(values.shape), str(design.shape))
    found = []
    for _ in range(draws):
        chosen = np.concatenate([rng.choice(members, len(members)) for members in drawn_from])
        a, b = cross[chosen].sum(0), toward[chosen].sum(0)
        if np.linalg.matrix_rank(a) == len(a):
            found.append(np.linalg.solve(a, b))
    smallest = min((len(members) for members in drawn_from if len(members) > 1), default=2)
    if len(found) < 2:
        return np.asarray(beta), np.full(len(beta), np.nan)
    return np.asarray(beta), np.asarray(np.stack(found).std(0, ddof=1) * math.sqrt(smallest / (smallest - 1)))
