"""Null series have the noise of their series and no event; p-values resolve what their number allows."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from ndt_ray.analysis.detection import maxtest
from ndt_ray.analysis.detection.maxtest import ENOUGH, LEAST, Null, Tail, fit_pareto, pareto, sequential
from ndt_ray.analysis.detection.profile import judge
from ndt_ray.analysis.detection.surrogates import NULLS, describe, draw, quantum, siblings, students
from ndt_ray.analysis.validity import families
from ndt_ray.errors import SpecError

N = 400
Floats = NDArray[np.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ar1(phi: float, seed: int, n: int = N) -> Floats:
    drawn = rng(seed).normal(size=n + 200) * np.sqrt(1 - phi * phi)
    return np.asarray(lfilter([1.0], [1.0, -phi], drawn)[200:])


def lag1(series: Floats) -> float:
    centred = series - series.mean(axis=-1, keepdims=True)
    return float((centred[:, 1:] * centred[:, :-1]).sum() / (centred**2).sum())


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_noise_is_known_beside_a_step(phi: float) -> None:
    values = ar1(phi, 1)
    quiet = describe(values, "level", rng())
    values = values + 12.0 * (np.arange(N) > 220) + 0.05 * np.arange(N)
    known = describe(values, "level", rng())
    assert quiet.removed == 0 and known.removed == 1
    assert known.phi == pytest.approx(phi, abs=0.12) and known.sd == pytest.approx(1, abs=0.35)
    # The trend goes on as if nothing had happened.
    assert np.ptp(known.trend) < 26


def test_wide_sigmoids_are_no_memory_and_whole_run_curves_stay_in_the_trend() -> None:
    """Noise of several memories would explain this event half: its null would be as wide as a walk's."""
    t = np.arange(N)
    event = describe(families.planted("sigmoid_60", 8.0, 0.5, 1, first=62).values[0], "level", rng())
    assert event.removed == 1 and event.phi == pytest.approx(0.5, abs=0.12)
    curve = 15 * (1 + np.cos(np.pi * t / N))
    known = describe(curve + ar1(0.0, 11), "level", rng())
    assert known.removed == 0 and abs(known.phi) < 0.15 and np.abs(known.trend - curve).max() < 1.5


def test_small_sample_bias_of_memory_is_corrected() -> None:
    found = np.mean([describe(ar1(0.9, s, 200), "level", rng()).phi for s in range(12)])
    assert found == pytest.approx(0.9, abs=0.03)  # without the correction 0.83


@pytest.mark.parametrize("null", NULLS)
def test_null_series_resemble_the_noise(null: str) -> None:
    values = 3 + 0.01 * np.arange(N) + ar1(0.6, 2)
    known = describe(values, "level", rng())
    drawn = draw(known, 200, null, rng(3))
    assert drawn.shape == (200, N)
    left = drawn - known.trend
    assert left.std() == pytest.approx(1, abs=0.25)
    # Blocks cut the memory where they meet.
    assert lag1(left) == pytest.approx(0.6, abs=0.2 if null == "block" else 0.1)
    assert np.array_equal(draw(known, 5, null, rng(3)), draw(known, 5, null, rng(3)))


def test_iaaft_keeps_the_values_and_nearly_the_spectrum() -> None:
    known = describe(ar1(0.7, 4), "level", rng())
    drawn = (draw(known, 20, "iaaft", rng(5)) - known.trend) / known.scale
    if not known.spikes.any():
        assert np.allclose(np.sort(drawn, axis=-1), np.sort(known.remainder), atol=1e-9)
    power = np.abs(np.fft.rfft(drawn, axis=-1)) ** 2
    own = np.abs(np.fft.rfft(known.remainder)) ** 2
    assert np.abs(power[:, 1:100].sum(axis=-1) / own[1:100].sum() - 1).max() < 0.1


def test_whole_numbers_stay_whole() -> None:
    values = np.rint(40 + 0.75 * ar1(0.5, 6))
    assert quantum(values) == 1.0 and quantum(values / 4) == 0.25
    assert quantum(ar1(0.0, 7)) == 0 and quantum(np.ones(50)) == 0
    drawn = draw(describe(values, "level", rng()), 20, "ar_sieve", rng(1))
    assert np.array_equal(drawn, np.rint(drawn)) and drawn.std() == pytest.approx(values.std(), rel=0.3)


@pytest.mark.slow
def test_siblings_are_what_branches_differ_by() -> None:
    common = np.cumsum(ar1(0.9, 8)) * 0.1
    branches = common + 0.5 * np.stack([ar1(0.5, 100 + s) for s in range(8)])
    null = siblings(branches[0], branches, "level")
    assert null.shape == (8, N)
    assert (null - null.mean(axis=0)).std() == pytest.approx(0.5, rel=0.15)
    quiet = judge(branches[0], "x", continuations=branches[1:])
    assert 1 / 8 <= quiet.p <= 1 and quiet.n_surrogates == 7 and quiet.tail == "counted"
    shifted = branches[0] + 6 * (np.arange(N) > 200)
    assert judge(shifted, "x", continuations=branches[1:]).p == pytest.approx(1 / 8)
    for wrong in (branches[:, :-1], branches[:2], branches[0]):
        with pytest.raises(SpecError, match="at least 3 continuations"):
            siblings(branches[0], wrong, "level")


def test_an_unknown_null_is_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'ar_sieve'"):
        draw(describe(ar1(0.0, 9), "level", rng()), 5, "ar_sive", rng())


def test_the_tail_of_rates_is_fitted() -> None:
    """Of many values the likeliest t is theirs; of few, several are likely; and 1 is the sum of their likelihoods."""
    heavy, normal = 2 * rng(1).standard_t(3, 4000), rng(1).normal(size=4000)
    degrees, scale, likelihood = students(np.stack([heavy, normal]))
    best = likelihood.argmax(axis=1)
    assert 2.5 <= degrees[best[0]] <= 3.5 and degrees[best[1]] >= 20
    assert [scale[i, best[i]] for i in range(2)] == pytest.approx([2, 1], rel=0.1)
    few = students(heavy[None, :100])[2]
    assert few.sum() == pytest.approx(1) and few.max() < likelihood[0].max()


def test_p_counts_null_series_as_large() -> None:
    null = Null(np.arange(1.0, 100.0), 1 / 100)  # 99 of them
    assert null.p(np.array([1000.0]))[0] == 1 / 100 and null.p(np.array([0.0]))[0] == 1
    assert null.p(np.array([99.0]))[0] == 2 / 100
    tailed = Null(np.arange(1.0, 100.0), LEAST, Tail(80.0, 0.2, 0.0, 2.0, 0.5))
    assert tailed.p(np.array([90.0]))[0] == 11 / 100  # as large are ten: counted
    assert tailed.p(np.array([99.0]))[0] == pytest.approx(0.2 * np.exp(-9.5))
    assert tailed.p(np.array([1e6]))[0] == LEAST == tailed.attainable


def test_a_pareto_tail_resolves_what_counting_cannot() -> None:
    """Exponential and heavier tails: p of what is exceeded once in 10^5, from 500 draws, within a factor of 5."""
    for shape in (0.0, 0.15):
        found = []
        for seed in range(15):
            uniform = rng(seed).random(500)
            drawn = -np.log(uniform) if shape == 0 else (uniform**-shape - 1) / shape
            tail = pareto(np.sort(drawn), rng(seed))
            assert tail is not None
            beyond = -np.log(1e-5) if shape == 0 else (1e-5**-shape - 1) / shape
            found.append(float(tail.beyond(np.array([beyond]))[0]))
        assert 2e-6 < np.median(found) < 5e-5
    xi, scale = fit_pareto(np.sort((rng(2).random((1, 4000)) ** -0.3 - 1) / 0.3 * 2))
    assert xi[0] == pytest.approx(0.3, abs=0.07) and scale[0] == pytest.approx(2, rel=0.1)


def test_a_bounded_or_lumpy_tail_is_not_extrapolated_to_zero() -> None:
    bounded = pareto(np.sort(rng(3).random(500)), rng(3))
    assert bounded is None or (bounded.shape >= 0 and bounded.beyond(np.array([1.5]))[0] > 0)
    lumpy = np.sort(np.r_[rng(4).random(400), np.repeat([5.0, 9.0], 50)])
    assert pareto(lumpy, rng(4)) is None


def test_null_series_are_drawn_until_enough_are_as_large() -> None:
    asked: list[int] = []

    def drawing(source: np.random.Generator) -> maxtest.Callable[[int], Floats]:
        def more(count: int) -> Floats:
            asked.append(count)
            return source.integers(0, 3, count).astype(np.float64)  # ties: no Pareto tail is accepted

        return more

    plain = sequential(1.0, drawing(rng(5)), rng(6), batch=200, most=1000)
    assert asked == [200] and plain.count == 200 and plain.tail is None
    asked.clear()
    rare = sequential(5.0, drawing(rng(5)), rng(6), batch=200, most=1000)
    assert asked == [200, 400, 400] and rare.count == 1000
    assert rare.p(np.array([5.0]))[0] == 1 / 1001 and ENOUGH == 10
