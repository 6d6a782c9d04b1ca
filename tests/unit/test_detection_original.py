"""The founding rules find what is planted, refuse what they cannot judge, and agree with themselves on batches."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ndt_ray.analysis.detection import longest_stretch, make, merged, names, uniform_grid
from ndt_ray.analysis.detection.original import DifferenceZ, RollingLevel, SmoothedGradient
from ndt_ray.errors import SpecError

RULES = (DifferenceZ(), SmoothedGradient(), RollingLevel())


def noise(n: int = 400, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=n)


def step_at(change: int, n: int = 400, size: float = 30.0) -> NDArray[np.float64]:
    """Noise whose level rises between measurements change - 1 and change."""
    values = noise(n)
    values[change:] += size
    return values


def test_difference_z_reports_the_change_between_the_two_measurements_that_bracket_it() -> None:
    steps = np.arange(400) * 5
    events = DifferenceZ(threshold=8)(steps, step_at(200))
    assert events.index.tolist() == [199]
    assert (events.step_before[0], events.step_after[0]) == (995, 1000)
    assert events.direction.tolist() == [1]
    assert events.magnitude[0] == pytest.approx(30, abs=5)


def test_a_jump_at_step_1500_measured_every_10_is_reported_at_1500_not_at_its_index() -> None:
    steps = np.arange(0, 2001, 10)
    values = step_at(150, n=201)
    assert RollingLevel()(steps, values).step_after[0] == 1500
    assert DifferenceZ(threshold=8)(steps, values).step_after[0] == 1500


def test_difference_z_sees_falls_where_smoothed_gradient_sees_only_rises() -> None:
    steps = np.arange(400)
    for sign, seen in ((1, True), (-1, False)):
        values = sign * step_at(200)
        assert 199 in DifferenceZ()(steps, values).index
        assert bool(np.isin([199, 200], SmoothedGradient()(steps, values).index).all()) is seen


def test_the_z_of_a_difference_uses_the_population_deviation_over_the_whole_series() -> None:
    values = np.array([0.0, 0, 0, 0, 0, 0, 0, 4])
    events = DifferenceZ()(np.arange(8), values)
    v = np.diff(values)
    assert events.index.tolist() == [6]
    assert events.z[0] == (v[6] - v.mean()) / v.std()


def test_one_lasting_shift_makes_rolling_level_fire_until_its_window_has_taken_it_in() -> None:
    found = RollingLevel()(np.arange(400), step_at(200, size=10)).index
    near = found[(found >= 200) & (found < 250)]
    assert near[0] == 200 and len(near) > 1 and (np.diff(near[:3]) == 1).all()


def test_rolling_level_compares_with_previous_values_only_and_starts_after_twenty() -> None:
    values = np.zeros(60)
    values[:30] = np.tile([0.0, 1.0], 15)
    values[19], values[30:] = 9.0, np.tile([0.0, 1.0], 15)
    early = RollingLevel()(np.arange(60), values)
    assert len(early) == 0  # value 19 is too early, and widens every later window
    values[19], values[40] = 0.0, 9.0
    assert RollingLevel()(np.arange(60), values).index.tolist() == [40]


def test_rolling_level_skips_windows_that_do_not_vary() -> None:
    values = np.zeros(100)
    values[50:] = 1.0
    assert 50 not in RollingLevel()(np.arange(100), values).index


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_many_series_at_once_are_scored_as_one_by_one(rule: DifferenceZ | SmoothedGradient | RollingLevel) -> None:
    series = np.stack([step_at(c) for c in (50, 200, 350)] + [np.cumsum(noise(seed=s)) for s in range(5)])
    series[3, 100:300] = series[3, 100]  # a flat stretch inside a moving series
    z, flagged = rule.scores(series)
    for row, z_row, flagged_row in zip(series, z, flagged, strict=True):
        one_z, one = rule.scores(row)
        np.testing.assert_allclose(z_row, one_z, rtol=1e-6, atol=1e-9)
        assert (flagged_row == one).all()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@pytest.mark.parametrize(
    "values", [[], [1.0], [1.0, 2.0], [3.0] * 100, [1e300, -1e300] * 50], ids=["none", "one", "two", "constant", "huge"]
)
def test_series_without_anything_to_judge_have_no_events(rule: DifferenceZ, values: list[float]) -> None:
    found = rule(np.arange(len(values)), values)
    if len(values) < 100 or values[0] == 3.0:
        assert len(found) == 0
    assert np.isfinite(found.z).all() and np.isfinite(found.magnitude).all()


def test_scale_and_offset_do_not_matter_and_huge_values_do_not_overflow() -> None:
    values, steps = step_at(200), np.arange(400)
    plain = DifferenceZ()(steps, values)
    huge = DifferenceZ()(steps, values * 2.0**900)
    assert (plain.index == huge.index).all() and (plain.z == huge.z).all()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@pytest.mark.parametrize(
    ("steps", "values", "says"),
    [
        ([0, 5, 10, 15], [1, 2, float("nan"), 3], "not finite.*first at step 10"),
        ([0, 5, 10, 15], [1, 2, float("inf"), 3], "not finite"),
        ([0, 10, 5, 15], [1, 2, 3, 4], "must rise, but step 5"),
        ([0, 5, 5, 10], [1, 2, 3, 4], "must rise, but step 5"),
        ([0, 1, 2, 10], [1, 2, 3, 4], "evenly spaced.*from 1 to 8.*uniform_grid"),
        ([0, 5, 10], [1, 2], "one length"),
        ([[0, 5]], [[1, 2]], "one length"),
        ([0.0, 0.5, 1.0], [1, 2, 3], "whole numbers"),
        ([0, 5, 10], [1, 2, 1e301], "1e300"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_a_reason(
    rule: DifferenceZ, steps: list[int], values: list[float], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        rule(steps, values)


def test_the_grid_is_chosen_among_the_measured_steps() -> None:
    dense = [*range(21), *range(30, 301, 10), 303]
    chosen = np.array(dense)[uniform_grid(dense, 10)]
    assert chosen.tolist() == list(range(0, 301, 10))
    assert uniform_grid(np.arange(400) * 5 + 1, 5).tolist() == list(range(400))
    assert uniform_grid([3, 10, 20, 25], 10, start=0).tolist() == [1, 2]
    assert uniform_grid([], 10).tolist() == []
    with pytest.raises(SpecError, match="positive"):
        uniform_grid([0, 5], 0)
    with pytest.raises(SpecError, match="rise"):
        uniform_grid([5, 0], 5)


def test_a_hole_leaves_the_longest_whole_stretch() -> None:
    values = np.arange(10.0)
    values[3] = np.nan
    steps = np.arange(10) * 5
    assert longest_stretch(steps, values, 5).tolist() == [4, 5, 6, 7, 8, 9]
    gap = longest_stretch(np.array([0, 5, 10, 30, 35]), np.ones(5), 5)
    assert gap.tolist() == [0, 1, 2]
    assert longest_stretch(steps, np.full(10, np.nan), 5).size == 0


def test_neighbouring_indices_become_one_event() -> None:
    assert [c.tolist() for c in merged([4, 5, 6, 9, 20, 21])] == [[4, 5, 6], [9], [20, 21]]
    assert [c.tolist() for c in merged([4, 5, 6, 9], gap=3)] == [[4, 5, 6, 9]]
    assert merged([]) == []


def test_detectors_are_made_by_name() -> None:
    rules = {"difference_z", "rolling_level", "smoothed_gradient"}
    assert rules | {"profile", "local_contrast", "pelt", "binseg"} == set(names())
    assert make("difference_z", {"threshold": 4.0}) == DifferenceZ(4.0)
    assert make("rolling_level").parameters() == {"window": 50, "threshold": 3.0, "min_samples": 20, "floor": 1e-10}
    with pytest.raises(SpecError, match="did you mean 'difference_z'"):
        make("difference")
    with pytest.raises(SpecError, match="no parameter 'treshold'.*did you mean 'threshold'"):
        make("difference_z", {"treshold": 3})
    with pytest.raises(SpecError, match="min_samples"):
        make("rolling_level", {"min_samples": 60})


def test_rolling_level_is_ndtracker_s_loop_bit_for_bit() -> None:
    values = np.cumsum(noise(300)) + step_at(200, n=300)
    z = np.zeros(300)
    for i in range(20, 300):
        previous = values[max(0, i - 50) : i]
        z[i] = (values[i] - previous.mean()) / previous.std()
    assert (RollingLevel().scores(values)[0] == z).all()
