"""Measures of layers by architecture, data set and depth, with the layers of a trial counted as one trial.

`metric ~ factors + depth + (1 | seed:cell)` (`mixed`); the tables of events' models have the same columns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.inference import sample
from ndt_ray.analysis.inference.mixed import METHODS, Fit, fit
from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.store.schema import Column, Table

LAYER_MODELS = Table(
    "layer_models",
    "Models of layers' measures: a row a coefficient, with a random intercept a trial or errors from whole trials.",
    (
        Column("outcome", "string", "what is modelled"),
        Column("term", "string", "factor, number, or product of two factors; * where nothing could be fitted"),
        Column("level", "string", "against the first level in order of name; `per SD` of a number"),
        Column("n", "int32", "values"),
        Column("n_trials", "int32", "trials (seed:cell) that they are nested in"),
        Column("estimate", "float64", "of the coefficient, in units of the outcome"),
        Column("se", "float64", "its standard error"),
        Column("df", "float64", "degrees of freedom, by the level at which the term varies"),
        Column("lo", "float64", "95 % interval"),
        Column("hi", "float64", "upper end of it"),
        Column("p", "float64", "two-sided, Student's t with so many degrees of freedom"),
        Column("q", "float64", "Benjamini-Hochberg over all coefficients of the table but intercepts"),
        Column("sd_trial", "float64", "SD of the trials' intercepts; null unless mixed"),
        Column("sd_residual", "float64", "SD of what is left; null unless mixed"),
        Column("method", "string", "mixed (REML), cluster_bootstrap, or null where nothing could be fitted"),
        Column(
            "flag",
            "string",
            "why the mixed model was not taken - statsmodels_missing, not_converged, boundary, singular, "
            "one_value_a_trial, asked_for - or nothing fitted: too_few_trials, constant, confounded",
        ),
        Column("formula", "string", "the model"),
    ),
    ("outcome", "term", "level"),
)
EVENT_MODELS = replace(
    LAYER_MODELS,
    name="event_models",
    doc="Models of what came with events: a row a coefficient, events nested in trials.",
)
MEASURES = ("participation_ratio", "stable_rank")


@analysis(
    name="layer_models", reads=("trials", "outcomes", "sweeps", "measurements"), writes=(LAYER_MODELS,), per="sweep"
)
def layer_models(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = MEASURES,
    interaction: bool = True,
    method: str = "mixed",
) -> dict[str, pd.DataFrame]:
    """Logarithms of layers' measures at the end by compared axes and depth, layers nested in trials.

    `interaction`: with the products of the first two axes where trials allow it. `method`: mixed, or
    cluster_bootstrap. SpecError for an unknown measure or method.
    """
    if method not in METHODS:
        raise SpecError(f"layer_models: unknown method '{method}'{did_you_mean(method, METHODS)}")
    trials = sample.usable(data.frame("trials"), data.frame("outcomes"))
    rows = data.frame("measurements")
    if trials.empty or rows.empty:
        return {LAYER_MODELS.name: pd.DataFrame()}
    for name in measures:
        if name not in rows:
            raise SpecError(f"layer_models: no measure '{name}'{did_you_mean(name, rows.columns)}")
    made = sample.design(trials, data.frame("sweeps"))
    last = _last(rows[rows["trial_id"].isin(trials["trial_id"])]).merge(made.frame, on="trial_id")
    factors = [path for path, _ in made.factors if last[path].nunique() > 1]
    last["depth"] = last["layer_index"] / last.groupby("trial_id")["layer_index"].transform("max").clip(lower=1)
    fixed = last[[*factors, "depth"]]
    found = []
    for name in measures:
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.log(last[name].to_numpy(dtype=np.float64))
        wide = fit(y, fixed, list(last["trial_id"]), interaction=interaction and len(factors) > 1, method=method)
        crossed = interaction and len(factors) > 1 and bool(wide.method)
        if not crossed:
            wide = fit(y, fixed, list(last["trial_id"]), method=method)
        found.append((f"log {name}", wide, formula(f"log {name}", list(fixed.columns), crossed)))
    return {LAYER_MODELS.name: model_rows(found)}


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each layer of a trial the last measurement, of its first view."""
    ordered = rows.sort_values(["trial_id", "layer_index", "view", "step"], kind="stable")
    end = ordered.groupby(["trial_id", "layer_index", "view"], sort=False).tail(1)
    return end.groupby(["trial_id", "layer_index"], sort=False).head(1)


def formula(outcome: str, columns: Sequence[str], crossed: bool = False) -> str:
    """The model in words of R."""
    terms = [f"{columns[0]} * {columns[1]}", *columns[2:]] if crossed else list(columns)
    return f"{outcome} ~ {' + '.join(terms) or '1'} + (1 | seed:cell)"


def model_rows(found: Sequence[tuple[str, Fit, str]]) -> pd.DataFrame:
    """Rows of `layer_models` or `event_models`, q over all of them."""
    rows = [row for outcome, one, said in found for row in _rows(outcome, one, said)]
    tested = [row["p"] if row["term"] not in ("(intercept)", "*") else math.nan for row in rows]
    for row, q in zip(rows, bh(tested) if rows else (), strict=True):
        row["q"] = float(q)
    return pd.DataFrame(rows)


def _rows(outcome: str, one: Fit, said: str) -> Iterator[dict[str, Any]]:
    common = {"outcome": outcome, "n": one.n, "n_trials": one.n_trials, "method": one.method or None}
    common |= {"flag": one.flag, "formula": said, "sd_trial": one.sd_trial, "sd_residual": one.sd_residual}
    if not one.terms:
        nothing = dict.fromkeys(("estimate", "se", "df", "lo", "hi", "p"), math.nan)
        yield common | {"term": "*", "level": ""} | nothing
    for term in one.terms:
        yield common | vars(term)
