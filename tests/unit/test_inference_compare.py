"""The compare analysis: planted differences, error rate without any, design, cells that never trained, bad input."""

from typing import Any

import numpy as np
import pytest
from inference_tables import LAYERS, STEPS, evaluation_rows, event_row, family_row, given, series_rows, sweep_row
from inference_tables import trial_row as trial

from ndt_ray.analysis.inference.compare import compare
from ndt_ray.errors import SpecError

CHEAP: dict[str, Any] = {"simulations": 20, "phases": (1.0,), "measures": ("participation_ratio",)}


def sweep(
    per_trial: dict[str, list[int]], accuracy: dict[str, float] | None = None, data: str = "digits"
) -> dict[str, Any]:
    """`per_trial`: events of each seed, by model, at random steps; accuracy: per model, of every class."""
    rng = np.random.default_rng(0)
    rows = {(m, s): trial(m, s, data) for m, own in per_trial.items() for s in range(len(own))}
    tables: dict[str, Any] = {"trials": list(rows.values()), "event_families": [family_row()]}
    tables["series_tests"] = [r for row in rows.values() for r in series_rows(row["trial_id"])]
    tables["events"] = [
        event_row(rows[m, s]["trial_id"], LAYERS[k % 3], 20.0 + 10 * k + float(rng.integers(0, 9)))
        for m, own in per_trial.items()
        for s, count in enumerate(own)
        for k in range(count)
    ]
    tables["outcomes"] = [
        {"trial_id": row["trial_id"], "status": "finished", "final_accuracy": (accuracy or {}).get(m, 0.9)}
        for (m, _), row in rows.items()
    ]
    tables["evaluations"] = [
        evaluation_rows(row["trial_id"], [(accuracy or {}).get(m, 0.9)] * 10) for (m, _), row in rows.items()
    ]
    tables["sweeps"] = sweep_row(list(per_trial), max(map(len, per_trial.values())), [data])
    return tables


def run(tables: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    found = compare(given(compare.reads, **tables), **(CHEAP | parameters))
    return {name: table.to_pandas() for name, table in found.items()}


MANY, FEW = [6, 7, 8, 6, 9, 7], [1, 0, 2, 1, 1, 0]


def test_a_planted_difference_is_found_with_its_size_and_its_design() -> None:
    found = run(sweep({"cnn": MANY, "mlp": FEW, "vit": [1, 1, 0, 2, 0, 1]}))
    rows = found["comparisons"].query("outcome == 'events_per_series'").set_index(["level_a", "level_b"])
    row = rows.loc["cnn", "mlp"]
    assert row.difference == pytest.approx((np.mean(MANY) - np.mean(FEW)) / 3) and row.lo < row.difference < row.hi
    assert row.lo > 0 and row.hedges_g > 2 and row.g_lo < row.hedges_g < row.g_hi and row.cliffs_delta == 1
    assert row.p == row.smallest_p == row.p_unpaired == pytest.approx(2 / 924) and row.exact
    assert row.p_paired == pytest.approx(1 / 32) and row.batches_shared and row.design == "unpaired"
    assert "6 pairs cannot reach 0.05 in 3 comparisons" in row.design_reason
    assert row.adjustment == "holm" and row.p_adjusted == row.smallest_p_adjusted == pytest.approx(6 / 924)
    assert row.confirmatory and row.significant and 0.3 < row.power < 0.6 and row.n_comparisons == 3
    assert not rows.loc["mlp", "vit"].significant
    others = found["comparisons"].query("not confirmatory")
    assert set(others.adjustment) == {"bh"} and others.power.isna().all()
    estimates = found["cell_estimates"].query("outcome == 'events_per_series'").set_index("cell")
    cnn = estimates.loc["cnn/digits"]
    assert cnn.n == 6 and cnn["mean"] == pytest.approx(np.mean(MANY) / 3) and cnn.lo < cnn["mean"] < cnn.hi
    coverage = found["interval_coverage"]
    assert set(coverage.n) == {4, 6} and coverage.query("recommended and n == 6").interval.unique().tolist() == ["hull"]


def test_events_per_series_stand_beside_the_false_ones_expected() -> None:
    tables = sweep({"cnn": MANY, "mlp": FEW}) | {"event_families": [family_row(null_events=0.9, n_calibrated=36)]}
    found = run(tables)
    for name in ("cell_estimates", "comparisons"):
        rows = found[name].groupby("outcome")["null_mean"].unique()
        assert rows.pop("events_per_series").tolist() == [pytest.approx(0.025)]
        assert all(np.isnan(values).all() for values in rows)


def test_pairs_are_used_where_they_can_reach_alpha_and_say_so() -> None:
    seven = {"cnn": [*MANY, 8], "mlp": [*FEW, 1]}
    row = run(sweep(seven))["comparisons"].query("confirmatory").iloc[0]
    assert (
        row.design == "paired" and row.p == row.p_paired == pytest.approx(2 / 128) and not np.isnan(row.rank_biserial)
    )
    row = run(sweep(seven), pairing="unpaired")["comparisons"].query("confirmatory").iloc[0]
    assert (row.design, row.design_reason) == ("unpaired", "as declared") and row.p == row.p_unpaired


@pytest.mark.slow
def test_without_a_difference_few_contrasts_are_significant() -> None:
    """40 sweeps of two models with the same Poisson rate: any confirmatory claim in 5 % + 3 SE at most."""
    rng = np.random.default_rng(1)
    claims = 0
    for _ in range(40):
        tables = sweep({"a": rng.poisson(3, 6).tolist(), "b": rng.poisson(3, 6).tolist()})
        claims += bool(run(tables, measures=())["comparisons"].query("confirmatory").significant.any())
    assert claims / 40 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)


def test_a_cell_that_never_trained_is_flagged_and_left_out_of_claims() -> None:
    tables = sweep({"cnn": MANY, "dead": FEW}, {"cnn": 0.9, "dead": 0.105})
    found = run(tables)
    status = found["cell_status"].set_index("cell")
    assert status.status.to_dict() == {"cnn/digits": "trained", "dead/digits": "never_trained"}
    assert status.excluded.tolist() == [False, True]
    assert status.margin.iloc[0] == pytest.approx(3.09 * np.sqrt(0.09 / 500)) and status.n_held_out.iloc[0] == 500
    rows = found["comparisons"].set_index("outcome")
    assert (
        np.isnan(rows.loc["events_per_series"].p)
        and rows.loc["events_per_series"].reason == "never trained: dead/digits"
    )
    assert rows.loc["final_accuracy"].p < 0.05
    named = found["cell_estimates"].query("cell == 'dead/digits' and outcome == 'events_per_series'")
    assert named.reason.iloc[0].startswith("cell never trained")


def test_a_constant_answer_is_no_learning_whatever_the_class_sizes() -> None:
    tables = sweep({"m": [1, 1]})
    for row in tables["evaluations"]:
        row |= {"class_accuracy": np.eye(10, dtype=np.float32)[3], "accuracy": 0.4}
    status = run(tables)["cell_status"].iloc[0]
    assert status.status == "never_trained" and status.accuracy == pytest.approx(0.4)
    assert status.balanced_accuracy == pytest.approx(0.1)


def test_one_seed_gives_rows_without_numbers_that_would_need_more() -> None:
    found = run(sweep({"cnn": [5], "mlp": [1]}))
    rows = found["comparisons"].query("outcome == 'events_per_series'")
    assert len(rows) == 1 and rows.reason.iloc[0] == "one seed" and rows.p.isna().all() and rows.lo.isna().all()
    assert rows.difference.iloc[0] == pytest.approx(4 / 3) and rows.smallest_p_adjusted.iloc[0] == 1
    assert (found["cell_estimates"].reason == "one seed").all() and found["interval_coverage"].empty


@pytest.mark.slow
def test_strata_groups_and_a_reference_level() -> None:
    both = [sweep({"cnn": MANY, "mlp_a": FEW, "mlp_b": FEW}, data=name) for name in ("digits", "mnist")]
    tables = {k: both[0][k] + both[1][k] for k in both[0] if k not in ("sweeps", "event_families")}
    tables |= {"event_families": [family_row()], "sweeps": sweep_row(["cnn", "mlp_a", "mlp_b"], 6, ["digits", "mnist"])}
    rows = run(tables)["comparisons"].query("outcome == 'events_per_series'")
    assert rows.groupby(["axis", "stratum"]).size().to_dict() == {
        ("data", "*"): 1, ("data", "cnn"): 1, ("data", "mlp_a"): 1, ("data", "mlp_b"): 1,
        ("model", "*"): 3, ("model", "digits"): 3, ("model", "mnist"): 3,
    }  # fmt: skip
    assert rows.confirmatory.sum() == 4 and set(rows[rows.axis == "data"].design_reason) == {"batches are not shared"}
    grouped = run(tables, group={"mlp_*": "mlp"})["comparisons"].query("axis == 'model' and confirmatory")
    assert grouped[["level_a", "level_b"]].to_numpy().tolist() == [["cnn", "mlp"]]
    assert grouped.mean_b.iloc[0] == pytest.approx(np.mean(FEW) / 3)
    against = run(tables, against="mlp_a")["comparisons"].query("axis == 'model' and confirmatory")
    assert sorted(against.level_a) == ["cnn", "mlp_b"] and set(against.level_b) == {"mlp_a"}


def test_empty_and_imported_sweeps() -> None:
    assert all(table.empty for table in run({}).values())
    tables = sweep({"cnn": MANY, "mlp": FEW}) | {"sweeps": None, "events": None, "evaluations": None}
    for row in tables["trials"]:
        row["spec"] = '{"measure": {"every": 5}}'
    found = run(tables)
    rows = found["comparisons"].query("outcome == 'events_per_series'")
    assert len(rows) == 1 and not rows.batches_shared.any() and rows.difference.iloc[0] == 0
    assert set(found["cell_status"].status) == {"unknown"}
    with pytest.raises(SpecError, match="unpaired"):
        run(tables, pairing="unpared")


def test_measures_are_taken_at_their_phase_and_diverged_trials_are_out() -> None:
    tables = sweep({"cnn": MANY, "mlp": FEW})
    tables["measurements"] = [
        {"trial_id": row["trial_id"], "step": step, "layer": layer, "layer_index": i, "view": "units",
         "participation_ratio": (10.0 if row["model"] == "cnn" else 5.0) + step / STEPS + row["seed_init"] / 10}
        for row in tables["trials"] for step in (0, 400, 600, STEPS) for i, layer in enumerate(LAYERS)
    ]  # fmt: skip
    tables["outcomes"][0]["status"] = "diverged"
    found = run(tables, phases=(0.5,))
    row = found["comparisons"].query("outcome == 'participation_ratio@0.5'").iloc[0]
    assert row.n_a == 5 and row.mean_b == pytest.approx(5.4 + 0.25) and row.mean_a == pytest.approx(10.4 + 0.3)
    assert found["cell_status"].set_index("cell").n_lost.to_dict() == {"cnn/digits": 1, "mlp/digits": 0}
