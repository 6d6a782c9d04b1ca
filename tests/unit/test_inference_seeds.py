"""Intervals over seeds: simulated coverage, agreement with SciPy, and what cannot be said."""

import math

import numpy as np
import pytest
from scipy import stats

from ndt_ray.analysis.inference import seeds
from ndt_ray.analysis.inference.seeds import coverage, difference_interval, interval
from ndt_ray.errors import SpecError

SIX = np.array([3.1, 2.7, 4.4, 3.9, 3.0, 6.2])


@pytest.mark.slow
def test_what_is_recommended_covers_and_the_percentile_bootstrap_does_not() -> None:
    """4,000 samples of six seeds: binomial SE 0.35 %. Gaussian theory for the percentile: P(|t5| < 1.79) = 86.7 %."""
    method = seeds.recommended(6)
    assert method == "hull"
    found = {population: coverage(6, method, population) for population in seeds.POPULATIONS}
    assert min(found.values()) >= 0.93, found
    assert coverage(6, "t") == pytest.approx(0.95, abs=0.012)
    assert coverage(6, "percentile") == pytest.approx(0.867, abs=0.015)
    assert interval([0, 0, 0, 0, 0, 3.0]) == interval([0, 0, 0, 0, 0, 3.0], "t")
    assert coverage(6, "bca") < 0.90 and coverage(6, "t", "exponential") < 0.91
    assert coverage(3, seeds.recommended(3)) == pytest.approx(0.95, abs=0.012)
    assert math.isnan(coverage(1, "t"))


def test_resamples_are_all_there_with_their_probabilities() -> None:
    counts, weights = seeds.resamples(3)
    assert len(counts) == 10 and (counts.sum(axis=1) == 3).all() and weights.sum() == pytest.approx(1)
    assert weights[(counts == 1).all(axis=1)] == pytest.approx(6 / 27)
    many, _ = seeds.resamples(12)
    assert many.shape == (seeds.DRAWS, 12) and (many.sum(axis=1) == 12).all()
    assert (many == seeds.resamples.__wrapped__(12)[0]).all()


def test_t_is_scipys_and_the_bootstrap_is_deterministic_and_moves_with_the_data() -> None:
    found = interval(SIX, "t")
    expected = stats.ttest_1samp(SIX, 0).confidence_interval()
    assert (found.lo, found.hi) == pytest.approx((expected.low, expected.high))
    welch = difference_interval(SIX, SIX[:4] + 1, paired=False, method="t")
    wanted = stats.ttest_ind(SIX, SIX[:4] + 1, equal_var=False).confidence_interval()
    assert (welch.lo, welch.hi) == pytest.approx((wanted.low, wanted.high))
    for method in seeds.methods():
        one, moved = interval(SIX, method), interval(2 * SIX + 5, method)
        assert one == interval(SIX, method) and one.lo < SIX.mean() < one.hi
        assert (moved.lo, moved.hi) == pytest.approx((2 * one.lo + 5, 2 * one.hi + 5))
        two = difference_interval(SIX, SIX[::-1] + 1, paired=False, method=method)
        assert two.lo < -1 < two.hi and two == difference_interval(SIX, SIX[::-1] + 1, paired=False, method=method)


def test_two_groups_cover() -> None:
    """400 differences of six and six exponential seeds: at least 93 % (binomial SE 1.3 %)."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        found = difference_interval(rng.exponential(size=6), rng.exponential(size=6), paired=False)
        hits += found.lo <= 0 <= found.hi
    assert hits / 400 >= 0.93


def test_pairs_are_intervals_of_differences() -> None:
    other = SIX + [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]
    assert difference_interval(other, SIX, paired=True) == interval(other - SIX)
    with pytest.raises(SpecError, match="one size"):
        difference_interval(SIX, SIX[:3], paired=True)


def test_what_seeds_do_not_allow_is_nan() -> None:
    for values in ([], [1.0], [2.0, 2.0, 2.0], [math.nan, 1.0]):
        assert math.isnan(interval(values).lo) and math.isnan(interval(values).hi)
    assert math.isnan(difference_interval([1.0], [1.0, 2.0], paired=False).lo)
    assert math.isnan(difference_interval([1.0, 1.0], [2.0, 2.0], paired=False).lo)
    assert interval([0, 0, 0, 0, 0, 3.0], "studentised").hi == math.inf
    with pytest.raises(SpecError, match="studentised"):
        interval(SIX, "studentized")
    with pytest.raises(SpecError, match="population"):
        coverage(6, "t", "cauchy")
