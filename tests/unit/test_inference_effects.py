"""Effect sizes against values worked out by hand, and their bias and coverage by simulation."""

import math

import numpy as np
import pytest
from scipy.stats import nct

from ndt_ray.analysis.inference import effects

A, B = [4.0, 5.0, 6.0], [1.0, 2.0, 3.0]


def test_known_answers() -> None:
    assert effects.correction(4) == pytest.approx(0.797885, abs=1e-6)  # gamma(2) / (sqrt(2) gamma(1.5))
    assert effects.hedges_g(A, B) == pytest.approx(3 * 0.797885, abs=1e-5)
    assert effects.hedges_g_av(A, B) == pytest.approx(3 * 0.797885, abs=1e-5)
    assert effects.cliffs_delta(A, B) == 1 and effects.superiority(A, B) == 1
    assert effects.cliffs_delta([1, 2], [2, 3]) == pytest.approx(-0.75)
    assert effects.superiority([1, 2], [2, 3]) == pytest.approx(0.125)
    assert effects.rank_biserial([1, 5, 2], [0, 2, 4]) == pytest.approx((1 + 3 - 2) / 6)
    assert effects.log_ratio([2, 4], [1, 2]) == pytest.approx(math.log(2))
    assert effects.iqm([0, 1, 2, 3, 4, 5, 6, 100]) == pytest.approx(3.5)


def test_sign_and_scale() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 6), rng.normal(0, 2, 8)
    assert effects.hedges_g(a, b) == pytest.approx(-effects.hedges_g(b, a)) == effects.hedges_g(3 * a + 1, 3 * b + 1)
    assert effects.cliffs_delta(a, b) == -effects.cliffs_delta(b, a)
    low, high = effects.g_interval(a, b)
    assert low < effects.hedges_g(a, b) < high


def test_hedges_g_is_unbiased_and_its_interval_covers() -> None:
    """3,000 and 300 pairs of six Gaussian seeds one SD apart: SE of the mean 0.012, of the coverage 1.3 %."""
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(1, 1, 6), rng.normal(0, 1, 6)) for _ in range(3000)]
    assert np.mean([effects.hedges_g(a, b) for a, b in pairs]) == pytest.approx(1, abs=0.04)
    ends = [effects.g_interval(a, b) for a, b in pairs[:300]]
    assert np.mean([low <= 1 <= high for low, high in ends]) >= 0.92


def test_what_cannot_be_said_is_nan() -> None:
    nan = float("nan")
    for found in (
        effects.hedges_g([1], [2, 3]),
        effects.hedges_g([2, 2], [2, 2]),
        effects.hedges_g_av([1, nan], [2, 3]),
        effects.cliffs_delta([], [1]),
        effects.superiority([nan], [1]),
        effects.rank_biserial([1, 2], [1, 2]),
        effects.log_ratio([-1, 0], [1, 2]),
        effects.iqm([]),
        effects.g_interval([1], [2])[0],
    ):
        assert math.isnan(found)


def test_the_interval_of_g_is_scipys_and_exists_for_any_t() -> None:
    for t, df in ((-3.0, 2), (0.5, 10), (20.0, 5)):
        for share in (0.025, 0.975):
            assert nct.cdf(t, df, effects._noncentrality(t, df, share)) == pytest.approx(share, abs=5e-4)
    low, high = effects.g_interval([5, 5.0001, 5], [1, 1, 1.0001])
    turned = effects.g_interval([1, 1, 1.0001], [5, 5.0001, 5])
    assert 0 < low < high and turned == pytest.approx((-high, -low), rel=1e-4)
