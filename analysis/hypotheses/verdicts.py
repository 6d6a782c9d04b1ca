"""The founding plan's third phase: one table of events with their mechanisms, and its hypotheses as computed verdicts.

A hypothesis is a metric with a prediction; its verdict follows from an estimate, its interval and its q over the family
of all hypotheses of the sweep, by the rule of `verdict`, and no sentence is written in advance. The unit is the trial:
events of one trial are averaged, for they share a seed. Criteria of the plan: |r| > 0.6, R² > 0.4 - here on trials that
the regression has not seen, for in-sample R² of three numbers is no evidence - and a paired t test, which stands beside
the sign flips that decide. Claims about events are tested over all trials and in each family of architectures that a
sweep of several has: further hypotheses of the same family of tests.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.significant import primary, replicates
from ndt_ray.analysis.hypotheses.estimates import FEWEST, Tested, correlation, of_mean, regression
from ndt_ray.analysis.hypotheses.event_table import EVENT_MECHANISMS, event_table
from ndt_ray.analysis.hypotheses.heads import METRIC, NAME, STATEMENT, stable_attention
from ndt_ray.analysis.hypotheses.patterns import patterns, replicated
from ndt_ray.analysis.hypotheses.tables import HYPOTHESES, PATTERNS
from ndt_ray.analysis.inference.layer_models import EVENT_MODELS, formula, model_rows
from ndt_ray.analysis.inference.mixed import fit
from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.analysis.mechanisms.matching import arms
from ndt_ray.analysis.recovery import against_matched
from ndt_ray.architectures import FAMILIES, family_of

CORRELATED, EXPLAINED = 0.6, 0.4
EXCESS, CHANGED = "new_feature_types_excess", "feature_types_changed_excess"
AVERAGED = (
    "jump_magnitude", "new_feature_types_after", "selectivity_increase", "compositional_depth", "num_jumps", EXCESS,
    CHANGED,
)  # fmt: skip
"""Over the events of a trial."""
READS = (
    "trials",
    "outcomes",
    "evaluations",
    "events",
    "event_families",
    "features",
    "unit_metrics",
    "symmetry_metrics",
    "composition_metrics",
    "mechanism_changes",
    "mechanism_tests",
    "mechanism_windows",
    "recovery",
)


@analysis(name="hypotheses", reads=READS, writes=(EVENT_MECHANISMS, EVENT_MODELS, HYPOTHESES, PATTERNS), per="sweep")
def hypotheses(data: AnalysisInput, *, alpha: float = 0.05) -> dict[str, pd.DataFrame]:
    """The events' table, the verdicts on what it and the mechanisms' tests were expected to show, and the patterns.

    Cells that never learned have no part in them.
    """
    everyone, known = data.frame("trials"), replicates(data)
    never = set(known.loc[known["untrained"], "trial_id"]) if len(known) else set()
    trials = everyone[~everyone["trial_id"].isin(never)] if len(everyone) else everyone
    if trials.empty:
        return {t.name: pd.DataFrame() for t in (EVENT_MECHANISMS, EVENT_MODELS, HYPOTHESES, PATTERNS)}
    events = primary(data.frame("events"), data.frame("event_families"))
    events = events[events["trial_id"].isin(trials["trial_id"])] if len(events) else events
    measured = ("features", "unit_metrics", "composition_metrics", "mechanism_windows")
    table = event_table(trials, events, *(data.frame(t) for t in measured))
    cells = dict(zip(trials["trial_id"], arms(trials), strict=True))
    tests = data.frame("mechanism_tests")
    tests = tests[~tests["cell"].isin(arms(everyone[everyone["trial_id"].isin(never)]))] if len(tests) else tests
    found = [*_from_events(table, trials), *_from_tests(tests), *_from_recovery(data.frame("recovery"))]
    found += _from_symmetry(data.frame("symmetry_metrics"), table, trials)
    found += stable_attention(data.frame("mechanism_changes"), cells)
    found += _not_looked_at(found, trials, data.sweep)
    q = bh([t.p if t.n >= FEWEST else math.nan for t in found]) if found else np.zeros(0)
    rows = [_row(t, float(v), alpha) for t, v in zip(found, q, strict=True)]
    return {
        EVENT_MECHANISMS.name: table,
        EVENT_MODELS.name: event_models(table),
        HYPOTHESES.name: pd.DataFrame(rows),
        PATTERNS.name: pd.DataFrame([*patterns(tests, trials, alpha), *replicated(found, q, alpha)]),
    }


# -- what is tested --------------------------------------------------------------------------------------------------

CHANGES = (
    ("attention_specialisation", "attention_entropy", "decrease", "Attention heads become more specific at events."),
    ("head_differentiation", "head_divergence", "increase", "Attention heads move apart at events."),
    (
        "head_specialisation",
        "specialization_index",
        "increase",
        "Heads' specificities move apart at events.",
    ),
    ("filter_differentiation", "filter_squared_cosine", "decrease", "Filters become more orthogonal at events."),
    ("selectivity", "class_selectivity", "increase", "Units become more selective for classes at events."),
    ("class_separation", "nc1", "decrease", "Classes draw together at events (within- over between-class spread)."),
    ("clustering", "class_silhouette", "increase", "Stimuli cluster by class after events as they did not before."),
    ("specialists", "selective_share", "increase", "Specialists of a class become more, generalists fewer, at events."),
    ("readability", "linear_probe_accuracy", "increase", "Classes become easier to read out of a layer at events."),
)
"""Hypotheses on `mechanism_tests`: events change a metric more than matched windows do."""
OF_HEADS = ("attention_specialisation", "head_differentiation", "head_specialisation")


def _against_windows(metric: str) -> str:
    return f"{metric}: change at events - at matched windows, SDs"


def _from_tests(tests: pd.DataFrame) -> Iterator[Tested]:
    if tests.empty:
        return
    for name, metric, prediction, statement in CHANGES:
        for row in tests[tests["metric"] == metric].itertuples():
            yield Tested(
                name, str(row.cell), statement, _against_windows(metric), prediction,
                int(row.n_trials), float(row.difference), float(row.lo), float(row.hi), float(row.p), p_t=float(row.p),
            )  # fmt: skip


def _not_looked_at(found: list[Tested], trials: pd.DataFrame, sweep: str) -> list[Tested]:
    """What is claimed of transformers, of those cells of them in which nothing could be tested."""
    control = trials["control"] == "none" if "control" in trials else pd.Series(True, index=trials.index)
    have = trials[control & (trials["model"].map(family_of) == "transformer")]
    known = {(t.hypothesis, t.scope) for t in found}
    claims = [(n, s, _against_windows(m), p) for n, m, p, s in CHANGES if n in OF_HEADS]
    claims.append((NAME, STATEMENT, METRIC, "increase"))
    lacks = f"no event of it has attention measured around it (ndt analyze {sweep} attention similarity mechanisms)"
    return [
        Tested(name, str(cell), statement, metric, prediction, 0, lacks=lacks)
        for cell in sorted(have["cell"].unique())
        for name, statement, metric, prediction in claims
        if (name, str(cell)) not in known
    ]


def _from_events(table: pd.DataFrame, trials: pd.DataFrame) -> Iterator[Tested]:
    """Over all trials, then over those of each family where the sweep has several: over one it would be a copy."""
    if table.empty:
        return
    have = set(trials["model"].map(family_of))
    for scope in ("*", *(family for family in FAMILIES if family in have and len(have) > 1)):
        own = table if scope == "*" else table[table["arch_type"] == scope]
        excess = {
            EXCESS: own["new_feature_types_window"] - own["new_feature_types_controls"],
            CHANGED: own["feature_types_changed"] - own["feature_types_changed_controls"],
        }
        means = own.assign(**excess).groupby("trial_id")[list(AVERAGED)].mean()
        yield of_mean(
            "selectivity_unmatched", scope,
            "Selectivity is higher after events than before (without matched windows).",
            "selectivity_after_jump - selectivity_before_jump", "increase", means["selectivity_increase"].dropna(),
        )  # fmt: skip
        yield of_mean(
            "new_features", scope, "Events bring more new kinds of features than windows like them.",
            "new_feature_types_window - new_feature_types_controls", "increase", means[EXCESS].dropna(),
        )  # fmt: skip
        yield of_mean(
            "feature_changes", scope, "At events more units change what they answer to than in windows like them.",
            "feature_types_changed - feature_types_changed_controls", "increase", means[CHANGED].dropna(),
        )  # fmt: skip
        pair = means[["jump_magnitude", "new_feature_types_after"]].dropna().to_numpy(np.float64)
        r, lo, hi, p = correlation(pair[:, 0], pair[:, 1]) if len(pair) else (math.nan,) * 4
        yield Tested(
            "magnitude_and_new_features", scope, "Larger events bring more new kinds of features.",
            "correlation of jump_magnitude and new_feature_types_after", "|r| > 0.6", len(pair), r, lo, hi, p,
            error=1 / math.sqrt(len(pair) - 3) if len(pair) > 3 else math.nan,
        )  # fmt: skip
        known = means[["jump_magnitude", "num_jumps", "compositional_depth"]].dropna().astype(np.float64)
        r2, p, fitted = regression(
            known[["jump_magnitude", "num_jumps"]].to_numpy(), known["compositional_depth"].to_numpy()
        )
        yield Tested(
            "composition", scope, "Events' number and size say how deep the composition of features is.",
            "R² of compositional_depth on jump_magnitude and num_jumps, trials left out", "R² > 0.4", len(known), r2,
            p=p, r2_in_sample=fitted,
        )  # fmt: skip


def _from_recovery(rows: pd.DataFrame) -> Iterator[Tested]:
    """Do the same interventions cost more at events than in windows matched to them, within an untouched trial?"""
    if rows.empty or "near_event" not in rows:
        return
    own = rows[rows["flag"].isna() & rows["near_event"].notna()]
    if "lr_from" in own:  # the trial's own learning rates: other arms are beside other lanes
        own = own[own["lr_from"].isna() & ~own["kind"].isin(["lr", "schedule"])]
    statement = "A disruption costs more at an event than in a matched window without one."
    metric = "area of the accuracy deficit, at events - in windows matched to them"
    for cell, group in own.groupby("cell"):
        pairs = against_matched(group, "area")
        if len(pairs):
            pairs = pairs.assign(difference=pairs["area"] - pairs["elsewhere"])
            by_arm = pairs.groupby(["untouched", "kind", "target", "dose"])["difference"].mean()
            by_trial = by_arm.groupby("untouched").mean()
            yield of_mean("critical_periods", str(cell), statement, metric, "increase", by_trial)
        elif group["near_event"].astype(bool).any():
            lacks = "no arm at an event has another in a window matched to it (ndt fork --events --controls)"
            yield Tested("critical_periods", str(cell), statement, metric, "increase", 0, lacks=lacks)


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
        what = "responses" if metric == "unit_response_similarity" else "incoming weights"
        yield of_mean(
            name, "*", f"The first event breaks the symmetry of the initialisation: units' {what} become less alike.",
            f"{metric} beyond chance, after the first event - at step 0", "decrease", changes,
        )  # fmt: skip


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
        why = f"not tested: {t.lacks or f'{t.n} trials have what it needs; at least {FEWEST} are needed'}"
    else:
        within = f" [{t.lo:.3g}, {t.hi:.3g}]" if math.isfinite(t.lo) and math.isfinite(t.hi) else ""
        beside = f", in-sample R² {t.r2_in_sample:.3g}" if math.isfinite(t.r2_in_sample) else ""
        beside += f", p of the t test {t.p_t:.2g}" if math.isfinite(t.p_t) and t.p_t != t.p else ""
        why = f"{t.estimate:.3g}{within} over {t.n} trials, q = {q:.2g}{beside}; predicted: {t.prediction}"
    numbers = {name: value for name, value in vars(t).items() if name not in ("error", "lacks")}
    return {**numbers, "q": q, "verdict": said, "confidence": confidence, "why": why}
