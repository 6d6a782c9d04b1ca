"""Verdicts on the founding hypotheses: planted effects flip them, and where nothing is planted nothing is said."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.hypotheses.estimates import correlation, paired_t, regression
from ndt_ray.analysis.hypotheses.heads import NAME as STABLE
from ndt_ray.analysis.hypotheses.heads import stable_attention
from ndt_ray.analysis.hypotheses.patterns import patterns
from ndt_ray.analysis.hypotheses.verdicts import CHANGES, hypotheses
from ndt_ray.analysis.mechanisms.before_after import COPIES

RNG = np.random.default_rng(3)


def planted(n=8, slope=1.0, gain=0.2, noise=0.05, cell="cnn/mnist", model="cnn_deep"):
    """One event a trial at step 100; new kinds of features follow its size, selectivity rises by `gain`."""
    trials, events, features, units, composition = [], [], [], [], []
    words = ["edge", "blob", "dots", "stripes", "corner", "noise"]
    for i in range(n):
        t, size = f"{cell}-{i}", 0.1 + 0.1 * i
        trials.append({"trial_id": t, "cell": cell, "model": model, "data": "mnist", "control": "none"})
        row = {"trial_id": t, "layer": "a", "step_before": 100, "step_after": 110, "significant": True}
        row |= {"family": "primary", "layer_index": 0}
        events.append({**row, "relative_size": size, "confirm_relative": np.nan})
        events.append({**events[-1], "family": "velocity"})  # of the multiverse: no second event
        many = int(np.clip(round(slope * i + 0.3 * RNG.normal()), 0, 6))
        seen = {"trial_id": t, "layer": "a", "flag": None}
        features += [{**seen, "step": 90, "unit": 0, "feature_type": "flat"}]
        features += [
            {**seen, "step": 120, "unit": unit, "feature_type": w} for unit, w in enumerate(["flat", *words[:many]])
        ]
        metric = {"trial_id": t, "layer": "a", "metric": "class_selectivity", "part": "*"}
        units += [
            {**metric, "step": 90, "value": 0.3},
            {**metric, "step": 120, "value": 0.3 + gain + noise * RNG.normal()},
        ]
        depth = {"trial_id": t, "layer": "*", "metric": "compositional_depth", "part": "*", "step": 120}
        composition.append({**depth, "value": 2 + 3 * size + noise * RNG.normal()})
    names = ("trials", "events", "features", "unit_metrics", "composition_metrics")
    return {k: pd.DataFrame(v) for k, v in zip(names, (trials, events, features, units, composition), strict=True)}


def together(*sweeps):
    """Tables of several cells as one sweep."""
    return {name: pd.concat([s[name] for s in sweeps], ignore_index=True) for name in sweeps[0]}


def at_events(outputs, attention, n=8, cell="t/mnist", noise=0.3, rng=RNG):
    """Rows of `mechanism_changes` of two events a trial, one in each output projection; sizes in control SDs."""
    rows = []
    for i in range(n):
        for step, layer in enumerate(("layers.0.self_attn.out_proj", "layers.0.linear2")):
            event = {"trial_id": f"{cell}-{i}", "layer": layer, "step_before": 100 + step, "step_after": 110 + step}
            for where, metric, size in (
                (layer, "cka_to_initial", outputs),
                (layer, "cka_to_last", outputs),
                ("layers.0.self_attn", "attention_entropy", attention),
                ("layers.0.self_attn", "head_divergence", attention),
                ("layers.0.self_attn", "attention_span", 9.0),  # not asked for
            ):
                effect = rng.choice([-1, 1]) * size + noise * rng.normal()
                rows.append({**event, "metric_layer": where, "metric": metric, "effect": effect})
        rows.append({**event, "layer": "layers.0.linear1", "metric_layer": "layers.0.linear1", "effect": 9.0})
    return pd.DataFrame(rows)


def mechanism_rows(rows):
    known = {"n_trials": 6, "lo": 0.5, "hi": 1.5, "p": 0.001, "q": 0.01, "difference": 1.0}
    return pd.DataFrame([{**known, **row} for row in rows])


def run(tables, **parameters):
    given = {k: pa.Table.from_pandas(v, preserve_index=False) for k, v in tables.items()}
    empty = {name: pa.table({}) for name in hypotheses.reads if name not in given}
    found = hypotheses(AnalysisInput("s", Partition(), {**given, **empty}), **parameters)
    return {k: v.to_pandas() for k, v in found.items()}


def verdicts(found):
    return found["hypotheses"].set_index("hypothesis")["verdict"].to_dict()


def test_planted_relations_are_supported():
    found = run(planted())
    said = verdicts(found)
    assert said["magnitude_and_new_features"] == "supported"
    assert said["selectivity_unmatched"] == "supported" and said["composition"] == "supported"
    table = found["event_mechanisms"]
    assert len(table) == 8 and set(table["arch_type"]) == {"cnn"} and (table["num_jumps"] == 1).all()
    np.testing.assert_allclose(
        table["selectivity_increase"], table["selectivity_after_jump"] - table["selectivity_before_jump"]
    )


def test_the_opposite_is_said_of_the_opposite():
    said = verdicts(run(planted(gain=-0.2, slope=0.0)))
    assert said["selectivity_unmatched"] == "contradicted"
    assert said["magnitude_and_new_features"] in ("no_data", "not_shown")


def test_mechanisms_are_judged_against_matched_windows_in_their_direction():
    tables = planted()
    tables["mechanism_tests"] = mechanism_rows(
        [
            {"cell": "cnn/mnist", "metric": "filter_squared_cosine", "difference": -1.0},
            {"cell": "cnn/mnist", "metric": "class_selectivity", "difference": -1.0},
            {"cell": "mlp/mnist", "metric": "class_selectivity", "p": 0.4},
            {"cell": "t/mnist", "metric": "attention_entropy", "n_trials": 3, "difference": -1.0},
        ]
    )
    rows = run(tables)["hypotheses"].set_index(["hypothesis", "scope"])["verdict"]
    assert rows["filter_differentiation", "cnn/mnist"] == "supported"
    assert rows["selectivity", "cnn/mnist"] == "contradicted" and rows["selectivity", "mlp/mnist"] == "not_shown"
    assert rows["attention_specialisation", "t/mnist"] == "no_data"


@pytest.mark.parametrize(("difference", "verdict"), [(1.0, "supported"), (-1.0, "contradicted")])
def test_clusters_and_specialists_have_verdicts(difference, verdict):
    metrics = {"clustering": "class_silhouette", "specialists": "selective_share"}
    rows = [{"cell": "cnn/mnist", "metric": m, "difference": difference} for m in metrics.values()]
    tables = {"trials": planted()["trials"], "mechanism_tests": mechanism_rows(rows)}
    said = verdicts(run(tables))
    assert said["clustering"] == said["specialists"] == verdict
    tables["mechanism_tests"]["p"] = 0.4
    assert set(verdicts(run(tables)).values()) == {"not_shown"}


def test_no_hypothesis_waits_for_a_metric_that_mechanism_tests_leave_out():
    assert not {metric for _, metric, *_ in CHANGES} & set(COPIES)


def test_the_t_test_stands_beside_the_sign_flips_which_decide():
    found = run(planted(n=5, noise=0.001))
    row = found["hypotheses"].set_index("hypothesis").loc["selectivity_unmatched"]
    by_trial = found["event_mechanisms"].groupby("trial_id")[["selectivity_after_jump", "selectivity_before_jump"]]
    after, before = by_trial.mean().to_numpy().T
    assert row["p_t"] == pytest.approx(stats.ttest_rel(after, before).pvalue) and row["p_t"] < 1e-6
    assert row["p"] == 2 / 2**5 and row["verdict"] == "not_shown" and "t test" in row["why"]
    assert np.isnan(paired_t([1.0])) and np.isnan(paired_t([2.0, 2.0]))
    level = np.mean([paired_t(RNG.normal(size=6)) <= 0.05 for _ in range(400)])
    assert level <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.slow
def test_claims_about_events_are_asked_in_every_family_of_a_sweep_of_several():
    cnn, mlp = planted(n=9), planted(n=9, cell="mlp/mnist", model="mlp_narrow")
    vit = planted(n=9, cell="vit/mnist", model="vit")
    found = run(together(cnn, mlp, vit))
    rows = found["hypotheses"].set_index(["hypothesis", "scope"])
    assert set(rows.loc["magnitude_and_new_features"].index) == {"*", "mlp", "cnn", "transformer"}
    assert (rows.loc["magnitude_and_new_features", "verdict"] == "supported").all()
    assert rows.loc[("composition", "transformer"), "n"] == 9 and rows.loc[("composition", "*"), "n"] == 27
    pattern = found["mechanism_patterns"].set_index("metric")
    assert (pattern["pattern"] == "universal").all() and (pattern["n_cells"] == 3).all()
    assert set(pattern.index) == {"magnitude_and_new_features", "selectivity_unmatched", "composition"}
    tested = rows["q"].notna()  # one family of tests: each p counts
    assert tested.sum() == 12 and rows.loc[tested, "q"].max() == pytest.approx(rows.loc[tested, "p"].max())

    names = mlp["trials"]["trial_id"]
    others = dict(zip(names, names[[4, 0, 7, 2, 8, 1, 5, 3, 6]], strict=True))
    mlp["features"] = mlp["features"].assign(trial_id=mlp["features"]["trial_id"].map(others))
    vit = planted(n=9, cell="vit/mnist", model="vit", gain=-0.2)
    found = run(together(cnn, mlp, vit))
    rows = found["hypotheses"].set_index(["hypothesis", "scope"])["verdict"]
    assert rows["magnitude_and_new_features", "mlp"] != "supported" == rows["magnitude_and_new_features", "cnn"]
    pattern = found["mechanism_patterns"].set_index("metric")
    assert pattern.loc["magnitude_and_new_features", "architectures"] == "cnn,transformer"
    assert pattern["pattern"].to_dict() == {
        "magnitude_and_new_features": "specific", "selectivity_unmatched": "opposed", "composition": "universal",
    }  # fmt: skip
    assert pattern.loc["selectivity_unmatched", "heterogeneity_p"] < 1e-6


@pytest.mark.slow
def test_a_family_without_events_is_not_tested_and_one_family_is_not_asked_twice():
    assert set(run(planted())["hypotheses"]["scope"]) == {"*"}
    both = together(planted(), planted(n=3, cell="mlp/mnist", model="mlp_narrow"))
    both["events"] = both["events"][~both["events"]["trial_id"].str.startswith("mlp")]
    row = run(both)["hypotheses"].set_index(["hypothesis", "scope"]).loc[("composition", "mlp")]
    assert row["verdict"] == "no_data" and row["why"].startswith("not tested: 0 trials") and np.isnan(row["q"])


def test_heads_that_differentiate_are_judged_against_matched_windows():
    rows = [{"cell": "t/mnist", "metric": m} for m in ("head_divergence", "specialization_index")]
    for difference, verdict in ((1.0, "supported"), (-1.0, "contradicted")):
        tables = {"trials": planted()["trials"], "mechanism_tests": mechanism_rows(rows).assign(difference=difference)}
        said = verdicts(run(tables))
        assert said["head_differentiation"] == said["head_specialisation"] == verdict


@pytest.mark.parametrize(
    ("outputs", "attention", "verdict"),
    [
        (4.0, 0.3, "supported"),
        (0.3, 4.0, "contradicted"),
        (4.0, 3.0, "not_shown"),  # outputs change more, but attention is not stable
        (0.8, 0.2, "not_shown"),  # attention is stable, but so are outputs
    ],
)
def test_attention_stays_while_outputs_change_only_where_both_halves_hold(outputs, attention, verdict):
    trials = pd.DataFrame(
        [
            {"trial_id": f"t/mnist-{i}", "cell": "t/mnist", "model": "vit", "data": "mnist", "control": "none"}
            for i in range(8)
        ]
    )
    tables = {"trials": trials, "mechanism_changes": at_events(outputs, attention)}
    row = run(tables)["hypotheses"].set_index("hypothesis").loc[STABLE]
    assert row["verdict"] == verdict and row["n"] == 8 and row["scope"] == "t/mnist"
    assert row["estimate"] == pytest.approx(outputs - attention, abs=0.3)


@pytest.mark.slow
def test_where_events_are_like_other_windows_nothing_is_said_of_attention():
    rng, cells = np.random.default_rng(5), {f"t/mnist-{i}": "t/mnist" for i in range(8)}
    p = [t.p for _ in range(200) for t in stable_attention(at_events(0, 0, noise=1.1, rng=rng), cells)]
    assert len(p) == 200 and np.mean(np.array(p) <= 0.05) <= 0.05


def test_what_is_claimed_of_transformers_is_not_tested_where_their_heads_were_not_looked_at():
    tables = together(planted(), planted(cell="t/mnist", model="transformer_deep"))
    rows = run(tables)["hypotheses"].set_index("scope").loc["t/mnist"]
    assert set(rows["hypothesis"]) == {
        STABLE, "attention_specialisation", "head_differentiation", "head_specialisation",
    }  # fmt: skip
    assert (rows["verdict"] == "no_data").all() and rows["why"].str.contains("ndt analyze s attention").all()


def test_disruption_at_events_against_matched_windows():
    """Elsewhere, in windows like no event's, it costs nothing or twice as much: neither is evidence."""

    def arms(at_event, matched, elsewhere):
        return pd.DataFrame([
            {
                "cell": "c", "untouched": f"t{i}", "kind": "ablate", "target": "a", "dose": 1.0, "flag": None, "at": at,
                "until": at, "near_event": role == "event", "role": role, "event_layer": "a" if role else None,
                "event_at": 100 if role else None, "area": area + 0.01 * RNG.normal(),
            }
            for i in range(7)
            for at, role, area in (
                (100, "event", at_event), (80, "control", matched), (120, "control", matched), (20, None, elsewhere),
            )
        ])  # fmt: skip

    for of, verdict in (((0.2, 0.1, 0.9), "supported"), ((0.1, 0.1, 0.0), "not_shown")):
        tables = {"trials": planted()["trials"], "recovery": arms(*of)}
        (row,) = run(tables)["hypotheses"].itertuples()
        assert (row.hypothesis, row.verdict, row.n) == ("critical_periods", verdict, 7)
        assert row.estimate == pytest.approx(of[0] - of[1], abs=0.02)
    tables["recovery"] = tables["recovery"].query("role != 'control'")
    (row,) = run(tables)["hypotheses"].itertuples()
    assert row.verdict == "no_data" and "window matched to it" in row.why


def test_cells_that_never_learned_have_no_part_in_any_verdict():
    tables = planted()
    names = tables["trials"]["trial_id"]
    assert len(run(tables)["event_mechanisms"]) and len(run(tables)["hypotheses"])
    scores = pd.DataFrame({"trial_id": names, "step": 100, "accuracy": 0.5, "n": 200})
    tables["evaluations"] = scores.assign(class_accuracy=[[0.5, 0.5]] * len(names))
    found = run(tables)
    assert all(table.empty for table in found.values())


def test_correlations_and_regressions_keep_their_level():
    p = [correlation(*RNG.normal(size=(2, 8)))[3] for _ in range(60)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 60)
    p = [regression(RNG.normal(size=(9, 2)), RNG.normal(size=9))[1] for _ in range(40)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40)
    x = RNG.normal(size=(12, 2))
    assert regression(x, x @ [1, 2] + 0.1 * RNG.normal(size=12))[0] > 0.9
    assert np.isnan(regression(x[:4], x[:4, 0])).all() and np.isnan(correlation([1, 1, 1, 1], [1, 2, 3, 4])[0])


def test_r2_of_left_out_rows_is_that_of_fitting_without_them():
    x, y = RNG.normal(size=(9, 2)), RNG.normal(size=9)
    residual, total = 0.0, 0.0
    for i in range(9):
        rest = np.arange(9) != i
        fit = np.linalg.lstsq(np.column_stack([np.ones(8), x[rest]]), y[rest], rcond=None)[0]
        residual += (y[i] - fit @ [1, *x[i]]) ** 2
        total += (y[i] - y[rest].mean()) ** 2
    whole = np.column_stack([np.ones(9), x])
    fitted = whole @ np.linalg.lstsq(whole, y, rcond=None)[0]
    left_out, _, in_sample = regression(x, y)
    assert left_out == pytest.approx(1 - residual / total)
    assert (
        in_sample == pytest.approx(1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum()) and in_sample > left_out
    )


def test_patterns_are_universal_specific_opposed_or_none():
    trials = pd.DataFrame({"cell": ["a", "b"], "model": ["mlp_narrow", "cnn_deep"]})
    pairs = {
        "both": (1.0, 0.01, 1.2, 0.01, "universal"),
        "one": (1.0, 0.01, 0.1, 0.8, "specific"),
        "against": (1.0, 0.01, -1.0, 0.01, "opposed"),
        "neither": (0.1, 0.8, 0.2, 0.7, "none"),
    }
    rows = []
    for metric, (d1, q1, d2, q2, _) in pairs.items():
        for cell, d, q in (("a", d1, q1), ("b", d2, q2)):
            rows.append({"cell": cell, "metric": metric, "difference": d, "lo": d - 0.5, "hi": d + 0.5, "q": q, "p": q})
    found = {r["metric"]: r for r in patterns(mechanism_rows(rows), trials, 0.05)}
    assert {m: r["pattern"] for m, r in found.items()} == {m: v[-1] for m, v in pairs.items()}
    assert found["against"]["heterogeneity_p"] < 0.01 < found["neither"]["heterogeneity_p"]


def test_with_nothing_to_judge_there_is_no_verdict():
    assert all(t.empty for t in run({}).values())
    found = run({"trials": planted()["trials"]})
    assert found["hypotheses"].empty and found["event_mechanisms"].empty
    few = run(planted(n=2))["hypotheses"]
    assert set(few["verdict"]) == {"no_data"} and few["q"].isna().all()
