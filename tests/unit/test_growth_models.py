"""The curve that made the data is preferred to those that did not; what is not determined has no number."""

import json

import numpy as np
import pandas as pd
import pytest
from analysis_tables import TRIAL, measurements, partition
from phase1_frames import given, trials

from ndt_ray.analysis.growth.logistic import growth, logistic
from ndt_ray.analysis.growth.models import SIMPLE, compared
from ndt_ray.analysis.growth.regression import growth_regression, regression

STEPS = np.arange(0, 2001, 10)
T = STEPS / 2000
MEASURE = "participation_ratio_sv_uncentred"

PLANTED = {
    "constant": np.full_like(T, 10.0),
    "linear": 10 + 5 * T,
    "relaxation": 10 + 8 * np.exp(-T / 0.1),
    "power": 10 + 4 * np.log(T + 0.005),
    "sigmoid": 20 - 8 / (1 + np.exp(-30 * (T - 0.4))),
}


def fitted(values: np.ndarray, scalars: pd.DataFrame | None = None) -> pd.DataFrame:
    rows = measurements({"a": values}, steps=STEPS, measure=MEASURE, every=10)
    out = growth(partition(rows, steps=2000, every=10, scalars=scalars))
    return out["growth_models"].to_pandas().set_index("model")


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_curve_wins_among_the_simple_ones(name: str) -> None:
    noisy = PLANTED[name] + np.random.default_rng(1).normal(0, 0.2, len(T))
    table = pd.DataFrame(compared(T, noisy, {})).set_index("model")
    assert set(table.index) == set(SIMPLE)
    assert table.loc[name, "delta"] < 2.5 and table["weight"].sum() == pytest.approx(1)
    if name not in ("constant", "linear"):
        assert table.loc[name, "best"] and table.loc["linear", "delta"] > 20


def test_parameters_are_found_again_and_bounds_are_named() -> None:
    table = fitted(PLANTED["relaxation"] + np.random.default_rng(2).normal(0, 0.05, len(T)))
    found = json.loads(table.loc["relaxation", "parameters"])
    assert found["tau"] == pytest.approx(0.1, rel=0.05) and found["a"] == pytest.approx(10, abs=0.05)
    assert table.loc["relaxation", "at_bound"] == "" and "alpha" in table.loc["logistic", "at_bound"]


def test_growth_in_accumulated_gradient_is_told_from_growth_in_time() -> None:
    norms = np.where(STEPS < 1000, 0.1, 3.0)
    tau = np.concatenate([[0.0], np.cumsum(norms[1:] * 10)])
    values = logistic(tau / tau[-1], 20.0, 8.0, 0.4) + np.random.default_rng(3).normal(0, 0.1, len(T))
    scalars = pd.DataFrame({"trial_id": TRIAL, "step": STEPS, "grad_norm": norms})
    table = fitted(values, scalars)
    assert table.loc["logistic_gradient", "best"] and table.loc["logistic", "delta"] > 50
    assert json.loads(table.loc["logistic_gradient", "parameters"])["alpha"] == pytest.approx(8, rel=0.05)
    assert fitted(values).loc["logistic_gradient", "flag"] == "no_gradient"


def test_waves_of_noise_that_remembers_are_not_taken_for_curves() -> None:
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(20):
        noise = rng.normal(size=len(T))
        for i in range(1, len(noise)):
            noise[i] += 0.9 * noise[i - 1]
        table = pd.DataFrame(compared(T, 10 + noise, {})).set_index("model")
        assert table.loc["constant", "phi"] == pytest.approx(0.85, abs=0.15)
        wrong += table.loc["constant", "delta"] > 10
    assert wrong <= 2  # with independent residuals assumed, nearly all


@pytest.mark.parametrize(
    ("values", "flag"), [(np.full(50, 3.0), "constant"), (np.arange(5.0), "short"), (np.zeros(0), "short")]
)
def test_what_cannot_be_compared_says_why(values: np.ndarray, flag: str) -> None:
    table = pd.DataFrame(compared(np.linspace(0, 1, len(values)), values, {}))
    assert (table["flag"] == flag).all() and table["aicc"].isna().all() and not table["best"].any()


def test_as_many_parameters_as_points_explain_everything_and_predict_nothing() -> None:
    rng = np.random.default_rng(0)
    found = regression(rng.normal(size=4), rng.normal(size=(4, 3)), ["a", "b", "c"])
    assert found["r2"] == pytest.approx(1) and found["saturated"] and np.isnan(found["r2_left_out"])
    x = rng.normal(size=(40, 2))
    found = regression(x @ [1.0, 2.0] + rng.normal(0, 0.1, 40), x, ["a", "b"])
    assert found["r2_left_out"] > 0.98 and json.loads(found["coefficients"])["b"] == pytest.approx(2, abs=0.1)
    nothing = regression(rng.normal(size=12), rng.normal(size=(12, 3)), ["a", "b", "c"])
    assert nothing["r2_left_out"] < 0.1 < nothing["r2"]


def test_left_out_errors_are_those_of_refitting() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(10, 2)), rng.normal(size=10)
    errors, base = [], []
    for i in range(10):
        rest = np.arange(10) != i
        beta = np.linalg.lstsq(np.column_stack([np.ones(9), x[rest]]), y[rest], rcond=None)[0]
        errors.append(y[i] - np.r_[1, x[i]] @ beta)
        base.append(y[i] - y[rest].mean())
    expected = 1 - np.sum(np.square(errors)) / np.sum(np.square(base))
    assert regression(y, x, ["a", "b"])["r2_left_out"] == pytest.approx(expected)


def test_cells_without_a_good_fit_are_left_out_and_counted() -> None:
    names = trials(("mlp_a", "mlp_b", "cnn_c"), 2).assign(n_parameters=[100, 100, 900, 900, 400, 400])
    rows = names[["trial_id"]].assign(
        measure=MEASURE, mode="default", r2=[0.9] * 4 + [0.1] * 2, at_bound="", alpha=0.01, alpha_run=[5, 6, 9, 8, 1, 1]
    )
    layers = names[["trial_id"]].assign(mode="default", layer_index=4)
    tables = {"trials": names, "growth": rows, "convergence": layers}
    (row,) = growth_regression(given(tables, growth_regression.reads))["growth_regression"].to_pylist()
    assert (row["n"], row["n_left_out"], row["saturated"]) == (2, 1, True)
    assert growth_regression(given({}, growth_regression.reads))["growth_regression"].num_rows == 0
