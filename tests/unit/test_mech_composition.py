"""Composition: planted dependencies, chance, and what a network loses without a layer."""

import shutil

import numpy as np
import pytest
from mech_store import SWEEP, folder, trial_of

from ndt_ray.analysis.api import Partition
from ndt_ray.analysis.mechanisms.composition import correlations, dependency_depth, predicted
from ndt_ray.analysis.stored import analyze
from ndt_ray.store.reader import open_store

RNG = np.random.default_rng(0)


def test_correlations_are_those_of_numpy_and_a_constant_unit_has_none():
    x, y = RNG.normal(size=(50, 3)), RNG.normal(size=(50, 2))
    x[:, 1] = 7.0
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nan_to_num(np.corrcoef(x.T, y.T)[:3, 3:])
    np.testing.assert_allclose(correlations(x, y), expected, atol=1e-12)


def test_a_planted_chain_has_its_length():
    a = RNG.normal(size=(400, 4))
    b = np.column_stack([a[:, 0] + 0.3 * RNG.normal(size=400), RNG.normal(size=400)])
    c = np.column_stack([RNG.normal(size=400), b[:, 0] + 0.3 * RNG.normal(size=400)])
    d = RNG.normal(size=(400, 5))
    assert dependency_depth([a, b, c, d]) == 3
    assert dependency_depth([a, d]) == 1
    assert dependency_depth([d, a, b]) == 2
    assert dependency_depth([a, -b]) == 1  # the plan's dependency is a positive correlation


def test_prediction_is_judged_on_stimuli_left_out():
    x = RNG.normal(size=(200, 10))
    linear = x @ RNG.normal(size=(10, 3)) + 0.1 * RNG.normal(size=(200, 3))
    assert (predicted(x, linear) > 0.95).all()
    wide = RNG.normal(size=(60, 50))
    assert np.median(predicted(wide, RNG.normal(size=(60, 20)))) < 0.05  # in-sample it would be near 0.8
    assert np.isnan(predicted(x, np.ones((200, 1)))).all()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(shutil.copytree(folder(), tmp_path_factory.mktemp("composition") / "store"))


def test_every_layer_of_trained_networks(store):
    at = [Partition(trial_of(store, model), 40) for model in ("mlp", "cnn", "transformer")]
    assert analyze(store, SWEEP, "composition", parameters={"draws": 5}, partitions=at).ok
    rows = store.sql("SELECT * FROM composition_metrics")
    depth = rows[rows["metric"] == "compositional_depth"]
    assert len(depth) == 3 and (depth["value"] >= depth["chance"]).all()
    predictions = rows[rows["metric"] == "predicted_r2"]
    assert (predictions["value"].dropna() <= 1).all() and (predictions["chance"].dropna() < 0.1).all()
    lost = rows[rows["metric"] == "zero_ablation_loss"]
    assert set(lost["layer"]) == set(rows.loc[rows["metric"] == "mean_ablation_loss", "layer"]) and len(lost) > 6
    assert lost["value"].max() > 0.01
