"""How much of what a sweep says hangs on choices: every claim under every specification, and a robustness index.

Sources: Steegen et al. 2016 (multiverse analysis), Simonsohn et al. 2020 (specification curve and its joint test).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.cases import VELOCITIES
from ndt_ray.analysis.inference import sample
from ndt_ray.analysis.inference.claims import Claim, ConcentratedEarly, EventNear, Judged, MoreEvents
from ndt_ray.analysis.inference.compare import cell_status
from ndt_ray.analysis.inference.concordance_test import clusters
from ndt_ray.analysis.inference.contrasts import WHOLE, Member, pairs
from ndt_ray.analysis.inference.outcomes import chosen, number
from ndt_ray.analysis.inference.specifications import Specified, by_families, by_rules
from ndt_ray.analysis.inference.tables import ROBUSTNESS, SPECIFICATION_CURVE

RULES: tuple[Mapping[str, Any], ...] = (
    {"detector": "difference_z", "threshold": 2.0},
    {"detector": "difference_z", "threshold": 3.0},
    {"detector": "difference_z", "threshold": 4.0},
    {"detector": "smoothed_gradient", "threshold": 2.0, "sigma": 1.0},
    {"detector": "smoothed_gradient", "threshold": 2.0, "sigma": 3.0},
    {"detector": "rolling_level", "threshold": 3.0, "window": 20, "min_samples": 10},
    {"detector": "rolling_level", "threshold": 3.0, "window": 50},
    {"detector": "rolling_level", "threshold": 5.0, "window": 50},
    {"detector": "local_contrast", "threshold": 5.0},
    {"detector": "local_contrast", "threshold": 8.0},
)
_CHOICES = ("measure", "centring", "view", "detector", "threshold", "window", "null")


@analysis(
    name="multiverse",
    reads=(
        "trials",
        "outcomes",
        "evaluations",
        "sweeps",
        "measurements",
        "velocity",
        "other_views",
        "events",
        "event_families",
        "event_candidates",
        "series_tests",
    ),
    writes=(SPECIFICATION_CURVE, ROBUSTNESS),
    per="sweep",
)
def multiverse(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = ("participation_ratio", "stable_rank", "nuclear_norm_ratio"),
    velocities: Sequence[str] = VELOCITIES,
    rules: Sequence[Mapping[str, Any]] = RULES,
    alphas: Sequence[float] = (0.01, 0.05, 0.2),
    alpha: float = 0.05,
    most_events: int = 20,
    tolerance: float = 2.0,
) -> dict[str, pd.DataFrame]:
    """The sweep's claims over measure, centring, view, detector, threshold, window and null; how many agree.

    Claims: which level has more events, whether they come early, and which events most seeds share (`most_events`).
    The primary specification is the declared family at `alpha`; without calibrated events, the first rule's. Cells
    that never trained are left out.
    """
    everyone, outcomes = data.frame("trials"), data.frame("outcomes")
    trials = sample.usable(everyone, outcomes)
    if len(trials):
        status = cell_status(everyone, outcomes, data.frame("evaluations"))
        trials = trials[~trials["cell"].isin(status.loc[status["excluded"].astype(bool), "cell"])]
    specs = _specifications(data, trials, measures, velocities, rules, alphas, alpha) if len(trials) else []
    if not specs:
        return {"specification_curve": pd.DataFrame(), "robustness": pd.DataFrame()}
    made = sample.design(trials.reset_index(drop=True), data.frame("sweeps"))
    claims: list[Claim] = [*_comparisons(made), *_early(trials), *_events(data, trials, specs, tolerance, most_events)]
    curve, summary = [], []
    primary = next(spec for spec in specs if spec.primary)
    for claim in claims:
        if isinstance(claim, MoreEvents) and (claim.judge(primary).sign or 0) < 0:
            claim = claim.turned()  # said as the primary specification has it
        judged = [claim.judge(spec) for spec in specs]
        curve += [_row(claim, spec, found, alpha) for spec, found in zip(specs, judged, strict=True)]
        summary.append(_summary(claim, curve[-len(specs) :], judged, alpha))
    return {"specification_curve": pd.DataFrame(curve), "robustness": pd.DataFrame(summary)}


def _specifications(
    data: AnalysisInput,
    trials: pd.DataFrame,
    measures: Sequence[str],
    velocities: Sequence[str],
    rules: Sequence[Mapping[str, Any]],
    alphas: Sequence[float],
    alpha: float,
) -> list[Specified]:
    columns = [c for m in measures for c in (m, f"{m}_uncentred")]
    wanted = ("trial_id", "step", "layer", "layer_index", "view", *columns)
    own, further = (chosen(data, table, wanted) for table in ("measurements", "other_views"))
    rows = pd.concat([own, further], ignore_index=True) if len(further) else own
    rows = rows[rows["trial_id"].isin(trials["trial_id"])] if len(rows) else rows
    moves = chosen(data, "velocity", ("trial_id", "step", "previous_step", "layer", "layer_index", *velocities))
    every = {t: e for t, text in zip(trials["trial_id"], trials["spec"], strict=True) if (e := _every(text))}
    families = sample.families(data.frame("event_families"), data.frame("trials"))
    rates = tuple(dict.fromkeys((*alphas, alpha)))
    ids = list(trials["trial_id"])
    found = by_families(data.frame("series_tests"), data.frame("event_candidates"), families, ids, rates, alpha)
    found += by_rules(rows, moves, every, measures, velocities, rules)
    if found and not any(spec.primary for spec in found):
        found[0].primary = True
    return found


def _every(text: Any) -> int | None:
    """The distance of a trial's measurements; None where its spec names none."""
    try:
        return int(json.loads(text)["measure"]["every"])
    except (KeyError, TypeError, ValueError):
        return None


# -- claims ----------------------------------------------------------------------------------------------------------


def _comparisons(made: sample.Design) -> Iterator[MoreEvents]:
    for pair in pairs(made, None, {}):
        if pair.stratum == WHOLE:
            yield MoreEvents(pair.level_a, pair.level_b, _by_unit(pair.a), _by_unit(pair.b))


def _by_unit(members: Sequence[Member]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for member in members:
        found.setdefault(member.unit, []).append(member.trial_id)
    return found


def _early(trials: pd.DataFrame) -> Iterator[ConcentratedEarly]:
    steps = {str(t): int(s) for t, s in zip(trials["trial_id"], trials["steps"], strict=True) if pd.notna(s)}
    yield ConcentratedEarly("the sweep", steps)
    for cell, own in trials.groupby("cell", sort=True):
        yield ConcentratedEarly(str(cell), {t: steps[t] for t in own["trial_id"] if t in steps})


def _events(
    data: AnalysisInput, trials: pd.DataFrame, specs: Sequence[Specified], tolerance: float, most: int
) -> list[EventNear]:
    """Events that at least half of a cell's seeds share under the primary specification; those of most seeds first."""
    primary = next(spec for spec in specs if spec.primary)
    found: list[tuple[float, EventNear]] = []
    for cell, own in trials.groupby("cell", sort=True):
        ids = list(own["trial_id"])
        every = max((_every(text) or 1 for text in own["spec"]), default=1)
        places = {layer: [t for t in ids if (t, layer) in primary.events] for _, layer in primary.events}
        for layer, holders in sorted(places.items()):
            events = [(ids.index(t), time, r) for t in holders for time, r in primary.events[t, layer]]
            if not events:
                continue
            reach = max(tolerance * every, float(np.median([r for _, _, r in events])) / 2)
            times = np.array([time for _, time, _ in events])
            seeds = np.array([seed for seed, _, _ in events])
            for inside in clusters(times, seeds, reach):
                share = len(np.unique(seeds[inside])) / len(ids)
                if share >= 0.5:
                    step = float(np.median(times[inside]))
                    found.append((share, EventNear(str(cell), layer, step, reach, tuple(ids))))
    return [claim for _, claim in sorted(found, key=lambda pair: -pair[0])[:most]]


# -- rows ------------------------------------------------------------------------------------------------------------


def _row(claim: Claim, spec: Specified, found: Judged, alpha: float) -> dict[str, Any]:
    row: dict[str, Any] = {"claim": claim.text, "kind": claim.kind, "specification": spec.choices.name}
    row |= {"declared": spec.primary, **{name: getattr(spec.choices, name) for name in _CHOICES}}
    known = not math.isnan(found.p)
    row |= {"n": found.n, "estimate": number(found.estimate), "sign": found.sign, "p": number(found.p)}
    return row | {"significant": bool(found.p <= alpha) if known else None, "reason": found.reason}


def _summary(claim: Claim, rows: list[dict[str, Any]], judged: Sequence[Judged], alpha: float) -> dict[str, Any]:
    primary = next(row for row in rows if row["declared"])
    known = [row for row in rows if row["estimate"] is not None]
    found: dict[str, Any] = dict.fromkeys(c.name for c in ROBUSTNESS.columns)
    found |= {"claim": claim.text, "kind": claim.kind, "declared": primary["specification"]}
    found |= {"estimate": primary["estimate"], "significant": primary["significant"], "n_specifications": len(known)}
    if primary["estimate"] is None:
        return found | {"reason": f"primary specification: {primary['reason']}"}
    values = [row["estimate"] for row in known]
    alike = [row["sign"] == primary["sign"] for row in known]
    same = [a and row["significant"] == primary["significant"] for a, row in zip(alike, known, strict=True)]
    found |= {"same_sign": float(np.mean(alike)), "same_verdict": float(np.mean(same))}
    found |= {"lowest": min(values), "median": float(np.median(values)), "highest": max(values)}
    joint = claim.curve(judged, alpha, primary["sign"]) if primary["sign"] else None  # of no direction, no curve
    return found | {"most_divisive": _divisive(known, same), "p_curve": joint}


def _divisive(rows: list[dict[str, Any]], same: list[bool]) -> str | None:
    """The choice whose options differ most in their share of agreement; None where all agree alike."""
    spread: dict[str, float] = {}
    for choice in _CHOICES:
        shares: dict[Any, list[bool]] = {}
        for row, agrees in zip(rows, same, strict=True):
            shares.setdefault(row[choice], []).append(agrees)
        means = [float(np.mean(own)) for own in shares.values()]
        spread[choice] = max(means) - min(means)
    best = max(_CHOICES, key=lambda choice: spread[choice])
    return best if spread[best] > 0 else None
