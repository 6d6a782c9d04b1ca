"""Claims of the founding study that are now computed: what is planted is found, what is not is not said."""

import ast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ndt_ray import registry
from ndt_ray.analysis import discreteness, late_change, thresholds
from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.hypotheses.status import combined, hypothesis_status
from ndt_ray.analysis.hypotheses.verdicts import hypotheses
from ndt_ray.analysis.mechanisms.specialisation import compared, specialisation
from ndt_ray.analysis.mechanisms.symmetry import response_similarity
from ndt_ray.analysis.running.status import declared
from ndt_ray.analysis.taxonomy import phases as type_phases


def run(analysis, tables, **parameters):
    given = {k: pa.Table.from_pandas(v, preserve_index=False) for k, v in tables.items()}
    empty = {name: pa.table({}) for name in analysis.reads if name not in given}
    found = analysis(AnalysisInput("s", Partition(), {**given, **empty}), **parameters)
    return {k: v.to_pandas() for k, v in found.items()}


def trials(n, **columns):
    base = {"trial_id": [f"t{i}" for i in range(n)], "cell": "c", "model": "mlp_narrow", "data": "mnist",
            "seed": range(n), "control": "none", "steps": 1000, "spec": "{}"}  # fmt: skip
    return pd.DataFrame(base | columns)


# -- types and phases ------------------------------------------------------------------------------------------------


def typed_events(payoff, seed=0, n=8):
    """Four events a trial: type 1 early, type 2 late; late ones lower the loss by `payoff` beyond nearby windows."""
    rng, rows = np.random.default_rng(seed), []
    for trial in range(n):
        for i, (phase, kind) in enumerate([("early", 1), ("early", 1), ("late", 2), ("late", 2)]):
            key = {"trial_id": f"t{trial}", "layer": "a", "layer_index": 0, "view": "v", "measure": "m"}
            expected = -0.5 if phase == "early" else -0.05
            change = expected + 0.02 * rng.normal() - (payoff if kind == 2 else 0)
            rows.append({**key, "mode": "default", "step_before": i, "type": kind, "label": None, "phase_bin": phase,
                         "loss_change": change, "loss_expected": expected})  # fmt: skip
            rows[-1]["step_after"] = i + 1
    table = pd.DataFrame(rows)
    return {
        "trials": trials(n),
        "event_types": table.drop(columns=["phase_bin", "loss_change", "loss_expected", "step_after"]),
        "event_windows": table.drop(columns=["type", "label"]),
    }  # fmt: skip


def test_types_by_phase_sum_up_and_a_planted_payoff_of_late_events_is_found():
    found = run(type_phases.taxonomy_phases, typed_events(0.1), permutations=499)
    table = found["taxonomy_phases"].set_index(["type", "phase_bin"])
    assert table.loc[(0, "all"), "n"] == 32 and table.loc[(1, "early"), "n"] == 16 and table.loc[(1, "late"), "n"] == 0
    assert table["null_n"].isna().all()  # nothing says at which rate
    assert table.loc[(2, "late"), "percent_of_type"] == 100 == table.loc[(2, "late"), "percent_of_phase"]
    assert table.loc[(1, "all"), "loss_change"] < table.loc[(2, "all"), "loss_change"]  # early: the loss falls anyway
    assert table.loc[(2, "all"), "loss_excess"] == pytest.approx(-0.1, abs=0.02)
    tests = found["taxonomy_phase_tests"].set_index("claim")
    assert (tests["verdict"] == "supported").all() and tests.loc["late_improves_more", "value"] == pytest.approx(
        0.1, abs=0.03
    )
    assert tests.loc["phase_by_type", "value"] == pytest.approx(1)


def test_events_of_networks_that_never_learned_are_counted_and_not_tested():
    tables = typed_events(0.1)
    names = tables["trials"]["trial_id"]
    scores = pd.DataFrame({"trial_id": names, "step": 100, "accuracy": 0.5, "n": 200})
    tables["evaluations"] = scores.assign(class_accuracy=[[0.5, 0.5]] * len(names))
    found = run(type_phases.taxonomy_phases, tables, permutations=99)
    assert found["taxonomy_phases"].set_index(["type", "phase_bin"]).loc[(0, "all"), "n"] == 32
    assert set(found["taxonomy_phase_tests"]["verdict"]) == {"no_data"}


def test_types_by_phase_stand_beside_false_events_spread_over_the_run():
    families = pd.DataFrame([{"family": "f", "primary": True, "alpha": 0.05}])
    table = run(type_phases.taxonomy_phases, typed_events(0.1) | {"event_families": families}, permutations=19)
    rows = table["taxonomy_phases"].set_index(["type", "phase_bin"])["null_n"]
    assert rows.loc[0].to_dict() == pytest.approx({"all": 1.6, "early": 0.16, "mid": 0.64, "late": 0.8})
    assert rows.loc[[1, 2]].isna().all()


@pytest.mark.slow
def test_layers_that_change_together_are_one_look_at_the_loss():
    """Ten layers share each moment, its loss and its type; nothing goes with anything: each claim rarely made."""
    claims = []
    for seed in range(60):
        rng, rows = np.random.default_rng(seed), []
        for trial in range(4):
            for i, phase in enumerate(("early", "mid", "late", "late")):
                kind, change = int(rng.integers(1, 3)), rng.normal()
                for layer in range(10):
                    rows.append({"trial_id": f"t{trial}", "layer": f"l{layer}", "layer_index": layer, "view": "v",
                                 "measure": "m", "mode": "default", "step_before": 10 * i + layer % 3,
                                 "step_after": 10 * i + 4, "type": kind, "label": None, "phase_bin": phase,
                                 "loss_change": change, "loss_expected": 0.0})  # fmt: skip
        found = {row["claim"]: row for row in type_phases.tests(pd.DataFrame(rows), 99, 0.05, str(seed))}
        assert {(row["n_events"], row["n_moments"], row["n_trials"]) for row in found.values()} == {(160, 16, 4)}
        claims += [claim for claim, row in found.items() if row["verdict"] == "supported"]
    for claim in ("loss_by_type", "phase_by_type", "late_improves_more"):
        assert claims.count(claim) <= 8, claims  # 60 at 0.05: 9 or more in 0.2 % of draws


@pytest.mark.slow
def test_without_a_payoff_the_loss_test_keeps_its_level():
    said = [
        run(type_phases.taxonomy_phases, typed_events(0.0, seed), permutations=99)["taxonomy_phase_tests"]
        .set_index("claim").loc["late_improves_more", "verdict"]
        for seed in range(20)
    ]  # fmt: skip
    assert said.count("supported") <= 4


# -- discreteness ----------------------------------------------------------------------------------------------------


def curve(kind, rng, n=120, stimuli=25):
    t = np.linspace(0, 1, n)
    p = 0.1 + 0.8 * (t > 0.4) if kind == "step" else 0.1 + 0.8 / (1 + np.exp(-8 * (t - 0.5)))
    return rng.binomial(stimuli, p) / stimuli


@pytest.mark.slow
def test_a_planted_step_is_discrete_and_a_smooth_rise_is_not():
    p = {"step": [], "smooth": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for kind, values in p.items():
            values.append(discreteness.step_of(curve(kind, rng), 25, rng, 99)["p"])
    assert max(p["step"]) <= 0.02
    assert np.mean(np.array(p["smooth"]) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 20)
    rng = np.random.default_rng(0)
    smooth = 1 - np.exp(-np.linspace(0, 3, 100)) + 0.002 * rng.normal(size=100)
    assert discreteness.step_of(smooth, None, rng, 99)["p"] > 0.05
    smooth[60:] += 0.5
    assert discreteness.step_of(smooth, None, rng, 99)["p"] <= 0.02
    assert discreteness.step_of(np.full(100, 0.3), 25, rng)["flag"] == "flat"
    assert discreteness.step_of(np.zeros(5), 25, rng)["flag"] == "short"


def discrete_trial(i, classes, layers):
    rng, steps = np.random.default_rng(i), np.arange(120) * 10
    scalars = pd.DataFrame({"trial_id": f"t{i}", "step": steps})
    scalars["probe_class_accuracy"] = list(np.stack([curve(classes, rng) for _ in range(5)], 1))
    rows = []
    for layer in range(3):
        values = (
            np.linspace(0, 0.6, 120) + 0.002 * rng.normal(size=120) + (0.5 * (steps > 500) if layers == "step" else 0)
        )
        rows.append(pd.DataFrame({"trial_id": f"t{i}", "step": steps, "layer": f"l{layer}", "layer_index": layer,
                                  "from_init": values}))  # fmt: skip
    tables = {"trials": trials(i + 1).tail(1), "scalars": scalars, "velocity": pd.concat(rows)}
    return run(discreteness.discreteness, tables, draws=49)["discreteness"]


@pytest.mark.parametrize(
    ("classes", "layers", "verdict"),
    [("step", "smooth", {"supported"}), ("smooth", "smooth", {"not_supported", "undecided"}),
     ("step", "step", {"both_discrete", "undecided", "not_supported"})],
)  # fmt: skip
def test_capabilities_discrete_while_representations_are_smooth(classes, layers, verdict):
    rows = pd.concat([discrete_trial(i, classes, layers) for i in range(5)])
    found = run(discreteness.discreteness_tests, {"trials": trials(5), "discreteness": rows})["discreteness_tests"]
    row = found.set_index("scope").loc["*"]
    assert row["n_trials"] == 5 and row["verdict"] in verdict and len(found) == 2


# -- after half time -------------------------------------------------------------------------------------------------


def moving(uneven=0.5, at=(500, 750, 1000), jump=0.0):
    distances = pd.DataFrame(
        [{"layer": "a", "step": b, "other_step": a, "displacement": d} for a, b, d in
         [(at[0], at[1], uneven), (at[1], at[2], 1 - uneven), (at[0], at[2], 1.0)]]
    )  # fmt: skip
    steps = np.arange(0, 1001, 10)
    velocity = pd.DataFrame({"layer": "a", "step": steps, "velocity": 0.01 + jump * (steps == 900)})
    return late_change.changed(distances, velocity, 1000)


def test_late_change_is_gradual_where_it_is_spread_and_eventless():
    even, lopsided = moving(), moving(0.97)
    assert even["weights_uneven"] == 0.5 and lopsided["weights_uneven"] == 0.97 and even["flag"] is None
    assert moving(at=(400, 750, 1000))["flag"] == "no_checkpoints"
    assert moving(jump=5.0)["largest_step"] > 0.9 > 0.1 > even["largest_step"]

    def said(row, events, n=6):
        rng = np.random.default_rng(0)
        rows = [
            {**row, "weights_uneven": row["weights_uneven"] + 0.001 * rng.normal(), "late_events": events}
            for _ in range(n)
        ]
        return late_change.judged("*", pd.DataFrame(rows))["verdict"]

    assert said(even, 0) == "supported" and said(even, 1) == "not_supported"
    assert said(lopsided, 0) == "not_supported" and said(moving(jump=5.0), 0) == "undecided"
    assert said(even, None) == "no_data" and said(even, 0, n=2) == "no_data"


def test_late_events_are_counted_where_they_were_sought():
    velocity = pd.DataFrame({"trial_id": "t0", "layer": "a", "step": np.arange(0, 1001, 10), "velocity": 0.01})
    velocity = pd.concat([velocity.assign(trial_id=f"t{i}") for i in range(4)])
    tests = pd.DataFrame({"trial_id": [f"t{i}" for i in range(4)]})
    event = {"trial_id": "t1", "layer": "a", "layer_index": 0, "step_before": 700, "phase": 0.7, "family": "primary",
             "significant": True}  # fmt: skip
    tables = {"trials": trials(4), "velocity": velocity, "series_tests": tests}
    quiet = run(late_change.late_change, tables)["late_change_tests"].set_index("scope")
    assert quiet.loc["*", "verdict"] in ("supported", "undecided") and quiet.loc["*", "late_events"] == 0
    found = run(late_change.late_change, tables | {"events": pd.DataFrame([event])})
    assert found["late_change"].set_index("trial_id")["late_events"].to_dict() == {"t0": 0, "t1": 1, "t2": 0, "t3": 0}
    assert found["late_change_tests"].set_index("scope").loc["*", "null_late_events"] == pytest.approx(0.05)
    assert (found["late_change_tests"]["verdict"] == "not_supported").all()


# -- symmetry, specialisation, thresholds -----------------------------------------------------------------------------


def test_units_that_are_copies_are_alike_and_independent_ones_are_not():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1))
    alike = response_similarity(np.repeat(x, 10, axis=1) + 0.1 * rng.normal(size=(200, 10)), rng)
    apart = response_similarity(rng.normal(size=(200, 10)), rng)
    assert alike["unit_response_similarity"][0] > 0.95 and alike["effective_units"][0] < 0.15
    value, null = apart["unit_response_similarity"]
    assert abs(value - np.mean(null)) < 4 * np.std(null) and apart["effective_units"][0] > 0.9
    assert np.isnan(response_similarity(np.ones((5, 3)), rng)["effective_units"][0])


def test_initialisation_escape_is_judged_by_symmetry_before_and_after_the_first_event():
    def rows(change):
        rng = np.random.default_rng(1)
        return pd.DataFrame(
            [{"trial_id": f"t{i}", "step": step, "layer": "a", "layer_index": 0, "part": "*", "metric": metric,
              "value": 0.5 + (change if step >= 200 else 0) + 0.01 * rng.normal(), "chance": 0.1}
             for i in range(8) for step in (0, 100, 200, 300)
             for metric in ("unit_response_similarity", "unit_weight_similarity")]
        )  # fmt: skip

    events = pd.DataFrame(
        [{"trial_id": f"t{i}", "layer": "a", "layer_index": 0, "step_before": 150, "step_after": 160,
          "significant": True, "family": "primary", "relative_size": 0.1, "confirm_relative": np.nan} for i in range(8)]
    )  # fmt: skip
    tables = {"trials": trials(8), "events": events}
    said = {
        change: run(hypotheses, {**tables, "symmetry_metrics": rows(change)})["hypotheses"]
        .set_index("hypothesis").loc["initialisation_escape", "verdict"]
        for change in (-0.2, 0.2, 0.0)
    }  # fmt: skip
    assert said == {-0.2: "supported", 0.2: "contradicted", 0.0: "not_shown"}


def test_specialisation_of_filters_against_units_over_seeds():
    both = trials(12, model=["cnn_deep", "mlp_narrow"] * 6, seed=[i // 2 for i in range(12)], cell=["a", "b"] * 6)

    def metrics(gap):
        rng, rows = np.random.default_rng(2), []
        for t in both.itertuples():
            for step in (0, 100):
                for i, layer in enumerate(
                    ("conv_layers.0", "fc") if t.model == "cnn_deep" else ("network.0", "network.2")
                ):
                    learned = (0.2 + (gap if t.model == "cnn_deep" else 0)) * (step > 0) + 5.0 * (i == 1)
                    rows.append({"trial_id": t.trial_id, "step": step, "layer": layer, "layer_index": i, "part": "*",
                                 "metric": "class_selectivity", "value": 0.3 + learned + 0.01 * rng.normal(),
                                 "chance": 0.3})  # fmt: skip
        return pd.DataFrame(rows)

    def found(gap):
        tables = {"trials": both, "unit_metrics": metrics(gap)}
        return run(specialisation, tables)["specialisation_comparison"].set_index("when")

    more = found(0.1)
    assert more.loc["gain", "difference"] == pytest.approx(0.1, abs=0.02)  # read-outs and dense layers left out
    assert more.loc["gain", "verdict"] == "cnn_more" and more.loc["initial", "verdict"] == "not_shown"
    assert found(-0.1).loc["last", "verdict"] == "mlp_more" and found(0.0).loc["gain", "verdict"] == "not_shown"
    values = pd.DataFrame({"kind": ["cnn"] * 3 + ["mlp"] * 3, "seed": range(6), "value": [3.0, 3.1, 3.2, 1, 1.1, 1.2]})
    assert compared(values)["difference"] == pytest.approx(2) and compared(values)["p"] == pytest.approx(0.1)


def test_thresholds_give_every_cell_the_rate_that_was_asked_for():
    cells = {"a": (100, 0.0), "b": (400, 0.8)}
    rows = [
        {
            "trial_id": f"t{i}",
            "mode": "default",
            "detector": "difference_z",
            "measure": "stable_rank",
            "n": n,
            "phi": phi,
        }
        for i, (n, phi) in enumerate(cells.values())
    ]
    tables = {"trials": trials(2, cell=list(cells)), "jump_counts": pd.DataFrame(rows)}
    found = run(thresholds.thresholds, tables)["threshold_calibration"].set_index(["null", "cell"])
    assert found.loc[("ar1", "b"), "threshold"] > found.loc[("ar1", "a"), "threshold"] > 2  # longer: more chances
    assert (found["fixed_per_series"] > 1).all() and (found["fixed"] == 2).all()
    assert found.loc[("ar1", "*"), "spread"] > 1


# -- one table of verdicts ---------------------------------------------------------------------------------------------


def test_status_and_confidence_follow_by_rule():
    def of(*verdicts, n=12, q=0.0005):
        return combined(pd.DataFrame({"verdict": verdicts, "n": n, "q": q}))

    assert of("supported", "supported") | {"rule": ""} == {
        "status": "supported", "confidence": "very_high", "n_judged": 2, "n_for": 2, "n_against": 0, "n_trials": 12,
        "q": 0.0005, "rule": "", "why": "2 supported; up to 12 trials",
    }  # fmt: skip
    assert of("supported", "not_shown", q=0.03)["status"] == "partially_supported"
    assert of("supported", "not_shown", q=0.03)["confidence"] == "medium"
    assert of("supported", n=6, q=0.005)["confidence"] == "high" and of("supported", n=3)["confidence"] == "low"
    assert of("contradicted")["status"] == "not_supported" and of("no_data", n=0)["status"] == "no_data"
    assert of("undecided")["status"] == "undecided" and of("undecided")["confidence"] == "low"
    assert of("supported", n=8, q=np.nan)["confidence"] == "medium"  # a count, without a test


def test_all_tables_of_verdicts_come_together():
    verdicts = pd.DataFrame(
        [{"hypothesis": "selectivity", "scope": c, "n": 6, "q": 0.01, "verdict": "supported"} for c in "ab"]
        + [{"hypothesis": "selectivity", "scope": "cnn", "n": 6, "q": 0.5, "verdict": "not_shown"}]  # of these trials
    )
    phases = {"claim": "two_phases", "grouping": "all", "n_trials": 6, "verdict": "supported"}
    phases = pd.DataFrame(
        [{**phases, "mode": m, "grouping": g} for m in ("default", "original") for g in ("all", "model")]
    )
    tests = pd.DataFrame([{"scope": "*", "n_trials": 6, "p": 0.03, "verdict": "not_supported"}])
    tables = {"trials": trials(6), "hypotheses": verdicts, "phase_verdicts": phases, "discreteness_tests": tests}
    found = run(hypothesis_status, tables)["hypothesis_status"].set_index("hypothesis")
    assert found["status"].to_dict() == {
        "selectivity": "supported", "two_phases": "supported", "discrete_capabilities": "not_supported",
    }  # fmt: skip
    assert found.loc["two_phases", "n_judged"] == 1 and found.loc["selectivity", "confidence"] == "high"
    assert run(hypothesis_status, {})["hypothesis_status"].empty


def test_what_an_analysis_is_partitioned_by_is_read_without_importing_it():
    for name in registry.names("analysis"):
        found = registry.resolve("analysis", name)
        assert declared(name) == (found.per, found.context is not None), name
        assert all(isinstance(node, ast.FunctionDef) for node in registry.definitions("analysis", name))
