"""Series of a trial are tested on their grids, events judged over a family, and every count stands beside its null."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.detection.maxtest import LEAST
from ndt_ray.analysis.events.described import Deletions, Run, blocks
from ndt_ray.analysis.events.families import events, judged
from ndt_ray.analysis.events.grid import log_steps
from ndt_ray.analysis.events.series_tests import series_tests
from ndt_ray.errors import SpecError

TRIAL = "0123456789abcdef"
EVERY, STEPS = 5, 1500
GRID = np.arange(0, STEPS + 1, EVERY)
QUICK = {"n_surrogates": 200, "most_surrogates": 400}


def noise(seed: int, n: int = len(GRID), sd: float = 0.1) -> np.ndarray[Any, np.dtype[np.float64]]:
    return sd * np.random.default_rng(seed).normal(size=n)


def rows(layer: int, values: Any, steps: Any = GRID, measure: str = "participation_ratio") -> pd.DataFrame:
    known = {"trial_id": TRIAL, "step": steps, "layer": f"fc{layer}", "layer_index": layer, "view": "units"}
    return pd.DataFrame({**known, measure: values})


SPEC = json.dumps({"measure": {"every": EVERY}})


def run(measurements: pd.DataFrame | None = None, **tables: pd.DataFrame) -> AnalysisInput:
    trials = pd.DataFrame([{"trial_id": TRIAL, "steps": STEPS, "spec": SPEC}])
    every = {"trials": trials, "measurements": measurements, **tables}
    arrow = {name: pa.table({}) if t is None else pa.Table.from_pandas(t) for name, t in every.items()}
    return AnalysisInput("s", Partition(TRIAL), {n: arrow.get(n, pa.table({})) for n in series_tests.reads})


def step_at(layer: int, step: int, size: float, seed: int = 0) -> pd.DataFrame:
    return rows(layer, 10 + noise(seed) + size * (GRID >= step))


def spectra(layer: int, values: Any, steps: Any = GRID, error: float = 0.01) -> pd.DataFrame:
    """16 delete-block values around each value; the blocks' deviations are shared by all steps but for `error`."""
    rng = np.random.default_rng(9)
    shared = rng.normal(size=16)
    own = [list(v + shared + error * rng.normal(size=16)) for v in values]
    known = {"trial_id": TRIAL, "step": steps, "layer": f"fc{layer}", "layer_index": layer, "view": "units"}
    return pd.DataFrame({**known, "delete_block_pr": own})


def test_the_end_of_an_epoch_tells_nothing_where_every_measurement_has_one() -> None:
    scalars = pd.DataFrame({"trial_id": TRIAL, "step": GRID, "lr": 1e-3, "epoch_boundary": GRID > 0})
    data = run(rows(0, 10 + noise(0) + 1.5 * (GRID >= 800)), scalars=scalars)
    (event,) = series_tests(data, measures=["participation_ratio"], **QUICK)["event_candidates"].to_pylist()
    assert event["near_epoch_boundary"] is None and event["near_lr_change"] is False


def test_a_planted_step_is_a_candidate_with_all_that_stands_beside_it() -> None:
    values = 10 + noise(0) + 1.5 * (GRID >= 800)
    scalars = pd.DataFrame({"trial_id": TRIAL, "step": GRID, "lr": np.where(GRID < 800, 1e-3, 1e-4)})
    scalars["epoch_boundary"] = GRID == 700
    curvature = pd.DataFrame({"trial_id": TRIAL, "step": [0, 500, 1000], "sharpness": [1.0, 2.0, 3.0]})
    at = np.array([0, 750, 850, 1500])
    confirmed = rows(0, [10.0, 10.0, 11.2, 11.2], at)
    data = run(
        rows(0, values),
        scalars=scalars,
        curvature=curvature,
        spectra=spectra(0, values),
        confirmations=confirmed,
        confirmation_spectra=spectra(0, [10.0, 10.0, 11.2, 11.2], at),
    )
    found = series_tests(data, measures=["participation_ratio"], **QUICK)
    tests, candidates = found["series_tests"].to_pylist(), found["event_candidates"].to_pylist()
    assert len(tests) == 1 and len(candidates) == 1
    test, event = tests[0], candidates[0]
    assert test["kind"] == "calibrated" and test["p"] < 1e-3 and test["n_surrogates"] >= 200
    assert (
        test["grid_every"] == EVERY and test["grid_start"] >= EVERY and test["n"] + test["grid_start"] // EVERY == 301
    )
    assert test["candidates"] == 1 and 0 < test["null_candidates"] < 0.2
    assert (event["step_before"], event["step_after"], event["kind"]) == (795, 800, "step")
    assert event["direction"] == "increase" and event["size"] == pytest.approx(1.5, abs=0.2)
    assert event["relative_size"] == pytest.approx(0.15, abs=0.03) and event["width"] == EVERY
    assert event["snr"] > 10 and event["phase"] == pytest.approx(795 / 1500) and event["phase_bin"] == "late"
    assert (
        event["near_lr_change"] is True and event["near_epoch_boundary"] is False and event["sharpness_before"] == 2.0
    )
    assert event["confirm_size"] == pytest.approx(1.2, abs=1e-6)
    assert event["confirm_relative"] == pytest.approx(0.12, abs=1e-6)
    assert event["confirm_lo"] < 1.2 < event["confirm_hi"] < 1.4


def test_too_small_changes_are_no_candidates() -> None:
    tiny = rows(0, 10 + noise(1, sd=0.002) + 0.05 * (GRID >= 800))
    assert len(series_tests(run(tiny), **QUICK)["event_candidates"]) == 0
    assert len(series_tests(run(tiny), least_relative=0.001, **QUICK)["event_candidates"]) == 1
    values = 10 + noise(2) + 1.5 * (GRID >= 800)
    uncertain = run(rows(0, values), spectra=spectra(0, values, error=1.0))
    assert len(series_tests(uncertain, **QUICK)["event_candidates"]) == 0


def test_denser_sampling_at_the_start_makes_no_event_at_its_end() -> None:
    steps = np.unique(np.r_[0:200, GRID])
    smooth = 10 - np.exp(-steps / 400) + 0.02 * np.random.default_rng(3).normal(size=len(steps))
    rate = 0.01 * np.exp(0.3 * np.random.default_rng(4).normal(size=len(steps)))
    previous = np.r_[np.nan, steps[:-1]]
    moves = rows(0, rate * np.where(steps <= 200, 0.2, 1.0), steps, "velocity").drop(columns="view")
    found = series_tests(run(rows(0, smooth, steps), velocity=moves.assign(previous_step=previous)), **QUICK)
    tests = found["series_tests"].to_pylist()
    assert {t["measure"] for t in tests} == {"participation_ratio", "velocity"}
    assert all(t["p"] > 0.01 for t in tests) and len(found["event_candidates"]) == 0
    assert next(t for t in tests if t["measure"] == "velocity")["grid_start"] >= 200


def test_a_rotation_that_no_spectrum_sees_is_found_by_velocity() -> None:
    rate = 0.001 * np.exp(0.3 * np.random.default_rng(5).normal(size=len(GRID)))
    rate[160] = 0.4  # between steps 795 and 800
    moves = rows(0, rate, GRID, "velocity").drop(columns="view").assign(previous_step=np.r_[np.nan, GRID[:-1]])
    found = series_tests(run(rows(0, 10 + noise(6)), velocity=moves), **QUICK)
    (event,) = found["event_candidates"].to_pylist()
    assert event["measure"] == "velocity" and event["view"] == "kernel" and event["kind"] == "bump"
    assert (event["step_before"], event["step_after"]) == (795, 800) and event["size"] > 0.1
    assert event["p_event"] < 0.01


def test_a_placebo_has_no_variance_and_no_event() -> None:
    still = pd.concat([rows(0, np.full(len(GRID), 4.25)), rows(1, np.full(len(GRID), 1.5))])
    moves = rows(0, np.zeros(len(GRID)), GRID, "velocity").drop(columns="view")
    found = series_tests(run(still, velocity=moves.assign(previous_step=np.r_[np.nan, GRID[:-1]])), **QUICK)
    tests = found["series_tests"].to_pylist()
    assert len(tests) == 3 and {t["kind"] for t in tests} == {"constant"}
    assert all(t["p"] is None and not t["calibrated"] and t["candidates"] == 0 for t in tests)
    assert len(found["event_candidates"]) == 0 and set(found["transients"].column("flag").to_pylist()) <= {
        "constant",
        "none",
    }


def test_bad_input_gives_honest_rows_or_clear_errors() -> None:
    assert all(t.num_rows == 0 for t in series_tests(run()).values())
    holes = step_at(0, 800, 1.5)
    holes.loc[[3, 40, 41], "participation_ratio"] = np.nan
    shuffled = holes.sample(frac=1, random_state=0)
    one, other = (series_tests(run(r), **QUICK)["series_tests"].to_pylist() for r in (holes, shuffled))
    assert one == other and one[0]["n_missing"] > 0 and one[0]["p"] < 0.01
    two = series_tests(run(rows(0, [1.0, 2.0], [0, 5])))["series_tests"].to_pylist()
    assert two[0]["kind"] == "short" and two[0]["p"] is None
    nothing = series_tests(run(rows(0, np.full(len(GRID), np.nan))))
    assert nothing["series_tests"].num_rows == 0
    with pytest.raises(SpecError, match="steps must rise"):
        series_tests(run(pd.concat([holes, holes])))
    with pytest.raises(SpecError, match="did you mean 'block'"):
        series_tests(run(holes), nulls=["blocks"])
    with pytest.raises(SpecError, match="unknown grid"):
        series_tests(run(holes), grid="cubic")


def test_a_log_grid_is_chosen_among_the_measured_steps() -> None:
    measured = np.unique(np.r_[0, np.rint(np.geomspace(1, 3000, 60)), np.arange(0, 3001, 50)]).astype(np.int64)
    chosen = log_steps(measured)
    assert len(chosen) >= 24 and set(chosen) <= set(measured) and 0 not in chosen
    gaps = np.diff(np.log(chosen))
    assert gaps.max() / gaps.mean() < 1.45 and gaps.min() / gaps.mean() > 0.55
    assert log_steps(np.arange(10)).size == 0
    values = 10 + noise(7, len(measured)) + 2 * (measured > 300)
    data = run(rows(0, values, measured))
    (test,) = series_tests(data, grid="log", **QUICK)["series_tests"].to_pylist()
    assert test["grid_every"] == 0 and test["n"] <= len(chosen)


def test_the_paired_error_is_that_of_the_same_stimuli_left_out() -> None:
    table = pa.Table.from_pandas(spectra(0, [10.0, 12.0], [5, 10], error=0.0))
    held = blocks(table)[0, "units"]
    change = held.change(5, 10)
    assert change.size == pytest.approx(2) and change.error == pytest.approx(0, abs=1e-9) and change.blocks == 16
    assert np.isnan(held.change(5, 7).error) and blocks(pa.table({})) == {}
    noisy = blocks(pa.Table.from_pandas(spectra(0, [10.0, 12.0], [5, 10], error=0.1)))[0, "units"]
    values = noisy.values[1] - noisy.values[0]
    assert noisy.change(5, 10).error == pytest.approx(np.sqrt(15 / 16 * ((values - values.mean()) ** 2).sum()))


def test_a_checkpoint_of_the_transient_confirms_nothing() -> None:
    known = Run(pd.DataFrame(), pd.DataFrame(), rows(0, [1.0, 5.0], [0, 900]), {}, Deletions(pd.DataFrame(), {}), STEPS)

    def confirmed(since: int, share: float) -> tuple[float | None, str]:
        found, _, source = known.confirmed(0, "units", "participation_ratio", 795, 800, since, share)
        return found["confirm_size"], source

    assert confirmed(100, 1.0) == (None, "no_checkpoints") and confirmed(0, 0.1) == (None, "no_checkpoints")
    assert confirmed(0, 1.0) == (4.0, "no_blocks")


def siblings(values: Any, count: int, step: int, seed: int, steps: Any = GRID) -> pd.DataFrame:
    """Rows of so many siblings of a trial whose course is `values`: alike until the step, then with their own noise."""
    made = []
    for k in range(count):
        own = np.where(steps <= step, values, values + 2**0.5 * noise(seed + k, len(steps)))
        made.append(rows(0, own, steps).assign(trial_id=f"s{k}", control=f"reorder:{k + 1}@{step}"))
    return pd.concat(made, ignore_index=True)


def test_siblings_stand_for_what_batch_order_does() -> None:
    calm = 10 - np.exp(-GRID / 300)
    moved = rows(0, calm + noise(1) + 1.5 * (GRID >= 800))
    data = run(moved, sibling_measurements=siblings(calm, 19, 100, 50))
    found = series_tests(data, nulls=["ar_sieve", "siblings"], **QUICK)
    one, other = sorted(found["series_tests"].to_pylist(), key=lambda t: t["null"])
    assert (one["null"], other["null"]) == ("ar_sieve", "siblings") and len(found["transients"]) == 1
    assert other["p"] == pytest.approx(1 / 20) and other["n_surrogates"] == 19 and other["grid_start"] > 100
    event = next(e for e in found["event_candidates"].to_pylist() if e["null"] == "siblings")
    assert abs(event["step_before"] - 795) <= 10 and event["p_event"] == pytest.approx(1 / 20)


def test_siblings_that_cannot_be_compared_are_left_out_and_too_few_are_said() -> None:
    calm, others = 10 - np.exp(-GRID / 300), siblings(10 - np.exp(-GRID / 300), 5, 100, 50)
    short = others[(others["trial_id"] != "s0") | (others["step"] < 900)]
    both = pd.concat([short, siblings(calm, 3, 400, 90)])
    trial = rows(0, calm + noise(1))

    def tested(others: pd.DataFrame | None, **parameters: Any) -> list[dict[str, Any]]:
        data = run(trial, **({} if others is None else {"sibling_measurements": others}))
        found = series_tests(data, nulls=["siblings"], **parameters)
        return list(found["series_tests"].to_pylist())

    assert [t["n_surrogates"] for t in tested(both)] == [4]
    (late,) = tested(both, branch_step=400)
    assert late["n_surrogates"] == 3 and late["grid_start"] > 400
    for none in (None, others[others["trial_id"].isin(["s0", "s1"])]):
        (few,) = tested(none)
        assert few["kind"] == "few_siblings" and few["p"] is None and not few["calibrated"]
    with pytest.raises(SpecError, match="they do at 100, 400"):
        tested(both, branch_step=7)
    branch = pd.DataFrame([{"trial_id": TRIAL, "steps": STEPS, "control": "reorder:1@5", "spec": SPEC}])
    sibling = run(trial, trials=branch)
    assert series_tests(sibling, nulls=["siblings"])["series_tests"].num_rows == 0


@pytest.mark.slow
def test_the_null_of_siblings_keeps_its_level() -> None:
    """60 trials without an event, 9 siblings each: p at most .1 in no more than 15 %, and two standard errors."""
    calm, low = 10 - np.exp(-GRID / 300), 0
    for r in range(60):
        own = np.where(GRID <= 100, calm, calm + 2**0.5 * noise(10_000 + r))
        data = run(rows(0, own), sibling_measurements=siblings(calm, 9, 100, 100 * r))
        low += series_tests(data, nulls=["siblings"])["series_tests"].to_pylist()[0]["p"] <= 0.1
    assert low / 60 <= 0.15 + 2 * np.sqrt(0.15 * 0.85 / 60)


def series_of(p: list[float], trial: str = "t", measure: str = "participation_ratio") -> pd.DataFrame:
    known = [
        {
            "trial_id": trial,
            "layer": f"fc{i}",
            "layer_index": i,
            "view": "units",
            "measure": measure,
            "detector": "profile",
            "null": "ar_sieve",
            "calibrated": not np.isnan(one),
            "p": one,
            "n_surrogates": 500,
            "p_attainable": LEAST,
            "tail": "pareto" if one < 0.01 else "counted",
            "null_candidates": 0.05,
        }
        for i, one in enumerate(p)
    ]
    return pd.DataFrame(known)


def candidates_of(tests: pd.DataFrame, p: dict[int, float]) -> pd.DataFrame:
    chosen = tests.iloc[list(p)][["trial_id", "layer", "layer_index", "view", "measure", "detector", "null"]]
    what = {"step_before": 100, "step_after": 105, "step_location": 102.5, "width": 5.0, "kind": "step", "scale": 1}
    what |= {"direction": "increase", "size": 1.0, "relative_size": 0.1, "snr": 9.0, "statistic": 6.0}
    what |= {"phase": 0.1, "phase_bin": "mid", "near_lr_change": False, "near_epoch_boundary": False}
    what |= {"sharpness_before": None, "confirm_size": None, "confirm_relative": None}
    what |= {"confirm_lo": None, "confirm_hi": None, "confirm_relative_lo": None, "confirm_relative_hi": None}
    what |= {"snr_from": "detect"}
    return chosen.assign(**what, p_event=list(p.values())).reset_index(drop=True)


def test_selection_and_level_follow_benjamini_hochberg_and_bogomolov() -> None:
    tests = series_of([1e-5, 0.012, 0.2, 0.5, 0.9, float("nan")])
    found, family = judged(tests, candidates_of(tests, {0: 1e-5, 1: 0.03, 2: 0.001, 5: 0.001}), 0.05)
    # q over five: 5e-5, 0.03, 1/3, ...; two of five are selected: level 0.05 * 2 / 5.
    by_layer = found.set_index("layer_index")
    assert by_layer["q"].tolist()[:3] == pytest.approx([5e-5, 0.03, 1 / 3]) and np.isnan(by_layer["q"].iloc[3])
    assert by_layer["level"].iloc[0] == pytest.approx(0.02)
    assert by_layer["significant"].tolist() == [True, False, False, False]
    assert family["n_series"] == 6 and family["n_calibrated"] == 5 and family["n_selected"] == 2
    assert family["n_candidates"] == 4 and family["null_candidates"] == pytest.approx(0.3)
    assert family["n_events"] == 1 and family["null_events"] == pytest.approx(0.05)
    assert family["q_attainable"] == pytest.approx(5e-9) == by_layer["q_attainable"].iloc[2]


@pytest.mark.parametrize(("most", "reach"), [(400, 40e-9), (100, 40 / 101)])
def test_what_a_quiet_family_could_have_shown_is_no_matter_of_how_soon_it_was_quiet(most: int, reach: float) -> None:
    """Dull series are decided by few surrogates; a loud one would have had more, or the fitted tail."""
    values = np.random.default_rng(5).normal(10, 1, (40, 60))
    quiet = pd.concat([rows(i, v, np.arange(60) * EVERY) for i, v in enumerate(values)])
    found = series_tests(run(quiet), measures=["participation_ratio"], n_surrogates=50, most_surrogates=most)
    tests, candidates = (found[name].to_pandas() for name in ("series_tests", "event_candidates"))
    assert (tests["n_surrogates"] < 400).any() and tests["calibrated"].all()
    family = judged(tests, candidates, 0.05)[1]
    assert family["q_attainable"] == pytest.approx(reach) and family["n_events"] == 0


def sweep(tests: pd.DataFrame, candidates: pd.DataFrame, trials: pd.DataFrame) -> dict[str, pa.Table]:
    tables = {"trials": trials, "series_tests": tests, "event_candidates": candidates}
    return events(AnalysisInput("s", Partition(), {n: pa.Table.from_pandas(t) for n, t in tables.items()}))


def test_control_lanes_are_families_of_their_own() -> None:
    real, placebo = series_of([1e-6, 0.3], "a"), series_of([float("nan")] * 2, "b")
    shuffled, other = series_of([1e-6, 1e-6], "c"), series_of([0.5], "a", "stable_rank")
    trials = pd.DataFrame({"trial_id": ["a", "b", "c"], "control": ["none", "lr0", "shuffled_labels"]})
    candidates = pd.concat([candidates_of(real, {0: 1e-6}), candidates_of(shuffled, {0: 1e-6, 1: 1e-6})])
    found = sweep(pd.concat([real, placebo, shuffled, other]), candidates, trials)
    families = {r["family"]: r for r in found["event_families"].to_pylist()}
    assert set(families) == {"primary", "stable_rank", "lr0: primary", "shuffled_labels: primary"}
    assert [n for n, r in families.items() if r["primary"]] == ["primary"]
    assert families["primary"]["n_series"] == 2 and families["primary"]["n_events"] == 1
    assert families["lr0: primary"]["n_calibrated"] == 0 and families["lr0: primary"]["q_attainable"] is None
    rows_ = found["events"].to_pylist()
    assert len(rows_) == 3 and sum(r["significant"] for r in rows_ if r["family"] == "primary") == 1


def test_one_rare_event_among_many_series_stays_detectable() -> None:
    """Counted with 500 surrogates its q could not be below 1; the fitted tail's can."""
    p = np.random.default_rng(0).random(2400)
    p[7] = 5e-6
    tests = series_of(list(p))
    found, family = judged(tests, candidates_of(tests, {7: 5e-6}), 0.05)
    assert found["q"].iloc[0] < 0.05 and bool(found["significant"].iloc[0]) and family["n_events"] == 1


def test_the_declared_family_is_named_by_what_differs_and_its_absence_is_told() -> None:
    tables = {n: pa.table({}) for n in events.reads} | {"series_tests": pa.Table.from_pandas(series_of([0.4, 0.6]))}
    for measure, declared in (("participation_ratio", True), ("rankme", False)):
        data = AnalysisInput("s", Partition(), tables)
        (family,) = events(data, primary={"measure": measure})["event_families"].to_pylist()
        assert family["primary"] is declared
        said = (
            []
            if declared
            else ["no series was tested of the declared family (measure rankme, detector profile, null ar_sieve)"]
        )
        assert data.notes == said


def test_nothing_tested_gives_no_rows_and_wrong_parameters_are_named() -> None:
    empty = pd.DataFrame()
    assert all(t.num_rows == 0 for t in sweep(empty, empty, empty).values())
    quiet = sweep(series_of([0.4, 0.6]), empty, empty)
    assert quiet["events"].num_rows == 0 and quiet["event_families"].to_pylist()[0]["n_events"] == 0
    with pytest.raises(SpecError, match="alpha"):
        events(AnalysisInput("s", Partition(), {n: pa.table({}) for n in events.reads}), alpha=1.5)
    with pytest.raises(SpecError, match="primary names"):
        events(AnalysisInput("s", Partition(), {n: pa.table({}) for n in events.reads}), primary={"measures": "x"})
