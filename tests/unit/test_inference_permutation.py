"""Permutation tests: SciPy's exact answers, their level, and the smallest p they can reach."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ndt_ray.analysis.inference import permutation
from ndt_ray.analysis.inference.permutation import paired, sign_flips, unpaired, within_blocks


def test_exact_p_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 1, 6), rng.normal(0, 1, 6)
    wanted = stats.permutation_test(
        (a, b), lambda x, y: x.mean() - y.mean(), n_resamples=np.inf, alternative="two-sided"
    ).pvalue
    found = unpaired(a, b)
    assert found.exact and found.p == pytest.approx(wanted)
    d = rng.normal(0.8, 1, 7)
    wanted = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert paired(d, np.zeros(7)).p == pytest.approx(wanted)


def test_separated_groups_reach_the_smallest_p() -> None:
    high, low = np.arange(6) + 10.0, np.arange(6) * 1.0
    assert unpaired(high, low).p == unpaired(high, low).smallest == pytest.approx(2 / 924)
    assert paired(high, low).p == paired(high, low).smallest == pytest.approx(2 / 64)
    assert unpaired(low, low).p == 1 and paired(low, low).p == 1
    assert unpaired(np.ones(4), np.ones(4)).p == 1


def test_level_and_monte_carlo_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 pairs of six equal groups: 5 % reject at 0.05 (SE 0.5 %)."""
    rng = np.random.default_rng(1)
    for test in (unpaired, paired):
        p = [test(a, b).p for a, b in zip(rng.normal(size=(2000, 6)), rng.normal(size=(2000, 6)), strict=True)]
        assert np.mean(np.array(p) <= 0.05) <= 0.065
    a, b = rng.normal(0.7, 1, 8), rng.normal(0, 1, 8)
    exact = unpaired(a, b).p, paired(a, b).p
    monkeypatch.setattr(permutation, "EXACT", 10)
    drawn = unpaired(a, b, "k"), paired(a, b, "k")
    assert not drawn[0].exact and drawn[0] == unpaired(a, b, "k")
    assert [t.p for t in drawn] == pytest.approx(exact, abs=0.01)


def test_too_few() -> None:
    for found in (unpaired([], [1.0]), unpaired([1.0], [2.0]), paired([1.0], [2.0]), paired([], [])):
        assert math.isnan(found.p) and found.smallest == 1


def test_orders_within_blocks_are_all_orders() -> None:
    """Two treatments are pairs; three agree with every one of the orders, made the long way; more are drawn."""
    rng = np.random.default_rng(2)
    pairs = rng.normal(size=(6, 2)) + [0.0, 0.8]
    assert within_blocks(pairs).p == pytest.approx(sign_flips(pairs[:, 0] - pairs[:, 1]).p)
    table = rng.normal(size=(3, 3)) + [0.0, 0.5, 1.0]

    def spread(rows: np.ndarray) -> float:
        return float(np.var(rows.mean(axis=0)))

    orders = list(itertools.permutations(range(3)))
    every = [
        spread(np.stack([table[i, list(o)] for i, o in enumerate(c)])) for c in itertools.product(orders, repeat=3)
    ]
    found = within_blocks(table)
    assert found.exact and found.p == pytest.approx(np.mean(np.array(every) >= spread(table) * (1 - 1e-9)))
    assert found.smallest == pytest.approx(1 / 36)
    assert not within_blocks(rng.normal(size=(9, 4))).exact and np.isnan(within_blocks(np.zeros((1, 3))).p)


def test_orders_within_blocks_keep_their_level() -> None:
    rng = np.random.default_rng(3)
    p = np.array([within_blocks(rng.normal(size=(6, 3)) + rng.normal(size=(6, 1))).p for _ in range(400)])
    assert (p <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)
