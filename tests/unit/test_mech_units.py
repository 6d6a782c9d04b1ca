"""What single units tell and are worth: closed forms, planted units, and what shuffled labels give."""

import numpy as np
import pytest
import torch
from mech_store import SWEEP, looked_at, trial_of
from scipy.special import ndtr

from ndt_ray.analysis.api import AnalysisInput, Partition, conform
from ndt_ray.analysis.mechanisms import unit_information as info
from ndt_ray.analysis.mechanisms.context import Contexts
from ndt_ray.analysis.mechanisms.tables import UNIT_ABLATION, UNIT_ABLATION_METRICS
from ndt_ray.analysis.mechanisms.unit_ablation import rank_correlation, replaced, unit_ablation
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.errors import SpecError
from ndt_ray.store.reader import Store

RNG = np.random.default_rng
LABELS = np.repeat(np.arange(4), 25)


@pytest.fixture(scope="module")
def store() -> Store:
    return looked_at()


def test_two_gaussians_have_the_closed_forms() -> None:
    labels = np.repeat([0, 1], 20_000)
    x = RNG(0).normal(size=(40_000, 2)) + 1.5 * labels[:, None] * [1, 0]
    d, area = info.d_prime(x, labels, 2), info.auc(x, labels, 2)
    assert d[0] == pytest.approx([-1.5, 1.5], abs=0.03) and d[1] == pytest.approx([0, 0], abs=0.03)
    assert area[0, 1] == pytest.approx(ndtr(1.5 / np.sqrt(2)), abs=0.005) and area[0].sum() == pytest.approx(1)
    assert area[1] == pytest.approx([0.5, 0.5], abs=0.01)


def test_known_answers_of_small_samples() -> None:
    labels = np.array([0, 0, 1, 1])
    x = np.array([[0.0, 1.0], [2.0, 1.0], [3.0, 1.0], [5.0, 1.0]])
    # means 1 and 4, both variances 2
    np.testing.assert_allclose(info.d_prime(x, labels, 2), [[-3 / np.sqrt(2), 3 / np.sqrt(2)], [np.nan, np.nan]])
    np.testing.assert_allclose(info.auc(x, labels, 2), [[0, 1], [0.5, 0.5]])  # ties count half
    assert np.isnan(info.auc(x, labels, 3)[:, 2]).all() and np.isnan(info.d_prime(x, labels, 3)[:, 2]).all()


def test_information_of_what_is_one_to_one_of_halves_and_of_nothing() -> None:
    one_to_one = LABELS[:, None].astype(float)
    halves = (LABELS >= 2)[:, None].astype(float)
    found = info.mutual_information(np.concatenate([one_to_one, halves, np.ones((100, 1))], 1), LABELS, 4)
    np.testing.assert_allclose(found, [2, 1, 0], atol=1e-6)
    inside = info.binned(np.maximum(RNG(0).normal(size=(200, 3)), 0))
    assert (inside.sum(-1) == 1).all() and (inside.sum(0).max(-1) >= 80).all()  # zeros are together
    noise = info.mutual_information(RNG(1).normal(size=(400, 200)), np.repeat(np.arange(4), 100), 4)
    assert noise.mean() == pytest.approx(7 * 3 / (2 * 400 * np.log(2)), rel=0.1)  # Miller's bias


def test_shuffled_labels_hold_their_level_and_planted_units_stand_out() -> None:
    p: dict[str, list[np.ndarray]] = {}
    for seed in range(20):
        noise = np.maximum(RNG(seed).normal(size=(100, 30)), 0)
        for name, found in info.readouts(noise, LABELS, 4, RNG(100 + seed), draws=60).items():
            p.setdefault(name, []).append(found.p)
    for name, values in p.items():
        share = np.mean(np.concatenate(values) <= 0.05)
        assert abs(share - 3 / 61) < 3 * np.sqrt(0.05 * 0.95 / 600), name
    noise[LABELS == 2, 0] += 5
    noise[:, 1] = 0
    for name, found in info.readouts(noise, LABELS, 4, RNG(0), draws=60).items():
        assert found.p[0] == pytest.approx(1 / 61) and found.value[0] > 1.5 * found.chance[0] > 0, name
        assert found.best[0] == (-1 if name == "mutual_information" else 2)
        assert np.isnan([found.value[1], found.p[1], found.chance[1]]).all() and len(found.null_means) == 60


def test_a_spread_that_selectivity_does_not_see_is_seen() -> None:
    labels = np.repeat([0, 1], 200)
    x = np.abs(RNG(0).normal(size=(400, 2)))
    x[:, 0] = np.where(labels == 1, 1.0, np.where(np.arange(400) % 2, 2.0, 0.0))  # equal means, other values
    found = info.readouts(x, labels, 2, RNG(1), draws=60)
    assert found["mutual_information"].p[0] < 0.02 and found["mutual_information"].value[0] == pytest.approx(1)
    assert found["d_prime"].value[0] == pytest.approx(0, abs=1e-6) and found["auc"].value[0] == pytest.approx(0.5)


def test_one_unit_is_replaced_at_every_position() -> None:
    x = torch.ones(2, 3, 4, 4)
    changed = replaced(1, 2, 0.5)(x)
    assert (changed[:, 2] == 0.5).all() and (changed[:, :2] == 1).all() and (x == 1).all()
    assert (replaced(-1, 1, 0.0)(torch.ones(2, 5, 3))[..., 1] == 0).all()


def test_a_rank_correlation_has_its_null() -> None:
    x = np.arange(20.0)
    value, null = rank_correlation(x, np.exp(x), RNG(0), 200)
    assert value == pytest.approx(1) and abs(null.mean()) < 0.06 and null.max() < 1
    assert np.isnan(rank_correlation(x[:3], x[:3], RNG(0), 10)[0])
    assert np.isnan(rank_correlation(x, np.ones(20), RNG(0), 10)[0])


def ablated(store: Store, model: str, step: int, **parameters: object) -> tuple[Contexts, dict[str, object]]:
    contexts = Contexts(StoredSweep(store, SWEEP))
    found = unit_ablation(AnalysisInput("s", Partition(trial_of(store, model), step), {}, contexts), **parameters)
    for table in (UNIT_ABLATION, UNIT_ABLATION_METRICS):
        conform(table, found[table.name].to_pandas())
    return contexts, {name: table.to_pandas() for name, table in found.items()}


@pytest.mark.slow
def test_losses_without_a_unit_are_those_of_a_network_whose_outgoing_weights_are_zero(store: Store) -> None:
    contexts, found = ablated(store, "cnn", 40, most=3)
    rows, context = found["unit_ablation"], contexts(trial_of(store, "cnn"), 40)
    assert rows.groupby("layer").size().to_dict() == {"conv_layers.0": 3, "conv_layers.3": 3}
    before = context.losses().mean()
    following = context.model.get_submodule("conv_layers.3").weight
    for row in rows[rows["layer"] == "conv_layers.0"].itertuples():
        kept = following.detach().clone()
        with torch.no_grad():
            following[:, row.unit] = 0
            expected = context.losses_of(np.asarray(torch.cat(context._pass()).double().numpy())).mean() - before
            following.copy_(kept)
        assert row.loss_change == pytest.approx(expected, abs=1e-6) and row.standard_error > 0
    again = ablated(store, "cnn", 40, most=3)[1]["unit_ablation"]
    assert again.equals(rows)
    other = ablated(store, "cnn", 20, most=3)[1]["unit_ablation"]
    assert list(other["unit"]) == list(rows["unit"])  # the same units at every checkpoint


@pytest.mark.slow
def test_a_unit_that_always_says_its_mean_is_worth_nothing_more_than_it(store: Store) -> None:
    zero, mean = (ablated(store, "cnn", 40, most=4, instead=how)[1] for how in ("zero", "mean"))
    assert (zero["unit_ablation"]["instead"] == 0).all() and mean["unit_ablation"]["instead"].ne(0).any()
    metrics = zero["unit_ablation_metrics"].set_index(["layer", "metric"])
    known = metrics.loc[("conv_layers.0", "unit_ablation_loss")]
    own = zero["unit_ablation"].query("layer == 'conv_layers.0'")
    assert known["value"] == pytest.approx(own["loss_change"].mean()) and known["chance"] == 0
    assert ("conv_layers.3", "selectivity_ablation_correlation") in metrics.index


@pytest.mark.parametrize("bad", [{"most": 0}, {"instead": "median"}])
def test_bad_parameters_are_refused(store: Store, bad: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=next(iter(bad))):
        ablated(store, "cnn", 40, **bad)
