"""Independent curves that only share a slow-down are not called coordinated; planted bursts and couplings are found."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from analysis_tables import TRIAL, measurements, trial
from phase1_frames import given, trials

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.critical import rates
from ndt_ray.analysis.critical.coordination import coordination_tests, partners
from ndt_ray.analysis.critical.periods import above, critical_periods
from ndt_ray.analysis.critical.rate_tests import bursts, couplings, pair_tests

N = 200
SLOWING = {"exponential": np.exp(-np.arange(N) / 30) + 0.003, "power": 1 / (1.0 + np.arange(N)), "steady": np.ones(N)}


def curve(rng: np.random.Generator, rate: np.ndarray, extra: np.ndarray | None = None) -> np.ndarray:
    """10 + the path of a velocity that slows down at `rate`, with AR(1) noise of a phi of its own, in proportion."""
    noise = rng.standard_normal(len(rate))
    phi = rng.choice([0.0, 0.5, 0.8])
    for i in range(1, len(noise)):
        noise[i] += phi * noise[i - 1]
    speed = rng.uniform(0.5, 1.5) + 0.7 * noise
    return 10 + np.cumsum(rate * speed * (1 if extra is None else extra))


@pytest.mark.slow
@pytest.mark.parametrize("slowing", SLOWING)
def test_curves_that_share_only_a_slow_down_are_rejected_at_the_nominal_rate(slowing: str) -> None:
    """100 trials of 3 layers and a loss; the bar is 7 % at .05, widened by two standard errors of these few."""
    rng, reps = np.random.default_rng(7), 100
    hits = dict.fromkeys(("together", "pairs", "loss", "burst"), 0.0)
    for r in range(reps):
        layers, loss = np.array([curve(rng, SLOWING[slowing]) for _ in range(3)]), curve(rng, SLOWING[slowing])
        white = np.array([rates.innovations(rates.activity(v, 31)) for v in layers])
        pairs, _, p = pair_tests(white, 5, 99, slowing, str(r))
        tests = couplings(white, rates.innovations(rates.activity(loss, 31)), 5, 99, slowing, str(r))
        hits["together"] += p <= 0.05
        hits["pairs"] += np.mean([row["p"] <= 0.05 for row in pairs])
        hits["loss"] += np.mean([row["p"] <= 0.05 for row in tests])
        hits["burst"] += bursts(layers[0], 99, slowing, str(r)).p <= 0.05
    assert all(h / reps <= 0.07 + 2 * np.sqrt(0.07 * 0.93 / reps) for h in hits.values()), hits


def test_the_naive_reading_of_the_same_curves_is_wrong_nearly_always() -> None:
    """What the tests above are for: plain correlation of the two speeds, against shifts."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(40):
        a, b = (np.abs(np.diff(curve(rng, SLOWING["exponential"]))) for _ in range(2))
        null = [np.corrcoef(a, np.roll(b, k))[0, 1] for k in range(1, len(b), 2)]
        hits += np.mean(null >= np.corrcoef(a, b)[0, 1]) <= 0.05
    assert hits >= 32


def test_a_planted_burst_is_found_where_it_is_and_its_ratio_is_right() -> None:
    rng, extra = np.random.default_rng(1), np.ones(N)
    extra[100:110] = 12
    found = bursts(curve(rng, SLOWING["power"], extra), 199, "planted")
    assert found.p <= 0.01 and len(found.stretches) >= 1
    best = max(found.stretches, key=lambda s: s.statistic)
    assert abs(best.first - 99) <= 3 and abs(best.last - 108) <= 4 and 4 < best.ratio < 15
    assert found.null_stretches < 0.2


def test_layers_and_loss_that_share_their_bursts_are_found_and_the_lag_is_right() -> None:
    rng = np.random.default_rng(2)
    shared = np.exp(rng.standard_normal(N))
    early = curve(rng, SLOWING["exponential"], shared)
    late = curve(rng, SLOWING["exponential"], np.roll(shared, 3))
    white = np.array([rates.innovations(rates.activity(v, 31)) for v in (early, late)])
    (pair,), _, p = pair_tests(white, 5, 199, "lag")
    assert pair["p"] <= 0.01 and pair["lag"] == 3 and pair["r"] > 0.3 and p > 0.01
    (test,) = couplings(white[:1], rates.innovations(rates.activity(curve(rng, SLOWING["power"], shared), 31)), 5, 199)
    assert test["q"] <= 0.01 and test["lag"] == 0


def test_a_tenth_is_critical_by_construction_less_with_ties() -> None:
    flags, threshold = above(np.random.default_rng(0).normal(size=400), 90)
    assert flags.sum() == 40 and threshold > 0
    assert above(np.r_[np.zeros(390), np.ones(10)], 90)[0].sum() == 10
    assert not above(np.zeros(50), 90)[0].any() and above(np.zeros(0), 90)[0].size == 0


def test_smoothing_leaves_lines_alone_and_counts_its_freedom() -> None:
    line = 3 - 0.2 * np.arange(100)
    assert np.allclose(rates.smooth(line, 31), line)
    assert np.allclose(rates.smooth(np.tile(line, (2, 1)), 31), line)
    whole = np.array([rates.smooth(row, 31) for row in np.eye(100)])
    assert rates.freedom(100, 31) == pytest.approx(np.trace(whole))
    assert rates.smooth(np.ones(3), 31) == pytest.approx(np.ones(3))


def _input(rows: pd.DataFrame, loss: np.ndarray | None = None, every: int = 10) -> AnalysisInput:
    scalars = (
        pd.DataFrame()
        if loss is None
        else pd.DataFrame(
            {"trial_id": TRIAL, "step": every * np.arange(len(loss)), "probe_loss": loss, "batch_loss": loss}
        )
    )
    tables = {"trials": trial(every * (N - 1), every), "measurements": rows, "scalars": scalars}
    arrow = {n: pa.Table.from_pandas(t) if len(t.columns) else pa.table({}) for n, t in tables.items()}
    return AnalysisInput("planted", Partition(TRIAL), arrow | {"original_measurements": pa.table({})})


def _rows(layers: dict[str, np.ndarray]) -> pd.DataFrame:
    return measurements(layers, steps=10 * np.arange(N), measure="participation_ratio", every=10)


def test_the_tables_of_a_trial_agree_with_each_other() -> None:
    rng, extra = np.random.default_rng(3), np.ones(N)
    extra[120:128] = 15
    layers = {f"l{i}": curve(rng, SLOWING["power"], extra) for i in range(4)}
    out = {
        n: t.to_pandas()
        for n, t in critical_periods(_input(_rows(layers), curve(rng, SLOWING["power"], extra))).items()
    }
    series, together = out["critical_series"], out["coordination"].iloc[0]
    assert len(series) == 4 and (series["q"] < 0.05).all() and series["velocity_ratio"].gt(1.5).all()
    assert len(out["coordination_pairs"]) == 6 and len(out["loss_coupling"]) == 4
    assert together["critical"] == series["n_critical"].sum() and together["p"] < 0.05
    periods = out["critical_periods"]
    assert periods["loss_change"].notna().all() and (periods["step_first"] < periods["step_last"]).all()
    assert periods.groupby("layer").size().sum() == series["n_periods"].sum()
    assert periods["step_first"].between(1150, 1250).sum() >= 4


def test_each_critical_change_and_transition_has_its_steps() -> None:
    """A ramp of one unit a measurement with a jump of 9 between 1000 and 1010, and a step back 500 steps later."""
    values = np.arange(N, dtype=float)
    values[101:] += 8
    values[151:] -= 4
    out = critical_periods(_input(_rows({"a": values})))
    found = out["critical_changes"].to_pandas().set_index("kind")
    moved = found.loc["velocity"].set_index("step_first")
    assert moved["step_last"].to_dict() == {1000: 1010, 1500: 1510} and moved["value"].tolist() == [9, -3]
    turned = found.loc["acceleration"].set_index("step_first")
    assert turned["step_last"].to_dict() == {990: 1010, 1000: 1020, 1490: 1510, 1500: 1520}
    assert turned["value"].tolist() == [8, -8, -4, 4]
    (series,) = out["critical_series"].to_pylist()
    assert series["n_critical"] == 2 and series["n_transitions"] == 4


@pytest.mark.parametrize(
    "values", [np.full(N, 4.0), np.r_[np.full(N // 2, np.nan), np.arange(N - N // 2) % 3 + 1.0], np.arange(N) * 1.0]
)
def test_constant_holed_and_straight_layers_are_survived(values: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    rows = _rows({"a": values, "b": curve(rng, SLOWING["power"])})
    out = critical_periods(_input(rows))
    assert out["critical_series"].num_rows == 2 and out["loss_coupling"].num_rows == 0


def test_short_trials_are_described_and_not_tested_and_nothing_gives_nothing() -> None:
    rows = measurements({"a": np.arange(5.0)}, steps=10 * np.arange(5), measure="participation_ratio", every=10)
    (row,) = critical_periods(_input(rows))["critical_series"].to_pylist()
    assert row["flag"] == "short" and row["p"] is None and row["n"] == 3
    assert all(t.num_rows == 0 for t in critical_periods(_input(pd.DataFrame())).values())


def _cells(
    make: Callable[[np.random.Generator, int], list[np.ndarray]], seeds: int, key: str
) -> dict[str, pd.DataFrame]:
    names = trials((key,), seeds)
    rows, scalars = [], []
    for s, t in enumerate(names["trial_id"]):
        *layers, loss = make(np.random.default_rng(1000 * s + hash_of(key)), s)
        planted = {f"l{i}": v for i, v in enumerate(layers)}
        rows.append(measurements(planted, steps=10 * np.arange(N), measure="participation_ratio", every=10, trial_id=t))
        scalars.append(pd.DataFrame({"trial_id": t, "step": 10 * np.arange(N), "probe_loss": loss}))
    return {"trials": names, "measurements": pd.concat(rows), "scalars": pd.concat(scalars)}


def hash_of(key: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(key)) % 1000


@pytest.mark.slow
def test_seeds_that_share_only_their_course_are_rejected_at_the_nominal_rate_own_partners_are_found() -> None:
    rng, hits = np.random.default_rng(11), 0
    for r in range(200):
        speeds = np.array([[rates.log_speed(curve(rng, SLOWING["power"])) for _ in range(3)] for _ in range(5)])
        standard = (speeds - speeds.mean(-1, keepdims=True)) / speeds.std(-1, keepdims=True)
        hits += partners(standard, 99, str(r))["p"] <= 0.05
    assert hits / 200 <= 0.07 + 2 * np.sqrt(0.07 * 0.93 / 200)

    def own(rng: np.random.Generator, seed: int) -> list[np.ndarray]:
        shared = np.exp(rng.standard_normal(N))
        return [curve(rng, SLOWING["power"], shared) for _ in range(4)]

    table = coordination_tests(given(_cells(own, 5, "m"), coordination_tests.reads))["coordination_cells"].to_pandas()
    table = table[table["measure"] == "participation_ratio"]
    assert table["what"].tolist() == ["layers", "loss"]
    assert (table["q"] <= 0.01).all() and (table["statistic"] > table["across"] + 0.1).all()
    assert table["p_attainable"].iloc[1] == pytest.approx(1 / 120) == table["q_attainable"].iloc[1]


def test_what_never_learned_is_no_evidence_about_learning() -> None:
    def own(rng: np.random.Generator, seed: int) -> list[np.ndarray]:
        shared = np.exp(rng.standard_normal(N))
        return [curve(rng, SLOWING["power"], shared) for _ in range(4)]

    tables = _cells(own, 4, "m")
    names = tables["trials"]["trial_id"]
    series = pd.DataFrame(
        {"trial_id": names, "mode": "default", "measure": "participation_ratio", "p": 0.01, "q": 0.01}
    )
    for accuracy, flags in ((0.9, [None, None]), (0.5, ["untrained", "untrained"])):
        scores = {"step": 100, "accuracy": accuracy, "n": 200}
        tables["evaluations"] = pd.DataFrame({"trial_id": names, **scores}).assign(
            class_accuracy=[[accuracy, accuracy]] * len(names)
        )
        found = coordination_tests(
            given(tables | {"critical_series": series}, coordination_tests.reads),
            measures=["participation_ratio"],
            permutations=99,
        )
        cells = found["coordination_cells"].to_pandas()
        assert [None if f != f else f for f in cells["flag"]] == flags and cells["statistic"].notna().all()
        assert cells["q"].isna().all() == (flags[0] is not None)
        assert (found["critical_ranking"].num_rows == 0) == (flags[0] is not None)


def test_one_seed_and_no_loss_are_said() -> None:
    def alone(rng: np.random.Generator, seed: int) -> list[np.ndarray]:
        return [curve(rng, SLOWING["power"]) for _ in range(3)]

    table = coordination_tests(given(_cells(alone, 1, "m"), coordination_tests.reads), measures=["participation_ratio"])
    assert table["coordination_cells"].to_pandas()["flag"].tolist() == ["one_seed", "one_seed"]
    quiet = _cells(alone, 2, "m") | {"scalars": pd.DataFrame({"trial_id": [], "step": []})}
    found = coordination_tests(given(quiet, coordination_tests.reads), measures=["participation_ratio"])
    assert found["coordination_cells"].to_pandas().set_index("what")["flag"]["loss"] == "no_loss"
    assert coordination_tests(given({}, coordination_tests.reads))["coordination_cells"].num_rows == 0


def test_the_clearest_trials_are_those_with_most_layers_and_none_are_made_up() -> None:
    names = trials(("m",), 4)
    rows = pd.DataFrame(
        [
            {"trial_id": t, "mode": "default", "measure": "participation_ratio", "p": p, "q": p}
            for t, ps in zip(names["trial_id"], ((0.01, 0.5), (0.01, 0.02), (0.5, 0.9), (0.001, 0.5)), strict=True)
            for p in ps
        ]
    )
    tables = {"trials": names, "critical_series": rows, "measurements": _rows({"a": np.ones(N)})}
    ranking = coordination_tests(given(tables, coordination_tests.reads))["critical_ranking"].to_pandas()
    assert ranking["trial_id"].str[-1].tolist() == ["1", "3", "0"] and ranking["n_tried"].tolist() == [4, 4, 4]
    assert ranking["n_significant"].tolist() == [2, 1, 1]
