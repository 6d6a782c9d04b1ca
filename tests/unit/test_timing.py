"""A planted driver is found on seeds the model has not seen; drivers that only share the course of training are not."""

import numpy as np
import pandas as pd
import pytest
from phase1_frames import EVERY, STEPS, given, trials
from test_taxonomy import FAMILIES, event

from ndt_ray.analysis.events.batches import batch_statistics
from ndt_ray.analysis.events.timing import auc, fit, timing
from ndt_ray.data import load
from ndt_ray.spec import Trial

GRID = np.arange(0, STEPS + 1, EVERY)


def sweep(
    strength: float, seed: int = 0, models: tuple[str, ...] = ("mlp_a", "cnn_b"), seeds: int = 5
) -> dict[str, pd.DataFrame]:
    """Gradient norms that slow down, with noise; events whose rate slows down too, and follows it by `strength`."""
    rng, names = np.random.default_rng(seed), trials(models, seeds)
    scalars, events = [], []
    course = -np.log(GRID + 10) / 2
    for t in names["trial_id"]:
        noise = rng.standard_normal(len(GRID))
        rate = np.exp(course + strength * noise) * 1.5
        for i in np.flatnonzero(rng.random(len(GRID)) < rate):
            if 0 < i < len(GRID) - 1:
                events.append(event(t, GRID[i] / STEPS, 0.1, 0, 10.0) | {"step_before": GRID[i]})
        loss = np.exp(course + 0.1 * rng.standard_normal(len(GRID)))
        scalars.append(
            pd.DataFrame(
                {"trial_id": t, "step": GRID, "grad_norm": np.exp(course + 0.3 * noise), "batch_loss": loss}
                | {"probe_loss": loss, "update_norm": 0.1 * loss, "lr": 1e-3, "epoch_boundary": GRID % 100 == 0}
            )
        )
    return {"trials": names, "scalars": pd.concat(scalars), "events": pd.DataFrame(events), "event_families": FAMILIES}


def run(tables: dict[str, pd.DataFrame], permutations: int = 39) -> dict[str, pd.DataFrame]:
    return {n: t.to_pandas() for n, t in timing(given(tables, timing.reads), permutations=permutations).items()}


@pytest.mark.slow
def test_a_planted_driver_is_found_on_held_out_seeds_and_named() -> None:
    out = run(sweep(1.0))
    models = out["timing_models"].set_index("model")
    assert models.loc["all", "grouped_by"] == "seed" and models.loc["all", "n_folds"] == 5
    assert models.loc["phase", "auc"] < models.loc["all", "auc"] - 0.1 and models.loc["all", "p"] == pytest.approx(
        1 / 40
    )
    assert models.loc["phase + grad_norm", "gain"] > 0.1 > models.loc["phase + batch_loss", "gain"]
    assert "phase + lr" not in models.index  # it never varied
    effects = out["timing_effects"].set_index("feature")
    assert (
        effects.loc["grad_norm", "lo"] > 0.3 and effects["log_odds"].drop(["phase", "log_step"]).idxmax() == "grad_norm"
    )


def test_odd_mini_batches_are_a_driver_where_their_order_is_known() -> None:
    """Real trials on digits whose events are put where the mini-batches that follow are the oddest."""
    tables = sweep(0.0, models=("mlp_a",))
    digits, train = load("digits"), {"steps": STEPS, "batch": 16, "optimizer": "adam", "lr": 1e-3}
    specs, events = [], []
    for trial in tables["trials"].to_dict("records"):
        made = {"model": "mlp_narrow", "data": "digits", "seed": trial["seed"], "train": train}
        specs.append(Trial.model_validate(made))
        odd = batch_statistics(specs[-1], digits, GRID)["batch_inputs"].to_numpy()[1:-1]
        for i in 1 + np.argsort(odd)[-8:]:
            events.append(event(trial["trial_id"], GRID[i] / STEPS, 0.1, 0, 10.0) | {"step_before": GRID[i]})
    known = tables["trials"].assign(spec=[t.model_dump_json() for t in specs], data_hash=digits.hash)
    models = run(tables | {"trials": known, "events": pd.DataFrame(events)})["timing_models"].set_index("model")
    assert models.loc["phase + batch_inputs", "gain"] > 0.3 > models.loc["phase + batch_classes", "gain"]
    assert models.loc["phase + batch_inputs", "p"] == pytest.approx(1 / 40)
    other = run(tables | {"trials": known.assign(data_hash="another"), "events": pd.DataFrame(events)})
    assert not other["timing_models"]["features"].str.contains("batch_inputs").any()


@pytest.mark.slow
def test_drivers_that_share_only_the_course_gain_nothing_at_the_nominal_rate() -> None:
    hits = 0
    for seed in range(20):
        tables = sweep(0.0, seed, models=("mlp_a",))
        tables["scalars"] = tables["scalars"][["trial_id", "step", "grad_norm"]]
        models = run(tables, permutations=19)["timing_models"].set_index("model")
        hits += models.loc["all", "p"] <= 0.05
    assert hits <= 5  # of 20 at .05: 99.97 % below 6


def test_few_events_one_run_and_nothing_are_said_and_not_fitted() -> None:
    tables = sweep(0.0)
    few = run(tables | {"events": tables["events"].head(3)})
    assert few["timing_models"]["flag"].tolist() == ["few_events"] and few["timing_effects"].empty
    assert few["timing_models"]["n_events"].tolist() == [3]
    one = run(sweep(1.0, models=("mlp_a",), seeds=1))["timing_models"]
    assert one["flag"].tolist() in (["one_run"], ["few_events"])
    assert all(t.num_rows == 0 for t in timing(given({}, timing.reads)).values())


def test_runs_without_seeds_are_held_out_one_by_one_and_have_no_exchange() -> None:
    tables = sweep(1.0, models=("mlp_a", "cnn_b", "cnn_c", "mlp_d"), seeds=1)
    tables["trials"]["seed"] = None
    models = run(tables)["timing_models"].set_index("model")
    assert models.loc["all", "grouped_by"] == "trial" and np.isnan(models.loc["all", "p"])
    assert models.loc["all", "gain"] > 0.05


def test_auc_and_fit_have_known_values() -> None:
    assert auc(np.array([1.0, 2, 3, 4]), np.array([0.0, 0, 1, 1])) == 1.0
    assert auc(np.array([1.0, 1, 1, 1]), np.array([0.0, 0, 1, 1])) == 0.5
    assert np.isnan(auc(np.ones(3), np.zeros(3)))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 2))
    y = (rng.random(4000) < 1 / (1 + np.exp(1 - x @ [1.5, -0.5]))).astype(float)
    assert fit(x, y) == pytest.approx([-1, 1.5, -0.5], abs=0.15)
    separated = fit(np.r_[-np.ones(5), np.ones(5)][:, None], np.r_[np.zeros(5), np.ones(5)])
    assert np.isfinite(separated).all() and separated[1] > 0.5
