"""Changes at events against those of matched windows: planted ones are found, windows drawn at random find nothing."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.mechanisms import changes
from ndt_ray.analysis.mechanisms.before_after import concerned
from ndt_ray.analysis.mechanisms.changes import Change, Windows, change_over
from ndt_ray.analysis.mechanisms.matching import arms, around_events, selected
from ndt_ray.analysis.mechanisms.pseudo import false_discoveries, pseudo_events
from ndt_ray.analysis.mechanisms.simulated import Design, run, simulate, tables

SMALL = Design(trials=6, layers=2, metrics=8, steps=1200, every=10, events=2)


@pytest.fixture(scope="module")
def planted() -> tuple[dict[str, pd.DataFrame], pd.DataFrame, pd.DataFrame]:
    given = tables(simulate(Design(**{**vars(SMALL), "planted": 4.0, "planted_metrics": 2}), "planted"))
    return given, *run(given)


def test_planted_changes_are_found_with_their_size(planted: tuple[Any, pd.DataFrame, pd.DataFrame]) -> None:
    _, rows, tests = planted
    by_metric = tests.set_index("metric")
    assert (by_metric.loc[["metric 0", "metric 1"], "q"] < 0.05).all()
    assert (by_metric.drop(index=["metric 0", "metric 1"])["q"] > 0.05).all()
    assert by_metric.loc["metric 0", "n_trials"] == 6 and by_metric.loc["metric 0", "p_sign"] == pytest.approx(2 / 64)
    assert (by_metric.loc[["metric 0", "metric 1"], "seed_q"] < 0.05).all()
    mine = rows[rows["metric"] == "metric 0"]
    assert mine["difference"].mean() == pytest.approx(4, abs=0.8)  # in noise SDs, as planted
    np.testing.assert_allclose(mine["change"], mine["after"] - mine["before"])
    np.testing.assert_allclose(mine["difference"], mine["change"] - mine["control_mean"])
    lo, hi, middle = (by_metric.loc["metric 0", name] for name in ("lo", "hi", "difference"))
    assert lo < middle < hi and not tests["exploratory"].any()


@pytest.mark.slow
def test_what_only_some_sweeps_compute_is_compared_like_the_rest(
    planted: tuple[dict[str, pd.DataFrame], pd.DataFrame, pd.DataFrame],
) -> None:
    given, rows, tests = planted
    units = given["unit_metrics"]
    moved = units["metric"] == "metric 0"
    own = units[moved].assign(metric="unit_weight_similarity")
    setting = own.assign(metric="llc_step_size")
    tables_ = {"unit_metrics": units[~moved], "symmetry_metrics": own, "llc_metrics": setting}
    again, tested = run(given | tables_)
    assert set(tested["metric"]) == set(tests["metric"]) - {"metric 0"} | {"unit_weight_similarity"}
    before, after = (t.set_index("metric") for t in (tests, tested))
    assert after.loc["unit_weight_similarity", "q"] == before.loc["metric 0", "q"] and len(again) == len(rows)


def test_controls_are_matched_and_the_unmatched_stand_beside(planted: tuple[Any, pd.DataFrame, pd.DataFrame]) -> None:
    given, rows, _ = planted
    assert rows["n_controls"].between(0, 5).all() and (rows["n_controls"] >= 3).mean() > 0.5
    assert (rows["n_unmatched"] >= rows["n_controls"]).all() and rows["unmatched_difference"].notna().all()
    assert set(rows.loc[rows["p"].isna(), "flag"]) <= {"few_controls", "no_controls"}
    first = rows.iloc[0]
    series = given["unit_metrics"].query(
        f"trial_id == '{first.trial_id}' and layer == '{first.layer}' and metric == '{first.metric}'"
    )
    values = series.set_index("step")["value"]
    assert first.initial == values[0] and first.before == values[first.checkpoint_before]
    assert first.checkpoint_before == first.step_before and first.checkpoint_after == first.step_after
    if not pd.isna(first.checkpoint_during):
        assert first.during == values[first.checkpoint_during]


@pytest.mark.slow
@pytest.mark.parametrize("design", ["gauss", "heavy"])
def test_pseudo_events_find_nothing(design: str) -> None:
    """Replicates through the analysis itself; `benchmarks/battery.py --calibrate` does 200 of each design."""
    extra = {"gauss": {}, "heavy": {"heavy": True, "phi": 0.9, "fading": 2.0}}[design]
    hits, small = [], []
    for i in range(6):
        rows, tests = run(tables(simulate(Design(**{**vars(SMALL), "layers": 1, **extra}), design, str(i))))
        hits.append(bool((rows[["q", "seed_q"]] < 0.05).any(axis=None)))
        hits.append(bool((tests[["q", "seed_q"]] < 0.05).any(axis=None)))
        small += (rows["p"].dropna() <= 0.05).tolist()
    assert sum(hits) <= 4  # of 12, each of two families at 0.05
    assert np.mean(small) < 0.1


def test_without_significant_events_the_first_candidates_are_exploratory() -> None:
    rows, tests = run(tables(simulate(SMALL, "x"), significant=False), candidates=1)
    assert rows["exploratory"].all() and tests["exploratory"].all()
    assert rows.drop_duplicates(["trial_id", "layer", "step_before"]).groupby("trial_id").size().eq(1).all()


def test_nothing_in_gives_nothing_out() -> None:
    given = tables(simulate(SMALL, "x"))
    for gone in ("trials", "events", "unit_metrics"):
        rows, tests = run({name: table for name, table in given.items() if name != gone})
        assert rows.empty and tests.empty, gone


def test_events_without_any_checkpoint_near_them_give_nothing() -> None:
    rows, tests = run(tables(simulate(SMALL, "x")), widest=0.0)
    assert rows.empty and tests.empty


@pytest.mark.slow
def test_without_distances_of_weights_nothing_is_matched_but_all_is_shown() -> None:
    given = tables(simulate(SMALL, "x"))
    rows, tests = run({name: table for name, table in given.items() if name != "weight_distances"})
    assert len(rows) and set(rows["flag"]) == {"no_controls"} and rows["p"].isna().all() and rows["q"].isna().all()
    assert set(rows["lacking"]) <= {"length", "phase", "displacement"} and "displacement" in set(rows["lacking"])
    assert set(tests["flag"]) == {"no_controls"} and rows["unmatched_difference"].notna().all()


@pytest.mark.slow
def test_what_leaves_an_event_without_controls_is_said() -> None:
    given = tables(simulate(Design(**{**vars(SMALL), "layers": 1, "events": 1}), "said"))
    rows, _ = run(given)
    assert rows["lacking"].isna().equals(rows["n_controls"] >= 3) and (rows["n_controls"] >= 3).any()
    steps = given["unit_metrics"]["step"]
    planned = given["trials"].assign(steps=10 * steps.max())  # 5 % of the plan: every window is near enough
    wide, _ = run(given | {"trials": planned})
    assert "phase" not in set(wide["lacking"].dropna())
    narrow, _ = run(given | {"trials": planned.assign(steps=steps.max() // 4)}, widest=10.0)
    assert set(narrow["lacking"].dropna()) == {"phase"} and (narrow["n_controls"] < 3).all()
    scalars = given["scalars"].assign(lr=np.geomspace(1.0, 1e-9, len(given["scalars"])))  # no two windows share a rate
    assert "lr" in set(run(given | {"scalars": scalars})[0]["lacking"].dropna())
    events = given["events"]
    around = [events["step_before"].min(), events["step_after"].max(), 0]
    few = {name: t[t["step"].isin(around)] if "step" in t and name != "scalars" else t for name, t in given.items()}
    assert set(run(few, widest=1.0)[0]["lacking"]) == {"length"}


def test_one_seed_has_differences_and_no_test() -> None:
    rows, tests = run(tables(simulate(Design(**{**vars(SMALL), "trials": 1}), "x")))
    assert rows["difference"].notna().any() and tests["p"].isna().all() and set(tests["flag"]) == {"few_trials"}


def test_an_event_without_checkpoints_near_it_is_left_out() -> None:
    events = pd.DataFrame(
        [{"trial_id": "a", "layer": "l", "layer_index": 0, "step_before": 500, "step_after": 520, "exploratory": False}]
    ).assign(step_location=np.nan)
    trials = pd.DataFrame([{"trial_id": "a", "steps": 1000}])
    found = around_events(events, {"a": np.array([0, 490, 512, 530])}, trials, 0.25)
    assert found[["start", "middle", "end"]].to_numpy().tolist() == [[490, 512, 530]]
    wider = [
        around_events(events, {"a": np.array([0, 490, 512, 530, 545])}, trials, 0.25, rank)[["start", "end"]]
        for rank in (1, 2)
    ]
    assert wider[0].to_numpy().tolist() == [[490, 545]] and wider[1].empty
    assert around_events(events, {"a": np.array([0, 1000])}, trials, 0.25).empty
    assert around_events(events, {"a": np.array([0, 490])}, trials, 0.25).empty
    assert around_events(events, {}, trials, 0.25).empty


def test_events_of_other_families_are_not_counted_twice() -> None:
    row = {"trial_id": "a", "layer": "l", "layer_index": 0, "step_before": 5, "step_after": 6, "p_event": 0.01}
    row |= {"step_location": 5.5}
    events = pd.DataFrame([row | {"family": f, "significant": True} for f in ("primary", "other")])
    families = pd.DataFrame([{"family": "primary", "primary": True}, {"family": "other", "primary": False}])
    assert len(selected(events, families, 3)) == 1
    assert selected(pd.DataFrame(), families, 3).empty


def test_what_bears_on_a_layer() -> None:
    panel = {
        ("a", "t.layers.0.self_attn", "attention_entropy"): {0: 1.0},
        ("a", "t.layers.1.self_attn", "attention_entropy"): {0: 2.0},
        ("a", "t.layers.0.linear1", "dead_fraction"): {0: 3.0},
        ("a", "*", "nc1"): {0: 4.0},
        ("b", "*", "nc1"): {0: 5.0},
    }
    mine = {(where, metric) for where, metric, _ in concerned(panel, "a", "t.layers.0.linear1")}
    assert mine == {
        ("t.layers.0.self_attn", "attention_entropy"), ("t.layers.0.linear1", "dead_fraction"), ("*", "nc1"),
    }  # fmt: skip
    mean = {metric: values for where, metric, values in concerned(panel, "a", "*") if where == "mean"}
    assert mean["attention_entropy"] == {0: 1.5}


# -- the statistics ---------------------------------------------------------------------------------------------------


def test_outside_is_the_prediction_interval_of_student() -> None:
    others = np.array([1.0, 2.0, 3.0])
    assert changes.outside(2.0, others) == pytest.approx(1)
    critical = 2 + 4.302652729911275 * np.sqrt(4 / 3)  # t(0.975, 2), s = 1
    assert changes.outside(critical, others) == pytest.approx(0.05)
    assert np.isnan(changes.outside(1.0, others[:1])) and np.isnan(changes.outside(np.nan, others))
    assert changes.outside(1.0, np.ones(4)) == 1 and np.isnan(changes.outside(2.0, np.ones(4)))
    draws = np.random.default_rng(0).normal(size=(4000, 6))
    p = [changes.outside(float(d[0]), d[1:]) for d in draws]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 4000))


def test_a_window_without_values_is_left_out() -> None:
    found = change_over({0: 1.0, 10: 4.0, 20: np.nan}, Windows((0, 10), ((10, 20), (0, 10)), ((0, 10),)))
    assert found is not None and found.change == 3 and found.controls.tolist() == [3.0] and found.difference == 0
    assert change_over({0: 1.0}, Windows((0, 10))) is None
    empty = change_over({0: 1.0, 10: 2.0}, Windows((0, 10)))
    assert empty is not None and np.isnan(empty.difference) and np.isnan(empty.unmatched_difference)


def test_a_metric_test_is_a_t_test_over_trials() -> None:
    found = changes.metric_test({"a": [1.0, 3.0], "b": [1.0], "c": [3.0], "d": []})
    assert (found.n_trials, found.n_events, found.mean) == (3, 4, 2.0)
    from scipy.stats import ttest_1samp

    expected = ttest_1samp([2.0, 1.0, 3.0], 0)
    assert found.p == pytest.approx(expected.pvalue) and found.effect == pytest.approx(2.0)
    assert (found.lo, found.hi) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.p_sign == pytest.approx(2 / 8)
    assert np.isnan(changes.metric_test({"a": [1.0], "b": [2.0]}).p)
    assert changes.metric_test({}).n_trials == 0
    assert changes.metric_test({k: [0.0] for k in "abc"}).p == 1


def test_effects_are_in_pooled_control_spreads() -> None:
    one = Change(0.0, 1.0, np.array([1.0, 3.0]), np.zeros(0))
    two = Change(0.0, 1.0, np.array([10.0, 12.0, 14.0]), np.zeros(0))
    assert changes.spreads({("l", "m"): [one, two]})["l", "m"] == pytest.approx(np.sqrt((2 + 8) / 3))
    assert np.isnan(changes.spreads({("l", "m"): [Change(0.0, 1.0, np.ones(3), np.zeros(0))]})["l", "m"])


def test_seeds_are_exchanged_among_the_events() -> None:
    rng = np.random.default_rng(0)
    trials = list("abcdef")
    one = changes.seed_test([("a", {t: float(t == "a") * 9 + rng.normal() for t in trials})])
    assert (one.n_trials, one.n_events) == (6, 1) and one.p == pytest.approx(1 / 6)  # its rank among six
    all_ = changes.seed_test([(own, {t: 9.0 * (t == own) + rng.normal() for t in trials}) for own in trials])
    assert all_.p == pytest.approx(1 / 720) and all_.difference > 1.5
    null = [changes.seed_test([(own, {t: rng.standard_t(3) for t in trials}) for own in "aab"]).p for _ in range(400)]
    assert np.mean(np.array(null) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.isnan(changes.seed_test([("a", dict.fromkeys("abc", 1.0))]).p)
    assert np.isnan(changes.seed_test([("a", dict.fromkeys("abcdef", 1.0))]).p)
    assert changes.seed_test([]).n_trials == 0
    many = changes.seed_test([("a", {str(i): float(rng.normal()) for i in range(9)} | {"a": 50.0})])
    assert many.p == pytest.approx(0.1, abs=0.03)  # drawn: one of ten


def test_control_lanes_are_no_seeds_of_the_cell() -> None:
    trials = pd.DataFrame({"cell": ["c", "c", "c"], "control": ["none", "lr0", "none"]})
    assert arms(trials).tolist() == ["c", "c lr0", "c"] and arms(trials[["cell"]]).tolist() == ["c"] * 3


def test_a_checkpoint_nearer_than_the_planned_ones_costs_no_controls() -> None:
    """Controls were saved for one length; one more checkpoint inside would leave a window that nothing matches."""
    given = tables(simulate(Design(**{**vars(SMALL), "layers": 1, "events": 1}), "near"))
    units = given["unit_metrics"]
    event = given["events"].iloc[0]
    own = units["trial_id"] == event["trial_id"]
    odd = units[own & (units["step"] == event["step_before"])].assign(step=event["step_before"] + 1)
    given["unit_metrics"] = pd.concat([units, odd], ignore_index=True)
    given["events"].loc[0, ["step_before", "step_after"]] = [event["step_before"] + 2, event["step_after"]]
    rows, _ = run(given)
    mine = rows[rows["trial_id"] == event["trial_id"]]
    assert (mine["checkpoint_before"] == event["step_before"]).all() and (mine["n_controls"] >= 3).all()


# -- pseudo-events in trained runs -----------------------------------------------------------------------------------


def test_pseudo_events_keep_clear_of_real_ones_and_have_their_phases() -> None:
    layers = pd.DataFrame([("t", "a", 0, 1000), ("t", "b", 1, 1000), ("u", "a", 0, 1000)])
    layers.columns = pd.Index(["trial_id", "layer", "layer_index", "steps"])
    saved = pd.DataFrame([(t, s) for t in "tu" for s in range(0, 1001, 20)], columns=["trial_id", "step"])
    busy = pd.DataFrame([("t", 480, 520)], columns=["trial_id", "step_before", "step_after"])
    starts: dict[str, list[int]] = {"t": [], "u": []}
    for i in range(200):
        drawn = pseudo_events(layers, saved, (0.1, 0.5), busy, (str(i),))
        assert drawn.equals(pseudo_events(layers[::-1], saved, (0.1, 0.5), busy, (str(i),)))
        assert list(zip(drawn["trial_id"], drawn["layer"], strict=True)) == [("t", "a"), ("t", "b"), ("u", "a")]
        assert drawn["step_before"].isin(saved["step"]).all() and drawn["step_after"].isin(saved["step"]).all()
        assert (drawn["step_after"] - drawn["step_before"]).isin([20, 40, 60]).all()
        own = drawn[drawn["trial_id"] == "t"]
        assert ((own["step_after"] <= 480) | (own["step_before"] >= 520)).all()
        for trial, start in zip(drawn["trial_id"], drawn["step_before"], strict=True):
            starts[trial].append(start)
    assert set(starts["u"]) == {100, 120, 500, 520}  # within 2 % of a phase, and on to the next checkpoint
    assert 0.4 < np.mean(np.array(starts["u"]) > 300) < 0.6
    nowhere = pd.DataFrame([("t", 0, 1000)], columns=busy.columns)
    assert set(pseudo_events(layers, saved, (0.5,), nowhere, ("x",))["trial_id"]) == {"u"}
    same = [pseudo_events(layers, saved, (0.1, 0.5), busy, ("k",)) for _ in range(2)]
    pd.testing.assert_frame_equal(*same)


def test_false_discoveries_are_counted_over_choices_of_windows() -> None:
    found = simulate(SMALL, "pseudo")
    layers = found.events[["trial_id", "layer", "layer_index"]].drop_duplicates()
    given = tables(found) | {"events": pd.DataFrame(), "layers": layers}
    shares = false_discoveries(given, (0.2, 0.5, 0.8), 3, "small")
    kinds = {"any_event", "any_test", "any_seed_event", "any_seed_test"}
    assert set(shares) == kinds | {"p_below_0.05", "tested"} and shares["tested"] > 0
    assert all(0 <= share <= 1 for share in shares.values()) and shares["p_below_0.05"] < 0.3
