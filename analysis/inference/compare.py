"""Levels of the compare axes against each other, with the seed as the unit; and which cells learned anything."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.inference import sample, seeds
from ndt_ray.analysis.inference.contrasts import WHOLE, Rules, compared, pairs, powered
from ndt_ray.analysis.inference.multiplicity import attainable_q, bh, holm
from ndt_ray.analysis.inference.outcomes import ABOUT_LEARNING, READS, Outcome, all_outcomes, estimate
from ndt_ray.analysis.inference.tables import CELL_ESTIMATES, CELL_STATUS, COMPARISONS, INTERVAL_COVERAGE
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.plan.power import ALPHA, CONFIRMATORY, EFFECT, PAIRINGS

MEASURES = ("participation_ratio", "stable_rank")
PHASES = (0.0, 0.1, 0.5, 1.0)
_SIMULATED = ("normal", "exponential", "poisson_1")


@analysis(
    name="compare",
    reads=READS,
    writes=(CELL_STATUS, CELL_ESTIMATES, COMPARISONS, INTERVAL_COVERAGE),
    per="sweep",
)
def compare(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = MEASURES,
    phases: Sequence[float] = PHASES,
    confirmatory: Sequence[str] = CONFIRMATORY,
    against: str | None = None,
    group: Mapping[str, str] = {},
    pairing: str = "auto",
    effect: float = EFFECT,
    alpha: float = ALPHA,
    simulations: int = 500,
) -> dict[str, pd.DataFrame]:
    """Architectures, data sets and other compared levels by events, event times, measures and accuracy over seeds.

    Groups of seeds are unpaired unless batches are shared and pairs can reach alpha (`pairing`: auto, paired,
    unpaired). Holm over the `confirmatory` outcomes of all contrasts over all strata, Benjamini-Hochberg over the
    rest. `against`: one level that the others are compared with; `group`: pattern to name, levels taken together;
    `effect`: in SDs between seeds, what the power in each row (and in `ndt plan`) is for.
    """
    if pairing not in PAIRINGS:
        raise SpecError(f"compare: unknown pairing '{pairing}'{did_you_mean(pairing, PAIRINGS)}")
    everyone, ended = data.frame("trials"), data.frame("outcomes")
    trials = sample.usable(everyone, ended)
    if trials.empty:
        empty = pd.DataFrame()
        return {t.name: empty for t in (CELL_STATUS, CELL_ESTIMATES, COMPARISONS, INTERVAL_COVERAGE)}
    status = cell_status(everyone, ended, data.frame("evaluations"))
    excluded = set(status.loc[status["excluded"].astype(bool), "cell"])
    outcomes = all_outcomes(data, trials, measures, phases)
    made = sample.design(trials, data.frame("sweeps"))
    rules = Rules(alpha, effect, pairing, made.unit)
    estimates = _estimates(made, outcomes, excluded)
    rows = _comparisons(made, outcomes, excluded, rules, tuple(confirmatory), against, dict(group))
    return {
        "cell_status": status,
        "cell_estimates": pd.DataFrame(estimates),
        "comparisons": pd.DataFrame(rows),
        "interval_coverage": _coverage({row["n"] for row in estimates if row["n"] > 1}, simulations),
    }


def cell_status(trials: pd.DataFrame, outcomes: pd.DataFrame, evaluations: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, controls counted but not judged. `excluded`: no trial of it is above chance."""
    statuses = outcomes.set_index("trial_id")["status"].to_dict() if len(outcomes) else {}
    judged = sample.trained(trials["trial_id"], evaluations).set_index("trial_id")
    rows = []
    for cell, own in trials.groupby("cell", sort=True):
        real = own[own["control"].fillna("none") == "none"]
        ends = Counter(statuses.get(trial_id) for trial_id in real["trial_id"])
        found = judged.loc[real["trial_id"]]
        known = found[found["trained"].notna()]
        n_trained = int(known["trained"].astype(bool).sum())
        word = sample.cell_word(found["trained"])
        rows.append(
            {
                "cell": cell,
                "n_trials": len(real),
                "n_finished": ends["finished"],
                "n_lost": ends["diverged"] + ends["failed"],
                "n_controls": len(own) - len(real),
                "n_evaluated": len(known),
                "n_trained": n_trained,
                "accuracy": _mean(found["accuracy"]),
                "balanced_accuracy": _mean(found["balanced"]),
                "chance": _mean(found["chance"]),
                "margin": _mean(found["margin"]),
                "n_held_out": None if known.empty else int(known["n"].min()),
                "status": word,
                "excluded": word == "never_trained",
            }
        )
    return pd.DataFrame(rows)


def _mean(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.astype(float).mean()) if len(known) else None


def _estimates(made: sample.Design, outcomes: Sequence[Outcome], excluded: set[str]) -> list[dict[str, Any]]:
    rows = []
    for outcome in outcomes:
        for cell, units in sample.by_unit(made, outcome.values).items():
            row: dict[str, Any] = {"family": outcome.family, "cell": cell, "outcome": outcome.name}
            row |= {"null_mean": outcome.null} | estimate(list(units.values()))
            if cell in excluded and outcome.name not in ABOUT_LEARNING:
                row["reason"] = "; ".join(filter(None, ["cell never trained", row["reason"]]))
            rows.append(row)
    return rows


def _comparisons(
    made: sample.Design,
    outcomes: Sequence[Outcome],
    excluded: set[str],
    rules: Rules,
    confirmatory: tuple[str, ...],
    against: str | None,
    groups: dict[str, str],
) -> list[dict[str, Any]]:
    found = list(pairs(made, against, groups))
    declared = [o for o in outcomes if o.primary and o.name in confirmatory]
    # What was declared counts, also where there are no events yet: the design must not depend on the outcome.
    count = max(1, max(len(declared), len(confirmatory)) * sum(pair.stratum == WHOLE for pair in found))
    rows = []
    for pair in found:
        for outcome in outcomes:
            row = compared(pair, outcome, excluded, rules, count)
            row["confirmatory"] = pair.stratum == WHOLE and outcome in declared
            rows.append(row)
    for is_declared in (True, False):
        _adjust([row for row in rows if row["confirmatory"] is is_declared], is_declared, count, rules)
    return rows


def _adjust(rows: list[dict[str, Any]], declared: bool, count: int, rules: Rules) -> None:
    """Adjusted p, and the power of what was declared, in place; what was declared counts also where it has no p."""
    p = np.array([np.nan if row["p"] is None else row["p"] for row in rows], dtype=np.float64)
    tested = int(np.isfinite(p).sum())
    family = count if declared else tested
    if declared and tested:
        p = np.concatenate([p, np.ones(family - tested)])
    adjusted = (holm if declared else bh)(p)[: len(rows)]
    for row, value in zip(rows, adjusted, strict=True):
        row |= {"adjustment": "holm" if declared else "bh", "n_comparisons": family}
        if row["p"] is not None:
            row["p_adjusted"] = float(value)
            row["significant"] = bool(value <= rules.alpha)
        if row["smallest_p"] is not None and family:
            row["smallest_p_adjusted"] = attainable_q(family, row["smallest_p"])
        if declared and min(row["n_a"], row["n_b"]) > 0:
            powered(row, family, rules)


def _coverage(sizes: set[int], simulations: int) -> pd.DataFrame:
    rows = [
        {
            "n": n,
            "interval": method,
            "population": population,
            "coverage": seeds.coverage(n, method, population, simulations),
            "simulations": simulations,
            "recommended": method == seeds.recommended(n),
        }
        for n in sorted(sizes)
        for method in seeds.methods()
        for population in _SIMULATED
    ]
    return pd.DataFrame(rows)
