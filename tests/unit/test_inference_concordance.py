"""The concordance analysis: planted events replicate, independent ones do not, and empty input gives empty tables."""

from typing import Any

import numpy as np
import pytest
from inference_tables import EVERY, LAYERS, STEPS, event_row, family_row, given, series_rows, trial_row

from ndt_ray.analysis.inference.concordance import concordance

READS = concordance.reads


def sweep(events: dict[str, list[tuple[int, str, float]]], seeds: int = 6, **more: Any) -> dict[str, Any]:
    """`events`: per model, (seed, layer, step)."""
    trials = {(m, s): trial_row(m, s) for m in events for s in range(seeds)}
    ids = {key: row["trial_id"] for key, row in trials.items()}
    rows = [event_row(ids[m, s], layer, step) for m, own in events.items() for s, layer, step in own]
    tests = [row for trial_id in ids.values() for row in series_rows(trial_id)]
    tables = {"trials": list(trials.values()), "events": rows, "series_tests": tests, "event_families": [family_row()]}
    return tables | more


def run(tables: dict[str, Any], **parameters: Any) -> tuple[Any, Any]:
    found = concordance(given(READS, **tables), **parameters)
    return found["concordance"].to_pandas(), found["replicated_events"].to_pandas()


def test_a_planted_event_replicates_and_is_named() -> None:
    rng = np.random.default_rng(0)
    planted = [(s, "b", 500 + float(rng.integers(-10, 11))) for s in range(5)]
    lone = [(s, "a", float(rng.uniform(20, STEPS))) for s in range(6)]
    rows, shared = run(sweep({"m": [*planted, *lone], "quiet": []}), n_surrogates=499)
    row = rows[(rows.cell == "m/digits") & (rows.layer == "b")].iloc[0]
    assert row.n_seeds == 6 and row.seeds_with == 5 and row.largest == 5 and row.q <= 0.05 and row.p_largest <= 0.05
    assert row.q >= row.p >= row.q_attainable / 2 and row.coincidences > 4 * row.expected_jitter
    found = shared[(shared.layer == "b")].iloc[0]
    assert (found.n_with, found.n_seeds) == (5, 6) and abs(found.step - 500) <= 2 * EVERY and len(found.trials) == 5
    assert found.phase == pytest.approx(found.step / STEPS) and found.direction == "increase"
    assert rows[(rows.cell == "m/digits") & (rows.layer == "a")].iloc[0].q > 0.05
    quiet = rows[rows.cell == "quiet/digits"]
    assert (quiet.reason == "no events").all() and quiet.p.isna().all() and quiet.q.isna().all()


def test_events_of_several_layers_at_once_are_one_event_of_the_seed() -> None:
    rows, _ = run(sweep({"m": [(s, layer, 300.0) for s in (0, 1) for layer in LAYERS]}), n_surrogates=99)
    whole = rows[rows.layer == "*"].iloc[0]
    assert (whole.n_events, whole.coincidences, whole.seeds_with) == (2, 1, 2)


def test_counts_of_events_stand_beside_what_false_ones_give() -> None:
    tables = sweep({"m": [(s, layer, 300.0) for s in (0, 1) for layer in LAYERS], "quiet": []})
    tables["event_families"] = [family_row(null_events=0.36, n_calibrated=36)]  # 0.01 in each of 2 x 6 x 3 series
    rows = run(tables, n_surrogates=99)[0].set_index(["cell", "layer"])
    one, whole = rows.loc[("quiet/digits", "a")], rows.loc[("m/digits", "*")]
    assert one.null_events == pytest.approx(0.06) and one.null_seeds_with == pytest.approx(6 * -np.expm1(-0.01))
    assert whole.null_events == pytest.approx(0.18) and whole.null_seeds_with == pytest.approx(6 * -np.expm1(-0.03))
    unknown = run(sweep({"m": []}), n_surrogates=99)[0]
    assert unknown["null_events"].isna().all() and unknown["null_seeds_with"].isna().all()


@pytest.mark.slow
def test_independent_sweeps_are_rarely_concordant() -> None:
    """60 cells x 3 layers whose events fall by one decaying rate: at most 10 of 180 at 0.05 (binomial: 9 + 3 SE 18)."""
    rng = np.random.default_rng(1)
    events = {
        f"m{k}": [
            (s, layer, float(t))
            for s in range(6)
            for layer in LAYERS
            for t in np.unique(np.round(rng.exponential(200, 2) / EVERY) * EVERY)
            if t < STEPS
        ]
        for k in range(60)
    }
    rows, _ = run(sweep(events), n_surrogates=99)
    single = rows[rows.layer != "*"]
    assert len(single) == 180 and (single.p <= 0.05).mean() <= 0.07 and (single.q <= 0.05).sum() == 0


def test_what_cannot_be_tested_says_why() -> None:
    one = sweep({"m": [(0, "a", 100.0), (0, "a", 300.0)]}, seeds=1)
    rows, shared = run(one)
    assert set(rows.reason) == {"one seed"} and rows.p.isna().all() and shared.empty
    rows, _ = run(sweep({"m": [(2, "a", 100.0), (2, "a", 400.0)]}))
    assert set(rows.reason) == {"events of one seed only", "no events"}
    for missing in ("trials", "events", "event_families", "series_tests"):
        tables = sweep({"m": [(0, "a", 100.0)]})
        tables[missing] = None
        rows, shared = run(tables)
        assert shared.empty and (rows.p.isna().all() if len(rows) else True)


def test_a_cell_without_a_tested_series_has_a_row_that_says_so() -> None:
    tables = sweep({"m": [(0, "a", 100.0)]}, seeds=2)
    for row in tables["series_tests"]:
        row["calibrated"] = False
    rows, _ = run(tables)
    assert rows[["layer", "n_seeds", "reason"]].to_numpy().tolist() == [["*", 0, "no series could be tested"]]


def test_controls_diverged_trials_and_uncalibrated_series_do_not_count() -> None:
    tables = sweep({"m": [(s, "a", 200.0) for s in range(6)]})
    control = trial_row("m", 9, control="lr0")
    tables["trials"].append(control)
    tables["series_tests"] += series_rows(control["trial_id"])
    tables["series_tests"][0] |= {"calibrated": False}
    lost = tables["trials"][1]["trial_id"]
    rows, _ = run(tables | {"outcomes": [{"trial_id": lost, "status": "diverged"}]}, n_surrogates=99)
    assert rows.set_index("layer").n_seeds.to_dict() == {"*": 5, "a": 4, "b": 5, "c": 5}


def test_the_same_input_gives_the_same_rows_in_any_order() -> None:
    tables = sweep({"m": [(s, "a", 200.0 + 3 * s) for s in range(4)], "n": [(1, "b", 40.0), (2, "b", 60.0)]})
    first = run(tables, n_surrogates=99)
    turned = {name: rows[::-1] for name, rows in tables.items()}
    for a, b in zip(first, run(turned, n_surrogates=99), strict=True):
        assert a.equals(b)


def test_families_of_control_lanes_are_not_the_sweeps() -> None:
    tables = sweep({"m": [(s, "a", 200.0) for s in range(3)]})
    tables["trials"].append(trial_row("m", 9, control="lr0"))
    tables["event_families"].append(family_row(family="lr0: main", primary=False))
    rows, _ = run(tables, n_surrogates=99)
    assert set(rows.family) == {"main"}
