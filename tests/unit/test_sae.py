"""Dictionaries of planted features: found where they can be, consistent, and told apart from controls."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from ndt_ray.analysis.mechanisms.sae import quality
from ndt_ray.analysis.mechanisms.sae.files import load_saes, save_saes
from ndt_ray.analysis.mechanisms.sae.model import (
    FOUNDING,
    Config,
    Saes,
    founding_l1,
    preset,
    random_saes,
    scaling,
    train,
)
from ndt_ray.analysis.mechanisms.sae.transfer import Side, matching, normalised, transfer
from ndt_ray.analysis.mechanisms.similarity import procrustes_distance
from ndt_ray.errors import CheckpointError, SpecError


def planted(atoms: int, d: int, n: int, k: int, seed: int = 0, orthogonal: bool = False, coherent: float = 0.0):
    """(dictionary [atoms, d], activations [n, atoms], rows [n, d] float32) of k active features a row."""
    rng = np.random.default_rng(seed)
    words = rng.standard_normal((atoms, d)) + coherent * rng.standard_normal(d)
    words = np.linalg.qr(words.T)[0].T[:atoms] if orthogonal else words
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    active = np.argsort(rng.random((n, atoms)), axis=1)[:, :k]
    codes = np.zeros((n, atoms))
    np.put_along_axis(codes, active, 1 + rng.random((n, k)), axis=1)
    return words, codes, (codes @ words).astype(np.float32)


def side(name: str, rows: np.ndarray, config: Config, seeds: int = 2) -> Side:
    fit, held_out = rows[: len(rows) * 4 // 5], rows[len(rows) * 4 // 5 :]
    x = torch.from_numpy(np.ascontiguousarray(fit))
    names = [f"{name}{i}" for i in range(seeds + 1)]
    made = train(x.expand(seeds + 1, -1, -1), names, config, frozen=[False] * seeds + [True])
    untrained = random_saes(x[None], [name], config)
    return Side(name, fit[:, None], held_out[:, None], made.lanes(range(seeds)), made.lanes([seeds]), untrained)


@pytest.mark.slow
def test_an_orthogonal_dictionary_is_recovered_by_every_seed() -> None:
    words, codes, rows = planted(32, 32, 3000, 4, orthogonal=True)
    config = preset("default", expansion=1, k=4, max_steps=450, lr=3e-3)
    x = torch.from_numpy(rows)
    made = train(x[:2400].expand(2, -1, -1), ["a", "b"], config)
    judged = quality.held_out(made, x[2400:].expand(2, -1, -1))
    atoms = [a.double().numpy() for a in made.atoms]
    features = made.encode(made.normalised(x[2400:].expand(2, -1, -1)))
    for lane in (0, 1):
        assert quality.mcc(atoms[lane], words) > 0.95 and judged[lane]["explained_variance"] > 0.95
        assert quality.feature_f1(codes[2400:], features[lane].numpy(), atoms[lane], words) > 0.9
        assert judged[lane]["dead"] == 0 and judged[lane]["l0"] <= 4
    assert quality.pairwise_mcc(atoms) > 0.9 > 0.5 > quality.chance_mcc(32, 32, 32)


@pytest.mark.slow
def test_high_explained_variance_is_no_recovery() -> None:
    """The sanity check of arXiv:2602.14111: with many atoms in few dimensions, atoms that learned nothing explain
    as much as trained ones, and hardly any planted feature is found."""
    words, _, rows = planted(256, 16, 3000, 24, coherent=0.5)
    config = preset("default", expansion=16, k=4, max_steps=300, lr=4e-3)
    x = torch.from_numpy(rows)
    made = train(x[:2400].expand(2, -1, -1), ["t", "f"], config, frozen=[False, True])
    trained, frozen = quality.held_out(made, x[2400:].expand(2, -1, -1))
    assert trained["explained_variance"] > 0.68
    assert abs(trained["explained_variance"] - frozen["explained_variance"]) < 0.05
    nearest = quality.max_cosines(words, made.atoms[0].double().numpy())
    assert (nearest > 0.9).mean() < 0.1
    assert quality.mcc(made.atoms[0].double().numpy(), words) < quality.chance_mcc(256, 256, 16) + 0.05


def test_training_is_a_function_of_rows_and_seed() -> None:
    rows = torch.from_numpy(planted(24, 12, 400, 3)[2])
    config = preset("default", max_steps=20, k=3)
    one, again, other = (train(rows[None], [seed], config) for seed in ("a", "a", "b"))
    assert torch.equal(one.atoms, again.atoms) and torch.equal(one.encoder, again.encoder)
    assert not torch.equal(one.atoms, other.atoms)
    pack = train(rows.expand(3, -1, -1), ["b", "a", "c"], config)
    assert torch.allclose(pack.lanes([1]).atoms, one.atoms, atol=1e-4)
    assert torch.allclose(pack.atoms.norm(dim=-1), torch.ones(3, 48), atol=1e-5)


def test_frozen_atoms_stay_and_only_the_encoder_learns() -> None:
    rows = torch.from_numpy(planted(24, 12, 400, 3)[2])
    short, long = (train(rows[None], ["a"], preset("default", max_steps=n, k=3), frozen=[True]) for n in (1, 30))
    assert torch.allclose(short.atoms, long.atoms, atol=1e-6) and not torch.allclose(short.encoder, long.encoder)


def test_the_founding_configuration_is_there_with_its_corrections() -> None:
    assert (FOUNDING.expansion, FOUNDING.l1, FOUNDING.decorrelation, FOUNDING.lr) == (8, 1e-4, 0.01, 1e-4)
    assert (FOUNDING.batch, FOUNDING.epochs, FOUNDING.clip, FOUNDING.kind) == (64, 10, 1.0, "relu")
    assert [founding_l1(i) for i in (4, 6, 8, 16, 30)] == [1.5e-4, 1.5e-4, 1e-4, 0.5e-4, 0.5e-4]
    rows = torch.from_numpy(planted(24, 12, 640, 3)[2])
    made = train(rows[None], ["a"], preset("founding", epochs=3, lr=3e-3))
    assert made.losses.shape == (3, 1) and made.losses[-1, 0] < made.losses[0, 0]
    assert made.atoms.shape == (1, 96, 12) and torch.allclose(made.atoms.norm(dim=-1), torch.ones(1, 96), atol=1e-5)
    x = made.normalised(rows[None])
    assert x.mean(1).abs().max() < 1e-5 and torch.allclose((x**2).mean(1), torch.ones(1, 12), atol=1e-4)


def test_sparser_with_a_stronger_l1() -> None:
    rows = torch.from_numpy(planted(24, 12, 640, 3)[2])
    l0 = []
    for l1 in (0.0, 20.0):
        config = preset("default", kind="relu", l1=l1, max_steps=150, epochs=80)
        l0.append(quality.held_out(train(rows[None], ["a"], config), rows[None])[0]["l0"])
    assert l0[1] < 0.7 * l0[0]


def test_unknown_settings_and_bad_rows_are_refused() -> None:
    with pytest.raises(SpecError, match="no SAE configuration 'foundin'.*did you mean 'founding'"):
        preset("foundin")
    with pytest.raises(SpecError, match="have no 'epoch'.*did you mean 'epochs'"):
        preset("default", epoch=3)
    with pytest.raises(SpecError, match="sizes must be positive"):
        preset("default", k=0)
    with pytest.raises(SpecError, match="kind is topk or relu"):
        preset("default", kind="gated")
    bad = torch.full((1, 8, 4), torch.nan)
    with pytest.raises(SpecError, match="need finite rows"):
        train(bad, ["a"], Config())


def test_a_constant_dimension_has_a_floor_under_its_scale() -> None:
    rows = torch.zeros(1, 10, 3)
    rows[..., 0] = torch.arange(10.0)
    mean, scale = scaling(rows, "zscore")
    assert scale[0, 0, 1] == pytest.approx(1e-6) and torch.isfinite((rows - mean) / scale).all()


@pytest.mark.parametrize(("d", "expected"), [(2048, 0.0868), (32, 0.471), (64, 0.380), (128, 0.285), (256, 0.217)])
def test_the_chance_level_of_the_nearest_cosine(d: int, expected: float) -> None:
    """The published values are means over 50 random directions."""
    spread = 0.35 / d**0.5  # SD of one largest cosine, generously
    assert quality.chance_max_cosine(d, 8 * d) == pytest.approx(expected, abs=3 * spread / 50**0.5)


def test_the_chance_level_is_what_simulation_gives() -> None:
    rng = np.random.default_rng(0)
    draws = [(rng.standard_normal((200, 24)), rng.standard_normal((192, 24))) for _ in range(20)]
    many = [quality.max_cosines(one, other).mean() for one, other in draws]
    assert quality.chance_max_cosine(24, 192) == pytest.approx(np.mean(many), abs=0.005)
    assert quality.chance_max_cosine(1, 8) == pytest.approx(1, abs=0.01)
    # Shares above a level: SD of a mean over 20 x 200 directions, of which those of a draw share their targets, 0.008.
    shares = [(quality.max_cosines(one, other) > 0.5).mean() for one, other in draws]
    assert quality.chance_over(0.5, 24, 192) == pytest.approx(np.mean(shares), abs=0.024)
    few = [(quality.max_cosines(one[:, :6], other[:48, :6]) > 0.7).mean() for one, other in draws]
    assert quality.chance_over(0.7, 6, 48) == pytest.approx(np.mean(few), abs=0.03) and 0.5 < np.mean(few) < 0.95
    assert quality.chance_over(0.7, 2048, 16384) == pytest.approx(0, abs=1e-9)
    assert quality.chance_over(0.5, 1, 3) == pytest.approx(1 - 1 / 8)


def test_the_chance_of_a_rank_correlation_is_that_of_its_number_of_features() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50))
    exact = 1.6449 / 49**0.5  # the correlation of permuted ranks is normal with an SD of 1 / sqrt(n - 1)
    assert quality.permuted_spearman(x, y) == pytest.approx(exact, abs=0.05)
    assert quality.permuted_spearman(x, y) == quality.permuted_spearman(np.exp(x), y)
    assert np.isnan(quality.permuted_spearman(np.ones(9), rng.normal(size=9)))


def test_matched_cosines_of_a_shuffled_and_flipped_copy_are_one() -> None:
    atoms = np.random.default_rng(0).standard_normal((20, 8))
    assert quality.mcc(-atoms[::-1], atoms) == pytest.approx(1.0)
    assert quality.mcc(atoms[:5], atoms) == pytest.approx(1.0) and np.isnan(quality.mcc(atoms[:0], atoms))
    assert np.isnan(quality.pairwise_mcc([atoms]))


@pytest.mark.slow
def test_a_rotated_copy_transfers_only_after_the_rotation() -> None:
    """SCIENCE §4 row 16: the map restores what the rotation took, on stimuli it was not fitted on."""
    rows = planted(64, 32, 2000, 4)[2]
    turn = np.linalg.qr(np.random.default_rng(9).standard_normal((32, 32)))[0].astype(np.float32)
    config = preset("default", expansion=2, k=4, max_steps=250)
    here = side("a", rows, config)
    there = dataclasses.replace(side("b", rows @ turn, config), name="rotated")
    own, moved = transfer(here, here), transfer(here, there)
    assert procrustes_distance(rows, rows @ turn) == pytest.approx(0, abs=1e-6)
    assert own.raw == pytest.approx(own.aligned, abs=1e-6) == own.ceiling and own.score == pytest.approx(1.0)
    assert moved.aligned == pytest.approx(own.ceiling, abs=0.003) and moved.raw < own.ceiling - 0.2
    assert moved.affine == pytest.approx(moved.aligned, abs=0.01)
    assert moved.score is not None and moved.score > 0.9 and moved.alignment == "procrustes"
    shared = matching(here, there, ("x",))
    assert shared["correlation"] > 2 * shared["correlation_null_hi"] and shared["mcc"] > shared["mcc_chance"] + 0.1


@pytest.mark.slow
def test_unrelated_layers_have_no_transfer() -> None:
    config = preset("default", expansion=2, k=4, max_steps=150)
    here, there = side("a", planted(64, 32, 2000, 4)[2], config), side("b", planted(64, 24, 2000, 4, seed=5)[2], config)
    found = transfer(here, there)
    assert np.isnan(found.raw) and found.alignment == "ridge" and found.founding == {}
    assert found.score is not None and abs(found.score) < 0.1 and found.ceiling > 0.4
    shared = matching(here, there, ("x",))
    assert shared["correlation"] < shared["correlation_null_hi"] + 0.03 and "mcc" not in shared


def test_matched_correlations_of_unrelated_features_hold_their_null() -> None:
    """At the 95 % quantile, of 60 null pairs: the binomial 99.9 % quantile is 10."""
    rng = np.random.default_rng(0)
    above = 0
    for i in range(60):
        found = quality.matched_correlation(rng.random((60, 12)), rng.random((60, 10)), (str(i),))
        above += found[0] > found[2]
    assert above <= 10
    constant = quality.matched_correlation(np.ones((60, 3)), rng.random((60, 3)), ("c",))
    assert np.isnan(constant).all()


def test_there_is_no_score_where_controls_reach_the_ceiling() -> None:
    rng = np.random.default_rng(0)
    low = (rng.standard_normal((1500, 3)) @ rng.standard_normal((3, 16))).astype(np.float32)
    config = preset("default", k=4, max_steps=60)
    here = side("a", low, config)
    found = transfer(here, here)
    assert found.controls["pca"] == pytest.approx(1.0, abs=1e-6) and found.score is None


def test_rows_that_do_not_pair_are_refused() -> None:
    config = preset("default", k=2, max_steps=5)
    here, there = side("a", planted(16, 8, 400, 2)[2], config), side("b", planted(16, 8, 500, 2)[2], config)
    with pytest.raises(SpecError, match="rows do not pair"):
        transfer(here, there)


@pytest.mark.slow
def test_founding_numbers_of_a_layer_with_itself_and_with_another() -> None:
    rows = planted(64, 32, 2000, 4)[2]
    config = preset("default", expansion=2, k=4, max_steps=150, normalise="zscore")
    here, there = side("a", rows, config), side("b", planted(64, 32, 2000, 4, seed=7)[2], config)
    same, other = transfer(here, here).founding, transfer(here, there).founding
    assert same["quality"] == pytest.approx(1, abs=1e-6) and same["spearman"] == pytest.approx(1)
    assert same["cosine"] == pytest.approx(1, abs=1e-6) and same["cosine_over_7"] == 1
    assert other["quality"] < 0.8 and other["ratio"] == pytest.approx(1 / other["quality"], rel=1e-3)
    assert other["cosine"] == pytest.approx(other["cosine_chance"], abs=0.06) and other["cosine_over_7"] <= 0.04
    for level in (5, 7):
        assert other[f"cosine_over_{level}"] == pytest.approx(other[f"cosine_over_{level}_chance"], abs=0.15)
        assert same[f"cosine_over_{level}_chance"] == other[f"cosine_over_{level}_chance"] < 0.5
    assert same["quality_random"] == pytest.approx(1, abs=1e-6) == same["spearman_random"]  # the same rows twice
    assert 0.9 < other["quality_random"] <= 1, "neither layer is what an untrained dictionary was made for"
    assert same["spearman"] > same["spearman_null_hi"] > 0
    # The control is the source's untrained dictionary on both layers, by hand.
    x, y = (
        torch.from_numpy(normalised(s.saes, s.held_out).reshape(1, -1, 32).astype(np.float32)) for s in (here, there)
    )
    lost = [float(((z - here.random.reconstruct(z)) ** 2).mean()) for z in (x, y)]
    assert other["quality_random"] == pytest.approx(min(1, lost[0] / lost[1]), rel=1e-4)
    on = [here.random.encode(z)[0].numpy().var(0) for z in (x, y)]
    top = np.argsort(-on[0])[:50]
    assert other["spearman_random"] == pytest.approx(spearmanr(on[0][top], on[1][top]).statistic, abs=0.02)


def test_the_loss_recovered_is_null_where_there_is_nothing_to_recover() -> None:
    assert quality.recovered(0.5, 0.6, 2.5) == pytest.approx(0.95)
    assert quality.recovered(0.5, 0.6, 0.5) is None and quality.recovered(0.5, 0.6, float("nan")) is None


def test_errors_of_blocks_shrink_with_the_number_of_stimuli() -> None:
    rng = np.random.default_rng(0)
    errors = [quality.jackknife(quality.without_blocks(rng.random(n), 2 + rng.random(n))) for n in (64, 6400)]
    assert errors[1] < errors[0] / 5 and np.isnan(quality.explained(np.zeros(3), np.zeros(3)))


def test_dictionaries_come_back_from_their_file(tmp_path: Path) -> None:
    rows = torch.from_numpy(planted(16, 8, 100, 2)[2])
    made = train(rows[None], ["a"], preset("founding", max_steps=3))
    again = load_saes(save_saes(made, tmp_path / "layers" / "sae.safetensors"))
    assert again.config == made.config and torch.equal(again.atoms, made.atoms)
    assert torch.equal(again.reconstruct(rows[None]), made.reconstruct(rows[None]))
    np.testing.assert_array_equal(again.losses, made.losses)
    (tmp_path / "torn").write_bytes(b"12345678")
    for name in ("torn", "missing"):
        with pytest.raises(CheckpointError, match="holds no dictionaries"):
            load_saes(tmp_path / name)


def test_lanes_can_be_picked() -> None:
    rows = torch.from_numpy(planted(16, 8, 100, 2)[2])
    made = train(rows.expand(3, -1, -1), ["a", "b", "c"], preset("default", max_steps=3, k=2))
    assert isinstance(made.lanes([2, 0]), Saes) and len(made) == 3
    assert torch.equal(made.lanes([2]).atoms[0], made.atoms[2])
