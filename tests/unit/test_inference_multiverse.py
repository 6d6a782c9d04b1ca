"""The multiverse: planted claims survive the choices, noise does not, and every row names its specification."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from inference_tables import EVERY, FAMILY, STEPS, family_row, given, series_rows, sweep_row, trial_row

from ndt_ray.analysis.inference.claims import ConcentratedEarly, EventNear, MoreEvents, _tail
from ndt_ray.analysis.inference.multiverse import multiverse
from ndt_ray.analysis.inference.specifications import Choices, Found, Specified
from ndt_ray.errors import SpecError

RULES = [
    {"detector": "difference_z", "threshold": 3.0},
    {"detector": "difference_z", "threshold": 4.0},
    {"detector": "local_contrast", "threshold": 8.0},
]
JUMP = 300
PER_FAMILY = len(RULES) * 4
"""Specifications of the rules: two measures, centred and not."""


def sweep(
    jumps: dict[str, bool], seeds: int = 6, rng_seed: int = 0, layers: tuple[str, ...] = ("a", "b")
) -> dict[str, Any]:
    """Noisy series of two measures, a step at 300 where the model jumps."""
    rng = np.random.default_rng(rng_seed)
    trials = [trial_row(m, s) for m in jumps for s in range(seeds)]
    rows = []
    for trial in trials:
        for i, layer in enumerate(layers):
            step = 3.0 * jumps[trial["model"]] * (np.arange(0, STEPS + 1, EVERY) > JUMP)
            values = 10 + step[:, None] + 0.2 * rng.standard_normal((len(step), 4))
            names = ("participation_ratio", "stable_rank")
            columns = [c for n in names for c in (n, f"{n}_uncentred")]
            rows += [
                {"trial_id": trial["trial_id"], "layer": layer, "layer_index": i, "view": "units", "step": k * EVERY}
                | dict(zip(columns, row, strict=True))
                for k, row in enumerate(values)
            ]
    return {"trials": trials, "measurements": rows, "sweeps": sweep_row(list(jumps), seeds)}


def run(tables: dict[str, Any], **parameters: Any) -> tuple[Any, Any]:
    measures = ("participation_ratio", "stable_rank")
    found = multiverse(given(multiverse.reads, **tables), **({"rules": RULES, "measures": measures} | parameters))
    return found["specification_curve"].to_pandas(), found["robustness"].to_pandas()


def test_further_views_are_a_choice_and_layers_without_them_keep_their_own() -> None:
    tables = sweep({"m": True, "quiet": False})
    of_m = {t["trial_id"] for t in tables["trials"] if t["model"] == "m"}
    rng = np.random.default_rng(1)
    flat = [
        row | {"view": "flat", "participation_ratio": 10 + 0.2 * rng.standard_normal()}
        for row in tables["measurements"]
        if row["trial_id"] in of_m and row["layer"] == "a"
    ]
    curve, robustness = run(tables | {"other_views": flat})
    assert (
        set(curve["view"]) == {"*", "flat"} and (curve.groupby("view")["specification"].nunique() == PER_FAMILY).all()
    )
    claim = curve[curve["claim"] == "m has more events per layer-series than quiet"]
    own, flattened = (claim[(claim["view"] == v) & (claim["measure"] == "participation_ratio")] for v in ("*", "flat"))
    assert (claim["n"] == claim["n"].max()).all()  # the same trials in every view
    ratio = flattened.set_index(["centring", "detector", "threshold"])["estimate"]
    ratio = ratio / own.set_index(["centring", "detector", "threshold"])["estimate"]
    assert (ratio.xs("centred") < 0.7).all() and (ratio.drop("centred") > 0.9).all()  # no jump of a in that view


def test_planted_claims_survive_every_choice() -> None:
    curve, robustness = run(sweep({"m": True, "quiet": False}))
    found = robustness.set_index("claim")
    more = found.loc["m has more events per layer-series than quiet"]
    assert more.n_specifications == PER_FAMILY and more.same_sign == 1 and more.same_verdict >= 0.75
    assert more.p_curve <= 0.05 and more.estimate > 0.5 and more.lowest <= more["median"] <= more.highest
    near = found.loc["seeds of m/digits have an event of a near step 305"]
    assert (
        near.same_verdict == 1
        and near.estimate > 0.8
        and not isinstance(near.most_divisive, str)
        and np.isnan(near.p_curve)
    )
    assert not any(claim.startswith("seeds of quiet") for claim in found.index)
    assert len(curve) == PER_FAMILY * len(robustness) and curve.groupby("claim").declared.sum().eq(1).all()
    assert set(curve.centring) == {"centred", "uncentred"} and set(curve.threshold) == {3, 4, 8}
    assert not curve.duplicated(["claim", "specification"]).any()


def test_velocities_are_specifications_of_every_rule() -> None:
    """A layer that turns at 300 while its spectrum stays: measures are silent about it, velocity is not."""
    tables = sweep({"m": False, "quiet": False})
    rng, steps = np.random.default_rng(2), np.arange(EVERY, STEPS + 1, EVERY)
    tables["velocity"] = [
        {"trial_id": t["trial_id"], "layer": layer, "layer_index": i, "step": int(step)}
        | {"previous_step": int(step) - EVERY, "velocity": float(np.exp(rng.normal(-7, 0.1) + 3 * turns))}
        for t in tables["trials"]
        for i, layer in enumerate("ab")
        for step, turns in zip(steps, (steps == JUMP) & (t["model"] == "m"), strict=True)
    ]
    curve, _ = run(tables)
    claim = curve[curve["claim"] == "m has more events per layer-series than quiet"]
    moving = claim[claim["measure"] == "velocity"].set_index("detector")
    assert len(claim) == PER_FAMILY + len(RULES) and set(moving["centring"]) == {"kernel"}
    assert (moving.loc["difference_z", "estimate"] > 0).all() and (moving.loc["difference_z", "p"] < 0.05).all()
    assert not (claim.loc[claim["measure"] != "velocity", "p"] < 0.01).any()
    assert len(run(tables, velocities=())[0].query("measure == 'velocity'")) == 0


def test_trials_that_never_said_how_long_they_would_be_are_counted_and_have_no_early_events() -> None:
    """A tracked script has no length: only what speaks of phases leaves it out."""
    tables = sweep({"m": True, "quiet": False})
    unsaid = tables | {"trials": [t | {"steps": None} for t in tables["trials"]]}
    known, there = run(tables)[0], run(unsaid)[0]
    early, of_unsaid = (curve["claim"].str.contains("concentrate") for curve in (known, there))
    assert known.loc[early, "n"].max() > 0 and not there.loc[of_unsaid, "n"].any()
    assert set(there.loc[of_unsaid, "reason"]) == {"no trial says how long it is"}
    pd.testing.assert_frame_equal(known[~early].reset_index(drop=True), there[~of_unsaid].reset_index(drop=True))


@pytest.mark.slow
def test_noise_makes_no_robust_claim() -> None:
    """12 sweeps of two equal models: a joint curve p at 0.05 in one or two at most."""
    hits = 0
    for k in range(12):
        _, robustness = run(sweep({"m": False, "n": False}, rng_seed=k, layers=("a",)), rules=RULES[:2])
        hits += int((robustness[robustness.kind == "more_events"].p_curve <= 0.05).any())
    assert hits <= 2


def test_calibrated_families_are_specifications_and_the_declared_one_is_primary() -> None:
    tables = sweep({"m": True, "quiet": False}, seeds=3)
    p = {t["trial_id"]: 0.001 if t["model"] == "m" else 0.6 for t in tables["trials"]}
    tables["series_tests"] = [r | {"p": p[t]} for t in p for r in series_rows(t, ("a", "b"))]
    tables["event_families"] = [family_row()]
    base = {**FAMILY, "layer": "a", "layer_index": 0, "view": "units", "step_before": 300, "step_after": 310}
    tables["event_candidates"] = [
        base | {"trial_id": t, "step_location": 304.0, "width": 10.0, "p_event": 0.001} for t in p
    ]
    curve, robustness = run(tables, alphas=(0.01, 0.2), alpha=0.05)
    own = curve[curve.detector == "calibrated"]
    assert set(own.threshold) == {0.01, 0.05, 0.2} and set(own.null) == {"ar_sieve"}
    assert robustness.declared.unique().tolist() == ["participation_ratio centred calibrated >0.05 ar_sieve"]
    more = robustness.set_index("claim").loc["m has more events per layer-series than quiet"]
    assert more.estimate == pytest.approx(0.5)  # one event in two series; the quiet model's series were not selected
    assert "seeds of m/digits have an event of a near step 304" in set(robustness.claim)


def specified(events: list[Found], trials: int = 6) -> Specified:
    spec = Specified(Choices("m", "centred", "*", "d", 1.0, None, "none"))
    for k in range(trials):
        spec.judged(f"t{k}", "a", 10.0, 1000.0)
    spec.add(events)
    return spec


def test_claims_by_hand() -> None:
    steps = {f"t{k}": 1000 for k in range(6)}
    early = ConcentratedEarly("x", steps).judge(specified([Found(f"t{k}", "a", 50.0, 5.0) for k in range(6)]))
    assert early.estimate == pytest.approx(1 - 90 / 990) and early.p == pytest.approx(2 / 400)
    more = MoreEvents("a", "b", {"0": ["t0"], "1": ["t1"]}, {"0": ["t2"], "1": ["t3"]})
    found = more.judge(specified([Found("t0", "a", 5.0, 1.0), Found("t1", "a", 5.0, 1.0)]))
    assert found.estimate == 1 and found.p == pytest.approx(2 / 6) and more.turned().judge(specified([])).sign == 0
    near = EventNear("c", "a", 500.0, 20.0, tuple(steps))
    assert near.judge(specified([Found("t0", "a", 510.0, 5.0)])).n == 6
    everywhere = [Found(f"t{k}", "a", float(t), 5.0) for k in range(6) for t in range(20, 1000, 30)]
    flooded = near.judge(specified(everywhere))
    assert flooded.estimate == pytest.approx(0.25, abs=0.05) and flooded.p > 0.1
    assert _tail([0.5, 0.5], 1) == pytest.approx(0.75) and _tail([], 0) == 1


def test_claims_hold_their_level_where_there_is_nothing() -> None:
    """300 sweeps of 6 + 6 trials with one or two events anywhere: 5 % + 3 SE at most, single and joint."""
    rng = np.random.default_rng(2)
    steps = {f"t{k}": 1000 for k in range(12)}
    early = ConcentratedEarly("x", steps)
    more = MoreEvents("a", "b", *({str(k): [f"t{k + 6 * side}"] for k in range(6)} for side in (0, 1)))
    single, joint = [], []
    for _ in range(300):
        events = [
            Found(f"t{k}", "a", float(t), 5.0) for k in range(12) for t in rng.uniform(10, 1000, rng.integers(1, 3))
        ]
        specs = [specified(events, 12), specified([e for e in events if rng.random() < 0.7], 12)]
        for claim in (early, more):
            judged = [claim.judge(spec) for spec in specs]
            single.append(judged[0].p <= 0.05)
            joint.append((claim.curve(judged, 0.05, judged[0].sign or 1) or 1.0) <= 0.05)
    assert np.mean(single) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    assert np.mean(joint) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


def test_bad_input() -> None:
    assert all(table.empty for table in run({}))
    curve, robustness = run(sweep({"m": True, "quiet": False}, seeds=1))
    more = curve[curve.kind == "more_events"]
    assert (more.reason == "one seed").all() and more.p.isna().all() and more.estimate.notna().all()
    assert robustness[robustness.kind == "more_events"].p_curve.isna().all()
    constant = sweep({"m": False}, seeds=2)
    for row in constant["measurements"]:
        row |= dict.fromkeys(("participation_ratio", "participation_ratio_uncentred"), 1.0)
        row |= dict.fromkeys(("stable_rank", "stable_rank_uncentred"), float("nan"))
    curve, robustness = run(constant)
    assert (curve.reason == "no events").all() and robustness.reason.str.startswith("primary specification").all()
    with pytest.raises(SpecError, match="alike"):
        run(sweep({"m": True}, seeds=1), rules=[RULES[0], RULES[0]])
    with pytest.raises(SpecError, match="difference_z"):
        run(sweep({"m": True}, seeds=1), rules=[{"detector": "diference_z"}])
