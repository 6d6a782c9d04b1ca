"""Planted Fourier structure is found again, every frequency of it, and nothing where there is none."""

import numpy as np
import pytest

from ndt_ray.analysis.mechanisms.grokking import fourier, progress
from ndt_ray.data.modular import modular_addition
from ndt_ray.errors import SpecError

P = 113
KEYS = (14, 35, 41, 42, 52)


def planted(keys: tuple[int, ...], p: int = P, strength: float = 5.0) -> np.ndarray:
    """Logits that are sums of cos(w_k (a + b - c))."""
    a, b, c = np.ogrid[:p, :p, :p]
    return sum(strength * np.cos(2 * np.pi * k * (a + b - c) / p) for k in keys)


@pytest.mark.parametrize("p", [2, 5, 12, 23, 113])
def test_the_basis_is_orthonormal_and_complete(p: int) -> None:
    f = fourier.basis(p)
    assert f.shape == (p, p) and np.abs(f @ f.T - np.eye(p)).max() < 1e-12
    assert fourier.row_frequencies(p).max() == p // 2 and fourier.frequencies(p)[-1] == p // 2


def test_planted_logits_have_the_published_scores() -> None:
    logits = planted(KEYS)
    found = progress.scores(logits)
    assert found.accuracy == 1 and found.loss == pytest.approx(2.1792e-5, rel=1e-4)
    assert found.margin == pytest.approx(12.0509, abs=1e-4)
    assert progress.scores(progress.excluded(logits, KEYS)).loss == pytest.approx(np.log(113), abs=1e-9)
    assert progress.scores(progress.excluded(logits, (14,))).loss == pytest.approx(2.7106e-3, rel=1e-4)
    assert progress.scores(progress.restricted(logits, KEYS)).loss == pytest.approx(found.loss, rel=1e-9)
    energy = fourier.sum_energy(logits)
    assert fourier.key_frequencies(energy) == KEYS
    assert energy[[k - 1 for k in KEYS]] == pytest.approx([0.2] * 5)
    assert progress.explained(logits, KEYS) == pytest.approx(1.0) == energy.sum()


@pytest.mark.parametrize("k", [1, 55, 56])
def test_the_last_frequencies_are_seen(k: int) -> None:
    assert fourier.key_frequencies(fourier.sum_energy(planted((k,)))) == (k,)


def test_an_even_modulus_has_a_frequency_of_half_of_it() -> None:
    assert fourier.key_frequencies(fourier.sum_energy(planted((3, 6), p=12))) == (3, 6)


def test_noise_has_no_structure_in_the_sum() -> None:
    noise = np.random.default_rng(0).normal(size=(P, P, P))
    energy = fourier.sum_energy(noise)
    assert energy.sum() == pytest.approx(P**-2, rel=0.4)  # p of p³ directions, by chance
    assert fourier.key_frequencies(energy) == ()


def test_constant_logits_are_uniform_and_without_energy() -> None:
    flat = np.zeros((7, 7, 7))
    assert progress.scores(flat).loss == pytest.approx(np.log(7))
    assert np.isnan(fourier.sum_energy(flat)).all() and fourier.key_frequencies(fourier.sum_energy(flat)) == ()


def test_scores_of_chosen_pairs_only() -> None:
    data = modular_addition(p=23)
    mask = np.zeros((23, 23), dtype=bool)
    mask[data.train_x[:, 0], data.train_x[:, 1]] = True
    logits = planted((3,), p=23)
    logits[~mask] = 0.0
    assert progress.scores(logits, mask).accuracy == 1
    assert progress.scores(logits, ~mask).loss == pytest.approx(np.log(23))
    assert np.isnan(progress.scores(logits, np.zeros_like(mask)).loss)


def test_tiny_losses_keep_their_digits() -> None:
    logits = planted(KEYS, strength=20.0)
    found = progress.scores(logits).loss
    one = logits[0, 0].astype(np.longdouble)
    exact = np.log1p(np.exp(one[1:] - one[0]).sum())
    assert 0 < found < 1e-18 and found / float(exact) == pytest.approx(1, rel=1e-9)


def test_a_neuron_of_one_frequency_belongs_to_it_and_a_mixed_product_to_none() -> None:
    a, b = np.ogrid[:23, :23]
    w = 2 * np.pi / 23
    pure = np.cos(w * 5 * a + 0.3) + np.sin(w * 5 * b)
    product = np.cos(w * 5 * a) * np.cos(w * 5 * b)
    mixed = np.cos(w * 5 * a) * np.cos(w * 7 * b)
    shares, energy = fourier.map_spectrum(np.stack([3 + pure, product, mixed, np.full((23, 23), 2.0)]))
    assert shares[:2, 4] == pytest.approx(1.0) and shares[2].sum() == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(shares[3]).all() and energy[3] == 0
    frequency, share = fourier.dominant(shares)
    assert frequency[:2].tolist() == [5, 5] and frequency[3] == 0 and np.isnan(share[3])


def test_learned_frequencies_need_a_tenth_of_the_neurons() -> None:
    shares = np.zeros((40, 11))
    shares[:5, 2], shares[5:8, 6] = 0.9, 0.9
    assert fourier.learned_frequencies(shares) == (3,)


def test_gini_of_equal_and_of_single_values() -> None:
    assert fourier.gini(np.ones(56)) == pytest.approx(0, abs=1e-12)
    assert fourier.gini(np.eye(56)[0]) == pytest.approx(1 - 1 / 56)
    assert np.isnan(fourier.gini(np.zeros(3))) and np.isnan(fourier.gini(np.zeros(0)))


def test_gaussian_embeddings_have_the_gini_of_the_reference_run_at_step_0() -> None:
    embedding = np.random.default_rng(0).normal(size=(P, 128))
    assert fourier.gini(fourier.band_energy(embedding)[1:]) == pytest.approx(0.05, abs=0.015)


def test_dominant_rows_of_an_embedding() -> None:
    f = fourier.basis(23)
    embedding = np.outer(f[5], np.ones(4)) + 0.1 * np.outer(f[2], np.ones(4))
    assert fourier.dominant_rows(embedding).tolist() == [5]


def test_phases_of_neurons_that_add_angles_agree() -> None:
    p, rng = 23, np.random.default_rng(0)
    phi, k = rng.uniform(0, 2 * np.pi, 30), rng.integers(1, 12, 30)
    x = 2 * np.pi * np.arange(p)[:, None] * k / p
    inputs = np.cos(x + phi)
    clock, random = np.cos(x + 2 * phi).T, np.cos(x + rng.uniform(0, 2 * np.pi, 30)).T
    assert fourier.neuron_phases(inputs, clock, k)[2] == pytest.approx(1.0)
    assert fourier.neuron_phases(inputs, random, k)[2] < 0.5


def test_a_head_that_matches_one_frequency() -> None:
    x = 2 * np.pi * 4 * np.arange(23) / 23
    both = np.stack([np.cos(x), np.sin(x)], 1)
    assert fourier.query_key_spectrum(both, both)[3] == pytest.approx(1.0)


@pytest.mark.parametrize("k", [0, 57])
def test_an_unknown_frequency_is_refused(k: int) -> None:
    with pytest.raises(SpecError, match=f"no frequency {k} modulo 113"):
        progress.sum_directions(113, (k,))
