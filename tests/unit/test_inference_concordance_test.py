"""Concordance of seeds: no false alarm from a shared rate, planted coincidences found, clusters as drawn."""

import numpy as np
import pytest

from ndt_ray.analysis.inference.concordance_test import Concordance, clusters, concordance_test, merged_times

END, GRID, TOLERANCE, SEEDS = 2000.0, 5.0, 10.0, 6


def independent(rng: np.random.Generator, rate: str, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Six seeds whose events fall independently from one rate that decays over the run."""
    times, seeds = [], []
    for seed in range(SEEDS):
        count = rng.poisson(mean)
        if rate == "one_over_step":
            drawn = 50 * np.expm1(rng.uniform(0, np.log1p(END / 50), count))
        else:
            drawn = rng.exponential({"fast": 100, "slow": 300}[rate], count)
        drawn = np.unique(np.round(drawn[drawn < END] / GRID) * GRID)
        times.append(drawn)
        seeds.append(np.full(len(drawn), seed))
    return np.concatenate(times), np.concatenate(seeds)


def judged(times: np.ndarray, seeds: np.ndarray, rng: np.random.Generator, surrogates: int = 199) -> Concordance:
    return concordance_test(times, seeds, TOLERANCE, END, surrogates, rng, GRID)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "mean"), [("fast", 4), ("slow", 4), ("one_over_step", 4), ("slow", 1)])
def test_independent_seeds_with_a_shared_decaying_rate_are_not_concordant(rate: str, mean: float) -> None:
    """500 simulations each: at most 7 % reject at 0.05, by either null alone; a window that is too full is as rare."""
    rng = np.random.default_rng(7)
    p, jitter, redraw, size = [], [], [], []
    while len(p) < 500:
        times, seeds = independent(rng, rate, mean)
        if len(np.unique(seeds)) < 2:
            continue
        found = judged(times, seeds, rng, 99)
        p.append(found.p)
        jitter.append(found.p_jitter)
        redraw.append(found.p_redraw)
        size.append(found.p_of_size(found.largest))
    for values in (p, jitter, redraw, size):
        assert np.mean(np.array(values) <= 0.05) <= 0.07


@pytest.mark.parametrize(
    ("at", "share", "background", "wanted"), [(500, 6, 1, 0.95), (500, 4, 1, 0.8), (60, 6, 1, 0.8)]
)
def test_planted_coincidences_are_found(at: int, share: int, background: float, wanted: float) -> None:
    """One event in 6 or 4 of 6 seeds within ± one measurement, among as many independent ones: 60 simulations."""
    rng = np.random.default_rng(8)
    hits = []
    for _ in range(60):
        times, seeds = independent(rng, "slow", background)
        planted = at + GRID * rng.integers(-1, 2, share)
        found = judged(np.concatenate([times, planted]), np.concatenate([seeds, np.arange(share)]), rng)
        hits.append(found.p <= 0.05)
        assert found.largest >= share and found.coincidences >= share * (share - 1) / 2 * 0.9
    assert np.mean(hits) >= wanted


def test_clusters_hold_most_seeds_first_and_each_event_once() -> None:
    times = np.array([100.0, 104, 96, 110, 500, 505, 900, 901])
    seeds = np.array([0, 1, 2, 0, 3, 1, 4, 4])
    found = [sorted(c.tolist()) for c in clusters(times, seeds, 10)]
    assert found == [[0, 1, 2, 3], [4, 5]]
    assert clusters(np.zeros(0), np.zeros(0, np.int64), 10) == []
    assert merged_times(np.array([5.0, 30, 7, 9]), 3).tolist() == [7.0, 30.0]


def test_deterministic_and_counts_by_hand() -> None:
    times, seeds = np.array([50.0, 55, 60, 800]), np.array([0, 1, 1, 2])
    found = [judged(times, seeds, np.random.default_rng(1)) for _ in range(2)]
    assert found[0].coincidences == 2 and found[0].largest == 2 and found[0].p == found[1].p
    assert found[0].p_of_size(1) == 1 and (np.diff(found[0].sizes) <= 0).all()
    assert found[0].p >= 1 / 200
