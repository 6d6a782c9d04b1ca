"""Onsets of the second descent, timelines and answers: planted ones are found, and on noise hardly any."""

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.mechanisms.grokking import questions
from ndt_ray.analysis.mechanisms.grokking.onset import first_below, half_way, held_from, second_descent, smoothed
from ndt_ray.analysis.mechanisms.grokking.timeline import held_since, switches, timeline

UNIFORM = float(np.log(113))
STEPS = np.arange(0, 14_001, 50).astype(float)
TRAIN = STEPS, UNIFORM * np.exp(-STEPS / 60)
# The reference run of SCIENCE §4, p = 113: (step, held-out loss)
REFERENCE = np.array(
    [(0, 4.76), (500, 20.2), (1500, 28.2), (3000, 24.3), (4500, 17.9), (5500, 10.9), (6000, 5.99), (6500, 1.4),
     (7000, 0.141), (7500, 0.00196), (8000, 1.27e-6), (9000, 2.3e-7), (10000, 1.98e-7)]
)  # fmt: skip


def grokking(middle: float, width: float = 300.0, peak: float = 20.0) -> np.ndarray:
    rise = UNIFORM + (peak - UNIFORM) * (1 - np.exp(-STEPS / 300))
    return rise / (1 + np.exp((STEPS - middle) / width)) + 1e-7


@pytest.mark.parametrize("middle", [4000.0, 8000.0])
def test_a_planted_descent_is_found_where_it_is(middle: float) -> None:
    found = second_descent(STEPS, grokking(middle), UNIFORM, TRAIN)
    assert found.status == "grokked" and abs(found.inflection_step - middle) <= 100
    assert found.turn_step < found.inflection_step < found.onset_step
    assert found.onset_step == pytest.approx(middle + 300 * np.log(4), abs=100)
    assert found.confidence > 0.9 and found.memorised_step == 300


def test_the_reference_run_groks_near_step_6000() -> None:
    found = second_descent(REFERENCE[:, 0], REFERENCE[:, 1], UNIFORM, TRAIN)
    assert found.status == "grokked" and found.peak_step == 1500 and found.onset_step == 6500
    assert 5000 <= found.inflection_step <= 6500 and found.turn_step >= 1500


def test_noise_around_a_plateau_is_no_descent() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        plateau = 15 + np.cumsum(rng.normal(0, 0.05, len(STEPS))) + rng.normal(0, 0.5, len(STEPS))
        assert second_descent(STEPS, plateau, UNIFORM, TRAIN).status == "no_second_descent"


def test_what_generalises_at_once_or_never_memorises_does_not_grok() -> None:
    ordinary = UNIFORM * np.exp(-STEPS / 50) + 1e-7
    assert second_descent(STEPS, ordinary, UNIFORM, TRAIN).status == "immediate"
    flat = STEPS, np.full(len(STEPS), UNIFORM)
    assert second_descent(STEPS, np.full(len(STEPS), UNIFORM), UNIFORM, flat).status == "no_memorisation"


def test_bad_ends_are_told_apart() -> None:
    assert second_descent(STEPS, grokking(4000) + 1e-3, UNIFORM, TRAIN).status == "partial"
    back = grokking(4000)
    back[-5:] += 1
    assert second_descent(STEPS, back, UNIFORM, TRAIN).status == "rebound"
    assert second_descent(STEPS[:2], np.ones(2), UNIFORM, TRAIN).status == "no_second_descent"
    holes = grokking(4000)
    holes[::7] = np.nan
    assert second_descent(STEPS, holes, UNIFORM, TRAIN).status == "grokked"


def test_local_lines_follow_a_line_on_uneven_steps() -> None:
    t = np.unique(np.geomspace(1, 1000, 60).round())
    value, slope = smoothed(t, 3 - 0.01 * t, 100.0)
    assert value == pytest.approx(3 - 0.01 * t) and slope == pytest.approx(-0.01)


def test_first_and_held_steps() -> None:
    t, y = np.array([0, 10, 20, 30]), np.array([3.0, 0.5, 2.0, 0.1])
    assert first_below(t, y, 1) == 10 and held_from(t, y < 1) == 30
    assert first_below(t, y, 0.01) is None and held_from(t, y > 1) is None and held_from(t, y > 0) == 0


def test_half_of_the_way() -> None:
    t = np.arange(11) * 100
    assert half_way(t, np.arange(11.0)) == 500
    assert half_way(t, 10.0 ** -np.arange(11.0), log=True) == 500
    assert half_way(t, np.ones(11)) is None and half_way(t[:2], np.arange(2.0)) is None


def test_switches_count_between_committed_states_only() -> None:
    frequency = np.array([[1, 2, 2, 3, 2], [4, 4, 4, 4, 4]])
    committed = np.array([[True, False, True, True, True], [False, False, True, True, True]])
    assert switches(frequency, committed).tolist() == [3, 0]
    assert held_since(frequency == frequency[:, -1:], np.array([0, 1, 2, 3, 4])) == [4, 0]


def scales(n: int, seed: int, ordered: bool) -> pd.DataFrame:
    """Units that commit at a step that falls with their scale, or has nothing to do with it."""
    rng = np.random.default_rng(seed)
    scale = rng.random(n)
    when = (1000 * (1 - scale) if ordered else rng.random(n) * 1000) // 100 * 100
    rows = []
    for step in range(0, 1101, 100):
        done = step >= when
        rows.append(
            pd.DataFrame(
                {
                    "step": step, "kind": "neuron", "unit": np.arange(n), "frequency": np.where(done, 5, 1),
                    "fraction": np.where(done, 0.95, 0.2), "fft_no_dc": np.where(done, scale, 0.5),
                    "variance_preservation": rng.random(n), "relative_gradient": rng.random(n),
                    "ablation_mean": np.nan,
                }
            )
        )  # fmt: skip
    return pd.concat(rows)


@pytest.mark.parametrize(("ordered", "answer"), [(True, "low frequencies first"), (False, "no order found")])
def test_low_before_high_is_found_where_it_is(ordered: bool, answer: str) -> None:
    times = timeline(scales(40, 1, ordered), 113)
    row = questions.order(times, ("t",))[0]
    assert row["answer"] == answer and (row["value"] < -0.9) == ordered


@pytest.mark.slow
def test_permutation_tests_hold_their_level() -> None:
    """At .05, of 300 null tests each: the binomial 99.9 % quantile is 28."""
    rng = np.random.default_rng(1)
    wrong = [0, 0]
    for i in range(300):
        a, b = rng.random(20), rng.random(20)
        wrong[0] += questions.spearman("null", a, b, (str(i),))["p"] < 0.05
        wrong[1] += questions.emergence(a, b, (str(i),))[0]["p"] < 0.05
    assert max(wrong) <= 28 and min(wrong) >= 3


def test_emergence_and_its_absence() -> None:
    rng = np.random.default_rng(2)
    first = 0.05 * rng.random(60)
    assert questions.emergence(first, first + 0.3 + 0.3 * rng.random(60), ("a",))[0]["answer"].startswith("emerged")
    kept = questions.emergence(first, first + 0.001 * rng.normal(size=60), ("b",))
    assert kept[0]["answer"] == "no change on the whole, ordered as at the initialisation"
    assert questions.emergence(first[:4], first[:4] + 1, ("c",))[0]["answer"] == "too few units"


def profiles(groups: int, n: int = 90) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    centre = rng.permutation(groups)[np.arange(n) % groups] if groups else rng.random(n) * 0
    values = {name: (centre + 0.05 * rng.normal(size=n)) for name in questions.PROFILE}
    return pd.DataFrame(values)


@pytest.mark.slow
def test_clusters_are_found_where_there_are_any() -> None:
    row, labels, representative = questions.clusters(profiles(3), ("a",))
    assert row["answer"] == "3 clusters" and len(set(labels)) == 3 and representative.sum() == 3
    row, _, _ = questions.clusters(profiles(0), ("b",))
    assert row["answer"].startswith("no clusters")
    row, labels, representative = questions.clusters(profiles(3).iloc[:4], ("c",))
    assert row["answer"] == "too few units" and set(labels) == {-1} and not representative.any()


def test_roles_of_heads_need_heads() -> None:
    heads = pd.DataFrame({"fft_no_dc": np.arange(8.0), "ablation_mean": np.arange(8.0) ** 2})
    assert questions.role(heads, ("a",))["answer"] == "coarse heads matter more"
    assert questions.role(heads.iloc[:4], ("a",))["answer"] == "too few heads"
    assert questions.role(heads.assign(ablation_mean=np.nan), ("a",))["answer"] == "too few heads"


def test_redundant_metrics_are_called_so() -> None:
    rng = np.random.default_rng(4)
    x = rng.random(50)
    units = pd.DataFrame({"fft_no_dc": x, "variance_preservation": x**2, "relative_gradient": rng.random(50)})
    assert [r["answer"] for r in questions.redundancy(units, ("a",))] == ["redundant", "independent"]
