"""Growth curves are found again where they exist; where they do not, the fit says so."""

import numpy as np
import pandas as pd
import pytest
from analysis_tables import measurements, partition

from ndt_ray.analysis.growth.logistic import fit, growth, logistic, verdict

T = np.linspace(0, 1, 200)


def test_a_planted_curve_is_found_again() -> None:
    found = fit(T, logistic(T, 20.0, 12.0, 0.4))
    assert (found.d_max, found.alpha, found.t0) == pytest.approx((20, 12, 0.4), rel=1e-4)
    assert found.r2 == pytest.approx(1.0) and found.at_bound == () and found.flag is None


def test_noise_around_a_planted_curve_lowers_r2_and_hardly_moves_the_curve() -> None:
    noisy = logistic(T, 20.0, 12.0, 0.4) + np.random.default_rng(0).normal(0, 1, 200)
    found = fit(T, noisy)
    assert found.d_max == pytest.approx(20, abs=3.5)  # the bound max(D) <= D_max pushes it up by the largest noise
    assert found.t0 == pytest.approx(0.4, abs=0.05) and 0.9 < found.r2 < 1


def test_a_fall_cannot_be_fitted_and_the_bounds_are_named() -> None:
    found = fit(T, 30 * np.exp(-3 * T) + 5)
    assert found.r2 < 0.5 and "alpha" in found.at_bound
    assert verdict(found.r2) == "poor"


@pytest.mark.parametrize(
    ("values", "flag"), [([1.0, 2, 3], "short"), ([5.0] * 50, "constant"), ([0.0] * 50, "no_level"), ([], "short")]
)
def test_what_has_no_curve_gets_a_reason_and_no_number(values: list[float], flag: str) -> None:
    found = fit(np.linspace(0, 1, len(values)), np.array(values))
    assert found.flag == flag and np.isnan(found.r2)


def test_the_row_speaks_in_steps_and_means_over_layers() -> None:
    steps = np.arange(0, 1001, 10)
    curve = logistic(steps / 1000, 20.0, 12.0, 0.4)
    rows = measurements(
        {"a": curve - 2, "b": curve + 2}, steps=steps, measure="participation_ratio_sv_uncentred", every=10
    )
    table = growth(partition(rows, steps=1000, every=10))["growth"].to_pandas()
    (row,) = table.to_dict("records")
    assert row["mode"] == "default" and row["n"] == 101 and row["verdict"] == "excellent"
    assert row["alpha"] == pytest.approx(12 / 1000, rel=1e-3) and row["alpha_run"] == pytest.approx(12, rel=1e-3)
    assert row["t0_step"] == pytest.approx(400, rel=1e-3) and row["at_bound"] == ""


def test_no_rows_give_no_rows() -> None:
    assert growth(partition(pd.DataFrame(), steps=100, every=10))["growth"].num_rows == 0


def test_a_run_of_one_measurement_is_reported_as_too_short() -> None:
    rows = measurements(
        {"a": np.array([3.0])}, steps=np.array([0]), measure="participation_ratio_sv_uncentred", every=10
    )
    (row,) = growth(partition(rows, steps=100, every=10))["growth"].to_pylist()
    assert row["flag"] == "short" and row["r2"] is None and row["verdict"] is None and row["d_first"] == 3.0
