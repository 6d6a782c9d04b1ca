"""The founding plan's third phase: one table of events with their mechanisms, and its hypotheses as computed verdicts.

A hypothesis is a metric with a prediction; its verdict follows from an estimate, its interval and its q over the family
of all hypotheses of the sweep, by the rule of `verdict`, and no sentence is written in advance. The unit is the trial:
events of one trial are averaged, for they share a seed. Criteria of the plan: |r| > 0.6, R² > 0.4 - here on trials that
the regression has not seen, for in-sample R² of three numbers is no evidence.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.significant import primary
from ndt_ray.analysis.hypotheses.event_table import EVENT_MECHANISMS, event_table
from ndt_ray.analysis.inference.layer_models import EVENT_MODELS, formula, model_rows
from ndt_ray.analysis.inference.mixed import fit
from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.analysis.inference.permutation import sign_flips
from ndt_ray.analysis.inference.seeds import interval
from ndt_ray.analysis.nulls import generator
from ndt_ray.architectures import family_of
from ndt_ray.store.schema import Column, Table

Floats = NDArray[np.float64]
CORRELATED, EXPLAINED = 0.6, 0.4
FEWEST = 4
"""Trials below which no verdict is given: four have 16 sign flips and 24 permutations."""
PERMUTATIONS = 4999
HYPOTHESES = Table(
    "hypotheses",
    "Hypotheses with what they predict and what the sweep says: every verdict computed.",
    (
        Column("hypothesis", "string", "its name"),
        Column("scope", "string", "cell, or * for the whole sweep"),
        Column("statement", "string", "what it says"),
        Column("metric", "string", "what is compared"),
        Column("prediction", "string", "increase, decrease, |r| > 0.6, or R² > 0.4 on trials left out"),
        Column("n", "int32", "trials: the unit"),
        Column("estimate", "float64", "mean difference, correlation or R²"),
        Column("lo", "float64", "95 % interval; null where there is none"),
        Column("hi", "float64", "upper end of it"),
        Column("p", "float64", "two-sided; for R² of permutations"),
        Column("q", "float64", "Benjamini-Hochberg over all hypotheses of the sweep that could be tested"),
        Column("verdict", "string", "supported, weaker_than_predicted, contradicted, not_shown or no_data"),
        Column("confidence", "string", "high (q <= .01, 6 trials), medium (q <= .05) or low"),
        Column("why", "string", "in words made of these numbers"),
    ),
    ("hypothesis", "scope"),
)

PATTERNS = Table(
    "mechanism_patterns",
    "Which changes at events are the same in all architectures, and which belong to some.",
    (
        Column("metric", "string", "name of the metric"),
        Column("n_cells", "int32", "cells in which it was tested"),
        Column("up", "int32", "cells in which events raise it more than matched windows, q <= alpha"),
        Column("down", "int32", "cells in which they lower it"),
        Column("architectures", "string", "those with a significant change, comma-separated"),
        Column("heterogeneity_p", "float64", "Cochran's Q: are the cells' differences one? null for one cell"),
        Column("pattern", "string", "universal, specific, opposed or none"),
    ),
    ("metric",),
)

READS = (
    "trials",
    "events",
    "event_families",
    "features",
    "unit_metrics",
    "symmetry_metrics",
    "composition_metrics",
    "mechanism_tests",
    "recovery",
)


@dataclass(frozen=True)
class Tested:
    """A hypothesis' numbers, before the family is known."""

    hypothesis: str
    scope: str
    statement: str
    metric: str
    prediction: str
    n: int
    estimate: float
    lo: float
    hi: float
    p: float


@analysis(name="hypotheses", reads=READS, writes=(EVENT_MECHANISMS, EVENT_MODELS, HYPOTHESES, PATTERNS), per="sweep")
def hypotheses(data: AnalysisInput, *, alpha: float = 0.05) -> dict[str, pd.DataFrame]:
    """The events' table, the verdicts on what it and the mechanisms' tests were expected to show, and the patterns."""
    trials = data.frame("trials")
    if trials.empty:
        return {t.name: pd.DataFrame() for t in (EVENT_MECHANISMS, EVENT_MODELS, HYPOTHESES, PATTERNS)}
    events = primary(data.frame("events"), data.frame("event_families"))
    table = event_table(trials, events, *(data.frame(t) for t in ("features", "unit_metrics", "composition_metrics")))
    tests = data.frame("mechanism_tests")
    found = [*_from_events(table), *_from_tests(tests), *_from_recovery(data.frame("recovery"))]
    found += _from_symmetry(data.frame("symmetry_metrics"), table, trials)
    q = bh([t.p if t.n >= FEWEST else math.nan for t in found]) if found else np.zeros(0)
    rows = [_row(t, float(v), alpha) for t, v in zip(found, q, strict=True)]
    return {
        EVENT_MECHANISMS.name: table,
        EVENT_MODELS.name: event_models(table),
        HYPOTHESES.name: pd.DataFrame(rows),
        PATTERNS.name: pd.DataFrame(list(patterns(tests, trials, alpha))),
    }


# -- what is tested --------------------------------------------------------------------------------------------------

CHANGES = (
    ("attention_specialisation", "attention_entropy", "decrease", "Attention heads become more specific at events."),
    ("filter_differentiation", "filter_squared_cosine", "decrease", "Filters become more orthogonal at events."),
    ("selectivity", "class_selectivity", "increase", "Units become more selective for classes at events."),
    ("class_separation", "nc1", "decrease", "Classes draw together at events (within- over between-class spread)."),
    ("readability", "linear_probe_accuracy", "increase", "Classes become easier to read out of a layer at events."),
)
"""Hypotheses on `mechanism_tests`: events change a metric more than matched windows do."""


def _from_tests(tests: pd.DataFrame) -> Iterator[Tested]:
    if tests.empty:
        return
    for name, metric, prediction, statement in CHANGES:
        for row in tests[tests["metric"] == metric].itertuples():
            yield Tested(
                name, str(row.cell), statement, f"{metric}: change at events - at matched windows, SDs", prediction,
                int(row.n_trials), float(row.difference), float(row.lo), float(row.hi), float(row.p),
            )  # fmt: skip


def _from_events(table: pd.DataFrame) -> Iterator[Tested]:
    if table.empty:
        return
    means = table.groupby("trial_id")[
        ["jump_magnitude", "new_feature_types_after", "selectivity_increase", "compositional_depth", "num_jumps"]
    ].mean()
    increase = means["selectivity_increase"].dropna().to_numpy()
    within = interval(increase)
    yield Tested(
        "selectivity_unmatched", "*", "Selectivity is higher after events than before (without matched windows).",
        "selectivity_after_jump - selectivity_before_jump", "increase", len(increase),
        float(increase.mean()) if len(increase) else math.nan, within.lo, within.hi, sign_flips(increase).p,
    )  # fmt: skip
    pair = means[["jump_magnitude", "new_feature_types_after"]].dropna().to_numpy()
    r, lo, hi, p = correlation(pair[:, 0], pair[:, 1]) if len(pair) else (math.nan,) * 4
    yield Tested(
        "magnitude_and_new_features", "*", "Larger events bring more new kinds of features.",
        "correlation of jump_magnitude and new_feature_types_after", "|r| > 0.6", len(pair), r, lo, hi, p,
    )  # fmt: skip
    known = means[["jump_magnitude", "num_jumps", "compositional_depth"]].dropna()
    r2, p = regression(known[["jump_magnitude", "num_jumps"]].to_numpy(), known["compositional_depth"].to_numpy())
    yield Tested(
        "composition", "*", "Events' number and size say how deep the composition of features is.",
        "R² of compositional_depth on jump_magnitude and num_jumps, trials left out", "R² > 0.4", len(known), r2,
        math.nan, math.nan, p,
    )  # fmt: skip


def _from_recovery(rows: pd.DataFrame) -> Iterator[Tested]:
    """Do the same interventions cost more at events than away from them, within an untouched trial?"""
    if rows.empty or "near_event" not in rows:
        return
    own = rows[rows["flag"].isna() & rows["near_event"].notna()]
    if "lr_from" in own:  # the trial's own learning rates: other arms are beside other lanes
        own = own[own["lr_from"].isna() & ~own["kind"].isin(["lr", "schedule"])]
    for cell, group in own.groupby("cell"):
        differences = []
        for _, same in group.groupby("untouched"):
            for _, alike in same.groupby(["kind", "target", "dose"]):
                near = alike["near_event"].astype(bool)
                if near.any() and not near.all():
                    differences.append(
                        (alike["untouched"].iloc[0], alike.loc[near, "area"].mean() - alike.loc[~near, "area"].mean())
                    )
        if not differences:
            continue
        by_trial = pd.DataFrame(differences, columns=["trial", "difference"]).groupby("trial")["difference"].mean()
        values = by_trial.to_numpy()
        within = interval(values)
        yield Tested(
            "critical_periods", str(cell), "A disruption costs more at an event than away from it.",
            "area of the accuracy deficit, near events - elsewhere", "increase", len(values), float(values.mean()),
            within.lo, within.hi, sign_flips(values).p,
        )  # fmt: skip


def event_models(table: pd.DataFrame) -> pd.DataFrame:
    """What came with events by their size, time and architecture, events nested in trials: rows of `event_models`."""
    found = []
    for outcome in ("selectivity_increase", "new_feature_types_after", "compositional_depth"):
        if table.empty:
            continue
        fixed = table[["arch_type", "jump_magnitude", "jump_step"]]
        fixed = fixed.loc[:, fixed[table[outcome].notna()].nunique() > 1]
        one = fit(table[outcome].to_numpy(dtype=np.float64), fixed, list(table["trial_id"]))
        found.append((outcome, one, formula(outcome, list(fixed.columns))))
    return model_rows(found)


def _from_symmetry(rows: pd.DataFrame, table: pd.DataFrame, trials: pd.DataFrame) -> Iterator[Tested]:
    """Initialisation escape as symmetry breaking: are units less alike after the first event than at step 0?

    After the first event of the trial, or at its first saved checkpoint where it has none. What exceeds chance is
    compared, for it depends on the number of stimuli and inputs.
    """
    if rows.empty:
        return
    untouched = set(trials.loc[trials["control"] == "none", "trial_id"] if "control" in trials else trials["trial_id"])
    known = rows[rows["trial_id"].isin(untouched) & (rows["part"] == "*")].dropna(subset=["value", "chance"])
    first = table.groupby("trial_id")["jump_step"].min() if len(table) else pd.Series(dtype=np.int64)
    for metric, name in (
        ("unit_response_similarity", "initialisation_escape"),
        ("unit_weight_similarity", "initialisation_escape_weights"),
    ):
        own = known[known["metric"] == metric]
        excess = (own["value"] - own["chance"]).groupby([own["trial_id"], own["step"]]).mean()
        changes = []
        for trial, series in excess.groupby(level=0):
            steps = series.droplevel(0).sort_index()
            after = steps[steps.index > int(first.get(trial, 0))]
            if 0 in steps.index and len(after):
                changes.append(float(after.iloc[0] - steps.loc[0]))
        values = np.array(changes)
        within = interval(values)
        what = "responses" if metric == "unit_response_similarity" else "incoming weights"
        yield Tested(
            name, "*", f"The first event breaks the symmetry of the initialisation: units' {what} become less alike.",
            f"{metric} beyond chance, after the first event - at step 0", "decrease", len(values),
            float(values.mean()) if len(values) else math.nan, within.lo, within.hi, sign_flips(values).p,
        )  # fmt: skip


def correlation(x: ArrayLike, y: ArrayLike) -> tuple[float, float, float, float]:
    """Pearson r, Fisher's 95 % interval, a permutation p; NaN where one of them is constant or there are under 4."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return (math.nan,) * 4
    r = float(np.corrcoef(a, b)[0, 1])
    half = 1.96 / math.sqrt(len(a) - 3)
    z = math.atanh(float(np.clip(r, -0.999999, 0.999999)))
    shuffled = generator("correlation", str(len(a))).permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1)
    null = (shuffled - b.mean()) @ (a - a.mean()) / (len(a) * a.std() * b.std())
    p = (1 + int((np.abs(null) >= abs(r) - 1e-12).sum())) / (1 + PERMUTATIONS)
    return r, math.tanh(z - half), math.tanh(z + half), p


def regression(x: Floats, y: Floats) -> tuple[float, float]:
    """R² of least squares on rows left out one by one, and its permutation p; NaN with too few rows or constant y."""
    if len(y) < max(FEWEST, x.shape[1] + 3) or np.ptp(y) == 0:
        return math.nan, math.nan
    design = np.column_stack([np.ones(len(y)), x])
    hat = design @ np.linalg.pinv(design)
    left = 1 - np.clip(np.diag(hat), 0, 1 - 1e-9)

    def r2(targets: Floats) -> Floats:
        """Of each row of targets `[k, n]`; residuals and means of rows left out, without fitting again."""
        residual = (targets - targets @ hat) / left
        mean = (targets.sum(1, keepdims=True) - targets) / (targets.shape[1] - 1)
        return np.asarray(1 - (residual**2).sum(1) / ((targets - mean) ** 2).sum(1))

    observed = float(r2(y[None])[0])
    shuffled = generator("regression", str(x.shape)).permuted(np.tile(y, (PERMUTATIONS, 1)), axis=1)
    return observed, (1 + int((r2(shuffled) >= observed - 1e-12).sum())) / (1 + PERMUTATIONS)


# -- verdicts --------------------------------------------------------------------------------------------------------


def verdict(t: Tested, q: float, alpha: float = 0.05) -> str:
    """What may be said. `supported`: q <= alpha, in the predicted direction and as strong as predicted."""
    if t.n < FEWEST or not math.isfinite(t.p) or not math.isfinite(t.estimate):
        return "no_data"
    if q > alpha:
        return "not_shown"
    right: dict[str, Callable[[float], bool]] = {"increase": lambda e: e > 0, "decrease": lambda e: e < 0}
    if t.prediction in right:
        return "supported" if right[t.prediction](t.estimate) else "contradicted"
    limit = CORRELATED if t.prediction.startswith("|r|") else EXPLAINED
    size = abs(t.estimate) if t.prediction.startswith("|r|") else t.estimate
    return "supported" if size > limit else "weaker_than_predicted"


def _row(t: Tested, q: float, alpha: float) -> dict[str, Any]:
    said = verdict(t, q, alpha)
    confidence = "low"
    if said not in ("no_data", "not_shown"):
        confidence = "high" if q <= 0.01 and t.n >= 6 else "medium"
    if said == "no_data":
        why = f"{t.n} trials have what it needs; at least {FEWEST} are needed"
    else:
        within = f" [{t.lo:.3g}, {t.hi:.3g}]" if math.isfinite(t.lo) and math.isfinite(t.hi) else ""
        why = f"{t.estimate:.3g}{within} over {t.n} trials, q = {q:.2g}; predicted: {t.prediction}"
    return {**vars(t), "q": q, "verdict": said, "confidence": confidence, "why": why}


def patterns(tests: pd.DataFrame, trials: pd.DataFrame, alpha: float) -> Iterator[dict[str, Any]]:
    """Rows of `mechanism_patterns`: universal where all tested architectures change alike."""
    if tests.empty:
        return
    families = trials.drop_duplicates("cell").set_index("cell")["model"].map(family_of)
    for metric, rows in tests.dropna(subset=["p"]).groupby("metric"):
        clear = rows[rows["q"] <= alpha]
        up, down = int((clear["difference"] > 0).sum()), int((clear["difference"] < 0).sum())
        seen = sorted({str(families.get(c, "other")) for c in clear["cell"]})
        tested = {str(families.get(c, "other")) for c in rows["cell"]}
        if up and down:
            pattern = "opposed"
        elif up + down:
            pattern = "universal" if set(seen) == tested and len(tested) > 1 and len(clear) == len(rows) else "specific"
        else:
            pattern = "none"
        yield {
            "metric": metric,
            "n_cells": len(rows),
            "up": up,
            "down": down,
            "architectures": ",".join(seen),
            "heterogeneity_p": _heterogeneity(rows),
            "pattern": pattern,
        }


def _heterogeneity(rows: pd.DataFrame) -> float:
    """Cochran's Q over cells, standard errors from the intervals."""
    known = rows.dropna(subset=["difference", "lo", "hi"])
    half = (known["hi"] - known["lo"]).to_numpy(float) / 2
    error = half / stats.t.ppf(0.975, np.maximum(known["n_trials"].to_numpy(float) - 1, 1))
    if len(known) < 2 or not (error > 0).all():
        return math.nan
    weight = 1 / error**2
    effect = known["difference"].to_numpy(float)
    mean = (weight * effect).sum() / weight.sum()
    return float(stats.chi2.sf((weight * (effect - mean) ** 2).sum(), len(known) - 1))
