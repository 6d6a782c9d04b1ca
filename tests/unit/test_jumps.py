"""Jumps: true steps and phases, nothing dropped, nothing counted that is not on the grid, null counts beside all."""

import numpy as np
import pandas as pd
import pytest
from analysis_tables import TRIAL, measurements, noise, partition

from ndt_ray.analysis.jumps import compare_with_null, jumps, published_table, within_events
from ndt_ray.analysis.phases import jump_phases, phase_bin, published_phase_bin
from ndt_ray.errors import SpecError

STEPS = np.arange(0, 1001, 10)
RULE = {"difference_z": {"threshold": 6.0}}


def run(layers: dict, steps: np.ndarray = STEPS, total: int = 1000, every: int = 10, **parameters: object) -> dict:
    rows = measurements(layers, steps=steps, measure="participation_ratio", every=every)
    found = jumps(partition(rows, steps=total, every=every), **{"n_surrogates": 50, **parameters})
    return {name: table.to_pandas() for name, table in found.items()}


def raised(n: int, at: int, size: float = 40.0, seed: int = 0) -> np.ndarray:
    values = noise(n, seed)
    values[at:] += size
    return values


@pytest.mark.parametrize(
    ("at", "phase", "name"), [(10, 0.09, "early"), (11, 0.1, "mid"), (51, 0.5, "late"), (100, 0.99, "late")]
)
def test_a_planted_jump_has_its_true_steps_phase_and_bin(at: int, phase: float, name: str) -> None:
    (row,) = run({"fc": raised(101, at)}, rules=RULE)["jumps"].to_dict("records")
    assert (row["step_before"], row["step_after"]) == (10 * at - 10, 10 * at)
    assert row["phase"] == pytest.approx(phase) and row["phase_bin"] == name
    assert row["counted"] and row["direction"] == "increase" and row["index"] == at - 1
    assert row["magnitude"] == pytest.approx(40, abs=5) and row["relative_magnitude"] > 2
    assert row["trial_id"] == TRIAL and row["layer"] == "fc" and row["grid_every"] == 10


def test_window_and_speed_are_changes_a_step() -> None:
    (row,) = run({"fc": raised(101, 50)}, rules=RULE)["jumps"].to_dict("records")
    values = raised(101, 50)
    assert row["speed"] == abs(values[51] - values[47]) / 40
    assert row["window_change"] == values[50] - values[48] and row["window_speed"] == row["window_change"] / 20


def test_the_change_out_of_step_0_is_shown_not_counted_and_does_not_hide_others() -> None:
    values = raised(101, 50)
    values[0] -= 10_000  # among the differences it would make any other's z small
    found = run({"fc": values}, rules=RULE)
    assert found["jumps"]["index"].tolist() == [0, 49]
    assert found["jumps"]["counted"].tolist() == [False, True]
    (count,) = found["jump_counts"].to_dict("records")
    assert (count["observed"], count["shown"], count["n"]) == (1, 1, 100)


def test_only_the_even_grid_is_used() -> None:
    steps = np.array([*range(21), *range(30, 1001, 10)])
    values = noise(len(steps))
    values[5] += 100  # at step 5, between grid points
    found = run({"fc": values}, steps=steps, rules=RULE)
    assert len(found["jumps"]) == 0 and found["jump_counts"]["n"].tolist() == [100]


def test_holes_are_left_out_and_said_so() -> None:
    values = raised(101, 80)
    values[30] = np.nan
    found = run({"fc": values}, rules=RULE)
    assert found["jumps"]["step_after"].tolist() == [800] and found["jumps"]["index"].tolist() == [79]
    (count,) = found["jump_counts"].to_dict("records")
    assert (count["n"], count["n_missing"]) == (70, 31)


def test_constant_layers_have_no_jumps_no_null_and_a_flag() -> None:
    almost = 5 + np.float32(5e-7) * np.random.default_rng(0).integers(0, 2, 101)
    found = run({"dead": np.full(101, 3.0), "rounding": almost})
    assert len(found["jumps"]) == 0
    by_layer = found["jump_counts"].query("detector == 'difference_z'")
    assert by_layer["flag"].tolist() == ["constant", "constant"] and by_layer["p_white"].isna().all()


def test_a_layer_that_is_null_throughout_is_no_series() -> None:
    found = run({"dead": np.full(101, np.nan), "fc": noise(101)}, rules={"difference_z": {}})
    assert found["jump_counts"]["layer"].tolist() == ["fc"]


def test_the_smoothed_rule_judges_the_mean_over_layers_and_only_where_all_are_measured() -> None:
    bump = np.zeros(101)
    bump[50:] = 30
    found = run({"a": noise(101, 1) + bump, "b": noise(101, 2) + bump}, rules={"smoothed_gradient": {}})
    assert set(found["jumps"]["layer"]) == {"*"} and set(found["jumps"]["layer_index"]) == {-1}
    assert ((found["jumps"]["step_before"] <= 500) & (found["jumps"]["step_after"] >= 500)).any()
    assert found["jumps"]["step_before"].between(430, 570).all()
    holed = noise(101, 1)
    holed[:60] = np.nan
    found = run({"a": holed, "b": noise(101, 2)}, rules={"smoothed_gradient": {}})
    assert found["jump_counts"][["n", "n_missing"]].to_numpy().tolist() == [[41, 60]]


def test_noise_has_as_many_jumps_as_its_nulls_and_the_comparison_says_within() -> None:
    found = run({f"layer{i}": noise(101, 60 + i) for i in range(40)}, rules={"difference_z": {}, "rolling_level": {}})
    table = compare_with_null(found["jump_counts"]).set_index("detector")
    row = table.loc["difference_z"]
    assert row["verdict_white"] == row["verdict_ar1"] == "within" and row["series"] == 40
    assert row["white_lo"] < row["expected_white"] < row["white_hi"]
    assert table.loc["rolling_level", "verdict_white"] == "within"


def test_repeated_jumps_stand_above_both_nulls_and_a_transient_hides_behind_its_own_spread() -> None:
    rare = {"difference_z": {"threshold": 4.0}}
    jumpy = sum((40.0 * (-1) ** k * (np.arange(401) >= 50 * k) for k in range(1, 8)), start=noise(401, 9))
    found = run({"fc": jumpy}, steps=np.arange(401) * 10, total=4000, rules=rare)
    (row,) = compare_with_null(found["jump_counts"]).to_dict("records")
    assert row["observed"] == 7 and row["verdict_white"] == row["verdict_ar1"] == "above"
    assert found["jump_counts"]["p_white"].tolist() == found["jump_counts"]["p_ar1"].tolist() == [1 / 51]
    decay = 10 + 50 * np.exp(-np.arange(101.0))
    found = run({f"layer{i}": decay + 0.01 * noise(101, i) for i in range(8)}, rules={"difference_z": {}})
    assert compare_with_null(found["jump_counts"])["verdict_white"].tolist() == ["below"]


def test_velocities_are_judged_where_that_is_asked_for_rates_by_their_logarithm() -> None:
    rows = measurements({"fc": noise(101)}, steps=STEPS, measure="participation_ratio", every=10)
    speed = np.exp(0.1 * noise(101, 3, level=0.0) - 7)
    speed[60] *= 20
    moved = pd.DataFrame({"trial_id": TRIAL, "step": STEPS, "layer": "fc", "layer_index": 0, "velocity": speed})
    moved = moved.assign(previous_step=moved["step"].shift(1), label_alignment=np.where(STEPS >= 300, 0.9, 0.2))
    moved["label_alignment"] += 0.01 * noise(101, 4, level=0.0)
    data = partition(rows, steps=1000, every=10, velocity=moved)
    usual = jumps(data, n_surrogates=20, rules=RULE)["jump_counts"].to_pandas()
    assert usual["measure"].tolist() == ["participation_ratio"]
    asked = {"velocities": ["velocity", "label_alignment"], "measures": [], "n_surrogates": 20, "rules": RULE}
    found = {name: table.to_pandas() for name, table in jumps(data, **asked).items()}
    assert found["jump_counts"][["measure", "view", "n"]].to_numpy().tolist() == [
        ["label_alignment", "kernel", 100],
        ["velocity", "kernel", 100],
    ]
    (level,) = found["jumps"].query("measure == 'label_alignment'").to_dict("records")
    assert (level["step_before"], level["step_after"]) == (290, 300) and level["relative_magnitude"] > 2
    rates = found["jumps"].query("measure == 'velocity'")
    assert rates[["step_before", "direction"]].to_numpy().tolist() == [[590, "increase"], [600, "decrease"]]
    assert rates["magnitude"].tolist() == pytest.approx([np.log(20)] * 2, abs=0.5)
    assert rates["relative_magnitude"].tolist() == pytest.approx([19, 0.95], rel=0.4)


def test_results_do_not_depend_on_the_order_of_rows_or_layers_and_repeat_exactly() -> None:
    layers = {"a": noise(101, 1), "b": noise(101, 2)}
    rows = measurements(layers, steps=STEPS, measure="participation_ratio", every=10)
    first, second = (
        jumps(partition(r, steps=1000, every=10), n_surrogates=20)
        for r in (rows, rows.sample(frac=1, random_state=0, ignore_index=True))
    )
    assert first["jumps"].equals(second["jumps"]) and first["jump_counts"].equals(second["jump_counts"])


def test_no_measurements_give_empty_tables_of_the_declared_columns() -> None:
    found = jumps(partition(pd.DataFrame(), steps=100, every=10))
    assert found["jumps"].num_rows == found["jump_counts"].num_rows == 0
    assert "phase_bin" in found["jumps"].column_names and "null_ar1_mean" in found["jump_counts"].column_names


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_runs_of_a_few_measurements_are_reported_not_judged(n: int) -> None:
    found = run({"fc": noise(n)}, steps=np.arange(n) * 10)
    assert len(found["jumps"].query("counted")) == 0
    assert (found["jump_counts"]["flag"] == "short").all()


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'n_surrogates'"):
        run({"fc": noise(101)}, n_surogates=3)
    with pytest.raises(SpecError, match="unknown detector"):
        run({"fc": noise(101)}, rules={"pelt": {}})
    with pytest.raises(SpecError, match="unknown mode 'orignal'.*'original'"):
        run({"fc": noise(101)}, modes=["orignal"])


def test_original_mode_speaks_in_indices_and_loses_phase_zero_as_published() -> None:
    steps = np.arange(400) * 5 + 1
    values = np.ones(400)
    values[1:] -= 1e-12
    values[301:] -= 1e-12
    original = measurements({"network.0": values}, steps=steps, measure="stable_rank", every=5)
    original["participation_ratio"] = 1.0
    data = partition(pd.DataFrame(), steps=2000, every=5, original=original)
    table = jumps(data, n_surrogates=20)["jumps"].to_pandas()
    assert table["index"].tolist() == [0, 300] and table["phase"].tolist() == [0.0, 0.15]
    assert table["phase_bin"].fillna("").tolist() == ["", "mid"]
    assert table["step_before"].tolist() == [1, 1501]  # the true steps stay true
    phases = jump_phases(table).set_index("phase_bin")["percent"]
    assert phases.to_dict() == {"early": 0, "mid": 50, "late": 0, "dropped": 50}
    names = pd.DataFrame({"trial_id": [TRIAL], "experiment": ["e"], "arch_name": ["mlp"], "dataset": ["mnist"]})
    published = published_table(table, names)
    assert published["step"].tolist() == [0, 300] and set(published["phase_category"]) == {"early"}


def test_bins_are_half_open_the_last_closed_and_the_published_ones_the_other_way_round() -> None:
    edges = [0.0, 0.0999, 0.1, 0.4999, 0.5, 1.0]
    assert phase_bin(edges).tolist() == ["early", "early", "mid", "mid", "late", "late"]
    assert published_phase_bin(edges).tolist() == [None, "early", "early", "mid", "mid", "late"]
    for wrong in (-0.1, 1.01, float("nan")):
        with pytest.raises(SpecError, match=r"\[0, 1\]"):
            phase_bin([0.5, wrong])


def test_phases_of_a_group_sum_to_100_percent_and_name_empty_bins() -> None:
    found = run({"a": raised(101, 5), "b": raised(101, 30), "c": raised(101, 31)}, rules=RULE)["jumps"]
    table = jump_phases(found)
    assert table["n"].tolist() == [1, 2, 0] and table["percent"].sum() == pytest.approx(100)
    assert jump_phases(found, by=()).shape == (3, 3)
    assert jump_phases(found.iloc[:0]).empty


def test_jumps_within_events_are_counted_beside_what_random_places_would_give() -> None:
    def jump(trial: str, layer: int, *onsets: int) -> list[dict[str, object]]:
        return [{"trial_id": trial, "layer_index": layer, "step_before": s, "step_after": s + 10} for s in onsets]

    flagged = pd.DataFrame([*jump("a", 0, 10, 30, 50, 90), *jump("a", 1, 30), *jump("b", 0, 30)])
    series = [("a", 0, 10, 11), ("a", 1, 10, 11), ("b", 0, 10, 11)]
    counts = pd.DataFrame(series, columns=["trial_id", "layer_index", "grid_every", "n"])
    # Two events that overlap cover three intervals of ten; another series' event holds none of its jumps.
    events = pd.DataFrame(
        [("a", 0, 30, 50), ("a", 0, 40, 60), ("b", 0, 70, 80)],
        columns=["trial_id", "layer_index", "step_before", "step_after"],
    )
    assert within_events(flagged, counts, events) == (2, pytest.approx(4 * 3 / 10 + 1 / 10))
    assert within_events(flagged, counts, events.iloc[:0]) == (0, 0.0)
