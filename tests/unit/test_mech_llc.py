"""The sampler against closed forms: regular minima d/2, normal crossings min 1/(2 k_j); SCIENCE §4 row 10."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ndt_ray.analysis.mechanisms import llc
from ndt_ray.errors import SpecError

N = 1000.0


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 4, 10])
def test_a_regular_minimum_has_half_its_dimensions(d: int) -> None:
    """E[n β L] under exp(-n β L) is d/2 at any n; the anchor takes a share γ / (n β + γ) off."""
    found = llc.of_potential(lambda w: (w**2).sum(-1), torch.zeros(d), n=N, seed=d, step_size=2e-4, chains=100)
    assert found.flag is None
    assert found.value == pytest.approx(d / 2, abs=3.5 * found.standard_error + 0.03 * d / 2)


@pytest.mark.slow
@pytest.mark.parametrize(("powers", "expected"), [((0, 1), 0.5), ((1, 1), 0.5), ((1, 2), 0.25), ((0, 3), 1 / 6)])
def test_normal_crossings(powers: tuple[int, int], expected: float) -> None:
    """w1^(2 k1) w2^(2 k2): λ = min 1/(2 k_j). The truth lies within 3.5 SD of the chains' values."""

    def potential(w: Tensor) -> Tensor:
        return w[..., 0] ** (2 * powers[0]) * w[..., 1] ** (2 * powers[1])

    found = llc.of_potential(potential, torch.zeros(2), n=N, seed=1, step_size=5e-4, draws=3000, chains=100)
    spread = np.std(found.by_chain, ddof=1)
    assert found.flag is None and abs(found.value - expected) < 3.5 * spread
    exact = expectation(potential)
    assert found.value == pytest.approx(exact, abs=4 * found.standard_error + 0.03)


def expectation(potential: object, localization: float = 1.0) -> float:
    """n β E[L] of the localised posterior by quadrature: what the sampler should give at this n."""
    axis = torch.linspace(-5, 5, 1501, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    strength = N / np.log(N)
    values = potential(grid)  # type: ignore[operator]
    weight = torch.exp(-strength * values - localization / 2 * (grid**2).sum(-1))
    return float(strength * (values * weight).sum() / weight.sum())


@pytest.mark.slow
def test_degenerate_minima_come_out_below_regular_ones() -> None:
    regular = llc.of_potential(lambda w: (w**2).sum(-1), torch.zeros(4), n=N, seed=0, step_size=2e-3)
    flat = llc.of_potential(lambda w: (w[..., :1] ** 2).sum(-1), torch.zeros(4), n=N, seed=0, step_size=2e-3)
    assert flat.value == pytest.approx(0.5, abs=0.1) and regular.value > 3 * flat.value


def test_reduced_rank_regression_has_its_published_coefficient() -> None:
    """y = B A x, 3 -> 1 -> 3 at B A of rank 1: λ = 5/2 (Aoyagi & Watanabe 2005)."""
    target = torch.outer(torch.tensor([1.0, 0.5, -0.5]), torch.tensor([0.5, -1.0, 0.5])).double()

    def potential(w: Tensor) -> Tensor:
        product = w[..., :3, None] * w[..., None, 3:]
        return ((product - target) ** 2).sum((-1, -2))

    start = torch.tensor([1.0, 0.5, -0.5, 0.5, -1.0, 0.5])
    found = llc.of_potential(potential, start, n=N, seed=0, step_size=2e-4)
    assert found.value == pytest.approx(2.5, abs=0.2)  # six parameters, one of them a scale that changes nothing


def test_a_chain_that_finds_a_lower_loss_gives_no_number() -> None:
    found = llc.of_potential(lambda w: ((w - 1) ** 2).sum(-1), torch.zeros(3), n=N, seed=0, step_size=2e-3)
    assert found.flag == llc.LEFT and np.isnan(found.value) and found.loss_excess < 0


def test_a_chain_that_diverges_gives_no_number() -> None:
    found = llc.of_potential(lambda w: (w**4).sum(-1), torch.zeros(3), n=1e6, seed=0, step_size=10.0, draws=50)
    assert found.flag == llc.DIVERGED and np.isnan(found.value)


def test_the_same_seed_gives_the_same_chain() -> None:
    one, two = (llc.of_potential(lambda w: (w**2).sum(-1), torch.zeros(2), n=N, seed=3, draws=50) for _ in range(2))
    assert one == two
    with pytest.raises(SpecError, match="n > 1, draws > 0"):
        llc.of_potential(lambda w: (w**2).sum(-1), torch.zeros(2), n=1, seed=3)
