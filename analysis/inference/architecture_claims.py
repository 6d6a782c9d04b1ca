"""Have CNNs more discrete events than MLPs, of similar size? The founding sentence, from ratios over seeds.

Cells of a family are taken together as levels of `compare` are: the seed is the unit, within data sets that both have.
More: of events a layer-series, for a network with more layers has more of any kind; a trial's plain count, which the
founding study compared, stands beside it. Similar is a claim of its own, not the absence of a difference: the interval
of the ratio of sizes has to lie within a factor.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.inference import sample
from ndt_ray.analysis.inference.compare import cell_status
from ndt_ray.analysis.inference.contrasts import WHOLE, Rules, compared, pairs
from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.analysis.inference.outcomes import Outcome, event_outcomes, known
from ndt_ray.architectures import family_of
from ndt_ray.plan.power import ALPHA, EFFECT
from ndt_ray.store.schema import Column, Table

SIMILAR = 1.5
"""Factor within which sizes are similar; the founding study called 1.17 so (2.28e-13 against 1.95e-13)."""
WHOLE_CLAIM = "more_events_of_similar_size"
OUTCOMES = {"more_events": "events", "more_events_per_series": "events_per_series", "similar_size": "event_size"}
RULES = {
    "more_events": "supported if the ratio is above 1 and q <= alpha; beside the next, which decides",
    "more_events_per_series": "supported if the ratio is above 1 and q <= alpha, contradicted if below",
    "similar_size": f"supported if the interval lies within a factor of {SIMILAR}, contradicted if outside of it",
    WHOLE_CLAIM: "supported if more_events_per_series and similar_size are, contradicted if one of them is",
}

ARCHITECTURE_CLAIMS = Table(
    "architecture_claims",
    "CNNs have more discrete events than MLPs, of similar size: ratios over seeds, and a verdict by rule.",
    (
        Column("claim", "string", "more_events, more_events_per_series, similar_size; all of it: " + WHOLE_CLAIM),
        Column("scope", "string", "levels of the other compare axes (data sets); * for the mean over all in common"),
        Column("n_cnn", "int32", "seeds with a CNN"),
        Column("n_mlp", "int32", "seeds with an MLP"),
        Column("n_trials", "int32", "both together"),
        Column("cnn", "float64", "mean over seeds: events, events a layer-series, or median |relative size|"),
        Column("mlp", "float64", "the same of MLPs"),
        Column("ratio", "float64", "cnn / mlp; null where one of them is 0"),
        Column("lo", "float64", "95 % interval of it over seeds"),
        Column("hi", "float64", "upper end of it"),
        Column("p", "float64", "two-sided permutation p of the difference, as in comparisons"),
        Column("p_attainable", "float64", "smallest p that these seeds allow"),
        Column("q", "float64", "Benjamini-Hochberg over the counts' rows of this table"),
        Column("rule", "string", "how the verdict follows"),
        Column("verdict", "string", "supported, contradicted, not_shown or no_data"),
        Column("reason", "string", "why there is no verdict; null where there is one"),
    ),
    ("claim", "scope"),
)


@analysis(
    name="architecture_claims",
    reads=("trials", "outcomes", "sweeps", "events", "event_families", "series_tests", "evaluations"),
    writes=(ARCHITECTURE_CLAIMS,),
    per="sweep",
)
def architecture_claims(data: AnalysisInput, *, alpha: float = ALPHA) -> dict[str, pd.DataFrame]:
    """Whether CNNs have more events than MLPs, of similar size: ratios with intervals and tests over seeds."""
    everyone, ended = data.frame("trials"), data.frame("outcomes")
    trials = sample.usable(everyone, ended)
    families = sample.families(data.frame("event_families"), everyone, primary_only=True)
    if trials.empty or not families:
        return {ARCHITECTURE_CLAIMS.name: pd.DataFrame()}
    status = cell_status(everyone, ended, data.frame("evaluations"))
    excluded = set(status.loc[status["excluded"].astype(bool), "cell"])
    outcomes = {o.name: o for o in event_outcomes(families[0], data.frame("series_tests"), data.frame("events"))}
    counts = sample.per_series_counts(families[0], data.frame("series_tests"), data.frame("events"))
    outcomes["events"] = Outcome("events", known(counts.set_index("trial_id")["events"]))
    made = by_family(sample.design(trials, data.frame("sweeps")), trials)
    rules = Rules(alpha, EFFECT, "auto", made.unit)
    found = [
        _row(claim, pair.stratum, compared(pair, outcomes[name], excluded, rules, 1))
        for pair in pairs(made, None, {})
        if (pair.axis, pair.level_a, pair.level_b) == ("family", "cnn", "mlp")
        for claim, name in OUTCOMES.items()
    ]
    rows = pd.DataFrame(judged(found, alpha) if found else [_nobody(made)])
    return {ARCHITECTURE_CLAIMS.name: rows.reindex(columns=[c.name for c in ARCHITECTURE_CLAIMS.columns])}


def by_family(made: sample.Design, trials: pd.DataFrame) -> sample.Design:
    """The design with families of architectures for its models; other compare axes stay."""
    family = made.frame["trial_id"].map(trials.set_index("trial_id")["model"].map(family_of))
    others = [(path, role) for path, role in made.factors if path.partition(".")[0] != "model"]
    return sample.Design(made.frame.assign(family=family), (("family", "compare"), *others), made.unit)


def _row(claim: str, scope: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row but its q and verdict, from one of `comparisons`."""
    ends = {name: row[f"log_ratio{end}"] for name, end in (("ratio", ""), ("lo", "_lo"), ("hi", "_hi"))}
    return {
        "claim": claim,
        "scope": scope,
        "n_cnn": row["n_a"],
        "n_mlp": row["n_b"],
        "n_trials": row["n_a"] + row["n_b"],
        "cnn": row["mean_a"],
        "mlp": row["mean_b"],
        **{name: math.nan if value is None else math.exp(value) for name, value in ends.items()},
        "p": math.nan if row["p"] is None else row["p"],
        "p_attainable": row["smallest_p"],
        "reason": row["reason"],
    }


def judged(rows: list[dict[str, Any]], alpha: float) -> list[dict[str, Any]]:
    """Rows with q and verdict, and one of the whole claim for each scope."""
    q = bh(np.array([row["p"] if row["claim"] != "similar_size" else math.nan for row in rows]))
    found = []
    for row, value in zip(rows, q, strict=True):
        said = _similar(row) if row["claim"] == "similar_size" else _more(row, float(value), alpha)
        reason = (row["reason"] or "no interval") if said == "no_data" else None
        found.append(row | {"q": value, "rule": RULES[row["claim"]], "verdict": said, "reason": reason})
    for scope in dict.fromkeys(row["scope"] for row in rows):
        parts = {row["claim"]: row for row in found if row["scope"] == scope}
        found.append(_whole(scope, parts["more_events_per_series"], parts["similar_size"]))
    return found


def _more(row: dict[str, Any], q: float, alpha: float) -> str:
    if not math.isfinite(q):
        return "no_data"
    if q > alpha:
        return "not_shown"
    return "supported" if row["cnn"] > row["mlp"] else "contradicted"


def _similar(row: dict[str, Any]) -> str:
    if not math.isfinite(row["lo"]):
        return "no_data"
    if row["lo"] > SIMILAR or row["hi"] < 1 / SIMILAR:
        return "contradicted"
    return "supported" if 1 / SIMILAR <= row["lo"] and row["hi"] <= SIMILAR else "not_shown"


def _whole(scope: str, more: dict[str, Any], similar: dict[str, Any]) -> dict[str, Any]:
    said = {more["verdict"], similar["verdict"]}
    verdict = next((v for v in ("contradicted", "no_data", "not_shown") if v in said), "supported")
    reasons = [f"{part['claim']}: {part['reason']}" for part in (more, similar) if part["reason"]]
    who = {name: min(more[name], similar[name]) for name in ("n_cnn", "n_mlp", "n_trials")}
    row = {"claim": WHOLE_CLAIM, "scope": scope, **who, "rule": RULES[WHOLE_CLAIM], "verdict": verdict}
    return row | {"q": more["q"], "reason": "; ".join(reasons) if verdict == "no_data" else None}


def _nobody(made: sample.Design) -> dict[str, Any]:
    missing = [family for family in ("cnn", "mlp") if not (made.frame["family"] == family).any()]
    why = f"no {' and no '.join(missing)} in this sweep" if missing else "they have no data set in common"
    row = {"claim": WHOLE_CLAIM, "scope": WHOLE, "n_cnn": 0, "n_mlp": 0, "n_trials": 0, "rule": RULES[WHOLE_CLAIM]}
    return row | {"verdict": "no_data", "reason": why}
