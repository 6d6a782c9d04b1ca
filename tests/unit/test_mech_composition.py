"""Composition: planted dependencies, chance, and what a network loses without a layer."""

import shutil

import numpy as np
import pytest
import torch
from mech_store import SWEEP, folder, looked_at, trial_of

from ndt_ray.analysis.api import Partition
from ndt_ray.analysis.mechanisms import dependencies
from ndt_ray.analysis.mechanisms.composition import Predictor, correlations, dependency_depth
from ndt_ray.analysis.mechanisms.context import Contexts, Layer
from ndt_ray.analysis.running.stored import StoredSweep, analyze
from ndt_ray.errors import SpecError
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
    assert (Predictor(x).r2(linear) > 0.95).all()
    wide = RNG.normal(size=(60, 50))
    assert np.median(Predictor(wide).r2(RNG.normal(size=(60, 20)))) < 0.05  # in-sample it would be near 0.8
    assert np.isnan(Predictor(x).r2(np.ones((200, 1)))).all()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(shutil.copytree(folder(), tmp_path_factory.mktemp("composition") / "store"))


@pytest.mark.slow
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
    # Founding plan: baseline and ablated accuracy, impact; weights zeroed and outputs zeroed are two things.
    one = rows[rows["trial_id"] == at[0].trial_id].set_index(["metric", "layer"])["value"]
    base = one["baseline_accuracy", "*"]
    for name in ("zero_ablation", "weights_zeroed", "mean_ablation"):
        np.testing.assert_allclose(base - one[f"{name}_accuracy"], one[f"{name}_impact"], atol=1e-12)
    weights, outputs = one["weights_zeroed_loss"], one["zero_ablation_loss"]
    assert (weights != outputs).all()  # the bias stays


@pytest.mark.slow
def test_zeroed_weights_leave_the_bias_and_come_back():
    context = Contexts(StoredSweep(looked_at(), SWEEP))(trial_of(looked_at(), "mlp"), 40)
    path = context.classifier
    before, module = context.logits.copy(), context.model.get_submodule(path)
    weight = module.weight.detach().clone()
    logits = context.logits_with_weights_zeroed(path)
    np.testing.assert_allclose(logits, np.broadcast_to(module.bias.detach().double().numpy(), logits.shape), atol=1e-6)
    assert (module.weight == weight).all()
    np.testing.assert_array_equal(context.logits_without(path, module(torch.zeros(1, weight.shape[1]))), logits)
    np.testing.assert_array_equal(context.logits, before)


@pytest.mark.slow
def test_planted_edges_are_found_and_noise_gives_few():
    rng = np.random.default_rng(5)
    early = rng.normal(size=(128, 20))
    late = rng.normal(size=(128, 10))
    late[:, 3] += 1.2 * early[:, 7]  # r = .77
    late[:, 5] -= 0.6 * early[:, 2]  # r = -.51: real, and not for the founding rule
    edges, counted = dependencies.graph(early, late, rng)
    found = set(zip(edges["early_unit"], edges["unit"], strict=True))
    assert {(7, 3), (2, 5)} <= found and len(found) <= 4 and counted["dependent_units"] >= 2
    strong = edges.set_index(["early_unit", "unit"]).loc[(7, 3)]
    assert strong["founding"] and not edges.set_index(["early_unit", "unit"]).loc[(2, 5), "founding"]
    assert 0 < strong["r_shrunk"] < strong["r"] and strong["r2_left_out"] == pytest.approx(strong["r"] ** 2, abs=0.1)
    # Nothing planted, and responses with heavy tails, as sparse units have them: no edge in nearly all draws.
    false = 0
    for seed in range(40):
        rng = np.random.default_rng((6, seed))
        sparse = np.maximum(rng.standard_t(3, size=(2, 64, 12)) - 1, 0)
        false += dependencies.graph(*sparse, rng, draws=99)[1]["significant"] > 0
    assert false <= 40 * 0.05 + 3 * np.sqrt(40 * 0.05 * 0.95)


def test_one_unit_predicts_on_stimuli_left_out_as_a_line_through_the_others_does():
    x, y = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 2))
    found = dependencies.left_out(x, y)
    error = 0.0
    for fold in range(4):
        held = np.arange(40) % 4 == fold
        slope, level = np.polyfit(x[~held, 1], y[~held, 0], 1)
        error += ((y[held, 0] - slope * x[held, 1] - level) ** 2).sum()
    assert found[1, 0] == pytest.approx(1 - error / ((y[:, 0] - y[:, 0].mean()) ** 2).sum())


def test_layers_of_the_graph_are_all_adjacent_or_listed():
    layers = [Layer(name, i, "units") for i, name in enumerate("abcd")]
    paths = lambda pairs: ["".join(layer.path for layer in pair) for pair in pairs]  # noqa: E731
    assert paths(dependencies.chosen_pairs(layers, "all", 8)) == ["ab", "ac", "ad", "bc", "bd", "cd"]
    assert paths(dependencies.chosen_pairs(layers, "adjacent", 8)) == ["ab", "bc", "cd"]
    assert paths(dependencies.chosen_pairs(layers, "all", 2)) == ["ad"]
    assert paths(dependencies.chosen_pairs(layers, [["a", "d"], ["a", "conv1"]], 2)) == ["ad"]
    for wrong in ("some", [["a"]], [["d", "a"]]):
        with pytest.raises(SpecError, match="pairs is all|comes first"):
            dependencies.chosen_pairs(layers, wrong, 8)


def test_the_graph_of_a_trained_network_is_capped_and_says_so(store):
    at = [Partition(trial_of(store, "cnn"), 40)]
    assert analyze(store, SWEEP, "dependencies", parameters={"draws": 19, "most": 5}, partitions=at).ok
    pairs, edges = store.table("dependency_layers"), store.table("dependency_edges")
    counts = edges.groupby(["early_layer", "layer"]).size()
    assert (counts <= 5).all() and len(pairs) == 3
    for row in pairs.itertuples():
        assert (
            row.recorded
            == counts.get((row.early_layer, row.layer), 0)
            <= max(row.significant, row.founding) + row.founding
        )
    assert (edges["q"] <= 0.05).eq(edges["significant"]).all()
