"""Adjusted p-values against published and enumerated answers."""

import numpy as np
import pytest

from ndt_ray.analysis.inference.multiplicity import attainable_q, benjamini_bogomolov, bh, by, holm
from ndt_ray.errors import SpecError

P = (0.005, 0.009, 0.019, 0.022, 0.051, 0.101, 0.361, 0.387)
NAN = float("nan")


def test_known_answers() -> None:
    """SciPy's own example, as printed in its reference."""
    assert np.allclose(bh(P), (0.036, 0.036, 0.044, 0.044, 0.0816, 0.134667, 0.387, 0.387), atol=1e-6)
    assert np.allclose(by(P), (0.0978, 0.0978, 0.1196, 0.1196, 0.2218, 0.366, 1, 1), atol=1e-4)
    assert np.allclose(holm((0.01, 0.04, 0.03, 0.005)), (0.03, 0.06, 0.06, 0.02))


@pytest.mark.parametrize("adjust", [bh, by, holm])
def test_order_shape_and_holes(adjust) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    p = rng.random((4, 5))
    shuffled = rng.permutation(20)
    assert np.allclose(adjust(p).ravel()[shuffled], adjust(p.ravel()[shuffled]))
    holed = np.array([0.01, NAN, 0.2, NAN, 0.03])
    found = adjust(holed)
    assert np.isnan(found[[1, 3]]).all() and np.allclose(found[[0, 2, 4]], adjust([0.01, 0.2, 0.03]))
    assert adjust([]).shape == (0,) and np.isnan(adjust([NAN])).all() and adjust([0.3]) == pytest.approx(0.3)
    with pytest.raises(SpecError, match="lies in"):
        adjust([0.1, 1.2])


def test_error_rates_under_the_null() -> None:
    """1,000 families of 20 true nulls: any rejection at 0.05 happens in 5 % of them (binomial SE 0.7 %)."""
    p = np.random.default_rng(1).random((1000, 20))
    for adjust in (bh, holm):
        share = np.mean([(adjust(row) <= 0.05).any() for row in p])
        assert 0.03 < share < 0.07
    assert np.mean([(by(row) <= 0.05).any() for row in p]) < 0.03


def test_selected_families_and_what_is_attainable() -> None:
    assert benjamini_bogomolov(3, 60, 0.05) == pytest.approx(0.0025)
    assert benjamini_bogomolov(0, 60, 0.05) == benjamini_bogomolov(0, 0, 0.05) == 0
    assert attainable_q(400, 1 / 501) == pytest.approx(400 / 501)
    assert attainable_q(400, 1 / 501, n_alike=40) == pytest.approx(10 / 501)
    assert attainable_q(2, 1 / 32) == pytest.approx(2 / 32) == holm([1 / 32, 1.0])[0]
    assert attainable_q(1000, 0.1) == 1 and np.isnan(attainable_q(0, 0.1)) and np.isnan(attainable_q(3, NAN))
    with pytest.raises(SpecError):
        benjamini_bogomolov(4, 3, 0.05)
    for wrong in ((3, 0.1, 4), (-1, 1.0), (3, 1.5)):
        with pytest.raises(SpecError):
            attainable_q(*wrong)
