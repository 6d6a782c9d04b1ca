"""Surrogates have the spread, length and memory they are said to have, and the expected counts that are known."""

from statistics import NormalDist

import numpy as np
import pytest

from ndt_ray.analysis import nulls
from ndt_ray.analysis.detection.original import DifferenceZ, RollingLevel
from ndt_ray.errors import SpecError


def draw(family: str, count: int = 500, n: int = 400, sd: float = 2.0, phi: float = 0.0) -> np.ndarray:
    return nulls.surrogates(family, n, sd, count, nulls.generator("test", family, str(phi)), phi)


def test_the_same_key_gives_the_same_surrogates_and_another_key_others() -> None:
    values = draw("white_noise", 1)[0]
    a, b, c = (nulls.matched("ar1", values, 5, *key) for key in (("t", "fc"), ("t", "fc"), ("t", "in")))
    assert a is not None and b is not None and c is not None
    assert (a == b).all() and not (a == c).any()
    assert nulls.generator("ab", "c").random() != nulls.generator("a", "bc").random()


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5, 0.9])
def test_ar1_has_the_stated_spread_and_memory_from_its_first_value_on(phi: float) -> None:
    series = draw("ar1", count=4000, n=60, phi=phi)
    assert series.std(axis=0) == pytest.approx(np.full(60, 2.0), rel=0.06)
    lag = (series[:, 1:] * series[:, :-1]).mean() / 4
    assert lag == pytest.approx(phi, abs=0.03)


@pytest.mark.parametrize(("phi", "tolerance"), [(-0.5, 0.03), (0.0, 0.04), (0.5, 0.04), (0.9, 0.1)])
def test_phi_is_found_again_and_neither_drift_nor_jumps_move_it(phi: float, tolerance: float) -> None:
    series = draw("ar1", count=200, phi=phi)
    plain = np.mean([nulls.robust_phi(s) for s in series])
    disturbed = series + 0.05 * np.arange(400)
    disturbed[:, 200:] += 30
    assert plain == pytest.approx(phi, abs=tolerance)
    assert np.mean([nulls.robust_phi(s) for s in disturbed]) == pytest.approx(plain, abs=0.03)


def test_phi_of_a_random_walk_stays_below_one_and_of_nothing_is_nan() -> None:
    assert nulls.robust_phi(np.arange(50.0) ** 2) == nulls.MAX_PHI
    assert np.isnan(nulls.robust_phi(np.ones(50)))
    assert np.isnan(nulls.robust_phi(np.array([1.0, 2.0, 3.0])))


def test_mostly_equal_values_fall_back_on_the_ordinary_correlation() -> None:
    values = np.zeros(100)
    values[40:60] = 1.0
    assert nulls.robust_phi(values) == pytest.approx(0.92, abs=0.05)


def test_detrending_removes_a_line_and_nothing_else() -> None:
    wave = np.sin(np.arange(400) * 2 * np.pi / 40)
    assert nulls.detrended(3 + 0.1 * np.arange(400.0)) == pytest.approx(np.zeros(400), abs=1e-9)
    rest = nulls.detrended(wave + 0.1 * np.arange(400.0))
    assert np.corrcoef(rest, wave)[0, 1] > 0.99


def test_gaussian_differences_exceed_two_deviations_as_often_as_they_must() -> None:
    share = 2 * (1 - NormalDist().cdf(2))  # 4.55 %: 7,262 in 400 series of 399 differences
    counts = DifferenceZ().scores(draw("random_walk", count=2000))[1].sum(axis=1)
    assert counts.mean() * 400 == pytest.approx(share * 399 * 400, rel=0.01)
    counts = DifferenceZ(4.0).scores(draw("random_walk", count=2000))[1].sum(axis=1)
    assert counts.mean() * 400 == pytest.approx(10, abs=4)


@pytest.mark.parametrize(
    ("family", "phi", "threshold", "known"),
    [("white_noise", 0, 2, 22.1), ("white_noise", 0, 3, 1.9), ("ar1", 0.9, 2, 40.2), ("random_walk", 0, 2, 63.0)],
)
def test_the_rolling_rule_fires_on_noise_as_often_as_was_measured(
    family: str, phi: float, threshold: float, known: float
) -> None:
    """SCIENCE 0.3: mean alarms in series of 400, from 40 series each."""
    counts = RollingLevel(threshold=threshold).scores(draw(family, phi=phi))[1].sum(axis=1)
    assert counts.mean() == pytest.approx(known, rel=0.12)


def test_p_is_small_for_more_events_than_noise_has_and_never_zero() -> None:
    series = draw("white_noise", count=199)
    many, few = (nulls.expected(DifferenceZ(), series, k) for k in (200, 0))
    assert many.p == 1 / 200 and few.p == 1.0
    assert few.low <= few.mean <= few.high and few.low > 0 and few.surrogates == 199


def test_the_p_value_is_calibrated_on_noise_itself() -> None:
    observed = DifferenceZ(2.5).scores(draw("white_noise", count=400, n=100))[1].sum(axis=1)
    null = draw("ar1", count=500, n=100)
    p = np.array([nulls.expected(DifferenceZ(2.5), null, int(k)).p for k in observed])
    assert (p <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_constant_and_short_series_have_no_null() -> None:
    for values in (np.ones(100), np.array([1.0, 2.0, 3.0]), np.array([])):
        assert nulls.matched("white_noise", values, 10, "key") is None


def test_surrogates_take_the_length_and_spread_of_what_the_line_leaves() -> None:
    values = draw("ar1", 1, phi=0.5, sd=3.0)[0] + np.arange(400)
    found = nulls.matched("white_noise", values, 300, "key")
    assert found is not None and found.shape == (300, 400)
    assert found.std() == pytest.approx(nulls.detrended(values).std(), rel=0.01)


def test_a_threshold_can_be_calibrated_to_a_rate_of_false_alarms() -> None:
    threshold = nulls.calibrated_threshold(DifferenceZ, 400, 0.05)
    assert 3.6 < threshold < 4.0
    with pytest.raises(SpecError, match="per_series"):
        nulls.calibrated_threshold(DifferenceZ, 400, 1e6)


def test_unknown_families_and_impossible_memory_are_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'white_noise'"):
        draw("white_nois")
    with pytest.raises(SpecError, match="-1 < phi < 1"):
        draw("ar1", phi=1.0)
